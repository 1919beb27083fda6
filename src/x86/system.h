/*
 * Sensitive instructions on control, debug and model-specific registers: one routine each, for every engine. Privilege
 * and validity are checked here; they raise. The engine advances RIP.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "machine/vcpu.h"

/* MOV to/from CRn: n = 0, 2, 3, 4, 8; others #UD. Flushes the TLB and recomputes the MMU view as due. */
uint64_t x86_mov_from_cr(struct vcpu *vcpu, unsigned n);
void x86_mov_to_cr(struct vcpu *vcpu, unsigned n, uint64_t value);
void x86_lmsw(struct vcpu *vcpu, uint16_t value);
uint16_t x86_smsw(struct vcpu *vcpu);   /* UMIP is checked by x86_check_umip() */
void x86_check_umip(struct vcpu *vcpu); /* SGDT, SIDT, SLDT, STR, SMSW at CPL > 0 with CR4.UMIP: #GP */
void x86_clts(struct vcpu *vcpu);
uint64_t x86_mov_from_dr(struct vcpu *vcpu, unsigned n);
void x86_mov_to_dr(struct vcpu *vcpu, unsigned n, uint64_t value);

uint64_t x86_rdmsr(struct vcpu *vcpu, uint32_t index); /* checks CPL, #GP for unknown ones */
void x86_wrmsr(struct vcpu *vcpu, uint32_t index, uint64_t value);
uint64_t x86_rdtsc(struct vcpu *vcpu); /* checks CR4.TSD */
uint64_t x86_rdpmc(struct vcpu *vcpu, uint32_t counter);
void x86_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t registers[4]); /* EAX, EBX, ECX, EDX */
uint64_t x86_xgetbv(struct vcpu *vcpu, uint32_t index);
void x86_xsetbv(struct vcpu *vcpu, uint32_t index, uint64_t value);

void x86_invlpg(struct vcpu *vcpu, uint64_t linear);
void x86_invpcid(struct vcpu *vcpu, uint64_t type, uint64_t pcid, uint64_t linear); /* descriptor already read */

/* CLI, STI, PUSHF image and POPF by the rules of IOPL, VM86, CR4.VME and PVI. STI returns true when it starts the
 * shadow. */
void x86_cli(struct vcpu *vcpu);
bool x86_sti(struct vcpu *vcpu);
uint64_t x86_pushf(struct vcpu *vcpu, unsigned operand_size);
void x86_popf(struct vcpu *vcpu, unsigned operand_size, uint64_t value);

void x86_hlt(struct vcpu *vcpu); /* sets state.activity; the engine exits */
void x86_monitor(struct vcpu *vcpu, uint64_t linear);
void x86_mwait(struct vcpu *vcpu);
void x86_swapgs(struct vcpu *vcpu);

/* Writes to EFER, CR0 or CR4 change what code means: engines key their code by this (mode, CPL, paging, x87/SSE
 * availability). */

/*
 * The CPU that the guest sees (cpuid.c): made once per machine from the host's CPUID, limited to what ring3 implements.
 */
struct cpuid_leaf {
	uint32_t leaf, subleaf;
	bool indexed; /* subleaf matters */
	uint32_t eax, ebx, ecx, edx;
};

struct cpu_model {
	unsigned count;
	struct cpuid_leaf leaf[96];
	uint64_t xcr0_supported; /* XCR0 bits the guest may set */
	uint64_t xss_supported;
	uint32_t xsave_size_max; /* CPUID.0DH:ECX */
	/* XSAVE standard-format offset and size of each component, from the host (they differ between vendors). */
	uint32_t xsave_offset[64], xsave_size[64];
	uint64_t xsave_aligned; /* components that begin at a multiple of 64 in the compacted form */
	unsigned physical_bits; /* MAXPHYADDR */
	bool amd; /* vendor behaviour where AMD and Intel differ: SYSRET SS, SYSCALL in compatibility mode, SYSENTER in
	             long mode ... */
	uint64_t tsc_khz;
	unsigned cpu_count;
	/* Features that change instruction behaviour, so that the engines need no CPUID look-up. */
	bool lzcnt, bmi1, bmi2, fsgsbase, smep, smap, umip, pcid, invpcid, rdpid, page1g, nx, sse4a, avx, avx512, fma,
	    f16c, movbe, adx, sha, aes, pclmul, rdrand, rdseed, monitor;
	bool show_mitigations; /* --cpu host,mitigations=on: hide the "not vulnerable" bits */
};

/* `specification` is "host" with optional ",mitigations=on|off". 0 or -EINVAL with `why` (256 bytes). */
int cpu_model_create(struct cpu_model *model, const char *specification, unsigned cpu_count, uint64_t tsc_khz,
                     char *why);
/* IA32_ARCH_CAPABILITIES of this model. */
uint64_t cpu_model_arch_capabilities(const struct cpu_model *model);
