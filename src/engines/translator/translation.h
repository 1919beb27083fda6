/*
 * Private to src/engines/translator: a translation while it is made, and what its parts need of each other.
 *
 *	analyze.c    first pass: decodes, decides who does an instruction, finds flag liveness
 *	translate.c  second pass: one function per kind of instruction
 *	lowering.c   the seam for memory operands and flags
 *	merge.c      which accesses share a check
 *	stream.c     accesses of loops that walk through memory
 *	range.c      accesses of hot loops
 *	place.c      accesses of floating code at a distance
 *	warm.c       which blocks are hot, and translated again
 *	calls.c      translations that go on behind CALLs and RETs
 *	control.c    exits, links, a block's entries, code out of line
 *	crossing.c   instructions that cross into another page
 *	apart.c      transfers of floating code into other pages
 *	mode32.c     what is different in 32-bit code
 *	x87.c        the x87 unit's instruction and data pointers
 *	translate_string.c, string_routines.c, string_copy.c  string instructions
 *	translate_more.c  others that have a way of their own
 *	translate_system.c   sensitive instructions
 *	shared.c     translations that processors take from one another
 */
#pragma once

#include "engines/interpreter/cache.h"
#include "engines/translator/rewrite.h"
#include "engines/translator/runtime.h"

#define BLOCK_MAX   192 /* instructions */
#define BLOCK_PLAIN 64  /* without those of callees */
#define PENDING_MAX 512
#define PAIRS_MAX   32 /* and no more are paired */
#define XEXPECT     3
#define CODE_MAX    (48u << 10) /* bytes of host code that one block can need */
#define AHEAD_MAX   3
#define ALL_FLAGS   ((uint32_t)FLAG_ARITHMETIC)
#define S1          R9
#define S2          R10
#define GUEST_RSP   R11

enum kind {
	KIND_FALLBACK,
	KIND_NOP,
	KIND_PREFETCH,
	KIND_GENERIC,
	KIND_LEA,
	KIND_PUSH,
	KIND_POP,
	KIND_LEAVE,
	KIND_STRING,
	KIND_BIT_STRING,
	KIND_SEGMENT_READ,
	KIND_DIRECTION,
	KIND_XLAT,
	KIND_SYSTEM,
	KIND_JMP,
	KIND_JCC,
	KIND_CALL,
	KIND_JMP_INDIRECT,
	KIND_CALL_INDIRECT,
	KIND_RET,
	KIND_SYSTEM_END,
};

/*
 * A block that goes on in the next one (analyze.c, calls.c): a part is one of the interpreter's blocks, and begins `base`
 * bytes behind the translation's first instruction, or, negative, before it.
 */
struct part {
	struct block *block;
	int32_t base;
};

struct item {
	ZydisDecodedInstruction i;
	ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
	enum kind kind;
	const struct native_form *form; /* NULL, or own_form */
	struct native_form own_form;
	const struct insn *slot;
	uint8_t slots; /* how many, 0: the instruction is terminal */
	uint8_t part;
	bool on;               /* what follows it in the guest's code, or its target, is the next item */
	int32_t offset;        /* from the translation's first byte */
	int16_t caller;        /* the CALL whose callee it is in, before its RET; NO_CALLER: none that is known */
	uint64_t target;       /* where a guarded transfer leads that is `on` */
	bool sure;             /* it is `on`, and cannot lead elsewhere: calls.c */
	int8_t expected;       /* the register that must be `target` at the entry for that; -1: none */
	uint32_t read, killed; /* flags */
	uint32_t live_before, live_after;
	/* Where its code ends, and whether flags are in EFLAGS there: for a call-out of the whole instruction. */
	uint8_t *end;
	bool end_in_register;
	/* merge.c: the groups of its explicit and of its stack access, and where these are in them. */
	uint8_t group, stack_group;
	uint8_t stream; /* stream.c: of its explicit access, where that has no group */
	bool inside;    /* a difference of some group may be in use across it */
	int64_t position, stack_position;
	int64_t index; /* what the index of its explicit access adds, where that is known and it has a group */
};

#define NO_CALLER  -1
#define GROUPS_MAX XDELTA_SLOTS
#define NO_GROUP   0xff
#define NO_STREAM  0xff

/* Accesses that share a check (merge.c): [low, high) from some value, by items first to last. */
struct group {
	int64_t low, high;
	unsigned count, first, last;
	bool write, window, checked;
	uint8_t value; /* 1 to 16: by what register 0 to 15 was when the block was entered */
	uint8_t stream;
	struct xrange *range; /* once it is checked; or NULL */
};

/* Out-of-line code. */
struct pending {
	enum {
		PENDING_SLOW,
		PENDING_SLOW_BASE,
		PENDING_TAKEN,
		PENDING_LINK,
		PENDING_STUB,
		PENDING_POLL,
		PENDING_VECTOR,
		PENDING_SLOT,
		PENDING_TARGET,
		PENDING_STRING,
		PENDING_GROUP,
		PENDING_WINDOW,
		PENDING_CONSTANT,
		PENDING_PLACE,
		PENDING_CALL_OUT,
		PENDING_SENSITIVE,
		PENDING_STREAM,
		PENDING_STREAM_SUM,
		PENDING_RANGE,
		PENDING_RANGE_GROUP,
		PENDING_WARM,
		PENDING_INDIRECT,
		PENDING_RETURN,
		PENDING_ASTRAY,
		PENDING_ACROSS,
		PENDING_APART
	} kind;
	uint8_t *place; /* the jump to be fixed */
	const uint8_t *resume;
	struct xsite *site;
	const struct item *item; /* of PENDING_SLOW and PENDING_SLOW_BASE */
	struct xlink *link;
	const struct insn *slot;
	unsigned part;                    /* where it was jumped from */
	unsigned view, code_view;         /* of the translation, where it was jumped from */
	const struct xpointers *pointers; /* of the translation, where it was jumped from */
	struct xrange *range;             /* of PENDING_RANGE and _RANGE_GROUP */
	uint8_t stream, reg;              /* of PENDING_STREAM; reg: of PENDING_TARGET and PENDING_SLOW_BASE */
	int32_t disp;
	int32_t release, undo;       /* of PENDING_INDIRECT */
	uint8_t pair;                /* of PENDING_LINK, _POLL and _INDIRECT: see struct translation */
	int caller;                  /* as in struct item, where it was jumped from */
	struct host_memory where;    /* of PENDING_ASTRAY: the return address */
	uint64_t target;             /* of PENDING_TAKEN and _APART; of PENDING_CONSTANT the linear address */
	bool in_register, in_memory; /* where flags are */
	bool save;
	uint8_t *more[XACROSS + XEXPECT - 1]; /* PENDING_STRING, _ACROSS: further jumps there */
	bool shadow;  /* of PENDING_LINK and _STUB: an interrupt shadow covers the target's first instruction */
	bool restore; /* and flags are wanted in EFLAGS at `resume` */
};

/*
 * What was found of an instruction is found again by its bytes but for its displacement, and in the map of the oldest
 * opcodes its immediate, on which nothing of it depends.
 */
struct found {
	uint64_t key[2];
	struct native_form form; /* `run` is nobody's here */
	bool has_form;
	uint8_t kind; /* enum kind */
};
#define FOUND_BITS 11

struct translation {
	struct translator *t;
	struct block *block;
	struct emitter e;
	struct relocations relocations;
	struct part part[XPARTS_CALLS];
	unsigned parts;
	struct item item[BLOCK_MAX];
	unsigned count;
	unsigned now;   /* the part of what is emitted */
	uint8_t settle; /* behind the block, see struct xlink */
	uint64_t rip; /* floating: the offset in the page, so that code_page is to be added to all addresses of code */
	bool floating, loose;     /* as in struct xblock */
	unsigned view, code_view; /* enum mmu_view; below XVIEWS: of what is emitted next (STAC and CLAC change it) */
	bool shadow;              /* an STI was the last instruction */
	/* The transfer that is emitted leaves something for a RET (returns.c), which comes to `behind` of this number; 0: no. */
	uint8_t pair, pairs;
	uint64_t next; /* the guest's return address */
	const uint8_t *behind[PAIRS_MAX];
	/* Of what is decoded, then of what is emitted, as in struct item. Does the translation go on behind CALLs or RETs? */
	int caller;
	bool calls;
	/* Pages, beside its own, that it goes on in; `page` as rip is. */
	struct {
		uint64_t page, physical;
		const struct block *block; /* one there */
	} across[XACROSS];
	unsigned across_count;
	struct xacross *across_room;
	/* Registers whose values at the entry say where `sure` transfers lead. */
	struct {
		uint8_t reg;
		uint64_t value;
	} expect[XEXPECT];
	unsigned expect_count;
	/* A loop of this kind: what it wants at its head is known. */
	bool head_known;
	uint32_t head_live;
	uint8_t head_settle;
	/* Of the guest's code: 32-bit code, with a flat stack and 32-bit ESP and EIP. */
	bool code32;
	unsigned stack_size; /* bytes that PUSH, CALL and their like move: 8 or 4 */
	uint64_t rip_mask;
	const ZydisDecoder *decoder;
	bool in_register, in_memory; /* where valid guest flags are now */
	struct pending pending[PENDING_MAX];
	unsigned pending_count;
	/* Handed out when the region has no more: the translation is given up then. */
	struct xlink spare_link;
	struct xsite spare_site;
	bool failed, exhausted, x87;
	bool rooted;                      /* it failed to float */
	uint8_t vector;                   /* enum vector_need */
	const struct xpointers *pointers; /* what the last x87 instruction left to be stored; NULL: nothing */
	struct group group[GROUPS_MAX];
	unsigned group_count;
	uint8_t delta_in_s1; /* the group whose difference S1 holds, or NO_GROUP */
	bool loop;           /* is_loop() */
	unsigned stream_count;
	bool stream_falls[XSTREAMS];
	struct xblock *xblock;
	uint32_t aside; /* bytes that lie out of line */
	/* What flags_wanted() has found. */
	struct {
		uint64_t target;
		uint32_t wanted, read;
		uint8_t settle;
	} ahead[AHEAD_MAX];
	unsigned ahead_count;

	ZydisDecoder own_decoder, decoder32; /* own: of the host's code, and of the guest's 64-bit code */
	const struct cpu_model *decoders_for;
	struct found found[1u << FOUND_BITS]; /* key 0: none; good for decoders_for */
};

/* place.c. Can an operand be found at a place? Its address, to which code_page is to be added; the access to it. */
bool place_possible(const struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size);
uint64_t place_address(const struct translation *tr, const struct item *item, const ZydisDecodedOperand *o);
struct host_memory lower_place(struct translation *tr, const struct item *item, uint64_t address, unsigned size,
                               bool write);
void emit_place_miss(struct translation *tr, const struct pending *p);

/* analyze.c */
bool first_pass(struct translation *tr);
bool ends_block(const struct item *item);
/*
 * Flags that code at `target` may read before it gives them values: looks ahead in the same page, whose generation this
 * block depends on anyway. `settle` (or NULL): the number of instructions after which all the others have values again.
 */
uint32_t flags_wanted(struct translation *tr, uint64_t target, uint8_t *settle);
/* Of these the ones that it is seen to read. */
uint32_t flags_read(struct translation *tr, uint64_t target);
uint8_t settle_after(const struct translation *tr, const struct item *item); /* see struct xlink */
bool in_page(const struct translation *tr, uint64_t target);                 /* in the block's own */
const uint8_t *item_bytes(const struct translation *tr, const struct item *item);
uint64_t part_rip(const struct translation *tr, unsigned part);
uint64_t branch_target(const struct translation *tr, const struct item *item);
bool is_memory(const ZydisDecodedOperand *o);
bool address_possible(const struct item *item);
unsigned scratch_needed(const struct item *item);
bool has_high(const struct item *item);
bool is_segment(const ZydisDecodedOperand *o);

/* lowering.c */
uint32_t gpr_abs(const struct translation *tr, unsigned guest);
void emit_flags_save(struct emitter *e, const struct translator *t);
void emit_flags_restore(struct emitter *e, const struct translator *t);
void flags_keep(struct translation *tr, uint32_t live);
void flags_want(struct translation *tr);
struct pending *pend(struct translation *tr, int kind, uint8_t *place);
struct xsite *new_site(struct translation *tr, const struct item *item, unsigned size, bool write);
void lower_effective(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned to,
                     bool wide);
/* Register `to` becomes the offset, in a view's TLB, of the entry of linear address `from`. Destroys EFLAGS. */
void emit_tlb_offset(struct emitter *e, unsigned to, unsigned from);
/*
 * Looks for the TLB entry of linear address S1 among `tags`. S1 becomes the offset in the page, S2 the entry's; the jump
 * returned is taken where `span` bytes from there are not in one page that has an entry: then S1 XOR [S2 + tags] is the
 * address again. Destroys EFLAGS.
 */
uint8_t *emit_look_up(struct emitter *e, uint32_t tags, unsigned span);
void lower_check(struct translation *tr, const struct item *item, unsigned size, bool write);
/*
 * Out of line: calls t->slow or its like for `p->site`, S1 what that wants. It comes back with the host address in S1, or
 * goes on behind the instruction.
 */
void emit_slow(struct translation *tr, const struct pending *p, const uint8_t *trampoline);
/* The same behind a check or look-up that missed. */
void emit_access_miss(struct translation *tr, const struct pending *p);
void emit_set_rip(struct translation *tr, uint64_t rip);
/* A linear address of code, or relative to code, into a register. No flags. */
void emit_code_address(struct translation *tr, unsigned reg, uint64_t address);
void emit_set_argument(struct translation *tr, const volatile void *pointer);
void exit_to_slot(struct translation *tr, const struct insn *slot);
void call_out(struct translation *tr, const struct item *item);
/* The jump that is taken where `reg` is not canonical. Destroys EFLAGS and S2. */
uint8_t *emit_unless_canonical(struct emitter *e, unsigned reg);
void check_canonical(struct translation *tr, const struct item *item);
void lower_memory(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size,
                  bool write);
/*
 * Where an access goes, for the emitter; checked, flags kept. An explicit operand; the stack at reg + displacement (a
 * guest register). What comes back may use S1; good for one access.
 */
struct host_memory lower_operand(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o,
                                 unsigned size, bool write);
struct host_memory lower_stack(struct translation *tr, const struct item *item, unsigned reg, int displacement,
                               bool write);
void lower_access(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size,
                  bool write);
const ZydisDecodedOperand *memory_operand(const struct item *item);
unsigned value_of(struct translation *tr, unsigned guest, unsigned scratch);
unsigned result_in(unsigned guest, unsigned scratch);
void store_result(struct translation *tr, unsigned guest, unsigned host);

/* merge.c */
void find_groups(struct translation *tr);
void groups_before(struct translation *tr, const struct item *item);
struct host_memory group_member(struct translation *tr, const struct item *item, uint8_t group, unsigned guest,
                                int64_t displacement, int64_t position, unsigned size, bool write);
void emit_window_miss(struct translation *tr, const struct pending *p);
void emit_group_miss(struct translation *tr, const struct pending *p);

/* mode32.c */
bool mode32_possible(const struct item *item);
void mode32_segment(struct translation *tr, const struct item *item, enum segment_register segment, unsigned size);
/* The address register + displacement, of 32 bits in 32-bit code, into S1; the stack pointer becomes it. No flags. */
void address_in(struct translation *tr, unsigned reg, int displacement);
void move_stack(struct translation *tr, unsigned reg, int displacement);

/* translate_system.c: sensitive instructions. KIND_GENERIC: none of them. */
enum kind classify_system(struct translation *tr, const struct item *item);
uint32_t system_flags(const struct item *item);
void translate_system(struct translation *tr, const struct item *item);
void translate_system_end(struct translation *tr, const struct item *item);
void call_sensitive(struct translation *tr, const struct item *item);

/* translate_string.c */
bool string_possible(const struct item *item);
void translate_string(struct translation *tr, const struct item *item);
void emit_pending_string(struct translation *tr, const struct pending *p);

/* string_routines.c: REP MOVS or STOS of elements of `size` bytes, called as t->string is; NULL: no room. */
const uint8_t *string_routine(struct translator *t, enum xstring operation, unsigned view, unsigned size, bool code32);

/* translate_more.c */
enum kind classify_more(const struct item *item);
void translate_bit_string(struct translation *tr, const struct item *item);
void translate_segment_read(struct translation *tr, const struct item *item);
void translate_direction(struct translation *tr, const struct item *item);
bool prefetch_possible(const struct item *item);
void translate_prefetch(struct translation *tr, const struct item *item);
void translate_xlat(struct translation *tr, const struct item *item);

/* control.c */
struct xlink *new_link(struct translation *tr, uint64_t target, bool entry_a);
void exit_direct(struct translation *tr, uint64_t from, uint64_t target);
/* Where a direct transfer leads that has no link, or none now: S1 has the address, flags are kept. */
void exit_apart(struct translation *tr, uint64_t target);
/* Where the way leads through C, the host's CALL is done by hand. Uses S2. */
void emit_paired(struct translation *tr, const struct pending *p);
struct pending *exit_indirect(struct translation *tr, const struct insn *slot, int32_t release, int32_t undo);
/* Of what was `on`, and went elsewhere. */
void emit_astray(struct translation *tr, const struct pending *p);
void translate_push_return(struct translation *tr, const struct item *item);
/* Where the target of an indirect branch is, S1 or its own register. Flags are kept before, if they are live. */
unsigned translate_target(struct translation *tr, const struct item *item);
struct block *hot_block(struct translation *tr, const struct link *link, uint64_t target);
void translate_terminal(struct translation *tr, const struct item *item);
/* Whether a transfer from `from` to `target` needs neither a look at the page nor a poll. */
bool direct(const struct translation *tr, uint64_t from, uint64_t target);
void emit_checks_keeping_flags(struct translation *tr);
void emit_checks(struct translation *tr);
void emit_pending(struct translation *tr, unsigned n, struct xblock *xblock);

/* shared.c: what was made since `cursors` goes into the depot. False: not this one, or not now. */
bool shared_give(const struct translation *tr, const struct translator_cursors *cursors);
/* translate.c: --trace translate of a translation that was not made here. */
void trace_taken(const struct translator *t, const struct xblock *xblock);

/* calls.c: may it go on in callees? */
static inline bool is_through_calls(const struct translation *tr)
{
	return (tr->block->joined || tr->t->lockstep) && !tr->code32 && !tr->block->crosses &&
	       tr->block->strayed < STRAYED_MAX && !(tr->loose && !tr->floating);
}
/* As find_part() for other transfers than those within a page. */
bool calls_find_part(struct translation *tr);
/* Where a branch leads with what is in the registers now, in such translations. */
enum guess { GUESS_NONE, GUESS_TAKEN, GUESS_NOT_TAKEN };
enum guess calls_guess(const struct translation *tr, const struct item *item);
/* May parts of a translation be in the page of `target`, which `block` is in? */
bool calls_cover(struct translation *tr, const struct block *block, uint64_t target);
/* In first_pass(), behind an item: the caller of the next one. */
int calls_next_caller(const struct translation *tr, unsigned n);
/* A block of the translation that is in the page of `target`; NULL: none. */
const struct block *calls_page_block(const struct translation *tr, uint64_t target);
/* The block at a linear address, if it is known. */
struct block *calls_known_block(const struct translation *tr, uint64_t linear);
/* Only pages that parts are in are kept. */
void calls_prune(struct translation *tr);
/* Which transfers are `sure`. */
void calls_find_sure(struct translation *tr);
void translate_joined(struct translation *tr, const struct item *item);
void emit_across_check(struct translation *tr);
/* What is known of other pages goes with the translation. */
void across_begin(const struct translation *tr, struct xblock *xblock);
void emit_pending_across(struct translation *tr, const struct pending *p);
/* control.c: what a known caller would have left for its RET, before the translation is left (struct translation's `pair`). */
void leave_for_caller(struct translation *tr);

/*
 * apart.c: a direct transfer from floating code to `target` in another page, flags kept. S1 is destroyed, and code_page
 * set; what is emitted next leads to the link's target.
 */
struct xlink *emit_apart(struct translation *tr, uint64_t target, bool poll);
void emit_pending_apart(struct translation *tr, const struct pending *p);
/* Before a stub of the link is left by: code_page as it was. */
void emit_apart_back(struct translation *tr, const struct xlink *link);

/* crossing.c */
void emit_crossing_check(struct translation *tr);

/* x87.c */
bool uses_x87(const struct item *item);
bool x87_possible(const struct item *item);
/* Before an instruction: stores what it will make impossible to say later. Uses S2. */
void x87_keep_operand(struct translation *tr, const struct item *item);
/* Behind an instruction. */
void x87_executed(struct translation *tr, const struct item *item);
/* Stores the pointers, before a block is left or the interpreter does an instruction. Uses S2. */
void x87_commit(struct translation *tr);
/* The same on a way out, while the translation goes on. */
void x87_emit_pointers(struct translation *tr);

/* stream.c */
bool is_loop(const struct translation *tr);
/* A stream whose register changes by `stride` in each round, or NO_STREAM. */
uint8_t new_stream(struct translation *tr, int64_t stride);
/* Where the loop is entered from outside. */
void emit_void_streams(struct translation *tr);
/* The check of a group's first access through host register `reg`; the difference in S1, here and again. */
struct pending *stream_check(struct translation *tr, uint8_t n, unsigned reg);
void stream_reload(struct translation *tr, uint8_t n);
/* lower_operand() of an item with a stream. */
struct host_memory stream_operand(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o,
                                  unsigned size, bool write);
void emit_stream_miss(struct translation *tr, const struct pending *p);
void emit_stream_sum_miss(struct translation *tr, const struct pending *p);

/* range.c */
bool range_possible(const struct translation *tr, unsigned item);
/* NULL: the access does without. */
struct xrange *new_range(struct translation *tr, const struct item *item, unsigned size, bool write);
/* lower_check() through a range; that of a group by its first access. */
void range_check(struct translation *tr, const struct item *item, struct xrange *range, unsigned size, bool write);
struct pending *range_group_check(struct translation *tr, struct xrange *range, unsigned reg, int32_t lowest);

/* trampolines.c: where a site was pushed before a trampoline was called, it returns by this. */
void emit_return_site(struct emitter *e);

/* warm.c: where the block is entered, its own loop included. */
void emit_count_down(struct translation *tr);
void emit_pending_warm(struct translation *tr, const struct pending *p);
