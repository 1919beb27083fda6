/* See perf_map.h; the format is in Linux' tools/perf/Documentation/jit-interface.txt. */
#include "debug/perf_map.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "debug/symbols.h"

struct perf_map {
	FILE *file;
	const struct symbols *symbols;
};

struct perf_map *perf_map_create(const struct symbols *symbols)
{
	struct perf_map *map = calloc(1, sizeof(*map));
	char path[64];

	if (!map)
		return NULL;
	snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
	/* Everybody may write in /tmp: what is there is not followed. */
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	map->file = fd < 0 ? NULL : fdopen(fd, "w");
	if (!map->file) {
		int error = errno;

		if (fd >= 0)
			close(fd);
		free(map);
		errno = error;
		return NULL;
	}
	setvbuf(map->file, NULL, _IOLBF, 4096); /* whole lines, whatever end ring3 finds */
	map->symbols = symbols;
	return map;
}

void perf_map_destroy(struct perf_map *map)
{
	if (!map)
		return;
	fclose(map->file);
	free(map);
}

void perf_map_block(struct perf_map *map, const void *host, size_t size, uint64_t rip)
{
	uint64_t offset;
	const char *name = map->symbols ? symbols_find(map->symbols, rip, &offset) : NULL;

	if (name)
		fprintf(map->file, "%" PRIxPTR " %zx guest %s+0x%" PRIx64 "\n", (uintptr_t)host, size, name, offset);
	else
		fprintf(map->file, "%" PRIxPTR " %zx guest 0x%" PRIx64 "\n", (uintptr_t)host, size, rip);
}

void perf_map_own(struct perf_map *map, const void *host, size_t size, const char *name)
{
	fprintf(map->file, "%" PRIxPTR " %zx ring3 %s\n", (uintptr_t)host, size, name);
}
