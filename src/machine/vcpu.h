/*
 * A virtual processor: its architected state, and what the machine and the engines keep beside it.
 *
 * Threads: everything here belongs to the vCPU's own thread while that runs, except `attention` and what is marked
 * "any thread". Other threads ask for something by setting a request bit and calling vcpu_kick().
 */
#pragma once

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "x86/cpu_state.h"
#include "x86/mmu.h"

struct bus;
struct clock;
struct engine;
struct lapic;
struct machine;
struct memory;
struct trace;
struct cpu_model;

/* Reasons why the engine should look up from guest code (struct vcpu's `attention`). Any thread may set them. */
#define ATTENTION_INTERRUPT 0x01u /* the local APIC or PIC may have something deliverable */
#define ATTENTION_NMI       0x02u
#define ATTENTION_INIT      0x04u
#define ATTENTION_SIPI      0x08u
#define ATTENTION_EXIT      0x10u /* leave engine->run() with EXIT_KICK: pause, stop, save ... */
#define ATTENTION_SMI       0x20u
#define ATTENTION_STEP      0x40u /* set by the vCPU itself: TF, single step, breakpoints: the slow path is needed */

/* An exception on its way to delivery. */
struct exception {
	uint32_t error;
	uint8_t vector;
	bool has_error;
	bool software;    /* INT n, INT3, INTO: DPL is checked, error code's EXT bit is 0 */
	uint64_t address; /* #PF: the new CR2; #DB: DR6 bits */
};

/* How the debugger (gdb stub, lockstep, tests) wants this vCPU watched. Written only while the vCPU is stopped. */
struct vcpu_debug {
	bool single_step; /* EXIT_DEBUG after one instruction (or one exception or interrupt delivery) */
	uint32_t
	    intercept_exceptions; /* bit n: EXIT_EXCEPTION instead of delivering exception n; state as at the fault */
	unsigned breakpoint_count;
	uint64_t breakpoint[64]; /* linear addresses (CS.base + RIP); EXIT_DEBUG before the instruction */
	unsigned watchpoint_count;
	struct {
		uint64_t address, length; /* linear */
		uint8_t kinds;            /* 1 read, 2 write */
	} watchpoint[16];                 /* EXIT_DEBUG after the access's instruction */
	/* Why the last EXIT_DEBUG happened. */
	enum { DEBUG_STEP, DEBUG_BREAKPOINT, DEBUG_WATCHPOINT } cause;
	uint64_t hit_address;
	bool skip_breakpoint_once; /* resume over the breakpoint that the vCPU stands on */
};

struct vcpu_counters {
	uint64_t instructions;
	uint64_t exceptions;
	uint64_t interrupts;
	uint64_t io, mmio, msr;
	uint64_t tlb_fills, page_walks, tlb_flushes;
	uint64_t blocks_decoded, block_invalidations, block_evictions;
	uint64_t halts;
	uint64_t pauses;
	uint64_t rests;                   /* all decoded code given back when idle */
	uint64_t run_ticks, decode_ticks; /* of the host's TSC: in engine->run(), and decoding in there */
};

struct vcpu {
	struct cpu_state state; /* first: generated code addresses it directly */
	struct mmu mmu;

	_Atomic uint32_t attention; /* ATTENTION_*; any thread */

	/*
	 * The interpreter's copy of OF (0 or 1) while guest code runs: the host's LAHF gives all arithmetic flags but
	 * this one, so rflags' own OF is stale then. Everybody else sees a whole rflags (see
	 * engines/interpreter/flags.h).
	 */
	uint8_t overflow;
	/* NATIVE_* classes that CR0, CR4 and XCR0 forbid now; recomputed by native_update_classes() after any of them
	 * changed. */
	uint8_t classes_disabled;
	/*
	 * An interrupt may wait for IF, for lower priority of the code that runs, or for the end of an NMI: attention was
	 * taken back since somebody looked. False: nothing waits that will not set attention.
	 */
	bool interrupt_deferred;
	/* The guest's x87/MMX registers are in the host's now; state.x87 is stale (native.h). */
	bool x87_live;
	bool mxcsr_live;  /* the same of MXCSR */
	bool x87_missing; /* not live, or classes_disabled forbids x87 or MMX: native_x87_set_live() */
	uint32_t host_mxcsr, host_mxcsr_mask; /* what ring3's own code runs with; the bits that exist (native.c) */

	/* The engines' own, here because guest code's handlers address it directly (engines/interpreter/insn.h). */
	uint64_t zero[2];      /* always 0: stands in for a register or segment base that an operand does not have */
	uint64_t code_context; /* what chained code was decoded for: mode, privilege, TLB epoch */
	const void *executing; /* the decoded instruction under way while state.rip is only its block's; else NULL */

	bool overcommitted; /* the machine has more vCPUs than the host CPUs (overcommit.h) */

	unsigned index;          /* 0 is the bootstrap processor; also the initial APIC ID */
	struct machine *machine; /* NULL in tests without a machine */
	struct memory *memory;
	struct bus *bus;
	struct clock *clock;
	struct lapic *lapic; /* NULL: no local APIC */
	const struct cpu_model *model;
	struct trace *trace;
	const struct engine *engine;
	void *engine_data;

	/*
	 * Where x86_raise() unwinds to. An engine sets it (with _setjmp, that is without the signal mask) around
	 * everything that can raise.
	 */
	jmp_buf *fault_target;
	struct exception exception; /* what was raised, valid after the jump */

	/* The PIC's INTR line, for ExtINT through LINT0 or directly when there is no LAPIC. NULL when there is no PIC.
	 */
	int (*extint_acknowledge)(void *owner); /* returns the vector, or -1 */
	void *extint_owner;
	_Atomic bool extint_line;

	/*
	 * x87 errors while CR0.NE is 0 (devices/fpu_error.h): the FERR# pin, called on this vCPU's thread, and IGNNE#.
	 * NULL: they are #MF all the same.
	 */
	void (*ferr)(void *owner, bool level);
	void *ferr_owner;
	_Atomic bool ignne;

	struct vcpu_debug debug;
	struct vcpu_counters counters;

	/* Unknown MSRs already named in the trace (msr.c). */
	uint32_t unknown_msr[32];
	unsigned unknown_msr_count;

	/* machine/vcpu_loop.c's own. */
	void *thread;
};

/*
 * Zeroed memory for a vCPU, below 2 GiB where generated code can address it absolutely. NULL: errno. vcpu_free() gives it back.
 */
struct vcpu *vcpu_allocate(void);
void vcpu_free(struct vcpu *vcpu);

/* Asks for attention and wakes the vCPU if it sleeps. Any thread; async-signal-safe apart from the wake. */
void vcpu_kick(struct vcpu *vcpu, uint32_t attention);

/*
 * Port and memory-mapped I/O of a running vCPU, called by the engines on the vCPU's thread; they take the machine's
 * device lock. `size` is 1, 2 or 4 (ports), 1, 2, 4 or 8 (MMIO); the caller has checked privileges. Unclaimed addresses
 * read as all ones.
 */
uint32_t vcpu_port_read(struct vcpu *vcpu, uint16_t port, unsigned size);
void vcpu_port_write(struct vcpu *vcpu, uint16_t port, unsigned size, uint32_t value);
uint64_t vcpu_mmio_read(struct vcpu *vcpu, uint64_t physical, unsigned size);
void vcpu_mmio_write(struct vcpu *vcpu, uint64_t physical, unsigned size, uint64_t value);

/* Reset state of SDM 3A table 9-1; `bsp` marks the bootstrap processor, others wait for SIPI. */
void cpu_reset(struct vcpu *vcpu, bool bsp);
/* INIT: as a reset, but FPU, vector state, MSRs, CR0.CD/NW and DRs' documented parts are kept (SDM 3A table 9-1). */
void cpu_init(struct vcpu *vcpu);
