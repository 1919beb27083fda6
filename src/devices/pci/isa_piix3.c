#include "devices/pci/isa_piix3.h"

#include "machine/pc_addresses.h"

#define XBCS  0x4e
#define PIRQA 0x60

#define ROUTE_OFF 0x80u

/* IRQs that a PIRQ can be routed to: not the timer, keyboard, cascade, RTC and FPU (82371SB 2.3.4). */
#define ROUTABLE 0xdef8u

static void piix3_update(struct isa_piix3 *piix3)
{
	uint16_t driven = 0, changed;

	for (unsigned i = 0; i < 4; i++) {
		uint8_t route = piix3->function.config[PIRQA + i];

		if (piix3->pirq[i] && !(route & ROUTE_OFF))
			driven |= 1u << (route & 15);
	}
	driven &= ROUTABLE;
	changed = driven ^ piix3->driven;
	piix3->driven = driven;
	for (unsigned irq = 0; irq < 16; irq++)
		if (changed >> irq & 1)
			irq_line_set(&(struct irq_line){piix3->irq.set, piix3->irq.owner, irq}, driven >> irq & 1);
}

static void set_pirq(void *owner, unsigned pin, bool level)
{
	struct isa_piix3 *piix3 = owner;

	piix3->pirq[pin & 3] = level;
	piix3_update(piix3);
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
	piix3_update((struct isa_piix3 *)function);
}

int isa_piix3_init(struct isa_piix3 *piix3, struct pci_root *root, struct irq_line irq)
{
	struct pci_function *function = &piix3->function;

	*piix3 = (struct isa_piix3){.irq = irq};
	pci_function_init(function, "isa-piix3", 0x8086, 0x7000, 0, 0x060100);
	pci_set(function, PCI_STATUS, 2, 0x0200);
	pci_set(function, PCI_HEADER_TYPE, 1, 0x80); /* more functions in this slot */
	pci_set_writable(function, PCI_COMMAND, 2, PCI_COMMAND_SERR);
	pci_set_writable(function, XBCS, 2, 0xffff);
	pci_set_writable(function, PIRQA, 4, 0x8f8f8f8f);
	function->config_written = config_written;
	isa_piix3_reset(piix3);
	pci_root_set_pirq(root, (struct irq_line){.set = set_pirq, .owner = piix3});
	return pci_add_function(root, function, PCI_DEVFN(PC_PCI_ISA_SLOT, 0));
}

/* Routed as firmware does it: the chip's own reset value is "off", and a directly loaded kernel has no firmware. */
void isa_piix3_reset(struct isa_piix3 *piix3)
{
	struct pci_function *function = &piix3->function;

	pci_set(function, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	pci_set(function, XBCS, 2, 0x0003);
	pci_set(function, PIRQA, 4, PC_PIRQ_A_IRQ | PC_PIRQ_B_IRQ << 8 | PC_PIRQ_C_IRQ << 16 | PC_PIRQ_D_IRQ << 24);
	piix3_update(piix3);
}
