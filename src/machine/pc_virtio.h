/*
 * The PC's virtio devices: which there are, in which PCI slot, and the I/O thread that they work on. Part of the parts
 * list (pc.c).
 */
#pragma once

#include "devices/virtio/virtio_balloon.h"
#include "devices/virtio/virtio_block.h"
#include "devices/virtio/virtio_console.h"
#include "devices/virtio/virtio_net.h"
#include "devices/virtio/virtio_pci.h"
#include "devices/virtio/virtio_rng.h"
#include "machine/machine.h"

struct io_thread;
struct state;

struct pc_disk {
	struct disk *disk;
	struct virtio_block block;
	struct virtio_pci pci;
};

struct pc_net {
	struct net *net;
	struct virtio_net card;
	struct virtio_pci pci;
};

struct pc_virtio {
	struct io_thread *io;
	struct virtio_host host;
	struct virtio_rng rng;
	struct virtio_pci rng_pci;
	struct virtio_balloon balloon;
	struct virtio_pci balloon_pci;
	struct virtio_console console;
	struct virtio_pci console_pci;
	struct pc_disk disk[MACHINE_DISKS_MAX];
	unsigned disk_count;
	struct pc_net net[MACHINE_NETS_MAX];
	unsigned net_count;
	/* All of them, in the order of their slots. */
	struct virtio_pci *all[3 + MACHINE_DISKS_MAX + MACHINE_NETS_MAX];
	unsigned count;
};

struct pci_root;

/* As the machine's options say. 0 or -errno (what failed may be destroyed). -ECANCELED: an image or
 * network could not be opened, and has logged why. */
int pc_virtio_create(struct pc_virtio *virtio, struct machine *machine, struct pci_root *root);
/* Waits for what is in flight, flushes and closes the images. */
void pc_virtio_destroy(struct pc_virtio *virtio);
void pc_virtio_reset(struct pc_virtio *virtio);
/* After pci_root_state(). Paused. */
void pc_virtio_state(struct pc_virtio *virtio, struct state *state);
/* Nothing is in flight and nothing changes guest memory from when pause returns. Without the device lock. */
void pc_virtio_pause(struct pc_virtio *virtio);
void pc_virtio_resume(struct pc_virtio *virtio);
