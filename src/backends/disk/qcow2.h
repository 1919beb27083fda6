/*
 * Private to the qcow2 format: its state, and what its files offer each other.
 *
 *	guest offset -> L1[o >> (cluster_bits + l2_bits)] -> L2[(o >> cluster_bits) & mask] -> cluster in the file
 *	cluster n    -> refcount table[n >> block_bits] -> refcount block[n & mask] -> how many use cluster n
 *
 * Crash rule. Metadata changes stay in memory until a flush writes them in ranks, with an fdatasync between ranks:
 *
 *	1 data, copied-on-write data, refcount blocks (increments)   2 refcount table, then the header when that moved
 *	3 L2 tables                                                  4 L1 table
 *
 * and only after all of it is on the disk are clusters that are no longer referenced given free (decrements: rank 1 of
 *the next flush). So at every moment what the disk's tables refer to is whole: a crash can leak clusters, never share
 *or lose them. A write that fails leaves its table dirty, for the next flush to try again; a failed fdatasync ends all
 *writing.
 *
 * A cluster taken away from the guest (discard, overwrite of a shared one) passes three states: `removed` (no longer
 *referenced in memory), `durable` (nor on the disk), and then, when the requests that began before have ended (two
 *epochs, each with a count of requests in flight), it is free. So no late write reaches a cluster that has become
 *another's.
 *
 * Images are hostile: every offset is checked where it is used, metadata clusters are kept in a set (`metadata`), and
 *neither an allocation nor a guest's write may touch one of them.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "backends/disk/disk_format.h"

#define QCOW2_MAGIC     0x514649fbu
#define L2_COPIED       (1ull << 63)
#define L2_COMPRESSED   (1ull << 62)
#define L2_ZERO         1ull
#define L2_OFFSET       0x00fffffffffffe00ull
#define REFTABLE_OFFSET 0xfffffffffffffe00ull

/* Header field offsets (all big endian). */
enum {
	HEADER_VERSION = 4,
	HEADER_BACKING_OFFSET = 8,
	HEADER_BACKING_SIZE = 16,
	HEADER_CLUSTER_BITS = 20,
	HEADER_SIZE = 24,
	HEADER_CRYPT = 32,
	HEADER_L1_SIZE = 36,
	HEADER_L1_OFFSET = 40,
	HEADER_REFTABLE_OFFSET = 48,
	HEADER_REFTABLE_CLUSTERS = 56,
	HEADER_SNAPSHOTS = 60,
	HEADER_SNAPSHOTS_OFFSET = 64,
	HEADER_INCOMPATIBLE = 72,
	HEADER_COMPATIBLE = 80,
	HEADER_AUTOCLEAR = 88,
	HEADER_REFCOUNT_ORDER = 96,
	HEADER_LENGTH = 100,
	HEADER_COMPRESSION = 104,
};

#define INCOMPATIBLE_DIRTY       1ull
#define INCOMPATIBLE_CORRUPT     2ull
#define INCOMPATIBLE_DATA_FILE   4ull
#define INCOMPATIBLE_COMPRESSION 8ull
#define INCOMPATIBLE_EXTENDED_L2 16ull
#define COMPRESSION_ZLIB         0
#define COMPRESSION_ZSTD         1

#define L1_ENTRIES_MAX           (32u << 20 >> 3)
#define REFTABLE_BYTES_MAX       (8u << 20)
#define BACKING_NAME_MAX         1023u
#define EXTENSION_BACKING_FORMAT 0xe2792acau

/* A cached L2 table or refcount block, one cluster long. */
struct table {
	uint64_t offset; /* in the file; 0: this slot is free */
	uint8_t *bytes;
	unsigned dirty_from, dirty_to; /* bytes; equal: clean */
	struct table *hash_next;
	struct table *older, *newer; /* in the cache's list of clean or dirty ones */
};

struct table_list {
	struct table *oldest, *newest;
};

struct table_cache {
	struct table *slot;
	unsigned count, used; /* slots there are, slots ever used */
	struct table **bucket;
	unsigned buckets; /* a power of two */
	struct table_list clean, dirty;
};

/* Entries [from, to) of a table of words that must be written. */
struct dirty_words {
	uint64_t from, to;
};

struct cluster_range {
	uint64_t first, count;
};

struct range_list {
	struct cluster_range *range;
	size_t count, room;
};

/* A set of cluster numbers. */
struct cluster_set {
	uint64_t *slot; /* number + 1; 0: empty */
	size_t slots, count, removed;
};

struct snapshot {
	uint64_t l1_offset;
	uint32_t l1_size;
	uint64_t seconds, vm_bytes, disk_size; /* disk_size 0: not recorded */
	char *id, *name;
};

struct qcow2 {
	struct disk *disk;
	pthread_mutex_t lock;
	unsigned version, cluster_bits, l2_bits, block_bits, refcount_order;
	uint64_t cluster_size;
	uint64_t incompatible, compatible, autoclear;
	unsigned compression;
	uint32_t header_length;

	uint64_t *l1; /* host order */
	uint32_t l1_size;
	uint64_t l1_offset;
	struct dirty_words l1_dirty;
	uint64_t *reftable; /* host order */
	uint64_t reftable_entries, reftable_offset;
	struct dirty_words reftable_dirty;
	bool reftable_moved; /* the header must follow */
	struct table_cache l2, blocks;
	struct cluster_set metadata; /* images open for writing: what must not be written as data */
	uint32_t snapshot_count;
	uint64_t snapshots_offset, snapshots_bytes;
	struct snapshot *snapshots;

	uint64_t free_guess;    /* no free cluster below this number */
	uint64_t file_clusters; /* up to the end of the file */
	struct range_list removed, durable[2];
	uint64_t waiting; /* clusters in these lists */
	bool dropping;    /* qcow2_apply_frees() is at work */
	unsigned epoch;   /* requests that start now count in in_flight[epoch] */
	unsigned in_flight[2];
	uint64_t writes,
	    synced; /* number of the last write that metadata depends on, or is; what of that is on the disk */
	struct qcow2_allocation *allocations; /* writes that are filling new clusters (qcow2_io.c) */
	pthread_cond_t allocated;             /* one of them has ended */
	bool broken;                          /* found corrupt, or an fdatasync failed: no more writes */
	uint64_t expanded_entry;              /* the compressed cluster that `expanded` holds; 0: none */
	uint8_t *expanded;
	char *backing_name, *backing_format;
};

static inline uint16_t get_be16(const void *p)
{
	uint16_t value;

	memcpy(&value, p, sizeof(value));
	return __builtin_bswap16(value);
}

static inline uint32_t get_be32(const void *p)
{
	uint32_t value;

	memcpy(&value, p, sizeof(value));
	return __builtin_bswap32(value);
}

static inline uint64_t get_be64(const void *p)
{
	uint64_t value;

	memcpy(&value, p, sizeof(value));
	return __builtin_bswap64(value);
}

static inline void put_be16(void *p, uint16_t value)
{
	value = __builtin_bswap16(value);
	memcpy(p, &value, sizeof(value));
}

static inline void put_be32(void *p, uint32_t value)
{
	value = __builtin_bswap32(value);
	memcpy(p, &value, sizeof(value));
}

static inline void put_be64(void *p, uint64_t value)
{
	value = __builtin_bswap64(value);
	memcpy(p, &value, sizeof(value));
}

static inline bool qcow2_aligned(const struct qcow2 *q, uint64_t offset)
{
	return !(offset & (q->cluster_size - 1));
}

/* The lock is held for all that follow. */

/* qcow2_header.c: parses and checks; qcow2_open() in qcow2.c puts the image together. `why` is filled for what is wrong
 * with the image. */
int qcow2_parse_header(struct qcow2 *q, const uint8_t *header, char *why);
int qcow2_open_backing(struct qcow2 *q, const uint8_t *header, char *why);
int qcow2_read_snapshots(struct qcow2 *q, char *why);
int qcow2_write_features(struct qcow2 *q);
int qcow2_bad(const struct disk *disk, char *why, const char *what); /* -EINVAL */
uint64_t *qcow2_read_words(struct qcow2 *q, uint64_t offset, uint64_t count, int *error);
int qcow2_create(struct host_file *file, uint64_t size, const char *backing, const char *backing_format,
                 uint32_t cluster_size, char *why);

/* qcow2_tables.c: caches and ordered write-back. */
int qcow2_caches_create(struct qcow2 *q);
void qcow2_caches_destroy(struct qcow2 *q);
/* The table at `offset`, read if it is not cached (`fresh`: it is new, all zeros). May flush metadata to make room, so
   other tables' pointers are void after it. NULL: *error. */
struct table *qcow2_table(struct qcow2 *q, struct table_cache *cache, uint64_t offset, bool fresh, int *error);
struct table *qcow2_table_cached(struct table_cache *cache, uint64_t offset);
void qcow2_table_forget(struct table_cache *cache, uint64_t offset);
void qcow2_table_dirty(struct table_cache *cache, struct table *table, uint64_t from, uint64_t length);
void qcow2_words_dirty(struct dirty_words *dirty, uint64_t index);
/* Makes all metadata durable and gives free what can be. `unlock`: the lock is dropped during the last fdatasync. */
int qcow2_metadata_flush(struct qcow2 *q, bool unlock);
bool qcow2_metadata_dirty(const struct qcow2 *q);
/* Marks the image corrupt on the disk too (if writable) and refuses writes from now on. Logs `what` once. Returns -EIO.
 */
int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where);

/* qcow2_refcount.c */
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count);
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, int delta);
/* The first free clusters, at least one and at most `wanted` in a row, refcount set to 1; the offset in the file, or
 * -errno. */
int64_t qcow2_allocate(struct qcow2 *q, uint64_t wanted, uint64_t *got);
/* Exactly `count` in a row. */
int64_t qcow2_allocate_row(struct qcow2 *q, uint64_t count);
/* Gives back what was just allocated and never referenced. */
void qcow2_allocation_undo(struct qcow2 *q, uint64_t offset, uint64_t count);
/* Drops one reference, later (see the crash rule). No memory: the clusters leak. */
void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters);
void qcow2_free_compressed_later(struct qcow2 *q, uint64_t entry);
/* `list` has become durable (it is emptied); what no request can reach any more is given free. */
void qcow2_apply_frees(struct qcow2 *q, struct range_list *list);
/* File range of a compressed cluster's bytes. */
void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length);
uint64_t qcow2_block_get(const struct qcow2 *q, const uint8_t *block, uint64_t index);
void qcow2_block_set(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t value);

/* qcow2_metadata.c: which clusters hold metadata. */
/* All that the header and tables name. -EINVAL with `why` when two of them overlap. */
int qcow2_metadata_collect(struct qcow2 *q, char *why);
int qcow2_metadata_add(struct qcow2 *q, uint64_t offset,
                       uint64_t length); /* bytes. -EEXIST: overlaps what is there; -ENOMEM */
void qcow2_metadata_remove(struct qcow2 *q, uint64_t offset, uint64_t length);
bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset, uint64_t length);

/* qcow2_io.c: what guests do */
int qcow2_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
int qcow2_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t length);
int qcow2_zero(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
bool qcow2_map(struct disk *disk, uint64_t offset, uint64_t length, bool write, struct disk_extent *extent);
void qcow2_unmap(struct disk *disk, const struct disk_extent *extent);
int qcow2_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *extent);
/* With the lock held: [offset, offset + length) reads as zeros (`zero`), or may read as anything. */
int qcow2_clear_range(struct qcow2 *q, uint64_t offset, uint64_t length, bool zero, bool may_unmap);

/* qcow2_check.c */
int qcow2_check(struct disk *disk, bool repair, struct disk_check *result, char *why);
int qcow2_check_locked(struct qcow2 *q, bool repair, struct disk_check *result, char *why);

/* qcow2_compress.c: expands one compressed cluster. 0, -EIO when the bytes are not what they should be, -ENOMEM. */
int qcow2_expand(unsigned type, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length);
