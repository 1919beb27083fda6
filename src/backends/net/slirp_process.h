/*
 * --net user: libslirp parses what the guest sends, and runs in a process of its own (hostile-guest class 6).
 *
 *	ring3: user.c ── frames, finished ──> SEQPACKET ──> slirp_process.c ── net.c ── slirp.c ── libslirp ── sockets of the host
 *	       user.c <── struct virtio_net_hdr, frame ──── slirp_process.c <─ net.c <── slirp.c <── libslirp <──┘
 *
 * The process is ring3 itself, started anew (another address space layout, none of its memory), with one socket as descriptor
 * SLIRP_PROCESS_SOCKET: struct net_options comes first, an int goes back (0 or -errno, after a logged line), and then it is jailed
 * (host/jail.h). It ends with its parent, or when the socket does.
 */
#pragma once

#include <stdbool.h>

#define SLIRP_PROCESS_NAME   "ring3-net" /* its argv[0] */
#define SLIRP_PROCESS_SOCKET 3

/* To be called first by every main() whose process opens NET_USER: does not return where this is that process. */
void slirp_process_enter(int argc, char **argv);
