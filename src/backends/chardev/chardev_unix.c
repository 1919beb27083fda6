/*
 * unix:PATH: a listening UNIX socket; one client at a time, the next one waits until it leaves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/event_loop.h"
#include "host/log.h"
#include "host/unix_listener.h"

struct unix_socket {
	struct unix_listener listener;
	int client; /* -1: none */
	struct event_source *source;
};

static int unix_open(struct chardev *chardev, const char *path)
{
	struct unix_socket *unix_socket = calloc(1, sizeof(*unix_socket));
	int error = -ENOMEM;

	if (unix_socket)
		error = unix_listener_open(&unix_socket->listener, path, 4);
	if (error) {
		free(unix_socket);
		log_error("console unix:%s: %s", path, unix_listener_error(error));
		return error;
	}
	unix_socket->client = -1;
	chardev->data = unix_socket;
	return 0;
}

static void accept_client(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	struct unix_socket *unix_socket = chardev->data;
	int fd = accept4(unix_socket->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return; /* it has gone already; others will come */
	unix_socket->client = fd;
	event_source_change(unix_socket->source, 0);
	if (chardev_input_open(chardev, fd) < 0)
		log_warning("console unix:%s: no input: %s", unix_socket->listener.path, strerror(errno));
	chardev_output_open(chardev, fd);
}

static void drop_client(struct chardev *chardev)
{
	struct unix_socket *unix_socket = chardev->data;

	if (unix_socket->client < 0)
		return;
	shutdown(unix_socket->client, SHUT_RDWR); /* a write under way returns */
	chardev_output_close(chardev);
	close(unix_socket->client);
	unix_socket->client = -1;
}

/* The client has closed its sending side: that ends the connection. */
static void unix_hang_up(struct chardev *chardev)
{
	struct unix_socket *unix_socket = chardev->data;

	drop_client(chardev);
	event_source_change(unix_socket->source, EPOLLIN);
}

static int unix_attach(struct chardev *chardev)
{
	struct unix_socket *unix_socket = chardev->data;

	unix_socket->source =
	    event_source_add(chardev->loop, unix_socket->listener.fd, EPOLLIN, accept_client, chardev);
	return unix_socket->source ? 0 : -errno;
}

static void unix_detach(struct chardev *chardev)
{
	struct unix_socket *unix_socket = chardev->data;

	if (unix_socket->source)
		event_source_remove(unix_socket->source);
	unix_socket->source = NULL;
}

static void unix_close(struct chardev *chardev)
{
	struct unix_socket *unix_socket = chardev->data;

	drop_client(chardev);
	unix_listener_close(&unix_socket->listener);
	free(unix_socket);
}

const struct chardev_kind chardev_kind_unix = {
    .name = "unix",
    .argument = "PATH",
    .reconnects = true,
    .open = unix_open,
    .attach = unix_attach,
    .detach = unix_detach,
    .hang_up = unix_hang_up,
    .close = unix_close,
};
