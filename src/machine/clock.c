#include "machine/clock.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "host/event_loop.h"
#include "machine/state.h"

#define NS_PER_SECOND 1000000000ull
#define NEVER         UINT64_MAX
#define TIMERS_USUAL  256 /* room made at creation */
#define TIMERS_MAX    65536

struct clock {
	bool manual;
	uint64_t tsc_khz;

	/*
	 * The time line, read without the lock: writers, who hold it, make `sequence` odd meanwhile. Running: guest
	 * time = host time + ns, TSC = host's + tsc. Standing (paused, or manual): the values themselves.
	 */
	_Atomic uint32_t sequence;
	_Atomic bool standing;
	_Atomic uint64_t ns, tsc;
	_Atomic uint64_t utc; /* ns since 1970 at guest time 0 */

	pthread_mutex_t lock; /* all that follows, every timer, and writing of the above */
	unsigned pauses;
	struct timer **heap; /* heap[0] is the earliest */
	unsigned count, capacity;
	int timerfd;
	uint64_t programmed; /* host time for which the timerfd is set, or NEVER */

	struct event_source *source;
	void (*device_lock)(void *);
	void (*device_unlock)(void *);
	void *device_lock_owner;
};

static uint64_t host_ns(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* Host time and TSC of one moment: of several readings the one least disturbed. */
static void host_pair(clockid_t id, unsigned tries, uint64_t *ns, uint64_t *tsc)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < tries; i++) {
		uint64_t before = __rdtsc();
		uint64_t time = host_ns(id);
		uint64_t after = __rdtsc();
		if (after - before < best) {
			best = after - before;
			*ns = time;
			*tsc = before + best / 2;
		}
	}
}

/* The TSC frequency as CPUID tells it, 0 when it does not (SDM 2A CPUID leaf 15h; 40000010h of hypervisors). */
static uint64_t cpuid_tsc_khz(void)
{
	unsigned a, b, c, d;

	if (__get_cpuid_count(0x15, 0, &a, &b, &c, &d) && a && b && c)
		return (uint64_t)c * b / a / 1000;
	__cpuid(1, a, b, c, d);
	if (!(c >> 31))
		return 0;
	__cpuid(0x40000000, a, b, c, d);
	if (a < 0x40000010 || a > 0x40001000)
		return 0;
	__cpuid(0x40000010, a, b, c, d);
	return a;
}

/*
 * CLOCK_MONOTONIC_RAW is the host kernel's view of the TSC without NTP's slewing; two readings 8 ms apart give the
 * frequency to a few parts per million. CPUID's figure, exact where it is one, is taken when the measurement bears it
 * out.
 */
static uint64_t host_tsc_khz(void)
{
	uint64_t ns[2] = {0}, tsc[2] = {0};
	struct timespec pause = {.tv_nsec = 8000000};

	host_pair(CLOCK_MONOTONIC_RAW, 32, &ns[0], &tsc[0]);
	nanosleep(&pause, NULL);
	host_pair(CLOCK_MONOTONIC_RAW, 32, &ns[1], &tsc[1]);
	uint64_t elapsed = ns[1] - ns[0];
	if (elapsed == 0)
		return 1000000;
	uint64_t khz = (uint64_t)(((unsigned __int128)(tsc[1] - tsc[0]) * 1000000 + elapsed / 2) / elapsed);
	uint64_t told = cpuid_tsc_khz(), tolerance = khz / 2000;
	if (told >= khz - tolerance && told <= khz + tolerance)
		khz = told;
	return khz ? khz : 1;
}

/* Writers hold the lock. The release stores keep the order sequence, values, sequence. */
static void line_set(struct clock *clock, bool standing, uint64_t ns, uint64_t tsc)
{
	uint32_t sequence = atomic_load_explicit(&clock->sequence, memory_order_relaxed);

	atomic_store_explicit(&clock->sequence, sequence + 1, memory_order_relaxed);
	atomic_store_explicit(&clock->standing, standing, memory_order_release);
	atomic_store_explicit(&clock->ns, ns, memory_order_release);
	atomic_store_explicit(&clock->tsc, tsc, memory_order_release);
	atomic_store_explicit(&clock->sequence, sequence + 2, memory_order_release);
}

static bool line_get(struct clock *clock, uint64_t *ns, uint64_t *tsc)
{
	for (;;) {
		uint32_t sequence = atomic_load_explicit(&clock->sequence, memory_order_acquire);
		bool standing = atomic_load_explicit(&clock->standing, memory_order_acquire);
		*ns = atomic_load_explicit(&clock->ns, memory_order_acquire);
		*tsc = atomic_load_explicit(&clock->tsc, memory_order_acquire);
		if (!(sequence & 1) && sequence == atomic_load_explicit(&clock->sequence, memory_order_relaxed))
			return standing;
		_mm_pause();
	}
}

uint64_t clock_now(struct clock *clock)
{
	uint64_t ns, tsc;

	if (line_get(clock, &ns, &tsc))
		return ns;
	return host_ns(CLOCK_MONOTONIC) + ns;
}

uint64_t clock_tsc(struct clock *clock)
{
	uint64_t ns, tsc;

	if (line_get(clock, &ns, &tsc))
		return tsc;
	return __rdtsc() + tsc;
}

void clock_now_and_tsc(struct clock *clock, uint64_t *ns, uint64_t *tsc)
{
	uint64_t now = 0, now_tsc = 0;

	if (line_get(clock, ns, tsc))
		return;
	host_pair(CLOCK_MONOTONIC, 3, &now, &now_tsc);
	*ns += now;
	*tsc += now_tsc;
}

uint64_t clock_tsc_host_offset(const struct clock *clock)
{
	return atomic_load_explicit(&clock->tsc, memory_order_acquire);
}

bool clock_is_host(const struct clock *clock)
{
	return !clock->manual;
}

uint64_t clock_tsc_khz(const struct clock *clock)
{
	return clock->tsc_khz;
}

uint64_t clock_tsc_to_ns(const struct clock *clock, uint64_t tsc)
{
	unsigned __int128 ns = (unsigned __int128)tsc * 1000000 / clock->tsc_khz;

	return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

uint64_t clock_ns_to_tsc(const struct clock *clock, uint64_t ns)
{
	unsigned __int128 tsc = ((unsigned __int128)ns * clock->tsc_khz + 999999) / 1000000;

	return tsc > UINT64_MAX ? UINT64_MAX : (uint64_t)tsc;
}

void clock_utc(struct clock *clock, uint64_t *seconds, uint32_t *nanoseconds)
{
	uint64_t utc = atomic_load(&clock->utc) + clock_now(clock);

	*seconds = utc / NS_PER_SECOND;
	*nanoseconds = (uint32_t)(utc % NS_PER_SECOND);
}

/* The heap; heap_index is the timer's place. */
static void heap_place(struct clock *clock, struct timer *timer, unsigned index)
{
	clock->heap[index] = timer;
	timer->heap_index = index;
}

static void heap_up(struct clock *clock, unsigned index)
{
	struct timer *timer = clock->heap[index];

	while (index > 0 && clock->heap[(index - 1) / 2]->deadline > timer->deadline) {
		heap_place(clock, clock->heap[(index - 1) / 2], index);
		index = (index - 1) / 2;
	}
	heap_place(clock, timer, index);
}

static void heap_down(struct clock *clock, unsigned index)
{
	struct timer *timer = clock->heap[index];

	for (;;) {
		unsigned child = 2 * index + 1;
		if (child >= clock->count)
			break;
		if (child + 1 < clock->count && clock->heap[child + 1]->deadline < clock->heap[child]->deadline)
			child++;
		if (clock->heap[child]->deadline >= timer->deadline)
			break;
		heap_place(clock, clock->heap[child], index);
		index = child;
	}
	heap_place(clock, timer, index);
}

static void heap_remove(struct clock *clock, struct timer *timer)
{
	unsigned index = timer->heap_index;

	timer->armed = false;
	clock->count--;
	if (index == clock->count)
		return;
	heap_place(clock, clock->heap[clock->count], index);
	heap_up(clock, index);
	heap_down(clock, index); /* where it has moved up, what came down is in its place */
}

static void heap_insert(struct clock *clock, struct timer *timer)
{
	timer->armed = true;
	heap_place(clock, timer, clock->count++);
	heap_up(clock, timer->heap_index);
}

/* Sets the timerfd for the earliest deadline where that has changed. The lock is held. */
static void program(struct clock *clock)
{
	uint64_t wanted = NEVER;

	if (clock->manual)
		return;
	if (!atomic_load_explicit(&clock->standing, memory_order_relaxed) && clock->count > 0) {
		uint64_t deadline = clock->heap[0]->deadline;
		if (deadline <= INT64_MAX) {
			wanted = deadline - atomic_load_explicit(&clock->ns, memory_order_relaxed);
			if ((int64_t)wanted <= 0)
				wanted = 1; /* long past, perhaps before the host was started; 0 would disarm */
		}
	}
	if (wanted == clock->programmed)
		return;
	clock->programmed = wanted;
	struct itimerspec setting = {0};
	if (wanted != NEVER) {
		setting.it_value.tv_sec = (time_t)(wanted / NS_PER_SECOND);
		setting.it_value.tv_nsec = (long)(wanted % NS_PER_SECOND);
	}
	timerfd_settime(clock->timerfd, TFD_TIMER_ABSTIME, &setting, NULL);
}

/* Takes the earliest timer out of the heap if its time, not after `limit`, has come. */
static struct timer *take_expired(struct clock *clock, uint64_t limit)
{
	if (clock->count == 0 || clock->heap[0]->deadline > limit)
		return NULL;
	struct timer *timer = clock->heap[0];
	heap_remove(clock, timer);
	return timer;
}

/*
 * On the event loop's thread. Timers that are set again to a past time wait for the next round, so that one of them
 * cannot hold the loop. The device lock is dropped between timers: vCPUs wait for it.
 */
static void timerfd_ready(void *owner, uint32_t events)
{
	struct clock *clock = owner;
	uint64_t ticks, limit = clock_now(clock);
	bool more = true;

	if (read(clock->timerfd, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
		return;
	pthread_mutex_lock(&clock->lock);
	unsigned rounds = clock->count;
	clock->programmed = NEVER; /* it has fired */
	pthread_mutex_unlock(&clock->lock);
	while (more) {
		struct timer *timer = NULL;
		if (clock->device_lock)
			clock->device_lock(clock->device_lock_owner);
		pthread_mutex_lock(&clock->lock);
		if (rounds > 0 && !atomic_load_explicit(&clock->standing, memory_order_relaxed))
			timer = take_expired(clock, limit);
		pthread_mutex_unlock(&clock->lock);
		if (timer)
			timer->expired(timer->owner);
		if (clock->device_unlock)
			clock->device_unlock(clock->device_lock_owner);
		more = timer != NULL;
		rounds--;
	}
	pthread_mutex_lock(&clock->lock);
	program(clock);
	pthread_mutex_unlock(&clock->lock);
}

static struct clock *clock_new(void)
{
	struct clock *clock = calloc(1, sizeof(*clock));

	if (!clock)
		return NULL;
	clock->timerfd = -1;
	clock->programmed = NEVER;
	clock->capacity = TIMERS_USUAL;
	clock->heap = malloc(TIMERS_USUAL * sizeof(struct timer *));
	if (!clock->heap) {
		free(clock);
		return NULL;
	}
	pthread_mutex_init(&clock->lock, NULL);
	return clock;
}

struct clock *clock_create(void)
{
	struct clock *clock = clock_new();
	uint64_t ns = 0, tsc = 0;

	if (!clock)
		return NULL;
	clock->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (clock->timerfd < 0) {
		int error = errno;
		clock_destroy(clock);
		errno = error;
		return NULL;
	}
	clock->tsc_khz = host_tsc_khz();
	host_pair(CLOCK_MONOTONIC, 16, &ns, &tsc);
	atomic_store(&clock->utc, host_ns(CLOCK_REALTIME));
	line_set(clock, false, -ns, -tsc);
	return clock;
}

struct clock *clock_create_manual(void)
{
	struct clock *clock = clock_new();

	if (!clock)
		return NULL;
	clock->manual = true;
	clock->tsc_khz = 1000000;
	atomic_store(&clock->utc, 946684800 * NS_PER_SECOND); /* 2000-01-01 */
	line_set(clock, true, 0, 0);
	return clock;
}

void clock_destroy(struct clock *clock)
{
	if (!clock)
		return;
	event_source_remove(clock->source);
	if (clock->timerfd >= 0)
		close(clock->timerfd);
	pthread_mutex_destroy(&clock->lock);
	free(clock->heap);
	free(clock);
}

int clock_attach(struct clock *clock, struct event_loop *loop, void (*lock)(void *), void (*unlock)(void *),
                 void *owner)
{
	if (clock->manual || clock->source)
		return -EINVAL;
	clock->device_lock = lock;
	clock->device_unlock = unlock;
	clock->device_lock_owner = owner;
	clock->source = event_source_add(loop, clock->timerfd, EPOLLIN, timerfd_ready, clock);
	return clock->source ? 0 : -errno;
}

void clock_advance(struct clock *clock, uint64_t ns)
{
	struct timer *timer;

	pthread_mutex_lock(&clock->lock);
	if (!clock->manual || clock->pauses > 0) {
		pthread_mutex_unlock(&clock->lock);
		return;
	}
	uint64_t target = atomic_load_explicit(&clock->ns, memory_order_relaxed) + ns;
	while ((timer = take_expired(clock, target))) {
		uint64_t now = atomic_load_explicit(&clock->ns, memory_order_relaxed);
		if (timer->deadline > now)
			line_set(clock, true, timer->deadline, clock->tsc + (timer->deadline - now));
		pthread_mutex_unlock(&clock->lock);
		timer->expired(timer->owner);
		pthread_mutex_lock(&clock->lock);
	}
	line_set(clock, true, target, clock->tsc + (target - clock->ns));
	pthread_mutex_unlock(&clock->lock);
}

void clock_pause(struct clock *clock)
{
	uint64_t ns, tsc;

	pthread_mutex_lock(&clock->lock);
	if (clock->pauses++ == 0 && !clock->manual) {
		clock_now_and_tsc(clock, &ns, &tsc);
		line_set(clock, true, ns, tsc);
		program(clock);
	}
	pthread_mutex_unlock(&clock->lock);
}

void clock_resume(struct clock *clock)
{
	uint64_t ns = 0, tsc = 0;

	pthread_mutex_lock(&clock->lock);
	if (clock->pauses > 0 && --clock->pauses == 0 && !clock->manual) {
		host_pair(CLOCK_MONOTONIC, 3, &ns, &tsc);
		line_set(clock, false, clock->ns - ns, clock->tsc - tsc);
		program(clock);
	}
	pthread_mutex_unlock(&clock->lock);
}

void timer_init(struct timer *timer, struct clock *clock, void (*expired)(void *owner), void *owner)
{
	*timer = (struct timer){.clock = clock, .expired = expired, .owner = owner};
}

/* Room for one more. Timers are few and of the machine's own making: the list grows with the number of chips, not with
 * what the guest does. */
static bool heap_reserve(struct clock *clock)
{
	if (clock->count < clock->capacity)
		return true;
	unsigned capacity = 2 * clock->capacity;
	struct timer **heap = capacity <= TIMERS_MAX ? realloc(clock->heap, capacity * sizeof(struct timer *)) : NULL;
	if (!heap)
		return false;
	clock->heap = heap;
	clock->capacity = capacity;
	return true;
}

void timer_set(struct timer *timer, uint64_t deadline)
{
	struct clock *clock = timer->clock;

	pthread_mutex_lock(&clock->lock);
	if (timer->armed) {
		uint64_t old = timer->deadline;
		timer->deadline = deadline;
		if (deadline < old)
			heap_up(clock, timer->heap_index);
		else
			heap_down(clock, timer->heap_index);
	} else if (heap_reserve(clock)) {
		timer->deadline = deadline;
		heap_insert(clock, timer);
	}
	program(clock);
	pthread_mutex_unlock(&clock->lock);
}

void timer_cancel(struct timer *timer)
{
	struct clock *clock = timer->clock;

	pthread_mutex_lock(&clock->lock);
	if (timer->armed) {
		heap_remove(clock, timer);
		program(clock);
	}
	pthread_mutex_unlock(&clock->lock);
}

bool timer_pending(struct timer *timer, uint64_t *deadline)
{
	pthread_mutex_lock(&timer->clock->lock);
	bool armed = timer->armed;
	if (armed)
		*deadline = timer->deadline;
	pthread_mutex_unlock(&timer->clock->lock);
	return armed;
}

void timer_state(struct timer *timer, struct state *state, const char *field)
{
	uint64_t deadline = NEVER;

	if (!state_loading(state))
		timer_pending(timer, &deadline);
	state_u64(state, field, &deadline);
	if (!state_loading(state) || state_error(state))
		return;
	if (deadline == NEVER)
		timer_cancel(timer);
	else
		timer_set(timer, deadline);
}

static void clock_load(struct clock *clock, struct state *state, uint64_t ns, uint64_t tsc, uint64_t utc, uint64_t khz)
{
	uint64_t host = 0, host_tsc = 0, tolerance = clock->tsc_khz / 1000;

	if (khz < clock->tsc_khz - tolerance || khz > clock->tsc_khz + tolerance) {
		state_fail(state, "saved on a host whose TSC has another frequency");
		return;
	}
	if (ns > INT64_MAX) {
		state_fail(state, "time out of range");
		return;
	}
	pthread_mutex_lock(&clock->lock);
	if (!atomic_load_explicit(&clock->standing, memory_order_relaxed)) {
		host_pair(CLOCK_MONOTONIC, 3, &host, &host_tsc);
		line_set(clock, false, ns - host, tsc - host_tsc);
	} else {
		line_set(clock, true, ns, tsc);
	}
	atomic_store(&clock->utc, utc);
	program(clock);
	pthread_mutex_unlock(&clock->lock);
}

void clock_state(struct clock *clock, struct state *state)
{
	uint64_t ns, tsc, utc = atomic_load(&clock->utc), khz = clock->tsc_khz;

	clock_now_and_tsc(clock, &ns, &tsc);
	state_begin(state, "clock", 0, 1);
	state_u64(state, "ns", &ns);
	state_u64(state, "tsc", &tsc);
	state_u64(state, "utc", &utc);
	state_u64(state, "tsc-khz", &khz);
	if (state_loading(state) && !state_error(state))
		clock_load(clock, state, ns, tsc, utc, khz);
	state_end(state);
}
