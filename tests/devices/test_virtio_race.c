/*
 * Another processor rewrites rings, descriptors and data while network card, console, balloon and entropy source read them (hostile-guest
 * class 7; the disk has a test of its own in test_virtio_block.c): what the peers on the host get is always well formed, nothing hangs, and
 * after a reset each device works. Most writes are small changes, so that the device goes on; a sanitizer sees what goes wrong inside.
 */
#include "device_test.h"

#include <pthread.h>
#include <sched.h>

#include "backends/net/net.h"
#include "devices/virtio/virtio_balloon.h"
#include "devices/virtio/virtio_console.h"
#include "devices/virtio/virtio_net.h"
#include "devices/virtio/virtio_rng.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define DATA       0x40000ull /* below the rings: headers, lists, messages */
#define DATA_BYTES 0x400u
#define BUFFERS    0x50000ull
#define PAGES      0x800000ull
#define SIZE       64
#define ROUNDS     120
#define RESTART    8 /* rounds between resets: rings spoilt are soon of no use to the device */
#define PORTS      2

struct board;

struct kind {
	const char *name;
	struct virtio_device *(*make)(struct board *board);
	void (*unmake)(struct board *board);
	void (*feed)(struct board *board, unsigned round); /* makes buffers available, and does what the host does */
	void (*use)(struct board *board);                  /* once, without a race: it works */
};

struct board {
	struct driver_rig rig;
	const struct kind *kind;
	struct random random;
	_Atomic bool malformed;
	_Atomic unsigned frames, bytes;
	struct virtio_net card;
	struct net *ends[2];
	struct virtio_console console;
	struct virtio_balloon balloon;
	struct virtio_rng rng;
};

struct racer {
	struct board *board;
	unsigned queues;
	struct random random;
	_Atomic bool stop;
	_Atomic unsigned writes;
	pthread_t thread;
};

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_INDIRECT_DESC, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_INDIRECT_DESC};

/* ---- the other processor ---- */

static void *race(void *argument)
{
	/* Bytes of a descriptor: its address within RAM, its length, flags, next or id; rarely others. */
	static const uint8_t places[] = {0, 1, 2, 8, 8, 9, 9, 10, 12, 12, 13, 14, 14, 15, 3, 11};
	struct racer *racer = argument;
	struct random *random = &racer->random;
	uint8_t *ram = racer->board->rig.memory.low;

	while (!atomic_load(&racer->stop)) {
		uint64_t areas = DRIVER_HEAP + driver_queue_bytes(SIZE) * random_below(random, racer->queues);
		unsigned what = random_below(random, 8);
		uint8_t value = random_below(random, random_below(random, 2) ? 256 : 8);
		volatile uint8_t *at = ram + DATA + random_below(random, DATA_BYTES);

		if (what < 4)
			at =
			    ram + areas + 16 * random_below(random, SIZE) + places[random_below(random, sizeof places)];
		else if (what == 4)
			at = ram + areas + 0x1000 * (1 + random_below(random, 2)) + random_below(random, 6 + 2 * SIZE);
		*at = what == 7 ? (uint8_t)(*at + value % 4) : value;
		atomic_fetch_add(&racer->writes, 1);
	}
	return NULL;
}

static void wait_for_writes(struct racer *racer)
{
	unsigned before = racer->writes;

	while (racer->writes - before < 16)
		sched_yield();
}

/* ---- the devices ---- */

/* What there is room for; nobody takes it out of the ring again. */
static void add(struct board *board, unsigned queue, const struct driver_buffer *buffers, unsigned count)
{
	struct driver_rig *rig = &board->rig;

	if (rig->queue[queue].free_count >= count)
		driver_add(&rig->queue[queue], buffers, count, 0);
	driver_set(rig, DRIVER_NOTIFY + 4ull * queue, 2, queue);
}

static bool far_receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct board *board = owner;
	unsigned sum = 0;

	if (length < NET_FRAME_MIN || length > NET_FRAME_MAX || header->gso_type != VIRTIO_NET_HDR_GSO_NONE)
		board->malformed = true;
	for (size_t i = 0; i < length; i++)
		sum += frame[i];
	board->bytes += sum;
	board->frames++;
	return true;
}

static void far_writable(void *owner) {}

static struct virtio_device *net_make(struct board *board)
{
	const struct net_client far = {.receive = far_receive, .writable = far_writable, .owner = board};

	assert_true(net_pair(board->ends));
	io_thread_pause(board->rig.thread);
	assert_int_equal(virtio_net_init(&board->card, &board->rig.host, 0, board->ends[0]), 0);
	assert_int_equal(net_attach(board->ends[1], board->rig.host.loop, &far), 0);
	io_thread_resume(board->rig.thread);
	return &board->card.device;
}

static void net_unmake(struct board *board)
{
	io_thread_pause(board->rig.thread);
	virtio_net_destroy(&board->card);
	net_close(board->ends[0]);
	net_close(board->ends[1]);
	io_thread_resume(board->rig.thread);
}

/* Header and a TCP packet over IPv4, which may have to be cut into segments. */
static void put_packet(struct board *board, uint64_t at, unsigned length, bool cut)
{
	const struct virtio_net_hdr header = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	                                      .gso_type = cut ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE,
	                                      .hdr_len = 54,
	                                      .gso_size = 500,
	                                      .csum_start = 34,
	                                      .csum_offset = 16};
	uint8_t bytes[66] = {0};
	static const uint8_t start[] = {0x52, 0x54, 0, 1, 2, 3, 0x52, 0x54, 0, 4, 5, 6, 8, 0, 0x45};

	memcpy(bytes, &header, sizeof header);
	memcpy(bytes + 12, start, sizeof start);
	bytes[12 + 16] = (uint8_t)((length - 14) >> 8);
	bytes[12 + 17] = (uint8_t)(length - 14);
	bytes[12 + 22] = 64;
	bytes[12 + 23] = 6;
	bytes[12 + 46] = 0x50;
	memory_write(&board->rig.memory, at, bytes, sizeof bytes);
}

static void net_feed(struct board *board, unsigned round)
{
	const struct driver_buffer in[] = {{BUFFERS, 64, true}, {BUFFERS + 64, 1800, true}};
	const struct driver_buffer out[] = {{DATA, 12, false}, {DATA + 12, 54, false}, {BUFFERS + 0x8000, 4000, false}};
	const struct driver_buffer command[] = {
	    {DATA + 0x200, 2, false}, {DATA + 0x210, 32, false}, {DATA + 0x300, 1, true}};
	static const uint8_t commands[][2] = {{0, 0}, {1, 0}, {1, 1}, {2, 0}, {2, 1}, {5, 0}};
	uint8_t frame[1514] = {0x52, 0x54};
	const struct iovec iov = {frame, 60 + 9 * round};

	put_packet(board, DATA, 54 + 4000, round & 1);
	memory_write(&board->rig.memory, DATA + 0x200, commands[round % 6], 2);
	add(board, 0, in, 2);
	add(board, 1, out, 3);
	add(board, 2, command, 3);
	if (round % 5)
		return;
	io_thread_pause(board->rig.thread);
	net_send(board->ends[1], NULL, &iov, 1);
	io_thread_resume(board->rig.thread);
}

static void net_use(struct board *board)
{
	const struct driver_buffer out[] = {{DATA, 12, false}, {DATA + 12, 60, false}};
	unsigned before = board->frames;
	uint32_t written;
	uint16_t id;

	memory_fill(&board->rig.memory, DATA, 0, 72);
	assert_true(driver_send(&board->rig, 1, out, 2) >= 0);
	driver_wait_used(&board->rig, 1, &id, &written);
	driver_settle(&board->rig);
	assert_int_equal(board->frames, before + 1);
}

static size_t peer_write(void *owner, const uint8_t *data, size_t length)
{
	struct board *board = owner;
	unsigned sum = 0;

	for (size_t i = 0; i < length; i++)
		sum += data[i];
	board->bytes += sum & 1 ? 1 : 2;
	board->frames++;
	return board->frames % 7 ? length : length / 2;
}

static struct virtio_device *console_make(struct board *board)
{
	assert_int_equal(virtio_console_init(&board->console, &board->rig.host, 0, PORTS), 0);
	for (unsigned i = 0; i < PORTS; i++)
		virtio_console_connect(&board->console, i, i ? "org.ring3.race" : NULL,
		                       (struct virtio_console_peer){.write = peer_write, .owner = board});
	return &board->console.device;
}

static void console_unmake(struct board *board)
{
	virtio_console_destroy(&board->console);
}

static void console_feed(struct board *board, unsigned round)
{
	const struct driver_buffer in = {BUFFERS, 200, true}, out = {BUFFERS + 0x8000, 3000, false};
	const struct driver_buffer message = {DATA, 8, false}, answer = {DATA + 0x100, 64, true};
	const struct {
		uint32_t port;
		uint16_t event, value;
	} control = {round / 8 % PORTS, (uint16_t[]){0, 3, 6}[round % 3], 1};
	struct virtio_console_port *port = &board->console.port[round % PORTS];
	uint8_t bytes[64] = {0};

	memory_write(&board->rig.memory, DATA, &control, sizeof control);
	add(board, 3, &message, 1);
	add(board, 2, &answer, 1);
	add(board, round & 1 ? 4 : 0, &in, 1);
	add(board, round & 1 ? 5 : 1, &out, 1);
	board->rig.host.lock(&board->rig);
	if (virtio_console_can_receive(port) >= sizeof bytes)
		virtio_console_receive(port, bytes, sizeof bytes);
	virtio_console_writable(port);
	if (round % 9 == 8)
		virtio_console_set_open(&board->console, round % PORTS, round & 2);
	board->rig.host.unlock(&board->rig);
}

static void console_use(struct board *board)
{
	const struct driver_buffer out = {BUFFERS, 3, false};
	uint32_t written;
	uint16_t id;

	assert_true(driver_send(&board->rig, 1, &out, 1) >= 0);
	for (unsigned i = 0; i < 2; i++) { /* the peer may take it in two parts */
		board->rig.host.lock(&board->rig);
		virtio_console_writable(&board->console.port[0]);
		board->rig.host.unlock(&board->rig);
	}
	driver_wait_used(&board->rig, 1, &id, &written);
}

static struct virtio_device *balloon_make(struct board *board)
{
	assert_int_equal(virtio_balloon_init(&board->balloon, &board->rig.host, 0), 0);
	return &board->balloon.device;
}

static void balloon_unmake(struct board *board)
{
	virtio_balloon_destroy(&board->balloon);
}

static void balloon_feed(struct board *board, unsigned round)
{
	uint32_t pages[64];
	const struct driver_buffer list = {DATA, sizeof pages, false}, stats = {DATA + 0x200, 100, false};
	const struct driver_buffer report[] = {{PAGES, 0x8000, true}, {PAGES + 0x20000, 0x3000, true}};

	for (unsigned i = 0; i < 64; i++)
		pages[i] = (uint32_t)(PAGES >> 12) + random_below(&board->random, 256);
	memory_write(&board->rig.memory, DATA, pages, sizeof pages);
	memory_fill(&board->rig.memory, PAGES, 0xaa, 0x10000);
	add(board, round & 1, &list, 1);
	add(board, 2, &stats, 1);
	add(board, 3, report, 2);
	virtio_balloon_set_target(&board->balloon, (uint64_t)round << 16);
	virtio_balloon_request_stats(&board->balloon);
}

static void balloon_use(struct board *board)
{
	const struct driver_buffer list = {DATA, 4, false};
	const uint32_t page = PAGES >> 12;
	uint64_t before = board->balloon.discarded;
	uint32_t written;
	uint16_t id;

	memory_write(&board->rig.memory, DATA, &page, 4);
	assert_true(driver_send(&board->rig, 0, &list, 1) >= 0);
	driver_wait_used(&board->rig, 0, &id, &written);
	driver_settle(&board->rig);
	assert_int_equal(board->balloon.discarded, before + 4096);
}

static struct virtio_device *rng_make(struct board *board)
{
	assert_int_equal(virtio_rng_init(&board->rng, &board->rig.host, 0), 0);
	return &board->rng.device;
}

static void rng_unmake(struct board *board)
{
	virtio_rng_destroy(&board->rng);
}

static void rng_feed(struct board *board, unsigned round)
{
	const struct driver_buffer in[] = {{BUFFERS, 100, true}, {BUFFERS + 0x1000, 900, true}};

	add(board, 0, in, 2);
}

static void rng_use(struct board *board)
{
	const struct driver_buffer in = {BUFFERS, 100, true};
	uint32_t written;
	uint16_t id;

	assert_true(driver_send(&board->rig, 0, &in, 1) >= 0);
	driver_wait_used(&board->rig, 0, &id, &written);
	assert_int_equal(written, 100);
}

/* ---- the race ---- */

static void run(const struct kind *kind)
{
	struct board *board = calloc(1, sizeof *board);
	uint64_t seed = test_seed(kind->name);
	struct driver_rig *rig;
	unsigned rounds = test_rounds(ROUNDS), broken = 0;

	assert_non_null(board);
	rig = &board->rig;
	board->kind = kind;
	driver_rig_init(rig);
	driver_rig_plug(rig, kind->make(board));
	for (unsigned mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
		uint64_t features = (rig->pci.device->offered & 0xffffff) | modes[mode];
		struct racer racer = {.board = board, .random = {seed + mode}};

		board->random.state = seed + 100 + mode;
		driver_start(rig, features, SIZE);
		racer.queues = (unsigned)driver_get(rig, COMMON(NUM_QUEUES), 2);
		assert_int_equal(pthread_create(&racer.thread, NULL, race, &racer), 0);
		for (unsigned round = 0; round < rounds; round++) {
			kind->feed(board, round);
			if (round % 5 == 4) {
				wait_for_writes(&racer);
				driver_settle(rig);
			}
			if (round % RESTART == RESTART - 1) {
				broken += (driver_get(rig, COMMON(STATUS), 1) & VIRTIO_STATUS_NEEDS_RESET) != 0;
				driver_start(rig, features, SIZE);
			}
		}
		atomic_store(&racer.stop, true);
		pthread_join(racer.thread, NULL);
		assert_false(board->malformed);
		driver_start(rig, features, SIZE);
		kind->use(board);
	}
	printf("%s: %u of %u times the device asked for a reset; %u frames or writes on the host\n", kind->name, broken,
	       4 * (rounds / RESTART), board->frames);
	driver_rig_stop(rig);
	kind->unmake(board);
	driver_rig_free(rig);
	free(board);
}

static void test_net(void **context)
{
	run(&(const struct kind){"net", net_make, net_unmake, net_feed, net_use});
}

static void test_console(void **context)
{
	run(&(const struct kind){"console", console_make, console_unmake, console_feed, console_use});
}

static void test_balloon(void **context)
{
	run(&(const struct kind){"balloon", balloon_make, balloon_unmake, balloon_feed, balloon_use});
}

static void test_rng(void **context)
{
	run(&(const struct kind){"rng", rng_make, rng_unmake, rng_feed, rng_use});
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_net),
	    cmocka_unit_test(test_console),
	    cmocka_unit_test(test_balloon),
	    cmocka_unit_test(test_rng),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
