/* Emitting x86-64 host code (SDM 2A chapter 2). */
#include "engines/translator/emitter.h"

/* What comes next. */
static void note(struct emitter *e, enum relocation kind)
{
	struct relocations *r = e->relocations;

	if (!r)
		return;
	if (r->count == RELOCATIONS_MAX)
		r->incomplete = true;
	else
		r->at[r->count++] = (uint32_t)(e->at - r->start) | (uint32_t)kind << RELOCATION_SHIFT;
}

void emit_abs(struct emitter *e, uint32_t abs)
{
	note(e, RELOCATION_ABSOLUTE);
	emit_u32(e, abs);
}

static void emit_rex(struct emitter *e, bool wide, unsigned reg, unsigned index, unsigned rm)
{
	unsigned rex = 0x40 | (wide ? 8 : 0) | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (rm >> 3 & 1);

	if (rex != 0x40)
		emit_byte(e, rex);
}

void emit_op_abs(struct emitter *e, bool wide, unsigned opcode, unsigned reg, uint32_t abs)
{
	emit_rex(e, wide, reg, 0, 0);
	emit_byte(e, opcode);
	emit_byte(e, 0x04 | (reg & 7) << 3);
	emit_byte(e, 0x25); /* SIB: no base, no index, disp32 */
	emit_abs(e, abs);
}

void emit_load16(struct emitter *e, unsigned reg, uint32_t abs)
{
	emit_rex(e, false, reg, 0, 0);
	emit_byte(e, 0x0f);
	emit_byte(e, 0xb7);
	emit_byte(e, 0x04 | (reg & 7) << 3);
	emit_byte(e, 0x25);
	emit_abs(e, abs);
}

void emit_op_indexed(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned index, uint32_t abs)
{
	emit_rex(e, wide, reg, 0, index);
	emit_byte(e, opcode);
	emit_byte(e, 0x80 | (reg & 7) << 3 | (index & 7));
	if ((index & 7) == 4)
		emit_byte(e, 0x24);
	emit_abs(e, abs);
}

void emit_op_base(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned base, int32_t disp)
{
	emit_rex(e, wide, reg, 0, base);
	emit_byte(e, opcode);
	emit_byte(e, 0x80 | (reg & 7) << 3 | (base & 7));
	if ((base & 7) == 4)
		emit_byte(e, 0x24);
	emit_u32(e, (uint32_t)disp);
}

void emit_load_short(struct emitter *e, unsigned opcode, unsigned reg, unsigned base, int32_t disp)
{
	emit_rex(e, false, reg, 0, base);
	emit_byte(e, 0x0f);
	emit_byte(e, opcode);
	emit_byte(e, 0x80 | (reg & 7) << 3 | (base & 7));
	emit_u32(e, (uint32_t)disp);
}

void emit_modrm_sum(struct emitter *e, unsigned reg, unsigned base, unsigned index, int32_t disp, bool short_disp)
{
	bool sib = index != NO_REGISTER || (base & 7) == 4, none = disp == 0 && (base & 7) != 5;
	bool byte = !none && short_disp && disp == (int8_t)disp;

	emit_byte(e, (none ? 0 : byte ? 0x40 : 0x80) | (reg & 7) << 3 | (sib ? 4 : base & 7));
	if (sib)
		emit_byte(e, (index == NO_REGISTER ? 4 : index & 7) << 3 | (base & 7));
	if (byte)
		emit_byte(e, (uint8_t)disp);
	else if (!none)
		emit_u32(e, (uint32_t)disp);
}

void emit_op_sum(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned base, unsigned index,
                 int32_t disp)
{
	emit_rex(e, wide, reg, index == NO_REGISTER ? 0 : index, base);
	emit_byte(e, opcode);
	emit_modrm_sum(e, reg, base, index, disp, true);
}

void emit_op_reg(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned rm)
{
	emit_rex(e, wide, reg, 0, rm);
	emit_byte(e, opcode);
	emit_byte(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

void emit_group1(struct emitter *e, bool wide, unsigned extension, unsigned rm, int32_t immediate)
{
	emit_op_reg(e, wide, 0x81, extension, rm);
	emit_u32(e, (uint32_t)immediate);
}

void emit_shift_imm(struct emitter *e, unsigned extension, unsigned rm, unsigned count)
{
	emit_op_reg(e, true, 0xc1, extension, rm);
	emit_byte(e, count);
}

void emit_move_imm64(struct emitter *e, unsigned reg, uint64_t value)
{
	if (value <= UINT32_MAX) {
		emit_rex(e, false, 0, 0, reg);
		emit_byte(e, 0xb8 | (reg & 7));
		emit_u32(e, (uint32_t)value);
	} else if ((int64_t)value == (int32_t)value) {
		emit_op_reg(e, true, 0xc7, 0, reg);
		emit_u32(e, (uint32_t)value);
	} else {
		emit_rex(e, true, 0, 0, reg);
		emit_byte(e, 0xb8 | (reg & 7));
		emit_u64(e, value);
	}
}

uint8_t *emit_move_any64(struct emitter *e, unsigned reg)
{
	emit_rex(e, true, 0, 0, reg);
	emit_byte(e, 0xb8 | (reg & 7));
	emit_u64(e, 0);
	return e->at - 8;
}

void emit_move_address(struct emitter *e, unsigned reg, const volatile void *address)
{
	uint64_t value = (uintptr_t)address;

	emit_rex(e, value > INT32_MAX, 0, 0, reg);
	emit_byte(e, 0xb8 | (reg & 7));
	if (value <= INT32_MAX) {
		emit_abs(e, (uint32_t)value);
	} else {
		note(e, RELOCATION_POINTER);
		emit_u64(e, value);
	}
}

void emit_store_imm(struct emitter *e, bool wide, uint32_t abs, int32_t value)
{
	emit_op_abs(e, wide, 0xc7, 0, abs);
	emit_u32(e, (uint32_t)value);
}

void emit_store_address(struct emitter *e, uint32_t abs, uint32_t address)
{
	emit_op_abs(e, true, 0xc7, 0, abs);
	emit_abs(e, address);
}

void emit_push_address(struct emitter *e, uint32_t address)
{
	emit_byte(e, 0x68);
	emit_abs(e, address);
}

void emit_pop_abs(struct emitter *e, uint32_t abs)
{
	emit_op_abs(e, false, 0x8f, 0, abs);
}

void emit_store_imm8(struct emitter *e, uint32_t abs, unsigned value)
{
	emit_op_abs(e, false, 0xc6, 0, abs);
	emit_byte(e, value);
}

void emit_compare32_abs(struct emitter *e, uint32_t abs, int8_t value)
{
	emit_op_abs(e, false, 0x83, 7, abs);
	emit_byte(e, (uint8_t)value);
}

void emit_compare8_abs(struct emitter *e, uint32_t abs, unsigned value)
{
	emit_op_abs(e, false, 0x80, 7, abs);
	emit_byte(e, value);
}

void emit_increment_abs(struct emitter *e, uint32_t abs)
{
	emit_op_abs(e, true, 0xff, 0, abs);
}

void emit_lea(struct emitter *e, unsigned reg, unsigned base, int32_t disp)
{
	emit_lea_full(e, true, false, reg, base, NO_REGISTER, 0, disp);
}

void emit_lea_code(struct emitter *e, unsigned reg, const uint8_t *target)
{
	emit_rex(e, true, reg, 0, 0);
	emit_byte(e, 0x8d);
	emit_byte(e, 0x05 | (reg & 7) << 3);
	emit_u32(e, (uint32_t)(target - (e->at + 4)));
}

void emit_push(struct emitter *e, unsigned reg)
{
	emit_rex(e, false, 0, 0, reg);
	emit_byte(e, 0x50 | (reg & 7));
}

void emit_push_imm(struct emitter *e, int32_t value)
{
	emit_byte(e, 0x68);
	emit_u32(e, (uint32_t)value);
}

void emit_lea_full(struct emitter *e, bool wide, bool address32, unsigned reg, unsigned base, unsigned index,
                   unsigned scale, int32_t disp)
{
	bool sib = index != NO_REGISTER || base == NO_REGISTER || (base & 7) == 4;
	unsigned mod = base == NO_REGISTER ? 0 : disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp ? 1 : 2;

	if (address32)
		emit_byte(e, 0x67);
	emit_rex(e, wide, reg, index == NO_REGISTER ? 0 : index, base == NO_REGISTER ? 0 : base);
	emit_byte(e, 0x8d);
	emit_byte(e, mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7));
	if (sib)
		emit_byte(e, scale << 6 | (index == NO_REGISTER ? 4 : index & 7) << 3 |
		                 (base == NO_REGISTER ? 5 : base & 7));
	if (mod == 1)
		emit_byte(e, (uint8_t)disp);
	else if (mod == 2 || base == NO_REGISTER)
		emit_u32(e, (uint32_t)disp);
}

void emit_rorx(struct emitter *e, unsigned reg, unsigned rm, unsigned count)
{
	emit_byte(e, 0xc4);
	emit_byte(e, (reg & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | 3); /* map 0F3A */
	emit_byte(e, 0xfb);                                                  /* W1, vvvv none, F2 */
	emit_byte(e, 0xf0);
	emit_byte(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
	emit_byte(e, count);
}

uint8_t *emit_jump(struct emitter *e)
{
	emit_byte(e, 0xe9);
	emit_u32(e, 0);
	return e->at - 4;
}

uint8_t *emit_jump_if(struct emitter *e, unsigned condition)
{
	emit_byte(e, 0x0f);
	emit_byte(e, 0x80 | condition);
	emit_u32(e, 0);
	return e->at - 4;
}

void emit_fix_to(struct emitter *e, uint8_t *place, const uint8_t *target)
{
	int32_t distance = (int32_t)(target - (place + 4));

	if (!e->full)
		memcpy(place, &distance, 4);
}

void emit_fix(struct emitter *e, uint8_t *place)
{
	emit_fix_to(e, place, e->at);
}

static void emit_displacement(struct emitter *e, const uint8_t *target)
{
	if (e->relocations && target < e->relocations->start)
		note(e, RELOCATION_OUTSIDE);
	emit_u32(e, (uint32_t)(target - (e->at + 4)));
}

void emit_jump_to(struct emitter *e, const uint8_t *target)
{
	emit_byte(e, 0xe9);
	emit_displacement(e, target);
}

void emit_call_to(struct emitter *e, const uint8_t *target)
{
	emit_byte(e, 0xe8);
	emit_displacement(e, target);
}

void emit_jump_abs(struct emitter *e, uint32_t abs)
{
	emit_byte(e, 0xff);
	emit_byte(e, 0x24);
	emit_byte(e, 0x25);
	emit_abs(e, abs);
}

void emit_jump_base(struct emitter *e, unsigned base, int32_t disp)
{
	emit_rex(e, false, 4, 0, base);
	emit_byte(e, 0xff);
	emit_byte(e, 0xa0 | (base & 7));
	if ((base & 7) == 4)
		emit_byte(e, 0x24);
	emit_u32(e, (uint32_t)disp);
}
