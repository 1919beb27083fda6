/*
 * Translations that go on behind CALLs, in the callee, and behind its RET.
 *
 * A hot block goes on where its CALL leads, where the callee jumps (the linker's JMP [slot] among them), and behind the RET
 * of a CALL that is in the translation, too, in other pages also (across.c). So what the callee has checked is checked once,
 * flags that it gives new values are seen to be dead, and a short function costs no more than its own instructions:
 *
 *	CALL	pushes the guest's return address
 *	CALL, JMP through a register or memory	compares the target with the one that is known, or the register where
 *				the translation is entered
 *	RET	compares the return address with the CALL's, if something else may have been written since
 *
 * What is not as expected leaves by the way that the instruction has without this. Who leaves from within a callee leaves
 * something for its RET (returns.c), as the CALL would have; of callers further out there is nothing, and their RETs look
 * their targets up.
 *
 * Ways out look for interrupts, also forward ones: a loop may have nothing that leads back but what was joined.
 */
#include <string.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"
#include "x86/paging.h"

#define DEPTH_MAX    4
#define PAGE_MASK    ((uint64_t)MEMORY_PAGE_SIZE - 1)
#define DISTANCE_MAX (1ll << 30) /* of floating code, whose distances are what it knows */

/* ---- analysis ---- */

/* What linear addresses are more than those of the translation. */
static uint64_t page_of(const struct translation *tr)
{
	return tr->floating ? tr->t->vcpu->state.rip & ~PAGE_MASK : 0;
}

bool calls_cover(struct translation *tr, const struct block *block, uint64_t target)
{
	uint64_t page = target & ~PAGE_MASK;
	unsigned n = 0;

	if (tr->view != MMU_USER || tr->t->lockstep || atomic_load(block->generation_now) != block->generation ||
	    (block->physical & PAGE_MASK) != (target & PAGE_MASK))
		return false;
	while (n < tr->across_count && tr->across[n].page != page)
		n++;
	if (n < tr->across_count)
		return tr->across[n].physical == (block->physical & ~PAGE_MASK) &&
		       tr->across[n].block->generation == block->generation;
	if (n == XACROSS || (int64_t)(page - tr->rip) != (int32_t)(page - tr->rip))
		return false;
	tr->across[n].page = page;
	tr->across[n].physical = block->physical & ~PAGE_MASK;
	tr->across[n].block = block;
	tr->across_count++;
	return true;
}

const struct block *calls_page_block(const struct translation *tr, uint64_t target)
{
	if (in_page(tr, target))
		return tr->block;
	for (unsigned n = 0; n < tr->across_count; n++)
		if (tr->across[n].page == (target & ~PAGE_MASK))
			return tr->across[n].block;
	return NULL;
}

struct block *calls_known_block(const struct translation *tr, uint64_t linear)
{
	struct paging_result walk;

	return cpu_canonical(linear) && fill_look(tr->t, linear, &walk) && walk.executable
	           ? block_known(tr->t->vcpu, walk.physical)
	           : NULL;
}

void calls_prune(struct translation *tr)
{
	unsigned kept = 0;

	for (unsigned n = 0; n < tr->across_count; n++) {
		unsigned part = 1;

		while (part < tr->parts && (part_rip(tr, part) & ~PAGE_MASK) != tr->across[n].page)
			part++;
		if (part < tr->parts)
			tr->across[kept++] = tr->across[n];
	}
	tr->across_count = kept;
}

int calls_next_caller(const struct translation *tr, unsigned n)
{
	const struct item *item = &tr->item[n];

	if (!item->on)
		return item->caller;
	switch (item->kind) {
	case KIND_CALL:
	case KIND_CALL_INDIRECT:
		return (int)n;
	case KIND_RET:
		return tr->item[item->caller].caller;
	default:
		return item->caller;
	}
}

/* Values of general registers, where they are known from those that the block is entered with now. */
struct values {
	uint64_t value[16];
	bool known[16];
	int8_t root[16]; /* whose value at the entry it is; or -1 */
	bool flags_known;
	uint32_t flags; /* as in flags.h */
};

/* Eight bytes of the guest's memory, as its tables stand. */
static bool read_now(const struct translation *tr, uint64_t linear, uint64_t *value)
{
	struct paging_result walk;

	if ((linear & PAGE_MASK) > MEMORY_PAGE_SIZE - sizeof(*value) || !cpu_canonical(linear) ||
	    !fill_look(tr->t, linear, &walk) || !walk.readable)
		return false;
	const void *at = memory_pointer(tr->t->vcpu->memory, walk.physical, sizeof(*value));
	if (at)
		memcpy(value, at, sizeof(*value));
	return at != NULL;
}

static bool address_now(const struct translation *tr, const struct values *v, const struct item *item,
                        const ZydisDecodedOperand *o, uint64_t *address)
{
	*address = o->mem.disp.has_displacement ? (uint64_t)o->mem.disp.value : 0;
	if (o->mem.index != ZYDIS_REGISTER_NONE || o->mem.segment == ZYDIS_REGISTER_FS ||
	    o->mem.segment == ZYDIS_REGISTER_GS || item->i.address_width != 64)
		return false;
	if (o->mem.base == ZYDIS_REGISTER_NONE)
		return true;
	if (o->mem.base == ZYDIS_REGISTER_RIP) {
		*address += page_of(tr) + tr->rip + (uint64_t)(int64_t)item->offset + item->i.length;
		return true;
	}
	unsigned base = (unsigned)ZydisRegisterGetId(o->mem.base);
	*address += v->value[base];
	return v->known[base];
}

static bool value_now(const struct translation *tr, const struct values *v, const struct item *item,
                      const ZydisDecodedOperand *o, uint64_t *value)
{
	uint64_t address;
	bool high;

	switch (o->type) {
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		*value = o->imm.value.u;
		return true;
	case ZYDIS_OPERAND_TYPE_REGISTER: {
		int gpr = operand_gpr(o, &high);

		if (gpr < 0 || o->size < 32)
			return false;
		*value = o->size == 32 ? (uint32_t)v->value[gpr] : v->value[gpr];
		return v->known[gpr];
	}
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return o->size == 64 && address_now(tr, v, item, o, &address) && read_now(tr, address, value);
	default:
		return false;
	}
}

/* The commonest arithmetic, of 32 and 64 bits, with its flags but AF. False: none of it, or of values that are not known. */
static bool calculate(const struct translation *tr, struct values *v, const struct item *item, uint64_t *result)
{
	const ZydisDecodedOperand *o = item->operand;
	const unsigned bits = o[0].size;
	const uint64_t mask = bits == 64 ? UINT64_MAX : UINT32_MAX, sign = mask ^ mask >> 1; /* others: below */
	uint64_t a, b, r, overflow = 0;
	bool carry = false;

	if ((bits != 32 && bits != 64) || !value_now(tr, v, item, &o[0], &a) || !value_now(tr, v, item, &o[1], &b))
		return false;
	b &= mask;
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
		r = (a + b) & mask;
		carry = r < a;
		overflow = (a ^ r) & (b ^ r);
		break;
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_CMP:
		r = (a - b) & mask;
		carry = a < b;
		overflow = (a ^ b) & (a ^ r);
		break;
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_TEST:
		r = a & b;
		break;
	case ZYDIS_MNEMONIC_OR:
		r = a | b;
		break;
	case ZYDIS_MNEMONIC_XOR:
		r = a ^ b;
		break;
	default:
		return false;
	}
	v->flags = (carry ? HOT_CF : 0) | (r ? 0 : HOT_ZF) | (r & sign ? HOT_SF : 0) | (overflow & sign ? HOT_OF : 0) |
	           (__builtin_parity((unsigned)r & 0xff) ? 0 : HOT_PF);
	v->flags_known = true;
	*result = r;
	return true;
}

/* What an instruction does to them. */
static void follow(const struct translation *tr, struct values *v, const struct item *item)
{
	const ZydisDecodedOperand *to = &item->operand[0];
	uint64_t value = 0;
	bool high, known = false, calculated = item->kind == KIND_GENERIC && calculate(tr, v, item, &value);
	int root = -1;

	if (!calculated && item->killed)
		v->flags_known = false;
	if (item->kind == KIND_LEA)
		known = address_now(tr, v, item, &item->operand[1], &value);
	else if (item->kind == KIND_GENERIC && item->i.mnemonic == ZYDIS_MNEMONIC_MOV)
		known = value_now(tr, v, item, &item->operand[1], &value);
	else if (calculated)
		known = item->i.mnemonic != ZYDIS_MNEMONIC_CMP && item->i.mnemonic != ZYDIS_MNEMONIC_TEST;
	if (known && !calculated && item->kind == KIND_GENERIC &&
	    item->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER && to->size == 64)
		root = v->root[operand_gpr(&item->operand[1], &high)];
	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int gpr = operand_gpr(&item->operand[n], &high);

		if (gpr >= 0 && (item->operand[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
			v->known[high ? gpr & 3 : gpr] = false;
			v->root[high ? gpr & 3 : gpr] = -1;
		}
	}
	int gpr = operand_gpr(to, &high);
	if (known && gpr >= 0 && to->size >= 32) {
		v->value[gpr] = to->size == 32 ? (uint32_t)value : value;
		v->known[gpr] = true;
		v->root[gpr] = (int8_t)root;
	}
}

/* As they are before an item, if the translation is run with what is in the registers now. */
static bool values_at(const struct translation *tr, const struct item *item, struct values *v)
{
	for (unsigned n = 0; n < 16; n++) {
		v->value[n] = tr->t->vcpu->state.gpr[n];
		v->known[n] = true;
		v->root[n] = n == RSP || (n >= R9 && n <= R11) ? (int8_t)-1 : (int8_t)n;
	}
	v->flags_known = false;
	for (const struct item *at = tr->item; at < item; at++) {
		if (at->kind == KIND_FALLBACK || at->kind == KIND_SYSTEM)
			return false;
		follow(tr, v, at);
		if (at->kind == KIND_PUSH || at->kind == KIND_POP || at->kind >= KIND_JMP)
			v->known[RSP] = false;
	}
	return true;
}

enum guess calls_guess(const struct translation *tr, const struct item *item)
{
	const uint8_t *opcode = item_bytes(tr, item) + item->i.raw.prefix_count;
	struct values v;

	if (!is_through_calls(tr) || !values_at(tr, item, &v) || !v.flags_known)
		return GUESS_NONE;
	return flags_condition(v.flags, (opcode[0] == 0x0f ? opcode[1] : opcode[0]) & 15) ? GUESS_TAKEN
	                                                                                  : GUESS_NOT_TAKEN;
}

/* Where an indirect transfer would lead now. */
static bool target_now(const struct translation *tr, struct item *item, uint64_t *target)
{
	struct values v;
	uint64_t linear;

	if (!values_at(tr, item, &v))
		return false;
	bool high;
	if (item->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
		item->expected = v.root[operand_gpr(&item->operand[0], &high)];
	if (!value_now(tr, &v, item, &item->operand[0], &linear) || !cpu_canonical(linear))
		return false;
	*target = linear - page_of(tr);
	return !tr->floating || ((int64_t)*target < DISTANCE_MAX && (int64_t)*target > -DISTANCE_MAX);
}

/* Is the callee one of those that are under way? */
static bool recursive(const struct translation *tr, const struct block *callee)
{
	unsigned depth = 0;

	for (int n = tr->caller; n >= 0; n = tr->item[n].caller) {
		if (tr->part[tr->item[n].part + 1].block == callee || ++depth == DEPTH_MAX)
			return true;
	}
	return callee == tr->block;
}

static bool has_part(const struct translation *tr, uint64_t rip)
{
	unsigned n = 0;

	while (n < tr->parts && part_rip(tr, n) != rip)
		n++;
	return n < tr->parts;
}

bool calls_find_part(struct translation *tr)
{
	struct vcpu *vcpu = tr->t->vcpu;
	struct item *last = &tr->item[tr->count - 1];
	uint64_t from = tr->rip + (uint64_t)(int64_t)last->offset, target;
	struct block *block = tr->part[last->part].block;
	const struct link *link = &block->link[TAKEN];

	if (!is_through_calls(tr))
		return false;
	switch (last->kind) {
	case KIND_JMP:
		target = branch_target(tr, last);
		/* In the page forward ones are find_part()'s; no round of a loop twice. */
		if ((!((target ^ from) & ~PAGE_MASK) && target > from) || has_part(tr, target))
			return false;
		break;
	case KIND_CALL:
		target = branch_target(tr, last);
		break;
	case KIND_CALL_INDIRECT:
	case KIND_JMP_INDIRECT:
		if (!target_now(tr, last, &target))
			return false;
		link = jump_cache_link(vcpu, page_of(tr) + target);
		break;
	case KIND_RET:
		if (tr->caller < 0)
			return false;
		target = tr->rip + (uint64_t)(int64_t)tr->item[tr->caller].offset + tr->item[tr->caller].i.length;
		link = jump_cache_link(vcpu, page_of(tr) + target);
		break;
	default:
		return false;
	}
	if (target == tr->rip)
		return false;
	struct block *next = hot_block(tr, link, target);
	if (!next || ((last->kind == KIND_CALL || last->kind == KIND_CALL_INDIRECT) && recursive(tr, next)))
		return false;
	tr->part[tr->parts++] = (struct part){.block = next, .base = (int32_t)(target - tr->rip)};
	last->on = true;
	last->target = target;
	tr->calls = true;
	return true;
}

/* Registers that are the stack pointer and a constant: from where a CALL has put its return address. */
struct stacked {
	int64_t offset[16];
	bool known[16];
};

static bool is_clear(int64_t offset, unsigned size)
{
	return offset + (int64_t)size <= 0 || offset >= 8;
}

static bool write_clear(const struct stacked *s, const struct item *item)
{
	const ZydisDecodedOperand *o = memory_operand(item);
	int64_t disp = o && o->mem.disp.has_displacement ? o->mem.disp.value : 0;

	if (!o || o->mem.index != ZYDIS_REGISTER_NONE || item->i.address_width != 64 ||
	    o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS ||
	    ZydisRegisterGetClass(o->mem.base) != ZYDIS_REGCLASS_GPR64)
		return false;
	unsigned base = (unsigned)ZydisRegisterGetId(o->mem.base);
	return s->known[base] && is_clear(s->offset[base] + disp, item->form->memory_size);
}

static void stacked_follow(struct stacked *s, const struct item *item)
{
	const ZydisDecodedOperand *to = &item->operand[0], *from = &item->operand[1];
	bool high, known = false;
	int64_t value = 0;
	int gpr = operand_gpr(to, &high), source = -1;

	if (gpr >= 0 && to->size == 64 && item->kind == KIND_GENERIC) {
		bool number = from->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
		int64_t imm = number ? from->imm.value.s : 0;

		if (item->i.mnemonic == ZYDIS_MNEMONIC_MOV && from->size == 64)
			source = operand_gpr(from, &high);
		else if ((item->i.mnemonic == ZYDIS_MNEMONIC_ADD || item->i.mnemonic == ZYDIS_MNEMONIC_SUB) && number)
			source = gpr;
		value = item->i.mnemonic == ZYDIS_MNEMONIC_ADD   ? imm
		        : item->i.mnemonic == ZYDIS_MNEMONIC_SUB ? -imm
		                                                 : 0;
	} else if (gpr >= 0 && to->size == 64 && item->kind == KIND_LEA && from->mem.index == ZYDIS_REGISTER_NONE &&
	           item->i.address_width == 64 && ZydisRegisterGetClass(from->mem.base) == ZYDIS_REGCLASS_GPR64) {
		source = ZydisRegisterGetId(from->mem.base);
		value = from->mem.disp.has_displacement ? from->mem.disp.value : 0;
	}
	if (source >= 0 && s->known[source]) {
		known = true;
		value += s->offset[source];
	}
	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int written = operand_gpr(&item->operand[n], &high);

		if (written >= 0 && (item->operand[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			s->known[high ? written & 3 : written] = false;
	}
	if (known && value < DISTANCE_MAX && value > -DISTANCE_MAX) {
		s->known[gpr] = true;
		s->offset[gpr] = value;
	}
}

/*
 * Is the address that a CALL pushed what its RET finds? It is if nothing else was written in between than the stack at
 * known places: what others write meanwhile may come later.
 */
static bool return_is_sure(const struct translation *tr, unsigned call, unsigned ret)
{
	struct stacked s = {.known[RSP] = true};
	bool high;

	for (unsigned n = call + 1; n < ret; n++) {
		const struct item *item = &tr->item[n];
		int64_t *stack = &s.offset[RSP];

		switch (item->kind) {
		case KIND_NOP:
		case KIND_PREFETCH:
		case KIND_JMP:
		case KIND_JCC:
		case KIND_JMP_INDIRECT:
			break;
		case KIND_GENERIC:
			if (item->form->memory_size && item->form->writes_memory && !write_clear(&s, item))
				return false;
			/* fall through */
		case KIND_LEA:
		case KIND_SEGMENT_READ:
			stacked_follow(&s, item);
			break;
		case KIND_PUSH:
		case KIND_CALL:
		case KIND_CALL_INDIRECT:
			if (!s.known[RSP])
				return false;
			*stack -= 8;
			if (!is_clear(*stack, 8))
				return false;
			break;
		case KIND_POP:
			if (item->operand[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
			    operand_gpr(&item->operand[0], &high) == RSP)
				return false;
			s.known[operand_gpr(&item->operand[0], &high)] = false;
			*stack += 8;
			break;
		case KIND_LEAVE:
			if (!s.known[RBP])
				return false;
			*stack = s.offset[RBP] + 8;
			s.known[RSP] = true;
			s.known[RBP] = false;
			break;
		case KIND_RET:
			*stack += 8 + (item->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
			                   ? (int64_t)item->operand[0].imm.value.u
			                   : 0);
			break;
		default:
			return false;
		}
	}
	return s.known[RSP] && s.offset[RSP] == 0;
}

static bool is_written(const struct translation *tr, int reg)
{
	bool high;

	for (unsigned n = 0; n < tr->count; n++) {
		const struct item *item = &tr->item[n];

		if (item->kind == KIND_FALLBACK || item->kind == KIND_SYSTEM)
			return true;
		for (unsigned i = 0; i < item->i.operand_count; i++) {
			int gpr = operand_gpr(&item->operand[i], &high);

			if (gpr >= 0 && (high ? gpr & 3 : gpr) == reg &&
			    (item->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
				return true;
		}
	}
	return false;
}

/* The value at the entry says where it leads: is compared there alone. */
static bool expect(struct translation *tr, const struct item *item, bool loop)
{
	uint64_t value = item->target;
	unsigned n = 0;

	if (item->expected < 0 || tr->floating || (int64_t)value != (int32_t)value ||
	    (loop && is_written(tr, item->expected)))
		return false;
	while (n < tr->expect_count && tr->expect[n].reg != item->expected)
		n++;
	if (n < tr->expect_count)
		return tr->expect[n].value == value;
	if (n == XEXPECT)
		return false;
	tr->expect[n].reg = (uint8_t)item->expected;
	tr->expect[n].value = value;
	tr->expect_count++;
	return true;
}

void calls_find_sure(struct translation *tr)
{
	const struct item *last = &tr->item[tr->count - 1];
	bool loop = last->kind == KIND_JCC && branch_target(tr, last) == tr->rip;

	for (unsigned n = 0; n < tr->count; n++) {
		struct item *item = &tr->item[n];

		if (!item->on)
			continue;
		if (item->kind == KIND_RET)
			item->sure = return_is_sure(tr, (unsigned)item->caller, n);
		else if (item->kind == KIND_CALL_INDIRECT || item->kind == KIND_JMP_INDIRECT)
			item->sure = expect(tr, item, loop);
	}
}

/* ---- code ---- */

/* Compares what a transfer leads to with what is expected: a register, or where memory has it. */
static void guard(struct translation *tr, const struct item *item, unsigned reg, const struct host_memory *where)
{
	struct emitter *e = &tr->e;
	bool near = !tr->floating && (int64_t)item->target == (int32_t)item->target;

	flags_keep(tr, item->live_before);
	if (!near)
		emit_code_address(tr, S2, item->target);
	if (where && near) {
		emit_op_sum(e, true, 0x81, 7, where->base, where->index, where->disp); /* cmp */
		emit_u32(e, (uint32_t)item->target);
	} else if (where) {
		emit_op_sum(e, true, 0x3b, S2, where->base, where->index, where->disp);
	} else if (near) {
		emit_group1(e, true, 7, reg, (int32_t)item->target);
	} else {
		emit_op_reg(e, true, 0x39, S2, reg);
	}
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_ASTRAY, emit_jump_if(e, CC_NE));
	p->item = item;
	p->reg = (uint8_t)reg;
	if (where)
		p->where = *where;
}

void translate_joined(struct translation *tr, const struct item *item)
{
	switch (item->kind) {
	case KIND_CALL:
		translate_push_return(tr, item);
		break;
	case KIND_JMP_INDIRECT:
		if (!item->sure)
			guard(tr, item, translate_target(tr, item), NULL);
		break;
	case KIND_CALL_INDIRECT:
		if (!item->sure)
			guard(tr, item, translate_target(tr, item), NULL);
		translate_push_return(tr, item);
		break;
	case KIND_RET: {
		const ZydisDecodedOperand *o = &item->operand[0];

		if (!item->sure) {
			struct host_memory where = lower_stack(tr, item, RSP, 0, false);

			guard(tr, item, 0, &where);
		}
		move_stack(tr, GUEST_RSP,
		           (int)tr->stack_size +
		               (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (int32_t)o->imm.value.u : 0));
		break;
	}
	default:
		break;
	}
}

/* Leaves ZF set where page `n` is what it was. Destroys S1 and S2; where it is kept, not RCX. */
static void emit_compare_key(struct translation *tr, unsigned n)
{
	struct emitter *e = &tr->e;
	uint64_t page = tr->across[n].page, frame = tr->across[n].physical >> MEMORY_PAGE_SHIFT;

	if (!tr->floating) {
		emit_move_imm64(e, S1, xpage_key(page, tr->across[n].physical));
		emit_op_abs(e, true, 0x3b, S1, xabs(&tr->t->page_key[tr->code_view][page >> 12 & (XPAGE_SIZE - 1)]));
		return;
	}
	emit_code_address(tr, S1, page);
	emit_rorx(e, S2, S1, MEMORY_PAGE_SHIFT - 3);
	emit_group1(e, false, 4, S2, (XPAGE_SIZE - 1) << 3); /* and */
	emit_shift_imm(e, 5, S1, 21);                        /* shr, shl */
	emit_shift_imm(e, 4, S1, 36);
	emit_op_indexed(e, true, 0x33, S1, S2, xabs(tr->t->page_key[tr->code_view])); /* xor */
	if (frame > INT32_MAX)
		tr->failed = tr->rooted = true;
	emit_group1(e, true, 7, S1, (int32_t)frame); /* cmp */
}

/* Jumps that are taken where the translation is not good; how many. */
static unsigned emit_compare_all(struct translation *tr, uint8_t *other[XACROSS + XEXPECT])
{
	unsigned count = 0;

	for (unsigned n = 0; n < tr->across_count; n++) {
		emit_compare_key(tr, n);
		other[count++] = emit_jump_if(&tr->e, CC_NE);
	}
	for (unsigned n = 0; n < tr->expect_count; n++) {
		emit_group1(&tr->e, true, 7, tr->expect[n].reg, (int32_t)tr->expect[n].value); /* cmp */
		other[count++] = emit_jump_if(&tr->e, CC_NE);
	}
	return count;
}

/* Where the translation is entered, but not by its own jump back. */
void emit_across_check(struct translation *tr)
{
	uint8_t *other[XACROSS + XEXPECT];

	if (!tr->across_count && !tr->expect_count)
		return;
	flags_keep(tr, tr->item[0].live_before);
	tr->in_register = false;
	unsigned count = 1;
	if (tr->floating) { /* it is known for one address */
		emit_load(&tr->e, S1, xabs(&tr->t->code_page));
		emit_op_abs(&tr->e, true, 0x3b, S1, xabs(&tr->across_room->from)); /* cmp */
		other[0] = emit_jump_if(&tr->e, CC_NE);
	} else {
		count = emit_compare_all(tr, other);
	}
	struct pending *p = pend(tr, PENDING_ACROSS, other[0]);
	memcpy(p->more, other + 1, (count - 1) * sizeof(other[0]));
	p->resume = tr->e.at;
	p->site = new_site(tr, &tr->item[0], 0, false);
	p->site->across = xabs(tr->across_room);
}

/* The keys are made to be what the tables say; if they are not what they were then, the interpreter goes on. */
void emit_pending_across(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;
	uint8_t *other[XACROSS + XEXPECT];

	unsigned count;

	if (tr->floating) {
		emit_op_abs(e, false, 0x83, 5, xabs(&tr->across_room->wait)); /* sub dword [], 1 */
		emit_byte(e, 1);
		uint8_t *again = emit_jump_if(e, CC_E);
		count = emit_compare_all(tr, other);
		emit_jump_to(e, p->resume);
		for (unsigned n = 0; n < count; n++)
			emit_fix(e, other[n]);
		emit_fix(e, again);
	} else {
		for (unsigned n = 0; n + 1 < tr->across_count + tr->expect_count; n++)
			emit_fix(e, p->more[n]);
	}
	emit_store_address(e, xabs(&tr->t->exit_argument), xabs(p->site));
	emit_call_to(e, tr->t->across_look);
	count = emit_compare_all(tr, other);
	emit_jump_to(e, p->resume);
	for (unsigned n = 0; n < count; n++)
		emit_fix(e, other[n]);
	exit_to_slot(tr, tr->item[0].slot);
}
