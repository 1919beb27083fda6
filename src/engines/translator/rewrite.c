/* Re-encoding guest instructions for other registers (SDM 2A chapter 2). See rewrite.h. */
#include "engines/translator/rewrite.h"

struct fields {
	unsigned reg, rm, vvvv, opcode; /* with extension bits */
	bool reg_gpr, rm_gpr, vvvv_gpr, opcode_gpr, high;
	bool memory;
	bool moved; /* a register other than AH-BH gets another number */
};

static int register_number(ZydisRegister reg, bool *high)
{
	*high = false;
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
		return (int)(reg - ZYDIS_REGISTER_AL);
	if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
		*high = true;
		return (int)(reg - ZYDIS_REGISTER_AH);
	}
	if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
		return (int)(reg - ZYDIS_REGISTER_SPL) + 4;
	return ZydisRegisterGetId(reg);
}

int operand_gpr(const ZydisDecodedOperand *operand, bool *high)
{
	*high = false;
	if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return -1;
	ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
	if (class < ZYDIS_REGCLASS_GPR8 || class > ZYDIS_REGCLASS_GPR64)
		return -1;
	return register_number(operand->reg.value, high);
}

static void find_fields(struct fields *f, const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                        const uint8_t map[16])
{
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *o = &operands[n];
		bool high;
		int number = operand_gpr(o, &high);
		bool gpr = number >= 0;

		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->encoding != ZYDIS_OPERAND_ENCODING_NONE)
			f->memory = true;
		if (!gpr)
			continue;
		f->high |= high && o->encoding != ZYDIS_OPERAND_ENCODING_NONE;
		f->moved |= !high && map[number] != number;
		switch (o->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG:
			f->reg_gpr = true;
			break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM:
			f->rm_gpr = true;
			break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD:
			f->vvvv_gpr = true;
			break;
		case ZYDIS_OPERAND_ENCODING_OPCODE:
			f->opcode_gpr = true;
			break;
		default:
			break;
		}
	}
}

static bool is_dropped_prefix(uint8_t byte)
{
	switch (byte) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x67:
		return true;
	default:
		return false;
	}
}

static bool is_kept_prefix(uint8_t byte)
{
	return byte == 0x66 || byte == 0xf0 || byte == 0xf2 || byte == 0xf3;
}

static bool long_mode(const ZydisDecodedInstruction *i)
{
	return i->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
}

bool is_direct_move(const ZydisDecodedInstruction *i)
{
	return i->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	       i->opcode >= 0xa0 && i->opcode <= 0xa3;
}

static bool is_short_increment(const ZydisDecodedInstruction *i)
{
	return i->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	       (i->opcode & 0xf0) == 0x40;
}

/* What the extension bit X is. */
static unsigned index_bit(const struct host_memory *memory)
{
	return memory->index == NO_REGISTER ? 0 : memory->index >> 3 & 1;
}

/* One-byte opcodes without ModRM that are written with one: MOV of the accumulator and an address in the instruction,
 * and INC and DEC of 32-bit code, whose opcodes are REX prefixes here. */
static bool rewrite_with_modrm(struct emitter *e, const ZydisDecodedInstruction *i, const uint8_t map[16],
                               const struct host_memory *memory, const uint8_t *prefixes, unsigned prefix_count,
                               unsigned rex)
{
	static const uint8_t move[] = {0x8a, 0x8b, 0x88, 0x89};
	bool increment = is_short_increment(i);
	unsigned reg = increment ? i->opcode >> 3 & 1 : map[0], rm = increment ? map[i->opcode & 7] : memory->base;

	rex = 0x40 | (rex & 8) | (reg & 8) >> 1 | (increment ? 0 : index_bit(memory) << 1) | rm >> 3;
	emit_bytes(e, prefixes, prefix_count);
	if (rex != 0x40)
		emit_byte(e, rex);
	emit_byte(e, increment ? 0xffu : move[i->opcode & 3]);
	if (increment)
		emit_byte(e, 0xc0u | (reg & 7) << 3 | (rm & 7));
	else
		emit_modrm_sum(e, reg, memory->base, memory->index, memory->disp, true);
	return true;
}

/* ModRM of the new instruction, and what follows it. EVEX scales short displacements (SDM 2A 2.7.5). */
static void emit_rest(struct emitter *e, const ZydisDecodedInstruction *i, const uint8_t *bytes, const struct fields *f,
                      const struct host_memory *memory)
{
	unsigned tail = i->raw.imm[0].size ? i->raw.imm[0].offset : i->length;

	if (f->memory)
		emit_modrm_sum(e, f->reg, memory->base, memory->index, memory->disp,
		               i->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX);
	else
		emit_byte(e, 0xc0 | (f->reg & 7) << 3 | (f->rm & 7));
	emit_bytes(e, bytes + tail, i->length - tail);
}

static bool rewrite_legacy(struct emitter *e, const ZydisDecodedInstruction *i, const uint8_t *bytes, struct fields *f,
                           const uint8_t map[16], const struct host_memory *memory)
{
	unsigned at = 0, rex = 0;
	uint8_t prefixes[15];
	unsigned prefix_count = 0;
	bool modrm = i->attributes & ZYDIS_ATTRIB_HAS_MODRM;

	while (is_dropped_prefix(bytes[at]) || is_kept_prefix(bytes[at])) {
		if (is_kept_prefix(bytes[at]))
			prefixes[prefix_count++] = bytes[at];
		at++;
	}
	if (long_mode(i) && (bytes[at] & 0xf0) == 0x40)
		rex = bytes[at++];
	if (is_direct_move(i) || is_short_increment(i))
		return rewrite_with_modrm(e, i, map, memory, prefixes, prefix_count, rex);
	if (f->memory && !modrm)
		return false;
	unsigned opcode_end = modrm ? i->raw.modrm.offset : i->raw.imm[0].size ? i->raw.imm[0].offset : i->length;
	unsigned opcode_register = (bytes[opcode_end - 1] & 7) | (rex & 1) << 3;

	if (modrm) {
		f->reg = i->raw.modrm.reg | (rex & 4) << 1;
		f->rm = i->raw.modrm.rm | (rex & 1) << 3;
	}
	if (f->high) {
		/* Numbers 4-7 are AH-BH: they stay, and so must everything else (no REX). */
		if ((f->memory && (memory->base >= 8 || index_bit(memory))) || rex || f->moved)
			return false;
		emit_bytes(e, prefixes, prefix_count);
		if (f->memory) {
			emit_bytes(e, bytes + at, opcode_end - at);
			emit_rest(e, i, bytes, f, memory);
		} else {
			emit_bytes(e, bytes + at, i->length - at);
		}
		return true;
	}
	if (modrm && f->reg_gpr)
		f->reg = map[f->reg];
	if (modrm && !f->memory && f->rm_gpr)
		f->rm = map[f->rm];
	if (!modrm && f->opcode_gpr)
		f->opcode = map[opcode_register];

	unsigned b = modrm ? (f->memory ? memory->base >> 3 : f->rm >> 3) : f->opcode_gpr ? f->opcode >> 3 : rex & 1;
	unsigned r = modrm ? f->reg >> 3 & 1 : 0, x = f->memory ? index_bit(memory) : 0;
	unsigned new_rex = 0x40 | (rex & 8) | r << 2 | x << 1 | (b & 1);
	emit_bytes(e, prefixes, prefix_count);
	if (rex || new_rex != 0x40)
		emit_byte(e, new_rex);
	if (modrm) {
		emit_bytes(e, bytes + at, opcode_end - at);
		emit_rest(e, i, bytes, f, memory);
	} else {
		emit_bytes(e, bytes + at, opcode_end - at - 1);
		emit_byte(e, f->opcode_gpr ? (bytes[opcode_end - 1] & 0xf8u) | (f->opcode & 7) : bytes[opcode_end - 1]);
		emit_bytes(e, bytes + opcode_end, i->length - opcode_end);
	}
	return true;
}

static bool rewrite_vex(struct emitter *e, const ZydisDecodedInstruction *i, const uint8_t *bytes, struct fields *f,
                        const uint8_t map[16], const struct host_memory *memory)
{
	unsigned at = 0, map_select = 1, last, r, b = 0;

	while (is_dropped_prefix(bytes[at]))
		at++;
	r = !(bytes[at + 1] & 0x80);
	if (bytes[at] == 0xc5) {
		last = bytes[at + 1] & 0x7f;
	} else if (bytes[at] == 0xc4) {
		b = !(bytes[at + 1] & 0x20);
		map_select = bytes[at + 1] & 0x1f;
		last = bytes[at + 2];
	} else {
		return false;
	}
	f->vvvv = ~last >> 3 & 15;
	f->reg = i->raw.modrm.reg | r << 3;
	f->rm = i->raw.modrm.rm | b << 3;
	if (!(i->attributes & ZYDIS_ATTRIB_HAS_MODRM)) { /* VZEROUPPER, VZEROALL */
		emit_bytes(e, bytes + at, i->length - at);
		return true;
	}
	if (f->reg_gpr)
		f->reg = map[f->reg];
	if (f->vvvv_gpr)
		f->vvvv = map[f->vvvv];
	if (!f->memory && f->rm_gpr)
		f->rm = map[f->rm];
	emit_byte(e, 0xc4);
	emit_byte(e, (f->reg & 8 ? 0 : 0x80) | (f->memory && index_bit(memory) ? 0 : 0x40) |
	                 ((f->memory ? memory->base : f->rm) & 8 ? 0 : 0x20) | map_select);
	emit_byte(e, (last & 0x87) | (~f->vvvv & 15) << 3);
	emit_byte(e, bytes[i->raw.modrm.offset - 1]);
	emit_rest(e, i, bytes, f, memory);
	return true;
}

static bool rewrite_evex(struct emitter *e, const ZydisDecodedInstruction *i, const uint8_t *bytes, struct fields *f,
                         const uint8_t map[16], const struct host_memory *memory)
{
	unsigned at = 0;

	while (is_dropped_prefix(bytes[at]))
		at++;
	unsigned p0 = bytes[at + 1], p1 = bytes[at + 2];
	f->reg = i->raw.modrm.reg | (p0 & 0x80 ? 0 : 8);
	f->rm = i->raw.modrm.rm | (p0 & 0x20 ? 0 : 8);
	f->vvvv = ~p1 >> 3 & 15;
	if (f->reg_gpr) {
		f->reg = map[f->reg];
		p0 = (p0 & ~0x80u) | (f->reg & 8 ? 0 : 0x80);
	}
	if (f->vvvv_gpr) {
		f->vvvv = map[f->vvvv];
		p1 = (p1 & ~0x78u) | (~f->vvvv & 15) << 3;
	}
	if (f->memory) {
		p0 = (p0 & ~0x60u) | (index_bit(memory) ? 0 : 0x40) | (memory->base & 8 ? 0 : 0x20);
	} else if (f->rm_gpr) {
		f->rm = map[f->rm];
		p0 = (p0 & ~0x20u) | (f->rm & 8 ? 0 : 0x20);
	}
	emit_byte(e, 0x62);
	emit_byte(e, p0);
	emit_byte(e, p1);
	emit_byte(e, bytes[at + 3]);
	emit_byte(e, bytes[i->raw.modrm.offset - 1]);
	emit_rest(e, i, bytes, f, memory);
	return true;
}

static bool is_flags(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_FLAGS;
}

static bool is_at(const ZydisDecodedOperand *o, const struct host_memory *memory)
{
	const unsigned first = ZYDIS_REGISTER_RAX;
	unsigned index = memory->index == NO_REGISTER ? ZYDIS_REGISTER_NONE : first + memory->index;

	return (unsigned)o->mem.base == first + memory->base && (unsigned)o->mem.index == index &&
	       (memory->index == NO_REGISTER || o->mem.scale == 1) && o->mem.disp.value == memory->disp &&
	       o->mem.segment != ZYDIS_REGISTER_FS && o->mem.segment != ZYDIS_REGISTER_GS;
}

/*
 * What was made is decoded again: the same operation on the registers that `map` says and on [base], and nothing else. Whatever a guest feeds us,
 * translated code touches no other register (host RSP is a stack of ours) and no other memory.
 */
static bool verify(const ZydisDecoder *decoder, const uint8_t *code, size_t length, const ZydisDecodedInstruction *i,
                   const ZydisDecodedOperand *operands, const uint8_t map[16], const struct host_memory *memory)
{
	ZydisDecodedInstruction made;
	ZydisDecodedOperand made_operand[ZYDIS_MAX_OPERAND_COUNT];

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, code, length, &made, made_operand)) ||
	    made.length != length || made.mnemonic != i->mnemonic || made.operand_count != i->operand_count ||
	    made.operand_width != i->operand_width)
		return false;
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *was = &operands[n], *is = &made_operand[n];
		bool was_high, is_high;
		int guest = operand_gpr(was, &was_high), host = operand_gpr(is, &is_high);

		if (was->type != is->type || was_high != is_high)
			return false;
		if (is_flags(was) && is_flags(is)) /* EFLAGS and RFLAGS */
			continue;
		if (was->size != is->size)
			return false;
		if (guest >= 0 && host != (was_high ? guest : map[guest]))
			return false;
		if (guest < 0 && was->type == ZYDIS_OPERAND_TYPE_REGISTER && was->reg.value != is->reg.value)
			return false;
		if (was->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && was->imm.value.u != is->imm.value.u)
			return false;
		if (was->type == ZYDIS_OPERAND_TYPE_MEMORY && !is_at(is, memory))
			return false;
	}
	return true;
}

static bool rewrite(struct emitter *e, const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                    const uint8_t *bytes, const uint8_t map[16], const struct host_memory *memory)
{
	struct fields f = {0};

	find_fields(&f, i, operands, map);
	switch (i->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		return rewrite_legacy(e, i, bytes, &f, map, memory);
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		return rewrite_vex(e, i, bytes, &f, map, memory);
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		return rewrite_evex(e, i, bytes, &f, map, memory);
	default:
		return false;
	}
}

bool rewrite_instruction(struct emitter *e, const ZydisDecoder *decoder, const ZydisDecodedInstruction *i,
                         const ZydisDecodedOperand *operands, const uint8_t *bytes, const uint8_t map[16],
                         const struct host_memory *memory)
{
	uint8_t *start = e->at;

	if (rewrite(e, i, operands, bytes, map, memory) && !e->full &&
	    verify(decoder, start, (size_t)(e->at - start), i, operands, map, memory))
		return true;
	e->at = start;
	return false;
}
