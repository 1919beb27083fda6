/*
 * Starting, pausing, stepping, resetting and ending a machine. See machine.h for the contract, lifecycle.h for the
 * shared state.
 */
#include "machine/lifecycle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engines/engine.h"
#include "host/event_loop.h"
#include "host/log.h"
#include "machine/clock.h"
#include "machine/pc.h"

static void kick_all(struct machine *machine)
{
	for (unsigned i = 0; i < machine->options.cpus; i++)
		vcpu_kick(machine->vcpu[i], ATTENTION_EXIT);
}

static void wake(struct lifecycle *life)
{
	uint64_t one = 1;

	/* Full counter: somebody has asked already. */
	if (write(life->wake_fd, &one, sizeof(one)) < 0)
		return;
}

/* On the event loop's thread: what machine_end() and machine_request_reset() asked for from wherever they were. */
static void wake_ready(void *owner, uint32_t events)
{
	struct machine *machine = owner;
	struct lifecycle *life = lifecycle_of(machine);
	uint64_t count;

	if (read(life->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("event counter: %s", strerror(errno));
	if (atomic_load(&life->end) != MACHINE_RUNNING) {
		event_loop_stop(machine->loop);
		return;
	}
	if (!atomic_exchange(&life->reset_wanted, false))
		return;
	if (machine->options.no_reboot) {
		machine_end(machine, MACHINE_RESET, 0);
		return;
	}
	machine_pause(machine);
	int error = machine_reset_all(machine);
	machine_resume(machine);
	if (error)
		machine_end(machine, MACHINE_FAILED, 0);
}

int lifecycle_create(struct machine *machine)
{
	struct lifecycle *life = calloc(1, sizeof(*life));

	if (!life)
		return -ENOMEM;
	pthread_mutex_init(&life->lock, NULL);
	pthread_cond_init(&life->changed, NULL);
	machine->lifecycle = life;
	life->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (life->wake_fd < 0)
		return -errno;
	life->wake_source = event_source_add(machine->loop, life->wake_fd, EPOLLIN, wake_ready, machine);
	return life->wake_source ? 0 : -errno;
}

void lifecycle_destroy(struct machine *machine)
{
	struct lifecycle *life = lifecycle_of(machine);

	if (!life)
		return;
	if (life->wake_source)
		event_source_remove(life->wake_source);
	if (life->wake_fd >= 0)
		close(life->wake_fd);
	pthread_cond_destroy(&life->changed);
	pthread_mutex_destroy(&life->lock);
	free(life);
	machine->lifecycle = NULL;
}

void machine_lock(struct machine *machine)
{
	pthread_mutex_lock(&machine->device_lock);
}

void machine_unlock(struct machine *machine)
{
	pthread_mutex_unlock(&machine->device_lock);
}

void machine_end(struct machine *machine, enum machine_end reason, int status)
{
	struct lifecycle *life = lifecycle_of(machine);
	int64_t running = MACHINE_RUNNING;

	/* Reason and status in one word, so that the first caller's pair stays together. */
	if (atomic_compare_exchange_strong(&life->end, &running, (int64_t)status << 32 | (uint32_t)reason))
		wake(life);
}

void machine_request_reset(struct machine *machine)
{
	struct lifecycle *life = lifecycle_of(machine);

	atomic_store(&life->reset_wanted, true);
	wake(life);
}

/* Adds one pause and tells the vCPUs; `life->lock` is held. */
static void pause_locked(struct machine *machine)
{
	struct lifecycle *life = lifecycle_of(machine);

	if (life->pauses++ == 0) {
		clock_pause(machine->clock);
		kick_all(machine);
	}
}

void machine_pause(struct machine *machine)
{
	struct lifecycle *life = lifecycle_of(machine);

	pthread_mutex_lock(&life->lock);
	pause_locked(machine);
	while (life->started && life->standing < machine->options.cpus)
		pthread_cond_wait(&life->changed, &life->lock);
	/* The processors ask for nothing more: what is under way comes to its end. */
	if (machine->pc)
		pc_pause(machine->pc);
	pthread_mutex_unlock(&life->lock);
}

void machine_resume(struct machine *machine)
{
	struct lifecycle *life = lifecycle_of(machine);

	pthread_mutex_lock(&life->lock);
	if (life->pauses > 0 && --life->pauses == 0) {
		clock_resume(machine->clock);
		if (machine->pc)
			pc_resume(machine->pc);
		pthread_cond_broadcast(&life->changed);
	}
	pthread_mutex_unlock(&life->lock);
}

bool lifecycle_may_run(struct vcpu *vcpu)
{
	struct lifecycle *life = lifecycle_of(vcpu->machine);
	bool may_run;

	pthread_mutex_lock(&life->lock);
	if (life->pauses > 0 || life->ending) {
		life->standing++;
		pthread_cond_broadcast(&life->changed);
		while (life->pauses > 0 && !life->ending && life->stepper != vcpu)
			pthread_cond_wait(&life->changed, &life->lock);
		life->standing--;
	}
	may_run = !life->ending;
	pthread_mutex_unlock(&life->lock);
	return may_run;
}

bool lifecycle_stepping(struct vcpu *vcpu)
{
	struct lifecycle *life = lifecycle_of(vcpu->machine);

	pthread_mutex_lock(&life->lock);
	bool stepping = life->stepper == vcpu;
	pthread_mutex_unlock(&life->lock);
	return stepping;
}

void lifecycle_step_done(struct vcpu *vcpu)
{
	struct lifecycle *life = lifecycle_of(vcpu->machine);

	pthread_mutex_lock(&life->lock);
	if (life->stepper == vcpu) {
		life->stepper = NULL;
		pthread_cond_broadcast(&life->changed);
	}
	pthread_mutex_unlock(&life->lock);
}

void lifecycle_debug_stop(struct vcpu *vcpu)
{
	struct lifecycle *life = lifecycle_of(vcpu->machine);
	void (*debugger)(void *, struct vcpu *) = NULL;
	void *owner = NULL;

	pthread_mutex_lock(&life->lock);
	if (life->debugger) {
		debugger = life->debugger;
		owner = life->debugger_owner;
		pause_locked(vcpu->machine);
	}
	pthread_mutex_unlock(&life->lock);
	if (debugger)
		debugger(owner, vcpu);
}

void machine_set_debugger(struct machine *machine, void (*stopped)(void *owner, struct vcpu *vcpu), void *owner)
{
	struct lifecycle *life = lifecycle_of(machine);

	pthread_mutex_lock(&life->lock);
	life->debugger = stopped;
	life->debugger_owner = owner;
	pthread_mutex_unlock(&life->lock);
}

void machine_step(struct machine *machine, struct vcpu *vcpu)
{
	struct lifecycle *life = lifecycle_of(machine);

	pthread_mutex_lock(&life->lock);
	if (life->pauses > 0 && life->started) {
		bool was_stepping = vcpu->debug.single_step;

		while (life->standing < machine->options.cpus)
			pthread_cond_wait(&life->changed, &life->lock);
		vcpu->debug.single_step = true;
		life->stepper = vcpu;
		pthread_cond_broadcast(&life->changed);
		while (life->stepper == vcpu || life->standing < machine->options.cpus)
			pthread_cond_wait(&life->changed, &life->lock);
		vcpu->debug.single_step = was_stepping;
	}
	pthread_mutex_unlock(&life->lock);
}

enum machine_end machine_run(struct machine *machine, int *debug_exit_status)
{
	struct lifecycle *life = lifecycle_of(machine);
	unsigned started = 0;

	if (machine->options.stopped)
		machine_pause(machine);
	clock_resume(machine->clock); /* it was made paused, so that the guest's time begins now */

	pthread_mutex_lock(&life->lock);
	life->started = true;
	pthread_mutex_unlock(&life->lock);
	for (; started < machine->options.cpus; started++) {
		int error = vcpu_thread_start(machine->vcpu[started]);
		if (error) {
			log_error("cpu %u: no thread: %s", started, strerror(-error));
			machine_end(machine, MACHINE_FAILED, 0);
			break;
		}
	}
	event_loop_run(machine->loop);

	pthread_mutex_lock(&life->lock);
	life->ending = true;
	pthread_cond_broadcast(&life->changed);
	pthread_mutex_unlock(&life->lock);
	kick_all(machine);
	for (unsigned i = 0; i < started; i++)
		vcpu_thread_join(machine->vcpu[i]);
	pthread_mutex_lock(&life->lock);
	life->started = false;
	life->ending = false;
	pthread_mutex_unlock(&life->lock);
	clock_pause(machine->clock);

	if (debug_exit_status)
		*debug_exit_status = (int)(atomic_load(&life->end) >> 32);
	return (enum machine_end)(uint32_t)atomic_load(&life->end);
}
