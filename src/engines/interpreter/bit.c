/*
 * BT, BTS, BTR, BTC of registers. Those of memory, and the bit counts and searches, are executed by the host.
 */
#include "engines/interpreter/decode.h"

/* Only CF changes (SDM 2A BT). */
#define BIT(name, bits, text)                                                                                          \
	ALWAYS_INLINE uint32_t name##_##bits(uint##bits##_t *value, uint##bits##_t bit, uint32_t flags)                \
	{                                                                                                              \
		uint8_t carry;                                                                                         \
		__asm__(text " %[b], %[v]" : [v] "+r"(*value), "=@ccc"(carry) : [b] "r"(bit) : "cc");                  \
		return (flags & ~HOT_CF) | (uint32_t)carry << 8;                                                       \
	}                                                                                                              \
	static void name##_rr_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		flags = name##_##bits(&value, REG##bits(insn->b), flags);                                              \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void name##_ri_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		flags = name##_##bits(&value, (uint##bits##_t)insn->immediate, flags);                                 \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}

BIT(bts, 32, "btsl")
BIT(bts, 64, "btsq")
BIT(btr, 32, "btrl")
BIT(btr, 64, "btrq")
BIT(btc, 32, "btcl")
BIT(btc, 64, "btcq")

/* BT writes nothing, not even the upper half. */
#define BIT_TEST(bits)                                                                                                 \
	static void bt_rr_##bits(PARAMETERS)                                                                           \
	{                                                                                                              \
		uint32_t carry = REG##bits(insn->a) >> (REG##bits(insn->b) & (bits - 1)) & 1;                          \
		flags = (flags & ~HOT_CF) | carry << 8;                                                                \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void bt_ri_##bits(PARAMETERS)                                                                           \
	{                                                                                                              \
		uint32_t carry = REG##bits(insn->a) >> (insn->immediate & (bits - 1)) & 1;                             \
		flags = (flags & ~HOT_CF) | carry << 8;                                                                \
		NEXT;                                                                                                  \
	}
BIT_TEST(32)
BIT_TEST(64)

/* [operation][immediate][64 bits] */
static handler *const handlers[4][2][2] = {
    {{bt_rr_32, bt_rr_64}, {bt_ri_32, bt_ri_64}},
    {{bts_rr_32, bts_rr_64}, {bts_ri_32, bts_ri_64}},
    {{btr_rr_32, btr_rr_64}, {btr_ri_32, btr_ri_64}},
    {{btc_rr_32, btc_rr_64}, {btc_ri_32, btc_ri_64}},
};

bool bit_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *bit = &d->operand[1];
	unsigned operation;
	struct insn *insn;

	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
		operation = 0;
		break;
	case ZYDIS_MNEMONIC_BTS:
		operation = 1;
		break;
	case ZYDIS_MNEMONIC_BTR:
		operation = 2;
		break;
	case ZYDIS_MNEMONIC_BTC:
		operation = 3;
		break;
	default:
		return false;
	}
	if (!is_register(to) || to->size < 32)
		return false;
	insn = emit(d, handlers[operation][is_immediate(bit)][to->size == 64]);
	insn->a = (uint8_t)register_offset(to->reg.value);
	if (is_immediate(bit))
		insn->immediate = bit->imm.value.u;
	else
		insn->b = (uint8_t)register_offset(bit->reg.value);
	return true;
}
