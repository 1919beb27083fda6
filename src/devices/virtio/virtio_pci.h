/*
 * Virtio over PCI (virtio 1.2 4.1), modern or transitional: a PCI function in front of a virtio device.
 *
 *	BAR 0   transitional only: the legacy interface's ports (virtio_pci_legacy.c)
 *	BAR 1   MSI-X table and pending bits: vector 0 ... queues (the driver assigns them)
 *	BAR 4   0000h  common configuration (4.1.4.3)
 *	        1000h  interrupt status (4.1.4.5)
 *	        2000h  device configuration (4.1.4.6)
 *	        3000h  notifications (4.1.4.4): queue n at 3000h + 4n
 *
 * The same is reached through configuration space (4.1.4.7), for firmware. All with the device lock held, but for what
 *virtio_device.h says of interrupts.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "devices/pci/msix.h"
#include "devices/pci/pci.h"
#include "devices/virtio/virtio_device.h"

struct virtio_pci {
	struct pci_function function; /* first */
	struct pci_msix msix;
	struct virtio_device *device;
	unsigned access_capability; /* offset of the window in configuration space */
	uint32_t device_feature_select, driver_feature_select;
	uint16_t queue_select;
	uint8_t isr;
	_Atomic uint16_t config_vector;
	_Atomic uint16_t queue_vector[VIRTIO_QUEUES_MAX];
};

/* Plugs `device` (initialized) in at devfn, INTA. `transitional`: for drivers from before virtio 1.0, too. 0 or -errno. */
int virtio_pci_init(struct virtio_pci *pci, struct pci_root *root, unsigned devfn, struct virtio_device *device,
                    bool transitional);
void virtio_pci_destroy(struct virtio_pci *pci);
/* After pci_root_reset(): resets the device, too. */
void virtio_pci_reset(struct virtio_pci *pci);
/* Its registers and the device's, paused; pci_root_state() has the configuration space and comes first. */
void virtio_pci_state(struct virtio_pci *pci, struct state *state);
