/*
 * The board's logic between the processor's FERR# and IGNNE# pins and IRQ 13, for x87 errors while CR0.NE is 0 (SDM 1
 * 8.7.2 and appendix D.2; 82371AB 4.4.3, coprocessor error register).
 *
 *	FERR# rises ──> latch ──> IRQ 13      port F0h written: the latch is cleared, and, while FERR# is still there,
 *	                                      IGNNE# asserted; it goes when FERR# goes
 *
 * FERR# comes from the bootstrap processor alone, under the device lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

struct state;

struct fpu_error {
	bool ferr, latch, ignne;
	struct irq_line irq13, ignne_pin;
};

/* Claims port F0h. 0 or -errno. */
int fpu_error_init(struct fpu_error *fpu, struct bus *bus, struct irq_line irq13, struct irq_line ignne);
void fpu_error_set(struct fpu_error *fpu, bool ferr);
void fpu_error_reset(struct fpu_error *fpu);
void fpu_error_state(struct fpu_error *fpu, struct state *state);
