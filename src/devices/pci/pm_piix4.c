#include "devices/pci/pm_piix4.h"

#include <string.h>

#include "machine/pc_addresses.h"
#include "machine/state.h"

/* Configuration space. */
#define PMBASE    0x40
#define PMREGMISC 0x80
#define SMBBASE   0x90
#define SMBHSTCFG 0xd2

#define SMBHSTCFG_ENABLE 0x01u
#define SMBHSTCFG_IRQ9   0x08u

/* SMBus ports (82371AB 7.2). */
#define SMBHSTSTS 0
#define SMBSLVSTS 1
#define SMBHSTCNT 2

#define SMBHSTSTS_DEVICE_ERROR 0x04u
#define SMBHSTCNT_START        0x40u

static uint64_t smbus_read(void *device, uint64_t offset, unsigned size)
{
	struct pm_piix4 *pm = device;

	return pm->smbus[offset & 15];
}

/* A transfer ends at once with what a bus shows on which nobody acknowledges. */
static void smbus_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pm_piix4 *pm = device;

	switch (offset & 15) {
	case SMBHSTSTS:
	case SMBSLVSTS: /* ones clear */
		pm->smbus[offset & 15] &= ~value;
		break;
	case SMBHSTCNT:
		pm->smbus[SMBHSTCNT] = value & 0x1f;
		if (value & SMBHSTCNT_START)
			pm->smbus[SMBHSTSTS] |= SMBHSTSTS_DEVICE_ERROR;
		break;
	default:
		pm->smbus[offset & 15] = value;
	}
}

static void pm_state(struct pci_function *function, struct state *state)
{
	struct pm_piix4 *pm = (struct pm_piix4 *)function;

	state_begin(state, "smbus-piix4", 0, 1);
	state_u8_array(state, "registers", pm->smbus, SMBUS_REGISTERS);
	state_end(state);
}

static const struct bus_ops smbus_ops = {.read = smbus_read, .write = smbus_write};

int pm_piix4_init(struct pm_piix4 *pm, struct pci_root *root, uint16_t base)
{
	struct pci_function *function = &pm->function;
	int error;

	pci_function_init(function, "pm-piix4", 0x8086, 0x7113, 3, 0x068000);
	function->state = pm_state;
	pci_set(function, PCI_STATUS, 2, 0x0280);
	pci_set(function, PCI_INTERRUPT_PIN, 1, 1);
	pci_set(function, PMBASE, 4, base | 1);
	pci_set(function, SMBBASE, 4, PC_PORT_SMBUS | 1);
	pci_set_writable(function, PMREGMISC, 1, 0x01);
	pci_set_writable(function, SMBHSTCFG, 1, 0x0f);
	pm_piix4_reset(pm);
	error = bus_add_ports(root->bus, PC_PORT_SMBUS, SMBUS_REGISTERS, "smbus-piix4", &smbus_ops, pm);
	return error ? error : pci_add_function(root, function, PCI_DEVFN(PC_PCI_ISA_SLOT, 3));
}

/* Both blocks are enabled, and their interrupt is the SCI, as firmware leaves them. */
void pm_piix4_reset(struct pm_piix4 *pm)
{
	struct pci_function *function = &pm->function;

	pci_set(function, PCI_COMMAND, 2, PCI_COMMAND_IO);
	pci_set(function, PCI_INTERRUPT_LINE, 1, PC_IRQ_SCI);
	pci_set(function, PMREGMISC, 1, 1);
	pci_set(function, SMBHSTCFG, 1, SMBHSTCFG_ENABLE | SMBHSTCFG_IRQ9);
	memset(pm->smbus, 0, sizeof pm->smbus);
}
