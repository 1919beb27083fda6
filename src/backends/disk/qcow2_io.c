/*
 * qcow2: reading, writing, discarding: from a guest's offset to clusters of the file. qcow2.h has the picture and the
 * crash rule.
 *
 * Data moves without the lock. A write that allocates says which clusters of the guest it is about to fill; others that would change
 * those wait for it, so that two writes to one new cluster cannot each make one.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/log.h"

#define ALLOCATE_MAX (2u << 20)  /* bytes written in one allocation, under the lock */
#define WAITING_MAX  (64u << 20) /* bytes taken from the guest and not free yet, before a flush is made for them */
#define IOV_SMALL    16u

enum entry_kind { ENTRY_HOLE, ENTRY_ZERO, ENTRY_DATA, ENTRY_COMPRESSED };

/* What a part of a request finds: clusters of one kind, in a row. */
struct run {
	enum entry_kind kind;
	uint64_t entry;       /* the first one, as it is in the L2 table */
	uint64_t length;      /* bytes from the offset asked for */
	uint64_t file_offset; /* data: where */
};

/* ---- looking up ---- */

static uint64_t l2_index(const struct qcow2 *q, uint64_t offset)
{
	return offset >> q->cluster_bits & ((1ull << q->l2_bits) - 1);
}

static uint64_t l1_index(const struct qcow2 *q, uint64_t offset)
{
	return offset >> (q->cluster_bits + q->l2_bits);
}

/* The L2 table for reading; *table NULL: nothing is allocated there. */
static int l2_for_read(struct qcow2 *q, uint64_t offset, struct table **table)
{
	uint64_t at = q->l1[l1_index(q, offset)] & L2_OFFSET;
	int error;

	*table = NULL;
	if (!at)
		return 0;
	if (!qcow2_aligned(q, at))
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
	qcow2_table_dirty(&q->l2, table, index * 8, 8);
}

static enum entry_kind entry_kind(const struct qcow2 *q, uint64_t entry)
{
	if (entry & L2_COMPRESSED)
		return ENTRY_COMPRESSED;
	if (q->version >= 3 && (entry & L2_ZERO))
		return ENTRY_ZERO;
	return entry & L2_OFFSET ? ENTRY_DATA : ENTRY_HOLE;
}

static bool writable_in_place(const struct qcow2 *q, uint64_t entry)
{
	return entry_kind(q, entry) == ENTRY_DATA && (entry & L2_COPIED);
}

/*
 * The run at `offset`, at most `length` bytes and not beyond one L2 table; a compressed one is one cluster. `in_place`:
 * only what may be overwritten where it is, length 0 when that is nothing.
 */
static int find_run(struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t length, bool in_place,
                    struct run *run)
{
	uint64_t within = offset & (q->cluster_size - 1), index = l2_index(q, offset),
	         covered = q->cluster_size - within;
	uint64_t entry = table ? l2_get(table, index) : 0, at = entry & L2_OFFSET;

	*run = (struct run){.kind = entry_kind(q, entry), .entry = entry};
	if (in_place && !writable_in_place(q, entry))
		return 0;
	if (run->kind == ENTRY_DATA && !qcow2_aligned(q, at))
		return qcow2_corrupt(q, "data cluster not at a cluster", at);
	if (!table)
		covered = ((1ull << q->l2_bits) - index) * q->cluster_size - within;
	while (table && run->kind != ENTRY_COMPRESSED && covered < length && ++index < 1ull << q->l2_bits) {
		uint64_t next = l2_get(table, index);

		if (entry_kind(q, next) != run->kind || (in_place && !writable_in_place(q, next)))
			break;
		if (run->kind == ENTRY_DATA && (next & L2_OFFSET) != at + within + covered)
			break;
		covered += q->cluster_size;
	}
	run->length = covered < length ? covered : length;
	run->file_offset = at + within;
	return 0;
}

/* May the guest's data be written there? Only a broken or hostile image says no. */
static bool may_hold_data(const struct qcow2 *q, const struct run *run)
{
	return (run->file_offset + run->length - 1) >> q->cluster_bits < q->file_clusters &&
	       !qcow2_is_metadata(q, run->file_offset, run->length);
}

/* ---- requests in flight ---- */

static unsigned hold(struct qcow2 *q)
{
	q->in_flight[q->epoch]++;
	return q->epoch;
}

static void release(struct qcow2 *q, unsigned epoch)
{
	q->in_flight[epoch]--;
}

/* ---- reading ---- */

/* One whole compressed cluster into `out`; without the lock. */
static int expand_cluster(struct qcow2 *q, uint64_t entry, uint8_t *out)
{
	uint64_t offset, length;

	qcow2_compressed_range(q, entry, &offset, &length);
	uint8_t *in = malloc(length);
	int error = in ? host_file_read(&q->disk->file, offset, in, length) : -ENOMEM;
	if (!error)
		error = qcow2_expand(q->compression, in, length, out, q->cluster_size);
	free(in);
	if (error == -EIO)
		log_error("%s: compressed cluster at %#llx cannot be expanded", q->disk->file.path,
		          (unsigned long long)offset);
	return error;
}

/* A guest reads a cluster in small parts: the last one is kept. */
static int read_compressed(struct qcow2 *q, uint64_t entry, uint64_t within, const struct iovec *iov, unsigned count,
                           bool unlock)
{
	if (q->expanded && q->expanded_entry == entry) {
		iov_from_buffer(iov, count, q->expanded + within);
		return 0;
	}
	uint8_t *cluster = malloc(q->cluster_size);
	if (!cluster)
		return -ENOMEM;
	unsigned epoch = hold(q);
	if (unlock)
		pthread_mutex_unlock(&q->lock);
	int error = expand_cluster(q, entry, cluster);
	if (!error)
		iov_from_buffer(iov, count, cluster + within);
	if (unlock)
		pthread_mutex_lock(&q->lock);
	release(q, epoch);
	if (error) {
		free(cluster);
		return error;
	}
	free(q->expanded);
	q->expanded = cluster;
	q->expanded_entry = entry;
	return 0;
}

static int read_data(struct qcow2 *q, uint64_t file_offset, const struct iovec *iov, unsigned count, bool unlock)
{
	unsigned epoch = hold(q);

	if (unlock)
		pthread_mutex_unlock(&q->lock);
	int error = host_file_readv(&q->disk->file, file_offset, iov, count);
	if (unlock)
		pthread_mutex_lock(&q->lock);
	release(q, epoch);
	return error;
}

static int read_backing(struct qcow2 *q, uint64_t offset, const struct iovec *iov, unsigned count, bool unlock)
{
	if (unlock)
		pthread_mutex_unlock(&q->lock);
	int error = disk_readv_stack(q->disk->backing, offset, iov, count);
	if (unlock)
		pthread_mutex_lock(&q->lock);
	return error;
}

static int read_run(struct qcow2 *q, uint64_t offset, const struct run *run, const struct iovec *iov, unsigned count,
                    bool unlock)
{
	switch (run->kind) {
	case ENTRY_COMPRESSED:
		return read_compressed(q, run->entry, offset & (q->cluster_size - 1), iov, count, unlock);
	case ENTRY_DATA:
		return read_data(q, run->file_offset, iov, count, unlock);
	case ENTRY_HOLE:
		if (q->disk->backing)
			return read_backing(q, offset, iov, count, unlock);
		break;
	case ENTRY_ZERO:
		break;
	}
	iov_zero(iov, count);
	return 0;
}

/* The lock is held; `unlock`: it may be dropped while data moves. */
static int read_locked(struct qcow2 *q, uint64_t offset, const struct iovec *iov, unsigned count, bool unlock)
{
	uint64_t length = iov_length(iov, count), done = 0;
	struct iovec small[IOV_SMALL], *part = count <= IOV_SMALL ? small : malloc(count * sizeof(*part));
	int error = part ? 0 : -ENOMEM;

	while (!error && done < length) {
		struct table *table;
		struct run run;

		error = l2_for_read(q, offset + done, &table);
		if (!error)
			error = find_run(q, table, offset + done, length - done, false, &run);
		if (error)
			break;
		unsigned parts = iov_slice(part, iov, count, done, run.length);
		error = read_run(q, offset + done, &run, part, parts, unlock);
		done += run.length;
	}
	if (part != small)
		free(part);
	return error;
}

int qcow2_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = read_locked(q, offset, iov, count, true);
	pthread_mutex_unlock(&q->lock);
	return error;
}

/* ---- writing ---- */

/* The L2 table for changing: made, or copied when a snapshot shares it. */
static int l2_for_write(struct qcow2 *q, uint64_t offset, struct table **table)
{
	uint64_t index = l1_index(q, offset), old = q->l1[index] & L2_OFFSET, got;
	int error = l2_for_read(q, offset, table);

	if (error || (*table && (q->l1[index] & L2_COPIED)))
		return error;
	int64_t place = qcow2_allocate(q, 1, &got);
	if (place < 0)
		return (int)place;
	uint8_t *copy = old ? malloc(q->cluster_size) : NULL;
	error = old && !copy ? -ENOMEM : qcow2_metadata_add(q, (uint64_t)place, 1);
	if (error)
		goto undo;
	/* Each of these may push a table out of the cache, so the old one is looked up again. */
	if (old)
		error = l2_for_read(q, offset, table);
	if (!error && old)
		memcpy(copy, (*table)->bytes, q->cluster_size);
	*table = error ? NULL : qcow2_table(q, &q->l2, (uint64_t)place, true, &error);
	if (error) {
		qcow2_metadata_remove(q, (uint64_t)place, 1);
		goto undo;
	}
	if (copy)
		memcpy((*table)->bytes, copy, q->cluster_size);
	free(copy);
	q->l1[index] = (uint64_t)place | L2_COPIED;
	qcow2_words_dirty(&q->l1_dirty, index);
	if (old) {
		qcow2_metadata_remove(q, old, 1); /* it is the snapshot's now */
		qcow2_free_later(q, old, 1);
	}
	return 0;
undo:
	free(copy);
	qcow2_allocation_undo(q, (uint64_t)place, 1);
	return error;
}

/* Gives an entry's clusters back, later. */
static void entry_free(struct qcow2 *q, uint64_t entry)
{
	if (entry & L2_COMPRESSED)
		qcow2_free_compressed_later(q, entry);
	else if (entry & L2_OFFSET)
		qcow2_free_later(q, entry & L2_OFFSET, 1);
}

/* An allocating write whose data is on its way. */
struct qcow2_allocation {
	struct qcow2_allocation *next;
	uint64_t first, end; /* clusters of the guest */
};

static void allocation_begin(struct qcow2 *q, struct qcow2_allocation *allocation)
{
	allocation->next = q->allocations;
	q->allocations = allocation;
}

static void allocation_end(struct qcow2 *q, struct qcow2_allocation *allocation)
{
	struct qcow2_allocation **at = &q->allocations;

	while (*at != allocation)
		at = &(*at)->next;
	*at = allocation->next;
	pthread_cond_broadcast(&q->allocated);
}

/* Is one of these clusters about to be filled? Then waits until something has changed; what was looked up is void. */
static bool wait_for_allocation(struct qcow2 *q, uint64_t offset, uint64_t length)
{
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;

	for (const struct qcow2_allocation *other = q->allocations; other; other = other->next) {
		if (first < other->end && last >= other->first) {
			pthread_cond_wait(&q->allocated, &q->lock);
			return true;
		}
	}
	return false;
}

/* What the image shows in [offset, offset + length), into `buffer`: the part of a cluster that a write does not cover.
 * The lock is dropped meanwhile.
 */
static int read_around(struct qcow2 *q, uint64_t offset, uint8_t *buffer, uint64_t length)
{
	struct iovec iov = {buffer, length};

	memset(buffer, 0, length);
	if (offset >= q->disk->size || length == 0)
		return 0;
	return read_locked(q, offset, &iov, 1, true);
}

/* Data and its surroundings into new clusters, without the lock. It counts as written when it is: a flush that begins before does not
 * cover it, and the entries that depend on it change afterwards. */
static int write_new_clusters(struct qcow2 *q, uint64_t place, uint64_t offset, uint64_t length,
                              const struct iovec *iov, unsigned count)
{
	uint64_t head = offset & (q->cluster_size - 1), tail = -(offset + length) & (q->cluster_size - 1);
	struct iovec small[IOV_SMALL + 2], *all = count <= IOV_SMALL ? small : malloc((count + 2) * sizeof(*all));
	uint8_t *around = head + tail ? malloc(head + tail) : NULL;
	int error = all && (around || head + tail == 0) ? 0 : -ENOMEM;

	if (!error && head)
		error = read_around(q, offset - head, around, head);
	if (!error && tail)
		error = read_around(q, offset + length, around + head, tail);
	if (!error) {
		unsigned used = 0;

		if (head)
			all[used++] = (struct iovec){around, head};
		memcpy(&all[used], iov, count * sizeof(*all));
		used += count;
		if (tail)
			all[used++] = (struct iovec){around + head, tail};
		pthread_mutex_unlock(&q->lock);
		error = host_file_writev(&q->disk->file, place, all, used);
		pthread_mutex_lock(&q->lock);
		q->writes++;
	}
	free(around);
	if (all != small)
		free(all);
	return error;
}

/*
 * Writes the first part of [offset, offset + *length) to new clusters, then changes the entries (in memory); *length
 * becomes what was written. The range lies within one L2 table, and nobody else is about to fill clusters in it.
 */
static int write_allocating(struct qcow2 *q, uint64_t offset, uint64_t *length, const struct iovec *iov, unsigned count)
{
	uint64_t within = offset & (q->cluster_size - 1),
	         clusters = (within + *length + q->cluster_size - 1) >> q->cluster_bits;
	struct iovec small[IOV_SMALL], *part = count <= IOV_SMALL ? small : malloc(count * sizeof(*part));
	uint64_t got, index = l2_index(q, offset);
	struct table *table;

	if (!part)
		return -ENOMEM;
	int64_t place = qcow2_allocate(q, clusters, &got);
	int error = place < 0 ? (int)place : 0;
	if (!error) {
		if (*length > (got << q->cluster_bits) - within)
			*length = (got << q->cluster_bits) - within;
		unsigned parts = iov_slice(part, iov, count, 0, *length);
		struct qcow2_allocation mine = {.first = offset >> q->cluster_bits,
		                                .end = (offset >> q->cluster_bits) + got};

		allocation_begin(q, &mine);
		error = write_new_clusters(q, (uint64_t)place, offset, *length, part, parts);
		allocation_end(q, &mine);
		if (!error && q->broken)
			error = -EIO;
		if (!error)
			error = l2_for_write(q, offset, &table);
		if (error)
			qcow2_allocation_undo(q, (uint64_t)place, got);
	}
	for (uint64_t i = 0; !error && i < got; i++) {
		uint64_t old = l2_get(table, index + i);

		l2_set(q, table, index + i, ((uint64_t)place + (i << q->cluster_bits)) | L2_COPIED);
		entry_free(q, old);
	}
	if (part != small)
		free(part);
	return error;
}

/* How far from `offset` on entries need allocation: at most `length`, ALLOCATE_MAX and the L2 table's end. */
static uint64_t allocation_length(struct qcow2 *q, const struct table *table, uint64_t offset, uint64_t length)
{
	uint64_t index = l2_index(q, offset), covered = q->cluster_size - (offset & (q->cluster_size - 1));

	while (covered < length && covered < ALLOCATE_MAX && ++index < 1ull << q->l2_bits) {
		if (table && writable_in_place(q, l2_get(table, index)))
			break;
		covered += q->cluster_size;
	}
	return covered < length ? covered : length;
}

static int write_in_place(struct qcow2 *q, const struct run *run, const struct iovec *iov, unsigned count)
{
	if (!may_hold_data(q, run))
		return qcow2_corrupt(q, "data cluster where metadata or nothing is", run->file_offset);
	unsigned epoch = hold(q);
	pthread_mutex_unlock(&q->lock);
	int error = host_file_writev(&q->disk->file, run->file_offset, iov, count);
	pthread_mutex_lock(&q->lock);
	release(q, epoch);
	return error;
}

/* A guest that overwrites and discards without ever flushing must not make the file grow without end. */
static int limit_waiting(struct qcow2 *q)
{
	return q->waiting << q->cluster_bits > WAITING_MAX ? qcow2_metadata_flush(q, false) : 0;
}

static int write_locked(struct qcow2 *q, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t length = iov_length(iov, count), done = 0;
	struct iovec small[IOV_SMALL], *part = count <= IOV_SMALL ? small : malloc(count * sizeof(*part));
	int error = part ? 0 : -ENOMEM;

	while (!error && done < length) {
		struct table *table;
		struct run run;

		error = q->broken ? -EIO : limit_waiting(q);
		if (!error)
			error = l2_for_read(q, offset + done, &table);
		/* A table shared with a snapshot has entries without the COPIED flag, so all of it is allocated anew.
		 */
		if (!error)
			error = find_run(q, table, offset + done, length - done, true, &run);
		if (error)
			break;
		if (run.length) {
			unsigned parts = iov_slice(part, iov, count, done, run.length);

			error = write_in_place(q, &run, part, parts);
		} else {
			run.length = allocation_length(q, table, offset + done, length - done);
			if (wait_for_allocation(q, offset + done, run.length))
				continue;
			unsigned parts = iov_slice(part, iov, count, done, run.length);
			error = write_allocating(q, offset + done, &run.length, part, parts);
		}
		done += run.length;
	}
	if (part != small)
		free(part);
	return error;
}

int qcow2_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = write_locked(q, offset, iov, count);
	pthread_mutex_unlock(&q->lock);
	return error;
}

/* ---- discard and zeros ---- */

static int write_zeros(struct qcow2 *q, uint64_t offset, uint64_t length)
{
	uint8_t *zeros = calloc(1, length);
	struct iovec iov = {zeros, length};
	int error = zeros ? write_locked(q, offset, &iov, 1) : -ENOMEM;

	free(zeros);
	return error;
}

/* The cluster at `offset` stops holding data. `zero`: it must read as zeros; else what it reads as is free. */
static int clear_cluster(struct qcow2 *q, uint64_t offset, const struct run *run, bool zero, bool may_unmap)
{
	bool backed = q->disk->backing != NULL;
	struct table *table;

	if (backed && q->version < 3) /* has no zero clusters: a hole would show the backing image */
		return zero ? write_zeros(q, offset, q->cluster_size) : 0;
	int error = l2_for_write(q, offset, &table);
	if (error)
		return error;
	if (!may_unmap && q->version >= 3 && writable_in_place(q, run->entry)) {
		l2_set(q, table, l2_index(q, offset), run->entry | L2_ZERO);
		return 0;
	}
	l2_set(q, table, l2_index(q, offset), backed ? L2_ZERO : 0);
	entry_free(q, run->entry);
	return 0;
}

/* Nothing to do for these clusters? */
static bool is_clear(const struct qcow2 *q, const struct run *run, bool zero, bool may_unmap)
{
	if (run->kind == ENTRY_HOLE)
		return !q->disk->backing || !zero;
	return run->kind == ENTRY_ZERO && (!(run->entry & L2_OFFSET) || !may_unmap);
}

int qcow2_clear_range(struct qcow2 *q, uint64_t offset, uint64_t length, bool zero, bool may_unmap)
{
	uint64_t end = offset + length;
	int error = 0;

	while (!error && offset < end) {
		uint64_t within = offset & (q->cluster_size - 1), part = q->cluster_size - within;
		struct table *table;
		struct run run;

		if (wait_for_allocation(q, offset, end - offset))
			continue;
		error = q->broken ? -EIO : limit_waiting(q);
		if (!error)
			error = l2_for_read(q, offset, &table);
		if (!error)
			error = find_run(q, table, offset, end - offset, false, &run);
		if (error)
			return error;
		if (part > end - offset)
			part = end - offset;
		if (run.kind == ENTRY_HOLE && is_clear(q, &run, zero, may_unmap))
			part = run.length;
		else if (is_clear(q, &run, zero, may_unmap))
			;
		else if (part == q->cluster_size || (within == 0 && end == q->disk->size))
			error = clear_cluster(q, offset, &run, zero, may_unmap);
		else if (zero && run.kind != ENTRY_ZERO)
			error = write_zeros(q, offset, part);
		offset += part;
	}
	return error;
}

int qcow2_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = qcow2_clear_range(q, offset, length, false, true);
	pthread_mutex_unlock(&q->lock);
	return error;
}

int qcow2_zero(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	int error = qcow2_clear_range(q, offset, length, true, may_unmap);
	pthread_mutex_unlock(&q->lock);
	return error;
}

/* ---- the fast path ---- */

static enum disk_extent_kind extent_kind(enum entry_kind kind)
{
	if (kind == ENTRY_DATA || kind == ENTRY_COMPRESSED)
		return DISK_EXTENT_DATA;
	return kind == ENTRY_ZERO ? DISK_EXTENT_ZERO : DISK_EXTENT_HOLE;
}

bool qcow2_map(struct disk *disk, uint64_t offset, uint64_t length, bool write, struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;
	struct table *table = NULL;
	struct run run = {0};

	if (pthread_mutex_trylock(&q->lock))
		return false;
	uint64_t at = q->l1[l1_index(q, offset)] & L2_OFFSET;
	if (at)
		table = qcow2_table_cached(&q->l2, at);
	bool found =
	    !(at && !table) && !(write && q->broken) && !find_run(q, table, offset, length, write, &run) && run.length;
	if (run.kind == ENTRY_COMPRESSED || (run.kind == ENTRY_HOLE && disk->backing) ||
	    (found && write && !may_hold_data(q, &run)))
		found = false;
	if (found) {
		*extent = (struct disk_extent){.length = run.length, .file_offset = run.file_offset, .token = hold(q)};
		extent->kind = run.kind == ENTRY_DATA ? DISK_EXTENT_DATA : DISK_EXTENT_ZERO;
	}
	pthread_mutex_unlock(&q->lock);
	return found;
}

void qcow2_unmap(struct disk *disk, const struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;

	pthread_mutex_lock(&q->lock);
	release(q, extent->token);
	pthread_mutex_unlock(&q->lock);
}

int qcow2_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *extent)
{
	struct qcow2 *q = disk->data;
	struct table *table;
	struct run run;

	pthread_mutex_lock(&q->lock);
	int error = l2_for_read(q, offset, &table);
	if (!error)
		error = find_run(q, table, offset, length, false, &run);
	pthread_mutex_unlock(&q->lock);
	if (!error)
		*extent = (struct disk_extent){
		    .kind = extent_kind(run.kind), .length = run.length, .file_offset = run.file_offset};
	return error;
}
