/*
 * The page walk (SDM 3A chapter 4).
 *
 * One loop for all modes: a table says how each mode's levels look. Entries are loaded once, atomically; A and D are
 * set by compare-and-exchange on the guest's RAM, and the walk starts again when another processor was faster. A table
 * outside RAM reads as all ones, as a bus does.
 */
#include "x86/paging.h"

#include "debug/trace.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/page_entries.h"
#include "x86/system.h"

#define WALK_RETRIES 1000

struct level {
	uint8_t shift; /* of the index in the linear address */
	uint8_t index_bits;
	bool may_be_page;    /* bit 7 is PS here */
	bool no_permissions; /* PAE's PDPTE: no R/W, U/S, A */
};

struct walk_mode {
	uint8_t entry_size;
	uint8_t levels;
	struct level level[4];
};

static const struct walk_mode mode_32bit = {4, 2, {{22, 10, false, false}, {12, 10, false, false}}};
static const struct walk_mode mode_32bit_pse = {4, 2, {{22, 10, true, false}, {12, 10, false, false}}};
static const struct walk_mode mode_pae = {8, 3, {{30, 2, false, true}, {21, 9, true, false}, {12, 9, false, false}}};
static const struct walk_mode mode_4level = {
    8, 4, {{39, 9, false, false}, {30, 9, true, false}, {21, 9, true, false}, {12, 9, false, false}}};

static const struct walk_mode *walk_mode(const struct cpu_state *s)
{
	if (cpu_long_mode(s))
		return &mode_4level;
	if (s->cr4 & CR4_PAE)
		return &mode_pae;
	return s->cr4 & CR4_PSE ? &mode_32bit_pse : &mode_32bit;
}

/* Bits that must be 0 in a present entry (SDM 3A figures 4-4, 4-7, 4-11). */
static uint64_t reserved_bits(const struct vcpu *vcpu, const struct walk_mode *mode, const struct level *level,
                              bool page)
{
	const struct cpu_state *s = &vcpu->state;
	unsigned width = physical_bits(vcpu);
	if (mode->entry_size == 4) {
		/* A 4-MByte page has address bits 39:32 in 20:13 (PSE-36). */
		if (!page || level->shift == 12)
			return 0;
		return width >= 40 ? 1ull << 21 : bits(21, 13 + (width > 32 ? width - 32 : 0));
	}
	uint64_t reserved = bits(51, width);
	if (level->no_permissions)
		return bits(63, width) | bits(8, 5) | bits(2, 1);
	if (!(s->efer & EFER_NXE))
		reserved |= PTE_NX;
	if (mode == &mode_pae)
		reserved |= bits(62, 52); /* ignored with 4 levels, reserved here */
	if (page && level->shift > 12)
		reserved |= bits(level->shift - 1u, 13); /* bit 12 is PAT */
	/* PS where no large page exists: PML4E, and PDPTE without 1-GByte pages. */
	if (level->shift == 39 || (level->shift == 30 && !page1g(vcpu)))
		reserved |= PTE_PS;
	return reserved;
}

/* A20 and the like are not the walk's business: RAM or nothing. */
static bool entry_load(struct vcpu *vcpu, uint64_t address, unsigned size, uint64_t *entry, void **host)
{
	*host = memory_pointer(vcpu->memory, address, size);
	if (!*host) {
		*entry = size == 4 ? 0xffffffff : ~0ull;
		return false;
	}
	*entry = size == 4 ? __atomic_load_n((uint32_t *)*host, __ATOMIC_ACQUIRE)
	                   : __atomic_load_n((uint64_t *)*host, __ATOMIC_ACQUIRE);
	return true;
}

/* False: the entry is no longer what was read. */
static bool entry_set_bits(struct vcpu *vcpu, void *host, uint64_t address, unsigned size, uint64_t expected,
                           uint64_t set)
{
	bool done;
	if (size == 4) {
		uint32_t old = (uint32_t)expected;
		done = __atomic_compare_exchange_n((uint32_t *)host, &old, old | (uint32_t)set, false, __ATOMIC_SEQ_CST,
		                                   __ATOMIC_RELAXED);
	} else {
		uint64_t old = expected;
		done = __atomic_compare_exchange_n((uint64_t *)host, &old, old | set, false, __ATOMIC_SEQ_CST,
		                                   __ATOMIC_RELAXED);
	}
	if (done)
		memory_written(vcpu->memory, address, size);
	return done;
}

static uint64_t page_physical(const struct walk_mode *mode, const struct level *level, uint64_t entry, uint64_t linear)
{
	uint64_t offset = linear & ((1ull << level->shift) - 1);
	uint64_t frame;
	if (mode->entry_size == 4)
		frame = level->shift == 22 ? (entry & 0xffc00000) | (entry & 0x1fe000) << 19 : entry & 0xfffff000;
	else
		frame = entry & bits(51, level->shift);
	return frame | offset;
}

enum walk_outcome { WALK_DONE, WALK_FAULT, WALK_AGAIN };

static enum walk_outcome walk_once(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view,
                                   bool debug, struct paging_result *result)
{
	const struct cpu_state *s = &vcpu->state;
	const struct walk_mode *mode = walk_mode(s);
	unsigned size = mode->entry_size;
	uint64_t table = size == 4 ? s->cr3 & 0xfffff000 : s->cr3 & bits(51, 12);
	struct rights rights = {.writable = true, .user = true};
	bool nxe = size == 8 && (s->efer & EFER_NXE);

	result->error = view == MMU_USER ? PF_USER : 0;
	if (access == MMU_WRITE)
		result->error |= PF_WRITE;
	/* I/D is reported only where fetches are told apart: NX or SMEP in force (SDM 3A 4.7). */
	if (access == MMU_EXECUTE && (nxe || (s->cr4 & CR4_SMEP)))
		result->error |= PF_FETCH;

	for (unsigned i = 0; i < mode->levels; i++) {
		const struct level *level = &mode->level[i];
		unsigned index = (unsigned)(linear >> level->shift) & ((1u << level->index_bits) - 1);
		uint64_t entry, address = 0;
		void *host = NULL;
		if (level->no_permissions)
			entry = s->pdpte[index];
		else {
			address = table + (uint64_t)index * size;
			entry_load(vcpu, address, size, &entry, &host);
		}
		if (!(entry & PTE_P))
			return WALK_FAULT;
		bool last = level->shift == 12;
		bool page = last || (level->may_be_page && (entry & PTE_PS));
		if (entry & reserved_bits(vcpu, mode, level, page)) {
			result->error |= PF_PRESENT | PF_RESERVED;
			return WALK_FAULT;
		}
		if (!level->no_permissions) {
			rights.writable &= (entry & PTE_RW) != 0;
			rights.user &= (entry & PTE_US) != 0;
			rights.no_execute |= nxe && (entry & PTE_NX);
		}
		if (!page) {
			if (!debug && !level->no_permissions && !(entry & PTE_A) && host &&
			    !entry_set_bits(vcpu, host, address, size, entry, PTE_A))
				return WALK_AGAIN;
			table = size == 4 ? entry & 0xfffff000 : entry & bits(51, 12);
			continue;
		}

		rights_apply(s, &rights, view, result);
		bool allowed = access == MMU_READ    ? result->readable
		               : access == MMU_WRITE ? result->writable
		                                     : result->executable;
		if (!allowed && !debug) {
			result->error |= PF_PRESENT;
			return WALK_FAULT;
		}
		if (!debug) {
			uint64_t set = PTE_A | (access == MMU_WRITE ? PTE_D : 0);
			if ((entry & set) != set) {
				if (host && !entry_set_bits(vcpu, host, address, size, entry, set))
					return WALK_AGAIN;
				entry |= set;
			}
		}
		result->physical = page_physical(mode, level, entry, linear);
		result->page_size = 1ull << level->shift;
		result->writable = result->writable && (entry & PTE_D);
		result->global = (s->cr4 & CR4_PGE) && (entry & PTE_G);
		return WALK_DONE;
	}
	return WALK_FAULT;
}

bool paging_walk(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view, bool debug,
                 struct paging_result *result)
{
	*result = (struct paging_result){0};
	if (!cpu_paging(&vcpu->state)) {
		*result = (struct paging_result){
		    .physical = linear,
		    .page_size = MEMORY_PAGE_SIZE,
		    .readable = true,
		    .writable = true,
		    .executable = true,
		};
		return true;
	}
	/* Each failed exchange means that another processor made progress; a guest that never lets us win only gets a
	 * spurious fault. */
	enum walk_outcome outcome = WALK_AGAIN;
	for (unsigned i = 0; i < WALK_RETRIES && outcome == WALK_AGAIN; i++)
		outcome = walk_once(vcpu, linear, access, view, debug, result);
	if (!debug) {
		vcpu->counters.page_walks++;
		trace(vcpu->trace, TRACE_MMU, (int)vcpu->index, "walk %#llx access %d view %d: %s %#llx",
		      (unsigned long long)linear, access, view, outcome == WALK_DONE ? "physical" : "fault",
		      outcome == WALK_DONE ? (unsigned long long)result->physical : result->error);
	}
	return outcome == WALK_DONE;
}

bool paging_load_pdptes(struct vcpu *vcpu, uint64_t cr3)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_paging(s) || cpu_long_mode(s) || !(s->cr4 & CR4_PAE))
		return true;
	uint64_t pdpte[4];
	for (unsigned i = 0; i < 4; i++) {
		void *host;
		entry_load(vcpu, (cr3 & 0xffffffe0) + i * 8, 8, &pdpte[i], &host);
		if ((pdpte[i] & PTE_P) && (pdpte[i] & reserved_bits(vcpu, &mode_pae, &mode_pae.level[0], false)))
			return false;
	}
	for (unsigned i = 0; i < 4; i++)
		s->pdpte[i] = pdpte[i];
	return true;
}
