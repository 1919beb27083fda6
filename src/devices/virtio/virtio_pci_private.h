/* What virtio_pci.c and virtio_pci_legacy.c share. With the device lock held. */
#pragma once

#include "devices/virtio/virtio_pci.h"

#define NO_VECTOR 0xffffu

/* The queue that the driver has selected, or NULL. */
struct virtio_queue *virtio_pci_selected(struct virtio_pci *pci);
/* Reads the interrupt status, which clears it. */
uint8_t virtio_pci_isr(struct virtio_pci *pci);
/* The vector as it reads back: one that is not there is none (4.1.5.1.2). */
uint16_t virtio_pci_vector(const struct virtio_pci *pci, uint16_t vector);
/* After a reset of the device. */
void virtio_pci_after_reset(struct virtio_pci *pci);

/* The legacy interface: BAR 0, identification. Before the function is added. 0 or -errno. */
int virtio_pci_legacy_init(struct virtio_pci *pci);
