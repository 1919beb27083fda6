/*
 * Delivery of exceptions and interrupts: frames, flags, stacks, error codes, double and triple faults, priorities.
 */
#include "x86_fixture.h"

#define GDT   0x1000ull
#define IDT   0x2000ull
#define TSS   0x3000ull
#define TSS2  0x4000ull
#define STACK 0x8000ull
#define INNER 0x9000ull
#define IST1  0xa000ull

enum {
	CODE0 = 0x08,
	DATA0 = 0x10,
	CODE3 = 0x18,
	DATA3 = 0x20,
	CONFORMING0 = 0x28,
	CODE64 = 0x30,
	CODE64_3 = 0x38,
	TSSD = 0x40,
	TSSD2 = 0x50,
};

#define CODE(dpl)         (SEG_P | SEG_S | (dpl) << 5 | SEG_CODE | SEG_READABLE)
#define DATA(dpl)         (SEG_P | SEG_S | (dpl) << 5 | SEG_WRITABLE)
#define FLAT              (SEG_G | SEG_DB)
#define SYSTEM(dpl, type) (SEG_P | (dpl) << 5 | (type))
#define INTERRUPT         14u
#define TRAP              15u

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t access)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(access & 0xff) << 40 |
	       (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(access >> 12 & 0xf) << 52 |
	       (uint64_t)(base >> 24) << 56;
}

static uint64_t gate(uint16_t selector, uint32_t offset, uint32_t access)
{
	return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)(access & 0xff) << 40 |
	       (uint64_t)(offset >> 16) << 48;
}

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

static void set_gate(struct fixture *f, unsigned vector, uint64_t value)
{
	put64(f, IDT + vector * 8, value);
}

/* Handlers of vector n are at 0x10000 + n * 0x100. */
static uint32_t handler(unsigned vector)
{
	return 0x10000 + vector * 0x100;
}

static int setup(void **state)
{
	struct fixture *f = fixture_create(true);
	struct cpu_state *s = &f->vcpu.state;
	*state = f;
	s->cr0 = CR0_PE | CR0_ET;
	s->gdtr = (struct descriptor_table){.base = GDT, .limit = 0xff};
	s->idtr = (struct descriptor_table){.base = IDT, .limit = 0x7ff};
	put64(f, GDT + CODE0, descriptor(0, 0xfffff, CODE(0) | FLAT));
	put64(f, GDT + DATA0, descriptor(0, 0xfffff, DATA(0) | FLAT));
	put64(f, GDT + CODE3, descriptor(0, 0xfffff, CODE(3) | FLAT));
	put64(f, GDT + DATA3, descriptor(0, 0xfffff, DATA(3) | FLAT));
	put64(f, GDT + CONFORMING0, descriptor(0, 0xfffff, CODE(0) | SEG_CONFORMING | FLAT));
	put64(f, GDT + CODE64, descriptor(0, 0xfffff, CODE(0) | SEG_L));
	put64(f, GDT + CODE64_3, descriptor(0, 0xfffff, CODE(3) | SEG_L));
	put64(f, GDT + TSSD, descriptor(TSS, 0x67, SYSTEM(0, 11)));
	put64(f, GDT + TSSD2, descriptor(TSS2, 0x67, SYSTEM(0, 9)));
	s->segment[SEG_TR] = (struct segment){.selector = TSSD, .base = TSS, .limit = 0x67, .access = SYSTEM(0, 11)};
	s->segment[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
	put32(f, TSS + 4, (uint32_t)INNER);
	put16(f, TSS + 8, DATA0);
	for (unsigned i = 0; i < 256; i++)
		set_gate(f, i, gate(CODE0, handler(i), SYSTEM(0, INTERRUPT)));
	for (unsigned i = 0; i < 6; i++)
		s->segment[i] = segment_of(DATA0, DATA(0) | FLAT);
	set_cpl(f, 0);
	s->gpr[RSP] = STACK;
	s->rip = 0x100;
	s->rflags = FLAG_ONE | FLAG_IF | FLAG_CF;
	return 0;
}

static void long_mode(struct fixture *f)
{
	struct cpu_state *s = &f->vcpu.state;
	put64(f, 0x100000, 0x101000 | 7);
	put64(f, 0x101000, 0x87);
	s->cr0 |= CR0_PG | CR0_WP;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	s->cr3 = 0x100000;
	s->segment[SEG_CS] = segment_of(CODE64, CODE(0) | SEG_L);
	s->idtr.limit = 0xfff;
	put64(f, TSS + 4, INNER);
	put64(f, TSS + 36, IST1);
	for (unsigned i = 0; i < 256; i++) {
		put64(f, IDT + i * 16, gate(CODE64, handler(i), SYSTEM(0, INTERRUPT)));
		put64(f, IDT + i * 16 + 8, 0xffff8000);
	}
	mmu_flush(&f->vcpu);
	mmu_update_view(&f->vcpu);
}

static void deliver(struct fixture *f, unsigned vector, bool has_error, uint32_t error, uint64_t address)
{
	f->vcpu.exception =
	    (struct exception){.vector = (uint8_t)vector, .has_error = has_error, .error = error, .address = address};
	exception_deliver(&f->vcpu);
	assert_null(f->vcpu.fault_target); /* as it was */
}

static void test_same_privilege(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	deliver(f, VECTOR_GP, true, 0x1234, 0);
	assert_int_equal(s->rip, handler(VECTOR_GP));
	assert_int_equal(s->gpr[RSP], STACK - 16);
	assert_int_equal(get(f, STACK - 4, 4), FLAG_ONE | FLAG_IF | FLAG_CF | FLAG_RF); /* a fault: RF in the image */
	assert_int_equal(get(f, STACK - 8, 4), CODE0);
	assert_int_equal(get(f, STACK - 12, 4), 0x100);
	assert_int_equal(get(f, STACK - 16, 4), 0x1234);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF);
	/* A trap gate leaves IF. */
	s->rflags |= FLAG_IF | FLAG_TF | FLAG_NT | FLAG_RF;
	set_gate(f, VECTOR_UD, gate(CODE0, handler(6), SYSTEM(0, TRAP)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF | FLAG_IF);
	assert_int_equal(s->gpr[RSP], STACK - 28);
}

static void test_inner(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	set_cpl(f, 3);
	deliver(f, VECTOR_PF, true, PF_USER, 0xdeadb000);
	assert_int_equal(s->cr2, 0xdeadb000);
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->gpr[RSP], INNER - 24);
	assert_int_equal(get(f, INNER - 4, 4), DATA3 | 3);
	assert_int_equal(get(f, INNER - 8, 4), STACK);
	assert_int_equal(get(f, INNER - 16, 4), CODE3 | 3);
	assert_int_equal(get(f, INNER - 24, 4), PF_USER);
	assert_int_equal(s->segment[SEG_SS].selector, DATA0);
	/* A conforming handler stays at CPL 3, on its stack. */
	set_cpl(f, 3);
	s->gpr[RSP] = STACK;
	set_gate(f, VECTOR_DE, gate(CONFORMING0, handler(0), SYSTEM(0, INTERRUPT)));
	deliver(f, VECTOR_DE, false, 0, 0);
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->segment[SEG_CS].selector, CONFORMING0 | 3);
	assert_int_equal(s->gpr[RSP], STACK - 12);
}

static void test_16bit_gate(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	set_gate(f, VECTOR_GP, gate(CODE0, 0xabcd1234, SYSTEM(0, 6)));
	deliver(f, VECTOR_GP, true, 0x10, 0);
	assert_int_equal(s->rip, 0x1234);
	assert_int_equal(s->gpr[RSP], STACK - 8);
	assert_int_equal(get(f, STACK - 2, 2), (FLAG_ONE | FLAG_IF | FLAG_CF) & 0xffff);
	assert_int_equal(get(f, STACK - 8, 2), 0x10);
}

static void test_nested_faults(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	/* #UD (benign), whose gate is not present: #NP with the vector, EXT. */
	set_gate(f, VECTOR_UD, gate(CODE0, 0, SYSTEM(0, INTERRUPT) & ~SEG_P));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rip, handler(VECTOR_NP));
	assert_int_equal(get(f, STACK - 16, 4), VECTOR_UD * 8 + 3);
	assert_int_equal(get(f, STACK - 12, 4), 0x100);
	/* #GP whose gate is not present: double fault. */
	s->gpr[RSP] = STACK;
	s->rip = 0x100;
	set_gate(f, VECTOR_GP, gate(CODE0, 0, SYSTEM(0, INTERRUPT) & ~SEG_P));
	deliver(f, VECTOR_GP, true, 0x55, 0);
	assert_int_equal(s->rip, handler(VECTOR_DF));
	assert_int_equal(get(f, STACK - 16, 4), 0);
	assert_int_equal(get(f, STACK - 4, 4) & FLAG_RF, 0);
	/* #PF, then #GP by a bad gate type: double fault. */
	s->gpr[RSP] = STACK;
	s->rip = 0x100;
	set_gate(f, VECTOR_PF, gate(CODE0, 0, SYSTEM(0, 12)));
	deliver(f, VECTOR_PF, true, 0, 0x5000);
	assert_int_equal(s->rip, handler(VECTOR_DF));
	/* And with a bad double fault gate: shutdown. */
	set_gate(f, VECTOR_DF, gate(DATA0, 0, SYSTEM(0, INTERRUPT)));
	s->rip = 0x100;
	deliver(f, VECTOR_GP, true, 0, 0);
	assert_int_equal(s->activity, ACTIVITY_SHUTDOWN);
	assert_int_equal(s->rip, 0x100);
}

static void test_idt_limit_and_selectors(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	s->idtr.limit = 0xff; /* vectors 0-31 */
	interrupt_deliver(&f->vcpu, 0x20, false);
	assert_int_equal(s->rip, handler(VECTOR_GP));
	assert_int_equal(get(f, STACK - 16, 4), 0x20 * 8 + 3);
	/* Null selector in a gate. */
	s->gpr[RSP] = STACK;
	set_gate(f, VECTOR_UD, gate(0, 0, SYSTEM(0, INTERRUPT)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(get(f, STACK - 16, 4), 1);
	/* A data segment. */
	s->gpr[RSP] = STACK;
	set_gate(f, VECTOR_UD, gate(DATA0, 0, SYSTEM(0, INTERRUPT)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(get(f, STACK - 16, 4), DATA0 | 1);
	/* To an outer level. */
	s->gpr[RSP] = STACK;
	set_gate(f, VECTOR_UD, gate(CODE3 | 3, 0, SYSTEM(0, INTERRUPT)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(get(f, STACK - 16, 4), CODE3 | 1);
}

static void test_bad_inner_stack(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	/* #UD at CPL 3 with a bad SS0: #TS; its own delivery has the same stack: double fault; then triple. */
	set_cpl(f, 3);
	put16(f, TSS + 8, DATA3 | 3);
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->activity, ACTIVITY_SHUTDOWN);
	assert_int_equal(cpu_cpl(s), 3);
	assert_int_equal(s->gpr[RSP], STACK);
	/* With #TS and #DF through conforming code the error code can be seen. */
	s->activity = ACTIVITY_RUNNING;
	set_gate(f, VECTOR_TS, gate(CONFORMING0, handler(VECTOR_TS), SYSTEM(0, INTERRUPT)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rip, handler(VECTOR_TS));
	assert_int_equal(get(f, STACK - 16, 4), DATA3 | 1);
}

static void test_vm86(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	static const uint16_t selectors[6] = {0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000};
	s->rflags |= FLAG_VM;
	for (unsigned i = 0; i < 6; i++)
		segment_load_real(&f->vcpu, i, selectors[i]);
	mmu_update_view(&f->vcpu);
	deliver(f, VECTOR_GP, true, 0, 0);
	assert_int_equal(s->gpr[RSP], INNER - 40);
	assert_int_equal(get(f, INNER - 4, 4), 0x6000);  /* GS */
	assert_int_equal(get(f, INNER - 8, 4), 0x5000);  /* FS */
	assert_int_equal(get(f, INNER - 12, 4), 0x4000); /* DS */
	assert_int_equal(get(f, INNER - 16, 4), 0x1000); /* ES */
	assert_int_equal(get(f, INNER - 20, 4), 0x3000); /* SS */
	assert_int_equal(get(f, INNER - 24, 4), STACK);
	assert_true(get(f, INNER - 28, 4) & FLAG_VM);
	assert_int_equal(get(f, INNER - 32, 4), 0x2000); /* CS */
	assert_false(s->rflags & FLAG_VM);
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->segment[SEG_DS].selector, 0);
	assert_true(s->segment[SEG_GS].access & SEG_UNUSABLE);
}

static void test_vm86_software(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	s->rflags |= FLAG_VM;
	for (unsigned i = 0; i < 6; i++)
		segment_load_real(v, i, 0x1000);
	mmu_update_view(v);
	ASSERT_FAULT(f, VECTOR_GP, 0, software_interrupt(v, SOFTWARE_INT_N, 0x21, 0x102)); /* IOPL 0, no VME */
	/* IOPL 3: the IDT; DPL is checked against CPL 3. */
	s->rflags |= FLAG_IOPL;
	ASSERT_FAULT(f, VECTOR_GP, 0x21 * 8 + 2, software_interrupt(v, SOFTWARE_INT_N, 0x21, 0x102));
	/* VME: the bit map below the I/O map chooses the 8086 program's own handler. */
	s->cr4 |= CR4_VME;
	s->rflags &= ~FLAG_IOPL;
	s->rflags = (s->rflags & ~FLAG_IF) | FLAG_VIF;
	s->segment[SEG_TR].limit = 0x68 + 32 + 10;
	put16(f, TSS + 102, 0x68 + 32);
	put32(f, 0x21 * 4, 0xe0001234);
	ASSERT_FINE(f, software_interrupt(v, SOFTWARE_INT_N, 0x21, 0x102));
	assert_int_equal(s->rip, 0x1234);
	assert_int_equal(s->segment[SEG_CS].selector, 0xe000);
	assert_int_equal(s->segment[SEG_CS].base, 0xe0000);
	assert_int_equal(get(f, 0x10000 + STACK - 2, 2),
	                 FLAG_ONE | FLAG_CF | FLAG_IF | FLAG_IOPL); /* IF is VIF, IOPL 3 */
	assert_int_equal(get(f, 0x10000 + STACK - 4, 2), 0x1000);
	assert_int_equal(get(f, 0x10000 + STACK - 6, 2), 0x102);
	assert_false(s->rflags & FLAG_VIF);
	assert_true(s->rflags & FLAG_VM);
	put8(f, TSS + 0x68 + 0x21 / 8, 1 << (0x21 % 8));
	ASSERT_FAULT(f, VECTOR_GP, 0, software_interrupt(v, SOFTWARE_INT_N, 0x21, 0x102));
	/* INT3 goes through the IDT whatever IOPL is. */
	set_gate(f, 3, gate(CODE0, handler(3), SYSTEM(3, TRAP)));
	ASSERT_FINE(f, software_interrupt(v, SOFTWARE_INT3, 3, 0x101));
	assert_int_equal(s->rip, handler(3));
}

static void test_software_interrupts(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	set_cpl(f, 3);
	ASSERT_FAULT(f, VECTOR_GP, 0x80 * 8 + 2,
	             software_interrupt(v, SOFTWARE_INT_N, 0x80, 0x102)); /* DPL; EXT is 0 */
	ASSERT_FAULT(f, VECTOR_GP, 4 * 8 + 2, software_interrupt(v, SOFTWARE_INTO, 4, 0x101));
	assert_int_equal(s->rip, 0x100);
	set_gate(f, 0x80, gate(CODE0, handler(0x80), SYSTEM(3, TRAP)));
	ASSERT_FINE(f, software_interrupt(v, SOFTWARE_INT_N, 0x80, 0x102));
	assert_int_equal(s->rip, handler(0x80));
	assert_int_equal(get(f, INNER - 20, 4), 0x102);
	assert_int_equal(get(f, INNER - 12, 4), FLAG_ONE | FLAG_IF | FLAG_CF);
	set_cpl(f, 3);
	ASSERT_FINE(f, software_interrupt(v, SOFTWARE_INT1, 1, 0x101)); /* no DPL check */
	assert_int_equal(s->rip, handler(1));
	set_cpl(f, 3);
	set_gate(f, 0x80, gate(CODE0, 0, SYSTEM(3, TRAP) & ~SEG_P));
	ASSERT_FAULT(f, VECTOR_NP, 0x80 * 8 + 2, software_interrupt(v, SOFTWARE_INT_N, 0x80, 0x102));
}

static void test_real_mode(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	s->cr0 = 0;
	s->idtr = (struct descriptor_table){.base = 0, .limit = 0x3ff};
	for (unsigned i = 0; i < 6; i++) {
		s->segment[i] = segment_of(0x1000, DATA(0));
		s->segment[i].base = 0x10000;
		s->segment[i].limit = 0xffff;
	}
	put32(f, 0x10 * 4, 0xf0001234);
	s->rflags |= FLAG_TF;
	ASSERT_FINE(f, software_interrupt(v, SOFTWARE_INT_N, 0x10, 0x102));
	assert_int_equal(s->rip, 0x1234);
	assert_int_equal(s->segment[SEG_CS].base, 0xf0000);
	assert_int_equal(s->gpr[RSP], STACK - 6);
	assert_int_equal(get(f, 0x10000 + STACK - 2, 2), FLAG_ONE | FLAG_CF | FLAG_IF | FLAG_TF);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF);
	/* Exceptions push no error code. */
	put32(f, VECTOR_GP * 4, 0xf0005678);
	deliver(f, VECTOR_GP, true, 0, 0);
	assert_int_equal(s->gpr[RSP], STACK - 12);
	assert_int_equal(s->rip, 0x5678);
	/* Outside the table: shutdown by way of #GP and #DF. */
	s->idtr.limit = 3;
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->activity, ACTIVITY_SHUTDOWN);
}

static void test_long(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	long_mode(f);
	s->gpr[RSP] = STACK - 3; /* aligned down to 16 */
	deliver(f, VECTOR_GP, true, 0x18, 0);
	assert_int_equal(s->rip, 0xffff800000000000 | handler(VECTOR_GP));
	assert_int_equal(s->gpr[RSP], STACK - 16 - 48);
	assert_int_equal(get(f, STACK - 16 - 8, 8), DATA0); /* SS is pushed and stays */
	assert_int_equal(get(f, STACK - 16 - 16, 8), STACK - 3);
	assert_int_equal(get(f, STACK - 16 - 24, 8), FLAG_ONE | FLAG_IF | FLAG_CF | FLAG_RF);
	assert_int_equal(get(f, STACK - 16 - 48, 8), 0x18);
	assert_int_equal(s->segment[SEG_SS].selector, DATA0);
	/* From CPL 3, compatibility mode: null SS. */
	set_cpl(f, 3);
	s->gpr[RSP] = STACK;
	interrupt_deliver(&f->vcpu, 0x40, false);
	assert_true(cpu_64bit_code(s));
	assert_int_equal(cpu_cpl(s), 0);
	assert_int_equal(s->segment[SEG_SS].selector, 0);
	assert_true(s->segment[SEG_SS].access & SEG_UNUSABLE);
	assert_int_equal(s->gpr[RSP], INNER - 40);
	assert_int_equal(get(f, INNER - 8, 8), DATA3 | 3);
	assert_int_equal(get(f, INNER - 24, 8), FLAG_ONE | FLAG_CF); /* an interrupt: no RF */
	/* IST, without a change of privilege. */
	put64(f, IDT + 2 * 16, gate(CODE64, handler(2), SYSTEM(0, INTERRUPT)) | 1ull << 32);
	interrupt_deliver(&f->vcpu, 2, true);
	assert_int_equal(s->gpr[RSP], IST1 - 40);
	assert_int_equal(s->nmi_blocked, 1);
	/* Code that is not 64-bit. */
	put64(f, IDT + VECTOR_UD * 16, gate(CODE0, handler(6), SYSTEM(0, INTERRUPT)));
	s->gpr[RSP] = STACK;
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rip & 0xfffff, handler(VECTOR_GP));
	assert_int_equal(get(f, STACK - 48, 8), CODE0 | 1);
	/* A task gate is no gate any more. */
	put64(f, IDT + VECTOR_UD * 16, gate(TSSD2, 0, SYSTEM(0, 5)));
	s->gpr[RSP] = STACK;
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(get(f, STACK - 48, 8), VECTOR_UD * 8 + 3);
	/* A non-canonical stack: #SS, which has the same stack: double fault, shutdown. */
	s->gpr[RSP] = 0x800000000010;
	deliver(f, VECTOR_BP, false, 0, 0);
	assert_int_equal(s->activity, ACTIVITY_SHUTDOWN);
}

static void test_stack_page_fault(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	long_mode(f);
	/* The kernel's stack is not mapped: #PF while delivering #UD is a plain #PF on IST 1. */
	s->gpr[RSP] = 0x40001000;
	put64(f, IDT + VECTOR_PF * 16, gate(CODE64, handler(VECTOR_PF), SYSTEM(0, INTERRUPT)) | 1ull << 32);
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rip & 0xfffff, handler(VECTOR_PF));
	assert_int_equal(s->cr2 & ~0xfffull, 0x40000000);
	assert_int_equal(get(f, IST1 - 48, 8), PF_WRITE);
	assert_int_equal(get(f, IST1 - 40, 8), 0x100);
	/* #PF during #PF: double fault, CR2 is the second's. */
	put64(f, IDT + VECTOR_PF * 16, gate(CODE64, handler(VECTOR_PF), SYSTEM(0, INTERRUPT)));
	put64(f, IDT + VECTOR_DF * 16, gate(CODE64, handler(VECTOR_DF), SYSTEM(0, INTERRUPT)) | 1ull << 32);
	s->gpr[RSP] = 0x40001000;
	deliver(f, VECTOR_PF, true, 0, 0x1234);
	assert_int_equal(s->rip & 0xfffff, handler(VECTOR_DF));
	assert_int_equal(s->cr2 & ~0xfffull, 0x40000000);
	assert_int_equal(get(f, IST1 - 48, 8), 0);
}

static void test_task_gate(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;
	for (unsigned i = 0; i < 26; i++)
		put32(f, TSS2 + 4 * i, 0);
	put32(f, TSS2 + 32, 0x5000);
	put32(f, TSS2 + 36, FLAG_ONE);
	put32(f, TSS2 + 56, 0x7000);
	put32(f, TSS2 + 76, CODE0);
	put32(f, TSS2 + 80, DATA0);
	set_gate(f, VECTOR_DF, gate(TSSD2, 0, SYSTEM(0, 5)));
	set_cpl(f, 3);
	deliver(f, VECTOR_DF, true, 0x99, 0);
	assert_int_equal(s->rip, 0x5000);
	assert_int_equal(s->gpr[RSP], 0x6ffc);
	assert_int_equal(get(f, 0x6ffc, 4), 0x99);
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_NT);
	assert_int_equal(get(f, TSS + 32, 4), 0x100);
	assert_int_equal(get(f, TSS2, 2), TSSD);
	/* Again: the TSS is busy, #GP(selector + EXT). */
	s->gpr[RSP] = STACK;
	set_gate(f, VECTOR_UD, gate(TSSD2, 0, SYSTEM(0, 5)));
	deliver(f, VECTOR_UD, false, 0, 0);
	assert_int_equal(s->rip, handler(VECTOR_GP));
	assert_int_equal(get(f, STACK - 16, 4), TSSD2 | 1);
}

static void test_debug(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	s->dr[6] = 0xffff0ff0 | 1 << 15 | 2;
	s->dr[7] = 0x400 | 1 << 13;
	ASSERT_FAULT(f, VECTOR_DB, 0, x86_mov_from_dr(v, 0)); /* general detect */
	exception_deliver(v);
	assert_int_equal(s->dr[6], 0xffff0ff0 | 1 << 15 | 1 << 13);
	assert_int_equal(s->dr[7], 0x400);
	assert_true(get(f, STACK - 4, 4) & FLAG_RF);
	/* Single step is a trap. */
	s->gpr[RSP] = STACK;
	s->rflags |= FLAG_TF;
	deliver(f, VECTOR_DB, false, 0, 1 << 14);
	assert_false(get(f, STACK - 4, 4) & FLAG_RF);
	assert_true(get(f, STACK - 4, 4) & FLAG_TF);
	assert_false(s->rflags & FLAG_TF);
	/* DR4, DR5; reserved bits; upper half. */
	ASSERT_FINE(f, x86_mov_to_dr(v, 5, 0xffffffff));
	assert_int_equal(s->dr[7], 0xffff27ff);
	s->dr[7] = 0x400;
	s->cr4 |= CR4_DE;
	ASSERT_FAULT(f, VECTOR_UD, 0, x86_mov_to_dr(v, 5, 0));
	ASSERT_FINE(f, x86_mov_to_dr(v, 6, 0));
	assert_int_equal(s->dr[6], 0xffff0ff0);
	s->efer = EFER_LMA;
	s->segment[SEG_CS].access |= SEG_L;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_dr(v, 7, 1ull << 32));
	s->segment[SEG_SS].access |= SEG_DPL_MASK;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_mov_to_dr(v, 0, 0));
}

static int pic_vector;

static int acknowledge(void *owner)
{
	struct vcpu *v = owner;
	atomic_store(&v->extint_line, false);
	return pic_vector;
}

static void test_take(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	v->extint_acknowledge = acknowledge;
	v->extint_owner = v;
	pic_vector = 0x28;
	assert_false(interrupts_deliverable(v));
	assert_false(interrupts_take(v));
	/* Blocked by the shadow, then by IF. */
	atomic_store(&v->extint_line, true);
	atomic_store(&v->attention, ATTENTION_INTERRUPT);
	s->interrupt_shadow = SHADOW_STI;
	assert_false(interrupts_take(v));
	assert_int_equal(atomic_load(&v->attention), ATTENTION_INTERRUPT); /* due at the next boundary */
	s->interrupt_shadow = 0;
	s->rflags &= ~FLAG_IF;
	assert_false(interrupts_take(v));
	assert_int_equal(atomic_load(&v->attention), 0);
	interrupt_window_opened(v);
	assert_int_equal(atomic_load(&v->attention), 0);
	ASSERT_FINE(f, x86_sti(v));
	assert_int_equal(atomic_load(&v->attention), ATTENTION_INTERRUPT);
	/* Everything at once: debug trap, NMI, interrupt. */
	s->pending_debug = 1 << 14;
	atomic_fetch_or(&v->attention, ATTENTION_NMI);
	s->activity = ACTIVITY_HALTED;
	set_gate(f, VECTOR_DB, gate(CODE0, handler(1), SYSTEM(0, TRAP)));
	set_gate(f, VECTOR_NMI, gate(CODE0, handler(2), SYSTEM(0, TRAP)));
	assert_true(interrupts_take(v));
	assert_int_equal(s->rip, handler(1));
	assert_int_equal(s->dr[6] & (1 << 14), 1 << 14);
	assert_true(interrupts_take(v));
	assert_int_equal(s->rip, handler(2));
	assert_int_equal(s->activity, ACTIVITY_RUNNING);
	assert_true(interrupts_take(v));
	assert_int_equal(s->rip, handler(0x28));
	assert_false(interrupts_take(v));
	/* A second NMI waits for IRET. */
	atomic_fetch_or(&v->attention, ATTENTION_NMI);
	assert_false(interrupts_take(v));
	assert_int_equal(s->nmi_pending, 1);
	ASSERT_FINE(f, x86_iret(v, 4, 0x2001));
	assert_true(atomic_load(&v->attention) & ATTENTION_INTERRUPT);
	assert_true(interrupts_take(v));
	assert_int_equal(s->rip, handler(2));
	/* MOV SS holds a debug trap back. */
	s->pending_debug = 1;
	s->interrupt_shadow = SHADOW_MOV_SS;
	assert_false(interrupts_take(v));
	assert_int_equal(s->pending_debug, 1);
}

static void test_flags_instructions(void **state)
{
	struct fixture *f = *state;
	struct vcpu *v = &f->vcpu;
	struct cpu_state *s = &v->state;
	volatile uint64_t image = 0;
	ASSERT_FINE(f, x86_cli(v));
	assert_false(s->rflags & FLAG_IF);
	ASSERT_FINE(f, x86_popf(v, 4, 0xffffffff));
	assert_int_equal(s->rflags, 0x247fd7);
	ASSERT_FINE(f, image = x86_pushf(v, 4));
	assert_int_equal(image, 0x247fd7);
	set_cpl(f, 3);
	s->rflags = FLAG_ONE;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_cli(v));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sti(v));
	ASSERT_FINE(f, x86_popf(v, 4, FLAG_IF | FLAG_IOPL | FLAG_CF));
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF);
	/* PVI: CLI and STI touch VIF. */
	s->cr4 |= CR4_PVI;
	ASSERT_FINE(f, x86_sti(v));
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF | FLAG_VIF);
	ASSERT_FINE(f, x86_cli(v));
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_CF);
	s->rflags |= FLAG_VIP;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_sti(v));
	s->rflags = FLAG_ONE | FLAG_IOPL;
	ASSERT_FINE(f, x86_sti(v));
	assert_true(s->rflags & FLAG_IF);
	/* VM86 */
	s->cr4 = 0;
	s->rflags = FLAG_ONE | FLAG_VM;
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_pushf(v, 2));
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_popf(v, 2, 0));
	s->cr4 = CR4_VME;
	ASSERT_FINE(f, image = x86_pushf(v, 2));
	assert_int_equal((uint16_t)image, FLAG_ONE | FLAG_IOPL);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_pushf(v, 4));
	ASSERT_FINE(f, x86_popf(v, 2, FLAG_IF | FLAG_CF));
	assert_int_equal(s->rflags, FLAG_ONE | FLAG_VM | FLAG_VIF | FLAG_CF);
	ASSERT_FAULT(f, VECTOR_GP, 0, x86_popf(v, 2, FLAG_TF));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, fixture_destroy)
	const struct CMUnitTest tests[] = {
	    T(test_same_privilege),
	    T(test_inner),
	    T(test_16bit_gate),
	    T(test_nested_faults),
	    T(test_idt_limit_and_selectors),
	    T(test_bad_inner_stack),
	    T(test_vm86),
	    T(test_vm86_software),
	    T(test_software_interrupts),
	    T(test_real_mode),
	    T(test_long),
	    T(test_stack_page_fault),
	    T(test_task_gate),
	    T(test_debug),
	    T(test_take),
	    T(test_flags_instructions),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
