/*
 * From a plan to code: load what the instruction reads, execute it, store what it changed (SDM 2A chapter 2 for the
 *encodings).
 *
 *	[cmpb $0, x87_live(%rdi); je slow]      x87, MMX
 *	[cmpb $0, mxcsr_live(%rdi); je slow]    SSE arithmetic
 *	[push %rbx]                             where the instruction names it implicitly
 *	[and of a bit string's offset]
 *	[OF by ADD AL, the others by SAHF]
 *	mov gpr[n](%rdi), ...; vmovups zmm[n](%rdi), ...; kmovq ...
 *	the instruction, on (%rsi)
 *	the stores; [seto, lahf and their stores]; [vzeroupper]; [pop %rbx]; ret
 *
 * From the load of the flags to their store nothing but MOV comes beside the instruction. The code has no address of
 *its own in it, so equal stubs are equal bytes. A fault of the instruction leaves in the middle, through x86_raise():
 *nothing has been stored then.
 */
#include "engines/interpreter/native_private.h"

#include <string.h>

struct emitter {
	uint8_t *at;
};

static void byte(struct emitter *e, unsigned value)
{
	*e->at++ = (uint8_t)value;
}

static void bytes(struct emitter *e, const char *values, size_t length)
{
	memcpy(e->at, values, length);
	e->at += length;
}
#define BYTES(e, s) bytes(e, s, sizeof(s) - 1)

static void word(struct emitter *e, uint32_t value)
{
	memcpy(e->at, &value, 4);
	e->at += 4;
}

/* ModRM for disp32(%rdi). */
static void at_vcpu(struct emitter *e, unsigned reg, size_t offset)
{
	byte(e, 0x80 | (reg & 7) << 3 | RDI);
	word(e, (uint32_t)offset);
}

#define STATE(field) (offsetof(struct vcpu, state) + offsetof(struct cpu_state, field))

static void move_gpr(struct emitter *e, unsigned opcode, unsigned host, unsigned guest)
{
	byte(e, 0x48 | (host >> 3) << 2);
	byte(e, opcode);
	byte(e, 0x40 | (host & 7) << 3 | RDI); /* the general registers are within disp8 */
	byte(e, STATE(gpr) + guest * 8u);
}
_Static_assert(STATE(gpr) + sizeof(((struct cpu_state *)0)->gpr) <= 128, "disp8 of the general registers");

/* MOVUPS of 16 (legacy or VEX), 32 or 64 bytes; opcode 0x10 loads, 0x11 stores. */
static void move_vector(struct emitter *e, bool legacy, unsigned size, unsigned opcode, unsigned n)
{
	if (legacy) {
		if (n & 8)
			byte(e, 0x44);
		byte(e, 0x0f);
	} else if (size == 64) {
		byte(e, 0x62);
		byte(e, (n & 8 ? 0u : 0x80) | 0x60 | (n & 16 ? 0u : 0x10) | 1);
		byte(e, 0x7c);
		byte(e, 0x48);
	} else {
		byte(e, 0xc5);
		byte(e, (n & 8 ? 0u : 0x80) | 0x78 | (size == 32 ? 4 : 0));
	}
	byte(e, opcode);
	at_vcpu(e, n, STATE(vector.zmm) + n * 64u);
}

/* KMOVQ, or KMOVW where the host has no more; opcode 0x90 loads, 0x91 stores. */
static void move_mask(struct emitter *e, bool wide, unsigned opcode, unsigned k)
{
	byte(e, 0xc4);
	byte(e, 0xe1);
	byte(e, wide ? 0xf8 : 0x78);
	byte(e, opcode);
	at_vcpu(e, k, STATE(vector.opmask) + k * 8u);
}

static void load_flags(struct emitter *e)
{
	BYTES(e, "\x0f\xb6"); /* movzbl overflow(%rdi), %eax */
	at_vcpu(e, RAX, offsetof(struct vcpu, overflow));
	BYTES(e, "\x04\x7f"); /* add $0x7f, %al: OF */
	byte(e, 0x8a);        /* mov rflags(%rdi), %ah */
	at_vcpu(e, 4, STATE(rflags));
	byte(e, 0x9e); /* sahf */
}

static void store_flags(struct emitter *e)
{
	BYTES(e, "\x0f\x90\xc0\x9f"); /* seto %al; lahf */
	byte(e, 0x88);
	at_vcpu(e, 4, STATE(rflags));
	byte(e, 0x88);
	at_vcpu(e, RAX, offsetof(struct vcpu, overflow));
}

/* cmpb $0, flag(%rdi); je: returns where the branch's distance belongs. */
static uint8_t *branch_unless(struct emitter *e, size_t flag)
{
	byte(e, 0x80);
	at_vcpu(e, 7, flag);
	BYTES(e, "\x00\x0f\x84");
	word(e, 0);
	return e->at - 4;
}

static void branch_here(struct emitter *e, uint8_t *branch)
{
	uint32_t distance = (uint32_t)(e->at - (branch + 4));
	memcpy(branch, &distance, 4);
}

/* Out of line: the guest's MXCSR, then back to `resume`. */
static void mxcsr_slow_path(struct emitter *e, const uint8_t *resume)
{
	BYTES(e, "\x0f\xae"); /* ldmxcsr */
	at_vcpu(e, 2, STATE(vector.mxcsr));
	byte(e, 0xc6); /* movb $1 */
	at_vcpu(e, 0, offsetof(struct vcpu, mxcsr_live));
	BYTES(e, "\x01\xe9");
	word(e, (uint32_t)(resume - (e->at + 4)));
}

static void load_registers(struct emitter *e, const struct native *native, const struct native_plan *p, bool legacy)
{
	if (p->form.bit_string) {
		/* Before the flags are loaded; such a form names no other register, or the same. */
		unsigned host = p->gpr[0].host;
		move_gpr(e, 0x8b, host, p->gpr[0].guest);
		byte(e, 0x40 | host >> 3);
		byte(e, 0x83);
		byte(e, 0xe0 | (host & 7));
		byte(e, p->form.memory_size * 8u - 1);
	}
	if (p->flags_loaded)
		load_flags(e);
	for (unsigned n = 0; n < p->gpr_count && !p->form.bit_string; n++)
		move_gpr(e, 0x8b, p->gpr[n].host, p->gpr[n].guest);
	for (unsigned n = 0; n < 32; n++)
		if (p->vectors_loaded >> n & 1)
			move_vector(e, legacy, p->vector_load, 0x10, n);
	for (unsigned k = 0; k < 8; k++)
		if (p->masks_loaded >> k & 1)
			move_mask(e, native->host_avx512bw, 0x90, k);
}

static void store_registers(struct emitter *e, const struct native *native, const struct native_plan *p, bool legacy)
{
	for (unsigned n = 0; n < p->gpr_count; n++)
		if (p->gpr[n].written)
			move_gpr(e, 0x89, p->gpr[n].host, p->gpr[n].guest);
	/* VEX and EVEX forms have zeroed the rest of the register, so the whole is right. */
	for (unsigned n = 0; n < 32; n++)
		if (p->vectors_stored >> n & 1)
			move_vector(e, legacy, legacy ? 16 : native->host_avx512 ? 64 : 32, 0x11, n);
	for (unsigned k = 0; k < 8; k++)
		if (p->masks_stored >> k & 1)
			move_mask(e, native->host_avx512bw, 0x91, k);
	if (p->flags_stored)
		store_flags(e);
}

/* Out of line: native_x87_load(vcpu), then back to `resume`. */
static void x87_slow_path(struct emitter *e, const uint8_t *resume)
{
	uint64_t function = (uint64_t)native_x87_load;
	BYTES(e, "\x57\x56\x48\x83\xec\x08\x48\xb8"); /* push %rdi; push %rsi; sub $8, %rsp; movabs ..., %rax */
	memcpy(e->at, &function, 8);
	e->at += 8;
	BYTES(e, "\xff\xd0\x48\x83\xc4\x08\x5e\x5f\xe9"); /* call *%rax; add $8, %rsp; pop %rsi; pop %rdi; jmp */
	word(e, (uint32_t)(resume - (e->at + 4)));
}

size_t native_stub_emit(const struct native *native, const struct native_plan *p, uint8_t out[NATIVE_STUB_MAX])
{
	struct emitter e = {out};
	bool legacy = p->vector_merge, rbx = false;
	uint8_t *x87_branch = NULL, *mxcsr_branch = NULL;

	if (p->x87)
		x87_branch = branch_unless(&e, offsetof(struct vcpu, x87_live));
	if (p->mxcsr)
		mxcsr_branch = branch_unless(&e, offsetof(struct vcpu, mxcsr_live));
	for (unsigned n = 0; n < p->gpr_count; n++)
		rbx |= p->gpr[n].host == RBX;
	if (rbx)
		byte(&e, 0x53);
	load_registers(&e, native, p, legacy);
	bytes(&e, (const char *)p->code, p->code_length);
	store_registers(&e, native, p, legacy);
	if (!legacy && (p->vectors_loaded || p->vectors_stored))
		BYTES(&e, "\xc5\xf8\x77");
	if (rbx)
		byte(&e, 0x5b);
	byte(&e, 0xc3);
	if (x87_branch) {
		branch_here(&e, x87_branch);
		x87_slow_path(&e, x87_branch + 4);
	}
	if (mxcsr_branch) {
		branch_here(&e, mxcsr_branch);
		mxcsr_slow_path(&e, mxcsr_branch + 4);
	}
	return (size_t)(e.at - out);
}
