/*
 * Model-specific registers, the TSC, KVM's paravirtual clock, and the CPU's saved state.
 */
#include "machine/clock.h"
#include "machine/state.h"
#include "x86/cpu_save.h"
#include "x86/pvclock.h"
#include "x86_fixture.h"

static int setup(void **state)
{
	struct fixture *f = fixture_create(true);
	f->vcpu.clock = clock_create_manual();
	assert_non_null(f->vcpu.clock);
	clock_advance(f->vcpu.clock, 1000);
	cpu_reset(&f->vcpu, true);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	clock_destroy(f->vcpu.clock);
	return fixture_destroy(state);
}

static uint64_t rdmsr(struct fixture *f, uint32_t index)
{
	volatile uint64_t value = 0;
	ASSERT_FINE(f, value = x86_rdmsr(&f->vcpu, index));
	return value;
}

/* Out of line, so that no caller's variable lives over a longjmp. */
static int wrmsr(struct fixture *f, uint32_t index, uint64_t value)
{
	return RAISED(f, x86_wrmsr(&f->vcpu, index, value));
}

#define WRMSR(f, index, value)       assert_int_equal(wrmsr(f, index, value), -1)
#define WRMSR_FAULT(f, index, value) assert_int_equal(wrmsr(f, index, value), VECTOR_GP)
#define RDMSR_FAULT(f, index)        ASSERT_FAULT(f, VECTOR_GP, 0, x86_rdmsr(&(f)->vcpu, index))

static void test_rights(void **state)
{
	struct fixture *f = *state;
	RDMSR_FAULT(f, 0x12345678);
	WRMSR_FAULT(f, 0x12345678, 0);
	f->vcpu.state.segment[SEG_SS].access |= SEG_DPL_MASK;
	f->vcpu.state.cr0 |= CR0_PE;
	RDMSR_FAULT(f, 0x10);
	WRMSR_FAULT(f, 0xc0000100, 0);
	f->vcpu.state.cr4 |= CR4_TSD;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_rdtsc(&f->vcpu));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_rdpmc(&f->vcpu, 0));
}

static void test_values(void **state)
{
	struct fixture *f = *state;
	static const uint32_t canonical[] = {0xc0000100, 0xc0000101, 0xc0000102, 0xc0000082, 0xc0000083, 0x175, 0x176};
	for (size_t i = 0; i < sizeof(canonical) / sizeof(canonical[0]); i++) {
		WRMSR_FAULT(f, canonical[i], 0x800000000000);
		WRMSR(f, canonical[i], 0xffff800000000000 + i);
		assert_int_equal(rdmsr(f, canonical[i]), 0xffff800000000000 + i);
	}
	assert_int_equal(f->vcpu.state.segment[SEG_FS].base, 0xffff800000000000);
	WRMSR(f, 0xc0000081, 0x123456789abcdef);
	assert_int_equal(rdmsr(f, 0xc0000081), 0x123456789abcdef);
	/* EFER */
	WRMSR(f, 0xc0000080, EFER_SCE | EFER_NXE | EFER_LME | EFER_AUTOIBRS);
	WRMSR_FAULT(f, 0xc0000080, EFER_SVME);
	WRMSR_FAULT(f, 0xc0000080, 2);
	WRMSR(f, 0xc0000080, EFER_LMA | EFER_LME);
	assert_int_equal(rdmsr(f, 0xc0000080), EFER_LME); /* LMA is not written */
	/* PAT and MTRRs */
	assert_int_equal(rdmsr(f, 0x277), 0x0007040600070406);
	WRMSR_FAULT(f, 0x277, 0x0002040600070406);
	WRMSR_FAULT(f, 0x277, 8);
	WRMSR(f, 0x277, 0x0407050600070106);
	assert_int_equal(rdmsr(f, 0xfe), 0x508);
	WRMSR_FAULT(f, 0xfe, 0);
	WRMSR(f, 0x2ff, 0xc06);
	WRMSR_FAULT(f, 0x2ff, 0xc02);
	WRMSR_FAULT(f, 0x2ff, 0x1006);
	WRMSR(f, 0x200, 0xc0000006);
	WRMSR(f, 0x201, 0xffc0000800);
	assert_int_equal(rdmsr(f, 0x201), 0xffc0000800);
	WRMSR_FAULT(f, 0x201, 1ull << 40);
	WRMSR_FAULT(f, 0x200, 0x102);
	WRMSR(f, 0x20f, 0x800);
	RDMSR_FAULT(f, 0x210);
	WRMSR(f, 0x26f, 0x0606060606060606);
	WRMSR_FAULT(f, 0x26f, 7);
	RDMSR_FAULT(f, 0x251);
	/* XSS, SPEC_CTRL, commands */
	WRMSR_FAULT(f, 0xda0, 0x800);
	WRMSR(f, 0x48, 1);
	assert_int_equal(rdmsr(f, 0x48), 1);
	WRMSR_FAULT(f, 0x48, 1ull << 40);
	WRMSR(f, 0x49, 1);
	RDMSR_FAULT(f, 0x49);
	/* AMD's only on AMD */
	assert_int_equal(rdmsr(f, 0xc0011029) & 2, 2);
	assert_int_equal(rdmsr(f, 0xc0010015), 1 << 24);
	assert_int_equal(rdmsr(f, 0xc001001a), 16 << 20);
	f->model.amd = false;
	RDMSR_FAULT(f, 0xc0010015);
	assert_int_equal(rdmsr(f, 0x8b) >> 32, 0x7fffffff);
}

static void test_tsc(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	assert_int_equal(rdmsr(f, 0x10), 1000); /* the machine clock's: a reset changes nothing */
	clock_advance(v->clock, 500);
	assert_int_equal(rdmsr(f, 0x10), 1500);
	WRMSR(f, 0x10, 0x100000);
	assert_int_equal(rdmsr(f, 0x10), 0x100000);
	assert_int_equal(rdmsr(f, 0x3b), 0x100000 - 1500);
	WRMSR(f, 0x3b, 0);
	assert_int_equal(rdmsr(f, 0x10), 1500);
	WRMSR(f, 0x3b, (uint64_t)-100);
	assert_int_equal(rdmsr(f, 0x10), 1400);
	volatile uint64_t tsc = 0;
	ASSERT_FINE(f, tsc = x86_rdtsc(v));
	assert_int_equal(tsc, 1400);
}

/* What the guest computes from the page (Linux's pvclock_get_nsec_offset, as the format defines it). */
static uint64_t guest_time(struct fixture *f, uint64_t at, uint64_t tsc)
{
	assert_int_equal(get(f, at, 4) & 1, 0);
	uint64_t delta = tsc - get(f, at + 8, 8);
	int8_t shift = (int8_t)get(f, at + 28, 1);
	delta = shift < 0 ? delta >> -shift : delta << shift;
	return get(f, at + 16, 8) + (uint64_t)((unsigned __int128)delta * get(f, at + 24, 4) >> 32);
}

static void test_pvclock(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	WRMSR(f, 0x4b564d01, 0x5000 | 1);
	assert_int_equal(get(f, 0x5000 + 29, 1), 1); /* TSC stable */
	uint32_t version = (uint32_t)get(f, 0x5000, 4);
	assert_true(version >= 2);
	uint64_t tsc = rdmsr(f, 0x10), t0 = guest_time(f, 0x5000, tsc);
	clock_advance(v->clock, 10000000000);
	uint64_t t1 = guest_time(f, 0x5000, rdmsr(f, 0x10));
	assert_in_range(t1 - t0, 10000000000 - 10, 10000000000 + 10);
	/* The guest sets its TSC: its time goes on. */
	WRMSR(f, 0x10, 5);
	assert_true(get(f, 0x5000, 4) > version);
	uint64_t t2 = guest_time(f, 0x5000, rdmsr(f, 0x10));
	assert_in_range(t2, t1 - 10, t1 + 10);
	/* Wall clock: UTC when the system time was 0. */
	uint64_t seconds;
	uint32_t ns;
	clock_utc(v->clock, &seconds, &ns);
	WRMSR(f, 0x4b564d00, 0x6000);
	uint64_t boot = get(f, 0x6004, 4) * 1000000000 + get(f, 0x6008, 4);
	uint64_t now = boot + guest_time(f, 0x5000, rdmsr(f, 0x10));
	assert_in_range(now, seconds * 1000000000 + ns - 1000, seconds * 1000000000 + ns + 1000);
	/* Outside RAM, misaligned. */
	WRMSR_FAULT(f, 0x4b564d01, 0xf0000001);
	WRMSR_FAULT(f, 0x4b564d01, 0x5003);
	WRMSR_FAULT(f, 0x12, (16 << 20) - 16 + 1);
	WRMSR_FAULT(f, 0x4b564d00, ~0ull << 2);
	WRMSR(f, 0x12, 0); /* off */
	assert_int_equal(rdmsr(f, 0x4b564d01), 0);
}

static void test_reset(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	assert_int_equal(s->segment[SEG_CS].base + s->rip, 0xfffffff0);
	assert_int_equal(s->cr0, 0x60000010);
	assert_int_equal(s->rflags, 2);
	assert_int_equal(s->x87.fcw, 0x40);
	assert_int_equal(s->vector.mxcsr, 0x1f80);
	assert_int_equal(s->dr[6], 0xffff0ff0);
	assert_int_equal(s->dr[7], 0x400);
	assert_int_equal(s->activity, ACTIVITY_RUNNING);
	s->vector.zmm[3][5] = 7;
	s->msr.pat = 6;
	s->cr4 = 0x20;
	s->gpr[RBX] = 1;
	s->cr0 = CR0_PE | CR0_ET;
	cpu_init(&f->vcpu);
	assert_int_equal(s->vector.zmm[3][5], 7);
	assert_int_equal(s->msr.pat, 6);
	assert_int_equal(s->cr4, 0);
	assert_int_equal(s->gpr[RBX], 0);
	assert_int_equal(s->cr0, CR0_ET);
	cpu_reset(&f->vcpu, false);
	assert_int_equal(s->activity, ACTIVITY_WAIT_FOR_SIPI);
	assert_int_equal(s->vector.zmm[3][5], 0);
}

static const void *save(struct fixture *f, struct state **state, size_t *length)
{
	*state = state_save_begin();
	assert_non_null(*state);
	cpu_state_state(&f->vcpu, *state);
	assert_null(state_error(*state));
	const void *data = state_save_data(*state, length);
	assert_non_null(data);
	return data;
}

static void test_save(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	/* A recognizable value in everything that may hold any. */
	for (unsigned i = 0; i < GPR_COUNT; i++)
		s->gpr[i] = 0x1111111111111111ull * i;
	for (unsigned i = 0; i < sizeof(s->vector.zmm); i++)
		((uint8_t *)s->vector.zmm)[i] = (uint8_t)(i * 7);
	for (unsigned i = 0; i < sizeof(s->x87.st); i++)
		((uint8_t *)s->x87.st)[i] = (uint8_t)(i * 5);
	for (unsigned i = 0; i < 8; i++)
		s->vector.opmask[i] = i * 0x101;
	for (unsigned i = 0; i < 16; i++)
		s->msr.mc[i] = i;
	s->pdpte[3] = 0x1001;
	s->tsc_offset = 0x123456789;
	s->cr2 = 0xdeadbeef;
	s->dr[2] = 0x4000;
	s->msr.star = 77;
	s->msr.kvm_system_time = 0x5001;
	s->interrupt_shadow = SHADOW_STI;
	s->nmi_pending = 1;
	s->rflags |= FLAG_OF;
	s->pending_debug = 1 << 14;
	struct state *saved;
	size_t length;
	const void *data = save(f, &saved, &length);

	struct fixture *g = fixture_create(true);
	struct state *load = state_load_begin(data, length);
	cpu_state_state(&g->vcpu, load);
	assert_null(state_error(load));
	assert_memory_equal(&g->vcpu.state, s, sizeof(*s));
	assert_int_equal(g->vcpu.overflow, 1);
	assert_true(atomic_load(&g->vcpu.attention) & ATTENTION_STEP);
	state_free(load);
	state_free(saved);
	void *p = g;
	fixture_destroy(&p);
}

/* Each is impossible; none is loaded, and the vCPU stays as it was. */
static void test_load_refuses(void **state)
{
	struct fixture *f = *state;
	struct cpu_state good = f->vcpu.state;
	for (unsigned i = 0; i < 22; i++) {
		struct cpu_state *s = &f->vcpu.state;
		*s = good;
		switch (i) {
		case 0:
			s->rflags = 0;
			break;
		case 1:
			s->rflags |= 1 << 15;
			break;
		case 2:
			s->rflags |= FLAG_VM;
			break;
		case 3:
			s->cr0 = CR0_PG;
			break;
		case 4:
			s->cr0 |= 1ull << 40;
			break;
		case 5:
			s->cr4 |= CR4_LA57;
			break;
		case 6:
			s->cr4 |= 1ull << 50;
			break;
		case 7:
			s->efer = EFER_LMA;
			break;
		case 8:
			s->efer = EFER_SVME;
			break;
		case 9:
			s->cr4 |= CR4_PCIDE;
			break;
		case 10:
			s->cr3 = 1ull << 45;
			break;
		case 11:
			s->xcr0 = 0;
			break;
		case 12:
			s->xcr0 = 1ull << 17 | 1;
			break;
		case 13:
			s->vector.mxcsr = 0xffffffff;
			break;
		case 14:
			s->segment[SEG_DS].access = ~0u;
			break;
		case 15:
			s->segment[SEG_FS].base = 1ull << 33;
			break;
		case 16:
			s->gdtr.base = 1ull << 33;
			break;
		case 17:
			s->msr.lstar = 1ull << 47;
			break;
		case 18:
			s->activity = 4;
			break;
		case 19:
			s->nmi_blocked = 2;
			break;
		case 20:
			s->segment[SEG_SS].access |= SEG_DPL_MASK;
			break;
		case 21:
			s->pending_debug = 1ull << 32;
			break;
		}
		struct state *saved;
		size_t length;
		const void *data = save(f, &saved, &length);
		*s = good;
		struct state *load = state_load_begin(data, length);
		cpu_state_state(&f->vcpu, load);
		if (!state_error(load))
			fail_msg("case %u was accepted", i);
		assert_memory_equal(s, &good, sizeof(good));
		state_free(load);
		state_free(saved);
	}
}

/* A stream of random fields is refused, or gives a CPU on which everything can still be done. */
static void test_load_fuzz(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 0x853c49e6748fea9b;
	struct cpu_state good = f->vcpu.state;
	const size_t skipped = offsetof(struct cpu_state, x87), resumed = offsetof(struct cpu_state, msr);
	unsigned accepted = 0;
	print_message("seed %#llx\n", (unsigned long long)seed);
	for (unsigned round = 0; round < 3000; round++) {
		f->vcpu.state = good;
		for (unsigned i = 0; i <= round % 4; i++) {
			seed = seed * 6364136223846793005 + 1442695040888963407;
			size_t at = (seed >> 24) % sizeof(good);
			if (at >= skipped && at < resumed) /* big, and nothing depends on it */
				at %= skipped;
			((uint8_t *)&f->vcpu.state)[at] ^= (uint8_t)(1u << (seed >> 60 & 7));
		}
		struct state *saved;
		size_t length;
		const void *data = save(f, &saved, &length);
		f->vcpu.state = good;
		struct state *load = state_load_begin(data, length);
		cpu_state_state(&f->vcpu, load);
		if (!state_error(load)) {
			accepted++;
			f->vcpu.exception = (struct exception){.vector = (uint8_t)(seed >> 33 & 15)};
			exception_deliver(&f->vcpu);
			interrupts_take(&f->vcpu);
			pvclock_update(&f->vcpu);
		}
		state_free(load);
		state_free(saved);
	}
	assert_in_range(accepted, 100, 2900);
	print_message("%u accepted\n", accepted);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(test_rights), T(test_values), T(test_tsc),          T(test_pvclock),
	    T(test_reset),  T(test_save),   T(test_load_refuses), T(test_load_fuzz),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
