/*
 * qcow2: cached tables and their ordered way to the disk (the crash rule of qcow2.h).
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/log.h"

#define L2_CACHE_BYTES    (16u << 20)
#define BLOCK_CACHE_BYTES (4u << 20)
#define CACHE_SLOTS_MIN   8u

static int cache_create(struct table_cache *cache, uint64_t cluster_size, uint64_t bytes)
{
	uint64_t count = bytes / cluster_size;

	cache->count = count < CACHE_SLOTS_MIN ? CACHE_SLOTS_MIN : count > TABLE_CACHE_SIZE ? TABLE_CACHE_SIZE : (unsigned)count;
	return 0;
}

int qcow2_caches_create(struct qcow2 *q)
{
	int error = cache_create(&q->l2, q->cluster_size, L2_CACHE_BYTES);

	return error ? error : cache_create(&q->blocks, q->cluster_size, BLOCK_CACHE_BYTES);
}

void qcow2_caches_destroy(struct qcow2 *q)
{
	for (unsigned i = 0; i < TABLE_CACHE_SIZE; i++) {
		free(q->l2.slot[i].bytes);
		free(q->blocks.slot[i].bytes);
	}
}

struct table *qcow2_table_cached(struct table_cache *cache, uint64_t offset)
{
	for (unsigned i = 0; i < cache->count; i++) {
		struct table *table = &cache->slot[i];

		if (table->offset == offset) {
			table->used = ++cache->clock;
			return table;
		}
	}
	return NULL;
}

void qcow2_table_forget(struct table_cache *cache, uint64_t offset)
{
	struct table *table = qcow2_table_cached(cache, offset);

	if (!table)
		return;
	if (table->dirty)
		cache->dirty--;
	table->dirty = false;
	table->offset = 0;
	table->used = 0;
}

void qcow2_table_dirty(struct table_cache *cache, struct table *table)
{
	if (!table->dirty)
		cache->dirty++;
	table->dirty = true;
}

static struct table *oldest_clean(struct table_cache *cache)
{
	struct table *oldest = NULL;

	for (unsigned i = 0; i < cache->count; i++) {
		struct table *table = &cache->slot[i];

		if (!table->dirty && (!oldest || table->used < oldest->used))
			oldest = table;
	}
	return oldest;
}

struct table *qcow2_table(struct qcow2 *q, struct table_cache *cache, uint64_t offset, bool fresh, int *error)
{
	struct table *table = qcow2_table_cached(cache, offset);

	if (!table) {
		table = oldest_clean(cache);
		if (!table) {
			*error = qcow2_metadata_flush(q, false);
			if (*error)
				return NULL;
			table = oldest_clean(cache);
		}
		table->offset = 0;
		if (!table->bytes)
			table->bytes = malloc(q->cluster_size);
		if (!table->bytes) {
			*error = -ENOMEM;
			return NULL;
		}
		*error = fresh ? 0 : host_file_read(&q->disk->file, offset, table->bytes, q->cluster_size);
		if (*error)
			return NULL;
		table->offset = offset;
		table->used = ++cache->clock;
	}
	if (fresh) {
		memset(table->bytes, 0, q->cluster_size);
		qcow2_table_dirty(cache, table);
	}
	*error = 0;
	return table;
}

static int write_dirty(struct qcow2 *q, struct table_cache *cache)
{
	for (unsigned i = 0; i < cache->count && cache->dirty; i++) {
		struct table *table = &cache->slot[i];

		if (!table->dirty)
			continue;
		int error = host_file_write(&q->disk->file, table->offset, table->bytes, q->cluster_size);
		if (error)
			return error;
		table->dirty = false;
		cache->dirty--;
	}
	return 0;
}

static int write_words(struct qcow2 *q, uint64_t offset, const uint64_t *words, uint64_t count)
{
	uint64_t *bytes = malloc(count * sizeof(*bytes));
	int error = -ENOMEM;

	if (bytes) {
		for (uint64_t i = 0; i < count; i++)
			put_be64(&bytes[i], words[i]);
		error = host_file_write(&q->disk->file, offset, bytes, count * sizeof(*bytes));
	}
	free(bytes);
	return error;
}

static int rank_sync(struct qcow2 *q)
{
	if (q->disk->options.cache == DISK_CACHE_UNSAFE)
		return 0;
	int error = host_file_sync(&q->disk->file);
	if (!error)
		q->data_unsynced = false;
	return error;
}

static int write_reftable(struct qcow2 *q)
{
	uint8_t header[12];
	int error = write_words(q, q->reftable_offset, q->reftable, q->reftable_entries);

	if (error)
		return error;
	q->reftable_dirty = false;
	if (!q->reftable_moved)
		return 0;
	error = rank_sync(q);
	if (error)
		return error;
	put_be64(header, q->reftable_offset);
	put_be32(header + 8, (uint32_t)(q->reftable_entries * 8 / q->cluster_size));
	error = host_file_write(&q->disk->file, HEADER_REFTABLE_OFFSET, header, sizeof(header));
	if (!error)
		q->reftable_moved = false;
	return error;
}

static int flush_ranks(struct qcow2 *q, bool final_sync)
{
	bool references = q->l2.dirty || q->l1_dirty; /* something on the disk will point at new clusters */
	bool counted = q->blocks.dirty || q->reftable_dirty;
	int error = write_dirty(q, &q->blocks);

	if (!error && q->reftable_dirty) {
		error = rank_sync(q);
		if (!error)
			error = write_reftable(q);
	}
	if (!error && references && (counted || q->data_unsynced))
		error = rank_sync(q);
	if (!error && q->l2.dirty)
		error = write_dirty(q, &q->l2);
	if (!error && q->l1_dirty) {
		error = rank_sync(q);
		if (!error)
			error = write_words(q, q->l1_offset, q->l1, q->l1_size);
		if (!error)
			q->l1_dirty = false;
	}
	if (!error && final_sync && (references || counted || q->data_unsynced))
		error = rank_sync(q);
	return error;
}

int qcow2_metadata_flush(struct qcow2 *q, bool final_sync)
{
	if (q->disk->file.readonly)
		return 0;
	if (q->broken)
		return -EIO;
	int error = flush_ranks(q, final_sync);
	if (error) {
		/* Which of the tables reached the disk is unknown: what was there before is still whole, so stop here. */
		log_error("%s: metadata could not be written (%s); no more writes", q->disk->file.path, strerror(-error));
		q->broken = true;
		return error;
	}
	if (final_sync)
		qcow2_apply_frees(q);
	return 0;
}

int qcow2_write_features(struct qcow2 *q)
{
	uint8_t bytes[8];

	if (q->version < 3)
		return 0;
	put_be64(bytes, q->incompatible);
	return host_file_write(&q->disk->file, HEADER_INCOMPATIBLE, bytes, sizeof(bytes));
}

int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where)
{
	if (!q->broken)
		log_error("%s: corrupt: %s (%#llx); no more writes. 'ring3 image check' shows more", q->disk->file.path, what,
			  (unsigned long long)where);
	q->broken = true;
	if (!q->disk->file.readonly && q->version >= 3 && !(q->incompatible & INCOMPATIBLE_CORRUPT)) {
		q->incompatible |= INCOMPATIBLE_CORRUPT;
		if (qcow2_write_features(q))
			return -EIO;
	}
	return -EIO;
}
