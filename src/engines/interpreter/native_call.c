/*
 * Slots that let the host execute an instruction (native.h): the operand's address, a host pointer or a bounce buffer,
 * the flags.
 */
#include "engines/interpreter/native_call.h"
#include "engines/interpreter/decode.h"
#include "x86/segments.h"
#include "x86/system.h"

#include <setjmp.h>
#include <string.h>

/* insn->b of these slots. */
#define NATIVE_LOCKED     0x80u
#define NATIVE_SEGMENT(b) ((enum segment_register)((b)&7))

/* What a special form needs beside its slot. */
struct special {
	struct native_operation operation;
	uint64_t mask; /* of the address size */
};

static COLD void disabled(PARAMETERS, const struct native_form *form)
{
	SLOW_ENTER;
	native_raise_disabled(vcpu, form);
}

#define CHECK_CLASS(form)                                                                                              \
	do {                                                                                                           \
		if (unlikely(vcpu->classes_disabled & (form)->class_needed))                                           \
			return disabled(ARGUMENTS, form);                                                              \
	} while (0)

/* FIP, FDP and FOP of x87 instructions; `linear` is the operand's address when there is one. */
static void track(struct vcpu *vcpu, const struct insn *insn, const struct native_form *form, uint64_t linear)
{
	enum segment_register segment = NATIVE_SEGMENT(insn->b);
	uint64_t block_rip = vcpu->state.rip;
	bool has_base = !cpu_64bit_code(&vcpu->state) || segment == SEG_FS || segment == SEG_GS;

	/* They stay those of the instruction that erred while this one raises #MF. */
	if (native_x87_pending(vcpu))
		return;
	vcpu->state.rip = (block_rip + insn->offset) & interpreter_of(vcpu)->rip_mask;
	native_x87_track(vcpu, form, segment, has_base ? linear - vcpu->state.segment[segment].base : linear);
	vcpu->state.rip = block_rip;
}

void native_plain(PARAMETERS)
{
	const struct native_form *form = insn->pointer;

	CHECK_CLASS(form);
	SLOW_ENTER;
	form->run(vcpu, NULL);
	flags = flags_load(vcpu);
	NEXT;
}

static void native_plain_x87(PARAMETERS)
{
	const struct native_form *form = insn->pointer;

	CHECK_CLASS(form);
	SLOW_ENTER;
	track(vcpu, insn, form, 0);
	form->run(vcpu, NULL);
	flags = flags_load(vcpu);
	NEXT;
}

static void native_bounce_fill(PARAMETERS, uint64_t linear);

static void run_form(struct vcpu *vcpu, const struct native_form *form, void *memory)
{
	if (unlikely(interpreter_of(vcpu)->mode & MODE_ALIGN))
		native_run_aligned(vcpu, form, memory);
	else
		form->run(vcpu, memory);
}

/* The form on a buffer, under the lock that split locked operations share. A fault (CMPXCHG16B wants alignment) must
 * give it back. */
static void run_locked(struct vcpu *vcpu, const struct native_form *form, uint64_t linear, void *operand)
{
	jmp_buf *volatile outer = vcpu->fault_target;
	jmp_buf here;

	pthread_mutex_lock(&vcpu->memory->split_lock);
	vcpu->fault_target = &here;
	if (_setjmp(here)) {
		pthread_mutex_unlock(&vcpu->memory->split_lock);
		vcpu->fault_target = outer;
		longjmp(*outer, 1);
	}
	mmu_read_bytes(vcpu, linear, operand, form->memory_size);
	form->run(vcpu, operand);
	mmu_write_bytes(vcpu, linear, operand, form->memory_size);
	vcpu->fault_target = outer;
	pthread_mutex_unlock(&vcpu->memory->split_lock);
}

/*
 * The operand crosses a page, is not RAM, or is watched: through a buffer that keeps the address's low six bits.
 */
static COLD void bounce(struct vcpu *vcpu, const struct insn *insn, uint64_t linear)
{
	const struct native_form *form = insn->pointer;
	_Alignas(64) uint8_t buffer[64 + 512];
	uint8_t *operand = buffer + (linear & 63);
	unsigned size = form->memory_size;

	if (size > 512)
		x86_raise(vcpu, VECTOR_UD);
	slow_check(vcpu, insn, linear, size);
	if (form->writes_memory)
		mmu_probe_write(vcpu, linear, size);
	if (insn->b & NATIVE_LOCKED) {
		run_locked(vcpu, form, linear, operand);
	} else {
		if (form->reads_memory)
			mmu_read_bytes(vcpu, linear, operand, size);
		run_form(vcpu, form, operand);
		if (form->writes_memory)
			mmu_write_bytes(vcpu, linear, operand, size);
	}
}

static COLD void native_bounce(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	bounce(vcpu, insn, linear);
	flags = flags_load(vcpu);
	NEXT_SLOW;
}

/* Before an operand's page is looked for: #MF that is pending, #GP for alignment, then the canonical check, then #AC.
 */
static void check_operand(struct vcpu *vcpu, const struct insn *insn, const struct native_form *form, uint64_t linear)
{
	bool in_range = operand_in_range(vcpu, insn, linear, form->memory_size);

	native_check_operand(vcpu, form, in_range || form->alignment > 1 ? linear : linear & ~63ull);
	/* 80 bits are two accesses: the first one's page comes before the second one's address. */
	if (form->first_access && operand_in_range(vcpu, insn, linear, form->first_access)) {
		if (!in_range)
			native_check_alignment(vcpu, linear, form->natural_alignment);
		mmu_translate(vcpu, linear, form->writes_memory ? MMU_WRITE : MMU_READ, vcpu->mmu.view);
	}
	slow_check(vcpu, insn, linear, form->memory_size);
}

void native_read(PARAMETERS, uint64_t linear)
{
	const struct native_form *form = insn->pointer;
	struct mmu_tlb_entry *entry = READ_ENTRY(linear);

	CHECK_CLASS(form);
	if (!HIT(entry, linear, form->memory_size))
		return native_bounce_fill(ARGUMENTS, linear);
	SLOW_ENTER;
	run_form(vcpu, form, (void *)(entry->host + linear));
	flags = flags_load(vcpu);
	NEXT;
}

void native_write(PARAMETERS, uint64_t linear)
{
	const struct native_form *form = insn->pointer;
	struct mmu_tlb_entry *entry = WRITE_ENTRY(linear);

	CHECK_CLASS(form);
	if (!HIT(entry, linear, form->memory_size))
		return native_bounce_fill(ARGUMENTS, linear);
	SLOW_ENTER;
	run_form(vcpu, form, (void *)(entry->host + linear));
	flags = flags_load(vcpu);
	if (unlikely(mmu_entry_flags(entry)))
		return written_slow(ARGUMENTS, entry);
	NEXT;
}

/* A TLB miss: after filling it the operand may be plain RAM within one page, and must then not go through a buffer
 * (locked forms are atomic only there). */
static COLD void native_bounce_fill(PARAMETERS, uint64_t linear)
{
	const struct native_form *form = insn->pointer;

	SLOW_ENTER;
	check_operand(vcpu, insn, form, linear);
	if (mmu_host_pointer(vcpu, linear, form->memory_size, form->writes_memory ? MMU_WRITE : MMU_READ))
		return form->writes_memory ? native_write(ARGUMENTS, linear) : native_read(ARGUMENTS, linear);
	return native_bounce(ARGUMENTS, linear);
}

/* FIP and its like change also when the instruction itself faults, but not when its operand cannot be reached. */
static void native_x87_memory(PARAMETERS, uint64_t linear)
{
	const struct native_form *form = insn->pointer;
	struct mmu_tlb_entry *entry = form->writes_memory ? WRITE_ENTRY(linear) : READ_ENTRY(linear);

	CHECK_CLASS(form);
	SLOW_ENTER;
	if (!HIT(entry, linear, form->memory_size)) {
		check_operand(vcpu, insn, form, linear);
		if (form->writes_memory) {
			mmu_probe_write(vcpu, linear, form->memory_size);
		} else {
			mmu_translate(vcpu, linear, MMU_READ, vcpu->mmu.view);
			if ((linear & (MEMORY_PAGE_SIZE - 1)) + form->memory_size > MEMORY_PAGE_SIZE)
				mmu_translate(vcpu, (linear | (MEMORY_PAGE_SIZE - 1)) + 1, MMU_READ, vcpu->mmu.view);
		}
	}
	track(vcpu, insn, form, linear);
	return form->writes_memory ? native_write(ARGUMENTS, linear) : native_read(ARGUMENTS, linear);
}

/* BT, BTS, BTR, BTC with a register offset: the operand lies beyond the effective address. b: address size flags and
 * segment as in general slots. */
static void native_bit_string(PARAMETERS)
{
	const struct native_form *form = insn->pointer;
	uint64_t offset =
	    REG64(insn->base) + (REG64(insn->index) << insn->scale) + (uint64_t)(int64_t)insn->displacement;

	offset += (uint64_t)native_bit_displacement(vcpu, form);
	if (insn->b & GENERAL_MASK32)
		offset = (uint32_t)offset;
	else if (insn->b & GENERAL_MASK16)
		offset = (uint16_t)offset;
	SLOW_ENTER;
	uint64_t linear =
	    segment_linear(vcpu, GENERAL_SEGMENT(insn->b), offset, form->memory_size, form->writes_memory);
	return insn[1].run_at(vcpu, insn + 1, flags, tlb, linear);
}

static NOINLINE void run_special(struct vcpu *vcpu, const struct insn *insn)
{
	const struct special *special = insn->pointer;
	struct native_operation operation = special->operation;

	operation.base = (REG64(insn->base) + (uint64_t)(int64_t)insn->displacement) & special->mask;
	operation.offset = (operation.base + (REG64(insn->index) << insn->scale)) & special->mask;
	operation.next_rip = next_rip(vcpu, insn);
	operation.form->special(vcpu, &operation);
}

static void native_special(PARAMETERS)
{
	const struct special *special = insn->pointer;

	CHECK_CLASS(special->operation.form);
	SLOW_ENTER;
	run_special(vcpu, insn);
	flags = flags_load(vcpu);
	NEXT_SLOW;
}

/* Decoding. */

/* Is the instruction one that the guest's CPU has? What the model's flags do not name is as on the host, whose #UD the
 * guest gets. */
static bool offered(const struct decoder *d)
{
	const struct cpu_model *m = d->vcpu->model;
	const ZydisDecodedInstructionMeta *meta = &d->instruction.meta;

	switch (meta->isa_ext) {
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_X87:
	case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_LONGMODE:
	case ZYDIS_ISA_EXT_PAUSE:
	case ZYDIS_ISA_EXT_XSAVE:
	case ZYDIS_ISA_EXT_XSAVEC:
	case ZYDIS_ISA_EXT_XSAVEOPT:
	case ZYDIS_ISA_EXT_XSAVES:
		return true;
	case ZYDIS_ISA_EXT_SSE4A:
		return !m || m->sse4a;
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_AVXAES:
	case ZYDIS_ISA_EXT_AVX_VNNI:
		return !m || m->avx;
	case ZYDIS_ISA_EXT_AVX512EVEX:
	case ZYDIS_ISA_EXT_AVX512VEX:
		return !m || m->avx512;
	case ZYDIS_ISA_EXT_GFNI:
	case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
		return true;
	case ZYDIS_ISA_EXT_FMA:
		return !m || m->fma;
	case ZYDIS_ISA_EXT_F16C:
		return !m || m->f16c;
	case ZYDIS_ISA_EXT_BMI1:
		return !m || m->bmi1;
	case ZYDIS_ISA_EXT_BMI2:
		return !m || m->bmi2;
	case ZYDIS_ISA_EXT_LZCNT:
		return !m || m->lzcnt;
	case ZYDIS_ISA_EXT_MOVBE:
		return !m || m->movbe;
	case ZYDIS_ISA_EXT_ADOX_ADCX:
		return !m || m->adx;
	case ZYDIS_ISA_EXT_SHA:
		return !m || m->sha;
	case ZYDIS_ISA_EXT_AES:
		return !m || m->aes;
	case ZYDIS_ISA_EXT_PCLMULQDQ:
		return !m || m->pclmul;
	case ZYDIS_ISA_EXT_RDRAND:
		return !m || m->rdrand;
	case ZYDIS_ISA_EXT_RDSEED:
		return !m || m->rdseed;
	default:
		return false;
	}
}

/* The explicit memory operand, else an implicit one (MASKMOVDQU), else NULL. */
static const ZydisDecodedOperand *memory_operand(const struct decoder *d)
{
	for (unsigned i = 0; i < d->instruction.operand_count; i++)
		if (is_memory(&d->operand[i]))
			return &d->operand[i];
	return NULL;
}

static uint8_t mask_flags(unsigned address_size)
{
	return address_size == 4 ? GENERAL_MASK32 : address_size == 2 ? GENERAL_MASK16 : 0;
}

static bool special_decode(struct decoder *d, const struct native_form *form, const ZydisDecodedOperand *memory)
{
	struct special *special = block_allocate(d, sizeof(*special));
	struct insn *insn;
	unsigned address_size = d->instruction.address_width / 8;

	if (!special)
		return false;
	insn = emit(d, native_special);
	insn->pointer = special;
	*special = (struct special){.operation = {.form = form, .length = d->instruction.length}};
	memcpy(special->operation.bytes, d->bytes, d->instruction.length);
	if (memory) {
		address_size = fill_address(d, insn, memory);
		insn->pointer = special;
		special->operation.segment = operand_segment(memory);
	}
	special->operation.address_size = address_size;
	special->mask = address_size == 8 ? ~0ull : address_size == 4 ? 0xffffffffull : 0xffffull;
	return true;
}

static void bit_string_decode(struct decoder *d, const struct native_form *form, const ZydisDecodedOperand *memory)
{
	struct insn *insn = emit(d, native_bit_string);
	unsigned address_size = fill_address(d, insn, memory);

	insn->pointer = form;
	insn->b = (uint8_t)(operand_segment(memory) << 4 | mask_flags(address_size));
}

bool native_decode(struct decoder *d)
{
	const ZydisDecodedOperand *memory = memory_operand(d);
	const struct native_form *form;
	struct insn *insn;

	if (!offered(d) || !d->interpreter->native)
		return false;
	form = native_form_get(d->interpreter->native, &d->instruction, d->operand, d->bytes);
	if (!form)
		return false;
	if (form->special)
		return special_decode(d, form, memory);
	insn = vector_move_decode(d, form);
	if (insn) {
		if (memory && insn > d->block->insn && insn[-1].run == address_general &&
		    insn[-1].offset == insn->offset)
			insn[-1].b |= GENERAL_NATIVE;
		insn->pointer = form;
		return true;
	}
	if (!form->memory_size) {
		insn = emit(d, form->x87_tracks_pointers ? native_plain_x87 : native_plain);
	} else {
		handler_at *run = form->x87_tracks_pointers ? native_x87_memory
		                  : form->writes_memory     ? native_write
		                                            : native_read;
		if (form->bit_string) {
			bit_string_decode(d, form, memory);
			insn = emit(d, run);
		} else {
			/* Alignment is the silicon's business, and comes before other checks: no slot that does it by
			 * rule. */
			uint32_t mode = d->mode;
			d->mode &= ~MODE_ALIGN;
			insn = emit_memory_at(d, memory, form->memory_size, form->writes_memory, run);
			d->mode = mode;
			if (insn[-1].run == address_general && !decoder_64(d))
				insn[-1].b = (uint8_t)((insn[-1].b & ~GENERAL_ALIGN) | GENERAL_NATIVE);
			else if (insn[-1].run == address_s64)
				insn[-1].b = GENERAL_NATIVE;
			else if (insn[-1].run == address_general)
				insn[-1].b &= (uint8_t)~GENERAL_ALIGN;
		}
		insn->stack_segment = operand_segment(memory) == SEG_SS;
		insn->b =
		    (uint8_t)(operand_segment(memory) | (has_prefix(d, ZYDIS_ATTRIB_HAS_LOCK) ? NATIVE_LOCKED : 0));
	}
	insn->pointer = form;
	return true;
}
