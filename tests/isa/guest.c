/*
 * Cases on an engine: a vCPU without a machine, in 64-bit paging with the windows at the same linear addresses and
 * rights as on the host, CPL 3, segments and tables as Linux has them. In most cases exceptions
 * are intercepted; in the rest the engine delivers them to a HLT in a handler page, and the frame there is read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engines/engine.h"
#include "machine/clock.h"
#include "machine/vcpu.h"
#include "devices/bus.h"
#include "memory/memory.h"
#include "x86/mmu.h"
#include "x86/system.h"

#include "isa.h"

#define GUEST_MEMORY  (2u << 20)
#define PAGES_AT      0x40000u /* the windows' pages */
#define TABLES_AT     0x01000u
#define TABLES_END    0x30000u
#define FAR_PAGE      0x60000u      /* for a jump to the case */
#define FAR_LINEAR    0x2a5a5000ull /* out of reach of the 16-bit segments */
#define SYSTEM_AT     0x80000u      /* supervisor pages, from here on: */
#define GDT_PAGE      0x80000u
#define IDT_PAGE      0x81000u
#define TSS_PAGE      0x82000u
#define HANDLER_PAGE  0x83000u
#define STACK_PAGE    0x84000u
#define LDT_PAGE      0x85000u
#define SYSTEM_END    0x86000u
#define SYSTEM_LINEAR 0xffff800000000000ull
#define KERNEL_CS     0x10
#define KERNEL_SS     0x18
#define TSS_SELECTOR  0x40
#define LDT_SELECTOR  0x50
#define RUNS_MAX      64

struct guest_runner {
	struct memory memory;
	struct bus bus;
	struct cpu_model model;
	struct clock *clock;
	struct vcpu *vcpu;
	const struct engine *engine;
	uint32_t next_table;
	struct cpu_state start; /* what all cases have in common */
	uint32_t dirty;         /* windows whose pages are not their background */
	bool patched[ISA_PAGES];
};

/* ---- memory ---- */

static void put64(struct guest_runner *guest, uint64_t physical, uint64_t value)
{
	memory_write(&guest->memory, physical, &value, sizeof(value));
}

static uint64_t get64(struct guest_runner *guest, uint64_t physical)
{
	uint64_t value = 0;

	memory_read(&guest->memory, physical, &value, sizeof(value));
	return value;
}

static void map_page(struct guest_runner *guest, uint64_t linear, uint64_t physical, bool user, bool writable,
                     bool executable)
{
	uint64_t table = TABLES_AT;

	for (unsigned level = 3; level > 0; level--) {
		uint64_t entry_at = table + (linear >> (12 + 9 * level) & 511) * 8, entry = get64(guest, entry_at);

		if (!entry) {
			entry = guest->next_table | 0x67; /* dirty, accessed, user, writable, present */
			guest->next_table += 0x1000;
			put64(guest, entry_at, entry);
		}
		table = entry & ~0xfffull;
	}
	put64(guest, table + (linear >> 12 & 511) * 8,
	      physical | 0x61 | (user ? 4 : 0) | (writable ? 2 : 0) | (executable ? 0 : 1ull << 63));
}

static void make_tables(struct guest_runner *guest)
{
	static const struct isa_descriptor flat_code = {0,    0xfffff, SEG_CODE | SEG_READABLE | SEG_ACCESSED,
	                                                true, true,    true};
	static const struct isa_descriptor flat_data = {0, 0xfffff, SEG_WRITABLE | SEG_ACCESSED, true, true, true};
	static const struct isa_descriptor cpu_number = {0, 0, SEG_EXPANDDOWN | SEG_ACCESSED, true, false, true};
	uint64_t code = isa_descriptor_bytes(&flat_code), data = isa_descriptor_bytes(&flat_data);
	uint64_t dpl = 3ull << 45, db = 1ull << 54, l = 1ull << 53;
	uint64_t ldt = SYSTEM_LINEAR + LDT_PAGE, tss = SYSTEM_LINEAR + TSS_PAGE;
	uint8_t halts[4096];

	/* The host kernel's global descriptors (Linux, arch/x86/include/asm/segment.h). */
	put64(guest, GDT_PAGE + 0x08, code & ~dpl);
	put64(guest, GDT_PAGE + 0x10, ((code & ~dpl) & ~db) | l);
	put64(guest, GDT_PAGE + 0x18, data & ~dpl);
	put64(guest, GDT_PAGE + 0x20, code);
	put64(guest, GDT_PAGE + 0x28, data);
	put64(guest, GDT_PAGE + 0x30, (code & ~db) | l);
	put64(guest, GDT_PAGE + 0x78, isa_descriptor_bytes(&cpu_number));
	put64(guest, GDT_PAGE + TSS_SELECTOR, 0x67 | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56);
	put64(guest, GDT_PAGE + TSS_SELECTOR + 8, tss >> 32);
	put64(guest, GDT_PAGE + LDT_SELECTOR,
	      (ISA_LDT_COUNT * 8 - 1) | (ldt & 0xffffff) << 16 | 0x82ull << 40 | (ldt >> 24 & 0xff) << 56);
	put64(guest, GDT_PAGE + LDT_SELECTOR + 8, ldt >> 32);
	for (unsigned i = 0; i < ISA_LDT_COUNT; i++)
		put64(guest, LDT_PAGE + i * 8, isa_descriptor_bytes(&isa_ldt[i]));
	for (unsigned vector = 0; vector < 32; vector++) {
		uint64_t handler = SYSTEM_LINEAR + HANDLER_PAGE + vector * 16;
		uint64_t type = vector == 3 || vector == 4 ? 0xee : 0x8e; /* user code may INT3 and INTO */

		put64(guest, IDT_PAGE + vector * 16,
		      (handler & 0xffff) | KERNEL_CS << 16 | type << 40 | (handler >> 16 & 0xffff) << 48);
		put64(guest, IDT_PAGE + vector * 16 + 8, handler >> 32);
	}
	put64(guest, TSS_PAGE + 4, SYSTEM_LINEAR + STACK_PAGE + 4096);
	put64(guest, TSS_PAGE + 0x60, 0x68ull << 48); /* no I/O permission map */
	memset(halts, 0xf4, sizeof(halts));
	memory_write(&guest->memory, HANDLER_PAGE, halts, sizeof(halts));
}

static void make_memory(struct guest_runner *guest)
{
	guest->next_table = TABLES_AT + 0x1000;
	for (unsigned page = 0; page < ISA_PAGES; page++) {
		const struct isa_window *window = &isa_windows[page];

		map_page(guest, window->linear, PAGES_AT + page * 4096, true, window->writable, window->executable);
		memory_write(&guest->memory, PAGES_AT + page * 4096, isa_background(page), 4096);
	}
	map_page(guest, FAR_LINEAR, FAR_PAGE, true, false, true);
	for (uint64_t page = SYSTEM_AT; page < SYSTEM_END; page += 4096)
		map_page(guest, SYSTEM_LINEAR + page, page, false, true, page == HANDLER_PAGE);
	make_tables(guest);
}

/* ---- processor ---- */

static void make_start(struct guest_runner *guest)
{
	struct cpu_state *s = &guest->start;

	*s = guest->vcpu->state;
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_UMIP | CR4_PGE | CR4_SMEP | CR4_SMAP |
	         CR4_OSXSAVE;
	s->cr3 = TABLES_AT;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = guest->model.xcr0_supported;
	s->gdtr = (struct descriptor_table){.base = SYSTEM_LINEAR + GDT_PAGE, .limit = 127};
	s->idtr = (struct descriptor_table){.base = SYSTEM_LINEAR + IDT_PAGE, .limit = 511};
	s->segment[SEG_TR] = (struct segment){SYSTEM_LINEAR + TSS_PAGE, 0x67, 0x8b, TSS_SELECTOR, {0}};
	s->segment[SEG_LDTR] =
	    (struct segment){SYSTEM_LINEAR + LDT_PAGE, ISA_LDT_COUNT * 8 - 1, 0x82, LDT_SELECTOR, {0}};
	s->activity = ACTIVITY_RUNNING;
}

struct guest_runner *guest_create(const struct engine *engine)
{
	struct guest_runner *guest = calloc(1, sizeof(*guest));
	struct vcpu *vcpu = guest ? vcpu_allocate() : NULL;
	char why[256] = "out of memory";

	if (!vcpu)
		goto failed;
	guest->vcpu = vcpu;
	guest->engine = engine;
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
	if (engine == &engine_translator)
		translator_set_heat(vcpu, 1); /* every case is met translated */
	cpu_reset(vcpu, true);
	make_memory(guest);
	make_start(guest);
	return guest;
failed:
	fprintf(stderr, "isa: engine %s: %s\n", engine->name, why);
	return NULL; /* the process ends: nothing is freed */
}

bool guest_take_translations(struct guest_runner *guest)
{
	return translator_set_retake(guest->vcpu) == 0;
}

void guest_destroy(struct guest_runner *guest)
{
	guest->engine->vcpu_destroy(guest->vcpu);
	mmu_destroy(guest->vcpu);
	memory_destroy(&guest->memory);
	clock_destroy(guest->clock);
	vcpu_free(guest->vcpu);
	free(guest);
}

/* ---- one case ---- */

static void put_page(struct guest_runner *guest, unsigned page, unsigned offset, const void *bytes, unsigned length)
{
	memory_write(&guest->memory, PAGES_AT + page * 4096u + offset, bytes, length);
}

/* `all`: else those pages alone that the guest can write. */
static void load_memory(struct guest_runner *guest, const struct isa_case *test, bool all)
{
	for (unsigned page = 0; page < ISA_PAGES; page++)
		if (guest->dirty >> page & 1 && (all || isa_windows[page].writable))
			put_page(guest, page, 0, isa_background(page), 4096);
	for (unsigned i = 0; i < test->patch_count; i++)
		if (all || isa_windows[test->patch[i].page].writable)
			put_page(guest, test->patch[i].page, test->patch[i].offset, test->pool + test->patch[i].pool,
			         test->patch[i].length);
}

static void load_registers(struct guest_runner *guest, const struct isa_case *test, uint64_t rip)
{
	struct cpu_state *s = &guest->vcpu->state;

	*s = guest->start;
	memcpy(s->gpr, test->gpr, sizeof(s->gpr));
	s->rip = rip;
	s->rflags = test->rflags;
	for (unsigned i = 0; i < 6; i++)
		s->segment[i] = isa_segment(test->selector[i]);
	if (test->mode == 64) {
		s->segment[SEG_FS].base = test->fs_base;
		s->segment[SEG_GS].base = test->gs_base;
	}
	s->x87 = test->x87;
	s->vector = test->vector;
	/* One case in eight goes the whole way: through the IDT, to a HLT at CPL 0. */
	guest->vcpu->debug.intercept_exceptions = test->seed & 7 ? ~0u : 0;
	guest->vcpu->attention = 0;
	mmu_update_view(guest->vcpu);
}

/* The engine delivered an exception itself: the frame on the handler's stack. */
static bool read_frame(struct guest_runner *guest, struct isa_outcome *outcome)
{
	struct cpu_state *s = &guest->vcpu->state;
	uint64_t at = s->rip - 1 - (SYSTEM_LINEAR + HANDLER_PAGE), sp = s->gpr[RSP] - SYSTEM_LINEAR;

	if (at >= 32 * 16 || sp < STACK_PAGE || sp > STACK_PAGE + 4096 - 40)
		return false;
	outcome->trap = (uint8_t)(at / 16);
	if (STACK_PAGE + 4096 - sp >= 48) {
		outcome->error = (uint32_t)get64(guest, sp);
		sp += 8;
	}
	outcome->cr2 = s->cr2;
	outcome->rip = get64(guest, sp);
	outcome->selector[SEG_CS] = (uint16_t)get64(guest, sp + 8);
	outcome->rflags = get64(guest, sp + 16);
	outcome->gpr[RSP] = get64(guest, sp + 24);
	outcome->selector[SEG_SS] = (uint16_t)get64(guest, sp + 32);
	return true;
}

static void store_outcome(struct guest_runner *guest, enum exit_reason reason, struct isa_outcome *outcome)
{
	struct vcpu *vcpu = guest->vcpu;
	struct cpu_state *s = &vcpu->state;

	outcome->status = STATUS_EXCEPTION;
	outcome->error = 0;
	memcpy(outcome->gpr, s->gpr, sizeof(outcome->gpr));
	for (unsigned i = 0; i < 6; i++)
		outcome->selector[i] = s->segment[i].selector;
	outcome->fs_base = s->segment[SEG_FS].base;
	outcome->gs_base = s->segment[SEG_GS].base;
	outcome->x87 = s->x87;
	outcome->vector = s->vector;
	outcome->rip = s->rip;
	outcome->rflags = s->rflags;
	if (reason == EXIT_EXCEPTION) {
		outcome->trap = vcpu->exception.vector;
		outcome->error = vcpu->exception.has_error ? vcpu->exception.error : 0;
		outcome->cr2 = vcpu->exception.address;
	} else if (reason != EXIT_HALT || !read_frame(guest, outcome)) {
		outcome->status = STATUS_ERROR;
		snprintf(outcome->text, sizeof(outcome->text), "exit %d at rip %#llx", reason,
		         (unsigned long long)s->rip);
	}
}

static void run(struct guest_runner *guest, struct isa_outcome *outcome)
{
	enum exit_reason reason = EXIT_KICK;

	for (unsigned runs = 0; reason == EXIT_KICK && runs < RUNS_MAX; runs++)
		reason = guest->engine->run(guest->vcpu);
	store_outcome(guest, reason, outcome);
	outcome->changed = 0;
	for (unsigned page = 0; page < ISA_PAGES; page++) {
		const uint8_t *now = memory_pointer(&guest->memory, PAGES_AT + page * 4096, 4096);

		if (isa_windows[page].writable ? !memcmp(now, isa_background(page), 4096) : !guest->patched[page])
			continue;
		outcome->changed |= 1u << page;
		memcpy(outcome->page[page], now, 4096);
	}
	guest->dirty = outcome->changed;
}

/* ---- the same again, met in other ways ---- */

static bool same(const struct isa_outcome *a, const struct isa_outcome *b)
{
	if (a->status != b->status || a->trap != b->trap || a->error != b->error || a->cr2 != b->cr2 ||
	    a->rip != b->rip || a->rflags != b->rflags || a->fs_base != b->fs_base || a->gs_base != b->gs_base ||
	    memcmp(a->gpr, b->gpr, sizeof(a->gpr)) || memcmp(a->selector, b->selector, sizeof(a->selector)) ||
	    memcmp(&a->x87, &b->x87, sizeof(a->x87)) || memcmp(&a->vector, &b->vector, sizeof(a->vector)) ||
	    a->changed != b->changed)
		return false;
	for (unsigned page = 0; page < ISA_PAGES; page++)
		if (isa_windows[page].writable && a->changed >> page & 1 && memcmp(a->page[page], b->page[page], 4096))
			return false;
	return true;
}

/* Where a jump to the case fits into its page: where neither code nor an operand is. -1: nowhere. */
static int near_place(const struct isa_case *test, const struct isa_outcome *cold)
{
	int page = isa_page_of(test->rip);
	unsigned offset = (test->rip & 0xfff) < 2048 ? 4096 - 64 : 64, code = 0;

	for (unsigned i = 0; i < test->patch_count; i++)
		code += isa_windows[test->patch[i].page].executable;
	/* What branches might come by. */
	if (code != 1 || page < 0 || (cold->rip != test->rip && cold->rip != test->rip + test->length + 1))
		return -1;
	return page * 4096 + (int)offset;
}

static bool again(struct guest_runner *guest, const struct isa_case *test, enum isa_setting setting, uint64_t rip,
                  struct isa_outcome *outcome)
{
	static struct isa_outcome other;

	load_memory(guest, test, false);
	load_registers(guest, test, rip);
	run(guest, &other);
	other.setting = setting;
	if (same(outcome, &other))
		return true;
	for (unsigned page = 0; page < ISA_PAGES; page++) /* without our jump */
		if (!isa_windows[page].writable && outcome->changed >> page & 1)
			memcpy(other.page[page], outcome->page[page], 4096);
	*outcome = other;
	return false;
}

static void run_in_all_settings(struct guest_runner *guest, const struct isa_case *test, struct isa_outcome *outcome)
{
	struct segment cs = isa_segment(test->selector[SEG_CS]);
	uint8_t jump[5] = {0xe9};
	int near = near_place(test, outcome);
	uint64_t from = FAR_LINEAR;
	int32_t distance;

	if (!again(guest, test, SETTING_HOT, test->rip, outcome))
		return;
	if (test->mode == 16 || cs.base || cs.limit != 0xffffffff)
		return;
	bool far = near < 0 || test->seed >> 3 & 1;
	if (!far)
		from = isa_windows[near / 4096].linear + (near & 4095);
	distance = (int32_t)(test->rip - (from + 5));
	memcpy(jump + 1, &distance, 4);
	memory_write(&guest->memory, far ? FAR_PAGE : PAGES_AT + (unsigned)near, jump, 5);
	if (again(guest, test, far ? SETTING_FAR : SETTING_NEAR, from, outcome))
		again(guest, test, far ? SETTING_FAR_LINKED : SETTING_NEAR_LINKED, from, outcome);
	if (!far)
		memory_write(&guest->memory, PAGES_AT + (unsigned)near,
		             isa_background((enum isa_page)(near / 4096)) + (near & 4095), 5);
}

void guest_run(struct guest_runner *guest, const struct isa_case *test, struct isa_outcome *outcome)
{
	memset(guest->patched, 0, sizeof(guest->patched));
	for (unsigned i = 0; i < test->patch_count; i++)
		guest->patched[test->patch[i].page] = true;
	load_memory(guest, test, true);
	load_registers(guest, test, test->rip);
	guest->engine->state_changed(guest->vcpu);
	run(guest, outcome);
	outcome->setting = SETTING_COLD;
	if (guest->engine == &engine_translator && !test->step)
		run_in_all_settings(guest, test, outcome);
}
