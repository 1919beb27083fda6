/*
 * Loading a kernel: recognises the format, lays out what all formats share, and enters (boot.h).
 */
#include "boot/boot.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/acpi.h"
#include "boot/loaders.h"
#include "debug/trace.h"
#include "machine/pc_addresses.h"
#include "memory/memory.h"

int boot_refuse(struct boot_context *boot, int error, const char *format, ...)
{
	va_list arguments;
	int length = snprintf(boot->why, BOOT_WHY_SIZE, "%.300s: ", boot->kernel.name);

	va_start(arguments, format);
	vsnprintf(boot->why + length, BOOT_WHY_SIZE - (size_t)length, format, arguments);
	va_end(arguments);
	return error;
}

int boot_copy(struct boot_context *boot, const struct boot_file *file, uint64_t offset, uint64_t address,
              uint64_t length)
{
	void *to;
	int error;

	if (length == 0)
		return 0;
	to = memory_pointer(boot->memory, address, length);
	if (!to)
		return boot_refuse(boot, -EINVAL, "does not fit in the machine's memory");
	error = boot_file_read(file, offset, to, length);
	memory_written(boot->memory, address, length);
	if (error)
		snprintf(boot->why, BOOT_WHY_SIZE, "%.300s: %s", file->name,
		         error == -EINVAL ? "truncated" : strerror(-error));
	return error;
}

int boot_write(struct boot_context *boot, uint64_t address, const void *data, uint64_t length)
{
	if (memory_write(boot->memory, address, data, length) < 0)
		return boot_refuse(boot, -EINVAL, "does not fit in the machine's memory");
	return 0;
}

int boot_zero(struct boot_context *boot, uint64_t address, uint64_t length)
{
	if (memory_fill(boot->memory, address, 0, length) < 0)
		return boot_refuse(boot, -EINVAL, "does not fit in the machine's memory");
	return 0;
}

int boot_header(struct boot_context *boot, uint64_t offset, void *buffer, uint64_t length, const char *what)
{
	int error = boot_file_read(&boot->kernel, offset, buffer, length);

	if (error == -EINVAL)
		return boot_refuse(boot, error, "truncated: the file ends within %s", what);
	if (error)
		return boot_refuse(boot, error, "%s", strerror(-error));
	return 0;
}

int boot_load_initrd(struct boot_context *boot, uint64_t limit, uint64_t *address, uint64_t *length)
{
	struct boot_file file;
	int error;

	*address = *length = 0;
	if (boot->request->initrd_file) {
		file = *boot->request->initrd_file;
	} else {
		if (!boot->request->initrd || !*boot->request->initrd)
			return 0;
		error = boot_file_open(&file, boot->request->initrd, boot->memory->size, boot->why);
		if (error)
			return error;
	}
	error = 0;
	if (file.size) {
		error = boot_place_high(boot, 0x100000, limit, file.size, MEMORY_PAGE_SIZE, "the initrd", address);
		if (error)
			snprintf(boot->why, BOOT_WHY_SIZE,
			         "%.300s: does not fit in the machine's memory beside the kernel (%llu bytes)",
			         file.name, (unsigned long long)file.size);
		else
			error = boot_copy(boot, &file, 0, *address, file.size);
		*length = file.size;
	}
	if (!boot->request->initrd_file)
		boot_file_close(&file);
	if (!error)
		trace(boot->request->trace, TRACE_BOOT, -1, "initrd at %#llx, %llu bytes", (unsigned long long)*address,
		      (unsigned long long)*length);
	return error;
}

/* Segment descriptors (SDM 3A 3.4.5): flat, present, accessed, DPL 0. */
#define DESCRIPTOR_CODE64 0x00af9b000000ffffull
#define DESCRIPTOR_CODE32 0x00cf9b000000ffffull
#define DESCRIPTOR_DATA32 0x00cf93000000ffffull

int boot_make_gdt(struct boot_context *boot, bool code64)
{
	uint8_t gdt[BOOT_GDT_LENGTH] = {0};
	uint64_t address;
	int error = boot_place_low(boot, BOOT_LOWEST, PC_EBDA, sizeof(gdt), 16, "the GDT", &address);

	if (error)
		return error;
	put64(gdt + BOOT_CS, code64 ? DESCRIPTOR_CODE64 : DESCRIPTOR_CODE32);
	put64(gdt + BOOT_DS, DESCRIPTOR_DATA32);
	boot->entry->gdt = address;
	boot->entry->gdt_limit = sizeof(gdt) - 1;
	boot->entry->code = BOOT_CS;
	boot->entry->data = BOOT_DS;
	return boot_write(boot, address, gdt, sizeof(gdt));
}

const char *boot_command_line(const struct boot_context *boot)
{
	return boot->request->append ? boot->request->append : "";
}

static int write_acpi(struct boot_context *boot)
{
	uint8_t *tables = malloc(ACPI_TABLES_MAX);
	size_t length;
	int error = 0;

	if (!tables)
		return boot_refuse(boot, -ENOMEM, "%s", strerror(ENOMEM));
	boot->rsdp = PC_BIOS_AREA;
	length = acpi_build(tables, ACPI_TABLES_MAX, boot->rsdp, boot->request->cpus);
	if (length == 0)
		error = boot_refuse(boot, -ENOSPC, "too many CPUs for the ACPI tables");
	else
		error = boot_write(boot, boot->rsdp, tables, length);
	free(tables);
	if (!error)
		trace(boot->request->trace, TRACE_BOOT, -1, "ACPI tables at %#llx, %zu bytes",
		      (unsigned long long)boot->rsdp, length);
	return error;
}

/* Nobody recognised it: say what it looks like. */
static int refuse_unknown(struct boot_context *boot)
{
	static const struct {
		const char *magic;
		unsigned length;
		const char *name;
	} compressed[] = {
	    {"\x1f\x8b", 2, "gzip"},
	    {"\xfd"
	     "7zXZ",
	     5, "xz"},
	    {"\x28\xb5\x2f\xfd", 4, "zstd"},
	    {"BZh", 3, "bzip2"},
	    {"\x04\x22\x4d\x18", 4, "lz4"},
	};
	uint8_t start[8] = {0};
	uint64_t length = boot->kernel.size < sizeof(start) ? boot->kernel.size : sizeof(start);

	if (length == 0)
		return boot_refuse(boot, -EINVAL, "not a kernel: the file is empty");
	if (boot_file_read(&boot->kernel, 0, start, length) == 0)
		for (unsigned i = 0; i < sizeof(compressed) / sizeof(compressed[0]); i++)
			if (memcmp(start, compressed[i].magic, compressed[i].length) == 0)
				return boot_refuse(boot, -EINVAL,
				                   "not a kernel but a file compressed with %s: decompress it first",
				                   compressed[i].name);
	return boot_refuse(boot, -EINVAL, "not a Linux bzImage, PVH ELF or Multiboot image (no magic found)");
}

static int load(struct boot_context *boot)
{
	/* Multiboot before PVH: an ELF32 image that has both was made for boot loaders, not for Xen. */
	static int (*const loaders[])(struct boot_context *) = {boot_linux, boot_multiboot, boot_pvh};
	int error = write_acpi(boot);

	if (!error)
		error = boot_write_bios_data(boot);
	if (error)
		return error;
	error = -ENOEXEC;
	for (unsigned i = 0; i < sizeof(loaders) / sizeof(loaders[0]) && error == -ENOEXEC; i++)
		error = loaders[i](boot);
	return error == -ENOEXEC ? refuse_unknown(boot) : error;
}

int boot_load_image(struct memory *memory, const struct boot_request *request, const struct boot_file *kernel,
                    struct boot_entry *entry, char *why)
{
	struct boot_context *boot = calloc(1, sizeof(*boot));
	int error;

	if (!boot) {
		snprintf(why, BOOT_WHY_SIZE, "%.300s: %s", kernel->name, strerror(ENOMEM));
		return -ENOMEM;
	}
	boot->request = request;
	boot->memory = memory;
	boot->kernel = *kernel;
	boot->entry = entry;
	boot->why = why;
	memset(entry, 0, sizeof(*entry));
	e820_build(&boot->map, memory);
	error = load(boot);
	if (!error) {
		entry->rsdp = boot->rsdp;
		trace(request->trace, TRACE_BOOT, -1, "%s: %s, entry %#llx", kernel->name, entry->protocol,
		      (unsigned long long)entry->rip);
	}
	free(boot);
	return error;
}

int boot_load(struct memory *memory, const struct boot_request *request, struct boot_entry *entry, char *why)
{
	struct boot_file kernel;
	int error;

	if (request->kernel_file)
		return boot_load_image(memory, request, request->kernel_file, entry, why);
	error = boot_file_open(&kernel, request->kernel, memory->size, why);
	if (error)
		return error;
	error = boot_load_image(memory, request, &kernel, entry, why);
	boot_file_close(&kernel);
	return error;
}

static void set_flat(struct segment *segment, uint16_t selector, uint32_t access)
{
	*segment = (struct segment){.base = 0, .limit = 0xffffffffu, .access = access, .selector = selector};
}

void boot_apply(const struct boot_entry *entry, struct cpu_state *state)
{
	bool code64 = entry->mode == BOOT_MODE_LONG64;

	memset(state->gpr, 0, sizeof(state->gpr));
	state->gpr[RAX] = entry->rax;
	state->gpr[RBX] = entry->rbx;
	state->gpr[RSI] = entry->rsi;
	state->rip = entry->rip;
	state->rflags = FLAG_ONE;

	set_flat(&state->segment[SEG_CS], entry->code,
	         SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_S | SEG_P | SEG_G | (code64 ? SEG_L : SEG_DB));
	for (enum segment_register segment = SEG_ES; segment <= SEG_GS; segment++)
		if (segment != SEG_CS)
			set_flat(&state->segment[segment], entry->data,
			         SEG_WRITABLE | SEG_ACCESSED | SEG_S | SEG_P | SEG_G | SEG_DB);
	/* A busy 32-bit TSS at 0, as PVH asks for; in 64-bit mode the same type is the 64-bit TSS. */
	state->segment[SEG_TR] = (struct segment){.limit = 0x67, .access = 0xbu | SEG_P};
	state->segment[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
	state->gdtr = (struct descriptor_table){.base = entry->gdt, .limit = entry->gdt_limit};
	state->idtr = (struct descriptor_table){.base = 0, .limit = 0};

	/* Caches on, protected mode; everything else off. */
	state->cr0 = CR0_PE | CR0_ET;
	state->cr2 = state->cr3 = state->cr4 = 0;
	state->efer = 0;
	if (code64) {
		state->cr0 |= CR0_PG;
		state->cr3 = entry->cr3;
		state->cr4 = CR4_PAE;
		state->efer = EFER_LME | EFER_LMA;
	}
	state->activity = ACTIVITY_RUNNING;
}

#define MTRR_TYPE_UC 0u
#define MTRR_TYPE_WP 5u
#define MTRR_TYPE_WB 6u
#define MTRR_ENABLE  0xc00u /* IA32_MTRR_DEF_TYPE: E and FE */
#define MTRR_VALID   0x800u /* IA32_MTRR_PHYSMASKn */

void boot_prepare_cpu(struct cpu_state *state, unsigned physical_bits)
{
	struct msr_state *msr = &state->msr;
	const uint64_t eight = 0x0101010101010101ull;
	uint64_t physical_mask = physical_bits < 64 ? (1ull << physical_bits) - 1 : ~0ull;

	/* SDM 3A 11.11.2: write-back by default; uncached from 3 GiB to 4 GiB. */
	msr->mtrr_def_type = MTRR_ENABLE | MTRR_TYPE_WB;
	msr->mtrr_fixed[0] = eight * MTRR_TYPE_WB; /* 00000h-7ffffh */
	msr->mtrr_fixed[1] = eight * MTRR_TYPE_WB; /* 80000h-9ffffh */
	msr->mtrr_fixed[2] = eight * MTRR_TYPE_UC; /* VGA */
	for (unsigned i = 3; i < 11; i++)
		msr->mtrr_fixed[i] = eight * MTRR_TYPE_WP; /* c0000h-fffffh */
	memset(msr->mtrr_physical_base, 0, sizeof(msr->mtrr_physical_base));
	memset(msr->mtrr_physical_mask, 0, sizeof(msr->mtrr_physical_mask));
	msr->mtrr_physical_base[0] = MEMORY_LOW_MAX | MTRR_TYPE_UC;
	msr->mtrr_physical_mask[0] = (~(MEMORY_HIGH_BASE - MEMORY_LOW_MAX - 1) & physical_mask) | MTRR_VALID;
}
