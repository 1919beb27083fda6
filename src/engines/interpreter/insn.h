/*
 * Decoded instructions, blocks of them, and how handlers follow one another.
 *
 *	block:  head | slot | slot | ... | terminal slot          one guest instruction is one slot, or two: an address
 *slot that computes a linear address for the slot behind it
 *
 * A handler does its work and tail-calls the next slot's handler, so guest code runs without returning. A terminal
 *handler (control transfer, end of block, sensitive instructions) sets state.rip to the next instruction's address and
 *either enters the next block directly (FOLLOW) or returns to the run loop (run.c).
 *
 * While a block runs, state.rip is the address of its first instruction, which also serves RIP-relative operands; flags
 *travel in a register (flags.h). A handler that may fault, or calls somebody who looks, first runs SLOW_ENTER (rip
 *stays the block's; vcpu->executing tells which slot) or EXACT_ENTER (state.rip and rflags become whole and exact).
 */
#pragma once

#include <stddef.h>

#include "engines/engine.h"
#include "engines/interpreter/flags.h"
#include "engines/interpreter/native.h"
#include "machine/vcpu.h"
#include "x86/exceptions.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define COLD        __attribute__((noinline, cold))

struct insn;
struct block;
struct translator;

/* What every handler gets, and passes on. `tlb` is the current view's array of read entries; the write entries follow
 * it. */
#define PARAMETERS struct vcpu *vcpu, const struct insn *insn, uint32_t flags, struct mmu_tlb_entry *tlb
#define ARGUMENTS  vcpu, insn, flags, tlb

typedef void handler(PARAMETERS);
typedef void handler_at(PARAMETERS, uint64_t linear); /* behind an address slot */
typedef union {
	handler *run;
	handler_at *run_at;
} any_handler __attribute__((transparent_union)); /* as a parameter it takes both */

struct insn {
	union {
		handler *run;
		handler_at *run_at;
	};
	union {
		uint64_t immediate;
		const void *pointer; /* a form, a block, an auxiliary record */
	};
	int32_t displacement;
	uint16_t base, index, segment_base; /* byte offsets of 64-bit values in struct vcpu */
	uint8_t scale;                      /* shift count */
	uint8_t a, b;              /* byte offsets of registers in struct vcpu, or whatever the handler wants */
	uint8_t number : 7;        /* of the instruction in its block, from 0 */
	uint8_t stack_segment : 1; /* a non-canonical address is #SS, not #GP */
	uint16_t offset;           /* of the instruction's first byte from the block's */
};

_Static_assert(sizeof(struct insn) == 32, "decoded instructions are cached by the hundred thousand");

enum { TAKEN, NOT_TAKEN }; /* the two links of a block */

/* Where control went last time, so that the look-up can be skipped: good while both `rip` and `context` are what they
 * were. */
struct link {
	uint64_t rip;
	uint64_t context;
	struct block *block;
};

/*
 * In memory in the order of what is looked at together, cache line by cache line: to find and enter it, where it leads, its
 * first slots.
 */
struct block {
	_Atomic uint32_t *generation_now; /* of the page that holds the code */
	uint32_t generation;              /* when it was decoded; differs: the block is dead */
	uint32_t second_generation;
	uint64_t physical;    /* of the first byte */
	struct block *next;   /* in its hash chain */
	const uint8_t *bytes; /* what was decoded */
	uint16_t length;      /* of the code, in bytes */
	uint16_t count;       /* instructions */
	uint8_t mode;
	/* An instruction that crosses into another page stands alone in its block, which is not chained. */
	bool crosses : 1;
	bool open : 1;      /* the last instruction is not terminal: a slot that ends the block follows it */
	bool rooted : 1;    /* the translator's: it cannot float */
	bool hot : 1;       /* the translator's: its first entries came quickly one after the other */
	bool extended : 1;  /* the translator's: its translation went on in another block */
	bool joined : 1;    /* the translator's: it was translated again when it was seen to be hot */
	uint8_t strayed;    /* the translator's: times that it was found to go on in pages that are others now */
	uint64_t scattered; /* the translator's: instructions whose accesses jump about, bit n: of number n */
	uint64_t apart; /* the same: those that shall not begin a group of accesses, whose checks failed too often */
	struct block *next_in_part; /* of the cache */
	struct link link[2];        /* of the terminal instruction: taken, not taken */
	uint64_t second_page;       /* all ones: the block ends with bytes that are no instruction */
	struct insn insn[];
};
_Static_assert(sizeof(struct block) == 128, "blocks begin with a cache line, and so do their slots");

/* Mode bits: what decoding depends on. */
#define MODE_SIZE    0x03u /* 0: 16-bit code, 1: 32, 2: 64 */
#define MODE_16      0u
#define MODE_32      1u
#define MODE_64      2u
#define MODE_STACK32 0x04u /* outside 64-bit code: SS.B */
#define MODE_FLAT    0x08u /* CS, DS, ES, SS are flat 4 GiB segments */
#define MODE_ALIGN   0x10u /* alignment is checked: CR0.AM, EFLAGS.AC, CPL 3 */
#define MODE_STEP    0x20u /* one instruction per block, nothing is chained */
#define MODE_INNER   0x40u /* CPL 1 or 2: what is translated for supervisors runs at CPL 0 */
#define MODE_CONTEXT 0x3fu /* the bits that are part of code_context, which has the CPL itself */

#define JUMP_CACHE_BITS 15
#define JUMP_CACHE_SIZE (1u << JUMP_CACHE_BITS)

struct interpreter {
	struct link jump_cache[JUMP_CACHE_SIZE]; /* of indirect transfers, by target address */
	jmp_buf fault;
	struct native *native;
	uint32_t mode;
	uint64_t rip_mask;    /* of straight-line code: all ones, or 32 bits */
	struct link *pending; /* whose target is being looked up */
	bool refresh;         /* what code means may have changed */
	/*
	 * Translated code left flags behind that the next instructions overwrite before they read them: events wait
	 * until counters.instructions is this, for nobody shall see them.
	 */
	uint64_t settled_at;
	/* IGNNE# is asserted: the next instruction runs with x87 errors masked; or does now, with FCW having been this. */
	bool ignore_error, ignoring_error;
	uint16_t ignored_fcw;
	bool leave; /* run() is to return `reason` */
	enum exit_reason reason;
	bool stepping;                 /* TF, breakpoints, debugger, tracing: one instruction at a time (MODE_STEP) */
	bool no_links;                 /* every block is to be seen by the run loop */
	bool no_trap;                  /* the instruction just executed is not followed by a single-step trap */
	const struct cpu_model *model; /* that decoded code was made for */
	/* Block cache (cache.c). */
	struct block_cache *cache;
	struct translator *translator; /* the tier above (engines/translator), or NULL */
	bool cache_full;               /* the run loop shall make room for translations */
	/* What the links were made for, outside flat and 64-bit code. */
	uint64_t linked_base;
	uint32_t linked_limit;
	uint64_t linked_epoch; /* distinguishes such code segments; part of the context */
};

ALWAYS_INLINE struct interpreter *interpreter_of(struct vcpu *vcpu)
{
	return vcpu->engine_data;
}

/* Handlers chain blocks only where the compiler makes sibling calls; else each block returns to the run loop. */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CHAIN 1
#else
#define CHAIN 0
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef CHAIN
#define CHAIN 0
#endif
#endif

/* Registers by byte offset. */
#define REG64(offset) (*(uint64_t *)((uint8_t *)vcpu + (offset)))
#define REG32(offset) (*(uint32_t *)((uint8_t *)vcpu + (offset)))
#define REG16(offset) (*(uint16_t *)((uint8_t *)vcpu + (offset)))
#define REG8(offset)  (*(uint8_t *)((uint8_t *)vcpu + (offset)))

#define GPR_OFFSET(n) ((unsigned)offsetof(struct vcpu, state.gpr) + (unsigned)(n)*8)

ALWAYS_INLINE void write64(struct vcpu *vcpu, unsigned offset, uint64_t value)
{
	REG64(offset) = value;
}

ALWAYS_INLINE void write32(struct vcpu *vcpu, unsigned offset, uint32_t value)
{
	REG64(offset) = value;
}

/* The parts of a register are written as a whole one: a later wide read must not wait for a narrow store to retire. */
ALWAYS_INLINE void write16(struct vcpu *vcpu, unsigned offset, uint16_t value)
{
	REG64(offset) = (REG64(offset) & ~0xffffull) | value;
}

ALWAYS_INLINE void write8(struct vcpu *vcpu, unsigned offset, uint8_t value)
{
	if (likely(!(offset & 1)))
		REG64(offset) = (REG64(offset) & ~0xffull) | value;
	else
		REG64(offset - 1) = (REG64(offset - 1) & ~0xff00ull) | (uint64_t)value << 8;
}

/* The address behind an instruction that is not terminal. */
ALWAYS_INLINE uint64_t next_rip(struct vcpu *vcpu, const struct insn *insn)
{
	return (vcpu->state.rip + insn[1].offset) & interpreter_of(vcpu)->rip_mask;
}

/*
 * Always the last that a handler does, and a sibling call: a handler with a local variable whose address was given away would
 * keep its stack frame, and a loop of it would use up the stack. Such variables belong into a NOINLINE function that it calls.
 */
#define NOINLINE __attribute__((noinline))
#define NEXT     return insn[1].run(vcpu, insn + 1, flags, tlb)

/* State as a slow path or a host-executed form needs it; a fault finds the instruction by `executing`. */
#define SLOW_ENTER                                                                                                     \
	do {                                                                                                           \
		flags_store(vcpu, flags);                                                                              \
		vcpu->executing = insn;                                                                                \
	} while (0)

/* Like NEXT, where an access through mmu.c may have asked for a look-up (written code, watchpoint). */
#define NEXT_SLOW                                                                                                      \
	do {                                                                                                           \
		if (unlikely(vcpu->mmu.stop))                                                                          \
			return leave_after(ARGUMENTS);                                                                 \
		NEXT;                                                                                                  \
	} while (0)

/* Ends the block behind this, not terminal, instruction. */
void leave_after(PARAMETERS);
/*
 * A terminal handler whose target is not linked: the run loop finds the block and fills `link` (may be NULL). state.rip
 * is still the block's; raises #GP for a non-canonical target of 64-bit code.
 */
void leave_to(PARAMETERS, struct link *link, uint64_t rip);
/* A store through the TLB found page_flags set: tells memory.c and ends the block where code was written. */
void written_slow(PARAMETERS, struct mmu_tlb_entry *entry);
/* The same for terminal handlers: only tells memory.c. */
void written_note(struct vcpu *vcpu, struct mmu_tlb_entry *entry);

#define COUNT_BLOCK (vcpu->counters.instructions += insn->number + 1u)

/* The block that a link leads to, where it is good for `rip` now; or NULL. */
ALWAYS_INLINE struct block *link_block(const struct vcpu *vcpu, const struct link *link, uint64_t rip)
{
	struct block *block = link->block;

	if (likely(link->rip == rip && link->context == vcpu->code_context) &&
	    likely(atomic_load_explicit(block->generation_now, memory_order_relaxed) == block->generation))
		return block;
	return NULL;
}

/* Terminal handlers: go on at `target`. */
#define FOLLOW(link_, target_)                                                                                         \
	do {                                                                                                           \
		struct link *follow_link = (link_);                                                                    \
		uint64_t follow_rip = (target_);                                                                       \
		struct block *follow_block = CHAIN ? link_block(vcpu, follow_link, follow_rip) : NULL;                 \
		if (likely(follow_block && !atomic_load_explicit(&vcpu->attention, memory_order_relaxed))) {           \
			vcpu->state.rip = follow_rip;                                                                  \
			return follow_block->insn[0].run(vcpu, follow_block->insn, flags, tlb);                        \
		}                                                                                                      \
		return leave_to(ARGUMENTS, follow_link, follow_rip);                                                   \
	} while (0)

/* The block of a terminal slot. */
ALWAYS_INLINE struct block *block_of(const struct insn *insn)
{
	return (struct block *)insn->pointer;
}

ALWAYS_INLINE struct link *jump_cache_link(struct vcpu *vcpu, uint64_t rip)
{
	return &interpreter_of(vcpu)->jump_cache[(rip ^ rip >> JUMP_CACHE_BITS) & (JUMP_CACHE_SIZE - 1)];
}

/*
 * State as routines of x86/ need it: rflags whole, state.rip this instruction's. A handler that goes on in its block
 * afterwards ends with EXACT_LEAVE; a terminal one sets state.rip and uses leave_exact().
 */
ALWAYS_INLINE uint64_t exact_enter(struct vcpu *vcpu, const struct insn *insn, uint32_t flags)
{
	uint64_t block_rip = vcpu->state.rip;

	flags_store(vcpu, flags);
	flags_whole(vcpu);
	vcpu->executing = NULL;
	vcpu->state.rip = (block_rip + insn->offset) & interpreter_of(vcpu)->rip_mask;
	return block_rip;
}

#define EXACT_LEAVE                                                                                                    \
	do {                                                                                                           \
		vcpu->state.rip = block_rip;                                                                           \
		flags_split(vcpu);                                                                                     \
		flags = flags_load(vcpu);                                                                              \
		NEXT_SLOW;                                                                                             \
	} while (0)

/* The address behind a terminal instruction, whose length is in `scale`, while state.rip is exact. */
ALWAYS_INLINE uint64_t following_rip(struct vcpu *vcpu, const struct insn *insn)
{
	return (vcpu->state.rip + insn->scale) & interpreter_of(vcpu)->rip_mask;
}

/* Back to the run loop after a sensitive instruction; state.rip and rflags are exact. `refresh`: code may mean
 * something else now. */
void leave_exact(struct vcpu *vcpu, const struct insn *insn, bool refresh);
/* After a load of a data segment: does code mean something else now than the blocks that run were decoded for? */
bool code_mode_changed(const struct vcpu *vcpu);
/* leave_exact(), and run() returns. */
void leave_exit(struct vcpu *vcpu, const struct insn *insn, enum exit_reason reason);
/* Recomputes what code means after a change that set interpreter->refresh. */
void interpreter_refresh(struct vcpu *vcpu);

/* One step of the run loop's fault handling, for handlers of software interrupts: true when the debugger wants
 * exception `vector`. */
ALWAYS_INLINE bool exception_intercepted(const struct vcpu *vcpu, unsigned vector)
{
	return vcpu->debug.intercept_exceptions >> vector & 1;
}
