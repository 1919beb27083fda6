/*
 * qcow2: which clusters of the file are in use: counting, allocating, giving back.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

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
	if (!qcow2_aligned(q, offset))
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

static void set_count(struct qcow2 *q, struct table *table, uint64_t index, uint64_t count)
{
	uint64_t bit = index << q->refcount_order;

	qcow2_block_set(q, table->bytes, index, count);
	qcow2_table_dirty(&q->blocks, table, bit / 8,
	                  (1ull << q->refcount_order) < 8 ? 1 : (1ull << q->refcount_order) / 8);
}

/* A larger refcount table behind the end of the file; the old one is given back later. */
static int grow_reftable(struct qcow2 *q, uint64_t entries_needed)
{
	uint64_t per_cluster = q->cluster_size / 8, most = REFTABLE_BYTES_MAX / 8;
	uint64_t entries = q->reftable_entries + q->reftable_entries / 2;
	uint64_t old_offset = q->reftable_offset, old_clusters = q->reftable_entries / per_cluster;

	if (entries < entries_needed + 1)
		entries = entries_needed + 1;
	entries = (entries + per_cluster - 1) / per_cluster * per_cluster;
	if (entries > most)
		entries = most;
	if (entries_needed >= entries)
		return -EFBIG;
	uint64_t *bigger = calloc(entries, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	memcpy(bigger, q->reftable, q->reftable_entries * sizeof(*bigger));
	free(q->reftable);
	q->reftable = bigger;
	q->reftable_entries = entries;
	/* Its new place: the allocation finds room in the grown table in memory. */
	int64_t offset = qcow2_allocate_row(q, entries / per_cluster);
	int error = offset < 0 ? (int)offset : qcow2_metadata_add(q, (uint64_t)offset, entries * 8);
	if (error) {
		q->broken = true; /* the table in memory has no place: do not write it */
		return error;
	}
	q->reftable_dirty = (struct dirty_words){0, entries};
	q->reftable_moved = true;
	q->reftable_offset = (uint64_t)offset;
	qcow2_metadata_remove(q, old_offset, old_clusters << q->cluster_bits);
	qcow2_free_later(q, old_offset, old_clusters);
	return 0;
}

/* Makes the refcount block that counts `cluster`, in this cluster itself: what is not counted is free. */
static int create_block(struct qcow2 *q, uint64_t cluster)
{
	uint64_t index = cluster >> q->block_bits;
	int error = 0;

	if (cluster >> (56 - q->cluster_bits))
		return -EFBIG;
	if (index >= q->reftable_entries) {
		error = grow_reftable(q, index);
		if (error || (q->reftable[index] & REFTABLE_OFFSET))
			return error;
	}
	error = qcow2_metadata_add(q, cluster << q->cluster_bits, 1);
	if (error == -EEXIST)
		return qcow2_corrupt(q, "metadata is not counted", cluster << q->cluster_bits);
	if (error)
		return error;
	struct table *table = qcow2_table(q, &q->blocks, cluster << q->cluster_bits, true, &error);
	if (!table) {
		qcow2_metadata_remove(q, cluster << q->cluster_bits, 1);
		return error;
	}
	set_count(q, table, cluster & (block_entries(q) - 1), 1);
	q->reftable[index] = cluster << q->cluster_bits;
	qcow2_words_dirty(&q->reftable_dirty, index);
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
		return qcow2_corrupt(q, delta < 0 ? "refcount below zero" : "refcount overflow",
		                     cluster << q->cluster_bits);
	set_count(q, table, index, delta < 0 ? count - 1 : count + 1);
	if (delta < 0 && count == 1 && cluster < q->free_guess)
		q->free_guess = cluster;
	return 0;
}

/* How many clusters from `cluster` on are free, at most `wanted` and those of one block. A block that is missing is
 * made. */
static int free_row(struct qcow2 *q, uint64_t cluster, uint64_t wanted, struct table **table, uint64_t *row)
{
	uint64_t index = cluster & (block_entries(q) - 1);
	int error = find_block(q, cluster, table);

	*row = 0;
	if (error)
		return error;
	if (!*table)
		return create_block(q, cluster); /* which is therefore not free any more */
	while (*row < wanted && index + *row < block_entries(q) &&
	       qcow2_block_get(q, (*table)->bytes, index + *row) == 0)
		++*row;
	return 0;
}

static int take_row(struct qcow2 *q, struct table *table, uint64_t cluster, uint64_t row)
{
	if (qcow2_is_metadata(q, cluster << q->cluster_bits, row << q->cluster_bits))
		return qcow2_corrupt(q, "metadata is counted as free", cluster << q->cluster_bits);
	for (uint64_t i = 0; i < row; i++)
		set_count(q, table, (cluster + i) & (block_entries(q) - 1), 1);
	if (q->file_clusters < cluster + row)
		q->file_clusters = cluster + row;
	return 0;
}

/* Moves free_guess to a cluster that is free; its block is *table. */
static int find_free(struct qcow2 *q, struct table **table)
{
	uint64_t entries = block_entries(q);

	for (;;) {
		uint64_t index = q->free_guess & (entries - 1);
		int error = find_block(q, q->free_guess, table);

		if (!error && !*table)
			error = create_block(q, q->free_guess);
		if (error)
			return error;
		if (!*table)
			continue;
		while (index < entries && qcow2_block_get(q, (*table)->bytes, index))
			index++;
		q->free_guess = (q->free_guess & ~(entries - 1)) + index;
		if (index < entries)
			return 0;
	}
}

int64_t qcow2_allocate(struct qcow2 *q, uint64_t wanted, uint64_t *got)
{
	struct table *table;
	int error = q->broken ? -EIO : find_free(q, &table);
	uint64_t cluster = q->free_guess;

	if (!error)
		error = free_row(q, cluster, wanted, &table, got);
	if (!error)
		error = take_row(q, table, cluster, *got);
	if (error)
		return error;
	q->free_guess += *got;
	return (int64_t)(cluster << q->cluster_bits);
}

int64_t qcow2_allocate_row(struct qcow2 *q, uint64_t count)
{
	uint64_t first = q->file_clusters > q->free_guess ? q->file_clusters : q->free_guess, found = 0;
	struct table *table;
	int error = 0;

	if (q->broken)
		return -EIO;
	while (found < count) {
		uint64_t row;

		error = free_row(q, first + found, count - found, &table, &row);
		if (error)
			return error;
		found += row;
		if (!row) {
			first += found + 1;
			found = 0;
		}
	}
	for (uint64_t done = 0, row; done < count; done += row) {
		error = free_row(q, first + done, count - done, &table, &row);
		if (!error)
			error = row ? take_row(q, table, first + done, row) : -EIO;
		if (error)
			return error;
	}
	return (int64_t)(first << q->cluster_bits);
}

void qcow2_allocation_undo(struct qcow2 *q, uint64_t offset, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (qcow2_refcount_add(q, (offset >> q->cluster_bits) + i, -1))
			return; /* they leak */
}

/* Appends a range; false: no memory. */
static bool list_add(struct range_list *list, uint64_t first, uint64_t count)
{
	struct cluster_range *last = list->count ? &list->range[list->count - 1] : NULL;

	if (last && last->first + last->count == first) {
		last->count += count;
		return true;
	}
	if (list->count == list->room) {
		size_t room = list->room ? list->room * 2 : 64;
		struct cluster_range *more = realloc(list->range, room * sizeof(*more));

		if (!more)
			return false;
		list->range = more;
		list->room = room;
	}
	list->range[list->count++] = (struct cluster_range){first, count};
	return true;
}

void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
	if (clusters && list_add(&q->removed, offset >> q->cluster_bits, clusters))
		q->waiting += clusters;
}

void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length)
{
	unsigned shift = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (entry >> shift & ((1ull << (q->cluster_bits - 8)) - 1)) + 1;

	*offset = entry & ((1ull << shift) - 1);
	*length = sectors * SECTOR - (*offset & (SECTOR - 1));
}

void qcow2_free_compressed_later(struct qcow2 *q, uint64_t entry)
{
	uint64_t offset, length;

	qcow2_compressed_range(q, entry, &offset, &length);
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
	qcow2_free_later(q, first << q->cluster_bits, last - first + 1);
}

/* One reference less for each cluster of the range; what is free then is given back to the host. */
static void drop_range(struct qcow2 *q, struct cluster_range range)
{
	uint64_t hole = 0; /* length of the row of free clusters up to here */

	for (uint64_t i = 0; i <= range.count; i++) {
		uint64_t cluster = range.first + i, refcount = 1;

		if (i < range.count && !qcow2_refcount_add(q, cluster, -1) &&
		    !qcow2_refcount_get(q, cluster, &refcount) && refcount == 0) {
			hole++;
			continue;
		}
		if (hole)
			(void)host_file_discard(&q->disk->file, (cluster - hole) << q->cluster_bits,
			                        hole << q->cluster_bits);
		hole = 0;
	}
	q->waiting -= range.count;
}

static void drop_list(struct qcow2 *q, struct range_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		drop_range(q, list->range[i]);
	list->count = 0;
}

void qcow2_apply_frees(struct qcow2 *q, struct range_list *list)
{
	struct range_list *now = &q->durable[q->epoch];
	unsigned old = !q->epoch;

	for (size_t i = 0; i < list->count; i++)
		if (!list_add(now, list->range[i].first, list->range[i].count))
			q->waiting -= list->range[i].count; /* no memory: they leak */
	list->count = 0;
	/* Dropping may flush, to make room in the cache: then the outer call goes on with what the inner one has added.
	 */
	if (q->in_flight[old] || q->dropping)
		return;
	q->dropping = true;
	drop_list(q, &q->durable[old]);
	if (q->in_flight[q->epoch])
		q->epoch = old;
	else
		drop_list(q, &q->durable[q->epoch]);
	q->dropping = false;
}
