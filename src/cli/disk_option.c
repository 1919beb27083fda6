/* --disk FILE[,format=raw|qcow2][,readonly][,snapshot][,cache=MODE][,serial=TEXT][,queues=N][,transitional] */
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "machine/machine.h"

static int take_cache(struct disk_options *image, const char *value)
{
	static const struct {
		const char *name;
		enum disk_cache cache;
	} modes[] = {{"writeback", DISK_CACHE_WRITEBACK},
	             {"writethrough", DISK_CACHE_WRITETHROUGH},
	             {"none", DISK_CACHE_NONE},
	             {"unsafe", DISK_CACHE_UNSAFE}};

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (strcmp(modes[i].name, value) == 0) {
			image->cache = modes[i].cache;
			return STATUS_OK;
		}
	return usage_error("run", "--disk: cache=%s is not writeback, writethrough, none or unsafe", value);
}

/* One "name" or "name=value" behind the file. */
static int take(struct machine_disk *disk, char *name)
{
	char *value = strchr(name, '=');

	if (value)
		*value++ = '\0';
	if (!value && strcmp(name, "readonly") == 0)
		disk->image.readonly = true;
	else if (!value && strcmp(name, "snapshot") == 0)
		disk->image.snapshot = true;
	else if (!value && strcmp(name, "transitional") == 0)
		disk->transitional = true;
	else if (value && strcmp(name, "cache") == 0)
		return take_cache(&disk->image, value);
	else if (value && strcmp(name, "format") == 0)
		disk->image.format = value;
	else if (value && strcmp(name, "serial") == 0)
		disk->serial = value;
	else if (value && strcmp(name, "queues") == 0)
		return parse_number(value, 1, 16, &disk->queues)
		           ? STATUS_OK
		           : usage_error("run", "--disk: queues=%s is not a number from 1 to 16", value);
	else
		return usage_error("run", "--disk: '%s%s%s' is not understood", name, value ? "=" : "",
		                   value ? value : "");
	if (disk->serial && strlen(disk->serial) > 20)
		return usage_error("run", "--disk: serial=%s has more than 20 characters", disk->serial);
	if (disk->image.format && strcmp(disk->image.format, "raw") != 0 && strcmp(disk->image.format, "qcow2") != 0)
		return usage_error("run", "--disk: format=%s is not raw or qcow2", disk->image.format);
	return STATUS_OK;
}

/* The end of the first part; a doubled comma is one that belongs to it. */
static char *split(char *text)
{
	char *to = text;

	for (; *text; text++) {
		if (*text == ',' && text[1] != ',') {
			*to = '\0';
			return text + 1;
		}
		if (*text == ',')
			text++;
		*to++ = *text;
	}
	*to = '\0';
	return NULL;
}

int take_disk_option(struct machine_options *options, char *argument)
{
	struct machine_disk *disk = &options->disks[options->disk_count];
	char *rest = split(argument), *next;
	int status = STATUS_OK;

	if (options->disk_count == MACHINE_DISKS_MAX)
		return usage_error("run", "more than %d disks", MACHINE_DISKS_MAX);
	if (!*argument)
		return usage_error("run", "--disk needs a file");
	*disk = (struct machine_disk){.image.path = argument};
	for (; rest && !status; rest = next) {
		next = split(rest);
		status = take(disk, rest);
	}
	options->disk_count++;
	return status;
}
