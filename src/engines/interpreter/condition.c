/*
 * What reads conditions: SETcc and CMOVcc (Jcc is in control.c); and the flag instructions CLC, STC, CMC, CLD, STD,
 * LAHF, SAHF.
 */
#include "engines/interpreter/decode.h"

#define CONDITIONS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)

#define CONDITIONAL(cc)                                                                                                \
	static void set_r_##cc(PARAMETERS)                                                                             \
	{                                                                                                              \
		write8(vcpu, insn->a, flags_condition(flags, cc));                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	/* A 32-bit CMOV clears the upper half even when it does not move. */                                          \
	static void cmov_rr_32_##cc(PARAMETERS)                                                                        \
	{                                                                                                              \
		write32(vcpu, insn->a, flags_condition(flags, cc) ? REG32(insn->b) : REG32(insn->a));                  \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void cmov_rr_64_##cc(PARAMETERS)                                                                        \
	{                                                                                                              \
		write64(vcpu, insn->a, flags_condition(flags, cc) ? REG64(insn->b) : REG64(insn->a));                  \
		NEXT;                                                                                                  \
	}
CONDITIONS(CONDITIONAL)

#define SET_ENTRY(cc)    set_r_##cc,
#define CMOV32_ENTRY(cc) cmov_rr_32_##cc,
#define CMOV64_ENTRY(cc) cmov_rr_64_##cc,
static handler *const set_r[16] = {CONDITIONS(SET_ENTRY)};
static handler *const cmov_rr_32[16] = {CONDITIONS(CMOV32_ENTRY)};
static handler *const cmov_rr_64[16] = {CONDITIONS(CMOV64_ENTRY)};

/* The rest takes the condition from insn->b. */
ALWAYS_INLINE uint8_t set_value(struct vcpu *vcpu, const struct insn *insn, uint32_t flags)
{
	return flags_condition(flags, insn->b);
}
STORE_AT(set_m, guest_8, set_value)

#define CMOV_LOAD(bits)                                                                                                \
	ALWAYS_INLINE uint32_t cmov_load_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags,            \
	                                        uint##bits##_t value)                                                  \
	{                                                                                                              \
		write##bits(vcpu, insn->a, flags_condition(flags, insn->b) ? value : REG##bits(insn->a));              \
		return flags;                                                                                          \
	}                                                                                                              \
	LOAD_AT(cmov_rm_##bits, guest_##bits, cmov_load_##bits)
CMOV_LOAD(16)
CMOV_LOAD(32)
CMOV_LOAD(64)

static void cmov_rr_16(PARAMETERS)
{
	unsigned condition = insn->scale;

	if (flags_condition(flags, condition))
		write16(vcpu, insn->a, REG16(insn->b));
	NEXT;
}

static void clc(PARAMETERS)
{
	flags &= ~HOT_CF;
	NEXT;
}
static void stc(PARAMETERS)
{
	flags |= HOT_CF;
	NEXT;
}
static void cmc(PARAMETERS)
{
	flags ^= HOT_CF;
	NEXT;
}
static void cld(PARAMETERS)
{
	vcpu->state.rflags &= ~FLAG_DF;
	NEXT;
}
static void std(PARAMETERS)
{
	vcpu->state.rflags |= FLAG_DF;
	NEXT;
}
static void lahf(PARAMETERS)
{
	write8(vcpu, GPR_OFFSET(RAX) + 1, (uint8_t)(flags >> 8));
	NEXT;
}
static void sahf(PARAMETERS)
{
	flags = (flags & 0xff) | ((REG8(GPR_OFFSET(RAX) + 1) & 0xd5u) | 2) << 8;
	NEXT;
}

static int condition_of(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
#define CASE(name, code)                                                                                               \
	case ZYDIS_MNEMONIC_SET##name:                                                                                 \
	case ZYDIS_MNEMONIC_CMOV##name:                                                                                \
		return code;
		CASE(O, 0)
		CASE(NO, 1)
		CASE(B, 2)
		CASE(NB, 3)
		CASE(Z, 4)
		CASE(NZ, 5)
		CASE(BE, 6)
		CASE(NBE, 7)
		CASE(S, 8)
		CASE(NS, 9)
		CASE(P, 10)
		CASE(NP, 11)
		CASE(L, 12)
		CASE(NL, 13)
		CASE(LE, 14)
		CASE(NLE, 15)
#undef CASE
	default:
		return -1;
	}
}

static bool conditional_decode(struct decoder *d, unsigned condition)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	struct insn *insn;

	if (d->instruction.operand_count_visible == 1) { /* SETcc */
		if (is_memory(to))
			emit_memory_at(d, to, 1, true, set_m_at)->b = (uint8_t)condition;
		else
			emit(d, set_r[condition])->a = (uint8_t)register_offset(to->reg.value);
		return true;
	}
	if (is_memory(from)) {
		insn = emit_memory_at(d, from, to->size / 8, false,
		                      to->size == 64   ? cmov_rm_64_at
		                      : to->size == 32 ? cmov_rm_32_at
		                                       : cmov_rm_16_at);
		insn->b = (uint8_t)condition;
	} else {
		insn = emit(d, to->size == 64   ? cmov_rr_64[condition]
		               : to->size == 32 ? cmov_rr_32[condition]
		                                : cmov_rr_16);
		insn->scale = (uint8_t)condition;
		insn->b = (uint8_t)register_offset(from->reg.value);
	}
	insn->a = (uint8_t)register_offset(to->reg.value);
	return true;
}

bool condition_decode(struct decoder *d)
{
	int condition = condition_of(d->instruction.mnemonic);
	handler *run;

	if (condition >= 0)
		return conditional_decode(d, (unsigned)condition);
	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_CLC:
		run = clc;
		break;
	case ZYDIS_MNEMONIC_STC:
		run = stc;
		break;
	case ZYDIS_MNEMONIC_CMC:
		run = cmc;
		break;
	case ZYDIS_MNEMONIC_CLD:
		run = cld;
		break;
	case ZYDIS_MNEMONIC_STD:
		run = std;
		break;
	case ZYDIS_MNEMONIC_LAHF:
		run = lahf;
		break;
	case ZYDIS_MNEMONIC_SAHF:
		run = sahf;
		break;
	default:
		return false;
	}
	emit(d, run);
	return true;
}
