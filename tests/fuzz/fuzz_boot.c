/*
 * Kernel files of any content: the loaders refuse them with one line or load them, and touch nothing but RAM.
 *
 * Input: byte 0 chooses a seed header that the rest is laid over (XOR), so that the deeper checks are reached; then the
 * file.
 */
#include <elf.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/boot.h"
#include "boot/loaders.h"
#include "memory/memory.h"

#define FILE_MAX 16384u
#define SEEDS    5u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds, const char *what, const char *why)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_boot: %s: %s\n", what, why);
	abort();
}

static void seed_linux(uint8_t *file)
{
	file[0x1f1] = 1;
	put32(file + 0x1f4, 64);
	put16(file + 0x1fe, 0xaa55);
	file[0x201] = 0x6a;
	memcpy(file + 0x202, "HdrS", 4);
	put16(file + 0x206, 0x020f);
	file[0x211] = 1;
	put32(file + 0x22c, 0x7fffffff);
	put32(file + 0x230, 0x200000);
	file[0x234] = 1;
	put16(file + 0x236, 1);
	put32(file + 0x238, 2047);
	put64(file + 0x258, 0x200000);
	put32(file + 0x260, 0x10000);
}

static void seed_elf64(uint8_t *file)
{
	Elf64_Ehdr header = {.e_machine = EM_X86_64, .e_phoff = 64, .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 2};
	Elf64_Phdr segments[] = {
	    {.p_type = PT_LOAD, .p_offset = 0x400, .p_paddr = 0x100000, .p_filesz = 0x100, .p_memsz = 0x200},
	    {.p_type = PT_NOTE, .p_offset = 0x200, .p_filesz = 0x100},
	};

	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS64;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	memcpy(file, &header, sizeof(header));
	memcpy(file + 64, segments, sizeof(segments));
	put32(file + 0x200, 4);
	put32(file + 0x204, 8);
	put32(file + 0x208, 18);
	memcpy(file + 0x20c, "Xen", 4);
	put64(file + 0x210, 0x100010);
}

static void seed_multiboot(uint8_t *file, uint32_t flags)
{
	put32(file + 0x80, 0x1badb002);
	put32(file + 0x84, flags);
	put32(file + 0x88, 0u - 0x1badb002u - flags);
	put32(file + 0x8c, 0x100080);
	put32(file + 0x90, 0x100000);
	put32(file + 0x9c, 0x100010);
}

static void seed_elf32(uint8_t *file)
{
	Elf32_Ehdr header = {
	    .e_machine = EM_386, .e_phoff = 52, .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 1, .e_entry = 0x100000};
	Elf32_Phdr segment = {
	    .p_type = PT_LOAD, .p_offset = 0x400, .p_paddr = 0x100000, .p_filesz = 0x100, .p_memsz = 0x200};

	memcpy(header.e_ident, ELFMAG, SELFMAG);
	header.e_ident[EI_CLASS] = ELFCLASS32;
	header.e_ident[EI_DATA] = ELFDATA2LSB;
	memcpy(file, &header, sizeof(header));
	memcpy(file + 52, &segment, sizeof(segment));
}

static void lay_seed(uint8_t *file, unsigned seed)
{
	memset(file, 0, FILE_MAX);
	switch (seed) {
	case 1:
		seed_linux(file);
		break;
	case 2:
		seed_elf64(file);
		break;
	case 3:
		seed_multiboot(file, 0x10003);
		break;
	case 4:
		seed_elf32(file);
		seed_multiboot(file, 3);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct memory memory;
	static uint8_t whole[FILE_MAX];
	struct boot_request request = {.kernel = "kernel", .append = "console=ttyS0", .cpus = 4};
	struct boot_entry entry;
	struct boot_file file;
	char why[BOOT_WHY_SIZE];

	if (size < 1)
		return 0;
	if (!memory.low && memory_create(&memory, 4u << 20) < 0)
		abort();
	size_t length = size - 1 < FILE_MAX ? size - 1 : FILE_MAX;
	lay_seed(whole, data[0] % SEEDS);
	for (size_t i = 0; i < length; i++)
		whole[i] ^= data[1 + i];

	/* Exactly as long as it is, so that a sanitizer sees a read beyond it. */
	uint8_t *exact = malloc(length + 1);
	if (!exact)
		abort();
	memcpy(exact, whole, length);
	memset(why, 'x', sizeof(why));
	boot_file_from_memory(&file, "kernel", exact, length);
	int error = boot_load_image(&memory, &request, &file, &entry, why);
	free(exact);
	if (error) {
		check(memchr(why, '\0', sizeof(why)) && strncmp(why, "kernel: ", 8) == 0 && !strchr(why, '\n'),
		      "no proper message", "");
		check(error == -EINVAL, "unexpected error", why);
	} else {
		struct cpu_state state = {0};
		boot_apply(&entry, &state);
		check(memory_pointer(&memory, entry.gdt, entry.gdt_limit + 1u) != NULL, "GDT outside RAM", "");
		check(memory_pointer(&memory, entry.rip, 1) != NULL, "entry outside RAM", "");
	}
	return 0;
}
