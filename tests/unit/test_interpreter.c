/*
 * The interpreter on small programs, without a PC: one vCPU with memory and a bus, no local APIC.
 *
 * Programs are assembled into this test's read-only data and copied to guest memory at CODE. Each ends with HLT.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "devices/bus.h"
#include "engines/engine.h"
#include "engines/interpreter/cache.h"
#include "engines/interpreter/native.h"
#include "machine/clock.h"
#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/system.h"

#define MEMORY_BYTES (16u << 20)
#define CODE         0x10000ull
#define DATA         0x20000ull
#define STACK        0x30000ull
#define GDT          0x1000ull
#define IDT          0x2000ull
#define TABLES       0x4000ull /* page tables */

/* PROGRAM(name, bits, text): name_start .. name_end */
#define PROGRAM(name, bits, text)                                                                                      \
	__asm__(".pushsection .rodata\n.globl " #name "_start, " #name "_end\n.code" #bits "\n" #name "_start:\n" text \
	        "\n" #name "_end:\n.code64\n.popsection\n");                                                           \
	extern const uint8_t name##_start[], name##_end[]

struct fixture {
	struct vcpu vcpu;
	struct memory memory;
	struct bus bus;
	struct clock *clock;
	struct cpu_model model;
	uint32_t port_written[16];
	unsigned port_writes;
};

static uint64_t port_read(void *device, uint64_t offset, unsigned size)
{
	return 0x11223344;
}

static void port_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct fixture *f = device;

	if (f->port_writes < 16)
		f->port_written[f->port_writes] = (uint32_t)value;
	f->port_writes++;
}

static const struct bus_ops ports = {.read = port_read, .write = port_write, .max_size = 4};

static int setup(void **state)
{
	struct fixture *f = aligned_alloc(64, (sizeof(*f) + 63) & ~63ul);
	char why[256];

	assert_non_null(f);
	memset(f, 0, sizeof(*f));
	assert_int_equal(memory_create(&f->memory, MEMORY_BYTES), 0);
	bus_init(&f->bus, NULL);
	assert_int_equal(bus_add_ports(&f->bus, 0xe0, 8, "test", &ports, f), 0);
	f->clock = clock_create_manual();
	assert_non_null(f->clock);
	assert_int_equal(cpu_model_create(&f->model, "host", 1, clock_tsc_khz(f->clock), why), 0);
	f->vcpu.memory = &f->memory;
	f->vcpu.bus = &f->bus;
	f->vcpu.clock = f->clock;
	f->vcpu.model = &f->model;
	f->vcpu.engine = &engine_interpreter;
	assert_int_equal(mmu_create(&f->vcpu), 0);
	cpu_reset(&f->vcpu, true);
	assert_int_equal(engine_interpreter.vcpu_create(&f->vcpu), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	engine_interpreter.vcpu_destroy(&f->vcpu);
	mmu_destroy(&f->vcpu);
	clock_destroy(f->clock);
	memory_destroy(&f->memory);
	free(f);
	return 0;
}

static void set_segment(struct fixture *f, enum segment_register n, uint16_t selector, uint64_t base, uint32_t limit,
                        uint32_t access)
{
	f->vcpu.state.segment[n] =
	    (struct segment){.base = base, .limit = limit, .access = access, .selector = selector};
}

static void set_data_segments(struct fixture *f, uint16_t selector, uint64_t base, uint32_t limit, uint32_t access)
{
	for (enum segment_register n = SEG_ES; n <= SEG_GS; n++)
		if (n != SEG_CS)
			set_segment(f, n, selector, base, limit, access);
}

/* cmocka puts its own handlers around every test; put back the engine's, which main() has installed. */
static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction handlers[4];

static void use_handlers(void)
{
	for (unsigned i = 0; i < 4; i++)
		sigaction(signals[i], &handlers[i], NULL);
}

static void start(struct fixture *f, const uint8_t *code, const uint8_t *end)
{
	struct cpu_state *s = &f->vcpu.state;

	assert_int_equal(memory_write(&f->memory, CODE, code, (uint64_t)(end - code)), 0);
	use_handlers();
	s->gpr[RSP] = STACK;
	s->rflags = FLAG_ONE;
	mmu_update_view(&f->vcpu);
	engine_interpreter.state_changed(&f->vcpu);
}

/* 64-bit code, CPL 0, the first 1 GiB mapped one to one by large pages. */
static void start_64(struct fixture *f, const uint8_t *code, const uint8_t *end)
{
	struct cpu_state *s = &f->vcpu.state;
	uint64_t entry = (TABLES + 0x1000) | 7;

	memory_write(&f->memory, TABLES, &entry, 8);
	entry = (TABLES + 0x2000) | 7;
	memory_write(&f->memory, TABLES + 0x1000, &entry, 8);
	for (uint64_t i = 0; i < 512; i++) {
		entry = i << 21 | 0x87;
		memory_write(&f->memory, TABLES + 0x2000 + i * 8, &entry, 8);
	}
	s->cr3 = TABLES;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_ET | CR0_WP;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	set_segment(f, SEG_CS, 8, 0, 0xffffffff, 0xb | SEG_S | SEG_P | SEG_L | SEG_G);
	set_data_segments(f, 16, 0, 0xffffffff, 3 | SEG_S | SEG_P | SEG_DB | SEG_G);
	s->rip = CODE;
	mmu_flush(&f->vcpu);
	start(f, code, end);
}

static void start_32(struct fixture *f, const uint8_t *code, const uint8_t *end)
{
	struct cpu_state *s = &f->vcpu.state;

	s->cr0 = CR0_PE | CR0_ET | CR0_NE;
	set_segment(f, SEG_CS, 8, 0, 0xffffffff, 0xb | SEG_S | SEG_P | SEG_DB | SEG_G);
	set_data_segments(f, 16, 0, 0xffffffff, 3 | SEG_S | SEG_P | SEG_DB | SEG_G);
	s->rip = CODE;
	start(f, code, end);
}

static void start_16(struct fixture *f, const uint8_t *code, const uint8_t *end)
{
	set_segment(f, SEG_CS, CODE >> 4, CODE, 0xffff, 0xb | SEG_S | SEG_P);
	set_data_segments(f, DATA >> 4, DATA, 0xffff, 3 | SEG_S | SEG_P);
	f->vcpu.state.rip = 0;
	start(f, code, end);
	f->vcpu.state.gpr[RSP] = 0x8000;
}

/* Runs to HLT. */
static void run(struct fixture *f)
{
	f->vcpu.debug.intercept_exceptions = ~0u;
	int reason = (int)engine_interpreter.run(&f->vcpu);
	if (reason == EXIT_EXCEPTION)
		print_error("exception %u at %#llx\n", f->vcpu.exception.vector, (unsigned long long)f->vcpu.state.rip);
	assert_int_equal(reason, EXIT_HALT);
	f->vcpu.state.activity = ACTIVITY_RUNNING;
}

static uint64_t *gpr(struct fixture *f)
{
	return f->vcpu.state.gpr;
}

static uint64_t read64(struct fixture *f, uint64_t physical)
{
	uint64_t value;

	assert_int_equal(memory_read(&f->memory, physical, &value, 8), 0);
	return value;
}

#define RUN_64(f, name)                                                                                                \
	do {                                                                                                           \
		start_64(f, name##_start, name##_end);                                                                 \
		run(f);                                                                                                \
	} while (0)

PROGRAM(arithmetic, 64,
        "mov $5, %eax\n"
        "mov $7, %ebx\n"
        "add %rbx, %rax\n"
        "lea 3(%rax,%rbx,4), %rcx\n"
        "mov $0x123456789abcdef0, %rdx\n"
        "mov %dl, %sil\n"
        "mov %dh, %bh\n"
        "movzbl %dh, %edi\n"
        "movsbq %dl, %r8\n"
        "movslq %edx, %r9\n"
        "imul $3, %rcx, %r10\n"
        "mov %rdx, %r11\n"
        "shr $60, %r11\n"
        "xor %r12d, %r12d\n"
        "sub $1, %r12\n"
        "mov $-1, %r13d\n"
        "inc %r13d\n"
        "setz %r14b\n"
        "sbb %r15, %r15\n"
        "hlt\n");

static void test_arithmetic(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, arithmetic);
	assert_int_equal(gpr(f)[RAX], 12);
	assert_int_equal(gpr(f)[RBX], 0xde07);
	assert_int_equal(gpr(f)[RCX], 12 + 28 + 3);
	assert_int_equal(gpr(f)[RSI] & 0xff, 0xf0);
	assert_int_equal(gpr(f)[RDI], 0xde);
	assert_int_equal(gpr(f)[R8], (uint64_t)(int8_t)0xf0);
	assert_int_equal(gpr(f)[R9], (uint64_t)(int32_t)0x9abcdef0);
	assert_int_equal(gpr(f)[R10], 43 * 3);
	assert_int_equal(gpr(f)[R11], 1);
	assert_int_equal(gpr(f)[R12], ~0ull);
	assert_int_equal(gpr(f)[R13], 0);
	assert_int_equal(gpr(f)[R14] & 0xff, 1);
	/* SUB left a borrow, INC kept it. */
	assert_int_equal(gpr(f)[R15], ~0ull);
	assert_int_equal(f->vcpu.counters.instructions, 20);
	assert_int_equal(f->vcpu.state.rip, CODE + (uint64_t)(arithmetic_end - arithmetic_start));
}

PROGRAM(memory, 64,
        "mov $0x20000, %esi\n"
        "movq $0x11, (%rsi)\n"
        "addq $0x22, (%rsi)\n"
        "mov (%rsi), %rax\n"
        "mov $2, %ecx\n"
        "movl $-1, 8(%rsi,%rcx,4)\n"
        "mov 16(%rsi), %rbx\n"
        "movb $0x80, 4093(%rsi)\n"
        "mov $0x1122334455667788, %rdx\n"
        "mov %rdx, 4093(%rsi)\n"
        "mov 4093(%rsi), %rdi\n"
        "xchg %rdi, (%rsi)\n"
        "lock addq $1, (%rsi)\n"
        "lock xaddq %rax, 8(%rsi)\n"
        "mov counter(%rip), %r8\n"
        "push %rdx\n"
        "pop %r9\n"
        "push $-2\n"
        "pop %r10\n"
        "movabs 0x20000, %rax\n"
        "hlt\n"
        "counter: .quad 0x55\n");

static void test_memory(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, memory);
	assert_int_equal(gpr(f)[RBX], 0xffffffff);
	assert_int_equal(read64(f, DATA + 4093), 0x1122334455667788);
	assert_int_equal(gpr(f)[RDI], 0x33);
	assert_int_equal(read64(f, DATA), 0x1122334455667789);
	assert_int_equal(read64(f, DATA + 8), 0x33);
	assert_int_equal(gpr(f)[R8], 0x55);
	assert_int_equal(gpr(f)[R9], 0x1122334455667788);
	assert_int_equal(gpr(f)[R10], ~1ull);
	assert_int_equal(gpr(f)[RAX], 0x1122334455667789);
	assert_int_equal(gpr(f)[RSP], STACK);
}

PROGRAM(control, 64,
        "xor %eax, %eax\n"
        "mov $1000, %ecx\n"
        "1: add %rcx, %rax\n"
        "dec %ecx\n"
        "jnz 1b\n"
        "call f\n"
        "lea f(%rip), %rdx\n"
        "call *%rdx\n"
        "push %rdx\n"
        "call *(%rsp)\n"
        "pop %rdx\n"
        "lea 3f(%rip), %rdx\n"
        "jmp *%rdx\n"
        "ud2\n"
        "3: mov $5, %ecx\n"
        "4: inc %rax\n"
        "loop 4b\n"
        "jrcxz 5f\n"
        "ud2\n"
        "5: hlt\n"
        "f: inc %rax\n"
        "ret\n");

static void test_control(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, control);
	assert_int_equal(gpr(f)[RAX], 500500 + 3 + 5);
	assert_int_equal(gpr(f)[RSP], STACK);
}

PROGRAM(strings, 64,
        "mov $0x20000, %edi\n"
        "mov $0x5a, %eax\n"
        "mov $10000, %ecx\n"
        "rep stosb\n"
        "mov $0x20000, %esi\n"
        "mov $0x25001, %edi\n"
        "mov $5000, %ecx\n"
        "rep movsb\n"
        "mov $0x20000, %esi\n"
        "mov $0x20001, %edi\n"
        "movb $0x41, (%rsi)\n"
        "mov $100, %ecx\n"
        "rep movsb\n"
        "mov $0x20000, %edi\n"
        "mov $0x41, %al\n"
        "mov $-1, %rcx\n"
        "repe scasb\n"
        "mov %rdi, %rbx\n"
        "mov $0x20000, %esi\n"
        "mov $0x25001, %edi\n"
        "mov $100, %ecx\n"
        "cld\n"
        "repne cmpsb\n"
        "mov %rcx, %rdx\n"
        "std\n"
        "mov $0x20010, %esi\n"
        "lodsq\n"
        "cld\n"
        "hlt\n");

static void test_strings(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, strings);
	assert_int_equal(read64(f, DATA + 0x5001 + 4992), 0x5a5a5a5a5a5a5a5a);
	assert_int_equal(read64(f, DATA + 92), 0x4141414141414141);
	assert_int_equal(gpr(f)[RBX], DATA + 102); /* one beyond the byte that differs */
	assert_int_equal(gpr(f)[RDX], 0);
	assert_int_equal(gpr(f)[RSI], DATA + 8);
}

PROGRAM(vectors, 64,
        "mov $0x20000, %esi\n"
        "movl $0x40490fdb, (%rsi)\n"
        "movss (%rsi), %xmm0\n"
        "mulss %xmm0, %xmm0\n"
        "movss %xmm0, 4(%rsi)\n"
        "cvttss2si %xmm0, %eax\n"
        "fninit\n"
        "fldl2e\n"
        "fldz\n"
        "faddp\n"
        "fistpl 8(%rsi)\n"
        "mov 8(%rsi), %ebx\n"
        "popcnt %rsi, %rcx\n"
        "mov $100, %eax\n"
        "xor %edx, %edx\n"
        "mov $7, %edi\n"
        "div %edi\n"
        "bts %edx, 16(%rsi)\n"
        "mov $70, %r8d\n"
        "bts %r8, 16(%rsi)\n"
        "hlt\n");

static void test_vectors(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, vectors);
	assert_int_equal(gpr(f)[RBX], 1);
	assert_int_equal(gpr(f)[RCX], 1);
	assert_int_equal(gpr(f)[RAX], 14);
	assert_int_equal(gpr(f)[RDX], 2);
	assert_int_equal(read64(f, DATA + 16), 4);
	assert_int_equal(read64(f, DATA + 24), 1u << 6);
}

PROGRAM(self_modifying, 64,
        "lea patch+1(%rip), %rsi\n"
        "xor %edx, %edx\n"
        "movb $9, (%rsi)\n"
        "patch: mov $1, %al\n"
        "mov $3, %ecx\n"
        "1: movb %cl, second+1(%rip)\n"
        "second: mov $77, %bl\n"
        "add %bl, %dl\n"
        "loop 1b\n"
        "hlt\n");

static void test_self_modifying(void **state)
{
	struct fixture *f = *state;

	RUN_64(f, self_modifying);
	assert_int_equal(gpr(f)[RAX] & 0xff, 9);
	assert_int_equal(gpr(f)[RDX] & 0xff, 6);
}

PROGRAM(flat32, 32,
        "mov $0x20000, %esi\n"
        "movl $0x12345678, 4(%esi)\n"
        "mov 4(%esi), %eax\n"
        "push %eax\n"
        "pusha\n"
        "popa\n"
        "pop %ebx\n"
        "call 1f\n"
        "mov $0xffffffff, %edx\n"
        "lea 0x20005(,%edx,1), %edi\n"
        "mov (%edi), %ebp\n"
        "mov $0x9c, %al\n"
        "mov $0, %ah\n"
        "daa\n"
        "mov %al, %cl\n"
        "enter $16, $0\n"
        "leave\n"
        "hlt\n"
        "1: incl 4(%esi)\n"
        "ret\n");

static void test_flat_32(void **state)
{
	struct fixture *f = *state;

	start_32(f, flat32_start, flat32_end);
	run(f);
	assert_int_equal(gpr(f)[RBX], 0x12345678);
	assert_int_equal(gpr(f)[RBP], 0x12345679);
	assert_int_equal(gpr(f)[RCX] & 0xff, 0x02);
	assert_int_equal(gpr(f)[RSP], STACK);
}

PROGRAM(real, 16,
        "mov $0x10, %bx\n"
        "movw $0x1234, 2(%bx)\n"
        "mov 0x12, %ax\n"
        "push %ax\n"
        "pop %cx\n"
        "mov $0x2100, %dx\n"
        "mov %dx, %es\n"
        "mov %es:-0xfee, %di\n"
        "call 1f\n"
        "out %al, $0xe0\n"
        "in $0xe0, %ax\n"
        "in $0xe0, %eax\n"
        "hlt\n"
        "1: xor %si, %si\n"
        "lodsb\n"
        "ret\n");

static void test_real_mode(void **state)
{
	struct fixture *f = *state;

	start_16(f, real_start, real_end);
	run(f);
	assert_int_equal(gpr(f)[RCX] & 0xffff, 0x1234);
	assert_int_equal(f->vcpu.state.segment[SEG_ES].base, 0x21000);
	assert_int_equal(f->port_writes, 1);
	assert_int_equal(gpr(f)[RAX], 0x11223344);
	assert_int_equal(gpr(f)[RSP], 0x8000);
}

static void expect_exception(struct fixture *f, unsigned vector, uint64_t offset)
{
	f->vcpu.debug.intercept_exceptions = ~0u;
	assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_EXCEPTION);
	assert_int_equal(f->vcpu.exception.vector, vector);
	assert_int_equal(f->vcpu.state.rip, CODE + offset);
}

PROGRAM(faults, 64,
        "mov $0x40000000, %eax\n"
        "stc\n"
        "mov (%rax), %rbx\n"
        ".byte 0x0f, 0x0b\n");

static void test_faults(void **state)
{
	struct fixture *f = *state;

	start_64(f, faults_start, faults_end);
	expect_exception(f, VECTOR_PF, 6);
	assert_int_equal(f->vcpu.exception.address, 0x40000000);
	assert_int_equal(f->vcpu.exception.error, 0);
	assert_true(f->vcpu.state.rflags & FLAG_CF);
	assert_int_equal(f->vcpu.counters.instructions, 2);
	f->vcpu.state.rip += 3;
	expect_exception(f, VECTOR_UD, 9);

	static const struct {
		uint8_t code[16];
		unsigned vector;
	} cases[] = {
	    {{0xf7, 0xf1}, VECTOR_DE},                            /* div %ecx, 0 */
	    {{0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0x80}, VECTOR_GP}, /* movabs non-canonical */
	    {{0x48, 0xc7, 0xc4, 0, 0, 0, 0x80, 0x48, 0xc1, 0xe4, 0x10, 0x50},
	     VECTOR_SS},                     /* push at a non-canonical RSP */
	    {{0xf0, 0x01, 0xc0}, VECTOR_UD}, /* LOCK ADD of registers */
	    {{0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90},
	     VECTOR_GP},
	    {{0x06}, VECTOR_UD},
	    {{0xcc}, VECTOR_BP},
	};
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		start_64(f, cases[i].code, cases[i].code + 16);
		gpr(f)[RCX] = 0;
		f->vcpu.debug.intercept_exceptions = ~0u;
		assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_EXCEPTION);
		assert_int_equal(f->vcpu.exception.vector, cases[i].vector);
	}
}

PROGRAM(crossing, 64,
        "mov $0x21ffd, %edi\n"
        "movabs $0x9090909005c0c748, %rax\n"
        "mov %rax, (%rdi)\n"
        "movl $0xc3000000, 4(%rdi)\n"
        "jmp *%rdi\n");

static void test_crossing_instruction(void **state)
{
	struct fixture *f = *state;
	/* mov $n, %rax across the page boundary; inc; hlt */
	uint8_t code[] = {0x48, 0xc7, 0xc0, 5, 0, 0, 0, 0x48, 0xff, 0xc0, 0xf4};

	start_64(f, code, code + sizeof(code));
	memory_write(&f->memory, 0x21ffd, code, sizeof(code));
	for (uint8_t n = 5; n < 8; n++) {
		memory_write(&f->memory, 0x22000, &n, 1);
		f->vcpu.state.rip = 0x21ffd;
		run(f);
		assert_int_equal(gpr(f)[RAX], n + 1u);
	}
}

PROGRAM(step, 64,
        "mov $2, %ecx\n"
        "1: nop\n"
        "loop 1b\n"
        "rep stosb\n"
        "hlt\n");

static void test_single_step(void **state)
{
	struct fixture *f = *state;
	static const uint64_t expected[] = {5, 6, 5, 6, 8, 10};

	start_64(f, step_start, step_end);
	f->vcpu.debug.single_step = true;
	for (unsigned i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_DEBUG);
		assert_int_equal(f->vcpu.debug.cause, DEBUG_STEP);
		assert_int_equal(f->vcpu.state.rip, CODE + expected[i]);
	}
	f->vcpu.debug.single_step = false;

	start_64(f, step_start, step_end);
	f->vcpu.debug.breakpoint_count = 1;
	f->vcpu.debug.breakpoint[0] = CODE + 6;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_DEBUG);
		assert_int_equal(f->vcpu.debug.cause, DEBUG_BREAKPOINT);
		assert_int_equal(f->vcpu.state.rip, CODE + 6);
		f->vcpu.debug.skip_breakpoint_once = true;
	}
	run(f);
	f->vcpu.debug.breakpoint_count = 0;

	start_64(f, step_start, step_end);
	f->vcpu.state.rflags |= FLAG_TF;
	f->vcpu.debug.intercept_exceptions = 1u << VECTOR_DB;
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_EXCEPTION);
		assert_int_equal(f->vcpu.exception.vector, VECTOR_DB);
		assert_int_equal(f->vcpu.exception.address, 1u << 14);
		assert_int_equal(f->vcpu.state.rip, CODE + expected[i]);
	}
}

static void test_watchpoint(void **state)
{
	struct fixture *f = *state;
	uint64_t after;

	start_64(f, memory_start, memory_end);
	f->vcpu.debug.watchpoint_count = 1;
	f->vcpu.debug.watchpoint[0].address = DATA + 16;
	f->vcpu.debug.watchpoint[0].length = 4;
	f->vcpu.debug.watchpoint[0].kinds = 2;
	assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_DEBUG);
	assert_int_equal(f->vcpu.debug.cause, DEBUG_WATCHPOINT);
	assert_int_equal(f->vcpu.debug.hit_address, DATA + 16);
	after = f->vcpu.state.rip;
	assert_int_equal(gpr(f)[RCX], 2);
	assert_int_equal(read64(f, DATA + 16), 0xffffffff);
	f->vcpu.debug.watchpoint_count = 0;
	run(f);
	assert_true(f->vcpu.state.rip > after);

	/* The same by DR0: a trap. */
	start_64(f, memory_start, memory_end);
	f->vcpu.state.dr[0] = DATA + 16;
	f->vcpu.state.dr[7] = 0x400 | 1 | 1u << 16 | 3u << 18;
	mmu_update_watches(&f->vcpu);
	f->vcpu.debug.intercept_exceptions = 1u << VECTOR_DB;
	assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_EXCEPTION);
	assert_int_equal(f->vcpu.exception.address, 1);
	assert_int_equal(f->vcpu.state.rip, after);
	/* And by execution: a fault. */
	f->vcpu.state.dr[0] = after;
	f->vcpu.state.dr[7] = 0x400 | 1;
	mmu_update_watches(&f->vcpu);
	assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_EXCEPTION);
	assert_int_equal(f->vcpu.exception.address, 1);
	assert_int_equal(f->vcpu.state.rip, after);
	f->vcpu.state.rflags |= FLAG_RF;
	run(f);
}

PROGRAM(alignment, 64,
        "mov $0x20001, %esi\n"
        "mov (%rsi), %al\n"
        "mov 1(%rsi), %ax\n"
        "mov (%rsi), %eax\n"
        "hlt\n");

static void test_alignment_check(void **state)
{
	struct fixture *f = *state;
	struct cpu_state *s = &f->vcpu.state;

	start_64(f, alignment_start, alignment_end);
	run(f);
	start_64(f, alignment_start, alignment_end);
	s->cr0 |= CR0_AM;
	s->rflags |= FLAG_AC;
	s->segment[SEG_CS].access |= 3 << SEG_DPL_SHIFT;
	s->segment[SEG_SS].access |= 3 << SEG_DPL_SHIFT;
	mmu_update_view(&f->vcpu);
	expect_exception(f, VECTOR_AC, 11);
}

static void test_kick(void **state)
{
	struct fixture *f = *state;
	static const uint8_t loop[] = {0xeb, 0xfe};

	start_64(f, loop, loop + 2);
	atomic_fetch_or(&f->vcpu.attention, ATTENTION_EXIT);
	assert_int_equal(engine_interpreter.run(&f->vcpu), EXIT_KICK);
}

PROGRAM(bench, 64,
        "mov $30000000, %ecx\n"
        "mov $0x20000, %esi\n"
        "xor %eax, %eax\n"
        "1: mov (%rsi), %rdx\n"
        "add $1, %rdx\n"
        "mov %rdx, (%rsi)\n"
        "lea (%rax,%rdx,2), %rax\n"
        "xor %rdx, %rax\n"
        "and $0xffff, %eax\n"
        "cmp $5, %eax\n"
        "je 2f\n"
        "2: dec %ecx\n"
        "jnz 1b\n"
        "hlt\n");

/* JMP to the next page, as many as there are, and back to HLT: a block for each. */
static void make_many_blocks(struct fixture *f, uint64_t from, uint64_t to)
{
	for (uint64_t at = from; at < to; at += 2) {
		static const uint8_t jump[] = {0xeb, 0};

		memory_write(&f->memory, at, jump, 2);
	}
	memory_write(&f->memory, to, "\xf4", 1);
}

/* What was decoded goes when the vCPU has been idle, and only then; it runs on as before. */
static void test_rest(void **state)
{
	struct fixture *f = *state;
	struct vcpu *vcpu = &f->vcpu;
	uint64_t second = 1000000000, now = 100 * second, tsc = 1000;

	assert_false(block_cache_rest(vcpu, now, tsc));
	start_64(f, bench_start, bench_start);
	make_many_blocks(f, CODE, CODE + 0xfffe);
	run(f);
	uint64_t decoded = vcpu->counters.blocks_decoded;
	assert_true(decoded > 0x7000);

	/* Busy, then idle for too short a time. */
	vcpu->counters.run_ticks += 6000;
	assert_false(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));
	assert_false(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));
	assert_false(block_cache_rest(vcpu, now + second, tsc + 1000));
	vcpu->counters.run_ticks += 6000;
	assert_false(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));
	assert_false(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));
	assert_true(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));
	/* Nothing is left to be given back. */
	for (unsigned i = 0; i < 4; i++)
		assert_false(block_cache_rest(vcpu, now += 6 * second, tsc += 10000));

	start_64(f, bench_start, bench_start);
	make_many_blocks(f, CODE, CODE + 0xfffe);
	run(f);
	assert_int_equal(vcpu->counters.blocks_decoded, 2 * decoded);
}

/* By hand: RING3_BENCH=1 prints nanoseconds per guest instruction. */
static void test_speed(void **state)
{
	struct fixture *f = *state;
	struct timespec from, to;

	if (!getenv("RING3_BENCH"))
		skip();
	start_64(f, bench_start, bench_end);
	clock_gettime(CLOCK_MONOTONIC, &from);
	run(f);
	clock_gettime(CLOCK_MONOTONIC, &to);
	double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
	print_message("%.2f ns per instruction\n", ns / (double)f->vcpu.counters.instructions);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	    T(test_arithmetic),
	    T(test_memory),
	    T(test_control),
	    T(test_strings),
	    T(test_vectors),
	    T(test_self_modifying),
	    T(test_flat_32),
	    T(test_real_mode),
	    T(test_faults),
	    T(test_crossing_instruction),
	    T(test_single_step),
	    T(test_watchpoint),
	    T(test_alignment_check),
	    T(test_kick),
	    T(test_rest),
	    T(test_speed),
	};

	native_install_handlers();
	for (unsigned i = 0; i < 4; i++)
		sigaction(signals[i], NULL, &handlers[i]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
