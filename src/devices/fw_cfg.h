/*
 * The firmware configuration device, as QEMU's firmware interface defines it (docs/specs/fw_cfg): named items that
 * firmware and guests read by selector, through a data port or by DMA.
 *
 * Ports 510h (selector, 16 bits), 511h (data), 514h-51Bh (DMA address, big-endian). Item data is borrowed: it must stay
 * as long as the device, and must not change while the guest runs. All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

/* Well-known selectors. */
#define FW_CFG_SIGNATURE     0x00
#define FW_CFG_ID            0x01
#define FW_CFG_UUID          0x02
#define FW_CFG_RAM_SIZE      0x03
#define FW_CFG_NOGRAPHIC     0x04
#define FW_CFG_CPUS          0x05
#define FW_CFG_KERNEL_ADDR   0x07
#define FW_CFG_KERNEL_SIZE   0x08
#define FW_CFG_INITRD_ADDR   0x0a
#define FW_CFG_INITRD_SIZE   0x0b
#define FW_CFG_BOOT_MENU     0x0e
#define FW_CFG_CPUS_MAX      0x0f
#define FW_CFG_KERNEL_ENTRY  0x10
#define FW_CFG_KERNEL_DATA   0x11
#define FW_CFG_INITRD_DATA   0x12
#define FW_CFG_CMDLINE_ADDR  0x13
#define FW_CFG_CMDLINE_SIZE  0x14
#define FW_CFG_CMDLINE_DATA  0x15
#define FW_CFG_SETUP_ADDR    0x16
#define FW_CFG_SETUP_SIZE    0x17
#define FW_CFG_SETUP_DATA    0x18
#define FW_CFG_FILE_DIR      0x19
#define FW_CFG_FILE_FIRST    0x20
#define FW_CFG_ACPI_TABLES   0x8000 /* x86's own */
#define FW_CFG_SMBIOS        0x8001
#define FW_CFG_IRQ0_OVERRIDE 0x8002
#define FW_CFG_E820          0x8003

#define FW_CFG_FILES_MAX 64
#define FW_CFG_ITEMS_MAX (FW_CFG_FILE_FIRST + FW_CFG_FILES_MAX)
#define FW_CFG_NAME_SIZE 56

struct memory;
struct state;

struct fw_cfg_item {
	const uint8_t *data;
	uint8_t *writable; /* the same, when the guest may write it (DMA only); else NULL */
	uint32_t length;
	uint8_t value[8]; /* small items live here */
};

struct fw_cfg {
	struct fw_cfg_item item[FW_CFG_ITEMS_MAX];
	struct fw_cfg_item arch_item[8];              /* 8000h and up */
	uint8_t directory[4 + 64 * FW_CFG_FILES_MAX]; /* as the guest reads it */
	unsigned file_count;
	uint16_t selector;
	uint32_t offset; /* in the selected item; stops at its end */
	uint64_t dma_address;
	struct memory *memory;
};

/* Claims the ports. `memory`: for DMA. 0 or -errno. */
int fw_cfg_init(struct fw_cfg *fw_cfg, struct bus *bus, struct memory *memory);
void fw_cfg_reset(struct fw_cfg *fw_cfg);

/* Sets a numbered item. 0, or -EINVAL for a selector out of range. */
int fw_cfg_set(struct fw_cfg *fw_cfg, uint16_t selector, const void *data, uint32_t length);
/* A little-endian integer of `size` 1, 2, 4 or 8 bytes; nothing is borrowed. */
int fw_cfg_set_integer(struct fw_cfg *fw_cfg, uint16_t selector, uint64_t value, unsigned size);
/*
 * Adds or replaces a named file ("etc/e820", "bootorder", "opt/..."). 0; -EINVAL: the name is empty or longer than 55
 * bytes; -ENOSPC. A writable file's bytes are saved with the device's state.
 */
int fw_cfg_add_file(struct fw_cfg *fw_cfg, const char *name, const void *data, uint32_t length);
int fw_cfg_add_writable_file(struct fw_cfg *fw_cfg, const char *name, void *data, uint32_t length);
/* The items for a kernel that firmware's option ROM loads: sizes and data; NULL: none. The texts end at `cmdline`'s 0
 * byte, included. */
void fw_cfg_set_kernel(struct fw_cfg *fw_cfg, const void *setup, uint32_t setup_length, const void *kernel,
                       uint32_t kernel_length);
void fw_cfg_set_initrd(struct fw_cfg *fw_cfg, const void *initrd, uint32_t length, uint32_t address);
void fw_cfg_set_cmdline(struct fw_cfg *fw_cfg, const char *cmdline);

void fw_cfg_state(struct fw_cfg *fw_cfg, struct state *state);
