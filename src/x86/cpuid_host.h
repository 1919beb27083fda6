/*
 * Where a CPU model comes from: the host's CPUID, or in tests a table of another processor's.
 */
#pragma once

#include <stdint.h>

struct cpu_model;

struct cpuid_host {
	/* EAX, EBX, ECX, EDX; zeros above the last leaf. */
	void (*cpuid)(void *owner, uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);
	void *owner;
	uint64_t xcr0; /* what the host kernel enables */
};

/* cpu_model_create() with another source. */
int cpu_model_create_from(struct cpu_model *model, const struct cpuid_host *host, const char *specification,
                          unsigned cpu_count, uint64_t tsc_khz, char *why);
