/*
 * The inside of a local APIC, shared by lapic.c (registers, base, state), lapic_message.c (who gets a message, what it
 * does there) and lapic_timer.c.
 *
 * One writer for what is derived: lapic_recompute(), called with the lock held after every change, works out PPR, what
 * is pending, and the words that other threads read without the lock. What has to be done without the lock (kick the
 * vCPU, tell the I/O APICs of an EOI) is noted while it is held and done by lapic_unlock().
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "debug/trace.h"
#include "devices/lapic.h"
#include "machine/vcpu.h"

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERFMON, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_VECTOR       0x000ffu
#define LVT_MODE_SHIFT   8
#define LVT_MODE         0x00700u
#define LVT_STATUS       0x01000u /* delivery status: always idle here */
#define LVT_POLARITY     0x02000u
#define LVT_REMOTE_IRR   0x04000u
#define LVT_LEVEL        0x08000u
#define LVT_MASKED       0x10000u
#define LVT_TIMER_MODE   0x60000u
#define LVT_PERIODIC     0x20000u
#define LVT_TSC_DEADLINE 0x40000u

#define SVR_ENABLE       0x0100u
#define SVR_FOCUS        0x0200u
#define SVR_SUPPRESS_EOI 0x1000u

#define BASE_BSP     0x100ull
#define BASE_X2APIC  0x400ull
#define BASE_ENABLE  0x800ull
#define BASE_DEFAULT 0xfee00000ull

/* ESR (SDM 3A 10.5.3). */
#define ESR_SEND_VECTOR    0x20u
#define ESR_RECEIVE_VECTOR 0x40u
#define ESR_REGISTER       0x80u

/* struct lapic's `address` word: what the destination logic must know of each APIC. Bits 7:0 APIC ID (xAPIC), 15:8 LDR.
 */
#define ADDRESS_CLUSTER  0x010000u /* DFR says cluster model */
#define ADDRESS_ENABLED  0x020000u /* globally: IA32_APIC_BASE[11] */
#define ADDRESS_X2APIC   0x040000u
#define ADDRESS_SOFTWARE 0x080000u /* SVR[8]: takes fixed interrupts */
#define ADDRESS_EXTINT   0x100000u /* the 8259's INTR reaches the CPU */

struct lapic {
	struct lapic_group *group;
	struct vcpu *vcpu;
	unsigned index; /* the initial APIC ID */

	/* Derived by lapic_recompute(); read by any thread without the lock. */
	_Atomic uint32_t address;
	_Atomic uint32_t pending; /* vector to deliver, 0: none */
	_Atomic uint32_t ppr;
	_Atomic uint64_t mmio; /* base | 1 in xAPIC mode, else 0 */
	_Atomic uint64_t base_now;

	pthread_mutex_t lock; /* all below */
	uint64_t base;
	uint32_t id, ldr, dfr; /* xAPIC registers, as read */
	uint32_t tpr, svr, esr, esr_new;
	uint64_t icr;
	uint32_t lvt[LVT_COUNT];
	uint32_t isr[8], tmr[8], irr[8];
	bool lint[2];        /* the pins' levels */
	bool extint_message; /* the I/O APIC has sent ExtINT: the 8259 is wired through it */

	/* lapic_timer.c */
	uint32_t divide; /* DCR */
	uint32_t initial_count;
	uint32_t start_count; /* the count at start_time; it runs down from there, then (periodic) from initial_count */
	uint64_t start_time;  /* ns */
	bool counting;        /* one-shot or periodic under way */
	uint64_t tsc_deadline; /* guest TSC; 0: not armed */
	uint64_t tsc_offset;   /* the vCPU's, as last told */
	struct timer timer;

	/* For lapic_unlock(). */
	uint32_t kick;
	int eoi; /* vector for the I/O APICs, or -1 */
};

struct lapic_group {
	struct clock *clock;
	unsigned count;
	bool eoi_suppression; /* offered in the version register */
	void (*eoi)(void *owner, unsigned vector);
	void *eoi_owner;
	_Atomic unsigned round_robin; /* lowest priority: where to look first among equals */
	struct lapic lapic[];
};

static inline bool lapic_x2apic(const struct lapic *lapic)
{
	return lapic->base & BASE_X2APIC;
}

static inline bool lapic_enabled(const struct lapic *lapic)
{
	return lapic->base & BASE_ENABLE;
}

/* Highest vector set in a 256-bit register, or -1. */
static inline int lapic_highest(const uint32_t bits[8])
{
	for (int word = 7; word >= 0; word--)
		if (bits[word])
			return word * 32 + 31 - __builtin_clz(bits[word]);
	return -1;
}

void lapic_lock(struct lapic *lapic);
void lapic_unlock(struct lapic *lapic);
/* All with the lock held. */
void lapic_recompute(struct lapic *lapic);
void lapic_accept_fixed(struct lapic *lapic, unsigned vector, bool level);
/* A local interrupt source has fired: delivers by its LVT entry. */
void lapic_local(struct lapic *lapic, enum lapic_lvt lvt);
void lapic_error(struct lapic *lapic, uint32_t esr_bit);

/* lapic_message.c: the ICR was written; no lock held. */
void lapic_send_ipi(struct lapic *lapic, uint64_t icr, bool x2apic);

/* lapic_timer.c, with the lock held. */
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_reset(struct lapic *lapic);
uint32_t lapic_timer_count(struct lapic *lapic);
/* What the guest may see now that its timer has expired, though the host is late to say so. */
void lapic_timer_catch_up(struct lapic *lapic);
void lapic_timer_set_count(struct lapic *lapic, uint32_t count);
void lapic_timer_set_divide(struct lapic *lapic, uint32_t divide);
void lapic_timer_lvt_changed(struct lapic *lapic, uint32_t old);
void lapic_timer_state(struct lapic *lapic, struct state *state);
