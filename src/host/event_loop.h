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
