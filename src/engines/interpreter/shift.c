/*
 * SHL, SHR, SAR, ROL, ROR of registers, by a constant or CL; SHLX and its like. The rest of the family is executed by
 * the host.
 */
#include "engines/interpreter/decode.h"

/* A count of 0 changes no flag; the destination is written all the same (32 bits: the upper half is cleared). */
#define SHIFT(name, bits, text, mask)                                                                                  \
	ALWAYS_INLINE uint32_t name##_##bits(uint##bits##_t *value, uint8_t count)                                     \
	{                                                                                                              \
		uint32_t result;                                                                                       \
		__asm__(text " %%cl, %[v]\n\tlahf\n\tseto %%al"                                                        \
		        : [v] "+r"(*value), "=&a"(result)                                                              \
		        : "c"(count)                                                                                   \
		        : "cc");                                                                                       \
		return result;                                                                                         \
	}                                                                                                              \
	static void name##_ri_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		flags = FLAGS_AFTER(name##_##bits(&value, insn->b));                                                   \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void name##_rc_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		uint8_t count = REG8(GPR_OFFSET(RCX)) & mask;                                                          \
		if (count)                                                                                             \
			flags = FLAGS_AFTER(name##_##bits(&value, count));                                             \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}

/* Shifts define (or leave undefined) all arithmetic flags, rotations CF and OF alone. */
#define FLAGS_AFTER(result) (result)
#define SHIFT_SIZES(name, text)                                                                                        \
	SHIFT(name, 8, text "b", 31)                                                                                   \
	SHIFT(name, 16, text "w", 31) SHIFT(name, 32, text "l", 31) SHIFT(name, 64, text "q", 63)
SHIFT_SIZES(shl, "shl")
SHIFT_SIZES(shr, "shr")
SHIFT_SIZES(sar, "sar")
#undef FLAGS_AFTER
#define FLAGS_AFTER(result) ((flags & ~(HOT_CF | HOT_OF)) | ((result) & (HOT_CF | HOT_OF)))
SHIFT_SIZES(rol, "rol")
SHIFT_SIZES(ror, "ror")

struct shift {
	handler *by_constant[4], *by_cl[4];
};

#define SHIFT_TABLE(name)                                                                                              \
	{                                                                                                              \
		{name##_ri_8, name##_ri_16, name##_ri_32, name##_ri_64},                                               \
		{                                                                                                      \
			name##_rc_8, name##_rc_16, name##_rc_32, name##_rc_64                                          \
		}                                                                                                      \
	}
static const struct shift shift_shl = SHIFT_TABLE(shl), shift_shr = SHIFT_TABLE(shr), shift_sar = SHIFT_TABLE(sar),
                          shift_rol = SHIFT_TABLE(rol), shift_ror = SHIFT_TABLE(ror);

static void shift_by_zero_32(PARAMETERS)
{
	write32(vcpu, insn->a, REG32(insn->a));
	NEXT;
}
static void shift_by_zero(PARAMETERS)
{
	NEXT;
}

bool shift_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *by = &d->operand[1];
	const struct shift *shift;
	struct insn *insn;

	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_SHL:
		shift = &shift_shl;
		break;
	case ZYDIS_MNEMONIC_SHR:
		shift = &shift_shr;
		break;
	case ZYDIS_MNEMONIC_SAR:
		shift = &shift_sar;
		break;
	case ZYDIS_MNEMONIC_ROL:
		shift = &shift_rol;
		break;
	case ZYDIS_MNEMONIC_ROR:
		shift = &shift_ror;
		break;
	default:
		return false;
	}
	if (!is_register(to))
		return false;
	unsigned size = size_index(to->size / 8);
	if (is_immediate(by)) {
		uint8_t count = (uint8_t)(by->imm.value.u & (to->size == 64 ? 63 : 31));
		insn = emit(d, count ? shift->by_constant[size] : to->size == 32 ? shift_by_zero_32 : shift_by_zero);
		insn->b = count;
	} else {
		insn = emit(d, shift->by_cl[size]);
	}
	insn->a = (uint8_t)register_offset(to->reg.value);
	return true;
}
