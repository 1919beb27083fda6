/* Generating random programs (program.h). Encodings: SDM 2A chapter 2. */
#include <cpuid.h>
#include <string.h>

#include "program.h"

#define FUEL           (PROGRAM_CONTROL + 0)
#define COUNTER(depth) (PROGRAM_CONTROL + 64 + 8 * (depth))
#define FUNCTIONS_MAX  6
#define PATCHES_MAX    64
#define DEPTH_MAX      3
#define EBX_BASE       (PROGRAM_DATA + 0x1000)

const struct program_window program_windows[PROGRAM_WINDOWS] = {
    {PROGRAM_CODE, 8, true, true},   {PROGRAM_DATA, 4, true, false},    {PROGRAM_READ_ONLY, 1, false, false},
    {PROGRAM_STACK, 2, true, false}, {PROGRAM_CONTROL, 1, true, false},
};

enum { PAGE_OF_DATA = 8, PAGE_OF_READ_ONLY = 12, PAGE_OF_STACK = 13, PAGE_OF_CONTROL = 15 };

struct maker {
	struct program *program;
	struct random random;
	uint8_t *code;
	uint32_t at; /* offset into the code */
	bool wide;   /* 64-bit code */
	bool avx2;
	unsigned depth; /* of loops */
	bool in_function;
	unsigned functions; /* that exist already and may be called */
	uint32_t function[FUNCTIONS_MAX];
	unsigned patches;
	struct {
		uint32_t at; /* of an immediate that may be changed */
		uint8_t size;
	} patch[PATCHES_MAX];
};

static void byte(struct maker *m, unsigned value)
{
	if (m->at < PROGRAM_CODE_SIZE - 64)
		m->code[m->at++] = (uint8_t)value;
}

static void bytes(struct maker *m, uint64_t value, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		byte(m, (unsigned)(value >> 8 * i & 0xff));
}

static unsigned below(struct maker *m, unsigned limit)
{
	return random_below(&m->random, limit);
}

static bool percent(struct maker *m, unsigned chance)
{
	return random_percent(&m->random, chance);
}

/* A register that a program may change: not RSP and not RBX. */
static unsigned any_register(struct maker *m)
{
	unsigned reg;

	do
		reg = below(m, m->wide ? 16 : 8);
	while (reg == RSP || reg == RBX);
	return reg;
}

/* 1, 2, 4 or 8 bytes. */
static unsigned any_size(struct maker *m)
{
	unsigned pick = below(m, 10);

	return pick < 2 ? 1 : pick < 3 ? 2 : pick < 6 || !m->wide ? 4 : 8;
}

static uint64_t any_value(struct maker *m)
{
	uint64_t value = random_u64(&m->random);

	switch (below(m, 6)) {
	case 0:
		return value & 0xff;
	case 1:
		return ~(value & 0xff);
	case 2:
		return 1ull << (value & 63);
	case 3:
		return (1ull << (value & 63)) - 1;
	default:
		return value;
	}
}

static void label(struct maker *m)
{
	struct program *p = m->program;

	if (p->label_count < PROGRAM_LABELS_MAX &&
	    (!p->label_count || p->label[p->label_count - 1] < PROGRAM_CODE + m->at))
		p->label[p->label_count++] = PROGRAM_CODE + m->at;
}

/* Operands: a register or memory. */

struct operand {
	bool memory;
	unsigned reg;
	/* memory */
	bool rip, absolute, address32;
	int base, index; /* -1: none */
	unsigned scale;
	int32_t disp;
};

static struct operand in_register(unsigned reg)
{
	return (struct operand){.reg = reg, .base = -1, .index = -1};
}

/* An offset into the data; often near a page's end. */
static uint32_t any_offset(struct maker *m)
{
	unsigned page = below(m, 4) * 4096;

	return percent(m, 8) && page < 3 * 4096 ? page + 4096 - below(m, 17) : page + below(m, 4096 - 64);
}

static void move_immediate(struct maker *m, unsigned reg, uint64_t value)
{
	if (m->wide) {
		byte(m, 0x48 | reg >> 3);
		byte(m, 0xb8 | (reg & 7));
		bytes(m, value, 8);
	} else {
		byte(m, 0xb8 | reg);
		bytes(m, value, 4);
	}
}

/* Memory that can be reached, or now and then not. May emit code that makes an address; no flags change. */
static struct operand any_memory(struct maker *m)
{
	struct operand o = {.memory = true, .base = -1, .index = -1};
	uint32_t target = PROGRAM_DATA + any_offset(m);

	if (below(m, 1000) < (m->depth || m->in_function ? 4u : 30u)) { /* a fault, or read-only memory */
		static const uint64_t bad[] = {PROGRAM_DATA + PROGRAM_DATA_SIZE,
		                               PROGRAM_DATA + PROGRAM_DATA_SIZE - 3,
		                               PROGRAM_READ_ONLY + 8,
		                               PROGRAM_READ_ONLY + 4096 - 2,
		                               0,
		                               0x40000000,
		                               0x800000000000,
		                               PROGRAM_CODE - 2};
		o.base = (int)any_register(m);
		move_immediate(m, (unsigned)o.base, bad[below(m, sizeof(bad) / sizeof(bad[0]))]);
		return o;
	}
	switch (below(m, m->wide ? 7 : 5)) {
	case 0:
		o.base = RBX;
		o.disp = (int32_t)(target - EBX_BASE);
		break;
	case 1: { /* an index below 256 */
		unsigned from = below(m, 4);

		o.index = (int)any_register(m);
		byte(m, 0x0f); /* movzx */
		byte(m, 0xb6);
		if (o.index >= 8) {
			m->at -= 2;
			byte(m, 0x44);
			byte(m, 0x0f);
			byte(m, 0xb6);
		}
		byte(m, 0xc0 | (o.index & 7) << 3 | from);
		o.base = RBX;
		o.scale = below(m, 4);
		o.disp = (int32_t)(below(m, 0x800));
		break;
	}
	case 2:
		o.absolute = true;
		o.disp = (int32_t)target;
		break;
	case 3:
		o.base = RSP;
		o.disp = (int32_t)below(m, 100);
		break;
	case 4: /* a pointer of its own */
		o.base = (int)any_register(m);
		o.disp = percent(m, 50) ? (int32_t)below(m, 256) - 128 : 0;
		move_immediate(m, (unsigned)o.base, target - (uint32_t)o.disp);
		break;
	case 5:
		o.rip = true;
		o.disp = (int32_t)target;
		break;
	default:
		o.base = RBX;
		o.disp = (int32_t)(target - EBX_BASE);
		o.address32 = true;
		break;
	}
	return o;
}

/* ModRM and what belongs to it. `tail`: bytes of the instruction behind them (for RIP-relative). */
static void modrm(struct maker *m, unsigned reg, const struct operand *o, unsigned tail)
{
	reg = (reg & 7) << 3;
	if (!o->memory) {
		byte(m, 0xc0 | reg | (o->reg & 7));
		return;
	}
	if (o->rip) {
		byte(m, reg | 5);
		bytes(m, (uint32_t)o->disp - (PROGRAM_CODE + m->at + 4 + tail), 4);
		return;
	}
	if (o->absolute) {
		byte(m, reg | 4);
		byte(m, 0x25);
		bytes(m, (uint32_t)o->disp, 4);
		return;
	}
	bool small = o->disp >= -128 && o->disp < 128;
	unsigned mod = o->disp == 0 && (o->base & 7) != 5 ? 0 : small ? 0x40 : 0x80;
	if (o->index >= 0 || (o->base & 7) == 4) {
		byte(m, mod | reg | 4);
		byte(m, o->scale << 6 | (unsigned)(o->index >= 0 ? o->index & 7 : 4) << 3 | ((unsigned)o->base & 7));
	} else {
		byte(m, mod | reg | ((unsigned)o->base & 7));
	}
	if (mod)
		bytes(m, (uint32_t)o->disp, small ? 1 : 4);
}

/* An instruction with ModRM: `opcode` with its map in the higher bytes (0F, 0F38, 0F3A), `prefix` 66, F2, F3 or 0. */
static void emit(struct maker *m, unsigned prefix, unsigned opcode, unsigned size, unsigned reg,
                 const struct operand *o, unsigned tail)
{
	unsigned rex = 0;

	if (o->memory && o->address32)
		byte(m, 0x67);
	if (size == 2 && prefix != 0x66)
		byte(m, 0x66);
	if (prefix)
		byte(m, prefix);
	if (m->wide) {
		rex = (size == 8 ? 8u : 0u) | (reg >> 3 & 1) << 2;
		if (o->memory)
			rex |= (o->index >= 0 ? ((unsigned)o->index >> 3 & 1) << 1 : 0) |
			       (o->base >= 0 ? (unsigned)o->base >> 3 & 1 : 0);
		else
			rex |= o->reg >> 3 & 1;
		/* Byte registers 4-7: with REX SPL-DIL, without AH-BH; both are wanted. But never SPL. */
		if (size == 1 && (reg == RSI || reg == RDI || reg == RBP) && percent(m, 50))
			rex |= 0x40;
		if (rex)
			byte(m, 0x40 | rex);
	}
	for (int shift = 16; shift >= 0; shift -= 8)
		if (opcode >> shift & 0xff || shift == 0)
			byte(m, opcode >> shift & 0xff);
	modrm(m, reg, o, tail);
}

/*
 * A byte-sized operand register: without REX numbers 4-7 are AH-BH, and BH is a part of the base register, SPL of the
 * stack pointer. With REX they are SPL-DIL.
 */
static unsigned byte_register(struct maker *m)
{
	unsigned reg;

	do
		reg = any_register(m);
	while (reg == 7 || reg == 4); /* 7: BH or DIL; 5, 6: CH, DH or BPL, SIL */
	return reg;
}

static unsigned register_for(struct maker *m, unsigned size)
{
	return size == 1 ? byte_register(m) : any_register(m);
}

static struct operand any_operand(struct maker *m, unsigned size, unsigned memory)
{
	return percent(m, memory) ? any_memory(m) : in_register(register_for(m, size));
}

static void note_patch(struct maker *m, unsigned size)
{
	if (m->patches < PATCHES_MAX) {
		m->patch[m->patches].at = m->at;
		m->patch[m->patches++].size = (uint8_t)size;
	}
}

/* Behind an instruction that leaves flags undefined: now and then a defined one is used, then all get values. */
static void settle(struct maker *m, unsigned defined)
{
	unsigned reg = any_register(m);

	if (defined < 16 && percent(m, 30)) {
		byte(m, 0x0f); /* setcc al */
		byte(m, 0x90 | defined);
		byte(m, 0xc0);
	}
	emit(m, 0, 0x83, 4, 7, &(struct operand){.reg = reg, .base = -1, .index = -1}, 1); /* cmp */
	byte(m, below(m, 256));
}

/* ---- statements ---- */

static void alu(struct maker *m)
{
	unsigned size = any_size(m), operation = below(m, 8);
	struct operand o = any_operand(m, size, 50);

	switch (below(m, 3)) {
	case 0:
		emit(m, o.memory && operation != 7 && percent(m, 10) ? 0xf0 : 0, operation << 3 | (size > 1), size,
		     register_for(m, size), &o, 0);
		break;
	case 1:
		emit(m, 0, operation << 3 | 2 | (size > 1), size, register_for(m, size), &o, 0);
		break;
	default: {
		unsigned length = size == 1 ? 1 : size == 2 ? 2 : 4;
		bool small = size > 1 && percent(m, 50);

		emit(m, 0, size == 1 ? 0x80 : small ? 0x83 : 0x81, size, operation, &o, small ? 1 : length);
		bytes(m, any_value(m), small ? 1 : length);
		break;
	}
	}
}

static void move(struct maker *m)
{
	unsigned size = any_size(m), length = size == 1 ? 1 : size == 2 ? 2 : 4;
	struct operand o = any_operand(m, size, 70);

	switch (below(m, 6)) {
	case 0:
		emit(m, 0, 0x88 | (size > 1), size, register_for(m, size), &o, 0);
		break;
	case 1:
		emit(m, 0, 0x8a | (size > 1), size, register_for(m, size), &o, 0);
		break;
	case 2:
		emit(m, 0, 0xc6 | (size > 1), size, 0, &o, length);
		note_patch(m, 1);
		bytes(m, any_value(m), length);
		break;
	case 3:
		move_immediate(m, any_register(m), any_value(m));
		break;
	case 4: { /* movzx, movsx */
		static const unsigned opcodes[] = {0x0fb6, 0x0fb7, 0x0fbe, 0x0fbf};
		unsigned pick = below(m, 4);

		if (!o.memory && !(pick & 1))
			o.reg = below(m, 4);
		emit(m, 0, opcodes[pick], size == 1 ? 4 : size, any_register(m), &o, 0);
		break;
	}
	default:
		if (m->wide)
			emit(m, 0, 0x63, 8, any_register(m), &o, 0); /* movsxd */
		else
			emit(m, 0, 0x8d, 4, any_register(m),
			     &(struct operand){.memory = true, .base = RBX, .index = RCX, .scale = 2, .disp = 77}, 0);
		break;
	}
}

static void lea(struct maker *m)
{
	struct operand o = {.memory = true,
	                    .base = (int)any_register(m),
	                    .index = percent(m, 60) ? (int)any_register(m) : -1,
	                    .scale = below(m, 4),
	                    .disp = percent(m, 30) ? 0 : (int32_t)any_value(m),
	                    .address32 = m->wide && percent(m, 10)};

	emit(m, 0, 0x8d, m->wide ? 1u << (1 + below(m, 3)) : 4, any_register(m), &o, 0);
}

static void shift(struct maker *m)
{
	unsigned size = any_size(m), operation = below(m, 8);
	struct operand o = any_operand(m, size, 30);

	switch (below(m, 4)) {
	case 0:
		emit(m, 0, 0xc0 | (size > 1), size, operation, &o, 1);
		byte(m, below(m, 70));
		break;
	case 1:
		emit(m, 0, 0xd0 | (size > 1), size, operation, &o, 0);
		break;
	case 2:
		emit(m, 0, 0xd2 | (size > 1), size, operation, &o, 0);
		break;
	default: /* shld, shrd: results of 16-bit ones with counts above 16 are undefined */
		size = m->wide && percent(m, 50) ? 8 : 4;
		if (percent(m, 50)) {
			emit(m, 0, percent(m, 50) ? 0x0fa4 : 0x0fac, size, any_register(m), &o, 1);
			byte(m, below(m, 70));
		} else {
			emit(m, 0, percent(m, 50) ? 0x0fa5 : 0x0fad, size, any_register(m), &o, 0);
		}
		break;
	}
	settle(m, size >= 4 ? 2 : 16); /* CF: undefined where the count exceeds a small size */
}

static void unary(struct maker *m)
{
	unsigned size = any_size(m);
	struct operand o = any_operand(m, size, 40);

	if (percent(m, 40)) { /* inc, dec */
		emit(m, 0, 0xfe | (size > 1), size, below(m, 2), &o, 0);
	} else { /* not, neg, mul, imul, div, idiv */
		unsigned operation = 2 + below(m, percent(m, m->depth || m->in_function ? 3 : 20) ? 6 : 4);

		emit(m, 0, 0xf6 | (size > 1), size, operation, &o, 0);
		if (operation > 3)
			settle(m, operation > 5 ? 16 : percent(m, 50) ? 0 : 2); /* OF or CF */
	}
	if (percent(m, 30)) {
		o = any_operand(m, 4, 40);
		if (percent(m, 50)) {
			emit(m, 0, 0x0faf, size == 1 ? 4 : size, any_register(m), &o, 0);
		} else {
			emit(m, 0, 0x69, 4, any_register(m), &o, 4);
			note_patch(m, 4);
			bytes(m, any_value(m), 4);
		}
		settle(m, percent(m, 50) ? 0 : 2);
	}
}

static void conditional(struct maker *m)
{
	unsigned code = below(m, 16);

	if (percent(m, 50)) {
		struct operand o = any_operand(m, 1, 40);
		emit(m, 0, 0x0f90 | code, 1, 0, &o, 0);
	} else {
		unsigned size = m->wide && percent(m, 50) ? 8 : 4;
		struct operand o = any_operand(m, size, 40);
		emit(m, 0, 0x0f40 | code, size, any_register(m), &o, 0);
	}
}

static void bits(struct maker *m)
{
	unsigned size = m->wide && percent(m, 50) ? 8 : percent(m, 80) ? 4 : 2;
	struct operand o = any_operand(m, size, 40);
	unsigned reg = any_register(m);

	switch (below(m, 9)) {
	case 0: /* bt, bts, btr, btc with a number */
		emit(m, 0, 0x0fba, size, 4 + below(m, 4), &o, 1);
		byte(m, below(m, 256));
		settle(m, 2);
		break;
	case 1: { /* with a register: memory far away is another word, so the number is small */
		static const unsigned opcodes[] = {0x0fa3, 0x0fab, 0x0fb3, 0x0fbb};

		if (o.memory) {
			emit(m, 0, 0x0fb6, 4, reg, &(struct operand){.reg = 0, .base = -1, .index = -1}, 0);
			if (o.base == (int)reg || o.index == (int)reg)
				o = in_register(any_register(m));
		}
		emit(m, 0, opcodes[below(m, 4)], size, reg, &o, 0);
		settle(m, 2);
		break;
	}
	case 2: /* bsf, bsr; tzcnt, lzcnt */
		emit(m, percent(m, 50) ? 0xf3 : 0, percent(m, 50) ? 0x0fbc : 0x0fbd, size, reg, &o, 0);
		settle(m, 4);
		break;
	case 3:
		emit(m, 0xf3, 0x0fb8, size, reg, &o, 0);
		break;
	case 4: /* bswap */
		if (m->wide)
			byte(m, 0x48 | reg >> 3);
		byte(m, 0x0f);
		byte(m, 0xc8 | (reg & 7));
		break;
	case 5: /* xchg, xadd, cmpxchg */
		emit(m, o.memory && percent(m, 50) ? 0xf0 : 0,
		     percent(m, 50)   ? 0x0fc1
		     : percent(m, 50) ? 0x0fb1
		                      : 0x87,
		     size, reg, &o, 0);
		break;
	case 6: /* cmpxchg8b, cmpxchg16b: the latter must be aligned */
		o = any_memory(m);
		emit(m, percent(m, 50) ? 0xf0 : 0, 0x0fc7, m->wide && percent(m, 30) ? 8 : 4, 1, &o, 0);
		break;
	case 7: /* crc32 */
		emit(m, 0xf2, 0x0f38f1, size, reg, &o, 0);
		break;
	default: /* movbe */
		o = any_memory(m);
		emit(m, 0, percent(m, 50) ? 0x0f38f0 : 0x0f38f1, size, reg, &o, 0);
		break;
	}
}

static void odds(struct maker *m)
{
	static const uint8_t single[] = {0x98, 0x99, 0xf5, 0xf8, 0xf9, 0x9e, 0x9f, 0x90};

	switch (below(m, 6)) {
	case 0:
	case 1:
		if (m->wide && percent(m, 30))
			byte(m, 0x48);
		byte(m, single[below(m, sizeof(single))]);
		break;
	case 2: /* pushf, pop reg; push value, popf */
		byte(m, 0x9c);
		byte(m, 0x58 | (below(m, 3)));
		break;
	case 3:
		byte(m, 0x68);
		bytes(m, 0x202 | (below(m, 0x1000) & 0x8d5), 4);
		byte(m, 0x9d);
		break;
	case 4: /* xlat: AL from [RBX + AL] */
		byte(m, 0xd7);
		break;
	default:
		if (percent(m, 10)) {
			byte(m, 0x0f); /* ud2 */
			byte(m, 0x0b);
		} else if (percent(m, 60)) {
			struct operand o = any_memory(m);

			emit(m, 0, percent(m, 20) ? 0x0f0d : 0x0f18, 4, below(m, 2), &o, 0); /* prefetch */
		} else {
			byte(m, 0x0f); /* nop with ModRM */
			byte(m, 0x1f);
			byte(m, 0x44);
			byte(m, 0x00);
			byte(m, 0x00);
		}
		break;
	}
}

static void stack(struct maker *m)
{
	unsigned a = any_register(m), b = any_register(m);

	switch (below(m, 4)) {
	case 0:
	case 1: /* push, push, pop, pop in either order */
		for (unsigned i = 0; i < 4; i++) {
			unsigned reg = i & 1 ? a : b;

			if (reg >= 8)
				byte(m, 0x41);
			byte(m, (i < 2 ? 0x50 : 0x58) | (reg & 7));
		}
		break;
	case 2: /* a frame */
		byte(m, 0x55);
		byte(m, 0x89 + (percent(m, 50) ? 2 : 0));
		if (m->wide) {
			m->at--;
			byte(m, 0x48);
			byte(m, 0x89);
		} else {
			m->at--;
			byte(m, 0x89);
		}
		byte(m, 0xe5); /* mov rbp, rsp */
		byte(m, 0x6a);
		byte(m, below(m, 128));
		byte(m, 0xc9); /* leave */
		break;
	default: /* push and pop of memory that is there */
		byte(m, 0xff);
		byte(m, 0xb3); /* push [rbx + disp32] */
		bytes(m, below(m, 0x2000), 4);
		byte(m, 0x8f);
		byte(m, 0x83); /* pop [rbx + disp32] */
		bytes(m, below(m, 0x2000), 4);
		break;
	}
}

static void strings(struct maker *m)
{
	static const uint8_t opcodes[] = {0xa4, 0xaa, 0xac, 0xae, 0xa6};
	unsigned size = any_size(m), opcode = opcodes[below(m, sizeof(opcodes))];
	unsigned repeat = percent(m, 80) ? (percent(m, 50) ? 0xf3 : 0xf2) : 0;
	bool down = percent(m, 20);

	move_immediate(m, RSI, PROGRAM_DATA + (percent(m, 3) ? PROGRAM_DATA_SIZE - 16 : any_offset(m)));
	move_immediate(m, RDI, percent(m, 5) ? PROGRAM_READ_ONLY - 8 : PROGRAM_DATA + any_offset(m));
	if (percent(m, 15)) /* source and destination overlap */
		emit(m, 0, 0x8d, m->wide ? 8 : 4, RDI,
		     &(struct operand){.memory = true, .base = RSI, .index = -1, .disp = (int32_t)below(m, 17) - 8}, 0);
	move_immediate(m, RCX, below(m, percent(m, 10) ? 3000 : 80));
	if (down)
		byte(m, 0xfd);
	if (size == 2)
		byte(m, 0x66);
	if (repeat)
		byte(m, repeat);
	if (size == 8)
		byte(m, 0x48);
	byte(m, opcode | (size > 1));
	label(m); /* a fault goes on here, so that the direction is right again */
	if (down)
		byte(m, 0xfc);
}

static void sse(struct maker *m)
{
	/* prefix, opcode: arithmetic, logic, integers, shuffles, conversions between vectors. */
	static const uint16_t list[][2] = {
	    {0, 0x58},    {0x66, 0x58}, {0xf2, 0x58}, {0xf3, 0x58}, {0, 0x59},    {0x66, 0x59},
	    {0xf2, 0x5c}, {0xf3, 0x5e}, {0, 0x54},    {0, 0x57},    {0x66, 0xef}, {0x66, 0xfe},
	    {0x66, 0xd4}, {0x66, 0xfa}, {0x66, 0x60}, {0x66, 0x6c}, {0x66, 0xf4}, {0x66, 0xd5},
	    {0x66, 0x74}, {0x66, 0x66}, {0, 0x14},    {0xf3, 0xe6}, {0x66, 0x5a}, {0xf2, 0x5a},
	    {0, 0x51},    {0xf2, 0x51}, {0, 0x5d},    {0x66, 0x5f}, {0, 0x5b},
	};
	unsigned reg = below(m, m->wide ? 16 : 8), pick;
	struct operand o = percent(m, 50) ? any_memory(m) : in_register(below(m, m->wide ? 16 : 8));

	switch (below(m, 6)) {
	case 0: /* movups, movupd, movdqu: loads and stores */
		emit(m, percent(m, 50) ? 0 : 0xf3, percent(m, 50) ? 0x0f10 : 0x0f11, 4, reg, &o, 0);
		break;
	case 1: /* movdqa: #GP when it is not aligned */
		if (o.memory && percent(m, 70))
			o = (struct operand){
			    .memory = true, .base = RBX, .index = -1, .disp = (int32_t)below(m, 0x200) * 16};
		emit(m, 0x66, percent(m, 50) ? 0x0f6f : 0x0f7f, 4, reg, &o, 0);
		break;
	case 2: /* general registers */
		o = any_operand(m, 4, 30);
		switch (below(m, 4)) {
		case 0:
			emit(m, 0x66, 0x0f6e, m->wide && percent(m, 50) ? 8 : 4, reg, &o, 0);
			break;
		case 1:
			emit(m, 0x66, 0x0f7e, m->wide && percent(m, 50) ? 8 : 4, reg, &o, 0);
			break;
		case 2:
			emit(m, percent(m, 50) ? 0xf2 : 0xf3, 0x0f2a, m->wide && percent(m, 50) ? 8 : 4, reg, &o, 0);
			break;
		default:
			o = percent(m, 50) ? any_memory(m) : in_register(below(m, 8));
			emit(m, percent(m, 50) ? 0xf2 : 0xf3, 0x0f2c, m->wide && percent(m, 50) ? 8 : 4,
			     any_register(m), &o, 0);
			break;
		}
		break;
	case 3: /* comiss: flags */
		emit(m, percent(m, 50) ? 0x66 : 0, percent(m, 50) ? 0x0f2e : 0x0f2f, 4, reg, &o, 0);
		break;
	default:
		pick = below(m, sizeof(list) / sizeof(list[0]));
		if (o.memory && (list[pick][0] == 0 || list[pick][0] == 0x66) && percent(m, 80))
			o = (struct operand){
			    .memory = true, .base = RBX, .index = -1, .disp = (int32_t)below(m, 0x200) * 16};
		emit(m, list[pick][0], 0x0f00u | list[pick][1], 4, reg, &o, 0);
		break;
	}
}

/* VEX, three bytes: map 1 to 3, pp 0 to 3. */
static void vex(struct maker *m, unsigned map, unsigned pp, bool w, bool l, unsigned vvvv, unsigned opcode,
                unsigned reg, const struct operand *o, unsigned tail)
{
	unsigned b = o->memory ? (o->base >= 0 ? (unsigned)o->base >> 3 & 1 : 0) : o->reg >> 3 & 1;
	unsigned x = o->memory && o->index >= 0 ? (unsigned)o->index >> 3 & 1 : 0;

	if (o->memory && o->address32)
		byte(m, 0x67);
	byte(m, 0xc4);
	byte(m, (~(reg >> 3) & 1) << 7 | (~x & 1) << 6 | (~b & 1) << 5 | map);
	byte(m, (unsigned)w << 7 | (~vvvv & 15) << 3 | (unsigned)l << 2 | pp);
	byte(m, opcode);
	modrm(m, reg, o, tail);
}

static void avx(struct maker *m)
{
	static const uint8_t list[][3] = {/* map, pp, opcode */
	                                  {1, 0, 0x58}, {1, 1, 0x58}, {1, 2, 0x58}, {1, 3, 0x59},
	                                  {1, 0, 0x57}, {1, 1, 0xef}, {1, 1, 0xfe}, {1, 1, 0xd4},
	                                  {1, 1, 0x62}, {2, 1, 0x00}, {2, 1, 0x40}, {2, 1, 0x29},
	                                  {1, 0, 0x5e}, {1, 1, 0xdb}, {1, 1, 0xf4}, {2, 1, 0x3b}};
	unsigned limit = m->wide ? 16 : 8, reg = below(m, limit), other = below(m, limit);
	struct operand o = percent(m, 50) ? any_memory(m) : in_register(below(m, limit));
	bool l = percent(m, 60);

	if (!m->avx2) {
		sse(m);
		return;
	}
	switch (below(m, 6)) {
	case 0:
		vex(m, 1, 0, false, l, 0, percent(m, 50) ? 0x10 : 0x11, reg, &o, 0); /* vmovups */
		break;
	case 1:
		if (percent(m, 20)) { /* vzeroupper */
			byte(m, 0xc5);
			byte(m, 0xf8);
			byte(m, 0x77);
		} else {
			vex(m, 1, 1, false, l, 0, 0x70, reg, &o, 1); /* vpshufd */
			byte(m, below(m, 256));
		}
		break;
	case 2: { /* andn, bextr, shlx, mulx, pdep */
		struct operand g = any_operand(m, 4, 40);
		static const uint8_t bmi[][2] = {{0, 0xf2}, {0, 0xf7}, {1, 0xf7}, {3, 0xf6},
		                                 {3, 0xf5}, {2, 0xf5}, {2, 0xf7}, {0, 0xf5}};
		unsigned pick = below(m, 8);

		vex(m, 2, bmi[pick][0], m->wide && percent(m, 50), false, any_register(m), bmi[pick][1],
		    any_register(m), &g, 0);
		settle(m, 16);
		break;
	}
	case 3: { /* rorx */
		struct operand g = any_operand(m, 4, 40);

		vex(m, 3, 3, m->wide && percent(m, 50), false, 0, 0xf0, any_register(m), &g, 1);
		byte(m, below(m, 64));
		break;
	}
	default: {
		unsigned pick = below(m, sizeof(list) / sizeof(list[0]));
		bool scalar = list[pick][1] >= 2;

		vex(m, list[pick][0], list[pick][1], false, l && !scalar, other, list[pick][2], reg, &o, 0);
		break;
	}
	}
}

static void x87(struct maker *m)
{
	struct operand o;

	byte(m, 0xdb); /* fninit now and then, so that the stack does not stay full */
	byte(m, 0xe3);
	for (unsigned i = 1 + below(m, 4); i > 0; i--) {
		switch (below(m, 6)) {
		case 0:
			o = any_memory(m);
			emit(m, 0, percent(m, 50) ? 0xd9 : 0xdd, 4, 0, &o, 0); /* fld */
			break;
		case 1:
			o = any_memory(m);
			emit(m, 0, percent(m, 50) ? 0xd9 : 0xdd, 4, 3, &o, 0); /* fstp */
			break;
		case 2:
			byte(m, 0xd9); /* fld1 ... fldz */
			byte(m, 0xe8 + below(m, 7));
			break;
		case 3:
			byte(m, 0xde); /* faddp, fmulp, fsubp, fdivp */
			byte(m, 0xc1 + (below(m, 2) ? 8 : 0) + (below(m, 2) ? 0x20 : 0));
			break;
		case 4:
			byte(m, 0xd9); /* fchs, fabs, fxch, fsqrt */
			byte(m, percent(m, 50) ? 0xe0 : percent(m, 50) ? 0xc9 : 0xfa);
			break;
		default:
			o = any_memory(m);
			emit(m, 0, percent(m, 50) ? 0xdb : 0xdf, 4, percent(m, 50) ? 0 : 3, &o, 0); /* fild, fistp */
			break;
		}
	}
}

/* A store into an immediate of the program: of code that ran, that is to run, or of the very next instruction. */
static void modify(struct maker *m)
{
	struct operand o = {.memory = true, .absolute = true, .base = -1, .index = -1};

	if (m->patches && percent(m, 70)) {
		unsigned n = below(m, m->patches);

		o.disp = (int32_t)(PROGRAM_CODE + m->patch[n].at);
		if (m->patch[n].size == 4 && percent(m, 50)) {
			emit(m, 0, 0x89, 4, any_register(m), &o, 0);
		} else {
			emit(m, 0, 0xc6, 1, 0, &o, 1);
			byte(m, below(m, 256));
		}
		return;
	}
	/* mov dword [next + 1], reg; next: mov reg, imm32 */
	unsigned from = any_register(m);
	unsigned length = (from >= 8 ? 1u : 0u) + 7u;
	o.disp = (int32_t)(PROGRAM_CODE + m->at + length + 1);
	emit(m, 0, 0x89, 4, from, &o, 0);
	byte(m, 0xb8 | below(m, 3)); /* EAX, ECX, EDX */
	note_patch(m, 4);
	bytes(m, any_value(m), 4);
}

static void statements(struct maker *m, unsigned count);

static void fixup(struct maker *m, uint32_t place)
{
	uint32_t distance = m->at - (place + 4);

	memcpy(m->code + place, &distance, 4);
}

/* if: a conditional jump over some statements */
static void forward(struct maker *m)
{
	byte(m, 0x0f);
	byte(m, 0x80 | below(m, 16));
	uint32_t place = m->at;
	bytes(m, 0, 4);
	statements(m, 1 + below(m, 3));
	if (percent(m, 30)) { /* else */
		byte(m, 0xe9);
		uint32_t end = m->at;
		bytes(m, 0, 4);
		fixup(m, place);
		label(m);
		statements(m, 1 + below(m, 3));
		fixup(m, end);
	} else {
		fixup(m, place);
	}
	label(m);
}

/* sub dword [fuel], 1; jns over; jmp end. The end's INT3 is found at a fixed place. */
static void burn(struct maker *m)
{
	struct operand o = {.memory = true, .absolute = true, .base = -1, .index = -1, .disp = (int32_t)FUEL};

	emit(m, 0, 0x83, 4, 5, &o, 1);
	byte(m, 1);
	byte(m, 0x0f);
	byte(m, 0x88); /* js end */
	bytes(m, (uint32_t)(PROGRAM_CODE_SIZE - 16 - (m->at + 4)), 4);
}

static void loop(struct maker *m)
{
	struct operand o = {
	    .memory = true, .absolute = true, .base = -1, .index = -1, .disp = (int32_t)COUNTER(m->depth)};

	m->depth++;
	emit(m, 0, 0xc7, 4, 0, &o, 4);
	bytes(m, 1 + below(m, m->depth == 1 && !m->in_function ? 150 : 20), 4);
	uint32_t top = m->at;
	burn(m);
	label(m);
	statements(m, 2 + below(m, 6));
	label(m);
	emit(m, 0, 0xff, 4, 1, &o, 0); /* dec */
	byte(m, 0x0f);
	byte(m, 0x8f); /* jg */
	bytes(m, top - (m->at + 4), 4);
	m->depth--;
	label(m);
}

static void call(struct maker *m)
{
	if (!m->functions)
		return;
	uint32_t target = m->function[below(m, m->functions)];
	burn(m);
	label(m);
	if (percent(m, 50)) {
		byte(m, 0xe8);
		bytes(m, target - (m->at + 4), 4);
	} else if (percent(m, 50)) {
		unsigned reg = any_register(m);

		move_immediate(m, reg, PROGRAM_CODE + target);
		if (reg >= 8)
			byte(m, 0x41);
		byte(m, 0xff);
		byte(m, 0xd0 | (reg & 7));
	} else { /* through the control page's table, which nothing else writes */
		unsigned n = below(m, m->functions);
		struct operand o = {.memory = true,
		                    .absolute = true,
		                    .base = -1,
		                    .index = -1,
		                    .disp = (int32_t)(PROGRAM_CONTROL + 256 + 8 * n)};

		emit(m, 0, 0xff, 4, 2, &o, 0);
	}
	label(m);
}

/* jmp reg over a few bytes that are never executed */
static void jump(struct maker *m)
{
	unsigned reg = any_register(m), garbage = below(m, 20);

	if (percent(m, 50)) {
		byte(m, 0xe9);
		bytes(m, garbage, 4);
	} else {
		uint32_t at = m->at;

		move_immediate(m, reg, 0);
		uint32_t length = m->at - at + 2 + (reg >= 8) + garbage;
		m->at = at;
		move_immediate(m, reg, PROGRAM_CODE + at + length);
		if (reg >= 8)
			byte(m, 0x41);
		byte(m, 0xff);
		byte(m, 0xe0 | (reg & 7));
	}
	for (unsigned i = 0; i < garbage; i++)
		byte(m, below(m, 256));
	label(m);
}

static void statement(struct maker *m)
{
	unsigned pick = below(m, 100);

	label(m);
	if (pick < 18)
		alu(m);
	else if (pick < 32)
		move(m);
	else if (pick < 36)
		lea(m);
	else if (pick < 42)
		shift(m);
	else if (pick < 47)
		unary(m);
	else if (pick < 52)
		conditional(m);
	else if (pick < 58)
		bits(m);
	else if (pick < 62)
		odds(m);
	else if (pick < 67)
		stack(m);
	else if (pick < 70)
		strings(m);
	else if (pick < 76)
		sse(m);
	else if (pick < 81)
		avx(m);
	else if (pick < 83)
		x87(m);
	else if (pick < 85)
		modify(m);
	else if (pick < 91)
		forward(m);
	else if (pick < 93)
		jump(m);
	else if (pick < 96)
		call(m);
	else if (m->depth < DEPTH_MAX)
		loop(m);
}

static void statements(struct maker *m, unsigned count)
{
	for (unsigned i = 0; i < count && m->at < PROGRAM_CODE_SIZE - 2048; i++)
		statement(m);
}

static bool has_avx2(void)
{
	unsigned eax, ebx, ecx, edx;

	return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx >> 5 & 1) && (ebx >> 8 & 1);
}

static void make_state(struct maker *m)
{
	struct program *p = m->program;

	for (unsigned i = 0; i < GPR_COUNT; i++)
		p->gpr[i] = m->wide ? any_value(m) : i < 8 ? (uint32_t)any_value(m) : 0;
	p->gpr[RSP] = PROGRAM_STACK + PROGRAM_STACK_SIZE - 256;
	p->gpr[RBX] = EBX_BASE;
	p->rflags = 0x202 | (random_u64(&m->random) & 0x8d5);
	p->vector = (struct vector_state){.mxcsr = 0x1f80};
	for (unsigned i = 0; i < (m->wide ? 16u : 8u); i++)
		random_bytes(&m->random, p->vector.zmm[i], m->avx2 ? 32 : 16);
	for (unsigned page = PAGE_OF_DATA; page < PAGE_OF_CONTROL; page++)
		random_bytes(&m->random, p->memory[page], 4096);
	memset(p->memory[PAGE_OF_CONTROL], 0, 4096);
}

void program_generate(struct program *program, uint64_t seed, unsigned size)
{
	struct maker m = {.program = program, .random = {seed}, .wide = size == 64, .avx2 = has_avx2()};

	program->seed = seed;
	program->bits = (uint8_t)size;
	program->label_count = 0;
	m.code = program->memory[0];
	memset(m.code, 0xcc, PROGRAM_CODE_SIZE);
	make_state(&m);
	uint32_t fuel = 2000 + below(&m, 6000);
	memcpy(program->memory[PAGE_OF_CONTROL], &fuel, 4);
	/* jmp main; then functions, then main. Page ends are met at different places. */
	byte(&m, 0xe9);
	uint32_t place = m.at;
	bytes(&m, 0, 4);
	for (unsigned i = below(&m, 3000); i > 0; i--)
		byte(&m, 0x90);
	m.in_function = true;
	for (unsigned n = 0; n < FUNCTIONS_MAX; n++) {
		uint64_t address = PROGRAM_CODE + m.at;
		uint32_t start = m.at;

		label(&m);
		statements(&m, 3 + below(&m, 12));
		label(&m);
		if (percent(&m, 20)) { /* ret 0: the form with a number */
			byte(&m, 0xc2);
			bytes(&m, 0, 2);
		} else {
			byte(&m, 0xc3);
		}
		m.function[n] = start;
		memcpy(program->memory[PAGE_OF_CONTROL] + 256 + 8 * n, &address, 8);
		m.functions++;
	}
	m.in_function = false;
	fixup(&m, place);
	label(&m);
	statements(&m, 40 + below(&m, 120));
	/* jmp end: the INT3 bytes that fill the rest */
	label(&m);
	byte(&m, 0xe9);
	bytes(&m, (uint32_t)(PROGRAM_CODE_SIZE - 16 - (m.at + 4)), 4);
	program->end = PROGRAM_CODE + PROGRAM_CODE_SIZE - 16;
	program->code_length = m.at;
}

uint64_t program_trapped(const struct program *program, struct program_result *result, unsigned vector, uint32_t error,
                         uint64_t cr2, uint64_t rip, const uint64_t gpr[GPR_COUNT])
{
	uint32_t low = 0, high = program->label_count;

	if (vector == 3 && rip == program->end + 1) {
		result->ended = true;
		return 0;
	}
	if (result->trap_count == PROGRAM_TRAPS_MAX || rip < PROGRAM_CODE || rip >= PROGRAM_CODE + PROGRAM_CODE_SIZE) {
		result->ended = true;
		return 0;
	}
	struct program_trap *trap = &result->trap[result->trap_count++];
	*trap =
	    (struct program_trap){.vector = (uint8_t)vector, .error = error, .rip = rip, .cr2 = vector == 14 ? cr2 : 0};
	for (unsigned i = 0; i < (program->bits == 64 ? 16u : 8u); i++)
		trap->registers = random_mix(trap->registers ^ gpr[i]) + i;
	while (low < high) { /* the first label behind the instruction's start */
		uint32_t middle = (low + high) / 2;

		if (program->label[middle] <= rip)
			low = middle + 1;
		else
			high = middle;
	}
	return low < program->label_count ? program->label[low] : program->end;
}
