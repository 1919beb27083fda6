/* The part of every net that does not depend on the back end: checks, offloads in software, flow, counters. */
#include "backends/net/net.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backends/net/net_private.h"
#include "host/log.h"

static int none_open(struct net *net, const struct net_options *options)
{
	return 0;
}

static bool none_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                      size_t length)
{
	return false;
}

static void none_close(struct net *net) {}

static const struct net_backend net_backend_none = {
    .offloads = NET_OFFLOAD_ALL,
    .open = none_open,
    .close = none_close,
    .send = none_send,
};

static const struct net_backend *const backends[] = {
    [NET_NONE] = &net_backend_none, [NET_USER] = &net_backend_user,     [NET_TAP] = &net_backend_tap,
    [NET_UNIX] = &net_backend_unix, [NET_SWITCH] = &net_backend_switch,
};

void net_free(struct net *net)
{
	if (!net)
		return;
	if (net->kick_fd >= 0)
		close(net->kick_fd);
	free(net->held.frame);
	free(net->held.segment);
	free(net->scratch);
	free(net->segment);
	free(net);
}

struct net *net_create(const struct net_backend *backend, const char *name)
{
	struct net *net = calloc(1, sizeof(*net));

	if (!net)
		return NULL;
	net->backend = backend;
	net->queue_pairs = 1;
	snprintf(net->name, sizeof(net->name), "%s", name);
	net->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	net->held.frame = malloc(NET_FRAME_MAX);
	net->scratch = malloc(NET_FRAME_MAX);
	net->held.segment = malloc(NET_SEGMENT_ROOM);
	net->segment = malloc(NET_SEGMENT_ROOM);
	if (net->kick_fd >= 0 && net->held.frame && net->held.segment && net->scratch && net->segment)
		return net;
	net_free(net);
	return NULL;
}

struct net *net_open(const struct net_options *options)
{
	struct net *net;

	if ((unsigned)options->kind >= sizeof(backends) / sizeof(backends[0])) {
		log_error("net: unknown kind %u", options->kind);
		return NULL;
	}
	net = net_create(backends[options->kind], "none");
	if (!net) {
		log_error("net: %s", strerror(errno));
		return NULL;
	}
	memcpy(net->mac, options->mac, sizeof(net->mac));
	if (!options->mac_given)
		net_mac_default(net->mac, options->kind, options->number);
	net->queue_pairs = options->queue_pairs ? options->queue_pairs : 1;
	net->mtu = options->mtu;
	if (net->backend->open(net, options) == 0)
		return net;
	if (net->data)
		net->backend->close(net);
	net_free(net);
	return NULL;
}

void net_close(struct net *net)
{
	if (!net)
		return;
	net_detach(net);
	net->backend->close(net);
	net_free(net);
}

/* ---- the loop ---- */

static void kick(struct net *net)
{
	uint64_t one = 1;

	/* It fails only when the counter is full, and then the loop comes anyway. */
	while (net->loop && write(net->kick_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void net_kick(struct net *net)
{
	if (!net->kick_backend)
		kick(net);
	net->kick_backend = true;
}

void net_receive_ready(struct net *net)
{
	if (net->receive_blocked && !net->kick_device) {
		net->kick_device = true;
		kick(net);
	}
}

/* Gives the device one finished frame. */
static bool deliver(struct net *net, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	if (!net->in_burst) {
		net->in_burst = true;
		if (net->client.receive_begin)
			net->client.receive_begin(net->client.owner);
	}
	if (!net->client.receive(net->client.owner, header, frame, length))
		return false;
	net->counters.received++;
	net->counters.received_bytes += length;
	return true;
}

static bool may_receive_whole(const struct virtio_net_hdr *header, unsigned offloads)
{
	switch (header->gso_type) {
	case VIRTIO_NET_HDR_GSO_NONE:
		return true;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return offloads & NET_OFFLOAD_TSO4;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return offloads & NET_OFFLOAD_TSO6;
	case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
		return offloads & NET_OFFLOAD_TSO4 && offloads & NET_OFFLOAD_ECN;
	case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
		return offloads & NET_OFFLOAD_TSO6 && offloads & NET_OFFLOAD_ECN;
	default:
		return offloads & NET_OFFLOAD_UFO;
	}
}

/* Delivers what is held, or as much as the device takes. True: all of it. */
static bool deliver_held(struct net *net)
{
	static const struct virtio_net_hdr plain;
	struct net_held *held = &net->held;

	if (!held->used)
		return true;
	if (held->cutting) {
		/* One segment is ready. */
		while (held->length > 0) {
			if (!deliver(net, &plain, held->segment, held->length))
				return false;
			held->length = offload_cut(&held->cutter, held->segment);
		}
	} else if (!deliver(net, &held->header, held->frame, held->length)) {
		return false;
	}
	held->used = held->cutting = false;
	return true;
}

static void hold(struct net *net, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	memcpy(net->held.frame, frame, length);
	net->held.header = *header;
	net->held.length = length;
	net->held.used = true;
	net->receive_blocked = true;
}

bool net_input_ready(const struct net *net)
{
	return net->loop && !net->receive_blocked;
}

/* Cuts a packet that the driver does not take whole. */
static void input_cut(struct net *net, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct net_held *held = &net->held;

	memcpy(held->frame, frame, length);
	offload_cutter_init(&held->cutter, header, held->frame, length);
	held->length = offload_cut(&held->cutter, held->segment);
	held->used = held->cutting = true;
	net->receive_blocked = !deliver_held(net);
}

void net_input(struct net *net, const struct virtio_net_hdr *given, uint8_t *frame, size_t length)
{
	struct virtio_net_hdr header = {0};
	unsigned offloads = atomic_load_explicit(&net->offloads, memory_order_relaxed);

	if (given)
		header = *given;
	if (!net_input_ready(net) || length < NET_FRAME_MIN || length > NET_FRAME_MAX ||
	    !offload_valid(&header, frame, length)) {
		net->counters.received_dropped++;
		return;
	}
	/* What a driver is told about a packet that is whole: a checksum has been seen to be right. */
	if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE && !(header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM))
		header = (struct virtio_net_hdr){.flags = header.flags & VIRTIO_NET_HDR_F_DATA_VALID};
	if (!(offloads & NET_OFFLOAD_CSUM))
		offloads = 0;
	if (!may_receive_whole(&header, offloads)) {
		offload_finish_checksum(&header, frame, length);
		input_cut(net, &header, frame, length);
		return;
	}
	if (!(offloads & NET_OFFLOAD_CSUM))
		offload_finish_checksum(&header, frame, length);
	else
		header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID;
	if (!deliver(net, &header, frame, length))
		hold(net, &header, frame, length);
}

void net_input_end(struct net *net)
{
	if (!net->in_burst)
		return;
	net->in_burst = false;
	if (net->client.receive_end)
		net->client.receive_end(net->client.owner);
}

static void kicked(void *owner, uint32_t events)
{
	struct net *net = owner;
	bool for_device = net->kick_device, for_backend = net->kick_backend;
	uint64_t count;

	if (read(net->kick_fd, &count, sizeof(count)) < 0)
		return; /* taken already */
	net->kick_device = net->kick_backend = false;
	if (for_device && net->receive_blocked && deliver_held(net)) {
		net->receive_blocked = false;
		if (net->backend->resume)
			net->backend->resume(net);
	}
	if (for_backend && net->backend->kicked)
		net->backend->kicked(net);
	net_input_end(net);
}

int net_attach(struct net *net, struct event_loop *loop, const struct net_client *client)
{
	int error = 0;

	if (net->loop)
		return -EBUSY;
	net->client = *client;
	net->loop = loop;
	net->send_blocked = net->receive_blocked = net->kick_device = net->kick_backend = false;
	net->held.used = net->held.cutting = false;
	net->kick_source = event_source_add(loop, net->kick_fd, EPOLLIN, kicked, net);
	if (!net->kick_source)
		error = -errno;
	else if (net->backend->attach)
		error = net->backend->attach(net);
	if (error)
		net_detach(net);
	return error;
}

void net_detach(struct net *net)
{
	if (!net->loop)
		return;
	if (net->backend->detach)
		net->backend->detach(net);
	event_source_remove(net->kick_source);
	net->kick_source = NULL;
	net->loop = NULL;
}

/* ---- device -> host ---- */

void net_gather(uint8_t *frame, const struct iovec *iov, unsigned iov_count)
{
	for (unsigned i = 0; i < iov_count; i++) {
		memcpy(frame, iov[i].iov_base, iov[i].iov_len);
		frame += iov[i].iov_len;
	}
}

/* 0: no frame of that length. */
static size_t frame_length(const struct iovec *iov, unsigned iov_count)
{
	size_t length = 0;

	for (unsigned i = 0; i < iov_count; i++) {
		if (iov[i].iov_len > NET_FRAME_MAX - length)
			return 0;
		length += iov[i].iov_len;
	}
	return length < NET_FRAME_MIN ? 0 : length;
}

static bool send_cut(struct net *net, const struct virtio_net_hdr *header, size_t length)
{
	static const struct virtio_net_hdr plain;
	struct offload_cutter cutter;
	struct iovec iov = {.iov_base = net->segment};
	bool sent = true;

	offload_cutter_init(&cutter, header, net->scratch, length);
	while ((iov.iov_len = offload_cut(&cutter, net->segment)) > 0)
		sent &= net->backend->send(net, &plain, &iov, 1, iov.iov_len);
	return sent;
}

/* Finishes what the back end cannot. One that can do it all passes it on to somebody who looks closer. */
static bool send_unfinished(struct net *net, struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                            size_t length)
{
	struct iovec linear = {.iov_base = net->scratch, .iov_len = length};

	if (net->backend->offloads == NET_OFFLOAD_ALL)
		return offload_plausible(header, length) && net->backend->send(net, header, iov, iov_count, length);
	net_gather(net->scratch, iov, iov_count);
	if (!offload_valid(header, net->scratch, length))
		return false;
	offload_finish_checksum(header, net->scratch, length);
	if (may_receive_whole(header, net->backend->offloads))
		return net->backend->send(net, header, &linear, 1, length);
	return send_cut(net, header, length);
}

bool net_send(struct net *net, const struct virtio_net_hdr *given, const struct iovec *iov, unsigned iov_count)
{
	struct virtio_net_hdr header = {0};
	size_t length = frame_length(iov, iov_count);
	bool sent = false;

	if (net->loop && net->link && net->backend->can_send && !net->backend->can_send(net)) {
		net->send_blocked = true;
		return false;
	}
	if (given)
		header = *given;
	header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
	if (length > 0 && net->loop && net->link) {
		if (header.flags == 0 && header.gso_type == VIRTIO_NET_HDR_GSO_NONE) {
			header = (struct virtio_net_hdr){0};
			sent = net->backend->send(net, &header, iov, iov_count, length);
		} else {
			sent = send_unfinished(net, &header, iov, iov_count, length);
		}
	}
	net->counters.sent += sent;
	net->counters.sent_bytes += sent ? length : 0;
	net->counters.sent_dropped += !sent;
	return true;
}

void net_writable(struct net *net)
{
	if (!net->send_blocked)
		return;
	net->send_blocked = false;
	if (net->client.writable)
		net->client.writable(net->client.owner);
}

/* ---- what it is ---- */

void net_set_offloads(struct net *net, unsigned offloads)
{
	atomic_store_explicit(&net->offloads, offloads, memory_order_relaxed);
	if (net->backend->set_offloads)
		net->backend->set_offloads(net, offloads & NET_OFFLOAD_CSUM ? offloads : 0);
}

void net_set_link(struct net *net, bool up)
{
	if (net->link == up)
		return;
	net->link = up;
	if (net->loop && net->client.link_changed)
		net->client.link_changed(net->client.owner, up);
	if (!up)
		net_writable(net); /* what is sent now is lost, but nobody waits */
}

bool net_link(const struct net *net)
{
	return net->link;
}

const uint8_t *net_mac(const struct net *net)
{
	return net->mac;
}

unsigned net_queue_pairs(const struct net *net)
{
	return net->queue_pairs;
}

unsigned net_mtu(const struct net *net)
{
	return net->mtu;
}

const char *net_name(const struct net *net)
{
	return net->name;
}

void net_counters(const struct net *net, struct net_counters *counters)
{
	*counters = net->counters;
}
