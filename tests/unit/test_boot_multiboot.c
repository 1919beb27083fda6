/* Multiboot 1: ELF32 and load addresses, modules, information structure, and files that are damaged. */
#include <elf.h>

#include "boot_test.h"

#define HEADER 0x80u
#define TEXT   0x1000u
#define LENGTH 0x2000u

static void put_header(uint8_t *at, uint32_t flags)
{
	put32(at, 0x1badb002);
	put32(at + 4, flags);
	put32(at + 8, 0u - 0x1badb002u - flags);
}

static void make_elf(uint8_t *image)
{
	Elf32_Ehdr header = {.e_type = ET_EXEC,
	                     .e_machine = EM_386,
	                     .e_phoff = sizeof(header),
	                     .e_phentsize = sizeof(Elf32_Phdr),
	                     .e_phnum = 1,
	                     .e_entry = 0xc0100010}; /* virtual */
	Elf32_Phdr segment = {.p_type = PT_LOAD,
	                      .p_offset = TEXT,
	                      .p_vaddr = 0xc0100000,
	                      .p_paddr = 0x100000,
	                      .p_filesz = 0x1000,
	                      .p_memsz = 0x2000};

	memset(image, 0, LENGTH);
	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS32;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	memcpy(image, &header, sizeof(header));
	memcpy(image + sizeof(header), &segment, sizeof(segment));
	put_header(image + HEADER, 3);
	memset(image + TEXT, 0x90, 0x1000);
}

/* A flat image: the header at 80h of a text that is loaded at 2 MiB, with bss behind it. */
static void make_flat(uint8_t *image)
{
	memset(image, 0x90, LENGTH);
	put_header(image + HEADER, 0x10003);
	put32(image + HEADER + 12, 0x200000 + HEADER);
	put32(image + HEADER + 16, 0x200000);
	put32(image + HEADER + 20, 0x200000 + LENGTH);
	put32(image + HEADER + 24, 0x200000 + LENGTH + 0x1000);
	put32(image + HEADER + 28, 0x200100);
}

static void loads_elf(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];
	const uint8_t *info;

	make_elf(image);
	test->request.append = "a b";
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	assert_int_equal(test->entry.mode, BOOT_MODE_FLAT32);
	assert_int_equal(test->entry.rip, 0x100010);
	assert_int_equal(test->entry.rax, 0x2badb002);
	info = boot_test_guest(test, test->entry.rbx, 116);
	assert_int_equal(get32(info), 0x24d);
	assert_int_equal(get32(info + 4), 639);
	assert_int_equal(get32(info + 8), 63 * 1024);
	assert_string_equal((const char *)boot_test_guest(test, get32(info + 16), 11), "kernel a b");
	assert_int_equal(get32(info + 20), 0);
	assert_memory_equal(boot_test_guest(test, get32(info + 64), 6), "ring3 ", 6);
	/* The map: entries of 20 bytes, each with its size in front. */
	uint32_t length = get32(info + 44);
	assert_int_equal(length % 24, 0);
	const uint8_t *map = boot_test_guest(test, get32(info + 48), length);
	for (uint32_t at = 0; at < length; at += get32(map + at) + 4)
		assert_int_equal(get32(map + at), 20);
	assert_int_equal(get64(map + 12), 0x9fc00);
}

static void loads_flat(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_flat(image);
	memset(memory_pointer(&test->memory, 0x200000, 0x10000), 0xee, 0x10000);
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	assert_int_equal(test->entry.rip, 0x200100);
	assert_memory_equal(boot_test_guest(test, 0x200000, LENGTH), image, LENGTH);
	assert_int_equal(*boot_test_guest(test, 0x200000 + LENGTH, 1), 0);
	assert_int_equal(*boot_test_guest(test, 0x200000 + LENGTH + 0xfff, 1), 0);
	assert_int_equal(*boot_test_guest(test, 0x200000 + LENGTH + 0x1000, 1), 0xee);

	/* No end given: all of the file. */
	put32(image + HEADER + 20, 0);
	put32(image + HEADER + 24, 0);
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	assert_memory_equal(boot_test_guest(test, 0x200000, LENGTH), image, LENGTH);
}

static void modules(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];
	char first[64], second[64], list[256];
	const uint8_t *info, *module;

	make_elf(image);
	boot_test_file(first, "one", 3);
	boot_test_file(second, "second", 6);
	snprintf(list, sizeof(list), "%s x=1,,2 y, %s,%s", first, second, first);
	test->request.initrd = list;
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	info = boot_test_guest(test, test->entry.rbx, 116);
	assert_int_equal(get32(info + 20), 3);
	module = boot_test_guest(test, get32(info + 24), 3 * 16);
	assert_int_equal(get32(module) % 4096, 0);
	assert_int_equal(get32(module + 4) - get32(module), 3);
	assert_memory_equal(boot_test_guest(test, get32(module), 3), "one", 3);
	assert_memory_equal(boot_test_guest(test, get32(module + 16), 6), "second", 6);
	assert_string_equal((const char *)boot_test_guest(test, get32(module + 24), 64), second);
	snprintf(list, sizeof(list), "%s x=1,2 y", first);
	assert_string_equal((const char *)boot_test_guest(test, get32(module + 8), 128), list);

	test->request.initrd = "/nonexistent a";
	assert_int_equal(boot_test_load(test, image, LENGTH), -ENOENT);
	assert_string_equal(test->why, "/nonexistent: No such file or directory");
	test->request.initrd = ",";
	assert_int_equal(boot_test_load(test, image, LENGTH), -ENOENT);
	char many[66 * 3 + 1] = "";
	for (unsigned i = 0; i < 66; i++)
		strcat(many, "/,");
	test->request.initrd = many;
	boot_test_refused(test, image, LENGTH, "more than 64 modules");
	unlink(first);
	unlink(second);
}

static void truncated(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_elf(image);
	boot_test_truncations(test, image, LENGTH, TEXT);
	make_flat(image);
	boot_test_truncations(test, image, LENGTH, 0x200);
	boot_test_refused(test, image, HEADER + 20, "Multiboot header");
	boot_test_refused(test, image, LENGTH - 1, "announces 8192 bytes, 8191 are there");
}

static void damaged(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_elf(image);
	put_header(image + HEADER, 0x8003);
	boot_test_refused(test, image, LENGTH, "features");
	make_elf(image);
	((Elf32_Ehdr *)image)->e_entry = 0x10;
	boot_test_refused(test, image, LENGTH, "in no segment");
	make_elf(image);
	image[EI_CLASS] = ELFCLASS64;
	boot_test_refused(test, image, LENGTH, "");
	memset(image, 0, SELFMAG);
	boot_test_refused(test, image, LENGTH, "neither ELF nor carries load addresses");

	make_flat(image);
	put32(image + HEADER + 8, 0); /* wrong checksum: no header at all */
	boot_test_refused(test, image, LENGTH, "no magic");
	make_flat(image);
	put32(image + HEADER + 16, 0x200000 + HEADER + 4);
	boot_test_refused(test, image, LENGTH, "not where it says");
	make_flat(image);
	put32(image + HEADER + 16, 0x100000);
	boot_test_refused(test, image, LENGTH, "not where it says");
	make_flat(image);
	put32(image + HEADER + 20, 0x1ff000);
	boot_test_refused(test, image, LENGTH, "wrong order");
	make_flat(image);
	put32(image + HEADER + 24, 0x200001);
	boot_test_refused(test, image, LENGTH, "wrong order");
	make_flat(image);
	put32(image + HEADER + 24, 0xffffffff);
	boot_test_refused(test, image, LENGTH, "does not fit");
	make_flat(image);
	put32(image + HEADER + 28, 0x1fffff);
	boot_test_refused(test, image, LENGTH, "outside the image");
}

/* The header counts only in the first 8 KiB, and at a multiple of 4. */
static void header_position(void **state)
{
	struct boot_test *test = *state;
	static uint8_t image[0x4000];

	for (unsigned at = 8192 - 16; at < 8192 + 8; at++) {
		bool good = at % 4 == 0 && at + 12 <= 8192;
		memset(image, 0, sizeof(image));
		put_header(image + at, 0);
		boot_test_refused(test, image, sizeof(image), good ? "neither ELF" : "no magic");
	}
}

/* An image all over low memory gets its information elsewhere; tables that need low memory do not fit. */
static void low_image(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_flat(image);
	put32(image + HEADER + 12, 0x7c00 + HEADER);
	put32(image + HEADER + 16, 0x7c00);
	put32(image + HEADER + 20, 0x7c00 + LENGTH);
	put32(image + HEADER + 24, 0x90000);
	put32(image + HEADER + 28, 0x7c00);
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	uint64_t info = test->entry.rbx;
	assert_true(info + 116 <= 0x7c00 || info >= 0x90000);
	assert_memory_equal(boot_test_guest(test, 0x7c00, LENGTH), image, LENGTH);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, boot_test_setup, boot_test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(loads_elf), TEST(loads_flat),      TEST(modules),   TEST(truncated),
	    TEST(damaged),   TEST(header_position), TEST(low_image),
	};

	return cmocka_run_group_tests_name("boot_multiboot", tests, NULL, NULL);
}
