/*
 * qcow2 images of any content: what is refused is untouched; what is opened is read, written, checked and closed without harm.
 *
 * Input: byte 0 chooses a sound image, byte 1 how it is opened and how much of it is cut off; then changes of 4 bytes: place (2, in
 * units that favour the tables), how, value. What remains below that is laid over the header.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/disk/disk_format.h"
#include "backends/disk/qcow2.h"
#include "host/log.h"

#define SEEDS    3u
#define FILE_MAX (256u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Instead of the library's: thousands of refusals are nothing to read. */
void log_error(const char *format, ...) {}
void log_warning(const char *format, ...) {}
void log_info(const char *format, ...) {}

static struct seed {
	uint8_t *bytes;
	size_t size;
} seeds[SEEDS];

static void check(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_qcow2: %s\n", what);
	abort();
}

static int new_file(char path[64])
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	check(fd >= 0, "no memfd");
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return fd;
}

static void make_seed(struct seed *seed, uint32_t cluster_size, uint64_t disk_size)
{
	struct disk_options options = {.format = "qcow2"};
	char path[64], why[DISK_WHY_SIZE];
	uint8_t block[1024];
	struct host_file file;
	int fd = new_file(path);

	options.path = path;
	memset(block, 0x5a, sizeof(block));
	check(host_file_open(&file, path, false, false, HOST_FILE_NO_LOCK, why) == 0, "seed file");
	check(disk_format_qcow2.create(&file, disk_size, NULL, NULL, cluster_size, why) == 0, "seed image");
	host_file_close(&file);
	struct disk *disk = disk_open(&options);
	check(disk != NULL, "seed open");
	for (uint64_t at = 0; at + sizeof(block) <= disk_size; at += disk_size / 7 / 512 * 512)
		check(disk_write(disk, at, block, sizeof(block)) == 0, "seed write");
	check(disk_close(disk) == 0, "seed close");
	seed->size = (size_t)lseek(fd, 0, SEEK_END);
	seed->bytes = malloc(seed->size);
	check(seed->bytes && pread(fd, seed->bytes, seed->size, 0) == (ssize_t)seed->size, "seed read");
	close(fd);
}

static void mutate(uint8_t *image, size_t length, const uint8_t *data, size_t size)
{
	for (; size >= 4; data += 4, size -= 4) {
		size_t place = (size_t)(data[0] | (data[1] & 0x3f) << 8), unit = data[1] >> 6;

		/* The header; words anywhere; bytes anywhere. */
		place = unit == 0   ? place % 112
		        : unit == 1 ? place * 8
		        : unit == 2 ? place * 8 + data[2] % 8
		                    : place * 16 + 7;
		if (place >= length)
			continue;
		switch (data[2] >> 5) {
		case 0:
			image[place] ^= (uint8_t)(1u << (data[3] & 7));
			break;
		case 1:
			image[place] = data[3];
			break;
		case 2:
			image[place] += data[3];
			break;
		case 3: /* an offset from elsewhere */
			memmove(image + place / 8 * 8, image + (size_t)data[3] * 8 % (length - 8),
			        length - place / 8 * 8 < 8 ? 1 : 8);
			break;
		default: /* a cluster's number */
			if (place / 8 * 8 + 8 <= length)
				put_be64(image + place / 8 * 8, (uint64_t)data[3] << 9 | (uint64_t)(data[2] & 1) << 63);
		}
	}
}

static void use(struct disk *disk, uint8_t variant)
{
	static uint8_t buffer[96 << 10];
	struct disk_check result;
	char why[DISK_WHY_SIZE] = "";
	uint64_t size = disk_size(disk), tail = size < sizeof(buffer) ? 0 : size - sizeof(buffer);

	(void)disk_read(disk, 0, buffer, size < sizeof(buffer) ? size : sizeof(buffer));
	(void)disk_read(disk, tail, buffer, size - tail);
	if (variant & 2)
		(void)disk->format->check(disk, variant & 4, &result, why);
	memset(buffer, variant, sizeof(buffer));
	for (unsigned i = 0; i < 6; i++) {
		uint64_t at = i < 3 ? size / 7 * i : tail, length = size - at < 3000 ? size - at : 3000;

		(void)disk_write(disk, at, buffer, length);
		(void)disk->format->zero(disk, at / 2, length, i & 1);
		(void)disk->format->discard(disk, at, length);
		(void)disk_flush(disk);
		(void)disk_write(disk, at, buffer, length);
	}
	if (variant & 8)
		(void)disk->format->resize(disk, size + 100000, why);
	if (variant & 16)
		(void)disk->format->resize(disk, size / 2, why);
	(void)disk->format->check(disk, false, &result, why);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t image[FILE_MAX], after[FILE_MAX];
	char path[64];

	if (!seeds[0].bytes) {
		make_seed(&seeds[0], 512, 100 << 10);
		make_seed(&seeds[1], 4096, 200 << 10);
		make_seed(&seeds[2], 512, 3 << 20);
	}
	if (size < 2)
		return 0;
	const struct seed *seed = &seeds[data[0] % SEEDS];
	size_t length = seed->size;
	check(length <= FILE_MAX, "seed too large");
	memcpy(image, seed->bytes, length);
	mutate(image, length, data + 2, size - 2);
	if (data[1] >> 5 == 7)
		length = length * (data[0] >> 2) / 64;
	int fd = new_file(path);
	check(pwrite(fd, image, length, 0) == (ssize_t)length, "image write");
	struct disk_options options = {
	    .path = path, .format = "qcow2", .readonly = data[1] & 1, .repair = data[1] & 32};
	/* A backing file's name is the image's to choose: not here. */
	memset(image + HEADER_BACKING_OFFSET, 0, 8);
	if (length > 16)
		check(pwrite(fd, image + HEADER_BACKING_OFFSET, 8, HEADER_BACKING_OFFSET) == 8, "image write");
	bool marked = length > 80 && get_be64(image + HEADER_INCOMPATIBLE) & INCOMPATIBLE_DIRTY;
	bool bitmaps = length > 96 && get_be64(image + HEADER_AUTOCLEAR);
	length = (size_t)lseek(fd, 0, SEEK_END);
	struct disk *disk = disk_open(&options);
	if (disk) {
		use(disk, data[1]);
		disk_close(disk);
	} else if (!marked && !bitmaps) {
		check(lseek(fd, 0, SEEK_END) == (off_t)length && pread(fd, after, length, 0) == (ssize_t)length &&
		          memcmp(after, image, length) == 0,
		      "an image that was refused has changed");
	}
	close(fd);
	return 0;
}
