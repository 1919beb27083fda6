/*
 * Instructions that the host CPU executes on the guest's state (design: "the host CPU is the best oracle there is").
 *
 * An innocuous instruction that touches only unprivileged registers and at most one memory operand becomes a *form*: a
 * few bytes of host code that load the guest registers the instruction names from the vCPU block into the same host
 * registers, execute the instruction itself with its memory operand (if any) replaced by [pointer], and store what it
 * changed. Forms are made once per distinct instruction and shared; their code lives in a host/code_arena, never
 * writable and executable through one mapping.
 *
 * Flags: a form that reads or partly writes arithmetic flags takes them from rflags' low byte and vcpu->overflow, and
 * puts them back there. x87/MMX: guest registers stay live in the host's x87 unit between instructions
 * (vcpu->x87_live), and so does MXCSR (vcpu->mxcsr_live); native_x87_save() brings both back. Vector registers live in
 * state.vector and are loaded and stored by each form.
 *
 * Faults: a host signal inside a form (alignment: #GP or #AC, #DE, #XM, #MF, #UD) unwinds through x86_raise() with
 * nothing stored, so the guest sees exactly the exception that the silicon raised.
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
#define NATIVE_VEX     0x40u /* VEX-coded on general registers (BMI): not in real and virtual-8086 mode */

struct native_operation;

struct native_form {
	void (*run)(struct vcpu *vcpu, void *memory); /* `memory` is ignored when memory_size is 0 */
	uint16_t memory_size;                         /* bytes of the memory operand, 0 when there is none */
	uint8_t class_needed; /* NATIVE_*, one or more bits; the caller checks it, for special forms too */
	bool reads_memory, writes_memory;
	/* A misaligned operand is #GP: any address will do when 1. The host checks it too. */
	uint8_t alignment;
	uint8_t natural_alignment; /* what #AC looks at while the guest checks alignment */
	uint8_t first_access;      /* bytes whose page is looked for before the rest's address is checked; 0: no such */
	bool waits;                /* x87 and MMX: a pending x87 exception is reported first */
	/*
	 * BT, BTS, BTR, BTC with memory and a register bit offset: the operand lies (register >> log2(size * 8)) * size
	 * bytes, signed, beyond the effective address. The caller adds native_bit_displacement() before segmentation;
	 * `run` uses only the offset's low bits.
	 */
	bool bit_string;
	uint8_t bit_register; /* enum gpr */
	/* Not a control instruction of the x87: the caller calls native_x87_track() after `run` has returned. */
	bool x87_tracks_pointers;
	uint16_t x87_opcode; /* as FOP */
	/*
	 * Not a plain operand: element-wise access (gather, scatter, masked moves with fault suppression, MASKMOVDQU
	 * ...) or state images (FXSAVE, XSAVE ...). `special` does the whole instruction, memory access included,
	 * through mmu.h. `run` is NULL then.
	 */
	void (*special)(struct vcpu *vcpu, const struct native_operation *operation);
	/* `special` is there for faults that a mask suppresses: on an operand that is wholly in reach the instruction itself will do. */
	bool masked;
};

/* What `special` needs; the interpreter fills it per execution. */
struct native_operation {
	const struct native_form *form;
	enum segment_register segment; /* of the memory operand */
	uint64_t offset;               /* effective address (without segment base), truncated to the address size */
	uint64_t base;                 /* VSIB forms: effective address of base + displacement without the index */
	unsigned address_size;         /* 2, 4 or 8 */
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
 * The form of a decoded instruction of 64-, 32- or 16-bit code, or NULL: it is not one for the host (sensitive, control
 * flow, stack, string, segment, not encodable in 64-bit mode): the interpreter has its own routine. `bytes` are the
 * instruction's, `instruction->length` of them.
 */
const struct native_form *native_form_get(struct native *native, const ZydisDecodedInstruction *instruction,
                                          const ZydisDecodedOperand *operands, const uint8_t *bytes);
/* The same for who will not run it: nothing is kept, and `form->run` is NULL. False: it is not one for the host. */
bool native_form_describe(const struct native *native, const ZydisDecodedInstruction *instruction,
                          const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_form *form);

/*
 * `memory` of run(): the bytes are read and written there, with the guest's own alignment: a bounce buffer must have
 * the linear address's low six bits (the host raises #GP for misaligned operands by itself), and nothing but
 * memory_size bytes is touched. A write-only form may leave the buffer untouched when it faults; x86_raise() then
 * unwinds and the bounce buffer must not be copied back.
 *
 * While the guest checks alignment (CR0.AM, EFLAGS.AC, CPL 3), forms with a memory operand are run through
 * native_run_aligned(), which does it with the host's own EFLAGS.AC set, so that #AC comes from the silicon (SDM
 * 3A 6.15). `special` forms check by themselves.
 */
void native_run_aligned(struct vcpu *vcpu, const struct native_form *form, void *memory);

/*
 * Raises what precedes every fault of the operand's own (#SS, #GP, #PF): #MF that is pending, then #GP or #AC for its
 * alignment. For a caller that cannot reach the operand at once, before it translates the address; where the operand is
 * in reach, run() raises the same.
 */
void native_check_operand(struct vcpu *vcpu, const struct native_form *form, uint64_t linear);
/* #AC for a misaligned access, when the guest checks alignment. */
void native_check_alignment(struct vcpu *vcpu, uint64_t linear, unsigned alignment);

/* What to add to the effective address of a bit_string form; truncate the sum to the address size. */
static inline int64_t native_bit_displacement(const struct vcpu *vcpu, const struct native_form *form)
{
	uint64_t bits = form->memory_size * 8u, offset = vcpu->state.gpr[form->bit_register];
	int64_t index = bits == 16 ? (int16_t)offset : bits == 32 ? (int32_t)offset : (int64_t)offset;
	return (index & -(int64_t)bits) / 8;
}

/* Whether the guest's x87 registers are in the host's unit, and what follows from it. */
static inline void native_x87_set_live(struct vcpu *vcpu, bool live)
{
	vcpu->x87_live = live;
	vcpu->x87_missing = !live || (vcpu->classes_disabled & (NATIVE_X87 | NATIVE_MMX));
}

/* Records FIP, FDP and FOP, which the host's unit cannot know. `offset`: the memory operand's effective address.
 * state.rip is the instruction's. */
static inline void native_x87_track(struct vcpu *vcpu, const struct native_form *form, enum segment_register segment,
                                    uint64_t offset)
{
	struct cpu_state *s = &vcpu->state;
	s->x87.fop = form->x87_opcode;
	s->x87.fip = s->rip;
	s->x87_fcs = s->segment[SEG_CS].selector;
	if (form->memory_size) {
		s->x87.fdp = offset;
		s->x87_fds = s->segment[segment].selector;
	}
}

/*
 * Recomputes vcpu->classes_disabled from CR0, CR4, XCR0, EFLAGS.VM. Call it at the start of engine->run() and after
 * each change of one of them.
 */
void native_update_classes(struct vcpu *vcpu);
/* Raises #UD or #NM for a form whose class is disabled now. */
_Noreturn void native_raise_disabled(struct vcpu *vcpu, const struct native_form *form);

/*
 * Saves live x87 registers into state.x87 and MXCSR into state.vector, and leaves the host's x87 unit empty and its
 * MXCSR at its default. Before engine->run() returns and before those are read; also before ring3's own code on a
 * vCPU's thread computes with floating point.
 */
void native_x87_save(struct vcpu *vcpu);
void native_mxcsr_save(struct vcpu *vcpu); /* of these, MXCSR only */
/* The other way: the host's unit gets the guest's registers, if it does not have them. Clobbers vector registers. */
void native_x87_load(struct vcpu *vcpu);
/* An unmasked x87 exception waits for the next waiting instruction. Loads the registers. */
bool native_x87_pending(struct vcpu *vcpu);
/*
 * Around an instruction that IGNNE# lets pass: all errors are masked, and none is pending. native_x87_unmask() wants
 * what native_x87_mask() returned; unless the instruction has loaded another control word, the error is there again.
 */
uint16_t native_x87_mask(struct vcpu *vcpu);
void native_x87_unmask(struct vcpu *vcpu, uint16_t fcw);

/*
 * Around engine->run(), on the vCPU's thread: faults in forms are this vCPU's from now on. The first call on a thread
 * gives it an alternate signal stack if it has none (0 or -errno); native_thread_leave() saves live x87 registers too.
 */
int native_thread_enter(struct native *native);
void native_thread_leave(struct native *native);

/* Installs the signal handlers (SIGSEGV, SIGBUS, SIGFPE, SIGILL) once per process; signals from elsewhere go on to the
 * previous handler. */
int native_install_handlers(void);
