/*
 * Simulated power cuts. The image file's writes, holes and fdatasyncs are logged below host_file; at random moments a
 * file is built from what was synced and any subset of what was not (writes torn at sectors), as a disk may leave it.
 * Then the image is structurally clean (leaks are allowed) and each sector holds what it held at the last completed
 * flush, or something written since.
 */
#include "disk_test.h"

#include "backends/disk/qcow2.h"

#define SECTOR     512u
#define WINDOW     12u
#define IMAGE_SIZE (3 * MIB)
#define SECTORS    (IMAGE_SIZE / SECTOR)
#define FILE_ROOM  (24 * MIB)

struct change {
	enum { CHANGE_WRITE, CHANGE_HOLE, CHANGE_SIZE } kind;
	uint64_t offset, length;
	uint8_t *bytes;
};

/* A sector's content is a version number repeated; 0 is zeros. */
struct sector {
	uint32_t flushed, current;
	uint32_t since[WINDOW]; /* what it may have become since the flush */
	unsigned count;
};

struct rig {
	struct disk *disk;
	uint8_t *durable;
	uint64_t durable_size;
	struct change *pending;
	size_t pending_count;
	struct sector *sector;
	uint32_t version;
	uint64_t generator;
	unsigned cuts, cut_rate;
	bool cutting;
};

static void cut(struct rig *rig);

static void log_change(struct rig *rig, int kind, uint64_t offset, uint64_t length, uint8_t *bytes)
{
	rig->pending = realloc(rig->pending, (rig->pending_count + 1) * sizeof(*rig->pending));
	assert_non_null(rig->pending);
	rig->pending[rig->pending_count++] = (struct change){kind, offset, length, bytes};
	assert_true(offset + length <= FILE_ROOM);
	if (random_below(&rig->generator, rig->cut_rate) == 0)
		cut(rig);
}

static ssize_t log_pwritev(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	uint64_t length = iov_length(iov, (unsigned)count);
	uint8_t *bytes = malloc(length);

	assert_non_null(bytes);
	iov_to_buffer(iov, (unsigned)count, bytes);
	ssize_t done = host_file_system_ops.pwritev(file, iov, count, offset);
	assert_int_equal(done, length);
	log_change(file->hook, CHANGE_WRITE, (uint64_t)offset, length, bytes);
	return done;
}

static ssize_t log_preadv(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	return host_file_system_ops.preadv(file, iov, count, offset);
}

static int log_fallocate(struct host_file *file, int mode, off_t offset, off_t length)
{
	int result = host_file_system_ops.fallocate(file, mode, offset, length);

	if (result == 0)
		log_change(file->hook, CHANGE_HOLE, (uint64_t)offset, (uint64_t)length, NULL);
	return result;
}

static int log_ftruncate(struct host_file *file, off_t length)
{
	int result = host_file_system_ops.ftruncate(file, length);

	log_change(file->hook, CHANGE_SIZE, (uint64_t)length, 0, NULL);
	return result;
}

static void apply_change(uint8_t *image, uint64_t *size, const struct change *change, uint64_t from, uint64_t length)
{
	uint64_t end = change->offset + from + length;

	switch (change->kind) {
	case CHANGE_WRITE:
		memcpy(image + change->offset + from, change->bytes + from, length);
		if (end > *size)
			*size = end;
		break;
	case CHANGE_HOLE:
		memset(image + change->offset + from, 0, length);
		break;
	case CHANGE_SIZE:
		*size = change->offset;
		break;
	}
}

static int log_fdatasync(struct host_file *file)
{
	struct rig *rig = file->hook;

	cut(rig);
	for (size_t i = 0; i < rig->pending_count; i++) {
		apply_change(rig->durable, &rig->durable_size, &rig->pending[i], 0, rig->pending[i].length);
		free(rig->pending[i].bytes);
	}
	rig->pending_count = 0;
	return 0;
}

static const struct host_file_ops log_ops = {log_preadv, log_pwritev, log_fdatasync, log_fallocate, log_ftruncate};

/* ---- the cut ---- */

static void apply_some(struct rig *rig, uint8_t *image, uint64_t *size, uint64_t likely)
{
	for (size_t i = 0; i < rig->pending_count; i++) {
		const struct change *change = &rig->pending[i];

		if (random_below(&rig->generator, 4) >= likely)
			continue;
		if (change->kind == CHANGE_SIZE || random_below(&rig->generator, 2)) {
			apply_change(image, size, change, 0, change->length);
			continue;
		}
		for (uint64_t at = 0, part; at < change->length; at += part) {
			part = SECTOR - (change->offset + at) % SECTOR;
			if (part > change->length - at)
				part = change->length - at;
			if (random_below(&rig->generator, 2))
				apply_change(image, size, change, at, part);
		}
	}
}

static bool may_hold(const struct sector *sector, uint32_t version)
{
	if (version == sector->flushed)
		return true;
	for (unsigned i = 0; i < sector->count; i++)
		if (sector->since[i] == version)
			return true;
	return false;
}

static void check_sectors(struct rig *rig, const char *path)
{
	struct disk *disk = open_disk(path, "qcow2");
	struct disk_check check;
	char why[DISK_WHY_SIZE] = "";
	uint8_t *bytes = malloc(IMAGE_SIZE);

	assert_non_null(bytes);
	assert_int_equal(disk->format->check(disk, false, &check, why), 0);
	assert_int_equal(check.errors, 0);
	assert_int_equal(disk_read(disk, 0, bytes, IMAGE_SIZE), 0);
	for (unsigned i = 0; i < SECTORS; i++) {
		const uint32_t *words = (const uint32_t *)(bytes + i * SECTOR);

		for (unsigned j = 1; j < SECTOR / 4; j++)
			assert_int_equal(words[j], words[0]);
		if (!may_hold(&rig->sector[i], words[0])) {
			fprintf(stderr, "cut %u: sector %u holds version %u; flushed %u, now %u\n", rig->cuts, i,
			        words[0], rig->sector[i].flushed, rig->sector[i].current);
			fail();
		}
	}
	/* It goes on from there. */
	assert_int_equal(disk_write(disk, 0, bytes, 200 * KIB), 0);
	assert_int_equal(disk_close(disk), 0);
	free(bytes);
}

static void cut(struct rig *rig)
{
	if (rig->cutting)
		return;
	uint8_t *image = malloc(FILE_ROOM);
	uint64_t size = rig->durable_size;
	rig->cutting = true;
	rig->cuts++;
	assert_non_null(image);
	memcpy(image, rig->durable, FILE_ROOM);
	apply_some(rig, image, &size, random_below(&rig->generator, 5));
	model_save(image, size, "cut.qcow2");
	free(image);
	if (rig->cuts % 8 == 0 && have_qemu_img()) {
		int status = command_status("qemu-img check -f qcow2 cut.qcow2");
		if (status != 0 && status != 3) /* leaks are allowed */
			run_command("qemu-img check -f qcow2 cut.qcow2");
	}
	check_sectors(rig, "cut.qcow2");
	if (rig->cuts % 8 == 0 && have_qemu_img()) {
		int status = command_status("qemu-img check -f qcow2 cut.qcow2");
		assert_true(status == 0 || status == 3);
	}
	rig->cutting = false;
}

/* ---- the guest ---- */

static void rig_flush(struct rig *rig)
{
	assert_int_equal(disk_flush(rig->disk), 0);
	for (unsigned i = 0; i < SECTORS; i++) {
		rig->sector[i].flushed = rig->sector[i].current;
		rig->sector[i].count = 0;
	}
}

static void rig_note(struct rig *rig, uint64_t first, uint64_t count, uint32_t version)
{
	for (uint64_t i = first; i < first + count; i++)
		if (rig->sector[i].count == WINDOW) {
			rig_flush(rig);
			break;
		}
	for (uint64_t i = first; i < first + count; i++)
		rig->sector[i].since[rig->sector[i].count++] = version;
}

static void rig_settle(struct rig *rig, uint64_t first, uint64_t count, uint32_t version)
{
	for (uint64_t i = first; i < first + count; i++)
		rig->sector[i].current = version;
}

static void rig_write(struct rig *rig, uint64_t first, uint64_t count)
{
	uint32_t *words = malloc(count * SECTOR), version = ++rig->version;

	assert_non_null(words);
	for (uint64_t i = 0; i < count * SECTOR / 4; i++)
		words[i] = version;
	rig_note(rig, first, count, version);
	assert_int_equal(disk_write(rig->disk, first * SECTOR, words, count * SECTOR), 0);
	rig_settle(rig, first, count, version);
	free(words);
}

static void rig_clear(struct rig *rig, uint64_t first, uint64_t count, bool discard)
{
	const struct disk_format *format = rig->disk->format;
	uint32_t *words = malloc(count * SECTOR);

	assert_non_null(words);
	rig_note(rig, first, count, 0);
	assert_int_equal(discard ? format->discard(rig->disk, first * SECTOR, count * SECTOR)
	                         : format->zero(rig->disk, first * SECTOR, count * SECTOR, rig->version & 1),
	                 0);
	assert_int_equal(disk_read(rig->disk, first * SECTOR, words, count * SECTOR), 0);
	for (uint64_t i = 0; i < count; i++) {
		uint32_t now = words[i * SECTOR / 4];

		assert_true(now == 0 || (discard && now == rig->sector[first + i].current));
		rig->sector[first + i].current = now;
	}
	free(words);
}

static void rig_step(struct rig *rig)
{
	uint64_t longest = random_below(&rig->generator, 3) ? 64 : 1200;
	uint64_t first = random_below(&rig->generator, SECTORS), count = random_below(&rig->generator, longest) + 1;

	if (count > SECTORS - first)
		count = SECTORS - first;
	switch (random_below(&rig->generator, 8)) {
	case 0:
		rig_flush(rig);
		break;
	case 1:
		rig_clear(rig, first, count, true);
		break;
	case 2:
		rig_clear(rig, first, count, false);
		break;
	default:
		rig_write(rig, first, count);
	}
}

/* The image at `path` as it is now is on the disk, and all zeros or `version` 1 for the guest. */
static void rig_open(struct rig *rig, const char *path, uint64_t seed, unsigned cache)
{
	struct host_file file;
	char why[DISK_WHY_SIZE];

	memset(rig, 0, sizeof(*rig));
	rig->generator = seed * 0x9e3779b97f4a7c15ull + 1;
	rig->cut_rate = 6;
	rig->version = 1;
	rig->durable = calloc(1, FILE_ROOM);
	rig->sector = calloc(SECTORS, sizeof(*rig->sector));
	assert_true(rig->durable && rig->sector);
	assert_int_equal(host_file_open(&file, path, true, false, HOST_FILE_NO_LOCK, why), 0);
	rig->durable_size = (uint64_t)host_file_size(&file);
	assert_int_equal(host_file_read(&file, 0, rig->durable, rig->durable_size), 0);
	host_file_close(&file);
	rig->disk = open_disk(path, "qcow2");
	rig->disk->file.ops = &log_ops;
	rig->disk->file.hook = rig;
	if (cache) {
		struct qcow2 *q = rig->disk->data;

		q->l2.count = q->blocks.count = cache;
	}
	uint32_t *words = malloc(IMAGE_SIZE);
	assert_non_null(words);
	assert_int_equal(disk_read(rig->disk, 0, words, IMAGE_SIZE), 0);
	for (unsigned i = 0; i < SECTORS; i++)
		rig->sector[i].flushed = rig->sector[i].current = words[i * SECTOR / 4];
	free(words);
}

static void rig_close(struct rig *rig, const char *path)
{
	uint32_t *words = malloc(IMAGE_SIZE);

	assert_non_null(words);
	for (unsigned i = 0; i < SECTORS; i++)
		for (unsigned j = 0; j < SECTOR / 4; j++)
			words[i * SECTOR / 4 + j] = rig->sector[i].current;
	close_and_compare(rig->disk, (const uint8_t *)words, path, "qcow2");
	print_message("%u cuts\n", rig->cuts);
	free(words);
	for (size_t i = 0; i < rig->pending_count; i++)
		free(rig->pending[i].bytes);
	free(rig->pending);
	free(rig->durable);
	free(rig->sector);
}

/* A file whose sectors hold version 1. */
static void write_ones(const char *path)
{
	uint32_t *words = malloc(IMAGE_SIZE);

	assert_non_null(words);
	for (unsigned i = 0; i < IMAGE_SIZE / 4; i++)
		words[i] = 1;
	model_save((const uint8_t *)words, IMAGE_SIZE, path);
	free(words);
}

static void run_cuts(const char *options, const char *prepare, unsigned seed, unsigned cache, unsigned steps)
{
	struct rig rig;

	print_message("%s, seed %u, %u tables cached\n", options, seed, cache);
	run_command("rm -f p.qcow2 && qemu-img create -f qcow2 %s p.qcow2 3M && %s", options, prepare);
	rig_open(&rig, "p.qcow2", seed, cache);
	for (unsigned i = 0; i < steps; i++)
		rig_step(&rig);
	rig_close(&rig, "p.qcow2");
}

static void new_images(void **state)
{
	need_qemu_img();
	run_cuts("-o cluster_size=65536", "true", 1, 0, 60);
	run_cuts("-o cluster_size=4096", "true", 2, 0, 60);
	run_cuts("-o cluster_size=4096", "true", 3, 4, 60);
	run_cuts("-o cluster_size=512", "true", 4, 16, 40);
	run_cuts("-o cluster_size=512,refcount_bits=64", "true", 5, 64, 40);
	run_cuts("-o cluster_size=2048,compat=0.10", "true", 6, 3, 60);
	run_cuts("-o cluster_size=1024,refcount_bits=1", "true", 7, 5, 60);
}

static void snapshots(void **state)
{
	char fill[256];

	need_qemu_img();
	write_ones("ones.raw");
	for (unsigned seed = 10; seed < 14; seed++) {
		unsigned size = seed % 2 ? 4096 : 16384;

		snprintf(fill, sizeof(fill),
		         "qemu-img convert -f raw -O qcow2 -o cluster_size=%u ones.raw p.qcow2 && qemu-img snapshot -c "
		         "one p.qcow2",
		         size);
		run_cuts("-o cluster_size=4096", fill, seed, seed < 12 ? 0 : 3, 60);
		run_command("qemu-img convert -l one -O raw p.qcow2 one.raw && cmp one.raw ones.raw");
		run_command("qemu-img snapshot -d one p.qcow2 && qemu-img check p.qcow2");
	}
}

static void backing_images(void **state)
{
	need_qemu_img();
	write_ones("ones.raw");
	run_cuts("-o cluster_size=4096 -b ones.raw -F raw", "true", 20, 0, 60);
	run_cuts("-o cluster_size=65536 -b ones.raw -F raw", "true", 21, 3, 60);
	run_cuts("-o cluster_size=1024,compat=0.10 -b ones.raw -F raw", "true", 22, 3, 50);
}

static void compressed(void **state)
{
	need_qemu_img();
	write_ones("ones.raw");
	run_cuts("-o cluster_size=4096", "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4096 ones.raw p.qcow2",
	         30, 3, 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(new_images),
	    cmocka_unit_test(snapshots),
	    cmocka_unit_test(backing_images),
	    cmocka_unit_test(compressed),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
