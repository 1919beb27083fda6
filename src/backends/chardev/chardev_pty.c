/*
 * pty: a pseudo-terminal, whose slave's name is printed; terminal programs open that (screen /dev/pts/5).
 *
 * While nobody has the slave open the master reports a hang-up without end, so it is not watched then; a timer looks
 * four times a second whether somebody has come.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/event_loop.h"
#include "host/log.h"

#define LOOK_NS 250000000

struct pty {
	int master, timer;
	struct event_source *source; /* the timer */
	char slave[64];
};

/* The guest echoes and edits; the line discipline does not. */
static int make_raw(const char *slave)
{
	struct termios terminal;
	int fd = open(slave, O_RDWR | O_NOCTTY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (tcgetattr(fd, &terminal) < 0)
		error = -errno;
	cfmakeraw(&terminal);
	if (!error && tcsetattr(fd, TCSANOW, &terminal) < 0)
		error = -errno;
	close(fd);
	return error;
}

static int pty_open(struct chardev *chardev, const char *argument)
{
	struct pty *pty = calloc(1, sizeof(*pty));
	int error = -ENOMEM;

	if (!pty)
		goto failed;
	pty->timer = -1;
	pty->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (pty->master < 0 || grantpt(pty->master) < 0 || unlockpt(pty->master) < 0)
		error = -errno;
	else
		error = -ptsname_r(pty->master, pty->slave, sizeof(pty->slave));
	if (!error)
		error = make_raw(pty->slave);
	if (!error) {
		pty->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		error = pty->timer < 0 ? -errno : 0;
	}
	if (error)
		goto failed;
	chardev->data = pty;
	log_info("console is %s", pty->slave);
	return 0;
failed:
	log_error("console pty: %s", strerror(-error));
	if (pty && pty->master >= 0)
		close(pty->master);
	free(pty);
	return error;
}

/* Looks at once, then every LOOK_NS; `on` false stops that. */
static void set_timer(struct pty *pty, bool on)
{
	struct itimerspec time = {.it_value.tv_nsec = on ? 1 : 0, .it_interval.tv_nsec = on ? LOOK_NS : 0};

	timerfd_settime(pty->timer, 0, &time, NULL);
}

static void look_for_slave(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	struct pty *pty = chardev->data;
	struct pollfd poll_fd = {.fd = pty->master, .events = 0};
	uint64_t count;

	if (read(pty->timer, &count, sizeof(count)) < 0 || chardev->input_source)
		return;
	poll(&poll_fd, 1, 0);
	if (poll_fd.revents & POLLHUP)
		return;
	set_timer(pty, false);
	if (chardev_input_open(chardev, pty->master) < 0)
		log_warning("console pty: no input: %s", strerror(errno));
	chardev_output_open(chardev, pty->master);
}

static void pty_hang_up(struct chardev *chardev)
{
	chardev_output_close(chardev);
	set_timer(chardev->data, true);
}

static int pty_attach(struct chardev *chardev)
{
	struct pty *pty = chardev->data;

	pty->source = event_source_add(chardev->loop, pty->timer, EPOLLIN, look_for_slave, chardev);
	if (!pty->source)
		return -errno;
	set_timer(pty, true);
	return 0;
}

static void pty_detach(struct chardev *chardev)
{
	struct pty *pty = chardev->data;

	if (pty->source)
		event_source_remove(pty->source);
	pty->source = NULL;
}

static void pty_close(struct chardev *chardev)
{
	struct pty *pty = chardev->data;

	chardev_output_close(chardev);
	close(pty->timer);
	close(pty->master);
	free(pty);
}

const struct chardev_kind chardev_kind_pty = {
    .name = "pty",
    .reconnects = true,
    .open = pty_open,
    .attach = pty_attach,
    .detach = pty_detach,
    .hang_up = pty_hang_up,
    .close = pty_close,
};
