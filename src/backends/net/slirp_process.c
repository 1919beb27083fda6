/* libslirp's own process: see slirp_process.h. One net with slirp.c behind it, whose device is a socket. */
#include "backends/net/slirp_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net/net_private.h"
#include "host/jail.h"
#include "host/log.h"

struct process {
	struct event_loop *loop;
	struct event_source *source;
	struct net *net;
	uint8_t frame[NET_FRAME_MAX];
};

/* ---- to the device ---- */

static bool receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct process *process = owner;
	struct iovec iov[2] = {{(void *)(uintptr_t)header, sizeof(*header)}, {(void *)(uintptr_t)frame, length}};
	const struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
	ssize_t sent;

	do
		sent = sendmsg(SLIRP_PROCESS_SOCKET, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent >= 0)
		return true;
	if (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM) {
		event_loop_stop(process->loop);
		return true;
	}
	event_source_change(process->source, EPOLLIN | EPOLLOUT);
	return false;
}

/* ---- from the device ---- */

static void read_frames(struct process *process)
{
	for (unsigned i = 0; i < NET_BURST; i++) {
		ssize_t got = recv(SLIRP_PROCESS_SOCKET, process->frame, sizeof(process->frame), MSG_DONTWAIT);
		struct iovec iov = {process->frame, got > 0 ? (size_t)got : 0};

		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (got <= 0) {
			event_loop_stop(process->loop);
			return;
		}
		net_send(process->net, NULL, &iov, 1);
	}
}

static void socket_ready(void *owner, uint32_t events)
{
	struct process *process = owner;

	if (events & EPOLLOUT) {
		event_source_change(process->source, EPOLLIN);
		net_receive_ready(process->net);
	}
	if (events & ~(uint32_t)EPOLLOUT)
		read_frames(process);
}

/* ---- life ---- */

static int set_up(struct process *process, const struct net_options *options)
{
	const struct net_client client = {.receive = receive, .owner = process};
	int error;

	process->loop = event_loop_create();
	process->net = net_create(&net_backend_slirp, "user");
	if (!process->loop || !process->net)
		return -ENOMEM;
	error = process->net->backend->open(process->net, options);
	if (!error)
		error = net_attach(process->net, process->loop, &client);
	if (error)
		return error;
	net_set_offloads(process->net, NET_OFFLOAD_ALL);
	process->source = event_source_add(process->loop, SLIRP_PROCESS_SOCKET, EPOLLIN, socket_ready, process);
	return process->source ? 0 : -errno;
}

/* What libslirp's own library says to stderr goes nowhere, and no socket gets those descriptors. */
static int close_standard(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0 || dup2(fd, 0) < 0 || dup2(fd, 1) < 0)
		return -errno;
	close(fd);
	return 0;
}

static _Noreturn void process_main(void)
{
	struct net_options options;
	struct process *process = calloc(1, sizeof(*process));
	int error = process ? close_standard() : -ENOMEM;

	prctl(PR_SET_NAME, SLIRP_PROCESS_NAME);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN); /* libslirp sends to peers that are gone */
	if (recv(SLIRP_PROCESS_SOCKET, &options, sizeof(options), 0) != sizeof(options))
		_exit(1); /* the parent is gone already */
	if (!error)
		error = set_up(process, &options);
	if (!error && dup2(0, 2) < 0)
		error = -errno;
	if (!error)
		error = jail_enter_network();
	if (send(SLIRP_PROCESS_SOCKET, &error, sizeof(error), MSG_NOSIGNAL) == sizeof(error) && !error)
		event_loop_run(process->loop);
	_exit(0);
}

void slirp_process_enter(int argc, char **argv)
{
	if (argc == 1 && strcmp(argv[0], SLIRP_PROCESS_NAME) == 0)
		process_main();
}
