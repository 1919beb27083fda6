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

/* ---- a whole device behind PCI ---- */

#include <pthread.h>

#include "devices/bus.h"
#include "devices/pci/pci.h"
#include "devices/virtio/virtio_device.h"
#include "devices/virtio/virtio_pci.h"

#define DRIVER_RAM  (16ull << 20)
#define DRIVER_HEAP 0x100000ull /* driver_alloc() starts here */

struct io_thread;

/* A machine without CPUs: memory, bus, PCI, an I/O thread; messages are counted by their data. */
struct driver_rig {
	struct memory memory;
	struct bus bus;
	struct pci_root root;
	pthread_mutex_t lock; /* the device lock */
	struct io_thread *thread;
	struct virtio_host host;
	struct virtio_pci pci;
	struct driver_queue queue[VIRTIO_QUEUES_MAX];
	uint64_t registers; /* BAR 4 */
	uint64_t heap;
	uint64_t features;
	_Atomic unsigned messages[VIRTIO_QUEUES_MAX + 1]; /* vector 0: configuration, n + 1: queue n */
	int turn_fd;                                      /* driver_settle()'s */
	struct event_source *turn_source;
	_Atomic unsigned turns;
	_Atomic unsigned pin_rises;
	bool pin;
};

/* In two steps: the rig, then the device that the test has made with rig->host. */
void driver_rig_init(struct driver_rig *rig);
void driver_rig_plug(struct driver_rig *rig, struct virtio_device *device);
void driver_rig_plug_as(struct driver_rig *rig, struct virtio_device *device, bool transitional);
/* Stops the I/O thread; then the test destroys its device; then free. */
void driver_rig_stop(struct driver_rig *rig);
void driver_rig_free(struct driver_rig *rig);

uint64_t driver_alloc(struct driver_rig *rig, uint64_t bytes, uint64_t alignment);
/* Register accesses, with the device lock. */
uint64_t driver_get(struct driver_rig *rig, uint64_t offset, unsigned size);
void driver_set(struct driver_rig *rig, uint64_t offset, unsigned size, uint64_t value);
uint64_t driver_config(struct driver_rig *rig, unsigned offset, unsigned size);

/* Reset (waits until it is done). */
void driver_reset(struct driver_rig *rig);
/* ACKNOWLEDGE to FEATURES_OK with these (and VERSION_1). False: refused. */
bool driver_negotiate(struct driver_rig *rig, uint64_t features);
/* Sets one queue up and enables it; MSI-X vector n + 1. */
void driver_queue_start(struct driver_rig *rig, unsigned queue, uint16_t size);
void driver_ok(struct driver_rig *rig);
/* All of it: reset, negotiate, all queues of at most `size`, MSI-X on, DRIVER_OK. */
void driver_start(struct driver_rig *rig, uint64_t features, uint16_t size);
/* Adds a chain and notifies if the device wants that. The id. */
int driver_send(struct driver_rig *rig, unsigned queue, const struct driver_buffer *buffers, unsigned count);
/* Waits (seconds at most) for a used chain. */
void driver_wait_used(struct driver_rig *rig, unsigned queue, uint16_t *id, uint32_t *written);
void driver_wait_status(struct driver_rig *rig, uint8_t mask, uint8_t value);
/* Waits until the I/O thread has done what it knows of. */
void driver_settle(struct driver_rig *rig);

#define COMMON(name) VIRTIO_COMMON_##name
enum {
	VIRTIO_COMMON_DEVICE_FEATURE_SELECT = 0,
	VIRTIO_COMMON_DEVICE_FEATURE = 4,
	VIRTIO_COMMON_DRIVER_FEATURE_SELECT = 8,
	VIRTIO_COMMON_DRIVER_FEATURE = 12,
	VIRTIO_COMMON_CONFIG_VECTOR = 16,
	VIRTIO_COMMON_NUM_QUEUES = 18,
	VIRTIO_COMMON_STATUS = 20,
	VIRTIO_COMMON_GENERATION = 21,
	VIRTIO_COMMON_QUEUE_SELECT = 22,
	VIRTIO_COMMON_QUEUE_SIZE = 24,
	VIRTIO_COMMON_QUEUE_VECTOR = 26,
	VIRTIO_COMMON_QUEUE_ENABLE = 28,
	VIRTIO_COMMON_QUEUE_NOTIFY_OFFSET = 30,
	VIRTIO_COMMON_QUEUE_DESC = 32,
	VIRTIO_COMMON_QUEUE_DRIVER = 40,
	VIRTIO_COMMON_QUEUE_DEVICE = 48,
	VIRTIO_COMMON_QUEUE_RESET = 58,
	DRIVER_ISR = 0x1000,
	DRIVER_CONFIG = 0x2000,
	DRIVER_NOTIFY = 0x3000,
};
