/* Frames that wait, with their headers: a bounded queue. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <linux/virtio_net.h>

struct queued_frame {
	struct queued_frame *next;
	struct virtio_net_hdr header;
	size_t length;
	uint8_t data[];
};

struct frame_queue {
	struct queued_frame *first, *last;
	size_t count, bytes;
};

/* A copy at the end. False: out of memory. `length` is the sum of the iovecs. */
bool frame_queue_push(struct frame_queue *queue, const struct virtio_net_hdr *header, const struct iovec *iov,
                      unsigned iov_count, size_t length);
/* The first one leaves the queue; it is freed with free(). NULL: empty. */
struct queued_frame *frame_queue_pop(struct frame_queue *queue);
void frame_queue_clear(struct frame_queue *queue);
