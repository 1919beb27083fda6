/*
 * A removed source may still be in the batch of events that the loop is working through, so it is only marked then and
 * freed after the batch. Regular files, which epoll refuses, are always ready (as poll() has it): the loop calls them
 * itself.
 */
#include "host/event_loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/busy_wait.h"

#define POLL_LOOKS   4u /* between two of the clock */
#define POLL_LOOK_NS 10000u
#define HOOKED_MAX   64u

struct event_source {
	struct event_loop *loop;
	struct event_source *next, *previous; /* in the loop's list of living or removed ones */
	int fd;
	uint32_t events;
	bool in_epoll;
	bool always_ready; /* a regular file */
	bool removed;
	void (*ready)(void *owner, uint32_t events);
	bool (*poll)(void *owner);  /* may be NULL */
	void (*flush)(void *owner); /* may be NULL */
	void *owner;
};

struct event_loop {
	int epoll, wake;
	_Atomic bool stop;
	pthread_mutex_t lock; /* everything below, and the sources */
	bool running;
	unsigned always_ready; /* sources of that kind which want events */
	struct event_source *sources, *removed;
	_Atomic unsigned hooks; /* changes of who has poll and flush functions; read without the lock */

	_Atomic bool polls;
	/* The loop's thread alone: */
	struct event_source *hooked[HOOKED_MAX]; /* sources with poll or flush; as of `hooks_seen` */
	unsigned hooked_count, hooks_seen;
	struct busy_wait wait;
};

struct event_loop *event_loop_create(void)
{
	struct event_loop *loop = calloc(1, sizeof(*loop));
	int error;

	if (!loop)
		return NULL;
	loop->wake = -1;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0)
		goto fail;
	loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->wake < 0)
		goto fail;
	struct epoll_event event = {.events = EPOLLIN};
	if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->wake, &event) < 0)
		goto fail;
	pthread_mutex_init(&loop->lock, NULL);
	busy_wait_init(&loop->wait);
	return loop;
fail:
	error = errno;
	if (loop->wake >= 0)
		close(loop->wake);
	if (loop->epoll >= 0)
		close(loop->epoll);
	free(loop);
	errno = error;
	return NULL;
}

static void list_free(struct event_source *source)
{
	while (source) {
		struct event_source *next = source->next;
		free(source);
		source = next;
	}
}

void event_loop_destroy(struct event_loop *loop)
{
	if (!loop)
		return;
	list_free(loop->sources);
	list_free(loop->removed);
	close(loop->wake);
	close(loop->epoll);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

static void wake(struct event_loop *loop)
{
	uint64_t one = 1;
	int error = errno;

	/* It fails only when the counter is full, and then the loop wakes anyway. */
	while (write(loop->wake, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	errno = error;
}

void event_loop_stop(struct event_loop *loop)
{
	atomic_store(&loop->stop, true);
	wake(loop);
}

static void source_call(struct event_loop *loop, struct event_source *source, uint32_t events)
{
	pthread_mutex_lock(&loop->lock);
	bool wanted = !source->removed && source->events != 0;
	pthread_mutex_unlock(&loop->lock);
	if (wanted)
		source->ready(source->owner, events);
}

/* One round over the regular files. A source added or removed meanwhile is seen in the next round. */
static void call_always_ready(struct event_loop *loop)
{
	struct event_source *ready[16];
	unsigned count = 0;

	pthread_mutex_lock(&loop->lock);
	for (struct event_source *source = loop->sources; source && count < 16; source = source->next)
		if (source->always_ready && source->events)
			ready[count++] = source;
	pthread_mutex_unlock(&loop->lock);
	for (unsigned i = 0; i < count; i++)
		source_call(loop, ready[i], ready[i]->events & (EPOLLIN | EPOLLOUT));
}

static void free_removed(struct event_loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	struct event_source *removed = loop->removed;
	loop->removed = NULL;
	pthread_mutex_unlock(&loop->lock);
	list_free(removed);
}

/* ---- busy waiting ---- */

/* The list of sources with functions of their own. (What is removed later stays allocated until the round's end, and is removed from the
 * list in the next one.) */
static bool hooks_changed(const struct event_loop *loop)
{
	return loop->hooks_seen != atomic_load(&loop->hooks);
}

static void find_hooked(struct event_loop *loop)
{
	if (!hooks_changed(loop))
		return;
	pthread_mutex_lock(&loop->lock);
	loop->hooks_seen = atomic_load(&loop->hooks);
	loop->hooked_count = 0;
	for (struct event_source *source = loop->sources; source && loop->hooked_count < HOOKED_MAX;
	     source = source->next)
		if (source->events && (source->poll || source->flush))
			loop->hooked[loop->hooked_count++] = source;
	pthread_mutex_unlock(&loop->lock);
}

static void flush_all(struct event_loop *loop)
{
	do {
		find_hooked(loop);
		for (unsigned i = 0; i < loop->hooked_count && !hooks_changed(loop); i++)
			if (loop->hooked[i]->flush)
				loop->hooked[i]->flush(loop->hooked[i]->owner);
	} while (hooks_changed(loop));
}

static bool poll_all(struct event_loop *loop)
{
	bool worked = false;

	find_hooked(loop);
	for (unsigned i = 0; i < loop->hooked_count && !hooks_changed(loop); i++)
		if (loop->hooked[i]->poll)
			worked |= loop->hooked[i]->poll(loop->hooked[i]->owner);
	return worked;
}

/* Other descriptors are looked at now and then. As epoll_wait(), with *worked: something was done without it. */
static int poll_a_while(struct event_loop *loop, struct epoll_event *events, int room, bool *worked)
{
	struct busy_wait *wait = &loop->wait;
	uint64_t looked = wait->start;
	int count = 0;

	atomic_store(&loop->polls, true);
	do {
		for (unsigned i = 0; i < POLL_LOOKS && !*worked; i++) {
			*worked = poll_all(loop);
			__builtin_ia32_pause();
		}
		if (!*worked && wait->last - looked > POLL_LOOK_NS) {
			looked = wait->last;
			count = epoll_wait(loop->epoll, events, room, 0);
		}
	} while (!*worked && count <= 0 && !atomic_load(&loop->stop) && busy_wait_goes_on(wait));
	atomic_store(&loop->polls, false);
	*worked |= poll_all(loop);
	return *worked && count <= 0 ? epoll_wait(loop->epoll, events, room, 0) : count;
}

/* As epoll_wait(), but it may be that something is done already. */
static int wait_for_events(struct event_loop *loop, struct epoll_event *events, int room, int timeout)
{
	flush_all(loop);
	if (timeout == 0 || loop->hooked_count == 0)
		return epoll_wait(loop->epoll, events, room, timeout);
	bool looked = busy_wait_begin(&loop->wait), worked = false;
	int count = looked ? poll_a_while(loop, events, room, &worked) : 0;
	if (worked || count > 0) {
		busy_wait_found(&loop->wait);
		return count;
	}
	count = epoll_wait(loop->epoll, events, room, timeout);
	busy_wait_slept(&loop->wait, looked);
	return count;
}

void event_source_set_poll(struct event_source *source, bool (*poll)(void *owner))
{
	struct event_loop *loop = source->loop;

	pthread_mutex_lock(&loop->lock);
	source->poll = poll;
	loop->hooks++;
	pthread_mutex_unlock(&loop->lock);
}

void event_source_set_flush(struct event_source *source, void (*flush)(void *owner))
{
	struct event_loop *loop = source->loop;

	pthread_mutex_lock(&loop->lock);
	source->flush = flush;
	loop->hooks++;
	pthread_mutex_unlock(&loop->lock);
}

bool event_loop_polls(const struct event_loop *loop)
{
	return atomic_load(&loop->polls);
}

/* ---- the loop ---- */

void event_loop_run(struct event_loop *loop)
{
	struct epoll_event events[32];

	pthread_mutex_lock(&loop->lock);
	loop->running = true;
	pthread_mutex_unlock(&loop->lock);
	while (!atomic_load(&loop->stop)) {
		pthread_mutex_lock(&loop->lock);
		int timeout = loop->always_ready ? 0 : -1;
		pthread_mutex_unlock(&loop->lock);
		int count = wait_for_events(loop, events, 32, timeout);
		for (int i = 0; i < count && !atomic_load(&loop->stop); i++) {
			uint64_t value;
			if (events[i].data.ptr)
				source_call(loop, events[i].data.ptr, events[i].events);
			else if (read(loop->wake, &value, sizeof(value)) < 0)
				continue; /* somebody else's wake is already taken */
		}
		if (timeout == 0)
			call_always_ready(loop);
		free_removed(loop);
	}
	pthread_mutex_lock(&loop->lock);
	loop->running = false;
	pthread_mutex_unlock(&loop->lock);
	free_removed(loop);
	atomic_store(&loop->stop, false);
}

/*
 * Tells epoll what the source wants. A source that wants nothing is taken out, or else a hang-up would be reported
 * without end. The lock is held. 0 or -errno.
 */
static int source_update(struct event_source *source, uint32_t events)
{
	struct event_loop *loop = source->loop;
	struct epoll_event event = {.events = events, .data.ptr = source};
	int operation = source->in_epoll ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (source->always_ready) {
		loop->always_ready += (events != 0) - (source->events != 0);
		source->events = events;
		wake(loop);
		return 0;
	}
	if (events == 0) {
		if (source->in_epoll)
			epoll_ctl(loop->epoll, EPOLL_CTL_DEL, source->fd, &event);
		source->in_epoll = false;
	} else if (events != source->events || !source->in_epoll) {
		if (epoll_ctl(loop->epoll, operation, source->fd, &event) < 0) {
			if (errno != EPERM)
				return -errno;
			source->always_ready = true;
			return source_update(source, events);
		}
		source->in_epoll = true;
	}
	if ((source->poll || source->flush) && !events != !source->events)
		loop->hooks++;
	source->events = events;
	return 0;
}

struct event_source *event_source_add(struct event_loop *loop, int fd, uint32_t events,
                                      void (*ready)(void *owner, uint32_t events), void *owner)
{
	struct event_source *source = calloc(1, sizeof(*source));

	if (!source)
		return NULL;
	*source = (struct event_source){.loop = loop, .fd = fd, .ready = ready, .owner = owner};
	pthread_mutex_lock(&loop->lock);
	int error = source_update(source, events);
	if (error == 0) {
		source->next = loop->sources;
		if (source->next)
			source->next->previous = source;
		loop->sources = source;
	}
	pthread_mutex_unlock(&loop->lock);
	if (error) {
		free(source);
		errno = -error;
		return NULL;
	}
	return source;
}

int event_source_change(struct event_source *source, uint32_t events)
{
	pthread_mutex_lock(&source->loop->lock);
	int error = source_update(source, events);
	pthread_mutex_unlock(&source->loop->lock);
	return error;
}

void event_source_remove(struct event_source *source)
{
	if (!source)
		return;
	struct event_loop *loop = source->loop;
	pthread_mutex_lock(&loop->lock);
	source_update(source, 0);
	source->removed = true;
	loop->hooks++;
	if (source->previous)
		source->previous->next = source->next;
	else
		loop->sources = source->next;
	if (source->next)
		source->next->previous = source->previous;
	bool running = loop->running;
	if (running) {
		source->next = loop->removed;
		loop->removed = source;
	}
	pthread_mutex_unlock(&loop->lock);
	if (!running)
		free(source);
}
