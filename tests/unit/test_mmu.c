/* The software TLB and the checked accesses: views, invalidation, page crossing, MMIO, watches, writes to code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "devices/bus.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/exceptions.h"

#define TABLES  0x10000ull
#define PRESENT 1u
#define WRITE   2u
#define USER    4u
#define LARGE   0x80u
#define GLOBAL  0x100u
#define NX      (1ull << 63)
#define MMIO    0xfe000000ull

struct fixture {
	struct vcpu vcpu;
	struct memory memory;
	struct bus bus;
	jmp_buf fault;
	uint64_t device_offset, device_value;
	unsigned device_accesses;
};

static uint64_t device_read(void *device, uint64_t offset, unsigned size)
{
	struct fixture *f = device;

	f->device_accesses++;
	f->device_offset = offset;
	return 0x1122334455667788ull;
}

static void device_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct fixture *f = device;

	f->device_accesses++;
	f->device_offset = offset;
	f->device_value = value;
}

static const struct bus_ops device = {.read = device_read, .write = device_write, .max_size = 8};

static void put(struct fixture *f, uint64_t physical, uint64_t value)
{
	assert_int_equal(memory_write(&f->memory, physical, &value, 8), 0);
}

/* One page table: linear 0-2 MiB; linear 2-4 MiB is one large page at 2 MiB. */
static void map(struct fixture *f, uint64_t linear, uint64_t physical, uint64_t flags)
{
	put(f, TABLES + 0x3000 + (linear >> 12) * 8, physical | flags);
}

static int setup(void **state)
{
	struct fixture *f = aligned_alloc(64, (sizeof(*f) + 63) & ~63ul);

	assert_non_null(f);
	memset(f, 0, sizeof(*f));
	assert_int_equal(memory_create(&f->memory, 8 << 20), 0);
	bus_init(&f->bus, NULL);
	assert_int_equal(bus_add_mmio(&f->bus, MMIO, 0x1000, "test", &device, f), 0);
	f->vcpu.memory = &f->memory;
	f->vcpu.bus = &f->bus;
	assert_int_equal(mmu_create(&f->vcpu), 0);
	cpu_reset(&f->vcpu, true);
	f->vcpu.fault_target = &f->fault;
	put(f, TABLES, (TABLES + 0x1000) | PRESENT | WRITE | USER);
	put(f, TABLES + 0x1000, (TABLES + 0x2000) | PRESENT | WRITE | USER);
	put(f, TABLES + 0x2000, (TABLES + 0x3000) | PRESENT | WRITE | USER);
	put(f, TABLES + 0x2008, 0x200000 | PRESENT | WRITE | USER | LARGE);
	struct cpu_state *s = &f->vcpu.state;
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_PGE;
	s->cr0 = CR0_PE | CR0_PG | CR0_WP;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE;
	mmu_flush(&f->vcpu);
	mmu_update_view(&f->vcpu);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	mmu_destroy(&f->vcpu);
	memory_destroy(&f->memory);
	free(f);
	return 0;
}

/* Evaluates `expression`; the vector that it raised, or -1. */
#define FAULT(f, expression) (_setjmp((f)->fault) ? (int)(f)->vcpu.exception.vector : ((void)(expression), -1))

static void set_cpl(struct fixture *f, unsigned cpl)
{
	f->vcpu.state.segment[SEG_SS].access =
	    (f->vcpu.state.segment[SEG_SS].access & ~SEG_DPL_MASK) | cpl << SEG_DPL_SHIFT;
	mmu_update_view(&f->vcpu);
}

static void test_read_write(void **state)
{
	struct fixture *f = *state;

	map(f, 0x1000, 0x101000, PRESENT | WRITE);
	map(f, 0x2000, 0x105000, PRESENT | WRITE);
	mmu_write(&f->vcpu, 0x1ffc, 8, 0x8877665544332211);
	assert_int_equal(mmu_read(&f->vcpu, 0x1ffc, 8), 0x8877665544332211);
	assert_int_equal(mmu_read(&f->vcpu, 0x1fff, 2), 0x5544);
	uint32_t half;
	memory_read(&f->memory, 0x105000, &half, 4);
	assert_int_equal(half, 0x88776655);
	uint8_t bytes[100], back[100];
	for (unsigned i = 0; i < 100; i++)
		bytes[i] = (uint8_t)i;
	mmu_write_bytes(&f->vcpu, 0x1fc0, bytes, 100);
	mmu_read_bytes(&f->vcpu, 0x1fc0, back, 100);
	assert_memory_equal(bytes, back, 100);
	assert_non_null(mmu_host_pointer(&f->vcpu, 0x1000, 4096, MMU_READ));
	assert_null(mmu_host_pointer(&f->vcpu, 0x1001, 4096, MMU_READ));
}

static void test_faults(void **state)
{
	struct fixture *f = *state;

	map(f, 0x1000, 0x101000, PRESENT | WRITE);
	assert_int_equal(FAULT(f, mmu_write(&f->vcpu, 0x1ffc, 8, ~0ull)), VECTOR_PF);
	assert_int_equal(f->vcpu.exception.address, 0x2000);
	assert_int_equal(f->vcpu.exception.error, 2);
	/* Nothing was written to the first page. */
	assert_int_equal(mmu_read(&f->vcpu, 0x1ffc, 4), 0);
	assert_int_equal(FAULT(f, mmu_probe_write(&f->vcpu, 0x1fff, 2)), VECTOR_PF);
	map(f, 0x2000, 0x102000, PRESENT);
	assert_int_equal(FAULT(f, mmu_write(&f->vcpu, 0x2000, 1, 0)), VECTOR_PF);
	assert_int_equal(f->vcpu.exception.error, 3);
	set_cpl(f, 3);
	assert_int_equal(FAULT(f, mmu_read(&f->vcpu, 0x1000, 1)), VECTOR_PF);
	assert_int_equal(f->vcpu.exception.error, 5);
	assert_int_equal(FAULT(f, mmu_read_system(&f->vcpu, 0x1000, 1)), -1);
	map(f, 0x3000, 0x103000, PRESENT | USER | NX);
	assert_int_equal(FAULT(f, mmu_translate(&f->vcpu, 0x3000, MMU_EXECUTE, MMU_USER)), VECTOR_PF);
	assert_int_equal(f->vcpu.exception.error, 0x15);
	assert_int_equal(FAULT(f, mmu_read(&f->vcpu, 0x800000000000ull, 1)), VECTOR_GP);
}

static void test_smap(void **state)
{
	struct fixture *f = *state;

	map(f, 0x1000, 0x101000, PRESENT | WRITE | USER);
	f->vcpu.state.cr4 |= CR4_SMAP;
	mmu_update_view(&f->vcpu);
	assert_int_equal(f->vcpu.mmu.view, MMU_SUPERVISOR);
	assert_int_equal(FAULT(f, mmu_read(&f->vcpu, 0x1000, 1)), VECTOR_PF);
	f->vcpu.state.rflags |= FLAG_AC;
	mmu_update_view(&f->vcpu);
	assert_int_equal(FAULT(f, mmu_read(&f->vcpu, 0x1000, 1)), -1);
	assert_int_equal(FAULT(f, mmu_read_system(&f->vcpu, 0x1000, 1)), VECTOR_PF);
	set_cpl(f, 3);
	assert_int_equal(f->vcpu.mmu.view, MMU_USER);
	assert_int_equal(FAULT(f, mmu_read(&f->vcpu, 0x1000, 1)), -1);
}

static void test_invalidation(void **state)
{
	struct fixture *f = *state;
	uint64_t physical;

	map(f, 0x1000, 0x101000, PRESENT | WRITE | GLOBAL);
	map(f, 0x2000, 0x102000, PRESENT | WRITE);
	mmu_read(&f->vcpu, 0x1000, 1);
	mmu_read(&f->vcpu, 0x2000, 1);
	mmu_read(&f->vcpu, 0x211000, 1);
	mmu_read(&f->vcpu, 0x3ff000, 1);
	map(f, 0x1000, 0x111000, PRESENT | WRITE | GLOBAL);
	map(f, 0x2000, 0x112000, PRESENT | WRITE);
	put(f, TABLES + 0x2008, 0x400000 | PRESENT | WRITE | LARGE);
	/* Stale as on a processor, until told. */
	assert_int_equal(mmu_translate(&f->vcpu, 0x1000, MMU_READ, f->vcpu.mmu.view), 0x101000);
	assert_int_equal(mmu_translate(&f->vcpu, 0x2000, MMU_READ, f->vcpu.mmu.view), 0x102000);
	uint64_t epoch = f->vcpu.mmu.epoch;
	mmu_flush_nonglobal(&f->vcpu);
	assert_int_not_equal(epoch, f->vcpu.mmu.epoch);
	assert_int_equal(mmu_translate(&f->vcpu, 0x1000, MMU_READ, f->vcpu.mmu.view), 0x101000);
	assert_int_equal(mmu_translate(&f->vcpu, 0x2000, MMU_READ, f->vcpu.mmu.view), 0x112000);
	mmu_flush_page(&f->vcpu, 0x1234);
	assert_int_equal(mmu_translate(&f->vcpu, 0x1000, MMU_READ, f->vcpu.mmu.view), 0x111000);
	/* INVLPG of one byte of a large page drops all of it. */
	assert_int_equal(mmu_translate(&f->vcpu, 0x211000, MMU_READ, f->vcpu.mmu.view), 0x411000);
	mmu_read(&f->vcpu, 0x3ff000, 1);
	put(f, TABLES + 0x2008, 0x600000 | PRESENT | WRITE | LARGE);
	assert_int_equal(mmu_translate(&f->vcpu, 0x3ff000, MMU_READ, f->vcpu.mmu.view), 0x5ff000);
	mmu_flush_page(&f->vcpu, 0x200000);
	assert_int_equal(mmu_translate(&f->vcpu, 0x3ff000, MMU_READ, f->vcpu.mmu.view), 0x7ff000);
	map(f, 0x1000, 0x101000, PRESENT | WRITE | GLOBAL);
	mmu_flush(&f->vcpu);
	assert_int_equal(mmu_translate(&f->vcpu, 0x1000, MMU_READ, f->vcpu.mmu.view), 0x101000);
	assert_true(mmu_translate_debug(&f->vcpu, 0x1004, &physical));
	assert_int_equal(physical, 0x101004);
	assert_false(mmu_translate_debug(&f->vcpu, 0x5000, &physical));
}

static void test_empty_slots(void **state)
{
	struct fixture *f = *state;

	/* The XOR form of the look-up must not hit an empty slot, whatever the address. */
	for (unsigned i = 0; i < MMU_TLB_ENTRIES; i++) {
		const struct mmu_tlb_entry *e = &f->vcpu.mmu.tlb[MMU_USER][MMU_READ][i];
		assert_true((((uint64_t)i << 12) ^ e->tag) >= MEMORY_PAGE_SIZE);
	}
}

static void test_mmio(void **state)
{
	struct fixture *f = *state;

	map(f, 0x1000, MMIO, PRESENT | WRITE);
	assert_int_equal(mmu_read(&f->vcpu, 0x1010, 4), 0x55667788);
	assert_int_equal(f->device_offset, 0x10);
	mmu_write(&f->vcpu, 0x1020, 2, 0xabcd);
	assert_int_equal(f->device_value, 0xabcd);
	assert_int_equal(f->device_accesses, 2);
	assert_null(mmu_host_pointer(&f->vcpu, 0x1000, 4, MMU_READ));
	assert_false(mmu_debug_read(&f->vcpu, 0x1000, &(uint32_t){0}, 4));
	assert_int_equal(f->device_accesses, 2);
	uint8_t bytes[16];
	mmu_read_bytes(&f->vcpu, 0x1000, bytes, 16);
	assert_int_equal(f->device_accesses, 4);
}

static void test_code_and_watches(void **state)
{
	struct fixture *f = *state;
	struct vcpu *vcpu = &f->vcpu;

	map(f, 0x1000, 0x101000, PRESENT | WRITE);
	uint32_t generation = memory_watch_code(&f->memory, 0x101000);
	mmu_write(vcpu, 0x1000, 4, 1);
	assert_true(vcpu->mmu.stop);
	assert_int_not_equal(generation, memory_code_generation(&f->memory, 0x101000));
	vcpu->mmu.stop = false;
	vcpu->debug.watchpoint_count = 1;
	vcpu->debug.watchpoint[0].address = 0x1010;
	vcpu->debug.watchpoint[0].length = 4;
	vcpu->debug.watchpoint[0].kinds = 2;
	mmu_update_watches(vcpu);
	assert_null(mmu_host_pointer(vcpu, 0x1000, 4, MMU_WRITE));
	mmu_read(vcpu, 0x1010, 4);
	mmu_write(vcpu, 0x100c, 4, 0);
	assert_false(vcpu->mmu.stop);
	mmu_write(vcpu, 0x100d, 4, 0);
	assert_true(vcpu->mmu.stop && vcpu->mmu.watchpoint_hit);
	assert_int_equal(vcpu->debug.hit_address, 0x1010);
	vcpu->debug.watchpoint_count = 0;
	mmu_update_watches(vcpu);
	assert_non_null(mmu_host_pointer(vcpu, 0x1000, 4, MMU_WRITE));
	/* DR1: reads and writes of 8 bytes. */
	vcpu->mmu.stop = false;
	vcpu->state.dr[1] = 0x1020;
	vcpu->state.dr[7] = 0x400 | 1u << 2 | 3u << 20 | 2u << 22;
	mmu_update_watches(vcpu);
	mmu_read(vcpu, 0x1028, 1);
	assert_int_equal(vcpu->state.pending_debug, 0);
	mmu_read(vcpu, 0x1027, 1);
	assert_int_equal(vcpu->state.pending_debug, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	    T(test_read_write), T(test_faults),           T(test_smap), T(test_invalidation), T(test_empty_slots),
	    T(test_mmio),       T(test_code_and_watches),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
