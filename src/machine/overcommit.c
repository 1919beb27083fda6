#include "machine/overcommit.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/busy_wait.h"
#include "machine/machine.h"

#define SLICE_NS 300000u
#define SLACK_NS 1000u /* of timers: the usual 50 us are longer than who spins sleeps */

/* The first version of the kernel's struct, which all know; the C library has no name for it. */
struct scheduling {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

void overcommit_init(struct vcpu *vcpu)
{
	cpu_set_t usable;

	vcpu->overcommitted = vcpu->machine && sched_getaffinity(0, sizeof(usable), &usable) == 0 &&
	                      vcpu->machine->options.cpus > (unsigned)CPU_COUNT(&usable);
}

void overcommit_thread(const struct vcpu *vcpu)
{
	struct scheduling scheduling = {.size = sizeof(scheduling)};

	if (!vcpu->overcommitted)
		return;
	prctl(PR_SET_TIMERSLACK, (unsigned long)SLACK_NS);
	if (syscall(SYS_sched_getattr, 0, &scheduling, sizeof(scheduling), 0) < 0 || scheduling.policy != SCHED_OTHER)
		return;
	scheduling.runtime = SLICE_NS;
	syscall(SYS_sched_setattr, 0, &scheduling, 0); /* older kernels do not know it, and need not */
}

void overcommit_spins(const struct vcpu *vcpu)
{
	if (vcpu->overcommitted)
		busy_wait_sleep();
	else
		sched_yield();
}
