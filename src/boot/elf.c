/*
 * Uncompressed ELF kernels (vmlinux) by PVH: the note XEN_ELFNOTE_PHYS32_ENTRY names a 32-bit entry point, which finds
 * a struct hvm_start_info in EBX (Xen's docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h).
 */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "boot/elf.h"
#include "debug/trace.h"
#include "machine/pc_addresses.h"
#include "memory/memory.h"

#define NOTE_PHYS32_ENTRY 18u
#define NOTES_MAX         (1u << 20) /* bytes of notes that are looked at */

#define START_INFO_MAGIC  0x336ec578u
#define START_INFO_LENGTH 56u
#define MODULE_LENGTH     32u
#define MEMMAP_LENGTH     24u

static int read_segments(struct boot_context *boot, struct elf_image *image, uint64_t table, unsigned entry_size)
{
	for (unsigned n = 0; n < image->count; n++) {
		uint64_t offset = table + (uint64_t)n * entry_size;
		struct elf_segment *segment = &image->segment[n];
		Elf64_Phdr elf64;
		Elf32_Phdr elf32;
		int error;

		if (image->is64) {
			error = boot_header(boot, offset, &elf64, sizeof(elf64), "the program headers");
			if (error)
				return error;
			*segment = (struct elf_segment){elf64.p_type,  elf64.p_offset, elf64.p_vaddr,
			                                elf64.p_paddr, elf64.p_filesz, elf64.p_memsz};
		} else {
			error = boot_header(boot, offset, &elf32, sizeof(elf32), "the program headers");
			if (error)
				return error;
			*segment = (struct elf_segment){elf32.p_type,  elf32.p_offset, elf32.p_vaddr,
			                                elf32.p_paddr, elf32.p_filesz, elf32.p_memsz};
		}
	}
	return 0;
}

int elf_read(struct boot_context *boot, struct elf_image *image)
{
	union {
		unsigned char ident[EI_NIDENT];
		Elf32_Ehdr elf32;
		Elf64_Ehdr elf64;
	} header;
	unsigned machine, entry_size;
	uint64_t table;
	int error;

	if (boot_file_read(&boot->kernel, 0, header.ident, SELFMAG) < 0 || memcmp(header.ident, ELFMAG, SELFMAG) != 0)
		return -ENOEXEC;
	error = boot_header(boot, 0, header.ident, EI_NIDENT, "the ELF header");
	if (error)
		return error;
	if (header.ident[EI_DATA] != ELFDATA2LSB ||
	    (header.ident[EI_CLASS] != ELFCLASS32 && header.ident[EI_CLASS] != ELFCLASS64))
		return boot_refuse(boot, -EINVAL, "an ELF file, but not for x86");
	image->is64 = header.ident[EI_CLASS] == ELFCLASS64;
	error =
	    boot_header(boot, 0, &header, image->is64 ? sizeof(header.elf64) : sizeof(header.elf32), "the ELF header");
	if (error)
		return error;
	machine = image->is64 ? header.elf64.e_machine : header.elf32.e_machine;
	if (machine != EM_X86_64 && machine != EM_386)
		return boot_refuse(boot, -EINVAL, "an ELF file, but not for x86 (machine %u)", machine);
	image->entry = image->is64 ? header.elf64.e_entry : header.elf32.e_entry;
	image->count = image->is64 ? header.elf64.e_phnum : header.elf32.e_phnum;
	table = image->is64 ? header.elf64.e_phoff : header.elf32.e_phoff;
	entry_size = image->is64 ? header.elf64.e_phentsize : header.elf32.e_phentsize;
	if (image->count == 0)
		return boot_refuse(boot, -EINVAL,
		                   "an ELF file without program headers: not a kernel that can be started");
	if (image->count > ELF_SEGMENTS_MAX)
		return boot_refuse(boot, -EINVAL, "has too many program headers (%u)", image->count);
	if (entry_size < (image->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
		return boot_refuse(boot, -EINVAL, "damaged: program headers of %u bytes", entry_size);
	if (!boot_file_has(&boot->kernel, table, (uint64_t)image->count * entry_size))
		return boot_refuse(boot, -EINVAL, "truncated: the file ends within the program headers");
	return read_segments(boot, image, table, entry_size);
}

int elf_claim(struct boot_context *boot, const struct elf_image *image, uint64_t entry)
{
	bool entry_loaded = false;

	for (unsigned n = 0; n < image->count; n++) {
		const struct elf_segment *segment = &image->segment[n];
		int error;

		if (segment->type != PT_LOAD || segment->memory_size == 0)
			continue;
		if (segment->file_size > segment->memory_size)
			return boot_refuse(boot, -EINVAL, "damaged: segment %u is longer in the file than in memory",
			                   n);
		if (!boot_file_has(&boot->kernel, segment->offset, segment->file_size))
			return boot_refuse(boot, -EINVAL, "truncated: the file ends within segment %u", n);
		error = boot_claim(boot, segment->physical, segment->memory_size, "a segment");
		if (error)
			return error;
		entry_loaded |= entry >= segment->physical && entry - segment->physical < segment->memory_size;
	}
	return entry_loaded ? 0
	                    : boot_refuse(boot, -EINVAL, "damaged: the entry point %#llx is in no segment",
	                                  (unsigned long long)entry);
}

int elf_load(struct boot_context *boot, const struct elf_image *image)
{
	for (unsigned n = 0; n < image->count; n++) {
		const struct elf_segment *segment = &image->segment[n];
		int error;

		if (segment->type != PT_LOAD || segment->memory_size == 0)
			continue;
		error = boot_copy(boot, &boot->kernel, segment->offset, segment->physical, segment->file_size);
		if (!error)
			error = boot_zero(boot, segment->physical + segment->file_size,
			                  segment->memory_size - segment->file_size);
		if (error)
			return error;
		trace(boot->request->trace, TRACE_BOOT, -1, "segment at %#llx, %llu bytes",
		      (unsigned long long)segment->physical, (unsigned long long)segment->memory_size);
	}
	return 0;
}

/* Searches one PT_NOTE segment. The name's and the description's lengths are rounded up to 4. */
static int find_note(struct boot_context *boot, const struct elf_segment *segment, uint64_t *entry)
{
	uint64_t at = segment->offset, end = segment->offset + segment->file_size;
	uint8_t header[12], name[4], value[8] = {0};
	int error;

	if (!boot_file_has(&boot->kernel, segment->offset, segment->file_size))
		return boot_refuse(boot, -EINVAL, "truncated: the file ends within the notes");
	if (segment->file_size > NOTES_MAX)
		end = segment->offset + NOTES_MAX;
	while (end - at >= sizeof(header)) {
		error = boot_header(boot, at, header, sizeof(header), "the notes");
		if (error)
			return error;
		uint64_t name_length = get32(header), value_length = get32(header + 4);
		uint64_t name_at = at + sizeof(header), value_at = name_at + ((name_length + 3) & ~3ull);
		at = value_at + ((value_length + 3) & ~3ull);
		if (at > end)
			return 0; /* damaged, or not ours */
		if (get32(header + 8) != NOTE_PHYS32_ENTRY || name_length != 4 ||
		    (value_length != 4 && value_length != 8))
			continue;
		error = boot_header(boot, name_at, name, sizeof(name), "the notes");
		if (!error && memcmp(name, "Xen", 4) == 0) {
			error = boot_header(boot, value_at, value, value_length, "the notes");
			*entry = get64(value);
			return error;
		}
		if (error)
			return error;
	}
	return 0;
}

static int find_entry(struct boot_context *boot, const struct elf_image *image, uint64_t *entry)
{
	*entry = 0;
	for (unsigned n = 0; n < image->count && *entry == 0; n++) {
		int error = image->segment[n].type == PT_NOTE ? find_note(boot, &image->segment[n], entry) : 0;
		if (error)
			return error;
	}
	if (*entry == 0 && image->is64)
		return boot_refuse(
		    boot, -EINVAL,
		    "a 64-bit ELF file without a PVH entry note: not a kernel that can be started (Multiboot "
		    "takes 32-bit ELF files)");
	if (*entry == 0)
		return boot_refuse(
		    boot, -EINVAL,
		    "an ELF file without a PVH entry note or Multiboot header: not a kernel that can be started");
	if (*entry >= MEMORY_HIGH_BASE)
		return boot_refuse(boot, -EINVAL, "damaged: PVH entry point above 4 GiB");
	return 0;
}

/* start_info, module list, memory map and command line in one piece of low memory. */
static int load_start_info(struct boot_context *boot, uint64_t *address)
{
	const char *line = boot_command_line(boot);
	uint64_t line_length = strlen(line) + 1;
	uint64_t map_at = START_INFO_LENGTH + MODULE_LENGTH,
	         line_at = map_at + (uint64_t)boot->map.count * MEMMAP_LENGTH;
	uint8_t info[START_INFO_LENGTH + MODULE_LENGTH + E820_ENTRIES_MAX * MEMMAP_LENGTH] = {0};
	uint64_t initrd, initrd_length;
	int error = boot_place_low(boot, BOOT_LOWEST, PC_EBDA, line_at + line_length, 16,
	                           "the command line and start info", address);

	if (!error)
		error = boot_load_initrd(boot, MEMORY_HIGH_BASE, &initrd, &initrd_length);
	if (error)
		return error;
	put32(info, START_INFO_MAGIC);
	put32(info + 4, 1); /* version: with memory map */
	put64(info + 24, *address + line_at);
	put64(info + 32, boot->rsdp);
	put64(info + 40, *address + map_at);
	put32(info + 48, boot->map.count);
	if (initrd_length) {
		put32(info + 12, 1);
		put64(info + 16, *address + START_INFO_LENGTH);
		put64(info + START_INFO_LENGTH, initrd);
		put64(info + START_INFO_LENGTH + 8, initrd_length);
	}
	for (unsigned i = 0; i < boot->map.count; i++) {
		uint8_t *at = info + map_at + i * MEMMAP_LENGTH;
		put64(at, boot->map.entry[i].address);
		put64(at + 8, boot->map.entry[i].length);
		put32(at + 16, boot->map.entry[i].type);
	}
	error = boot_write(boot, *address, info, line_at);
	return error ? error : boot_write(boot, *address + line_at, line, line_length);
}

int boot_pvh(struct boot_context *boot)
{
	struct elf_image image;
	uint64_t start_info, entry;
	int error = elf_read(boot, &image);

	if (!error)
		error = find_entry(boot, &image, &entry);
	if (!error)
		error = elf_claim(boot, &image, entry);
	if (!error)
		error = boot_make_gdt(boot, false);
	if (!error)
		error = load_start_info(boot, &start_info);
	if (!error)
		error = elf_load(boot, &image);
	if (error)
		return error;
	boot->entry->mode = BOOT_MODE_FLAT32;
	boot->entry->protocol = "PVH";
	boot->entry->rip = entry;
	boot->entry->rbx = start_info;
	return 0;
}
