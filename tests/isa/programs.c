/*
 * Random programs on the silicon and on the engines: the final registers, vector registers and memory, and every
 * exception on the way, must be the same.
 *
 *	isa-programs [--seed N] [--programs N] [--bits 64|32] [--only N] [--lockstep | --plant]
 *
 * Program number i has seed N + i; --only I runs that one alone and shows it. Each runs natively, on the interpreter,
 * and on the translator at once (heat 0), warm (1) and hot (24), the last one kicked out of the engine all the time;
 * one more changes between the engines at every kick; and one takes all its translations from where it has put them
 * (translator/shared.c).
 *
 * --lockstep: all on the translator alone, checked block by block. --plant: the same with one wrong translation in each,
 * most of which must be found.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "debug/disassemble.h"
#include "program.h"

#define PROGRAMS 300

static const struct side {
	const char *name;
	bool translator;
	unsigned heat;
	bool kicks, switches, taken;
} sides[] = {
    {"interpreter", false, 0, false, false, false},      {"translator, heat 0", true, 0, false, false, false},
    {"translator, heat 1", true, 1, true, false, false}, {"translator, heat 24", true, 24, false, false, false},
    {"both by turns", true, 3, true, true, false},       {"translator, taken", true, 1, true, false, true},
};
#define SIDES (sizeof(sides) / sizeof(sides[0]))

static const char *const names[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                             "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void add(char *what, const char *name, uint64_t native, uint64_t engine)
{
	size_t length = strlen(what);

	if (length < 400)
		snprintf(what + length, 512 - length, " %s %" PRIx64 "/%" PRIx64, name, native, engine);
}

/* In the upper half natively, the host kernel's pages may be present. */
static bool same_error(const struct program_trap *x, const struct program_trap *y)
{
	bool kernels = x->vector == 14 && x->cr2 >> 63;

	return x->error == y->error || (kernels && (x->error | 1) == (y->error | 1));
}

static void compare_traps(const struct program_result *a, const struct program_result *b, char *what)
{
	for (unsigned i = 0; i < a->trap_count && i < b->trap_count; i++) {
		const struct program_trap *x = &a->trap[i], *y = &b->trap[i];

		if (x->rip == y->rip && x->vector == y->vector && same_error(x, y) && x->cr2 == y->cr2 &&
		    x->registers == y->registers)
			continue;
		snprintf(what, 512,
		         " exception %u: vector %u/%u error %x/%x rip %" PRIx64 "/%" PRIx64 " cr2 %" PRIx64 "/%" PRIx64
		         "%s",
		         i, x->vector, y->vector, x->error, y->error, x->rip, y->rip, x->cr2, y->cr2,
		         x->registers == y->registers ? "" : " registers");
		return;
	}
	if (a->trap_count != b->trap_count)
		add(what, "exceptions", a->trap_count, b->trap_count);
}

static uint64_t page_linear(unsigned page)
{
	for (unsigned i = 0; i < PROGRAM_WINDOWS; i++) {
		if (page < program_windows[i].pages)
			return program_windows[i].linear + page * 4096ull;
		page -= program_windows[i].pages;
	}
	return 0;
}

static void compare_memory(const struct program_result *a, const struct program_result *b, char *what)
{
	for (unsigned page = 0; page < PROGRAM_PAGES; page++) {
		if (!memcmp(a->memory[page], b->memory[page], 4096))
			continue;
		unsigned at = 0;
		while (a->memory[page][at] == b->memory[page][at])
			at++;
		char name[32];
		snprintf(name, sizeof(name), "[%" PRIx64 "]", page_linear(page) + at);
		add(what, name, a->memory[page][at], b->memory[page][at]);
	}
}

/* True when they agree; else `what` (512 bytes) tells. */
static bool compare(const struct program *program, const struct program_result *a, const struct program_result *b,
                    char *what)
{
	const uint64_t flags = FLAG_ARITHMETIC | FLAG_DF;

	*what = '\0';
	if (!a->ended || !b->ended) {
		snprintf(what, 512, " it did not end: %s", b->text);
		return false;
	}
	compare_traps(a, b, what);
	for (unsigned i = 0; i < (program->bits == 64 ? 16u : 8u); i++)
		if (a->gpr[i] != b->gpr[i])
			add(what, names[i], a->gpr[i], b->gpr[i]);
	if (a->rip != b->rip)
		add(what, "rip", a->rip, b->rip);
	/* Behind a fault, whose image of dead flags may differ, all flags are set anew; at the end they count. */
	if (a->rip == program->end + 1 && (a->rflags ^ b->rflags) & flags)
		add(what, "rflags", a->rflags & flags, b->rflags & flags);
	if (a->vector.mxcsr != b->vector.mxcsr)
		add(what, "mxcsr", a->vector.mxcsr, b->vector.mxcsr);
	for (unsigned i = 0; i < 16; i++)
		if (memcmp(a->vector.zmm[i], b->vector.zmm[i], 32))
			add(what, "ymm", i, i);
	if (a->x87.fcw != b->x87.fcw || a->x87.fsw != b->x87.fsw || a->x87.ftw != b->x87.ftw)
		add(what, "x87 fsw", a->x87.fsw, b->x87.fsw);
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(a->x87.st[i], b->x87.st[i], 10))
			add(what, "st", i, i);
	compare_memory(a, b, what);
	return !*what;
}

static void show(const struct program *program)
{
	const uint8_t *code = program->memory[0];
	uint32_t next = 0;

	for (uint32_t at = 0; at < program->code_length;) {
		char text[128];
		bool start = next < program->label_count && program->label[next] <= PROGRAM_CODE + at;
		unsigned length = disassemble(code + at, 15, program->bits, PROGRAM_CODE + at, text, sizeof(text));

		while (next < program->label_count && program->label[next] <= PROGRAM_CODE + at)
			next++;
		printf("%c %08x ", start ? '*' : ' ', PROGRAM_CODE + at);
		for (unsigned i = 0; i < length; i++)
			printf("%02x", code[at + i]);
		printf("%*s %s\n", (int)(24 - 2 * length), "", text);
		at += length;
	}
}

/* The program on a translator of its own, in lockstep. `plant`: something is wrong on purpose. */
static bool run_lockstep(const struct program *program, struct program_result *result, bool plant, unsigned *planted,
                         unsigned *found)
{
	struct program_guest *guest = program_guest_create(true, 1 + program->seed % 3);
	bool good = true;

	if (!guest || !program_guest_lockstep(guest))
		return false;
	const unsigned *spoiled = plant ? program_guest_plant(guest, (unsigned)(program->seed * 7 % 23)) : NULL;
	program_guest_run(guest, program, result, false, false);
	const char *difference = program_guest_difference(guest);
	if (plant) {
		*planted += *spoiled;
		*found += *spoiled && difference != NULL;
		good = !difference || (*spoiled && strstr(difference, "guest code") && strstr(difference, "host code"));
	} else if (difference) {
		good = false;
	}
	if (!good)
		printf("FAIL program %" PRIu64 " --bits %u: %s\n", program->seed, program->bits,
		       difference ? difference : "");
	program_guest_destroy(guest);
	return good;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"seed", required_argument, NULL, 's'},
	                                        {"programs", required_argument, NULL, 'n'},
	                                        {"bits", required_argument, NULL, 'b'},
	                                        {"only", required_argument, NULL, 'o'},
	                                        {"lockstep", no_argument, NULL, 'l'},
	                                        {"plant", no_argument, NULL, 'p'},
	                                        {0}};
	uint64_t seed = 1, count = PROGRAMS, first = 0, failures = 0, traps = 0;
	unsigned bits = 0;
	unsigned planted = 0, found = 0;
	bool only = false, lockstep = false, plant = false;
	struct program_guest *guest[SIDES];
	static struct program_result result;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			count = strtoull(optarg, NULL, 0);
			break;
		case 'b':
			bits = (unsigned)atoi(optarg);
			break;
		case 'o':
			first = strtoull(optarg, NULL, 0);
			only = true;
			break;
		case 'p':
			plant = true;
			lockstep = true;
			break;
		case 'l':
			lockstep = true;
			break;
		default:
			return 2;
		}
	}
	printf("isa-programs: seed %" PRIu64 "\n", seed);
	fflush(stdout);
	struct program_native *native = program_native_create();
	if (!native) {
		fprintf(stderr, "isa-programs: the native side: %s\n", strerror(errno));
		return 1;
	}
	struct program *program = program_native_program(native);
	for (unsigned i = 0; i < SIDES; i++) {
		guest[i] = program_guest_create(sides[i].translator, sides[i].heat);
		if (!guest[i] || (sides[i].taken && !program_guest_take_translations(guest[i])))
			return 1;
	}
	if (only)
		count = first + 1;
	for (uint64_t n = first; n < count; n++) {
		unsigned size = bits ? bits : n % 4 == 3 ? 32 : 64;

		program_generate(program, seed + n, size);
		if (only)
			show(program);
		const struct program_result *silicon = program_native_run(native);
		if (!silicon) {
			fprintf(stderr,
			        "isa-programs: --seed %" PRIu64 " --only %" PRIu64 ": the native side is gone: %s\n",
			        seed, n, strerror(errno));
			return 1;
		}
		traps += silicon->trap_count;
		if (lockstep) {
			failures += !run_lockstep(program, &result, plant, &planted, &found);
			continue;
		}
		for (unsigned i = 0; i < SIDES; i++) {
			char what[512];

			program_guest_run(guest[i], program, &result, sides[i].kicks, sides[i].switches);
			if (compare(program, silicon, &result, what))
				continue;
			printf("FAIL --seed %" PRIu64 " --only %" PRIu64 " --bits %u (%s):%s\n", seed, n, size,
			       sides[i].name, what);
			failures++;
		}
		if (failures >= 20)
			break;
	}
	uint64_t instructions = program_guest_instructions(guest[0]), given, taken;
	for (unsigned i = 0; i < SIDES && !lockstep; i++) {
		taken = sides[i].taken ? program_guest_taken(guest[i], &given) : 0;
		if (sides[i].taken)
			printf("isa-programs: %" PRIu64 " translations given, %" PRIu64 " taken\n", given, taken);
		failures += sides[i].taken && (!given || taken < given - given / 20);
	}
	for (unsigned i = 0; i < SIDES; i++)
		program_guest_destroy(guest[i]);
	program_native_destroy(native);
	printf("isa-programs: %" PRIu64 " programs of %" PRIu64 " instructions in all, each on %zu engines, %" PRIu64
	       " exceptions, %" PRIu64 " failures\n",
	       count - first, instructions, lockstep ? 1 : SIDES, traps, failures);
	if (plant) {
		printf("isa-programs: %u wrong translations, %u found\n", planted, found);
		failures += planted < 5 || found < planted * 2 / 3;
	}
	return failures != 0;
}
