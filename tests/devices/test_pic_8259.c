#include "device_test.h"

#include "devices/pic_8259.h"

#define INTR 0

static int make(struct rig *rig)
{
	return pic_8259_init(rig->chip, &rig->bus, rig_wire(rig, INTR));
}

static void stimulate(struct rig *rig, struct random *random)
{
	if (random_below(random, 3) == 0)
		rig_log(rig, pic_8259_acknowledge(rig->chip));
	else if (random_below(random, 20) == 0)
		rig_log(rig, pic_8259_inta(rig->chip));
	else
		pic_8259_set_irq(rig->chip, random_below(random, 18), random_below(random, 2));
}

static void check(struct rig *rig)
{
	struct pic_8259 *pic = rig->chip;

	assert_int_equal(pic->intr_level, rig->level[INTR]);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(pic->chip[i].lowest < 8);
		assert_true(pic->chip[i].icw_next <= 4);
	}
}

static const struct device_kind kind = {
    .name = "pic-8259",
    .size = sizeof(struct pic_8259),
    .make = make,
    .state = (void (*)(void *, struct state *))pic_8259_state,
    .reset = (void (*)(void *))pic_8259_reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{0x20, 2}, {0xa0, 2}, {0x4d0, 2}},
};

DEVICE_TESTS(kind)

/* As PC firmware and operating systems do; vectors 20h and 28h. */
static void program(struct rig *rig, uint8_t icw4_master)
{
	out8(rig, 0x20, 0x11);
	out8(rig, 0xa0, 0x11);
	out8(rig, 0x21, 0x20);
	out8(rig, 0xa1, 0x28);
	out8(rig, 0x21, 0x04);
	out8(rig, 0xa1, 0x02);
	out8(rig, 0x21, icw4_master);
	out8(rig, 0xa1, 0x01);
	out8(rig, 0x21, 0x00);
	out8(rig, 0xa1, 0x00);
}

static void pulse(struct rig *rig, unsigned irq)
{
	pic_8259_set_irq(rig->chip, irq, false);
	pic_8259_set_irq(rig->chip, irq, true);
}

static int acknowledge(struct rig *rig)
{
	return pic_8259_acknowledge(rig->chip);
}

static void test_edge_and_priority(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	assert_false(rig.level[INTR]);
	pulse(&rig, 4);
	pulse(&rig, 1);
	assert_true(rig.level[INTR]);
	assert_int_equal(in8(&rig, 0x20), 0x12); /* IRR */
	assert_int_equal(acknowledge(&rig), 0x21);
	assert_false(rig.level[INTR]); /* 4 is lower than what is in service */
	out8(&rig, 0x20, 0x0b);
	assert_int_equal(in8(&rig, 0x20), 0x02); /* ISR */
	pulse(&rig, 0);
	assert_int_equal(acknowledge(&rig), 0x20);
	out8(&rig, 0x20, 0x20); /* non-specific EOI: the highest, 0 */
	assert_int_equal(in8(&rig, 0x20), 0x02);
	out8(&rig, 0x20, 0x61); /* specific */
	assert_int_equal(in8(&rig, 0x20), 0x00);
	assert_int_equal(acknowledge(&rig), 0x24);
	out8(&rig, 0x20, 0x20);
	/* The line is still high, but an edge counts once. */
	assert_int_equal(acknowledge(&rig), -1);
	/* A request that goes before it is acknowledged is gone. */
	pulse(&rig, 5);
	assert_true(rig.level[INTR]);
	pic_8259_set_irq(rig.chip, 5, false);
	assert_false(rig.level[INTR]);
	rig_unmake(&rig, &kind);
}

static void test_cascade(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	pulse(&rig, 14);
	pulse(&rig, 12);
	assert_int_equal(acknowledge(&rig), 0x2c);
	pulse(&rig, 8); /* higher on the slave, but the master holds IR2 in service */
	assert_int_equal(acknowledge(&rig), -1);
	pulse(&rig, 1);
	assert_int_equal(acknowledge(&rig), 0x21);
	out8(&rig, 0x20, 0x20);
	out8(&rig, 0xa0, 0x20);
	out8(&rig, 0x20, 0x20);
	assert_int_equal(acknowledge(&rig), 0x28);
	out8(&rig, 0xa0, 0x20);
	out8(&rig, 0x20, 0x20);
	assert_int_equal(acknowledge(&rig), 0x2e);
	rig_unmake(&rig, &kind);
}

/* Two slave requests in automatic EOI mode: the master must hear of the second although INT never seemed to fall. */
static void test_cascade_automatic_eoi(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x03);
	out8(&rig, 0xa0, 0x11);
	out8(&rig, 0xa1, 0x28);
	out8(&rig, 0xa1, 0x02);
	out8(&rig, 0xa1, 0x03);
	pulse(&rig, 9);
	pulse(&rig, 10);
	assert_int_equal(acknowledge(&rig), 0x29);
	assert_int_equal(acknowledge(&rig), 0x2a);
	assert_int_equal(acknowledge(&rig), -1);
	rig_unmake(&rig, &kind);
}

static void test_special_fully_nested(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x11);
	pulse(&rig, 12);
	assert_int_equal(acknowledge(&rig), 0x2c);
	pulse(&rig, 4); /* lower than IR2 */
	assert_int_equal(acknowledge(&rig), -1);
	pulse(&rig, 8);
	assert_int_equal(acknowledge(&rig), 0x28);
	rig_unmake(&rig, &kind);
}

static void test_special_mask(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	pulse(&rig, 3);
	assert_int_equal(acknowledge(&rig), 0x23);
	pulse(&rig, 6);
	assert_int_equal(acknowledge(&rig), -1);
	out8(&rig, 0x21, 0x08);
	out8(&rig, 0x20, 0x68); /* set special mask */
	assert_int_equal(acknowledge(&rig), 0x26);
	/* A non-specific EOI does not see the masked one (231468, "special mask mode"). */
	out8(&rig, 0x20, 0x20);
	out8(&rig, 0x20, 0x0b);
	assert_int_equal(in8(&rig, 0x20), 0x08);
	out8(&rig, 0x20, 0x0a); /* without ESMM the mode stays */
	pulse(&rig, 6);
	assert_int_equal(acknowledge(&rig), 0x26);
	out8(&rig, 0x20, 0x66);
	out8(&rig, 0x20, 0x48);
	pulse(&rig, 7);
	assert_int_equal(acknowledge(&rig), -1);
	rig_unmake(&rig, &kind);
}

static void test_rotation(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	out8(&rig, 0x20, 0xc3); /* IR3 lowest: IR4 highest */
	pulse(&rig, 0);
	pulse(&rig, 5);
	assert_int_equal(acknowledge(&rig), 0x25);
	out8(&rig, 0x20, 0xa0); /* EOI and rotate: IR5 lowest */
	pulse(&rig, 5);
	assert_int_equal(acknowledge(&rig), 0x20);
	out8(&rig, 0x20, 0xe0); /* specific, rotate: IR0 lowest */
	out8(&rig, 0x20, 0x0b);
	assert_int_equal(in8(&rig, 0x20), 0x00);
	pulse(&rig, 0);
	assert_int_equal(acknowledge(&rig), 0x25);
	/* Automatic EOI with rotation. */
	program(&rig, 0x03);
	out8(&rig, 0x20, 0x80);
	pulse(&rig, 4);
	assert_int_equal(acknowledge(&rig), 0x24);
	pulse(&rig, 4);
	pulse(&rig, 6);
	assert_int_equal(acknowledge(&rig), 0x26);
	rig_unmake(&rig, &kind);
}

static void test_level(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	bus_port_write(&rig.bus, 0x4d0, 2, 0xffff);
	assert_int_equal(bus_port_read(&rig.bus, 0x4d0, 2), 0xdef8); /* timer, keyboard, cascade, RTC, FPU stay edges */
	pic_8259_set_irq(rig.chip, 10, true);
	assert_int_equal(acknowledge(&rig), 0x2a);
	assert_int_equal(acknowledge(&rig), -1);
	out8(&rig, 0xa0, 0x20);
	out8(&rig, 0x20, 0x20);
	assert_int_equal(acknowledge(&rig), 0x2a); /* still asserted */
	pic_8259_set_irq(rig.chip, 10, false);
	out8(&rig, 0xa0, 0x20);
	out8(&rig, 0x20, 0x20);
	assert_int_equal(acknowledge(&rig), -1);
	rig_unmake(&rig, &kind);
}

static void test_poll_and_spurious(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	program(&rig, 0x01);
	pulse(&rig, 6);
	out8(&rig, 0x20, 0x0c);
	assert_int_equal(in8(&rig, 0x20), 0x86);
	assert_int_equal(acknowledge(&rig), -1);
	out8(&rig, 0x20, 0x0c);
	assert_int_equal(in8(&rig, 0x20), 0x00);
	out8(&rig, 0x20, 0x20);
	/* An INTA cycle with nothing there: IR7, and no ISR bit. */
	assert_int_equal(pic_8259_inta(rig.chip), 0x27);
	out8(&rig, 0x20, 0x0b);
	assert_int_equal(in8(&rig, 0x20), 0);
	rig_unmake(&rig, &kind);
}

/* ICW1 forgets edges: a line that is high must rise again. Masks are cleared. Nothing is sent before the last ICW. */
static void test_initialization(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	pulse(&rig, 1);
	assert_false(rig.level[INTR]); /* all masked until firmware has been there */
	out8(&rig, 0x20, 0x11);
	assert_int_equal(in8(&rig, 0x21), 0x00);
	assert_int_equal(in8(&rig, 0x20), 0x00);
	pulse(&rig, 1);
	assert_false(rig.level[INTR]);
	out8(&rig, 0x21, 0x40);
	out8(&rig, 0x21, 0x04);
	out8(&rig, 0x21, 0x01);
	assert_int_equal(acknowledge(&rig), 0x41);
	/* Without ICW3 and ICW4. */
	out8(&rig, 0x20, 0x12);
	out8(&rig, 0x21, 0x58);
	out8(&rig, 0x21, 0xfe);
	assert_int_equal(in8(&rig, 0x21), 0xfe);
	/* ICW3 and no ICW4: the fourth byte is the mask, and what ICW4 said (automatic EOI) is gone. */
	program(&rig, 0x03);
	out8(&rig, 0x20, 0x80);
	out8(&rig, 0x20, 0x10);
	out8(&rig, 0x21, 0x58);
	out8(&rig, 0x21, 0x04);
	out8(&rig, 0x21, 0xef);
	assert_int_equal(in8(&rig, 0x21), 0xef);
	pulse(&rig, 4);
	assert_int_equal(acknowledge(&rig), 0x5c);
	out8(&rig, 0x20, 0x0b);
	assert_int_equal(in8(&rig, 0x20), 0x10);
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_edge_and_priority),
	    cmocka_unit_test(test_cascade),
	    cmocka_unit_test(test_cascade_automatic_eoi),
	    cmocka_unit_test(test_special_fully_nested),
	    cmocka_unit_test(test_special_mask),
	    cmocka_unit_test(test_rotation),
	    cmocka_unit_test(test_level),
	    cmocka_unit_test(test_poll_and_spurious),
	    cmocka_unit_test(test_initialization),
	    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),
	    cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
