/*
 * Exceptions: raising, delivery through the IDT or the IVT, double and triple fault (SDM 3A chapter 6).
 *
 * Delivery checks everything, writes the frame, and only then changes registers. So a fault inside it finds the state
 * as it was, and is delivered in its turn from the same RIP, alone or as a double fault (SDM 3A table 6-5).
 */
#include "x86/exceptions.h"

#include "debug/trace.h"
#include "x86/segments.h"
#include "x86/transfer.h"

static bool vector_has_error(unsigned vector)
{
	return vector == VECTOR_DF || (vector >= VECTOR_TS && vector <= VECTOR_PF) || vector == VECTOR_AC;
}

static _Noreturn void raise_exception(struct vcpu *vcpu, const struct exception *exception)
{
	vcpu->exception = *exception;
	mmu_update_view(vcpu); /* a transfer under way may have changed it */
	longjmp(*vcpu->fault_target, 1);
}

void x86_raise(struct vcpu *vcpu, unsigned vector)
{
	struct exception exception = {.vector = (uint8_t)vector, .has_error = vector_has_error(vector)};
	raise_exception(vcpu, &exception);
}

void x86_raise_error(struct vcpu *vcpu, unsigned vector, uint32_t error)
{
	struct exception exception = {.vector = (uint8_t)vector, .has_error = true, .error = error};
	raise_exception(vcpu, &exception);
}

void x86_raise_page_fault(struct vcpu *vcpu, uint64_t linear, uint32_t error)
{
	struct exception exception = {.vector = VECTOR_PF, .has_error = true, .error = error, .address = linear};
	raise_exception(vcpu, &exception);
}

void x86_raise_debug(struct vcpu *vcpu, uint64_t dr6_bits)
{
	struct exception exception = {.vector = VECTOR_DB, .address = dr6_bits};
	raise_exception(vcpu, &exception);
}

/* The IVT of real mode, and of virtual-8086 mode's redirected INT n: CS:IP at linear vector * 4. Pushes FLAGS, CS, IP.
 */
static void deliver_8086(struct vcpu *vcpu, uint64_t table, unsigned vector, uint64_t flags, uint64_t rip)
{
	struct cpu_state *s = &vcpu->state;
	uint32_t target = (uint32_t)mmu_read_system(vcpu, (uint32_t)(table + vector * 4), 4);
	uint32_t ip = target & 0xffff;
	uint16_t selector = (uint16_t)(target >> 16);
	if (ip > s->segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
	struct stack stack = stack_current(vcpu, 0);
	const uint64_t frame[] = {flags, s->segment[SEG_CS].selector, rip};
	stack_push_frame(&stack, frame, 3, 2);
	stack_commit(&stack);
	s->segment[SEG_CS].selector = selector;
	s->segment[SEG_CS].base = (uint32_t)selector << 4;
	s->rip = ip;
}

static void deliver_real(struct vcpu *vcpu, const struct event *event)
{
	struct cpu_state *s = &vcpu->state;
	if (event->vector * 4u + 3 > s->idtr.limit)
		x86_raise_error(vcpu, VECTOR_GP, event->vector * 8u + 2 + event->ext);
	deliver_8086(vcpu, s->idtr.base, event->vector, s->rflags, event->rip);
	s->rflags &= ~(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
	mmu_update_view(vcpu);
}

void vm86_redirect_interrupt(struct vcpu *vcpu, unsigned vector, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t flags = s->rflags;
	bool virtual_if = (s->rflags & FLAG_IOPL) != FLAG_IOPL;
	if (virtual_if) { /* the 8086 program sees VIF as its IF, and IOPL 3 */
		flags = (flags & ~FLAG_IF) | FLAG_IOPL;
		if (s->rflags & FLAG_VIF)
			flags |= FLAG_IF;
	}
	deliver_8086(vcpu, 0, vector, flags, next_rip);
	s->rflags &= ~(FLAG_TF | FLAG_NT | FLAG_RF | (virtual_if ? FLAG_VIF : FLAG_IF));
}

struct gate {
	struct descriptor descriptor;
	uint64_t offset;
	uint16_t selector;
	unsigned type, ist;
};

static void gate_read(struct vcpu *vcpu, struct gate *gate, const struct event *event)
{
	struct cpu_state *s = &vcpu->state;
	bool wide = cpu_long_mode(s);
	unsigned size = wide ? 16 : 8;
	uint32_t error = event->vector * 8u + 2 + event->ext;
	if (event->vector * size + size - 1 > s->idtr.limit)
		x86_raise_error(vcpu, VECTOR_GP, error);
	uint64_t address = s->idtr.base + event->vector * size;
	if (!wide)
		address = (uint32_t)address;
	gate->descriptor = (struct descriptor){.raw = mmu_read_system(vcpu, address, 8), .address = address};
	if (wide)
		gate->descriptor.upper = mmu_read_system(vcpu, address + 8, 8) << 32;

	gate->type = descriptor_type(&gate->descriptor);
	bool valid = gate->type == TYPE_INTERRUPT_GATE || gate->type == TYPE_TRAP_GATE;
	if (!wide)
		valid |= gate->type == TYPE_INTERRUPT_GATE16 || gate->type == TYPE_TRAP_GATE16 ||
		         gate->type == TYPE_TASK_GATE;
	if (!valid || !descriptor_is_system(&gate->descriptor))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (event->software && descriptor_dpl(&gate->descriptor) < cpu_cpl(s))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&gate->descriptor))
		x86_raise_error(vcpu, VECTOR_NP, error);
	gate->selector = descriptor_gate_selector(&gate->descriptor);
	gate->offset = descriptor_gate_offset(&gate->descriptor);
	if (gate->type == TYPE_INTERRUPT_GATE16 || gate->type == TYPE_TRAP_GATE16)
		gate->offset &= 0xffff;
	gate->ist = wide ? (unsigned)(gate->descriptor.raw >> 32) & 7 : 0;
}

static void gate_code_segment(struct vcpu *vcpu, struct descriptor *cs, const struct gate *gate, uint32_t ext)
{
	struct cpu_state *s = &vcpu->state;
	if (selector_is_null(gate->selector))
		x86_raise_error(vcpu, VECTOR_GP, ext);
	descriptor_read(vcpu, cs, gate->selector, VECTOR_GP, ext);
	uint32_t error = selector_error(gate->selector, ext);
	if (!descriptor_is_code(cs) || descriptor_dpl(cs) > cpu_cpl(s))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (cpu_long_mode(s) && (descriptor_access(cs) & (SEG_L | SEG_DB)) != SEG_L)
		x86_raise_error(vcpu, VECTOR_GP, error);
	/* From virtual-8086 mode only to CPL 0 (SDM 3B 20.3.1). */
	if ((s->rflags & FLAG_VM) && (descriptor_is_conforming_code(cs) || descriptor_dpl(cs) != 0))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(cs))
		x86_raise_error(vcpu, VECTOR_NP, error);
}

static uint64_t event_flags_image(const struct cpu_state *s, const struct event *event)
{
	return event->set_rf ? s->rflags | FLAG_RF : s->rflags;
}

static void event_clear_flags(struct cpu_state *s, const struct gate *gate)
{
	s->rflags &= ~(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
	if (!(gate->type & 1)) /* interrupt gates are even, trap gates odd */
		s->rflags &= ~FLAG_IF;
}

static void deliver_long(struct vcpu *vcpu, const struct event *event, const struct gate *gate)
{
	struct cpu_state *s = &vcpu->state;
	struct descriptor code;
	gate_code_segment(vcpu, &code, gate, event->ext);
	unsigned cpl = cpu_cpl(s);
	unsigned new_cpl = descriptor_is_conforming_code(&code) ? cpl : descriptor_dpl(&code);

	/* A 64-bit stack pointer always, aligned to 16 (SDM 3A 6.14.2). */
	uint64_t rsp = s->gpr[RSP];
	uint32_t stack_error = event->ext;
	if (gate->ist)
		rsp = tss_read_ist(vcpu, gate->ist, event->ext);
	else if (new_cpl < cpl) {
		uint16_t unused;
		tss_read_stack(vcpu, new_cpl, event->ext, &unused, &rsp);
	}
	if (!cpu_canonical(gate->offset))
		x86_raise_error(vcpu, VECTOR_GP, event->ext);
	struct segment ss = s->segment[SEG_SS];
	if (new_cpl != cpl)
		ss = segment_null((uint16_t)new_cpl, new_cpl);
	struct stack stack = stack_new(vcpu, &ss, rsp & ~15ull, new_cpl, true, stack_error);
	const uint64_t frame[] = {
	    s->segment[SEG_SS].selector, s->gpr[RSP], event_flags_image(s, event),
	    s->segment[SEG_CS].selector, event->rip,  event->error,
	};
	descriptor_set_accessed(vcpu, &code);
	stack_push_frame(&stack, frame, event->has_error ? 6 : 5, 8);

	struct segment cs = descriptor_segment(&code, new_cpl);
	s->segment[SEG_SS] = ss;
	s->gpr[RSP] = stack.pointer;
	event_clear_flags(s, gate);
	transfer_commit_code(vcpu, &cs, gate->offset);
}

/* Same or inner privilege, or out of virtual-8086 mode. */
static void deliver_protected(struct vcpu *vcpu, const struct event *event, const struct gate *gate)
{
	struct cpu_state *s = &vcpu->state;
	struct descriptor code, stack_descriptor;
	gate_code_segment(vcpu, &code, gate, event->ext);
	unsigned cpl = cpu_cpl(s);
	unsigned new_cpl = descriptor_is_conforming_code(&code) ? cpl : descriptor_dpl(&code);
	bool vm86 = s->rflags & FLAG_VM, inner = new_cpl < cpl;
	unsigned size = gate->type & 8 ? 4 : 2;

	struct segment ss = s->segment[SEG_SS];
	struct stack stack;
	if (inner) {
		uint16_t selector;
		uint64_t esp;
		tss_read_stack(vcpu, new_cpl, event->ext, &selector, &esp);
		stack_segment_read(vcpu, &stack_descriptor, selector, new_cpl, event->ext);
		ss = descriptor_segment(&stack_descriptor, new_cpl);
		stack = stack_new(vcpu, &ss, esp, new_cpl, false, selector_error(selector, event->ext));
	} else
		stack = stack_current(vcpu, event->ext);

	struct segment cs = descriptor_segment(&code, new_cpl);
	if (gate->offset > cs.limit)
		x86_raise_error(vcpu, VECTOR_GP, event->ext);

	uint64_t frame[10];
	unsigned count = 0;
	if (vm86) {
		frame[count++] = s->segment[SEG_GS].selector;
		frame[count++] = s->segment[SEG_FS].selector;
		frame[count++] = s->segment[SEG_DS].selector;
		frame[count++] = s->segment[SEG_ES].selector;
	}
	if (inner) {
		frame[count++] = s->segment[SEG_SS].selector;
		frame[count++] = s->gpr[RSP];
	}
	frame[count++] = event_flags_image(s, event);
	frame[count++] = s->segment[SEG_CS].selector;
	frame[count++] = event->rip;
	if (event->has_error)
		frame[count++] = event->error;

	descriptor_set_accessed(vcpu, &code);
	if (inner)
		descriptor_set_accessed(vcpu, &stack_descriptor);
	stack_push_frame(&stack, frame, count, size);

	if (inner) {
		ss.access |= SEG_ACCESSED;
		s->segment[SEG_SS] = ss;
	}
	stack_commit(&stack);
	if (vm86)
		for (unsigned i = 0; i < 4; i++) {
			static const enum segment_register data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
			s->segment[data[i]] = segment_null(0, 0);
		}
	event_clear_flags(s, gate);
	cs.access |= SEG_ACCESSED;
	transfer_commit_code(vcpu, &cs, gate->offset);
}

void event_deliver(struct vcpu *vcpu, const struct event *event)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_protected(s)) {
		deliver_real(vcpu, event);
		return;
	}
	struct gate gate;
	gate_read(vcpu, &gate, event);
	if (gate.type == TYPE_TASK_GATE) {
		if (event->set_rf)
			s->rflags |= FLAG_RF; /* saved in the old task's EFLAGS (SDM 3B 17.3.1.1) */
		task_switch(vcpu, gate.selector, TASK_SWITCH_INTERRUPT, event->rip, event->has_error, event->error,
		            event->ext);
	} else if (cpu_long_mode(s))
		deliver_long(vcpu, event, &gate);
	else
		deliver_protected(vcpu, event, &gate);
}

/* SDM 3A table 6-4. */
static bool vector_is_contributory(unsigned vector)
{
	return vector == VECTOR_DE || (vector >= VECTOR_TS && vector <= VECTOR_GP);
}

/* Fault class, for RF in the pushed image (SDM 3A table 6-1); #DB is decided by its cause. */
static bool vector_is_fault(unsigned vector)
{
	switch (vector) {
	case VECTOR_DB:
	case VECTOR_NMI:
	case VECTOR_BP:
	case VECTOR_OF:
	case VECTOR_DF:
	case VECTOR_MC:
		return false;
	default:
		return true;
	}
}

#define DR6_GENERAL_DETECT (1ull << 13)
#define DR6_CAUSES         0xe00full /* B0-B3, BD, BS, BT */
#define DR7_GD             (1ull << 13)
#define DEBUGCTL_LBR       1ull

/* What an exception leaves in CR2 and DR6 on its way to the handler. */
static void exception_record(struct vcpu *vcpu, const struct exception *exception)
{
	struct cpu_state *s = &vcpu->state;
	if (exception->vector == VECTOR_PF)
		s->cr2 = exception->address;
	if (exception->vector == VECTOR_DB) {
		/* B0-B3 tell of this exception alone; the others add up until the handler clears them (SDM 3B 17.2.3).
		 */
		s->dr[6] = (s->dr[6] & ~0xfull) | (exception->address & DR6_CAUSES);
		s->dr[7] &= ~DR7_GD;
		s->msr.debugctl &= ~DEBUGCTL_LBR;
	}
}

static void exception_trace(struct vcpu *vcpu, const struct exception *exception)
{
	const struct cpu_state *s = &vcpu->state;
	trace(vcpu->trace, TRACE_EXCEPTION, (int)vcpu->index, "vector %u error %#x address %#llx at %04x:%#llx cpl %u",
	      exception->vector, exception->has_error ? exception->error : 0, (unsigned long long)exception->address,
	      s->segment[SEG_CS].selector, (unsigned long long)s->rip, cpu_cpl(s));
}

/* False: it faulted; what is in vcpu->exception. */
static bool event_try(struct vcpu *vcpu, const struct event *event)
{
	jmp_buf *outer = vcpu->fault_target;
	jmp_buf target;
	vcpu->fault_target = &target;
	if (_setjmp(target)) {
		vcpu->fault_target = outer;
		return false;
	}
	event_deliver(vcpu, event);
	vcpu->fault_target = outer;
	return true;
}

static bool exception_try(struct vcpu *vcpu, const struct exception *exception)
{
	const struct event event = {
	    .rip = vcpu->state.rip,
	    .vector = exception->vector,
	    .has_error = exception->has_error && cpu_protected(&vcpu->state),
	    .error = exception->error,
	    .ext = !exception->software,
	    .software = exception->software,
	    .set_rf = vector_is_fault(exception->vector) ||
	              (exception->vector == VECTOR_DB && (exception->address & DR6_GENERAL_DETECT)),
	};
	exception_trace(vcpu, exception);
	exception_record(vcpu, exception);
	vcpu->counters.exceptions++;
	return event_try(vcpu, &event);
}

/*
 * Delivers an exception, and what faults on the way, until one arrives or the processor shuts down. Each round goes
 * further along benign -> contributory -> page fault -> double fault -> shutdown (SDM 3A table 6-5), so there are at
 * most five.
 */
static void exception_deliver_nested(struct vcpu *vcpu, struct exception exception)
{
	while (!exception_try(vcpu, &exception)) {
		const struct exception next = vcpu->exception;
		bool contributory = vector_is_contributory(next.vector), page_fault = next.vector == VECTOR_PF;
		if (page_fault)
			vcpu->state.cr2 = next.address; /* also of one that ends as a double fault */
		if (exception.vector == VECTOR_DF) {
			trace(vcpu->trace, TRACE_EXCEPTION, (int)vcpu->index, "triple fault");
			vcpu->state.activity = ACTIVITY_SHUTDOWN;
			return;
		}
		if ((vector_is_contributory(exception.vector) && contributory) ||
		    (exception.vector == VECTOR_PF && (contributory || page_fault)))
			exception = (struct exception){.vector = VECTOR_DF, .has_error = true};
		else
			exception = next;
	}
}

void exception_deliver(struct vcpu *vcpu)
{
	struct exception exception = vcpu->exception;
	vcpu->state.interrupt_shadow = 0;
	exception_deliver_nested(vcpu, exception);
}

void interrupt_deliver(struct vcpu *vcpu, unsigned vector, bool nmi)
{
	struct cpu_state *s = &vcpu->state;
	if (s->activity == ACTIVITY_HALTED)
		s->activity = ACTIVITY_RUNNING;
	s->monitor_address = 0;
	struct event event = {.rip = s->rip, .vector = (uint8_t)vector, .ext = 1};
	vcpu->counters.interrupts++;
	trace(vcpu->trace, TRACE_IRQ, (int)vcpu->index, "%s vector %u at %04x:%#llx", nmi ? "NMI" : "interrupt", vector,
	      s->segment[SEG_CS].selector, (unsigned long long)s->rip);
	if (!event_try(vcpu, &event))
		exception_deliver_nested(vcpu, vcpu->exception);
	if (nmi)
		s->nmi_blocked = 1;
}
