/*
 * System control port A, 92h: fast A20 gate and fast reset (82371AB 4.5.3).
 *
 * A20 is always enabled in this machine: no operating system since the 1990s runs with it off for longer than its own
 * test of the gate, and an address wrap at 1 MiB would cost every memory access of every engine. The gate's bits (here
 * and in the 8042) read back as written, and the `a20` wires tell whoever wants to know; guests that disable A20 and
 * then rely on the wrap are not supported.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

struct state;

struct port92 {
	uint8_t value;
	struct irq_line a20;
	struct irq_line reset; /* pulsed: true, then false */
};

/* Claims the port. 0 or -errno. */
int port92_init(struct port92 *port92, struct bus *bus, struct irq_line a20, struct irq_line reset);
void port92_reset(struct port92 *port92);
void port92_state(struct port92 *port92, struct state *state);
