#include "x86/pvclock.h"

#include "machine/clock.h"
#include "machine/vcpu.h"
#include "memory/memory.h"

struct pvclock_page {
	uint32_t version; /* odd while it is written */
	uint32_t pad0;
	uint64_t tsc_timestamp;
	uint64_t system_time; /* ns at tsc_timestamp */
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags;
	uint8_t pad[2];
};
_Static_assert(sizeof(struct pvclock_page) == 32, "the layout is the guest's");

struct wall_clock_page {
	uint32_t version, seconds, nanoseconds;
};

#define FLAG_TSC_STABLE 1u
#define ENABLED         1ull

/* ns = ((ticks shifted left by shift) * mul) >> 32; mul as large as it gets. */
static void scale(uint64_t tsc_khz, uint32_t *mul, int8_t *shift)
{
	uint64_t hz = tsc_khz * 1000;
	const uint64_t ns_per_second = 1000000000;
	int left = 0;
	while (hz >= 2 * ns_per_second) {
		hz >>= 1;
		left--;
	}
	while (hz && hz <= ns_per_second) { /* until 10^9 / hz is below 1 */
		hz <<= 1;
		left++;
	}
	if (!hz)
		hz = ns_per_second + 1;
	*mul = (uint32_t)((ns_per_second << 32) / hz);
	*shift = (int8_t)left;
}

static uint64_t scaled(uint64_t ticks, uint32_t mul, int8_t shift)
{
	ticks = shift < 0 ? ticks >> -shift : ticks << shift;
	return (uint64_t)((unsigned __int128)ticks * mul >> 32);
}

void pvclock_update(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	if (!(s->msr.kvm_system_time & ENABLED) || !vcpu->clock)
		return;
	uint64_t address = s->msr.kvm_system_time & ~ENABLED;
	struct pvclock_page page = {
	    /* Guest TSC at which the machine clock's TSC is 0. */
	    .tsc_timestamp = s->tsc_offset,
	    .system_time = 0,
	    .flags = FLAG_TSC_STABLE,
	};
	scale(clock_tsc_khz(vcpu->clock), &page.tsc_to_system_mul, &page.tsc_shift);
	if (memory_read(vcpu->memory, address, &page.version, sizeof(page.version)))
		return;
	uint32_t even = (page.version | 1) + 1;
	uint32_t odd = even - 1;
	memory_write(vcpu->memory, address, &odd, sizeof(odd));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	page.version = odd;
	memory_write(vcpu->memory, address, &page, sizeof(page));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memory_write(vcpu->memory, address, &even, sizeof(even));
}

bool pvclock_set_system_time(struct vcpu *vcpu, uint64_t value)
{
	uint64_t address = value & ~ENABLED;
	if ((value & ENABLED) && ((address & 3) || !memory_pointer(vcpu->memory, address, sizeof(struct pvclock_page))))
		return false;
	vcpu->state.msr.kvm_system_time = value;
	pvclock_update(vcpu);
	return true;
}

bool pvclock_set_wall_clock(struct vcpu *vcpu, uint64_t value)
{
	if ((value & 3) || !memory_pointer(vcpu->memory, value, sizeof(struct wall_clock_page)))
		return false;
	vcpu->state.msr.kvm_wall_clock = value;
	if (!vcpu->clock)
		return true;
	/* UTC when the guest's system time was 0. */
	uint32_t mul, nanoseconds;
	int8_t shift;
	uint64_t seconds;
	scale(clock_tsc_khz(vcpu->clock), &mul, &shift);
	clock_utc(vcpu->clock, &seconds, &nanoseconds);
	uint64_t utc = seconds * 1000000000 + nanoseconds;
	uint64_t boot = utc - scaled(clock_tsc(vcpu->clock), mul, shift);
	struct wall_clock_page page = {
	    .seconds = (uint32_t)(boot / 1000000000),
	    .nanoseconds = (uint32_t)(boot % 1000000000),
	};
	if (memory_read(vcpu->memory, value, &page.version, sizeof(page.version)))
		return true;
	page.version = (page.version | 1) + 1;
	memory_write(vcpu->memory, value, &page, sizeof(page));
	return true;
}
