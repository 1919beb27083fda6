/*
 * The core of the character back ends: an output ring that a thread of its own empties, and a queue for input
 * (chardev.h).
 *
 * A thread, because the descriptors of stdin and stdout are shared with whoever started us: setting O_NONBLOCK on them
 * would change them for everybody, and outlive us.
 */
#include "backends/chardev/chardev.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/event_loop.h"
#include "host/log.h"

#define WRITE_CHUNK      4096u /* at most PIPE_BUF: a pipe that is writable takes it without blocking */
#define POLL_MS          200
#define INTERRUPT_SIGNAL SIGUSR2
/*
 * A guest that had no room for so long is one that is only now setting its port up; drivers clear the receiver once
 * more while they do that. It gets type-ahead when it has settled.
 */
#define LONG_WAIT_NS     10000000u
#define SETTLE_NS        20000000u
#define PATIENCE_SECONDS 2 /* how long destruction waits for a reader that takes nothing */

/* Asks the loop's thread to look at input and room. Any thread. */
static void wake_loop(struct chardev *chardev)
{
	uint64_t one = 1;

	/* Full: it has been asked already. */
	while (write(chardev->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* Takes the oldest bytes out of the ring; the mutex is held. */
static void ring_drop(struct chardev *chardev, size_t length)
{
	chardev->output_head = (chardev->output_head + length) % CHARDEV_OUTPUT_MAX;
	chardev->output_length -= length;
}

static size_t ring_peek(const struct chardev *chardev, uint8_t *data, size_t length)
{
	size_t first = CHARDEV_OUTPUT_MAX - chardev->output_head;

	if (length > chardev->output_length)
		length = chardev->output_length;
	if (first > length)
		first = length;
	memcpy(data, chardev->output + chardev->output_head, first);
	memcpy(data + first, chardev->output, length - first);
	return length;
}

static void ring_put(struct chardev *chardev, const uint8_t *data, size_t length)
{
	size_t tail = (chardev->output_head + chardev->output_length) % CHARDEV_OUTPUT_MAX;
	size_t first = CHARDEV_OUTPUT_MAX - tail;

	if (first > length)
		first = length;
	memcpy(chardev->output + tail, data, first);
	memcpy(chardev->output, data + first, length - first);
	chardev->output_length += length;
}

/* One write that may block. Bytes written, 0 for "not now", or -errno. The thread may be cancelled in here, and nowhere
 * else. */
static ssize_t write_some(int fd, const uint8_t *data, size_t length)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
	ssize_t written = 0;
	int error = 0;

	if (poll(&poll_fd, 1, POLL_MS) > 0) {
		written = write(fd, data, length);
		error = written < 0 ? errno : 0;
		if (error == EAGAIN && !(poll_fd.revents & POLLOUT))
			error = EPIPE; /* hung up, and full */
	}
	if (error == EAGAIN || error == EINTR)
		return 0;
	return error ? -error : written;
}

/* The other end has gone, or output is dead; the mutex is held. */
static void output_failed(struct chardev *chardev, int error)
{
	if (chardev->kind->reconnects) {
		chardev->output_fd = -1; /* the loop's thread notices by itself and closes it */
		return;
	}
	chardev->output_dead = true;
	chardev->output_length = 0;
	log_warning("console output is lost from here on: %s", strerror(error));
}

/* Tells a client that was refused when there is room again; the mutex is held. */
static void offer_room(struct chardev *chardev)
{
	if (chardev->refused && (chardev->output_fd < 0 || chardev->output_length <= CHARDEV_OUTPUT_MAX / 2)) {
		chardev->refused = false;
		wake_loop(chardev);
	}
}

static void *writer_main(void *argument)
{
	struct chardev *chardev = argument;
	uint8_t chunk[WRITE_CHUNK];

	pthread_mutex_lock(&chardev->mutex);
	for (;;) {
		bool work = chardev->output_fd >= 0 && chardev->output_length > 0 && !chardev->abandon;
		if (!work && chardev->stop)
			break;
		if (!work) {
			pthread_cond_wait(&chardev->changed, &chardev->mutex);
			continue;
		}
		size_t length = ring_peek(chardev, chunk, sizeof(chunk));
		int fd = chardev->output_fd;
		chardev->writing = true;
		pthread_mutex_unlock(&chardev->mutex);

		ssize_t written = write_some(fd, chunk, length);

		pthread_mutex_lock(&chardev->mutex);
		chardev->writing = false;
		if (written > 0)
			ring_drop(chardev, (size_t)written);
		else if (written < 0 && chardev->output_fd == fd)
			output_failed(chardev, (int)-written);
		offer_room(chardev);
		pthread_cond_broadcast(&chardev->changed);
	}
	chardev->writer_done = true;
	pthread_cond_broadcast(&chardev->changed);
	pthread_mutex_unlock(&chardev->mutex);
	return NULL;
}

void chardev_output_open(struct chardev *chardev, int fd)
{
	pthread_mutex_lock(&chardev->mutex);
	chardev->output_fd = fd;
	pthread_cond_broadcast(&chardev->changed);
	pthread_mutex_unlock(&chardev->mutex);
}

void chardev_output_close(struct chardev *chardev)
{
	pthread_mutex_lock(&chardev->mutex);
	chardev->output_fd = -1;
	while (chardev->writing)
		pthread_cond_wait(&chardev->changed, &chardev->mutex);
	offer_room(chardev);
	pthread_mutex_unlock(&chardev->mutex);
}

size_t chardev_write(struct chardev *chardev, const uint8_t *data, size_t length)
{
	size_t taken = length;

	pthread_mutex_lock(&chardev->mutex);
	if (!chardev->output_dead) {
		size_t room = CHARDEV_OUTPUT_MAX - chardev->output_length;
		/* Nobody listens: keep the newest. A writer still at work has bytes of the ring in hand. */
		if (length > room && chardev->output_fd < 0 && !chardev->writing) {
			size_t kept = length < CHARDEV_OUTPUT_MAX ? length : CHARDEV_OUTPUT_MAX;
			data += length - kept;
			if (kept > room)
				ring_drop(chardev, kept - room);
			ring_put(chardev, data, kept);
		} else {
			if (taken > room) {
				taken = room;
				chardev->refused = true;
			}
			ring_put(chardev, data, taken);
		}
		pthread_cond_broadcast(&chardev->changed);
	}
	pthread_mutex_unlock(&chardev->mutex);
	return taken;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Gives the guest what it has room for. The loop's thread. */
static void deliver_input(struct chardev *chardev)
{
	bool waited = atomic_load(&chardev->input_waits);
	size_t taken = 0;

	chardev->lock(chardev->lock_owner);
	while (taken < chardev->input_length && chardev->client.receive) {
		size_t room = chardev->client.can_receive(chardev->client.owner);
		if (room > chardev->input_length - taken)
			room = chardev->input_length - taken;
		if (room == 0)
			break;
		chardev->client.receive(chardev->client.owner, chardev->input + taken, room);
		taken += room;
	}
	chardev->input_length -= taken;
	atomic_store(&chardev->input_waits, chardev->input_length > 0);
	chardev->unlock(chardev->lock_owner);
	memmove(chardev->input, chardev->input + taken, chardev->input_length);
	if (taken || !waited)
		chardev->waits_since = now_ns();
	/* With a full queue the rest stays with the host. */
	if (chardev->input_source)
		event_source_change(chardev->input_source,
		                    chardev->input_length < CHARDEV_INPUT_MAX || chardev->input_drops ? EPOLLIN : 0);
}

static void input_ready(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	uint8_t data[CHARDEV_INPUT_MAX];
	size_t room = CHARDEV_INPUT_MAX - chardev->input_length;
	ssize_t got = read(chardev->input_fd, data, chardev->input_drops ? sizeof(data) : room);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		chardev_input_close(chardev);
		if (chardev->kind->hang_up)
			chardev->kind->hang_up(chardev);
		return;
	}
	size_t length = (size_t)got;
	if (chardev->kind->filter)
		length = chardev->kind->filter(chardev, data, length);
	if (length > room)
		length = room;
	memcpy(chardev->input + chardev->input_length, data, length);
	chardev->input_length += length;
	if (!chardev->settling)
		deliver_input(chardev);
}

int chardev_input_open(struct chardev *chardev, int fd)
{
	uint32_t events = chardev->input_length < CHARDEV_INPUT_MAX ? EPOLLIN : 0;

	chardev->input_fd = fd;
	chardev->input_source = event_source_add(chardev->loop, fd, events, input_ready, chardev);
	return chardev->input_source ? 0 : -errno;
}

void chardev_input_close(struct chardev *chardev)
{
	if (chardev->input_source)
		event_source_remove(chardev->input_source);
	chardev->input_source = NULL;
	chardev->input_fd = -1;
}

/* The guest has room for what has waited. */
static void offer_waiting_input(struct chardev *chardev)
{
	const struct itimerspec moment = {.it_value.tv_nsec = SETTLE_NS};

	if (chardev->settling)
		return;
	if (now_ns() - chardev->waits_since < LONG_WAIT_NS || timerfd_settime(chardev->settle_fd, 0, &moment, NULL) < 0)
		deliver_input(chardev);
	else
		chardev->settling = true;
}

static void settled(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	uint64_t count;

	if (read(chardev->settle_fd, &count, sizeof(count)) < 0)
		return;
	chardev->settling = false;
	deliver_input(chardev);
}

/* On the loop's thread: the guest has room for input, or there is room for its output. */
static void wake_ready(void *owner, uint32_t events)
{
	struct chardev *chardev = owner;
	uint64_t count;

	if (read(chardev->wake_fd, &count, sizeof(count)) < 0)
		return;
	if (atomic_load(&chardev->input_waits))
		offer_waiting_input(chardev);
	pthread_mutex_lock(&chardev->mutex);
	bool room = !chardev->refused;
	pthread_mutex_unlock(&chardev->mutex);
	if (!room)
		return;
	chardev->lock(chardev->lock_owner);
	if (chardev->client.writable)
		chardev->client.writable(chardev->client.owner);
	chardev->unlock(chardev->lock_owner);
}

void chardev_accept_input(struct chardev *chardev)
{
	if (atomic_load(&chardev->input_waits))
		wake_loop(chardev);
}

void chardev_connect(struct chardev *chardev, const struct chardev_client *client)
{
	chardev->client = *client;
}

int chardev_attach(struct chardev *chardev, struct event_loop *loop, void (*lock)(void *), void (*unlock)(void *),
                   void *lock_owner)
{
	int error = 0;

	chardev->loop = loop;
	chardev->lock = lock;
	chardev->unlock = unlock;
	chardev->lock_owner = lock_owner;
	chardev->wake_source = event_source_add(loop, chardev->wake_fd, EPOLLIN, wake_ready, chardev);
	chardev->settle_source = event_source_add(loop, chardev->settle_fd, EPOLLIN, settled, chardev);
	if (!chardev->wake_source || !chardev->settle_source)
		error = -errno;
	else if (chardev->kind && chardev->kind->attach)
		error = chardev->kind->attach(chardev);
	if (error)
		chardev_detach(chardev);
	return error;
}

void chardev_detach(struct chardev *chardev)
{
	if (!chardev->loop)
		return;
	chardev_input_close(chardev);
	if (chardev->kind && chardev->kind->detach)
		chardev->kind->detach(chardev);
	if (chardev->wake_source)
		event_source_remove(chardev->wake_source);
	if (chardev->settle_source)
		event_source_remove(chardev->settle_source);
	chardev->wake_source = chardev->settle_source = NULL;
	chardev->loop = NULL;
}

/* Starts the thread that writes, with all signals blocked: they are other threads' business, and SIGPIPE becomes EPIPE.
 */
static int start_writer(struct chardev *chardev)
{
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&chardev->writer, NULL, writer_main, chardev);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	chardev->writer_started = error == 0;
	return -error;
}

static void interrupt_handler(int signal_number) {}

/* Makes a write that blocks return, until the thread has ended. The mutex is held, and released here. */
static void abandon_output(struct chardev *chardev)
{
	struct sigaction action = {.sa_handler = interrupt_handler}, old;
	struct timespec until;

	sigemptyset(&action.sa_mask);
	sigaction(INTERRUPT_SIGNAL, &action, &old);
	chardev->abandon = true;
	pthread_cond_broadcast(&chardev->changed);
	while (!chardev->writer_done) {
		pthread_kill(chardev->writer, INTERRUPT_SIGNAL);
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += 10000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		pthread_cond_timedwait(&chardev->changed, &chardev->mutex, &until);
	}
	pthread_mutex_unlock(&chardev->mutex);
	/* Only then is no signal under way any more. */
	pthread_join(chardev->writer, NULL);
	sigaction(INTERRUPT_SIGNAL, &old, NULL);
}

/* Waits until the ring is empty, or its reader has taken nothing for a while. */
static void stop_writer(struct chardev *chardev)
{
	struct timespec until;
	size_t before;

	if (!chardev->writer_started)
		return;
	pthread_mutex_lock(&chardev->mutex);
	chardev->stop = true;
	pthread_cond_broadcast(&chardev->changed);
	do {
		before = chardev->output_length;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += PATIENCE_SECONDS;
		while (chardev->output_fd >= 0 && chardev->output_length == before && before > 0)
			if (pthread_cond_timedwait(&chardev->changed, &chardev->mutex, &until) == ETIMEDOUT)
				break;
	} while (chardev->output_fd >= 0 && chardev->output_length > 0 && chardev->output_length != before);
	if (chardev->output_fd >= 0 && chardev->output_length > 0) {
		abandon_output(chardev);
		return;
	}
	pthread_mutex_unlock(&chardev->mutex);
	pthread_join(chardev->writer, NULL);
}

/* The kind that `specification` names, and its argument; NULL: none of them. */
static const struct chardev_kind *find_kind(const char *specification, const char **argument)
{
	static const struct chardev_kind *const kinds[] = {&chardev_kind_stdio, &chardev_kind_pty, &chardev_kind_unix,
	                                                   &chardev_kind_file};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		size_t length = strlen(kinds[i]->name);

		if (strncmp(specification, kinds[i]->name, length) != 0 ||
		    specification[length] != (kinds[i]->argument ? ':' : '\0'))
			continue;
		*argument = kinds[i]->argument ? specification + length + 1 : "";
		return kinds[i];
	}
	return NULL;
}

bool chardev_known(const char *specification)
{
	const char *argument;
	const struct chardev_kind *kind = find_kind(specification, &argument);

	return strcmp(specification, "none") == 0 || (kind && (!kind->argument || *argument));
}

/* "none" has no kind: there is no descriptor. */
static int open_kind(struct chardev *chardev, const char *specification)
{
	const char *argument;

	if (strcmp(specification, "none") == 0) {
		chardev->output_dead = true;
		return 0;
	}
	const struct chardev_kind *kind = find_kind(specification, &argument);
	if (!kind) {
		log_error("console %s: unknown; it is stdio, none, pty, unix:PATH or file:PATH", specification);
		return -EINVAL;
	}
	if (kind->argument && !*argument) {
		log_error("console %s: %s is missing", specification, kind->argument);
		return -EINVAL;
	}
	chardev->kind = kind;
	int error = kind->open(chardev, argument);
	if (error)
		chardev->kind = NULL;
	return error;
}

struct chardev *chardev_create(const char *specification, void (*quit)(void *owner), void *quit_owner)
{
	struct chardev *chardev = calloc(1, sizeof(*chardev));
	pthread_condattr_t attributes;
	int error;

	if (!chardev) {
		log_error("console %s: out of memory", specification);
		return NULL;
	}
	chardev->quit = quit;
	chardev->quit_owner = quit_owner;
	chardev->input_fd = chardev->output_fd = chardev->settle_fd = -1;
	pthread_mutex_init(&chardev->mutex, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&chardev->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	chardev->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (chardev->wake_fd >= 0)
		chardev->settle_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	error = chardev->settle_fd < 0 ? -errno : start_writer(chardev);
	if (error)
		log_error("console %s: %s", specification, strerror(-error));
	else
		error = open_kind(chardev, specification);
	if (error) {
		chardev_destroy(chardev);
		return NULL;
	}
	return chardev;
}

void chardev_destroy(struct chardev *chardev)
{
	if (!chardev)
		return;
	chardev_detach(chardev);
	stop_writer(chardev);
	if (chardev->kind && chardev->kind->close)
		chardev->kind->close(chardev);
	if (chardev->wake_fd >= 0)
		close(chardev->wake_fd);
	if (chardev->settle_fd >= 0)
		close(chardev->settle_fd);
	pthread_cond_destroy(&chardev->changed);
	pthread_mutex_destroy(&chardev->mutex);
	free(chardev);
}
