/*
 * The machine's one clock: all time that the guest sees comes from here. It can be paused, saved, resumed, and in tests
 * advanced by hand.
 *
 * Time is nanoseconds since the machine was made, not counting pauses.
 *
 * Threads and locks. Every function may be called by any thread, with or without the device lock; the clock has its own
 * lock, which is the innermost of all and is held during no callback. Timers run on the event loop's thread with the
 * device lock held (or inside clock_advance() of a manual clock). So
 * - who holds the device lock (every chip) and cancels or sets a timer again knows that the old deadline's call will
 * not come any more;
 * - who does not hold it (the local APICs) may still get one late call, and must look at its own state in it, under its
 * own lock. Lock order: device lock -> local APIC's lock -> clock's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct clock;
struct event_loop;
struct state;

struct timer {
	struct clock *clock;
	void (*expired)(void *owner); /* called once per timer_set; may set it again */
	void *owner;
	uint64_t deadline; /* valid while armed */
	unsigned heap_index;
	bool armed;
};

/* A clock that follows the host's CLOCK_MONOTONIC. NULL: out of memory or descriptors (errno is set). Takes about 10 ms
 * (TSC frequency). */
struct clock *clock_create(void);
/* A clock for tests: stands still but for clock_advance(). Its TSC runs at 1 GHz. */
struct clock *clock_create_manual(void);
/* Before the event loop is destroyed. Timers still armed are forgotten. */
void clock_destroy(struct clock *clock);
/* Moves a manual clock forward, running the timers on the way, each at its own time. */
void clock_advance(struct clock *clock, uint64_t ns);

/* Timers of a real clock fire through this loop; `lock`/`unlock` are called around them (the machine's device lock). */
int clock_attach(struct clock *clock, struct event_loop *loop, void (*lock)(void *), void (*unlock)(void *),
                 void *owner);

uint64_t clock_now(struct clock *clock);
/*
 * Pause and resume are counted; while paused clock_now() stands still and no timer fires. A callback may be running
 * still when clock_pause() returns, unless the caller holds the device lock.
 */
void clock_pause(struct clock *clock);
void clock_resume(struct clock *clock);

/* Seconds and nanoseconds of UTC, for the RTC and pvclock: host's wall clock at creation plus clock_now(). */
void clock_utc(struct clock *clock, uint64_t *seconds, uint32_t *nanoseconds);

/* The guest's TSC before its per-vCPU offset: the host's TSC while running, frozen while paused, continuous over save
 * and load. */
uint64_t clock_tsc(struct clock *clock);
/* clock_now() and clock_tsc() of one moment, for pvclock. */
void clock_now_and_tsc(struct clock *clock, uint64_t *ns, uint64_t *tsc);
uint64_t clock_tsc_khz(const struct clock *clock);
uint64_t clock_tsc_to_ns(const struct clock *clock, uint64_t tsc); /* an amount, rounded down */
uint64_t clock_ns_to_tsc(const struct clock *clock, uint64_t ns);  /* an amount, rounded up; saturates */
/* guest TSC = rdtsc + this, while running; changes only at pause, resume and load. For engines that inline RDTSC. */
uint64_t clock_tsc_host_offset(const struct clock *clock);
/* Does clock_tsc() follow the host's TSC (a real clock)? Then RDTSC may be inlined with that offset. */
bool clock_is_host(const struct clock *clock);

void timer_init(struct timer *timer, struct clock *clock, void (*expired)(void *owner), void *owner);
void timer_set(struct timer *timer, uint64_t deadline); /* absolute clock_now() time; past: fires as soon as possible */
void timer_cancel(struct timer *timer);
/* Is it armed, and when does it fire? (Another thread's answer may be old when it arrives.) */
bool timer_pending(struct timer *timer, uint64_t *deadline);
/* Saves and loads whether it is armed and when (one field). */
void timer_state(struct timer *timer, struct state *state, const char *field);
void clock_state(struct clock *clock, struct state *state);
