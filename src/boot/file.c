/* Files for the loaders: see file.h. */
#include "boot/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot/boot.h"

/* A pipe or device: its length is known when it ends. */
static int read_stream(struct boot_file *file, uint64_t limit)
{
	uint8_t *data = NULL;
	uint64_t size = 0, capacity = 0;
	int error = 0;

	for (;;) {
		if (size == capacity) {
			if (size > limit) {
				error = -EFBIG;
				break;
			}
			capacity = capacity ? capacity * 2 : 1u << 20;
			uint8_t *larger = realloc(data, capacity);
			if (!larger) {
				error = -ENOMEM;
				break;
			}
			data = larger;
		}
		ssize_t got = read(file->fd, data + size, capacity - size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			error = -errno;
		if (got <= 0)
			break;
		size += (uint64_t)got;
	}
	close(file->fd);
	file->fd = -1;
	if (error) {
		free(data);
		return error;
	}
	file->data = file->owned = data;
	file->size = size;
	return 0;
}

int boot_file_open(struct boot_file *file, const char *name, uint64_t limit, char *why)
{
	struct stat status;
	int error;

	memset(file, 0, sizeof(*file));
	file->name = name;
	file->fd = open(name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (file->fd < 0) {
		error = -errno;
		goto failed;
	}
	if (fstat(file->fd, &status) < 0) {
		error = -errno;
	} else if (S_ISDIR(status.st_mode)) {
		error = -EISDIR;
	} else if (S_ISREG(status.st_mode)) {
		file->size = (uint64_t)status.st_size;
		return 0;
	} else {
		error = read_stream(file, limit);
	}
	if (!error)
		return 0;
	if (file->fd >= 0)
		close(file->fd);
failed:
	file->fd = -1;
	file->size = 0;
	snprintf(why, BOOT_WHY_SIZE, "%s: %s", name,
	         error == -EFBIG ? "does not fit in the machine's memory" : strerror(-error));
	return error;
}

void boot_file_from_memory(struct boot_file *file, const char *name, const void *data, uint64_t size)
{
	memset(file, 0, sizeof(*file));
	file->name = name;
	file->fd = -1;
	file->data = data;
	file->size = size;
}

void boot_file_close(struct boot_file *file)
{
	if (file->fd >= 0)
		close(file->fd);
	free(file->owned);
	memset(file, 0, sizeof(*file));
	file->fd = -1;
}

bool boot_file_has(const struct boot_file *file, uint64_t offset, uint64_t length)
{
	return offset <= file->size && length <= file->size - offset;
}

int boot_file_read(const struct boot_file *file, uint64_t offset, void *buffer, uint64_t length)
{
	uint8_t *to = buffer;

	if (!boot_file_has(file, offset, length))
		return -EINVAL;
	if (file->fd < 0) {
		if (length)
			memcpy(to, file->data + offset, length);
		return 0;
	}
	while (length) {
		size_t part = length < (1u << 30) ? length : 1u << 30;
		ssize_t got = pread(file->fd, to, part, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0) /* it was cut while we read it */
			return -EINVAL;
		to += got;
		offset += (uint64_t)got;
		length -= (uint64_t)got;
	}
	return 0;
}
