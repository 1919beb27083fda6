/*
 * An I/O thread: a thread that runs an event loop of its own, for devices and back ends that work off the vCPU threads.
 * All signals are blocked on it.
 */
#pragma once

#include <stdbool.h>

struct event_loop;
struct io_thread;

/* Starts it. `name`: for debuggers, up to 15 characters. NULL: errno. */
struct io_thread *io_thread_create(const char *name);
/* Stops and joins it; sources may be in the loop still, and are not called any more. */
void io_thread_destroy(struct io_thread *thread);
struct event_loop *io_thread_loop(struct io_thread *thread);
/* Is this the thread that calls? */
bool io_thread_is_current(const struct io_thread *thread);
/* Returns when the thread stands between two calls of its loop's sources, and keeps it there; counted. Not from the
 * thread itself. */
void io_thread_pause(struct io_thread *thread);
void io_thread_resume(struct io_thread *thread);
