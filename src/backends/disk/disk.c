/*
 * Disks: opening images with their backing files, and the way of a request: fast path through the format's map straight
 * to asynchronous host I/O, everything else to a pool thread.
 */
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
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

#define PENDING_IOV 34u /* of a request whose record is kept for the next one */
#define SPARE_MAX   64u

struct disk_pending {
	struct disk_aio_operation operation; /* first */
	struct disk *disk;
	struct disk_request *request;
	struct disk_extent extent;
	bool mapped;
	int result;
	struct disk_pending *next_spare;
	unsigned iov_room;
	struct iovec iov[]; /* the operation's own copy */
};

static struct disk *disk_allocate(void)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	if (disk) {
		disk->file.fd = -1;
		pthread_mutex_init(&disk->head_lock, NULL);
	}
	return disk;
}

static void disk_free(struct disk *disk)
{
	struct disk_pending *next;

	for (struct disk_pending *spare = disk->spare; spare; spare = next) {
		next = spare->next_spare;
		free(spare);
	}
	free(disk->refusal);
	pthread_mutex_destroy(&disk->head_lock);
	host_file_close(&disk->file);
	free(disk);
}

static struct disk *open_one(const struct disk_options *options, unsigned depth, char *why)
{
	struct disk *disk = disk_allocate();
	int error = disk ? 0 : -ENOMEM;

	why[0] = '\0';
	if (error)
		return NULL;
	disk->options = *options;
	disk->depth = depth;
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
	disk_free(disk);
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
	if (strncmp(name, "json:", 5) == 0 || strstr(name, "://")) {
		snprintf(why, DISK_WHY_SIZE, "%s: backing file '%.100s' is not a plain file", disk->file.path, name);
		return -EINVAL;
	}
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
	if (!format && disk->backing->backing) {
		/* A raw guest could have written that into its disk, and would read any file of the host's through it. */
		snprintf(why, DISK_WHY_SIZE,
		         "%s: does not say its backing file's format, which has a backing file itself; see qemu-img "
		         "rebase -u -F",
		         disk->file.path);
		return -EPERM;
	}
	/* Strings of the options are borrowed only while opening. */
	disk->backing->options.path = disk->backing->file.path;
	disk->backing->options.format = disk->backing->format->name;
	return 0;
}

/* `snapshot`: an unlinked qcow2 in front of the image, which was opened read-only. */
static struct disk *overlay(struct disk *base, char *why)
{
	struct disk *disk = disk_allocate();
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
			disk_free(disk);
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
	for (char *at = why; *at; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?'; /* names in an image may be meant for the terminal */
	if (!disk)
		log_error("%s", why[0] ? why : "out of memory");
	else if (disk->probed_raw && !disk->file.readonly && !options->quiet)
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
	disk_free(disk);
	return error;
}

void disk_drain(struct disk *disk)
{
	if (disk->aio)
		disk_aio_drain(disk->aio);
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

void disk_snapshot(struct disk *disk, unsigned index, struct disk_snapshot *snapshot)
{
	disk->format->snapshot(disk, index, snapshot);
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

static bool looks_like_another_format(const uint8_t head[DISK_HEAD])
{
	for (unsigned i = 0; i < FORMAT_COUNT; i++)
		if (formats[i] != &disk_format_raw && formats[i]->probe(head))
			return true;
	return false;
}

/*
 * A guest of an image that was guessed to be raw must not turn it into something that is probed as another format next time. What is
 * checked is a copy, and the copy is written: the guest may change its memory meanwhile.
 */
static int write_head(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t length)
{
	uint8_t head[DISK_HEAD];
	struct iovec *part = malloc(count * sizeof(*part));

	if (!part)
		return -ENOMEM;
	pthread_mutex_lock(&disk->head_lock);
	int error = host_file_read(&disk->file, 0, head, sizeof(head));
	if (!error) {
		iov_to_buffer(part, iov_slice(part, iov, count, 0, length), head + offset);
		if (looks_like_another_format(head)) {
			if (!disk->head_warned)
				log_warning(
				    "%s: refused a write that would make this raw image look like another format",
				    disk->file.path);
			disk->head_warned = true;
			error = -EPERM;
		}
	}
	if (!error)
		error = host_file_write(&disk->file, offset, head + offset, length);
	pthread_mutex_unlock(&disk->head_lock);
	free(part);
	return error;
}

static int write_guarded(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count)
{
	uint64_t length = iov_length(iov, count), in_head = offset < DISK_HEAD ? DISK_HEAD - offset : 0;

	if (!disk->probed_raw || in_head == 0 || length == 0)
		return disk->format->writev(disk, offset, iov, count);
	if (in_head > length)
		in_head = length;
	int error = write_head(disk, offset, iov, count, in_head);
	if (error || in_head == length)
		return error;
	struct iovec *rest = malloc(count * sizeof(*rest));
	if (!rest)
		return -ENOMEM;
	error =
	    disk->format->writev(disk, offset + in_head, rest, iov_slice(rest, iov, count, in_head, length - in_head));
	free(rest);
	return error;
}

/* Every change goes through here: refused where nothing may be written, and on the disk when it returns where that was asked for. */
static int change(struct disk *disk, const struct disk_request *request)
{
	int error = -EINVAL;

	if (disk->file.readonly)
		return -EROFS;
	if (request->operation == DISK_WRITE)
		error = write_guarded(disk, request->offset, request->iov, request->iov_count);
	else if (request->operation == DISK_DISCARD)
		error = disk->format->discard(disk, request->offset, request->length);
	else if (request->operation == DISK_WRITE_ZEROES)
		error = disk->format->zero(disk, request->offset, request->length, request->may_unmap);
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
	struct disk_request request = {
	    .operation = DISK_WRITE, .offset = offset, .length = length, .iov = &iov, .iov_count = 1};

	return in_range(disk, offset, length) ? change(disk, &request) : -EINVAL;
}

int disk_flush(struct disk *disk)
{
	return disk->file.readonly ? 0 : disk->format->flush(disk);
}

/* ---- asynchronous requests ---- */

static struct disk_pending *pending_get(struct disk *disk, unsigned iov_count)
{
	struct disk_pending *pending = disk->spare;

	if (pending && iov_count <= pending->iov_room) {
		disk->spare = pending->next_spare;
		disk->spare_count--;
	} else {
		unsigned room = iov_count < PENDING_IOV ? PENDING_IOV : iov_count;

		pending = malloc(sizeof(*pending) + room * sizeof(struct iovec));
		if (!pending)
			return NULL;
		pending->iov_room = room;
	}
	pending->operation = (struct disk_aio_operation){0};
	pending->disk = disk;
	pending->mapped = false;
	pending->result = 0;
	return pending;
}

static void pending_put(struct disk_pending *pending)
{
	struct disk *disk = pending->disk;

	if (pending->iov_room > PENDING_IOV || disk->spare_count >= SPARE_MAX) {
		free(pending);
		return;
	}
	pending->next_spare = disk->spare;
	disk->spare = pending;
	disk->spare_count++;
}

int disk_attach(struct disk *disk, struct event_loop *loop)
{
	disk->refusal = calloc(1, sizeof(*disk->refusal));
	disk->aio = disk->refusal ? disk_aio_create(loop, disk->threads_only) : NULL;
	return disk->aio ? 0 : -errno;
}

static void pending_done(struct disk_aio_operation *operation, int error)
{
	struct disk_pending *pending = (struct disk_pending *)operation;
	struct disk_request *request = pending->request;

	if (pending->mapped)
		pending->disk->format->unmap(pending->disk, &pending->extent);
	pending_put(pending);
	request->done(request, error);
}

/* On a pool thread: any request, the blocking way. */
static int run_request(struct disk_aio_operation *operation)
{
	struct disk_pending *pending = (struct disk_pending *)operation;
	struct disk_request *request = pending->request;

	if (pending->result)
		return pending->result;
	if (request->operation == DISK_READ)
		return disk_readv_stack(pending->disk, request->offset, request->iov, request->iov_count);
	return request->operation == DISK_FLUSH ? disk_flush(pending->disk) : change(pending->disk, request);
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
static bool take_fast_path(struct disk *disk, struct disk_pending *pending)
{
	struct disk_request *request = pending->request;
	bool write = request->operation == DISK_WRITE;

	if (request->operation == DISK_FLUSH && disk->format == &disk_format_raw && !disk->file.readonly &&
	    disk->options.cache != DISK_CACHE_UNSAFE) {
		pending->operation.kind = AIO_SYNC;
		pending->operation.file = &disk->file;
		return true;
	}
	if ((request->operation != DISK_READ && !write) || request->length == 0)
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

/* No memory for a request's record: it is answered all the same, and from the loop. */
static void refused_done(struct disk_aio_operation *operation, int error)
{
	struct disk *disk = operation->owner;
	struct disk_request *request = disk->refused, *next;

	disk->refused = NULL;
	disk->refusing = false;
	for (; request; request = next) {
		next = request->private_next;
		request->done(request, -ENOMEM);
	}
}

static int refused_run(struct disk_aio_operation *operation)
{
	return -ENOMEM;
}

static void refuse_later(struct disk *disk, struct disk_request *request)
{
	request->private_next = disk->refused;
	disk->refused = request;
	if (disk->refusing)
		return;
	disk->refusing = true;
	*disk->refusal =
	    (struct disk_aio_operation){.kind = AIO_CALL, .call = refused_run, .done = refused_done, .owner = disk};
	disk_aio_submit(disk->aio, disk->refusal);
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
	struct disk_pending *pending = pending_get(disk, request->iov ? request->iov_count : 0);

	if (!pending) {
		refuse_later(disk, request);
		return;
	}
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
