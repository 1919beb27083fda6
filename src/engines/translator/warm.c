/*
 * Blocks that turn out to be hot.
 *
 * A block that is translated for the first time counts down with each entry. When the count ends and that did not take
 * long, the block is hot, whatever its first entries looked like (translator_heat): it is translated once more, with
 * ranges, and goes on in its neighbours, which have been run often enough by then for their branches to be known. What
 * takes long counts again, a few times, then with more entries: so much is not lost to the host's other work.
 */
#include "engines/translator/translation.h"

#include <string.h>
#include <x86intrin.h>

#define COUNT_FIRST   64u /* entries, before the time is taken */
#define COUNT_ENTRIES 4096u
#define COUNT_QUICK   250u /* ticks of the TSC for an entry */
#define COUNTS        3u   /* in vain, before more are counted, and as many before it is given up */
#define COUNT_LONGER  16u  /* times as many then */
#define COUNT_LENGTH  14   /* bytes of code */

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

uint64_t translator_warm(struct translator *t, uint64_t unused)
{
	struct xsite *site = (struct xsite *)t->exit_argument;
	struct block *block = site->block;
	uint32_t now = xrange_time(__rdtsc());
	uint64_t counted = COUNT_ENTRIES * (site->misses >= COUNTS ? COUNT_LONGER : 1);

	(void)unused;
	if (in_tests(t) || (site->since && now - site->since < counted * COUNT_QUICK >> XRANGE_TIME_SHIFT)) {
		stop_counting(t, site);
		t->counters.joined += !block->joined;
		block->joined = block->hot = true;
		block->apart = 0; /* with ranges, groups may lie on two pages */
		block->scattered = 0;
		runtime_translate_again(t, block);
	} else if (++site->misses == 2 * COUNTS) {
		stop_counting(t, site);
	}
	site->count = COUNT_ENTRIES * (site->misses >= COUNTS ? COUNT_LONGER : 1);
	site->since = now ? now : 1;
	return 0;
}

/* ---- code ---- */

/* Where flags are live it is left out: few blocks. */
void emit_count_down(struct translation *tr)
{
	struct emitter *e = &tr->e;

	if (tr->block->joined || tr->block->crosses || tr->in_register || tr->t->lockstep)
		return;
	struct xsite *site = new_site(tr, &tr->item[0], 0, false);
	site->block = tr->block;
	site->count = COUNT_FIRST;
	emit_op_abs(e, false, 0x83, 5, xabs(&site->count)); /* sub dword [], 1 */
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
	emit_jump_to(e, p->resume);
}
