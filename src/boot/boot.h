/*
 * Loading a kernel straight into a machine's memory, without firmware: Linux bzImage, PVH ELF, Multiboot 1.
 *
 *	char why[BOOT_WHY_SIZE];
 *	struct boot_entry entry;
 *	if (boot_load(memory, &request, &entry, why) < 0)
 *		log_error("%s", why);
 *	cpu_reset(bsp, true);
 *	boot_apply(&entry, &bsp->state);
 *
 * Files are hostile input: every field is checked, and no byte outside RAM is written. A machine reset calls
 * boot_load() again, which reads the files again.
 */
#pragma once

#include <stdint.h>

#include "x86/cpu_state.h"

struct boot_file;
struct memory;
struct trace;

#define BOOT_WHY_SIZE 512

struct boot_request {
	const char *kernel; /* file */
	/* Open files instead of names, as a disk image gives them (disk_boot.h); borrowed. NULL: the names count. */
	const struct boot_file *kernel_file, *initrd_file;
	const char *initrd;  /* file; for Multiboot "file arguments,file2 arguments" become modules. NULL or "": none */
	const char *append;  /* kernel command line; NULL: empty */
	unsigned cpus;       /* for ACPI's MADT, 1 to 16 */
	struct trace *trace; /* TRACE_BOOT says what went where; may be NULL */
};

enum boot_mode {
	BOOT_MODE_FLAT32, /* protected mode, flat 4 GiB segments, no paging */
	BOOT_MODE_LONG64, /* 64-bit mode, paging on with `cr3` */
};

/* How the bootstrap processor starts. Registers that are not named here are 0, or as after reset. */
struct boot_entry {
	enum boot_mode mode;
	const char *protocol; /* "Linux 64-bit", for traces */
	uint64_t rip;
	uint64_t rax, rbx, rsi;
	uint64_t cr3;
	uint64_t gdt; /* address of a GDT that holds the selectors */
	uint16_t gdt_limit;
	uint16_t code, data; /* selectors */
	uint64_t rsdp;       /* where the ACPI tables' root is */
};

/*
 * Loads kernel, initrd, command line, memory map and ACPI tables into guest memory. The machine is not running. 0;
 * -EINVAL: not a kernel, truncated, or too big for the memory; -errno of the file otherwise. On error `why`
 * (BOOT_WHY_SIZE bytes) holds one line that names the file.
 */
int boot_load(struct memory *memory, const struct boot_request *request, struct boot_entry *entry, char *why);

/*
 * Turns a bootstrap processor as after cpu_reset() into what the kernel's boot protocol asks for. The caller tells the
 * engine (state_changed()).
 */
void boot_apply(const struct boot_entry *entry, struct cpu_state *state);

/*
 * What firmware would have set on every processor, application processors too: memory types (MTRRs; RAM write-back, the
 * hole below 4 GiB uncached). After cpu_reset(). `physical_bits` is the CPU model's MAXPHYADDR.
 */
void boot_prepare_cpu(struct cpu_state *state, unsigned physical_bits);
