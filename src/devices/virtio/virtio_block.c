#include "devices/virtio/virtio_block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/disk.h"
#include "machine/state.h"

#define DEVICE_ID  2
#define CLASS_CODE 0x010000
#define QUEUE_SIZE 1024 /* also of what one request may consist: 1 MiB of scattered pages shall be one */
#define QUEUES_MAX 16
#define SECTOR     512u

/* Features (5.2.3). */
#define F_SEG_MAX      (1ull << 2)
#define F_RO           (1ull << 5)
#define F_BLK_SIZE     (1ull << 6)
#define F_FLUSH        (1ull << 9)
#define F_TOPOLOGY     (1ull << 10)
#define F_CONFIG_WCE   (1ull << 11)
#define F_MQ           (1ull << 12)
#define F_DISCARD      (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

/* Offsets in the configuration space (5.2.4). */
enum {
	CONFIG_CAPACITY = 0,
	CONFIG_SEG_MAX = 12,
	CONFIG_BLK_SIZE = 20,
	CONFIG_PHYSICAL_BLOCK = 24,
	CONFIG_MIN_IO = 26,
	CONFIG_WRITEBACK = 32,
	CONFIG_NUM_QUEUES = 34,
	CONFIG_MAX_DISCARD = 36,
	CONFIG_MAX_DISCARD_SEGMENTS = 40,
	CONFIG_DISCARD_ALIGNMENT = 44,
	CONFIG_MAX_ZEROES = 48,
	CONFIG_MAX_ZEROES_SEGMENTS = 52,
	CONFIG_ZEROES_MAY_UNMAP = 56,
};

/* Requests (5.2.6). */
enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_GET_ID = 8, TYPE_DISCARD = 11, TYPE_WRITE_ZEROES = 13 };
enum { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP };

#define HEADER_SIZE   16u
#define ZERO_UNMAP    1u
#define RANGES_MAX    16u
#define RANGE_LONGEST (4u << 20) /* sectors: 2 GiB */
#define SHARE         256u       /* chains taken before others have their turn */

struct range {
	uint64_t sector;
	uint32_t count, flags;
};

struct block_request {
	struct disk_request disk; /* first */
	struct virtio_block *block;
	struct virtio_flight flight;
	uint32_t type;
	uint64_t data; /* bytes */
	uint8_t *status;
	bool flushing; /* a write that is done, but for its flush */
	unsigned range, ranges;
	struct range list[RANGES_MAX];
	unsigned iov_count;
	struct iovec iov[];
};

static void submit_range(struct block_request *request);

static void put(uint8_t *at, unsigned bytes, uint64_t value)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = value >> 8 * i;
}

static uint64_t sectors(const struct virtio_block *block)
{
	return disk_size(block->disk) / SECTOR;
}

/* ---- the end of a request ---- */

/* Writes the status byte and gives the chain back, unless a reset came between. Entered. */
static void finish(struct block_request *request, uint8_t status)
{
	struct virtio_block *block = request->block;
	bool filled = request->type == TYPE_IN || request->type == TYPE_GET_ID;
	uint32_t written = 1;

	if (request->type == TYPE_IN)
		virtio_segments_written(block->device.host.memory, request->iov, request->iov_count);
	if (!virtio_flight_stale(&request->flight)) {
		const struct iovec byte = {request->status, 1};

		*(volatile uint8_t *)request->status = status;
		virtio_segments_written(block->device.host.memory, &byte, 1);
		/* The length counts from the start of what is writable: of a failed read nothing is sure. */
		if (filled && request->data)
			written = status == STATUS_OK ? (uint32_t)request->data + 1 : 0;
	}
	virtio_flight_end(&request->flight, written);
	free(request);
}

static bool write_cache_off(const struct virtio_block *block)
{
	if (!virtio_has(&block->device, F_FLUSH))
		return true;
	return virtio_has(&block->device, F_CONFIG_WCE) && !block->config[CONFIG_WRITEBACK];
}

static void submit(struct block_request *request)
{
	struct virtio_block *block = request->block;

	block->submitting = true;
	disk_submit(block->disk, &request->disk);
	block->submitting = false;
}

/* What comes after a step that went well. */
static void next_step(struct block_request *request)
{
	if (request->range + 1 < request->ranges) {
		request->range++;
		submit_range(request);
	} else if (request->type != TYPE_IN && request->type != TYPE_FLUSH && !request->flushing &&
	           write_cache_off(request->block)) {
		request->flushing = true;
		request->disk.operation = DISK_FLUSH;
		submit(request);
	} else {
		finish(request, STATUS_OK);
	}
}

static void disk_done(struct disk_request *disk_request, int error)
{
	struct block_request *request = (struct block_request *)disk_request;
	struct virtio_device *device = &request->block->device;
	bool inside = request->block->submitting; /* entered already */

	if (!inside)
		virtio_enter(device);
	if (error || virtio_flight_stale(&request->flight))
		finish(request, STATUS_IOERR);
	else
		next_step(request);
	if (!inside)
		virtio_leave(device);
}

/* ---- the beginning ---- */

static void submit_range(struct block_request *request)
{
	const struct range *range = &request->list[request->range];

	request->disk.operation = request->type == TYPE_DISCARD ? DISK_DISCARD : DISK_WRITE_ZEROES;
	request->disk.offset = range->sector * SECTOR;
	request->disk.length = (uint64_t)range->count * SECTOR;
	request->disk.may_unmap = range->flags & ZERO_UNMAP;
	submit(request);
}

static bool in_range(const struct virtio_block *block, uint64_t sector, uint64_t count)
{
	uint64_t end = sectors(block);

	return sector <= end && count <= end - sector;
}

static void start_data(struct block_request *request, uint64_t sector)
{
	struct virtio_block *block = request->block;

	if (request->data % SECTOR || !in_range(block, sector, request->data / SECTOR) ||
	    (request->type == TYPE_OUT && block->readonly)) {
		finish(request, STATUS_IOERR);
		return;
	}
	if (request->data == 0) {
		finish(request, STATUS_OK);
		return;
	}
	request->disk.operation = request->type == TYPE_IN ? DISK_READ : DISK_WRITE;
	request->disk.offset = sector * SECTOR;
	request->disk.length = request->data;
	request->disk.iov = request->iov;
	request->disk.iov_count = request->iov_count;
	submit(request);
}

/* Discard and write zeroes carry a list of ranges (5.2.6); all are checked before the first is begun. */
static void start_ranges(struct block_request *request, const struct virtio_chain *chain)
{
	struct virtio_block *block = request->block;
	bool zeroes = request->type == TYPE_WRITE_ZEROES;
	uint8_t status = STATUS_OK;

	request->ranges = request->data / sizeof(struct range);
	if (!virtio_has(&block->device, zeroes ? F_WRITE_ZEROES : F_DISCARD))
		status = STATUS_UNSUPP;
	else if (block->readonly || request->data % sizeof(struct range) || request->ranges == 0 ||
	         request->ranges > RANGES_MAX)
		status = STATUS_IOERR;
	if (status == STATUS_OK)
		virtio_chain_read(chain, HEADER_SIZE, request->list, request->data);
	for (unsigned i = 0; status == STATUS_OK && i < request->ranges; i++) {
		const struct range *range = &request->list[i];

		if (range->flags & ~(zeroes ? ZERO_UNMAP : 0))
			status = STATUS_UNSUPP;
		else if (range->count > RANGE_LONGEST || !in_range(block, range->sector, range->count))
			status = STATUS_IOERR;
	}
	request->range = 0;
	if (status == STATUS_OK)
		submit_range(request);
	else
		finish(request, status);
}

static void start(struct block_request *request, const struct virtio_chain *chain, uint64_t sector)
{
	struct virtio_block *block = request->block;

	switch (request->type) {
	case TYPE_IN:
	case TYPE_OUT:
		start_data(request, sector);
		break;
	case TYPE_FLUSH:
		request->disk.operation = DISK_FLUSH;
		submit(request);
		break;
	case TYPE_GET_ID:
		request->data =
		    virtio_chain_write(chain, block->device.host.memory, 0, block->serial,
		                       request->data < sizeof block->serial ? request->data : sizeof block->serial);
		finish(request, STATUS_OK);
		break;
	case TYPE_DISCARD:
	case TYPE_WRITE_ZEROES:
		start_ranges(request, chain);
		break;
	default:
		finish(request, STATUS_UNSUPP);
	}
}

/* Guest pages often lie in a row: fewer, longer pieces for the host. */
static unsigned merge(struct memory *memory, struct iovec *iov, unsigned count)
{
	unsigned last = 0;

	for (unsigned i = 1; i < count; i++) {
		struct iovec *piece = &iov[last];

		if ((uint8_t *)piece->iov_base + piece->iov_len == iov[i].iov_base &&
		    memory_physical(memory, piece->iov_base) + piece->iov_len ==
		        memory_physical(memory, iov[i].iov_base))
			piece->iov_len += iov[i].iov_len;
		else
			iov[++last] = iov[i];
	}
	return count ? last + 1 : 0;
}

/* Header, data, status byte (5.2.6). False: the driver breaks the rules, or there is no memory. */
static bool take(struct virtio_block *block, struct virtio_queue *queue, const struct virtio_chain *chain)
{
	struct block_request *request;
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header;
	struct iovec status;
	bool in;

	if (virtio_chain_read(chain, 0, &header, HEADER_SIZE) < HEADER_SIZE || chain->writable_length == 0) {
		virtio_break(&block->device, "block request without header or status");
		return false;
	}
	request = calloc(1, sizeof *request + (chain->readable + chain->writable) * sizeof(struct iovec));
	if (!request) { /* later, perhaps */
		virtio_ring_rewind(&queue->ring, chain->token);
		virtio_queue_again(queue);
		return false;
	}
	in = header.type == TYPE_IN || header.type == TYPE_GET_ID;
	request->block = block;
	request->type = header.type;
	request->disk.done = disk_done;
	request->data = in ? chain->writable_length - 1 : chain->readable_length - HEADER_SIZE;
	virtio_chain_slice(chain, true, chain->writable_length - 1, 1, &status);
	request->status = status.iov_base;
	request->iov_count = virtio_chain_slice(chain, in, in ? 0 : HEADER_SIZE, request->data, request->iov);
	request->iov_count = merge(block->device.host.memory, request->iov, request->iov_count);
	virtio_flight_begin(&request->flight, queue, chain->token);
	start(request, chain, header.sector);
	return true;
}

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_block *block = (struct virtio_block *)device;
	unsigned taken = 0;

	virtio_ring_notify_off(&queue->ring);
	do {
		while (taken < SHARE && virtio_queue_next(queue, &block->chain)) {
			if (!take(block, queue, &block->chain))
				return;
			taken++;
		}
		if (taken == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

/* Only the write cache's switch can be written, where it was negotiated. */
static void config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	if (offset == CONFIG_WRITEBACK && size == 1 && virtio_has(device, F_CONFIG_WCE))
		device->config[CONFIG_WRITEBACK] = value & 1;
}

static void reset(struct virtio_device *device)
{
	device->config[CONFIG_WRITEBACK] = 1;
}

static void block_state(struct virtio_device *device, struct state *state)
{
	struct virtio_block *block = (struct virtio_block *)device;
	uint64_t capacity = sectors(block);

	state_begin(state, "virtio-blk", device->instance, 1);
	state_u64(state, "capacity", &capacity);
	state_u8(state, "writeback", &block->config[CONFIG_WRITEBACK]);
	block->config[CONFIG_WRITEBACK] &= 1;
	if (capacity != sectors(block))
		state_fail(state, "the disk has another size");
	state_end(state);
}

void virtio_block_resized(struct virtio_block *block)
{
	virtio_enter(&block->device);
	put(block->config + CONFIG_CAPACITY, 8, sectors(block));
	virtio_config_changed(&block->device);
	virtio_leave(&block->device);
}

static const struct virtio_ops ops = {
    .name = "virtio-blk",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .config_write = config_write,
    .queue_notify = queue_notify,
    .reset = reset,
    .state = block_state,
};

static void fill_config(struct virtio_block *block, unsigned queues)
{
	uint8_t *config = block->config;
	struct disk_info info;
	uint32_t cluster;

	disk_info(block->disk, &info);
	cluster = info.cluster_size > 4096 ? info.cluster_size : 4096;
	put(config + CONFIG_CAPACITY, 8, sectors(block));
	put(config + CONFIG_SEG_MAX, 4, QUEUE_SIZE - 2);
	put(config + CONFIG_BLK_SIZE, 4, SECTOR);
	config[CONFIG_PHYSICAL_BLOCK] = 3; /* 4 KiB, which is what host files do well */
	put(config + CONFIG_MIN_IO, 2, 8);
	config[CONFIG_WRITEBACK] = 1;
	put(config + CONFIG_NUM_QUEUES, 2, queues);
	put(config + CONFIG_MAX_DISCARD, 4, RANGE_LONGEST);
	put(config + CONFIG_MAX_DISCARD_SEGMENTS, 4, RANGES_MAX);
	put(config + CONFIG_DISCARD_ALIGNMENT, 4, cluster / SECTOR);
	put(config + CONFIG_MAX_ZEROES, 4, RANGE_LONGEST);
	put(config + CONFIG_MAX_ZEROES_SEGMENTS, 4, RANGES_MAX);
	config[CONFIG_ZEROES_MAY_UNMAP] = 1;
}

int virtio_block_init(struct virtio_block *block, const struct virtio_host *host, unsigned instance,
                      const struct virtio_block_options *options)
{
	uint64_t features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE | F_MQ;
	uint16_t sizes[QUEUES_MAX];

	memset(block, 0, sizeof *block);
	if (options->queues == 0 || options->queues > QUEUES_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < options->queues; i++)
		sizes[i] = QUEUE_SIZE;
	features |= options->readonly ? F_RO : F_DISCARD | F_WRITE_ZEROES;
	block->disk = options->disk;
	block->readonly = options->readonly;
	if (options->serial)
		memcpy(block->serial, options->serial,
		       strnlen(options->serial, sizeof block->serial)); /* padded with zeros */
	fill_config(block, options->queues);
	return virtio_device_init(&block->device, &ops, host, instance, features, options->queues, sizes, block->config,
	                          sizeof block->config);
}

void virtio_block_destroy(struct virtio_block *block)
{
	virtio_device_destroy(&block->device);
}
