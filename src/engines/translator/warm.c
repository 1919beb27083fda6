/*
 * Blocks that turn out to be warm, and hot.
 *
 * A block that is translated for the first time counts down with each entry. When the count ends and that did not take too
 * long, the block is warm: it is translated once more, and goes on in its neighbours and in what it calls, which have been
 * run often enough by then for their branches to be known. If it took very little time it is hot, whatever its first
 * entries looked like (translator_heat): its accesses get ranges, too. What takes long counts again, a few times: so much is
 * not lost to the host's other work. A loop that is warm counts on, with more entries, as it may become hot. Counting is not
 * for nothing: what is entered now and then has its count in no cache.
 */
#include "engines/translator/translation.h"

#include <string.h>
#include <x86intrin.h>

#define COUNT_FIRST   64u /* entries, before the time is taken */
#define COUNT_ENTRIES 4096u
#define COUNT_QUICK   250u   /* ticks of the TSC for an entry: hot */
#define COUNT_WARM    30000u /* and warm: a translation costs what some thousand entries gain */
#define COUNTS        3u     /* in vain, before it is given up */
#define COUNT_LONGER  16u    /* times as many entries of what is warm */
#define COUNT_LENGTH  14     /* bytes of code */

/* ---- at run time ---- */

static bool in_tests(const struct translator *t)
{
	return t->heat < XHEAT;
}

/* The count is taken out: NOPs of 8 and 6 bytes. */
static void stop_counting(struct translator *t, const struct xsite *site)
{
	static const uint8_t nops[COUNT_LENGTH] = {0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x66, 0x0f, 0x1f, 0x44, 0, 0};

	memcpy(t->arena.write + site->host, nops, sizeof(nops));
	t->patched = true;
}

/* The entries that are counted. */
static uint32_t count_of(const struct translator *t, const struct block *block)
{
	if (in_tests(t))
		return COUNT_FIRST;
	return COUNT_ENTRIES * (block->joined ? COUNT_LONGER : 1);
}

/* Did the count end within `each` ticks for an entry? */
static bool within(const struct xsite *site, uint32_t now, uint64_t counted, uint64_t each)
{
	return site->since && now - site->since < counted * each >> XRANGE_TIME_SHIFT;
}

uint32_t *warm_count(const struct translator *t, const struct xblock *xblock)
{
	return &t->counts[xblock - t->xblocks];
}

void warm_begin(struct translator *t, const struct xblock *xblock)
{
	*warm_count(t, xblock) = COUNT_FIRST;
}

uint64_t translator_warm(struct translator *t, uint64_t unused)
{
	struct xsite *site = (struct xsite *)t->exit_argument;
	struct block *block = site->block;
	uint32_t now = xrange_time(__rdtsc()), counted = count_of(t, block);
	/* In tests some are warm first. */
	bool quick = in_tests(t) ? block->joined || (block->physical & 16) : within(site, now, counted, COUNT_QUICK);

	(void)unused;
	if (quick || (!block->joined && (in_tests(t) || within(site, now, counted, COUNT_WARM)))) {
		stop_counting(t, site);
		t->counters.joined += !block->joined;
		block->joined = true;
		if (quick) {
			block->hot = true;
			block->apart = 0; /* with ranges, groups may lie on two pages */
			block->scattered = 0;
		}
		runtime_translate_again(t, block);
	} else if (++site->misses > COUNTS) { /* the first is COUNT_FIRST */
		stop_counting(t, site);
	}
	site->since = now ? now : 1;
	return count_of(t, block);
}

/* ---- code ---- */

/* Where flags are live it is left out: few blocks. */
void emit_count_down(struct translation *tr)
{
	struct emitter *e = &tr->e;

	if ((tr->block->joined && (tr->block->hot || !is_loop(tr))) || tr->block->crosses || tr->in_register ||
	    tr->t->lockstep)
		return;
	struct xsite *site = new_site(tr, &tr->item[0], 0, false);
	site->block = tr->block;
	warm_begin(tr->t, tr->xblock);
	emit_op_abs(e, false, 0x83, 5, xabs(warm_count(tr->t, tr->xblock))); /* sub dword [], 1 */
	emit_byte(e, 1);
	struct pending *p = pend(tr, PENDING_WARM, emit_jump_if(e, CC_E));
	p->site = site;
	p->resume = e->at;
}

/* ---- out of line ---- */

void emit_pending_warm(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	emit_store_address(e, xabs(&tr->t->exit_argument), xabs(p->site));
	emit_call_to(e, tr->t->warm);
	emit_store32(e, S1, xabs(warm_count(tr->t, tr->xblock)));
	emit_jump_to(e, p->resume);
}
