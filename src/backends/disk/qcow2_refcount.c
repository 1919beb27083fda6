/*
 * qcow2: which clusters of the file are in use: counting, allocating, giving back.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define REFTABLE_OFFSET 0xfffffffffffffe00ull
#define SECTOR          512u

uint64_t qcow2_block_get(const struct qcow2 *q, const uint8_t *block, uint64_t index)
{
	switch (q->refcount_order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << q->refcount_order, per_byte = 8 / bits;

		return block[index / per_byte] >> (index % per_byte * bits) & ((1u << bits) - 1);
	}
	case 3:
		return block[index];
	case 4:
		return get_be16(block + index * 2);
	case 5:
		return get_be32(block + index * 4);
	default:
		return get_be64(block + index * 8);
	}
}

void qcow2_block_set(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t value)
{
	switch (q->refcount_order) {
	case 0:
	case 1:
	case 2: {
		unsigned bits = 1u << q->refcount_order, per_byte = 8 / bits, shift = index % per_byte * bits;
		uint8_t mask = (uint8_t)(((1u << bits) - 1) << shift);

		block[index / per_byte] = (uint8_t)((block[index / per_byte] & ~mask) | value << shift);
		break;
	}
	case 3:
		block[index] = (uint8_t)value;
		break;
	case 4:
		put_be16(block + index * 2, (uint16_t)value);
		break;
	case 5:
		put_be32(block + index * 4, (uint32_t)value);
		break;
	default:
		put_be64(block + index * 8, value);
		break;
	}
}

static uint64_t refcount_max(const struct qcow2 *q)
{
	return q->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << q->refcount_order)) - 1;
}

static uint64_t block_entries(const struct qcow2 *q)
{
	return 1ull << q->block_bits;
}

/* The refcount block that counts `cluster`; *table is NULL when there is none (all its counts are 0). */
static int find_block(struct qcow2 *q, uint64_t cluster, struct table **table)
{
	uint64_t index = cluster >> q->block_bits;
	int error;

	*table = NULL;
	if (index >= q->reftable_entries || !(q->reftable[index] & REFTABLE_OFFSET))
		return 0;
	uint64_t offset = q->reftable[index] & REFTABLE_OFFSET;
	if (offset & (q->cluster_size - 1))
		return qcow2_corrupt(q, "refcount block not at a cluster", offset);
	*table = qcow2_table(q, &q->blocks, offset, false, &error);
	return error;
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
	struct table *table;
	int error = find_block(q, cluster, &table);

	*count = table ? qcow2_block_get(q, table->bytes, cluster & (block_entries(q) - 1)) : 0;
	return error;
}

/* A larger refcount table at the end of the file; the old one is given back later. */
static int grow_reftable(struct qcow2 *q, uint64_t entries_needed)
{
	uint64_t per_cluster = q->cluster_size / 8;
	uint64_t entries = q->reftable_entries + q->reftable_entries / 2;
	uint64_t old_offset = q->reftable_offset, old_clusters = q->reftable_entries / per_cluster;

	if (entries < entries_needed + 1)
		entries = entries_needed + 1;
	entries = (entries + per_cluster - 1) / per_cluster * per_cluster;
	uint64_t *bigger = calloc(entries, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	memcpy(bigger, q->reftable, q->reftable_entries * sizeof(*bigger));
	free(q->reftable);
	q->reftable = bigger;
	q->reftable_entries = entries;
	q->reftable_dirty = q->reftable_moved = true;
	/* Its new place: the allocation finds room in the grown table in memory. */
	int64_t offset = qcow2_allocate(q, entries / per_cluster);
	if (offset < 0) {
		q->broken = true; /* the table in memory has no place: do not write it */
		return (int)offset;
	}
	q->reftable_offset = (uint64_t)offset;
	return qcow2_free_later(q, old_offset, old_clusters);
}

/* Makes the refcount block for `cluster` in the first cluster that it counts itself and that is free: `cluster`. */
static int create_block(struct qcow2 *q, uint64_t cluster)
{
	uint64_t index = cluster >> q->block_bits;
	int error = 0;

	if (index >= q->reftable_entries) {
		error = grow_reftable(q, index);
		if (error || (q->reftable[index] & REFTABLE_OFFSET))
			return error;
	}
	struct table *table = qcow2_table(q, &q->blocks, cluster << q->cluster_bits, true, &error);
	if (!table)
		return error;
	qcow2_block_set(q, table->bytes, cluster & (block_entries(q) - 1), 1);
	q->reftable[index] = cluster << q->cluster_bits;
	q->reftable_dirty = true;
	if (q->file_clusters <= cluster)
		q->file_clusters = cluster + 1;
	return 0;
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, int delta)
{
	struct table *table;
	int error = find_block(q, cluster, &table);

	if (error)
		return error;
	if (!table)
		return qcow2_corrupt(q, "refcount of an uncounted cluster changes", cluster << q->cluster_bits);
	uint64_t index = cluster & (block_entries(q) - 1), count = qcow2_block_get(q, table->bytes, index);
	if ((delta < 0 && count == 0) || (delta > 0 && count >= refcount_max(q)))
		return qcow2_corrupt(q, delta < 0 ? "refcount below zero" : "refcount overflow", cluster << q->cluster_bits);
	qcow2_block_set(q, table->bytes, index, delta < 0 ? count - 1 : count + 1);
	qcow2_table_dirty(&q->blocks, table);
	if (delta < 0 && count == 1 && cluster < q->free_guess)
		q->free_guess = cluster;
	return 0;
}

int64_t qcow2_allocate(struct qcow2 *q, uint64_t count)
{
	uint64_t first = q->free_guess, found = 0;
	bool lowest = true;

	if (q->broken)
		return -EIO;
	while (found < count) {
		uint64_t cluster = first + found, refcount;
		struct table *table;
		int error = find_block(q, cluster, &table);

		if (error)
			return error;
		if (!table) {
			if (cluster >> (56 - q->cluster_bits))
				return -EFBIG;
			error = create_block(q, cluster);
			if (error)
				return error;
			continue; /* look again: `cluster` is now the block itself, or the table moved there */
		}
		refcount = qcow2_block_get(q, table->bytes, cluster & (block_entries(q) - 1));
		if (refcount == 0) {
			found++;
			continue;
		}
		if (lowest && found == 0)
			q->free_guess = cluster + 1;
		else
			lowest = false; /* there is a gap that was too small: keep the guess in front of it */
		first = cluster + 1;
		found = 0;
	}
	for (uint64_t i = 0; i < count; i++) {
		int error = qcow2_refcount_add(q, first + i, 1);

		if (error)
			return error;
	}
	if (q->free_guess == first)
		q->free_guess = first + count;
	if (q->file_clusters < first + count)
		q->file_clusters = first + count;
	return (int64_t)(first << q->cluster_bits);
}

int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
	for (uint64_t i = 0; i < clusters; i++) {
		if (q->freed_count == q->freed_room) {
			size_t room = q->freed_room ? q->freed_room * 2 : 256;
			struct freed *more = realloc(q->freed, room * sizeof(*more));

			if (!more)
				return -ENOMEM; /* the cluster leaks; nothing is lost */
			q->freed = more;
			q->freed_room = room;
		}
		q->freed[q->freed_count++] =
			(struct freed){.cluster = (offset >> q->cluster_bits) + i, .epoch = q->epoch};
	}
	return 0;
}

void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length)
{
	unsigned shift = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (entry >> shift & ((1ull << (q->cluster_bits - 8)) - 1)) + 1;

	*offset = entry & ((1ull << shift) - 1);
	*length = sectors * SECTOR - (*offset & (SECTOR - 1));
}

int qcow2_free_compressed_later(struct qcow2 *q, uint64_t entry)
{
	uint64_t offset, length;

	qcow2_compressed_range(q, entry, &offset, &length);
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
	return qcow2_free_later(q, first << q->cluster_bits, last - first + 1);
}

/*
 * Called when all metadata is on the disk. What was freed before the last change of epoch can have no request in flight any more
 * when the old epoch's are done; its references went to the disk with this flush or an earlier one.
 */
void qcow2_apply_frees(struct qcow2 *q)
{
	unsigned old = !q->epoch;
	size_t kept = 0, count = q->freed_count;

	if (q->in_flight[old])
		return;
	for (size_t i = 0; i < count; i++) {
		struct freed freed = q->freed[i];
		uint64_t refcount = 1;

		if (freed.epoch != old) {
			q->freed[kept++] = freed;
			continue;
		}
		if (qcow2_refcount_add(q, freed.cluster, -1) || qcow2_refcount_get(q, freed.cluster, &refcount))
			continue;
		if (refcount == 0)
			(void)host_file_discard(&q->disk->file, freed.cluster << q->cluster_bits, q->cluster_size);
	}
	q->freed_count = kept;
	q->epoch = old;
}
