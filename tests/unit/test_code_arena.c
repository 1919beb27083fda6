/* Generated code on huge pages: it runs, is patched and given back as before, whether the host can or not. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "host/code_arena.h"
#include "host/huge_pages.h"

#define SIZE      (3 * HUGE_PAGE + 12288)
#define STEP      4096
#define FUNCTIONS (2 * HUGE_PAGE / STEP)

/* mov eax, value; ret */
static void put_function(struct code_arena *arena, size_t n, uint32_t value)
{
	uint8_t *at = arena->write + n * STEP;

	at[0] = 0xb8;
	memcpy(at + 1, &value, sizeof(value));
	at[5] = 0xc3;
}

static uint32_t call(const struct code_arena *arena, size_t n)
{
	uint32_t (*function)(void);
	const uint8_t *at = arena->execute + n * STEP;

	memcpy(&function, &at, sizeof(function));
	return function();
}

struct runner {
	pthread_t thread;
	const struct code_arena *arena;
	_Atomic bool stop;
	_Atomic unsigned rounds, wrong;
};

/* Executes, and writes beside the code, all the time. */
static void *run(void *argument)
{
	struct runner *runner = argument;

	while (!atomic_load(&runner->stop)) {
		for (size_t n = 0; n < FUNCTIONS; n++) {
			atomic_fetch_add(&runner->wrong, call(runner->arena, n) != 7 * n);
			runner->arena->write[n * STEP + 16]++;
		}
		atomic_fetch_add(&runner->rounds, 1);
	}
	return NULL;
}

static void fill(struct code_arena *arena)
{
	for (size_t n = 0; n < FUNCTIONS; n++)
		put_function(arena, n, (uint32_t)(7 * n));
	code_arena_publish();
}

/* What is there of the arena, in pages. */
static size_t resident(const struct code_arena *arena)
{
	static unsigned char page[SIZE / 4096];
	size_t sum = 0;

	assert_int_equal(mincore(arena->write, arena->size, page), 0);
	for (size_t n = 0; n < arena->size / 4096; n++)
		sum += page[n] & 1;
	return sum;
}

static void test_runs_on(void **unused)
{
	struct code_arena arena;
	struct runner runner = {.arena = &arena};

	assert_int_equal(code_arena_create(&arena, SIZE), 0);
	assert_non_null(arena.huge);
	assert_int_equal((uintptr_t)arena.write % HUGE_PAGE, 0);
	assert_int_equal((uintptr_t)arena.execute % HUGE_PAGE, 0);
	/* Twice, since memory that was given back becomes small pages again. */
	for (unsigned round = 0; round < 2; round++) {
		fill(&arena);
		atomic_store(&runner.stop, false);
		atomic_store(&runner.rounds, 0);
		assert_int_equal(pthread_create(&runner.thread, NULL, run, &runner), 0);
		code_arena_settle(&arena, HUGE_PAGE - 1);
		code_arena_settle(&arena, 2 * HUGE_PAGE);
		huge_pages_wait(arena.huge);
		size_t huge = code_arena_huge(&arena);
		assert_true(huge == 0 || huge == HUGE_PAGE || huge == 2 * HUGE_PAGE);
		print_message("%zu KiB on huge pages\n", huge >> 10);
		for (unsigned before = atomic_load(&runner.rounds); atomic_load(&runner.rounds) - before < 3;)
			usleep(1000);
		atomic_store(&runner.stop, true);
		pthread_join(runner.thread, NULL);
		assert_int_equal(atomic_load(&runner.wrong), 0);
		/* The views are the same memory still. */
		put_function(&arena, 3, 1234);
		code_arena_publish();
		assert_int_equal(call(&arena, 3), 1234);
		assert_int_equal(resident(&arena), FUNCTIONS);
		code_arena_give_back(&arena, STEP - 1);
		assert_int_equal(code_arena_huge(&arena), 0);
		assert_int_equal(resident(&arena), 1);
		assert_int_equal(arena.write[5], 0xc3);
		for (size_t n = STEP; n < arena.size; n += STEP)
			assert_int_equal(arena.execute[n], 0);
		code_arena_give_back(&arena, STEP);
	}
	code_arena_destroy(&arena);
	code_arena_destroy(&arena);
}

/* A piece that has little is left alone: it would need more memory. Nor is there anything behind the last whole one. */
static void test_little(void **unused)
{
	struct code_arena arena;

	assert_int_equal(code_arena_create(&arena, SIZE), 0);
	memset(arena.write + HUGE_PAGE, 1, HUGE_PAGE / 2);
	memset(arena.write + 3 * HUGE_PAGE, 1, 4096);
	code_arena_settle(&arena, SIZE + HUGE_PAGE);
	huge_pages_wait(arena.huge);
	assert_int_equal(code_arena_huge(&arena), 0);
	assert_int_equal(resident(&arena), HUGE_PAGE / 4096 / 2 + 1);
	code_arena_destroy(&arena);
}

/* Stopped while something is under way, again and again. */
static void test_stop(void **unused)
{
	struct code_arena arena;

	assert_int_equal(code_arena_create(&arena, SIZE), 0);
	for (unsigned n = 0; n < 20; n++) {
		fill(&arena);
		code_arena_settle(&arena, (1 + n % 3) * HUGE_PAGE);
		code_arena_give_back(&arena, 0);
		assert_int_equal(code_arena_huge(&arena), 0);
		assert_int_equal(resident(&arena), 0);
	}
	fill(&arena);
	code_arena_settle(&arena, 2 * HUGE_PAGE);
	code_arena_destroy(&arena);
}

static void test_small(void **unused)
{
	struct code_arena arena;

	assert_int_equal(code_arena_create(&arena, 100), 0);
	assert_null(arena.huge);
	assert_int_equal(arena.size, 4096);
	put_function(&arena, 0, 5);
	code_arena_publish();
	code_arena_settle(&arena, HUGE_PAGE);
	assert_int_equal(call(&arena, 0), 5);
	assert_int_equal(code_arena_huge(&arena), 0);
	code_arena_destroy(&arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_runs_on),
	    cmocka_unit_test(test_little),
	    cmocka_unit_test(test_stop),
	    cmocka_unit_test(test_small),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
