/* Trace points: names, lines, the off switch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "debug/trace.h"
#include "machine/clock.h"

static void test_parse(void **unused)
{
	uint32_t mask = 0;
	char unknown[64];

	assert_true(trace_parse("io,irq", &mask, unknown));
	assert_int_equal(mask, 1u << TRACE_IO | 1u << TRACE_IRQ | 1u << TRACE_UNKNOWN);
	assert_true(trace_parse("all", &mask, unknown));
	assert_int_equal(mask, (1u << TRACE_POINT_COUNT) - 1);
	assert_true(trace_parse("unknown", &mask, unknown));
	assert_int_equal(mask, 1u << TRACE_UNKNOWN);
	mask = 7;
	assert_false(trace_parse("io,irqs", &mask, unknown));
	assert_string_equal(unknown, "irqs");
	assert_false(trace_parse("", &mask, unknown));
	assert_string_equal(unknown, "");
	assert_false(trace_parse("io,", &mask, unknown));
	char longest[200];
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	assert_false(trace_parse(longest, &mask, unknown));
	assert_int_equal(strlen(unknown), 63);
	assert_int_equal(mask, 7);
}

static void test_lines(void **unused)
{
	char *text = NULL;
	size_t length = 0;
	struct trace log = {
	    .mask = 1u << TRACE_IO, .clock = clock_create_manual(), .file = open_memstream(&text, &length)};
	int evaluated = 0;

	clock_advance(log.clock, 1234567890);
	trace(&log, TRACE_IO, 3, "write %xh", 0x3f8);
	trace(&log, TRACE_IRQ, 0, "off %d", evaluated = 1);
	trace((struct trace *)NULL, TRACE_IO, 0, "nobody %d", evaluated = 1);
	struct clock *clock = log.clock;
	log.clock = NULL;
	trace(&log, TRACE_IO, -1, "plain");
	fflush(log.file);
	assert_string_equal(text, "[    1.234567] cpu3 io: write 3f8h\nio: plain\n");
	assert_int_equal(evaluated, 0);

	char longest[3000];
	memset(longest, 'y', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	size_t before = length;
	trace(&log, TRACE_IO, -1, "%s", longest);
	fflush(log.file);
	assert_in_range(length - before, 900, 1024);
	assert_int_equal(text[length - 1], '\n');
	fclose(log.file);
	free(text);
	clock_destroy(clock);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_parse),
	    cmocka_unit_test(test_lines),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
