/*
 * Disk images: what a block device stands on. A disk is an array of bytes with asynchronous requests; formats (raw,
 * qcow2) are one `const struct disk_format` each, explicit list in disk.c.
 *
 * Threads: a disk belongs to one event loop's thread (its device's I/O thread); disk_submit() is called there and
 * `done` comes back there, never from inside disk_submit(). Many requests may be in flight and complete in any order; a
 * flush covers what had completed before it was submitted.
 *
 * Errors: a host error (EIO, ENOSPC, short transfer) reaches `done` as -errno, never as success. A failed fdatasync
 * stays failed: all later flushes fail with -EIO.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct disk;
struct event_loop;

enum disk_cache { DISK_CACHE_WRITEBACK, DISK_CACHE_WRITETHROUGH, DISK_CACHE_NONE, DISK_CACHE_UNSAFE };

struct disk_options {
	const char *path;
	const char *format; /* "raw", "qcow2", or NULL: probed, and then writes that would turn a raw image into another
	                       format are refused */
	bool readonly;
	bool snapshot; /* writes go to an unlinked temporary overlay */
	enum disk_cache cache;
	bool no_lock; /* image tools on a read-only source */
	const char *
	    internal_snapshot; /* read-only: what the image held in this one of its own snapshots (name or id); NULL: now */
	bool quiet;            /* image tools: no warning that a probed raw image is guarded */
	bool repair;           /* image tools: opens a qcow2 image for writing that is marked corrupt */
};

enum disk_operation { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES };

struct disk_request {
	enum disk_operation operation;
	uint64_t offset, length; /* bytes; length is the sum of the iovecs for READ and WRITE */
	struct iovec *iov;       /* borrowed until done */
	unsigned iov_count;
	bool may_unmap;                                        /* WRITE_ZEROES: holes are fine */
	void (*done)(struct disk_request *request, int error); /* 0 or -errno */
	void *owner;
	void *private_next; /* the disk's own while in flight */
};

struct disk_info {
	const char *format;
	uint64_t size;         /* virtual bytes */
	uint64_t allocated;    /* bytes on the host */
	uint32_t cluster_size; /* 0: none */
	bool readonly, dirty, corrupt;
	const char *backing; /* NULL or the name in the image */
	unsigned snapshots;  /* internal ones: disk_snapshot() */
};

struct disk_snapshot {
	const char *id, *name;
	uint64_t seconds; /* since 1970 */
	uint64_t size;    /* of the disk then; 0: not recorded */
};

/* NULL after one logged line ("disk.qcow2: not a qcow2 image (bad magic)"). */
struct disk *disk_open(const struct disk_options *options);
int disk_attach(struct disk *disk, struct event_loop *loop); /* 0 or -errno: from now on disk_submit() may be used */
void disk_submit(struct disk *disk, struct disk_request *request);
/* Waits until nothing is in flight; completions run in it. The loop's thread, or with the loop stopped. */
void disk_drain(struct disk *disk);
/* Waits until nothing is in flight, flushes, writes the format's metadata, unlocks. 0 or -errno (logged). */
int disk_close(struct disk *disk);
uint64_t disk_size(const struct disk *disk);
void disk_snapshot(struct disk *disk, unsigned index, struct disk_snapshot *snapshot); /* index < disk_info.snapshots */
void disk_info(struct disk *disk, struct disk_info *info);
/* Synchronous, for tools and readers; not while attached. 0 or -errno. */
int disk_read(struct disk *disk, uint64_t offset, void *buffer, uint64_t length);
int disk_write(struct disk *disk, uint64_t offset, const void *buffer, uint64_t length);
int disk_flush(struct disk *disk);
