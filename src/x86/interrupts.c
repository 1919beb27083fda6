/*
 * What is taken between two instructions, by priority (SDM 3A table 6-2), and the software interrupt instructions.
 */
#include "devices/lapic.h"
#include "x86/exceptions.h"
#include "x86/transfer.h"

static bool extint_pending(struct vcpu *vcpu)
{
	if (!atomic_load_explicit(&vcpu->extint_line, memory_order_acquire) || !vcpu->extint_acknowledge)
		return false;
	return !vcpu->lapic || lapic_accepts_extint(vcpu->lapic);
}

static bool maskable_pending(struct vcpu *vcpu)
{
	return extint_pending(vcpu) || (vcpu->lapic && lapic_pending(vcpu->lapic));
}

static bool nmi_pending(struct vcpu *vcpu)
{
	return vcpu->state.nmi_pending ||
	       (atomic_load_explicit(&vcpu->attention, memory_order_relaxed) & ATTENTION_NMI);
}

/* Acknowledges and delivers one maskable interrupt; false when it has gone away meanwhile. */
static bool maskable_take(struct vcpu *vcpu)
{
	int vector = -1;
	if (extint_pending(vcpu))
		vector = vcpu->extint_acknowledge(vcpu->extint_owner);
	if (vector < 0 && vcpu->lapic && lapic_pending(vcpu->lapic))
		vector = lapic_acknowledge(vcpu->lapic);
	if (vector < 0)
		return false;
	interrupt_deliver(vcpu, (unsigned)vector, false);
	return true;
}

bool interrupts_take(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	/* Cleared before the look: what arrives after the look sets it again. */
	uint32_t asked = atomic_fetch_and(&vcpu->attention, ~(ATTENTION_INTERRUPT | ATTENTION_NMI));
	if (asked & ATTENTION_NMI)
		s->nmi_pending = 1;

	bool taken = false;
	if (s->pending_debug && !(s->interrupt_shadow & SHADOW_MOV_SS)) {
		vcpu->exception = (struct exception){.vector = VECTOR_DB, .address = s->pending_debug};
		s->pending_debug = 0;
		exception_deliver(vcpu);
		taken = true;
	} else if (s->nmi_pending && !s->nmi_blocked && !s->interrupt_shadow) {
		s->nmi_pending = 0;
		interrupt_deliver(vcpu, VECTOR_NMI, true);
		taken = true;
	} else if ((s->rflags & FLAG_IF) && !s->interrupt_shadow)
		taken = maskable_take(vcpu);

	/* What is still due and not blocked by IF or an NMI handler comes at the next boundary. */
	vcpu->interrupt_deferred = true;
	interrupt_window_opened(vcpu);
	return taken;
}

bool interrupts_deliverable(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (nmi_pending(vcpu) && !s->nmi_blocked)
		return true;
	return (s->rflags & FLAG_IF) && maskable_pending(vcpu);
}

void interrupt_window_opened(struct vcpu *vcpu)
{
	if (!maskable_pending(vcpu) && !nmi_pending(vcpu))
		vcpu->interrupt_deferred = false;
	else if (vcpu->state.activity != ACTIVITY_SHUTDOWN && interrupts_deliverable(vcpu))
		atomic_fetch_or(&vcpu->attention, ATTENTION_INTERRUPT);
}

/* The TSS's interrupt redirection bit map: 32 bytes below the I/O bit map. A bit outside the TSS: #GP (SDM 3B 20.3.3).
 */
static bool vm86_redirected_to_8086(struct vcpu *vcpu, unsigned vector)
{
	const struct segment *tr = &vcpu->state.segment[SEG_TR];
	if ((tr->access & SEG_UNUSABLE) || !(tr->access & 8) || tr->limit < 103)
		x86_raise(vcpu, VECTOR_GP);
	uint32_t map = (uint32_t)mmu_read_system(vcpu, (uint32_t)(tr->base + 102), 2);
	uint32_t offset = map - 32 + vector / 8;
	if (map < 32 || offset > tr->limit)
		x86_raise(vcpu, VECTOR_GP);
	return !(mmu_read_system(vcpu, (uint32_t)(tr->base + offset), 1) >> vector % 8 & 1);
}

void software_interrupt(struct vcpu *vcpu, enum software_interrupt kind, unsigned vector, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	struct event event = {.rip = next_rip, .vector = (uint8_t)vector, .software = true};
	switch (kind) {
	case SOFTWARE_INT3:
		event.vector = VECTOR_BP;
		break;
	case SOFTWARE_INTO:
		event.vector = VECTOR_OF;
		break;
	case SOFTWARE_INT1: /* a privileged software exception: no DPL check, EXT is 1 (SDM 2A INT n) */
		event.vector = VECTOR_DB;
		event.software = false;
		event.ext = 1;
		break;
	case SOFTWARE_INT_N:
		if (!cpu_virtual_8086(s))
			break;
		if ((s->cr4 & CR4_VME) && vm86_redirected_to_8086(vcpu, vector)) {
			vm86_redirect_interrupt(vcpu, vector, next_rip);
			return;
		}
		if ((s->rflags & FLAG_IOPL) != FLAG_IOPL)
			x86_raise(vcpu, VECTOR_GP);
		break;
	}
	event_deliver(vcpu, &event);
}
