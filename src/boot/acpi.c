/* ACPI tables: see acpi.h. Section numbers are ACPI 6.3's. */
#include "boot/acpi.h"

#include <stdbool.h>
#include <string.h>

#include "machine/pc_addresses.h"
#include "src/boot/dsdt.hex" /* made from dsdt.asl: dsdt_aml_code */

#define FADT_LENGTH   276
#define FACS_LENGTH   64
#define RSDP_LENGTH   36
#define HEADER_LENGTH 36

/* FADT flags (table 5-34). */
#define FADT_WBINVD        (1u << 0)
#define FADT_PROC_C1       (1u << 2)
#define FADT_SLP_BUTTON    (1u << 5) /* no fixed sleep button */
#define FADT_FIX_RTC       (1u << 6) /* no RTC wake status in PM1 */
#define FADT_RESET_REG_SUP (1u << 10)

/* IA-PC boot architecture flags (table 5-35). */
#define BOOT_LEGACY_DEVICES (1u << 0)
#define BOOT_8042           (1u << 1)
#define BOOT_NO_VGA         (1u << 2)

/* MPS INTI flags (table 5-50): active high, level triggered. */
#define MADT_LEVEL_HIGH 0x000du

/* Tables grow one after another in `buffer`, which the guest sees at `address`. */
struct builder {
	uint8_t *buffer;
	size_t capacity, used;
	uint64_t address;
	bool full;
};

static void put(uint8_t *at, unsigned bytes, uint64_t value)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* `length` zero bytes at a multiple of `align`. NULL: they do not fit, and the builder is marked full. */
static uint8_t *reserve(struct builder *builder, size_t length, size_t align)
{
	size_t start = (builder->used + align - 1) & ~(align - 1);

	if (builder->full || start > builder->capacity || length > builder->capacity - start) {
		builder->full = true;
		return NULL;
	}
	builder->used = start + length;
	return memset(builder->buffer + start, 0, length);
}

static uint64_t address_of(const struct builder *builder, const uint8_t *table)
{
	return table ? builder->address + (uint64_t)(table - builder->buffer) : 0;
}

static uint8_t checksum(const uint8_t *bytes, size_t length)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < length; i++)
		sum += bytes[i];
	return (uint8_t)-sum;
}

/* System description table header (5.2.6), checksum included: call it when the table's body is written. */
static void finish_table(uint8_t *table, const char *signature, size_t length, uint8_t revision)
{
	memcpy(table, signature, 4);
	put(table + 4, 4, length);
	table[8] = revision;
	table[9] = 0;
	memcpy(table + 10, "RING3 ", 6);
	memcpy(table + 16, "RING3PC ", 8);
	put(table + 24, 4, 1);
	memcpy(table + 28, "RNG3", 4);
	put(table + 32, 4, 1);
	table[9] = checksum(table, length);
}

/* Generic address structure (5.2.3.2) of an I/O port register. */
static void put_port(uint8_t *at, uint64_t port, unsigned bytes, unsigned access_size)
{
	at[0] = 1;
	at[1] = (uint8_t)(bytes * 8);
	at[2] = 0;
	at[3] = (uint8_t)access_size; /* 1 byte, 2 word, 3 double word */
	put(at + 4, 8, port);
}

static uint64_t add_facs(struct builder *builder)
{
	uint8_t *facs = reserve(builder, FACS_LENGTH, 64);

	if (facs) {
		memcpy(facs, "FACS", 4);
		put(facs + 4, 4, FACS_LENGTH);
		facs[32] = 2; /* version */
	}
	return address_of(builder, facs);
}

static uint64_t add_dsdt(struct builder *builder)
{
	uint8_t *dsdt = reserve(builder, sizeof(dsdt_aml_code), 16);

	if (dsdt)
		memcpy(dsdt, dsdt_aml_code, sizeof(dsdt_aml_code));
	return address_of(builder, dsdt);
}

/* 5.2.9 */
static uint64_t add_fadt(struct builder *builder, uint64_t facs, uint64_t dsdt)
{
	uint8_t *fadt = reserve(builder, FADT_LENGTH, 16);

	if (!fadt)
		return 0;
	put(fadt + 36, 4, facs); /* X_FIRMWARE_CTRL stays 0: only one of them is set */
	put(fadt + 40, 4, dsdt);
	put(fadt + 46, 2, PC_IRQ_SCI);
	put(fadt + 56, 4, PC_ACPI_PM1_EVENT);
	put(fadt + 64, 4, PC_ACPI_PM1_CONTROL);
	put(fadt + 76, 4, PC_ACPI_PM_TIMER);
	put(fadt + 80, 4, PC_ACPI_GPE0);
	fadt[88] = PC_ACPI_PM1_EVENT_LENGTH;
	fadt[89] = PC_ACPI_PM1_CONTROL_LENGTH;
	fadt[91] = PC_ACPI_PM_TIMER_LENGTH;
	fadt[92] = PC_ACPI_GPE0_LENGTH;
	put(fadt + 96, 2, 0xfff); /* no C2 */
	put(fadt + 98, 2, 0xfff); /* no C3 */
	fadt[108] = PC_RTC_CENTURY;
	put(fadt + 109, 2, BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA);
	put(fadt + 112, 4, FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_RESET_REG_SUP);
	put_port(fadt + 116, PC_PORT_RESET, 1, 1);
	fadt[128] = PC_RESET_VALUE;
	fadt[131] = 3; /* minor version: 6.3 */
	put(fadt + 140, 8, dsdt);
	put_port(fadt + 148, PC_ACPI_PM1_EVENT, PC_ACPI_PM1_EVENT_LENGTH, 2);
	put_port(fadt + 172, PC_ACPI_PM1_CONTROL, PC_ACPI_PM1_CONTROL_LENGTH, 2);
	put_port(fadt + 208, PC_ACPI_PM_TIMER, PC_ACPI_PM_TIMER_LENGTH, 3);
	put_port(fadt + 220, PC_ACPI_GPE0, PC_ACPI_GPE0_LENGTH, 1);
	finish_table(fadt, "FACP", FADT_LENGTH, 6);
	return address_of(builder, fadt);
}

/* 5.2.12.5 */
static uint8_t *put_override(uint8_t *at, unsigned irq, unsigned gsi, unsigned flags)
{
	at[0] = 2;
	at[1] = 10;
	at[2] = 0; /* ISA */
	at[3] = (uint8_t)irq;
	put(at + 4, 4, gsi);
	put(at + 8, 2, flags);
	return at + 10;
}

/* 5.2.12 */
static uint64_t add_madt(struct builder *builder, unsigned cpus)
{
	/* Interrupts of PCI links and the SCI, which are not edge-triggered like ISA's. */
	static const uint8_t level[] = {5, PC_IRQ_SCI, 10, 11};
	size_t length = HEADER_LENGTH + 8 + 8 * (size_t)cpus + 12 + 10 * (1 + sizeof(level)) + 6;
	uint8_t *madt = reserve(builder, length, 16), *at;

	if (!madt)
		return 0;
	put(madt + 36, 4, PC_LAPIC);
	put(madt + 40, 4, 1); /* PCAT_COMPAT: there are 8259s to be masked */
	at = madt + HEADER_LENGTH + 8;
	for (unsigned cpu = 0; cpu < cpus; cpu++, at += 8) { /* processor local APIC, 5.2.12.2 */
		at[0] = 0;
		at[1] = 8;
		at[2] = (uint8_t)cpu;
		at[3] = (uint8_t)cpu;
		put(at + 4, 4, 1); /* enabled */
	}
	at[0] = 1; /* I/O APIC, 5.2.12.3 */
	at[1] = 12;
	at[2] = PC_IOAPIC_ID;
	put(at + 4, 4, PC_IOAPIC);
	put(at + 8, 4, 0); /* first global interrupt */
	at = put_override(at + 12, PC_IRQ_PIT, PC_GSI_PIT, 0);
	for (size_t i = 0; i < sizeof(level); i++)
		at = put_override(at, level[i], level[i], MADT_LEVEL_HIGH);
	at[0] = 4; /* local APIC NMI, 5.2.12.7: all processors, LINT1 */
	at[1] = 6;
	at[2] = 0xff;
	at[5] = 1;
	finish_table(madt, "APIC", length, 4);
	return address_of(builder, madt);
}

/* PCI Firmware 3.0 4.1.2: where the configuration spaces of the host bridge's buses are mapped; its _CRS says the same ones. */
static uint64_t add_mcfg(struct builder *builder)
{
	const size_t length = HEADER_LENGTH + 8 + 16;
	uint8_t *mcfg = reserve(builder, length, 16);

	if (!mcfg)
		return 0;
	put(mcfg + 44, 8, PC_MMCONFIG);
	put(mcfg + 52, 2, 0); /* segment */
	mcfg[54] = 0;         /* first and last bus */
	mcfg[55] = PC_MMCONFIG_LENGTH / (1 << 20) - 1;
	finish_table(mcfg, "MCFG", length, 1);
	return address_of(builder, mcfg);
}

/* RSDT (5.2.7) and XSDT (5.2.8): the same list with 4- and 8-byte entries. */
static uint64_t add_root(struct builder *builder, const char *signature, const uint64_t *tables, size_t count,
                         unsigned width)
{
	size_t length = HEADER_LENGTH + count * width;
	uint8_t *root = reserve(builder, length, 16);

	if (!root)
		return 0;
	for (size_t i = 0; i < count; i++)
		put(root + HEADER_LENGTH + i * width, width, tables[i]);
	finish_table(root, signature, length, 1);
	return address_of(builder, root);
}

size_t acpi_build(uint8_t *buffer, size_t capacity, uint64_t address, unsigned cpus)
{
	struct builder builder = {.buffer = buffer, .capacity = capacity, .address = address};
	uint8_t *rsdp = reserve(&builder, RSDP_LENGTH, 16);
	uint64_t facs = add_facs(&builder);
	uint64_t dsdt = add_dsdt(&builder);
	uint64_t tables[] = {add_fadt(&builder, facs, dsdt), add_madt(&builder, cpus), add_mcfg(&builder)};
	const size_t count = sizeof(tables) / sizeof(tables[0]);
	uint64_t rsdt = add_root(&builder, "RSDT", tables, count, 4);
	uint64_t xsdt = add_root(&builder, "XSDT", tables, count, 8);

	if (builder.full || !rsdp)
		return 0;
	/* 5.2.5.3; the first checksum covers the 20 bytes of ACPI 1.0. */
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "RING3 ", 6);
	rsdp[15] = 2;
	put(rsdp + 16, 4, rsdt);
	put(rsdp + 20, 4, RSDP_LENGTH);
	put(rsdp + 24, 8, xsdt);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, RSDP_LENGTH);
	return builder.used;
}
