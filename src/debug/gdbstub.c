/* The socket's side of the gdb stub: listening, one client, and the note that a vCPU leaves when it stops. */
#include "debug/gdbstub.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "debug/gdb_session.h"
#include "host/event_loop.h"
#include "host/log.h"

#define OUTPUT_MAX 0x10000 /* with this much unsent nothing more is read from the client */

struct gdbstub {
	char *path; /* of the UNIX socket, to be removed */
	int listener;
	int client; /* -1: none */
	struct machine *machine;
	struct event_source *listener_source, *client_source, *stop_source;
	struct gdb_session *session;
	bool release; /* options.stopped still holds the machine */

	int stop_fd; /* eventfd: something is in `stopped` */
	pthread_mutex_t lock;
	struct vcpu *stopped[MACHINE_CPUS_MAX]; /* a vCPU stands from its note until it is collected: one place for each
	                                           is enough */
	unsigned stopped_count;
};

/*
 * Left over from an earlier run, with nobody listening? The question is put by a datagram socket, which a living stream
 * socket refuses with another error, and without noticing.
 */
static bool socket_is_dead(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool dead =
	    fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return dead;
}

static int listen_unix(const char *path, const char **why)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct stat status;

	if (strlen(path) >= sizeof(address.sun_path) || !*path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (lstat(path, &status) == 0 && S_ISSOCK(status.st_mode) && socket_is_dead(&address))
		unlink(path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0) {
		int error = errno;
		if (error == EADDRINUSE)
			*why = lstat(path, &status) == 0 && S_ISSOCK(status.st_mode)
			           ? "another process listens there"
			           : "there is a file of this name that is not a socket";
		close(fd);
		return -error;
	}
	return fd;
}

/* HOST:PORT, [HOST]:PORT or :PORT. */
static int listen_tcp(const char *where, const char **why)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
	const char *colon = strrchr(where, ':');
	char host[256] = "localhost";
	int fd = -1, error = EINVAL, one = 1;

	if (!colon || !colon[1] || (size_t)(colon - where) >= sizeof(host)) {
		*why = "not HOST:PORT";
		return -EINVAL;
	}
	size_t length = (size_t)(colon - where);
	if (length >= 2 && where[0] == '[' && colon[-1] == ']') {
		where++;
		length -= 2;
	}
	if (length > 0) {
		memcpy(host, where, length);
		host[length] = 0;
	}
	int result = getaddrinfo(host, colon + 1, &hints, &found);
	if (result != 0) {
		*why = gai_strerror(result);
		return -EINVAL;
	}
	for (struct addrinfo *info = found; info && fd < 0; info = info->ai_next) {
		fd = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (fd < 0) {
			error = errno;
			continue;
		}
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, 1) < 0) {
			error = errno;
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(found);
	return fd < 0 ? -error : fd;
}

struct gdbstub *gdbstub_create(const char *specification)
{
	struct gdbstub *stub = calloc(1, sizeof(*stub));
	const char *why = NULL;

	if (!stub) {
		log_error("--gdb: out of memory");
		return NULL;
	}
	stub->client = -1;
	stub->stop_fd = -1;
	pthread_mutex_init(&stub->lock, NULL);
	if (strncmp(specification, "unix:", 5) == 0) {
		stub->listener = listen_unix(specification + 5, &why);
		if (stub->listener >= 0)
			stub->path = strdup(specification + 5);
	} else if (strncmp(specification, "tcp:", 4) == 0) {
		stub->listener = listen_tcp(specification + 4, &why);
	} else {
		stub->listener = -EINVAL;
		why = "must be unix:PATH or tcp:HOST:PORT";
	}
	if (stub->listener < 0) {
		log_error("--gdb %s: %s", specification, why ? why : strerror(-stub->listener));
		gdbstub_destroy(stub);
		return NULL;
	}
	return stub;
}

/* A vCPU's thread; see machine_set_debugger(). */
static void vcpu_stopped(void *owner, struct vcpu *vcpu)
{
	struct gdbstub *stub = owner;
	uint64_t one = 1;

	pthread_mutex_lock(&stub->lock);
	if (stub->stopped_count < MACHINE_CPUS_MAX)
		stub->stopped[stub->stopped_count++] = vcpu;
	pthread_mutex_unlock(&stub->lock);
	if (write(stub->stop_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: the loop has been told */
}

static void client_close(struct gdbstub *stub)
{
	if (stub->client < 0)
		return;
	gdb_session_destroy(stub->session);
	event_source_remove(stub->client_source);
	close(stub->client);
	stub->session = NULL;
	stub->client_source = NULL;
	stub->client = -1;
	event_source_change(stub->listener_source, EPOLLIN);
}

/* Sends what can be sent; closes when the conversation is over. */
static void client_flush(struct gdbstub *stub)
{
	struct gdb_session *session = stub->session;
	size_t sent = 0;
	bool broken = session->failed;

	while (!broken && sent < session->output_length) {
		ssize_t n = send(stub->client, session->output + sent, session->output_length - sent, MSG_NOSIGNAL);
		if (n > 0)
			sent += (size_t)n;
		else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		else
			broken = n == 0 || errno != EINTR;
	}
	memmove(session->output, session->output + sent, session->output_length - sent);
	session->output_length -= sent;
	if (broken || (session->detached && session->output_length == 0)) {
		if (session->detached && stub->release) {
			/* Detached without a continue: the user wants the machine to run. */
			gdb_release(session);
		}
		client_close(stub);
		return;
	}
	uint32_t events = session->output_length > 0 ? EPOLLOUT : 0;
	if (session->output_length < OUTPUT_MAX)
		events |= EPOLLIN;
	event_source_change(stub->client_source, events);
}

static void client_ready(void *owner, uint32_t events)
{
	struct gdbstub *stub = owner;
	char buffer[512];

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = recv(stub->client, buffer, sizeof(buffer), 0);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			client_close(stub);
			return;
		}
		if (n > 0)
			gdb_session_input(stub->session, buffer, (size_t)n);
	}
	client_flush(stub);
}

/* The loop's thread: collects the notes, waits until every vCPU stands, and tells the client. */
static void stop_ready(void *owner, uint32_t events)
{
	struct gdbstub *stub = owner;
	struct vcpu *stopped[MACHINE_CPUS_MAX];
	uint64_t value;

	if (read(stub->stop_fd, &value, sizeof(value)) < 0)
		return;
	machine_pause(stub->machine);
	pthread_mutex_lock(&stub->lock);
	unsigned count = stub->stopped_count;
	memcpy(stopped, stub->stopped, sizeof(stopped));
	stub->stopped_count = 0;
	pthread_mutex_unlock(&stub->lock);
	if (stub->session) {
		gdb_session_stopped(stub->session, stopped, count);
		machine_resume(stub->machine);
		client_flush(stub);
		return;
	}
	/* The client has gone meanwhile. */
	for (unsigned i = 0; i <= count; i++)
		machine_resume(stub->machine);
}

static void listener_ready(void *owner, uint32_t events)
{
	struct gdbstub *stub = owner;
	int one = 1, fd = accept4(stub->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a UNIX socket refuses, and needs it not */
	stub->session = gdb_session_create(stub->machine, &stub->release);
	if (stub->session) {
		stub->client = fd;
		stub->client_source = event_source_add(stub->machine->loop, fd, EPOLLIN, client_ready, stub);
	}
	if (!stub->session || !stub->client_source) {
		log_error("--gdb: client refused: %s", strerror(errno));
		gdb_session_destroy(stub->session);
		stub->session = NULL;
		stub->client = -1;
		close(fd);
		return;
	}
	event_source_change(stub->listener_source, 0);
}

int gdbstub_attach(struct gdbstub *stub, struct machine *machine)
{
	stub->machine = machine;
	stub->release = machine->options.stopped;
	stub->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (stub->stop_fd < 0)
		goto fail;
	stub->stop_source = event_source_add(machine->loop, stub->stop_fd, EPOLLIN, stop_ready, stub);
	if (!stub->stop_source)
		goto fail;
	stub->listener_source = event_source_add(machine->loop, stub->listener, EPOLLIN, listener_ready, stub);
	if (!stub->listener_source)
		goto fail;
	machine_set_debugger(machine, vcpu_stopped, stub);
	return 0;
fail:
	log_error("--gdb: %s", strerror(errno));
	return -ENOMEM;
}

void gdbstub_destroy(struct gdbstub *stub)
{
	if (!stub)
		return;
	if (stub->machine)
		machine_set_debugger(stub->machine, NULL, NULL);
	if (stub->client >= 0) {
		gdb_session_exited(stub->session, 0);
		client_flush(stub);
		client_close(stub);
	}
	event_source_remove(stub->listener_source);
	event_source_remove(stub->stop_source);
	if (stub->listener >= 0)
		close(stub->listener);
	if (stub->stop_fd >= 0)
		close(stub->stop_fd);
	if (stub->path)
		unlink(stub->path);
	free(stub->path);
	pthread_mutex_destroy(&stub->lock);
	free(stub);
}
