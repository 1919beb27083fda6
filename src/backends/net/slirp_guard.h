/*
 * What libslirp gets to see of the guest's frames: whole, well-formed packets of the kinds that it serves, and nothing
 * that it has been broken with (hostile-guest class 6). It never reassembles, as that has been done here; it sees no IP
 * options, no urgent pointers, no TFTP, no NC-SI, no source address to which nothing can be sent.
 *
 * And TCP's maximum segment size: libslirp's wire is wider than the driver's, and it forgets what a SYN says about
 * that. So the least sizes are remembered here for each connection, and libslirp's packets are cut accordingly.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/net/offload.h"

#define GUARD_DATAGRAMS 8     /* that are being reassembled */
#define GUARD_AGE_MS    15000 /* RFC 1122 3.3.2 says more; a guest's fragments come at once */
#define GUARD_HOLES     64    /* fragments of one datagram that are not adjacent to another */
#define GUARD_FLOWS     1024

struct guard_datagram {
	bool used;
	uint8_t key[12]; /* addresses, identification, protocol */
	int64_t since;
	uint8_t *packet; /* NET_FRAME_MAX: headers and what has come */
	size_t total;    /* of the payload; 0: the last fragment has not come */
	unsigned count;
	struct {
		uint32_t begin, end;
	} part[GUARD_HOLES]; /* in order, apart from each other */
};

struct slirp_guard {
	struct guard_datagram datagram[GUARD_DATAGRAMS];
	struct {
		uint32_t key;
		uint16_t mss; /* 0: free */
	} flow[GUARD_FLOWS];
	uint32_t seed;
	uint8_t host6[16]; /* libslirp's own address; echo requests go to it and nowhere else. The owner's to set */
};

void slirp_guard_init(struct slirp_guard *guard);
void slirp_guard_destroy(struct slirp_guard *guard);
/*
 * A frame of the guest, finished; it may be changed. The length of what libslirp shall have (in `*frame`, which may then
 * be the guard's own until the next call), or 0: nothing. `mtu`: of the guest's wire; `wide`: of libslirp's.
 */
size_t slirp_guard_admit(struct slirp_guard *guard, uint8_t **frame, size_t length, unsigned mtu, unsigned wide,
                         int64_t now);
/* How much of a TCP packet of libslirp's one segment may carry. */
unsigned slirp_guard_segment(const struct slirp_guard *guard, const struct offload_packet *packet, const uint8_t *frame,
                             unsigned mtu);
