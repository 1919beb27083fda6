/*
 * Virtio block device (virtio 1.2 5.2) on a disk (backends/disk/disk.h): several queues, flush, discard, write zeroes,
 * identification, resize.
 *
 * A request is read once, its header into a copy and its data areas as host addresses; the disk moves the data between
 * the image and guest memory. Everything happens on the device's I/O thread. What the host refuses (EIO, ENOSPC, short
 * transfers) reaches the guest as VIRTIO_BLK_S_IOERR.
 *
 * Writes are cached as the disk's cache mode says. A driver that has not negotiated FLUSH, or has switched the write
 * cache off (CONFIG_WCE), gets every write flushed before it is told that it is done.
 */
#pragma once

#include "devices/virtio/virtio_device.h"

#define VIRTIO_BLOCK_SERIAL 20

struct disk;

struct virtio_block_options {
	struct disk *disk;  /* attached to the host's loop; borrowed */
	const char *serial; /* up to 20 characters; NULL: none */
	bool readonly;
	unsigned queues; /* 1 to 16 */
};

struct virtio_block {
	struct virtio_device device; /* first */
	struct disk *disk;
	char serial[VIRTIO_BLOCK_SERIAL];
	bool readonly;
	bool submitting;    /* the disk is being called: it might answer at once */
	uint8_t config[60]; /* 5.2.4 */
	struct virtio_chain chain;
};

/* 0 or -errno. */
int virtio_block_init(struct virtio_block *block, const struct virtio_host *host, unsigned instance,
                      const struct virtio_block_options *options);
void virtio_block_destroy(struct virtio_block *block);
/* The disk has another size now. On the I/O thread, or paused. */
void virtio_block_resized(struct virtio_block *block);
