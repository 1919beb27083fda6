/*
 * Raw images: byte n of the disk is byte n of the file. Sparse; discard punches holes.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/disk_format.h"

#define SECTOR 512u

static bool raw_probe(const uint8_t head[DISK_HEAD])
{
	return true;
}

static int raw_open(struct disk *disk, char *why)
{
	int64_t size = host_file_size(&disk->file);

	if (size < 0) {
		snprintf(why, DISK_WHY_SIZE, "%s: size unknown: %s", disk->file.path, strerror((int)-size));
		return (int)size;
	}
	if (disk->options.internal_snapshot) {
		snprintf(why, DISK_WHY_SIZE, "%s: a raw image has no snapshots", disk->file.path);
		return -EINVAL;
	}
	/* A file that ends within a sector: the rest of it reads as zeros, and the first write there extends the file.
	 */
	disk->size = ((uint64_t)size + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
	return 0;
}

static int raw_readv(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	return host_file_readv(&disk->file, offset, iov, count);
}

static int raw_writev(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	return host_file_writev(&disk->file, offset, iov, count);
}

static int raw_flush(struct disk *disk)
{
	return disk->options.cache == DISK_CACHE_UNSAFE ? 0 : host_file_sync(&disk->file);
}

static int raw_close(struct disk *disk)
{
	return disk->file.readonly ? 0 : raw_flush(disk);
}

static int raw_discard(struct disk *disk, uint64_t offset, uint64_t length)
{
	return host_file_discard(&disk->file, offset, length);
}

static int raw_zero(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap)
{
	return host_file_zero(&disk->file, offset, length, may_unmap);
}

static bool raw_map(struct disk *disk, uint64_t offset, uint64_t length, bool write, struct disk_extent *extent)
{
	*extent = (struct disk_extent){.kind = DISK_EXTENT_DATA, .length = length, .file_offset = offset};
	return true;
}

static void raw_unmap(struct disk *disk, const struct disk_extent *extent) {}

static int raw_extent(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *extent)
{
	off_t data = lseek(disk->file.fd, (off_t)offset, SEEK_DATA);

	*extent = (struct disk_extent){.kind = DISK_EXTENT_DATA, .length = length, .file_offset = offset};
	if (data < 0 && errno == ENXIO) {
		extent->kind = DISK_EXTENT_ZERO;
	} else if (data > (off_t)offset) {
		extent->kind = DISK_EXTENT_ZERO;
		if ((uint64_t)data - offset < length)
			extent->length = (uint64_t)data - offset;
	} else if (data == (off_t)offset) {
		off_t hole = lseek(disk->file.fd, (off_t)offset, SEEK_HOLE);

		if (hole > (off_t)offset && (uint64_t)hole - offset < length)
			extent->length = (uint64_t)hole - offset;
	}
	return 0;
}

static void raw_info(struct disk *disk, struct disk_info *info) {}

static int raw_resize(struct disk *disk, uint64_t size, char *why)
{
	int error = host_file_resize(&disk->file, size);

	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, strerror(-error));
	else
		disk->size = size;
	return error;
}

static int raw_check(struct disk *disk, bool repair, struct disk_check *result, char *why)
{
	snprintf(why, DISK_WHY_SIZE, "%s: a raw image has nothing to check", disk->file.path);
	return -EOPNOTSUPP;
}

static int raw_create(struct host_file *file, uint64_t size, const char *backing, const char *backing_format,
                      uint32_t cluster_size, char *why)
{
	if (backing) {
		snprintf(why, DISK_WHY_SIZE, "%s: a raw image cannot have a backing file; use qcow2", file->path);
		return -EINVAL;
	}
	int error = host_file_resize(file, size);
	if (error)
		snprintf(why, DISK_WHY_SIZE, "%s: %s", file->path, strerror(-error));
	return error;
}

const struct disk_format disk_format_raw = {
    .name = "raw",
    .probe = raw_probe,
    .open = raw_open,
    .close = raw_close,
    .readv = raw_readv,
    .writev = raw_writev,
    .flush = raw_flush,
    .discard = raw_discard,
    .zero = raw_zero,
    .map = raw_map,
    .unmap = raw_unmap,
    .extent = raw_extent,
    .info = raw_info,
    .resize = raw_resize,
    .check = raw_check,
    .create = raw_create,
};
