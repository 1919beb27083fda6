/* Private to src/engines/translator: what trampolines.c and runtime.c need of each other. */
#pragma once

#include "engines/translator/translator.h"

/* Exits; `insn` is exit_argument. */
handler translator_to_slot;    /* the interpreter's slot of an instruction; state.rip was set by the stub */
handler translator_to_link;    /* a struct xlink */
handler translator_to_address; /* an indirect transfer to translator->target; exit_argument is the slot of the
                                  instruction */
handler translator_to_fault;   /* a host fault: fault_vector at a struct xsite */
handler translator_to_vector;  /* the struct xblock whose vector registers are not there */

/*
 * The host address for the access of site exit_argument; or what became of its instruction instead. May raise.
 */
#define SLOW_TERMINAL 0u /* leave to the slot exit_argument */
#define SLOW_DONE     1u /* the interpreter has done it */
#define SLOW_LEAVE    2u /* to the run loop */
uint64_t translator_slow(struct translator *t, uint64_t linear);
/*
 * The check of a group at `linear`, whose site is exit_argument: host minus linear addresses, or 0: it cannot be checked
 * at once; exit_argument is the instruction's slot then. Has the effects of the instruction's own access, which may
 * raise, and no others.
 */
uint64_t translator_probe(struct translator *t, uint64_t linear);
/*
 * The interpreter does the terminal instruction of site exit_argument, which is in `sensitive_possible`: SLOW_LEAVE or the
 * host address where it goes on. May raise.
 */
uint64_t translator_sensitive(struct translator *t);
/* The interpreter does the instruction of site exit_argument: SLOW_DONE or SLOW_LEAVE. May raise. */
uint64_t translator_call_out(struct translator *t);
/* x87.c: FIP, FDP and FOP that translated code was behind with; registers are in the vCPU block. NULL: none. */
void x87_catch_up(const struct translator *t, const struct xpointers *pointers);

/*
 * string_copy.c: a string instruction (site->string) on the vCPU block's registers, as far as it is easy; what is done
 * shows in RCX, RSI and RDI. Flags in t->flags, before and after. Touches no vector registers.
 */
enum xstring_result {
	XSTRING_DONE,
	XSTRING_MISS, /* the TLB lacks string_missing */
	XSTRING_SLOT, /* the interpreter has to go on with it */
};
enum xstring_result translator_string(struct translator *t, const struct xsite *site);
/* What comes after another result than XSTRING_DONE, for site exit_argument: SLOW_*. May raise. */
uint64_t translator_string_slow(struct translator *t, enum xstring_result result);

/* find.c */
void find_enter(struct translator *t, const struct xblock *xblock, const uint8_t *host);
void find_forget(struct translator *t, const struct xblock *xblock, const uint8_t *host);
void find_flush(struct translator *t); /* nothing is known any more */
/* What is known of the page of `rip` gets into `jump`: it came into use, in this view. */
void find_page(struct translator *t, unsigned view, uint64_t rip, uint64_t physical);
/* The executable address for `rip`, which `jump` has then; or NULL. The caches have been caught up. */
const uint8_t *find_target(struct translator *t, unsigned code_view, uint64_t rip);
/*
 * An indirect transfer to translator->target, with registers that C may change in the vCPU block: where it goes on, RSP
 * included, or 0: translator_to_address() knows. Touches no vector registers.
 */
uint64_t translator_find(struct translator *t);

/*
 * fill.c: translator_slow() and translator_probe() where the page is there, its A and D bits are set and nobody watches
 * it; else 0, and nothing has changed. Touch no vector registers.
 */
uint64_t translator_fill(struct translator *t, uint64_t linear);
uint64_t translator_fill_group(struct translator *t, uint64_t linear);
/* Where a page of the current view is: RAM, by the guest's tables as they stand. False: not that simple. */
struct paging_result;
bool fill_look(const struct translator *t, uint64_t linear, struct paging_result *walk);

/* crossing.c: instructions that cross into another page; the others' blocks are left alone. */
bool crossing_possible(const struct translator *t, const struct block *block);
void crossing_add(struct translator *t, struct xblock *xblock);
void crossing_remove(struct translator *t, struct xblock *xblock);
/* A page of code (all ones: of all) was written: what leads to translations that go on in it is undone. */
void crossing_written(struct translator *t, uint64_t page, void (*unlink)(struct translator *, struct xblock *));
/* As caches_enter_code() for the page where it goes on. */
void crossing_note_code(struct translator *t, const struct xblock *xblock, uint64_t rip);

/*
 * apart.c: the link is good where code_page is `page`, while addresses mean what they mean. apart_undo(): this one is not
 * any more; apart_forget(): those that lead to the linear page, or all are not. (But they stay linked.)
 */
void apart_made(struct translator *t, struct xlink *link, uint64_t page);
/* The same of the pages of a translation. */
void apart_known(struct translator *t, struct xacross *across, uint64_t page);
void apart_forget_page(struct translator *t, uint64_t linear);
void apart_forget(struct translator *t);
#define APART_NONE     1u
#define APART_PATIENCE 8u

static inline void apart_undo(struct xlink *link)
{
	link->from = APART_NONE;
}

/* across.c: translations with parts in other pages. 0, or -1. */
int across_create(struct translator *t);
void across_destroy(struct translator *t);
void across_flush(struct translator *t);
struct xacross *across_new(struct translator *t); /* NULL: no room */
void across_free(struct translator *t, struct xacross *across);
void across_add(struct translator *t, struct xblock *xblock);
void across_remove(struct translator *t, struct xblock *xblock);
/* As crossing_written(). */
void across_written(struct translator *t, uint64_t page, void (*unlink)(struct translator *, struct xblock *));
/* Some translation that goes on in a block of physical page number `page`; NULL: there is none. */
struct xblock *across_find(const struct translator *t, uint64_t page, const struct block *block,
                           bool (*goes_on_in)(const struct xblock *, const struct block *));
/* Were its other pages written since? */
bool across_stale(const struct xblock *xblock);
/* It does not go on in other pages any more, after some times. */
#define STRAYED_MAX 4
void across_strayed(struct translator *t, struct block *block);
/* find.c: does the key of one of its other pages say that it is the same page? And the guest's tables, which it is then? */
bool across_known(const struct translator *t, const struct xblock *xblock, const struct xacross_page *page);
bool across_look(struct translator *t, const struct xblock *xblock, const struct xacross_page *page);
/* For translated code: does that for all pages of site exit_argument. Always 0. */
uint64_t translator_across(struct translator *t, uint64_t unused);

/* The arena begins with these, then comes room for string_routines.c. */
#define TRAMPOLINES_SIZE 24576u
#define STRING_ROOM      65536u

/* Is this block about to be translated, or (`also_translated`) was it? */
bool translator_is_hot(const struct translator *t, const struct block *block, bool also_translated);

/* Shall a translation of this block float? May it? From now on the page's translations shall. */
bool runtime_floats(const struct translator *t, const struct block *block);
bool runtime_may_float(const struct translator *t, const struct block *block);
void runtime_set_floating(struct translator *t, const struct block *block);

/* Nothing leads to this block any more. `slot`: nor does its interpreter block, which begins to count again. */
void runtime_forget_block(struct translator *t, struct xblock *xblock, bool slot);
void runtime_undo_link(struct translator *t, struct xlink *link);

/*
 * returns.c: 0 or -1. What is forgotten: all entries, of the user's view or of the supervisor's two (code goes from one to
 * the other, and is noted for the one that it began in).
 */
int returns_create(struct translator *t);
void returns_destroy(struct translator *t);
void returns_forget(struct translator *t, bool user);
void returns_forget_all(struct translator *t);

/* range.c */
void ranges_void(struct translator *t);
/* Void; `first` to `write` as in struct xrange, `now` an xrange_time(). */
void range_begin(struct xrange *range, uint16_t first, uint8_t item, bool write, uint32_t now, struct block *block);
/* `pages` of them from linear address `page`. */
static inline void range_set(struct translator *t, struct xrange *range, uint64_t page, uint64_t pages, uint64_t delta)
{
	if (!range->length) {
		range->next = xabs(t->ranges_filled);
		t->ranges_filled = range;
	}
	range->start = page;
	range->end = page + pages * MEMORY_PAGE_SIZE;
	range->host = page + delta;
	range->delta = delta;
	range->length = range->first + (pages - 1) * MEMORY_PAGE_SIZE;
}
static inline void window_set(struct xwindow *window, uint64_t page, uint64_t pages, uint64_t delta)
{
	window->start = page;
	window->delta = delta;
	for (unsigned n = 0; n < sizeof(window->fits) / sizeof(window->fits[0]); n++)
		window->fits[n] = pages * MEMORY_PAGE_SIZE - (WINDOW_LEAST << n) + 1;
}
struct xrun {
	uint64_t page, pages, delta; /* pages 0: `page` is not in the TLB */
};
/* The pages around `page` in the TLB that its difference leads to as well. */
struct xrun find_run(const struct translator *t, uint64_t page, bool write);
/* Of the pages around `page` in the TLB those that its difference leads to as well. */
void range_set_run(struct translator *t, struct xrange *range, uint64_t page);
uint64_t translator_range_spent(struct translator *t, uint64_t range);
void range_emit_move(struct emitter *e,
                     struct translator *t); /* a part of a trampoline: what comes behind calls the above */
/* Trampolines: behind the one above, and those for what is not in the TLB either. */
void range_emit_misses(struct emitter *e, struct translator *t);

/* place.c: all places for writes or not are void, or those where a page was. */
void places_void(struct translator *t, bool write);
void places_void_page(struct translator *t, uint64_t linear);
void places_begin(struct translator *t);
void place_emit_misses(struct emitter *e, struct translator *t); /* trampolines */

/* warm.c: a count ended, that of site exit_argument. What it goes on with. */
uint64_t translator_warm(struct translator *t, uint64_t unused);
/* A translation's count of the entries that are left; and it begins. */
uint32_t *warm_count(const struct translator *t, const struct xblock *xblock);
void warm_begin(struct translator *t, const struct xblock *xblock);

/* alias.c: 0 or -1, and what there is must be destroyed. */
int aliases_create(struct translator *t);
void aliases_destroy(struct translator *t);
#define ALIASES_NONE UINT64_MAX
/* Offset in the memfd, or ALIASES_NONE: it is no address of RAM. */
static inline uint64_t aliases_offset(const struct memory *memory, uint64_t host)
{
	uint64_t low = host - (uint64_t)(uintptr_t)memory->low, high = host - (uint64_t)(uintptr_t)memory->high;

	return low < memory->low_size ? low : high < memory->high_size ? memory->low_size + high : ALIASES_NONE;
}

/* The page of host address `host`, where the TLB shall lead. */
static inline uint64_t aliases_host(const struct translator *t, uint64_t host)
{
	if (!t->alias_of_page || t->lockstep)
		return host;
	uint64_t offset = aliases_offset(t->vcpu->memory, host);
	uint64_t alias = offset == ALIASES_NONE ? 0 : t->alias_of_page[offset / MEMORY_PAGE_SIZE];
	return alias ? alias : host;
}
/* This page and its neighbours, as far as they are in the current view's TLB, get aliases. False: nothing changed. */
bool aliases_make(struct translator *t, uint64_t page, bool write);
/* Drops all if there were too many. Not while translated code runs. */
void aliases_make_room(struct translator *t);

/* The page's entry in the TLB of the current view, or NULL. */
static inline const struct xtlb_entry *runtime_entered(const struct translator *t, uint64_t page, bool write)
{
	const struct xtlb_entry *entry = &t->tlb[t->vcpu->mmu.view][page / MEMORY_PAGE_SIZE & (XTLB_ENTRIES - 1)];

	return entry->tag[write] == page ? entry : NULL;
}

/* Linear page `tag` becomes entry `n` of a view, for reads or writes. */
static inline void caches_put_entry(struct translator *t, unsigned view, bool write, unsigned n, uint64_t tag,
                                    uint64_t delta, bool global, bool large)
{
	struct xtlb_entry *entry = &t->tlb[view][n];
	uint64_t bit = 1ull << n % 64;

	entry->tag[write] = tag;
	entry->delta[write] = delta;
	t->tlb_valid[view][write][n / 64] |= bit;
	t->tlb_some[view][write][n / 4096] |= 1ull << n / 64 % 64;
	t->tlb_global[view][write][n / 64] = (t->tlb_global[view][write][n / 64] & ~bit) | (global ? bit : 0);
	t->tlb_large[view][write][n / 64] = (t->tlb_large[view][write][n / 64] & ~bit) | (large ? bit : 0);
	if (large)
		t->large_regions |= mmu_region_bit(tag);
}

/* page_key[view][n] is in use. */
static inline void caches_note_key(struct translator *t, unsigned view, unsigned n)
{
	t->page_used[view][n / 64] |= 1ull << n % 64;
	t->page_some[view][n / 4096] |= 1ull << n / 64 % 64;
}

/* jump[view][n] is in use. */
static inline void caches_note_target(struct translator *t, unsigned view, unsigned n)
{
	t->jump_used[view][n / 64] |= 1ull << n % 64;
	t->jump_some[view][n / 4096] |= 1ull << n / 64 % 64;
}

/* Translated code of a page, whose properties these are, may be reached: see caches_enter_code(). */
static inline void caches_note_code(struct translator *t, unsigned view, uint64_t rip, uint64_t physical, bool large,
                                    bool global)
{
	unsigned n = rip >> 12 & (XPAGE_SIZE - 1);
	uint64_t key = xpage_key(rip, physical);

	t->code_half[view][rip >> 63] = true;
	t->code_large[view] |= large;
	t->code_global[view] |= global;
	t->code_not_global[view] |= !global;
	if (t->page_key[view][n] == key)
		return;
	t->page_key[view][n] = key;
	caches_note_key(t, view, n);
	find_page(t, view, rip, physical);
}

/* The block is translated anew when it is entered next. */
void runtime_translate_again(struct translator *t, struct block *block);

/* regions.c: room for translations, from a processor's share of the cache in bytes. */
size_t regions_code_size(uint64_t share);
int regions_create(struct translator *t, uint64_t share); /* behind the trampolines. 0, or -1 */
void regions_destroy(struct translator *t);
void regions_flush(struct translator *t);
bool regions_empty(const struct translator *t);         /* the one in use */
struct xblock *regions_new_block(struct translator *t); /* NULL: no room */
void regions_add(struct translator *t, struct xblock *xblock);

/* How far the room is used: what was made since can be given back. */
struct translator_cursors {
	size_t used;
	uint32_t xblocks, links, sites, pointers, ranges;
};
struct translator_cursors cursors_of(const struct translator *t);
void cursors_set(struct translator *t, const struct translator_cursors *cursors);

/* shared.c: a translation that another processor made for itself, for this block. NULL: there is none, or no room (*full). */
struct xblock *shared_take(struct translator *t, struct block *block, bool *full);
/*
 * For tests. What was `made` since `cursors` is taken back from the depot, where it was put, and made unusable where it was.
 * What was `taken` since `cursors` is compared with what this processor makes of the block, which comes back.
 */
struct xblock *shared_retake(struct translator *t, struct xblock *made, const struct translator_cursors *cursors,
                             bool *full);
struct xblock *shared_compare(struct translator *t, struct xblock *taken, const struct translator_cursors *cursors,
                              bool *full);
void regions_advance(struct translator *t);
/* The site of exactly this offset in the arena, or NULL. Async-signal-safe. */
const struct xsite *regions_site(const struct translator *t, uint32_t host);
