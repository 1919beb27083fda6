/*
 * Multiboot 1 images (Multiboot specification 0.6.96): ELF32, or any format whose header carries load addresses (the
 * "a.out kludge"). The kernel starts in 32-bit protected mode with the magic in EAX and the information structure's
 * address in EBX.
 *
 * As GRUB Legacy does, the command line's first word is the image's name, and a module's string is its file name and
 * arguments.
 */
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/elf.h"
#include "boot/loaders.h"
#include "debug/trace.h"
#include "machine/pc_addresses.h"
#include "memory/memory.h"

#define SEARCH_LENGTH 8192u /* the header is in the first 8 KiB, at a multiple of 4 */

#define HEADER_MAGIC     0x1badb002u
#define HEADER_LENGTH    12u /* magic, flags, checksum */
#define KLUDGE_LENGTH    32u /* with the five addresses */
#define FLAG_PAGE_ALIGN  (1u << 0)
#define FLAG_MEMORY_INFO (1u << 1)
#define FLAG_VIDEO       (1u << 2) /* a wish: there is no display, and the guest is told nothing of one */
#define FLAGS_MANDATORY  0xffffu
#define FLAG_ADDRESSES   (1u << 16)

#define LOADER_MAGIC 0x2badb002u

#define INFO_LENGTH      116u
#define INFO_MEMORY      (1u << 0)
#define INFO_CMDLINE     (1u << 2)
#define INFO_MODULES     (1u << 3)
#define INFO_MEMORY_MAP  (1u << 6)
#define INFO_LOADER_NAME (1u << 9)

#define MODULES_MAX   64u
#define MODULE_LENGTH 16u
#define MAP_LENGTH    24u /* with the leading size, which does not count itself */

struct multiboot_header {
	uint32_t offset, flags;
	uint32_t header_address, load_address, load_end, bss_end, entry;
};

struct module {
	uint32_t start, end;
	const char *string;
};

/* The modules of `--initrd "a args,b"`; a comma in a name is written twice. */
struct module_list {
	char *text; /* owns the strings */
	unsigned count;
	struct module module[MODULES_MAX];
};

static int find_header(struct boot_context *boot, struct multiboot_header *header)
{
	uint8_t start[SEARCH_LENGTH];
	uint32_t length = boot->kernel.size < sizeof(start) ? (uint32_t)boot->kernel.size : (uint32_t)sizeof(start);
	uint32_t at;

	if (boot_file_read(&boot->kernel, 0, start, length) < 0)
		return -ENOEXEC; /* another loader will meet and name the error */
	for (at = 0; at + HEADER_LENGTH <= length; at += 4)
		if (get32(start + at) == HEADER_MAGIC &&
		    get32(start + at) + get32(start + at + 4) + get32(start + at + 8) == 0)
			break;
	if (at + HEADER_LENGTH > length)
		return -ENOEXEC;
	*header = (struct multiboot_header){.offset = at, .flags = get32(start + at + 4)};
	if (header->flags & FLAGS_MANDATORY & ~(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO))
		return boot_refuse(boot, -EINVAL,
		                   "a Multiboot image that asks for features this loader does not have (flags %#x)",
		                   header->flags);
	if (header->flags & FLAG_ADDRESSES) {
		if (at + KLUDGE_LENGTH > length)
			return boot_refuse(boot, -EINVAL, "truncated: the file ends within the Multiboot header");
		header->header_address = get32(start + at + 12);
		header->load_address = get32(start + at + 16);
		header->load_end = get32(start + at + 20);
		header->bss_end = get32(start + at + 24);
		header->entry = get32(start + at + 28);
	}
	return 0;
}

/* The load addresses are in the header; the file's own format does not matter. */
static int load_by_addresses(struct boot_context *boot, const struct multiboot_header *header)
{
	uint64_t offset, length, memory_end;
	int error;

	if (header->load_address > header->header_address ||
	    header->header_address - header->load_address > header->offset)
		return boot_refuse(boot, -EINVAL, "damaged: the Multiboot header is not where it says");
	offset = header->offset - (header->header_address - header->load_address);
	length = boot->kernel.size - offset;
	if (header->load_end) {
		if (header->load_end <= header->load_address)
			return boot_refuse(boot, -EINVAL,
			                   "damaged: the Multiboot load addresses are in the wrong order");
		if (header->load_end - header->load_address > length)
			return boot_refuse(boot, -EINVAL,
			                   "truncated: the Multiboot header announces %u bytes, %llu are there",
			                   header->load_end - header->load_address, (unsigned long long)length);
		length = header->load_end - header->load_address;
	}
	memory_end = header->load_address + length;
	if (header->bss_end) {
		if (header->bss_end < memory_end)
			return boot_refuse(boot, -EINVAL,
			                   "damaged: the Multiboot load addresses are in the wrong order");
		memory_end = header->bss_end;
	}
	if (header->entry < header->load_address || header->entry >= memory_end)
		return boot_refuse(boot, -EINVAL, "damaged: the entry point %#x is outside the image", header->entry);
	error = boot_claim(boot, header->load_address, memory_end - header->load_address, "the image");
	if (!error)
		error = boot_copy(boot, &boot->kernel, offset, header->load_address, length);
	if (!error)
		error = boot_zero(boot, header->load_address + length, memory_end - header->load_address - length);
	boot->entry->rip = header->entry;
	return error;
}

/* Linkers leave e_entry virtual in kernels that run elsewhere than they are loaded. */
static uint64_t physical_entry(const struct elf_image *image)
{
	for (unsigned n = 0; n < image->count; n++) {
		const struct elf_segment *segment = &image->segment[n];
		if (segment->type == PT_LOAD && image->entry >= segment->virtual &&
		    image->entry - segment->virtual < segment->memory_size)
			return image->entry - segment->virtual + segment->physical;
	}
	return image->entry;
}

static int load_elf(struct boot_context *boot)
{
	struct elf_image image;
	int error = elf_read(boot, &image);

	if (error == -ENOEXEC)
		return boot_refuse(boot, -EINVAL, "a Multiboot image that is neither ELF nor carries load addresses");
	if (error)
		return error;
	if (image.is64)
		return -ENOEXEC; /* perhaps it is PVH as well */
	boot->entry->rip = physical_entry(&image);
	error = elf_claim(boot, &image, boot->entry->rip);
	return error ? error : elf_load(boot, &image);
}

/* Cuts the text at single commas, in place; double ones become one. */
static int split_modules(struct boot_context *boot, struct module_list *list)
{
	const char *from = boot->request->initrd;
	char *to;

	if (!from || !*from)
		return 0;
	list->text = to = malloc(strlen(from) + 1);
	if (!to)
		return boot_refuse(boot, -ENOMEM, "%s", strerror(ENOMEM));
	do {
		if (list->count == MODULES_MAX)
			return boot_refuse(boot, -EINVAL, "more than %u modules", MODULES_MAX);
		from += strspn(from, " ");
		list->module[list->count++].string = to;
		while (*from && (*from != ',' || from[1] == ',')) {
			from += *from == ',';
			*to++ = *from++;
		}
		*to++ = '\0';
	} while (*from++ == ',');
	return 0;
}

static int load_module(struct boot_context *boot, struct module *module)
{
	char *name = strndup(module->string, strcspn(module->string, " "));
	struct boot_file file;
	uint64_t address = 0;
	int error;

	if (!name)
		return boot_refuse(boot, -ENOMEM, "%s", strerror(ENOMEM));
	error = boot_file_open(&file, name, boot->memory->size, boot->why);
	if (!error) {
		if (boot_place_low(boot, 0x100000, MEMORY_HIGH_BASE, file.size ? file.size : 1, MEMORY_PAGE_SIZE,
		                   "a module", &address) < 0) {
			error = -EINVAL;
			snprintf(boot->why, BOOT_WHY_SIZE,
			         "%.300s: does not fit in the machine's memory beside the kernel (%llu bytes)", name,
			         (unsigned long long)file.size);
		} else {
			error = boot_copy(boot, &file, 0, address, file.size);
		}
		module->start = (uint32_t)address;
		module->end = (uint32_t)(address + file.size);
		boot_file_close(&file);
		if (!error)
			trace(boot->request->trace, TRACE_BOOT, -1, "module %s at %#x, %u bytes", name, module->start,
			      module->end - module->start);
	}
	free(name);
	return error;
}

/* Bytes that go to the guest one after another. */
struct area {
	uint8_t *bytes;
	uint64_t base; /* guest address of the first */
	uint64_t used;
};

static uint32_t append_string(struct area *area, const char *first, const char *second)
{
	uint32_t address = (uint32_t)(area->base + area->used);
	size_t length = strlen(first);

	memcpy(area->bytes + area->used, first, length);
	if (second && *second) {
		area->bytes[area->used + length++] = ' ';
		memcpy(area->bytes + area->used + length, second, strlen(second));
		length += strlen(second);
	}
	area->bytes[area->used + length] = '\0';
	area->used += length + 1;
	return address;
}

static const char loader_name[] = "ring3 " RING3_VERSION;

/* The information structure, module list and memory map first, strings behind them. */
static void fill_info(struct boot_context *boot, const struct module_list *list, struct area *area)
{
	uint8_t *info = area->bytes;
	uint8_t *modules = info + INFO_LENGTH, *map = modules + list->count * MODULE_LENGTH;
	uint64_t upper = boot->memory->low_size > 0x100000 ? boot->memory->low_size - 0x100000 : 0;

	area->used = INFO_LENGTH + list->count * MODULE_LENGTH + boot->map.count * MAP_LENGTH;
	put32(info, INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME);
	put32(info + 4, PC_EBDA >> 10);
	put32(info + 8, (uint32_t)(upper >> 10));
	put32(info + 16, append_string(area, boot->kernel.name, boot_command_line(boot)));
	put32(info + 20, list->count);
	put32(info + 24, (uint32_t)area->base + INFO_LENGTH);
	put32(info + 44, boot->map.count * MAP_LENGTH);
	put32(info + 48, (uint32_t)area->base + INFO_LENGTH + list->count * MODULE_LENGTH);
	put32(info + 64, append_string(area, loader_name, NULL));
	for (unsigned i = 0; i < list->count; i++) {
		put32(modules + i * MODULE_LENGTH, list->module[i].start);
		put32(modules + i * MODULE_LENGTH + 4, list->module[i].end);
		put32(modules + i * MODULE_LENGTH + 8, append_string(area, list->module[i].string, NULL));
	}
	for (unsigned i = 0; i < boot->map.count; i++) {
		put32(map + i * MAP_LENGTH, MAP_LENGTH - 4);
		put64(map + i * MAP_LENGTH + 4, boot->map.entry[i].address);
		put64(map + i * MAP_LENGTH + 12, boot->map.entry[i].length);
		put32(map + i * MAP_LENGTH + 20, boot->map.entry[i].type);
	}
}

static int load_info(struct boot_context *boot, const struct module_list *list)
{
	uint64_t length = INFO_LENGTH + list->count * MODULE_LENGTH + boot->map.count * MAP_LENGTH +
	                  sizeof(loader_name) + strlen(boot->kernel.name) + 1 + strlen(boot_command_line(boot)) + 1;
	struct area area = {0};
	int error;

	for (unsigned i = 0; i < list->count; i++)
		length += strlen(list->module[i].string) + 1;
	/* Low, where kernels expect it; an image that fills low memory gets it elsewhere. */
	error =
	    boot_place_low(boot, BOOT_LOWEST, MEMORY_HIGH_BASE, length, 16, "the Multiboot information", &area.base);
	if (error)
		return error;
	area.bytes = calloc(1, length);
	if (!area.bytes)
		return boot_refuse(boot, -ENOMEM, "%s", strerror(ENOMEM));
	fill_info(boot, list, &area);
	error = boot_write(boot, area.base, area.bytes, length);
	free(area.bytes);
	boot->entry->rbx = area.base;
	return error;
}

int boot_multiboot(struct boot_context *boot)
{
	struct multiboot_header header;
	struct module_list list = {0};
	int error = find_header(boot, &header);

	if (!error)
		error = header.flags & FLAG_ADDRESSES ? load_by_addresses(boot, &header) : load_elf(boot);
	if (!error)
		error = split_modules(boot, &list);
	for (unsigned i = 0; i < list.count && !error; i++)
		error = load_module(boot, &list.module[i]);
	if (!error)
		error = boot_make_gdt(boot, false);
	if (!error)
		error = load_info(boot, &list);
	free(list.text);
	if (error)
		return error;
	boot->entry->mode = BOOT_MODE_FLAT32;
	boot->entry->protocol = "Multiboot";
	boot->entry->rax = LOADER_MAGIC;
	return 0;
}
