#include "device_test.h"

#include "devices/rtc_mc146818.h"

#define IRQ8     8
#define NMI_MASK 1

static int make(struct rig *rig)
{
	return rtc_mc146818_init(rig->chip, &rig->bus, rig->clock, rig_wire(rig, IRQ8), rig_wire(rig, NMI_MASK));
}

static void check(struct rig *rig)
{
	struct rtc_mc146818 *rtc = rig->chip;

	assert_int_equal(rtc->irq_level, rig->level[IRQ8]);
	assert_int_equal(rtc->irq_level, rtc->cmos[12] >> 7);
	assert_in_range(rtc->index, 0, 127);
	assert_in_range(rtc->upper_index, 0, 127);
	assert_in_range(rtc->offset_ns, 0, 999999999);
}

static const struct device_kind kind = {
    .name = "rtc-mc146818",
    .size = sizeof(struct rtc_mc146818),
    .make = make,
    .state = (void (*)(void *, struct state *))rtc_mc146818_state,
    .reset = (void (*)(void *))rtc_mc146818_reset,
    .check = check,
    .span = {{0x70, 4}, {0x70, 2}},
    .step = 700000000,
};

DEVICE_TESTS(kind)

#define SECOND 1000000000ull

static uint8_t get(struct rig *rig, unsigned index)
{
	out8(rig, 0x70, index);
	return in8(rig, 0x71);
}

static void set(struct rig *rig, unsigned index, uint8_t value)
{
	out8(rig, 0x70, index);
	out8(rig, 0x71, value);
}

static void assert_time(struct rig *rig, const char *expected)
{
	char text[64];

	snprintf(text, sizeof text, "%02x%02x-%02x-%02x %02x:%02x:%02x day %x", get(rig, 0x32), get(rig, 9),
	         get(rig, 8), get(rig, 7), get(rig, 4), get(rig, 2), get(rig, 0), get(rig, 6));
	assert_string_equal(text, expected);
}

static void test_time(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	/* The manual clock begins with 2000, a Saturday. */
	assert_time(&rig, "2000-01-01 00:00:00 day 7");
	clock_advance(rig.clock, 59 * SECOND + SECOND - 1);
	assert_time(&rig, "2000-01-01 00:00:59 day 7");
	clock_advance(rig.clock, 1);
	assert_time(&rig, "2000-01-01 00:01:00 day 7");
	clock_advance(rig.clock, (58 * 86400ull + 86400 - 61) * SECOND);
	assert_time(&rig, "2000-02-28 23:59:59 day 2");
	clock_advance(rig.clock, SECOND);
	assert_time(&rig, "2000-02-29 00:00:00 day 3");
	clock_advance(rig.clock, 86400 * SECOND);
	assert_time(&rig, "2000-03-01 00:00:00 day 4");
	/* Century years. */
	set(&rig, 0x32, 0x21);
	set(&rig, 8, 0x02);
	set(&rig, 7, 0x28);
	assert_time(&rig, "2100-02-28 00:00:00 day 4");
	clock_advance(rig.clock, 86400 * SECOND);
	assert_time(&rig, "2100-03-01 00:00:00 day 5");
	set(&rig, 0x32, 0x20);
	set(&rig, 8, 0x03);
	set(&rig, 7, 0x01);
	/* Binary, and twelve hours. */
	set(&rig, 11, 0x04);
	clock_advance(rig.clock, 13 * 3600 * SECOND);
	assert_int_equal(get(&rig, 4), 0x81);
	assert_int_equal(get(&rig, 0x32), 20);
	clock_advance(rig.clock, 11 * 3600 * SECOND + 59 * 60 * SECOND);
	assert_int_equal(get(&rig, 4), 12); /* midnight */
	assert_int_equal(get(&rig, 2), 59);
	rig_unmake(&rig, &kind);
}

static void test_set(void **context)
{
	static const uint8_t time[][2] = {{0x32, 0x19}, {9, 0x99}, {8, 0x12}, {7, 0x31},
	                                  {6, 0x06},    {4, 0x23}, {2, 0x59}, {0, 0x58}};
	struct rig rig;

	rig_make(&rig, &kind);
	clock_advance(rig.clock, SECOND / 4);
	set(&rig, 11, 0x82); /* SET */
	for (unsigned i = 0; i < sizeof time / sizeof time[0]; i++)
		set(&rig, time[i][0], time[i][1]);
	clock_advance(rig.clock, 10 * SECOND);
	assert_time(&rig, "1999-12-31 23:59:58 day 6");
	set(&rig, 11, 0x02);
	assert_time(&rig, "1999-12-31 23:59:58 day 6");
	clock_advance(rig.clock, SECOND * 3 / 4);
	assert_time(&rig, "1999-12-31 23:59:59 day 6");
	clock_advance(rig.clock, SECOND);
	assert_time(&rig, "2000-01-01 00:00:00 day 7");
	/* After a divider reset the first update comes half a second later. */
	set(&rig, 10, 0x76);
	set(&rig, 0, 0x30);
	clock_advance(rig.clock, 5 * SECOND);
	set(&rig, 10, 0x26);
	clock_advance(rig.clock, SECOND / 2 - 1);
	assert_int_equal(get(&rig, 0), 0x30);
	clock_advance(rig.clock, 1);
	assert_int_equal(get(&rig, 0), 0x31);
	/* A single register, while it runs; a weekday that the guest thinks right. */
	set(&rig, 7, 0x15);
	set(&rig, 6, 0x01);
	assert_time(&rig, "2000-01-15 00:00:31 day 1");
	clock_advance(rig.clock, 86400 * SECOND);
	assert_time(&rig, "2000-01-16 00:00:31 day 2");
	rig_unmake(&rig, &kind);
}

static void test_update_in_progress(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	clock_advance(rig.clock, SECOND - 245000);
	assert_int_equal(get(&rig, 10), 0x26);
	clock_advance(rig.clock, 1000);
	assert_int_equal(get(&rig, 10), 0xa6);
	clock_advance(rig.clock, 244000);
	assert_int_equal(get(&rig, 10), 0x26);
	rig_unmake(&rig, &kind);
}

static void test_interrupts(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	/* Update: once a second, and no more until C is read. */
	set(&rig, 11, 0x12);
	clock_advance(rig.clock, 3 * SECOND / 2);
	assert_true(rig.level[IRQ8]);
	clock_advance(rig.clock, 5 * SECOND);
	assert_int_equal(rig.rises[IRQ8], 1);
	assert_int_equal(get(&rig, 12) & 0xb0, 0x90);
	assert_false(rig.level[IRQ8]);
	assert_int_equal(get(&rig, 12), 0);
	clock_advance(rig.clock, SECOND);
	assert_int_equal(rig.rises[IRQ8], 2);
	get(&rig, 12);
	/* Flags are set without enables too, and nothing wakes the host for them. */
	set(&rig, 11, 0x02);
	assert_false(((struct rtc_mc146818 *)rig.chip)->timer.armed);
	clock_advance(rig.clock, SECOND);
	assert_int_equal(get(&rig, 12), 0x50);
	/* Periodic: 1024 Hz. */
	set(&rig, 11, 0x42);
	rig.rises[IRQ8] = 0;
	for (unsigned i = 0; i < 10000; i++) {
		clock_advance(rig.clock, 100000);
		if (rig.level[IRQ8])
			get(&rig, 12);
	}
	assert_int_equal(rig.rises[IRQ8], 1024);
	/* Rates 1 and 2 are 256 and 128 Hz. */
	for (unsigned rate = 1; rate <= 3; rate++) {
		set(&rig, 10, 0x20 | rate);
		get(&rig, 12);
		rig.rises[IRQ8] = 0;
		for (unsigned i = 0; i < 20000; i++) {
			clock_advance(rig.clock, 50000);
			if (rig.level[IRQ8])
				get(&rig, 12);
		}
		assert_in_range(rig.rises[IRQ8], rate == 3 ? 8191 : 511 >> rate, rate == 3 ? 8192 : 512 >> rate);
	}
	set(&rig, 10, 0x20);
	get(&rig, 12);
	clock_advance(rig.clock, SECOND);
	assert_false(rig.level[IRQ8]);
	rig_unmake(&rig, &kind);
}

static void test_alarm(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	set(&rig, 1, 0x30);
	set(&rig, 3, 0x15);
	set(&rig, 5, 0x06);
	set(&rig, 11, 0x22);
	clock_advance(rig.clock, (6 * 3600 + 15 * 60 + 29) * SECOND);
	assert_false(rig.level[IRQ8]);
	clock_advance(rig.clock, SECOND);
	assert_true(rig.level[IRQ8]);
	assert_int_equal(get(&rig, 12) & 0xa0, 0xa0);
	clock_advance(rig.clock, 86399 * SECOND);
	assert_false(rig.level[IRQ8]);
	clock_advance(rig.clock, SECOND);
	assert_true(rig.level[IRQ8]);
	get(&rig, 12);
	/* Any hour, any minute. */
	set(&rig, 3, 0xff);
	set(&rig, 5, 0xc0);
	rig.rises[IRQ8] = 0;
	for (unsigned i = 0; i < 3600; i++) {
		clock_advance(rig.clock, SECOND);
		get(&rig, 12);
	}
	assert_int_equal(rig.rises[IRQ8], 60);
	/* On the first second of a minute. */
	set(&rig, 1, 0x00);
	get(&rig, 12);
	rig.rises[IRQ8] = 0;
	clock_advance(rig.clock, 60 * SECOND);
	assert_int_equal(rig.rises[IRQ8], 1);
	get(&rig, 12);
	/* A time that never comes arms nothing. */
	set(&rig, 1, 0x99);
	assert_false(((struct rtc_mc146818 *)rig.chip)->timer.armed);
	clock_advance(rig.clock, 100000 * SECOND);
	assert_false(rig.level[IRQ8]);
	rig_unmake(&rig, &kind);
}

static void test_cmos(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	set(&rig, 0x7f, 0x5a);
	set(&rig, 0xff, 0xa5); /* the same register; NMIs are masked */
	assert_true(rig.level[NMI_MASK]);
	assert_int_equal(get(&rig, 0x7f), 0xa5);
	assert_false(rig.level[NMI_MASK]);
	assert_int_equal(in8(&rig, 0x70), 0xff);
	/* The second bank is RAM only. */
	for (unsigned i = 0; i < 128; i++) {
		out8(&rig, 0x72, i);
		out8(&rig, 0x73, i ^ 0xc3);
	}
	for (unsigned i = 0; i < 128; i++) {
		out8(&rig, 0x72, 0x80 | i);
		assert_int_equal(in8(&rig, 0x73), i ^ 0xc3);
	}
	assert_int_equal(in8(&rig, 0x72), 0xff);
	assert_int_equal(get(&rig, 0x7f), 0xa5);
	set(&rig, 13, 0);
	assert_int_equal(get(&rig, 13), 0x80);
	rtc_mc146818_set_memory(rig.chip, 32 << 20, 0);
	assert_int_equal(get(&rig, 0x17) | get(&rig, 0x18) << 8, 31 << 10);
	assert_int_equal(get(&rig, 0x34) | get(&rig, 0x35) << 8, 256);
	rtc_mc146818_set_memory(rig.chip, 3ull << 30, 5ull << 30);
	assert_int_equal(get(&rig, 0x15) | get(&rig, 0x16) << 8, 640);
	assert_int_equal(get(&rig, 0x17) | get(&rig, 0x18) << 8, 0xffff);
	assert_int_equal(get(&rig, 0x34) | get(&rig, 0x35) << 8, 0xc000 - 0x100);
	assert_int_equal(get(&rig, 0x5b) | get(&rig, 0x5c) << 8 | get(&rig, 0x5d) << 16, 5ull << 30 >> 16);
	rig_unmake(&rig, &kind);
}

/* Reset clears the enables and flags; SET the update enable. Time and RAM stay. */
static void test_reset(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	set(&rig, 0x40, 0x77);
	set(&rig, 11, 0x72);
	clock_advance(rig.clock, SECOND * 3 / 2);
	assert_true(rig.level[IRQ8]);
	set(&rig, 0xff, 0);
	rtc_mc146818_reset(rig.chip);
	assert_false(rig.level[IRQ8]);
	assert_false(rig.level[NMI_MASK]);
	assert_int_equal(get(&rig, 12), 0);
	assert_int_equal(get(&rig, 11), 0x02);
	assert_int_equal(get(&rig, 0x40), 0x77);
	assert_time(&rig, "2000-01-01 00:00:01 day 7");
	set(&rig, 11, 0x12);
	set(&rig, 11, 0x92);
	assert_int_equal(get(&rig, 11), 0x82);
	/* Set in twelve hours: noon, one in the afternoon, midnight. */
	for (unsigned i = 0; i < 3; i++) {
		static const uint8_t written[] = {0x92, 0x81, 0x12}, read[] = {0x12, 0x13, 0x00};

		set(&rig, 11, 0x80);
		set(&rig, 4, written[i]);
		set(&rig, 11, 0x00);
		set(&rig, 11, 0x02);
		assert_int_equal(get(&rig, 4), read[i]);
	}
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_time),       cmocka_unit_test(test_set),    cmocka_unit_test(test_update_in_progress),
	    cmocka_unit_test(test_interrupts), cmocka_unit_test(test_alarm),  cmocka_unit_test(test_cmos),
	    cmocka_unit_test(test_reset),      cmocka_unit_test(test_hammer), cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
