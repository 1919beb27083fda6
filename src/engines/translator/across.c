/*
 * Translations with parts in other pages than the one that they begin in: what was a CALL, and what comes behind its RET
 * (calls.c). They are good while all these pages mean what they meant:
 *
 *	the first	as with other blocks: links and targets of indirect transfers are undone
 *	others, mapped otherwise	where the translation is entered it compares their keys (translator.h, page_key)
 *	others, written	translations are found by them in `across`, and what leads to them is undone
 *
 * User code alone: it cannot change what its addresses mean and go on.
 */
#include "engines/translator/translation.h"
#include "host/table_memory.h"
#include "memory/memory.h"

#define MISSES 16 /* of the look where one is entered */

/* ---- at run time ---- */

int across_create(struct translator *t)
{
	t->across_room = table_map(XACROSS_MAX * sizeof(*t->across_room), true);
	return t->across_room ? 0 : -1;
}

void across_destroy(struct translator *t)
{
	if (t->across_room)
		table_unmap(t->across_room, XACROSS_MAX * sizeof(*t->across_room));
}

void across_flush(struct translator *t)
{
	for (unsigned n = 0; n < XCROSS_HASH; n++)
		t->across[n] = NULL;
	t->across_free = NULL;
	t->across_used = 0;
}

struct xacross *across_new(struct translator *t)
{
	struct xacross *across = t->across_free;

	if (across)
		t->across_free = across->next;
	else if (t->across_used < XACROSS_MAX)
		across = &t->across_room[t->across_used++];
	if (across) { /* it may still be among those that are known for an address */
		across->from = APART_NONE;
		across->wait = across->patience = APART_PATIENCE;
	}
	return across;
}

void across_free(struct translator *t, struct xacross *across)
{
	if (!across)
		return;
	across->next = t->across_free;
	t->across_free = across;
}

static struct xacross_page **chain_of(struct translator *t, uint64_t page)
{
	return &t->across[page % XCROSS_HASH];
}

void across_begin(const struct translation *tr, struct xblock *xblock)
{
	struct xacross *across = tr->across_room;

	xblock->across = across;
	if (!across)
		return;
	across->xblock = xblock;
	across->count = tr->across_count;
	for (unsigned n = 1; n < tr->parts; n++) {
		across->more[n - 1] = tr->part[n].block;
		across->more_base[n - 1] = tr->part[n].base;
	}
	for (unsigned n = 0; n < across->count; n++)
		across->page[n] = (struct xacross_page){
		    .distance = (int64_t)(tr->across[n].page - (tr->rip & ~(uint64_t)(MEMORY_PAGE_SIZE - 1))),
		    .page = tr->across[n].physical >> MEMORY_PAGE_SHIFT,
		    .now = tr->across[n].block->generation_now,
		    .generation = tr->across[n].block->generation,
		    .of = across};
}

void across_add(struct translator *t, struct xblock *xblock)
{
	struct xacross *across = xblock->across;

	for (unsigned n = 0; across && n < across->count; n++) {
		struct xacross_page **chain = chain_of(t, across->page[n].page);

		across->page[n].next_in_chain = *chain;
		*chain = &across->page[n];
	}
}

void across_remove(struct translator *t, struct xblock *xblock)
{
	struct xacross *across = xblock->across;

	for (unsigned n = 0; across && n < across->count; n++) {
		struct xacross_page **at = chain_of(t, across->page[n].page);

		while (*at && *at != &across->page[n])
			at = &(*at)->next_in_chain;
		if (*at)
			*at = across->page[n].next_in_chain;
	}
	across_free(t, across);
	if (across)
		xblock->more_count = 0;
	xblock->across = NULL;
}

void across_written(struct translator *t, uint64_t page, void (*unlink)(struct translator *, struct xblock *))
{
	for (unsigned n = 0; n < XCROSS_HASH; n++) {
		if (page != UINT64_MAX && n != page % XCROSS_HASH)
			continue;
		for (struct xacross_page *p = t->across[n]; p; p = p->next_in_chain)
			if (page == UINT64_MAX || p->page == page)
				unlink(t, p->of->xblock);
	}
}

struct xblock *across_find(const struct translator *t, uint64_t page, const struct block *block,
                           bool (*goes_on_in)(const struct xblock *, const struct block *))
{
	for (struct xacross_page *p = t->across[page % XCROSS_HASH]; p; p = p->next_in_chain)
		if (p->page == page && goes_on_in(p->of->xblock, block))
			return p->of->xblock;
	return NULL;
}

bool across_stale(const struct xblock *xblock)
{
	const struct xacross *across = xblock->across;

	for (unsigned n = 0; across && n < across->count; n++)
		if (atomic_load(across->page[n].now) != across->page[n].generation)
			return true;
	return false;
}

void across_strayed(struct translator *t, struct block *block)
{
	t->counters.strayed++;
	if (block->strayed < STRAYED_MAX)
		block->strayed++;
	runtime_translate_again(t, block);
}

uint64_t translator_across(struct translator *t, uint64_t unused)
{
	struct xsite *site = (struct xsite *)t->exit_argument;
	struct xacross *across = (struct xacross *)(uintptr_t)site->across;
	struct block *block = across->xblock->block;
	bool known = !site->floating, same = true;

	(void)unused;
	for (unsigned n = 0; n < across->count; n++) {
		known &= across_known(t, across->xblock, &across->page[n]);
		same &= across_look(t, across->xblock, &across->page[n]);
	}
	across->wait = across->patience;
	if (site->floating && same)
		apart_known(t, across, t->code_page);
	/* If it was not the pages it is a register: where that leads differs. */
	if ((known || !same) && ++site->misses == MISSES) {
		if (known)
			block->strayed = STRAYED_MAX;
		across_strayed(t, block);
	}
	return 0;
}
