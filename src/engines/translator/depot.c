#include "engines/translator/depot.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PARTS_MAX  16u
#define PART_LEAST (128u << 10)
#define PART_MOST  ((size_t)UNIT << PLACE_BITS)
#define CPU_LEAST  (1u << 20) /* of the code cache: with less for a processor all is for its own */
#define PER_SLOT   256        /* bytes of entries, less than most have */
#define WAYS       4u
#define UNIT       16u
#define PLACE_BITS 20 /* of a slot; the rest is a part of the hash */
#define PLACE_MASK ((1u << PLACE_BITS) - 1)
#define REST_KEPT  (1u << 20) /* bytes that are not worth giving back */

struct entry {
	size_t size; /* with this head, a multiple of UNIT */
	struct depot_key key;
} __attribute__((aligned(UNIT)));

/*
 * Entries lie in [0, at), of this round, and in [oldest, limit), what is left of the round before. A slot of the hash, in
 * sets of WAYS, has a part of an entry's hash and its place (in UNITs, from 1; 0: none), so that it is known without the
 * lock, and a look at the entry, that there is none. An entry that no slot leads to is dead.
 */
struct part {
	pthread_mutex_t lock;
	uint8_t *memory;
	_Atomic uint32_t *slot; /* written under the lock */
	size_t at, oldest, limit;
};

struct depot {
	unsigned users, parts;
	size_t part_size;
	uint32_t sets; /* of a part */
	uint8_t *memory;
	size_t size;
	_Atomic uint32_t idle; /* bit n: of processor n */
	struct part part[PARTS_MAX];
};

uint64_t depot_size(uint64_t code_cache, unsigned cpus)
{
	return cpus > 1 && code_cache / cpus >= CPU_LEAST ? code_cache / 8 : 0;
}

struct depot *depot_create(uint64_t size)
{
	struct depot *depot = calloc(1, sizeof(*depot));

	if (!depot)
		return NULL;
	depot->users = 1;
	depot->parts = PARTS_MAX;
	while (depot->parts > 1 && size / depot->parts < PART_LEAST)
		depot->parts--;
	size_t each = size / depot->parts & ~(size_t)4095;
	each = each < PART_MOST ? each : PART_MOST;
	depot->sets = 16;
	while (depot->sets * WAYS * PER_SLOT < each)
		depot->sets *= 2;
	size_t table = depot->sets * WAYS * sizeof(uint32_t);
	depot->part_size = each - table;
	depot->size = each * depot->parts;
	depot->memory =
	    mmap(NULL, depot->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (depot->memory == MAP_FAILED) {
		free(depot);
		return NULL;
	}
	madvise(depot->memory, depot->size, MADV_NOHUGEPAGE); /* it is filled at many ends */
	for (unsigned n = 0; n < depot->parts; n++) {
		pthread_mutex_init(&depot->part[n].lock, NULL);
		depot->part[n].slot = (_Atomic uint32_t *)(depot->memory + n * each);
		depot->part[n].memory = depot->memory + n * each + table;
	}
	return depot;
}

void depot_add_user(struct depot *depot)
{
	depot->users++;
}

void depot_remove_user(struct depot *depot)
{
	if (!depot || --depot->users)
		return;
	for (unsigned n = 0; n < depot->parts; n++)
		pthread_mutex_destroy(&depot->part[n].lock);
	munmap(depot->memory, depot->size);
	free(depot);
}

/* ---- entries ---- */

static uint64_t hash_of(const struct depot_key *key)
{
	uint64_t word = key->physical * 0x9e3779b97f4a7c15ull;

	word ^= key->rip + key->view + (uint64_t)key->mode * 8 + key->floating * 2048ull + key->loose * 4096ull;
	word *= 0x9e3779b97f4a7c15ull;
	return word ^ word >> 29;
}

static struct part *part_of(struct depot *depot, uint64_t hash)
{
	return &depot->part[(hash >> 57) % depot->parts];
}

static _Atomic uint32_t *set_of(const struct depot *depot, const struct part *part, uint64_t hash)
{
	return &part->slot[(hash & (depot->sets - 1)) * WAYS];
}

static uint32_t load(const _Atomic uint32_t *slot)
{
	return atomic_load_explicit(slot, memory_order_relaxed);
}

static void store(_Atomic uint32_t *slot, uint32_t value)
{
	atomic_store_explicit(slot, value, memory_order_relaxed);
}

/* What a slot for it has above the place. */
static uint32_t tag_of(uint64_t hash)
{
	return (uint32_t)(hash >> 24) & ~PLACE_MASK;
}

static bool has_tag(uint32_t slot, uint64_t hash)
{
	return slot && (slot & ~PLACE_MASK) == tag_of(hash);
}

static struct entry *entry_of(const struct part *part, uint32_t slot)
{
	return (struct entry *)(part->memory + (size_t)((slot & PLACE_MASK) - 1) * UNIT);
}

static uint32_t place_of(const struct part *part, const struct entry *entry)
{
	return (uint32_t)((size_t)((const uint8_t *)entry - part->memory) / UNIT) + 1;
}

static bool same_place(const struct depot_key *a, const struct depot_key *b)
{
	return a->physical == b->physical && a->rip == b->rip && a->mode == b->mode && a->view == b->view &&
	       a->floating == b->floating && a->loose == b->loose;
}

/* The oldest entries up to `end`. */
static void evict(struct depot *depot, struct part *part, size_t end)
{
	while (part->oldest < part->limit && part->oldest < end) {
		const struct entry *entry = (const struct entry *)(part->memory + part->oldest);
		_Atomic uint32_t *set = set_of(depot, part, hash_of(&entry->key));

		for (unsigned n = 0; n < WAYS; n++)
			if ((load(&set[n]) & PLACE_MASK) == place_of(part, entry))
				store(&set[n], 0);
		part->oldest += entry->size;
	}
}

const void *depot_find(struct depot *depot, const struct depot_key *key)
{
	uint64_t hash = hash_of(key);
	struct part *part = part_of(depot, hash);
	const _Atomic uint32_t *set = set_of(depot, part, hash);
	unsigned n = 0;

	while (n < WAYS && !has_tag(load(&set[n]), hash))
		n++;
	if (n == WAYS || pthread_mutex_trylock(&part->lock))
		return NULL;
	for (; n < WAYS; n++) {
		const struct entry *entry = entry_of(part, load(&set[n]));

		if (has_tag(load(&set[n]), hash) && memcmp(&entry->key, key, sizeof(*key)) == 0)
			return entry + 1;
	}
	pthread_mutex_unlock(&part->lock);
	return NULL;
}

/* A slot for the entry: that of one that it replaces, a free one, or somebody's. */
static _Atomic uint32_t *slot_for(const struct depot *depot, const struct part *part, const struct depot_key *key)
{
	uint64_t hash = hash_of(key);
	_Atomic uint32_t *set = set_of(depot, part, hash);
	unsigned slot = hash >> 20 & (WAYS - 1);

	for (unsigned n = 0; n < WAYS; n++) {
		uint32_t value = load(&set[n]);

		if (has_tag(value, hash) && same_place(&entry_of(part, value)->key, key))
			return &set[n];
		if (!value)
			slot = n;
	}
	return &set[slot];
}

void *depot_add(struct depot *depot, const struct depot_key *key, size_t size)
{
	uint64_t hash = hash_of(key);
	struct part *part = part_of(depot, hash);

	size = (size + sizeof(struct entry) + UNIT - 1) & ~(size_t)(UNIT - 1);
	if (size > depot->part_size / 4 || pthread_mutex_trylock(&part->lock))
		return NULL;
	if (part->at + size > depot->part_size) { /* once around */
		evict(depot, part, SIZE_MAX);
		part->limit = part->at;
		part->oldest = part->at = 0;
	}
	evict(depot, part, part->at + size);
	struct entry *entry = (struct entry *)(part->memory + part->at);
	*entry = (struct entry){.size = size, .key = *key};
	store(slot_for(depot, part, key), tag_of(hash) | place_of(part, entry));
	part->at += size;
	return entry + 1;
}

void depot_done(struct depot *depot, const struct depot_key *key)
{
	pthread_mutex_unlock(&part_of(depot, hash_of(key))->lock);
}

void depot_empty(struct depot *depot)
{
	size_t each = depot->size / depot->parts;

	for (unsigned n = 0; n < depot->parts; n++) {
		struct part *part = &depot->part[n];

		pthread_mutex_lock(&part->lock);
		if (part->at || part->limit) {
			for (uint32_t i = 0; i < depot->sets * WAYS; i++)
				store(&part->slot[i], 0);
			madvise(depot->memory + n * each, each, MADV_DONTNEED);
		}
		part->at = part->oldest = part->limit = 0;
		pthread_mutex_unlock(&part->lock);
	}
}

static size_t used(struct depot *depot)
{
	size_t sum = 0;

	for (unsigned n = 0; n < depot->parts; n++) {
		struct part *part = &depot->part[n];

		pthread_mutex_lock(&part->lock);
		sum += part->limit > part->at ? part->limit : part->at;
		pthread_mutex_unlock(&part->lock);
	}
	return sum;
}

void depot_rest(struct depot *depot, unsigned cpu, unsigned cpus, bool idle)
{
	uint32_t bit = 1u << cpu, all = (uint32_t)((1ull << cpus) - 1);

	if (!idle)
		atomic_fetch_and(&depot->idle, ~bit);
	else if (((atomic_fetch_or(&depot->idle, bit) | bit) & all) == all && used(depot) > REST_KEPT)
		depot_empty(depot);
}
