/*
 * IMUL with two and three operands, MUL and IMUL by a register, 32 and 64 bits. The rest, and divisions (whose faults
 * come from the silicon), are executed by the host.
 */
#include "engines/interpreter/decode.h"

#define FETCH_FLAGS "\n\tlahf\n\tseto %%al"

#define IMUL(bits, suffix)                                                                                             \
	ALWAYS_INLINE uint32_t imul_##bits(uint##bits##_t *a, uint##bits##_t b)                                        \
	{                                                                                                              \
		uint32_t result;                                                                                       \
		__asm__("imul" suffix " %[b], %[a]" FETCH_FLAGS : [a] "+r"(*a), "=a"(result) : [b] "r"(b) : "cc");     \
		return result;                                                                                         \
	}                                                                                                              \
	static void imul_rr_##bits(PARAMETERS)                                                                         \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		flags = imul_##bits(&value, REG##bits(insn->b));                                                       \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void imul_rri_##bits(PARAMETERS)                                                                        \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->b);                                                             \
		flags = imul_##bits(&value, (uint##bits##_t)insn->immediate);                                          \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE uint32_t imul_load_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags,            \
	                                        uint##bits##_t b)                                                      \
	{                                                                                                              \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		flags = imul_##bits(&value, b);                                                                        \
		write##bits(vcpu, insn->a, value);                                                                     \
		return flags;                                                                                          \
	}                                                                                                              \
	ALWAYS_INLINE uint32_t imul_load_i_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags,          \
	                                          uint##bits##_t value)                                                \
	{                                                                                                              \
		flags = imul_##bits(&value, (uint##bits##_t)insn->immediate);                                          \
		write##bits(vcpu, insn->a, value);                                                                     \
		return flags;                                                                                          \
	}                                                                                                              \
	LOAD(imul_rm_##bits, guest_##bits, imul_load_##bits)                                                           \
	LOAD_AT(imul_rmi_##bits, guest_##bits, imul_load_i_##bits)                                                     \
	/* RDX:RAX = RAX * register */                                                                                 \
	static void wide_imul_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		uint##bits##_t low = REG##bits(GPR_OFFSET(RAX)), high;                                                 \
		uint8_t overflow;                                                                                      \
		__asm__("imul" suffix " %[b]\n\tseto %[o]\n\t"                                                         \
		        : "+a"(low), "=d"(high), [o] "=r"(overflow)                                                    \
		        : [b] "r"(REG##bits(insn->b))                                                                  \
		        : "cc");                                                                                       \
		flags = (flags & ~(HOT_CF | HOT_OF)) | (overflow ? HOT_CF | HOT_OF : 0);                               \
		write##bits(vcpu, GPR_OFFSET(RAX), low);                                                               \
		write##bits(vcpu, GPR_OFFSET(RDX), high);                                                              \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void wide_mul_##bits(PARAMETERS)                                                                        \
	{                                                                                                              \
		uint##bits##_t low = REG##bits(GPR_OFFSET(RAX)), high;                                                 \
		uint8_t overflow;                                                                                      \
		__asm__("mul" suffix " %[b]\n\tseto %[o]\n\t"                                                          \
		        : "+a"(low), "=d"(high), [o] "=r"(overflow)                                                    \
		        : [b] "r"(REG##bits(insn->b))                                                                  \
		        : "cc");                                                                                       \
		flags = (flags & ~(HOT_CF | HOT_OF)) | (overflow ? HOT_CF | HOT_OF : 0);                               \
		write##bits(vcpu, GPR_OFFSET(RAX), low);                                                               \
		write##bits(vcpu, GPR_OFFSET(RDX), high);                                                              \
		NEXT;                                                                                                  \
	}
IMUL(32, "l")
IMUL(64, "q")

static memory_table imul_rm[2] = {KIND_TABLE(imul_rm_32), KIND_TABLE(imul_rm_64)};

bool multiply_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	bool is_imul = d->instruction.mnemonic == ZYDIS_MNEMONIC_IMUL, wide = to->size == 64;
	unsigned count = d->instruction.operand_count_visible;
	struct insn *insn;

	if (to->size < 32 || (!is_imul && d->instruction.mnemonic != ZYDIS_MNEMONIC_MUL))
		return false;
	if (count == 1) {
		if (!is_register(to))
			return false;
		insn = emit(d, is_imul ? (wide ? wide_imul_64 : wide_imul_32) : (wide ? wide_mul_64 : wide_mul_32));
		insn->b = (uint8_t)register_offset(to->reg.value);
		return true;
	}
	if (count == 3) {
		if (is_memory(from)) {
			insn = emit_memory_at(d, from, to->size / 8, false, wide ? imul_rmi_64_at : imul_rmi_32_at);
		} else {
			insn = emit(d, wide ? imul_rri_64 : imul_rri_32);
			insn->b = (uint8_t)register_offset(from->reg.value);
		}
		insn->immediate = decoder_immediate(d, &d->operand[2]);
	} else if (is_memory(from)) {
		insn = emit_memory(d, from, to->size / 8, false, imul_rm[wide]);
	} else {
		insn = emit(d, wide ? imul_rr_64 : imul_rr_32);
		insn->b = (uint8_t)register_offset(from->reg.value);
	}
	insn->a = (uint8_t)register_offset(to->reg.value);
	return true;
}
