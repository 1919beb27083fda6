/*
 * Between net.c and the back ends. All on the loop's thread.
 */
#pragma once

#include "backends/net/net.h"
#include "backends/net/offload.h"
#include "host/event_loop.h"

#define NET_SEGMENT_ROOM (NET_FRAME_MAX + 64)
#define NET_BURST        64 /* frames that a back end reads before it lets others have their turn */

struct net_backend {
	/* What it can send unfinished: NET_OFFLOAD_ALL, or a part without CSUM: then the checksum of the whole is
	 * right. */
	unsigned offloads;
	int (*open)(struct net *net, const struct net_options *options); /* sets name, data; logs its errors */
	int (*attach)(struct net *net);                                  /* NULL: nothing to do */
	void (*detach)(struct net *net);                                 /* may be NULL */
	void (*close)(struct net *net);                                  /* also after a failed open, if data is set */
	/* Is there room for a frame, even cut into many? NULL: always. When not: net_writable() later. */
	bool (*can_send)(struct net *net);
	/* Takes or loses it. Only after can_send(). Never calls into net.c but for net_kick(). False: lost. */
	bool (*send)(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
	             size_t length);
	/* net_input_ready() has become true. From the loop, between net_input_begin() and _end(). */
	void (*resume)(struct net *net);
	void (*kicked)(struct net *net);                          /* after net_kick(); likewise; may be NULL */
	void (*set_offloads)(struct net *net, unsigned offloads); /* any thread; may be NULL */
};

/* A frame that waits for the device, perhaps in the middle of being cut. */
struct net_held {
	bool used, cutting;
	struct virtio_net_hdr header;
	size_t length;
	struct offload_cutter cutter;
	uint8_t *frame;   /* NET_FRAME_MAX */
	uint8_t *segment; /* the one that comes next, of `length`; NET_SEGMENT_ROOM */
};

struct net {
	const struct net_backend *backend;
	void *data; /* the back end's */
	char name[128];
	uint8_t mac[6];
	unsigned queue_pairs, mtu;
	struct event_loop *loop; /* NULL: detached */
	struct net_client client;
	bool link;
	bool send_blocked;    /* the device waits for writable() */
	bool receive_blocked; /* we wait for net_receive_ready() */
	bool in_burst;        /* receive_begin() was called */
	bool kick_backend, kick_device;
	int kick_fd;
	struct event_source *kick_source;
	_Atomic unsigned offloads; /* what receive() may be given */
	struct net_held held;
	uint8_t *scratch; /* NET_FRAME_MAX: a frame that is finished on its way to the host */
	uint8_t *segment; /* a part of it; NET_SEGMENT_ROOM */
	struct net_counters counters;
};

extern const struct net_backend net_backend_user, net_backend_tap, net_backend_unix, net_backend_switch;
extern const struct net_backend net_backend_slirp; /* behind net_backend_user, in its process */

/* Without a back end's open(): for net_pair() and tests. NULL: out of memory. */
struct net *net_create(const struct net_backend *backend, const char *name);
void net_free(struct net *net); /* likewise; NULL is fine */

/*
 * Host -> device. A back end reads while net_input_ready(), gives each frame to net_input(), which always takes it (and
 * may change it), and ends a burst with net_input_end(). `header` NULL: nothing to be done; otherwise it is hostile.
 */
bool net_input_ready(const struct net *net);
void net_input(struct net *net, const struct virtio_net_hdr *header, uint8_t *frame, size_t length);
void net_input_end(struct net *net);
/* can_send() has become true again. */
void net_writable(struct net *net);
/* Calls kicked() soon, from the loop. */
void net_kick(struct net *net);
void net_set_link(struct net *net, bool up);
/* Copies a frame together. `length` is the sum of the iovecs. */
void net_gather(uint8_t *frame, const struct iovec *iov, unsigned iov_count);
