#include "devices/virtio/virtio_balloon.h"

#include <string.h>

#include "machine/state.h"

#define DEVICE_ID  5
#define CLASS_CODE 0x00ff00
#define QUEUE_SIZE 128
#define QUEUES     4
#define SHARE      64u   /* chains served before others have their turn */
#define PFN_SHIFT  12    /* the device's pages are 4 KiB, whatever the guest's (5.5.6) */
#define PFNS_ONCE  4096u /* of one chain, in one go */

#define F_STATS     (1ull << 1)
#define F_OOM       (1ull << 2)
#define F_REPORTING (1ull << 5)

/* Offsets in the configuration space (5.5.4). */
enum { CONFIG_TARGET = 0, CONFIG_ACTUAL = 4 };

enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_OTHERS };

static int stats_queue(const struct virtio_balloon *balloon)
{
	return virtio_has(&balloon->device, F_STATS) ? QUEUE_OTHERS : -1;
}

static int reporting_queue(const struct virtio_balloon *balloon)
{
	if (!virtio_has(&balloon->device, F_REPORTING))
		return -1;
	return virtio_has(&balloon->device, F_STATS) ? QUEUE_OTHERS + 1 : QUEUE_OTHERS;
}

static uint32_t get32(const uint8_t *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put32(uint8_t *at, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		at[i] = value >> 8 * i;
}

/* What is not RAM is the guest's mistake and nobody's harm. */
static void discard(struct virtio_balloon *balloon, uint64_t physical, uint64_t length)
{
	if (length && memory_discard(balloon->device.host.memory, physical, length) == 0)
		balloon->discarded += length;
}

/* The page numbers of a chain from `begun` on; runs of neighbours, up or down, go in one piece. False: there are more. */
static bool inflate(struct virtio_balloon *balloon, const struct virtio_chain *chain)
{
	uint32_t numbers[256];
	uint64_t first = 0, count = 0;
	unsigned done = 0;
	size_t bytes = 0;

	while (done < PFNS_ONCE &&
	       (bytes = virtio_chain_read(chain, 4ull * (balloon->begun + done), numbers, sizeof numbers)) >= 4) {
		for (unsigned i = 0; i < bytes / 4; i++) {
			uint32_t pfn = numbers[i];

			if (count && pfn == first + count) {
				count++;
			} else if (count && pfn + 1ull == first) {
				first--;
				count++;
			} else {
				discard(balloon, first << PFN_SHIFT, count << PFN_SHIFT);
				first = pfn;
				count = 1;
			}
		}
		done += bytes / 4;
	}
	discard(balloon, first << PFN_SHIFT, count << PFN_SHIFT);
	if (bytes >= 4) {
		balloon->begun += done;
		return false;
	}
	balloon->begun = 0;
	return true;
}

/* The pages are the chain's own buffers. */
static void report(struct virtio_balloon *balloon, const struct virtio_chain *chain)
{
	for (unsigned i = chain->readable; i < chain->readable + chain->writable; i++)
		discard(balloon, memory_physical(balloon->device.host.memory, chain->segment[i].iov_base),
		        chain->segment[i].iov_len);
}

/* Pairs of a 16-bit tag and a 64-bit value. */
static void read_stats(struct virtio_balloon *balloon, const struct virtio_chain *chain)
{
	uint8_t pair[10];

	for (unsigned i = 0; i < 64 && virtio_chain_read(chain, 10ull * i, pair, 10) == 10; i++) {
		unsigned tag = pair[0] | pair[1] << 8;

		if (tag < BALLOON_STATS)
			memcpy(&balloon->stat[tag], pair + 2, 8);
	}
	balloon->updates++;
}

/* The buffer stays where it is, until somebody wants news, and is read once: queues are also looked at unasked. */
static void stats_notify(struct virtio_balloon *balloon, struct virtio_queue *queue)
{
	if (balloon->stats_read || !virtio_queue_next(queue, &balloon->chain))
		return;
	read_stats(balloon, &balloon->chain);
	balloon->stats_read = true;
	virtio_ring_rewind(&queue->ring, balloon->chain.token);
}

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_balloon *balloon = (struct virtio_balloon *)device;
	int index = queue->index;
	unsigned served = 0;

	if (index == stats_queue(balloon)) {
		stats_notify(balloon, queue);
		return;
	}
	virtio_ring_notify_off(&queue->ring);
	do {
		while (served < SHARE && virtio_queue_next(queue, &balloon->chain)) {
			if (index == QUEUE_INFLATE && !inflate(balloon, &balloon->chain)) {
				virtio_ring_rewind(&queue->ring, balloon->chain.token);
				served = SHARE;
				break;
			}
			if (index == reporting_queue(balloon))
				report(balloon, &balloon->chain);
			/* Deflated pages need nothing: the host gives them when they are touched. */
			virtio_queue_complete(queue, balloon->chain.token, 0);
			served++;
		}
		if (served == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

static void config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	if (offset == CONFIG_ACTUAL && size == 4)
		put32(device->config + CONFIG_ACTUAL, (uint32_t)value);
}

static void queue_reset(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_balloon *balloon = (struct virtio_balloon *)device;

	if (queue->index == QUEUE_INFLATE)
		balloon->begun = 0;
	if ((int)queue->index == stats_queue(balloon))
		balloon->stats_read = false;
}

/* The target is the host's and stays. */
static void reset(struct virtio_device *device)
{
	struct virtio_balloon *balloon = (struct virtio_balloon *)device;

	put32(balloon->config + CONFIG_ACTUAL, 0);
	memset(balloon->stat, 0xff, sizeof balloon->stat);
	balloon->updates = 0;
	balloon->stats_read = false;
}

static void balloon_state(struct virtio_device *device, struct state *state)
{
	struct virtio_balloon *balloon = (struct virtio_balloon *)device;

	state_begin(state, "virtio-balloon", device->instance, 1);
	state_u8_array(state, "config", balloon->config, sizeof balloon->config);
	state_u64_array(state, "stats", balloon->stat, BALLOON_STATS);
	state_u64(state, "updates", &balloon->updates);
	state_end(state);
	/* A chain that was half done is done again from its start; the statistics' are read again. */
	if (state_loading(state)) {
		balloon->begun = 0;
		balloon->stats_read = false;
	}
}

static const struct virtio_ops ops = {
    .name = "virtio-balloon",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .config_write = config_write,
    .queue_notify = queue_notify,
    .queue_reset = queue_reset,
    .reset = reset,
    .state = balloon_state,
};

int virtio_balloon_init(struct virtio_balloon *balloon, const struct virtio_host *host, unsigned instance)
{
	static const uint16_t sizes[QUEUES] = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE};
	int error;

	memset(balloon, 0, sizeof *balloon);
	error = virtio_device_init(&balloon->device, &ops, host, instance, F_STATS | F_OOM | F_REPORTING, QUEUES, sizes,
	                           balloon->config, sizeof balloon->config);
	if (!error)
		reset(&balloon->device);
	return error;
}

void virtio_balloon_destroy(struct virtio_balloon *balloon)
{
	virtio_device_destroy(&balloon->device);
}

void virtio_balloon_set_target(struct virtio_balloon *balloon, uint64_t bytes)
{
	virtio_enter(&balloon->device);
	put32(balloon->config + CONFIG_TARGET, (uint32_t)(bytes >> PFN_SHIFT));
	virtio_config_changed(&balloon->device);
	virtio_leave(&balloon->device);
}

uint64_t virtio_balloon_target(struct virtio_balloon *balloon)
{
	virtio_enter(&balloon->device);
	uint64_t bytes = (uint64_t)get32(balloon->config + CONFIG_TARGET) << PFN_SHIFT;
	virtio_leave(&balloon->device);
	return bytes;
}

uint64_t virtio_balloon_actual(struct virtio_balloon *balloon)
{
	virtio_enter(&balloon->device);
	uint64_t bytes = (uint64_t)get32(balloon->config + CONFIG_ACTUAL) << PFN_SHIFT;
	virtio_leave(&balloon->device);
	return bytes;
}

bool virtio_balloon_request_stats(struct virtio_balloon *balloon)
{
	bool asked = false;

	virtio_enter(&balloon->device);
	int index = stats_queue(balloon);
	if (index >= 0) {
		struct virtio_queue *queue = &balloon->device.queue[index];

		asked = virtio_queue_next(queue, &balloon->chain);
		if (asked) {
			balloon->stats_read = false;
			virtio_ring_notify_on(&queue->ring);
			virtio_queue_complete(queue, balloon->chain.token, 0);
		}
	}
	virtio_leave(&balloon->device);
	return asked;
}

uint64_t virtio_balloon_stats(struct virtio_balloon *balloon, uint64_t stat[BALLOON_STATS])
{
	virtio_enter(&balloon->device);
	uint64_t updates = balloon->updates;
	memcpy(stat, balloon->stat, sizeof balloon->stat);
	virtio_leave(&balloon->device);
	return updates;
}
