/*
 * qcow2: the header and what hangs on it: extensions, the backing file's name, the list of snapshots; and new images.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SNAPSHOTS_MAX       65536u
#define SNAPSHOTS_BYTES_MAX (16u << 20)
#define SNAPSHOT_HEAD       40u
#define EXTENSIONS_AT       112u /* length of the headers that we write */

int qcow2_bad(const struct disk *disk, char *why, const char *what)
{
	snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, what);
	return -EINVAL;
}

int qcow2_parse_header(struct qcow2 *q, const uint8_t *h, char *why)
{
	struct disk *disk = q->disk;

	if (get_be32(h) != QCOW2_MAGIC)
		return qcow2_bad(disk, why, "not a qcow2 image (bad magic)");
	q->version = get_be32(h + HEADER_VERSION);
	if (q->version != 2 && q->version != 3)
		return qcow2_bad(disk, why, "qcow2 version is neither 2 nor 3");
	q->cluster_bits = get_be32(h + HEADER_CLUSTER_BITS);
	if (q->cluster_bits < 9 || q->cluster_bits > 21)
		return qcow2_bad(disk, why, "cluster size out of range (512 bytes to 2 MiB)");
	q->cluster_size = 1ull << q->cluster_bits;
	q->l2_bits = q->cluster_bits - 3;
	if (get_be32(h + HEADER_CRYPT))
		return qcow2_bad(disk, why, "encrypted images are not supported; convert it with qemu-img first");
	q->refcount_order = 4;
	q->header_length = 72;
	if (q->version == 3) {
		q->incompatible = get_be64(h + HEADER_INCOMPATIBLE);
		q->compatible = get_be64(h + HEADER_COMPATIBLE);
		q->autoclear = get_be64(h + HEADER_AUTOCLEAR);
		q->refcount_order = get_be32(h + HEADER_REFCOUNT_ORDER);
		q->header_length = get_be32(h + HEADER_LENGTH);
		if (q->header_length < 104 || q->header_length > q->cluster_size)
			return qcow2_bad(disk, why, "header length out of range");
		if (q->refcount_order > 6)
			return qcow2_bad(disk, why, "refcount width out of range");
		if (q->incompatible & INCOMPATIBLE_DATA_FILE)
			return qcow2_bad(disk, why,
			                 "an external data file is not supported; convert it with qemu-img first");
		if (q->incompatible & INCOMPATIBLE_EXTENDED_L2)
			return qcow2_bad(disk, why,
			                 "extended L2 entries are not supported; convert it with qemu-img first");
		if (q->incompatible & ~(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION))
			return qcow2_bad(disk, why, "needs features that ring3 does not know");
		if (q->incompatible & INCOMPATIBLE_COMPRESSION)
			q->compression = q->header_length > HEADER_COMPRESSION ? h[HEADER_COMPRESSION] : 0;
		if (q->compression > COMPRESSION_ZSTD)
			return qcow2_bad(disk, why, "unknown compression type");
	}
	q->block_bits = q->cluster_bits + 3 - q->refcount_order;
	disk->size = get_be64(h + HEADER_SIZE);
	if (disk->size > INT64_MAX / 2)
		return qcow2_bad(disk, why, "virtual size out of range");
	q->l1_size = get_be32(h + HEADER_L1_SIZE);
	q->l1_offset = get_be64(h + HEADER_L1_OFFSET);
	q->reftable_offset = get_be64(h + HEADER_REFTABLE_OFFSET);
	q->reftable_entries = (uint64_t)get_be32(h + HEADER_REFTABLE_CLUSTERS) << q->l2_bits;
	q->snapshot_count = get_be32(h + HEADER_SNAPSHOTS);
	q->snapshots_offset = get_be64(h + HEADER_SNAPSHOTS_OFFSET);

	unsigned l1_shift = q->cluster_bits + q->l2_bits;
	uint64_t l1_needed = (disk->size >> l1_shift) + !!(disk->size & ((1ull << l1_shift) - 1));
	if (q->l1_size > L1_ENTRIES_MAX || q->l1_size < l1_needed)
		return qcow2_bad(disk, why, "L1 table has the wrong size for the image");
	if (!qcow2_aligned(q, q->l1_offset) || (q->l1_size && !q->l1_offset) || q->l1_offset > INT64_MAX / 2)
		return qcow2_bad(disk, why, "L1 table is not at a cluster");
	if (q->reftable_entries * 8 > REFTABLE_BYTES_MAX || q->reftable_entries == 0)
		return qcow2_bad(disk, why, "refcount table size out of range");
	if (!qcow2_aligned(q, q->reftable_offset) || !q->reftable_offset || q->reftable_offset > INT64_MAX / 2)
		return qcow2_bad(disk, why, "refcount table is not at a cluster");
	if (q->snapshot_count > SNAPSHOTS_MAX || (q->snapshot_count && !qcow2_aligned(q, q->snapshots_offset)))
		return qcow2_bad(disk, why, "snapshot table out of range");
	return 0;
}

uint64_t *qcow2_read_words(struct qcow2 *q, uint64_t offset, uint64_t count, int *error)
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

int qcow2_open_backing(struct qcow2 *q, const uint8_t *h, char *why)
{
	uint64_t offset = get_be64(h + HEADER_BACKING_OFFSET);
	uint32_t length = get_be32(h + HEADER_BACKING_SIZE);
	int error = read_extensions(q, offset ? offset : q->cluster_size);

	if (error)
		return error;
	if (!offset)
		return 0;
	if (length == 0 || length > BACKING_NAME_MAX || offset > q->cluster_size || length > q->cluster_size - offset)
		return qcow2_bad(q->disk, why, "backing file name out of range");
	q->backing_name = calloc(1, length + 1);
	if (!q->backing_name)
		return -ENOMEM;
	error = host_file_read(&q->disk->file, offset, q->backing_name, length);
	if (error)
		return error;
	if (strlen(q->backing_name) != length)
		return qcow2_bad(q->disk, why, "backing file name contains a NUL");
	return disk_open_backing(q->disk, q->backing_name, q->backing_format, why);
}

/* One entry of the snapshot table at *at; *at moves behind it. */
static int read_snapshot(struct qcow2 *q, uint64_t *at, struct snapshot *snapshot, char *why)
{
	uint8_t head[SNAPSHOT_HEAD], extra[16] = {0};
	int error = host_file_read(&q->disk->file, *at, head, sizeof(head));

	if (error)
		return error;
	uint32_t id_length = get_be16(head + 12), name_length = get_be16(head + 14), extra_length = get_be32(head + 36);
	if (extra_length > 1024)
		return qcow2_bad(q->disk, why, "snapshot table out of range");
	*snapshot = (struct snapshot){
	    .l1_offset = get_be64(head),
	    .l1_size = get_be32(head + 8),
	    .seconds = get_be32(head + 16),
	    .vm_bytes = get_be32(head + 32),
	    .id = calloc(1, id_length + 1),
	    .name = calloc(1, name_length + 1),
	};
	if (!snapshot->id || !snapshot->name)
		return -ENOMEM;
	uint64_t where = *at + SNAPSHOT_HEAD;
	error = host_file_read(&q->disk->file, where, extra, extra_length < 16 ? extra_length : 16);
	if (!error)
		error = host_file_read(&q->disk->file, where + extra_length, snapshot->id, id_length);
	if (!error)
		error = host_file_read(&q->disk->file, where + extra_length + id_length, snapshot->name, name_length);
	if (extra_length >= 8)
		snapshot->vm_bytes = get_be64(extra);
	if (extra_length >= 16)
		snapshot->disk_size = get_be64(extra + 8);
	if (snapshot->l1_size > L1_ENTRIES_MAX || !qcow2_aligned(q, snapshot->l1_offset) ||
	    snapshot->l1_offset > INT64_MAX / 2)
		return qcow2_bad(q->disk, why, "a snapshot's L1 table is out of range");
	*at = (where + extra_length + id_length + name_length + 7) & ~7ull;
	return error;
}

int qcow2_read_snapshots(struct qcow2 *q, char *why)
{
	uint64_t at = q->snapshots_offset;
	uint32_t count = q->snapshot_count;
	int error = 0;

	q->snapshot_count = 0;
	if (count == 0)
		return 0;
	q->snapshots = calloc(count, sizeof(*q->snapshots));
	if (!q->snapshots)
		return -ENOMEM;
	while (!error && q->snapshot_count < count) {
		error = read_snapshot(q, &at, &q->snapshots[q->snapshot_count++], why);
		if (!error && at - q->snapshots_offset > SNAPSHOTS_BYTES_MAX)
			error = qcow2_bad(q->disk, why, "snapshot table out of range");
	}
	q->snapshots_bytes = at - q->snapshots_offset;
	return error;
}

int qcow2_write_features(struct qcow2 *q)
{
	uint8_t bytes[24];

	if (q->version < 3)
		return 0;
	put_be64(bytes, q->incompatible);
	put_be64(bytes + 8, q->compatible);
	put_be64(bytes + 16, q->autoclear);
	return host_file_write(&q->disk->file, HEADER_INCOMPATIBLE, bytes, sizeof(bytes));
}

/* ---- new images ---- */

struct layout {
	unsigned bits;
	uint64_t cluster_size, l1_entries, l1_clusters, reftable_clusters, blocks, used;
};

/* Header, refcount table, refcount blocks, L1 table; the blocks (16 bits for each cluster) count all of that. */
static void plan(struct layout *layout, uint64_t size, uint32_t cluster_size)
{
	unsigned bits = (unsigned)__builtin_ctz(cluster_size), shift = 2 * bits - 3;
	uint64_t per_block = cluster_size / 2, per_table = cluster_size / 8, before;

	*layout = (struct layout){.bits = bits, .cluster_size = cluster_size, .reftable_clusters = 1, .blocks = 1};
	layout->l1_entries = (size >> shift) + !!(size & ((1ull << shift) - 1));
	layout->l1_clusters = (layout->l1_entries * 8 + cluster_size - 1) / cluster_size;
	do {
		before = layout->blocks + layout->reftable_clusters;
		layout->used = 1 + before + layout->l1_clusters;
		layout->blocks = (layout->used + per_block - 1) / per_block;
		layout->reftable_clusters = (layout->blocks + per_table - 1) / per_table;
	} while (layout->blocks + layout->reftable_clusters != before);
}

static void fill_header(uint8_t *h, const struct layout *layout, uint64_t size, const char *backing, const char *format)
{
	uint64_t at = EXTENSIONS_AT;

	put_be32(h, QCOW2_MAGIC);
	put_be32(h + HEADER_VERSION, 3);
	put_be32(h + HEADER_CLUSTER_BITS, layout->bits);
	put_be64(h + HEADER_SIZE, size);
	put_be32(h + HEADER_L1_SIZE, (uint32_t)layout->l1_entries);
	put_be64(h + HEADER_L1_OFFSET, (layout->used - layout->l1_clusters) << layout->bits);
	put_be64(h + HEADER_REFTABLE_OFFSET, layout->cluster_size);
	put_be32(h + HEADER_REFTABLE_CLUSTERS, (uint32_t)layout->reftable_clusters);
	put_be32(h + HEADER_REFCOUNT_ORDER, 4);
	put_be32(h + HEADER_LENGTH, EXTENSIONS_AT);
	if (backing && format) {
		put_be32(h + at, EXTENSION_BACKING_FORMAT);
		put_be32(h + at + 4, (uint32_t)strlen(format));
		memcpy(h + at + 8, format, strlen(format));
		at += 8 + ((strlen(format) + 7) & ~7ull);
	}
	at += 8; /* end of extensions: type 0, length 0 */
	if (backing) {
		put_be64(h + HEADER_BACKING_OFFSET, at);
		put_be32(h + HEADER_BACKING_SIZE, (uint32_t)strlen(backing));
		memcpy(h + at, backing, strlen(backing));
	}
}

int qcow2_create(struct host_file *file, uint64_t size, const char *backing, const char *backing_format,
                 uint32_t cluster_size, char *why)
{
	struct layout layout;
	const char *what = NULL;

	if (cluster_size < 512 || cluster_size > 2u << 20 || cluster_size & (cluster_size - 1))
		what = "the cluster size is not a power of two from 512 to 2M";
	else if (size > INT64_MAX / 2)
		what = "too large for a qcow2 image";
	else
		plan(&layout, size, cluster_size);
	if (!what &&
	    (layout.l1_entries > L1_ENTRIES_MAX || layout.reftable_clusters * cluster_size > REFTABLE_BYTES_MAX))
		what = "too large for a qcow2 image of this cluster size";
	if (!what && backing &&
	    (strlen(backing) > BACKING_NAME_MAX || EXTENSIONS_AT + 16 + 8 + 32 + strlen(backing) > cluster_size))
		what = "backing file name too long";
	if (what) {
		snprintf(why, DISK_WHY_SIZE, "%s: %s", file->path, what);
		return -EINVAL;
	}
	uint64_t bytes = (layout.used - layout.l1_clusters) * cluster_size;
	uint8_t *h = calloc(1, bytes), *blocks = h ? h + (1 + layout.reftable_clusters) * cluster_size : NULL;
	if (!h)
		return -ENOMEM;
	for (uint64_t i = 0; i < layout.blocks; i++)
		put_be64(h + cluster_size + i * 8, (1 + layout.reftable_clusters + i) * cluster_size);
	for (uint64_t i = 0; i < layout.used; i++)
		put_be16(blocks + i * 2, 1);
	/* The header comes last: what is unfinished is no image. */
	int error = host_file_resize(file, layout.used * cluster_size);
	if (!error)
		error = host_file_write(file, cluster_size, h + cluster_size, bytes - cluster_size);
	if (!error)
		error = host_file_sync(file);
	fill_header(h, &layout, size, backing, backing_format);
	if (!error)
		error = host_file_write(file, 0, h, cluster_size);
	if (!error)
		error = host_file_sync(file);
	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", file->path, strerror(-error));
	free(h);
	return error;
}
