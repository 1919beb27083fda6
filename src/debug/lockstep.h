/*
 * --lockstep: every entry into a translated block is checked against the interpreter.
 *
 *	registers and flags ── copy ──┐
 *	translated block, alone, on copies of the pages ("shadows") ──> its result
 *	                              └> back; the interpreter runs the same instructions on the real memory: the truth
 *	compare: RIP, registers, flags that are defined, vector and x87 registers, bytes of the pages, pages written
 *
 * The unit is what translated code does before it leaves: a block, or a part of it up to an instruction that only the
 * interpreter may do (I/O, MMIO, time, sensitive ones: those run once, in the interpreter, and are not compared; nor is
 * what follows them in the block). Flags that a block leaves behind for dead are not compared where it goes on by a
 * jump: the next unit begins with the translated ones, so that a flag wrongly thought dead shows as a wrong result.
 *
 * The first difference is reported, and the machine fails. For one vCPU; memory that a device writes meanwhile may look
 * like a difference.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engines/interpreter/insn.h"

struct lockstep;
struct translator;
struct xblock;

enum lockstep_exit { LOCKSTEP_NONE, LOCKSTEP_SLOT, LOCKSTEP_LINK, LOCKSTEP_ADDRESS, LOCKSTEP_FAULT };

struct lockstep *lockstep_create(struct translator *t); /* NULL: no memory */
void lockstep_destroy(struct lockstep *l);              /* NULL is nothing */

/*
 * Instead of entering `xblock`: a handler in form, at the block's first slot behind the heat. `enter` runs translated
 * code and returns when one of the exits below was taken.
 */
void lockstep_unit(struct lockstep *l, const struct xblock *xblock, uint32_t flags,
                   void (*enter)(struct translator *t, const struct xblock *xblock, uint32_t flags));
/* Translated code leaves: to a slot, to state.rip, or with a fault of the instruction `slot` (raised by the caller). */
void lockstep_left(struct lockstep *l, enum lockstep_exit exit, const struct insn *slot, uint32_t flags);
/* What comes next, the exit to a slot, is that of an access: flags that are dead there may be wrong. */
void lockstep_access(struct lockstep *l);
/* A block that is not translated is about to run. */
void lockstep_interpreted(struct lockstep *l);
/* The instruction that the unit ends at was done in part: nothing can be compared. */
void lockstep_partial(struct lockstep *l);

/*
 * The host's page `page` is being put into the translator's TLB: its copy, which shall be used instead. NULL: there is no
 * more room for copies.
 */
uint8_t *lockstep_page(struct lockstep *l, uint8_t *page, bool write);

bool lockstep_failed(const struct lockstep *l); /* a difference was found */
uint64_t lockstep_units(const struct lockstep *l);
/* What was found, one or more lines; "" when nothing. */
const char *lockstep_report(const struct lockstep *l);
