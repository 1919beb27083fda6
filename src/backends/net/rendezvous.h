/*
 * Where the machines of one user find each other: a folder of sockets, which nobody else can enter.
 *
 *	$XDG_RUNTIME_DIR (or /run/user/UID) /ring3/switch/NAME/   or   /tmp/ring3-UID/switch/NAME/
 *
 * A member is a listening SEQPACKET socket; its name is its number, 16 hexadecimal digits. A socket gets its name when
 * it listens, so that one of that form on which nobody answers has lost its owner, and whoever finds it removes it. All
 * goes through descriptors of the folders, which must belong to this user, grant nothing to others, and be no symbolic
 * links.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct rendezvous {
	int folder, listener; /* -1: none */
	uint64_t id;
};

/* Opens the folder `name` and listens in it. 0 or -errno (logged, beginning with `who`). */
int rendezvous_open(struct rendezvous *rendezvous, const char *name, const char *who);
/* Takes the name away. */
void rendezvous_close(struct rendezvous *rendezvous);
/* Calls `found` for each member there, and removes those that are dead. False of `found` ends it. */
void rendezvous_scan(struct rendezvous *rendezvous, bool (*found)(void *owner, uint64_t id), void *owner);
/* A connected socket, non-blocking; or -errno. */
int rendezvous_connect(struct rendezvous *rendezvous, uint64_t id);
/* The next one who has connected; or -errno (-EAGAIN: there is none; -EPERM: another user's, dropped). */
int rendezvous_accept(struct rendezvous *rendezvous);
