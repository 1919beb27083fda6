/* The event loop: pipes, removal from within, other threads, regular files, stop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>

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

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_reads),        cmocka_unit_test(test_removal_in_batch), cmocka_unit_test(test_change),
	    cmocka_unit_test(test_regular_file), cmocka_unit_test(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
