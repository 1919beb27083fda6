/*
 * IRET, IRETD, IRETQ in all forms (SDM 2A IRET): real and virtual-8086 mode, same and outer privilege, back to
 * virtual-8086 mode, return from a nested task, 64-bit mode.
 */
#include "x86/exceptions.h"
#include "x86/system.h"
#include "x86/transfer.h"

#define FLAGS_ALWAYS (FLAG_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT)

static void flags_write(struct cpu_state *s, uint64_t image, uint64_t mask)
{
	s->rflags = (s->rflags & ~mask) | (image & mask) | FLAG_ONE;
}

/* What IRET may change, for the privilege that executes it. */
static uint64_t flags_mask(const struct cpu_state *s, unsigned operand_size)
{
	unsigned cpl = cpu_cpl(s);
	uint64_t mask = FLAGS_ALWAYS;
	if (cpl <= (s->rflags & FLAG_IOPL) >> 12)
		mask |= FLAG_IF;
	if (cpl == 0)
		mask |= FLAG_IOPL;
	if (operand_size > 2) {
		mask |= FLAG_RF | FLAG_AC | FLAG_ID;
		if (cpl == 0)
			mask |= FLAG_VIF | FLAG_VIP;
	}
	return mask;
}

/* Ends NMI blocking and looks whether something waited for IF. */
static void iret_done(struct vcpu *vcpu)
{
	vcpu->state.nmi_blocked = 0;
	mmu_update_view(vcpu);
	interrupt_window_opened(vcpu);
}

/* Real mode, and virtual-8086 mode with IOPL 3 or CR4.VME. */
static void iret_8086(struct vcpu *vcpu, unsigned size)
{
	struct cpu_state *s = &vcpu->state;
	struct stack stack = stack_current(vcpu, 0);
	uint64_t ip = stack_peek(&stack, 0, size);
	uint16_t selector = (uint16_t)stack_peek(&stack, 1, size);
	uint64_t image = stack_peek(&stack, 2, size);
	stack_release(&stack, 3 * size);

	uint64_t mask = FLAGS_ALWAYS | FLAG_IF;
	if (size == 4)
		mask |= FLAG_RF | FLAG_AC | FLAG_ID;
	if (!(s->rflags & FLAG_VM))
		mask |= FLAG_IOPL;
	else if ((s->rflags & FLAG_IOPL) != FLAG_IOPL) {
		/* CR4.VME: IF of the image goes to VIF (SDM 3B 20.3.3.4). */
		if ((image & FLAG_TF) || ((image & FLAG_IF) && (s->rflags & FLAG_VIP)))
			x86_raise(vcpu, VECTOR_GP);
		mask = (mask & ~FLAG_IF) | FLAG_VIF;
		image &= ~FLAG_VIF;
		if (image & FLAG_IF)
			image |= FLAG_VIF;
	}
	if (ip > s->segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	stack_commit(&stack);
	segment_load_real(vcpu, SEG_CS, selector);
	s->rip = ip;
	flags_write(s, image, mask);
	iret_done(vcpu);
}

/* From CPL 0 with VM set in the image: nine values are on the stack. */
static void iret_to_vm86(struct vcpu *vcpu, struct stack *stack, uint64_t ip, uint16_t cs, uint64_t image)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t esp = stack_peek(stack, 3, 4);
	uint16_t selector[5]; /* SS, ES, DS, FS, GS */
	static const enum segment_register order[5] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	for (unsigned i = 0; i < 5; i++)
		selector[i] = (uint16_t)stack_peek(stack, 4 + i, 4);
	if (ip > 0xffff)
		x86_raise(vcpu, VECTOR_GP);

	flags_write(s, image,
	            FLAGS_ALWAYS | FLAG_IF | FLAG_IOPL | FLAG_RF | FLAG_VM | FLAG_AC | FLAG_VIF | FLAG_VIP | FLAG_ID);
	for (unsigned i = 0; i < 5; i++)
		s->segment[order[i]] = segment_vm86(selector[i]);
	s->segment[SEG_CS] = segment_vm86(cs);
	s->gpr[RSP] = (uint32_t)esp;
	s->rip = ip;
	iret_done(vcpu);
}

static void iret_from_task(struct vcpu *vcpu, uint64_t next_rip)
{
	const struct segment *tr = &vcpu->state.segment[SEG_TR];
	uint16_t link = (uint16_t)mmu_read_system(vcpu, (uint32_t)tr->base, 2);
	task_switch(vcpu, link, TASK_SWITCH_IRET, next_rip, false, 0, 0);
	iret_done(vcpu);
}

/* Reads and checks the code segment to return to. */
void return_code_segment(struct vcpu *vcpu, struct descriptor *code, uint16_t selector)
{
	if (selector_is_null(selector))
		x86_raise(vcpu, VECTOR_GP);
	descriptor_read(vcpu, code, selector, VECTOR_GP, 0);
	uint32_t error = selector_error(selector, 0);
	unsigned rpl = selector & 3u;
	if (!descriptor_is_code(code) || rpl < cpu_cpl(&vcpu->state))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (descriptor_is_conforming_code(code) ? descriptor_dpl(code) > rpl : descriptor_dpl(code) != rpl)
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (cpu_long_mode(&vcpu->state) && (descriptor_access(code) & (SEG_L | SEG_DB)) == (SEG_L | SEG_DB))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(code))
		x86_raise_error(vcpu, VECTOR_NP, error);
}

void return_check_ip(struct vcpu *vcpu, const struct segment *cs, uint64_t ip)
{
	bool wide = cpu_long_mode(&vcpu->state) && (cs->access & SEG_L);
	if (wide ? !cpu_canonical(ip) : ip > cs->limit)
		x86_raise(vcpu, VECTOR_GP);
}

/* The stack segment of an outer return; null is a 64-bit ring 0-2's right (SDM 2A IRET, 3A 5.8.3). Returns the register
 * to commit. */
struct segment return_stack_segment(struct vcpu *vcpu, uint16_t selector, unsigned new_cpl, bool to_64bit)
{
	if (selector_is_null(selector)) {
		if (!to_64bit || new_cpl == 3 || (selector & 3u) != new_cpl)
			x86_raise(vcpu, VECTOR_GP);
		return segment_null(selector, new_cpl);
	}
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	uint32_t error = selector_error(selector, 0);
	if ((selector & 3u) != new_cpl || descriptor_dpl(&d) != new_cpl || !descriptor_is_writable_data(&d))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_SS, error);
	descriptor_set_accessed(vcpu, &d);
	return descriptor_segment(&d, new_cpl);
}

void return_commit_stack(struct vcpu *vcpu, const struct segment *ss, uint64_t sp, bool to_64bit)
{
	uint64_t *rsp = &vcpu->state.gpr[RSP];
	vcpu->state.segment[SEG_SS] = *ss;
	if (to_64bit)
		*rsp = sp;
	else if (ss->access & SEG_DB)
		*rsp = (uint32_t)sp;
	else /* bits 31:16 keep the inner level's value, as on the silicon (what Linux's "espfix" is about) */
		*rsp = (*rsp & 0xffff0000) | (sp & 0xffff);
}

static void iret_protected(struct vcpu *vcpu, unsigned size)
{
	struct cpu_state *s = &vcpu->state;
	struct stack stack = stack_current(vcpu, 0);
	bool from_64bit = cpu_64bit_code(s);
	unsigned cpl = cpu_cpl(s);
	uint64_t ip = stack_peek(&stack, 0, size);
	uint16_t selector = (uint16_t)stack_peek(&stack, 1, size);
	uint64_t image = stack_peek(&stack, 2, size);

	if (size == 4 && !cpu_long_mode(s) && (image & FLAG_VM) && cpl == 0) {
		iret_to_vm86(vcpu, &stack, ip, selector, image);
		return;
	}
	struct descriptor code;
	return_code_segment(vcpu, &code, selector);
	unsigned new_cpl = selector & 3u;
	struct segment cs = descriptor_segment(&code, new_cpl);
	bool to_64bit = cpu_long_mode(s) && (cs.access & SEG_L);
	if (vcpu->model && vcpu->model->amd) /* before SS is looked at (Zen 4); below in the manual's order */
		return_check_ip(vcpu, &cs, ip);

	/* 64-bit mode always pops SS:RSP (SDM 3A 6.14.3). */
	bool pops_stack = from_64bit || new_cpl != cpl;
	uint64_t new_sp = 0;
	struct segment ss = s->segment[SEG_SS];
	if (pops_stack) {
		new_sp = stack_peek(&stack, 3, size);
		uint16_t ss_selector = (uint16_t)stack_peek(&stack, 4, size);
		ss = return_stack_segment(vcpu, ss_selector, new_cpl, to_64bit);
	}
	return_check_ip(vcpu, &cs, ip);
	descriptor_set_accessed(vcpu, &code);
	cs.access |= SEG_ACCESSED;

	flags_write(s, image, flags_mask(s, size));
	if (pops_stack) {
		return_commit_stack(vcpu, &ss, new_sp, to_64bit);
	} else {
		stack_release(&stack, 3 * size);
		stack_commit(&stack);
	}
	s->segment[SEG_CS] = cs;
	s->rip = ip;
	if (new_cpl != cpl)
		transfer_null_inner_segments(vcpu, new_cpl);
	iret_done(vcpu);
}

void x86_iret(struct vcpu *vcpu, unsigned operand_size, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_protected(s))
		iret_8086(vcpu, operand_size);
	else if (s->rflags & FLAG_VM) {
		bool iopl3 = (s->rflags & FLAG_IOPL) == FLAG_IOPL;
		if (!iopl3 && !((s->cr4 & CR4_VME) && operand_size == 2))
			x86_raise(vcpu, VECTOR_GP);
		iret_8086(vcpu, operand_size);
	} else if (s->rflags & FLAG_NT) {
		if (cpu_long_mode(s))
			x86_raise(vcpu, VECTOR_GP);
		iret_from_task(vcpu, next_rip);
	} else
		iret_protected(vcpu, operand_size);
}
