/*
 * What is behind --net user, in a process of its own (slirp_process.h): a private network behind network address translation, in libslirp, without privileges. The host is .2,
 * the name server .3, DHCP gives out addresses from .15 on.
 *
 *	device ── net_send ──> slirp_input() ──> sockets of the host ──┐ readable, writable
 *	device <── net_input ── outgoing <── send_packet() <───────────┴─ poll: epoll in the loop, one timerfd
 *
 * libslirp wants poll(): after everything that it does it is asked anew which descriptors it waits for, and what has
 * changed is told to an epoll descriptor of our own, which the loop watches. It knows no back-pressure, so while the
 * device takes no frames its sockets rest: TCP peers then wait, as their windows are full.
 *
 * libslirp's wire is as wide as an IP packet may be, because every packet costs much more than every byte: the driver's
 * large TCP packets go in as they are, and large ones come out, marked to be cut for the driver's own wire. The MRU
 * alone is smaller: it limits TCP's segments, and libslirp tells of a window that has opened when two of them fit, of
 * which with 32 KiB there would be none in 64 KiB. What goes in has passed slirp_guard.h.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <slirp/libslirp.h>

#include "backends/net/frame_queue.h"
#include "backends/net/net_private.h"
#include "backends/net/slirp_guard.h"
#include "host/log.h"

#define CLOCK_STALE_MS 100
#define WIRE_MTU       65521 /* libslirp's largest */
#define WIRE_MRU       16384
#define ETHERNET_MTU   1500
#define OUTGOING_REST  (1u << 20) /* bytes waiting for the device, from which on the sockets rest */
#define OUTGOING_MAX   (4u << 20) /* ... from which on frames are lost */
#define READY_EVENTS   64

struct watched_fd {
	uint32_t events, ready; /* EPOLL...; in our epoll exactly if events is not 0 */
	unsigned round;         /* of asking, in which libslirp wanted it */
};

struct slirp_timer {
	struct slirp_timer *next;
	struct user *user;
	SlirpTimerId id;
	SlirpTimerCb callback; /* NULL: through slirp_handle_timer() */
	void *owner;
	int64_t deadline; /* ms, -1: not set */
};

struct user {
	struct net *net;
	Slirp *slirp;
	int epoll, timer;
	struct event_source *epoll_source, *timer_source;
	struct slirp_timer *timers;
	struct watched_fd *watched; /* by descriptor */
	unsigned watched_count;
	struct asked {
		int *fd; /* in the order in which libslirp named them */
		unsigned count, room;
	} asked, before;
	unsigned round;
	bool resting;
	struct frame_queue outgoing;
	struct slirp_guard guard;
	unsigned mtu;   /* of the driver's side */
	int64_t polled; /* ms: when libslirp was polled last, which is when it looks at the clock */
	bool neighbour; /* a frame about addresses came: libslirp is to be polled */
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int64_t now_ms(void)
{
	return now_ns() / 1000000;
}

/* ---- what libslirp calls ---- */

static ssize_t slirp_send_packet(const void *data, size_t length, void *opaque)
{
	static const struct virtio_net_hdr plain;
	struct user *user = opaque;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};

	/* A whole packet may be larger than a frame on the wire can be by a few bytes of the link's header: never here.
	 */
	if (user->outgoing.bytes + length > OUTGOING_MAX || length > NET_FRAME_MAX ||
	    !frame_queue_push(&user->outgoing, &plain, &iov, 1, length)) {
		user->net->counters.received_dropped++;
		return (ssize_t)length;
	}
	net_kick(user->net);
	return (ssize_t)length;
}

/* The guest's mistakes are its own. */
static void slirp_guest_error(const char *message, void *opaque) {}

static int64_t slirp_clock(void *opaque)
{
	return now_ns();
}

static struct slirp_timer *timer_new(struct user *user)
{
	struct slirp_timer *timer = calloc(1, sizeof(*timer));

	if (!timer) {
		log_error("net user: out of memory");
		return NULL;
	}
	timer->user = user;
	timer->deadline = -1;
	timer->next = user->timers;
	user->timers = timer;
	return timer;
}

static void *slirp_timer_new(SlirpTimerCb callback, void *owner, void *opaque)
{
	struct slirp_timer *timer = timer_new(opaque);

	if (timer) {
		timer->callback = callback;
		timer->owner = owner;
	}
	return timer;
}

static void *slirp_timer_new_opaque(SlirpTimerId id, void *owner, void *opaque)
{
	struct slirp_timer *timer = timer_new(opaque);

	if (timer) {
		timer->id = id;
		timer->owner = owner;
	}
	return timer;
}

static void slirp_timer_free(void *handle, void *opaque)
{
	struct user *user = opaque;

	for (struct slirp_timer **link = &user->timers; *link; link = &(*link)->next) {
		if (*link == handle) {
			*link = (*link)->next;
			free(handle);
			return;
		}
	}
}

static void slirp_timer_mod(void *handle, int64_t deadline, void *opaque)
{
	struct slirp_timer *timer = handle;

	if (!timer)
		return;
	timer->deadline = deadline;
	net_kick(timer->user->net);
}

static void slirp_register_fd(int fd, void *opaque) {}

/* It will be closed: the number may come back as another descriptor, which our epoll does not have. */
static void slirp_unregister_fd(int fd, void *opaque)
{
	struct user *user = opaque;

	if (fd < 0 || (unsigned)fd >= user->watched_count)
		return;
	if (user->watched[fd].events)
		epoll_ctl(user->epoll, EPOLL_CTL_DEL, fd, NULL);
	user->watched[fd] = (struct watched_fd){0};
}

static void slirp_notify(void *opaque)
{
	net_kick(((struct user *)opaque)->net);
}

static const SlirpCb slirp_callbacks = {
    .send_packet = slirp_send_packet,
    .guest_error = slirp_guest_error,
    .clock_get_ns = slirp_clock,
    .timer_new = slirp_timer_new,
    .timer_free = slirp_timer_free,
    .timer_mod = slirp_timer_mod,
    .register_poll_fd = slirp_register_fd,
    .unregister_poll_fd = slirp_unregister_fd,
    .notify = slirp_notify,
    .timer_new_opaque = slirp_timer_new_opaque,
};

/* ---- waiting ---- */

static const struct {
	int slirp;
	uint32_t epoll;
} event_names[] = {
    {SLIRP_POLL_IN, EPOLLIN},   {SLIRP_POLL_OUT, EPOLLOUT}, {SLIRP_POLL_PRI, EPOLLPRI},
    {SLIRP_POLL_ERR, EPOLLERR}, {SLIRP_POLL_HUP, EPOLLHUP},
};
#define EVENT_NAMES (sizeof(event_names) / sizeof(event_names[0]))

static bool watched_reserve(struct user *user, unsigned count)
{
	unsigned room = user->watched_count ? user->watched_count : 64;
	struct watched_fd *grown;

	if (count <= user->watched_count)
		return true;
	while (room < count)
		room *= 2;
	grown = realloc(user->watched, room * sizeof(*grown));
	if (!grown)
		return false;
	memset(grown + user->watched_count, 0, (room - user->watched_count) * sizeof(*grown));
	user->watched = grown;
	user->watched_count = room;
	return true;
}

/* Tells our epoll what is wanted of the descriptor. */
static void watch(struct user *user, int fd, uint32_t events)
{
	struct watched_fd *watched = &user->watched[fd];
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (watched->events == events)
		return;
	if (!events)
		epoll_ctl(user->epoll, EPOLL_CTL_DEL, fd, NULL);
	else if (epoll_ctl(user->epoll, watched->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0 &&
	         epoll_ctl(user->epoll, errno == ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) < 0)
		events = 0;
	watched->events = events;
}

/* -1 is never ready. */
static int add_poll(int fd, int events, void *opaque)
{
	struct user *user = opaque;
	struct asked *asked = &user->asked;
	uint32_t wanted = 0;

	if (fd < 0 || !watched_reserve(user, (unsigned)fd + 1))
		return -1;
	if (asked->count == asked->room) {
		unsigned room = asked->room ? 2 * asked->room : 64;
		int *grown = realloc(asked->fd, room * sizeof(*grown));

		if (!grown)
			return -1;
		asked->fd = grown;
		asked->room = room;
	}
	for (unsigned i = 0; i < EVENT_NAMES; i++)
		if (events & event_names[i].slirp)
			wanted |= event_names[i].epoll;
	/* One socket may be named twice. */
	if (user->watched[fd].round == user->round)
		wanted |= user->watched[fd].events;
	user->watched[fd].round = user->round;
	watch(user, fd, wanted);
	asked->fd[asked->count] = fd;
	return (int)asked->count++;
}

static int get_revents(int index, void *opaque)
{
	struct user *user = opaque;
	int events = 0;

	if (index < 0 || (unsigned)index >= user->asked.count)
		return 0;
	for (unsigned i = 0; i < EVENT_NAMES; i++)
		if (user->watched[user->asked.fd[index]].ready & event_names[i].epoll)
			events |= event_names[i].slirp;
	return events;
}

static void set_timer(struct user *user, uint32_t timeout)
{
	struct itimerspec time = {0};
	int64_t now = now_ms(), wait = timeout == UINT32_MAX ? INT64_MAX : timeout;

	for (struct slirp_timer *timer = user->timers; timer; timer = timer->next)
		if (timer->deadline >= 0 && timer->deadline - now < wait)
			wait = timer->deadline - now;
	if (wait != INT64_MAX) {
		if (wait < 0)
			wait = 0;
		time.it_value.tv_sec = wait / 1000;
		time.it_value.tv_nsec = wait % 1000 * 1000000 + 1; /* 0 would turn it off */
	}
	timerfd_settime(user->timer, 0, &time, NULL);
}

/* Asks libslirp what it waits for. After everything that it did. */
static void ask(struct user *user)
{
	struct asked before = user->asked;
	uint32_t timeout = UINT32_MAX;

	user->round++;
	user->asked = user->before;
	user->asked.count = 0;
	user->before = before;
	slirp_pollfds_fill(user->slirp, &timeout, add_poll, user);
	for (unsigned i = 0; i < before.count; i++)
		if (user->watched[before.fd[i]].round != user->round)
			watch(user, before.fd[i], 0);
	set_timer(user, timeout);
}

static void run_timers(struct user *user)
{
	int64_t now = now_ms();
	unsigned guard = 16;

	for (struct slirp_timer *timer = user->timers; timer && guard; timer = timer->next) {
		if (timer->deadline < 0 || timer->deadline > now)
			continue;
		timer->deadline = -1;
		if (timer->callback)
			timer->callback(timer->owner);
		else
			slirp_handle_timer(user->slirp, timer->id, timer->owner);
		guard--;
	}
}

/* Sockets are ready, or libslirp's own time has come. */
static void poll_slirp(struct user *user, bool sockets)
{
	struct epoll_event ready[READY_EVENTS];
	int count = sockets ? epoll_wait(user->epoll, ready, READY_EVENTS, 0) : 0;

	for (int i = 0; i < count; i++)
		user->watched[ready[i].data.fd].ready = ready[i].events;
	slirp_pollfds_poll(user->slirp, count < 0, get_revents, user);
	user->polled = now_ms();
	for (int i = 0; i < count; i++)
		user->watched[ready[i].data.fd].ready = 0;
	run_timers(user);
	ask(user);
}

static void rest(struct user *user)
{
	bool resting = user->outgoing.bytes > OUTGOING_REST;

	if (resting == user->resting)
		return;
	user->resting = resting;
	event_source_change(user->epoll_source, resting ? 0 : EPOLLIN);
}

/* ---- frames ---- */

/*
 * What libslirp's packet is for the driver: its checksums are right, and a large one of TCP or UDP is to be cut to the
 * size of the driver's wire.
 */
static void mark_outgoing(struct user *user, struct queued_frame *frame)
{
	struct virtio_net_hdr *header = &frame->header;
	struct offload_packet packet;
	size_t size;
	uint8_t kind;

	header->flags = VIRTIO_NET_HDR_F_DATA_VALID;
	if (!offload_parse(&packet, frame->data, frame->length) || packet.fragment)
		return;
	if (packet.protocol == IPPROTO_TCP) {
		size = slirp_guard_segment(&user->guard, &packet, frame->data, user->mtu);
		if (frame->length - packet.payload <= size)
			return;
		kind = packet.version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
	} else if (packet.protocol == IPPROTO_UDP && frame->length - packet.network > user->mtu) {
		size = user->mtu - (packet.transport - packet.network) - (packet.version == 6 ? 8u : 0);
		size &= ~(size_t)7;
		kind = VIRTIO_NET_HDR_GSO_UDP;
	} else {
		return;
	}
	if (size < OFFLOAD_SEGMENT_MIN || !offload_request_checksum(header, frame->data, frame->length))
		return;
	header->gso_type = kind;
	header->gso_size = (uint16_t)size;
}

static void deliver_outgoing(struct net *net)
{
	struct user *user = net->data;
	struct queued_frame *frame;

	for (unsigned i = 0; i < NET_BURST && net_input_ready(net) && (frame = frame_queue_pop(&user->outgoing)); i++) {
		mark_outgoing(user, frame);
		net_input(net, &frame->header, frame->data, frame->length);
		free(frame);
	}
	if (user->outgoing.count > 0 && net_input_ready(net))
		net_kick(net);
	rest(user);
}

static void user_kicked(struct net *net)
{
	struct user *user = net->data;

	if (user->neighbour) {
		user->neighbour = false;
		poll_slirp(user, false);
	} else {
		run_timers(user);
		ask(user);
	}
	deliver_outgoing(net);
}

static void sockets_ready(void *owner, uint32_t events)
{
	struct user *user = owner;

	poll_slirp(user, true);
	deliver_outgoing(user->net);
	net_input_end(user->net);
}

static void time_out(void *owner, uint32_t events)
{
	struct user *user = owner;
	uint64_t count;

	if (read(user->timer, &count, sizeof(count)) < 0)
		return; /* it was set anew meanwhile */
	poll_slirp(user, false);
	deliver_outgoing(user->net);
	net_input_end(user->net);
}

/* ARP, or ICMPv6, of which neighbour discovery is a part. */
static bool about_neighbours(const uint8_t *frame, size_t length)
{
	unsigned type = length > 20 ? frame[12] << 8 | frame[13] : 0;

	return type == ETH_P_ARP || (type == ETH_P_IPV6 && frame[20] == IPPROTO_ICMPV6);
}

static bool user_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                      size_t length)
{
	struct user *user = net->data;
	uint8_t *frame = net->scratch;
	int64_t now = now_ms();

	/* The guest may write while it is read: a copy is checked and used. */
	if (iov_count != 1 || iov->iov_base != frame)
		net_gather(frame, iov, iov_count);
	length = slirp_guard_admit(&user->guard, &frame, length, user->mtu, WIRE_MTU, now);
	if (!length)
		return false;
	/* With its old time a new socket of UDP would be too old already when it is polled next. */
	if (now - user->polled >= CLOCK_STALE_MS)
		poll_slirp(user, false);
	slirp_input(user->slirp, frame, (int)length);
	/* What waits for the driver's address libslirp sends when it is polled; else it would be old by then. */
	user->neighbour |= about_neighbours(frame, length);
	net_kick(net); /* it may wait for other descriptors now */
	return true;
}

/* ---- life ---- */

static struct in_addr in_net(const struct net_options *options, struct in_addr given, uint32_t host)
{
	uint32_t net = options->user.mask.s_addr ? ntohl(options->user.net.s_addr) : 0x0a000200;

	return given.s_addr ? given : (struct in_addr){htonl(net | host)};
}

static Slirp *slirp_create(struct user *user, const struct net_options *options)
{
	static const struct in_addr none;
	SlirpConfig config = {
	    .version = 4,
	    .restricted = options->user.restricted,
	    .in_enabled = options->user.ipv4,
	    .vnetwork = in_net(options, none, 0),
	    .vnetmask = {options->user.mask.s_addr ? options->user.mask.s_addr : htonl(0xffffff00)},
	    .vhost = in_net(options, none, 2),
	    .in6_enabled = options->user.ipv6,
	    .vprefix_addr6 = options->user.net6,
	    .vprefix_len = (uint8_t)(options->user.net6_bits ? options->user.net6_bits : 64),
	    .vhostname = options->user.hostname[0] ? options->user.hostname : NULL,
	    .vdhcp_start = in_net(options, options->user.dhcp_start, 15),
	    .vnameserver = in_net(options, options->user.dns, 3),
	    .if_mtu = WIRE_MTU,
	    .if_mru = WIRE_MRU,
	};

	if (!options->user.net6_bits)
		inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
	config.vhost6 = config.vnameserver6 = config.vprefix_addr6;
	config.vhost6.s6_addr[15] |= 2;
	config.vnameserver6.s6_addr[15] |= 3;
	memcpy(user->guard.host6, &config.vhost6, sizeof(user->guard.host6));
	return slirp_new(&config, &slirp_callbacks, user);
}

static void describe(char *text, size_t size, const union net_address *address)
{
	char host[INET6_ADDRSTRLEN] = "";
	bool v6 = address->any.sa_family == AF_INET6;

	inet_ntop(address->any.sa_family, v6 ? (const void *)&address->v6.sin6_addr : &address->v4.sin_addr, host,
	          sizeof(host));
	snprintf(text, size, v6 ? "[%s]:%u" : "%s:%u", host, ntohs(address->v4.sin_port));
}

static int forward(struct user *user, const struct net_forward *forward)
{
	bool v6 = forward->host.any.sa_family == AF_INET6;
	socklen_t length = v6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
	char text[64];
	int error;

	if (slirp_add_hostxfwd(user->slirp, &forward->host.any, length, &forward->guest.any, length,
	                       (forward->udp ? SLIRP_HOSTFWD_UDP : 0) | (v6 ? SLIRP_HOSTFWD_V6ONLY : 0)) == 0)
		return 0;
	error = errno;
	describe(text, sizeof(text), &forward->host);
	log_error("net user: hostfwd=%s:%s: %s", forward->udp ? "udp" : "tcp", text, strerror(error));
	return -error;
}

static void user_close(struct net *net)
{
	struct user *user = net->data;

	if (user->slirp)
		slirp_cleanup(user->slirp);
	while (user->timers)
		slirp_timer_free(user->timers, user);
	if (user->epoll >= 0)
		close(user->epoll);
	if (user->timer >= 0)
		close(user->timer);
	frame_queue_clear(&user->outgoing);
	slirp_guard_destroy(&user->guard);
	free(user->watched);
	free(user->asked.fd);
	free(user->before.fd);
	free(user);
}

static int user_open(struct net *net, const struct net_options *options)
{
	struct user *user = calloc(1, sizeof(*user));

	snprintf(net->name, sizeof(net->name), "user");
	if (!user)
		goto failed;
	net->data = user;
	user->net = net;
	user->mtu = options->mtu ? options->mtu : ETHERNET_MTU;
	slirp_guard_init(&user->guard);
	user->epoll = epoll_create1(EPOLL_CLOEXEC);
	user->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (user->epoll < 0 || user->timer < 0)
		goto failed;
	user->slirp = slirp_create(user, options);
	if (!user->slirp) {
		log_error("net user: libslirp refuses these addresses");
		return -EINVAL;
	}
	for (unsigned i = 0; i < options->user.forward_count; i++)
		if (forward(user, &options->user.forward[i]) < 0)
			return -EADDRINUSE;
	net->link = true;
	return 0;
failed:
	log_error("net user: %s", strerror(errno));
	return -ENOMEM;
}

static int user_attach(struct net *net)
{
	struct user *user = net->data;

	user->resting = false;
	user->epoll_source = event_source_add(net->loop, user->epoll, EPOLLIN, sockets_ready, user);
	user->timer_source = event_source_add(net->loop, user->timer, EPOLLIN, time_out, user);
	if (!user->epoll_source || !user->timer_source)
		return -errno;
	net_kick(net); /* the first asking */
	return 0;
}

static void user_detach(struct net *net)
{
	struct user *user = net->data;

	event_source_remove(user->epoll_source);
	event_source_remove(user->timer_source);
	user->epoll_source = user->timer_source = NULL;
}

const struct net_backend net_backend_slirp = {
    .offloads = NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_UFO,
    .open = user_open,
    .attach = user_attach,
    .detach = user_detach,
    .close = user_close,
    .send = user_send,
    .resume = deliver_outgoing,
    .kicked = user_kicked,
};
