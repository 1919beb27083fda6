#include "devices/pci/host_i440fx.h"

#define PMCCFG 0x50
#define DRAMC  0x57
#define PAM0   0x59
#define DRB0   0x60
#define SMRAM  0x72

int host_i440fx_init(struct host_i440fx *host, struct pci_root *root)
{
	struct pci_function *function = &host->function;

	pci_function_init(function, "host-i440fx", 0x8086, 0x1237, 2, 0x060000);
	pci_set(function, PCI_STATUS, 2, 0x0280);
	pci_set_writable(function, PCI_COMMAND, 2, PCI_COMMAND_SERR);
	pci_set_writable(function, PMCCFG, 2, 0xffff);
	pci_set_writable(function, DRAMC, 1, 0xff);
	for (unsigned i = 0; i < 7; i++)
		pci_set_writable(function, PAM0 + i, 1, i == 0 ? 0x30 : 0x33);
	for (unsigned i = 0; i < 8; i++)
		pci_set_writable(function, DRB0 + i, 1, 0xff);
	pci_set_writable(function, SMRAM, 1, 0x78);
	host_i440fx_reset(host);
	return pci_add_function(root, function, PCI_DEVFN(0, 0));
}

void host_i440fx_reset(struct host_i440fx *host)
{
	struct pci_function *function = &host->function;

	pci_set(function, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	pci_set(function, PMCCFG, 2, 0);
	pci_set(function, DRAMC, 1, 1);
	for (unsigned i = 0; i < 7; i++)
		pci_set(function, PAM0 + i, 1, 0);
	for (unsigned i = 0; i < 8; i++)
		pci_set(function, DRB0 + i, 1, 1);
	pci_set(function, SMRAM, 1, 2);
}
