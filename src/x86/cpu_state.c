#include "x86/cpu_save.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "devices/lapic.h"
#include "machine/state.h"
#include "machine/vcpu.h"
#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/system.h"

#define VERSION 1

static const char *const segment_names[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};

static void state_segment(struct state *state, const char *name, struct segment *segment)
{
	char field[32];
	snprintf(field, sizeof(field), "%s.base", name);
	state_u64(state, field, &segment->base);
	snprintf(field, sizeof(field), "%s.limit", name);
	state_u32(state, field, &segment->limit);
	snprintf(field, sizeof(field), "%s.access", name);
	state_u32(state, field, &segment->access);
	snprintf(field, sizeof(field), "%s.selector", name);
	state_u16(state, field, &segment->selector);
}

static void state_table(struct state *state, const char *name, struct descriptor_table *table)
{
	char field[32];
	snprintf(field, sizeof(field), "%s.base", name);
	state_u64(state, field, &table->base);
	snprintf(field, sizeof(field), "%s.limit", name);
	state_u16(state, field, &table->limit);
}

static void state_x87(struct state *state, struct x87_state *x87)
{
	state_u16(state, "x87.fcw", &x87->fcw);
	state_u16(state, "x87.fsw", &x87->fsw);
	state_u8(state, "x87.ftw", &x87->ftw);
	state_u16(state, "x87.fop", &x87->fop);
	state_u64(state, "x87.fip", &x87->fip);
	state_u64(state, "x87.fdp", &x87->fdp);
	state_u8_array(state, "x87.st", &x87->st[0][0], sizeof(x87->st));
}

/* 64-bit MSRs in one table: name and place. */
#define MSR(member)                                                                                                    \
	{                                                                                                              \
		"msr." #member, offsetof(struct cpu_state, msr.member),                                                \
		    sizeof(((struct cpu_state *)0)->msr.member) / 8                                                    \
	}
static const struct {
	const char *name;
	size_t offset, count;
} msr_fields[] = {
    MSR(star),
    MSR(lstar),
    MSR(cstar),
    MSR(sfmask),
    MSR(kernel_gs_base),
    MSR(sysenter_cs),
    MSR(sysenter_esp),
    MSR(sysenter_eip),
    MSR(tsc_aux),
    MSR(tsc_adjust),
    MSR(pat),
    MSR(apic_base),
    MSR(misc_enable),
    MSR(mtrr_def_type),
    MSR(mtrr_fixed),
    MSR(mtrr_physical_base),
    MSR(mtrr_physical_mask),
    MSR(spec_ctrl),
    MSR(xss),
    MSR(debugctl),
    MSR(microcode_revision),
    MSR(kvm_wall_clock),
    MSR(kvm_system_time),
    MSR(kvm_poll_control),
    MSR(mcg_status),
    MSR(mcg_ctl),
    MSR(mc),
};

static void state_fields(struct state *state, struct cpu_state *s)
{
	state_u64_array(state, "gpr", s->gpr, GPR_COUNT);
	state_u64(state, "rip", &s->rip);
	state_u64(state, "rflags", &s->rflags);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		state_segment(state, segment_names[i], &s->segment[i]);
	state_table(state, "gdtr", &s->gdtr);
	state_table(state, "idtr", &s->idtr);
	state_u64(state, "cr0", &s->cr0);
	state_u64(state, "cr2", &s->cr2);
	state_u64(state, "cr3", &s->cr3);
	state_u64(state, "cr4", &s->cr4);
	state_u64(state, "efer", &s->efer);
	state_u64(state, "xcr0", &s->xcr0);
	state_u64_array(state, "dr", s->dr, 8);
	state_u64_array(state, "pdpte", s->pdpte, 4);
	state_x87(state, &s->x87);
	state_u8_array(state, "zmm", &s->vector.zmm[0][0], sizeof(s->vector.zmm));
	state_u64_array(state, "opmask", s->vector.opmask, 8);
	state_u32(state, "mxcsr", &s->vector.mxcsr);
	for (size_t i = 0; i < sizeof(msr_fields) / sizeof(msr_fields[0]); i++)
		state_u64_array(state, msr_fields[i].name, (uint64_t *)((char *)s + msr_fields[i].offset),
		                msr_fields[i].count);
	state_u64(state, "tsc_offset", &s->tsc_offset);
	state_u32(state, "activity", &s->activity);
	state_u8(state, "interrupt_shadow", &s->interrupt_shadow);
	state_u8(state, "nmi_blocked", &s->nmi_blocked);
	state_u8(state, "nmi_pending", &s->nmi_pending);
	state_u8(state, "sipi_vector", &s->sipi_vector);
	state_u64(state, "pending_debug", &s->pending_debug);
	state_u64(state, "monitor_address", &s->monitor_address);
}

#define RFLAGS_DEFINED 0x3f7fd7ull
#define EFER_DEFINED   (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_AUTOIBRS)
#define CR0_DEFINED    0xe005003full
#define CR4_DEFINED    0x370fffull
#define MXCSR_DEFINED  0x2ffffu
#define ACCESS_DEFINED 0x1f0ffu

/* NULL, or what no processor can be. The manual's consistency checks for loading guest state (SDM 3C 26.3.1) are the
 * pattern. */
static const char *validate(const struct vcpu *vcpu, const struct cpu_state *s)
{
	const struct cpu_model *model = vcpu->model;
	unsigned width = model ? model->physical_bits : 52;
	if ((s->rflags & ~RFLAGS_DEFINED) || !(s->rflags & FLAG_ONE))
		return "rflags has reserved bits";
	if ((s->cr0 & ~CR0_DEFINED) || ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE)) ||
	    ((s->cr0 & CR0_NW) && !(s->cr0 & CR0_CD)))
		return "cr0 is impossible";
	if (s->cr4 & ~(uint64_t)CR4_DEFINED || (s->cr4 & (CR4_LA57 | CR4_VMXE)))
		return "cr4 has reserved bits";
	if (s->efer & ~EFER_DEFINED)
		return "efer has reserved bits";
	bool lma = s->efer & EFER_LMA;
	if (lma != ((s->efer & EFER_LME) && (s->cr0 & CR0_PG)) || (lma && !(s->cr4 & CR4_PAE)))
		return "long mode and paging disagree";
	if ((s->cr4 & CR4_PCIDE) && !lma)
		return "PCID outside long mode";
	if (s->cr3 >> width)
		return "cr3 is beyond the physical address width";
	if ((s->rflags & FLAG_VM) && (lma || !(s->cr0 & CR0_PE)))
		return "virtual-8086 mode outside protected mode";
	if (!(s->xcr0 & XSTATE_X87) || (model && (s->xcr0 & ~model->xcr0_supported)) ||
	    ((s->xcr0 & XSTATE_AVX) && !(s->xcr0 & XSTATE_SSE)))
		return "xcr0 names state that this CPU lacks";
	if ((s->xcr0 & XSTATE_AVX512) && ((s->xcr0 & XSTATE_AVX512) != XSTATE_AVX512 || !(s->xcr0 & XSTATE_AVX)))
		return "xcr0 names half of AVX-512";
	if (model && (s->msr.xss & ~model->xss_supported))
		return "xss names state that this CPU lacks";
	if (s->vector.mxcsr & ~MXCSR_DEFINED)
		return "mxcsr has reserved bits";
	if (s->dr[6] >> 32 || s->dr[7] >> 32)
		return "dr6 or dr7 has reserved bits";
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		const struct segment *segment = &s->segment[i];
		if (segment->access & ~ACCESS_DEFINED)
			return "a segment's access rights have reserved bits";
		bool wide = lma && (i == SEG_FS || i == SEG_GS || i == SEG_LDTR || i == SEG_TR);
		if (wide ? !cpu_canonical(segment->base) : segment->base >> 32 != 0)
			return "a segment's base is impossible";
	}
	const uint32_t cs = s->segment[SEG_CS].access;
	if ((s->cr0 & CR0_PE) && lma && (cs & SEG_L) && (cs & SEG_DB))
		return "cs has both L and D";
	if (!(s->cr0 & CR0_PE) && cpu_cpl(s) != 0)
		return "real mode outside CPL 0";
	if ((s->rflags & FLAG_VM) && cpu_cpl(s) != 3)
		return "virtual-8086 mode outside CPL 3";
	if (lma ? !cpu_canonical(s->gdtr.base) || !cpu_canonical(s->idtr.base)
	        : (s->gdtr.base | s->idtr.base) >> 32 != 0)
		return "a descriptor table's base is impossible";
	if (!cpu_canonical(s->msr.lstar) || !cpu_canonical(s->msr.cstar) || !cpu_canonical(s->msr.kernel_gs_base) ||
	    !cpu_canonical(s->msr.sysenter_esp) || !cpu_canonical(s->msr.sysenter_eip))
		return "an MSR holds a non-canonical address";
	if (s->activity > ACTIVITY_SHUTDOWN)
		return "activity out of range";
	if (s->interrupt_shadow > 3 || s->nmi_blocked > 1 || s->nmi_pending > 1)
		return "interruptibility out of range";
	if (s->pending_debug & ~0x1e00full)
		return "pending debug exceptions out of range";
	return NULL;
}

void cpu_state_state(struct vcpu *vcpu, struct state *state)
{
	if (!state_loading(state)) {
		state_begin(state, "cpu", vcpu->index, VERSION);
		state_fields(state, &vcpu->state);
		state_end(state);
		return;
	}
	struct cpu_state loaded = vcpu->state;
	state_begin(state, "cpu", vcpu->index, VERSION);
	state_fields(state, &loaded);
	if (!state_error(state)) {
		const char *wrong = validate(vcpu, &loaded);
		if (wrong)
			state_fail(state, wrong);
	}
	state_end(state);
	if (state_error(state))
		return;
	vcpu->state = loaded;
	vcpu->x87_live = false;
	vcpu->x87_missing = true;
	vcpu->overflow = (loaded.rflags & FLAG_OF) != 0;
	if (vcpu->mmu.tlb) {
		mmu_flush(vcpu);
		mmu_update_watches(vcpu);
	}
	mmu_update_view(vcpu);
	interrupt_window_opened(vcpu);
	if (loaded.pending_debug || (loaded.dr[7] & 0xff) || (loaded.rflags & FLAG_TF))
		atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
}
