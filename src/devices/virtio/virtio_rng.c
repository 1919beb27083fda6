#include "devices/virtio/virtio_rng.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define DEVICE_ID  4
#define CLASS_CODE 0x00ff00
#define QUEUE_SIZE 64

/* At most this much for one buffer: the driver asks again, and the I/O thread serves others in between. */
#define BYTES_MAX  65536u
#define CHAINS_MAX 16

/* Fills a segment; returns how many bytes there are. */
static uint32_t fill(struct virtio_device *device, struct iovec segment)
{
	size_t done = 0;

	while (done < segment.iov_len) {
		ssize_t got = getrandom((uint8_t *)segment.iov_base + done, segment.iov_len - done, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		done += got;
	}
	segment.iov_len = done;
	virtio_segments_written(device->host.memory, &segment, 1);
	return done;
}

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_chain *chain = &((struct virtio_rng *)device)->chain;
	struct iovec segment[VIRTIO_CHAIN_MAX];
	unsigned served = 0;

	virtio_ring_notify_off(&queue->ring);
	do {
		while (served < CHAINS_MAX && virtio_queue_next(queue, chain)) {
			unsigned count = virtio_chain_slice(chain, true, 0, BYTES_MAX, segment);
			uint32_t written = 0;

			for (unsigned i = 0; i < count; i++)
				written += fill(device, segment[i]);
			virtio_queue_complete(queue, chain->token, written);
			served++;
		}
		if (served == CHAINS_MAX) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

static const struct virtio_ops ops = {
    .name = "virtio-rng",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .queue_notify = queue_notify,
};

int virtio_rng_init(struct virtio_rng *rng, const struct virtio_host *host, unsigned instance)
{
	static const uint16_t sizes[] = {QUEUE_SIZE};

	return virtio_device_init(&rng->device, &ops, host, instance, 0, 1, sizes, NULL, 0);
}

void virtio_rng_destroy(struct virtio_rng *rng)
{
	virtio_device_destroy(&rng->device);
}
