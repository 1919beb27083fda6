/* The guest's physical memory map: see e820.h. */
#include "boot/e820.h"

#include "machine/pc_addresses.h"
#include "memory/memory.h"

static void add(struct e820 *map, uint64_t start, uint64_t end, enum e820_type type)
{
	if (start < end && map->count < E820_ENTRIES_MAX)
		map->entry[map->count++] = (struct e820_entry){start, end - start, type};
}

void e820_build(struct e820 *map, const struct memory *memory)
{
	map->count = 0;
	add(map, 0, PC_EBDA, E820_RAM);
	add(map, PC_EBDA, MEMORY_VGA_HOLE, E820_RESERVED);
	/* Option ROMs' place (C0000h-DFFFFh) is in no entry, as on a real PC. */
	add(map, PC_BIOS_AREA, 0x100000, E820_RESERVED);
	add(map, 0x100000, memory->low_size, E820_RAM);
	add(map, PC_MMCONFIG, PC_MMCONFIG + (uint64_t)PC_MMCONFIG_LENGTH, E820_RESERVED);
	add(map, PC_IOAPIC, PC_IOAPIC + PC_IOAPIC_LENGTH, E820_RESERVED);
	add(map, PC_LAPIC, PC_LAPIC + PC_LAPIC_LENGTH, E820_RESERVED);
	add(map, MEMORY_HIGH_BASE, MEMORY_HIGH_BASE + memory->high_size, E820_RAM);
}

bool e820_is_ram(const struct e820 *map, uint64_t address, uint64_t length)
{
	for (unsigned i = 0; i < map->count; i++) {
		const struct e820_entry *entry = &map->entry[i];
		if (entry->type == E820_RAM && address >= entry->address && address - entry->address <= entry->length &&
		    length <= entry->length - (address - entry->address))
			return true;
	}
	return false;
}
