/*
 * The cache of forms, and which of them the guest may use now. One per vCPU, used by its thread only.
 */
#include "engines/interpreter/native_private.h"

#include <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "x86/exceptions.h"

#define ARENA_SIZE    (2u << 20)
#define ARENA_RESERVE (64u << 10) /* for the block that is being decoded when the arena is called full */
#define BUCKETS       8192u
#define ENTRIES_MAX   65536u
#define CHUNK_ENTRIES 64u

struct native_entry_chunk {
	struct native_entry_chunk *next;
	unsigned used;
	struct native_entry entry[CHUNK_ENTRIES];
};

static void find_host_features(struct native *native)
{
	unsigned a, b, c, d;
	uint64_t xcr0 = 0;
	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
		uint32_t low, high;
		__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
		xcr0 = low | (uint64_t)high << 32;
	}
	native->host_avx = (xcr0 & (XSTATE_SSE | XSTATE_AVX)) == (XSTATE_SSE | XSTATE_AVX);
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && native->host_avx && (xcr0 & XSTATE_AVX512) == XSTATE_AVX512) {
		native->host_avx512 = b & bit_AVX512F;
		native->host_avx512bw = native->host_avx512 && (b & bit_AVX512BW);
	}
}

static uint32_t host_mxcsr_mask(void)
{
	_Alignas(16) uint8_t image[512] = {0};
	uint32_t mask;
	__asm__ volatile("fxsave64 %0" : "+m"(image));
	memcpy(&mask, image + 28, 4);
	return mask ? mask : 0xffbf; /* SDM 1 11.6.6 */
}

struct native *native_create(struct vcpu *vcpu)
{
	struct native *native = calloc(1, sizeof *native);
	if (!native)
		return NULL;
	native->vcpu = vcpu;
	native->buckets = calloc(BUCKETS, sizeof *native->buckets);
	int error = native->buckets ? code_arena_create(&native->arena, ARENA_SIZE) : -ENOMEM;
	if (error) {
		free(native->buckets);
		free(native);
		errno = -error;
		return NULL;
	}
	ZydisDecoderInit(&native->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	find_host_features(native);
	native_find_features(native, vcpu->model);
	vcpu->host_mxcsr = NATIVE_MXCSR;
	vcpu->host_mxcsr_mask = host_mxcsr_mask();
	return native;
}

void native_destroy(struct native *native)
{
	if (!native)
		return;
	native_thread_leave(native);
	native_flush(native);
	code_arena_destroy(&native->arena);
	free(native->buckets);
	free(native);
}

void native_flush(struct native *native)
{
	while (native->chunks) {
		struct native_entry_chunk *next = native->chunks->next;
		free(native->chunks);
		native->chunks = next;
	}
	memset(native->buckets, 0, BUCKETS * sizeof *native->buckets);
	native->entry_count = 0;
	code_arena_reset(&native->arena);
}

unsigned native_usage(const struct native *native)
{
	size_t code = native->arena.used * 100 / (native->arena.size - ARENA_RESERVE);
	size_t entries = native->entry_count * 100ul / (ENTRIES_MAX - 1024);
	size_t usage = code > entries ? code : entries;
	return usage > 100 ? 100 : (unsigned)usage;
}

static uint32_t hash_bytes(uint32_t hash, const void *data, size_t length)
{
	for (const uint8_t *p = data; length--; p++)
		hash = (hash ^ *p) * 16777619u;
	return hash;
}

static bool same_form(const struct native_form *a, const struct native_form *b)
{
	return a->memory_size == b->memory_size && a->class_needed == b->class_needed &&
	       a->reads_memory == b->reads_memory && a->writes_memory == b->writes_memory &&
	       a->alignment == b->alignment && a->natural_alignment == b->natural_alignment &&
	       a->first_access == b->first_access && a->waits == b->waits && a->bit_string == b->bit_string &&
	       a->bit_register == b->bit_register && a->x87_tracks_pointers == b->x87_tracks_pointers &&
	       a->x87_opcode == b->x87_opcode && a->special == b->special && a->masked == b->masked;
}

static struct native_entry *entry_allocate(struct native *native)
{
	struct native_entry_chunk *chunk = native->chunks;
	if (native->entry_count >= ENTRIES_MAX)
		return NULL;
	if (!chunk || chunk->used == CHUNK_ENTRIES) {
		chunk = calloc(1, sizeof *chunk);
		if (!chunk)
			return NULL;
		chunk->next = native->chunks;
		native->chunks = chunk;
	}
	native->entry_count++;
	return &chunk->entry[chunk->used++];
}

/* The entry with this stub (none when length is 0) and these properties, made if need be. NULL: full. */
static struct native_entry *entry_get(struct native *native, const struct native_plan *plan, const uint8_t *stub,
                                      size_t length)
{
	uint32_t hash = hash_bytes(2166136261u, stub, length);
	hash = hash_bytes(hash, &plan->form.memory_size, sizeof plan->form.memory_size);
	hash = hash_bytes(hash, &plan->form.special, sizeof plan->form.special);
	hash = hash_bytes(hash, &plan->form.run, sizeof plan->form.run);
	hash = hash_bytes(hash, &plan->elements, sizeof plan->elements);
	struct native_entry **bucket = &native->buckets[hash % BUCKETS];
	for (struct native_entry *e = *bucket; e; e = e->next)
		if (e->hash == hash && e->code_length == length && (!length || !memcmp(e->code, stub, length)) &&
		    same_form(&e->form, &plan->form) && (length || e->form.run == plan->form.run) &&
		    !memcmp(&e->elements, &plan->elements, sizeof e->elements))
			return e;

	uint8_t *code = NULL;
	if (length) {
		code = code_arena_allocate(&native->arena, length, 32);
		if (!code)
			return NULL;
		memcpy(code, stub, length);
		code_arena_publish();
	}
	struct native_entry *e = entry_allocate(native);
	if (!e)
		return NULL;
	e->form = plan->form;
	e->elements = plan->elements;
	e->hash = hash;
	e->code_length = (uint32_t)length;
	e->code = code;
	if (length) {
		native_run *run = (native_run *)code_arena_executable(&native->arena, code);
		e->inner = run;
		e->form.run = plan->form.special ? NULL : run;
	}
	e->next = *bucket;
	*bucket = e;
	return e;
}

const struct native_form *native_form_get(struct native *native, const ZydisDecodedInstruction *instruction,
                                          const ZydisDecodedOperand *operands, const uint8_t *bytes)
{
	struct native_plan plan;
	uint8_t stub[NATIVE_STUB_MAX];
	if (!native_plan_make(native, instruction, operands, bytes, &plan))
		return NULL;
	size_t length = plan.code_length ? native_stub_emit(native, &plan, stub) : 0;
	struct native_entry *entry = entry_get(native, &plan, stub, length);
	return entry ? &entry->form : NULL;
}

bool native_form_describe(const struct native *native, const ZydisDecodedInstruction *instruction,
                          const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_form *form)
{
	struct native_plan plan;

	if (!native_plan_make(native, instruction, operands, bytes, &plan))
		return false;
	*form = plan.form;
	form->run = NULL;
	return true;
}

void native_update_classes(struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;
	bool ts = s->cr0 & CR0_TS, em = s->cr0 & CR0_EM, no_vex = cpu_real_or_vm86(s);
	bool no_avx = no_vex || !(s->cr4 & CR4_OSXSAVE) || (~s->xcr0 & (XSTATE_SSE | XSTATE_AVX));
	uint8_t disabled = 0;
	if (ts || em)
		disabled |= NATIVE_X87 | NATIVE_MMX;
	if (ts || em || !(s->cr4 & CR4_OSFXSR))
		disabled |= NATIVE_SSE;
	if (ts || no_avx)
		disabled |= NATIVE_AVX;
	if (ts || no_avx || (~s->xcr0 & XSTATE_AVX512))
		disabled |= NATIVE_AVX512;
	if (ts && (s->cr0 & CR0_MP))
		disabled |= NATIVE_WAIT;
	if (no_vex)
		disabled |= NATIVE_VEX;
	vcpu->classes_disabled = disabled;
	native_x87_set_live(vcpu, vcpu->x87_live);
}

void native_raise_disabled(struct vcpu *vcpu, const struct native_form *form)
{
	const struct cpu_state *s = &vcpu->state;
	uint8_t disabled = vcpu->classes_disabled & form->class_needed;
	bool undefined = false;
	/* #UD comes before #NM (SDM 3A table 6-2); x87 with CR0.EM is #NM (SDM 3A 2.5). */
	if (disabled & (NATIVE_MMX | NATIVE_SSE))
		undefined |= s->cr0 & CR0_EM;
	if (disabled & NATIVE_SSE)
		undefined |= !(s->cr4 & CR4_OSFXSR);
	if (disabled & (NATIVE_AVX | NATIVE_AVX512))
		undefined |= cpu_real_or_vm86(s) || !(s->cr4 & CR4_OSXSAVE) || (~s->xcr0 & (XSTATE_SSE | XSTATE_AVX));
	if (disabled & NATIVE_AVX512)
		undefined |= (~s->xcr0 & XSTATE_AVX512) != 0;
	if (disabled & NATIVE_VEX)
		undefined = true;
	x86_raise(vcpu, undefined ? VECTOR_UD : VECTOR_NM);
}

static bool checks_alignment(const struct cpu_state *s)
{
	return (s->cr0 & CR0_AM) && (s->rflags & FLAG_AC) && cpu_cpl(s) == 3;
}

static void run_checked(struct vcpu *vcpu, const struct native_form *form, native_run *run, void *memory)
{
	/* Nothing but the stub may run with AC set: compiled code makes unaligned accesses. */
	if (form->class_needed & (NATIVE_X87 | NATIVE_MMX | NATIVE_WAIT))
		native_x87_load(vcpu);
	__asm__ volatile("mov %%rsp, %%rbx\n\t"
	                 "sub $128, %%rsp\n\t" /* past the red zone */
	                 "and $-16, %%rsp\n\t"
	                 "pushfq\n\t"
	                 "orl $0x40000, (%%rsp)\n\t"
	                 "popfq\n\t"
	                 "call *%%rax\n\t"
	                 "pushfq\n\t"
	                 "andl $~0x40000, (%%rsp)\n\t"
	                 "popfq\n\t"
	                 "mov %%rbx, %%rsp"
	                 : "+a"(run), "+D"(vcpu), "+S"(memory)
	                 :
	                 : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2",
	                   "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
	                   "xmm14", "xmm15");
}

void native_run_aligned(struct vcpu *vcpu, const struct native_form *form, void *memory)
{
	if (form->memory_size)
		run_checked(vcpu, form, form->run, memory);
	else
		form->run(vcpu, memory);
}

void native_run_entry(struct vcpu *vcpu, const struct native_entry *entry, void *memory)
{
	if (__builtin_expect(checks_alignment(&vcpu->state), 0))
		run_checked(vcpu, &entry->form, entry->inner, memory);
	else
		entry->inner(vcpu, memory);
}

void native_check_alignment(struct vcpu *vcpu, uint64_t linear, unsigned alignment)
{
	if (__builtin_expect((linear & (alignment - 1)) != 0, 0) && checks_alignment(&vcpu->state))
		x86_raise(vcpu, VECTOR_AC);
}

void native_check_operand(struct vcpu *vcpu, const struct native_form *form, uint64_t linear)
{
	if (form->waits)
		native_x87_check_pending(vcpu);
	if (linear & (form->alignment - 1u))
		x86_raise(vcpu, VECTOR_GP);
	/* #AC comes after the segment's checks, of which this much can be seen here. */
	if (!cpu_64bit_code(&vcpu->state) || (cpu_canonical(linear) && cpu_canonical(linear + form->memory_size - 1)))
		native_check_alignment(vcpu, linear, form->natural_alignment);
}
