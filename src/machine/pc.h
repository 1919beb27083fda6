/*
 * The PC's chips and how they are wired: the parts list. pc.c shows every chip, address and interrupt line.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/acpi_pm.h"
#include "devices/debug_exit.h"
#include "devices/debug_ports.h"
#include "devices/dma_8237.h"
#include "devices/fpu_error.h"
#include "devices/fw_cfg.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/pci/host_i440fx.h"
#include "devices/pci/isa_piix3.h"
#include "devices/pci/pci.h"
#include "devices/pci/pm_piix4.h"
#include "devices/pic_8259.h"
#include "devices/pit_8254.h"
#include "devices/port92.h"
#include "devices/reset_control_cf9.h"
#include "devices/rtc_mc146818.h"
#include "devices/serial_16550.h"
#include "machine/pc_virtio.h"

#define PC_COM_PORTS 4

struct machine;
struct state;

/* A line of output from the debug ports, collected until it is whole. */
struct pc_debug_line {
	char text[256];
	unsigned length;
};

struct pc {
	struct machine *machine;
	struct pic_8259 pic;
	struct ioapic ioapic;
	struct pit_8254 pit;
	struct rtc_mc146818 rtc;
	struct i8042 i8042;
	struct port92 port92;
	struct fpu_error fpu_error;
	struct reset_control_cf9 reset_control;
	struct dma_8237 dma;
	struct serial_16550 com[PC_COM_PORTS];
	struct acpi_pm acpi_pm;
	struct debug_ports debug_ports;
	struct debug_exit debug_exit;
	struct fw_cfg fw_cfg;
	struct pci_root pci;
	struct host_i440fx host_bridge;
	struct isa_piix3 isa_bridge;
	struct pm_piix4 power_management;
	struct pc_virtio virtio;
	struct pc_debug_line debug_line;
	uint8_t irq_sources[16]; /* of each ISA IRQ: bit n: source n asks; a line is the OR of its sources */
};

/* Makes the chips and claims their ports on machine->bus. The vCPUs and local APICs exist. 0 or -errno; -ECANCELED: what
 * failed was logged. */
int pc_create(struct machine *machine);
void pc_destroy(struct machine *machine);
/* All chips as after RESET#. The machine is paused (or not started). */
void pc_reset(struct pc *pc);
void pc_state(struct pc *pc, struct state *state);
/* The devices that work on threads of their own stand still between these two. Without the device lock; pausing twice
 * is pausing once. */
void pc_pause(struct pc *pc);
void pc_resume(struct pc *pc);
