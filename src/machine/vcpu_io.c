/*
 * The way of one port or memory-mapped access from a vCPU to a chip: local APIC first, then the bus under the device
 * lock.
 */
#include "machine/vcpu.h"

#include <stdlib.h>

#include "devices/bus.h"
#include "devices/lapic.h"
#include "host/table_memory.h"
#include "machine/machine.h"
#include "memory/memory.h"

#define LAPIC_PAGE_MASK 0xfffull

static void devices_lock(struct vcpu *vcpu)
{
	if (vcpu->machine)
		machine_lock(vcpu->machine);
}

static void devices_unlock(struct vcpu *vcpu)
{
	if (vcpu->machine)
		machine_unlock(vcpu->machine);
}

/*
 * I/O breakpoints (SDM 3B 17.2.4: CR4.DE = 1, DR7.R/Wn = 10b): a trap after the instruction. The engine looks at mmu.stop before the next one.
 */
static void check_breakpoints(struct vcpu *vcpu, uint16_t port, unsigned size)
{
	const struct cpu_state *s = &vcpu->state;

	if (!(s->cr4 & CR4_DE) || !(s->dr[7] & 0xff))
		return;
	for (unsigned n = 0; n < 4; n++) {
		uint64_t length = (s->dr[7] >> (18 + 4 * n) & 3) + 1; /* 00b 1, 01b 2, 11b 4 */
		uint64_t first = s->dr[n] & ~(length - 1);

		if ((s->dr[7] >> (2 * n) & 3) && (s->dr[7] >> (16 + 4 * n) & 3) == 2 && port < first + length &&
		    first < (uint64_t)port + size) {
			vcpu->state.pending_debug |= 1ull << n;
			vcpu->mmu.stop = true;
		}
	}
}

uint32_t vcpu_port_read(struct vcpu *vcpu, uint16_t port, unsigned size)
{
	vcpu->counters.io++;
	devices_lock(vcpu);
	uint32_t value = bus_port_read(vcpu->bus, port, size);
	devices_unlock(vcpu);
	check_breakpoints(vcpu, port, size);
	return value;
}

void vcpu_port_write(struct vcpu *vcpu, uint16_t port, unsigned size, uint32_t value)
{
	vcpu->counters.io++;
	devices_lock(vcpu);
	bus_port_write(vcpu->bus, port, size, value);
	devices_unlock(vcpu);
	check_breakpoints(vcpu, port, size);
}

/* Does the access fall into this vCPU's own xAPIC page? */
static bool in_lapic_page(struct vcpu *vcpu, uint64_t physical)
{
	uint64_t base;

	return vcpu->lapic && lapic_mmio_enabled(vcpu->lapic, &base) && (physical & ~LAPIC_PAGE_MASK) == base;
}

/*
 * Registers are 32 bits wide at 16-byte steps; other accesses are undefined (SDM 3A 10.4.1). As real parts mostly do, a
 * narrower read gives its part of the register, and a narrower write is ignored.
 */
static uint64_t lapic_page_read(struct vcpu *vcpu, uint32_t offset, unsigned size)
{
	uint32_t value = lapic_mmio_read(vcpu->lapic, offset & ~3u);

	trace(vcpu->trace, TRACE_MMIO, (int)vcpu->index, "lapic read %#x -> %#x", offset, value);
	value >>= (offset & 3) * 8;
	return size >= 4 ? value : value & ((1u << size * 8) - 1);
}

uint64_t vcpu_mmio_read(struct vcpu *vcpu, uint64_t physical, unsigned size)
{
	vcpu->counters.mmio++;
	if (in_lapic_page(vcpu, physical))
		return lapic_page_read(vcpu, physical & LAPIC_PAGE_MASK, size);
	devices_lock(vcpu);
	uint64_t value = bus_mmio_read(vcpu->bus, physical, size);
	devices_unlock(vcpu);
	return value;
}

void vcpu_mmio_write(struct vcpu *vcpu, uint64_t physical, unsigned size, uint64_t value)
{
	vcpu->counters.mmio++;
	if (in_lapic_page(vcpu, physical)) {
		trace(vcpu->trace, TRACE_MMIO, (int)vcpu->index, "lapic write %#x <- %#x",
		      (unsigned)(physical & LAPIC_PAGE_MASK), (unsigned)value);
		if (size >= 4 && !(physical & 3))
			lapic_mmio_write(vcpu->lapic, physical & LAPIC_PAGE_MASK, (uint32_t)value);
		return;
	}
	devices_lock(vcpu);
	bus_mmio_write(vcpu->bus, physical, size, value);
	devices_unlock(vcpu);
}

struct vcpu *vcpu_allocate(void)
{
	return table_map(sizeof(struct vcpu), true);
}

void vcpu_free(struct vcpu *vcpu)
{
	if (!vcpu)
		return;
	free(vcpu->thread);
	table_unmap(vcpu, sizeof(*vcpu));
}
