/*
 * A listening UNIX stream socket with a name in the file system, for its owner alone. A socket file that nobody serves any
 * more is replaced; anything else of that name is left alone.
 */
#pragma once

#include <sys/types.h>

struct unix_listener {
	int fd; /* non-blocking; -1: closed */
	char path[108];
	dev_t device; /* the file that is ours to remove */
	ino_t inode;
};

/* 0 or -errno: -EEXIST: a file that is not a socket; -EADDRINUSE: another process listens there. */
int unix_listener_open(struct unix_listener *listener, const char *path, int backlog);
/* What such an error means, for a message. */
const char *unix_listener_error(int error);
/* Removes the file, if it is still ours. A closed one stays closed. */
void unix_listener_close(struct unix_listener *listener);
