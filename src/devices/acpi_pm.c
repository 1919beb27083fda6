/*
 * PIIX4 power management registers. The SCI is derived from status, enable and SCI_EN by pm_update() after every
 * change. The PM timer is computed from the clock; a clock timer is armed only while its interrupt is enabled.
 */
#include "devices/acpi_pm.h"

#include <string.h>

#include "machine/state.h"

#define PM1_STS  0x00
#define PM1_EN   0x02
#define PM1_CNT  0x04
#define PM_TMR   0x08
#define GPE0_STS 0x20
#define GPE0_EN  0x22

#define TMR_STS    0x0001u
#define GBL_STS    0x0020u
#define PWRBTN_STS 0x0100u
#define SLPBTN_STS 0x0200u
#define RTC_STS    0x0400u
#define WAK_STS    0x8000u
#define STS_MASK   (TMR_STS | 0x0010u | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS | WAK_STS)
#define EN_MASK    (TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS)

#define CNT_SCI_EN    0x0001u
#define CNT_BM_RLD    0x0002u
#define CNT_GBL_RLS   0x0004u
#define CNT_SLP_TYP   0x1c00u
#define CNT_SLP_SHIFT 10
#define CNT_SLP_EN    0x2000u

static uint64_t timer_ticks(struct acpi_pm *pm)
{
	return (unsigned __int128)clock_now(pm->clock) * ACPI_PM_TIMER_HZ / 1000000000u;
}

static unsigned half_shift(const struct acpi_pm *pm)
{
	return pm->config.timer_32bit ? 31 : 23;
}

/* TMR_STS is set whenever the counter's top bit changes (ACPI 4.8.2.1). */
static void pm_catch_up(struct acpi_pm *pm)
{
	uint64_t halves = timer_ticks(pm) >> half_shift(pm);

	if (halves != pm->timer_halves)
		pm->pm1_status |= TMR_STS;
	pm->timer_halves = halves;
}

static void pm_update(struct acpi_pm *pm)
{
	bool level = pm->pm1_control & CNT_SCI_EN &&
	             (pm->pm1_status & pm->pm1_enable & EN_MASK || pm->gpe_status & pm->gpe_enable);

	if (level != pm->sci_level) {
		pm->sci_level = level;
		irq_line_set(&pm->config.sci, level);
	}
	if (pm->pm1_enable & ~pm->pm1_status & TMR_STS) {
		uint64_t tick = (pm->timer_halves + 1) << half_shift(pm);

		timer_set(&pm->overflow,
		          ((unsigned __int128)tick * 1000000000u + ACPI_PM_TIMER_HZ - 1) / ACPI_PM_TIMER_HZ);
	} else {
		timer_cancel(&pm->overflow);
	}
}

static void overflow_expired(void *owner)
{
	struct acpi_pm *pm = owner;

	pm_catch_up(pm);
	pm_update(pm);
}

static void write_control(struct acpi_pm *pm, uint16_t value)
{
	pm->pm1_control = (value & (CNT_SCI_EN | CNT_BM_RLD | CNT_SLP_TYP)) | (pm->config.always_acpi ? CNT_SCI_EN : 0);
	if (!(value & CNT_SLP_EN))
		return;
	if ((value & CNT_SLP_TYP) >> CNT_SLP_SHIFT == ACPI_PM_S5) {
		irq_line_set(&pm->config.power_off, true);
		irq_line_set(&pm->config.power_off, false);
	} else {
		pm->pm1_status |= WAK_STS; /* no other sleep is there: the machine wakes at once */
	}
}

/* The 16 bits at an even offset. */
static uint16_t read_register(struct acpi_pm *pm, unsigned offset)
{
	switch (offset) {
	case PM1_STS:
		return pm->pm1_status;
	case PM1_EN:
		return pm->pm1_enable;
	case PM1_CNT:
		return pm->pm1_control;
	case GPE0_STS:
		return pm->gpe_status;
	case GPE0_EN:
		return pm->gpe_enable;
	default:
		return 0;
	}
}

/* `mask` has the bits of the bytes that are written. */
static void write_register(struct acpi_pm *pm, unsigned offset, uint16_t value, uint16_t mask)
{
	switch (offset) {
	case PM1_STS:
		pm->pm1_status &= ~(value & mask);
		break;
	case PM1_EN:
		pm->pm1_enable = ((pm->pm1_enable & ~mask) | (value & mask)) & EN_MASK;
		break;
	case PM1_CNT: /* SLP_EN reads as 0, so that the merge cannot repeat it */
		write_control(pm, (pm->pm1_control & ~mask) | (value & mask));
		break;
	case GPE0_STS:
		pm->gpe_status &= ~(value & mask);
		break;
	case GPE0_EN:
		pm->gpe_enable = (pm->gpe_enable & ~mask) | (value & mask);
		break;
	}
}

static uint64_t pm_read(void *device, uint64_t offset, unsigned size)
{
	struct acpi_pm *pm = device;
	uint64_t value = 0;

	pm_catch_up(pm);
	pm_update(pm);
	if (offset >= PM_TMR && offset < PM_TMR + 4) {
		uint32_t ticks = timer_ticks(pm);

		if (!pm->config.timer_32bit)
			ticks &= 0xffffff;
		return (uint64_t)ticks >> 8 * (offset - PM_TMR);
	}
	for (unsigned i = 0; i < size; i++) {
		unsigned at = offset + i;

		value |= (uint64_t)(read_register(pm, at & ~1u) >> 8 * (at & 1) & 0xff) << 8 * i;
	}
	return value;
}

static void pm_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *pm = device;
	unsigned i = 0;

	pm_catch_up(pm);
	while (i < size) {
		unsigned at = offset + i;

		if (at & 1) {
			write_register(pm, at - 1, (value >> 8 * i & 0xff) << 8, 0xff00);
			i += 1;
		} else {
			write_register(pm, at, value >> 8 * i & 0xffff, size - i > 1 ? 0xffff : 0x00ff);
			i += 2;
		}
	}
	pm_update(pm);
}

/* APM control and status: SMI handlers of PC firmware switch ACPI on and off here; ring3 does so itself. */
static uint64_t apm_read(void *device, uint64_t offset, unsigned size)
{
	struct acpi_pm *pm = device;

	return offset ? pm->smi_status : pm->smi_command;
}

static void apm_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *pm = device;

	if (offset) {
		pm->smi_status = value;
		return;
	}
	pm->smi_command = value;
	pm_catch_up(pm);
	if (value == ACPI_PM_ENABLE)
		pm->pm1_control |= CNT_SCI_EN;
	else if (value == ACPI_PM_DISABLE && !pm->config.always_acpi)
		pm->pm1_control &= ~CNT_SCI_EN;
	pm_update(pm);
}

static const struct bus_ops pm_ops = {.read = pm_read, .write = pm_write, .max_size = 4};
static const struct bus_ops apm_ops = {.read = apm_read, .write = apm_write};

void acpi_pm_power_button(struct acpi_pm *pm)
{
	pm_catch_up(pm);
	pm->pm1_status |= PWRBTN_STS;
	pm_update(pm);
}

void acpi_pm_sleep_button(struct acpi_pm *pm)
{
	pm_catch_up(pm);
	pm->pm1_status |= SLPBTN_STS;
	pm_update(pm);
}

void acpi_pm_raise_gpe(struct acpi_pm *pm, unsigned event)
{
	pm_catch_up(pm);
	if (event < 16)
		pm->gpe_status |= 1u << event;
	pm_update(pm);
}

int acpi_pm_init(struct acpi_pm *pm, struct bus *bus, struct clock *clock, const struct acpi_pm_config *config)
{
	int error;

	memset(pm, 0, sizeof *pm);
	pm->config = *config;
	pm->clock = clock;
	timer_init(&pm->overflow, clock, overflow_expired, pm);
	acpi_pm_reset(pm);
	if ((error = bus_add_ports(bus, config->base, ACPI_PM_LENGTH, "acpi-pm", &pm_ops, pm)) ||
	    (error = bus_add_ports(bus, 0xb2, 2, "apm", &apm_ops, pm)))
		return error;
	return 0;
}

void acpi_pm_reset(struct acpi_pm *pm)
{
	pm->pm1_status = pm->pm1_enable = pm->gpe_status = pm->gpe_enable = 0;
	pm->pm1_control = pm->config.always_acpi ? CNT_SCI_EN : 0;
	pm->smi_command = pm->smi_status = 0;
	pm->timer_halves = timer_ticks(pm) >> half_shift(pm);
	pm_update(pm);
}

void acpi_pm_state(struct acpi_pm *pm, struct state *state)
{
	if (!state_loading(state))
		pm_catch_up(pm);
	state_begin(state, "acpi-pm", 0, 1);
	state_u16(state, "pm1-status", &pm->pm1_status);
	state_u16(state, "pm1-enable", &pm->pm1_enable);
	state_u16(state, "pm1-control", &pm->pm1_control);
	state_u16(state, "gpe-status", &pm->gpe_status);
	state_u16(state, "gpe-enable", &pm->gpe_enable);
	state_u8(state, "smi-command", &pm->smi_command);
	state_u8(state, "smi-status", &pm->smi_status);
	state_u64(state, "timer-halves", &pm->timer_halves);
	pm->pm1_status &= STS_MASK;
	pm->pm1_enable &= EN_MASK;
	pm->pm1_control &= CNT_SCI_EN | CNT_BM_RLD | CNT_SLP_TYP;
	state_end(state);
	if (state_loading(state)) {
		pm_catch_up(pm);
		pm_update(pm);
		irq_line_set(&pm->config.sci, pm->sci_level);
	}
}
