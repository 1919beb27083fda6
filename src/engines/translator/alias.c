/*
 * Pages that lie side by side in linear addresses, but not in guest RAM, side by side in the host a second time.
 *
 * A range (range.c) can only grow over pages that one difference leads to the host, and a guest's pages of 4 KiB rarely
 * lie so. Where an access keeps moving among neighbours, those that are in the TLB are mapped once more, at aliases whose
 * order is that of their linear addresses, and their TLB entries lead there from now on:
 *
 *	linear   | 4bf | 4c0 | 4c1 |          2 MiB of linear addresses have a segment of 2 MiB here, and each page its
 *	aliases  | 4bf | 4c0 | 4c1 |          place there, which stays what it is until all aliases are dropped
 *	RAM      | 387 | 396 | 388 |
 *
 * A page has one alias at most, and all TLB entries that lead to it lead to the alias, whatever their linear address: two
 * host addresses are the same byte only if they are equal, as string instructions want to know. A page whose place is
 * another one's (of another process, say) does without. Aliases are dropped only where no translated code runs, whose
 * differences may lead to them.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "engines/translator/runtime.h"
#include "machine/machine.h"

#define SEGMENTS      64u
#define SEGMENT_SHIFT 21
#define SEGMENT_SIZE  (1ull << SEGMENT_SHIFT)
#define SEGMENT_PAGES (SEGMENT_SIZE / MEMORY_PAGE_SIZE)
#define PAGES_MAX     16384u /* of all processors: each may be a mapping of the host's, which has a limit */
#define NEIGHBOURS    64u    /* mapped at a time, upwards and downwards */
#define NONE          UINT64_MAX
#define DROP_TICKS    100000000u /* at least between two times that all are dropped */

struct aliases {
	uint8_t *base;
	uint64_t *of_page; /* by number of a page of RAM, as offset in the memfd; 0: none */
	unsigned pages, pages_max;
	bool full;        /* to be dropped when that is possible */
	uint64_t dropped; /* when, by the TSC */
	struct {
		uint64_t linear; /* >> SEGMENT_SHIFT, or NONE */
		uint64_t space;  /* CR3's page table */
		uint64_t used[SEGMENT_PAGES / 64];
	} segment[SEGMENTS];
};

static size_t table_size(const struct translator *t)
{
	return t->vcpu->memory->size / MEMORY_PAGE_SIZE * sizeof(uint64_t);
}

static void forget_all(struct translator *t)
{
	struct aliases *a = t->aliases;

	t->alias_of_page = NULL;
	a->pages = 0;
	a->full = false;
	for (unsigned n = 0; n < SEGMENTS; n++) {
		a->segment[n].linear = NONE;
		memset(a->segment[n].used, 0, sizeof(a->segment[n].used));
	}
}

static uint8_t *reserve(void *at)
{
	uint8_t *base = mmap(at, SEGMENTS * SEGMENT_SIZE, PROT_NONE,
	                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), -1, 0);

	return base == MAP_FAILED ? NULL : base;
}

int aliases_create(struct translator *t)
{
	struct machine *machine = t->vcpu->machine;
	struct aliases *a = t->aliases = calloc(1, sizeof(*a));

	if (!a)
		return -1;
	a->pages_max = PAGES_MAX / (machine ? machine->options.cpus : 1);
	forget_all(t);
	a->base = reserve(NULL);
	a->of_page =
	    mmap(NULL, table_size(t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (a->of_page == MAP_FAILED)
		a->of_page = NULL;
	return a->base && a->of_page ? 0 : -1;
}

void aliases_destroy(struct translator *t)
{
	struct aliases *a = t->aliases;

	if (a && a->base)
		munmap(a->base, SEGMENTS * SEGMENT_SIZE);
	if (a && a->of_page)
		munmap(a->of_page, table_size(t));
	free(a);
	t->aliases = NULL;
}

void aliases_make_room(struct translator *t)
{
	struct aliases *a = t->aliases;

	if (!a->full || !reserve(a->base))
		return;
	t->counters.alias_drops++;
	a->dropped = __rdtsc();
	caches_forget_spaces(t);
	caches_empty_tlb(t);
	madvise(a->of_page, table_size(t), MADV_DONTNEED);
	forget_all(t);
}

/* Maps the page of RAM at `offset` for `linear`. False: not possible. Neighbours have neighbouring segments. */
static bool make(struct translator *t, uint64_t linear, uint64_t offset)
{
	struct aliases *a = t->aliases;
	uint64_t space = t->vcpu->state.cr3 >> 12 & 0xffffffffff;
	unsigned n = ((linear >> SEGMENT_SHIFT) + space * 7) % SEGMENTS;
	unsigned page = linear / MEMORY_PAGE_SIZE % SEGMENT_PAGES;
	uint8_t *at = a->base + n * SEGMENT_SIZE + page * MEMORY_PAGE_SIZE;

	if (a->segment[n].linear == NONE) {
		a->segment[n].linear = linear >> SEGMENT_SHIFT;
		a->segment[n].space = space;
	}
	if (a->segment[n].linear != linear >> SEGMENT_SHIFT || a->segment[n].space != space ||
	    (a->segment[n].used[page / 64] >> page % 64 & 1) || a->pages == a->pages_max) {
		a->full = __rdtsc() - a->dropped > DROP_TICKS;
		return false;
	}
	if (mmap(at, MEMORY_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
	         t->vcpu->memory->fd, (off_t)offset) == MAP_FAILED)
		return false;
	a->segment[n].used[page / 64] |= 1ull << page % 64;
	a->of_page[offset / MEMORY_PAGE_SIZE] = (uint64_t)(uintptr_t)at;
	a->pages++;
	t->alias_of_page = a->of_page;
	return true;
}

/* The page of a TLB entry gets an alias, if it has none. False: it is not in the TLB, or cannot; `made`: it did now. */
static bool make_for(struct translator *t, uint64_t page, bool write, bool *made)
{
	const struct xtlb_entry *entry = runtime_entered(t, page, write);
	unsigned n = page / MEMORY_PAGE_SIZE & (XTLB_ENTRIES - 1);

	if (!entry || (t->tlb_large[t->vcpu->mmu.view][write][n / 64] >> n % 64 & 1))
		return false;
	uint64_t offset = aliases_offset(t->vcpu->memory, page + entry->delta[write]);
	if (offset == ALIASES_NONE || t->aliases->of_page[offset / MEMORY_PAGE_SIZE])
		return true;
	if (!make(t, page, offset))
		return false;
	*made = true;
	return true;
}

bool aliases_make(struct translator *t, uint64_t page, bool write)
{
	bool made = false;

	if (t->lockstep || !make_for(t, page, write, &made))
		return false;
	for (unsigned n = 1; n <= NEIGHBOURS && make_for(t, page + n * MEMORY_PAGE_SIZE, write, &made); n++)
		;
	for (unsigned n = 1; n <= NEIGHBOURS && make_for(t, page - n * MEMORY_PAGE_SIZE, write, &made); n++)
		;
	if (made)
		caches_follow_aliases(t);
	return made;
}
