/*
 * The port and MMIO spaces: claimed ranges in two sorted arrays, looked up by a remembered last hit and then by
 * bisection.
 */
#include "devices/bus.h"

#include <errno.h>
#include <string.h>

#include "debug/trace.h"

void bus_init(struct bus *bus, struct trace *trace)
{
	memset(bus, 0, sizeof *bus);
	bus->trace = trace;
}

/* Index of the first range that ends above `address`, or count. */
static unsigned space_search(const struct bus_space *space, uint64_t address)
{
	unsigned low = 0, high = space->count;

	while (low < high) {
		unsigned middle = (low + high) / 2;
		const struct bus_range *range = &space->range[middle];

		if (range->base + (range->length - 1) < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool range_has(const struct bus_range *range, uint64_t address)
{
	return address - range->base < range->length;
}

static const struct bus_range *space_find(struct bus_space *space, uint64_t address)
{
	unsigned index = space->last_hit;

	if (index < space->count && range_has(&space->range[index], address))
		return &space->range[index];
	index = space_search(space, address);
	if (index == space->count || !range_has(&space->range[index], address))
		return NULL;
	space->last_hit = index;
	return &space->range[index];
}

static int space_add(struct bus_space *space, const struct bus_range *range)
{
	uint64_t last = range->base + (range->length - 1);
	unsigned index;

	if (range->length == 0 || last < range->base)
		return -EINVAL;
	index = space_search(space, range->base);
	if (index < space->count && space->range[index].base <= last)
		return -EEXIST;
	if (space->count == BUS_RANGES_MAX)
		return -ENOSPC;
	memmove(&space->range[index + 1], &space->range[index], (space->count - index) * sizeof *range);
	space->range[index] = *range;
	space->count++;
	return 0;
}

static void space_remove(struct bus_space *space, uint64_t base)
{
	unsigned index = space_search(space, base);

	if (index == space->count || space->range[index].base != base)
		return;
	space->count--;
	memmove(&space->range[index], &space->range[index + 1], (space->count - index) * sizeof space->range[0]);
}

int bus_add_ports(struct bus *bus, uint16_t base, unsigned length, const char *name, const struct bus_ops *ops,
                  void *device)
{
	struct bus_range range = {.base = base, .length = length, .name = name, .ops = ops, .device = device};

	if (length > 0x10000u - base)
		return -EINVAL;
	return space_add(&bus->ports, &range);
}

int bus_add_mmio(struct bus *bus, uint64_t base, uint64_t length, const char *name, const struct bus_ops *ops,
                 void *device)
{
	struct bus_range range = {.base = base, .length = length, .name = name, .ops = ops, .device = device};

	return space_add(&bus->mmio, &range);
}

void bus_remove_ports(struct bus *bus, uint16_t base)
{
	space_remove(&bus->ports, base);
}

void bus_remove_mmio(struct bus *bus, uint64_t base)
{
	space_remove(&bus->mmio, base);
}

static uint64_t ones(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << 8 * size) - 1;
}

/*
 * The range that takes the whole access in one piece. NULL: `*claimed` tells whether any of its bytes belongs to
 * somebody. The ranges may move during a callback (a BAR that is written): the result is a copy.
 */
static bool space_resolve(struct bus_space *space, uint64_t address, unsigned size, struct bus_range *copy,
                          bool *claimed)
{
	const struct bus_range *range = space_find(space, address);

	*claimed = range != NULL;
	if (range) {
		unsigned max_size = range->ops->max_size ? range->ops->max_size : 1;

		*copy = *range;
		return size <= max_size && size <= range->length - (address - range->base);
	}
	for (unsigned i = 1; i < size && !*claimed; i++)
		*claimed = space_find(space, address + i) != NULL;
	return false;
}

static uint64_t space_read(struct bus_space *space, uint64_t address, unsigned size, const char **name)
{
	struct bus_range range;
	bool claimed;
	uint64_t value = 0;

	if (space_resolve(space, address, size, &range, &claimed)) {
		*name = range.name;
		if (!range.ops->read)
			return ones(size);
		return range.ops->read(range.device, address - range.base, size) & ones(size);
	}
	if (!claimed)
		return ones(size);
	for (unsigned i = 0; i < size; i++) {
		uint64_t byte = 0xff;

		if (space_resolve(space, address + i, 1, &range, &claimed)) {
			*name = range.name;
			if (range.ops->read)
				byte = range.ops->read(range.device, address + i - range.base, 1) & 0xff;
		}
		value |= byte << 8 * i;
	}
	return value;
}

static void space_write(struct bus_space *space, uint64_t address, unsigned size, uint64_t value, const char **name)
{
	struct bus_range range;
	bool claimed;

	if (space_resolve(space, address, size, &range, &claimed)) {
		*name = range.name;
		if (range.ops->write)
			range.ops->write(range.device, address - range.base, size, value & ones(size));
		return;
	}
	for (unsigned i = 0; claimed && i < size; i++) {
		bool unused;

		if (space_resolve(space, address + i, 1, &range, &unused)) {
			*name = range.name;
			if (range.ops->write)
				range.ops->write(range.device, address + i - range.base, 1, value >> 8 * i & 0xff);
		}
	}
}

static void name_unclaimed_port(struct bus *bus, uint16_t port, unsigned size, bool write, uint64_t value)
{
	if (bus->unclaimed_seen[port / 64] >> port % 64 & 1)
		return;
	bus->unclaimed_seen[port / 64] |= 1ull << port % 64;
	if (write)
		trace(bus->trace, TRACE_UNKNOWN, -1, "port %04x: no device, write of %u bytes (%0*llx) ignored", port,
		      size, (int)size * 2, (unsigned long long)value);
	else
		trace(bus->trace, TRACE_UNKNOWN, -1, "port %04x: no device, read of %u bytes gives all ones", port,
		      size);
}

static void name_unclaimed_mmio(struct bus *bus, uint64_t physical, unsigned size, bool write)
{
	const unsigned max = sizeof bus->unclaimed_mmio / sizeof bus->unclaimed_mmio[0];
	uint64_t page = physical >> 12;

	for (unsigned i = 0; i < bus->unclaimed_mmio_count; i++)
		if (bus->unclaimed_mmio[i] == page)
			return;
	if (bus->unclaimed_mmio_count == max)
		return; /* a guest that scans memory must not flood the log */
	bus->unclaimed_mmio[bus->unclaimed_mmio_count++] = page;
	trace(bus->trace, TRACE_UNKNOWN, -1, "address %llx: neither RAM nor a device, %s of %u bytes",
	      (unsigned long long)physical, write ? "write" : "read", size);
}

uint32_t bus_port_read(struct bus *bus, uint16_t port, unsigned size)
{
	const char *name = NULL;
	uint32_t value = space_read(&bus->ports, port, size, &name);

	if (!name)
		name_unclaimed_port(bus, port, size, false, 0);
	trace(bus->trace, TRACE_IO, -1, "in  %04x.%u -> %0*x  %s", port, size, (int)size * 2, value, name ? name : "-");
	return value;
}

void bus_port_write(struct bus *bus, uint16_t port, unsigned size, uint32_t value)
{
	const char *name = NULL;

	value &= ones(size);
	/* Named before the chip acts, so that the log shows cause before effect. */
	if (trace_on(bus->trace, TRACE_IO)) {
		const struct bus_range *range = space_find(&bus->ports, port);

		trace_write(bus->trace, TRACE_IO, -1, "out %04x.%u <- %0*x  %s", port, size, (int)size * 2, value,
		            range ? range->name : "-");
	}
	space_write(&bus->ports, port, size, value, &name);
	if (!name)
		name_unclaimed_port(bus, port, size, true, value);
}

uint64_t bus_mmio_read(struct bus *bus, uint64_t physical, unsigned size)
{
	const char *name = NULL;
	uint64_t value = space_read(&bus->mmio, physical, size, &name);

	if (!name)
		name_unclaimed_mmio(bus, physical, size, false);
	trace(bus->trace, TRACE_MMIO, -1, "read  %09llx.%u -> %0*llx  %s", (unsigned long long)physical, size,
	      (int)size * 2, (unsigned long long)value, name ? name : "-");
	return value;
}

void bus_mmio_write(struct bus *bus, uint64_t physical, unsigned size, uint64_t value)
{
	const char *name = NULL;

	value &= ones(size);
	if (trace_on(bus->trace, TRACE_MMIO)) {
		const struct bus_range *range = space_find(&bus->mmio, physical);

		trace_write(bus->trace, TRACE_MMIO, -1, "write %09llx.%u <- %0*llx  %s", (unsigned long long)physical,
		            size, (int)size * 2, (unsigned long long)value, range ? range->name : "-");
	}
	space_write(&bus->mmio, physical, size, value, &name);
	if (!name)
		name_unclaimed_mmio(bus, physical, size, true);
}
