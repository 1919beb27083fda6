/* E820 and ACPI tables, and the processor's state at the entry. */
#include "boot/acpi.h"
#include "boot/e820.h"
#include "boot_test.h"

static void check_map(uint64_t size)
{
	struct memory memory;
	struct e820 map;
	uint64_t ram = 0, end = 0;

	assert_int_equal(memory_create(&memory, size), 0);
	e820_build(&map, &memory);
	for (unsigned i = 0; i < map.count; i++) {
		const struct e820_entry *entry = &map.entry[i];
		assert_true(entry->address >= end);
		assert_true(entry->length > 0);
		end = entry->address + entry->length;
		if (entry->type != E820_RAM)
			continue;
		ram += entry->length;
		assert_non_null(memory_pointer(&memory, entry->address, entry->length));
	}
	/* All RAM, but for the legacy area from the EBDA to 1 MiB. */
	assert_int_equal(ram, size - (0x100000 - PC_EBDA));
	assert_true(e820_is_ram(&map, 0, PC_EBDA));
	assert_false(e820_is_ram(&map, 0, PC_EBDA + 1));
	assert_false(e820_is_ram(&map, PC_EBDA, 1));
	assert_false(e820_is_ram(&map, 1, UINT64_MAX));
	memory_destroy(&memory);
}

static void memory_map(void **state)
{
	check_map(1u << 20);
	check_map(512u << 20);
	check_map(3ull << 30);
	check_map((3ull << 30) + 4096);
	check_map(8ull << 30);
}

static uint8_t sum(const uint8_t *bytes, size_t length)
{
	uint8_t total = 0;

	while (length--)
		total += *bytes++;
	return total;
}

#define BASE 0xe0000u

/* The table at a guest address, checksum checked. */
static const uint8_t *table_at(const uint8_t *tables, size_t used, uint64_t address, const char *signature)
{
	assert_true(address >= BASE && address - BASE <= used - 36);
	const uint8_t *table = tables + (address - BASE);
	assert_memory_equal(table, signature, 4);
	assert_true(get32(table + 4) <= used - (address - BASE));
	assert_int_equal(sum(table, get32(table + 4)), 0);
	return table;
}

/* The host bridge's buses in the DSDT: a WordBusNumber descriptor (ACPI 6.3 6.4.3.5.3). */
static void bus_range(const uint8_t *dsdt, unsigned *first, unsigned *last)
{
	static const uint8_t descriptor[] = {0x88, 0x0d, 0x00, 0x02};
	const uint8_t *at = memmem(dsdt, get32(dsdt + 4), descriptor, sizeof(descriptor));

	assert_non_null(at);
	*first = get16(at + 8);
	*last = get16(at + 10);
}

static void acpi_tables(void **state)
{
	static uint8_t tables[ACPI_TABLES_MAX];

	for (unsigned cpus = 1; cpus <= 16; cpus++) {
		size_t used = acpi_build(tables, sizeof(tables), BASE, cpus);
		assert_in_range(used, 1000, PC_BIOS_AREA_LENGTH);
		assert_memory_equal(tables, "RSD PTR ", 8);
		assert_int_equal(sum(tables, 20), 0);
		assert_int_equal(sum(tables, 36), 0);
		assert_int_equal(tables[15], 2);
		const uint8_t *rsdt = table_at(tables, used, get32(tables + 16), "RSDT");
		const uint8_t *xsdt = table_at(tables, used, get64(tables + 24), "XSDT");
		assert_int_equal((get32(rsdt + 4) - 36) / 4, (get32(xsdt + 4) - 36) / 8);
		assert_int_equal(get32(rsdt + 36), get64(xsdt + 36));

		const uint8_t *fadt = table_at(tables, used, get64(xsdt + 36), "FACP");
		const uint8_t *dsdt = table_at(tables, used, get64(fadt + 140), "DSDT");
		assert_int_equal(get64(fadt + 140), get32(fadt + 40));
		uint64_t facs = get32(fadt + 36);
		assert_int_equal(facs % 64, 0);
		assert_memory_equal(tables + (facs - BASE), "FACS", 4);
		assert_int_equal(get16(fadt + 46), 9);
		assert_int_equal(get64(fadt + 116 + 4), 0xcf9);

		const uint8_t *madt = table_at(tables, used, get64(xsdt + 44), "APIC");
		unsigned processors = 0, ioapics = 0, overrides = 0, nmis = 0;
		for (const uint8_t *at = madt + 44; at < madt + get32(madt + 4); at += at[1]) {
			assert_true(at[1] >= 2 && at + at[1] <= madt + get32(madt + 4));
			if (at[0] == 0)
				assert_int_equal(at[3], processors++);
			ioapics += at[0] == 1;
			overrides += at[0] == 2;
			nmis += at[0] == 4;
		}
		assert_int_equal(processors, cpus);
		const uint8_t *mcfg = table_at(tables, used, get64(xsdt + 52), "MCFG");
		assert_int_equal(get32(mcfg + 4), 60);
		assert_int_equal(get64(mcfg + 44), PC_MMCONFIG);
		unsigned first, last;
		bus_range(dsdt, &first, &last);
		assert_int_equal(mcfg[54], first);
		assert_int_equal(mcfg[55], last);
		assert_int_equal(ioapics, 1);
		assert_int_equal(overrides, 5);
		assert_int_equal(nmis, 1);
	}
}

/* Whatever the room, nothing is written beyond it. */
static void acpi_no_room(void **state)
{
	static uint8_t tables[ACPI_TABLES_MAX];
	size_t used = acpi_build(tables, sizeof(tables), BASE, 1);

	for (size_t room = 0; room < used; room += 37) {
		uint8_t *exact = malloc(room + 1);
		assert_non_null(exact);
		exact[room] = 0xa5;
		assert_int_equal(acpi_build(exact, room, BASE, 1), 0);
		assert_int_equal(exact[room], 0xa5);
		free(exact);
	}
	assert_int_equal(acpi_build(tables, used, BASE, 1), used);
}

static void entry_state(void **state)
{
	struct boot_entry entry = {.mode = BOOT_MODE_LONG64,
	                           .rip = 0x1000200,
	                           .rsi = 0x7000,
	                           .cr3 = 0x9000,
	                           .gdt = 0x1000,
	                           .gdt_limit = 39,
	                           .code = 0x10,
	                           .data = 0x18};
	struct cpu_state cpu;

	memset(&cpu, 0x5a, sizeof(cpu));
	boot_apply(&entry, &cpu);
	assert_true(cpu_64bit_code(&cpu) && cpu_paging(&cpu) && cpu_protected(&cpu));
	assert_int_equal(cpu_cpl(&cpu), 0);
	assert_int_equal(cpu.rip, 0x1000200);
	assert_int_equal(cpu.gpr[RSI], 0x7000);
	assert_int_equal(cpu.gpr[RBX], 0);
	assert_int_equal(cpu.rflags, 2);
	assert_int_equal(cpu.segment[SEG_CS].selector, 0x10);
	assert_int_equal(cpu.segment[SEG_SS].selector, 0x18);
	assert_int_equal(cpu.cr4, CR4_PAE);
	assert_int_equal(cpu.activity, ACTIVITY_RUNNING);

	entry.mode = BOOT_MODE_FLAT32;
	boot_apply(&entry, &cpu);
	assert_false(cpu_paging(&cpu) || cpu_long_mode(&cpu));
	assert_true(cpu_protected(&cpu));
	assert_true(cpu.segment[SEG_CS].access & SEG_DB);
	assert_int_equal(cpu.segment[SEG_CS].limit, 0xffffffff);
	assert_int_equal(cpu.cr4, 0);
}

/* The memory type ranges as the manual reads them: RAM write-back, the hole not. */
static void memory_types(void **state)
{
	struct cpu_state cpu = {0};
	uint64_t base, mask;

	boot_prepare_cpu(&cpu, 46);
	base = cpu.msr.mtrr_physical_base[0];
	mask = cpu.msr.mtrr_physical_mask[0];
	assert_int_equal(cpu.msr.mtrr_def_type, 0xc06);
	assert_int_equal(mask >> 46, 0);
	assert_int_equal(0xc0000000 & mask, base & mask & ~0xfffull);
	assert_int_equal(0xfee00000 & mask & ~0xfffull, base & mask & ~0xfffull);
	assert_int_not_equal(0xbffff000 & mask & ~0xfffull, base & mask & ~0xfffull);
	assert_int_not_equal(0x100000000 & mask & ~0xfffull, base & mask & ~0xfffull);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memory_map),  cmocka_unit_test(acpi_tables),  cmocka_unit_test(acpi_no_room),
	    cmocka_unit_test(entry_state), cmocka_unit_test(memory_types),
	};

	return cmocka_run_group_tests_name("boot_tables", tests, NULL, NULL);
}
