/*
 * The power management function of the Intel 82371AB, PIIX4 (8086:7113): its configuration space, in which guests and
 * firmware find the ACPI block (acpi_pm.h). The block does not move.
 */
#pragma once

#include "devices/pci/pci.h"

struct pm_piix4 {
	struct pci_function function;
};

/* Plugs it in at slot 1, function 3. `base`: of the ACPI block. 0 or -errno. */
int pm_piix4_init(struct pm_piix4 *pm, struct pci_root *root, uint16_t base);
void pm_piix4_reset(struct pm_piix4 *pm);
