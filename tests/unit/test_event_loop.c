/* The event loop: pipes, removal from within, other threads, regular files, stop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "host/busy_wait.h"
#include "host/event_loop.h"

struct reader {
	struct event_loop *loop;
	struct event_source *source;
	int fd;
	unsigned calls, bytes;
	unsigned stop_after; /* calls; 0: never */
	bool remove_itself;
	struct reader *remove_other;
	uint32_t seen;
};

static void reader_ready(void *owner, uint32_t events)
{
	struct reader *reader = owner;
	char byte;

	reader->calls++;
	reader->seen |= events;
	if (events & EPOLLIN && read(reader->fd, &byte, 1) == 1)
		reader->bytes++;
	if (reader->remove_other && reader->remove_other->source) {
		event_source_remove(reader->remove_other->source);
		reader->remove_other->source = NULL;
	}
	if (reader->remove_itself) {
		event_source_remove(reader->source);
		reader->source = NULL;
	}
	if (reader->calls == reader->stop_after)
		event_loop_stop(reader->loop);
}

static void reader_add(struct reader *reader, struct event_loop *loop, int fd)
{
	reader->loop = loop;
	reader->fd = fd;
	reader->source = event_source_add(loop, fd, EPOLLIN, reader_ready, reader);
	assert_non_null(reader->source);
}

static void put(int fd, const char *text, size_t length)
{
	assert_int_equal(write(fd, text, length), length);
}

static void test_reads(void **unused)
{
	struct event_loop *loop = event_loop_create();
	struct reader reader = {.stop_after = 3};
	int pipes[2];

	assert_int_equal(pipe(pipes), 0);
	reader_add(&reader, loop, pipes[0]);
	put(pipes[1], "abc", 3);
	event_loop_run(loop);
	assert_int_equal(reader.bytes, 3);
	/* It can run again, and a stop that comes first is not lost. */
	event_loop_stop(loop);
	event_loop_run(loop);
	assert_int_equal(reader.calls, 3);
	event_source_remove(reader.source);
	event_loop_destroy(loop);
	close(pipes[0]);
	close(pipes[1]);
}

/* Two are ready in one batch, whichever comes first removes the other: exactly one is called. */
static void test_removal_in_batch(void **unused)
{
	struct event_loop *loop = event_loop_create();
	struct reader a = {.stop_after = 1}, b = {.stop_after = 1};
	int pipe_a[2], pipe_b[2];

	assert_int_equal(pipe(pipe_a) | pipe(pipe_b), 0);
	a.remove_other = &b;
	b.remove_other = &a;
	a.remove_itself = b.remove_itself = false;
	reader_add(&a, loop, pipe_a[0]);
	reader_add(&b, loop, pipe_b[0]);
	put(pipe_a[1], "x", 1);
	put(pipe_b[1], "x", 1);
	event_loop_run(loop);
	assert_int_equal(a.calls + b.calls, 1);
	event_source_remove(a.source);
	event_source_remove(b.source);
	event_source_remove(NULL);

	struct reader self = {.stop_after = 1, .remove_itself = true};
	reader_add(&self, loop, pipe_a[0]);
	put(pipe_a[1], "yy", 2);
	event_loop_run(loop);
	assert_int_equal(self.calls, 1);
	assert_null(self.source);
	event_loop_destroy(loop);
	close(pipe_a[0]);
	close(pipe_a[1]);
	close(pipe_b[0]);
	close(pipe_b[1]);
}

/* A hang-up is told once one wants events; a source that wants none is left alone. */
static void test_change(void **unused)
{
	struct event_loop *loop = event_loop_create();
	struct reader quiet = {0}, noisy = {.stop_after = 2};
	int pipe_a[2], pipe_b[2];

	assert_int_equal(pipe(pipe_a) | pipe(pipe_b), 0);
	reader_add(&quiet, loop, pipe_a[0]);
	reader_add(&noisy, loop, pipe_b[0]);
	assert_int_equal(event_source_change(quiet.source, 0), 0);
	close(pipe_a[1]);
	put(pipe_b[1], "xy", 2);
	event_loop_run(loop);
	assert_int_equal(quiet.calls, 0);
	quiet.stop_after = 1;
	assert_int_equal(event_source_change(quiet.source, EPOLLIN), 0);
	event_loop_run(loop);
	assert_true(quiet.seen & EPOLLHUP);
	event_source_remove(quiet.source);
	event_source_remove(noisy.source);
	assert_null(event_source_add(loop, -1, EPOLLIN, reader_ready, NULL));
	event_loop_destroy(loop);
	close(pipe_a[0]);
	close(pipe_b[0]);
	close(pipe_b[1]);
}

/* epoll refuses regular files; here they are always ready. */
static void test_regular_file(void **unused)
{
	struct event_loop *loop = event_loop_create();
	struct reader reader = {.stop_after = 5};
	FILE *file = tmpfile();

	fputs("abc", file);
	rewind(file);
	reader_add(&reader, loop, fileno(file));
	event_loop_run(loop);
	assert_int_equal(reader.bytes, 3);
	assert_int_equal(reader.calls, 5);
	assert_int_equal(event_source_change(reader.source, 0), 0);
	event_loop_stop(loop);
	event_loop_run(loop);
	assert_int_equal(reader.calls, 5);
	event_source_remove(reader.source);
	event_loop_destroy(loop);
	fclose(file);
}

static void *run(void *loop)
{
	event_loop_run(loop);
	return NULL;
}

/* Another thread adds, changes and removes while the loop runs. */
static void test_threads(void **unused)
{
	struct event_loop *loop = event_loop_create();
	pthread_t thread;
	int pipes[2];
	struct reader *readers = calloc(2000, sizeof(*readers));

	assert_int_equal(pipe(pipes), 0);
	put(pipes[1], "x", 1);
	int unread[2];
	assert_int_equal(pipe(unread), 0);
	pthread_create(&thread, NULL, run, loop);
	for (unsigned i = 0; i < 2000; i++) {
		readers[i].loop = loop;
		readers[i].fd = unread[0];
		readers[i].source = event_source_add(loop, unread[0], EPOLLIN, reader_ready, &readers[i]);
		assert_non_null(readers[i].source);
		event_source_change(readers[i].source, i & 1 ? 0 : EPOLLOUT);
		event_source_remove(readers[i].source);
	}
	event_loop_stop(loop);
	pthread_join(thread, NULL);
	event_loop_destroy(loop);
	free(readers);
	close(pipes[0]);
	close(pipes[1]);
	close(unread[0]);
	close(unread[1]);
}

/* A partner that asks through memory, and signals the descriptor only where the header says that it must. */
struct partner {
	struct event_loop *loop;
	struct event_source *source;
	int fd;
	_Atomic unsigned asked, answered;
	unsigned flushed, unflushed;
	_Atomic unsigned polled, unsignalled;
};

static bool partner_poll(void *owner)
{
	struct partner *partner = owner;
	unsigned asked = atomic_load(&partner->asked);

	atomic_fetch_add(&partner->polled, 1);
	if (asked == atomic_load(&partner->answered))
		return false;
	partner->unflushed++;
	atomic_store(&partner->answered, asked);
	return true;
}

static void partner_ready(void *owner, uint32_t events)
{
	partner_poll(owner);
}

static void partner_flush(void *owner)
{
	struct partner *partner = owner;

	partner->flushed += partner->unflushed;
	partner->unflushed = 0;
}

/* No request is lost, whatever the moment at which it comes; with two processors some are seen without a signal. */
static void test_busy_waiting(void **state)
{
	struct partner partner = {.loop = event_loop_create(), .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	const struct timespec rest = {.tv_nsec = 300000};
	uint64_t one = 1;
	pthread_t thread;

	partner.source = event_source_add(partner.loop, partner.fd, EPOLLIN | EPOLLET, partner_ready, &partner);
	assert_non_null(partner.source);
	event_source_set_poll(partner.source, partner_poll);
	event_source_set_flush(partner.source, partner_flush);
	pthread_create(&thread, NULL, run, partner.loop);
	for (unsigned i = 1; i <= 4000; i++) {
		atomic_store(&partner.asked, i);
		if (event_loop_polls(partner.loop))
			atomic_fetch_add(&partner.unsignalled, 1);
		else
			assert_int_equal(write(partner.fd, &one, sizeof(one)), sizeof(one));
		for (unsigned spins = 0; atomic_load(&partner.answered) != i; spins++) {
			assert_true(spins < 100000000);
			sched_yield();
		}
		for (volatile unsigned wait = 0; wait < i * 37 % 2000; wait++)
			;
		if (i % 500 == 0)
			nanosleep(&rest, NULL);
	}
	event_loop_stop(partner.loop);
	pthread_join(thread, NULL);
	assert_true(partner.flushed + partner.unflushed > 0);
	assert_true(partner.unflushed <= 1); /* the end may come before the flush */
	printf("%u of 4000 requests without a signal\n", atomic_load(&partner.unsignalled));
	event_source_remove(partner.source);
	event_loop_destroy(partner.loop);
	close(partner.fd);
}

/* Short waits are looked through at once; longer ones where all of the last few were so; one that is too long ends it. */
static void test_wait_lengths(void **state)
{
	struct busy_wait wait = {.possible = true};

	assert_int_equal(busy_wait_length(&wait), 0);
	busy_wait_learn(&wait, 50000, false, true);
	assert_int_equal(busy_wait_length(&wait), BUSY_WAIT_NS);
	for (unsigned i = 0; i < BUSY_WAIT_RECENT; i++)
		busy_wait_learn(&wait, 20000000, true, true);
	assert_true(busy_wait_length(&wait) < BUSY_WAIT_NS);
	for (unsigned i = 0; i < 8; i++)
		busy_wait_learn(&wait, 20000000, true, true);
	assert_int_equal(busy_wait_length(&wait), 0);
	for (unsigned i = 0; i < BUSY_WAIT_RECENT; i++) {
		assert_int_equal(busy_wait_length(&wait), 0);
		busy_wait_learn(&wait, 300000, false, true);
	}
	assert_int_equal(busy_wait_length(&wait), 450000);
	assert_true(busy_wait_begin(&wait));
	assert_in_range(busy_wait_nap(&wait), 1, 150000);
	for (unsigned i = 0; i < 3 * BUSY_WAIT_RECENT; i++) {
		busy_wait_learn(&wait, 500000 + i, true, false);
		assert_true(busy_wait_length(&wait) <= BUSY_WAIT_LONG_NS);
	}
	assert_int_equal(busy_wait_length(&wait), BUSY_WAIT_LONG_NS);
	busy_wait_learn(&wait, BUSY_WAIT_LONG_NS + 1, true, true);
	for (unsigned i = 0; i < BUSY_WAIT_RECENT; i++) {
		assert_int_equal(busy_wait_length(&wait), 0);
		busy_wait_learn(&wait, 0, true, false);
	}
	assert_true(busy_wait_length(&wait) <= 1);
	busy_wait_begin(&wait);
	assert_int_equal(busy_wait_nap(&wait), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_reads),        cmocka_unit_test(test_removal_in_batch),
	    cmocka_unit_test(test_change),       cmocka_unit_test(test_regular_file),
	    cmocka_unit_test(test_threads),      cmocka_unit_test(test_busy_waiting),
	    cmocka_unit_test(test_wait_lengths),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
