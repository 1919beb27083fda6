/*
 * The CPU that the guest sees: the host's, limited to what ring3 implements.
 *
 * `features` lists, register by register, which of the host's feature bits the guest may have, and which it has always
 * because ring3 itself implements them. Everything else a leaf holds (signature, caches, topology, XSAVE layout,
 * hypervisor) is built below it.
 *
 * Mitigations. A guest runs in ring3's engines. Nothing that its own mitigations do (another page table for user code,
 * retpolines, untrained returns, buffer clearing) protects it better: secrets of one guest process from another are
 * exposed at most through the host CPU, whose mitigations the host kernel applies to the ring3 process. But they cost
 * the guest dearly, more than on silicon: a retpoline defeats the engine's prediction of indirect jumps, page-table
 * isolation flushes the software TLB at every system call. So by default the model says that it is not vulnerable. What
 * Linux (arch/x86/kernel/cpu/bugs.c and common.c, 6.1 to 6.12) makes of it:
 *  - AMD: Meltdown, L1TF, MDS, SWAPGS, ITLB: never, by vendor. AutoIBRS (80000021h:EAX.8; EFER.21 is accepted) counts
 * as "enhanced IBRS", so no retpolines; BTC_NO: no retbleed; SRSO_NO: no safe returns; SSB_NO: no SSBD; TSA_*_NO: no
 * VERW; LFENCE is serializing: DE_CFG is left alone. No IBPB, STIBP: nothing to issue at context switches.
 *  - Intel: IA32_ARCH_CAPABILITIES with RDCL_NO, IBRS_ALL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR/FBSDP/PSDP_NO,
 * BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
 *  - What is left is cheap: pointer masking against Spectre v1, and in some kernels RSB filling at context switches.
 *    Seen with Debian's 6.1.192: only spectre_v1 and spectre_v2 ("Enhanced / Automatic IBRS") are not "Not affected".
 * `--cpu host,mitigations=on` hides all these bits and offers IBRS, IBPB, STIBP and SSBD instead, so that the guest
 * does what it would do on an old host.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "devices/lapic.h"
#include "x86/cpuid_host.h"
#include "x86/system.h"

enum { EAX, EBX, ECX, EDX };

#define BIT(n) (1u << (n))

struct feature_register {
	uint32_t leaf, subleaf;
	unsigned index; /* EAX .. EDX */
	uint32_t host;  /* the guest has what the host has of these */
	uint32_t always;
	uint32_t avx, avx512; /* of `host`: only where the host kernel enables AVX or AVX-512 state in XCR0 */
};

static const struct feature_register features[] = {
    {1, 0, ECX,
     .host = BIT(0) /* SSE3 */ | BIT(1) /* PCLMUL */ | BIT(9) /* SSSE3 */ | BIT(12) /* FMA */ | BIT(13) /* CX16 */ |
             BIT(19) /* SSE4.1 */ | BIT(20) /* SSE4.2 */ | BIT(22) /* MOVBE */ | BIT(23) /* POPCNT */ |
             BIT(25) /* AES */ | BIT(26) /* XSAVE */ | BIT(28) /* AVX */ | BIT(29) /* F16C */ | BIT(30) /* RDRAND */,
     .always = BIT(17) /* PCID */ | BIT(21) /* x2APIC */ | BIT(24) /* TSC deadline */ | BIT(31) /* hypervisor */,
     .avx = BIT(12) | BIT(28) | BIT(29)},
    {1, 0, EDX,
     .host = BIT(0) /* FPU */ | BIT(4) /* TSC */ | BIT(8) /* CX8 */ | BIT(15) /* CMOV */ | BIT(19) /* CLFLUSH */ |
             BIT(23) /* MMX */ | BIT(24) /* FXSR */ | BIT(25) /* SSE */ | BIT(26) /* SSE2 */ | BIT(27) /* self snoop */,
     .always = BIT(1) /* VME */ | BIT(2) /* DE */ | BIT(3) /* PSE */ | BIT(5) /* MSR */ | BIT(6) /* PAE */ |
               BIT(7) /* MCE */ | BIT(9) /* APIC */ | BIT(11) /* SYSENTER */ | BIT(12) /* MTRR */ | BIT(13) /* PGE */ |
               BIT(14) /* MCA */ | BIT(16) /* PAT */ | BIT(17) /* PSE-36 */},
    {6, 0, EAX, .always = BIT(2) /* ARAT */},
    {7, 0, EBX,
     .host = BIT(0) /* FSGSBASE */ | BIT(3) /* BMI1 */ | BIT(5) /* AVX2 */ | BIT(6) /* FDP_EXCPTN_ONLY */ |
             BIT(8) /* BMI2 */ | BIT(9) /* ERMS */ | BIT(13) /* no FCS, FDS */ | BIT(16) /* AVX512F */ |
             BIT(17) /* DQ */ | BIT(18) /* RDSEED */ | BIT(19) /* ADX */ | BIT(21) /* IFMA */ |
             BIT(23) /* CLFLUSHOPT */ | BIT(24) /* CLWB */ | BIT(28) /* CD */ | BIT(29) /* SHA */ | BIT(30) /* BW */ |
             BIT(31) /* VL */,
     .always = BIT(1) /* TSC_ADJUST */ | BIT(7) /* SMEP */ | BIT(10) /* INVPCID */ | BIT(20) /* SMAP */, .avx = BIT(5),
     .avx512 = BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31)},
    {7, 0, ECX,
     .host = BIT(1) /* VBMI */ | BIT(6) /* VBMI2 */ | BIT(8) /* GFNI */ | BIT(9) /* VAES */ | BIT(10) /* VPCLMULQDQ */ |
             BIT(11) /* VNNI */ | BIT(12) /* BITALG */ | BIT(14) /* VPOPCNTDQ */ | BIT(22) /* RDPID */,
     .always = BIT(2) /* UMIP */, .avx = BIT(9) | BIT(10), .avx512 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)},
    {7, 0, EDX, .host = BIT(4) /* FSRM */ | BIT(23) /* AVX512_FP16 */, .avx512 = BIT(23)},
    {7, 1, EAX,
     .host = BIT(4) /* AVX_VNNI */ | BIT(5) /* AVX512_BF16 */ | BIT(10) /* FZRM */ | BIT(11) /* FSRS */ |
             BIT(12) /* FSRC */,
     .avx = BIT(4), .avx512 = BIT(5)},
    {0xd, 1, EAX, .host = BIT(0) /* XSAVEOPT */ | BIT(1) /* XSAVEC */ | BIT(2) /* XGETBV 1 */ | BIT(3) /* XSAVES */},
    {0x80000001, 0, ECX,
     .host = BIT(0) /* LAHF in 64-bit mode */ | BIT(5) /* LZCNT */ | BIT(6) /* SSE4a */ | BIT(7) /* misaligned SSE */ |
             BIT(8) /* PREFETCHW */},
    {0x80000001, 0, EDX, .host = BIT(22) /* MMXEXT */ | BIT(27) /* RDTSCP */ | BIT(29) /* long mode */,
     .always = BIT(11) /* SYSCALL */ | BIT(20) /* NX */ | BIT(26) /* 1-GByte pages */},
    {0x80000007, 0, EDX, .always = BIT(8) /* invariant TSC */},
    {0x80000008, 0, EBX, .host = BIT(2) /* FXSAVE always keeps the error pointers */},
    {0x80000021, 0, EAX, .host = BIT(10) /* FSRS */ | BIT(11) /* FSRC */,
     .always = BIT(0) /* no nested data breakpoints */ | BIT(2) /* LFENCE serializing */ |
               BIT(6) /* null selectors clear the base */ | BIT(9) /* no SMM_CTL */},
};

/* Bits of 80000001h:EDX that mirror 1:EDX on AMD. */
#define AMD_MIRROR 0x0183f3ffu

/* "Not vulnerable", and with mitigations=on what to mitigate with. */
#define AMD_8_EBX_NO         (BIT(26) /* SSB_NO */ | BIT(29) /* BTC_NO */)
#define AMD_8_EBX_CONTROLS   (BIT(12) /* IBPB */ | BIT(14) /* IBRS */ | BIT(15) /* STIBP */ | BIT(24) /* SSBD */)
#define AMD_21_EAX_NO        (BIT(8) /* AutoIBRS */ | BIT(29) /* SRSO_NO */ | BIT(30) /* SRSO_USER_KERNEL_NO */)
#define AMD_21_ECX_NO        (BIT(1) /* TSA_SQ_NO */ | BIT(2) /* TSA_L1_NO */)
#define INTEL_7_EDX_NO       (BIT(26) /* SPEC_CTRL, which IBRS_ALL presumes */ | BIT(29) /* ARCH_CAPABILITIES */)
#define INTEL_7_EDX_CONTROLS (BIT(10) /* MD_CLEAR */ | BIT(26) | BIT(27) /* STIBP */ | BIT(31) /* SSBD */)

#define ARCH_CAPABILITIES_NO                                                                                           \
	(1ull << 0 /* RDCL_NO */ | 1ull << 1 /* IBRS_ALL */ | 1ull << 3 /* SKIP_L1DFL_VMENTRY */ |                     \
	 1ull << 4 /* SSB_NO */ | 1ull << 5 /* MDS_NO */ | 1ull << 6 /* PSCHANGE_MC_NO */ | 1ull << 8 /* TAA_NO */ |   \
	 1ull << 13 /* SBDR_SSDP_NO */ | 1ull << 14 /* FBSDP_NO */ | 1ull << 15 /* PSDP_NO */ |                        \
	 1ull << 20 /* BHI_NO */ | 1ull << 24 /* PBRSB_NO */ | 1ull << 26 /* GDS_NO */ | 1ull << 27 /* RFDS_NO */ |    \
	 1ull << 62 /* ITS_NO */)

uint64_t cpu_model_arch_capabilities(const struct cpu_model *model)
{
	return model->amd || model->show_mitigations ? 0 : ARCH_CAPABILITIES_NO;
}

/* KVM's paravirtual features (Linux Documentation/virt/kvm/x86/cpuid.rst). */
#define KVM_FEATURES                                                                                                   \
	(BIT(0) /* clock */ | BIT(1) /* no I/O delay */ | BIT(3) /* clock, new MSRs */ | BIT(24) /* stable */)
#define LAPIC_KHZ 1000000u /* the timer's input: one tick per nanosecond */

#define XSAVE_LEGACY_SIZE 576u
#define XSTATE_ALL        (XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512)

static void host_cpuid(const struct cpuid_host *host, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	r[EAX] = r[EBX] = r[ECX] = r[EDX] = 0;
	host->cpuid(host->owner, leaf, subleaf, r);
}

static void this_cpuid(void *owner, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	uint32_t max = __get_cpuid_max(leaf & 0x80000000, NULL);
	if (max >= leaf)
		__cpuid_count(leaf, subleaf, r[EAX], r[EBX], r[ECX], r[EDX]);
}

static uint64_t this_xcr0(void)
{
	uint32_t r[4] = {0}, low, high;
	this_cpuid(NULL, 1, 0, r);
	if (!(r[ECX] & BIT(27)))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

static struct cpuid_leaf *leaf_find(struct cpu_model *model, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < model->count; i++) {
		struct cpuid_leaf *l = &model->leaf[i];
		if (l->leaf == leaf && (!l->indexed || l->subleaf == subleaf))
			return l;
	}
	return NULL;
}

static struct cpuid_leaf *leaf_add(struct cpu_model *model, uint32_t leaf, uint32_t subleaf, bool indexed)
{
	struct cpuid_leaf *l = leaf_find(model, leaf, subleaf);
	if (!l) {
		l = &model->leaf[model->count++];
		*l = (struct cpuid_leaf){.leaf = leaf, .subleaf = subleaf, .indexed = indexed};
	}
	return l;
}

static void leaf_set(struct cpu_model *model, uint32_t leaf, uint32_t subleaf, bool indexed, const uint32_t r[4])
{
	struct cpuid_leaf *l = leaf_add(model, leaf, subleaf, indexed);
	l->eax = r[EAX];
	l->ebx = r[EBX];
	l->ecx = r[ECX];
	l->edx = r[EDX];
}

static void leaf_copy(struct cpu_model *model, const struct cpuid_host *host, uint32_t leaf)
{
	uint32_t r[4];
	host_cpuid(host, leaf, 0, r);
	leaf_set(model, leaf, 0, false, r);
}

static uint32_t *leaf_register(struct cpuid_leaf *l, unsigned index)
{
	uint32_t *const registers[] = {&l->eax, &l->ebx, &l->ecx, &l->edx};
	return registers[index];
}

static bool leaf_is_indexed(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x1f || leaf == 0x8000001d;
}

static void add_features(struct cpu_model *model, const struct cpuid_host *host)
{
	bool avx = model->xcr0_supported & XSTATE_AVX,
	     avx512 = (model->xcr0_supported & XSTATE_AVX512) == XSTATE_AVX512;
	for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
		const struct feature_register *f = &features[i];
		if (f->leaf == 0x80000021 && !model->amd)
			continue;
		uint32_t has[4];
		host_cpuid(host, f->leaf, f->subleaf, has);
		uint32_t mask = f->host;
		if (!avx)
			mask &= ~f->avx;
		if (!avx512)
			mask &= ~f->avx512;
		struct cpuid_leaf *l = leaf_add(model, f->leaf, f->subleaf, leaf_is_indexed(f->leaf));
		*leaf_register(l, f->index) |= (has[f->index] & mask) | f->always;
	}
}

static void add_mitigations(struct cpu_model *model)
{
	bool show = model->show_mitigations;
	if (model->amd) {
		leaf_add(model, 0x80000008, 0, false)->ebx |= show ? AMD_8_EBX_CONTROLS : AMD_8_EBX_NO;
		if (!show) {
			leaf_add(model, 0x80000021, 0, false)->eax |= AMD_21_EAX_NO;
			leaf_add(model, 0x80000021, 0, false)->ecx |= AMD_21_ECX_NO;
		}
	} else
		leaf_add(model, 7, 0, true)->edx |= show ? INTEL_7_EDX_CONTROLS : INTEL_7_EDX_NO;
}

/* The number of APIC ID bits that tell the CPUs of the package apart. */
static unsigned topology_shift(const struct cpu_model *model)
{
	unsigned shift = 0;
	while (1u << shift < model->cpu_count)
		shift++;
	return shift;
}

/* One package, one thread per core; the last-level cache is shared by all. */
static void add_caches(struct cpu_model *model, const struct cpuid_host *host)
{
	uint32_t leaf = model->amd ? 0x8000001d : 4, r[4];
	uint32_t ids = (1u << topology_shift(model)) - 1;
	for (uint32_t i = 0; i < 8; i++) {
		host_cpuid(host, leaf, i, r);
		unsigned type = r[EAX] & 31, level = r[EAX] >> 5 & 7;
		uint32_t sharing = level >= 3 ? (model->amd ? model->cpu_count - 1 : ids) : 0;
		if (type == 0)
			break;
		r[EAX] = (r[EAX] & 0x3fff) | sharing << 14;
		if (!model->amd)
			r[EAX] |= (ids > 63 ? 63 : ids) << 26;
		leaf_set(model, leaf, i, true, r);
	}
	if (model->amd) {
		leaf_copy(model, host, 0x80000005);
		leaf_copy(model, host, 0x80000006);
	} else {
		leaf_copy(model, host, 2);
		leaf_copy(model, host, 0x80000006);
	}
}

static void add_topology(struct cpu_model *model)
{
	unsigned shift = topology_shift(model);
	uint32_t logical = model->amd ? model->cpu_count : 1u << shift;
	struct cpuid_leaf *one = leaf_add(model, 1, 0, false);
	one->ebx = 8u << 8 | logical << 16; /* CLFLUSH of 64 bytes; the APIC ID is added per vCPU */
	if (model->cpu_count > 1)
		one->edx |= BIT(28); /* more than one logical processor */

	static const uint32_t extended[] = {0xb, 0x1f};
	for (unsigned i = 0; i < (model->amd ? 1 : 2); i++) {
		leaf_set(model, extended[i], 0, true, (const uint32_t[4]){0, 1, 0 | 1 << 8, 0});
		leaf_set(model, extended[i], 1, true, (const uint32_t[4]){shift, model->cpu_count, 1 | 2 << 8, 0});
	}
	if (model->amd) {
		leaf_add(model, 0x80000008, 0, false)->ecx = (model->cpu_count - 1) | shift << 12;
		struct cpuid_leaf *e1 = leaf_add(model, 0x80000001, 0, false);
		e1->ecx |= BIT(22); /* TOPOEXT: 8000001Dh and 8000001Eh */
		if (model->cpu_count > 1)
			e1->ecx |= BIT(1); /* CMP_LEGACY: cores, not threads */
		leaf_set(model, 0x8000001e, 0, false, (const uint32_t[4]){0});
	}
}

/* XCR0 components that both the host kernel enables and the list above needs; offsets and sizes are the host's. */
static void add_xsave(struct cpu_model *model, const struct cpuid_host *host)
{
	uint32_t r[4];
	model->xsave_size_max = XSAVE_LEGACY_SIZE;
	for (unsigned i = 2; i < 63; i++) {
		if (!(model->xcr0_supported >> i & 1))
			continue;
		host_cpuid(host, 0xd, i, r);
		r[ECX] &= 2; /* aligned to 64 in the compacted form */
		r[EDX] = 0;
		leaf_set(model, 0xd, i, true, r);
		model->xsave_size[i] = r[EAX];
		model->xsave_offset[i] = r[EBX];
		model->xsave_aligned |= (r[ECX] & 2 ? 1ull : 0) << i;
		if (r[EAX] + r[EBX] > model->xsave_size_max)
			model->xsave_size_max = r[EAX] + r[EBX];
	}
	leaf_set(model, 0xd, 0, true,
	         (const uint32_t[4]){(uint32_t)model->xcr0_supported, 0, model->xsave_size_max,
	                             (uint32_t)(model->xcr0_supported >> 32)});
	leaf_add(model, 0xd, 1, true)->ecx = (uint32_t)model->xss_supported;
}

static void add_identity(struct cpu_model *model, const struct cpuid_host *host)
{
	uint32_t r[4];
	host_cpuid(host, 0, 0, r);
	r[EAX] = model->amd ? 0x10 : 0x1f;
	leaf_set(model, 0, 0, false, r);
	host_cpuid(host, 1, 0, r);
	leaf_add(model, 1, 0, false)->eax = r[EAX];
	host_cpuid(host, 7, 0, r);
	leaf_add(model, 7, 0, true)->eax = 1;

	host_cpuid(host, 0x80000000, 0, r);
	r[EAX] = model->amd ? 0x80000021 : 0x80000008;
	leaf_set(model, 0x80000000, 0, false, r);
	host_cpuid(host, 0x80000001, 0, r);
	struct cpuid_leaf *e1 = leaf_add(model, 0x80000001, 0, false);
	e1->eax = r[EAX];
	e1->ebx = r[EBX];
	if (model->amd)
		e1->edx |= leaf_add(model, 1, 0, false)->edx & AMD_MIRROR;
	for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; leaf++)
		leaf_copy(model, host, leaf);
	host_cpuid(host, 0x80000008, 0, r);
	model->physical_bits = r[EAX] & 0xff;
	if (model->physical_bits < 36 || model->physical_bits > 52)
		model->physical_bits = 40;
	leaf_add(model, 0x80000008, 0, false)->eax = model->physical_bits | 48 << 8;
	if (model->amd) {
		leaf_copy(model, host, 0x80000019);
		leaf_copy(model, host, 0x8000001a);
	}
}

static void add_hypervisor(struct cpu_model *model)
{
	/* "KVMKVMKVM\0\0\0" */
	leaf_set(model, 0x40000000, 0, false, (const uint32_t[4]){0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d});
	leaf_set(model, 0x40000001, 0, false, (const uint32_t[4]){KVM_FEATURES, 0, 0, 0});
	leaf_set(model, 0x40000010, 0, false, (const uint32_t[4]){(uint32_t)model->tsc_khz, LAPIC_KHZ, 0, 0});
}

/* Features that change how instructions work, for the engines. */
static void derive_flags(struct cpu_model *model)
{
	const struct cpuid_leaf *one = leaf_find(model, 1, 0), *seven = leaf_find(model, 7, 0),
	                        *ext = leaf_find(model, 0x80000001, 0);
	model->fma = one->ecx & BIT(12);
	model->pclmul = one->ecx & BIT(1);
	model->movbe = one->ecx & BIT(22);
	model->aes = one->ecx & BIT(25);
	model->avx = one->ecx & BIT(28);
	model->f16c = one->ecx & BIT(29);
	model->rdrand = one->ecx & BIT(30);
	model->pcid = one->ecx & BIT(17);
	model->monitor = one->ecx & BIT(3);
	model->fsgsbase = seven->ebx & BIT(0);
	model->bmi1 = seven->ebx & BIT(3);
	model->smep = seven->ebx & BIT(7);
	model->bmi2 = seven->ebx & BIT(8);
	model->invpcid = seven->ebx & BIT(10);
	model->avx512 = seven->ebx & BIT(16);
	model->rdseed = seven->ebx & BIT(18);
	model->adx = seven->ebx & BIT(19);
	model->smap = seven->ebx & BIT(20);
	model->sha = seven->ebx & BIT(29);
	model->umip = seven->ecx & BIT(2);
	model->rdpid = seven->ecx & BIT(22);
	model->lzcnt = ext->ecx & BIT(5);
	model->sse4a = ext->ecx & BIT(6);
	model->nx = ext->edx & BIT(20);
	model->page1g = ext->edx & BIT(26);
}

static int parse(struct cpu_model *model, const char *specification, char *why)
{
	const char *p = specification ? specification : "host";
	size_t length = strcspn(p, ",");
	if (length != 4 || strncmp(p, "host", 4)) {
		snprintf(why, 256, "unknown CPU model \"%.*s\": there is \"host\"", (int)(length > 64 ? 64 : length),
		         p);
		return -EINVAL;
	}
	for (p += length; *p; p += length) {
		p++;
		length = strcspn(p, ",");
		if (length == 14 && !strncmp(p, "mitigations=on", length))
			model->show_mitigations = true;
		else if (length == 15 && !strncmp(p, "mitigations=off", length))
			model->show_mitigations = false;
		else {
			snprintf(why, 256, "unknown CPU option \"%.*s\": there is mitigations=on|off",
			         (int)(length > 64 ? 64 : length), p);
			return -EINVAL;
		}
	}
	return 0;
}

int cpu_model_create_from(struct cpu_model *model, const struct cpuid_host *host, const char *specification,
                          unsigned cpu_count, uint64_t tsc_khz, char *why)
{
	memset(model, 0, sizeof(*model));
	if (parse(model, specification, why))
		return -EINVAL;
	uint32_t r[4];
	host_cpuid(host, 0, 0, r);
	model->amd = r[EBX] == signature_AMD_ebx || r[EBX] == 0x6f677948 /* Hygon */;
	model->cpu_count = cpu_count ? cpu_count : 1;
	model->tsc_khz = tsc_khz;
	model->xcr0_supported = host->xcr0 & XSTATE_ALL;
	if ((model->xcr0_supported & XSTATE_AVX512) != XSTATE_AVX512)
		model->xcr0_supported &= ~XSTATE_AVX512;

	add_features(model, host);
	if (!model->xcr0_supported)
		leaf_add(model, 1, 0, false)->ecx &= ~BIT(26);
	add_topology(model);
	add_identity(model, host);
	add_mitigations(model);
	add_caches(model, host);
	add_xsave(model, host);
	add_hypervisor(model);
	derive_flags(model);
	return 0;
}

int cpu_model_create(struct cpu_model *model, const char *specification, unsigned cpu_count, uint64_t tsc_khz,
                     char *why)
{
	const struct cpuid_host host = {.cpuid = this_cpuid, .xcr0 = this_xcr0()};
	return cpu_model_create_from(model, &host, specification, cpu_count, tsc_khz, why);
}

/* Bytes that XSAVE (or XSAVEC, XSAVES: compacted) needs for these components. */
static uint32_t xsave_size(const struct cpu_model *model, uint64_t components, bool compacted)
{
	uint32_t size = XSAVE_LEGACY_SIZE;
	for (unsigned i = 2; i < 63; i++) {
		if (!(components >> i & 1))
			continue;
		uint32_t end = model->xsave_offset[i] + model->xsave_size[i];
		if (compacted) {
			if (model->xsave_aligned >> i & 1)
				size = (size + 63) & ~63u;
			end = size + model->xsave_size[i];
		}
		if (end > size)
			size = end;
	}
	return size;
}

/* What depends on the vCPU and its state. */
static void cpuid_dynamic(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	const struct cpu_state *s = &vcpu->state;
	switch (leaf) {
	case 1:
		r[EBX] |= vcpu->index << 24;
		if (s->cr4 & CR4_OSXSAVE)
			r[ECX] |= BIT(27);
		if (!((vcpu->lapic ? lapic_base(vcpu->lapic) : s->msr.apic_base) & 1 << 11))
			r[EDX] &= ~BIT(9);
		break;
	case 0xb:
	case 0x1f:
		r[ECX] = (r[ECX] & ~0xffu) | (subleaf & 0xff);
		r[EDX] = vcpu->index;
		break;
	case 0xd:
		if (subleaf == 0)
			r[EBX] = xsave_size(vcpu->model, s->xcr0, false);
		else if (subleaf == 1 && (r[EAX] & (BIT(1) | BIT(3))))
			r[EBX] = xsave_size(vcpu->model, s->xcr0 | s->msr.xss, true);
		break;
	case 0x80000001:
		if (vcpu->model->amd && !((vcpu->lapic ? lapic_base(vcpu->lapic) : s->msr.apic_base) & 1 << 11))
			r[EDX] &= ~BIT(9);
		break;
	case 0x8000001e:
		r[EAX] = vcpu->index;
		r[EBX] = vcpu->index; /* core ID; one thread per core */
		break;
	}
}

void x86_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
	struct cpu_model *model = (struct cpu_model *)vcpu->model;
	memset(registers, 0, 4 * sizeof(registers[0]));
	if (!model)
		return;
	/* Above the last leaf Intel answers with the last basic one, AMD with zeros. */
	uint32_t range = leaf & 0xc0000000;
	const struct cpuid_leaf *l = leaf_find(model, range, 0);
	if (!l || leaf > l->eax) {
		if (model->amd || range == 0x40000000)
			return;
		l = leaf_find(model, 0, 0);
		if (!l)
			return;
		leaf = l->eax;
	}
	l = leaf_find(model, leaf, subleaf);
	if (l) {
		registers[EAX] = l->eax;
		registers[EBX] = l->ebx;
		registers[ECX] = l->ecx;
		registers[EDX] = l->edx;
	}
	cpuid_dynamic(vcpu, leaf, subleaf, registers);
}
