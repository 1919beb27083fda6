/*
 * Partition tables of disks: GPT (UEFI 2.10, 5.3) and MBR with logical partitions (5.2). What is on the disk is hostile.
 */
#pragma once

#include <stdint.h>

#define PARTITIONS_MAX 64

struct partition {
	uint64_t start, length; /* bytes, within the disk */
	char uuid[40];          /* as Linux's PARTUUID= has it; "": unknown */
};

struct partition_source {
	/* Reads bytes of the disk: 0 or -errno. Never asked beyond `size`. */
	int (*read)(void *owner, uint64_t offset, void *buffer, uint32_t length);
	void *owner;
	uint64_t size; /* bytes */
};

/* How many partitions there are, in the table's order; 0: no table, or none that is whole. -errno: reading failed. */
int partitions_read(const struct partition_source *source, struct partition partition[PARTITIONS_MAX]);
