/*
 * The decoder's operands, as the planner and the encoder of forms look at them.
 */
#pragma once

#include "engines/interpreter/native_private.h"

static inline bool is_gpr(const ZydisDecodedOperand *operand)
{
	if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	ZydisRegisterClass class = ZydisRegisterGetClass(operand->reg.value);
	return class >= ZYDIS_REGCLASS_GPR8 && class <= ZYDIS_REGCLASS_GPR64;
}

static inline bool is_high_byte(ZydisRegister reg)
{
	return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

/* Zydis numbers AL, CL, DL, BL, AH, CH, DH, BH, SPL ... R15B. */
static inline uint8_t gpr_number(ZydisRegister reg)
{
	if (reg < ZYDIS_REGISTER_AH && reg >= ZYDIS_REGISTER_AL)
		return (uint8_t)(reg - ZYDIS_REGISTER_AL);
	if (is_high_byte(reg))
		return (uint8_t)(reg - ZYDIS_REGISTER_AH);
	if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
		return (uint8_t)(reg - ZYDIS_REGISTER_SPL + RSP);
	return (uint8_t)ZydisRegisterGetId(reg);
}

static inline bool is_explicit(const ZydisDecodedOperand *operand)
{
	return operand->encoding != ZYDIS_OPERAND_ENCODING_NONE;
}

static inline int plan_host_register(const struct native_plan *plan, unsigned guest)
{
	for (unsigned n = 0; n < plan->gpr_count; n++)
		if (plan->gpr[n].guest == guest)
			return plan->gpr[n].host;
	return -1;
}
