/*
 * RESET and INIT (SDM 3A table 10-1, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT").
 */
#include <string.h>

#include "x86/mmu.h"
#include "x86/system.h"

#define SELECTOR_RESET   0xf000
#define BASE_RESET       0xffff0000u
#define RIP_RESET        0xfff0
#define CR0_RESET        (CR0_CD | CR0_NW | CR0_ET)
#define DR6_RESET        0xffff0ff0u
#define DR7_RESET        0x400u
#define PAT_RESET        0x0007040600070406ull
#define MXCSR_RESET      0x1f80u
#define APIC_BASE_RESET  0xfee00800ull
#define APIC_BASE_BSP    0x100ull
#define MISC_ENABLE      (1ull << 0 | 1ull << 11 | 1ull << 12) /* fast strings; no BTS, no PEBS */
#define MICROCODE_NEWEST 0x7fffffff

/* What RESET and INIT have in common. */
static void reset_common(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	memset(s->gpr, 0, sizeof(s->gpr));
	/* EDX holds the processor signature. */
	uint32_t r[4] = {0};
	x86_cpuid(vcpu, 1, 0, r);
	s->gpr[RDX] = r[0];
	s->rip = RIP_RESET;
	s->rflags = FLAG_ONE;
	for (unsigned i = 0; i < 6; i++)
		s->segment[i] =
		    (struct segment){.limit = 0xffff, .access = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED};
	s->segment[SEG_CS] = (struct segment){
	    .selector = SELECTOR_RESET,
	    .base = BASE_RESET,
	    .limit = 0xffff,
	    .access = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED,
	};
	s->segment[SEG_LDTR] = (struct segment){.limit = 0xffff, .access = SEG_P | 2};
	s->segment[SEG_TR] = (struct segment){.limit = 0xffff, .access = SEG_P | 11};
	s->gdtr = (struct descriptor_table){.limit = 0xffff};
	s->idtr = (struct descriptor_table){.limit = 0xffff};
	s->cr2 = s->cr3 = s->cr4 = s->efer = 0;
	memset(s->pdpte, 0, sizeof(s->pdpte));
	memset(s->dr, 0, sizeof(s->dr));
	s->dr[6] = DR6_RESET;
	s->dr[7] = DR7_RESET;
	s->interrupt_shadow = s->nmi_blocked = s->nmi_pending = 0;
	s->pending_debug = 0;
	s->monitor_address = 0;
}

static void derived_state_changed(struct vcpu *vcpu)
{
	vcpu->overflow = 0;
	if (vcpu->mmu.tlb) {
		mmu_flush(vcpu);
		mmu_update_watches(vcpu);
	}
	mmu_update_view(vcpu);
}

void cpu_reset(struct vcpu *vcpu, bool bsp)
{
	struct cpu_state *s = &vcpu->state;
	memset(s, 0, sizeof(*s));
	s->msr.apic_base = APIC_BASE_RESET | (bsp ? APIC_BASE_BSP : 0);
	reset_common(vcpu);
	s->cr0 = CR0_RESET;
	s->xcr0 = XSTATE_X87;
	s->x87.fcw = 0x40;
	s->vector.mxcsr = MXCSR_RESET;
	s->msr.pat = PAT_RESET;
	s->msr.misc_enable = MISC_ENABLE;
	s->msr.mcg_ctl = ~0ull;
	s->msr.microcode_revision = MICROCODE_NEWEST;
	s->tsc_offset = 0; /* the machine clock's TSC started at 0; all vCPUs agree to the tick, over a reset too */
	s->activity = bsp ? ACTIVITY_RUNNING : ACTIVITY_WAIT_FOR_SIPI;
	vcpu->x87_live = false;
	vcpu->x87_missing = true;
	derived_state_changed(vcpu);
}

void cpu_init(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t kept = s->cr0 & (CR0_CD | CR0_NW);
	reset_common(vcpu);
	s->cr0 = kept | CR0_ET;
	s->activity = (s->msr.apic_base & APIC_BASE_BSP) ? ACTIVITY_RUNNING : ACTIVITY_WAIT_FOR_SIPI;
	derived_state_changed(vcpu);
}
