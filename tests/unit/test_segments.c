/*
 * Segment loads, gates, far transfers, IRET, task switches: checks, error codes, what is committed.
 */
#include "x86_fixture.h"

#define GDT   0x1000ull
#define LDT   0x2000ull
#define TSS   0x3000ull
#define TSS2  0x4000ull
#define STACK 0x8000ull /* current stack's top */
#define INNER 0x9000ull /* the stack of CPL 0 in TSS */

/* Selectors. */
enum {
	NONE = 0x00,
	CODE0 = 0x08,
	DATA0 = 0x10,
	CODE3 = 0x18,
	DATA3 = 0x20,
	CONFORMING0 = 0x28,
	READONLY3 = 0x30,
	EXECUTE3 = 0x38,
	ABSENT3 = 0x40,
	CODE64 = 0x48,
	LDTD = 0x50, /* 16 bytes */
	TSSD = 0x60, /* 16 bytes */
	TSSD2 = 0x70,
	GATE = 0x80, /* 16 bytes */
	EXPANDDOWN = 0x90,
	TSSD16 = 0x98,
	CODE16 = 0xa0,
	DATA16 = 0xa8,
	CODE1 = 0xb0,
	DATA1 = 0xb8,
	SPARE = 0xc0,
	CODE64_3 = 0xc8,
	GDT_END = 0x100,
};

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t access)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(access & 0xff) << 40 |
	       (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(access >> 12 & 0xf) << 52 |
	       (uint64_t)(base >> 24) << 56;
}

static uint64_t gate(uint16_t selector, uint32_t offset, uint32_t access, unsigned parameters)
{
	return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)parameters << 32 |
	       (uint64_t)(access & 0xff) << 40 | (uint64_t)(offset >> 16) << 48;
}

#define CODE(dpl)         (SEG_P | SEG_S | (dpl) << 5 | SEG_CODE | SEG_READABLE)
#define DATA(dpl)         (SEG_P | SEG_S | (dpl) << 5 | SEG_WRITABLE)
#define FLAT              (SEG_G | SEG_DB)
#define SYSTEM(dpl, type) (SEG_P | (dpl) << 5 | (type))

static struct segment segment_of(uint16_t selector, uint32_t access)
{
	return (struct segment){.selector = selector, .limit = 0xffffffff, .access = access | SEG_ACCESSED};
}

static void set_cpl(struct fixture *f, unsigned cpl)
{
	struct cpu_state *s = &f->vcpu.state;
	s->segment[SEG_CS] = segment_of(cpl ? CODE3 | 3 : CODE0, CODE(cpl) | FLAT);
	s->segment[SEG_SS] = segment_of(cpl ? DATA3 | 3 : DATA0, DATA(cpl) | FLAT);
	mmu_update_view(&f->vcpu);
}

static int setup(void **state)
{
	struct fixture *f = fixture_create(true);
	struct cpu_state *s = &f->vcpu.state;
	*state = f;
	s->cr0 = CR0_PE | CR0_ET;
	s->gdtr = (struct descriptor_table){.base = GDT, .limit = GDT_END - 1};
	put64(f, GDT + CODE0, descriptor(0, 0xfffff, CODE(0) | FLAT));
	put64(f, GDT + DATA0, descriptor(0, 0xfffff, DATA(0) | FLAT));
	put64(f, GDT + CODE3, descriptor(0, 0xfffff, CODE(3) | FLAT));
	put64(f, GDT + DATA3, descriptor(0, 0xfffff, DATA(3) | FLAT));
	put64(f, GDT + CONFORMING0, descriptor(0, 0xfffff, CODE(0) | SEG_CONFORMING | FLAT));
	put64(f, GDT + READONLY3, descriptor(0x12345678, 0xabc, SEG_P | SEG_S | 3 << 5 | SEG_DB));
	put64(f, GDT + EXECUTE3, descriptor(0, 0xfffff, SEG_P | SEG_S | 3 << 5 | SEG_CODE | FLAT));
	put64(f, GDT + ABSENT3, descriptor(0, 0xfffff, (DATA(3) & ~SEG_P) | FLAT));
	put64(f, GDT + CODE64, descriptor(0, 0xfffff, CODE(0) | SEG_L));
	put64(f, GDT + CODE64_3, descriptor(0, 0xfffff, CODE(3) | SEG_L));
	put64(f, GDT + LDTD, descriptor(LDT, 0xff, SYSTEM(0, 2)));
	put64(f, GDT + TSSD, descriptor(TSS, 0x67, SYSTEM(0, 9)));
	put64(f, GDT + TSSD2, descriptor(TSS2, 0x67, SYSTEM(0, 9)));
	put64(f, GDT + TSSD16, descriptor(TSS2, 0x2b, SYSTEM(0, 1)));
	put64(f, GDT + EXPANDDOWN, descriptor(0, 0xfff, DATA(3) | SEG_EXPANDDOWN | SEG_DB));
	put64(f, GDT + CODE16, descriptor(0, 0xffff, CODE(0)));
	put64(f, GDT + DATA16, descriptor(0, 0xffff, DATA(0)));
	put64(f, GDT + CODE1, descriptor(0, 0xfffff, CODE(1) | FLAT));
	put64(f, GDT + DATA1, descriptor(0, 0xfffff, DATA(1) | FLAT));
	s->segment[SEG_TR] = (struct segment){.selector = TSSD, .base = TSS, .limit = 0x67, .access = SYSTEM(0, 11)};
	put64(f, GDT + TSSD, descriptor(TSS, 0x67, SYSTEM(0, 11)));
	put32(f, TSS + 4, (uint32_t)INNER);
	put16(f, TSS + 8, DATA0);
	s->segment[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
	for (unsigned i = 0; i < 6; i++)
		s->segment[i] = segment_of(DATA0, DATA(0) | FLAT);
	set_cpl(f, 0);
	s->gpr[RSP] = STACK;
	s->rip = 0x100;
	return 0;
}

static void long_mode(struct fixture *f)
{
	struct cpu_state *s = &f->vcpu.state;
	/* 1 GiB mapped one to one by one large page. */
	put64(f, 0x100000, 0x101000 | 7);
	put64(f, 0x101000, 0x87);
	s->cr0 |= CR0_PG | CR0_WP;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	s->cr3 = 0x100000;
	s->segment[SEG_CS] = segment_of(CODE64, CODE(0) | SEG_L);
	put64(f, TSS + 4, INNER);
	mmu_flush(&f->vcpu);
	mmu_update_view(&f->vcpu);
}

static void test_load_data(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct segment *ds = &v->state.segment[SEG_DS];
	ASSERT_FINE(f, segment_load(v, SEG_DS, READONLY3 | 3));
	assert_int_equal(ds->base, 0x12345678);
	assert_int_equal(ds->limit, 0xabc);
	assert_int_equal(ds->selector, READONLY3 | 3);
	assert_int_equal(ds->access, SEG_P | SEG_S | 3 << 5 | SEG_DB | SEG_ACCESSED);
	assert_int_equal(get(f, GDT + READONLY3 + 5, 1) & 1, 1); /* accessed */
	ASSERT_FINE(f, segment_load(v, SEG_DS, DATA0));
	assert_int_equal(ds->limit, 0xffffffff);
	/* RPL 3 against DPL 0 */
	ASSERT_FAULT(f, VECTOR_GP, DATA0, segment_load(v, SEG_DS, DATA0 | 3));
	ASSERT_FAULT(f, VECTOR_GP, EXECUTE3, segment_load(v, SEG_ES, EXECUTE3 | 3));
	ASSERT_FAULT(f, VECTOR_NP, ABSENT3, segment_load(v, SEG_FS, ABSENT3 | 3));
	ASSERT_FAULT(f, VECTOR_GP, TSSD, segment_load(v, SEG_GS, TSSD));
	ASSERT_FAULT(f, VECTOR_GP, GDT_END, segment_load(v, SEG_DS, GDT_END | 3));
	ASSERT_FAULT(f, VECTOR_GP, 0x14, segment_load(v, SEG_DS, 0x14)); /* no LDT */
	assert_int_equal(ds->selector, DATA0);                           /* unchanged by all of them */
	ASSERT_FINE(f, segment_load(v, SEG_DS, 3));
	assert_int_equal(ds->access, SEG_UNUSABLE);
	assert_int_equal(ds->selector, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_DS, 0, 1, false));
	/* A descriptor that only just fits into the table. */
	v->state.gdtr.limit = DATA3 + 7;
	ASSERT_FINE(f, segment_load(v, SEG_DS, DATA3));
	v->state.gdtr.limit = DATA3 + 6;
	ASSERT_FAULT(f, VECTOR_GP, DATA3, segment_load(v, SEG_DS, DATA3));
}

static void test_load_conforming_and_cpl3(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	set_cpl(f, 3);
	ASSERT_FINE(f, segment_load(v, SEG_DS, CONFORMING0 | 3)); /* readable conforming code: no privilege check */
	ASSERT_FAULT(f, VECTOR_GP, CODE0, segment_load(v, SEG_DS, CODE0));
	ASSERT_FAULT(f, VECTOR_GP, DATA0, segment_load(v, SEG_DS, DATA0));
	ASSERT_FINE(f, segment_load(v, SEG_DS, CODE3 | 3));
}

static void test_load_ss(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_load(v, SEG_SS, 0));
	ASSERT_FAULT(f, VECTOR_GP, DATA0, segment_load(v, SEG_SS, DATA0 | 3));
	ASSERT_FAULT(f, VECTOR_GP, DATA3, segment_load(v, SEG_SS, DATA3));
	ASSERT_FAULT(f, VECTOR_GP, CODE0, segment_load(v, SEG_SS, CODE0));
	ASSERT_FINE(f, segment_load(v, SEG_SS, DATA0));
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, READONLY3, segment_load(v, SEG_SS, READONLY3 | 3));
	ASSERT_FAULT(f, VECTOR_SS, ABSENT3, segment_load(v, SEG_SS, ABSENT3 | 3));
	set_cpl(f, 0);
	long_mode(f);
	ASSERT_FINE(f, segment_load(v, SEG_SS, 0));
	assert_int_equal(cpu_cpl(&v->state), 0);
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_load(v, SEG_SS, 1));
	set_cpl(f, 3);
	v->state.segment[SEG_CS] = segment_of(CODE64_3 | 3, CODE(3) | SEG_L);
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_load(v, SEG_SS, 3));
}

static void test_real_mode(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	ASSERT_FINE(f, segment_load(v, SEG_DS, DATA0)); /* 4 GiB limit */
	v->state.cr0 &= ~CR0_PE;
	ASSERT_FINE(f, segment_load(v, SEG_DS, 0xf000));
	assert_int_equal(v->state.segment[SEG_DS].base, 0xf0000);
	assert_int_equal(v->state.segment[SEG_DS].limit, 0xffffffff); /* unreal */
	volatile uint64_t linear = 0;
	ASSERT_FINE(f, linear = segment_linear(v, SEG_DS, 0x12345, 1, true));
	assert_int_equal(linear, 0x102345);
	v->state.segment[SEG_DS].limit = 0xffff;
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_DS, 0xffff, 2, true));
	v->state.segment[SEG_SS].limit = 0xffff;
	ASSERT_FAULT(f, VECTOR_SS, 0, segment_linear(v, SEG_SS, 0xffff, 2, true));
}

static void test_linear(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct segment *ds = &v->state.segment[SEG_DS];
	volatile uint64_t linear = 0;
	ds->limit = 0xfff;
	ASSERT_FINE(f, segment_linear(v, SEG_DS, 0xffc, 4, true));
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_DS, 0xffd, 4, true));
	ds->access &= ~SEG_WRITABLE;
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_DS, 0, 1, true));
	ASSERT_FINE(f, segment_linear(v, SEG_DS, 0, 1, false));
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_CS, 0, 1, true));
	ASSERT_FINE(f, segment_linear(v, SEG_CS, 0, 1, false));
	v->state.segment[SEG_CS].access &= ~SEG_READABLE;
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_CS, 0, 1, false));
	/* Expand-down: above the limit, up to 4 GiB or 64 KiB by B. */
	ASSERT_FINE(f, segment_load(v, SEG_ES, EXPANDDOWN | 3));
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_ES, 0xfff, 1, true));
	ASSERT_FINE(f, segment_linear(v, SEG_ES, 0x1000, 1, true));
	ASSERT_FINE(f, segment_linear(v, SEG_ES, 0xfffffffc, 4, true));
	v->state.segment[SEG_ES].access &= ~SEG_DB;
	ASSERT_FINE(f, segment_linear(v, SEG_ES, 0xfffc, 4, true));
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_ES, 0xfffd, 4, true));
	/* The sum wraps at 4 GiB. */
	v->state.segment[SEG_FS].base = 0xffff0000;
	ASSERT_FINE(f, linear = segment_linear(v, SEG_FS, 0x20000, 4, true));
	assert_int_equal(linear, 0x10000);
	/* 64-bit: bases of FS and GS alone, canonical. */
	long_mode(f);
	v->state.segment[SEG_ES].base = 0x1000;
	ASSERT_FINE(f, linear = segment_linear(v, SEG_ES, 0x10, 1, true));
	assert_int_equal(linear, 0x10);
	v->state.segment[SEG_GS].base = 0xffff800000000000;
	ASSERT_FINE(f, linear = segment_linear(v, SEG_GS, 0x10, 1, true));
	assert_int_equal(linear, 0xffff800000000010);
	ASSERT_FAULT(f, VECTOR_GP, 0, segment_linear(v, SEG_DS, 0x7fffffffffff, 2, true));
	ASSERT_FAULT(f, VECTOR_SS, 0, segment_linear(v, SEG_SS, 0x800000000000, 1, true));
	ASSERT_FINE(f, segment_linear(v, SEG_DS, 0xfffffffffffffff8, 8, true));
}

static void test_ldt_and_tr(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	ASSERT_FINE(f, x86_lldt(v, LDTD));
	assert_int_equal(v->state.segment[SEG_LDTR].base, LDT);
	put64(f, LDT + 8, descriptor(0x5000, 0xfff, DATA(3) | SEG_DB));
	ASSERT_FINE(f, segment_load(v, SEG_DS, 0xc));
	assert_int_equal(v->state.segment[SEG_DS].base, 0x5000);
	ASSERT_FAULT(f, VECTOR_GP, 0x104, segment_load(v, SEG_DS, 0x104));
	ASSERT_FAULT(f, VECTOR_GP, DATA0, x86_lldt(v, DATA0));
	ASSERT_FAULT(f, VECTOR_GP, 0xc, x86_lldt(v, 0xc));
	ASSERT_FINE(f, x86_lldt(v, 3));
	ASSERT_FAULT(f, VECTOR_GP, 0xc, segment_load(v, SEG_DS, 0xc));

	ASSERT_FINE(f, x86_ltr(v, TSSD2));
	assert_int_equal(get(f, GDT + TSSD2 + 5, 1) & 0xf, 11);
	ASSERT_FAULT(f, VECTOR_GP, TSSD2, x86_ltr(v, TSSD2)); /* busy */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_ltr(v, 0));
	ASSERT_FAULT(f, VECTOR_GP, LDTD, x86_ltr(v, LDTD));
	ASSERT_FINE(f, x86_ltr(v, TSSD16));

	long_mode(f);
	put64(f, GDT + TSSD, descriptor(TSS, 0x67, SYSTEM(0, 9)));
	put64(f, GDT + TSSD + 8, 0xffff8000);
	ASSERT_FINE(f, x86_ltr(v, TSSD));
	assert_int_equal(v->state.segment[SEG_TR].base, 0xffff800000000000 | TSS);
	put64(f, GDT + TSSD, descriptor(TSS, 0x67, SYSTEM(0, 9)));
	put64(f, GDT + TSSD + 8, 0x8000); /* not canonical */
	ASSERT_FAULT(f, VECTOR_GP, TSSD, x86_ltr(v, TSSD));
	put64(f, GDT + TSSD + 8, 0x100ull << 32); /* a type in the upper half */
	ASSERT_FAULT(f, VECTOR_GP, TSSD, x86_ltr(v, TSSD));
	put64(f, GDT + TSSD16, descriptor(TSS2, 0x2b, SYSTEM(0, 1)));
	ASSERT_FAULT(f, VECTOR_GP, TSSD16, x86_ltr(v, TSSD16)); /* no 16-bit TSS in long mode */
	v->state.segment[SEG_SS].access |= SEG_DPL_MASK;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_ltr(v, TSSD));
	v->state.cr0 &= ~(CR0_PE | CR0_PG);
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_lldt(v, LDTD));
}

static void test_lar_lsl_verify(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	uint32_t result = 0;
	volatile bool ok = false;
	ASSERT_FINE(f, ok = x86_lar(v, CODE0, &result));
	assert_true(ok);
	assert_int_equal(result, 0x00cf9a00); /* with the limit, as AMD gives it */
	ASSERT_FINE(f, ok = x86_lsl(v, DATA0, &result));
	assert_true(ok);
	assert_int_equal(result, 0xffffffff);
	ASSERT_FINE(f, ok = x86_lsl(v, READONLY3, &result));
	assert_true(ok && result == 0xabc);
	ASSERT_FINE(f, ok = x86_lar(v, 0, &result));
	assert_false(ok);
	ASSERT_FINE(f, ok = x86_lar(v, GDT_END, &result));
	assert_false(ok);
	ASSERT_FINE(f, ok = x86_lar(v, DATA0 | 3, &result)); /* RPL */
	assert_false(ok);
	put64(f, GDT + GATE, gate(CODE0, 0, SYSTEM(3, 12), 0));
	ASSERT_FINE(f, ok = x86_lar(v, GATE, &result));
	assert_true(ok);
	ASSERT_FINE(f, ok = x86_lsl(v, GATE, &result)); /* a gate has no limit */
	assert_false(ok);
	put64(f, GDT + GATE, gate(CODE0, 0, SYSTEM(3, 14), 0));
	ASSERT_FINE(f, ok = x86_lar(v, GATE, &result)); /* an interrupt gate is invalid here */
	assert_false(ok);
	ASSERT_FINE(f, ok = x86_verify(v, READONLY3, true));
	assert_false(ok);
	ASSERT_FINE(f, ok = x86_verify(v, READONLY3, false));
	assert_true(ok);
	ASSERT_FINE(f, ok = x86_verify(v, EXECUTE3, false));
	assert_false(ok);
	ASSERT_FINE(f, ok = x86_verify(v, TSSD, false));
	assert_false(ok);
	set_cpl(f, 3);
	ASSERT_FINE(f, ok = x86_verify(v, CONFORMING0, false));
	assert_true(ok);
	v->state.cr0 = 0;
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_verify(v, CODE0, false));
}

static void test_far_jump(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	ASSERT_FINE(f, x86_far_jump(v, CODE0, 0x12345678, 4, 0x107));
	assert_int_equal(s->rip, 0x12345678);
	ASSERT_FINE(f, x86_far_jump(v, CODE0, 0x12345678, 2, 0x107));
	assert_int_equal(s->rip, 0x5678);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_far_jump(v, 3, 0, 4, 0));
	ASSERT_FAULT(f, VECTOR_GP, DATA0, x86_far_jump(v, DATA0, 0, 4, 0));
	ASSERT_FAULT(f, VECTOR_GP, CODE3, x86_far_jump(v, CODE3 | 3, 0, 4, 0)); /* outer */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_far_jump(v, CODE16, 0x10000, 4, 0));  /* beyond the limit */
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, CODE0, x86_far_jump(v, CODE0, 0, 4, 0)); /* inner */
	ASSERT_FINE(f, x86_far_jump(v, CONFORMING0, 0x10, 4, 0));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->segment[SEG_CS].selector, CONFORMING0 | 3);
	/* RPL > CPL */
	set_cpl(f, 0);
	ASSERT_FAULT(f, VECTOR_GP, CODE0, x86_far_jump(v, CODE0 | 1, 0, 4, 0));
	/* Real mode */
	s->cr0 = 0;
	s->segment[SEG_CS].limit = 0xffff;
	ASSERT_FINE(f, x86_far_jump(v, 0xf000, 0xfff0, 2, 0));
	assert_int_equal(s->segment[SEG_CS].base, 0xf0000);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_far_jump(v, 0xf000, 0x10000, 4, 0));
}

static void test_far_call_and_return(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	ASSERT_FINE(f, x86_far_call(v, CODE0, 0x4000, 4, 0x107));
	assert_int_equal(s->gpr[RSP], STACK - 8);
	assert_int_equal(get(f, STACK - 4, 4), CODE0);
	assert_int_equal(get(f, STACK - 8, 4), 0x107);
	ASSERT_FINE(f, x86_far_return(v, 4, 0x10, 0x4001));
	assert_int_equal(s->rip, 0x107);
	assert_int_equal(s->gpr[RSP], STACK + 0x10);
	ASSERT_FINE(f, x86_far_call(v, CODE0, 0x4000, 2, 0x107));
	assert_int_equal(s->gpr[RSP], STACK + 0xc);
	/* Stack out of the segment: nothing changes. */
	s->segment[SEG_SS].limit = 3;
	s->gpr[RSP] = 4;
	s->rip = 0x100;
	ASSERT_FAULT(f, VECTOR_SS, 0, x86_far_call(v, CODE0, 0x4000, 4, 0x107));
	assert_int_equal(s->gpr[RSP], 4);
	assert_int_equal(s->rip, 0x100);
	/* A 16-bit stack wraps, and bits 31:16 of ESP stay. */
	s->segment[SEG_SS] = segment_of(DATA16, DATA(0));
	s->segment[SEG_SS].limit = 0xffff;
	s->gpr[RSP] = 0xabcd0002;
	ASSERT_FINE(f, x86_far_call(v, CODE0, 0x4000, 2, 0x107));
	assert_int_equal(s->gpr[RSP], 0xabcdfffe);
	assert_int_equal(get(f, 0, 2), CODE0);
	assert_int_equal(get(f, 0xfffe, 2), 0x107);
}

static void test_call_gate(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	put64(f, GDT + GATE, gate(CODE0, 0x5000, SYSTEM(3, 12), 2));
	set_cpl(f, 3);
	put32(f, STACK, 0x11111111);
	put32(f, STACK + 4, 0x22222222);
	ASSERT_FINE(f, x86_far_call(v, GATE | 3, 0xdead, 4, 0x107));
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->segment[SEG_CS].selector, CODE0);
	assert_int_equal(s->segment[SEG_SS].selector, DATA0);
	assert_int_equal(s->gpr[RSP], INNER - 24);
	assert_int_equal(get(f, INNER - 4, 4), DATA3 | 3);
	assert_int_equal(get(f, INNER - 8, 4), STACK);
	assert_int_equal(get(f, INNER - 12, 4), 0x22222222);
	assert_int_equal(get(f, INNER - 16, 4), 0x11111111);
	assert_int_equal(get(f, INNER - 20, 4), CODE3 | 3);
	assert_int_equal(get(f, INNER - 24, 4), 0x107);
	/* And back: parameters released on both stacks, inner data segments nulled. */
	s->segment[SEG_DS] = segment_of(DATA0, DATA(0) | FLAT);
	s->segment[SEG_ES] = segment_of(DATA3 | 3, DATA(3) | FLAT);
	ASSERT_FINE(f, x86_far_return(v, 4, 8, 0x5001));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->gpr[RSP], STACK + 8);
	assert_int_equal(s->rip, 0x107);
	assert_int_equal(s->segment[SEG_DS].access & SEG_UNUSABLE, SEG_UNUSABLE);
	assert_int_equal(s->segment[SEG_DS].selector, 0);
	assert_int_equal(s->segment[SEG_ES].selector, DATA3 | 3);

	/* A jump through it may not change privilege. */
	ASSERT_FAULT(f, VECTOR_GP, CODE0, x86_far_jump(v, GATE | 3, 0, 4, 0));
	put64(f, GDT + GATE, gate(CODE0, 0x5000, SYSTEM(2, 12), 0));
	ASSERT_FAULT(f, VECTOR_GP, GATE, x86_far_call(v, GATE | 3, 0, 4, 0)); /* gate's DPL */
	put64(f, GDT + GATE, gate(CODE0, 0x5000, SYSTEM(3, 12) & ~SEG_P, 0));
	ASSERT_FAULT(f, VECTOR_NP, GATE, x86_far_call(v, GATE | 3, 0, 4, 0));
	put64(f, GDT + GATE, gate(0, 0x5000, SYSTEM(3, 12), 0));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_far_call(v, GATE | 3, 0, 4, 0));
	put64(f, GDT + GATE, gate(DATA0, 0x5000, SYSTEM(3, 12), 0));
	ASSERT_FAULT(f, VECTOR_GP, DATA0, x86_far_call(v, GATE | 3, 0, 4, 0));
	/* The inner stack. */
	put64(f, GDT + GATE, gate(CODE0, 0x5000, SYSTEM(3, 12), 0));
	put16(f, TSS + 8, DATA3 | 3);
	ASSERT_FAULT(f, VECTOR_TS, DATA3, x86_far_call(v, GATE | 3, 0, 4, 0));
	put16(f, TSS + 8, 0);
	ASSERT_FAULT(f, VECTOR_TS, 0, x86_far_call(v, GATE | 3, 0, 4, 0));
	put16(f, TSS + 8, DATA0);
	s->segment[SEG_TR].limit = 8;
	ASSERT_FAULT(f, VECTOR_TS, TSSD, x86_far_call(v, GATE | 3, 0, 4, 0));
	s->segment[SEG_TR].limit = 0x67;
	put64(f, GDT + DATA0, descriptor(0, 0xfff, DATA(0) | SEG_DB)); /* the stack does not fit */
	ASSERT_FAULT(f, VECTOR_SS, DATA0, x86_far_call(v, GATE | 3, 0, 4, 0));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->gpr[RSP], STACK + 8);
}

static void test_call_gate_64(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	long_mode(f);
	put64(f, GDT + GATE, gate(CODE64, 0x5000, SYSTEM(3, 12), 5)); /* no parameters in long mode */
	put64(f, GDT + GATE + 8, 0xffff8000);
	s->segment[SEG_CS] = segment_of(CODE64_3 | 3, CODE(3) | SEG_L);
	s->segment[SEG_SS] = segment_of(DATA3 | 3, DATA(3) | FLAT);
	mmu_update_view(v);
	ASSERT_FINE(f, x86_far_call(v, GATE | 3, 0, 8, 0x107));
	assert_int_equal(s->rip, 0xffff800000005000);
	assert_int_equal(s->gpr[RSP], INNER - 32);
	assert_int_equal(s->segment[SEG_SS].selector, 0);
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(get(f, INNER - 8, 8), DATA3 | 3);
	assert_int_equal(get(f, INNER - 16, 8), STACK);
	assert_int_equal(get(f, INNER - 24, 8), CODE64_3 | 3);
	assert_int_equal(get(f, INNER - 32, 8), 0x107);
	ASSERT_FINE(f, x86_far_return(v, 8, 0, 0));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->gpr[RSP], STACK);
	/* The target must be 64-bit code. */
	put64(f, GDT + GATE, gate(CODE0, 0x5000, SYSTEM(3, 12), 0));
	ASSERT_FAULT(f, VECTOR_GP, CODE0, x86_far_call(v, GATE | 3, 0, 8, 0x107));
	put64(f, GDT + GATE, gate(CODE64, 0x5000, SYSTEM(3, 12), 0));
	put64(f, GDT + GATE + 8, 0x8000);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_far_call(v, GATE | 3, 0, 8, 0x107));
	put64(f, GDT + GATE + 8, 0x100ull << 32);
	ASSERT_FAULT(f, VECTOR_GP, GATE, x86_far_call(v, GATE | 3, 0, 8, 0x107));
	/* Task gates and TSSs are gone. */
	ASSERT_FAULT(f, VECTOR_GP, TSSD2, x86_far_call(v, TSSD2, 0, 8, 0x107));
}

static void push_iret(struct fixture *f, unsigned size, const uint64_t *values, unsigned count)
{
	struct cpu_state *s = &f->vcpu.state;
	s->gpr[RSP] = STACK;
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(memory_write(&f->memory, STACK + i * size, &values[i], size), 0);
}

static void test_iret_protected(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	s->rflags = FLAG_ONE;
	push_iret(f, 4, (uint64_t[]){0x500, CODE0, FLAG_ONE | FLAG_IF | FLAG_CF | FLAG_RF | 3 << 12}, 3);
	ASSERT_FINE(f, x86_iret(v, 4, 0x101));
	assert_int_equal(s->rip, 0x500);
	assert_int_equal(s->gpr[RSP], STACK + 12);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_IF | FLAG_CF | FLAG_RF | 3 << 12);
	/* To CPL 3 */
	s->nmi_blocked = 1;
	push_iret(f, 4, (uint64_t[]){0x600, CODE3 | 3, FLAG_ONE | FLAG_IF, 0x7000, DATA3 | 3}, 5);
	ASSERT_FINE(f, x86_iret(v, 4, 0x101));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->gpr[RSP], 0x7000);
	assert_int_equal(s->segment[SEG_SS].selector, DATA3 | 3);
	assert_int_equal(s->segment[SEG_DS].selector, 0);
	assert_int_equal(s->nmi_blocked, 0);
	/* At CPL 3 IF and IOPL are not to be had. */
	push_iret(f, 4, (uint64_t[]){0x700, CODE3 | 3, FLAG_ONE | 3 << 12}, 3);
	ASSERT_FINE(f, x86_iret(v, 4, 0x101));
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_IF);
	/* Never inwards. */
	push_iret(f, 4, (uint64_t[]){0x700, CODE0, FLAG_ONE}, 3);
	ASSERT_FAULT(f, VECTOR_GP, CODE0, x86_iret(v, 4, 0x101));
	assert_int_equal(s->rip, 0x700);
	set_cpl(f, 0);
	push_iret(f, 4, (uint64_t[]){0x700, CODE3 | 3, FLAG_ONE, 0x7000, DATA0 | 3}, 5);
	ASSERT_FAULT(f, VECTOR_GP, DATA0, x86_iret(v, 4, 0x101));
	push_iret(f, 4, (uint64_t[]){0x700, CODE3 | 3, FLAG_ONE, 0x7000, 0}, 5);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 4, 0x101));
	push_iret(f, 4, (uint64_t[]){0x700, CODE3 | 3, FLAG_ONE, 0x7000, ABSENT3 | 3}, 5);
	ASSERT_FAULT(f, VECTOR_SS, ABSENT3, x86_iret(v, 4, 0x101));
	push_iret(f, 4, (uint64_t[]){0x700, 0, FLAG_ONE}, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 4, 0x101));
	push_iret(f, 4, (uint64_t[]){0x10000, CODE16, FLAG_ONE}, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 4, 0x101));
	assert_int_equal(s->gpr[RSP], STACK);
}

static void test_iret_vm86(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	push_iret(f, 4,
	          (uint64_t[]){0x1234, 0xf000, FLAG_ONE | FLAG_VM | FLAG_IF, 0x8000, 0x100, 0x200, 0x300, 0x400, 0x500},
	          9);
	ASSERT_FINE(f, x86_iret(v, 4, 0x101));
	assert_true(cpu_virtual_8086(s));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->segment[SEG_CS].base, 0xf0000);
	assert_int_equal(s->segment[SEG_SS].base, 0x1000);
	assert_int_equal(s->segment[SEG_ES].base, 0x2000);
	assert_int_equal(s->segment[SEG_DS].base, 0x3000);
	assert_int_equal(s->segment[SEG_FS].base, 0x4000);
	assert_int_equal(s->segment[SEG_GS].base, 0x5000);
	assert_int_equal(s->gpr[RSP], 0x8000);
	/* In VM86 with IOPL 0: IRET faults, unless CR4.VME. */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 2, 0x1235));
	s->cr4 |= CR4_VME;
	put16(f, 0x1000 + 0x8000, 0x4321);
	put16(f, 0x1000 + 0x8002, 0xe000);
	put16(f, 0x1000 + 0x8004, FLAG_ONE | FLAG_IF | FLAG_ZF);
	s->rflags &= ~FLAG_IF;
	ASSERT_FINE(f, x86_iret(v, 2, 0x1235));
	assert_int_equal(s->rip, 0x4321);
	assert_int_equal(s->segment[SEG_CS].base, 0xe0000);
	assert_true(s->rflags & FLAG_VIF);
	assert_false(s->rflags & FLAG_IF);
	assert_true(s->rflags & FLAG_VM);
	/* VIP and IF: a pending virtual interrupt goes to the monitor. */
	s->rflags |= FLAG_VIP;
	s->gpr[RSP] = 0x8000;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 2, 0x1235));
}

static void test_iret_64(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	long_mode(f);
	/* SS:RSP is popped without a change of privilege too. */
	push_iret(f, 8, (uint64_t[]){0xffffffff81000000, CODE64, FLAG_ONE, 0x7008, 0}, 5);
	ASSERT_FINE(f, x86_iret(v, 8, 0x101));
	assert_int_equal(s->gpr[RSP], 0x7008);
	assert_int_equal(s->rip, 0xffffffff81000000);
	assert_true(s->segment[SEG_SS].access & SEG_UNUSABLE);
	push_iret(f, 8, (uint64_t[]){0x400000, CODE64_3 | 3, FLAG_ONE | FLAG_IF, 0x7000, DATA3 | 3}, 5);
	ASSERT_FINE(f, x86_iret(v, 8, 0x101));
	assert_int_equal(cpu_cpl(s), 3);
	assert_true(cpu_64bit_code(s));
	s->segment[SEG_CS] = segment_of(CODE64, CODE(0) | SEG_L);
	s->segment[SEG_SS] = segment_of(DATA0, DATA(0) | FLAT);
	mmu_update_view(v);
	/* To compatibility mode. */
	push_iret(f, 8, (uint64_t[]){0x400000, CODE3 | 3, FLAG_ONE, 0x1234500007000, DATA3 | 3}, 5);
	ASSERT_FINE(f, x86_iret(v, 8, 0x101));
	assert_false(cpu_64bit_code(s));
	assert_int_equal(s->gpr[RSP], 0x7000);
	s->segment[SEG_CS] = segment_of(CODE64, CODE(0) | SEG_L);
	s->segment[SEG_SS] = segment_of(DATA0, DATA(0) | FLAT);
	mmu_update_view(v);
	push_iret(f, 8, (uint64_t[]){0x800000000000, CODE64_3 | 3, FLAG_ONE, 0x7000, DATA3 | 3}, 5);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 8, 0x101));
	push_iret(f, 8, (uint64_t[]){0x400000, CODE64_3 | 3, FLAG_ONE, 0x7000, 3}, 5); /* null SS at CPL 3 */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 8, 0x101));
	s->rflags |= FLAG_NT;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_iret(v, 8, 0x101));
	/* L and D together. */
	s->rflags &= ~FLAG_NT;
	put64(f, GDT + SPARE, descriptor(0, 0xfffff, CODE(3) | SEG_L | SEG_DB));
	push_iret(f, 8, (uint64_t[]){0x400000, SPARE | 3, FLAG_ONE, 0x7000, DATA3 | 3}, 5);
	ASSERT_FAULT(f, VECTOR_GP, SPARE, x86_iret(v, 8, 0x101));
}

static void test_sysret(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	long_mode(f);
	s->msr.star = (uint64_t)CODE64 << 32 | 0x33ull << 48;
	s->msr.lstar = 0xffffffff80001000;
	s->msr.cstar = 0xffffffff80002000;
	s->msr.sfmask = FLAG_IF | FLAG_TF;
	s->rflags = FLAG_ONE | FLAG_IF | FLAG_CF;
	s->segment[SEG_CS] = segment_of(CODE64_3 | 3, CODE(3) | SEG_L);
	s->segment[SEG_SS] = segment_of(DATA3 | 3, DATA(3) | FLAT);
	ASSERT_FINE(f, x86_syscall(v, 0x400002));
	assert_int_equal(s->rip, 0xffffffff80001000);
	assert_int_equal(s->gpr[RCX], 0x400002);
	assert_int_equal(s->gpr[R11], FLAG_ONE | FLAG_IF | FLAG_CF);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF);
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->segment[SEG_SS].selector, CODE64 + 8);
	ASSERT_FINE(f, x86_sysret(v, 8));
	assert_int_equal(s->rip, 0x400002);
	assert_int_equal(cpu_cpl(s), 3);
	assert_true(cpu_64bit_code(s));
	assert_int_equal(s->segment[SEG_CS].selector, 0x43);
	assert_int_equal(s->segment[SEG_SS].selector, 0x3b);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_IF | FLAG_CF);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sysret(v, 8)); /* CPL 3 */
	/* Compatibility mode: AMD by CSTAR, Intel #UD. */
	s->segment[SEG_CS] = segment_of(CODE3 | 3, CODE(3) | FLAT);
	ASSERT_FINE(f, x86_syscall(v, 0x400002));
	assert_int_equal(s->rip, 0xffffffff80002000);
	ASSERT_FINE(f, x86_sysret(v, 4));
	assert_false(cpu_64bit_code(s));
	assert_int_equal(s->segment[SEG_CS].selector, 0x33);
	f->model.amd = false;
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_syscall(v, 0x400002));
	/* A non-canonical RCX: Intel at CPL 0, AMD at the target. */
	s->segment[SEG_CS] = segment_of(CODE64, CODE(0) | SEG_L);
	s->segment[SEG_SS] = segment_of(DATA0, DATA(0) | FLAT);
	s->gpr[RCX] = 0x800000000000;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sysret(v, 8));
	assert_int_equal(cpu_cpl(s), 0);
	f->model.amd = true;
	ASSERT_FINE(f, x86_sysret(v, 8));
	assert_int_equal(cpu_cpl(s), 3);
	s->efer &= ~EFER_SCE;
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_syscall(v, 0x400002));
}

static void test_sysenter(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sysenter(v));
	s->msr.sysenter_cs = CODE0 | 3;
	s->msr.sysenter_esp = INNER;
	s->msr.sysenter_eip = 0x5000;
	s->rflags = FLAG_ONE | FLAG_IF;
	ASSERT_FINE(f, x86_sysenter(v));
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->gpr[RSP], INNER);
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->segment[SEG_CS].selector, CODE0);
	assert_int_equal(s->rflags, FLAG_ONE);
	s->gpr[RCX] = 0x7000;
	s->gpr[RDX] = 0x600;
	ASSERT_FINE(f, x86_sysexit(v, 4));
	assert_int_equal(s->segment[SEG_CS].selector, CODE3 | 3);
	assert_int_equal(s->segment[SEG_SS].selector, DATA3 | 3);
	assert_int_equal(s->rip, 0x600);
	assert_int_equal(cpu_cpl(s), 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sysexit(v, 4));
	set_cpl(f, 0);
	long_mode(f);
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_sysenter(v)); /* AMD */
	f->model.amd = false;
	ASSERT_FINE(f, x86_sysenter(v));
	assert_true(cpu_64bit_code(s));
	s->gpr[RCX] = 0x800000000000;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sysexit(v, 8));
	s->gpr[RCX] = 0x7000;
	ASSERT_FINE(f, x86_sysexit(v, 8));
	assert_int_equal(s->segment[SEG_CS].selector, (CODE0 + 32) | 3);
}

static void put_tss32(struct fixture *f, uint64_t base, uint32_t eip, uint32_t eflags, uint32_t esp, uint16_t cs,
                      uint16_t ss)
{
	for (unsigned i = 0; i < 26; i++)
		put32(f, base + 4 * i, 0);
	put32(f, base + 32, eip);
	put32(f, base + 36, eflags);
	for (unsigned i = 0; i < 8; i++)
		put32(f, base + 40 + 4 * i, 0xa0000000 + i);
	put32(f, base + 56, esp);
	put32(f, base + 76, cs);
	put32(f, base + 80, ss);
	put32(f, base + 84, DATA3 | 3);
	put32(f, base + 72, READONLY3 | 3);
}

static void test_task_call_and_return(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	put_tss32(f, TSS2, 0x5000, FLAG_ONE | FLAG_CF, 0x7000, CODE0, DATA0);
	s->gpr[RAX] = 0x12345678;
	s->gpr[RSI] = 0x87654321;
	s->rflags = FLAG_ONE | FLAG_IF;
	s->dr[7] = 0x455;
	ASSERT_FINE(f, x86_far_call(v, TSSD2, 0xdead, 4, 0x107));
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF | FLAG_NT);
	assert_int_equal(s->gpr[RAX], 0xa0000000);
	assert_int_equal(s->gpr[RSP], 0x7000);
	assert_int_equal(s->segment[SEG_TR].selector, TSSD2);
	assert_int_equal(s->segment[SEG_DS].selector, DATA3 | 3);
	assert_int_equal(s->segment[SEG_ES].base, 0x12345678);
	assert_true(s->segment[SEG_FS].access & SEG_UNUSABLE);
	assert_true(s->cr0 & CR0_TS);
	assert_int_equal(s->dr[7], 0x400);
	assert_int_equal(get(f, TSS2, 2), TSSD); /* back link */
	assert_int_equal(get(f, GDT + TSSD + 5, 1) & 15, 11);
	assert_int_equal(get(f, GDT + TSSD2 + 5, 1) & 15, 11);
	assert_int_equal(get(f, TSS + 32, 4), 0x107);
	assert_int_equal(get(f, TSS + 36, 4), FLAG_ONE | FLAG_IF);
	assert_int_equal(get(f, TSS + 40, 4), 0x12345678);
	assert_int_equal(get(f, TSS + 64, 4), 0x87654321);
	assert_int_equal(get(f, TSS + 76, 4), CODE0);
	/* Not again: it is busy. */
	ASSERT_FAULT(f, VECTOR_GP, TSSD2, x86_far_call(v, TSSD2, 0, 4, 0));
	/* IRET with NT goes back. */
	s->gpr[RAX] = 5;
	ASSERT_FINE(f, x86_iret(v, 4, 0x5001));
	assert_int_equal(s->rip, 0x107);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_IF);
	assert_int_equal(s->gpr[RAX], 0x12345678);
	assert_int_equal(s->segment[SEG_TR].selector, TSSD);
	assert_int_equal(get(f, GDT + TSSD2 + 5, 1) & 15, 9);
	assert_int_equal(get(f, GDT + TSSD + 5, 1) & 15, 11);
	assert_int_equal(get(f, TSS2 + 32, 4), 0x5001);
	assert_int_equal(get(f, TSS2 + 36, 4), FLAG_ONE | FLAG_CF); /* NT cleared in the saved image */
	/* JMP: the old one becomes available, NT stays clear. */
	ASSERT_FINE(f, x86_far_jump(v, TSSD2, 0, 4, 0x107));
	assert_int_equal(s->rflags & FLAG_NT, 0);
	assert_int_equal(get(f, GDT + TSSD + 5, 1) & 15, 9);
	assert_int_equal(get(f, GDT + TSSD2 + 5, 1) & 15, 11);
}

static void test_task_gate_and_faults(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	put64(f, GDT + GATE, gate(TSSD2, 0, SYSTEM(3, 5), 0));
	put_tss32(f, TSS2, 0x5000, FLAG_ONE, 0x7000, CODE3 | 3, DATA3 | 3);
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, TSSD2, x86_far_call(v, TSSD2 | 3, 0, 4, 0x107)); /* the TSS's own DPL is 0 */
	ASSERT_FINE(f, x86_far_jump(v, GATE | 3, 0, 4, 0x107));
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->rip, 0x5000);
	set_cpl(f, 0);
	s->segment[SEG_TR] = (struct segment){.selector = TSSD, .base = TSS, .limit = 0x67, .access = SYSTEM(0, 11)};
	put64(f, GDT + TSSD2, descriptor(TSS2, 0x66, SYSTEM(0, 9)));
	ASSERT_FAULT(f, VECTOR_TS, TSSD2, x86_far_jump(v, TSSD2, 0, 4, 0x107));
	put64(f, GDT + TSSD2, descriptor(TSS2, 0x67, SYSTEM(0, 9) & ~SEG_P));
	ASSERT_FAULT(f, VECTOR_NP, TSSD2, x86_far_jump(v, TSSD2, 0, 4, 0x107));
	put64(f, GDT + TSSD2, descriptor(TSS2, 0x67, SYSTEM(0, 9)));
	s->rip = 0x100;
	s->rflags |= FLAG_NT;
	put16(f, TSS, TSSD2); /* a link to a task that is not busy */
	ASSERT_FAULT(f, VECTOR_TS, TSSD2, x86_iret(v, 4, 0x101));
	s->rflags &= ~FLAG_NT;
	assert_int_equal(s->rip, 0x100);

	/* A bad selector in the new task: the fault belongs to the new task. */
	put_tss32(f, TSS2, 0x5000, FLAG_ONE, 0x7000, CODE0, DATA3 | 3);
	ASSERT_FAULT(f, VECTOR_TS, DATA3, x86_far_jump(v, TSSD2, 0, 4, 0x107));
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->segment[SEG_TR].selector, TSSD2);
	assert_int_equal(cpu_cpl(s), 0);
	put_tss32(f, TSS, 0x6000, FLAG_ONE, 0x7000, ABSENT3 | 3, DATA0);
	put_tss32(f, TSS, 0x6000, FLAG_ONE, 0x7000, CODE0, DATA0);
	put32(f, TSS + 96, DATA0); /* a bad LDT */
	ASSERT_FAULT(f, VECTOR_TS, DATA0, x86_far_jump(v, TSSD, 0, 4, 0x107));
	assert_int_equal(s->rip, 0x6000);
}

static void test_task_16bit_and_debug_trap(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	for (unsigned i = 0; i < 22; i++)
		put16(f, TSS2 + 2 * i, 0);
	put16(f, TSS2 + 14, 0x5000);
	put16(f, TSS2 + 16, FLAG_ONE | FLAG_ZF);
	put16(f, TSS2 + 18, 0x1111);
	put16(f, TSS2 + 26, 0x7000);
	put16(f, TSS2 + 36, CODE16);
	put16(f, TSS2 + 38, DATA16);
	put16(f, TSS2 + 40, DATA16);
	ASSERT_FINE(f, x86_far_call(v, TSSD16, 0, 4, 0x107));
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_ZF | FLAG_NT);
	assert_int_equal(s->gpr[RAX] & 0xffff, 0x1111);
	assert_int_equal(s->gpr[RSP] & 0xffff, 0x7000);
	assert_int_equal(s->segment[SEG_CS].selector, CODE16);
	assert_int_equal(s->segment[SEG_DS].selector, DATA16);
	put32(f, TSS + 100, 1); /* T */
	ASSERT_FINE(f, x86_iret(v, 2, 0x5001));
	assert_int_equal(s->rip, 0x107);
	assert_int_equal(get(f, TSS2 + 14, 2), 0x5001);
	assert_int_equal(s->pending_debug, 1 << 15);
}

static void test_task_cr3(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	put_tss32(f, TSS2, 0x5000, FLAG_ONE, 0x7000, CODE0, DATA0);
	put32(f, TSS2 + 28, 0x200000);
	put32(f, 0x100000, 0x83); /* 4 MiB one to one */
	put32(f, 0x200000, 0x83);
	put32(f, 0x200004, 0x83); /* and 4 - 8 MiB to 0 in the new one */
	s->cr4 |= CR4_PSE;
	s->cr3 = 0x100000;
	s->cr0 |= CR0_PG;
	mmu_flush(v);
	ASSERT_FINE(f, x86_far_jump(v, TSSD2, 0, 4, 0x107));
	assert_int_equal(s->cr3, 0x200000);
	volatile uint64_t value = 0;
	ASSERT_FINE(f, value = mmu_read(v, 0x400000 + TSS2 + 32, 4));
	assert_int_equal(value, 0x5000);
}

static void test_io_permission(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	ASSERT_FINE(f, x86_check_io(v, 0x3f8, 4));
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x3f8, 1)); /* no bit map */
	s->segment[SEG_TR].limit = 0x68 + 0x80;
	put16(f, TSS + 102, 0x68);
	put8(f, TSS + 0x68 + 0x7f, 0x0f); /* ports 3f8-3fb forbidden */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x3f8, 1));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x3f7, 2)); /* crosses a byte */
	ASSERT_FINE(f, x86_check_io(v, 0x3f7, 1));
	ASSERT_FINE(f, x86_check_io(v, 0x3fc, 4));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x400, 1)); /* two bytes are read: the second is outside */
	s->rflags |= FLAG_IOPL;
	ASSERT_FINE(f, x86_check_io(v, 0x3f8, 1));
	s->rflags |= FLAG_VM; /* IOPL does not count */
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x3f8, 1));
	ASSERT_FINE(f, x86_check_io(v, 0x60, 1));
	s->segment[SEG_TR].access = SYSTEM(0, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_check_io(v, 0x60, 1)); /* a 16-bit TSS has none */
}

/*
 * Every access byte, CPL and RPL, against the manual's conditions written down once more, as tables of plain conditions
 * (SDM 2B MOV, 2A JMP, 2A LAR).
 */
struct expectation {
	int vector; /* -1: none */
	bool code, conforming, readable, writable, present, system;
	unsigned dpl;
};

static struct expectation decode(unsigned access)
{
	return (struct expectation){
	    .vector = -1,
	    .system = !(access & 0x10),
	    .code = (access & 0x18) == 0x18,
	    .conforming = (access & 0x1c) == 0x1c,
	    .readable = (access & 0x18) == 0x10 || (access & 0x1a) == 0x1a,
	    .writable = (access & 0x1a) == 0x12,
	    .present = access & 0x80,
	    .dpl = access >> 5 & 3,
	};
}

static int expect_data(unsigned access, unsigned cpl, unsigned rpl)
{
	struct expectation e = decode(access);
	if (e.system || !e.readable)
		return VECTOR_GP;
	if (!e.conforming && (rpl > e.dpl || cpl > e.dpl))
		return VECTOR_GP;
	return e.present ? -1 : VECTOR_NP;
}

static int expect_stack(unsigned access, unsigned cpl, unsigned rpl)
{
	struct expectation e = decode(access);
	if (rpl != cpl || !e.writable || e.dpl != cpl)
		return VECTOR_GP;
	return e.present ? -1 : VECTOR_SS;
}

/* Direct far jumps to code; system types are looked at elsewhere. */
static int expect_jump(unsigned access, unsigned cpl, unsigned rpl)
{
	struct expectation e = decode(access);
	if (!e.code)
		return VECTOR_GP;
	if (e.conforming ? e.dpl > cpl : rpl > cpl || e.dpl != cpl)
		return VECTOR_GP;
	return e.present ? -1 : VECTOR_NP;
}

static void any_cpl(struct fixture *f, unsigned cpl)
{
	struct cpu_state *s = &f->vcpu.state;
	s->segment[SEG_CS] = segment_of((uint16_t)(CODE0 | cpl), CODE(cpl) | FLAT);
	s->segment[SEG_SS] = segment_of((uint16_t)(DATA0 | cpl), DATA(cpl) | FLAT);
	mmu_update_view(&f->vcpu);
}

static int try_load(struct fixture *f, enum segment_register segment, uint16_t selector)
{
	return RAISED(f, segment_load(&f->vcpu, segment, selector));
}

static int try_jump(struct fixture *f, uint16_t selector)
{
	return RAISED(f, x86_far_jump(&f->vcpu, selector, 0x10, 4, 0));
}

static int try_return(struct fixture *f)
{
	return RAISED(f, x86_far_return(&f->vcpu, 4, 0, 0));
}

static int expect_return(unsigned access, unsigned cpl, unsigned rpl)
{
	struct expectation e = decode(access);
	if (!e.code || rpl < cpl || (e.conforming ? e.dpl > rpl : e.dpl != rpl))
		return VECTOR_GP;
	return e.present ? -1 : VECTOR_NP;
}

static void test_every_access_byte(void **state)
{
	struct fixture *f = *state;
	for (unsigned access = 0; access < 256; access++)
		for (unsigned cpl = 0; cpl < 4; cpl++)
			for (unsigned rpl = 0; rpl < 4; rpl++) {
				uint16_t selector = (uint16_t)(SPARE | rpl);
				uint64_t raw = descriptor(0, 0xfffff, access | FLAT);
				put64(f, GDT + SPARE, raw);
				any_cpl(f, cpl);
				int wanted = expect_data(access, cpl, rpl);
				assert_int_equal(try_load(f, SEG_ES, selector), wanted);
				assert_int_equal(get(f, GDT + SPARE, 8), wanted < 0 ? raw | 1ull << 40 : raw);
				put64(f, GDT + SPARE, raw);
				wanted = expect_stack(access, cpl, rpl);
				assert_int_equal(try_load(f, SEG_SS, selector), wanted);
				if (wanted >= 0)
					assert_int_equal(f->vcpu.exception.error, SPARE);
				put64(f, GDT + SPARE, raw);
				if (access & 0x10) {
					any_cpl(f, cpl);
					assert_int_equal(try_jump(f, selector), expect_jump(access, cpl, rpl));
					assert_int_equal(cpu_cpl(&f->vcpu.state), cpl);
				}
				if (rpl == cpl) { /* returns at the same level */
					any_cpl(f, cpl);
					f->vcpu.state.gpr[RSP] = STACK;
					put32(f, STACK, 0x10);
					put32(f, STACK + 4, selector);
					put64(f, GDT + SPARE, raw);
					assert_int_equal(try_return(f), expect_return(access, cpl, rpl));
				}
			}
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, fixture_destroy)
	const struct CMUnitTest tests[] = {
	    T(test_load_data),
	    T(test_load_conforming_and_cpl3),
	    T(test_load_ss),
	    T(test_real_mode),
	    T(test_linear),
	    T(test_ldt_and_tr),
	    T(test_lar_lsl_verify),
	    T(test_far_jump),
	    T(test_far_call_and_return),
	    T(test_call_gate),
	    T(test_call_gate_64),
	    T(test_iret_protected),
	    T(test_iret_vm86),
	    T(test_iret_64),
	    T(test_sysret),
	    T(test_sysenter),
	    T(test_task_call_and_return),
	    T(test_task_gate_and_faults),
	    T(test_task_16bit_and_debug_trap),
	    T(test_task_cr3),
	    T(test_io_permission),
	    T(test_every_access_byte),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
