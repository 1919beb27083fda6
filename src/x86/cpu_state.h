/*
 * The architected state of one x86-64 logical processor: the one register file that every engine shares.
 *
 * While a vCPU runs, an engine may hold parts of it in host registers; at an exit from engine->run(), and before any
 * routine of x86/ is called, all of it is back here ("copy" form of state management).
 *
 * Plain data without pointers, so that it can be compared, copied and saved.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* General registers, in the order of their encoding (SDM 2A 2.1.3). */
enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, GPR_COUNT };

/* Segment registers; the first six in the order of their encoding. */
enum segment_register { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

/*
 * A segment register with its hidden part. `access` has the layout of VMX's access rights (SDM 3C 24.4.1):
 * bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable. `limit` is in bytes, G already applied.
 */
struct segment {
	uint64_t base;
	uint32_t limit;
	uint32_t access;
	uint16_t selector;
	uint16_t reserved[3];
};

#define SEG_TYPE_MASK  0x000fu
#define SEG_ACCESSED   0x0001u
#define SEG_WRITABLE   0x0002u /* data */
#define SEG_READABLE   0x0002u /* code */
#define SEG_EXPANDDOWN 0x0004u /* data */
#define SEG_CONFORMING 0x0004u /* code */
#define SEG_CODE       0x0008u
#define SEG_S          0x0010u
#define SEG_DPL_SHIFT  5
#define SEG_DPL_MASK   0x0060u
#define SEG_P          0x0080u
#define SEG_AVL        0x1000u
#define SEG_L          0x2000u
#define SEG_DB         0x4000u
#define SEG_G          0x8000u
#define SEG_UNUSABLE   0x10000u

struct descriptor_table {
	uint64_t base;
	uint16_t limit;
	uint16_t reserved[3];
};

#define FLAG_CF         (1ull << 0)
#define FLAG_ONE        (1ull << 1)
#define FLAG_PF         (1ull << 2)
#define FLAG_AF         (1ull << 4)
#define FLAG_ZF         (1ull << 6)
#define FLAG_SF         (1ull << 7)
#define FLAG_TF         (1ull << 8)
#define FLAG_IF         (1ull << 9)
#define FLAG_DF         (1ull << 10)
#define FLAG_OF         (1ull << 11)
#define FLAG_IOPL       (3ull << 12)
#define FLAG_NT         (1ull << 14)
#define FLAG_RF         (1ull << 16)
#define FLAG_VM         (1ull << 17)
#define FLAG_AC         (1ull << 18)
#define FLAG_VIF        (1ull << 19)
#define FLAG_VIP        (1ull << 20)
#define FLAG_ID         (1ull << 21)
#define FLAG_ARITHMETIC (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)

#define CR0_PE (1ull << 0)
#define CR0_MP (1ull << 1)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR0_ET (1ull << 4)
#define CR0_NE (1ull << 5)
#define CR0_WP (1ull << 16)
#define CR0_AM (1ull << 18)
#define CR0_NW (1ull << 29)
#define CR0_CD (1ull << 30)
#define CR0_PG (1ull << 31)

#define CR4_VME        (1ull << 0)
#define CR4_PVI        (1ull << 1)
#define CR4_TSD        (1ull << 2)
#define CR4_DE         (1ull << 3)
#define CR4_PSE        (1ull << 4)
#define CR4_PAE        (1ull << 5)
#define CR4_MCE        (1ull << 6)
#define CR4_PGE        (1ull << 7)
#define CR4_PCE        (1ull << 8)
#define CR4_OSFXSR     (1ull << 9)
#define CR4_OSXMMEXCPT (1ull << 10)
#define CR4_UMIP       (1ull << 11)
#define CR4_LA57       (1ull << 12)
#define CR4_VMXE       (1ull << 13)
#define CR4_FSGSBASE   (1ull << 16)
#define CR4_PCIDE      (1ull << 17)
#define CR4_OSXSAVE    (1ull << 18)
#define CR4_SMEP       (1ull << 20)
#define CR4_SMAP       (1ull << 21)
#define CR4_PKE        (1ull << 22)

#define EFER_SCE      (1ull << 0)
#define EFER_LME      (1ull << 8)
#define EFER_LMA      (1ull << 10)
#define EFER_NXE      (1ull << 11)
#define EFER_SVME     (1ull << 12)
#define EFER_FFXSR    (1ull << 14)
#define EFER_AUTOIBRS (1ull << 21)

/* XCR0 and XSTATE_BV components (SDM 1 13.1). */
#define XSTATE_X87       (1ull << 0)
#define XSTATE_SSE       (1ull << 1)
#define XSTATE_AVX       (1ull << 2)
#define XSTATE_OPMASK    (1ull << 5)
#define XSTATE_ZMM_HI256 (1ull << 6)
#define XSTATE_HI16_ZMM  (1ull << 7)
#define XSTATE_AVX512    (XSTATE_OPMASK | XSTATE_ZMM_HI256 | XSTATE_HI16_ZMM)

/* What the processor is doing between instructions. */
enum activity {
	ACTIVITY_RUNNING,
	ACTIVITY_HALTED,        /* HLT: until an interrupt, NMI or INIT */
	ACTIVITY_WAIT_FOR_SIPI, /* after INIT on an application processor */
	ACTIVITY_SHUTDOWN,      /* triple fault */
};

/* x87 state as the first 160 bytes of a 64-bit FXSAVE image (SDM 1 table 10-2), MXCSR fields unused there. */
struct x87_state {
	uint16_t fcw;
	uint16_t fsw;
	uint8_t ftw; /* abridged: 1 = not empty */
	uint8_t reserved1;
	uint16_t fop;
	uint64_t fip;
	uint64_t fdp;
	uint32_t unused_mxcsr;
	uint32_t unused_mxcsr_mask;
	uint8_t st[8][16]; /* ST0..ST7; 10 bytes each */
};

/* Vector registers, each whole in one place whatever XSAVE's layout is. XMMn and YMMn are the low parts of zmm[n]. */
struct vector_state {
	_Alignas(64) uint8_t zmm[32][64];
	uint64_t opmask[8];
	uint32_t mxcsr;
	uint32_t reserved;
};

struct msr_state {
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t tsc_aux;
	uint64_t tsc_adjust;
	uint64_t pat;
	uint64_t apic_base; /* IA32_APIC_BASE; kept in step with the local APIC */
	uint64_t misc_enable;
	uint64_t mtrr_def_type;
	uint64_t mtrr_fixed[11];
	uint64_t mtrr_physical_base[8], mtrr_physical_mask[8];
	uint64_t spec_ctrl;
	uint64_t xss;
	uint64_t debugctl;
	uint64_t microcode_revision;
	uint64_t kvm_wall_clock;  /* MSR_KVM_WALL_CLOCK_NEW as last written */
	uint64_t kvm_system_time; /* MSR_KVM_SYSTEM_TIME_NEW as last written */
	uint64_t kvm_poll_control;
	uint64_t mcg_status, mcg_ctl;
	uint64_t mc[4 * 4]; /* machine check banks 0-3: CTL, STATUS, ADDR, MISC */
};

/* Interrupt shadow: which instruction started it (SDM 3A 6.8.3). The shadow covers exactly one instruction. */
#define SHADOW_STI    1u
#define SHADOW_MOV_SS 2u

struct cpu_state {
	uint64_t gpr[GPR_COUNT];
	uint64_t rip; /* in 16- and 32-bit code: EIP zero-extended, relative to CS.base */
	uint64_t rflags;
	struct segment segment[SEG_COUNT];
	struct descriptor_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4; /* CR8 is the local APIC's TPR */
	uint64_t efer;
	uint64_t xcr0;
	uint64_t dr[8]; /* dr[4] and dr[5] unused */
	struct x87_state x87;
	uint16_t x87_fcs, x87_fds; /* selectors of FIP and FDP (32- and 16-bit images) */
	struct vector_state vector;
	struct msr_state msr;
	uint64_t tsc_offset; /* guest TSC = machine clock's TSC + tsc_offset, modulo 2^64 */

	/* Not registers, but architected all the same. */
	uint32_t activity;        /* enum activity */
	uint8_t interrupt_shadow; /* SHADOW_* in force for the next instruction */
	uint8_t nmi_blocked;      /* from an NMI's delivery to the next IRET */
	uint8_t nmi_pending;      /* 0 or 1 */
	uint8_t sipi_vector;      /* valid when activity leaves ACTIVITY_WAIT_FOR_SIPI */
	uint64_t pending_debug; /* DR6 bits of a trap-class #DB not yet delivered (SDM 3A 17.3, data breakpoints, TF) */

	/* The address range that MONITOR armed; 0 when none. */
	uint64_t monitor_address;

	/* PAE paging: the four page-directory-pointer entries, as the last load of CR3, CR0 or CR4 read them (SDM
	 * 3A 4.4.1). */
	uint64_t pdpte[4];
};

/* Current privilege level: SS.DPL (SDM 3A 5.5), 3 in virtual-8086 mode, 0 in real mode. */
static inline unsigned cpu_cpl(const struct cpu_state *s)
{
	return (s->segment[SEG_SS].access & SEG_DPL_MASK) >> SEG_DPL_SHIFT;
}

static inline bool cpu_protected(const struct cpu_state *s)
{
	return s->cr0 & CR0_PE;
}

static inline bool cpu_paging(const struct cpu_state *s)
{
	return s->cr0 & CR0_PG;
}

static inline bool cpu_long_mode(const struct cpu_state *s)
{
	return s->efer & EFER_LMA;
}

/* 64-bit code (as against compatibility mode). */
static inline bool cpu_64bit_code(const struct cpu_state *s)
{
	return (s->efer & EFER_LMA) && (s->segment[SEG_CS].access & SEG_L);
}

static inline bool cpu_virtual_8086(const struct cpu_state *s)
{
	return (s->rflags & FLAG_VM) && cpu_protected(s);
}

/* Real mode or virtual-8086 mode: segments are loaded as selector << 4. */
static inline bool cpu_real_or_vm86(const struct cpu_state *s)
{
	return !cpu_protected(s) || (s->rflags & FLAG_VM);
}

static inline bool cpu_canonical(uint64_t linear)
{
	return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}
