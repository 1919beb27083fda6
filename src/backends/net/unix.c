/*
 * --net unix:PATH: frames on a UNIX stream socket, as passt and QEMU's stream netdev have them (frame_stream.h). We
 * connect, and when the other end goes or talks nonsense, the link is down and we connect again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/net/frame_stream.h"
#include "backends/net/net_private.h"
#include "host/log.h"

#define OUTPUT_ROOM  (512u << 10)
#define OUTPUT_FULL  (256u << 10) /* one packet of 64 KiB, cut into the smallest parts, is 150 KiB */
#define OUTPUT_FLUSH (64u << 10)  /* write now, rather than after what the device has else */
#define RETRY_FIRST  100          /* ms */
#define RETRY_MOST   2000

struct unix_stream {
	struct sockaddr_un address;
	int fd; /* -1: not connected */
	struct event_source *source;
	int timer;
	struct event_source *timer_source;
	unsigned retry; /* ms until the next attempt */
	bool told;      /* why there is no connection */
	bool broken;    /* found while sending: the loop will see to it */
	struct frame_stream input;
	uint8_t *output; /* OUTPUT_ROOM */
	size_t output_begin, output_end;
};

static void watch(struct net *net)
{
	struct unix_stream *stream = net->data;

	if (stream->source)
		event_source_change(stream->source, (net_input_ready(net) ? EPOLLIN : 0u) |
		                                        (stream->output_end > stream->output_begin ? EPOLLOUT : 0u));
}

static void retry_later(struct unix_stream *stream)
{
	struct itimerspec time = {.it_value = {stream->retry / 1000, stream->retry % 1000 * 1000000l}};

	timerfd_settime(stream->timer, 0, &time, NULL);
	stream->retry = 2 * stream->retry < RETRY_MOST ? 2 * stream->retry : RETRY_MOST;
}

static void close_socket(struct unix_stream *stream)
{
	event_source_remove(stream->source);
	stream->source = NULL;
	if (stream->fd >= 0)
		close(stream->fd);
	stream->fd = -1;
	stream->input.begin = stream->input.end = 0;
	stream->output_begin = stream->output_end = 0;
	stream->broken = false;
}

static void disconnect(struct net *net, const char *why)
{
	struct unix_stream *stream = net->data;

	if (stream->fd < 0)
		return;
	close_socket(stream);
	log_warning("net %s: %s; connecting again", net->name, why);
	stream->told = true;
	retry_later(stream);
	net_set_link(net, false);
}

/* False: the connection is gone. */
static bool flush(struct unix_stream *stream)
{
	while (stream->output_begin < stream->output_end) {
		ssize_t written = send(stream->fd, stream->output + stream->output_begin,
		                       stream->output_end - stream->output_begin, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM;
		stream->output_begin += (size_t)written;
	}
	stream->output_begin = stream->output_end = 0;
	return true;
}

/* Frames that have been read already. False: the stream is broken. */
static bool take_frames(struct net *net, unsigned *budget)
{
	struct unix_stream *stream = net->data;
	uint8_t *frame;
	size_t length;

	while (*budget > 0 && net_input_ready(net)) {
		switch (frame_stream_next(&stream->input, &frame, &length)) {
		case FRAME_STREAM_MORE:
			return true;
		case FRAME_STREAM_BROKEN:
			return false;
		case FRAME_STREAM_RUNT:
			net->counters.received_dropped++;
			break;
		case FRAME_STREAM_FRAME:
			stream->retry = RETRY_FIRST; /* it is worth the trouble */
			net_input(net, NULL, frame, length);
			break;
		}
		--*budget;
	}
	return true;
}

static void read_frames(struct net *net)
{
	struct unix_stream *stream = net->data;
	unsigned budget = NET_BURST;

	while (take_frames(net, &budget)) {
		size_t room;
		uint8_t *at;
		ssize_t length;

		if (!net_input_ready(net))
			return;
		if (budget == 0) {
			net_kick(net); /* there may be whole frames in the buffer, of which epoll knows nothing */
			return;
		}
		at = frame_stream_room(&stream->input, &room);
		length = recv(stream->fd, at, room, MSG_DONTWAIT);
		if (length < 0 && errno == EINTR)
			continue;
		if (length < 0 && errno == EAGAIN)
			return;
		if (length <= 0) {
			disconnect(net, length == 0 ? "the other end has closed the connection" : strerror(errno));
			return;
		}
		stream->input.end += (size_t)length;
	}
	disconnect(net, "not a stream of frames");
}

static void ready(void *owner, uint32_t events)
{
	struct net *net = owner;
	struct unix_stream *stream = net->data;

	if (events & EPOLLOUT && !flush(stream)) {
		disconnect(net, strerror(errno));
	} else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		if (net_input_ready(net))
			read_frames(net);
		else if (events & (EPOLLHUP | EPOLLERR))
			disconnect(net, "the other end has closed the connection");
	}
	net_input_end(net);
	watch(net);
	if (stream->output_end - stream->output_begin < OUTPUT_FULL)
		net_writable(net);
}

static void connect_now(struct net *net)
{
	struct unix_stream *stream = net->data;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&stream->address, sizeof(stream->address)) == 0)
		stream->source = event_source_add(net->loop, fd, EPOLLIN, ready, net);
	if (!stream->source) {
		if (!stream->told)
			log_warning("net %s: %s; trying again", net->name, strerror(errno));
		stream->told = true;
		if (fd >= 0)
			close(fd);
		retry_later(stream);
		return;
	}
	if (stream->told)
		log_info("net %s: connected", net->name);
	stream->fd = fd;
	stream->told = false;
	net_set_link(net, true);
	watch(net);
}

static void time_out(void *owner, uint32_t events)
{
	struct net *net = owner;
	struct unix_stream *stream = net->data;
	uint64_t count;

	if (read(stream->timer, &count, sizeof(count)) > 0 && stream->fd < 0)
		connect_now(net);
}

static bool unix_can_send(struct net *net)
{
	struct unix_stream *stream = net->data;

	return stream->output_end - stream->output_begin < OUTPUT_FULL;
}

static bool unix_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                      size_t length)
{
	struct unix_stream *stream = net->data;
	uint8_t *at;

	if (stream->fd < 0 || stream->broken)
		return false;
	if (OUTPUT_ROOM - stream->output_end < FRAME_STREAM_PREFIX + length && stream->output_begin > 0) {
		memmove(stream->output, stream->output + stream->output_begin,
		        stream->output_end - stream->output_begin);
		stream->output_end -= stream->output_begin;
		stream->output_begin = 0;
	}
	if (OUTPUT_ROOM - stream->output_end < FRAME_STREAM_PREFIX + length)
		return false;
	at = stream->output + stream->output_end;
	at[0] = (uint8_t)(length >> 24);
	at[1] = (uint8_t)(length >> 16);
	at[2] = (uint8_t)(length >> 8);
	at[3] = (uint8_t)length;
	net_gather(at + FRAME_STREAM_PREFIX, iov, iov_count);
	stream->output_end += FRAME_STREAM_PREFIX + length;
	if (stream->output_end - stream->output_begin >= OUTPUT_FLUSH)
		stream->broken = !flush(stream);
	net_kick(net);
	return true;
}

static void unix_kicked(struct net *net)
{
	struct unix_stream *stream = net->data;

	if (stream->fd < 0)
		return;
	if (stream->broken || !flush(stream))
		disconnect(net, strerror(EPIPE));
	else if (net_input_ready(net))
		read_frames(net);
	watch(net);
	if (unix_can_send(net))
		net_writable(net);
}

static void unix_close(struct net *net)
{
	struct unix_stream *stream = net->data;

	close_socket(stream);
	if (stream->timer >= 0)
		close(stream->timer);
	free(stream->input.data);
	free(stream->output);
	free(stream);
}

static int unix_open(struct net *net, const struct net_options *options)
{
	struct unix_stream *stream = calloc(1, sizeof(*stream));

	snprintf(net->name, sizeof(net->name), "unix:%s", options->unix_path);
	if (!stream)
		goto failed;
	net->data = stream;
	stream->fd = -1;
	stream->address.sun_family = AF_UNIX;
	memcpy(stream->address.sun_path, options->unix_path, sizeof(stream->address.sun_path));
	stream->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	stream->input.data = malloc(FRAME_STREAM_ROOM);
	stream->output = malloc(OUTPUT_ROOM);
	if (stream->timer >= 0 && stream->input.data && stream->output)
		return 0;
failed:
	log_error("net %s: %s", net->name, strerror(errno));
	return -ENOMEM;
}

static int unix_attach(struct net *net)
{
	struct unix_stream *stream = net->data;

	struct itimerspec soon = {.it_value = {0, 1}};

	stream->retry = RETRY_FIRST;
	stream->told = false;
	stream->timer_source = event_source_add(net->loop, stream->timer, EPOLLIN, time_out, net);
	if (!stream->timer_source)
		return -errno;
	timerfd_settime(stream->timer, 0, &soon, NULL); /* the client hears of the link from the loop */
	return 0;
}

static void unix_detach(struct net *net)
{
	struct unix_stream *stream = net->data;

	close_socket(stream);
	event_source_remove(stream->timer_source);
	stream->timer_source = NULL;
	net->link = false;
}

const struct net_backend net_backend_unix = {
    .open = unix_open,
    .attach = unix_attach,
    .detach = unix_detach,
    .close = unix_close,
    .can_send = unix_can_send,
    .send = unix_send,
    .resume = unix_kicked,
    .kicked = unix_kicked,
};
