/*
 * Runs a machine and moves it: again and again it is paused wherever it happens to be, saved, destroyed, and loaded into a new
 * machine, on the next engine of the list. The console goes on, on standard output. save-linux looks at what the guest says.
 *
 *	machine_mover --kernel FILE --initrd FILE --append TEXT --cpus N --memory MIB --engines NAME,... --every MS --seed N
 *
 * --every: processor time that a machine takes between two moves, on the average. Ends with the guest: 0 for a power-off, else 1. The last line
 * on standard error has the number of moves.
 */
#include <getopt.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backends/chardev/chardev.h"
#include "machine/clock.h"
#include "machine/machine.h"
#include "machine/state.h"

#define ENGINES_MAX 8

struct mover {
	struct machine_options options;
	const char *engines[ENGINES_MAX];
	unsigned engine_count;
	unsigned every_ms;
	uint64_t random;

	struct machine *machine;
	struct chardev *console;
	pthread_t thread;
	_Atomic bool ended; /* the machine's thread is through */
	unsigned moves;
	size_t largest;      /* state, bytes */
	double longest, all; /* seconds that moves took */
};

static double seconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned random_below(struct mover *mover, unsigned limit)
{
	mover->random = mover->random * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)((mover->random >> 33) % limit);
}

static void *run(void *argument)
{
	struct mover *mover = argument;
	int status = 0;
	enum machine_end end = machine_run(mover->machine, &status);

	atomic_store(&mover->ended, true);
	return (void *)(intptr_t)end;
}

static void start(struct mover *mover)
{
	atomic_store(&mover->ended, false);
	if (pthread_create(&mover->thread, NULL, run, mover)) {
		fprintf(stderr, "machine_mover: no thread\n");
		exit(1);
	}
}

/*
 * Between none and twice the average of processor time, so that a guest on a busy host gets on between two moves; less when it idles
 * or ends.
 */
static void let_run(struct mover *mover)
{
	double part = random_below(mover, 2 * mover->every_ms * 1000) / 1e6;
	double work = seconds(CLOCK_PROCESS_CPUTIME_ID) + part, until = seconds(CLOCK_MONOTONIC) + 10 * part;

	while (!atomic_load(&mover->ended) && seconds(CLOCK_PROCESS_CPUTIME_ID) < work &&
	       seconds(CLOCK_MONOTONIC) < until)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static struct machine *create(struct mover *mover)
{
	struct machine *machine = NULL;

	mover->options.engine = mover->engines[mover->moves % mover->engine_count];
	if (machine_create(&machine, &mover->options) < 0)
		exit(1);
	return machine;
}

static void check_state(struct state *state, const char *what)
{
	if (!state || state_error(state)) {
		fprintf(stderr, "machine_mover: %s: %s\n", what, state ? state_error(state) : "out of memory");
		exit(1);
	}
}

/* Returns why the machine ended, or MACHINE_RUNNING: it has moved. */
static enum machine_end move(struct mover *mover)
{
	struct state *state = state_save_begin(), *load;
	double started = seconds(CLOCK_MONOTONIC);
	uint64_t time_saved, time_loaded;
	size_t length = 0;
	void *end;

	machine_pause(mover->machine);
	check_state(state, "save");
	machine_state(mover->machine, state);
	check_state(state, "save");
	time_saved = clock_now(mover->machine->clock);
	machine_end(mover->machine, MACHINE_QUIT, 0);
	machine_resume(mover->machine);
	pthread_join(mover->thread, &end);
	chardev_detach(mover->console);
	machine_destroy(mover->machine);
	mover->machine = NULL;
	if ((enum machine_end)(intptr_t)end != MACHINE_QUIT) {
		state_free(state);
		return (enum machine_end)(intptr_t)end;
	}

	const void *data = state_save_data(state, &length);
	mover->moves++;
	mover->machine = create(mover);
	load = state_load_begin(data, length);
	check_state(load, "load");
	machine_state(mover->machine, load);
	check_state(load, "load");
	time_loaded = clock_now(mover->machine->clock);
	if (time_loaded != time_saved) {
		fprintf(stderr, "machine_mover: guest time was %llu ns when saved and is %llu ns when loaded\n",
		        (unsigned long long)time_saved, (unsigned long long)time_loaded);
		exit(1);
	}
	state_free(load);
	state_free(state);
	start(mover);

	double took = seconds(CLOCK_MONOTONIC) - started;
	mover->all += took;
	if (took > mover->longest)
		mover->longest = took;
	if (length > mover->largest)
		mover->largest = length;
	return MACHINE_RUNNING;
}

static void parse(struct mover *mover, int argc, char **argv)
{
	static const struct option table[] = {
	    {"kernel", 1, NULL, 'k'}, {"initrd", 1, NULL, 'i'}, {"append", 1, NULL, 'a'},
	    {"cpus", 1, NULL, 'c'},   {"memory", 1, NULL, 'm'}, {"engines", 1, NULL, 'e'},
	    {"every", 1, NULL, 'w'},  {"seed", 1, NULL, 's'},   {NULL, 0, NULL, 0},
	};
	int value;

	while ((value = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (value) {
		case 'k':
			mover->options.kernel = optarg;
			break;
		case 'i':
			mover->options.initrd = optarg;
			break;
		case 'a':
			mover->options.append = optarg;
			break;
		case 'c':
			mover->options.cpus = (unsigned)atoi(optarg);
			break;
		case 'm':
			mover->options.memory = (uint64_t)atoi(optarg) << 20;
			break;
		case 'e':
			for (char *name = strtok(optarg, ","); name && mover->engine_count < ENGINES_MAX;
			     name = strtok(NULL, ","))
				mover->engines[mover->engine_count++] = name;
			break;
		case 'w':
			mover->every_ms = (unsigned)atoi(optarg);
			break;
		case 's':
			mover->random = strtoull(optarg, NULL, 0);
			break;
		default:
			exit(2);
		}
	}
	if (!mover->options.kernel || !mover->engine_count || !mover->every_ms)
		exit(2);
}

int main(int argc, char **argv)
{
	struct mover mover = {
	    .options = {.cpu = "host", .cpus = 1, .memory = 256u << 20, .no_reboot = true},
	};
	enum machine_end end = MACHINE_RUNNING;

	parse(&mover, argc, argv);
	mover.console = mover.options.console = chardev_create("stdio", NULL, NULL);
	if (!mover.console)
		return 1;
	mover.machine = create(&mover);
	start(&mover);
	while (end == MACHINE_RUNNING) {
		let_run(&mover);
		end = move(&mover);
	}
	chardev_destroy(mover.console);
	fprintf(stderr, "%u moves of %.1f ms (longest %.1f ms), states up to %.1f MiB\n", mover.moves,
	        mover.moves ? 1e3 * mover.all / mover.moves : 0, 1e3 * mover.longest,
	        (double)mover.largest / (1 << 20));
	return end == MACHINE_POWER_OFF ? 0 : 1;
}
