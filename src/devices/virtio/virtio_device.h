/*
 * What all virtio devices have in common (virtio 1.2 chapter 2): status, features, queues, resets, requests in flight,
 *and the way of a notification to the device and of an interrupt back. Between the transport (virtio_pci.h), whose
 *registers end in the functions of the second part, and the devices (virtio_block.c ...), which fill a `struct
 *virtio_ops` and use those of the first.
 *
 *	vCPU thread                                      I/O thread
 *	-----------                                      ----------
 *	registers ── virtio_device_*()                   back end: a request is done, a frame has come
 *	      notify ─┬─ bit in `notified`                      |
 *	              └─ eventfd ─────────────────────>  enter; queue_notify(): ring -> back end; complete; leave ─┐
 *	local APIC <──────────────────────────────────────────────────────────────── transport: MSI-X, INTx ───────┘
 *
 * Locks. The device lock (the machine's) guards the registers. The queue lock, one for each virtio device and taken
 *after it, guards rings, configuration space and the device's own state: every function of the ops runs with it held.
 *Interrupts are collected under the queue lock and sent by virtio_leave() after it is dropped, so that the I/O thread
 *takes the device lock (which INTx needs; MSI-X does not) never inside. A device whose back end demands the device lock
 *(chardev) says so in its ops.
 *
 * Reset at any time. Each queue counts its generations; a request that is in flight knows the one it belongs to, and
 *one of an old generation gives nothing back. The guest may use its memory again when a reset is done, so a reset is
 *not done before the last request in flight has come back: until then the status register does not read 0 (queue_reset
 *reads 1), and other writes are ignored.
 *
 * A bad ring: DEVICE_NEEDS_RESET and a configuration interrupt; nothing is taken from any queue until the reset.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "devices/virtio/virtio_ring.h"

#define VIRTIO_QUEUES_MAX 64

#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER      0x02
#define VIRTIO_STATUS_DRIVER_OK   0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED      0x80

#define VIRTIO_FEATURE_ANY_LAYOUT    (1ull << 27) /* legacy only */
#define VIRTIO_FEATURE_INDIRECT_DESC (1ull << 28)
#define VIRTIO_FEATURE_EVENT_IDX     (1ull << 29)
#define VIRTIO_FEATURE_VERSION_1     (1ull << 32)
#define VIRTIO_FEATURE_RING_PACKED   (1ull << 34)
#define VIRTIO_FEATURE_RING_RESET    (1ull << 40)

struct event_loop;
struct event_source;
struct state;
struct trace;
struct virtio_device;
struct virtio_queue;

/* The functions may be NULL, but for queue_notify. */
struct virtio_ops {
	const char *name; /* "virtio-rng": also that of the saved state */
	uint16_t id;      /* device type, chapter 5 */
	uint32_t class_code;
	bool device_lock; /* queue_notify() runs with the device lock held, and so does whatever else enters */
	/* May the driver have this selection? (What the bits depend on; that they were offered is checked.) */
	bool (*features_ok)(struct virtio_device *device, uint64_t features);
	/* A write into the configuration space: `size` bytes, all within it. */
	void (*config_write)(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value);
	/* DRIVER_OK. The rings stand; each queue gets a notification afterwards. */
	void (*activate)(struct virtio_device *device);
	/* The queue has chains, perhaps. */
	void (*queue_notify)(struct virtio_device *device, struct virtio_queue *queue);
	/* The queue stops: chains that the device holds are forgotten. In flight ones end by virtio_flight_end(). */
	void (*queue_reset)(struct virtio_device *device, struct virtio_queue *queue);
	/* After all queues: the device as it was in the beginning. */
	void (*reset)(struct virtio_device *device);
	/* Its own state, in a section named `name` with number device->instance. Nothing in flight. */
	void (*state)(struct virtio_device *device, struct state *state);
};

struct virtio_queue {
	struct virtio_device *device;
	unsigned index;
	uint16_t size_max;
	/* Registers: device lock. */
	uint16_t size;
	bool enabled;
	uint64_t descriptors, driver_area, device_area;
	/* Queue lock. */
	bool live; /* the ring stands, DRIVER_OK */
	bool resetting;
	unsigned generation, in_flight;
	struct virtio_ring ring;
};

/* Where a device lives. */
struct virtio_host {
	struct memory *memory;
	struct event_loop *loop; /* the I/O thread's */
	struct trace *trace;
	void (*lock)(void *owner); /* the device lock */
	void (*unlock)(void *owner);
	void *lock_owner;
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct virtio_host host;
	unsigned instance; /* tells devices of a kind apart in saved states */
	uint64_t offered;  /* features */
	unsigned queue_count;
	struct virtio_queue *queue;
	uint8_t *config; /* configuration space, little-endian; the device's own memory */
	unsigned config_length;

	/* The transport sends interrupts: of the queues (a bit each) and of the configuration. Without the queue lock.
	 */
	void (*interrupt)(void *transport, uint64_t queues, bool config, bool device_locked);
	void *transport;

	bool transitional; /* has the legacy interface, too */
	/* The driver uses it: device lock and queue lock. */
	bool legacy;
	bool legacy_started; /* its rings are in force, DRIVER_OK or not */

	_Atomic uint8_t status;
	_Atomic uint64_t features; /* as the driver selects them; final with FEATURES_OK */
	_Atomic uint8_t config_generation;

	_Atomic uint64_t notified; /* queues */
	int notify_fd;
	struct event_source *notify_source;

	pthread_mutex_t queue_lock; /* all below */
	pthread_cond_t idle;
	bool resetting, paused;
	unsigned in_flight;
	unsigned sending; /* interrupts between the queue lock and the transport */
	uint64_t interrupt_queues;
	bool interrupt_config;
};

/* ---- for devices ---- */

/*
 * `queue_sizes`: how many descriptors each queue may have (powers of two, at most VIRTIO_RING_SIZE_MAX). `features`
 * beside those of the rings, which are offered always. `config` is borrowed. 0 or -errno.
 */
int virtio_device_init(struct virtio_device *device, const struct virtio_ops *ops, const struct virtio_host *host,
                       unsigned instance, uint64_t features, unsigned queue_count, const uint16_t *queue_sizes,
                       void *config, unsigned config_length);
/* The loop is not running any more, and nothing is in flight. */
void virtio_device_destroy(struct virtio_device *device);

/*
 * Around everything that a device does on its own account (a back end's call). Without the queue lock; with the device
 * lock exactly if ops->device_lock is set.
 */
void virtio_enter(struct virtio_device *device);
void virtio_leave(struct virtio_device *device);

static inline bool virtio_has(const struct virtio_device *device, uint64_t feature)
{
	return (atomic_load_explicit(&device->features, memory_order_relaxed) & feature) == feature;
}
/* May chains be taken now? */
bool virtio_queue_runs(const struct virtio_queue *queue);
/* The next chain; false: none (or the ring is bad, and has been reported). */
bool virtio_queue_next(struct virtio_queue *queue, struct virtio_chain *chain);
/* As in virtio_ring.h, with the interrupt where the driver wants one. */
void virtio_queue_complete(struct virtio_queue *queue, struct virtio_token token, uint32_t written);
void virtio_queue_flush(struct virtio_queue *queue);
/* Calls queue_notify() again soon, from the loop: after a fair share of work. */
void virtio_queue_again(struct virtio_queue *queue);
/* The driver has violated the rules of the device: DEVICE_NEEDS_RESET. */
void virtio_break(struct virtio_device *device, const char *why);
/* The configuration space has changed. */
void virtio_config_changed(struct virtio_device *device);

/* A chain that is with the back end. */
struct virtio_flight {
	struct virtio_queue *queue;
	struct virtio_token token;
	unsigned generation;
};
void virtio_flight_begin(struct virtio_flight *flight, struct virtio_queue *queue, struct virtio_token token);
/* Gives it back, unless there was a reset meanwhile. Entered. */
void virtio_flight_end(struct virtio_flight *flight, uint32_t written);
/* Has there been a reset? */
bool virtio_flight_stale(const struct virtio_flight *flight);

/*
 * Takes nothing more from the queues, and returns when nothing is in flight; resume goes on. Not from the loop's
 * thread, not with the device lock; the loop is running. For saving state, and before a reset of the machine.
 */
void virtio_device_pause(struct virtio_device *device);
void virtio_device_resume(struct virtio_device *device);
/* Paused. */
void virtio_device_state(struct virtio_device *device, struct state *state);

/* ---- for the transport: with the device lock held ---- */

/* The status register. */
uint8_t virtio_device_status(struct virtio_device *device);
void virtio_device_set_status(struct virtio_device *device, uint8_t value);
void virtio_device_reset(struct virtio_device *device);
void virtio_device_select_features(struct virtio_device *device, unsigned word, uint32_t value);
/* May the registers of this queue change now? */
bool virtio_queue_writable(const struct virtio_queue *queue);
void virtio_queue_enable(struct virtio_queue *queue);
/* queue_reset: starts one; is it under way? */
void virtio_queue_reset(struct virtio_queue *queue);
bool virtio_queue_resetting(struct virtio_queue *queue);
uint64_t virtio_config_read(struct virtio_device *device, unsigned offset, unsigned size);
void virtio_config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value);
/* The driver notifies a queue. Any thread. */
void virtio_device_notify(struct virtio_device *device, unsigned queue);

/*
 * ---- for a transitional device's transport: the legacy interface (2.7.4, 3.1.2, 4.1.4.10), with the device lock held ----
 *
 * A reset takes the device to its beginning; what a driver does next decides which interface it uses until the next one.
 */

#define VIRTIO_LEGACY_ALIGN 4096u

uint32_t virtio_legacy_offered(const struct virtio_device *device);
void virtio_legacy_select_features(struct virtio_device *device, uint32_t features);
uint8_t virtio_legacy_status(struct virtio_device *device);
/* 0: returns when the reset is done; the device lock is given up meanwhile. */
void virtio_legacy_set_status(struct virtio_device *device, uint8_t value);
/* The ring's three areas follow one another from `address` on, the last one aligned. */
void virtio_legacy_queue_enable(struct virtio_queue *queue, uint64_t address);
void virtio_legacy_notify(struct virtio_device *device, unsigned queue);
