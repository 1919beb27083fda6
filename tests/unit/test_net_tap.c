/* --net tap, in a network namespace of its own. Skipped, and said so, where none may be made. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "net_rig.h"

#define HOST  0x0a090001
#define GUEST 0x0a090002

static bool possible;
static struct event_loop *loop;
static struct rig rig;
static uint8_t host_mac[6];

#define NEEDS_NAMESPACE()                                                                                              \
	do {                                                                                                           \
		if (!possible) {                                                                                       \
			print_message("SKIPPED: no network namespace with a tap can be made here\n");                  \
			skip();                                                                                        \
		}                                                                                                      \
	} while (0)

static void configure(const char *name)
{
	struct ifreq request = {0};
	struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	*address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(HOST)};
	assert_int_equal(ioctl(fd, SIOCSIFADDR, &request), 0);
	address->sin_addr.s_addr = htonl(0xffffff00);
	assert_int_equal(ioctl(fd, SIOCSIFNETMASK, &request), 0);
	assert_int_equal(ioctl(fd, SIOCGIFFLAGS, &request), 0);
	request.ifr_flags |= IFF_UP;
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &request), 0);
	assert_int_equal(ioctl(fd, SIOCGIFHWADDR, &request), 0);
	memcpy(host_mac, request.ifr_hwaddr.sa_data, 6);
	close(fd);
}

/* An answer to everybody's question who has the guest's address, which also teaches it. */
static void send_arp(void)
{
	uint8_t frame[60] = {0};

	rig_ethernet(frame, (const uint8_t[6]){0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, net_mac(rig.net), 0x0806);
	memcpy(frame + 14, "\x00\x01\x08\x00\x06\x04\x00\x01", 8);
	memcpy(frame + 22, net_mac(rig.net), 6);
	rig_put32(frame + 28, GUEST);
	rig_put32(frame + 38, HOST);
	rig_send(&rig, frame, sizeof(frame));
}

static struct rig_frame *next_of(unsigned type, unsigned protocol)
{
	for (unsigned i = 0; i < 100; i++) {
		struct rig_frame *frame = rig_next(&rig);

		if (rig_get16(frame->data + 12) == type && (!protocol || frame->data[23] == protocol))
			return frame;
		free(frame);
	}
	fail();
	return NULL;
}

static void open_tap(const char *options)
{
	loop = event_loop_create();
	assert_non_null(loop);
	rig_attach(&rig, loop, rig_open(options));
	configure(net_name(rig.net));
	send_arp();
	free(next_of(0x0806, 0));
}

static void close_tap(void)
{
	rig_close(&rig);
	event_loop_destroy(loop);
}

static void arp_and_name(void **state)
{
	NEEDS_NAMESPACE();
	open_tap("tap,ifname=ring3test");
	assert_string_equal(net_name(rig.net), "ring3test");
	assert_true(net_link(rig.net));
	assert_int_equal(net_mtu(rig.net), 0);
	close_tap();
	open_tap("tap");
	assert_string_equal(net_name(rig.net), "tap0");
	close_tap();
}

static size_t make_tcp(uint8_t *frame, unsigned port, uint32_t seq, uint32_t ack, unsigned flags, const void *data,
                       size_t length)
{
	uint8_t *tcp = frame + 34;

	rig_ethernet(frame, host_mac, net_mac(rig.net), 0x0800);
	rig_ipv4(frame, GUEST, HOST, IPPROTO_TCP, 20 + length);
	memset(tcp, 0, 20);
	rig_put16(tcp, 3000);
	rig_put16(tcp + 2, port);
	rig_put32(tcp + 4, seq);
	rig_put32(tcp + 8, ack);
	tcp[12] = 0x50;
	tcp[13] = (uint8_t)flags;
	rig_put16(tcp + 14, 65535);
	if (length)
		memcpy(tcp + 20, data, length);
	rig_transport_finish(frame, 34, 16, 54 + length);
	return 54 + length;
}

/* A connection in both directions, large packets in both; returns the largest frame received. */
static size_t transfer(const char *options, unsigned offloads, bool large)
{
	static uint8_t frame[54 + 30000], data[100000], got[30000];
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(HOST)};
	socklen_t length = sizeof(address);
	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), peer;
	size_t largest = 0, received = 0, sent = 0;
	struct rig_frame *answer;
	unsigned port;
	uint32_t sequence;

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i ^ i >> 8);
	open_tap(options);
	net_set_offloads(rig.net, offloads);
	assert_int_equal(bind(server, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(server, 1), 0);
	assert_int_equal(getsockname(server, (struct sockaddr *)&address, &length), 0);
	port = ntohs(address.sin_port);
	rig_send(&rig, frame, make_tcp(frame, port, 5000, 0, 0x02, NULL, 0));
	answer = next_of(0x0800, IPPROTO_TCP);
	assert_int_equal(answer->data[47], 0x12);
	offload_finish_checksum(&answer->header, answer->data, answer->length);
	assert_int_equal(rig_transport_sum(answer->data, 34, answer->length), 0xffff);
	sequence = rig_get32(answer->data + 38) + 1;
	free(answer);
	make_tcp(frame, port, 5001, sequence, 0x18, data, 30000);
	if (large) {
		struct virtio_net_hdr header = {
		    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		    .hdr_len = 54,
		    .gso_size = 1000,
		    .csum_start = 34,
		    .csum_offset = 16,
		};
		assert_true(offload_request_checksum(&header, frame, sizeof(frame)));
		header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
		assert_true(rig_send_header(&rig, &header, frame, sizeof(frame)));
	} else {
		rig_send(&rig, frame, make_tcp(frame, port, 5001, sequence, 0x18, data, 1000));
	}
	size_t there = large ? 30000 : 1000;
	peer = accept(server, NULL, NULL);
	assert_true(peer >= 0);
	assert_int_equal(recv(peer, got, there, MSG_WAITALL), there);
	assert_memory_equal(got, data, there);
	fcntl(peer, F_SETFL, O_NONBLOCK);
	while (received < sizeof(data)) {
		ssize_t now = sent < sizeof(data) ? send(peer, data + sent, sizeof(data) - sent, 0) : 0;
		size_t header, bytes;

		sent += now > 0 ? (size_t)now : 0;
		answer = next_of(0x0800, IPPROTO_TCP);
		header = 34 + (answer->data[46] >> 4) * 4u;
		bytes = rig_get16(answer->data + 16) + 14 - header;
		if (bytes && rig_get32(answer->data + 38) == sequence + received) {
			assert_memory_equal(answer->data + header, data + received, bytes);
			received += bytes;
			largest = answer->length > largest ? answer->length : largest;
			offload_finish_checksum(&answer->header, answer->data, answer->length);
			assert_int_equal(rig_transport_sum(answer->data, 34, answer->length), 0xffff);
			rig_send(&rig, frame,
			         make_tcp(frame, port, (uint32_t)(5001 + there), (uint32_t)(sequence + received), 0x10,
			                  NULL, 0));
		}
		free(answer);
	}
	close(peer);
	close(server);
	close_tap();
	return largest;
}

static void with_the_kernels_offloads(void **state)
{
	NEEDS_NAMESPACE();
	assert_true(transfer("tap,ifname=ring3test", NET_OFFLOAD_ALL, true) > 1514);
	assert_true(transfer("tap,ifname=ring3test", 0, true) <= 1514);
	assert_true(transfer("tap,ifname=ring3test", NET_OFFLOAD_CSUM, false) <= 1514);
}

/* A descriptor that somebody opened, with and without the kernel's headers. */
static int open_descriptor(int flags)
{
	struct ifreq request = {.ifr_flags = (short)flags};
	int fd = open("/dev/net/tun", O_RDWR);

	assert_true(fd >= 0);
	strcpy(request.ifr_name, "given");
	assert_int_equal(ioctl(fd, TUNSETIFF, &request), 0);
	return fd;
}

static void given_descriptors(void **state)
{
	struct net_options options;
	char text[64];
	int fd;

	NEEDS_NAMESPACE();
	snprintf(text, sizeof(text), "tap,fd=%d", open_descriptor(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR));
	assert_true(transfer(text, NET_OFFLOAD_ALL, true) > 1514);
	snprintf(text, sizeof(text), "tap,fd=%d", open_descriptor(IFF_TAP | IFF_NO_PI));
	assert_true(transfer(text, NET_OFFLOAD_ALL, true) <= 1514);
	fd = open_descriptor(IFF_TUN | IFF_NO_PI);
	snprintf(text, sizeof(text), "tap,fd=%d", fd);
	assert_int_equal(net_options_parse(&options, text), 0);
	assert_null(net_open(&options));
	close(fd);
}

/* What cannot be: each with its message. */
static void refusals(void **state)
{
	static const char *const wrong[] = {"tap,fd=999", "tap,fd=0", "tap,ifname=lo"};
	struct net_options options;

	for (unsigned i = 0; i < 3; i++) {
		if (i == 2 && !possible)
			continue;
		assert_int_equal(net_options_parse(&options, wrong[i]), 0);
		assert_null(net_open(&options));
	}
}

static void without_privilege(void **state)
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		struct net_options options;

		if (geteuid() == 0 && (setgid(65534) < 0 || setuid(65534) < 0))
			_exit(2);
		_exit(net_options_parse(&options, "tap,ifname=ring3none") == 0 && !net_open(&options) ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
		skip();
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The interface vanishes beneath us. */
static void interface_removed(void **state)
{
	NEEDS_NAMESPACE();
	open_tap("tap,ifname=ring3test");
	if (system("ip link delete ring3test 2>/dev/null") != 0) {
		close_tap();
		skip();
	}
	rig_run(loop, NULL, NULL, 20);
	assert_false(net_link(rig.net));
	send_arp();
	close_tap();
}

static bool enter_namespace(void)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	bool works;
	int fd;

	if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
		return false;
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	works = fd >= 0 && ioctl(fd, TUNSETIFF, &request) == 0;
	if (fd >= 0)
		close(fd);
	return works;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(arp_and_name),      cmocka_unit_test(with_the_kernels_offloads),
	    cmocka_unit_test(given_descriptors), cmocka_unit_test(refusals),
	    cmocka_unit_test(without_privilege), cmocka_unit_test(interface_removed),
	};

	possible = enter_namespace();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
