#include "devices/fw_cfg.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "machine/state.h"
#include "memory/memory.h"

#define SELECT_WRITE 0x4000u /* an ancient write channel; ignored */
#define SELECT_ARCH  0x8000u

#define ID_TRADITIONAL 1u
#define ID_DMA         2u

#define DMA_ERROR  0x01u
#define DMA_READ   0x02u
#define DMA_SKIP   0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE  0x10u

#define DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG" */

/* In guest memory, big-endian. */
struct dma_access {
	uint32_t control;
	uint32_t length;
	uint64_t address;
} __attribute__((packed));

/* An entry of the file directory, big-endian. */
struct directory_entry {
	uint32_t size;
	uint16_t selector;
	uint16_t reserved;
	char name[FW_CFG_NAME_SIZE];
} __attribute__((packed));

static struct fw_cfg_item *find_item(struct fw_cfg *fw_cfg, uint16_t selector)
{
	unsigned index = selector & ~(SELECT_WRITE | SELECT_ARCH);

	if (selector & SELECT_ARCH)
		return index < sizeof fw_cfg->arch_item / sizeof fw_cfg->arch_item[0] ? &fw_cfg->arch_item[index]
		                                                                      : NULL;
	return index < FW_CFG_ITEMS_MAX ? &fw_cfg->item[index] : NULL;
}

static void select_item(struct fw_cfg *fw_cfg, uint16_t selector)
{
	fw_cfg->selector = selector;
	fw_cfg->offset = 0;
}

/* Bytes left in the selected item; `*item` may be NULL then. */
static uint32_t item_rest(struct fw_cfg *fw_cfg, struct fw_cfg_item **item)
{
	*item = find_item(fw_cfg, fw_cfg->selector);
	return *item && fw_cfg->offset < (*item)->length ? (*item)->length - fw_cfg->offset : 0;
}

static uint8_t read_byte(struct fw_cfg *fw_cfg)
{
	struct fw_cfg_item *item;

	return item_rest(fw_cfg, &item) ? item->data[fw_cfg->offset++] : 0;
}

/* Beyond the item's end reads give zeros, and writes are an error. */
static bool dma_transfer(struct fw_cfg *fw_cfg, uint32_t control, uint32_t length, uint64_t address)
{
	struct fw_cfg_item *item;
	uint32_t part = item_rest(fw_cfg, &item);

	if (part > length)
		part = length;
	if (control & DMA_READ) {
		/* All or nothing, so that a guest learns of a bad address before anything has changed. */
		if (length && !memory_pointer(fw_cfg->memory, address, length))
			return false;
		if ((part && memory_write(fw_cfg->memory, address, item->data + fw_cfg->offset, part)) ||
		    (length - part && memory_fill(fw_cfg->memory, address + part, 0, length - part)))
			return false;
	} else if (control & DMA_WRITE) {
		if (part < length || (part && !item->writable) ||
		    (part && memory_read(fw_cfg->memory, address, item->writable + fw_cfg->offset, part)))
			return false;
	}
	fw_cfg->offset += part;
	return true;
}

/* The guest wrote the low half of the address: the access structure is there. */
static void dma_run(struct fw_cfg *fw_cfg)
{
	uint64_t address = fw_cfg->dma_address;
	struct dma_access access;
	uint32_t control;
	bool good = true;

	fw_cfg->dma_address = 0;
	if (memory_read(fw_cfg->memory, address, &access, sizeof access))
		return; /* nowhere to tell it */
	control = be32toh(access.control);
	if (control & DMA_SELECT)
		select_item(fw_cfg, control >> 16);
	if (control & (DMA_READ | DMA_WRITE | DMA_SKIP))
		good = dma_transfer(fw_cfg, control, be32toh(access.length), be64toh(access.address));
	control = htobe32(good ? 0 : DMA_ERROR);
	memory_write(fw_cfg->memory, address, &control, sizeof control);
}

static uint64_t fw_cfg_read(void *device, uint64_t offset, unsigned size)
{
	struct fw_cfg *fw_cfg = device;
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)read_byte(fw_cfg) << 8 * i;
	return value;
}

static void fw_cfg_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	if (offset == 0 && size == 2)
		select_item(device, value);
	/* Data written through the port is ignored, as since QEMU 2.4. */
}

static uint64_t dma_read(void *device, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (DMA_SIGNATURE >> 8 * (7 - (offset + i)) & 0xff) << 8 * i;
	return value;
}

static void dma_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct fw_cfg *fw_cfg = device;
	uint64_t address = htobe64(fw_cfg->dma_address);

	/* The register is big-endian: byte 0 is the most significant one. */
	memcpy((uint8_t *)&address + offset, &value, size);
	fw_cfg->dma_address = be64toh(address);
	if (offset + size == 8)
		dma_run(fw_cfg);
}

static const struct bus_ops fw_cfg_ops = {.read = fw_cfg_read, .write = fw_cfg_write, .max_size = 2};
static const struct bus_ops dma_ops = {.read = dma_read, .write = dma_write, .max_size = 4};

int fw_cfg_init(struct fw_cfg *fw_cfg, struct bus *bus, struct memory *memory)
{
	int error;

	memset(fw_cfg, 0, sizeof *fw_cfg);
	fw_cfg->memory = memory;
	fw_cfg_set(fw_cfg, FW_CFG_SIGNATURE, "QEMU", 4);
	fw_cfg_set_integer(fw_cfg, FW_CFG_ID, ID_TRADITIONAL | ID_DMA, 4);
	fw_cfg_set(fw_cfg, FW_CFG_FILE_DIR, fw_cfg->directory, 4);
	if ((error = bus_add_ports(bus, 0x510, 2, "fw-cfg", &fw_cfg_ops, fw_cfg)) ||
	    (error = bus_add_ports(bus, 0x514, 8, "fw-cfg dma", &dma_ops, fw_cfg)))
		return error;
	return 0;
}

void fw_cfg_reset(struct fw_cfg *fw_cfg)
{
	select_item(fw_cfg, 0);
	fw_cfg->dma_address = 0;
}

int fw_cfg_set(struct fw_cfg *fw_cfg, uint16_t selector, const void *data, uint32_t length)
{
	struct fw_cfg_item *item = find_item(fw_cfg, selector);

	if (!item || selector & SELECT_WRITE)
		return -EINVAL;
	*item = (struct fw_cfg_item){.data = data, .length = length};
	return 0;
}

int fw_cfg_set_integer(struct fw_cfg *fw_cfg, uint16_t selector, uint64_t value, unsigned size)
{
	struct fw_cfg_item *item = find_item(fw_cfg, selector);

	if (size > 8 || fw_cfg_set(fw_cfg, selector, NULL, size))
		return -EINVAL;
	value = htole64(value);
	memcpy(item->value, &value, sizeof item->value);
	item->data = item->value;
	return 0;
}

static struct directory_entry *directory_entry(struct fw_cfg *fw_cfg, unsigned file)
{
	return (struct directory_entry *)(fw_cfg->directory + 4) + file;
}

static int add_file(struct fw_cfg *fw_cfg, const char *name, const void *data, void *writable, uint32_t length)
{
	struct directory_entry *entry;
	unsigned file = 0;
	uint32_t count;

	if (!*name || strlen(name) >= FW_CFG_NAME_SIZE)
		return -EINVAL;
	while (file < fw_cfg->file_count && strcmp(directory_entry(fw_cfg, file)->name, name) != 0)
		file++;
	if (file == FW_CFG_FILES_MAX)
		return -ENOSPC;
	entry = directory_entry(fw_cfg, file);
	*entry = (struct directory_entry){.size = htobe32(length), .selector = htobe16(FW_CFG_FILE_FIRST + file)};
	strcpy(entry->name, name);
	fw_cfg_set(fw_cfg, FW_CFG_FILE_FIRST + file, data, length);
	fw_cfg->item[FW_CFG_FILE_FIRST + file].writable = writable;
	if (file == fw_cfg->file_count)
		fw_cfg->file_count++;
	count = htobe32(fw_cfg->file_count);
	memcpy(fw_cfg->directory, &count, sizeof count);
	fw_cfg->item[FW_CFG_FILE_DIR].length = 4 + fw_cfg->file_count * sizeof *entry;
	return 0;
}

int fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t length)
{
	return add_file(fw_cfg, name, data, NULL, length);
}

int fw_cfg_add_writable_file(struct fw_cfg *fw_cfg, const char *name, void *data, uint32_t length)
{
	return add_file(fw_cfg, name, data, data, length);
}

void fw_cfg_set_kernel(struct fw_cfg *fw_cfg, const void *setup, uint32_t setup_length, const void *kernel,
                       uint32_t kernel_length)
{
	fw_cfg_set_integer(fw_cfg, FW_CFG_SETUP_ADDR, 0x10000, 4);
	fw_cfg_set_integer(fw_cfg, FW_CFG_SETUP_SIZE, setup_length, 4);
	fw_cfg_set(fw_cfg, FW_CFG_SETUP_DATA, setup, setup_length);
	fw_cfg_set_integer(fw_cfg, FW_CFG_KERNEL_ADDR, 0x100000, 4);
	fw_cfg_set_integer(fw_cfg, FW_CFG_KERNEL_SIZE, kernel_length, 4);
	fw_cfg_set(fw_cfg, FW_CFG_KERNEL_DATA, kernel, kernel_length);
}

void fw_cfg_set_initrd(struct fw_cfg *fw_cfg, const void *initrd, uint32_t length, uint32_t address)
{
	fw_cfg_set_integer(fw_cfg, FW_CFG_INITRD_ADDR, address, 4);
	fw_cfg_set_integer(fw_cfg, FW_CFG_INITRD_SIZE, length, 4);
	fw_cfg_set(fw_cfg, FW_CFG_INITRD_DATA, initrd, length);
}

void fw_cfg_set_cmdline(struct fw_cfg *fw_cfg, const char *cmdline)
{
	uint32_t size = strlen(cmdline) + 1;

	fw_cfg_set_integer(fw_cfg, FW_CFG_CMDLINE_ADDR, 0x20000, 4);
	fw_cfg_set_integer(fw_cfg, FW_CFG_CMDLINE_SIZE, size, 4);
	fw_cfg_set(fw_cfg, FW_CFG_CMDLINE_DATA, cmdline, size);
}

void fw_cfg_state(struct fw_cfg *fw_cfg, struct state *state)
{
	state_begin(state, "fw-cfg", 0, 1);
	state_u16(state, "selector", &fw_cfg->selector);
	state_u32(state, "offset", &fw_cfg->offset); /* any value is safe: reads compare it with the item's length */
	state_u64(state, "dma-address", &fw_cfg->dma_address);
	for (unsigned file = 0; file < fw_cfg->file_count; file++) {
		struct fw_cfg_item *item = &fw_cfg->item[FW_CFG_FILE_FIRST + file];
		char field[16];

		snprintf(field, sizeof field, "file-%u", file);
		if (item->writable)
			state_u8_array(state, field, item->writable, item->length);
	}
	state_end(state);
}
