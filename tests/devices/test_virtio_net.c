/* The network card, on a cable whose other end is the test's. */
#include "device_test.h"

#include <errno.h>
#include <unistd.h>

#include "backends/net/net.h"
#include "devices/virtio/virtio_net.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define BUFFERS 0x40000ull
#define CONTROL 0x30000ull
#define FRAMES  64

struct bench {
	struct driver_rig rig;
	struct virtio_net card;
	struct net *ends[2];
	/* What came out of the cable; written on the loop's thread. */
	_Atomic unsigned frames;
	uint8_t frame[FRAMES][2048];
	size_t length[FRAMES];
	struct virtio_net_hdr header[FRAMES];
};

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_INDIRECT_DESC, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_RING_RESET};
#define CONTROL_FEATURES                                                                                               \
	(NET_FEATURE_CTRL_VQ | NET_FEATURE_CTRL_RX | NET_FEATURE_CTRL_RX_EXTRA | NET_FEATURE_CTRL_VLAN |               \
	 NET_FEATURE_CTRL_MAC_ADDR | NET_FEATURE_CTRL_OFFLOADS | NET_FEATURE_GUEST_CSUM)

static bool far_receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct bench *bench = owner;
	unsigned at = bench->frames % FRAMES;

	bench->length[at] = length;
	bench->header[at] = *header;
	memcpy(bench->frame[at], frame, length < 2048 ? length : 2048);
	bench->frames++;
	return true;
}

static void far_writable(void *owner) {}

static struct bench *bench_make(void)
{
	struct bench *bench = calloc(1, sizeof *bench);
	const struct net_client far = {.receive = far_receive, .writable = far_writable, .owner = bench};

	assert_non_null(bench);
	driver_rig_init(&bench->rig);
	assert_true(net_pair(bench->ends));
	io_thread_pause(bench->rig.thread);
	assert_int_equal(virtio_net_init(&bench->card, &bench->rig.host, 0, bench->ends[0]), 0);
	assert_int_equal(net_attach(bench->ends[1], bench->rig.host.loop, &far), 0);
	io_thread_resume(bench->rig.thread);
	driver_rig_plug(&bench->rig, &bench->card.device);
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	io_thread_pause(bench->rig.thread);
	virtio_net_destroy(&bench->card);
	net_close(bench->ends[0]);
	net_close(bench->ends[1]);
	io_thread_resume(bench->rig.thread);
	driver_rig_free(&bench->rig);
	free(bench);
}

static void make_frame(uint8_t *frame, size_t length, unsigned seed)
{
	static const uint8_t start[14] = {0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6, 0x88, 0xb5};

	memcpy(frame, start, 14);
	for (size_t i = 14; i < length; i++)
		frame[i] = i * 7 + seed;
}

/* From the far end, on the loop's thread: nobody else may call. */
static void inject(struct bench *bench, const uint8_t *frame, size_t length)
{
	const struct iovec iov = {(void *)frame, length};

	io_thread_pause(bench->rig.thread);
	assert_true(net_send(bench->ends[1], NULL, &iov, 1));
	io_thread_resume(bench->rig.thread);
	driver_settle(&bench->rig);
}

static void transmit(struct bench *bench, size_t length, unsigned seed)
{
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffers[] = {
	    {BUFFERS, 12, false}, {BUFFERS + 12, 10, false}, {BUFFERS + 22, length - 10, false}};
	uint8_t frame[2048];
	uint16_t id;
	uint32_t written;

	make_frame(frame, length, seed);
	memory_fill(&rig->memory, BUFFERS, 0, 12);
	memory_write(&rig->memory, BUFFERS + 12, frame, length);
	unsigned before = bench->frames;
	assert_true(driver_send(rig, 1, buffers, 3) >= 0);
	driver_wait_used(rig, 1, &id, &written);
	driver_settle(rig);
	assert_int_equal(written, 0);
	assert_int_equal(bench->frames, before + 1);
	assert_int_equal(bench->length[before % FRAMES], length);
	assert_memory_equal(bench->frame[before % FRAMES], frame, length);
}

static void test_transmit(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, NET_FEATURE_MAC | modes[mode], 16);
		for (unsigned i = 0; i < 30; i++)
			transmit(bench, 60 + 47 * i, i);
		/* Too short a frame vanishes; too short a header is the driver's fault. */
		const struct driver_buffer runt = {BUFFERS, 12 + 13, false}, stub = {BUFFERS, 11, false};
		uint16_t id;
		uint32_t written;
		unsigned before = bench->frames;
		driver_send(rig, 1, &runt, 1);
		driver_wait_used(rig, 1, &id, &written);
		driver_settle(rig);
		assert_int_equal(bench->frames, before);
		driver_send(rig, 1, &stub, 1);
		driver_wait_status(rig, VIRTIO_STATUS_NEEDS_RESET, VIRTIO_STATUS_NEEDS_RESET);
	}
	bench_free(bench);
}

/* Buffers of `size` bytes; number n at its own place. */
static void give_buffers(struct driver_rig *rig, unsigned count, uint32_t size)
{
	for (unsigned i = 0; i < count; i++) {
		const struct driver_buffer buffer = {BUFFERS + 0x1000ul * i, size, true};

		assert_true(driver_send(rig, 0, &buffer, 1) >= 0);
	}
}

static void test_receive(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	uint8_t frame[2000], back[2048];
	uint16_t id, buffers;
	uint32_t written;

	for (unsigned mode = 0; mode < 4; mode++) {
		/* One buffer for each frame. */
		driver_start(rig, NET_FEATURE_MAC | modes[mode], 16);
		for (unsigned i = 0; i < 40; i++) {
			give_buffers(rig, 1, 2048);
			make_frame(frame, 60 + i, i);
			inject(bench, frame, 60 + i);
			driver_wait_used(rig, 0, &id, &written);
			assert_int_equal(written, 12 + 60 + i);
			memory_read(&rig->memory, BUFFERS, back, written);
			assert_memory_equal(back + 12, frame, 60 + i);
			assert_int_equal(back[10], 1);
		}
		/* One that is too small for its buffer is dropped, and the buffer is still there for the next. */
		give_buffers(rig, 1, 500);
		make_frame(frame, 600, 1);
		inject(bench, frame, 600);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		make_frame(frame, 488, 1);
		inject(bench, frame, 488);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 500);
		/* No buffers: the frame waits. */
		make_frame(frame, 100, 2);
		inject(bench, frame, 100);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		give_buffers(rig, 1, 2048);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 112);

		/* Mergeable ones. */
		driver_start(rig, NET_FEATURE_MAC | NET_FEATURE_MRG_RXBUF | modes[mode], 16);
		for (unsigned i = 0; i < 20; i++) {
			size_t at = 0;

			give_buffers(rig, 8, 300);
			make_frame(frame, 1500, i);
			inject(bench, frame, 1500);
			memory_read(&rig->memory, BUFFERS + 10, &buffers, 2);
			assert_int_equal(buffers, 6);
			for (unsigned j = 0; j < 6; j++) {
				driver_wait_used(rig, 0, &id, &written);
				assert_int_equal(written, j < 5 ? 300 : 12);
				memory_read(&rig->memory, BUFFERS + 0x1000ul * j, back, written);
				assert_memory_equal(back + (j ? 0 : 12), frame + at, written - (j ? 0 : 12));
				at += written - (j ? 0 : 12);
			}
			assert_false(driver_used(&rig->queue[0], &id, &written));
			/* The two that are left go with a short one each. */
			for (unsigned j = 0; j < 2; j++) {
				inject(bench, frame, 100);
				driver_wait_used(rig, 0, &id, &written);
				assert_int_equal(written, 112);
			}
		}
		/* Too few of them: all wait until there are more. */
		give_buffers(rig, 3, 300);
		inject(bench, frame, 1500);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		give_buffers(rig, 3, 300);
		for (unsigned j = 0; j < 6; j++)
			driver_wait_used(rig, 0, &id, &written);
		/* A buffer that cannot even hold the header. */
		give_buffers(rig, 1, 12);
		inject(bench, frame, 100);
		driver_wait_status(rig, VIRTIO_STATUS_NEEDS_RESET, VIRTIO_STATUS_NEEDS_RESET);
		inject(bench, frame, 100);
		/* Never enough: one byte each, a whole ring full. */
		driver_start(rig, NET_FEATURE_MAC | NET_FEATURE_MRG_RXBUF | modes[mode], 16);
		give_buffers(rig, 16, 20);
		inject(bench, frame, 1500);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		inject(bench, frame, 100);
		for (unsigned j = 0; j < 6; j++)
			driver_wait_used(rig, 0, &id, &written);
	}
	bench_free(bench);
}

static uint8_t command(struct driver_rig *rig, uint8_t class, uint8_t number, const void *data, uint32_t length)
{
	const struct driver_buffer buffers[] = {
	    {CONTROL, 2, false}, {CONTROL + 2, length, false}, {CONTROL + 4096, 1, true}};
	const struct driver_buffer bare[] = {{CONTROL, 2, false}, {CONTROL + 4096, 1, true}};
	const uint8_t start[2] = {class, number};
	uint8_t ack = 0xee;
	uint16_t id;
	uint32_t written;

	memory_write(&rig->memory, CONTROL, start, 2);
	memory_write(&rig->memory, CONTROL + 2, data, length);
	assert_true(driver_send(rig, 2, length ? buffers : bare, length ? 3 : 2) >= 0);
	driver_wait_used(rig, 2, &id, &written);
	assert_int_equal(written, 1);
	memory_read(&rig->memory, CONTROL + 4096, &ack, 1);
	return ack;
}

static bool passes(struct bench *bench, const uint8_t *frame)
{
	uint16_t id;
	uint32_t written;

	inject(bench, frame, 64);
	if (!driver_used(&bench->rig.queue[0], &id, &written))
		return false;
	give_buffers(&bench->rig, 1, 2048);
	return true;
}

static void test_filter(void **context)
{
	static const uint8_t off = 0, on = 1, short_table[] = {2, 0, 0, 0, 1, 2, 3, 4, 5, 6};
	static const uint8_t table[] = {1, 0, 0, 0, 0x52, 9, 9, 9, 9, 9, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1};
	static const uint8_t huge[] = {0xff, 0xff, 0xff, 0xff, 1, 2, 3};
	uint8_t mine[64], other[64], group[64], all[64], tagged[64], mac[6];
	uint16_t vlan = 5, no_vlan = 4096;
	uint64_t offloads = NET_FEATURE_GUEST_CSUM, bad_offloads = NET_FEATURE_GUEST_TSO4;
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	driver_start(rig, NET_FEATURE_MAC | CONTROL_FEATURES, 16);
	for (unsigned i = 0; i < 6; i++)
		mac[i] = driver_config(rig, i, 1);
	assert_memory_equal(mac, net_mac(bench->ends[0]), 6);
	make_frame(mine, 64, 0);
	memcpy(mine, mac, 6);
	make_frame(other, 64, 1);
	memcpy(other, table + 4, 6);
	make_frame(group, 64, 2);
	memcpy(group, table + 14, 6);
	make_frame(all, 64, 3);
	memset(all, 0xff, 6);
	memcpy(tagged, mine, 64);
	memcpy(tagged + 12, "\x81\x00\x00\x05", 4);
	give_buffers(rig, 1, 2048);
	assert_true(passes(bench, mine) && passes(bench, other) && passes(bench, group) && passes(bench, all));
	assert_int_equal(command(rig, 0, 0, &off, 1), 0);
	assert_true(passes(bench, mine) && passes(bench, all));
	assert_false(passes(bench, other) || passes(bench, group));
	assert_int_equal(command(rig, 1, 0, table, sizeof table), 0);
	assert_true(passes(bench, other) && passes(bench, group));
	/* Lists that are not there change nothing. */
	assert_int_equal(command(rig, 1, 0, short_table, sizeof short_table), 1);
	assert_int_equal(command(rig, 1, 0, huge, sizeof huge), 1);
	assert_int_equal(command(rig, 1, 0, table, sizeof table - 1), 1);
	assert_true(passes(bench, other));
	assert_int_equal(command(rig, 0, 3, &on, 1), 0);
	assert_int_equal(command(rig, 0, 5, &on, 1), 0);
	assert_false(passes(bench, group) || passes(bench, all));
	assert_int_equal(command(rig, 0, 6, &on, 1), 1);
	assert_int_equal(command(rig, 0, 0, NULL, 0), 1);
	/* VLANs. */
	assert_false(passes(bench, tagged));
	assert_int_equal(command(rig, 2, 0, &vlan, 2), 0);
	assert_true(passes(bench, tagged));
	assert_int_equal(command(rig, 2, 1, &vlan, 2), 0);
	assert_false(passes(bench, tagged));
	assert_int_equal(command(rig, 2, 0, &no_vlan, 2), 1);
	/* Another address. */
	assert_int_equal(command(rig, 1, 1, "\x52\x54\x77\x77\x77\x77", 6), 0);
	assert_false(passes(bench, mine));
	assert_int_equal(driver_config(rig, 2, 4), 0x77777777);
	assert_int_equal(command(rig, 1, 1, "\x52\x54", 2), 1);
	/* Offloads: only what was negotiated. */
	assert_int_equal(command(rig, 5, 0, &offloads, 8), 0);
	assert_int_equal(command(rig, 5, 0, &bad_offloads, 8), 1);
	/* Nothing of the kind. */
	assert_int_equal(command(rig, 4, 0, "\1", 2), 1);
	assert_int_equal(command(rig, 77, 0, NULL, 0), 1);
	/* A reset forgets it all. */
	driver_start(rig, NET_FEATURE_MAC, 16);
	give_buffers(rig, 1, 2048);
	assert_true(passes(bench, mine) && passes(bench, other) && passes(bench, group) && passes(bench, tagged));
	assert_int_equal(driver_config(rig, 2, 4), mac[2] | mac[3] << 8 | mac[4] << 16 | mac[5] << 24);
	bench_free(bench);
}

static void test_features(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	driver_reset(rig);
	assert_false(driver_negotiate(rig, NET_FEATURE_GUEST_TSO4));
	driver_reset(rig);
	assert_false(driver_negotiate(rig, NET_FEATURE_HOST_TSO6));
	driver_reset(rig);
	assert_false(driver_negotiate(rig, NET_FEATURE_CTRL_RX));
	driver_reset(rig);
	assert_false(driver_negotiate(rig, NET_FEATURE_CTRL_VQ | NET_FEATURE_MQ));
	driver_reset(rig);
	assert_true(driver_negotiate(rig, NET_FEATURE_CSUM | NET_FEATURE_HOST_TSO4 | NET_FEATURE_GUEST_CSUM));
	assert_int_equal(driver_config(rig, 8, 2), 1);
	assert_int_equal(driver_config(rig, 6, 2), 1);
	bench_free(bench);
}

static void test_state(void **context)
{
	static const uint8_t off = 0, table[] = {1, 0, 0, 0, 0x52, 9, 9, 9, 9, 9, 0, 0, 0, 0};
	struct bench *first = bench_make(), *second = bench_make();
	struct state *save = state_save_begin(), *load;
	uint8_t frame[64];
	size_t length;

	driver_start(&first->rig, NET_FEATURE_MAC | CONTROL_FEATURES | modes[3], 16);
	assert_int_equal(command(&first->rig, 0, 0, &off, 1), 0);
	assert_int_equal(command(&first->rig, 1, 0, table, sizeof table), 0);
	assert_int_equal(command(&first->rig, 1, 1, "\x52\x54\x77\x77\x77\x77", 6), 0);
	give_buffers(&first->rig, 4, 2048);
	virtio_device_pause(&first->card.device);
	pci_root_state(&first->rig.root, save);
	virtio_pci_state(&first->rig.pci, save);
	const void *data = state_save_data(save, &length);
	load = state_load_begin(data, length);
	memcpy(second->rig.memory.low, first->rig.memory.low, DRIVER_RAM);
	virtio_device_pause(&second->card.device);
	pci_root_state(&second->rig.root, load);
	virtio_pci_state(&second->rig.pci, load);
	if (state_error(load))
		fail_msg("%s", state_error(load));
	state_free(load);
	state_free(save);
	memcpy(second->rig.queue, first->rig.queue, sizeof first->rig.queue);
	for (unsigned i = 0; i < 3; i++)
		second->rig.queue[i].memory = &second->rig.memory;
	/* A frame that comes while it stands waits. */
	make_frame(frame, 64, 0);
	memcpy(frame, table + 4, 6);
	inject(second, frame, 64);
	uint16_t id;
	uint32_t written;
	assert_false(driver_used(&second->rig.queue[0], &id, &written));
	virtio_device_resume(&second->card.device);
	driver_wait_used(&second->rig, 0, &id, &written);
	memset(frame, 2, 6);
	assert_false(passes(second, frame));
	memcpy(frame, "\x52\x54\x77\x77\x77\x77", 6);
	assert_true(passes(second, frame));
	transmit(second, 500, 1);
	bench_free(first);
	bench_free(second);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_transmit), cmocka_unit_test(test_receive), cmocka_unit_test(test_filter),
	    cmocka_unit_test(test_features), cmocka_unit_test(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
