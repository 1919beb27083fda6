#include "backends/net/offload.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <string.h>

#include "backends/net/net.h"

#define IPV4_HEADER          20u
#define IPV6_HEADER          40u
#define IPV6_FRAGMENT_HEADER 8u
#define TCP_HEADER           20u
#define UDP_HEADER           8u
#define IPV4_MORE_FRAGMENTS  0x2000
#define IPV6_EXTENSIONS_MAX  8
#define TCP_FLAGS            13
#define TCP_FIN              0x01
#define TCP_PSH              0x08
#define TCP_CWR              0x80

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *at)
{
	return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put32(uint8_t *at, uint32_t value)
{
	put16(at, (uint16_t)(value >> 16));
	put16(at + 2, (uint16_t)value);
}

/* The sum is the same in either byte order (RFC 1071 2B), so words are added as they lie in memory. */
uint64_t checksum_add(uint64_t sum, const void *data, size_t length)
{
	const uint8_t *at = data;
	uint32_t word;
	uint16_t half;

	for (; length >= 4; at += 4, length -= 4) {
		memcpy(&word, at, 4);
		sum += word;
	}
	if (length >= 2) {
		memcpy(&half, at, 2);
		sum += half;
		at += 2;
		length -= 2;
	}
	if (length)
		sum += htons((uint16_t)(*at << 8));
	return sum;
}

uint16_t checksum_fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)(sum == 0xffff ? 0xffff : ~sum);
}

static void put_checksum(uint8_t *at, uint64_t sum)
{
	uint16_t value = checksum_fold(sum);

	memcpy(at, &value, 2);
}

static bool parse_ipv4(struct offload_packet *packet, const uint8_t *frame)
{
	const uint8_t *ip = frame + packet->network;
	size_t header;

	if (packet->length < packet->network + IPV4_HEADER || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 15) * 4u;
	if (header < IPV4_HEADER || packet->length < packet->network + header)
		return false;
	packet->version = 4;
	packet->protocol = ip[9];
	packet->fragment = (get16(ip + 6) & 0x3fff) != 0;
	packet->transport = (uint16_t)(packet->network + header);
	return true;
}

/* RFC 8200 4: the extension headers whose length we know. */
static bool parse_ipv6(struct offload_packet *packet, const uint8_t *frame)
{
	const uint8_t *ip = frame + packet->network;
	size_t at = packet->network + IPV6_HEADER;

	if (packet->length < at || ip[0] >> 4 != 6)
		return false;
	packet->version = 6;
	packet->protocol = ip[6];
	packet->next_header = (uint16_t)(packet->network + 6);
	for (unsigned i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		size_t header;

		if (packet->protocol != IPPROTO_HOPOPTS && packet->protocol != IPPROTO_ROUTING &&
		    packet->protocol != IPPROTO_DSTOPTS && packet->protocol != IPPROTO_FRAGMENT)
			break;
		if (packet->length < at + 8)
			return false;
		header = packet->protocol == IPPROTO_FRAGMENT ? IPV6_FRAGMENT_HEADER : (frame[at + 1] + 1) * 8u;
		if (packet->length < at + header)
			return false;
		packet->fragment |= packet->protocol == IPPROTO_FRAGMENT;
		packet->protocol = frame[at];
		packet->next_header = (uint16_t)at;
		at += header;
	}
	packet->transport = (uint16_t)at;
	return true;
}

bool offload_parse(struct offload_packet *packet, const uint8_t *frame, size_t length)
{
	uint16_t type;
	size_t header = 0;

	*packet = (struct offload_packet){.length = length};
	if (length < ETH_HLEN || length > NET_FRAME_MAX)
		return false;
	type = get16(frame + 12);
	packet->network = ETH_HLEN;
	if (type == ETHERTYPE_VLAN && length >= ETH_HLEN + 4) {
		type = get16(frame + 16);
		packet->network += 4;
	}
	if (!(type == ETHERTYPE_IP && parse_ipv4(packet, frame)) &&
	    !(type == ETHERTYPE_IPV6 && parse_ipv6(packet, frame))) {
		packet->version = 0;
		return false;
	}
	if (packet->fragment) {
		packet->payload = packet->transport;
		return true;
	}
	if (packet->protocol == IPPROTO_TCP) {
		if (length < packet->transport + TCP_HEADER)
			return false;
		header = (frame[packet->transport + 12] >> 4) * 4u;
		if (header < TCP_HEADER)
			return false;
	} else if (packet->protocol == IPPROTO_UDP) {
		header = UDP_HEADER;
	}
	packet->payload = (uint16_t)(packet->transport + header);
	return length >= packet->transport + header;
}

static uint8_t segment_kind(const struct virtio_net_hdr *header)
{
	return header->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
}

/* Where the fields of the IP header count at most 64 KiB. */
static bool ip_length_fits(const struct offload_packet *packet)
{
	size_t length = packet->length - packet->network;

	return length - (packet->version == 6 ? IPV6_HEADER : 0) <= UINT16_MAX;
}

/* With the fragment header that IPv6 needs. */
static bool fragments_fit(const struct offload_packet *packet)
{
	return packet->version == 4 ||
	       (packet->length + IPV6_FRAGMENT_HEADER <= NET_FRAME_MAX &&
	        packet->length + IPV6_FRAGMENT_HEADER - packet->network - IPV6_HEADER <= UINT16_MAX);
}

static bool segmentation_valid(const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct offload_packet packet;

	if (!offload_parse(&packet, frame, length) || packet.fragment || !ip_length_fits(&packet))
		return false;
	switch (segment_kind(header)) {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return packet.version == 4 && packet.protocol == IPPROTO_TCP;
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return packet.version == 6 && packet.protocol == IPPROTO_TCP;
	case VIRTIO_NET_HDR_GSO_UDP:
		return packet.protocol == IPPROTO_UDP && fragments_fit(&packet);
	default:
		return false;
	}
}

bool offload_plausible(const struct virtio_net_hdr *header, size_t length)
{
	if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM &&
	    (header->csum_start < ETH_HLEN || (size_t)header->csum_start + header->csum_offset + 2 > length))
		return false;
	switch (header->gso_type) {
	case VIRTIO_NET_HDR_GSO_NONE:
		return true;
	case VIRTIO_NET_HDR_GSO_TCPV4:
	case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
	case VIRTIO_NET_HDR_GSO_TCPV6:
	case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
	case VIRTIO_NET_HDR_GSO_UDP:
		return header->gso_size >= OFFLOAD_SEGMENT_MIN;
	default:
		return false;
	}
}

bool offload_valid(const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	return offload_plausible(header, length) &&
	       (header->gso_type == VIRTIO_NET_HDR_GSO_NONE || segmentation_valid(header, frame, length));
}

/* Of the pseudo-header: RFC 9293 3.1, RFC 768, RFC 8200 8.1. */
static uint64_t pseudo_header(const struct offload_packet *packet, const uint8_t *frame, size_t transport_length)
{
	const uint8_t *ip = frame + packet->network;
	uint64_t sum = packet->version == 4 ? checksum_add(0, ip + 12, 8) : checksum_add(0, ip + 8, 32);

	return sum + htons(packet->protocol) + htonl((uint32_t)transport_length);
}

/* The length of everything behind `network`, and IPv4's own checksum. */
static void finish_network(const struct offload_packet *packet, uint8_t *frame, size_t length)
{
	uint8_t *ip = frame + packet->network;

	if (packet->version == 4) {
		put16(ip + 2, (uint16_t)(length - packet->network));
		put16(ip + 10, 0);
		put_checksum(ip + 10, checksum_add(0, ip, packet->transport - packet->network));
	} else {
		put16(ip + 4, (uint16_t)(length - packet->network - IPV6_HEADER));
	}
}

static uint8_t *checksum_field(const struct offload_packet *packet, uint8_t *frame)
{
	return frame + packet->transport + (packet->protocol == IPPROTO_TCP ? 16 : 6);
}

static void finish_transport(const struct offload_packet *packet, uint8_t *frame, size_t length)
{
	uint8_t *field = checksum_field(packet, frame);
	size_t transport_length = length - packet->transport;

	put16(field, 0);
	put_checksum(field, checksum_add(pseudo_header(packet, frame, transport_length), frame + packet->transport,
	                                 transport_length));
}

void offload_finish_checksum(struct virtio_net_hdr *header, uint8_t *frame, size_t length)
{
	struct offload_packet packet;

	/* Drivers differ in what they leave in the fields of a packet that is to be cut, so they are made anew. */
	if (header->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
		offload_parse(&packet, frame, length);
		if (packet.protocol == IPPROTO_UDP)
			put16(frame + packet.transport + 4, (uint16_t)(length - packet.transport));
		finish_network(&packet, frame, length);
		finish_transport(&packet, frame, length);
	} else if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		/* The field holds the pseudo-header's sum, so it is part of what is added up. */
		put_checksum(frame + header->csum_start + header->csum_offset,
		             checksum_add(0, frame + header->csum_start, length - header->csum_start));
	}
	header->flags = 0;
	header->csum_start = header->csum_offset = 0;
}

bool offload_request_checksum(struct virtio_net_hdr *header, uint8_t *frame, size_t length)
{
	struct offload_packet packet;
	uint64_t sum;
	uint16_t folded;

	if (!offload_parse(&packet, frame, length) || packet.fragment || !ip_length_fits(&packet) ||
	    (packet.protocol != IPPROTO_TCP && packet.protocol != IPPROTO_UDP))
		return false;
	sum = pseudo_header(&packet, frame, length - packet.transport);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	folded = (uint16_t)sum;
	memcpy(checksum_field(&packet, frame), &folded, 2);
	header->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	header->csum_start = packet.transport;
	header->csum_offset = packet.protocol == IPPROTO_TCP ? 16 : 6;
	header->hdr_len = packet.payload;
	return true;
}

void offload_cutter_init(struct offload_cutter *cutter, const struct virtio_net_hdr *header, const uint8_t *frame,
                         size_t length)
{
	struct offload_packet *packet = &cutter->packet;

	*cutter = (struct offload_cutter){.frame = frame, .kind = segment_kind(header), .size = header->gso_size};
	offload_parse(packet, frame, length);
	cutter->at = packet->payload;
	if (cutter->kind == VIRTIO_NET_HDR_GSO_UDP) {
		cutter->at = packet->transport; /* the first fragment begins with the UDP header */
		cutter->size &= (uint16_t)~7u;  /* offsets count eights */
	}
	if (packet->version == 4)
		cutter->identification = get16(frame + packet->network + 4);
}

static size_t cut_tcp(struct offload_cutter *cutter, uint8_t *segment, size_t payload, bool first, bool last)
{
	const struct offload_packet *packet = &cutter->packet;
	size_t length = packet->payload + payload;
	uint8_t *tcp = segment + packet->transport;

	memcpy(segment, cutter->frame, packet->payload);
	memcpy(segment + packet->payload, cutter->frame + cutter->at, payload);
	if (packet->version == 4)
		put16(segment + packet->network + 4, (uint16_t)(cutter->identification + cutter->count));
	put32(tcp + 4, get32(tcp + 4) + (uint32_t)(cutter->at - packet->payload));
	if (!first)
		tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* RFC 3168 6.1.2: once */
	if (!last)
		tcp[TCP_FLAGS] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
	finish_network(packet, segment, length);
	finish_transport(packet, segment, length);
	return length;
}

/* One UDP packet becomes IP fragments; its checksum stands in the first and covers all, so the caller has finished it.
 */
static size_t cut_ipv4_fragment(struct offload_cutter *cutter, uint8_t *segment, size_t payload, bool last)
{
	const struct offload_packet *packet = &cutter->packet;
	uint8_t *ip = segment + packet->network;

	memcpy(segment, cutter->frame, packet->transport);
	memcpy(segment + packet->transport, cutter->frame + cutter->at, payload);
	put16(ip + 6, (uint16_t)((cutter->at - packet->transport) / 8 | (last ? 0 : IPV4_MORE_FRAGMENTS)));
	finish_network(packet, segment, packet->transport + payload);
	return packet->transport + payload;
}

/* RFC 8200 4.5. The identification is taken from the packet's own checksum and ports: it is as good as random. */
static size_t cut_ipv6_fragment(struct offload_cutter *cutter, uint8_t *segment, size_t payload, bool last)
{
	const struct offload_packet *packet = &cutter->packet;
	uint8_t *fragment = segment + packet->transport;
	size_t length = packet->transport + IPV6_FRAGMENT_HEADER + payload;

	memcpy(segment, cutter->frame, packet->transport);
	memcpy(fragment + IPV6_FRAGMENT_HEADER, cutter->frame + cutter->at, payload);
	fragment[0] = segment[packet->next_header];
	fragment[1] = 0;
	put16(fragment + 2, (uint16_t)((cutter->at - packet->transport) | !last));
	memcpy(fragment + 4, cutter->frame + packet->transport + 6, 2);
	memcpy(fragment + 6, cutter->frame + packet->transport, 2);
	segment[packet->next_header] = IPPROTO_FRAGMENT;
	finish_network(packet, segment, length);
	return length;
}

size_t offload_cut(struct offload_cutter *cutter, uint8_t *segment)
{
	const struct offload_packet *packet = &cutter->packet;
	size_t left = packet->length - cutter->at;
	size_t payload = left < cutter->size ? left : cutter->size, length;

	if (left == 0 && cutter->count > 0)
		return 0;
	if (cutter->kind != VIRTIO_NET_HDR_GSO_UDP)
		length = cut_tcp(cutter, segment, payload, cutter->count == 0, payload == left);
	else if (packet->version == 4)
		length = cut_ipv4_fragment(cutter, segment, payload, payload == left);
	else
		length = cut_ipv6_fragment(cutter, segment, payload, payload == left);
	cutter->at += payload;
	cutter->count++;
	return length;
}
