/*
 * PUSH, POP, PUSHA, POPA, ENTER, LEAVE of general registers, constants and memory. Segment registers are in segment.c,
 * flags in system.c.
 */
#include "engines/interpreter/stack.h"

#include "engines/interpreter/decode.h"
#include "x86/segments.h"

/* The general way. */

uint64_t stack_mask(const struct vcpu *vcpu)
{
	if (cpu_64bit_code(&vcpu->state))
		return ~0ull;
	return vcpu->state.segment[SEG_SS].access & SEG_DB ? 0xffffffffu : 0xffffu;
}

static uint64_t stack_linear(struct vcpu *vcpu, uint64_t offset, unsigned size, bool write)
{
	uint64_t linear = segment_linear(vcpu, SEG_SS, offset & stack_mask(vcpu), size, write);

	check_alignment(vcpu, linear, size);
	return linear;
}

uint64_t stack_read(struct vcpu *vcpu, uint64_t offset, unsigned size)
{
	return mmu_read(vcpu, stack_linear(vcpu, offset, size, false), size);
}

void stack_probe(struct vcpu *vcpu, uint64_t offset, unsigned size)
{
	mmu_probe_write(vcpu, stack_linear(vcpu, offset, size, true), size);
}

void stack_write(struct vcpu *vcpu, uint64_t offset, unsigned size, uint64_t value)
{
	mmu_write(vcpu, stack_linear(vcpu, offset, size, true), size, value);
}

void stack_check_alignment(struct vcpu *vcpu, unsigned size)
{
	uint64_t base = cpu_64bit_code(&vcpu->state) ? 0 : vcpu->state.segment[SEG_SS].base;

	check_alignment(vcpu, base + (stack_pointer(vcpu) & stack_mask(vcpu)), size);
}

void stack_set_pointer(struct vcpu *vcpu, uint64_t value)
{
	uint64_t mask = stack_mask(vcpu);

	if (mask == 0xffff)
		write16(vcpu, GPR_OFFSET(RSP), (uint16_t)value);
	else
		vcpu->state.gpr[RSP] = value & mask;
}

static void push(struct vcpu *vcpu, unsigned size, uint64_t value)
{
	uint64_t pointer = stack_pointer(vcpu) - size;

	stack_write(vcpu, pointer, size, value);
	stack_set_pointer(vcpu, pointer);
}

static void set_register(struct vcpu *vcpu, unsigned offset, unsigned size, uint64_t value)
{
	if (size == 2)
		write16(vcpu, offset, (uint16_t)value);
	else
		write64(vcpu, offset, size == 4 ? (uint32_t)value : value);
}

static COLD void push_value_general(PARAMETERS, uint64_t value)
{
	SLOW_ENTER;
	push(vcpu, insn->b, value);
	NEXT_SLOW;
}

static void push_register_general(PARAMETERS)
{
	return push_value_general(ARGUMENTS, REG64(insn->a));
}

static void push_constant_general(PARAMETERS)
{
	return push_value_general(ARGUMENTS, insn->immediate);
}

static void push_memory_general(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	return push_value_general(ARGUMENTS, slow_read(vcpu, insn, linear, insn->b));
}

static COLD void pop_register_general(PARAMETERS)
{
	uint64_t pointer = stack_pointer(vcpu);

	SLOW_ENTER;
	uint64_t value = stack_read(vcpu, pointer, insn->b);
	stack_set_pointer(vcpu, pointer + insn->b);
	set_register(vcpu, insn->a, insn->b, value);
	NEXT_SLOW;
}

/* POP to memory: the destination's address counts with the incremented stack pointer (SDM 2B POP). */
static void pop_memory_general(PARAMETERS)
{
	uint64_t old = stack_pointer(vcpu);
	uint64_t offset, value, linear;
	unsigned size = insn->b;
	enum segment_register segment = GENERAL_SEGMENT(insn->a);

	SLOW_ENTER;
	value = stack_read(vcpu, old, size);
	offset = REG64(insn->base) + (insn->base == GPR_OFFSET(RSP) ? size : 0) + (REG64(insn->index) << insn->scale) +
	         (uint64_t)(int64_t)insn->displacement;
	if (insn->a & GENERAL_MASK16)
		offset = (uint16_t)offset;
	else if (insn->a & GENERAL_MASK32)
		offset = (uint32_t)offset;
	linear = segment_linear(vcpu, segment, offset, size, true);
	check_alignment(vcpu, linear, size);
	mmu_write(vcpu, linear, size, value);
	stack_set_pointer(vcpu, old + size);
	NEXT_SLOW;
}

/* The fast ways. */

#define PUSH(bits, name, value_, otherwise)                                                                            \
	static void push_##name##_##bits(PARAMETERS)                                                                   \
	{                                                                                                              \
		uint64_t pointer = (uint##bits##_t)(stack_pointer(vcpu) - bits / 8);                                   \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(pointer);                                                    \
		if (!HIT(entry, pointer, bits / 8))                                                                    \
			return otherwise(ARGUMENTS);                                                                   \
		HOST(entry, pointer, guest_##bits) = (uint##bits##_t)(value_);                                         \
		vcpu->state.gpr[RSP] = pointer;                                                                        \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}
#define FAST(bits)                                                                                                     \
	PUSH(bits, register, REG##bits(insn->a), push_register_general)                                                \
	PUSH(bits, constant, insn->immediate, push_constant_general)                                                   \
	static void push_memory_##bits(PARAMETERS, uint64_t linear)                                                    \
	{                                                                                                              \
		uint64_t pointer = (uint##bits##_t)(stack_pointer(vcpu) - bits / 8);                                   \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(pointer), *source = READ_ENTRY(linear);                      \
		if (!HIT(entry, pointer, bits / 8) || !HIT(source, linear, bits / 8))                                  \
			return push_memory_general(ARGUMENTS, linear);                                                 \
		HOST(entry, pointer, guest_##bits) = HOST(source, linear, guest_##bits);                               \
		vcpu->state.gpr[RSP] = pointer;                                                                        \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void pop_register_##bits(PARAMETERS)                                                                    \
	{                                                                                                              \
		uint64_t pointer = (uint##bits##_t)stack_pointer(vcpu);                                                \
		struct mmu_tlb_entry *entry = READ_ENTRY(pointer);                                                     \
		if (!HIT(entry, pointer, bits / 8))                                                                    \
			return pop_register_general(ARGUMENTS);                                                        \
		uint64_t value = HOST(entry, pointer, guest_##bits);                                                   \
		vcpu->state.gpr[RSP] = (uint##bits##_t)(pointer + bits / 8);                                           \
		write64(vcpu, insn->a, value);                                                                         \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void leave_##bits(PARAMETERS)                                                                           \
	{                                                                                                              \
		uint64_t pointer = (uint##bits##_t)vcpu->state.gpr[RBP];                                               \
		struct mmu_tlb_entry *entry = READ_ENTRY(pointer);                                                     \
		if (!HIT(entry, pointer, bits / 8))                                                                    \
			return leave_general(ARGUMENTS);                                                               \
		vcpu->state.gpr[RBP] = HOST(entry, pointer, guest_##bits);                                             \
		vcpu->state.gpr[RSP] = (uint##bits##_t)(pointer + bits / 8);                                           \
		NEXT;                                                                                                  \
	}

static COLD void leave_general(PARAMETERS)
{
	uint64_t pointer = vcpu->state.gpr[RBP];

	SLOW_ENTER;
	uint64_t value = stack_read(vcpu, pointer, insn->b);
	stack_set_pointer(vcpu, pointer + insn->b);
	set_register(vcpu, GPR_OFFSET(RBP), insn->b, value);
	NEXT_SLOW;
}

FAST(64)
FAST(32)

/* ENTER (SDM 2A): insn->immediate is the frame's size, insn->a the nesting level modulo 32. */
static void enter_general(PARAMETERS)
{
	unsigned size = insn->b, level = insn->a;
	uint64_t pointer = stack_pointer(vcpu), frame_pointer = vcpu->state.gpr[RBP];
	uint64_t frame;

	SLOW_ENTER;
	frame = pointer - size;
	/* Pushes that went well before one that faults stay written, as on the silicon; registers change last (SDM 2A
	 * ENTER). */
	unsigned count = level ? level + 1 : 1;
	for (unsigned i = 0; i < count; i++) {
		uint64_t value = i == 0      ? frame_pointer
		                 : i < level ? stack_read(vcpu, frame_pointer - i * size, size)
		                             : frame;
		stack_write(vcpu, pointer - (i + 1) * size, size, value);
	}
	uint64_t end = pointer - count * size - insn->immediate;
	stack_probe(vcpu, end, size);
	set_register(vcpu, GPR_OFFSET(RBP), size, frame);
	stack_set_pointer(vcpu, end);
	NEXT_SLOW;
}

/* PUSHA and POPA touch eight slots; those that wrap or cross pages are checked one by one first. */
static void pusha_general(PARAMETERS)
{
	unsigned size = insn->b;
	uint64_t pointer = stack_pointer(vcpu);

	SLOW_ENTER;
	for (unsigned i = 0; i < 8; i++)
		mmu_probe_write(vcpu, stack_linear(vcpu, pointer - (i + 1) * size, size, true), size);
	for (unsigned i = 0; i < 8; i++)
		stack_write(vcpu, pointer - (i + 1) * size, size, vcpu->state.gpr[i]);
	stack_set_pointer(vcpu, pointer - 8 * size);
	NEXT_SLOW;
}

static void popa_general(PARAMETERS)
{
	unsigned size = insn->b;
	uint64_t pointer = stack_pointer(vcpu), value[8];

	SLOW_ENTER;
	for (unsigned i = 0; i < 8; i++)
		value[i] = stack_read(vcpu, pointer + i * size, size);
	for (unsigned i = 0; i < 8; i++)
		if (i != 3) /* ESP's image is read, and dropped (measured on Zen 4) */
			set_register(vcpu, GPR_OFFSET(7 - i), size, value[i]);
	stack_set_pointer(vcpu, pointer + 8 * size);
	NEXT_SLOW;
}

/* Decoding. */

static unsigned fast_bits(const struct decoder *d, unsigned size)
{
	if (size == 8 && stack_fast_64(d->mode))
		return 64;
	return size == 4 && stack_fast_32(d->mode) ? 32 : 0;
}

static any_handler pick(unsigned bits, handler *wide, handler *narrow, handler *general)
{
	return (any_handler){bits == 64 ? wide : bits == 32 ? narrow : general};
}

static bool push_decode(struct decoder *d)
{
	const ZydisDecodedOperand *operand = &d->operand[0];
	unsigned size = d->instruction.operand_width / 8, bits;
	struct insn *insn;

	if (is_register(operand) && !is_general_register(operand))
		return false;
	bits = fast_bits(d, size);
	if (is_memory(operand)) {
		insn = emit_memory_at(d, operand, size, false,
		                      bits == 64   ? push_memory_64
		                      : bits == 32 ? push_memory_32
		                                   : push_memory_general);
	} else if (is_immediate(operand)) {
		insn = emit(d, pick(bits, push_constant_64, push_constant_32, push_constant_general));
		insn->immediate = decoder_immediate(d, operand);
	} else {
		insn = emit(d, pick(bits, push_register_64, push_register_32, push_register_general));
		insn->a = (uint8_t)register_offset(operand->reg.value);
	}
	insn->b = (uint8_t)size;
	return true;
}

static bool pop_decode(struct decoder *d)
{
	const ZydisDecodedOperand *operand = &d->operand[0];
	unsigned size = d->instruction.operand_width / 8, bits;
	struct insn *insn;

	if (is_register(operand) && !is_general_register(operand))
		return false;
	bits = fast_bits(d, size);
	if (is_memory(operand)) {
		insn = emit(d, pop_memory_general);
		unsigned address_size = fill_address(d, insn, operand);
		insn->a = (uint8_t)(operand_segment(operand) << 4 | (address_size == 2   ? GENERAL_MASK16
		                                                     : address_size == 4 ? GENERAL_MASK32
		                                                                         : 0));
	} else {
		insn = emit(d, pick(bits, pop_register_64, pop_register_32, pop_register_general));
		insn->a = (uint8_t)register_offset(operand->reg.value);
	}
	insn->b = (uint8_t)size;
	return true;
}

bool stack_decode(struct decoder *d)
{
	unsigned size = d->instruction.operand_width / 8;
	struct insn *insn;

	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		return push_decode(d);
	case ZYDIS_MNEMONIC_POP:
		return pop_decode(d);
	case ZYDIS_MNEMONIC_LEAVE:
		insn = emit(d, pick(fast_bits(d, size), leave_64, leave_32, leave_general));
		break;
	case ZYDIS_MNEMONIC_ENTER:
		insn = emit(d, enter_general);
		insn->immediate = d->operand[0].imm.value.u & 0xffff;
		insn->a = d->operand[1].imm.value.u & 31;
		break;
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		insn = emit(d, pusha_general);
		break;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		insn = emit(d, popa_general);
		break;
	default:
		return false;
	}
	insn->b = (uint8_t)size;
	return true;
}
