/*
 * The power management function of the Intel 82371AB, PIIX4 (8086:7113): its configuration space, in which guests and
 * firmware find the ACPI block (acpi_pm.h), and its SMBus host controller, on whose bus nobody answers. Neither block
 * moves.
 */
#pragma once

#include "devices/pci/pci.h"

#define SMBUS_REGISTERS 16

struct pm_piix4 {
	struct pci_function function;
	uint8_t smbus[SMBUS_REGISTERS];
};

/* Plugs it in at slot 1, function 3, and claims the SMBus ports. `base`: of the ACPI block. 0 or -errno. */
int pm_piix4_init(struct pm_piix4 *pm, struct pci_root *root, uint16_t base);
void pm_piix4_reset(struct pm_piix4 *pm);
/* pci_root_state() saves all of it. */
