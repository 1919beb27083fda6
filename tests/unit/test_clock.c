/* The clock: manual time exactly, real time within generous limits (the test machine may be busy). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "host/event_loop.h"
#include "machine/clock.h"
#include "machine/state.h"

#define PATIENCE_NS 60000000000ull /* the test machine may be busy */

struct probe {
	struct timer timer;
	struct clock *clock;
	unsigned fired;
	uint64_t when;     /* clock_now() at the last call */
	uint64_t deadline; /* what it was set for */
	uint64_t period;   /* 0: one-shot */
};

static void probe_expired(void *owner)
{
	struct probe *probe = owner;

	probe->fired++;
	probe->when = clock_now(probe->clock);
	if (probe->period)
		timer_set(&probe->timer, probe->deadline += probe->period);
}

static void probe_init(struct probe *probe, struct clock *clock)
{
	*probe = (struct probe){.clock = clock};
	timer_init(&probe->timer, clock, probe_expired, probe);
}

static void probe_set(struct probe *probe, uint64_t deadline)
{
	probe->deadline = deadline;
	timer_set(&probe->timer, deadline);
}

static void test_manual(void **unused)
{
	struct clock *clock = clock_create_manual();
	struct probe a, b;
	uint64_t seconds, deadline, ns, tsc;
	uint32_t nanoseconds;

	assert_int_equal(clock_now(clock), 0);
	assert_int_equal(clock_tsc_khz(clock), 1000000);
	assert_false(clock_is_host(clock));
	probe_init(&a, clock);
	probe_init(&b, clock);
	probe_set(&a, 100);
	b.period = 30;
	probe_set(&b, 30);
	assert_true(timer_pending(&a.timer, &deadline));
	assert_int_equal(deadline, 100);
	clock_advance(clock, 99);
	assert_int_equal(a.fired, 0);
	assert_int_equal(b.fired, 3);
	assert_int_equal(b.when, 90);
	clock_advance(clock, 1);
	assert_int_equal(a.fired, 1);
	assert_int_equal(a.when, 100);
	assert_false(timer_pending(&a.timer, &deadline));
	timer_cancel(&b.timer);
	timer_cancel(&b.timer);
	clock_advance(clock, 1000000000);
	assert_int_equal(b.fired, 3);
	assert_int_equal(clock_now(clock), 1000000100);
	assert_int_equal(clock_tsc(clock), 1000000100);
	clock_now_and_tsc(clock, &ns, &tsc);
	assert_int_equal(ns, tsc);
	clock_utc(clock, &seconds, &nanoseconds);
	assert_int_equal(seconds, 946684801);
	assert_int_equal(nanoseconds, 100);
	probe_set(&a, 5); /* long past: at once, and time does not go back */
	clock_advance(clock, 0);
	assert_int_equal(a.fired, 2);
	assert_int_equal(a.when, 1000000100);
	clock_pause(clock);
	clock_advance(clock, 10);
	assert_int_equal(clock_now(clock), 1000000100);
	clock_resume(clock);
	clock_destroy(clock);
}

#define CROWD 200

/* Random settings, moves and cancellations against a simple model: each fires exactly at its deadline, in order. */
static void test_heap(void **unused)
{
	struct clock *clock = clock_create_manual();
	struct probe *probe = calloc(CROWD, sizeof(*probe));
	uint64_t model[CROWD], now = 0;
	unsigned fired[CROWD] = {0}, seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : 1;

	print_message("seed %u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < CROWD; i++) {
		probe_init(&probe[i], clock);
		model[i] = UINT64_MAX;
	}
	for (unsigned round = 0; round < 20000; round++) {
		unsigned i = (unsigned)rand() % CROWD;
		if (rand() % 4) {
			model[i] = now + 1 + (uint64_t)(rand() % 1000);
			probe_set(&probe[i], model[i]);
		} else {
			model[i] = UINT64_MAX;
			timer_cancel(&probe[i].timer);
		}
		if (rand() % 4 == 0) {
			uint64_t step = (uint64_t)(rand() % 50);
			clock_advance(clock, step);
			now += step;
			for (unsigned j = 0; j < CROWD; j++) {
				if (model[j] <= now) {
					fired[j]++;
					assert_int_equal(probe[j].when, model[j]);
					model[j] = UINT64_MAX;
				}
				assert_int_equal(probe[j].fired, fired[j]);
				assert_int_equal(probe[j].timer.armed, model[j] != UINT64_MAX);
			}
		}
	}
	free(probe);
	clock_destroy(clock);
}

static void test_conversions(void **unused)
{
	struct clock *clock = clock_create();

	assert_non_null(clock);
	assert_true(clock_is_host(clock));
	assert_in_range(clock_tsc_khz(clock), 200000, 20000000);
	for (unsigned shift = 0; shift < 60; shift++) {
		uint64_t ns = (1ull << shift) + shift * 12345;
		uint64_t back = clock_tsc_to_ns(clock, clock_ns_to_tsc(clock, ns));
		assert_in_range(back, ns, ns + 5);
	}
	assert_int_equal(clock_ns_to_tsc(clock, 0), 0);
	if (clock_tsc_khz(clock) > 1000000)
		assert_true(clock_ns_to_tsc(clock, UINT64_MAX) == UINT64_MAX);
	clock_destroy(clock);
}

static void sleep_ms(unsigned ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
	nanosleep(&time, NULL);
}

static uint64_t elapsed_ns(const struct timespec *begin, const struct timespec *end)
{
	return (uint64_t)((end->tv_sec - begin->tv_sec) * 1000000000 + end->tv_nsec - begin->tv_nsec);
}

static void test_real_time(void **unused)
{
	struct clock *clock = clock_create();
	struct timespec begin, end;
	uint64_t t0, t1, tsc0, tsc1, seconds;
	uint32_t nanoseconds;

	assert_true(clock_now(clock) < PATIENCE_NS);
	uint64_t utc = (uint64_t)time(NULL);
	clock_utc(clock, &seconds, &nanoseconds);
	assert_in_range(seconds, utc - 2, (uint64_t)time(NULL) + 2);
	assert_true(nanoseconds < 1000000000);

	/* TSC and time run at the same rate, to 250 ppm. */
	clock_gettime(CLOCK_MONOTONIC, &begin);
	clock_now_and_tsc(clock, &t0, &tsc0);
	sleep_ms(200);
	clock_now_and_tsc(clock, &t1, &tsc1);
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_true(t1 - t0 >= 200000000 && t1 - t0 <= elapsed_ns(&begin, &end));
	uint64_t ns = clock_tsc_to_ns(clock, tsc1 - tsc0);
	print_message("%llu kHz; 200 ms by TSC against time: %+lld ns\n", (unsigned long long)clock_tsc_khz(clock),
	              (long long)(ns - (t1 - t0)));
	uint64_t tolerance = (t1 - t0) / 4000;
	assert_in_range(ns, t1 - t0 - tolerance, t1 - t0 + tolerance);

	uint64_t guest = __rdtsc() + clock_tsc_host_offset(clock);
	tsc1 = clock_tsc(clock);
	assert_in_range(tsc1, guest, __rdtsc() + clock_tsc_host_offset(clock));

	clock_pause(clock);
	clock_pause(clock);
	t0 = clock_now(clock);
	tsc0 = clock_tsc(clock);
	sleep_ms(20);
	clock_resume(clock);
	assert_true(clock_now(clock) == t0);
	assert_true(clock_tsc(clock) == tsc0);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	clock_resume(clock);
	t1 = clock_now(clock);
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_in_range(t1, t0, t0 + elapsed_ns(&begin, &end));
	assert_true(clock_tsc(clock) >= tsc0);
	clock_destroy(clock);
}

/* A real clock's timers through a loop on another thread. */
struct rig {
	struct event_loop *loop;
	struct clock *clock;
	pthread_t thread;
	pthread_mutex_t lock;
};

static void rig_lock(void *owner)
{
	pthread_mutex_lock(&((struct rig *)owner)->lock);
}

static void rig_unlock(void *owner)
{
	pthread_mutex_unlock(&((struct rig *)owner)->lock);
}

static void *rig_thread(void *owner)
{
	event_loop_run(((struct rig *)owner)->loop);
	return NULL;
}

static void rig_begin(struct rig *rig)
{
	rig->loop = event_loop_create();
	rig->clock = clock_create();
	pthread_mutex_init(&rig->lock, NULL);
	assert_int_equal(clock_attach(rig->clock, rig->loop, rig_lock, rig_unlock, rig), 0);
	assert_int_equal(clock_attach(rig->clock, rig->loop, rig_lock, rig_unlock, rig), -22);
	pthread_create(&rig->thread, NULL, rig_thread, rig);
}

static void rig_end(struct rig *rig)
{
	event_loop_stop(rig->loop);
	pthread_join(rig->thread, NULL);
	clock_destroy(rig->clock);
	event_loop_destroy(rig->loop);
}

static unsigned probe_fired(struct rig *rig, struct probe *probe)
{
	rig_lock(rig);
	unsigned fired = probe->fired;
	rig_unlock(rig);
	return fired;
}

static void wait_fired(struct rig *rig, struct probe *probe, unsigned count)
{
	for (unsigned ms = 0; probe_fired(rig, probe) < count && ms < 60000; ms++)
		sleep_ms(1);
	assert_true(probe_fired(rig, probe) >= count);
}

static void test_real_timers(void **unused)
{
	struct rig rig;
	struct probe once, again, far;

	rig_begin(&rig);
	probe_init(&once, rig.clock);
	probe_init(&again, rig.clock);
	probe_init(&far, rig.clock);
	uint64_t now = clock_now(rig.clock);
	again.period = 2000000;
	probe_set(&far, now + 3600000000000);
	probe_set(&once, now + 5000000);
	probe_set(&again, now + 1000000);
	wait_fired(&rig, &once, 1);
	wait_fired(&rig, &again, 10);
	rig_lock(&rig);
	assert_true(once.when >= now + 5000000);
	assert_int_equal(far.fired, 0);
	timer_cancel(&again.timer);
	unsigned fired = again.fired;
	rig_unlock(&rig);
	sleep_ms(10);
	assert_int_equal(probe_fired(&rig, &again), fired);
	/* Earlier than what the host timer is set for; in the past; at no time at all. */
	probe_set(&far, 0);
	wait_fired(&rig, &far, 1);
	probe_set(&far, UINT64_MAX);
	probe_set(&once, clock_now(rig.clock) + 1000000);
	wait_fired(&rig, &once, 2);
	/* Paused: nothing fires, and the time is added. */
	clock_pause(rig.clock);
	uint64_t paused = clock_now(rig.clock);
	probe_set(&once, paused + 1000000);
	sleep_ms(20);
	assert_int_equal(probe_fired(&rig, &once), 2);
	clock_resume(rig.clock);
	wait_fired(&rig, &once, 3);
	rig_lock(&rig);
	assert_true(once.when >= paused + 1000000);
	assert_int_equal(far.fired, 1);
	rig_unlock(&rig);
	rig_end(&rig);
}

/* Several threads at one clock; run under TSan by make check-tsan. */
struct hammer {
	struct rig *rig;
	struct probe probe;
	unsigned seed;
};

static void *hammer_thread(void *owner)
{
	struct hammer *hammer = owner;
	uint64_t last = 0;

	for (unsigned i = 0; i < 20000; i++) {
		uint64_t now = clock_now(hammer->rig->clock);
		if (now < last)
			return "time went back";
		last = now;
		if (rand_r(&hammer->seed) % 3)
			timer_set(&hammer->probe.timer, now + (uint64_t)(rand_r(&hammer->seed) % 100000));
		else
			timer_cancel(&hammer->probe.timer);
	}
	return NULL;
}

static void test_threads(void **unused)
{
	struct rig rig;
	struct hammer hammer[3];
	pthread_t thread[3];

	rig_begin(&rig);
	for (unsigned i = 0; i < 3; i++) {
		hammer[i] = (struct hammer){.rig = &rig, .seed = i};
		probe_init(&hammer[i].probe, rig.clock);
		pthread_create(&thread[i], NULL, hammer_thread, &hammer[i]);
	}
	for (unsigned i = 0; i < 3; i++) {
		void *failure;
		pthread_join(thread[i], &failure);
		assert_null(failure);
		timer_set(&hammer[i].probe.timer, 0);
	}
	for (unsigned i = 0; i < 3; i++)
		wait_fired(&rig, &hammer[i].probe, 1);
	rig_end(&rig);
}

static void test_state(void **unused)
{
	struct clock *clock = clock_create_manual(), *other = clock_create_manual();
	struct probe set, unset;
	struct probe set2, unset2;
	size_t length;

	probe_init(&set, clock);
	probe_init(&unset, clock);
	probe_init(&set2, other);
	probe_init(&unset2, other);
	clock_advance(clock, 12345);
	probe_set(&set, 20000);
	timer_set(&unset2.timer, 3);
	struct state *save = state_save_begin();
	clock_state(clock, save);
	state_begin(save, "probe", 0, 1);
	timer_state(&set.timer, save, "set");
	timer_state(&unset.timer, save, "unset");
	state_end(save);
	const void *data = state_save_data(save, &length);
	struct state *load = state_load_begin(data, length);
	clock_state(other, load);
	state_begin(load, "probe", 0, 1);
	timer_state(&set2.timer, load, "set");
	timer_state(&unset2.timer, load, "unset");
	state_end(load);
	assert_null(state_error(load));
	assert_int_equal(clock_now(other), 12345);
	assert_int_equal(clock_tsc(other), 12345);
	clock_advance(other, 10000);
	assert_int_equal(set2.fired, 1);
	assert_int_equal(set2.when, 20000);
	assert_int_equal(unset2.fired, 0);
	state_free(load);

	/* Into a clock of another TSC rate: refused, unless the host happens to run at exactly 1 GHz. */
	struct clock *real = clock_create();
	load = state_load_begin(data, length);
	clock_state(real, load);
	if (clock_tsc_khz(real) > 1010000)
		assert_string_equal(state_error(load), "clock.0: saved on a host whose TSC has another frequency");
	state_free(load);
	state_free(save);

	/* A real clock goes on from where the saved one was. */
	save = state_save_begin();
	clock_pause(real);
	uint64_t now = clock_now(real), tsc = clock_tsc(real);
	clock_state(real, save);
	data = state_save_data(save, &length);
	struct clock *real2 = clock_create();
	clock_pause(real2);
	load = state_load_begin(data, length);
	clock_state(real2, load);
	assert_null(state_error(load));
	assert_true(clock_now(real2) == now && clock_tsc(real2) == tsc);
	clock_resume(real2);
	assert_in_range(clock_now(real2), now, now + PATIENCE_NS);
	assert_true(clock_tsc(real2) >= tsc);
	state_free(load);
	state_free(save);
	clock_destroy(real);
	clock_destroy(real2);
	clock_destroy(clock);
	clock_destroy(other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_manual),      cmocka_unit_test(test_heap),    cmocka_unit_test(test_conversions),
	    cmocka_unit_test(test_real_time),   cmocka_unit_test(test_threads), cmocka_unit_test(test_state),
	    cmocka_unit_test(test_real_timers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
