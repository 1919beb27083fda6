/*
 * From Zydis' view of an instruction to slots of a block.
 *
 * decode.c finds the family of a mnemonic; a family's `*_decode` emits the slots and returns true, or false: not one of
 * mine (then the host may execute it, or it is #UD).
 */
#pragma once

#include <Zydis/Zydis.h>

#include "engines/interpreter/access.h"

struct decoder {
	struct vcpu *vcpu;
	struct interpreter *interpreter;
	uint32_t mode;
	ZydisDecodedInstruction instruction;
	ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
	const uint8_t *bytes; /* of the instruction */
	struct block *block;
	struct insn *next; /* free slot */
	unsigned offset;   /* of the instruction in the block */
	unsigned number;
	unsigned size; /* effective operand size in bytes */
	bool terminal; /* set by the family: the block ends here */
};

ALWAYS_INLINE bool decoder_64(const struct decoder *d)
{
	return (d->mode & MODE_SIZE) == MODE_64;
}

/* A new slot. */
struct insn *emit(struct decoder *d, any_handler run);
/* A terminal slot: `immediate` (as pointer) is the block, `scale` the instruction's length. */
struct insn *emit_terminal(struct decoder *d, any_handler run);

/*
 * Emits the handler of a memory operand's kind out of `table` (KIND_COUNT of them; NULL: none of its own), or an
 * address slot and table[KIND_AT]. `write` is for segmentation. Returns the operation's slot.
 */
struct insn *emit_memory(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write,
                         memory_table table);
/* An address slot, whatever the kind; the slot behind it takes the linear address. */
void emit_address(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write);
/* Both: an address slot, whatever the kind, and `run` behind it. */
struct insn *emit_memory_at(struct decoder *d, const ZydisDecodedOperand *operand, unsigned size, bool write,
                            handler_at *run);
/* Fills base, index, scale and displacement of an effective address (without segment). Returns the address size in
 * bytes. */
unsigned fill_address(struct decoder *d, struct insn *insn, const ZydisDecodedOperand *operand);
enum segment_register operand_segment(const ZydisDecodedOperand *operand);

/* Byte offset of a general register in struct vcpu (also AH and its like, RIP). */
unsigned register_offset(ZydisRegister reg);

/* Memory that lives as long as the block, or NULL. */
void *block_allocate(struct decoder *d, size_t bytes);

static inline bool is_register(const ZydisDecodedOperand *operand)
{
	return operand->type == ZYDIS_OPERAND_TYPE_REGISTER;
}
static inline bool is_memory(const ZydisDecodedOperand *operand)
{
	return operand->type == ZYDIS_OPERAND_TYPE_MEMORY;
}
static inline bool is_immediate(const ZydisDecodedOperand *operand)
{
	return operand->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}
static inline bool is_general_register(const ZydisDecodedOperand *operand)
{
	return is_register(operand) && operand->reg.value >= ZYDIS_REGISTER_AL &&
	       operand->reg.value <= ZYDIS_REGISTER_R15;
}
/* 1, 2, 4, 8 to 0, 1, 2, 3. */
static inline unsigned size_index(unsigned bytes)
{
	return (unsigned)__builtin_ctz(bytes);
}
static inline bool has_prefix(const struct decoder *d, uint64_t attribute)
{
	return d->instruction.attributes & attribute;
}

/* An immediate as the instruction uses it: sign-extended where the manual says so, else zero-extended. */
uint64_t decoder_immediate(const struct decoder *d, const ZydisDecodedOperand *operand);

/* One instruction at d->instruction: emits its slots. */
void decode_instruction(struct decoder *d);
/* Slots that raise: invalid instruction, too long (#GP). */
void emit_invalid(struct decoder *d);
void emit_too_long(struct decoder *d);
/* The slot that ends a block behind an instruction that is not terminal. */
void emit_block_end(struct decoder *d);

/* Slots that check a condition before an operand is looked at (system.c): CPL 0, else #GP; protected mode, else #UD. */
handler check_cpl0, check_protected;

bool move_decode(struct decoder *d);
bool alu_decode(struct decoder *d);
bool shift_decode(struct decoder *d);
bool multiply_decode(struct decoder *d);
bool bit_decode(struct decoder *d);
bool condition_decode(struct decoder *d);
bool control_decode(struct decoder *d);
bool stack_decode(struct decoder *d);
bool string_decode(struct decoder *d);
bool legacy_decode(struct decoder *d);
bool system_decode(struct decoder *d);
bool segment_decode(struct decoder *d);
bool io_decode(struct decoder *d);
bool native_decode(struct decoder *d);
