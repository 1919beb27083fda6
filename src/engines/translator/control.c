/*
 * How control goes from block to block: exits, links, entries, and what lies out of line.
 */
#include <string.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"

/* ---- exits ---- */

struct xlink *new_link(struct translation *tr, uint64_t target, bool entry_a)
{
	struct translator *t = tr->t;

	if (t->link_count == t->region[t->region_now].links_end) {
		tr->failed = tr->exhausted = true;
		tr->spare_link = (struct xlink){.rip = target};
		return &tr->spare_link;
	}
	struct xlink *link = &t->links[t->link_count++];
	*link = (struct xlink){
	    .source = tr->xblock,
	    .own = target == tr->rip && tr->loop,
	    .floating = tr->floating,
	    .rip = target,
	    .entry_a = entry_a,
	    .vector = tr->vector,
	    .x87 = tr->x87,
	    .view = (uint8_t)tr->view,
	    .from = APART_NONE,
	    .patience = APART_PATIENCE,
	    .wait = APART_PATIENCE,
	};
	flags_wanted(tr, target, &link->settle);
	return link;
}

/* The code emitted next, a jump with a 32-bit displacement at `place`, is the link: through its stub at first. */
static void link_jump(struct translation *tr, struct xlink *link, uint8_t *place)
{
	struct pending *p = pend(tr, PENDING_STUB, place);

	link->place = place;
	p->link = link;
	p->save = link->entry_a;
	p->pair = 0; /* if it is a CALL's, the host's CALL leads there */
}

/* Does the instruction there cross into another page? Then it is no floating one. */
static bool crosses_at(const struct translation *tr, uint64_t target)
{
	const uint8_t *page = memory_pointer(tr->t->vcpu->memory, tr->block->physical & ~0xfffull, MEMORY_PAGE_SIZE);
	unsigned at = target & 0xfff;
	ZydisDecodedInstruction i;

	return MEMORY_PAGE_SIZE - at < ZYDIS_MAX_INSTRUCTION_LENGTH &&
	       (!page || ZydisDecoderDecodeInstruction(tr->decoder, NULL, page + at, MEMORY_PAGE_SIZE - at, &i) ==
	                     ZYDIS_STATUS_NO_MORE_DATA);
}

/* Is there no link from here to there? */
static bool apart(const struct translation *tr, uint64_t target)
{
	return tr->loose && (!tr->floating || !in_page(tr, target) || crosses_at(tr, target));
}

bool direct(const struct translation *tr, uint64_t from, uint64_t target)
{
	return in_page(tr, target) && target > from && !apart(tr, target) && !tr->calls;
}

/* The last instruction of the part that is emitted. */
static const struct item *last_of_part(const struct translation *tr)
{
	unsigned n = tr->count - 1;

	while (tr->item[n].part != tr->now)
		n--;
	return &tr->item[n];
}

/* ---- CALLs that leave something for the RET (returns.c) ---- */

/* The key that the link is good for, which translator_to_link fills in: both in one comparison. Destroys S1. */
static void emit_key_check(struct translation *tr, struct xlink *link)
{
	struct emitter *e = &tr->e;
	uint64_t *key = &tr->t->page_key[tr->code_view][link->rip >> 12 & (XPAGE_SIZE - 1)];

	link->key = emit_move_any64(e, S1);
	emit_op_abs(e, true, 0x3b, S1, xabs(key));
	tr->in_register = false;
	pend(tr, PENDING_LINK, emit_jump_if(e, CC_NE))->link = link;
}

/* It is pushed on the guest's stack, and in S2 if it is no immediate operand. */
static void leave_return(struct translation *tr, uint64_t next)
{
	tr->pair = 0;
	if (tr->code32 || apart(tr, next) || tr->pairs == PAIRS_MAX - 1)
		return;
	tr->pair = ++tr->pairs;
	tr->next = next;
	if (!tr->floating && (int64_t)next == (int32_t)next)
		emit_push_imm(&tr->e, (int32_t)next);
	else
		emit_push(&tr->e, S2);
}

/* Behind the host's CALL, with the guest's return address in S1 and flags in memory: a link there. */
static void come_behind(struct translation *tr)
{
	struct emitter *e = &tr->e;
	bool shadow = tr->shadow;

	tr->behind[tr->pair] = e->at;
	tr->pair = 0;
	tr->in_register = tr->shadow = false; /* an STI's is over when the RET comes */
	emit_lea(e, RSP, RSP, 8);
	if (tr->floating) {
		emit_lea(e, S1, S1, -(int32_t)tr->next);
		emit_store(e, S1, xabs(&tr->t->code_page));
	}
	struct xlink *link = new_link(tr, tr->next, false);
	link->own = link->x87 = false;
	link->settle = 0;           /* the RET has kept all flags, */
	link->vector = VECTOR_NONE; /* and left the registers as they were there */
	if (!in_page(tr, tr->next))
		emit_key_check(tr, link);
	link_jump(tr, link, emit_jump(e));
	tr->shadow = shadow;
}

void emit_paired(struct translation *tr, const struct pending *p)
{
	if (!p->pair)
		return;
	emit_lea_code(&tr->e, S2, tr->behind[p->pair]);
	emit_push(&tr->e, S2);
}

void leave_for_caller(struct translation *tr)
{
	if (tr->caller < 0 || tr->pair)
		return;
	const struct item *call = &tr->item[tr->caller];
	uint64_t next = tr->rip + (uint64_t)(int64_t)call->offset + call->i.length;

	if (tr->floating || (int64_t)next != (int32_t)next)
		emit_code_address(tr, S2, next);
	leave_return(tr, next);
}

void exit_apart(struct translation *tr, uint64_t target)
{
	const struct item *last = last_of_part(tr);
	bool pushed = last->kind == KIND_CALL;

	tr->in_register = false;
	/* Where the page is the last one of its half, the interpreter's next slot says what is wrong. */
	if (!ends_block(last) && !last->slots)
		tr->failed = tr->rooted = true;
	exit_indirect(tr, ends_block(last) ? last->slot : last->slot + last->slots, 0,
	              pushed ? (int)tr->stack_size : 0);
}

/* A direct transfer to `target`; `from` is the branch's address. */
void exit_direct(struct translation *tr, uint64_t from, uint64_t target)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	bool alone = apart(tr, target), same_page = in_page(tr, target) && !alone;
	bool backward = target <= from || tr->calls;
	uint32_t wanted = same_page ? flags_wanted(tr, target, NULL) : ALL_FLAGS;
	/* A loop whose flags live on: the poll must not send them through memory. Those that nobody is seen to read go there. */
	bool quietly = same_page && backward && tr->in_register && wanted && flags_read(tr, target);
	bool clobbers = !direct(tr, from, target) && !quietly;

	if (clobbers)
		flags_keep(tr, wanted);
	leave_for_caller(tr);
	if (alone && (!tr->floating || in_page(tr, target))) {
		emit_code_address(tr, S1, target);
		exit_apart(tr, target);
		return;
	}
	struct xlink *link =
	    alone ? emit_apart(tr, target, backward) : new_link(tr, target, tr->in_register && !clobbers);
	if (!same_page && !alone)
		emit_key_check(tr, link);
	if (alone) {
		tr->in_register = false;
	} else if (quietly) {
		emit_move(e, S1, RCX);
		emit_load32(e, RCX, xabs(&t->vcpu->attention));
		emit_byte(e, 0xe3); /* jrcxz over the jump */
		emit_byte(e, 5);
		pend(tr, PENDING_POLL, emit_jump(e))->link = link;
		emit_move(e, RCX, S1);
	} else if (backward) {
		emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
		tr->in_register = false;
		if (!tr->pair) {
			link_jump(tr, link, emit_jump_if(e, CC_E));
			pend(tr, PENDING_LINK, emit_jump(e))->link = link;
			return;
		}
		pend(tr, PENDING_LINK, emit_jump_if(e, CC_NE))->link = link;
	}
	if (tr->pair) {
		emit_byte(e, 0xe8); /* call */
		emit_u32(e, 0);
		link_jump(tr, link, e->at - 4);
		come_behind(tr);
	} else {
		link_jump(tr, link, emit_jump(e));
	}
}

/* An indirect transfer: target in S1 (where entries look for it), flags kept. `release`: bytes to add to RSP when it
 * succeeds (RET); `undo`: when the interpreter has to do it again (CALL). What is out of line is for who adds a way there. */
struct pending *exit_indirect(struct translation *tr, const struct insn *slot, int32_t release, int32_t undo)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;

	_Static_assert(sizeof(struct xjump) == 16, "indexed by an address shifted by four");
	emit_rorx(e, S2, S1, 64 - 4 + XJUMP_SHIFT);
	emit_group1(e, false, 4, S2, (XJUMP_SIZE - 1) << 4);                        /* and */
	emit_op_indexed(e, true, 0x3b, S1, S2, xabs(&t->jump[tr->code_view]->rip)); /* cmp */
	struct pending *p = pend(tr, PENDING_INDIRECT, emit_jump_if(e, CC_NE));
	emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
	p->more[0] = emit_jump_if(e, CC_NE);
	p->slot = slot;
	p->release = release;
	p->undo = undo;
	if (release)
		move_stack(tr, GUEST_RSP, release);
	emit_op_indexed(e, false, 0xff, tr->pair ? 2 : 4, S2, xabs(&t->jump[tr->code_view]->host)); /* call, jmp */
	if (tr->pair)
		come_behind(tr);
	return p;
}

/* To the return address that is in S1; flags are kept. */
static void exit_return(struct translation *tr, const struct insn *slot, int32_t release)
{
	struct emitter *e = &tr->e;

	if (tr->code32) {
		exit_indirect(tr, slot, release, 0);
		return;
	}
	emit_op_sum(e, true, 0x3b, S1, RSP, NO_REGISTER, 8); /* cmp */
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_RETURN, emit_jump_if(e, CC_NE));
	p->resume = e->at;
	emit_compare32_abs(e, xabs(&tr->t->vcpu->attention), 0);
	p->more[0] = emit_jump_if(e, CC_NE);
	p->slot = slot;
	p->release = release;
	move_stack(tr, GUEST_RSP, release);
	emit_byte(e, 0xc3);
}

/* It is not what the last CALL has left: but what the one before has, or none of theirs. */
static void emit_other_return(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	emit_op_sum(e, true, 0x3b, S1, RSP, NO_REGISTER, 24);
	uint8_t *none = emit_jump_if(e, CC_NE);
	emit_lea(e, RSP, RSP, 16);
	emit_jump_to(e, p->resume);
	emit_fix(e, none);
	struct pending *missed = exit_indirect(tr, p->slot, p->release, 0);
	/* With attention: as if its target had not been found. */
	emit_fix(e, p->more[0]);
	emit_lea(e, RSP, RSP, 16);
	missed->more[1] = emit_jump(e);
}

void translate_push_return(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	uint64_t next = (tr->rip + (uint64_t)(int64_t)item->offset + item->i.length) & tr->rip_mask;

	struct host_memory where = lower_stack(tr, item, RSP, -(int)tr->stack_size, true);
	if (!tr->floating && (tr->code32 || (int64_t)next == (int32_t)next)) {
		emit_op_sum(e, !tr->code32, 0xc7, 0, where.base, where.index, where.disp);
		emit_u32(e, (uint32_t)next);
	} else {
		emit_code_address(tr, S2, next);
		emit_op_sum(e, true, 0x89, S2, where.base, where.index, where.disp);
	}
	move_stack(tr, GUEST_RSP, -(int)tr->stack_size);
}

unsigned translate_target(struct translation *tr, const struct item *item)
{
	const ZydisDecodedOperand *o = &item->operand[0];
	unsigned reg = S1;
	bool high;

	if (is_memory(o)) {
		struct host_memory where = lower_operand(tr, item, o, tr->stack_size, false);

		emit_op_sum(&tr->e, !tr->code32, 0x8b, S1, where.base, where.index, where.disp);
	} else {
		reg = value_of(tr, (unsigned)operand_gpr(o, &high), S1);
		/* 32-bit code may have left something above, and a CALL moves the stack pointer. */
		if (tr->code32 || reg == GUEST_RSP) {
			emit_op_reg(&tr->e, !tr->code32, 0x89, reg, S1);
			reg = S1;
		}
	}
	if (reg == S1)
		tr->delta_in_s1 = NO_GROUP;
	return reg;
}

/* check_canonical() of a code address, quick in the view's own half. */
static void check_target(struct translation *tr, const struct item *item, unsigned reg)
{
	struct emitter *e = &tr->e;
	bool user = tr->view == MMU_USER;

	emit_move(e, S2, reg);
	emit_shift_imm(e, user ? 5 : 7, S2, 47); /* shr, sar */
	if (!user)
		emit_group1(e, true, 0, S2, 1); /* add */
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_TARGET, emit_jump_if(e, CC_NE));
	p->slot = item->slot;
	p->reg = (uint8_t)reg;
	p->resume = e->at;
}

/* What a RET adds to the stack pointer. */
static int32_t release_of(const struct translation *tr, const struct item *item)
{
	const ZydisDecodedOperand *o = &item->operand[0];

	return (int32_t)tr->stack_size + (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (int32_t)o->imm.value.u : 0);
}

/* To what is in `reg`, S1 or the guest's own. */
static void call_indirect(struct translation *tr, const struct item *item, unsigned reg)
{
	struct emitter *e = &tr->e;

	/* A target that is not canonical is the CALL's #GP, before it pushes. */
	if (!tr->code32)
		check_target(tr, item, reg);
	if (reg == S1)
		emit_store(e, S1, xabs(&tr->t->target));
	translate_push_return(tr, item);
	leave_return(tr, tr->rip + (uint64_t)(int64_t)item->offset + item->i.length);
	if (reg == S1)
		emit_load(e, S1, xabs(&tr->t->target));
	else
		emit_move(e, S1, reg);
	exit_indirect(tr, item->slot, 0, (int)tr->stack_size);
}

/* Behind a guard: what was checked before it, for others as well, does not help here. */
void emit_astray(struct translation *tr, const struct pending *p)
{
	struct item *item = &tr->item[p->item - tr->item];

	item->group = item->stack_group = NO_GROUP;
	switch (item->kind) {
	case KIND_JMP_INDIRECT:
		if (p->reg != S1)
			emit_move(&tr->e, S1, p->reg);
		leave_for_caller(tr);
		exit_indirect(tr, item->slot, 0, 0);
		break;
	case KIND_CALL_INDIRECT:
		call_indirect(tr, item, p->reg);
		break;
	default:
		emit_op_sum(&tr->e, true, 0x8b, S1, p->where.base, p->where.index, p->where.disp);
		exit_return(tr, item->slot, release_of(tr, item));
		break;
	}
}

/* Does the translation go on at `target` behind this instruction? */
static bool follows(const struct translation *tr, const struct item *item, uint64_t target)
{
	return part_rip(tr, item->part + 1u) == target;
}

void translate_terminal(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	uint64_t from = tr->rip + (uint64_t)(int64_t)item->offset, next = (from + item->i.length) & tr->rip_mask;

	switch (item->kind) {
	case KIND_JMP:
		if (!item->on)
			exit_direct(tr, from, branch_target(tr, item));
		break;
	case KIND_JCC: {
		flags_want(tr);
		const uint8_t *opcode = item_bytes(tr, item) + item->i.raw.prefix_count;
		unsigned condition = (opcode[0] == 0x0f ? opcode[1] : opcode[0]) & 15;
		uint64_t target = branch_target(tr, item), other = next;

		/* What is backward is likely a loop, and stays in line. */
		if (item->on ? follows(tr, item, target) : target <= from) {
			condition ^= 1;
			other = target;
			target = next;
		}
		uint8_t *taken = emit_jump_if(e, condition);
		if (direct(tr, from, target))
			link_jump(tr, new_link(tr, target, tr->in_register), taken);
		else
			pend(tr, PENDING_TAKEN, taken)->target = target;
		if (!item->on)
			exit_direct(tr, from, other);
		break;
	}
	case KIND_CALL:
		flags_keep(tr, item->live_before);
		translate_push_return(tr, item);
		leave_return(tr, next);
		exit_direct(tr, from, branch_target(tr, item));
		break;
	case KIND_JMP_INDIRECT:
		flags_keep(tr, ALL_FLAGS);
		unsigned to = translate_target(tr, item);
		if (to != S1)
			emit_move(e, S1, to);
		tr->in_register = false;
		leave_for_caller(tr);
		exit_indirect(tr, item->slot, 0, 0);
		break;
	case KIND_CALL_INDIRECT: {
		flags_keep(tr, ALL_FLAGS);
		unsigned reg = translate_target(tr, item);
		call_indirect(tr, item, reg);
		break;
	}
	case KIND_RET:
		flags_keep(tr, ALL_FLAGS);
		struct host_memory where = lower_stack(tr, item, RSP, 0, false);
		emit_op_sum(e, !tr->code32, 0x8b, S1, where.base, where.index, where.disp);
		exit_return(tr, item->slot, release_of(tr, item));
		break;
	case KIND_SYSTEM_END:
		translate_system_end(tr, item);
		break;
	default:
		tr->failed = true;
		break;
	}
}

/* ---- a block's entries ---- */

/* Leaves when the vector registers are not here: without touching flags, where they are live. */
void emit_checks_keeping_flags(struct translation *tr)
{
	struct emitter *e = &tr->e;
	struct translator *t = tr->t;
	const uint32_t save = xabs(&t->target);

	if (!tr->vector && !tr->x87)
		return;
	emit_store(e, RCX, save);
	if (tr->vector) {
		emit_byte(e, 0x0f); /* movzx ecx, byte [vector_missing] */
		emit_op_abs(e, false, 0xb6, RCX, xabs(&t->vector_missing) + tr->vector);
		emit_byte(e, 0xe3); /* jrcxz over the jump */
		emit_byte(e, 5);
		pend(tr, PENDING_VECTOR, emit_jump(e))->save = true;
	}
	if (tr->x87) {
		emit_byte(e, 0x0f); /* movzx ecx, byte [x87_missing] */
		emit_op_abs(e, false, 0xb6, RCX, xabs(&t->vcpu->x87_missing));
		emit_byte(e, 0xe3);
		emit_byte(e, 5);
		pend(tr, PENDING_VECTOR, emit_jump(e))->save = true;
	}
	emit_load(e, RCX, save);
}

void emit_checks(struct translation *tr)
{
	struct emitter *e = &tr->e;

	if (tr->vector) {
		emit_compare8_abs(e, xabs(&tr->t->vector_missing) + tr->vector, 0);
		pend(tr, PENDING_VECTOR, emit_jump_if(e, CC_NE));
	}
	if (tr->x87) {
		emit_compare8_abs(e, xabs(&tr->t->vcpu->x87_missing), 0);
		pend(tr, PENDING_VECTOR, emit_jump_if(e, CC_NE));
	}
}

/* ---- out of line ---- */

static void emit_indirect_miss(struct translation *tr, const struct pending *p)
{
	struct translator *t = tr->t;
	struct xsite *site = new_site(tr, last_of_part(tr), 0, false);

	if (p->release > UINT16_MAX) /* no compiler's RET */
		tr->failed = true;
	site->slot = p->slot;
	site->release = (uint16_t)p->release;
	site->undo = (uint8_t)p->undo;
	emit_push_address(&tr->e, xabs(site));
	emit_jump_to(&tr->e, tr->floating ? t->exit_indirect_floating : t->exit_indirect[tr->code_view]);
}

/* The stub of another way out by the link of pending `n`, which does the same: those of a link are close together. Or NULL. */
static const uint8_t *stub_made(const struct translation *tr, unsigned n)
{
	const struct pending *p = &tr->pending[n];

	for (unsigned back = 1; back <= 2 && back <= n; back++) {
		const struct pending *q = p - back;

		if ((q->kind == PENDING_STUB || q->kind == PENDING_LINK) && q->link == p->link && q->save == p->save &&
		    q->shadow == p->shadow && q->pair == p->pair)
			return q->resume;
	}
	return NULL;
}

/* Where pending `n`, to the end of a link, goes. */
static const uint8_t *link_stub(struct translation *tr, unsigned n)
{
	struct emitter *e = &tr->e;
	const struct pending *p = &tr->pending[n];
	const uint8_t *stub = stub_made(tr, n);

	if (stub) {
		emit_fix_to(e, p->place, stub);
	} else {
		stub = e->at;
		if (p->shadow) /* flags are kept: a MOV */
			emit_store_imm8(e, xabs(&tr->t->vcpu->state.interrupt_shadow), SHADOW_STI);
		if (p->link->apart)
			emit_apart_back(tr, p->link);
		emit_paired(tr, p);
		emit_push_address(e, xabs(p->link));
		emit_jump_to(e, p->save ? tr->t->exit_link_flags : tr->t->exit_link);
	}
	if (p->kind == PENDING_STUB)
		p->link->stub = stub;
	return stub;
}

void emit_pending(struct translation *tr, unsigned n, struct xblock *xblock)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	struct pending p = tr->pending[n];

	tr->in_register = p.in_register;
	tr->now = p.part;
	tr->caller = p.caller;
	tr->pair = 0;
	tr->view = p.view;
	tr->code_view = p.code_view;
	tr->in_memory = p.in_memory;
	tr->pointers = p.pointers;
	emit_fix(e, p.place);
	switch (p.kind) {
	case PENDING_SLOW:
	case PENDING_SLOW_BASE:
	case PENDING_CONSTANT:
	case PENDING_RANGE:
		emit_access_miss(tr, &p);
		break;
	case PENDING_PLACE:
		emit_place_miss(tr, &p);
		break;
	case PENDING_RANGE_GROUP:
		emit_group_miss(tr, &p);
		break;
	case PENDING_WARM:
		emit_pending_warm(tr, &p);
		break;
	case PENDING_GROUP:
		emit_group_miss(tr, &p);
		break;
	case PENDING_STREAM:
		emit_stream_miss(tr, &p);
		break;
	case PENDING_STREAM_SUM:
		emit_stream_sum_miss(tr, &p);
		break;
	case PENDING_WINDOW:
		emit_window_miss(tr, &p);
		break;
	case PENDING_TAKEN:
		exit_direct(tr, tr->rip + (uint64_t)(int64_t)last_of_part(tr)->offset, p.target);
		break;
	case PENDING_ASTRAY:
		emit_astray(tr, &p);
		break;
	case PENDING_ACROSS:
		emit_pending_across(tr, &p);
		break;
	case PENDING_APART:
		emit_pending_apart(tr, &p);
		break;
	case PENDING_STUB:
	case PENDING_LINK:
		tr->pending[n].resume = link_stub(tr, n);
		break;
	case PENDING_POLL:
		emit_move(e, RCX, S1);
		emit_paired(tr, &p);
		emit_push_address(e, xabs(p.link));
		emit_jump_to(e, t->exit_link_flags);
		break;
	case PENDING_SLOT:
		exit_to_slot(tr, p.slot);
		break;
	case PENDING_TARGET: {
		uint8_t *odd = emit_unless_canonical(e, p.reg);

		emit_jump_to(e, p.resume);
		emit_fix(e, odd);
		exit_to_slot(tr, p.slot);
		break;
	}
	case PENDING_VECTOR:
		if (p.save) {
			emit_load(e, RCX, xabs(&t->target));
			emit_flags_save(e, t);
		}
		emit_set_rip(tr, tr->rip);
		emit_set_argument(tr, xblock);
		emit_jump_to(e, t->exit_vector);
		break;
	case PENDING_INDIRECT:
		emit_fix(e, p.more[0]);
		if (p.more[1])
			emit_fix(e, p.more[1]);
		emit_paired(tr, &p);
		emit_indirect_miss(tr, &p);
		break;
	case PENDING_RETURN:
		emit_other_return(tr, &p);
		break;
	case PENDING_STRING:
		emit_pending_string(tr, &p);
		break;
	case PENDING_CALL_OUT:
		x87_emit_pointers(tr);
		call_out(tr, p.item);
		if (p.item->end_in_register)
			emit_flags_restore(e, t);
		emit_jump_to(e, p.item->end);
		break;
	case PENDING_SENSITIVE:
		call_sensitive(tr, p.item);
		break;
	}
}
