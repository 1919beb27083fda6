/*
 * The slow ways of memory operands, and the address slots.
 */
#include "engines/interpreter/access.h"

#include "x86/segments.h"

/*
 * Only 64-bit code can form an address that is not canonical (SDM 1 3.3.7.1). Flat 32-bit code reaches the segment's
 * limit only at the very end of the 4 GiB; through FS and GS, which have been checked and may have a base, an operand can
 * lie across it.
 */
bool operand_in_range(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size)
{
	if (likely(cpu_64bit_code(&vcpu->state)))
		return cpu_canonical(linear) && cpu_canonical(linear + size - 1);
	if (!(interpreter_of(vcpu)->mode & MODE_FLAT) || linear + size - 1 <= 0xffffffff)
		return true;
	return insn->segment_base == offsetof(struct vcpu, state.segment[SEG_FS].base) ||
	       insn->segment_base == offsetof(struct vcpu, state.segment[SEG_GS].base);
}

void slow_check(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size)
{
	if (unlikely(!operand_in_range(vcpu, insn, linear, size)))
		x86_raise(vcpu, insn->stack_segment ? VECTOR_SS : VECTOR_GP);
}

uint64_t slow_read(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size)
{
	slow_check(vcpu, insn, linear, size);
	return mmu_read(vcpu, linear, size);
}

void slow_write(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size, uint64_t value)
{
	slow_check(vcpu, insn, linear, size);
	mmu_write(vcpu, linear, size, value);
}

uint64_t slow_read_for_write(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size)
{
	slow_check(vcpu, insn, linear, size);
	mmu_probe_write(vcpu, linear, size);
	return mmu_read(vcpu, linear, size);
}

void raise_misaligned(struct vcpu *vcpu, uint64_t linear, unsigned size)
{
	if (linear & (size - 1))
		x86_raise(vcpu, VECTOR_AC);
}

static enum segment_register segment_of_base(const struct insn *insn)
{
	return insn->segment_base == offsetof(struct vcpu, state.segment[SEG_FS].base) ? SEG_FS : SEG_GS;
}

#define ADDRESS_SLOT(kind)                                                                                             \
	void address_##kind(PARAMETERS)                                                                                \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		return insn[1].run_at(vcpu, insn + 1, flags, tlb, linear);                                             \
	}
ADDRESS_SLOT(b64)
ADDRESS_SLOT(f64)
ADDRESS_SLOT(b32)
ADDRESS_SLOT(f32)

/* FS and GS in 64-bit code. AMD's processors want the offset itself canonical, which the TLB cannot tell from the sum.
 */
void address_s64(PARAMETERS)
{
	ADDRESS_f64;
	if (unlikely(!cpu_canonical(linear))) {
		SLOW_ENTER;
		if (insn->b & GENERAL_NATIVE) /* a pending #MF comes first */
			native_check_operand(vcpu, insn[1].pointer, linear & ~63ull);
		linear = segment_linear(vcpu, segment_of_base(insn), linear, 1, false);
	} else {
		linear += REG64(insn->segment_base);
	}
	return insn[1].run_at(vcpu, insn + 1, flags, tlb, linear);
}

/* A pending #MF and #GP for misalignment are found before the segment is looked at, #AC after it (measured on Zen 4).
 */
static void check_form(struct vcpu *vcpu, const struct insn *insn, uint64_t offset)
{
	const struct native_form *form = insn[1].pointer;
	uint64_t linear = vcpu->state.segment[GENERAL_SEGMENT(insn->b)].base + offset;

	native_check_operand(vcpu, form, form->alignment > 1 ? linear : linear & ~63ull);
	/* Before the rest of the operand is compared with the limit. */
	if (form->first_access) {
		linear =
		    segment_linear(vcpu, GENERAL_SEGMENT(insn->b), offset, form->first_access, form->writes_memory);
		native_check_alignment(vcpu, linear, form->natural_alignment);
		mmu_translate(vcpu, linear, form->writes_memory ? MMU_WRITE : MMU_READ, vcpu->mmu.view);
	}
}

void address_general(PARAMETERS)
{
	uint64_t offset = REG64(insn->base) + (REG64(insn->index) << insn->scale) +
	                  (uint64_t)(int64_t)insn->displacement + insn->immediate;

	if (insn->b & GENERAL_MASK32)
		offset = (uint32_t)offset;
	else if (insn->b & GENERAL_MASK16)
		offset = (uint16_t)offset;
	SLOW_ENTER;
	if (insn->b & GENERAL_NATIVE)
		check_form(vcpu, insn, offset);
	uint64_t linear =
	    segment_linear(vcpu, GENERAL_SEGMENT(insn->b), offset, insn->a ? insn->a : 1, insn->b & GENERAL_WRITE);
	/* Vectors have rules of their own, and host-executed forms get #AC from the silicon. */
	if (insn->b & GENERAL_ALIGN)
		check_alignment(vcpu, linear, insn->a);
	return insn[1].run_at(vcpu, insn + 1, flags, tlb, linear);
}
