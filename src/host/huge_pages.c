#include "host/huge_pages.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define ATTEMPTS 3         /* while somebody else holds a page for a moment */
#define PAUSE_NS 300000000 /* between calls: in one the process cannot change its mappings */

struct huge_pages {
	uint8_t *memory;
	size_t pieces;
	pthread_t thread;
	bool started; /* and to be joined */
	pthread_mutex_t lock;
	size_t asked, done; /* under it: pieces, from the first one */
	bool running, stop;
	pthread_cond_t stopping;
	_Atomic size_t huge;
	_Atomic bool refused; /* for good */
};

/* A collapse would fill the rest. */
static bool is_mostly_there(const struct huge_pages *huge, size_t at)
{
	unsigned char there[HUGE_PAGE / 4096];
	size_t page = (size_t)sysconf(_SC_PAGESIZE), count = HUGE_PAGE / page, sum = 0;

	if (page < 4096 || mincore(huge->memory + at, HUGE_PAGE, there))
		return false;
	for (size_t n = 0; n < count; n++)
		sum += there[n] & 1;
	return sum * 4 >= count * 3;
}

/* Of one view: the kernel takes the small pages out of the other one, too, where the next access maps the huge page. */
static bool collapse(struct huge_pages *huge, size_t piece, size_t count)
{
	for (unsigned n = 0; n < ATTEMPTS; n++) {
		if (madvise(huge->memory + piece * HUGE_PAGE, count * HUGE_PAGE, MADV_COLLAPSE) == 0)
			return true;
		if (errno == EINVAL || errno == ENOSYS || errno == EPERM)
			atomic_store(&huge->refused, true);
		if (errno != EAGAIN && errno != EBUSY)
			return false;
	}
	return false;
}

/* All that are mostly there: side by side in one call, if that goes. */
static void collapse_all(struct huge_pages *huge, size_t from, size_t to)
{
	while (from < to && !atomic_load(&huge->refused)) {
		size_t count = 0, done = 0;

		while (from + count < to && is_mostly_there(huge, (from + count) * HUGE_PAGE))
			count++;
		if (count > 1 && collapse(huge, from, count))
			done = count;
		for (size_t n = 0; n < count && done < count; n++)
			done += collapse(huge, from + n, 1);
		atomic_fetch_add(&huge->huge, done < count ? done : count);
		from += count + 1;
	}
}

static void rest(struct huge_pages *huge)
{
	struct timespec end;
	int error = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += PAUSE_NS;
	end.tv_sec += end.tv_nsec / 1000000000;
	end.tv_nsec %= 1000000000;
	while (!huge->stop && error == 0)
		error = pthread_cond_timedwait(&huge->stopping, &huge->lock, &end);
}

static void *run(void *argument)
{
	struct huge_pages *huge = argument;

	pthread_mutex_lock(&huge->lock);
	while (huge->done < huge->asked && !huge->stop) {
		size_t from = huge->done, to = huge->asked;

		pthread_mutex_unlock(&huge->lock);
		collapse_all(huge, from, to);
		pthread_mutex_lock(&huge->lock);
		huge->done = to;
		rest(huge);
	}
	huge->running = false;
	pthread_mutex_unlock(&huge->lock);
	return NULL;
}

struct huge_pages *huge_pages_create(uint8_t *memory, size_t size)
{
	struct huge_pages *huge = calloc(1, sizeof(*huge));

	if (!huge)
		return NULL;
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&huge->stopping, &attributes);
	pthread_condattr_destroy(&attributes);
	pthread_mutex_init(&huge->lock, NULL);
	huge->memory = memory;
	huge->pieces = size / HUGE_PAGE;
	return huge;
}

static void join(struct huge_pages *huge)
{
	if (huge->started)
		pthread_join(huge->thread, NULL);
	huge->started = false;
}

void huge_pages_destroy(struct huge_pages *huge)
{
	if (!huge)
		return;
	huge_pages_stop(huge);
	pthread_cond_destroy(&huge->stopping);
	pthread_mutex_destroy(&huge->lock);
	free(huge);
}

/* Signals are for the other threads. */
static bool start(struct huge_pages *huge)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	huge->started = pthread_create(&huge->thread, NULL, run, huge) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (huge->started)
		pthread_setname_np(huge->thread, "ring3-huge");
	return huge->started;
}

void huge_pages_ask(struct huge_pages *huge, size_t end)
{
	size_t pieces = end / HUGE_PAGE < huge->pieces ? end / HUGE_PAGE : huge->pieces;

	if (atomic_load(&huge->refused))
		return;
	pthread_mutex_lock(&huge->lock);
	bool idle = pieces > huge->asked && !huge->running;
	if (pieces > huge->asked) {
		huge->asked = pieces;
		huge->running = true;
	}
	pthread_mutex_unlock(&huge->lock);
	if (!idle)
		return;
	join(huge);
	if (!start(huge)) {
		huge->running = false; /* nobody else knows */
		atomic_store(&huge->refused, true);
	}
}

void huge_pages_stop(struct huge_pages *huge)
{
	pthread_mutex_lock(&huge->lock);
	huge->stop = true;
	pthread_cond_signal(&huge->stopping);
	pthread_mutex_unlock(&huge->lock);
	join(huge);
	huge->stop = false;
	huge->asked = huge->done = 0;
	atomic_store(&huge->huge, 0);
}

void huge_pages_wait(struct huge_pages *huge)
{
	join(huge);
}

size_t huge_pages_count(const struct huge_pages *huge)
{
	return atomic_load(&((struct huge_pages *)huge)->huge) * HUGE_PAGE;
}
