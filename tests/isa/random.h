/*
 * The random numbers of the tests against the silicon: small, fast, the same everywhere. One case is one 64-bit seed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct random {
	uint64_t state;
};

/* Mixes all bits of `value` (the finalizer of splitmix64). */
static inline uint64_t random_mix(uint64_t value)
{
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

static inline uint64_t random_u64(struct random *random)
{
	random->state += 0x9e3779b97f4a7c15ull;
	return random_mix(random->state);
}

/* Below `limit`, which is not 0. */
static inline uint32_t random_below(struct random *random, uint32_t limit)
{
	return (uint32_t)(((random_u64(random) >> 32) * limit) >> 32);
}

static inline bool random_percent(struct random *random, unsigned percent)
{
	return random_below(random, 100) < percent;
}

static inline void random_bytes(struct random *random, void *buffer, size_t length)
{
	uint8_t *bytes = buffer;

	for (size_t i = 0; i < length; i += 8) {
		uint64_t value = random_u64(random);

		for (size_t j = 0; j < 8 && i + j < length; j++)
			bytes[i + j] = (uint8_t)(value >> 8 * j);
	}
}
