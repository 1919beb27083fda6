/*
 * Memory operands of handlers: address computation, the inline TLB look-up, and the slow ways.
 *
 * Kinds of operands, by which handlers of frequent instructions are specialised:
 *	at   the linear address was computed and checked by an address slot
 *	b64  base + displacement, 64-bit address size, no segment base
 *	f64  base + index << scale + displacement (whatever is missing points at a zero)
 *	b32, f32  the same with a 32-bit address size: flat 32-bit code, and 67h in 64-bit code; f32 adds a segment base
 */
#pragma once

#include "engines/interpreter/insn.h"
#include "memory/memory.h"
#include "x86/segments.h"

/* Guest memory has any alignment and is touched exactly once per access. */
typedef uint8_t guest_8;
typedef uint16_t __attribute__((may_alias, aligned(1))) guest_16;
typedef uint32_t __attribute__((may_alias, aligned(1))) guest_32;
typedef uint64_t __attribute__((may_alias, aligned(1))) guest_64;
/* The same for values that are not in guest memory. */
typedef uint8_t value_guest_8;
typedef uint16_t value_guest_16;
typedef uint32_t value_guest_32;
typedef uint64_t value_guest_64;

#define PARAMETERS_at  PARAMETERS, uint64_t linear
#define PARAMETERS_b64 PARAMETERS
#define PARAMETERS_f64 PARAMETERS
#define PARAMETERS_b32 PARAMETERS
#define PARAMETERS_f32 PARAMETERS

#define ADDRESS_at  ((void)0)
#define ADDRESS_b64 uint64_t linear = REG64(insn->base) + (uint64_t)(int64_t)insn->displacement
#define ADDRESS_f64                                                                                                    \
	uint64_t linear =                                                                                              \
	    REG64(insn->base) + (REG64(insn->index) << insn->scale) + (uint64_t)(int64_t)insn->displacement
#define ADDRESS_b32 uint64_t linear = (uint32_t)(REG32(insn->base) + (uint32_t)insn->displacement)
#define ADDRESS_f32                                                                                                    \
	uint64_t linear =                                                                                              \
	    (uint32_t)(REG32(insn->base) + (REG32(insn->index) << insn->scale) + (uint32_t)insn->displacement) +       \
	    REG64(insn->segment_base)

/* KINDS(M, ...) makes the five variants of a handler. The order is enum address_kind's. */
#define KINDS(M, ...) M(at, __VA_ARGS__) M(b64, __VA_ARGS__) M(f64, __VA_ARGS__) M(b32, __VA_ARGS__) M(f32, __VA_ARGS__)
#define KIND_TABLE(name)                                                                                               \
	{                                                                                                              \
		{.run_at = name##_at}, {.run = name##_b64}, {.run = name##_f64}, {.run = name##_b32},                  \
		{                                                                                                      \
			.run = name##_f32                                                                              \
		}                                                                                                      \
	}
#define AT_TABLE(name)                                                                                                 \
	{                                                                                                              \
		{                                                                                                      \
			.run_at = name##_at                                                                            \
		}                                                                                                      \
	}

enum address_kind { KIND_AT, KIND_B64, KIND_F64, KIND_B32, KIND_F32, KIND_COUNT };
/* The handlers of one operation by kind; all but the first may be missing. */
typedef const any_handler memory_table[KIND_COUNT];

/* The entry for `linear`; HIT tells whether it serves `size` bytes there: tag and page crossing in one comparison. */
#define READ_ENTRY(linear)        (&tlb[mmu_tlb_index(linear)])
#define WRITE_ENTRY(linear)       (&tlb[MMU_TLB_ENTRIES + mmu_tlb_index(linear)])
#define HIT(entry, linear, size)  (likely(((linear) ^ (entry)->tag) <= MEMORY_PAGE_SIZE - (size)))
#define HOST(entry, linear, type) (*(volatile type *)((entry)->host + (linear)))

/* Slow ways: canonical check of 64-bit code, then mmu.c. SLOW_ENTER comes first. */
uint64_t slow_read(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size);
void slow_write(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size, uint64_t value);
/* For read-modify-write: what a write would raise comes first. */
uint64_t slow_read_for_write(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size);
bool operand_in_range(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size);
void slow_check(struct vcpu *vcpu, const struct insn *insn, uint64_t linear, unsigned size);

/* Raises #AC when alignment is checked (CR0.AM, EFLAGS.AC, CPL 3) and `linear` is not a multiple of `size`, a power of
 * 2 (SDM 3A 6.15). */
void raise_misaligned(struct vcpu *vcpu, uint64_t linear, unsigned size);
ALWAYS_INLINE void check_alignment(struct vcpu *vcpu, uint64_t linear, unsigned size)
{
	if (unlikely(interpreter_of(vcpu)->mode & MODE_ALIGN))
		raise_misaligned(vcpu, linear, size);
}

/* The memory operand of handlers that have no specialised variants: address slots in front of them. */
handler address_b64, address_f64, address_s64, address_b32, address_f32, address_general;

/* address_general's slot: b holds these, a the size in bytes. */
#define GENERAL_WRITE  0x01u
#define GENERAL_MASK16 0x02u /* address size 16 */
#define GENERAL_MASK32 0x04u
#define GENERAL_ALIGN  0x08u /* a is a power of 2, and alignment is checked */
#define GENERAL_NATIVE                                                                                                 \
	0x80u /* the slot behind is a host-executed form, whose own checks come before segmentation's   \
	                      */
#define GENERAL_SEGMENT(b) ((enum segment_register)((b) >> 4 & 7))

/*
 * LOAD(kind, name, type, operation): operation(vcpu, insn, flags, value) returns the new flags.
 * STORE: operation(vcpu, insn) returns the value.   MODIFY: operation(vcpu, insn, flags, type *value) returns the new
 * flags.
 */
#define LOAD_SLOW(name, type, operation)                                                                               \
	static COLD void name##_slow(PARAMETERS, uint64_t linear)                                                      \
	{                                                                                                              \
		SLOW_ENTER;                                                                                            \
		type value = (type)slow_read(vcpu, insn, linear, sizeof(type));                                        \
		flags = operation(vcpu, insn, flags, value);                                                           \
		NEXT_SLOW;                                                                                             \
	}
#define LOAD_KIND(kind, name, type, operation)                                                                         \
	static void name##_##kind(PARAMETERS_##kind)                                                                   \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		struct mmu_tlb_entry *entry = READ_ENTRY(linear);                                                      \
		if (!HIT(entry, linear, sizeof(type)))                                                                 \
			return name##_slow(ARGUMENTS, linear);                                                         \
		flags = operation(vcpu, insn, flags, HOST(entry, linear, type));                                       \
		NEXT;                                                                                                  \
	}
#define LOAD(name, type, operation)    LOAD_SLOW(name, type, operation) KINDS(LOAD_KIND, name, type, operation)
#define LOAD_AT(name, type, operation) LOAD_SLOW(name, type, operation) LOAD_KIND(at, name, type, operation)

#define STORE_SLOW(name, type, operation)                                                                              \
	static COLD void name##_slow(PARAMETERS, uint64_t linear)                                                      \
	{                                                                                                              \
		SLOW_ENTER;                                                                                            \
		slow_write(vcpu, insn, linear, sizeof(type), operation(vcpu, insn, flags));                            \
		NEXT_SLOW;                                                                                             \
	}
#define STORE_KIND(kind, name, type, operation)                                                                        \
	static void name##_##kind(PARAMETERS_##kind)                                                                   \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(linear);                                                     \
		if (!HIT(entry, linear, sizeof(type)))                                                                 \
			return name##_slow(ARGUMENTS, linear);                                                         \
		HOST(entry, linear, type) = (type)operation(vcpu, insn, flags);                                        \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}
#define STORE(name, type, operation)    STORE_SLOW(name, type, operation) KINDS(STORE_KIND, name, type, operation)
#define STORE_AT(name, type, operation) STORE_SLOW(name, type, operation) STORE_KIND(at, name, type, operation)

#define MODIFY_SLOW(name, type, operation)                                                                             \
	static COLD void name##_slow(PARAMETERS, uint64_t linear)                                                      \
	{                                                                                                              \
		SLOW_ENTER;                                                                                            \
		value_##type value = (type)slow_read_for_write(vcpu, insn, linear, sizeof(type));                      \
		flags = operation(vcpu, insn, flags, &value);                                                          \
		slow_write(vcpu, insn, linear, sizeof(type), value);                                                   \
		NEXT_SLOW;                                                                                             \
	}
#define MODIFY_KIND(kind, name, type, operation)                                                                       \
	static void name##_##kind(PARAMETERS_##kind)                                                                   \
	{                                                                                                              \
		ADDRESS_##kind;                                                                                        \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(linear);                                                     \
		if (!HIT(entry, linear, sizeof(type)))                                                                 \
			return name##_slow(ARGUMENTS, linear);                                                         \
		value_##type value = (type)HOST(entry, linear, type);                                                  \
		flags = operation(vcpu, insn, flags, &value);                                                          \
		HOST(entry, linear, type) = value;                                                                     \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}
#define MODIFY(name, type, operation)    MODIFY_SLOW(name, type, operation) KINDS(MODIFY_KIND, name, type, operation)
#define MODIFY_AT(name, type, operation) MODIFY_SLOW(name, type, operation) MODIFY_KIND(at, name, type, operation)
