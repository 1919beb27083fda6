#include "host/io_thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/event_loop.h"

struct io_thread {
	pthread_t thread;
	bool started;
	struct event_loop *loop;
	int wake; /* makes the loop call stand() */
	struct event_source *source;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	unsigned pauses;
	bool standing;
};

/* On the thread: stays here while anybody wants it to. */
static void stand(void *owner, uint32_t events)
{
	struct io_thread *thread = owner;
	uint64_t count;

	if (read(thread->wake, &count, sizeof(count)) < 0)
		return; /* another call took it */
	pthread_mutex_lock(&thread->lock);
	while (thread->pauses > 0) {
		thread->standing = true;
		pthread_cond_broadcast(&thread->changed);
		pthread_cond_wait(&thread->changed, &thread->lock);
	}
	thread->standing = false;
	pthread_mutex_unlock(&thread->lock);
}

static void *run(void *owner)
{
	struct io_thread *thread = owner;

	event_loop_run(thread->loop);
	return NULL;
}

static int start(struct io_thread *thread, const char *name)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&thread->thread, NULL, run, thread);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return error;
	thread->started = true;
	pthread_setname_np(thread->thread, name);
	return 0;
}

struct io_thread *io_thread_create(const char *name)
{
	struct io_thread *thread = calloc(1, sizeof(*thread));
	int error;

	if (!thread)
		return NULL;
	pthread_mutex_init(&thread->lock, NULL);
	pthread_cond_init(&thread->changed, NULL);
	thread->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	thread->loop = event_loop_create();
	if (thread->wake < 0 || !thread->loop)
		goto fail;
	thread->source = event_source_add(thread->loop, thread->wake, EPOLLIN, stand, thread);
	if (!thread->source)
		goto fail;
	error = start(thread, name);
	if (!error)
		return thread;
	errno = error;
fail:
	error = errno;
	io_thread_destroy(thread);
	errno = error;
	return NULL;
}

void io_thread_destroy(struct io_thread *thread)
{
	if (!thread)
		return;
	if (thread->started) {
		event_loop_stop(thread->loop);
		pthread_join(thread->thread, NULL);
	}
	if (thread->source)
		event_source_remove(thread->source);
	event_loop_destroy(thread->loop);
	if (thread->wake >= 0)
		close(thread->wake);
	pthread_cond_destroy(&thread->changed);
	pthread_mutex_destroy(&thread->lock);
	free(thread);
}

struct event_loop *io_thread_loop(struct io_thread *thread)
{
	return thread->loop;
}

bool io_thread_is_current(const struct io_thread *thread)
{
	return pthread_equal(pthread_self(), thread->thread);
}

void io_thread_pause(struct io_thread *thread)
{
	uint64_t one = 1;

	pthread_mutex_lock(&thread->lock);
	/* A full counter cannot be: it is read each time. */
	if (thread->pauses++ == 0 && write(thread->wake, &one, sizeof(one)) < 0)
		one = 0;
	while (!thread->standing)
		pthread_cond_wait(&thread->changed, &thread->lock);
	pthread_mutex_unlock(&thread->lock);
}

void io_thread_resume(struct io_thread *thread)
{
	pthread_mutex_lock(&thread->lock);
	if (thread->pauses > 0 && --thread->pauses == 0) {
		thread->standing = false;
		pthread_cond_broadcast(&thread->changed);
	}
	pthread_mutex_unlock(&thread->lock);
}
