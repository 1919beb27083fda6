#include "backends/net/rendezvous.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "host/log.h"

#define ID_DIGITS     16
#define TEMPORARY_AGE 60 /* seconds: then nobody is about to rename it */

/* Opens a folder that is ours alone, which is made if need be. `what`: for the message. */
static int open_private(int parent, const char *name, const char *what, const char *who)
{
	struct stat status;
	int fd, error;

	if (mkdirat(parent, name, 0700) < 0 && errno != EEXIST) {
		error = errno;
		log_error("%s: %s: %s", who, what, strerror(error));
		return -error;
	}
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) < 0) {
		error = errno;
		log_error("%s: %s: %s", who, what,
		          error == ELOOP || error == ENOTDIR ? "not a folder" : strerror(error));
		if (fd >= 0)
			close(fd);
		return -error;
	}
	if (status.st_uid != geteuid() || status.st_mode & 077) {
		log_error("%s: %s: %s", who, what,
		          status.st_uid != geteuid() ? "belongs to another user" : "others may enter it");
		close(fd);
		return -EPERM;
	}
	return fd;
}

/* The user's folder for such things, if there is one that is really the user's. */
static int open_runtime_folder(void)
{
	const char *given = getenv("XDG_RUNTIME_DIR");
	char standard[64];
	struct stat status;

	snprintf(standard, sizeof(standard), "/run/user/%u", (unsigned)geteuid());
	for (unsigned i = 0; i < 2; i++) {
		const char *path = i == 0 ? given : standard;
		int fd = path && *path == '/' ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

		if (fd >= 0 && fstat(fd, &status) == 0 && status.st_uid == geteuid() && !(status.st_mode & 022))
			return fd;
		if (fd >= 0)
			close(fd);
	}
	return -1;
}

static int open_folder(const char *name, const char *who)
{
	char own[32];
	int runtime = open_runtime_folder(), temporary = -1, base, folder = -1, result = -1;

	if (runtime >= 0) {
		base = open_private(runtime, "ring3", "folder ring3 in the runtime folder", who);
	} else {
		snprintf(own, sizeof(own), "ring3-%u", (unsigned)geteuid());
		temporary = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		base = open_private(temporary, own, own, who);
	}
	result = base;
	if (base >= 0)
		result = folder = open_private(base, "switch", "folder of switches", who);
	if (folder >= 0)
		result = open_private(folder, name, "folder of the switch", who);
	if (folder >= 0)
		close(folder);
	if (base >= 0)
		close(base);
	if (temporary >= 0)
		close(temporary);
	if (runtime >= 0)
		close(runtime);
	return result;
}

/* Through the folder's descriptor: its path may be longer than an address, or somebody else's by now. */
static void socket_address(struct sockaddr_un *address, int folder, const char *name)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", folder, name);
}

static int new_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

static int listen_in_folder(struct rendezvous *rendezvous)
{
	char temporary[40], name[32];
	struct sockaddr_un address;

	if (getrandom(&rendezvous->id, sizeof(rendezvous->id), 0) != sizeof(rendezvous->id))
		return -errno;
	snprintf(name, sizeof(name), "%016" PRIx64, rendezvous->id);
	snprintf(temporary, sizeof(temporary), "new-%s", name);
	socket_address(&address, rendezvous->folder, temporary);
	rendezvous->listener = new_socket();
	if (rendezvous->listener < 0)
		return rendezvous->listener;
	if (bind(rendezvous->listener, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	if (listen(rendezvous->listener, 64) < 0 ||
	    renameat(rendezvous->folder, temporary, rendezvous->folder, name) < 0) {
		int error = errno;

		unlinkat(rendezvous->folder, temporary, 0);
		return -error;
	}
	return 0;
}

int rendezvous_open(struct rendezvous *rendezvous, const char *name, const char *who)
{
	int error;

	*rendezvous = (struct rendezvous){.listener = -1};
	rendezvous->folder = open_folder(name, who);
	if (rendezvous->folder < 0)
		return rendezvous->folder;
	error = listen_in_folder(rendezvous);
	if (error) {
		log_error("%s: a socket in the folder of the switch: %s", who, strerror(-error));
		rendezvous_close(rendezvous);
	}
	return error;
}

void rendezvous_close(struct rendezvous *rendezvous)
{
	char name[32];

	snprintf(name, sizeof(name), "%016" PRIx64, rendezvous->id);
	if (rendezvous->listener >= 0) {
		if (rendezvous->folder >= 0)
			unlinkat(rendezvous->folder, name, 0);
		close(rendezvous->listener);
	}
	if (rendezvous->folder >= 0)
		close(rendezvous->folder);
	rendezvous->folder = rendezvous->listener = -1;
}

static bool parse_id(const char *name, uint64_t *id)
{
	if (strlen(name) != ID_DIGITS || strspn(name, "0123456789abcdef") != ID_DIGITS)
		return false;
	*id = strtoull(name, NULL, 16);
	return true;
}

/* One who died between its first name and its second. */
static void remove_old_temporary(int folder, const char *name)
{
	struct stat status;

	if (strncmp(name, "new-", 4) == 0 && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISSOCK(status.st_mode) && time(NULL) - status.st_mtime > TEMPORARY_AGE)
		unlinkat(folder, name, 0);
}

void rendezvous_scan(struct rendezvous *rendezvous, bool (*found)(void *owner, uint64_t id), void *owner)
{
	int fd = openat(rendezvous->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;
	uint64_t id;

	if (!folder) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((entry = readdir(folder))) {
		if (!parse_id(entry->d_name, &id))
			remove_old_temporary(rendezvous->folder, entry->d_name);
		else if (id != rendezvous->id && !found(owner, id))
			break;
	}
	closedir(folder);
}

static bool same_user(int fd)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

int rendezvous_connect(struct rendezvous *rendezvous, uint64_t id)
{
	struct sockaddr_un address;
	char name[32];
	int fd = new_socket(), error;

	if (fd < 0)
		return fd;
	snprintf(name, sizeof(name), "%016" PRIx64, id);
	socket_address(&address, rendezvous->folder, name);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
		if (same_user(fd))
			return fd;
		errno = EPERM;
	}
	error = errno;
	if (error == ECONNREFUSED)
		unlinkat(rendezvous->folder, name, 0);
	close(fd);
	return -error;
}

int rendezvous_accept(struct rendezvous *rendezvous)
{
	int fd = accept4(rendezvous->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (same_user(fd))
		return fd;
	close(fd);
	return -EPERM;
}
