/*
 * unix:PATH: a listening UNIX socket; one client at a time, the next one waits until it leaves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/event_loop.h"
#include "host/log.h"

struct unix_socket {
	struct sockaddr_un address;
	int listener, client; /* -1: none */
	struct event_source *source;
	dev_t device; /* the socket file that is ours to remove */
	ino_t inode;
};

/* Is somebody listening there? A socket file that nobody serves is left over from a process that died. */
static bool socket_is_stale(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool stale =
	    fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return stale;
}

static int bind_socket(struct unix_socket *unix_socket)
{
	const struct sockaddr *address = (const struct sockaddr *)&unix_socket->address;
	const char *path = unix_socket->address.sun_path;
	struct stat status;

	/* On Linux the file gets the socket's own mode: for nobody but the owner from the start. */
	if (fchmod(unix_socket->listener, 0600) < 0)
		return -errno;
	if (bind(unix_socket->listener, address, sizeof(unix_socket->address)) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return -errno;
	if (lstat(path, &status) < 0 || !S_ISSOCK(status.st_mode))
		return -EEXIST;
	if (!socket_is_stale(&unix_socket->address))
		return -EADDRINUSE;
	if (unlink(path) < 0 || bind(unix_socket->listener, address, sizeof(unix_socket->address)) < 0)
		return -errno;
	return 0;
}

static int unix_open(struct chardev *chardev, const char *path)
{
	struct unix_socket *unix_socket = calloc(1, sizeof(*unix_socket));
	struct stat status;
	int error = -ENOMEM;

	if (!unix_socket)
		goto failed;
	unix_socket->listener = unix_socket->client = -1;
	unix_socket->address.sun_family = AF_UNIX;
	error = -ENAMETOOLONG;
	if (strlen(path) >= sizeof(unix_socket->address.sun_path))
		goto failed;
	strcpy(unix_socket->address.sun_path, path);
	unix_socket->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	error = unix_socket->listener < 0 ? -errno : bind_socket(unix_socket);
	if (error)
		goto failed;
	if (lstat(path, &status) == 0) {
		unix_socket->device = status.st_dev;
		unix_socket->inode = status.st_ino;
	}
	if (listen(unix_socket->listener, 4) < 0) {
		error = -errno;
		unlink(path);
		goto failed;
	}
	chardev->data = unix_socket;
	return 0;
failed:
	if (unix_socket && unix_socket->listener >= 0)
		close(unix_socket->listener);
	free(unix_socket);
	log_error("console unix:%s: %s", path,
	          error == -EEXIST       ? "there is a file of this name that is not a socket"
	          : error == -EADDRINUSE ? "another process listens there"
	                                 : strerror(-error));
	return error;
}

static void accept_client(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	struct unix_socket *unix_socket = chardev->data;
	int fd = accept4(unix_socket->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return; /* it has gone already; others will come */
	unix_socket->client = fd;
	event_source_change(unix_socket->source, 0);
	if (chardev_input_open(chardev, fd) < 0)
		log_warning("console unix:%s: no input: %s", unix_socket->address.sun_path, strerror(errno));
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

	unix_socket->source = event_source_add(chardev->loop, unix_socket->listener, EPOLLIN, accept_client, chardev);
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
	const char *path = unix_socket->address.sun_path;
	struct stat status;

	drop_client(chardev);
	close(unix_socket->listener);
	if (lstat(path, &status) == 0 && status.st_dev == unix_socket->device && status.st_ino == unix_socket->inode)
		unlink(path);
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
