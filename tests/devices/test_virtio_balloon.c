/* Inflating and reporting give memory back to the host, measured; deflating, statistics, wild page numbers. */
#include "device_test.h"

#include <sys/stat.h>

#include "devices/virtio/virtio_balloon.h"
#include "virtio_driver.h"

#define LIST  0x40000ull
#define PAGES 0x800000ull /* 4 MiB of them */
#define COUNT 1024u

#define STATS     2ull
#define REPORTING 32ull

struct bench {
	struct driver_rig rig;
	struct virtio_balloon balloon;
};

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX};

static struct bench *bench_make(void)
{
	struct bench *bench = calloc(1, sizeof *bench);

	assert_non_null(bench);
	driver_rig_init(&bench->rig);
	assert_int_equal(virtio_balloon_init(&bench->balloon, &bench->rig.host, 0), 0);
	driver_rig_plug(&bench->rig, &bench->balloon.device);
	return bench;
}

static void bench_free(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	virtio_balloon_destroy(&bench->balloon);
	driver_rig_free(&bench->rig);
	free(bench);
}

/* What the host has given for the guest's memory. */
static uint64_t host_bytes(struct driver_rig *rig)
{
	struct stat stat;

	assert_int_equal(fstat(rig->memory.fd, &stat), 0);
	return (uint64_t)stat.st_blocks * 512;
}

static void run(struct driver_rig *rig, unsigned queue, uint64_t address, uint32_t length, bool write)
{
	const struct driver_buffer buffer = {address, length, write};
	uint16_t id;
	uint32_t written;

	assert_true(driver_send(rig, queue, &buffer, 1) >= 0);
	driver_wait_used(rig, queue, &id, &written);
}

static void test_inflate(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned mode = 0; mode < 4; mode++) {
		uint32_t pfn[COUNT];

		driver_start(rig, modes[mode], 16);
		memory_fill(&rig->memory, PAGES, 0xaa, COUNT << 12);
		memory_fill(&rig->memory, LIST, 0, sizeof pfn);
		/* Upwards, downwards, at random. */
		for (unsigned i = 0; i < COUNT; i++)
			pfn[i] = (PAGES >> 12) + (mode == 0 ? i : mode == 1 ? COUNT - 1 - i : i * 7 % COUNT);
		memory_write(&rig->memory, LIST, pfn, sizeof pfn);
		uint64_t before = host_bytes(rig);
		run(rig, 0, LIST, sizeof pfn, false);
		assert_int_equal(before - host_bytes(rig), COUNT << 12);
		uint64_t value = 1;
		memory_read(&rig->memory, PAGES + 0x1000 * (COUNT - 1), &value, 8);
		assert_int_equal(value, 0);
		run(rig, 1, LIST, sizeof pfn, false);
		/* Not RAM, the VGA hole, the last page numbers there are; half a number. */
		static const uint32_t wild[] = {0xffffffff,       0xfffffffe, 0xa0,      0xbf,
		                                DRIVER_RAM >> 12, 0xfee00,    0x12345678};
		memory_write(&rig->memory, LIST, wild, sizeof wild);
		run(rig, 0, LIST, sizeof wild - 1, false);
		/* More numbers than are taken in one go. */
		for (unsigned i = 0; i < 9; i++)
			memory_write(&rig->memory, LIST + i * sizeof pfn, pfn, sizeof pfn);
		run(rig, 0, LIST, 9 * sizeof pfn, false);
	}
	bench_free(bench);
}

static void test_reporting(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned stats = 0; stats < 2; stats++) {
		driver_start(rig, REPORTING | (stats ? STATS : 0), 16);
		memory_fill(&rig->memory, PAGES, 0xaa, COUNT << 12);
		uint64_t before = host_bytes(rig);
		run(rig, stats ? 3 : 2, PAGES, COUNT << 12, true);
		assert_int_equal(before - host_bytes(rig), COUNT << 12);
		/* Parts of pages stay. */
		memory_fill(&rig->memory, PAGES, 0xaa, 3 << 12);
		run(rig, stats ? 3 : 2, PAGES + 1, (3 << 12) - 2, true);
		uint8_t bytes[2];
		memory_read(&rig->memory, PAGES + 0xfff, bytes, 2);
		assert_int_equal(bytes[0], 0xaa);
		assert_int_equal(bytes[1], 0);
		memory_read(&rig->memory, PAGES + 0x1fff, bytes, 2);
		assert_int_equal(bytes[0], 0);
		assert_int_equal(bytes[1], 0xaa);
	}
	bench_free(bench);
}

static void test_target(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	driver_start(rig, 0, 16);
	virtio_balloon_set_target(&bench->balloon, 8 << 20);
	driver_settle(rig);
	assert_int_equal(rig->messages[0], 1);
	assert_int_equal(driver_config(rig, 0, 4), 2048);
	driver_set(rig, DRIVER_CONFIG + 4, 4, 1000);
	assert_int_equal(virtio_balloon_actual(&bench->balloon), 1000 << 12);
	driver_set(rig, DRIVER_CONFIG, 4, 0);
	assert_int_equal(driver_config(rig, 0, 4), 2048);
	driver_reset(rig);
	assert_int_equal(virtio_balloon_actual(&bench->balloon), 0);
	assert_int_equal(driver_config(rig, 0, 4), 2048);
	bench_free(bench);
}

static void put_stat(struct driver_rig *rig, unsigned at, uint16_t tag, uint64_t value)
{
	memory_write(&rig->memory, LIST + 10 * at, &tag, 2);
	memory_write(&rig->memory, LIST + 10 * at + 2, &value, 8);
}

static void test_stats(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffer = {LIST, 35, false};
	uint64_t stat[BALLOON_STATS];
	uint16_t id;
	uint32_t written;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, STATS | modes[mode], 16);
		assert_false(virtio_balloon_request_stats(&bench->balloon));
		assert_int_equal(virtio_balloon_stats(&bench->balloon, stat), 0);
		for (unsigned i = 1; i < 30; i++) {
			put_stat(rig, 0, BALLOON_MEMORY_FREE, 1000 + i);
			put_stat(rig, 1, BALLOON_MEMORY_TOTAL, 5000);
			put_stat(rig, 2, 0xffff, 7);
			assert_true(driver_send(rig, 2, &buffer, 1) >= 0);
			driver_settle(rig);
			assert_false(driver_used(&rig->queue[2], &id, &written));
			assert_int_equal(virtio_balloon_stats(&bench->balloon, stat), i);
			assert_int_equal(stat[BALLOON_MEMORY_FREE], 1000 + i);
			assert_int_equal(stat[BALLOON_MEMORY_TOTAL], 5000);
			assert_true(stat[BALLOON_CACHES] == ~0ull);
			assert_true(virtio_balloon_request_stats(&bench->balloon));
			driver_wait_used(rig, 2, &id, &written);
		}
	}
	bench_free(bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_inflate),
	    cmocka_unit_test(test_reporting),
	    cmocka_unit_test(test_target),
	    cmocka_unit_test(test_stats),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
