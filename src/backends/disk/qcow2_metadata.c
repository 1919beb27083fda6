/*
 * qcow2: the set of clusters that hold metadata. A hostile or broken image may place data there, or count such a
 * cluster as free: the guest could then rewrite the header of its own image. Open addressing; a removed number leaves a
 * mark until the next growth.
 */
#include "backends/disk/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define SLOTS_MIN 64u
#define REMOVED   UINT64_MAX

static size_t slot_of(const struct cluster_set *set, uint64_t number)
{
	return (size_t)((number * 0x9e3779b97f4a7c15ull) >> 20) & (set->slots - 1);
}

/* Its slot, or the empty one where a search for it ends. */
static size_t set_find(const struct cluster_set *set, uint64_t number)
{
	size_t at = slot_of(set, number);

	while (set->slot[at] && set->slot[at] != number + 1)
		at = (at + 1) & (set->slots - 1);
	return at;
}

static int set_grow(struct cluster_set *set)
{
	struct cluster_set bigger = {.slots = SLOTS_MIN};

	while (bigger.slots < set->count * 4)
		bigger.slots *= 2;
	bigger.slot = calloc(bigger.slots, sizeof(*bigger.slot));
	if (!bigger.slot)
		return -ENOMEM;
	for (size_t i = 0; i < set->slots; i++)
		if (set->slot[i] && set->slot[i] != REMOVED)
			bigger.slot[set_find(&bigger, set->slot[i] - 1)] = set->slot[i];
	bigger.count = set->count;
	free(set->slot);
	*set = bigger;
	return 0;
}

static int set_add(struct cluster_set *set, uint64_t number)
{
	if ((set->count + set->removed + 1) * 2 > set->slots && set_grow(set))
		return -ENOMEM;
	size_t at = set_find(set, number);
	if (set->slot[at])
		return -EEXIST;
	set->slot[at] = number + 1;
	set->count++;
	return 0;
}

int qcow2_metadata_add(struct qcow2 *q, uint64_t offset, uint64_t length)
{
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
	int error = 0;

	for (uint64_t i = first; !error && length && i <= last; i++)
		error = set_add(&q->metadata, i);
	return error;
}

void qcow2_metadata_remove(struct qcow2 *q, uint64_t offset, uint64_t length)
{
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;

	for (uint64_t i = first; length && i <= last && q->metadata.slots; i++) {
		size_t at = set_find(&q->metadata, i);

		if (!q->metadata.slot[at])
			continue;
		q->metadata.slot[at] = REMOVED;
		q->metadata.count--;
		q->metadata.removed++;
	}
}

bool qcow2_is_metadata(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
	uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;

	for (uint64_t i = first; length && i <= last && q->metadata.slots; i++)
		if (q->metadata.slot[set_find(&q->metadata, i)])
			return true;
	return false;
}

static int add_tables(struct qcow2 *q, const uint64_t *entry, uint64_t count, uint64_t mask)
{
	int error = 0;

	for (uint64_t i = 0; !error && i < count; i++) {
		uint64_t at = entry[i] & mask;

		if (at)
			error = qcow2_aligned(q, at) ? qcow2_metadata_add(q, at, 1) : -EEXIST;
	}
	return error;
}

int qcow2_metadata_collect(struct qcow2 *q, char *why)
{
	int error = qcow2_metadata_add(q, 0, 1);

	if (!error)
		error = qcow2_metadata_add(q, q->reftable_offset, q->reftable_entries * 8);
	if (!error)
		error = qcow2_metadata_add(q, q->l1_offset, (uint64_t)q->l1_size * 8);
	if (!error && q->snapshots_bytes)
		error = qcow2_metadata_add(q, q->snapshots_offset, q->snapshots_bytes);
	for (uint32_t i = 0; !error && i < q->snapshot_count; i++)
		error = qcow2_metadata_add(q, q->snapshots[i].l1_offset, (uint64_t)q->snapshots[i].l1_size * 8);
	if (!error)
		error = add_tables(q, q->reftable, q->reftable_entries, REFTABLE_OFFSET);
	if (!error)
		error = add_tables(q, q->l1, q->l1_size, L2_OFFSET);
	if (error == -EEXIST)
		return qcow2_bad(q->disk, why, "corrupt: tables overlap; open it readonly to save what is readable");
	return error;
}
