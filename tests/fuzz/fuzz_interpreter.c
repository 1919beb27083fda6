/*
 * Random machine code in every mode at every privilege on the interpreter: whatever it does, the VMM survives, keeps its promises about the
 * state at an exit, and comes back when kicked.
 *
 * Input: byte 0 chooses mode and privilege, bytes 1-7 control bits, then register and table seeds, then the code. Page tables, descriptors and
 * stack lie in the same 2 MiB as the code, so that what the code scribbles over is its own tables.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/bus.h"
#include "engines/engine.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/system.h"

#define RAM    (2u << 20)
#define CODE   0x10000u
#define TABLES 0x100000u
#define GDT    0x108000u
#define IDT    0x109000u
#define TSS    0x10b000u
#define STACK  0x60000u
#ifndef LOCKSTEP
#define STEPS     192
#define FREE_RUNS 2
#else /* code that is stepped through is not translated */
#define STEPS     1
#define FREE_RUNS 8
#endif
#define KICK_NS 100000

/* The same target is built for each engine, and for the translator checked block by block. */
#ifndef ENGINE
#define ENGINE engine_interpreter
#endif
#ifdef LOCKSTEP
#include "debug/lockstep.h"
#include "engines/translator/translator.h"
#endif

struct world {
	struct memory memory;
	struct bus bus;
	struct cpu_model model;
	struct vcpu *vcpu;
	_Atomic bool running;
};

static struct world *world;

static void check(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_interpreter: %s\n", what);
	abort();
}

static uint64_t random64(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return *seed ^ *seed >> 29;
}

/* Brings free runs back: a guest may loop for ever, ring3 may not. */
static void *kicker(void *argument)
{
	struct world *kicked = argument;

	for (;;) {
		nanosleep(&(struct timespec){.tv_nsec = KICK_NS}, NULL);
		if (atomic_load(&kicked->running))
			vcpu_kick(kicked->vcpu, ATTENTION_EXIT);
	}
	return NULL;
}

static struct world *world_create(void)
{
	struct world *made = calloc(1, sizeof(*made));
	char why[256] = "";

	check(made && memory_create(&made->memory, RAM) == 0, "no memory");
	bus_init(&made->bus, NULL);
	check(cpu_model_create(&made->model, "host", 1, 1000000, why) == 0, why);
	struct vcpu *vcpu = vcpu_allocate();
	check(vcpu != NULL, "no memory");
	vcpu->memory = &made->memory;
	vcpu->bus = &made->bus;
	vcpu->model = &made->model;
	vcpu->engine = &ENGINE;
	check(mmu_create(vcpu) == 0, "no TLB");
	cpu_reset(vcpu, true);
	check(ENGINE.vcpu_create(vcpu) == 0, "no engine");
	made->vcpu = vcpu;
	if (vcpu->engine == &engine_translator)
		translator_set_heat(vcpu, 2);
#ifdef LOCKSTEP
	check(translator_set_lockstep(interpreter_of(vcpu)->translator) == 0, "no memory");
#endif
	pthread_t thread;
	check(pthread_create(&thread, NULL, kicker, made) == 0, "no thread");
	pthread_detach(thread);
	return made;
}

static void put64(struct memory *memory, uint64_t address, uint64_t value)
{
	memory_write(memory, address, &value, sizeof(value));
}

/* Identity-mapped first 2 MiB by 4 KiB pages; now and then an entry is made bad. */
static void make_tables(struct memory *memory, uint64_t *seed, bool broken)
{
	memory_fill(memory, TABLES, 0, 0x8000);
	put64(memory, TABLES, (TABLES + 0x1000) | 7);
	put64(memory, TABLES + 0x1ff0, 0);
	put64(memory, TABLES + 0x1000, (TABLES + 0x2000) | 7);
	put64(memory, TABLES + 0x2000, (TABLES + 0x3000) | 7);
	put64(memory, TABLES + 0x2008, 0 | 0x87); /* a 2 MiB page that shows the same memory again */
	for (unsigned i = 0; i < 512; i++) {
		uint64_t entry = (uint64_t)i << 12 | 7;

		if (broken && random64(seed) % 16 == 0)
			entry = random64(seed) & random64(seed);
		put64(memory, TABLES + 0x3000 + i * 8, entry);
	}
	/* 32-bit tables: directory at +4000h, one table at +5000h; PAE: pointers at +6000h, directory at +7000h. */
	for (unsigned i = 0; i < 512; i++) {
		uint32_t entry = i << 12 | 7;

		memory_write(memory, TABLES + 0x5000 + i * 4, &entry, 4);
	}
	uint32_t directory = (TABLES + 0x5000) | 7;
	memory_write(memory, TABLES + 0x4000, &directory, 4);
	put64(memory, TABLES + 0x6000, (TABLES + 0x7000) | 1);
	put64(memory, TABLES + 0x7000, (TABLES + 0x3000) | 7);
}

static void make_descriptors(struct memory *memory, uint64_t *seed)
{
	static const uint64_t gdt[] = {
	    0,
	    0x00af9b000000ffff,
	    0x00cf93000000ffff,
	    0x00cf9b000000ffff,
	    0x00affb000000ffff,
	    0x00cff3000000ffff,
	    0x00cffb000000ffff,
	    0x00008b10b0000067,
	    0,
	    0x000092000000ffff,
	    0x00009a000000ffff,
	};

	memory_fill(memory, GDT, 0, 0x1000);
	for (unsigned i = 0; i < sizeof(gdt) / sizeof(gdt[0]); i++)
		put64(memory, GDT + i * 8, gdt[i]);
	for (unsigned i = 12; i < 64; i++) /* gates and segments of all sorts */
		put64(memory, GDT + i * 8, random64(seed));
	for (unsigned i = 0; i < 512; i++)
		put64(memory, IDT + i * 8,
		      random64(seed) % 4 ? (0x0000ee0000080000ull | (CODE + random64(seed) % 64)) : random64(seed));
	memory_fill(memory, TSS, 0, 0x1000);
	for (unsigned i = 0; i < 16; i++)
		put64(memory, TSS + i * 8, STACK);
}

static void set_segment(struct cpu_state *state, enum segment_register which, uint16_t selector, uint64_t base,
                        uint32_t limit, uint32_t access)
{
	state->segment[which] = (struct segment){.selector = selector, .base = base, .limit = limit, .access = access};
}

enum mode { MODE_REAL, MODE_PROTECTED16, MODE_PROTECTED32, MODE_PAE, MODE_LONG, MODE_COMPATIBILITY, MODE_VM86, MODES };

static void set_mode(struct cpu_state *state, enum mode mode, unsigned cpl, bool paging)
{
	uint32_t dpl = cpl << SEG_DPL_SHIFT, data = 0x93 | dpl, code = 0x9b | dpl;
	uint16_t data_selector = (uint16_t)(cpl ? 0x2b : 0x10), code_selector = 0x08;
	uint32_t limit = 0xffffffff;

	state->cr0 = CR0_PE | CR0_ET | CR0_NE;
	if (mode == MODE_REAL || mode == MODE_VM86) {
		limit = 0xffff;
		data_selector = code_selector = CODE >> 4;
		data = code = mode == MODE_VM86 ? 0xf3 : 0x93;
		state->cr0 &= mode == MODE_REAL ? ~CR0_PE : ~0ull;
		state->rflags |= mode == MODE_VM86 ? FLAG_VM : 0;
	} else if (mode == MODE_LONG) {
		code |= SEG_L | SEG_G;
		data |= SEG_DB | SEG_G;
		code_selector = cpl ? 0x23 : 0x08;
	} else if (mode != MODE_PROTECTED16) {
		code |= SEG_DB | SEG_G;
		data |= SEG_DB | SEG_G;
		code_selector = cpl ? 0x33 : 0x18;
	}
	uint64_t base = mode == MODE_REAL || mode == MODE_VM86 ? CODE : 0;
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		set_segment(state, i, i == SEG_CS ? code_selector : data_selector, base, limit,
		            i == SEG_CS ? code : data);
	set_segment(state, SEG_TR, 0x38, TSS, 0x67, 0x8b);
	set_segment(state, SEG_LDTR, 0, 0, 0, SEG_UNUSABLE);
	state->rip = base ? 0 : CODE;
	state->gpr[RSP] = base ? 0x8000 : STACK;
	state->cr3 = mode == MODE_PAE                         ? TABLES + 0x6000
	             : mode >= MODE_LONG && mode != MODE_VM86 ? TABLES
	                                                      : TABLES + 0x4000;
	if (mode == MODE_LONG || mode == MODE_COMPATIBILITY) {
		state->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
		state->cr4 |= CR4_PAE;
		paging = true;
	} else if (mode == MODE_PAE) {
		state->cr4 |= CR4_PAE;
	}
	if (paging && mode != MODE_REAL)
		state->cr0 |= CR0_PG;
}

static void set_state(const uint8_t *data, uint64_t *seed)
{
	struct vcpu *vcpu = world->vcpu;
	struct cpu_state *state = &vcpu->state;
	enum mode mode = data[0] % MODES;

	cpu_reset(vcpu, true);
	for (unsigned i = 0; i < GPR_COUNT; i++) {
		uint64_t value = random64(seed);

		state->gpr[i] = value % 3 == 0 ? value % RAM : value % 3 == 1 ? value % 256 : value;
	}
	state->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | (data[1] & 1 ? CR4_OSXSAVE : 0) | (data[1] & 2 ? CR4_SMEP : 0) |
	             (data[1] & 4 ? CR4_SMAP : 0) | (data[1] & 8 ? CR4_FSGSBASE : 0) | (data[1] & 16 ? CR4_UMIP : 0) |
	             (data[1] & 32 ? CR4_PGE : 0) | (data[1] & 64 ? CR4_VME : 0);
	state->xcr0 = data[2] & 1 ? world->model.xcr0_supported : 1;
	state->rflags = FLAG_ONE | (data[2] & 2 ? FLAG_IF : 0) | (data[2] & 4 ? FLAG_DF : 0) |
	                (data[2] & 8 ? FLAG_AC : 0) | (data[2] & 16 ? FLAG_IOPL : 0) | (data[2] & 32 ? FLAG_TF : 0) |
	                (data[2] & 64 ? FLAG_NT : 0);
	set_mode(state, mode, mode == MODE_VM86 || (data[0] & 0x80 && mode != MODE_REAL) ? 3 : 0, data[0] & 0x40);
	state->cr0 |= (data[3] & 1 ? CR0_WP : 0) | (data[3] & 2 ? CR0_AM : 0) | (data[3] & 4 ? CR0_TS : 0) |
	              (data[3] & 8 ? CR0_EM : 0);
	state->gdtr = (struct descriptor_table){.base = GDT, .limit = 0x1ff};
	state->idtr = (struct descriptor_table){.base = data[3] & 16 ? 0 : IDT, .limit = 0xfff};
	if (data[3] & 32)
		state->dr[7] = random64(seed) & 0xffff03ff;
	state->dr[0] = CODE + data[4];
	state->dr[1] = STACK - data[5];
	memset(&vcpu->debug, 0, sizeof(vcpu->debug));
	atomic_store(&vcpu->attention, 0);
	mmu_flush(vcpu);
	mmu_update_view(vcpu);
	ENGINE.flush_code(vcpu);
	ENGINE.state_changed(vcpu);
}

static void check_state(const struct cpu_state *state)
{
	check(state->rflags & FLAG_ONE, "bit 1 of RFLAGS is clear");
	check(!(state->cr0 & CR0_PG) || (state->cr0 & CR0_PE), "paging without protection");
	check(!(state->efer & EFER_LMA) || (state->cr0 & CR0_PG), "LMA without paging");
	check(state->activity <= ACTIVITY_SHUTDOWN, "activity out of range");
	check(cpu_64bit_code(state) || state->rip <= UINT32_MAX, "RIP above 4 GiB outside 64-bit code");
}

/* Runs one exit; false when the guest can go no further. */
static bool run_once(void)
{
	struct vcpu *vcpu = world->vcpu;
	enum exit_reason reason = ENGINE.run(vcpu);

	check(reason != EXIT_ERROR, "the engine gave up");
#ifdef LOCKSTEP
	const struct lockstep *lockstep = interpreter_of(vcpu)->translator->lockstep;
	if (lockstep_failed(lockstep))
		fputs(lockstep_report(lockstep), stderr);
	check(!lockstep_failed(lockstep), "translated code differs from the interpreter's");
#endif
	check(!vcpu->x87_live, "x87 state left in the host's registers");
	check_state(&vcpu->state);
	atomic_fetch_and(&vcpu->attention, ~(uint32_t)ATTENTION_EXIT);
	if (reason == EXIT_HALT)
		vcpu->state.activity = ACTIVITY_RUNNING;
	return reason != EXIT_SHUTDOWN;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t seed;
	bool alive = true;

	if (size < 24)
		return 0;
	if (!world)
		world = world_create();
	memcpy(&seed, data + 8, sizeof(seed));
	make_tables(&world->memory, &seed, data[6] & 1);
	make_descriptors(&world->memory, &seed);
	memory_fill(&world->memory, CODE, 0x90, 0x1000);
	memory_write(&world->memory, data[6] & 2 ? CODE + 0xfff - data[7] % 16 : CODE, data + 16,
	             size - 16 < 0x1000 ? size - 16 : 0x1000);
	set_state(data, &seed);
	if (data[6] & 2)
		world->vcpu->state.rip += 0xfff - data[7] % 16;
	world->vcpu->debug.single_step = true;
	for (unsigned i = 0; i < STEPS && alive; i++)
		alive = run_once();
	/* Freely, until somebody kicks. */
	world->vcpu->debug.single_step = false;
	for (unsigned i = 0; i < FREE_RUNS && alive; i++) {
		atomic_store(&world->running, true);
		alive = run_once();
		atomic_store(&world->running, false);
	}
	return 0;
}
