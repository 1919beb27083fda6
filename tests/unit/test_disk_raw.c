/* Raw images, the probing rule, host_file with every fault injected, and snapshot overlays. */
#include "disk_test.h"

/* ---- faults below host_file ---- */

struct faults {
	unsigned countdown; /* the n-th call fails; 0: never */
	int error;
	unsigned short_every; /* every n-th transfer is short; 0: none */
	unsigned calls, interrupted;
};

static bool fault(struct host_file *file)
{
	struct faults *faults = file->hook;

	faults->calls++;
	if (faults->calls % 3 == 1) {
		faults->interrupted++;
		errno = EINTR;
		return true;
	}
	if (faults->countdown && --faults->countdown == 0) {
		errno = faults->error;
		return true;
	}
	return false;
}

static struct iovec shortened(struct host_file *file, const struct iovec *iov)
{
	struct faults *faults = file->hook;
	struct iovec part = *iov;

	if (faults->short_every && faults->calls % faults->short_every == 0 && part.iov_len > 1)
		part.iov_len = part.iov_len / 3 + 1;
	return part;
}

static ssize_t fault_preadv(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	struct iovec part;

	if (fault(file))
		return -1;
	part = shortened(file, iov);
	return host_file_system_ops.preadv(file, &part, 1, offset);
}

static ssize_t fault_pwritev(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	struct iovec part;

	if (fault(file))
		return -1;
	part = shortened(file, iov);
	return host_file_system_ops.pwritev(file, &part, 1, offset);
}

static int fault_fdatasync(struct host_file *file)
{
	return fault(file) ? -1 : host_file_system_ops.fdatasync(file);
}

static int fault_fallocate(struct host_file *file, int mode, off_t offset, off_t length)
{
	return fault(file) ? -1 : host_file_system_ops.fallocate(file, mode, offset, length);
}

static int fault_ftruncate(struct host_file *file, off_t length)
{
	return fault(file) ? -1 : host_file_system_ops.ftruncate(file, length);
}

static const struct host_file_ops fault_ops = {fault_preadv, fault_pwritev, fault_fdatasync, fault_fallocate,
                                               fault_ftruncate};

static void interrupted_and_short(void **state)
{
	struct faults faults = {.short_every = 2};
	uint8_t *model;

	model_create(&model, MIB);
	model_save(model, MIB, "r.raw");
	struct disk *disk = open_disk("r.raw", "raw");
	disk->file.ops = &fault_ops;
	disk->file.hook = &faults;
	uint64_t generator = 77;
	for (unsigned i = 0; i < 400; i++)
		random_operation(&generator, disk, model, 100 * KIB);
	model_compare(disk, model, 0, MIB);
	assert_true(faults.interrupted > 100);
	assert_int_equal(disk_close(disk), 0);
	free(model);
}

static void errors_are_told(void **state)
{
	static const int errors[] = {EIO, ENOSPC};
	uint8_t bytes[4096] = {1};

	for (unsigned i = 0; i < 2; i++) {
		struct faults faults = {.error = errors[i]};
		run_command("truncate -s 0 r.raw && truncate -s 1M r.raw");
		struct disk *disk = open_disk("r.raw", "raw");
		disk->file.ops = &fault_ops;
		disk->file.hook = &faults;
		faults.countdown = 1;
		assert_int_equal(disk_read(disk, 0, bytes, sizeof(bytes)), -errors[i]);
		faults.countdown = 1;
		assert_int_equal(disk_write(disk, 0, bytes, sizeof(bytes)), -errors[i]);
		faults.countdown = 1;
		assert_int_equal(disk->format->zero(disk, 0, 4096, true), -errors[i]);
		faults.countdown = 1;
		assert_int_equal(disk->format->discard(disk, 0, 4096), -errors[i]);
		assert_int_equal(disk_write(disk, 0, bytes, sizeof(bytes)), 0);
		/* A failed fdatasync stays failed. */
		assert_int_equal(disk_flush(disk), 0);
		faults.countdown = 1;
		assert_int_equal(disk_flush(disk), -errors[i]);
		assert_true(disk_flush(disk) < 0);
		assert_true(disk_flush(disk) < 0);
		assert_int_equal(disk_write(disk, 0, bytes, sizeof(bytes)), 0);
		assert_true(disk_flush(disk) < 0);
		assert_true(disk_close(disk) < 0);
	}
}

/* ---- raw ---- */

static void random_raw(void **state)
{
	static const enum disk_cache caches[] = {DISK_CACHE_WRITEBACK, DISK_CACHE_NONE, DISK_CACHE_WRITETHROUGH,
	                                         DISK_CACHE_UNSAFE};

	for (unsigned i = 0; i < 4; i++) {
		struct disk_options options = {.path = "r.raw", .format = "raw", .cache = caches[i]};
		uint64_t size = 2 * MIB + 3 * 512, generator = i + 1;
		uint8_t *model;

		model_create(&model, size);
		model_save(model, size, "r.raw");
		struct disk *disk = disk_open(&options);
		assert_non_null(disk);
		assert_int_equal(disk_size(disk), size);
		for (unsigned j = 0; j < 300; j++)
			random_operation(&generator, disk, model, 200 * KIB);
		if (have_qemu_img()) {
			close_and_compare(disk, model, "r.raw", "raw");
		} else {
			model_compare(disk, model, 0, size);
			disk_close(disk);
		}
		struct stat stat_buffer;
		assert_int_equal(stat("r.raw", &stat_buffer), 0);
		assert_int_equal(stat_buffer.st_size, size);
		free(model);
	}
}

static void discard_makes_holes(void **state)
{
	uint8_t *model;

	model_create(&model, 4 * MIB);
	memset(model, 0x55, 4 * MIB);
	model_save(model, 4 * MIB, "r.raw");
	struct disk *disk = open_disk("r.raw", "raw");
	struct disk_info before, after;
	assert_int_equal(disk_flush(disk), 0);
	disk_info(disk, &before);
	assert_int_equal(disk->format->discard(disk, MIB, 2 * MIB), 0);
	disk_info(disk, &after);
	assert_true(after.allocated + 2 * MIB <= before.allocated);
	assert_int_equal(disk_close(disk), 0);
	free(model);
}

static void odd_sizes(void **state)
{
	uint8_t sector[512], expect[512] = "abc";

	run_command("printf abc >odd.raw");
	struct disk *disk = open_disk("odd.raw", "raw");
	assert_int_equal(disk_size(disk), 512);
	assert_int_equal(disk_read(disk, 0, sector, 512), 0);
	assert_memory_equal(sector, expect, 512);
	assert_int_equal(disk_read(disk, 0, sector, 513), -EINVAL);
	assert_int_equal(disk_read(disk, UINT64_MAX, sector, 2), -EINVAL);
	assert_int_equal(disk_write(disk, 512, sector, 1), -EINVAL);
	assert_int_equal(disk_close(disk), 0);
}

static void refuses_what_is_no_file(void **state)
{
	static const char *const paths[] = {".", "/dev/null", "missing.raw", "fifo"};

	run_command("rm -f fifo && mkfifo fifo");
	for (unsigned i = 0; i < 4; i++) {
		struct disk_options options = {.path = paths[i], .format = "raw"};

		assert_null(disk_open(&options));
	}
	struct disk_options options = {.path = "r.raw", .format = "vmdk"};
	assert_null(disk_open(&options));
}

static void readonly(void **state)
{
	struct disk_options options = {.path = "r.raw", .format = "raw", .readonly = true};
	uint8_t bytes[512] = {0};

	run_command("truncate -s 1M r.raw && chmod a-w r.raw");
	struct disk *disk = disk_open(&options);
	assert_non_null(disk);
	assert_int_equal(disk_write(disk, 0, bytes, 512), -EROFS);
	assert_int_equal(disk_flush(disk), 0);
	assert_int_equal(disk_close(disk), 0);
	run_command("chmod u+w r.raw");
}

/* ---- probing ---- */

static void raw_stays_raw(void **state)
{
	uint8_t magic[1024] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3}, harmless[1024] = {1};

	run_command("rm -f p.raw && truncate -s 1M p.raw");
	struct disk *disk = open_disk("p.raw", NULL);
	assert_string_equal(disk->format->name, "raw");
	assert_int_equal(disk_write(disk, 0, harmless, sizeof(harmless)), 0);
	assert_int_equal(disk_write(disk, 0, magic, sizeof(magic)), -EPERM);
	assert_int_equal(disk_write(disk, 0, magic, 4), -EPERM);
	/* Byte by byte, too. */
	assert_int_equal(disk_write(disk, 1, magic + 1, 3), 0);
	assert_int_equal(disk_write(disk, 0, magic, 1), -EPERM);
	assert_int_equal(disk_write(disk, 512, magic, 512), 0);
	assert_int_equal(disk_close(disk), 0);
	/* Declared raw: the guest may write what it likes, and it is raw still. */
	disk = open_disk("p.raw", "raw");
	assert_int_equal(disk_write(disk, 0, magic, sizeof(magic)), 0);
	assert_int_equal(disk_close(disk), 0);
	disk = open_disk("p.raw", "raw");
	assert_int_equal(disk_size(disk), MIB);
	assert_int_equal(disk_close(disk), 0);
}

/* ---- snapshot ---- */

static void overlay(void **state)
{
	struct disk_options options = {.path = "base.raw", .format = "raw", .snapshot = true};
	uint64_t size = 3 * MIB + 512, generator = 5;
	uint8_t *model;

	model_create(&model, size);
	random_fill(&generator, model, size);
	model_save(model, size, "base.raw");
	run_command("cp base.raw copy.raw; chmod a-w base.raw");
	struct disk *disk = disk_open(&options);
	assert_non_null(disk);
	assert_int_equal(disk_size(disk), size);
	for (unsigned i = 0; i < 300; i++)
		random_operation(&generator, disk, model, 200 * KIB);
	model_compare(disk, model, 0, size);
	assert_int_equal(disk_close(disk), 0);
	run_command("cmp base.raw copy.raw && test -z \"$(find . -name 'ring3-*')\"");
	free(model);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(interrupted_and_short),
	    cmocka_unit_test(errors_are_told),
	    cmocka_unit_test(random_raw),
	    cmocka_unit_test(discard_makes_holes),
	    cmocka_unit_test(odd_sizes),
	    cmocka_unit_test(refuses_what_is_no_file),
	    cmocka_unit_test(readonly),
	    cmocka_unit_test(raw_stays_raw),
	    cmocka_unit_test(overlay),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
