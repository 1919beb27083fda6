/*
 * Which accesses of a block share one check.
 *
 * Accesses at constant distances from one value (a register that only constants were added to, or a copy of it) form a
 * group. Its first access checks the whole span, within one page; afterwards a register or a slot holds the difference
 * of host and linear addresses, and the others are the instruction alone. All through the stack pointer's value use the
 * window (translator.h) instead of the TLB, also single ones.
 *
 * Nothing in a group can be done half: the check has no effect that the guest could see but that of its own access
 * (translator_probe; of one with a mask, which may leave all of it out, none), and where it fails the interpreter does the
 * rest of the block.
 */
#include "engines/translator/translation.h"

#define SPAN_MAX    256
#define STACK_MAX   512
#define STREAM_SPAN 64
#define NONE        NO_GROUP
#define BROKEN      0xfe /* accesses at this value stay alone */
#define FAR         (1 << 30)

struct value {
	uint8_t id;
	int64_t offset;
	bool constant; /* it is `number` */
	int64_t number;
};

struct merging {
	struct value value[16]; /* of the general registers */
	uint8_t open[256];      /* by value: its group */
	unsigned values;
};

static void fresh(struct merging *m, unsigned reg)
{
	/* Too many: all that follows are one that has no group, see join(). */
	if (m->values < 255)
		m->values++;
	m->value[reg] = (struct value){.id = (uint8_t)m->values};
}

static void forget_all(struct merging *m)
{
	for (unsigned i = 0; i < 256; i++)
		m->open[i] = NONE;
	for (unsigned reg = 0; reg < 16; reg++)
		fresh(m, reg);
}

/* An access of `size` bytes at reg + displacement. The group, or NONE. */
static uint8_t join(struct translation *tr, struct merging *m, unsigned n, unsigned reg, int64_t displacement,
                    unsigned size, bool write, int64_t *position)
{
	struct value v = m->value[reg];
	int64_t low = v.offset + displacement, high = low + size;

	if (v.id == 255 || m->open[v.id] == BROKEN || (reg >= R9 && reg <= R11) || low != (int32_t)low ||
	    displacement >= FAR || displacement <= -FAR)
		return NONE;
	*position = low;
	if (m->open[v.id] != NONE) {
		struct group *g = &tr->group[m->open[v.id]];
		int64_t new_low = low < g->low ? low : g->low, new_high = high > g->high ? high : g->high;

		if (new_high - new_low <= (g->window ? STACK_MAX : SPAN_MAX)) {
			g->low = new_low;
			g->high = new_high;
			g->write |= write;
			g->count++;
			g->last = n;
			return m->open[v.id];
		}
	}
	if (tr->group_count == GROUPS_MAX || (tr->block->apart >> (n & 63) & 1)) {
		m->open[v.id] = tr->group_count == GROUPS_MAX ? NONE : BROKEN;
		return NONE;
	}
	m->open[v.id] = (uint8_t)tr->group_count;
	tr->group[tr->group_count++] = (struct group){.low = low,
	                                              .high = high,
	                                              .write = write || reg == RSP,
	                                              .window = reg == RSP,
	                                              .count = 1,
	                                              .value = v.id,
	                                              .stream = NO_STREAM,
	                                              .first = n,
	                                              .last = n};
	return m->open[v.id];
}

/* An index that is a number. */
static bool index_known(const struct merging *m, struct item *item, const ZydisDecodedOperand *o)
{
	if (o->mem.index == ZYDIS_REGISTER_NONE)
		return true;
	if (item->kind != KIND_GENERIC || ZydisRegisterGetClass(o->mem.index) != ZYDIS_REGCLASS_GPR64)
		return false;
	const struct value *v = &m->value[ZydisRegisterGetId(o->mem.index)];
	item->index = v->number * o->mem.scale;
	return v->constant && v->number == (int16_t)v->number;
}

/* What lower_operand() can address without an index: the base register, or -1. */
static int base_of(const struct merging *m, struct item *item, const ZydisDecodedOperand *o)
{
	item->index = 0;
	if (!o || !index_known(m, item, o) || item->i.address_width != 64 || o->mem.segment == ZYDIS_REGISTER_FS ||
	    o->mem.segment == ZYDIS_REGISTER_GS || ZydisRegisterGetClass(o->mem.base) != ZYDIS_REGCLASS_GPR64)
		return -1;
	return ZydisRegisterGetId(o->mem.base);
}

/* Is a register what it was at the entry, but for a constant? */
static bool initial(const struct merging *m, ZydisRegister reg)
{
	return reg == ZYDIS_REGISTER_NONE || (ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR64 &&
	                                      m->value[ZydisRegisterGetId(reg)].id == ZydisRegisterGetId(reg) + 1);
}

static void join_operand(struct translation *tr, struct merging *m, unsigned n, unsigned size, bool write)
{
	struct item *item = &tr->item[n];
	const ZydisDecodedOperand *o = memory_operand(item);

	if (tr->loop && item->kind == KIND_GENERIC && !item->form->masked && o && initial(m, o->mem.base) &&
	    initial(m, o->mem.index))
		item->stream = 0; /* perhaps: find_streams() */
	int base = base_of(m, item, o);

	if (base >= 0)
		item->group =
		    join(tr, m, n, (unsigned)base, (o->mem.disp.has_displacement ? o->mem.disp.value : 0) + item->index,
		         size, write, &item->position);
}

static void join_stack(struct translation *tr, struct merging *m, unsigned n, unsigned reg, int displacement,
                       bool write)
{
	tr->item[n].stack_group = join(tr, m, n, reg, displacement, 8, write, &tr->item[n].stack_position);
}

static bool whole_register(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_GPR64;
}

/* A register that becomes another one's, or its own, value and a constant. */
static bool follow(struct merging *m, struct item *item)
{
	const ZydisDecodedOperand *to = &item->operand[0], *from = &item->operand[1];
	int64_t sign = 1;

	if (!whole_register(to))
		return false;
	struct value *v = &m->value[ZydisRegisterGetId(to->reg.value)];
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_INC:
		v->offset++;
		v->constant = false;
		return true;
	case ZYDIS_MNEMONIC_DEC:
		v->offset--;
		v->constant = false;
		return true;
	case ZYDIS_MNEMONIC_SUB:
		sign = -1;
		/* fall through */
	case ZYDIS_MNEMONIC_ADD:
		if (from->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		v->offset += sign * (int64_t)from->imm.value.s;
		v->constant = false;
		return true;
	case ZYDIS_MNEMONIC_MOV:
		if (!whole_register(from))
			return false;
		*v = m->value[ZydisRegisterGetId(from->reg.value)];
		return true;
	case ZYDIS_MNEMONIC_LEA: {
		int base = base_of(m, item, from);

		if (base < 0)
			return false;
		struct value source = m->value[base];
		source.constant = false;
		source.offset += from->mem.disp.has_displacement ? from->mem.disp.value : 0;
		*v = source;
		return true;
	}
	default:
		return false;
	}
}

static void forget_written(struct merging *m, const struct item *item)
{
	bool high;

	for (unsigned i = 0; i < item->i.operand_count; i++) {
		int gpr = operand_gpr(&item->operand[i], &high);

		if (gpr >= 0 && (item->operand[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			fresh(m, high ? (unsigned)gpr & 3 : (unsigned)gpr);
	}
}

/* By a RET, beside the return address. */
static int64_t released(const struct item *item)
{
	const ZydisDecodedOperand *o = &item->operand[0];

	return o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (int64_t)o->imm.value.u : 0;
}

/* A register becomes a number. */
static void note_number(struct merging *m, const struct item *item)
{
	const ZydisDecodedOperand *to = &item->operand[0], *from = &item->operand[1];
	bool high;
	int gpr = operand_gpr(to, &high);

	if (item->kind != KIND_GENERIC || item->i.mnemonic != ZYDIS_MNEMONIC_MOV || gpr < 0 || to->size < 32 ||
	    from->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return;
	m->value[gpr].constant = true;
	m->value[gpr].number = to->size == 32 ? (int64_t)(uint32_t)from->imm.value.u : from->imm.value.s;
}

static void note_item(struct translation *tr, struct merging *m, unsigned n)
{
	struct item *item = &tr->item[n];
	bool high;

	switch (item->kind) {
	case KIND_NOP:
	case KIND_PREFETCH:
	case KIND_JMP:
	case KIND_JCC:
		break;
	case KIND_GENERIC:
		if (item->form->memory_size)
			join_operand(tr, m, n, item->form->memory_size, item->form->writes_memory);
		/* fall through */
	case KIND_SEGMENT_READ:
	case KIND_DIRECTION:
	case KIND_LEA:
		if (!follow(m, item))
			forget_written(m, item);
		note_number(m, item);
		break;
	case KIND_PUSH:
		if (is_memory(&item->operand[0])) {
			/* If its read misses, the interpreter does it all, and what its push would check is not known behind it. */
			join_operand(tr, m, n, 8, false);
			m->open[m->value[RSP].id] = NONE;
			join_stack(tr, m, n, RSP, -8, true);
			m->open[m->value[RSP].id] = NONE;
		} else {
			join_stack(tr, m, n, RSP, -8, true);
		}
		m->value[RSP].offset -= 8;
		break;
	case KIND_POP:
		if (is_memory(&item->operand[0])) {
			forget_all(m);
			break;
		}
		join_stack(tr, m, n, RSP, 0, false);
		m->value[RSP].offset += 8;
		fresh(m, (unsigned)operand_gpr(&item->operand[0], &high));
		break;
	case KIND_LEAVE:
		join_stack(tr, m, n, RBP, 0, false);
		m->value[RSP] = m->value[RBP];
		m->value[RSP].offset += 8;
		fresh(m, RBP);
		break;
	case KIND_CALL_INDIRECT:
	case KIND_JMP_INDIRECT:
		if (is_memory(&item->operand[0]))
			join_operand(tr, m, n, 8, false);
		if (item->kind == KIND_JMP_INDIRECT)
			break;
		/* fall through */
	case KIND_CALL:
		join_stack(tr, m, n, RSP, -8, true);
		m->value[RSP].offset -= 8;
		break;
	case KIND_RET:
		if (!item->sure)
			join_stack(tr, m, n, RSP, 0, false);
		m->value[RSP].offset += 8 + released(item);
		break;
	default:
		forget_all(m);
		break;
	}
}

static uint8_t worth(const struct translation *tr, uint8_t group)
{
	return group != NONE && (tr->group[group].count > 1 || tr->group[group].window ||
	                         tr->group[group].stream != NO_STREAM || range_possible(tr, tr->group[group].first))
	           ? group
	           : NONE;
}

/* What a round of the loop adds to a register that is as initial() wants it at the end. */
static int64_t stride_of(const struct merging *m, ZydisRegister reg)
{
	int64_t stride = reg == ZYDIS_REGISTER_NONE ? 0 : m->value[ZydisRegisterGetId(reg)].offset;

	return stride < -FAR || stride > FAR ? FAR : stride;
}

/* Groups by what a register was at the entry; and operands with an index, or of registers that groups do not know. */
static void find_streams(struct translation *tr, const struct merging *m)
{
	for (unsigned i = 0; i < tr->group_count; i++) {
		struct group *g = &tr->group[i];

		if (!g->window && g->value >= 1 && g->value <= 16 && m->value[g->value - 1].id == g->value)
			g->stream = new_stream(tr, m->value[g->value - 1].offset);
	}
	for (unsigned n = 0; n < tr->count; n++) {
		struct item *item = &tr->item[n];
		bool perhaps = item->stream != NO_STREAM && item->group == NONE;
		const ZydisDecodedOperand *o = memory_operand(item);

		item->stream = NO_STREAM;
		if (perhaps && item->i.address_width == 64 && o->mem.segment != ZYDIS_REGISTER_FS &&
		    o->mem.segment != ZYDIS_REGISTER_GS &&
		    (!o->mem.disp.has_displacement || (o->mem.disp.value < FAR && o->mem.disp.value > -FAR)) &&
		    (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE) &&
		    initial(m, o->mem.base) && initial(m, o->mem.index))
			item->stream =
			    new_stream(tr, stride_of(m, o->mem.base) + stride_of(m, o->mem.index) * o->mem.scale);
	}
}

void find_groups(struct translation *tr)
{
	struct merging m = {.values = 0};

	tr->group_count = 0;
	tr->delta_in_s1 = NONE;
	for (unsigned n = 0; n < tr->count; n++) {
		tr->item[n].group = tr->item[n].stack_group = NONE;
		tr->item[n].stream = NO_STREAM;
		tr->item[n].inside = false;
	}
	tr->stream_count = 0;
	tr->loop = !tr->code32 && !tr->block->apart && is_loop(tr);
	if (tr->code32)
		return;
	forget_all(&m);
	for (unsigned n = 0; n < tr->count; n++)
		note_item(tr, &m, n);
	if (tr->loop)
		find_streams(tr, &m);
	for (unsigned n = 0; n < tr->count; n++) {
		struct item *item = &tr->item[n];

		item->group = worth(tr, item->group);
		item->stack_group = worth(tr, item->stack_group);
	}
	for (unsigned i = 0; i < tr->group_count; i++)
		for (unsigned n = tr->group[i].first + 1; n <= tr->group[i].last; n++)
			tr->item[n].inside = true;
}

/* May it destroy S1? */
static bool keeps_s1(const struct translation *tr, const struct item *item)
{
	bool high;

	if (item->group == tr->delta_in_s1 || item->stack_group == tr->delta_in_s1)
		return item->group == NONE || item->stack_group == NONE; /* with two accesses it has two ways */
	if (item->kind == KIND_NOP)
		return true;
	if (item->kind != KIND_GENERIC || item->form->memory_size)
		return false;
	for (unsigned i = 0; i < item->i.operand_count; i++) {
		int gpr = operand_gpr(&item->operand[i], &high);

		if (gpr >= R9 && gpr <= R11)
			return false;
	}
	return true;
}

void groups_before(struct translation *tr, const struct item *item)
{
	if (tr->delta_in_s1 != NONE && !keeps_s1(tr, item))
		tr->delta_in_s1 = NONE;
}

/* Which of a window's `fits` is for groups of `span` bytes. */
static unsigned window_class(unsigned span)
{
	unsigned n = 0;

	while (WINDOW_LEAST << n < span)
		n++;
	return n;
}

static unsigned window_slack(unsigned span)
{
	return (WINDOW_LEAST << window_class(span)) - span;
}

/* The check, by the first access of the group: reg + displacement. The difference is in S1 afterwards. */
static void group_check(struct translation *tr, const struct item *item, struct group *g, unsigned reg,
                        int32_t displacement, int64_t position, unsigned size, bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	unsigned span = (unsigned)(g->high - g->low);
	struct xtlb_entry *entry = t->tlb[tr->view];

	flags_keep(tr, item->live_before);
	int32_t lowest = displacement - (int32_t)(position - g->low);
	struct pending *p;
	/* A stream knows one page: a wide group is often on two. */
	if (!g->window && (g->stream == NO_STREAM || span > STREAM_SPAN))
		g->range = new_range(tr, item, span, g->write);
	unsigned slack = g->window ? window_slack(span) : 0;
	if (g->stream == NO_STREAM && !g->range)
		emit_lea(e, S1, reg, lowest - (int32_t)slack);
	if (g->range) {
		p = range_group_check(tr, g->range, reg, lowest);
	} else if (g->stream != NO_STREAM) {
		p = stream_check(tr, g->stream, reg);
		p->disp = lowest;
	} else if (g->window) {
		emit_op_abs(e, true, 0x2b, S1, xabs(&t->window[tr->view].start));                    /* sub */
		emit_op_abs(e, true, 0x3b, S1, xabs(&t->window[tr->view].fits[window_class(span)])); /* cmp */
		p = pend(tr, PENDING_WINDOW, emit_jump_if(e, CC_AE));
		emit_load(e, S1, xabs(&t->window[tr->view].delta));
	} else {
		p = pend(tr, PENDING_GROUP, emit_look_up(e, xabs(&entry->tag[g->write]), span));
		emit_op_indexed(e, true, 0x8b, S1, S2, xabs(&entry->delta[g->write]));
	}
	tr->in_register = false;
	p->in_register = false;
	p->in_memory = tr->in_memory;
	p->resume = e->at;
	p->site = new_site(tr, item, span, g->write);
	p->site->window = g->window;
	p->site->slack = (uint8_t)slack;
	p->site->item = (uint8_t)(item - tr->item);
	p->site->first_offset = (int16_t)(position - g->low);
	p->site->first_size = (uint8_t)(size > 64 ? 64 : size);
	p->site->first_write = write;
	p->site->span = (uint16_t)span;
	p->site->block = tr->block;
	p->site->range = g->range ? xabs(g->range) : 0;
	if (g->count > 1 && g->stream == NO_STREAM && !g->range)
		emit_store(e, S1, xabs(&t->delta_slot[g - tr->group]));
	g->checked = true;
}

struct host_memory group_member(struct translation *tr, const struct item *item, uint8_t group, unsigned guest,
                                int64_t displacement, int64_t position, unsigned size, bool write)
{
	struct group *g = &tr->group[group];
	unsigned reg = guest == RSP ? GUEST_RSP : guest;

	if (!g->checked)
		group_check(tr, item, g, reg, (int32_t)displacement, position, size, write);
	else if (tr->delta_in_s1 != group && g->range)
		emit_load(&tr->e, S1, xabs(&g->range->delta));
	else if (tr->delta_in_s1 != group && g->stream != NO_STREAM)
		stream_reload(tr, g->stream);
	else if (tr->delta_in_s1 != group)
		emit_load(&tr->e, S1, xabs(&tr->t->delta_slot[group]));
	tr->delta_in_s1 = group;
	return (struct host_memory){.base = reg, .index = S1, .disp = (int32_t)displacement};
}

/* Out of line. */
static void emit_check_again(struct translation *tr, const struct pending *p, const uint8_t *trampoline)
{
	emit_push_address(&tr->e, xabs(p->site));
	emit_call_to(&tr->e, trampoline);
	emit_jump_to(&tr->e, p->resume);
}

/* The window is somewhere else: moved, if the TLB has the page. */
void emit_window_miss(struct translation *tr, const struct pending *p)
{
	emit_check_again(tr, p, tr->t->window_move[tr->view]);
}

void emit_group_miss(struct translation *tr, const struct pending *p)
{
	struct translator *t = tr->t;

	emit_check_again(tr, p, (p->range ? t->range_group_miss : t->probe_xored)[tr->view][p->site->write]);
}
