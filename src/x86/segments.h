/*
 * Segmentation: loading segment registers, far transfers, task switches (SDM 3A chapters 3, 5, 7), and the address
 * check of each memory operand.
 *
 * Routines that transfer control set state.rip (and CS, SS, RSP ...) only when nothing can fault any more. They raise
 * as the manual says. `operand_size` is 2, 4 or 8.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "machine/vcpu.h"
#include "x86/exceptions.h"

/* MOV/POP to a segment register, LDS and friends (not CS). A load of SS starts no shadow: that is the engine's part. */
void segment_load(struct vcpu *vcpu, enum segment_register segment, uint16_t selector);
/* Real mode and VM86: base = selector << 4; limit and access of real mode keep their hidden values (unreal mode). */
void segment_load_real(struct vcpu *vcpu, enum segment_register segment, uint16_t selector);

void x86_far_jump(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip);
void x86_far_call(struct vcpu *vcpu, uint16_t selector, uint64_t offset, unsigned operand_size, uint64_t next_rip);
void x86_far_return(struct vcpu *vcpu, unsigned operand_size, uint16_t release_bytes, uint64_t next_rip);

enum task_switch { TASK_SWITCH_JUMP, TASK_SWITCH_CALL, TASK_SWITCH_INTERRUPT, TASK_SWITCH_IRET };
/* `error` is pushed on the new stack when has_error (a fault through a task gate). */
void x86_task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_switch reason, uint64_t next_rip,
                     bool has_error, uint32_t error);

void x86_lldt(struct vcpu *vcpu, uint16_t selector);
void x86_ltr(struct vcpu *vcpu, uint16_t selector);
/* LAR, LSL: true and `result` when the selector is valid and visible (ZF). VERR, VERW: ZF. The engine writes flags.
 * ARPL is the engine's. */
bool x86_lar(struct vcpu *vcpu, uint16_t selector, uint32_t *result);
bool x86_lsl(struct vcpu *vcpu, uint16_t selector, uint32_t *result);
bool x86_verify(struct vcpu *vcpu, uint16_t selector, bool write);

void x86_syscall(struct vcpu *vcpu, uint64_t next_rip);
void x86_sysret(struct vcpu *vcpu, unsigned operand_size);
void x86_sysenter(struct vcpu *vcpu);
void x86_sysexit(struct vcpu *vcpu, unsigned operand_size);

/* True when the port may be touched at this CPL: IOPL, or the TSS's bit map; raises #GP when not. */
void x86_check_io(struct vcpu *vcpu, uint16_t port, unsigned size);

/* Raises #GP/#SS (limit, type, canonical) for the slow cases of segment_linear(). */
uint64_t segment_linear_slow(struct vcpu *vcpu, enum segment_register segment, uint64_t offset, uint64_t size,
                             bool write);

/*
 * The linear address of `size` bytes at segment:offset, checked for a read or write: limit, type, present, canonical;
 * #SS for SS, else #GP. `offset` is already truncated to the address size.
 */
static inline uint64_t segment_linear(struct vcpu *vcpu, enum segment_register segment, uint64_t offset, uint64_t size,
                                      bool write)
{
	if (__builtin_expect(cpu_64bit_code(&vcpu->state), 1)) {
		uint64_t linear = offset;
		if (segment == SEG_FS || segment == SEG_GS)
			linear += vcpu->state.segment[segment].base;
		if (__builtin_expect(cpu_canonical(linear) && cpu_canonical(linear + size - 1) && cpu_canonical(offset),
		                     1))
			return linear;
	}
	return segment_linear_slow(vcpu, segment, offset, size, write);
}
