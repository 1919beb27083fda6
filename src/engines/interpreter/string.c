/*
 * MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS with their REP prefixes (SDM 2B REP).
 *
 * A repeated instruction runs in chunks. A chunk is as much as lies within one page of plain RAM on each side, done by
 * the host's own repeated instruction on host addresses, which has the right semantics for overlapping operands too; or
 * one element, through mmu.c. After each chunk the registers show the exact progress, so faults and interrupts may come
 * between chunks.
 */
#include "engines/interpreter/decode.h"
#include "x86/segments.h"

enum { REPEAT_NONE, REPEAT_WHILE_EQUAL, REPEAT_WHILE_NOT_EQUAL };

struct string_operation {
	struct vcpu *vcpu;
	unsigned size;      /* of an element in bytes */
	uint64_t mask;      /* address size */
	uint64_t step;      /* + or - size */
	uint64_t remaining; /* elements */
	bool repeated;
	bool one_by_one; /* single-stepping: a chunk is one element */
	enum segment_register source;
};

static uint64_t mask_of(unsigned address_size)
{
	return address_size == 8 ? ~0ull : address_size == 4 ? 0xffffffffull : 0xffffull;
}

static struct string_operation begin(struct vcpu *vcpu, const struct insn *insn)
{
	struct string_operation s = {
	    .vcpu = vcpu,
	    .size = insn->a,
	    .mask = mask_of(insn->base),
	    .step = vcpu->state.rflags & FLAG_DF ? -(uint64_t)insn->a : insn->a,
	    .repeated = insn->b != REPEAT_NONE,
	    .source = (enum segment_register)insn->index,
	};
	s.one_by_one = interpreter_of(vcpu)->mode & MODE_STEP;
	s.remaining = s.repeated ? vcpu->state.gpr[RCX] & s.mask : 1;
	return s;
}

static void set_part(struct vcpu *vcpu, unsigned gpr, uint64_t mask, uint64_t value)
{
	if (mask == 0xffff)
		write16(vcpu, GPR_OFFSET(gpr), (uint16_t)value);
	else
		vcpu->state.gpr[gpr] = value & mask;
}

/* `done` elements are complete. */
static void advance(struct string_operation *s, uint64_t done, bool source, bool destination)
{
	struct vcpu *vcpu = s->vcpu;

	if (source)
		set_part(vcpu, RSI, s->mask, vcpu->state.gpr[RSI] + done * s->step);
	if (destination)
		set_part(vcpu, RDI, s->mask, vcpu->state.gpr[RDI] + done * s->step);
	s->remaining -= done;
	if (s->repeated)
		set_part(vcpu, RCX, s->mask, s->remaining);
}

static uint64_t element(struct string_operation *s, enum segment_register segment, unsigned gpr, bool write)
{
	uint64_t linear = segment_linear(s->vcpu, segment, s->vcpu->state.gpr[gpr] & s->mask, s->size, write);

	check_alignment(s->vcpu, linear, s->size);
	return linear;
}

/* How many elements from segment:register on, upwards, lie within the page of `linear`, the address size and the
 * segment's limit. */
static uint64_t span(const struct string_operation *s, enum segment_register segment, unsigned gpr, uint64_t linear)
{
	uint64_t offset = s->vcpu->state.gpr[gpr] & s->mask;
	uint64_t bytes = MEMORY_PAGE_SIZE - (linear & (MEMORY_PAGE_SIZE - 1));

	if (s->mask - offset < bytes - 1)
		bytes = s->mask - offset + 1;
	if (!cpu_64bit_code(&s->vcpu->state)) {
		const struct segment *seg = &s->vcpu->state.segment[segment];
		if (!(seg->access & SEG_CODE) && (seg->access & SEG_EXPANDDOWN))
			return 1;
		if (offset > seg->limit)
			return 0;
		if (seg->limit - offset < bytes - 1)
			bytes = seg->limit - offset + 1;
	}
	return bytes / s->size;
}

/* A chunk of at most `limit` elements; 0: only one at a time. */
static uint64_t chunk(const struct string_operation *s, uint64_t limit)
{
	if (!s->repeated || s->one_by_one || (s->step >> 63))
		return 0;
	return limit < s->remaining ? limit : s->remaining;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

#define HOST_REPEAT(text, ...)                                                                                         \
	switch (size) {                                                                                                \
	case 1:                                                                                                        \
		__asm__ volatile(text "b" __VA_ARGS__);                                                                \
		break;                                                                                                 \
	case 2:                                                                                                        \
		__asm__ volatile(text "w" __VA_ARGS__);                                                                \
		break;                                                                                                 \
	case 4:                                                                                                        \
		__asm__ volatile(text "l" __VA_ARGS__);                                                                \
		break;                                                                                                 \
	default:                                                                                                       \
		__asm__ volatile(text "q" __VA_ARGS__);                                                                \
	}

static void host_movs(void *to, const void *from, uint64_t count, unsigned size)
{
	HOST_REPEAT("rep movs", : "+D"(to), "+S"(from), "+c"(count) : : "memory")
}

static void host_stos(void *to, uint64_t value, uint64_t count, unsigned size)
{
	HOST_REPEAT("rep stos", : "+D"(to), "+c"(count) : "a"(value) : "memory")
}

/* Leaves between two iterations, to come back to the same instruction. */
static void leave_at(PARAMETERS)
{
	flags_store(vcpu, flags);
	vcpu->state.rip = (vcpu->state.rip + insn->offset) & interpreter_of(vcpu)->rip_mask;
	vcpu->executing = NULL;
	vcpu->counters.instructions += insn->number;
}

static bool must_pause(const struct string_operation *s)
{
	return s->remaining &&
	       (s->one_by_one || s->vcpu->mmu.stop || atomic_load_explicit(&s->vcpu->attention, memory_order_relaxed));
}

#define AGAIN_OR_NEXT                                                                                                  \
	do {                                                                                                           \
		if (must_pause(&s))                                                                                    \
			return leave_at(ARGUMENTS);                                                                    \
	} while (0)

static void movs(PARAMETERS)
{
	struct string_operation s = begin(vcpu, insn);

	SLOW_ENTER;
	while (s.remaining) {
		uint64_t from = element(&s, s.source, RSI, false), to = element(&s, SEG_ES, RDI, true);
		uint64_t count = chunk(&s, smaller(span(&s, s.source, RSI, from), span(&s, SEG_ES, RDI, to)));
		void *host_from = count ? mmu_host_pointer(vcpu, from, count * s.size, MMU_READ) : NULL;
		void *host_to = host_from ? mmu_host_pointer(vcpu, to, count * s.size, MMU_WRITE) : NULL;

		if (host_to) {
			host_movs(host_to, host_from, count, s.size);
			mmu_written(vcpu, to, count * s.size);
		} else {
			count = 1;
			mmu_write(vcpu, to, s.size, mmu_read(vcpu, from, s.size));
		}
		advance(&s, count, true, true);
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

static void stos(PARAMETERS)
{
	struct string_operation s = begin(vcpu, insn);

	SLOW_ENTER;
	while (s.remaining) {
		uint64_t to = element(&s, SEG_ES, RDI, true);
		uint64_t count = chunk(&s, span(&s, SEG_ES, RDI, to));
		void *host_to = count ? mmu_host_pointer(vcpu, to, count * s.size, MMU_WRITE) : NULL;

		if (host_to) {
			host_stos(host_to, vcpu->state.gpr[RAX], count, s.size);
			mmu_written(vcpu, to, count * s.size);
		} else {
			count = 1;
			mmu_write(vcpu, to, s.size, vcpu->state.gpr[RAX]);
		}
		advance(&s, count, false, true);
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

static void set_accumulator(struct vcpu *vcpu, unsigned size, uint64_t value)
{
	switch (size) {
	case 1:
		write8(vcpu, GPR_OFFSET(RAX), (uint8_t)value);
		break;
	case 2:
		write16(vcpu, GPR_OFFSET(RAX), (uint16_t)value);
		break;
	default:
		vcpu->state.gpr[RAX] = value;
	}
}

static void lods(PARAMETERS)
{
	struct string_operation s = begin(vcpu, insn);

	SLOW_ENTER;
	while (s.remaining) {
		set_accumulator(vcpu, s.size, mmu_read(vcpu, element(&s, s.source, RSI, false), s.size));
		advance(&s, 1, true, false);
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

/* The flags of a - b at the element's size. */
static uint32_t compare(uint64_t a, uint64_t b, unsigned size)
{
	uint32_t result;

	/* In the top bits the flags but AF and PF come out alike, so each size has its own instruction. */
	switch (size) {
	case 1:
		__asm__("cmpb %b2, %b1\n\tlahf\n\tseto %%al" : "=a"(result) : "r"(a), "r"(b) : "cc");
		break;
	case 2:
		__asm__("cmpw %w2, %w1\n\tlahf\n\tseto %%al" : "=a"(result) : "r"(a), "r"(b) : "cc");
		break;
	case 4:
		__asm__("cmpl %k2, %k1\n\tlahf\n\tseto %%al" : "=a"(result) : "r"(a), "r"(b) : "cc");
		break;
	default:
		__asm__("cmpq %2, %1\n\tlahf\n\tseto %%al" : "=a"(result) : "r"(a), "r"(b) : "cc");
	}
	return result;
}

static uint64_t host_load(const uint8_t *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile guest_8 *)p;
	case 2:
		return *(const volatile guest_16 *)p;
	case 4:
		return *(const volatile guest_32 *)p;
	default:
		return *(const volatile guest_64 *)p;
	}
}

static uint64_t truncated(uint64_t value, unsigned size)
{
	return size == 8 ? value : value & ((1ull << size * 8) - 1);
}

/*
 * CMPS and SCAS: compares element by element, on host addresses where possible, until the repetition's condition fails.
 * On a fault the flags are those from before the instruction (SDM 2B REP), which SLOW_ENTER has stored.
 */
static void compare_strings(PARAMETERS, bool scan)
{
	struct string_operation s = begin(vcpu, insn);
	uint64_t accumulator = truncated(vcpu->state.gpr[RAX], insn->a);
	bool want_equal = insn->b == REPEAT_WHILE_EQUAL;

	SLOW_ENTER;
	while (s.remaining) {
		uint64_t a_linear = scan ? 0 : element(&s, s.source, RSI, false),
		         b_linear = element(&s, SEG_ES, RDI, false);
		uint64_t count = span(&s, SEG_ES, RDI, b_linear);
		if (!scan)
			count = smaller(count, span(&s, s.source, RSI, a_linear));
		count = chunk(&s, count);
		const uint8_t *a = count && !scan ? mmu_host_pointer(vcpu, a_linear, count * s.size, MMU_READ) : NULL;
		const uint8_t *b =
		    count && (a || scan) ? mmu_host_pointer(vcpu, b_linear, count * s.size, MMU_READ) : NULL;
		uint64_t done = 0, x = accumulator, y;
		bool equal;

		if (b && (a || scan)) {
			do {
				if (!scan)
					x = host_load(a + done * s.size, s.size);
				y = host_load(b + done * s.size, s.size);
				equal = x == y;
				done++;
			} while (done < count && equal == want_equal);
		} else {
			if (!scan)
				x = mmu_read(vcpu, a_linear, s.size);
			y = mmu_read(vcpu, b_linear, s.size);
			equal = x == y;
			done = 1;
		}
		flags = compare(x, y, s.size);
		advance(&s, done, !scan, true);
		if (s.repeated && equal != want_equal)
			break;
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

static void cmps(PARAMETERS)
{
	return compare_strings(ARGUMENTS, false);
}

static void scas(PARAMETERS)
{
	return compare_strings(ARGUMENTS, true);
}

static void ins(PARAMETERS)
{
	struct string_operation s = begin(vcpu, insn);
	uint16_t port = (uint16_t)vcpu->state.gpr[RDX];

	SLOW_ENTER;
	x86_check_io(vcpu, port, s.size);
	while (s.remaining) {
		uint64_t to = element(&s, SEG_ES, RDI, true);

		mmu_probe_write(vcpu, to, s.size); /* a port must not be read in vain */
		mmu_write(vcpu, to, s.size, vcpu_port_read(vcpu, port, s.size));
		advance(&s, 1, false, true);
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

static void outs(PARAMETERS)
{
	struct string_operation s = begin(vcpu, insn);
	uint16_t port = (uint16_t)vcpu->state.gpr[RDX];

	SLOW_ENTER;
	x86_check_io(vcpu, port, s.size);
	while (s.remaining) {
		uint64_t value = mmu_read(vcpu, element(&s, s.source, RSI, false), s.size);

		vcpu_port_write(vcpu, port, s.size, (uint32_t)value);
		advance(&s, 1, true, false);
		AGAIN_OR_NEXT;
	}
	NEXT_SLOW;
}

static bool string(struct decoder *d, handler *run, unsigned size)
{
	struct insn *insn = emit(d, run);

	insn->a = (uint8_t)size;
	insn->base = (uint16_t)(d->instruction.address_width / 8);
	insn->index = SEG_DS;
	for (unsigned i = 0; i < d->instruction.operand_count; i++)
		if (is_memory(&d->operand[i]) && d->operand[i].mem.base != ZYDIS_REGISTER_DI &&
		    d->operand[i].mem.base != ZYDIS_REGISTER_EDI && d->operand[i].mem.base != ZYDIS_REGISTER_RDI)
			insn->index = (uint16_t)operand_segment(&d->operand[i]);
	if (has_prefix(d, ZYDIS_ATTRIB_HAS_REPNE | ZYDIS_ATTRIB_HAS_REPNZ))
		insn->b = REPEAT_WHILE_NOT_EQUAL;
	else if (has_prefix(d, ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPZ))
		insn->b = REPEAT_WHILE_EQUAL;
	else
		insn->b = REPEAT_NONE;
	return true;
}

bool string_decode(struct decoder *d)
{
	/* MOVSD and CMPSD are also SSE instructions. */
	bool mine = d->instruction.meta.category == ZYDIS_CATEGORY_STRINGOP ||
	            d->instruction.meta.category == ZYDIS_CATEGORY_IOSTRINGOP;

	if (!mine)
		return false;
	switch (d->instruction.mnemonic) {
#define CASES(name, run)                                                                                               \
	case ZYDIS_MNEMONIC_##name##B:                                                                                 \
		return string(d, run, 1);                                                                              \
	case ZYDIS_MNEMONIC_##name##W:                                                                                 \
		return string(d, run, 2);                                                                              \
	case ZYDIS_MNEMONIC_##name##D:                                                                                 \
		return string(d, run, 4);
#define CASES_64(name, run)                                                                                            \
	CASES(name, run)                                                                                               \
	case ZYDIS_MNEMONIC_##name##Q:                                                                                 \
		return string(d, run, 8);
		CASES_64(MOVS, movs)
		CASES_64(STOS, stos)
		CASES_64(LODS, lods)
		CASES_64(CMPS, cmps)
		CASES_64(SCAS, scas)
		CASES(INS, ins)
		CASES(OUTS, outs)
#undef CASES
#undef CASES_64
	default:
		return false;
	}
}
