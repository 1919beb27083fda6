/*
 * Plain moves of vector registers: loads, stores and copies, by far the most frequent vector instructions. Each slot
 * also has the host-executed form, which takes over whenever something is not plain: class disabled, TLB miss,
 * misaligned.
 */
#include <string.h>

#include "engines/interpreter/decode.h"
#include "engines/interpreter/native_call.h"

/* insn->a is the register's number. */
#define VECTOR(n) (vcpu->state.vector.zmm[n])

ALWAYS_INLINE bool plain(struct vcpu *vcpu, const struct native_form *form, uint64_t linear)
{
	return likely(!(vcpu->classes_disabled & form->class_needed) && !(linear & (form->alignment - 1u)));
}

/* `cleared` is how much of the register is written in all: 16 bytes by SSE's scalar loads, all 64 by VEX. */
#define VECTOR_LOAD(kind, name, bytes, cleared)                                                                        \
	static void name##_##kind(PARAMETERS_##kind)                                                                   \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		struct mmu_tlb_entry *entry = READ_ENTRY(linear);                                                      \
		if (!HIT(entry, linear, bytes) || !plain(vcpu, insn->pointer, linear))                                 \
			return native_read(ARGUMENTS, linear);                                                         \
		memcpy(VECTOR(insn->a), (const void *)(entry->host + linear), bytes);                                  \
		memset(VECTOR(insn->a) + (bytes), 0, (cleared) - (bytes));                                             \
		NEXT;                                                                                                  \
	}
#define VECTOR_STORE(kind, name, bytes, unused)                                                                        \
	static void name##_##kind(PARAMETERS_##kind)                                                                   \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(linear);                                                     \
		if (!HIT(entry, linear, bytes) || !plain(vcpu, insn->pointer, linear))                                 \
			return native_write(ARGUMENTS, linear);                                                        \
		memcpy((void *)(entry->host + linear), VECTOR(insn->a), bytes);                                        \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}
#define VECTOR_COPY(name, bytes, cleared)                                                                              \
	static void name(PARAMETERS)                                                                                   \
	{                                                                                                              \
		const struct native_form *form = insn->pointer;                                                        \
		if (unlikely(vcpu->classes_disabled & form->class_needed))                                             \
			return native_plain(ARGUMENTS);                                                                \
		memmove(VECTOR(insn->a), VECTOR(insn->b), bytes);                                                      \
		memset(VECTOR(insn->a) + (bytes), 0, (cleared) - (bytes));                                             \
		NEXT;                                                                                                  \
	}

KINDS(VECTOR_LOAD, load_4, 4, 16)
KINDS(VECTOR_LOAD, load_8, 8, 16)
KINDS(VECTOR_LOAD, load_16, 16, 16)
KINDS(VECTOR_LOAD, vex_load_4, 4, 64)
KINDS(VECTOR_LOAD, vex_load_8, 8, 64)
KINDS(VECTOR_LOAD, vex_load_16, 16, 64)
KINDS(VECTOR_LOAD, vex_load_32, 32, 64)
KINDS(VECTOR_STORE, store_4, 4, 0)
KINDS(VECTOR_STORE, store_8, 8, 0)
KINDS(VECTOR_STORE, store_16, 16, 0)
KINDS(VECTOR_STORE, store_32, 32, 0)
VECTOR_COPY(copy_16, 16, 16)
VECTOR_COPY(vex_copy_16, 16, 64)
VECTOR_COPY(vex_copy_32, 32, 64)

/* By log2(bytes) - 2. */
static memory_table loads[] = {KIND_TABLE(load_4), KIND_TABLE(load_8), KIND_TABLE(load_16)};
static memory_table vex_loads[] = {KIND_TABLE(vex_load_4), KIND_TABLE(vex_load_8), KIND_TABLE(vex_load_16),
                                   KIND_TABLE(vex_load_32)};
static memory_table stores[] = {KIND_TABLE(store_4), KIND_TABLE(store_8), KIND_TABLE(store_16), KIND_TABLE(store_32)};

/* Is it a move of a whole operand between a vector register and memory or another one? */
static bool is_move(ZydisMnemonic mnemonic, bool memory)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_MOVAPS:
	case ZYDIS_MNEMONIC_MOVAPD:
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVUPS:
	case ZYDIS_MNEMONIC_VMOVUPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVDQU:
		return true;
	case ZYDIS_MNEMONIC_MOVSS: /* between registers these merge */
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVQ:
	case ZYDIS_MNEMONIC_VMOVSS:
	case ZYDIS_MNEMONIC_VMOVSD:
	case ZYDIS_MNEMONIC_VMOVQ:
		return memory;
	default:
		return false;
	}
}

/* The register's number, or -1 when it is none of XMM0-15, YMM0-15. */
static int vector_number(const ZydisDecodedOperand *operand)
{
	ZydisRegister r = operand->reg.value;

	if (!is_register(operand))
		return -1;
	if (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM15)
		return (int)(r - ZYDIS_REGISTER_XMM0);
	if (r >= ZYDIS_REGISTER_YMM0 && r <= ZYDIS_REGISTER_YMM15)
		return (int)(r - ZYDIS_REGISTER_YMM0);
	return -1;
}

struct insn *vector_move_decode(struct decoder *d, const struct native_form *form)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	bool vex = d->instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	bool legacy = d->instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
	bool load = is_memory(from), store = is_memory(to);
	int number = vector_number(store ? from : to);
	unsigned bytes = form->memory_size;
	struct insn *insn;

	if ((!vex && !legacy) || d->instruction.operand_count_visible != 2 || number < 0 || (d->mode & MODE_ALIGN) ||
	    !is_move(d->instruction.mnemonic, load || store))
		return NULL;
	if (load || store) {
		if (bytes != 4 && bytes != 8 && bytes != 16 && !(bytes == 32 && vex))
			return NULL;
		unsigned size = (unsigned)__builtin_ctz(bytes) - 2;
		insn = emit_memory(d, load ? from : to, bytes, store,
		                   store ? stores[size]
		                   : vex ? vex_loads[size]
		                         : loads[size]);
	} else {
		int source = vector_number(from);
		if (source < 0)
			return NULL;
		insn = emit(d, !vex ? copy_16 : d->instruction.avx.vector_length == 256 ? vex_copy_32 : vex_copy_16);
		insn->b = (uint8_t)source;
	}
	insn->a = (uint8_t)number;
	return insn;
}
