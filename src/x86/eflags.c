/*
 * CLI, STI, PUSHF and POPF by IOPL, virtual-8086 mode, CR4.VME and CR4.PVI (SDM 3A 2.3, 3B 20.3 and 20.4).
 */
#include "x86/exceptions.h"
#include "x86/system.h"

static unsigned iopl(const struct cpu_state *s)
{
	return (unsigned)(s->rflags & FLAG_IOPL) >> 12;
}

/* IF is VIF instead: VM86 with VME, or CPL 3 with PVI, below the needed IOPL. */
static bool uses_virtual_if(const struct cpu_state *s)
{
	if (cpu_virtual_8086(s))
		return s->cr4 & CR4_VME;
	return cpu_cpl(s) == 3 && (s->cr4 & CR4_PVI);
}

static bool may_change_if(const struct cpu_state *s)
{
	return !cpu_protected(s) || cpu_cpl(s) <= iopl(s);
}

void x86_cli(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (may_change_if(s))
		s->rflags &= ~FLAG_IF;
	else if (uses_virtual_if(s))
		s->rflags &= ~FLAG_VIF;
	else
		x86_raise(vcpu, VECTOR_GP);
}

bool x86_sti(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (may_change_if(s)) {
		bool was_off = !(s->rflags & FLAG_IF);
		s->rflags |= FLAG_IF;
		if (was_off)
			interrupt_window_opened(vcpu);
		return was_off; /* the shadow is only for an STI that changes IF */
	}
	if (!uses_virtual_if(s) || (s->rflags & FLAG_VIP))
		x86_raise(vcpu, VECTOR_GP);
	s->rflags |= FLAG_VIF;
	return false;
}

uint64_t x86_pushf(struct vcpu *vcpu, unsigned operand_size)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t image = s->rflags & ~(FLAG_VM | FLAG_RF);
	if (!cpu_virtual_8086(s) || iopl(s) == 3)
		return image;
	if (!(s->cr4 & CR4_VME) || operand_size != 2)
		x86_raise(vcpu, VECTOR_GP);
	image = (image & ~FLAG_IF) | FLAG_IOPL;
	if (s->rflags & FLAG_VIF)
		image |= FLAG_IF;
	return image;
}

void x86_popf(struct vcpu *vcpu, unsigned operand_size, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t old = s->rflags;
	uint64_t mask = FLAG_ARITHMETIC | FLAG_TF | FLAG_DF | FLAG_NT;
	if (operand_size > 2)
		mask |= FLAG_AC | FLAG_ID;
	if (may_change_if(s))
		mask |= FLAG_IF;
	if (cpu_virtual_8086(s)) {
		if (iopl(s) != 3) {
			if (!(s->cr4 & CR4_VME) || operand_size != 2)
				x86_raise(vcpu, VECTOR_GP);
			if ((value & FLAG_TF) || ((value & FLAG_IF) && (old & FLAG_VIP)))
				x86_raise(vcpu, VECTOR_GP);
			mask |= FLAG_VIF;
			value = value & FLAG_IF ? value | FLAG_VIF : value & ~FLAG_VIF;
		}
	} else if (!cpu_protected(s) || cpu_cpl(s) == 0)
		mask |= FLAG_IOPL;
	if (operand_size > 2 && !cpu_virtual_8086(s)) {
		/* VIP and VIF are cleared by POPFD and POPFQ at CPL 0 (SDM 2B POPF); RF always. */
		if (cpu_protected(s) && cpu_cpl(s) == 0) {
			mask |= FLAG_VIF | FLAG_VIP;
			value &= ~(FLAG_VIF | FLAG_VIP);
		}
	}
	if (operand_size > 2) {
		mask |= FLAG_RF;
		value &= ~FLAG_RF;
	}
	s->rflags = (old & ~mask) | (value & mask) | FLAG_ONE;
	if ((old ^ s->rflags) & FLAG_AC)
		mmu_update_view(vcpu);
	if ((s->rflags & FLAG_IF) && !(old & FLAG_IF))
		interrupt_window_opened(vcpu);
}
