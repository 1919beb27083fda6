/* For the boot loaders' tests: memory, one call that loads bytes as a kernel, little-endian fields, and the checks all
 * formats share. */
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "boot/boot.h"
#include "boot/loaders.h"
#include "machine/pc_addresses.h"
#include "memory/memory.h"

struct boot_test {
	struct memory memory;
	struct boot_request request;
	struct boot_entry entry;
	char why[BOOT_WHY_SIZE];
};

static inline int boot_test_setup(void **state)
{
	struct boot_test *test = calloc(1, sizeof(*test));

	assert_non_null(test);
	assert_int_equal(memory_create(&test->memory, 64u << 20), 0);
	test->request = (struct boot_request){.kernel = "kernel", .cpus = 2};
	*state = test;
	return 0;
}

static inline int boot_test_teardown(void **state)
{
	struct boot_test *test = *state;

	memory_destroy(&test->memory);
	free(test);
	return 0;
}

static inline int boot_test_load(struct boot_test *test, const void *image, size_t length)
{
	struct boot_file file;

	memset(test->why, 0, sizeof(test->why));
	boot_file_from_memory(&file, "kernel", image, length);
	return boot_load_image(&test->memory, &test->request, &file, &test->entry, test->why);
}

/* The image is refused with one line that begins with the file's name and holds `part`. */
static inline void boot_test_refused(struct boot_test *test, const void *image, size_t length, const char *part)
{
	/* In memory of exactly that size, so that a sanitizer sees a read beyond it. */
	void *exact = malloc(length ? length : 1);

	assert_non_null(exact);
	if (length)
		memcpy(exact, image, length);
	assert_int_equal(boot_test_load(test, exact, length), -EINVAL);
	free(exact);
	assert_memory_equal(test->why, "kernel: ", 8);
	assert_null(strchr(test->why, '\n'));
	if (!strstr(test->why, part))
		fail_msg("'%s' does not say '%s'", test->why, part);
}

/* Every file that is the image cut short is refused, at each offset below `dense` and some beyond. */
static inline void boot_test_truncations(struct boot_test *test, const uint8_t *image, size_t length, size_t dense)
{
	for (size_t cut = 0; cut < length; cut += cut < dense ? 1 : 509) {
		uint8_t *exact = malloc(cut ? cut : 1);
		assert_non_null(exact);
		memcpy(exact, image, cut);
		int error = boot_test_load(test, exact, cut);
		free(exact);
		if (error != -EINVAL)
			fail_msg("cut to %zu bytes: %d", cut, error);
		assert_memory_equal(test->why, "kernel: ", 8);
	}
}

static inline const uint8_t *boot_test_guest(struct boot_test *test, uint64_t address, uint64_t length)
{
	const uint8_t *at = memory_pointer(&test->memory, address, length);

	assert_non_null(at);
	return at;
}

/* A temporary file with this content; unlink it. */
static inline void boot_test_file(char *name, const void *data, size_t length)
{
	strcpy(name, "/tmp/ring3-test-XXXXXX");
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, length), (ssize_t)length);
	close(fd);
}
