/*
 * Instructions against the silicon: what the parts of tests/isa share.
 *
 *	forms.c     every instruction form of the decoder's table, found by enumerating encodings
 *	skip.c      which forms are left out, and why
 *	generate.c  one form + one seed -> one case: bytes, registers, memory, flags
 *	native.c    runs cases on the host CPU, in a guarded child process
 *	guest.c     runs cases on one of ring3's engines
 *	compare.c   what must agree
 *
 * Both sides run a case at the same linear addresses, in the windows of layout.c, at CPL 3. A case ends with an
 *exception: the #DB of EFLAGS.TF after one instruction, the #BP of the INT3 bytes that fill the code window, or
 *whatever the instruction raised.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <Zydis/Zydis.h>

#include "x86/cpu_state.h"

#include "random.h"

struct engine;

/* ---- layout.c: the windows ---- */

#define ISA_CODE 0x20000000ull     /* two pages, read and execute; nothing on either side */
#define ISA_DATA 0x30000000ull     /* three pages, read and write; then a hole; then write, read-only, write */
#define ISA_HIGH 0x123456789000ull /* one page far above 4 GiB, where AddressSanitizer has nothing */

enum isa_page {
	PAGE_CODE0,
	PAGE_CODE1,
	PAGE_DATA0,
	PAGE_DATA1,
	PAGE_DATA2,
	PAGE_DATA4,
	PAGE_DATA5,
	PAGE_DATA6,
	PAGE_HIGH,
	ISA_PAGES
};

struct isa_window {
	uint64_t linear;
	bool writable, executable;
};

extern const struct isa_window isa_windows[ISA_PAGES];

/* The page that holds `linear`, or -1. */
int isa_page_of(uint64_t linear);
/* What the pages hold before a case's patches: INT3 in the code window, else bytes that depend on nothing but the
 * place. */
const uint8_t *isa_background(enum isa_page page);

/* Segments that a case may use: the host kernel's flat user segments and a local descriptor table of our own. */
#define ISA_SELECTOR_CODE32 0x23
#define ISA_SELECTOR_DATA   0x2b
#define ISA_SELECTOR_CODE64 0x33
#define ISA_LDT_COUNT       16
#define ISA_LDT(n)          ((uint16_t)((n) << 3 | 7))

enum isa_ldt {
	LDT_FLAT,
	LDT_DATA,
	LDT_READ_ONLY,
	LDT_DOWN32,
	LDT_DOWN16,
	LDT_STACK16,
	LDT_BELOW,
	LDT_CODE32_FLAT,
	LDT_CODE32,
	LDT_CODE16,
	LDT_CODE32_EXECUTE,
	LDT_NOT_PRESENT,
	LDT_SHORT,
	LDT_SHIFTED,
	LDT_CODE16_EXECUTE,
	LDT_EMPTY
};

struct isa_descriptor {
	uint32_t base, limit; /* limit in units of the granularity */
	uint8_t type;         /* SEG_* type bits, accessed */
	bool big, pages, present;
};

extern const struct isa_descriptor isa_ldt[ISA_LDT_COUNT];

/* The segment register that loading `selector` gives at CPL 3; unusable for a null selector. */
struct segment isa_segment(uint16_t selector);
/* A descriptor's eight bytes as they stand in a table. */
uint64_t isa_descriptor_bytes(const struct isa_descriptor *descriptor);

/* ---- forms.c ---- */

enum isa_encoding { ENCODING_LEGACY, ENCODING_VEX, ENCODING_XOP, ENCODING_EVEX };

struct isa_form {
	uint64_t key;     /* identity: a hash of all that makes the form, the same in every run */
	uint8_t mode;     /* 64, 32, 16: size of code */
	uint8_t encoding; /* enum isa_encoding */
	uint8_t map;      /* legacy: 0, 1 (0F), 2 (0F38), 3 (0F3A), 4 (3DNow!); else the map number */
	uint8_t opcode;
	uint8_t
	    prefix;  /* VEX, XOP, EVEX: pp. Legacy: bit 0 66h, bit 1 F2h, bit 2 F3h, bit 3 LOCK, bit 4 67h is needed */
	bool memory; /* ModRM names memory */
	bool has_modrm, opcode_register, uses_vvvv, vsib, masked, zeroing, bit_b;
	/* Values of the fields that give this same form; the generator picks among them. */
	uint8_t reg_values, rm_values, w_values, l_values;
	bool suppressed;  /* the host cannot run it */
	const char *skip; /* reason for leaving it out, or NULL */
	ZydisMnemonic mnemonic;
	char name[88];
	/* Counted by the run. */
	uint32_t cases, failures;
};

struct isa_forms {
	struct isa_form *form;
	unsigned count, capacity;
	unsigned *slot; /* open hash by key */
	unsigned slots;
};

/* Enumerates all forms. 0 or -ENOMEM. */
int isa_forms_create(struct isa_forms *forms);
void isa_forms_destroy(struct isa_forms *forms);
struct isa_form *isa_forms_find(struct isa_forms *forms, uint64_t key);

struct isa_decoded {
	ZydisDecodedInstruction instruction;
	ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
};

/* Decodes as the host's maker does (AMD and Intel differ in 66h near branches). */
bool isa_decode(unsigned mode, const uint8_t *bytes, size_t length, struct isa_decoded *decoded);
uint64_t isa_form_key(unsigned mode, const struct isa_decoded *decoded);
/* Writes a form's bytes with random fields and random bytes after the opcode; false: this try gave another form. */
bool isa_form_encode(const struct isa_form *form, struct random *random, uint8_t bytes[15],
                     struct isa_decoded *decoded);

/* ---- skip.c ---- */

/* NULL, or why the instruction is left out. */
const char *isa_skip_reason(unsigned mode, const struct isa_decoded *decoded);
/* It may be run on random bytes natively (no system call, no far transfer ...). For isa-decode. */
bool isa_harmless(const struct isa_decoded *decoded);

/* ---- generate.c ---- */

struct isa_patch {
	uint16_t page, offset, length;
	uint16_t pool; /* offset into the case's pool */
};

#define ISA_PATCHES_MAX 24
#define ISA_POOL_SIZE   8192

struct isa_case {
	uint64_t seed;
	struct isa_form *form;
	uint8_t mode;
	bool step; /* EFLAGS.TF is set */
	/* Set by the caller before generating: isa_ldt may be used; few single steps; most operands cross pages or fault. */
	bool ldt, seldom_step, edges;
	uint8_t length;
	uint8_t bytes[15];
	uint64_t rip; /* relative to CS.base */
	uint64_t gpr[GPR_COUNT];
	uint64_t rflags;
	uint64_t operand;          /* linear address of the first memory operand, 0 when none */
	uint64_t fs_base, gs_base; /* 64-bit mode only; else the selector's */
	uint16_t selector[6];
	struct x87_state x87;
	struct vector_state vector;
	unsigned patch_count, pool_used;
	struct isa_patch patch[ISA_PATCHES_MAX];
	uint8_t pool[ISA_POOL_SIZE];
};

/* False: no case came out of this seed (the form needs fields that were not met). */
bool isa_generate(struct isa_form *form, uint64_t seed, struct isa_case *test, struct isa_decoded *decoded);
/* A case of given bytes at the end of the code window, for isa-decode. */
void isa_generate_bytes(uint64_t seed, const uint8_t *bytes, unsigned length, unsigned room, struct isa_case *test);

/* Places bytes at a linear address; what lies outside the windows is dropped. */
void isa_place(struct isa_case *test, uint64_t linear, const void *bytes, size_t length);

/* operands.c: values and addresses. */
uint64_t isa_random_value(struct random *random);
struct segment isa_case_segment(const struct isa_case *test, ZydisRegister segment);
void isa_random_vector(struct random *random, struct isa_case *test);
void isa_random_operand(struct random *random, void *buffer, size_t length);
void isa_random_x87(struct random *random, struct isa_case *test);
/* Chooses registers and displacement so that memory operand `index` lies at a good place; returns its linear address.
 */
uint64_t isa_place_operand(struct random *random, struct isa_case *test, struct isa_decoded *decoded, unsigned index,
                           uint32_t *pinned);

/* ---- outcomes ---- */

/*
 * How an engine that translates met the instruction: for the first time; with all it looks into filled; jumped to from
 * another page, or from its own, through a link that is made and then followed.
 */
enum isa_setting { SETTING_COLD, SETTING_HOT, SETTING_FAR, SETTING_FAR_LINKED, SETTING_NEAR, SETTING_NEAR_LINKED };

enum isa_status { STATUS_EXCEPTION, STATUS_HANG, STATUS_CRASH, STATUS_SYSTEM_CALL, STATUS_ERROR };

struct isa_outcome {
	uint8_t status; /* enum isa_status */
	uint8_t trap;   /* the exception's vector */
	uint32_t error;
	uint64_t cr2;
	uint64_t rip, rflags;
	uint64_t gpr[GPR_COUNT];
	uint64_t fs_base, gs_base;
	uint16_t selector[6];
	struct x87_state x87;
	struct vector_state vector;
	uint8_t setting;  /* enum isa_setting */
	uint32_t changed; /* bit n: page n is not its background any more and is in `page` */
	char text[96];    /* STATUS_ERROR, STATUS_CRASH: what happened */
	uint8_t page[ISA_PAGES][4096];
};

/* ---- native.c ---- */

#define ISA_BATCH 32

struct native_runner;

/* NULL with errno. Forks the child; again by itself when a case killed or hung it. */
struct native_runner *native_create_runner(void);
void native_destroy_runner(struct native_runner *runner);
/* Cases and outcomes of the next batch, in memory shared with the child. */
struct isa_case *native_case(struct native_runner *runner, unsigned index);
struct isa_outcome *native_outcome(struct native_runner *runner, unsigned index);
/* Starts `count` cases, at most ISA_BATCH; wait returns when all outcomes are there. 0 or -errno. */
int native_start(struct native_runner *runner, unsigned count);
int native_wait(struct native_runner *runner);
/* Does the host let us use a local descriptor table (32- and 16-bit cases with segments)? */
bool native_has_ldt(struct native_runner *runner);

/* ---- guest.c ---- */

struct guest_runner;

/* NULL after one message. */
struct guest_runner *guest_create(const struct engine *engine);
/* All translations are made, put into a depot, and taken from there. False: no memory. */
bool guest_take_translations(struct guest_runner *guest);
void guest_destroy(struct guest_runner *guest);
/* Runs the case in every setting there is for it. The outcome is that of the first one that differs from SETTING_COLD's. */
void guest_run(struct guest_runner *guest, const struct isa_case *test, struct isa_outcome *outcome);

/* ---- tolerance.c: known differences that are counted and not failures (skipped.md) ---- */

enum isa_tolerance {
	TOLERANCE_NONE,
	TOLERANCE_FLUSH,
	TOLERANCE_XRSTOR_LIMIT,
	TOLERANCE_OFFSET_WRAP,
	TOLERANCE_VMREAD,
	TOLERANCE_LOCK_VERIFY,
	TOLERANCE_VEX_BITS,
	ISA_TOLERANCES
};
/* Why a difference that was found is no failure, or TOLERANCE_NONE. */
enum isa_tolerance isa_tolerance_of(const struct isa_case *test, const struct isa_decoded *decoded,
                                    const struct isa_outcome *native, const struct isa_outcome *guest);
/* The same for bytes that the decoder's table does not know. */
enum isa_tolerance isa_tolerance_of_bytes(const struct isa_case *test, const struct isa_outcome *native,
                                          const struct isa_outcome *guest);
const char *isa_tolerance_name(enum isa_tolerance tolerance);
void isa_print_tolerances(const char *program, const _Atomic uint64_t count[ISA_TOLERANCES]);

/* ---- compare.c ---- */

/* True when they agree. Else `what` (256 bytes) says in which parts they differ, shortly. */
bool isa_compare(const struct isa_case *test, const struct isa_decoded *decoded, const struct isa_outcome *native,
                 const struct isa_outcome *guest, char *what);
/*
 * Do both report that an operand cannot be reached, where processors differ in which of its parts they look at first?
 * Then the exceptions need not agree.
 */
bool isa_same_operand_faults(const struct isa_case *test, const struct isa_decoded *decoded,
                             const struct isa_outcome *native, const struct isa_outcome *guest);

/* Everything about a failed case, for a person. */
void isa_print_failure(FILE *file, const struct isa_case *test, const struct isa_outcome *native,
                       const struct isa_outcome *guest);
