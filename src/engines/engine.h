/*
 * The seam between the machine and what executes guest code. One engine is one `const struct engine`; select.c lists
 * them.
 *
 * run() executes guest instructions on the calling thread, which is the vCPU's own, until something that only the
 * machine can answer happens. Interrupt and exception delivery, paging and all instructions are the engine's business
 * (with x86/'s routines); port and memory-mapped I/O are synchronous calls to vcpu_port_read() and its siblings,
 * because one instruction may need several.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct vcpu;
struct machine;

enum exit_reason {
	EXIT_KICK,      /* ATTENTION_EXIT, INIT, SIPI: the dispatcher looks at what was asked */
	EXIT_HALT,      /* state.activity is ACTIVITY_HALTED: sleep until there is something to do */
	EXIT_SHUTDOWN,  /* triple fault */
	EXIT_DEBUG,     /* single step done, breakpoint or watchpoint hit (vcpu->debug says which) */
	EXIT_EXCEPTION, /* vcpu->exception is one that vcpu->debug.intercept_exceptions names; state is as at the fault
	                 */
	EXIT_ERROR,     /* the engine itself failed (out of memory ...): it has logged why */
};

struct engine {
	const char *name;        /* as --engine takes it */
	const char *description; /* one line for --help */
	/* Can it work on this host? False: `why` (256 bytes) is filled with one clear line. */
	bool (*usable)(char *why);
	int (*vcpu_create)(struct vcpu *vcpu);   /* 0 or -errno; sets vcpu->engine_data */
	void (*vcpu_destroy)(struct vcpu *vcpu); /* the vCPU is not running */
	enum exit_reason (*run)(struct vcpu *vcpu);
	/* state was changed from outside (loaded, debugger, reset): forget what was derived from it. Not while running.
	 */
	void (*state_changed)(struct vcpu *vcpu);
	/* Guest code or page tables were changed from outside by a debugger: forget all decoded code of this vCPU. Not
	 * while running. */
	void (*flush_code)(struct vcpu *vcpu);
	/* Makes a running run() look at vcpu->attention soon. Any thread. NULL: it polls often enough by itself. */
	void (*kick)(struct vcpu *vcpu);
	/* The vCPU is about to sleep, on its thread: memory may be given back. NULL: there is none. */
	void (*rest)(struct vcpu *vcpu);
	/* The engine's own counters, one column for each of `count` vCPUs. Any thread, while they run too: then figures
	 * are a moment old. NULL: it has none. */
	void (*print_stats)(struct vcpu *const *vcpu, unsigned count, FILE *file);
};

extern const struct engine engine_interpreter, engine_translator;

/* How often the translator lets a block be entered before it is translated; 1: at once. */
void translator_set_heat(struct vcpu *vcpu, unsigned entries);
/* For tests, without a machine: all translations are put into a depot and taken from there. 0 or -ENOMEM. */
int translator_set_retake(struct vcpu *vcpu);

/* The engine of that name, or for "auto" the fastest usable one. NULL: unknown or unusable, `why` (256 bytes) says it.
 */
const struct engine *engine_select(const char *name, char *why);
/* All of them, fastest first, ended by NULL. */
extern const struct engine *const engines[];
