/* The local APIC's registers (SDM 3A 10.4-10.8, 10.12), IA32_APIC_BASE, and what the vCPU asks. */
#include <stdlib.h>
#include <string.h>

#include "devices/lapic_private.h"
#include "machine/state.h"
#include "x86/system.h"

#define VERSION          0x14u
#define SUPPRESS_OFFERED (1u << 24)

/* Register numbers: MMIO offset / 16, or x2APIC MSR - 800h. */
enum {
	REG_ID = 0x02,
	REG_VERSION = 0x03,
	REG_TPR = 0x08,
	REG_APR = 0x09,
	REG_PPR = 0x0a,
	REG_EOI = 0x0b,
	REG_RRD = 0x0c,
	REG_LDR = 0x0d,
	REG_DFR = 0x0e,
	REG_SVR = 0x0f,
	REG_ISR = 0x10,
	REG_TMR = 0x18,
	REG_IRR = 0x20,
	REG_ESR = 0x28,
	REG_ICR = 0x30,
	REG_ICR_HIGH = 0x31,
	REG_LVT = 0x32,
	REG_LVT_END = 0x38,
	REG_INITIAL_COUNT = 0x38,
	REG_CURRENT_COUNT = 0x39,
	REG_DIVIDE = 0x3e,
	REG_SELF_IPI = 0x3f,
};

/* Bits that software may write, and those that are read-only: the others are reserved. */
static const struct {
	uint32_t writable, read_only;
} lvt_bits[LVT_COUNT] = {
    [LVT_TIMER] = {LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE, LVT_STATUS},
    [LVT_THERMAL] = {LVT_VECTOR | LVT_MODE | LVT_MASKED, LVT_STATUS},
    [LVT_PERFMON] = {LVT_VECTOR | LVT_MODE | LVT_MASKED, LVT_STATUS},
    [LVT_LINT0] = {LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED, LVT_STATUS | LVT_REMOTE_IRR},
    [LVT_LINT1] = {LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED, LVT_STATUS | LVT_REMOTE_IRR},
    [LVT_ERROR] = {LVT_VECTOR | LVT_MASKED, LVT_STATUS},
};

void lapic_lock(struct lapic *lapic)
{
	pthread_mutex_lock(&lapic->lock);
}

void lapic_unlock(struct lapic *lapic)
{
	uint32_t kick = lapic->kick;
	int eoi = lapic->eoi;
	struct lapic_group *group = lapic->group;

	lapic->kick = 0;
	lapic->eoi = -1;
	pthread_mutex_unlock(&lapic->lock);
	if (kick)
		vcpu_kick(lapic->vcpu, kick);
	if (eoi >= 0 && group->eoi)
		group->eoi(group->eoi_owner, (unsigned)eoi);
}

static uint32_t processor_priority(const struct lapic *lapic)
{
	int in_service = lapic_highest(lapic->isr);
	uint32_t class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;

	return (lapic->tpr & 0xf0) >= class ? lapic->tpr : class;
}

static bool extint_accepted(const struct lapic *lapic)
{
	uint32_t lint0 = lapic->lvt[LVT_LINT0];

	if (!lapic_enabled(lapic) || lapic->extint_message)
		return true;
	return !(lint0 & LVT_MASKED) && (lint0 & LVT_MODE) >> LVT_MODE_SHIFT == DELIVERY_EXTINT;
}

void lapic_recompute(struct lapic *lapic)
{
	uint32_t ppr = processor_priority(lapic), address = lapic->id >> 24 | lapic->ldr >> 24 << 8;
	int requested = lapic_highest(lapic->irr);
	uint32_t pending = 0;

	if (lapic_enabled(lapic) && requested >= 0 && ((uint32_t)requested & 0xf0) > (ppr & 0xf0))
		pending = (uint32_t)requested;
	if (lapic_enabled(lapic))
		address |= ADDRESS_ENABLED;
	if (lapic_x2apic(lapic))
		address |= ADDRESS_X2APIC;
	if (lapic->dfr >> 28 == 0)
		address |= ADDRESS_CLUSTER;
	if (lapic_enabled(lapic) && lapic->svr & SVR_ENABLE)
		address |= ADDRESS_SOFTWARE;
	if (extint_accepted(lapic))
		address |= ADDRESS_EXTINT;
	uint32_t before = atomic_load_explicit(&lapic->address, memory_order_relaxed);
	if (address & ~before & ADDRESS_EXTINT && atomic_load(&lapic->vcpu->extint_line))
		lapic->kick |= ATTENTION_INTERRUPT;
	atomic_store_explicit(&lapic->address, address, memory_order_release);
	atomic_store_explicit(&lapic->ppr, ppr, memory_order_relaxed);
	bool xapic = lapic_enabled(lapic) && !lapic_x2apic(lapic);
	atomic_store_explicit(&lapic->mmio, xapic ? (lapic->base & ~0xfffull) | 1 : 0, memory_order_release);
	atomic_store_explicit(&lapic->base_now, lapic->base, memory_order_release);
	/* While something is pending the vCPU knows; it looks again by itself after each delivery. */
	if (pending && atomic_load_explicit(&lapic->pending, memory_order_relaxed) == 0)
		lapic->kick |= ATTENTION_INTERRUPT;
	atomic_store(&lapic->pending, pending);
}

void lapic_error(struct lapic *lapic, uint32_t esr_bit)
{
	uint32_t entry = lapic->lvt[LVT_ERROR];
	bool raise = !(lapic->esr_new & esr_bit);

	lapic->esr_new |= esr_bit;
	if (!raise || entry & LVT_MASKED)
		return;
	if ((entry & LVT_VECTOR) < 16)
		lapic->esr_new |= ESR_RECEIVE_VECTOR; /* the error interrupt itself is wrong: only noted */
	else
		lapic_accept_fixed(lapic, entry & LVT_VECTOR, false);
}

void lapic_local(struct lapic *lapic, enum lapic_lvt lvt)
{
	uint32_t entry = lapic->lvt[lvt];
	bool pin = lvt == LVT_LINT0 || lvt == LVT_LINT1;
	enum lapic_delivery delivery = DELIVERY_FIXED;

	if (entry & LVT_MASKED || !lapic_enabled(lapic))
		return;
	if (lvt != LVT_TIMER && lvt != LVT_ERROR)
		delivery = (entry & LVT_MODE) >> LVT_MODE_SHIFT;
	switch (delivery) {
	case DELIVERY_FIXED:
		if ((entry & LVT_VECTOR) < 16) {
			lapic_error(lapic, ESR_RECEIVE_VECTOR);
			break;
		}
		/* Only LINT0 can be level-triggered (SDM 3A 10.5.1). */
		if (lvt == LVT_LINT0 && entry & LVT_LEVEL) {
			if (entry & LVT_REMOTE_IRR)
				break;
			lapic->lvt[lvt] |= LVT_REMOTE_IRR;
		}
		lapic_accept_fixed(lapic, entry & LVT_VECTOR, lvt == LVT_LINT0 && entry & LVT_LEVEL);
		break;
	case DELIVERY_NMI:
		lapic->kick |= ATTENTION_NMI;
		break;
	case DELIVERY_INIT:
		if (pin)
			lapic->kick |= ATTENTION_INIT;
		break;
	case DELIVERY_EXTINT:
		if (lvt == LVT_LINT0)
			lapic->kick |= ATTENTION_INTERRUPT;
		break;
	default: /* SMI: there is no SMM; the rest is reserved */
		break;
	}
}

/* LINT0 held high in level mode asks again after each EOI and unmasking. */
static void lint0_level_again(struct lapic *lapic)
{
	uint32_t entry = lapic->lvt[LVT_LINT0];

	if (lapic->lint[0] && entry & LVT_LEVEL && (entry & LVT_MODE) == 0)
		lapic_local(lapic, LVT_LINT0);
}

static void end_of_interrupt(struct lapic *lapic)
{
	int vector = lapic_highest(lapic->isr);

	if (vector < 0)
		return;
	lapic->isr[vector / 32] &= ~(1u << (vector & 31));
	if (lapic->tmr[vector / 32] >> (vector & 31) & 1) {
		uint32_t lint0 = lapic->lvt[LVT_LINT0];
		if (lint0 & LVT_REMOTE_IRR && (lint0 & LVT_VECTOR) == (uint32_t)vector)
			lapic->lvt[LVT_LINT0] &= ~LVT_REMOTE_IRR;
		if (!(lapic->svr & SVR_SUPPRESS_EOI))
			lapic->eoi = vector;
	}
	lapic_recompute(lapic);
	lint0_level_again(lapic);
}

/* SDM 3A 10.6.2.4. */
static uint32_t arbitration_priority(const struct lapic *lapic)
{
	int requested = lapic_highest(lapic->irr), in_service = lapic_highest(lapic->isr);
	uint32_t irrv = requested < 0 ? 0 : (uint32_t)requested & 0xf0,
	         isrv = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;
	uint32_t tpr = lapic->tpr & 0xf0;

	if (tpr >= irrv && tpr > isrv)
		return lapic->tpr;
	uint32_t both = tpr & isrv;
	return both > irrv ? both : irrv;
}

static uint32_t version(const struct lapic *lapic)
{
	return VERSION | (LVT_COUNT - 1) << 16 | (lapic->group->eoi_suppression ? SUPPRESS_OFFERED : 0);
}

/* What reads alike in both modes. */
static uint32_t register_read(struct lapic *lapic, unsigned reg)
{
	switch (reg) {
	case REG_VERSION:
		return version(lapic);
	case REG_TPR:
		return lapic->tpr;
	case REG_PPR:
		return processor_priority(lapic);
	case REG_SVR:
		return lapic->svr;
	case REG_ISR ... REG_ISR + 7:
		return lapic->isr[reg - REG_ISR];
	case REG_TMR ... REG_TMR + 7:
		return lapic->tmr[reg - REG_TMR];
	case REG_IRR ... REG_IRR + 7:
		lapic_timer_catch_up(lapic);
		return lapic->irr[reg - REG_IRR];
	case REG_ESR:
		return lapic->esr;
	case REG_LVT ... REG_LVT_END - 1:
		return lapic->lvt[reg - REG_LVT];
	case REG_INITIAL_COUNT:
		return lapic->initial_count;
	case REG_CURRENT_COUNT:
		return lapic_timer_count(lapic);
	case REG_DIVIDE:
		return lapic->divide;
	}
	return 0;
}

static void write_svr(struct lapic *lapic, uint32_t value)
{
	uint32_t writable =
	    LVT_VECTOR | SVR_ENABLE | SVR_FOCUS | (lapic->group->eoi_suppression ? SVR_SUPPRESS_EOI : 0);

	lapic->svr = value & writable;
	if (!(lapic->svr & SVR_ENABLE)) {
		/* SDM 3A 10.4.7.2: all entries are masked and stay so. */
		for (unsigned i = 0; i < LVT_COUNT; i++)
			lapic->lvt[i] |= LVT_MASKED;
		lapic_timer_lvt_changed(lapic, lapic->lvt[LVT_TIMER]);
	}
	lapic_recompute(lapic);
}

static void write_lvt(struct lapic *lapic, unsigned lvt, uint32_t value)
{
	uint32_t old = lapic->lvt[lvt];

	value = (value & lvt_bits[lvt].writable) | (old & lvt_bits[lvt].read_only);
	if (!(lapic->svr & SVR_ENABLE))
		value |= LVT_MASKED;
	if (!(value & LVT_LEVEL) || (value & LVT_MODE) != 0)
		value &= ~LVT_REMOTE_IRR;
	lapic->lvt[lvt] = value;
	if (lvt == LVT_TIMER)
		lapic_timer_lvt_changed(lapic, old);
	if (lvt == LVT_LINT0) {
		lapic->extint_message = false;
		lint0_level_again(lapic);
	}
	lapic_recompute(lapic);
}

/* What is written alike in both modes; reserved bits are already dealt with. */
static void register_write(struct lapic *lapic, unsigned reg, uint32_t value)
{
	switch (reg) {
	case REG_TPR:
		lapic->tpr = value & 0xff;
		lapic_recompute(lapic);
		break;
	case REG_EOI:
		end_of_interrupt(lapic);
		break;
	case REG_SVR:
		write_svr(lapic, value);
		break;
	case REG_ESR: /* shows the errors since the last write (SDM 3A 10.5.3) */
		lapic->esr = lapic->esr_new;
		lapic->esr_new = 0;
		break;
	case REG_LVT ... REG_LVT_END - 1:
		write_lvt(lapic, reg - REG_LVT, value);
		break;
	case REG_INITIAL_COUNT:
		lapic_timer_set_count(lapic, value);
		break;
	case REG_DIVIDE:
		lapic_timer_set_divide(lapic, value & 0xb);
		break;
	}
}

static bool register_exists(unsigned reg)
{
	switch (reg) {
	case REG_ID:
	case REG_VERSION:
	case REG_TPR ... REG_ESR:
	case REG_ICR ... REG_CURRENT_COUNT:
	case REG_DIVIDE:
		return true;
	}
	return false;
}

uint32_t lapic_mmio_read(struct lapic *lapic, uint32_t offset)
{
	unsigned reg = (offset & 0xfff) >> 4;
	uint32_t value = 0;

	/* Bytes 4-15 of each register's place are undefined; here they are 0. */
	if (offset & 0xc)
		return 0;
	lapic_lock(lapic);
	if (!lapic_enabled(lapic) || lapic_x2apic(lapic)) {
		value = ~0u;
	} else if (!register_exists(reg)) {
		lapic_error(lapic, ESR_REGISTER);
	} else {
		switch (reg) {
		case REG_ID:
			value = lapic->id;
			break;
		case REG_APR:
			value = arbitration_priority(lapic);
			break;
		case REG_LDR:
			value = lapic->ldr;
			break;
		case REG_DFR:
			value = lapic->dfr;
			break;
		case REG_ICR:
			value = (uint32_t)lapic->icr;
			break;
		case REG_ICR_HIGH:
			value = (uint32_t)(lapic->icr >> 32);
			break;
		default:
			value = register_read(lapic, reg);
		}
	}
	lapic_unlock(lapic);
	return value >> 8 * (offset & 3);
}

void lapic_mmio_write(struct lapic *lapic, uint32_t offset, uint32_t value)
{
	unsigned reg = (offset & 0xfff) >> 4;
	bool send = false;
	uint64_t icr = 0;

	if (offset & 0xf)
		return;
	lapic_lock(lapic);
	if (lapic_enabled(lapic) && !lapic_x2apic(lapic)) {
		switch (reg) {
		case REG_ID:
			lapic->id = value & 0xff000000;
			lapic_recompute(lapic);
			break;
		case REG_LDR:
			lapic->ldr = value & 0xff000000;
			lapic_recompute(lapic);
			break;
		case REG_DFR:
			lapic->dfr = value | 0x0fffffff;
			lapic_recompute(lapic);
			break;
		case REG_ICR:
			lapic->icr = (lapic->icr & ~0xffffffffull) | (value & 0xccfff & ~LVT_STATUS);
			icr = lapic->icr;
			send = true;
			break;
		case REG_ICR_HIGH:
			lapic->icr = (lapic->icr & 0xffffffff) | (uint64_t)(value & 0xff000000) << 32;
			break;
		default:
			if (register_exists(reg))
				register_write(lapic, reg, value);
			else
				lapic_error(lapic, ESR_REGISTER);
		}
	}
	lapic_unlock(lapic);
	if (send)
		lapic_send_ipi(lapic, icr, false);
}

static bool x2apic_readable(unsigned reg)
{
	return register_exists(reg) && reg != REG_APR && reg != REG_EOI && reg != REG_RRD && reg != REG_DFR &&
	       reg != REG_ICR_HIGH;
}

bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value)
{
	unsigned reg = index - 0x800;
	bool done = true;

	lapic_lock(lapic);
	if (!lapic_x2apic(lapic) || !x2apic_readable(reg))
		done = false;
	else if (reg == REG_ID)
		*value = lapic->index;
	else if (reg == REG_LDR)
		*value = (uint64_t)(lapic->index >> 4) << 16 | 1u << (lapic->index & 15);
	else if (reg == REG_ICR)
		*value = lapic->icr;
	else
		*value = register_read(lapic, reg);
	lapic_unlock(lapic);
	return done;
}

/* The bits that a WRMSR may set without #GP; read-only registers and those that do not exist take none at all. */
static bool x2apic_writable(const struct lapic *lapic, unsigned reg, uint64_t value)
{
	switch (reg) {
	case REG_TPR:
	case REG_SELF_IPI:
		return value <= 0xff;
	case REG_EOI:
	case REG_ESR:
		return value == 0;
	case REG_SVR:
		return !(value & ~(uint64_t)(LVT_VECTOR | SVR_ENABLE | SVR_FOCUS |
		                             (lapic->group->eoi_suppression ? SVR_SUPPRESS_EOI : 0)));
	case REG_ICR:
		return !(value & 0xfff32000);
	case REG_LVT ... REG_LVT_END - 1:
		return !(value & ~(uint64_t)(lvt_bits[reg - REG_LVT].writable | lvt_bits[reg - REG_LVT].read_only));
	case REG_INITIAL_COUNT:
		return value <= UINT32_MAX;
	case REG_DIVIDE:
		return !(value & ~0xbull);
	}
	return false;
}

bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value)
{
	unsigned reg = index - 0x800;
	bool send = false;

	lapic_lock(lapic);
	bool done = lapic_x2apic(lapic) && x2apic_writable(lapic, reg, value);
	if (done && reg == REG_ICR) {
		lapic->icr = value & ~(uint64_t)LVT_STATUS;
		send = true;
	} else if (done && reg == REG_SELF_IPI) {
		value = 0x44000 | value; /* as an ICR: self, fixed */
		send = true;
	} else if (done) {
		register_write(lapic, reg, (uint32_t)value);
	}
	lapic_unlock(lapic);
	if (send)
		lapic_send_ipi(lapic, value, true);
	return done;
}

/* SDM 3A 10.4.7.1. */
static void reset_registers(struct lapic *lapic)
{
	lapic->ldr = 0;
	lapic->dfr = ~0u;
	lapic->tpr = 0;
	lapic->svr = 0xff;
	lapic->esr = lapic->esr_new = 0;
	lapic->icr = 0;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		lapic->lvt[i] = LVT_MASKED;
	memset(lapic->isr, 0, sizeof(lapic->isr));
	memset(lapic->tmr, 0, sizeof(lapic->tmr));
	memset(lapic->irr, 0, sizeof(lapic->irr));
	lapic->extint_message = false;
	lapic_timer_reset(lapic);
}

static void base_changed(struct lapic *lapic, uint64_t base)
{
	lapic->base = base;
	lapic->vcpu->state.msr.apic_base = base;
}

void lapic_reset(struct lapic *lapic, bool init)
{
	lapic_lock(lapic);
	reset_registers(lapic);
	if (!init) {
		lapic->id = lapic->index << 24;
		base_changed(lapic, BASE_DEFAULT | BASE_ENABLE | (lapic->index == 0 ? BASE_BSP : 0));
	}
	lapic_recompute(lapic);
	lapic_unlock(lapic);
}

void lapic_set_virtual_wire(struct lapic *lapic)
{
	lapic_lock(lapic);
	lapic->svr |= SVR_ENABLE;
	lapic->lvt[LVT_LINT0] = DELIVERY_EXTINT << LVT_MODE_SHIFT | (lapic->index == 0 ? 0 : LVT_MASKED);
	lapic->lvt[LVT_LINT1] = DELIVERY_NMI << LVT_MODE_SHIFT;
	lapic_recompute(lapic);
	lapic_unlock(lapic);
}

uint64_t lapic_base(struct lapic *lapic)
{
	return atomic_load_explicit(&lapic->base_now, memory_order_acquire);
}

static bool base_valid(const struct lapic *lapic, uint64_t value)
{
	unsigned bits = lapic->vcpu->model ? lapic->vcpu->model->physical_bits : 40;

	if (value & 0x2ff || (bits < 64 && value >> bits))
		return false;
	return value & BASE_ENABLE || !(value & BASE_X2APIC);
}

/* SDM 3A 10.12.5: the modes form a ring, disabled -> xAPIC -> x2APIC -> disabled; xAPIC can be left to disabled, too.
 */
bool lapic_set_base(struct lapic *lapic, uint64_t value)
{
	bool allowed;

	lapic_lock(lapic);
	allowed = base_valid(lapic, value) &&
	          !(lapic_x2apic(lapic) && (value & (BASE_ENABLE | BASE_X2APIC)) == BASE_ENABLE) &&
	          !(!lapic_enabled(lapic) && value & BASE_X2APIC);
	if (allowed) {
		bool was_enabled = lapic_enabled(lapic), was_x2apic = lapic_x2apic(lapic);
		base_changed(lapic, value);
		if (was_enabled && !lapic_enabled(lapic)) {
			reset_registers(lapic);
			lapic->id = lapic->index << 24;
		} else if (!was_x2apic && lapic_x2apic(lapic)) {
			lapic->id = lapic->index << 24;
			lapic->icr &= 0xffffffff;
			lapic->dfr = ~0u;
			lapic->ldr = 0;
		}
		lapic_recompute(lapic);
	}
	lapic_unlock(lapic);
	return allowed;
}

bool lapic_mmio_enabled(struct lapic *lapic, uint64_t *base)
{
	uint64_t mmio = atomic_load_explicit(&lapic->mmio, memory_order_acquire);

	*base = mmio & ~1ull;
	return mmio & 1;
}

unsigned lapic_cr8(struct lapic *lapic)
{
	lapic_lock(lapic);
	unsigned cr8 = lapic->tpr >> 4;
	lapic_unlock(lapic);
	return cr8;
}

void lapic_set_cr8(struct lapic *lapic, unsigned value)
{
	lapic_lock(lapic);
	lapic->tpr = (value & 0xf) << 4;
	lapic_recompute(lapic);
	lapic_unlock(lapic);
}

bool lapic_pending(struct lapic *lapic)
{
	return atomic_load_explicit(&lapic->pending, memory_order_acquire) != 0;
}

int lapic_acknowledge(struct lapic *lapic)
{
	int vector = -1;

	lapic_lock(lapic);
	uint32_t pending = atomic_load_explicit(&lapic->pending, memory_order_relaxed);
	if (pending) {
		vector = (int)pending;
		lapic->irr[vector / 32] &= ~(1u << (vector & 31));
		lapic->isr[vector / 32] |= 1u << (vector & 31);
		lapic_recompute(lapic);
		/* The vCPU looks for more by itself. */
		lapic->kick &= ~ATTENTION_INTERRUPT;
	}
	lapic_unlock(lapic);
	return vector;
}

bool lapic_accepts_extint(struct lapic *lapic)
{
	return atomic_load_explicit(&lapic->address, memory_order_acquire) & ADDRESS_EXTINT;
}

void lapic_set_lint(struct lapic *lapic, unsigned lint, bool level)
{
	if (lint > 1)
		return;
	lapic_lock(lapic);
	bool rising = level && !lapic->lint[lint];
	lapic->lint[lint] = level;
	if (rising)
		lapic_local(lapic, lint == 0 ? LVT_LINT0 : LVT_LINT1);
	lapic_unlock(lapic);
}

struct lapic_group *lapic_group_create(unsigned count, struct clock *clock)
{
	struct lapic_group *group = calloc(1, sizeof(*group) + count * sizeof(struct lapic));

	if (!group)
		return NULL;
	group->clock = clock;
	group->count = count;
	for (unsigned i = 0; i < count; i++) {
		struct lapic *lapic = &group->lapic[i];
		lapic->group = group;
		lapic->index = i;
		lapic->eoi = -1;
		pthread_mutex_init(&lapic->lock, NULL);
		lapic_timer_init(lapic);
	}
	return group;
}

void lapic_group_destroy(struct lapic_group *group)
{
	if (!group)
		return;
	for (unsigned i = 0; i < group->count; i++) {
		timer_cancel(&group->lapic[i].timer);
		pthread_mutex_destroy(&group->lapic[i].lock);
	}
	free(group);
}

void lapic_group_set_eoi_handler(struct lapic_group *group, void (*eoi)(void *owner, unsigned vector), void *owner)
{
	group->eoi = eoi;
	group->eoi_owner = owner;
}

void lapic_group_offer_eoi_suppression(struct lapic_group *group, bool offer)
{
	group->eoi_suppression = offer;
}

struct lapic *lapic_group_attach(struct lapic_group *group, unsigned index, struct vcpu *vcpu)
{
	struct lapic *lapic = &group->lapic[index];

	lapic->vcpu = vcpu;
	lapic_reset(lapic, false);
	return lapic;
}

/* Values that no write could have made. */
static const char *state_wrong(const struct lapic *lapic)
{
	if (!base_valid(lapic, lapic->base))
		return "base out of range";
	if ((lapic->irr[0] | lapic->isr[0]) & 0xffff)
		return "vector below 16 pending";
	if (lapic->tpr > 0xff || lapic->svr & ~(LVT_VECTOR | SVR_ENABLE | SVR_FOCUS | SVR_SUPPRESS_EOI))
		return "TPR or SVR out of range";
	for (unsigned i = 0; i < LVT_COUNT; i++)
		if (lapic->lvt[i] & ~(lvt_bits[i].writable | lvt_bits[i].read_only))
			return "LVT out of range";
	return NULL;
}

void lapic_state(struct lapic *lapic, struct state *state)
{
	lapic_lock(lapic);
	state_begin(state, "lapic", lapic->index, 1);
	state_u64(state, "base", &lapic->base);
	state_u32(state, "id", &lapic->id);
	state_u32(state, "ldr", &lapic->ldr);
	state_u32(state, "dfr", &lapic->dfr);
	state_u32(state, "tpr", &lapic->tpr);
	state_u32(state, "svr", &lapic->svr);
	state_u32(state, "esr", &lapic->esr);
	state_u32(state, "esr-new", &lapic->esr_new);
	state_u64(state, "icr", &lapic->icr);
	state_u32_array(state, "lvt", lapic->lvt, LVT_COUNT);
	state_u32_array(state, "isr", lapic->isr, 8);
	state_u32_array(state, "tmr", lapic->tmr, 8);
	state_u32_array(state, "irr", lapic->irr, 8);
	state_bool(state, "lint0", &lapic->lint[0]);
	state_bool(state, "lint1", &lapic->lint[1]);
	state_bool(state, "extint-message", &lapic->extint_message);
	lapic_timer_state(lapic, state);
	if (state_loading(state)) {
		const char *wrong = state_wrong(lapic);
		if (wrong) {
			state_fail(state, wrong);
			/* Whatever becomes of the machine, this APIC stays within its rules. */
			reset_registers(lapic);
			lapic->base = BASE_DEFAULT | BASE_ENABLE | (lapic->index == 0 ? BASE_BSP : 0);
		}
		lapic->vcpu->state.msr.apic_base = lapic->base;
		atomic_store(&lapic->pending, 0); /* so that what was loaded is told to the vCPU */
		lapic_recompute(lapic);
	}
	state_end(state);
	lapic_unlock(lapic);
}
