/*
 * Hostile descriptors: random tables, TSSs, stacks and modes under every routine that transfers control. Nothing may
 * crash or hang; what raises must have changed nothing (task switches excepted, which fault in the new task's context);
 * what succeeds must leave a state that a processor can be in, which the loader of saved state checks.
 */
#include "machine/state.h"
#include "x86/cpu_save.h"
#include "x86_fixture.h"

#define ROUNDS 60000

static uint64_t seed;

static uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static uint64_t pick(uint64_t n)
{
	return (next() >> 8) % n;
}

static uint64_t address(void)
{
	static const uint64_t corner[] = {0,
	                                  8,
	                                  0xffff,
	                                  0x10000,
	                                  0x7fffffff,
	                                  0xfffffff8,
	                                  0x100000000,
	                                  0x7ffffffffff8,
	                                  0x800000000000,
	                                  0xffff800000000000,
	                                  0xfffffffffffffff8};
	if (pick(4))
		return 0x1000 + pick(0x20000);
	return corner[pick(sizeof(corner) / sizeof(corner[0]))];
}

static uint64_t random_descriptor(void)
{
	uint64_t base = pick(2) ? 0 : pick(0x40000), limit = pick(3) ? 0xfffff : pick(0x1000);
	uint64_t type = pick(4) ? 0x80 | pick(0x80) : pick(0x100);
	if (!pick(3)) /* a gate */
		return (pick(0x10000)) | pick(0x100) << 16 | pick(32) << 32 | type << 40 | pick(2) << 48;
	return (limit & 0xffff) | base << 16 | type << 40 | (limit >> 16) << 48 | pick(16) << 52;
}

/* An entry of the IDT that may work; the odd ones are upper halves in long mode. */
static uint64_t random_gate(unsigned i)
{
	static const uint8_t type[] = {0x8e, 0x8f, 0xee, 0xef, 0x86, 0x85};
	if (i % 2 && pick(2))
		return 0;
	return pick(0x10000) | pick(32) << 19 | (uint64_t)type[pick(sizeof(type))] << 40 |
	       (pick(4) ? 0 : pick(8)) << 32;
}

/* A code or data segment with nothing wrong about it, more often than chance would give one. */
static uint64_t good_descriptor(void)
{
	static const uint8_t type[] = {0x9a, 0x92, 0xfa, 0xf2, 0x9e, 0x89, 0x82};
	return 0x000f00000000ffff | (uint64_t)type[pick(sizeof(type))] << 40 | (pick(3) ? 0xcull : 0xaull) << 52;
}

#define GDT 0x1000
#define IDT 0x2000
#define TSS 0x3000

static void random_memory(struct fixture *f)
{
	for (unsigned i = 0; i < 32; i++)
		put64(f, GDT + i * 8, pick(2) ? good_descriptor() : random_descriptor());
	for (unsigned i = 0; i < 512; i++)
		put64(f, IDT + i * 8, pick(4) ? random_gate(i) : random_descriptor());
	for (unsigned i = 0; i < 64; i++)
		put64(f, TSS + i * 8, pick(2) ? pick(0x100) : address());
	for (unsigned i = 0; i < 64; i++)
		put64(f, 0x8000 + i * 8, pick(3) == 0 ? address() : pick(3) ? pick(0x100) : next());
	/* Tables for every kind of paging: the lower 4 MiB or 1 GiB one to one, the rest nothing or nonsense. */
	put64(f, 0x100000, 0x101007);
	put64(f, 0x101000, 0x87);
	put64(f, 0x100ff8, pick(2) ? 0x101007 : next());
	put32(f, 0x102000, 0x87);
	put64(f, 0x103000, 0x104001);
	put64(f, 0x104000, 0x87);
}

static void random_state(struct fixture *f)
{
	struct cpu_state *s = &f->vcpu.state;
	cpu_reset(&f->vcpu, true);
	unsigned mode = (unsigned)pick(6); /* real, protected, protected paged, PAE, VM86, long */
	unsigned cpl = mode == 0 ? 0 : mode == 4 ? 3 : pick(2) ? 0 : 3;
	f->model.amd = pick(2);
	s->cr0 =
	    CR0_ET | (mode ? CR0_PE : 0) | (mode == 2 || mode == 3 || mode == 5 ? CR0_PG : 0) | (pick(2) ? CR0_WP : 0);
	s->cr4 = mode == 3 || mode == 5 ? CR4_PAE : CR4_PSE;
	s->cr4 |= pick(16) ? 0 : CR4_SMAP | CR4_SMEP;
	s->cr4 |= pick(2) ? CR4_VME | CR4_PVI : 0;
	s->cr3 = mode == 5 ? 0x100000 : mode == 3 ? 0x103000 : 0x102000;
	s->efer = EFER_SCE | EFER_NXE | (mode == 5 ? EFER_LME | EFER_LMA : 0);
	if (mode == 3)
		assert_true(paging_load_pdptes(&f->vcpu, s->cr3));
	s->rflags = FLAG_ONE | (next() & 0x7fd5) | (mode == 4 ? FLAG_VM : 0) | (pick(4) ? 0 : FLAG_VIF | FLAG_VIP);
	if (pick(2))
		s->rflags &= ~FLAG_NT;
	s->gdtr = (struct descriptor_table){.base = GDT, .limit = pick(4) ? 0xff : (uint16_t)pick(0x100)};
	s->idtr = (struct descriptor_table){.base = IDT, .limit = pick(4) ? 0xfff : (uint16_t)pick(0x1000)};
	for (unsigned i = 0; i < 6; i++) {
		uint32_t type = i == SEG_CS ? SEG_CODE | SEG_READABLE : SEG_WRITABLE;
		uint32_t wide = i == SEG_CS && mode == 5 && pick(2) ? SEG_L : pick(4) ? SEG_DB : 0;
		s->segment[i] = (struct segment){
		    .selector = (uint16_t)(pick(32) * 8 + cpl),
		    .limit = pick(4) ? 0xffffffff : (uint32_t)pick(0x10000),
		    .access = SEG_P | SEG_S | SEG_ACCESSED | type | cpl << SEG_DPL_SHIFT | wide | SEG_G,
		};
		if (mode == 0 || mode == 4) {
			s->segment[i].base = (uint64_t)s->segment[i].selector << 4;
			s->segment[i].limit = 0xffff;
			s->segment[i].access = SEG_P | SEG_S | SEG_ACCESSED | SEG_WRITABLE | cpl << SEG_DPL_SHIFT;
		}
	}
	s->segment[SEG_LDTR] = (struct segment){.base = GDT, .limit = (uint32_t)pick(0x100), .access = SEG_P | 2};
	if (pick(2))
		s->segment[SEG_LDTR].access = SEG_UNUSABLE;
	s->segment[SEG_TR] = (struct segment){
	    .base = TSS,
	    .selector = (uint16_t)(pick(32) * 8),
	    .limit = pick(4) ? 0x1ff : (uint32_t)pick(0x80),
	    .access = SEG_P | (pick(4) ? 11 : 3),
	};
	for (unsigned i = 0; i < GPR_COUNT; i++)
		s->gpr[i] = cpu_64bit_code(s) ? address() : (uint32_t)address();
	if (pick(8))
		s->gpr[RSP] = 0x8000 + pick(0x100);
	s->rip = cpu_64bit_code(s) ? address() : (uint32_t)address();
	s->msr.star = next();
	s->msr.lstar = s->msr.cstar = s->msr.sysenter_eip = s->msr.sysenter_esp = pick(2) ? 0xffffffff80000000 : 0x4000;
	s->msr.sysenter_cs = pick(0x100);
	mmu_flush(&f->vcpu);
	mmu_update_view(&f->vcpu);
	atomic_store(&f->vcpu.attention, 0);
}

static void operate(struct fixture *f, unsigned operation, uint64_t a, uint64_t b)
{
	struct vcpu *v = &f->vcpu;
	bool wide = cpu_64bit_code(&v->state);
	unsigned size = wide ? (unsigned)(2u << a % 3) : (unsigned)(2u << a % 2);
	uint16_t selector = (uint16_t)(b % 0x108);
	switch (operation) {
	case 0:
		segment_load(v, (enum segment_register[]){SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS}[a % 5], selector);
		break;
	case 1:
		x86_far_jump(v, selector, a, size, a);
		break;
	case 2:
		x86_far_call(v, selector, a, size, v->state.rip);
		break;
	case 3:
		x86_far_return(v, size, (uint16_t)(b >> 32 & 0xff), v->state.rip);
		break;
	case 4:
		x86_iret(v, size, v->state.rip);
		break;
	case 5:
		software_interrupt(v, SOFTWARE_INT_N, a & 0xff, v->state.rip);
		break;
	case 6:
		software_interrupt(v, SOFTWARE_INT3, 3, v->state.rip);
		break;
	case 7:
		x86_lldt(v, selector);
		break;
	case 8:
		x86_ltr(v, selector);
		break;
	case 9:
		x86_syscall(v, v->state.rip);
		break;
	case 10:
		x86_sysret(v, wide && a & 1 ? 8 : 4);
		break;
	case 11:
		x86_sysenter(v);
		break;
	case 12:
		x86_sysexit(v, wide && a & 1 ? 8 : 4);
		break;
	case 13:
		x86_check_io(v, (uint16_t)a, 1u << a % 3);
		break;
	case 14:
		x86_popf(v, size, b);
		break;
	case 15: {
		uint32_t result;
		x86_lar(v, selector, &result);
		x86_lsl(v, selector, &result);
		x86_verify(v, selector, a & 1);
		break;
	}
	case 16:
		x86_mov_to_cr(v, (unsigned[]){0, 3, 4}[a % 3], b & (a & 8 ? ~0ull : 0x80000033));
		break;
	case 17:
		x86_wrmsr(v, (a & 3 ? 0xc0000080 : 0x170) + (uint32_t)(a >> 8 & 7), b);
		break;
	}
}
#define OPERATIONS 18

static int attempt(struct fixture *f, unsigned operation, uint64_t a, uint64_t b)
{
	return RAISED(f, operate(f, operation, a, b));
}

/* Faults after a task switch belong to the new task. */
static bool may_switch_task(unsigned operation)
{
	return operation == 1 || operation == 2 || operation == 4 || operation == 5 || operation == 6;
}

static void assert_possible(struct fixture *f, unsigned operation)
{
	struct state *save = state_save_begin();
	cpu_state_state(&f->vcpu, save);
	size_t length;
	const void *data = state_save_data(save, &length);
	struct state *load = state_load_begin(data, length);
	cpu_state_state(&f->vcpu, load);
	if (state_error(load))
		fail_msg("operation %u left an impossible state: %s", operation, state_error(load));
	state_free(load);
	state_free(save);
}

static void test_operations(void **state)
{
	struct fixture *f = *state;
	uint64_t fine = 0;
	unsigned seen[OPERATIONS] = {0};
	for (unsigned round = 0; round < ROUNDS; round++) {
		if (round % 16 == 0)
			random_memory(f);
		random_state(f);
		struct cpu_state before = f->vcpu.state;
		unsigned operation = (unsigned)pick(OPERATIONS);
		uint64_t a = pick(2) ? address() : next(), b = next();
		int raised = attempt(f, operation, a, b);
		assert_true(raised < 32);
		if (raised >= 0) {
			bool switched =
			    f->vcpu.state.segment[SEG_TR].selector != before.segment[SEG_TR].selector ||
			    memcmp(&f->vcpu.state.segment[SEG_TR], &before.segment[SEG_TR], sizeof(struct segment)) ||
			    f->vcpu.state.cr0 != before.cr0;
			if (!(may_switch_task(operation) && switched) &&
			    memcmp(&before, &f->vcpu.state, sizeof(before)))
				fail_msg("round %u: operation %u raised %d and changed the state", round, operation,
				         raised);
		} else {
			fine++;
			seen[operation]++;
		}
		assert_int_equal(f->vcpu.mmu.view == MMU_USER, cpu_cpl(&f->vcpu.state) == 3);
		if (round % 4 == 0)
			assert_possible(f, operation);
	}
	assert_true(fine > ROUNDS / 20);
	for (unsigned i = 0; i < OPERATIONS; i++)
		assert_true(seen[i] > 0);
}

static void test_deliveries(void **state)
{
	struct fixture *f = *state;
	unsigned shutdowns = 0, delivered = 0;
	for (unsigned round = 0; round < ROUNDS; round++) {
		if (round % 16 == 0)
			random_memory(f);
		random_state(f);
		unsigned vector = (unsigned)pick(pick(2) ? 20 : 256);
		if (vector < 20 && pick(2)) {
			f->vcpu.exception = (struct exception){.vector = (uint8_t)vector,
			                                       .has_error = pick(2),
			                                       .error = (uint32_t)next(),
			                                       .address = next()};
			exception_deliver(&f->vcpu);
		} else
			interrupt_deliver(&f->vcpu, vector, vector == 2);
		if (f->vcpu.state.activity == ACTIVITY_SHUTDOWN)
			shutdowns++;
		else
			delivered++;
		assert_int_equal(f->vcpu.mmu.view == MMU_USER, cpu_cpl(&f->vcpu.state) == 3);
		if (round % 4 == 0)
			assert_possible(f, 100 + vector);
	}
	assert_true(shutdowns > 0 && delivered > 0);
	print_message("%u delivered, %u shut down\n", delivered, shutdowns);
}

static int setup(void **state)
{
	const char *text = getenv("RING3_SEED");
	seed = text ? strtoull(text, NULL, 0) : 0x2545f4914f6cdd1d;
	print_message("seed %#llx\n", (unsigned long long)seed);
	*state = fixture_create(true);
	return 0;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, fixture_destroy)
	const struct CMUnitTest tests[] = {
	    T(test_operations),
	    T(test_deliveries),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
