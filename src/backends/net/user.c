/*
 * --net user, ring3's side: frames to and from the process in which libslirp is (slirp_process.h). What comes from there is not
 * trusted more than the guest: net_input() checks it. When the process dies, the link goes down, and the machine lives.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/net/frame_queue.h"
#include "backends/net/net_private.h"
#include "backends/net/slirp_process.h"
#include "host/log.h"

#define QUEUE_FULL  (512u << 10) /* bytes that wait for the process, from which on the device does */
#define SOCKET_ROOM (1 << 20)

struct user {
	struct net *net;
	int fd;
	pid_t child; /* 0: it is dead */
	struct event_source *source;
	struct frame_queue outgoing;
	struct {
		struct virtio_net_hdr header;
		uint8_t frame[NET_FRAME_MAX];
	} message;
};

static void watch(struct user *user)
{
	bool reads = net_input_ready(user->net);

	if (user->source)
		event_source_change(user->source, (reads ? EPOLLIN : 0u) | (user->outgoing.count ? EPOLLOUT : 0u));
}

/* ---- device -> process ---- */

static bool user_can_send(struct net *net)
{
	const struct user *user = net->data;

	return user->outgoing.bytes < QUEUE_FULL;
}

/* False: not now. A process that is gone is noticed by reading. */
static bool write_frame(struct user *user, const struct iovec *iov, unsigned iov_count)
{
	const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = iov_count};

	while (sendmsg(user->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM;
	return true;
}

static bool user_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                      size_t length)
{
	struct user *user = net->data;

	if (iov_count > IOV_MAX) {
		net_gather(net->scratch, iov, iov_count);
		return user_send(net, header, &(const struct iovec){net->scratch, length}, 1, length);
	}
	if (user->outgoing.count == 0 && write_frame(user, iov, iov_count))
		return true;
	if (!frame_queue_push(&user->outgoing, header, iov, iov_count, length))
		return false;
	watch(user);
	return true;
}

static void flush(struct user *user)
{
	struct queued_frame *frame;

	while ((frame = user->outgoing.first)) {
		struct iovec iov = {frame->data, frame->length};

		if (!write_frame(user, &iov, 1))
			break;
		free(frame_queue_pop(&user->outgoing));
	}
	if (user_can_send(user->net))
		net_writable(user->net);
}

/* ---- process -> device ---- */

/* Says how it ended, once. */
static void child_died(struct user *user)
{
	int status = 0;

	event_source_remove(user->source);
	user->source = NULL;
	kill(user->child, SIGKILL); /* where it only closed its socket */
	while (waitpid(user->child, &status, 0) < 0 && errno == EINTR)
		;
	user->child = 0;
	if (WIFSIGNALED(status))
		log_error("net user: its process died of signal %d; the link is down", WTERMSIG(status));
	else
		log_error("net user: its process ended with status %d; the link is down", WEXITSTATUS(status));
	frame_queue_clear(&user->outgoing);
	net_set_link(user->net, false);
}

static void read_frames(struct user *user)
{
	for (unsigned i = 0; i < NET_BURST && net_input_ready(user->net); i++) {
		ssize_t got = recv(user->fd, &user->message, sizeof(user->message), MSG_DONTWAIT);

		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (got <= 0) {
			child_died(user);
			break;
		}
		if ((size_t)got > sizeof(user->message.header)) /* how long, net_input() looks at */
			net_input(user->net, &user->message.header, user->message.frame,
			          (size_t)got - sizeof(user->message.header));
	}
	watch(user);
}

static void socket_ready(void *owner, uint32_t events)
{
	struct user *user = owner;

	if (events & EPOLLOUT)
		flush(user);
	if (events & ~(uint32_t)EPOLLOUT)
		read_frames(user);
	else
		watch(user);
	net_input_end(user->net);
}

static void user_resume(struct net *net)
{
	watch(net->data);
}

/* ---- life ---- */

/* After fork() in a process that may have threads: system calls only. */
static _Noreturn void start_process(int socket)
{
	char *const arguments[] = {(char *)SLIRP_PROCESS_NAME, NULL};
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* dup2() onto itself would leave the close-on-exec flag. */
	if (socket == SLIRP_PROCESS_SOCKET)
		socket = dup(socket);
	if (dup2(socket, SLIRP_PROCESS_SOCKET) < 0 || close_range(SLIRP_PROCESS_SOCKET + 1, ~0u, 0) < 0)
		_exit(1);
	execv("/proc/self/exe", arguments);
	_exit(1);
}

/* What the process says to its options; its own messages are logged already. */
static int greet(const struct user *user, const struct net_options *options)
{
	int answer;
	ssize_t got;

	if (send(user->fd, options, sizeof(*options), MSG_NOSIGNAL) != sizeof(*options))
		got = -1;
	else
		do
			got = recv(user->fd, &answer, sizeof(answer), 0);
		while (got < 0 && errno == EINTR);
	if (got == sizeof(answer))
		return answer;
	log_error("net user: its process (/proc/self/exe) does not start");
	return -ECHILD;
}

static void user_close(struct net *net)
{
	struct user *user = net->data;

	if (user->fd >= 0)
		close(user->fd);
	if (user->child > 0) {
		kill(user->child, SIGKILL);
		while (waitpid(user->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	frame_queue_clear(&user->outgoing);
	free(user);
}

static int user_open(struct net *net, const struct net_options *options)
{
	struct user *user = calloc(1, sizeof(*user));
	int sockets[2], error, room = SOCKET_ROOM;

	snprintf(net->name, sizeof(net->name), "user");
	if (!user || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
		error = user ? -errno : -ENOMEM;
		free(user);
		goto failed;
	}
	net->data = user;
	user->net = net;
	user->fd = sockets[0];
	for (unsigned i = 0; i < 2; i++) /* as much of it as the host allows */
		setsockopt(sockets[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	user->child = fork();
	if (user->child == 0)
		start_process(sockets[1]);
	error = user->child < 0 ? -errno : 0;
	close(sockets[1]);
	if (error)
		goto failed;
	error = greet(user, options);
	net->link = !error;
	return error;
failed:
	log_error("net user: %s", strerror(-error));
	return error;
}

static int user_attach(struct net *net)
{
	struct user *user = net->data;

	if (!user->child)
		return 0;
	/* What was on the way when it was detached is lost. */
	while (recv(user->fd, &user->message, sizeof(user->message), MSG_DONTWAIT) > 0)
		;
	user->source = event_source_add(net->loop, user->fd, EPOLLIN, socket_ready, user);
	return user->source ? 0 : -errno;
}

static void user_detach(struct net *net)
{
	struct user *user = net->data;

	event_source_remove(user->source);
	user->source = NULL;
	frame_queue_clear(&user->outgoing);
}

const struct net_backend net_backend_user = {
    .offloads = NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_UFO,
    .open = user_open,
    .attach = user_attach,
    .detach = user_detach,
    .close = user_close,
    .can_send = user_can_send,
    .send = user_send,
    .resume = user_resume,
};
