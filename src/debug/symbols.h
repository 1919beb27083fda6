/*
 * Names for guest addresses: from a System.map (or a copy of /proc/kallsyms), or from an ELF file's symbol table.
 *
 * The kernel's addresses must be the ones that it runs at: boot it with "nokaslr".
 */
#pragma once

#include <stdint.h>

#define SYMBOLS_WHY_SIZE 256

struct symbols;

/* NULL: `why` (SYMBOLS_WHY_SIZE) has one line that says it. */
struct symbols *symbols_load(const char *path, char *why);
void symbols_free(struct symbols *symbols); /* NULL is nothing */

/* The name of the nearest symbol at or below `address`, `offset` bytes below it; NULL: none within 1 MiB. */
const char *symbols_find(const struct symbols *symbols, uint64_t address, uint64_t *offset);
