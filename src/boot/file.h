/*
 * A file that a loader reads: bounds-checked random access to a regular file, or to bytes in memory (pipes, tests,
 * fuzzing).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct boot_file {
	const char *name; /* for messages; borrowed */
	uint64_t size;
	int fd;              /* -1: `data` holds it */
	const uint8_t *data; /* when fd is -1 */
	uint8_t *owned;      /* what boot_file_close() frees */
};

/*
 * Opens a file. What is not a regular file is read into memory, up to `limit` bytes. 0, or -errno with `why`
 * (BOOT_WHY_SIZE bytes).
 */
int boot_file_open(struct boot_file *file, const char *name, uint64_t limit, char *why);
/* Bytes in memory as a file; they must outlive it. */
void boot_file_from_memory(struct boot_file *file, const char *name, const void *data, uint64_t size);
void boot_file_close(struct boot_file *file);

/* Does the file have `length` bytes at `offset`? Wrap is checked. */
bool boot_file_has(const struct boot_file *file, uint64_t offset, uint64_t length);
/* Reads exactly that. 0; -EINVAL when the file is too short; -EIO or another -errno when reading failed. */
int boot_file_read(const struct boot_file *file, uint64_t offset, void *buffer, uint64_t length);
