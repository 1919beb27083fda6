/*
 * The depot: what the processors of a machine have translated, for one another. It keeps bytes by a key, knows nothing of
 * what is in them (shared.c does), and is bounded: the oldest make room.
 *
 *	part 0 | part 1 | ...      each with a lock of its own, a hash of its entries, and a ring of memory for them
 *
 * Nobody waits for a lock: who finds it taken does without, and comes again. Any thread, but for creating and destroying.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a translation is good for. Entries that differ in the generation alone replace one another. */
struct depot_key {
	uint64_t physical;   /* of the guest's code */
	uint64_t rip;        /* linear address; floating: the offset in the page */
	uint32_t generation; /* of the page */
	uint32_t mode;       /* of the decoded block */
	uint32_t length;     /* of the guest's code */
	uint8_t view;        /* enum mmu_view */
	uint8_t floating, loose;
	uint8_t zero;
};
_Static_assert(sizeof(struct depot_key) == 32, "keys are compared as bytes");

struct depot;

/* The part of a --code-cache of so many bytes that is the depot's, 0: there is none; and what is each processor's. */
uint64_t depot_size(uint64_t code_cache, unsigned cpus);
static inline uint64_t depot_rest_for_each(uint64_t code_cache, unsigned cpus)
{
	return (code_cache - depot_size(code_cache, cpus)) / cpus;
}
struct depot *depot_create(uint64_t size); /* NULL: no memory. One user */
void depot_add_user(struct depot *depot);
void depot_remove_user(struct depot *depot); /* the last one's goes; NULL is nothing */

/*
 * The entry, at a multiple of 16, which stays until depot_done(); NULL: there is none, or somebody else is at it. Between
 * the two nothing may be done that waits.
 */
const void *depot_find(struct depot *depot, const struct depot_key *key);
/* Room for an entry of `size` bytes, to be filled until depot_done(); NULL: not now, or it is too large. */
void *depot_add(struct depot *depot, const struct depot_key *key, size_t size);
void depot_done(struct depot *depot, const struct depot_key *key);

/* Drops all, and gives the memory back. Waits for the locks. */
void depot_empty(struct depot *depot);
/* Processor `cpu` has, or has not, been idle for long. When all `cpus` have been it is emptied. */
void depot_rest(struct depot *depot, unsigned cpu, unsigned cpus, bool idle);
