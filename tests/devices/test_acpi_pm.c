#include "device_test.h"

#include "devices/acpi_pm.h"

#define BASE      0x600
#define SCI       9
#define POWER_OFF 1

static int make_with(struct rig *rig, bool timer_32bit, bool always_acpi)
{
	const struct acpi_pm_config config = {.base = BASE,
	                                      .timer_32bit = timer_32bit,
	                                      .always_acpi = always_acpi,
	                                      .sci = rig_wire(rig, SCI),
	                                      .power_off = rig_wire(rig, POWER_OFF)};

	return acpi_pm_init(rig->chip, &rig->bus, rig->clock, &config);
}

static int make(struct rig *rig)
{
	return make_with(rig, false, false);
}

static int make_fixed(struct rig *rig)
{
	return make_with(rig, true, true);
}

static void stimulate(struct rig *rig, struct random *random)
{
	switch (random_below(random, 3)) {
	case 0:
		acpi_pm_power_button(rig->chip);
		break;
	case 1:
		acpi_pm_sleep_button(rig->chip);
		break;
	default:
		acpi_pm_raise_gpe(rig->chip, random_below(random, 20));
	}
}

static void check(struct rig *rig)
{
	assert_int_equal(((struct acpi_pm *)rig->chip)->sci_level, rig->level[SCI]);
}

static const struct device_kind kind = {
    .name = "acpi-pm",
    .size = sizeof(struct acpi_pm),
    .make = make,
    .state = (void (*)(void *, struct state *))acpi_pm_state,
    .reset = (void (*)(void *))acpi_pm_reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{BASE, ACPI_PM_LENGTH}, {BASE, 0x10}, {0xb2, 2}},
    .step = 2000000000,
};

DEVICE_TESTS(kind)

static uint32_t get(struct rig *rig, unsigned offset, unsigned size)
{
	return bus_port_read(&rig->bus, BASE + offset, size);
}

static void set(struct rig *rig, unsigned offset, unsigned size, uint32_t value)
{
	bus_port_write(&rig->bus, BASE + offset, size, value);
}

static void test_enable(void **context)
{
	struct device_kind fixed = kind;
	struct rig rig;

	rig_make(&rig, &kind);
	assert_int_equal(get(&rig, 4, 2), 0);
	out8(&rig, 0xb2, ACPI_PM_ENABLE);
	assert_int_equal(get(&rig, 4, 2), 1);
	assert_int_equal(in8(&rig, 0xb2), ACPI_PM_ENABLE);
	out8(&rig, 0xb2, ACPI_PM_DISABLE);
	assert_int_equal(get(&rig, 4, 2), 0);
	rig_unmake(&rig, &kind);
	fixed.make = make_fixed;
	rig_make(&rig, &fixed);
	assert_int_equal(get(&rig, 4, 2), 1);
	set(&rig, 4, 2, 0);
	out8(&rig, 0xb2, ACPI_PM_DISABLE);
	assert_int_equal(get(&rig, 4, 2), 1);
	rig_unmake(&rig, &fixed);
}

static void test_power_button(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	acpi_pm_power_button(rig.chip);
	assert_false(rig.level[SCI]); /* no ACPI in the guest yet */
	set(&rig, 0, 2, 0xffff);
	assert_int_equal(get(&rig, 0, 2), 0);
	out8(&rig, 0xb2, ACPI_PM_ENABLE);
	set(&rig, 2, 2, 0x0120);
	acpi_pm_power_button(rig.chip);
	assert_true(rig.level[SCI]);
	assert_int_equal(get(&rig, 0, 4), 0x01200100); /* status and enable in one access */
	set(&rig, 0, 1, 0xff);
	assert_true(rig.level[SCI]);
	set(&rig, 1, 1, 0x01);
	assert_false(rig.level[SCI]);
	/* Enables, by bytes. */
	set(&rig, 2, 2, 0xffff);
	assert_int_equal(get(&rig, 2, 2), 0x0721);
	set(&rig, 3, 1, 0x00);
	assert_int_equal(get(&rig, 2, 2), 0x0021);
	set(&rig, 2, 1, 0x20);
	assert_int_equal(get(&rig, 2, 2), 0x0020);
	set(&rig, 0x22, 2, 0xffff);
	set(&rig, 0x23, 1, 0x00);
	assert_int_equal(get(&rig, 0x20, 4), 0x00ff0000);
	set(&rig, 0x22, 2, 0);
	acpi_pm_raise_gpe(rig.chip, 16);
	assert_int_equal(get(&rig, 0x20, 2), 0);
	/* A general-purpose event. */
	acpi_pm_raise_gpe(rig.chip, 3);
	assert_false(rig.level[SCI]);
	set(&rig, 0x22, 2, 0x0008);
	assert_true(rig.level[SCI]);
	set(&rig, 0x20, 2, 0x0008);
	assert_false(rig.level[SCI]);
	rig_unmake(&rig, &kind);
}

static void test_sleep(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	set(&rig, 4, 2, 1 << 10); /* types without SLP_EN */
	set(&rig, 4, 2, 0);
	assert_int_equal(rig.rises[POWER_OFF], 0);
	set(&rig, 4, 2, 1 << 10 | 0x2000); /* S3, which is not there: wakes at once */
	assert_int_equal(rig.rises[POWER_OFF], 0);
	assert_true(get(&rig, 0, 2) & 0x8000);
	assert_int_equal(get(&rig, 4, 2) & 0x2000, 0);
	set(&rig, 5, 1, 0x20); /* SLP_EN by byte: type 0 is S5 */
	assert_int_equal(rig.rises[POWER_OFF], 1);
	set(&rig, 4, 2, 0x2001);
	assert_int_equal(rig.rises[POWER_OFF], 2);
	rig_unmake(&rig, &kind);
}

static void test_timer(void **context)
{
	struct device_kind wide = kind;
	struct rig rig;

	rig_make(&rig, &kind);
	clock_advance(rig.clock, 1000000000);
	assert_int_equal(get(&rig, 8, 4), 3579545);
	assert_int_equal(get(&rig, 9, 1), 3579545 >> 8 & 0xff);
	clock_advance(rig.clock, 4000000000);
	assert_int_equal(get(&rig, 8, 4), 5 * 3579545 & 0xffffff);
	set(&rig, 8, 4, 0); /* read-only */
	assert_int_equal(get(&rig, 8, 4), 5 * 3579545 & 0xffffff);
	assert_false(((struct acpi_pm *)rig.chip)->overflow.armed); /* nobody wants to know */
	/* The top bit has toggled twice since reset: the status says so, and interrupts once enabled. */
	assert_int_equal(get(&rig, 0, 2), 1);
	out8(&rig, 0xb2, ACPI_PM_ENABLE);
	set(&rig, 0, 2, 1);
	set(&rig, 2, 2, 1);
	assert_false(rig.level[SCI]);
	clock_advance(rig.clock, 2030400000); /* until 3 * 2^23 ticks */
	assert_false(rig.level[SCI]);
	clock_advance(rig.clock, 100000);
	assert_true(rig.level[SCI]);
	set(&rig, 0, 2, 1);
	assert_false(rig.level[SCI]);
	for (unsigned i = 0; i < 100; i++) {
		clock_advance(rig.clock, 2343487000);
		assert_true(rig.level[SCI]);
		set(&rig, 0, 2, 1);
	}
	assert_int_equal(rig.rises[SCI], 101);
	rig_unmake(&rig, &kind);
	wide.make = make_fixed;
	rig_make(&rig, &wide);
	clock_advance(rig.clock, 500000000000);
	assert_int_equal(get(&rig, 8, 4), 1789772500);
	rig_unmake(&rig, &wide);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_enable),  cmocka_unit_test(test_power_button), cmocka_unit_test(test_sleep),
	    cmocka_unit_test(test_timer),   cmocka_unit_test(test_hammer),       cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt), cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
