/*
 * Arithmetic flags while guest code runs.
 *
 * Between handlers they travel in a register as LAHF and SETO leave them in AX: bits 15:8 SF ZF - AF - PF 1 CF, bits
 * 7:0 OF as 0 or 1; bits above 15 are anything. Where somebody else may look (host-executed forms, slow paths) they are
 * "split" in the vCPU block: rflags' low byte and vcpu->overflow. Routines of x86/ and everybody outside the engine see
 * a whole rflags.
 */
#pragma once

#include "machine/vcpu.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define HOT_CF 0x0100u
#define HOT_PF 0x0400u
#define HOT_AF 0x1000u
#define HOT_ZF 0x4000u
#define HOT_SF 0x8000u
#define HOT_OF 0x0001u

ALWAYS_INLINE void flags_store(struct vcpu *vcpu, uint32_t flags)
{
	*(uint8_t *)&vcpu->state.rflags = (uint8_t)(flags >> 8);
	vcpu->overflow = (uint8_t)flags;
}

ALWAYS_INLINE uint32_t flags_load(const struct vcpu *vcpu)
{
	return (uint32_t)(uint8_t)vcpu->state.rflags << 8 | vcpu->overflow;
}

/* From the split form to the whole one and back. */
ALWAYS_INLINE void flags_whole(struct vcpu *vcpu)
{
	vcpu->state.rflags = (vcpu->state.rflags & ~FLAG_OF) | (uint64_t)vcpu->overflow << 11;
}

ALWAYS_INLINE void flags_split(struct vcpu *vcpu)
{
	vcpu->overflow = vcpu->state.rflags >> 11 & 1;
}

/* Condition `code` as in the low four bits of Jcc's opcode (SDM 2D appendix B.1.4.7). Folds to two instructions for a
 * constant code. */
ALWAYS_INLINE bool flags_condition(uint32_t flags, unsigned code)
{
	bool value;

	switch (code >> 1) {
	case 0:
		value = flags & HOT_OF;
		break;
	case 1:
		value = flags & HOT_CF;
		break;
	case 2:
		value = flags & HOT_ZF;
		break;
	case 3:
		value = flags & (HOT_CF | HOT_ZF);
		break;
	case 4:
		value = flags & HOT_SF;
		break;
	case 5:
		value = flags & HOT_PF;
		break;
	case 6:
		value = (flags >> 15 ^ flags) & 1;
		break;
	default:
		value = ((flags >> 15 ^ flags) & 1) | (flags & HOT_ZF);
		break;
	}
	return value ^ (code & 1);
}
