/*
 * qcow2: checking an image: counts every reference, compares with the refcounts, and repairs those on request.
 *
 * An error is a cluster used more often than it is counted (a danger to data); a leak is one counted more often than it is used (lost
 * space). Repair writes the counts that were found; it never changes what the guest sees.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/qcow2.h"

struct audit {
	struct qcow2 *q;
	struct disk_check *result;
	uint16_t *count; /* references found, per cluster, saturating */
	uint64_t clusters;
	uint64_t limit; /* clusters that the file could have: references beyond it are errors */
};

static int count_range(struct audit *audit, uint64_t offset, uint64_t length)
{
	struct qcow2 *q = audit->q;

	if (length == 0)
		return 0;
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
	if (last < first || last >= audit->limit) {
		audit->result->errors++;
		return 0;
	}
	if (last >= audit->clusters) {
		uint64_t room = last + 1 + audit->clusters / 2;
		uint16_t *more = realloc(audit->count, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		memset(more + audit->clusters, 0, (room - audit->clusters) * sizeof(*more));
		audit->count = more;
		audit->clusters = room;
	}
	for (uint64_t i = first; i <= last; i++)
		if (audit->count[i] < UINT16_MAX)
			audit->count[i]++;
	return 0;
}

static int count_l2(struct audit *audit, uint64_t offset)
{
	struct qcow2 *q = audit->q;
	uint8_t *table = malloc(q->cluster_size);
	int error = table ? host_file_read(&q->disk->file, offset, table, q->cluster_size) : -ENOMEM;

	for (uint64_t i = 0; !error && i < 1ull << q->l2_bits; i++) {
		uint64_t entry = get_be64(table + i * 8), at = entry & L2_OFFSET, length = q->cluster_size;

		audit->result->clusters++;
		if (entry & L2_COMPRESSED)
			qcow2_compressed_range(q, entry, &at, &length);
		else if (!at)
			continue;
		else if (at & (q->cluster_size - 1)) {
			audit->result->errors++;
			continue;
		}
		audit->result->allocated++;
		error = count_range(audit, at, length);
	}
	free(table);
	return error;
}

static int count_l1(struct audit *audit, uint64_t offset, const uint64_t *l1, uint64_t entries)
{
	struct qcow2 *q = audit->q;
	int error = count_range(audit, offset, entries * 8);

	for (uint64_t i = 0; !error && i < entries; i++) {
		uint64_t at = l1[i] & L2_OFFSET;

		if (!at)
			continue;
		if (at & (q->cluster_size - 1)) {
			audit->result->errors++;
			continue;
		}
		error = count_range(audit, at, q->cluster_size);
		if (!error && at >> q->cluster_bits < audit->limit)
			error = count_l2(audit, at);
	}
	return error;
}

/* The internal snapshots' table: each has an L1 table of its own. */
static int count_snapshots(struct audit *audit)
{
	struct qcow2 *q = audit->q;
	uint64_t at = q->snapshots_offset;
	int error = 0;

	for (uint32_t i = 0; !error && i < q->snapshot_count; i++) {
		uint8_t head[40];

		error = host_file_read(&q->disk->file, at, head, sizeof(head));
		if (error)
			return error;
		uint64_t offset = get_be64(head), entries = get_be32(head + 8);
		if (entries > (32u << 20 >> 3) || (offset & (q->cluster_size - 1)) || offset > INT64_MAX / 2) {
			audit->result->errors++;
			return 0;
		}
		uint64_t *l1 = calloc(entries ? entries : 1, sizeof(*l1));
		error = l1 ? host_file_read(&q->disk->file, offset, l1, entries * 8) : -ENOMEM;
		for (uint64_t j = 0; !error && j < entries; j++)
			l1[j] = get_be64(&l1[j]);
		if (!error)
			error = count_l1(audit, offset, l1, entries);
		free(l1);
		at += (40 + (uint64_t)get_be32(head + 36) + get_be16(head + 12) + get_be16(head + 14) + 7) & ~7ull;
	}
	return error ? error : count_range(audit, q->snapshots_offset, at - q->snapshots_offset);
}

static int count_refcount_structures(struct audit *audit)
{
	struct qcow2 *q = audit->q;
	int error = count_range(audit, q->reftable_offset, q->reftable_entries * 8);

	for (uint64_t i = 0; !error && i < q->reftable_entries; i++)
		if (q->reftable[i])
			error = count_range(audit, q->reftable[i], q->cluster_size);
	return error;
}

/* Sets one count to what was found. Where no block counts the cluster yet, making one is left to the next open. */
static int repair_count(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
	uint64_t index = cluster >> q->block_bits;
	int error;

	if (index >= q->reftable_entries || !q->reftable[index])
		return count ? -ENOTSUP : 0;
	struct table *block = qcow2_table(q, &q->blocks, q->reftable[index], false, &error);
	if (!block)
		return error;
	qcow2_block_set(q, block->bytes, cluster & ((1ull << q->block_bits) - 1), count);
	qcow2_table_dirty(&q->blocks, block);
	return 0;
}

static int compare(struct audit *audit, bool repair)
{
	struct qcow2 *q = audit->q;
	uint64_t counted = q->reftable_entries << q->block_bits, end = counted > audit->clusters ? counted : audit->clusters;
	int error = 0;

	for (uint64_t cluster = 0; !error && cluster < end; cluster++) {
		uint64_t found = cluster < audit->clusters ? audit->count[cluster] : 0, count;

		if (!(cluster & ((1ull << q->block_bits) - 1)) && cluster >= audit->clusters &&
		    !q->reftable[cluster >> q->block_bits]) {
			cluster += (1ull << q->block_bits) - 1; /* nothing counted here, nothing used */
			continue;
		}
		error = qcow2_refcount_get(q, cluster, &count);
		if (error || count == found)
			continue;
		if (repair) {
			error = repair_count(q, cluster, found);
			if (!error)
				audit->result->fixed++;
		} else if (count < found) {
			audit->result->errors++;
		} else {
			audit->result->leaks++;
		}
	}
	return error;
}

int qcow2_check_locked(struct qcow2 *q, bool repair, struct disk_check *result, char *why)
{
	struct audit audit = {.q = q, .result = result};
	int64_t size = host_file_size(&q->disk->file);
	int error = size < 0 ? (int)size : 0;

	memset(result, 0, sizeof(*result));
	if (!error && !q->disk->file.readonly && !q->broken)
		error = qcow2_metadata_flush(q, true);
	audit.limit = ((uint64_t)size + q->cluster_size - 1) >> q->cluster_bits;
	if (!error)
		error = count_range(&audit, 0, q->cluster_size);
	if (!error)
		error = count_refcount_structures(&audit);
	if (!error)
		error = count_l1(&audit, q->l1_offset, q->l1, q->l1_size);
	if (!error && q->snapshot_count)
		error = count_snapshots(&audit);
	bool unsound = result->errors != 0; /* references that lead nowhere: counting again does not mend them */
	if (!error)
		error = compare(&audit, repair && !unsound);
	if (!error && repair && unsound) {
		snprintf(why, DISK_WHY_SIZE, "%s: tables refer to places outside the file; convert what is readable to a new image",
			 q->disk->file.path);
		error = -EIO;
	} else if (!error && repair) {
		q->broken = false;
		q->incompatible &= ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
		error = qcow2_metadata_flush(q, true);
		if (!error)
			error = qcow2_write_features(q);
		if (!error)
			error = host_file_sync(&q->disk->file);
	}
	free(audit.count);
	if (error && !why[0])
		snprintf(why, DISK_WHY_SIZE, "%s: %s", q->disk->file.path, strerror(-error));
	return error;
}

int qcow2_check(struct disk *disk, bool repair, struct disk_check *result, char *why)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = qcow2_check_locked(q, repair, result, why);
	pthread_mutex_unlock(&q->lock);
	return error;
}
