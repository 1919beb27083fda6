#include "backends/net/slirp_guard.h"

#include <arpa/inet.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backends/net/net.h"

#define IPV4_HEADER      20u
#define IPV6_HEADER      40u
#define ARP_LENGTH       28u
#define PORT_DHCP_SERVER 67
#define PORT_DHCP_CLIENT 68
#define PORT_TFTP        69
#define TCP_SYN          0x02
#define TCP_URG          0x20
#define TCP_OPT_EOL      0
#define TCP_OPT_NOP      1
#define TCP_OPT_MSS      2
#define MSS_LEAST        OFFLOAD_SEGMENT_MIN

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, size_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

void slirp_guard_init(struct slirp_guard *guard)
{
	*guard = (struct slirp_guard){0};
	if (getrandom(&guard->seed, sizeof(guard->seed), 0) < 0)
		guard->seed = 0x811c9dc5;
}

void slirp_guard_destroy(struct slirp_guard *guard)
{
	for (unsigned i = 0; i < GUARD_DATAGRAMS; i++)
		free(guard->datagram[i].packet);
}

/* ---- IPv4 fragments: RFC 791 3.2, without any that overlap (RFC 5722 forbids them in IPv6 for good reasons) ---- */

static struct guard_datagram *find_datagram(struct slirp_guard *guard, const uint8_t key[12], int64_t now)
{
	struct guard_datagram *oldest = guard->datagram;

	for (unsigned i = 0; i < GUARD_DATAGRAMS; i++) {
		struct guard_datagram *datagram = &guard->datagram[i];

		if (datagram->used && now - datagram->since > GUARD_AGE_MS)
			datagram->used = false;
		if (datagram->used && memcmp(datagram->key, key, sizeof(datagram->key)) == 0)
			return datagram;
		if (oldest->used && (!datagram->used || datagram->since < oldest->since))
			oldest = datagram;
	}
	if (!oldest->packet)
		oldest->packet = malloc(NET_FRAME_MAX);
	if (!oldest->packet)
		return NULL;
	oldest->used = true;
	oldest->since = now;
	oldest->total = 0;
	oldest->count = 0;
	memcpy(oldest->key, key, sizeof(oldest->key));
	return oldest;
}

/* Remembers that these bytes have come. False: some had already, or they lie apart from too many others. */
static bool add_part(struct guard_datagram *datagram, uint32_t begin, uint32_t end)
{
	unsigned at = 0;

	while (at < datagram->count && datagram->part[at].end < begin)
		at++;
	if (at < datagram->count && datagram->part[at].end == begin) {
		datagram->part[at].end = end;
		if (at + 1 < datagram->count && datagram->part[at + 1].begin <= end) {
			if (datagram->part[at + 1].begin < end)
				return false;
			datagram->part[at].end = datagram->part[at + 1].end;
			datagram->count--;
			memmove(&datagram->part[at + 1], &datagram->part[at + 2],
			        (datagram->count - at - 1) * sizeof(datagram->part[0]));
		}
		return true;
	}
	if (at < datagram->count && datagram->part[at].begin < end)
		return false;
	if (at < datagram->count && datagram->part[at].begin == end) {
		datagram->part[at].begin = begin;
		return true;
	}
	if (datagram->count == GUARD_HOLES)
		return false;
	memmove(&datagram->part[at + 1], &datagram->part[at], (datagram->count - at) * sizeof(datagram->part[0]));
	datagram->part[at].begin = begin;
	datagram->part[at].end = end;
	datagram->count++;
	return true;
}

/* A fragment with a header of 20 bytes. The length of the whole frame when it is the last to come; 0. */
static size_t reassemble(struct slirp_guard *guard, uint8_t **frame, size_t length, int64_t now)
{
	const uint8_t *ip = *frame + ETH_HLEN;
	uint32_t begin = (get16(ip + 6) & 0x1fff) * 8u, end = begin + (uint32_t)(length - ETH_HLEN - IPV4_HEADER);
	bool more = get16(ip + 6) & 0x2000;
	uint8_t key[12];
	struct guard_datagram *datagram;

	memcpy(key, ip + 12, 8);
	memcpy(key + 8, ip + 4, 2);
	key[10] = ip[9];
	key[11] = 0;
	if (begin == end || end > UINT16_MAX - IPV4_HEADER || (more && end % 8))
		return 0;
	datagram = find_datagram(guard, key, now);
	if (!datagram)
		return 0;
	if ((datagram->total && (end > datagram->total || !more)) || !add_part(datagram, begin, end) ||
	    (!more && datagram->part[datagram->count - 1].end > end)) {
		datagram->used = false; /* somebody plays */
		return 0;
	}
	if (!more)
		datagram->total = end;
	if (begin == 0)
		memcpy(datagram->packet, *frame, ETH_HLEN + IPV4_HEADER);
	memcpy(datagram->packet + ETH_HLEN + IPV4_HEADER + begin, ip + IPV4_HEADER, end - begin);
	if (!datagram->total || datagram->count != 1 || datagram->part[0].begin != 0 ||
	    datagram->part[0].end != datagram->total)
		return 0;
	*frame = datagram->packet;
	datagram->used = false;
	uint8_t *whole = *frame + ETH_HLEN;
	uint16_t checksum;
	put16(whole + 2, IPV4_HEADER + datagram->total);
	put16(whole + 6, 0);
	put16(whole + 10, 0);
	checksum = checksum_fold(checksum_add(0, whole, IPV4_HEADER));
	memcpy(whole + 10, &checksum, 2);
	return ETH_HLEN + IPV4_HEADER + datagram->total;
}

/* ---- TCP's maximum segment size ---- */

/* Of the connection, seen from the guest. */
static uint32_t flow_key(const struct slirp_guard *guard, const struct offload_packet *packet, const uint8_t *frame,
                         bool from_guest)
{
	size_t size = packet->version == 4 ? 4 : 16;
	const uint8_t *source = frame + packet->network + (packet->version == 4 ? 12 : 8),
	              *ports = frame + packet->transport;
	const uint8_t *parts[4] = {source, ports, source + size, ports + 2};
	uint32_t key = guard->seed;

	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *part = parts[from_guest ? i : i ^ 2];

		for (size_t j = 0; j < (i % 2 ? 2 : size); j++)
			key = (key ^ part[j]) * 0x01000193u;
	}
	return key ^ key >> 15;
}

static unsigned full_segment(const struct offload_packet *packet, unsigned mtu)
{
	return mtu - (packet->version == 4 ? 40 : 60);
}

/* RFC 9293 3.7.1; NULL: there is none. */
static uint8_t *find_mss(uint8_t *tcp, size_t header)
{
	for (size_t at = 20; at < header;) {
		size_t length;

		if (tcp[at] == TCP_OPT_EOL)
			return NULL;
		if (tcp[at] == TCP_OPT_NOP) {
			at++;
			continue;
		}
		if (at + 2 > header)
			return NULL;
		length = tcp[at + 1];
		if (length < 2 || at + length > header)
			return NULL;
		if (tcp[at] == TCP_OPT_MSS)
			return length == 4 ? tcp + at + 2 : NULL;
		at += length;
	}
	return NULL;
}

/* Changes two bytes and the checksum over them (RFC 1624 3): a bad one stays bad. */
static void replace16(uint8_t *tcp, size_t at, uint16_t value)
{
	const uint16_t fresh = htons(value);
	uint16_t old, checksum;
	uint32_t difference;

	memcpy(&old, tcp + at, 2);
	memcpy(&checksum, tcp + 16, 2);
	difference = (uint32_t)(uint16_t)~old + fresh;
	difference = (difference & 0xffff) + (difference >> 16);
	if (at % 2)
		difference = __builtin_bswap16((uint16_t)difference);
	checksum = checksum_fold((uint64_t)(uint16_t)~checksum + difference);
	memcpy(tcp + at, &fresh, 2);
	memcpy(tcp + 16, &checksum, 2);
}

/* A SYN: what it says is for us, and libslirp hears of its own wire. */
static void take_mss(struct slirp_guard *guard, const struct offload_packet *packet, uint8_t *frame, unsigned mtu,
                     unsigned wide)
{
	uint8_t *tcp = frame + packet->transport;
	uint8_t *option = find_mss(tcp, (size_t)packet->payload - packet->transport);
	unsigned mss = option ? get16(option) : packet->version == 4 ? 536 : 1220;
	uint32_t key = flow_key(guard, packet, frame, true);

	if (mss < full_segment(packet, mtu)) {
		guard->flow[key % GUARD_FLOWS].key = key;
		guard->flow[key % GUARD_FLOWS].mss = (uint16_t)(mss < MSS_LEAST ? MSS_LEAST : mss);
	} else if (guard->flow[key % GUARD_FLOWS].key == key) {
		guard->flow[key % GUARD_FLOWS].mss = 0;
	}
	if (option)
		replace16(tcp, (size_t)(option - tcp), (uint16_t)full_segment(packet, wide));
}

unsigned slirp_guard_segment(const struct slirp_guard *guard, const struct offload_packet *packet, const uint8_t *frame,
                             unsigned mtu)
{
	uint32_t key = flow_key(guard, packet, frame, false);
	unsigned full = full_segment(packet, mtu);

	if (guard->flow[key % GUARD_FLOWS].mss && guard->flow[key % GUARD_FLOWS].key == key &&
	    guard->flow[key % GUARD_FLOWS].mss < full)
		return guard->flow[key % GUARD_FLOWS].mss;
	return full;
}

/* ---- admission ---- */

static bool admit_tcp(struct slirp_guard *guard, const struct offload_packet *packet, uint8_t *frame, unsigned mtu,
                      unsigned wide)
{
	uint8_t *tcp = frame + packet->transport;

	if (tcp[13] & TCP_URG) {
		replace16(tcp, 12, (uint16_t)(get16(tcp + 12) & ~TCP_URG));
		replace16(tcp, 18, 0);
	}
	if (tcp[13] & TCP_SYN)
		take_mss(guard, packet, frame, mtu, wide);
	return true;
}

static bool admit_udp(const struct offload_packet *packet, const uint8_t *frame)
{
	const uint8_t *udp = frame + packet->transport;

	return get16(udp + 4) == packet->length - packet->transport && get16(udp + 2) != PORT_TFTP;
}

/* Router and neighbour solicitations and advertisements of neighbours, with their fixed parts (RFC 4861 4); echo. */
static bool admit_icmpv6(const struct slirp_guard *guard, const struct offload_packet *packet, const uint8_t *frame)
{
	static const uint8_t link_local[16] = {0xfe, 0x80, [15] = 2};
	const uint8_t *target = frame + packet->network + 24;
	size_t length = packet->length - packet->transport;

	if (length < 8)
		return false;
	switch (frame[packet->transport]) {
	case 128: /* libslirp complains on stderr of each one to somebody else */
		return memcmp(target, guard->host6, 16) == 0 || memcmp(target, link_local, 16) == 0;
	case 133:
		return true;
	case 135:
	case 136:
		return length >= 24;
	default:
		return false;
	}
}

/* May an answer be sent to it? */
static bool source_valid_ipv4(const struct offload_packet *packet, const uint8_t *frame)
{
	const uint8_t *source = frame + packet->network + 12, *udp = frame + packet->transport;

	if (source[0] == 0)
		return packet->protocol == IPPROTO_UDP && get16(udp) == PORT_DHCP_CLIENT &&
		       get16(udp + 2) == PORT_DHCP_SERVER;
	return source[0] != 127 && source[0] < 224;
}

static bool source_valid_ipv6(const struct offload_packet *packet, const uint8_t *frame)
{
	static const uint8_t nobody[15];
	const uint8_t *source = frame + packet->network + 8;

	if (memcmp(source, nobody, sizeof(nobody)) == 0 && source[15] <= 1)
		return source[15] == 0 && packet->protocol == IPPROTO_ICMPV6 &&
		       (frame[packet->transport] == 133 || frame[packet->transport] == 135);
	return source[0] != 0xff;
}

static size_t admit_ipv4(struct slirp_guard *guard, uint8_t **frame, size_t length, unsigned mtu, unsigned wide,
                         int64_t now)
{
	struct offload_packet packet;
	const uint8_t *ip = *frame + ETH_HLEN;
	size_t total;

	if (length < ETH_HLEN + IPV4_HEADER || ip[0] != 0x45)
		return 0;
	total = get16(ip + 2);
	if (total < IPV4_HEADER || total > length - ETH_HLEN ||
	    checksum_fold(checksum_add(0, ip, IPV4_HEADER)) != 0xffff)
		return 0;
	length = ETH_HLEN + total; /* without the padding */
	if (get16(ip + 6) & 0x3fff)
		length = reassemble(guard, frame, length, now);
	if (!length || !offload_parse(&packet, *frame, length) || !source_valid_ipv4(&packet, *frame))
		return 0;
	switch (packet.protocol) {
	case IPPROTO_TCP:
		return admit_tcp(guard, &packet, *frame, mtu, wide) ? length : 0;
	case IPPROTO_UDP:
		return admit_udp(&packet, *frame) ? length : 0;
	case IPPROTO_ICMP: /* echo */
		return length - packet.transport >= 8 && (*frame)[packet.transport] == 8 ? length : 0;
	default:
		return 0;
	}
}

static size_t admit_ipv6(struct slirp_guard *guard, uint8_t *frame, size_t length, unsigned mtu, unsigned wide)
{
	struct offload_packet packet;
	const uint8_t *ip = frame + ETH_HLEN;
	size_t total;

	if (length < ETH_HLEN + IPV6_HEADER)
		return 0;
	total = IPV6_HEADER + get16(ip + 4);
	if (total > length - ETH_HLEN)
		return 0;
	length = ETH_HLEN + total;
	if (!offload_parse(&packet, frame, length) || packet.transport != ETH_HLEN + IPV6_HEADER || packet.fragment)
		return 0;
	switch (packet.protocol) {
	case IPPROTO_TCP:
		return source_valid_ipv6(&packet, frame) && admit_tcp(guard, &packet, frame, mtu, wide) ? length : 0;
	case IPPROTO_UDP:
		return source_valid_ipv6(&packet, frame) && admit_udp(&packet, frame) ? length : 0;
	case IPPROTO_ICMPV6:
		return admit_icmpv6(guard, &packet, frame) && source_valid_ipv6(&packet, frame) ? length : 0;
	default:
		return 0;
	}
}

size_t slirp_guard_admit(struct slirp_guard *guard, uint8_t **frame, size_t length, unsigned mtu, unsigned wide,
                         int64_t now)
{
	if (length < ETH_HLEN || (*frame)[6] & 1)
		return 0;
	switch (get16(*frame + 12)) {
	case ETHERTYPE_ARP:
		return length < ETH_HLEN + ARP_LENGTH ? 0 : ETH_HLEN + ARP_LENGTH;
	case ETHERTYPE_IP:
		return admit_ipv4(guard, frame, length, mtu, wide, now);
	case ETHERTYPE_IPV6:
		return admit_ipv6(guard, *frame, length, mtu, wide);
	default:
		return 0;
	}
}
