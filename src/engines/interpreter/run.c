/*
 * The interpreter's run loop: what happens between blocks. Interrupts, traps, single step, breakpoints, faults; finding
 * and linking blocks.
 *
 * Between blocks the arithmetic flags are in their split form (flags.h), which is also written back into rflags before
 * anybody looks.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <x86intrin.h>

#include "debug/disassemble.h"
#include "debug/trace.h"
#include "engines/interpreter/access.h"
#include "engines/interpreter/cache.h"
#include "engines/translator/depot.h"
#include "engines/translator/translator.h"
#include "host/busy_wait.h"
#include "host/log.h"
#include "machine/machine.h"
#include "x86/system.h"

#define INTERPRETER_SHARE (20u << 20)
#define DR6_BS            (1ull << 14)
#define DR7_ANY           0xffull
#define X87_ES            0x0080u /* of FSW: an error that is not masked */
#define REQUESTS          (ATTENTION_EXIT | ATTENTION_INIT | ATTENTION_SIPI)

/* Ways out of a block (insn.h). */

void leave_after(PARAMETERS)
{
	vcpu->state.rip = next_rip(vcpu, insn);
	flags_store(vcpu, flags);
	vcpu->executing = NULL;
	vcpu->counters.instructions += insn->number + 1u;
}

void leave_to(PARAMETERS, struct link *link, uint64_t rip)
{
	if (unlikely(!cpu_canonical(rip)) && cpu_64bit_code(&vcpu->state)) {
		SLOW_ENTER;
		x86_raise(vcpu, VECTOR_GP);
	}
	flags_store(vcpu, flags);
	vcpu->state.rip = rip;
	vcpu->executing = NULL;
	interpreter_of(vcpu)->pending = link;
}

void written_note(struct vcpu *vcpu, struct mmu_tlb_entry *entry)
{
	memory_page_written(vcpu->memory, entry->physical);
}

void written_slow(PARAMETERS, struct mmu_tlb_entry *entry)
{
	bool code = mmu_entry_flags(entry) & PAGE_CODE;

	memory_page_written(vcpu->memory, entry->physical);
	if (code)
		return leave_after(ARGUMENTS);
	NEXT;
}

void leave_exact(struct vcpu *vcpu, const struct insn *insn, bool refresh)
{
	flags_split(vcpu);
	COUNT_BLOCK;
	interpreter_of(vcpu)->refresh |= refresh;
}

void leave_exit(struct vcpu *vcpu, const struct insn *insn, enum exit_reason reason)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	flags_split(vcpu);
	COUNT_BLOCK;
	interpreter->leave = true;
	interpreter->reason = reason;
}

/* What code means now. */

/* Base 0, limit 4 GiB, usable, and for data segments readable and writable in the usual direction. */
static bool segment_flat(const struct cpu_state *s, enum segment_register n)
{
	const struct segment *segment = &s->segment[n];

	if (segment->base || segment->limit != 0xffffffff || (segment->access & SEG_UNUSABLE) ||
	    !(segment->access & SEG_P))
		return false;
	if (segment->access & SEG_CODE)
		return n == SEG_CS && (segment->access & SEG_READABLE);
	return n != SEG_CS && (segment->access & (SEG_WRITABLE | SEG_EXPANDDOWN)) == SEG_WRITABLE;
}

static bool flat(const struct cpu_state *s)
{
	return !cpu_real_or_vm86(s) && segment_flat(s, SEG_CS) && segment_flat(s, SEG_SS) && segment_flat(s, SEG_DS) &&
	       segment_flat(s, SEG_ES);
}

static uint32_t mode_of(const struct cpu_state *s)
{
	uint32_t mode;

	if (cpu_64bit_code(s)) {
		mode = MODE_64;
	} else {
		mode = s->segment[SEG_CS].access & SEG_DB ? MODE_32 : MODE_16;
		if (s->segment[SEG_SS].access & SEG_DB)
			mode |= MODE_STACK32;
		if (flat(s))
			mode |= MODE_FLAT;
	}
	if ((s->cr0 & CR0_AM) && (s->rflags & FLAG_AC) && cpu_cpl(s) == 3)
		mode |= MODE_ALIGN;
	if (cpu_cpl(s) == 1 || cpu_cpl(s) == 2)
		mode |= MODE_INNER;
	return mode;
}

bool code_mode_changed(const struct vcpu *vcpu)
{
	return mode_of(&vcpu->state) != (interpreter_of((struct vcpu *)vcpu)->mode & ~MODE_STEP);
}

static bool instruction_breakpoints(const struct cpu_state *s)
{
	if (!(s->dr[7] & DR7_ANY))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if ((s->dr[7] >> (2 * n) & 3) && !(s->dr[7] >> (16 + 4 * n) & 3))
			return true;
	return false;
}

void interpreter_refresh(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	const struct cpu_state *s = &vcpu->state;
	const struct segment *cs = &s->segment[SEG_CS];

	interpreter->refresh = false;
	native_update_classes(vcpu);
	interpreter->stepping = (s->rflags & FLAG_TF) || vcpu->debug.single_step || vcpu->debug.breakpoint_count ||
	                        trace_on(vcpu->trace, TRACE_EXEC) || instruction_breakpoints(s);
	interpreter->mode = mode_of(s) | (interpreter->stepping ? MODE_STEP : 0);
	interpreter->rip_mask = (interpreter->mode & MODE_SIZE) == MODE_64 ? ~0ull : 0xffffffffull;
	/* Links name targets by RIP, which means something else in another code segment. */
	if (!(interpreter->mode & MODE_FLAT) && (interpreter->mode & MODE_SIZE) != MODE_64 &&
	    (cs->base != interpreter->linked_base || cs->limit != interpreter->linked_limit)) {
		interpreter->linked_base = cs->base;
		interpreter->linked_limit = cs->limit;
		if ((++interpreter->linked_epoch & 0xffff) == 0)
			mmu_forget(vcpu);
	}
	vcpu->code_context = mmu_code_epoch(vcpu) << 24 | (interpreter->linked_epoch & 0xffff) << 8 | cpu_cpl(s) << 6 |
	                     (interpreter->mode & MODE_CONTEXT);
}

/* Leaves run(). */
static bool leave(struct vcpu *vcpu, enum exit_reason reason)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	interpreter->leave = true;
	interpreter->reason = reason;
	return true;
}

static bool leave_debug(struct vcpu *vcpu, unsigned cause, uint64_t address)
{
	vcpu->debug.cause = cause;
	vcpu->debug.hit_address = address;
	return leave(vcpu, EXIT_DEBUG);
}

/* An event was delivered, or a sensitive instruction is done: is there something to leave for? */
static bool after_delivery(struct vcpu *vcpu)
{
	flags_split(vcpu);
	interpreter_of(vcpu)->refresh = true;
	if (vcpu->state.activity == ACTIVITY_SHUTDOWN)
		return leave(vcpu, EXIT_SHUTDOWN);
	if (vcpu->debug.single_step)
		return leave_debug(vcpu, DEBUG_STEP, vcpu->state.rip);
	return false;
}

static void end_ignoring(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (!interpreter->ignoring_error)
		return;
	interpreter->ignoring_error = false;
	native_x87_unmask(vcpu, interpreter->ignored_fcw);
}

/*
 * An x87 error with CR0.NE clear goes to FERR#, and the processor stands still until an interrupt; then the instruction
 * is tried again. With IGNNE# it is done as if there were none (SDM 1 8.7.2). False: it is #MF.
 */
static bool take_ferr(struct vcpu *vcpu)
{
	if (likely(vcpu->exception.vector != VECTOR_MF) || (vcpu->state.cr0 & CR0_NE) || !vcpu->ferr)
		return false;
	if (atomic_load(&vcpu->ignne)) {
		interpreter_of(vcpu)->ignore_error = true;
	} else {
		vcpu->ferr(vcpu->ferr_owner, true);
		vcpu->state.activity = ACTIVITY_HALTED;
	}
	return true;
}

/* A fault was raised, and the jump brought us to the run loop. */
static void fault_taken(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	const struct insn *insn = vcpu->executing;

	if (insn) {
		vcpu->state.rip = (vcpu->state.rip + insn->offset) & interpreter->rip_mask;
		flags_whole(vcpu);
		vcpu->counters.instructions += insn->number;
		vcpu->executing = NULL;
	}
	interpreter->pending = NULL;
	interpreter->refresh = true;
	interpreter->settled_at = 0;
	/* What data breakpoints saw of an instruction that did not complete is forgotten. */
	vcpu->mmu.stop = vcpu->mmu.watchpoint_hit = false;
	vcpu->state.pending_debug = 0;
	end_ignoring(vcpu);
	if (take_ferr(vcpu)) {
		flags_split(vcpu);
		return;
	}
	if (exception_intercepted(vcpu, vcpu->exception.vector)) {
		leave(vcpu, EXIT_EXCEPTION);
		return;
	}
	exception_deliver(vcpu);
	after_delivery(vcpu);
}

/* Interrupts, NMIs and trap-class #DB, between two instructions. True: leave run(). */
static bool take_events(struct vcpu *vcpu)
{
	uint32_t attention = atomic_load_explicit(&vcpu->attention, memory_order_acquire);

	if (attention & REQUESTS)
		return leave(vcpu, EXIT_KICK);
	if (attention & (ATTENTION_STEP | ATTENTION_SMI)) {
		atomic_fetch_and(&vcpu->attention, ~(ATTENTION_STEP | ATTENTION_SMI));
		interpreter_of(vcpu)->refresh = true;
	}
	if (vcpu->state.pending_debug && !(vcpu->state.interrupt_shadow & SHADOW_MOV_SS) &&
	    exception_intercepted(vcpu, VECTOR_DB)) {
		vcpu->exception = (struct exception){.vector = VECTOR_DB, .address = vcpu->state.pending_debug};
		vcpu->state.pending_debug = 0;
		return leave(vcpu, EXIT_EXCEPTION);
	}
	flags_whole(vcpu);
	if (interrupts_take(vcpu))
		return after_delivery(vcpu);
	return false;
}

/* Blocks. */

static void trace_block(struct vcpu *vcpu, const struct block *block)
{
	const struct cpu_state *s = &vcpu->state;
	unsigned bits = 16u << (block->mode & MODE_SIZE);

	trace(vcpu->trace, TRACE_BRANCH, (int)vcpu->index, "%04x:%016llx (physical %#llx), %u instructions",
	      s->segment[SEG_CS].selector, (unsigned long long)s->rip, (unsigned long long)block->physical,
	      block->count);
	if (trace_on(vcpu->trace, TRACE_EXEC)) {
		char text[128];
		disassemble(block->bytes, block->length, bits, s->rip, text, sizeof(text));
		trace(vcpu->trace, TRACE_EXEC, (int)vcpu->index, "%04x:%016llx %s", s->segment[SEG_CS].selector,
		      (unsigned long long)s->rip, text);
	}
}

static struct block *next_block(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct block *block = link_block(vcpu, jump_cache_link(vcpu, vcpu->state.rip), vcpu->state.rip);

	if (!block) {
		flags_whole(vcpu);
		block = block_find(vcpu);
	}
	/* block_find() may have emptied the cache, and with it what `pending` points to; it is NULL then. */
	struct link *link = interpreter->pending;
	interpreter->pending = NULL;
	if (link && block_linkable(interpreter, block) && !interpreter->no_links && !interpreter->refresh)
		*link = (struct link){vcpu->state.rip, vcpu->code_context, block};
	return block;
}

static void enter_block(struct vcpu *vcpu)
{
	struct block *block = next_block(vcpu);

	if (unlikely(interpreter_of(vcpu)->no_links))
		trace_block(vcpu, block);
	vcpu->executing = NULL;
	block->insn[0].run(vcpu, block->insn, flags_load(vcpu), vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
}

/* Instruction by instruction. */

static uint64_t code_linear(const struct cpu_state *s)
{
	return cpu_64bit_code(s) ? s->rip : (uint32_t)(s->segment[SEG_CS].base + s->rip);
}

/* The debugger's breakpoints, then DR0-DR3. True: leave run(). Raises #DB. */
static bool check_breakpoints(struct vcpu *vcpu)
{
	struct cpu_state *s = &vcpu->state;
	uint64_t linear = code_linear(s), hit = 0;
	bool skip = vcpu->debug.skip_breakpoint_once;

	vcpu->debug.skip_breakpoint_once = false;
	for (unsigned i = 0; i < vcpu->debug.breakpoint_count && !skip; i++)
		if (vcpu->debug.breakpoint[i] == linear)
			return leave_debug(vcpu, DEBUG_BREAKPOINT, linear);
	/* A MOV SS before it suppresses an instruction breakpoint (SDM 3A 6.8.3), and RF does (17.3.1.1). */
	if (!instruction_breakpoints(s) || (s->rflags & FLAG_RF) || (s->interrupt_shadow & SHADOW_MOV_SS))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if ((s->dr[7] >> (2 * n) & 3) && !(s->dr[7] >> (16 + 4 * n) & 3) && s->dr[n] == linear)
			hit |= 1ull << n;
	if (hit) {
		flags_whole(vcpu);
		x86_raise_debug(vcpu, hit);
	}
	return false;
}

/* Executes one instruction with all that can be watched around it. True: leave run(). */
static bool step(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct cpu_state *s = &vcpu->state;
	bool trap = s->rflags & FLAG_TF;

	if (check_breakpoints(vcpu))
		return true;
	if (!(interpreter->mode & MODE_STEP)) { /* an interrupt shadow is what we step for */
		interpreter->mode |= MODE_STEP;
		vcpu->code_context |= MODE_STEP;
		interpreter->refresh = true;
	}
	s->interrupt_shadow = 0;
	s->rflags &= ~FLAG_RF;
	interpreter->no_trap = false;
	enter_block(vcpu);
	/* A load of SS loses its own single-step trap (SDM 3A 6.8.3). */
	if (trap && !interpreter->no_trap && !(s->interrupt_shadow & SHADOW_MOV_SS))
		s->pending_debug |= DR6_BS;
	/* A trap behind a HLT comes before the sleep, and ends it (SDM 2A HLT: a debug exception resumes). */
	if (s->pending_debug && interpreter->leave && interpreter->reason == EXIT_HALT) {
		interpreter->leave = false;
		s->activity = ACTIVITY_RUNNING;
	}
	if (interpreter->leave)
		return true;
	if (vcpu->mmu.watchpoint_hit)
		return false; /* the loop leaves with it */
	if (vcpu->debug.single_step)
		return leave_debug(vcpu, DEBUG_STEP, s->rip);
	return false;
}

/* While IGNNE# is asserted, that is until the handler has ended the error: one instruction. True: leave run(). */
static bool step_with_ignne(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (interpreter->ignore_error) {
		interpreter->ignore_error = false;
		interpreter->ignored_fcw = native_x87_mask(vcpu);
		interpreter->ignoring_error = true;
	}
	bool left = step(vcpu);
	end_ignoring(vcpu);
	native_x87_save(vcpu);
	if (!(vcpu->state.x87.fsw & X87_ES) || (vcpu->state.cr0 & CR0_NE))
		vcpu->ferr(vcpu->ferr_owner, false);
	return left;
}

/* One turn of the loop. True: leave run(). */
static bool turn(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	struct cpu_state *s = &vcpu->state;

	if (unlikely(vcpu->mmu.stop)) {
		vcpu->mmu.stop = false;
		if (vcpu->mmu.watchpoint_hit) {
			vcpu->mmu.watchpoint_hit = false;
			return leave_debug(vcpu, DEBUG_WATCHPOINT, vcpu->debug.hit_address);
		}
	}
	if (unlikely(interpreter->cache_full)) {
		interpreter->cache_full = false;
		translator_advance(interpreter->translator);
	}
	if (interpreter->refresh) {
		if (unlikely(s->activity != ACTIVITY_RUNNING))
			return leave(vcpu, s->activity == ACTIVITY_SHUTDOWN ? EXIT_SHUTDOWN : EXIT_HALT);
		interpreter_refresh(vcpu);
	}
	bool events = atomic_load_explicit(&vcpu->attention, memory_order_relaxed) || s->pending_debug;
	if (unlikely(events)) {
		if (vcpu->counters.instructions < interpreter->settled_at && !interpreter->stepping &&
		    !s->pending_debug) {
			uint64_t before = vcpu->counters.instructions;
			bool leaves = step(vcpu);

			/* A repeated string instruction on its way: what waits does not wait for all of it. */
			if (vcpu->counters.instructions == before)
				interpreter->settled_at = 0;
			return leaves;
		}
		if (take_events(vcpu))
			return true;
		if (interpreter->refresh)
			return false;
	}
	if (unlikely(atomic_load_explicit(&vcpu->ignne, memory_order_relaxed)))
		return step_with_ignne(vcpu);
	/* With something waiting, the instruction in the shadow runs alone; else the shadow has nothing to hide. */
	if (interpreter->stepping || (s->interrupt_shadow && events))
		return step(vcpu);
	s->interrupt_shadow = 0;
	s->rflags &= ~FLAG_RF; /* without instruction breakpoints nobody can tell */
	enter_block(vcpu);
	return interpreter->leave;
}

static enum exit_reason run_loop(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (_setjmp(interpreter->fault)) {
		fault_taken(vcpu);
		if (interpreter->leave)
			return interpreter->reason;
	}
	while (!turn(vcpu))
		;
	return interpreter->reason;
}

static enum exit_reason interpreter_run(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);
	int error = native_thread_enter(interpreter->native);

	if (error) {
		log_error("cpu %u: cannot prepare the thread for guest code: error %d", vcpu->index, error);
		return EXIT_ERROR;
	}
	if (interpreter->model != vcpu->model) {
		interpreter->model = vcpu->model;
		block_cache_flush(vcpu);
	}
	/* The debugger may have set watchpoints or breakpoints meanwhile, or switched traces. */
	if (vcpu->debug.watchpoint_count || vcpu->mmu.watching)
		mmu_update_watches(vcpu);
	bool no_links = trace_on(vcpu->trace, TRACE_EXEC) || trace_on(vcpu->trace, TRACE_BRANCH);
	if (no_links != interpreter->no_links) {
		interpreter->no_links = no_links;
		mmu_forget(vcpu);
	}
	vcpu->fault_target = &interpreter->fault;
	vcpu->executing = NULL;
	vcpu->mmu.stop = vcpu->mmu.watchpoint_hit = false;
	vcpu->interrupt_deferred = true;
	interpreter->pending = NULL;
	interpreter->leave = false;
	interpreter->refresh = true;
	interpreter->settled_at = 0;
	interpreter->ignore_error = interpreter->ignoring_error = false;
	flags_split(vcpu);
	uint64_t started = __rdtsc();
	enum exit_reason reason = run_loop(vcpu);
	vcpu->counters.run_ticks += __rdtsc() - started;
	flags_whole(vcpu);
	vcpu->executing = NULL;
	native_thread_leave(interpreter->native);
	return reason;
}

/* The engine. */

static bool interpreter_usable(char *why)
{
	return true;
}

static void interpreter_vcpu_destroy(struct vcpu *vcpu)
{
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (!interpreter)
		return;
	translator_destroy(interpreter->translator);
	interpreter->translator = NULL;
	block_cache_destroy(interpreter);
	if (interpreter->native)
		native_destroy(interpreter->native);
	free(interpreter);
	vcpu->engine_data = NULL;
}

/* Of --code-cache. Without a translator it bounds what is decoded, which needs no more than its own size. */
static uint64_t cache_share(const struct vcpu *vcpu)
{
	uint64_t size = vcpu->machine ? vcpu->machine->options.code_cache : 0;

	if (!size)
		return 0;
	if (vcpu->engine != &engine_interpreter)
		return depot_rest_for_each(size, vcpu->machine->options.cpus);
	size /= vcpu->machine->options.cpus;
	return size > INTERPRETER_SHARE ? 0 : size;
}

static int interpreter_vcpu_create(struct vcpu *vcpu)
{
	struct interpreter *interpreter = calloc(1, sizeof(*interpreter));
	int error;

	if (!interpreter)
		return -ENOMEM;
	vcpu->engine_data = interpreter;
	error = native_install_handlers();
	if (!error)
		error = block_cache_create(interpreter, cache_share(vcpu));
	if (!error) {
		interpreter->native = native_create(vcpu);
		if (!interpreter->native)
			error = errno ? -errno : -ENOMEM;
	}
	if (error) {
		interpreter_vcpu_destroy(vcpu);
		return error;
	}
	interpreter->model = vcpu->model;
	block_cache_flush(vcpu);
	return 0;
}

static void interpreter_state_changed(struct vcpu *vcpu)
{
	/* run() takes everything afresh, but for what links rest on. */
	mmu_forget(vcpu);
	mmu_update_view(vcpu);
}

static void interpreter_flush_code(struct vcpu *vcpu)
{
	mmu_forget(vcpu);
	block_cache_flush(vcpu);
	if (interpreter_of(vcpu)->translator)
		translator_forget_shared(interpreter_of(vcpu)->translator);
}

static void interpreter_rest(struct vcpu *vcpu)
{
	if (block_cache_rest(vcpu, busy_wait_now(), __rdtsc()))
		malloc_trim(0);
}

static bool translator_usable(char *why)
{
	if (__builtin_cpu_supports("bmi2"))
		return true;
	snprintf(why, 256, "the translator needs a host CPU with BMI2");
	return false;
}

static int translator_vcpu_create(struct vcpu *vcpu)
{
	int error = interpreter_vcpu_create(vcpu);

	if (error)
		return error;
	interpreter_of(vcpu)->translator = translator_create(vcpu);
	if (!interpreter_of(vcpu)->translator) {
		error = errno ? -errno : -ENOMEM;
		interpreter_vcpu_destroy(vcpu);
	}
	return error;
}

/* The same run loop and decoded blocks, with hot blocks translated (engines/translator). */
const struct engine engine_translator = {
    .name = "translator",
    .description = "translates hot code, interprets the rest",
    .usable = translator_usable,
    .vcpu_create = translator_vcpu_create,
    .vcpu_destroy = interpreter_vcpu_destroy,
    .run = interpreter_run,
    .state_changed = interpreter_state_changed,
    .flush_code = interpreter_flush_code,
    .rest = interpreter_rest,
    .print_stats = translator_print_stats,
};

const struct engine engine_interpreter = {
    .name = "interpreter",
    .description = "decodes once and interprets; complete, and what the others are tested against",
    .usable = interpreter_usable,
    .vcpu_create = interpreter_vcpu_create,
    .vcpu_destroy = interpreter_vcpu_destroy,
    .run = interpreter_run,
    .state_changed = interpreter_state_changed,
    .flush_code = interpreter_flush_code,
    .rest = interpreter_rest,
};
