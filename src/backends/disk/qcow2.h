/*
 * Private to the qcow2 format: its state, and what its files offer each other.
 *
 *	guest offset -> L1[o >> (cluster_bits + l2_bits)] -> L2[(o >> cluster_bits) & mask] -> cluster in the file
 *	cluster n    -> refcount table[n >> block_bits] -> refcount block[n & mask] -> how many use cluster n
 *
 * Crash rule. Metadata changes stay in memory until metadata_flush() writes them in ranks, with an fdatasync between ranks:
 *
 *	1 data, copied-on-write data, refcount blocks (increments)   2 refcount table, then the header when that moved
 *	3 L2 tables                                                  4 L1 table
 *
 * and only after all of it is on the disk are clusters that are no longer referenced given free (decrements: rank 1 of the next
 * flush). So at every moment what the disk's tables refer to is whole: a crash can leak clusters, never share or lose them.
 *
 * A cluster taken away from the guest (discard, overwrite of a shared one) may still be the target of requests in flight; it is free
 * only when those that started before have ended (`epoch`), so that no late write reaches a cluster that has become metadata.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/disk/disk_format.h"

#define QCOW2_MAGIC      0x514649fbu
#define L2_COPIED        (1ull << 63)
#define L2_COMPRESSED    (1ull << 62)
#define L2_ZERO          1ull
#define L2_OFFSET        0x00fffffffffffe00ull
#define TABLE_CACHE_SIZE 256

/* Header field offsets (all big endian). */
enum {
	HEADER_VERSION = 4, HEADER_BACKING_OFFSET = 8, HEADER_BACKING_SIZE = 16, HEADER_CLUSTER_BITS = 20, HEADER_SIZE = 24,
	HEADER_CRYPT = 32, HEADER_L1_SIZE = 36, HEADER_L1_OFFSET = 40, HEADER_REFTABLE_OFFSET = 48, HEADER_REFTABLE_CLUSTERS = 56,
	HEADER_SNAPSHOTS = 60, HEADER_SNAPSHOTS_OFFSET = 64, HEADER_INCOMPATIBLE = 72, HEADER_COMPATIBLE = 80,
	HEADER_AUTOCLEAR = 88, HEADER_REFCOUNT_ORDER = 96, HEADER_LENGTH = 100, HEADER_COMPRESSION = 104,
};

#define INCOMPATIBLE_DIRTY       1ull
#define INCOMPATIBLE_CORRUPT     2ull
#define INCOMPATIBLE_DATA_FILE   4ull
#define INCOMPATIBLE_COMPRESSION 8ull
#define INCOMPATIBLE_EXTENDED_L2 16ull
#define COMPRESSION_ZLIB 0
#define COMPRESSION_ZSTD 1

/* A cached L2 table or refcount block, one cluster long. */
struct table {
	uint64_t offset; /* in the file; 0: this slot is free */
	uint64_t used;   /* for least-recently-used */
	bool dirty;
	uint8_t *bytes;
};

struct table_cache {
	struct table slot[TABLE_CACHE_SIZE];
	unsigned count; /* slots that may be used */
	unsigned dirty;
	uint64_t clock;
};

struct freed {
	uint64_t cluster; /* index */
	unsigned epoch;   /* parity of the epoch it was freed in */
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
	bool l1_dirty;
	uint64_t *reftable; /* host order */
	uint64_t reftable_entries, reftable_offset;
	bool reftable_dirty, reftable_moved;
	struct table_cache l2, blocks;
	uint32_t snapshot_count;
	uint64_t snapshots_offset;

	uint64_t free_guess; /* no free cluster below this index */
	uint64_t file_clusters; /* clusters in use up to the end of the file, in memory's view */
	struct freed *freed;
	size_t freed_count, freed_room;
	unsigned epoch;       /* parity: requests that start now count in in_flight[epoch] */
	unsigned in_flight[2];
	bool data_unsynced;   /* data was written since the last fdatasync */
	bool broken;          /* found corrupt, or a metadata write failed: no more writes */
	char *backing_name, *backing_format;
};

static inline uint16_t get_be16(const void *p)
{
	return __builtin_bswap16(*(const uint16_t __attribute__((aligned(1))) *)p);
}

static inline uint32_t get_be32(const void *p)
{
	return __builtin_bswap32(*(const uint32_t __attribute__((aligned(1))) *)p);
}

static inline uint64_t get_be64(const void *p)
{
	return __builtin_bswap64(*(const uint64_t __attribute__((aligned(1))) *)p);
}

static inline void put_be16(void *p, uint16_t value)
{
	*(uint16_t __attribute__((aligned(1))) *)p = __builtin_bswap16(value);
}

static inline void put_be32(void *p, uint32_t value)
{
	*(uint32_t __attribute__((aligned(1))) *)p = __builtin_bswap32(value);
}

static inline void put_be64(void *p, uint64_t value)
{
	*(uint64_t __attribute__((aligned(1))) *)p = __builtin_bswap64(value);
}

/* qcow2_tables.c: caches and ordered write-back. The lock is held for all of these. */
int qcow2_caches_create(struct qcow2 *q);
void qcow2_caches_destroy(struct qcow2 *q);
/* The table at `offset`, read if it is not cached (`fresh`: it is new, all zeros). May flush metadata to make room. NULL: *error. */
struct table *qcow2_table(struct qcow2 *q, struct table_cache *cache, uint64_t offset, bool fresh, int *error);
struct table *qcow2_table_cached(struct table_cache *cache, uint64_t offset);
void qcow2_table_forget(struct table_cache *cache, uint64_t offset);
void qcow2_table_dirty(struct table_cache *cache, struct table *table);
int qcow2_metadata_flush(struct qcow2 *q, bool final_sync);
/* Marks the image corrupt on the disk too (if writable) and refuses writes from now on. Logs `what` once. Returns -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where);
int qcow2_write_features(struct qcow2 *q);

/* qcow2_refcount.c. The lock is held. */
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *count);
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, int delta);
/* `count` contiguous free clusters, refcount set to 1; the offset in the file, or -errno. */
int64_t qcow2_allocate(struct qcow2 *q, uint64_t count);
/* Drops one reference, later (see the crash rule). */
int qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters);
int qcow2_free_compressed_later(struct qcow2 *q, uint64_t entry);
void qcow2_apply_frees(struct qcow2 *q);
/* File range of a compressed cluster's bytes. */
void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *length);
uint64_t qcow2_block_get(const struct qcow2 *q, const uint8_t *block, uint64_t index);
void qcow2_block_set(const struct qcow2 *q, uint8_t *block, uint64_t index, uint64_t value);

/* qcow2_check.c */
int qcow2_check(struct disk *disk, bool repair, struct disk_check *result, char *why);
int qcow2_check_locked(struct qcow2 *q, bool repair, struct disk_check *result, char *why);

/* qcow2_compress.c: expands one compressed cluster. 0, -EIO when the bytes are not what they should be, -ENOMEM. */
int qcow2_expand(unsigned type, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length);
