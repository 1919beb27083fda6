/* The local APIC with a manual clock and processors that only remember how they were kicked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <pthread.h>

#include "devices/lapic.h"
#include "machine/state.h"
#include "machine/vcpu.h"
#include "x86/system.h"

#define CPUS 4

struct rig {
	struct clock *clock;
	struct lapic_group *group;
	struct vcpu *vcpu[CPUS];
	struct lapic *lapic[CPUS];
	_Atomic unsigned eois, eoi_vector;
};

/* The machine's own is in vcpu_loop.c, which this test does not link. */
void vcpu_kick(struct vcpu *vcpu, uint32_t attention)
{
	atomic_fetch_or(&vcpu->attention, attention);
}

static uint32_t kicked(struct rig *rig, unsigned cpu)
{
	return atomic_exchange(&rig->vcpu[cpu]->attention, 0);
}

static void eoi(void *owner, unsigned vector)
{
	struct rig *rig = owner;

	rig->eois++;
	rig->eoi_vector = vector;
}

static void rig_create(struct rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	rig->clock = clock_create_manual();
	clock_advance(rig->clock, 1000000);
	rig->group = lapic_group_create(CPUS, rig->clock);
	lapic_group_set_eoi_handler(rig->group, eoi, rig);
	for (unsigned i = 0; i < CPUS; i++) {
		rig->vcpu[i] = aligned_alloc(64, (sizeof(struct vcpu) + 63) / 64 * 64);
		memset(rig->vcpu[i], 0, sizeof(struct vcpu));
		rig->vcpu[i]->index = i;
		rig->lapic[i] = lapic_group_attach(rig->group, i, rig->vcpu[i]);
	}
}

static void rig_destroy(struct rig *rig)
{
	lapic_group_destroy(rig->group);
	clock_destroy(rig->clock);
	for (unsigned i = 0; i < CPUS; i++)
		free(rig->vcpu[i]);
}

static uint32_t rd(struct rig *rig, unsigned cpu, uint32_t offset)
{
	return lapic_mmio_read(rig->lapic[cpu], offset);
}

static void wr(struct rig *rig, unsigned cpu, uint32_t offset, uint32_t value)
{
	lapic_mmio_write(rig->lapic[cpu], offset, value);
}

static void enable_all(struct rig *rig)
{
	for (unsigned i = 0; i < CPUS; i++) {
		wr(rig, i, 0xf0, 0x1ff);
		wr(rig, i, 0xd0, 0x01000000u << i);
		kicked(rig, i);
	}
}

static uint64_t rdmsr(struct rig *rig, unsigned cpu, uint32_t index)
{
	uint64_t value = 0;

	assert_true(lapic_msr_read(rig->lapic[cpu], index, &value));
	return value;
}

static void wrmsr(struct rig *rig, unsigned cpu, uint32_t index, uint64_t value)
{
	assert_true(lapic_msr_write(rig->lapic[cpu], index, value));
}

static void test_reset_values(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	for (unsigned i = 0; i < CPUS; i++) {
		assert_int_equal(rd(&rig, i, 0x20), i << 24);
		assert_int_equal(rd(&rig, i, 0x30), 0x50014);
		assert_int_equal(rd(&rig, i, 0x80), 0);
		assert_int_equal(rd(&rig, i, 0xd0), 0);
		assert_int_equal(rd(&rig, i, 0xe0), 0xffffffff);
		assert_int_equal(rd(&rig, i, 0xf0), 0xff);
		for (uint32_t offset = 0x320; offset <= 0x370; offset += 16)
			assert_int_equal(rd(&rig, i, offset), 0x10000);
		for (uint32_t offset = 0x100; offset < 0x280; offset += 16)
			assert_int_equal(rd(&rig, i, offset), 0);
		assert_int_equal(lapic_base(rig.lapic[i]), i == 0 ? 0xfee00900 : 0xfee00800);
		assert_false(lapic_pending(rig.lapic[i]));
		assert_int_equal(lapic_acknowledge(rig.lapic[i]), -1);
		assert_false(lapic_accepts_extint(rig.lapic[i]));
	}
	uint64_t base;
	assert_true(lapic_mmio_enabled(rig.lapic[1], &base));
	assert_int_equal(base, 0xfee00000);
	/* Software-disabled: entries stay masked, fixed interrupts are refused, NMI and INIT come through. */
	wr(&rig, 0, 0x350, 0x700);
	assert_int_equal(rd(&rig, 0, 0x350), 0x10700);
	assert_int_equal(lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x40, false), 0);
	assert_int_equal(lapic_message(rig.group, 0, false, DELIVERY_NMI, 0, false), 1);
	assert_int_equal(kicked(&rig, 0), ATTENTION_NMI);
	wr(&rig, 0, 0xf0, 0x1ff);
	wr(&rig, 0, 0x350, 0x700);
	assert_true(lapic_accepts_extint(rig.lapic[0]));
	wr(&rig, 0, 0xf0, 0xff);
	assert_int_equal(rd(&rig, 0, 0x350), 0x10700);
	assert_false(lapic_accepts_extint(rig.lapic[0]));
	lapic_reset(rig.lapic[0], false);
	lapic_set_virtual_wire(rig.lapic[0]);
	assert_true(lapic_accepts_extint(rig.lapic[0]));
	lapic_set_virtual_wire(rig.lapic[1]);
	assert_false(lapic_accepts_extint(rig.lapic[1]));
	/* Undefined bytes read as 0, registers that are not there are an error. */
	assert_int_equal(rd(&rig, 1, 0x24), 0);
	assert_int_equal(rd(&rig, 1, 0x23), 1);
	rd(&rig, 0, 0x3f0);
	wr(&rig, 0, 0x280, 0);
	assert_int_equal(rd(&rig, 0, 0x280), 0x80);
	rig_destroy(&rig);
}

static void test_priorities(void **unused)
{
	struct rig rig;
	struct lapic *lapic;

	rig_create(&rig);
	enable_all(&rig);
	lapic = rig.lapic[0];
	assert_int_equal(lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x31, false), 1);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	/* Already told: no second kick. */
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x35, false);
	assert_int_equal(kicked(&rig, 0), 0);
	assert_int_equal(rd(&rig, 0, 0x210), 0x00220000);
	assert_int_equal(lapic_acknowledge(lapic), 0x35);
	assert_int_equal(rd(&rig, 0, 0x110), 0x00200000);
	assert_int_equal(rd(&rig, 0, 0x210), 0x00020000);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x30);
	/* Same class waits; a higher one nests. */
	assert_false(lapic_pending(lapic));
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x40, false);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	assert_int_equal(lapic_acknowledge(lapic), 0x40);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x40);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x30);
	assert_false(lapic_pending(lapic));
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	assert_int_equal(lapic_acknowledge(lapic), 0x31);
	wr(&rig, 0, 0xb0, 0);
	wr(&rig, 0, 0xb0, 0); /* nothing in service: no effect */
	assert_int_equal(rd(&rig, 0, 0xa0), 0);
	assert_int_equal(rig.eois, 0);

	/* TPR and CR8. */
	lapic_set_cr8(lapic, 5);
	assert_int_equal(rd(&rig, 0, 0x80), 0x50);
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x5f, false);
	assert_false(lapic_pending(lapic));
	assert_int_equal(lapic_acknowledge(lapic), -1);
	assert_int_equal(kicked(&rig, 0), 0);
	assert_int_equal(rd(&rig, 0, 0x90), 0x50); /* APR: the request's class */
	wr(&rig, 0, 0x80, 0x4c);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	assert_int_equal(lapic_cr8(lapic), 4);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x4c);
	assert_int_equal(lapic_acknowledge(lapic), 0x5f);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x50);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(rd(&rig, 0, 0xa0), 0x4c);
	rig_destroy(&rig);
}

static void test_level_and_lint(void **unused)
{
	struct rig rig;
	struct lapic *lapic;

	rig_create(&rig);
	enable_all(&rig);
	lapic = rig.lapic[0];
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x61, true);
	assert_int_equal(rd(&rig, 0, 0x1b0), 2);
	assert_int_equal(lapic_acknowledge(lapic), 0x61);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(rig.eois, 1);
	assert_int_equal(rig.eoi_vector, 0x61);
	/* The same vector as an edge: TMR is cleared, no EOI goes out. */
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x61, false);
	assert_int_equal(rd(&rig, 0, 0x1b0), 0);
	lapic_acknowledge(lapic);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(rig.eois, 1);

	/* LINT0, level-triggered: again after EOI for as long as it is held. */
	wr(&rig, 0, 0x350, 0x8070);
	lapic_set_lint(lapic, 0, true);
	assert_int_equal(rd(&rig, 0, 0x350), 0xc070);
	assert_int_equal(lapic_acknowledge(lapic), 0x70);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(lapic_acknowledge(lapic), 0x70);
	lapic_set_lint(lapic, 0, false);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(lapic_acknowledge(lapic), -1);
	assert_int_equal(rd(&rig, 0, 0x350), 0x8070);
	/* Held while masked: taken at unmasking. */
	wr(&rig, 0, 0x350, 0x18070);
	lapic_set_lint(lapic, 0, true);
	assert_int_equal(lapic_acknowledge(lapic), -1);
	wr(&rig, 0, 0x350, 0x8070);
	assert_int_equal(lapic_acknowledge(lapic), 0x70);
	lapic_set_lint(lapic, 0, false);
	wr(&rig, 0, 0xb0, 0);

	/* LINT1 as NMI: an edge. */
	kicked(&rig, 0);
	wr(&rig, 0, 0x360, 0x400);
	lapic_set_lint(lapic, 1, true);
	lapic_set_lint(lapic, 1, true);
	assert_int_equal(kicked(&rig, 0), ATTENTION_NMI);
	lapic_set_lint(lapic, 1, true);
	assert_int_equal(kicked(&rig, 0), 0);
	lapic_set_lint(lapic, 1, false);
	lapic_set_lint(lapic, 2, true); /* there is no such pin */
	/* ExtINT: when it is let through and the 8259 already asks, the vCPU must look. */
	atomic_store(&rig.vcpu[0]->extint_line, true);
	wr(&rig, 0, 0x350, 0x10700);
	assert_int_equal(kicked(&rig, 0), 0);
	wr(&rig, 0, 0x350, 0x700);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	assert_true(lapic_accepts_extint(lapic));
	/* ExtINT by message (8259 behind the I/O APIC). */
	assert_false(lapic_accepts_extint(rig.lapic[1]));
	lapic_message(rig.group, 1, false, DELIVERY_EXTINT, 0, false);
	assert_int_equal(kicked(&rig, 1), ATTENTION_INTERRUPT);
	assert_true(lapic_accepts_extint(rig.lapic[1]));
	rig_destroy(&rig);
}

static void test_eoi_suppression(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	lapic_group_offer_eoi_suppression(rig.group, true);
	enable_all(&rig);
	assert_int_equal(rd(&rig, 0, 0x30), 0x01050014);
	wr(&rig, 0, 0xf0, 0x11ff);
	assert_int_equal(rd(&rig, 0, 0xf0), 0x11ff);
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 0x61, true);
	lapic_acknowledge(rig.lapic[0]);
	wr(&rig, 0, 0xb0, 0);
	assert_int_equal(rig.eois, 0);
	lapic_group_offer_eoi_suppression(rig.group, false);
	wr(&rig, 0, 0xf0, 0x11ff);
	assert_int_equal(rd(&rig, 0, 0xf0), 0x1ff);
	rig_destroy(&rig);
}

/* Which CPUs have something pending, as a bit mask; it is taken and ended there. */
static unsigned drain(struct rig *rig, int *vector)
{
	unsigned who = 0;

	for (unsigned i = 0; i < CPUS; i++) {
		int taken = lapic_acknowledge(rig->lapic[i]);
		if (taken >= 0) {
			who |= 1u << i;
			*vector = taken;
			if (lapic_base(rig->lapic[i]) & 0x400)
				wrmsr(rig, i, 0x80b, 0);
			else
				wr(rig, i, 0xb0, 0);
		}
		kicked(rig, i);
	}
	return who;
}

static unsigned ipi(struct rig *rig, unsigned from, uint32_t destination, uint32_t low)
{
	int vector = -1;

	wr(rig, from, 0x310, destination << 24);
	wr(rig, from, 0x300, low);
	assert_int_equal(rd(rig, from, 0x300), low & 0xccfff & ~0x1000);
	unsigned who = drain(rig, &vector);
	if (who)
		assert_int_equal(vector, low & 0xff);
	return who;
}

static void test_destinations(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	enable_all(&rig);
	assert_int_equal(ipi(&rig, 0, 2, 0x4041), 4);     /* physical */
	assert_int_equal(ipi(&rig, 0, 9, 0x4041), 0);     /* nobody */
	assert_int_equal(ipi(&rig, 0, 0xff, 0x4041), 15); /* broadcast */
	assert_int_equal(ipi(&rig, 1, 0, 0x44041), 2);    /* self */
	assert_int_equal(ipi(&rig, 1, 0, 0x84041), 15);   /* all */
	assert_int_equal(ipi(&rig, 1, 0, 0xc4041), 13);   /* all but self */
	assert_int_equal(ipi(&rig, 0, 0x0a, 0x4841), 10); /* logical, flat */
	assert_int_equal(ipi(&rig, 0, 0xff, 0x4841), 15);
	wr(&rig, 3, 0xf0, 0xff);
	assert_int_equal(ipi(&rig, 0, 0xff, 0x4041), 7); /* software-disabled ones do not take it */
	wr(&rig, 3, 0xf0, 0x1ff);
	/* A changed ID. */
	wr(&rig, 3, 0x20, 0x77000000);
	assert_int_equal(ipi(&rig, 0, 3, 0x4041), 0);
	assert_int_equal(ipi(&rig, 0, 0x77, 0x4041), 8);
	/* Cluster model: two clusters of two. */
	for (unsigned i = 0; i < CPUS; i++) {
		wr(&rig, i, 0xe0, 0);
		assert_int_equal(rd(&rig, i, 0xe0), 0x0fffffff);
		wr(&rig, i, 0xd0, (i / 2) << 28 | (1u << (i % 2)) << 24);
	}
	assert_int_equal(ipi(&rig, 0, 0x11, 0x4841), 4);
	assert_int_equal(ipi(&rig, 0, 0x13, 0x4841), 12);
	assert_int_equal(ipi(&rig, 0, 0x02, 0x4841), 2);
	assert_int_equal(ipi(&rig, 0, 0xff, 0x4841), 15);
	rig_destroy(&rig);
}

static void test_errors(void **unused)
{
	struct rig rig;
	int vector = -1;

	rig_create(&rig);
	enable_all(&rig);
	wr(&rig, 0, 0x370, 0xfe);
	wr(&rig, 0, 0x300, 0x4008); /* send illegal vector */
	assert_int_equal(drain(&rig, &vector), 1);
	assert_int_equal(vector, 0xfe);
	assert_int_equal(rd(&rig, 0, 0x280), 0);
	wr(&rig, 0, 0x280, 0);
	assert_int_equal(rd(&rig, 0, 0x280), 0x20);
	lapic_message(rig.group, 0, false, DELIVERY_FIXED, 3, false);
	wr(&rig, 0, 0x280, 0);
	assert_int_equal(rd(&rig, 0, 0x280), 0x40);
	wr(&rig, 0, 0x280, 0);
	assert_int_equal(rd(&rig, 0, 0x280), 0);
	/* An error interrupt with an illegal vector of its own does not run in circles. */
	wr(&rig, 0, 0x370, 0x02);
	wr(&rig, 0, 0x300, 0x4008);
	wr(&rig, 0, 0x280, 0);
	assert_int_equal(rd(&rig, 0, 0x280), 0x60);
	rig_destroy(&rig);
}

static void test_lowest_priority(void **unused)
{
	struct rig rig;
	unsigned count[CPUS] = {0};
	int vector;

	rig_create(&rig);
	enable_all(&rig);
	wr(&rig, 2, 0x80, 0x20);
	for (unsigned i = 0; i < 300; i++) {
		assert_int_equal(lapic_message(rig.group, 0x0f, true, DELIVERY_LOWEST, 0x90, false), 1);
		unsigned who = drain(&rig, &vector);
		assert_true(who && !(who & (who - 1)));
		count[__builtin_ctz(who)]++;
	}
	assert_int_equal(count[2], 0);
	assert_int_equal(count[0], 100);
	assert_int_equal(count[1], 100);
	assert_int_equal(count[3], 100);
	assert_int_equal(lapic_message(rig.group, 0x20, true, DELIVERY_LOWEST, 0x90, false), 0);
	for (unsigned i = 0; i < CPUS; i++)
		wr(&rig, i, 0xf0, 0xff);
	assert_int_equal(lapic_message(rig.group, 0x0f, true, DELIVERY_LOWEST, 0x90, false), 0);
	rig_destroy(&rig);
}

static void test_init_sipi_nmi(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	enable_all(&rig);
	wr(&rig, 0, 0x310, 1u << 24);
	wr(&rig, 0, 0x300, 0xc500); /* INIT, level assert */
	assert_int_equal(kicked(&rig, 1), ATTENTION_INIT);
	wr(&rig, 0, 0x300, 0x8500); /* level de-assert: ignored */
	assert_int_equal(kicked(&rig, 1), 0);
	wr(&rig, 0, 0x300, 0x4608);
	assert_int_equal(kicked(&rig, 1), ATTENTION_SIPI);
	assert_int_equal(rig.vcpu[1]->state.sipi_vector, 8);
	/* A SIPI that nobody has looked at is taken back by INIT. */
	wr(&rig, 0, 0x300, 0x4609);
	wr(&rig, 0, 0x300, 0xc500);
	assert_int_equal(kicked(&rig, 1), ATTENTION_INIT);
	wr(&rig, 0, 0x300, 0xc500);
	wr(&rig, 0, 0x300, 0x4609);
	assert_int_equal(kicked(&rig, 1), ATTENTION_INIT | ATTENTION_SIPI);
	/* All but self. */
	wr(&rig, 0, 0x300, 0xcc500);
	assert_int_equal(kicked(&rig, 0), 0);
	for (unsigned i = 1; i < CPUS; i++)
		assert_int_equal(kicked(&rig, i), ATTENTION_INIT);
	wr(&rig, 0, 0x300, 0xc4400);
	assert_int_equal(kicked(&rig, 0), 0);
	for (unsigned i = 1; i < CPUS; i++)
		assert_int_equal(kicked(&rig, i), ATTENTION_NMI);
	/* INIT's reset keeps ID and base, drops the rest. */
	wr(&rig, 1, 0x20, 0x55000000);
	lapic_message(rig.group, 0x55, false, DELIVERY_FIXED, 0x80, false);
	lapic_reset(rig.lapic[1], true);
	assert_int_equal(rd(&rig, 1, 0x20), 0x55000000);
	assert_false(lapic_pending(rig.lapic[1]));
	assert_int_equal(rd(&rig, 1, 0xf0), 0xff);
	lapic_reset(rig.lapic[1], false);
	assert_int_equal(rd(&rig, 1, 0x20), 0x01000000);
	rig_destroy(&rig);
}

static void test_msi(void **unused)
{
	struct rig rig;
	int vector;

	rig_create(&rig);
	enable_all(&rig);
	lapic_msi(rig.group, 0xfee02000, 0x45);
	assert_int_equal(drain(&rig, &vector), 4);
	assert_int_equal(vector, 0x45);
	lapic_msi(rig.group, 0xfee0a004, 0x46);
	assert_int_equal(drain(&rig, &vector), 10);
	lapic_msi(rig.group, 0xfee0a00c, 0x46); /* redirection hint */
	unsigned who = drain(&rig, &vector);
	assert_true(who == 2 || who == 8);
	lapic_msi(rig.group, 0xfee01000, 0x8045); /* level, not asserted */
	assert_int_equal(drain(&rig, &vector), 0);
	lapic_msi(rig.group, 0xfee01000, 0xc045);
	assert_int_equal(drain(&rig, &vector), 2);
	assert_int_equal(rig.eois, 1);
	lapic_msi(rig.group, 0xfee03000, 0x400);
	assert_int_equal(kicked(&rig, 3), ATTENTION_NMI);
	rig_destroy(&rig);
}

static unsigned taken(struct rig *rig, unsigned cpu)
{
	int vector = lapic_acknowledge(rig->lapic[cpu]);

	if (vector < 0)
		return 0;
	wr(rig, cpu, 0xb0, 0);
	return (unsigned)vector;
}

static void test_timer_count(void **unused)
{
	struct rig rig;
	static const uint32_t codes[8] = {0xb, 0, 1, 2, 3, 8, 9, 0xa};

	rig_create(&rig);
	enable_all(&rig);
	/* Every divisor, one-shot, the exact count on the way and the exact end. */
	for (unsigned shift = 0; shift < 8; shift++) {
		uint64_t step = 1ull << shift;
		wr(&rig, 0, 0x3e0, codes[shift]);
		assert_int_equal(rd(&rig, 0, 0x3e0), codes[shift]);
		wr(&rig, 0, 0x320, 0x41);
		wr(&rig, 0, 0x380, 1000);
		assert_int_equal(rd(&rig, 0, 0x390), 1000);
		clock_advance(rig.clock, step * 400 + step - 1);
		assert_int_equal(rd(&rig, 0, 0x390), 600);
		clock_advance(rig.clock, 1);
		assert_int_equal(rd(&rig, 0, 0x390), 599);
		clock_advance(rig.clock, step * 599 - 1);
		assert_int_equal(taken(&rig, 0), 0);
		assert_int_equal(rd(&rig, 0, 0x390), 1);
		clock_advance(rig.clock, 1);
		assert_int_equal(rd(&rig, 0, 0x390), 0);
		assert_int_equal(taken(&rig, 0), 0x41);
		clock_advance(rig.clock, step * 5000);
		assert_int_equal(taken(&rig, 0), 0);
		assert_int_equal(rd(&rig, 0, 0x380), 1000);
	}
	/* Stopped by 0. */
	wr(&rig, 0, 0x380, 1000);
	wr(&rig, 0, 0x380, 0);
	clock_advance(rig.clock, 1000000);
	assert_int_equal(taken(&rig, 0), 0);
	/* The divisor changes on the way: half at 2, the other half at 16. */
	wr(&rig, 0, 0x3e0, 0);
	wr(&rig, 0, 0x380, 1000);
	clock_advance(rig.clock, 1000);
	wr(&rig, 0, 0x3e0, 3);
	assert_int_equal(rd(&rig, 0, 0x390), 500);
	clock_advance(rig.clock, 7999);
	assert_int_equal(taken(&rig, 0), 0);
	clock_advance(rig.clock, 1);
	assert_int_equal(taken(&rig, 0), 0x41);
	/* It ends while masked: no interrupt is owed at unmasking. */
	wr(&rig, 0, 0x3e0, 0xb);
	wr(&rig, 0, 0x320, 0x10041);
	wr(&rig, 0, 0x380, 1000);
	clock_advance(rig.clock, 500);
	assert_int_equal(rd(&rig, 0, 0x390), 500);
	clock_advance(rig.clock, 600);
	assert_int_equal(rd(&rig, 0, 0x390), 0);
	wr(&rig, 0, 0x320, 0x41);
	clock_advance(rig.clock, 1000);
	assert_int_equal(taken(&rig, 0), 0);
	rig_destroy(&rig);
}

static void test_timer_periodic(void **unused)
{
	struct rig rig;

	rig_create(&rig);
	enable_all(&rig);
	wr(&rig, 0, 0x3e0, 0xb);
	wr(&rig, 0, 0x320, 0x20041);
	wr(&rig, 0, 0x380, 100000);
	for (unsigned i = 0; i < 50; i++) {
		clock_advance(rig.clock, 99999);
		assert_int_equal(taken(&rig, 0), 0);
		assert_int_equal(rd(&rig, 0, 0x390), 1);
		clock_advance(rig.clock, 1);
		assert_int_equal(taken(&rig, 0), 0x41);
		assert_int_equal(rd(&rig, 0, 0x390), 100000);
	}
	/* Masked it runs on; unmasked the phase is as it was. */
	clock_advance(rig.clock, 30000);
	wr(&rig, 0, 0x320, 0x30041);
	clock_advance(rig.clock, 1000000);
	assert_int_equal(taken(&rig, 0), 0);
	assert_int_equal(rd(&rig, 0, 0x390), 70000);
	wr(&rig, 0, 0x320, 0x20041);
	clock_advance(rig.clock, 69999);
	assert_int_equal(taken(&rig, 0), 0);
	clock_advance(rig.clock, 1);
	assert_int_equal(taken(&rig, 0), 0x41);
	/* To one-shot on the way: the count goes on, and it ends there. */
	clock_advance(rig.clock, 40000);
	wr(&rig, 0, 0x320, 0x41);
	assert_int_equal(rd(&rig, 0, 0x390), 60000);
	clock_advance(rig.clock, 60000);
	assert_int_equal(taken(&rig, 0), 0x41);
	clock_advance(rig.clock, 1000000);
	assert_int_equal(taken(&rig, 0), 0);
	/* From one-shot to periodic on the way. */
	wr(&rig, 0, 0x380, 100000);
	clock_advance(rig.clock, 40000);
	wr(&rig, 0, 0x320, 0x20041);
	clock_advance(rig.clock, 59999);
	assert_int_equal(taken(&rig, 0), 0);
	clock_advance(rig.clock, 1);
	assert_int_equal(taken(&rig, 0), 0x41);
	clock_advance(rig.clock, 100000);
	assert_int_equal(taken(&rig, 0), 0x41);
	/* A period of one nanosecond costs the host no more than 50,000 calls a second. */
	wr(&rig, 0, 0x380, 1);
	unsigned count = 0;
	for (unsigned i = 0; i < 1000; i++) {
		clock_advance(rig.clock, 1000);
		count += taken(&rig, 0) != 0;
	}
	assert_in_range(count, 45, 51);
	rig_destroy(&rig);
}

static void test_tsc_deadline(void **unused)
{
	struct rig rig;
	struct lapic *lapic;

	rig_create(&rig);
	enable_all(&rig);
	lapic = rig.lapic[0];
	rig.vcpu[0]->state.tsc_offset = 5000000;
	lapic_set_tsc_deadline(lapic, 7000000); /* not in that mode: ignored */
	assert_int_equal(lapic_tsc_deadline(lapic), 0);
	wr(&rig, 0, 0x380, 100000);
	wr(&rig, 0, 0x320, 0x40041);
	assert_int_equal(rd(&rig, 0, 0x380), 0); /* the change of mode disarms */
	wr(&rig, 0, 0x380, 1000);
	assert_int_equal(rd(&rig, 0, 0x380), 0);
	lapic_set_tsc_deadline(lapic, 7000000); /* TSC is 6,000,000 */
	assert_int_equal(lapic_tsc_deadline(lapic), 7000000);
	clock_advance(rig.clock, 999999);
	assert_int_equal(taken(&rig, 0), 0);
	clock_advance(rig.clock, 1);
	assert_int_equal(lapic_tsc_deadline(lapic), 0);
	clock_advance(rig.clock, 1); /* host timers round up */
	assert_int_equal(taken(&rig, 0), 0x41);
	clock_advance(rig.clock, 1000000);
	assert_int_equal(taken(&rig, 0), 0);
	/* In the past: at once. 0: never. */
	kicked(&rig, 0);
	lapic_set_tsc_deadline(lapic, 1);
	assert_int_equal(kicked(&rig, 0), ATTENTION_INTERRUPT);
	assert_int_equal(taken(&rig, 0), 0x41);
	lapic_set_tsc_deadline(lapic, 9000000);
	lapic_set_tsc_deadline(lapic, 0);
	clock_advance(rig.clock, 10000000);
	assert_int_equal(taken(&rig, 0), 0);
	/* The TSC is written: the deadline is in the TSC's terms. */
	uint64_t tsc = clock_tsc(rig.clock) + 5000000;
	lapic_set_tsc_deadline(lapic, tsc + 1000);
	rig.vcpu[0]->state.tsc_offset -= 500;
	lapic_tsc_changed(lapic);
	clock_advance(rig.clock, 1001);
	assert_int_equal(taken(&rig, 0), 0);
	clock_advance(rig.clock, 500);
	assert_int_equal(taken(&rig, 0), 0x41);
	lapic_set_tsc_deadline(lapic, UINT64_MAX);
	clock_advance(rig.clock, 1000);
	assert_int_equal(taken(&rig, 0), 0);
	assert_true(lapic_tsc_deadline(lapic) == UINT64_MAX);
	/* Masked over the deadline: lost. Leaving the mode: disarmed. */
	lapic_set_tsc_deadline(lapic, clock_tsc(rig.clock) + 5000000);
	wr(&rig, 0, 0x320, 0x50041);
	clock_advance(rig.clock, 10000000);
	wr(&rig, 0, 0x320, 0x40041);
	clock_advance(rig.clock, 10);
	assert_int_equal(taken(&rig, 0), 0);
	lapic_set_tsc_deadline(lapic, clock_tsc(rig.clock) + 5000000);
	wr(&rig, 0, 0x320, 0x41);
	wr(&rig, 0, 0x320, 0x40041);
	clock_advance(rig.clock, 10000000);
	assert_int_equal(taken(&rig, 0), 0);
	rig_destroy(&rig);
}

static void test_base_transitions(void **unused)
{
	struct rig rig;
	struct lapic *lapic;
	uint64_t base, value;

	rig_create(&rig);
	enable_all(&rig);
	lapic = rig.lapic[1];
	assert_false(lapic_msr_read(lapic, 0x802, &value));
	assert_false(lapic_set_base(lapic, 0xfee00400)); /* EXTD without EN */
	assert_false(lapic_set_base(lapic, 0xfee00a00)); /* reserved bits */
	assert_false(lapic_set_base(lapic, 0xfee00801));
	assert_false(lapic_set_base(lapic, 1ull << 40 | 0x800)); /* beyond MAXPHYADDR */
	assert_true(lapic_set_base(lapic, 0xfed00800));          /* it moves */
	assert_true(lapic_mmio_enabled(lapic, &base));
	assert_int_equal(base, 0xfed00000);
	assert_int_equal(rig.vcpu[1]->state.msr.apic_base, 0xfed00800);
	wr(&rig, 1, 0x20, 0x99000000);
	wr(&rig, 1, 0x80, 0x30);
	assert_true(lapic_set_base(lapic, 0xfee00c00)); /* xAPIC -> x2APIC */
	assert_false(lapic_mmio_enabled(lapic, &base));
	assert_int_equal(rd(&rig, 1, 0x20), ~0u);
	assert_int_equal(rdmsr(&rig, 1, 0x802), 1); /* the initial ID again */
	assert_int_equal(rdmsr(&rig, 1, 0x808), 0x30);
	assert_int_equal(rdmsr(&rig, 1, 0x80d), 2);
	assert_false(lapic_set_base(lapic, 0xfee00800)); /* not back to xAPIC */
	lapic_reset(lapic, true);
	assert_int_equal(lapic_base(lapic), 0xfee00c00); /* INIT leaves x2APIC on */
	wrmsr(&rig, 1, 0x80f, 0x1ff);
	wrmsr(&rig, 1, 0x832, 0x20041);
	wrmsr(&rig, 1, 0x838, 100000);
	assert_true(lapic_set_base(lapic, 0xfee00000)); /* x2APIC -> disabled */
	assert_false(lapic_mmio_enabled(lapic, &base));
	assert_true(lapic_accepts_extint(lapic)); /* INTR is the CPU's own pin now */
	assert_int_equal(lapic_message(rig.group, 1, false, DELIVERY_NMI, 0, false), 0);
	assert_false(lapic_set_base(lapic, 0xfee00c00)); /* not straight to x2APIC */
	clock_advance(rig.clock, 1000000);
	assert_int_equal(lapic_acknowledge(lapic), -1);
	assert_true(lapic_set_base(lapic, 0xfee00800));
	assert_int_equal(rd(&rig, 1, 0xf0), 0xff);
	assert_int_equal(rd(&rig, 1, 0x20), 0x01000000);
	rig_destroy(&rig);
}

static void test_x2apic(void **unused)
{
	struct rig rig;
	int vector = -1;
	uint64_t value;

	rig_create(&rig);
	for (unsigned i = 0; i < CPUS; i++) {
		assert_true(lapic_set_base(rig.lapic[i], 0xfee00c00));
		wrmsr(&rig, i, 0x80f, 0x1ff);
	}
	wrmsr(&rig, 0, 0x830, 2ull << 32 | 0x4041);
	assert_int_equal(drain(&rig, &vector), 4);
	assert_int_equal(vector, 0x41);
	assert_int_equal(rdmsr(&rig, 0, 0x830), 2ull << 32 | 0x4041);
	wrmsr(&rig, 0, 0x830, 0xffffffffull << 32 | 0x4042);
	assert_int_equal(drain(&rig, &vector), 15);
	wrmsr(&rig, 0, 0x830, 0xffull << 32 | 0x4042); /* ID 255, not broadcast */
	assert_int_equal(drain(&rig, &vector), 0);
	wrmsr(&rig, 0, 0x830, 0x0000000aull << 32 | 0x4842); /* logical: cluster 0 */
	assert_int_equal(drain(&rig, &vector), 10);
	wrmsr(&rig, 0, 0x830, 0x0001000aull << 32 | 0x4842); /* cluster 1 */
	assert_int_equal(drain(&rig, &vector), 0);
	wrmsr(&rig, 0, 0x830, 0x0000000full << 32 | 0x4942); /* lowest priority */
	unsigned who = drain(&rig, &vector);
	assert_true(who && !(who & (who - 1)));
	wrmsr(&rig, 3, 0x83f, 0x43); /* self IPI */
	assert_int_equal(drain(&rig, &vector), 8);
	assert_int_equal(vector, 0x43);
	wrmsr(&rig, 3, 0x83f, 0x03);
	wrmsr(&rig, 3, 0x828, 0);
	assert_int_equal(rdmsr(&rig, 3, 0x828), 0x20);
	lapic_message(rig.group, 0xff, false, DELIVERY_FIXED, 0x44, false);
	assert_int_equal(drain(&rig, &vector), 15);

	/* #GP: reserved bits, read-only and write-only registers, those that x2APIC mode does not have. */
	static const struct {
		uint32_t index;
		uint64_t value;
	} refused[] = {
	    {0x802, 0}, {0x803, 0},       {0x808, 0x100},      {0x809, 0},       {0x80a, 0},       {0x80b, 1},
	    {0x80c, 0}, {0x80d, 0},       {0x80e, 0},          {0x80f, 0x10000}, {0x80f, 0x1000},  {0x810, 0},
	    {0x820, 0}, {0x828, 1},       {0x82f, 0},          {0x830, 0x10000}, {0x830, 0x2000},  {0x830, 0x100000},
	    {0x831, 0}, {0x832, 0x80000}, {0x832, 1ull << 32}, {0x832, 0x700},   {0x835, 0x20000}, {0x838, 1ull << 32},
	    {0x839, 0}, {0x83e, 4},       {0x83f, 0x100},      {0x840, 0},       {0x8ff, 0},       {0x800, 0},
	};
	for (unsigned i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		assert_false(lapic_msr_write(rig.lapic[0], refused[i].index, refused[i].value));
	static const uint32_t unreadable[] = {0x800, 0x801, 0x804, 0x807, 0x809, 0x80b, 0x80c,
	                                      0x80e, 0x82f, 0x831, 0x83a, 0x83f, 0x8ff};
	for (unsigned i = 0; i < sizeof(unreadable) / sizeof(unreadable[0]); i++)
		assert_false(lapic_msr_read(rig.lapic[0], unreadable[i], &value));
	assert_int_equal(rdmsr(&rig, 0, 0x803), 0x50014);
	rig_destroy(&rig);
}

static void save(struct rig *rig, struct state *state)
{
	clock_state(rig->clock, state);
	for (unsigned i = 0; i < CPUS; i++)
		lapic_state(rig->lapic[i], state);
}

static void test_state(void **unused)
{
	struct rig rig, other;
	size_t length;

	rig_create(&rig);
	rig_create(&other);
	enable_all(&rig);
	wr(&rig, 0, 0x3e0, 0xb);
	wr(&rig, 0, 0x320, 0x20041);
	wr(&rig, 0, 0x380, 100000);
	wr(&rig, 1, 0x320, 0x40051);
	rig.vcpu[1]->state.tsc_offset = 77;
	lapic_set_tsc_deadline(rig.lapic[1], clock_tsc(rig.clock) + 77 + 30000);
	lapic_message(rig.group, 2, false, DELIVERY_FIXED, 0x61, true);
	lapic_message(rig.group, 2, false, DELIVERY_FIXED, 0x71, false);
	lapic_acknowledge(rig.lapic[2]);
	lapic_set_cr8(rig.lapic[2], 2);
	lapic_set_base(rig.lapic[3], 0xfee00c00);
	clock_advance(rig.clock, 12345);
	struct state *saved = state_save_begin();
	save(&rig, saved);
	const void *data = state_save_data(saved, &length);
	assert_non_null(data);
	struct state *load = state_load_begin(data, length);
	save(&other, load);
	assert_null(state_error(load));
	state_free(load);
	/* Saved again it is the same. */
	struct state *again = state_save_begin();
	size_t length2;
	save(&other, again);
	const void *data2 = state_save_data(again, &length2);
	assert_int_equal(length, length2);
	assert_memory_equal(data, data2, length);
	/* And it runs on. */
	other.vcpu[1]->state.tsc_offset = 77;
	clock_advance(other.clock, 17655);
	assert_int_equal(lapic_acknowledge(other.lapic[1]), -1);
	clock_advance(other.clock, 1);
	assert_int_equal(lapic_acknowledge(other.lapic[1]), 0x51);
	clock_advance(other.clock, 100000 - 30001 - 1);
	assert_int_equal(taken(&other, 0), 0);
	clock_advance(other.clock, 1);
	assert_int_equal(taken(&other, 0), 0x41);
	assert_false(lapic_pending(other.lapic[2]));
	wr(&other, 2, 0xb0, 0);
	assert_int_equal(lapic_acknowledge(other.lapic[2]), 0x61);
	assert_true(lapic_base(other.lapic[3]) == 0xfee00c00);
	state_free(again);
	state_free(saved);
	rig_destroy(&rig);
	rig_destroy(&other);
}

/* What must hold whatever software does. */
static void check_invariants(struct rig *rig, unsigned cpu)
{
	struct lapic *lapic = rig->lapic[cpu];
	uint64_t base = lapic_base(lapic), mmio;

	assert_int_equal(lapic_mmio_enabled(lapic, &mmio), (base & 0xc00) == 0x800);
	if ((base & 0xc00) == 0x800) {
		assert_int_equal(rd(rig, cpu, 0x100) & 0xffff, 0);
		assert_int_equal(rd(rig, cpu, 0x200) & 0xffff, 0);
		uint32_t ppr = rd(rig, cpu, 0xa0);
		int irrv = 0, isrv = 0;
		for (unsigned i = 0; i < 8; i++) {
			if (rd(rig, cpu, 0x200 + 16 * i))
				irrv = (int)(32 * i) + 31 - __builtin_clz(rd(rig, cpu, 0x200 + 16 * i));
			if (rd(rig, cpu, 0x100 + 16 * i))
				isrv = (int)(32 * i) + 31 - __builtin_clz(rd(rig, cpu, 0x100 + 16 * i));
		}
		assert_true((ppr & 0xf0) >= ((unsigned)isrv & 0xf0));
		assert_true((ppr & 0xf0) >= (rd(rig, cpu, 0x80) & 0xf0));
		assert_int_equal(lapic_pending(lapic), (irrv & 0xf0) > (int)(ppr & 0xf0));
	}
}

static void hammer_one(struct rig *rig, unsigned *seed)
{
	unsigned cpu = (unsigned)rand_r(seed) % CPUS;
	uint32_t value = (uint32_t)rand_r(seed) ^ (uint32_t)rand_r(seed) << 16;
	uint64_t wide;

	if (rand_r(seed) % 3 == 0)
		value &= 0x700ff;
	switch (rand_r(seed) % 16) {
	case 0 ... 3:
		lapic_mmio_write(rig->lapic[cpu], (uint32_t)rand_r(seed) % 0x1100, value);
		break;
	case 4 ... 5:
		lapic_mmio_write(rig->lapic[cpu], ((uint32_t)rand_r(seed) % 0x40) * 16, value);
		break;
	case 6:
		lapic_mmio_read(rig->lapic[cpu], (uint32_t)rand_r(seed) % 0x1100);
		break;
	case 7:
		lapic_msr_write(rig->lapic[cpu], 0x7f0 + (uint32_t)rand_r(seed) % 0x120,
		                rand_r(seed) % 2 ? value & 0xff : value);
		break;
	case 8:
		lapic_msr_read(rig->lapic[cpu], 0x7f0 + (uint32_t)rand_r(seed) % 0x120, &wide);
		break;
	case 9:
		lapic_message(rig->group, value & 0xff, value & 0x100, (value >> 9) & 7, (value >> 12) & 0xff,
		              value >> 31);
		break;
	case 10:
		lapic_msi(rig->group, 0xfee00000 | (value & 0xfffff), (uint32_t)rand_r(seed));
		break;
	case 11:
		lapic_acknowledge(rig->lapic[cpu]);
		break;
	case 12:
		lapic_set_lint(rig->lapic[cpu], value & 3, value & 4);
		lapic_set_cr8(rig->lapic[cpu], value >> 8);
		break;
	case 13:
		if (value % 8 == 0)
			lapic_set_base(rig->lapic[cpu], 0xfee00000 | (value >> 8 & 0xfff));
		else if (value % 8 == 1)
			lapic_reset(rig->lapic[cpu], value & 0x100);
		else
			lapic_mmio_write(rig->lapic[cpu], 0xf0, 0x1ff);
		break;
	case 14:
		lapic_set_tsc_deadline(rig->lapic[cpu], value);
		lapic_tsc_deadline(rig->lapic[cpu]);
		break;
	case 15:
		lapic_mmio_write(rig->lapic[cpu], 0xb0, 0);
		break;
	}
}

static unsigned test_seed(unsigned usual)
{
	unsigned seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : usual;

	print_message("seed %u\n", seed);
	return seed;
}

static void test_hammer(void **unused)
{
	struct rig rig, other;
	unsigned seed = test_seed(4711);

	rig_create(&rig);
	rig_create(&other);
	for (unsigned round = 0; round < 300000; round++) {
		hammer_one(&rig, &seed);
		if (round % 8 == 0)
			clock_advance(rig.clock, (uint64_t)rand_r(&seed) % 3000);
		check_invariants(&rig, round % CPUS);
		if (round % 10000 == 0) {
			struct state *saved = state_save_begin();
			size_t length;
			save(&rig, saved);
			const void *data = state_save_data(saved, &length);
			struct state *load = state_load_begin(data, length);
			save(&other, load);
			assert_null(state_error(load));
			state_free(load);
			state_free(saved);
		}
	}
	rig_destroy(&rig);
	rig_destroy(&other);
}

struct hammer {
	struct rig *rig;
	unsigned seed;
};

static void *hammer_thread(void *owner)
{
	struct hammer *hammer = owner;

	for (unsigned i = 0; i < 40000; i++)
		hammer_one(hammer->rig, &hammer->seed);
	return NULL;
}

/* Four threads on all APICs while time runs: for TSan, and for deadlocks. */
static void test_threads(void **unused)
{
	struct rig rig;
	struct hammer hammer[4];
	pthread_t thread[4];
	unsigned seed = test_seed(99);

	rig_create(&rig);
	for (unsigned i = 0; i < 4; i++) {
		hammer[i] = (struct hammer){&rig, seed + i};
		pthread_create(&thread[i], NULL, hammer_thread, &hammer[i]);
	}
	for (unsigned i = 0; i < 2000; i++)
		clock_advance(rig.clock, 100000);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	for (unsigned i = 0; i < CPUS; i++)
		check_invariants(&rig, i);
	rig_destroy(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_reset_values),
	    cmocka_unit_test(test_priorities),
	    cmocka_unit_test(test_level_and_lint),
	    cmocka_unit_test(test_eoi_suppression),
	    cmocka_unit_test(test_destinations),
	    cmocka_unit_test(test_errors),
	    cmocka_unit_test(test_lowest_priority),
	    cmocka_unit_test(test_init_sipi_nmi),
	    cmocka_unit_test(test_msi),
	    cmocka_unit_test(test_timer_count),
	    cmocka_unit_test(test_timer_periodic),
	    cmocka_unit_test(test_tsc_deadline),
	    cmocka_unit_test(test_base_transitions),
	    cmocka_unit_test(test_x2apic),
	    cmocka_unit_test(test_state),
	    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
