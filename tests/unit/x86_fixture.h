/*
 * A vCPU with memory and without a machine, for tests of x86/: builds tables, runs an operation, tells what it raised.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/paging.h"
#include "x86/segments.h"
#include "x86/system.h"

struct fixture {
	struct vcpu vcpu;
	struct memory memory;
	struct cpu_model model;
};

/* What an operation did: -1, or the vector that it raised; error and address are then in vcpu.exception. */
#define RAISED(f, operation)                                                                                           \
	({                                                                                                             \
		jmp_buf target_;                                                                                       \
		volatile int raised_ = -1;                                                                             \
		(f)->vcpu.fault_target = &target_;                                                                     \
		if (_setjmp(target_) == 0) {                                                                           \
			operation;                                                                                     \
		} else                                                                                                 \
			raised_ = (f)->vcpu.exception.vector;                                                          \
		(f)->vcpu.fault_target = NULL;                                                                         \
		(int)raised_;                                                                                          \
	})

#define ASSERT_FINE(f, operation) assert_int_equal(RAISED(f, operation), -1)
#define ASSERT_FAULT(f, vector_, error_, operation)                                                                    \
	do {                                                                                                           \
		assert_int_equal(RAISED(f, operation), vector_);                                                       \
		assert_int_equal((f)->vcpu.exception.error, error_);                                                   \
	} while (0)

static inline struct fixture *fixture_create(bool amd)
{
	struct fixture *f = aligned_alloc(64, (sizeof(*f) + 63) & ~63ul);
	assert_non_null(f);
	memset(f, 0, sizeof(*f));
	assert_int_equal(memory_create(&f->memory, 16 << 20), 0);
	f->vcpu.memory = &f->memory;
	f->model.physical_bits = 40;
	f->model.amd = amd;
	f->model.nx = f->model.page1g = f->model.smep = f->model.smap = f->model.umip = f->model.pcid = true;
	f->model.fsgsbase = f->model.invpcid = true;
	f->model.xcr0_supported = XSTATE_X87 | XSTATE_SSE | XSTATE_AVX | XSTATE_AVX512;
	f->model.cpu_count = 1;
	f->vcpu.model = &f->model;
	assert_int_equal(mmu_create(&f->vcpu), 0);
	cpu_reset(&f->vcpu, true);
	return f;
}

static inline int fixture_destroy(void **state)
{
	struct fixture *f = *state;
	mmu_destroy(&f->vcpu);
	memory_destroy(&f->memory);
	free(f);
	return 0;
}

static inline void put8(struct fixture *f, uint64_t at, uint8_t value)
{
	assert_int_equal(memory_write(&f->memory, at, &value, 1), 0);
}

static inline void put16(struct fixture *f, uint64_t at, uint16_t value)
{
	assert_int_equal(memory_write(&f->memory, at, &value, 2), 0);
}

static inline void put32(struct fixture *f, uint64_t at, uint32_t value)
{
	assert_int_equal(memory_write(&f->memory, at, &value, 4), 0);
}

static inline void put64(struct fixture *f, uint64_t at, uint64_t value)
{
	assert_int_equal(memory_write(&f->memory, at, &value, 8), 0);
}

static inline uint64_t get(struct fixture *f, uint64_t at, unsigned size)
{
	uint64_t value = 0;
	assert_int_equal(memory_read(&f->memory, at, &value, size), 0);
	return value;
}

/* Stands in for the machine where it is not linked in: memory-mapped reads give ones. */
__attribute__((weak)) uint64_t vcpu_mmio_read(struct vcpu *vcpu, uint64_t physical, unsigned size)
{
	return ~0ull >> (64 - 8 * size);
}

__attribute__((weak)) void vcpu_mmio_write(struct vcpu *vcpu, uint64_t physical, unsigned size, uint64_t value) {}

__attribute__((weak)) void vcpu_kick(struct vcpu *vcpu, uint32_t attention)
{
	atomic_fetch_or(&vcpu->attention, attention);
}
