/*
 * An instruction's bytes for 64-bit host code: registers renamed as the plan says, the memory operand [rsi], prefixes
 * as 64-bit code wants them.
 *
 * The result is decoded again and compared with the guest's instruction: whatever a guest feeds us, the host executes
 * that instruction, with that one operand, or none.
 */
#include "engines/interpreter/native_operands.h"

/* Register numbers of the operand fields after renaming; the operand's own where nothing was renamed. */
struct fields {
	uint8_t reg, rm, vvvv, is4, opcode;
	bool has_vvvv, has_is4, has_opcode_register;
};

static bool fields_make(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                        const struct native_plan *plan, struct fields *f)
{
	*f = (struct fields){.reg = i->raw.modrm.reg, .rm = i->raw.modrm.rm};
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *o = &operands[n];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_explicit(o))
			continue;
		uint8_t number;
		if (is_gpr(o)) {
			number = (uint8_t)plan_host_register(plan, gpr_number(o->reg.value));
			if (is_high_byte(o->reg.value))
				number += 4;
		} else {
			number = (uint8_t)ZydisRegisterGetId(o->reg.value);
		}
		switch (o->encoding) {
		case ZYDIS_OPERAND_ENCODING_MODRM_REG:
			f->reg = number;
			break;
		case ZYDIS_OPERAND_ENCODING_MODRM_RM:
			f->rm = number;
			break;
		case ZYDIS_OPERAND_ENCODING_NDSNDD:
			f->vvvv = number;
			f->has_vvvv = true;
			break;
		case ZYDIS_OPERAND_ENCODING_IS4:
			f->is4 = number;
			f->has_is4 = true;
			break;
		case ZYDIS_OPERAND_ENCODING_OPCODE:
			f->opcode = number;
			f->has_opcode_register = is_gpr(o);
			break;
		case ZYDIS_OPERAND_ENCODING_MASK:
			break;
		default:
			return false;
		}
	}
	return true;
}

/* VEX.W and EVEX.W select a 64-bit general register (or its memory form) only in 64-bit code. */
static bool w_is_ignored(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands)
{
	if (i->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
		return false;
	for (unsigned n = 0; n < i->operand_count; n++)
		if (is_gpr(&operands[n]))
			return true;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VPEXTRD:
	case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VCVTSI2SD:
	case ZYDIS_MNEMONIC_VCVTUSI2SS:
	case ZYDIS_MNEMONIC_VCVTUSI2SD:
		return true;
	default:
		return false;
	}
}

static bool has_operand_size(const ZydisDecodedInstruction *i)
{
	switch (i->meta.isa_ext) {
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_LONGMODE:
		return i->mnemonic != ZYDIS_MNEMONIC_CMPXCHG8B;
	case ZYDIS_ISA_EXT_LZCNT:
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_MOVBE:
	case ZYDIS_ISA_EXT_RDRAND:
	case ZYDIS_ISA_EXT_RDSEED:
		return true;
	default:
		return i->mnemonic == ZYDIS_MNEMONIC_POPCNT || i->mnemonic == ZYDIS_MNEMONIC_CRC32;
	}
}

/* Legacy opcodes that 64-bit code writes in another way. */
static void legacy_opcode(const ZydisDecodedInstruction *i, struct fields *f, uint8_t *opcode, bool *modrm,
                          uint8_t *mod)
{
	if (i->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return;
	if (i->opcode >= 0x40 && i->opcode <= 0x4f) { /* INC, DEC */
		f->reg = i->opcode < 0x48 ? 0 : 1;
		f->rm = f->opcode;
		f->has_opcode_register = false;
		*opcode = 0xff;
		*modrm = true;
		*mod = 3;
	} else if (i->opcode >= 0xa0 && i->opcode <= 0xa3) { /* MOV with a direct address */
		static const uint8_t move[] = {0x8a, 0x8b, 0x88, 0x89};
		*opcode = move[i->opcode & 3];
		*modrm = true;
		*mod = 0;
		f->reg = RAX;
	} else if (i->opcode == 0x82) {
		*opcode = 0x80;
	}
}

static void emit(struct native_plan *plan, unsigned byte)
{
	plan->code[plan->code_length++] = (uint8_t)byte;
}

static bool encode_legacy(const ZydisDecodedInstruction *i, struct native_plan *plan, struct fields *f, bool *modrm,
                          uint8_t *mod)
{
	uint8_t opcode = i->opcode;
	bool w = (i->attributes & ZYDIS_ATTRIB_HAS_REX) && i->raw.rex.W;
	legacy_opcode(i, f, &opcode, modrm, mod);
	if (i->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		emit(plan, 0xf0);
	if (i->operand_width == 16 && has_operand_size(i))
		emit(plan, 0x66);
	for (unsigned n = 0; n < i->raw.prefix_count; n++)
		if (i->raw.prefixes[n].type == ZYDIS_PREFIX_TYPE_MANDATORY)
			emit(plan, i->raw.prefixes[n].value);
	unsigned rex = (w ? 8u : 0) | (f->reg >> 3 & 1) << 2;
	if (*modrm && *mod == 3)
		rex |= f->rm >> 3 & 1;
	if (f->has_opcode_register) {
		rex |= f->opcode >> 3 & 1;
		opcode = (uint8_t)((opcode & ~7) | (f->opcode & 7));
	}
	if (rex)
		emit(plan, 0x40 | rex);
	switch (i->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		break;
	case ZYDIS_OPCODE_MAP_0F:
		emit(plan, 0x0f);
		break;
	case ZYDIS_OPCODE_MAP_0F38:
		emit(plan, 0x0f);
		emit(plan, 0x38);
		break;
	case ZYDIS_OPCODE_MAP_0F3A:
		emit(plan, 0x0f);
		emit(plan, 0x3a);
		break;
	default:
		return false;
	}
	emit(plan, opcode);
	return true;
}

static void encode_vex(const ZydisDecodedInstruction *i, struct native_plan *plan, const struct fields *f, uint8_t mod,
                       bool w)
{
	unsigned vvvv = f->has_vvvv ? f->vvvv : 0;
	unsigned b = mod == 3 ? f->rm >> 3 & 1 : 0;
	emit(plan, 0xc4);
	emit(plan, (f->reg & 8 ? 0 : 0x80) | 0x40 | (b ? 0 : 0x20) | i->raw.vex.m_mmmm);
	emit(plan, (w ? 0x80u : 0) | (~vvvv & 15) << 3 | (unsigned)i->raw.vex.L << 2 | i->raw.vex.pp);
	emit(plan, i->opcode);
}

static void encode_evex(const ZydisDecodedInstruction *i, struct native_plan *plan, const struct fields *f, uint8_t mod,
                        bool w)
{
	unsigned vvvv = f->has_vvvv ? f->vvvv : 0;
	unsigned rm = mod == 3 ? f->rm : 0;
	emit(plan, 0x62);
	emit(plan, (f->reg & 8 ? 0 : 0x80) | (rm & 16 ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) | (f->reg & 16 ? 0 : 0x10) |
	               i->raw.evex.mmm);
	emit(plan, (w ? 0x80u : 0) | (~vvvv & 15) << 3 | 4 | i->raw.evex.pp);
	emit(plan, (unsigned)i->raw.evex.z << 7 | (unsigned)i->raw.evex.L2 << 6 | (unsigned)i->raw.evex.L << 5 |
	               (unsigned)i->raw.evex.b << 4 | (vvvv & 16 ? 0u : 8u) | i->raw.evex.aaa);
	emit(plan, i->opcode);
}

static bool encode(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands, const uint8_t *bytes,
                   struct native_plan *plan)
{
	struct fields f;
	if (!fields_make(i, operands, plan, &f))
		return false;
	bool modrm = i->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	uint8_t mod = i->raw.modrm.mod;
	bool w = !w_is_ignored(i, operands);
	switch (i->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		if (!encode_legacy(i, plan, &f, &modrm, &mod))
			return false;
		break;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		encode_vex(i, plan, &f, mod, w && i->raw.vex.W);
		break;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		encode_evex(i, plan, &f, mod, w && i->raw.evex.W);
		break;
	default:
		return false;
	}
	if (modrm)
		emit(plan, mod == 3 ? 0xc0u | (f.reg & 7u) << 3 | (f.rm & 7u) : (f.reg & 7u) << 3 | RSI);
	if (f.has_is4) {
		emit(plan, (unsigned)f.is4 << 4 | (bytes[i->length - 1] & 15));
	} else if (i->raw.imm[0].size) {
		for (unsigned n = i->raw.imm[0].offset; n < i->length; n++)
			emit(plan, bytes[n]);
	}
	return plan->code_length <= 15;
}

static bool same_operand(const struct native_plan *plan, const ZydisDecodedOperand *guest,
                         const ZydisDecodedOperand *host)
{
	if (guest->type != host->type)
		return false;
	switch (guest->type) {
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return host->mem.base == ZYDIS_REGISTER_RSI && host->mem.index == ZYDIS_REGISTER_NONE &&
		       !host->mem.disp.value && host->size == guest->size && host->mem.type == guest->mem.type;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return guest->imm.value.u == host->imm.value.u && guest->size == host->size;
	case ZYDIS_OPERAND_TYPE_REGISTER: {
		ZydisRegisterClass class = ZydisRegisterGetClass(guest->reg.value);
		if (class == ZYDIS_REGCLASS_FLAGS)
			return ZydisRegisterGetClass(host->reg.value) == class;
		if (!is_gpr(guest))
			return guest->reg.value == host->reg.value;
		/* Outside 64-bit code the decoder gives VPCMPESTRI with VEX.W RAX and RDX, which is wrong. */
		bool narrowed = class == ZYDIS_REGCLASS_GPR64 &&
		                ZydisRegisterGetClass(host->reg.value) == ZYDIS_REGCLASS_GPR32 && !guest->size;
		return (narrowed || ZydisRegisterGetClass(host->reg.value) == class) &&
		       gpr_number(host->reg.value) == plan_host_register(plan, gpr_number(guest->reg.value)) &&
		       is_high_byte(guest->reg.value) == is_high_byte(host->reg.value);
	}
	default:
		return false;
	}
}

/* Is what we made the guest's instruction? */
static bool verify(const struct native *native, const ZydisDecodedInstruction *guest,
                   const ZydisDecodedOperand *operands, const struct native_plan *plan)
{
	ZydisDecodedInstruction host;
	ZydisDecodedOperand host_operands[ZYDIS_MAX_OPERAND_COUNT];
	if (!ZYAN_SUCCESS(
	        ZydisDecoderDecodeFull(&native->decoder, plan->code, plan->code_length, &host, host_operands)))
		return false;
	if (host.mnemonic != guest->mnemonic || host.length != plan->code_length ||
	    host.operand_count != guest->operand_count || host.avx.vector_length != guest->avx.vector_length ||
	    host.avx.broadcast.mode != guest->avx.broadcast.mode)
		return false;
	for (unsigned n = 0; n < guest->operand_count; n++)
		if (!same_operand(plan, &operands[n], &host_operands[n]))
			return false;
	return true;
}

bool native_encode(const struct native *native, const ZydisDecodedInstruction *instruction,
                   const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_plan *plan)
{
	return encode(instruction, operands, bytes, plan) && verify(native, instruction, operands, plan);
}
