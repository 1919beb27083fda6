/*
 * Interrupt messages: which local APICs a destination means (SDM 3A 10.6.2, 10.12.9), what a message does there, and
 * the senders: the ICR, MSIs, the I/O APIC.
 *
 * SIPI: the vector is put into vcpu->state.sipi_vector, then ATTENTION_SIPI is set. The vCPU's thread
 * (machine/vcpu_loop.c) takes ATTENTION_INIT before ATTENTION_SIPI, so INIT-SIPI works however late it looks; an INIT
 * takes back a SIPI that was not yet looked at.
 */
#include "devices/lapic_private.h"

#define BROADCAST   0xffu
#define X2BROADCAST 0xffffffffu

struct message {
	uint32_t destination;
	bool logical;
	bool wide; /* 32-bit destination: an x2APIC's IPI */
	enum lapic_delivery delivery;
	unsigned vector;
	bool level;
};

static bool matches(const struct lapic *lapic, const struct message *message)
{
	uint32_t address = atomic_load_explicit(&lapic->address, memory_order_acquire);
	uint32_t destination = message->destination, id = address & 0xff, ldr = address >> 8 & 0xff;

	if (!(address & ADDRESS_ENABLED))
		return false;
	if (destination == (message->wide ? X2BROADCAST : BROADCAST))
		return true;
	if (address & ADDRESS_X2APIC) {
		if (!message->logical)
			return destination == lapic->index;
		return destination >> 16 == lapic->index >> 4 && destination & 1u << (lapic->index & 15);
	}
	if (!message->logical)
		return destination == id;
	if (destination > 0xff)
		return false;
	if (address & ADDRESS_CLUSTER)
		return destination >> 4 == ldr >> 4 && destination & ldr & 0xf;
	return destination & ldr;
}

void lapic_accept_fixed(struct lapic *lapic, unsigned vector, bool level)
{
	uint32_t bit = 1u << (vector & 31);

	if (level)
		lapic->tmr[vector / 32] |= bit;
	else
		lapic->tmr[vector / 32] &= ~bit;
	lapic->irr[vector / 32] |= bit;
	lapic_recompute(lapic);
}

/* False: not taken (software-disabled, illegal vector). */
static bool accept(struct lapic *lapic, const struct message *message)
{
	bool accepted = true;

	lapic_lock(lapic);
	trace(lapic->vcpu->trace, TRACE_IRQ, (int)lapic->index, "message: delivery %d vector %02xh%s",
	      message->delivery, message->vector, message->level ? " level" : "");
	switch (message->delivery) {
	case DELIVERY_FIXED:
	case DELIVERY_LOWEST:
		accepted = lapic_enabled(lapic) && lapic->svr & SVR_ENABLE;
		if (accepted && message->vector < 16) {
			lapic_error(lapic, ESR_RECEIVE_VECTOR);
			accepted = false;
		} else if (accepted) {
			lapic_accept_fixed(lapic, message->vector, message->level);
		}
		break;
	case DELIVERY_NMI:
		lapic->kick |= ATTENTION_NMI;
		break;
	case DELIVERY_INIT:
		atomic_fetch_and(&lapic->vcpu->attention, ~ATTENTION_SIPI);
		lapic->kick |= ATTENTION_INIT;
		break;
	case DELIVERY_SIPI:
		__atomic_store_n(&lapic->vcpu->state.sipi_vector, (uint8_t)message->vector, __ATOMIC_RELAXED);
		lapic->kick |= ATTENTION_SIPI;
		break;
	case DELIVERY_EXTINT:
		lapic->extint_message = true;
		lapic->kick |= ATTENTION_INTERRUPT;
		lapic_recompute(lapic);
		break;
	case DELIVERY_SMI: /* there is no system management mode to enter */
		break;
	case DELIVERY_RESERVED:
		accepted = false;
		break;
	}
	lapic_unlock(lapic);
	return accepted;
}

/* Of those that the message names and that take interrupts, the one of lowest priority; equals take turns. NULL: none.
 */
static struct lapic *arbitrate(struct lapic_group *group, const struct message *message)
{
	unsigned first = atomic_load_explicit(&group->round_robin, memory_order_relaxed), best_priority = 256;
	struct lapic *best = NULL;

	for (unsigned i = 0; i < group->count; i++) {
		struct lapic *lapic = &group->lapic[(first + i) % group->count];
		uint32_t address = atomic_load_explicit(&lapic->address, memory_order_acquire);
		unsigned priority = atomic_load_explicit(&lapic->ppr, memory_order_relaxed) & 0xf0;
		if (address & ADDRESS_SOFTWARE && priority < best_priority && matches(lapic, message)) {
			best = lapic;
			best_priority = priority;
		}
	}
	if (best)
		atomic_store_explicit(&group->round_robin, best->index + 1, memory_order_relaxed);
	return best;
}

static unsigned deliver(struct lapic_group *group, const struct message *message)
{
	unsigned accepted = 0;

	if (message->delivery == DELIVERY_LOWEST) {
		struct lapic *lapic = arbitrate(group, message);
		return lapic && accept(lapic, message);
	}
	for (unsigned i = 0; i < group->count; i++)
		if (matches(&group->lapic[i], message))
			accepted += accept(&group->lapic[i], message);
	return accepted;
}

unsigned lapic_message(struct lapic_group *group, uint32_t destination, bool logical, enum lapic_delivery delivery,
                       unsigned vector, bool level_triggered)
{
	struct message message = {
	    .destination = destination,
	    .logical = logical,
	    .wide = destination > 0xff,
	    .delivery = delivery & 7,
	    .vector = vector & 0xff,
	    .level = level_triggered,
	};
	return deliver(group, &message);
}

void lapic_msi(struct lapic_group *group, uint64_t address, uint32_t data)
{
	struct message message = {
	    .destination = address >> 12 & 0xff,
	    .logical = address & 4,
	    .delivery = data >> 8 & 7,
	    .vector = data & 0xff,
	    .level = data & 0x8000,
	};

	if (message.level && !(data & 0x4000))
		return; /* a level's end: nothing is delivered */
	if (address & 8 && message.delivery == DELIVERY_FIXED)
		message.delivery = DELIVERY_LOWEST; /* redirection hint */
	deliver(group, &message);
}

/* ICR, SDM 3A 10.6.1. */
void lapic_send_ipi(struct lapic *lapic, uint64_t icr, bool x2apic)
{
	struct lapic_group *group = lapic->group;
	struct message message = {
	    .destination = (uint32_t)(x2apic ? icr >> 32 : icr >> 56),
	    .logical = icr & 0x800,
	    .wide = x2apic,
	    .delivery = icr >> 8 & 7,
	    .vector = icr & 0xff,
	};
	bool assert_level = icr & 0x4000, level_triggered = icr & 0x8000;
	unsigned shorthand = icr >> 18 & 3;

	trace(lapic->vcpu->trace, TRACE_IRQ, (int)lapic->index, "IPI %016llx", (unsigned long long)icr);
	if (message.delivery == DELIVERY_INIT && level_triggered && !assert_level)
		return; /* INIT level de-assert: only old bus protocols had a use for it */
	if (message.delivery == DELIVERY_RESERVED || message.delivery == DELIVERY_EXTINT)
		return;
	if ((message.delivery == DELIVERY_FIXED || message.delivery == DELIVERY_LOWEST) && message.vector < 16) {
		lapic_lock(lapic);
		lapic_error(lapic, ESR_SEND_VECTOR);
		lapic_unlock(lapic);
		return;
	}
	if (shorthand == 0 || (shorthand == 3 && message.delivery == DELIVERY_LOWEST)) {
		deliver(group, &message);
		return;
	}
	/* A processor can send itself only interrupts and NMIs (SDM 3A table 10-3). */
	bool to_itself = message.delivery == DELIVERY_FIXED || message.delivery == DELIVERY_NMI;
	for (unsigned i = 0; i < group->count; i++) {
		struct lapic *target = &group->lapic[i];
		bool itself = target == lapic;
		bool named = itself ? shorthand != 3 && to_itself : shorthand != 1;
		if (named && atomic_load_explicit(&target->address, memory_order_acquire) & ADDRESS_ENABLED)
			accept(target, &message);
	}
}
