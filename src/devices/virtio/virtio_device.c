#include "devices/virtio/virtio_device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "debug/trace.h"
#include "host/event_loop.h"
#include "machine/state.h"

#define RING_FEATURES                                                                                                  \
	(VIRTIO_FEATURE_VERSION_1 | VIRTIO_FEATURE_INDIRECT_DESC | VIRTIO_FEATURE_EVENT_IDX |                          \
	 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_RING_RESET)

/* Bits that the driver sets freely. */
#define STATUS_SIMPLE (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FAILED)

/* ---- entering and leaving ---- */

void virtio_enter(struct virtio_device *device)
{
	pthread_mutex_lock(&device->queue_lock);
}

/* Interrupts go out after the queue lock is dropped; a pause waits for them, so that none is lost to a saved state. */
static void leave(struct virtio_device *device, bool device_locked)
{
	uint64_t queues = device->interrupt_queues;
	bool config = device->interrupt_config;

	device->interrupt_queues = 0;
	device->interrupt_config = false;
	if (!queues && !config) {
		pthread_mutex_unlock(&device->queue_lock);
		return;
	}
	device->sending++;
	pthread_mutex_unlock(&device->queue_lock);
	if (device->interrupt)
		device->interrupt(device->transport, queues, config, device_locked);
	pthread_mutex_lock(&device->queue_lock);
	if (--device->sending == 0)
		pthread_cond_broadcast(&device->idle);
	pthread_mutex_unlock(&device->queue_lock);
}

void virtio_leave(struct virtio_device *device)
{
	leave(device, device->ops->device_lock);
}

/* ---- notifications ---- */

void virtio_device_notify(struct virtio_device *device, unsigned queue)
{
	uint64_t one = 1;

	if (queue >= device->queue_count)
		return;
	/* Who finds no bit set wakes the loop, unless that looks by itself; a full counter means that it is awake. */
	if (atomic_fetch_or(&device->notified, 1ull << queue) == 0 && !event_loop_polls(device->host.loop) &&
	    write(device->notify_fd, &one, sizeof one) < 0)
		return;
}

static void notify_all(struct virtio_device *device)
{
	for (unsigned i = 0; i < device->queue_count; i++)
		if (device->queue[i].live)
			virtio_device_notify(device, i);
}

void virtio_queue_again(struct virtio_queue *queue)
{
	virtio_device_notify(queue->device, queue->index);
}

/* On the I/O thread. False: there was nothing. */
static bool serve(void *owner)
{
	struct virtio_device *device = owner;
	uint64_t queues;

	if (!atomic_load(&device->notified))
		return false;
	queues = atomic_exchange(&device->notified, 0);
	if (device->ops->device_lock)
		device->host.lock(device->host.lock_owner);
	virtio_enter(device);
	for (unsigned i = 0; i < device->queue_count; i++)
		if (queues >> i & 1 && virtio_queue_runs(&device->queue[i]))
			device->ops->queue_notify(device, &device->queue[i]);
	virtio_leave(device);
	if (device->ops->device_lock)
		device->host.unlock(device->host.lock_owner);
	return true;
}

static void notified(void *owner, uint32_t events)
{
	serve(owner);
}

/* ---- queues ---- */

bool virtio_queue_runs(const struct virtio_queue *queue)
{
	const struct virtio_device *device = queue->device;

	return queue->live && !device->paused && !(atomic_load(&device->status) & VIRTIO_STATUS_NEEDS_RESET);
}

void virtio_break(struct virtio_device *device, const char *why)
{
	uint8_t status = atomic_fetch_or(&device->status, VIRTIO_STATUS_NEEDS_RESET);

	if (status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	trace(device->host.trace, TRACE_UNKNOWN, -1, "%s: the driver breaks the rules (%s); it needs a reset",
	      device->ops->name, why);
	/* 2.1.2: an interrupt only for a driver that is there. */
	if (status & VIRTIO_STATUS_DRIVER_OK)
		virtio_config_changed(device);
}

void virtio_config_changed(struct virtio_device *device)
{
	atomic_fetch_add(&device->config_generation, 1);
	if (atomic_load(&device->status) & VIRTIO_STATUS_DRIVER_OK)
		device->interrupt_config = true;
}

bool virtio_queue_next(struct virtio_queue *queue, struct virtio_chain *chain)
{
	if (!virtio_queue_runs(queue))
		return false;
	int result = virtio_ring_next(&queue->ring, chain);
	if (result < 0)
		virtio_break(queue->device, queue->ring.error);
	return result == 1;
}

void virtio_queue_flush(struct virtio_queue *queue)
{
	virtio_ring_flush(&queue->ring);
	if (queue->live && virtio_ring_wants_interrupt(&queue->ring))
		queue->device->interrupt_queues |= 1ull << queue->index;
}

void virtio_queue_complete(struct virtio_queue *queue, struct virtio_token token, uint32_t written)
{
	virtio_ring_fill(&queue->ring, token, written);
	virtio_queue_flush(queue);
}

/* ---- in flight ---- */

void virtio_flight_begin(struct virtio_flight *flight, struct virtio_queue *queue, struct virtio_token token)
{
	*flight = (struct virtio_flight){.queue = queue, .token = token, .generation = queue->generation};
	queue->in_flight++;
	queue->device->in_flight++;
}

bool virtio_flight_stale(const struct virtio_flight *flight)
{
	return flight->generation != flight->queue->generation;
}

void virtio_flight_end(struct virtio_flight *flight, uint32_t written)
{
	struct virtio_queue *queue = flight->queue;
	struct virtio_device *device = queue->device;

	if (!virtio_flight_stale(flight))
		virtio_queue_complete(queue, flight->token, written);
	if (--queue->in_flight == 0)
		queue->resetting = false;
	if (--device->in_flight > 0)
		return;
	if (device->resetting) {
		device->resetting = false;
		atomic_store(&device->status, 0);
	}
	pthread_cond_broadcast(&device->idle);
}

/* ---- life of the device ---- */

/* Its ring comes into force. */
static void queue_start(struct virtio_queue *queue)
{
	struct virtio_device *device = queue->device;
	const struct virtio_ring_setup setup = {
	    .size = queue->size,
	    .descriptors = queue->descriptors,
	    .driver = queue->driver_area,
	    .device = queue->device_area,
	    .packed = virtio_has(device, VIRTIO_FEATURE_RING_PACKED),
	    .event_index = virtio_has(device, VIRTIO_FEATURE_EVENT_IDX),
	    .indirect = virtio_has(device, VIRTIO_FEATURE_INDIRECT_DESC),
	};

	queue->live = true;
	if (virtio_ring_init(&queue->ring, device->host.memory, &setup))
		virtio_break(device, queue->ring.error);
}

/* The queue lock is held. */
static void queue_stop(struct virtio_queue *queue)
{
	struct virtio_device *device = queue->device;

	queue->live = false;
	queue->generation++;
	memset(&queue->ring, 0, sizeof queue->ring);
	queue->enabled = false;
	queue->size = queue->size_max;
	queue->descriptors = queue->driver_area = queue->device_area = 0;
	device->interrupt_queues &= ~(1ull << queue->index);
	if (device->ops->queue_reset)
		device->ops->queue_reset(device, queue);
}

void virtio_device_reset(struct virtio_device *device)
{
	virtio_enter(device);
	for (unsigned i = 0; i < device->queue_count; i++)
		queue_stop(&device->queue[i]);
	if (device->ops->reset)
		device->ops->reset(device);
	atomic_store(&device->notified, 0);
	atomic_store(&device->features, 0);
	device->interrupt_config = false;
	device->legacy = device->legacy_started = false;
	device->resetting = device->in_flight > 0;
	if (!device->resetting)
		atomic_store(&device->status, 0);
	leave(device, true);
}

/* Is a reset under way? Then registers do not listen. */
static bool resetting(struct virtio_device *device)
{
	pthread_mutex_lock(&device->queue_lock);
	bool result = device->resetting;
	pthread_mutex_unlock(&device->queue_lock);
	return result;
}

uint8_t virtio_device_status(struct virtio_device *device)
{
	return atomic_load(&device->status);
}

static bool features_acceptable(struct virtio_device *device)
{
	uint64_t features = atomic_load(&device->features);

	return !device->legacy && !(features & ~device->offered) && features & VIRTIO_FEATURE_VERSION_1 &&
	       (!device->ops->features_ok || device->ops->features_ok(device, features));
}

static void start_rings(struct virtio_device *device)
{
	for (unsigned i = 0; i < device->queue_count; i++)
		if (device->queue[i].enabled)
			queue_start(&device->queue[i]);
	if (device->ops->activate)
		device->ops->activate(device);
	notify_all(device);
}

static void start(struct virtio_device *device)
{
	atomic_fetch_or(&device->status, VIRTIO_STATUS_DRIVER_OK);
	start_rings(device);
}

/* 2.1, 3.1.1: bits are only ever added, in order; 0 resets. */
void virtio_device_set_status(struct virtio_device *device, uint8_t value)
{
	uint8_t status = atomic_load(&device->status);

	if (value == 0) {
		virtio_device_reset(device);
		return;
	}
	if (resetting(device))
		return;
	virtio_enter(device);
	status = atomic_fetch_or(&device->status, value & STATUS_SIMPLE) | (value & STATUS_SIMPLE);
	if (value & VIRTIO_STATUS_FEATURES_OK && !(status & VIRTIO_STATUS_FEATURES_OK) && features_acceptable(device))
		status |= atomic_fetch_or(&device->status, VIRTIO_STATUS_FEATURES_OK) | VIRTIO_STATUS_FEATURES_OK;
	if (value & VIRTIO_STATUS_DRIVER_OK && !(status & VIRTIO_STATUS_DRIVER_OK) &&
	    status & VIRTIO_STATUS_FEATURES_OK)
		start(device);
	leave(device, true);
}

void virtio_device_select_features(struct virtio_device *device, unsigned word, uint32_t value)
{
	uint64_t features = atomic_load(&device->features);

	if (word > 1 || device->legacy || atomic_load(&device->status) & VIRTIO_STATUS_FEATURES_OK || resetting(device))
		return;
	if (word)
		features = (uint32_t)features | (uint64_t)value << 32;
	else
		features = (features & ~0xffffffffull) | value;
	atomic_store(&device->features, features);
}

bool virtio_queue_writable(const struct virtio_queue *queue)
{
	struct virtio_device *device = queue->device;

	if (queue->enabled || device->legacy || resetting(device))
		return false;
	return !(atomic_load(&device->status) & VIRTIO_STATUS_DRIVER_OK) ||
	       virtio_has(device, VIRTIO_FEATURE_RING_RESET);
}

void virtio_queue_enable(struct virtio_queue *queue)
{
	struct virtio_device *device = queue->device;

	if (!virtio_queue_writable(queue))
		return;
	virtio_enter(device);
	if (!queue->resetting) {
		queue->enabled = true;
		if (atomic_load(&device->status) & VIRTIO_STATUS_DRIVER_OK) {
			queue_start(queue);
			virtio_device_notify(device, queue->index);
		}
	}
	leave(device, true);
}

void virtio_queue_reset(struct virtio_queue *queue)
{
	struct virtio_device *device = queue->device;

	if (!virtio_has(device, VIRTIO_FEATURE_RING_RESET) || !queue->enabled || resetting(device))
		return;
	virtio_enter(device);
	queue_stop(queue);
	queue->resetting = queue->in_flight > 0;
	leave(device, true);
}

bool virtio_queue_resetting(struct virtio_queue *queue)
{
	pthread_mutex_lock(&queue->device->queue_lock);
	bool result = queue->resetting;
	pthread_mutex_unlock(&queue->device->queue_lock);
	return result;
}

/* ---- the legacy interface ---- */

uint32_t virtio_legacy_offered(const struct virtio_device *device)
{
	return (uint32_t)(device->offered | VIRTIO_FEATURE_ANY_LAYOUT);
}

void virtio_legacy_select_features(struct virtio_device *device, uint32_t features)
{
	if (device->legacy_started ||
	    atomic_load(&device->status) & (VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK) || resetting(device))
		return;
	virtio_enter(device);
	device->legacy = true;
	atomic_store(&device->features, features & virtio_legacy_offered(device));
	leave(device, true);
}

uint8_t virtio_legacy_status(struct virtio_device *device)
{
	return virtio_device_status(device) & (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
}

/* Nobody can be told that a selection makes no sense: then there are no features. Entered. */
static void legacy_start(struct virtio_device *device)
{
	if (device->legacy_started)
		return;
	device->legacy = device->legacy_started = true;
	atomic_fetch_and(&device->features, virtio_legacy_offered(device));
	if (device->ops->features_ok && !device->ops->features_ok(device, atomic_load(&device->features)))
		atomic_store(&device->features, 0);
	start_rings(device);
}

/* Drivers do not wait for the end of a reset. Whoever ends the last request may need the device lock for it. */
static void legacy_reset(struct virtio_device *device)
{
	virtio_device_reset(device);
	if (!resetting(device))
		return;
	device->host.unlock(device->host.lock_owner);
	pthread_mutex_lock(&device->queue_lock);
	while (device->resetting)
		pthread_cond_wait(&device->idle, &device->queue_lock);
	pthread_mutex_unlock(&device->queue_lock);
	device->host.lock(device->host.lock_owner);
}

void virtio_legacy_set_status(struct virtio_device *device, uint8_t value)
{
	if (value == 0) {
		legacy_reset(device);
		return;
	}
	if (resetting(device) || atomic_load(&device->status) & VIRTIO_STATUS_FEATURES_OK)
		return;
	virtio_enter(device);
	atomic_fetch_or(&device->status, value & STATUS_SIMPLE);
	if (value & VIRTIO_STATUS_DRIVER_OK && !(atomic_load(&device->status) & VIRTIO_STATUS_DRIVER_OK)) {
		atomic_fetch_or(&device->status, VIRTIO_STATUS_DRIVER_OK);
		legacy_start(device);
	}
	leave(device, true);
}

void virtio_legacy_queue_enable(struct virtio_queue *queue, uint64_t address)
{
	struct virtio_device *device = queue->device;
	uint64_t available = address + 16ull * queue->size_max, used = available + 6 + 2ull * queue->size_max;

	if (queue->enabled || resetting(device) || atomic_load(&device->status) & VIRTIO_STATUS_FEATURES_OK)
		return;
	virtio_enter(device);
	device->legacy = true;
	queue->size = queue->size_max;
	queue->descriptors = address;
	queue->driver_area = available;
	queue->device_area = (used + VIRTIO_LEGACY_ALIGN - 1) & ~(uint64_t)(VIRTIO_LEGACY_ALIGN - 1);
	queue->enabled = true;
	if (device->legacy_started) {
		queue_start(queue);
		virtio_device_notify(device, queue->index);
	}
	leave(device, true);
}

void virtio_legacy_notify(struct virtio_device *device, unsigned queue)
{
	if (device->legacy && !device->legacy_started && queue < device->queue_count && device->queue[queue].enabled &&
	    atomic_load(&device->status) & VIRTIO_STATUS_DRIVER) {
		virtio_enter(device);
		legacy_start(device);
		leave(device, true);
	}
	virtio_device_notify(device, queue);
}

/* ---- configuration space ---- */

uint64_t virtio_config_read(struct virtio_device *device, unsigned offset, unsigned size)
{
	uint64_t value = 0;

	pthread_mutex_lock(&device->queue_lock);
	for (unsigned i = 0; i < size && offset + i < device->config_length; i++)
		value |= (uint64_t)device->config[offset + i] << 8 * i;
	pthread_mutex_unlock(&device->queue_lock);
	return value;
}

void virtio_config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	if (!device->ops->config_write || offset >= device->config_length || size > device->config_length - offset ||
	    resetting(device))
		return;
	virtio_enter(device);
	device->ops->config_write(device, offset, size, value);
	leave(device, true);
}

/* ---- making, pausing, saving ---- */

int virtio_device_init(struct virtio_device *device, const struct virtio_ops *ops, const struct virtio_host *host,
                       unsigned instance, uint64_t features, unsigned queue_count, const uint16_t *queue_sizes,
                       void *config, unsigned config_length)
{
	memset(device, 0, sizeof *device);
	device->notify_fd = -1;
	if (queue_count > VIRTIO_QUEUES_MAX)
		return -EINVAL;
	pthread_mutex_init(&device->queue_lock, NULL);
	pthread_cond_init(&device->idle, NULL);
	device->ops = ops;
	device->host = *host;
	device->instance = instance;
	device->offered = features | RING_FEATURES;
	device->config = config;
	device->config_length = config_length;
	device->queue = calloc(queue_count, sizeof *device->queue);
	device->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!device->queue || device->notify_fd < 0)
		goto fail;
	device->queue_count = queue_count;
	for (unsigned i = 0; i < queue_count; i++)
		device->queue[i] = (struct virtio_queue){
		    .device = device, .index = i, .size = queue_sizes[i], .size_max = queue_sizes[i]};
	device->notify_source = event_source_add(host->loop, device->notify_fd, EPOLLIN | EPOLLET, notified, device);
	if (device->notify_source) {
		event_source_set_poll(device->notify_source, serve);
		return 0;
	}
fail:
	virtio_device_destroy(device);
	return -ENOMEM;
}

void virtio_device_destroy(struct virtio_device *device)
{
	if (!device->ops)
		return;
	if (device->notify_source)
		event_source_remove(device->notify_source);
	if (device->notify_fd >= 0)
		close(device->notify_fd);
	free(device->queue);
	pthread_cond_destroy(&device->idle);
	pthread_mutex_destroy(&device->queue_lock);
	memset(device, 0, sizeof *device);
	device->notify_fd = -1;
}

void virtio_device_pause(struct virtio_device *device)
{
	pthread_mutex_lock(&device->queue_lock);
	device->paused = true;
	while (device->in_flight > 0 || device->sending > 0)
		pthread_cond_wait(&device->idle, &device->queue_lock);
	pthread_mutex_unlock(&device->queue_lock);
}

void virtio_device_resume(struct virtio_device *device)
{
	pthread_mutex_lock(&device->queue_lock);
	device->paused = false;
	notify_all(device);
	pthread_mutex_unlock(&device->queue_lock);
}

static void queue_state(struct virtio_queue *queue, struct state *state, bool driver_ok)
{
	struct virtio_device *device = queue->device;
	unsigned instance = device->instance * VIRTIO_QUEUES_MAX + queue->index;
	bool live = queue->live;

	state_begin(state, "virtio-queue", instance, 1);
	state_u16(state, "size", &queue->size);
	state_bool(state, "enabled", &queue->enabled);
	state_bool(state, "live", &live);
	state_u64(state, "descriptors", &queue->descriptors);
	state_u64(state, "driver", &queue->driver_area);
	state_u64(state, "device", &queue->device_area);
	if (queue->size == 0 || queue->size > queue->size_max) {
		queue->size = queue->size_max;
		state_fail(state, "queue size out of range");
	}
	if (live && !driver_ok)
		state_fail(state, "a queue is live without a driver");
	state_end(state);
	if (state_loading(state) && live && !state_error(state))
		queue_start(queue);
	if (live && !state_error(state))
		virtio_ring_state(&queue->ring, state, instance);
}

void virtio_device_state(struct virtio_device *device, struct state *state)
{
	uint8_t status = atomic_load(&device->status), generation = atomic_load(&device->config_generation);
	uint64_t features = atomic_load(&device->features);
	bool loading = state_loading(state);

	if (loading)
		virtio_device_reset(device);
	virtio_enter(device);
	state_begin(state, "virtio", device->instance, 1);
	state_u8(state, "status", &status);
	state_u8(state, "config_generation", &generation);
	state_u64(state, "features", &features);
	state_bool(state, "legacy", &device->legacy);
	state_bool(state, "legacy_started", &device->legacy_started);
	if (device->legacy_started > device->legacy || device->legacy > device->transitional ||
	    (device->legacy &&
	     (status & VIRTIO_STATUS_FEATURES_OK || features & ~(uint64_t)virtio_legacy_offered(device)))) {
		device->legacy = device->legacy_started = false;
		state_fail(state, "a legacy driver that cannot be");
	}
	if (device->in_flight > 0)
		state_fail(state, "requests are in flight");
	if (features & ~device->offered && status & VIRTIO_STATUS_FEATURES_OK)
		state_fail(state, "features that this device does not have");
	state_end(state);
	if (loading && !state_error(state)) {
		atomic_store(&device->features, features);
		atomic_store(&device->status, status & (STATUS_SIMPLE | VIRTIO_STATUS_FEATURES_OK));
		atomic_store(&device->config_generation, generation);
	}
	for (unsigned i = 0; i < device->queue_count; i++)
		queue_state(&device->queue[i], state,
		            device->legacy ? device->legacy_started : status & VIRTIO_STATUS_DRIVER_OK);
	if (device->ops->state)
		device->ops->state(device, state);
	if (loading && !state_error(state)) {
		atomic_fetch_or(&device->status, status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET));
		if ((status & VIRTIO_STATUS_DRIVER_OK || device->legacy_started) && device->ops->activate)
			device->ops->activate(device);
	}
	leave(device, true);
}
