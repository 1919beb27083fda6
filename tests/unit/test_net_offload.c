/* Checksums and the cutting of large packets, alone and between two devices on one cable; and that cable's flow. */
#include "net_rig.h"

#define CLIENT 0x0a000001
#define SERVER 0x0a000002

static const uint8_t mac_a[6] = {0x52, 0x33, 0, 0, 0, 1}, mac_b[6] = {0x52, 0x33, 0, 0, 0, 2};
static const uint8_t ip6_a[16] = {0xfd, [15] = 1}, ip6_b[16] = {0xfd, [15] = 2};

static uint8_t large[NET_FRAME_MAX];

/* A TCP packet with so much payload and all that a driver leaves open; returns its length. */
static size_t make_tcp(struct virtio_net_hdr *header, bool v4, size_t payload, unsigned size, unsigned flags)
{
	size_t transport = v4 ? 34 : 54, length = transport + 32 + payload;
	uint8_t *tcp = large + transport;

	rig_ethernet(large, mac_b, mac_a, v4 ? 0x0800 : 0x86dd);
	if (v4)
		rig_ipv4(large, CLIENT, SERVER, IPPROTO_TCP, 32 + payload);
	else
		rig_ipv6(large, ip6_a, ip6_b, IPPROTO_TCP, 32 + payload);
	memset(tcp, 0, 32);
	rig_put16(tcp, 1234);
	rig_put16(tcp + 2, 80);
	rig_put32(tcp + 4, 0xfffffff0); /* wraps */
	tcp[12] = 0x80;
	tcp[13] = (uint8_t)flags;
	memset(tcp + 20, 1, 12);
	for (size_t i = 0; i < payload; i++)
		tcp[32 + i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
	/* The pseudo-header's sum, as Linux leaves it. */
	rig_put16(tcp + 16, 0x55aa);
	*header = (struct virtio_net_hdr){
	    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	    .gso_type = v4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6,
	    .hdr_len = (uint16_t)(transport + 32),
	    .gso_size = (uint16_t)size,
	    .csum_start = (uint16_t)transport,
	    .csum_offset = 16,
	};
	return length;
}

static void checksums(void **state)
{
	uint8_t data[64];

	/* The example of RFC 1071 3, and each length. */
	assert_int_equal((uint16_t)~htons(0xddf2),
	                 checksum_fold(checksum_add(0, "\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 8)));
	for (unsigned length = 0; length <= sizeof(data); length++) {
		uint32_t sum = 0;

		for (unsigned i = 0; i < length; i++) {
			data[i] = (uint8_t)(i * 37 + length);
			sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
		}
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = sum == 0xffff ? 0xffff : ~sum & 0xffff;
		assert_int_equal(checksum_fold(checksum_add(0, data, length)), htons((uint16_t)sum));
	}
}

static void plain_checksum(void **state)
{
	struct virtio_net_hdr header;
	size_t length = make_tcp(&header, true, 101, 0, 0x18);
	uint32_t pseudo = 0;

	header.gso_type = 0;
	rig_put16(large + 50, 0);
	for (unsigned i = 26; i < 34; i += 2)
		pseudo += rig_get16(large + i);
	pseudo += IPPROTO_TCP + 133;
	pseudo = (pseudo & 0xffff) + (pseudo >> 16);
	rig_put16(large + 50, pseudo);
	assert_true(offload_valid(&header, large, length));
	offload_finish_checksum(&header, large, length);
	assert_int_equal(header.flags, 0);
	assert_int_equal(rig_transport_sum(large, 34, length), 0xffff);
	/* And back. */
	assert_true(offload_request_checksum(&header, large, length));
	assert_int_equal(rig_get16(large + 50), pseudo);
	assert_int_equal(header.csum_start, 34);
	assert_int_equal(header.csum_offset, 16);
}

/* All segments of a large TCP packet: each one right, together the whole. */
static void check_segments(bool v4, size_t payload, unsigned size)
{
	static uint8_t segment[NET_FRAME_MAX + 64];
	size_t transport = v4 ? 34 : 54, at = 0, got;
	struct virtio_net_hdr header;
	size_t length = make_tcp(&header, v4, payload, size, 0x99); /* CWR ACK PSH FIN */
	struct offload_cutter cutter;
	unsigned count = 0;

	assert_true(offload_valid(&header, large, length));
	offload_cutter_init(&cutter, &header, large, length);
	while ((got = offload_cut(&cutter, segment)) > 0) {
		size_t bytes = got - transport - 32;
		bool last = at + bytes == payload;

		assert_true(bytes == size || last);
		assert_int_equal(rig_get32(segment + transport + 4), (uint32_t)(0xfffffff0 + at));
		assert_memory_equal(segment + transport + 32, large + transport + 32 + at, bytes);
		assert_int_equal(rig_transport_sum(segment, transport, got), 0xffff);
		assert_int_equal(segment[transport + 13], 0x10 | (at == 0 ? 0x80 : 0) | (last ? 0x09 : 0));
		if (v4) {
			assert_int_equal(rig_get16(segment + 16), got - 14);
			assert_int_equal(rig_get16(segment + 18), 0x1234 + count);
			assert_int_equal(checksum_fold(checksum_add(0, segment + 14, 20)), 0xffff);
		} else {
			assert_int_equal(rig_get16(segment + 18), got - 54);
		}
		at += bytes;
		count++;
	}
	assert_int_equal(at, payload);
	assert_int_equal(count, payload ? (payload + size - 1) / size : 1);
}

static void tcp_segments(void **state)
{
	static const size_t payloads[] = {0, 1, 47, 48, 1460, 1461, 2920, 30001, 65000};

	for (unsigned i = 0; i < sizeof(payloads) / sizeof(payloads[0]); i++) {
		for (unsigned v4 = 0; v4 < 2; v4++) {
			check_segments(v4, payloads[i], 48);
			check_segments(v4, payloads[i], 1460);
			check_segments(v4, payloads[i], 65535);
		}
	}
}

static void udp_fragments(void **state)
{
	static uint8_t whole[NET_FRAME_MAX + 64], segment[NET_FRAME_MAX + 64];
	const size_t payload = 20000;

	for (unsigned v4 = 0; v4 < 2; v4++) {
		size_t transport = v4 ? 34 : 54, length = transport + 8 + payload, got, at = 0;
		struct virtio_net_hdr header = {
		    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		    .gso_type = VIRTIO_NET_HDR_GSO_UDP,
		    .gso_size = 1479,
		    .csum_start = (uint16_t)transport,
		    .csum_offset = 6,
		};
		struct offload_cutter cutter;

		rig_ethernet(large, mac_b, mac_a, v4 ? 0x0800 : 0x86dd);
		if (v4)
			rig_ipv4(large, CLIENT, SERVER, IPPROTO_UDP, 8 + payload);
		else
			rig_ipv6(large, ip6_a, ip6_b, IPPROTO_UDP, 8 + payload);
		for (size_t i = 0; i < payload; i++)
			large[transport + 8 + i] = (uint8_t)(i ^ i >> 8);
		rig_put16(large + transport + 4, (unsigned)(8 + payload));
		assert_true(offload_valid(&header, large, length));
		offload_finish_checksum(&header, large, length);
		assert_int_equal(rig_transport_sum(large, transport, length), 0xffff);
		offload_cutter_init(&cutter, &header, large, length);
		while ((got = offload_cut(&cutter, segment)) > 0) {
			size_t head = transport + (v4 ? 0 : 8), bytes = got - head, offset;
			bool more;

			assert_true(bytes <= 1472);
			if (v4) {
				offset = (rig_get16(segment + 20) & 0x1fff) * 8u;
				more = rig_get16(segment + 20) & 0x2000;
				assert_int_equal(rig_get16(segment + 16), got - 14);
				assert_int_equal(checksum_fold(checksum_add(0, segment + 14, 20)), 0xffff);
			} else {
				assert_int_equal(segment[20], IPPROTO_FRAGMENT);
				assert_int_equal(segment[54], IPPROTO_UDP);
				assert_int_equal(rig_get16(segment + 18), got - 54);
				offset = rig_get16(segment + 56) & 0xfff8;
				more = rig_get16(segment + 56) & 1;
			}
			assert_int_equal(offset, at);
			memcpy(whole + at, segment + head, bytes);
			at += bytes;
			assert_int_equal(more, at < 8 + payload);
		}
		assert_int_equal(at, 8 + payload);
		assert_memory_equal(whole, large + transport, at);
	}
}

/* Headers that do not fit their frames. */
static void impossible_headers(void **state)
{
	struct virtio_net_hdr good, header;
	size_t length = make_tcp(&good, true, 3000, 1460, 0x10);

	assert_true(offload_valid(&good, large, length));
#define REFUSED(change)                                                                                                \
	do {                                                                                                           \
		header = good;                                                                                         \
		change;                                                                                                \
		assert_false(offload_valid(&header, large, length));                                                   \
	} while (0)
	REFUSED(header.csum_start = (uint16_t)(length - 1));
	REFUSED(header.csum_start = 65535);
	REFUSED(header.csum_start = 13);
	REFUSED((header.csum_start = 65535, header.csum_offset = 65535));
	REFUSED(header.gso_size = 0);
	REFUSED(header.gso_size = 47);
	REFUSED(header.gso_type = VIRTIO_NET_HDR_GSO_TCPV6);
	REFUSED(header.gso_type = VIRTIO_NET_HDR_GSO_UDP);
	REFUSED(header.gso_type = 2);
	REFUSED(header.gso_type = 0x7f);
	REFUSED(header.gso_type = VIRTIO_NET_HDR_GSO_ECN);
	/* Cut short at every place; no segment is longer than its parts. */
	for (size_t cut = 14; cut < 66; cut++)
		assert_false(offload_valid(&good, large, cut));
	large[46] = 0x40; /* data offset */
	REFUSED((void)0);
	large[46] = 0x80;
	large[14] = 0x44;
	REFUSED((void)0);
	large[14] = 0x65;
	REFUSED((void)0);
	large[14] = 0x45;
	large[20] = 0x20; /* a fragment */
	REFUSED((void)0);
	large[20] = 0;
	assert_true(offload_valid(&good, large, length));
}

/* ---- two devices on a cable ---- */

static struct event_loop *loop;
static struct rig a, b;

static void open_pair(void)
{
	struct net *ends[2];

	loop = event_loop_create();
	assert_non_null(loop);
	assert_true(net_pair(ends));
	rig_attach(&a, loop, ends[0]);
	rig_attach(&b, loop, ends[1]);
}

static void close_pair(void)
{
	rig_close(&a);
	rig_close(&b);
	event_loop_destroy(loop);
}

/* The receiver's driver decides what is finished. */
static void receiver_decides(void **state)
{
	struct virtio_net_hdr header;
	struct rig_frame *frame;
	size_t length;

	open_pair();
	length = make_tcp(&header, true, 6000, 1460, 0x18);
	net_set_offloads(b.net, NET_OFFLOAD_ALL);
	assert_true(rig_send_header(&a, &header, large, length));
	frame = rig_next(&b);
	assert_int_equal(frame->length, length);
	assert_memory_equal(&frame->header, &header, sizeof(header));
	free(frame);
	/* Without checksums there are no segments, whatever else is said. */
	for (unsigned i = 0; i < 3; i++) {
		net_set_offloads(b.net, i == 0   ? NET_OFFLOAD_ALL & ~NET_OFFLOAD_CSUM
		                        : i == 1 ? NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6
		                                 : 0);
		rig_expect_count(&b, 1 + 5 * i);
		assert_true(rig_send_header(&a, &header, large, length));
		rig_expect_count(&b, 6 + 5 * i);
		while ((frame = rig_pop(&b))) {
			assert_true(frame->length <= 66 + 1460);
			assert_int_equal(frame->header.flags, 0);
			assert_int_equal(frame->header.gso_type, 0);
			assert_int_equal(rig_transport_sum(frame->data, 34, frame->length), 0xffff);
			free(frame);
		}
	}
	/* Explicit congestion notification is a right of its own. */
	header.gso_type |= VIRTIO_NET_HDR_GSO_ECN;
	net_set_offloads(b.net, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	assert_true(rig_send_header(&a, &header, large, length));
	rig_expect_count(&b, 21);
	close_pair();
}

/* A receiver that takes one at a time, in the middle of a packet that is cut. */
static void receiver_without_room(void **state)
{
	struct virtio_net_hdr header;
	size_t length;
	unsigned sent = 0, count;

	open_pair();
	b.room = 0;
	length = make_tcp(&header, true, 6000, 1460, 0x18);
	/* The sender has to wait at last. */
	while (rig_send_header(&a, &header, large, length)) {
		assert_true(++sent < 10000);
		if (sent % 16 == 0)
			rig_run(loop, NULL, NULL, 1);
	}
	assert_true(sent >= 100);
	rig_run(loop, NULL, NULL, 5);
	assert_int_equal(b.count, 0);
	assert_int_equal(a.writable, 0);
	for (count = 1; count <= 12; count++) {
		b.room = 1;
		net_receive_ready(b.net);
		rig_expect_count(&b, count);
		rig_run(loop, NULL, NULL, 1);
		assert_int_equal(b.count, count);
	}
	b.room = UINT32_MAX;
	net_receive_ready(b.net);
	rig_expect_count(&b, 5 * sent);
	assert_true(a.writable >= 1);
	for (count = 0; count < 5 * sent; count++) {
		struct rig_frame *frame = rig_pop(&b);

		assert_int_equal(rig_get32(frame->data + 38), (uint32_t)(0xfffffff0 + 1460 * (count % 5)));
		assert_int_equal(rig_transport_sum(frame->data, 34, frame->length), 0xffff);
		free(frame);
	}
	close_pair();
}

static void lengths(void **state)
{
	struct net_counters counters;

	open_pair();
	memset(large, 0, sizeof(large));
	assert_true(rig_send_header(&a, NULL, large, 0));
	assert_true(rig_send_header(&a, NULL, large, 13));
	static uint8_t more[NET_FRAME_MAX + 1];
	assert_true(rig_send_header(&a, NULL, more, sizeof(more)));
	assert_true(rig_send_header(&a, NULL, large, 14));
	assert_true(rig_send_header(&a, NULL, large, NET_FRAME_MAX));
	rig_expect_count(&b, 2);
	net_counters(a.net, &counters);
	assert_int_equal(counters.sent, 2);
	assert_int_equal(counters.sent_dropped, 3);
	assert_int_equal(counters.sent_bytes, 14 + NET_FRAME_MAX);
	net_counters(b.net, &counters);
	assert_int_equal(counters.received, 2);
	close_pair();
}

/* Lengths that overflow when they are added. */
static void lengths_that_wrap(void **state)
{
	struct iovec iov[3] = {{large, 64}, {large, SIZE_MAX - 63}, {large, 20}};

	open_pair();
	assert_true(net_send(a.net, NULL, iov, 3));
	rig_run(loop, NULL, NULL, 3);
	assert_int_equal(b.count, 0);
	close_pair();
}

static void pulled_cable(void **state)
{
	struct net *first;

	open_pair();
	first = a.net;
	memset(large, 0, 64);
	net_close(first);
	rig_send(&b, large, 64);
	assert_true(rig_run(loop, rig_link_is_down, &b, RIG_PATIENCE));
	assert_int_equal(b.link_changes, 1);
	rig_send(&b, large, 64);
	rig_close(&b);
	event_loop_destroy(loop);
}

static void no_cable(void **state)
{
	struct rig none;

	loop = event_loop_create();
	rig_attach(&none, loop, rig_open("none,mac=02:00:00:00:00:07,mtu=9000,queues=3"));
	assert_false(net_link(none.net));
	assert_int_equal(net_mac(none.net)[5], 7);
	assert_int_equal(net_mtu(none.net), 9000);
	assert_int_equal(net_queue_pairs(none.net), 3);
	assert_string_equal(net_name(none.net), "none");
	memset(large, 0, 64);
	rig_send(&none, large, 64);
	rig_close(&none);
	event_loop_destroy(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(checksums),
	    cmocka_unit_test(plain_checksum),
	    cmocka_unit_test(tcp_segments),
	    cmocka_unit_test(udp_fragments),
	    cmocka_unit_test(impossible_headers),
	    cmocka_unit_test(receiver_decides),
	    cmocka_unit_test(receiver_without_room),
	    cmocka_unit_test(lengths),
	    cmocka_unit_test(lengths_that_wrap),
	    cmocka_unit_test(pulled_cable),
	    cmocka_unit_test(no_cable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
