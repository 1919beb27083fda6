#include "devices/port92.h"

#include <string.h>

#include "machine/state.h"

#define FAST_RESET 0x01u
#define A20        0x02u

static uint64_t port92_read(void *device, uint64_t offset, unsigned size)
{
	struct port92 *port92 = device;

	return port92->value;
}

static void port92_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct port92 *port92 = device;
	uint8_t changed = port92->value ^ value;

	port92->value = value & (FAST_RESET | A20);
	if (changed & A20)
		irq_line_set(&port92->a20, value & A20);
	if (changed & value & FAST_RESET) { /* 0 to 1 */
		irq_line_set(&port92->reset, true);
		irq_line_set(&port92->reset, false);
	}
}

static const struct bus_ops port92_ops = {.read = port92_read, .write = port92_write};

int port92_init(struct port92 *port92, struct bus *bus, struct irq_line a20, struct irq_line reset)
{
	memset(port92, 0, sizeof *port92);
	port92->a20 = a20;
	port92->reset = reset;
	port92_reset(port92);
	return bus_add_ports(bus, 0x92, 1, "port-92", &port92_ops, port92);
}

void port92_reset(struct port92 *port92)
{
	port92->value = A20;
	irq_line_set(&port92->a20, true);
}

void port92_state(struct port92 *port92, struct state *state)
{
	state_begin(state, "port-92", 0, 1);
	state_u8(state, "value", &port92->value);
	port92->value &= FAST_RESET | A20;
	state_end(state);
	if (state_loading(state))
		irq_line_set(&port92->a20, port92->value & A20);
}
