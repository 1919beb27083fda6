/* What qemu-img makes: backing chains, internal snapshots, compressed clusters, dirty and corrupt marks; and the locks. */
#include "disk_test.h"

#include "backends/disk/qcow2.h"

static void random_file(uint64_t seed, uint8_t *model, uint64_t size, const char *path)
{
	uint64_t generator = seed;

	for (uint64_t at = 0; at < size; at += 64 * KIB) {
		uint64_t part = size - at < 64 * KIB ? size - at : 64 * KIB;

		switch (random_below(&generator, 3)) {
		case 0:
			random_fill(&generator, model + at, part);
			break;
		case 1:
			memset(model + at, (int)(at >> 16), part); /* compresses well */
			break;
		default:
			memset(model + at, 0, part);
		}
	}
	model_save(model, size, path);
}

static void random_writes(uint64_t seed, const char *path, uint8_t *model, unsigned operations)
{
	struct disk *disk = open_disk(path, "qcow2");

	model_compare(disk, model, 0, disk_size(disk));
	for (unsigned i = 0; i < operations; i++)
		random_operation(&seed, disk, model, 150 * KIB);
	model_compare(disk, model, 0, disk_size(disk));
	close_and_compare(disk, model, path, "qcow2");
}

/* base.raw (shorter than the rest) <- sub/b.qcow2 <- sub/c.qcow2 <- d.qcow2, names relative to the image that has them. */
static void chain(void **state)
{
	static const char *const options[] = {"cluster_size=65536", "cluster_size=4096",
	                                      "compat=0.10,cluster_size=16384"};
	uint64_t base = 2 * MIB + 512, size = 4 * MIB;

	need_qemu_img();
	for (unsigned i = 0; i < 3; i++) {
		uint8_t *model, *before;

		model_create(&model, size);
		model_create(&before, size);
		run_command("rm -rf sub && mkdir sub");
		random_file(i + 1, model, base, "base.raw");
		run_command("qemu-img create -f qcow2 -o %s -b ../base.raw -F raw sub/b.qcow2 3M", options[i]);
		random_writes(i + 10, "sub/b.qcow2", model, 20);
		run_command("qemu-img create -f qcow2 -o %s -b b.qcow2 -F qcow2 sub/c.qcow2", options[(i + 1) % 3]);
		run_command("qemu-img resize sub/c.qcow2 4M");
		memset(model + 3 * MIB, 0, MIB);
		random_writes(i + 20, "sub/c.qcow2", model, 20);
		memcpy(before, model, size);
		run_command("qemu-img create -f qcow2 -o %s -b sub/c.qcow2 -F qcow2 d.qcow2", options[(i + 2) % 3]);
		random_writes(i + 30, "d.qcow2", model, 60);
		struct disk *disk = open_disk("sub/c.qcow2", NULL); /* untouched */
		close_and_compare(disk, before, "sub/c.qcow2", "qcow2");
		free(before);
		free(model);
	}
}

static void put_header(const char *path, uint64_t at, const void *bytes, size_t length)
{
	int fd = open(path, O_RDWR);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, bytes, length, (off_t)at), length);
	close(fd);
}

static void assert_refused(const char *path, bool readonly)
{
	struct disk_options options = {.path = path, .readonly = readonly};

	assert_null(disk_open(&options));
}

static void bad_chains(void **state)
{
	need_qemu_img();
	run_command("truncate -s 1M r.raw && qemu-img create -f qcow2 -b r.raw -F raw loop.qcow2 &&"
	            "qemu-img rebase -u -b loop.qcow2 -F qcow2 loop.qcow2");
	assert_refused("loop.qcow2", true);
	assert_refused("loop.qcow2", false);
	run_command("qemu-img create -f qcow2 -u -b missing.raw -F raw m.qcow2 1M");
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 -u -b nbd://localhost/x -F raw m.qcow2 1M");
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 -u -b /dev/null -F raw m.qcow2 1M");
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 -u -b r.raw -F vmdk m.qcow2 1M");
	assert_refused("m.qcow2", true);
	/* A backing file of undeclared format that names another file could be a raw guest's work. */
	run_command(
	    "qemu-img create -f qcow2 -b r.raw -F raw b.qcow2 && qemu-img create -f qcow2 -b b.qcow2 -F qcow2 m.qcow2");
	assert_int_equal(disk_close(open_disk("m.qcow2", NULL)), 0);
	put_header("m.qcow2", 112, (uint8_t[8]){0}, 8); /* no extensions */
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 -b r.raw -F raw m.qcow2");
	put_header("m.qcow2", 112, (uint8_t[8]){0}, 8);
	assert_int_equal(disk_close(open_disk("m.qcow2", NULL)), 0);
}

static void show_snapshot(const char *path, const char *name, const uint8_t *model, uint64_t size)
{
	struct disk_options options = {.path = path, .readonly = true, .internal_snapshot = name};
	struct disk *disk = disk_open(&options);
	struct disk_info info;

	assert_non_null(disk);
	disk_info(disk, &info);
	assert_int_equal(info.snapshots, 2);
	assert_int_equal(disk_size(disk), size);
	model_compare(disk, model, 0, size);
	assert_int_equal(disk_close(disk), 0);
}

static void internal_snapshots(void **state)
{
	static const char *const options[] = {"cluster_size=65536", "cluster_size=1024",
	                                      "cluster_size=4096,compat=0.10", "cluster_size=4096,refcount_bits=4"};
	uint64_t size = 2 * MIB;

	need_qemu_img();
	for (unsigned i = 0; i < 4; i++) {
		uint8_t *model, *at_one, *at_two;

		model_create(&model, size);
		model_create(&at_one, size);
		model_create(&at_two, size);
		random_file(i + 50, model, size, "start.raw");
		run_command("qemu-img convert -f raw -O qcow2 -o %s start.raw s.qcow2", options[i]);
		random_writes(i + 60, "s.qcow2", model, 30);
		memcpy(at_one, model, size);
		run_command("qemu-img snapshot -c one s.qcow2");
		random_writes(i + 70, "s.qcow2", model, 30);
		memcpy(at_two, model, size);
		run_command("qemu-img snapshot -c two s.qcow2");
		random_writes(i + 80, "s.qcow2", model, 60);
		model_save(at_one, size, "one.raw");
		model_save(at_two, size, "two.raw");
		run_command("qemu-img convert -l one -O raw s.qcow2 x.raw && cmp x.raw one.raw");
		run_command("qemu-img convert -l two -O raw s.qcow2 x.raw && cmp x.raw two.raw");
		show_snapshot("s.qcow2", "one", at_one, size);
		show_snapshot("s.qcow2", "2", at_two, size);
		assert_null(
		    disk_open(&(struct disk_options){.path = "s.qcow2", .readonly = true, .internal_snapshot = "3"}));
		assert_null(disk_open(&(struct disk_options){.path = "s.qcow2", .internal_snapshot = "one"}));
		run_command("qemu-img snapshot -d one s.qcow2 && qemu-img check s.qcow2");
		random_writes(i + 90, "s.qcow2", model, 30);
		run_command("qemu-img snapshot -a two s.qcow2 && qemu-img compare s.qcow2 two.raw");
		random_writes(i + 95, "s.qcow2", at_two, 30);
		free(model);
		free(at_one);
		free(at_two);
	}
}

static void compressed_clusters(void **state)
{
	static const char *const options[] = {"cluster_size=65536",
	                                      "compression_type=zstd",
	                                      "cluster_size=4096",
	                                      "cluster_size=512",
	                                      "cluster_size=2M,compression_type=zstd",
	                                      "cluster_size=2M",
	                                      "compat=0.10"};
	uint64_t size = 4 * MIB + 512;

	need_qemu_img();
	for (unsigned i = 0; i < 7; i++) {
		uint8_t *model;

		model_create(&model, size);
		random_file(i + 100, model, size, "start.raw");
		if (command_status("qemu-img convert -c -f raw -O qcow2 -o %s start.raw c.qcow2", options[i]))
			continue; /* qemu-img without zstd */
		random_writes(i + 110, "c.qcow2", model, 80);
		free(model);
	}
}

/* Sizes that grow and shrink; what comes back is zeros, whatever the backing image holds there. */
static void resizes(void **state)
{
	static const char *const options[] = {"cluster_size=512", "cluster_size=65536", "cluster_size=4096",
	                                      "compat=0.10,cluster_size=1024"};
	uint64_t most = 6 * MIB, generator = 9;

	need_qemu_img();
	for (unsigned i = 0; i < 8; i++) {
		uint64_t size = 2 * MIB;
		uint8_t *model;

		model_create(&model, most);
		random_fill(&generator, model, size);
		memset(model + size, 0, most - size);
		run_command("head -c 4M /dev/urandom >b.raw");
		if (i % 2)
			run_command("qemu-img create -f qcow2 -o %s -b b.raw -F raw z.qcow2 2M", options[i / 2]);
		else
			run_command("qemu-img create -f qcow2 -o %s z.qcow2 2M", options[i / 2]);
		struct disk *disk = open_disk("z.qcow2", "qcow2");
		assert_int_equal(disk_write(disk, 0, model, size), 0);
		for (unsigned j = 0; j < 12; j++) {
			uint64_t to = random_below(&generator, most / 512) * 512 + 512;
			char why[DISK_WHY_SIZE] = "";

			assert_int_equal(disk->format->resize(disk, to, why), 0);
			if (to < size)
				memset(model + to, 0, size - to);
			size = to;
			assert_int_equal(disk_size(disk), size);
			model_compare(disk, model, 0, size);
			for (unsigned k = 0; k < 5; k++)
				random_operation(&generator, disk, model, 100 * KIB);
		}
		close_and_compare(disk, model, "z.qcow2", "qcow2");
		free(model);
	}
}

/* ---- marks ---- */

/* What a crash with lazy refcounts leaves: the mark, and counts that lag behind. */
static void dirty_image(void **state)
{
	uint64_t size = 8 * MIB;
	uint8_t *model, dirty[8] = {0, 0, 0, 0, 0, 0, 0, 1}, header[104], zeros[4096] = {0};

	need_qemu_img();
	for (unsigned all = 0; all < 2; all++) {
		model_create(&model, size);
		random_file(7, model, size, "start.raw");
		run_command("qemu-img convert -f raw -O qcow2 -o cluster_size=4096 start.raw d.qcow2");
		int fd = open("d.qcow2", O_RDONLY);
		assert_int_equal(pread(fd, header, sizeof(header), 0), sizeof(header));
		uint64_t reftable = get_be64(header + HEADER_REFTABLE_OFFSET), block;
		assert_int_equal(pread(fd, &block, 8, (off_t)reftable), 8);
		block = get_be64(&block);
		close(fd);
		put_header("d.qcow2", all ? reftable : block, zeros,
		           sizeof(zeros)); /* no block at all, or an empty one */
		put_header("d.qcow2", HEADER_INCOMPATIBLE, dirty, sizeof(dirty));
		if (!all) {
			struct disk_options options = {.path = "d.qcow2", .readonly = true};
			struct disk *disk = disk_open(&options);
			struct disk_info info;
			assert_non_null(disk);
			disk_info(disk, &info);
			assert_true(info.dirty);
			model_compare(disk, model, 0, size);
			assert_int_equal(disk_close(disk), 0);
		}
		random_writes(8, "d.qcow2", model, 50);
		free(model);
	}
}

static void corrupt_mark(void **state)
{
	uint8_t corrupt[8] = {0, 0, 0, 0, 0, 0, 0, 2};

	need_qemu_img();
	run_command("qemu-img create -f qcow2 m.qcow2 1M");
	put_header("m.qcow2", HEADER_INCOMPATIBLE, corrupt, sizeof(corrupt));
	assert_refused("m.qcow2", false);
	struct disk_options options = {.path = "m.qcow2", .readonly = true};
	struct disk *disk = disk_open(&options);
	assert_non_null(disk);
	assert_int_equal(disk_close(disk), 0);
	options = (struct disk_options){.path = "m.qcow2", .repair = true};
	disk = disk_open(&options);
	assert_non_null(disk);
	struct disk_check check;
	char why[DISK_WHY_SIZE] = "";
	assert_int_equal(disk->format->check(disk, true, &check, why), 0);
	assert_int_equal(disk_close(disk), 0);
	assert_int_equal(disk_close(open_disk("m.qcow2", NULL)), 0);
}

static void unknown_features(void **state)
{
	need_qemu_img();
	run_command("qemu-img create -f qcow2 -o extended_l2=on m.qcow2 1M");
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 -o data_file=m.data m.qcow2 1M");
	assert_refused("m.qcow2", true);
	run_command("qemu-img create -f qcow2 m.qcow2 1M");
	put_header("m.qcow2", HEADER_CRYPT, (uint8_t[4]){0, 0, 0, 2}, 4);
	assert_refused("m.qcow2", true);
}

/* A table that a hostile image has put where the guest writes: the guest must not reach its own header. */
static void data_over_metadata(void **state)
{
	uint8_t header[104], sector[512] = {0x66}, entry[8];

	need_qemu_img();
	for (uint64_t target = 0; target < 5; target++) {
		run_command(
		    "qemu-img create -f qcow2 -o cluster_size=4096 m.qcow2 1M && qemu-io -c 'write 0 64k' m.qcow2");
		int fd = open("m.qcow2", O_RDONLY);
		assert_int_equal(pread(fd, header, sizeof(header), 0), sizeof(header));
		uint64_t l2,
		    at[5] = {0, get_be64(header + HEADER_L1_OFFSET), get_be64(header + HEADER_REFTABLE_OFFSET)};
		assert_int_equal(pread(fd, &l2, 8, (off_t)at[1]), 8);
		at[3] = get_be64(&l2) & L2_OFFSET;
		at[4] = 1 << 30; /* far behind the end */
		close(fd);
		put_be64(entry, at[target] | L2_COPIED);
		if (target)
			put_header("m.qcow2", at[3], entry, 8);
		else /* offset 0 means nothing is there: two data clusters in one L2 table, and the header as an L2 table */
			put_header("m.qcow2", at[1], (uint8_t[8]){0x80, 0, 0, 0, 0, 0, 0, 1}, 8);
		run_command("cp m.qcow2 before.qcow2");
		struct disk_options options = {.path = "m.qcow2"};
		struct disk *disk = disk_open(&options);
		if (!target) {
			assert_int_equal(disk_write(disk, 0, sector, 512), 0);
			assert_int_equal(disk_close(disk), 0);
			continue;
		}
		assert_non_null(disk);
		assert_int_equal(disk_write(disk, 0, sector, 512), -EIO);
		assert_int_equal(disk_write(disk, 8192, sector, 512), -EIO);
		assert_true(disk_close(disk) < 0);
		/* Nothing but the mark has changed. */
		run_command("test \"$(cmp -l m.qcow2 before.qcow2 | wc -l)\" = 1");
	}
}

/* ---- locks ---- */

static void locks(void **state)
{
	struct disk_options writer = {.path = "l.raw", .format = "raw"},
	                    reader = {.path = "l.raw", .format = "raw", .readonly = true};

	run_command("truncate -s 1M l.raw");
	struct disk *disk = disk_open(&writer);
	assert_non_null(disk);
	assert_null(disk_open(&writer));
	assert_null(disk_open(&reader));
	if (have_qemu_img()) {
		assert_int_not_equal(command_status("qemu-io -f raw -c 'write 0 512' l.raw"), 0);
		run_command("qemu-img info -U l.raw");
	}
	assert_int_equal(disk_close(disk), 0);
	disk = disk_open(&reader);
	struct disk *second = disk_open(&reader);
	assert_true(disk && second);
	assert_null(disk_open(&writer));
	if (have_qemu_img()) {
		assert_int_not_equal(command_status("qemu-io -f raw -c 'write 0 512' l.raw"), 0);
		run_command("qemu-img info l.raw");
		run_command("qemu-io -r -f raw -c 'read 0 512' l.raw");
	}
	assert_int_equal(disk_close(disk), 0);
	assert_int_equal(disk_close(second), 0);
}

static struct disk *try_open(bool read_only)
{
	struct disk_options options = {.path = "l.raw", .format = "raw", .readonly = read_only};

	return disk_open(&options);
}

/* And the other way round: qemu-io writes. */
static void locked_by_qemu(void **state)
{
	need_qemu_img();
	run_command("truncate -s 1M l.raw");
	FILE *qemu = popen("qemu-io -f raw l.raw >said 2>&1", "w");
	assert_non_null(qemu);
	fputs("write 0 512\n", qemu);
	fflush(qemu);
	for (unsigned tries = 0; command_status("grep -q wrote said") != 0; tries++) {
		assert_true(tries < 3000);
		usleep(20000);
	}
	assert_null(try_open(true));
	assert_null(try_open(false));
	pclose(qemu); /* the end of its input */
	struct disk *disk = try_open(false);
	assert_non_null(disk);
	assert_int_equal(disk_close(disk), 0);
}

/* The locks of a QEMU whose guest reads the image and relies on nobody writing. */
static void read_by_qemu(void **state)
{
	run_command("truncate -s 1M l.raw");
	int fd = open("l.raw", O_RDONLY);
	for (unsigned i = 0; i < 3; i++) {
		static const off_t bytes[] = {100, 201, 203};
		struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = bytes[i], .l_len = 1};

		assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
	}
	assert_null(try_open(false));
	struct disk *disk = try_open(true);
	assert_non_null(disk);
	assert_int_equal(disk_close(disk), 0);
	close(fd);
	disk = try_open(false);
	assert_non_null(disk);
	assert_int_equal(disk_close(disk), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(chain),
	    cmocka_unit_test(bad_chains),
	    cmocka_unit_test(internal_snapshots),
	    cmocka_unit_test(compressed_clusters),
	    cmocka_unit_test(resizes),
	    cmocka_unit_test(dirty_image),
	    cmocka_unit_test(corrupt_mark),
	    cmocka_unit_test(unknown_features),
	    cmocka_unit_test(data_over_metadata),
	    cmocka_unit_test(locks),
	    cmocka_unit_test(locked_by_qemu),
	    cmocka_unit_test(read_by_qemu),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
