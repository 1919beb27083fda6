/*
 * The dispatcher: each vCPU's thread, and the one loop that takes every exit of an engine.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "debug/dump.h"
#include "devices/lapic.h"
#include "engines/engine.h"
#include "host/busy_wait.h"
#include "host/log.h"
#include "machine/lifecycle.h"
#include "machine/overcommit.h"
#include "x86/exceptions.h"

#define HALT_LOOKS 16u /* for a kick, between two of the clock */

struct vcpu_thread {
	pthread_t thread;
	_Atomic bool sleeping; /* in futex_wait on vcpu->attention */
	struct busy_wait wait;
};

void vcpu_kick(struct vcpu *vcpu, uint32_t attention)
{
	/* Another vCPU's may not have been started yet, when the first ones run already. */
	struct vcpu_thread *thread = __atomic_load_n(&vcpu->thread, __ATOMIC_ACQUIRE);

	atomic_fetch_or(&vcpu->attention, attention);
	if (vcpu->engine && vcpu->engine->kick)
		vcpu->engine->kick(vcpu);
	if (thread && atomic_load(&thread->sleeping))
		syscall(SYS_futex, &vcpu->attention, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Until a kick, or for `ns` (0: without end). */
static void sleep_in_futex(struct vcpu *vcpu, uint64_t ns)
{
	struct vcpu_thread *thread = vcpu->thread;
	struct timespec time = {.tv_nsec = (long)ns};

	atomic_store(&thread->sleeping, true);
	do {
		if (atomic_load(&vcpu->attention))
			break;
		syscall(SYS_futex, &vcpu->attention, FUTEX_WAIT_PRIVATE, 0, ns ? &time : NULL, NULL, 0);
	} while (!ns);
	atomic_store(&thread->sleeping, false);
}

/*
 * Sleeps until vcpu->attention is not 0, or looks for a while first whether a kick comes. A kick between the caller's last look and the
 * sleep is seen by the futex's compare.
 */
static void sleep_until_kicked(struct vcpu *vcpu)
{
	struct vcpu_thread *thread = vcpu->thread;
	bool looks = busy_wait_begin(&thread->wait);
	uint64_t nap = looks ? busy_wait_nap(&thread->wait) : 0;

	if (nap) {
		sleep_in_futex(vcpu, nap);
		busy_wait_napped(&thread->wait);
	}
	for (bool more = looks; more; more = busy_wait_goes_on(&thread->wait)) {
		for (unsigned i = 0; i < HALT_LOOKS; i++) {
			if (atomic_load(&vcpu->attention)) {
				busy_wait_found(&thread->wait);
				return;
			}
			__builtin_ia32_pause();
		}
	}
	sleep_in_futex(vcpu, 0);
	busy_wait_slept(&thread->wait, looks);
}

/* INIT (SDM 3A 8.4.2): the bootstrap processor goes to the reset vector, the others wait for SIPI. */
static void take_init(struct vcpu *vcpu)
{
	cpu_init(vcpu);
	if (vcpu->lapic)
		lapic_reset(vcpu->lapic, true);
	vcpu->state.activity = vcpu->index == 0 ? ACTIVITY_RUNNING : ACTIVITY_WAIT_FOR_SIPI;
	vcpu->engine->state_changed(vcpu);
}

/* SIPI (SDM 3A 8.4.4.1): real mode at vector * 4 KiB. Ignored unless the processor waits for it. */
static void take_sipi(struct vcpu *vcpu)
{
	struct cpu_state *state = &vcpu->state;
	uint8_t vector = __atomic_load_n(&state->sipi_vector, __ATOMIC_RELAXED); /* the next may be on its way */

	if (state->activity != ACTIVITY_WAIT_FOR_SIPI)
		return;
	state->segment[SEG_CS].selector = (uint16_t)(vector << 8);
	state->segment[SEG_CS].base = (uint64_t)vector << 12;
	state->rip = 0;
	state->activity = ACTIVITY_RUNNING;
	vcpu->engine->state_changed(vcpu);
	trace(vcpu->trace, TRACE_IRQ, (int)vcpu->index, "SIPI vector %#x", vector);
}

static void take_requests(struct vcpu *vcpu)
{
	uint32_t wanted = atomic_fetch_and(&vcpu->attention, ~(ATTENTION_INIT | ATTENTION_SIPI));

	if (wanted & ATTENTION_INIT)
		take_init(vcpu);
	if (wanted & ATTENTION_SIPI)
		take_sipi(vcpu);
}

/*
 * HLT, or an application processor before SIPI. Sleeps until there is something to do; wakes the processor when an
 * interrupt can be delivered. Returns when the vCPU may run or when the run state must be looked at.
 */
static void idle(struct vcpu *vcpu)
{
	const uint32_t requests = ATTENTION_EXIT | ATTENTION_INIT | ATTENTION_SIPI;
	uint32_t step = atomic_load(&vcpu->attention) & ATTENTION_STEP;

	vcpu->counters.halts++;
	if (vcpu->engine->rest)
		vcpu->engine->rest(vcpu);
	while (!(atomic_load(&vcpu->attention) & requests)) {
		/* Cleared before looking: what comes later sets it again, and the futex does not sleep. */
		uint32_t seen = atomic_fetch_and(&vcpu->attention, requests);

		if (vcpu->state.activity == ACTIVITY_HALTED) {
			if (seen & ATTENTION_NMI)
				vcpu->state.nmi_pending = 1;
			/* Engines take the state afresh when they run; nothing else that they keep has changed. */
			if (interrupts_deliverable(vcpu) && interrupts_take(vcpu))
				break;
		}
		sleep_until_kicked(vcpu);
	}
	if (step)
		atomic_fetch_or(&vcpu->attention, step);
}

static void crashed(struct vcpu *vcpu)
{
	log_error("cpu %u: triple fault: the guest crashed", vcpu->index);
	dump_vcpu(vcpu, stderr);
	machine_end(vcpu->machine, MACHINE_CRASHED, 0);
}

static void *vcpu_main(void *argument)
{
	struct vcpu *vcpu = argument;

	overcommit_thread(vcpu);
	for (;;) {
		/* Cleared before the run state is read: whoever changes that kicks afterwards. */
		atomic_fetch_and(&vcpu->attention, ~(uint32_t)ATTENTION_EXIT);
		if (!lifecycle_may_run(vcpu))
			break;
		take_requests(vcpu);
		if (vcpu->state.activity == ACTIVITY_HALTED || vcpu->state.activity == ACTIVITY_WAIT_FOR_SIPI) {
			if (lifecycle_stepping(vcpu))
				lifecycle_step_done(vcpu);
			else
				idle(vcpu);
			continue;
		}
		if (vcpu->state.activity == ACTIVITY_SHUTDOWN) {
			/* Nothing but a reset or INIT helps (SDM 3A 6.15, #DF): the machine has been told. */
			sleep_until_kicked(vcpu);
			continue;
		}
		switch (vcpu->engine->run(vcpu)) {
		case EXIT_KICK:
		case EXIT_HALT:
			break;
		case EXIT_SHUTDOWN:
			crashed(vcpu);
			break;
		case EXIT_DEBUG:
		case EXIT_EXCEPTION:
			if (!lifecycle_stepping(vcpu))
				lifecycle_debug_stop(vcpu);
			break;
		case EXIT_ERROR:
			machine_end(vcpu->machine, MACHINE_FAILED, 0);
			vcpu->state.activity = ACTIVITY_SHUTDOWN;
			break;
		}
		lifecycle_step_done(vcpu);
	}
	return NULL;
}

int vcpu_thread_start(struct vcpu *vcpu)
{
	struct vcpu_thread *thread = vcpu->thread ? vcpu->thread : calloc(1, sizeof(*thread));
	sigset_t all, old;
	char name[16];

	if (!thread)
		return -ENOMEM;
	busy_wait_init(&thread->wait);
	__atomic_store_n(&vcpu->thread, thread, __ATOMIC_RELEASE);
	/* Signals meant for the process go to the event loop's thread; a fault of generated code is the engine's and
	 * cannot be blocked. */
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGTRAP);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int error = pthread_create(&thread->thread, NULL, vcpu_main, vcpu);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (error) {
		return -error;
	}
	snprintf(name, sizeof(name), "cpu%u", vcpu->index);
	pthread_setname_np(thread->thread, name);
	return 0;
}

void vcpu_thread_join(struct vcpu *vcpu)
{
	struct vcpu_thread *thread = vcpu->thread; /* stays until vcpu_free(): others may still kick */

	pthread_join(thread->thread, NULL);
}
