/*
 * I/O APIC (Intel 290566, 82093AA; EOI register as in ICH data sheets).
 *
 * ioapic_update() is the one place that decides whether a pin sends. Edges are sent when they happen and are lost while
 * the pin is masked (290566 3.2.4); a level is sent when it is asserted, unmasked and not in service (remote IRR), and
 * is looked at again at every EOI.
 */
#include "devices/ioapic.h"

#include <string.h>

#include "debug/trace.h"
#include "devices/lapic.h"
#include "machine/state.h"

#define IOREGSEL 0x00
#define IOWIN    0x10
#define IOEOI    0x40

#define REG_ID          0x00
#define REG_VERSION     0x01
#define REG_ARBITRATION 0x02
#define REG_REDIRECTION 0x10

#define VERSION 0x20u

#define RTE_VECTOR      0xffull
#define RTE_LOGICAL     (1ull << 11)
#define RTE_REMOTE_IRR  (1ull << 14)
#define RTE_LEVEL       (1ull << 15)
#define RTE_MASKED      (1ull << 16)
#define RTE_DESTINATION (0xffull << 56)
#define RTE_WRITABLE    (RTE_DESTINATION | 0x1afffull)

static enum lapic_delivery delivery_mode(uint64_t rte)
{
	return (enum lapic_delivery)(rte >> 8 & 7);
}

/* SMI, NMI, INIT and ExtINT are edges whatever the trigger bit says (290566 3.2.4). */
static bool level_triggered(uint64_t rte)
{
	return rte & RTE_LEVEL && (delivery_mode(rte) == DELIVERY_FIXED || delivery_mode(rte) == DELIVERY_LOWEST);
}

static void send(struct ioapic *ioapic, unsigned pin)
{
	uint64_t *rte = &ioapic->redirection[pin];
	bool level = level_triggered(*rte);
	unsigned accepted;

	trace(ioapic->bus->trace, TRACE_IRQ, -1, "ioapic: pin %u sends vector %02x (mode %u, %s) to %02x", pin,
	      (unsigned)(*rte & RTE_VECTOR), delivery_mode(*rte), level ? "level" : "edge", (unsigned)(*rte >> 56));
	/*
	 * In service before it is sent: a local APIC may answer with an EOI at once. What nobody takes stays asked for
	 * and is tried again at the next change.
	 */
	if (level)
		*rte |= RTE_REMOTE_IRR;
	accepted = ioapic->deliver(ioapic->deliver_owner, *rte >> 56, *rte & RTE_LOGICAL, delivery_mode(*rte),
	                           *rte & RTE_VECTOR, level);
	if (level && !accepted)
		*rte &= ~RTE_REMOTE_IRR;
}

static void ioapic_update(struct ioapic *ioapic, unsigned pin, bool edge)
{
	uint64_t rte = ioapic->redirection[pin];

	if (rte & RTE_MASKED || !(ioapic->lines >> pin & 1))
		return;
	if (level_triggered(rte) ? !(rte & RTE_REMOTE_IRR) : edge)
		send(ioapic, pin);
}

void ioapic_set_irq(void *owner, unsigned pin, bool level)
{
	struct ioapic *ioapic = owner;
	uint32_t before = ioapic->lines;

	if (pin >= IOAPIC_PINS)
		return;
	ioapic->lines = level ? before | 1u << pin : before & ~(1u << pin);
	ioapic_update(ioapic, pin, level && !(before >> pin & 1));
}

void ioapic_eoi(struct ioapic *ioapic, unsigned vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t *rte = &ioapic->redirection[pin];

		if ((*rte & RTE_VECTOR) != vector || !(*rte & RTE_REMOTE_IRR))
			continue;
		*rte &= ~RTE_REMOTE_IRR;
		ioapic_update(ioapic, pin, false);
	}
}

static uint32_t register_read(const struct ioapic *ioapic)
{
	unsigned index = ioapic->select;

	switch (index) {
	case REG_ID:
	case REG_ARBITRATION:
		return (uint32_t)ioapic->id << 24;
	case REG_VERSION:
		return (IOAPIC_PINS - 1) << 16 | VERSION;
	}
	if (index < REG_REDIRECTION || index >= REG_REDIRECTION + 2 * IOAPIC_PINS)
		return 0;
	index -= REG_REDIRECTION;
	return ioapic->redirection[index / 2] >> 32 * (index & 1);
}

static void redirection_write(struct ioapic *ioapic, unsigned index, uint32_t value)
{
	uint64_t *rte = &ioapic->redirection[index / 2], shift = 32 * (index & 1);
	uint64_t mask = RTE_WRITABLE & (0xffffffffull << shift);

	*rte = (*rte & ~mask) | ((uint64_t)value << shift & mask);
	/* Edge mode has no remote IRR; guests toggle the mode to clear it. */
	if (!level_triggered(*rte))
		*rte &= ~RTE_REMOTE_IRR;
	ioapic_update(ioapic, index / 2, false);
}

static void register_write(struct ioapic *ioapic, uint32_t value)
{
	unsigned index = ioapic->select;

	if (index == REG_ID)
		ioapic->id = value >> 24 & 0x0f;
	else if (index >= REG_REDIRECTION && index < REG_REDIRECTION + 2 * IOAPIC_PINS)
		redirection_write(ioapic, index - REG_REDIRECTION, value);
}

static uint64_t ioapic_read(void *device, uint64_t offset, unsigned size)
{
	struct ioapic *ioapic = device;
	uint32_t value = 0;

	switch (offset & ~3ull) {
	case IOREGSEL:
		value = ioapic->select;
		break;
	case IOWIN:
		value = register_read(ioapic);
		break;
	}
	return value >> 8 * (offset & 3);
}

/* Registers are 32 bits wide; narrower or unaligned writes reach only the one-byte ones. */
static void ioapic_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct ioapic *ioapic = device;

	switch (offset) {
	case IOREGSEL:
		ioapic->select = value;
		break;
	case IOWIN:
		if (size >= 4)
			register_write(ioapic, value);
		break;
	case IOEOI:
		ioapic_eoi(ioapic, value & 0xff);
		break;
	}
}

static unsigned deliver_to_lapics(void *owner, uint32_t destination, bool logical, unsigned delivery, unsigned vector,
                                  bool level)
{
	return lapic_message(owner, destination, logical, (enum lapic_delivery)delivery, vector, level);
}

static const struct bus_ops ioapic_ops = {.read = ioapic_read, .write = ioapic_write, .max_size = 8};

int ioapic_init(struct ioapic *ioapic, struct bus *bus, uint64_t base, struct lapic_group *lapics)
{
	memset(ioapic, 0, sizeof *ioapic);
	ioapic->deliver = deliver_to_lapics;
	ioapic->deliver_owner = lapics;
	ioapic->bus = bus;
	ioapic_reset(ioapic);
	return bus_add_mmio(bus, base, 0x1000, "ioapic", &ioapic_ops, ioapic);
}

/* The lines belong to the devices and stay. */
void ioapic_reset(struct ioapic *ioapic)
{
	ioapic->select = ioapic->id = 0;
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		ioapic->redirection[pin] = RTE_MASKED;
}

/* Messages that were sent are in the local APICs' state: nothing is sent again on loading. */
void ioapic_state(struct ioapic *ioapic, struct state *state)
{
	state_begin(state, "ioapic", 0, 1);
	state_u8(state, "select", &ioapic->select);
	state_u8(state, "id", &ioapic->id);
	state_u32(state, "lines", &ioapic->lines);
	state_u64_array(state, "redirection", ioapic->redirection, IOAPIC_PINS);
	ioapic->id &= 0x0f;
	ioapic->lines &= (1u << IOAPIC_PINS) - 1;
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		ioapic->redirection[pin] &= RTE_WRITABLE | RTE_REMOTE_IRR;
	state_end(state);
}
