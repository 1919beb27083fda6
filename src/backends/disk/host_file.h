/*
 * A host file under a disk image: positioned I/O that is all or error, and the locks against a second writer.
 *
 * Every system call goes through `ops`, so that tests can inject EIO, ENOSPC, EINTR and short transfers, and log what
 * would reach the disk. Calls may be made from several threads at a time.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct host_file;

struct host_file_ops {
	ssize_t (*preadv)(struct host_file *file, const struct iovec *iov, int count, off_t offset);
	ssize_t (*pwritev)(struct host_file *file, const struct iovec *iov, int count, off_t offset);
	int (*fdatasync)(struct host_file *file);
	int (*fallocate)(struct host_file *file, int mode, off_t offset, off_t length);
	int (*ftruncate)(struct host_file *file, off_t length);
};

extern const struct host_file_ops host_file_system_ops;

struct host_file {
	int fd;
	char *path;
	bool readonly;
	unsigned
	    align; /* O_DIRECT: of offsets, lengths and buffers; what is not aligned goes through a buffer. 1: not O_DIRECT */
	pthread_mutex_t bounce_lock; /* one read-modify-write of a block at a time */
	const struct host_file_ops *ops;
	void *hook;             /* for ops of tests */
	_Atomic int sync_error; /* a failed fdatasync stays failed (-errno), 0 while all is well */
};

enum host_file_lock { HOST_FILE_NO_LOCK, HOST_FILE_LOCK };

/*
 * Opens and locks. 0 or -errno; `why` (256 bytes) receives one line that names the file, also for a directory, a socket
 * and the like. The locks are open file description locks on the bytes that QEMU's tools use (100 + permission, 200 +
 * not shared), so that each honours the other's.
 */
int host_file_open(struct host_file *file, const char *path, bool readonly, bool direct, enum host_file_lock lock,
                   char *why);
/* An unlinked temporary file in $TMPDIR or /var/tmp. */
int host_file_open_temporary(struct host_file *file, char *why);
void host_file_close(struct host_file *file);

/* Can the kernel take this as it is? (False: only with O_DIRECT.) */
bool host_file_is_aligned(const struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count);
/* All of it, or -errno; reading behind the end of the file gives zeros. EINTR and short transfers are carried on. */
int host_file_read(struct host_file *file, uint64_t offset, void *buffer, uint64_t length);
int host_file_write(struct host_file *file, uint64_t offset, const void *buffer, uint64_t length);
int host_file_readv(struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count);
int host_file_writev(struct host_file *file, uint64_t offset, const struct iovec *iov, unsigned count);
int host_file_sync(struct host_file *file);
/* Makes a hole; where the host cannot, writes zeros. The size stays. */
int host_file_zero(struct host_file *file, uint64_t offset, uint64_t length, bool may_unmap);
/* Gives the space back if the host can; what is read there afterwards is zeros or the old bytes. */
int host_file_discard(struct host_file *file, uint64_t offset, uint64_t length);
int host_file_resize(struct host_file *file, uint64_t size);
/* Bytes in the file (or block device), -errno when it cannot be told. */
int64_t host_file_size(struct host_file *file);
