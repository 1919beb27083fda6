/* --net user: libslirp, driven with frames made by hand, against servers on the host's loopback interface. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <linux/landlock.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "backends/net/net_private.h"
#include "backends/net/slirp_process.h"
#include "host/jail.h"
#include "net_rig.h"

#define GATEWAY 0x0a000202
#define GUEST   0x0a00020f
#define DNS     0x0a000203

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t gateway_mac[6] = {0x52, 0x55, 0x0a, 0x00, 0x02, 0x02};

static struct event_loop *loop;
static struct rig rig;

/* A free port of the host's loopback interface, and a socket there. */
static int host_socket(int type, unsigned *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	struct timeval patience = {60, 0};

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	*port = ntohs(address.sin_port);
	return fd;
}

static unsigned free_port(int type)
{
	unsigned port;

	close(host_socket(type, &port));
	return port;
}

static void open_user(const char *options)
{
	loop = event_loop_create();
	assert_non_null(loop);
	rig_attach(&rig, loop, rig_open(options));
	assert_true(net_link(rig.net));
}

/* Without the process: what libslirp does not get to see is counted here. */
static void open_inner(const char *text)
{
	struct net *net = net_create(&net_backend_slirp, "user");
	struct net_options options;

	assert_non_null(net);
	assert_int_equal(net_options_parse(&options, text), 0);
	assert_int_equal(net->backend->open(net, &options), 0);
	net_mac_default(net->mac, NET_USER, 0);
	loop = event_loop_create();
	assert_non_null(loop);
	rig_attach(&rig, loop, net);
}

static void close_user(void)
{
	rig_close(&rig);
	event_loop_destroy(loop);
}

/* The next frame that is IPv4 with that protocol; others (router advertisements) are passed over. */
static struct rig_frame *next_ipv4(unsigned protocol)
{
	for (unsigned i = 0; i < 100; i++) {
		struct rig_frame *frame = rig_next(&rig);

		if (frame->length >= 34 && rig_get16(frame->data + 12) == 0x0800 && frame->data[23] == protocol)
			return frame;
		free(frame);
	}
	fail();
	return NULL;
}

static struct rig_frame *next_of_type(unsigned type)
{
	for (unsigned i = 0; i < 100; i++) {
		struct rig_frame *frame = rig_next(&rig);

		if (rig_get16(frame->data + 12) == type)
			return frame;
		free(frame);
	}
	fail();
	return NULL;
}

static void send_arp(unsigned operation, const uint8_t *to, uint32_t sender, uint32_t target)
{
	uint8_t frame[60] = {0};
	const uint8_t *mac = net_mac(rig.net);

	rig_ethernet(frame, to, mac, 0x0806);
	memcpy(frame + 14, "\x00\x01\x08\x00\x06\x04", 6);
	rig_put16(frame + 20, operation);
	memcpy(frame + 22, mac, 6);
	rig_put32(frame + 28, sender);
	rig_put32(frame + 38, target);
	rig_send(&rig, frame, sizeof(frame));
}

static void send_udp(uint32_t from, uint32_t to, unsigned from_port, unsigned to_port, const void *data, size_t length)
{
	uint8_t frame[2048];

	rig_ethernet(frame, to == INADDR_BROADCAST ? broadcast : gateway_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(frame, from, to, IPPROTO_UDP, 8 + length);
	rig_put16(frame + 34, from_port);
	rig_put16(frame + 36, to_port);
	rig_put16(frame + 38, (unsigned)(8 + length));
	memcpy(frame + 42, data, length);
	rig_transport_finish(frame, 34, 6, 42 + length);
	rig_send(&rig, frame, 42 + length);
}

/* One TCP segment; `mss`: an option in front of which a NOP may stand. */
static size_t make_tcp(uint8_t *frame, unsigned from_port, unsigned to_port, uint32_t seq, uint32_t ack, unsigned flags,
                       unsigned mss, bool nop, const void *data, size_t length)
{
	size_t header = mss ? nop ? 28 : 24 : 20;
	uint8_t *tcp = frame + 34;

	rig_ethernet(frame, gateway_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(frame, GUEST, GATEWAY, IPPROTO_TCP, header + length);
	memset(tcp, 0, header);
	rig_put16(tcp, from_port);
	rig_put16(tcp + 2, to_port);
	rig_put32(tcp + 4, seq);
	rig_put32(tcp + 8, ack);
	tcp[12] = (uint8_t)(header / 4 << 4);
	tcp[13] = (uint8_t)flags;
	rig_put16(tcp + 14, 65535);
	if (mss) {
		uint8_t *option = tcp + 20;

		if (nop)
			*option++ = 1;
		option[0] = 2;
		option[1] = 4;
		rig_put16(option + 2, mss);
	}
	if (length)
		memcpy(tcp + header, data, length);
	rig_transport_finish(frame, 34, 16, 34 + header + length);
	return 34 + header + length;
}

static void send_tcp(unsigned from_port, unsigned to_port, uint32_t seq, uint32_t ack, unsigned flags, const void *data,
                     size_t length)
{
	uint8_t frame[2048];

	rig_send(&rig, frame, make_tcp(frame, from_port, to_port, seq, ack, flags, 0, false, data, length));
}

/* ---- addresses ---- */

static void arp(void **state)
{
	struct rig_frame *frame;

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	frame = next_of_type(0x0806);
	assert_int_equal(rig_get16(frame->data + 20), 2);
	assert_memory_equal(frame->data, net_mac(rig.net), 6);
	assert_memory_equal(frame->data + 22, gateway_mac, 6);
	assert_int_equal(rig_get32(frame->data + 28), GATEWAY);
	free(frame);
	close_user();
}

static const uint8_t *dhcp_option(const struct rig_frame *frame, unsigned wanted, size_t *length)
{
	for (size_t at = 42 + 240; at + 1 < frame->length && frame->data[at] != 255;) {
		if (frame->data[at] == 0) {
			at++;
			continue;
		}
		*length = frame->data[at + 1];
		assert_true(at + 2 + *length <= frame->length);
		if (frame->data[at] == wanted)
			return frame->data + at + 2;
		at += 2 + *length;
	}
	return NULL;
}

static struct rig_frame *dhcp(unsigned kind, uint32_t wanted)
{
	uint8_t message[300] = {1, 1, 6};
	uint8_t *option = message + 240;

	rig_put32(message + 4, 0xdeadbeef);
	memcpy(message + 28, net_mac(rig.net), 6);
	rig_put32(message + 236, 0x63825363);
	*option++ = 53;
	*option++ = 1;
	*option++ = (uint8_t)kind;
	if (wanted) {
		*option++ = 50;
		*option++ = 4;
		rig_put32(option, wanted);
		option += 4;
	}
	*option = 255;
	send_udp(0, INADDR_BROADCAST, 68, 67, message, sizeof(message));
	return next_ipv4(IPPROTO_UDP);
}

static void dhcp_gives_an_address(void **state)
{
	struct rig_frame *frame;
	const uint8_t *option;
	size_t length;

	open_user("user,net=192.168.50.0/24,dhcpstart=192.168.50.40,dns=192.168.50.9,hostname=tester");
	frame = dhcp(1, 0);
	assert_int_equal(rig_get32(frame->data + 42 + 16), 0xc0a83228);
	option = dhcp_option(frame, 53, &length);
	assert_true(option && *option == 2);
	free(frame);
	frame = dhcp(3, 0xc0a83228);
	option = dhcp_option(frame, 53, &length);
	assert_true(option && *option == 5);
	option = dhcp_option(frame, 1, &length);
	assert_true(option && rig_get32(option) == 0xffffff00);
	option = dhcp_option(frame, 3, &length);
	assert_true(option && rig_get32(option) == 0xc0a83202);
	option = dhcp_option(frame, 6, &length);
	assert_true(option && rig_get32(option) == 0xc0a83209);
	option = dhcp_option(frame, 12, &length);
	assert_true(option && length == 6 && memcmp(option, "tester", 6) == 0);
	free(frame);
	close_user();
}

static void make_ping(uint8_t frame[98])
{
	uint16_t checksum;

	rig_ethernet(frame, gateway_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(frame, GUEST, GATEWAY, IPPROTO_ICMP, 64);
	memset(frame + 34, 0x5a, 64);
	memcpy(frame + 34, "\x08\x00\x00\x00\x12\x34\x00\x01", 8);
	checksum = checksum_fold(checksum_add(0, frame + 34, 64));
	memcpy(frame + 36, &checksum, 2);
}

static void ping_of_the_gateway(void **state)
{
	uint8_t frame[98];
	struct rig_frame *answer;

	open_user("user");
	make_ping(frame);
	send_arp(1, broadcast, GUEST, GATEWAY);
	rig_send(&rig, frame, sizeof(frame));
	answer = next_ipv4(IPPROTO_ICMP);
	assert_int_equal(answer->data[34], 0);
	assert_int_equal(answer->length, sizeof(frame));
	assert_memory_equal(answer->data + 38, frame + 38, 60);
	free(answer);
	close_user();
}

/* A guest that knows the gateway, which does not know it: its answer waits for nothing more than the guest's to its question. */
static void ping_of_a_new_gateway(void **state)
{
	uint8_t frame[98];
	struct rig_frame *answer;

	open_user("user");
	make_ping(frame);
	rig_send(&rig, frame, sizeof(frame));
	answer = next_of_type(0x0806);
	assert_int_equal(rig_get16(answer->data + 20), 1);
	free(answer);
	send_arp(2, gateway_mac, GUEST, GATEWAY);
	answer = next_ipv4(IPPROTO_ICMP);
	assert_int_equal(answer->length, sizeof(frame));
	free(answer);
	close_user();
}

/* Router and neighbour solicitation. */
static void ipv6(void **state)
{
	static const uint8_t all_routers[16] = {0xff, 0x02, [15] = 2}, group[6] = {0x33, 0x33, 0, 0, 0, 2};
	static const uint8_t link_local[16] = {0xfe, 0x80, [8] = 0x50, 0x33, 0, 0xff, 0xfe, 0, 0, 0};
	static const uint8_t gateway[16] = {0xfe, 0xc0, [15] = 2};
	uint8_t frame[14 + 40 + 32] = {0};
	struct rig_frame *answer;
	bool prefix = false;

	open_inner("user,ipv4=off");
	rig_ethernet(frame, group, net_mac(rig.net), 0x86dd);
	rig_ipv6(frame, link_local, all_routers, IPPROTO_ICMPV6, 8);
	frame[54] = 133;
	rig_transport_finish(frame, 54, 2, 62);
	rig_send(&rig, frame, 62);
	answer = next_of_type(0x86dd);
	assert_int_equal(answer->data[54], 134);
	assert_int_equal(rig_transport_sum(answer->data, 54, answer->length), 0xffff);
	for (size_t at = 70; at + 8 <= answer->length && answer->data[at + 1]; at += answer->data[at + 1] * 8u)
		prefix |= answer->data[at] == 3 && memcmp(answer->data + at + 16, "\xfe\xc0", 2) == 0;
	assert_true(prefix);
	free(answer);
	rig_forget(&rig);
	rig_ipv6(frame, link_local, gateway, IPPROTO_ICMPV6, 32);
	memset(frame + 54, 0, 32);
	frame[54] = 135;
	memcpy(frame + 62, gateway, 16);
	frame[78] = 1;
	frame[79] = 1;
	memcpy(frame + 80, net_mac(rig.net), 6);
	rig_transport_finish(frame, 54, 2, 86);
	rig_send(&rig, frame, 86);
	while ((answer = next_of_type(0x86dd))->data[54] != 136)
		free(answer);
	assert_memory_equal(answer->data + 62, gateway, 16);
	free(answer);
	/* Echo: from the gateway, and from nobody else. */
	static const uint8_t elsewhere[16] = {0x20, 0x01, [15] = 1}, own[16] = {0xfe, 0xc0, [15] = 0x15};
	for (unsigned i = 0; i < 2; i++) {
		rig_ipv6(frame, own, i ? gateway : elsewhere, IPPROTO_ICMPV6, 32);
		memset(frame + 54, (int)i, 32);
		frame[54] = 128;
		frame[55] = 0;
		rig_transport_finish(frame, 54, 2, 86);
		rig_send(&rig, frame, 86);
	}
	struct net_counters counters;
	net_counters(rig.net, &counters);
	assert_int_equal(counters.sent_dropped, 1);
	close_user();
}

/* ---- datagrams ---- */

static void udp_to_the_host(void **state)
{
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	char text[64];
	unsigned port;
	int server = host_socket(SOCK_DGRAM, &port);
	struct rig_frame *answer;

	open_user("user");
	send_arp(1, broadcast, GUEST, GATEWAY);
	send_udp(GUEST, GATEWAY, 4000, port, "question", 8);
	assert_int_equal(recvfrom(server, text, sizeof(text), 0, (struct sockaddr *)&from, &length), 8);
	assert_memory_equal(text, "question", 8);
	assert_int_equal(sendto(server, "answer", 6, 0, (struct sockaddr *)&from, length), 6);
	answer = next_ipv4(IPPROTO_UDP);
	assert_int_equal(rig_get32(answer->data + 26), GATEWAY);
	assert_int_equal(rig_get16(answer->data + 34), port);
	assert_int_equal(rig_get16(answer->data + 36), 4000);
	assert_memory_equal(answer->data + 42, "answer", 6);
	free(answer);
	close(server);
	close_user();
}

/* A datagram that the driver's wire does not carry comes in fragments, or whole to a driver that takes it so. */
static void large_datagrams(void **state)
{
	static uint8_t data[9000], got[9000];
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	char text[64];
	unsigned port, fragments = 0;
	int server = host_socket(SOCK_DGRAM, &port);
	size_t received = 0;
	struct rig_frame *frame;

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	open_user("user");
	send_arp(1, broadcast, GUEST, GATEWAY);
	send_udp(GUEST, GATEWAY, 4000, port, "question", 8);
	assert_int_equal(recvfrom(server, text, sizeof(text), 0, (struct sockaddr *)&from, &length), 8);
	assert_int_equal(sendto(server, data, sizeof(data), 0, (struct sockaddr *)&from, length), sizeof(data));
	while (received < 8 + sizeof(data)) {
		frame = next_ipv4(IPPROTO_UDP);
		size_t at = (rig_get16(frame->data + 20) & 0x1fff) * 8, bytes = rig_get16(frame->data + 16) - 20u;
		bool more = frame->data[20] & 0x20;

		assert_true(frame->length <= 1514);
		assert_int_equal(frame->length, 34 + bytes);
		assert_true(at + bytes <= 8 + sizeof(data));
		assert_int_equal(more, at + bytes < 8 + sizeof(data));
		for (size_t i = 0; i < bytes; i++)
			if (at + i >= 8)
				got[at + i - 8] = frame->data[34 + i];
		received += bytes;
		fragments++;
		free(frame);
	}
	assert_int_equal(fragments, 7);
	assert_memory_equal(got, data, sizeof(data));
	net_set_offloads(rig.net, NET_OFFLOAD_ALL);
	assert_int_equal(sendto(server, data, sizeof(data), 0, (struct sockaddr *)&from, length), sizeof(data));
	frame = next_ipv4(IPPROTO_UDP);
	assert_int_equal(frame->length, 42 + sizeof(data));
	assert_int_equal(frame->header.gso_type, VIRTIO_NET_HDR_GSO_UDP);
	assert_int_equal(frame->header.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
	offload_finish_checksum(&frame->header, frame->data, frame->length);
	assert_int_equal(rig_transport_sum(frame->data, 34, frame->length), 0xffff);
	free(frame);
	close(server);
	close_user();
}

/* One of the fragments of a UDP packet of 8 + 4000 bytes. */
static void send_fragment(const uint8_t *packet, size_t begin, size_t end)
{
	uint8_t frame[2048];
	uint16_t checksum;

	rig_ethernet(frame, gateway_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(frame, GUEST, GATEWAY, IPPROTO_UDP, end - begin);
	rig_put16(frame + 20, (unsigned)(begin / 8) | (end < 4008 ? 0x2000 : 0));
	rig_put16(frame + 24, 0);
	checksum = checksum_fold(checksum_add(0, frame + 14, 20));
	memcpy(frame + 24, &checksum, 2);
	memcpy(frame + 34, packet + 34 + begin, end - begin);
	rig_send(&rig, frame, 34 + end - begin);
}

/* libslirp never sees a fragment; whole datagrams arrive, others do not. */
static void fragments(void **state)
{
	static uint8_t packet[34 + 4008], got[5000];
	static const unsigned orders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {2, 0, 1}};
	static const size_t cuts[] = {0, 1480, 2960, 4008};
	unsigned port;
	int server = host_socket(SOCK_DGRAM, &port);

	for (unsigned i = 0; i < 4000; i++)
		packet[42 + i] = (uint8_t)(i ^ i >> 8);
	open_user("user,ipv6=off");
	rig_ethernet(packet, gateway_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(packet, GUEST, GATEWAY, IPPROTO_UDP, 4008);
	rig_put16(packet + 34, 4000);
	rig_put16(packet + 36, port);
	rig_put16(packet + 38, 4008);
	rig_transport_finish(packet, 34, 6, sizeof(packet));
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned j = 0; j < 3; j++)
			send_fragment(packet, cuts[orders[i][j]], cuts[orders[i][j] + 1]);
		assert_int_equal(recv(server, got, sizeof(got), 0), 4000);
		assert_memory_equal(got, packet + 42, 4000);
	}
	/* Overlapping ones: the datagram is given up, in whichever place they meet. */
	send_fragment(packet, 0, 1480);
	send_fragment(packet, 1472, 2960);
	send_fragment(packet, 2960, 4008);
	send_fragment(packet, 0, 8); /* the last one is kept: another beginning */
	send_fragment(packet, 0, 16);
	assert_int_equal(recv(server, got, sizeof(got), MSG_DONTWAIT), -1);
	/* Many pieces. */
	for (size_t at = 0; at < 4008; at += 8)
		send_fragment(packet, at, at + 8);
	assert_int_equal(recv(server, got, sizeof(got), 0), 4000);
	assert_memory_equal(got, packet + 42, 4000);
	close(server);
	close_user();
}

static void udp_from_the_host(void **state)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	char options[128], text[64];
	unsigned port = free_port(SOCK_DGRAM), client_port;
	int client = host_socket(SOCK_DGRAM, &client_port);
	struct rig_frame *frame;

	snprintf(options, sizeof(options), "user,hostfwd=udp:127.0.0.1:%u-:5353", port);
	open_user(options);
	send_arp(1, broadcast, GUEST, GATEWAY);
	address.sin_port = htons((uint16_t)port);
	assert_int_equal(sendto(client, "knock", 5, 0, (struct sockaddr *)&address, sizeof(address)), 5);
	frame = next_ipv4(IPPROTO_UDP);
	assert_int_equal(rig_get32(frame->data + 30), GUEST);
	assert_int_equal(rig_get16(frame->data + 36), 5353);
	assert_memory_equal(frame->data + 42, "knock", 5);
	send_udp(GUEST, rig_get32(frame->data + 26), 5353, rig_get16(frame->data + 34), "enter", 5);
	free(frame);
	rig_run(loop, NULL, NULL, 5);
	assert_int_equal(recv(client, text, sizeof(text), 0), 5);
	assert_memory_equal(text, "enter", 5);
	close(client);
	close_user();
}

/* ---- TCP ---- */

static void hostfwd_connects(void **state)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	unsigned ports[2] = {free_port(SOCK_STREAM), free_port(SOCK_STREAM)};
	char options[160], text[64];
	uint32_t sequence;

	snprintf(options, sizeof(options), "user,hostfwd=tcp:127.0.0.1:%u-:22,hostfwd=tcp::%u-10.0.2.15:80", ports[0],
	         ports[1]);
	open_user(options);
	send_arp(1, broadcast, GUEST, GATEWAY);
	for (unsigned i = 0; i < 2; i++) {
		int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct rig_frame *frame;
		unsigned peer_port;

		address.sin_port = htons((uint16_t)ports[i]);
		assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof(address)), 0);
		do { /* the end of the first connection may be told again meanwhile */
			frame = next_ipv4(IPPROTO_TCP);
		} while (frame->data[47] != 0x02 && (free(frame), true));
		assert_int_equal(rig_get32(frame->data + 30), GUEST);
		assert_int_equal(rig_get16(frame->data + 36), i ? 80 : 22);
		peer_port = rig_get16(frame->data + 34);
		sequence = rig_get32(frame->data + 38);
		free(frame);
		send_tcp(i ? 80 : 22, peer_port, 1000, sequence + 1, 0x12, NULL, 0);
		frame = next_ipv4(IPPROTO_TCP);
		assert_int_equal(frame->data[47], 0x10);
		assert_int_equal(rig_get32(frame->data + 42), 1001);
		free(frame);
		assert_int_equal(send(client, "hello", 5, 0), 5);
		frame = next_ipv4(IPPROTO_TCP);
		assert_int_equal(frame->length, 59);
		assert_memory_equal(frame->data + 54, "hello", 5);
		free(frame);
		send_tcp(i ? 80 : 22, peer_port, 1001, sequence + 6, 0x18, "SSH-2.0", 7);
		rig_run(loop, NULL, NULL, 5);
		assert_int_equal(recv(client, text, sizeof(text), 0), 7);
		assert_memory_equal(text, "SSH-2.0", 7);
		close(client);
		frame = next_ipv4(IPPROTO_TCP);
		free(frame);
	}
	close_user();
}

static void hostfwd_port_taken(void **state)
{
	struct net_options options;
	char text[128];
	unsigned port;
	int server = host_socket(SOCK_STREAM, &port);

	snprintf(text, sizeof(text), "user,hostfwd=tcp:127.0.0.1:%u-:22", port);
	assert_int_equal(net_options_parse(&options, text), 0);
	assert_null(net_open(&options));
	close(server);
}

/* A connection to the host, and much data from there. Returns the largest frame; all of it is checked. */
static size_t download(unsigned offloads, unsigned mss, bool nop, unsigned from_port)
{
	static uint8_t data[200000];
	uint8_t frame[128];
	size_t largest = 0, received = 0, sent = 0;
	unsigned port, segment = 0;
	int server = host_socket(SOCK_STREAM, &port), peer;
	struct rig_frame *got;
	uint32_t sequence;

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i ^ i >> 8);
	open_user("user,ipv6=off");
	net_set_offloads(rig.net, offloads);
	send_arp(1, broadcast, GUEST, GATEWAY);
	rig_send(&rig, frame, make_tcp(frame, from_port, port, 5000, 0, 0x02, mss, nop, NULL, 0));
	got = next_ipv4(IPPROTO_TCP);
	assert_int_equal(got->data[47], 0x12);
	assert_int_equal(rig_get32(got->data + 42), 5001);
	sequence = rig_get32(got->data + 38) + 1;
	free(got);
	send_tcp(from_port, port, 5001, sequence, 0x10, NULL, 0);
	peer = accept(server, NULL, NULL);
	assert_true(peer >= 0);
	fcntl(peer, F_SETFL, O_NONBLOCK);
	while (received < sizeof(data)) {
		ssize_t now = sent < sizeof(data) ? send(peer, data + sent, sizeof(data) - sent, 0) : 0;

		sent += now > 0 ? (size_t)now : 0;
		got = next_ipv4(IPPROTO_TCP);
		size_t bytes = got->length - 54;

		assert_int_equal(rig_get32(got->data + 38), sequence + received);
		assert_memory_equal(got->data + 54, data + received, bytes);
		if (got->header.gso_type) {
			assert_int_equal(got->header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
			assert_int_equal(got->header.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
			segment = got->header.gso_size;
			assert_int_equal(segment, mss);
		} else {
			assert_int_equal(got->header.flags, offloads ? VIRTIO_NET_HDR_F_DATA_VALID : 0);
		}
		offload_finish_checksum(&got->header, got->data, got->length);
		assert_int_equal(rig_transport_sum(got->data, 34, got->length), 0xffff);
		largest = got->length > largest ? got->length : largest;
		received += bytes;
		free(got);
		send_tcp(from_port, port, 5001, (uint32_t)(sequence + received), 0x10, NULL, 0);
	}
	close(peer);
	close(server);
	close_user();
	return largest;
}

static void tcp_from_the_host(void **state)
{
	/* As the driver can: small segments, or large ones to be cut. */
	assert_int_equal(download(0, 1460, false, 3001), 1514);
	assert_true(download(NET_OFFLOAD_ALL, 1460, false, 3002) > 10000);
	assert_true(download(NET_OFFLOAD_ALL, 1460, true, 3003) > 10000);
	/* A narrower road behind the driver stays narrow. */
	assert_int_equal(download(0, 1200, false, 3004), 1254);
	assert_true(download(NET_OFFLOAD_ALL, 1200, false, 3005) > 10000);
	assert_int_equal(download(0, 0, false, 3006), 590);
}

/* A large packet from the driver, unfinished. */
static void tcp_to_the_host(void **state)
{
	static uint8_t frame[54 + 40000], data[40000], got[40000];
	struct virtio_net_hdr header = {
	    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
	    .hdr_len = 54,
	    .gso_size = 1460,
	    .csum_start = 34,
	    .csum_offset = 16,
	};
	unsigned port;
	int server = host_socket(SOCK_STREAM, &port), peer;
	struct timeval patience = {60, 0};
	struct rig_frame *answer;
	uint32_t sequence;

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i ^ i >> 8);
	open_user("user");
	send_arp(1, broadcast, GUEST, GATEWAY);
	rig_send(&rig, frame, make_tcp(frame, 3000, port, 5000, 0, 0x02, 1460, false, NULL, 0));
	answer = next_ipv4(IPPROTO_TCP);
	sequence = rig_get32(answer->data + 38) + 1;
	free(answer);
	assert_int_equal(make_tcp(frame, 3000, port, 5001, sequence, 0x18, 0, false, data, sizeof(data)),
	                 sizeof(frame));
	rig_put16(frame + 50, 0xabcd); /* what a driver leaves there does not matter */
	assert_true(rig_send_header(&rig, &header, frame, sizeof(frame)));
	rig_run(loop, NULL, NULL, 20);
	peer = accept(server, NULL, NULL);
	assert_true(peer >= 0);
	setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	assert_int_equal(recv(peer, got, sizeof(got), MSG_WAITALL), sizeof(got));
	assert_memory_equal(got, data, sizeof(data));
	close(peer);
	close(server);
	close_user();
}

/* A reader on the host that stands and then goes on: the guest hears that the window has opened, without asking. */
static void window_opens(void **state)
{
	static uint8_t frame[2048], data[1400], got[1 << 20];
	unsigned port, window = 8000;
	int server = host_socket(SOCK_STREAM, &port), peer;
	uint32_t sequence = 5001, acknowledged = 5001, theirs;
	size_t received = 0;
	struct rig_frame *answer;

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	rig_send(&rig, frame, make_tcp(frame, 3000, port, 5000, 0, 0x02, 1460, false, NULL, 0));
	answer = next_ipv4(IPPROTO_TCP);
	theirs = rig_get32(answer->data + 38) + 1;
	free(answer);
	send_tcp(3000, port, sequence, theirs, 0x10, NULL, 0);
	peer = accept(server, NULL, NULL);
	assert_true(peer >= 0);
	fcntl(peer, F_SETFL, O_NONBLOCK);
	/* Until the window is closed, and nothing moves any more. */
	for (unsigned quiet = 0; quiet < 10;) {
		if (sequence - acknowledged + sizeof(data) <= window) {
			send_tcp(3000, port, sequence, theirs, 0x18, data, sizeof(data));
			sequence += sizeof(data);
			quiet = 0;
		} else {
			quiet++;
			rig_run(loop, NULL, NULL, 5);
		}
		while ((answer = rig_pop(&rig))) {
			if (rig_get16(answer->data + 12) == 0x0800 && answer->data[23] == IPPROTO_TCP) {
				acknowledged = rig_get32(answer->data + 42);
				window = rig_get16(answer->data + 48);
			}
			free(answer);
		}
	}
	assert_true(window < sizeof(data));
	while (received < sequence - 5001) {
		ssize_t now = recv(peer, got, sizeof(got), 0);

		if (now > 0)
			received += (size_t)now;
		rig_run(loop, NULL, NULL, 1);
	}
	while (window < 16000) {
		answer = next_ipv4(IPPROTO_TCP);
		window = rig_get16(answer->data + 48);
		free(answer);
	}
	close(peer);
	close(server);
	close_user();
}

/* ---- limits ---- */

static void restricted(void **state)
{
	char text[64];
	unsigned port;
	int server = host_socket(SOCK_DGRAM, &port);
	struct rig_frame *frame;

	open_user("user,restrict=on");
	send_arp(1, broadcast, GUEST, GATEWAY);
	frame = next_of_type(0x0806);
	free(frame);
	send_udp(GUEST, GATEWAY, 4000, port, "question", 8);
	rig_run(loop, NULL, NULL, 50);
	assert_int_equal(recv(server, text, sizeof(text), MSG_DONTWAIT), -1);
	/* DHCP is the network's own. */
	frame = dhcp(1, 0);
	free(frame);
	close(server);
	close_user();
}

/* A device without buffers: the sockets rest, little is kept, and it goes on afterwards. */
static void device_without_buffers(void **state)
{
	static uint8_t data[1400];
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	struct net_counters counters;
	char text[64];
	unsigned port, before;
	int server = host_socket(SOCK_DGRAM, &port);

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	send_udp(GUEST, GATEWAY, 4000, port, "question", 8);
	assert_int_equal(recvfrom(server, text, sizeof(text), 0, (struct sockaddr *)&from, &length), 8);
	rig.room = 0;
	before = rig.count;
	for (unsigned i = 0; i < 4000; i++) {
		assert_int_equal(sendto(server, data, sizeof(data), 0, (struct sockaddr *)&from, length), sizeof(data));
		if (i % 50 == 0)
			rig_run(loop, NULL, NULL, 1);
	}
	rig_run(loop, NULL, NULL, 10);
	assert_int_equal(rig.count, before);
	net_counters(rig.net, &counters);
	assert_int_equal(counters.received_dropped, 0); /* they are lost in the host's socket, not here */
	rig.room = UINT32_MAX;
	net_receive_ready(rig.net);
	assert_true(rig_run(loop, rig_has_counted, &(struct rig_count){&rig, before + 501}, RIG_PATIENCE));
	rig_run(loop, NULL, NULL, 100);
	assert_true(rig.count < before + 4000);
	rig_forget(&rig);
	send_udp(GUEST, GATEWAY, 4000, port, "question", 8);
	assert_int_equal(recv(server, text, sizeof(text), 0), 8);
	assert_int_equal(sendto(server, "answer", 6, 0, (struct sockaddr *)&from, length), 6);
	free(next_ipv4(IPPROTO_UDP));
	close(server);
	close_user();
}

/* Of the TCP packets the next one for that port; the last words of an earlier connection may still come. */
static struct rig_frame *next_to_port(unsigned port)
{
	struct rig_frame *frame;

	while (rig_get16((frame = next_ipv4(IPPROTO_TCP))->data + 36) != port)
		free(frame);
	return frame;
}

/* Many connections come and go: descriptors with the numbers of closed ones are watched as well. */
static void connections_come_and_go(void **state)
{
	uint8_t frame[128];
	unsigned port;
	int server = host_socket(SOCK_STREAM, &port);

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	for (unsigned i = 0; i < 100; i++) {
		unsigned own = 10000 + i;
		struct rig_frame *got;
		uint32_t sequence;
		int peer;

		rig_send(&rig, frame, make_tcp(frame, own, port, 5000, 0, 0x02, 1460, false, NULL, 0));
		got = next_to_port(own);
		assert_int_equal(got->data[47], 0x12);
		sequence = rig_get32(got->data + 38) + 1;
		free(got);
		send_tcp(own, port, 5001, sequence, 0x10, NULL, 0);
		peer = accept(server, NULL, NULL);
		assert_int_equal(send(peer, "x", 1, 0), 1);
		/* On a busy host an acknowledgement or the SYN may come once more. */
		while ((got = next_to_port(own))->length != 55)
			free(got);
		free(got);
		send_tcp(own, port, 5001, sequence + 1, i % 2 ? 0x14 : 0x11, NULL, 0);
		close(peer);
		rig_run(loop, NULL, NULL, 2);
		rig_forget(&rig);
	}
	close(server);
	close_user();
}

/*
 * The host's program has closed its socket, and the guest goes on sending: what comes first is answered with a reset, and what comes next
 * finds a broken pipe. That ends this connection and no other.
 */
static void peer_is_gone(void **state)
{
	uint8_t frame[128];
	unsigned port;
	int server = host_socket(SOCK_STREAM, &port);

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	for (unsigned i = 0; i < 5; i++) {
		unsigned own = 12000 + i;
		struct rig_frame *got;
		uint32_t sequence;
		bool finished;
		int peer;

		rig_send(&rig, frame, make_tcp(frame, own, port, 5000, 0, 0x02, 1460, false, NULL, 0));
		got = next_to_port(own);
		assert_int_equal(got->data[47], 0x12);
		sequence = rig_get32(got->data + 38) + 1;
		free(got);
		send_tcp(own, port, 5001, sequence, 0x10, NULL, 0);
		peer = accept(server, NULL, NULL);
		assert_true(peer >= 0);
		close(peer);
		do {
			got = next_to_port(own);
			finished = got->data[47] & 0x01;
			free(got);
		} while (!finished);
		for (unsigned n = 0; n < 20; n++)
			send_tcp(own, port, 5001 + n, sequence + 1, 0x18, "x", 1);
		rig_run(loop, NULL, NULL, 5);
		rig_forget(&rig);
	}
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	assert_true(net_link(rig.net));
	close(server);
	close_user();
}

/* Random and damaged frames: nothing breaks, and the network goes on. The seed is printed. */
static void hostile_frames(void **state)
{
	uint64_t seed = 0x72696e6733ull;
	uint8_t frame[2000];
	struct rig_frame *answer;

	print_message("seed %llx\n", (unsigned long long)seed);
	open_user("user");
	for (unsigned i = 0; i < 20000; i++) {
		struct virtio_net_hdr header;
		size_t length = 1;

		for (unsigned j = 0; j < sizeof(frame); j++) {
			seed = seed * 6364136223846793005ull + 1442695040888963407ull;
			frame[j] = (uint8_t)(seed >> 56);
		}
		memcpy(&header, frame + 1990, sizeof(header));
		length += rig_get16(frame + 1980) % 1900;
		if (i % 4)
			rig_ethernet(frame, gateway_mac, net_mac(rig.net), i % 8 < 5 ? 0x0800 : 0x86dd);
		/* Nothing that would reach the world outside: the addresses are the network's own. */
		if (i % 8 < 5) {
			rig_ipv4(frame, GUEST, GATEWAY, i % 3 ? i % 3 == 1 ? IPPROTO_TCP : IPPROTO_UDP : frame[100],
			         length > 34 ? length - 34 : 0);
			rig_put16(frame + 20, i % 16 == 2 ? rig_get16(frame + 200) & 0x3fff : 0);
			if (i % 32 == 3)
				rig_put16(frame + 16, rig_get16(frame + 202));
			rig_put16(frame + 24, 0);
			uint16_t checksum = checksum_fold(checksum_add(0, frame + 14, 20));
			memcpy(frame + 24, &checksum, 2);
			if (length >= 54)
				rig_transport_finish(frame, 34, i % 3 == 1 ? 16 : 6, length);
		} else {
			static const uint8_t gateway[16] = {0xfe, 0xc0, [15] = 2};

			rig_ipv6(frame, gateway, gateway, i % 3 ? IPPROTO_ICMPV6 : frame[100],
			         length > 54 ? length - 54 : 0);
			frame[14 + 8 + 15] = 9;
			if (length >= 64)
				rig_transport_finish(frame, 54, 2, length);
		}
		rig_send_header(&rig, i % 5 ? NULL : &header, frame, length);
		if (i % 64 == 0)
			rig_run(loop, NULL, NULL, 1);
		rig_forget(&rig);
	}
	rig_run(loop, NULL, NULL, 20);
	rig_forget(&rig);
	send_arp(1, broadcast, GUEST, GATEWAY);
	answer = next_of_type(0x0806);
	free(answer);
	close_user();
}

static void detach_and_attach(void **state)
{
	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	net_detach(rig.net);
	struct net *net = rig.net;
	rig_forget(&rig);
	rig_attach(&rig, loop, net);
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	close_user();
}

/* ---- the process ---- */

/* Of the only child. */
static pid_t child_process(void)
{
	char name[64];
	FILE *file;
	int pid = 0;

	snprintf(name, sizeof(name), "/proc/self/task/%d/children", (int)getpid());
	file = fopen(name, "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%d", &pid), 1);
	fclose(file);
	assert_true(pid > 1);
	return pid;
}

/* The link goes down, sending goes nowhere, and nothing else happens. */
static void process_dies(void **state)
{
	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	assert_int_equal(kill(child_process(), SIGSEGV), 0);
	assert_true(rig_run(loop, rig_link_is_down, &rig, RIG_PATIENCE));
	assert_int_equal(rig.link_changes, 1);
	for (unsigned i = 0; i < 100; i++)
		send_arp(1, broadcast, GUEST, GATEWAY);
	rig_run(loop, NULL, NULL, 20);
	assert_false(net_link(rig.net));
	struct net *net = rig.net;
	net_detach(net);
	rig_forget(&rig);
	rig_attach(&rig, loop, net);
	close_user();
}

/* What a jailed process would do, and how that ends: a status of exit() or a signal. */
static int in_jail(void (*attempt)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		if (jail_enter_network() == 0)
			attempt();
		_exit(errno);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void try_udp(void)
{
	errno = socket(AF_INET, SOCK_DGRAM, 0) >= 0 ? 0 : errno;
}

static void try_unix(void)
{
	socket(AF_UNIX, SOCK_STREAM, 0);
}

static void try_packet(void)
{
	socket(AF_PACKET, SOCK_RAW, 0);
}

static void try_exec(void)
{
	execl("/bin/true", "true", NULL);
}

static void try_write(void)
{
	open("/tmp/ring3-jail-test", O_WRONLY | O_CREAT, 0600);
}

static void try_kill(void)
{
	kill(getppid(), SIGCONT);
}

static void try_code(void)
{
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void try_read(void)
{
	errno = open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 ? 0 : errno;
}

static void jail(void **state)
{
	static void (*const forbidden[])(void) = {try_unix, try_packet, try_exec, try_write, try_kill, try_code};

	assert_int_equal(in_jail(try_udp), 0);
	for (unsigned i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++)
		assert_int_equal(in_jail(forbidden[i]), -SIGSYS);
	/* Without Landlock the process may read what its user may (docs/quirks.md). */
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0)
		assert_int_equal(in_jail(try_read), EACCES);
	else
		print_message("no Landlock here: reading files not looked at\n");
}

/* libslirp reads the list of name servers again and again: that is allowed, whatever comes of it. */
static void name_server(void **state)
{
	static const uint8_t query[17] = {0x12, 0x34, 1, 0, 0, 1, [12] = 0, [14] = 2, [16] = 1};

	open_user("user,ipv6=off");
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	send_udp(GUEST, DNS, 4000, 53, query, sizeof(query));
	rig_run(loop, NULL, NULL, 50);
	rig_forget(&rig);
	send_arp(1, broadcast, GUEST, GATEWAY);
	free(next_of_type(0x0806));
	assert_true(net_link(rig.net));
	close_user();
}

/* And it ends with the net. */
static void process_is_jailed(void **state)
{
	char name[64], line[256];
	unsigned seccomp = 0, privileges = 0;
	FILE *file;

	open_user("user,ipv6=off");
	pid_t child = child_process();
	snprintf(name, sizeof(name), "/proc/%d/status", child);
	file = fopen(name, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "Seccomp: %u", &seccomp);
		sscanf(line, "NoNewPrivs: %u", &privileges);
	}
	fclose(file);
	assert_int_equal(seccomp, 2);
	assert_int_equal(privileges, 1);
	close_user();
	assert_int_equal(kill(child, 0), -1);
	assert_int_equal(errno, ESRCH);
}

int main(int argc, char **argv)
{
	slirp_process_enter(argc, argv);

	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(arp),
	    cmocka_unit_test(dhcp_gives_an_address),
	    cmocka_unit_test(ping_of_the_gateway),
	    cmocka_unit_test(ping_of_a_new_gateway),
	    cmocka_unit_test(ipv6),
	    cmocka_unit_test(udp_to_the_host),
	    cmocka_unit_test(large_datagrams),
	    cmocka_unit_test(fragments),
	    cmocka_unit_test(udp_from_the_host),
	    cmocka_unit_test(hostfwd_connects),
	    cmocka_unit_test(hostfwd_port_taken),
	    cmocka_unit_test(tcp_from_the_host),
	    cmocka_unit_test(tcp_to_the_host),
	    cmocka_unit_test(window_opens),
	    cmocka_unit_test(restricted),
	    cmocka_unit_test(device_without_buffers),
	    cmocka_unit_test(connections_come_and_go),
	    cmocka_unit_test(peer_is_gone),
	    cmocka_unit_test(hostile_frames),
	    cmocka_unit_test(detach_and_attach),
	    cmocka_unit_test(process_dies),
	    cmocka_unit_test(process_is_jailed),
	    cmocka_unit_test(jail),
	    cmocka_unit_test(name_server),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
