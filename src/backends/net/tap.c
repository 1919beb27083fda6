/*
 * --net tap: an interface of the host's kernel. One that exists and belongs to the user needs no privileges
 * (ip tuntap add dev tap0 mode tap user NAME), nor does a descriptor that somebody opened for us. The kernel finishes
 * what the driver left (IFF_VNET_HDR), and gives us packets unfinished if the driver takes them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net/net_private.h"
#include "host/log.h"

#define TAP_IOVECS   64 /* a frame in more pieces is copied together */
#define ETHERNET_MTU 1500

struct tap {
	int fd;
	bool header; /* the kernel's virtio_net_hdr stands before each frame */
	struct event_source *source;
	uint8_t *frame; /* NET_FRAME_MAX */
};

static const struct net_backend net_backend_tap_plain;

static void read_frames(struct net *net)
{
	struct tap *tap = net->data;

	for (unsigned i = 0; i < NET_BURST && net_input_ready(net); i++) {
		struct virtio_net_hdr header = {0};
		struct iovec iov[2] = {{&header, sizeof(header)}, {tap->frame, NET_FRAME_MAX}};
		ssize_t length = readv(tap->fd, tap->header ? iov : iov + 1, tap->header ? 2 : 1);

		if (length < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (length < 0) {
			log_error("net %s: %s; the link is down", net->name,
			          errno == EBADFD ? "the interface is gone" : strerror(errno));
			event_source_change(tap->source, 0);
			net_set_link(net, false);
			return;
		}
		if (tap->header)
			length -= (ssize_t)sizeof(header);
		net_input(net, tap->header ? &header : NULL, tap->frame, length < 0 ? 0 : (size_t)length);
	}
	event_source_change(tap->source, net_input_ready(net) ? EPOLLIN : 0);
}

static void ready(void *owner, uint32_t events)
{
	read_frames(owner);
	net_input_end(owner);
}

/* The kernel queues without a bound of its own here; what it refuses (the interface is down) is lost. */
static bool tap_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                     size_t length)
{
	struct tap *tap = net->data;
	struct iovec all[1 + TAP_IOVECS] = {{(void *)(uintptr_t)header, sizeof(*header)}};
	unsigned first = tap->header ? 0 : 1;
	ssize_t written;

	if (iov_count <= TAP_IOVECS) {
		memcpy(all + 1, iov, iov_count * sizeof(*iov));
	} else {
		net_gather(net->scratch, iov, iov_count);
		all[1] = (struct iovec){net->scratch, length};
		iov_count = 1;
	}
	do {
		written = writev(tap->fd, all + first, (int)(1 + iov_count - first));
	} while (written < 0 && errno == EINTR);
	return written >= 0;
}

static void tap_set_offloads(struct net *net, unsigned offloads)
{
	struct tap *tap = net->data;
	unsigned long flags = 0;

	flags |= offloads & NET_OFFLOAD_CSUM ? TUN_F_CSUM : 0;
	flags |= offloads & NET_OFFLOAD_TSO4 ? TUN_F_TSO4 : 0;
	flags |= offloads & NET_OFFLOAD_TSO6 ? TUN_F_TSO6 : 0;
	flags |= offloads & NET_OFFLOAD_ECN && flags & (TUN_F_TSO4 | TUN_F_TSO6) ? TUN_F_TSO_ECN : 0;
	/* What the kernel then still gives us whole and the driver does not take, net.c cuts. */
	if (offloads & NET_OFFLOAD_UFO && ioctl(tap->fd, TUNSETOFFLOAD, flags | TUN_F_UFO) == 0)
		return;
	ioctl(tap->fd, TUNSETOFFLOAD, flags);
}

/* ---- opening ---- */

static int open_by_name(struct net *net, struct tap *tap, const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	const char *shown = *name ? name : "tap";
	int error;

	tap->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tap->fd < 0) {
		error = errno;
		log_error("net %s: /dev/net/tun: %s%s", shown, strerror(error),
		          error == ENOENT || error == ENODEV ? " (is the kernel's module tun loaded?)" : "");
		return -error;
	}
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%.15s", name);
	error = ioctl(tap->fd, TUNSETIFF, &request) < 0 ? errno : 0;
	if (error == EINVAL) { /* it was made for several queues */
		request.ifr_flags |= IFF_MULTI_QUEUE;
		error = ioctl(tap->fd, TUNSETIFF, &request) < 0 ? errno : 0;
	}
	if (error == EPERM)
		log_error("net %s: not permitted: no interface of this name belongs to you; as root: ip tuntap add dev "
		          "%s mode tap user %u",
		          shown, *name ? name : "tap0", (unsigned)getuid());
	else if (error == EBUSY)
		log_error("net %s: another process uses this interface", shown);
	else if (error == EINVAL)
		log_error("net %s: this interface is not a tap", shown);
	else if (error)
		log_error("net %s: %s", shown, strerror(error));
	snprintf(net->name, sizeof(net->name), "%s", request.ifr_name);
	tap->header = true;
	return -error;
}

static int open_by_fd(struct net *net, struct tap *tap, int fd, const char *name)
{
	struct ifreq request = {0};
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || ioctl(fd, TUNGETIFF, &request) < 0 || !(request.ifr_flags & IFF_TAP)) {
		log_error("net tap: fd=%d: %s", fd, flags < 0 ? "not an open descriptor" : "not a tap");
		return -EBADF;
	}
	if (*name && strcmp(name, request.ifr_name) != 0) {
		log_error("net tap: fd=%d is %s and not %s", fd, request.ifr_name, name);
		return -EINVAL;
	}
	tap->fd = fd;
	tap->header = request.ifr_flags & IFF_VNET_HDR;
	snprintf(net->name, sizeof(net->name), "%s", request.ifr_name);
	if (!(request.ifr_flags & IFF_NO_PI)) {
		log_error("net %s: fd=%d: opened without IFF_NO_PI", net->name, fd);
		return -EINVAL;
	}
	if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
		log_error("net %s: fd=%d: %s", net->name, fd, strerror(errno));
		return -EBADF;
	}
	return 0;
}

/* The interface's, for the device to announce. */
static unsigned read_mtu(const char *name)
{
	struct ifreq request = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	unsigned mtu = 0;

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%.15s", name);
	if (fd >= 0 && ioctl(fd, SIOCGIFMTU, &request) == 0 && request.ifr_mtu >= 68 && request.ifr_mtu <= 65535)
		mtu = (unsigned)request.ifr_mtu;
	if (fd >= 0)
		close(fd);
	return mtu == ETHERNET_MTU ? 0 : mtu;
}

static int tap_open(struct net *net, const struct net_options *options)
{
	int size = sizeof(struct virtio_net_hdr), error;
	struct tap *tap = calloc(1, sizeof(*tap));

	if (tap)
		tap->frame = malloc(NET_FRAME_MAX);
	if (!tap || !tap->frame) {
		log_error("net tap: %s", strerror(errno));
		free(tap);
		return -ENOMEM;
	}
	tap->fd = -1;
	net->data = tap;
	if (options->tap.fd >= 0)
		error = open_by_fd(net, tap, options->tap.fd, options->tap.ifname);
	else
		error = open_by_name(net, tap, options->tap.ifname);
	if (error)
		return error;
	if (tap->header && ioctl(tap->fd, TUNSETVNETHDRSZ, &size) < 0) {
		log_error("net %s: the length of its headers: %s", net->name, strerror(errno));
		return -EINVAL;
	}
	if (tap->header)
		tap_set_offloads(net, 0);
	else
		net->backend = &net_backend_tap_plain;
	if (!net->mtu)
		net->mtu = read_mtu(net->name);
	net->link = true;
	return 0;
}

static int tap_attach(struct net *net)
{
	struct tap *tap = net->data;

	tap->source = event_source_add(net->loop, tap->fd, EPOLLIN, ready, net);
	return tap->source ? 0 : -errno;
}

static void tap_detach(struct net *net)
{
	struct tap *tap = net->data;

	event_source_remove(tap->source);
	tap->source = NULL;
}

static void tap_close(struct net *net)
{
	struct tap *tap = net->data;

	if (tap->fd >= 0)
		close(tap->fd);
	free(tap->frame);
	free(tap);
}

const struct net_backend net_backend_tap = {
    .offloads = NET_OFFLOAD_ALL,
    .open = tap_open,
    .attach = tap_attach,
    .detach = tap_detach,
    .close = tap_close,
    .send = tap_send,
    .resume = read_frames,
    .set_offloads = tap_set_offloads,
};

/* A descriptor that was opened without IFF_VNET_HDR. */
static const struct net_backend net_backend_tap_plain = {
    .attach = tap_attach,
    .detach = tap_detach,
    .close = tap_close,
    .send = tap_send,
    .resume = read_frames,
};
