/*
 * Loading segment registers, the instructions that look at descriptors, and the address check of memory operands
 * (SDM 3A chapters 3 and 5).
 */
#include "x86/segments.h"

#include "x86/system.h"
#include "x86/transfer.h"

void segment_load_real(struct vcpu *vcpu, enum segment_register segment, uint16_t selector)
{
	struct segment *s = &vcpu->state.segment[segment];
	if (cpu_virtual_8086(&vcpu->state)) {
		*s = segment_vm86(selector);
		return;
	}
	/* Real mode touches selector and base alone: "unreal" limits stay (SDM 3A 9.9.2). */
	if (s->access & SEG_UNUSABLE) { /* null when protected mode was left: what a reset gives */
		s->access = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED;
		s->limit = 0xffff;
	}
	s->selector = selector;
	s->base = (uint32_t)selector << 4;
}

static void load_ss(struct vcpu *vcpu, uint16_t selector)
{
	struct cpu_state *s = &vcpu->state;
	unsigned cpl = cpu_cpl(s), rpl = selector & 3u;
	if (selector_is_null(selector)) {
		if (!cpu_64bit_code(s) || cpl == 3 || rpl != cpl)
			x86_raise(vcpu, VECTOR_GP);
		s->segment[SEG_SS] = segment_null(selector, cpl);
		return;
	}
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	uint32_t error = selector_error(selector, 0);
	if (rpl != cpl || descriptor_dpl(&d) != cpl || !descriptor_is_writable_data(&d))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_SS, error);
	descriptor_set_accessed(vcpu, &d);
	s->segment[SEG_SS] = descriptor_segment(&d, rpl);
}

/* Data, or code that can be read. */
static bool is_readable(const struct descriptor *d)
{
	uint32_t access = descriptor_access(d);
	return (access & SEG_S) && (!(access & SEG_CODE) || (access & SEG_READABLE));
}

/* May CPL and RPL see it? Conforming code may be seen by all. */
static bool is_visible(const struct descriptor *d, unsigned cpl)
{
	if (descriptor_is_conforming_code(d))
		return true;
	unsigned dpl = descriptor_dpl(d);
	return dpl >= cpl && dpl >= (d->selector & 3u);
}

void segment_load(struct vcpu *vcpu, enum segment_register segment, uint16_t selector)
{
	struct cpu_state *s = &vcpu->state;
	if (cpu_real_or_vm86(s)) {
		segment_load_real(vcpu, segment, selector);
		return;
	}
	if (segment == SEG_SS) {
		load_ss(vcpu, selector);
		return;
	}
	if (selector_is_null(selector)) {
		s->segment[segment] = segment_null(selector, 0);
		return;
	}
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	uint32_t error = selector_error(selector, 0);
	if (!is_readable(&d) || !is_visible(&d, cpu_cpl(s)))
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, error);
	descriptor_set_accessed(vcpu, &d);
	s->segment[segment] = descriptor_segment(&d, selector & 3);
}

static void require_protected(struct vcpu *vcpu)
{
	if (cpu_real_or_vm86(&vcpu->state))
		x86_raise(vcpu, VECTOR_UD);
}

static void require_cpl0(struct vcpu *vcpu)
{
	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_GP);
}

void x86_lldt(struct vcpu *vcpu, uint16_t selector)
{
	struct cpu_state *s = &vcpu->state;
	require_protected(vcpu);
	require_cpl0(vcpu);
	if (selector_is_null(selector)) {
		s->segment[SEG_LDTR] = segment_null(selector, 0);
		return;
	}
	uint32_t error = selector_error(selector, 0);
	if (selector & 4)
		x86_raise_error(vcpu, VECTOR_GP, error);
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	if (!descriptor_is_system(&d) || descriptor_type(&d) != TYPE_LDT)
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, error);
	if (cpu_long_mode(s)) {
		descriptor_read_upper(vcpu, &d, VECTOR_GP, 0);
		if (!cpu_canonical(descriptor_segment(&d, 0).base))
			x86_raise_error(vcpu, VECTOR_GP, error);
	}
	s->segment[SEG_LDTR] = descriptor_segment(&d, selector & 3);
}

void x86_ltr(struct vcpu *vcpu, uint16_t selector)
{
	struct cpu_state *s = &vcpu->state;
	require_protected(vcpu);
	require_cpl0(vcpu);
	if (selector_is_null(selector))
		x86_raise(vcpu, VECTOR_GP);
	uint32_t error = selector_error(selector, 0);
	if (selector & 4)
		x86_raise_error(vcpu, VECTOR_GP, error);
	struct descriptor d;
	descriptor_read(vcpu, &d, selector, VECTOR_GP, 0);
	unsigned type = descriptor_type(&d);
	bool available = type == TYPE_TSS_AVAILABLE || (type == TYPE_TSS16_AVAILABLE && !cpu_long_mode(s));
	if (!descriptor_is_system(&d) || !available)
		x86_raise_error(vcpu, VECTOR_GP, error);
	if (!descriptor_is_present(&d))
		x86_raise_error(vcpu, VECTOR_NP, error);
	if (cpu_long_mode(s)) {
		descriptor_read_upper(vcpu, &d, VECTOR_GP, 0);
		if (!cpu_canonical(descriptor_segment(&d, 0).base))
			x86_raise_error(vcpu, VECTOR_GP, error);
	}
	if (!descriptor_set_busy(vcpu, &d, true))
		x86_raise_error(vcpu, VECTOR_GP, error);
	s->segment[SEG_TR] = descriptor_segment(&d, selector & 3);
}

/* System types that LAR and LSL accept, as bit masks over the type (SDM 2A LAR, LSL). */
#define LAR_TYPES      0x1a3eu /* TSS 1 3 9 B, LDT, call gates 4 C, task gate: 1 2 3 4 5 9 B C */
#define LAR_TYPES_LONG 0x1a04u /* LDT, TSS 9 B, call gate C */
#define LSL_TYPES      0x0a0eu /* 1 2 3 9 B */
#define LSL_TYPES_LONG 0x0a04u /* 2 9 B */

static bool look_at(struct vcpu *vcpu, struct descriptor *d, uint16_t selector, uint32_t types, uint32_t types_long)
{
	require_protected(vcpu);
	if (!descriptor_try(vcpu, d, selector) || !is_visible(d, cpu_cpl(&vcpu->state)))
		return false;
	if (!descriptor_is_system(d))
		return true;
	return (cpu_long_mode(&vcpu->state) ? types_long : types) >> descriptor_type(d) & 1;
}

bool x86_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *result)
{
	struct descriptor d;
	if (!look_at(vcpu, &d, selector, LAR_TYPES, LAR_TYPES_LONG))
		return false;
	/* Bits 19:16, the limit's, are undefined by the SDM; AMD gives them (measured on Zen 4). */
	*result = (uint32_t)(d.raw >> 32) & (vcpu->model && vcpu->model->amd ? 0x00ffff00 : 0x00f0ff00);
	return true;
}

bool x86_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *result)
{
	struct descriptor d;
	if (!look_at(vcpu, &d, selector, LSL_TYPES, LSL_TYPES_LONG))
		return false;
	*result = descriptor_segment(&d, 0).limit;
	return true;
}

bool x86_verify(struct vcpu *vcpu, uint16_t selector, bool write)
{
	struct descriptor d;
	require_protected(vcpu);
	if (!descriptor_try(vcpu, &d, selector) || !is_visible(&d, cpu_cpl(&vcpu->state)))
		return false;
	return write ? descriptor_is_writable_data(&d) : is_readable(&d);
}

/* The I/O permission bit map (SDM 1 18.5.2): two bytes are read always, so the map needs a byte of ones behind it. */
void x86_check_io(struct vcpu *vcpu, uint16_t port, unsigned size)
{
	struct cpu_state *s = &vcpu->state;
	if (!cpu_protected(s))
		return;
	if (!(s->rflags & FLAG_VM) && cpu_cpl(s) <= (s->rflags & FLAG_IOPL) >> 12)
		return;
	const struct segment *tr = &s->segment[SEG_TR];
	if ((tr->access & SEG_UNUSABLE) || !(tr->access & 8) || tr->limit < 103)
		x86_raise(vcpu, VECTOR_GP);
	uint64_t wrap = cpu_long_mode(s) ? ~0ull : 0xffffffff;
	uint32_t map = (uint32_t)mmu_read_system(vcpu, (tr->base + 102) & wrap, 2);
	uint32_t offset = map + port / 8u;
	if (offset + 1 > tr->limit)
		x86_raise(vcpu, VECTOR_GP);
	uint64_t bits = mmu_read_system(vcpu, (tr->base + offset) & wrap, 2);
	if (bits >> port % 8 & ((1u << size) - 1))
		x86_raise(vcpu, VECTOR_GP);
}

uint64_t segment_linear_slow(struct vcpu *vcpu, enum segment_register segment, uint64_t offset, uint64_t size,
                             bool write)
{
	const struct cpu_state *s = &vcpu->state;
	const struct segment *seg = &s->segment[segment];
	unsigned vector = segment == SEG_SS ? VECTOR_SS : VECTOR_GP;
	uint64_t last = offset + (size ? size - 1 : 0);

	if (cpu_64bit_code(s)) {
		uint64_t base = segment == SEG_FS || segment == SEG_GS ? seg->base : 0;
		if (!cpu_canonical(base + offset) || !cpu_canonical(base + last))
			x86_raise(vcpu, vector);
		/* AMD looks at the offset too, before it adds the base (measured on Zen 4). */
		if (!cpu_canonical(offset) && vcpu->model && vcpu->model->amd)
			x86_raise(vcpu, vector);
		return base + offset;
	}
	bool code = seg->access & SEG_CODE;
	if (seg->access & SEG_UNUSABLE)
		x86_raise(vcpu, vector);
	if (cpu_protected(s)) { /* real mode has no types */
		if (write ? code || !(seg->access & SEG_WRITABLE) : code && !(seg->access & SEG_READABLE))
			x86_raise(vcpu, VECTOR_GP);
	}
	bool inside;
	if (!code && (seg->access & SEG_EXPANDDOWN))
		inside = offset > seg->limit && last <= (seg->access & SEG_DB ? 0xffffffff : 0xffff);
	else
		inside = last <= seg->limit;
	if (!inside)
		x86_raise(vcpu, vector);
	return (uint32_t)(seg->base + offset);
}
