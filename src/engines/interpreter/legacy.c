/*
 * Instructions of 16- and 32-bit code that 64-bit mode has dropped, so that the host cannot run them: AAA, AAS, AAM,
 * AAD, DAA, DAS, BOUND, SALC; and XLAT. INTO is in system.c, ARPL, LES and LDS in segment.c, PUSHA and POPA in stack.c.
 */
#include "engines/interpreter/decode.h"
#include "x86/segments.h"

#define AL REG8(GPR_OFFSET(RAX))
#define AH REG8(GPR_OFFSET(RAX) + 1)
#define AX REG16(GPR_OFFSET(RAX))

/* SF, ZF and PF of a byte; the other flags clear. */
static uint32_t flags_of_byte(uint8_t value)
{
	return 0x0200u | (value & 0x80 ? HOT_SF : 0) | (value ? 0 : HOT_ZF) | (__builtin_parity(value) ? 0 : HOT_PF);
}

/*
 * Undefined flags follow AMD's and Intel's documented silence with one rule: SF, ZF, PF by the result, OF clear.
 */
static void aaa_aas(PARAMETERS)
{
	bool subtract = insn->a;
	bool adjust = (AL & 15) > 9 || (flags & HOT_AF);

	if (adjust)
		write16(vcpu, GPR_OFFSET(RAX), (uint16_t)(subtract ? AX - 0x106 : AX + 0x106));
	write8(vcpu, GPR_OFFSET(RAX), AL & 15);
	flags = flags_of_byte(AL) | (adjust ? HOT_AF | HOT_CF : 0);
	NEXT;
}

static void daa_das(PARAMETERS)
{
	bool subtract = insn->a, carry = flags & HOT_CF, low = (AL & 15) > 9 || (flags & HOT_AF), carry_out = false;
	uint8_t old = AL, value = old;

	if (low) {
		carry_out = carry || (subtract ? old < 6 : old > 0xf9);
		value = (uint8_t)(subtract ? value - 6 : value + 6);
	}
	if (old > 0x99 || carry) {
		value = (uint8_t)(subtract ? value - 0x60 : value + 0x60);
		carry_out = true;
	}
	write8(vcpu, GPR_OFFSET(RAX), value);
	flags = flags_of_byte(value) | (low ? HOT_AF : 0) | (carry_out ? HOT_CF : 0);
	NEXT;
}

static void aam(PARAMETERS)
{
	uint8_t base = (uint8_t)insn->immediate;

	if (!base) {
		SLOW_ENTER;
		x86_raise(vcpu, VECTOR_DE);
	}
	write16(vcpu, GPR_OFFSET(RAX), (uint16_t)((AL / base) << 8 | AL % base));
	flags = flags_of_byte(AL);
	NEXT;
}

static void aad(PARAMETERS)
{
	uint8_t value = (uint8_t)(AL + AH * (uint8_t)insn->immediate);

	write16(vcpu, GPR_OFFSET(RAX), value);
	flags = flags_of_byte(value);
	NEXT;
}

static void salc(PARAMETERS)
{
	write8(vcpu, GPR_OFFSET(RAX), flags & HOT_CF ? 0xff : 0);
	NEXT;
}

/* BOUND: signed index against two limits in memory. */
static void bound(PARAMETERS, uint64_t linear)
{
	unsigned size = insn->b;
	int32_t index, low, high;

	SLOW_ENTER;
	check_alignment(vcpu, linear, size);
	uint64_t limits = slow_read(vcpu, insn, linear, size * 2);
	if (size == 2) {
		index = (int16_t)REG16(insn->a);
		low = (int16_t)limits;
		high = (int16_t)(limits >> 16);
	} else {
		index = (int32_t)REG32(insn->a);
		low = (int32_t)limits;
		high = (int32_t)(limits >> 32);
	}
	if (index < low || index > high)
		x86_raise(vcpu, VECTOR_BR);
	NEXT_SLOW;
}

/* XLAT: AL = [segment:rBX + AL]; insn->base is the address size, insn->index the segment. */
static void xlat(PARAMETERS)
{
	uint64_t offset = vcpu->state.gpr[RBX] + AL;

	if (insn->base != 8)
		offset = insn->base == 4 ? (uint32_t)offset : (uint16_t)offset;
	SLOW_ENTER;
	uint64_t linear = segment_linear(vcpu, (enum segment_register)insn->index, offset, 1, false);
	write8(vcpu, GPR_OFFSET(RAX), (uint8_t)mmu_read(vcpu, linear, 1));
	NEXT_SLOW;
}

bool legacy_decode(struct decoder *d)
{
	struct insn *insn;

	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		emit(d, aaa_aas)->a = d->instruction.mnemonic == ZYDIS_MNEMONIC_AAS;
		return true;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		emit(d, daa_das)->a = d->instruction.mnemonic == ZYDIS_MNEMONIC_DAS;
		return true;
	case ZYDIS_MNEMONIC_AAM:
		emit(d, aam)->immediate = d->operand[0].imm.value.u;
		return true;
	case ZYDIS_MNEMONIC_AAD:
		emit(d, aad)->immediate = d->operand[0].imm.value.u;
		return true;
	case ZYDIS_MNEMONIC_SALC:
		emit(d, salc);
		return true;
	case ZYDIS_MNEMONIC_BOUND:
		insn = emit_memory_at(d, &d->operand[1], d->instruction.operand_width / 4, false, bound);
		if (insn[-1].run == address_general)
			insn[-1].b &= (uint8_t)~GENERAL_ALIGN; /* of each limit alone: the handler checks it */
		insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
		insn->b = (uint8_t)(d->instruction.operand_width / 8);
		return true;
	case ZYDIS_MNEMONIC_XLAT:
		insn = emit(d, xlat);
		insn->base = (uint16_t)(d->instruction.address_width / 8);
		insn->index = SEG_DS;
		for (unsigned i = 0; i < d->instruction.operand_count; i++)
			if (is_memory(&d->operand[i]))
				insn->index = (uint16_t)operand_segment(&d->operand[i]);
		return true;
	default:
		return false;
	}
}
