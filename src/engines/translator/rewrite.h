/* Re-encoding a guest instruction with other registers, and its memory operand replaced by [base]. */
#pragma once

#include <Zydis/Zydis.h>

#include "engines/translator/emitter.h"

/* [base + index + disp]; index NO_REGISTER: none. */
struct host_memory {
	unsigned base, index;
	int32_t disp;
};

/*
 * Emits `instruction` (of 64- or 32-bit code) for 64-bit code, with each general register n in an operand field replaced by map[n], and its
 * memory operand (if it has one) by `memory`. False, with nothing emitted: it cannot be
 * encoded so (AH-DH beside a REX prefix, no ModRM ...).
 */
bool rewrite_instruction(struct emitter *e, const ZydisDecoder *decoder, const ZydisDecodedInstruction *instruction,
                         const ZydisDecodedOperand *operands, const uint8_t *bytes, const uint8_t map[16],
                         const struct host_memory *memory);

/* MOV of AL or eAX and memory at an address in the instruction (A0-A3), which has no ModRM. */
bool is_direct_move(const ZydisDecodedInstruction *instruction);
/* 0-15 when the operand is a general register (of any width), else -1. `high`: AH, CH, DH, BH. */
int operand_gpr(const ZydisDecodedOperand *operand, bool *high);
