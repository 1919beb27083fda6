/*
 * Virtio entropy device (virtio 1.2 5.4): fills buffers from the host's random number generator.
 */
#pragma once

#include "devices/virtio/virtio_device.h"

struct virtio_rng {
	struct virtio_device device;
	struct virtio_chain chain;
};

/* 0 or -errno. */
int virtio_rng_init(struct virtio_rng *rng, const struct virtio_host *host, unsigned instance);
void virtio_rng_destroy(struct virtio_rng *rng);
