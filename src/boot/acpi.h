/*
 * The ACPI tables (ACPI 6.3): RSDP, XSDT and RSDT, FADT, FACS, MADT, MCFG, DSDT.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Enough for all tables of a machine with 16 CPUs. */
#define ACPI_TABLES_MAX 0x8000

/*
 * Writes the tables as they look at guest-physical `address` (a multiple of 64, below 4 GiB); the RSDP comes first.
 * Returns how many bytes they take, or 0 when `capacity` is too small.
 */
size_t acpi_build(uint8_t *buffer, size_t capacity, uint64_t address, unsigned cpus);
