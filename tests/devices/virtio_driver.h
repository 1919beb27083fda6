/*
 * The guest's side of a virtqueue, for tests: puts buffers in, takes used ones out, split or packed. It trusts the
 * device as a driver does, but checks with asserts what it is given.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio/virtio_ring.h"
#include "memory/memory.h"

struct driver_buffer {
	uint64_t address;
	uint32_t length;
	bool write; /* for the device to write */
};

struct driver_queue {
	struct memory *memory;
	struct virtio_ring_setup setup;
	uint16_t next; /* split: the available index; packed: place */
	uint16_t used; /* split: used index seen; packed: place */
	bool wrap, used_wrap;
	uint16_t free_count;
	uint16_t places[VIRTIO_RING_SIZE_MAX];    /* descriptors of a buffer, by its id; 0: the id is free */
	uint16_t free_list[VIRTIO_RING_SIZE_MAX]; /* split: free descriptors */
};

/* Lays the areas out at `base` (a multiple of 4 KiB; they take driver_queue_bytes()) and clears them. */
void driver_queue_init(struct driver_queue *queue, struct memory *memory, uint64_t base, uint16_t size, bool packed,
                       bool event_index, bool indirect);
uint64_t driver_queue_bytes(uint16_t size);

/* Makes a chain available; `table` is guest memory for an indirect one, or 0. Its id, or -1: no room. */
int driver_add(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count, uint64_t table);
/* Does the device want to be notified of what was added since the index was `before` (driver_position())? */
bool driver_must_notify(struct driver_queue *queue, unsigned before);
unsigned driver_position(const struct driver_queue *queue);
/* The next used chain. False: none. */
bool driver_used(struct driver_queue *queue, uint16_t *id, uint32_t *written);
/* Interrupts: off, or on; with an event index, from the `after`-th used chain from now on (1: the next). */
void driver_interrupts(struct driver_queue *queue, bool on, unsigned after);
