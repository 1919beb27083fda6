/* ring3 image: makes, shows, checks, converts and resizes disk images. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backends/disk/disk.h"
#include "backends/disk/disk_tools.h"
#include "cli/commands.h"
#include "host/log.h"

struct image_arguments {
	const char *format, *source_format, *snapshot, *backing, *backing_format;
	uint32_t cluster_size;
	bool repair, json, force, shrink, help;
	char **operand;
	int operands;
};

static int image_create(const struct image_arguments *arguments);
static int image_info(const struct image_arguments *arguments);
static int image_check(const struct image_arguments *arguments);
static int image_convert(const struct image_arguments *arguments);
static int image_resize(const struct image_arguments *arguments);

/* The one list of subcommands: `letters` are the options that each takes. */
static const struct image_command {
	const char *name, *letters, *operands;
	int lowest, highest; /* number of operands */
	int (*main)(const struct image_arguments *arguments);
	const char *summary;
} image_commands[] = {
    {"create", "fobBF", "FILE [SIZE]", 1, 2, image_create, "make an empty image"},
    {"info", "fj", "FILE", 1, 1, image_info, "show what an image is"},
    {"check", "fr", "FILE", 1, 1, image_check, "check the consistency of a qcow2 image"},
    {"convert", "fsloF", "SOURCE TARGET", 2, 2, image_convert, "copy an image into another format, sparse"},
    {"resize", "fS", "FILE [+|-]SIZE", 2, 2, image_resize, "change the size of the guest's disk"},
};
#define COMMAND_COUNT (sizeof(image_commands) / sizeof(image_commands[0]))

/* The one list of options, from which getopt's tables and --help are made. `letter` stands for it above; `text` for getopt. */
static const struct image_option {
	char letter, text; /* text: the short option, or 0 */
	const char *name, *argument, *help;
} image_options[] = {
    {'f', 'f', "format", "raw|qcow2", "format of FILE or TARGET (create, convert: qcow2; else probed)"},
    {'s', 's', "source-format", "raw|qcow2", "format of SOURCE (probed)"},
    {'l', 'l', "snapshot", "NAME", "what SOURCE held in this internal snapshot (see info)"},
    {'o', 'o', "options", "cluster_size=SIZE", "qcow2 cluster size, 512 to 2M (64K)"},
    {'b', 'b', "backing", "FILE",
     "what is not written is read from this image; its name is relative to the new image's folder"},
    {'B', 'B', "backing-format", "raw|qcow2", "format of the backing file; required with it"},
    {'F', 0, "force", NULL, "replace FILE or TARGET if it exists"},
    {'r', 'r', "repair", NULL, "write the reference counts and flags that were found; never changes the guest's data"},
    {'j', 0, "json", NULL, "print JSON"},
    {'S', 0, "shrink", NULL, "the image may become smaller: what lies beyond is lost"},
    {'h', 'h', "help", NULL, "show this"},
};
#define OPTION_COUNT (sizeof(image_options) / sizeof(image_options[0]))

/* ---- options ---- */

static bool takes(const struct image_command *command, const struct image_option *option)
{
	return option->letter == 'h' || strchr(command->letters, option->letter);
}

static int show_help(const struct image_command *command)
{
	if (!command) {
		printf("Usage: ring3 image COMMAND [OPTION]... FILE...\nDisk images, raw and qcow2.\n\nCommands:\n");
		for (size_t i = 0; i < COMMAND_COUNT; i++)
			printf("  %-10s%-18s%s\n", image_commands[i].name, image_commands[i].operands,
			       image_commands[i].summary);
		printf("\n'ring3 image COMMAND --help' shows a command's options. SIZE is in bytes, or with K, M, G or "
		       "T.\n");
		return finish_stdout();
	}
	printf("Usage: ring3 image %s [OPTION]... %s\n%c%s.\n\n", command->name, command->operands,
	       toupper((unsigned char)command->summary[0]), command->summary + 1);
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct image_option *option = &image_options[i];
		char text[64], letter[8] = "    ";

		if (!takes(command, option))
			continue;
		if (option->text)
			snprintf(letter, sizeof(letter), "-%c, ", option->text);
		snprintf(text, sizeof(text), "%s--%s%s%s", letter, option->name, option->argument ? " " : "",
		         option->argument ? option->argument : "");
		printf("  %-34s%s\n", text, option->help);
	}
	printf("\nSIZE is in bytes, or with K, M, G or T. Exit status: 0 done, 1 failed or errors found, 2 wrong "
	       "usage.\n");
	return finish_stdout();
}

static int check_format(const char *command, const char *name)
{
	return strcmp(name, "raw") == 0 || strcmp(name, "qcow2") == 0
	           ? STATUS_OK
	           : usage_error(command, "unknown format '%s' (raw, qcow2)", name);
}

static int take_creation_option(const char *command, const char *text, uint32_t *cluster_size)
{
	uint64_t bytes;

	if (strncmp(text, "cluster_size=", 13) != 0)
		return usage_error(command, "-o '%s' is not cluster_size=SIZE", text);
	if (!parse_size(text + 13, &bytes) || bytes < 512 || bytes > 2u << 20 || bytes & (bytes - 1))
		return usage_error(command, "cluster size '%s' is not a power of two from 512 to 2M", text + 13);
	*cluster_size = (uint32_t)bytes;
	return STATUS_OK;
}

static int take_option(const char *command, struct image_arguments *arguments, char letter, const char *value)
{
	switch (letter) {
	case 'f':
		arguments->format = value;
		return check_format(command, value);
	case 's':
		arguments->source_format = value;
		return check_format(command, value);
	case 'B':
		arguments->backing_format = value;
		return check_format(command, value);
	case 'o':
		return take_creation_option(command, value, &arguments->cluster_size);
	case 'l':
		arguments->snapshot = value;
		return STATUS_OK;
	case 'b':
		arguments->backing = value;
		return STATUS_OK;
	case 'F':
		arguments->force = true;
		return STATUS_OK;
	case 'r':
		arguments->repair = true;
		return STATUS_OK;
	case 'j':
		arguments->json = true;
		return STATUS_OK;
	case 'S':
		arguments->shrink = true;
		return STATUS_OK;
	default:
		arguments->help = true;
		return STATUS_OK;
	}
}

/* getopt's tables for this command; `letters` has room for two characters for each option, and two more. */
static void make_tables(const struct image_command *command, struct option table[OPTION_COUNT + 1], char *letters)
{
	size_t used = 0;

	*letters++ = ':';
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct image_option *option = &image_options[i];

		if (!takes(command, option))
			continue;
		table[used++] = (struct option){option->name, option->argument ? required_argument : no_argument, NULL,
		                                option->letter};
		if (option->text)
			*letters++ = option->text;
		if (option->text && option->argument)
			*letters++ = ':';
	}
	*letters = '\0';
}

/* "-5G" is a size, not options: where one stands last it is taken off the list, for getopt does not know that. */
static bool ends_with_negative_size(const struct image_command *command, int argc, char **argv)
{
	return command->main == image_resize && argc > 1 && argv[argc - 1][0] == '-' &&
	       isdigit((unsigned char)argv[argc - 1][1]);
}

static int parse_arguments(const struct image_command *command, const char *name, struct image_arguments *arguments,
                           int argc, char **argv)
{
	struct option table[OPTION_COUNT + 1] = {0};
	char letters[3 * OPTION_COUNT + 3];
	int value, status;

	bool negative = ends_with_negative_size(command, argc, argv);

	argc -= negative;
	make_tables(command, table, letters);
	optind = 0;
	opterr = 0;
	while ((value = getopt_long(argc, argv, letters, table, NULL)) != -1) {
		if (value == ':')
			return usage_error(name, "%s needs a value", argv[optind - 1]);
		bool is_long = value == '?' && strncmp(argv[optind - 1], "--", 2) == 0;
		if (is_long && optopt)
			return usage_error(name, "%s takes no value", argv[optind - 1]);
		if (value == '?' && !is_long)
			return usage_error(name, "unknown option '-%c'", optopt);
		if (value == '?')
			return usage_error(name, "unknown option '%s'", argv[optind - 1]);
		status = take_option(name, arguments, (char)value, optarg);
		if (status || arguments->help)
			return status;
	}
	arguments->operand = argv + optind;
	arguments->operands = argc + negative - optind; /* it stands behind them still */
	if (arguments->operands < command->lowest || arguments->operands > command->highest)
		return usage_error(name, "takes %s", command->operands);
	return STATUS_OK;
}

int image_main(int argc, char **argv)
{
	struct image_arguments arguments = {0};
	const struct image_command *command = NULL;
	char name[32];

	if (argc < 2)
		return usage_error("image", "no command given");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
		return show_help(NULL);
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		if (strcmp(image_commands[i].name, argv[1]) == 0)
			command = &image_commands[i];
	if (!command)
		return usage_error("image", "unknown command '%s'", argv[1]);
	snprintf(name, sizeof(name), "image %s", command->name);
	int status = parse_arguments(command, name, &arguments, argc - 1, argv + 1);
	if (status)
		return status;
	return arguments.help ? show_help(command) : command->main(&arguments);
}

/* ---- create ---- */

/* The backing image can be opened, and its size is *size. */
static int check_backing(const struct image_arguments *arguments, uint64_t *size)
{
	struct disk_options options = {.format = arguments->backing_format, .readonly = true, .no_lock = true};
	char folder[PATH_MAX], path[2 * PATH_MAX];

	snprintf(folder, sizeof(folder), "%s", arguments->operand[0]);
	snprintf(path, sizeof(path), "%s/%s", dirname(folder), arguments->backing);
	options.path = arguments->backing[0] == '/' ? arguments->backing : path;
	struct disk *disk = disk_open(&options);
	if (!disk)
		return STATUS_FAILED;
	*size = disk_size(disk);
	disk_close(disk);
	return STATUS_OK;
}

static int image_create(const struct image_arguments *arguments)
{
	struct disk_new image = {
	    .path = arguments->operand[0],
	    .format = arguments->format ? arguments->format : "qcow2",
	    .backing = arguments->backing,
	    .backing_format = arguments->backing_format,
	    .cluster_size = arguments->cluster_size,
	    .force = arguments->force,
	};

	if (arguments->operands == 2 && !parse_size(arguments->operand[1], &image.size))
		return usage_error("image create", "'%s' is not a size like 512M or 20G", arguments->operand[1]);
	if (arguments->operands < 2 && !image.backing)
		return usage_error("image create", "the size is missing");
	if (image.backing && !image.backing_format)
		return usage_error("image create",
		                   "--backing needs --backing-format: a probed one could be the guest's choice");
	if (!image.backing && image.backing_format)
		return usage_error("image create", "--backing-format without --backing");
	if (image.size > INT64_MAX / 2)
		return usage_error("image create", "'%s' is too large", arguments->operand[1]);
	if (image.backing) {
		uint64_t size;

		if (check_backing(arguments, &size))
			return STATUS_FAILED;
		if (arguments->operands < 2)
			image.size = size;
	}
	return disk_create(&image) ? STATUS_FAILED : STATUS_OK;
}

/* ---- info ---- */

/* "20 GiB", with one decimal where it is not whole. */
static const char *size_text(char text[32], uint64_t bytes)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	unsigned unit = 0;

	while (unit < 6 && bytes >> (10 * (unit + 1)))
		unit++;
	double value = (double)bytes / (double)(1ull << (10 * unit));
	snprintf(text, 32, bytes & ((1ull << (10 * unit)) - 1) ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return text;
}

static void print_json_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if ((unsigned char)*text < 0x20 || *text == 0x7f)
			printf("\\u%04x", (unsigned char)*text);
		else
			putchar(*text);
	}
	putchar('"');
}

static void print_info_json(struct disk *disk, const char *path, const struct disk_info *info)
{
	printf("{\n    \"filename\": ");
	print_json_string(path);
	printf(",\n    \"format\": \"%s\",\n    \"virtual-size\": %llu,\n    \"actual-size\": %llu", info->format,
	       (unsigned long long)info->size, (unsigned long long)info->allocated);
	if (info->cluster_size)
		printf(",\n    \"cluster-size\": %u", info->cluster_size);
	if (info->backing) {
		printf(",\n    \"backing-filename\": ");
		print_json_string(info->backing);
	}
	for (unsigned i = 0; i < info->snapshots; i++) {
		struct disk_snapshot snapshot;

		disk_snapshot(disk, i, &snapshot);
		printf(i ? ",\n        {\"id\": " : ",\n    \"snapshots\": [\n        {\"id\": ");
		print_json_string(snapshot.id);
		printf(", \"name\": ");
		print_json_string(snapshot.name);
		printf(", \"date-sec\": %llu}", (unsigned long long)snapshot.seconds);
	}
	if (info->snapshots)
		printf("\n    ]");
	printf(",\n    \"dirty-flag\": %s,\n    \"corrupt-flag\": %s\n}\n", info->dirty ? "true" : "false",
	       info->corrupt ? "true" : "false");
}

/* What stands in an image may be meant for the terminal. */
static const char *harmless(char *to, size_t room, const char *text)
{
	size_t i = 0;

	for (; text[i] && i + 1 < room; i++)
		to[i] = (char)(iscntrl((unsigned char)text[i]) ? '?' : text[i]);
	to[i] = '\0';
	return to;
}

static void print_snapshots(struct disk *disk, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct disk_snapshot snapshot;
		char when[32] = "", name[256], id[64];
		struct tm date;

		disk_snapshot(disk, i, &snapshot);
		time_t seconds = (time_t)snapshot.seconds;
		if (localtime_r(&seconds, &date))
			strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &date);
		printf("snapshot:       %s (id %s, %s)\n", harmless(name, sizeof(name), snapshot.name),
		       harmless(id, sizeof(id), snapshot.id), when);
	}
}

static void print_info(struct disk *disk, const char *path, const struct disk_info *info)
{
	char size[32], allocated[32], cluster[32], backing[1024];

	printf("image:          %s\nformat:         %s\n", path, info->format);
	printf("size:           %s (%llu bytes)\n", size_text(size, info->size), (unsigned long long)info->size);
	printf("on the host:    %s\n", size_text(allocated, info->allocated));
	if (info->cluster_size)
		printf("cluster size:   %s\n", size_text(cluster, info->cluster_size));
	if (info->backing)
		printf("backing file:   %s\n", harmless(backing, sizeof(backing), info->backing));
	if (info->dirty)
		printf("not closed:     its reference counts are mended when it is opened for writing\n");
	print_snapshots(disk, info->snapshots);
	if (info->corrupt)
		printf("corrupt:        'ring3 image check --repair' may mend it\n");
}

static int image_info(const struct image_arguments *arguments)
{
	struct disk_options options = {
	    .path = arguments->operand[0], .format = arguments->format, .readonly = true, .no_lock = true};
	struct disk *disk = disk_open(&options);
	struct disk_info info;

	if (!disk)
		return STATUS_FAILED;
	disk_info(disk, &info);
	if (arguments->json)
		print_info_json(disk, options.path, &info);
	else
		print_info(disk, options.path, &info);
	disk_close(disk);
	return finish_stdout();
}

/* ---- check ---- */

static int image_check(const struct image_arguments *arguments)
{
	struct disk_options options = {
	    .path = arguments->operand[0],
	    .format = arguments->format,
	    .readonly = !arguments->repair,
	    .repair = arguments->repair,
	};
	struct disk *disk = disk_open(&options);
	struct disk_check_result result;

	if (!disk)
		return STATUS_FAILED;
	int error = disk_check(disk, arguments->repair, &result);
	if (disk_close(disk) || error)
		return STATUS_FAILED;
	if (result.fixed)
		printf("%s: %llu counts and flags mended\n", options.path, (unsigned long long)result.fixed);
	if (result.leaks)
		printf("%s: %llu clusters leak: lost space, no danger; --repair gives them back\n", options.path,
		       (unsigned long long)result.leaks);
	if (result.errors)
		printf("%s: %llu errors; copy the image before --repair\n", options.path,
		       (unsigned long long)result.errors);
	else
		printf("%s: no errors; %llu of %llu clusters in use\n", options.path,
		       (unsigned long long)result.allocated, (unsigned long long)result.clusters);
	int status = finish_stdout();
	return result.errors ? STATUS_FAILED : status;
}

/* ---- convert ---- */

struct progress {
	int percent;
};

/* On a terminal only: one line that is overwritten. */
static void show_progress(void *owner, uint64_t done, uint64_t total)
{
	struct progress *progress = owner;
	int percent = total ? (int)((double)done * 100 / (double)total) : 100;

	if (percent == progress->percent)
		return;
	progress->percent = percent;
	fprintf(stderr, "\r%3d%%", percent);
	if (percent == 100)
		fprintf(stderr, "\r    \r");
}

static int image_convert(const struct image_arguments *arguments)
{
	struct disk_options options = {.path = arguments->operand[0],
	                               .format = arguments->source_format,
	                               .readonly = true,
	                               .internal_snapshot = arguments->snapshot};
	struct disk_new image = {
	    .path = arguments->operand[1],
	    .format = arguments->format ? arguments->format : "qcow2",
	    .cluster_size = arguments->cluster_size,
	    .force = arguments->force,
	};
	struct progress shown = {.percent = -1};
	struct disk_progress progress = {.report = isatty(STDERR_FILENO) ? show_progress : NULL, .owner = &shown};
	struct disk *source = disk_open(&options);

	if (!source)
		return STATUS_FAILED;
	int error = disk_convert(source, &image, &progress);
	if (disk_close(source))
		error = -EIO;
	return error ? STATUS_FAILED : STATUS_OK;
}

/* ---- resize ---- */

static int image_resize(const struct image_arguments *arguments)
{
	struct disk_options options = {.path = arguments->operand[0], .format = arguments->format, .quiet = true};
	const char *text = arguments->operand[1];
	bool relative = *text == '+' || *text == '-';
	uint64_t size, old;

	if (!parse_size(text + relative, &size) || size > INT64_MAX / 2)
		return usage_error("image resize", "'%s' is not a size like 20G, +5G or -5G", text);
	struct disk *disk = disk_open(&options);
	if (!disk)
		return STATUS_FAILED;
	old = disk_size(disk);
	if (*text == '-')
		size = size < old ? old - size : 0;
	else if (relative)
		size += old;
	int status = STATUS_OK;
	if (size < old && !arguments->shrink) {
		log_error("%s: would become smaller; --shrink allows that, and what lies beyond is lost", options.path);
		status = STATUS_FAILED;
	} else if (disk_resize(disk, size)) {
		status = STATUS_FAILED;
	}
	if (disk_close(disk) && !status)
		status = STATUS_FAILED;
	return status;
}
