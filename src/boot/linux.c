/*
 * Linux bzImage by the 64-bit boot protocol, or by the 32-bit one where the kernel has no 64-bit entry
 * (Documentation/arch/x86/boot.rst).
 *
 * The real-mode part of the file gives only its header; the protected-mode part goes to its preferred address, and runs
 * there with a zero page (struct boot_params) that says where everything is.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "boot/loaders.h"
#include "debug/trace.h"
#include "machine/pc_addresses.h"
#include "memory/memory.h"

#define SECTOR 512u

/* Offsets in the file and, equally, in the zero page. */
#define HEADER_START       0x1f1
#define SETUP_SECTS        0x1f1
#define SYSSIZE            0x1f4
#define BOOT_FLAG          0x1fe
#define JUMP_LENGTH        0x201 /* the header ends this far behind 202h */
#define HEADER_MAGIC       0x202
#define VERSION            0x206
#define TYPE_OF_LOADER     0x210
#define LOADFLAGS          0x211
#define CODE32_START       0x214
#define RAMDISK_IMAGE      0x218
#define RAMDISK_SIZE       0x21c
#define HEAP_END_PTR       0x224
#define CMD_LINE_PTR       0x228
#define INITRD_ADDR_MAX    0x22c
#define KERNEL_ALIGNMENT   0x230
#define RELOCATABLE_KERNEL 0x234
#define XLOADFLAGS         0x236
#define CMDLINE_SIZE       0x238
#define PREF_ADDRESS       0x258
#define INIT_SIZE          0x260
#define HEADER_END_MAX     0x290

/* The zero page's own fields (Documentation/arch/x86/zero-page.rst). */
#define ACPI_RSDP_ADDR    0x070
#define E820_ENTRIES      0x1e8
#define E820_TABLE        0x2d0
#define E820_TABLE_MAX    128
#define E820_ENTRY_LENGTH 20
#define ZERO_PAGE_LENGTH  4096

#define LOADED_HIGH    0x01u /* loadflags */
#define CAN_USE_HEAP   0x80u
#define XLF_KERNEL_64  0x01u
#define XLF_ABOVE_4G   0x02u
#define LOADER_UNKNOWN 0xffu

#define ENTRY64 0x200u /* from the start of the protected-mode part */

struct setup_header {
	uint8_t bytes[HEADER_END_MAX]; /* the file's start; zero behind the header's end */
	unsigned end;                  /* where the header ends */
	unsigned version;
	uint64_t payload_offset, payload_length; /* the protected-mode part, in the file */
};

static int read_header(struct boot_context *boot, struct setup_header *header)
{
	uint8_t magic[4];
	uint64_t available;
	int error;

	if (boot_file_read(&boot->kernel, HEADER_MAGIC, magic, sizeof(magic)) < 0 || memcmp(magic, "HdrS", 4) != 0)
		return -ENOEXEC;
	memset(header, 0, sizeof(*header));
	available = boot->kernel.size < HEADER_END_MAX ? boot->kernel.size : HEADER_END_MAX;
	error = boot_header(boot, 0, header->bytes, available, "the setup header");
	if (error)
		return error;
	if (get16(header->bytes + BOOT_FLAG) != 0xaa55)
		return -ENOEXEC;
	if (available < CMD_LINE_PTR + 4)
		return boot_refuse(boot, -EINVAL, "truncated: the file ends within the setup header");
	header->version = get16(header->bytes + VERSION);
	if (header->version < 0x0202)
		return boot_refuse(boot, -EINVAL, "boot protocol %u.%02u is too old (2.02 at least)",
		                   header->version >> 8, header->version & 0xff);
	header->end = HEADER_MAGIC + header->bytes[JUMP_LENGTH];
	if (header->end > HEADER_END_MAX)
		header->end = HEADER_END_MAX;
	/* The shortest header of any protocol that is accepted ends with cmd_line_ptr. */
	if (header->end < CMD_LINE_PTR + 4)
		return boot_refuse(boot, -EINVAL, "damaged: the setup header is too short");
	if (header->end > available)
		return boot_refuse(boot, -EINVAL, "truncated: the file ends within the setup header");
	memset(header->bytes + header->end, 0, sizeof(header->bytes) - header->end);
	if (!(header->bytes[LOADFLAGS] & LOADED_HIGH))
		return boot_refuse(boot, -EINVAL, "a zImage, which loads low; only bzImages are supported");
	return 0;
}

/* Where the protected-mode part is in the file. */
static int find_payload(struct boot_context *boot, struct setup_header *header)
{
	unsigned sectors = header->bytes[SETUP_SECTS] ? header->bytes[SETUP_SECTS] : 4;

	header->payload_offset = (uint64_t)(sectors + 1) * SECTOR;
	if (boot->kernel.size <= header->payload_offset)
		return boot_refuse(boot, -EINVAL, "truncated: the file ends within the setup code");
	header->payload_length = boot->kernel.size - header->payload_offset;
	/* From 2.04 on syssize has 32 bits and can be believed; what follows is not the kernel's (a signature). */
	if (header->version >= 0x0204) {
		uint64_t length = (uint64_t)get32(header->bytes + SYSSIZE) * 16;
		if (length > header->payload_length)
			return boot_refuse(boot, -EINVAL,
			                   "truncated: %llu bytes of kernel are announced, %llu are there",
			                   (unsigned long long)length, (unsigned long long)header->payload_length);
		if (length)
			header->payload_length = length;
	}
	return 0;
}

/* Claims the memory the kernel needs before it can look after itself, and says where it starts. */
static int claim_kernel(struct boot_context *boot, const struct setup_header *header, uint64_t *address)
{
	uint64_t length = header->payload_length;

	*address = 0x100000;
	if (header->version >= 0x020a) {
		uint64_t align = get32(header->bytes + KERNEL_ALIGNMENT);
		uint64_t init_size = get32(header->bytes + INIT_SIZE);
		uint64_t preferred = get64(header->bytes + PREF_ADDRESS);
		if (init_size > length)
			length = init_size;
		if (preferred)
			*address = preferred;
		if (header->bytes[RELOCATABLE_KERNEL]) {
			if (align == 0 || (align & (align - 1)) || align > 1u << 30)
				return boot_refuse(boot, -EINVAL, "damaged: kernel alignment %#llx",
				                   (unsigned long long)align);
			if (*address < MEMORY_HIGH_BASE)
				*address = (*address + align - 1) & ~(align - 1);
		}
	}
	/* The identity page tables and the 32-bit registers end at 4 GiB. */
	if (*address >= MEMORY_HIGH_BASE)
		return boot_refuse(boot, -EINVAL, "wants to be loaded above 4 GiB (%#llx)",
		                   (unsigned long long)*address);
	if (*address < 0x100000)
		return boot_refuse(boot, -EINVAL, "wants to be loaded below 1 MiB (%#llx)",
		                   (unsigned long long)*address);
	if (!e820_is_ram(&boot->map, *address, length))
		return boot_refuse(boot, -EINVAL,
		                   "does not fit in the machine's memory: it needs %llu MiB from %llu MiB on",
		                   (unsigned long long)(length + 0xfffff) >> 20, (unsigned long long)*address >> 20);
	return boot_claim(boot, *address, length, "the kernel");
}

static int load_command_line(struct boot_context *boot, const struct setup_header *header, uint8_t *zero_page)
{
	const char *line = boot_command_line(boot);
	uint64_t length = strlen(line);
	uint64_t most = header->version >= 0x0206 ? get32(header->bytes + CMDLINE_SIZE) : 255;
	uint64_t address;
	int error;

	if (length > most)
		return boot_refuse(boot, -EINVAL, "the command line has %llu characters; this kernel takes %llu",
		                   (unsigned long long)length, (unsigned long long)most);
	error = boot_place_low(boot, BOOT_LOWEST, PC_EBDA, length + 1, 16, "the command line", &address);
	if (error)
		return error;
	put32(zero_page + CMD_LINE_PTR, (uint32_t)address);
	return boot_write(boot, address, line, length + 1);
}

static int load_initrd(struct boot_context *boot, const struct setup_header *header, uint8_t *zero_page)
{
	uint64_t limit = 0x38000000; /* before 2.03 */
	uint64_t address, length;
	int error;

	if (header->version >= 0x0203)
		limit = (uint64_t)get32(header->bytes + INITRD_ADDR_MAX) + 1;
	if (header->version >= 0x020c && (get16(header->bytes + XLOADFLAGS) & XLF_ABOVE_4G))
		limit = MEMORY_HIGH_BASE; /* this loader stays below all the same */
	error = boot_load_initrd(boot, limit, &address, &length);
	put32(zero_page + RAMDISK_IMAGE, (uint32_t)address);
	put32(zero_page + RAMDISK_SIZE, (uint32_t)length);
	return error;
}

/* Identity map of the first 4 GiB with 2 MiB pages: PML4, PDPT, four page directories. */
static int make_page_tables(struct boot_context *boot)
{
	enum { PAGES = 6, PRESENT_WRITABLE = 3, LARGE = 0x80 };
	uint8_t page[MEMORY_PAGE_SIZE] = {0};
	uint64_t base;
	int error = boot_place_low(boot, BOOT_LOWEST, PC_EBDA, PAGES * MEMORY_PAGE_SIZE, MEMORY_PAGE_SIZE,
	                           "the page tables", &base);

	if (error)
		return error;
	put64(page, (base + MEMORY_PAGE_SIZE) | PRESENT_WRITABLE);
	error = boot_write(boot, base, page, sizeof(page));
	for (unsigned i = 0; i < 4; i++)
		put64(page + 8 * i, (base + (2 + i) * MEMORY_PAGE_SIZE) | PRESENT_WRITABLE);
	if (!error)
		error = boot_write(boot, base + MEMORY_PAGE_SIZE, page, sizeof(page));
	for (unsigned directory = 0; directory < 4 && !error; directory++) {
		for (uint64_t i = 0; i < 512; i++)
			put64(page + 8 * i, ((directory * 512ull + i) << 21) | LARGE | PRESENT_WRITABLE);
		error = boot_write(boot, base + (2 + directory) * MEMORY_PAGE_SIZE, page, sizeof(page));
	}
	boot->entry->cr3 = base;
	return error;
}

static void put_memory_map(const struct boot_context *boot, uint8_t *zero_page)
{
	unsigned count = boot->map.count < E820_TABLE_MAX ? boot->map.count : E820_TABLE_MAX;

	zero_page[E820_ENTRIES] = (uint8_t)count;
	for (unsigned i = 0; i < count; i++) {
		uint8_t *at = zero_page + E820_TABLE + i * E820_ENTRY_LENGTH;
		put64(at, boot->map.entry[i].address);
		put64(at + 8, boot->map.entry[i].length);
		put32(at + 16, boot->map.entry[i].type);
	}
}

static int load_zero_page(struct boot_context *boot, const struct setup_header *header, uint64_t kernel,
                          uint64_t *address)
{
	uint8_t zero_page[ZERO_PAGE_LENGTH] = {0};
	int error;

	memcpy(zero_page + HEADER_START, header->bytes + HEADER_START, header->end - HEADER_START);
	zero_page[TYPE_OF_LOADER] = LOADER_UNKNOWN;
	zero_page[LOADFLAGS] |= CAN_USE_HEAP;
	put16(zero_page + HEAP_END_PTR, 0xde00);
	put32(zero_page + CODE32_START, (uint32_t)kernel);
	put64(zero_page + ACPI_RSDP_ADDR, boot->rsdp);
	put_memory_map(boot, zero_page);
	error = load_command_line(boot, header, zero_page);
	if (!error)
		error = load_initrd(boot, header, zero_page);
	if (!error)
		error = boot_place_low(boot, BOOT_LOWEST, PC_EBDA, sizeof(zero_page), MEMORY_PAGE_SIZE, "the zero page",
		                       address);
	return error ? error : boot_write(boot, *address, zero_page, sizeof(zero_page));
}

int boot_linux(struct boot_context *boot)
{
	struct setup_header header;
	uint64_t kernel, zero_page;
	int error = read_header(boot, &header);
	bool long_mode;

	if (!error)
		error = find_payload(boot, &header);
	if (error)
		return error;
	long_mode = header.version >= 0x020c && (get16(header.bytes + XLOADFLAGS) & XLF_KERNEL_64);
	if (long_mode && header.payload_length <= ENTRY64)
		return boot_refuse(boot, -EINVAL, "truncated: the file ends before the 64-bit entry");
	error = claim_kernel(boot, &header, &kernel);
	if (!error)
		error = boot_make_gdt(boot, long_mode);
	if (!error && long_mode)
		error = make_page_tables(boot);
	if (!error)
		error = load_zero_page(boot, &header, kernel, &zero_page);
	if (!error)
		error = boot_copy(boot, &boot->kernel, header.payload_offset, kernel, header.payload_length);
	if (error)
		return error;
	boot->entry->mode = long_mode ? BOOT_MODE_LONG64 : BOOT_MODE_FLAT32;
	boot->entry->protocol = long_mode ? "Linux 64-bit boot protocol" : "Linux 32-bit boot protocol";
	boot->entry->rip = kernel + (long_mode ? ENTRY64 : 0);
	boot->entry->rsi = zero_page;
	trace(boot->request->trace, TRACE_BOOT, -1,
	      "Linux protocol %u.%02u: kernel at %#llx, %llu bytes; zero page at %#llx", header.version >> 8,
	      header.version & 0xff, (unsigned long long)kernel, (unsigned long long)header.payload_length,
	      (unsigned long long)zero_page);
	return 0;
}
