/*
 * The ACPI fixed hardware of a PIIX4 (82371AB 7.3; ACPI 6.4 section 4.8): PM1 event and control, the PM timer, one GPE
 * block, and the APM ports through which firmware's ACPI is switched on.
 *
 * Offsets from the base: 0 PM1_STS, 2 PM1_EN, 4 PM1_CNT, 8 PM_TMR, 20h GPE0_STS, 22h GPE0_EN. Ports B2h (SMI_CMD), B3h.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "machine/clock.h"

#define ACPI_PM_LENGTH   0x40
#define ACPI_PM_TIMER_HZ 3579545u
#define ACPI_PM_S5       0    /* SLP_TYP that means soft off */
#define ACPI_PM_ENABLE   0xf1 /* to SMI_CMD: SCI_EN on */
#define ACPI_PM_DISABLE  0xf0

struct state;

struct acpi_pm_config {
	uint16_t base;
	bool timer_32bit;          /* or 24, which every OS accepts */
	bool always_acpi;          /* SCI_EN is fixed to 1: tables say that there is no SMI_CMD */
	struct irq_line sci;       /* level, active high */
	struct irq_line power_off; /* pulsed true, then false */
};

struct acpi_pm {
	struct acpi_pm_config config;
	uint16_t pm1_status, pm1_enable, pm1_control;
	uint16_t gpe_status, gpe_enable;
	uint8_t smi_command, smi_status;
	uint64_t timer_halves; /* how often the timer's top bit had toggled when TMR_STS was last looked after */
	bool sci_level;
	struct clock *clock;
	struct timer overflow;
};

/* Claims the ports. 0 or -errno. */
int acpi_pm_init(struct acpi_pm *pm, struct bus *bus, struct clock *clock, const struct acpi_pm_config *config);
void acpi_pm_reset(struct acpi_pm *pm);
/* The user presses the button: an SCI if the guest listens. */
void acpi_pm_power_button(struct acpi_pm *pm);
void acpi_pm_sleep_button(struct acpi_pm *pm);
/* General-purpose event `event`, 0-15, happened (hot-plug, ...). */
void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event);
void acpi_pm_state(struct acpi_pm *pm, struct state *state);
