/*
 * The legacy interface of a transitional virtio device (virtio 1.2 4.1.4.10, 4.1.5.1.3.1): BAR 0, ports.
 *
 *	 0 device features    8 queue address / 4096    16 queue notify     20 configuration vector \ with MSI-X
 *	 4 driver features   12 queue size              18 device status    22 queue vector         / only
 *	                     14 queue select            19 interrupt status 20 or 24 the device's configuration
 *
 * There is no FEATURES_OK, rings have one address and a fixed size, and a reset is done when the write returns. Old
 * drivers use their queues before they set DRIVER_OK, so that the first notification starts the device, too.
 */
#include <errno.h>

#include "devices/virtio/virtio_pci_private.h"

#define DEVICE_BASE 0x1000

enum {
	LEGACY_DEVICE_FEATURES = 0,
	LEGACY_DRIVER_FEATURES = 4,
	LEGACY_QUEUE_ADDRESS = 8,
	LEGACY_QUEUE_SIZE = 12,
	LEGACY_QUEUE_SELECT = 14,
	LEGACY_QUEUE_NOTIFY = 16,
	LEGACY_STATUS = 18,
	LEGACY_ISR = 19,
	LEGACY_CONFIG_VECTOR = 20,
	LEGACY_QUEUE_VECTOR = 22,
};

/* Device types and their transitional PCI device IDs (4.1.2.1). */
static const struct {
	uint8_t type, id;
} transitional[] = {{1, 0}, {2, 1}, {3, 3}, {4, 5}, {5, 2}};

/* Where the device's own configuration begins. */
static unsigned config_offset(struct virtio_pci *pci)
{
	return pci_msix_enabled(&pci->msix) ? 24 : 20;
}

static uint32_t register_read(struct virtio_pci *pci, unsigned reg)
{
	struct virtio_queue *queue = virtio_pci_selected(pci);

	switch (reg) {
	case LEGACY_DEVICE_FEATURES:
		return virtio_legacy_offered(pci->device);
	case LEGACY_DRIVER_FEATURES:
		return (uint32_t)atomic_load(&pci->device->features);
	case LEGACY_QUEUE_ADDRESS:
		return queue && queue->enabled ? (uint32_t)(queue->descriptors / VIRTIO_LEGACY_ALIGN) : 0;
	case LEGACY_QUEUE_SIZE:
		return queue ? queue->size_max : 0;
	case LEGACY_QUEUE_SELECT:
		return pci->queue_select;
	case LEGACY_STATUS:
		return virtio_legacy_status(pci->device);
	case LEGACY_ISR:
		return virtio_pci_isr(pci);
	case LEGACY_CONFIG_VECTOR:
		return atomic_load(&pci->config_vector);
	case LEGACY_QUEUE_VECTOR:
		return queue ? atomic_load(&pci->queue_vector[queue->index]) : NO_VECTOR;
	}
	return 0;
}

static void status_write(struct virtio_pci *pci, uint8_t value)
{
	virtio_legacy_set_status(pci->device, value);
	if (value == 0)
		virtio_pci_after_reset(pci);
}

static void register_write(struct virtio_pci *pci, unsigned reg, uint32_t value)
{
	struct virtio_queue *queue = virtio_pci_selected(pci);

	switch (reg) {
	case LEGACY_DRIVER_FEATURES:
		virtio_legacy_select_features(pci->device, value);
		break;
	case LEGACY_QUEUE_ADDRESS:
		if (queue && value)
			virtio_legacy_queue_enable(queue, (uint64_t)value * VIRTIO_LEGACY_ALIGN);
		else if (queue && queue->enabled)
			status_write(pci, 0); /* that is how a driver takes its queues away */
		break;
	case LEGACY_QUEUE_SELECT:
		pci->queue_select = (uint16_t)value;
		break;
	case LEGACY_QUEUE_NOTIFY:
		virtio_legacy_notify(pci->device, value & 0xffff);
		break;
	case LEGACY_STATUS:
		status_write(pci, (uint8_t)value);
		break;
	case LEGACY_CONFIG_VECTOR:
		atomic_store(&pci->config_vector, virtio_pci_vector(pci, (uint16_t)value));
		break;
	case LEGACY_QUEUE_VECTOR:
		if (queue)
			atomic_store(&pci->queue_vector[queue->index], virtio_pci_vector(pci, (uint16_t)value));
		break;
	}
}

/* Registers are accessed whole; 0: there is none of this size here. */
static bool is_register(unsigned offset, unsigned size)
{
	switch (offset) {
	case LEGACY_DEVICE_FEATURES:
	case LEGACY_DRIVER_FEATURES:
	case LEGACY_QUEUE_ADDRESS:
		return size == 4;
	case LEGACY_QUEUE_SIZE:
	case LEGACY_QUEUE_SELECT:
	case LEGACY_QUEUE_NOTIFY:
	case LEGACY_CONFIG_VECTOR:
	case LEGACY_QUEUE_VECTOR:
		return size == 2;
	case LEGACY_STATUS:
	case LEGACY_ISR:
		return size == 1;
	}
	return false;
}

static uint64_t legacy_read(void *owner, uint64_t offset, unsigned size)
{
	struct virtio_pci *pci = owner;
	unsigned config = config_offset(pci);

	if (offset >= config)
		return virtio_config_read(pci->device, (unsigned)offset - config, size);
	return is_register((unsigned)offset, size) ? register_read(pci, (unsigned)offset) : 0;
}

static void legacy_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_pci *pci = owner;
	unsigned config = config_offset(pci);

	if (offset >= config)
		virtio_config_write(pci->device, (unsigned)offset - config, size, value);
	else if (is_register((unsigned)offset, size))
		register_write(pci, (unsigned)offset, (uint32_t)value);
}

static const struct bus_ops legacy_ops = {.read = legacy_read, .write = legacy_write, .max_size = 4};

int virtio_pci_legacy_init(struct virtio_pci *pci)
{
	struct pci_function *function = &pci->function;
	unsigned size = 32;

	while (size < 24 + pci->device->config_length)
		size *= 2;
	for (unsigned i = 0; i < sizeof transitional / sizeof transitional[0]; i++) {
		if (transitional[i].type != pci->device->ops->id)
			continue;
		pci_set(function, PCI_DEVICE_ID, 2, DEVICE_BASE + transitional[i].id);
		pci_set(function, PCI_REVISION, 1, 0);
		pci_set(function, PCI_SUBSYSTEM + 2, 2, transitional[i].type);
		pci->device->transitional = true;
		return pci_add_bar(function, 0, PCI_BAR_IO, false, size, &legacy_ops, pci);
	}
	return -EINVAL;
}
