/*
 * The guest's physical memory map, as firmware reports it (INT 15h AX=E820h; ACPI 6.5, 15.1).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct memory;

enum e820_type { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3, E820_NVS = 4, E820_UNUSABLE = 5 };

struct e820_entry {
	uint64_t address, length;
	uint32_t type; /* enum e820_type */
};

#define E820_ENTRIES_MAX 32

struct e820 {
	unsigned count;
	struct e820_entry entry[E820_ENTRIES_MAX]; /* ascending, not overlapping */
};

/* The map of a PC with this memory (machine/pc_addresses.h). */
void e820_build(struct e820 *map, const struct memory *memory);
/* Is all of the range in one RAM entry? */
bool e820_is_ram(const struct e820 *map, uint64_t address, uint64_t length);
