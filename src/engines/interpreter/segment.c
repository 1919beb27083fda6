/*
 * Segment registers and far transfers: MOV, PUSH, POP of segment registers, LES and its like, far JMP, CALL and RET,
 * LLDT, LTR, LAR, LSL, VERR, VERW, ARPL. The rules are in x86/segments.h.
 */
#include "x86/segments.h"

#include "engines/interpreter/decode.h"
#include "engines/interpreter/stack.h"
#include "x86/system.h"

/*
 * A load of SS keeps interrupts and debug traps away from the next instruction (SDM 3A 6.8.3): it is terminal. After one of
 * another the block goes on, but where DS or ES has become flat, or is it no more.
 */
static void loaded(PARAMETERS, uint64_t block_rip)
{
	if (insn->b == SEG_SS) {
		vcpu->state.interrupt_shadow = SHADOW_MOV_SS;
		vcpu->state.rip = following_rip(vcpu, insn);
		return leave_exact(vcpu, insn, true);
	}
	if (likely(!code_mode_changed(vcpu)))
		EXACT_LEAVE;
	vcpu->state.rip = (block_rip + insn[1].offset) & interpreter_of(vcpu)->rip_mask;
	return leave_exact(vcpu, insn, true);
}

/* MOV to a segment register: a is the source, b the segment. */
static void mov_to_segment(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	segment_load(vcpu, (enum segment_register)insn->b, REG16(insn->a));
	return loaded(ARGUMENTS, block_rip);
}

static void mov_to_segment_memory(PARAMETERS, uint64_t linear)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	segment_load(vcpu, (enum segment_register)insn->b, (uint16_t)slow_read(vcpu, insn, linear, 2));
	return loaded(ARGUMENTS, block_rip);
}

/* MOV from one: scale is the register's width. */
static void mov_from_segment(PARAMETERS)
{
	uint16_t selector = vcpu->state.segment[insn->b].selector;

	if (insn->scale == 2)
		write16(vcpu, insn->a, selector);
	else
		write64(vcpu, insn->a, selector);
	NEXT;
}

static void mov_from_segment_memory(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	slow_write(vcpu, insn, linear, 2, vcpu->state.segment[insn->b].selector);
	NEXT_SLOW;
}

static void push_segment(PARAMETERS)
{
	uint64_t pointer = stack_pointer(vcpu) - insn->a;

	SLOW_ENTER;
	stack_write(vcpu, pointer, insn->a, vcpu->state.segment[insn->b].selector);
	stack_set_pointer(vcpu, pointer);
	NEXT_SLOW;
}

static void pop_segment(PARAMETERS)
{
	uint64_t pointer = stack_pointer(vcpu), block_rip = exact_enter(vcpu, insn, flags);
	uint16_t selector = (uint16_t)stack_read(vcpu, pointer, insn->a);
	/* POP SS: the pointer moves by the old stack's address size. */
	uint64_t mask = stack_mask(vcpu), moved = pointer + insn->a;
	segment_load(vcpu, (enum segment_register)insn->b, selector);
	if (mask == 0xffff)
		write16(vcpu, GPR_OFFSET(RSP), (uint16_t)moved);
	else
		vcpu->state.gpr[RSP] = moved & mask;
	return loaded(ARGUMENTS, block_rip);
}

/* LES, LDS, LSS, LFS, LGS: base is the offset's size. */
static void load_far_pointer(PARAMETERS, uint64_t linear)
{
	unsigned size = insn->base;

	exact_enter(vcpu, insn, flags);
	check_alignment(vcpu, linear, size);
	slow_check(vcpu, insn, linear, size + 2);
	uint64_t offset = mmu_read(vcpu, linear, size);
	uint16_t selector = (uint16_t)mmu_read(vcpu, linear + size, 2);
	segment_load(vcpu, (enum segment_register)insn->b, selector);
	if (size == 2)
		write16(vcpu, insn->a, (uint16_t)offset);
	else
		write64(vcpu, insn->a, offset);
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true); /* LSS starts no shadow: it has loaded the pointer as well */
}

/* Far transfers: b is the operand size; a direct one has its selector in `base`, its offset in `displacement`. */
static void far_jump(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_far_jump(vcpu, insn->base, (uint32_t)insn->displacement, insn->b, following_rip(vcpu, insn));
	return leave_exact(vcpu, insn, true);
}

static void far_call(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	stack_check_alignment(vcpu, insn->b);
	x86_far_call(vcpu, insn->base, (uint32_t)insn->displacement, insn->b, following_rip(vcpu, insn));
	return leave_exact(vcpu, insn, true);
}

static void far_memory(PARAMETERS, uint64_t linear)
{
	unsigned size = insn->base; /* of the offset */

	exact_enter(vcpu, insn, flags);
	check_alignment(vcpu, linear, size);
	slow_check(vcpu, insn, linear, size + 2);
	uint64_t offset = mmu_read(vcpu, linear, size);
	uint16_t selector = (uint16_t)mmu_read(vcpu, linear + size, 2);
	if (insn->a) {
		stack_check_alignment(vcpu, insn->b);
		x86_far_call(vcpu, selector, offset, insn->b, following_rip(vcpu, insn));
	} else
		x86_far_jump(vcpu, selector, offset, insn->b, following_rip(vcpu, insn));
	return leave_exact(vcpu, insn, true);
}

static void far_return(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	stack_check_alignment(vcpu, insn->b);
	x86_far_return(vcpu, insn->b, (uint16_t)insn->displacement, following_rip(vcpu, insn));
	return leave_exact(vcpu, insn, true);
}

/* Instructions on a selector from a register or memory: LLDT, LTR, VERR, VERW, LAR, LSL. None is known in real and
 * virtual-8086 mode. */
enum { OP_LLDT, OP_LTR, OP_VERR, OP_VERW, OP_LAR, OP_LSL };

static void set_zf(struct vcpu *vcpu, bool value)
{
	vcpu->state.rflags = (vcpu->state.rflags & ~FLAG_ZF) | (value ? FLAG_ZF : 0);
}

/* a: destination of LAR and LSL; base: its width; index: which instruction. */
static void selector_operation(struct vcpu *vcpu, const struct insn *insn, uint16_t selector)
{
	uint32_t result;
	bool valid;

	switch (insn->index) {
	case OP_LLDT:
		x86_lldt(vcpu, selector);
		break;
	case OP_LTR:
		x86_ltr(vcpu, selector);
		break;
	case OP_VERR:
	case OP_VERW:
		set_zf(vcpu, x86_verify(vcpu, selector, insn->index == OP_VERW));
		break;
	default:
		valid = insn->index == OP_LAR ? x86_lar(vcpu, selector, &result) : x86_lsl(vcpu, selector, &result);
		if (valid && insn->base == 2)
			write16(vcpu, insn->a, (uint16_t)result);
		else if (valid)
			write32(vcpu, insn->a, result);
		set_zf(vcpu, valid);
	}
}

static void require_protected(struct vcpu *vcpu)
{
	if (cpu_real_or_vm86(&vcpu->state))
		x86_raise(vcpu, VECTOR_UD);
}

static void selector_register(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	require_protected(vcpu);
	selector_operation(vcpu, insn, REG16(insn->b));
	EXACT_LEAVE;
}

static void selector_memory(PARAMETERS, uint64_t linear)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	selector_operation(vcpu, insn, (uint16_t)slow_read(vcpu, insn, linear, 2));
	EXACT_LEAVE;
}

/* ARPL: the destination's RPL becomes at least the source's. a: source. */
static uint16_t arpl_result(uint16_t destination, uint16_t source, bool *adjusted)
{
	*adjusted = (destination & 3) < (source & 3);
	return *adjusted ? (uint16_t)((destination & ~3u) | (source & 3)) : destination;
}

static void arpl_register(PARAMETERS)
{
	bool adjusted;
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	require_protected(vcpu);
	write16(vcpu, insn->b, arpl_result(REG16(insn->b), REG16(insn->a), &adjusted));
	set_zf(vcpu, adjusted);
	EXACT_LEAVE;
}

static void arpl_memory(PARAMETERS, uint64_t linear)
{
	bool adjusted;
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	/* Written only when it changes, as on the silicon. */
	uint16_t result = arpl_result((uint16_t)slow_read(vcpu, insn, linear, 2), REG16(insn->a), &adjusted);
	if (adjusted) {
		const struct segment *segment = &vcpu->state.segment[insn->b];
		if ((segment->access & SEG_CODE) || !(segment->access & SEG_WRITABLE))
			x86_raise(vcpu, VECTOR_GP);
		mmu_write(vcpu, linear, 2, result);
	}
	set_zf(vcpu, adjusted);
	EXACT_LEAVE;
}

/* Decoding. */

static bool is_segment(const ZydisDecodedOperand *operand)
{
	return is_register(operand) && ZydisRegisterGetClass(operand->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static uint8_t segment_number(const ZydisDecodedOperand *operand)
{
	return (uint8_t)ZydisRegisterGetId(operand->reg.value);
}

static bool mov_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	struct insn *insn;

	if (is_segment(to)) {
		if (segment_number(to) == SEG_CS)
			return false;
		bool stack = segment_number(to) == SEG_SS;
		if (is_memory(from) && stack) {
			emit_address(d, from, 2, false);
			insn = emit_terminal(d, mov_to_segment_memory);
		} else if (is_memory(from)) {
			insn = emit_memory_at(d, from, 2, false, mov_to_segment_memory);
		} else {
			insn = stack ? emit_terminal(d, mov_to_segment) : emit(d, mov_to_segment);
			insn->a = (uint8_t)register_offset(from->reg.value);
		}
		insn->b = segment_number(to);
		return true;
	}
	if (!is_segment(from))
		return false;
	if (is_memory(to)) {
		emit_memory_at(d, to, 2, true, mov_from_segment_memory)->b = segment_number(from);
		return true;
	}
	insn = emit(d, mov_from_segment);
	insn->a = (uint8_t)register_offset(to->reg.value);
	insn->b = segment_number(from);
	insn->scale = (uint8_t)(to->size / 8);
	return true;
}

static bool stack_segment_decode(struct decoder *d, bool pop)
{
	struct insn *insn;

	if (!is_segment(&d->operand[0]))
		return false;
	uint8_t segment = segment_number(&d->operand[0]);
	insn = !pop ? emit(d, push_segment) : segment == SEG_SS ? emit_terminal(d, pop_segment) : emit(d, pop_segment);
	insn->a = (uint8_t)(d->instruction.operand_width / 8);
	insn->b = segment;
	return true;
}

/* The offset's size. AMD has no 64-bit offset in memory (APM 3, LFS, JMP Far): REX.W is ignored. */
static unsigned far_offset_size(const struct decoder *d)
{
	unsigned size = d->instruction.operand_width / 8;

	return size == 8 && d->vcpu->model && d->vcpu->model->amd ? 4 : size;
}

static void emit_far_address(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size)
{
	emit_address(d, operand, size + 2, false);
	if (d->next[-1].run == address_general)
		d->next[-1].b &= (uint8_t)~GENERAL_ALIGN; /* of the offset alone: the handler checks it */
}

static bool far_pointer_decode(struct decoder *d, enum segment_register segment)
{
	unsigned size = far_offset_size(d);
	struct insn *insn;

	emit_far_address(d, &d->operand[1], size);
	insn = emit_terminal(d, load_far_pointer);
	insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
	insn->b = (uint8_t)segment;
	insn->base = (uint16_t)size;
	return true;
}

static bool far_decode(struct decoder *d, bool call)
{
	const ZydisDecodedOperand *operand = &d->operand[0];
	unsigned size = d->instruction.operand_width / 8;
	struct insn *insn;

	if (d->instruction.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
		return false;
	if (operand->type == ZYDIS_OPERAND_TYPE_POINTER) {
		insn = emit_terminal(d, call ? far_call : far_jump);
		insn->base = operand->ptr.segment;
		insn->displacement = (int32_t)(size == 2 ? operand->ptr.offset & 0xffff : operand->ptr.offset);
	} else {
		emit_far_address(d, operand, far_offset_size(d));
		insn = emit_terminal(d, far_memory);
		insn->base = (uint16_t)far_offset_size(d);
		insn->a = call;
	}
	insn->b = (uint8_t)size;
	return true;
}

static bool far_return_decode(struct decoder *d)
{
	struct insn *insn;

	if (d->instruction.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
		return false;
	insn = emit_terminal(d, far_return);
	insn->b = (uint8_t)(d->instruction.operand_width / 8);
	if (d->instruction.operand_count_visible && is_immediate(&d->operand[0]))
		insn->displacement = (int32_t)(d->operand[0].imm.value.u & 0xffff);
	return true;
}

static bool selector_decode(struct decoder *d, unsigned operation)
{
	const ZydisDecodedOperand *from = &d->operand[operation >= OP_LAR ? 1 : 0];
	struct insn *insn;

	if (is_memory(from)) {
		emit(d, check_protected);
		if (operation <= OP_LTR)
			emit(d, check_cpl0);
		insn = emit_memory_at(d, from, 2, false, selector_memory);
	} else {
		insn = emit(d, selector_register);
		insn->b = (uint8_t)register_offset(from->reg.value);
	}
	if (operation >= OP_LAR) {
		insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
		insn->base = (uint16_t)(d->operand[0].size / 8);
	}
	insn->index = (uint16_t)operation;
	return true;
}

static bool arpl_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0];
	struct insn *insn;

	if (is_memory(to)) {
		emit(d, check_protected);
		insn = emit_memory_at(d, to, 2, false, arpl_memory);
		insn->b = (uint8_t)operand_segment(to);
	} else {
		insn = emit(d, arpl_register);
		insn->b = (uint8_t)register_offset(to->reg.value);
	}
	insn->a = (uint8_t)register_offset(d->operand[1].reg.value);
	return true;
}

bool segment_decode(struct decoder *d)
{
	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_decode(d);
	case ZYDIS_MNEMONIC_PUSH:
		return stack_segment_decode(d, false);
	case ZYDIS_MNEMONIC_POP:
		return stack_segment_decode(d, true);
	case ZYDIS_MNEMONIC_LES:
		return far_pointer_decode(d, SEG_ES);
	case ZYDIS_MNEMONIC_LDS:
		return far_pointer_decode(d, SEG_DS);
	case ZYDIS_MNEMONIC_LSS:
		return far_pointer_decode(d, SEG_SS);
	case ZYDIS_MNEMONIC_LFS:
		return far_pointer_decode(d, SEG_FS);
	case ZYDIS_MNEMONIC_LGS:
		return far_pointer_decode(d, SEG_GS);
	case ZYDIS_MNEMONIC_JMP:
		return far_decode(d, false);
	case ZYDIS_MNEMONIC_CALL:
		return far_decode(d, true);
	case ZYDIS_MNEMONIC_RET:
		return far_return_decode(d);
	case ZYDIS_MNEMONIC_LLDT:
		return selector_decode(d, OP_LLDT);
	case ZYDIS_MNEMONIC_LTR:
		return selector_decode(d, OP_LTR);
	case ZYDIS_MNEMONIC_VERR:
		return selector_decode(d, OP_VERR);
	case ZYDIS_MNEMONIC_VERW:
		return selector_decode(d, OP_VERW);
	case ZYDIS_MNEMONIC_LAR:
		return selector_decode(d, OP_LAR);
	case ZYDIS_MNEMONIC_LSL:
		return selector_decode(d, OP_LSL);
	case ZYDIS_MNEMONIC_ARPL:
		return arpl_decode(d);
	default:
		return false;
	}
}
