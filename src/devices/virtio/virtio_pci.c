#include "devices/virtio/virtio_pci_private.h"

#include <errno.h>
#include <string.h>

#include "machine/state.h"

#define VENDOR         0x1af4
#define DEVICE_BASE    0x1040
#define SUBSYSTEM_ID   0x1100
#define CAPABILITY_ID  0x09 /* vendor-specific */
#define MSIX_BAR       1
#define REGISTERS_BAR  4
#define REGISTERS_SIZE 0x4000

/* Structure types (4.1.4). */
#define TYPE_COMMON 1
#define TYPE_NOTIFY 2
#define TYPE_ISR    3
#define TYPE_DEVICE 4
#define TYPE_PCI    5

#define COMMON_OFFSET     0x0000u
#define ISR_OFFSET        0x1000u
#define DEVICE_OFFSET     0x2000u
#define NOTIFY_OFFSET     0x3000u
#define STRUCTURE_SIZE    0x1000u
#define NOTIFY_MULTIPLIER 4u

/* The window's fields, from its capability's start. */
#define ACCESS_BAR    4
#define ACCESS_OFFSET 8
#define ACCESS_LENGTH 12
#define ACCESS_DATA   16

#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

/* Common configuration (4.1.4.3). */
enum {
	COMMON_DEVICE_FEATURE_SELECT = 0,
	COMMON_DEVICE_FEATURE = 4,
	COMMON_DRIVER_FEATURE_SELECT = 8,
	COMMON_DRIVER_FEATURE = 12,
	COMMON_CONFIG_VECTOR = 16,
	COMMON_NUM_QUEUES = 18,
	COMMON_STATUS = 20,
	COMMON_GENERATION = 21,
	COMMON_QUEUE_SELECT = 22,
	COMMON_QUEUE_SIZE = 24,
	COMMON_QUEUE_VECTOR = 26,
	COMMON_QUEUE_ENABLE = 28,
	COMMON_QUEUE_NOTIFY_OFFSET = 30,
	COMMON_QUEUE_DESCRIPTORS = 32,
	COMMON_QUEUE_DRIVER = 40,
	COMMON_QUEUE_DEVICE = 48,
	COMMON_QUEUE_NOTIFY_DATA = 56,
	COMMON_QUEUE_RESET = 58,
	COMMON_END = 60,
};

/* Start and width of the field at an offset; 64-bit ones count as two (4.1.3.1). False: there is none. */
static bool common_field(unsigned offset, unsigned *start, unsigned *width)
{
	static const uint8_t widths[] = {4, 4, 4, 4, 2, 2, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2};
	unsigned at = 0;

	for (unsigned i = 0; i < sizeof widths; at += widths[i++])
		if (offset < at + widths[i]) {
			*start = at;
			*width = widths[i];
			return true;
		}
	return false;
}

struct virtio_queue *virtio_pci_selected(struct virtio_pci *pci)
{
	return pci->queue_select < pci->device->queue_count ? &pci->device->queue[pci->queue_select] : NULL;
}

/* ---- interrupts ---- */

/* 4.1.5.1.4 (several queues may share a vector: one message), or the pin. */
static void interrupt(void *transport, uint64_t queues, bool config, bool device_locked)
{
	struct virtio_pci *pci = transport;
	struct virtio_host *host = &pci->device->host;
	uint64_t sent = 0;

	if (pci_msix_enabled(&pci->msix)) {
		unsigned vector = atomic_load(&pci->config_vector);

		if (config && vector != NO_VECTOR) {
			pci_msix_raise(&pci->msix, vector);
			sent |= vector < 64 ? 1ull << vector : 0;
		}
		for (; queues; queues &= queues - 1) {
			vector = atomic_load(&pci->queue_vector[__builtin_ctzll(queues)]);
			if (vector == NO_VECTOR || (vector < 64 && sent >> vector & 1))
				continue;
			pci_msix_raise(&pci->msix, vector);
			sent |= vector < 64 ? 1ull << vector : 0;
		}
		return;
	}
	if (!device_locked)
		host->lock(host->lock_owner);
	pci->isr |= (queues ? ISR_QUEUE : 0) | (config ? ISR_CONFIG : 0);
	pci_set_intx(&pci->function, pci->isr != 0);
	if (!device_locked)
		host->unlock(host->lock_owner);
}

uint8_t virtio_pci_isr(struct virtio_pci *pci)
{
	uint8_t isr = pci->isr;

	pci->isr = 0;
	pci_set_intx(&pci->function, false);
	return isr;
}

uint16_t virtio_pci_vector(const struct virtio_pci *pci, uint16_t vector)
{
	return vector < pci->msix.count ? vector : NO_VECTOR;
}

static void forget_vectors(struct virtio_pci *pci)
{
	atomic_store(&pci->config_vector, NO_VECTOR);
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		atomic_store(&pci->queue_vector[i], NO_VECTOR);
}

void virtio_pci_after_reset(struct virtio_pci *pci)
{
	forget_vectors(pci);
	virtio_pci_isr(pci);
}

/* ---- common configuration ---- */

static uint32_t queue_read(struct virtio_pci *pci, unsigned reg)
{
	struct virtio_queue *queue = virtio_pci_selected(pci);

	if (!queue)
		return reg == COMMON_QUEUE_VECTOR ? NO_VECTOR : 0; /* size 0: there is no such queue */
	switch (reg) {
	case COMMON_QUEUE_SIZE:
		return queue->size;
	case COMMON_QUEUE_VECTOR:
		return atomic_load(&pci->queue_vector[queue->index]);
	case COMMON_QUEUE_ENABLE:
		return queue->enabled;
	case COMMON_QUEUE_NOTIFY_OFFSET:
	case COMMON_QUEUE_NOTIFY_DATA:
		return queue->index;
	case COMMON_QUEUE_DESCRIPTORS:
		return (uint32_t)queue->descriptors;
	case COMMON_QUEUE_DESCRIPTORS + 4:
		return queue->descriptors >> 32;
	case COMMON_QUEUE_DRIVER:
		return (uint32_t)queue->driver_area;
	case COMMON_QUEUE_DRIVER + 4:
		return queue->driver_area >> 32;
	case COMMON_QUEUE_DEVICE:
		return (uint32_t)queue->device_area;
	case COMMON_QUEUE_DEVICE + 4:
		return queue->device_area >> 32;
	case COMMON_QUEUE_RESET:
		return virtio_queue_resetting(queue);
	}
	return 0;
}

static uint32_t common_read(struct virtio_pci *pci, unsigned reg)
{
	struct virtio_device *device = pci->device;

	switch (reg) {
	case COMMON_DEVICE_FEATURE_SELECT:
		return pci->device_feature_select;
	case COMMON_DEVICE_FEATURE:
		return pci->device_feature_select < 2 ? device->offered >> 32 * pci->device_feature_select : 0;
	case COMMON_DRIVER_FEATURE_SELECT:
		return pci->driver_feature_select;
	case COMMON_DRIVER_FEATURE:
		return pci->driver_feature_select < 2
		           ? atomic_load(&device->features) >> 32 * pci->driver_feature_select
		           : 0;
	case COMMON_CONFIG_VECTOR:
		return atomic_load(&pci->config_vector);
	case COMMON_NUM_QUEUES:
		return device->queue_count;
	case COMMON_STATUS:
		return virtio_device_status(device);
	case COMMON_GENERATION:
		return atomic_load(&device->config_generation);
	case COMMON_QUEUE_SELECT:
		return pci->queue_select;
	default:
		return queue_read(pci, reg);
	}
}

static void set_half(uint64_t *value, bool high, uint32_t half)
{
	*value = high ? (uint32_t)*value | (uint64_t)half << 32 : (*value & ~0xffffffffull) | half;
}

static void queue_write(struct virtio_pci *pci, unsigned reg, uint32_t value)
{
	struct virtio_queue *queue = virtio_pci_selected(pci);
	bool packed;

	if (!queue)
		return;
	switch (reg) {
	case COMMON_QUEUE_VECTOR:
		atomic_store(&pci->queue_vector[queue->index], virtio_pci_vector(pci, value));
		return;
	case COMMON_QUEUE_ENABLE:
		if (value == 1)
			virtio_queue_enable(queue);
		return;
	case COMMON_QUEUE_RESET:
		if (value == 1)
			virtio_queue_reset(queue);
		return;
	}
	/* The rest describes the ring, and counts only while it is not in force. */
	if (!virtio_queue_writable(queue))
		return;
	switch (reg) {
	case COMMON_QUEUE_SIZE:
		packed = virtio_has(pci->device, VIRTIO_FEATURE_RING_PACKED);
		if (value && value <= queue->size_max && (packed || !(value & (value - 1))))
			queue->size = value;
		break;
	case COMMON_QUEUE_DESCRIPTORS:
	case COMMON_QUEUE_DESCRIPTORS + 4:
		set_half(&queue->descriptors, reg & 4, value);
		break;
	case COMMON_QUEUE_DRIVER:
	case COMMON_QUEUE_DRIVER + 4:
		set_half(&queue->driver_area, reg & 4, value);
		break;
	case COMMON_QUEUE_DEVICE:
	case COMMON_QUEUE_DEVICE + 4:
		set_half(&queue->device_area, reg & 4, value);
		break;
	}
}

static void status_write(struct virtio_pci *pci, uint8_t value)
{
	virtio_device_set_status(pci->device, value);
	if (value == 0)
		virtio_pci_after_reset(pci);
}

static void common_write(struct virtio_pci *pci, unsigned reg, uint32_t value)
{
	switch (reg) {
	case COMMON_DEVICE_FEATURE_SELECT:
		pci->device_feature_select = value;
		break;
	case COMMON_DRIVER_FEATURE_SELECT:
		pci->driver_feature_select = value;
		break;
	case COMMON_DRIVER_FEATURE:
		virtio_device_select_features(pci->device, pci->driver_feature_select, value);
		break;
	case COMMON_CONFIG_VECTOR:
		atomic_store(&pci->config_vector, virtio_pci_vector(pci, value));
		break;
	case COMMON_STATUS:
		status_write(pci, value);
		break;
	case COMMON_QUEUE_SELECT:
		pci->queue_select = value;
		break;
	default:
		queue_write(pci, reg, value);
	}
}

/* ---- the registers' BAR ---- */

static uint64_t common_read_bytes(struct virtio_pci *pci, unsigned offset, unsigned size)
{
	unsigned start, width;
	uint64_t value = 0;

	for (unsigned i = 0; i < size && common_field(offset + i, &start, &width); i = start + width - offset)
		value |= (uint64_t)common_read(pci, start) >> 8 * (offset + i - start) << 8 * i;
	return value;
}

/* Whole fields only; a 64-bit access is its two halves. */
static void common_write_fields(struct virtio_pci *pci, unsigned offset, unsigned size, uint64_t value)
{
	unsigned start, width;

	while (size && common_field(offset, &start, &width) && start == offset && width <= size) {
		common_write(pci, start, (uint32_t)(value & (0xffffffffu >> (32 - 8 * width))));
		offset += width;
		size -= width;
		value >>= 8 * width;
		if (offset <= COMMON_QUEUE_DESCRIPTORS || offset > COMMON_QUEUE_NOTIFY_DATA || !(offset & 4))
			break; /* only the two halves of one field go together */
	}
}

static uint64_t registers_read(void *owner, uint64_t offset, unsigned size)
{
	struct virtio_pci *pci = owner;
	unsigned reg = offset % STRUCTURE_SIZE;

	switch (offset - reg) {
	case COMMON_OFFSET:
		return common_read_bytes(pci, reg, size);
	case ISR_OFFSET:
		return reg == 0 ? virtio_pci_isr(pci) : 0;
	case DEVICE_OFFSET:
		return virtio_config_read(pci->device, reg, size);
	default:
		return 0;
	}
}

static void registers_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_pci *pci = owner;
	unsigned reg = offset % STRUCTURE_SIZE;

	switch (offset - reg) {
	case COMMON_OFFSET:
		common_write_fields(pci, reg, size, value);
		break;
	case DEVICE_OFFSET:
		virtio_config_write(pci->device, reg, size, value);
		break;
	case NOTIFY_OFFSET:
		virtio_device_notify(pci->device, reg / NOTIFY_MULTIPLIER);
		break;
	}
}

static const struct bus_ops registers_ops = {.read = registers_read, .write = registers_write, .max_size = 8};

/* ---- the window in configuration space (4.1.4.7) ---- */

/* Where it points, if that is somewhere; `offset` into BAR 4. */
static bool window(const struct virtio_pci *pci, uint32_t *offset, unsigned *length)
{
	const struct pci_function *function = &pci->function;

	*offset = pci_get(function, pci->access_capability + ACCESS_OFFSET, 4);
	*length = pci_get(function, pci->access_capability + ACCESS_LENGTH, 4);
	return pci_get(function, pci->access_capability + ACCESS_BAR, 1) == REGISTERS_BAR &&
	       (*length == 1 || *length == 2 || *length == 4) && *offset < REGISTERS_SIZE && *offset % *length == 0;
}

static bool touches_data(const struct virtio_pci *pci, unsigned offset, unsigned size)
{
	unsigned data = pci->access_capability + ACCESS_DATA;

	return offset < data + 4 && offset + size > data;
}

static void config_reading(struct pci_function *function, unsigned offset, unsigned size)
{
	struct virtio_pci *pci = (struct virtio_pci *)function;
	uint32_t where;
	unsigned length;

	if (touches_data(pci, offset, size) && window(pci, &where, &length))
		pci_set(function, pci->access_capability + ACCESS_DATA, 4,
		        (uint32_t)registers_read(pci, where, length));
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
	struct virtio_pci *pci = (struct virtio_pci *)function;
	uint32_t where;
	unsigned length;

	/* (A loaded state "writes" all of it at once: that is no access.) */
	if (size <= 4 && touches_data(pci, offset, size) && window(pci, &where, &length))
		registers_write(pci, where, length, pci_get(function, pci->access_capability + ACCESS_DATA, length));
}

/* ---- the function ---- */

static int add_structure(struct virtio_pci *pci, unsigned type, unsigned length, uint32_t offset, uint32_t bytes)
{
	struct pci_function *function = &pci->function;
	int at = pci_add_capability(function, CAPABILITY_ID, length);

	if (at < 0)
		return at;
	pci_set(function, at + 2, 1, length);
	pci_set(function, at + 3, 1, type);
	pci_set(function, at + ACCESS_BAR, 1, REGISTERS_BAR);
	pci_set(function, at + ACCESS_OFFSET, 4, offset);
	pci_set(function, at + ACCESS_LENGTH, 4, bytes);
	return at;
}

static int add_capabilities(struct virtio_pci *pci)
{
	struct pci_function *function = &pci->function;
	struct virtio_device *device = pci->device;
	int at = add_structure(pci, TYPE_PCI, 20, 0, 0);

	if (at < 0)
		return at;
	pci->access_capability = at;
	pci_set(function, at + ACCESS_BAR, 1, 0);
	pci_set_writable(function, at + ACCESS_BAR, 1, 0xff);
	pci_set_writable(function, at + ACCESS_OFFSET, 4, 0xffffffff);
	pci_set_writable(function, at + ACCESS_LENGTH, 4, 0xffffffff);
	pci_set_writable(function, at + ACCESS_DATA, 4, 0xffffffff);
	at = add_structure(pci, TYPE_NOTIFY, 20, NOTIFY_OFFSET, STRUCTURE_SIZE);
	if (at >= 0)
		pci_set(function, at + 16, 4, NOTIFY_MULTIPLIER);
	if (at >= 0 && device->config_length)
		at = add_structure(pci, TYPE_DEVICE, 16, DEVICE_OFFSET, device->config_length);
	if (at >= 0)
		at = add_structure(pci, TYPE_ISR, 16, ISR_OFFSET, 1);
	if (at >= 0)
		at = add_structure(pci, TYPE_COMMON, 16, COMMON_OFFSET, COMMON_END);
	return at < 0 ? at : 0;
}

int virtio_pci_init(struct virtio_pci *pci, struct pci_root *root, unsigned devfn, struct virtio_device *device,
                    bool transitional)
{
	struct pci_function *function = &pci->function;
	int error;

	memset(pci, 0, sizeof *pci);
	pci_function_init(function, device->ops->name, VENDOR, DEVICE_BASE + device->ops->id, 1,
	                  device->ops->class_code);
	pci_set(function, PCI_SUBSYSTEM, 2, VENDOR);
	pci_set(function, PCI_SUBSYSTEM + 2, 2, SUBSYSTEM_ID);
	pci_set_interrupt_pin(function, 1);
	function->config_reading = config_reading;
	function->config_written = config_written;
	pci->device = device;
	forget_vectors(pci);
	error = transitional ? virtio_pci_legacy_init(pci) : 0;
	if (!error)
		error = pci_msix_init(&pci->msix, function, MSIX_BAR, device->queue_count + 1);
	if (!error)
		error =
		    pci_add_bar(function, REGISTERS_BAR, PCI_BAR_MEMORY64, false, REGISTERS_SIZE, &registers_ops, pci);
	if (!error)
		error = add_capabilities(pci);
	if (!error)
		error = pci_add_function(root, function, devfn);
	if (error)
		return error;
	device->interrupt = interrupt;
	device->transport = pci;
	return 0;
}

void virtio_pci_destroy(struct virtio_pci *pci)
{
	pci_msix_destroy(&pci->msix);
}

void virtio_pci_reset(struct virtio_pci *pci)
{
	pci->device_feature_select = pci->driver_feature_select = 0;
	pci->queue_select = 0;
	for (unsigned i = ACCESS_BAR; i < 20; i++)
		pci->function.config[pci->access_capability + i] = 0;
	status_write(pci, 0);
}

void virtio_pci_state(struct virtio_pci *pci, struct state *state)
{
	uint16_t vectors[VIRTIO_QUEUES_MAX], config_vector = atomic_load(&pci->config_vector);
	bool loading = state_loading(state);

	virtio_device_state(pci->device, state);
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		vectors[i] = atomic_load(&pci->queue_vector[i]);
	state_begin(state, "virtio-pci", pci->function.devfn, 1);
	state_u32(state, "device_feature_select", &pci->device_feature_select);
	state_u32(state, "driver_feature_select", &pci->driver_feature_select);
	state_u16(state, "queue_select", &pci->queue_select);
	state_u8(state, "isr", &pci->isr);
	state_u16(state, "config_vector", &config_vector);
	state_u16_array(state, "queue_vector", vectors, VIRTIO_QUEUES_MAX);
	state_end(state);
	pci_msix_state(&pci->msix, state);
	if (!loading)
		return;
	pci->isr &= ISR_QUEUE | ISR_CONFIG;
	atomic_store(&pci->config_vector, virtio_pci_vector(pci, config_vector));
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		atomic_store(&pci->queue_vector[i], virtio_pci_vector(pci, vectors[i]));
	pci_set_intx(&pci->function, pci->isr != 0);
}
