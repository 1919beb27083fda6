/* What processors leave for one another: found by its key, replaced, bounded, by several threads at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engines/translator/depot.h"

#define SIZE    (512u << 10)
#define ENTRY   1000u
#define THREADS 4
#define ROUNDS  20000u

static struct depot_key key_of(uint64_t n)
{
	return (struct depot_key){
	    .physical = 0x1000 + n * 16, .rip = 0xffffffff81000000 + n * 16, .length = 16, .mode = 2};
}

static void put(struct depot *depot, const struct depot_key *key, size_t size, uint8_t value)
{
	uint8_t *room = depot_add(depot, key, size);

	assert_non_null(room);
	assert_int_equal((uintptr_t)room % 16, 0);
	memset(room, value, size);
	depot_done(depot, key);
}

/* The value, or -1: there is nothing. */
static int get(struct depot *depot, const struct depot_key *key, size_t size)
{
	const uint8_t *entry = depot_find(depot, key);

	if (!entry)
		return -1;
	int value = entry[0];
	for (size_t n = 1; n < size; n++)
		value = entry[n] == value ? value : -2;
	depot_done(depot, key);
	return value;
}

static void test_keys(void **unused)
{
	struct depot *depot = depot_create(SIZE);
	struct depot_key key = key_of(1), other;

	assert_non_null(depot);
	assert_int_equal(get(depot, &key, ENTRY), -1);
	put(depot, &key, ENTRY, 7);
	assert_int_equal(get(depot, &key, ENTRY), 7);
	/* Everything in it counts. */
#define DIFFERS(field)                                                                                                 \
	do {                                                                                                           \
		other = key;                                                                                           \
		other.field ^= 1;                                                                                      \
		assert_int_equal(get(depot, &other, ENTRY), -1);                                                       \
	} while (0)
	DIFFERS(physical);
	DIFFERS(rip);
	DIFFERS(generation);
	DIFFERS(mode);
	DIFFERS(length);
	DIFFERS(view);
	DIFFERS(floating);
	DIFFERS(loose);
#undef DIFFERS
	/* At another address, or in another view, it is another one; of another generation it takes its place. */
	other = key;
	other.rip += 0x1000;
	put(depot, &other, ENTRY, 8);
	assert_int_equal(get(depot, &key, ENTRY), 7);
	other.view = 1;
	put(depot, &other, ENTRY, 9);
	assert_int_equal(get(depot, &other, ENTRY), 9);
	other = key;
	other.generation++;
	put(depot, &other, ENTRY / 2, 10);
	assert_int_equal(get(depot, &other, ENTRY / 2), 10);
	assert_int_equal(get(depot, &key, ENTRY), -1);
	depot_empty(depot);
	assert_int_equal(get(depot, &other, ENTRY / 2), -1);
	put(depot, &key, ENTRY, 11);
	assert_int_equal(get(depot, &key, ENTRY), 11);
	depot_remove_user(depot);
}

/* Ten times as much as there is room for: what is found is whole, and new. */
static void test_bounded(void **unused)
{
	struct depot *depot = depot_create(SIZE);
	uint64_t count = 10 * SIZE / ENTRY, found = 0;

	assert_non_null(depot);
	for (uint64_t n = 0; n < count; n++) {
		struct depot_key key = key_of(n);
		size_t size = ENTRY / 2 + n * 37 % ENTRY;

		put(depot, &key, size, (uint8_t)n);
		assert_int_equal(get(depot, &key, size), (uint8_t)n);
	}
	for (uint64_t n = 0; n < count; n++) {
		struct depot_key key = key_of(n);
		int value = get(depot, &key, ENTRY / 2 + n * 37 % ENTRY);

		assert_true(value == -1 || value == (uint8_t)n);
		assert_true(value == -1 || n > count / 2);
		found += value >= 0;
	}
	assert_true(found > SIZE / ENTRY / 2 && found < SIZE / ENTRY * 2);
	assert_null(depot_add(depot, &(struct depot_key){0}, SIZE));
	depot_remove_user(depot);
}

static void test_sizes(void **unused)
{
	assert_int_equal(depot_size(256u << 20, 1), 0);
	assert_int_equal(depot_size(512u << 10, 2), 0);
	assert_int_equal(depot_size(256u << 20, 2), 32u << 20);
	assert_true(depot_size(256u << 20, 3) + 3 * depot_rest_for_each(256u << 20, 3) <= 256u << 20);
	for (uint64_t size = 256u << 10; size <= 128u << 20; size *= 2) {
		struct depot *depot = depot_create(size);
		struct depot_key key = key_of(size);

		assert_non_null(depot);
		depot_add_user(depot);
		depot_remove_user(depot);
		put(depot, &key, ENTRY, 1);
		assert_int_equal(get(depot, &key, ENTRY), 1);
		depot_remove_user(depot);
	}
}

/* Given back when all have been idle for long, if it is much. */
static void test_rest(void **unused)
{
	struct depot *depot = depot_create(16u << 20);
	struct depot_key key = key_of(0);

	assert_non_null(depot);
	put(depot, &key, ENTRY, 1);
	depot_rest(depot, 0, 2, true);
	depot_rest(depot, 1, 2, true);
	assert_int_equal(get(depot, &key, ENTRY), 1); /* not worth it */
	for (uint64_t n = 1; n < 3000; n++) {
		struct depot_key next = key_of(n);

		put(depot, &next, ENTRY, 1);
	}
	depot_rest(depot, 1, 2, false);
	depot_rest(depot, 0, 2, true);
	assert_int_equal(get(depot, &key, ENTRY), 1); /* one is busy */
	depot_rest(depot, 1, 2, true);
	assert_int_equal(get(depot, &key, ENTRY), -1);
	depot_remove_user(depot);
}

struct worker {
	struct depot *depot;
	unsigned seed;
	uint64_t torn, found;
};

static void *work(void *argument)
{
	struct worker *worker = argument;

	for (unsigned n = 0; n < ROUNDS; n++) {
		worker->seed = worker->seed * 1103515245 + 12345;
		uint64_t number = worker->seed >> 16 & 1023;
		struct depot_key key = key_of(number);
		size_t size = ENTRY / 2 + number;
		int value = get(worker->depot, &key, size);

		worker->torn += value != -1 && value != (uint8_t)number;
		worker->found += value >= 0;
		if (value >= 0)
			continue;
		uint8_t *room = depot_add(worker->depot, &key, size);
		if (room) {
			memset(room, (uint8_t)number, size);
			depot_done(worker->depot, &key);
		}
		if (n % 4096 == 4095)
			depot_empty(worker->depot);
	}
	return NULL;
}

static void test_threads(void **unused)
{
	struct depot *depot = depot_create(SIZE);
	pthread_t thread[THREADS];
	struct worker worker[THREADS];

	assert_non_null(depot);
	for (unsigned n = 0; n < THREADS; n++) {
		worker[n] = (struct worker){.depot = depot, .seed = n + 1};
		assert_int_equal(pthread_create(&thread[n], NULL, work, &worker[n]), 0);
	}
	for (unsigned n = 0; n < THREADS; n++) {
		pthread_join(thread[n], NULL);
		assert_int_equal(worker[n].torn, 0);
		assert_true(worker[n].found > 0);
	}
	depot_remove_user(depot);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_keys), cmocka_unit_test(test_bounded), cmocka_unit_test(test_sizes),
	    cmocka_unit_test(test_rest), cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests_name("depot", tests, NULL, NULL);
}
