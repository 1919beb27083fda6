/* Private to src/boot: ELF executables of both classes, checked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "boot/loaders.h"

#define ELF_SEGMENTS_MAX 128u

/* A program header of either class. */
struct elf_segment {
	uint32_t type;
	uint64_t offset, virtual, physical, file_size, memory_size;
};

struct elf_image {
	bool is64;
	uint64_t entry; /* e_entry: virtual or physical, by the linker's mood */
	unsigned count;
	struct elf_segment segment[ELF_SEGMENTS_MAX]; /* read once, so that checked is what is used */
};

/* Reads the headers. -ENOEXEC: no ELF magic (nothing is said). */
int elf_read(struct boot_context *boot, struct elf_image *image);
/* Claims the memory of all PT_LOAD segments; `entry`, physical, must be in one of them. */
int elf_claim(struct boot_context *boot, const struct elf_image *image, uint64_t entry);
/* Copies them, and zeroes what the file does not fill. */
int elf_load(struct boot_context *boot, const struct elf_image *image);
