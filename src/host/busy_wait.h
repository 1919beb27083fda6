/*
 * Looking for a while before sleeping: a thread switch costs more than a short wait. Sleeps that were short teach a thread to look first,
 * looks for nothing unteach it. One per thread that waits, all calls on that thread.
 *
 * Who looks does not stand in others' way: it offers its processor every few microseconds (the kernel's own threads may have to run there
 * before what we wait for is done: asynchronous writes of files end on one), and where somebody else kept it, it sleeps for
 * some time like everybody.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define BUSY_WAIT_NS 100000u /* at most, */
#define BUSY_WAIT_LONG_NS                                                                                              \
	600000u /* ... but up to this where each of the last few waits was shorter than that: requests of a fast disk */
#define BUSY_WAIT_RECENT 4u

struct busy_wait {
	bool possible;  /* there is another processor, for those who are waited for */
	uint64_t limit; /* ns, of short waits; 0: sleep at once */
	uint64_t from;  /* CLOCK_MONOTONIC ns: not before */
	uint64_t pause; /* what that was away, the last time */
	long preemptions;
	uint64_t recent[BUSY_WAIT_RECENT]; /* how long the last waits took, ns; 0: there was none yet */
	unsigned next;
	uint64_t start, last, yielded, length; /* of this wait; length: how long to look */
};

uint64_t busy_wait_now(void); /* CLOCK_MONOTONIC ns */
void busy_wait_init(struct busy_wait *wait);
/* A wait begins. Should its thread look, or sleep at once? */
bool busy_wait_begin(struct busy_wait *wait);
/*
 * For who can sleep for a given time: how long it may before it looks, ns (0: not at all), as nothing has come that early lately. Afterwards
 * busy_wait_napped().
 */
uint64_t busy_wait_nap(const struct busy_wait *wait);
void busy_wait_napped(struct busy_wait *wait);
/* After each few looks: should there be another? Sets `last` to the time. */
bool busy_wait_goes_on(struct busy_wait *wait);
/* What it looked for is there (a look after busy_wait_begin() or the last busy_wait_goes_on() has found it). */
void busy_wait_found(struct busy_wait *wait);
/* The thread slept after all; `looked`: what busy_wait_begin() said. */
void busy_wait_slept(struct busy_wait *wait, bool looked);

/* What these two learn from a wait of `ns`, and how long the next wait looks (0: not at all). */
void busy_wait_learn(struct busy_wait *wait, uint64_t ns, bool looked, bool slept);
uint64_t busy_wait_length(const struct busy_wait *wait);

/*
 * Another thread of ours is about to do something, in a microsecond or so unless the host has taken its processor away: one look was in
 * vain. Pauses, or, after some microseconds of that, sleeps for some so that the other can run. `since` is 0 at first. It does not
 * sched_yield() in a loop: for each of these newer kernels charge a whole time slice, and who waits often would get nothing any more.
 */
void busy_wait_thread(uint64_t *since);
/* Gives the processor away for some microseconds. */
void busy_wait_sleep(void);
