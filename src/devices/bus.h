/*
 * How a vCPU reaches the chips: ports and memory-mapped registers, and how chips pull interrupt lines.
 *
 * All callbacks run with the machine's device lock held, on a vCPU thread or the event loop's thread; chips need no
 * locks of their own (the local APICs, which every vCPU touches, are the exception: lapic.h). A callback may do
 * anything but block.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace;

/*
 * One claimed range. `read` returns the value in its low `size` bytes; `offset` is from the range's base. Accesses that
 * straddle the end of the range, or that are wider than `max_size`, are split into bytes by the bus (as ISA does), low
 * address first.
 */
struct bus_ops {
	uint64_t (*read)(void *device, uint64_t offset, unsigned size);
	void (*write)(void *device, uint64_t offset, unsigned size, uint64_t value);
	unsigned max_size; /* 1, 2, 4 or 8; 0 means 1 */
};

struct bus_range {
	uint64_t base, length;
	const char *name; /* of the chip, for traces; not copied */
	const struct bus_ops *ops;
	void *device;
};

#define BUS_RANGES_MAX 256

struct bus_space {
	struct bus_range range[BUS_RANGES_MAX]; /* sorted by base, not overlapping */
	unsigned count;
	unsigned last_hit;
};

struct bus {
	struct bus_space ports, mmio;
	struct trace *trace;
	uint64_t unclaimed_seen[65536 / 64]; /* ports already reported as unclaimed */
	uint64_t unclaimed_mmio[64];         /* pages already reported */
	unsigned unclaimed_mmio_count;
};

void bus_init(struct bus *bus, struct trace *trace);
/* 0; -EEXIST when the range overlaps a claimed one; -ENOSPC. */
int bus_add_ports(struct bus *bus, uint16_t base, unsigned length, const char *name, const struct bus_ops *ops,
                  void *device);
int bus_add_mmio(struct bus *bus, uint64_t base, uint64_t length, const char *name, const struct bus_ops *ops,
                 void *device);
/* Takes back the range that starts at base (PCI BARs move). */
void bus_remove_ports(struct bus *bus, uint16_t base);
void bus_remove_mmio(struct bus *bus, uint64_t base);

/* Unclaimed: reads give all ones, writes vanish; each address is named once in the trace log. */
uint32_t bus_port_read(struct bus *bus, uint16_t port, unsigned size);
void bus_port_write(struct bus *bus, uint16_t port, unsigned size, uint32_t value);
uint64_t bus_mmio_read(struct bus *bus, uint64_t physical, unsigned size);
void bus_mmio_write(struct bus *bus, uint64_t physical, unsigned size, uint64_t value);

/* An interrupt line, or any other wire (A20, reset, speaker gate): whoever drives it knows only this. */
struct irq_line {
	void (*set)(void *owner, unsigned pin, bool level);
	void *owner;
	unsigned pin;
};

static inline void irq_line_set(const struct irq_line *line, bool level)
{
	if (line->set)
		line->set(line->owner, line->pin, level);
}
