/*
 * Memory for generated host code: shared memory mapped twice, once to write and once to execute, so that no mapping is
 * ever both.
 *
 * A bump allocator: pieces are given back all at once. One thread writes and executes; the arena has no lock.
 *
 * Large arenas can be on huge pages (huge_pages.h): as far as their user says that they are full.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct huge_pages;

struct code_arena {
	uint8_t *write;         /* the writable view */
	const uint8_t *execute; /* the executable view of the same bytes */
	size_t size, used;
	size_t settled;          /* so far it was said to be full */
	struct huge_pages *huge; /* NULL: it is small */
};

/* `size` in bytes, rounded up to whole pages; the host gives memory when it is first touched. 0 or -errno (then it is
 * empty, and may be destroyed). */
int code_arena_create(struct code_arena *arena, size_t size);
void code_arena_destroy(struct code_arena *arena);

/* `length` bytes at a multiple of `alignment` (a power of two, at most 4096) in the writable view; NULL: full. */
uint8_t *code_arena_allocate(struct code_arena *arena, size_t length, size_t alignment);
/* Gives everything back. Nothing of it may be running, and no pointer into it may be kept. */
void code_arena_reset(struct code_arena *arena);

/* Everything below `end` is full, or nearly: its huge pages are made, in the background, where the host can. Cheap. */
void code_arena_settle(struct code_arena *arena, size_t end);
/* Nothing from `from` on is used any more: the host gets the memory back. */
void code_arena_give_back(struct code_arena *arena, size_t from);
size_t code_arena_huge(const struct code_arena *arena); /* bytes on huge pages; any thread */

/*
 * After code was written or patched and before this thread executes it: a serializing instruction, because the bytes
 * were written through another linear address (SDM 3A 8.1.3).
 */
void code_arena_publish(void);

/* The executable address of a byte of the writable view, and back. */
static inline const void *code_arena_executable(const struct code_arena *arena, const uint8_t *write)
{
	return arena->execute + (write - arena->write);
}
static inline uint8_t *code_arena_writable(const struct code_arena *arena, const void *execute)
{
	return arena->write + ((const uint8_t *)execute - arena->execute);
}
/* Is this host address in the executable view? (Signal handlers ask.) */
static inline bool code_arena_contains(const struct code_arena *arena, uint64_t address)
{
	return address - (uint64_t)arena->execute < arena->size;
}
