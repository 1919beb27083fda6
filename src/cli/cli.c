/* ring3's commands, and the helpers they share (commands.h). */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/net/slirp_process.h"
#include "cli/commands.h"
#include "host/log.h"

static int help_main(int argc, char **argv);
static int version_main(int argc, char **argv);

static const struct command {
	const char *name;
	int (*main)(int argc, char **argv);
	const char *summary;
} commands[] = {
    {"run", run_main, "start a machine with a kernel"},
    {"image", image_main, "make, show, check, convert and resize disk images"},
    {"help", help_main, "show this, or the help of a command"},
    {"version", version_main, "show the version"},
};

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static int help_main(int argc, char **argv)
{
	if (argc > 1) {
		const struct command *command = find_command(argv[1]);
		char *arguments[] = {argv[1], (char *)"--help", NULL};
		if (!command)
			return usage_error(NULL, "unknown command '%s'", argv[1]);
		if (command->main != help_main && command->main != version_main)
			return command->main(2, arguments);
	}
	printf("Usage: ring3 COMMAND [OPTION]...\n"
	       "Runs unmodified x86 operating systems on machines without hardware virtualization.\n\n"
	       "Commands:\n");
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
	printf("\n      --help     show this\n"
	       "      --version  show the version\n\n"
	       "'ring3 COMMAND --help' shows a command's options; the manual is ring3(1).\n");
	return finish_stdout();
}

static int version_main(int argc, char **argv)
{
	printf("ring3 " RING3_VERSION "\n");
	return finish_stdout();
}

int finish_stdout(void)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return STATUS_OK;
	log_error("standard output: %s", strerror(errno));
	return STATUS_FAILED;
}

int usage_error(const char *command, const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	log_error("%s (see 'ring3 %s%s--help')", text, command ? command : "", command ? " " : "");
	return STATUS_USAGE;
}

bool parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "kmgt";
	unsigned long long number;
	const char *unit;
	unsigned shift = 0;
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (*end) {
		unit = strchr(units, tolower((unsigned char)*end));
		if (!unit || end[1])
			return false;
		shift = 10 * ((unsigned)(unit - units) + 1);
	}
	if (number > UINT64_MAX >> shift)
		return false;
	*bytes = (uint64_t)number << shift;
	return true;
}

bool parse_number(const char *text, unsigned lowest, unsigned highest, unsigned *number)
{
	unsigned long value;
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || value < lowest || value > highest)
		return false;
	*number = (unsigned)value;
	return true;
}

/* A closed standard descriptor would be given to the next file that is opened, which then gets our messages. */
static void open_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= 2);
	if (fd > 2)
		close(fd);
}

int cli_main(int argc, char **argv)
{
	const struct command *command;

	open_standard_descriptors();
	slirp_process_enter(argc, argv);
	if (argc < 2)
		return usage_error(NULL, "no command given");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		return help_main(1, argv);
	if (strcmp(argv[1], "--version") == 0)
		return version_main(1, argv);
	command = find_command(argv[1]);
	if (!command)
		return usage_error(NULL, "unknown %s '%s'", argv[1][0] == '-' ? "option" : "command", argv[1]);
	return command->main(argc - 1, argv + 1);
}
