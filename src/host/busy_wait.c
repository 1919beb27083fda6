#include "host/busy_wait.h"

#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define YIELD_NS     2500u
#define HOLE_NS      200000u /* of our own time: a hypervisor, or somebody else who has much to do on this processor, */
#define PAUSE_NS     20000000u /* ... and then we sleep like everybody, longer each time that follows soon */
#define PAUSE_MOST   640000000u
#define NAP_LEAST_NS 50000u /* shorter ones are not worth their timer */
#define NAP_EARLY_NS 80000u /* to wake up from it; the kernel is 50 us late by default */
#define LEAST_NS     4000u
#define LOOKS_NS     15000u
#define SLEEP_NS     30000u

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
	wait->length = wait->start >= wait->from ? busy_wait_length(wait) : 0;
	return wait->length > 0;
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
		memset(wait->recent, 0, sizeof wait->recent);
		wait->pause = now - wait->from > PAUSE_MOST ? PAUSE_NS
		              : wait->pause < PAUSE_MOST    ? 2 * wait->pause
		                                            : PAUSE_MOST;
		wait->from = now + wait->pause;
		return false;
	}
	if (now - wait->start >= wait->length)
		return false;
	if (now - wait->yielded > YIELD_NS) {
		wait->yielded = now;
		sched_yield();
	}
	return true;
}

uint64_t busy_wait_length(const struct busy_wait *wait)
{
	uint64_t longest = 0, length;

	for (unsigned i = 0; i < BUSY_WAIT_RECENT; i++) {
		if (wait->recent[i] == 0 || wait->recent[i] > BUSY_WAIT_LONG_NS)
			return wait->limit;
		if (wait->recent[i] > longest)
			longest = wait->recent[i];
	}
	length = longest + longest / 2;
	if (length > BUSY_WAIT_LONG_NS)
		length = BUSY_WAIT_LONG_NS;
	return length > wait->limit ? length : wait->limit;
}

uint64_t busy_wait_nap(const struct busy_wait *wait)
{
	uint64_t shortest = UINT64_MAX;

	for (unsigned i = 0; i < BUSY_WAIT_RECENT; i++)
		if (wait->recent[i] < shortest)
			shortest = wait->recent[i];
	if (wait->length <= wait->limit || shortest / 2 < NAP_LEAST_NS + NAP_EARLY_NS)
		return 0;
	return shortest / 2 - NAP_EARLY_NS;
}

void busy_wait_napped(struct busy_wait *wait)
{
	wait->last = wait->yielded = busy_wait_now();
}

void busy_wait_learn(struct busy_wait *wait, uint64_t ns, bool looked, bool slept)
{
	wait->recent[wait->next++ % BUSY_WAIT_RECENT] = ns > 0 ? ns : 1;
	if (!slept)
		return;
	if (ns <= BUSY_WAIT_NS)
		wait->limit = BUSY_WAIT_NS;
	else if (looked)
		wait->limit = wait->limit > LEAST_NS ? wait->limit / 2 : 0;
}

void busy_wait_found(struct busy_wait *wait)
{
	busy_wait_learn(wait, wait->last - wait->start, true, false);
}

void busy_wait_slept(struct busy_wait *wait, bool looked)
{
	if (!wait->possible)
		return;
	uint64_t now = busy_wait_now();

	/* Who was in others' way begins anew. */
	if (now >= wait->from)
		busy_wait_learn(wait, now - wait->start, looked, true);
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
