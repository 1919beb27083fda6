/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM 2B; AMD APM 3). Where Intel and AMD differ, model->amd decides.
 */
#include "x86/segments.h"
#include "x86/system.h"
#include "x86/transfer.h"

static bool is_amd(const struct vcpu *vcpu)
{
	return vcpu->model && vcpu->model->amd;
}

/* The flat segments that these instructions load without reading a descriptor. */
static struct segment flat_code(uint16_t selector, unsigned dpl, bool wide)
{
	return (struct segment){
	    .selector = selector,
	    .limit = 0xffffffff,
	    .access = SEG_P | dpl << SEG_DPL_SHIFT | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_G |
	              (wide ? SEG_L : SEG_DB),
	};
}

static struct segment flat_stack(uint16_t selector, unsigned dpl)
{
	return (struct segment){
	    .selector = selector,
	    .limit = 0xffffffff,
	    .access = SEG_P | dpl << SEG_DPL_SHIFT | SEG_S | SEG_WRITABLE | SEG_ACCESSED | SEG_G | SEG_DB,
	};
}

void x86_syscall(struct vcpu *vcpu, uint64_t next_rip)
{
	struct cpu_state *s = &vcpu->state;
	/* Intel has it in 64-bit mode only; AMD also in compatibility and legacy mode (APM 3 SYSCALL). */
	if (!(s->efer & EFER_SCE) || !cpu_protected(s) || (!cpu_64bit_code(s) && !is_amd(vcpu)))
		x86_raise(vcpu, VECTOR_UD);
	uint16_t selector = (uint16_t)(s->msr.star >> 32) & 0xfffc;
	if (cpu_long_mode(s)) {
		uint64_t target = cpu_64bit_code(s) ? s->msr.lstar : s->msr.cstar;
		s->gpr[RCX] = next_rip;
		s->gpr[R11] = s->rflags & ~FLAG_RF;
		s->rflags = (s->rflags & ~(s->msr.sfmask | FLAG_RF | FLAG_VM)) | FLAG_ONE;
		s->segment[SEG_CS] = flat_code(selector, 0, true);
		s->segment[SEG_SS] = flat_stack(selector + 8, 0);
		s->rip = target;
	} else {
		s->gpr[RCX] = (uint32_t)next_rip;
		s->rflags &= ~(FLAG_IF | FLAG_RF | FLAG_VM);
		s->segment[SEG_CS] = flat_code(selector, 0, false);
		s->segment[SEG_SS] = flat_stack(selector + 8, 0);
		s->rip = (uint32_t)s->msr.star;
	}
	mmu_update_view(vcpu);
}

/* What SYSRET takes from R11. RF and VM are cleared; reserved bits stay. */
#define SYSRET_FLAGS 0x3c7fd7ull

void x86_sysret(struct vcpu *vcpu, unsigned operand_size)
{
	struct cpu_state *s = &vcpu->state;
	bool amd = is_amd(vcpu);
	if (!(s->efer & EFER_SCE) || !cpu_protected(s) || (!cpu_64bit_code(s) && !amd))
		x86_raise(vcpu, VECTOR_UD);
	if (cpu_cpl(s) != 0 || (s->rflags & FLAG_VM))
		x86_raise(vcpu, VECTOR_GP);
	bool to_64bit = operand_size == 8;
	uint64_t target = s->gpr[RCX];
	/* Intel checks RCX here, at CPL 0; AMD faults at the target, at CPL 3. */
	if (to_64bit && !amd && !cpu_canonical(target))
		x86_raise(vcpu, VECTOR_GP);
	uint16_t base = (uint16_t)(s->msr.star >> 48);
	uint16_t code = (uint16_t)((base + (to_64bit ? 16 : 0)) | 3);
	uint16_t stack = (uint16_t)((base + 8) | 3);
	/*
	 * AMD's silicon leaves SS's hidden attributes as they were (Linux calls it "sysret_ss_attrs" and reloads SS).
	 * No system can rely on that; a flat SS, as Intel documents it, is right for all.
	 */
	struct segment ss = flat_stack(stack, 3);
	if (cpu_long_mode(s))
		s->rflags = (s->gpr[R11] & SYSRET_FLAGS) | FLAG_ONE;
	else
		s->rflags |= FLAG_IF;
	s->segment[SEG_CS] = flat_code(code, 3, to_64bit);
	s->segment[SEG_SS] = ss;
	s->rip = to_64bit ? target : (uint32_t)target;
	mmu_update_view(vcpu);
	interrupt_window_opened(vcpu);
}

void x86_sysenter(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	bool wide = cpu_long_mode(s);
	if (wide && is_amd(vcpu)) /* not in long mode on AMD (APM 3 SYSENTER) */
		x86_raise(vcpu, VECTOR_UD);
	if (!cpu_protected(s) || selector_is_null((uint16_t)s->msr.sysenter_cs))
		x86_raise(vcpu, VECTOR_GP);
	uint16_t code = (uint16_t)(s->msr.sysenter_cs & 0xfffc);
	s->rflags &= ~(FLAG_VM | FLAG_IF | FLAG_RF);
	s->segment[SEG_CS] = flat_code(code, 0, wide);
	s->segment[SEG_SS] = flat_stack(code + 8, 0);
	s->gpr[RSP] = wide ? s->msr.sysenter_esp : (uint32_t)s->msr.sysenter_esp;
	s->rip = wide ? s->msr.sysenter_eip : (uint32_t)s->msr.sysenter_eip;
	mmu_update_view(vcpu);
}

void x86_sysexit(struct vcpu *vcpu, unsigned operand_size)
{
	struct cpu_state *s = &vcpu->state;
	if (cpu_protected(s) && cpu_cpl(s) != 0) /* before the vendors differ (measured on Zen 4) */
		x86_raise(vcpu, VECTOR_GP);
	if (cpu_long_mode(s) && is_amd(vcpu))
		x86_raise(vcpu, VECTOR_UD);
	if (!cpu_protected(s) || selector_is_null((uint16_t)s->msr.sysenter_cs) || cpu_cpl(s) != 0 ||
	    (s->rflags & FLAG_VM))
		x86_raise(vcpu, VECTOR_GP);
	bool to_64bit = operand_size == 8;
	uint64_t rip = s->gpr[RDX], rsp = s->gpr[RCX];
	if (to_64bit && (!cpu_canonical(rip) || !cpu_canonical(rsp)))
		x86_raise(vcpu, VECTOR_GP);
	uint16_t code = (uint16_t)((s->msr.sysenter_cs & 0xfffc) + (to_64bit ? 32 : 16));
	s->segment[SEG_CS] = flat_code(code | 3, 3, to_64bit);
	s->segment[SEG_SS] = flat_stack((uint16_t)(code + 8) | 3, 3);
	s->gpr[RSP] = to_64bit ? rsp : (uint32_t)rsp;
	s->rip = to_64bit ? rip : (uint32_t)rip;
	mmu_update_view(vcpu);
}
