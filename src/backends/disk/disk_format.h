/*
 * Private to backends/disk: the seam between disk.c (requests, threads, overlays) and the formats.
 *
 * All functions here are synchronous and may be called from several threads at once; a format takes its own lock. `map`
 * is the fast path and never blocks.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/disk/disk.h"
#include "backends/disk/host_file.h"

#define DISK_WHY_SIZE 256
#define DISK_HEAD     512 /* bytes that probing looks at */

enum disk_extent_kind {
	DISK_EXTENT_DATA, /* plain bytes at `file_offset` of disk->file */
	DISK_EXTENT_ZERO, /* reads as zeros */
	DISK_EXTENT_HOLE, /* nothing here: the backing image, or zeros */
};

struct disk_extent {
	enum disk_extent_kind kind;
	uint64_t length; /* bytes from the offset asked for */
	uint64_t file_offset;
	unsigned token; /* the format's, from map to unmap */
};

struct disk_check {
	uint64_t errors, leaks, clusters, allocated, fixed;
};

struct disk_format {
	const char *name;
	bool (*probe)(const uint8_t head[DISK_HEAD]);
	int (*open)(struct disk *disk, char *why); /* disk->file is open; sets disk->size and disk->data */
	int (*close)(struct disk *disk);           /* flushes what is the format's; frees disk->data */
	int (*readv)(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
	int (*writev)(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
	int (*flush)(struct disk *disk);
	int (*discard)(struct disk *disk, uint64_t offset, uint64_t length);
	int (*zero)(struct disk *disk, uint64_t offset, uint64_t length, bool may_unmap);
	/*
	 * Where [offset, ...) is now, without blocking; false: ask the slow functions. With `write`, only what may be
	 * overwritten in place. The extent stays where it is until disk_format->unmap is called.
	 */
	bool (*map)(struct disk *disk, uint64_t offset, uint64_t length, bool write, struct disk_extent *extent);
	void (*unmap)(struct disk *disk, const struct disk_extent *extent);
	/* For tools: the kind of the extent at `offset`, may block. */
	int (*extent)(struct disk *disk, uint64_t offset, uint64_t length, struct disk_extent *extent);
	void (*info)(struct disk *disk, struct disk_info *info);
	void (*snapshot)(struct disk *disk, unsigned index, struct disk_snapshot *snapshot); /* NULL: has none ever */
	int (*resize)(struct disk *disk, uint64_t size, char *why);
	int (*check)(struct disk *disk, bool repair, struct disk_check *result, char *why);
	/* A new image in an empty, open file. */
	int (*create)(struct host_file *file, uint64_t size, const char *backing, const char *backing_format,
	              uint32_t cluster_size, char *why);
};

extern const struct disk_format disk_format_raw;
extern const struct disk_format disk_format_qcow2;

struct disk {
	struct disk_options options;
	const struct disk_format *format;
	struct host_file file;
	uint64_t size;
	struct disk *backing;      /* opened read-only; NULL: none */
	void *data;                /* the format's */
	bool probed_raw;           /* format was guessed to be raw: the first sector must not become another format's */
	struct disk_aio *aio;      /* after disk_attach() */
	unsigned depth;            /* of backing images above this one */
	pthread_mutex_t head_lock; /* one write to a probed raw image's head at a time */
	bool head_warned;
	bool threads_only; /* tests: disk_attach() without io_uring */
	/* disk.c's: records of requests, kept for the next ones; and requests without one. */
	struct disk_pending *spare;
	unsigned spare_count;
	struct disk_request *refused;
	bool refusing;
	struct disk_aio_operation *refusal;
};

/* Opens the backing image that `name` (as the image at disk->file.path has it) means. For formats. 0 or -errno. */
int disk_open_backing(struct disk *disk, const char *name, const char *format, char *why);
const struct disk_format *disk_format_find(const char *name); /* NULL: unknown */

/* Synchronous helpers on the whole stack: range-checked against the size; reads beyond the end give zeros (short
 * backing images). */
int disk_readv_stack(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);

/* Parts of an iovec list. `out` has room for `count` entries; returns how many are used. */
unsigned iov_slice(struct iovec *out, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t length);
void iov_zero(const struct iovec *iov, unsigned count);
void iov_from_buffer(const struct iovec *iov, unsigned count, const void *buffer);
void iov_to_buffer(const struct iovec *iov, unsigned count, void *buffer);
uint64_t iov_length(const struct iovec *iov, unsigned count);
