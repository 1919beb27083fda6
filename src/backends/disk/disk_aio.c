/*
 * Asynchronous I/O for disks: io_uring, and the thread pool under and beside it. See disk_aio.h.
 *
 * Small writes into the host's page cache are made at once: most file systems never do them asynchronously, so that io_uring and the pool
 * only add two thread switches (45 us against 3). When one of them was slow (the host throttles writers, or had to read a page), the
 * pool takes over for a while. The same holds for a direct write that is alone: the kernel ends asynchronous ones on a kernel thread
 * bound to one processor, which the writer's own wait would keep from running.
 */
#include "backends/disk/disk_aio.h"

#include <errno.h>
#include <liburing.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backends/disk/host_file.h"
#include "host/busy_wait.h"
#include "host/event_loop.h"

#define RING_ENTRIES    256
#define POOL_THREADS    4
#define INLINE_BYTES    (128u << 10)
#define INLINE_DIRECT   (1u << 20)
#define INLINE_SLOW_NS  2000000u
#define INLINE_PAUSE_NS 100000000u

struct queue {
	struct disk_aio_operation *first, **last;
};

struct disk_aio {
	struct event_loop *loop;
	struct event_source *source;
	int event_fd; /* io_uring's and the pool's completions */
	bool uring_ready;
	struct io_uring ring;
	unsigned uring_in_flight;
	struct queue waiting; /* for room in the ring */
	bool threads_only;
	struct queue written; /* inline, not yet told */
	uint64_t inline_from; /* CLOCK_MONOTONIC ns: no inline write before this */
	unsigned in_flight;   /* all submitted and not completed */

	pthread_mutex_t lock; /* for the pool's part below */
	pthread_cond_t work;
	pthread_t thread[POOL_THREADS];
	unsigned threads;
	struct queue todo, finished;
	bool ending;
};

static void queue_init(struct queue *queue)
{
	queue->first = NULL;
	queue->last = &queue->first;
}

static void queue_put(struct queue *queue, struct disk_aio_operation *operation)
{
	operation->next = NULL;
	*queue->last = operation;
	queue->last = &operation->next;
}

static struct disk_aio_operation *queue_get(struct queue *queue)
{
	struct disk_aio_operation *operation = queue->first;

	if (operation) {
		queue->first = operation->next;
		if (!queue->first)
			queue->last = &queue->first;
	}
	return operation;
}

static int run_blocking(struct disk_aio_operation *operation)
{
	switch (operation->kind) {
	case AIO_READ:
		return host_file_readv(operation->file, operation->offset, operation->iov, operation->iov_count);
	case AIO_WRITE:
		return host_file_writev(operation->file, operation->offset, operation->iov, operation->iov_count);
	case AIO_SYNC:
		return host_file_sync(operation->file);
	case AIO_CALL:
		return operation->call(operation);
	}
	return -EINVAL;
}

static void signal_completion(struct disk_aio *aio)
{
	uint64_t one = 1;

	if (write(aio->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: it is readable all the same */
}

static void *pool_main(void *argument)
{
	struct disk_aio *aio = argument;

	pthread_mutex_lock(&aio->lock);
	for (;;) {
		struct disk_aio_operation *operation = queue_get(&aio->todo);

		if (operation) {
			pthread_mutex_unlock(&aio->lock);
			operation->error = run_blocking(operation);
			pthread_mutex_lock(&aio->lock);
			queue_put(&aio->finished, operation);
			signal_completion(aio);
		} else if (aio->ending) {
			break;
		} else {
			pthread_cond_wait(&aio->work, &aio->lock);
		}
	}
	pthread_mutex_unlock(&aio->lock);
	return NULL;
}

static void start_pool(struct disk_aio *aio)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (aio->threads < POOL_THREADS && pthread_create(&aio->thread[aio->threads], NULL, pool_main, aio) == 0)
		pthread_setname_np(aio->thread[aio->threads++], "disk-io");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void pool_submit(struct disk_aio *aio, struct disk_aio_operation *operation)
{
	if (!aio->threads)
		start_pool(aio);
	pthread_mutex_lock(&aio->lock);
	if (aio->threads) {
		queue_put(&aio->todo, operation);
		pthread_cond_signal(&aio->work);
	} else {
		/* No thread to be had: do it here, late rather than never. */
		operation->error = run_blocking(operation);
		queue_put(&aio->finished, operation);
		signal_completion(aio);
	}
	pthread_mutex_unlock(&aio->lock);
}

/* The ring takes plain reads, writes and syncs of files whose system calls are not replaced by a test. */
static bool fits_ring(const struct disk_aio *aio, const struct disk_aio_operation *operation)
{
	return aio->uring_ready && operation->kind != AIO_CALL && operation->file->ops == &host_file_system_ops &&
	       operation->iov_count <= IOV_MAX && !operation->file->sync_error &&
	       (operation->kind == AIO_SYNC ||
	        host_file_is_aligned(operation->file, operation->offset, operation->iov, operation->iov_count));
}

/* Hands prepared entries to the kernel. Where it has no room now (EAGAIN, EBUSY), the loop comes back and tries again. */
static void ring_push(struct disk_aio *aio)
{
	int result;

	do
		result = io_uring_submit(&aio->ring);
	while (result == -EINTR);
	if (result < 0)
		signal_completion(aio);
}

static void ring_prepare(struct disk_aio *aio, struct io_uring_sqe *entry, struct disk_aio_operation *operation)
{
	int fd = operation->file->fd;

	if (operation->kind == AIO_READ)
		io_uring_prep_readv(entry, fd, operation->iov, operation->iov_count, operation->offset);
	else if (operation->kind == AIO_WRITE)
		io_uring_prep_writev(entry, fd, operation->iov, operation->iov_count, operation->offset);
	else
		io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(entry, operation);
	aio->uring_in_flight++;
}

static uint64_t operation_length(const struct disk_aio_operation *operation)
{
	uint64_t length = 0;

	for (unsigned i = 0; i < operation->iov_count; i++)
		length += operation->iov[i].iov_len;
	return length;
}

static bool is_cached(const struct host_file *file)
{
	return file->align == 1;
}

static bool write_inline(struct disk_aio *aio, struct disk_aio_operation *operation)
{
	if (operation->kind != AIO_WRITE || aio->threads_only || operation->file->ops != &host_file_system_ops ||
	    operation_length(operation) > (is_cached(operation->file) ? INLINE_BYTES : INLINE_DIRECT))
		return false;
	uint64_t start = busy_wait_now();
	if (start < aio->inline_from)
		return false;
	operation->error = run_blocking(operation);
	uint64_t end = busy_wait_now();
	if (end - start > INLINE_SLOW_NS)
		aio->inline_from = end + INLINE_PAUSE_NS;
	queue_put(&aio->written, operation); /* the flush tells */
	return true;
}

void disk_aio_submit(struct disk_aio *aio, struct disk_aio_operation *operation)
{
	aio->in_flight++;
	operation->error = 0;
	if (operation->file && is_cached(operation->file) && write_inline(aio, operation))
		return;
	if (fits_ring(aio, operation))
		queue_put(&aio->waiting, operation); /* the flush gives it to the kernel, with others */
	else
		pool_submit(aio, operation);
}

static void complete(struct disk_aio *aio, struct disk_aio_operation *operation)
{
	aio->in_flight--;
	operation->done(operation, operation->error);
}

/* A result of the ring. Whatever is not simply all of it goes to the pool, whose functions know short transfers and
 * ends of files. */
static void ring_result(struct disk_aio *aio, struct disk_aio_operation *operation, int result)
{
	aio->uring_in_flight--;
	if (operation->kind == AIO_SYNC && result < 0 && result != -EINTR && result != -EAGAIN)
		atomic_store(&operation->file->sync_error, result);
	bool whole =
	    operation->kind == AIO_SYNC ? result == 0 : result >= 0 && (uint64_t)result == operation_length(operation);
	if (whole) {
		complete(aio, operation);
	} else if (result >= 0 || result == -EINTR || result == -EAGAIN) {
		pool_submit(aio, operation);
	} else {
		operation->error = result;
		complete(aio, operation);
	}
}

static void ring_completions(struct disk_aio *aio)
{
	struct io_uring_cqe *entry;

	while (aio->uring_ready && io_uring_peek_cqe(&aio->ring, &entry) == 0) {
		struct disk_aio_operation *operation = io_uring_cqe_get_data(entry);
		int result = entry->res;

		io_uring_cqe_seen(&aio->ring, entry);
		ring_result(aio, operation, result);
	}
}

/* What waits goes to the kernel, as far as the ring has room. A direct write that is alone is made here. */
static void start_waiting(struct disk_aio *aio)
{
	struct disk_aio_operation *first = aio->waiting.first;
	struct io_uring_sqe *entry;

	if (first && !first->next && aio->uring_in_flight == 0 && !is_cached(first->file) && write_inline(aio, first)) {
		queue_init(&aio->waiting);
		return;
	}
	while (aio->waiting.first && aio->uring_in_flight < RING_ENTRIES && (entry = io_uring_get_sqe(&aio->ring)))
		ring_prepare(aio, entry, queue_get(&aio->waiting));
	if (io_uring_sq_ready(&aio->ring))
		ring_push(aio);
}

/* What is added meanwhile waits for the next turn of the loop. */
static void complete_all(struct disk_aio *aio, struct queue *queue)
{
	struct disk_aio_operation *operation = queue->first, *next;

	queue_init(queue);
	for (; operation; operation = next) {
		next = operation->next;
		complete(aio, operation);
	}
}

static void pool_completions(struct disk_aio *aio)
{
	struct queue finished;

	pthread_mutex_lock(&aio->lock);
	finished = aio->finished;
	queue_init(&aio->finished);
	pthread_mutex_unlock(&aio->lock);
	complete_all(aio, &finished);
}

static void all_completions(struct disk_aio *aio)
{
	ring_completions(aio);
	pool_completions(aio);
	complete_all(aio, &aio->written);
}

static void ready(void *owner, uint32_t events)
{
	all_completions(owner);
}

/* A completion that the kernel will put into the ring when this thread calls it next (IORING_SETUP_TASKRUN_FLAG). */
static bool completion_waits(const struct io_uring *ring)
{
	return __atomic_load_n(ring->sq.kflags, __ATOMIC_ACQUIRE) & IORING_SQ_TASKRUN;
}

/* Busy waiting sees the ring's; what the pool does takes longer anyway. */
static bool poll_completions(void *owner)
{
	struct disk_aio *aio = owner;

	if (!aio->uring_ready || (!io_uring_cq_ready(&aio->ring) && !completion_waits(&aio->ring)))
		return false;
	ring_completions(aio);
	return true;
}

/* Before the loop waits. What was written inline is done, which may bring new operations. */
static void flush(void *owner)
{
	struct disk_aio *aio = owner;

	do {
		while (aio->written.first)
			complete_all(aio, &aio->written);
		if (aio->uring_ready)
			start_waiting(aio);
	} while (aio->written.first);
}

/* Without interrupting this thread for each completion, where the kernel knows how (Linux 5.19). */
static int ring_init(struct io_uring *ring)
{
	int error = io_uring_queue_init(RING_ENTRIES, ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);

	return error == -EINVAL ? io_uring_queue_init(RING_ENTRIES, ring, 0) : error;
}

struct disk_aio *disk_aio_create(struct event_loop *loop, bool threads_only)
{
	struct disk_aio *aio = calloc(1, sizeof(*aio));

	if (!aio)
		return NULL;
	aio->loop = loop;
	aio->threads_only = threads_only;
	queue_init(&aio->waiting);
	queue_init(&aio->written);
	queue_init(&aio->todo);
	queue_init(&aio->finished);
	pthread_mutex_init(&aio->lock, NULL);
	pthread_cond_init(&aio->work, NULL);
	aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (aio->event_fd >= 0)
		aio->source = event_source_add(loop, aio->event_fd, EPOLLIN | EPOLLET, ready, aio);
	if (!aio->source) {
		int error = errno;

		if (aio->event_fd >= 0)
			close(aio->event_fd);
		free(aio);
		errno = error;
		return NULL;
	}
	if (!threads_only && ring_init(&aio->ring) == 0) {
		aio->uring_ready = io_uring_register_eventfd(&aio->ring, aio->event_fd) == 0;
		if (!aio->uring_ready)
			io_uring_queue_exit(&aio->ring);
	}
	event_source_set_poll(aio->source, poll_completions);
	event_source_set_flush(aio->source, flush);
	return aio;
}

void disk_aio_drain(struct disk_aio *aio)
{
	while (aio->in_flight) {
		struct pollfd wait = {.fd = aio->event_fd, .events = POLLIN};

		uint64_t count;

		all_completions(aio);
		flush(aio);
		if (aio->in_flight && poll(&wait, 1, -1) < 0 && errno != EINTR)
			return;
		/* The loop learns of new ones by the edge. */
		if (read(aio->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR)
			return;
	}
}

void disk_aio_destroy(struct disk_aio *aio)
{
	disk_aio_drain(aio);
	pthread_mutex_lock(&aio->lock);
	aio->ending = true;
	pthread_cond_broadcast(&aio->work);
	pthread_mutex_unlock(&aio->lock);
	for (unsigned i = 0; i < aio->threads; i++)
		pthread_join(aio->thread[i], NULL);
	event_source_remove(aio->source);
	if (aio->uring_ready)
		io_uring_queue_exit(&aio->ring);
	close(aio->event_fd);
	pthread_cond_destroy(&aio->work);
	pthread_mutex_destroy(&aio->lock);
	free(aio);
}

bool disk_aio_uses_io_uring(const struct disk_aio *aio)
{
	return aio->uring_ready;
}
