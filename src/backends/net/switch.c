/*
 * --net switch:NAME: the machines of this user on this host that say the same name, joined by Ethernet without any
 * other way out. There is no master: each machine holds a connection to each other one and is its own switch, so that
 * whichever of them leaves or dies, the others do not notice.
 *
 *	 A ───── B      joining: listen under a name of one's own, then connect to all that are there (rendezvous.h).
 *	  ╲     ╱       Two who join at once may find each other: of two connections both close the one whose
 *	   ╲   ╱        initiator has the greater number.
 *	     C
 *
 * A message is a packet on a SEQPACKET socket: `struct message`, then the frame. The first one of either side is HELLO
 * with its number. Frames carry their virtio_net_hdr, so that large packets cross whole and unfinished; net.c at the
 * receiver checks them and finishes what its driver does not take.
 *
 * Flow: when a member does not read, frames for it wait here, and then in the device. One that has read nothing for
 * STALL_MS (it is stopped) loses its frames from then on, and no one else waits for it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "backends/net/frame_queue.h"
#include "backends/net/mac_table.h"
#include "backends/net/net_private.h"
#include "backends/net/rendezvous.h"
#include "host/log.h"

#define PEERS_MAX    64
#define PEER_BURST   16           /* messages from one member before the next one's turn */
#define QUEUE_FULL   (512u << 10) /* bytes for one member, from which on the device waits */
#define QUEUE_MAX    (1u << 20)   /* ... from which on frames for it are lost */
#define STALL_MS     100
#define TICK_MS      50   /* while something waits */
#define SCAN_MS      5000 /* for members that could not be reached when we came */
#define HELLO_MS     5000 /* a connection without HELLO is closed */
#define SOCKET_ROOM  (4 << 20)
#define IOVECS_MAX   64
#define MESSAGE_WORD 0x72330001 /* who speaks, and the version */

enum message_kind { MESSAGE_HELLO = 1, MESSAGE_FRAME = 2 };

struct message {
	uint32_t word;
	uint16_t kind;
	struct virtio_net_hdr header; /* FRAME */
	uint64_t id;                  /* HELLO */
};
_Static_assert(sizeof(struct message) == 24, "no padding: it goes to others");

struct peer {
	struct net *net;
	int fd; /* -1: a free place */
	bool connected_by_us, greeted;
	uint64_t id;     /* valid for those that we connected to, and those that have greeted */
	uint32_t number; /* never the same again: the switch's port */
	struct event_source *source;
	struct frame_queue outgoing;
	bool stalled;
	int64_t since; /* greeted: when it last took a frame, while there are some; before: when it came. ms */
};

struct ether_switch {
	struct net *net;
	struct rendezvous rendezvous;
	struct event_source *listener;
	int timer;
	struct event_source *timer_source;
	bool ticking;
	bool full_told;
	int64_t next_scan;
	uint32_t next_number;
	unsigned first; /* whose turn it is after the device was full */
	struct peer peer[PEERS_MAX];
	struct mac_table macs;
	uint8_t *frame; /* NET_FRAME_MAX */
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

/* ---- members ---- */

static void peer_watch(struct peer *peer)
{
	bool reads = !peer->greeted || net_input_ready(peer->net);

	if (peer->source)
		event_source_change(peer->source, (reads ? EPOLLIN : 0u) | (peer->outgoing.count ? EPOLLOUT : 0u));
}

static void peer_drop(struct peer *peer)
{
	struct ether_switch *bridge = peer->net->data;

	if (peer->fd < 0)
		return;
	event_source_remove(peer->source);
	peer->source = NULL;
	close(peer->fd);
	peer->fd = -1;
	frame_queue_clear(&peer->outgoing);
	mac_table_forget_port(&bridge->macs, peer->number);
}

static bool can_send(const struct ether_switch *bridge)
{
	for (unsigned i = 0; i < PEERS_MAX; i++)
		if (bridge->peer[i].fd >= 0 && !bridge->peer[i].stalled && bridge->peer[i].outgoing.bytes >= QUEUE_FULL)
			return false;
	return true;
}

/* 50 ms while something waits for its time, or else 5 s. */
static void set_tick(struct ether_switch *bridge, bool ticking)
{
	unsigned ms = ticking ? TICK_MS : SCAN_MS;
	struct itimerspec time = {
	    .it_value = {ms / 1000, ms % 1000 * 1000000l},
	    .it_interval = {ms / 1000, ms % 1000 * 1000000l},
	};

	if (ticking == bridge->ticking)
		return;
	bridge->ticking = ticking;
	timerfd_settime(bridge->timer, 0, &time, NULL);
}

/* 1: sent, 0: not now, -1: the member is gone. */
static int peer_write(struct peer *peer, const struct message *message, const struct iovec *iov, unsigned iov_count)
{
	struct iovec all[1 + IOVECS_MAX] = {{(void *)(uintptr_t)message, sizeof(*message)}};
	struct msghdr packet = {.msg_iov = all, .msg_iovlen = 1 + iov_count};

	if (iov_count)
		memcpy(all + 1, iov, iov_count * sizeof(*iov));
	for (;;) {
		if (sendmsg(peer->fd, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 1;
		if (errno != EINTR)
			return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? 0 : -1;
	}
}

static struct message frame_message(const struct virtio_net_hdr *header)
{
	return (struct message){.word = MESSAGE_WORD, .kind = MESSAGE_FRAME, .header = *header};
}

/* What waits for it. A connection that is gone is noticed by reading. */
static void peer_flush(struct peer *peer)
{
	struct queued_frame *frame;

	while ((frame = peer->outgoing.first)) {
		struct message message = frame_message(&frame->header);
		struct iovec iov = {frame->data, frame->length};

		if (peer_write(peer, &message, &iov, 1) == 0)
			return;
		free(frame_queue_pop(&peer->outgoing));
		peer->since = now_ms();
		peer->stalled = false;
	}
}

static bool peer_send(struct peer *peer, const struct virtio_net_hdr *header, const struct iovec *iov,
                      unsigned iov_count, size_t length)
{
	struct ether_switch *bridge = peer->net->data;
	struct message message = frame_message(header);

	if (peer->outgoing.count == 0 && peer_write(peer, &message, iov, iov_count) != 0)
		return true;
	if (peer->stalled || peer->outgoing.bytes + length > QUEUE_MAX)
		return false;
	if (peer->outgoing.count == 0)
		peer->since = now_ms();
	if (!frame_queue_push(&peer->outgoing, header, iov, iov_count, length))
		return false;
	peer_watch(peer);
	set_tick(bridge, true);
	return true;
}

/* ---- the switch ---- */

static bool switch_can_send(struct net *net)
{
	return can_send(net->data);
}

static bool switch_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov,
                        unsigned iov_count, size_t length)
{
	struct ether_switch *bridge = net->data;
	struct iovec linear;
	uint8_t mac[6];
	uint32_t port = 0;
	bool known;

	/* The address is read once: the driver may write meanwhile. */
	if (iov_count > IOVECS_MAX || iov->iov_len < sizeof(mac)) {
		net_gather(bridge->frame, iov, iov_count);
		linear = (struct iovec){bridge->frame, length};
		iov = &linear;
		iov_count = 1;
	}
	memcpy(mac, iov->iov_base, sizeof(mac));
	known = !(mac[0] & 1) && mac_table_find(&bridge->macs, mac, now_ms(), &port);
	for (unsigned i = 0; i < PEERS_MAX; i++) {
		struct peer *peer = &bridge->peer[i];

		if (peer->fd < 0 || !peer->greeted || (known && peer->number != port))
			continue;
		if (!peer_send(peer, header, iov, iov_count, length) && known)
			return false;
	}
	return true;
}

static struct peer *find_other(struct ether_switch *bridge, const struct peer *peer)
{
	for (unsigned i = 0; i < PEERS_MAX; i++) {
		struct peer *other = &bridge->peer[i];

		if (other != peer && other->fd >= 0 && other->id == peer->id &&
		    (other->greeted || other->connected_by_us))
			return other;
	}
	return NULL;
}

/* False: drop it. */
static bool peer_hello(struct peer *peer, uint64_t id)
{
	struct ether_switch *bridge = peer->net->data;
	struct peer *other;

	if (id == bridge->rendezvous.id || (peer->connected_by_us && id != peer->id))
		return false;
	peer->id = id;
	peer->greeted = true;
	other = find_other(bridge, peer);
	if (!other)
		return true;
	/* Two of the same direction: the older one's other end is no more. */
	if (other->connected_by_us == peer->connected_by_us) {
		peer_drop(other);
		return true;
	}
	struct peer *ours = peer->connected_by_us ? peer : other, *theirs = ours == peer ? other : peer;
	struct peer *loser = bridge->rendezvous.id > id ? ours : theirs;

	if (loser == peer)
		return false;
	peer_drop(other);
	return true;
}

/* One message has come into `message` and bridge->frame. False: no member speaks like that. */
static bool peer_message(struct peer *peer, const struct message *message, size_t length)
{
	struct ether_switch *bridge = peer->net->data;

	if (length < sizeof(*message) || message->word != MESSAGE_WORD)
		return false;
	length -= sizeof(*message);
	if (!peer->greeted)
		return message->kind == MESSAGE_HELLO && length == 0 && peer_hello(peer, message->id);
	if (message->kind != MESSAGE_FRAME || length < NET_FRAME_MIN || length > NET_FRAME_MAX)
		return false;
	mac_table_learn(&bridge->macs, bridge->frame + 6, peer->number, now_ms());
	net_input(peer->net, &message->header, bridge->frame, length);
	return true;
}

/* Returns whether there may be more. */
static bool peer_read(struct peer *peer)
{
	struct ether_switch *bridge = peer->net->data;

	for (unsigned i = 0; i < PEER_BURST; i++) {
		struct message message;
		struct iovec iov[2] = {{&message, sizeof(message)}, {bridge->frame, NET_FRAME_MAX}};
		struct msghdr packet = {.msg_iov = iov, .msg_iovlen = 2};
		ssize_t length;

		if (peer->greeted && !net_input_ready(peer->net))
			return true;
		length = recvmsg(peer->fd, &packet, MSG_DONTWAIT);
		if (length < 0 && (errno == EAGAIN || errno == EINTR))
			return false;
		if (length <= 0 || packet.msg_flags & MSG_TRUNC || !peer_message(peer, &message, (size_t)length)) {
			peer_drop(peer);
			return false;
		}
	}
	return true;
}

static void peer_ready(void *owner, uint32_t events)
{
	struct peer *peer = owner;
	struct net *net = peer->net;

	if (events & EPOLLOUT)
		peer_flush(peer);
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		peer_read(peer);
	if (peer->fd >= 0)
		peer_watch(peer);
	net_input_end(net);
	if (can_send(net->data))
		net_writable(net);
}

/* A new connection, in either direction. */
static void peer_add(struct ether_switch *bridge, int fd, bool connected_by_us, uint64_t id)
{
	struct message hello = {.word = MESSAGE_WORD, .kind = MESSAGE_HELLO, .id = bridge->rendezvous.id};
	struct peer *peer = NULL;
	int room = SOCKET_ROOM;

	for (unsigned i = 0; i < PEERS_MAX && !peer; i++)
		if (bridge->peer[i].fd < 0)
			peer = &bridge->peer[i];
	if (!peer) {
		if (!bridge->full_told)
			log_warning("net %s: more than %u others: some are not reached", bridge->net->name, PEERS_MAX);
		bridge->full_told = true;
		close(fd);
		return;
	}
	*peer = (struct peer){
	    .net = bridge->net,
	    .fd = fd,
	    .connected_by_us = connected_by_us,
	    .id = id,
	    .number = bridge->next_number++,
	    .since = now_ms(),
	};
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)); /* as much as the host allows */
	peer->source = event_source_add(bridge->net->loop, fd, EPOLLIN, peer_ready, peer);
	if (!peer->source || peer_write(peer, &hello, NULL, 0) != 1)
		peer_drop(peer);
	else
		set_tick(bridge, true);
}

static void accept_peers(void *owner, uint32_t events)
{
	struct ether_switch *bridge = owner;

	for (unsigned i = 0; i < PEER_BURST; i++) {
		int fd = rendezvous_accept(&bridge->rendezvous);

		if (fd >= 0)
			peer_add(bridge, fd, false, 0);
		else if (fd != -EPERM)
			return;
	}
}

static bool connect_to(void *owner, uint64_t id)
{
	struct ether_switch *bridge = owner;
	struct peer wanted = {.id = id};
	int fd;

	if (find_other(bridge, &wanted))
		return true;
	fd = rendezvous_connect(&bridge->rendezvous, id);
	if (fd >= 0)
		peer_add(bridge, fd, true, id);
	return true;
}

static void scan(struct ether_switch *bridge)
{
	rendezvous_scan(&bridge->rendezvous, connect_to, bridge);
	bridge->next_scan = now_ms() + SCAN_MS;
}

/* Who has read nothing for long, who has never said hello; who was not there before. */
static void time_out(void *owner, uint32_t events)
{
	struct ether_switch *bridge = owner;
	bool waiting = false;
	int64_t now = now_ms();
	uint64_t count;

	if (read(bridge->timer, &count, sizeof(count)) < 0)
		return;
	for (unsigned i = 0; i < PEERS_MAX; i++) {
		struct peer *peer = &bridge->peer[i];

		if (peer->fd < 0)
			continue;
		if (!peer->greeted && now - peer->since > HELLO_MS)
			peer_drop(peer);
		else if (peer->outgoing.count > 0 && now - peer->since > STALL_MS)
			peer->stalled = true;
		waiting |= peer->fd >= 0 && (!peer->greeted || (peer->outgoing.count > 0 && !peer->stalled));
	}
	if (now >= bridge->next_scan)
		scan(bridge);
	set_tick(bridge, waiting);
	if (can_send(bridge))
		net_writable(bridge->net);
}

/* The device takes frames again: everybody in turn. */
static void switch_resume(struct net *net)
{
	struct ether_switch *bridge = net->data;
	unsigned first = bridge->first++;

	for (unsigned i = 0; i < PEERS_MAX; i++) {
		struct peer *peer = &bridge->peer[(first + i) % PEERS_MAX];

		if (peer->fd >= 0 && net_input_ready(net))
			peer_read(peer);
		if (peer->fd >= 0)
			peer_watch(peer);
	}
}

/* ---- life ---- */

static int switch_open(struct net *net, const struct net_options *options)
{
	struct ether_switch *bridge = calloc(1, sizeof(*bridge));

	snprintf(net->name, sizeof(net->name), "switch:%s", options->switch_name);
	if (!bridge)
		goto failed;
	net->data = bridge;
	bridge->net = net;
	bridge->rendezvous.folder = bridge->rendezvous.listener = -1;
	for (unsigned i = 0; i < PEERS_MAX; i++)
		bridge->peer[i] = (struct peer){.net = net, .fd = -1};
	bridge->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	bridge->frame = malloc(NET_FRAME_MAX);
	if (bridge->timer < 0 || !bridge->frame || getrandom(&bridge->macs.seed, sizeof(bridge->macs.seed), 0) < 0)
		goto failed;
	char who[sizeof(net->name) + 8];
	snprintf(who, sizeof(who), "net %s", net->name);
	net->link = true;
	return rendezvous_open(&bridge->rendezvous, options->switch_name, who);
failed:
	log_error("net %s: %s", net->name, strerror(errno));
	return -ENOMEM;
}

static int switch_attach(struct net *net)
{
	struct ether_switch *bridge = net->data;

	bridge->timer_source = event_source_add(net->loop, bridge->timer, EPOLLIN, time_out, bridge);
	bridge->listener = event_source_add(net->loop, bridge->rendezvous.listener, EPOLLIN, accept_peers, bridge);
	if (!bridge->timer_source || !bridge->listener)
		return -errno;
	bridge->ticking = false;
	set_tick(bridge, true);
	scan(bridge);
	return 0;
}

static void switch_detach(struct net *net)
{
	struct ether_switch *bridge = net->data;

	for (unsigned i = 0; i < PEERS_MAX; i++)
		peer_drop(&bridge->peer[i]);
	event_source_remove(bridge->listener);
	event_source_remove(bridge->timer_source);
	bridge->listener = bridge->timer_source = NULL;
}

static void switch_close(struct net *net)
{
	struct ether_switch *bridge = net->data;

	rendezvous_close(&bridge->rendezvous);
	if (bridge->timer >= 0)
		close(bridge->timer);
	free(bridge->frame);
	free(bridge);
}

const struct net_backend net_backend_switch = {
    .offloads = NET_OFFLOAD_ALL,
    .open = switch_open,
    .attach = switch_attach,
    .detach = switch_detach,
    .close = switch_close,
    .can_send = switch_can_send,
    .send = switch_send,
    .resume = switch_resume,
};
