/* The block device on a real image file, driven as a guest would. */
#include "device_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk.h"
#include "devices/virtio/virtio_block.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define SECTORS 4096u
#define HEADER  0x40000
#define DATA    0x50000
#define STATUS  0x48000

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };

struct bench {
	struct driver_rig rig;
	struct virtio_block block;
	struct disk *disk;
	char path[64];
};

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_INDIRECT_DESC, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_RING_RESET};
#define ALL_FEATURES 0x7a44ull

static struct bench *bench_make(bool readonly, unsigned queues)
{
	struct bench *bench = calloc(1, sizeof *bench);
	struct virtio_block_options options = {
	    .serial = "serial-0123456789abcdef", .readonly = readonly, .queues = queues};

	assert_non_null(bench);
	strcpy(bench->path, "/tmp/test_virtio_block.XXXXXX");
	int fd = mkstemp(bench->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SECTORS * 512), 0);
	close(fd);
	driver_rig_init(&bench->rig);
	bench->disk = disk_open(&(struct disk_options){.path = bench->path, .format = "raw", .readonly = readonly});
	assert_non_null(bench->disk);
	assert_int_equal(disk_attach(bench->disk, bench->rig.host.loop), 0);
	options.disk = bench->disk;
	assert_int_equal(virtio_block_init(&bench->block, &bench->rig.host, 0, &options), 0);
	driver_rig_plug(&bench->rig, &bench->block.device);
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	virtio_block_destroy(&bench->block);
	driver_rig_free(&bench->rig);
	unlink(bench->path);
	free(bench);
}

/* The disk is closed while its loop is there still. */
static void bench_close(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	io_thread_pause(bench->rig.thread);
	assert_int_equal(disk_close(bench->disk), 0);
	io_thread_resume(bench->rig.thread);
	bench_free(bench);
}

static void header(struct driver_rig *rig, uint64_t at, uint32_t type, uint64_t sector)
{
	const struct {
		uint32_t type, reserved;
		uint64_t sector;
	} bytes = {type, 0, sector};

	memory_write(&rig->memory, at, &bytes, 16);
}

/* One request to its end; its status. */
static uint8_t request(struct driver_rig *rig, unsigned queue, uint32_t type, uint64_t sector, uint32_t length,
                       uint32_t *written)
{
	bool in = type == IN || type == GET_ID;
	const struct driver_buffer buffers[] = {{HEADER, 16, false}, {DATA, length, in}, {STATUS, 1, true}};
	const struct driver_buffer bare[] = {{HEADER, 16, false}, {STATUS, 1, true}};
	uint8_t status = 0xee;
	uint16_t id;

	header(rig, HEADER, type, sector);
	memory_write(&rig->memory, STATUS, &status, 1);
	assert_true(driver_send(rig, queue, length ? buffers : bare, length ? 3 : 2) >= 0);
	driver_wait_used(rig, queue, &id, written);
	memory_read(&rig->memory, STATUS, &status, 1);
	return status;
}

static void check_file(struct bench *bench, uint64_t offset, const void *expected, size_t length)
{
	uint8_t *bytes = malloc(length);
	int fd = open(bench->path, O_RDONLY);

	assert_int_equal(pread(fd, bytes, length, offset), length);
	assert_memory_equal(bytes, expected, length);
	close(fd);
	free(bytes);
}

static void test_requests(void **context)
{
	struct bench *bench = bench_make(false, 2);
	struct driver_rig *rig = &bench->rig;
	uint8_t pattern[8192], back[8192];
	uint32_t written;

	for (unsigned i = 0; i < sizeof pattern; i++)
		pattern[i] = i * 31 + (i >> 8);
	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, ALL_FEATURES | modes[mode], 64);
		assert_int_equal(driver_config(rig, 0, 8), SECTORS);
		assert_int_equal(driver_config(rig, 34, 2), 2);
		memory_write(&rig->memory, DATA, pattern, sizeof pattern);
		assert_int_equal(request(rig, 0, OUT, 16 + mode, 8192, &written), 0);
		assert_int_equal(written, 1);
		check_file(bench, (16 + mode) * 512, pattern, 8192);
		memory_fill(&rig->memory, DATA, 0, 8192);
		assert_int_equal(request(rig, 1, IN, 16 + mode, 8192, &written), 0);
		assert_int_equal(written, 8193);
		memory_read(&rig->memory, DATA, back, 8192);
		assert_memory_equal(back, pattern, 8192);
		assert_int_equal(request(rig, 0, FLUSH, 0, 0, &written), 0);
		assert_int_equal(request(rig, 0, GET_ID, 0, 20, &written), 0);
		assert_int_equal(written, 21);
		memory_read(&rig->memory, DATA, back, 20);
		assert_memory_equal(back, "serial-0123456789abcdef", 20);
		assert_int_equal(request(rig, 0, GET_ID, 0, 5, &written), 0);
		assert_int_equal(written, 6);
		/* What cannot be. */
		assert_int_equal(request(rig, 0, IN, SECTORS, 512, &written), 1);
		assert_int_equal(written, 0);
		assert_int_equal(request(rig, 0, OUT, SECTORS - 1, 1024, &written), 1);
		assert_int_equal(request(rig, 0, OUT, ~0ull, 512, &written), 1);
		assert_int_equal(request(rig, 0, IN, 0x0080000000000000, 512, &written), 1);
		assert_int_equal(request(rig, 0, IN, 0, 100, &written), 1);
		assert_int_equal(request(rig, 0, 99, 0, 512, &written), 2);
		assert_int_equal(request(rig, 0, IN, SECTORS, 0, &written), 0);
		assert_int_equal(request(rig, 0, IN, SECTORS - 1, 512, &written), 0);
	}
	bench_close(bench);
}

static uint8_t ranges(struct driver_rig *rig, uint32_t type, unsigned count, uint64_t sector, uint32_t length,
                      uint32_t flags)
{
	uint32_t written;

	for (unsigned i = 0; i < count; i++) {
		const struct {
			uint64_t sector;
			uint32_t count, flags;
		} range = {sector + 2ull * i * length, length, flags};

		memory_write(&rig->memory, DATA + 16 * i, &range, 16);
	}
	return request(rig, 0, type, 0, 16 * count, &written);
}

static void test_ranges(void **context)
{
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;
	uint8_t ones[4096], zero[4096] = {0};
	struct stat before, after;
	uint32_t written;

	memset(ones, 0xff, sizeof ones);
	driver_start(rig, ALL_FEATURES, 64);
	for (unsigned sector = 0; sector < 256; sector += 64) {
		memory_fill(&rig->memory, DATA, 0xff, 64 * 512);
		assert_int_equal(request(rig, 0, OUT, sector, 64 * 512, &written), 0);
	}
	assert_int_equal(ranges(rig, WRITE_ZEROES, 3, 8, 8, 0), 0);
	check_file(bench, 0, ones, 4096);
	check_file(bench, 8 * 512, zero, 4096);
	check_file(bench, 16 * 512, ones, 4096);
	check_file(bench, 24 * 512, zero, 4096);
	check_file(bench, 40 * 512, zero, 4096);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, 48, 1, 1), 0);
	check_file(bench, 48 * 512, zero, 512);
	check_file(bench, 49 * 512, ones, 512);
	stat(bench->path, &before);
	assert_int_equal(ranges(rig, DISCARD, 1, 128, 128, 0), 0);
	stat(bench->path, &after);
	assert_true(after.st_blocks < before.st_blocks);
	/* Bad ones: nothing is done. */
	assert_int_equal(ranges(rig, DISCARD, 1, 0, 8, 1), 2);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, 0, 8, 2), 2);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 17, 0, 1, 0), 1);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, 0, SECTORS + 1, 0), 1);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, ~0ull, 2, 0), 1);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, 0, 0xffffffff, 0), 1);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 2, SECTORS - 8, 8, 0), 1);
	assert_int_equal(request(rig, 0, WRITE_ZEROES, 0, 15, &written), 1);
	assert_int_equal(request(rig, 0, DISCARD, 0, 0, &written), 1);
	check_file(bench, 0, ones, 4096);
	/* Not negotiated. */
	driver_start(rig, 0, 64);
	assert_int_equal(ranges(rig, DISCARD, 1, 0, 8, 0), 2);
	check_file(bench, 0, ones, 4096);
	bench_close(bench);
}

static void test_readonly(void **context)
{
	struct bench *bench = bench_make(true, 1);
	struct driver_rig *rig = &bench->rig;
	uint32_t written;

	driver_reset(rig);
	assert_false(driver_negotiate(rig, 1ull << 13));
	driver_start(rig, 1ull << 5, 64);
	assert_int_equal(request(rig, 0, OUT, 0, 512, &written), 1);
	assert_int_equal(request(rig, 0, IN, 0, 512, &written), 0);
	assert_int_equal(request(rig, 0, FLUSH, 0, 0, &written), 0);
	assert_int_equal(ranges(rig, WRITE_ZEROES, 1, 0, 8, 0), 2);
	bench_close(bench);
}

/* Many in flight, on all queues; then resets while they are. */
static void test_flood(void **context)
{
	struct random random = {test_seed("virtio-blk flood")};
	struct bench *bench = bench_make(false, 4);
	struct driver_rig *rig = &bench->rig;
	uint16_t id;
	uint32_t written;

	for (unsigned round = 0; round < 40; round++) {
		driver_start(rig, ALL_FEATURES | modes[round % 4], 64);
		unsigned sent[4] = {0};
		for (unsigned i = 0; i < 200; i++) {
			unsigned queue = random_below(&random, 4);
			uint64_t place = 0x400000 + 0x1000 * i;
			bool in = random_below(&random, 2);
			const struct driver_buffer buffers[] = {
			    {place, 16, false}, {place + 0x200, 2048, in}, {place + 16, 1, true}};

			header(rig, place, in ? IN : OUT, random_below(&random, SECTORS - 4));
			sent[queue] += driver_send(rig, queue, buffers, 3) >= 0;
		}
		if (round & 1) {
			driver_reset(rig);
			continue;
		}
		for (unsigned queue = 0; queue < 4; queue++)
			for (; sent[queue]; sent[queue]--)
				driver_wait_used(rig, queue, &id, &written);
	}
	bench_close(bench);
}

/* Requests without header or status, data in the wrong direction. */
static void test_bad_requests(void **context)
{
	static const struct driver_buffer bad[][3] = {
	    {{HEADER, 15, false}, {STATUS, 1, true}},
	    {{HEADER, 16, false}},
	    {{STATUS, 1, true}},
	    {{HEADER, 512, true}},
	    {{HEADER, 16, false}, {DATA, 512, false}},
	};
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;
	uint32_t written;

	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		driver_start(rig, ALL_FEATURES, 8);
		header(rig, HEADER, OUT, 0);
		driver_send(rig, 0, bad[i], bad[i][1].length ? 2 : 1);
		driver_wait_status(rig, VIRTIO_STATUS_NEEDS_RESET, VIRTIO_STATUS_NEEDS_RESET);
	}
	/* A read with readable data and a write with writable data: what does not belong is not touched. */
	driver_start(rig, ALL_FEATURES, 8);
	const struct driver_buffer odd[] = {
	    {HEADER, 16, false}, {DATA, 512, false}, {DATA + 512, 512, true}, {STATUS, 1, true}};
	uint16_t id;
	header(rig, HEADER, IN, 0);
	driver_send(rig, 0, odd, 4);
	driver_wait_used(rig, 0, &id, &written);
	assert_int_equal(written, 513);
	header(rig, HEADER, OUT, 0);
	driver_send(rig, 0, odd, 4);
	driver_wait_used(rig, 0, &id, &written);
	assert_int_equal(written, 1);
	bench_close(bench);
}

/* Header split over descriptors, status in the last byte of the data's descriptor. */
static void test_layouts(void **context)
{
	const struct driver_buffer out[] = {{HEADER, 3, false}, {HEADER + 3, 13 + 512, false}, {STATUS, 1, true}};
	const struct driver_buffer in[] = {{HEADER, 16, false}, {DATA, 100, true}, {DATA + 100, 413, true}};
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;
	uint8_t bytes[513], status;
	uint16_t id;
	uint32_t written;

	driver_start(rig, ALL_FEATURES, 8);
	header(rig, HEADER, OUT, 7);
	memory_fill(&rig->memory, HEADER + 16, 0x5a, 512);
	driver_send(rig, 0, out, 3);
	driver_wait_used(rig, 0, &id, &written);
	memory_read(&rig->memory, STATUS, &status, 1);
	assert_int_equal(status, 0);
	header(rig, HEADER, IN, 7);
	memory_fill(&rig->memory, DATA, 0xff, 513);
	driver_send(rig, 0, in, 3);
	driver_wait_used(rig, 0, &id, &written);
	assert_int_equal(written, 513);
	memory_read(&rig->memory, DATA, bytes, 513);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(bytes[i], 0x5a);
	assert_int_equal(bytes[512], 0);
	bench_close(bench);
}

static void test_write_cache(void **context)
{
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;
	uint32_t written;

	driver_start(rig, ALL_FEATURES, 8);
	assert_int_equal(driver_config(rig, 32, 1), 1);
	driver_set(rig, DRIVER_CONFIG + 32, 1, 0);
	assert_int_equal(driver_config(rig, 32, 1), 0);
	assert_int_equal(request(rig, 0, OUT, 0, 512, &written), 0);
	/* Nothing else can be written; a reset puts it back. */
	driver_set(rig, DRIVER_CONFIG, 8, 0);
	assert_int_equal(driver_config(rig, 0, 8), SECTORS);
	driver_reset(rig);
	assert_int_equal(driver_config(rig, 32, 1), 1);
	driver_start(rig, 0, 8);
	driver_set(rig, DRIVER_CONFIG + 32, 1, 0);
	assert_int_equal(driver_config(rig, 32, 1), 1);
	assert_int_equal(request(rig, 0, OUT, 0, 512, &written), 0);
	bench_close(bench);
}

static void test_resize(void **context)
{
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;

	driver_start(rig, ALL_FEATURES, 8);
	virtio_block_resized(&bench->block);
	driver_settle(rig);
	assert_int_equal(rig->messages[0], 1);
	assert_int_equal(driver_config(rig, 0, 8), SECTORS);
	bench_close(bench);
}

static void test_state(void **context)
{
	struct bench *first = bench_make(false, 2), *second = bench_make(false, 2);
	struct state *save = state_save_begin(), *load;
	const void *data;
	size_t length;
	uint32_t written;

	driver_start(&first->rig, ALL_FEATURES | modes[3], 16);
	driver_set(&first->rig, DRIVER_CONFIG + 32, 1, 0);
	for (unsigned i = 0; i < 20; i++)
		request(&first->rig, i & 1, OUT, i, 512, &written);
	virtio_device_pause(&first->block.device);
	pci_root_state(&first->rig.root, save);
	virtio_pci_state(&first->rig.pci, save);
	data = state_save_data(save, &length);
	load = state_load_begin(data, length);
	memcpy(second->rig.memory.low, first->rig.memory.low, DRIVER_RAM);
	virtio_device_pause(&second->block.device);
	pci_root_state(&second->rig.root, load);
	virtio_pci_state(&second->rig.pci, load);
	if (state_error(load))
		fail_msg("%s", state_error(load));
	state_free(load);
	state_free(save);
	memcpy(second->rig.queue, first->rig.queue, sizeof first->rig.queue);
	for (unsigned i = 0; i < 2; i++)
		second->rig.queue[i].memory = &second->rig.memory;
	virtio_device_resume(&second->block.device);
	assert_int_equal(driver_config(&second->rig, 32, 1), 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(request(&second->rig, i & 1, IN, i, 512, &written), 0);
	bench_close(first);
	bench_close(second);
}

/* ---- another processor rewrites headers, descriptors and rings between the device's looks at them ---- */

struct racer {
	struct driver_rig *rig;
	_Atomic bool stop;
	_Atomic unsigned writes;
	unsigned seed;
};

static void *race(void *argument)
{
	struct racer *racer = argument;
	uint8_t *ram = racer->rig->memory.low;

	while (!atomic_load(&racer->stop)) {
		unsigned what = (unsigned)rand_r(&racer->seed), value = (unsigned)rand_r(&racer->seed);
		uint64_t at = HEADER + what / 8 % 16;

		if (what % 8 > 3) /* the first queue's descriptors and areas */
			at = DRIVER_HEAP + what / 8 % (16 * 64);
		if (what % 8 == 7)
			at = DRIVER_HEAP + what / 8 % 0x4000;
		ram[at] = value & 1 ? (uint8_t)(value >> 8) : (uint8_t)(value >> 8 & 15);
		atomic_fetch_add(&racer->writes, 1);
	}
	return NULL;
}

static void test_race(void **state)
{
	struct bench *bench = bench_make(false, 1);
	struct driver_rig *rig = &bench->rig;
	uint32_t written;

	for (unsigned mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
		struct racer racer = {.rig = rig, .seed = mode + 1};
		unsigned before = 0;
		pthread_t thread;

		driver_start(rig, ALL_FEATURES | modes[mode], 64);
		assert_int_equal(pthread_create(&thread, NULL, race, &racer), 0);
		for (unsigned i = 0; i < 300; i++) {
			const struct driver_buffer buffers[] = {
			    {HEADER, 16, false}, {DATA, 512u << i % 4, i & 1}, {STATUS, 1, true}};

			/* The test's own ring is spoilt, too: a new one for each round, that is not looked at. */
			header(rig, HEADER, (uint32_t[]){IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES}[i % 6], i);
			if (rig->queue[0].free_count >= 3)
				driver_add(&rig->queue[0], buffers, 3, 0);
			driver_set(rig, DRIVER_NOTIFY, 2, 0);
			if (i % 20 == 19) {
				while (racer.writes == before)
					sched_yield();
				before = racer.writes;
				driver_start(rig, ALL_FEATURES | modes[mode], 64);
			}
		}
		atomic_store(&racer.stop, true);
		pthread_join(thread, NULL);
		driver_start(rig, ALL_FEATURES | modes[mode], 64);
		assert_int_equal(request(rig, 0, IN, 0, 512, &written), 0);
		assert_int_equal(written, 513);
	}
	bench_close(bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_requests), cmocka_unit_test(test_ranges), cmocka_unit_test(test_readonly),
	    cmocka_unit_test(test_flood),    cmocka_unit_test(test_race),   cmocka_unit_test(test_bad_requests),
	    cmocka_unit_test(test_layouts),  cmocka_unit_test(test_resize), cmocka_unit_test(test_write_cache),
	    cmocka_unit_test(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
