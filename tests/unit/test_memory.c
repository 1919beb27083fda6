/* Guest-physical memory: its map, access by devices, code watch and dirty log. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "memory/memory.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static void test_sizes(void **state)
{
	struct memory memory;

	assert_int_equal(memory_create(&memory, 0), -EINVAL);
	assert_int_equal(memory_create(&memory, MIB - 4096), -EINVAL);
	assert_int_equal(memory_create(&memory, MIB + 1), -EINVAL);
	assert_int_equal(memory_create(&memory, MIB), 0);
	assert_int_equal(memory.low_size, MIB);
	assert_null(memory.high);
	memory_destroy(&memory);
}

static void test_map(void **state)
{
	struct memory memory;

	assert_int_equal(memory_create(&memory, 4 * GIB), 0);
	assert_int_equal(memory.low_size, 3 * GIB);
	assert_int_equal(memory.high_size, GIB);
	assert_non_null(memory_pointer(&memory, 0, MEMORY_VGA_HOLE));
	assert_null(memory_pointer(&memory, 0, MEMORY_VGA_HOLE + 1));
	assert_null(memory_pointer(&memory, MEMORY_VGA_HOLE, 1));
	assert_null(memory_pointer(&memory, MEMORY_VGA_END - 1, 1));
	assert_non_null(memory_pointer(&memory, MEMORY_VGA_END, 1));
	assert_non_null(memory_pointer(&memory, 3 * GIB - 1, 1));
	assert_null(memory_pointer(&memory, 3 * GIB - 1, 2));
	assert_null(memory_pointer(&memory, 3 * GIB, 1));
	assert_null(memory_pointer(&memory, 4 * GIB - 1, 1));
	assert_ptr_equal(memory_pointer(&memory, 4 * GIB, 4096), memory.high);
	assert_non_null(memory_pointer(&memory, 5 * GIB - 1, 1));
	assert_null(memory_pointer(&memory, 5 * GIB - 1, 2));
	assert_null(memory_pointer(&memory, ~0ull, 1));
	assert_null(memory_pointer(&memory, 4 * GIB, ~0ull));
	assert_null(memory_pointer(&memory, 0x1000, ~0ull - 0x800));
	assert_true(memory_is_ram(&memory, 0x9ffff));
	assert_false(memory_is_ram(&memory, 0xa0000));
	assert_true(memory_is_ram(&memory, 0xc0000));
	assert_false(memory_is_ram(&memory, 3 * GIB));
	assert_true(memory_is_ram(&memory, 4 * GIB));
	assert_false(memory_is_ram(&memory, 5 * GIB));
	memory_destroy(&memory);
}

static void test_copies(void **state)
{
	struct memory memory;
	uint8_t buffer[16] = "abcdefghijklmno", back[16] = {0};

	assert_int_equal(memory_create(&memory, 2 * MIB), 0);
	assert_int_equal(memory_write(&memory, 0x1ff8, buffer, 16), 0);
	assert_int_equal(memory_read(&memory, 0x1ff8, back, 16), 0);
	assert_memory_equal(buffer, back, 16);
	assert_int_equal(memory_write(&memory, 2 * MIB - 8, buffer, 16), -EFAULT);
	assert_int_equal(memory_read(&memory, 2 * MIB - 8, back, 8), 0);
	assert_int_equal(back[0], 0);
	assert_int_equal(memory_write(&memory, 0x9fff8, buffer, 16), -EFAULT);
	assert_int_equal(memory_fill(&memory, 0x3000, 0x5a, 8192), 0);
	assert_int_equal(memory_read(&memory, 0x4fff, back, 1), 0);
	assert_int_equal(back[0], 0x5a);
	assert_int_equal(memory_read(&memory, ~0ull, back, 0), 0);
	memory_destroy(&memory);
}

static void test_code_watch(void **state)
{
	struct memory memory;
	uint8_t byte = 1;

	assert_int_equal(memory_create(&memory, 2 * MIB), 0);
	uint32_t generation = memory_watch_code(&memory, 0x5123);
	assert_int_equal(generation, memory_code_generation(&memory, 0x5fff));
	assert_true(memory.page_flags[5] & PAGE_CODE);
	memory_write(&memory, 0x4fff, &byte, 1);
	memory_write(&memory, 0x6000, &byte, 1);
	assert_int_equal(generation, memory_code_generation(&memory, 0x5000));
	uint16_t word = 0;
	memory_write(&memory, 0x4fff, &word, 2);
	assert_int_not_equal(generation, memory_code_generation(&memory, 0x5000));
	assert_false(memory.page_flags[5] & PAGE_CODE);
	generation = memory_code_generation(&memory, 0x5000);
	memory_write(&memory, 0x5000, &byte, 1);
	assert_int_equal(generation, memory_code_generation(&memory, 0x5000)); /* not watched any more */
	memory_destroy(&memory);
}

static void test_dirty_log(void **state)
{
	struct memory memory;
	uint8_t byte = 1;

	assert_int_equal(memory_create(&memory, 2 * MIB), 0);
	uint64_t bitmap[8];
	assert_int_equal(memory.page_count, 512);
	uint32_t generation = memory_watch_code(&memory, 0x7000);
	assert_int_equal(memory_dirty_start(&memory), 0);
	memory_write(&memory, 0x1000, &byte, 1);
	memory_write(&memory, 0x1001, &byte, 1);
	memory_write(&memory, 0x7000, &byte, 1);
	memory_write(&memory, 2 * MIB - 1, &byte, 1);
	memory_dirty_collect(&memory, bitmap);
	assert_int_equal(bitmap[0], 1u << 1 | 1u << 7);
	assert_int_equal(bitmap[7], 1ull << 63);
	assert_int_not_equal(generation, memory_code_generation(&memory, 0x7000));
	memory_dirty_collect(&memory, bitmap);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(bitmap[i], 0);
	memory_write(&memory, 0x1000, &byte, 1);
	memory_dirty_collect(&memory, bitmap);
	assert_int_equal(bitmap[0], 1u << 1);
	memory_dirty_stop(&memory);
	assert_int_equal(memory.page_flags[3], 0);
	memory_destroy(&memory);
}

#define ROUNDS 20000

struct race {
	struct memory memory;
	_Atomic bool stop;
};

/* Increments a byte of a page as an engine does: store first, look at the flags after. */
static void *race_writer(void *argument)
{
	struct race *race = argument;
	_Atomic uint8_t *byte = memory_pointer(&race->memory, 0x8000, 1);

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint8_t old = atomic_load_explicit(byte, memory_order_relaxed);
		atomic_store_explicit(byte, (uint8_t)(old + 1), memory_order_relaxed);
		memory_written(&race->memory, 0x8000, 1);
	}
	race->stop = true;
	return NULL;
}

/* Decoded code is never stale once the writer is done: whatever was seen before its last write has another generation.
 */
static void test_race(void **state)
{
	struct race race = {.stop = false};
	pthread_t thread;

	assert_int_equal(memory_create(&race.memory, MIB), 0);
	const _Atomic uint8_t *byte = memory_pointer(&race.memory, 0x8000, 1);
	assert_int_equal(pthread_create(&thread, NULL, race_writer, &race), 0);
	uint32_t generation;
	uint8_t seen;
	do {
		generation = memory_watch_code(&race.memory, 0x8000);
		seen = atomic_load_explicit(byte, memory_order_relaxed);
	} while (!race.stop);
	pthread_join(thread, NULL);
	assert_true(seen == *byte || generation != memory_code_generation(&race.memory, 0x8000));
	memory_destroy(&race.memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_sizes),      cmocka_unit_test(test_map),       cmocka_unit_test(test_copies),
	    cmocka_unit_test(test_code_watch), cmocka_unit_test(test_dirty_log), cmocka_unit_test(test_race),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
