#include "device_test.h"

#include "devices/i8042.h"

#define IRQ1  1
#define IRQ12 12
#define A20   20
#define RESET 21

static int make(struct rig *rig)
{
	return i8042_init(rig->chip, &rig->bus, rig->clock, rig_wire(rig, IRQ1), rig_wire(rig, IRQ12),
	                  rig_wire(rig, A20), rig_wire(rig, RESET));
}

static void stimulate(struct rig *rig, struct random *random)
{
	if (random_below(random, 2))
		i8042_key(rig->chip, random_below(random, 300), random_below(random, 2));
	else
		i8042_mouse(rig->chip, (int)random_next(random), (int)random_below(random, 1000) - 500,
		            (int)random_below(random, 30) - 15, random_next(random));
}

static void check(struct rig *rig)
{
	struct i8042 *i8042 = rig->chip;

	assert_int_equal(i8042->line1, rig->level[IRQ1]);
	assert_int_equal(i8042->line12, rig->level[IRQ12]);
	assert_in_range(i8042->keyboard.queue.count, 0, PS2_QUEUE);
	assert_in_range(i8042->mouse.queue.count, 0, PS2_QUEUE);
	assert_in_range(i8042->keyboard.queue.head, 0, PS2_QUEUE - 1);
	assert_in_range(i8042->mouse.queue.head, 0, PS2_QUEUE - 1);
	assert_in_range(i8042->mouse.knock, 0, 2);
	assert_in_range(i8042->keyboard.scan_set, 1, 2);
}

static const struct device_kind kind = {
    .name = "i8042",
    .size = sizeof(struct i8042),
    .make = make,
    .state = (void (*)(void *, struct state *))i8042_state,
    .reset = (void (*)(void *))i8042_reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{0x60, 1}, {0x64, 1}},
    .step = 500000,
};

DEVICE_TESTS(kind)

/* Reads what is there, waiting as a driver does. -1: nothing within 10 ms. Bit 8: from the mouse. */
static int get(struct rig *rig)
{
	for (unsigned i = 0; i < 100; i++) {
		uint8_t status = in8(rig, 0x64);

		if (status & 1)
			return in8(rig, 0x60) | (status & 0x20 ? 0x100 : 0);
		clock_advance(rig->clock, 100000);
	}
	return -1;
}

static void command(struct rig *rig, uint8_t value)
{
	out8(rig, 0x64, value);
}

static void data(struct rig *rig, uint8_t value)
{
	out8(rig, 0x60, value);
}

static void mouse(struct rig *rig, uint8_t value)
{
	command(rig, 0xd4);
	data(rig, value);
	assert_int_equal(get(rig), 0x1fa);
}

static void expect(struct rig *rig, const int *values, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(get(rig), values[i]);
	assert_int_equal(get(rig), -1);
}

#define EXPECT(rig, ...)                                                                                               \
	do {                                                                                                           \
		const int values_[] = {__VA_ARGS__};                                                                   \
		expect(rig, values_, sizeof values_ / sizeof values_[0]);                                              \
	} while (0)

/* What Linux's i8042 driver does before it believes. */
static void test_linux_controller_probe(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	assert_int_equal(get(&rig), -1);
	command(&rig, 0xaa);
	EXPECT(&rig, 0x55);
	command(&rig, 0x20);
	EXPECT(&rig, 0x65);
	command(&rig, 0x60);
	data(&rig, 0x74);    /* keyboard off, translated */
	command(&rig, 0xd3); /* loop back through the mouse's buffer */
	data(&rig, 0x5a);
	EXPECT(&rig, 0x15a);
	command(&rig, 0xa7);
	command(&rig, 0x20);
	EXPECT(&rig, 0x74);
	command(&rig, 0xa8);
	command(&rig, 0x20);
	EXPECT(&rig, 0x54);
	command(&rig, 0x60);
	data(&rig, 0x47);
	/* The mouse interrupt is tested with a looped byte. */
	command(&rig, 0xd3);
	data(&rig, 0xa5);
	assert_true(rig.level[IRQ12]);
	assert_int_equal(get(&rig), 0x1a5);
	assert_false(rig.level[IRQ12]);
	command(&rig, 0xa9);
	EXPECT(&rig, 0x00);
	command(&rig, 0xab);
	EXPECT(&rig, 0x00);
	command(&rig, 0x65);
	data(&rig, 0x99);
	command(&rig, 0x25);
	EXPECT(&rig, 0x99);
	rig_unmake(&rig, &kind);
}

static void test_keyboard(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	data(&rig, 0xff);
	EXPECT(&rig, 0xfa, 0xaa);
	data(&rig, 0xf2);
	EXPECT(&rig, 0xfa, 0xab, 0x41); /* translated 83h */
	data(&rig, 0xed);
	EXPECT(&rig, 0xfa);
	data(&rig, 0x02);
	EXPECT(&rig, 0xfa);
	data(&rig, 0xf0);
	EXPECT(&rig, 0xfa);
	data(&rig, 0x00);
	EXPECT(&rig, 0xfa, 0x41);
	data(&rig, 0xee);
	EXPECT(&rig, 0xee);
	data(&rig, 0xfe);
	EXPECT(&rig, 0xee);
	data(&rig, 0x12);
	EXPECT(&rig, 0xfe);
	/* A, right control, Pause, Print Screen: translated set 2 is set 1. */
	i8042_key(rig.chip, 0x1e, true);
	assert_true(rig.level[IRQ1]);
	i8042_key(rig.chip, 0x1e, false);
	EXPECT(&rig, 0x1e, 0x9e);
	i8042_key(rig.chip, 0x9d, true);
	i8042_key(rig.chip, 0x9d, false);
	EXPECT(&rig, 0xe0, 0x1d, 0xe0, 0x9d);
	i8042_key(rig.chip, 0xc6, true);
	i8042_key(rig.chip, 0xc6, false);
	EXPECT(&rig, 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5);
	i8042_key(rig.chip, 0xb7, true);
	i8042_key(rig.chip, 0xb7, false);
	EXPECT(&rig, 0xe0, 0x2a, 0xe0, 0x37, 0xe0, 0xb7, 0xe0, 0xaa);
	/* Every key comes back as itself. */
	for (unsigned key = 1; key < 0x7f; key++) {
		int first;

		i8042_key(rig.chip, key, true);
		first = get(&rig);
		assert_true(first == (int)key || first == -1);
		if (first != -1) {
			i8042_key(rig.chip, key, false);
			EXPECT(&rig, (int)key | 0x80);
		}
	}
	/* Untranslated. */
	command(&rig, 0x60);
	data(&rig, 0x05);
	i8042_key(rig.chip, 0x1e, true);
	i8042_key(rig.chip, 0x1e, false);
	EXPECT(&rig, 0x1c, 0xf0, 0x1c);
	data(&rig, 0xf0);
	assert_int_equal(get(&rig), 0xfa);
	data(&rig, 0x01);
	EXPECT(&rig, 0xfa);
	i8042_key(rig.chip, 0x9d, true);
	i8042_key(rig.chip, 0x9d, false);
	EXPECT(&rig, 0xe0, 0x1d, 0xe0, 0x9d);
	data(&rig, 0xf0);
	EXPECT(&rig, 0xfa);
	data(&rig, 0x03); /* there is no set 3 */
	EXPECT(&rig, 0xfe);
	data(&rig, 0xf0);
	EXPECT(&rig, 0xfa);
	data(&rig, 0x02);
	EXPECT(&rig, 0xfa);
	data(&rig, 0xf0);
	EXPECT(&rig, 0xfa);
	data(&rig, 0x00);
	EXPECT(&rig, 0xfa, 0x02);
	/* A command in the place of an argument is a command. */
	data(&rig, 0xed);
	EXPECT(&rig, 0xfa);
	data(&rig, 0xf2);
	EXPECT(&rig, 0xfa, 0xab, 0x83);
	/* Switched off by F5h, or held by the controller. */
	data(&rig, 0xf5);
	EXPECT(&rig, 0xfa);
	i8042_key(rig.chip, 0x1e, true);
	assert_int_equal(get(&rig), -1);
	data(&rig, 0xf6);
	EXPECT(&rig, 0xfa);
	i8042_key(rig.chip, 0x30, true);
	EXPECT(&rig, 0x32);
	data(&rig, 0xf5);
	EXPECT(&rig, 0xfa);
	data(&rig, 0xf4);
	EXPECT(&rig, 0xfa);
	command(&rig, 0xad);
	i8042_key(rig.chip, 0x1e, true);
	assert_int_equal(get(&rig), -1);
	command(&rig, 0xae);
	EXPECT(&rig, 0x1c);
	rig_unmake(&rig, &kind);
}

/* A handler that reads port 60h twice gets the same byte; the next one comes with an interrupt of its own. */
static void test_pacing(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	i8042_key(rig.chip, 0x1e, true);
	i8042_key(rig.chip, 0x30, true);
	assert_int_equal(rig.rises[IRQ1], 1);
	assert_int_equal(in8(&rig, 0x60), 0x1e);
	assert_int_equal(in8(&rig, 0x60), 0x1e);
	assert_false(rig.level[IRQ1]);
	clock_advance(rig.clock, 1000000);
	assert_int_equal(rig.rises[IRQ1], 2);
	assert_int_equal(in8(&rig, 0x60), 0x30);
	/* A controller's answer costs one unread byte, not more. */
	for (unsigned key = 0x10; key < 0x13; key++)
		i8042_key(rig.chip, key, true);
	clock_advance(rig.clock, 1000000);
	rig.rises[IRQ1] = 0;
	command(&rig, 0xaa);
	assert_int_equal(rig.rises[IRQ1], 1);
	EXPECT(&rig, 0x55, 0x11, 0x12);
	/* A flood of keys: whole codes are lost, none is cut. */
	for (unsigned i = 0; i < 1000; i++)
		i8042_key(rig.chip, 0x9d, i & 1);
	for (int code; (code = get(&rig)) >= 0;) {
		assert_int_equal(code, 0xe0);
		assert_int_equal(get(&rig) & 0x7f, 0x1d);
	}
	rig_unmake(&rig, &kind);
}

static void test_mouse(void **context)
{
	static const uint8_t wheel[] = {200, 100, 80}, five[] = {200, 200, 80};
	struct rig rig;

	rig_make(&rig, &kind);
	command(&rig, 0x60);
	data(&rig, 0x47);
	mouse(&rig, 0xff);
	EXPECT(&rig, 0x1aa, 0x100);
	mouse(&rig, 0xf2);
	EXPECT(&rig, 0x100);
	for (unsigned i = 0; i < 3; i++) {
		mouse(&rig, 0xf3);
		mouse(&rig, wheel[i]);
	}
	mouse(&rig, 0xf2);
	EXPECT(&rig, 0x103);
	for (unsigned i = 0; i < 3; i++) {
		mouse(&rig, 0xf3);
		mouse(&rig, five[i]);
	}
	mouse(&rig, 0xf2);
	EXPECT(&rig, 0x104);
	mouse(&rig, 0xe8);
	mouse(&rig, 3);
	mouse(&rig, 0xe7);
	mouse(&rig, 0xe6);
	mouse(&rig, 0xe9);
	EXPECT(&rig, 0x100, 0x103, 0x150);
	mouse(&rig, 0xe7);
	i8042_mouse(rig.chip, 0, 0, 0, 5);
	mouse(&rig, 0xe9);
	EXPECT(&rig, 0x116, 0x103, 0x150);
	i8042_mouse(rig.chip, 10, 10, 0, 0);
	assert_int_equal(get(&rig), -1); /* not enabled */
	mouse(&rig, 0xf4);
	i8042_mouse(rig.chip, 300, 5, -1, 0x11);
	assert_true(rig.level[IRQ12]);
	/* What does not fit into nine bits comes in a second packet. */
	EXPECT(&rig, 0x129, 0x1ff, 0x1fb, 0x12f, 0x109, 0x12d, 0x100, 0x120);
	i8042_mouse(rig.chip, -3, -2, 0, 0);
	EXPECT(&rig, 0x118, 0x1fd, 0x102, 0x100);
	/* Remote mode, wrap mode. */
	mouse(&rig, 0xf0);
	i8042_mouse(rig.chip, 1, 0, 0, 2);
	assert_int_equal(get(&rig), -1);
	mouse(&rig, 0xeb);
	EXPECT(&rig, 0x10a, 0x101, 0x100, 0x100);
	mouse(&rig, 0xee);
	command(&rig, 0xd4);
	data(&rig, 0x77);
	EXPECT(&rig, 0x177);
	mouse(&rig, 0xec);
	command(&rig, 0xd4);
	data(&rig, 0x77);
	EXPECT(&rig, 0x1fe);
	command(&rig, 0xd4);
	data(&rig, 0xfe); /* again */
	EXPECT(&rig, 0x1fe);
	mouse(&rig, 0xe8);
	command(&rig, 0xd4);
	data(&rig, 4); /* no such resolution */
	EXPECT(&rig, 0x1fc);
	/* Defaults keep the wheel; a reset loses it. */
	mouse(&rig, 0xf6);
	mouse(&rig, 0xe9);
	EXPECT(&rig, 0x101, 0x102, 0x164);
	mouse(&rig, 0xf2);
	EXPECT(&rig, 0x104);
	mouse(&rig, 0xff);
	EXPECT(&rig, 0x1aa, 0x100);
	/* A wheel mouse: the fourth byte is the wheel alone. */
	for (unsigned i = 0; i < 3; i++) {
		mouse(&rig, 0xf3);
		mouse(&rig, wheel[i]);
	}
	mouse(&rig, 0xf4);
	i8042_mouse(rig.chip, 0, 0, -1, 0);
	EXPECT(&rig, 0x108, 0x100, 0x100, 0x1ff);
	/* Hostile distances do not overflow. */
	i8042_mouse(rig.chip, INT32_MIN, INT32_MIN, INT32_MIN, 0);
	i8042_mouse(rig.chip, INT32_MAX, INT32_MAX, INT32_MAX, 0);
	assert_int_equal(get(&rig), 0x118);
	rig_unmake(&rig, &kind);
}

static void test_reset_and_a20(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	assert_true(rig.level[A20]);
	command(&rig, 0xd0);
	EXPECT(&rig, 0xcf);
	assert_int_equal(in8(&rig, 0x64), 0x1c); /* last was a command; empty */
	i8042_key(rig.chip, 0x1e, true);
	command(&rig, 0xd0);
	data(&rig, 0xee);
	assert_int_equal(in8(&rig, 0x64) & 0x2d, 0x05);
	assert_int_equal(in8(&rig, 0x60), 0xdf); /* the keyboard's byte was in the buffer */
	clock_advance(rig.clock, 10000000);
	in8(&rig, 0x60);
	clock_advance(rig.clock, 10000000);
	in8(&rig, 0x60);
	command(&rig, 0xd1);
	data(&rig, 0xdd);
	assert_false(rig.level[A20]);
	command(&rig, 0xd0);
	EXPECT(&rig, 0xcd);
	command(&rig, 0xdf);
	assert_true(rig.level[A20]);
	command(&rig, 0xc0);
	EXPECT(&rig, 0xbf);
	command(&rig, 0xe0);
	EXPECT(&rig, 0x01);
	assert_int_equal(rig.rises[RESET], 0);
	command(&rig, 0xff); /* pulses nothing */
	assert_int_equal(rig.rises[RESET], 0);
	command(&rig, 0xfe);
	assert_int_equal(rig.rises[RESET], 1);
	command(&rig, 0xd1);
	data(&rig, 0x02);
	assert_int_equal(rig.rises[RESET], 2);
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_linux_controller_probe),
	    cmocka_unit_test(test_keyboard),
	    cmocka_unit_test(test_pacing),
	    cmocka_unit_test(test_mouse),
	    cmocka_unit_test(test_reset_and_a20),
	    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),
	    cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
