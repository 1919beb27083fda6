/*
 * 32-bit code: protected mode without and with paging, and compatibility mode.
 *
 * It is translated where CS, SS, DS and ES are flat (base 0, limit 4 GiB, stack pointer ESP), which is part of a block's
 * mode, so that no access is checked against them: an offset is the linear address, and both end at 4 GiB, where an
 * access crosses a page and is the interpreter's. FS and GS have any base and limit, looked at in each access through
 * them. A load of a segment register is the interpreter's, so translated code is entered again with the new one.
 *
 * Effective addresses are made by a 32-bit LEA, which wraps as they do. Upper halves of registers are what 32-bit
 * operations of 64-bit code leave, zero; R8-R15 are not touched.
 */
#include "engines/translator/translation.h"
#include "memory/memory.h"

#define SEGMENT_WANTED (SEG_WRITABLE | SEG_S | SEG_P)
#define SEGMENT_LOOKED (SEGMENT_WANTED | SEG_EXPANDDOWN | SEG_CODE | SEG_UNUSABLE)

/* What host code in 64-bit mode would do otherwise. */
bool mode32_possible(const struct item *item)
{
	const ZydisDecodedInstruction *i = &item->i;
	bool wide = (i->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && i->raw.vex.W) ||
	            (i->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && i->raw.evex.W);
	bool high;

	/* Of 16 or 32 registers there. */
	if (i->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || i->mnemonic == ZYDIS_MNEMONIC_VZEROALL)
		return false;
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *o = &item->operand[n];

		/* W makes general registers 64 bits wide there, and is ignored here. */
		if (wide && operand_gpr(o, &high) >= 0)
			return false;
		/* Code is not writable. */
		if (is_memory(o) && o->mem.segment == ZYDIS_REGISTER_CS &&
		    (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return false;
	}
	return true;
}

void mode32_note_segments(struct translator *t)
{
	for (unsigned n = 0; n < 2; n++) {
		const struct segment *s = &t->vcpu->state.segment[SEG_FS + n];

		t->segment_last[n] = (s->access & SEGMENT_LOOKED) == SEGMENT_WANTED ? (int64_t)s->limit : -1;
	}
}

/* An access through FS or GS: offset in S1, becomes the linear address. Flags have been kept. Destroys S2. */
void mode32_segment(struct translation *tr, const struct item *item, enum segment_register segment, unsigned size)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;

	emit_lea(e, S2, S1, (int)size - 1);
	emit_op_abs(e, true, 0x3b, S2, xabs(&t->segment_last[segment - SEG_FS])); /* cmp */
	tr->in_register = false;
	pend(tr, PENDING_SLOT, emit_jump_if(e, CC_G))->slot = item->slot;
	emit_op_abs(e, false, 0x03, S1, xabs(&t->vcpu->state.segment[segment].base)); /* add: modulo 4 GiB */
}

void address_in(struct translation *tr, unsigned reg, int displacement)
{
	if (displacement)
		emit_lea_full(&tr->e, !tr->code32, false, S1, reg, NO_REGISTER, 0, displacement);
	else
		emit_op_reg(&tr->e, !tr->code32, 0x89, reg, S1);
}

void move_stack(struct translation *tr, unsigned reg, int displacement)
{
	emit_lea_full(&tr->e, !tr->code32, false, GUEST_RSP, reg, NO_REGISTER, 0, displacement);
}
