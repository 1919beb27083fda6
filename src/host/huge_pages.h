/*
 * Shared memory that is mapped twice, put on huge pages of the host piece by piece, while it is used.
 *
 * The kernel's setting for shared memory is usually "never"; MADV_COLLAPSE (Linux 6.1) asks for it explicitly. It copies a
 * piece and waits for other processors, so a thread of its own does it, which lives while there is something to do. Who
 * uses the piece meanwhile waits for the copy, about a millisecond, and so does who changes mappings of the process, a little
 * longer; the contents stay. Where the kernel refuses, small pages do.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define HUGE_PAGE ((size_t)2 << 20)

struct huge_pages;

/* Of the `size` bytes of one view; both begin at multiples of HUGE_PAGE. NULL: no memory. */
struct huge_pages *huge_pages_create(uint8_t *memory, size_t size);
/* Waits as huge_pages_stop() does. */
void huge_pages_destroy(struct huge_pages *huge);

/* All pieces that end at or below `end`, once each: soon, if most of the piece has memory. One thread calls these. */
void huge_pages_ask(struct huge_pages *huge, size_t end);
/* Nothing is under way any more, and nothing was asked for: before memory is given back. */
void huge_pages_stop(struct huge_pages *huge);
/* Waits until everything that was asked for is done or refused. */
void huge_pages_wait(struct huge_pages *huge);
/* Bytes that were put on huge pages since huge_pages_stop(). Any thread. */
size_t huge_pages_count(const struct huge_pages *huge);
