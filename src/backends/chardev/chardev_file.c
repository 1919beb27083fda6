/* file:PATH: output is written to a new file; there is no input. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/log.h"

static int file_open(struct chardev *chardev, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);

	if (fd < 0) {
		int error = errno;
		log_error("console file %s: %s", path, strerror(error));
		return -error;
	}
	chardev->data = (void *)(intptr_t)fd;
	chardev_output_open(chardev, fd);
	return 0;
}

static void file_close(struct chardev *chardev)
{
	close((int)(intptr_t)chardev->data);
}

const struct chardev_kind chardev_kind_file = {
    .name = "file",
    .argument = "PATH",
    .open = file_open,
    .close = file_close,
};
