/*
 * Network back ends with hostile frames, headers and messages on both sides. The first byte of the input says which
 * part is meant; the rest is operations and bytes of it. The test is that nothing traps, that no frame of an impossible
 * length or with an impossible header reaches a device, and that what is said to be finished is.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/net/frame_stream.h"
#include "backends/net/mac_table.h"
#include "backends/net/net_private.h"
#include "backends/net/offload.h"
#include "backends/net/slirp_guard.h"
#include "host/event_loop.h"

#define OPERATIONS 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t size, at;
};

struct device {
	struct net *net;
	unsigned offloads, room;
	bool in_burst;
};

static uint32_t take(struct input *input, unsigned bytes)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint32_t)(input->at < input->size ? input->data[input->at++] : 0) << 8 * i;
	return value;
}

static void take_bytes(struct input *input, void *bytes, size_t length)
{
	size_t there = input->size - input->at;

	memset(bytes, 0, length);
	memcpy(bytes, input->data + input->at, there < length ? there : length);
	input->at += there < length ? there : length;
}

static void check(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_net: %s\n", what);
	abort();
}

/* ---- a loop that turns a few times ---- */

struct turns {
	struct event_loop *loop;
	unsigned left;
};

static void turn(void *owner, uint32_t events)
{
	struct turns *turns = owner;

	if (turns->left-- == 0)
		event_loop_stop(turns->loop);
}

static void run(struct event_loop *loop)
{
	struct turns turns = {loop, 3};
	int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	struct event_source *source = event_source_add(loop, fd, EPOLLIN, turn, &turns);

	if (source)
		event_loop_run(loop);
	event_source_remove(source);
	close(fd);
}

/* ---- a device that looks at what it gets ---- */

static void receive_begin(void *owner)
{
	struct device *device = owner;

	check(!device->in_burst, "a burst in a burst");
	device->in_burst = true;
}

static void receive_end(void *owner)
{
	struct device *device = owner;

	check(device->in_burst, "an end without a beginning");
	device->in_burst = false;
}

static bool receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct device *device = owner;
	uint8_t kind = header->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;

	check(device->in_burst, "a frame outside of a burst");
	check(length >= NET_FRAME_MIN && length <= NET_FRAME_MAX, "a frame of an impossible length");
	check(offload_valid(header, frame, length), "a header that does not fit the frame");
	check(!header->flags || device->offloads & NET_OFFLOAD_CSUM, "a checksum that the driver does not make");
	check(kind != VIRTIO_NET_HDR_GSO_TCPV4 || device->offloads & NET_OFFLOAD_TSO4, "TCP over IPv4 not cut");
	check(kind != VIRTIO_NET_HDR_GSO_TCPV6 || device->offloads & NET_OFFLOAD_TSO6, "TCP over IPv6 not cut");
	check(kind != VIRTIO_NET_HDR_GSO_UDP || device->offloads & NET_OFFLOAD_UFO, "UDP not cut");
	if (!device->room)
		return false;
	device->room--;
	return true;
}

static void writable(void *owner) {}

static bool device_attach(struct device *device, struct event_loop *loop, struct net *net)
{
	const struct net_client client = {receive_begin, receive_end, receive, writable, NULL, device};

	*device = (struct device){.net = net, .room = UINT32_MAX};
	return net && net_attach(net, loop, &client) == 0;
}

/* ---- frames ---- */

/* Often one that is nearly right: with the lengths and types that let it go further. */
static size_t make_frame(struct input *input, uint8_t *frame, size_t limit)
{
	unsigned shape = take(input, 1);
	size_t length = take(input, 2) % (shape & 0x80 ? limit + 8 : 1600), network = 14, transport;
	bool v4 = shape & 1;

	take_bytes(input, frame, length < 128 ? length : 128);
	if (length > 128)
		memset(frame + 128, shape, length - 128);
	if (!(shape & 2) || length < 120)
		return length;
	frame[6] &= 0xfe;
	frame[12] = v4 ? 0x08 : 0x86;
	frame[13] = v4 ? 0x00 : 0xdd;
	if (shape & 4) {
		memcpy(frame + 16, frame + 12, 2);
		frame[12] = 0x81;
		frame[13] = 0;
		network = 18;
	}
	transport = network + (v4 ? 20 : 40);
	if (v4) {
		size_t total = length - network;

		frame[network] = 0x45;
		frame[network + 2] = (uint8_t)(total >> 8);
		frame[network + 3] = (uint8_t)total;
		if (shape & 8)
			frame[network + 6] = frame[network + 7] = 0;
		frame[network + 9] = shape & 16 ? 6 : shape & 32 ? 17 : 1;
		memset(frame + network + 10, 0, 2);
		memcpy(frame + network + 12, "\x0a\x00\x02\x0f\x0a\x00\x02\x02", 8);
		uint16_t checksum = checksum_fold(checksum_add(0, frame + network, 20));
		memcpy(frame + network + 10, &checksum, 2);
	} else {
		size_t total = length - transport;

		frame[network] = 0x60;
		frame[network + 4] = (uint8_t)(total >> 8);
		frame[network + 5] = (uint8_t)total;
		if (shape & 8)
			frame[network + 6] = shape & 16 ? 6 : shape & 32 ? 17 : 58;
	}
	if (shape & 64 && shape & 16)
		frame[transport + 12] = 0x50;
	return length;
}

static struct virtio_net_hdr make_header(struct input *input)
{
	static const uint8_t kinds[] = {0, 1, 4, 3, 0x81, 0x84, 0x80, 0x7f};
	unsigned choice = take(input, 1);
	struct virtio_net_hdr header;

	take_bytes(input, &header, sizeof(header));
	header.flags = choice >> 6;
	header.gso_type = kinds[choice & 7];
	if (choice & 8)
		header.csum_start %= 128;
	if (choice & 16)
		header.csum_offset = 16;
	if (choice & 32)
		header.gso_size %= 2000;
	return header;
}

static void send_frame(struct device *device, struct input *input)
{
	static uint8_t frame[NET_FRAME_MAX + 8];
	struct virtio_net_hdr header = make_header(input);
	size_t length = make_frame(input, frame, NET_FRAME_MAX), first = take(input, 1) % (length + 1);
	struct iovec iov[2] = {{frame, first}, {frame + first, length - first}};

	net_send(device->net, &header, iov, 2);
}

/* ---- the parts ---- */

static void fuzz_pair(struct input *input)
{
	struct event_loop *loop = event_loop_create();
	struct net *ends[2];
	struct device device[2];

	if (!loop || !net_pair(ends))
		exit(1);
	for (unsigned i = 0; i < 2; i++)
		if (!device_attach(&device[i], loop, ends[i]))
			exit(1);
	for (unsigned i = 0; i < OPERATIONS && input->at < input->size; i++) {
		unsigned operation = take(input, 1);
		struct device *one = &device[operation >> 7];

		switch (operation & 7) {
		case 0:
			run(loop); /* what was made for the old driver may be on its way */
			one->room = UINT32_MAX;
			net_receive_ready(one->net);
			run(loop);
			one->offloads = take(input, 1) & NET_OFFLOAD_ALL;
			if (!(one->offloads & NET_OFFLOAD_CSUM))
				one->offloads = 0;
			net_set_offloads(one->net, one->offloads);
			break;
		case 1:
			one->room = take(input, 1) % 8;
			net_receive_ready(one->net);
			break;
		case 2:
			run(loop);
			break;
		default:
			/* A frame that is held is as the driver was then. */
			one[operation >> 7 ? -1 : 1].room = UINT32_MAX;
			net_receive_ready(one[operation >> 7 ? -1 : 1].net);
			send_frame(one, input);
		}
	}
	run(loop);
	net_close(ends[0]);
	run(loop);
	net_close(ends[1]);
	event_loop_destroy(loop);
}

static void fuzz_stream(struct input *input)
{
	static uint8_t buffer[FRAME_STREAM_ROOM];
	struct frame_stream stream = {.data = buffer};
	size_t fed = 0, taken = 0;

	while (input->at < input->size) {
		enum frame_stream_result result;
		uint8_t *frame, *at;
		size_t length, room, piece = take(input, 1) % 64 + 1;

		at = frame_stream_room(&stream, &room);
		check(room > 0 && at + room == buffer + sizeof(buffer), "no room in the stream");
		piece = piece < room ? piece : room;
		take_bytes(input, at, piece);
		if (piece >= 4 && at[3] & 1)
			at[0] = at[1] = 0;
		stream.end += piece;
		fed += piece;
		while ((result = frame_stream_next(&stream, &frame, &length)) < FRAME_STREAM_MORE) {
			check((result == FRAME_STREAM_FRAME) == (length >= NET_FRAME_MIN) && length <= NET_FRAME_MAX,
			      "a frame of an impossible length in the stream");
			check(frame >= buffer && frame + length <= buffer + stream.end, "a frame beyond the stream");
			taken += 4 + length;
		}
		check(taken + stream.end - stream.begin == fed, "bytes lost in the stream");
		if (result == FRAME_STREAM_BROKEN)
			return;
	}
}

static void fuzz_guard(struct input *input)
{
	static uint8_t data[NET_FRAME_MAX + 8];
	struct slirp_guard guard;
	int64_t now = 0;

	slirp_guard_init(&guard);
	for (unsigned i = 0; i < OPERATIONS && input->at < input->size; i++) {
		uint8_t *frame = data;
		size_t length = make_frame(input, data, NET_FRAME_MAX);
		struct offload_packet packet;

		if (length > NET_FRAME_MAX)
			continue;
		now += take(input, 1) == 0xff ? 20000 : 1;
		length = slirp_guard_admit(&guard, &frame, length, 1500, 65521, now);
		check(length == 0 || (length >= NET_FRAME_MIN && length <= NET_FRAME_MAX),
		      "length of what was admitted");
		if (length == 0 || (frame[12] == 8 && frame[13] == 6))
			continue;
		check(offload_parse(&packet, frame, length) && !packet.fragment, "an admitted packet is not whole");
		check(packet.transport == (packet.version == 4 ? 34 : 54), "an admitted packet has options");
		if (packet.protocol == 6)
			check(!(frame[packet.transport + 13] & 0x20) &&
			          slirp_guard_segment(&guard, &packet, frame, 1500) <= 1460,
			      "admitted TCP");
	}
	slirp_guard_destroy(&guard);
}

static void fuzz_macs(struct input *input)
{
	static struct mac_table table;
	int64_t now = 0;

	memset(&table, 0, sizeof(table));
	for (unsigned i = 0; i < OPERATIONS && input->at < input->size; i++) {
		unsigned operation = take(input, 1);
		uint8_t mac[6] = {0};
		uint32_t port = operation >> 4, found;

		take_bytes(input, mac, operation & 8 ? 6 : 1);
		now += operation & 4 ? MAC_TABLE_AGE_MS / 2 : 1;
		if ((operation & 3) == 0) {
			mac_table_forget_port(&table, port);
			check(!mac_table_find(&table, mac, now, &found) || found != port, "a port is not forgotten");
		} else {
			mac_table_learn(&table, mac, port, now);
			check(mac_table_find(&table, mac, now, &found) ? found == port && !(mac[0] & 1) : mac[0] & 1,
			      "an address is not learnt");
			check(!mac_table_find(&table, mac, now + MAC_TABLE_AGE_MS, &found), "an address does not age");
		}
	}
}

static void fuzz_options(struct input *input)
{
	struct net_options options;
	char *text = malloc(input->size - input->at + 16);
	size_t length = 0;
	int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC), old = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	static const char *const words[] = {
	    "user,",       "hostfwd=",   "tcp:",    "127.0.0.1:",
	    "-:",          "[::1]:",     "tap,",    "ifname=",
	    "fd=",         "unix:",      "switch:", "net=",
	    "10.0.0.0/24", "dhcpstart=", "mac=",    "52:54:00:12:34:56",
	    "restrict=on", ",",          ",,",      "1",
	    "65535",       "mtu=",       "queues=",
	};

	if (!text || quiet < 0 || old < 0)
		exit(1);
	dup2(quiet, STDERR_FILENO);
	while (input->at < input->size) {
		uint8_t byte = (uint8_t)take(input, 1);

		if (byte < sizeof(words) / sizeof(words[0]) && length + strlen(words[byte]) + 1 < input->size) {
			strcpy(text + length, words[byte]);
			length += strlen(words[byte]);
		} else if (byte && length + 1 < input->size) {
			text[length++] = (char)byte;
		}
	}
	text[length] = 0;
	if (net_options_parse(&options, text) == 0) {
		check(options.queue_pairs >= 1 && options.queue_pairs <= NET_QUEUE_PAIRS_MAX, "queue pairs");
		check(options.kind != NET_USER || options.user.forward_count <= NET_FORWARDS_MAX, "forwards");
		check(options.kind != NET_SWITCH || !strchr(options.switch_name, '/'), "name of a switch");
	}
	dup2(old, STDERR_FILENO);
	close(old);
	close(quiet);
	free(text);
}

/* libslirp in this process. */
static struct net *open_slirp(const struct net_options *options)
{
	struct net *net = net_create(&net_backend_slirp, "user");

	return net && net->backend->open(net, options) == 0 ? net : NULL;
}

/* libslirp behind its guard, where it reaches nobody. */
static void fuzz_user(struct input *input)
{
	static const struct net_options options = {.kind = NET_USER,
	                                           .user = {.restricted = true, .ipv4 = true, .ipv6 = true}};
	struct event_loop *loop = event_loop_create();
	struct device device;

	if (!loop || !device_attach(&device, loop, open_slirp(&options)))
		exit(1);
	device.offloads = take(input, 1) & 1 ? NET_OFFLOAD_ALL : 0;
	net_set_offloads(device.net, device.offloads);
	for (unsigned i = 0; i < OPERATIONS && input->at < input->size; i++) {
		send_frame(&device, input);
		if (i % 16 == 0)
			run(loop);
	}
	run(loop);
	net_close(device.net);
	event_loop_destroy(loop);
}

/* One member of a switch stays for all inputs; strangers come and speak to it. */
static struct {
	char folder[64];
	struct event_loop *loop;
	struct device device;
	struct sockaddr_un address;
} bridge;

static void remove_folder(void)
{
	char command[128];

	net_close(bridge.device.net);
	event_loop_destroy(bridge.loop);
	snprintf(command, sizeof(command), "rm -rf '%s'", bridge.folder);
	if (system(command) != 0)
		fprintf(stderr, "fuzz_net: %s remains\n", bridge.folder);
}

static void open_bridge(void)
{
	static const struct net_options options = {.kind = NET_SWITCH, .switch_name = "fuzz"};
	char command[200];
	FILE *list;

	strcpy(bridge.folder, "/tmp/ring3-fuzz-XXXXXX");
	bridge.loop = event_loop_create();
	if (!bridge.loop || !mkdtemp(bridge.folder) || setenv("XDG_RUNTIME_DIR", bridge.folder, 1) < 0 ||
	    !device_attach(&bridge.device, bridge.loop, net_open(&options)))
		exit(1);
	atexit(remove_folder);
	bridge.address.sun_family = AF_UNIX;
	snprintf(command, sizeof(command), "echo %s/ring3/switch/fuzz/*", bridge.folder);
	list = popen(command, "r");
	if (!list || fscanf(list, "%107s", bridge.address.sun_path) != 1)
		exit(1);
	pclose(list);
}

static void fuzz_switch(struct input *input)
{
	static uint8_t message[24 + NET_FRAME_MAX + 8];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (!bridge.loop)
		open_bridge();
	if (fd < 0 || connect(fd, (struct sockaddr *)&bridge.address, sizeof(bridge.address)) < 0)
		exit(1);
	run(bridge.loop);
	for (unsigned i = 0; i < 32 && input->at < input->size; i++) {
		unsigned shape = take(input, 1);
		struct virtio_net_hdr header = make_header(input);
		size_t length = 24 + make_frame(input, message + 24, NET_FRAME_MAX);

		memset(message, 0, 24);
		memcpy(message, "\x01\x00\x33\x72", 4);
		message[4] = i == 0 ? 1 : 2;
		memcpy(message + 6, &header, sizeof(header));
		message[16] = 42;
		if (shape == 0xff)
			take_bytes(input, message, 24);
		if (i == 0 || shape == 0xfe)
			length = 24;
		if (send(fd, message, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			break;
		if (shape & 1)
			run(bridge.loop);
	}
	run(bridge.loop);
	close(fd);
	run(bridge.loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const parts[])(struct input *) = {fuzz_pair,  fuzz_stream,  fuzz_guard, fuzz_macs,
	                                                fuzz_guard, fuzz_options, fuzz_user,  fuzz_switch};
	struct input input = {.data = data, .size = size};

	parts[take(&input, 1) % (sizeof(parts) / sizeof(parts[0]))](&input);
	return 0;
}
