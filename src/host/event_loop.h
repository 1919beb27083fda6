/*
 * The event loop: one thread that waits for host descriptors (console, sockets, timers). epoll underneath.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct event_loop;
struct event_source;

struct event_loop *event_loop_create(void);       /* NULL: errno */
void event_loop_destroy(struct event_loop *loop); /* not running any more */

/* Runs on the calling thread until event_loop_stop(). */
void event_loop_run(struct event_loop *loop);
void event_loop_stop(struct event_loop *loop); /* any thread, async-signal-safe */

/*
 * Watches `fd` for EPOLLIN, EPOLLOUT ... and calls `ready` on the loop's thread. Any thread may add, change and remove; after
 * event_source_remove() has returned on the loop's thread (or with the loop not running) `ready` is not called again.
 */
struct event_source *event_source_add(struct event_loop *loop, int fd, uint32_t events,
                                      void (*ready)(void *owner, uint32_t events), void *owner);
int event_source_change(struct event_source *source, uint32_t events);
void event_source_remove(struct event_source *source);

/*
 * Busy waiting. Before the loop sleeps, it calls the `poll` functions of its sources over and over for a while, if its last sleeps
 * were short (busy_wait.h). `poll` does what there is to do and tells whether there was anything.
 *
 * While event_loop_polls() holds, whoever has work for a source with `poll` need not signal its descriptor, if the work is in memory
 * before (seq_cst): the loop looks once more after it has stopped polling. Any thread.
 */
void event_source_set_poll(struct event_source *source, bool (*poll)(void *owner));
bool event_loop_polls(const struct event_loop *loop);
/* `flush` is called each time before the loop waits, in either way, on its thread: for work that is better done in one go. */
void event_source_set_flush(struct event_source *source, void (*flush)(void *owner));
