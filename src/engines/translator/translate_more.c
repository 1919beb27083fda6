/*
 * Instructions that have a way of their own: bit strings in memory, what reads segment registers, the direction flag,
 * XLAT.
 */
#include "engines/translator/translation.h"

/* ---- classification ---- */

static bool is_segment_read(const struct item *item)
{
	const ZydisDecodedOperand *o = item->operand;
	bool high;

	return item->i.mnemonic == ZYDIS_MNEMONIC_MOV && o[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
	       ZydisRegisterGetClass(o[1].reg.value) == ZYDIS_REGCLASS_SEGMENT && operand_gpr(&o[0], &high) >= 0;
}

enum kind classify_more(const struct item *item)
{
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return is_segment_read(item) ? KIND_SEGMENT_READ : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
		return KIND_DIRECTION;
	case ZYDIS_MNEMONIC_PAUSE:
		/* Who spins is found outside translated code most of the time, where nobody has to wait for it. */
		return KIND_FALLBACK;
	case ZYDIS_MNEMONIC_XLAT:
		return item->i.address_width >= 32 ? KIND_XLAT : KIND_FALLBACK;
	default:
		return KIND_FALLBACK;
	}
}

/* ---- bit strings ---- */

/* An instruction 0Fh `opcode` of the operand's size; memory: [S1]. */
static void emit_bit(struct emitter *e, unsigned size, unsigned opcode, unsigned reg, unsigned rm, bool memory)
{
	if (size == 2)
		emit_byte(e, 0x66);
	emit_byte(e, 0x40 | (size == 8 ? 8 : 0) | (reg & 8) >> 1 | rm >> 3);
	emit_byte(e, 0x0f);
	emit_byte(e, opcode);
	emit_byte(e, (memory ? 0 : 0xc0) | (reg & 7) << 3 | (rm & 7));
}

/* mov reg, [S1] (8Bh) or back (89h) */
static void emit_move_sized(struct emitter *e, unsigned size, unsigned opcode, unsigned reg)
{
	if (size == 2)
		emit_byte(e, 0x66);
	emit_byte(e, 0x41 | (size == 8 ? 8 : 0) | (reg & 8) >> 1);
	emit_byte(e, opcode);
	emit_byte(e, (reg & 7) << 3 | (S1 & 7));
}

/* The bit offset says which operand-sized piece it is, signed (SDM 2A BT): its displacement in bytes into S2. */
static void emit_displacement(struct translation *tr, unsigned size, unsigned bit)
{
	struct emitter *e = &tr->e;

	if (size == 8) {
		if (bit != S2)
			emit_move(e, S2, bit);
	} else if (size == 4) {
		emit_op_reg(e, true, 0x63, S2, bit); /* movsxd */
	} else {
		emit_bit(e, 8, 0xbf, S2, bit, false); /* movsx r10, r16 */
	}
	emit_shift_imm(e, 7, S2, 3); /* sar */
	emit_group1(e, true, 4, S2, -(int32_t)size);
}

/* BT, BTS, BTR and BTC of memory by a register. Flags but CF and the undefined ones stay. */
void translate_bit_string(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *o = memory_operand(item);
	unsigned size = item->form->memory_size, guest = item->form->bit_register;
	bool wide = item->i.address_width == 64, write = item->form->writes_memory;
	bool locked = item->i.attributes & ZYDIS_ATTRIB_HAS_LOCK;
	unsigned opcode = item->i.opcode;
	uint32_t needed = item->live_after & ~item->killed;

	flags_keep(tr, item->live_before);
	lower_effective(tr, item, o, S1, wide);
	emit_displacement(tr, size, value_of(tr, guest, S2));
	tr->in_register = false;
	emit_lea_full(e, wide, false, S1, S1, S2, 0, 0);
	lower_access(tr, item, o, size, write);
	if (!write) {
		if (needed)
			flags_want(tr);
		emit_move_sized(e, size, 0x8b, S1);
		emit_bit(e, size, opcode, value_of(tr, guest, S2), S1, false);
	} else if (locked || (guest >= R9 && guest <= R11)) {
		uint32_t save = xabs(&tr->t->borrowed[0]);

		/* The host's instruction must stay within the operand. */
		emit_op_reg(e, false, 0x89, value_of(tr, guest, S2), S2);
		emit_group1(e, false, 4, S2, (int32_t)size * 8 - 1);
		if (needed) {
			emit_store(e, S2, save);
			flags_want(tr);
			emit_load(e, S2, save);
		}
		if (locked)
			emit_byte(e, 0xf0);
		emit_bit(e, size, opcode, S2, S1, true);
	} else {
		if (needed)
			flags_want(tr);
		emit_move_sized(e, size, 0x8b, S2);
		emit_bit(e, size, opcode, value_of(tr, guest, S2), S2, false);
		emit_move_sized(e, size, 0x89, S2);
	}
	tr->in_register = true;
	tr->in_memory = false;
}

/* ---- others ---- */

void translate_segment_read(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	unsigned segment = (unsigned)ZydisRegisterGetId(item->operand[1].reg.value);
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high);

	emit_load16(e, S2, xabs(&tr->t->vcpu->state.segment[segment].selector));
	if (item->operand[0].size == 16) {
		emit_byte(e, 0x66);
		if (guest >= R9 && guest <= R11)
			emit_op_abs(e, false, 0x89, S2, gpr_abs(tr, guest));
		else
			emit_op_reg(e, false, 0x89, S2, result_in(guest, S2));
		return;
	}
	if (result_in(guest, S2) != S2)
		emit_move(e, result_in(guest, S2), S2);
	store_result(tr, guest, S2);
}

/* DF is in the vCPU block's rflags. */
void translate_direction(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	bool set = item->i.mnemonic == ZYDIS_MNEMONIC_STD;

	flags_keep(tr, item->live_before);
	tr->in_register = false;
	emit_op_abs(e, false, 0x80, set ? 1 : 4, xabs(&tr->t->vcpu->state.rflags) + 1); /* or, and */
	emit_byte(e, set ? FLAG_DF >> 8 : (uint8_t) ~(FLAG_DF >> 8));
}

void translate_xlat(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *o = item->operand;

	while (!is_memory(o))
		o++;
	flags_keep(tr, item->live_before);
	emit_byte(e, 0x44); /* movzx r10d, al */
	emit_byte(e, 0x0f);
	emit_byte(e, 0xb6);
	emit_byte(e, 0xd0);
	emit_lea_full(e, item->i.address_width == 64, false, S1, RBX, S2, 0, 0);
	lower_access(tr, item, o, 1, false);
	emit_byte(e, 0x41); /* mov al, [r9] */
	emit_byte(e, 0x8a);
	emit_byte(e, 0x01);
}

bool prefetch_possible(const struct item *item)
{
	const ZydisDecodedOperand *o = memory_operand(item);

	return o && o->mem.segment != ZYDIS_REGISTER_FS && o->mem.segment != ZYDIS_REGISTER_GS &&
	       address_possible(item);
}

/*
 * What is in the TLB is prefetched, and nothing waits for the rest: a hint must not cost a page walk. Nor flags that are
 * live, which the look-up would have to send through memory.
 */
void translate_prefetch(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const struct xtlb_entry *entry = tr->t->tlb[tr->view];

	if (item->live_before && !tr->in_memory)
		return;
	lower_effective(tr, item, memory_operand(item), S1, item->i.address_width == 64);
	uint8_t *miss = emit_look_up(e, xabs(&entry->tag[0]), 1);
	emit_op_indexed(e, true, 0x33, S1, S2, xabs(&entry->tag[0]));   /* xor: the address again */
	emit_op_indexed(e, true, 0x03, S1, S2, xabs(&entry->delta[0])); /* add */
	emit_byte(e, 0x41);                                             /* prefetch [r9], the guest's kind */
	emit_byte(e, 0x0f);
	emit_byte(e, item->i.opcode);
	emit_byte(e, (uint8_t)(item->i.raw.modrm.reg << 3 | (S1 & 7)));
	emit_fix(e, miss);
	tr->in_register = false;
}
