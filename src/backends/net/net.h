/*
 * Network back ends: what a network device stands on. A net carries Ethernet frames between one device and the host:
 * libslirp, a tap, a stream socket, a switch of virtual machines. Kinds are one `const struct net_backend` each,
 * explicit list in net.c.
 *
 *	device (virtio_net)                      net.c                              back end
 *	net_send(header, iov) ── check, ── finish what the back end cannot ── send ────> host
 *	client->receive() <──── check, ── finish what the driver cannot ──── net_input() <── host
 *
 * Threads: a net belongs to one event loop's thread (its device's I/O thread). net_send() and net_receive_ready() are
 * called there, and the client's functions run there, never from inside a net_*() function: the device may hold its
 * own lock when it calls, and may take it when it is called. There are no locks in here. net_set_offloads() alone is
 * for any thread. net_open(), net_attach(), net_detach() and net_close() are called on the loop's thread, or while the
 * loop does not run (or is paused).
 *
 * Frames: 14 to NET_FRAME_MAX bytes from the destination address on, without the check sequence. Beside each is a
 * `struct virtio_net_hdr` (virtio 1.2 5.1.6), which says what is unfinished in it: a checksum, the cutting of one large
 * TCP or UDP packet into many. A device may offer its driver all of it, whatever the back end: what the host does not
 * do is done here in software, in both directions. num_buffers is the device's own affair.
 *
 * Flow: a frame that net_send() does not take now is offered again after writable(). A frame that receive() does not
 * take is kept here, and those behind it stay with the host (or are lost, as on any wire), until net_receive_ready().
 *
 * State: a net has none that is saved with the machine. Frames that wait at that moment are lost, as on any wire, and
 * the connections that libslirp holds for the guest end; a loaded machine gets a net that is opened anew.
 *
 * Trust: frames of both sides are hostile. Lengths and headers are checked here once; a bad frame is dropped and
 * counted, and does not disturb its neighbours.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <linux/virtio_net.h>

#include "backends/net/net_options.h"

#define NET_FRAME_MIN 14
#define NET_FRAME_MAX 65553 /* a whole IP packet, Ethernet header, VLAN tag */

/* What the driver may be given unfinished (VIRTIO_NET_F_GUEST_...). Segments need checksums: without CSUM, none. */
#define NET_OFFLOAD_CSUM 0x01
#define NET_OFFLOAD_TSO4 0x02
#define NET_OFFLOAD_TSO6 0x04
#define NET_OFFLOAD_ECN  0x08
#define NET_OFFLOAD_UFO  0x10
#define NET_OFFLOAD_ALL  0x1f

struct event_loop;
struct net;

struct net_client {
	/* Around one or more calls of receive(): one lock, one interrupt. May be NULL. */
	void (*receive_begin)(void *owner);
	void (*receive_end)(void *owner);
	/*
	 * A frame for the driver. `header` is never NULL; it holds what net_set_offloads() allowed, and otherwise zeros
	 * (or VIRTIO_NET_HDR_F_DATA_VALID with CSUM). True: taken, which includes dropped by the device (filter,
	 * buffers that are too small). False: no buffers; it comes again after net_receive_ready(). Both are borrowed.
	 */
	bool (*receive)(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length);
	/* What net_send() refused may be tried again. */
	void (*writable)(void *owner);
	/* net_link() has changed. May be NULL. */
	void (*link_changed)(void *owner, bool up);
	void *owner;
};

struct net_counters {
	uint64_t sent, sent_bytes, sent_dropped;             /* device -> host, frames as the device gave them */
	uint64_t received, received_bytes, received_dropped; /* host -> device, frames as the device took them */
};

/*
 * Opens the back end. The options are copied. NULL after one logged line ("net tap0: not permitted: ..."). What can
 * come and go later (the peer of unix:) need not be there.
 */
struct net *net_open(const struct net_options *options);
void net_close(struct net *net); /* detaches; NULL is fine */

/* From now on frames flow. `client` is copied. 0 or -errno. */
int net_attach(struct net *net, struct event_loop *loop, const struct net_client *client);
/* No client function is called any more; frames that wait are lost. */
void net_detach(struct net *net);

/*
 * One frame from the device, `iov` from the destination address on; borrowed during the call. `header` NULL: nothing
 * to be done. True: taken (sent, or dropped because it or its header is bad). False: the back end is full; writable()
 * will be called.
 */
bool net_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count);
/* The device has buffers again, or takes frames at all: what waits is delivered soon, from the loop. Cheap. */
void net_receive_ready(struct net *net);
/* NET_OFFLOAD_... that receive() may be given; none at first. Any thread. */
void net_set_offloads(struct net *net, unsigned offloads);

/* Is somebody at the other end? */
bool net_link(const struct net *net);
/* The card's address, from the options or made up (net_options.h). */
const uint8_t *net_mac(const struct net *net);
/* Queue pairs that the device is to offer, from the options (1). */
unsigned net_queue_pairs(const struct net *net);
/* The MTU for the device to announce; 0: none of its own (1500). */
unsigned net_mtu(const struct net *net);
/* For messages: "user", "tap0", "unix:/run/passt.sock", "switch:lab". */
const char *net_name(const struct net *net);
void net_counters(const struct net *net, struct net_counters *counters);

/*
 * Two nets that are one cable, for tests: what one sends the other receives. Both on one loop. False: out of memory.
 */
bool net_pair(struct net *ends[2]);
