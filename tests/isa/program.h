/*
 * Random programs: what the parts share.
 *
 *	program_generate.c  a seed -> code with loops, calls, indirect jumps, stack use, string instructions, vectors,
 *	                    faults, and stores into its own code
 *	program_native.c    runs it on the host, in a guarded child
 *	program_guest.c     runs it on an engine
 *	programs.c          compares
 *
 * A program runs at the same linear addresses everywhere, at CPL 3. An exception is noted and the program goes on, with
 * fixed flags, at the next statement behind the instruction (its "handler"); INT3 at `end` ends it. Every loop and
 * call burns fuel, which is in memory where no random store reaches.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "random.h"
#include "x86/cpu_state.h"

#define PROGRAM_CODE       0x20000000u
#define PROGRAM_CODE_SIZE  0x8000u /* readable, writable and executable; nothing on either side */
#define PROGRAM_DATA       0x30000000u
#define PROGRAM_DATA_SIZE  0x4000u
#define PROGRAM_READ_ONLY  0x30005000u /* behind a hole; one page */
#define PROGRAM_STACK      0x30008000u
#define PROGRAM_STACK_SIZE 0x2000u
#define PROGRAM_CONTROL    0x3000c000u /* fuel and loop counters */
#define PROGRAM_PAGES      (8 + 4 + 1 + 2 + 1)

#define PROGRAM_LABELS_MAX 2048
#define PROGRAM_TRAPS_MAX  256
#define RESUME_FLAGS       0x202u

struct program_window {
	uint32_t linear, pages;
	bool writable, executable;
};
#define PROGRAM_WINDOWS 5
extern const struct program_window program_windows[PROGRAM_WINDOWS]; /* in the order of a program's `memory` */

struct program {
	uint64_t seed;
	uint8_t bits; /* 64 or 32 */
	uint64_t gpr[GPR_COUNT];
	uint64_t rflags;
	struct vector_state vector;                      /* XMM and YMM, MXCSR */
	uint32_t end;                                    /* linear address of the INT3 */
	uint32_t label_count, label[PROGRAM_LABELS_MAX]; /* starts of statements, ascending */
	uint32_t code_length;
	uint8_t memory[PROGRAM_PAGES][4096];
};

struct program_trap {
	uint8_t vector;
	uint32_t error;
	uint64_t rip, cr2;
	uint64_t registers; /* a hash of all general registers */
};

struct program_result {
	bool ended; /* else `text` says what went wrong */
	char text[128];
	uint32_t trap_count;
	struct program_trap trap[PROGRAM_TRAPS_MAX];
	uint64_t gpr[GPR_COUNT];
	uint64_t rip, rflags;
	struct x87_state x87;
	struct vector_state vector;
	uint8_t memory[PROGRAM_PAGES][4096];
};

void program_generate(struct program *program, uint64_t seed, unsigned bits);

/*
 * What both sides do about an exception: notes it, and says where the program goes on; 0: it has ended, or there were
 * too many. `rip` is that of the exception.
 */
uint64_t program_trapped(const struct program *program, struct program_result *result, unsigned vector, uint32_t error,
                         uint64_t cr2, uint64_t rip, const uint64_t gpr[GPR_COUNT]);

/* ---- program_native.c ---- */

struct program_native;
struct program_native *program_native_create(void); /* NULL: errno */
void program_native_destroy(struct program_native *native);
/* In memory that the child shares: fill in the program, run, read the result. */
struct program *program_native_program(struct program_native *native);
const struct program_result *program_native_run(struct program_native *native); /* NULL: errno */

/* ---- program_guest.c ---- */

struct program_guest;
struct program_guest *program_guest_create(bool translator, unsigned heat); /* NULL after one message */
/* Checks every translated block against the interpreter (debug/lockstep.h). False: no memory. */
bool program_guest_lockstep(struct program_guest *guest);
/* All translations are made, put into a depot, and taken from there. False: no memory. */
bool program_guest_take_translations(struct program_guest *guest);
/* How many were put there (`given`), and taken. */
uint64_t program_guest_taken(const struct program_guest *guest, uint64_t *given);
/* What lockstep found; NULL: nothing. */
const char *program_guest_difference(const struct program_guest *guest);
/*
 * The `after`th block from now on that has a suitable instruction is translated wrongly: an addition becomes an OR, an
 * AND a subtraction ... Returns a counter of blocks spoiled so far.
 */
const unsigned *program_guest_plant(struct program_guest *guest, unsigned after);
void program_guest_destroy(struct program_guest *guest);
uint64_t program_guest_instructions(const struct program_guest *guest); /* that the interpreter has done for it */
/* `switches`: the engine is exchanged whenever a kick stops it. */
void program_guest_run(struct program_guest *guest, const struct program *program, struct program_result *result,
                       bool kicks, bool switches);
