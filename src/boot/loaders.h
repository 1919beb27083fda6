/*
 * Private to src/boot: what boot.c and the loaders (linux.c, elf.c, multiboot.c) share.
 *
 * A loader claims the ranges its image needs, copies the image there, and places everything else (tables, command line,
 * initrd) into free RAM around it. The order: claim all, then write; so a refused file has written nothing it should
 * not.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "boot/boot.h"
#include "boot/e820.h"
#include "boot/file.h"

#define BOOT_CLAIMS_MAX 256

/* First address that loaders use: below are the real-mode vectors and the BIOS data area (bios_data.c). */
#define BOOT_LOWEST 0x1000u

/* The flat GDT that all protocols get; selectors are the Linux protocol's __BOOT_CS and __BOOT_DS. */
#define BOOT_GDT_ENTRIES 5
#define BOOT_GDT_LENGTH  (BOOT_GDT_ENTRIES * 8)
#define BOOT_CS          0x10
#define BOOT_DS          0x18

struct boot_context {
	const struct boot_request *request;
	struct memory *memory;
	struct boot_file kernel; /* borrowed */
	struct e820 map;
	uint64_t rsdp;
	struct boot_entry *entry;
	char *why; /* BOOT_WHY_SIZE bytes */
	unsigned claim_count;
	struct {
		uint64_t start, end;
	} claim[BOOT_CLAIMS_MAX];
};

/* boot_load() with the kernel file already open; it stays open. */
int boot_load_image(struct memory *memory, const struct boot_request *request, const struct boot_file *kernel,
                    struct boot_entry *entry, char *why);

/* Writes `why` with the kernel's name in front; returns `error`. */
int boot_refuse(struct boot_context *boot, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* place.c. Takes a range for the image. -EINVAL with `why`: not RAM, or already taken. */
int boot_claim(struct boot_context *boot, uint64_t address, uint64_t length, const char *what);
/* Finds and takes free RAM in [lowest, limit), from below or from the top; `align` is a power of two. -EINVAL with
 * `why`. */
int boot_place_low(struct boot_context *boot, uint64_t lowest, uint64_t limit, uint64_t length, uint64_t align,
                   const char *what, uint64_t *address);
int boot_place_high(struct boot_context *boot, uint64_t lowest, uint64_t limit, uint64_t length, uint64_t align,
                    const char *what, uint64_t *address);

/* Copies from a file into claimed RAM. -EINVAL with `why` ("truncated"), or the file's error. */
int boot_copy(struct boot_context *boot, const struct boot_file *file, uint64_t offset, uint64_t address,
              uint64_t length);
/* Bytes, and zeroes, into claimed RAM. */
int boot_write(struct boot_context *boot, uint64_t address, const void *data, uint64_t length);
int boot_zero(struct boot_context *boot, uint64_t address, uint64_t length);
/* Reads a header of the kernel file; too short: -EINVAL with `why`. */
int boot_header(struct boot_context *boot, uint64_t offset, void *buffer, uint64_t length, const char *what);

/* Opens, places (top of RAM below `limit`) and loads the initrd; no initrd: both 0. */
int boot_load_initrd(struct boot_context *boot, uint64_t limit, uint64_t *address, uint64_t *length);
/* Places and writes the GDT, and the entry's selectors with it; 64-bit or 32-bit code segment. */
int boot_make_gdt(struct boot_context *boot, bool code64);
/* bios_data.c: interrupt vectors and BIOS data area. */
int boot_write_bios_data(struct boot_context *boot);
const char *boot_command_line(const struct boot_context *boot);

/*
 * The loaders. -ENOEXEC: the file is of another format (nothing is said); else 0 or an error with `why`.
 */
int boot_linux(struct boot_context *boot);
int boot_multiboot(struct boot_context *boot);
int boot_pvh(struct boot_context *boot);

/* Little-endian fields. */
static inline uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] | at[1] << 8);
}
static inline uint32_t get32(const uint8_t *at)
{
	return get16(at) | (uint32_t)get16(at + 2) << 16;
}
static inline uint64_t get64(const uint8_t *at)
{
	return get32(at) | (uint64_t)get32(at + 4) << 32;
}
static inline void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)value;
	at[1] = (uint8_t)(value >> 8);
}
static inline void put32(uint8_t *at, uint32_t value)
{
	put16(at, (uint16_t)value);
	put16(at + 2, (uint16_t)(value >> 16));
}
static inline void put64(uint8_t *at, uint64_t value)
{
	put32(at, (uint32_t)value);
	put32(at + 4, (uint32_t)(value >> 32));
}
