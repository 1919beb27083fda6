/*
 * isa-silicon: instruction forms with random operands on the host CPU and on an engine; every difference is a failure.
 *
 * The parent finds out which forms the host can run and forks one worker per CPU. A worker owns a native child
 * (native.c) and an engine; while the child runs a batch, the worker runs the same batch on the engine.
 */
#include <errno.h>
#include <getopt.h>
#include <regex.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "isa.h"
#include "opinion.h"
#include "workers.h"

#define FAILURES_MAX 8192
#define EXIT_SKIPPED 77 /* as Meson understands it */
#define PROBES       8

struct failure {
	unsigned form;
	uint64_t seed;
	char what[256];
};

/* Shared by all workers. */
struct results {
	_Atomic uint64_t cases, failures, broken, found, unborn;
	_Atomic uint64_t vector[32]; /* how the cases ended on the silicon */
	_Atomic uint64_t tolerated[ISA_TOLERANCES];
	struct worker_progress progress[WORKERS_MAX];
	struct failure failure[FAILURES_MAX];
	/* Per form, `form_count` of each. */
	_Atomic uint32_t *form_cases, *form_failures;
};

struct options {
	const char *engine;
	uint64_t seed, cases;
	const char *form_pattern;
	unsigned workers, seconds, show;
	bool edges, counts, verbose, list, list_skipped, list_missing;
	uint64_t replay_seed, replay_key;
	bool replay;
};

/* The forms of one kind of encoding, to choose among. */
struct group {
	unsigned weight, count;
	unsigned *form;
};

#define GROUPS 6

struct run {
	struct options options;
	struct isa_forms forms;
	struct group group[GROUPS];
	unsigned weight, available;
	bool ldt;
	struct results *results;
};

/* ---- which forms ---- */

/* What probing knows of a form. */
struct probe {
	uint8_t runs, undefined;
	bool there;
};

/* Runs one case of each form that has not completed yet. */
static int probe_round(struct run *run, struct native_runner *runner, struct probe *probe, uint64_t round)
{
	unsigned form[ISA_BATCH], count = 0;
	struct isa_decoded decoded;

	for (unsigned i = 0; i <= run->forms.count; i++) {
		if (count == ISA_BATCH || (i == run->forms.count && count)) {
			int error = native_start(runner, count);

			if (!error)
				error = native_wait(runner);
			if (error)
				return error;
			for (unsigned k = 0; k < count; k++) {
				struct isa_outcome *outcome = native_outcome(runner, k);

				probe[form[k]].runs++;
				probe[form[k]].undefined += outcome->status == STATUS_EXCEPTION && outcome->trap == 6;
				probe[form[k]].there = outcome->trap == 1 || outcome->trap == 3;
			}
			count = 0;
		}
		if (i == run->forms.count || probe[i].there || run->forms.form[i].skip)
			continue;
		struct isa_case *test = native_case(runner, count);

		test->ldt = native_has_ldt(runner);
		test->seldom_step = test->edges = false;
		if (run->forms.form[i].mode == 16 && !test->ldt)
			continue;
		if (isa_generate(&run->forms.form[i], random_mix(run->forms.form[i].key + round), test, &decoded))
			form[count++] = i;
	}
	return 0;
}

static bool always_undefined(const struct isa_form *form)
{
	return form->mnemonic == ZYDIS_MNEMONIC_UD0 || form->mnemonic == ZYDIS_MNEMONIC_UD1 ||
	       form->mnemonic == ZYDIS_MNEMONIC_UD2;
}

static int probe_forms(struct run *run)
{
	struct native_runner *runner = native_create_runner();
	struct probe *probe = calloc(run->forms.count, sizeof(*probe));
	int error = 0;

	if (!runner || !probe)
		error = -errno;
	for (unsigned round = 0; round < PROBES && !error; round++)
		error = probe_round(run, runner, probe, round);
	for (unsigned i = 0; i < run->forms.count && !error; i++) {
		struct isa_form *form = &run->forms.form[i];

		/* Privileged ones never complete, but raise #GP; what is not there raises #UD, but for faults that come
		 * first. */
		bool there = probe[i].there || (probe[i].runs && probe[i].undefined * 2 < probe[i].runs);

		form->suppressed = !there && !form->skip && !always_undefined(form);
	}
	run->ldt = runner && native_has_ldt(runner);
	free(probe);
	if (runner)
		native_destroy_runner(runner);
	return error;
}

static int choose_forms(struct run *run)
{
	static const unsigned weights[GROUPS] = {44, 14, 22, 1, 11, 8};
	regex_t pattern;

	if (run->options.form_pattern && regcomp(&pattern, run->options.form_pattern, REG_EXTENDED | REG_NOSUB)) {
		fprintf(stderr, "isa-silicon: bad regular expression '%s'\n", run->options.form_pattern);
		return -EINVAL;
	}
	for (unsigned g = 0; g < GROUPS; g++) {
		run->group[g].form = calloc(run->forms.count, sizeof(unsigned));
		if (!run->group[g].form)
			return -ENOMEM;
	}
	for (unsigned i = 0; i < run->forms.count; i++) {
		struct isa_form *form = &run->forms.form[i];

		if (form->skip || form->suppressed)
			continue;
		if (run->options.form_pattern && regexec(&pattern, form->name, 0, NULL, 0))
			continue;
		struct group *group = &run->group[form->mode == 16                    ? 5
		                                  : form->mode == 32                  ? 4
		                                  : form->encoding == ENCODING_LEGACY ? 0
		                                  : form->encoding == ENCODING_VEX    ? 1
		                                  : form->encoding == ENCODING_EVEX   ? 2
		                                                                      : 3];
		group->form[group->count++] = i;
		run->available++;
	}
	for (unsigned g = 0; g < GROUPS; g++) {
		run->group[g].weight = run->group[g].count ? weights[g] : 0;
		run->weight += run->group[g].weight;
	}
	if (run->options.form_pattern)
		regfree(&pattern);
	return 0;
}

static struct isa_form *pick_form(struct run *run, uint64_t bits)
{
	struct random random = {random_mix(bits ^ 0x5bd1e995)}; /* another sequence than the case's own */
	unsigned at = random_below(&random, run->weight), g = 0;

	while (at >= run->group[g].weight)
		at -= run->group[g++].weight;
	return &run->forms.form[run->group[g].form[random_below(&random, run->group[g].count)]];
}

/* ---- a worker ---- */

static bool is_pointless(const struct isa_outcome *native)
{
	return native->status == STATUS_SYSTEM_CALL;
}

static void note_failure(struct run *run, const struct isa_case *test, const char *what,
                         const struct isa_outcome *native, const struct isa_outcome *other)
{
	unsigned form = (unsigned)(test->form - run->forms.form);
	uint64_t number = atomic_fetch_add(&run->results->failures, 1);

	atomic_fetch_add(&run->results->form_failures[form], 1);
	if (number < FAILURES_MAX) {
		struct failure *failure = &run->results->failure[number];

		failure->form = form;
		failure->seed = test->seed;
		snprintf(failure->what, sizeof(failure->what), "%s", what);
	}
	if (run->options.verbose || run->options.replay) {
		printf("FAIL %s: %s   --replay %#llx/%#llx\n", test->form->name, what, (unsigned long long)test->seed,
		       (unsigned long long)test->form->key);
		isa_print_failure(stdout, test, native, other);
		fflush(stdout);
	}
}

static void judge(struct run *run, struct native_runner *runner, unsigned index, const struct isa_decoded *decoded,
                  const struct isa_outcome *other, bool broken)
{
	struct isa_case *test = native_case(runner, index);
	struct isa_outcome *native = native_outcome(runner, index);
	char what[256];
	bool agree = is_pointless(native) || isa_compare(test, decoded, native, other, what);

	atomic_fetch_add(&run->results->cases, 1);
	if (native->status == STATUS_EXCEPTION)
		atomic_fetch_add(&run->results->vector[native->trap & 31], 1);
	atomic_fetch_add(&run->results->form_cases[test->form - run->forms.form], 1);
	if (broken) {
		atomic_fetch_add(&run->results->broken, 1);
		atomic_fetch_add(&run->results->found, !agree);
		return;
	}
	if (agree)
		return;
	enum isa_tolerance tolerance = isa_tolerance_of(test, decoded, native, other);

	atomic_fetch_add(&run->results->tolerated[tolerance], 1);
	if (tolerance == TOLERANCE_NONE)
		note_failure(run, test, what, native, other);
}

/* Makes case number `n` at place `at` of the batch; false when there is none. */
static bool make_case(struct run *run, struct native_runner *runner, uint64_t n, unsigned at,
                      struct isa_decoded *decoded)
{
	uint64_t seed = random_mix(run->options.seed + n * 0x9e3779b97f4a7c15ull);
	struct isa_case *test = native_case(runner, at);
	struct isa_form *form;

	if (run->options.replay) {
		seed = run->options.replay_seed;
		form = isa_forms_find(&run->forms, run->options.replay_key);
	} else {
		form = pick_form(run, seed);
	}
	test->ldt = native_has_ldt(runner);
	test->seldom_step = !strcmp(run->options.engine, "translator") || !strcmp(run->options.engine, "taken");
	test->edges = run->options.edges;
	if (form && isa_generate(form, seed, test, decoded))
		return true;
	atomic_fetch_add(&run->results->unborn, 1);
	return false;
}

static int worker_run(void *owner, unsigned number)
{
	struct run *run = owner;
	struct worker_progress *progress = &run->results->progress[number];
	static struct isa_decoded decoded[ISA_BATCH];
	static struct isa_outcome other[ISA_BATCH];
	bool broken[ISA_BATCH];
	struct native_runner *runner = native_create_runner();
	struct opinion opinion;
	time_t end = time(NULL) + run->options.seconds;
	int error = runner ? opinion_create(&opinion, run->options.engine, "isa-silicon") : -errno;

	if (error)
		return error;
	for (uint64_t n = number; n < run->options.cases && !error;) {
		unsigned count = 0;

		for (; count < ISA_BATCH && n < run->options.cases; n += run->options.workers)
			count += make_case(run, runner, n, count, &decoded[count]);
		error = native_start(runner, count);
		for (unsigned i = 0; i < count && !error; i++) {
			const struct isa_case *test = native_case(runner, i);

			progress->seed = test->seed;
			progress->form = (uint64_t)(test->form - run->forms.form);
			progress->cases++;
			broken[i] = opinion_run(&opinion, test, &other[i]);
		}
		if (!error)
			error = native_wait(runner);
		for (unsigned i = 0; i < count && !error; i++)
			judge(run, runner, i, &decoded[i], &other[i], broken[i]);
		if (run->options.seconds && time(NULL) >= end)
			break;
	}
	opinion_destroy(&opinion);
	native_destroy_runner(runner);
	return error;
}

static void describe_case(void *owner, const struct worker_progress *progress, char text[160])
{
	struct run *run = owner;
	const struct isa_form *form = &run->forms.form[progress->form];

	snprintf(text, 160, "%s   --replay %#llx/%#llx", form->name, (unsigned long long)progress->seed,
	         (unsigned long long)form->key);
}

static bool run_workers(struct run *run)
{
	const struct workers workers = {
	    .program = "isa-silicon",
	    .count = run->options.workers,
	    .progress = run->results->progress,
	    .owner = run,
	    .work = worker_run,
	    .describe = describe_case,
	};

	return workers_run(&workers);
}

/* ---- reports ---- */

static void list_forms(const struct run *run)
{
	const char *wanted = run->options.form_pattern;
	regex_t pattern;

	unsigned missing = 0, skipped = 0;

	if (regcomp(&pattern, wanted ? wanted : "", REG_EXTENDED | REG_NOSUB))
		return;
	for (unsigned i = 0; i < run->forms.count; i++) {
		const struct isa_form *form = &run->forms.form[i];

		missing += form->suppressed;
		skipped += form->skip != NULL;
		if (regexec(&pattern, form->name, 0, NULL, 0))
			continue;
		if (form->skip) {
			if (run->options.list_skipped)
				printf("%-60s %s\n", form->name, form->skip);
		} else if (form->suppressed) {
			if (run->options.list_missing)
				printf("%-60s not on this host\n", form->name);
		} else if (run->options.list) {
			printf("%016llx %s\n", (unsigned long long)form->key, form->name);
		}
	}
	regfree(&pattern);
	printf("%u forms: %u tested, %u not on this host, %u left out\n", run->forms.count, run->available, missing,
	       skipped);
}

static int compare_failures(const void *a, const void *b)
{
	const struct failure *x = a, *y = b;

	return x->form != y->form ? (x->form > y->form) - (x->form < y->form) : strcmp(x->what, y->what);
}

/* Failures grouped by form; the first of each group can be replayed. */
static void report_failures(struct run *run)
{
	struct results *results = run->results;
	unsigned count = results->failures < FAILURES_MAX ? (unsigned)results->failures : FAILURES_MAX, groups = 0;

	qsort(results->failure, count, sizeof(results->failure[0]), compare_failures);
	for (unsigned i = 0; i < count; i++) {
		const struct failure *failure = &results->failure[i];

		if (i && failure->form == results->failure[i - 1].form)
			continue;
		if (groups++ >= run->options.show)
			continue;
		printf("  %-48s %u of %u cases: %s   --replay %#llx/%#llx\n", run->forms.form[failure->form].name,
		       results->form_failures[failure->form], results->form_cases[failure->form], failure->what,
		       (unsigned long long)failure->seed, (unsigned long long)run->forms.form[failure->form].key);
	}
	if (groups)
		printf("%u forms failed\n", groups);
}

static const char *const vector_names[32] = {
    [0] = "#DE",  [1] = "#DB",  [3] = "#BP",  [4] = "#OF",  [5] = "#BR",  [6] = "#UD",  [7] = "#NM",  [10] = "#TS",
    [11] = "#NP", [12] = "#SS", [13] = "#GP", [14] = "#PF", [16] = "#MF", [17] = "#AC", [19] = "#XM",
};

static int report(struct run *run, double seconds)
{
	struct results *results = run->results;
	unsigned covered = 0;
	uint32_t least = ~0u;

	for (unsigned g = 0; g < GROUPS; g++)
		for (unsigned k = 0; k < run->group[g].count; k++) {
			uint32_t cases = results->form_cases[run->group[g].form[k]];

			covered += cases != 0;
			least = cases < least ? cases : least;
			if (run->options.counts)
				printf("%8u %s\n", cases, run->forms.form[run->group[g].form[k]].name);
		}
	report_failures(run);
	printf("isa-silicon: engine %s, seed %#llx: %llu cases of %u of %u forms (at least %u each) in %.1f s, %.0f "
	       "cases/s: %llu failures\n",
	       run->options.engine, (unsigned long long)run->options.seed, (unsigned long long)results->cases, covered,
	       run->available, least, seconds, (double)results->cases / seconds, (unsigned long long)results->failures);
	printf("isa-silicon: cases by the exception that ended them:");
	for (unsigned vector = 0; vector < 32; vector++)
		if (results->vector[vector])
			printf(" %s %llu", vector_names[vector] ? vector_names[vector] : "?",
			       (unsigned long long)results->vector[vector]);
	putchar('\n');
	isa_print_tolerances("isa-silicon", results->tolerated);
	if (!run->ldt)
		puts("isa-silicon: this host has no modify_ldt: no 16-bit code, no segments in 32-bit code");
	if (results->unborn * 50 > results->cases + 50)
		printf("isa-silicon: %llu seeds gave no case\n", (unsigned long long)results->unborn);
	if (results->broken)
		printf("isa-silicon: %llu of %llu deliberate errors found\n", (unsigned long long)results->found,
		       (unsigned long long)results->broken);
	return results->failures || results->found != results->broken;
}

static const char usage[] =
    "Usage: isa-silicon [OPTION...]\n"
    "Runs instruction forms with random operands on this CPU and on an engine, and compares.\n"
    "  --engine NAME     ring3's engine (default: interpreter), or taken, a translator that takes its own\n"
    "                    translations; native, broken: tests of this test\n"
    "  --seed N          default: random, printed\n"
    "  --cases N         default: 100000\n"
    "  --seconds N       stop after that time\n"
    "  --form REGEX      only forms whose name matches\n"
    "  --jobs N          worker processes, default: one per CPU\n"
    "  --edges           most operands cross pages or cannot be reached\n"
    "  --list            print the forms and their keys\n"
    "  --list-skipped    print the forms left out, and why\n"
    "  --list-missing    print the forms that this CPU does not have\n"
    "  --show N          how many failed forms to print, default: 40\n"
    "  --verbose         print every failure in full\n"
    "  --replay SEED/KEY run one case again, printed in full; --engine and --edges as before\n";

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option longs[] = {
	    {"engine", required_argument, NULL, 'e'}, {"seed", required_argument, NULL, 's'},
	    {"cases", required_argument, NULL, 'n'},  {"seconds", required_argument, NULL, 't'},
	    {"form", required_argument, NULL, 'f'},   {"jobs", required_argument, NULL, 'j'},
	    {"list", no_argument, NULL, 'l'},         {"list-skipped", no_argument, NULL, 'k'},
	    {"list-missing", no_argument, NULL, 'm'}, {"show", required_argument, NULL, 'w'},
	    {"counts", no_argument, NULL, 'c'},       {"edges", no_argument, NULL, 'd'},
	    {"verbose", no_argument, NULL, 'v'},      {"replay", required_argument, NULL, 'r'},
	    {"help", no_argument, NULL, 'h'},         {0},
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	char *rest;
	int option;

	*options = (struct options){
	    .engine = "interpreter", .cases = 100000, .show = 40, .workers = cpus > 0 ? (unsigned)cpus : 1};
	if (getrandom(&options->seed, sizeof(options->seed), 0) != sizeof(options->seed))
		options->seed = (uint64_t)time(NULL);
	while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
		switch (option) {
		case 'e':
			options->engine = optarg;
			break;
		case 's':
			options->seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			options->cases = strtoull(optarg, NULL, 0);
			break;
		case 't':
			options->seconds = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'f':
			options->form_pattern = optarg;
			break;
		case 'j':
			options->workers = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'w':
			options->show = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'l':
			options->list = true;
			break;
		case 'k':
			options->list_skipped = true;
			break;
		case 'm':
			options->list_missing = true;
			break;
		case 'c':
			options->counts = true;
			break;
		case 'd':
			options->edges = true;
			break;
		case 'v':
			options->verbose = true;
			break;
		case 'r':
			options->replay = true;
			options->replay_seed = strtoull(optarg, &rest, 0);
			options->replay_key = *rest == '/' ? strtoull(rest + 1, NULL, 0) : 0;
			options->cases = options->workers = 1;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			return false;
		}
	if (options->workers < 1 || options->workers > WORKERS_MAX)
		options->workers = 1;
	if (options->seconds && options->cases == 100000)
		options->cases = ~0ull >> 8;
	return optind == argc;
}

static int results_create(struct run *run)
{
	size_t counters = sizeof(uint32_t) * run->forms.count, size = sizeof(*run->results) + 2 * counters;

	run->results = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run->results == MAP_FAILED)
		return -errno;
	run->results->form_cases = (_Atomic uint32_t *)(run->results + 1);
	run->results->form_failures = run->results->form_cases + run->forms.count;
	return 0;
}

int main(int argc, char **argv)
{
	static struct run run;
	struct timespec start, now;

	if (!parse_options(argc, argv, &run.options))
		return 2;
	int error = isa_forms_create(&run.forms);
	if (!error)
		error = probe_forms(&run);
	if (!error)
		error = choose_forms(&run);
	if (!error)
		error = results_create(&run);
	if (error == -ENOSYS) {
		puts("isa-silicon: skipped: this host has no user-mode FSGSBASE (Linux 5.9)");
		return EXIT_SKIPPED;
	}
	if (error) {
		fprintf(stderr, "isa-silicon: %s\n", strerror(-error));
		return 1;
	}
	if (run.options.list || run.options.list_skipped || run.options.list_missing) {
		list_forms(&run);
		return 0;
	}
	if (!run.available && !run.options.replay) {
		fprintf(stderr, "isa-silicon: no form to test\n");
		return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	/* A single case runs in this process, for a debugger's sake. */
	bool failed = run.options.replay ? worker_run(&run, 0) != 0 : !run_workers(&run);
	clock_gettime(CLOCK_MONOTONIC, &now);
	failed |= report(&run, (double)(now.tv_sec - start.tv_sec) + 1e-9 * (double)(now.tv_nsec - start.tv_nsec));
	return failed ? 1 : 0;
}
