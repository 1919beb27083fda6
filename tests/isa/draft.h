/* Private to generate.c and roles.c: a case in the making. */
#pragma once

#include "isa.h"

/* What is known while a case is made. */
struct draft {
	struct random random;
	struct isa_case *test;
	struct isa_decoded *decoded;
	uint32_t pinned;                          /* general registers that have their final value */
	uint64_t target[ZYDIS_MAX_OPERAND_COUNT]; /* linear addresses of the memory operands, 0 when none */
};

/* CS.base. */
static inline uint64_t draft_code_base(const struct isa_case *test)
{
	return test->mode == 64 ? 0 : isa_segment(test->selector[SEG_CS]).base;
}

/* The number of the register that contains `reg`. */
static inline unsigned draft_gpr_number(ZydisRegister reg)
{
	return (unsigned)ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg)) & 15;
}

/* What the instruction needs to be interesting; after its memory operands have been placed. */
void draft_apply_roles(struct draft *draft);
