/*
 * A Linux guest at work is saved, loaded into a new machine, and goes on, again and again, each time on another engine.
 *
 *	state_linux FOLDER KERNEL INITRAMFS SEED MOVES CPUS QCOW2 RAW
 *
 * The guest tells "@@START", and in the end "@@RESULT ok" or what was wrong, on COM1; what it printed is in FOLDER/com.N for machine N, and
 * hvc0's in FOLDER/hvc.N. The balloon grows and shrinks meanwhile. test_state_linux.py makes the files and judges.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backends/chardev/chardev.h"
#include "backends/net/net_options.h"
#include "backends/net/slirp_process.h"
#include "machine/machine.h"
#include "machine/pc.h"
#include "machine/state.h"

#define MEMORY (160ull << 20)
#define BOOT_S 600
#define WORK_S 1000

struct guest {
	const char *folder, *kernel, *initramfs, *disk[2];
	unsigned cpus, number;
	struct chardev *com, *hvc;
	struct machine *machine;
	pthread_t thread;
};

static void quit(void *owner) {}

static void rest(unsigned ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l}, NULL);
}

static void fail(const char *what, const char *why)
{
	printf("FAILED: %s: %s\n", what, why);
	exit(1);
}

static struct chardev *output_file(const struct guest *guest, const char *name)
{
	char specification[512];

	snprintf(specification, sizeof(specification), "file:%s/%s.%u", guest->folder, name, guest->number);
	struct chardev *chardev = chardev_create(specification, quit, NULL);
	if (!chardev)
		fail(specification, "cannot be made");
	return chardev;
}

static void *run(void *argument)
{
	struct guest *guest = argument;
	int status = 0;

	return (void *)(intptr_t)machine_run(guest->machine, &status);
}

/* A machine that has its kernel loaded, or that waits for a state. */
static void create(struct guest *guest, const char *engine, bool with_kernel)
{
	struct net_options net;
	struct machine_options options = {.engine = engine, .cpu = "host", .cpus = guest->cpus, .memory = MEMORY};
	char user[] = "user";

	guest->com = output_file(guest, "com");
	guest->hvc = output_file(guest, "hvc");
	if (net_options_parse(&net, user) < 0)
		fail("net", "options");
	options.console = guest->com;
	options.ports[0] = (struct machine_port){.chardev = guest->hvc};
	options.port_count = 1;
	options.nets[0] = &net;
	options.net_count = 1;
	for (unsigned i = 0; i < 2; i++)
		options.disks[i] = (struct machine_disk){
		    .image = {.path = guest->disk[i], .format = i ? "raw" : "qcow2"}, .queues = 1 + i};
	options.disk_count = 2;
	if (with_kernel) {
		options.kernel = guest->kernel;
		options.initrd = guest->initramfs;
		options.append = "console=ttyS0 quiet panic=-1";
	}
	if (machine_create(&guest->machine, &options) < 0)
		fail("machine", "not made");
}

static void start(struct guest *guest)
{
	if (pthread_create(&guest->thread, NULL, run, guest))
		fail("thread", "not made");
}

static enum machine_end join(struct guest *guest)
{
	void *end;

	pthread_join(guest->thread, &end);
	chardev_detach(guest->com);
	chardev_detach(guest->hvc);
	machine_destroy(guest->machine);
	chardev_destroy(guest->com);
	chardev_destroy(guest->hvc);
	guest->number++;
	return (enum machine_end)(intptr_t)end;
}

/* Has the guest said this? */
static bool said(const struct guest *guest, const char *word)
{
	char path[512], text[65536];

	snprintf(path, sizeof(path), "%s/com.%u", guest->folder, guest->number);
	FILE *file = fopen(path, "r");
	size_t length = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
	if (file)
		fclose(file);
	text[length] = '\0';
	return strstr(text, word) != NULL;
}

static bool wait_for(const struct guest *guest, const char *word, unsigned seconds)
{
	for (unsigned i = 0; i < 20 * seconds; i++) {
		if (said(guest, word))
			return true;
		rest(50);
	}
	return false;
}

/* Saves the running machine and puts an end to it. */
static struct state *save(struct guest *guest)
{
	struct state *state = state_save_begin();

	machine_pause(guest->machine);
	machine_state(guest->machine, state);
	if (state_error(state))
		fail("save", state_error(state));
	machine_end(guest->machine, MACHINE_QUIT, 0);
	machine_resume(guest->machine);
	join(guest);
	return state;
}

static void load(struct guest *guest, struct state *saved, const char *engine)
{
	size_t length = 0;
	const void *data = state_save_data(saved, &length);
	struct state *state = data ? state_load_begin(data, length) : NULL;

	if (!state)
		fail("load", "out of memory");
	create(guest, engine, false);
	machine_state(guest->machine, state);
	if (state_error(state))
		fail("load", state_error(state));
	state_free(state);
	state_free(saved);
	start(guest);
}

int main(int argc, char **argv)
{
	static const char *const engines[] = {"auto", "interpreter"};
	unsigned moves, seed;

	slirp_process_enter(argc, argv); /* --net user starts this program once more */
	if (argc != 9)
		return 2;
	struct guest guest = {.folder = argv[1], .kernel = argv[2], .initramfs = argv[3], .disk = {argv[7], argv[8]}};
	seed = (unsigned)strtoul(argv[4], NULL, 0);
	moves = (unsigned)strtoul(argv[5], NULL, 0);
	guest.cpus = (unsigned)strtoul(argv[6], NULL, 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	srandom(seed);
	create(&guest, engines[0], true);
	start(&guest);
	if (!wait_for(&guest, "@@START", BOOT_S))
		fail("guest", "does not come up");
	for (unsigned i = 0; i < moves; i++) {
		rest(200 + (unsigned)random() % 600);
		virtio_balloon_set_target(&guest.machine->pc->virtio.balloon, i & 1 ? 0 : 24u << 20);
		rest((unsigned)random() % 60);
		if (said(&guest, "@@RESULT"))
			break;
		const char *engine = engines[(i + 1) % 2];
		load(&guest, save(&guest), engine);
		printf("move %u: goes on on %s\n", i + 1, engine);
	}
	if (!wait_for(&guest, "@@RESULT", WORK_S))
		fail("guest", "does not finish its work");
	enum machine_end end = join(&guest);
	if (end != MACHINE_POWER_OFF)
		fail("end", "no power-off");
	return 0;
}
