/* qcow2 images: random operations against a model and qemu-img, in every cluster size, refcount width and version. */
#include "disk_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define WRITERS 4

static void random_run(const char *path, uint64_t seed, unsigned operations, uint64_t longest, uint8_t *model)
{
	struct disk *disk = open_disk(path, "qcow2");
	uint64_t generator = seed * 0x9e3779b97f4a7c15ull + 1;

	print_message("%s: seed %llu\n", path, (unsigned long long)seed);
	model_compare(disk, model, 0, disk_size(disk));
	for (unsigned i = 0; i < operations; i++) {
		random_operation(&generator, disk, model, longest);
		if (i % 64 == 63) {
			assert_int_equal(disk_close(disk), 0);
			disk = open_disk(path, NULL);
		}
	}
	model_compare(disk, model, 0, disk_size(disk));
	close_and_compare(disk, model, path, "qcow2");
}

static void cluster_sizes(void **state)
{
	need_qemu_img();
	for (unsigned bits = 9; bits <= 21; bits++) {
		uint64_t size = 4 * MIB + 3 * 512;
		uint8_t *model;

		model_create(&model, size);
		run_command("qemu-img create -f qcow2 -o cluster_size=%u a.qcow2 %llu", 1u << bits,
		            (unsigned long long)size);
		random_run("a.qcow2", bits, 256, 200 * KIB, model);
		free(model);
	}
}

static void refcount_widths(void **state)
{
	need_qemu_img();
	for (unsigned width = 1; width <= 64; width *= 2) {
		uint64_t size = 2 * MIB;
		uint8_t *model;

		model_create(&model, size);
		run_command("qemu-img create -f qcow2 -o cluster_size=4096,refcount_bits=%u a.qcow2 %llu", width,
		            (unsigned long long)size);
		random_run("a.qcow2", width, 256, 100 * KIB, model);
		free(model);
	}
}

static void version_2(void **state)
{
	uint8_t *model;

	need_qemu_img();
	model_create(&model, 3 * MIB);
	run_command("qemu-img create -f qcow2 -o compat=0.10,cluster_size=8192 a.qcow2 3M");
	random_run("a.qcow2", 2, 300, 100 * KIB, model);
	free(model);
}

/* ---- several writers ---- */

static _Atomic unsigned writing, together;

/* Waits for another one to come in, for a long time at most. */
static ssize_t counted_pwritev(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	if (atomic_fetch_add(&writing, 1) > 0)
		atomic_store(&together, 1);
	for (unsigned ms = 0; ms < 60000 && !atomic_load(&together); ms++)
		nanosleep(&(const struct timespec){.tv_nsec = 1000000}, NULL);
	ssize_t done = host_file_system_ops.pwritev(file, iov, count, offset);
	atomic_fetch_sub(&writing, 1);
	return done;
}

struct writer {
	struct disk *disk;
	uint8_t *model;
	unsigned number;
	uint64_t generator;
	bool failed;
};

/* Writes, clears and flushes its own sectors, of which every cluster has some of each writer's, and clusters of its own. */
static void *write_much(void *argument)
{
	struct writer *writer = argument;
	uint64_t size = disk_size(writer->disk), half = size / 2, own = half / WRITERS;
	static const uint64_t stripe = 512 * WRITERS;
	uint8_t bytes[512];

	for (unsigned i = 0; i < 1500 && !writer->failed; i++) {
		uint64_t at = random_below(&writer->generator, half / stripe) * stripe + 512 * writer->number;
		uint64_t cluster = half + own * writer->number + random_below(&writer->generator, own / 8192) * 8192;
		bool may_unmap = i & 1;

		switch (random_below(&writer->generator, 12)) {
		case 0:
			writer->failed |= disk_flush(writer->disk) != 0;
			break;
		case 1:
			writer->failed |= writer->disk->format->zero(writer->disk, at, 512, may_unmap) != 0;
			memset(writer->model + at, 0, 512);
			break;
		case 2:
			writer->failed |= writer->disk->format->zero(writer->disk, cluster, 8192, may_unmap) != 0;
			memset(writer->model + cluster, 0, 8192);
			break;
		case 3:
			random_fill(&writer->generator, writer->model + cluster, 8192);
			writer->failed |= disk_write(writer->disk, cluster, writer->model + cluster, 8192) != 0;
			break;
		case 4:
			writer->failed |=
			    disk_read(writer->disk, at, bytes, 512) != 0 || memcmp(bytes, writer->model + at, 512) != 0;
			break;
		default:
			random_fill(&writer->generator, writer->model + at, 512);
			writer->failed |= disk_write(writer->disk, at, writer->model + at, 512) != 0;
		}
	}
	return NULL;
}

static void run_writers(const char *path, unsigned seed)
{
	struct disk *disk = open_disk(path, "qcow2");
	struct writer writers[WRITERS];
	pthread_t thread[WRITERS];
	uint8_t *model;

	print_message("%s: seed %u\n", path, seed);
	model_create(&model, disk_size(disk));
	assert_int_equal(disk_read(disk, 0, model, disk_size(disk)), 0);
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] =
		    (struct writer){.disk = disk, .model = model, .number = i, .generator = seed * 1000 + i + 1};
		assert_int_equal(pthread_create(&thread[i], NULL, write_much, &writers[i]), 0);
	}
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	for (unsigned i = 0; i < WRITERS; i++)
		assert_false(writers[i].failed);
	model_compare(disk, model, 0, disk_size(disk));
	close_and_compare(disk, model, path, "qcow2");
	free(model);
}

/* Writes that allocate overlap each other, in one cluster and in neighbours, also where the rest of a cluster comes from a backing file. */
static void several_writers(void **state)
{
	need_qemu_img();
	for (unsigned seed = 1; seed <= 3; seed++) {
		run_command("qemu-img create -f qcow2 -o cluster_size=8192 a.qcow2 4M");
		run_writers("a.qcow2", seed);
		run_command("qemu-img create -f qcow2 -o cluster_size=8192 -b a.qcow2 -F qcow2 b.qcow2");
		run_writers("b.qcow2", seed);
	}
}

static void *write_cluster(void *argument)
{
	struct writer *writer = argument;

	writer->failed = disk_write(writer->disk, writer->number * 8192ull, writer->model, 8192) != 0;
	return NULL;
}

/* The data of two writes to new clusters is on its way at the same time. */
static void allocations_overlap(void **state)
{
	struct host_file_ops ops = host_file_system_ops;
	static uint8_t data[8192];
	struct writer writers[2];
	pthread_t thread[2];

	need_qemu_img();
	run_command("qemu-img create -f qcow2 -o cluster_size=8192 a.qcow2 4M");
	struct disk *disk = open_disk("a.qcow2", "qcow2");
	/* The L2 table, and what else is made only once. */
	assert_int_equal(disk_write(disk, 1 * MIB, data, sizeof(data)), 0);
	assert_int_equal(disk_flush(disk), 0);
	ops.pwritev = counted_pwritev;
	disk->file.ops = &ops;
	for (unsigned i = 0; i < 2; i++) {
		writers[i] = (struct writer){.disk = disk, .model = data, .number = i};
		assert_int_equal(pthread_create(&thread[i], NULL, write_cluster, &writers[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		assert_false(writers[i].failed);
	}
	assert_true(atomic_load(&together));
	disk->file.ops = &host_file_system_ops;
	assert_int_equal(disk_close(disk), 0);
	run_command("qemu-img check a.qcow2");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(cluster_sizes),   cmocka_unit_test(refcount_widths),     cmocka_unit_test(version_2),
	    cmocka_unit_test(several_writers), cmocka_unit_test(allocations_overlap),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
