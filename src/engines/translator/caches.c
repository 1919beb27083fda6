/*
 * The caches that translated code looks into, and their invalidation: the TLB, the targets of indirect transfers, and the
 * keys of pages of code, which say what a linear page is (links to other pages compare them).
 *
 * Bit maps tell which entries are in use, so that emptying costs what is there. When the guest loads another PCID, what is
 * not global is put aside, and is back when the guest comes back and wants it kept (SDM 3A 4.10.1).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "debug/lockstep.h"
#include "engines/translator/runtime.h"
#include "host/table_memory.h"

#define PAGE_MASK    ((uint64_t)MEMORY_PAGE_SIZE - 1)
#define NO_TAG(n)    (((uint64_t)(n) ^ 1) << 12)
#define NO_TARGET(n) (((uint64_t)(n) ^ 1) << XJUMP_SHIFT | 1ull << 63) /* not canonical: bit 62 is clear */
#define NO_PAGE      UINT64_MAX

/* The body for each bit of `bits`, word `word` of a map; n is its number in the map. */
#define FOR_BITS(n, word, bits)                                                                                        \
	for (uint64_t left_ = (bits), n; left_ && (n = (word)*64u + (unsigned)__builtin_ctzll(left_), true);           \
	     left_ &= left_ - 1)

/*
 * The body for each word of a map that may have bits, by the map of such words. (Another macro than FOR_BITS for the sake of
 * its variable's name.)
 */
#define FOR_WORDS(word, some, words)                                                                                   \
	for (unsigned group_ = 0; group_ < ((words) + 63) / 64; group_++)                                              \
		for (uint64_t rest_ = (some)[group_], word;                                                            \
		     rest_ && (word = group_ * 64u + (unsigned)__builtin_ctzll(rest_), true); rest_ &= rest_ - 1)

/* ---- the TLB ---- */

static void drop_entries(struct translator *t, unsigned view, unsigned write, uint64_t word, uint64_t bits)
{
	FOR_BITS(n, word, bits)
	t->tlb[view][n].tag[write] = NO_TAG(n);
	t->tlb_valid[view][write][word] &= ~bits;
	if (!t->tlb_valid[view][write][word])
		t->tlb_some[view][write][word / 64] &= ~(1ull << word % 64);
	t->tlb_large[view][write][word] &= ~bits;
}

static void drop_entry(struct translator *t, unsigned view, unsigned write, uint64_t n)
{
	drop_entries(t, view, write, (unsigned)n / 64, 1ull << n % 64);
}

/* Whatever was taken from the TLB is not to be found in what was copied from it. */
static void empty_windows(struct translator *t)
{
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		t->window[view] = (struct xwindow){0};
	/* The differences stay: a loop that made aliases meanwhile (range.c) may go on with one that it has checked. */
	for (unsigned n = 0; n < XSTREAMS; n++) {
		t->stream[n].above = 0;
		t->stream[n].below = UINT64_MAX;
	}
	ranges_void(t);
	t->emptied = true;
}

static void void_places(struct translator *t)
{
	places_void(t, false);
	places_void(t, true);
}

/* All, or all that are not global. */
static void empty_tlb(struct translator *t, unsigned first_write, bool keep_global)
{
	empty_windows(t);
	for (unsigned write = first_write; write < 2; write++)
		places_void(t, write);
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		for (unsigned write = first_write; write < 2; write++)
			FOR_WORDS(word, t->tlb_some[view][write], XTLB_ENTRIES / 64)
			{
				uint64_t drop = t->tlb_valid[view][write][word] &
				                ~(keep_global ? t->tlb_global[view][write][word] : 0);

				if (drop)
					drop_entries(t, view, write, word, drop);
			}
}

void caches_empty_writes(struct translator *t)
{
	t->watches++;
	empty_tlb(t, 1, false);
}

void caches_empty_tlb(struct translator *t)
{
	empty_tlb(t, 0, false);
}

void caches_follow_aliases(struct translator *t)
{
	empty_windows(t);
	void_places(t);
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		for (unsigned write = 0; write < 2; write++)
			FOR_WORDS(word, t->tlb_some[view][write], XTLB_ENTRIES / 64)
	FOR_BITS(n, word, t->tlb_valid[view][write][word])
	{
		struct xtlb_entry *entry = &t->tlb[view][n];

		entry->delta[write] = aliases_host(t, entry->tag[write] + entry->delta[write]) - entry->tag[write];
	}
}

const struct xtlb_entry *caches_enter_page(struct translator *t, uint64_t linear, bool write,
                                           const struct mmu_tlb_entry *entry)
{
	uint64_t tag = linear & ~PAGE_MASK, host = entry->host + tag;
	unsigned n = linear >> 12 & (XTLB_ENTRIES - 1), view = t->vcpu->mmu.view;

	if (unlikely(t->lockstep)) {
		host = (uint64_t)(uintptr_t)lockstep_page(t->lockstep, (uint8_t *)(uintptr_t)host, write);
		if (!host)
			return NULL;
	}
	host = aliases_host(t, host);
	caches_put_entry(t, view, write, n, tag, host - tag, mmu_entry_global(t->vcpu, entry),
	                 mmu_entry_large(t->vcpu, entry));
	return &t->tlb[view][n];
}

/* ---- ways to code ---- */

static void drop_target(struct translator *t, unsigned view, uint64_t n)
{
	t->jump[view][n].rip = NO_TARGET(n);
	t->jump_used[view][n / 64] &= ~(1ull << n % 64);
}

static void empty_view(struct translator *t, unsigned view)
{
	FOR_WORDS(word, t->jump_some[view], XJUMP_SIZE / 64)
	{
		FOR_BITS(n, word, t->jump_used[view][word])
		t->jump[view][n].rip = NO_TARGET(n);
		t->jump_used[view][word] = 0;
	}
	FOR_WORDS(word, t->page_some[view], XPAGE_SIZE / 64)
	{
		FOR_BITS(n, word, t->page_used[view][word])
		t->page_key[view][n] = NO_PAGE;
		t->page_used[view][word] = 0;
	}
	returns_forget(t, view % MMU_VIEWS == MMU_USER);
	if (view == MMU_USER)
		apart_forget(t);
	memset(t->jump_some[view], 0, sizeof(t->jump_some[view]));
	memset(t->page_some[view], 0, sizeof(t->page_some[view]));
	t->code_half[view][0] = t->code_half[view][1] = t->code_large[view] = false;
	t->code_global[view] = t->code_not_global[view] = false;
}

void caches_empty_targets(struct translator *t)
{
	for (unsigned view = 0; view < XVIEWS; view++)
		empty_view(t, view);
	for (unsigned n = 0; n < MMU_SPACES; n++)
		t->space[n].pages = t->space[n].targets = 0;
}

static void enter_code(struct translator *t, unsigned view, uint64_t rip, uint64_t physical,
                       const struct mmu_tlb_entry *entry)
{
	caches_note_code(t, view, rip, physical, !entry || mmu_entry_large(t->vcpu, entry),
	                 !entry || mmu_entry_global(t->vcpu, entry));
	t->code_not_global[view] |= !entry;
}

void caches_enter_code(struct translator *t, unsigned view, uint64_t rip, uint64_t physical)
{
	enter_code(t, view, rip, physical, mmu_entry(t->vcpu, rip, MMU_EXECUTE, NULL));
}

void caches_note_running(struct translator *t, unsigned view, uint64_t rip, uint64_t physical)
{
	if (t->page_key[view][rip >> 12 & (XPAGE_SIZE - 1)] == xpage_key(rip, physical))
		return;
	unsigned own = view % MMU_VIEWS == MMU_USER ? MMU_USER : MMU_SUPERVISOR;
	const struct mmu_tlb_entry *entry = &t->vcpu->mmu.tlb[own][MMU_EXECUTE][mmu_tlb_index(rip)];

	enter_code(t, view, rip, physical, entry->tag == (rip & ~PAGE_MASK) ? entry : NULL);
}

void caches_forget_target(struct translator *t, unsigned view, uint64_t rip, const uint8_t *host)
{
	t->targets_forgotten++;
	for (unsigned n = xjump_slot(rip & PAGE_MASK); n < XJUMP_SIZE; n += MEMORY_PAGE_SIZE >> XJUMP_SHIFT)
		if ((t->jump_used[view][n / 64] >> n % 64 & 1) && t->jump[view][n].host == host)
			drop_target(t, view, n);
}

/* Does a key belong to the page of `linear`, or (shift 9) to its GiB? */
static bool key_matches(uint64_t key, uint64_t linear, unsigned shift)
{
	return !(((key >> 36 ^ linear >> 21) & 0xfffffff) >> shift);
}

/*
 * Code of one linear page, or, if there is code in large pages, of its GiB. A page's bit in page_used stays: targets of
 * another page that shares it may still be there.
 */
static void drop_code(struct translator *t, unsigned view, uint64_t linear)
{
	unsigned own = linear >> 12 & (XPAGE_SIZE - 1);
	bool large = t->code_large[view];

	if (!t->code_half[view][linear >> 63] || (!large && !(t->page_used[view][own / 64] >> own % 64 & 1)))
		return;
	returns_forget(t, view % MMU_VIEWS == MMU_USER);
	if (view == MMU_USER && large)
		apart_forget(t);
	else if (view == MMU_USER)
		apart_forget_page(t, linear);
	FOR_WORDS(word, t->jump_some[view], XJUMP_SIZE / 64)
	FOR_BITS(n, word, t->jump_used[view][word])
	if (!((t->jump[view][n].rip ^ linear) >> (large ? 30 : 12)))
		drop_target(t, view, n);
	if (key_matches(t->page_key[view][own], linear, 0))
		t->page_key[view][own] = NO_PAGE;
	if (!large)
		return;
	FOR_WORDS(word, t->page_some[view], XPAGE_SIZE / 64)
	FOR_BITS(n, word, t->page_used[view][word])
	if (key_matches(t->page_key[view][n], linear, 9))
		t->page_key[view][n] = NO_PAGE;
}

/* ---- invalidation ---- */

/* INVLPG: one page; all pieces of large pages in its GiB (as mmu_flush_page does). */
static void drop_page(struct translator *t, uint64_t linear)
{
	unsigned own = linear >> 12 & (XTLB_ENTRIES - 1);

	empty_windows(t);
	if (t->large_regions & mmu_region_bit(linear))
		void_places(t);
	else
		places_void_page(t, linear);
	for (unsigned view = 0; view < XVIEWS; view++)
		drop_code(t, view, linear);
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		for (unsigned write = 0; write < 2; write++) {
			if (t->tlb[view][own].tag[write] == (linear & ~PAGE_MASK))
				drop_entry(t, view, write, own);
			if (!(t->large_regions & mmu_region_bit(linear)))
				continue;
			FOR_WORDS(word, t->tlb_some[view][write], XTLB_ENTRIES / 64)
			FOR_BITS(n, word, t->tlb_large[view][write][word])
			if (!((t->tlb[view][n].tag[write] ^ linear) >> 30))
				drop_entry(t, view, write, n);
		}
}

static void forget_space(struct xspace *space)
{
	space->entries = space->pages = space->targets = space->loads = 0;
}

void caches_forget_spaces(struct translator *t)
{
	for (unsigned n = 0; n < MMU_SPACES; n++)
		forget_space(&t->space[n]);
}

static void drop_all(struct translator *t)
{
	empty_tlb(t, 0, false);
	t->large_regions = 0;
	caches_empty_targets(t);
	for (unsigned n = 0; n < MMU_SPACES; n++)
		forget_space(&t->space[n]);
}

static void drop_nonglobal(struct translator *t)
{
	empty_tlb(t, 0, true);
	for (unsigned view = 0; view < XVIEWS; view++)
		if (t->code_not_global[view])
			empty_view(t, view);
}

static void put_pages_aside(struct translator *t, unsigned view, struct xspace *space)
{
	FOR_WORDS(word, t->page_some[view], XPAGE_SIZE / 64)
	FOR_BITS(n, word, t->page_used[view][word])
	{
		if (space->pages == XSAVED)
			return;
		space->page[space->pages].key = t->page_key[view][n];
		space->page[space->pages].view = (uint8_t)view;
		space->page[space->pages++].index = (uint16_t)n;
	}
	FOR_WORDS(word, t->jump_some[view], XJUMP_SIZE / 64)
	FOR_BITS(n, word, t->jump_used[view][word])
	{
		if (space->targets == XSAVED)
			return;
		space->target[space->targets].jump = t->jump[view][n];
		space->target[space->targets].view = (uint8_t)view;
		space->target[space->targets++].index = (uint16_t)n;
	}
}

#define SPACE_READ  1u
#define SPACE_WRITE 2u

static void put_entry_aside(struct translator *t, unsigned view, unsigned n, unsigned access, struct xspace *space)
{
	const struct xtlb_entry *entry = &t->tlb[view][n];
	unsigned write = access == SPACE_WRITE;

	if (space->entries == XSAVED)
		return;
	space->entry[space->entries++] = (struct xspace_entry){
	    .tag = entry->tag[write],
	    .delta = entry->delta[write],
	    .index = (uint16_t)n,
	    .view = (uint8_t)view,
	    .access = (uint8_t)access,
	    .large = t->tlb_large[view][write][n / 64] >> n % 64 & 1,
	};
}

static void put_entries_aside(struct translator *t, unsigned view, struct xspace *space)
{
	uint64_t some[sizeof(t->tlb_some[0][0]) / sizeof(uint64_t)];

	for (unsigned n = 0; n < sizeof(some) / sizeof(some[0]); n++)
		some[n] = t->tlb_some[view][0][n] | t->tlb_some[view][1][n];
	FOR_WORDS(word, some, XTLB_ENTRIES / 64)
	{
		uint64_t reads = t->tlb_valid[view][0][word] & ~t->tlb_global[view][0][word];
		uint64_t writes = t->tlb_valid[view][1][word] & ~t->tlb_global[view][1][word];

		FOR_BITS(n, word, reads | writes)
		{
			struct xtlb_entry *entry = &t->tlb[view][n];
			unsigned access =
			    (reads >> n % 64 & 1 ? SPACE_READ : 0) | (writes >> n % 64 & 1 ? SPACE_WRITE : 0);

			if (access == (SPACE_READ | SPACE_WRITE) &&
			    (entry->tag[0] != entry->tag[1] || entry->delta[0] != entry->delta[1])) {
				put_entry_aside(t, view, (unsigned)n, SPACE_READ, space);
				access = SPACE_WRITE;
			}
			put_entry_aside(t, view, (unsigned)n, access, space);
		}
		drop_entries(t, view, 0, word, reads);
		drop_entries(t, view, 1, word, writes);
	}
}

/* What was put aside so often that some of it may not be wanted any more is left behind, and built up anew. */
#define SPACE_LOADS 16u

static void put_aside(struct translator *t, struct xspace *space)
{
	unsigned loads = space->loads + 1;

	empty_windows(t);
	void_places(t);
	forget_space(space);
	space->loads = loads % SPACE_LOADS;
	space->watches = t->watches;
	space->aliased = t->counters.aliased;
	space->forgotten = t->targets_forgotten;
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		put_entries_aside(t, view, space);
	/* Code in global pages, and large ones, would have to be found there when its page goes. */
	for (unsigned view = 0; view < XVIEWS; view++)
		if (t->code_not_global[view]) {
			if (view % MMU_VIEWS == MMU_USER && !t->code_global[view] && !t->code_large[view])
				put_pages_aside(t, view, space);
			empty_view(t, view);
		}
	if (loads == SPACE_LOADS)
		space->entries = space->targets = 0;
}

static void put_back(struct translator *t, const struct xspace *space)
{
	for (unsigned i = 0; i < space->entries; i++) {
		const struct xspace_entry *entry = &space->entry[i];
		unsigned n = entry->index, view = entry->view;
		uint64_t bit = 1ull << n % 64, tag = entry->tag, delta = entry->delta;

		if (space->aliased != t->counters.aliased)
			delta = aliases_host(t, tag + delta) - tag;
		if ((entry->access & SPACE_READ) && !(t->tlb_valid[view][0][n / 64] & bit))
			caches_put_entry(t, view, false, n, tag, delta, false, entry->large);
		if ((entry->access & SPACE_WRITE) && !(t->tlb_valid[view][1][n / 64] & bit) &&
		    space->watches == t->watches)
			caches_put_entry(t, view, true, n, tag, delta, false, entry->large);
	}
	for (unsigned i = 0; i < space->pages; i++) {
		unsigned n = space->page[i].index, view = space->page[i].view;

		t->page_key[view][n] = space->page[i].key;
		caches_note_key(t, view, n);
		t->code_half[view][0] = t->code_half[view][1] = t->code_not_global[view] = true;
	}
	if (space->forgotten != t->targets_forgotten)
		return;
	for (unsigned i = 0; i < space->targets; i++) {
		unsigned n = space->target[i].index, view = space->target[i].view;

		t->jump[view][n] = space->target[i].jump;
		caches_note_target(t, view, n);
	}
}

static void follow_note(struct translator *t, const struct mmu_flush_note *note)
{
	switch (note->kind) {
	case MMU_FLUSH_ALL:
		t->counters.invalidate_all++;
		drop_all(t);
		break;
	case MMU_FLUSH_NONGLOBAL:
		t->counters.invalidate_nonglobal++;
		drop_nonglobal(t);
		break;
	case MMU_FLUSH_PAGE:
		t->counters.invalidate_page++;
		drop_page(t, note->linear);
		break;
	case MMU_FLUSH_SPACE:
		forget_space(&t->space[note->to]);
		break;
	case MMU_FLUSH_SWITCH:
		t->counters.switches++;
		put_aside(t, &t->space[note->from]);
		put_back(t, &t->space[note->to]);
		break;
	}
}

void caches_catch_up(struct translator *t)
{
	const struct mmu *mmu = &t->vcpu->mmu;

	if (mmu->epoch - t->epoch > MMU_FLUSH_NOTES) {
		t->counters.invalidate_all++;
		drop_all(t);
		t->epoch = mmu->epoch;
	}
	while (t->epoch != mmu->epoch) {
		const struct mmu_flush_note *note = &mmu->note[++t->epoch % MMU_FLUSH_NOTES];

		if (note->epoch == t->epoch)
			follow_note(t, note);
		else
			drop_all(t);
	}
}

void caches_destroy(struct translator *t)
{
	free(t->space);
	table_unmap(t->known, XKNOWN_NODES * sizeof(*t->known));
	t->space = NULL;
	t->known = NULL;
}

int caches_create(struct translator *t)
{
	t->space = calloc(MMU_SPACES, sizeof(*t->space));
	t->known = table_map(XKNOWN_NODES * sizeof(*t->known), false);
	if (!t->space || !t->known) {
		caches_destroy(t);
		return -ENOMEM;
	}
	t->known_used = XKNOWN_HEADS;
	t->epoch = t->vcpu->mmu.epoch;
	places_begin(t);
	memset(t->tlb_valid, 0xff, sizeof(t->tlb_valid));
	memset(t->jump_used, 0xff, sizeof(t->jump_used));
	memset(t->page_used, 0xff, sizeof(t->page_used));
	memset(t->tlb_some, 0xff, sizeof(t->tlb_some));
	memset(t->jump_some, 0xff, sizeof(t->jump_some));
	memset(t->page_some, 0xff, sizeof(t->page_some));
	drop_all(t);
	return 0;
}
