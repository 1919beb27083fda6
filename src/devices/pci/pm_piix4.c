#include "devices/pci/pm_piix4.h"

#include "machine/pc_addresses.h"

#define PMBASE    0x40
#define PMREGMISC 0x80
#define SMBBASE   0x90
#define SMBHSTCFG 0xd2

int pm_piix4_init(struct pm_piix4 *pm, struct pci_root *root, uint16_t base)
{
	struct pci_function *function = &pm->function;

	pci_function_init(function, "pm-piix4", 0x8086, 0x7113, 3, 0x068000);
	pci_set(function, PCI_STATUS, 2, 0x0280);
	pci_set(function, PCI_INTERRUPT_PIN, 1, 1);
	pci_set(function, PMBASE, 4, base | 1);
	pci_set_writable(function, PMREGMISC, 1, 0x01);
	pci_set_writable(function, SMBBASE, 4, 0xffc0);
	pci_set_writable(function, SMBHSTCFG, 1, 0x0f);
	pm_piix4_reset(pm);
	return pci_add_function(root, function, PCI_DEVFN(PC_PCI_ISA_SLOT, 3));
}

/* The block is enabled and its interrupt is the SCI, as firmware leaves it. */
void pm_piix4_reset(struct pm_piix4 *pm)
{
	struct pci_function *function = &pm->function;

	pci_set(function, PCI_COMMAND, 2, PCI_COMMAND_IO);
	pci_set(function, PCI_INTERRUPT_LINE, 1, PC_IRQ_SCI);
	pci_set(function, PMREGMISC, 1, 1);
	pci_set(function, SMBBASE, 4, 1);
	pci_set(function, SMBHSTCFG, 1, 0);
}
