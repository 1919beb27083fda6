/*
 * Random programs on an engine: a vCPU without a machine, with paging, at CPL 3; exceptions come out to us, which do
 * what the native side's signal handler does.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/bus.h"
#include "debug/lockstep.h"
#include "engines/engine.h"
#include "engines/translator/translator.h"
#include "machine/clock.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "program.h"
#include "x86/mmu.h"
#include "x86/system.h"

#define GUEST_MEMORY (2u << 20)
#define TABLES_AT    0x1000u
#define PAGES_AT     0x40000u
#define KICK_NS      20000
#define RUNS_MAX     1000000u

struct program_guest {
	struct memory memory;
	struct bus bus;
	struct cpu_model model;
	struct clock *clock;
	struct vcpu *vcpu;
	uint32_t next_table;
	unsigned heat;
	void *engine_data[2]; /* of the interpreter and the translator, where both take turns */
	struct cpu_state start;
	pthread_t kicker;
	_Atomic bool kicks, end;
};

static uint64_t *entry_at(struct program_guest *guest, uint64_t physical)
{
	return memory_pointer(&guest->memory, physical, 8);
}

static void map_page(struct program_guest *guest, uint64_t linear, uint64_t physical, bool writable, bool executable)
{
	uint64_t table = TABLES_AT;

	for (unsigned level = 3; level > 0; level--) {
		uint64_t *entry = entry_at(guest, table + (linear >> (12 + 9 * level) & 511) * 8);

		if (!*entry) {
			*entry = guest->next_table | 7;
			guest->next_table += 0x1000;
		}
		table = *entry & ~0xfffull;
	}
	*entry_at(guest, table + (linear >> 12 & 511) * 8) =
	    physical | 5 | (writable ? 2 : 0) | (executable ? 0 : 1ull << 63);
}

static void make_tables(struct program_guest *guest)
{
	uint64_t physical = PAGES_AT;

	guest->next_table = TABLES_AT + 0x1000;
	for (unsigned i = 0; i < PROGRAM_WINDOWS; i++) {
		const struct program_window *window = &program_windows[i];

		for (unsigned page = 0; page < window->pages; page++, physical += 4096)
			map_page(guest, window->linear + page * 4096ull, physical, window->writable,
			         window->executable);
	}
}

static void make_start(struct program_guest *guest)
{
	struct cpu_state *s = &guest->start;
	const struct segment flat = {.selector = 0x2b, .limit = 0xffffffff, .access = 0xf3 | SEG_DB | SEG_G};

	*s = guest->vcpu->state;
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_OSXSAVE;
	s->cr3 = TABLES_AT;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = guest->model.xcr0_supported;
	for (unsigned i = SEG_ES; i <= SEG_GS; i++)
		s->segment[i] = flat;
	/* Programs go astray: IN and OUT find no permission map, selectors no descriptors. */
	s->segment[SEG_TR] = (struct segment){.selector = 0x40, .limit = 0x60, .access = 0x8b};
	s->segment[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
	s->gdtr.limit = s->idtr.limit = 0;
	s->activity = ACTIVITY_RUNNING;
}

/* Stops the engine all the time, wherever it is. */
static void *kick(void *argument)
{
	struct program_guest *guest = argument;

	while (!atomic_load(&guest->end)) {
		nanosleep(&(struct timespec){.tv_nsec = KICK_NS}, NULL);
		if (atomic_load(&guest->kicks))
			vcpu_kick(guest->vcpu, ATTENTION_EXIT);
	}
	return NULL;
}

struct program_guest *program_guest_create(bool translator, unsigned heat)
{
	const struct engine *engine = translator ? &engine_translator : &engine_interpreter;
	struct program_guest *guest = calloc(1, sizeof(*guest));
	struct vcpu *vcpu = guest ? vcpu_allocate() : NULL;
	char why[256] = "out of memory";

	if (!vcpu)
		goto failed;
	guest->vcpu = vcpu;
	guest->heat = heat;
	guest->clock = clock_create_manual();
	if (!guest->clock || memory_create(&guest->memory, GUEST_MEMORY))
		goto failed;
	bus_init(&guest->bus, NULL);
	if (cpu_model_create(&guest->model, "host", 1, clock_tsc_khz(guest->clock), why))
		goto failed;
	vcpu->memory = &guest->memory;
	vcpu->bus = &guest->bus;
	vcpu->clock = guest->clock;
	vcpu->model = &guest->model;
	vcpu->engine = engine;
	vcpu->debug.intercept_exceptions = ~0u;
	if (mmu_create(vcpu) || engine->vcpu_create(vcpu))
		goto failed;
	if (translator)
		translator_set_heat(vcpu, heat);
	cpu_reset(vcpu, true);
	make_tables(guest);
	make_start(guest);
	if (pthread_create(&guest->kicker, NULL, kick, guest))
		goto failed;
	return guest;
failed:
	fprintf(stderr, "programs: engine %s: %s\n", engine->name, why);
	return NULL; /* the process ends: nothing is freed */
}

void program_guest_destroy(struct program_guest *guest)
{
	atomic_store(&guest->end, true);
	pthread_join(guest->kicker, NULL);
	guest->vcpu->engine->vcpu_destroy(guest->vcpu);
	guest->vcpu->engine_data = guest->engine_data[guest->vcpu->engine == &engine_interpreter];
	if (guest->vcpu->engine_data)
		guest->vcpu->engine->vcpu_destroy(guest->vcpu);
	mmu_destroy(guest->vcpu);
	memory_destroy(&guest->memory);
	clock_destroy(guest->clock);
	vcpu_free(guest->vcpu);
	free(guest);
}

bool program_guest_lockstep(struct program_guest *guest)
{
	return translator_set_lockstep(interpreter_of(guest->vcpu)->translator) == 0;
}

bool program_guest_take_translations(struct program_guest *guest)
{
	return translator_set_retake(guest->vcpu) == 0;
}

uint64_t program_guest_taken(const struct program_guest *guest, uint64_t *given)
{
	const struct translator *t = interpreter_of(guest->vcpu)->translator;

	*given = t->counters.given;
	return t->counters.taken;
}

const char *program_guest_difference(const struct program_guest *guest)
{
	const struct lockstep *lockstep = interpreter_of(guest->vcpu)->translator->lockstep;

	return lockstep_failed(lockstep) ? lockstep_report(lockstep) : NULL;
}

static unsigned planted, plant_after;

/* Only between registers of the guest, so that what comes out is wrong and not wild: no R9-R11, no RSP. */
static bool harmless(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operand)
{
	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || i->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT ||
	    i->opcode >= 0x40 || (i->opcode & 7) > 3 || i->meta.category == ZYDIS_CATEGORY_DATAXFER)
		return false;
	for (unsigned n = 0; n < i->operand_count_visible; n++) {
		ZydisRegister reg = operand[n].reg.value;
		int id = ZydisRegisterGetId(reg);

		if (operand[n].type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    ZydisRegisterGetClass(reg) < ZYDIS_REGCLASS_GPR32 || id == RSP || (id >= R9 && id <= R11))
			return false;
	}
	return true;
}

static void plant(uint8_t *code, size_t size)
{
	ZydisDecoder decoder;
	ZydisDecodedInstruction i;
	ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];

	if (planted)
		return;
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (size_t at = 0; at < size; at += i.length) {
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code + at, size - at, &i, operand)))
			return;
		if (!harmless(&i, operand))
			continue;
		if (plant_after-- == 0) {
			code[at + i.raw.modrm.offset - 1] ^= 0x08;
			planted++;
		}
		return;
	}
}

const unsigned *program_guest_plant(struct program_guest *guest, unsigned after)
{
	planted = 0;
	plant_after = after;
	interpreter_of(guest->vcpu)->translator->plant = plant;
	return &planted;
}

uint64_t program_guest_instructions(const struct program_guest *guest)
{
	return guest->vcpu->counters.instructions;
}

static void load(struct program_guest *guest, const struct program *program)
{
	struct vcpu *vcpu = guest->vcpu;
	struct cpu_state *s = &vcpu->state;

	/* As a device would write it: code of the last program is still in the caches. */
	memory_write(&guest->memory, PAGES_AT, program->memory, sizeof(program->memory));
	*s = guest->start;
	memcpy(s->gpr, program->gpr, sizeof(s->gpr));
	s->rip = PROGRAM_CODE;
	s->rflags = program->rflags;
	s->segment[SEG_CS] = (struct segment){.selector = program->bits == 64 ? 0x33 : 0x23,
	                                      .limit = 0xffffffff,
	                                      .access = 0xfb | SEG_G | (program->bits == 64 ? SEG_L : SEG_DB)};
	s->x87 = (struct x87_state){.fcw = 0x37f};
	s->vector = program->vector;
	atomic_store(&vcpu->attention, 0);
	mmu_flush(vcpu);
	mmu_update_view(vcpu);
	vcpu->engine->state_changed(vcpu);
}

static const struct engine *const turns[2] = {&engine_interpreter, &engine_translator};

static void switch_engine(struct program_guest *guest)
{
	struct vcpu *vcpu = guest->vcpu;
	unsigned now = vcpu->engine == turns[1], next = !now;

	guest->engine_data[now] = vcpu->engine_data;
	vcpu->engine_data = guest->engine_data[next];
	vcpu->engine = turns[next];
	if (!vcpu->engine_data) {
		if (vcpu->engine->vcpu_create(vcpu)) {
			fprintf(stderr, "programs: cannot create engine %s\n", vcpu->engine->name);
			abort();
		}
		if (vcpu->engine == &engine_translator)
			translator_set_heat(vcpu, guest->heat);
	}
	vcpu->engine->state_changed(vcpu);
}

/* True: the program has come to its end. */
static bool exception(struct program_guest *guest, const struct program *program, struct program_result *result)
{
	struct vcpu *vcpu = guest->vcpu;
	const struct exception *e = &vcpu->exception;

	uint64_t next = program_trapped(program, result, e->vector, e->has_error ? e->error : 0, e->address,
	                                vcpu->state.rip, vcpu->state.gpr);
	if (!next)
		return true;
	vcpu->state.rip = next;
	vcpu->state.rflags = RESUME_FLAGS;
	vcpu->engine->state_changed(vcpu);
	return false;
}

/*
 * The user code of every second program floats (translator.h) from the start, till a page is written; all of them are at
 * one address alone.
 */
static void let_float(struct program_guest *guest, const struct program *program)
{
	struct translator *t = interpreter_of(guest->vcpu)->translator;

	if (t)
		memset(t->floating_page, program->seed & 1 ? 0xff : 0, sizeof(t->floating_page));
}

void program_guest_run(struct program_guest *guest, const struct program *program, struct program_result *result,
                       bool kicks, bool switches)
{
	struct vcpu *vcpu = guest->vcpu;
	bool end = false;

	result->ended = false;
	result->trap_count = 0;
	result->text[0] = '\0';
	load(guest, program);
	atomic_store(&guest->kicks, kicks || switches);
	for (unsigned runs = 0; !end; runs++) {
		let_float(guest, program);
		enum exit_reason reason = vcpu->engine->run(vcpu);

		atomic_fetch_and(&vcpu->attention, ~(uint32_t)ATTENTION_EXIT);
		if (reason == EXIT_EXCEPTION) {
			end = exception(guest, program, result);
		} else if (reason != EXIT_KICK || runs == RUNS_MAX) {
			snprintf(result->text, sizeof(result->text), "exit %d at rip %#llx", reason,
			         (unsigned long long)vcpu->state.rip);
			end = true;
		} else if (switches) {
			switch_engine(guest);
		}
	}
	atomic_store(&guest->kicks, false);
	memcpy(result->gpr, vcpu->state.gpr, sizeof(result->gpr));
	result->rip = vcpu->state.rip;
	result->rflags = vcpu->state.rflags;
	result->x87 = vcpu->state.x87;
	result->vector = vcpu->state.vector;
	memory_read(&guest->memory, PAGES_AT, result->memory, sizeof(result->memory));
}
