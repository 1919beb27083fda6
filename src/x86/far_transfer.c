/*
 * Far JMP, CALL and RET: direct, through call gates, to tasks (SDM 2A JMP, CALL, RET; 3A 5.8).
 */
#include "x86/segments.h"
#include "x86/transfer.h"

static uint64_t offset_truncate(uint64_t offset, unsigned operand_size)
{
	return operand_size == 8 ? offset : operand_size == 4 ? (uint32_t)offset : (uint16_t)offset;
}

/* The code segment as it is after the transfer; checks the target's offset. */
static struct segment target_segment(struct vcpu *vcpu, const struct descriptor *code, unsigned cpl, uint64_t offset)
{
	struct segment cs = descriptor_segment(code, cpl);
	cs.access |= SEG_ACCESSED;
	return_check_ip(vcpu, &cs, offset);
	return cs;
}

/* Long mode: L and D together are reserved. */
static void check_mode_bits(struct vcpu *vcpu, const struct descriptor *code, bool want_64bit)
{
	if (!cpu_long_mode(&vcpu->state))
		return;
	uint32_t bits = descriptor_access(code) & (SEG_L | SEG_DB);
	if (bits == (SEG_L | SEG_DB) || (want_64bit && bits != SEG_L))
		x86_raise_error(vcpu, VECTOR_GP, selector_error(code->selector, 0));
}

/* A code segment named directly: no change of privilege (SDM 3A 5.8.1). */
static void check_direct(struct vcpu *vcpu, const struct descriptor *code)
{
	unsigned cpl = cpu_cpl(&vcpu->state), dpl = descriptor_dpl(code), rpl = code->selector & 3u;
	uint32_t error = selector_error(code->selector, 0);
	check_mode_bits(vcpu, code, false);
	if (descriptor_is_conforming_code(code) ? dpl > cpl : rpl > cpl || dpl != cpl)
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(code))
		x86_raise_error(vcpu, VECTOR_NP, error);
}

/* Who may use a gate or TSS descriptor: both CPL and RPL at most DPL. */
static void check_gate_access(struct vcpu *vcpu, const struct descriptor *gate)
{
	unsigned dpl = descriptor_dpl(gate);
	if (dpl < cpu_cpl(&vcpu->state) || dpl < (gate->selector & 3u))
		x86_raise_error(vcpu, VECTOR_GP, selector_error(gate->selector, 0));
}

static void check_gate_present(struct vcpu *vcpu, const struct descriptor *gate)
{
	if (!descriptor_is_present(gate))
		x86_raise_error(vcpu, VECTOR_NP, selector_error(gate->selector, 0));
}

/* A far transfer's target of system type: what it is, or #GP(selector). */
enum system_target { TARGET_CALL_GATE, TARGET_TASK_GATE, TARGET_TSS };

static enum system_target system_target(struct vcpu *vcpu, const struct descriptor *d)
{
	bool wide = cpu_long_mode(&vcpu->state);
	switch (descriptor_type(d)) {
	case TYPE_CALL_GATE:
		return TARGET_CALL_GATE;
	case TYPE_CALL_GATE16:
		if (!wide)
			return TARGET_CALL_GATE;
		break;
	case TYPE_TASK_GATE:
		if (!wide)
			return TARGET_TASK_GATE;
		break;
	case TYPE_TSS16_AVAILABLE:
	case TYPE_TSS_AVAILABLE:
		if (!wide)
			return TARGET_TSS;
		break;
	}
	x86_raise_error(vcpu, VECTOR_GP, selector_error(d->selector, 0));
}

static void transfer_to_task(struct vcpu *vcpu, const struct descriptor *d, enum system_target target,
                             enum task_switch reason, uint64_t next_rip)
{
	check_gate_access(vcpu, d);
	uint16_t selector = d->selector;
	if (target == TARGET_TASK_GATE) {
		check_gate_present(vcpu, d);
		selector = descriptor_gate_selector(d);
	}
	task_switch(vcpu, selector, reason, next_rip, false, 0, 0);
}

/* Reads what a call gate names; checks all but the stack. */
static void call_gate_target(struct vcpu *vcpu, struct descriptor *gate, struct descriptor *code)
{
	check_gate_access(vcpu, gate);
	check_gate_present(vcpu, gate);
	if (cpu_long_mode(&vcpu->state))
		descriptor_read_upper(vcpu, gate, VECTOR_GP, 0);
	uint16_t selector = descriptor_gate_selector(gate);
	if (selector_is_null(selector))
		x86_raise(vcpu, VECTOR_GP);
	descriptor_read(vcpu, code, selector, VECTOR_GP, 0);
	uint32_t error = selector_error(selector, 0);
	if (!descriptor_is_code(code) || descriptor_dpl(code) > cpu_cpl(&vcpu->state))
		x86_raise_error(vcpu, VECTOR_GP, error);
	check_mode_bits(vcpu, code, true);
}

static uint64_t gate_offset(const struct descriptor *gate)
{
	uint64_t offset = descriptor_gate_offset(gate);
	return descriptor_type(gate) == TYPE_CALL_GATE16 ? offset & 0xffff : offset;
}

static void jump_real(struct vcpu *vcpu, uint16_t selector, uint64_t offset)
{
	if (offset > vcpu->state.segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	segment_load_real(vcpu, SEG_CS, selector);
	vcpu->state.rip = offset;
}

void x86_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	offset = offset_truncate(offset, operand_size);
	if (cpu_real_or_vm86(s)) {
		jump_real(vcpu, selector, offset);
		return;
	}
	if (selector_is_null(selector))
		x86_raise(vcpu, VECTOR_GP);
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	unsigned cpl = cpu_cpl(s);
	if (descriptor_is_system(&d)) {
		enum system_target target = system_target(vcpu, &d);
		if (target != TARGET_CALL_GATE) {
			transfer_to_task(vcpu, &d, target, TASK_SWITCH_JUMP, next_rip);
			return;
		}
		struct descriptor gate = d;
		call_gate_target(vcpu, &gate, &d);
		/* A jump never changes privilege (SDM 3A 5.8.4). */
		if (!descriptor_is_conforming_code(&d) && descriptor_dpl(&d) != cpl)
			x86_raise_error(vcpu, VECTOR_GP, selector_error(d.selector, 0));
		if (!descriptor_is_present(&d))
			x86_raise_error(vcpu, VECTOR_NP, selector_error(d.selector, 0));
		offset = gate_offset(&gate);
	} else {
		if (!descriptor_is_code(&d))
			x86_raise_error(vcpu, VECTOR_GP, selector_error(selector, 0));
		check_direct(vcpu, &d);
	}
	struct segment cs = target_segment(vcpu, &d, cpl, offset);
	descriptor_set_accessed(vcpu, &d);
	transfer_commit_code(vcpu, &cs, offset);
}

static void call_real(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	if (offset > s->segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	struct stack stack = stack_current(vcpu, 0);
	const uint64_t frame[] = {s->segment[SEG_CS].selector, next_rip};
	stack_push_frame(&stack, frame, 2, operand_size);
	stack_commit(&stack);
	segment_load_real(vcpu, SEG_CS, selector);
	s->rip = offset;
}

/* CALL that stays at its privilege: pushes CS and the return address. */
static void call_same(struct vcpu *vcpu, struct descriptor *code, uint64_t offset, unsigned size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	struct segment cs = target_segment(vcpu, code, cpu_cpl(s), offset);
	struct stack stack = stack_current(vcpu, 0);
	if (size == 8) /* also through a gate from compatibility mode */
		stack.mask = ~0ull;
	const uint64_t frame[] = {s->segment[SEG_CS].selector, next_rip};
	descriptor_set_accessed(vcpu, code);
	stack_push_frame(&stack, frame, 2, size);
	stack_commit(&stack);
	transfer_commit_code(vcpu, &cs, offset);
}

/* CALL through a gate to an inner level: the stack of that level, the caller's SS:SP, its parameters, CS:IP (SDM 3A
 * figure 5-13). */
static void call_inner(struct vcpu *vcpu, const struct descriptor *gate, struct descriptor *code, uint64_t offset,
                       unsigned size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	unsigned new_cpl = descriptor_dpl(code);
	uint16_t ss_selector;
	uint64_t sp;
	tss_read_stack(vcpu, new_cpl, 0, &ss_selector, &sp);

	struct descriptor stack_descriptor;
	struct segment ss;
	bool wide = cpu_long_mode(s);
	if (wide)
		ss = segment_null((uint16_t)new_cpl, new_cpl);
	else {
		stack_segment_read(vcpu, &stack_descriptor, ss_selector, new_cpl, 0);
		ss = descriptor_segment(&stack_descriptor, new_cpl);
		ss.access |= SEG_ACCESSED;
	}
	struct segment cs = target_segment(vcpu, code, new_cpl, offset);

	uint64_t frame[STACK_FRAME_MAX];
	unsigned count = 0;
	frame[count++] = s->segment[SEG_SS].selector;
	frame[count++] = s->gpr[RSP];
	if (!wide) {
		unsigned parameters = (unsigned)(gate->raw >> 32) & 31;
		struct stack old = stack_current(vcpu, 0);
		for (unsigned i = parameters; i > 0; i--)
			frame[count++] = stack_peek(&old, i - 1, size);
	}
	frame[count++] = s->segment[SEG_CS].selector;
	frame[count++] = next_rip;

	struct stack stack = stack_new(vcpu, &ss, sp, new_cpl, wide, selector_error(ss.selector, 0));
	descriptor_set_accessed(vcpu, code);
	if (!wide)
		descriptor_set_accessed(vcpu, &stack_descriptor);
	stack_push_frame(&stack, frame, count, size);
	s->segment[SEG_SS] = ss;
	stack_commit(&stack);
	transfer_commit_code(vcpu, &cs, offset);
}

void x86_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	offset = offset_truncate(offset, operand_size);
	if (cpu_real_or_vm86(s)) {
		call_real(vcpu, selector, offset, operand_size, next_rip);
		return;
	}
	if (selector_is_null(selector))
		x86_raise(vcpu, VECTOR_GP);
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	if (!descriptor_is_system(&d)) {
		if (!descriptor_is_code(&d))
			x86_raise_error(vcpu, VECTOR_GP, selector_error(selector, 0));
		check_direct(vcpu, &d);
		call_same(vcpu, &d, offset, operand_size, next_rip);
		return;
	}
	enum system_target target = system_target(vcpu, &d);
	if (target != TARGET_CALL_GATE) {
		transfer_to_task(vcpu, &d, target, TASK_SWITCH_CALL, next_rip);
		return;
	}
	struct descriptor gate = d;
	call_gate_target(vcpu, &gate, &d);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, selector_error(d.selector, 0));
	unsigned size = cpu_long_mode(s) ? 8 : descriptor_type(&gate) == TYPE_CALL_GATE16 ? 2 : 4;
	offset = gate_offset(&gate);
	if (!descriptor_is_conforming_code(&d) && descriptor_dpl(&d) < cpu_cpl(s))
		call_inner(vcpu, &gate, &d, offset, size, next_rip);
	else
		call_same(vcpu, &d, offset, size, next_rip);
}

static void return_real(struct vcpu *vcpu, unsigned size, uint16_t release_bytes)
{
	struct stack stack = stack_current(vcpu, 0);
	uint64_t ip = stack_peek(&stack, 0, size);
	uint16_t selector = (uint16_t)stack_peek(&stack, 1, size);
	if (ip > vcpu->state.segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	stack_release(&stack, 2 * size + release_bytes);
	stack_commit(&stack);
	segment_load_real(vcpu, SEG_CS, selector);
	vcpu->state.rip = ip;
}

void x86_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t release_bytes, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	if (cpu_real_or_vm86(s)) {
		return_real(vcpu, operand_size, release_bytes);
		return;
	}
	struct stack stack = stack_current(vcpu, 0);
	uint64_t ip = stack_peek(&stack, 0, operand_size);
	uint16_t selector = (uint16_t)stack_peek(&stack, 1, operand_size);
	struct descriptor code;
	return_code_segment(vcpu, &code, selector);
	unsigned cpl = cpu_cpl(s), new_cpl = selector & 3u;
	struct segment cs = target_segment(vcpu, &code, new_cpl, ip);
	stack_release(&stack, 2 * operand_size + release_bytes);
	if (new_cpl == cpl) {
		descriptor_set_accessed(vcpu, &code);
		stack_commit(&stack);
		transfer_commit_code(vcpu, &cs, ip);
		return;
	}
	bool to_64bit = cpu_long_mode(s) && (cs.access & SEG_L);
	uint64_t new_sp = stack_peek(&stack, 0, operand_size);
	uint16_t ss_selector = (uint16_t)stack_peek(&stack, 1, operand_size);
	struct segment ss = return_stack_segment(vcpu, ss_selector, new_cpl, to_64bit);
	ss.access |= ss.access & SEG_UNUSABLE ? 0 : SEG_ACCESSED;
	descriptor_set_accessed(vcpu, &code);

	/* The parameters are released from the outer stack too. */
	struct stack outer = stack_new(vcpu, &ss, new_sp, new_cpl, to_64bit, 0);
	stack_release(&outer, release_bytes);
	return_commit_stack(vcpu, &ss, outer.pointer, to_64bit);
	transfer_null_inner_segments(vcpu, new_cpl);
	transfer_commit_code(vcpu, &cs, ip);
}
