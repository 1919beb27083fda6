/*
 * Private to backends/chardev: the core (chardev.c: output ring and its thread, input queue) and the kinds of back end,
 * which give it descriptors.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/chardev/chardev.h"

#define CHARDEV_OUTPUT_MAX 65536u
#define CHARDEV_INPUT_MAX  4096u

struct event_source;

/* One kind of back end. Functions may be NULL, but for open. */
struct chardev_kind {
	const char *name;     /* what the specification starts with */
	const char *argument; /* NULL: takes none; else what stands behind the colon, for messages */
	bool reconnects;      /* an output error means that the other end has gone, not that output is dead */
	int (*open)(struct chardev *chardev, const char *argument); /* 0 or -errno, logged */
	int (*attach)(struct chardev *chardev);                     /* 0 or -errno */
	void (*detach)(struct chardev *chardev);
	/* Takes what was typed; leaves in `data` what the guest gets, and returns its length. */
	size_t (*filter)(struct chardev *chardev, uint8_t *data, size_t length);
	void (*hang_up)(struct chardev *chardev); /* input has ended; its source is removed. On the loop's thread. */
	void (*close)(struct chardev *chardev);
};

extern const struct chardev_kind chardev_kind_stdio, chardev_kind_pty, chardev_kind_unix, chardev_kind_file;

struct chardev {
	const struct chardev_kind *kind;
	void *data; /* the kind's own */
	void (*quit)(void *owner);
	void *quit_owner;

	struct event_loop *loop; /* NULL: not attached */
	void (*lock)(void *);
	void (*unlock)(void *);
	void *lock_owner;
	struct chardev_client client; /* guarded by the device lock */

	/* Input: read from the host, not yet taken by the guest. The loop's thread only. */
	int input_fd; /* -1: none */
	struct event_source *input_source;
	bool input_drops; /* a terminal: what the guest does not take is lost, so that Ctrl-a is always seen */
	uint8_t input[CHARDEV_INPUT_MAX];
	size_t input_length;
	_Atomic bool input_waits; /* there is input, and the guest had no room: wake us */
	uint64_t waits_since;     /* CLOCK_MONOTONIC ns: when the guest last took something, or should have */
	int settle_fd;            /* timer: the guest is given a moment before it gets what has waited long */
	struct event_source *settle_source;
	bool settling;

	/* An eventfd that brings work to the loop's thread. */
	int wake_fd;
	struct event_source *wake_source;

	/* Output. `mutex` is taken inside the device lock and held for copying only. */
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	pthread_t writer;
	bool writer_started;
	int output_fd;    /* -1: nobody is there */
	bool output_dead; /* what comes is thrown away */
	bool writing;     /* the thread is using output_fd outside the mutex */
	bool refused;     /* the client waits for room */
	bool stop;        /* the thread ends when the ring is empty or nobody is there */
	bool abandon;     /* the thread ends now */
	bool writer_done;
	uint8_t output[CHARDEV_OUTPUT_MAX];
	size_t output_head, output_length;
};

/* Output goes to this descriptor, which stays the kind's. */
void chardev_output_open(struct chardev *chardev, int fd);
/* After it, nothing uses the descriptor any more (it must not block). */
void chardev_output_close(struct chardev *chardev);
/* Input comes from this descriptor. On the loop's thread, or before it runs. */
int chardev_input_open(struct chardev *chardev, int fd);
void chardev_input_close(struct chardev *chardev);
