/*
 * The registers as gdb knows them: the order of this table is the order of target.xml, of the g packet, and of the
 * numbers in p and P. The features named org.gnu.gdb.* have fixed names (GDB manual, "i386 Features"); org.ring3.system
 * is what a kernel's debugger wants besides.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "debug/gdb_session.h"
#include "devices/lapic.h"
#include "engines/engine.h"

enum kind {
	KIND_GPR,
	KIND_RIP,
	KIND_FLAGS,
	KIND_SELECTOR,
	KIND_ST,
	KIND_X87,
	KIND_XMM,
	KIND_MXCSR,
	KIND_BASE,
	KIND_YMM_HIGH,
	KIND_KERNEL_GS_BASE,
	KIND_CR,
	KIND_EFER,
};

enum x87_register { FCTRL, FSTAT, FTAG, FISEG, FIOFF, FOSEG, FOOFF, FOP };

static const struct gdb_register {
	const char *feature; /* NULL: as before */
	const char *name, *type, *group;
	uint8_t bytes, kind, index;
} registers[] = {
    {"org.gnu.gdb.i386.core", "rax", "int64", NULL, 8, KIND_GPR, RAX},
    {NULL, "rbx", "int64", NULL, 8, KIND_GPR, RBX},
    {NULL, "rcx", "int64", NULL, 8, KIND_GPR, RCX},
    {NULL, "rdx", "int64", NULL, 8, KIND_GPR, RDX},
    {NULL, "rsi", "int64", NULL, 8, KIND_GPR, RSI},
    {NULL, "rdi", "int64", NULL, 8, KIND_GPR, RDI},
    {NULL, "rbp", "data_ptr", NULL, 8, KIND_GPR, RBP},
    {NULL, "rsp", "data_ptr", NULL, 8, KIND_GPR, RSP},
    {NULL, "r8", "int64", NULL, 8, KIND_GPR, R8},
    {NULL, "r9", "int64", NULL, 8, KIND_GPR, R9},
    {NULL, "r10", "int64", NULL, 8, KIND_GPR, R10},
    {NULL, "r11", "int64", NULL, 8, KIND_GPR, R11},
    {NULL, "r12", "int64", NULL, 8, KIND_GPR, R12},
    {NULL, "r13", "int64", NULL, 8, KIND_GPR, R13},
    {NULL, "r14", "int64", NULL, 8, KIND_GPR, R14},
    {NULL, "r15", "int64", NULL, 8, KIND_GPR, R15},
    {NULL, "rip", "code_ptr", NULL, 8, KIND_RIP, 0},
    {NULL, "eflags", "i386_eflags", NULL, 4, KIND_FLAGS, 0},
    {NULL, "cs", "int32", NULL, 4, KIND_SELECTOR, SEG_CS},
    {NULL, "ss", "int32", NULL, 4, KIND_SELECTOR, SEG_SS},
    {NULL, "ds", "int32", NULL, 4, KIND_SELECTOR, SEG_DS},
    {NULL, "es", "int32", NULL, 4, KIND_SELECTOR, SEG_ES},
    {NULL, "fs", "int32", NULL, 4, KIND_SELECTOR, SEG_FS},
    {NULL, "gs", "int32", NULL, 4, KIND_SELECTOR, SEG_GS},
#define ST(n)                                                                                                          \
	{                                                                                                              \
		NULL, "st" #n, "i387_ext", NULL, 10, KIND_ST, n                                                        \
	}
    ST(0),
    ST(1),
    ST(2),
    ST(3),
    ST(4),
    ST(5),
    ST(6),
    ST(7),
#define X87(name, which)                                                                                               \
	{                                                                                                              \
		NULL, name, "int", "float", 4, KIND_X87, which                                                         \
	}
    X87("fctrl", FCTRL),
    X87("fstat", FSTAT),
    X87("ftag", FTAG),
    X87("fiseg", FISEG),
    X87("fioff", FIOFF),
    X87("foseg", FOSEG),
    X87("fooff", FOOFF),
    X87("fop", FOP),
#define XMM(n)                                                                                                         \
	{                                                                                                              \
		NULL, "xmm" #n, "vec128", NULL, 16, KIND_XMM, n                                                        \
	}
    {"org.gnu.gdb.i386.sse", "xmm0", "vec128", NULL, 16, KIND_XMM, 0},
    XMM(1),
    XMM(2),
    XMM(3),
    XMM(4),
    XMM(5),
    XMM(6),
    XMM(7),
    XMM(8),
    XMM(9),
    XMM(10),
    XMM(11),
    XMM(12),
    XMM(13),
    XMM(14),
    XMM(15),
    {NULL, "mxcsr", "i386_mxcsr", "vector", 4, KIND_MXCSR, 0},
    {"org.gnu.gdb.i386.segments", "fs_base", "int", NULL, 8, KIND_BASE, SEG_FS},
    {NULL, "gs_base", "int", NULL, 8, KIND_BASE, SEG_GS},
#define YMM(n)                                                                                                         \
	{                                                                                                              \
		NULL, "ymm" #n "h", "uint128", NULL, 16, KIND_YMM_HIGH, n                                              \
	}
    {"org.gnu.gdb.i386.avx", "ymm0h", "uint128", NULL, 16, KIND_YMM_HIGH, 0},
    YMM(1),
    YMM(2),
    YMM(3),
    YMM(4),
    YMM(5),
    YMM(6),
    YMM(7),
    YMM(8),
    YMM(9),
    YMM(10),
    YMM(11),
    YMM(12),
    YMM(13),
    YMM(14),
    YMM(15),
    {"org.ring3.system", "k_gs_base", "int64", "system", 8, KIND_KERNEL_GS_BASE, 0},
    {NULL, "cr0", "int64", "system", 8, KIND_CR, 0},
    {NULL, "cr2", "int64", "system", 8, KIND_CR, 2},
    {NULL, "cr3", "int64", "system", 8, KIND_CR, 3},
    {NULL, "cr4", "int64", "system", 8, KIND_CR, 4},
    {NULL, "cr8", "int64", "system", 8, KIND_CR, 8},
    {NULL, "efer", "int64", "system", 8, KIND_EFER, 0},
};

#define REGISTER_COUNT (sizeof(registers) / sizeof(registers[0]))

unsigned gdb_register_count(void)
{
	return REGISTER_COUNT;
}

unsigned gdb_register_size(unsigned number)
{
	return number < REGISTER_COUNT ? registers[number].bytes : 0;
}

/* The x87 tag word (SDM 1 8.1.7) from FXSAVE's one bit per register; both count physical registers. */
static uint16_t tag_word(const struct x87_state *x87)
{
	unsigned top = x87->fsw >> 11 & 7;
	uint16_t tags = 0;

	for (unsigned physical = 0; physical < 8; physical++) {
		const uint8_t *st = x87->st[(physical - top) & 7];
		uint64_t significand;
		uint16_t exponent;
		unsigned tag = 0; /* valid */
		memcpy(&significand, st, 8);
		memcpy(&exponent, st + 8, 2);
		exponent &= 0x7fff;
		if (!(x87->ftw >> physical & 1))
			tag = 3;
		else if (exponent == 0 && significand == 0)
			tag = 1;
		else if (exponent == 0x7fff || !(significand >> 63))
			tag = 2;
		tags |= (uint16_t)(tag << 2 * physical);
	}
	return tags;
}

static uint64_t x87_read(const struct x87_state *x87, unsigned which)
{
	switch (which) {
	case FCTRL:
		return x87->fcw;
	case FSTAT:
		return x87->fsw;
	case FTAG:
		return tag_word(x87);
	case FISEG:
		return x87->fip >> 32 & 0xffff;
	case FIOFF:
		return (uint32_t)x87->fip;
	case FOSEG:
		return x87->fdp >> 32 & 0xffff;
	case FOOFF:
		return (uint32_t)x87->fdp;
	default:
		return x87->fop;
	}
}

static void x87_write(struct x87_state *x87, unsigned which, uint32_t value)
{
	switch (which) {
	case FCTRL:
		x87->fcw = (uint16_t)((value & 0x1f3f) | 0x40);
		break;
	case FSTAT:
		x87->fsw = (uint16_t)value;
		break;
	case FTAG:
		x87->ftw = 0;
		for (unsigned i = 0; i < 8; i++)
			x87->ftw |= (uint8_t)(((value >> 2 * i & 3) != 3) << i);
		break;
	case FISEG:
		x87->fip = (uint32_t)x87->fip | (uint64_t)(value & 0xffff) << 32;
		break;
	case FIOFF:
		x87->fip = (x87->fip & ~0xffffffffull) | value;
		break;
	case FOSEG:
		x87->fdp = (uint32_t)x87->fdp | (uint64_t)(value & 0xffff) << 32;
		break;
	case FOOFF:
		x87->fdp = (x87->fdp & ~0xffffffffull) | value;
		break;
	default:
		x87->fop = value & 0x7ff;
	}
}

static uint64_t control_register(struct vcpu *vcpu, unsigned number)
{
	switch (number) {
	case 0:
		return vcpu->state.cr0;
	case 2:
		return vcpu->state.cr2;
	case 3:
		return vcpu->state.cr3;
	case 4:
		return vcpu->state.cr4;
	default:
		return vcpu->lapic ? lapic_cr8(vcpu->lapic) : 0;
	}
}

unsigned gdb_register_read(struct vcpu *vcpu, unsigned number, uint8_t value[GDB_REGISTER_MAX])
{
	const struct cpu_state *state = &vcpu->state;
	uint64_t word = 0;

	if (number >= REGISTER_COUNT)
		return 0;
	const struct gdb_register *reg = &registers[number];
	switch ((enum kind)reg->kind) {
	case KIND_ST:
		memcpy(value, state->x87.st[reg->index], 10);
		return 10;
	case KIND_XMM:
		memcpy(value, state->vector.zmm[reg->index], 16);
		return 16;
	case KIND_YMM_HIGH:
		memcpy(value, state->vector.zmm[reg->index] + 16, 16);
		return 16;
	case KIND_GPR:
		word = state->gpr[reg->index];
		break;
	case KIND_RIP:
		word = state->rip;
		break;
	case KIND_FLAGS:
		word = state->rflags;
		break;
	case KIND_SELECTOR:
		word = state->segment[reg->index].selector;
		break;
	case KIND_X87:
		word = x87_read(&state->x87, reg->index);
		break;
	case KIND_MXCSR:
		word = state->vector.mxcsr;
		break;
	case KIND_BASE:
		word = state->segment[reg->index].base;
		break;
	case KIND_KERNEL_GS_BASE:
		word = state->msr.kernel_gs_base;
		break;
	case KIND_CR:
		word = control_register(vcpu, reg->index);
		break;
	case KIND_EFER:
		word = state->efer;
		break;
	}
	memcpy(value, &word, reg->bytes);
	return reg->bytes;
}

/* In protected mode a selector means a descriptor, which a debugger cannot load: only the present value is taken. */
static bool selector_write(struct cpu_state *state, unsigned segment, uint64_t value)
{
	if (state->segment[segment].selector == value)
		return true;
	if (!cpu_real_or_vm86(state) || value > 0xffff)
		return false;
	state->segment[segment].selector = (uint16_t)value;
	state->segment[segment].base = value << 4;
	return true;
}

static bool base_write(uint64_t *base, uint64_t value)
{
	if (!cpu_canonical(value))
		return false;
	*base = value;
	return true;
}

/* The others hold the processor's mode, which only its own instructions change consistently: they can be read only. */
static bool control_write(struct vcpu *vcpu, unsigned number, uint64_t value)
{
	if (number == 2)
		vcpu->state.cr2 = value;
	else if (number == 8 && vcpu->lapic && value < 16)
		lapic_set_cr8(vcpu->lapic, (unsigned)value);
	else
		return control_register(vcpu, number) == value;
	return true;
}

bool gdb_register_write(struct vcpu *vcpu, unsigned number, const uint8_t *value)
{
	const uint64_t flags = FLAG_ARITHMETIC | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL | FLAG_NT | FLAG_RF | FLAG_AC |
	                       FLAG_VIF | FLAG_VIP | FLAG_ID;
	struct cpu_state *state = &vcpu->state;
	uint64_t word = 0;

	if (number >= REGISTER_COUNT)
		return false;
	const struct gdb_register *reg = &registers[number];
	memcpy(&word, value, reg->bytes < 8 ? reg->bytes : 8);
	switch ((enum kind)reg->kind) {
	case KIND_ST:
		memcpy(state->x87.st[reg->index], value, 10);
		return true;
	case KIND_XMM:
		memcpy(state->vector.zmm[reg->index], value, 16);
		return true;
	case KIND_YMM_HIGH:
		memcpy(state->vector.zmm[reg->index] + 16, value, 16);
		return true;
	case KIND_GPR:
		state->gpr[reg->index] = word;
		return true;
	case KIND_RIP:
		if (cpu_64bit_code(state) ? !cpu_canonical(word) : word > UINT32_MAX)
			return false;
		state->rip = word;
		return true;
	case KIND_FLAGS: /* VM is a change of mode: kept */
		state->rflags = (word & flags) | (state->rflags & ~flags);
		return true;
	case KIND_SELECTOR:
		return selector_write(state, reg->index, word);
	case KIND_X87:
		x87_write(&state->x87, reg->index, (uint32_t)word);
		return true;
	case KIND_MXCSR:
		if (word > 0xffff) /* LDMXCSR would fault */
			return false;
		state->vector.mxcsr = (uint32_t)word;
		return true;
	case KIND_BASE:
		return base_write(&state->segment[reg->index].base, word);
	case KIND_KERNEL_GS_BASE:
		return base_write(&state->msr.kernel_gs_base, word);
	case KIND_CR:
		return control_write(vcpu, reg->index, word);
	case KIND_EFER:
		return state->efer == word;
	}
	return false;
}

/* Types that the core and SSE features use; the names are ours to choose, the fields' names are what gdb prints. */
static const char core_types[] = "<flags id=\"i386_eflags\" size=\"4\">"
                                 "<field name=\"CF\" start=\"0\" end=\"0\"/>"
                                 "<field name=\"\" start=\"1\" end=\"1\"/>"
                                 "<field name=\"PF\" start=\"2\" end=\"2\"/>"
                                 "<field name=\"AF\" start=\"4\" end=\"4\"/>"
                                 "<field name=\"ZF\" start=\"6\" end=\"6\"/>"
                                 "<field name=\"SF\" start=\"7\" end=\"7\"/>"
                                 "<field name=\"TF\" start=\"8\" end=\"8\"/>"
                                 "<field name=\"IF\" start=\"9\" end=\"9\"/>"
                                 "<field name=\"DF\" start=\"10\" end=\"10\"/>"
                                 "<field name=\"OF\" start=\"11\" end=\"11\"/>"
                                 "<field name=\"NT\" start=\"14\" end=\"14\"/>"
                                 "<field name=\"RF\" start=\"16\" end=\"16\"/>"
                                 "<field name=\"VM\" start=\"17\" end=\"17\"/>"
                                 "<field name=\"AC\" start=\"18\" end=\"18\"/>"
                                 "<field name=\"VIF\" start=\"19\" end=\"19\"/>"
                                 "<field name=\"VIP\" start=\"20\" end=\"20\"/>"
                                 "<field name=\"ID\" start=\"21\" end=\"21\"/>"
                                 "</flags>\n";

static const char sse_types[] = "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>"
                                "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
                                "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/>"
                                "<vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
                                "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/>"
                                "<vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
                                "<union id=\"vec128\">"
                                "<field name=\"v4_float\" type=\"v4f\"/>"
                                "<field name=\"v2_double\" type=\"v2d\"/>"
                                "<field name=\"v16_int8\" type=\"v16i8\"/>"
                                "<field name=\"v8_int16\" type=\"v8i16\"/>"
                                "<field name=\"v4_int32\" type=\"v4i32\"/>"
                                "<field name=\"v2_int64\" type=\"v2i64\"/>"
                                "<field name=\"uint128\" type=\"uint128\"/>"
                                "</union>"
                                "<flags id=\"i386_mxcsr\" size=\"4\">"
                                "<field name=\"IE\" start=\"0\" end=\"0\"/>"
                                "<field name=\"DE\" start=\"1\" end=\"1\"/>"
                                "<field name=\"ZE\" start=\"2\" end=\"2\"/>"
                                "<field name=\"OE\" start=\"3\" end=\"3\"/>"
                                "<field name=\"UE\" start=\"4\" end=\"4\"/>"
                                "<field name=\"PE\" start=\"5\" end=\"5\"/>"
                                "<field name=\"DAZ\" start=\"6\" end=\"6\"/>"
                                "<field name=\"IM\" start=\"7\" end=\"7\"/>"
                                "<field name=\"DM\" start=\"8\" end=\"8\"/>"
                                "<field name=\"ZM\" start=\"9\" end=\"9\"/>"
                                "<field name=\"OM\" start=\"10\" end=\"10\"/>"
                                "<field name=\"UM\" start=\"11\" end=\"11\"/>"
                                "<field name=\"PM\" start=\"12\" end=\"12\"/>"
                                "<field name=\"FZ\" start=\"15\" end=\"15\"/>"
                                "</flags>\n";

static void describe_feature(FILE *file, const struct gdb_register *reg, bool first)
{
	fprintf(file, "%s<feature name=\"%s\">\n", first ? "" : "</feature>\n", reg->feature);
	if (reg->kind == KIND_GPR)
		fputs(core_types, file);
	else if (reg->kind == KIND_XMM)
		fputs(sse_types, file);
}

char *gdb_target_description(size_t *length)
{
	char *text = NULL;
	FILE *file = open_memstream(&text, length);

	if (!file)
		return NULL;
	fputs("<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n"
	      "<architecture>i386:x86-64</architecture>\n",
	      file);
	for (unsigned i = 0; i < REGISTER_COUNT; i++) {
		const struct gdb_register *reg = &registers[i];
		if (reg->feature)
			describe_feature(file, reg, i == 0);
		fprintf(file, "<reg name=\"%s\" bitsize=\"%d\" type=\"%s\"", reg->name, reg->bytes * 8, reg->type);
		if (reg->group)
			fprintf(file, " group=\"%s\"", reg->group);
		fputs("/>\n", file);
	}
	fputs("</feature>\n</target>\n", file);
	if (fclose(file) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
