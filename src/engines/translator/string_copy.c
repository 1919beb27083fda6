/*
 * String instructions on host addresses, called from translated code: page by page, or as far as pages lie one behind
 * the other in host memory, with the host's own string instructions, which have the right semantics for overlapping
 * operands too. RCX, RSI and RDI of the vCPU block are exact after each chunk.
 *
 * Built without vector instructions: the guest's vector registers are in the host's.
 */
#include "engines/translator/runtime.h"
#include "memory/memory.h"

#define COPY_MAX    (64u << 10) /* bytes of one chunk: interrupts are looked for between chunks */
#define COMPARE_MAX (4u << 10)

/* Guest memory has any alignment and is touched once per access. */
typedef uint16_t __attribute__((may_alias, aligned(1))) unaligned_16;
typedef uint32_t __attribute__((may_alias, aligned(1))) unaligned_32;
typedef uint64_t __attribute__((may_alias, aligned(1))) unaligned_64;

struct string {
	struct translator *t;
	const struct xsite *site;
	uint64_t *gpr;
	uint64_t mask;        /* address size */
	uint64_t step;        /* + or - size */
	uint64_t remaining;   /* elements */
	unsigned size, shift; /* and its logarithm */
	unsigned view;
	bool down, repeated;
};

enum side { SOURCE, DESTINATION };

static bool canonical(uint64_t linear)
{
	return (uint64_t)((int64_t)(linear << 16) >> 16) == linear;
}

/* The next element's linear address; false: the interpreter knows what becomes of it. */
static bool linear_of(const struct string *s, enum side side, uint64_t *linear)
{
	const struct cpu_state *state = &s->t->vcpu->state;
	unsigned segment = side == SOURCE ? s->site->slot->index : SEG_ES;
	uint64_t offset = s->gpr[side == SOURCE ? RSI : RDI] & s->mask;

	*linear = offset;
	if (segment == SEG_FS || segment == SEG_GS) {
		if (s->mask == UINT32_MAX)
			return false; /* in 32-bit code they have limits */
		*linear += state->segment[segment].base;
	}
	if (s->mask - offset < s->size - 1)
		return false;
	return canonical(offset) && canonical(*linear) && canonical(*linear + s->size - 1);
}

/*
 * The host address of `linear`, if the TLB knows its page; *length, at most what it was: how far it goes on in one
 * piece.
 */
static uint8_t *run_of(const struct string *s, uint64_t linear, bool write, uint64_t *length)
{
	const struct xtlb_entry *tlb = s->t->tlb[s->view];
	const struct xtlb_entry *entry = &tlb[linear >> MEMORY_PAGE_SHIFT & (XTLB_ENTRIES - 1)];
	uint64_t offset = linear & (MEMORY_PAGE_SIZE - 1), have = MEMORY_PAGE_SIZE - offset;

	if (unlikely(entry->tag[write] != linear - offset)) {
		s->t->string_missing = linear;
		s->t->string_missing_write = write;
		return NULL;
	}
	uint8_t *host = (uint8_t *)(uintptr_t)(linear + entry->delta[write]);
	while (have < *length) {
		entry = &tlb[(linear + have) >> MEMORY_PAGE_SHIFT & (XTLB_ENTRIES - 1)];
		if (entry->tag[write] != linear + have || linear + have + entry->delta[write] != (uintptr_t)host + have)
			break;
		have += MEMORY_PAGE_SIZE;
	}
	if (have < *length)
		*length = have;
	return host;
}

/*
 * A chunk on one side: `*count` elements at most, less where the run ends; for downward ones the address is the first
 * (highest) element's. *count 0: the element lies in two runs. NULL: a page is missing.
 */
static uint8_t *chunk_of(const struct string *s, uint64_t linear, bool write, uint64_t *count)
{
	uint64_t offset = linear & (MEMORY_PAGE_SIZE - 1), length;
	uint64_t to_wrap = s->mask - (linear & s->mask); /* only 32-bit addresses get there */

	if (s->down) {
		length = s->size;
		uint8_t *host = run_of(s, linear, write, &length);
		uint64_t most = length < s->size ? 0 : (offset >> s->shift) + 1;

		if (*count > most)
			*count = most;
		return host;
	}
	if (s->mask == UINT32_MAX && to_wrap < (*count << s->shift) - 1)
		*count = (to_wrap + 1) >> s->shift;
	length = *count ? *count << s->shift : 1;
	uint8_t *host = run_of(s, linear, write, &length);
	if (*count > length >> s->shift)
		*count = length >> s->shift;
	return host;
}

static uint64_t load(const uint8_t *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)p;
	case 2:
		return *(const volatile unaligned_16 *)p;
	case 4:
		return *(const volatile unaligned_32 *)p;
	default:
		return *(const volatile unaligned_64 *)p;
	}
}

/*
 * One element that lies in two pages, or wherever: the host addresses of its bytes. False: a page is missing.
 */
struct element {
	uint8_t *host[2];
	unsigned first; /* bytes at host[0] */
};

static bool element_of(const struct string *s, uint64_t linear, bool write, struct element *e)
{
	uint64_t left = MEMORY_PAGE_SIZE - (linear & (MEMORY_PAGE_SIZE - 1)), length = 1;

	e->first = left < s->size ? (unsigned)left : s->size;
	e->host[0] = run_of(s, linear, write, &length);
	if (!e->host[0])
		return false;
	e->host[1] = e->first < s->size ? run_of(s, linear + e->first, write, &length) : e->host[0];
	return e->host[1];
}

static uint64_t element_load(const struct element *e, unsigned size)
{
	uint64_t value = 0;

	if (e->first == size)
		return load(e->host[0], size);
	for (unsigned n = 0; n < size; n++)
		value |= (uint64_t) * (volatile uint8_t *)(n < e->first ? e->host[0] + n : e->host[1] + (n - e->first))
		         << 8 * n;
	return value;
}

static void element_store(const struct element *e, unsigned size, uint64_t value)
{
	if (e->first == size) {
		switch (size) {
		case 1:
			*(volatile uint8_t *)e->host[0] = (uint8_t)value;
			return;
		case 2:
			*(volatile unaligned_16 *)e->host[0] = (uint16_t)value;
			return;
		case 4:
			*(volatile unaligned_32 *)e->host[0] = (uint32_t)value;
			return;
		default:
			*(volatile unaligned_64 *)e->host[0] = value;
			return;
		}
	}
	for (unsigned n = 0; n < size; n++)
		*(volatile uint8_t *)(n < e->first ? e->host[0] + n : e->host[1] + (n - e->first)) =
		    (uint8_t)(value >> 8 * n);
}

static void advance(struct string *s, uint64_t done, bool source, bool destination)
{
	if (source)
		s->gpr[RSI] = (s->gpr[RSI] + done * s->step) & s->mask;
	if (destination)
		s->gpr[RDI] = (s->gpr[RDI] + done * s->step) & s->mask;
	s->remaining -= done;
	if (s->repeated)
		s->gpr[RCX] = s->remaining & s->mask;
}

static void set_accumulator(struct string *s, uint64_t value)
{
	switch (s->size) {
	case 1:
		s->gpr[RAX] = (s->gpr[RAX] & ~0xffull) | value;
		break;
	case 2:
		s->gpr[RAX] = (s->gpr[RAX] & ~0xffffull) | value;
		break;
	default:
		s->gpr[RAX] = value;
	}
}

/* `text` is a repeated string instruction without its size; the direction flag is this guest's meanwhile. */
#define HOST_REPEAT(before, text, after, ...)                                                                          \
	switch (size) {                                                                                                \
	case 1:                                                                                                        \
		__asm__ volatile(before text "b" after __VA_ARGS__);                                                   \
		break;                                                                                                 \
	case 2:                                                                                                        \
		__asm__ volatile(before text "w" after __VA_ARGS__);                                                   \
		break;                                                                                                 \
	case 4:                                                                                                        \
		__asm__ volatile(before text "l" after __VA_ARGS__);                                                   \
		break;                                                                                                 \
	default:                                                                                                       \
		__asm__ volatile(before text "q" after __VA_ARGS__);                                                   \
	}

static void host_movs(uint8_t *to, const uint8_t *from, uint64_t count, unsigned size, bool down)
{
	if (down) {
		HOST_REPEAT("std\n\t", "rep movs", "\n\tcld", : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc")
	} else {
		HOST_REPEAT("", "rep movs", "", : "+D"(to), "+S"(from), "+c"(count) : : "memory")
	}
}

static void host_stos(uint8_t *to, uint64_t value, uint64_t count, unsigned size, bool down)
{
	if (down) {
		HOST_REPEAT("std\n\t", "rep stos", "\n\tcld", : "+D"(to), "+c"(count) : "a"(value) : "memory", "cc")
	} else {
		HOST_REPEAT("", "rep stos", "", : "+D"(to), "+c"(count) : "a"(value) : "memory")
	}
}

/* Comparisons return how many elements are left; *flags are the last one's as LAHF and SETO give them. */
#define HOST_COMPARE(text, ...)                                                                                        \
	if (down) {                                                                                                    \
		HOST_REPEAT("std\n\t", text, "\n\tlahf\n\tseto %%al\n\tcld", __VA_ARGS__)                              \
	} else {                                                                                                       \
		HOST_REPEAT("", text, "\n\tlahf\n\tseto %%al", __VA_ARGS__)                                            \
	}

static uint64_t host_scas(const uint8_t *at, uint64_t value, uint64_t count, unsigned size, bool down, bool equal,
                          uint32_t *flags)
{
	uint64_t result = value;

	if (equal) {
		HOST_COMPARE("repe scas", : "+D"(at), "+c"(count), "+a"(result) : : "memory", "cc")
	} else {
		HOST_COMPARE("repne scas", : "+D"(at), "+c"(count), "+a"(result) : : "memory", "cc")
	}
	*flags = result & 0xffff;
	return count;
}

static uint64_t host_cmps(const uint8_t *from, const uint8_t *at, uint64_t count, unsigned size, bool down, bool equal,
                          uint32_t *flags)
{
	uint64_t result;

	if (equal) {
		HOST_COMPARE("repe cmps", : "+D"(at), "+S"(from), "+c"(count), "=a"(result) : : "memory", "cc")
	} else {
		HOST_COMPARE("repne cmps", : "+D"(at), "+S"(from), "+c"(count), "=a"(result) : : "memory", "cc")
	}
	*flags = result & 0xffff;
	return count;
}

/* One turn: a chunk, or one element. */

static enum xstring_result moves(struct string *s, uint64_t most)
{
	uint64_t from, to, count = most, count_to;
	struct element a, b;

	if (!linear_of(s, SOURCE, &from) || !linear_of(s, DESTINATION, &to))
		return XSTRING_SLOT;
	const uint8_t *host_from = chunk_of(s, from, false, &count);
	if (unlikely(!host_from))
		return XSTRING_MISS;
	count_to = count ? count : 1;
	if (count) {
		uint8_t *host_to = chunk_of(s, to, true, &count_to);

		if (unlikely(!host_to))
			return XSTRING_MISS;
		if (count_to) {
			host_movs(host_to, host_from, count_to, s->size, s->down);
			advance(s, count_to, true, true);
			return XSTRING_DONE;
		}
	}
	if (!element_of(s, from, false, &a) || !element_of(s, to, true, &b))
		return XSTRING_MISS;
	element_store(&b, s->size, element_load(&a, s->size));
	advance(s, 1, true, true);
	return XSTRING_DONE;
}

static enum xstring_result stores(struct string *s, uint64_t most)
{
	uint64_t to, count = most;
	struct element b;

	if (!linear_of(s, DESTINATION, &to))
		return XSTRING_SLOT;
	uint8_t *host = chunk_of(s, to, true, &count);
	if (unlikely(!host))
		return XSTRING_MISS;
	if (count) {
		host_stos(host, s->gpr[RAX], count, s->size, s->down);
	} else {
		if (!element_of(s, to, true, &b))
			return XSTRING_MISS;
		element_store(&b, s->size, s->gpr[RAX]);
		count = 1;
	}
	advance(s, count, false, true);
	return XSTRING_DONE;
}

/* Of a chunk only the last element is seen. */
static enum xstring_result loads(struct string *s, uint64_t most)
{
	uint64_t from, count = most;
	struct element a;

	if (!linear_of(s, SOURCE, &from))
		return XSTRING_SLOT;
	const uint8_t *host = chunk_of(s, from, false, &count);
	if (unlikely(!host))
		return XSTRING_MISS;
	if (count) {
		set_accumulator(s, load(host + (count - 1) * s->step, s->size));
	} else {
		if (!element_of(s, from, false, &a))
			return XSTRING_MISS;
		set_accumulator(s, element_load(&a, s->size));
		count = 1;
	}
	advance(s, count, true, false);
	return XSTRING_DONE;
}

/* *stop: the repetition's condition failed. */
static enum xstring_result compares(struct string *s, uint64_t most, bool scan, uint32_t *flags, bool *stop)
{
	uint64_t from = 0, at, count = most, left = 0, value = s->gpr[RAX];
	const uint8_t *host_from = NULL, *host = NULL;
	struct element a, b;
	bool equal = s->site->slot->b != 2; /* REPNE; else REPE, or no repetition */

	if ((!scan && !linear_of(s, SOURCE, &from)) || !linear_of(s, DESTINATION, &at))
		return XSTRING_SLOT;
	if (!scan) {
		host_from = chunk_of(s, from, false, &count);
		if (unlikely(!host_from))
			return XSTRING_MISS;
	}
	if (count) {
		host = chunk_of(s, at, false, &count);
		if (unlikely(!host))
			return XSTRING_MISS;
	}
	if (count) {
		left = scan ? host_scas(host, value, count, s->size, s->down, equal, flags)
		            : host_cmps(host_from, host, count, s->size, s->down, equal, flags);
		count -= left;
	} else {
		uint64_t values[2];

		if (!scan && !element_of(s, from, false, &a))
			return XSTRING_MISS;
		if (!element_of(s, at, false, &b))
			return XSTRING_MISS;
		values[0] = scan ? value : element_load(&a, s->size);
		values[1] = element_load(&b, s->size);
		host_cmps((const uint8_t *)&values[0], (const uint8_t *)&values[1], 1, s->size, false, equal, flags);
		count = 1;
	}
	/* ZF as LAHF has it. */
	*stop = ((*flags & HOT_ZF) != 0) != equal;
	advance(s, count, !scan, true);
	return XSTRING_DONE;
}

enum xstring_result translator_string(struct translator *t, const struct xsite *site)
{
	const struct insn *slot = site->slot;
	struct vcpu *vcpu = t->vcpu;
	struct string s = {
	    .t = t,
	    .site = site,
	    .gpr = vcpu->state.gpr,
	    .mask = slot->base == 8 ? UINT64_MAX : UINT32_MAX,
	    .size = slot->a,
	    .shift = (unsigned)__builtin_ctz(slot->a),
	    .view = vcpu->mmu.view,
	    .down = vcpu->state.rflags & FLAG_DF,
	    .repeated = slot->b != 0,
	};
	bool compare = site->string == XSTRING_SCAS || site->string == XSTRING_CMPS, stop = false;
	uint64_t limit = (compare ? COMPARE_MAX : COPY_MAX) >> s.shift;
	uint32_t flags = t->flags;
	enum xstring_result result;

	s.step = s.down ? -(uint64_t)s.size : s.size;
	s.remaining = s.repeated ? s.gpr[RCX] & s.mask : 1;
	while (s.remaining && !stop) {
		uint64_t most = s.remaining < limit ? s.remaining : limit;

		switch (site->string) {
		case XSTRING_MOVS:
			result = moves(&s, most);
			break;
		case XSTRING_STOS:
			result = stores(&s, most);
			break;
		case XSTRING_LODS:
			result = loads(&s, most);
			break;
		case XSTRING_SCAS:
		case XSTRING_CMPS:
			result = compares(&s, most, site->string == XSTRING_SCAS, &flags, &stop);
			break;
		default:
			result = XSTRING_SLOT;
		}
		stop &= s.repeated;
		/* The interpreter pauses with the registers as they are now. */
		if (result == XSTRING_DONE && s.remaining && !stop &&
		    atomic_load_explicit(&vcpu->attention, memory_order_relaxed))
			result = XSTRING_SLOT;
		if (result != XSTRING_DONE)
			return result;
	}
	t->flags = flags;
	return XSTRING_DONE;
}
