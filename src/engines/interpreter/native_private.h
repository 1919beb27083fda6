/*
 * What the native*.c files share: the plan of a form (what its stub loads, executes and stores), and the cache's
 * entries.
 *
 * native_plan.c makes the plan, native_encode.c the instruction for 64-bit code; native_stub.c turns a plan into code;
 * native.c keeps forms; native_fault.c takes the host's signals; native_x87.c, native_xsave.c and native_vector.c are
 * the special routines.
 */
#pragma once

#include "engines/interpreter/native.h"
#include "host/code_arena.h"

#define NATIVE_STUB_MAX 512 /* bytes; the longest possible is about 330 */
#define NATIVE_MXCSR    0x1f80u

typedef void native_run(struct vcpu *vcpu, void *memory);
typedef void native_special(struct vcpu *vcpu, const struct native_operation *operation);

/* Which bytes of a memory operand an element-wise instruction touches, and what a gather needs. All zero for others. */
struct native_elements {
	enum {
		ELEMENTS_NONE,
		ELEMENTS_EACH,
		ELEMENTS_ANY,
		ELEMENTS_PACKED
	} shape;               /* bit n guards element n; any bit guards all; the first popcount */
	bool vector_mask;      /* sign bits of a vector register instead of an opmask */
	uint8_t mask_register; /* k or zmm number */
	uint8_t mask_count;    /* how many mask bits matter */
	uint8_t fold;          /* a broadcast of this many elements: mask bit n guards element n mod this; else 0 */
	uint8_t element_size;  /* bytes, in memory (and of the sign-bit elements) */
	/* Gather, scatter; data_register also for MASKMOV. */
	uint8_t data_register, index_register, index_size, scale;
	bool scatter, evex;
	uint8_t segment;   /* MASKMOV: the operand is implicit */
	uint16_t mnemonic; /* which one, where a routine serves several */
};

struct native_plan {
	struct native_form form; /* all but `run` */
	uint8_t code[18];        /* the instruction for 64-bit code, its memory operand [rsi] */
	uint8_t code_length;
	uint8_t gpr_count;
	struct {
		uint8_t guest, host;
		bool written;
	} gpr[8];
	uint32_t vectors_loaded, vectors_stored; /* bit n: register n */
	uint8_t vector_load;                     /* bytes of each vector register that are loaded: 16, 32, 64 */
	bool vector_merge;                       /* legacy SSE: only the low 16 bytes are stored */
	uint8_t masks_loaded, masks_stored;
	bool flags_loaded, flags_stored;
	bool mxcsr, x87; /* the guest's must be in the host's */
	struct native_elements elements;
};

struct native_entry {
	struct native_form form; /* first */
	native_run *inner;       /* special forms: the stub they run on a prepared operand */
	struct native_elements elements;
	struct native_entry *next;
	uint32_t hash;
	uint32_t code_length;
	const uint8_t *code;
};

struct native_entry_chunk;

struct native {
	struct vcpu *vcpu;
	struct code_arena arena;
	ZydisDecoder decoder; /* 64-bit, to check what the encoder made */
	bool host_avx, host_avx512, host_avx512bw;
	bool available[ZYDIS_ISA_SET_MAX_VALUE + 1];
	struct native_entry **buckets;
	struct native_entry_chunk *chunks;
	unsigned entry_count;
};

static inline const struct native_entry *native_entry_of(const struct native_operation *operation)
{
	return (const struct native_entry *)operation->form;
}

/* native_features.c: fills `available`. */
struct cpu_model;
void native_find_features(struct native *native, const struct cpu_model *model);

/* native_plan.c. False: not an instruction for the host. */
bool native_plan_make(const struct native *native, const ZydisDecodedInstruction *instruction,
                      const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_plan *plan);

/* native_encode.c: plan->code. False: it has no 64-bit form. */
bool native_encode(const struct native *native, const ZydisDecodedInstruction *instruction,
                   const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_plan *plan);

/* native_stub.c. Returns the length. */
size_t native_stub_emit(const struct native *native, const struct native_plan *plan, uint8_t out[NATIVE_STUB_MAX]);

/* native_vector.c. */
native_special native_masked, native_gather, native_maskmov;
bool native_elements_plan(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands,
                          struct native_plan *plan);
native_run native_vzeroupper, native_vzeroall, native_vzeroupper_legacy, native_vzeroall_legacy;

/* native_x87.c. */
void native_x87_check_pending(struct vcpu *vcpu); /* #MF */
native_run native_fninit;
native_special native_fnstenv, native_fldenv, native_fnsave, native_frstor;

/* native_xsave.c. */
native_special native_fxsave, native_fxrstor, native_xsave, native_xrstor;

/* Runs a special form's stub on a prepared operand, with alignment checking if the guest has it on. */
void native_run_entry(struct vcpu *vcpu, const struct native_entry *entry, void *memory);
