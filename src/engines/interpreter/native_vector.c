/*
 * Vector instructions that touch memory element by element: EVEX write-masking with fault suppression, VMASKMOV,
 * MASKMOVDQU, expand and compress, gathers and scatters. A masked-off element is never accessed and never faults (SDM
 * 2A 2.7.6).
 *
 * A masked operand whose active elements lie in one page of RAM is executed in place by the host, whose silicon
 * suppresses what lies beyond; others go through a buffer, element by element.
 */
#include "engines/interpreter/native_private.h"

#include <string.h>

#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/mmu.h"
#include "x86/segments.h"

#define DR6_BS (1u << 14)

/* Exception classes whose memory operand is read whole whatever the mask says ("NF": no fault suppression). */
static bool suppresses_faults(const ZydisDecodedInstruction *i)
{
	switch (i->mnemonic) {
	/* Of class E4NF, which the decoder does not know. */
	case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
	case ZYDIS_MNEMONIC_VDBPSADBW:
	case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
	case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
		return false;
	default:
		break;
	}
	switch (i->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_E1NF:
	case ZYDIS_EXCEPTION_CLASS_E2NF:
	case ZYDIS_EXCEPTION_CLASS_E3NF:
	case ZYDIS_EXCEPTION_CLASS_E4NF:
	case ZYDIS_EXCEPTION_CLASS_E5NF:
	case ZYDIS_EXCEPTION_CLASS_E6NF:
	case ZYDIS_EXCEPTION_CLASS_E9NF:
	case ZYDIS_EXCEPTION_CLASS_E10NF:
	case ZYDIS_EXCEPTION_CLASS_E11NF:
		return false;
	default:
		return true;
	}
}

static unsigned broadcast_count(ZydisBroadcastMode mode)
{
	switch (mode) {
	case ZYDIS_BROADCAST_MODE_1_TO_2:
		return 2;
	case ZYDIS_BROADCAST_MODE_1_TO_4:
	case ZYDIS_BROADCAST_MODE_2_TO_4:
		return 4;
	case ZYDIS_BROADCAST_MODE_1_TO_8:
	case ZYDIS_BROADCAST_MODE_2_TO_8:
	case ZYDIS_BROADCAST_MODE_4_TO_8:
		return 8;
	case ZYDIS_BROADCAST_MODE_1_TO_32:
		return 32;
	case ZYDIS_BROADCAST_MODE_1_TO_64:
		return 64;
	default:
		return 16;
	}
}

static const ZydisDecodedOperand *memory_operand(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands)
{
	for (unsigned n = 0; n < i->operand_count; n++)
		if (operands[n].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return &operands[n];
	return NULL;
}

static enum segment_register segment_number(ZydisRegister segment)
{
	return (enum segment_register)(segment - ZYDIS_REGISTER_ES);
}

static bool plan_maskmov(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                         struct native_plan *plan)
{
	const ZydisDecodedOperand *memory = memory_operand(i, operands);
	struct native_elements *e = &plan->elements;
	if (i->mnemonic != ZYDIS_MNEMONIC_MASKMOVQ && i->mnemonic != ZYDIS_MNEMONIC_MASKMOVDQU &&
	    i->mnemonic != ZYDIS_MNEMONIC_VMASKMOVDQU)
		return false;
	if (!memory)
		return true;
	e->data_register = (uint8_t)ZydisRegisterGetId(operands[0].reg.value);
	e->mask_register = (uint8_t)ZydisRegisterGetId(operands[1].reg.value);
	e->mask_count = i->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16;
	e->segment = (uint8_t)segment_number(memory->mem.segment);
	plan->form.special = native_maskmov;
	plan->form.writes_memory = true;
	if (i->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) {
		/* The stub hands over the two registers: movq %mm<data>, (%rsi); movq %mm<mask>, 8(%rsi). */
		uint8_t code[] = {0x0f, 0x7f, (uint8_t)(e->data_register << 3 | RSI),
		                  0x0f, 0x7f, (uint8_t)(0x40 | e->mask_register << 3 | RSI),
		                  8};
		memcpy(plan->code, code, sizeof code);
		plan->code_length = sizeof code;
	}
	return true;
}

static bool plan_gather(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands, struct native_plan *plan)
{
	/* The sizes of index and data; floating-point and integer ones are alike. */
	static const struct {
		ZydisMnemonic mnemonic;
		uint8_t index, data;
	} shapes[] = {
	    {ZYDIS_MNEMONIC_VGATHERDPS, 4, 4},  {ZYDIS_MNEMONIC_VGATHERDPD, 4, 8},  {ZYDIS_MNEMONIC_VGATHERQPS, 8, 4},
	    {ZYDIS_MNEMONIC_VGATHERQPD, 8, 8},  {ZYDIS_MNEMONIC_VPGATHERDD, 4, 4},  {ZYDIS_MNEMONIC_VPGATHERDQ, 4, 8},
	    {ZYDIS_MNEMONIC_VPGATHERQD, 8, 4},  {ZYDIS_MNEMONIC_VPGATHERQQ, 8, 8},  {ZYDIS_MNEMONIC_VSCATTERDPS, 4, 4},
	    {ZYDIS_MNEMONIC_VSCATTERDPD, 4, 8}, {ZYDIS_MNEMONIC_VSCATTERQPS, 8, 4}, {ZYDIS_MNEMONIC_VSCATTERQPD, 8, 8},
	    {ZYDIS_MNEMONIC_VPSCATTERDD, 4, 4}, {ZYDIS_MNEMONIC_VPSCATTERDQ, 4, 8}, {ZYDIS_MNEMONIC_VPSCATTERQD, 8, 4},
	    {ZYDIS_MNEMONIC_VPSCATTERQQ, 8, 8},
	};
	const ZydisDecodedOperand *memory = memory_operand(i, operands);
	struct native_elements *e = &plan->elements;
	if (!memory || memory->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		return false;
	for (unsigned n = 0; n < sizeof shapes / sizeof *shapes; n++) {
		if (shapes[n].mnemonic != i->mnemonic)
			continue;
		unsigned wider = shapes[n].index > shapes[n].data ? shapes[n].index : shapes[n].data;
		e->element_size = shapes[n].data;
		e->index_size = shapes[n].index;
		e->scale = memory->mem.scale ? memory->mem.scale : 1;
		e->index_register = (uint8_t)ZydisRegisterGetId(memory->mem.index);
		e->scatter = memory == &operands[0];
		e->evex = i->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
		e->vector_mask = !e->evex;
		e->data_register = (uint8_t)ZydisRegisterGetId(operands[e->scatter ? 2 : 0].reg.value);
		e->mask_register = (uint8_t)(e->evex ? ZydisRegisterGetId(i->avx.mask.reg)
		                                     : ZydisRegisterGetId(operands[2].reg.value));
		e->mask_count = (uint8_t)(i->avx.vector_length / 8 / wider);
		plan->form.special = native_gather;
		plan->form.reads_memory = !e->scatter;
		plan->form.writes_memory = e->scatter;
	}
	return true;
}

static bool plan_masked(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands, struct native_plan *plan)
{
	const ZydisDecodedOperand *memory = memory_operand(i, operands);
	struct native_elements *e = &plan->elements;
	if (!memory || memory->mem.type != ZYDIS_MEMOP_TYPE_MEM)
		return false;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		e->shape = ELEMENTS_EACH;
		e->vector_mask = true;
		e->mask_register = (uint8_t)ZydisRegisterGetId(operands[1].reg.value);
		e->element_size =
		    i->mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || i->mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD ? 4 : 8;
		e->mask_count = (uint8_t)(memory->size / 8 / e->element_size);
		plan->form.special = native_masked;
		plan->form.masked = true;
		return true;
	default:
		break;
	}
	if (i->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || i->avx.mask.mode <= ZYDIS_MASK_MODE_DISABLED ||
	    i->avx.mask.reg == ZYDIS_REGISTER_K0 || !suppresses_faults(i))
		return false;
	/*
	 * As many mask bits as the destination has elements (a source may be described in smaller ones: VPDPBUSD);
	 * where that is a mask or a register that a narrowing conversion fills in part, as many as the memory operand
	 * has.
	 */
	unsigned count = memory->element_count;
	ZydisRegisterClass class = operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER
	                               ? ZydisRegisterGetClass(operands[0].reg.value)
	                               : ZYDIS_REGCLASS_INVALID;
	if (class >= ZYDIS_REGCLASS_XMM && class <= ZYDIS_REGCLASS_ZMM && operands[0].element_count < count)
		count = operands[0].element_count;
	if (!count || count > 64)
		return false;
	e->shape = ELEMENTS_EACH;
	e->mask_register = (uint8_t)ZydisRegisterGetId(i->avx.mask.reg);
	e->element_size = (uint8_t)(memory->size / 8 / count);
	if (i->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID) {
		if (memory->element_count > 1)
			e->fold = (uint8_t)memory->element_count;
		else
			e->shape = ELEMENTS_ANY;
		count = broadcast_count(i->avx.broadcast.mode);
	} else if (i->meta.category == ZYDIS_CATEGORY_EXPAND || i->meta.category == ZYDIS_CATEGORY_COMPRESS ||
	           i->mnemonic == ZYDIS_MNEMONIC_VPEXPANDB || i->mnemonic == ZYDIS_MNEMONIC_VPEXPANDW ||
	           i->mnemonic == ZYDIS_MNEMONIC_VPCOMPRESSB || i->mnemonic == ZYDIS_MNEMONIC_VPCOMPRESSW) {
		e->shape = ELEMENTS_PACKED;
	}
	e->mask_count = (uint8_t)count;
	plan->form.special = native_masked;
	plan->form.masked = true;
	return true;
}

bool native_elements_plan(const ZydisDecodedInstruction *instruction, const ZydisDecodedOperand *operands,
                          struct native_plan *plan)
{
	return plan_maskmov(instruction, operands, plan) || plan_gather(instruction, operands, plan) ||
	       plan_masked(instruction, operands, plan);
}

static uint64_t truncate(const struct native_operation *operation, uint64_t offset)
{
	return operation->address_size == 8   ? offset
	       : operation->address_size == 4 ? (uint32_t)offset
	                                      : (uint16_t)offset;
}

/* The active elements, one bit each. */
static uint64_t active_elements(const struct vcpu *vcpu, const struct native_elements *e)
{
	const struct vector_state *v = &vcpu->state.vector;
	uint64_t active = 0, folded = 0;
	if (e->vector_mask) {
		for (unsigned n = 0; n < e->mask_count; n++)
			active |= (uint64_t)(v->zmm[e->mask_register][(n + 1) * e->element_size - 1] >> 7) << n;
		return active;
	}
	active = v->opmask[e->mask_register] & (e->mask_count == 64 ? ~0ull : (1ull << e->mask_count) - 1);
	if (!e->fold)
		return active;
	for (unsigned n = 0; n < e->mask_count; n += e->fold)
		folded |= active >> n & ((1ull << e->fold) - 1);
	return folded;
}

struct range {
	unsigned start, end; /* bytes of the operand that hold all active elements */
};

static struct range active_range(const struct native_elements *e, uint64_t active, unsigned size)
{
	if (!active)
		return (struct range){0, 0};
	switch (e->shape) {
	case ELEMENTS_EACH:
		return (struct range){(unsigned)__builtin_ctzll(active) * e->element_size,
		                      (64u - (unsigned)__builtin_clzll(active)) * e->element_size};
	case ELEMENTS_PACKED:
		return (struct range){0, (unsigned)__builtin_popcountll(active) * e->element_size};
	default:
		return (struct range){0, size};
	}
}

/* Where an element lies: VMASKMOV's wrap at the end of the address size, the elements of EVEX operands do not (Zen 4). */
static uint64_t element_offset(const struct native_operation *operation, unsigned start)
{
	uint64_t offset = operation->offset + start;
	return native_entry_of(operation)->elements.vector_mask ? truncate(operation, offset) : offset;
}

enum transfer { TRANSFER_READ, TRANSFER_PROBE, TRANSFER_WRITE };

static void transfer_bytes(struct vcpu *vcpu, const struct native_operation *operation, enum transfer transfer,
                           uint8_t *operand, struct range r)
{
	unsigned length = r.end - r.start;
	uint64_t linear = segment_linear(vcpu, operation->segment, element_offset(operation, r.start), length,
	                                 transfer != TRANSFER_READ);
	if (transfer == TRANSFER_READ)
		mmu_read_bytes(vcpu, linear, operand + r.start, length);
	else if (transfer == TRANSFER_PROBE)
		mmu_probe_write(vcpu, linear, length);
	else
		mmu_write_bytes(vcpu, linear, operand + r.start, length);
}

/* Between memory and a copy of the operand, the active elements in order; each may fault. */
static void transfer_elements(struct vcpu *vcpu, const struct native_operation *operation, enum transfer transfer,
                              uint64_t active, uint8_t *operand, struct range whole)
{
	const struct native_elements *e = &native_entry_of(operation)->elements;
	if (e->shape == ELEMENTS_PACKED) {
		unsigned count = whole.end / e->element_size;
		active = count == 64 ? ~0ull : (1ull << count) - 1;
	} else if (e->shape == ELEMENTS_ANY) {
		transfer_bytes(vcpu, operation, transfer, operand, whole);
		return;
	}
	for (; active; active &= active - 1) {
		unsigned start = (unsigned)__builtin_ctzll(active) * e->element_size;
		transfer_bytes(vcpu, operation, transfer, operand, (struct range){start, start + e->element_size});
	}
}

/* For looking at alignment, before anything is checked. */
static uint64_t segment_linear_unchecked(const struct vcpu *vcpu, enum segment_register segment, uint64_t offset)
{
	bool flat = cpu_64bit_code(&vcpu->state) && segment != SEG_FS && segment != SEG_GS;
	return flat ? offset : vcpu->state.segment[segment].base + offset;
}

/* #GP for alignment looks at the operand as a whole, #AC comes when the active elements can be addressed (Zen 4). */
static void check_masked(struct vcpu *vcpu, const struct native_operation *operation, uint64_t linear, struct range r)
{
	const struct native_form *form = &native_entry_of(operation)->form;
	const struct native_elements *e = &native_entry_of(operation)->elements;
	bool based = operation->segment == SEG_FS || operation->segment == SEG_GS;
	unsigned last = r.start + e->element_size - 1;

	if (linear & (form->alignment - 1u))
		x86_raise(vcpu, VECTOR_GP);
	if (!cpu_64bit_code(&vcpu->state) || (cpu_canonical(linear + r.start) && cpu_canonical(linear + last) &&
	                                      (!based || cpu_canonical(operation->offset + r.start))))
		native_check_alignment(vcpu, linear, form->natural_alignment);
}

void native_masked(struct vcpu *vcpu, const struct native_operation *operation)
{
	const struct native_entry *entry = native_entry_of(operation);
	const struct native_elements *e = &entry->elements;
	bool write = entry->form.writes_memory;
	uint64_t active = active_elements(vcpu, e);
	struct range r = active_range(e, active, entry->form.memory_size);
	_Alignas(64) uint8_t buffer[192] = {0};

	if (r.start == r.end) {
		uint64_t linear = segment_linear_unchecked(vcpu, operation->segment, operation->offset);
		entry->inner(vcpu, buffer + 64 + (linear & 63));
		return;
	}
	uint64_t linear = segment_linear_unchecked(vcpu, operation->segment, operation->offset);
	bool contiguous = element_offset(operation, r.end - 1) >= element_offset(operation, r.start);
	check_masked(vcpu, operation, linear, r);
	if (contiguous && ((linear + r.start) & (MEMORY_PAGE_SIZE - 1)) + (r.end - r.start) <= MEMORY_PAGE_SIZE) {
		linear = segment_linear(vcpu, operation->segment, element_offset(operation, r.start), r.end - r.start,
		                        write);
		uint8_t *host = mmu_host_pointer(vcpu, linear, r.end - r.start, write ? MMU_WRITE : MMU_READ);
		if (host) {
			native_run_entry(vcpu, entry, host - r.start);
			if (write)
				mmu_written(vcpu, linear, r.end - r.start);
			return;
		}
	}
	uint8_t *copy = buffer + (linear & 63);
	transfer_elements(vcpu, operation, write ? TRANSFER_PROBE : TRANSFER_READ, active, copy, r);
	native_run_entry(vcpu, entry, copy);
	if (write)
		transfer_elements(vcpu, operation, TRANSFER_WRITE, active, copy, r);
}

static int64_t gather_index(const struct vector_state *v, const struct native_elements *e, unsigned n)
{
	int32_t index32;
	int64_t index64;
	if (e->index_size == 4) {
		memcpy(&index32, &v->zmm[e->index_register][n * 4], 4);
		return index32;
	}
	memcpy(&index64, &v->zmm[e->index_register][n * 8], 8);
	return index64;
}

/*
 * Elements in order; each that is done has its mask cleared, so that a fault can be returned from (SDM 2C VPGATHERDD).
 * They are never checked for alignment.
 */
static void gather_elements(struct vcpu *vcpu, const struct native_operation *operation, volatile bool *progress)
{
	const struct native_elements *e = &native_entry_of(operation)->elements;
	struct vector_state *v = &vcpu->state.vector;
	uint64_t active = active_elements(vcpu, e);
	unsigned size = e->element_size, length = e->mask_count * size;
	unsigned vector_length = e->mask_count * (size > e->index_size ? size : e->index_size);

	for (; active; active &= active - 1) {
		unsigned n = (unsigned)__builtin_ctzll(active);
		uint64_t offset = operation->base + (uint64_t)gather_index(v, e, n) * e->scale, value = 0;
		if (e->vector_mask) /* what was passed over, done or not asked for, is cleared too */
			memset(v->zmm[e->mask_register], 0, n * size);
		uint64_t linear =
		    segment_linear(vcpu, operation->segment, truncate(operation, offset), size, e->scatter);
		if (e->scatter) {
			memcpy(&value, &v->zmm[e->data_register][n * size], size);
			mmu_write(vcpu, linear, size, value);
		} else {
			value = mmu_read(vcpu, linear, size);
			memcpy(&v->zmm[e->data_register][n * size], &value, size);
			if (e->evex)
				memset(&v->zmm[e->data_register][vector_length], 0, 64 - vector_length);
		}
		if (e->vector_mask)
			memset(v->zmm[e->mask_register] + n * size, 0, size);
		else
			v->opmask[e->mask_register] &= ~(1ull << n);
		*progress = true;
	}
	if (!e->scatter)
		memset(&v->zmm[e->data_register][length], 0, 64 - length);
	if (e->vector_mask)
		memset(v->zmm[e->mask_register], 0, 64);
	else
		v->opmask[e->mask_register] = 0;
}

void native_gather(struct vcpu *vcpu, const struct native_operation *operation)
{
	volatile bool progress = false;
	jmp_buf here, *target = vcpu->fault_target;
	if (__builtin_expect(!(vcpu->state.rflags & FLAG_TF), 1)) {
		gather_elements(vcpu, operation, &progress);
		return;
	}
	/* After the first element the single-step trap comes instead of the fault. */
	vcpu->fault_target = &here;
	if (_setjmp(here)) {
		vcpu->fault_target = target;
		if (progress)
			x86_raise_debug(vcpu, DR6_BS);
		longjmp(*target, 1);
	}
	gather_elements(vcpu, operation, &progress);
	vcpu->fault_target = target;
}

/*
 * MASKMOVQ, MASKMOVDQU: bytes at DS:rDI whose mask byte has its sign bit set. All of the operand has to be writable
 * whatever the mask, which the manual leaves to the implementation and AMD's processors do.
 */
void native_maskmov(struct vcpu *vcpu, const struct native_operation *operation)
{
	const struct native_entry *entry = native_entry_of(operation);
	const struct native_elements *e = &entry->elements;
	struct {
		_Alignas(16) uint8_t data[16], mask[16];
	} both;
	uint64_t active = 0;

	if (entry->inner) {
		uint8_t pair[16];
		entry->inner(vcpu, pair);
		memcpy(both.data, pair, 8);
		memcpy(both.mask, pair + 8, 8);
	} else {
		memcpy(both.data, vcpu->state.vector.zmm[e->data_register], 16);
		memcpy(both.mask, vcpu->state.vector.zmm[e->mask_register], 16);
	}
	for (unsigned n = 0; n < e->mask_count; n++)
		active |= (uint64_t)(both.mask[n] >> 7) << n;
	uint64_t offset = truncate(operation, vcpu->state.gpr[RDI]);
	uint64_t linear = segment_linear(vcpu, e->segment, offset, 8, true), second = 0;
	native_check_alignment(vcpu, linear, 8);
	/* Two accesses of 8 bytes: the first one's page comes before the second one's address. */
	mmu_probe_write(vcpu, linear, 8);
	if (e->mask_count > 8) {
		second = segment_linear(vcpu, e->segment, offset + 8, 8, true);
		mmu_probe_write(vcpu, second, 8);
	}
	for (; active; active &= active - 1) {
		unsigned n = (unsigned)__builtin_ctzll(active);
		mmu_write(vcpu, n < 8 ? linear + n : second + n - 8, 1, both.data[n]);
	}
}

static void zero_upper(struct vcpu *vcpu, unsigned registers, unsigned from)
{
	for (unsigned n = 0; n < registers; n++)
		memset(vcpu->state.vector.zmm[n] + from, 0, 64 - from);
}

void native_vzeroupper(struct vcpu *vcpu, void *memory)
{
	zero_upper(vcpu, 16, 16);
}

void native_vzeroall(struct vcpu *vcpu, void *memory)
{
	zero_upper(vcpu, 16, 0);
}

void native_vzeroupper_legacy(struct vcpu *vcpu, void *memory)
{
	zero_upper(vcpu, 8, 16);
}

void native_vzeroall_legacy(struct vcpu *vcpu, void *memory)
{
	zero_upper(vcpu, 8, 0);
}
