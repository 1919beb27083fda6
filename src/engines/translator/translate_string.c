/*
 * String instructions (SDM 2B REP). REP MOVS and STOS call a routine (string_routines.c). REP CMPS and SCAS whose
 * operands lie upwards within one page that the TLB knows become the host's own instruction on host addresses; without
 * REP they are one or two accesses. All else is done by translator_string() (string_copy.c), called out of line.
 *
 *	mov [gpr.rsi], rsi; ...; xor rsi, [tag]; lea r9, [rsi + rcx*size]; cmp r9, 4096; ja helper; add rsi, [host]
 *	the same for rdi; r9 = guest - host rsi; r10 = guest - host rdi
 *	rep cmps; lea rsi, [rsi + r9]; lea rdi, [rdi + r10]
 *
 * No fault comes while RSI and RDI are host addresses: the TLB knows only RAM. In 32-bit code the last LEA is a 32-bit
 * one; upper halves that are not zero (64-bit code left them) are no page's, and so the helper's.
 */
#include "engines/translator/translation.h"
#include "memory/memory.h"

static enum xstring operation_of(ZydisMnemonic m)
{
	switch (m) {
#define CASES(name)                                                                                                    \
	case ZYDIS_MNEMONIC_##name##B:                                                                                 \
	case ZYDIS_MNEMONIC_##name##W:                                                                                 \
	case ZYDIS_MNEMONIC_##name##D:                                                                                 \
	case ZYDIS_MNEMONIC_##name##Q:                                                                                 \
		return XSTRING_##name;
		CASES(MOVS)
		CASES(STOS)
		CASES(LODS)
		CASES(SCAS)
		CASES(CMPS)
#undef CASES
	default:
		return XSTRING_NONE;
	}
}

bool string_possible(const struct item *item)
{
	return item->i.meta.category == ZYDIS_CATEGORY_STRINGOP && operation_of(item->i.mnemonic) != XSTRING_NONE &&
	       item->i.address_width >= 32;
}

/* A move between a register and [S1] of `size` bytes: opcode 88h/8Ah/3Ah or the next. */
static void emit_sized(struct emitter *e, unsigned opcode, unsigned reg, unsigned size)
{
	if (size == 2)
		emit_byte(e, 0x66);
	emit_byte(e, 0x41 | (size == 8 ? 8 : 0) | (reg & 8) >> 1);
	emit_byte(e, opcode | (size > 1));
	emit_byte(e, (reg & 7) << 3 | (S1 & 7));
}

/* The host's own instruction. */
static void emit_host(struct emitter *e, enum xstring operation, unsigned repeat, unsigned size)
{
	emit_byte(e, repeat);
	if (size == 2)
		emit_byte(e, 0x66);
	if (size == 8)
		emit_byte(e, 0x48);
	emit_byte(e, (operation == XSTRING_SCAS ? 0xae : 0xa6) | (size > 1));
}

/* test byte [rflags + 1], DF; jnz */
static uint8_t *emit_if_down(struct translation *tr)
{
	emit_op_abs(&tr->e, false, 0xf6, 0, xabs(&tr->t->vcpu->state.rflags) + 1);
	emit_byte(&tr->e, FLAG_DF >> 8);
	return emit_jump_if(&tr->e, CC_NE);
}

static struct xsite *new_string_site(struct translation *tr, const struct item *item, enum xstring operation)
{
	struct xsite *site = new_site(tr, item, item->slot->a, operation == XSTRING_MOVS || operation == XSTRING_STOS);

	site->string = (uint8_t)operation;
	return site;
}

/* RSI or RDI becomes a host address, with as much as RCX says behind it in its page; the guest's goes into the vCPU
 * block. Returns the jump where that is not so: RSI or RDI is spoilt there. */
static uint8_t *emit_host_address(struct translation *tr, unsigned reg, unsigned size)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	static const uint8_t shift[] = {0, 0, 1, 0, 2, 0, 0, 0, 3};

	emit_store(e, reg, gpr_abs(tr, reg));
	emit_tlb_offset(e, S2, reg);
	emit_op_indexed(e, true, 0x33, reg, S2, xabs(&t->tlb[tr->view][0].tag[0])); /* xor */
	emit_lea_full(e, true, false, S1, reg, RCX, shift[size], 0);
	emit_group1(e, true, 7, S1, MEMORY_PAGE_SIZE);
	uint8_t *miss = emit_jump_if(e, CC_A);
	emit_op_indexed(e, true, 0x33, reg, S2, xabs(&t->tlb[tr->view][0].tag[0]));
	emit_op_indexed(e, true, 0x03, reg, S2, xabs(&t->tlb[tr->view][0].delta[0])); /* add */
	return miss;
}

/* By a routine, or translator_string(). */
static void translate_called(struct translation *tr, const struct item *item, enum xstring operation,
                             const uint8_t *routine)
{
	tr->in_register = false;
	emit_store_address(&tr->e, xabs(&tr->t->exit_argument), xabs(new_string_site(tr, item, operation)));
	emit_call_to(&tr->e, routine ? routine : tr->t->string);
	if (operation == XSTRING_SCAS || operation == XSTRING_CMPS)
		tr->in_memory = true;
}

static void translate_compare(struct translation *tr, const struct item *item, enum xstring operation)
{
	struct emitter *e = &tr->e;
	unsigned size = item->slot->a;
	bool source = operation == XSTRING_CMPS;
	uint8_t *down = emit_if_down(tr), *count, *miss_source = NULL, *miss_destination;

	/* A count of 0 compares nothing and keeps the flags. */
	emit_lea(e, S1, RCX, -1);
	emit_group1(e, true, 7, S1, (int32_t)(MEMORY_PAGE_SIZE / size) - 1);
	count = emit_jump_if(e, CC_A);
	if (source)
		miss_source = emit_host_address(tr, RSI, size);
	miss_destination = emit_host_address(tr, RDI, size);
	if (source) {
		emit_load(e, S1, gpr_abs(tr, RSI));
		emit_op_reg(e, true, 0x29, RSI, S1); /* sub */
	}
	emit_load(e, S2, gpr_abs(tr, RDI));
	emit_op_reg(e, true, 0x29, RDI, S2);
	emit_host(e, operation, item->slot->b == 2 ? 0xf2 : 0xf3, size);
	if (source)
		emit_lea_full(e, !tr->code32, false, RSI, RSI, S1, 0, 0);
	emit_lea_full(e, !tr->code32, false, RDI, RDI, S2, 0, 0);

	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_STRING, down);
	p->more[0] = count;
	p->more[1] = miss_source;
	p->more[2] = miss_destination;
	p->resume = e->at;
	p->restore = item->live_after;
	p->site = new_string_site(tr, item, operation);
	tr->in_register = true;
	tr->in_memory = false;
}

static void translate_single(struct translation *tr, const struct item *item, enum xstring operation)
{
	struct emitter *e = &tr->e;
	unsigned size = item->slot->a, from = S2;
	uint32_t value = xabs(&tr->t->string_value);
	bool source = operation != XSTRING_STOS && operation != XSTRING_SCAS;
	bool destination = operation != XSTRING_LODS;
	bool compare = operation == XSTRING_SCAS || operation == XSTRING_CMPS;
	uint8_t *down = emit_if_down(tr);
	struct pending *p = pend(tr, PENDING_STRING, down);

	p->site = new_string_site(tr, item, operation);
	p->restore = compare && item->live_after;
	tr->in_register = false;
	if (source) {
		address_in(tr, RSI, 0);
		lower_check(tr, item, size, false);
		emit_sized(e, 0x8a, operation == XSTRING_LODS ? RAX : S2, size);
		if (destination)
			emit_store(e, S2, value);
	} else {
		from = RAX;
	}
	if (destination) {
		address_in(tr, RDI, 0);
		lower_check(tr, item, size, !compare);
		if (source)
			emit_load(e, S2, value);
		emit_sized(e, compare ? 0x3a : 0x88, from, size);
	}
	if (source)
		emit_lea_full(e, !tr->code32, false, RSI, RSI, NO_REGISTER, 0, (int32_t)size);
	if (destination)
		emit_lea_full(e, !tr->code32, false, RDI, RDI, NO_REGISTER, 0, (int32_t)size);
	p->resume = e->at;
	if (compare) {
		tr->in_register = true;
		tr->in_memory = false;
	}
}

void translate_string(struct translation *tr, const struct item *item)
{
	enum xstring operation = operation_of(item->i.mnemonic);
	const struct insn *slot = item->slot;
	const uint8_t *routine = NULL;

	flags_keep(tr, item->live_before);
	if (item->i.address_width == tr->stack_size * 8 && slot->index != SEG_FS && slot->index != SEG_GS) {
		if (!slot->b)
			return translate_single(tr, item, operation);
		if (operation == XSTRING_SCAS || operation == XSTRING_CMPS)
			return translate_compare(tr, item, operation);
		if (operation != XSTRING_LODS)
			routine = string_routine(tr->t, operation, tr->view, slot->a, tr->code32);
	}
	translate_called(tr, item, operation, routine);
}

void emit_pending_string(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	/* In the order in which the registers were spoilt; `place`, fixed by the caller, comes last. */
	if (p->more[2]) {
		emit_fix(e, p->more[2]);
		emit_load(e, RDI, gpr_abs(tr, RDI));
	}
	if (p->more[1])
		emit_fix(e, p->more[1]);
	if (p->site->string == XSTRING_CMPS)
		if (p->more[2])
			emit_load(e, RSI, gpr_abs(tr, RSI));
	if (p->more[0])
		emit_fix(e, p->more[0]);
	emit_fix(e, p->place);
	emit_store_address(e, xabs(&tr->t->exit_argument), xabs(p->site));
	emit_call_to(e, tr->t->string);
	if (p->restore)
		emit_flags_restore(e, tr->t);
	emit_jump_to(e, p->resume);
}
