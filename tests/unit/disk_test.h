/*
 * For tests of disk images: a folder of their own, qemu-img as the oracle, and a model (plain memory) that random
 * operations are compared with.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/disk/disk.h"
#include "backends/disk/disk_format.h"

#define KIB 1024ull
#define MIB (1024 * KIB)

/* The folder is the working directory from then on, so that names in commands stay short. */
static char disk_folder[64];

static inline int disk_folder_create(void **state)
{
	(void)state;
	strcpy(disk_folder, "/tmp/ring3-disk-XXXXXX");
	if (!mkdtemp(disk_folder) || chdir(disk_folder) < 0)
		return -1;
	return setenv("TMPDIR", disk_folder, 1);
}

static inline int disk_folder_remove(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf '%s'", disk_folder);
	return chdir("/") < 0 || system(command) != 0 ? -1 : 0;
}

static inline int command_run(const char *format, va_list arguments, bool show)
{
	char command[1024];

	strcpy(command, "{ ");
	vsnprintf(command + 2, sizeof(command) - 40, format, arguments);
	strcat(command, "; } >log.txt 2>&1 </dev/null");
	int status = system(command);
	if (show && status) {
		fprintf(stderr, "%s: status %d\n", command, status);
		if (system("cat log.txt >&2"))
			fprintf(stderr, "no log.txt\n");
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* The exit status of a shell command; what it says is in log.txt. */
__attribute__((format(printf, 1, 2))) static inline int command_status(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int status = command_run(format, arguments, false);
	va_end(arguments);
	return status;
}

/* A shell command that must succeed. */
__attribute__((format(printf, 1, 2))) static inline void run_command(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int status = command_run(format, arguments, true);
	va_end(arguments);
	assert_int_equal(status, 0);
}

static inline bool have_qemu_img(void)
{
	return system("qemu-img --version >/dev/null 2>&1") == 0;
}

#define need_qemu_img()                                                                                                \
	do {                                                                                                           \
		if (!have_qemu_img()) {                                                                                \
			fprintf(stderr, "qemu-img is missing: skipped\n");                                             \
			skip();                                                                                        \
		}                                                                                                      \
	} while (0)

/* xorshift64*; the seed is printed by the test that uses it. */
static inline uint64_t random_next(uint64_t *generator)
{
	*generator ^= *generator >> 12;
	*generator ^= *generator << 25;
	*generator ^= *generator >> 27;
	return *generator * 0x2545f4914f6cdd1dull;
}

static inline uint64_t random_below(uint64_t *generator, uint64_t limit)
{
	return (random_next(generator) >> 11) % limit;
}

static inline void random_fill(uint64_t *generator, uint8_t *bytes, uint64_t length)
{
	for (uint64_t i = 0; i < length; i += 8) {
		uint64_t word = random_next(generator);

		memcpy(bytes + i, &word, length - i < 8 ? length - i : 8);
	}
}

static inline struct disk *open_disk(const char *path, const char *format)
{
	struct disk_options options = {.path = path, .format = format};
	struct disk *disk = disk_open(&options);

	assert_non_null(disk);
	return disk;
}

static inline void model_create(uint8_t **model, uint64_t size)
{
	*model = calloc(1, size);
	assert_non_null(*model);
}

static inline void model_save(const uint8_t *model, uint64_t size, const char *path)
{
	FILE *file = fopen(path, "wb");

	assert_non_null(file);
	assert_int_equal(fwrite(model, 1, size, file), size);
	assert_int_equal(fclose(file), 0);
}

static inline void model_compare(struct disk *disk, const uint8_t *model, uint64_t offset, uint64_t length)
{
	uint8_t *bytes = malloc(length);

	assert_non_null(bytes);
	assert_int_equal(disk_read(disk, offset, bytes, length), 0);
	if (memcmp(bytes, model + offset, length) != 0) {
		uint64_t at = 0;

		while (bytes[at] == model[offset + at])
			at++;
		fprintf(stderr, "differs at %#llx: %02x instead of %02x\n", (unsigned long long)(offset + at),
		        bytes[at], model[offset + at]);
		fail();
	}
	free(bytes);
}

/* A range with corners that matter: sectors, clusters, unaligned ones. */
static inline void random_range(uint64_t *generator, uint64_t size, uint64_t longest, uint64_t *offset,
                                uint64_t *length)
{
	static const uint64_t units[] = {1, 512, 4096, 65536};
	uint64_t unit = units[random_below(generator, 4)];

	*offset = random_below(generator, size) / unit * unit;
	*length = (random_below(generator, longest) / unit + 1) * unit;
	if (*length > size - *offset)
		*length = size - *offset;
}

/* One random operation on the disk and the model. `backed`: what a discard leaves is not known, so it is followed by a
 * write. */
static inline void random_operation(uint64_t *generator, struct disk *disk, uint8_t *model, uint64_t longest)
{
	uint64_t size = disk_size(disk), offset, length;

	random_range(generator, size, longest, &offset, &length);
	switch (random_below(generator, 10)) {
	case 0:
		assert_int_equal(disk_flush(disk), 0);
		break;
	case 1:
		assert_int_equal(disk->format->zero(disk, offset, length, random_next(generator) >> 63), 0);
		memset(model + offset, 0, length);
		break;
	case 2:
		assert_int_equal(disk->format->discard(disk, offset, length), 0);
		assert_int_equal(disk_read(disk, offset, model + offset, length), 0);
		break;
	case 3:
	case 4:
		model_compare(disk, model, offset, length);
		break;
	default:
		random_fill(generator, model + offset, length);
		assert_int_equal(disk_write(disk, offset, model + offset, length), 0);
	}
}

/* Closes the disk; then qemu-img finds no error, no leak, and the model's content. */
static inline void close_and_compare(struct disk *disk, const uint8_t *model, const char *path, const char *format)
{
	uint64_t size = disk_size(disk);

	assert_int_equal(disk_close(disk), 0);
	model_save(model, size, "model.raw");
	if (strcmp(format, "qcow2") == 0)
		run_command("qemu-img check -f qcow2 %s", path);
	run_command("qemu-img compare -f %s -F raw %s model.raw", format, path);
}
