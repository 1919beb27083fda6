#include "devices/debug_ports.h"

static uint64_t debug_read(void *device, uint64_t offset, unsigned size)
{
	return 0xe9;
}

static void debug_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct debug_ports *ports = device;

	if (ports->put)
		ports->put(ports->owner, value);
}

static const struct bus_ops debug_ops = {.read = debug_read, .write = debug_write};

int debug_ports_init(struct debug_ports *ports, struct bus *bus, void (*put)(void *owner, uint8_t byte), void *owner)
{
	int error;

	*ports = (struct debug_ports){.put = put, .owner = owner};
	error = bus_add_ports(bus, 0x402, 1, "debug-402", &debug_ops, ports);
	return error ? error : bus_add_ports(bus, 0xe9, 1, "debug-e9", &debug_ops, ports);
}
