#include "host/unix_listener.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * Left over from a process that died? The question is put by a datagram socket, which a living stream socket refuses with
 * another error, and without noticing.
 */
static bool is_stale(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool stale =
	    fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return stale;
}

static int bind_it(int fd, const struct sockaddr_un *address)
{
	struct stat status;

	/* On Linux the file gets the socket's own mode: for nobody but the owner from the start. */
	if (fchmod(fd, 0600) < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
		return 0;
	if (errno != EADDRINUSE)
		return -errno;
	if (lstat(address->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode))
		return -EEXIST;
	if (!is_stale(address))
		return -EADDRINUSE;
	if (unlink(address->sun_path) < 0 || bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		return -errno;
	return 0;
}

int unix_listener_open(struct unix_listener *listener, const char *path, int backlog)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct stat status;

	_Static_assert(sizeof(listener->path) >= sizeof(address.sun_path), "room for every path");
	*listener = (struct unix_listener){.fd = -1};
	if (!*path || strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	strcpy(listener->path, path);
	listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener->fd < 0)
		return -errno;
	int error = bind_it(listener->fd, &address);
	if (!error && lstat(path, &status) == 0) {
		listener->device = status.st_dev;
		listener->inode = status.st_ino;
	}
	if (!error && listen(listener->fd, backlog) < 0) {
		error = -errno;
		unlink(path);
	}
	if (error) {
		close(listener->fd);
		listener->fd = -1;
	}
	return error;
}

const char *unix_listener_error(int error)
{
	return error == -EEXIST       ? "there is a file of this name that is not a socket"
	       : error == -EADDRINUSE ? "another process listens there"
	                              : strerror(-error);
}

void unix_listener_close(struct unix_listener *listener)
{
	struct stat status;

	if (listener->fd < 0)
		return;
	close(listener->fd);
	listener->fd = -1;
	if (lstat(listener->path, &status) == 0 && status.st_dev == listener->device &&
	    status.st_ino == listener->inode)
		unlink(listener->path);
}
