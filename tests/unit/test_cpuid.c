/*
 * The CPU model: coherent, limited, and what the run-time leaves say.
 */
#include <cpuid.h>

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
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
