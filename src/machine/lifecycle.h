/*
 * Private to src/machine: the run state that the vCPU threads and the rest of the machine share.
 *
 * A vCPU thread is "standing" when it is outside engine->run() and will not go in before it has looked at the run state
 * again. Everything here is guarded by `lock`, but for what is atomic.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "machine/machine.h"

struct event_source;

struct lifecycle {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* pause count, standing count, ending or step have changed */
	unsigned pauses;
	unsigned standing;    /* vCPU threads that stand */
	bool started;         /* threads exist */
	bool ending;          /* threads shall leave */
	struct vcpu *stepper; /* the one vCPU that may run while paused; it clears this when its instruction is done */

	_Atomic int64_t end; /* enum machine_end in the low half, the status in the high one; the first one wins */
	_Atomic bool reset_wanted;
	int wake_fd; /* eventfd: end or reset was asked for */
	struct event_source *wake_source;

	void (*debugger)(void *owner, struct vcpu *vcpu);
	void *debugger_owner;
};

static inline struct lifecycle *lifecycle_of(struct machine *machine)
{
	return machine->lifecycle;
}

int lifecycle_create(struct machine *machine); /* 0 or -errno */
void lifecycle_destroy(struct machine *machine);

/* For vCPU threads: waits while the machine is paused. False: the thread shall leave. */
bool lifecycle_may_run(struct vcpu *vcpu);
/* The vCPU stopped for the debugger (EXIT_DEBUG, EXIT_EXCEPTION), or finished its step. */
void lifecycle_debug_stop(struct vcpu *vcpu);
bool lifecycle_stepping(struct vcpu *vcpu);
void lifecycle_step_done(struct vcpu *vcpu);

/* pc.c: chips, CPUs and memory as after power-on, kernel loaded again. The machine is paused. 0 or -errno, logged. */
int machine_reset_all(struct machine *machine);
