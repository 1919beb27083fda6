/* Ports, control messages, flow control. */
#include "device_test.h"

#include "devices/virtio/virtio_console.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define PORTS 3
#define IN    0x40000ull
#define OUT   0x60000ull
#define CTRL  0x80000ull

struct bench {
	struct driver_rig rig;
	struct virtio_console console;
	struct {
		uint8_t bytes[20000];
		size_t count, room;
		unsigned accepts;
	} peer[PORTS];
};

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX};
#define MULTIPORT 2ull

static size_t peer_write(void *owner, const uint8_t *data, size_t length)
{
	struct bench *bench = *(struct bench **)owner;
	unsigned port = (struct bench **)owner - (struct bench **)(bench + 1);
	size_t taken = length < bench->peer[port].room ? length : bench->peer[port].room;

	memcpy(bench->peer[port].bytes + bench->peer[port].count, data, taken);
	bench->peer[port].count += taken;
	bench->peer[port].room -= taken;
	return taken;
}

static void peer_accept(void *owner)
{
	struct bench *bench = *(struct bench **)owner;

	bench->peer[(struct bench **)owner - (struct bench **)(bench + 1)].accepts++;
}

static struct bench *bench_make(void)
{
	static const char *names[] = {NULL, "org.ring3.one", "two"};
	struct bench *bench = calloc(1, sizeof *bench + PORTS * sizeof bench);
	struct bench **owners = (struct bench **)(bench + 1);

	assert_non_null(bench);
	driver_rig_init(&bench->rig);
	assert_int_equal(virtio_console_init(&bench->console, &bench->rig.host, 0, PORTS), 0);
	for (unsigned i = 0; i < PORTS; i++) {
		owners[i] = bench;
		bench->peer[i].room = sizeof bench->peer[i].bytes;
		virtio_console_connect(&bench->console, i, names[i],
		                       (struct virtio_console_peer){peer_write, peer_accept, &owners[i]});
	}
	driver_rig_plug(&bench->rig, &bench->console.device);
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	virtio_console_destroy(&bench->console);
	driver_rig_free(&bench->rig);
	free(bench);
}

static void host_input(struct bench *bench, unsigned port, const char *text)
{
	bench->rig.host.lock(&bench->rig);
	virtio_console_receive(&bench->console.port[port], (const uint8_t *)text, strlen(text));
	bench->rig.host.unlock(&bench->rig);
}

static void give(struct driver_rig *rig, unsigned queue, uint64_t where, uint32_t length)
{
	const struct driver_buffer buffer = {where, length, true};

	assert_true(driver_send(rig, queue, &buffer, 1) >= 0);
}

static void send_text(struct driver_rig *rig, unsigned queue, const char *text)
{
	const struct driver_buffer buffer = {OUT, strlen(text), false};

	memory_write(&rig->memory, OUT, text, strlen(text));
	assert_true(driver_send(rig, queue, &buffer, 1) >= 0);
	driver_settle(rig);
}

static void test_one_port(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	char text[32];
	uint16_t id;
	uint32_t written;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, modes[mode], 16);
		assert_int_equal(driver_config(rig, 4, 4), PORTS);
		bench->peer[0].count = 0;
		send_text(rig, 1, "hello");
		driver_wait_used(rig, 1, &id, &written);
		assert_int_equal(bench->peer[0].count, 5);
		assert_memory_equal(bench->peer[0].bytes, "hello", 5);
		/* Input before there are buffers, and in pieces. */
		host_input(bench, 0, "0123456789");
		give(rig, 0, IN, 4);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 4);
		give(rig, 0, IN + 16, 16);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 6);
		memory_read(&rig->memory, IN + 16, text, 6);
		assert_memory_equal(text, "456789", 6);
		give(rig, 0, IN, 16);
		host_input(bench, 0, "x");
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 1);
		/* Output that the peer does not take waits, and nothing is said twice. */
		bench->peer[0].count = 0;
		bench->peer[0].room = 3;
		send_text(rig, 1, "abcdefgh");
		assert_false(driver_used(&rig->queue[1], &id, &written));
		bench->peer[0].room = 1000;
		bench->rig.host.lock(rig);
		virtio_console_writable(&bench->console.port[0]);
		bench->rig.host.unlock(rig);
		driver_wait_used(rig, 1, &id, &written);
		assert_int_equal(bench->peer[0].count, 8);
		assert_memory_equal(bench->peer[0].bytes, "abcdefgh", 8);
		bench->peer[0].room = sizeof bench->peer[0].bytes;
		/* Last words. */
		driver_set(rig, DRIVER_CONFIG + 8, 4, '!');
		assert_int_equal(bench->peer[0].bytes[8], '!');
	}
	bench_free(bench);
}

struct message {
	uint32_t port;
	uint16_t event, value;
	char rest[24];
};

static void control(struct driver_rig *rig, uint32_t port, uint16_t event, uint16_t value)
{
	const struct message message = {port, event, value, ""};
	const struct driver_buffer buffer = {CTRL, 8, false};
	uint16_t id;
	uint32_t written;

	memory_write(&rig->memory, CTRL, &message, 8);
	assert_true(driver_send(rig, 3, &buffer, 1) >= 0);
	driver_wait_used(rig, 3, &id, &written);
}

static void expect(struct driver_rig *rig, uint32_t port, uint16_t event, uint16_t value, const char *rest)
{
	struct message message;
	uint16_t id;
	uint32_t written;

	memory_fill(&rig->memory, CTRL + 64, 0, 64);
	give(rig, 2, CTRL + 64, 64);
	driver_wait_used(rig, 2, &id, &written);
	memory_read(&rig->memory, CTRL + 64, &message, sizeof message);
	assert_int_equal(message.port, port);
	assert_int_equal(message.event, event);
	assert_int_equal(message.value, value);
	if (rest) {
		assert_int_equal(written, 8 + strlen(rest));
		assert_string_equal(message.rest, rest);
	}
}

static void test_ports(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	uint16_t id;
	uint32_t written;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, MULTIPORT | modes[mode], 16);
		control(rig, 0, 0, 1);
		for (unsigned i = 0; i < PORTS; i++)
			expect(rig, i, 1, 1, "");
		control(rig, 0, 3, 1);
		expect(rig, 0, 4, 1, "");
		expect(rig, 0, 5, 1, NULL);
		expect(rig, 0, 6, 1, "");
		control(rig, 1, 3, 1);
		expect(rig, 1, 6, 1, "");
		expect(rig, 1, 7, 1, "org.ring3.one");
		/* A port that the guest has not opened holds its input back. */
		give(rig, 4, IN, 16);
		host_input(bench, 1, "wait");
		driver_settle(rig);
		assert_false(driver_used(&rig->queue[4], &id, &written));
		control(rig, 1, 6, 1);
		driver_wait_used(rig, 4, &id, &written);
		assert_int_equal(written, 4);
		bench->peer[1].count = bench->peer[2].count = 0;
		send_text(rig, 5, "one");
		send_text(rig, 7, "two");
		assert_memory_equal(bench->peer[1].bytes, "one", 3);
		assert_memory_equal(bench->peer[2].bytes, "two", 3);
		/* The host's end closes and opens while nobody listens: one message, with what holds now. */
		bench->rig.host.lock(rig);
		for (unsigned i = 0; i < 101; i++)
			virtio_console_set_open(&bench->console, 1, i & 1);
		virtio_console_resize(&bench->console, 132, 43);
		bench->rig.host.unlock(rig);
		expect(rig, 0, 5, 1, NULL);
		expect(rig, 1, 6, 0, "");
		bench->rig.host.lock(rig);
		virtio_console_set_open(&bench->console, 1, true);
		bench->rig.host.unlock(rig);
		expect(rig, 1, 6, 1, "");
		assert_int_equal(driver_config(rig, 0, 2), 132);
		/* Nonsense. */
		control(rig, PORTS, 3, 1);
		control(rig, ~0u, 6, 1);
		control(rig, 0, 99, 1);
		const struct driver_buffer stub = {CTRL, 7, false};
		driver_send(rig, 3, &stub, 1);
		driver_wait_used(rig, 3, &id, &written);
		give(rig, 2, CTRL, 64);
		driver_settle(rig);
		assert_false(driver_used(&rig->queue[2], &id, &written));
	}
	bench_free(bench);
}

static void test_state(void **context)
{
	struct bench *first = bench_make(), *second = bench_make();
	struct state *save = state_save_begin(), *load;
	uint16_t id;
	uint32_t written;
	size_t length;

	driver_start(&first->rig, MULTIPORT | modes[3], 16);
	control(&first->rig, 0, 0, 1);
	for (unsigned i = 0; i < PORTS; i++)
		expect(&first->rig, i, 1, 1, "");
	control(&first->rig, 2, 3, 1);
	control(&first->rig, 2, 6, 1);
	host_input(first, 2, "carried over");
	first->peer[2].room = 4;
	send_text(&first->rig, 7, "12345678");
	virtio_device_pause(&first->console.device);
	pci_root_state(&first->rig.root, save);
	virtio_pci_state(&first->rig.pci, save);
	const void *data = state_save_data(save, &length);
	load = state_load_begin(data, length);
	memcpy(second->rig.memory.low, first->rig.memory.low, DRIVER_RAM);
	virtio_device_pause(&second->console.device);
	pci_root_state(&second->rig.root, load);
	virtio_pci_state(&second->rig.pci, load);
	if (state_error(load))
		fail_msg("%s", state_error(load));
	state_free(load);
	state_free(save);
	memcpy(second->rig.queue, first->rig.queue, sizeof first->rig.queue);
	for (unsigned i = 0; i < 2 * PORTS + 2; i++)
		second->rig.queue[i].memory = &second->rig.memory;
	virtio_device_resume(&second->console.device);
	driver_wait_used(&second->rig, 7, &id, &written);
	driver_settle(&second->rig);
	assert_int_equal(second->peer[2].count, 4);
	assert_memory_equal(second->peer[2].bytes, "5678", 4);
	expect(&second->rig, 2, 6, 1, "");
	expect(&second->rig, 2, 7, 1, "two");
	give(&second->rig, 6, IN, 32);
	driver_wait_used(&second->rig, 6, &id, &written);
	assert_int_equal(written, 12);
	bench_free(first);
	bench_free(second);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_one_port),
	    cmocka_unit_test(test_ports),
	    cmocka_unit_test(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
