/*
 * The reset control register of the PIIX3 at CF9h (82371SB 2.7.3).
 *
 * It lies inside the PCI address register's four ports and is reached by byte accesses only: pci_root_init() takes its
 * ops, so init claims no port of its own.
 */
#pragma once

#include <stdint.h>

#include "devices/bus.h"

struct state;

struct reset_control_cf9 {
	uint8_t value;
	struct irq_line reset; /* pulsed: true, then false */
};

extern const struct bus_ops reset_control_cf9_ops;

void reset_control_cf9_init(struct reset_control_cf9 *control, struct irq_line reset);
void reset_control_cf9_reset(struct reset_control_cf9 *control);
void reset_control_cf9_state(struct reset_control_cf9 *control, struct state *state);
