/*
 * qcow2 images, versions 2 and 3: opening, closing, flushing, resizing. qcow2.h has the picture and the crash rule.
 *
 * Every field of the image is checked where it is used: images are hostile input. What is corrupt is refused without a
 * write.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool qcow2_probe(const uint8_t head[DISK_HEAD])
{
	return get_be32(head) == QCOW2_MAGIC;
}

/* ---- opening ---- */

static int prepare_writing(struct qcow2 *q, char *why)
{
	struct disk_check result;
	int error;

	if ((q->incompatible & INCOMPATIBLE_CORRUPT) && !q->disk->options.repair)
		return qcow2_bad(q->disk, why,
		                 "marked corrupt; repair it with 'ring3 image check --repair' or open it readonly");
	error = qcow2_metadata_collect(q, why);
	if (!error && q->autoclear) {
		/* Bitmaps and the like: we do not keep them up to date, and must say so before anything changes. */
		q->autoclear = 0;
		error = qcow2_write_features(q);
		if (!error)
			error = host_file_sync(&q->disk->file);
	}
	if (!error && (q->incompatible & INCOMPATIBLE_DIRTY))
		error = qcow2_check_locked(q, true, &result, why);
	return error;
}

static void qcow2_free(struct qcow2 *q)
{
	qcow2_caches_destroy(q);
	pthread_cond_destroy(&q->allocated);
	pthread_mutex_destroy(&q->lock);
	free(q->l1);
	free(q->reftable);
	free(q->metadata.slot);
	free(q->removed.range);
	free(q->durable[0].range);
	free(q->durable[1].range);
	for (uint32_t i = 0; q->snapshots && i < q->snapshot_count; i++) {
		free(q->snapshots[i].id);
		free(q->snapshots[i].name);
	}
	free(q->snapshots);
	free(q->expanded);
	free(q->backing_name);
	free(q->backing_format);
	free(q);
}

static int read_tables(struct qcow2 *q, char *why)
{
	uint64_t l1_end = (q->l1_offset + (uint64_t)q->l1_size * 8 + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t reftable_end = (q->reftable_offset + q->reftable_entries * 8 + q->cluster_size - 1) >> q->cluster_bits;
	int error = qcow2_caches_create(q);

	if (l1_end > q->file_clusters || reftable_end > q->file_clusters)
		return qcow2_bad(q->disk, why, "a table lies behind the end of the file");
	if (!error)
		q->l1 = qcow2_read_words(q, q->l1_offset, q->l1_size, &error);
	if (!error)
		q->reftable = qcow2_read_words(q, q->reftable_offset, q->reftable_entries, &error);
	return error ? error : qcow2_read_snapshots(q, why);
}

/* The image as it was: the snapshot's L1 table takes the place of the active one. */
static int show_snapshot(struct qcow2 *q, const char *name, char *why)
{
	unsigned shift = q->cluster_bits + q->l2_bits;
	const struct snapshot *found = NULL;
	int error;

	for (uint32_t i = 0; i < q->snapshot_count && !found; i++)
		if (strcmp(q->snapshots[i].name, name) == 0 || strcmp(q->snapshots[i].id, name) == 0)
			found = &q->snapshots[i];
	if (!found || !q->disk->file.readonly) {
		snprintf(why, DISK_WHY_SIZE,
		         found ? "%s: snapshot '%.64s' can only be read" : "%s: has no snapshot '%.64s'",
		         q->disk->file.path, name);
		return -EINVAL;
	}
	uint64_t size = found->disk_size ? found->disk_size : q->disk->size;
	if ((size >> shift) + !!(size & ((1ull << shift) - 1)) > found->l1_size)
		return qcow2_bad(q->disk, why, "a snapshot's L1 table has the wrong size");
	uint64_t *l1 = qcow2_read_words(q, found->l1_offset, found->l1_size, &error);
	if (!l1)
		return error;
	free(q->l1);
	q->l1 = l1;
	q->l1_size = found->l1_size;
	q->l1_offset = found->l1_offset;
	q->disk->size = size;
	return 0;
}

static int qcow2_open(struct disk *disk, char *why)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	uint8_t header[DISK_HEAD];
	int64_t size = host_file_size(&disk->file);
	int error = size < 0 ? (int)size : size < 72 ? qcow2_bad(disk, why, "not a qcow2 image (too short)") : 0;

	if (!q)
		return -ENOMEM;
	q->disk = disk;
	disk->data = q;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->allocated, NULL);
	if (!error)
		error = host_file_read(&disk->file, 0, header, sizeof(header));
	if (!error)
		error = qcow2_parse_header(q, header, why);
	if (!error) {
		q->file_clusters = ((uint64_t)size + q->cluster_size - 1) >> q->cluster_bits;
		error = read_tables(q, why);
	}
	if (!error && disk->options.internal_snapshot)
		error = show_snapshot(q, disk->options.internal_snapshot, why);
	if (!error)
		error = qcow2_open_backing(q, header, why);
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
	/* The first flush makes what was freed durable and counts it down; the next ones write that. */
	for (unsigned i = 0;
	     i < 4 && !error && !q->broken && (qcow2_metadata_dirty(q) || q->waiting || q->writes != q->synced); i++)
		error = qcow2_metadata_flush(q, false);
	if (q->broken && !disk->file.readonly)
		error = -EIO;
	pthread_mutex_unlock(&q->lock);
	if (!error && !disk->file.readonly && disk->options.cache != DISK_CACHE_UNSAFE)
		error = host_file_sync(&disk->file);
	qcow2_free(q);
	disk->data = NULL;
	return error;
}

static int qcow2_flush(struct disk *disk)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = qcow2_metadata_flush(q, true);
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
	info->snapshots = q->snapshot_count;
}

static void qcow2_snapshot(struct disk *disk, unsigned index, struct disk_snapshot *snapshot)
{
	const struct snapshot *entry = &((struct qcow2 *)disk->data)->snapshots[index];

	*snapshot = (struct disk_snapshot){
	    .id = entry->id, .name = entry->name, .seconds = entry->seconds, .size = entry->disk_size};
}

/* ---- resizing ---- */

/* A longer L1 table elsewhere in the file; header last. Nothing else is dirty. */
static int grow_l1(struct qcow2 *q, uint32_t entries)
{
	uint64_t clusters = ((uint64_t)entries * 8 + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t old_offset = q->l1_offset,
	         old_clusters = ((uint64_t)q->l1_size * 8 + q->cluster_size - 1) >> q->cluster_bits;
	uint64_t *l1 = calloc(entries, sizeof(*l1));
	uint8_t header[12];

	if (!l1)
		return -ENOMEM;
	int64_t place = qcow2_allocate_row(q, clusters);
	int error = place < 0 ? (int)place : qcow2_metadata_add(q, (uint64_t)place, (uint64_t)entries * 8);
	if (error) {
		free(l1);
		return error;
	}
	memcpy(l1, q->l1, q->l1_size * sizeof(*l1));
	free(q->l1);
	q->l1 = l1;
	q->l1_size = entries;
	q->l1_offset = (uint64_t)place;
	q->l1_dirty = (struct dirty_words){0, entries};
	error = qcow2_metadata_flush(q, false);
	put_be32(header, entries);
	put_be64(header + 4, q->l1_offset);
	if (!error)
		error = host_file_write(&q->disk->file, HEADER_L1_SIZE, header, sizeof(header));
	if (!error)
		error = host_file_sync(&q->disk->file);
	if (error) {
		q->broken = true; /* which of the two tables the header names is unknown */
		return error;
	}
	qcow2_metadata_remove(q, old_offset, old_clusters << q->cluster_bits);
	qcow2_free_later(q, old_offset, old_clusters);
	return 0;
}

/* What lies behind the new end is given up, and what remains in its last cluster becomes zeros, should the image grow
 * again. */
static int shrink(struct qcow2 *q, uint64_t size)
{
	uint64_t old = q->disk->size, from = (size + q->cluster_size - 1) & ~(q->cluster_size - 1);
	int error = 0;

	if (size < from)
		error = qcow2_clear_range(q, size, (from < old ? from : old) - size, true, true);
	return error || from >= old ? error : qcow2_clear_range(q, from, old - from, false, true);
}

/* A backing image that is longer must not show through in the new part. */
static int hide_backing(struct qcow2 *q, uint64_t old)
{
	uint64_t end = q->disk->backing ? q->disk->backing->size : 0;

	if (end > q->disk->size)
		end = q->disk->size;
	return end > old ? qcow2_clear_range(q, old, end - old, true, true) : 0;
}

static int resize_locked(struct qcow2 *q, uint64_t size, uint64_t l1_entries)
{
	struct disk *disk = q->disk;
	uint64_t old = disk->size;
	uint8_t bytes[8];
	int error = size < old ? shrink(q, size) : 0;

	if (!error)
		error = qcow2_metadata_flush(q, false);
	if (!error && l1_entries > q->l1_size)
		error = grow_l1(q, (uint32_t)l1_entries);
	disk->size = size;
	if (!error && size > old)
		error = hide_backing(q, old);
	if (!error)
		error = qcow2_metadata_flush(q, false);
	put_be64(bytes, size);
	if (!error)
		error = host_file_write(&disk->file, HEADER_SIZE, bytes, sizeof(bytes));
	if (!error)
		error = host_file_sync(&disk->file);
	if (error)
		disk->size = old;
	return error;
}

static int qcow2_resize(struct disk *disk, uint64_t size, char *why)
{
	struct qcow2 *q = disk->data;
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t entries = (size >> shift) + !!(size & ((1ull << shift) - 1));

	if (entries > L1_ENTRIES_MAX || size > INT64_MAX / 2)
		return qcow2_bad(disk, why, "too large for a qcow2 image of this cluster size");
	if (q->snapshot_count)
		return qcow2_bad(disk, why, "has internal snapshots: it cannot be resized");
	pthread_mutex_lock(&q->lock);
	int error = resize_locked(q, size, entries);
	pthread_mutex_unlock(&q->lock);
	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, strerror(-error));
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
    .snapshot = qcow2_snapshot,
    .resize = qcow2_resize,
    .check = qcow2_check,
    .create = qcow2_create,
};
