/*
 * /tmp/perf-PID.map, from which perf(1) names code that was made at run time: a line for each translated block, with
 * its guest address or, where symbols are known, the guest's name for it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct perf_map;
struct symbols;

/* A file that is there already is replaced. `symbols` may be NULL and is borrowed. NULL: errno. */
struct perf_map *perf_map_create(const struct symbols *symbols);
void perf_map_destroy(struct perf_map *map); /* the file stays; NULL is nothing */

/* `size` bytes of host code at `host` do what the guest has at `rip`. Any thread. */
void perf_map_block(struct perf_map *map, const void *host, size_t size, uint64_t rip);
/* The same for code of ring3's own. */
void perf_map_own(struct perf_map *map, const void *host, size_t size, const char *name);
