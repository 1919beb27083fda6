/*
 * The translator: hot blocks of the interpreter become host code.
 *
 * It is a tier of the interpreter, not an engine beside it: it takes the interpreter's decoded blocks, run loop, code
 * watch and events, and gives any instruction that it does not translate back to the interpreter's slot of that
 * instruction. So every behaviour is the interpreter's, and only speed is added.
 *
 *	interpreter block:  [heat | slot | slot | ... ]     the heat slot counts entries, then translates, then enters:
 *	                       |
 *	                       v enter trampoline: guest registers into host registers
 *	translated block:   B: flags from memory   A: checks   code ...   exits
 *	                       |                                            |-> another block, through its link
 *	                       |                                            |-> the run loop, or a slot of the interpreter
 *
 * Registers in translated code. Guest RAX-RDI, R8, R12-R15 are in the host registers of the same number; guest RSP is
 * in host R11; guest R9-R11 live in the vCPU block; host R9 and R10 are scratch; host RSP is the view's stack of returns
 * (returns.c). All data of the translator and the vCPU block lie below 2 GiB and are addressed absolutely. Vector registers are the
 * guest's while `vector_live`; x87 and MMX registers are the guest's while vcpu->x87_live (x87.c).
 *
 * Flags. Guest arithmetic flags are in the host's EFLAGS, or, where a check would destroy live ones, in `flags` (the
 * form of flags.h). A block has two entries: B takes them from `flags`, A from EFLAGS.
 *
 * Memory. An operand's address goes through `tlb` (XOR form: one compare for tag and page crossing). Write entries
 * exist only for pages that nobody watches (page_flags 0), so translated stores need no look at the flags afterwards.
 *
 * Position. A translation is for one linear address, and has it in its code. User code that is run at several (shared
 * libraries, which lie elsewhere in each process) is translated once more, floating: it knows its offsets in the page,
 * and `code_page` says where the page is. In its page it is linked to floating code alone; what enters it from elsewhere
 * sets code_page; and it leaves its page as indirect transfers do, or by links for one code_page (apart.c). Instructions there
 * that cannot float leave as indirect transfers do.
 *
 * Everything is per vCPU, and used on its thread, but for the depot (depot.h): there each leaves copies of what it has
 * translated, and takes those of others, whose addresses it makes its own (shared.c). What code has of the translator's
 * addresses must therefore be emitted as addresses (emitter.h).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <ucontext.h>

#include "engines/interpreter/insn.h"
#include "engines/translator/emitter.h"
#include "engines/translator/stats.h"
#include "host/code_arena.h"
#include "memory/memory.h"

#define XTLB_BITS    14
#define XTLB_ENTRIES (1u << XTLB_BITS)
#define XJUMP_BITS   16
#define XJUMP_SIZE   (1u << XJUMP_BITS)
#define XPAGE_SIZE   16384u
#define XVIEWS       (2 * MMU_VIEWS) /* of code: the views in 64-bit code, then in 32-bit code */
#define XPAGE_HASH   4096u
#define XCROSS_HASH  1024u
#define XREGIONS_MAX 128
#define XSAVED       512u
#define XHEAT        50
#define CALL_OUT_MAX 7  /* slots of one instruction */
#define XPARTS       6  /* blocks in one translation, */
#define XPARTS_CALLS 24 /* and in one that goes on in callees */
#define XACROSS      4  /* pages beside its own that a translation goes through */
#define XACROSS_MAX  8192
#define XRETRY       200 /* entries at another address before a block is translated for that one */
#define XFLOAT       4   /* the same where it will float */
#define XFLOAT_BITS  17

/* For reads, and for writes: what a page needs is in one cache line. */
struct xtlb_entry {
	uint64_t tag[2];   /* linear page, or one that does not belong into this slot */
	uint64_t delta[2]; /* host minus linear address */
} __attribute__((aligned(32)));
#define XTLB_SHIFT 5

/* A target of indirect transfers, by its linear address. */
struct xjump {
	uint64_t rip; /* or one that does not belong into this slot */
	const uint8_t *host;
};

/* Targets side by side share cache lines; those that lie closer than a call is long share a slot. */
#define XJUMP_SHIFT 3
static inline unsigned xjump_slot(uint64_t rip)
{
	return rip >> XJUMP_SHIFT & (XJUMP_SIZE - 1);
}
/* Where the one goes that another one takes the slot from: looked at out of line. */
#define XJUMP_OTHER (XJUMP_SIZE / 2)

/*
 * The same by their physical addresses, whatever address space is current: some of one page (find.c). Nodes of pages that
 * share a head are chained.
 */
#define XKNOWN_HEADS   16384u
#define XKNOWN_NODES   32768u /* with the heads */
#define XKNOWN_TARGETS 5u
struct xknown {
	uint64_t key;  /* number of the physical page, and code view */
	uint64_t page; /* the linear page that they are for, or XKNOWN_FLOATS */
	uint32_t next; /* number of a node, or 0 */
	uint32_t count;
	uint64_t target[XKNOWN_TARGETS]; /* offset in the page, and above it the translation's in the arena */
} __attribute__((aligned(64)));
#define XKNOWN_FLOATS 1u

/* Which vector registers a block uses: each includes the ones before. */
enum vector_need { VECTOR_NONE, VECTOR_SSE, VECTOR_AVX, VECTOR_AVX512 };
#define VECTOR_ALL_MISSING 0x01010100u

/* A translated block; `insn[0].pointer` of its interpreter block leads here. Entries are in the writable view. */
struct xblock {
	/* What is looked at to enter it, in 64 bytes. */
	uint64_t rip;        /* linear address that it was translated for; floating: the offset in its page */
	struct block *block; /* NULL: gone, and this with it */
	uint32_t generation; /* of the page when it was translated */
	uint32_t second_generation;
	/* Of an instruction that crosses into another page: that page's generation, now and when translated; or NULL. */
	const _Atomic uint32_t *second_now;
	uint8_t view, code_view; /* enum mmu_view; below XVIEWS */
	uint8_t vector;          /* enum vector_need */
	bool x87;                /* uses the x87 unit */
	bool flagged;            /* flags are live at the entry: A and B differ */
	bool floating;
	bool loose; /* where its page floats: what links cannot do, indirect transfers do */
	uint8_t more_count;
	const uint8_t *entry_a, *entry_b;
	const uint8_t *entry_i;    /* of indirect transfers: B, or what sets code_page by S1 first */
	const uint8_t *entry_av;   /* behind A's look whether vector and x87 registers are there */
	const uint8_t *entry_loop; /* where the block's own jump back leads */
	const uint8_t *code;       /* writable view */
	uint32_t size;             /* of the code, in bytes */
	/* Those that it goes on in; offsets from the first one. `across` has them, if there is one. */
	uint16_t more_base[XPARTS - 1];
	struct block *more[XPARTS - 1];
	struct xblock *next_crossing;
	struct xacross *across;      /* of parts in other pages; or NULL */
	struct xblock *next;         /* in its region */
	struct xblock *next_in_page; /* chain of translator->page_blocks; left out when the page was written */
	struct xblock **in_page;     /* what leads to it there; NULL: it is left out */
	struct xlink *incoming;      /* links that jump here */
};

/* Of a translation that goes on in callees: its parts, and the pages that they are in (across.c). */
struct xacross {
	struct xblock *xblock;
	struct xacross *next;                 /* of those that are free */
	struct block *more[XPARTS_CALLS - 1]; /* as in struct xblock */
	int32_t more_base[XPARTS_CALLS - 1];
	/* Floating: the code_page for which the pages are known to be what they were; and so on, as in struct xlink. */
	uint64_t from;
	struct xacross *next_apart;
	bool listed;
	uint32_t patience, wait;
	unsigned count;
	struct xacross_page {
		int64_t distance; /* linear, from the page that it begins in */
		uint64_t page;    /* physical, its number */
		const _Atomic uint32_t *now;
		uint32_t generation; /* of the page when it was translated, */
		struct xacross_page *next_in_chain;
		struct xacross *of;
	} page[XACROSS];
};

/* A direct exit: a jump whose displacement (at `place`, writable view) leads to the stub until the target is found. */
struct xlink {
	uint8_t *place;
	const uint8_t *stub;   /* writable view */
	struct xlink *next;    /* of those to the same block */
	struct xblock *target; /* NULL: the stub */
	struct xblock *source; /* whose it is */
	bool own;              /* the block jumps back to itself by it */
	bool floating;         /* so is its block */
	uint64_t rip;          /* of the target; floating: code_page is to be added */
	uint8_t *key;   /* writable view: xpage_key() of the target's page, in the code of links that leave the page */
	bool entry_a;   /* flags are in EFLAGS there */
	uint8_t vector; /* enum vector_need: registers that are there */
	bool x87;       /* the x87 unit's are there */
	uint8_t view;
	uint8_t settle; /* instructions from the target on until flags that are dead there have values again */
	/* Of floating code into another page (apart.c): the code_page that it is made for, or APART_NONE. */
	bool apart;
	uint64_t from;
	struct xlink *next_apart; /* of t->apart, where it is one of these */
	bool listed;
	uint32_t patience, wait; /* how many times it is not taken before it is made again; those that are left */
};

/* FIP, FDP and FOP where translated code has not stored them yet (x87.c). */
struct xpointers {
	uint64_t fip;
	int64_t displacement;
	bool floating;         /* code_page is to be added to fip, */
	bool floating_operand; /* and to the displacement */
	uint16_t fop;
	bool operand, address32; /* has an operand */
	uint8_t base, index, scale, segment;
};

enum xstring { XSTRING_NONE, XSTRING_MOVS, XSTRING_STOS, XSTRING_LODS, XSTRING_SCAS, XSTRING_CMPS };

/* What the slow path of an access, and a fault, need to know of an instruction. */
struct xsite {
	uint32_t host; /* offset in the arena */
	uint8_t size;
      uint8_t slots : 4;    /* of the instruction; 0: it is terminal, and left to the interpreter for good */
	uint8_t length : 4; /* of the instruction */
	bool write : 1, flags_in_register : 1;
	bool no_links : 1;                /* the slot follows its block's links: not from a copy */
	bool waits : 1;                   /* a pending x87 exception comes before the access */
	bool masked : 1;                  /* the instruction may leave out bytes that would fault */
	bool floating : 1;                /* code_page is to be added to rip */
	uint8_t string;                   /* enum xstring: the instruction, where translator_string() is called */
	const struct xpointers *pointers; /* of the x87 instruction before; NULL: state.x87 has them */
	bool inside : 1;                  /* a difference that a group's check found may be in use behind it */
	/* Of a group's check (merge.c): where its first access, which is the instruction's, lies in the span. */
	bool window : 1, first_write : 1;
	uint8_t settle; /* as in struct xlink, behind the instruction */
	union {
		uint8_t first_size;
		uint8_t undo; /* of an indirect transfer: as in struct translator, */
	};
	bool end_in_register; /* flags at `end` */
	union {
		uint16_t
		    end; /* from `host`: where it goes on when the interpreter has done the instruction after a miss */
		uint16_t release; /* and this */
	};
	union {
		struct {
			uint16_t span, first_offset;
		};
		uint32_t place;  /* of an access at a place: its number */
		uint32_t across; /* of a look at other pages (across.c): a struct xacross */
	};
	union {
		uint32_t range; /* struct xrange, or 0 */
		uint32_t since; /* of a count: when it began, or 0 */
	};
	uint16_t misses;
	uint8_t slack; /* of a group in the window: by how many bytes it is rounded up */
	uint8_t item;  /* of a group: number of its first instruction in the translation */
	struct block *block;
	const struct insn *slot;
	uint64_t rip; /* of the block */
};

/*
 * What was in the caches of an address space that is not current, and comes back with it: entries that are not global,
 * which pages user code is in, and targets there.
 */
struct xspace {
	unsigned entries, pages, targets;
	unsigned loads;     /* since it was built up anew */
	uint64_t aliased;   /* counters.aliased then */
	uint64_t watches;   /* t->watches then: write entries are void when a page was watched since */
	uint32_t forgotten; /* t->targets_forgotten then: targets are void when one was forgotten since */
	struct xspace_entry {
		uint64_t tag, delta;
		uint16_t index;
		uint8_t view, access; /* SPACE_READ, SPACE_WRITE or both */
		bool large;
	} entry[XSAVED];
	struct {
		uint64_t key;
		uint16_t index;
		uint8_t view;
	} page[XSAVED];
	struct {
		struct xjump jump;
		uint16_t index;
		uint8_t view;
	} target[XSAVED];
};

/* A part of the room for translations (regions.c): offsets in the arena, and numbers in the tables. */
struct xregion {
	size_t code, code_end;
	uint32_t links, links_used, links_end, sites, sites_used, sites_end, pointers, pointers_end, ranges, ranges_end;
	uint32_t xblocks, xblocks_end;
	struct xblock *blocks; /* those that were made */
};

struct translation;
struct aliases;

/*
 * Where the stack was last: pages that are writable and not watched, and that one difference (host minus linear
 * addresses) leads to the host. Groups are looked for rounded up to WINDOW_LEAST << n bytes, downwards, so that what ends
 * where the window ends is in it: fits[n] is the number of places where those can begin. All 0: it is nowhere.
 */
struct xwindow {
	uint64_t start, delta;
	uint64_t fits[6];
} __attribute__((aligned(64)));
#define WINDOW_LEAST 16u
#define XDELTA_SLOTS 24 /* one for each group of a block */

/* How far a loop may go through memory on the page where it is, see stream.c. */
struct xstream {
	uint64_t above, below, delta;
};
#define XSTREAMS 8

/* Where an access was last, see range.c: linear addresses from `start`, and what they are in the host. */
struct xrange {
	uint64_t start, length; /* where an access can begin; length 0: void */
	uint64_t delta, host;   /* host minus linear addresses; that of `start` */
	uint64_t end;
	uint16_t first;   /* `length` of one page */
	uint8_t item : 6; /* number of the instruction in its block */
	uint8_t write : 1;
	uint8_t strikes; /* times in a row that it did not last */
	uint32_t credit, since;
	uint32_t next; /* of those that are not void */
	struct block *block;
} __attribute__((aligned(64)));
#define XRANGE_CREDIT     64u
#define XRANGE_TICKS      150u /* of the TSC: leaving a range more often than that does not pay */
#define XRANGE_TIME_SHIFT 6

static inline uint32_t xrange_time(uint64_t ticks)
{
	return (uint32_t)(ticks >> XRANGE_TIME_SHIFT);
}

/* Where a page of data was that floating code goes to: see place.c. */
struct xplace {
	uint64_t page, host;   /* linear, and in the host */
	uint64_t listed, next; /* of those that were filled */
};
#define XPLACES 1024u

struct translator {
	struct xwindow window[MMU_VIEWS];
	struct xstream stream[XSTREAMS];
	struct xrange *ranges;
	struct xrange *ranges_filled; /* not void */
	uint64_t range_linear, range_saved;
	struct xplace *places_filled[2];   /* and listed, though some may be void again; for reads, and for writes */
	uint64_t delta_slot[XDELTA_SLOTS]; /* differences of the groups of the block that runs */
	struct xtlb_entry tlb[MMU_VIEWS][XTLB_ENTRIES];
	struct xplace place[2][XPLACES]; /* for reads, and for writes */
	struct xjump jump[XVIEWS][XJUMP_SIZE] __attribute__((aligned(64)));
	uint64_t page_key[XVIEWS][XPAGE_SIZE]; /* linear to physical page of code: see xpage_key() */
	/* For 32-bit code: the last offset that FS and GS reach, or -1 where they are not plain writable data. */
	int64_t segment_last[2];

	/* caches.c's own: which entries of the above are in use, come from global pages, are pieces of large ones. */
	uint64_t tlb_valid[MMU_VIEWS][2][XTLB_ENTRIES / 64], tlb_global[MMU_VIEWS][2][XTLB_ENTRIES / 64],
	    tlb_large[MMU_VIEWS][2][XTLB_ENTRIES / 64];
	uint64_t jump_used[XVIEWS][XJUMP_SIZE / 64], page_used[XVIEWS][XPAGE_SIZE / 64];
	/* Which words of the maps may have bits. */
	uint64_t tlb_some[MMU_VIEWS][2][(XTLB_ENTRIES + 4095) / 4096], jump_some[XVIEWS][(XJUMP_SIZE + 4095) / 4096],
	    page_some[XVIEWS][(XPAGE_SIZE + 4095) / 4096];
	uint64_t large_regions; /* as in struct mmu */
	/* Code that is entered lies in the lower, upper half; in large pages, in global ones, in others. */
	bool code_half[XVIEWS][2], code_large[XVIEWS], code_global[XVIEWS], code_not_global[XVIEWS];
	uint64_t watches;
	struct xspace *space; /* MMU_SPACES of them */
	struct xknown *known; /* XKNOWN_NODES of them; the heads, and up to known_used, are in use */
	uint32_t known_used;
	uint32_t targets_forgotten; /* so many times */
	struct aliases *aliases;
	const uint64_t *alias_of_page; /* alias.c's own; NULL: there are none */
	uint64_t missed;               /* linear address of the access whose page is looked for */

	uint64_t code_page; /* where the page is whose floating code runs */
	uint64_t target;    /* for trampolines and CALLs */
	uint64_t exit_argument;
	uint64_t host_rsp;              /* ring3's own stack, while RSP is that of returns */
	uint64_t return_rsp[MMU_VIEWS]; /* those of returns, where RSP is another: returns.c */
	uint64_t resume, resume_site;   /* where a trampoline that was called comes back, what was pushed for it */
	uint8_t *returns;
	uint64_t release,
	    undo; /* what an indirect transfer that left adds to RSP: when it goes on, when it is done again */
	struct translation *scratch;
	uint64_t string_value; /* between the two accesses of MOVS and CMPS */
	uint64_t borrowed[3];  /* host registers that one instruction took */
	/* string_routines.c: in use by a routine; the routines, by REP STOS, view, size, 32-bit code; room for more. */
	uint64_t string_saved[4];
	uint8_t string_vector[64];
	const uint8_t *string_routine[2][MMU_VIEWS][4][2];
	uint8_t *string_room, *string_room_end;
	uint64_t string_missing; /* XSTRING_MISS: the address, and whether it is to be written */
	bool string_missing_write;
	uint32_t flags;
	uint8_t vector_classes[4];     /* by enum vector_need: what vcpu->classes_disabled must not forbid, */
	uint32_t missing_with_live[4]; /* and vector_missing where it is live */
	uint32_t vector_missing;       /* byte n not 0: blocks that need n (enum vector_need) cannot run at once */
	uint8_t vector_live;           /* enum vector_need: which are the guest's now */
	uint32_t fault_vector;

	struct vcpu *vcpu;
	struct xblock *page_blocks[XPAGE_HASH]; /* by physical page */
	struct xblock *crossing[XCROSS_HASH];   /* by the second page of those that have one */
	struct xacross_page *across[XCROSS_HASH];
	struct xlink *apart; /* that were made since they were all undone */
	struct xacross *across_apart;
	struct xacross *across_room, *across_free; /* XACROSS_MAX of them; the free ones, */
	unsigned across_used;                      /* and those that were never used */
	/* Physical pages whose code shall float (a hash: a wrong one costs a little speed). */
	uint64_t floating_page[(1u << XFLOAT_BITS) / 64];
	struct memory_code_listener listener;
	_Atomic uint32_t code_seen; /* memory->code_writes that this vCPU has acted upon */
	struct code_arena arena;
	uint64_t epoch; /* what the caches above were made for */
	/*
	 * A vCPU that begins to watch a page has no other's write entries for it: it asks by `watch_request`, and waits
	 * until this one has left translated code (in_code 0) or seen the request. The same with written code: no look at
	 * the page's generation is in translated code; links to its blocks are undone before the writer goes on. So C
	 * that is called from translated code and may write memory or wait must have in_code 0 (translator_slow shows
	 * how), and the thread that writes code itself acts on it when it enters translated code again.
	 */
	_Atomic uint32_t watch_request, watch_seen;
	_Atomic uint8_t in_code;
	const uint8_t *enter;
	uint8_t *exit_slot, *exit_link, *exit_link_flags, *exit_fault, *exit_vector, *slow, *call_out, *sensitive,
	    *string, *range_move, *warm, *across_look; /* trampolines, writable view */
	uint8_t *exit_indirect[XVIEWS], *exit_indirect_floating;
	/* The same by view and whether it is written. */
	uint8_t *slow_xored[MMU_VIEWS][2], *probe_xored[MMU_VIEWS][2], *window_move[MMU_VIEWS];
	uint8_t *place_miss[2]; /* for writes or not */
	uint8_t *range_miss[MMU_VIEWS][2], *range_group_miss[MMU_VIEWS][2];
	struct insn called[CALL_OUT_MAX + 1]; /* an instruction called out: its slots and the one that comes back */
	struct block no_block;                /* whose links lead nowhere: for slots that would go on by themselves */
	bool came_back;
	struct xblock *xblocks;
	uint32_t
	    *counts; /* of entries that are left (warm.c), by number of the xblock: side by side, as each is used */
	uint32_t xblock_count;
	struct xlink *links;
	uint32_t link_count;
	struct xsite *sites;
	uint32_t site_count;
	struct xpointers *pointers;
	uint32_t pointers_count;
	uint32_t range_count;
	struct xregion region[XREGIONS_MAX]; /* the one in use begins where link_count and its like began */
	unsigned regions, region_now;
	uint32_t xblock_room, link_room, site_room, pointers_room, range_room; /* in all regions */
	uint64_t flushes;
	unsigned heat; /* entries of a block before it is translated */
	bool avx512, avx;
	bool emptied; /* something was taken from the TLB since translated code was left for C */
	bool patched; /* code was changed since code_arena_publish() */
	struct translator_counters counters;
	struct perf_map *perf_map;                 /* or NULL */
	struct lockstep *lockstep;                 /* or NULL: debug/lockstep.h */
	struct depot *depot;                       /* the machine's translations, or NULL; a user of it */
	bool retake;                               /* for tests: all translations go through it */
	bool compare_taken;                        /* for tests: what is taken is compared with its own */
	void (*plant)(uint8_t *code, size_t size); /* for tests: spoils the code of a block that was just translated */
	_Atomic uint64_t longest_wait;             /* ticks, of those that wait for this processor; any thread */
	uint64_t longest_eviction;                 /* ticks */
	bool count_executed;                       /* translated code counts what it executes */
};

/* The block of a translation's part `n`, from 1 on, and where it begins, from the first one. */
static inline struct block *xblock_part(const struct xblock *xblock, unsigned n)
{
	return xblock->across ? xblock->across->more[n - 1] : xblock->more[n - 1];
}

static inline int32_t xblock_part_base(const struct xblock *xblock, unsigned n)
{
	return xblock->across ? xblock->across->more_base[n - 1] : xblock->more_base[n - 1];
}

/* For absolute operands. */
static inline uint32_t xabs(const volatile void *pointer)
{
	return (uint32_t)(uintptr_t)pointer;
}

/* Tells whether a code page's linear address still means the same physical page: both in one word (48-bit addresses).
 */
static inline uint64_t xpage_key(uint64_t linear, uint64_t physical)
{
	return (linear >> 21) << 36 | physical >> 12;
}

/* Code of which modes is translated: 64-bit code, and 32-bit code whose segments (but FS and GS) are flat. */
static inline bool translator_mode(uint32_t mode)
{
	return mode == MODE_64 || mode == (MODE_32 | MODE_STACK32 | MODE_FLAT);
}

/* mode32.c: 32-bit code is about to be entered; FS and GS may have changed. */
void mode32_note_segments(struct translator *t);

/* runtime.c */
struct translator *
translator_create(struct vcpu *vcpu); /* NULL: errno; the vCPU must lie below 2 GiB (vcpu_allocate) */
void translator_destroy(struct translator *t);
/* All translated code and links are void: the block cache was emptied. */
void translator_flush(struct translator *t);
/* The oldest translations make room for new ones. Not while a block runs. */
void translator_advance(struct translator *t);
void translator_note_eviction(struct translator *t, uint64_t ticks);
/* This interpreter block goes; what was translated from it, too. */
void translator_block_gone(struct translator *t, struct block *block);
/* This vCPU began to watch a page (decoded code): nobody may keep a write entry for it. */
void translator_page_watched(struct translator *t);
/*
 * In the signal handler: a host fault in translated code becomes the guest's exception `vector`: the context goes on in
 * a trampoline. False: not in translated code.
 */
bool translator_host_fault(struct translator *t, ucontext_t *context, unsigned vector);
/* returns.c. In the signal handler: translated code came to the end of its stack of returns, and goes on with an empty one. */
bool translator_returns_full(struct translator *t, ucontext_t *context);
/* For tests and --lockstep, before the vCPU runs first: 0 or -ENOMEM. */
int translator_set_lockstep(struct translator *t);
/* Guest code may have changed unseen: what the machine's processors have for one another goes. None runs. */
void translator_forget_shared(struct translator *t);
/* This processor has, or has not, been idle for long: the depot's memory may be given back. */
void translator_rest_shared(struct translator *t, bool idle);
handler translator_heat; /* the first slot of blocks that may be translated */

/* stats.c: see struct engine's print_stats. */
void translator_print_stats(struct vcpu *const *vcpu, unsigned count, FILE *file);

/* caches.c: the caches that translated code looks into. */
int caches_create(struct translator *t); /* 0 or -ENOMEM */
void caches_destroy(struct translator *t);
void caches_empty_writes(struct translator *t);  /* the TLB's write entries */
void caches_empty_tlb(struct translator *t);     /* all of the TLB */
void caches_empty_targets(struct translator *t); /* all ways to translated code */
/* After anything that may have changed translations: does what the notes of the MMU's invalidations say. */
void caches_catch_up(struct translator *t);
/* A page may be accessed in the current view. */
const struct xtlb_entry *caches_enter_page(struct translator *t, uint64_t linear, bool write,
                                           const struct mmu_tlb_entry *entry);
/* Translated code at `rip` may be reached by links of a code view that compare its page's key. */
void caches_enter_code(struct translator *t, unsigned view, uint64_t rip, uint64_t physical);
/* The same for a block that is about to run, without raising: what it leaves on the stack of returns goes with its page. */
void caches_note_running(struct translator *t, unsigned view, uint64_t rip, uint64_t physical);
/* Indirect transfers to `rip` go to `host` (executable view); caches_enter_code() was called. */
void caches_enter_target(struct translator *t, unsigned view, uint64_t rip, const uint8_t *host);
void caches_forget_spaces(struct translator *t); /* what was put aside for other address spaces */
/* All that lead to `host`, whose code is, or floats, at this offset in its page. */
void caches_forget_target(struct translator *t, unsigned view, uint64_t rip, const uint8_t *host);

/* Pages have got aliases: entries lead there, and nothing is left of copies. */
void caches_follow_aliases(struct translator *t);

/* trampolines.c */
bool translator_emit_trampolines(struct translator *t);
/* translate.c: NULL: not for us, or no room (*full). */
/* The ZydisMnemonic of the instruction for which translate_block() just refused a block; 0: another reason. */
unsigned translator_refused_mnemonic(const struct translator *t);
struct xblock *translate_block(struct translator *t, struct block *block, bool *full);
