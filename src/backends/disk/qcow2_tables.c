/*
 * qcow2: cached tables and their ordered way to the disk (the crash rule of qcow2.h).
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/log.h"

#define L2_CACHE_BYTES    (8u << 20)
#define BLOCK_CACHE_BYTES (2u << 20)
#define CACHE_SLOTS_MIN   4u
#define CACHE_SLOTS_MAX   16384u
#define SECTOR            512u
#define WORDS_PER_SECTOR  (SECTOR / 8)
#define PAGE              4096u

/* ---- lists and hashing ---- */

static bool is_dirty(const struct table *table)
{
	return table->dirty_from < table->dirty_to;
}

static void list_remove(struct table_list *list, struct table *table)
{
	*(table->older ? &table->older->newer : &list->oldest) = table->newer;
	*(table->newer ? &table->newer->older : &list->newest) = table->older;
}

static void list_append(struct table_list *list, struct table *table)
{
	table->older = list->newest;
	table->newer = NULL;
	*(list->newest ? &list->newest->newer : &list->oldest) = table;
	list->newest = table;
}

static void list_prepend(struct table_list *list, struct table *table)
{
	table->older = NULL;
	table->newer = list->oldest;
	*(list->oldest ? &list->oldest->older : &list->newest) = table;
	list->oldest = table;
}

static struct table_list *list_of(struct table_cache *cache, const struct table *table)
{
	return is_dirty(table) ? &cache->dirty : &cache->clean;
}

static struct table **bucket_of(struct table_cache *cache, uint64_t offset)
{
	return &cache->bucket[((offset >> 9) * 0x9e3779b97f4a7c15ull >> 32) & (cache->buckets - 1)];
}

static void hash_remove(struct table_cache *cache, struct table *table)
{
	struct table **at = bucket_of(cache, table->offset);

	while (*at != table)
		at = &(*at)->hash_next;
	*at = table->hash_next;
	table->offset = 0;
}

static void hash_add(struct table_cache *cache, struct table *table, uint64_t offset)
{
	struct table **bucket = bucket_of(cache, offset);

	table->offset = offset;
	table->hash_next = *bucket;
	*bucket = table;
}

/* ---- the cache ---- */

static int cache_create(struct table_cache *cache, uint64_t cluster_size, uint64_t bytes)
{
	uint64_t count = bytes / cluster_size;

	cache->count = count < CACHE_SLOTS_MIN   ? CACHE_SLOTS_MIN
	               : count > CACHE_SLOTS_MAX ? CACHE_SLOTS_MAX
	                                         : (unsigned)count;
	cache->buckets = 1;
	while (cache->buckets < cache->count)
		cache->buckets *= 2;
	cache->slot = calloc(cache->count, sizeof(*cache->slot));
	cache->bucket = calloc(cache->buckets, sizeof(struct table *));
	return cache->slot && cache->bucket ? 0 : -ENOMEM;
}

static void cache_destroy(struct table_cache *cache)
{
	for (unsigned i = 0; i < cache->used; i++)
		free(cache->slot[i].bytes);
	free(cache->slot);
	free(cache->bucket);
}

int qcow2_caches_create(struct qcow2 *q)
{
	int error = cache_create(&q->l2, q->cluster_size, L2_CACHE_BYTES);

	return error ? error : cache_create(&q->blocks, q->cluster_size, BLOCK_CACHE_BYTES);
}

void qcow2_caches_destroy(struct qcow2 *q)
{
	cache_destroy(&q->l2);
	cache_destroy(&q->blocks);
}

struct table *qcow2_table_cached(struct table_cache *cache, uint64_t offset)
{
	struct table *table = *bucket_of(cache, offset);

	while (table && table->offset != offset)
		table = table->hash_next;
	if (table && table->newer) {
		struct table_list *list = list_of(cache, table);

		list_remove(list, table);
		list_append(list, table);
	}
	return table;
}

void qcow2_table_forget(struct table_cache *cache, uint64_t offset)
{
	struct table *table = qcow2_table_cached(cache, offset);

	if (!table)
		return;
	list_remove(list_of(cache, table), table);
	table->dirty_from = table->dirty_to = 0;
	hash_remove(cache, table);
	list_prepend(&cache->clean, table);
}

void qcow2_table_dirty(struct table_cache *cache, struct table *table, uint64_t from, uint64_t length)
{
	if (!is_dirty(table)) {
		list_remove(&cache->clean, table);
		table->dirty_from = (unsigned)from;
		table->dirty_to = (unsigned)(from + length);
		list_append(&cache->dirty, table);
		return;
	}
	if (from < table->dirty_from)
		table->dirty_from = (unsigned)from;
	if (from + length > table->dirty_to)
		table->dirty_to = (unsigned)(from + length);
}

/* A slot to use: never used, or the clean one that was not needed for longest. NULL: all are dirty, or no memory. */
static struct table *free_slot(struct table_cache *cache, uint64_t cluster_size, int *error)
{
	struct table *table = cache->clean.oldest;

	*error = 0;
	if (cache->used < cache->count && (!table || table->offset)) {
		table = &cache->slot[cache->used];
		if (posix_memalign((void **)&table->bytes, cluster_size < PAGE ? cluster_size : PAGE, cluster_size)) {
			table->bytes = NULL;
			*error = -ENOMEM;
			return NULL;
		}
		cache->used++;
		list_prepend(&cache->clean, table);
	} else if (table && table->offset) {
		hash_remove(cache, table);
	}
	return table;
}

struct table *qcow2_table(struct qcow2 *q, struct table_cache *cache, uint64_t offset, bool fresh, int *error)
{
	struct table *table = qcow2_table_cached(cache, offset);

	*error = 0;
	if (!table) {
		table = free_slot(cache, q->cluster_size, error);
		if (!table && !*error) {
			*error = qcow2_metadata_flush(q, false);
			table = *error ? NULL : free_slot(cache, q->cluster_size, error);
		}
		if (!table)
			return NULL;
		*error = fresh ? 0 : host_file_read(&q->disk->file, offset, table->bytes, q->cluster_size);
		if (*error)
			return NULL;
		hash_add(cache, table, offset);
		list_remove(&cache->clean, table);
		list_append(&cache->clean, table);
	}
	if (fresh) {
		memset(table->bytes, 0, q->cluster_size);
		qcow2_table_dirty(cache, table, 0, q->cluster_size);
	}
	return table;
}

void qcow2_words_dirty(struct dirty_words *dirty, uint64_t index)
{
	if (dirty->from == dirty->to)
		*dirty = (struct dirty_words){index, index + 1};
	else if (index < dirty->from)
		dirty->from = index;
	else if (index >= dirty->to)
		dirty->to = index + 1;
}

/* ---- writing, in ranks ---- */

static int write_metadata(struct qcow2 *q, uint64_t offset, const void *bytes, uint64_t length)
{
	q->writes++;
	return host_file_write(&q->disk->file, offset, bytes, length);
}

static int write_tables(struct qcow2 *q, struct table_cache *cache)
{
	for (struct table *table = cache->dirty.oldest; table; table = cache->dirty.oldest) {
		unsigned from = table->dirty_from & ~(SECTOR - 1), to = (table->dirty_to + SECTOR - 1) & ~(SECTOR - 1);
		int error = write_metadata(q, table->offset + from, table->bytes + from, to - from);

		if (error)
			return error;
		list_remove(&cache->dirty, table);
		table->dirty_from = table->dirty_to = 0;
		list_append(&cache->clean, table);
	}
	return 0;
}

static int write_words(struct qcow2 *q, uint64_t offset, const uint64_t *words, uint64_t count,
                       struct dirty_words *dirty)
{
	uint64_t bytes[512], at = dirty->from & ~(uint64_t)(WORDS_PER_SECTOR - 1);
	uint64_t end = (dirty->to + WORDS_PER_SECTOR - 1) & ~(uint64_t)(WORDS_PER_SECTOR - 1);
	int error = 0;

	if (end > count)
		end = count;
	while (!error && at < end) {
		uint64_t part = end - at < 512 ? end - at : 512;

		for (uint64_t i = 0; i < part; i++)
			put_be64(&bytes[i], words[at + i]);
		error = write_metadata(q, offset + at * 8, bytes, part * 8);
		at += part;
	}
	if (!error)
		dirty->from = dirty->to = 0;
	return error;
}

static int sync_done(struct qcow2 *q, int error, uint64_t number)
{
	if (error) {
		/* Which writes reached the disk is unknown, and the kernel may have forgotten them: what was there
		 * before is whole. */
		if (!q->broken)
			log_error("%s: fdatasync failed (%s); no more writes", q->disk->file.path, strerror(-error));
		q->broken = true;
	} else if (q->synced < number) {
		q->synced = number;
	}
	return error;
}

/* All that was written is on the disk before what comes next. */
static int barrier(struct qcow2 *q)
{
	if (q->writes == q->synced || q->disk->options.cache == DISK_CACHE_UNSAFE)
		return 0;
	return sync_done(q, host_file_sync(&q->disk->file), q->writes);
}

static bool words_are_dirty(const struct dirty_words *dirty)
{
	return dirty->from < dirty->to;
}

static int write_reftable(struct qcow2 *q)
{
	uint8_t header[12];
	int error = barrier(q);

	if (!error)
		error = write_words(q, q->reftable_offset, q->reftable, q->reftable_entries, &q->reftable_dirty);
	if (error || !q->reftable_moved)
		return error;
	error = barrier(q);
	put_be64(header, q->reftable_offset);
	put_be32(header + 8, (uint32_t)(q->reftable_entries * 8 >> q->cluster_bits));
	if (!error)
		error = write_metadata(q, HEADER_REFTABLE_OFFSET, header, sizeof(header));
	if (!error)
		q->reftable_moved = false;
	return error;
}

static int write_ranks(struct qcow2 *q)
{
	int error = write_tables(q, &q->blocks);

	if (!error && (words_are_dirty(&q->reftable_dirty) || q->reftable_moved))
		error = write_reftable(q);
	if (!error && q->l2.dirty.oldest) {
		error = barrier(q);
		if (!error)
			error = write_tables(q, &q->l2);
	}
	if (!error && words_are_dirty(&q->l1_dirty)) {
		error = barrier(q);
		if (!error)
			error = write_words(q, q->l1_offset, q->l1, q->l1_size, &q->l1_dirty);
	}
	return error;
}

bool qcow2_metadata_dirty(const struct qcow2 *q)
{
	return q->blocks.dirty.oldest || q->l2.dirty.oldest || words_are_dirty(&q->reftable_dirty) ||
	       q->reftable_moved || words_are_dirty(&q->l1_dirty);
}

int qcow2_metadata_flush(struct qcow2 *q, bool unlock)
{
	struct range_list removed;
	uint64_t number;
	int error;

	if (q->disk->file.readonly)
		return 0;
	if (q->broken)
		return -EIO;
	error = write_ranks(q);
	if (error)
		return error;
	/* What is removed from here on is not on its way yet. */
	removed = q->removed;
	q->removed = (struct range_list){0};
	number = q->writes;
	if (q->disk->options.cache != DISK_CACHE_UNSAFE && (unlock || q->writes != q->synced)) {
		if (unlock)
			pthread_mutex_unlock(&q->lock);
		error = host_file_sync(&q->disk->file);
		if (unlock)
			pthread_mutex_lock(&q->lock);
		error = sync_done(q, error, number);
	}
	if (!error && !q->broken)
		qcow2_apply_frees(q, &removed);
	free(removed.range);
	return error;
}

int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t where)
{
	if (!q->broken)
		log_error("%s: corrupt: %s (%#llx); no more writes. 'ring3 image check' shows more", q->disk->file.path,
		          what, (unsigned long long)where);
	q->broken = true;
	if (!q->disk->file.readonly && q->version >= 3 && !(q->incompatible & INCOMPATIBLE_CORRUPT)) {
		q->incompatible |= INCOMPATIBLE_CORRUPT;
		(void)qcow2_write_features(q); /* nothing more can be done */
	}
	return -EIO;
}
