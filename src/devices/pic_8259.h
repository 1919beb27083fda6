/*
 * The PC's pair of 8259A interrupt controllers, the slave on the master's IR2, with the ELCR registers of the PIIX.
 *
 * Ports 20h-21h, A0h-A1h, 4D0h-4D1h. All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

struct state;

struct pic_8259_chip {
	uint8_t irr, isr, imr;
	uint8_t lines;    /* levels of IR0-7 now */
	uint8_t elcr;     /* bit n: IRn is level-triggered */
	uint8_t lowest;   /* the IR with the lowest priority: 7 after initialization */
	uint8_t icw_next; /* which ICW the next write to the odd port is (2-4); 0: OCW1 */
	uint8_t icw1, icw2, icw3, icw4;
	bool read_isr;     /* OCW3: the even port reads ISR, not IRR */
	bool poll;         /* OCW3: the next read is a poll */
	bool special_mask; /* OCW3 */
	bool rotate_aeoi;  /* OCW2: rotate in automatic EOI mode */
};

struct pic_8259 {
	struct pic_8259_chip chip[2]; /* master, slave */
	struct irq_line intr;         /* to the processor */
	bool intr_level;
};

/* Claims the ports. 0 or -errno. */
int pic_8259_init(struct pic_8259 *pic, struct bus *bus, struct irq_line intr);
void pic_8259_reset(struct pic_8259 *pic);
/* IRQ 0-15; for an irq_line, with `owner` the pic. IRQ 2 is the cascade and ignored. */
void pic_8259_set_irq(void *owner, unsigned irq, bool level);
/*
 * The processor's interrupt acknowledge, as vcpu->extint_acknowledge wants it: the vector, or -1 when INTR is not
 * asserted (any more): a processor would not have begun the cycle.
 */
int pic_8259_acknowledge(void *owner);
/* The bare INTA cycle: with nothing requested it answers with the spurious vector of IR7. */
uint8_t pic_8259_inta(struct pic_8259 *pic);
void pic_8259_state(struct pic_8259 *pic, struct state *state);
