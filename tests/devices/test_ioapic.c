#include "device_test.h"

#include "devices/ioapic.h"
#include "devices/lapic.h"

#define BASE 0xfec00000

/* What was sent, and whether the local APICs take it. */
struct sent {
	unsigned count;
	uint32_t destination;
	bool logical, level;
	unsigned delivery, vector;
	bool refuse;
};

static unsigned deliver(void *owner, uint32_t destination, bool logical, unsigned delivery, unsigned vector, bool level)
{
	struct rig *rig = owner;
	struct sent *sent = rig->extra;

	sent->count++;
	sent->destination = destination;
	sent->logical = logical;
	sent->delivery = delivery;
	sent->vector = vector;
	sent->level = level;
	rig_log(rig, destination << 24 | logical << 20 | delivery << 16 | vector << 1 | level);
	return !sent->refuse;
}

static int make(struct rig *rig)
{
	struct ioapic *ioapic = rig->chip;
	int error = ioapic_init(ioapic, &rig->bus, BASE, NULL);

	rig->extra = calloc(1, sizeof(struct sent));
	assert_non_null(rig->extra);
	ioapic->deliver = deliver;
	ioapic->deliver_owner = rig;
	return error;
}

static void unmake(struct rig *rig)
{
	free(rig->extra);
}

static void stimulate(struct rig *rig, struct random *random)
{
	switch (random_below(random, 4)) {
	case 0:
		ioapic_eoi(rig->chip, random_below(random, 256));
		break;
	case 1: /* a whole entry */
		bus_mmio_write(&rig->bus, BASE, 4, 0x10 + random_below(random, 48));
		bus_mmio_write(&rig->bus, BASE + 0x10, 4, random_next(random) & ~0x10000ull);
		break;
	default:
		ioapic_set_irq(rig->chip, random_below(random, 30), random_below(random, 2));
	}
}

static void check(struct rig *rig)
{
	struct ioapic *ioapic = rig->chip;

	assert_int_equal(ioapic->lines >> IOAPIC_PINS, 0);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t rte = ioapic->redirection[pin];

		/* Remote IRR only for levels; an asserted, unmasked level is in service. */
		assert_false(rte >> 14 & 1 && !(rte >> 15 & 1));
		assert_int_equal(rte & 0x00fffffffffe5000, rte & 0x4000);
		if (!(rte >> 16 & 1) && rte >> 15 & 1 && (rte >> 8 & 7) <= 1 && ioapic->lines >> pin & 1)
			assert_true(rte >> 14 & 1);
	}
}

static const struct device_kind kind = {
    .name = "ioapic",
    .size = sizeof(struct ioapic),
    .make = make,
    .unmake = unmake,
    .state = (void (*)(void *, struct state *))ioapic_state,
    .reset = (void (*)(void *))ioapic_reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{BASE, 0x50, true}, {BASE, 0x1000, true}, {BASE + 0x10, 4, true}},
};

/* After loading garbage a level may stand unsent; everything else must hold. */
static void check_damaged(struct rig *rig)
{
	assert_int_equal(((struct ioapic *)rig->chip)->lines >> IOAPIC_PINS, 0);
}

static void test_hammer(void **context)
{
	device_hammer(&kind, 100000);
}

static void test_twin(void **context)
{
	device_twin(&kind, 200);
}

static void test_corrupt(void **context)
{
	struct device_kind damaged = kind;

	damaged.check = check_damaged;
	device_corrupt(&damaged, 500);
}

static uint32_t get(struct rig *rig, unsigned index)
{
	bus_mmio_write(&rig->bus, BASE, 4, index);
	return bus_mmio_read(&rig->bus, BASE + 0x10, 4);
}

static void set(struct rig *rig, unsigned index, uint32_t value)
{
	bus_mmio_write(&rig->bus, BASE, 4, index);
	bus_mmio_write(&rig->bus, BASE + 0x10, 4, value);
}

static void set_entry(struct rig *rig, unsigned pin, uint64_t value)
{
	set(rig, 0x11 + 2 * pin, value >> 32);
	set(rig, 0x10 + 2 * pin, value);
}

static void test_registers(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	assert_int_equal(get(&rig, 1), 0x00170020);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		assert_int_equal(get(&rig, 0x10 + 2 * pin), 0x10000);
		assert_int_equal(get(&rig, 0x11 + 2 * pin), 0);
	}
	set(&rig, 0, 0xffffffff);
	assert_int_equal(get(&rig, 0), 0x0f000000);
	assert_int_equal(get(&rig, 2), 0x0f000000);
	set_entry(&rig, 23, UINT64_MAX);
	assert_int_equal(get(&rig, 0x3e), 0x1afff); /* status and remote IRR are read-only */
	assert_int_equal(get(&rig, 0x3f), 0xff000000);
	set(&rig, 0x40, 0xffffffff);
	assert_int_equal(get(&rig, 0x40), 0);
	assert_int_equal(get(&rig, 0xff), 0);
	assert_int_equal(bus_mmio_read(&rig.bus, BASE + 0x20, 4), 0);
	/* IOREGSEL takes bytes; the window does not. */
	bus_mmio_write(&rig.bus, BASE, 1, 0x10);
	bus_mmio_write(&rig.bus, BASE + 0x10, 1, 0x55);
	assert_int_equal(bus_mmio_read(&rig.bus, BASE + 0x10, 4), 0x10000);
	rig_unmake(&rig, &kind);
}

static void test_edge(void **context)
{
	struct rig rig;
	struct sent *sent;

	rig_make(&rig, &kind);
	sent = rig.extra;
	ioapic_set_irq(rig.chip, 4, true); /* masked: lost */
	set_entry(&rig, 4, 0x0300000000000831);
	assert_int_equal(sent->count, 0);
	ioapic_set_irq(rig.chip, 4, true);
	assert_int_equal(sent->count, 0);
	ioapic_set_irq(rig.chip, 4, false);
	ioapic_set_irq(rig.chip, 4, true);
	assert_int_equal(sent->count, 1);
	assert_int_equal(sent->destination, 3);
	assert_true(sent->logical);
	assert_int_equal(sent->vector, 0x31);
	assert_int_equal(sent->delivery, DELIVERY_FIXED);
	assert_false(sent->level);
	assert_int_equal(get(&rig, 0x18), 0x831);
	ioapic_eoi(rig.chip, 0x31);
	assert_int_equal(sent->count, 1);
	/* NMI is an edge, whatever the trigger bit says. */
	set_entry(&rig, 5, 0x8400);
	ioapic_set_irq(rig.chip, 5, true);
	assert_int_equal(sent->count, 2);
	assert_int_equal(sent->delivery, DELIVERY_NMI);
	assert_false(sent->level);
	assert_int_equal(get(&rig, 0x1a) & 0x4000, 0);
	ioapic_set_irq(rig.chip, 24, true); /* no such pin */
	ioapic_set_irq(rig.chip, 1000, true);
	assert_int_equal(sent->count, 2);
	rig_unmake(&rig, &kind);
}

static void test_level(void **context)
{
	struct rig rig;
	struct sent *sent;

	rig_make(&rig, &kind);
	sent = rig.extra;
	ioapic_set_irq(rig.chip, 10, true);
	set_entry(&rig, 10, 0xa941);      /* level, low, lowest priority, logical */
	assert_int_equal(sent->count, 1); /* unmasked while asserted */
	assert_true(sent->level);
	assert_int_equal(get(&rig, 0x24), 0xe941);
	ioapic_set_irq(rig.chip, 10, false);
	ioapic_set_irq(rig.chip, 10, true);
	assert_int_equal(sent->count, 1); /* in service */
	ioapic_eoi(rig.chip, 0x40);
	assert_int_equal(sent->count, 1);
	ioapic_eoi(rig.chip, 0x41);
	assert_int_equal(sent->count, 2); /* still asserted */
	ioapic_set_irq(rig.chip, 10, false);
	bus_mmio_write(&rig.bus, BASE + 0x40, 4, 0x41); /* directed EOI */
	assert_int_equal(sent->count, 2);
	assert_int_equal(get(&rig, 0x24), 0xa941);
	/* Nobody takes it: asked for again at the next change. */
	sent->refuse = true;
	ioapic_set_irq(rig.chip, 10, true);
	assert_int_equal(sent->count, 3);
	assert_int_equal(get(&rig, 0x24) & 0x4000, 0);
	sent->refuse = false;
	set(&rig, 0x25, 0x01000000);
	assert_int_equal(sent->count, 4);
	/* Older guests clear remote IRR by going through edge mode, masked. */
	set(&rig, 0x24, 0x12941);
	set(&rig, 0x24, 0x1a941);
	assert_int_equal(get(&rig, 0x24), 0x1a941);
	set(&rig, 0x24, 0xa941);
	assert_int_equal(sent->count, 5);
	/* Two pins with one vector: one EOI ends both. */
	set_entry(&rig, 11, 0xa941);
	ioapic_set_irq(rig.chip, 11, true);
	assert_int_equal(sent->count, 6);
	ioapic_eoi(rig.chip, 0x41);
	assert_int_equal(sent->count, 8);
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

static void test_reset_masks(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		set_entry(&rig, pin, 0x0100000000008030 + pin);
	ioapic_reset(rig.chip);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		assert_int_equal(get(&rig, 0x10 + 2 * pin), 0x10000);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_registers),   cmocka_unit_test(test_edge),   cmocka_unit_test(test_level),
	    cmocka_unit_test(test_reset_masks), cmocka_unit_test(test_hammer), cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),     cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
