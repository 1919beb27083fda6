#include "x86/transfer.h"

#include <string.h>

static bool table_address(struct vcpu *vcpu, uint16_t selector, unsigned length, uint64_t *address)
{
	const struct cpu_state *s = &vcpu->state;
	uint64_t base;
	uint32_t limit;
	if (selector & 4) {
		const struct segment *ldtr = &s->segment[SEG_LDTR];
		if (ldtr->access & SEG_UNUSABLE)
			return false;
		base = ldtr->base;
		limit = ldtr->limit;
	} else {
		base = s->gdtr.base;
		limit = s->gdtr.limit;
	}
	if ((uint64_t)(selector & 0xfff8) + length - 1 > limit)
		return false;
	*address = base + (selector & 0xfff8);
	if (!cpu_long_mode(s))
		*address = (uint32_t)*address;
	return true;
}

bool descriptor_try(struct vcpu *vcpu, struct descriptor *d, uint16_t selector)
{
	if (selector_is_null(selector) || !table_address(vcpu, selector, 8, &d->address))
		return false;
	d->raw = mmu_read_system(vcpu, d->address, 8);
	d->upper = 0;
	d->selector = selector;
	return true;
}

void descriptor_read(struct vcpu *vcpu, struct descriptor *d, uint16_t selector, unsigned vector, uint32_t ext)
{
	if (!table_address(vcpu, selector, 8, &d->address))
		x86_raise_error(vcpu, vector, selector_error(selector, ext));
	d->raw = mmu_read_system(vcpu, d->address, 8);
	d->upper = 0;
	d->selector = selector;
}

void descriptor_read_upper(struct vcpu *vcpu, struct descriptor *d, unsigned vector, uint32_t ext)
{
	uint64_t address;
	if (!table_address(vcpu, d->selector, 16, &address))
		x86_raise_error(vcpu, vector, selector_error(d->selector, ext));
	uint64_t high = mmu_read_system(vcpu, d->address + 8, 8);
	/* Bits 12:8 of the last dword are the type of what would be a second descriptor; they must be 0 (SDM
	 * 3A 5.8.3.1). */
	if (high >> 40 & 0x1f)
		x86_raise_error(vcpu, vector, selector_error(d->selector, ext));
	d->upper = high << 32;
}

/* The access byte is changed alone: one byte never crosses a page. */
static bool access_byte_change(struct vcpu *vcpu, struct descriptor *d, uint8_t clear, uint8_t set)
{
	uint64_t address = d->address + 5;
	if (!cpu_long_mode(&vcpu->state))
		address = (uint32_t)address;
	enum mmu_view view = vcpu->mmu.view;
	vcpu->mmu.view = MMU_SUPERVISOR;
	uint8_t *byte = mmu_host_pointer(vcpu, address, 1, MMU_WRITE);
	bool changed;
	if (byte) {
		uint8_t old = __atomic_load_n(byte, __ATOMIC_RELAXED);
		uint8_t new;
		do
			new = (uint8_t)((old & ~clear) | set);
		while (!__atomic_compare_exchange_n(byte, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
		changed = new != old;
		mmu_written(vcpu, address, 1);
	} else {
		uint8_t old = (uint8_t)mmu_read_system(vcpu, address, 1);
		uint8_t new = (uint8_t)((old & ~clear) | set);
		changed = new != old;
		mmu_write_system(vcpu, address, 1, new);
	}
	vcpu->mmu.view = view;
	d->raw = (d->raw & ~((uint64_t)clear << 40)) | (uint64_t)set << 40;
	return changed;
}

void descriptor_set_accessed(struct vcpu *vcpu, struct descriptor *d)
{
	if (!(descriptor_access(d) & SEG_ACCESSED))
		access_byte_change(vcpu, d, 0, SEG_ACCESSED);
}

bool descriptor_set_busy(struct vcpu *vcpu, struct descriptor *d, bool busy)
{
	return access_byte_change(vcpu, d, busy ? 0 : TYPE_BUSY_BIT, busy ? TYPE_BUSY_BIT : 0);
}

struct segment descriptor_segment(const struct descriptor *d, unsigned rpl)
{
	struct segment segment = {
	    .base = (d->raw >> 16 & 0xffffff) | (d->raw >> 32 & 0xff000000) | d->upper,
	    .limit = (uint32_t)((d->raw & 0xffff) | (d->raw >> 32 & 0xf0000)),
	    .access = descriptor_access(d),
	    .selector = (uint16_t)((d->selector & 0xfffc) | rpl),
	};
	if (segment.access & SEG_G)
		segment.limit = segment.limit << 12 | 0xfff;
	return segment;
}

struct segment segment_null(uint16_t selector, unsigned dpl)
{
	return (struct segment){.access = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT, .selector = selector};
}

struct segment segment_vm86(uint16_t selector)
{
	return (struct segment){
	    .base = (uint32_t)selector << 4,
	    .limit = 0xffff,
	    .access = SEG_P | SEG_DPL_MASK | SEG_S | SEG_WRITABLE | SEG_ACCESSED,
	    .selector = selector,
	};
}

void transfer_set_view(struct vcpu *vcpu, unsigned cpl)
{
	const struct cpu_state *s = &vcpu->state;
	if (cpl == 3)
		vcpu->mmu.view = MMU_USER;
	else
		vcpu->mmu.view = (s->cr4 & CR4_SMAP) && !(s->rflags & FLAG_AC) ? MMU_SUPERVISOR : MMU_SUPERVISOR_AC;
}

struct stack stack_current(struct vcpu *vcpu, uint32_t error)
{
	struct cpu_state *s = &vcpu->state;
	struct stack stack = {vcpu, &s->segment[SEG_SS], s->gpr[RSP], 0xffff, error, cpu_cpl(s)};
	if (cpu_64bit_code(s))
		stack.mask = ~0ull;
	else if (s->segment[SEG_SS].access & SEG_DB)
		stack.mask = 0xffffffff;
	return stack;
}

struct stack stack_new(struct vcpu *vcpu, const struct segment *ss, uint64_t pointer, unsigned cpl, bool wide,
                       uint32_t error)
{
	uint64_t mask = wide ? ~0ull : ss->access & SEG_DB ? 0xffffffff : 0xffff;
	return (struct stack){vcpu, ss, pointer, mask, error, cpl};
}

static uint64_t stack_linear(const struct stack *stack, uint64_t offset, uint64_t length)
{
	struct vcpu *vcpu = stack->vcpu;
	const struct segment *ss = stack->ss;
	if (stack->mask == ~0ull) {
		if (!cpu_canonical(offset) || !cpu_canonical(offset + length - 1))
			x86_raise_error(vcpu, VECTOR_SS, stack->error);
		return offset;
	}
	uint64_t last = offset + length - 1;
	bool inside;
	if (ss->access & SEG_UNUSABLE)
		inside = false;
	else if ((ss->access & (SEG_CODE | SEG_EXPANDDOWN)) == SEG_EXPANDDOWN)
		inside = offset > ss->limit && last <= (ss->access & SEG_DB ? 0xffffffff : 0xffff);
	else
		inside = last <= ss->limit;
	if (!inside)
		x86_raise_error(vcpu, VECTOR_SS, stack->error);
	return (uint32_t)(ss->base + offset);
}

void stack_push_frame(struct stack *stack, const uint64_t *values, unsigned count, unsigned size)
{
	struct vcpu *vcpu = stack->vcpu;
	uint64_t length = (uint64_t)count * size;
	uint64_t top = stack->pointer & stack->mask;
	uint64_t bottom = (top - length) & stack->mask;
	transfer_set_view(vcpu, stack->cpl);
	if (bottom <= (stack->mask - length) + 1 || stack->mask == ~0ull) {
		uint8_t frame[STACK_FRAME_MAX * 8];
		for (unsigned i = 0; i < count; i++)
			memcpy(frame + length - (i + 1) * size, &values[i], size);
		mmu_write_bytes(vcpu, stack_linear(stack, bottom, length), frame, length);
	} else { /* SP wraps within the frame: slot by slot, probed first */
		uint64_t linear[STACK_FRAME_MAX];
		for (unsigned i = 0; i < count; i++) {
			linear[i] = stack_linear(stack, (top - (i + 1) * size) & stack->mask, size);
			mmu_probe_write(vcpu, linear[i], size);
		}
		for (unsigned i = 0; i < count; i++)
			mmu_write(vcpu, linear[i], size, values[i]);
	}
	mmu_update_view(vcpu);
	stack->pointer = (stack->pointer & ~stack->mask) | bottom;
}

uint64_t stack_peek(struct stack *stack, unsigned index, unsigned size)
{
	uint64_t offset = (stack->pointer + (uint64_t)index * size) & stack->mask;
	return mmu_read(stack->vcpu, stack_linear(stack, offset, size), size);
}

void stack_commit(const struct stack *stack)
{
	uint64_t *rsp = &stack->vcpu->state.gpr[RSP];
	if (stack->mask == 0xffff)
		*rsp = (*rsp & ~0xffffull) | (stack->pointer & 0xffff);
	else
		*rsp = stack->pointer & stack->mask;
}

void tss_read_stack(struct vcpu *vcpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint64_t *sp)
{
	const struct segment *tr = &vcpu->state.segment[SEG_TR];
	bool wide = cpu_long_mode(&vcpu->state);
	bool tss32 = tr->access & 8;
	uint32_t offset = wide || tss32 ? 4 + 8 * cpl : 2 + 4 * cpl;
	uint32_t last = wide ? offset + 7 : tss32 ? offset + 5 : offset + 3;
	if ((tr->access & SEG_UNUSABLE) || last > tr->limit)
		x86_raise_error(vcpu, VECTOR_TS, selector_error(tr->selector, ext));
	if (wide) {
		*sp = mmu_read_system(vcpu, tr->base + offset, 8);
		*ss = 0;
	} else if (tss32) {
		*sp = mmu_read_system(vcpu, (uint32_t)(tr->base + offset), 4);
		*ss = (uint16_t)mmu_read_system(vcpu, (uint32_t)(tr->base + offset + 4), 2);
	} else {
		*sp = mmu_read_system(vcpu, (uint32_t)(tr->base + offset), 2);
		*ss = (uint16_t)mmu_read_system(vcpu, (uint32_t)(tr->base + offset + 2), 2);
	}
}

uint64_t tss_read_ist(struct vcpu *vcpu, unsigned ist, uint32_t ext)
{
	const struct segment *tr = &vcpu->state.segment[SEG_TR];
	uint32_t offset = 36 + 8 * (ist - 1);
	if ((tr->access & SEG_UNUSABLE) || offset + 7 > tr->limit)
		x86_raise_error(vcpu, VECTOR_TS, selector_error(tr->selector, ext));
	return mmu_read_system(vcpu, tr->base + offset, 8);
}

void stack_segment_read(struct vcpu *vcpu, struct descriptor *d, uint16_t selector, unsigned cpl, uint32_t ext)
{
	if (selector_is_null(selector))
		x86_raise_error(vcpu, VECTOR_TS, ext);
	descriptor_read(vcpu, d, selector, VECTOR_TS, ext);
	if ((selector & 3u) != cpl || descriptor_dpl(d) != cpl || !descriptor_is_writable_data(d))
		x86_raise_error(vcpu, VECTOR_TS, selector_error(selector, ext));
	if (!descriptor_is_present(d))
		x86_raise_error(vcpu, VECTOR_SS, selector_error(selector, ext));
}

void transfer_commit_code(struct vcpu *vcpu, const struct segment *cs, uint64_t rip)
{
	vcpu->state.segment[SEG_CS] = *cs;
	vcpu->state.rip = rip;
	mmu_update_view(vcpu);
}

void transfer_null_inner_segments(struct vcpu *vcpu, unsigned cpl)
{
	static const enum segment_register data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	for (unsigned i = 0; i < 4; i++) {
		struct segment *segment = &vcpu->state.segment[data[i]];
		if (segment->access & SEG_UNUSABLE)
			continue;
		bool conforming = (segment->access & (SEG_CODE | SEG_CONFORMING)) == (SEG_CODE | SEG_CONFORMING);
		if (!conforming && (segment->access & SEG_DPL_MASK) >> SEG_DPL_SHIFT < cpl)
			*segment = segment_null(0, 0);
	}
}
