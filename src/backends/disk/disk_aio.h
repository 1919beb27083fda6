/*
 * Private to backends/disk: asynchronous host I/O of one event loop's thread. io_uring where the host allows it, else a
 * pool of threads; the pool also runs what must block (formats' slow paths, fallocate).
 *
 * All functions are called on the loop's thread; completions arrive there too, never from inside the submitting call.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct disk_aio;
struct event_loop;
struct host_file;

struct disk_aio_operation {
	enum { AIO_READ, AIO_WRITE, AIO_SYNC, AIO_CALL } kind;
	struct host_file *file;
	uint64_t offset;
	struct iovec *iov; /* changed while the operation runs (short transfers are carried on) */
	unsigned iov_count;
	int (*call)(struct disk_aio_operation *operation); /* AIO_CALL: on a pool thread */
	void (*done)(struct disk_aio_operation *operation, int error);
	void *owner;
	int error; /* private from here */
	struct disk_aio_operation *next;
};

/* `threads_only`: no io_uring (tests of the fallback). NULL: errno. */
struct disk_aio *disk_aio_create(struct event_loop *loop, bool threads_only);
void disk_aio_submit(struct disk_aio *aio, struct disk_aio_operation *operation);
/* Waits until all is done (completions run on the calling thread), then frees. The loop's thread, or with the loop
 * stopped. */
void disk_aio_destroy(struct disk_aio *aio);
/* Runs completions until nothing is in flight. */
void disk_aio_drain(struct disk_aio *aio);
bool disk_aio_uses_io_uring(const struct disk_aio *aio);
