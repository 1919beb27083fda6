/* Where things go in guest memory: claims and free ranges (loaders.h). */
#include <errno.h>

#include "boot/loaders.h"

/* The first claim that meets [start, end), or -1. */
static int find_claim(const struct boot_context *boot, uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < boot->claim_count; i++)
		if (start < boot->claim[i].end && boot->claim[i].start < end)
			return (int)i;
	return -1;
}

static int add_claim(struct boot_context *boot, uint64_t start, uint64_t end)
{
	if (boot->claim_count == BOOT_CLAIMS_MAX)
		return boot_refuse(boot, -EINVAL, "has too many segments or modules");
	boot->claim[boot->claim_count].start = start;
	boot->claim[boot->claim_count].end = end;
	boot->claim_count++;
	return 0;
}

int boot_claim(struct boot_context *boot, uint64_t address, uint64_t length, const char *what)
{
	if (length == 0)
		return 0;
	if (address + length < address || !e820_is_ram(&boot->map, address, length))
		return boot_refuse(boot, -EINVAL, "%s at %#llx, %#llx bytes, does not fit in the machine's memory",
		                   what, (unsigned long long)address, (unsigned long long)length);
	if (address < BOOT_LOWEST)
		return boot_refuse(boot, -EINVAL, "%s at %#llx overlaps the BIOS data area", what,
		                   (unsigned long long)address);
	if (find_claim(boot, address, address + length) >= 0)
		return boot_refuse(boot, -EINVAL, "%s at %#llx overlaps another part", what,
		                   (unsigned long long)address);
	return add_claim(boot, address, address + length);
}

/* The part of a RAM entry within [lowest, limit); false: less than `length` bytes. */
static bool usable_part(const struct e820_entry *entry, uint64_t lowest, uint64_t limit, uint64_t length,
                        uint64_t *start, uint64_t *end)
{
	*start = entry->address > lowest ? entry->address : lowest;
	*end = entry->address + entry->length < limit ? entry->address + entry->length : limit;
	return entry->type == E820_RAM && *start < *end && *end - *start >= length;
}

static int no_place(struct boot_context *boot, uint64_t length, const char *what)
{
	return boot_refuse(boot, -EINVAL, "no room in the machine's memory for %s (%llu bytes)", what,
	                   (unsigned long long)length);
}

int boot_place_low(struct boot_context *boot, uint64_t lowest, uint64_t limit, uint64_t length, uint64_t align,
                   const char *what, uint64_t *address)
{
	uint64_t start, end;

	for (unsigned i = 0; i < boot->map.count; i++) {
		if (!usable_part(&boot->map.entry[i], lowest, limit, length, &start, &end))
			continue;
		/* Each round passes one claim. */
		for (unsigned round = 0; round <= boot->claim_count; round++) {
			start = (start + align - 1) & ~(align - 1);
			if (start >= end || end - start < length)
				break;
			int claim = find_claim(boot, start, start + length);
			if (claim < 0) {
				*address = start;
				return add_claim(boot, start, start + length);
			}
			start = boot->claim[claim].end;
		}
	}
	return no_place(boot, length, what);
}

int boot_place_high(struct boot_context *boot, uint64_t lowest, uint64_t limit, uint64_t length, uint64_t align,
                    const char *what, uint64_t *address)
{
	uint64_t start, end;

	for (unsigned i = boot->map.count; i-- > 0;) {
		if (!usable_part(&boot->map.entry[i], lowest, limit, length, &start, &end))
			continue;
		for (unsigned round = 0; round <= boot->claim_count; round++) {
			if (end < start || end - start < length)
				break;
			uint64_t candidate = (end - length) & ~(align - 1);
			if (candidate < start)
				break;
			int claim = find_claim(boot, candidate, candidate + length);
			if (claim < 0) {
				*address = candidate;
				return add_claim(boot, candidate, candidate + length);
			}
			end = boot->claim[claim].start;
		}
	}
	return no_place(boot, length, what);
}
