/*
 * A virtqueue as the device sees it (virtio 1.2 2.7 and 2.8): takes descriptor chains that the driver made available,
 *gives them back used, and decides who has to be told. It knows nothing of devices, registers and interrupts.
 *
 * Split ring: three areas in guest memory. The driver writes the first two, the device the third.
 *
 *	 descriptors                      driver area ("available")        device area ("used")
 *	+---------+--------+-------+------+      +-------+                 +-------+
 *	| address | length | flags | next |      | flags | no interrupt    | flags | no notify
 *	+---------+--------+-------+------+      +-------+                 +-------+
 *	|   ...   |   NEXT: goes on at    |<--+  | index |---+ where the   | index |---+ where the device
 *	+---------+   `next`              |   |  +-------+   | driver goes +-------+   | goes on
 *	|   ...   |   WRITE: for the      |   +--| head  |   | on          | head, |   |
 *	+---------+   device to write     |      | head  |<--+             | length|<--+
 *	|   ...   |   INDIRECT: a table   |      |  ...  | `taken`: where  |  ...  |
 *	+---------+   of descriptors      |      +-------+ the device goes +-------+
 *	|   ...   |   stands there        |      | used  | on              | avail | notify me when
 *	+---------+-----------------------+      | event |                 | event | you pass this one
 *	                                         +-------+ interrupt me    +-------+
 *	                                                   when you pass this one
 *
 * Packed ring: one ring that both write, and two small areas that only tell who wants to be told.
 *
 *	  +---------+--------+----+-------+
 *	  | address | length | id | flags |  AVAIL = the driver's wrap counter, USED = its inverse:  available
 *	  +---------+--------+----+-------+  AVAIL = USED = the device's wrap counter:               used
 *	  |  ...                          |
 *	  |          taken ->             |  `taken`: the next one that the device takes, with its wrap counter. A chain
 *is descriptors |          used  ->             |  in a row, its id in the last. `used`: where the device puts the next
 *used one; it moves on
 *	  +-------------------------------+  by as many places as the chain has descriptors.
 *
 * The guest is hostile, and its other processors rewrite everything while we look. Each descriptor is read once, into a
 *copy, and the copy is checked: index in range, length not 0, all of it RAM, readable before writable ones, an indirect
 *table not within another, no longer chain than VIRTIO_CHAIN_MAX (which bounds loops), no more chains in flight than
 *the ring has places. What is wrong breaks the ring: `error` says why, and virtio_ring_next() returns -EIO until the
 *ring is set up anew; the device then sets DEVICE_NEEDS_RESET. The areas themselves are checked once, at set-up: RAM
 *does not move.
 *
 * Threads: one at a time (the device's queue lock). The driver runs at the same time on other threads: acquire and
 *release order, and full fences where each side first writes what it did and then reads whether the other wants to know
 *(2.7.7, 2.8.21).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "memory/memory.h"

#define VIRTIO_RING_SIZE_MAX 1024 /* descriptors in a ring */
#define VIRTIO_CHAIN_MAX     1024 /* segments of a chain */

struct state;

struct virtio_ring_setup {
	uint16_t size;                        /* split: a power of two */
	uint64_t descriptors, driver, device; /* guest-physical */
	bool packed, event_index, indirect;   /* as negotiated */
};

struct virtio_ring {
	struct memory *memory;
	struct virtio_ring_setup setup;
	uint8_t *descriptors, *driver, *device; /* the areas, on the host; NULL: not set up */
	const char *error;                      /* NULL: sound */
	uint16_t taken, used;                   /* split: as the indexes count; packed: places */
	bool taken_wrap, used_wrap;             /* packed */
	uint16_t in_use;                        /* chains (split) or descriptors (packed) taken and not given back */
	uint16_t filled, filled_places;         /* used, but not shown to the driver yet */
	uint16_t first_flags;                   /* packed: of the first one filled, which the flush writes */
	uint32_t untold;                        /* chains or places used since the last interrupt decision */
	bool notify_off;                        /* the driver was asked not to notify */
};

/* What gives a chain back. */
struct virtio_token {
	uint16_t id;     /* split: head; packed: buffer id */
	uint16_t places; /* descriptors it takes in the ring */
};

/* A chain: what the device may read, then what it may write, as host memory. */
struct virtio_chain {
	struct virtio_token token;
	unsigned readable, writable; /* segments of either kind */
	uint64_t readable_length, writable_length;
	struct iovec segment[VIRTIO_CHAIN_MAX]; /* readable ones first */
};

/*
 * Sets a ring up from its start. 0, or -EINVAL: size, alignment, or an area that is not all RAM (`error` says which;
 * the ring is broken then).
 */
int virtio_ring_init(struct virtio_ring *ring, struct memory *memory, const struct virtio_ring_setup *setup);
static inline bool virtio_ring_ready(const struct virtio_ring *ring)
{
	return ring->descriptors && !ring->error;
}

/* Takes the next chain. 1; 0: there is none; -EIO: the ring is broken. */
int virtio_ring_next(struct virtio_ring *ring, struct virtio_chain *chain);
/* Puts the newest chain taken back, as if it never had been; several, newest first. None may have been given back
 * since. */
void virtio_ring_rewind(struct virtio_ring *ring, struct virtio_token token);

/*
 * Gives chains back, in any order: fill() each, with the bytes written to it, then flush() shows them to the driver all
 * at once. complete() is both for one.
 */
void virtio_ring_fill(struct virtio_ring *ring, struct virtio_token token, uint32_t written);
void virtio_ring_flush(struct virtio_ring *ring);
void virtio_ring_complete(struct virtio_ring *ring, struct virtio_token token, uint32_t written);

/* After giving back: does the driver want an interrupt for what it has not been told of? Counts as told then. */
bool virtio_ring_wants_interrupt(struct virtio_ring *ring);
/* Asks the driver for no notifications while the device looks by itself. A hint: they may come all the same. */
void virtio_ring_notify_off(struct virtio_ring *ring);
/* Asks for the next one. True: something is there already, so look again instead of waiting. */
bool virtio_ring_notify_on(struct virtio_ring *ring);
/* Is anything available? */
bool virtio_ring_pending(const struct virtio_ring *ring);

/* Positions (a section of its own). Nothing in flight. Loading: the ring has been set up as it was. */
void virtio_ring_state(struct virtio_ring *ring, struct state *state, unsigned instance);

/*
 * Copies between a chain and the device, from `offset` bytes into its readable or writable part. They return how many
 * bytes were copied: less than `length` where the chain ends.
 */
size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t offset, void *buffer, size_t length);
size_t virtio_chain_write(const struct virtio_chain *chain, struct memory *memory, uint64_t offset, const void *buffer,
                          size_t length);
/* The segments of [offset, offset + length) of the readable or writable part. Returns how many (`out` has room for
 * all). */
unsigned virtio_chain_slice(const struct virtio_chain *chain, bool writable, uint64_t offset, uint64_t length,
                            struct iovec *out);
/* After others wrote to segments of a chain: tells memory. */
void virtio_segments_written(struct memory *memory, const struct iovec *segment, unsigned count);
