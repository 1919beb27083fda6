/* Lines for the person who started ring3: whole, however long they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "host/log.h"

#define MOST 40000u

/* What log_error() writes of `length` characters. */
static size_t logged(const char *text, unsigned length, char *line, size_t size)
{
	FILE *file = tmpfile();
	int old = dup(STDERR_FILENO);

	assert_non_null(file);
	assert_true(old >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
	log_error("<%.*s> %u", (int)length, text, length);
	assert_true(dup2(old, STDERR_FILENO) >= 0);
	close(old);
	ssize_t got = pread(fileno(file), line, size, 0);
	fclose(file);
	assert_true(got >= 0);
	return (size_t)got;
}

static void test_lengths(void **unused)
{
	char *text = malloc(MOST), *line = malloc(MOST + 100), *wanted = malloc(MOST + 100);

	assert_non_null(text);
	assert_non_null(line);
	assert_non_null(wanted);
	for (unsigned n = 0; n < MOST; n++)
		text[n] = n % 61 == 60 ? '\n' : (char)('a' + n % 26);
	for (unsigned length = 0; length <= MOST; length += length < 950    ? 50
	                                                    : length < 1050 ? 1
	                                                    : length < 5000 ? 79
	                                                                    : 5000) {
		int size = snprintf(wanted, MOST + 100, "ring3: <%.*s> %u\n", (int)length, text, length);
		size_t got = logged(text, length, line, MOST + 100);

		assert_int_equal(got, size);
		assert_memory_equal(line, wanted, (size_t)size);
	}
	free(text);
	free(line);
	free(wanted);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_lengths)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
