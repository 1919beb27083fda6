/*
 * The page walk: 32-bit, PAE and 4-level paging (SDM 3A chapter 4). Engines reach it through mmu.h.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "x86/mmu.h"

struct vcpu;

/* Page-fault error code (SDM 3A 4.7). */
#define PF_PRESENT  0x01u
#define PF_WRITE    0x02u
#define PF_USER     0x04u
#define PF_RESERVED 0x08u
#define PF_FETCH    0x10u

struct paging_result {
	uint64_t physical;  /* of the byte asked for */
	uint64_t page_size; /* 4 KiB, 2 MiB, 4 MiB or 1 GiB; 4 KiB without paging */
	bool
	    writable; /* a write in the same view would succeed now without touching the tables (W allowed and D set) */
	bool executable; /* a fetch in the same view would succeed */
	bool readable;
	bool global;
	uint32_t error; /* when the walk failed: the error code of #PF */
};

/*
 * Walks the tables for `linear`. True: `result` is filled and A (and D for writes) bits are set, atomically. False: the
 * access faults with result->error; the caller raises #PF and sets CR2. Runs on the vCPU's thread; raises nothing
 * itself. `linear` is canonical, or below 4 GiB outside long mode. With `debug`, privileges are ignored and nothing is
 * written.
 */
bool paging_walk(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view, bool debug,
                 struct paging_result *result);

/*
 * The same in 4-level paging where a page is there and no table would be touched: A is set everywhere. `result` says what
 * the view may do; `writable`: D is set, too. False: ask paging_walk(). Uses no vector instructions.
 */
bool paging_look(const struct vcpu *vcpu, uint64_t linear, enum mmu_view view, struct paging_result *result);

/*
 * Loads the four PDPTEs that PAE paging keeps inside the processor (SDM 3A 4.4.1). False: a reserved bit is set and the
 * load of CR3, CR0 or CR4 must raise #GP. Outside PAE paging it does nothing and returns true.
 */
bool paging_load_pdptes(struct vcpu *vcpu, uint64_t cr3);
