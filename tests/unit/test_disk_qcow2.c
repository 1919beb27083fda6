/* qcow2 images: random operations against a model and qemu-img, in every cluster size, refcount width and version. */
#include "disk_test.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(cluster_sizes),
	    cmocka_unit_test(refcount_widths),
	    cmocka_unit_test(version_2),
	};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
