/*
 * Virtio memory balloon (virtio 1.2 5.5): takes pages from the guest and gives them back to the host (memory_discard()), on the host's wish
 * (inflate, deflate) or as the guest finds them free (reporting); statistics of the guest's memory.
 *
 * The queues after the second have no fixed numbers: each feature that was negotiated has the next one, as drivers do it.
 *
 * Statistics: the driver leaves one buffer with the device, which stays in the ring; giving it back asks for newer ones.
 */
#pragma once

#include "devices/virtio/virtio_device.h"

/* Statistics' tags (5.5.6.4). */
enum virtio_balloon_stat {
	BALLOON_SWAP_IN,
	BALLOON_SWAP_OUT,
	BALLOON_MAJOR_FAULTS,
	BALLOON_MINOR_FAULTS,
	BALLOON_MEMORY_FREE,
	BALLOON_MEMORY_TOTAL,
	BALLOON_MEMORY_AVAILABLE,
	BALLOON_CACHES,
	BALLOON_HUGE_ALLOCATIONS,
	BALLOON_HUGE_FAILURES,
	BALLOON_STATS,
};

struct virtio_balloon {
	struct virtio_device device; /* first */
	uint8_t config[16];          /* 5.5.4 */
	struct virtio_chain chain;
	/* Queue lock. */
	uint64_t stat[BALLOON_STATS]; /* bytes or counts; all ones: not told */
	uint64_t updates;             /* how often the driver has told them */
	bool stats_read;              /* the buffer that the driver left was read */
	uint64_t discarded;           /* bytes given back to the host, in all */
	unsigned begun;               /* numbers of the waiting inflate chain that are done */
};

/* 0 or -errno. */
int virtio_balloon_init(struct virtio_balloon *balloon, const struct virtio_host *host, unsigned instance);
void virtio_balloon_destroy(struct virtio_balloon *balloon);

/* All these: any thread, without the queue lock, without the device lock. */
/* How many bytes the guest shall do without. It follows when and as far as it can. */
void virtio_balloon_set_target(struct virtio_balloon *balloon, uint64_t bytes);
uint64_t virtio_balloon_target(struct virtio_balloon *balloon);
/* And how many it does without now, as it says. */
uint64_t virtio_balloon_actual(struct virtio_balloon *balloon);
/* Asks for new statistics. False: the driver has given none to answer with. */
bool virtio_balloon_request_stats(struct virtio_balloon *balloon);
/* The newest; returns how often they have come. */
uint64_t virtio_balloon_stats(struct virtio_balloon *balloon, uint64_t stat[BALLOON_STATS]);
