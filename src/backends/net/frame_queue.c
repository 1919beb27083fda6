#include "backends/net/frame_queue.h"

#include <stdlib.h>

#include "backends/net/net_private.h"

bool frame_queue_push(struct frame_queue *queue, const struct virtio_net_hdr *header, const struct iovec *iov,
                      unsigned iov_count, size_t length)
{
	struct queued_frame *frame = malloc(sizeof(*frame) + length);

	if (!frame)
		return false;
	frame->next = NULL;
	frame->header = *header;
	frame->length = length;
	net_gather(frame->data, iov, iov_count);
	if (queue->last)
		queue->last->next = frame;
	else
		queue->first = frame;
	queue->last = frame;
	queue->count++;
	queue->bytes += length;
	return true;
}

struct queued_frame *frame_queue_pop(struct frame_queue *queue)
{
	struct queued_frame *frame = queue->first;

	if (!frame)
		return NULL;
	queue->first = frame->next;
	if (!queue->first)
		queue->last = NULL;
	queue->count--;
	queue->bytes -= frame->length;
	return frame;
}

void frame_queue_clear(struct frame_queue *queue)
{
	struct queued_frame *frame;

	while ((frame = frame_queue_pop(queue)))
		free(frame);
}
