/*
 * Emitting x86-64 host code: bytes and encodings, no meaning. A cursor in the writable view of a code arena; running
 * out of room is remembered (`full`), never written over.
 *
 * Registers are host registers 0-15. "abs" operands are absolute addresses below 2 GiB ([disp32]); the translator's
 * data lives there.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define NO_REGISTER 16u

struct emitter {
	uint8_t *at, *end;
	bool full;
};

void emit_byte(struct emitter *e, unsigned byte);
void emit_bytes(struct emitter *e, const void *bytes, unsigned count);
void emit_u32(struct emitter *e, uint32_t value);
void emit_u64(struct emitter *e, uint64_t value);

/* One opcode byte with reg and [abs]; `wide`: REX.W. */
void emit_op_abs(struct emitter *e, bool wide, unsigned opcode, unsigned reg, uint32_t abs);
/* The same with [base + disp32]. */
void emit_op_base(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned base, int32_t disp);
/* The same with [base + index + disp]; `index` may be NO_REGISTER, and is not RSP. */
void emit_op_sum(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned base, unsigned index,
                 int32_t disp);
/* ModRM, SIB and displacement for that: `reg` is the field's three bits. `short_disp`: disp8 where it fits. */
void emit_modrm_sum(struct emitter *e, unsigned reg, unsigned base, unsigned index, int32_t disp, bool short_disp);
/* opcode reg, rm (both registers). */
void emit_op_reg(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned rm);
/* Group 1 (81h /extension) rm, imm32. */
void emit_group1(struct emitter *e, bool wide, unsigned extension, unsigned rm, int32_t immediate);

/* Group 2 (C1h /extension) rm, imm8, 64 bits wide. */
void emit_shift_imm(struct emitter *e, unsigned extension, unsigned rm, unsigned count);

static inline void emit_load(struct emitter *e, unsigned reg, uint32_t abs)
{
	emit_op_abs(e, true, 0x8b, reg, abs);
}
static inline void emit_store(struct emitter *e, unsigned reg, uint32_t abs)
{
	emit_op_abs(e, true, 0x89, reg, abs);
}
static inline void emit_load32(struct emitter *e, unsigned reg, uint32_t abs)
{
	emit_op_abs(e, false, 0x8b, reg, abs);
}
static inline void emit_store32(struct emitter *e, unsigned reg, uint32_t abs)
{
	emit_op_abs(e, false, 0x89, reg, abs);
}
/* movzx reg, word [abs] */
void emit_load16(struct emitter *e, unsigned reg, uint32_t abs);
static inline void emit_move(struct emitter *e, unsigned to, unsigned from)
{
	emit_op_reg(e, true, 0x89, from, to);
}
void emit_move_imm64(struct emitter *e, unsigned reg, uint64_t value);
/* mov dword/qword [abs], imm32 (sign-extended). */
void emit_store_imm(struct emitter *e, bool wide, uint32_t abs, int32_t value);
void emit_store_imm8(struct emitter *e, uint32_t abs, unsigned value);
/* cmp dword [abs], imm8; cmp byte [abs], imm8. */
void emit_compare32_abs(struct emitter *e, uint32_t abs, int8_t value);
void emit_compare8_abs(struct emitter *e, uint32_t abs, unsigned value);
/* inc qword [abs] */
void emit_increment_abs(struct emitter *e, uint32_t abs);
/* lea reg, [base + disp] */
void emit_lea(struct emitter *e, unsigned reg, unsigned base, int32_t disp);
/* lea with index: [base + index << scale + disp]; base or index may be NO_REGISTER. `address32`: 67h. */
void emit_lea_full(struct emitter *e, bool wide, bool address32, unsigned reg, unsigned base, unsigned index,
                   unsigned scale, int32_t disp);
/* rorx reg, rm, imm8 (BMI2) */
void emit_rorx(struct emitter *e, unsigned reg, unsigned rm, unsigned count);

/* Jumps with 32-bit displacements; they return the place to be fixed (offset of the displacement), see emit_fix(). */
uint8_t *emit_jump(struct emitter *e);
uint8_t *emit_jump_if(struct emitter *e, unsigned condition);
void emit_fix(struct emitter *e, uint8_t *place); /* the jump goes to the cursor */
/* A jump or call to an address in the same arena, in the writable view. */
void emit_jump_to(struct emitter *e, const uint8_t *target);
void emit_call_to(struct emitter *e, const uint8_t *target);
/* jmp [abs] */
void emit_jump_abs(struct emitter *e, uint32_t abs);
/* jmp [base + disp32] */
void emit_jump_base(struct emitter *e, unsigned base, int32_t disp);

enum condition {
	CC_O,
	CC_NO,
	CC_B,
	CC_AE,
	CC_E,
	CC_NE,
	CC_BE,
	CC_A,
	CC_S,
	CC_NS,
	CC_P,
	CC_NP,
	CC_L,
	CC_GE,
	CC_LE,
	CC_G
};
