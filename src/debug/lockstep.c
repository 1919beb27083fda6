/* See lockstep.h. */
#include "debug/lockstep.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "debug/disassemble.h"
#include "engines/interpreter/cache.h"
#include "engines/translator/translator.h"
#include "host/log.h"
#include "machine/machine.h"
#include "memory/memory.h"

#define SHADOWS_MAX 64
#define REPORT_SIZE 32768
#define UNLINKED    UINT64_MAX /* a code context that no link was made for */
#define EFFECTS     4096       /* a power of two */

/* What a unit may change. */
struct registers {
	uint64_t gpr[GPR_COUNT], rip, rflags; /* rflags without arithmetic flags; those are in `flags` (flags.h) */
	uint32_t flags;
	uint64_t fs_base, gs_base, kernel_gs_base;
	enum mmu_view view;
	uint8_t shadow;
	struct x87_state x87;
};

/* What a block, all of it, does to flags (flags.h). */
struct effect {
	uint64_t physical;
	uint32_t generation, mode;
	unsigned length; /* 0: of none */
	uint32_t kept, undefined;
};

struct lockstep {
	struct translator *t;
	struct vcpu *vcpu;
	/* Of the unit under way. */
	const struct xblock *xblock;
	enum lockstep_exit exit;
	const struct insn *slot;
	bool partial, access, vectors;
	struct registers start, theirs;
	struct vector_state start_vector, their_vector, truth_vector;
	uint32_t start_flags; /* that translated code began with */
	struct exception their_exception;
	uint64_t walks, walks_after; /* page walks before the first shadow, and at the end of translated code */
	bool wrote;
	unsigned shadow_count;
	struct {
		uint8_t *page, *copy;
		bool written;
	} shadow[SHADOWS_MAX];
	uint8_t *copies;
	unsigned ran; /* parts of the block that the interpreter began */
	/* The interpreter stopped at the slot. */
	struct insn saved;
	bool stopped;
	uint32_t stopped_flags;
	/* Translated flags of the last unit, for the next one. */
	bool follows;
	uint64_t next_rip, next_instructions, next_events;
	uint32_t next_flags;
	struct effect effect[EFFECTS];

	struct memory_write_log log;
	uint64_t units;
	bool failed;
	size_t length;
	char report[REPORT_SIZE];
};

struct lockstep *lockstep_create(struct translator *t)
{
	struct lockstep *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->copies = aligned_alloc(MEMORY_PAGE_SIZE, (size_t)SHADOWS_MAX * MEMORY_PAGE_SIZE);
	if (!l->copies) {
		free(l);
		return NULL;
	}
	l->t = t;
	l->vcpu = t->vcpu;
	memory_log_start(t->vcpu->memory, &l->log);
	return l;
}

void lockstep_destroy(struct lockstep *l)
{
	if (!l)
		return;
	memory_log_stop(l->vcpu->memory);
	free(l->copies);
	free(l);
}

bool lockstep_failed(const struct lockstep *l)
{
	return l->failed;
}

uint64_t lockstep_units(const struct lockstep *l)
{
	return l->units;
}

const char *lockstep_report(const struct lockstep *l)
{
	return l->report;
}

/* ---- the parts of a translated block ---- */

static unsigned parts_of(const struct xblock *xblock)
{
	return 1u + xblock->more_count;
}

static const struct block *part_of(const struct xblock *xblock, unsigned n)
{
	return n ? xblock_part(xblock, n) : xblock->block;
}

static uint64_t base_of(const struct xblock *xblock, unsigned n)
{
	return n ? (uint64_t)(int64_t)xblock_part_base(xblock, n) : 0;
}

static bool has_slot(const struct block *block, const struct insn *slot)
{
	return slot && slot >= block->insn && (const uint8_t *)slot < block->bytes;
}

/* ---- state ---- */

static void take(struct lockstep *l, struct registers *r, struct vector_state *vector, uint32_t flags)
{
	struct vcpu *vcpu = l->vcpu;
	const struct cpu_state *s = &vcpu->state;

	native_x87_save(vcpu);
	memcpy(r->gpr, s->gpr, sizeof(r->gpr));
	r->rip = s->rip;
	r->rflags = s->rflags & ~(uint64_t)FLAG_ARITHMETIC;
	r->flags = flags & 0xffff;
	r->fs_base = s->segment[SEG_FS].base;
	r->gs_base = s->segment[SEG_GS].base;
	r->kernel_gs_base = s->msr.kernel_gs_base;
	r->view = vcpu->mmu.view;
	r->shadow = s->interrupt_shadow;
	r->x87 = s->x87;
	if (l->vectors)
		*vector = s->vector;
	else
		vector->mxcsr = s->vector.mxcsr;
}

static void put_back(struct lockstep *l)
{
	struct vcpu *vcpu = l->vcpu;
	struct cpu_state *s = &vcpu->state;

	memcpy(s->gpr, l->start.gpr, sizeof(s->gpr));
	s->rip = l->start.rip;
	s->rflags = (s->rflags & FLAG_ARITHMETIC) | l->start.rflags;
	s->segment[SEG_FS].base = l->start.fs_base;
	s->segment[SEG_GS].base = l->start.gs_base;
	s->msr.kernel_gs_base = l->start.kernel_gs_base;
	vcpu->mmu.view = l->start.view;
	s->interrupt_shadow = l->start.shadow;
	s->x87 = l->start.x87;
	if (l->vectors)
		s->vector = l->start_vector;
	s->vector.mxcsr = l->start_vector.mxcsr;
	flags_store(vcpu, l->start.flags);
	vcpu->executing = NULL;
}

/* ---- memory of translated code ---- */

uint8_t *lockstep_page(struct lockstep *l, uint8_t *page, bool write)
{
	unsigned n = 0;

	while (n < l->shadow_count && l->shadow[n].page != page)
		n++;
	if (n == SHADOWS_MAX)
		return NULL;
	if (n == l->shadow_count) {
		l->shadow[n].page = page;
		l->shadow[n].copy = l->copies + (size_t)n * MEMORY_PAGE_SIZE;
		l->shadow[n].written = false;
		memcpy(l->shadow[n].copy, page, MEMORY_PAGE_SIZE);
		l->shadow_count++;
	}
	if (write && !l->wrote) {
		l->wrote = true;
		l->walks = l->vcpu->counters.page_walks;
	}
	l->shadow[n].written |= write;
	return l->shadow[n].copy;
}

/* ---- what differs ---- */

static void __attribute__((format(printf, 2, 0))) add(struct lockstep *l, const char *format, va_list arguments)
{
	int more = vsnprintf(l->report + l->length, REPORT_SIZE - l->length, format, arguments);

	if (more > 0)
		l->length += (size_t)more < REPORT_SIZE - l->length ? (size_t)more : REPORT_SIZE - l->length - 1;
}

/* The first line says where. */
static void __attribute__((format(printf, 2, 3))) say(struct lockstep *l, const char *format, ...)
{
	va_list arguments;

	if (!l->length)
		l->length = (size_t)snprintf(l->report, REPORT_SIZE,
		                             "block at %016" PRIx64 " (physical %#" PRIx64 "), unit %" PRIu64 ":\n",
		                             l->start.rip, l->xblock->block->physical, l->units);
	va_start(arguments, format);
	add(l, format, arguments);
	va_end(arguments);
}

static void differ(struct lockstep *l, const char *name, uint64_t theirs, uint64_t truth, uint64_t before)
{
	say(l, "  %-8s translated %016" PRIx64 "  interpreted %016" PRIx64 "  before %016" PRIx64 "\n", name, theirs,
	    truth, before);
}

/* Bits of `hot` (flags.h) for flags as RFLAGS and Zydis name them. */
static uint32_t hot_of(uint32_t flags)
{
	return (flags & 0xd5) << 8 | (flags >> 11 & 1);
}

/* Of a block's instructions that begin before `end`: flags that all keep, and those that they leave undefined. */
static void follow_flags(const struct lockstep *l, const struct block *block, unsigned end, uint32_t *kept,
                         uint32_t *undefined)
{
	ZydisDecoder decoder;

	guest_decoder_init(&decoder, block->mode & MODE_SIZE, l->vcpu->model);
	*kept = ~0u;
	*undefined = 0;
	for (unsigned at = 0; at < end;) {
		ZydisDecodedInstruction i;

		if (!ZYAN_SUCCESS(
		        ZydisDecoderDecodeInstruction(&decoder, NULL, block->bytes + at, block->length - at, &i))) {
			*undefined = ~0u;
			return;
		}
		const ZydisAccessedFlags *f = i.cpu_flags;
		if (f) {
			/* A shift by a count of 0 changes none. */
			if (i.meta.category != ZYDIS_CATEGORY_SHIFT && i.meta.category != ZYDIS_CATEGORY_ROTATE) {
				uint32_t written = hot_of(f->modified | f->set_0 | f->set_1);

				*kept &= ~written;
				*undefined &= ~written;
			}
			*undefined |= hot_of(f->undefined);
		}
		at += i.length;
	}
}

/* Of `flags`, which need not agree where the unit begins, and those that its instructions leave undefined: at its end. */
static uint32_t flags_at_end(struct lockstep *l, uint32_t flags)
{
	for (unsigned n = 0; n < l->ran; n++) {
		const struct block *block = part_of(l->xblock, n);
		uint32_t kept, undefined;

		if (l->exit == LOCKSTEP_SLOT && has_slot(block, l->slot)) {
			follow_flags(l, block, l->slot->offset, &kept, &undefined);
		} else {
			struct effect *e = &l->effect[block->physical % EFFECTS];

			if (block->crosses || e->physical != block->physical || e->generation != block->generation ||
			    e->mode != block->mode || e->length != block->length) {
				follow_flags(l, block, block->length, &e->kept, &e->undefined);
				e->physical = block->physical;
				e->generation = block->generation;
				e->mode = block->mode;
				e->length = block->length;
			}
			kept = e->kept;
			undefined = e->undefined;
		}
		flags = (flags & kept) | undefined;
	}
	return flags;
}

/*
 * Flags that need not agree at the unit's end: what its instructions left undefined, and what differed already and was
 * passed on.
 */
static uint32_t tolerated_flags(struct lockstep *l)
{
	return flags_at_end(l, l->start_flags ^ l->start.flags);
}

static void compare_registers(struct lockstep *l, const struct registers *truth)
{
	static const char *const names[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	                                             "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	const struct registers *theirs = &l->theirs, *start = &l->start;

	for (unsigned i = 0; i < GPR_COUNT; i++)
		if (theirs->gpr[i] != truth->gpr[i])
			differ(l, names[i], theirs->gpr[i], truth->gpr[i], start->gpr[i]);
	if (theirs->rip != truth->rip && l->exit != LOCKSTEP_FAULT)
		differ(l, "rip", theirs->rip, truth->rip, start->rip);
	if (theirs->rflags != truth->rflags)
		differ(l, "rflags", theirs->rflags, truth->rflags, start->rflags);
	/* A jump leaves dead flags behind, and so do a fault and an access that the interpreter has to make. */
	if ((l->exit == LOCKSTEP_SLOT || l->exit == LOCKSTEP_ADDRESS) && !l->access && theirs->flags != truth->flags &&
	    ((theirs->flags ^ truth->flags) & (HOT_CF | HOT_PF | HOT_AF | HOT_ZF | HOT_SF | HOT_OF) &
	     ~tolerated_flags(l)))
		differ(l, "flags", theirs->flags, truth->flags, start->flags);
	if (theirs->fs_base != truth->fs_base)
		differ(l, "fs_base", theirs->fs_base, truth->fs_base, start->fs_base);
	if (theirs->gs_base != truth->gs_base)
		differ(l, "gs_base", theirs->gs_base, truth->gs_base, start->gs_base);
	if (theirs->kernel_gs_base != truth->kernel_gs_base)
		differ(l, "kernel_gs_base", theirs->kernel_gs_base, truth->kernel_gs_base, start->kernel_gs_base);
	if (theirs->view != truth->view)
		differ(l, "view", theirs->view, truth->view, start->view);
	/* An STI with IF set has no shadow, but translated code has one then, too (translate_sti). */
	if (theirs->shadow != truth->shadow && !(start->rflags & FLAG_IF))
		differ(l, "shadow", theirs->shadow, truth->shadow, start->shadow);
}

static void compare_units(struct lockstep *l, const struct registers *truth)
{
	const struct vector_state *vector = &l->truth_vector;
	char name[16];

	if (l->theirs.x87.fcw != truth->x87.fcw || l->theirs.x87.fsw != truth->x87.fsw ||
	    l->theirs.x87.ftw != truth->x87.ftw)
		differ(l, "x87",
		       (uint64_t)l->theirs.x87.ftw << 32 | (uint64_t)l->theirs.x87.fcw << 16 | l->theirs.x87.fsw,
		       (uint64_t)truth->x87.ftw << 32 | (uint64_t)truth->x87.fcw << 16 | truth->x87.fsw, 0);
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(l->theirs.x87.st[i], truth->x87.st[i], 10) != 0)
			say(l, "  st%u differs\n", i);
	if (l->their_vector.mxcsr != vector->mxcsr)
		differ(l, "mxcsr", l->their_vector.mxcsr, vector->mxcsr, l->start_vector.mxcsr);
	if (!l->vectors)
		return;
	for (unsigned i = 0; i < 32; i++)
		for (unsigned part = 0; part < 8; part++) {
			uint64_t theirs, ours, before;

			memcpy(&theirs, l->their_vector.zmm[i] + 8 * part, 8);
			memcpy(&ours, vector->zmm[i] + 8 * part, 8);
			memcpy(&before, l->start_vector.zmm[i] + 8 * part, 8);
			snprintf(name, sizeof(name), "zmm%u.%u", i, part);
			if (theirs != ours)
				differ(l, name, theirs, ours, before);
		}
	for (unsigned i = 0; i < 8; i++)
		if (l->their_vector.opmask[i] != vector->opmask[i])
			differ(l, "opmask", l->their_vector.opmask[i], vector->opmask[i], l->start_vector.opmask[i]);
}

static void compare_memory(struct lockstep *l)
{
	struct memory *memory = l->vcpu->memory;
	unsigned logged = atomic_load(&l->log.count);

	for (unsigned n = 0; n < l->shadow_count; n++) {
		const uint8_t *page = l->shadow[n].page, *copy = l->shadow[n].copy;

		/* Of the others the log tells, below. */
		if (!l->shadow[n].written || memcmp(page, copy, MEMORY_PAGE_SIZE) == 0)
			continue;
		for (unsigned at = 0, shown = 0; at < MEMORY_PAGE_SIZE; at++)
			if (page[at] != copy[at] && shown++ < 16)
				say(l, "  byte at physical %#" PRIx64 ": translated %02x, interpreted %02x\n",
				    memory_physical(memory, page) + at, copy[at], page[at]);
	}
	/* Pages that only the interpreter wrote. */
	for (unsigned i = 0; i < logged && i < MEMORY_LOG_MAX; i++) {
		const uint8_t *page = memory_pointer(memory, l->log.page[i] << MEMORY_PAGE_SHIFT, MEMORY_PAGE_SIZE);
		unsigned n = 0;

		while (n < l->shadow_count && !(l->shadow[n].page == page && l->shadow[n].written))
			n++;
		if (n == l->shadow_count)
			say(l, "  page at physical %#" PRIx64 " was written by the interpreter only\n",
			    l->log.page[i] << MEMORY_PAGE_SHIFT);
	}
}

/* A fault's RIP is its block's, with the instruction in `executing`, or whole. */
static uint64_t fault_rip(const struct registers *r, const struct insn *insn)
{
	return r->rip + (insn ? insn->offset : 0);
}

static void compare_exceptions(struct lockstep *l, const struct registers *truth_registers, bool raised)
{
	const struct exception *theirs = &l->their_exception, *truth = &l->vcpu->exception;
	const struct insn *executing = l->vcpu->executing;

	if (raised != (l->exit == LOCKSTEP_FAULT)) {
		say(l, "  exception: translated %s", l->exit == LOCKSTEP_FAULT ? "" : "none\n");
		if (l->exit == LOCKSTEP_FAULT)
			say(l, "vector %u error %#x address %#" PRIx64 "\n", theirs->vector, theirs->error,
			    theirs->address);
		say(l, "             interpreted %s", raised ? "" : "none\n");
		if (raised)
			say(l, "vector %u error %#x address %#" PRIx64 "\n", truth->vector, truth->error,
			    truth->address);
		return;
	}
	if (raised && (theirs->vector != truth->vector || theirs->error != truth->error ||
	               (truth->vector == VECTOR_PF && theirs->address != truth->address) ||
	               fault_rip(&l->theirs, l->slot) != fault_rip(truth_registers, executing)))
		say(l,
		    "  exception: translated vector %u error %#x address %#" PRIx64 " at %016" PRIx64
		    "\n             interpreted vector %u error %#x address %#" PRIx64 " at %016" PRIx64 "\n",
		    theirs->vector, theirs->error, theirs->address, fault_rip(&l->theirs, l->slot), truth->vector,
		    truth->error, truth->address, fault_rip(truth_registers, executing));
}

static void show_code(struct lockstep *l)
{
	const struct xblock *xblock = l->xblock;
	unsigned bits = xblock->block->mode == MODE_64 ? 64 : 32;
	char text[128];

	say(l, "guest code%s:\n", l->exit == LOCKSTEP_SLOT ? ", up to the mark" : "");
	for (unsigned n = 0; n < parts_of(xblock); n++) {
		const struct block *block = part_of(xblock, n);
		uint64_t rip = l->start.rip + base_of(xblock, n);

		for (unsigned at = 0; at < block->length;) {
			unsigned length =
			    disassemble(block->bytes + at, block->length - at, bits, rip + at, text, sizeof(text));
			bool here = (l->exit == LOCKSTEP_SLOT || l->exit == LOCKSTEP_FAULT) &&
			            has_slot(block, l->slot) && l->slot->offset == at;

			say(l, " %c%016" PRIx64 " %s\n", here ? '>' : ' ', rip + at, text);
			at += length;
		}
	}
	say(l, "host code:\n");
	for (const uint8_t *at = xblock->code; at < xblock->code + xblock->size;) {
		uint64_t host = (uint64_t)(uintptr_t)code_arena_executable(&l->t->arena, at);
		unsigned length =
		    disassemble(at, (size_t)(xblock->code + xblock->size - at), 64, host, text, sizeof(text));

		say(l, "  %012" PRIx64 " %s\n", host, text);
		at += length;
	}
}

static void fail(struct lockstep *l)
{
	struct vcpu *vcpu = l->vcpu;

	l->failed = true;
	show_code(l);
	if (!vcpu->machine)
		return;
	log_error("cpu %u: lockstep: translated code differs from the interpreter's\n%s", vcpu->index, l->report);
	machine_end(vcpu->machine, MACHINE_FAILED, 0);
}

/* Did the interpreter leave a repeated string instruction in its middle, because something waits? */
static bool left_in_string(struct lockstep *l, uint64_t rip)
{
	const struct block *block = part_of(l->xblock, l->ran - 1);
	uint64_t at = rip - l->start.rip - base_of(l->xblock, l->ran - 1);
	ZydisDecoder decoder;
	ZydisDecodedInstruction i;

	if (rip == l->theirs.rip || at >= block->length)
		return false;
	guest_decoder_init(&decoder, block->mode & MODE_SIZE, l->vcpu->model);
	return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, block->bytes + at, block->length - at, &i)) &&
	       i.meta.category == ZYDIS_CATEGORY_STRINGOP;
}

static void compare(struct lockstep *l, const struct registers *truth, bool raised)
{
	if (!raised && l->exit != LOCKSTEP_SLOT && left_in_string(l, truth->rip)) {
		l->t->counters.lockstep_uncertain++;
		return;
	}
	l->length = 0;
	l->report[0] = '\0';
	compare_exceptions(l, truth, raised);
	if (!l->length) {
		compare_registers(l, truth);
		compare_units(l, truth);
		compare_memory(l);
	}
	if (l->length && l->wrote && l->walks_after != l->walks) {
		/* It wrote to memory and then needed translations: they may have come from what it wrote. */
		l->t->counters.lockstep_uncertain++;
		l->report[0] = '\0';
	} else if (l->length) {
		fail(l);
	}
}

/* ---- a unit ---- */

void lockstep_left(struct lockstep *l, enum lockstep_exit exit, const struct insn *slot, uint32_t flags)
{
	l->exit = exit;
	l->slot = slot;
	l->theirs.flags = flags;
}

void lockstep_interpreted(struct lockstep *l)
{
	l->follows = false;
}

void lockstep_access(struct lockstep *l)
{
	l->access = true;
}

void lockstep_partial(struct lockstep *l)
{
	l->partial = true;
}

/* Stands where the unit ended. */
static void stop_here(PARAMETERS)
{
	struct lockstep *l = interpreter_of(vcpu)->translator->lockstep;

	l->stopped = true;
	l->stopped_flags = flags;
	vcpu->executing = NULL;
}

/* Translated code on its own. */
static void run_translated(struct lockstep *l,
                           void (*enter)(struct translator *t, const struct xblock *xblock, uint32_t flags))
{
	struct vcpu *vcpu = l->vcpu;
	jmp_buf fault, *old = vcpu->fault_target;

	vcpu->fault_target = &fault;
	if (!_setjmp(fault)) {
		enter(l->t, l->xblock, l->start_flags);
	} else {
		l->their_exception = vcpu->exception;
		lockstep_left(l, LOCKSTEP_FAULT, vcpu->executing, flags_load(vcpu));
	}
	l->walks_after = vcpu->counters.page_walks;
	vcpu->fault_target = old;
	take(l, &l->theirs, &l->their_vector, l->theirs.flags);
	caches_empty_tlb(l->t);
}

/* The interpreter is behind a part: does the block go on where it is? */
static bool in_next_part(struct lockstep *l)
{
	const struct xblock *xblock = l->xblock;

	return l->ran < parts_of(xblock) && l->vcpu->state.rip == l->start.rip + base_of(xblock, l->ran) &&
	       atomic_load(part_of(xblock, l->ran)->generation_now) == part_of(xblock, l->ran)->generation;
}

/* The same instructions in the interpreter. True: it raised an exception. */
static bool run_interpreted(struct lockstep *l, struct registers *truth)
{
	struct vcpu *vcpu = l->vcpu;
	struct interpreter *interpreter = interpreter_of(vcpu);
	jmp_buf fault, *old = vcpu->fault_target;
	uint64_t context = vcpu->code_context;
	volatile bool raised = false;

	if (l->exit == LOCKSTEP_SLOT) {
		l->saved = *l->slot;
		((struct insn *)l->slot)->run = stop_here;
	}
	l->stopped = false;
	l->ran = 0;
	vcpu->code_context = UNLINKED;
	vcpu->fault_target = &fault;
	if (!_setjmp(fault)) {
		uint32_t flags = l->start.flags;

		do {
			const struct insn *first = &part_of(l->xblock, l->ran++)->insn[1];

			first->run(vcpu, first, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
			flags = flags_load(vcpu);
		} while (!l->stopped && in_next_part(l));
	} else {
		raised = true;
	}
	vcpu->fault_target = old;
	vcpu->code_context = context;
	interpreter->pending = NULL;
	if (l->exit == LOCKSTEP_SLOT)
		*(struct insn *)l->slot = l->saved;
	take(l, truth, &l->truth_vector, l->stopped ? l->stopped_flags : flags_load(vcpu));
	return raised;
}

/* It ended a part that the translated code went on behind, and went elsewhere. */
static bool went_elsewhere(const struct lockstep *l, uint64_t rip)
{
	const struct block *block = part_of(l->xblock, l->ran - 1);

	return !has_slot(block, l->slot) && rip - l->start.rip - base_of(l->xblock, l->ran - 1) >= block->length;
}

static void go_on(struct lockstep *l, const struct insn *slot, uint32_t flags)
{
	struct vcpu *vcpu = l->vcpu;

	uint64_t context = vcpu->code_context;

	/* The next block is the run loop's: from here it would be a unit within this one, and so on without end. */
	vcpu->code_context = UNLINKED;
	vcpu->executing = NULL;
	slot->run(vcpu, slot, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
	if (vcpu->code_context == UNLINKED)
		vcpu->code_context = context;
}

static uint64_t events(const struct vcpu *vcpu)
{
	return vcpu->counters.exceptions + vcpu->counters.interrupts;
}

void lockstep_unit(struct lockstep *l, const struct xblock *xblock, uint32_t flags,
                   void (*enter)(struct translator *t, const struct xblock *xblock, uint32_t flags))
{
	struct vcpu *vcpu = l->vcpu;
	const struct insn *first = &xblock->block->insn[1];
	struct registers truth;

	if (l->failed) {
		go_on(l, first, flags);
		return;
	}
	l->xblock = xblock;
	l->exit = LOCKSTEP_NONE;
	l->slot = NULL;
	l->partial = l->access = l->wrote = false;
	l->vectors = xblock->vector || xblock->x87;
	l->shadow_count = 0;
	l->units++;
	l->t->counters.lockstep++;
	take(l, &l->start, &l->start_vector, flags);
	l->start_flags = l->start.flags;
	if (l->follows && l->next_rip == l->start.rip && l->next_events == events(vcpu) &&
	    l->next_instructions == vcpu->counters.instructions)
		l->start_flags = l->next_flags & 0xffff;
	l->follows = false;
	run_translated(l, enter);
	put_back(l);
	if (l->partial)
		l->t->counters.lockstep_uncertain++;
	if (l->exit == LOCKSTEP_NONE || l->partial || (l->exit == LOCKSTEP_SLOT && l->slot == first)) {
		go_on(l, first, flags);
		return;
	}
	memory_log_reset(vcpu->memory);
	bool raised = run_interpreted(l, &truth);
	if (l->exit == LOCKSTEP_SLOT && !raised && !l->stopped && !went_elsewhere(l, truth.rip)) {
		/* The interpreter left earlier: it wrote code, or hit a watchpoint. */
		l->t->counters.lockstep_uncertain++;
		return;
	}
	compare(l, &truth, raised);
	if (raised)
		longjmp(*vcpu->fault_target, 1);
	if (l->exit == LOCKSTEP_SLOT && l->stopped) {
		go_on(l, l->slot, l->stopped_flags);
		return;
	}
	l->follows = l->exit == LOCKSTEP_LINK;
	l->next_rip = vcpu->state.rip;
	/* Who reads undefined ones reads the interpreter's. */
	uint32_t undefined = l->follows && l->theirs.flags != truth.flags ? flags_at_end(l, 0) : 0;
	l->next_flags = (l->theirs.flags & ~undefined) | (truth.flags & undefined);
	l->next_events = events(vcpu);
	l->next_instructions = vcpu->counters.instructions;
}
