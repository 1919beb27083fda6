/* Saved state: round trips, misuse, and hostile streams (every prefix, every bit flipped, random damage with a right
 * checksum). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "machine/state.h"

struct chip {
	bool flag;
	uint8_t small;
	uint16_t half;
	uint32_t word;
	uint64_t big;
	uint8_t bytes[5];
	uint16_t halves[3];
	uint32_t words[4];
	uint64_t bigs[2];
};

static void chip_state(struct chip *chip, struct state *state, unsigned instance)
{
	state_begin(state, "chip", instance, 2);
	state_bool(state, "flag", &chip->flag);
	state_u8(state, "small", &chip->small);
	state_u16(state, "half", &chip->half);
	state_u32(state, "word", &chip->word);
	state_u64(state, "big", &chip->big);
	state_u8_array(state, "bytes", chip->bytes, 5);
	state_u16_array(state, "halves", chip->halves, 3);
	state_u32_array(state, "words", chip->words, 4);
	state_u64_array(state, "bigs", chip->bigs, 2);
	if (chip->small > 100)
		state_fail(state, "small out of range");
	state_end(state);
}

static const struct chip sample = {
    true, 42, 0xbeef, 0xdeadbeef, 0x123456789abcdef0, {1, 2, 3, 4, 5}, {6, 7, 8}, {9, 10, 11, 12}, {13, 14}};

/* Two chips; the caller frees. */
static uint8_t *save_sample(size_t *length)
{
	struct state *state = state_save_begin();
	struct chip chip = sample;

	chip_state(&chip, state, 0);
	chip.word = 77;
	chip_state(&chip, state, 1);
	const void *data = state_save_data(state, length);
	assert_non_null(data);
	uint8_t *copy = malloc(*length);
	memcpy(copy, data, *length);
	state_free(state);
	return copy;
}

static void test_round_trip(void **unused)
{
	size_t length;
	uint8_t *data = save_sample(&length);
	struct state *state = state_load_begin(data, length);
	struct chip chip = {0};

	assert_true(state_loading(state));
	assert_true(state_has(state, "chip", 1));
	assert_false(state_has(state, "chip", 2));
	/* Any order of sections. */
	chip_state(&chip, state, 1);
	assert_null(state_error(state));
	assert_int_equal(chip.word, 77);
	chip_state(&chip, state, 0);
	assert_null(state_error(state));
	assert_memory_equal(&chip, &sample, sizeof(chip));
	state_free(state);
	free(data);
}

static void test_errors_stick(void **unused)
{
	size_t length;
	uint8_t *data = save_sample(&length);
	struct state *state = state_load_begin(data, length);
	uint32_t word = 5;
	uint8_t byte = 6;

	assert_int_equal(state_begin(state, "chip", 0, 2), 2);
	state_u32(state, "absent", &word);
	assert_string_equal(state_error(state), "chip.0: field absent missing");
	state_u8(state, "small", &byte);
	assert_int_equal(word, 5);
	assert_int_equal(byte, 6);
	state_end(state);
	assert_int_equal(state_begin(state, "chip", 1, 2), 0);
	state_fail(state, "later");
	assert_string_equal(state_error(state), "chip.0: field absent missing");
	state_free(state);

	state = state_load_begin(data, length);
	state_begin(state, "chip", 0, 2);
	state_u8(state, "word", &byte); /* another size */
	assert_string_equal(state_error(state), "chip.0: field word has another type or size");
	state_free(state);

	state = state_load_begin(data, length);
	assert_int_equal(state_begin(state, "chip", 0, 1), 0);
	assert_string_equal(state_error(state), "chip.0: saved as version 2, known is 1");
	state_free(state);

	state = state_load_begin(data, length);
	assert_int_equal(state_begin(state, "chop", 0, 1), 0);
	assert_string_equal(state_error(state), "chop.0: section missing");
	state_free(state);
	free(data);
}

/* An older stream has fields that nobody asks for any more, and its version tells which are there. */
static void test_versions(void **unused)
{
	struct state *save = state_save_begin();
	uint32_t gone = 1, kept = 2, loaded = 0;
	size_t length;

	assert_int_equal(state_begin(save, "timer", 3, 1), 1);
	state_u32(save, "gone", &gone);
	state_u32(save, "kept", &kept);
	state_end(save);
	const void *data = state_save_data(save, &length);
	struct state *load = state_load_begin(data, length);
	assert_int_equal(state_begin(load, "timer", 3, 7), 1);
	state_u32(load, "kept", &loaded);
	state_end(load);
	assert_null(state_error(load));
	assert_int_equal(loaded, 2);
	state_free(load);
	state_free(save);
}

static void test_misuse(void **unused)
{
	uint32_t word = 1;
	size_t length;
	struct state *state = state_save_begin();

	state_u32(state, "word", &word);
	assert_string_equal(state_error(state), "field word outside of a section");
	assert_null(state_save_data(state, &length));
	assert_int_equal(length, 0);
	state_free(state);

	state = state_save_begin();
	state_begin(state, "a", 0, 1);
	state_begin(state, "b", 0, 1);
	assert_string_equal(state_error(state), "a.0: section b begins inside");
	state_free(state);

	state = state_save_begin();
	state_begin(state, "a", 0, 1);
	state_u32(state, "word", &word);
	state_u32(state, "word", &word);
	assert_string_equal(state_error(state), "a.0: field word saved twice");
	state_free(state);

	state = state_save_begin();
	state_begin(state, "a", 0, 1);
	state_end(state);
	state_begin(state, "a", 0, 1);
	assert_string_equal(state_error(state), "a.0: section saved twice");
	state_free(state);
}

/* Many sections are found again in any order. */
static void test_many_sections(void **unused)
{
	enum { COUNT = 20000 };
	struct state *save = state_save_begin();
	size_t length;

	for (uint32_t i = 0; i < COUNT; i++) {
		state_begin(save, i & 1 ? "odd" : "even", i / 2, 1);
		state_u32(save, "value", &i);
		state_end(save);
	}
	const void *data = state_save_data(save, &length);
	struct state *load = state_load_begin(data, length);
	for (uint32_t i = COUNT; i-- > 0;) {
		uint32_t value = 0;
		state_begin(load, i & 1 ? "odd" : "even", i / 2, 1);
		state_u32(load, "value", &value);
		state_end(load);
		assert_int_equal(value, i);
	}
	assert_false(state_has(load, "odd", COUNT));
	assert_null(state_error(load));
	state_free(load);
	state_free(save);
}

static void test_large(void **unused)
{
	size_t count = 3 << 20, length;
	uint64_t *values = calloc(count, sizeof(*values)), *loaded = calloc(count, sizeof(*values));
	struct state *save = state_save_begin();

	for (size_t i = 0; i < count; i++)
		values[i] = i * 0x9e3779b97f4a7c15;
	state_begin(save, "memory", 0, 1);
	state_u64_array(save, "words", values, count);
	state_u64_array(save, "none", NULL, 0);
	state_end(save);
	const void *data = state_save_data(save, &length);
	assert_non_null(data);
	struct state *load = state_load_begin(data, length);
	state_begin(load, "memory", 0, 1);
	state_u64_array(load, "words", loaded, count);
	state_u64_array(load, "none", NULL, 0);
	state_end(load);
	assert_null(state_error(load));
	assert_memory_equal(values, loaded, count * sizeof(*values));
	state_free(load);
	state_free(save);
	free(values);
	free(loaded);
}

/* A load that must be refused, without touching what it loads into. The bytes are in a block of their own size, for
 * ASan. */
static void refuse(const uint8_t *data, size_t length)
{
	uint8_t *copy = malloc(length ? length : 1);
	struct chip chip = {0}, zero = {0};

	memcpy(copy, data, length);
	struct state *state = state_load_begin(copy, length);
	chip_state(&chip, state, 0);
	assert_non_null(state_error(state));
	assert_memory_equal(&chip, &zero, sizeof(chip));
	state_free(state);
	free(copy);
}

static void test_prefixes_and_flips(void **unused)
{
	size_t length;
	uint8_t *data = save_sample(&length);

	for (size_t i = 0; i < length; i++)
		refuse(data, i);
	for (size_t bit = 0; bit < length * 8; bit++) {
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		refuse(data, length);
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	free(data);
}

/* The same sum as state.c's, written the slow way: damage that gets past the checksum must meet the bounds. */
static void fix_checksum(uint8_t *data, size_t length)
{
	static const uint64_t multiplier[4] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0xd6e8feb86659fd93,
	                                       0xa0761d6478bd642f};
	size_t n = length - 8, words = n / 32 * 32;
	uint64_t lane[4] = {n, 1, 2, 3}, sum = 0, word;

	for (size_t at = 0; at < n; at += at < words ? 8 : 1) {
		unsigned i = at < words ? at / 8 & 3 : at & 3;
		word = data[at];
		if (at < words)
			memcpy(&word, data + at, 8);
		lane[i] = (lane[i] ^ word) * multiplier[i];
		lane[i] = lane[i] << 29 | lane[i] >> 35;
	}
	for (unsigned i = 0; i < 4; i++) {
		sum = (sum ^ lane[i]) * multiplier[i];
		sum ^= sum >> 32;
	}
	memcpy(data + n, &sum, 8);
}

static void test_damage_past_the_checksum(void **unused)
{
	size_t length;
	uint8_t *data = save_sample(&length);
	unsigned seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : 20240607, accepted = 0;

	fix_checksum(data, length);
	struct state *state = state_load_begin(data, length);
	assert_null(state_error(state));
	state_free(state);
	print_message("seed %u\n", seed);
	srand(seed);
	for (unsigned round = 0; round < 200000; round++) {
		size_t cut = rand() % 4 ? length : 25 + (size_t)rand() % (length - 25);
		uint8_t *copy = malloc(cut);
		struct chip chip = {0};
		memcpy(copy, data, cut);
		for (int flips = rand() % 4; flips >= 0; flips--)
			copy[12 + (size_t)rand() % (cut - 12)] =
			    rand() % 3 ? (uint8_t)rand() : (uint8_t) - (rand() & 1);
		copy[cut - 9] = 'E';
		fix_checksum(copy, cut);
		state = state_load_begin(copy, cut);
		state_has(state, "chip", 9);
		chip_state(&chip, state, 1);
		chip_state(&chip, state, 0);
		accepted += !state_error(state);
		assert_true((*(uint8_t *)&chip.flag) <= 1);
		state_free(state);
		free(copy);
	}
	print_message("%u of 200000 accepted (damage in values)\n", accepted);
	assert_true(accepted > 0);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_errors_stick),
	    cmocka_unit_test(test_versions),
	    cmocka_unit_test(test_misuse),
	    cmocka_unit_test(test_large),
	    cmocka_unit_test(test_many_sections),
	    cmocka_unit_test(test_prefixes_and_flips),
	    cmocka_unit_test(test_damage_past_the_checksum),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
