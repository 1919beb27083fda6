#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/event_loop.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define DEVFN       PCI_DEVFN(3, 0)
#define MSIX_BASE   0xf0000000ull
#define WAIT_ROUNDS 600000

static void lock(void *owner)
{
	pthread_mutex_lock(&((struct driver_rig *)owner)->lock);
}

static void unlock(void *owner)
{
	pthread_mutex_unlock(&((struct driver_rig *)owner)->lock);
}

static void message(void *owner, uint64_t address, uint32_t data)
{
	struct driver_rig *rig = owner;

	if (data <= VIRTIO_QUEUES_MAX)
		rig->messages[data]++;
}

static void pirq(void *owner, unsigned pin, bool level)
{
	struct driver_rig *rig = owner;

	rig->pin_rises += level && !rig->pin;
	rig->pin = level;
}

static void turned(void *owner, uint32_t events);

void driver_rig_init(struct driver_rig *rig)
{
	memset(rig, 0, sizeof *rig);
	assert_int_equal(memory_create(&rig->memory, DRIVER_RAM), 0);
	bus_init(&rig->bus, NULL);
	pthread_mutex_init(&rig->lock, NULL);
	assert_int_equal(pci_root_init(&rig->root, &rig->bus, NULL, NULL), 0);
	pci_root_set_message(&rig->root, message, rig);
	pci_root_set_pirq(&rig->root, (struct irq_line){.set = pirq, .owner = rig});
	rig->thread = io_thread_create("test-io");
	assert_non_null(rig->thread);
	rig->turn_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rig->turn_source = event_source_add(io_thread_loop(rig->thread), rig->turn_fd, EPOLLIN, turned, rig);
	assert_non_null(rig->turn_source);
	rig->heap = DRIVER_HEAP;
	rig->host = (struct virtio_host){.memory = &rig->memory,
	                                 .loop = io_thread_loop(rig->thread),
	                                 .lock = lock,
	                                 .unlock = unlock,
	                                 .lock_owner = rig};
}

void driver_rig_plug(struct driver_rig *rig, struct virtio_device *device)
{
	driver_rig_plug_as(rig, device, false);
}

void driver_rig_plug_as(struct driver_rig *rig, struct virtio_device *device, bool transitional)
{
	const struct pci_windows windows = {
	    .io = 0xc000, .io_end = 0xd000, .memory = MSIX_BASE, .memory_end = MSIX_BASE + 0x100000};

	assert_int_equal(virtio_pci_init(&rig->pci, &rig->root, DEVFN, device, transitional), 0);
	pci_root_assign(&rig->root, &windows);
	rig->registers = rig->pci.function.bar[4].base;
	assert_true(rig->pci.function.bar[1].base == MSIX_BASE);
	pci_config_write(&rig->root, DEVFN, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

void driver_rig_stop(struct driver_rig *rig)
{
	if (rig->pci.device)
		virtio_device_pause(rig->pci.device);
	io_thread_pause(rig->thread);
	io_thread_resume(rig->thread);
}

void driver_rig_free(struct driver_rig *rig)
{
	event_source_remove(rig->turn_source);
	close(rig->turn_fd);
	io_thread_destroy(rig->thread);
	virtio_pci_destroy(&rig->pci);
	memory_destroy(&rig->memory);
	pthread_mutex_destroy(&rig->lock);
}

uint64_t driver_alloc(struct driver_rig *rig, uint64_t bytes, uint64_t alignment)
{
	uint64_t at = (rig->heap + alignment - 1) & ~(alignment - 1);

	rig->heap = at + bytes;
	assert_true(rig->heap <= DRIVER_RAM);
	return at;
}

uint64_t driver_get(struct driver_rig *rig, uint64_t offset, unsigned size)
{
	lock(rig);
	uint64_t value = bus_mmio_read(&rig->bus, rig->registers + offset, size);
	unlock(rig);
	return value;
}

void driver_set(struct driver_rig *rig, uint64_t offset, unsigned size, uint64_t value)
{
	lock(rig);
	bus_mmio_write(&rig->bus, rig->registers + offset, size, value);
	unlock(rig);
}

uint64_t driver_config(struct driver_rig *rig, unsigned offset, unsigned size)
{
	return driver_get(rig, DRIVER_CONFIG + offset, size);
}

void driver_wait_status(struct driver_rig *rig, uint8_t mask, uint8_t value)
{
	for (unsigned i = 0; (driver_get(rig, COMMON(STATUS), 1) & mask) != value; i++) {
		if (i == WAIT_ROUNDS)
			fail_msg("status stays %02x", (unsigned)driver_get(rig, COMMON(STATUS), 1));
		usleep(100);
	}
}

void driver_reset(struct driver_rig *rig)
{
	driver_set(rig, COMMON(STATUS), 1, 0);
	driver_wait_status(rig, 0xff, 0);
	rig->heap = DRIVER_HEAP;
}

bool driver_negotiate(struct driver_rig *rig, uint64_t features)
{
	features |= VIRTIO_FEATURE_VERSION_1;
	driver_set(rig, COMMON(STATUS), 1, VIRTIO_STATUS_ACKNOWLEDGE);
	driver_set(rig, COMMON(STATUS), 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	for (unsigned word = 0; word < 2; word++) {
		driver_set(rig, COMMON(DRIVER_FEATURE_SELECT), 4, word);
		driver_set(rig, COMMON(DRIVER_FEATURE), 4, (uint32_t)(features >> 32 * word));
	}
	driver_set(rig, COMMON(STATUS), 1,
	           VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
	rig->features = features;
	return driver_get(rig, COMMON(STATUS), 1) & VIRTIO_STATUS_FEATURES_OK;
}

void driver_queue_start(struct driver_rig *rig, unsigned queue, uint16_t size)
{
	struct driver_queue *q = &rig->queue[queue];

	driver_set(rig, COMMON(QUEUE_SELECT), 2, queue);
	uint16_t most = driver_get(rig, COMMON(QUEUE_SIZE), 2);
	assert_true(most > 0);
	if (size > most)
		size = most;
	driver_queue_init(q, &rig->memory, driver_alloc(rig, driver_queue_bytes(size), 4096), size,
	                  rig->features & VIRTIO_FEATURE_RING_PACKED, rig->features & VIRTIO_FEATURE_EVENT_IDX,
	                  rig->features & VIRTIO_FEATURE_INDIRECT_DESC);
	driver_set(rig, COMMON(QUEUE_SIZE), 2, size);
	driver_set(rig, COMMON(QUEUE_VECTOR), 2, queue + 1);
	driver_set(rig, COMMON(QUEUE_DESC), 8, q->setup.descriptors);
	driver_set(rig, COMMON(QUEUE_DRIVER), 4, (uint32_t)q->setup.driver);
	driver_set(rig, COMMON(QUEUE_DRIVER) + 4, 4, q->setup.driver >> 32);
	driver_set(rig, COMMON(QUEUE_DEVICE), 8, q->setup.device);
	driver_set(rig, COMMON(QUEUE_ENABLE), 2, 1);
}

void driver_ok(struct driver_rig *rig)
{
	driver_set(rig, COMMON(STATUS), 1, driver_get(rig, COMMON(STATUS), 1) | VIRTIO_STATUS_DRIVER_OK);
}

static void start_messages(struct driver_rig *rig)
{
	lock(rig);
	for (unsigned i = 0; i < rig->pci.msix.count; i++) {
		bus_mmio_write(&rig->bus, MSIX_BASE + 16 * i, 8, 0xfee00000);
		bus_mmio_write(&rig->bus, MSIX_BASE + 16 * i + 8, 8, i);
	}
	pci_config_write(&rig->root, DEVFN, rig->pci.msix.capability + 2, 2, 0x8000);
	unlock(rig);
	driver_set(rig, COMMON(CONFIG_VECTOR), 2, 0);
}

void driver_start(struct driver_rig *rig, uint64_t features, uint16_t size)
{
	driver_reset(rig);
	assert_true(driver_negotiate(rig, features));
	start_messages(rig);
	for (unsigned i = 0; i < driver_get(rig, COMMON(NUM_QUEUES), 2); i++)
		driver_queue_start(rig, i, size);
	driver_ok(rig);
}

int driver_send(struct driver_rig *rig, unsigned queue, const struct driver_buffer *buffers, unsigned count)
{
	struct driver_queue *q = &rig->queue[queue];
	unsigned before = driver_position(q);
	int id = driver_add(q, buffers, count, 0);

	if (id >= 0 && driver_must_notify(q, before))
		driver_set(rig, DRIVER_NOTIFY + 4 * queue, 2, queue);
	return id;
}

void driver_wait_used(struct driver_rig *rig, unsigned queue, uint16_t *id, uint32_t *written)
{
	for (unsigned i = 0; !driver_used(&rig->queue[queue], id, written); i++) {
		if (i == WAIT_ROUNDS)
			fail_msg("queue %u: nothing comes back", queue);
		usleep(100);
	}
}

static void turned(void *owner, uint32_t events)
{
	struct driver_rig *rig = owner;
	uint64_t count;

	if (read(rig->turn_fd, &count, sizeof count) == sizeof count)
		rig->turns++;
}

/* What was signalled before is in the loop's this or next turn; what that has signalled, in the one after. */
void driver_settle(struct driver_rig *rig)
{
	const uint64_t one = 1;

	for (unsigned i = 0; i < 4; i++) {
		unsigned before = rig->turns;

		assert_int_equal(write(rig->turn_fd, &one, sizeof one), sizeof one);
		while (rig->turns == before)
			usleep(20);
	}
}
