/*
 * The 8254 programmable interval timer (Intel 231164) and the system control port 61h, whose bits gate and show
 * channel 2.
 *
 * Ports 40h-43h and 61h. Counters are computed from the clock when somebody looks; one timer drives OUT of channel 0.
 * All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "machine/clock.h"

#define PIT_8254_HZ 1193182u

struct state;

struct pit_8254_channel {
	uint8_t mode;   /* 0-5 */
	uint8_t access; /* 1 low byte, 2 high byte, 3 low then high */
	bool bcd;
	bool gate;
	bool null_count;      /* a count was written and is not in the counting element yet */
	bool loaded;          /* the counting element holds a count */
	bool triggered;       /* modes 1 and 5: the gate has risen since the mode was set */
	bool paused;          /* the gate holds the count; `held` is how far it came */
	bool reload;          /* modes 2 and 3: next_period is taken when the period ends */
	uint32_t period;      /* the count that the element was loaded with, 1-65536 */
	uint32_t next_period; /* the count register */
	uint64_t start;       /* PIT tick of the load; may be one ahead of now */
	uint64_t held;        /* ticks since the load */

	bool write_high; /* access 3: the next byte is the high one */
	bool read_high;
	uint8_t write_low; /* access 3: the low byte that waits */
	bool count_latched, status_latched;
	uint16_t latched_count;
	uint8_t latched_status;
};

struct pit_8254 {
	struct pit_8254_channel channel[3];
	struct clock *clock;
	struct timer timer;   /* the next rising edge of channel 0's OUT */
	struct irq_line irq0; /* OUT of channel 0 */
	bool irq0_level;
	uint64_t last_edge; /* PIT tick of the last rising edge that was delivered */
	uint8_t port61;     /* bits 0 and 1 (gate 2, speaker data), 2 and 3 (parity and IOCHK enables: stored) */
};

/* Claims the ports. 0 or -errno. */
int pit_8254_init(struct pit_8254 *pit, struct bus *bus, struct clock *clock, struct irq_line irq0);
void pit_8254_reset(struct pit_8254 *pit);
void pit_8254_state(struct pit_8254 *pit, struct state *state);
