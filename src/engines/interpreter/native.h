/*
 * Instructions that the host CPU executes on the guest's state (design: "the host CPU is the best oracle there is").
 *
 * An innocuous instruction that touches only unprivileged registers and at most one memory operand becomes a *form*: a few bytes
 * of host code that load the guest registers the instruction names from the vCPU block into the same host registers, execute
 * the instruction itself with its memory operand (if any) replaced by [pointer], and store what it changed. Forms are
 * made once per distinct instruction and shared; their code lives in a host/code_arena, never writable and executable through one mapping.
 *
 * Flags: a form that reads or partly writes arithmetic flags takes them from rflags' low byte and vcpu->overflow, and puts them back there.
 * x87/MMX: guest registers stay live in the host's x87 unit between instructions (vcpu->x87_live); native_x87_save() brings them back.
 * Vector registers live in state.vector and are loaded and stored by each form.
 *
 * Faults: a host signal inside a form (alignment: #GP or #AC, #DE, #XM, #MF, #UD) unwinds through x86_raise() with nothing stored, so the guest
 * sees exactly the exception that the silicon raised.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

#include "machine/vcpu.h"

/* What must be enabled for a form; bits of vcpu->classes_disabled. */
#define NATIVE_INTEGER 0x00u
#define NATIVE_X87     0x01u
#define NATIVE_MMX     0x02u
#define NATIVE_SSE     0x04u
#define NATIVE_AVX     0x08u
#define NATIVE_AVX512  0x10u
#define NATIVE_WAIT    0x20u /* FWAIT: CR0.MP && CR0.TS */

struct native_operation;

struct native_form {
	void (*run)(struct vcpu *vcpu, void *memory); /* `memory` is ignored when memory_size is 0 */
	uint16_t memory_size;                         /* bytes of the memory operand, 0 when there is none */
	uint8_t class_needed;                         /* NATIVE_*, one or more bits */
	bool reads_memory, writes_memory;
	/*
	 * Not a plain operand: element-wise access (gather, scatter, masked moves with fault suppression, MASKMOVDQU ...) or state
	 * images (FXSAVE, XSAVE ...). `special` does the whole instruction, memory access included, through mmu.h. `run` is NULL then.
	 */
	void (*special)(struct vcpu *vcpu, const struct native_operation *operation);
};

/* What `special` needs; the interpreter fills it per execution. */
struct native_operation {
	const struct native_form *form;
	enum segment_register segment; /* of the memory operand */
	uint64_t offset;      /* effective address (without segment base), truncated to the address size */
	uint64_t base;        /* VSIB forms: effective address of base + displacement without the index */
	unsigned address_size; /* 2, 4 or 8 */
	uint8_t length;
	uint8_t bytes[15]; /* the instruction */
	uint64_t next_rip;
};

struct native; /* a vCPU's cache of forms */

struct native *native_create(struct vcpu *vcpu); /* NULL: errno */
void native_destroy(struct native *native);
/* Drops all forms (their code is reused): every pointer to a form is void after it. */
void native_flush(struct native *native);
/* How full the arena is, in percent: the interpreter flushes everything at a block boundary when it nears 100. */
unsigned native_usage(const struct native *native);

/*
 * The form of a decoded instruction of 64-, 32- or 16-bit code, or NULL: it is not one for the host (sensitive, control flow, stack, string, segment,
 * not encodable in 64-bit mode): the interpreter has its own routine. `bytes` are the instruction's, `instruction->length` of them.
 */
const struct native_form *native_form_get(struct native *native, const ZydisDecodedInstruction *instruction,
					  const ZydisDecodedOperand *operands, const uint8_t *bytes);

/* Recomputes vcpu->classes_disabled from CR0, CR4, XCR0. */
void native_update_classes(struct vcpu *vcpu);
/* Raises #UD or #NM for a form whose class is disabled now. */
_Noreturn void native_raise_disabled(struct vcpu *vcpu, const struct native_form *form);

/* Saves live x87 registers into state.x87 and leaves the host's x87 unit empty. Before engine->run() returns and before state.x87 is read. */
void native_x87_save(struct vcpu *vcpu);

/* Installs the signal handlers (SIGSEGV, SIGBUS, SIGFPE, SIGILL) once per process; signals from elsewhere go on to the previous handler. */
int native_install_handlers(void);
