#include "host/busy_wait.h"

#include <sched.h>
#include <sys/resource.h>
#include <time.h>

#define YIELD_NS 2500u
#define HOLE_NS  200000u   /* of our own time: a hypervisor, or somebody else who has much to do on this processor, */
#define PAUSE_NS 20000000u /* ... and then we sleep like everybody */
#define LEAST_NS 4000u
#define LOOKS_NS 15000u
#define SLEEP_NS 30000u

uint64_t busy_wait_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void busy_wait_init(struct busy_wait *wait)
{
	cpu_set_t processors;

	*wait = (struct busy_wait){.possible = sched_getaffinity(0, sizeof(processors), &processors) == 0 &&
	                                       CPU_COUNT(&processors) > 1};
}

bool busy_wait_begin(struct busy_wait *wait)
{
	if (!wait->possible)
		return false;
	wait->start = wait->last = wait->yielded = busy_wait_now();
	return wait->limit > 0 && wait->start >= wait->from;
}

/* Has the scheduler taken the processor away from this thread since the last call? */
static bool preempted(struct busy_wait *wait)
{
	struct rusage usage;

	if (getrusage(RUSAGE_THREAD, &usage) < 0 || usage.ru_nivcsw == wait->preemptions)
		return false;
	wait->preemptions = usage.ru_nivcsw;
	return true;
}

bool busy_wait_goes_on(struct busy_wait *wait)
{
	uint64_t before = wait->last, now = busy_wait_now();

	wait->last = now;
	if (now - before > HOLE_NS && preempted(wait)) {
		wait->limit = 0;
		wait->from = now + PAUSE_NS;
		return false;
	}
	if (now - wait->start >= wait->limit)
		return false;
	if (now - wait->yielded > YIELD_NS) {
		wait->yielded = now;
		sched_yield();
	}
	return true;
}

void busy_wait_slept(struct busy_wait *wait, bool looked)
{
	if (!wait->possible)
		return;
	uint64_t now = busy_wait_now();

	if (now - wait->start <= BUSY_WAIT_NS && now >= wait->from)
		wait->limit = BUSY_WAIT_NS;
	else if (looked)
		wait->limit = wait->limit > LEAST_NS ? wait->limit / 2 : 0;
}

void busy_wait_sleep(void)
{
	nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
}

void busy_wait_thread(uint64_t *since)
{
	uint64_t now = busy_wait_now();

	if (!*since)
		*since = now;
	if (now - *since < LOOKS_NS)
		__builtin_ia32_pause();
	else
		busy_wait_sleep();
}
