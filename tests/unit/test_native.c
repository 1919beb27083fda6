/*
 * Forms against the silicon: random instructions of every family are executed by an oracle (the instruction itself, all
 * registers loaded, in place) and by their form, and the register files, memory and exceptions are compared. Then
 * faults, x87 pointers, state images and the element-wise routines.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include "engines/interpreter/native.h"
#include "host/code_arena.h"
#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/system.h"

#define NO_FAULT     255u
#define OPERAND_AREA 8192u
#define GUEST_BUFFER 0x10000u
#define GUEST_TABLES 0x4000u

/* What the oracle loads and stores; the code is in the same mapping, so that it reaches everything RIP-relative. */
struct context {
	_Alignas(64) uint8_t fx[512]; /* x87 and MXCSR */
	_Alignas(64) uint8_t zmm[32][64];
	uint64_t opmask[8];
	uint64_t gpr[16];
	uint64_t rflags;
	uint64_t host_rsp;
	uint64_t host_flags;
	uint32_t host_mxcsr;
};

struct fixture {
	struct vcpu *vcpu;
	struct memory memory;
	struct cpu_model model;
	struct native *native;
	ZydisDecoder decoder[3]; /* 64-, 32-, 16-bit */
	uint8_t *oracle;         /* code at 0, context at 4096 */
	struct context *context;
	uint8_t *resume;     /* where the oracle goes on after a fault */
	uint8_t *operand[2]; /* oracle's and form's memory: OPERAND_AREA bytes, then an unmapped page */
	uint64_t random;
	bool avx512;
	unsigned faults[256];
};

static struct fixture fixture;
static unsigned oracle_fault;

static uint64_t random64(void)
{
	uint64_t x = fixture.random;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return fixture.random = x;
}

static void oracle_signal(int signal, siginfo_t *info, void *data)
{
	ucontext_t *context = data;
	uint64_t rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
	if (rip - (uint64_t)fixture.oracle < 4096) {
		oracle_fault = (unsigned)context->uc_mcontext.gregs[REG_TRAPNO];
		context->uc_mcontext.gregs[REG_RIP] = (greg_t)fixture.resume;
		context->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)FLAG_AC;
		return;
	}
	static const char message[] = "test_native: unexpected host fault\n";
	if (write(2, message, sizeof message - 1) < 0)
		_exit(98);
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigaction(signal, &standard, NULL);
}

/* Code of the oracle: rip-relative moves between registers and the context. */
static uint8_t *put(uint8_t *at, const char *bytes, size_t length)
{
	memcpy(at, bytes, length);
	return at + length;
}
#define PUT(at, s) put(at, s, sizeof(s) - 1)

static uint8_t *put_relative(uint8_t *at, unsigned reg, size_t offset)
{
	*at++ = (uint8_t)((reg & 7) << 3 | 5);
	int32_t distance = (int32_t)(fixture.oracle + 4096 + offset - (at + 4));
	memcpy(at, &distance, 4);
	return at + 4;
}
#define FIELD(f) offsetof(struct context, f)

static uint8_t *put_gpr(uint8_t *at, unsigned opcode, unsigned n, size_t offset)
{
	*at++ = (uint8_t)(0x48 | (n >> 3) << 2);
	*at++ = (uint8_t)opcode;
	return put_relative(at, n, offset);
}

static uint8_t *put_vectors(uint8_t *at, unsigned opcode)
{
	for (unsigned n = 0; n < 32 && fixture.avx512; n++) {
		uint8_t evex[] = {0x62, (uint8_t)((n & 8 ? 0 : 0x80) | 0x60 | (n & 16 ? 0 : 0x10) | 1), 0x7c, 0x48,
		                  (uint8_t)opcode};
		at = put_relative(put(at, (char *)evex, sizeof evex), n, FIELD(zmm) + n * 64);
	}
	for (unsigned n = 0; n < 16 && !fixture.avx512; n++) {
		uint8_t vex[] = {0xc5, (uint8_t)((n & 8 ? 0 : 0x80) | 0x7c), (uint8_t)opcode};
		at = put_relative(put(at, (char *)vex, sizeof vex), n, FIELD(zmm) + n * 64);
	}
	for (unsigned k = 0; k < 8 && fixture.avx512; k++) {
		uint8_t vex[] = {0xc4, 0xe1, 0xf8, (uint8_t)(opcode + 0x80)};
		at = put_relative(put(at, (char *)vex, sizeof vex), k, FIELD(opmask) + k * 8);
	}
	return at;
}

/* Executes one instruction on *context. Returns the exception, or NO_FAULT. */
static unsigned oracle_run(const uint8_t *bytes, unsigned length)
{
	uint8_t *at = PUT(fixture.oracle, "\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57"); /* push rbx, rbp, r12-r15 */
	at = PUT(at, "\x9c\x8f");                                                      /* pushfq; pop host_flags */
	at = put_relative(at, 0, FIELD(host_flags));
	at = put_gpr(at, 0x89, RSP, FIELD(host_rsp));
	at = put_relative(PUT(at, "\x48\x0f\xae"), 1, FIELD(fx)); /* fxrstor64 */
	at = put_vectors(at, 0x10);
	at = put_relative(PUT(at, "\xff"), 6, FIELD(rflags)); /* push; popfq */
	*at++ = 0x9d;
	for (unsigned n = 0; n < 16; n++)
		at = put_gpr(at, 0x8b, n, FIELD(gpr) + n * 8);
	at = put(at, (const char *)bytes, length);
	fixture.resume = at;
	for (unsigned n = 0; n < 16; n++)
		at = put_gpr(at, 0x89, n, FIELD(gpr) + n * 8);
	at = put_gpr(at, 0x8b, RSP, FIELD(host_rsp));
	at = put_relative(PUT(at, "\x9c\x8f"), 0, FIELD(rflags));
	at = put_vectors(at, 0x11);
	at = put_relative(PUT(at, "\x48\x0f\xae"), 0, FIELD(fx)); /* fxsave64; fninit */
	at = put_relative(PUT(at, "\xdb\xe3\x0f\xae"), 2, FIELD(host_mxcsr));
	at = put_relative(PUT(at, "\xc5\xf8\x77\xff"), 6, FIELD(host_flags)); /* vzeroupper; push; popfq */
	*at++ = 0x9d;
	at = PUT(at, "\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3");
	assert_true(at < fixture.oracle + 4096);
	oracle_fault = NO_FAULT;
	code_arena_publish();
	((void (*)(void))fixture.oracle)();
	return oracle_fault;
}

/* One way to make the guest's register file and the oracle's alike, and to compare them. */
static void context_from_vcpu(void)
{
	struct context *c = fixture.context;
	const struct cpu_state *s = &fixture.vcpu->state;
	memset(c->fx, 0, sizeof c->fx);
	memcpy(c->fx, &s->x87, sizeof s->x87);
	memcpy(c->fx + 24, &s->vector.mxcsr, 4);
	memcpy(c->zmm, s->vector.zmm, sizeof c->zmm);
	memcpy(c->opmask, s->vector.opmask, sizeof c->opmask);
	memcpy(c->gpr, s->gpr, sizeof c->gpr);
	c->rflags = (s->rflags & 0xd5) | 2 | (fixture.vcpu->overflow ? FLAG_OF : 0);
	c->host_mxcsr = 0x1f80;
}

static const char *difference(void)
{
	const struct context *c = fixture.context;
	const struct cpu_state *s = &fixture.vcpu->state;
	uint64_t flags = (s->rflags & 0xd5) | (fixture.vcpu->overflow ? FLAG_OF : 0);
	if (memcmp(c->gpr, s->gpr, sizeof c->gpr))
		return "general registers";
	if ((c->rflags & FLAG_ARITHMETIC) != flags)
		return "flags";
	for (unsigned n = 0; n < (fixture.avx512 ? 32 : 16); n++)
		if (memcmp(c->zmm[n], s->vector.zmm[n], 64)) {
			for (unsigned i = 0; i < 64; i += 8)
				print_message("zmm%u byte %2u: form %016llx, silicon %016llx\n", n, i,
				              *(unsigned long long *)&s->vector.zmm[n][i],
				              *(unsigned long long *)&c->zmm[n][i]);
			return "vector registers";
		}
	if (memcmp(c->opmask, s->vector.opmask, sizeof c->opmask))
		return "mask registers";
	if (memcmp(c->fx + 24, &s->vector.mxcsr, 4))
		return "MXCSR";
	if (memcmp(c->fx, &s->x87, 5) || memcmp(c->fx + 32, s->x87.st, sizeof s->x87.st))
		return "x87";
	if (memcmp(fixture.operand[0], fixture.operand[1], OPERAND_AREA))
		return "memory";
	return NULL;
}

/* Runs a form; returns the exception or NO_FAULT. */
static unsigned form_run(const struct native_form *form, void *memory, const struct native_operation *operation,
                         bool aligned)
{
	struct vcpu *vcpu = fixture.vcpu;
	jmp_buf target;
	vcpu->fault_target = &target;
	if (_setjmp(target))
		return vcpu->exception.vector;
	if (operation)
		form->special(vcpu, operation);
	else if (aligned)
		native_run_aligned(vcpu, form, memory);
	else
		form->run(vcpu, memory);
	return NO_FAULT;
}

static void randomize_vector(uint8_t *bytes)
{
	static const uint64_t special[] = {0,
	                                   0x8000000000000000,
	                                   0x3ff0000000000000,
	                                   0x7ff0000000000000,
	                                   0x7ff8000000000001,
	                                   0x7ff0000000000001,
	                                   0x0000000000000001,
	                                   0x3f8000003f800000,
	                                   0x7f80000000000001,
	                                   0x7fc000007f800001,
	                                   0x00000001bf800000,
	                                   0xffffffffffffffff,
	                                   0x4f0000005f000000,
	                                   0x43e0000000000000};
	for (unsigned n = 0; n < 8; n++) {
		uint64_t value = random64() & 3 ? random64() : special[random64() % (sizeof special / sizeof *special)];
		if (!(random64() & 3))
			value = 0x3ff0000000000000 | (value >> 12); /* a number near 1 */
		memcpy(bytes + n * 8, &value, 8);
	}
}

static void randomize_state(void)
{
	struct cpu_state *s = &fixture.vcpu->state;
	for (unsigned n = 0; n < 16; n++) {
		s->gpr[n] = random64();
		if (!(random64() & 3))
			s->gpr[n] &= 0xff;
		else if (!(random64() & 7))
			s->gpr[n] = -(random64() & 1);
	}
	s->rflags = 2 | (random64() & 0xd5);
	fixture.vcpu->overflow = random64() & 1;
	for (unsigned n = 0; n < (fixture.avx512 ? 32 : 16); n++) {
		randomize_vector(s->vector.zmm[n]);
		if (!fixture.avx512)
			memset(s->vector.zmm[n] + 32, 0, 32);
	}
	for (unsigned k = 0; k < 8; k++)
		s->vector.opmask[k] = fixture.avx512 ? random64() : 0;
	s->vector.mxcsr = 0x1f80 | (random64() & 0xe07f);
	if (!(random64() & 3))
		s->vector.mxcsr = random64() & 0xffff;
	s->x87 = (struct x87_state){.fcw = 0x037f, .fsw = (uint16_t)(random64() & 0x7f00), .ftw = (uint8_t)random64()};
	s->x87.fcw ^= (uint16_t)(random64() & (random64() & 3 ? 0x0f00 : 0x0f3f));
	for (unsigned n = 0; n < 8; n++) {
		uint64_t mantissa = random64(), exponent = random64() & 7 ? 0x3ff0 + (random64() & 63) : random64();
		if (random64() & 3)
			mantissa |= 1ull << 63;
		memcpy(s->x87.st[n], &mantissa, 8);
		memcpy(s->x87.st[n] + 8, &exponent, 2);
	}
	for (unsigned n = 0; n < OPERAND_AREA; n += 64)
		randomize_vector(fixture.operand[0] + n);
	memcpy(fixture.operand[1], fixture.operand[0], OPERAND_AREA);
}

/* At the start of each test, since cmocka puts its own handlers around every one. */
static void use_handlers(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	static struct sigaction ours[4];
	static bool known;
	struct sigaction action = {.sa_sigaction = oracle_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	for (unsigned n = 0; n < 4; n++)
		sigaction(signals[n], known ? &ours[n] : &action, NULL);
	if (!known)
		assert_int_equal(native_install_handlers(), 0);
	for (unsigned n = 0; n < 4; n++)
		sigaction(signals[n], NULL, &ours[n]);
	known = true;
}

static int setup(void **unused)
{
	static const unsigned mode[][2] = {{ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
	                                   {ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32},
	                                   {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16}};
	const char *seed = getenv("SEED");
	fixture.random = seed ? strtoull(seed, NULL, 0) : 0x9e3779b97f4a7c15;
	print_message("seed 0x%llx\n", (unsigned long long)fixture.random);
	unsigned a, b = 0, c, d;
	fixture.avx512 =
	    __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F) && __builtin_cpu_supports("avx512bw");
	fixture.oracle = mmap(NULL, 16384, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(fixture.oracle != MAP_FAILED);
	fixture.context = (struct context *)(fixture.oracle + 4096);
	for (unsigned n = 0; n < 2; n++) {
		fixture.operand[n] =
		    mmap(NULL, OPERAND_AREA + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_true(fixture.operand[n] != MAP_FAILED);
		assert_int_equal(mprotect(fixture.operand[n] + OPERAND_AREA, 4096, PROT_NONE), 0);
	}
	for (unsigned n = 0; n < 3; n++)
		ZydisDecoderInit(&fixture.decoder[n], mode[n][0], mode[n][1]);

	struct vcpu *vcpu = fixture.vcpu = aligned_alloc(64, (sizeof *vcpu + 63) / 64 * 64);
	assert_non_null(vcpu);
	memset(vcpu, 0, sizeof *vcpu);
	char why[256];
	assert_int_equal(cpu_model_create(&fixture.model, "host", 1, 1000000, why), 0);
	assert_int_equal(memory_create(&fixture.memory, 4u << 20), 0);
	vcpu->memory = &fixture.memory;
	vcpu->model = &fixture.model;
	/* The first 2 MiB are mapped one to one, but for the page after the buffer. */
	uint64_t *table = (uint64_t *)(fixture.memory.low + GUEST_TABLES);
	for (unsigned level = 0; level < 3; level++)
		table[level * 512] = (GUEST_TABLES + (level + 1) * 4096) | 7;
	for (unsigned n = 0; n < 512; n++)
		table[3 * 512 + n] = n == (GUEST_BUFFER + OPERAND_AREA) / 4096 ? 0 : n * 4096 | 7;
	vcpu->state.cr3 = GUEST_TABLES;
	vcpu->state.efer = EFER_LMA | EFER_LME;
	vcpu->state.segment[SEG_CS].access = SEG_L | SEG_P | SEG_S | SEG_CODE;
	vcpu->state.cr0 = CR0_PE | CR0_NE | CR0_PG;
	vcpu->state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	vcpu->state.xcr0 = fixture.model.xcr0_supported;
	assert_int_equal(mmu_create(vcpu), 0);
	mmu_update_view(vcpu);
	fixture.native = native_create(vcpu);
	assert_non_null(fixture.native);
	assert_int_equal(native_thread_enter(fixture.native), 0);
	native_update_classes(vcpu);
	return 0;
}

static int teardown(void **unused)
{
	native_destroy(fixture.native);
	mmu_destroy(fixture.vcpu);
	memory_destroy(&fixture.memory);
	free(fixture.vcpu);
	return 0;
}

struct decoded {
	uint8_t bytes[16];
	ZydisDecodedInstruction instruction;
	ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
};

static bool decode(struct decoded *d, unsigned mode, unsigned length)
{
	return ZYAN_SUCCESS(
	    ZydisDecoderDecodeFull(&fixture.decoder[mode], d->bytes, length, &d->instruction, d->operands));
}

static const struct native_form *form_of(struct decoded *d)
{
	if (native_usage(fixture.native) >= 100)
		native_flush(fixture.native);
	return native_form_get(fixture.native, &d->instruction, d->operands, d->bytes);
}

static const struct native_form *form_bytes(struct decoded *d, unsigned mode, const char *bytes, unsigned length)
{
	memset(d->bytes, 0, sizeof d->bytes);
	memcpy(d->bytes, bytes, length);
	assert_true(decode(d, mode, length));
	assert_int_equal(d->instruction.length, length);
	return form_of(d);
}
#define FORM(d, mode, s) form_bytes(d, mode, s, sizeof(s) - 1)

/* A random instruction with its memory operand, if any, at [rbx]: a family, then random fields. Returns its greatest
 * possible length. */
static unsigned random_instruction(uint8_t *b)
{
	static const uint8_t prefix[] = {0, 0x66, 0xf2, 0xf3};
	uint8_t modrm = (uint8_t)random64(), *at = b;
	modrm = random64() & 1 ? modrm | 0xc0 : (modrm & 0x38) | RBX;
	unsigned family = random64() % 8;
	if (family < 5) {
		if (!(random64() & 15))
			*at++ = 0xf0;
		if (random64() & 1 && prefix[random64() & 3])
			*at++ = prefix[random64() & 3] ? prefix[1 + random64() % 3] : 0x66;
		if (random64() & 1)
			*at++ = (uint8_t)(0x40 | (random64() & (modrm >= 0xc0 ? 15 : 12)));
		if (family >= 1 && family <= 3)
			*at++ = 0x0f;
		if (family == 2)
			*at++ = 0x38;
		if (family == 3)
			*at++ = 0x3a;
		*at++ = family == 4 ? (uint8_t)(0xd8 | (random64() & 7)) : (uint8_t)random64();
	} else if (family == 5) {
		*at++ = 0xc4;
		*at++ = (uint8_t)((random64() & 0xe0) | (modrm < 0xc0 ? 0x60 : 0) | (1 + random64() % 3));
		*at++ = (uint8_t)random64();
		*at++ = (uint8_t)random64();
	} else {
		*at++ = 0x62;
		*at++ = (uint8_t)((random64() & 0xf0) | (modrm < 0xc0 ? 0x60 : 0) | (1 + random64() % 3));
		*at++ = (uint8_t)(random64() | 4);
		*at++ = (uint8_t)(random64() & (random64() & 1 ? 0xf8 : 0xff));
		*at++ = (uint8_t)random64();
	}
	*at++ = modrm;
	for (unsigned n = 0; n < 4; n++)
		*at++ = (uint8_t)random64();
	return (unsigned)(at - b);
}

static bool comparable(const struct decoded *d, const struct native_form *form)
{
	/* A random opcode byte may have been a prefix, and the ModRM byte another than was meant. */
	for (unsigned n = 0; n < d->instruction.operand_count; n++)
		if (d->operands[n].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    (d->operands[n].mem.base != ZYDIS_REGISTER_RBX || d->operands[n].mem.index ||
		     d->operands[n].mem.disp.value))
			return false;
	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
		return false;
	case ZYDIS_MNEMONIC_VZEROUPPER: /* of eight registers only, outside 64-bit code */
	case ZYDIS_MNEMONIC_VZEROALL:
		return !d->instruction.raw.prefix_count && d->instruction.raw.vex.m_mmmm != 1;
	default:
		return !form->special && !(form->bit_string && form->bit_register == RBX);
	}
}

static void fail_case(const struct decoded *d, const char *what, unsigned mode, unsigned expected, unsigned got)
{
	char text[64];
	for (unsigned n = 0; n < d->instruction.length; n++)
		sprintf(text + n * 2, "%02x", d->bytes[n]);
	fail_msg("%s (%s, %u-bit code): %s differ; exception %u, expected %u",
	         ZydisMnemonicGetString(d->instruction.mnemonic), text, 64 >> mode, what, got, expected);
}

/* One execution each; `form` may come from another mode's encoding of the same instruction. */
static void compare_once(const struct decoded *d, const struct native_form *form, unsigned mode)
{
	struct cpu_state *s = &fixture.vcpu->state;
	unsigned place = OPERAND_AREA - (form->memory_size ? form->memory_size : 64);
	if (!(random64() & 7))
		place -= 1 + random64() % 64;
	randomize_state();
	if (form->bit_string)
		s->gpr[form->bit_register] &= form->memory_size * 8u - 1;
	s->gpr[RBX] = (uint64_t)fixture.operand[0] + place;
	context_from_vcpu();
	unsigned expected = oracle_run(d->bytes, d->instruction.length);
	unsigned got = form_run(form, fixture.operand[1] + place, NULL, false);
	native_x87_save(fixture.vcpu);
	/* A form that wrote the memory's address of the oracle (MOV [rbx], rbx) is alike, since both have the same RBX.
	 */
	const char *what = expected != got ? "exceptions" : difference();
	if (!what && form->memory_size && d->instruction.mnemonic != ZYDIS_MNEMONIC_LDMXCSR &&
	    d->instruction.mnemonic != ZYDIS_MNEMONIC_VLDMXCSR &&
	    (expected == VECTOR_GP) != ((s->gpr[RBX] & (form->alignment - 1u)) != 0) && expected != VECTOR_UD)
		what = "alignment rules";
	if (what)
		fail_case(d, what, mode, expected, got);
	if (got != NO_FAULT)
		fixture.faults[got]++;
}

static void silicon_test(void **unused)
{
	static uint16_t seen[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	unsigned mnemonics = 0, cases = 0, other_modes = 0;
	use_handlers();
	unsigned count = getenv("CASES") ? (unsigned)atoi(getenv("CASES")) : 400000;
	for (unsigned n = 0; n < count; n++) {
		struct decoded d = {0};
		unsigned length = random_instruction(d.bytes);
		if (!decode(&d, 0, length))
			continue;
		/* Rare instructions are tried more often. */
		if (seen[d.instruction.mnemonic] > 200 && random64() % 16)
			continue;
		const struct native_form *form = form_of(&d);
		if (!form || !comparable(&d, form))
			continue;
		mnemonics += !seen[d.instruction.mnemonic];
		seen[d.instruction.mnemonic]++;
		for (unsigned repeat = 0; repeat < 3; repeat++, cases++)
			compare_once(&d, form, 0);
		if (d.instruction.attributes & ZYDIS_ATTRIB_HAS_REX)
			continue;
		/* The same instruction in 32- and 16-bit code, where the operand-size prefix may mean the opposite. */
		for (unsigned variant = 1; variant < 4; variant++) {
			struct decoded o = {0};
			unsigned mode = variant == 1 ? 1 : 2, skip = variant == 3;
			if (skip)
				o.bytes[0] = 0x66;
			memcpy(o.bytes + skip, d.bytes, 15 - skip);
			if (!decode(&o, mode, 15) || o.instruction.mnemonic != d.instruction.mnemonic ||
			    o.instruction.length != d.instruction.length + skip ||
			    o.instruction.operand_count != d.instruction.operand_count)
				continue;
			bool same = true;
			for (unsigned op = 0; op < d.instruction.operand_count_visible; op++)
				same &= o.operands[op].type == d.operands[op].type &&
				        o.operands[op].size == d.operands[op].size &&
				        (o.operands[op].type != ZYDIS_OPERAND_TYPE_REGISTER ||
				         o.operands[op].reg.value == d.operands[op].reg.value);
			const struct native_form *other = same ? form_of(&o) : NULL;
			if (!same)
				continue;
			if (!other)
				fail_case(&o, "availability", mode, 0, 0);
			compare_once(&d, other, mode);
			other_modes++;
		}
	}
	print_message("%u mnemonics, %u cases in 64-bit code, %u from others; arena %u%%\n", mnemonics, cases,
	              other_modes, native_usage(fixture.native));
	print_message("#DE %u, #UD %u, #GP %u, #MF %u, #XM %u\n", fixture.faults[VECTOR_DE], fixture.faults[VECTOR_UD],
	              fixture.faults[VECTOR_GP], fixture.faults[VECTOR_MF], fixture.faults[VECTOR_XM]);
	if (count >= 400000)
		assert_true(mnemonics > 500);
}

/* Copies the second operand area to the guest and back, around a special form at `place`. */
static unsigned special_run(const struct decoded *d, const struct native_form *form, unsigned place)
{
	struct native_operation operation = {.form = form,
	                                     .segment = SEG_DS,
	                                     .offset = GUEST_BUFFER + place,
	                                     .base = GUEST_BUFFER + place,
	                                     .address_size = 8,
	                                     .length = d->instruction.length};
	uint8_t *guest = fixture.memory.low + GUEST_BUFFER;
	memcpy(operation.bytes, d->bytes, d->instruction.length);
	memcpy(guest, fixture.operand[1], OPERAND_AREA);
	unsigned fault = form_run(form, NULL, &operation, false);
	memcpy(fixture.operand[1], guest, OPERAND_AREA);
	return fault;
}

/* Masked operands and gathers around the end of a page, and of what is mapped. */
static void element_test(void **unused)
{
	static bool seen[ZYDIS_MNEMONIC_MAX_VALUE + 1];
	unsigned cases = 0, faults = 0, gathers = 0, mnemonics = 0;
	use_handlers();
	for (unsigned n = 0; n < 1500000; n++) {
		struct cpu_state *s = &fixture.vcpu->state;
		struct decoded d = {0};
		unsigned length = 15, place = OPERAND_AREA - 64 + random64() % 64;
		unsigned gather = n % 32 == 0;
		if (!gather) /* the families that have masked operands */
			do
				length = random_instruction(d.bytes);
			while (d.bytes[0] != 0x62 && d.bytes[0] != 0xc4 && random64() % 64);
		if (!gather && d.bytes[0] == 0x62) { /* a mask, and memory */
			d.bytes[1] |= 0x60;
			d.bytes[3] |= (uint8_t)(1u << random64() % 3);
			d.bytes[5] = (d.bytes[5] & 0x38) | RBX;
		}
		if (gather) { /* vpgather, vscatter with [rbx + zmm * scale] */
			static const uint8_t opcodes[] = {0x90, 0x91, 0x92, 0x93, 0xa0, 0xa1, 0xa2, 0xa3};
			unsigned evex = random64() & 1, at = evex ? 4 : 3;
			d.bytes[0] = evex ? 0x62 : 0xc4;
			d.bytes[1] =
			    evex ? (uint8_t)(0x22 | (random64() & 0xd0)) : (uint8_t)(0x22 | (random64() & 0xc0));
			d.bytes[2] = evex ? (uint8_t)(random64() & 0x80) | 0x7d : (uint8_t)((random64() & 0xfc) | 1);
			if (evex)
				d.bytes[3] = (uint8_t)((random64() & 0x6f) | 1);
			d.bytes[at] = opcodes[random64() & (evex ? 7 : 3)];
			d.bytes[at + 1] = (uint8_t)(0x04 | (random64() & 0x38));
			d.bytes[at + 2] = (uint8_t)((random64() & 0xf8) | RBX);
			place = OPERAND_AREA - 64;
		}
		if (!decode(&d, 0, gather ? 15 : length))
			continue;
		const struct native_form *form = form_of(&d);
		bool maskmov = form && !gather && d.instruction.operand_count == 3 &&
		               d.operands[2].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		               d.operands[2].mem.base == ZYDIS_REGISTER_RDI;
		if (!form || !form->special || form->memory_size > 64 ||
		    d.instruction.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
		    d.instruction.meta.category == ZYDIS_CATEGORY_XSAVE ||
		    d.instruction.meta.category == ZYDIS_CATEGORY_XSAVEOPT)
			continue;
		randomize_state();
		s->vector.mxcsr |= 0x1f80;
		if (!gather && !maskmov) {
			if (d.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY
			        ? d.operands[0].mem.base != ZYDIS_REGISTER_RBX
			        : false)
				continue;
			if (d.instruction.raw.modrm.mod || d.instruction.raw.modrm.rm != RBX)
				continue;
		}
		if (random64() & 1)
			place -= 4096;
		if (gather) {
			unsigned index = (unsigned)ZydisRegisterGetId(
			    d.operands[d.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY   ? 0
			               : d.operands[1].type == ZYDIS_OPERAND_TYPE_MEMORY ? 1
			                                                                 : 2]
			        .mem.index);
			for (unsigned i = 0; i < 16; i++) {
				int64_t value = (int64_t)(random64() % 64) - 32;
				/* Good as sixteen dwords and as eight qwords. */
				if (strstr(ZydisMnemonicGetString(d.instruction.mnemonic), "dd") ||
				    strstr(ZydisMnemonicGetString(d.instruction.mnemonic), "dp") ||
				    strstr(ZydisMnemonicGetString(d.instruction.mnemonic), "dq"))
					memcpy(s->vector.zmm[index] + i * 4, &value, 4);
				else
					memcpy(s->vector.zmm[index] + (i & 7) * 8, &value, 8);
			}
			if (s->vector.opmask[1] & 1)
				for (unsigned k = 0; k < 8; k++)
					s->vector.opmask[k] &= random64() & random64();
		}
		s->gpr[RBX] = s->gpr[RDI] = (uint64_t)fixture.operand[0] + place;
		context_from_vcpu();
		unsigned expected = oracle_run(d.bytes, d.instruction.length);
		s->gpr[RDI] = GUEST_BUFFER + place;
		unsigned got = special_run(&d, form, place);
		s->gpr[RDI] = s->gpr[RBX];
		native_x87_save(fixture.vcpu);
		const char *what = expected != got ? "exceptions" : difference();
		if (what)
			fail_case(&d, what, 0, expected, got);
		cases++;
		mnemonics += !seen[d.instruction.mnemonic];
		seen[d.instruction.mnemonic] = true;
		gathers += gather;
		faults += got != NO_FAULT;
	}
	print_message("%u mnemonics, %u cases, %u of them gathers and scatters, %u faults\n", mnemonics, cases, gathers,
	              faults);
}

/* One form of 64-bit code, on the second operand area. */
static unsigned run_bytes(const char *bytes, unsigned length, void *memory, bool aligned)
{
	struct decoded d;
	const struct native_form *form = form_bytes(&d, 0, bytes, length);
	assert_non_null(form);
	return form_run(form, memory, NULL, aligned);
}
#define RUN(s)            run_bytes(s, sizeof(s) - 1, NULL, false)
#define RUN_MEMORY(s, at) run_bytes(s, sizeof(s) - 1, at, false)

static void fault_test(void **unused)
{
	struct cpu_state *s = &fixture.vcpu->state;
	uint8_t *m = fixture.operand[1];
	use_handlers();
	randomize_state();
	s->gpr[RCX] = 0;
	uint64_t rax = s->gpr[RAX];
	assert_int_equal(RUN("\x48\xf7\xf1"), VECTOR_DE); /* div rcx */
	assert_int_equal(s->gpr[RAX], rax);
	assert_int_equal(RUN_MEMORY("\x0f\x28\x03", m + 8), VECTOR_GP); /* movaps xmm0, [rbx] */
	assert_int_equal(RUN_MEMORY("\x0f\x10\x03", m + 8), NO_FAULT);
	assert_int_equal(RUN_MEMORY("\x48\x0f\xc7\x0b", m + 8), VECTOR_GP); /* cmpxchg16b */

	memset(s->vector.zmm[0], 0, 16);
	memcpy(s->vector.zmm[1], "\0\0\x80\x3f", 4);
	s->vector.mxcsr = 0x1f80 & ~0x200u;                   /* division by zero unmasked */
	assert_int_equal(RUN("\xf3\x0f\x5e\xc8"), VECTOR_XM); /* divss xmm1, xmm0 */
	assert_int_equal(s->vector.mxcsr, (0x1f80 & ~0x200u) | 4);
	s->cr4 &= ~CR4_OSXMMEXCPT;
	assert_int_equal(RUN("\xf3\x0f\x5e\xc8"), VECTOR_UD);
	s->cr4 |= CR4_OSXMMEXCPT;
	uint32_t bad = 0xffffffff, now;
	assert_int_equal(RUN_MEMORY("\x0f\xae\x13", &bad), VECTOR_GP); /* ldmxcsr */
	__asm__ volatile("stmxcsr %0" : "=m"(now));
	assert_int_equal(now & ~0x3fu, 0x1f80);

	s->vector.mxcsr = 0x1f80;
	assert_int_equal(run_bytes("\x8b\x03", 2, m + 2, true), VECTOR_AC); /* mov eax, [rbx] */
	assert_int_equal(run_bytes("\x8b\x03", 2, m + 4, true), NO_FAULT);
	assert_int_equal(run_bytes("\xf2\x0f\x58\x03", 4, m + 4, true), VECTOR_AC);
	assert_int_equal(run_bytes("\xdd\x03", 2, m + 4, true), VECTOR_AC);
	assert_int_equal(run_bytes("\xdd\x03", 2, m + 8, true), NO_FAULT);
	uint64_t flags;
	__asm__ volatile("pushfq; pop %0" : "=r"(flags));
	assert_false(flags & FLAG_AC);
	native_x87_save(fixture.vcpu);
}

static void bit_string_test(void **unused)
{
	struct cpu_state *s = &fixture.vcpu->state;
	struct decoded d;
	use_handlers();
	static const int64_t offsets[] = {0, 31, 32, 33, -1, -32, -33, 1000, -1000};
	const struct native_form *bts = FORM(&d, 0, "\x0f\xab\x0b"); /* bts [rbx], ecx */
	assert_true(bts->bit_string);
	assert_int_equal(bts->bit_register, RCX);
	for (unsigned n = 0; n < sizeof offsets / sizeof *offsets; n++) {
		memset(fixture.operand[1], 0, OPERAND_AREA);
		s->gpr[RCX] = (uint32_t)offsets[n];
		assert_int_equal(
		    form_run(bts, fixture.operand[1] + 4096 + native_bit_displacement(fixture.vcpu, bts), NULL, false),
		    NO_FAULT);
		int64_t bit = 4096 * 8 + offsets[n];
		assert_int_equal(fixture.operand[1][bit / 8], 1 << (bit & 7));
	}
	assert_false(FORM(&d, 0, "\x0f\xba\x2b\x21")->bit_string); /* bts [rbx], imm8 */
	assert_null(FORM(&d, 0, "\xfc"));                          /* cld */
	assert_null(FORM(&d, 0, "\x8c\xd8"));                      /* mov eax, ds */
	assert_null(FORM(&d, 0, "\x0f\x01\xd0"));                  /* xgetbv */
	assert_null(FORM(&d, 0, "\x50"));                          /* push rax */
	assert_null(FORM(&d, 0, "\x0f\x05"));                      /* syscall */
	assert_null(FORM(&d, 0, "\x0f\x01\xef"));                  /* wrpkru */
}

static unsigned disabled_fault(const struct native_form *form)
{
	jmp_buf target;
	fixture.vcpu->fault_target = &target;
	if (_setjmp(target))
		return fixture.vcpu->exception.vector;
	if (fixture.vcpu->classes_disabled & form->class_needed)
		native_raise_disabled(fixture.vcpu, form);
	return NO_FAULT;
}

static void class_test(void **unused)
{
	struct vcpu *vcpu = fixture.vcpu;
	struct cpu_state *s = &vcpu->state;
	struct decoded d;
	/* What each of CR0.EM, CR0.TS, OSFXSR = 0, OSXSAVE = 0, XCR0 = x87 only, real mode makes of an instruction. */
	static const struct {
		const char *bytes;
		unsigned length;
		uint8_t expected[6];
	} rules[] = {
#define N NO_FAULT
	    {"\xd8\xc1", 2, {VECTOR_NM, VECTOR_NM, N, N, N, N}},                         /* fadd */
	    {"\x0f\xfc\xc1", 3, {VECTOR_UD, VECTOR_NM, N, N, N, N}},                     /* paddb mm0, mm1 */
	    {"\x0f\x58\xc1", 3, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},             /* addps */
	    {"\x0f\x2a\xc1", 3, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},             /* cvtpi2ps */
	    {"\xc5\xf0\x58\xc1", 4, {N, VECTOR_NM, N, VECTOR_UD, VECTOR_UD, VECTOR_UD}}, /* vaddps */
	    {"\xc4\xe2\x70\xf2\xc1", 5, {N, N, N, N, N, VECTOR_UD}},                     /* andn */
	    {"\x9b", 1, {N, VECTOR_NM, N, N, N, N}},                                     /* fwait, with CR0.MP */
	    {"\xf3\x0f\xb8\xc1", 4, {N, N, N, N, N, N}},                                 /* popcnt */
	    /* Without a vector register among the operands, or without an MMX one. */
	    {"\xf2\x0f\x2c\x03", 4, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},         /* cvttsd2si eax, [rbx] */
	    {"\xf2\x48\x0f\x2d\x03", 5, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},     /* cvtsd2si rax, [rbx] */
	    {"\xf3\x0f\x2c\x03", 4, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},         /* cvttss2si eax, [rbx] */
	    {"\xf3\x48\x0f\x2d\x03", 5, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},     /* cvtss2si rax, [rbx] */
	    {"\x0f\x2d\x03", 3, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},             /* cvtps2pi mm0, [rbx] */
	    {"\x66\x0f\x2c\x03", 4, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},         /* cvttpd2pi mm0, [rbx] */
	    {"\x66\x0f\x2a\x03", 4, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},         /* cvtpi2pd xmm0, [rbx] */
	    {"\x0f\xae\x13", 3, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},             /* ldmxcsr */
	    {"\x0f\xae\x1b", 3, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},             /* stmxcsr */
	    {"\x66\x0f\x3a\x14\x03\x01", 6, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}}, /* pextrb [rbx], xmm0 */
	    {"\x66\x0f\xc4\x03\x01", 5, {VECTOR_UD, VECTOR_NM, VECTOR_UD, N, N, N}},     /* pinsrw xmm0, [rbx] */
	    {"\x0f\xc4\x03\x01", 4, {VECTOR_UD, VECTOR_NM, N, N, N, N}},                 /* pinsrw mm0, [rbx] */
	    {"\x0f\xe7\x03", 3, {VECTOR_UD, VECTOR_NM, N, N, N, N}},                     /* movntq */
	    {"\x0f\xc3\x03", 3, {N, N, N, N, N, N}},                                     /* movnti */
	    {"\xf2\x0f\x38\xf1\x03", 5, {N, N, N, N, N, N}},                             /* crc32 eax, [rbx] */
	    {"\xc5\xfb\x2c\x03", 4, {N, VECTOR_NM, N, VECTOR_UD, VECTOR_UD, VECTOR_UD}}, /* vcvttsd2si */
	    {"\xc5\xf8\xae\x13", 4, {N, VECTOR_NM, N, VECTOR_UD, VECTOR_UD, VECTOR_UD}}, /* vldmxcsr */
	    {"\xc4\xe3\x79\x14\x03\x01", 6, {N, VECTOR_NM, N, VECTOR_UD, VECTOR_UD, VECTOR_UD}}, /* vpextrb */
#undef N
	};
	struct cpu_state saved = *s;
	for (unsigned n = 0; n < sizeof rules / sizeof *rules; n++)
		for (unsigned setting = 0; setting < 6; setting++) {
			const struct native_form *form = form_bytes(&d, 0, rules[n].bytes, rules[n].length);
			assert_non_null(form);
			*s = saved;
			s->cr0 |= CR0_MP | (setting == 0 ? CR0_EM : setting == 1 ? CR0_TS : 0);
			if (setting == 2)
				s->cr4 &= ~CR4_OSFXSR;
			if (setting == 3)
				s->cr4 &= ~CR4_OSXSAVE;
			if (setting == 4)
				s->xcr0 = XSTATE_X87;
			if (setting == 5)
				s->cr0 &= ~CR0_PE;
			native_update_classes(vcpu);
			unsigned got = disabled_fault(form);
			if (got != rules[n].expected[setting])
				fail_msg("rule %u, setting %u: got %u", n, setting, got);
		}
	*s = saved;
	native_update_classes(vcpu);
}

/* A state routine at GUEST_BUFFER; `mode` is the decoder's. */
static unsigned image_run(const char *bytes, unsigned length, unsigned mode)
{
	struct decoded d;
	const struct native_form *form = form_bytes(&d, mode, bytes, length);
	assert_non_null(form);
	assert_non_null(form->special);
	struct native_operation operation = {
	    .form = form, .segment = SEG_DS, .offset = GUEST_BUFFER, .address_size = 8, .length = (uint8_t)length};
	memcpy(operation.bytes, bytes, length);
	return form_run(form, NULL, &operation, false);
}
#define IMAGE(s, mode) image_run(s, sizeof(s) - 1, mode)

static void x87_test(void **unused)
{
	struct vcpu *vcpu = fixture.vcpu;
	struct cpu_state *s = &vcpu->state;
	uint8_t *image = fixture.memory.low + GUEST_BUFFER;
	uint32_t words[7];
	struct decoded d;
	use_handlers();
	s->x87 = (struct x87_state){.fcw = 0x37b}; /* division by zero unmasked */
	s->rip = 0x123456789a;
	s->segment[SEG_CS].selector = 0x33;
	s->segment[SEG_DS].selector = 0x2b;
	assert_int_equal(RUN("\xd9\xee"), NO_FAULT); /* fldz */
	assert_true(vcpu->x87_live);
	assert_int_equal(RUN("\xd9\xe8"), NO_FAULT);                /* fld1 */
	const struct native_form *divide = FORM(&d, 0, "\xd8\xf1"); /* fdiv st0, st1 */
	assert_true(divide->x87_tracks_pointers);
	assert_int_equal(form_run(divide, NULL, NULL, false), NO_FAULT);
	native_x87_track(vcpu, divide, SEG_DS, 0);
	assert_int_equal(RUN("\xd9\xe8"), VECTOR_MF);
	assert_int_equal(RUN("\x9b"), VECTOR_MF);
	assert_true(vcpu->x87_live);
	assert_int_equal(RUN("\x0f\xfc\xc1"), VECTOR_MF);  /* paddb mm0, mm1 */
	assert_int_equal(IMAGE("\xdd\x23", 0), VECTOR_MF); /* frstor */
	assert_int_equal(IMAGE("\xd9\x33", 0), NO_FAULT);  /* fnstenv */
	memcpy(words, image, sizeof words);
	assert_int_equal(words[0], 0xffff037b);
	assert_int_equal(words[1] & 0x80ff, 0x8084);
	assert_int_equal(words[3], 0x3456789a);
	assert_int_equal(words[4], 0x00f10033);
	assert_int_equal(RUN("\x9b"), NO_FAULT); /* all masked now */
	native_x87_save(vcpu);
	assert_int_equal(s->x87.fcw, 0x37f);
	assert_int_equal(s->x87.fip, 0x123456789a);
	assert_int_equal(s->x87.ftw, 0xc0);
	/* The unmasked quotient was never stored: 1 is still there. */
	assert_memory_equal(s->x87.st[0], "\0\0\0\0\0\0\0\x80\xff\x3f", 10);

	/* All four layouts, there and back. */
	for (unsigned layout = 0; layout < 4; layout++) {
		uint64_t cr0 = s->cr0;
		randomize_state();
		s->x87.fip = 0x4321;
		s->x87.fdp = 0x8765;
		s->x87.fop = 0x1e8;
		s->x87_fcs = 0x1230;
		s->x87_fds = 0x4560;
		struct x87_state before = s->x87;
		if (layout & 2)
			s->cr0 &= ~(CR0_PE | CR0_PG);
		/* Real mode has no paging: the same physical address. */
		mmu_flush(vcpu);
		assert_int_equal(layout & 1 ? IMAGE("\x66\xdd\x33", 0) : IMAGE("\xdd\x33", 0), NO_FAULT); /* fnsave */
		unsigned size = layout & 1 ? 2 : 4;
		uint32_t word[7] = {0};
		for (unsigned n = 0; n < 7; n++)
			memcpy(&word[n], image + n * size, size);
		if (layout & 2) {
			assert_int_equal(word[3] & 0xffff, 0x6621); /* 1230:4321 */
			assert_int_equal(word[4], 0x1000 | 0x1e8);
			assert_int_equal(word[5] & 0xffff, 0xdd65);
			assert_int_equal(word[6], 0x4000);
		} else {
			assert_int_equal(word[3], 0x4321);
			assert_int_equal(word[4], layout & 1 ? 0x1230 : 0x01e81230);
			assert_int_equal(word[6] & 0xffff, 0x4560);
		}
		native_x87_save(vcpu);
		assert_int_equal(s->x87.ftw, 0);
		assert_int_equal(s->x87.fip, 0);
		assert_int_equal(layout & 1 ? IMAGE("\x66\xdd\x23", 0) : IMAGE("\xdd\x23", 0), NO_FAULT); /* frstor */
		native_x87_save(vcpu);
		assert_int_equal(s->x87.fcw, before.fcw);
		assert_int_equal(s->x87.fsw, before.fsw);
		assert_int_equal(s->x87.ftw, before.ftw);
		assert_memory_equal(s->x87.st, before.st, sizeof before.st);
		assert_int_equal(s->x87.fip, layout & 2 ? 0x16621 : 0x4321);
		s->cr0 = cr0;
		mmu_flush(vcpu);
	}
	assert_int_equal(RUN("\xdb\xe3"), NO_FAULT); /* fninit */
	assert_int_equal(s->x87.fop, 0);
	native_x87_save(vcpu);
}

/* FXSAVE, XSAVE ... and back, against the host's own on the same registers. */
static void image_test(void **unused)
{
	static const struct {
		const char *save, *restore;
		unsigned length;
		bool needs_header;
	} pairs[] = {
	    {"\x48\x0f\xae\x03", "\x48\x0f\xae\x0b", 4, false}, /* fxsave64, fxrstor64 */
	    {"\x0f\xae\x03\x90", "\x0f\xae\x0b\x90", 3, false}, /* fxsave, fxrstor */
	    {"\x48\x0f\xae\x23", "\x48\x0f\xae\x2b", 4, true},  /* xsave64, xrstor64 */
	    {"\x48\x0f\xae\x33", "\x48\x0f\xae\x2b", 4, true},  /* xsaveopt64 */
	    {"\x48\x0f\xc7\x23", "\x48\x0f\xae\x2b", 4, true},  /* xsavec64 */
	};
	struct vcpu *vcpu = fixture.vcpu;
	struct cpu_state *s = &vcpu->state;
	uint8_t *guest = fixture.memory.low + GUEST_BUFFER;
	use_handlers();
	for (unsigned round = 0; round < 400; round++) {
		unsigned pair = round % 5;
		randomize_state();
		for (unsigned n = 0; n < 32; n++) { /* some components in their initial state */
			if (round & 8)
				memset(s->vector.zmm[n] + 16, 0, 16);
			if (round & 16)
				memset(s->vector.zmm[n] + 32, 0, 32);
			if ((round & 32) || (n >= 16 && (round & 64)))
				memset(s->vector.zmm[n], 0, 64);
		}
		if (round & 128)
			memset(s->vector.opmask, 0, sizeof s->vector.opmask);
		s->gpr[RDX] = 0;
		s->gpr[RAX] = round < 40 ? 0xffffffff : random64();
		s->gpr[RBX] = (uint64_t)fixture.operand[0];
		if (pairs[pair].needs_header)
			for (unsigned area = 0; area < 2; area++) {
				memset(fixture.operand[area] + 512, 0, 64);
				fixture.operand[area][512] = (uint8_t)(round & 7);
			}
		context_from_vcpu();
		assert_int_equal(oracle_run((const uint8_t *)pairs[pair].save, pairs[pair].length), NO_FAULT);
		memcpy(guest, fixture.operand[1], OPERAND_AREA);
		assert_int_equal(image_run(pairs[pair].save, pairs[pair].length, 0), NO_FAULT);
		memcpy(fixture.operand[1], guest, OPERAND_AREA);
		/* The silicon need not notice that a component has become zero, so its images may name more. */
		bool optimized = pair >= 2 && (round & 0xf8);
		for (unsigned n = 0; n < OPERAND_AREA && !optimized; n++)
			if (fixture.operand[0][n] != fixture.operand[1][n])
				fail_msg("save %u, round %u: byte %u is %02x, silicon's %02x", pair, round, n,
				         fixture.operand[1][n], fixture.operand[0][n]);

		/* Into other registers. */
		uint8_t image[OPERAND_AREA];
		memcpy(image, guest, sizeof image);
		randomize_state();
		s->gpr[RDX] = 0;
		s->gpr[RAX] = random64();
		s->gpr[RBX] = (uint64_t)fixture.operand[0];
		memcpy(fixture.operand[0], image, sizeof image);
		memcpy(guest, image, sizeof image);
		if (round % 11 == 0)
			fixture.operand[0][27] = guest[27] = 0x80; /* a reserved bit of MXCSR */
		if (round % 13 == 0)
			fixture.operand[0][512 + 8 + round % 16] = guest[512 + 8 + round % 16] = 1;
		memcpy(fixture.operand[1], fixture.operand[0], OPERAND_AREA);
		context_from_vcpu();
		unsigned expected = oracle_run((const uint8_t *)pairs[pair].restore, pairs[pair].length);
		unsigned got = image_run(pairs[pair].restore, pairs[pair].length, 0);
		native_x87_save(vcpu);
		const char *what = expected != got ? "exceptions" : difference();
		if (what)
			fail_msg("restore %u, round %u: %s differ; exception %u, expected %u", pair, round, what, got,
			         expected);
	}
}

static void *thread_main(void *result)
{
	/* The same vCPU on another thread, as machines do that are paused and resumed. */
	*(int *)result = native_thread_enter(fixture.native);
	if (!*(int *)result) {
		fixture.vcpu->state.gpr[RCX] = 0;
		*(int *)result = RUN("\x48\xf7\xf1") == VECTOR_DE && RUN("\xd9\xe8") == NO_FAULT ? 0 : -1;
	}
	native_thread_leave(fixture.native);
	return NULL;
}

static void thread_test(void **unused)
{
	pthread_t thread;
	int result = -1;
	use_handlers();
	native_thread_leave(fixture.native);
	fixture.vcpu->state.x87 = (struct x87_state){.fcw = 0x37f};
	assert_int_equal(pthread_create(&thread, NULL, thread_main, &result), 0);
	pthread_join(thread, NULL);
	assert_int_equal(result, 0);
	assert_false(fixture.vcpu->x87_live);
	assert_int_equal(fixture.vcpu->state.x87.ftw, 0x80);
	assert_int_equal(native_thread_enter(fixture.native), 0);
}

/* Not a test: what a form costs, with BENCH set. */
static void benchmark(void **unused)
{
	static const struct {
		const char *name, *bytes;
		unsigned length;
	} forms[] = {
	    {"mov eax, [m]", "\x8b\x03", 2},
	    {"add eax, ecx", "\x01\xc8", 2},
	    {"adc eax, ecx", "\x11\xc8", 2},
	    {"movups xmm0, [m]", "\x0f\x10\x03", 3},
	    {"movups [m], xmm0", "\x0f\x11\x03", 3},
	    {"pxor xmm0, xmm1", "\x66\x0f\xef\xc1", 4},
	    {"addsd xmm0, xmm1", "\xf2\x0f\x58\xc1", 4},
	    {"vpaddd ymm0, ymm1, ymm2", "\xc5\xf5\xfe\xc2", 4},
	    {"vpaddd zmm0, zmm1, zmm2", "\x62\xf1\x75\x48\xfe\xc2", 6},
	    {"fld st0; fstp st0", "\xd9\xc0", 2},
	    {"fadd st0, st1", "\xd8\xc1", 2},
	    {"paddb mm0, mm1", "\x0f\xfc\xc1", 3},
	    {"lock xadd [m], eax", "\xf0\x0f\xc1\x03", 4},
	};
	if (!getenv("BENCH"))
		return;
	use_handlers();
	randomize_state();
	fixture.vcpu->state.vector.mxcsr = 0x1f80;
	fixture.vcpu->state.x87 = (struct x87_state){.fcw = 0x37f};
	for (unsigned n = 0; n < sizeof forms / sizeof *forms; n++) {
		struct decoded d;
		const struct native_form *form = form_bytes(&d, 0, forms[n].bytes, forms[n].length);
		uint64_t best = UINT64_MAX;
		for (unsigned round = 0; round < 20; round++) {
			uint64_t start = __builtin_ia32_rdtsc();
			for (unsigned i = 0; i < 10000; i++)
				form->run(fixture.vcpu, fixture.operand[1]);
			uint64_t time = __builtin_ia32_rdtsc() - start;
			best = time < best ? time : best;
		}
		print_message("%-26s %5.1f TSC cycles\n", forms[n].name, (double)best / 10000);
	}
	native_x87_save(fixture.vcpu);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(silicon_test),    cmocka_unit_test(element_test), cmocka_unit_test(fault_test),
	    cmocka_unit_test(bit_string_test), cmocka_unit_test(class_test),   cmocka_unit_test(x87_test),
	    cmocka_unit_test(image_test),      cmocka_unit_test(thread_test),  cmocka_unit_test(benchmark),
	};
	return cmocka_run_group_tests_name("native", tests, setup, teardown);
}
