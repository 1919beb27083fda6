/*
 * Disks: opening images with their backing files, and the way of a request: fast path through the format's map straight
 * to asynchronous host I/O, everything else to a pool thread.
 */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backends/disk/disk_aio.h"
#include "backends/disk/disk_format.h"
#include "host/log.h"

#define BACKING_DEPTH_MAX 64u
#define SNAPSHOT_CLUSTER  65536u

/* Every format; the last one takes anything. */
static const struct disk_format *const formats[] = {&disk_format_qcow2, &disk_format_raw};
#define FORMAT_COUNT (sizeof(formats) / sizeof(formats[0]))

const struct disk_format *disk_format_find(const char *name)
{
	for (unsigned i = 0; i < FORMAT_COUNT; i++)
		if (strcmp(formats[i]->name, name) == 0)
			return formats[i];
	return NULL;
}

static int choose_format(struct disk *disk, char *why)
{
	uint8_t head[DISK_HEAD];

	if (disk->options.format) {
		disk->format = disk_format_find(disk->options.format);
		if (disk->format)
			return 0;
		snprintf(why, DISK_WHY_SIZE, "%s: unknown format '%s' (raw, qcow2)", disk->file.path,
		         disk->options.format);
		return -EINVAL;
	}
	int error = host_file_read(&disk->file, 0, head, sizeof(head));
	if (error) {
		snprintf(why, DISK_WHY_SIZE, "%s: %s", disk->file.path, strerror(-error));
		return error;
	}
	for (unsigned i = 0; i < FORMAT_COUNT && !disk->format; i++)
		if (formats[i]->probe(head))
			disk->format = formats[i];
	disk->probed_raw = disk->format == &disk_format_raw;
	return 0;
}

static struct disk *open_one(const struct disk_options *options, unsigned depth, char *why)
{
	struct disk *disk = calloc(1, sizeof(*disk));
	int error = disk ? 0 : -ENOMEM;

	why[0] = '\0';
	if (error)
		return NULL;
	disk->options = *options;
	disk->depth = depth;
	disk->file.fd = -1;
	error = host_file_open(&disk->file, options->path, options->readonly || options->snapshot,
	                       options->cache == DISK_CACHE_NONE, options->no_lock ? HOST_FILE_NO_LOCK : HOST_FILE_LOCK,
	                       why);
	if (!error)
		error = choose_format(disk, why);
	if (!error)
		error = disk->format->open(disk, why);
	if (!error)
		return disk;
	if (!why[0])
		snprintf(why, DISK_WHY_SIZE, "%s: %s", options->path, strerror(-error));
	if (disk->backing)
		disk_close(disk->backing);
	host_file_close(&disk->file);
	free(disk);
	errno = -error;
	return NULL;
}

int disk_open_backing(struct disk *disk, const char *name, const char *format, char *why)
{
	char path[PATH_MAX], folder[PATH_MAX];
	struct disk_options options = {.path = path, .format = format, .readonly = true, .cache = disk->options.cache};

	if (disk->depth + 1 >= BACKING_DEPTH_MAX) {
		snprintf(why, DISK_WHY_SIZE, "%s: more than %u backing files, or a loop", disk->file.path,
		         BACKING_DEPTH_MAX);
		return -ELOOP;
	}
	if (strncmp(name, "file:", 5) == 0)
		name += 5;
	snprintf(folder, sizeof(folder), "%s", disk->file.path);
	int length = name[0] == '/' ? snprintf(path, sizeof(path), "%s", name)
	                            : snprintf(path, sizeof(path), "%s/%s", dirname(folder), name);
	if (length >= (int)sizeof(path)) {
		snprintf(why, DISK_WHY_SIZE, "%s: backing file name too long", disk->file.path);
		return -ENAMETOOLONG;
	}
	disk->backing = open_one(&options, disk->depth + 1, why);
	if (!disk->backing)
		return -errno;
	/* Strings of the options are borrowed only while opening. */
	disk->backing->options.path = disk->backing->file.path;
	disk->backing->options.format = disk->backing->format->name;
	return 0;
}

/* `snapshot`: an unlinked qcow2 in front of the image, which was opened read-only. */
static struct disk *overlay(struct disk *base, char *why)
{
	struct disk *disk = calloc(1, sizeof(*disk));
	int error = disk ? 0 : -ENOMEM;

	if (!error) {
		disk->options = base->options;
		disk->options.cache = DISK_CACHE_UNSAFE; /* it is gone with us anyway */
		disk->format = &disk_format_qcow2;
		error = host_file_open_temporary(&disk->file, why);
	}
	if (!error)
		error = disk->format->create(&disk->file, base->size, NULL, NULL, SNAPSHOT_CLUSTER, why);
	if (!error)
		error = disk->format->open(disk, why);
	if (error) {
		if (!why[0])
			snprintf(why, DISK_WHY_SIZE, "%s: no temporary overlay: %s", base->options.path,
			         strerror(-error));
		if (disk)
			host_file_close(&disk->file);
		free(disk);
		disk_close(base);
		return NULL;
	}
	disk->backing = base;
	return disk;
}

struct disk *disk_open(const struct disk_options *options)
{
	char why[DISK_WHY_SIZE] = "";
	struct disk *disk = open_one(options, 0, why);

	if (disk && options->snapshot && !options->readonly)
		disk = overlay(disk, why);
	if (!disk)
		log_error("%s", why[0] ? why : "out of memory");
	else if (disk->probed_raw && !disk->file.readonly)
		log_warning("%s: taken as raw; writes that would make it look like another format are refused. Say "
		            "format=raw to allow them",
		            options->path);
	return disk;
}

int disk_close(struct disk *disk)
{
	if (!disk)
		return 0;
	if (disk->aio)
		disk_aio_destroy(disk->aio);
	int error = disk->format->close(disk);
	if (error)
		log_error("%s: not all could be written: %s", disk->file.path, strerror(-error));
	disk_close(disk->backing);
	host_file_close(&disk->file);
	free(disk);
	return error;
}

uint64_t disk_size(const struct disk *disk)
{
	return disk->size;
}

void disk_info(struct disk *disk, struct disk_info *info)
{
	struct stat stat;

	memset(info, 0, sizeof(*info));
	info->format = disk->format->name;
	info->size = disk->size;
	info->readonly = disk->file.readonly;
	if (fstat(disk->file.fd, &stat) == 0)
		info->allocated = (uint64_t)stat.st_blocks * 512;
	disk->format->info(disk, info);
}

int disk_readv_stack(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t length = iov_length(iov, count);

	if (offset >= disk->size) {
		iov_zero(iov, count);
		return 0;
	}
	if (length <= disk->size - offset)
		return disk->format->readv(disk, offset, iov, count);
	/* The end of a backing image that is shorter than what stands on it. */
	uint64_t inside = disk->size - offset;
	struct iovec *part = malloc(count * sizeof(*part));
	if (!part)
		return -ENOMEM;
	unsigned parts = iov_slice(part, iov, count, 0, inside);
	int error = disk->format->readv(disk, offset, part, parts);
	parts = iov_slice(part, iov, count, inside, length - inside);
	iov_zero(part, parts);
	free(part);
	return error;
}

/* A guest of an image that was guessed to be raw must not turn it into something that is probed as another format next
 * time. */
static bool would_change_format(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint8_t head[DISK_HEAD];
	struct iovec *part;
	bool changes = false;

	if (!disk->probed_raw || offset >= DISK_HEAD)
		return false;
	uint64_t length = iov_length(iov, count);
	if (length > DISK_HEAD - offset)
		length = DISK_HEAD - offset;
	part = malloc(count * sizeof(*part));
	if (!part || host_file_read(&disk->file, 0, head, sizeof(head))) {
		free(part);
		return true;
	}
	iov_to_buffer(part, iov_slice(part, iov, count, 0, length), head + offset);
	for (unsigned i = 0; i < FORMAT_COUNT; i++)
		if (formats[i] != &disk_format_raw && formats[i]->probe(head))
			changes = true;
	free(part);
	if (changes)
		log_warning("%s: refused a write that would make this raw image look like another format",
		            disk->file.path);
	return changes;
}

static int write_checked(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	if (disk->file.readonly)
		return -EROFS;
	if (would_change_format(disk, offset, iov, count))
		return -EPERM;
	int error = disk->format->writev(disk, offset, iov, count);
	if (!error && disk->options.cache == DISK_CACHE_WRITETHROUGH)
		error = disk->format->flush(disk);
	return error;
}

static bool in_range(const struct disk *disk, uint64_t offset, uint64_t length)
{
	return offset <= disk->size && length <= disk->size - offset;
}

int disk_read(struct disk *disk, uint64_t offset, void *buffer, uint64_t length)
{
	struct iovec iov = {buffer, length};

	return in_range(disk, offset, length) ? disk_readv_stack(disk, offset, &iov, 1) : -EINVAL;
}

int disk_write(struct disk *disk, uint64_t offset, const void *buffer, uint64_t length)
{
	struct iovec iov = {(void *)(uintptr_t)buffer, length};

	return in_range(disk, offset, length) ? write_checked(disk, offset, &iov, 1) : -EINVAL;
}

int disk_flush(struct disk *disk)
{
	return disk->file.readonly ? 0 : disk->format->flush(disk);
}

/* ---- asynchronous requests ---- */

struct pending {
	struct disk_aio_operation operation; /* first */
	struct disk *disk;
	struct disk_request *request;
	struct disk_extent extent;
	bool mapped;
	int result;
	struct iovec iov[]; /* the operation's own copy */
};

int disk_attach(struct disk *disk, struct event_loop *loop)
{
	disk->aio = disk_aio_create(loop, false);
	return disk->aio ? 0 : -errno;
}

static void pending_done(struct disk_aio_operation *operation, int error)
{
	struct pending *pending = (struct pending *)operation;
	struct disk_request *request = pending->request;

	if (pending->mapped)
		pending->disk->format->unmap(pending->disk, &pending->extent);
	free(pending);
	request->done(request, error);
}

/* On a pool thread: any request, the blocking way. */
static int run_request(struct disk_aio_operation *operation)
{
	struct pending *pending = (struct pending *)operation;
	struct disk *disk = pending->disk;
	struct disk_request *request = pending->request;

	if (pending->result)
		return pending->result;
	switch (request->operation) {
	case DISK_READ:
		return disk_readv_stack(disk, request->offset, request->iov, request->iov_count);
	case DISK_WRITE:
		return write_checked(disk, request->offset, request->iov, request->iov_count);
	case DISK_FLUSH:
		return disk_flush(disk);
	case DISK_DISCARD:
		return disk->file.readonly ? -EROFS : disk->format->discard(disk, request->offset, request->length);
	case DISK_WRITE_ZEROES:
		return disk->file.readonly
		           ? -EROFS
		           : disk->format->zero(disk, request->offset, request->length, request->may_unmap);
	}
	return -EINVAL;
}

static int validate(const struct disk *disk, const struct disk_request *request)
{
	if (request->operation == DISK_FLUSH)
		return 0;
	if (!in_range(disk, request->offset, request->length))
		return -EINVAL;
	if ((request->operation == DISK_READ || request->operation == DISK_WRITE) &&
	    iov_length(request->iov, request->iov_count) != request->length)
		return -EINVAL;
	return 0;
}

/* Can the whole request go straight to the file? Then the operation is set up. */
static bool take_fast_path(struct disk *disk, struct pending *pending)
{
	struct disk_request *request = pending->request;
	bool write = request->operation == DISK_WRITE;

	if (request->operation != DISK_READ && !write)
		return false;
	if (request->length == 0)
		return false;
	if (write && (disk->file.readonly || disk->options.cache == DISK_CACHE_WRITETHROUGH ||
	              (disk->probed_raw && request->offset < DISK_HEAD)))
		return false;
	if (!disk->format->map(disk, request->offset, request->length, write, &pending->extent))
		return false;
	if (pending->extent.kind != DISK_EXTENT_DATA || pending->extent.length < request->length) {
		disk->format->unmap(disk, &pending->extent);
		return false;
	}
	pending->mapped = true;
	pending->operation.kind = write ? AIO_WRITE : AIO_READ;
	pending->operation.file = &disk->file;
	pending->operation.offset = pending->extent.file_offset;
	pending->operation.iov = pending->iov;
	pending->operation.iov_count = request->iov_count;
	memcpy(pending->iov, request->iov, request->iov_count * sizeof(*request->iov));
	return true;
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
	unsigned iov_count = request->iov ? request->iov_count : 0;
	struct pending *pending = calloc(1, sizeof(*pending) + iov_count * sizeof(struct iovec));

	if (!pending) {
		request->done(request, -ENOMEM);
		return;
	}
	pending->disk = disk;
	pending->request = request;
	pending->operation.done = pending_done;
	pending->result = validate(disk, request);
	if (pending->result || !take_fast_path(disk, pending)) {
		pending->operation.kind = AIO_CALL;
		pending->operation.call = run_request;
	}
	disk_aio_submit(disk->aio, &pending->operation);
}

/* ---- iovec lists ---- */

uint64_t iov_length(const struct iovec *iov, unsigned count)
{
	uint64_t length = 0;

	for (unsigned i = 0; i < count; i++)
		length += iov[i].iov_len;
	return length;
}

unsigned iov_slice(struct iovec *out, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t length)
{
	unsigned used = 0;

	for (unsigned i = 0; i < count && length; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		uint64_t part = iov[i].iov_len - skip;
		if (part > length)
			part = length;
		out[used++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, part};
		length -= part;
		skip = 0;
	}
	return used;
}

void iov_zero(const struct iovec *iov, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		memset(iov[i].iov_base, 0, iov[i].iov_len);
}

void iov_from_buffer(const struct iovec *iov, unsigned count, const void *buffer)
{
	const uint8_t *bytes = buffer;

	for (unsigned i = 0; i < count; bytes += iov[i++].iov_len)
		memcpy(iov[i].iov_base, bytes, iov[i].iov_len);
}

void iov_to_buffer(const struct iovec *iov, unsigned count, void *buffer)
{
	uint8_t *bytes = buffer;

	for (unsigned i = 0; i < count; bytes += iov[i++].iov_len)
		memcpy(bytes, iov[i].iov_base, iov[i].iov_len);
}
