/*
 * One instruction from bytes to slots: operands, address kinds, and the choice of the family that knows the mnemonic.
 */
#include "engines/interpreter/decode.h"

#define ZERO offsetof(struct vcpu, zero)

_Static_assert(offsetof(struct vcpu, state.rip) == offsetof(struct vcpu, state.gpr) + 8 * GPR_COUNT,
               "RIP is addressed like a general register");
_Static_assert(offsetof(struct vcpu, state.rip) < 256, "registers are named by a byte");
_Static_assert(ZERO < 65536, "slots hold 16-bit offsets");

unsigned register_offset(ZydisRegister reg)
{
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_R15B) {
		unsigned n = (unsigned)(reg - ZYDIS_REGISTER_AL);
		/* AL CL DL BL, AH CH DH BH, SPL BPL SIL DIL, R8B ... */
		if (n < 4)
			return GPR_OFFSET(n);
		if (n < 8)
			return GPR_OFFSET(n - 4) + 1;
		return GPR_OFFSET(n - 4);
	}
	if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
		return offsetof(struct vcpu, state.rip);
	return GPR_OFFSET((unsigned)ZydisRegisterGetId(reg) & 15);
}

enum segment_register operand_segment(const ZydisDecodedOperand *operand)
{
	switch (operand->mem.segment) {
	case ZYDIS_REGISTER_ES:
		return SEG_ES;
	case ZYDIS_REGISTER_CS:
		return SEG_CS;
	case ZYDIS_REGISTER_SS:
		return SEG_SS;
	case ZYDIS_REGISTER_FS:
		return SEG_FS;
	case ZYDIS_REGISTER_GS:
		return SEG_GS;
	default:
		return SEG_DS;
	}
}

uint64_t decoder_immediate(const struct decoder *d, const ZydisDecodedOperand *operand)
{
	return operand->imm.is_signed ? (uint64_t)operand->imm.value.s : operand->imm.value.u;
}

struct insn *emit(struct decoder *d, any_handler run)
{
	struct insn *insn = d->next++;

	*insn = (struct insn){
	    .run = run.run,
	    .base = ZERO,
	    .index = ZERO,
	    .segment_base = ZERO,
	    .offset = (uint16_t)d->offset,
	};
	insn->number = d->number & 0x7f;
	return insn;
}

/* What the slot behind an address slot has to know of the segment. */
static void copy_segment(struct insn *insn)
{
	insn->stack_segment = insn[-1].stack_segment;
	insn->segment_base = insn[-1].segment_base;
}

struct insn *emit_terminal(struct decoder *d, any_handler run)
{
	struct insn *insn = emit(d, run);

	insn->base = insn->index = insn->segment_base = 0;
	if (insn > d->block->insn && insn[-1].offset == insn->offset) /* behind its address slot */
		copy_segment(insn);
	insn->scale = d->instruction.length;
	insn->pointer = d->block;
	d->terminal = true;
	return insn;
}

/* A SIB byte without a base: 32 bits of displacement instead, whatever REX.B says (SDM 2A table 2-3). */
static bool base_missing(const struct decoder *d)
{
	const ZydisDecodedInstruction *i = &d->instruction;

	return (i->attributes & ZYDIS_ATTRIB_HAS_SIB) && i->address_width != 16 && i->raw.modrm.mod == 0 &&
	       i->raw.sib.base == 5;
}

/* What does not fit into the displacement goes into the immediate; only address_general and lea_general look there. */
unsigned fill_address(struct decoder *d, struct insn *insn, const ZydisDecodedOperand *operand)
{
	const ZydisDecodedOperandMem *mem = &operand->mem;
	int64_t displacement = mem->disp.has_displacement ? mem->disp.value : 0;

	insn->base = insn->index = ZERO;
	if (base_missing(d)) { /* Zydis 4.0 forgets that with 67h and REX.B */
		displacement = d->instruction.raw.disp.value;
	} else if (mem->base != ZYDIS_REGISTER_NONE) {
		insn->base = (uint16_t)register_offset(mem->base);
	}
	if (mem->base == ZYDIS_REGISTER_RIP || mem->base == ZYDIS_REGISTER_EIP)
		displacement += (int64_t)d->offset + d->instruction.length;
	insn->scale = 0;
	if (mem->index != ZYDIS_REGISTER_NONE) {
		insn->index = (uint16_t)register_offset(mem->index);
		insn->scale = mem->scale ? (uint8_t)__builtin_ctz(mem->scale) : 0;
	}
	insn->displacement = (int32_t)displacement;
	if (displacement != (int32_t)displacement) {
		insn->displacement = 0;
		insn->immediate = (uint64_t)displacement;
	}
	return d->instruction.address_width / 8;
}

/* The kind of operand whose address `insn` has by fill_address(); KIND_AT: it needs address_general. */
static enum address_kind address_kind(const struct decoder *d, const struct insn *insn, enum segment_register segment,
                                      unsigned address_size, bool write)
{
	bool simple = insn->index == ZERO && insn->segment_base == ZERO;

	if ((d->mode & MODE_ALIGN) || insn->immediate)
		return KIND_AT;
	if (decoder_64(d)) {
		if (address_size == 8)
			return insn->segment_base != ZERO ? KIND_AT : simple ? KIND_B64 : KIND_F64;
		return simple ? KIND_B32 : KIND_F32;
	}
	if (!(d->mode & MODE_FLAT) || address_size != 4 || segment == SEG_FS || segment == SEG_GS ||
	    (segment == SEG_CS && write))
		return KIND_AT;
	return simple ? KIND_B32 : KIND_F32;
}

static handler *const address_slots[KIND_COUNT] = {address_general, address_b64, address_f64, address_b32, address_f32};

/* Emits a slot with an operand's address in it, with the address slot's handler. */
static struct insn *emit_operand(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write,
                                 enum address_kind *kind)
{
	struct insn *insn = emit(d, address_general);
	enum segment_register segment = operand_segment(operand);
	unsigned address_size = fill_address(d, insn, operand);

	if (segment == SEG_FS || segment == SEG_GS)
		insn->segment_base = (uint16_t)offsetof(struct vcpu, state.segment[segment].base);
	insn->stack_segment = segment == SEG_SS;
	*kind = address_kind(d, insn, segment, address_size, write);
	insn->run = address_slots[*kind];
	if (*kind == KIND_AT && insn->segment_base != ZERO && address_size == 8 && !(d->mode & MODE_ALIGN) &&
	    !insn->immediate) {
		insn->run = address_s64;
	} else if (*kind == KIND_AT) {
		bool power = size && !(size & (size - 1)) && size <= 8;
		insn->a = (uint8_t)(size < 255 ? size : 255);
		insn->b = (uint8_t)((write ? GENERAL_WRITE : 0) | (power ? GENERAL_ALIGN : 0) |
		                    (address_size == 4   ? GENERAL_MASK32
		                     : address_size == 2 ? GENERAL_MASK16
		                                         : 0) |
		                    segment << 4);
	}
	return insn;
}

void emit_address(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write)
{
	enum address_kind kind;

	emit_operand(d, operand, size, write, &kind);
}

struct insn *emit_memory_at(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write,
                            handler_at *run)
{
	emit_address(d, operand, size, write);
	struct insn *insn = emit(d, run);
	copy_segment(insn);
	return insn;
}

struct insn *emit_memory(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write,
                         memory_table table)
{
	enum address_kind kind;
	struct insn *insn = emit_operand(d, operand, size, write, &kind);

	if (kind != KIND_AT && table[kind].run) {
		insn->run = table[kind].run;
		return insn;
	}
	insn = emit(d, (any_handler){.run_at = table[KIND_AT].run_at});
	copy_segment(insn);
	return insn;
}

void decode_instruction(struct decoder *d)
{
	static bool (*const families[])(struct decoder *) = {
	    move_decode,     alu_decode, control_decode, stack_decode,  condition_decode, shift_decode,  string_decode,
	    multiply_decode, bit_decode, segment_decode, system_decode, io_decode,        legacy_decode, native_decode,
	};

	for (unsigned i = 0; i < sizeof(families) / sizeof(families[0]); i++)
		if (families[i](d))
			return;
	emit_invalid(d);
}
