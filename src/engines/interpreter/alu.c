/*
 * ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.
 *
 * Each operation is the host's own instruction; LAHF and SETO fetch its flags. Locked forms run as host-executed forms
 * (native.h).
 */
#include "engines/interpreter/decode.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define FETCH_FLAGS "\n\tlahf\n\tseto %%al"

/* name_bits(a, b, flags): *a = *a op b; returns the flags. */
#define BINARY(name, bits, text)                                                                                       \
	ALWAYS_INLINE u32 name##_##bits(u##bits *a, u##bits b, u32 flags)                                              \
	{                                                                                                              \
		u32 result;                                                                                            \
		__asm__(text " %[b], %[a]" FETCH_FLAGS : [a] "+r"(*a), "=a"(result) : [b] "r"(b) : "cc");              \
		return result;                                                                                         \
	}
#define BINARY_CARRY(name, bits, text)                                                                                 \
	ALWAYS_INLINE u32 name##_##bits(u##bits *a, u##bits b, u32 flags)                                              \
	{                                                                                                              \
		u32 result;                                                                                            \
		__asm__("btl $8, %[f]\n\t" text " %[b], %[a]" FETCH_FLAGS                                              \
		        : [a] "+&r"(*a), "=&a"(result)                                                                 \
		        : [b] "r"(b), [f] "r"(flags)                                                                   \
		        : "cc");                                                                                       \
		return result;                                                                                         \
	}
#define COMPARE(name, bits, text)                                                                                      \
	ALWAYS_INLINE u32 name##_##bits(const u##bits *a, u##bits b, u32 flags)                                        \
	{                                                                                                              \
		u32 result;                                                                                            \
		__asm__(text " %[b], %[a]" FETCH_FLAGS : "=a"(result) : [a] "r"(*a), [b] "r"(b) : "cc");               \
		return result;                                                                                         \
	}
#define UNARY(name, bits, text)                                                                                        \
	ALWAYS_INLINE u32 name##_##bits(u##bits *a, u32 flags)                                                         \
	{                                                                                                              \
		u32 result;                                                                                            \
		__asm__(text " %[a]" FETCH_FLAGS : [a] "+r"(*a), "=a"(result) : : "cc");                               \
		return result;                                                                                         \
	}
/* INC and DEC keep CF. */
#define UNARY_CARRY(name, bits, text)                                                                                  \
	ALWAYS_INLINE u32 name##_##bits(u##bits *a, u32 flags)                                                         \
	{                                                                                                              \
		u32 result;                                                                                            \
		__asm__("btl $8, %[f]\n\t" text " %[a]" FETCH_FLAGS                                                    \
		        : [a] "+&r"(*a), "=&a"(result)                                                                 \
		        : [f] "r"(flags)                                                                               \
		        : "cc");                                                                                       \
		return result;                                                                                         \
	}

#define SIZES(M, name, text) M(name, 8, text "b") M(name, 16, text "w") M(name, 32, text "l") M(name, 64, text "q")
SIZES(BINARY, add, "add")
SIZES(BINARY, or, "or")
SIZES(BINARY_CARRY, adc, "adc")
SIZES(BINARY_CARRY, sbb, "sbb")
SIZES(BINARY, and, "and")
SIZES(BINARY, sub, "sub")
SIZES(BINARY, xor, "xor")
SIZES(COMPARE, cmp, "cmp")
SIZES(COMPARE, test, "test")
SIZES(UNARY_CARRY, inc, "inc")
SIZES(UNARY_CARRY, dec, "dec")
SIZES(UNARY, neg, "neg")

#define NOT(bits)                                                                                                      \
	ALWAYS_INLINE u32 not_##bits(u##bits *a, u32 flags)                                                            \
	{                                                                                                              \
		*a = (u##bits) ~*a;                                                                                    \
		return flags;                                                                                          \
	}
NOT(8)
NOT(16)
NOT(32)
NOT(64)

/* Operations that write their first operand, which is a register, by a register, immediate or memory; or memory, by
 * register or immediate. */
#define WRITING(name, bits, MEMORY)                                                                                    \
	static void name##_rr_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		u##bits value = REG##bits(insn->a);                                                                    \
		flags = name##_##bits(&value, REG##bits(insn->b), flags);                                              \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void name##_ri_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		u##bits value = REG##bits(insn->a);                                                                    \
		flags = name##_##bits(&value, (u##bits)insn->immediate, flags);                                        \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_load_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits b)         \
	{                                                                                                              \
		u##bits value = REG##bits(insn->a);                                                                    \
		flags = name##_##bits(&value, b, flags);                                                               \
		write##bits(vcpu, insn->a, value);                                                                     \
		return flags;                                                                                          \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_modify_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits *value)  \
	{                                                                                                              \
		return name##_##bits(value, REG##bits(insn->a), flags);                                                \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_modify_i_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags,                \
	                                         u##bits *value)                                                       \
	{                                                                                                              \
		return name##_##bits(value, (u##bits)insn->immediate, flags);                                          \
	}                                                                                                              \
	MEMORY##_LOAD(name##_rm_##bits, guest_##bits, name##_load_##bits)                                              \
	    MEMORY##_MODIFY(name##_mr_##bits, guest_##bits, name##_modify_##bits)                                      \
	        MEMORY##_MODIFY(name##_mi_##bits, guest_##bits, name##_modify_i_##bits)

/* CMP and TEST. */
#define COMPARING(name, bits, MEMORY)                                                                                  \
	static void name##_rr_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		flags = name##_##bits(&REG##bits(insn->a), REG##bits(insn->b), flags);                                 \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void name##_ri_##bits(PARAMETERS)                                                                       \
	{                                                                                                              \
		flags = name##_##bits(&REG##bits(insn->a), (u##bits)insn->immediate, flags);                           \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_load_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits b)         \
	{                                                                                                              \
		return name##_##bits(&REG##bits(insn->a), b, flags);                                                   \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_first_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits a)        \
	{                                                                                                              \
		return name##_##bits(&a, REG##bits(insn->a), flags);                                                   \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_first_i_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits a)      \
	{                                                                                                              \
		return name##_##bits(&a, (u##bits)insn->immediate, flags);                                             \
	}                                                                                                              \
	MEMORY##_LOAD(name##_rm_##bits, guest_##bits, name##_load_##bits)                                              \
	    MEMORY##_LOAD(name##_mr_##bits, guest_##bits, name##_first_##bits)                                         \
	        MEMORY##_LOAD(name##_mi_##bits, guest_##bits, name##_first_i_##bits)

#define UNARY_HANDLERS(name, bits, MEMORY)                                                                             \
	static void name##_r_##bits(PARAMETERS)                                                                        \
	{                                                                                                              \
		u##bits value = REG##bits(insn->a);                                                                    \
		flags = name##_##bits(&value, flags);                                                                  \
		write##bits(vcpu, insn->a, value);                                                                     \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE u32 name##_modify_##bits(struct vcpu *vcpu, const struct insn *insn, u32 flags, u##bits *value)  \
	{                                                                                                              \
		return name##_##bits(value, flags);                                                                    \
	}                                                                                                              \
	MEMORY##_MODIFY(name##_m_##bits, guest_##bits, name##_modify_##bits)

/* Which operand kinds have handlers of their own. RARE ones have table entries that are all alike; see emit_memory().
 */
#define HOT_LOAD         LOAD
#define HOT_MODIFY       MODIFY
#define RARE_LOAD(...)   LOAD_AT(__VA_ARGS__)
#define RARE_MODIFY(...) MODIFY_AT(__VA_ARGS__)

#define ALL_SIZES(M, name, m8, m16, m32, m64) M(name, 8, m8) M(name, 16, m16) M(name, 32, m32) M(name, 64, m64)

/* clang-format off: a list of macros */
ALL_SIZES(WRITING, add, RARE, RARE, HOT, HOT)
ALL_SIZES(WRITING, or, RARE, RARE, HOT, HOT)
ALL_SIZES(WRITING, adc, RARE, RARE, RARE, RARE)
ALL_SIZES(WRITING, sbb, RARE, RARE, RARE, RARE)
ALL_SIZES(WRITING, and, RARE, RARE, HOT, HOT)
ALL_SIZES(WRITING, sub, RARE, RARE, HOT, HOT)
ALL_SIZES(WRITING, xor, RARE, RARE, HOT, HOT)
ALL_SIZES(COMPARING, cmp, HOT, HOT, HOT, HOT)
ALL_SIZES(COMPARING, test, HOT, RARE, HOT, HOT)
ALL_SIZES(UNARY_HANDLERS, inc, RARE, RARE, HOT, HOT)
ALL_SIZES(UNARY_HANDLERS, dec, RARE, RARE, HOT, HOT)
ALL_SIZES(UNARY_HANDLERS, neg, RARE, RARE, RARE, RARE)
ALL_SIZES(UNARY_HANDLERS, not, RARE, RARE, RARE, RARE)
/* clang-format on */

/* XOR r, r and SUB r, r of one register, 32 or 64 bits: the usual way to write a zero. AF as the silicon leaves it.
     */
static void zero_register(PARAMETERS)
{
	REG64(insn->a) = 0;
	flags = HOT_ZF | HOT_PF | 0x0200;
	NEXT;
}

#define HOT_TABLE(name)  KIND_TABLE(name)
#define RARE_TABLE(name) AT_TABLE(name)

struct binary {
	handler *rr[4], *ri[4];
	memory_table rm[4], mr[4], mi[4];
	bool compares;
};

#define BINARY_TABLE(name, is_compare, m8, m16, m32, m64)                                                              \
	{                                                                                                              \
		.rr = {name##_rr_8, name##_rr_16, name##_rr_32, name##_rr_64},                                         \
		.ri = {name##_ri_8, name##_ri_16, name##_ri_32, name##_ri_64},                                         \
		.rm = {m8##_TABLE(name##_rm_8), m16##_TABLE(name##_rm_16), m32##_TABLE(name##_rm_32),                  \
		       m64##_TABLE(name##_rm_64)},                                                                     \
		.mr = {m8##_TABLE(name##_mr_8), m16##_TABLE(name##_mr_16), m32##_TABLE(name##_mr_32),                  \
		       m64##_TABLE(name##_mr_64)},                                                                     \
		.mi = {m8##_TABLE(name##_mi_8), m16##_TABLE(name##_mi_16), m32##_TABLE(name##_mi_32),                  \
		       m64##_TABLE(name##_mi_64)},                                                                     \
		.compares = is_compare,                                                                                \
	}

enum { OP_ADD, OP_OR, OP_ADC, OP_SBB, OP_AND, OP_SUB, OP_XOR, OP_CMP, OP_TEST };

static const struct binary binaries[] = {
    [OP_ADD] = BINARY_TABLE(add, false, RARE, RARE, HOT, HOT),
    [OP_OR] = BINARY_TABLE(or, false, RARE, RARE, HOT, HOT),
    [OP_ADC] = BINARY_TABLE(adc, false, RARE, RARE, RARE, RARE),
    [OP_SBB] = BINARY_TABLE(sbb, false, RARE, RARE, RARE, RARE),
    [OP_AND] = BINARY_TABLE(and, false, RARE, RARE, HOT, HOT),
    [OP_SUB] = BINARY_TABLE(sub, false, RARE, RARE, HOT, HOT),
    [OP_XOR] = BINARY_TABLE(xor, false, RARE, RARE, HOT, HOT),
    [OP_CMP] = BINARY_TABLE(cmp, true, HOT, HOT, HOT, HOT),
    [OP_TEST] = BINARY_TABLE(test, true, HOT, RARE, HOT, HOT),
};

struct unary {
	handler *r[4];
	memory_table m[4];
};

#define UNARY_TABLE(name, m8, m16, m32, m64)                                                                           \
	{                                                                                                              \
		.r = {name##_r_8, name##_r_16, name##_r_32, name##_r_64},                                              \
		.m = {m8##_TABLE(name##_m_8), m16##_TABLE(name##_m_16), m32##_TABLE(name##_m_32),                      \
		      m64##_TABLE(name##_m_64)},                                                                       \
	}

static const struct unary unary_inc = UNARY_TABLE(inc, RARE, RARE, HOT, HOT);
static const struct unary unary_dec = UNARY_TABLE(dec, RARE, RARE, HOT, HOT);
static const struct unary unary_neg = UNARY_TABLE(neg, RARE, RARE, RARE, RARE);
static const struct unary unary_not = UNARY_TABLE(not, RARE, RARE, RARE, RARE);

static bool binary_decode(struct decoder *d, unsigned op)
{
	const struct binary *binary = &binaries[op];
	const ZydisDecodedOperand *first = &d->operand[0], *second = &d->operand[1];
	unsigned bytes = first->size / 8, size = size_index(bytes);
	struct insn *insn;

	if (is_memory(first)) {
		bool register_source = is_register(second);
		insn = emit_memory(d, first, bytes, !binary->compares,
		                   register_source ? binary->mr[size] : binary->mi[size]);
		if (register_source)
			insn->a = (uint8_t)register_offset(second->reg.value);
		else
			insn->immediate = decoder_immediate(d, second);
		return true;
	}
	if (is_memory(second)) {
		insn = emit_memory(d, second, bytes, false, binary->rm[size]);
	} else if (is_register(second)) {
		bool zero = (op == OP_XOR || op == OP_SUB) && bytes >= 4 && first->reg.value == second->reg.value;
		insn = emit(d, zero ? zero_register : binary->rr[size]);
		insn->b = (uint8_t)register_offset(second->reg.value);
	} else {
		insn = emit(d, binary->ri[size]);
		insn->immediate = decoder_immediate(d, second);
	}
	insn->a = (uint8_t)register_offset(first->reg.value);
	return true;
}

static bool unary_decode(struct decoder *d, const struct unary *unary)
{
	const ZydisDecodedOperand *operand = &d->operand[0];
	unsigned bytes = operand->size / 8, size = size_index(bytes);

	if (is_memory(operand))
		emit_memory(d, operand, bytes, true, unary->m[size]);
	else
		emit(d, unary->r[size])->a = (uint8_t)register_offset(operand->reg.value);
	return true;
}

bool alu_decode(struct decoder *d)
{
	if (has_prefix(d, ZYDIS_ATTRIB_HAS_LOCK))
		return false;
	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
		return binary_decode(d, OP_ADD);
	case ZYDIS_MNEMONIC_OR:
		return binary_decode(d, OP_OR);
	case ZYDIS_MNEMONIC_ADC:
		return binary_decode(d, OP_ADC);
	case ZYDIS_MNEMONIC_SBB:
		return binary_decode(d, OP_SBB);
	case ZYDIS_MNEMONIC_AND:
		return binary_decode(d, OP_AND);
	case ZYDIS_MNEMONIC_SUB:
		return binary_decode(d, OP_SUB);
	case ZYDIS_MNEMONIC_XOR:
		return binary_decode(d, OP_XOR);
	case ZYDIS_MNEMONIC_CMP:
		return binary_decode(d, OP_CMP);
	case ZYDIS_MNEMONIC_TEST:
		return binary_decode(d, OP_TEST);
	case ZYDIS_MNEMONIC_INC:
		return unary_decode(d, &unary_inc);
	case ZYDIS_MNEMONIC_DEC:
		return unary_decode(d, &unary_dec);
	case ZYDIS_MNEMONIC_NEG:
		return unary_decode(d, &unary_neg);
	case ZYDIS_MNEMONIC_NOT:
		return unary_decode(d, &unary_not);
	default:
		return false;
	}
}
