/*
 * What image tools do beside reading and writing (disk.h): new images, conversion, checks, other sizes. Synchronous; every failure has
 * logged one line when the function returns -errno.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "backends/disk/disk.h"

struct disk_new {
	const char *path;
	const char *format; /* "raw", "qcow2" */
	uint64_t size;      /* bytes */
	const char *backing,
	    *backing_format;   /* NULL: none. The name as it goes into the image: relative to the image's folder */
	uint32_t cluster_size; /* 0: the default */
	bool force;            /* a file of that name may be replaced */
};

struct disk_check_result {
	uint64_t errors, leaks, fixed; /* clusters and flags; with repair errors and leaks are 0 */
	uint64_t clusters, allocated;  /* of the guest's disk */
};

struct disk_progress {
	void (*report)(void *owner, uint64_t done, uint64_t total); /* NULL: none */
	void *owner;
};

/* The file appears under its name when it is complete and on the disk; nothing is left behind on failure. */
int disk_create(const struct disk_new *options);
/* A new image (`size` is ignored: the source's) with the source's content, sparse. */
int disk_convert(struct disk *source, const struct disk_new *options, const struct disk_progress *progress);
/* qcow2 only. An image that is marked corrupt is repaired when it was opened with `repair`. */
int disk_check(struct disk *disk, bool repair, struct disk_check_result *result);
int disk_resize(struct disk *disk, uint64_t size);
