/*
 * The CPU model: coherent, limited, and what the run-time leaves say.
 */
#include <cpuid.h>

#include "x86/cpuid_host.h"
#include "x86_fixture.h"

#define BIT(n) (1u << (n))
enum { EAX, EBX, ECX, EDX };

static int setup(void **state)
{
	struct fixture *f = fixture_create(true);
	char why[256];
	assert_int_equal(cpu_model_create(&f->model, "host", 4, 2600000, why), 0);
	cpu_reset(&f->vcpu, true);
	*state = f;
	return 0;
}

static void test_specification(void **state)
{
	struct cpu_model model;
	char why[256];
	assert_int_equal(cpu_model_create(&model, "host", 1, 1000000, why), 0);
	assert_false(model.show_mitigations);
	assert_int_equal(cpu_model_create(&model, "host,mitigations=on", 1, 1000000, why), 0);
	assert_true(model.show_mitigations);
	assert_int_equal(cpu_model_create(&model, "host,mitigations=off", 16, 1000000, why), 0);
	assert_int_equal(cpu_model_create(&model, NULL, 1, 1000000, why), 0);
	static const char *const wrong[] = {
	    "", "hos", "hosts", "host,", "host,mitigations", "host,mitigations=maybe", "qemu64"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		why[0] = 0;
		assert_int_equal(cpu_model_create(&model, wrong[i], 1, 1000000, why), -22);
		assert_true(strlen(why) > 0);
	}
	assert_true(model.count <= sizeof(model.leaf) / sizeof(model.leaf[0]));
}

static void test_fits(void **state)
{
	struct fixture *f = *state;
	assert_true(f->model.count < sizeof(f->model.leaf) / sizeof(f->model.leaf[0]));
	/* No leaf twice. */
	for (unsigned i = 0; i < f->model.count; i++)
		for (unsigned j = 0; j < i; j++)
			assert_false(f->model.leaf[i].leaf == f->model.leaf[j].leaf &&
			             f->model.leaf[i].subleaf == f->model.leaf[j].subleaf);
}

static void test_features(void **state)
{
	struct fixture *f = *state;
	uint32_t r[4], h[4];
	x86_cpuid(&f->vcpu, 1, 0, r);
	__cpuid(1, h[0], h[1], h[2], h[3]);
	assert_int_equal(r[EAX], h[EAX]);
	assert_true(r[ECX] & BIT(31));            /* hypervisor */
	assert_true(r[ECX] & BIT(21));            /* x2APIC */
	assert_true(r[ECX] & BIT(24));            /* TSC deadline */
	assert_false(r[ECX] & (BIT(3) | BIT(5))); /* MONITOR, VMX */
	assert_false(r[ECX] & BIT(27));           /* OSXSAVE: not yet */
	assert_true(r[EDX] & BIT(1));             /* VME */
	assert_true(r[EDX] & BIT(28));            /* four CPUs */
	assert_int_equal(r[EBX] >> 16 & 0xff, 4);
	f->vcpu.state.cr4 |= CR4_OSXSAVE;
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_true(r[ECX] & BIT(27));
	f->vcpu.index = 3;
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_int_equal(r[EBX] >> 24, 3);
	f->vcpu.state.msr.apic_base = 0;
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_false(r[EDX] & BIT(9));

	x86_cpuid(&f->vcpu, 7, 0, r);
	assert_true(r[EBX] & BIT(7));
	assert_true(r[EBX] & BIT(20));
	assert_false(r[EBX] & (BIT(4) | BIT(11) | BIT(14) | BIT(25))); /* HLE, RTM, MPX, PT */
	assert_false(r[ECX] & (BIT(3) | BIT(4) | BIT(7) | BIT(16)));   /* PKU, CET, LA57 */
	x86_cpuid(&f->vcpu, 0x80000001, 0, r);
	assert_false(r[ECX] & BIT(2)); /* SVM */
	assert_true(r[EDX] & BIT(29));
	x86_cpuid(&f->vcpu, 0xa, 0, r);
	assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
	x86_cpuid(&f->vcpu, 0x80000007, 0, r);
	assert_int_equal(r[EDX], BIT(8));
}

static void test_xsave(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	uint32_t r[4];
	if (!f->model.xcr0_supported)
		skip();
	s->xcr0 = XSTATE_X87;
	x86_cpuid(&f->vcpu, 0xd, 0, r);
	assert_int_equal(r[EAX], f->model.xcr0_supported);
	assert_int_equal(r[EBX], 576);
	assert_int_equal(r[ECX], f->model.xsave_size_max);
	if (f->model.xcr0_supported & XSTATE_AVX) {
		s->xcr0 = XSTATE_X87 | XSTATE_SSE | XSTATE_AVX;
		x86_cpuid(&f->vcpu, 0xd, 0, r);
		assert_int_equal(r[EBX], 576 + 256);
		x86_cpuid(&f->vcpu, 0xd, 2, r);
		assert_int_equal(r[EAX], 256);
		assert_int_equal(r[EBX], 576);
	}
	s->xcr0 = f->model.xcr0_supported;
	x86_cpuid(&f->vcpu, 0xd, 0, r);
	assert_int_equal(r[EBX], f->model.xsave_size_max);
	x86_cpuid(&f->vcpu, 0xd, 1, r);
	if (f->model.xcr0_supported & XSTATE_AVX512)
		assert_int_equal(r[EBX], 576 + 256 + 64 + 512 + 1024);
	x86_cpuid(&f->vcpu, 0xd, 9, r); /* PKRU: none */
	assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
	/* XSETBV */
	s->cr4 |= CR4_OSXSAVE;
	ASSERT_FINE(f, x86_xsetbv(&f->vcpu, 0, f->model.xcr0_supported));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_xsetbv(&f->vcpu, 0, XSTATE_SSE));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_xsetbv(&f->vcpu, 0, XSTATE_X87 | XSTATE_AVX));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_xsetbv(&f->vcpu, 0, 7 | XSTATE_OPMASK));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_xsetbv(&f->vcpu, 0, 7 | 1 << 9));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_xsetbv(&f->vcpu, 1, 1));
	s->cr4 &= ~CR4_OSXSAVE;
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_xsetbv(&f->vcpu, 0, 1));
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_xgetbv(&f->vcpu, 0));
}

static void test_topology(void **state)
{
	struct fixture *f = *state;
	uint32_t r[4];
	f->vcpu.index = 2;
	x86_cpuid(&f->vcpu, 0xb, 0, r);
	assert_int_equal(r[EAX], 0);
	assert_int_equal(r[EBX], 1);
	assert_int_equal(r[ECX], 0x100);
	assert_int_equal(r[EDX], 2);
	x86_cpuid(&f->vcpu, 0xb, 1, r);
	assert_int_equal(r[EAX], 2); /* two bits: four CPUs */
	assert_int_equal(r[EBX], 4);
	assert_int_equal(r[ECX], 0x201);
	x86_cpuid(&f->vcpu, 0xb, 2, r);
	assert_int_equal(r[EAX] | r[EBX], 0);
	assert_int_equal(r[ECX], 2);
	assert_int_equal(r[EDX], 2);
	if (f->model.amd) {
		x86_cpuid(&f->vcpu, 0x80000008, 0, r);
		assert_int_equal(r[ECX], 3 | 2 << 12);
		x86_cpuid(&f->vcpu, 0x8000001e, 0, r);
		assert_int_equal(r[EAX], 2);
	}
}

static void test_hypervisor(void **state)
{
	struct fixture *f = *state;
	uint32_t r[4];
	x86_cpuid(&f->vcpu, 0x40000000, 0, r);
	assert_memory_equal(&r[1], "KVMKVMKVM\0\0\0", 12);
	assert_int_equal(r[EAX], 0x40000010);
	x86_cpuid(&f->vcpu, 0x40000001, 0, r);
	assert_int_equal(r[EAX], BIT(0) | BIT(1) | BIT(3) | BIT(24));
	x86_cpuid(&f->vcpu, 0x40000010, 0, r);
	assert_int_equal(r[EAX], 2600000);
	x86_cpuid(&f->vcpu, 0x40000100, 0, r);
	assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
	x86_cpuid(&f->vcpu, 0x80ffffff, 0, r);
	if (f->model.amd)
		assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
	/* Intel: a leaf above the last gives the last. */
	uint32_t last[4];
	f->model.amd = false;
	x86_cpuid(&f->vcpu, 0, 0, r);
	x86_cpuid(&f->vcpu, r[EAX], 0, last);
	x86_cpuid(&f->vcpu, 0x00ffffff, 0, r);
	assert_memory_equal(r, last, sizeof(r));
}

static void test_mitigations(void **state)
{
	struct fixture *f = *state;
	uint32_t r[4];
	char why[256];
	if (f->model.amd) {
		x86_cpuid(&f->vcpu, 0x80000008, 0, r);
		assert_int_equal(r[EBX] & (BIT(26) | BIT(29) | BIT(12)), BIT(26) | BIT(29));
		x86_cpuid(&f->vcpu, 0x80000021, 0, r);
		assert_int_equal(r[EAX] & (BIT(2) | BIT(8) | BIT(29)), BIT(2) | BIT(8) | BIT(29));
		assert_int_equal(r[ECX], 6);
	} else
		assert_true(cpu_model_arch_capabilities(&f->model) & 1);
	assert_int_equal(cpu_model_create(&f->model, "host,mitigations=on", 1, 1000000, why), 0);
	x86_cpuid(&f->vcpu, 0x80000008, 0, r);
	if (f->model.amd)
		assert_int_equal(r[EBX] & (BIT(26) | BIT(29) | BIT(12)), BIT(12));
	assert_int_equal(cpu_model_arch_capabilities(&f->model), 0);
}

/* An Ice Lake server without its tables' boring parts. */
static void ice_lake(void *owner, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	static const struct cpuid_leaf leaves[] = {
	    {0, 0, false, 0x1b, 0x756e6547, 0x6c65746e, 0x49656e69},
	    {1, 0, false, 0x606a6, 0x00400800, 0x7ffefbff, 0xbfebfbff},
	    {2, 0, false, 0x00feff01, 0xf0, 0, 0},
	    {4, 0, true, 0x7c004121, 0x02c0003f, 0x3f, 0},
	    {4, 1, true, 0x7c004122, 0x01c0003f, 0x3f, 0},
	    {4, 2, true, 0x7c004143, 0x04c0003f, 0x3ff, 0},
	    {4, 3, true, 0x7c0fc163, 0x02c0003f, 0xbfff, 4},
	    {7, 0, true, 0, 0xf3bfbfff, 0x40417f5e, 0xfc184410}, /* with PKU, HLE, RTM, SGX bits */
	    {0xd, 0, true, 0x2e7, 0xa88, 0xa88, 0},
	    {0xd, 1, true, 0xf, 0xa08, 0x1900, 0},
	    {0xd, 2, true, 0x100, 0x240, 0, 0},
	    {0xd, 5, true, 0x40, 0x440, 0, 0},
	    {0xd, 6, true, 0x200, 0x480, 0, 0},
	    {0xd, 7, true, 0x400, 0x680, 0, 0},
	    {0xd, 9, true, 8, 0xa80, 0, 0},
	    {0x80000000, 0, false, 0x80000008, 0, 0, 0},
	    {0x80000001, 0, false, 0, 0, 0x121, 0x2c100800},
	    {0x80000008, 0, false, 0x3934, 0x200, 0, 0},
	};
	for (size_t i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++)
		if (leaves[i].leaf == leaf && (!leaves[i].indexed || leaves[i].subleaf == subleaf)) {
			r[EAX] = leaves[i].eax;
			r[EBX] = leaves[i].ebx;
			r[ECX] = leaves[i].ecx;
			r[EDX] = leaves[i].edx;
		}
}

static void test_intel(void **state)
{
	struct fixture *f = *state;
	struct cpuid_host host = {.cpuid = ice_lake, .xcr0 = 0x2e7};
	uint32_t r[4];
	char why[256];
	assert_int_equal(cpu_model_create_from(&f->model, &host, "host", 6, 2400000, why), 0);
	assert_false(f->model.amd);
	assert_true(f->model.avx512 && f->model.rdpid && f->model.fsgsbase && f->model.lzcnt);
	assert_int_equal(f->model.physical_bits, 52);
	assert_int_equal(f->model.xcr0_supported, 0xe7); /* no PKRU */
	assert_int_equal(f->model.xsave_size_max, 0xa80);
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_int_equal(r[EBX] >> 16 & 0xff, 8); /* six CPUs: eight IDs */
	assert_false(r[ECX] & (BIT(3) | BIT(5) | BIT(6) | BIT(15)));
	x86_cpuid(&f->vcpu, 4, 0, r);
	assert_int_equal(r[EAX], 0x1c000121); /* private; eight core IDs */
	x86_cpuid(&f->vcpu, 4, 3, r);
	assert_int_equal(r[EAX], 0x1c01c163); /* shared by eight */
	x86_cpuid(&f->vcpu, 4, 4, r);
	assert_int_equal(r[EAX], 0);
	x86_cpuid(&f->vcpu, 7, 0, r);
	assert_false(r[EBX] & (BIT(2) | BIT(4) | BIT(11) | BIT(25)));
	assert_false(r[ECX] & (BIT(3) | BIT(4) | BIT(16) | BIT(30)));
	assert_int_equal(r[EDX], BIT(4) | BIT(26) | BIT(29));
	x86_cpuid(&f->vcpu, 0x1f, 1, r);
	assert_int_equal(r[EAX], 3);
	assert_int_equal(r[EBX], 6);
	x86_cpuid(&f->vcpu, 0x80000000, 0, r);
	assert_int_equal(r[EAX], 0x80000008);
	x86_cpuid(&f->vcpu, 0x80000008, 0, r);
	assert_int_equal(r[EAX], 0x3034);
	assert_int_equal(r[EBX], 0); /* no WBNOINVD */
	assert_int_equal(x86_rdmsr(&f->vcpu, 0x10a) & 0x3b, 0x3b);
	/* The host kernel holds AVX-512 back: the guest does not see it. */
	host.xcr0 = 7;
	assert_int_equal(cpu_model_create_from(&f->model, &host, "host", 1, 2400000, why), 0);
	x86_cpuid(&f->vcpu, 7, 0, r);
	assert_false(r[EBX] & (BIT(16) | BIT(17) | BIT(30) | BIT(31)));
	assert_true(r[EBX] & BIT(5));
	assert_int_equal(f->model.xcr0_supported, 7);
	/* Nor AVX. */
	host.xcr0 = 3;
	assert_int_equal(cpu_model_create_from(&f->model, &host, "host", 1, 2400000, why), 0);
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_false(r[ECX] & (BIT(12) | BIT(28) | BIT(29)));
	x86_cpuid(&f->vcpu, 7, 0, r);
	assert_false(r[EBX] & BIT(5));
	assert_false(r[ECX] & (BIT(9) | BIT(10)));
	/* And no XSAVE at all. */
	host.xcr0 = 0;
	assert_int_equal(cpu_model_create_from(&f->model, &host, "host", 1, 2400000, why), 0);
	x86_cpuid(&f->vcpu, 1, 0, r);
	assert_false(r[ECX] & BIT(26));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, fixture_destroy)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_specification),
	    T(test_fits),
	    T(test_features),
	    T(test_xsave),
	    T(test_topology),
	    T(test_hypervisor),
	    T(test_mitigations),
	    T(test_intel),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
