/* What gdb's "monitor" command offers: things of the machine that gdb has no packets for. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "debug/dump.h"
#include "debug/gdb_session.h"
#include "machine/clock.h"

#define XP_BYTES_MAX 4096u

static void monitor_help(struct gdb_session *session, const char *arguments, FILE *out);

static void monitor_info(struct gdb_session *session, const char *arguments, FILE *out)
{
	struct machine *machine = session->machine;

	if (strcmp(arguments, "registers") == 0) {
		dump_vcpu(machine->vcpu[session->register_thread], out);
	} else if (strcmp(arguments, "cpus") == 0) {
		for (unsigned i = 0; i < machine->options.cpus; i++) {
			const struct cpu_state *state = &machine->vcpu[i]->state;
			fprintf(out, "%u: rip %016" PRIx64 " cr3 %016" PRIx64 " CPL %u%s\n", i, state->rip, state->cr3,
			        cpu_cpl(state), state->activity == ACTIVITY_RUNNING ? "" : " (idle)");
		}
	} else if (strcmp(arguments, "clock") == 0 && machine->clock) {
		fprintf(out, "%" PRIu64 " ns, TSC %" PRIu64 " at %" PRIu64 " kHz\n", clock_now(machine->clock),
		        clock_tsc(machine->clock), clock_tsc_khz(machine->clock));
	} else if (strcmp(arguments, "stats") == 0) {
		machine_print_stats(machine, out);
	} else {
		fputs("info registers, info cpus, info clock, or info stats\n", out);
	}
}

/* xp[/COUNT[b|h|w|g]] ADDRESS: guest-physical memory, RAM only. */
static void monitor_xp(struct gdb_session *session, const char *arguments, FILE *out)
{
	unsigned long count = 1;
	unsigned size = 4;
	char *end;

	if (*arguments == '/') {
		count = strtoul(arguments + 1, &end, 10);
		arguments = end;
		switch (*arguments) {
		case 'b':
			size = 1;
			break;
		case 'h':
			size = 2;
			break;
		case 'g':
			size = 8;
			break;
		}
		if (*arguments && strchr("bhwg", *arguments))
			arguments++;
	}
	arguments += strspn(arguments, " ");
	uint64_t address = strtoull(arguments, &end, 0);
	if (end == arguments || *end || count == 0 || count > XP_BYTES_MAX / size) {
		fputs("xp[/COUNT[b|h|w|g]] ADDRESS\n", out);
		return;
	}
	for (unsigned long i = 0; i < count; i++) {
		uint64_t value = 0, at = address + i * size;
		bool first = i * size % 16 == 0;
		if (first)
			fprintf(out, "%s%012" PRIx64 ":", i ? "\n" : "", at);
		if (memory_read(&session->machine->memory, at, &value, size) < 0)
			fprintf(out, " %*s", (int)size * 2, "?");
		else
			fprintf(out, " %0*" PRIx64, (int)size * 2, value);
	}
	fputc('\n', out);
}

static void monitor_reset(struct gdb_session *session, const char *arguments, FILE *out)
{
	machine_request_reset(session->machine);
	fputs("The machine is being reset; it stands until you continue. Type: maintenance flush register-cache\n",
	      out);
}

static void monitor_quit(struct gdb_session *session, const char *arguments, FILE *out)
{
	machine_end(session->machine, MACHINE_QUIT, 0);
}

static const struct {
	const char *name, *help;
	void (*run)(struct gdb_session *session, const char *arguments, FILE *out);
} commands[] = {
    {"help", "this list", monitor_help},
    {"info", "registers | cpus | clock | stats", monitor_info},
    {"xp", "[/COUNT[b|h|w|g]] ADDRESS: physical memory", monitor_xp},
    {"reset", "the machine's reset button", monitor_reset},
    {"quit", "end of ring3", monitor_quit},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void monitor_help(struct gdb_session *session, const char *arguments, FILE *out)
{
	for (unsigned i = 0; i < COMMAND_COUNT; i++)
		fprintf(out, "%-6s %s\n", commands[i].name, commands[i].help);
}

/* Output goes in O packets, hexadecimal, each well below the packet size. */
static void send_output(struct gdb_session *session, const char *text, size_t length)
{
	while (length > 0) {
		size_t chunk = length < 1024 ? length : 1024;
		gdb_reply(session, "O");
		gdb_reply_hex(session, text, chunk);
		gdb_reply_send(session);
		text += chunk;
		length -= chunk;
	}
}

void gdb_monitor(struct gdb_session *session, const char *command)
{
	size_t length = 0, name_length = strcspn(command, " /");
	char *text = NULL;
	FILE *out = open_memstream(&text, &length);
	unsigned i = 0;

	if (!out) {
		gdb_reply(session, "E0c");
		gdb_reply_send(session);
		return;
	}
	while (i < COMMAND_COUNT &&
	       (strlen(commands[i].name) != name_length || strncmp(commands[i].name, command, name_length) != 0))
		i++;
	if (i < COMMAND_COUNT)
		commands[i].run(session, command + name_length + strspn(command + name_length, " "), out);
	else
		fprintf(out, "unknown command: %s (try: monitor help)\n", command);
	fclose(out);
	send_output(session, text, length);
	free(text);
	gdb_reply(session, "OK");
	gdb_reply_send(session);
}
