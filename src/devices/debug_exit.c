#include "devices/debug_exit.h"

static uint64_t exit_read(void *device, uint64_t offset, unsigned size)
{
	return 0;
}

static void exit_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct debug_exit *debug_exit = device;

	debug_exit->exit(debug_exit->owner, value);
}

static const struct bus_ops exit_ops = {.read = exit_read, .write = exit_write, .max_size = 4};

int debug_exit_init(struct debug_exit *device, struct bus *bus, void (*exit)(void *owner, uint32_t value), void *owner)
{
	*device = (struct debug_exit){.exit = exit, .owner = owner};
	return bus_add_ports(bus, 0xf4, 4, "debug-exit", &exit_ops, device);
}
