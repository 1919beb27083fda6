/*
 * Kernel, initrd and command line out of a disk image, without mounting it: ext2, ext3 and ext4, on the whole disk or in partitions (GPT,
 * MBR).
 */
#pragma once

#include <stdint.h>

#include "boot/boot.h"
#include "boot/file.h"

struct disk;

struct disk_boot {
	struct boot_file kernel, initrd; /* initrd.size is 0 when there is none */
	char *command;                   /* command line as far as the image knows it */
	char *kernel_name, *initrd_name; /* of boot_file.name */
};

/*
 * Reads the newest /boot/vmlinuz-VERSION and its initrd, or what /vmlinuz leads to. The file systems are parsed in a jailed child process, for
 * what is in them is hostile; the disk itself is read here, and nothing else may work on it meanwhile. `name` is for messages; files longer
 * than `limit` bytes are refused. 0, or -errno with `why` (BOOT_WHY_SIZE bytes).
 */
int disk_boot_read(struct disk_boot *files, struct disk *disk, const char *name, uint64_t limit, char *why);
void disk_boot_free(struct disk_boot *files);
