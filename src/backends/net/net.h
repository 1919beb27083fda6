/*
 * Network back ends: what a network card is connected to (user mode, tap, a socket, a switch). A back end carries
 *Ethernet frames without FCS; a frame comes with a header that says what is left to do about checksums and
 *segmentation.
 *
 *	card                       back end
 *	net_send() ──────────────> ops->send       0, or -EAGAIN: later; then client.writable
 *	client.receive <────────── net_receive()   true, or false: later; then ops->accept_input
 *	                           net_set_link()  client.link_changed
 *
 * Threads: everything on the event loop's thread that the back end was attached to, which is the card's I/O thread. No
 *lock is held when `receive`, `writable` and `link_changed` are called. A back end may call `receive` from inside of
 *send (an answer to an ARP request, say) only if the card allows it: it does not; put it off to the loop.
 *
 * A back end embeds `struct net` as its first member and is made by a function of its own; frames from outside, like
 *those of the guest, are hostile. NET_FRAME_MAX bounds both.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The longest frame with segmentation offload: 64 KiB of IP packet and an Ethernet header with a VLAN tag. */
#define NET_FRAME_MAX (65535 + 18)

/* The header: little-endian, as virtio 1.2 5.1.6 and Linux's tun devices with IFF_VNET_HDR have it (12 bytes). */
struct net_header {
	uint8_t flags;    /* NET_NEEDS_CHECKSUM, NET_CHECKSUM_VALID */
	uint8_t gso_type; /* NET_GSO_... */
	uint16_t header_length;
	uint16_t gso_size;
	uint16_t checksum_start, checksum_offset;
	uint16_t buffers; /* the card's business */
};

#define NET_NEEDS_CHECKSUM 1u /* from checksum_start to the end, stored at checksum_start + checksum_offset */
#define NET_CHECKSUM_VALID 2u
#define NET_GSO_NONE       0u
#define NET_GSO_TCPV4      1u
#define NET_GSO_UDP        3u
#define NET_GSO_TCPV6      4u
#define NET_GSO_UDP_L4     5u
#define NET_GSO_ECN        0x80u

/* What may be left undone in a frame. */
#define NET_OFFLOAD_CHECKSUM 1u /* NET_NEEDS_CHECKSUM */
#define NET_OFFLOAD_TSO4     2u
#define NET_OFFLOAD_TSO6     4u
#define NET_OFFLOAD_ECN      8u /* TSO with ECN */
#define NET_OFFLOAD_USO      16u

struct event_loop;
struct net;

struct net_ops {
	const char *name; /* "user", "tap" ... */
	/*
	 * Takes a frame (copies or sends it). `length` is the sum of the iovecs, 14 to NET_FRAME_MAX. 0: taken, or
	 * dropped as networks may; -EAGAIN: no room now. Guest memory is behind the iovecs: it may change while you
	 * look.
	 */
	int (*send)(struct net *net, const struct net_header *header, const struct iovec *iov, unsigned count,
	            size_t length);
	/* The card has room again, after net_receive() returned false. May be NULL. */
	void (*accept_input)(struct net *net);
	/* Which offloads the card's driver takes in received frames, from now on; a subset of offloads_receive. May be
	 * NULL. */
	void (*set_offloads)(struct net *net, unsigned offloads);
	/* Connects to the loop: from now on frames come. 0 or -errno (logged). */
	int (*attach)(struct net *net, struct event_loop *loop);
	/* On the loop's thread or with the loop not running. */
	void (*destroy)(struct net *net);
};

struct net_client {
	/* False: no room; the frame is not taken. */
	bool (*receive)(void *owner, const struct net_header *header, const struct iovec *iov, unsigned count,
	                size_t length);
	void (*writable)(void *owner);
	void (*link_changed)(void *owner, bool up);
	void *owner;
};

struct net {
	const struct net_ops *ops;
	unsigned offloads_send;    /* in frames that send() takes; constant */
	unsigned offloads_receive; /* in frames that it can deliver; constant */
	bool link_down;            /* by net_set_link() */
	struct net_client client;  /* by net_connect() */
};

/* ---- for the card ---- */

static inline void net_connect(struct net *net, const struct net_client *client)
{
	net->client = *client;
}

static inline int net_attach(struct net *net, struct event_loop *loop)
{
	return net->ops->attach(net, loop);
}

static inline void net_destroy(struct net *net)
{
	if (net)
		net->ops->destroy(net);
}

static inline int net_send(struct net *net, const struct net_header *header, const struct iovec *iov, unsigned count,
                           size_t length)
{
	return net->ops->send(net, header, iov, count, length);
}

static inline void net_accept_input(struct net *net)
{
	if (net->ops->accept_input)
		net->ops->accept_input(net);
}

static inline void net_set_offloads(struct net *net, unsigned offloads)
{
	if (net->ops->set_offloads)
		net->ops->set_offloads(net, offloads & net->offloads_receive);
}

/* ---- for the back end ---- */

/* `header` NULL: nothing is left to do. False: keep the frame and wait for accept_input. Nobody connected: it is
 * dropped. */
static inline bool net_receive(struct net *net, const struct net_header *header, const struct iovec *iov,
                               unsigned count, size_t length)
{
	static const struct net_header plain;

	if (!net->client.receive)
		return true;
	return net->client.receive(net->client.owner, header ? header : &plain, iov, count, length);
}

static inline void net_writable(struct net *net)
{
	if (net->client.writable)
		net->client.writable(net->client.owner);
}

static inline void net_set_link(struct net *net, bool up)
{
	net->link_down = !up;
	if (net->client.link_changed)
		net->client.link_changed(net->client.owner, up);
}
