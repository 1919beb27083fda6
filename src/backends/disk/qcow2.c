/*
 * qcow2 images, versions 2 and 3: opening, reading, writing. qcow2.h has the picture and the crash rule.
 *
 * Every field of the image is checked where it is used: images are hostile input. What is corrupt is refused without a write.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/log.h"

#define L1_ENTRIES_MAX     (32u << 20 >> 3)
#define REFTABLE_BYTES_MAX (8u << 20)
#define BACKING_NAME_MAX   1023u
#define SNAPSHOTS_MAX      65536u
#define ALLOCATE_MAX       (2u << 20) /* bytes written in one allocation run, under the lock */
#define EXTENSION_BACKING_FORMAT 0xe2792acau

static int bad(char *why, const struct disk *disk, const char *what)
{
	snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, what);
	return -EINVAL;
}

static bool qcow2_probe(const uint8_t head[DISK_HEAD])
{
	return get_be32(head) == QCOW2_MAGIC;
}

static bool cluster_aligned(const struct qcow2 *q, uint64_t offset)
{
	return !(offset & (q->cluster_size - 1));
}

/* ---- opening ---- */

static int parse_header(struct qcow2 *q, const uint8_t *h, char *why)
{
	struct disk *disk = q->disk;

	if (get_be32(h) != QCOW2_MAGIC)
		return bad(why, disk, "not a qcow2 image (bad magic)");
	q->version = get_be32(h + HEADER_VERSION);
	if (q->version != 2 && q->version != 3)
		return bad(why, disk, "qcow2 version is neither 2 nor 3");
	q->cluster_bits = get_be32(h + HEADER_CLUSTER_BITS);
	if (q->cluster_bits < 9 || q->cluster_bits > 21)
		return bad(why, disk, "cluster size out of range (512 bytes to 2 MiB)");
	q->cluster_size = 1ull << q->cluster_bits;
	q->l2_bits = q->cluster_bits - 3;
	if (get_be32(h + HEADER_CRYPT))
		return bad(why, disk, "encrypted images are not supported; convert it with qemu-img first");
	q->refcount_order = 4;
	q->header_length = 72;
	if (q->version == 3) {
		q->incompatible = get_be64(h + HEADER_INCOMPATIBLE);
		q->compatible = get_be64(h + HEADER_COMPATIBLE);
		q->autoclear = get_be64(h + HEADER_AUTOCLEAR);
		q->refcount_order = get_be32(h + HEADER_REFCOUNT_ORDER);
		q->header_length = get_be32(h + HEADER_LENGTH);
		if (q->header_length < 104 || q->header_length > q->cluster_size)
			return bad(why, disk, "header length out of range");
		if (q->refcount_order > 6)
			return bad(why, disk, "refcount width out of range");
		if (q->incompatible & INCOMPATIBLE_DATA_FILE)
			return bad(why, disk, "an external data file is not supported; convert it with qemu-img first");
		if (q->incompatible & INCOMPATIBLE_EXTENDED_L2)
			return bad(why, disk, "extended L2 entries are not supported; convert it with qemu-img first");
		if (q->incompatible & ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION))
			return bad(why, disk, "needs features that ring3 does not know");
		if (q->incompatible & INCOMPATIBLE_COMPRESSION)
			q->compression = q->header_length > HEADER_COMPRESSION ? h[HEADER_COMPRESSION] : 0;
		if (q->compression > COMPRESSION_ZSTD)
			return bad(why, disk, "unknown compression type");
	}
	q->block_bits = q->cluster_bits + 3 - q->refcount_order;
	disk->size = get_be64(h + HEADER_SIZE);
	if (disk->size > INT64_MAX / 2)
		return bad(why, disk, "virtual size out of range");
	q->l1_size = get_be32(h + HEADER_L1_SIZE);
	q->l1_offset = get_be64(h + HEADER_L1_OFFSET);
	q->reftable_offset = get_be64(h + HEADER_REFTABLE_OFFSET);
	q->reftable_entries = (uint64_t)get_be32(h + HEADER_REFTABLE_CLUSTERS) << q->l2_bits;
	q->snapshot_count = get_be32(h + HEADER_SNAPSHOTS);
	q->snapshots_offset = get_be64(h + HEADER_SNAPSHOTS_OFFSET);

	unsigned l1_shift = q->cluster_bits + q->l2_bits;
	uint64_t l1_needed = (disk->size >> l1_shift) + !!(disk->size & ((1ull << l1_shift) - 1));
	if (q->l1_size > L1_ENTRIES_MAX || q->l1_size < l1_needed)
		return bad(why, disk, "L1 table has the wrong size for the image");
	if (!cluster_aligned(q, q->l1_offset) || (q->l1_size && !q->l1_offset) || q->l1_offset > INT64_MAX / 2)
		return bad(why, disk, "L1 table is not at a cluster");
	if (q->reftable_entries * 8 > REFTABLE_BYTES_MAX || q->reftable_entries == 0)
		return bad(why, disk, "refcount table size out of range");
	if (!cluster_aligned(q, q->reftable_offset) || !q->reftable_offset || q->reftable_offset > INT64_MAX / 2)
		return bad(why, disk, "refcount table is not at a cluster");
	if (q->snapshot_count > SNAPSHOTS_MAX || (q->snapshot_count && !cluster_aligned(q, q->snapshots_offset)))
		return bad(why, disk, "snapshot table out of range");
	return 0;
}

static uint64_t *read_words(struct qcow2 *q, uint64_t offset, uint64_t count, int *error)
{
	uint64_t *words = calloc(count ? count : 1, sizeof(*words));

	*error = words ? host_file_read(&q->disk->file, offset, words, count * sizeof(*words)) : -ENOMEM;
	for (uint64_t i = 0; !*error && i < count; i++)
		words[i] = get_be64(&words[i]);
	if (*error) {
		free(words);
		return NULL;
	}
	return words;
}

/* Header extensions: only the backing file's format concerns us. */
static int read_extensions(struct qcow2 *q, uint64_t end)
{
	uint64_t at = q->header_length;

	while (at + 8 <= end) {
		uint8_t head[8];
		int error = host_file_read(&q->disk->file, at, head, sizeof(head));
		uint32_t type = get_be32(head), length = get_be32(head + 4);

		if (error)
			return error;
		if (type == 0 || length > end - at - 8)
			break;
		if (type == EXTENSION_BACKING_FORMAT && length < 32) {
			char name[32] = "";

			error = host_file_read(&q->disk->file, at + 8, name, length);
			if (error)
				return error;
			free(q->backing_format);
			q->backing_format = strdup(name);
		}
		at += 8 + (((uint64_t)length + 7) & ~7ull);
	}
	return 0;
}

static int open_backing(struct qcow2 *q, const uint8_t *h, char *why)
{
	uint64_t offset = get_be64(h + HEADER_BACKING_OFFSET);
	uint32_t length = get_be32(h + HEADER_BACKING_SIZE);
	int error = read_extensions(q, offset ? offset : q->cluster_size);

	if (error)
		return error;
	if (!offset)
		return 0;
	if (length == 0 || length > BACKING_NAME_MAX || offset > q->cluster_size || length > q->cluster_size - offset)
		return bad(why, q->disk, "backing file name out of range");
	q->backing_name = calloc(1, length + 1);
	if (!q->backing_name)
		return -ENOMEM;
	error = host_file_read(&q->disk->file, offset, q->backing_name, length);
	if (error)
		return error;
	if (strlen(q->backing_name) != length)
		return bad(why, q->disk, "backing file name contains a NUL");
	return disk_open_backing(q->disk, q->backing_name, q->backing_format, why);
}

static int prepare_writing(struct qcow2 *q, char *why)
{
	struct disk_check result;
	int error = 0;

	if (q->incompatible & INCOMPATIBLE_CORRUPT)
		return bad(why, q->disk, "marked corrupt; repair it with 'ring3 image check --repair' or open it readonly");
	if (q->incompatible & INCOMPATIBLE_DIRTY)
		error = qcow2_check_locked(q, true, &result, why);
	if (!error && q->autoclear) {
		uint8_t zeros[8] = {0};

		q->autoclear = 0; /* bitmaps and the like: we do not keep them up to date (specification: clear unknown bits) */
		error = host_file_write(&q->disk->file, HEADER_AUTOCLEAR, zeros, sizeof(zeros));
	}
	return error;
}

static void qcow2_free(struct qcow2 *q)
{
	qcow2_caches_destroy(q);
	pthread_mutex_destroy(&q->lock);
	free(q->l1);
	free(q->reftable);
	free(q->freed);
	free(q->backing_name);
	free(q->backing_format);
	free(q);
}

static int qcow2_open(struct disk *disk, char *why)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	uint8_t header[DISK_HEAD];
	int error = -ENOMEM;

	if (!q)
		return error;
	q->disk = disk;
	pthread_mutex_init(&q->lock, NULL);
	int64_t file_size = host_file_size(&disk->file);
	error = file_size < 0 ? (int)file_size : file_size < 72 ? bad(why, disk, "not a qcow2 image (too short)") : 0;
	if (!error)
		error = host_file_read(&disk->file, 0, header, sizeof(header));
	if (!error)
		error = parse_header(q, header, why);
	if (!error) {
		q->file_clusters = ((uint64_t)file_size + q->cluster_size - 1) >> q->cluster_bits;
		error = qcow2_caches_create(q);
	}
	if (!error)
		q->l1 = read_words(q, q->l1_offset, q->l1_size, &error);
	if (!error)
		q->reftable = read_words(q, q->reftable_offset, q->reftable_entries, &error);
	if (!error)
		error = open_backing(q, header, why);
	disk->data = q;
	if (!error && !disk->file.readonly)
		error = prepare_writing(q, why);
	if (!error)
		return 0;
	if (!why[0])
		snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, strerror(-error));
	qcow2_free(q);
	disk->data = NULL;
	return error;
}

static int qcow2_close(struct disk *disk)
{
	struct qcow2 *q = disk->data;
	int error = 0;

	pthread_mutex_lock(&q->lock);
	/* Twice more: each flush gives one epoch's freed clusters back, the last one writes that. */
	for (unsigned i = 0; i < 3 && !error && !q->broken; i++)
		error = qcow2_metadata_flush(q, true);
	pthread_mutex_unlock(&q->lock);
	qcow2_free(q);
	disk->data = NULL;
	return error;
}

/* ---- looking up ---- */

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
	return offset >> q->cluster_bits & ((1ull << q->l2_bits) - 1);
}

/* The L2 table for reading; *table NULL: nothing is allocated there. The lock is held. */
static int l2_for_read(struct qcow2 *q, uint64_t offset, struct table **table)
{
	uint64_t entry = q->l1[offset >> (q->cluster_bits + q->l2_bits)], at = entry & L2_OFFSET;
	int error;

	*table = NULL;
	if (!at)
		return 0;
	if (!cluster_aligned(q, at))
		return qcow2_corrupt(q, "L2 table not at a cluster", at);
	*table = qcow2_table(q, &q->l2, at, false, &error);
	return error;
}

static uint64_t l2_get(const struct table *table, uint64_t index)
{
	return get_be64(table->bytes + index * 8);
}

static void l2_set(struct qcow2 *q, struct table *table, uint64_t index, uint64_t value)
{
	put_be64(table->bytes + index * 8, value);
	qcow2_table_dirty(&q->l2, table);
}

enum entry_kind { ENTRY_HOLE, ENTRY_ZERO, ENTRY_DATA, ENTRY_COMPRESSED };

static enum entry_kind entry_kind(const struct qcow2 *q, uint64_t entry)
{
	if (entry & L2_COMPRESSED)
		return ENTRY_COMPRESSED;
	if (q->version >= 3 && (entry & L2_ZERO))
		return ENTRY_ZERO;
	return entry & L2_OFFSET ? ENTRY_DATA : ENTRY_HOLE;
}

/*
 * The extent at `offset`: what the entries from there on have in common, contiguous in the file for data, at most `length` bytes and not
 * beyond one L2 table. Compressed: one cluster, *entry says which.
 */
static int find_extent(struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t length, bool in_place,
		       struct disk_extent *extent, enum entry_kind *kind, uint64_t *first_entry)
{
	uint64_t within = offset & (q->cluster_size - 1), index = l2_index(q, offset), covered = q->cluster_size - within;
	uint64_t entry = table ? l2_get(table, index) : 0, at = entry & L2_OFFSET;

	*kind = entry_kind(q, entry);
	*first_entry = entry;
	if (in_place && (*kind != ENTRY_DATA || !(entry & L2_COPIED)))
		return 0;
	if (*kind == ENTRY_DATA && !cluster_aligned(q, at))
		return qcow2_corrupt(q, "data cluster not at a cluster", at);
	if (!table)
		covered = ((1ull << q->l2_bits) - index) * q->cluster_size - within;
	while (table && *kind != ENTRY_COMPRESSED && covered < length && ++index < 1ull << q->l2_bits) {
		uint64_t next = l2_get(table, index);

		if (entry_kind(q, next) != *kind || (in_place && !(next & L2_COPIED)))
			break;
		if (*kind == ENTRY_DATA && (next & L2_OFFSET) != at + within + covered)
			break;
		covered += q->cluster_size;
	}
	extent->length = covered < length ? covered : length;
	extent->file_offset = at + within;
	extent->kind = *kind == ENTRY_DATA ? DISK_EXTENT_DATA : *kind == ENTRY_HOLE ? DISK_EXTENT_HOLE : DISK_EXTENT_ZERO;
	return 0;
}

static void extent_hold(struct qcow2 *q, struct disk_extent *extent)
{
	extent->token = q->epoch;
	q->in_flight[q->epoch]++;
}

static void extent_release(struct qcow2 *q, const struct disk_extent *extent)
{
	pthread_mutex_lock(&q->lock);
	q->in_flight[extent->token]--;
	pthread_mutex_unlock(&q->lock);
}

/* ---- reading ---- */

/* One whole compressed cluster into `out`. The lock is held. */
static int read_compressed(struct qcow2 *q, uint64_t entry, uint8_t *out)
{
	uint64_t offset, length;

	qcow2_compressed_range(q, entry, &offset, &length);
	if (length > q->cluster_size * 2 + 512)
		return qcow2_corrupt(q, "compressed cluster too long", offset);
	uint8_t *in = malloc(length);
	int error = in ? host_file_read(&q->disk->file, offset, in, length) : -ENOMEM;
	if (!error)
		error = qcow2_expand(q->compression, in, length, out, q->cluster_size);
	free(in);
	if (error == -EIO)
		log_error("%s: compressed cluster at %#llx cannot be expanded", q->disk->file.path, (unsigned long long)offset);
	return error;
}

static int read_compressed_part(struct qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, unsigned count)
{
	uint8_t *cluster = malloc(q->cluster_size);
	int error = cluster ? read_compressed(q, entry, cluster) : -ENOMEM;

	if (!error)
		iov_from_buffer(iov, count, cluster + within);
	free(cluster);
	return error;
}

/* Reads what the image shows at one extent; called with the lock held, drops it while data moves. */
static int read_extent(struct qcow2 *q, uint64_t offset, struct disk_extent *extent, enum entry_kind kind, uint64_t entry,
		       const struct iovec *iov, unsigned count)
{
	struct disk *disk = q->disk;
	int error = 0;

	switch (kind) {
	case ENTRY_COMPRESSED:
		return read_compressed_part(q, entry, offset & (q->cluster_size - 1), iov, count);
	case ENTRY_DATA:
		extent_hold(q, extent);
		pthread_mutex_unlock(&q->lock);
		error = host_file_readv(&disk->file, extent->file_offset, iov, count);
		extent_release(q, extent);
		pthread_mutex_lock(&q->lock);
		return error;
	case ENTRY_HOLE:
		if (disk->backing) {
			pthread_mutex_unlock(&q->lock);
			error = disk_readv_stack(disk->backing, offset, iov, count);
			pthread_mutex_lock(&q->lock);
			return error;
		}
		break;
	case ENTRY_ZERO:
		break;
	}
	iov_zero(iov, count);
	return 0;
}

static int readv_locked(struct qcow2 *q, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t length = iov_length(iov, count), done = 0;
	struct iovec *part = malloc((count ? count : 1) * sizeof(*part));
	int error = part ? 0 : -ENOMEM;

	while (!error && done < length) {
		struct disk_extent extent = {0};
		struct table *table;
		enum entry_kind kind;
		uint64_t entry;

		error = l2_for_read(q, offset + done, &table);
		if (!error)
			error = find_extent(q, table, offset + done, length - done, false, &extent, &kind, &entry);
		if (error)
			break;
		unsigned parts = iov_slice(part, iov, count, done, extent.length);
		error = read_extent(q, offset + done, &extent, kind, entry, part, parts);
		done += extent.length;
	}
	free(part);
	return error;
}

static int qcow2_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = readv_locked(q, offset, iov, count);
	pthread_mutex_unlock(&q->lock);
	return error;
}

/* ---- writing ---- */

/* The L2 table for changing: made, or copied when a snapshot shares it. The lock is held. */
static int l2_for_write(struct qcow2 *q, uint64_t offset, struct table **table)
{
	uint64_t *l1 = &q->l1[offset >> (q->cluster_bits + q->l2_bits)], old = *l1 & L2_OFFSET;
	int error = l2_for_read(q, offset, table);

	if (error || (*table && (*l1 & L2_COPIED)))
		return error;
	int64_t place = qcow2_allocate(q, 1);
	if (place < 0)
		return (int)place;
	/* The allocation may have pushed the old table out of the cache: look again. */
	uint8_t *copy = NULL;
	if (old) {
		error = l2_for_read(q, offset, table);
		copy = error ? NULL : malloc(q->cluster_size);
		if (!copy)
			return error ? error : -ENOMEM;
		memcpy(copy, (*table)->bytes, q->cluster_size);
	}
	*table = qcow2_table(q, &q->l2, (uint64_t)place, true, &error);
	if (*table && copy)
		memcpy((*table)->bytes, copy, q->cluster_size);
	free(copy);
	if (!*table)
		return error;
	*l1 = (uint64_t)place | L2_COPIED;
	q->l1_dirty = true;
	return old ? qcow2_free_later(q, old, 1) : 0;
}

/* Gives an entry's clusters back, later. */
static int entry_free(struct qcow2 *q, uint64_t entry)
{
	if (entry & L2_COMPRESSED)
		return qcow2_free_compressed_later(q, entry);
	return entry & L2_OFFSET ? qcow2_free_later(q, entry & L2_OFFSET, 1) : 0;
}

static int allocation_undo(struct qcow2 *q, uint64_t offset, uint64_t clusters, int error)
{
	for (uint64_t i = 0; i < clusters; i++)
		if (qcow2_refcount_add(q, (offset >> q->cluster_bits) + i, -1))
			break;
	return error;
}

/* What the image shows in [offset, offset + length), into `buffer`: the part of a cluster that a write does not cover. */
static int read_around(struct qcow2 *q, uint64_t offset, uint8_t *buffer, uint64_t length)
{
	struct iovec iov = {buffer, length};
	uint64_t size = (q->disk->size + q->cluster_size - 1) & ~(q->cluster_size - 1);

	memset(buffer, 0, length);
	if (offset >= size || length == 0)
		return 0;
	return readv_locked(q, offset, &iov, 1);
}

/*
 * Writes to clusters that are not ours alone: new ones get the data and what surrounds it, then the entries change (in memory). The lock
 * is held throughout. `length` lies within one L2 table.
 */
static int write_allocating(struct qcow2 *q, uint64_t offset, uint64_t length, const struct iovec *iov, unsigned count)
{
	uint64_t first = offset & ~(q->cluster_size - 1), end = (offset + length + q->cluster_size - 1) & ~(q->cluster_size - 1);
	uint64_t clusters = (end - first) >> q->cluster_bits, head = offset - first, tail = end - (offset + length);
	struct iovec *all = malloc((count + 2) * sizeof(*all));
	uint8_t *around = malloc(head + tail + 1);
	int64_t place = -ENOMEM;
	int error = all && around ? 0 : -ENOMEM;

	if (!error)
		error = read_around(q, first, around, head);
	if (!error)
		error = read_around(q, offset + length, around + head, tail);
	if (!error) {
		place = qcow2_allocate(q, clusters);
		error = place < 0 ? (int)place : 0;
	}
	if (!error) {
		all[0] = (struct iovec){around, head};
		memcpy(&all[1], iov, count * sizeof(*all));
		all[count + 1] = (struct iovec){around + head, tail};
		q->data_unsynced = true;
		error = host_file_writev(&q->disk->file, (uint64_t)place, all, count + 2);
		if (error)
			allocation_undo(q, (uint64_t)place, clusters, error);
	}
	struct table *table = NULL;
	if (!error)
		error = l2_for_write(q, offset, &table);
	for (uint64_t i = 0; !error && i < clusters; i++) {
		uint64_t index = l2_index(q, first) + i, old = l2_get(table, index);

		l2_set(q, table, index, ((uint64_t)place + (i << q->cluster_bits)) | L2_COPIED);
		error = entry_free(q, old);
	}
	free(all);
	free(around);
	return error;
}

/* How far from `offset` on entries need allocation: at most `length`, ALLOCATE_MAX and the L2 table's end. */
static uint64_t allocation_run(struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t length)
{
	uint64_t index = l2_index(q, offset), covered = q->cluster_size - (offset & (q->cluster_size - 1));

	while (covered < length && covered < ALLOCATE_MAX && ++index < 1ull << q->l2_bits) {
		uint64_t entry = table ? l2_get(table, index) : 0;

		if (entry_kind(q, entry) == ENTRY_DATA && (entry & L2_COPIED))
			break;
		covered += q->cluster_size;
	}
	return covered < length ? covered : length;
}

static int writev_locked(struct qcow2 *q, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t length = iov_length(iov, count), done = 0;
	struct iovec *part = malloc((count ? count : 1) * sizeof(*part));
	int error = part ? 0 : -ENOMEM;

	while (!error && done < length) {
		struct disk_extent extent = {0};
		struct table *table;
		enum entry_kind kind;
		uint64_t entry, run;

		error = q->broken ? -EIO : l2_for_read(q, offset + done, &table);
		if (!error)
			error = find_extent(q, table, offset + done, length - done, true, &extent, &kind, &entry);
		if (error)
			break;
		run = extent.length;
		/* A table shared with a snapshot has entries without the COPIED flag, so all of it is allocated anew. */
		if (run) {
			unsigned parts = iov_slice(part, iov, count, done, run);

			extent_hold(q, &extent);
			q->data_unsynced = true;
			pthread_mutex_unlock(&q->lock);
			error = host_file_writev(&q->disk->file, extent.file_offset, part, parts);
			extent_release(q, &extent);
			pthread_mutex_lock(&q->lock);
			q->data_unsynced = true; /* a flush may have come in between */
		} else {
			run = allocation_run(q, table, offset + done, length - done);
			unsigned parts = iov_slice(part, iov, count, done, run);
			error = write_allocating(q, offset + done, run, part, parts);
		}
		done += run;
	}
	free(part);
	return error;
}

static int qcow2_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = writev_locked(q, offset, iov, count);
	pthread_mutex_unlock(&q->lock);
	return error;
}

static int qcow2_flush(struct disk *disk)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = qcow2_metadata_flush(q, true);
	pthread_mutex_unlock(&q->lock);
	return error ? error : disk->options.cache == DISK_CACHE_UNSAFE ? 0 : host_file_sync(&disk->file);
}

/* ---- discard and zeros ---- */

/* One whole cluster stops holding data. `zero`: it must read as zeros; else what it reads as is free. */
static int clear_cluster(struct qcow2 *q, uint64_t offset, bool zero, bool may_unmap)
{
	struct table *table;
	int error = l2_for_read(q, offset, &table);
	uint64_t index = l2_index(q, offset), entry = table ? l2_get(table, index) : 0;
	enum entry_kind kind = entry_kind(q, entry);
	bool needs_mark = q->disk->backing != NULL;

	if (error || (kind == ENTRY_HOLE && !needs_mark))
		return error;
	if (kind == ENTRY_HOLE && !zero)
		return 0; /* discarding what is the backing image's */
	if (kind == ENTRY_ZERO && (!(entry & L2_OFFSET) || !may_unmap))
		return 0;
	if (needs_mark && q->version < 3) {
		if (!zero)
			return 0;
		uint8_t *zeros = calloc(1, q->cluster_size);
		struct iovec iov = {zeros, q->cluster_size};
		error = zeros ? writev_locked(q, offset, &iov, 1) : -ENOMEM;
		free(zeros);
		return error;
	}
	error = l2_for_write(q, offset, &table);
	if (error)
		return error;
	if (zero && !may_unmap && kind == ENTRY_DATA && (entry & L2_COPIED) && q->version >= 3) {
		l2_set(q, table, index, entry | L2_ZERO);
		return 0;
	}
	l2_set(q, table, index, needs_mark ? L2_ZERO : 0);
	return entry_free(q, entry);
}

static int clear_range(struct qcow2 *q, uint64_t offset, uint64_t length, bool zero, bool may_unmap)
{
	static const uint8_t zeros[4096];
	uint64_t end = offset + length;
	int error = 0;

	while (!error && offset < end) {
		uint64_t within = offset & (q->cluster_size - 1), part = q->cluster_size - within;

		if (q->broken)
			return -EIO;
		if (part > end - offset)
			part = end - offset;
		if (part == q->cluster_size || (within == 0 && end == q->disk->size)) {
			error = clear_cluster(q, offset, zero, may_unmap);
		} else if (zero) {
			struct iovec iov = {(void *)(uintptr_t)zeros, part < sizeof(zeros) ? part : sizeof(zeros)};

			part = iov.iov_len;
			error = writev_locked(q, offset, &iov, 1);
		}
		offset += part;
	}
	return error;
}

static int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = clear_range(q, offset, length, false, true);
	pthread_mutex_unlock(&q->lock);
	return error;
}

static int qcow2_zero(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = clear_range(q, offset, length, true, may_unmap);
	pthread_mutex_unlock(&q->lock);
	return error;
}

/* ---- the fast path ---- */

static bool qcow2_map(struct disk *disk, uint64_t offset, uint64_t length, bool write, struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;
	struct table *table = NULL;
	enum entry_kind kind;
	uint64_t entry, at;
	bool found = false;

	if (pthread_mutex_trylock(&q->lock))
		return false;
	at = q->l1[offset >> (q->cluster_bits + q->l2_bits)] & L2_OFFSET;
	if (at)
		table = qcow2_table_cached(&q->l2, at);
	if (q->broken && write)
		goto out;
	if ((at && !table) || (write && !table))
		goto out;
	extent->length = 0;
	if (find_extent(q, table, offset, length, write, extent, &kind, &entry) || extent->length == 0)
		goto out;
	if (kind == ENTRY_COMPRESSED || (kind == ENTRY_HOLE && disk->backing))
		goto out;
	if (kind == ENTRY_HOLE)
		extent->kind = DISK_EXTENT_ZERO;
	if (write)
		q->data_unsynced = true;
	extent_hold(q, extent);
	found = true;
out:
	pthread_mutex_unlock(&q->lock);
	return found;
}

static void qcow2_unmap(struct disk *disk, const struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	q->in_flight[extent->token]--;
	q->data_unsynced = true; /* a write may have ended after a flush that began before it */
	pthread_mutex_unlock(&q->lock);
}

static int qcow2_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;
	struct table *table;
	enum entry_kind kind;
	uint64_t entry;

	pthread_mutex_lock(&q->lock);
	int error = l2_for_read(q, offset, &table);
	if (!error)
		error = find_extent(q, table, offset, length, false, extent, &kind, &entry);
	if (!error && kind == ENTRY_COMPRESSED)
		extent->kind = DISK_EXTENT_DATA;
	pthread_mutex_unlock(&q->lock);
	return error;
}

static void qcow2_info(struct disk *disk, struct disk_info *info)
{
	struct qcow2 *q = disk->data;

	info->cluster_size = (uint32_t)q->cluster_size;
	info->dirty = q->incompatible & INCOMPATIBLE_DIRTY;
	info->corrupt = q->incompatible & INCOMPATIBLE_CORRUPT;
	info->backing = q->backing_name;
}

/* ---- resize and create ---- */

/* A longer L1 table elsewhere in the file; header last. */
static int grow_l1(struct qcow2 *q, uint32_t entries)
{
	uint64_t clusters = ((uint64_t)entries * 8 + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t old_offset = q->l1_offset, old_clusters = ((uint64_t)q->l1_size * 8 + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t *l1 = calloc(entries, sizeof(*l1));
	uint8_t header[12];

	if (!l1)
		return -ENOMEM;
	memcpy(l1, q->l1, q->l1_size * sizeof(*l1));
	int64_t place = qcow2_allocate(q, clusters);
	if (place < 0) {
		free(l1);
		return (int)place;
	}
	free(q->l1);
	q->l1 = l1;
	q->l1_size = entries;
	q->l1_offset = (uint64_t)place;
	q->l1_dirty = true;
	int error = qcow2_metadata_flush(q, true);
	if (error)
		return error;
	put_be32(header, entries);
	put_be64(header + 4, q->l1_offset);
	error = host_file_write(&q->disk->file, HEADER_L1_SIZE, header, sizeof(header));
	if (!error)
		error = host_file_sync(&q->disk->file);
	return error || !old_clusters ? error : qcow2_free_later(q, old_offset, old_clusters);
}

static int qcow2_resize(struct disk *disk, uint64_t size, char *why)
{
	struct qcow2 *q = disk->data;
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t entries = (size >> shift) + !!(size & ((1ull << shift) - 1));
	uint8_t bytes[8];
	int error = 0;

	if (entries > L1_ENTRIES_MAX || size > INT64_MAX / 2)
		return bad(why, disk, "too large for a qcow2 image of this cluster size");
	if (q->snapshot_count)
		return bad(why, disk, "has internal snapshots: it cannot be resized");
	pthread_mutex_lock(&q->lock);
	uint64_t old = disk->size;
	if (size < old) {
		uint64_t from = (size + q->cluster_size - 1) & ~(q->cluster_size - 1);

		error = from < old ? clear_range(q, from, old - from, false, true) : 0;
	}
	if (!error && entries > q->l1_size)
		error = grow_l1(q, (uint32_t)entries);
	if (!error)
		error = qcow2_metadata_flush(q, true);
	put_be64(bytes, size);
	if (!error)
		error = host_file_write(&disk->file, HEADER_SIZE, bytes, sizeof(bytes));
	if (!error)
		error = host_file_sync(&disk->file);
	if (!error)
		disk->size = size;
	pthread_mutex_unlock(&q->lock);
	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, strerror(-error));
	return error;
}

/*
 * Layout of a new image: header, refcount table, refcount blocks, L1 table. The first blocks count all of that.
 */
static int qcow2_create(struct host_file *file, uint64_t size, const char *backing, const char *backing_format,
			uint32_t cluster_size, char *why)
{
	unsigned bits = (unsigned)__builtin_ctz(cluster_size), shift = 2 * bits - 3;
	uint64_t l1_entries = (size >> shift) + !!(size & ((1ull << shift) - 1));
	uint64_t l1_clusters = (l1_entries * 8 + cluster_size - 1) / cluster_size, per_block = cluster_size / 2;
	uint64_t name_length = backing ? strlen(backing) : 0, format_length = backing_format ? strlen(backing_format) : 0;

	if (l1_entries > L1_ENTRIES_MAX || size > INT64_MAX / 2) {
		snprintf(why, DISK_WHY_SIZE, "%s: too large for a qcow2 image of this cluster size", file->path);
		return -EINVAL;
	}
	if (name_length > BACKING_NAME_MAX || 104 + 24 + format_length + 16 + name_length > cluster_size) {
		snprintf(why, DISK_WHY_SIZE, "%s: backing file name too long", file->path);
		return -EINVAL;
	}
	uint64_t blocks = (l1_clusters + 2 + per_block) / per_block + 1, used = 2 + blocks + l1_clusters;
	uint8_t *h = calloc(2 + blocks, cluster_size);
	if (!h)
		return -ENOMEM;
	put_be32(h, QCOW2_MAGIC);
	put_be32(h + HEADER_VERSION, 3);
	put_be32(h + HEADER_CLUSTER_BITS, bits);
	put_be64(h + HEADER_SIZE, size);
	put_be32(h + HEADER_L1_SIZE, (uint32_t)l1_entries);
	put_be64(h + HEADER_L1_OFFSET, (2 + blocks) * cluster_size);
	put_be64(h + HEADER_REFTABLE_OFFSET, cluster_size);
	put_be32(h + HEADER_REFTABLE_CLUSTERS, 1);
	put_be32(h + HEADER_REFCOUNT_ORDER, 4);
	put_be32(h + HEADER_LENGTH, 112);
	uint64_t at = 112;
	if (format_length) {
		put_be32(h + at, EXTENSION_BACKING_FORMAT);
		put_be32(h + at + 4, (uint32_t)format_length);
		memcpy(h + at + 8, backing_format, format_length);
		at += 8 + ((format_length + 7) & ~7ull);
	}
	at += 8; /* end of extensions: type 0, length 0 */
	if (name_length) {
		put_be64(h + HEADER_BACKING_OFFSET, at);
		put_be32(h + HEADER_BACKING_SIZE, (uint32_t)name_length);
		memcpy(h + at, backing, name_length);
	}
	for (uint64_t i = 0; i < blocks; i++)
		put_be64(h + cluster_size + i * 8, (2 + i) * cluster_size);
	for (uint64_t i = 0; i < used; i++)
		put_be16(h + 2 * (uint64_t)cluster_size + i * 2, 1);
	int error = host_file_write(file, 0, h, (2 + blocks) * cluster_size);
	if (!error)
		error = host_file_resize(file, used * cluster_size);
	if (!error)
		error = host_file_sync(file);
	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", file->path, strerror(-error));
	free(h);
	return error;
}

const struct disk_format disk_format_qcow2 = {
	.name = "qcow2",
	.probe = qcow2_probe,
	.open = qcow2_open,
	.close = qcow2_close,
	.readv = qcow2_readv,
	.writev = qcow2_writev,
	.flush = qcow2_flush,
	.discard = qcow2_discard,
	.zero = qcow2_zero,
	.map = qcow2_map,
	.unmap = qcow2_unmap,
	.extent = qcow2_extent,
	.info = qcow2_info,
	.resize = qcow2_resize,
	.check = qcow2_check,
	.create = qcow2_create,
};
