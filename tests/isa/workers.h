/* Worker processes that are watched: one that dies or stops making progress is reported with what it was at. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WORKERS_MAX 64

/* In memory that is shared with the workers. */
struct worker_progress {
	_Atomic uint64_t cases;
	uint64_t seed; /* of the case that the engine is at */
	uint64_t form;
};

struct workers {
	const char *program;
	unsigned count;                   /* at most WORKERS_MAX */
	struct worker_progress *progress; /* `count` of them */
	void *owner;
	int (*work)(void *owner, unsigned number); /* in the worker: 0 or -errno */
	/* How to run a worker's case again: a few options, for a message. */
	void (*describe)(void *owner, const struct worker_progress *progress, char text[160]);
};

/* True: all workers ended well. */
bool workers_run(const struct workers *workers);
