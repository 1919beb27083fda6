/*
 * Between C and translated code: entering, leaving, and the slow path of memory accesses.
 */
#include <stddef.h>

#include "engines/translator/translation.h"

/* Guest registers that live in host registers: guest number, host number. */
static const uint8_t mapped[][2] = {{RAX, RAX}, {RCX, RCX}, {RDX, RDX}, {RBX, RBX}, {RSP, R11}, {RBP, RBP}, {RSI, RSI},
                                    {RDI, RDI}, {R8, R8},   {R12, R12}, {R13, R13}, {R14, R14}, {R15, R15}};
#define MAPPED (sizeof(mapped) / sizeof(mapped[0]))
static const uint8_t saved[] = {RBX, RBP, R12, R13, R14, R15};

static uint32_t gpr(const struct translator *t, unsigned guest)
{
	return xabs(&t->vcpu->state.gpr[guest]);
}

static void emit_pop(struct emitter *e, unsigned reg)
{
	if (reg >= 8)
		emit_byte(e, 0x41);
	emit_byte(e, 0x58 | (reg & 7));
}

static void emit_add_rsp(struct emitter *e, unsigned bytes)
{
	emit_byte(e, 0x48);
	emit_byte(e, 0x83);
	emit_byte(e, 0xc4);
	emit_byte(e, bytes);
}

/*
 * The stack of returns (returns.c) of the current view is kept, and RSP is ring3's own stack, as emit_enter() left it:
 * aligned for calls. Uses S2, and flags.
 */
static void emit_leave_stack(struct emitter *e, const struct translator *t)
{
	emit_load32(e, S2, xabs(&t->vcpu->mmu.view));
	emit_shift_imm(e, 4, S2, 3);
	emit_op_indexed(e, true, 0x89, RSP, S2, xabs(t->return_rsp));
	emit_load(e, RSP, xabs(&t->host_rsp));
}

/* And back. Uses `scratch`, and flags. */
static void emit_take_stack(struct emitter *e, const struct translator *t, unsigned scratch)
{
	emit_load32(e, scratch, xabs(&t->vcpu->mmu.view));
	emit_shift_imm(e, 4, scratch, 3);
	emit_op_indexed(e, true, 0x8b, RSP, scratch, xabs(t->return_rsp));
}

/* The beginning of what is called, and its end: C in between may empty the stack of returns. */
static void emit_called(struct emitter *e, const struct translator *t)
{
	emit_pop_abs(e, xabs(&t->resume));
	emit_leave_stack(e, t);
}

static void emit_come_back(struct emitter *e, const struct translator *t)
{
	emit_take_stack(e, t, S2);
	emit_op_abs(e, false, 0xff, 6, xabs(&t->resume)); /* push */
	emit_byte(e, 0xc3);
}

/* What emit_enter() put on the stack. */
static void emit_restore(struct emitter *e)
{
	emit_add_rsp(e, 8);
	for (unsigned i = sizeof(saved); i-- > 0;)
		emit_pop(e, saved[i]);
}

/* To whoever entered: the run loop. */
static void emit_return(struct emitter *e)
{
	emit_restore(e);
	emit_byte(e, 0xc3);
}

static void emit_spill(struct emitter *e, const struct translator *t)
{
	for (unsigned i = 0; i < MAPPED; i++)
		emit_store(e, mapped[i][1], gpr(t, mapped[i][0]));
}

static void emit_fill(struct emitter *e, const struct translator *t)
{
	for (unsigned i = 0; i < MAPPED; i++)
		emit_load(e, mapped[i][1], gpr(t, mapped[i][0]));
}

/* MOVUPS, VMOVUPS or VMOVDQU64: of a register as much as `level` can have changed. */
static void emit_vector_move(struct emitter *e, const struct translator *t, enum vector_need level, unsigned n,
                             bool store)
{
	uint32_t abs = xabs(t->vcpu->state.vector.zmm[n]);

	if (level == VECTOR_SSE) {
		if (n & 8)
			emit_byte(e, 0x44);
		emit_byte(e, 0x0f);
		emit_byte(e, store ? 0x11 : 0x10);
	} else if (t->avx512) {
		emit_byte(e, 0x62);
		emit_byte(e, 0x61 | (n & 8 ? 0 : 0x80) | (n & 16 ? 0 : 0x10)); /* R, X = 1, B = 1, R', map 0F */
		emit_byte(e, 0xfe);                                            /* W1, F3 */
		emit_byte(e, 0x48);                                            /* 512 bits, no mask */
		emit_byte(e, store ? 0x7f : 0x6f);
	} else {
		emit_byte(e, 0xc5);
		emit_byte(e, (n & 8 ? 0 : 0x80) | 0x7c); /* 256 bits, no prefix */
		emit_byte(e, store ? 0x11 : 0x10);
	}
	emit_byte(e, 0x04 | (n & 7) << 3);
	emit_byte(e, 0x25);
	emit_u32(e, abs);
}

static void emit_mask_move(struct emitter *e, const struct translator *t, unsigned n, bool store)
{
	/* KMOVQ k, m64 and m64, k: VEX.L0.0F.W1 90/91 */
	emit_byte(e, 0xc4);
	emit_byte(e, 0xe1);
	emit_byte(e, 0xf8);
	emit_byte(e, store ? 0x91 : 0x90);
	emit_byte(e, 0x04 | n << 3);
	emit_byte(e, 0x25);
	emit_u32(e, xabs(&t->vcpu->state.vector.opmask[n]));
}

static void emit_level(struct emitter *e, const struct translator *t, enum vector_need level, bool store)
{
	bool high = level == VECTOR_AVX512;

	for (unsigned n = high ? 16 : 0; n < (high ? 32 : 16); n++)
		emit_vector_move(e, t, level, n, store);
	for (unsigned n = 0; high && n < 8; n++)
		emit_mask_move(e, t, n, store);
}

/*
 * Loads or stores vector registers, as many as the level in byte `abs` says (enum vector_need). Legacy SSE leaves upper
 * parts alone, so that they need not be there; VEX clears them. Uses RAX.
 */
static void emit_vectors(struct emitter *e, const struct translator *t, uint32_t abs, bool store)
{
	uint8_t *none, *sse, *avx = NULL, *done;

	emit_byte(e, 0x0f); /* movzx eax, byte [level] */
	emit_op_abs(e, false, 0xb6, RAX, abs);
	emit_group1(e, false, 7, RAX, VECTOR_SSE); /* cmp */
	none = emit_jump_if(e, CC_B);
	sse = emit_jump_if(e, CC_E);
	if (t->avx512) {
		emit_group1(e, false, 7, RAX, VECTOR_AVX);
		avx = emit_jump_if(e, CC_E);
		emit_level(e, t, VECTOR_AVX512, store);
		emit_fix(e, avx);
	}
	if (t->avx) {
		emit_level(e, t, VECTOR_AVX, store);
		if (store) { /* VZEROUPPER: ring3's own SSE code shall not pay for the guest's upper halves */
			emit_byte(e, 0xc5);
			emit_byte(e, 0xf8);
			emit_byte(e, 0x77);
		}
	}
	done = emit_jump(e);
	emit_fix(e, sse);
	emit_level(e, t, VECTOR_SSE, store);
	emit_fix(e, done);
	if (!store) { /* MXCSR is left there on the way out, as forms leave it */
		emit_compare8_abs(e, xabs(&t->vcpu->mxcsr_live), 0);
		uint8_t *live = emit_jump_if(e, CC_NE);
		emit_byte(e, 0x0f); /* ldmxcsr */
		emit_op_abs(e, false, 0xae, 2, xabs(&t->vcpu->state.vector.mxcsr));
		emit_store_imm8(e, xabs(&t->vcpu->mxcsr_live), 1);
		emit_fix(e, live);
	}
	emit_fix(e, none);
}

/* Leaves to function(vcpu, exit_argument, flags, tlb), a handler in form. */
static uint8_t *emit_exit(struct emitter *e, const struct translator *t, handler *function)
{
	uint8_t *start = e->at;

	emit_spill(e, t);
	emit_leave_stack(e, t);
	emit_vectors(e, t, xabs(&t->vector_live), true);
	emit_store_imm8(e, xabs(&t->vector_live), VECTOR_NONE);
	emit_store_imm(e, false, xabs(&t->vector_missing), VECTOR_ALL_MISSING);
	emit_store_imm8(e, xabs(&t->in_code), 0);
	emit_restore(e);
	emit_move_imm64(e, RDI, (uintptr_t)t->vcpu);
	emit_load(e, RSI, xabs(&t->exit_argument));
	emit_load32(e, RDX, xabs(&t->flags));
	emit_move_imm64(e, RCX, (uintptr_t)t);
	emit_move_imm64(e, RAX, (uintptr_t)function);
	emit_byte(e, 0xff); /* jmp rax */
	emit_byte(e, 0xe0);
	return start;
}

/* Jumped to with a link on the stack; `exit_link_flags` with flags in EFLAGS. */
static void emit_exit_link(struct emitter *e, struct translator *t)
{
	t->exit_link_flags = e->at;
	emit_flags_save(e, t);
	t->exit_link = e->at;
	emit_pop_abs(e, xabs(&t->exit_argument));
	emit_exit(e, t, translator_to_link);
}

/* enter(vcpu, host address, flags): never returns here; an exit goes on in C with our caller's return address. */
static void emit_enter(struct emitter *e, struct translator *t)
{
	t->enter = code_arena_executable(&t->arena, e->at);
	for (unsigned i = 0; i < sizeof(saved); i++)
		emit_push(e, saved[i]);
	emit_byte(e, 0x48); /* sub rsp, 8: aligned for calls */
	emit_byte(e, 0x83);
	emit_byte(e, 0xec);
	emit_byte(e, 8);
	emit_store(e, RSP, xabs(&t->host_rsp));
	emit_store(e, RSI, xabs(&t->target));
	emit_store32(e, RDX, xabs(&t->flags));
	emit_vectors(e, t, xabs(&t->vector_live), false);
	emit_fill(e, t);
	emit_take_stack(e, t, S2);
	emit_jump_abs(e, xabs(&t->target));
}

/* On ring3's stack: function(t, R9) with the guest's registers in the vCPU block; what it returns is in R9 afterwards. */
static void emit_round_trip(struct emitter *e, const struct translator *t, uintptr_t function)
{
	emit_spill(e, t);
	emit_vectors(e, t, xabs(&t->vector_live), true);
	emit_move_imm64(e, RDI, (uintptr_t)t);
	emit_move(e, RSI, R9);
	emit_move_imm64(e, RAX, function);
	emit_byte(e, 0xff); /* call rax */
	emit_byte(e, 0xd0);
	emit_move(e, R9, RAX);
	emit_vectors(e, t, xabs(&t->vector_live), false);
	emit_fill(e, t);
}

/* Guest registers that a C function may change: guest number, host number. */
static const uint8_t changed[][2] = {{RAX, RAX}, {RCX, RCX}, {RDX, RDX}, {RSP, R11}, {RSI, RSI}, {RDI, RDI}, {R8, R8}};

static void emit_changed(struct emitter *e, const struct translator *t, unsigned opcode)
{
	for (unsigned i = 0; i < sizeof(changed) / sizeof(changed[0]); i++)
		emit_op_abs(e, true, opcode, changed[i][1], gpr(t, changed[i][0]));
}

/* Returns to where a site was pushed. */
void emit_return_site(struct emitter *e)
{
	emit_byte(e, 0xc2); /* ret 8 */
	emit_byte(e, 8);
	emit_byte(e, 0);
}

/*
 * Called with a site on the stack: comes back with what function(t, R9) says in R9 if that is not 0, and goes on here, on
 * ring3's stack, with R9 as it was if it is. The function touches no vector registers.
 */
static void emit_quick(struct emitter *e, const struct translator *t, uintptr_t function)
{
	emit_pop_abs(e, xabs(&t->resume));
	emit_pop_abs(e, xabs(&t->resume_site));
	emit_leave_stack(e, t);
	emit_load(e, S2, xabs(&t->resume_site));
	emit_store(e, S2, xabs(&t->exit_argument));
	emit_changed(e, t, 0x89);
	emit_store(e, R9, xabs(&t->missed));
	emit_move(e, RSI, R9);
	emit_move_imm64(e, RDI, (uintptr_t)t);
	emit_move_imm64(e, RAX, function);
	emit_byte(e, 0xff); /* call rax: aligned */
	emit_byte(e, 0xd0);
	emit_move(e, R9, RAX);
	emit_changed(e, t, 0x8b);
	emit_op_reg(e, true, 0x85, R9, R9); /* test */
	uint8_t *none = emit_jump_if(e, CC_E);
	emit_come_back(e, t);
	emit_fix(e, none);
	emit_load(e, R9, xabs(&t->missed));
}

/* Where there was a look-up: with the XORed address in R9 and the entry's offset in R10. */
static void emit_xored(struct emitter *e, struct translator *t, uint8_t *entry[MMU_VIEWS][2], const uint8_t *target)
{
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		for (unsigned write = 0; write < 2; write++) {
			entry[view][write] = e->at;
			emit_op_indexed(e, true, 0x33, S1, S2, xabs(&t->tlb[view][0].tag[write])); /* xor */
			emit_jump_to(e, target);
		}
}

/* An instruction that missed was done otherwise: on behind it. */
static void emit_go_behind(struct emitter *e, const struct translator *t)
{
	emit_take_stack(e, t, S2);
	emit_load(e, S2, xabs(&t->resume_site));
	emit_load_short(e, 0xb7, S1, S2, offsetof(struct xsite, end));
	emit_op_base(e, false, 0x03, S1, S2, offsetof(struct xsite, host)); /* add */
	emit_store(e, S1, xabs(&t->target));
	emit_move_imm64(e, S1, (uintptr_t)t->arena.execute);
	emit_op_abs(e, true, 0x01, S1, xabs(&t->target));
	emit_op_base(e, false, 0x80, 7, S2, offsetof(struct xsite, end_in_register)); /* cmp */
	emit_byte(e, 0);
	uint8_t *memory = emit_jump_if(e, CC_E);
	emit_flags_restore(e, t);
	emit_fix(e, memory);
	emit_jump_abs(e, xabs(&t->target));
}

/*
 * Called by an access that missed, with the linear address in R9 and the site on the stack: C finds the host address, which
 * goes on in R9, or does the whole instruction.
 */
static void emit_slow_trampoline(struct emitter *e, struct translator *t)
{
	t->slow = e->at;
	emit_quick(e, t, (uintptr_t)translator_fill);
	emit_round_trip(e, t, (uintptr_t)translator_slow);
	emit_group1(e, true, 7, R9, SLOW_LEAVE); /* cmp */
	uint8_t *leave = emit_jump_if(e, CC_E), *other = emit_jump_if(e, CC_B);
	emit_come_back(e, t);
	emit_fix(e, other);
	emit_op_reg(e, true, 0x85, R9, R9); /* test */
	uint8_t *terminal = emit_jump_if(e, CC_E);
	emit_go_behind(e, t);
	emit_fix(e, terminal);
	emit_take_stack(e, t, S2);
	emit_jump_to(e, t->exit_slot);
	emit_fix(e, leave);
	emit_return(e);
	emit_xored(e, t, t->slow_xored, t->slow);
}

/*
 * Called by a group's check that missed, with the linear address in R9 and the site on the stack: the difference in R9, or to
 * the slot.
 */
static void emit_probe(struct emitter *e, struct translator *t)
{
	const uint8_t *probe = e->at;

	emit_quick(e, t, (uintptr_t)translator_fill_group);
	emit_round_trip(e, t, (uintptr_t)translator_probe);
	emit_op_reg(e, true, 0x85, R9, R9); /* test */
	uint8_t *none = emit_jump_if(e, CC_E);
	emit_come_back(e, t);
	emit_fix(e, none);
	emit_take_stack(e, t, S2);
	emit_jump_to(e, t->exit_slot);
	emit_xored(e, t, t->probe_xored, probe);
}

/*
 * Called by a check that the window does not pass, with the address less the window's in R9 and the site on the stack. The
 * window is moved, if the TLB has the page; not if it begins there, as only the bytes that were rounded up are outside then.
 */
static void emit_window(struct emitter *e, struct translator *t, unsigned view)
{
	uint32_t tag = xabs(&t->tlb[view][0].tag[1]), delta = xabs(&t->tlb[view][0].delta[1]);
	struct xwindow *window = &t->window[view];

	t->window_move[view] = e->at;
	emit_push(e, RAX);
	emit_op_base(e, true, 0x8b, RAX, RSP, 16);
	emit_load_short(e, 0xb6, S2, RAX, offsetof(struct xsite, slack));
	emit_op_reg(e, true, 0x01, S2, S1); /* add */
	emit_op_abs(e, true, 0x03, S1, xabs(&window->start));
	emit_tlb_offset(e, S2, S1);
	emit_op_indexed(e, true, 0x33, S1, S2, tag);
	emit_load_short(e, 0xb7, RAX, RAX, offsetof(struct xsite, span));
	emit_group1(e, true, 5, RAX, MEMORY_PAGE_SIZE); /* sub */
	emit_op_reg(e, true, 0xf7, 3, RAX);             /* neg: the last offset that it may have */
	emit_op_reg(e, true, 0x39, RAX, S1);            /* cmp s1, rax */
	emit_pop(e, RAX);
	uint8_t *miss = emit_jump_if(e, CC_A);
	emit_op_indexed(e, true, 0x8b, S1, S2, tag);
	emit_op_abs(e, true, 0x3b, S1, xabs(&window->start)); /* cmp */
	uint8_t *moves = emit_jump_if(e, CC_NE);
	emit_op_indexed(e, true, 0x8b, S1, S2, delta);
	emit_op_abs(e, true, 0x3b, S1, xabs(&window->delta)); /* cmp: it is not void */
	uint8_t *stays = emit_jump_if(e, CC_E);
	emit_op_indexed(e, true, 0x8b, S1, S2, tag);
	emit_fix(e, moves);
	emit_store(e, S1, xabs(&window->start));
	emit_op_indexed(e, true, 0x8b, S1, S2, delta);
	emit_store(e, S1, xabs(&window->delta));
	for (unsigned n = 0; n < sizeof(window->fits) / sizeof(window->fits[0]); n++)
		emit_store_imm(e, true, xabs(&window->fits[n]), (int32_t)(MEMORY_PAGE_SIZE - (WINDOW_LEAST << n) + 1));
	emit_fix(e, stays);
	emit_return_site(e);
	emit_fix(e, miss);
	emit_jump_to(e, t->probe_xored[view][1]);
}

/* Called by an access whose page is in the TLB and not in its range. */
static void emit_range(struct emitter *e, struct translator *t)
{
	range_emit_move(e, t);
	emit_leave_stack(e, t); /* which translator_range_spent() leaves as it is */
	emit_round_trip(e, t, (uintptr_t)translator_range_spent);
	emit_take_stack(e, t, S2);
	emit_byte(e, 0xc3);
}

/* Called where a count ended, `exit_argument` its site. */
static void emit_warm(struct emitter *e, struct translator *t)
{
	t->warm = e->at;
	emit_called(e, t);
	emit_round_trip(e, t, (uintptr_t)translator_warm);
	emit_come_back(e, t);
}

/* Called where other pages are not what is noted of them, `exit_argument` the site. */
static void emit_across(struct emitter *e, struct translator *t)
{
	t->across_look = e->at;
	emit_called(e, t);
	emit_round_trip(e, t, (uintptr_t)translator_across);
	emit_come_back(e, t);
}

/* Called with `exit_argument` the site of an instruction that the interpreter is to do. */
static void emit_call_out(struct emitter *e, struct translator *t)
{
	t->call_out = e->at;
	emit_called(e, t);
	emit_round_trip(e, t, (uintptr_t)translator_call_out);
	emit_group1(e, true, 7, R9, SLOW_LEAVE);
	uint8_t *leave = emit_jump_if(e, CC_E);
	emit_come_back(e, t);
	emit_fix(e, leave);
	emit_return(e);
}

/* Jumped to with `exit_argument` the site of a terminal instruction that the interpreter is to do. */
static void emit_sensitive(struct emitter *e, struct translator *t)
{
	t->sensitive = e->at;
	emit_leave_stack(e, t);
	emit_round_trip(e, t, (uintptr_t)translator_sensitive);
	emit_group1(e, true, 7, R9, SLOW_LEAVE);
	uint8_t *leave = emit_jump_if(e, CC_E);
	/* As an indirect transfer comes, which has the address in R9. */
	emit_store(e, R9, xabs(&t->target));
	emit_load(e, R9, xabs(&t->vcpu->state.rip));
	emit_take_stack(e, t, S2);
	emit_jump_abs(e, xabs(&t->target));
	emit_fix(e, leave);
	emit_return(e);
}

/*
 * Called by a string instruction, with `exit_argument` the site: translator_string() with what C leaves alone still in
 * registers, then, if that was not all, the slow way.
 */
static void emit_string(struct emitter *e, struct translator *t)
{
	t->string = e->at;
	emit_called(e, t);
	emit_changed(e, t, 0x89);
	emit_move_imm64(e, RDI, (uintptr_t)t);
	emit_load(e, RSI, xabs(&t->exit_argument));
	emit_move_imm64(e, RAX, (uintptr_t)translator_string);
	emit_byte(e, 0xff); /* call rax */
	emit_byte(e, 0xd0);
	emit_op_reg(e, false, 0x89, RAX, R9);
	emit_changed(e, t, 0x8b);
	emit_op_reg(e, false, 0x85, R9, R9); /* test */
	uint8_t *more = emit_jump_if(e, CC_NE);
	emit_come_back(e, t);
	emit_fix(e, more);
	emit_round_trip(e, t, (uintptr_t)translator_string_slow);
	emit_group1(e, true, 7, R9, SLOW_DONE);
	uint8_t *leave = emit_jump_if(e, CC_A), *terminal = emit_jump_if(e, CC_B);
	emit_come_back(e, t);
	emit_fix(e, leave);
	emit_return(e);
	emit_fix(e, terminal);
	emit_take_stack(e, t, S2);
	emit_jump_to(e, t->exit_slot);
}

/*
 * The other slot where a target may be, jumped to as emit_indirect() is: on to the target, with RSP where it belongs, or
 * further on, with `misses`.
 */
static void emit_other_target(struct emitter *e, const struct translator *t, unsigned code_view, uint8_t *misses[2])
{
	bool wide = code_view < MMU_VIEWS;

	emit_rorx(e, S2, S1, 64 - 4 + XJUMP_SHIFT);
	emit_group1(e, false, 4, S2, (XJUMP_SIZE - 1) << 4);                    /* and */
	emit_group1(e, false, 6, S2, XJUMP_OTHER << 4);                         /* xor */
	emit_op_indexed(e, true, 0x3b, S1, S2, xabs(&t->jump[code_view]->rip)); /* cmp */
	misses[0] = emit_jump_if(e, CC_NE);
	emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
	misses[1] = emit_jump_if(e, CC_NE);
	emit_store(e, S1, xabs(&t->target));
	emit_pop(e, S1);
	emit_load_short(e, 0xb7, S1, S1, offsetof(struct xsite, release));
	emit_op_reg(e, wide, 0x01, S1, GUEST_RSP); /* add */
	emit_load(e, S1, xabs(&t->target));
	emit_op_indexed(e, false, 0xff, 4, S2, xabs(&t->jump[code_view]->host)); /* jmp */
}

/* Jumped to with the target in R9 and the site on the stack. The target is looked for; if it is not found, to C. */
static void emit_indirect(struct emitter *e, struct translator *t)
{
	uint8_t *miss[XVIEWS][2], *miss_floating[2];

	t->exit_indirect_floating = e->at;
	emit_other_target(e, t, MMU_USER, miss_floating);
	emit_fix(e, miss_floating[0]);
	emit_fix(e, miss_floating[1]);
	emit_store(e, S1, xabs(&t->target));
	emit_load(e, S1, xabs(&t->code_page));
	uint8_t *page = emit_jump(e);
	for (unsigned code_view = 0; code_view < XVIEWS; code_view++) {
		t->exit_indirect[code_view] = e->at;
		emit_other_target(e, t, code_view, miss[code_view]);
	}
	for (unsigned code_view = 0; code_view < XVIEWS; code_view++) {
		emit_fix(e, miss[code_view][0]);
		emit_fix(e, miss[code_view][1]);
	}
	emit_store(e, S1, xabs(&t->target));
	emit_op_reg(e, true, 0x31, S1, S1); /* xor */
	emit_fix(e, page);
	emit_pop(e, S2);
	emit_op_base(e, true, 0x03, S1, S2, offsetof(struct xsite, rip)); /* add */
	emit_store(e, S1, xabs(&t->vcpu->state.rip));
	emit_op_base(e, true, 0x8b, S1, S2, offsetof(struct xsite, slot));
	emit_store(e, S1, xabs(&t->exit_argument));
	emit_load_short(e, 0xb7, S1, S2, offsetof(struct xsite, release));
	emit_store(e, S1, xabs(&t->release));
	emit_load_short(e, 0xb6, S1, S2, offsetof(struct xsite, undo));
	emit_store(e, S1, xabs(&t->undo));
	emit_changed(e, t, 0x89);
	emit_leave_stack(e, t);
	emit_move_imm64(e, RDI, (uintptr_t)t);
	emit_move_imm64(e, RAX, (uintptr_t)translator_find);
	emit_byte(e, 0xff); /* call rax */
	emit_byte(e, 0xd0);
	emit_move(e, S2, RAX);
	emit_changed(e, t, 0x8b);
	emit_take_stack(e, t, S1);
	emit_op_reg(e, true, 0x85, S2, S2); /* test */
	uint8_t *none = emit_jump_if(e, CC_E);
	emit_load(e, S1, xabs(&t->target));
	emit_op_reg(e, false, 0xff, 4, S2); /* jmp */
	emit_fix(e, none);
	emit_exit(e, t, translator_to_address);
}

/*
 * A block was reached whose vector registers are not there, exit_argument and S2: they are loaded and it is entered by B,
 * where nothing else is in the way; or to C.
 */
static void emit_vector(struct emitter *e, struct translator *t)
{
	uint8_t *slow[3];

	t->exit_vector = e->at;
	emit_load(e, S1, xabs(&t->lockstep));
	emit_op_reg(e, true, 0x85, S1, S1); /* test */
	slow[0] = emit_jump_if(e, CC_NE);
	emit_op_base(e, false, 0x80, 7, S2, offsetof(struct xblock, x87)); /* cmp */
	emit_byte(e, 0);
	uint8_t *without = emit_jump_if(e, CC_E);
	emit_compare8_abs(e, xabs(&t->vcpu->x87_missing), 0);
	slow[1] = emit_jump_if(e, CC_NE);
	emit_fix(e, without);
	emit_load_short(e, 0xb6, S1, S2, offsetof(struct xblock, vector));
	emit_load_short(e, 0xb6, S1, S1, xabs(t->vector_classes));
	emit_op_abs(e, false, 0x84, S1, xabs(&t->vcpu->classes_disabled)); /* test */
	slow[2] = emit_jump_if(e, CC_NE);
	emit_store(e, RAX, gpr(t, RAX));
	emit_vectors(e, t, xabs(&t->vector_live), true);
	emit_load_short(e, 0xb6, RAX, S2, offsetof(struct xblock, vector));
	emit_op_abs(e, false, 0x88, RAX, xabs(&t->vector_live));
	emit_shift_imm(e, 4, RAX, 2);
	emit_op_indexed(e, false, 0x8b, RAX, RAX, xabs(t->missing_with_live));
	emit_store32(e, RAX, xabs(&t->vector_missing));
	emit_vectors(e, t, xabs(&t->vector_live), false);
	emit_increment_abs(e, xabs(&t->counters.raised));
	emit_load(e, RAX, gpr(t, RAX));
	emit_op_base(e, true, 0x8b, S2, S2, offsetof(struct xblock, entry_b));
	emit_move_imm64(e, S1, (uint64_t)(t->arena.execute - t->arena.write));
	emit_op_reg(e, true, 0x01, S1, S2);
	emit_op_reg(e, false, 0xff, 4, S2); /* jmp */
	for (unsigned n = 0; n < 3; n++)
		emit_fix(e, slow[n]);
	emit_exit(e, t, translator_to_vector);
}

bool translator_emit_trampolines(struct translator *t)
{
	uint8_t *memory = code_arena_allocate(&t->arena, TRAMPOLINES_SIZE, 64);
	struct emitter e = {.at = memory, .end = memory ? memory + TRAMPOLINES_SIZE : NULL};

	t->string_room = code_arena_allocate(&t->arena, STRING_ROOM, 64);
	if (!memory || !t->string_room)
		return false;
	t->string_room_end = t->string_room + STRING_ROOM;
	emit_enter(&e, t);
	t->exit_slot = emit_exit(&e, t, translator_to_slot);
	emit_exit_link(&e, t);
	t->exit_fault = emit_exit(&e, t, translator_to_fault);
	emit_slow_trampoline(&e, t);
	emit_probe(&e, t);
	for (unsigned view = 0; view < MMU_VIEWS; view++)
		emit_window(&e, t, view);
	emit_range(&e, t);
	range_emit_misses(&e, t);
	place_emit_misses(&e, t);
	emit_warm(&e, t);
	emit_across(&e, t);
	emit_call_out(&e, t);
	emit_sensitive(&e, t);
	emit_string(&e, t);
	emit_indirect(&e, t);
	emit_vector(&e, t);
	code_arena_publish();
	return !e.full;
}
