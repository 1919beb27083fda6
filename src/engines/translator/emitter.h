/*
 * Emitting x86-64 host code: bytes and encodings, no meaning. A cursor in the writable view of a code arena; running
 * out of room is remembered (`full`), never written over.
 *
 * Registers are host registers 0-15. "abs" operands are absolute addresses below 2 GiB ([disp32]); the translator's
 * data lives there.
 *
 * Relocations say what of the code would be different elsewhere or for another processor (shared.c): whatever is an
 * address must be emitted by a function that takes one, never as a plain number.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define NO_REGISTER 16u

enum relocation {
	RELOCATION_ABSOLUTE, /* 32 bits: an address below 2 GiB */
	RELOCATION_POINTER,  /* 64 bits */
	RELOCATION_OUTSIDE,  /* the displacement of a jump or call that leads out of the code */
};
#define RELOCATIONS_MAX  1024
#define RELOCATION_SHIFT 28 /* its kind is above its offset from `start` */

struct relocations {
	const uint8_t *start; /* of the code */
	unsigned count;
	bool incomplete; /* there was no room for all */
	uint32_t at[RELOCATIONS_MAX];
};

struct emitter {
	uint8_t *at, *end;
	bool full;
	struct relocations *relocations; /* or NULL: nobody wants to know */
};

static inline void emit_byte(struct emitter *e, unsigned byte)
{
	if (e->at < e->end)
		*e->at++ = (uint8_t)byte;
	else
		e->full = true;
}

/* All of them, or none. */
static inline void emit_bytes(struct emitter *e, const void *bytes, unsigned count)
{
	if ((size_t)(e->end - e->at) < count) {
		e->full = true;
		return;
	}
	memcpy(e->at, bytes, count);
	e->at += count;
}

static inline void emit_u32(struct emitter *e, uint32_t value)
{
	emit_bytes(e, &value, sizeof(value));
}

static inline void emit_u64(struct emitter *e, uint64_t value)
{
	emit_bytes(e, &value, sizeof(value));
}

/* An address below 2 GiB, in 32 bits. */
void emit_abs(struct emitter *e, uint32_t abs);

/* One opcode byte with reg and [abs]; `wide`: REX.W. */
void emit_op_abs(struct emitter *e, bool wide, unsigned opcode, unsigned reg, uint32_t abs);
/* The same with [base + disp32]. */
void emit_op_base(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned base, int32_t disp);
/* movzx reg, byte (opcode B6h) or word (B7h) [base + disp32]; base is not RSP or R12. */
void emit_load_short(struct emitter *e, unsigned opcode, unsigned reg, unsigned base, int32_t disp);
/* The same with [index + abs]. */
void emit_op_indexed(struct emitter *e, bool wide, unsigned opcode, unsigned reg, unsigned index, uint32_t abs);
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
/* The same with a value that is filled in later: where it is. */
uint8_t *emit_move_any64(struct emitter *e, unsigned reg);
/* The same with an address: as long wherever that is, if it is below 2 GiB, and if it is not. */
void emit_move_address(struct emitter *e, unsigned reg, const volatile void *address);
/* mov dword/qword [abs], imm32 (sign-extended). */
void emit_store_imm(struct emitter *e, bool wide, uint32_t abs, int32_t value);
/* mov qword [abs], address below 2 GiB. */
void emit_store_address(struct emitter *e, uint32_t abs, uint32_t address);
/* push imm32: an address below 2 GiB. */
void emit_push_address(struct emitter *e, uint32_t address);
/* pop qword [abs] */
void emit_pop_abs(struct emitter *e, uint32_t abs);
void emit_store_imm8(struct emitter *e, uint32_t abs, unsigned value);
/* cmp dword [abs], imm8; cmp byte [abs], imm8. */
void emit_compare32_abs(struct emitter *e, uint32_t abs, int8_t value);
void emit_compare8_abs(struct emitter *e, uint32_t abs, unsigned value);
/* inc qword [abs] */
void emit_increment_abs(struct emitter *e, uint32_t abs);
/* lea reg, [base + disp] */
void emit_lea(struct emitter *e, unsigned reg, unsigned base, int32_t disp);
/* lea reg, [rip + ...]: an address in the same code, writable view: its executable one. */
void emit_lea_code(struct emitter *e, unsigned reg, const uint8_t *target);
void emit_push(struct emitter *e, unsigned reg);
void emit_push_imm(struct emitter *e, int32_t value); /* sign-extended */
/* lea with index: [base + index << scale + disp]; base or index may be NO_REGISTER. `address32`: 67h. */
void emit_lea_full(struct emitter *e, bool wide, bool address32, unsigned reg, unsigned base, unsigned index,
                   unsigned scale, int32_t disp);
/* rorx reg, rm, imm8 (BMI2) */
void emit_rorx(struct emitter *e, unsigned reg, unsigned rm, unsigned count);

/* Jumps with 32-bit displacements; they return the place to be fixed (offset of the displacement), see emit_fix(). */
uint8_t *emit_jump(struct emitter *e);
uint8_t *emit_jump_if(struct emitter *e, unsigned condition);
void emit_fix(struct emitter *e, uint8_t *place);                           /* the jump goes to the cursor, */
void emit_fix_to(struct emitter *e, uint8_t *place, const uint8_t *target); /* or elsewhere in the code */
/* A jump or call to an address in the same arena, in the writable view: behind `start` it is one in the code itself. */
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
