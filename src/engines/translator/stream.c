/*
 * Accesses of loops that walk through memory.
 *
 * In a block that jumps back to itself, a register that only a constant is added to (or nothing) moves one way. The
 * check of an access through it need not look into the TLB each time: a stream remembers the difference of host and
 * linear addresses for the page that it is on, and how far it may go there. One comparison, until the page ends:
 *
 *	cmp rsi, [above]; jae next page; mov r9, [delta]; ... [rsi + r9 + disp]
 *	lea r9, [rsi + rdx*8]; cmp r9, [above]; jae next page; add r9, [delta]; ... [r9 + disp]      with an index
 *
 * Streams belong to the loop that runs: void when a block is entered other than by its own jump back, and with the TLB's
 * windows (caches.c). Walking upwards what counts is `above`, and 0 is void; downwards `below`, and all ones. A limit
 * that a step could leap over by wrapping around at 2^64 is not set.
 */
#include "engines/translator/translation.h"

#define STRIDE_MAX 4096

/* ---- analysis ---- */

/* Is this a loop, with or without ways out of it, that nothing needs to be told at its head? */
bool is_loop(const struct translation *tr)
{
	const struct item *last = &tr->item[tr->count - 1];

	if (last->kind != KIND_JCC || branch_target(tr, last) != tr->rip || tr->item[0].live_before)
		return false;
	for (unsigned n = 0; n + 1 < tr->count; n++)
		if (tr->item[n].kind != KIND_GENERIC && tr->item[n].kind != KIND_LEA && tr->item[n].kind != KIND_NOP &&
		    tr->item[n].kind != KIND_PREFETCH && !tr->item[n].on)
			return false;
	return true;
}

uint8_t new_stream(struct translation *tr, int64_t stride)
{
	if (tr->stream_count == XSTREAMS || stride > STRIDE_MAX || stride < -STRIDE_MAX)
		return NO_STREAM;
	tr->stream_falls[tr->stream_count] = stride < 0;
	return (uint8_t)tr->stream_count++;
}

/* ---- code ---- */

static void emit_void(struct translation *tr, unsigned n)
{
	struct xstream *s = &tr->t->stream[n];

	if (tr->stream_falls[n])
		emit_store_imm(&tr->e, true, xabs(&s->below), -1);
	else
		emit_store_imm(&tr->e, true, xabs(&s->above), 0);
}

void emit_void_streams(struct translation *tr)
{
	for (unsigned n = 0; n < tr->stream_count; n++)
		emit_void(tr, n);
}

/* Leaves to out of line if `reg` is beyond the limit. */
static uint8_t *emit_compare(struct translation *tr, unsigned n, unsigned reg)
{
	struct xstream *s = &tr->t->stream[n];
	bool falls = tr->stream_falls[n];

	emit_op_abs(&tr->e, true, 0x3b, reg, xabs(falls ? &s->below : &s->above)); /* cmp */
	return emit_jump_if(&tr->e, falls ? CC_BE : CC_AE);
}

struct pending *stream_check(struct translation *tr, uint8_t n, unsigned reg)
{
	struct pending *p = pend(tr, PENDING_STREAM, emit_compare(tr, n, reg));

	emit_load(&tr->e, S1, xabs(&tr->t->stream[n].delta));
	p->stream = n;
	p->reg = (uint8_t)reg;
	return p;
}

void stream_reload(struct translation *tr, uint8_t n)
{
	emit_load(&tr->e, S1, xabs(&tr->t->stream[n].delta));
}

/* Base and index without displacement, into S1. */
static void emit_sum(struct translation *tr, const ZydisDecodedOperand *o)
{
	unsigned base = o->mem.base == ZYDIS_REGISTER_NONE
	                    ? NO_REGISTER
	                    : value_of(tr, (unsigned)ZydisRegisterGetId(o->mem.base), S1);
	unsigned index = o->mem.index == ZYDIS_REGISTER_NONE
	                     ? NO_REGISTER
	                     : value_of(tr, (unsigned)ZydisRegisterGetId(o->mem.index), S2);

	emit_lea_full(&tr->e, true, false, S1, base, index,
	              index == NO_REGISTER ? 0 : (unsigned)__builtin_ctz(o->mem.scale), 0);
}

struct host_memory stream_operand(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o,
                                  unsigned size, bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	uint8_t n = item->stream;

	flags_keep(tr, item->live_before);
	emit_sum(tr, o);
	struct pending *p = pend(tr, PENDING_STREAM_SUM, emit_compare(tr, n, S1));
	emit_op_abs(e, true, 0x03, S1, xabs(&t->stream[n].delta)); /* add */
	tr->in_register = p->in_register = false;
	p->resume = e->at;
	p->item = item;
	p->stream = n;
	p->site = new_site(tr, item, size, write);
	return (struct host_memory){
	    .base = S1, .index = NO_REGISTER, .disp = (int32_t)(o->mem.disp.has_displacement ? o->mem.disp.value : 0)};
}

/* ---- out of line ---- */

/*
 * Looks for the page of linear address S1 + 0 to `span`. Behind it: S1 the host's difference, stored, and the limit of a
 * stream whose register is `disp` less than that address. Returns the jump for when it is not there, S1 the XORed address,
 * S2 the index.
 */
static uint8_t *emit_set(struct translation *tr, const struct pending *p, int32_t disp, unsigned span)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	struct xstream *s = &t->stream[p->stream];
	const struct xtlb_entry *entry = t->tlb[tr->view];
	bool falls = tr->stream_falls[p->stream], write = p->site->write;

	emit_void(tr, p->stream);
	uint8_t *miss = emit_look_up(e, xabs(&entry->tag[write]), span);
	emit_op_indexed(e, true, 0x8b, S1, S2, xabs(&entry->tag[write])); /* the page's address */
	emit_lea(e, S1, S1, falls ? -disp - 1 : (int32_t)(MEMORY_PAGE_SIZE + 1 - span) - disp);
	emit_group1(e, true, 7, S1, falls ? STRIDE_MAX : -STRIDE_MAX);
	uint8_t *edge = emit_jump_if(e, falls ? CC_B : CC_AE);
	emit_store(e, S1, xabs(falls ? &s->below : &s->above));
	emit_fix(e, edge);
	emit_op_indexed(e, true, 0x8b, S1, S2, xabs(&entry->delta[write]));
	emit_store(e, S1, xabs(&s->delta));
	return miss;
}

/* The first access of a group: `p->disp` from its register to the group's lowest byte. */
void emit_stream_miss(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	emit_lea(e, S1, p->reg, p->disp);
	uint8_t *miss = emit_set(tr, p, p->disp, p->site->span);
	emit_jump_to(e, p->resume);
	emit_fix(e, miss);
	emit_push_address(e, xabs(p->site));
	emit_call_to(e, tr->t->probe_xored[tr->view][p->site->write]);
	emit_store(e, S1, xabs(&tr->t->stream[p->stream].delta));
	emit_jump_to(e, p->resume);
}

void emit_stream_sum_miss(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *o = memory_operand(p->item);
	int32_t disp = (int32_t)(o->mem.disp.has_displacement ? o->mem.disp.value : 0);

	emit_lea(e, S1, S1, disp);
	uint8_t *miss = emit_set(tr, p, disp, p->site->size);
	emit_sum(tr, o);
	emit_op_abs(e, true, 0x03, S1, xabs(&tr->t->stream[p->stream].delta)); /* add */
	emit_jump_to(e, p->resume);
	emit_fix(e, miss);
	emit_slow(tr, p, tr->t->slow_xored[tr->view][p->site->write]);
	emit_lea(e, S1, S1, -disp);
	emit_jump_to(e, p->resume);
}
