/*
 * Raising and delivering exceptions and interrupts (SDM 3A chapter 6).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "machine/vcpu.h"

enum {
	VECTOR_DE = 0,
	VECTOR_DB = 1,
	VECTOR_NMI = 2,
	VECTOR_BP = 3,
	VECTOR_OF = 4,
	VECTOR_BR = 5,
	VECTOR_UD = 6,
	VECTOR_NM = 7,
	VECTOR_DF = 8,
	VECTOR_TS = 10,
	VECTOR_NP = 11,
	VECTOR_SS = 12,
	VECTOR_GP = 13,
	VECTOR_PF = 14,
	VECTOR_MF = 16,
	VECTOR_AC = 17,
	VECTOR_MC = 18,
	VECTOR_XM = 19,
};

/*
 * Raise: record the exception in vcpu->exception and unwind to vcpu->fault_target. The caller has committed nothing of
 * the instruction (or exactly what the manual says is committed: REP iterations). The engine then makes sure that
 * state.rip is the faulting instruction's and calls exception_deliver().
 */
_Noreturn void x86_raise(struct vcpu *vcpu, unsigned vector); /* #GP, #SS, #TS, #NP, #AC, #DF get error code 0 */
_Noreturn void x86_raise_error(struct vcpu *vcpu, unsigned vector, uint32_t error);
_Noreturn void x86_raise_page_fault(struct vcpu *vcpu, uint64_t linear, uint32_t error);
/* #DB with these DR6 bits (fault or trap class is the caller's business: state.rip says it). */
_Noreturn void x86_raise_debug(struct vcpu *vcpu, uint64_t dr6_bits);

/*
 * Delivers vcpu->exception through the IDT (or IVT) at state.rip: CR2 and DR6 are written, RF set in the pushed image
 * where due, faults during delivery become double and triple faults (SDM 3A table 6-5). It does not raise: afterwards
 * the vCPU stands at the handler's first instruction, or state.activity is ACTIVITY_SHUTDOWN. Saves and restores
 * vcpu->fault_target.
 */
void exception_deliver(struct vcpu *vcpu);

/* Delivers an external interrupt or NMI (vector 2, which also blocks NMIs), waking from HLT. Same contract as
 * exception_deliver(). */
void interrupt_deliver(struct vcpu *vcpu, unsigned vector, bool nmi);

/*
 * INT n, INT3 (vector 3), INTO (4), INT1 (0xf1: vector 1, no DPL check): delivers through the IDT with return address
 * `next_rip`. Raises on its own faults (#GP for DPL, VM86 IOPL rules, CR4.VME redirection); the engine delivers those
 * like any fault.
 */
enum software_interrupt { SOFTWARE_INT_N, SOFTWARE_INT3, SOFTWARE_INTO, SOFTWARE_INT1 };
void software_interrupt(struct vcpu *vcpu, enum software_interrupt kind, unsigned vector, uint64_t next_rip);

/* IRET, IRETD, IRETQ: operand_size 2, 4 or 8. Sets state.rip. */
void x86_iret(struct vcpu *vcpu, unsigned operand_size, uint64_t next_rip);

/*
 * Between two instructions: takes what is due, by priority (SDM 3A table 6-2): pending trap-class #DB, NMI, interrupt;
 * respects IF, the interrupt shadow and NMI blocking. Called by engines when `attention` or a shadow or pending_debug
 * asks for it. Returns true when something was delivered (state.rip has changed). Clears ATTENTION_INTERRUPT/NMI that
 * it has dealt with; what is blocked for now is asked for again by interrupt_window_opened().
 */
bool interrupts_take(struct vcpu *vcpu);
/* Is an interrupt or NMI waiting that could be taken now? (Wakes from HLT.) */
bool interrupts_deliverable(struct vcpu *vcpu);
/* IF went from 0 to 1, TPR was lowered, IRET ended NMI blocking: sets `attention` when something waits. */
void interrupt_window_opened(struct vcpu *vcpu);
