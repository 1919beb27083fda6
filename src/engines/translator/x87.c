/*
 * x87 and MMX in translated code.
 *
 * Registers, control, status and tags are in the host's unit (vcpu->x87_live), for the interpreter's forms and for
 * translated code alike, so nothing is saved or loaded on the way between them. A block that needs the unit looks at
 * vcpu->x87_missing when it is entered. A pending unmasked exception is the host's #MF at the same instruction.
 *
 * FIP, FDP and FOP of the host's unit are ring3's; the guest's are in state.x87 (SDM 1 8.1.8). Storing them for each
 * instruction would cost more than most instructions, so translated code is behind with them: `struct xpointers` says
 * what the last instruction was and where its operand, and
 *
 *	- x87_commit() stores that, before a block is left or the interpreter is called;
 *	- x87_keep_operand() stores FDP before a register of its address changes;
 *	- x87_catch_up() stores it from C, where an access or a fault leaves in the middle: its site names the record.
 */
#include "engines/translator/translation.h"

#define NONE 0xffu

static bool lives_in_memory(ZydisRegister reg)
{
	int gpr = reg == ZYDIS_REGISTER_NONE ? -1 : ZydisRegisterGetId(reg);

	return gpr >= R9 && gpr <= R11;
}

/* x87_commit() has one register for the operand's address. */
bool x87_possible(const struct item *item)
{
	const ZydisDecodedOperand *o = item->form->x87_tracks_pointers ? memory_operand(item) : NULL;

	return !o || !lives_in_memory(o->mem.base) || !lives_in_memory(o->mem.index);
}

bool uses_x87(const struct item *item)
{
	return item->form->class_needed & (NATIVE_X87 | NATIVE_MMX | NATIVE_WAIT);
}

/* ---- at run time ---- */

void x87_catch_up(const struct translator *t, const struct xpointers *p)
{
	struct cpu_state *s = &t->vcpu->state;

	if (!p)
		return;
	s->x87.fip = p->fip + (p->floating ? t->code_page : 0);
	s->x87.fop = p->fop;
	s->x87_fcs = s->segment[SEG_CS].selector;
	if (!p->operand)
		return;
	uint64_t offset = (uint64_t)p->displacement + (p->floating_operand ? t->code_page : 0);
	if (p->base != NONE)
		offset += s->gpr[p->base];
	if (p->index != NONE)
		offset += s->gpr[p->index] * p->scale;
	s->x87.fdp = p->address32 ? (uint32_t)offset : offset;
	s->x87_fds = s->segment[p->segment].selector;
}

/* ---- records ---- */

static uint8_t address_gpr(ZydisRegister reg)
{
	return reg == ZYDIS_REGISTER_NONE ? NONE : (uint8_t)ZydisRegisterGetId(reg);
}

static void describe_operand(struct translation *tr, const struct item *item, struct xpointers *p)
{
	const ZydisDecodedOperand *o = memory_operand(item);

	p->operand = true;
	p->segment = (uint8_t)ZydisRegisterGetId(o->mem.segment);
	p->displacement = o->mem.disp.has_displacement ? o->mem.disp.value : 0;
	p->address32 = item->i.address_width == 32;
	p->scale = o->mem.scale;
	p->floating_operand = false;
	p->index = address_gpr(o->mem.index);
	if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
		p->displacement += (int64_t)(tr->rip + (uint64_t)(int64_t)item->offset + item->i.length);
		p->floating_operand = tr->floating;
		p->base = NONE;
	} else {
		p->base = address_gpr(o->mem.base);
	}
}

void x87_executed(struct translation *tr, const struct item *item)
{
	struct translator *t = tr->t;

	if (!item->form->x87_tracks_pointers)
		return;
	if (t->pointers_count == t->region[t->region_now].pointers_end) {
		tr->failed = tr->exhausted = true;
		return;
	}
	struct xpointers *p = &t->pointers[t->pointers_count++];
	*p = tr->pointers ? *tr->pointers : (struct xpointers){0};
	p->fip = (tr->rip + (uint64_t)(int64_t)item->offset) & tr->rip_mask;
	p->floating = tr->floating;
	p->fop = item->form->x87_opcode;
	if (item->form->memory_size)
		describe_operand(tr, item, p);
	tr->pointers = p;
}

/* ---- emitted ---- */

static void emit_selector(struct translation *tr, enum segment_register segment, const uint16_t *to)
{
	struct emitter *e = &tr->e;

	emit_byte(e, 0x44); /* movzx r10d, word [selector] */
	emit_byte(e, 0x0f);
	emit_byte(e, 0xb7);
	emit_byte(e, 0x14);
	emit_byte(e, 0x25);
	emit_abs(e, xabs(&tr->t->vcpu->state.segment[segment].selector));
	emit_byte(e, 0x66); /* mov [to], r10w */
	emit_op_abs(e, false, 0x89, S2, xabs(to));
}

/* Where a register of the address is: loaded into S2 if it lives in memory, which one at most does. */
static unsigned address_register(struct translation *tr, uint8_t gpr)
{
	return gpr == NONE ? NO_REGISTER : value_of(tr, gpr, S2);
}

static void emit_operand(struct translation *tr, const struct xpointers *p)
{
	struct cpu_state *s = &tr->t->vcpu->state;
	struct emitter *e = &tr->e;

	if (p->floating_operand) {
		emit_code_address(tr, S2, (uint64_t)p->displacement);
		if (p->address32)
			emit_op_reg(e, false, 0x89, S2, S2);
	} else if (p->base == NONE && p->index == NONE) {
		emit_move_imm64(e, S2, p->address32 ? (uint32_t)p->displacement : (uint64_t)p->displacement);
	} else {
		unsigned base = address_register(tr, p->base), index = address_register(tr, p->index);

		emit_lea_full(e, !p->address32, false, S2, base, index,
		              index == NO_REGISTER ? 0 : (unsigned)__builtin_ctz(p->scale), (int32_t)p->displacement);
	}
	emit_store(e, S2, xabs(&s->x87.fdp));
	emit_selector(tr, p->segment, &s->x87_fds);
}

static bool writes_gpr(const struct item *item, uint8_t gpr)
{
	bool high;

	if (item->kind != KIND_GENERIC && item->kind != KIND_LEA && item->kind != KIND_NOP && gpr == RSP)
		return true;
	for (unsigned n = 0; n < item->i.operand_count; n++)
		if ((item->operand[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    operand_gpr(&item->operand[n], &high) == gpr)
			return true;
	return item->kind == KIND_LEAVE && gpr == RBP;
}

void x87_keep_operand(struct translation *tr, const struct item *item)
{
	const struct xpointers *p = tr->pointers;

	if (!p || !p->operand || (!writes_gpr(item, p->base) && !writes_gpr(item, p->index)))
		return;
	emit_operand(tr, p);
	/* The same record without an operand. */
	if (tr->t->pointers_count == tr->t->region[tr->t->region_now].pointers_end) {
		tr->failed = tr->exhausted = true;
		return;
	}
	struct xpointers *kept = &tr->t->pointers[tr->t->pointers_count++];
	*kept = *p;
	kept->operand = false;
	tr->pointers = kept;
}

void x87_emit_pointers(struct translation *tr)
{
	struct cpu_state *s = &tr->t->vcpu->state;
	const struct xpointers *p = tr->pointers;
	struct emitter *e = &tr->e;

	if (!p)
		return;
	emit_code_address(tr, S2, p->fip);
	emit_store(e, S2, xabs(&s->x87.fip));
	emit_byte(e, 0x66); /* mov word [fop], imm16 */
	emit_byte(e, 0xc7);
	emit_byte(e, 0x04);
	emit_byte(e, 0x25);
	emit_abs(e, xabs(&s->x87.fop));
	emit_byte(e, p->fop & 0xff);
	emit_byte(e, p->fop >> 8);
	emit_selector(tr, SEG_CS, &s->x87_fcs);
	if (p->operand)
		emit_operand(tr, p);
}

void x87_commit(struct translation *tr)
{
	x87_emit_pointers(tr);
	tr->pointers = NULL;
}
