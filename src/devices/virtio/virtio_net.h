/*
 * Virtio network card (virtio 1.2 5.1) on a network back end (backends/net/net.h): checksum and segmentation offloads,
 * mergeable receive buffers, control queue (receive mode, addresses, VLANs, offloads, queue pairs), several queue
 * pairs.
 *
 * Queues: receive 0, transmit 0, receive 1, ...; the control queue is the last of those that were negotiated: 2 * pairs
 * with MQ, else
 * 2. A frame of a flow is received on the pair that transmitted for that flow last (5.1.6.5.6.1).
 *
 * A frame that finds no buffers stays with the back end until the driver notifies the receive queue; one that the back
 * end does not take stays in the ring. What does not fit into any buffers that could come is dropped.
 */
#pragma once

#include "devices/virtio/virtio_device.h"

#define VIRTIO_NET_PAIRS_MAX  8
#define VIRTIO_NET_QUEUE_SIZE 256
#define VIRTIO_NET_ADDRESSES  64
#define VIRTIO_NET_FLOWS      256

/* Features (5.1.3). */
#define NET_FEATURE_CSUM          (1ull << 0)
#define NET_FEATURE_GUEST_CSUM    (1ull << 1)
#define NET_FEATURE_CTRL_OFFLOADS (1ull << 2)
#define NET_FEATURE_MTU           (1ull << 3)
#define NET_FEATURE_MAC           (1ull << 5)
#define NET_FEATURE_GUEST_TSO4    (1ull << 7)
#define NET_FEATURE_GUEST_TSO6    (1ull << 8)
#define NET_FEATURE_GUEST_ECN     (1ull << 9)
#define NET_FEATURE_GUEST_UFO     (1ull << 10)
#define NET_FEATURE_HOST_TSO4     (1ull << 11)
#define NET_FEATURE_HOST_TSO6     (1ull << 12)
#define NET_FEATURE_HOST_ECN      (1ull << 13)
#define NET_FEATURE_HOST_UFO      (1ull << 14)
#define NET_FEATURE_MRG_RXBUF     (1ull << 15)
#define NET_FEATURE_STATUS        (1ull << 16)
#define NET_FEATURE_CTRL_VQ       (1ull << 17)
#define NET_FEATURE_CTRL_RX       (1ull << 18)
#define NET_FEATURE_CTRL_VLAN     (1ull << 19)
#define NET_FEATURE_CTRL_RX_EXTRA (1ull << 20)
#define NET_FEATURE_MQ            (1ull << 22)
#define NET_FEATURE_CTRL_MAC_ADDR (1ull << 23)

struct net;

/* Which frames the driver wants: the control queue's business (virtio_net_control.c). */
struct virtio_net_filter {
	bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
	bool many[2];      /* the list was longer than we keep: all of its kind pass */
	uint16_t count[2]; /* unicast, multicast */
	uint8_t address[2][VIRTIO_NET_ADDRESSES][6];
	uint64_t vlan[4096 / 64];
};

struct virtio_net {
	struct virtio_device device; /* first */
	struct net *net;
	unsigned pairs_max;
	uint8_t config[12]; /* 5.1.4 */
	/* Queue lock. */
	uint16_t pairs;    /* in use */
	uint64_t offloads; /* guest offload features in force */
	struct virtio_net_filter filter;
	uint8_t flow[VIRTIO_NET_FLOWS]; /* pair of each */
	struct virtio_chain chain;
	struct virtio_token token[VIRTIO_NET_QUEUE_SIZE]; /* of one received frame */
	uint32_t written[VIRTIO_NET_QUEUE_SIZE];
};

/* The back end is opened, not attached; its loop is the host's, and does not run or is paused. 0 or -errno. */
int virtio_net_init(struct virtio_net *card, const struct virtio_host *host, unsigned instance, struct net *net);
/* Detaches; the back end is its owner's to close. The loop does not run or is paused. */
void virtio_net_destroy(struct virtio_net *card);

/* virtio_net_control.c */
void virtio_net_control(struct virtio_net *card, struct virtio_queue *queue);
void virtio_net_filter_reset(struct virtio_net *card);
bool virtio_net_wants(const struct virtio_net *card, const uint8_t *frame, size_t length);
void virtio_net_filter_state(struct virtio_net *card, struct state *state);
/* virtio_net.c: tells the back end which offloads are in force. */
void virtio_net_apply_offloads(struct virtio_net *card);
