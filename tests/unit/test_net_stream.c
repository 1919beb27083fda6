/* --net unix:PATH: frames on a stream socket, whose other end is the test: it splits, stalls, lies and goes away. */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "backends/net/frame_stream.h"
#include "net_rig.h"

static char path[64];
static struct event_loop *loop;
static struct rig rig;
static int listener = -1, peer = -1;

static void start_listening(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(address.sun_path, path);
	unlink(path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 4), 0);
}

static void stop_listening(void)
{
	close(listener);
	unlink(path);
	listener = -1;
}

static void accept_peer(void)
{
	assert_true(rig_run(loop, rig_link_is_up, &rig, RIG_PATIENCE));
	peer = accept(listener, NULL, NULL);
	assert_true(peer >= 0);
	fcntl(peer, F_SETFL, O_NONBLOCK);
}

static void open_net(bool listening)
{
	char options[80];

	snprintf(path, sizeof(path), "/tmp/ring3-test-%d.sock", (int)getpid());
	unlink(path);
	loop = event_loop_create();
	assert_non_null(loop);
	if (listening)
		start_listening();
	snprintf(options, sizeof(options), "unix:%s", path);
	rig_attach(&rig, loop, rig_open(options));
	assert_false(net_link(rig.net));
	if (listening)
		accept_peer();
}

static void close_net(void)
{
	if (peer >= 0)
		close(peer);
	if (listener >= 0)
		stop_listening();
	peer = -1;
	rig_close(&rig);
	event_loop_destroy(loop);
}

static size_t make_message(uint8_t *message, size_t length, unsigned number)
{
	rig_put32(message, (uint32_t)length);
	for (size_t i = 0; i < length; i++)
		message[4 + i] = (uint8_t)(i * 3 + number);
	if (length >= 18)
		rig_put32(message + 18, number);
	return 4 + length;
}

static void send_bytes(const uint8_t *data, size_t length)
{
	while (length > 0) {
		ssize_t sent = send(peer, data, length, MSG_NOSIGNAL);

		if (sent < 0) {
			assert_int_equal(errno, EAGAIN);
			rig_run(loop, NULL, NULL, 0);
			continue;
		}
		data += sent;
		length -= (size_t)sent;
	}
}

/* Reads exactly so much, with the loop running. */
static void receive_bytes(uint8_t *data, size_t length)
{
	unsigned patience = RIG_PATIENCE;

	while (length > 0) {
		ssize_t got = recv(peer, data, length, 0);

		if (got < 0) {
			assert_int_equal(errno, EAGAIN);
			assert_true(patience-- > 0);
			rig_run(loop, NULL, NULL, 0);
			continue;
		}
		assert_true(got > 0);
		data += got;
		length -= (size_t)got;
	}
}

static void there_and_back(void **state)
{
	static uint8_t message[4 + NET_FRAME_MAX], got[4 + NET_FRAME_MAX];
	static const size_t lengths[] = {14, 15, 60, 1514, 9014, NET_FRAME_MAX};

	open_net(true);
	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct rig_frame *frame;

		make_message(message, lengths[i], i);
		send_bytes(message, 4 + lengths[i]);
		frame = rig_next(&rig);
		assert_int_equal(frame->length, lengths[i]);
		assert_memory_equal(frame->data, message + 4, lengths[i]);
		free(frame);
		rig_send(&rig, message + 4, lengths[i]);
		receive_bytes(got, 4 + lengths[i]);
		assert_memory_equal(got, message, 4 + lengths[i]);
	}
	close_net();
}

/* In pieces of any size. */
static void pieces(void **state)
{
	static uint8_t messages[200000];
	size_t length = 0;
	unsigned count = 0;

	while (length + 4 + 2000 < sizeof(messages)) {
		length += make_message(messages + length, 18 + count * 37 % 1900, count);
		count++;
	}
	open_net(true);
	for (size_t at = 0, step = 1; at < length; at += step) {
		step = at < 500 ? 1 : at % 977 + 1;
		if (step > length - at)
			step = length - at;
		send_bytes(messages + at, step);
		rig_run(loop, NULL, NULL, 0);
	}
	rig_expect_count(&rig, count);
	for (unsigned i = 0; i < count; i++) {
		struct rig_frame *frame = rig_pop(&rig);

		assert_int_equal(rig_get32(frame->data + 14), i);
		assert_int_equal(frame->length, 18 + i * 37 % 1900);
		free(frame);
	}
	close_net();
}

/* Runts are passed over; a length that no frame has ends the connection, and it is made again. */
static void bad_lengths(void **state)
{
	static const uint32_t bad[] = {NET_FRAME_MAX + 1, 0x01000000, 0x7fffffff, 0x80000000, 0xffffffff};
	uint8_t message[100];

	open_net(true);
	for (uint32_t length = 0; length < 14; length++)
		send_bytes(message, make_message(message, length, 0));
	send_bytes(message, make_message(message, 60, 5));
	rig_expect_count(&rig, 1);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		rig_put32(message, bad[i]);
		send_bytes(message, sizeof(message));
		assert_true(rig_run(loop, rig_link_is_down, &rig, RIG_PATIENCE));
		close(peer);
		accept_peer();
		send_bytes(message, make_message(message, 60, 5));
		rig_expect_count(&rig, 2 + i);
	}
	close_net();
}

static void other_end_comes_and_goes(void **state)
{
	uint8_t message[100], got[100];

	open_net(false);
	rig_run(loop, NULL, NULL, 20);
	assert_false(net_link(rig.net));
	rig_send(&rig, message, 60); /* is lost */
	start_listening();
	accept_peer();
	assert_int_equal(rig.link_changes, 1);
	/* Half a message, and then the end: what comes after it begins anew. */
	make_message(message, 60, 1);
	send_bytes(message, 30);
	rig_run(loop, NULL, NULL, 3);
	close(peer);
	assert_true(rig_run(loop, rig_link_is_down, &rig, RIG_PATIENCE));
	stop_listening();
	rig_run(loop, NULL, NULL, 20);
	start_listening();
	accept_peer();
	assert_int_equal(rig.link_changes, 3);
	send_bytes(message, 64);
	rig_expect_count(&rig, 1);
	rig_send(&rig, message + 4, 60);
	receive_bytes(got, 64);
	assert_memory_equal(got, message, 64);
	close_net();
}

static bool is_writable(void *owner)
{
	return ((struct rig *)owner)->writable > 0;
}

static void reader_that_stands(void **state)
{
	static uint8_t frame[1514], got[4 + 1514];
	unsigned sent = 0;

	open_net(true);
	for (;; sent++) {
		rig_put32(frame + 14, sent);
		if (!rig_send_header(&rig, NULL, frame, sizeof(frame)))
			break;
		assert_true(sent < 100000);
		if (sent % 16 == 0)
			rig_run(loop, NULL, NULL, 0);
	}
	rig_run(loop, NULL, NULL, 5);
	for (unsigned i = 0; i < sent; i++) {
		receive_bytes(got, sizeof(got));
		assert_int_equal(rig_get32(got), sizeof(frame));
		assert_int_equal(rig_get32(got + 18), i);
	}
	assert_true(rig_run(loop, is_writable, &rig, RIG_PATIENCE));
	/* It goes away while the device waits: nobody waits for ever. */
	while (rig_send_header(&rig, NULL, frame, sizeof(frame)))
		rig_run(loop, NULL, NULL, 0);
	rig.writable = 0;
	close(peer);
	peer = -1;
	assert_true(rig_run(loop, is_writable, &rig, RIG_PATIENCE));
	close_net();
}

static void device_without_buffers(void **state)
{
	uint8_t message[1600];
	unsigned sent = 0, stuck = 0;

	open_net(true);
	rig.room = 0;
	/* Until the socket takes no more: nothing grows here. */
	while (stuck < 5) {
		size_t length = make_message(message, 1500, sent);
		ssize_t done = send(peer, message, length, MSG_NOSIGNAL);

		if (done == (ssize_t)length) {
			sent++;
			stuck = 0;
			continue;
		}
		if (done > 0) {
			rig.room = 0;
			rig_run(loop, NULL, NULL, 1);
			break;
		}
		stuck++;
		rig_run(loop, NULL, NULL, 2);
	}
	assert_int_equal(rig.count, 0);
	assert_true(sent > 10 && sent < 10000);
	rig.room = 7;
	net_receive_ready(rig.net);
	rig_expect_count(&rig, 7);
	rig_run(loop, NULL, NULL, 3);
	assert_int_equal(rig.count, 7);
	rig.room = UINT32_MAX;
	net_receive_ready(rig.net);
	rig_expect_count(&rig, sent);
	for (unsigned i = 0; i < sent; i++) {
		struct rig_frame *frame = rig_pop(&rig);

		assert_int_equal(rig_get32(frame->data + 14), i);
		free(frame);
	}
	close_net();
}

/* The driver's large packets are cut: nobody there knows of them. */
static void large_packets(void **state)
{
	static uint8_t frame[54 + 60000], got[4 + 1514];
	struct virtio_net_hdr header = {
	    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
	    .gso_size = 1460,
	    .csum_start = 34,
	    .csum_offset = 16,
	};

	open_net(true);
	rig_ethernet(frame, net_mac(rig.net), net_mac(rig.net), 0x0800);
	rig_ipv4(frame, 1, 2, IPPROTO_TCP, 60020);
	frame[46] = 0x50;
	for (unsigned i = 0; i < 20; i++) {
		assert_true(rig_send_header(&rig, &header, frame, sizeof(frame)));
		for (unsigned j = 0; j < 42; j++) {
			size_t length = j < 41 ? 1514 : 54 + 60000 - 41 * 1460;

			receive_bytes(got, 4 + length);
			assert_int_equal(rig_get32(got), length);
			assert_int_equal(rig_transport_sum(got + 4, 34, length), 0xffff);
		}
	}
	close_net();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(there_and_back),     cmocka_unit_test(pieces),
	    cmocka_unit_test(bad_lengths),        cmocka_unit_test(other_end_comes_and_goes),
	    cmocka_unit_test(reader_that_stands), cmocka_unit_test(device_without_buffers),
	    cmocka_unit_test(large_packets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
