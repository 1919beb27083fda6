/*
 * Accesses in hot loops: each remembers where it was last.
 *
 * A range is a run of pages that one difference leads from linear to host addresses: it begins as the page of an access,
 * and grows while the access goes on to pages beside it that lie side by side in the host as well. An access that lies in
 * its own range needs no index into the TLB, whose four instructions are what the next load waits for:
 *
 *	lea r9, [rbx+rcx*4]; sub r9, [start]; cmp r9, [length]; jae elsewhere; add r9, [host]; ... [r9]
 *	lea r9, [rbx+8];     sub r9, [start]; cmp r9, [length]; jae elsewhere; mov r9, [delta]; ... [rbx+r9+8]
 *
 * `length` is that of the places where an access can begin, so crossing from page to page is no miss. A range is filled
 * from the TLB and void with the TLB's windows (caches.c); those that are not void are in a list. An access that leaves
 * its range again and again is better off without one: its block is translated again.
 *
 * A block is hot, and gets ranges, if its first entries followed one another quickly (translator_heat).
 */
#include "engines/translator/translation.h"

#include <stddef.h>
#include <x86intrin.h>

#define RUN_MAX 512
#define STRIKES 4 /* attempts to make a range long enough, one after the other */
#define NOWHERE 1 /* the beginning and end of a void range: no page's address, and none beside one */

/* ---- at run time ---- */

void ranges_void(struct translator *t)
{
	struct xrange *next;

	for (struct xrange *range = t->ranges_filled; range; range = next) {
		next = (struct xrange *)(uintptr_t)range->next;
		range->length = 0;
		range->start = range->end = NOWHERE;
	}
	t->ranges_filled = NULL;
}

struct xrun find_run(const struct translator *t, uint64_t page, bool write)
{
	const struct xtlb_entry *entry = runtime_entered(t, page, write);
	uint64_t pages = 1;

	if (!entry)
		return (struct xrun){0};
	const uint64_t delta = entry->delta[write];
	while (pages < RUN_MAX && (entry = runtime_entered(t, page - MEMORY_PAGE_SIZE, write)) &&
	       entry->delta[write] == delta) {
		page -= MEMORY_PAGE_SIZE;
		pages++;
	}
	while (pages < RUN_MAX && (entry = runtime_entered(t, page + pages * MEMORY_PAGE_SIZE, write)) &&
	       entry->delta[write] == delta)
		pages++;
	return (struct xrun){.page = page, .pages = pages, .delta = delta};
}

void range_set_run(struct translator *t, struct xrange *range, uint64_t page)
{
	struct xrun run = find_run(t, page, range->write);

	if (run.pages)
		range_set(t, range, run.page, run.pages, run.delta);
}

/*
 * Called by translated code when a range was begun anew XRANGE_CREDIT times: it is made as long as it can be. Where they
 * came too quickly, aliases are made for it, and if that does not help, it is given up. Always 0.
 */
uint64_t translator_range_spent(struct translator *t, uint64_t address)
{
	struct xrange *range = (struct xrange *)(uintptr_t)address;
	uint32_t now = xrange_time(__rdtsc());
	uint64_t page = range->start;

	range->strikes++;
	if (now - range->since > (uint64_t)XRANGE_CREDIT * XRANGE_TICKS >> XRANGE_TIME_SHIFT) {
		range->strikes = 0;
		range_set_run(t, range, page);
	} else if (range->strikes <= STRIKES) {
		if (aliases_make(t, page, range->write)) {
			t->counters.aliased++;
		}
		range_set_run(t, range, page);
	} else {
		t->counters.scattered++;
		range->block->scattered |= 1ull << range->item;
		runtime_translate_again(t, range->block);
	}
	range->since = now;
	range->credit = XRANGE_CREDIT;
	return 0;
}

void range_begin(struct xrange *range, uint16_t first, uint8_t item, bool write, uint32_t now, struct block *block)
{
	*range = (struct xrange){.start = NOWHERE,
	                         .end = NOWHERE,
	                         .first = first,
	                         .item = item & 63,
	                         .write = write,
	                         .credit = XRANGE_CREDIT,
	                         .since = now,
	                         .block = block};
}

/* ---- code ---- */

bool range_possible(const struct translation *tr, unsigned item)
{
	/* A loop whose groups were on two pages again and again goes through pages that do not lie side by side. */
	return tr->block->hot && !(tr->block->scattered >> (item & 63) & 1) && !(tr->block->apart && is_loop(tr));
}

struct xrange *new_range(struct translation *tr, const struct item *item, unsigned size, bool write)
{
	struct translator *t = tr->t;
	unsigned n = (unsigned)(item - tr->item);

	if (!range_possible(tr, n) || t->range_count == t->region[t->region_now].ranges_end)
		return NULL;
	struct xrange *range = &t->ranges[t->range_count++];
	range_begin(range, (uint16_t)(MEMORY_PAGE_SIZE + 1 - size), n & 63, write, xrange_time(__rdtsc()), tr->block);
	return range;
}

/* Linear address S1 becomes the offset in the range, or the jump returned is taken. */
static uint8_t *emit_compare(struct emitter *e, const struct xrange *range)
{
	emit_op_abs(e, true, 0x2b, S1, xabs(&range->start));  /* sub */
	emit_op_abs(e, true, 0x3b, S1, xabs(&range->length)); /* cmp */
	return emit_jump_if(e, CC_AE);
}

void range_check(struct translation *tr, const struct item *item, struct xrange *range, unsigned size, bool write)
{
	struct pending *p = pend(tr, PENDING_RANGE, emit_compare(&tr->e, range));

	emit_op_abs(&tr->e, true, 0x03, S1, xabs(&range->host)); /* add */
	tr->in_register = p->in_register = false;
	p->resume = tr->e.at;
	p->item = item;
	p->site = new_site(tr, item, size, write);
	p->site->range = xabs(range);
	p->range = range;
}

struct pending *range_group_check(struct translation *tr, struct xrange *range, unsigned reg, int32_t lowest)
{
	if (lowest)
		emit_lea(&tr->e, S1, reg, lowest);
	else
		emit_move(&tr->e, S1, reg);
	struct pending *p = pend(tr, PENDING_RANGE_GROUP, emit_compare(&tr->e, range));
	emit_load(&tr->e, S1, xabs(&range->delta));
	p->range = range;
	return p;
}

/* ---- out of line ---- */

/* The range of the site that was pushed before the call. */
static void emit_load_range(struct emitter *e, unsigned reg)
{
	emit_op_base(e, true, 0x8b, reg, RSP, 8);
	emit_op_base(e, false, 0x8b, reg, reg, offsetof(struct xsite, range));
}

/*
 * Called with the offset in the range of the site on the stack, which S1 lies outside of. If the TLB has the page, the range
 * goes there; S1 is the host address, or a group's difference, then. Else as what `missed` is called with. Destroys S2 and flags.
 */
static void emit_miss(struct emitter *e, struct translator *t, unsigned view, bool write, bool group,
                      const uint8_t *missed)
{
	uint32_t tag = xabs(&t->tlb[view][0].tag[write]);

	emit_load_range(e, S2);
	emit_op_base(e, true, 0x03, S1, S2, offsetof(struct xrange, start)); /* add: the linear address again */
	emit_store(e, S1, xabs(&t->range_linear));
	emit_store(e, S2, xabs(&t->exit_argument));
	emit_tlb_offset(e, S2, S1);
	emit_op_indexed(e, true, 0x33, S1, S2, tag);
	emit_store(e, RAX, xabs(&t->range_saved));
	emit_load(e, RAX, xabs(&t->exit_argument));
	emit_load_short(e, 0xb7, RAX, RAX, offsetof(struct xrange, first));
	emit_op_reg(e, true, 0x39, RAX, S1); /* cmp s1, rax */
	emit_load(e, RAX, xabs(&t->range_saved));
	uint8_t *miss = emit_jump_if(e, CC_AE);
	emit_op_indexed(e, true, 0x8b, S1, S2, tag);
	emit_op_indexed(e, true, 0x8b, S2, S2, xabs(&t->tlb[view][0].delta[write]));
	emit_call_to(e, t->range_move);
	emit_load_range(e, S2);
	emit_op_base(e, true, 0x8b, S1, S2, offsetof(struct xrange, delta));
	if (!group)
		emit_op_abs(e, true, 0x03, S1, xabs(&t->range_linear));
	emit_return_site(e);
	emit_fix(e, miss);
	emit_jump_to(e, missed);
}

void range_emit_misses(struct emitter *e, struct translator *t)
{
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		for (unsigned write = 0; write < 2; write++) {
			t->range_miss[view][write] = e->at;
			emit_miss(e, t, view, write, false, t->slow_xored[view][write]);
			t->range_group_miss[view][write] = e->at;
			emit_miss(e, t, view, write, true, t->probe_xored[view][write]);
		}
}

static void emit_add_field(struct emitter *e, size_t field, int32_t value)
{
	emit_op_base(e, true, 0x81, 0, RAX, (int32_t)field);
	emit_u32(e, (uint32_t)value);
}

/* Called with a page's linear address in S1, its difference in S2, and exit_argument the range. Destroys S1, S2, flags. */
void range_emit_move(struct emitter *e, struct translator *t)
{
	uint8_t *grown, *reset, *down, *listed, *spent;

	t->range_move = e->at;
	emit_store(e, RAX, xabs(&t->range_saved));
	emit_load(e, RAX, xabs(&t->exit_argument));
	emit_op_base(e, true, 0x3b, S2, RAX, offsetof(struct xrange, delta)); /* cmp */
	reset = emit_jump_if(e, CC_NE);
	emit_op_base(e, true, 0x3b, S1, RAX, offsetof(struct xrange, end));
	down = emit_jump_if(e, CC_NE);
	emit_add_field(e, offsetof(struct xrange, end), MEMORY_PAGE_SIZE);
	emit_add_field(e, offsetof(struct xrange, length), MEMORY_PAGE_SIZE);
	grown = e->at;
	emit_load(e, RAX, xabs(&t->range_saved));
	emit_byte(e, 0xc3);
	emit_fix(e, down); /* if it is none, all is set below */
	emit_add_field(e, offsetof(struct xrange, start), -(int32_t)MEMORY_PAGE_SIZE);
	emit_add_field(e, offsetof(struct xrange, host), -(int32_t)MEMORY_PAGE_SIZE);
	emit_op_base(e, true, 0x3b, S1, RAX, offsetof(struct xrange, start));
	uint8_t *elsewhere = emit_jump_if(e, CC_NE);
	emit_add_field(e, offsetof(struct xrange, length), MEMORY_PAGE_SIZE);
	emit_jump_to(e, grown);
	emit_fix(e, reset);
	emit_fix(e, elsewhere);
	emit_op_base(e, true, 0x89, S1, RAX, offsetof(struct xrange, start)); /* mov */
	emit_op_base(e, true, 0x89, S2, RAX, offsetof(struct xrange, delta));
	emit_op_reg(e, true, 0x01, S1, S2); /* add */
	emit_op_base(e, true, 0x89, S2, RAX, offsetof(struct xrange, host));
	emit_lea(e, S1, S1, MEMORY_PAGE_SIZE);
	emit_op_base(e, true, 0x89, S1, RAX, offsetof(struct xrange, end));
	emit_op_base(e, false, 0x8b, S1, RAX, offsetof(struct xrange, first)); /* and `item` */
	emit_group1(e, false, 4, S1, UINT16_MAX);
	emit_op_base(e, true, 0x81, 7, RAX, offsetof(struct xrange, length)); /* cmp: void ones are not in the list */
	emit_u32(e, 0);
	listed = emit_jump_if(e, CC_NE);
	emit_load32(e, S2, xabs(&t->ranges_filled));
	emit_op_base(e, false, 0x89, S2, RAX, offsetof(struct xrange, next));
	emit_store(e, RAX, xabs(&t->ranges_filled));
	emit_fix(e, listed);
	emit_op_base(e, true, 0x89, S1, RAX, offsetof(struct xrange, length));
	emit_op_base(e, false, 0x81, 5, RAX, offsetof(struct xrange, credit)); /* sub */
	emit_u32(e, 1);
	spent = emit_jump_if(e, CC_E);
	emit_jump_to(e, grown);
	emit_fix(e, spent);
	emit_move(e, S1, RAX);
	emit_load(e, RAX, xabs(&t->range_saved));
}
