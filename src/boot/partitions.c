/* Partition tables: see partitions.h. */
#include "boot/partitions.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "boot/loaders.h"

#define MBR_SECTOR       512u
#define MBR_SIGNATURE    0xaa55u
#define MBR_ENTRIES      446u
#define TYPE_EXTENDED    0x05
#define TYPE_EXTENDED_LB 0x0f
#define TYPE_EXTENDED_LX 0x85
#define TYPE_PROTECTIVE  0xee

#define GPT_HEADER      92u
#define GPT_ENTRIES_MAX 1024u
#define GPT_ENTRY       128u
#define GPT_ENTRY_MAX   4096u

struct list {
	struct partition *partition;
	unsigned count;
};

/* Ranges outside the disk and empty ones are passed over. */
static struct partition *add(struct list *list, const struct partition_source *source, uint64_t start, uint64_t length)
{
	struct partition *partition = &list->partition[list->count];

	if (list->count == PARTITIONS_MAX || length == 0 || start >= source->size || length > source->size - start)
		return NULL;
	*partition = (struct partition){.start = start, .length = length};
	list->count++;
	return partition;
}

static int read_at(const struct partition_source *source, uint64_t offset, void *buffer, uint32_t length)
{
	if (offset > source->size || length > source->size - offset)
		return -EINVAL;
	return source->read(source->owner, offset, buffer, length);
}

/* UEFI 2.10 appendix A: the first three fields are little-endian. */
static void format_guid(const uint8_t *at, char text[40])
{
	snprintf(text, 40, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", get32(at), get16(at + 4), get16(at + 6),
	         at[8], at[9], at[10], at[11], at[12], at[13], at[14], at[15]);
}

/* 5.3.3. False: this one is not a table (or not a whole one). `block` is the size of the disk's logical blocks. */
static bool read_gpt(const struct partition_source *source, uint64_t header_at, uint64_t block, struct list *list)
{
	static const uint8_t unused[16];
	uint8_t header[512], entry[GPT_ENTRY_MAX];
	uint32_t size, count, width, sum;
	uint64_t table;

	if (read_at(source, header_at, header, sizeof(header)) < 0 || memcmp(header, "EFI PART", 8) != 0)
		return false;
	size = get32(header + 12);
	sum = get32(header + 16);
	if (size < GPT_HEADER || size > sizeof(header))
		return false;
	put32(header + 16, 0);
	if (crc32(0, header, size) != sum)
		return false;
	table = get64(header + 72);
	count = get32(header + 80);
	width = get32(header + 84);
	if (table > source->size / block || count == 0 || count > GPT_ENTRIES_MAX || width < GPT_ENTRY ||
	    width > GPT_ENTRY_MAX)
		return false;
	uLong entries_sum = crc32(0, NULL, 0);
	for (uint32_t i = 0; i < count; i++) {
		if (read_at(source, table * block + (uint64_t)i * width, entry, width) < 0)
			return false;
		entries_sum = crc32(entries_sum, entry, width);
		uint64_t first = get64(entry + 32), last = get64(entry + 40);
		if (memcmp(entry, unused, sizeof(unused)) == 0 || last < first || last >= source->size / block)
			continue;
		struct partition *partition = add(list, source, first * block, (last - first + 1) * block);
		if (partition)
			format_guid(entry + 16, partition->uuid);
	}
	if (entries_sum == get32(header + 88))
		return true;
	list->count = 0;
	return false;
}

/* Logical partitions: a chain of tables; each has one partition and the place of the next table. */
static int read_logical(const struct partition_source *source, uint64_t extended, uint32_t disk_id, struct list *list)
{
	uint8_t sector[MBR_SECTOR];
	uint64_t at = extended;

	for (unsigned number = 5; number < 5 + PARTITIONS_MAX; number++) {
		if (at > source->size - MBR_SECTOR)
			return 0;
		int error = read_at(source, at, sector, sizeof(sector));
		if (error)
			return error;
		if (get16(sector + 510) != MBR_SIGNATURE)
			return 0;
		const uint8_t *entry = sector + MBR_ENTRIES, *next = entry + 16;
		struct partition *partition = add(list, source, at + (uint64_t)get32(entry + 8) * MBR_SECTOR,
		                                  (uint64_t)get32(entry + 12) * MBR_SECTOR);
		if (partition)
			snprintf(partition->uuid, sizeof(partition->uuid), "%08x-%02x", disk_id, number);
		if (get32(next + 8) == 0 || get32(next + 12) == 0)
			return 0;
		at = extended + (uint64_t)get32(next + 8) * MBR_SECTOR;
	}
	return 0;
}

/* 5.2. `protective` is set when a GPT stands behind it. */
static int read_mbr(const struct partition_source *source, struct list *list, bool *protective)
{
	uint8_t sector[MBR_SECTOR];
	int error = read_at(source, 0, sector, sizeof(sector));

	*protective = false;
	if (error || get16(sector + 510) != MBR_SIGNATURE)
		return error;
	/* A file system's boot sector ends alike; there the bytes of the table are code or text. */
	for (unsigned i = 0; i < 4; i++)
		if (sector[MBR_ENTRIES + 16 * i] & 0x7f)
			return 0;
	for (unsigned i = 0; i < 4 && !error; i++) {
		const uint8_t *entry = sector + MBR_ENTRIES + 16 * i;
		uint64_t start = (uint64_t)get32(entry + 8) * MBR_SECTOR,
		         length = (uint64_t)get32(entry + 12) * MBR_SECTOR;
		uint32_t disk_id = get32(sector + 440);

		if (entry[4] == TYPE_PROTECTIVE) {
			*protective = true;
		} else if (entry[4] == TYPE_EXTENDED || entry[4] == TYPE_EXTENDED_LB || entry[4] == TYPE_EXTENDED_LX) {
			if (start && start < source->size)
				error = read_logical(source, start, disk_id, list);
		} else if (entry[4]) {
			struct partition *partition = add(list, source, start, length);
			if (partition)
				snprintf(partition->uuid, sizeof(partition->uuid), "%08x-%02x", disk_id, i + 1);
		}
	}
	return error;
}

int partitions_read(const struct partition_source *source, struct partition partition[PARTITIONS_MAX])
{
	static const uint32_t blocks[] = {512, 4096};
	struct list list = {.partition = partition};
	bool protective;
	int error;

	if (source->size < MBR_SECTOR)
		return 0;
	error = read_mbr(source, &list, &protective);
	if (error)
		return error;
	if (!protective)
		return (int)list.count;
	for (unsigned i = 0; i < 2; i++) {
		list.count = 0;
		if (source->size < 4 * blocks[i])
			continue;
		if (read_gpt(source, blocks[i], blocks[i], &list) ||
		    read_gpt(source, (source->size / blocks[i] - 1) * blocks[i], blocks[i], &list))
			return (int)list.count;
	}
	return 0;
}
