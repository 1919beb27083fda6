/*
 * What the chips' tests share: a rig of bus, manual clock and recorded wires, and three tests that every chip must
 * pass:
 *
 *	hammer   random accesses, times and inputs do no harm: invariants hold, reset works in every state
 *	twin     save, load into a new chip, go on: both see and do the same
 *	corrupt  a damaged saved state is refused or harmless
 *
 * and one for those whose reset leaves nothing of the past:
 *
 *	reset    after random accesses and a reset the saved state is that of a new chip
 *
 * They are deterministic: RING3_SEED in the environment sets another seed, RING3_ROUNDS more work.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "devices/bus.h"
#include "machine/clock.h"
#include "machine/state.h"

#define WIRES 64

/* xorshift64*; never 0. */
struct random {
	uint64_t state;
};

static inline uint64_t random_next(struct random *random)
{
	random->state ^= random->state >> 12;
	random->state ^= random->state << 25;
	random->state ^= random->state >> 27;
	return random->state * 0x2545f4914f6cdd1dull;
}

static inline unsigned random_below(struct random *random, unsigned limit)
{
	return (random_next(random) >> 33) % limit;
}

struct rig {
	struct bus bus;
	struct clock *clock;
	bool level[WIRES];
	unsigned rises[WIRES];
	uint64_t log; /* hash of everything that the chip did and answered */
	void *chip;
	void *extra; /* the kind's own */
};

static inline void rig_log(struct rig *rig, uint64_t value)
{
	rig->log = (rig->log ^ value) * 0x100000001b3ull;
	rig->log ^= rig->log >> 29;
}

static inline void rig_wire_set(void *owner, unsigned pin, bool level)
{
	struct rig *rig = owner;

	assert_true(pin < WIRES);
	if (level && !rig->level[pin])
		rig->rises[pin]++;
	rig->level[pin] = level;
	rig_log(rig, pin << 1 | level);
	rig_log(rig, clock_now(rig->clock));
}

static inline struct irq_line rig_wire(struct rig *rig, unsigned pin)
{
	return (struct irq_line){.set = rig_wire_set, .owner = rig, .pin = pin};
}

struct device_kind {
	const char *name;
	size_t size;
	int (*make)(struct rig *rig); /* rig->chip is zeroed memory of `size` */
	void (*unmake)(struct rig *rig);
	void (*state)(void *chip, struct state *state);
	void (*reset)(void *chip);
	void (*stimulate)(struct rig *rig, struct random *random); /* inputs other than accesses; may be NULL */
	void (*check)(struct rig *rig);                            /* invariants; may be NULL */
	struct {
		uint64_t base;
		unsigned length;
		bool mmio;
	} span[9];
	uint64_t step; /* longest random advance of the clock, ns; 0: 10 ms */
};

static inline void rig_make(struct rig *rig, const struct device_kind *kind)
{
	memset(rig, 0, sizeof *rig);
	bus_init(&rig->bus, NULL);
	rig->clock = clock_create_manual();
	assert_non_null(rig->clock);
	rig->chip = calloc(1, kind->size);
	assert_non_null(rig->chip);
	assert_int_equal(kind->make(rig), 0);
}

static inline void rig_unmake(struct rig *rig, const struct device_kind *kind)
{
	if (kind->unmake)
		kind->unmake(rig);
	clock_destroy(rig->clock);
	free(rig->chip);
}

static inline uint8_t in8(struct rig *rig, uint16_t port)
{
	return bus_port_read(&rig->bus, port, 1);
}

static inline void out8(struct rig *rig, uint16_t port, uint8_t value)
{
	bus_port_write(&rig->bus, port, 1, value);
}

static inline uint64_t test_seed(const char *name)
{
	const char *text = getenv("RING3_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 20240229;

	printf("%s: RING3_SEED=%llu\n", name, (unsigned long long)seed);
	return seed ? seed : 1;
}

static inline unsigned test_rounds(unsigned usual)
{
	const char *text = getenv("RING3_ROUNDS");

	return text ? strtoul(text, NULL, 0) : usual;
}

/* One random event. What is answered is logged. */
static inline void rig_random_event(struct rig *rig, const struct device_kind *kind, struct random *random)
{
	unsigned spans = 0, span, size, what = random_below(random, 16);
	uint64_t address, value = random_next(random);
	static const uint8_t usual[] = {0x00, 0xff, 0x10, 0x80, 0x01, 0x20, 0xd4, 0x60, 0x34, 0xb6, 0x0a, 0x8f};

	while (spans < 9 && kind->span[spans].length)
		spans++;
	span = random_below(random, spans);
	address = kind->span[span].base + random_below(random, kind->span[span].length);
	/* Mostly bytes, as guests do; other sizes at any alignment too. */
	size = what < 12 ? 1 : 1u << random_below(random, kind->span[span].mmio ? 4 : 3);
	if (random_below(random, 2))
		value = usual[random_below(random, sizeof usual)];
	switch (random_below(random, 8)) {
	case 0:
		clock_advance(rig->clock, random_next(random) % (kind->step ? kind->step : 10000000));
		break;
	case 1:
		if (kind->stimulate)
			kind->stimulate(rig, random);
		break;
	case 2:
	case 3:
	case 4:
		if (kind->span[span].mmio)
			rig_log(rig, bus_mmio_read(&rig->bus, address, size));
		else
			rig_log(rig, bus_port_read(&rig->bus, address, size));
		break;
	default:
		if (kind->span[span].mmio)
			bus_mmio_write(&rig->bus, address, size, value);
		else
			bus_port_write(&rig->bus, address, size, value);
	}
	if (kind->check)
		kind->check(rig);
}

static inline void device_hammer(const struct device_kind *kind, unsigned rounds)
{
	struct random random = {test_seed(kind->name)};
	struct rig rig;

	rig_make(&rig, kind);
	for (unsigned i = 0; i < test_rounds(rounds); i++) {
		rig_random_event(&rig, kind, &random);
		if (kind->reset && random_below(&random, 500) == 0) {
			kind->reset(rig.chip);
			if (kind->check)
				kind->check(&rig);
		}
	}
	rig_unmake(&rig, kind);
}

/* The clock first, as a machine does. */
static inline void rig_state(struct rig *rig, const struct device_kind *kind, struct state *state)
{
	clock_state(rig->clock, state);
	kind->state(rig->chip, state);
}

static inline void device_twin(const struct device_kind *kind, unsigned trials)
{
	struct random random = {test_seed(kind->name)};

	for (unsigned trial = 0; trial < trials; trial++) {
		struct state *save = state_save_begin(), *load;
		struct rig first, second;
		const void *data;
		size_t length;

		rig_make(&first, kind);
		rig_make(&second, kind);
		for (unsigned i = random_below(&random, 300); i > 0; i--)
			rig_random_event(&first, kind, &random);
		/* The second has a past of its own. */
		for (unsigned i = random_below(&random, 30); i > 0; i--)
			rig_random_event(&second, kind, &random);
		rig_state(&first, kind, save);
		data = state_save_data(save, &length);
		if (!data)
			fail_msg("%s: %s", kind->name, state_error(save));
		load = state_load_begin(data, length);
		rig_state(&second, kind, load);
		if (state_error(load))
			fail_msg("%s: %s", kind->name, state_error(load));
		state_free(load);
		state_free(save);

		assert_memory_equal(first.level, second.level, sizeof first.level);
		first.log = second.log = 1;
		for (unsigned i = 0; i < 300; i++) {
			struct random same = random;

			rig_random_event(&first, kind, &random);
			rig_random_event(&second, kind, &same);
			if (first.log != second.log)
				fail_msg("%s: trial %u: the loaded chip differs after %u events", kind->name, trial,
				         i + 1);
		}
		rig_unmake(&first, kind);
		rig_unmake(&second, kind);
	}
}

static inline void device_corrupt(const struct device_kind *kind, unsigned trials)
{
	struct random random = {test_seed(kind->name)};

	for (unsigned trial = 0; trial < trials; trial++) {
		struct state *save = state_save_begin(), *load;
		struct rig first, second;
		const void *data;
		uint8_t *copy;
		size_t length;

		rig_make(&first, kind);
		rig_make(&second, kind);
		for (unsigned i = random_below(&random, 100); i > 0; i--)
			rig_random_event(&first, kind, &random);
		kind->state(first.chip, save);
		data = state_save_data(save, &length);
		if (!data)
			fail_msg("%s: %s", kind->name, state_error(save));
		copy = malloc(length);
		assert_non_null(copy);
		memcpy(copy, data, length);
		for (unsigned i = 1 + random_below(&random, 8); i > 0; i--)
			copy[random_next(&random) % length] ^=
			    random_below(&random, 2) ? 0xff : 1u << random_below(&random, 8);
		load = state_load_begin(copy, length);
		kind->state(second.chip, load);
		if (kind->check)
			kind->check(&second);
		for (unsigned i = 0; i < 60; i++)
			rig_random_event(&second, kind, &random);
		state_free(load);
		state_free(save);
		free(copy);
		rig_unmake(&first, kind);
		rig_unmake(&second, kind);
	}
}

static inline void device_reset(const struct device_kind *kind, unsigned trials)
{
	struct random random = {test_seed(kind->name)};
	struct device_kind quiet = *kind;

	quiet.stimulate = NULL; /* lines and buttons outlive a reset */
	for (unsigned trial = 0; trial < trials; trial++) {
		struct state *old = state_save_begin(), *new = state_save_begin();
		struct rig first, second;
		const void *old_data, *new_data;
		size_t old_length, new_length;

		rig_make(&first, &quiet);
		rig_make(&second, &quiet);
		for (unsigned i = random_below(&random, 300); i > 0; i--)
			rig_random_event(&first, &quiet, &random);
		clock_advance(second.clock, clock_now(first.clock));
		kind->reset(first.chip);
		kind->reset(second.chip);
		kind->state(first.chip, old);
		kind->state(second.chip, new);
		old_data = state_save_data(old, &old_length);
		new_data = state_save_data(new, &new_length);
		assert_int_equal(old_length, new_length);
		assert_memory_equal(old_data, new_data, new_length);
		assert_memory_equal(first.level, second.level, sizeof first.level);
		state_free(old);
		state_free(new);
		rig_unmake(&first, &quiet);
		rig_unmake(&second, &quiet);
	}
}

/* Defines the three tests of a kind. */
#define DEVICE_TESTS(kind)                                                                                             \
	static void test_hammer(void **context)                                                                        \
	{                                                                                                              \
		device_hammer(&(kind), 100000);                                                                        \
	}                                                                                                              \
	static void test_twin(void **context)                                                                          \
	{                                                                                                              \
		device_twin(&(kind), 200);                                                                             \
	}                                                                                                              \
	static void test_corrupt(void **context)                                                                       \
	{                                                                                                              \
		device_corrupt(&(kind), 500);                                                                          \
	}
