/* Image tools. See disk_tools.h. */
#include "backends/disk/disk_tools.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/disk_format.h"
#include "host/log.h"

#define CLUSTER_DEFAULT 65536u
#define COPY_BYTES      (2u << 20)
#define RAW_GRANULE     4096u /* zeros of this size are not written to a raw image */

/* ---- a file that appears when it is complete ---- */

struct output {
	const char *path;
	char folder[PATH_MAX], name[PATH_MAX]; /* `name`: what it is called meanwhile; empty: nothing yet */
	char fd_path[64];                      /* a name that opens it again */
	int fd;
};

static int output_failed(const struct output *output, int error)
{
	log_error("%s: %s", output->path, strerror(-error));
	return error;
}

/* May the name be taken? A running machine's image is never replaced. */
static int check_replaceable(const struct disk_new *options)
{
	struct host_file old;
	char why[DISK_WHY_SIZE] = "";

	if (access(options->path, F_OK) < 0)
		return 0;
	if (!options->force) {
		log_error("%s: exists; --force replaces it", options->path);
		return -EEXIST;
	}
	int error = host_file_open(&old, options->path, false, false, HOST_FILE_LOCK, why);
	if (error)
		log_error("%s", why);
	else
		host_file_close(&old);
	return error;
}

static int temporary_name(struct output *output)
{
	static const char suffix[] = ".partial";

	if (snprintf(output->name, sizeof(output->name), "%s%s-%d", output->path, suffix, (int)getpid()) >=
	    (int)sizeof(output->name)) {
		output->name[0] = '\0';
		return -ENAMETOOLONG;
	}
	return 0;
}

/* A file without a name where the file system has such: then nothing is left behind whatever happens. */
static int output_open(struct output *output, const char *path)
{
	char copy[PATH_MAX];
	int error = 0;

	*output = (struct output){.path = path, .fd = -1};
	if (snprintf(copy, sizeof(copy), "%s", path) >= (int)sizeof(copy))
		return output_failed(output, -ENAMETOOLONG);
	snprintf(output->folder, sizeof(output->folder), "%s", dirname(copy));
	output->fd = open(output->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
	if (output->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		error = temporary_name(output);
		if (!error)
			output->fd = open(output->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	}
	if (!error && output->fd < 0)
		error = -errno;
	if (error) {
		output->name[0] = '\0';
		return output_failed(output, error);
	}
	snprintf(output->fd_path, sizeof(output->fd_path), "/proc/self/fd/%d", output->fd);
	return 0;
}

static int sync_folder(const char *folder)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = fd < 0 || (fsync(fd) < 0 && errno != EINVAL) ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return error;
}

static int rename_output(const struct output *output, bool force)
{
	if (force)
		return rename(output->name, output->path);
	if (renameat2(AT_FDCWD, output->name, AT_FDCWD, output->path, RENAME_NOREPLACE) == 0)
		return 0;
	return errno == EINVAL ? rename(output->name, output->path)
	                       : -1; /* EINVAL: the file system does not know the flag */
}

/* Gives the file its name, or takes it away; `error` is what happened so far. */
static int output_finish(struct output *output, int error, bool force)
{
	bool failed = false; /* here, so that it has to be said */

	if (!error && fsync(output->fd) < 0) {
		error = -errno;
		failed = true;
	}
	if (!error && !output->name[0]) {
		error = temporary_name(output);
		if (!error && linkat(AT_FDCWD, output->fd_path, AT_FDCWD, output->name, AT_SYMLINK_FOLLOW) < 0)
			error = -errno;
		if (error)
			output->name[0] = '\0';
		failed = error != 0;
	}
	if (!error && rename_output(output, force) < 0) {
		error = -errno;
		failed = true;
	}
	if (error && output->name[0])
		unlink(output->name);
	if (!error) {
		error = sync_folder(output->folder);
		failed = error != 0;
	}
	close(output->fd);
	return failed ? output_failed(output, error) : error;
}

/* ---- new images ---- */

static int check_options(const struct disk_new *options, const struct disk_format **format)
{
	*format = disk_format_find(options->format);
	if (!*format) {
		log_error("%s: unknown format '%s' (raw, qcow2)", options->path, options->format);
		return -EINVAL;
	}
	if (options->cluster_size && *format == &disk_format_raw) {
		log_error("%s: a raw image has no clusters", options->path);
		return -EINVAL;
	}
	return check_replaceable(options);
}

static int format_output(const struct output *output, const struct disk_new *options, const struct disk_format *format,
                         uint64_t size)
{
	char why[DISK_WHY_SIZE] = "";
	struct host_file file;
	int error = host_file_open(&file, output->fd_path, false, false, HOST_FILE_LOCK, why);

	if (error) {
		log_error("%s", why);
		return error;
	}
	free(file.path);
	file.path = strdup(output->path);
	error = file.path ? format->create(&file, size, options->backing, options->backing_format,
	                                   options->cluster_size ? options->cluster_size : CLUSTER_DEFAULT, why)
	                  : -ENOMEM;
	if (error)
		log_error("%s", why[0] ? why : strerror(-error));
	host_file_close(&file);
	return error;
}

int disk_create(const struct disk_new *options)
{
	const struct disk_format *format;
	struct output output;
	int error = check_options(options, &format);

	if (!error)
		error = output_open(&output, options->path);
	if (error)
		return error;
	error = format_output(&output, options, format, options->size);
	return output_finish(&output, error, options->force);
}

/* ---- conversion ---- */

/* From `offset` on: *length bytes, at most, that are all `*zero` for sure, or perhaps not zeros. */
static int stack_extent(struct disk *disk, uint64_t offset, uint64_t *length, bool *zero)
{
	struct disk_extent extent;

	for (; disk && offset < disk->size; disk = disk->backing) {
		if (*length > disk->size - offset)
			*length = disk->size - offset;
		int error = disk->format->extent(disk, offset, *length, &extent);
		if (error)
			return error;
		*length = extent.length;
		*zero = extent.kind == DISK_EXTENT_ZERO;
		if (extent.kind != DISK_EXTENT_HOLE)
			return 0;
	}
	*zero = true;
	return 0;
}

static bool all_zeros(const uint8_t *bytes, uint64_t length)
{
	return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* Writes what is not zeros, in whole granules. */
static int write_sparse(struct disk *target, uint64_t offset, const uint8_t *bytes, uint64_t length, uint64_t granule)
{
	uint64_t start = 0; /* of what is to be written and not yet written */
	int error = 0;

	for (uint64_t at = 0, part; !error && at < length; at += part) {
		part = granule - (offset + at) % granule;
		if (part > length - at)
			part = length - at;
		if (!all_zeros(bytes + at, part))
			continue;
		if (at > start)
			error = disk_write(target, offset + start, bytes + start, at - start);
		start = at + part;
	}
	return error || start >= length ? error : disk_write(target, offset + start, bytes + start, length - start);
}

static int copy(struct disk *source, struct disk *target, uint64_t granule, const char *name,
                const struct disk_progress *progress)
{
	uint8_t *buffer = malloc(COPY_BYTES);
	uint64_t size = source->size, length;
	int error = buffer ? 0 : -ENOMEM;

	for (uint64_t offset = 0; !error && offset < size; offset += length) {
		bool zero;

		if (progress && progress->report)
			progress->report(progress->owner, offset, size);
		length = size - offset;
		error = stack_extent(source, offset, &length, &zero);
		if (error || zero)
			continue;
		/* Whole buffers, so that clusters are written whole. */
		if (length > COPY_BYTES - offset % COPY_BYTES)
			length = COPY_BYTES - offset % COPY_BYTES;
		error = disk_read(source, offset, buffer, length);
		if (error) {
			log_error("%s: %s at %#llx", source->options.path, strerror(-error),
			          (unsigned long long)offset);
			free(buffer);
			return error;
		}
		error = write_sparse(target, offset, buffer, length, granule);
	}
	if (error)
		log_error("%s: %s", name, strerror(-error));
	else if (progress && progress->report)
		progress->report(progress->owner, size, size);
	free(buffer);
	return error;
}

int disk_convert(struct disk *source, const struct disk_new *options, const struct disk_progress *progress)
{
	const struct disk_format *format;
	struct output output;
	int error = check_options(options, &format);

	if (!error)
		error = output_open(&output, options->path);
	if (error)
		return error;
	error = format_output(&output, options, format, source->size);
	if (!error) {
		struct disk_options open_options = {.path = output.fd_path, .format = options->format};
		struct disk *target = disk_open(&open_options);
		uint64_t granule = options->cluster_size ? options->cluster_size : CLUSTER_DEFAULT;

		error = target ? copy(source, target, format == &disk_format_raw ? RAW_GRANULE : granule, options->path,
		                      progress)
		               : -EIO;
		int close_error = disk_close(target);
		if (!error)
			error = close_error;
	}
	return output_finish(&output, error, options->force);
}

/* ---- checks and sizes ---- */

int disk_check(struct disk *disk, bool repair, struct disk_check_result *result)
{
	char why[DISK_WHY_SIZE] = "";
	struct disk_check check = {0};
	int error = disk->format->check(disk, repair, &check, why);

	*result = (struct disk_check_result){.errors = check.errors,
	                                     .leaks = check.leaks,
	                                     .fixed = check.fixed,
	                                     .clusters = check.clusters,
	                                     .allocated = check.allocated};
	if (error)
		log_error("%s", why);
	return error;
}

int disk_resize(struct disk *disk, uint64_t size)
{
	char why[DISK_WHY_SIZE] = "";
	int error = disk->file.readonly ? -EROFS : disk->format->resize(disk, size, why);

	if (error)
		log_error("%s: %s", disk->options.path, why[0] ? why + strlen(disk->file.path) + 2 : strerror(-error));
	return error;
}
