/*
 * isa-decode: lengths and exceptions of random bytes on the host CPU and on an engine.
 *
 * The bytes end at, or before, the end of the code window, behind which nothing is mapped; EFLAGS.TF stops after one
 * instruction. RIP then tells the length; #PF at the window's end says that the processor wanted more bytes; #UD and
 * #GP (more than 15 bytes) must come alike. Bytes are pure chance, or a valid instruction with some of them changed, or
 * prefixes upon prefixes.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "isa.h"
#include "opinion.h"
#include "workers.h"

#define FAILURES_MAX 4096
#define BYTES        15

struct failure {
	uint64_t seed;
	char name[24];
	char what[200];
};

struct results {
	_Atomic uint64_t cases, failures, left_out, broken, found;
	_Atomic uint64_t vector[32];
	_Atomic uint64_t tolerated[ISA_TOLERANCES];
	struct worker_progress progress[WORKERS_MAX];
	struct failure failure[FAILURES_MAX];
};

struct run {
	const char *engine;
	uint64_t seed, cases;
	unsigned workers, show, seconds;
	bool verbose, replay;
	struct isa_forms forms;
	struct results *results;
};

/* ---- bytes ---- */

static void random_instruction(struct run *run, struct random *random, uint8_t bytes[BYTES])
{
	static const uint8_t prefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x66,
	                                   0x67, 0xf0, 0xf2, 0xf3, 0x40, 0x48, 0x4f, 0x45};
	const struct isa_form *form = &run->forms.form[random_below(random, run->forms.count)];
	unsigned kind = random_below(random, 10), prefix_count;
	struct isa_decoded decoded;

	random_bytes(random, bytes, BYTES);
	if (kind < 3)
		return;
	if (kind < 8 && form->mode == 64) {
		isa_form_encode(form, random, bytes, &decoded);
		for (unsigned changes = random_below(random, 3); changes; changes--)
			bytes[random_below(random, 6)] = (uint8_t)random_u64(random);
	}
	if (kind < 6)
		return;
	prefix_count = random_below(random, random_percent(random, 30) ? BYTES : 4);
	memmove(bytes + prefix_count, bytes, BYTES - prefix_count);
	for (unsigned i = 0; i < prefix_count; i++)
		bytes[i] = prefixes[random_below(random, sizeof(prefixes))];
}

/* What to call these bytes in the report; false when they must not be run. */
static bool examine(const uint8_t *bytes, char name[24])
{
	struct isa_decoded decoded;

	if (!isa_decode(64, bytes, BYTES, &decoded)) {
		snprintf(name, 24, "(undecodable)");
		return true;
	}
	snprintf(name, 24, "%.23s", ZydisMnemonicGetString(decoded.instruction.mnemonic));
	return isa_harmless(&decoded);
}

static bool make_case(struct run *run, uint64_t seed, struct isa_case *test)
{
	struct random random = {seed};
	uint8_t bytes[BYTES];
	char name[24];

	random_instruction(run, &random, bytes);
	if (!examine(bytes, name))
		return false;
	isa_generate_bytes(random_u64(&random), bytes, BYTES,
	                   random_percent(&random, 60) ? 1 + random_below(&random, BYTES) : 64, test);
	test->seed = seed;
	return true;
}

/* ---- workers ---- */

/* Differences about bytes that the decoder's table does not know, which no program depends on. */
static bool tolerated(const struct isa_outcome *native, const struct isa_outcome *other)
{
	switch (native->trap) {
	case 14:
	case 13:
		/* Invalid and cut off by the page's end, or invalid and too long: which of the two is seen first? */
		return (native->trap == 14 ? native->error & 0x10 : native->trap == 13) &&
		       (other->trap == 6 || other->trap == 13);
	case 6:
		return other->trap == 13 || (other->trap == 14 && other->error & 0x10);
	default:
		return false;
	}
}

static bool compare(const struct isa_case *test, const struct isa_outcome *native, const struct isa_outcome *other,
                    char what[200])
{
	struct isa_decoded decoded;
	bool known = isa_decode(64, test->bytes, BYTES, &decoded);

	if (native->status == STATUS_SYSTEM_CALL)
		return true;
	if (native->status != STATUS_EXCEPTION || other->status != STATUS_EXCEPTION) {
		snprintf(what, 200, "status %u/%u %.90s", native->status, other->status, other->text);
		return other->status == native->status;
	}
	/* Invalid here, whatever the table knows, and cut off: nothing says how many bytes an invalid instruction has.
	 */
	if (native->trap == 6 && other->trap == 14 && other->error & 0x10)
		return true;
	if (known ? isa_same_operand_faults(test, &decoded, native, other) : tolerated(native, other))
		return true;
	if (native->trap != other->trap)
		snprintf(what, 200, "trap(%u/%u)", native->trap, other->trap);
	else if (native->rip != other->rip)
		snprintf(what, 200, "rip(%+d)", (int)(other->rip - native->rip));
	else if (native->trap == 14 && native->cr2 != other->cr2)
		snprintf(what, 200, "#PF cr2");
	else if (native->trap == 14 && (native->error ^ other->error) & (native->cr2 >= 0x7ffffffff000 ? ~1u : ~0u))
		snprintf(what, 200, "#PF error(%#x/%#x)", native->error, other->error);
	else
		return true;
	return false;
}

static void judge(struct run *run, struct isa_case *test, const struct isa_outcome *native,
                  const struct isa_outcome *other)
{
	char what[200], name[24];

	atomic_fetch_add(&run->results->cases, 1);
	if (native->status == STATUS_EXCEPTION)
		atomic_fetch_add(&run->results->vector[native->trap & 31], 1);
	if (compare(test, native, other, what))
		return;
	struct isa_decoded decoded;
	enum isa_tolerance tolerance = isa_decode(64, test->bytes, BYTES, &decoded)
	                                   ? isa_tolerance_of(test, &decoded, native, other)
	                                   : isa_tolerance_of_bytes(test, native, other);

	atomic_fetch_add(&run->results->tolerated[tolerance], 1);
	if (tolerance != TOLERANCE_NONE)
		return;
	uint64_t number = atomic_fetch_add(&run->results->failures, 1);

	examine(test->bytes, name);
	if (number < FAILURES_MAX) {
		struct failure *failure = &run->results->failure[number];

		failure->seed = test->seed;
		memcpy(failure->name, name, sizeof(name));
		memcpy(failure->what, what, sizeof(what));
	}
	if (run->verbose || run->replay) {
		printf("FAIL %s: %s   --replay %#llx\n", name, what, (unsigned long long)test->seed);
		isa_print_failure(stdout, test, native, other);
		fflush(stdout);
	}
}

static int worker_run(void *owner, unsigned number)
{
	struct run *run = owner;
	struct worker_progress *progress = &run->results->progress[number];
	static struct isa_outcome other[ISA_BATCH];
	struct native_runner *runner = native_create_runner();
	struct opinion opinion;
	time_t end = time(NULL) + run->seconds;
	int error = runner ? opinion_create(&opinion, run->engine, "isa-decode") : -errno;

	if (error)
		return error;
	for (uint64_t n = number; n < run->cases && !error;) {
		unsigned count = 0;

		for (; count < ISA_BATCH && n < run->cases; n += run->workers)
			if (make_case(run, run->replay ? run->seed : random_mix(run->seed + n * 0x9e3779b97f4a7c15ull),
			              native_case(runner, count)))
				count++;
			else
				atomic_fetch_add(&run->results->left_out, 1);
		error = native_start(runner, count);
		for (unsigned i = 0; i < count && !error; i++) {
			progress->seed = native_case(runner, i)->seed;
			progress->cases++;
			opinion_run(&opinion, native_case(runner, i), &other[i]);
		}
		if (!error)
			error = native_wait(runner);
		for (unsigned i = 0; i < count && !error; i++)
			judge(run, native_case(runner, i), native_outcome(runner, i), &other[i]);
		if (run->seconds && time(NULL) >= end)
			break;
	}
	opinion_destroy(&opinion);
	native_destroy_runner(runner);
	return error;
}

static void describe_case(void *owner, const struct worker_progress *progress, char text[160])
{
	(void)owner;
	snprintf(text, 160, "--replay %#llx", (unsigned long long)progress->seed);
}

static bool run_workers(struct run *run)
{
	const struct workers workers = {
	    .program = "isa-decode",
	    .count = run->workers,
	    .progress = run->results->progress,
	    .owner = run,
	    .work = worker_run,
	    .describe = describe_case,
	};

	return workers_run(&workers);
}

/* ---- report ---- */

static int compare_failures(const void *a, const void *b)
{
	const struct failure *x = a, *y = b;
	int order = strcmp(x->name, y->name);

	return order ? order : strcmp(x->what, y->what);
}

static int report(struct run *run)
{
	struct results *results = run->results;
	unsigned count = results->failures < FAILURES_MAX ? (unsigned)results->failures : FAILURES_MAX, shown = 0;

	qsort(results->failure, count, sizeof(results->failure[0]), compare_failures);
	for (unsigned i = 0, same = 1; i < count; i++, same++) {
		const struct failure *failure = &results->failure[i];

		if (i + 1 < count && !compare_failures(failure, failure + 1))
			continue;
		if (shown++ < run->show)
			printf("  %-20s %5u times: %s   --replay %#llx\n", failure->name, same, failure->what,
			       (unsigned long long)failure->seed);
		same = 0;
	}
	printf("isa-decode: engine %s, seed %#llx: %llu byte strings (%llu left out), %llu failures; by exception:",
	       run->engine, (unsigned long long)run->seed, (unsigned long long)results->cases,
	       (unsigned long long)results->left_out, (unsigned long long)results->failures);
	for (unsigned vector = 0; vector < 32; vector++)
		if (results->vector[vector])
			printf(" %u:%llu", vector, (unsigned long long)results->vector[vector]);
	putchar('\n');
	isa_print_tolerances("isa-decode", results->tolerated);
	return results->failures != 0;
}

static const char usage[] = "Usage: isa-decode [OPTION...]\n"
                            "Runs random bytes on this CPU and on an engine, and compares lengths and exceptions.\n"
                            "  --engine NAME  ring3's engine (default: interpreter), or native: a test of this test\n"
                            "  --seed N       default: random, printed\n"
                            "  --cases N      default: 100000\n"
                            "  --seconds N    stop after that time\n"
                            "  --jobs N       worker processes, default: one per CPU\n"
                            "  --show N       how many groups of failures to print, default: 40\n"
                            "  --verbose      print every failure in full\n"
                            "  --replay SEED  run one case again, printed in full\n";

static bool parse_options(int argc, char **argv, struct run *run)
{
	static const struct option longs[] = {
	    {"engine", required_argument, NULL, 'e'}, {"seed", required_argument, NULL, 's'},
	    {"cases", required_argument, NULL, 'n'},  {"jobs", required_argument, NULL, 'j'},
	    {"show", required_argument, NULL, 'w'},   {"verbose", no_argument, NULL, 'v'},
	    {"replay", required_argument, NULL, 'r'}, {"seconds", required_argument, NULL, 't'},
	    {"help", no_argument, NULL, 'h'},         {0},
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int option;

	*run = (struct run){
	    .engine = "interpreter", .cases = 100000, .show = 40, .workers = cpus > 0 ? (unsigned)cpus : 1};
	if (getrandom(&run->seed, sizeof(run->seed), 0) != sizeof(run->seed))
		run->seed = (uint64_t)time(NULL);
	while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
		switch (option) {
		case 'e':
			run->engine = optarg;
			break;
		case 's':
			run->seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			run->cases = strtoull(optarg, NULL, 0);
			break;
		case 't':
			run->seconds = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'j':
			run->workers = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'w':
			run->show = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'v':
			run->verbose = true;
			break;
		case 'r':
			run->replay = true;
			run->seed = strtoull(optarg, NULL, 0);
			run->cases = run->workers = 1;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			return false;
		}
	if (run->workers < 1 || run->workers > WORKERS_MAX)
		run->workers = 1;
	if (run->seconds && run->cases == 100000)
		run->cases = ~0ull >> 8;
	return optind == argc;
}

int main(int argc, char **argv)
{
	static struct run run;

	if (!parse_options(argc, argv, &run))
		return 2;
	int error = isa_forms_create(&run.forms);
	if (!error) {
		run.results =
		    mmap(NULL, sizeof(*run.results), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		error = run.results == MAP_FAILED ? -errno : 0;
	}
	if (error) {
		fprintf(stderr, "isa-decode: %s\n", strerror(-error));
		return 1;
	}
	bool failed = run.replay ? worker_run(&run, 0) != 0 : !run_workers(&run);
	return report(&run) || failed ? 1 : 0;
}
