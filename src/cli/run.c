/* ring3 run: builds a machine from the command line, runs it, and turns its end into an exit status. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "backends/chardev/chardev.h"
#include "backends/net/net_options.h"
#include "cli/commands.h"
#include "cli/control.h"
#include "debug/gdbstub.h"
#include "debug/perf_map.h"
#include "debug/symbols.h"
#include "debug/trace.h"
#include "engines/engine.h"
#include "host/event_loop.h"
#include "host/log.h"
#include "machine/clock.h"
#include "machine/machine.h"

#define MEMORY_DEFAULT      (512ull << 20)
#define MEMORY_MIN          (1ull << 20)
#define CODE_CACHE_DEFAULT  (256ull << 20)
#define CODE_CACHE_MIN      (256u << 10)
#define CODE_CACHE_MAX      (1ull << 30) /* some of it must lie below 2 GiB */
#define MEMORY_MAX          (128ull << 30)
#define TRANSLATE_AFTER_MAX 1000000000

enum {
	OPTION_ENGINE = 256,
	OPTION_TRANSLATE_AFTER,
	OPTION_CPU,
	OPTION_CPUS,
	OPTION_MEMORY,
	OPTION_BOOT_FROM_DISK,
	OPTION_KERNEL,
	OPTION_INITRD,
	OPTION_APPEND,
	OPTION_CONSOLE,
	OPTION_DISK,
	OPTION_NET,
	OPTION_VIRTIO_CONSOLE,
	OPTION_VIRTIO_PORT,
	OPTION_CONTROL,
	OPTION_NO_REBOOT,
	OPTION_DEBUG_EXIT,
	OPTION_TRACE,
	OPTION_GDB,
	OPTION_STOP,
	OPTION_STATS,
	OPTION_PERF_MAP,
	OPTION_LOCKSTEP,
	OPTION_COMPARE_TAKEN,
	OPTION_CODE_CACHE,
	OPTION_SYMBOLS,
	OPTION_HELP,
};

/* The one list, from which getopt's table and --help are made. */
static const struct run_option {
	const char *name, *argument; /* NULL: takes none */
	int value;
	const char *help;
} run_options[] = {
    {"kernel", "FILE", OPTION_KERNEL, "Linux bzImage, PVH ELF or Multiboot image"},
    {"boot-from-disk", NULL, OPTION_BOOT_FROM_DISK, "instead: kernel and initrd from /boot in the first disk"},
    {"initrd", "FILE", OPTION_INITRD, "initial RAM disk; for Multiboot 'FILE ARGS,FILE ARGS' are modules"},
    {"append", "TEXT", OPTION_APPEND, "kernel command line"},
    {"cpus", "N", OPTION_CPUS, "processors, 1 to 16 (1)"},
    {"memory", "SIZE", OPTION_MEMORY, "RAM, with K, M or G (512M)"},
    {"console", "WHERE", OPTION_CONSOLE, "COM1: stdio, none, pty, unix:PATH (listens) or file:PATH (stdio)"},
    {"disk", "FILE[,OPTION]...", OPTION_DISK,
     "virtio disk; format=raw|qcow2, readonly, snapshot, cache=writeback|writethrough|none|unsafe, serial=TEXT, "
     "queues=N, transitional"},
    {"net", "KIND[,OPTION]...", OPTION_NET,
     "virtio network card; user, tap, unix:PATH, switch:NAME or none, and mac=, queues=, transitional=on"},
    {"virtio-console", "WHERE", OPTION_VIRTIO_CONSOLE, "port of a virtio console; WHERE as for --console"},
    {"virtio-port", "NAME=WHERE", OPTION_VIRTIO_PORT, "the same, as a channel that the guest finds by its name"},
    {"control", "PATH", OPTION_CONTROL, "listen on this UNIX socket for commands: balloon, memory, pause ... (help)"},
    {"engine", "NAME", OPTION_ENGINE, "what executes guest code (auto)"},
    {"translate-after", "N", OPTION_TRANSLATE_AFTER, "how often a block of code runs before it is translated (24)"},
    {"cpu", "host[,mitigations=on|off]", OPTION_CPU,
     "processor model (host); mitigations=on lets the guest use its own"},
    {"no-reboot", NULL, OPTION_NO_REBOOT, "a reset of the guest ends ring3"},
    {"debug-exit", NULL, OPTION_DEBUG_EXIT, "a write of V to port F4h ends ring3 with status (V << 1) | 1"},
    {"trace", "NAME,...", OPTION_TRACE, "write what happens to stderr; all: every point"},
    {"gdb", "unix:PATH|tcp:HOST:PORT", OPTION_GDB, "listen for a debugger"},
    {"stop", NULL, OPTION_STOP, "do not start before the debugger says so"},
    {"stats", NULL, OPTION_STATS, "print counters at the end"},
    {"code-cache", "SIZE", OPTION_CODE_CACHE, "room for decoded and translated code, all processors together (256M)"},
    {"compare-taken", NULL, OPTION_COMPARE_TAKEN,
     "check the translations that processors take from one another (slow)"},
    {"lockstep", NULL, OPTION_LOCKSTEP, "check translated code against the interpreter, block by block (slow)"},
    {"perf-map", NULL, OPTION_PERF_MAP, "name translated blocks for perf(1) in /tmp/perf-PID.map"},
    {"symbols", "FILE", OPTION_SYMBOLS, "guest symbols for --perf-map: System.map, kallsyms or an ELF file"},
    {"help", NULL, OPTION_HELP, "show this"},
};
#define OPTION_COUNT (sizeof(run_options) / sizeof(run_options[0]))

struct run {
	struct machine_options options;
	const char *console;
	const char *port[MACHINE_PORTS_MAX]; /* of the virtio console */
	struct net_options net[MACHINE_NETS_MAX];
	const char *gdb; /* NULL: no debugger */
	const char *symbols;
	const char *control; /* NULL: no control socket */
	bool stats, help, perf_map;

	struct machine *machine;
	int signals; /* signalfd */
};

static int show_help(void)
{
	static const struct {
		const char *name, *help;
	} points[] = {
#define X(id, name, help) {name, help},
	    TRACE_POINTS(X)
#undef X
	};

	printf("Usage: ring3 run --kernel FILE [OPTION]...\n"
	       "       ring3 run --disk FILE --boot-from-disk [OPTION]...\n"
	       "Starts a machine with that kernel, its first serial port on the terminal. Ctrl-a x leaves, Ctrl-a h "
	       "helps.\n\n");
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct run_option *option = &run_options[i];
		int width = printf("  --%s%s%s", option->name, option->argument ? " " : "",
		                   option->argument ? option->argument : "");
		if (width > 27)
			width = printf("\n") - 1;
		printf("%*s%s\n", 29 - width, "", option->help);
	}
	printf("\nEngines:\n  %-27s%s\n", "auto", "the fastest one that works here");
	for (size_t i = 0; engines[i]; i++)
		printf("  %-27s%s\n", engines[i]->name, engines[i]->description);
	printf("\nTrace points:\n");
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		printf("  %-27s%s\n", points[i].name, points[i].help);
	printf("\nExit status: 0 the guest powered off (or the user left), 1 ring3 failed, 2 wrong usage, 3 the guest "
	       "crashed.\n");
	return finish_stdout();
}

static int check_engine(const char *name)
{
	if (strcmp(name, "auto") == 0)
		return STATUS_OK;
	for (size_t i = 0; engines[i]; i++)
		if (strcmp(engines[i]->name, name) == 0)
			return STATUS_OK;
	return usage_error("run", "unknown engine '%s'", name);
}

static int check_cpu(const char *specification)
{
	struct cpu_model model;
	char why[256];

	if (cpu_model_create(&model, specification, 1, 1000000, why) < 0)
		return usage_error("run", "--cpu %s: %s", specification, why);
	return STATUS_OK;
}

static int check_gdb(const char *where)
{
	const char *port = strrchr(where, ':');
	unsigned number;

	if (strncmp(where, "unix:", 5) == 0 && where[5])
		return STATUS_OK;
	if (strncmp(where, "tcp:", 4) == 0 && port > where + 3 && parse_number(port + 1, 1, 65535, &number))
		return STATUS_OK;
	return usage_error("run", "--gdb '%s' is neither unix:PATH nor tcp:HOST:PORT", where);
}

static int check_where(const char *option, const char *where)
{
	if (chardev_known(where))
		return STATUS_OK;
	return usage_error("run", "%s '%s' is not stdio, none, pty, unix:PATH or file:PATH", option, where);
}

static int take_file(const char **file, const char *option, const char *argument)
{
	*file = argument;
	return *argument ? STATUS_OK : usage_error("run", "%s needs a file", option);
}

static int take_net(struct run *run, const char *argument)
{
	struct machine_options *options = &run->options;
	struct net_options *net = &run->net[options->net_count];

	if (options->net_count == MACHINE_NETS_MAX)
		return usage_error("run", "more than %d network cards", MACHINE_NETS_MAX);
	if (net_options_parse(net, argument) < 0)
		return STATUS_USAGE;
	options->nets[options->net_count++] = net;
	return STATUS_OK;
}

/* `where` is the specification, or "=SPECIFICATION" behind a name. */
static int take_port(struct run *run, char *name, char *where)
{
	struct machine_options *options = &run->options;

	if (options->port_count == MACHINE_PORTS_MAX)
		return usage_error("run", "more than %d virtio console ports", MACHINE_PORTS_MAX);
	if (name && (!where || where == name || where - name > 31))
		return usage_error("run", "--virtio-port '%s' is not NAME=WHERE with a name of at most 31 letters",
		                   name);
	if (name)
		*where++ = '\0';
	if (check_where(name ? "--virtio-port" : "--virtio-console", where))
		return STATUS_USAGE;
	for (unsigned i = 0; i < options->port_count; i++)
		if (name && options->ports[i].name && strcmp(name, options->ports[i].name) == 0)
			return usage_error("run", "two --virtio-port with the name '%s'", name);
	options->ports[options->port_count].name = name;
	run->port[options->port_count++] = where;
	return STATUS_OK;
}

static int take_option(struct run *run, int value, char *argument)
{
	struct machine_options *options = &run->options;
	char unknown[64];
	uint32_t mask;

	switch (value) {
	case OPTION_ENGINE:
		options->engine = argument;
		return check_engine(argument);
	case OPTION_TRANSLATE_AFTER:
		if (!parse_number(argument, 1, TRANSLATE_AFTER_MAX, &options->translate_after))
			return usage_error("run", "--translate-after '%s' is not a number from 1 to %d", argument,
			                   TRANSLATE_AFTER_MAX);
		return STATUS_OK;
	case OPTION_CPU:
		options->cpu = argument;
		return check_cpu(argument);
	case OPTION_CPUS:
		if (!parse_number(argument, 1, MACHINE_CPUS_MAX, &options->cpus))
			return usage_error("run", "--cpus '%s' is not a number from 1 to %d", argument,
			                   MACHINE_CPUS_MAX);
		return STATUS_OK;
	case OPTION_MEMORY:
		if (!parse_size(argument, &options->memory))
			return usage_error("run", "--memory '%s' is not a size like 512M or 2G", argument);
		if (options->memory < MEMORY_MIN || options->memory > MEMORY_MAX || options->memory % MEMORY_PAGE_SIZE)
			return usage_error("run", "--memory %s is not from 1M to 128G in steps of 4K", argument);
		return STATUS_OK;
	case OPTION_KERNEL:
		return take_file(&options->kernel, "--kernel", argument);
	case OPTION_BOOT_FROM_DISK:
		options->boot_from_disk = true;
		return STATUS_OK;
	case OPTION_INITRD:
		return take_file(&options->initrd, "--initrd", argument);
	case OPTION_APPEND:
		options->append = argument;
		return STATUS_OK;
	case OPTION_CONSOLE:
		run->console = argument;
		return check_where("--console", argument);
	case OPTION_DISK:
		return take_disk_option(options, argument);
	case OPTION_NET:
		return take_net(run, argument);
	case OPTION_VIRTIO_CONSOLE:
		return take_port(run, NULL, argument);
	case OPTION_VIRTIO_PORT:
		return take_port(run, argument, strchr(argument, '='));
	case OPTION_CONTROL:
		run->control = argument;
		return STATUS_OK;
	case OPTION_NO_REBOOT:
		options->no_reboot = true;
		return STATUS_OK;
	case OPTION_DEBUG_EXIT:
		options->debug_exit = true;
		return STATUS_OK;
	case OPTION_TRACE:
		if (!trace_parse(argument, &mask, unknown))
			return usage_error("run", "unknown trace point '%s'", unknown);
		options->trace_mask |= mask;
		return STATUS_OK;
	case OPTION_GDB:
		run->gdb = argument;
		return check_gdb(argument);
	case OPTION_STOP:
		options->stopped = true;
		return STATUS_OK;
	case OPTION_STATS:
		run->stats = options->stats = true;
		return STATUS_OK;
	case OPTION_CODE_CACHE:
		if (!parse_size(argument, &options->code_cache))
			return usage_error("run", "--code-cache '%s' is not a size like 64M or 1G", argument);
		return STATUS_OK;
	case OPTION_COMPARE_TAKEN:
		options->compare_taken = true;
		return STATUS_OK;
	case OPTION_LOCKSTEP:
		options->lockstep = true;
		return STATUS_OK;
	case OPTION_PERF_MAP:
		run->perf_map = true;
		return STATUS_OK;
	case OPTION_SYMBOLS:
		run->symbols = argument;
		return STATUS_OK;
	default:
		run->help = true;
		return STATUS_OK;
	}
}

/* There is one, from one place. */
static int check_kernel(const struct machine_options *options)
{
	if (options->boot_from_disk && (options->kernel || options->initrd))
		return usage_error("run", "--boot-from-disk takes kernel and initrd from the disk; leave --%s out",
		                   options->kernel ? "kernel" : "initrd");
	if (options->boot_from_disk && options->disk_count == 0)
		return usage_error("run", "--boot-from-disk without --disk");
	if (!options->kernel && !options->boot_from_disk)
		return usage_error("run", "--kernel is missing (or --disk with --boot-from-disk)");
	return STATUS_OK;
}

static unsigned stdio_users(const struct run *run)
{
	unsigned users = strcmp(run->console, "stdio") == 0;

	for (unsigned i = 0; i < run->options.port_count; i++)
		users += strcmp(run->port[i], "stdio") == 0;
	return users;
}

static int parse_options(struct run *run, int argc, char **argv)
{
	struct option table[OPTION_COUNT + 1] = {0};
	int value, status;

	for (size_t i = 0; i < OPTION_COUNT; i++)
		table[i] =
		    (struct option){run_options[i].name, run_options[i].argument ? required_argument : no_argument,
		                    NULL, run_options[i].value};
	optind = 0; /* start anew, with everything forgotten */
	opterr = 0;
	while ((value = getopt_long(argc, argv, ":h", table, NULL)) != -1) {
		if (value == ':')
			return usage_error("run", "%s needs a value", argv[optind - 1]);
		if (value == '?' && optopt >= OPTION_ENGINE)
			return usage_error("run", "%s takes no value", argv[optind - 1]);
		if (value == '?' && optopt)
			return usage_error("run", "unknown option '-%c'", optopt);
		if (value == '?')
			return usage_error("run", "unknown option '%s'", argv[optind - 1]);
		status = take_option(run, value, optarg);
		if (status || run->help)
			return status;
	}
	if (optind < argc)
		return usage_error("run", "'%s' is not an option; the kernel is given by --kernel", argv[optind]);
	status = check_kernel(&run->options);
	if (status)
		return status;
	if (run->options.code_cache < (uint64_t)CODE_CACHE_MIN * run->options.cpus ||
	    run->options.code_cache > CODE_CACHE_MAX)
		return usage_error("run", "--code-cache is not from 256K for each processor to 1G");
	if (run->options.lockstep && run->options.cpus > 1)
		return usage_error("run", "--lockstep is for one processor");
	if (run->options.compare_taken && run->options.cpus < 2)
		return usage_error("run", "--compare-taken is for several processors");
	if (run->options.lockstep && strcmp(run->options.engine, "interpreter") == 0)
		return usage_error("run", "--lockstep checks the translator, not the interpreter");
	if (run->symbols && !run->perf_map)
		return usage_error("run", "--symbols without --perf-map names nothing");
	if (stdio_users(run) > 1)
		return usage_error("run",
		                   "standard input and output can serve one console; COM1 has it unless --console "
		                   "says otherwise");
	if (run->options.stopped && !run->gdb)
		return usage_error("run", "--stop without --gdb would wait for ever");
	return STATUS_OK;
}

/* Ctrl-a x. On the event loop's thread. */
static void quit(void *owner)
{
	struct run *run = owner;

	machine_end(run->machine, MACHINE_QUIT, 0);
}

static void fill_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
}

/*
 * The first signal asks for a clean end; a later one finds this thread open for its default action. Some senders
 * (timeout(1)) signal the process and then its group: what comes at once is the same request.
 */
static void signal_ready(void *owner, uint32_t events)
{
	const struct timespec moment = {.tv_nsec = 100000000};
	struct run *run = owner;
	struct signalfd_siginfo information;
	sigset_t set;

	if (read(run->signals, &information, sizeof(information)) != sizeof(information))
		return;
	machine_end(run->machine, MACHINE_QUIT, 0);
	nanosleep(&moment, NULL);
	while (read(run->signals, &information, sizeof(information)) > 0)
		;
	fill_signals(&set);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* Before any thread is started, so that all inherit the mask. */
static int block_signals(struct run *run)
{
	sigset_t set;

	fill_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	run->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return run->signals < 0 ? -errno : 0;
}

static int status_of(enum machine_end end, int debug_exit_status)
{
	switch (end) {
	case MACHINE_POWER_OFF:
	case MACHINE_RESET:
	case MACHINE_QUIT:
		return STATUS_OK;
	case MACHINE_CRASHED:
		return STATUS_CRASHED;
	case MACHINE_DEBUG_EXIT:
		return ((debug_exit_status << 1) | 1) & 0xff;
	case MACHINE_RUNNING:
	case MACHINE_FAILED:
		break;
	}
	return STATUS_FAILED;
}

/* The machine exists; the debugger, if any, already listens. */
static int run_until_end(struct run *run, struct gdbstub *debugger, struct control *control)
{
	struct event_source *source;
	int debug_exit_status = 0;
	enum machine_end end;

	if (debugger && gdbstub_attach(debugger, run->machine) < 0)
		return STATUS_FAILED;
	if (control && control_attach(control, run->machine) < 0) {
		log_error("--control: out of memory");
		return STATUS_FAILED;
	}
	source = event_source_add(run->machine->loop, run->signals, EPOLLIN, signal_ready, run);
	if (!source) {
		log_error("signals: %s", strerror(errno));
		return STATUS_FAILED;
	}
	end = machine_run(run->machine, &debug_exit_status);
	event_source_remove(source);
	return status_of(end, debug_exit_status);
}

static int run_machine(struct run *run)
{
	struct gdbstub *debugger = NULL;
	struct control *control = NULL;
	int status = STATUS_FAILED;
	unsigned ports;

	run->options.console = chardev_create(run->console, quit, run);
	if (!run->options.console)
		return STATUS_FAILED;
	for (ports = 0; ports < run->options.port_count; ports++) {
		run->options.ports[ports].chardev = chardev_create(run->port[ports], quit, run);
		if (!run->options.ports[ports].chardev)
			break;
	}
	if (run->gdb)
		debugger = gdbstub_create(run->gdb);
	if (run->control)
		control = control_create(run->control);
	if (ports == run->options.port_count && (!run->gdb || debugger) && (!run->control || control) &&
	    machine_create(&run->machine, &run->options) == 0)
		status = run_until_end(run, debugger, control);
	if (debugger)
		gdbstub_destroy(debugger);
	if (run->machine) {
		if (control)
			control_detach(control);
		chardev_detach(run->options.console);
		for (unsigned i = 0; i < ports; i++)
			chardev_detach(run->options.ports[i].chardev);
		if (run->stats)
			machine_print_stats(run->machine, stderr);
		machine_destroy(run->machine);
	}
	control_destroy(control);
	while (ports > 0)
		chardev_destroy(run->options.ports[--ports].chardev);
	chardev_destroy(run->options.console);
	return status;
}

/* --perf-map and --symbols around the machine's life. */
static int run_profiled(struct run *run)
{
	char why[SYMBOLS_WHY_SIZE] = "";
	struct symbols *symbols = NULL;
	int status = STATUS_FAILED;

	if (run->symbols) {
		symbols = symbols_load(run->symbols, why);
		if (!symbols) {
			log_error("--symbols %s", why);
			return STATUS_FAILED;
		}
	}
	if (run->perf_map)
		run->options.perf_map = perf_map_create(symbols);
	if (run->perf_map && !run->options.perf_map)
		log_error("--perf-map: %s", strerror(errno));
	else
		status = run_machine(run);
	perf_map_destroy(run->options.perf_map);
	symbols_free(symbols);
	return status;
}

int run_main(int argc, char **argv)
{
	struct run run = {
	    .options = {.code_cache = CODE_CACHE_DEFAULT,
	                .engine = "auto",
	                .cpu = "host",
	                .cpus = 1,
	                .memory = MEMORY_DEFAULT},
	    .console = "stdio",
	    .signals = -1,
	};
	int status = parse_options(&run, argc, argv), error;

	if (status)
		return status;
	if (run.help)
		return show_help();
	error = block_signals(&run);
	if (error) {
		log_error("signals: %s", strerror(-error));
		return STATUS_FAILED;
	}
	status = run_profiled(&run);
	close(run.signals);
	return status;
}
