/*
 * Model-specific registers: one readable table of all that the guest may touch (SDM 4; AMD PPR and APM 2 appendix A;
 * Linux Documentation/virt/kvm/x86/msr.rst). What is not in it raises #GP, and is named once in the trace.
 */
#include <stddef.h>
#include <x86intrin.h>

#include "debug/trace.h"
#include "devices/lapic.h"
#include "machine/clock.h"
#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/pvclock.h"
#include "x86/system.h"

struct msr;
typedef bool msr_read_fn(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value);
typedef bool msr_write_fn(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value);

/* Both functions return false for #GP. `offset` is of a field in struct cpu_state, `constant` what a read-only MSR
 * reads. */
struct msr {
	uint32_t first, last;
	const char *name;
	msr_read_fn *read;
	msr_write_fn *write;
	size_t offset;
	uint64_t constant;
};

static bool is_amd(const struct vcpu *vcpu)
{
	return vcpu->model && vcpu->model->amd;
}

static uint64_t *field(struct vcpu *vcpu, const struct msr *msr, uint32_t index)
{
	return (uint64_t *)((char *)&vcpu->state + msr->offset) + (index - msr->first);
}

static bool read_field(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = *field(vcpu, msr, index);
	return true;
}

static bool write_field(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	*field(vcpu, msr, index) = value;
	return true;
}

static bool write_field_32(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	*field(vcpu, msr, index) = (uint32_t)value;
	return true;
}

static bool write_canonical(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (!cpu_canonical(value))
		return false;
	*field(vcpu, msr, index) = value;
	return true;
}

static bool read_constant(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = msr->constant;
	return true;
}

static bool write_ignored(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return true;
}

/* EFER (SDM 3A 2.2.1, APM 2 3.1.7). LMA is the processor's own and not changed by a write. */
static bool write_efer(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t allowed = EFER_SCE | EFER_LME | EFER_LMA;
	if (!vcpu->model || vcpu->model->nx)
		allowed |= EFER_NXE;
	if (is_amd(vcpu))
		allowed |= EFER_AUTOIBRS;
	if (value & ~allowed)
		return false;
	uint64_t changed = value ^ s->efer;
	if ((changed & EFER_LME) && cpu_paging(s))
		return false;
	s->efer = (value & ~EFER_LMA) | (s->efer & EFER_LMA);
	if (changed & EFER_NXE)
		mmu_flush(vcpu);
	return true;
}

static bool read_tsc(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = (vcpu->clock ? clock_tsc(vcpu->clock) : __rdtsc()) + vcpu->state.tsc_offset;
	return true;
}

static void tsc_moved(struct vcpu *vcpu)
{
	if (vcpu->lapic)
		lapic_tsc_changed(vcpu->lapic);
	pvclock_update(vcpu);
}

/* Writing the TSC moves TSC_ADJUST by as much, and the reverse (SDM 3B 18.17.3). */
static bool write_tsc(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	uint64_t now;
	read_tsc(vcpu, msr, index, &now);
	vcpu->state.tsc_offset += value - now;
	vcpu->state.msr.tsc_adjust += value - now;
	tsc_moved(vcpu);
	return true;
}

static bool write_tsc_adjust(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	vcpu->state.tsc_offset += value - vcpu->state.msr.tsc_adjust;
	vcpu->state.msr.tsc_adjust = value;
	tsc_moved(vcpu);
	return true;
}

static bool write_tsc_aux(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (value >> 32 && !is_amd(vcpu))
		return false;
	vcpu->state.msr.tsc_aux = (uint32_t)value;
	return true;
}

static bool read_tsc_deadline(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = vcpu->lapic ? lapic_tsc_deadline(vcpu->lapic) : 0;
	return true;
}

static bool write_tsc_deadline(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (vcpu->lapic)
		lapic_set_tsc_deadline(vcpu->lapic, value);
	return true;
}

static bool read_apic_base(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = vcpu->lapic ? lapic_base(vcpu->lapic) : vcpu->state.msr.apic_base;
	return true;
}

static bool write_apic_base(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (vcpu->lapic && !lapic_set_base(vcpu->lapic, value))
		return false;
	vcpu->state.msr.apic_base = value;
	interrupt_window_opened(vcpu);
	return true;
}

static bool read_x2apic(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	return vcpu->lapic && lapic_msr_read(vcpu->lapic, index, value);
}

static bool write_x2apic(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (!vcpu->lapic || !lapic_msr_write(vcpu->lapic, index, value))
		return false;
	interrupt_window_opened(vcpu); /* EOI and TPR may uncover something */
	return true;
}

/* Memory types of PAT and MTRRs: bit n set means that n is one (SDM 3A tables 12-2 and 12-10). */
#define PAT_TYPES  0xf3u /* 0 UC, 1 WC, 4 WT, 5 WP, 6 WB, 7 UC- */
#define MTRR_TYPES 0x73u

static bool types_valid(uint64_t value, uint32_t types)
{
	for (unsigned shift = 0; shift < 64; shift += 8) {
		unsigned type = (uint8_t)(value >> shift);
		if (type > 7 || !(types >> type & 1))
			return false;
	}
	return true;
}

static bool write_pat(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return types_valid(value, PAT_TYPES) && write_field(vcpu, msr, index, value);
}

static bool write_mtrr_fixed(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return types_valid(value, MTRR_TYPES) && write_field(vcpu, msr, index, value);
}

static bool write_mtrr_def_type(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if ((value & ~0xcffull) || !(MTRR_TYPES >> (value & 0xff) & 1) || (value & 0xff) > 7)
		return false;
	return write_field(vcpu, msr, index, value);
}

/* Base and mask pairs alternate from 200h on; the mask's bit 11 is "valid". */
static uint64_t *mtrr_variable(struct vcpu *vcpu, uint32_t index)
{
	struct msr_state *m = &vcpu->state.msr;
	unsigned n = (index - 0x200) / 2;
	return index & 1 ? &m->mtrr_physical_mask[n] : &m->mtrr_physical_base[n];
}

static bool read_mtrr_variable(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = *mtrr_variable(vcpu, index);
	return true;
}

static bool write_mtrr_variable(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	unsigned width = vcpu->model ? vcpu->model->physical_bits : 46;
	uint64_t reserved = ~0ull << width;
	if (index & 1)
		reserved |= 0x7ff;
	else {
		reserved |= 0xf00;
		if ((value & 0xff) > 7 || !(MTRR_TYPES >> (value & 0xff) & 1))
			return false;
	}
	if (value & reserved)
		return false;
	*mtrr_variable(vcpu, index) = value;
	return true;
}

#define MISC_ENABLE_READ_ONLY ((1ull << 11) | (1ull << 12)) /* no BTS, no PEBS */

static bool write_misc_enable(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	uint64_t *enable = &vcpu->state.msr.misc_enable;
	*enable = (value & ~MISC_ENABLE_READ_ONLY) | (*enable & MISC_ENABLE_READ_ONLY);
	return true;
}

#define DEBUGCTL_LBR 1ull
#define DEBUGCTL_BTF 2ull

static bool write_debugctl(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return !(value & ~(DEBUGCTL_LBR | DEBUGCTL_BTF)) && write_field(vcpu, msr, index, value);
}

/* IBRS, STIBP, SSBD, IPRED_DIS_U/S, RRSBA_DIS_U/S, PSFD, BHI_DIS_S: kept, without effect: no guest code runs
 * speculatively beside another's data. */
static bool write_spec_ctrl(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return !(value & ~0x4ffull) && write_field(vcpu, msr, index, value);
}

/* PRED_CMD (IBPB, SBPB) and FLUSH_CMD: commands, not registers. */
static bool read_forbidden(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	return false;
}

static bool write_command(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return !(value & ~0x81ull);
}

static bool read_arch_capabilities(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = vcpu->model ? cpu_model_arch_capabilities(vcpu->model) : 0;
	return true;
}

static bool write_forbidden(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return false;
}

static bool write_xss(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if (vcpu->model && (value & ~vcpu->model->xss_supported))
		return false;
	return write_field(vcpu, msr, index, value);
}

/* Machine check banks: CTL takes all; STATUS, ADDR and MISC may only be cleared (SDM 3B 16.3.2). */
static bool write_mc(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	if ((index & 3) != 0 && value != 0 && !is_amd(vcpu))
		return false;
	return write_field(vcpu, msr, index, (index & 3) == 0 || is_amd(vcpu) ? value : 0);
}

static bool write_mcg_status(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return !(value & ~7ull) && write_field(vcpu, msr, index, value);
}

static bool write_mcg_ctl(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return (value == 0 || value == ~0ull) && write_field(vcpu, msr, index, value);
}

static bool read_microcode(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	uint64_t revision = vcpu->state.msr.microcode_revision;
	*value = is_amd(vcpu) ? revision : revision << 32;
	return true;
}

static bool read_top_mem(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	if (index == 0xc001001a)
		*value = vcpu->memory ? vcpu->memory->low_size : 0;
	else
		*value = MEMORY_HIGH_BASE + (vcpu->memory ? vcpu->memory->high_size : 0);
	return true;
}

static bool read_kvm_time(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = vcpu->state.msr.kvm_system_time;
	return true;
}

static bool write_kvm_time(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return pvclock_set_system_time(vcpu, value);
}

static bool read_kvm_wall(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t *value)
{
	*value = vcpu->state.msr.kvm_wall_clock;
	return true;
}

static bool write_kvm_wall(struct vcpu *vcpu, const struct msr *msr, uint32_t index, uint64_t value)
{
	return pvclock_set_wall_clock(vcpu, value);
}

#define OFFSET(member) offsetof(struct cpu_state, member)
#define FIELD(i, name, member)                                                                                         \
	{                                                                                                              \
		i, i, name, read_field, write_field, OFFSET(member), 0                                                 \
	}
#define FIELD_WRITE(i, name, member, write)                                                                            \
	{                                                                                                              \
		i, i, name, read_field, write, OFFSET(member), 0                                                       \
	}
#define FIELDS(i, j, name, member, write)                                                                              \
	{                                                                                                              \
		i, j, name, read_field, write, OFFSET(member), 0                                                       \
	}
#define FUNCTIONS(i, j, name, read, write)                                                                             \
	{                                                                                                              \
		i, j, name, read, write, 0, 0                                                                          \
	}
#define READ_ONLY(i, name, value)                                                                                      \
	{                                                                                                              \
		i, i, name, read_constant, write_forbidden, 0, value                                                   \
	}
#define FIXED(i, j, name, value)                                                                                       \
	{                                                                                                              \
		i, j, name, read_constant, write_ignored, 0, value                                                     \
	}

#define MTRR_CAP 0x508 /* 8 variable ranges, fixed ranges, write-combining */
#define MCG_CAP  0x104 /* 4 banks, MCG_CTL */

static const struct msr msrs[] = {
    /* What a running kernel touches often comes first: the table is searched in order. */
    FUNCTIONS(0x6e0, 0x6e0, "TSC_DEADLINE", read_tsc_deadline, write_tsc_deadline),
    FUNCTIONS(0x800, 0x8ff, "X2APIC", read_x2apic, write_x2apic),
    FIELD_WRITE(0xc0000100, "FS_BASE", segment[SEG_FS].base, write_canonical),
    FIELD_WRITE(0xc0000101, "GS_BASE", segment[SEG_GS].base, write_canonical),
    FIELD_WRITE(0xc0000102, "KERNEL_GS_BASE", msr.kernel_gs_base, write_canonical),
    FIELD_WRITE(0x48, "SPEC_CTRL", msr.spec_ctrl, write_spec_ctrl),
    FUNCTIONS(0x49, 0x49, "PRED_CMD", read_forbidden, write_command),
    FUNCTIONS(0x10, 0x10, "TSC", read_tsc, write_tsc),

    FIELD_WRITE(0xc0000080, "EFER", efer, write_efer),
    FIELD(0xc0000081, "STAR", msr.star),
    FIELD_WRITE(0xc0000082, "LSTAR", msr.lstar, write_canonical),
    FIELD_WRITE(0xc0000083, "CSTAR", msr.cstar, write_canonical),
    FIELD_WRITE(0xc0000084, "SFMASK", msr.sfmask, write_field_32),
    FIELD_WRITE(0xc0000103, "TSC_AUX", msr.tsc_aux, write_tsc_aux),
    FIELD_WRITE(0x174, "SYSENTER_CS", msr.sysenter_cs, write_field_32),
    FIELD_WRITE(0x175, "SYSENTER_ESP", msr.sysenter_esp, write_canonical),
    FIELD_WRITE(0x176, "SYSENTER_EIP", msr.sysenter_eip, write_canonical),
    FUNCTIONS(0x1b, 0x1b, "APIC_BASE", read_apic_base, write_apic_base),
    FIELD_WRITE(0x3b, "TSC_ADJUST", msr.tsc_adjust, write_tsc_adjust),
    FIELD_WRITE(0xda0, "XSS", msr.xss, write_xss),

    /* Memory types: kept, as firmware and kernels read back what they wrote; RAM is cached all the same. */
    FIELD_WRITE(0x277, "PAT", msr.pat, write_pat),
    READ_ONLY(0xfe, "MTRRCAP", MTRR_CAP),
    FUNCTIONS(0x200, 0x20f, "MTRR_PHYS", read_mtrr_variable, write_mtrr_variable),
    FIELDS(0x250, 0x250, "MTRR_FIX64K", msr.mtrr_fixed[0], write_mtrr_fixed),
    FIELDS(0x258, 0x259, "MTRR_FIX16K", msr.mtrr_fixed[1], write_mtrr_fixed),
    FIELDS(0x268, 0x26f, "MTRR_FIX4K", msr.mtrr_fixed[3], write_mtrr_fixed),
    FIELD_WRITE(0x2ff, "MTRR_DEF_TYPE", msr.mtrr_def_type, write_mtrr_def_type),

    /* Machine check. */
    READ_ONLY(0x179, "MCG_CAP", MCG_CAP),
    FIELD_WRITE(0x17a, "MCG_STATUS", msr.mcg_status, write_mcg_status),
    FIELD_WRITE(0x17b, "MCG_CTL", msr.mcg_ctl, write_mcg_ctl),
    FIELDS(0x400, 0x40f, "MC", msr.mc, write_mc),
    FIXED(0x0, 0x1, "P5_MC", 0),

    /* KVM's paravirtual clock. */
    FUNCTIONS(0x4b564d01, 0x4b564d01, "KVM_SYSTEM_TIME_NEW", read_kvm_time, write_kvm_time),
    FUNCTIONS(0x4b564d00, 0x4b564d00, "KVM_WALL_CLOCK_NEW", read_kvm_wall, write_kvm_wall),
    FUNCTIONS(0x12, 0x12, "KVM_SYSTEM_TIME", read_kvm_time, write_kvm_time),
    FUNCTIONS(0x11, 0x11, "KVM_WALL_CLOCK", read_kvm_wall, write_kvm_wall),

    /* Identification, power, debugging: what kernels and firmware read on every PC. */
    READ_ONLY(0x17, "PLATFORM_ID", 0),
    FIXED(0x2a, 0x2a, "EBL_CR_POWERON", 0),
    READ_ONLY(0x34, "SMI_COUNT", 0),
    FIXED(0x3a, 0x3a, "FEATURE_CONTROL", 1), /* locked, nothing enabled */
    FIXED(0x79, 0x79, "BIOS_UPDT_TRIG", 0),
    FUNCTIONS(0x8b, 0x8b, "BIOS_SIGN_ID", read_microcode, write_ignored),
    READ_ONLY(0xce, "PLATFORM_INFO", 0),
    FUNCTIONS(0x10a, 0x10a, "ARCH_CAPABILITIES", read_arch_capabilities, write_forbidden),
    FUNCTIONS(0x10b, 0x10b, "FLUSH_CMD", read_forbidden, write_command),
    READ_ONLY(0x198, "PERF_STATUS", 0x40000000000 | 1000), /* multiplier 4, as KVM has it */
    FIXED(0x199, 0x199, "PERF_CTL", 0),
    FIELD_WRITE(0x1a0, "MISC_ENABLE", msr.misc_enable, write_misc_enable),
    FIELD_WRITE(0x1d9, "DEBUGCTL", msr.debugctl, write_debugctl),
    FIXED(0x1db, 0x1de, "LAST_BRANCH", 0),
    FIXED(0x1fc, 0x1fc, "POWER_CTL", 0),

    /* Performance counters that are not there: they read 0 and keep nothing, so that a probe finds none (as under KVM).
     */
    FIXED(0xc1, 0xc2, "PERFCTR", 0),
    FIXED(0x186, 0x187, "PERFEVTSEL", 0),

    /* AMD's. SYSCFG: no memory encryption. HWCR: bit 24, the TSC counts at P0's frequency. DE_CFG: LFENCE is
       serializing. */
    FIXED(0xc0010000, 0xc0010007, "PERF_LEGACY", 0),
    FIXED(0xc0010010, 0xc0010010, "SYSCFG", 0),
    FIXED(0xc0010015, 0xc0010015, "HWCR", 1 << 24),
    FUNCTIONS(0xc001001a, 0xc001001a, "TOP_MEM", read_top_mem, write_ignored),
    FUNCTIONS(0xc001001d, 0xc001001d, "TOP_MEM2", read_top_mem, write_ignored),
    FIXED(0xc001001f, 0xc001001f, "NB_CFG", 0),
    FIXED(0xc0010020, 0xc0010020, "PATCH_LOADER", 0),
    FIXED(0xc0010055, 0xc0010055, "INT_PENDING", 0),
    FIXED(0xc0010058, 0xc0010058, "MMIO_CONF_BASE", 0),
    FIXED(0xc0010112, 0xc0010113, "SMM_TSEG", 0),
    FIXED(0xc0010114, 0xc0010114, "VM_CR", 0x18), /* SVM disabled and locked */
    FIXED(0xc0011021, 0xc0011022, "IC_CFG, DC_CFG", 0),
    FIXED(0xc0011029, 0xc0011029, "DE_CFG", 2),
    FIXED(0xc001102a, 0xc001102a, "BU_CFG2", 0),
};

static const struct msr *msr_find(const struct vcpu *vcpu, uint32_t index)
{
	for (size_t i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++)
		if (index >= msrs[i].first && index <= msrs[i].last) {
			/* The C001xxxxh range is AMD's alone. */
			if (index >> 16 == 0xc001 && vcpu->model && !vcpu->model->amd)
				return NULL;
			return &msrs[i];
		}
	return NULL;
}

static _Noreturn void msr_refuse(struct vcpu *vcpu, const struct msr *msr, const char *what, uint32_t index,
                                 uint64_t value)
{
	if (!msr && trace_on(vcpu->trace, TRACE_UNKNOWN)) {
		unsigned seen = 0;
		while (seen < vcpu->unknown_msr_count && vcpu->unknown_msr[seen] != index)
			seen++;
		if (seen == vcpu->unknown_msr_count &&
		    seen < sizeof(vcpu->unknown_msr) / sizeof(vcpu->unknown_msr[0])) {
			vcpu->unknown_msr[vcpu->unknown_msr_count++] = index;
			trace_write(vcpu->trace, TRACE_UNKNOWN, (int)vcpu->index,
			            "%s of unknown MSR %#x value %#llx at %#llx", what, index,
			            (unsigned long long)value, (unsigned long long)vcpu->state.rip);
		}
	}
	x86_raise(vcpu, VECTOR_GP);
}

uint64_t x86_rdmsr(struct vcpu *vcpu, uint32_t index)
{
	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_GP);
	vcpu->counters.msr++;
	const struct msr *msr = msr_find(vcpu, index);
	uint64_t value = 0;
	if (!msr || !msr->read(vcpu, msr, index, &value))
		msr_refuse(vcpu, msr, "read", index, 0);
	trace(vcpu->trace, TRACE_MSR, (int)vcpu->index, "read %#x %s: %#llx", index, msr->name,
	      (unsigned long long)value);
	return value;
}

void x86_wrmsr(struct vcpu *vcpu, uint32_t index, uint64_t value)
{
	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_GP);
	vcpu->counters.msr++;
	const struct msr *msr = msr_find(vcpu, index);
	trace(vcpu->trace, TRACE_MSR, (int)vcpu->index, "write %#x %s: %#llx", index, msr ? msr->name : "?",
	      (unsigned long long)value);
	if (!msr || !msr->write(vcpu, msr, index, value))
		msr_refuse(vcpu, msr, "write", index, value);
}

uint64_t x86_rdtsc(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if ((s->cr4 & CR4_TSD) && cpu_protected(s) && cpu_cpl(s) != 0)
		x86_raise(vcpu, VECTOR_GP);
	uint64_t value;
	read_tsc(vcpu, NULL, 0x10, &value);
	return value;
}

/* No performance counters: every index is out of range. */
uint64_t x86_rdpmc(struct vcpu *vcpu, uint32_t counter)
{
	x86_raise(vcpu, VECTOR_GP);
}
