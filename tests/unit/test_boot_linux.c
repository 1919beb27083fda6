/* bzImages: what the kernel finds in memory and registers, and files that are damaged. */
#include "boot_test.h"

#define SECTORS 3u
#define PAYLOAD ((SECTORS + 1) * 512u)
#define LENGTH  (PAYLOAD + 0x3000u)

/* A bzImage as a current kernel's header describes itself. */
static void make_image(uint8_t *image)
{
	memset(image, 0, LENGTH);
	image[0x1f1] = SECTORS;
	put32(image + 0x1f4, 0x3000 / 16);
	put16(image + 0x1fe, 0xaa55);
	image[0x200] = 0xeb;
	image[0x201] = 0x268 + 4 - 0x202;
	memcpy(image + 0x202, "HdrS", 4);
	put16(image + 0x206, 0x020f);
	image[0x211] = 1; /* LOADED_HIGH */
	put32(image + 0x22c, 0x7fffffff);
	put32(image + 0x230, 0x200000);
	image[0x234] = 1;
	put16(image + 0x236, 3); /* 64-bit entry, may be above 4 GiB */
	put32(image + 0x238, 2047);
	put64(image + 0x258, 0x1000000);
	put32(image + 0x260, 0x800000);
	for (unsigned i = 0; i < 0x3000; i++)
		image[PAYLOAD + i] = (uint8_t)(i * 7 + 1);
}

static void loads_64bit(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];
	const uint8_t *zero_page;

	make_image(image);
	test->request.append = "console=ttyS0 quiet";
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	assert_int_equal(test->entry.mode, BOOT_MODE_LONG64);
	assert_int_equal(test->entry.rip, 0x1000200);
	assert_memory_equal(boot_test_guest(test, 0x1000000, 0x3000), image + PAYLOAD, 0x3000);

	zero_page = boot_test_guest(test, test->entry.rsi, 4096);
	assert_memory_equal(zero_page + 0x202, "HdrS", 4);
	assert_int_equal(zero_page[0x210], 0xff);
	assert_int_equal(zero_page[0x211], 0x81);
	assert_int_equal(zero_page[0x1ef], 0); /* the sentinel: we know what we write */
	assert_int_equal(get64(zero_page + 0x70), test->entry.rsdp);
	assert_int_equal(get32(zero_page + 0x218), 0); /* no initrd */
	assert_string_equal((const char *)boot_test_guest(test, get32(zero_page + 0x228), 20), "console=ttyS0 quiet");
	assert_memory_equal(boot_test_guest(test, test->entry.rsdp, 8), "RSD PTR ", 8);

	/* E820: low RAM first, and all of RAM in it. */
	assert_true(zero_page[0x1e8] >= 4);
	assert_int_equal(get64(zero_page + 0x2d0), 0);
	assert_int_equal(get64(zero_page + 0x2d0 + 8), 0x9fc00);
	assert_int_equal(get32(zero_page + 0x2d0 + 16), 1);
}

/* Every address below 4 GiB maps to itself, writable. */
static void identity_map(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_image(image);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	assert_int_equal(test->entry.cr3 % 4096, 0);
	for (uint64_t address = 0; address < 1ull << 32; address += 2u << 20) {
		uint64_t pml4 = get64(boot_test_guest(test, test->entry.cr3, 8));
		uint64_t pdpt = get64(boot_test_guest(test, (pml4 & ~0xfffull) + (address >> 30) * 8, 8));
		uint64_t pd = get64(boot_test_guest(test, (pdpt & ~0xfffull) + (address >> 21 & 511) * 8, 8));
		assert_int_equal(pml4 & 3, 3);
		assert_int_equal(pdpt & 0x83, 3);
		assert_int_equal(pd & 0x83, 0x83);
		assert_int_equal(pd & ~0xfffull, address);
	}
	/* What is not mapped is not half mapped. */
	assert_int_equal(get64(boot_test_guest(test, test->entry.cr3 + 8, 8)), 0);
}

static void initrd_goes_high(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH], initrd[10000];
	char name[64];
	const uint8_t *zero_page;

	make_image(image);
	for (unsigned i = 0; i < sizeof(initrd); i++)
		initrd[i] = (uint8_t)i;
	boot_test_file(name, initrd, sizeof(initrd));
	test->request.initrd = name;
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	zero_page = boot_test_guest(test, test->entry.rsi, 4096);
	assert_int_equal(get32(zero_page + 0x21c), sizeof(initrd));
	assert_int_equal(get32(zero_page + 0x218), (64 << 20) - 12288);
	assert_memory_equal(boot_test_guest(test, get32(zero_page + 0x218), sizeof(initrd)), initrd, sizeof(initrd));

	/* An old kernel wants it low. */
	put16(image + 0x206, 0x0203);
	put32(image + 0x22c, 0x1ffffff);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	zero_page = boot_test_guest(test, test->entry.rsi, 4096);
	assert_int_equal(get32(zero_page + 0x218), 0x2000000 - 12288);

	/* More than there is beside the kernel. */
	make_image(image);
	assert_int_equal(truncate(name, 60 << 20), 0);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), -EINVAL);
	assert_non_null(strstr(test->why, "does not fit"));
	unlink(name);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), -ENOENT);
	assert_memory_equal(test->why, name, strlen(name));
}

static void falls_back_to_32bit(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];
	static const uint16_t versions[] = {0x0202, 0x0205, 0x0209, 0x020b, 0x020c};

	for (unsigned i = 0; i < 5; i++) {
		make_image(image);
		put16(image + 0x206, versions[i]);
		put16(image + 0x236, 0);
		assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
		assert_int_equal(test->entry.mode, BOOT_MODE_FLAT32);
		/* pref_address is 2.10's */
		assert_int_equal(test->entry.rip, versions[i] < 0x20a ? 0x100000 : 0x1000000);
		assert_memory_equal(boot_test_guest(test, test->entry.rip, 0x3000), image + PAYLOAD, 0x3000);
	}
}

static void truncated(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_image(image);
	boot_test_truncations(test, image, sizeof(image), PAYLOAD + 16);
	boot_test_refused(test, image, 0, "empty");
	boot_test_refused(test, image, 0x205, "no magic");
	boot_test_refused(test, image, 0x206, "truncated");
	boot_test_refused(test, image, 0x240, "setup header");
	boot_test_refused(test, image, PAYLOAD, "setup code");
	boot_test_refused(test, image, LENGTH - 1, "12288 bytes of kernel are announced, 12287 are there");
}

static void damaged(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_image(image);
	put16(image + 0x206, 0x0201);
	boot_test_refused(test, image, LENGTH, "2.01 is too old");
	make_image(image);
	image[0x211] = 0;
	boot_test_refused(test, image, LENGTH, "zImage");
	make_image(image);
	image[0x201] = 0x10;
	boot_test_refused(test, image, LENGTH, "header is too short");
	make_image(image);
	put32(image + 0x230, 0x300000);
	boot_test_refused(test, image, LENGTH, "kernel alignment");
	make_image(image);
	put32(image + 0x230, 0);
	boot_test_refused(test, image, LENGTH, "kernel alignment");
	make_image(image);
	put64(image + 0x258, 0x1000);
	image[0x234] = 0;
	boot_test_refused(test, image, LENGTH, "below 1 MiB");
	make_image(image);
	put64(image + 0x258, 0xffffffff00000000);
	boot_test_refused(test, image, LENGTH, "above 4 GiB");
	make_image(image);
	put64(image + 0x258, 0xffffffff);
	put32(image + 0x260, 0xffffffff);
	boot_test_refused(test, image, LENGTH, "above 4 GiB");
	make_image(image);
	put32(image + 0x260, 64 << 20);
	boot_test_refused(test, image, LENGTH, "does not fit in the machine's memory: it needs 64 MiB from 16 MiB on");
	make_image(image);
	put32(image + 0x260, 0xffffffff);
	boot_test_refused(test, image, LENGTH, "does not fit");
	make_image(image);
	put32(image + 0x238, 3);
	test->request.append = "quiet";
	boot_test_refused(test, image, LENGTH, "command line has 5 characters; this kernel takes 3");
}

/* Nothing that is no kernel is taken for one, and what is compressed is named. */
static void not_a_kernel(void **state)
{
	struct boot_test *test = *state;
	uint8_t noise[20000];
	unsigned seed = 1;

	for (unsigned i = 0; i < sizeof(noise); i++)
		noise[i] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 16);
	boot_test_refused(test, noise, sizeof(noise),
	                  "not a Linux bzImage, PVH ELF or Multiboot image (no magic found)");
	boot_test_refused(test, "\x1f\x8b\x08", 3, "gzip");
	boot_test_refused(test, "\x28\xb5\x2f\xfd", 4, "zstd");
	boot_test_refused(test, "#", 1, "no magic");
}

static void files(void **state)
{
	struct boot_test *test = *state;

	test->request.kernel = "/nonexistent/vmlinuz";
	assert_int_equal(boot_load(&test->memory, &test->request, &test->entry, test->why), -ENOENT);
	assert_string_equal(test->why, "/nonexistent/vmlinuz: No such file or directory");
	test->request.kernel = "/tmp";
	assert_int_equal(boot_load(&test->memory, &test->request, &test->entry, test->why), -EISDIR);
	test->request.kernel = "/dev/zero"; /* has no end */
	assert_int_equal(boot_load(&test->memory, &test->request, &test->entry, test->why), -EFBIG);
	test->request.kernel = "/dev/null";
	assert_int_equal(boot_load(&test->memory, &test->request, &test->entry, test->why), -EINVAL);
	assert_string_equal(test->why, "/dev/null: not a kernel: the file is empty");
}

/* Real-mode vectors lead to an instruction that returns "not supported"; the BIOS data area says what is there. */
static void bios_data(void **state)
{
	struct boot_test *test = *state;
	uint8_t image[LENGTH];

	make_image(image);
	memset(memory_pointer(&test->memory, 0, 0x1000), 0xee, 0x1000);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	for (unsigned i = 0; i < 256; i++) {
		uint32_t vector = get32(boot_test_guest(test, i * 4, 4));
		const uint8_t *code = boot_test_guest(test, (vector >> 16 << 4) + (vector & 0xffff), 9);
		assert_true((vector >> 16 << 4) >= PC_BIOS_AREA);
		assert_int_equal(code[0], 0x55); /* push bp */
		assert_int_equal(code[8], 0xcf); /* iret */
	}
	assert_int_equal(get16(boot_test_guest(test, 0x400, 2)), 0x3f8);
	assert_int_equal(get16(boot_test_guest(test, 0x40e, 2)) << 4, PC_EBDA);
	assert_int_equal(get16(boot_test_guest(test, 0x413, 2)) << 10, PC_EBDA);
}

/* The same machine again, as at a reset. */
static void loads_twice(void **state)
{
	struct boot_test *test = *state;
	struct boot_entry first;
	uint8_t image[LENGTH];

	make_image(image);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	first = test->entry;
	memset(memory_pointer(&test->memory, 0x100000, 1 << 20), 0xcc, 1 << 20);
	assert_int_equal(boot_test_load(test, image, sizeof(image)), 0);
	assert_memory_equal(&first, &test->entry, sizeof(first));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, boot_test_setup, boot_test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(loads_64bit), TEST(identity_map), TEST(initrd_goes_high), TEST(falls_back_to_32bit),
	    TEST(truncated),   TEST(damaged),      TEST(not_a_kernel),     TEST(files),
	    TEST(bios_data),   TEST(loads_twice),
	};

	return cmocka_run_group_tests_name("boot_linux", tests, NULL, NULL);
}
