/*
 * The stack as instructions see it: fast ways for 64-bit code and for flat 32-bit code, and a general one.
 */
#pragma once

#include "engines/interpreter/access.h"

/* General: any mode, checked by segmentation (SLOW_ENTER comes first). `offset` is a stack pointer value, truncated
 * here. */
uint64_t stack_read(struct vcpu *vcpu, uint64_t offset, unsigned size);
void stack_write(struct vcpu *vcpu, uint64_t offset, unsigned size, uint64_t value);
/* Raises what stack_write() would. */
void stack_probe(struct vcpu *vcpu, uint64_t offset, unsigned size);
/* Writes SP, ESP or RSP, by the stack's address size (SDM 3A 5.8.1: SS.B). */
void stack_set_pointer(struct vcpu *vcpu, uint64_t value);
/* The stack's address size as a mask. */
uint64_t stack_mask(const struct vcpu *vcpu);

/* #AC for transfers that push or pop `size` bytes at a time in x86/, which does not check alignment. */
void stack_check_alignment(struct vcpu *vcpu, unsigned size);

ALWAYS_INLINE uint64_t stack_pointer(const struct vcpu *vcpu)
{
	return vcpu->state.gpr[RSP];
}

/* Can the fast handlers of `bits` wide stack operations be used? */
ALWAYS_INLINE bool stack_fast_64(uint32_t mode)
{
	return (mode & (MODE_SIZE | MODE_ALIGN)) == MODE_64;
}
ALWAYS_INLINE bool stack_fast_32(uint32_t mode)
{
	return (mode & (MODE_SIZE | MODE_ALIGN | MODE_FLAT | MODE_STACK32)) == (MODE_32 | MODE_FLAT | MODE_STACK32);
}
