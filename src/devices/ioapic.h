/*
 * An 82093AA-compatible I/O APIC, version 20h (with the EOI register), 24 pins.
 *
 * One page of MMIO. The lines are logical: true means that the device asks, whatever voltage that is on a real board.
 * So the polarity bits of the redirection table are stored and change nothing; ACPI tables and guests that disagree
 * about them do no harm. All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

#define IOAPIC_PINS 24

struct lapic_group;
struct state;

struct ioapic {
	uint8_t select; /* IOREGSEL */
	uint8_t id;
	uint32_t lines; /* bit n: pin n is asserted */
	uint64_t redirection[IOAPIC_PINS];

	/* Sends a message as lapic_message() does; init sets it to that. */
	unsigned (*deliver)(void *owner, uint32_t destination, bool logical, unsigned delivery, unsigned vector,
	                    bool level_triggered);
	void *deliver_owner;
	struct bus *bus; /* for traces */
};

/* Claims a page at `base` (FEC00000h). 0 or -errno. */
int ioapic_init(struct ioapic *ioapic, struct bus *bus, uint64_t base, struct lapic_group *lapics);
void ioapic_reset(struct ioapic *ioapic);
/* For an irq_line, with `owner` the ioapic. */
void ioapic_set_irq(void *owner, unsigned pin, bool level);
/* A local APIC's EOI broadcast for a level-triggered vector. A line that is still asserted interrupts again. */
void ioapic_eoi(struct ioapic *ioapic, unsigned vector);
void ioapic_state(struct ioapic *ioapic, struct state *state);
