/*
 * The page walk in every mode: sizes, reserved bits, rights, accessed and dirty bits, error codes.
 */
#include <pthread.h>

#include "x86_fixture.h"

#define P  0x001ull
#define RW 0x002ull
#define US 0x004ull
#define A  0x020ull
#define D  0x040ull
#define PS 0x080ull
#define G  0x100ull
#define NX (1ull << 63)

#define ROOT 0x10000ull
#define PDPT 0x11000ull
#define PD   0x12000ull
#define PT   0x13000ull
#define PAGE 0x20000ull

static int setup(void **state)
{
	*state = fixture_create(true);
	return 0;
}

/* 4 levels: linear page n of the first 2 MiB is PT's entry n. All levels allow everything. */
static struct fixture *setup_4level(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	s->cr0 = CR0_PE | CR0_PG | CR0_WP;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE;
	s->cr3 = ROOT;
	s->segment[SEG_CS].access = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_L;
	put64(f, ROOT, PDPT | P | RW | US);
	put64(f, PDPT, PD | P | RW | US);
	put64(f, PD, PT | P | RW | US);
	put64(f, PT + 8, PAGE | P | RW | US);
	mmu_flush(&f->vcpu);
	mmu_update_view(&f->vcpu);
	return f;
}

static void assert_walk(struct fixture *f, uint64_t linear, enum mmu_access access, enum mmu_view view,
                        uint64_t physical)
{
	struct paging_result r;
	assert_true(paging_walk(&f->vcpu, linear, access, view, false, &r));
	assert_int_equal(r.physical, physical);
}

static void assert_no_walk(struct fixture *f, uint64_t linear, enum mmu_access access, enum mmu_view view,
                           uint32_t error)
{
	struct paging_result r;
	assert_false(paging_walk(&f->vcpu, linear, access, view, false, &r));
	assert_int_equal(r.error, error);
}

static void test_off(void **state)
{
	struct fixture *f = *state;
	assert_walk(f, 0x12345, MMU_WRITE, MMU_USER, 0x12345);
}

static void test_4level(void **state)
{
	struct fixture *f = setup_4level(state);
	assert_walk(f, 0x1234, MMU_READ, MMU_USER, PAGE + 0x234);
	assert_int_equal(get(f, PT + 8, 8), PAGE | P | RW | US | A);
	assert_int_equal(get(f, PD, 8) & A, A);
	assert_int_equal(get(f, ROOT, 8) & A, A);
	assert_walk(f, 0x1234, MMU_WRITE, MMU_USER, PAGE + 0x234);
	assert_int_equal(get(f, PT + 8, 8), PAGE | P | RW | US | A | D);
	assert_no_walk(f, 0x2000, MMU_READ, MMU_USER, PF_USER);
	assert_no_walk(f, 0x2000, MMU_WRITE, MMU_SUPERVISOR, PF_WRITE);
	assert_no_walk(f, 0x2000, MMU_EXECUTE, MMU_SUPERVISOR, PF_FETCH);
	assert_no_walk(f, 0x8000000000, MMU_READ, MMU_SUPERVISOR, 0);
}

static void test_writable_only_when_dirty(void **state)
{
	struct fixture *f = setup_4level(state);
	struct paging_result r;
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_READ, MMU_USER, false, &r));
	assert_false(r.writable);
	assert_true(r.readable);
	assert_true(r.executable);
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_WRITE, MMU_USER, false, &r));
	assert_true(r.writable);
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_READ, MMU_USER, false, &r));
	assert_true(r.writable);
}

static void test_debug_changes_nothing(void **state)
{
	struct fixture *f = setup_4level(state);
	struct paging_result r;
	put64(f, PT + 8, PAGE | P);
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_WRITE, MMU_USER, true, &r));
	assert_int_equal(get(f, PT + 8, 8), PAGE | P);
	assert_int_equal(get(f, ROOT, 8), PDPT | P | RW | US);
}

static void test_large_pages(void **state)
{
	struct fixture *f = setup_4level(state);
	struct paging_result r;
	put64(f, PD + 8, 0x200000 | PS | P | RW | US);
	assert_true(paging_walk(&f->vcpu, 0x2abcde, MMU_READ, MMU_USER, false, &r));
	assert_int_equal(r.physical, 0x2abcde);
	assert_int_equal(r.page_size, 2 << 20);
	put64(f, PD + 8, 0x200000 | 0x1000 | PS | P | RW | US); /* PAT */
	assert_walk(f, 0x2abcde, MMU_READ, MMU_USER, 0x2abcde);
	put64(f, PD + 8, 0x202000 | PS | P | RW | US);
	assert_no_walk(f, 0x2abcde, MMU_READ, MMU_USER, PF_USER | PF_PRESENT | PF_RESERVED);

	put64(f, PDPT + 8, 0x40000000 | PS | P | RW | US);
	assert_true(paging_walk(&f->vcpu, 0x40123456, MMU_READ, MMU_USER, false, &r));
	assert_int_equal(r.physical, 0x40123456);
	assert_int_equal(r.page_size, 1 << 30);
	put64(f, PDPT + 8, 0x40200000 | PS | P | RW | US);
	assert_no_walk(f, 0x40123456, MMU_READ, MMU_SUPERVISOR_AC, PF_PRESENT | PF_RESERVED);
	put64(f, PDPT + 8, 0x40000000 | PS | P | RW | US);
	f->model.page1g = false;
	assert_no_walk(f, 0x40123456, MMU_READ, MMU_SUPERVISOR_AC, PF_PRESENT | PF_RESERVED);
	put64(f, ROOT, PDPT | PS | P | RW | US);
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR_AC, PF_PRESENT | PF_RESERVED);
}

static void test_reserved(void **state)
{
	struct fixture *f = setup_4level(state);
	put64(f, PT + 8, PAGE | P | RW | US | 1ull << 40);
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_USER, PF_USER | PF_WRITE | PF_PRESENT | PF_RESERVED);
	f->model.physical_bits = 41;
	assert_walk(f, 0x1000, MMU_READ, MMU_USER, PAGE | 1ull << 40);
	put64(f, PT + 8, PAGE | P | RW | US | 1ull << 51);
	assert_no_walk(f, 0x1000, MMU_READ, MMU_USER, PF_USER | PF_PRESENT | PF_RESERVED);
	put64(f, PT + 8, PAGE | P | RW | US | 0x3ffull << 52); /* ignored bits */
	assert_walk(f, 0x1000, MMU_READ, MMU_USER, PAGE);
	put64(f, PT + 8, PAGE | P | NX);
	f->vcpu.state.efer &= ~EFER_NXE;
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PF_PRESENT | PF_RESERVED);
	put64(f, PT + 8, 1ull << 40); /* not present: nothing is looked at */
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, 0);
}

static void test_rights(void **state)
{
	struct fixture *f = setup_4level(state);
	struct cpu_state *s = &f->vcpu.state;

	put64(f, PT + 8, PAGE | P | RW); /* supervisor page */
	assert_no_walk(f, 0x1000, MMU_READ, MMU_USER, PF_USER | PF_PRESENT);
	assert_walk(f, 0x1000, MMU_WRITE, MMU_SUPERVISOR, PAGE);

	put64(f, PT + 8, PAGE | P | US); /* read-only */
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_USER, PF_USER | PF_PRESENT | PF_WRITE);
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_SUPERVISOR_AC, PF_PRESENT | PF_WRITE);
	s->cr0 &= ~CR0_WP;
	assert_walk(f, 0x1000, MMU_WRITE, MMU_SUPERVISOR_AC, PAGE);
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_USER, PF_USER | PF_PRESENT | PF_WRITE);
	s->cr0 |= CR0_WP;

	put64(f, PT + 8, PAGE | P | RW | US | NX);
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_USER, PF_USER | PF_PRESENT | PF_FETCH);
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_SUPERVISOR, PF_PRESENT | PF_FETCH);

	put64(f, PT + 8, PAGE | P | RW | US);
	assert_walk(f, 0x1000, MMU_EXECUTE, MMU_SUPERVISOR, PAGE);
	s->cr4 |= CR4_SMEP;
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_SUPERVISOR, PF_PRESENT | PF_FETCH);
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_SUPERVISOR_AC, PF_PRESENT | PF_FETCH);
	assert_walk(f, 0x1000, MMU_EXECUTE, MMU_USER, PAGE);

	s->cr4 |= CR4_SMAP;
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PF_PRESENT);
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_SUPERVISOR, PF_PRESENT | PF_WRITE);
	assert_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR_AC, PAGE);
	assert_walk(f, 0x1000, MMU_READ, MMU_USER, PAGE);
	/* SMAP and SMEP look at U/S of all levels together. */
	put64(f, PD, PT | P | RW);
	assert_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PAGE);
	assert_walk(f, 0x1000, MMU_EXECUTE, MMU_SUPERVISOR, PAGE);
}

static void test_upper_levels_restrict(void **state)
{
	struct fixture *f = setup_4level(state);
	put64(f, PDPT, PD | P | US);
	assert_no_walk(f, 0x1000, MMU_WRITE, MMU_USER, PF_USER | PF_PRESENT | PF_WRITE);
	put64(f, PDPT, PD | P | RW | US | NX);
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_USER, PF_USER | PF_PRESENT | PF_FETCH);
}

static void test_global(void **state)
{
	struct fixture *f = setup_4level(state);
	struct paging_result r;
	put64(f, PT + 8, PAGE | P | RW | US | G);
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_READ, MMU_USER, false, &r));
	assert_false(r.global);
	f->vcpu.state.cr4 |= CR4_PGE;
	assert_true(paging_walk(&f->vcpu, 0x1000, MMU_READ, MMU_USER, false, &r));
	assert_true(r.global);
}

static void test_table_outside_ram(void **state)
{
	struct fixture *f = setup_4level(state);
	put64(f, PD, 0xf0000000 | P | RW | US); /* reads as ones: present, reserved bits */
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PF_PRESENT | PF_RESERVED);
	f->vcpu.state.cr3 = 0xffff000000;
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PF_PRESENT | PF_RESERVED);
	f->vcpu.state.cr3 = 0xa0000; /* the VGA hole */
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, PF_PRESENT | PF_RESERVED);
}

static void test_32bit(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	struct paging_result r;
	s->cr0 = CR0_PE | CR0_PG;
	s->cr3 = ROOT;
	put32(f, ROOT + 4, (uint32_t)(PT | P | RW | US)); /* 4 MiB - 8 MiB */
	put32(f, PT + 8, (uint32_t)(PAGE | P | RW | US));
	assert_walk(f, 0x402678, MMU_WRITE, MMU_USER, PAGE + 0x678);
	assert_int_equal(get(f, PT + 8, 4), PAGE | P | RW | US | A | D);
	assert_int_equal(get(f, ROOT + 4, 4), PT | P | RW | US | A);
	/* Fetches are not told apart without NX and SMEP. */
	assert_no_walk(f, 0x1000, MMU_EXECUTE, MMU_USER, PF_USER);
	/* PS is ignored without CR4.PSE. */
	put32(f, ROOT + 4, (uint32_t)(PT | PS | P | RW | US));
	assert_walk(f, 0x402678, MMU_READ, MMU_USER, PAGE + 0x678);
	s->cr4 |= CR4_PSE;
	put32(f, ROOT + 4, 0x00c00000 | PS | P | RW | US);
	assert_true(paging_walk(&f->vcpu, 0x402678, MMU_READ, MMU_USER, false, &r));
	assert_int_equal(r.physical, 0xc02678);
	assert_int_equal(r.page_size, 4 << 20);
	/* PSE-36: bits 20:13 are physical bits 39:32; bit 21 is reserved. */
	put32(f, ROOT + 4, 0x00c00000 | 1 << 13 | 1 << 20 | PS | P | RW | US);
	assert_walk(f, 0x402678, MMU_READ, MMU_USER, 0x8100c02678);
	put32(f, ROOT + 4, 0x00c00000 | 1 << 21 | PS | P | RW | US);
	assert_no_walk(f, 0x402678, MMU_READ, MMU_USER, PF_USER | PF_PRESENT | PF_RESERVED);
	f->model.physical_bits = 36;
	put32(f, ROOT + 4, 0x00c00000 | 1 << 16 | PS | P | RW | US);
	assert_walk(f, 0x402678, MMU_READ, MMU_USER, 0x800c02678);
	put32(f, ROOT + 4, 0x00c00000 | 1 << 17 | PS | P | RW | US);
	assert_no_walk(f, 0x402678, MMU_READ, MMU_USER, PF_USER | PF_PRESENT | PF_RESERVED);
}

static void test_pae(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	s->cr0 = CR0_PE | CR0_PG;
	s->cr4 = CR4_PAE;
	s->efer = EFER_NXE;
	s->cr3 = ROOT + 0x20; /* 32-byte aligned */
	put64(f, ROOT + 0x20 + 3 * 8, PD | P);
	put64(f, PD + 5 * 8, PT | P | RW | US);
	put64(f, PT + 8, PAGE | P | RW | US | NX);
	assert_true(paging_load_pdptes(&f->vcpu, s->cr3));
	uint32_t linear = 3u << 30 | 5u << 21 | 1u << 12 | 0x10;
	assert_walk(f, linear, MMU_WRITE, MMU_USER, PAGE + 0x10);
	assert_no_walk(f, linear, MMU_EXECUTE, MMU_USER, PF_USER | PF_PRESENT | PF_FETCH);
	assert_no_walk(f, 0x1000, MMU_READ, MMU_SUPERVISOR, 0);
	/* A PDPTE's accessed bit is not set, and a change in memory is not seen before the next load. */
	assert_int_equal(get(f, ROOT + 0x20 + 24, 8), PD | P);
	put64(f, ROOT + 0x20 + 24, 0);
	assert_walk(f, linear, MMU_READ, MMU_USER, PAGE + 0x10);
	/* Bits 62:52 are reserved with PAE. */
	put64(f, PT + 8, PAGE | P | RW | US | 1ull << 52);
	assert_no_walk(f, linear, MMU_READ, MMU_USER, PF_USER | PF_PRESENT | PF_RESERVED);
	/* Reserved bits of a PDPTE are refused at the load, and the old ones stay. */
	for (unsigned bit = 1; bit < 64; bit++) {
		bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 40;
		put64(f, ROOT + 0x20, PD | P | 1ull << bit);
		assert_int_equal(paging_load_pdptes(&f->vcpu, s->cr3), !reserved);
	}
	put64(f, ROOT + 0x20, 1ull << 63); /* not present */
	assert_true(paging_load_pdptes(&f->vcpu, s->cr3));
}

static void test_mmu_raises(void **state)
{
	struct fixture *f = setup_4level(state);
	ASSERT_FAULT(f, VECTOR_PF, PF_WRITE, mmu_write(&f->vcpu, 0x5000, 4, 1));
	assert_int_equal(f->vcpu.exception.address, 0x5000);
	/* Crossing into a page that is not there: the address is that page's, and nothing was written. */
	ASSERT_FAULT(f, VECTOR_PF, PF_WRITE, mmu_write(&f->vcpu, 0x1ffe, 4, 0xffffffff));
	assert_int_equal(f->vcpu.exception.address, 0x2000);
	assert_int_equal(get(f, PAGE + 0xffe, 2), 0);
	ASSERT_FINE(f, mmu_write(&f->vcpu, 0x1ffc, 4, 0x12345678));
	assert_int_equal(get(f, PAGE + 0xffc, 4), 0x12345678);
}

static void test_cr3_and_invlpg(void **state)
{
	struct fixture *f = setup_4level(state);
	struct vcpu *v = &f->vcpu;
	f->vcpu.state.cr4 |= CR4_PGE;
	put64(f, PT + 16, (PAGE + 0x1000) | P | RW | US | G);
	put64(f, PAGE, 1);
	put64(f, PAGE + 0x1000, 2);
	put64(f, PAGE + 0x2000, 3);
	volatile uint64_t value = 0;
	ASSERT_FINE(f, value = mmu_read(v, 0x1000, 8));
	ASSERT_FINE(f, value = mmu_read(v, 0x2000, 8));
	put64(f, PT + 8, (PAGE + 0x2000) | P | RW | US);
	put64(f, PT + 16, (PAGE + 0x2000) | P | RW | US | G);
	ASSERT_FINE(f, x86_mov_to_cr(v, 3, ROOT));
	ASSERT_FINE(f, value = mmu_read(v, 0x1000, 8));
	assert_int_equal(value, 3);
	ASSERT_FINE(f, value = mmu_read(v, 0x2000, 8));
	assert_int_equal(value, 2); /* global: it stays */
	ASSERT_FINE(f, x86_invlpg(v, 0x2000));
	ASSERT_FINE(f, value = mmu_read(v, 0x2000, 8));
	assert_int_equal(value, 3);
}

static void test_control_register_rules(void **state)
{
	struct fixture *f = setup_4level(state);
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, CR0_PG));                       /* PG without PE */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, CR0_PE | CR0_PG | CR0_NW));     /* NW without CD */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, CR0_PE));                       /* PG off in 64-bit code */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, 1ull << 32 | CR0_PE | CR0_PG)); /* upper half */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 4, 0));                            /* PAE off in long mode */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 4, CR4_PAE | CR4_VMXE));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 4, CR4_PAE | CR4_LA57));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 4, CR4_PAE | CR4_PKE));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 3, 1ull << 40 | ROOT));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 3, 1ull << 63 | ROOT)); /* no PCID: bit 63 is reserved */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 8, 16));
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_mov_to_cr(v, 1, 0));
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_mov_from_cr(v, 5));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_wrmsr(v, 0xc0000080, 0)); /* LME off while paging */
	s->cr3 = ROOT | 5;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 4, CR4_PAE | CR4_PCIDE));
	s->cr3 = ROOT;
	ASSERT_FINE(f, x86_mov_to_cr(v, 4, CR4_PAE | CR4_PCIDE));
	ASSERT_FINE(f, x86_mov_to_cr(v, 3, 1ull << 63 | ROOT | 5));
	assert_int_equal(s->cr3, ROOT | 5);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_invpcid(v, 4, 0, 0));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_invpcid(v, 0, 5, 1ull << 47));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_invpcid(v, 1, 0x1000, 0));
	s->segment[SEG_SS].access |= SEG_DPL_MASK;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_from_cr(v, 0));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_invlpg(v, 0));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_clts(v));
}

static void test_long_mode_switch(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	put64(f, ROOT, PDPT | P | RW);
	put64(f, PDPT, PS | P | RW);
	ASSERT_FINE(f, x86_mov_to_cr(v, 0, CR0_PE));
	ASSERT_FINE(f, x86_mov_to_cr(v, 3, ROOT));
	ASSERT_FINE(f, x86_wrmsr(v, 0xc0000080, EFER_LME));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, CR0_PE | CR0_PG)); /* no PAE */
	ASSERT_FINE(f, x86_mov_to_cr(v, 4, CR4_PAE));
	s->segment[SEG_CS].access |= SEG_L;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_cr(v, 0, CR0_PE | CR0_PG)); /* CS.L */
	s->segment[SEG_CS].access &= ~SEG_L;
	ASSERT_FINE(f, x86_mov_to_cr(v, 0, CR0_PE | CR0_PG));
	assert_true(s->efer & EFER_LMA);
	assert_false(cpu_64bit_code(s));
	ASSERT_FINE(f, x86_mov_to_cr(v, 0, CR0_PE));
	assert_false(s->efer & EFER_LMA);
	/* LMSW sets PE but never clears it. */
	ASSERT_FINE(f, x86_lmsw(v, 0xe));
	assert_int_equal(s->cr0, CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET);
}

/* Fuzz: whatever the tables hold, a walk ends, and its physical address is one that a leaf names. */
static void test_random_tables(void **state)
{
	struct fixture *f = setup_4level(state);
	uint64_t seed = 0x9e3779b97f4a7c15, faults = 0, done = 0;
	print_message("seed %#llx\n", (unsigned long long)seed);
	for (unsigned round = 0; round < 20000; round++) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		uint64_t value = (seed & 0x8000000000000fff) | ((seed >> 20 & 0x1f) << 12) | P;
		put64(f, ROOT + (seed >> 40 & 0x3ff8), value);
		struct paging_result r;
		if (paging_walk(&f->vcpu, seed >> 33 & 0x3fffffff, seed % 3, seed / 3 % 3, false, &r)) {
			assert_true(r.physical < 1ull << 40);
			done++;
		} else {
			assert_true(r.error < 32);
			faults++;
		}
	}
	assert_true(done > 0 && faults > 0);
}

struct race {
	uint64_t *entry;
	_Atomic bool stop;
	bool wrong;
};

/* Another processor: maps, takes away by an exchange, and looks whether it comes back. */
static void *mapper(void *argument)
{
	struct race *race = argument;
	for (unsigned round = 0; round < 20000; round++) {
		__atomic_store_n(race->entry, PAGE | P | RW | US, __ATOMIC_SEQ_CST);
		for (volatile unsigned i = 0; i < round % 64; i++)
			;
		__atomic_exchange_n(race->entry, 0, __ATOMIC_SEQ_CST);
		for (volatile unsigned i = 0; i < 64; i++)
			race->wrong |= __atomic_load_n(race->entry, __ATOMIC_RELAXED) != 0;
	}
	atomic_store(&race->stop, true);
	return NULL;
}

/* A and D are set only in an entry that is still what was read: a page taken away stays away. */
static void test_atomic_dirty(void **state)
{
	struct fixture *f = setup_4level(state);
	struct race race = {.entry = memory_pointer(&f->memory, PT + 8, 8)};
	struct paging_result r;
	pthread_t thread;
	*race.entry = 0;
	assert_int_equal(pthread_create(&thread, NULL, mapper, &race), 0);
	while (!atomic_load(&race.stop))
		if (paging_walk(&f->vcpu, 0x1000, MMU_WRITE, MMU_USER, false, &r))
			assert_int_equal(r.physical, PAGE);
		else
			assert_int_equal(r.error, PF_USER | PF_WRITE);
	pthread_join(thread, NULL);
	assert_false(race.wrong);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, fixture_destroy)
	const struct CMUnitTest tests[] = {
	    T(test_off),
	    T(test_4level),
	    T(test_writable_only_when_dirty),
	    T(test_debug_changes_nothing),
	    T(test_large_pages),
	    T(test_reserved),
	    T(test_rights),
	    T(test_upper_levels_restrict),
	    T(test_global),
	    T(test_table_outside_ram),
	    T(test_32bit),
	    T(test_pae),
	    T(test_mmu_raises),
	    T(test_cr3_and_invlpg),
	    T(test_control_register_rules),
	    T(test_long_mode_switch),
	    T(test_random_tables),
	    T(test_atomic_dirty),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
