/*
 * The room for translations: a ring of regions, each with its part of the code arena and of the tables of links, sites
 * and x87 records. The oldest region is emptied when the newest is full, so nothing ever drops all translations at once;
 * what leads to an evicted block (links, indirect targets, the interpreter's slot) is undone with it.
 *
 *	code    | region 0 | region 1 | ... |      a block's links, sites and records are in the same region as its code
 *	links   |     0    |     1    | ... |
 */
#include <string.h>
#include <sys/mman.h>

#include "engines/translator/runtime.h"
#include "host/table_memory.h"

/* How a processor's share of --code-cache is used here, in 32nds; the decoded blocks' part is in cache.c. */
#define CODE_SHARE     6
#define LINKS_SHARE    4
#define SITES_SHARE    4
#define BLOCK_CODE     160         /* bytes; most have more */
#define REGION_CODE    (64u << 10) /* about the least that a region is worth */
#define GIVE_BACK_FROM (1u << 20)
#define NEARLY_FULL    (256u << 10) /* a huge page that lacks no more than this */

/* The cursors stand at the beginning of the region. */
static void begin(struct translator *t, unsigned n)
{
	const struct xregion *region = &t->region[n];

	t->region_now = n;
	t->arena.used = region->code;
	t->xblock_count = region->xblocks;
	t->link_count = region->links;
	t->site_count = region->sites;
	t->pointers_count = region->pointers;
	t->range_count = region->ranges;
}

size_t regions_code_size(uint64_t share)
{
	return (share / 32 * CODE_SHARE) & ~(uint64_t)4095;
}

int regions_create(struct translator *t, uint64_t share)
{
	size_t code = regions_code_size(share), start = t->arena.used;
	unsigned count = (unsigned)(code / REGION_CODE);

	t->regions = count < 2 ? 2 : count > XREGIONS_MAX ? XREGIONS_MAX : count;
	t->link_room = (uint32_t)(share / 32 * LINKS_SHARE / sizeof(*t->links));
	t->site_room = (uint32_t)(share / 32 * SITES_SHARE / sizeof(*t->sites));
	t->xblock_room = (uint32_t)(code / BLOCK_CODE);
	t->pointers_room = t->link_room / 8 + 64;
	t->range_room = t->site_room / 2;
	t->xblocks = table_map(t->xblock_room * sizeof(*t->xblocks), false);
	t->counts = table_map(t->xblock_room * sizeof(*t->counts), true);
	t->links = table_map(t->link_room * sizeof(*t->links), true);
	t->sites = table_map(t->site_room * sizeof(*t->sites), true);
	t->pointers = table_map(t->pointers_room * sizeof(*t->pointers), true);
	t->ranges = table_map(t->range_room * sizeof(*t->ranges), true);
	if (!t->xblocks || !t->counts || !t->links || !t->sites || !t->pointers || !t->ranges)
		return -1;
	for (unsigned n = 0; n < t->regions; n++)
		t->region[n] = (struct xregion){
		    .code = (start + n * (code / t->regions) + 63) & ~(size_t)63,
		    .code_end = start + (n + 1) * (code / t->regions),
		    .xblocks = n * (t->xblock_room / t->regions),
		    .xblocks_end = (n + 1) * (t->xblock_room / t->regions),
		    .links = n * (t->link_room / t->regions),
		    .links_end = (n + 1) * (t->link_room / t->regions),
		    .sites = n * (t->site_room / t->regions),
		    .sites_end = (n + 1) * (t->site_room / t->regions),
		    .pointers = n * (t->pointers_room / t->regions),
		    .pointers_end = (n + 1) * (t->pointers_room / t->regions),
		    .ranges = n * (t->range_room / t->regions),
		    .ranges_end = (n + 1) * (t->range_room / t->regions),
		};
	begin(t, 0);
	return 0;
}

void regions_destroy(struct translator *t)
{
	table_unmap(t->xblocks, t->xblock_room * sizeof(*t->xblocks));
	table_unmap(t->counts, t->xblock_room * sizeof(*t->counts));
	table_unmap(t->links, t->link_room * sizeof(*t->links));
	table_unmap(t->sites, t->site_room * sizeof(*t->sites));
	table_unmap(t->pointers, t->pointers_room * sizeof(*t->pointers));
	table_unmap(t->ranges, t->range_room * sizeof(*t->ranges));
}

struct translator_cursors cursors_of(const struct translator *t)
{
	return (struct translator_cursors){.used = t->arena.used,
	                                   .xblocks = t->xblock_count,
	                                   .links = t->link_count,
	                                   .sites = t->site_count,
	                                   .pointers = t->pointers_count,
	                                   .ranges = t->range_count};
}

void cursors_set(struct translator *t, const struct translator_cursors *cursors)
{
	t->arena.used = cursors->used;
	t->xblock_count = cursors->xblocks;
	t->link_count = cursors->links;
	t->site_count = cursors->sites;
	t->pointers_count = cursors->pointers;
	t->range_count = cursors->ranges;
}

bool regions_empty(const struct translator *t)
{
	return t->arena.used == t->region[t->region_now].code;
}

void regions_add(struct translator *t, struct xblock *xblock)
{
	xblock->next = t->region[t->region_now].blocks;
	t->region[t->region_now].blocks = xblock;
	code_arena_settle(&t->arena, t->arena.used + NEARLY_FULL);
}

struct xblock *regions_new_block(struct translator *t)
{
	return t->xblock_count < t->region[t->region_now].xblocks_end ? &t->xblocks[t->xblock_count++] : NULL;
}

void regions_flush(struct translator *t)
{
	ranges_void(t); /* before they are given back */
	apart_forget(t);
	bool used = t->region_now > 0 || t->arena.used - t->region[0].code > GIVE_BACK_FROM;

	for (unsigned n = 0; n < t->regions; n++) {
		t->region[n].blocks = NULL;
		t->region[n].sites_used = 0;
	}
	if (used) { /* the host gets its memory back */
		code_arena_give_back(&t->arena, t->region[0].code);
		madvise(t->xblocks, t->xblock_room * sizeof(*t->xblocks), MADV_DONTNEED);
		madvise(t->counts, t->xblock_room * sizeof(*t->counts), MADV_DONTNEED);
		madvise(t->links, t->link_room * sizeof(*t->links), MADV_DONTNEED);
		madvise(t->sites, t->site_room * sizeof(*t->sites), MADV_DONTNEED);
		madvise(t->pointers, t->pointers_room * sizeof(*t->pointers), MADV_DONTNEED);
		madvise(t->ranges, t->range_room * sizeof(*t->ranges), MADV_DONTNEED);
	}
	begin(t, 0);
}

void regions_advance(struct translator *t)
{
	unsigned next = (t->region_now + 1) % t->regions;
	struct xregion *region = &t->region[next];

	t->region[t->region_now].sites_used = t->site_count - t->region[t->region_now].sites;
	t->region[t->region_now].links_used = t->link_count - t->region[t->region_now].links;
	for (struct xblock *xblock = region->blocks; xblock; xblock = xblock->next) {
		t->counters.evicted++;
		if (xblock->block)
			runtime_forget_block(t, xblock, true);
	}
	for (uint32_t n = region->links; n < region->links + region->links_used; n++)
		runtime_undo_link(t, &t->links[n]);
	returns_forget_all(t);
	region->blocks = NULL;
	caches_forget_spaces(t);
	ranges_void(t);
	apart_forget(t);
	region->sites_used = region->links_used = 0;
	t->counters.advances++;
	begin(t, next);
}

const struct xsite *regions_site(const struct translator *t, uint32_t host)
{
	unsigned n = 0;

	while (n < t->regions && !(host >= t->region[n].code && host < t->region[n].code_end))
		n++;
	if (n == t->regions)
		return NULL;
	uint32_t low = t->region[n].sites;
	uint32_t high = n == t->region_now ? t->site_count : low + t->region[n].sites_used;
	if (low == high)
		return NULL;
	/* The last site at or below the instruction: sites are in the order of their code. */
	while (high - low > 1) {
		uint32_t middle = (low + high) / 2;

		if (t->sites[middle].host <= host)
			low = middle;
		else
			high = middle;
	}
	return t->sites[low].host == host ? &t->sites[low] : NULL;
}
