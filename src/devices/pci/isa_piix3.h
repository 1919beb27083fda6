/*
 * The ISA bridge of the Intel 82371SB, PIIX3 (8086:7000): routes PIRQ A-D to the interrupt controllers. ELCR belongs to
 * the 8259s here, CF9h to reset_control_cf9.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/pci/pci.h"

struct isa_piix3 {
	struct pci_function function;
	struct irq_line irq; /* pin = ISA IRQ; wired-or with ISA devices is the machine's business */
	bool pirq[4];
	uint16_t driven; /* IRQs that a PIRQ pulls now */
};

/* Plugs it in at slot 1, function 0, and takes the root's PIRQs. 0 or -errno. */
int isa_piix3_init(struct isa_piix3 *piix3, struct pci_root *root, struct irq_line irq);
void isa_piix3_reset(struct isa_piix3 *piix3);
/* No state beside its configuration space, which pci_root_state() saves; the levels come from the devices. */
