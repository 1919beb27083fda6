/* Booting from a disk image: ring3's side (disk_boot.h). The reader is not trusted: what it sends is bounded and copied. */
#include "boot/disk_boot.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/disk/disk.h"
#include "boot/disk_wire.h"

#define COMMAND_MAX 2048u
#define NAME_MAX_   512u

struct session {
	struct disk_boot *files;
	struct disk *disk;
	const char *name;
	uint64_t limit;
	char *why;
	int socket;
	struct boot_file *current; /* that bytes go to; NULL: none yet */
	struct wire_message message;
};

static int refuse(struct session *session, int error, const char *text)
{
	snprintf(session->why, BOOT_WHY_SIZE, "%.300s: %.180s", session->name, text);
	return error;
}

/* Text from the reader; it may be meant for the terminal. */
static char *take_text(const struct session *session, const char *prefix, uint32_t limit)
{
	uint32_t length = session->message.header.length < limit ? session->message.header.length : limit;
	char *text;

	if (asprintf(&text, "%s%.*s", prefix, (int)length, (const char *)session->message.data) < 0)
		return NULL;
	for (char *at = text + strlen(prefix); *at; at++)
		if ((unsigned char)*at < 0x20 || (unsigned char)*at >= 0x7f)
			*at = '?';
	return text;
}

static int answer_read(struct session *session)
{
	struct wire_header *header = &session->message.header;
	uint32_t length = header->length <= WIRE_DATA ? header->length : 0;
	int error = length ? disk_read(session->disk, header->offset, session->message.data, length) : -EINVAL;

	header->type = (uint32_t)-error;
	if (error)
		length = 0;
	return send(session->socket, &session->message, sizeof(*header) + length, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int begin_file(struct session *session, struct boot_file *file, char **name)
{
	char prefix[NAME_MAX_];

	if (file->fd >= 0)
		return refuse(session, -EPROTO, "the file system's reader sends nonsense");
	snprintf(prefix, sizeof(prefix), "%.300s:", session->name);
	*name = take_text(session, prefix, NAME_MAX_);
	if (!*name)
		return refuse(session, -ENOMEM, strerror(ENOMEM));
	file->name = *name;
	file->fd = memfd_create("boot-file", MFD_CLOEXEC);
	if (file->fd < 0)
		return refuse(session, -errno, strerror(errno));
	session->current = file;
	return 0;
}

static int take_bytes(struct session *session)
{
	struct boot_file *file = session->current;
	const uint8_t *from = session->message.data;
	uint64_t left = session->message.header.length;

	if (!file)
		return refuse(session, -EPROTO, "the file system's reader sends nonsense");
	if (left > session->limit - file->size) {
		snprintf(session->why, BOOT_WHY_SIZE, "%.300s: does not fit in the machine's memory", file->name);
		return -EFBIG;
	}
	while (left) {
		ssize_t done = pwrite(file->fd, from, left, (off_t)file->size);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return refuse(session, done < 0 ? -errno : -EIO, strerror(done < 0 ? errno : EIO));
		from += done;
		file->size += (uint64_t)done;
		left -= (uint64_t)done;
	}
	return 0;
}

/* 1: that was the last one. */
static int take_message(struct session *session)
{
	struct disk_boot *files = session->files;
	char *text;

	switch (session->message.header.type) {
	case WIRE_READ:
		return answer_read(session);
	case WIRE_KERNEL:
		return begin_file(session, &files->kernel, &files->kernel_name);
	case WIRE_INITRD:
		return begin_file(session, &files->initrd, &files->initrd_name);
	case WIRE_BYTES:
		return take_bytes(session);
	case WIRE_COMMAND:
		free(files->command);
		files->command = take_text(session, "", COMMAND_MAX);
		return files->command ? 0 : refuse(session, -ENOMEM, strerror(ENOMEM));
	case WIRE_REFUSED:
		text = take_text(session, "", 180);
		refuse(session, -EINVAL, text ? text : strerror(ENOMEM));
		free(text);
		return -EINVAL;
	case WIRE_DONE:
		return files->kernel.fd >= 0 && files->command
		           ? 1
		           : refuse(session, -EPROTO, "the file system's reader sends nonsense");
	default:
		return refuse(session, -EPROTO, "the file system's reader sends nonsense");
	}
}

static int converse(struct session *session)
{
	for (;;) {
		const struct wire_header *header = &session->message.header;
		ssize_t got = recv(session->socket, &session->message, sizeof(session->message), 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) /* the caller sees how it died */
			return -ECONNRESET;
		if ((size_t)got < sizeof(*header) ||
		    (header->type != WIRE_READ && (size_t)got != sizeof(*header) + header->length))
			return refuse(session, -EPROTO, "the file system's reader sends nonsense");
		int result = take_message(session);
		if (result)
			return result < 0 ? result : 0;
	}
}

static int reap(struct session *session, pid_t child, int error)
{
	char text[128];
	int status;

	if (error && error != -ECONNRESET)
		kill(child, SIGKILL);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return error;
	if (error != -ECONNRESET || session->why[0])
		return error;
	if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGXCPU))
		snprintf(text, sizeof(text), "its file systems take too long to read");
	else if (WIFSIGNALED(status))
		snprintf(text, sizeof(text),
		         "the reader of its file systems died of signal %d; the image is damaged or hostile",
		         WTERMSIG(status));
	else
		snprintf(text, sizeof(text), "the reader of its file systems gave up");
	return refuse(session, -EINVAL, text);
}

int disk_boot_read(struct disk_boot *files, struct disk *disk, const char *name, uint64_t limit, char *why)
{
	struct session *session = malloc(sizeof(*session));
	int sockets[2], error;

	*files = (struct disk_boot){.kernel.fd = -1, .initrd.fd = -1};
	why[0] = '\0';
	if (!session || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
		error = session ? -errno : -ENOMEM;
		snprintf(why, BOOT_WHY_SIZE, "%.300s: %s", name, strerror(-error));
		free(session);
		return error;
	}
	*session = (struct session){
	    .files = files, .disk = disk, .name = name, .limit = limit, .why = why, .socket = sockets[0]};
	pid_t child = fork();
	if (child == 0)
		disk_reader(sockets[1], disk_size(disk));
	error = child < 0 ? refuse(session, -errno, strerror(errno)) : 0;
	close(sockets[1]);
	if (!error)
		error = reap(session, child, converse(session));
	close(sockets[0]);
	free(session);
	if (error)
		disk_boot_free(files);
	return error;
}

void disk_boot_free(struct disk_boot *files)
{
	boot_file_close(&files->kernel);
	boot_file_close(&files->initrd);
	free(files->command);
	free(files->kernel_name);
	free(files->initrd_name);
	*files = (struct disk_boot){.kernel.fd = -1, .initrd.fd = -1};
}
