/*
 * The local APIC's timer (SDM 3A 10.5.4). Its input clock is 1 GHz, so that a count is a nanosecond times the divisor,
 * as with KVM.
 *
 * The count is never stored while it runs: it follows from when it started. A host timer is armed only while an
 * interrupt can come of it (LVT not masked).
 */
#include "devices/lapic_private.h"
#include "machine/state.h"

/* A periodic timer's interrupts may come no closer than this, whatever the guest asks for; the phase is kept. */
#define PERIOD_MIN_NS 20000u

static unsigned divide_shift(const struct lapic *lapic)
{
	return ((lapic->divide & 3) + (lapic->divide >> 1 & 4) + 1) & 7;
}

static uint32_t mode(const struct lapic *lapic)
{
	return lapic->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

static uint64_t first_expiry(const struct lapic *lapic)
{
	return lapic->start_time + ((uint64_t)lapic->start_count << divide_shift(lapic));
}

static uint64_t guest_tsc(struct lapic *lapic)
{
	return clock_tsc(lapic->group->clock) + lapic->tsc_offset;
}

uint32_t lapic_timer_count(struct lapic *lapic)
{
	uint64_t now = clock_now(lapic->group->clock), expiry = first_expiry(lapic);

	if (!lapic->counting)
		return 0;
	if (now < expiry) {
		if (now < lapic->start_time)
			return lapic->start_count;
		return lapic->start_count - (uint32_t)((now - lapic->start_time) >> divide_shift(lapic));
	}
	if (mode(lapic) != LVT_PERIODIC || lapic->initial_count == 0)
		return 0;
	uint64_t period = (uint64_t)lapic->initial_count << divide_shift(lapic);
	return lapic->initial_count - (uint32_t)((now - expiry) % period >> divide_shift(lapic));
}

/* When the count next reaches zero, not before `earliest`. */
static uint64_t next_expiry(const struct lapic *lapic, uint64_t earliest)
{
	uint64_t expiry = first_expiry(lapic), period = (uint64_t)lapic->initial_count << divide_shift(lapic);

	if (mode(lapic) == LVT_PERIODIC && expiry < earliest && period > 0)
		expiry += (earliest - expiry + period - 1) / period * period;
	return expiry;
}

/* Arms the host timer for what is running now. What has already expired fires at once. */
static void arm_deadline(struct lapic *lapic)
{
	uint64_t tsc = guest_tsc(lapic), now = clock_now(lapic->group->clock);

	if (lapic->tsc_deadline == 0 || lapic->lvt[LVT_TIMER] & LVT_MASKED) {
		timer_cancel(&lapic->timer);
	} else if (tsc >= lapic->tsc_deadline) {
		timer_cancel(&lapic->timer);
		lapic->tsc_deadline = 0;
		lapic_local(lapic, LVT_TIMER);
	} else {
		uint64_t wait = clock_tsc_to_ns(lapic->group->clock, lapic->tsc_deadline - tsc) + 1;
		timer_set(&lapic->timer, wait < UINT64_MAX - now ? now + wait : UINT64_MAX);
	}
}

static void arm_count(struct lapic *lapic)
{
	uint64_t now = clock_now(lapic->group->clock);

	if (!lapic->counting || lapic->lvt[LVT_TIMER] & LVT_MASKED) {
		timer_cancel(&lapic->timer);
	} else if (mode(lapic) == LVT_PERIODIC) {
		timer_set(&lapic->timer, next_expiry(lapic, now));
	} else if (first_expiry(lapic) <= now) {
		timer_cancel(&lapic->timer);
		lapic->counting = false;
		lapic_local(lapic, LVT_TIMER);
	} else {
		timer_set(&lapic->timer, first_expiry(lapic));
	}
}

static void arm(struct lapic *lapic)
{
	if (mode(lapic) == LVT_TSC_DEADLINE)
		arm_deadline(lapic);
	else
		arm_count(lapic);
}

/* What came to its end while masked is over; no interrupt is owed for it. */
static void forget_expired(struct lapic *lapic)
{
	if (lapic->counting && mode(lapic) != LVT_PERIODIC && first_expiry(lapic) <= clock_now(lapic->group->clock))
		lapic->counting = false;
	if (lapic->tsc_deadline != 0 && guest_tsc(lapic) >= lapic->tsc_deadline)
		lapic->tsc_deadline = 0;
}

/* The host's timer has expired. */
static void fire(struct lapic *lapic)
{
	uint64_t now = clock_now(lapic->group->clock);

	if (lapic->lvt[LVT_TIMER] & LVT_MASKED) {
		/* Masked meanwhile. */
	} else if (mode(lapic) == LVT_TSC_DEADLINE) {
		arm_deadline(lapic);
	} else if (lapic->counting && mode(lapic) == LVT_PERIODIC) {
		if (first_expiry(lapic) <= now)
			lapic_local(lapic, LVT_TIMER);
		timer_set(&lapic->timer, next_expiry(lapic, now + PERIOD_MIN_NS));
	} else {
		arm_count(lapic);
	}
}

/* The event loop's thread. It may come late, when the timer has just been changed by the vCPU: everything is looked at
 * again. */
static void expired(void *owner)
{
	struct lapic *lapic = owner;
	uint64_t deadline;

	lapic_lock(lapic);
	if (!timer_pending(&lapic->timer, &deadline)) /* else it was set again meanwhile */
		fire(lapic);
	lapic_unlock(lapic);
}

void lapic_timer_catch_up(struct lapic *lapic)
{
	uint64_t deadline;

	if (timer_pending(&lapic->timer, &deadline) && deadline <= clock_now(lapic->group->clock)) {
		timer_cancel(&lapic->timer);
		fire(lapic);
	}
}

void lapic_timer_init(struct lapic *lapic)
{
	timer_init(&lapic->timer, lapic->group->clock, expired, lapic);
}

void lapic_timer_reset(struct lapic *lapic)
{
	timer_cancel(&lapic->timer);
	lapic->divide = 0;
	lapic->initial_count = lapic->start_count = 0;
	lapic->start_time = 0;
	lapic->counting = false;
	lapic->tsc_deadline = 0;
}

void lapic_timer_set_count(struct lapic *lapic, uint32_t count)
{
	if (mode(lapic) == LVT_TSC_DEADLINE)
		return; /* SDM 3A 10.5.4.1: ignored */
	lapic->initial_count = lapic->start_count = count;
	lapic->start_time = clock_now(lapic->group->clock);
	lapic->counting = count != 0;
	arm(lapic);
}

void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide)
{
	/* A count under way goes on from where it is, at the new rate. */
	uint32_t count = lapic_timer_count(lapic);

	forget_expired(lapic);
	lapic->divide = divide;
	if (lapic->counting) {
		lapic->start_count = count;
		lapic->start_time = clock_now(lapic->group->clock);
	}
	arm(lapic);
}

/* Between one-shot and periodic the count goes on, as hardware has it; to and from TSC-deadline mode the timer is
 * disarmed. */
void lapic_timer_lvt_changed(struct lapic *lapic, uint32_t old)
{
	uint32_t now = lapic->lvt[LVT_TIMER];

	if ((old ^ now) & LVT_TSC_DEADLINE) {
		lapic->initial_count = lapic->start_count = 0;
		lapic->counting = false;
		lapic->tsc_deadline = 0;
	} else if ((old ^ now) & LVT_PERIODIC && lapic->counting) {
		/* The new mode's rules hold from the present count on; a one-shot that has ended stays so. */
		uint32_t mode_now = now & LVT_TIMER_MODE;
		lapic->lvt[LVT_TIMER] = old;
		uint32_t count = lapic_timer_count(lapic);
		lapic->lvt[LVT_TIMER] = now;
		lapic->counting = count != 0 && (mode_now == 0 || mode_now == LVT_PERIODIC);
		lapic->start_count = count;
		lapic->start_time = clock_now(lapic->group->clock);
	}
	if (old & LVT_MASKED)
		forget_expired(lapic);
	arm(lapic);
}

uint64_t lapic_tsc_deadline(struct lapic *lapic)
{
	lapic_lock(lapic);
	/* After the deadline it reads as 0, even where the host's timer is late. */
	uint64_t deadline = lapic->tsc_deadline;
	if (mode(lapic) != LVT_TSC_DEADLINE || (deadline != 0 && guest_tsc(lapic) >= deadline))
		deadline = 0;
	lapic_unlock(lapic);
	return deadline;
}

void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t value)
{
	lapic_lock(lapic);
	lapic->tsc_offset = lapic->vcpu->state.tsc_offset;
	if (mode(lapic) == LVT_TSC_DEADLINE) { /* else ignored: SDM 3A 10.5.4.1 */
		lapic->tsc_deadline = value;
		arm_deadline(lapic);
	}
	lapic_unlock(lapic);
}

void lapic_tsc_changed(struct lapic *lapic)
{
	lapic_lock(lapic);
	lapic->tsc_offset = lapic->vcpu->state.tsc_offset;
	if (mode(lapic) == LVT_TSC_DEADLINE)
		arm_deadline(lapic);
	lapic_unlock(lapic);
}

/* The host timer is saved as it stands, in the clock's own time: so it does not matter which of CPU, clock and APIC is
 * loaded first. */
void lapic_timer_state(struct lapic *lapic, struct state *state)
{
	state_u32(state, "divide", &lapic->divide);
	state_u32(state, "initial-count", &lapic->initial_count);
	state_u32(state, "start-count", &lapic->start_count);
	state_u64(state, "start-time", &lapic->start_time);
	state_bool(state, "counting", &lapic->counting);
	state_u64(state, "tsc-deadline", &lapic->tsc_deadline);
	state_u64(state, "tsc-offset", &lapic->tsc_offset);
	if (state_loading(state) && (lapic->divide & ~0xbu || lapic->start_time > INT64_MAX))
		state_fail(state, "timer out of range");
	timer_state(&lapic->timer, state, "timer");
}
