/* Many requests in flight, over io_uring and over threads: from the event loop, as a device does it. */
#include "disk_test.h"

#include <poll.h>
#include <pthread.h>

#include "backends/disk/disk_aio.h"
#include "host/event_loop.h"

#define SLOTS     48u
#define SLOT_SIZE (128 * KIB)
#define PATIENCE  30000

/* Each slot owns a part of the disk and has one request in flight at a time; so the model is exact. */
struct slot {
	struct disk_request request;
	struct load *load;
	struct iovec iov[5];
	uint8_t *buffer, *model;
	uint64_t base;
	unsigned remaining;
	bool busy;
};

struct load {
	struct disk *disk;
	struct event_loop *loop;
	struct slot slot[SLOTS];
	uint64_t generator;
	unsigned active, most, in_flight, completed;
	bool submitting;
	int expected; /* error, or 0 */
};

static void slot_start(struct slot *slot);

static void slot_done(struct disk_request *request, int error)
{
	struct slot *slot = request->owner;
	struct load *load = slot->load;
	uint64_t at = request->offset - slot->base;

	assert_false(load->submitting); /* never from inside disk_submit() */
	assert_int_equal(error, load->expected);
	assert_true(slot->busy);
	slot->busy = false;
	load->in_flight--;
	load->completed++;
	if (!error && request->operation == DISK_READ)
		assert_memory_equal(slot->buffer, slot->model + at, request->length);
	if (--slot->remaining)
		slot_start(slot);
	else if (--load->active == 0)
		event_loop_stop(load->loop);
}

static void slot_start(struct slot *slot)
{
	struct load *load = slot->load;
	struct disk_request *request = &slot->request;
	uint64_t offset, length, done = 0;
	unsigned count = (unsigned)random_below(&load->generator, 4) + 1;

	random_range(&load->generator, SLOT_SIZE, 64 * KIB, &offset, &length);
	*request = (struct disk_request){
	    .offset = slot->base + offset, .length = length, .iov = slot->iov, .done = slot_done, .owner = slot};
	for (unsigned i = 0; i < count; i++) {
		uint64_t part = i + 1 == count ? length - done : random_below(&load->generator, length - done + 1);

		slot->iov[i] = (struct iovec){slot->buffer + done, part};
		done += part;
	}
	request->iov_count = count;
	switch (random_below(&load->generator, 8)) {
	case 0:
		request->operation = DISK_FLUSH;
		break;
	case 1:
		request->operation = DISK_WRITE_ZEROES;
		request->may_unmap = length & 512;
		memset(slot->model + offset, 0, length);
		break;
	case 2:
	case 3:
	case 4:
		request->operation = DISK_READ;
		memset(slot->buffer, 0xee, length);
		break;
	default:
		request->operation = DISK_WRITE;
		random_fill(&load->generator, slot->buffer, length);
		memcpy(slot->model + offset, slot->buffer, length);
	}
	slot->busy = true;
	if (++load->in_flight > load->most)
		load->most = load->in_flight;
	load->submitting = true;
	disk_submit(load->disk, request);
	load->submitting = false;
}

static void run_load(const char *path, const char *format, bool threads_only, enum disk_cache cache)
{
	struct disk_options options = {.path = path, .format = format, .cache = cache};
	static struct load load;
	uint8_t *model;

	memset(&load, 0, sizeof(load));
	model_create(&model, SLOTS * SLOT_SIZE);
	load.generator = 99 + threads_only;
	load.loop = event_loop_create();
	load.disk = disk_open(&options);
	assert_true(load.loop && load.disk);
	assert_int_equal(disk_size(load.disk), SLOTS * SLOT_SIZE);
	load.disk->threads_only = threads_only;
	assert_int_equal(disk_attach(load.disk, load.loop), 0);
	print_message("%s, %s, cache %d\n", path, disk_aio_uses_io_uring(load.disk->aio) ? "io_uring" : "threads",
	              cache);
	load.active = SLOTS;
	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *slot = &load.slot[i];

		*slot = (struct slot){
		    .load = &load, .remaining = 60, .base = i * SLOT_SIZE, .model = model + i * SLOT_SIZE};
		assert_int_equal(posix_memalign((void **)&slot->buffer, 4096, SLOT_SIZE), 0);
	}
	for (unsigned i = 0; i < SLOTS; i++)
		slot_start(&load.slot[i]);
	event_loop_run(load.loop);
	assert_int_equal(load.completed, SLOTS * 60);
	assert_true(load.most > SLOTS / 2);
	for (unsigned i = 0; i < SLOTS; i++)
		free(load.slot[i].buffer);
	if (have_qemu_img())
		close_and_compare(load.disk, model, path, format);
	else
		assert_int_equal(disk_close(load.disk), 0);
	event_loop_destroy(load.loop);
	free(model);
}

static void raw_io_uring(void **state)
{
	run_command("truncate -s 0 a.raw; truncate -s 6M a.raw");
	run_load("a.raw", "raw", false, DISK_CACHE_WRITEBACK);
	run_command("truncate -s 0 a.raw; truncate -s 6M a.raw");
	run_load("a.raw", "raw", false, DISK_CACHE_NONE);
}

static void raw_threads(void **state)
{
	run_command("truncate -s 0 a.raw; truncate -s 6M a.raw");
	run_load("a.raw", "raw", true, DISK_CACHE_WRITEBACK);
	run_command("truncate -s 0 a.raw; truncate -s 6M a.raw");
	run_load("a.raw", "raw", true, DISK_CACHE_WRITETHROUGH);
}

static void qcow2_both(void **state)
{
	static const char *const options[] = {"cluster_size=65536", "cluster_size=4096", "cluster_size=512"};

	need_qemu_img();
	for (unsigned i = 0; i < 6; i++) {
		run_command("qemu-img create -f qcow2 -o %s a.qcow2 6M", options[i / 2]);
		run_load("a.qcow2", "qcow2", i % 2, DISK_CACHE_WRITEBACK);
	}
}

/* 4 KiB writes to shared new clusters above a backing image: each must keep what the others wrote. */
static void qcow2_backed(void **state)
{
	need_qemu_img();
	run_command("truncate -s 6M zero.raw && qemu-img create -f qcow2 -b zero.raw -F raw a.qcow2 6M");
	run_load("a.qcow2", "qcow2", true, DISK_CACHE_WRITEBACK);
	run_command("qemu-img create -f qcow2 -o cluster_size=2M -b zero.raw -F raw a.qcow2 6M");
	run_load("a.qcow2", "qcow2", true, DISK_CACHE_UNSAFE);
	run_command("qemu-img create -f qcow2 -o cluster_size=2M -b zero.raw -F raw a.qcow2 6M");
	run_load("a.qcow2", "qcow2", false, DISK_CACHE_NONE);
	run_command("qemu-img create -f qcow2 -o cluster_size=1M a.qcow2 6M && qemu-img snapshot -c s a.qcow2");
	run_load("a.qcow2", "qcow2", false, DISK_CACHE_WRITEBACK);
}

/* ---- refusals, and the end with requests in flight ---- */

struct single {
	struct event_loop *loop;
	unsigned done, wanted;
	int error;
};

static void single_done(struct disk_request *request, int error)
{
	struct single *single = request->owner;

	single->error = error;
	if (++single->done == single->wanted && single->loop)
		event_loop_stop(single->loop);
}

static int submit_and_wait(struct disk *disk, struct event_loop *loop, enum disk_operation operation, uint64_t offset,
                           uint64_t length, uint64_t given)
{
	static uint8_t buffer[8192];
	struct iovec iov = {buffer, given};
	struct single single = {.loop = loop, .wanted = 1};
	struct disk_request request = {.operation = operation,
	                               .offset = offset,
	                               .length = length,
	                               .iov = &iov,
	                               .iov_count = 1,
	                               .done = single_done,
	                               .owner = &single};

	disk_submit(disk, &request);
	assert_int_equal(single.done, 0);
	event_loop_run(loop);
	assert_int_equal(single.done, 1);
	return single.error;
}

static void refusals(void **state)
{
	run_command("truncate -s 0 a.raw; truncate -s 1M a.raw");
	for (unsigned i = 0; i < 2; i++) {
		struct disk_options options = {.path = "a.raw", .format = "raw", .readonly = i};
		struct event_loop *loop = event_loop_create();
		struct disk *disk = disk_open(&options);
		assert_int_equal(disk_attach(disk, loop), 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, MIB, 512, 512), -EINVAL);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, UINT64_MAX - 511, 512, 512), -EINVAL);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, 0, 512, 1024), -EINVAL);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, 0, 512, 512), 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, 0, 0, 0), 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_WRITE, 0, 512, 512), i ? -EROFS : 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_DISCARD, 0, 512, 0), i ? -EROFS : 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_WRITE_ZEROES, 0, 512, 0), i ? -EROFS : 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_DISCARD, 512, MIB, 0), -EINVAL);
		assert_int_equal(submit_and_wait(disk, loop, DISK_FLUSH, 0, 0, 0), 0);
		assert_int_equal(submit_and_wait(disk, loop, (enum disk_operation)77, 0, 0, 0), i ? -EROFS : -EINVAL);
		assert_int_equal(disk_close(disk), 0);
		event_loop_destroy(loop);
	}
}

static void close_with_requests_in_flight(void **state)
{
	static uint8_t buffer[300][4096];
	static struct disk_request request[300];
	static struct iovec iov[300];

	for (unsigned threads = 0; threads < 2; threads++) {
		struct event_loop *loop = event_loop_create();
		struct single single = {.wanted = 301};
		run_command("truncate -s 0 a.raw; truncate -s 2M a.raw");
		struct disk *disk = open_disk("a.raw", "raw");
		disk->threads_only = threads;
		assert_int_equal(disk_attach(disk, loop), 0);
		for (unsigned i = 0; i < 300; i++) {
			memset(buffer[i], (int)i, sizeof(buffer[i]));
			iov[i] = (struct iovec){buffer[i], sizeof(buffer[i])};
			request[i] = (struct disk_request){.operation = DISK_WRITE,
			                                   .offset = i * 4096,
			                                   .length = 4096,
			                                   .iov = &iov[i],
			                                   .iov_count = 1,
			                                   .done = single_done,
			                                   .owner = &single};
			disk_submit(disk, &request[i]);
		}
		assert_int_equal(disk_close(disk), 0);
		assert_int_equal(single.done, 300);
		event_loop_destroy(loop);
		disk = open_disk("a.raw", "raw");
		for (unsigned i = 0; i < 300; i++)
			model_compare(disk, (const uint8_t *)buffer, i * 4096, 4096);
		assert_int_equal(disk_close(disk), 0);
	}
}

static int failing_sync(struct host_file *file)
{
	errno = EIO;
	return -1;
}

static void failed_sync_stays_failed(void **state)
{
	struct host_file_ops ops = host_file_system_ops;

	ops.fdatasync = failing_sync;
	for (unsigned i = 0; i < 2; i++) {
		if (i && !have_qemu_img())
			break;
		if (i)
			run_command("qemu-img create -f qcow2 a.img 1M");
		else
			run_command("truncate -s 1M a.img");
		struct event_loop *loop = event_loop_create();
		struct disk *disk = open_disk("a.img", i ? "qcow2" : "raw");
		assert_int_equal(disk_attach(disk, loop), 0);
		disk->file.ops = &ops;
		assert_int_equal(submit_and_wait(disk, loop, DISK_WRITE, 0, 4096, 4096), 0);
		assert_int_equal(submit_and_wait(disk, loop, DISK_FLUSH, 0, 0, 0), -EIO);
		disk->file.ops = &host_file_system_ops;
		assert_int_equal(submit_and_wait(disk, loop, DISK_FLUSH, 0, 0, 0), -EIO);
		assert_int_equal(submit_and_wait(disk, loop, DISK_READ, 0, 4096, 4096), 0);
		assert_true(disk_close(disk) < 0);
		event_loop_destroy(loop);
		if (i)
			run_command("qemu-img check a.img || test $? = 3"); /* leaks only */
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(raw_io_uring),
	    cmocka_unit_test(raw_threads),
	    cmocka_unit_test(qcow2_both),
	    cmocka_unit_test(qcow2_backed),
	    cmocka_unit_test(refusals),
	    cmocka_unit_test(close_with_requests_in_flight),
	    cmocka_unit_test(failed_sync_stays_failed),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
