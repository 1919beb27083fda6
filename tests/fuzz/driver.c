/*
 * Runs a fuzz target without libFuzzer: every gcc build has its short tests this way. (tools/fuzz links the same
 * targets with libFuzzer.)
 *
 *	fuzz_NAME [--runs N] [--seconds N] [--seed N] [--only N] [--length N] [FILE...]
 *
 * Files: each is one input. Otherwise N generated inputs (1000), the n-th of which depends on nothing but the seed and
 * n: when one crashes, its number is printed, and --seed and --only run it alone.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
	uint64_t seed, current;
	bool running;
} progress;

/* xorshift64*, after a mixing of seed and number. */
static uint64_t generator;

static uint64_t next(void)
{
	generator ^= generator >> 12;
	generator ^= generator << 25;
	generator ^= generator >> 27;
	return generator * 0x2545f4914f6cdd1dull;
}

static void seed_generator(uint64_t seed, uint64_t number)
{
	generator = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (number + 1) * 0xbf58476d1ce4e5b9ull;
	if (!generator)
		generator = 1;
	for (unsigned i = 0; i < 4; i++)
		next();
}

/* Lengths of all magnitudes, and bytes with structure: random, small, corner values, runs, and copies of what came
 * before. */
static size_t generate(uint8_t *data, size_t limit)
{
	static const uint8_t corner[] = {0x00, 0x01, 0x7f, 0x80, 0xff, 0xfe, 0x10, 0x20, 0x40, 0x0f};
	size_t size = next() % limit + 1, at = 0;

	if (next() % 4)
		size = size % 256 + 1;
	if (size > limit)
		size = limit;
	while (at < size) {
		size_t run = next() % 16 + 1;
		unsigned kind = next() % 8;
		size_t from = at ? next() % at : 0;
		uint8_t same = next();

		for (; run > 0 && at < size; run--, at++) {
			switch (kind) {
			case 0:
				data[at] = corner[next() % sizeof corner];
				break;
			case 1:
				data[at] = next() % 8;
				break;
			case 2:
				data[at] = same;
				break;
			case 3:
				data[at] = from < at ? data[from++] : same;
				break;
			default:
				data[at] = next() >> 32;
			}
		}
	}
	return size;
}

/* Says which input it was; the default action follows. */
static void died(int number)
{
	char text[160];
	int length = snprintf(text, sizeof text, "fuzz driver: signal %d in input %llu: --seed %llu --only %llu\n",
	                      number, (unsigned long long)progress.current, (unsigned long long)progress.seed,
	                      (unsigned long long)progress.current);

	if (progress.running && length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0) {
		/* Nothing to be done. */
	}
	raise(number); /* SA_RESETHAND has restored the default */
}

static void watch_signals(void)
{
	static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM, SIGTERM};
	struct sigaction action = {.sa_handler = died, .sa_flags = (int)SA_RESETHAND | SA_NODEFER};

	for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
		sigaction(signals[i], &action, NULL);
}

static int run_file(const char *name)
{
	FILE *file = fopen(name, "rb");
	uint8_t *data = NULL;
	long size = -1;

	if (file && fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0)
		data = malloc((size_t)size + 1);
	if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) {
		fprintf(stderr, "fuzz driver: %s: %s\n", name, strerror(errno));
		free(data);
		if (file)
			fclose(file);
		return 1;
	}
	fclose(file);
	LLVMFuzzerTestOneInput(data, (size_t)size);
	free(data);
	return 0;
}

/* A buffer of exactly the input's size, so that sanitizers see an overrun. */
static int run_generated(uint64_t number, uint8_t *scratch, size_t limit)
{
	size_t size;
	uint8_t *data;

	seed_generator(progress.seed, number);
	size = generate(scratch, limit);
	data = malloc(size);
	if (!data)
		return 1;
	memcpy(data, scratch, size);
	progress.current = number;
	progress.running = true;
	LLVMFuzzerTestOneInput(data, size);
	progress.running = false;
	free(data);
	return 0;
}

static int run_all(uint64_t runs, uint64_t seconds, size_t limit)
{
	uint8_t *scratch = malloc(limit);
	time_t end = time(NULL) + (time_t)seconds;
	uint64_t done = 0;
	int status = scratch ? 0 : 1;

	while (status == 0 && (seconds ? time(NULL) < end : done < runs))
		status = run_generated(done++, scratch, limit);
	free(scratch);
	printf("fuzz driver: %llu inputs, seed %llu\n", (unsigned long long)done, (unsigned long long)progress.seed);
	return status;
}

int main(int argc, char **argv)
{
	uint64_t runs = 1000, seconds = 0, only = UINT64_MAX, limit = 4096;
	int status = 0, i = 1;

	progress.seed = 1;
	for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
		uint64_t value = strtoull(argv[i + 1], NULL, 0);

		if (strcmp(argv[i], "--runs") == 0) {
			runs = value;
		} else if (strcmp(argv[i], "--seconds") == 0) {
			seconds = value;
		} else if (strcmp(argv[i], "--seed") == 0) {
			progress.seed = value;
		} else if (strcmp(argv[i], "--only") == 0) {
			only = value;
		} else if (strcmp(argv[i], "--length") == 0 && value > 0) {
			limit = value;
		} else {
			fprintf(stderr, "fuzz driver: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	printf("fuzz driver: seed %llu\n", (unsigned long long)progress.seed);
	fflush(stdout);
	watch_signals();
	if (i < argc) {
		for (; i < argc; i++)
			status |= run_file(argv[i]);
		return status;
	}
	if (only != UINT64_MAX) {
		uint8_t *scratch = malloc(limit);

		status = scratch ? run_generated(only, scratch, limit) : 1;
		free(scratch);
		return status;
	}
	return run_all(runs, seconds, limit);
}
