/* PVH ELF kernels: start_info, segments, notes, and files that are damaged. */
#include <elf.h>

#include "boot_test.h"

#define NOTES  0x400u
#define TEXT   0x1000u
#define LENGTH 0x2000u

static void put_note(uint8_t *at, const char *name, uint32_t type, uint64_t value, uint32_t length)
{
	put32(at, 4);
	put32(at + 4, length);
	put32(at + 8, type);
	memcpy(at + 12, name, 4);
	put32(at + 16, (uint32_t)value);
	if (length > 4)
		put32(at + 20, (uint32_t)(value >> 32));
}

/* Three program headers: text at 1 MiB, bss at 2 MiB, notes with the entry point second. */
static void make_image64(uint8_t *image)
{
	Elf64_Ehdr header = {.e_type = ET_EXEC,
	                     .e_machine = EM_X86_64,
	                     .e_phoff = sizeof(header),
	                     .e_phentsize = sizeof(Elf64_Phdr),
	                     .e_phnum = 3,
	                     .e_entry = 0xffffffff81000000};
	Elf64_Phdr segments[3] = {
	    {.p_type = PT_LOAD,
	     .p_offset = TEXT,
	     .p_vaddr = 0xffffffff80100000,
	     .p_paddr = 0x100000,
	     .p_filesz = 0x1000,
	     .p_memsz = 0x2000},
	    {.p_type = PT_LOAD, .p_offset = TEXT, .p_paddr = 0x200000, .p_filesz = 0, .p_memsz = 0x1000},
	    {.p_type = PT_NOTE, .p_offset = NOTES, .p_filesz = 44, .p_memsz = 44},
	};

	memset(image, 0, LENGTH);
	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS64;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	memcpy(image, &header, sizeof(header));
	memcpy(image + sizeof(header), segments, sizeof(segments));
	put_note(image + NOTES, "GNU", 18, 0x666, 4); /* of somebody else */
	put_note(image + NOTES + 20, "Xen", 18, 0x100040, 8);
	memset(image + TEXT, 0x90, 0x1000);
}

static void make_image32(uint8_t *image)
{
	Elf32_Ehdr header = {.e_type = ET_EXEC,
	                     .e_machine = EM_386,
	                     .e_phoff = sizeof(header),
	                     .e_phentsize = sizeof(Elf32_Phdr),
	                     .e_phnum = 2};
	Elf32_Phdr segments[2] = {
	    {.p_type = PT_LOAD, .p_offset = TEXT, .p_paddr = 0x100000, .p_filesz = 0x1000, .p_memsz = 0x2000},
	    {.p_type = PT_NOTE, .p_offset = NOTES, .p_filesz = 20, .p_memsz = 20},
	};

	memset(image, 0, LENGTH);
	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS32;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	memcpy(image, &header, sizeof(header));
	memcpy(image + sizeof(header), segments, sizeof(segments));
	put_note(image + NOTES, "Xen", 18, 0x100040, 4);
	memset(image + TEXT, 0x90, 0x1000);
}

static Elf64_Ehdr *header64(uint8_t *image)
{
	return (Elf64_Ehdr *)image;
}

static Elf64_Phdr *segment64(uint8_t *image, unsigned n)
{
	return (Elf64_Phdr *)(image + sizeof(Elf64_Ehdr)) + n;
}

static void loads(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];
	const uint8_t *info;
	char name[64];

	make_image64(image);
	boot_test_file(name, "initrd", 6);
	test->request.append = "root=none";
	test->request.initrd = name;
	memset(memory_pointer(&test->memory, 0x100000, 0x200000), 0xee, 0x200000);
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	unlink(name);
	assert_int_equal(test->entry.mode, BOOT_MODE_FLAT32);
	assert_int_equal(test->entry.rip, 0x100040);
	assert_memory_equal(boot_test_guest(test, 0x100000, 0x1000), image + TEXT, 0x1000);
	for (unsigned i = 0; i < 0x1000; i++) { /* zeroed, although the memory was not clean */
		assert_int_equal(*boot_test_guest(test, 0x101000 + i, 1), 0);
		assert_int_equal(*boot_test_guest(test, 0x200000 + i, 1), 0);
	}
	info = boot_test_guest(test, test->entry.rbx, 56);
	assert_int_equal(get32(info), 0x336ec578);
	assert_int_equal(get32(info + 4), 1);
	assert_int_equal(get32(info + 12), 1);
	assert_int_equal(get64(info + 32), test->entry.rsdp);
	assert_string_equal((const char *)boot_test_guest(test, get64(info + 24), 10), "root=none");
	const uint8_t *module = boot_test_guest(test, get64(info + 16), 32);
	assert_int_equal(get64(module + 8), 6);
	assert_memory_equal(boot_test_guest(test, get64(module), 6), "initrd", 6);
	const uint8_t *map = boot_test_guest(test, get64(info + 40), get32(info + 48) * 24);
	assert_int_equal(get64(map + 8), 0x9fc00);
	assert_int_equal(get32(map + 16), 1);
}

static void loads_elf32(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_image32(image);
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	assert_int_equal(test->entry.rip, 0x100040);
	assert_string_equal(test->entry.protocol, "PVH");
}

static void truncated(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_image64(image);
	boot_test_truncations(test, image, LENGTH, TEXT);
	boot_test_refused(test, image, 40, "ELF header");
	boot_test_refused(test, image, 100, "program headers");
	boot_test_refused(test, image, NOTES + 30, "notes");
	boot_test_refused(test, image, LENGTH - 1, "segment 0");
	make_image32(image);
	boot_test_truncations(test, image, LENGTH, TEXT);
}

static void damaged(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_image64(image);
	header64(image)->e_machine = EM_AARCH64;
	boot_test_refused(test, image, LENGTH, "not for x86");
	make_image64(image);
	header64(image)->e_ident[EI_DATA] = ELFDATA2MSB;
	boot_test_refused(test, image, LENGTH, "not for x86");
	make_image64(image);
	header64(image)->e_phnum = 0;
	boot_test_refused(test, image, LENGTH, "without program headers");
	make_image64(image);
	header64(image)->e_phnum = 0xffff;
	boot_test_refused(test, image, LENGTH, "too many program headers");
	make_image64(image);
	header64(image)->e_phoff = 0xffffffffffffff00;
	boot_test_refused(test, image, LENGTH, "truncated");
	make_image64(image);
	header64(image)->e_phentsize = 8;
	boot_test_refused(test, image, LENGTH, "damaged");
	make_image64(image);
	segment64(image, 0)->p_offset = 0xfffffffffffffff0;
	boot_test_refused(test, image, LENGTH, "truncated");
	make_image64(image);
	segment64(image, 0)->p_filesz = 0x3000;
	boot_test_refused(test, image, LENGTH, "longer in the file");
	make_image64(image);
	segment64(image, 0)->p_paddr = 0xfffffffffffff000;
	boot_test_refused(test, image, LENGTH, "does not fit");
	make_image64(image);
	segment64(image, 1)->p_paddr = 0x80000;
	segment64(image, 1)->p_memsz = 0x40000; /* into the VGA hole */
	boot_test_refused(test, image, LENGTH, "does not fit");
	make_image64(image);
	segment64(image, 1)->p_memsz = 0xffffffffffffffff;
	boot_test_refused(test, image, LENGTH, "does not fit");
	make_image64(image);
	segment64(image, 1)->p_paddr = 0x101000;
	boot_test_refused(test, image, LENGTH, "overlaps another part");
	make_image64(image);
	segment64(image, 1)->p_paddr = 0;
	boot_test_refused(test, image, LENGTH, "BIOS data area");
	make_image64(image);
	segment64(image, 1)->p_paddr = 0xe0000; /* the ACPI tables are there */
	boot_test_refused(test, image, LENGTH, "does not fit");
}

static void notes(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_image64(image);
	memcpy(image + NOTES + 32, "Zen", 4);
	boot_test_refused(test, image, LENGTH, "without a PVH entry note");
	make_image64(image);
	put32(image + NOTES, 0xffffffff); /* the first note's name swallows the rest */
	boot_test_refused(test, image, LENGTH, "without a PVH entry note");
	make_image64(image);
	put32(image + NOTES + 4, 0xfffffffd);
	boot_test_refused(test, image, LENGTH, "without a PVH entry note");
	make_image64(image);
	put64(image + NOTES + 36, 0x300000);
	boot_test_refused(test, image, LENGTH, "is in no segment");
	make_image64(image);
	put64(image + NOTES + 36, 0x100000040);
	boot_test_refused(test, image, LENGTH, "above 4 GiB");
	make_image64(image);
	segment64(image, 2)->p_filesz = 0xffffffffffffffff;
	boot_test_refused(test, image, LENGTH, "truncated");
}

/* A kernel that fills low memory leaves no room for what it is told. */
static void low_memory_full(void **state)
{
	struct boot_test *test = *state;
	_Alignas(8) uint8_t image[LENGTH];

	make_image64(image);
	segment64(image, 1)->p_paddr = 0x1000;
	segment64(image, 1)->p_memsz = 0x9fc00 - 0x1000;
	boot_test_refused(test, image, LENGTH, "no room");
	segment64(image, 1)->p_memsz = 0x90000; /* what is left is enough */
	assert_int_equal(boot_test_load(test, image, LENGTH), 0);
	assert_true(test->entry.rbx >= 0x91000 && test->entry.gdt >= 0x91000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, boot_test_setup, boot_test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(loads), TEST(loads_elf32), TEST(truncated), TEST(damaged), TEST(notes), TEST(low_memory_full),
	};

	return cmocka_run_group_tests_name("boot_elf", tests, NULL, NULL);
}
