/*
 * CR0-CR4, CR8, XCR0, LMSW, SMSW, CLTS, INVLPG, INVPCID, and a few other privileged instructions (SDM 3A 2.5, 4.10.4).
 */
#include "debug/trace.h"
#include "devices/lapic.h"
#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/paging.h"
#include "x86/system.h"

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_PCID    0xfffull
#define CR3_NOFLUSH (1ull << 63)

static void require_cpl0(struct vcpu *vcpu)
{
	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_GP);
}

static uint64_t cr4_allowed(const struct vcpu *vcpu)
{
	const struct cpu_model *model = vcpu->model;
	uint64_t allowed = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE |
	                   CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	if (!model)
		return allowed | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
	allowed |= model->umip ? CR4_UMIP : 0;
	allowed |= model->fsgsbase ? CR4_FSGSBASE : 0;
	allowed |= model->pcid ? CR4_PCIDE : 0;
	allowed |= model->smep ? CR4_SMEP : 0;
	allowed |= model->smap ? CR4_SMAP : 0;
	if (!model->xcr0_supported)
		allowed &= ~CR4_OSXSAVE;
	return allowed;
}

static uint64_t cr3_reserved(const struct vcpu *vcpu)
{
	if (!cpu_long_mode(&vcpu->state))
		return 0; /* 32 bits; the rest is ignored */
	unsigned width = vcpu->model ? vcpu->model->physical_bits : 46;
	return ~0ull << width;
}

uint64_t x86_mov_from_cr(struct vcpu *vcpu, unsigned n)
{
	struct cpu_state *s = &vcpu->state;
	if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
		x86_raise(vcpu, VECTOR_UD);
	require_cpl0(vcpu);
	switch (n) {
	case 0:
		return s->cr0;
	case 2:
		return s->cr2;
	case 3:
		return s->cr3;
	case 4:
		return s->cr4;
	default:
		return vcpu->lapic ? lapic_cr8(vcpu->lapic) : 0;
	}
}

/* PG 0 -> 1 with EFER.LME activates long mode (SDM 3A 9.8.5). */
static void cr0_check_paging_on(struct vcpu *vcpu, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	if (!(s->efer & EFER_LME))
		return;
	/* Not without PAE, from a 64-bit code segment, or with a 16-bit TSS. */
	const struct segment *tr = &s->segment[SEG_TR];
	bool tss16 = !(tr->access & SEG_UNUSABLE) && (tr->access & SEG_P) && !(tr->access & 8) && cpu_protected(s);
	if (!(s->cr4 & CR4_PAE) || (s->segment[SEG_CS].access & SEG_L) || (tss16 && tr->selector))
		x86_raise(vcpu, VECTOR_GP);
}

static void write_cr0(struct vcpu *vcpu, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
		x86_raise(vcpu, VECTOR_GP);
	value = (value & CR0_DEFINED) | CR0_ET;
	uint64_t old = s->cr0, changed = old ^ value;
	bool paging_on = changed & value & CR0_PG, paging_off = changed & old & CR0_PG;
	if (paging_on)
		cr0_check_paging_on(vcpu, value);
	if (paging_off && (cpu_64bit_code(s) || (s->cr4 & CR4_PCIDE)))
		x86_raise(vcpu, VECTOR_GP);

	uint64_t old_efer = s->efer;
	s->cr0 = value;
	if (paging_on && (s->efer & EFER_LME))
		s->efer |= EFER_LMA;
	if (paging_off)
		s->efer &= ~EFER_LMA;
	/* Writes of CR0 that change CD, NW or PG read the PDPTEs again (SDM 3A 4.4.1). */
	if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && !paging_load_pdptes(vcpu, s->cr3)) {
		s->cr0 = old;
		s->efer = old_efer;
		x86_raise(vcpu, VECTOR_GP);
	}
	if (changed & (CR0_PG | CR0_WP | CR0_PE))
		mmu_flush(vcpu);
	if ((changed & CR0_PE) && !(value & CR0_PE)) {
		/* Real mode runs at CPL 0 whatever SS said. */
		s->segment[SEG_SS].access &= ~SEG_DPL_MASK;
	}
	mmu_update_view(vcpu);
}

static void write_cr3(struct vcpu *vcpu, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	bool pcid = s->cr4 & CR4_PCIDE;
	bool keep = pcid && (value & CR3_NOFLUSH);
	if (pcid)
		value &= ~CR3_NOFLUSH;
	if (!cpu_long_mode(s))
		value = (uint32_t)value;
	if (value & cr3_reserved(vcpu))
		x86_raise(vcpu, VECTOR_GP);
	if (!paging_load_pdptes(vcpu, value))
		x86_raise(vcpu, VECTOR_GP);
	s->cr3 = value;
	trace(vcpu->trace, TRACE_MMU, (int)vcpu->index, "CR3 %#llx", (unsigned long long)value);
	mmu_load_space(vcpu, pcid ? value & CR3_PCID : 0, keep);
}

static void write_cr4(struct vcpu *vcpu, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	if (value & ~cr4_allowed(vcpu))
		x86_raise(vcpu, VECTOR_GP);
	uint64_t old = s->cr4, changed = old ^ value;
	if (cpu_long_mode(s) && !(value & CR4_PAE))
		x86_raise(vcpu, VECTOR_GP);
	if ((changed & value & CR4_PCIDE) && (!cpu_long_mode(s) || (s->cr3 & CR3_PCID)))
		x86_raise(vcpu, VECTOR_GP);
	s->cr4 = value;
	if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) && !paging_load_pdptes(vcpu, s->cr3)) {
		s->cr4 = old;
		x86_raise(vcpu, VECTOR_GP);
	}
	if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
		mmu_flush(vcpu);
	mmu_update_view(vcpu);
}

void x86_mov_to_cr(struct vcpu *vcpu, unsigned n, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
		x86_raise(vcpu, VECTOR_UD);
	require_cpl0(vcpu);
	if (!cpu_64bit_code(s))
		value = (uint32_t)value;
	switch (n) {
	case 0:
		write_cr0(vcpu, value);
		break;
	case 2:
		s->cr2 = value;
		break;
	case 3:
		write_cr3(vcpu, value);
		break;
	case 4:
		write_cr4(vcpu, value);
		break;
	case 8:
		if (value > 15)
			x86_raise(vcpu, VECTOR_GP);
		if (vcpu->lapic) {
			lapic_set_cr8(vcpu->lapic, (unsigned)value);
			interrupt_window_opened(vcpu);
		}
		break;
	}
}

void x86_lmsw(struct vcpu *vcpu, uint16_t value)
{
	struct cpu_state *s = &vcpu->state;
	require_cpl0(vcpu);
	/* PE, MP, EM, TS; PE can be set but not cleared. */
	uint64_t mask = CR0_MP | CR0_EM | CR0_TS | (value & CR0_PE);
	write_cr0(vcpu, (s->cr0 & ~mask) | (value & mask));
}

uint16_t x86_smsw(struct vcpu *vcpu)
{
	return (uint16_t)vcpu->state.cr0;
}

void x86_check_umip(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if ((s->cr4 & CR4_UMIP) && cpu_protected(s) && cpu_cpl(s) > 0)
		x86_raise(vcpu, VECTOR_GP);
}

void x86_clts(struct vcpu *vcpu)
{
	require_cpl0(vcpu);
	vcpu->state.cr0 &= ~CR0_TS;
}

uint64_t x86_xgetbv(struct vcpu *vcpu, uint32_t index)
{
	struct cpu_state *s = &vcpu->state;
	if (!(s->cr4 & CR4_OSXSAVE))
		x86_raise(vcpu, VECTOR_UD);
	if (index > 1)
		x86_raise(vcpu, VECTOR_GP);
	/* XGETBV(1) is XCR0 & XINUSE; all components count as in use but for vectors that are zero: "in use" is always
	 * a true answer. */
	return s->xcr0;
}

static bool xcr0_valid(const struct vcpu *vcpu, uint64_t value)
{
	if (!(value & XSTATE_X87) || (vcpu->model && (value & ~vcpu->model->xcr0_supported)))
		return false;
	if ((value & XSTATE_AVX) && !(value & XSTATE_SSE))
		return false;
	uint64_t avx512 = value & XSTATE_AVX512;
	return !avx512 || (avx512 == XSTATE_AVX512 && (value & XSTATE_AVX));
}

void x86_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	if (!(s->cr4 & CR4_OSXSAVE))
		x86_raise(vcpu, VECTOR_UD);
	require_cpl0(vcpu);
	if (index != 0 || !xcr0_valid(vcpu, value))
		x86_raise(vcpu, VECTOR_GP);
	s->xcr0 = value;
}

void x86_invlpg(struct vcpu *vcpu, uint64_t linear)
{
	require_cpl0(vcpu);
	if (!cpu_long_mode(&vcpu->state))
		linear = (uint32_t)linear;
	else if (!cpu_canonical(linear))
		return; /* a no-op (SDM 2A INVLPG) */
	mmu_flush_page(vcpu, linear);
}

void x86_invpcid(struct vcpu *vcpu, uint64_t type, uint64_t pcid, uint64_t linear)
{
	struct cpu_state *s = &vcpu->state;
	require_cpl0(vcpu);
	if (type > 3 || pcid > 0xfff) /* the descriptor's bits 63:12 are reserved for every type */
		x86_raise(vcpu, VECTOR_GP);
	if (type < 2 && !(s->cr4 & CR4_PCIDE) && pcid)
		x86_raise(vcpu, VECTOR_GP);
	switch (type) {
	case 0:
		if (!cpu_canonical(linear))
			x86_raise(vcpu, VECTOR_GP);
		if (pcid == (s->cr4 & CR4_PCIDE ? s->cr3 & CR3_PCID : 0))
			mmu_flush_page(vcpu, linear);
		else
			mmu_flush_pcid(vcpu, (unsigned)pcid);
		break;
	case 1:
		mmu_flush_pcid(vcpu, (unsigned)pcid);
		break;
	case 2:
		mmu_flush(vcpu);
		break;
	case 3:
		mmu_flush_nonglobal_all(vcpu);
		break;
	}
}

void x86_hlt(struct vcpu *vcpu)
{
	require_cpl0(vcpu);
	vcpu->state.activity = ACTIVITY_HALTED;
}

/* Not offered by CPUID; a guest that tries it all the same gets a pause. */
void x86_monitor(struct vcpu *vcpu, uint64_t linear)
{
	struct cpu_state *s = &vcpu->state;
	if (cpu_cpl(s) != 0 || (vcpu->model && !vcpu->model->monitor))
		x86_raise(vcpu, VECTOR_UD);
	if (s->gpr[RCX] & 0xffffffff)
		x86_raise(vcpu, VECTOR_GP);
	s->monitor_address = linear;
}

void x86_mwait(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (cpu_cpl(s) != 0 || (vcpu->model && !vcpu->model->monitor))
		x86_raise(vcpu, VECTOR_UD);
	if ((s->gpr[RCX] & 0xffffffff) > 1)
		x86_raise(vcpu, VECTOR_GP);
	s->monitor_address = 0;
}

void x86_swapgs(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_64bit_code(s))
		x86_raise(vcpu, VECTOR_UD);
	require_cpl0(vcpu);
	uint64_t base = s->segment[SEG_GS].base;
	s->segment[SEG_GS].base = s->msr.kernel_gs_base;
	s->msr.kernel_gs_base = base;
}
