/*
 * Host files under disk images. See host_file.h.
 */
#include "backends/disk/host_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHY_SIZE     256
#define DIRECT_ALIGN 4096u /* enough for every device */
#define BOUNCE_MAX   (1u << 20)

/* QEMU's image locking: permission n is taken by a read lock on byte 100 + n, denied to others by one on byte 200 + n.
 */
#define BYTE_PERMISSION   100
#define BYTE_NOT_SHARED   200
#define PERMISSION_READ   0
#define PERMISSION_WRITE  1
#define PERMISSION_RESIZE 3

static ssize_t system_preadv(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	return preadv(file->fd, iov, count, offset);
}

static ssize_t system_pwritev(struct host_file *file, const struct iovec *iov, int count, off_t offset)
{
	return pwritev(file->fd, iov, count, offset);
}

static int system_fdatasync(struct host_file *file)
{
	return fdatasync(file->fd);
}

static int system_fallocate(struct host_file *file, int mode, off_t offset, off_t length)
{
	return fallocate(file->fd, mode, offset, length);
}

static int system_ftruncate(struct host_file *file, off_t length)
{
	return ftruncate(file->fd, length);
}

const struct host_file_ops host_file_system_ops = {
    .preadv = system_preadv,
    .pwritev = system_pwritev,
    .fdatasync = system_fdatasync,
    .fallocate = system_fallocate,
    .ftruncate = system_ftruncate,
};

static int lock_byte(int fd, short type, off_t byte)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Does another open file description hold this byte? */
static bool byte_taken(int fd, off_t byte)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int lock_image(struct host_file *file, char *why)
{
	static const int exclusive[] = {PERMISSION_WRITE, PERMISSION_RESIZE};
	int error = lock_byte(file->fd, F_RDLCK, BYTE_PERMISSION + PERMISSION_READ);

	/* File systems without locks are used without them, as other tools do. */
	if (error == -EINVAL || error == -ENOLCK || error == -EOPNOTSUPP)
		return 0;
	for (unsigned i = 0; !error && i < 2; i++) {
		if (!file->readonly)
			error = lock_byte(file->fd, F_RDLCK, BYTE_PERMISSION + exclusive[i]);
		if (!error)
			error = lock_byte(file->fd, F_RDLCK, BYTE_NOT_SHARED + exclusive[i]);
	}
	bool taken = error != 0 || byte_taken(file->fd, BYTE_NOT_SHARED + PERMISSION_READ);
	for (unsigned i = 0; !taken && i < 2; i++) {
		/* Somebody writes, or (when we want to write) somebody relies on nobody writing. */
		taken = byte_taken(file->fd, BYTE_PERMISSION + exclusive[i]) ||
		        (!file->readonly && byte_taken(file->fd, BYTE_NOT_SHARED + exclusive[i]));
	}
	if (!taken)
		return 0;
	snprintf(why, WHY_SIZE,
	         "%s: in use by another process (image lock); stop it, or open the image readonly there and here",
	         file->path);
	return -EBUSY;
}

/* O_DIRECT wants multiples of the device's logical block: 512 where a read of that size at an odd sector works. */
static unsigned find_align(int fd)
{
	unsigned align = DIRECT_ALIGN;
	uint8_t *buffer;

	if (posix_memalign((void **)&buffer, DIRECT_ALIGN, DIRECT_ALIGN))
		return align;
	if (pread(fd, buffer + 512, 512, 512) == 512)
		align = 512;
	free(buffer);
	return align;
}

int host_file_open(struct host_file *file, const char *path, bool readonly, bool direct, enum host_file_lock lock,
                   char *why)
{
	struct stat stat;
	int flags = (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (direct ? O_DIRECT : 0);

	memset(file, 0, sizeof(*file));
	file->readonly = readonly;
	file->ops = &host_file_system_ops;
	file->align = 1;
	pthread_mutex_init(&file->bounce_lock, NULL);
	file->path = strdup(path);
	file->fd = open(path, flags);
	if (file->fd < 0 && direct && errno == EINVAL) { /* tmpfs and friends: no O_DIRECT there */
		direct = false;
		file->fd = open(path, flags & ~O_DIRECT);
	}
	int error = -errno;
	if (!file->path || file->fd < 0) {
		snprintf(why, WHY_SIZE, "%s: %s", path, file->path ? strerror(-error) : "out of memory");
		error = file->path ? error : -ENOMEM;
		goto fail;
	}
	if (fstat(file->fd, &stat) < 0 || (!S_ISREG(stat.st_mode) && !S_ISBLK(stat.st_mode))) {
		snprintf(why, WHY_SIZE, "%s: neither a file nor a block device", path);
		error = -EINVAL;
		goto fail;
	}
	if (direct)
		file->align = find_align(file->fd);
	error = lock == HOST_FILE_LOCK ? lock_image(file, why) : 0;
	if (!error)
		return 0;
fail:
	host_file_close(file);
	return error;
}

int host_file_open_temporary(struct host_file *file, char *why)
{
	const char *folder = getenv("TMPDIR");

	memset(file, 0, sizeof(*file));
	file->ops = &host_file_system_ops;
	file->align = 1;
	pthread_mutex_init(&file->bounce_lock, NULL);
	if (!folder || !*folder)
		folder = "/var/tmp";
	file->path = strdup(folder);
	file->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (file->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		char name[PATH_MAX];

		snprintf(name, sizeof(name), "%s/ring3-XXXXXX", folder);
		file->fd = mkostemp(name, O_CLOEXEC);
		if (file->fd >= 0)
			unlink(name);
	}
	if (file->fd >= 0 && file->path)
		return 0;
	int error = -errno;
	snprintf(why, WHY_SIZE, "%s: no temporary file: %s", folder, strerror(-error));
	host_file_close(file);
	return error;
}

void host_file_close(struct host_file *file)
{
	if (file->path || file->fd >= 0)
		pthread_mutex_destroy(&file->bounce_lock);
	if (file->fd >= 0)
		close(file->fd);
	free(file->path);
	file->path = NULL;
	file->fd = -1;
}

/* Skips `done` bytes of an iovec list that is ours to change. */
static void iov_advance(struct iovec **iov, unsigned *count, size_t done)
{
	while (*count && done >= (*iov)->iov_len) {
		done -= (*iov)->iov_len;
		++*iov;
		--*count;
	}
	if (*count) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + done;
		(*iov)->iov_len -= done;
	}
}

bool host_file_is_aligned(const struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t bits = offset;

	for (unsigned i = 0; file->align > 1 && i < count; i++)
		bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return !(bits & (file->align - 1));
}

/* The loop under reads and writes: carries on after EINTR and short transfers; reading stops with zeros at the end of
 * the file. */
static int transfer_list(struct host_file *file, uint64_t offset, struct iovec *iov, unsigned count, bool write)
{
	while (count && iov->iov_len == 0)
		iov_advance(&iov, &count, 0);
	while (count) {
		int batch = count < IOV_MAX ? (int)count : IOV_MAX;
		ssize_t done = write ? file->ops->pwritev(file, iov, batch, (off_t)offset)
		                     : file->ops->preadv(file, iov, batch, (off_t)offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		if (done == 0 && write)
			return -ENOSPC;
		offset += (uint64_t)done;
		iov_advance(&iov, &count, (size_t)done);
		/* The end of the file; with O_DIRECT one within a block cannot be asked for again. */
		if (done == 0 || (!write && (uint64_t)done & (file->align - 1))) {
			for (; count; iov++, count--)
				memset(iov->iov_base, 0, iov->iov_len);
			return 0;
		}
	}
	return 0;
}

/* The part of a bounced transfer that fits the buffer: whole blocks are read, changed, written back. */
static int bounce_part(struct host_file *file, uint64_t start, uint64_t skip, uint8_t *bounce, uint8_t *buffer,
                       uint64_t part, bool write)
{
	uint64_t whole = (skip + part + file->align - 1) & ~(uint64_t)(file->align - 1);
	struct iovec iov = {bounce, whole};
	int error = 0;

	if (!write || skip || part != whole)
		error = transfer_list(file, start, &iov, 1, false);
	if (error)
		return error;
	if (!write) {
		memcpy(buffer, bounce + skip, part);
		return 0;
	}
	int64_t size = part == whole ? 0 : host_file_size(file);
	memcpy(bounce + skip, buffer, part);
	iov = (struct iovec){bounce, whole};
	error = transfer_list(file, start, &iov, 1, true);
	/* A block that reaches behind the end has made the file longer than was asked for. */
	if (!error && size > 0 && start + whole > (uint64_t)size && start + skip + part < start + whole)
		error =
		    host_file_resize(file, start + skip + part > (uint64_t)size ? start + skip + part : (uint64_t)size);
	return error;
}

/* O_DIRECT with a buffer or a range that is not aligned. Other writes to the same block wait, or one of the two would be lost. */
static int transfer_bounced(struct host_file *file, uint64_t offset, uint8_t *buffer, uint64_t length, bool write)
{
	uint8_t *bounce = NULL;
	int error = 0;

	if (posix_memalign((void **)&bounce, DIRECT_ALIGN, BOUNCE_MAX))
		return -ENOMEM;
	if (write)
		pthread_mutex_lock(&file->bounce_lock);
	while (length && !error) {
		uint64_t start = offset & ~(uint64_t)(file->align - 1), skip = offset - start;
		uint64_t part = length < BOUNCE_MAX - skip ? length : BOUNCE_MAX - skip;

		error = bounce_part(file, start, skip, bounce, buffer, part, write);
		offset += part;
		buffer += part;
		length -= part;
	}
	if (write)
		pthread_mutex_unlock(&file->bounce_lock);
	free(bounce);
	return error;
}

static int transfer(struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count, bool write)
{
	int error = 0;

	if (!host_file_is_aligned(file, offset, iov, count)) {
		for (unsigned i = 0; i < count && !error; i++) {
			error = transfer_bounced(file, offset, iov[i].iov_base, iov[i].iov_len, write);
			offset += iov[i].iov_len;
		}
		return error;
	}
	struct iovec small[16];
	struct iovec *copy = count <= 16 ? small : malloc(count * sizeof(*copy));
	if (!copy)
		return -ENOMEM;
	memcpy(copy, iov, count * sizeof(*copy));
	error = transfer_list(file, offset, copy, count, write);
	if (copy != small)
		free(copy);
	return error;
}

int host_file_readv(struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count)
{
	return transfer(file, offset, iov, count, false);
}

int host_file_writev(struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count)
{
	return transfer(file, offset, iov, count, true);
}

int host_file_read(struct host_file *file, uint64_t offset, void *buffer, uint64_t length)
{
	struct iovec iov = {buffer, length};

	return transfer(file, offset, &iov, 1, false);
}

int host_file_write(struct host_file *file, uint64_t offset, const void *buffer, uint64_t length)
{
	struct iovec iov = {(void *)(uintptr_t)buffer, length};

	return transfer(file, offset, &iov, 1, true);
}

/*
 * After a failed fsync the kernel may have dropped the dirty pages: a later one that succeeds proves nothing. So the
 * first error stays.
 */
int host_file_sync(struct host_file *file)
{
	int error = atomic_load(&file->sync_error);

	if (error)
		return error;
	while (file->ops->fdatasync(file) < 0) {
		if (errno == EINTR)
			continue;
		error = -errno;
		atomic_store(&file->sync_error, error);
		return error;
	}
	return 0;
}

static int write_zeros(struct host_file *file, uint64_t offset, uint64_t length)
{
	size_t size = length < BOUNCE_MAX ? length : BOUNCE_MAX;
	uint8_t *zeros = calloc(1, size);
	int error = zeros ? 0 : -ENOMEM;

	while (length && !error) {
		uint64_t part = length < size ? length : size;

		error = host_file_write(file, offset, zeros, part);
		offset += part;
		length -= part;
	}
	free(zeros);
	return error;
}

static int try_fallocate(struct host_file *file, int mode, uint64_t offset, uint64_t length)
{
	while (file->ops->fallocate(file, mode, (off_t)offset, (off_t)length) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

static bool is_unsupported(int error)
{
	return error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL || error == -ENODEV || error == -EPERM;
}

int host_file_zero(struct host_file *file, uint64_t offset, uint64_t length, bool may_unmap)
{
	if (length == 0)
		return 0;
	int mode = may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
	int error = try_fallocate(file, mode | FALLOC_FL_KEEP_SIZE, offset, length);

	return is_unsupported(error) ? write_zeros(file, offset, length) : error;
}

int host_file_discard(struct host_file *file, uint64_t offset, uint64_t length)
{
	int error = length ? try_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) : 0;

	return is_unsupported(error) ? 0 : error;
}

int host_file_resize(struct host_file *file, uint64_t size)
{
	while (file->ops->ftruncate(file, (off_t)size) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int64_t host_file_size(struct host_file *file)
{
	struct stat stat;

	if (fstat(file->fd, &stat) < 0)
		return -errno;
	if (S_ISBLK(stat.st_mode)) {
		uint64_t bytes;

		return ioctl(file->fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
	}
	return stat.st_size;
}
