/*
 * qcow2 images on a host that fails: every call below host_file returns EIO or ENOSPC once, or for a while. The failure reaches the
 * caller, nothing else changes, and the image stays clean.
 */
#include "disk_test.h"

#define SIZE (2 * MIB)

enum call { CALL_READ, CALL_WRITE, CALL_SYNC, CALL_FALLOCATE, CALL_TRUNCATE, CALL_KINDS };

struct faults {
	uint64_t generator;
	unsigned countdown[CALL_KINDS]; /* the n-th call of the kind fails; 0: none */
	unsigned length;                /* how many fail then */
	int error;
	bool off;
	unsigned failed;
};

static bool fails(struct host_file *file, enum call call)
{
	struct faults *faults = file->hook;

	if (faults->off || faults->countdown[call] == 0)
		return false;
	if (faults->countdown[call] > 1) {
		faults->countdown[call]--;
		return false;
	}
	if (faults->length == 0 || --faults->length == 0)
		faults->countdown[call] = 0;
	faults->failed++;
	errno = faults->error;
	return true;
}

static ssize_t fault_preadv(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	return fails(file, CALL_READ) ? -1 : host_file_system_ops.preadv(file, iov, count, offset);
}

/* A write that fails may have written a part. */
static ssize_t fault_pwritev(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	struct faults *faults = file->hook;

	if (!fails(file, CALL_WRITE))
		return host_file_system_ops.pwritev(file, iov, count, offset);
	struct iovec part = *iov;
	part.iov_len = part.iov_len / 1024 * 512;
	if (part.iov_len && random_next(&faults->generator) & 1 &&
	    host_file_system_ops.pwritev(file, &part, 1, offset) < 0)
		return -1;
	errno = faults->error;
	return -1;
}

static int fault_fdatasync(struct host_file *file)
{
	return fails(file, CALL_SYNC) ? -1 : host_file_system_ops.fdatasync(file);
}

static int fault_fallocate(struct host_file *file, int mode, off_t offset, off_t length)
{
	return fails(file, CALL_FALLOCATE) ? -1 : host_file_system_ops.fallocate(file, mode, offset, length);
}

static int fault_ftruncate(struct host_file *file, off_t length)
{
	return fails(file, CALL_TRUNCATE) ? -1 : host_file_system_ops.ftruncate(file, length);
}

static const struct host_file_ops fault_ops = {fault_preadv, fault_pwritev, fault_fdatasync, fault_fallocate,
                                               fault_ftruncate};

/* One operation; when it fails, what its range holds now is read back: old, new, or a mixture. */
static void faulty_operation(struct disk *disk, struct faults *faults, uint8_t *model)
{
	uint8_t *bytes = malloc(SIZE);
	uint64_t offset, length;
	int error = 0;

	assert_non_null(bytes);
	random_range(&faults->generator, SIZE, 200 * KIB, &offset, &length);
	switch (random_below(&faults->generator, 8)) {
	case 0:
		(void)disk_flush(disk);
		break;
	case 1:
		error = disk->format->discard(disk, offset, length);
		faults->off = true;
		assert_int_equal(disk_read(disk, offset, model + offset, length), 0);
		faults->off = false;
		break;
	case 2:
		error = disk->format->zero(disk, offset, length, random_next(&faults->generator) & 1);
		if (!error)
			memset(model + offset, 0, length);
		break;
	case 3:
		if (disk_read(disk, offset, bytes, length) == 0)
			assert_memory_equal(bytes, model + offset, length);
		break;
	default:
		random_fill(&faults->generator, bytes, length);
		error = disk_write(disk, offset, bytes, length);
		if (!error)
			memcpy(model + offset, bytes, length);
	}
	if (error) {
		faults->off = true;
		assert_int_equal(disk_read(disk, offset, model + offset, length), 0);
		faults->off = false;
	}
	free(bytes);
}

static void run_faults(const char *prepare, enum call call, unsigned seed)
{
	struct faults faults = {.generator = seed * 0x9e3779b97f4a7c15ull + 1, .error = seed & 1 ? EIO : ENOSPC};
	uint8_t *model;

	run_command("rm -f f.qcow2; %s", prepare);
	model_create(&model, SIZE);
	struct disk *disk = open_disk("f.qcow2", "qcow2");
	assert_int_equal(disk_read(disk, 0, model, SIZE), 0);
	disk->file.ops = &fault_ops;
	disk->file.hook = &faults;
	faults.length = seed % 3 + 1;
	faults.countdown[call] = seed % 40 + 1;
	for (unsigned i = 0; i < 60; i++)
		faulty_operation(disk, &faults, model);
	faults.off = true;
	model_compare(disk, model, 0, SIZE);
	bool sync_failed = disk->file.sync_error;
	int closed = disk_close(disk);
	assert_true(sync_failed ? closed < 0 : closed == 0);
	int status = command_status("qemu-img check f.qcow2");
	if (status && !(sync_failed && status == 3)) {
		fprintf(stderr, "seed %u, call %u, %u failed\n", seed, call, faults.failed);
		run_command("qemu-img check f.qcow2");
	}
	model_save(model, SIZE, "model.raw");
	if (!sync_failed)
		run_command("qemu-img compare -f qcow2 -F raw f.qcow2 model.raw");
	free(model);
}

static void run_calls(const char *prepare, unsigned seeds, unsigned first)
{
	need_qemu_img();
	print_message("%s\n", prepare);
	for (unsigned call = 0; call < CALL_TRUNCATE; call++)
		for (unsigned seed = first; seed < first + seeds; seed++)
			run_faults(prepare, call, seed);
}

static void new_image(void **state)
{
	run_calls("qemu-img create -f qcow2 -o cluster_size=4096 f.qcow2 2M", 9, 1);
	run_calls("qemu-img create -f qcow2 -o cluster_size=512 f.qcow2 2M", 4, 20);
	run_calls("qemu-img create -f qcow2 f.qcow2 2M", 3, 40);
}

static void with_snapshot(void **state)
{
	run_calls("qemu-img create -f qcow2 -o cluster_size=4096 f.qcow2 2M && qemu-io -c 'write -P 9 0 2M' f.qcow2 && "
	          "qemu-img snapshot -c s f.qcow2",
	          7, 50);
}

static void with_backing(void **state)
{
	run_calls(
	    "head -c 2M /dev/urandom >b.raw; qemu-img create -f qcow2 -o cluster_size=16384 -b b.raw -F raw f.qcow2", 8,
	    70);
	run_calls("head -c 2M /dev/urandom >b.raw; qemu-img create -f qcow2 -o compat=0.10,cluster_size=1024 -b b.raw "
	          "-F raw f.qcow2",
	          6, 80);
}

/* Opening, too. */
static void failing_open(void **state)
{
	need_qemu_img();
	run_command(
	    "qemu-img create -f qcow2 f.qcow2 2M && qemu-io -c 'write 0 1M' f.qcow2 && qemu-img snapshot -c s f.qcow2");
	for (unsigned n = 1; n < 20; n++) {
		struct faults faults = {.error = EIO, .length = 1, .countdown = {n, n, n, n, n}};
		struct disk disk = {.options = {.path = "f.qcow2"}, .format = &disk_format_qcow2};
		char why[DISK_WHY_SIZE] = "";

		assert_int_equal(host_file_open(&disk.file, "f.qcow2", false, false, HOST_FILE_LOCK, why), 0);
		disk.file.ops = &fault_ops;
		disk.file.hook = &faults;
		int error = disk.format->open(&disk, why);
		if (error) {
			assert_int_equal(error, -EIO);
			assert_string_equal(why, "f.qcow2: Input/output error");
		} else {
			assert_int_equal(faults.failed, 0);
			assert_int_equal(disk.format->close(&disk), 0);
		}
		host_file_close(&disk.file);
	}
	run_command("qemu-img check f.qcow2");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(new_image),
	    cmocka_unit_test(with_snapshot),
	    cmocka_unit_test(with_backing),
	    cmocka_unit_test(failing_open),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
