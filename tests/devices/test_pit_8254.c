#include "device_test.h"

#include "devices/pit_8254.h"

#define IRQ0 0

static int make(struct rig *rig)
{
	return pit_8254_init(rig->chip, &rig->bus, rig->clock, rig_wire(rig, IRQ0));
}

static void check(struct rig *rig)
{
	struct pit_8254 *pit = rig->chip;

	assert_int_equal(pit->irq0_level, rig->level[IRQ0]);
	for (unsigned i = 0; i < 3; i++) {
		assert_in_range(pit->channel[i].period, 1, 65536);
		assert_in_range(pit->channel[i].next_period, 1, 65536);
		assert_in_range(pit->channel[i].mode, 0, 5);
		assert_in_range(pit->channel[i].access, 1, 3);
	}
}

static const struct device_kind kind = {
    .name = "pit-8254",
    .size = sizeof(struct pit_8254),
    .make = make,
    .state = (void (*)(void *, struct state *))pit_8254_state,
    .reset = (void (*)(void *))pit_8254_reset,
    .check = check,
    .span = {{0x40, 4}, {0x61, 1}},
    .step = 200000,
};

DEVICE_TESTS(kind)

/* Advances to the moment `ticks` PIT ticks after now, a little inside the tick. */
static void advance_ticks(struct rig *rig, uint64_t ticks)
{
	uint64_t now = clock_now(rig->clock);
	uint64_t tick = (unsigned __int128)now * PIT_8254_HZ / 1000000000u + ticks;
	uint64_t target = ((unsigned __int128)tick * 1000000000u) / PIT_8254_HZ + 100;

	clock_advance(rig->clock, target - now);
}

static uint16_t latch(struct rig *rig, unsigned channel)
{
	uint16_t value;

	out8(rig, 0x43, channel << 6);
	value = in8(rig, 0x40 + channel);
	return value | in8(rig, 0x40 + channel) << 8;
}

static void load(struct rig *rig, unsigned channel, unsigned mode, uint16_t count)
{
	out8(rig, 0x43, channel << 6 | 0x30 | mode << 1);
	out8(rig, 0x40 + channel, count & 0xff);
	out8(rig, 0x40 + channel, count >> 8);
}

static uint8_t status(struct rig *rig, unsigned channel)
{
	out8(rig, 0x43, 0xe0 | 2 << channel);
	return in8(rig, 0x40 + channel);
}

/* A kernel's 100 Hz tick. */
static void test_rate_generator(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	load(&rig, 0, 2, 11932);
	rig.rises[IRQ0] = 0;
	clock_advance(rig.clock, 1000000000);
	assert_int_equal(rig.rises[IRQ0], 99); /* the first comes after a whole period and one tick */
	clock_advance(rig.clock, 9000000000);
	assert_int_equal(rig.rises[IRQ0], 999);
	advance_ticks(&rig, 1);
	for (unsigned i = 0; i < 20000; i += 997) {
		uint16_t before = latch(&rig, 0), after;

		advance_ticks(&rig, 1);
		after = latch(&rig, 0);
		assert_int_equal(after, before == 1 ? 11932 : before - 1);
		advance_ticks(&rig, 997);
	}
	rig_unmake(&rig, &kind);
}

/* A count of 0 is 65536: the BIOS's 18.2 Hz. */
static void test_square_wave(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	load(&rig, 0, 3, 0);
	rig.rises[IRQ0] = 0;
	clock_advance(rig.clock, 10000000000);
	assert_int_equal(rig.rises[IRQ0], 182);
	/* Odd counts: high for (n + 1) / 2, low for (n - 1) / 2. */
	load(&rig, 2, 3, 7);
	out8(&rig, 0x61, 1);
	advance_ticks(&rig, 1);
	for (unsigned period = 0; period < 3; period++)
		for (unsigned i = 0; i < 7; i++) {
			assert_int_equal(in8(&rig, 0x61) >> 5 & 1, i < 4);
			advance_ticks(&rig, 1);
		}
	rig_unmake(&rig, &kind);
}

/* Linux's TSC calibration: channel 2 in mode 0, gated by port 61h, watched in bit 5. */
static void test_terminal_count(void **context)
{
	struct rig rig;
	uint64_t begin;

	rig_make(&rig, &kind);
	out8(&rig, 0x61, (in8(&rig, 0x61) & ~2) | 1);
	load(&rig, 2, 0, 59659); /* 50 ms */
	begin = clock_now(rig.clock);
	while (!(in8(&rig, 0x61) & 0x20))
		clock_advance(rig.clock, 1000);
	assert_in_range(clock_now(rig.clock) - begin, 49999000, 50003000);
	/* It counts on, through FFFFh. */
	advance_ticks(&rig, 10);
	assert_in_range(latch(&rig, 2), 0xfff0, 0xffff);
	/* The gate holds the count. */
	load(&rig, 2, 0, 1000);
	advance_ticks(&rig, 501);
	out8(&rig, 0x61, 0);
	assert_int_equal(latch(&rig, 2), 500);
	advance_ticks(&rig, 1000);
	assert_int_equal(latch(&rig, 2), 500);
	assert_false(in8(&rig, 0x61) & 0x20);
	out8(&rig, 0x61, 1);
	advance_ticks(&rig, 499);
	assert_false(in8(&rig, 0x61) & 0x20);
	advance_ticks(&rig, 1);
	assert_true(in8(&rig, 0x61) & 0x20);
	/* Nothing is armed for channels without an interrupt. */
	assert_false(((struct pit_8254 *)rig.chip)->timer.armed);
	/* The first byte of a new count stops it and lowers OUT. */
	out8(&rig, 0x42, 50);
	assert_false(in8(&rig, 0x61) & 0x20);
	out8(&rig, 0x42, 0);
	advance_ticks(&rig, 51);
	assert_true(in8(&rig, 0x61) & 0x20);
	rig_unmake(&rig, &kind);
}

/* Mode 0 and mode 4 on channel 0: one interrupt each. Linux's one-shot clock event uses mode 4. */
static void test_one_interrupt(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	load(&rig, 0, 0, 1000);
	assert_false(rig.level[IRQ0]);
	advance_ticks(&rig, 1000);
	assert_false(rig.level[IRQ0]);
	advance_ticks(&rig, 1);
	assert_true(rig.level[IRQ0]);
	clock_advance(rig.clock, 1000000000);
	load(&rig, 0, 4, 500);
	rig.rises[IRQ0] = 0;
	advance_ticks(&rig, 501);
	assert_int_equal(rig.rises[IRQ0], 0);
	advance_ticks(&rig, 1);
	assert_int_equal(rig.rises[IRQ0], 1);
	clock_advance(rig.clock, 1000000000);
	assert_int_equal(rig.rises[IRQ0], 1);
	out8(&rig, 0x40, 100); /* a new count starts it again */
	out8(&rig, 0x40, 0);
	clock_advance(rig.clock, 1000000000);
	assert_int_equal(rig.rises[IRQ0], 2);
	rig_unmake(&rig, &kind);
}

/* Modes 1 and 5 start with the rising gate. */
static void test_gate_triggered(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	out8(&rig, 0x61, 0);
	load(&rig, 2, 1, 100);
	advance_ticks(&rig, 500);
	assert_true(in8(&rig, 0x61) & 0x20);
	out8(&rig, 0x61, 1);
	advance_ticks(&rig, 1);
	assert_false(in8(&rig, 0x61) & 0x20);
	advance_ticks(&rig, 99);
	assert_false(in8(&rig, 0x61) & 0x20);
	out8(&rig, 0x61, 0); /* the falling gate changes nothing */
	advance_ticks(&rig, 1);
	assert_true(in8(&rig, 0x61) & 0x20);
	out8(&rig, 0x61, 1);
	advance_ticks(&rig, 50);
	out8(&rig, 0x61, 0);
	out8(&rig, 0x61, 1); /* retriggered */
	advance_ticks(&rig, 100);
	assert_false(in8(&rig, 0x61) & 0x20);
	advance_ticks(&rig, 1);
	assert_true(in8(&rig, 0x61) & 0x20);

	out8(&rig, 0x61, 0);
	load(&rig, 2, 5, 100);
	out8(&rig, 0x61, 1);
	advance_ticks(&rig, 100);
	assert_true(in8(&rig, 0x61) & 0x20);
	advance_ticks(&rig, 1);
	assert_false(in8(&rig, 0x61) & 0x20); /* low for one tick */
	advance_ticks(&rig, 1);
	assert_true(in8(&rig, 0x61) & 0x20);
	rig_unmake(&rig, &kind);
}

static void test_latch_and_read_back(void **context)
{
	struct rig rig;
	uint16_t value;

	rig_make(&rig, &kind);
	load(&rig, 1, 2, 0x1234);
	assert_int_equal(status(&rig, 1), 0xf4); /* OUT, null count, both bytes, mode 2 */
	advance_ticks(&rig, 11);
	assert_int_equal(status(&rig, 1), 0xb4);
	out8(&rig, 0x43, 0x40);
	advance_ticks(&rig, 100);
	out8(&rig, 0x43, 0x40); /* a second latch before the read changes nothing */
	value = in8(&rig, 0x41);
	value |= in8(&rig, 0x41) << 8;
	assert_int_equal(value, 0x1234 - 10);
	assert_int_equal(latch(&rig, 1), 0x1234 - 110);
	/* Count and status of all three at once; the status is read first. */
	out8(&rig, 0x43, 0xce);
	assert_int_equal(in8(&rig, 0x41), 0xb4);
	value = in8(&rig, 0x41);
	value |= in8(&rig, 0x41) << 8;
	assert_int_equal(value, 0x1234 - 110);
	/* Only one byte is accessed. */
	out8(&rig, 0x43, 0x54);
	out8(&rig, 0x41, 0x80);
	advance_ticks(&rig, 3);
	assert_int_equal(in8(&rig, 0x41), 0x7e);
	assert_int_equal(in8(&rig, 0x41), 0x7e);
	out8(&rig, 0x43, 0x64);
	out8(&rig, 0x41, 0x80);
	advance_ticks(&rig, 3);
	assert_int_equal(in8(&rig, 0x41), 0x7f);
	/* Only the channels that are named, only what is asked for. */
	load(&rig, 1, 2, 0x2000);
	load(&rig, 2, 2, 0x3000);
	out8(&rig, 0x43, 0xe8);                  /* status of channel 2 */
	assert_int_equal(in8(&rig, 0x42), 0xb4); /* its gate is low: loaded, and standing */
	value = latch(&rig, 2) & 0xff;
	assert_int_equal(in8(&rig, 0x42), value);
	value = latch(&rig, 1) & 0xff;
	assert_int_equal(in8(&rig, 0x41), value);
	in8(&rig, 0x41);
	in8(&rig, 0x42);
	/* BCD. */
	out8(&rig, 0x43, 0x75);
	out8(&rig, 0x41, 0x00);
	out8(&rig, 0x41, 0x10);
	advance_ticks(&rig, 3);
	assert_int_equal(latch(&rig, 1), 0x0998);
	assert_int_equal(in8(&rig, 0x43), 0xff);
	rig_unmake(&rig, &kind);
}

/* A count written in modes 2 and 3 is taken when the (half) period ends. */
static void test_new_count_waits(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	load(&rig, 0, 2, 1000);
	advance_ticks(&rig, 501);
	rig.rises[IRQ0] = 0;
	out8(&rig, 0x40, 100);
	out8(&rig, 0x40, 0);
	assert_int_equal(latch(&rig, 0), 500);
	assert_true(status(&rig, 0) & 0x40);
	advance_ticks(&rig, 499);
	assert_int_equal(rig.rises[IRQ0], 0);
	advance_ticks(&rig, 1);
	assert_int_equal(rig.rises[IRQ0], 1);
	assert_false(status(&rig, 0) & 0x40);
	assert_int_equal(latch(&rig, 0), 100);
	advance_ticks(&rig, 1000);
	assert_int_equal(rig.rises[IRQ0], 11);
	/* Mode 3: at the half period; the rest of it is as long as half of the new count. */
	load(&rig, 0, 3, 1000);
	advance_ticks(&rig, 101);
	rig.rises[IRQ0] = 0;
	out8(&rig, 0x40, 200);
	out8(&rig, 0x40, 0);
	advance_ticks(&rig, 399);
	assert_true(status(&rig, 0) & 0x80);
	advance_ticks(&rig, 1);
	assert_false(status(&rig, 0) & 0x80);
	advance_ticks(&rig, 99);
	assert_int_equal(rig.rises[IRQ0], 0);
	advance_ticks(&rig, 1);
	assert_int_equal(rig.rises[IRQ0], 1);
	rig_unmake(&rig, &kind);
}

/* A guest that asks for 600 kHz gets no more than 50 kHz: the event loop must live. */
static void test_storm_is_bounded(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	load(&rig, 0, 2, 2);
	rig.rises[IRQ0] = 0;
	clock_advance(rig.clock, 1000000000);
	assert_in_range(rig.rises[IRQ0], 10000, 60000);
	load(&rig, 0, 3, 1);
	rig.rises[IRQ0] = 0;
	clock_advance(rig.clock, 1000000000);
	assert_in_range(rig.rises[IRQ0], 10000, 60000);
	rig_unmake(&rig, &kind);
}

static void test_port61(void **context)
{
	struct rig rig;
	unsigned toggles = 0;
	uint8_t last;

	rig_make(&rig, &kind);
	out8(&rig, 0x61, 0xff);
	assert_int_equal(in8(&rig, 0x61) & 0xcf, 0x0f);
	last = in8(&rig, 0x61) & 0x10;
	for (unsigned i = 0; i < 1000; i++) {
		clock_advance(rig.clock, 1000);
		toggles += (in8(&rig, 0x61) & 0x10) != last;
		last = in8(&rig, 0x61) & 0x10;
	}
	assert_in_range(toggles, 65, 67); /* every 15 us */
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

/* Mode 3 counts by twos, twice through; mode 0 wraps at 65536 or 10000. */
static void test_counts(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	out8(&rig, 0x61, 1);
	load(&rig, 2, 3, 8);
	advance_ticks(&rig, 1);
	for (unsigned i = 0; i < 16; i++) {
		assert_int_equal(latch(&rig, 2), 8 - 2 * (i % 4));
		advance_ticks(&rig, 1);
	}
	load(&rig, 2, 3, 7);
	advance_ticks(&rig, 1);
	for (unsigned i = 0; i < 14; i++) {
		static const uint8_t count[] = {6, 4, 2, 0, 6, 4, 2};

		assert_int_equal(latch(&rig, 2), count[i % 7]);
		advance_ticks(&rig, 1);
	}
	load(&rig, 2, 0, 3);
	advance_ticks(&rig, 4);
	assert_int_equal(latch(&rig, 2), 0);
	advance_ticks(&rig, 2);
	assert_int_equal(latch(&rig, 2), 0xfffe);
	advance_ticks(&rig, 65536);
	assert_int_equal(latch(&rig, 2), 0xfffe);
	out8(&rig, 0x43, 0xb1);
	out8(&rig, 0x42, 3);
	out8(&rig, 0x42, 0);
	advance_ticks(&rig, 6);
	assert_int_equal(latch(&rig, 2), 0x9998);
	/* Channel 0's gate is tied high: modes 1 and 5 never start. */
	load(&rig, 0, 1, 10);
	rig.rises[IRQ0] = 0;
	clock_advance(rig.clock, 1000000000);
	load(&rig, 0, 5, 10);
	clock_advance(rig.clock, 1000000000);
	assert_int_equal(rig.rises[IRQ0], 0);
	assert_true(rig.level[IRQ0]);
	assert_int_equal(status(&rig, 0), 0xfa);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_rate_generator),  cmocka_unit_test(test_square_wave),
	    cmocka_unit_test(test_terminal_count),  cmocka_unit_test(test_one_interrupt),
	    cmocka_unit_test(test_gate_triggered),  cmocka_unit_test(test_latch_and_read_back),
	    cmocka_unit_test(test_new_count_waits), cmocka_unit_test(test_storm_is_bounded),
	    cmocka_unit_test(test_port61),          cmocka_unit_test(test_counts),
	    cmocka_unit_test(test_hammer),          cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),         cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
