/*
 * What a network card does for its driver, in software: checksums, and the cutting of one large TCP or UDP packet into
 * frames of a wire's size. A `struct virtio_net_hdr` (virtio 1.2 5.1.6) says what is to be done; frame and header may
 * come from anybody, so both are checked before anything is done.
 *
 *	| Ethernet, VLAN tag? | IPv4, or IPv6 with extensions | TCP, or UDP | payload                    |
 *	0                     network                         transport     payload           length
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/virtio_net.h>

/* The least that a segment carries: Linux sends no smaller ones, and a frame cannot become more than 1400. */
#define OFFLOAD_SEGMENT_MIN 48

struct offload_packet {
	size_t length; /* of the frame */
	uint16_t network, transport, payload;
	uint8_t version;      /* 4 or 6; 0: neither */
	uint8_t protocol;     /* IPPROTO_TCP, IPPROTO_UDP ...; of the first fragment */
	uint16_t next_header; /* IPv6: where the type of the fragmentable part stands */
	bool fragment;        /* a part of a packet: the transport is not what it seems */
};

/* Finds the parts. False: not an IP packet, or cut short; then nothing but `length` holds. */
bool offload_parse(struct offload_packet *packet, const uint8_t *frame, size_t length);

/* Is this header possible with some frame of that length? For those who pass both on to somebody who looks closer. */
bool offload_plausible(const struct virtio_net_hdr *header, size_t length);
/* Is this header possible with that frame? */
bool offload_valid(const struct virtio_net_hdr *header, const uint8_t *frame, size_t length);

/*
 * Does what the header asks for except the cutting: checksum and length fields are right for the whole packet, however
 * long. Afterwards the header's flags and checksum fields are 0; the kind and size of segments stay. The header is
 * valid (offload_valid()).
 */
void offload_finish_checksum(struct virtio_net_hdr *header, uint8_t *frame, size_t length);
/* The contrary: a finished TCP or UDP packet asks for its checksum. False: it is neither (nothing is changed). */
bool offload_request_checksum(struct virtio_net_hdr *header, uint8_t *frame, size_t length);

/* Cuts a packet. The frame is borrowed until the last segment, and is not changed. */
struct offload_cutter {
	const uint8_t *frame;
	struct offload_packet packet;
	uint8_t kind;  /* gso_type without ECN */
	uint16_t size; /* payload of one segment */
	uint32_t identification;
	size_t at; /* of the payload; packet.length: the end */
	unsigned count;
};
/* The header is valid and its gso_type is not NONE. */
void offload_cutter_init(struct offload_cutter *cutter, const struct virtio_net_hdr *header, const uint8_t *frame,
                         size_t length);
/* The next finished frame into `segment`, which has room for the headers, 8 bytes, and gso_size. 0: there is none. */
size_t offload_cut(struct offload_cutter *cutter, uint8_t *segment);

/* The Internet checksum's sum (RFC 1071) of bytes that begin at an even place, on top of `sum`; and what is sent. */
uint64_t checksum_add(uint64_t sum, const void *data, size_t length);
uint16_t checksum_fold(uint64_t sum); /* in network order; never 0, which means "none" in UDP */
