#include "devices/reset_control_cf9.h"

#include "machine/state.h"

#define SYSTEM_RESET 0x02u /* hard, not only the processor: both reset the whole machine here */
#define RESET_CPU    0x04u
#define FULL_RESET   0x08u /* with a power cycle */

static uint64_t control_read(void *device, uint64_t offset, unsigned size)
{
	struct reset_control_cf9 *control = device;

	return control->value;
}

static void control_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct reset_control_cf9 *control = device;
	uint8_t rises = ~control->value & value;

	control->value = value & (SYSTEM_RESET | FULL_RESET);
	if (rises & RESET_CPU) {
		irq_line_set(&control->reset, true);
		irq_line_set(&control->reset, false);
	}
}

const struct bus_ops reset_control_cf9_ops = {.read = control_read, .write = control_write};

void reset_control_cf9_init(struct reset_control_cf9 *control, struct irq_line reset)
{
	*control = (struct reset_control_cf9){.reset = reset};
}

void reset_control_cf9_reset(struct reset_control_cf9 *control)
{
	control->value = 0;
}

void reset_control_cf9_state(struct reset_control_cf9 *control, struct state *state)
{
	state_begin(state, "reset-control-cf9", 0, 1);
	state_u8(state, "value", &control->value);
	control->value &= SYSTEM_RESET | FULL_RESET;
	state_end(state);
}
