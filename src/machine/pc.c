/*
 * The PC: every chip, its address and its wires.
 */
#include "machine/pc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/lapic.h"
#include "machine/machine.h"
#include "machine/pc_addresses.h"
#include "machine/state.h"

/* ---- wires ---- */

/* Who may pull one ISA interrupt: the chip itself, a second port on the same line, the PCI interrupt router. */
enum irq_source { SOURCE_CHIP, SOURCE_SECOND, SOURCE_PCI };
#define PIN(irq, source) ((irq) | (unsigned)(source) << 4)

/*
 * An ISA interrupt is the OR of its sources. It reaches both the 8259 pair and the I/O APIC, where the timer's pin is
 * another (ACPI: override in the MADT).
 */
static void isa_irq(void *owner, unsigned pin, bool level)
{
	struct pc *pc = owner;
	unsigned irq = pin & 15, source = pin >> 4;

	if (level)
		pc->irq_sources[irq] |= (uint8_t)(1u << source);
	else
		pc->irq_sources[irq] &= (uint8_t) ~(1u << source);
	pic_8259_set_irq(&pc->pic, irq, pc->irq_sources[irq]);
	ioapic_set_irq(&pc->ioapic, irq == PC_IRQ_PIT ? PC_GSI_PIT : irq, pc->irq_sources[irq]);
}

static void pci_irq(void *owner, unsigned irq, bool level)
{
	isa_irq(owner, PIN(irq, SOURCE_PCI), level);
}

static struct irq_line isa_line(struct pc *pc, unsigned irq)
{
	return (struct irq_line){.set = isa_irq, .owner = pc, .pin = PIN(irq, SOURCE_CHIP)};
}

/* The 8259's INTR goes to the bootstrap processor: LINT0 of its local APIC, or straight in while that is off. */
static void pic_intr(void *owner, unsigned pin, bool level)
{
	struct machine *machine = ((struct pc *)owner)->machine;
	struct vcpu *bsp = machine->vcpu[0];

	atomic_store(&bsp->extint_line, level);
	lapic_set_lint(bsp->lapic, 0, level);
	if (level)
		vcpu_kick(bsp, ATTENTION_INTERRUPT);
}

/* On the vCPU's thread, without the device lock. */
static int pic_acknowledge(void *owner)
{
	struct pc *pc = owner;

	machine_lock(pc->machine);
	int vector = pic_8259_acknowledge(&pc->pic);
	machine_unlock(pc->machine);
	return vector;
}

/* The bootstrap processor's FERR#: on its thread, without the device lock. */
static void ferr(void *owner, bool level)
{
	struct pc *pc = owner;

	machine_lock(pc->machine);
	fpu_error_set(&pc->fpu_error, level);
	machine_unlock(pc->machine);
}

static void ignne_wire(void *owner, unsigned pin, bool level)
{
	struct vcpu *bsp = ((struct pc *)owner)->machine->vcpu[0];

	/* Whoever runs chained blocks shall see it before the next instruction. */
	if (atomic_exchange(&bsp->ignne, level) != level && level)
		vcpu_kick(bsp, ATTENTION_STEP);
}

static void level_eoi(void *owner, unsigned vector)
{
	struct pc *pc = owner;

	machine_lock(pc->machine);
	ioapic_eoi(&pc->ioapic, vector);
	machine_unlock(pc->machine);
}

static void reset_wire(void *owner, unsigned pin, bool level)
{
	if (level)
		machine_request_reset(((struct pc *)owner)->machine);
}

static void power_off_wire(void *owner, unsigned pin, bool level)
{
	if (level)
		machine_end(((struct pc *)owner)->machine, MACHINE_POWER_OFF, 0);
}

static void debug_exit(void *owner, uint32_t value)
{
	machine_end(((struct pc *)owner)->machine, MACHINE_DEBUG_EXIT, (int)value);
}

/* Firmware and test guests write text: whole lines go to the trace point. */
static void debug_byte(void *owner, uint8_t byte)
{
	struct pc *pc = owner;
	struct pc_debug_line *line = &pc->debug_line;

	if (byte != '\n' && byte != '\r')
		line->text[line->length++] = byte >= ' ' && byte < 0x7f ? (char)byte : '?';
	if ((byte == '\n' && line->length) || line->length == sizeof(line->text) - 1) {
		line->text[line->length] = '\0';
		trace(&pc->machine->trace, TRACE_DEBUGPORT, -1, "%s", line->text);
		line->length = 0;
	}
}

/* ---- the parts list ---- */

static int create_interrupts(struct pc *pc, struct bus *bus)
{
	struct machine *machine = pc->machine;
	struct vcpu *bsp = machine->vcpu[0];
	int error = pic_8259_init(&pc->pic, bus, (struct irq_line){.set = pic_intr, .owner = pc});

	if (!error)
		error = ioapic_init(&pc->ioapic, bus, PC_IOAPIC, machine->lapics);
	bsp->extint_acknowledge = pic_acknowledge;
	bsp->extint_owner = pc;
	lapic_group_set_eoi_handler(machine->lapics, level_eoi, pc);
	return error;
}

static int create_serial_ports(struct pc *pc, struct bus *bus)
{
	static const uint16_t base[PC_COM_PORTS] = {PC_PORT_COM1, PC_PORT_COM2, PC_PORT_COM3, PC_PORT_COM4};
	int error = 0;

	for (unsigned i = 0; i < PC_COM_PORTS && !error; i++) {
		/* COM1 and COM3 share IRQ 4, COM2 and COM4 IRQ 3. */
		struct irq_line irq = isa_line(pc, i & 1 ? PC_IRQ_COM2 : PC_IRQ_COM1);

		if (i >= 2)
			irq.pin = PIN(irq.pin, SOURCE_SECOND);

		error = serial_16550_init(&pc->com[i], bus, base[i], i, pc->machine->clock, irq);
	}
	if (!error && pc->machine->options.console)
		serial_16550_connect_chardev(&pc->com[0], pc->machine->options.console);
	return error;
}

static int create_board(struct pc *pc, struct bus *bus)
{
	struct machine *machine = pc->machine;
	struct clock *clock = machine->clock;
	const struct irq_line none = {0}, reset = {.set = reset_wire, .owner = pc};
	const struct acpi_pm_config acpi = {
	    .base = PC_PORT_ACPI,
	    .always_acpi = true,
	    .sci = isa_line(pc, PC_IRQ_SCI),
	    .power_off = {.set = power_off_wire, .owner = pc},
	};
	int error = pit_8254_init(&pc->pit, bus, clock, isa_line(pc, PC_IRQ_PIT));

	if (!error)
		error = rtc_mc146818_init(&pc->rtc, bus, clock, isa_line(pc, PC_IRQ_RTC), none);
	if (!error)
		error = i8042_init(&pc->i8042, bus, clock, isa_line(pc, PC_IRQ_KBD), isa_line(pc, PC_IRQ_MOUSE), none,
		                   reset);
	if (!error)
		error = port92_init(&pc->port92, bus, none, reset);
	if (!error)
		error = fpu_error_init(&pc->fpu_error, bus, isa_line(pc, PC_IRQ_FPU),
		                       (struct irq_line){.set = ignne_wire, .owner = pc});
	machine->vcpu[0]->ferr = ferr;
	machine->vcpu[0]->ferr_owner = pc;
	if (!error)
		error = dma_8237_init(&pc->dma, bus);
	if (!error)
		error = acpi_pm_init(&pc->acpi_pm, bus, clock, &acpi);
	if (!error)
		error = debug_ports_init(&pc->debug_ports, bus, debug_byte, pc);
	if (!error && machine->options.debug_exit)
		error = debug_exit_init(&pc->debug_exit, bus, debug_exit, pc);
	if (!error)
		error = fw_cfg_init(&pc->fw_cfg, bus, &machine->memory);
	return error;
}

static void pci_message(void *owner, uint64_t address, uint32_t data)
{
	lapic_msi(((struct pc *)owner)->machine->lapics, address, data);
}

static int create_pci(struct pc *pc, struct bus *bus)
{
	const struct irq_line reset = {.set = reset_wire, .owner = pc};

	reset_control_cf9_init(&pc->reset_control, reset);
	int error = pci_root_init(&pc->pci, bus, &reset_control_cf9_ops, &pc->reset_control);
	pci_root_set_message(&pc->pci, pci_message, pc);
	if (!error)
		error = pci_root_add_ecam(&pc->pci, PC_MMCONFIG);
	if (!error)
		error = host_i440fx_init(&pc->host_bridge, &pc->pci);
	if (!error)
		error = isa_piix3_init(&pc->isa_bridge, &pc->pci, (struct irq_line){.set = pci_irq, .owner = pc});
	if (!error)
		error = pm_piix4_init(&pc->power_management, &pc->pci, PC_PORT_ACPI);
	return error;
}

static void fill_configuration(struct pc *pc)
{
	struct machine *machine = pc->machine;

	rtc_mc146818_set_memory(&pc->rtc, machine->memory.low_size, machine->memory.high_size);
	fw_cfg_set_integer(&pc->fw_cfg, FW_CFG_RAM_SIZE, machine->memory.size, 8);
	fw_cfg_set_integer(&pc->fw_cfg, FW_CFG_CPUS, machine->options.cpus, 2);
	fw_cfg_set_integer(&pc->fw_cfg, FW_CFG_CPUS_MAX, machine->options.cpus, 2);
	fw_cfg_set_integer(&pc->fw_cfg, FW_CFG_NOGRAPHIC, 1, 2);
}

int pc_create(struct machine *machine)
{
	struct pc *pc = calloc(1, sizeof(*pc));

	if (!pc)
		return -ENOMEM;
	pc->machine = machine;
	machine->pc = pc;
	int error = create_interrupts(pc, &machine->bus);
	if (!error)
		error = create_board(pc, &machine->bus);
	if (!error)
		error = create_serial_ports(pc, &machine->bus);
	if (!error)
		error = create_pci(pc, &machine->bus);
	if (!error)
		error = pc_virtio_create(&pc->virtio, machine, &pc->pci);
	if (!error)
		fill_configuration(pc);
	return error;
}

void pc_destroy(struct machine *machine)
{
	pc_virtio_destroy(&machine->pc->virtio);
	free(machine->pc);
	machine->pc = NULL;
}

/* No firmware runs before a kernel that is loaded directly: the BARs get their places here. */
static void assign_bars(struct pc *pc)
{
	static const struct pci_windows windows = {
	    .io = PC_PCI_IO,
	    .io_end = 0x10000,
	    .memory = PC_PCI_WINDOW2,
	    .memory_end = PC_PCI_WINDOW2 + (uint64_t)PC_PCI_WINDOW2_LENGTH,
	    .memory64 = PC_PCI_WINDOW64,
	    .memory64_end = PC_PCI_WINDOW64 + PC_PCI_WINDOW64_LENGTH,
	    .pirq = {PC_PIRQ_A_IRQ, PC_PIRQ_B_IRQ, PC_PIRQ_C_IRQ, PC_PIRQ_D_IRQ},
	};

	pci_root_assign(&pc->pci, &windows);
}

void pc_reset(struct pc *pc)
{
	pit_8254_reset(&pc->pit);
	rtc_mc146818_reset(&pc->rtc);
	i8042_reset(&pc->i8042);
	port92_reset(&pc->port92);
	fpu_error_reset(&pc->fpu_error);
	reset_control_cf9_reset(&pc->reset_control);
	dma_8237_reset(&pc->dma);
	for (unsigned i = 0; i < PC_COM_PORTS; i++)
		serial_16550_reset(&pc->com[i]);
	acpi_pm_reset(&pc->acpi_pm);
	fw_cfg_reset(&pc->fw_cfg);
	pci_root_reset(&pc->pci);
	host_i440fx_reset(&pc->host_bridge);
	isa_piix3_reset(&pc->isa_bridge);
	pm_piix4_reset(&pc->power_management);
	pc_virtio_reset(&pc->virtio);
	assign_bars(pc);
	ioapic_reset(&pc->ioapic);
	pic_8259_reset(&pc->pic);
}

void pc_state(struct pc *pc, struct state *state)
{
	/* First: a chip that pulls a shared line while it loads must find the other sources as they were. */
	state_begin(state, "pc", 0, 1);
	state_u8_array(state, "irq_sources", pc->irq_sources, sizeof(pc->irq_sources));
	state_end(state);
	pic_8259_state(&pc->pic, state);
	ioapic_state(&pc->ioapic, state);
	pit_8254_state(&pc->pit, state);
	rtc_mc146818_state(&pc->rtc, state);
	i8042_state(&pc->i8042, state);
	port92_state(&pc->port92, state);
	fpu_error_state(&pc->fpu_error, state);
	reset_control_cf9_state(&pc->reset_control, state);
	dma_8237_state(&pc->dma, state);
	for (unsigned i = 0; i < PC_COM_PORTS; i++)
		serial_16550_state(&pc->com[i], state);
	acpi_pm_state(&pc->acpi_pm, state);
	fw_cfg_state(&pc->fw_cfg, state);
	pci_root_state(&pc->pci, state);
	pc_virtio_state(&pc->virtio, state);
}

void pc_pause(struct pc *pc)
{
	pc_virtio_pause(&pc->virtio);
}

void pc_resume(struct pc *pc)
{
	pc_virtio_resume(&pc->virtio);
}
