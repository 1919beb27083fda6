/*
 * qcow2: checking an image: counts every reference, compares with the refcounts and the COPIED flags, and repairs those
 * on request.
 *
 * An error is a cluster used more often than it is counted, a COPIED flag that is not true, or a reference that leads
 * nowhere (dangers to data); a leak is a cluster counted more often than it is used (lost space). Repair writes the
 * counts and flags that were found; it never changes what the guest sees.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/qcow2.h"

#define CHUNK_BITS   16
#define CLUSTERS_MAX (1ull << 32)
#define VISITS_MAX                                                                                                     \
	(1ull                                                                                                          \
	 << 28) /* table entries looked at outside of L2 tables, and L2 tables times 1024: hostile images name    \
	                one table often */

struct audit {
	struct qcow2 *q;
	struct disk_check *result;
	uint16_t **chunk; /* references found, per cluster, saturating; chunks of 1 << CHUNK_BITS, made when needed */
	uint64_t chunks;
	uint64_t clusters; /* that the file has: references beyond are errors */
	uint64_t visits;
	bool unsound; /* references that lead nowhere: counting again does not mend them */
};

static uint64_t found_count(const struct audit *audit, uint64_t cluster)
{
	const uint16_t *chunk = cluster >> CHUNK_BITS < audit->chunks ? audit->chunk[cluster >> CHUNK_BITS] : NULL;

	return chunk ? chunk[cluster & ((1u << CHUNK_BITS) - 1)] : 0;
}

static int count_cluster(struct audit *audit, uint64_t cluster)
{
	uint16_t **chunk = &audit->chunk[cluster >> CHUNK_BITS], *count;

	if (!*chunk)
		*chunk = calloc(1u << CHUNK_BITS, sizeof(**chunk));
	if (!*chunk)
		return -ENOMEM;
	count = &(*chunk)[cluster & ((1u << CHUNK_BITS) - 1)];
	if (*count < UINT16_MAX)
		++*count;
	return 0;
}

static void unsound(struct audit *audit)
{
	audit->result->errors++;
	audit->unsound = true;
}

static int count_range(struct audit *audit, uint64_t offset, uint64_t length)
{
	struct qcow2 *q = audit->q;
	int error = 0;

	if (length == 0)
		return 0;
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
	if (last < first || last >= audit->clusters) {
		unsound(audit);
		return 0;
	}
	for (uint64_t i = first; !error && i <= last; i++)
		error = count_cluster(audit, i);
	return error;
}

static int visit(struct audit *audit, uint64_t cost)
{
	audit->visits += cost;
	return audit->visits > VISITS_MAX ? -E2BIG : 0;
}

static int count_l2(struct audit *audit, uint64_t offset, uint8_t *table)
{
	struct qcow2 *q = audit->q;
	int error = visit(audit, 1024);

	if (!error)
		error = host_file_read(&q->disk->file, offset, table, q->cluster_size);
	for (uint64_t i = 0; !error && i < 1ull << q->l2_bits; i++) {
		uint64_t entry = get_be64(table + i * 8), at = entry & L2_OFFSET, length = q->cluster_size;

		if (entry & L2_COMPRESSED)
			qcow2_compressed_range(q, entry, &at, &length);
		else if (!at)
			continue;
		else if (!qcow2_aligned(q, at)) {
			unsound(audit);
			continue;
		}
		/* The last compressed cluster's sectors may reach beyond the end of the file. */
		if (entry & L2_COMPRESSED && (at + length - 1) >> q->cluster_bits >= audit->clusters &&
		    at >> q->cluster_bits < audit->clusters)
			length = (audit->clusters << q->cluster_bits) - at;
		audit->result->allocated++;
		error = count_range(audit, at, length);
	}
	return error;
}

static int count_l1(struct audit *audit, uint64_t offset, const uint64_t *l1, uint64_t entries)
{
	struct qcow2 *q = audit->q;
	uint8_t *table = malloc(q->cluster_size);
	int error = table ? visit(audit, entries) : -ENOMEM;

	if (!error)
		error = count_range(audit, offset, entries * 8);
	for (uint64_t i = 0; !error && i < entries; i++) {
		uint64_t at = l1[i] & L2_OFFSET;

		if (!at)
			continue;
		if (!qcow2_aligned(q, at) || at >> q->cluster_bits >= audit->clusters) {
			unsound(audit);
			continue;
		}
		error = count_range(audit, at, q->cluster_size);
		if (!error)
			error = count_l2(audit, at, table);
	}
	free(table);
	return error;
}

/* The internal snapshots: each has an L1 table of its own. */
static int count_snapshots(struct audit *audit)
{
	struct qcow2 *q = audit->q;
	int error = count_range(audit, q->snapshots_offset, q->snapshots_bytes);

	for (uint32_t i = 0; !error && i < q->snapshot_count; i++) {
		const struct snapshot *snapshot = &q->snapshots[i];
		uint64_t *l1 = NULL;

		error = visit(audit, snapshot->l1_size);
		if (!error)
			l1 = qcow2_read_words(q, snapshot->l1_offset, snapshot->l1_size, &error);
		if (!error)
			error = count_l1(audit, snapshot->l1_offset, l1, snapshot->l1_size);
		free(l1);
	}
	return error;
}

static int count_refcount_structures(struct audit *audit)
{
	struct qcow2 *q = audit->q;
	int error = count_range(audit, q->reftable_offset, q->reftable_entries * 8);

	for (uint64_t i = 0; !error && i < q->reftable_entries; i++) {
		uint64_t at = q->reftable[i] & REFTABLE_OFFSET;

		if (at && !qcow2_aligned(q, at))
			unsound(audit);
		else if (at)
			error = count_range(audit, at, q->cluster_size);
	}
	return error;
}

static int count_all(struct audit *audit)
{
	struct qcow2 *q = audit->q;
	int error = count_range(audit, 0, q->cluster_size);

	if (!error)
		error = count_refcount_structures(audit);
	if (!error)
		error = count_l1(audit, q->l1_offset, q->l1, q->l1_size);
	audit->result->clusters = (q->disk->size + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t allocated = audit->result->allocated; /* the guest's, without the snapshots' */
	if (!error)
		error = count_snapshots(audit);
	audit->result->allocated = allocated;
	return error;
}

/* ---- the COPIED flags of the active tables: set where this table is the only user ---- */

static bool flag_is_wrong(struct audit *audit, uint64_t entry)
{
	uint64_t at = entry & L2_OFFSET;

	if (entry & L2_COMPRESSED)
		return entry & L2_COPIED;
	return at && (found_count(audit, at >> audit->q->cluster_bits) == 1) != !!(entry & L2_COPIED);
}

static int check_l2_flags(struct audit *audit, uint64_t offset, bool repair)
{
	struct qcow2 *q = audit->q;
	int error = 0;

	for (uint64_t i = 0; i < 1ull << q->l2_bits; i++) {
		struct table *table = qcow2_table(q, &q->l2, offset, false, &error);

		if (!table)
			return error;
		uint64_t entry = get_be64(table->bytes + i * 8);
		if (!flag_is_wrong(audit, entry))
			continue;
		if (!repair) {
			audit->result->errors++;
			continue;
		}
		put_be64(table->bytes + i * 8, entry ^ L2_COPIED);
		qcow2_table_dirty(&q->l2, table, i * 8, 8);
		audit->result->fixed++;
	}
	return 0;
}

static int check_flags(struct audit *audit, bool repair)
{
	struct qcow2 *q = audit->q;
	int error = 0;

	for (uint64_t i = 0; !error && i < q->l1_size; i++) {
		uint64_t at = q->l1[i] & L2_OFFSET;

		if (!at || !qcow2_aligned(q, at) || at >> q->cluster_bits >= audit->clusters)
			continue;
		if (flag_is_wrong(audit, q->l1[i] & ~L2_COMPRESSED)) {
			if (!repair) {
				audit->result->errors++;
			} else {
				q->l1[i] ^= L2_COPIED;
				qcow2_words_dirty(&q->l1_dirty, i);
				audit->result->fixed++;
			}
		}
		error = check_l2_flags(audit, at, repair);
	}
	return error;
}

/* ---- the counts ---- */

/* A block for clusters that are used and not counted, behind the end of the file; its own count is mended like the
 * others. */
static int append_block(struct audit *audit, uint64_t index)
{
	struct qcow2 *q = audit->q;
	uint64_t cluster = audit->clusters;
	int error;

	if (index >= q->reftable_entries)
		return -EFBIG;
	if (cluster >> CHUNK_BITS >= audit->chunks) {
		uint16_t **more = realloc(audit->chunk, (audit->chunks + 1) * sizeof(*more));

		if (!more)
			return -ENOMEM;
		more[audit->chunks++] = NULL;
		audit->chunk = more;
	}
	if (!qcow2_table(q, &q->blocks, cluster << q->cluster_bits, true, &error))
		return error;
	q->reftable[index] = cluster << q->cluster_bits;
	qcow2_words_dirty(&q->reftable_dirty, index);
	(void)qcow2_metadata_add(q, cluster << q->cluster_bits, 1);
	audit->clusters++;
	q->file_clusters = audit->clusters;
	return count_cluster(audit, cluster);
}

static int repair_count(struct audit *audit, uint64_t cluster, uint64_t count)
{
	struct qcow2 *q = audit->q;
	uint64_t index = cluster >> q->block_bits;
	int error = 0;

	if (index >= q->reftable_entries || !(q->reftable[index] & REFTABLE_OFFSET))
		error = append_block(audit, index);
	if (error)
		return error;
	uint64_t bits = 1ull << q->refcount_order, within = cluster & ((1ull << q->block_bits) - 1);
	if (bits < 64 && count >> bits)
		return -EOVERFLOW;
	struct table *block = qcow2_table(q, &q->blocks, q->reftable[index] & REFTABLE_OFFSET, false, &error);
	if (!block)
		return error;
	qcow2_block_set(q, block->bytes, within, count);
	qcow2_table_dirty(&q->blocks, block, within * bits / 8, bits < 8 ? 1 : bits / 8);
	audit->result->fixed++;
	return 0;
}

/* How many clusters from here on are surely not used and have no block that counts them. */
static uint64_t nothing_there(const struct audit *audit, uint64_t cluster)
{
	const struct qcow2 *q = audit->q;
	uint64_t index = cluster >> q->block_bits,
	         in_block = (1ull << q->block_bits) - (cluster & ((1ull << q->block_bits) - 1));
	uint64_t in_chunk = (1ull << CHUNK_BITS) - (cluster & ((1ull << CHUNK_BITS) - 1));
	uint64_t block = index < q->reftable_entries ? (q->reftable[index] & REFTABLE_OFFSET) >> q->cluster_bits : 0;

	if ((block && block < audit->clusters) ||
	    (cluster >> CHUNK_BITS < audit->chunks && audit->chunk[cluster >> CHUNK_BITS]))
		return 0;
	return in_block < in_chunk ? in_block : in_chunk;
}

static int compare_counts(struct audit *audit, bool repair)
{
	struct qcow2 *q = audit->q;
	int error = 0;

	for (uint64_t cluster = 0;
	     !error && (cluster < audit->clusters || cluster >> q->block_bits < q->reftable_entries); cluster++) {
		uint64_t count, found = found_count(audit, cluster), skip = nothing_there(audit, cluster);

		if (skip) {
			cluster += skip - 1;
			continue;
		}
		/* Behind the end of the file a sound image counts next to nothing. */
		error = cluster >= audit->clusters ? visit(audit, 16) : 0;
		if (error)
			break;
		error = qcow2_refcount_get(q, cluster, &count);
		if (error || count == found)
			continue;
		if (repair)
			error = repair_count(audit, cluster, found);
		else if (count < found)
			audit->result->errors++;
		else
			audit->result->leaks++;
	}
	return error;
}

/* ---- */

static int finish_repair(struct qcow2 *q)
{
	int error;

	q->broken = false;
	q->free_guess = 0;
	error = qcow2_metadata_flush(q, false);
	if (error)
		return error;
	q->incompatible &= ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
	error = qcow2_write_features(q);
	return error ? error : host_file_sync(&q->disk->file);
}

static int audit_image(struct audit *audit, bool repair, char *why)
{
	struct qcow2 *q = audit->q;
	int error = count_all(audit);

	if (!error && audit->unsound && repair)
		return qcow2_bad(q->disk, why,
		                 "tables refer to places outside the file; convert what is readable to a new image");
	if (!error)
		error = compare_counts(audit, repair);
	if (!error)
		error = check_flags(audit, repair);
	return error || !repair ? error : finish_repair(q);
}

int qcow2_check_locked(struct qcow2 *q, bool repair, struct disk_check *result, char *why)
{
	struct audit audit = {.q = q, .result = result};
	int error = 0;

	memset(result, 0, sizeof(*result));
	if (!q->disk->file.readonly && !q->broken) {
		/* Twice: what the first one gives free must not count as used. */
		for (unsigned i = 0; i < 3 && !error && (qcow2_metadata_dirty(q) || q->waiting); i++)
			error = qcow2_metadata_flush(q, false);
	}
	int64_t size = host_file_size(&q->disk->file);
	if (!error && size < 0)
		error = (int)size;
	audit.clusters = ((uint64_t)size + q->cluster_size - 1) >> q->cluster_bits;
	if (!error && audit.clusters > CLUSTERS_MAX)
		return qcow2_bad(q->disk, why, "too large to be checked");
	audit.chunks = (audit.clusters >> CHUNK_BITS) + 1;
	audit.chunk = error ? NULL : calloc(audit.chunks, sizeof(*audit.chunk));
	if (!error)
		error = audit.chunk ? audit_image(&audit, repair, why) : -ENOMEM;
	for (uint64_t i = 0; audit.chunk && i < audit.chunks; i++)
		free(audit.chunk[i]);
	free(audit.chunk);
	if (error == -E2BIG)
		return qcow2_bad(q->disk, why,
		                 "tables are referred to too often: not an image that was written by a program");
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
