#include "cli/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "cli/commands.h"
#include "engines/engine.h"
#include "host/event_loop.h"
#include "host/log.h"
#include "host/unix_listener.h"
#include "machine/machine.h"
#include "machine/pc.h"

#define LINE_MAX_BYTES 256
#define OUTPUT_MAX     4096     /* a client that does not read its answers has gone wrong */
#define TICK_NS        10000000 /* while statistics are awaited */
#define TICKS_MAX      50u

struct control {
	struct unix_listener listener;
	int client, timer; /* -1: none */
	struct machine *machine;
	struct event_source *listener_source, *client_source, *timer_source;
	char line[LINE_MAX_BYTES];
	size_t length;
	char output[OUTPUT_MAX];
	size_t output_length;
	bool paused;     /* by us */
	unsigned ticks;  /* left to wait for statistics; no command is taken meanwhile */
	uint64_t update; /* the last one known when they were asked for */
};

struct command {
	const char *name, *argument, *help;
	/* Says "ok" or "error" itself, now or later. `argument`: NULL when there is none. */
	void (*run)(struct control *control, const char *argument);
};

static void say(struct control *control, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct control *control, const char *format, ...)
{
	size_t room = sizeof(control->output) - control->output_length;
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(control->output + control->output_length, room, format, arguments);
	va_end(arguments);
	if (length > 0)
		control->output_length += (size_t)length < room ? (size_t)length : room - 1;
}

static struct virtio_balloon *balloon_of(struct control *control)
{
	return &control->machine->pc->virtio.balloon;
}

/* ---- commands ---- */

static void set_balloon(struct control *control, const char *argument)
{
	uint64_t bytes, ram = control->machine->options.memory;

	if (!argument || !parse_size(argument, &bytes)) {
		say(control, "error: balloon needs a size, like 128M\n");
	} else if (bytes >= ram) {
		say(control, "error: the machine has only %llu MiB\n", (unsigned long long)ram >> 20);
	} else {
		virtio_balloon_set_target(balloon_of(control), bytes);
		say(control, "ok\n");
	}
}

static void say_memory(struct control *control)
{
	static const char *const names[BALLOON_STATS] = {
	    [BALLOON_SWAP_IN] = "swap-in",
	    [BALLOON_SWAP_OUT] = "swap-out",
	    [BALLOON_MAJOR_FAULTS] = "major-faults",
	    [BALLOON_MINOR_FAULTS] = "minor-faults",
	    [BALLOON_MEMORY_FREE] = "free",
	    [BALLOON_MEMORY_TOTAL] = "total",
	    [BALLOON_MEMORY_AVAILABLE] = "available",
	    [BALLOON_CACHES] = "caches",
	    [BALLOON_HUGE_ALLOCATIONS] = "huge-allocations",
	    [BALLOON_HUGE_FAILURES] = "huge-failures",
	};
	struct machine *machine = control->machine;
	struct virtio_balloon *balloon = balloon_of(control);
	uint64_t stat[BALLOON_STATS], updates = virtio_balloon_stats(balloon, stat);
	struct stat ram;

	say(control, "ram %llu\n", (unsigned long long)machine->options.memory);
	if (fstat(machine->memory.fd, &ram) == 0)
		say(control, "resident %llu\n", (unsigned long long)ram.st_blocks * 512);
	say(control, "balloon-target %llu\n", (unsigned long long)virtio_balloon_target(balloon));
	say(control, "balloon-actual %llu\n", (unsigned long long)virtio_balloon_actual(balloon));
	for (unsigned i = 0; updates && i < BALLOON_STATS; i++)
		if (stat[i] != UINT64_MAX)
			say(control, "guest-%s %llu\n", names[i], (unsigned long long)stat[i]);
	say(control, "ok\n");
}

static void set_timer(struct control *control, bool on)
{
	struct itimerspec time = {0};

	if (on)
		time.it_value.tv_nsec = time.it_interval.tv_nsec = TICK_NS;
	timerfd_settime(control->timer, 0, &time, NULL);
}

/* The guest is asked first, and given half a second; the answer comes then. */
static void memory(struct control *control, const char *argument)
{
	uint64_t stat[BALLOON_STATS];

	control->update = virtio_balloon_stats(balloon_of(control), stat);
	if (control->paused || !virtio_balloon_request_stats(balloon_of(control))) {
		say_memory(control);
		return;
	}
	control->ticks = TICKS_MAX;
	set_timer(control, true);
}

static void pause_machine(struct control *control, const char *argument)
{
	if (!control->paused)
		machine_pause(control->machine);
	control->paused = true;
	say(control, "ok\n");
}

static void continue_machine(struct control *control, const char *argument)
{
	if (control->paused)
		machine_resume(control->machine);
	control->paused = false;
	say(control, "ok\n");
}

static void switch_engine(struct control *control, const char *argument)
{
	char why[256] = "";
	const struct engine *engine = argument ? engine_select(argument, why) : NULL;

	if (!engine) {
		say(control, "error: %s\n", argument ? why : "engine needs a name");
		return;
	}
	machine_pause(control->machine);
	if (machine_switch_engine(control->machine, engine) < 0)
		say(control, "error: the engine could not be made\n");
	else
		say(control, "ok\n");
	machine_resume(control->machine);
}

/* Too long for an answer. */
static void stats(struct control *control, const char *argument)
{
	machine_print_stats(control->machine, stderr);
	say(control, "ok\n");
}

static void power_button(struct control *control, const char *argument)
{
	machine_lock(control->machine);
	acpi_pm_power_button(&control->machine->pc->acpi_pm);
	machine_unlock(control->machine);
	say(control, "ok\n");
}

static void reset(struct control *control, const char *argument)
{
	machine_request_reset(control->machine);
	say(control, "ok\n");
}

static void quit(struct control *control, const char *argument)
{
	machine_end(control->machine, MACHINE_QUIT, 0);
	say(control, "ok\n");
}

static void help(struct control *control, const char *argument);

static const struct command commands[] = {
    {"balloon", "SIZE", "how much memory the guest shall do without; 0 gives all back", set_balloon},
    {"memory", NULL, "what the guest and the host say of its memory, in bytes", memory},
    {"pause", NULL, "the machine stands still", pause_machine},
    {"continue", NULL, "it goes on", continue_machine},
    {"engine", "NAME", "guest code is executed by this one from now on", switch_engine},
    {"stats", NULL, "print counters to ring3's standard error", stats},
    {"power-button", NULL, "press it: most guests shut down", power_button},
    {"reset", NULL, "as the reset button", reset},
    {"quit", NULL, "switch the machine off at once", quit},
    {"help", NULL, "show this", help},
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void help(struct control *control, const char *argument)
{
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		say(control, "%s%s%s: %s\n", commands[i].name, commands[i].argument ? " " : "",
		    commands[i].argument ? commands[i].argument : "", commands[i].help);
	say(control, "ok\n");
}

static void run_line(struct control *control, char *line)
{
	char *rest = NULL, *name = strtok_r(line, " \t\r", &rest), *argument;

	if (!name)
		return;
	argument = strtok_r(NULL, " \t\r", &rest);
	for (size_t i = 0; i < COMMAND_COUNT; i++) {
		if (strcmp(commands[i].name, name) != 0)
			continue;
		if ((argument && !commands[i].argument) || strtok_r(NULL, " \t\r", &rest))
			say(control, "error: too much behind '%s'\n", name);
		else
			commands[i].run(control, argument);
		return;
	}
	say(control, "error: unknown command; try help\n");
}

/* ---- the socket ---- */

static void drop_client(struct control *control)
{
	event_source_remove(control->client_source);
	control->client_source = NULL;
	if (control->client >= 0)
		close(control->client);
	control->client = -1;
	control->length = control->output_length = 0;
	if (control->ticks)
		set_timer(control, false);
	control->ticks = 0;
	if (control->listener_source)
		event_source_change(control->listener_source, EPOLLIN);
}

static void send_output(struct control *control)
{
	ssize_t sent = 0;

	if (control->output_length)
		sent = send(control->client, control->output, control->output_length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0 && errno != EAGAIN && errno != EINTR) {
		drop_client(control);
		return;
	}
	if (sent > 0) {
		control->output_length -= (size_t)sent;
		memmove(control->output, control->output + sent, control->output_length);
	}
	/* Nothing new is read before everything is said. */
	event_source_change(control->client_source, control->output_length ? EPOLLOUT : control->ticks ? 0 : EPOLLIN);
}

/* Runs the whole lines, as long as the answer does not have to wait. */
static void run_lines(struct control *control)
{
	char *end;

	while (!control->ticks && control->output_length < OUTPUT_MAX / 2 &&
	       (end = memchr(control->line, '\n', control->length))) {
		char line[LINE_MAX_BYTES];
		size_t length = (size_t)(end - control->line);

		memcpy(line, control->line, length);
		line[length] = '\0';
		control->length -= length + 1;
		memmove(control->line, end + 1, control->length);
		run_line(control, line);
	}
}

static void client_ready(void *owner, uint32_t events)
{
	struct control *control = owner;

	if (events & EPOLLIN) {
		size_t room = sizeof(control->line) - control->length;
		ssize_t got = recv(control->client, control->line + control->length, room, MSG_DONTWAIT);

		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
			drop_client(control);
			return;
		}
		control->length += got > 0 ? (size_t)got : 0;
		run_lines(control);
		if (control->length == sizeof(control->line)) {
			control->length = 0;
			say(control, "error: line too long\n");
		}
	} else if (events & EPOLLOUT) {
		run_lines(control);
	} else if (events & (EPOLLHUP | EPOLLERR)) {
		drop_client(control);
		return;
	}
	send_output(control);
}

static void accept_client(void *owner, uint32_t events)
{
	struct control *control = owner;
	int fd = accept4(control->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return; /* it has gone already; others will come */
	control->client = fd;
	event_source_change(control->listener_source, 0);
	control->client_source = event_source_add(control->machine->loop, fd, EPOLLIN, client_ready, control);
	if (!control->client_source)
		drop_client(control);
}

static void tick(void *owner, uint32_t events)
{
	struct control *control = owner;
	uint64_t stat[BALLOON_STATS], count;

	if (read(control->timer, &count, sizeof(count)) < 0 || !control->ticks)
		return;
	if (virtio_balloon_stats(balloon_of(control), stat) == control->update && --control->ticks > 0)
		return;
	control->ticks = 0;
	set_timer(control, false);
	say_memory(control);
	run_lines(control);
	send_output(control);
}

/* ---- life ---- */

struct control *control_create(const char *path)
{
	struct control *control = calloc(1, sizeof(*control));
	int error = -ENOMEM;

	if (control) {
		control->client = -1;
		control->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		error = control->timer < 0 ? -errno : unix_listener_open(&control->listener, path, 4);
	}
	if (!error)
		return control;
	log_error("--control %s: %s", path, unix_listener_error(error));
	if (control && control->timer >= 0)
		close(control->timer);
	free(control);
	return NULL;
}

int control_attach(struct control *control, struct machine *machine)
{
	control->machine = machine;
	control->listener_source =
	    event_source_add(machine->loop, control->listener.fd, EPOLLIN, accept_client, control);
	control->timer_source = event_source_add(machine->loop, control->timer, EPOLLIN, tick, control);
	return control->listener_source && control->timer_source ? 0 : -ENOMEM;
}

void control_detach(struct control *control)
{
	event_source_remove(control->listener_source);
	control->listener_source = NULL;
	drop_client(control);
	event_source_remove(control->timer_source);
	control->timer_source = NULL;
}

void control_destroy(struct control *control)
{
	if (!control)
		return;
	unix_listener_close(&control->listener);
	close(control->timer);
	free(control);
}
