/* Symbol files and the map for perf. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "debug/perf_map.h"
#include "debug/symbols.h"

static struct symbols *load(const void *text, size_t length, char *why)
{
	char path[] = "/tmp/ring3-symbols-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, length), length);
	close(fd);
	struct symbols *symbols = symbols_load(path, why);
	unlink(path);
	return symbols;
}

static void test_map(void **unused)
{
	static const char text[] = "ffffffff81000200 T second\nffffffff81000000 T first\nffffffff81000100 d data\n"
	                           "ffffffffc0000000 t module_function\t[module]\n0000000000001000 W low";
	char why[SYMBOLS_WHY_SIZE] = "";
	struct symbols *symbols = load(text, sizeof(text) - 1, why);
	uint64_t offset;

	assert_non_null(symbols);
	assert_string_equal(symbols_find(symbols, 0xffffffff81000000, &offset), "first");
	assert_int_equal(offset, 0);
	assert_string_equal(symbols_find(symbols, 0xffffffff810001ff, &offset), "first");
	assert_int_equal(offset, 0x1ff);
	assert_string_equal(symbols_find(symbols, 0xffffffff81000200, &offset), "second");
	assert_string_equal(symbols_find(symbols, 0xffffffffc0000001, &offset), "module_function");
	assert_string_equal(symbols_find(symbols, 0x1fff, &offset), "low");
	assert_null(symbols_find(symbols, 0xfff, &offset));
	assert_null(symbols_find(symbols, 0x200000, &offset));
	symbols_free(symbols);
}

static void test_elf(void **unused)
{
	char why[SYMBOLS_WHY_SIZE] = "";
	struct symbols *symbols = symbols_load("/proc/self/exe", why);
	uint64_t offset;

	assert_non_null(symbols);
	assert_null(symbols_find(symbols, UINT64_MAX, &offset));
	symbols_free(symbols);
}

static void test_refused(void **unused)
{
	static const char *const bad[] = {"hello\n", "", "ffffffff81000000T x\n", "12345678123456781234 T x\n",
	                                  "\x7f"
	                                  "ELF"};
	char why[SYMBOLS_WHY_SIZE];

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		*why = '\0';
		assert_null(load(bad[i], strlen(bad[i]), why));
		assert_non_null(strstr(why, "neither a System.map nor an ELF"));
	}
	assert_null(symbols_load("/nonexistent", why));
	assert_non_null(strstr(why, "No such file"));
	assert_null(symbols_load("/tmp", why));
	assert_non_null(strstr(why, "/tmp: "));
}

/* An ELF file with anything changed in its headers and table is refused or read, never followed. */
static void test_damaged_elf(void **unused)
{
	FILE *file = fopen("/proc/self/exe", "r");
	char why[SYMBOLS_WHY_SIZE];
	size_t room = 1 << 20;
	uint8_t *bytes = malloc(room);
	uint64_t offset;

	assert_non_null(file);
	assert_non_null(bytes);
	size_t length = fread(bytes, 1, room, file);
	fclose(file);
	uint64_t table;
	memcpy(&table, bytes + 40, 8);
	srand(1);
	for (unsigned i = 0; i < 300; i++) {
		size_t at = i % 2 && table < length ? table + (size_t)rand() % (length - table) : (size_t)rand() % 64;
		uint8_t was = bytes[at];

		bytes[at] = (uint8_t)rand();
		struct symbols *symbols = load(bytes, length, why);
		if (symbols)
			symbols_find(symbols, 0x1000, &offset);
		symbols_free(symbols);
		bytes[at] = was;
	}
	free(bytes);
}

static void test_perf_map(void **unused)
{
	static const char text[] = "0000000000001000 T function\n";
	char why[SYMBOLS_WHY_SIZE] = "", path[64], line[3][128] = {""};
	struct symbols *symbols = load(text, sizeof(text) - 1, why);
	struct perf_map *map = perf_map_create(symbols);

	assert_non_null(map);
	perf_map_own(map, (void *)0x7000, 0x10, "entry");
	perf_map_block(map, (void *)0x7010, 0x20, 0x1004);
	perf_map_block(map, (void *)0x7030, 0x30, 0xffff800000000000);
	perf_map_destroy(map);
	symbols_free(symbols);
	snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
	FILE *file = fopen(path, "r");
	assert_non_null(file);
	for (unsigned i = 0; i < 3; i++)
		assert_non_null(fgets(line[i], sizeof(line[i]), file));
	fclose(file);
	unlink(path);
	assert_string_equal(line[0], "7000 10 ring3 entry\n");
	assert_string_equal(line[1], "7010 20 guest function+0x4\n");
	assert_string_equal(line[2], "7030 30 guest 0xffff800000000000\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_map),         cmocka_unit_test(test_elf),      cmocka_unit_test(test_refused),
	    cmocka_unit_test(test_damaged_elf), cmocka_unit_test(test_perf_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
