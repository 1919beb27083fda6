/*
 * Near control transfers: JMP, Jcc, CALL, RET, LOOP, JCXZ; and the end of a block that has none.
 *
 * Handlers come for 64-bit code, for flat 32-bit code (operand size 32) and in a general form that takes the operand
 * size from insn->b and checks the code segment's limit. Direct transfers keep their target relative to the block's
 * first byte in `displacement`.
 */
#include "engines/interpreter/decode.h"
#include "engines/interpreter/stack.h"
#include "x86/system.h"

#define CONDITIONS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)

#define BRANCH_TARGET(bits) ((uint##bits##_t)(vcpu->state.rip + (uint64_t)(int64_t)insn->displacement))
/* Of a terminal instruction, `scale` is the length. */
#define FALL_THROUGH(bits) ((uint##bits##_t)(vcpu->state.rip + insn->offset + insn->scale))

#define DIRECT(bits)                                                                                                   \
	static void jmp_##bits(PARAMETERS)                                                                             \
	{                                                                                                              \
		COUNT_BLOCK;                                                                                           \
		FOLLOW(&block_of(insn)->link[TAKEN], BRANCH_TARGET(bits));                                             \
	}                                                                                                              \
	static void block_end_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		COUNT_BLOCK;                                                                                           \
		FOLLOW(&block_of(insn)->link[NOT_TAKEN], (uint##bits##_t)(vcpu->state.rip + insn->offset));            \
	}
DIRECT(64)
DIRECT(32)

#define JCC(bits, cc)                                                                                                  \
	static void jcc_##bits##_##cc(PARAMETERS)                                                                      \
	{                                                                                                              \
		COUNT_BLOCK;                                                                                           \
		if (flags_condition(flags, cc))                                                                        \
			FOLLOW(&block_of(insn)->link[TAKEN], BRANCH_TARGET(bits));                                     \
		FOLLOW(&block_of(insn)->link[NOT_TAKEN], FALL_THROUGH(bits));                                          \
	}
#define JCC_64(cc) JCC(64, cc)
#define JCC_32(cc) JCC(32, cc)
CONDITIONS(JCC_64)
CONDITIONS(JCC_32)
#define JCC_ENTRY_64(cc) jcc_64_##cc,
#define JCC_ENTRY_32(cc) jcc_32_##cc,
static handler *const jcc_64[16] = {CONDITIONS(JCC_ENTRY_64)};
static handler *const jcc_32[16] = {CONDITIONS(JCC_ENTRY_32)};

/* The general forms. */

static uint64_t truncated(uint64_t value, unsigned size)
{
	return size == 8 ? value : size == 4 ? (uint32_t)value : (uint16_t)value;
}

/* SDM 2B JMP: a target beyond the code segment's limit, or not canonical, is #GP(0) of the branch. SLOW_ENTER comes
 * first. */
static void check_target(struct vcpu *vcpu, uint64_t target)
{
	const struct cpu_state *s = &vcpu->state;

	if (cpu_64bit_code(s) ? !cpu_canonical(target) : target > s->segment[SEG_CS].limit)
		x86_raise(vcpu, VECTOR_GP);
}

/* Goes on at a target that is checked already; not linked where the block must be left for other reasons. */
static void go(PARAMETERS, struct link *link, uint64_t target)
{
	COUNT_BLOCK;
	if (unlikely(vcpu->mmu.stop))
		return leave_to(ARGUMENTS, NULL, target);
	FOLLOW(link, target);
}

static uint64_t fall_through(struct vcpu *vcpu, const struct insn *insn)
{
	return (vcpu->state.rip + insn->offset + insn->scale) & interpreter_of(vcpu)->rip_mask;
}

/* `index` holds what did not fit into `displacement`. */
static uint64_t general_target(struct vcpu *vcpu, const struct insn *insn)
{
	return truncated(vcpu->state.rip + (uint64_t)(int64_t)insn->displacement + insn->index, insn->b);
}

static void jmp_general(PARAMETERS)
{
	uint64_t target = general_target(vcpu, insn);

	SLOW_ENTER;
	check_target(vcpu, target);
	return go(ARGUMENTS, &block_of(insn)->link[TAKEN], target);
}

static void jcc_general(PARAMETERS)
{
	if (flags_condition(flags, insn->a))
		return jmp_general(ARGUMENTS);
	return go(ARGUMENTS, &block_of(insn)->link[NOT_TAKEN], fall_through(vcpu, insn));
}

static void block_end_general(PARAMETERS)
{
	return go(ARGUMENTS, &block_of(insn)->link[NOT_TAKEN],
	          (vcpu->state.rip + insn->offset) & interpreter_of(vcpu)->rip_mask);
}

/* LOOP, LOOPE, LOOPNE, JCXZ: the count register has the address size (insn->base), insn->a says which. */
enum { LOOP, LOOPE, LOOPNE, JCXZ };

static void loop_general(PARAMETERS)
{
	uint64_t count = truncated(vcpu->state.gpr[RCX], insn->base);
	bool taken;

	if (insn->a == JCXZ) {
		taken = count == 0;
	} else {
		count = truncated(count - 1, insn->base);
		taken = count != 0 && (insn->a == LOOP || !(flags & HOT_ZF) == (insn->a == LOOPNE));
		if (taken) {
			SLOW_ENTER;
			check_target(vcpu, general_target(vcpu, insn));
		}
		if (insn->base == 2)
			write16(vcpu, GPR_OFFSET(RCX), (uint16_t)count);
		else
			vcpu->state.gpr[RCX] = count;
	}
	if (taken)
		return jmp_general(ARGUMENTS);
	return go(ARGUMENTS, &block_of(insn)->link[NOT_TAKEN], fall_through(vcpu, insn));
}

/* CALL and RET. */

static void call_target(PARAMETERS, struct link *link, uint64_t target)
{
	unsigned size = insn->b;
	uint64_t pointer = stack_pointer(vcpu) - size;

	SLOW_ENTER;
	stack_probe(vcpu, pointer, size); /* first, as the silicon does */
	check_target(vcpu, target);
	stack_write(vcpu, pointer, size, fall_through(vcpu, insn));
	stack_set_pointer(vcpu, pointer);
	return go(ARGUMENTS, link, target);
}

static void call_general(PARAMETERS)
{
	return call_target(ARGUMENTS, &block_of(insn)->link[TAKEN], general_target(vcpu, insn));
}

static void call_register_general(PARAMETERS)
{
	uint64_t target = truncated(REG64(insn->a), insn->b);

	return call_target(ARGUMENTS, jump_cache_link(vcpu, target), target);
}

static void jmp_register_general(PARAMETERS)
{
	uint64_t target = truncated(REG64(insn->a), insn->b);

	SLOW_ENTER;
	check_target(vcpu, target);
	return go(ARGUMENTS, jump_cache_link(vcpu, target), target);
}

static void call_memory(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	uint64_t target = slow_read(vcpu, insn, linear, insn->b);

	return call_target(ARGUMENTS, jump_cache_link(vcpu, target), target);
}

static void jmp_memory(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	uint64_t target = slow_read(vcpu, insn, linear, insn->b);

	check_target(vcpu, target);
	return go(ARGUMENTS, jump_cache_link(vcpu, target), target);
}

static void ret_general(PARAMETERS)
{
	unsigned size = insn->b;
	uint64_t pointer = stack_pointer(vcpu);

	SLOW_ENTER;
	uint64_t target = stack_read(vcpu, pointer, size);
	check_target(vcpu, target);
	stack_set_pointer(vcpu, pointer + size + (uint64_t)(uint32_t)insn->displacement);
	return go(ARGUMENTS, jump_cache_link(vcpu, target), target);
}

/*
 * The fast forms of CALL and RET. A canonical target is checked before anything changes: leave_to() would find it too
 * late.
 */
#define IN_RANGE_64(target) cpu_canonical(target)
#define IN_RANGE_32(target) true

#define CALL_BODY(bits, link, target_, otherwise)                                                                      \
	uint64_t target = (target_);                                                                                   \
	uint64_t pointer = (uint##bits##_t)(stack_pointer(vcpu) - bits / 8);                                           \
	struct mmu_tlb_entry *entry = WRITE_ENTRY(pointer);                                                            \
	if (!HIT(entry, pointer, bits / 8) || unlikely(!IN_RANGE_##bits(target)))                                      \
		return otherwise;                                                                                      \
	HOST(entry, pointer, guest_##bits) = FALL_THROUGH(bits);                                                       \
	vcpu->state.gpr[RSP] = pointer;                                                                                \
	COUNT_BLOCK;                                                                                                   \
	if (unlikely(mmu_entry_flags(entry))) {                                                                        \
		written_note(vcpu, entry);                                                                             \
		return leave_to(ARGUMENTS, NULL, target);                                                              \
	}                                                                                                              \
	FOLLOW(link, target)

#define CALLS(bits)                                                                                                    \
	static void call_##bits(PARAMETERS)                                                                            \
	{                                                                                                              \
		CALL_BODY(bits, &block_of(insn)->link[TAKEN], BRANCH_TARGET(bits), call_general(ARGUMENTS));           \
	}                                                                                                              \
	static void call_register_##bits(PARAMETERS)                                                                   \
	{                                                                                                              \
		CALL_BODY(bits, jump_cache_link(vcpu, target), REG##bits(insn->a), call_register_general(ARGUMENTS));  \
	}                                                                                                              \
	static void call_memory_##bits(PARAMETERS, uint64_t linear)                                                    \
	{                                                                                                              \
		struct mmu_tlb_entry *source = READ_ENTRY(linear);                                                     \
		if (!HIT(source, linear, bits / 8))                                                                    \
			return call_memory(ARGUMENTS, linear);                                                         \
		CALL_BODY(bits, jump_cache_link(vcpu, target), HOST(source, linear, guest_##bits),                     \
		          call_memory(ARGUMENTS, linear));                                                             \
	}                                                                                                              \
	static void jmp_register_##bits(PARAMETERS)                                                                    \
	{                                                                                                              \
		uint64_t target = REG##bits(insn->a);                                                                  \
		COUNT_BLOCK;                                                                                           \
		FOLLOW(jump_cache_link(vcpu, target), target);                                                         \
	}                                                                                                              \
	static void jmp_memory_##bits(PARAMETERS, uint64_t linear)                                                     \
	{                                                                                                              \
		struct mmu_tlb_entry *source = READ_ENTRY(linear);                                                     \
		if (!HIT(source, linear, bits / 8))                                                                    \
			return jmp_memory(ARGUMENTS, linear);                                                          \
		uint64_t target = HOST(source, linear, guest_##bits);                                                  \
		COUNT_BLOCK;                                                                                           \
		FOLLOW(jump_cache_link(vcpu, target), target);                                                         \
	}                                                                                                              \
	static void ret_##bits(PARAMETERS)                                                                             \
	{                                                                                                              \
		uint64_t pointer = (uint##bits##_t)stack_pointer(vcpu);                                                \
		struct mmu_tlb_entry *entry = READ_ENTRY(pointer);                                                     \
		if (!HIT(entry, pointer, bits / 8))                                                                    \
			return ret_general(ARGUMENTS);                                                                 \
		uint64_t target = HOST(entry, pointer, guest_##bits);                                                  \
		if (unlikely(!IN_RANGE_##bits(target)))                                                                \
			return ret_general(ARGUMENTS);                                                                 \
		vcpu->state.gpr[RSP] = (uint##bits##_t)(pointer + bits / 8 + (uint32_t)insn->displacement);            \
		COUNT_BLOCK;                                                                                           \
		FOLLOW(jump_cache_link(vcpu, target), target);                                                         \
	}
CALLS(64)
CALLS(32)

/* Decoding. */

/*
 * In 64-bit code near transfers have 64-bit operands; AMD's processors honour 66h all the same, Intel's ignore it (SDM
 * 2A JMP, APM 3 1.2.3).
 */
static unsigned operand_bits(const struct decoder *d)
{
	const struct cpu_model *model = d->vcpu->model;

	if (!decoder_64(d))
		return d->instruction.operand_width;
	return model && model->amd && has_prefix(d, ZYDIS_ATTRIB_HAS_OPERANDSIZE) && !d->instruction.raw.rex.W ? 16
	                                                                                                       : 64;
}

/* A direct transfer's target relative to the block's first byte. */
static int64_t relative_target(const struct decoder *d)
{
	return d->operand[0].imm.value.s + (int64_t)d->offset + d->instruction.length;
}

static bool is_direct(const struct decoder *d)
{
	return is_immediate(&d->operand[0]) && d->operand[0].imm.is_relative;
}

/* 64: 64-bit code with its usual operand size; 32: flat 32-bit code; 0: general. */
static unsigned fast_bits(const struct decoder *d)
{
	if (is_direct(d) && relative_target(d) != (int32_t)relative_target(d))
		return 0;
	if (decoder_64(d))
		return operand_bits(d) == 64 ? 64 : 0;
	if ((d->mode & (MODE_SIZE | MODE_FLAT)) == (MODE_32 | MODE_FLAT) && d->instruction.operand_width == 32)
		return 32;
	return 0;
}

/* Fast handlers also of the stack. */
static unsigned fast_call_bits(const struct decoder *d)
{
	unsigned bits = fast_bits(d);

	return (bits == 64 && stack_fast_64(d->mode)) || (bits == 32 && stack_fast_32(d->mode)) ? bits : 0;
}

static struct insn *emit_branch(struct decoder *d, any_handler run)
{
	struct insn *insn = emit_terminal(d, run);

	insn->b = (uint8_t)(operand_bits(d) / 8);
	if (is_direct(d)) {
		int64_t target = relative_target(d);
		if (target == (int32_t)target) {
			insn->displacement = (int32_t)target;
		} else {
			insn->displacement = (int32_t)d->operand[0].imm.value.s;
			insn->index = (uint16_t)(d->offset + d->instruction.length);
		}
	}
	return insn;
}

static int jcc_condition(const struct decoder *d)
{
	/* The opcode's low bits say it: 70-7F, 0F 80-8F. */
	return d->instruction.opcode & 15;
}

/* 70-7F and 0F 80-8F: Zydis files XBEGIN, XEND and Knights Corner's VEX-coded branches under conditional branches as well. */
static bool is_jcc(const ZydisDecodedInstruction *i)
{
	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		return false;
	return (i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (i->opcode & 0xf0) == 0x70) ||
	       (i->opcode_map == ZYDIS_OPCODE_MAP_0F && (i->opcode & 0xf0) == 0x80);
}

static bool jcc_decode(struct decoder *d)
{
	unsigned bits = fast_bits(d);
	int condition = jcc_condition(d);

	if (bits == 64)
		emit_branch(d, jcc_64[condition]);
	else if (bits == 32)
		emit_branch(d, jcc_32[condition]);
	else
		emit_branch(d, jcc_general)->a = (uint8_t)condition;
	return true;
}

/* On AMD's processors F2 and F3 decide between LOOPNE and LOOPE, whatever the opcode says (measured on Zen 4). */
static unsigned loop_kind_by_prefix(const struct decoder *d, unsigned kind)
{
	const struct cpu_model *model = d->vcpu->model;

	if (!model || !model->amd || (kind != LOOPE && kind != LOOPNE))
		return kind;
	for (unsigned i = 0; i < d->instruction.raw.prefix_count; i++) {
		if (d->instruction.raw.prefixes[i].value == 0xf2)
			kind = LOOPNE;
		else if (d->instruction.raw.prefixes[i].value == 0xf3)
			kind = LOOPE;
	}
	return kind;
}

static bool loop_decode(struct decoder *d, unsigned kind)
{
	kind = loop_kind_by_prefix(d, kind);
	struct insn *insn = emit_branch(d, loop_general);

	insn->a = (uint8_t)kind;
	insn->base = (uint16_t)(d->instruction.address_width / 8);
	return true;
}

static bool indirect_decode(struct decoder *d, bool call)
{
	const ZydisDecodedOperand *operand = &d->operand[0];
	unsigned bits = call ? fast_call_bits(d) : fast_bits(d);
	struct insn *insn;

	if (is_memory(operand)) {
		handler_at *run = call ? (bits == 64   ? call_memory_64
		                          : bits == 32 ? call_memory_32
		                                       : call_memory)
		                       : (bits == 64   ? jmp_memory_64
		                          : bits == 32 ? jmp_memory_32
		                                       : jmp_memory);
		emit_address(d, operand, operand_bits(d) / 8, false);
		emit_branch(d, run);
		return true;
	}
	insn = emit_branch(d, call ? (bits == 64   ? call_register_64
	                              : bits == 32 ? call_register_32
	                                           : call_register_general)
	                           : (bits == 64   ? jmp_register_64
	                              : bits == 32 ? jmp_register_32
	                                           : jmp_register_general));
	insn->a = (uint8_t)register_offset(operand->reg.value);
	return true;
}

static bool ret_decode(struct decoder *d)
{
	unsigned bits = fast_call_bits(d);
	struct insn *insn = emit_branch(d, bits == 64 ? ret_64 : bits == 32 ? ret_32 : ret_general);

	insn->displacement = is_immediate(&d->operand[0]) && d->instruction.operand_count_visible
	                         ? (int32_t)(uint16_t)d->operand[0].imm.value.u
	                         : 0;
	return true;
}

void emit_block_end(struct decoder *d)
{
	bool wide = decoder_64(d), flat = (d->mode & (MODE_SIZE | MODE_FLAT)) == (MODE_32 | MODE_FLAT);
	struct insn *insn = emit_terminal(d, wide ? block_end_64 : flat ? block_end_32 : block_end_general);

	insn->number = (uint8_t)(d->number ? d->number - 1 : 0) & 0x7f;
}

bool control_decode(struct decoder *d)
{
	const ZydisDecodedInstruction *i = &d->instruction;
	unsigned bits;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return false;
		if (!is_immediate(&d->operand[0]))
			return indirect_decode(d, false);
		bits = fast_bits(d);
		emit_branch(d, bits == 64 ? jmp_64 : bits == 32 ? jmp_32 : jmp_general);
		return true;
	case ZYDIS_MNEMONIC_CALL:
		if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			return false;
		if (!is_immediate(&d->operand[0]))
			return indirect_decode(d, true);
		bits = fast_call_bits(d);
		emit_branch(d, bits == 64 ? call_64 : bits == 32 ? call_32 : call_general);
		return true;
	case ZYDIS_MNEMONIC_RET:
		return i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? false : ret_decode(d);
	case ZYDIS_MNEMONIC_LOOP:
		return loop_decode(d, LOOP);
	case ZYDIS_MNEMONIC_LOOPE:
		return loop_decode(d, LOOPE);
	case ZYDIS_MNEMONIC_LOOPNE:
		return loop_decode(d, LOOPNE);
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		return loop_decode(d, JCXZ);
	default:
		return is_jcc(i) && jcc_decode(d);
	}
}
