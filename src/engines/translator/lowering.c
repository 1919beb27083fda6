/*
 * The seam: memory operands and flags. Code above it knows nothing of the TLB.
 */
#include <stddef.h>
#include <string.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"

/* ---- flags ---- */

uint32_t gpr_abs(const struct translation *tr, unsigned guest)
{
	return xabs(&tr->t->vcpu->state.gpr[guest]);
}

void emit_flags_save(struct emitter *e, const struct translator *t)
{
	emit_move(e, S2, RAX);
	emit_byte(e, 0x9f); /* lahf */
	emit_byte(e, 0x0f); /* seto al */
	emit_byte(e, 0x90);
	emit_byte(e, 0xc0);
	emit_store32(e, RAX, xabs(&t->flags));
	emit_move(e, RAX, S2);
}

void emit_flags_restore(struct emitter *e, const struct translator *t)
{
	emit_move(e, S2, RAX);
	emit_load32(e, RAX, xabs(&t->flags));
	emit_byte(e, 0x04); /* add al, 7fh: OF */
	emit_byte(e, 0x7f);
	emit_byte(e, 0x9e); /* sahf */
	emit_move(e, RAX, S2);
}

/* Before EFLAGS is destroyed while some flags are live. Uses S2. */
void flags_keep(struct translation *tr, uint32_t live)
{
	if (live && tr->in_register && !tr->in_memory) {
		emit_flags_save(&tr->e, tr->t);
		tr->in_memory = true;
	}
}

/* Before an instruction that wants them in EFLAGS. Uses S2. */
void flags_want(struct translation *tr)
{
	if (tr->in_register || !tr->in_memory)
		return;
	emit_flags_restore(&tr->e, tr->t);
	tr->in_register = true;
}

/* ---- memory ---- */

struct pending *pend(struct translation *tr, int kind, uint8_t *place)
{
	if (tr->pending_count == PENDING_MAX) {
		tr->failed = true;
		return &tr->pending[0];
	}
	struct pending *p = &tr->pending[tr->pending_count++];
	memset(p, 0, sizeof(*p));
	p->kind = kind;
	p->place = place;
	p->shadow = tr->shadow;
	p->pair = tr->pair;
	p->caller = tr->caller;
	p->view = tr->view;
	p->code_view = tr->code_view;
	p->part = tr->now;
	p->in_register = tr->in_register;
	p->in_memory = tr->in_memory;
	p->pointers = tr->pointers;
	return p;
}

struct xsite *new_site(struct translation *tr, const struct item *item, unsigned size, bool write)
{
	struct translator *t = tr->t;

	if (t->site_count == t->region[t->region_now].sites_end) {
		tr->failed = tr->exhausted = true;
		return &tr->spare_site;
	}
	struct xsite *site = &t->sites[t->site_count++];
	*site = (struct xsite){
	    .host = (uint32_t)(tr->e.at - t->arena.write),
	    .size = (uint8_t)(size > 64 ? 64 : size),
	    .write = write,
	    .masked = item->form && item->form->masked,
	    .flags_in_register = tr->in_register,
	    .slot = item->slot,
	    .slots = item->slots,
	    .length = item->i.length,
	    .waits = item->form && item->form->waits,
	    .pointers = tr->pointers,
	    .rip = part_rip(tr, item->part),
	    .floating = tr->floating,
	    .inside = item->inside,
	    .settle = settle_after(tr, item),
	};
	return site;
}

/* A guest register as base or index of an address: where it is, loaded into `scratch` if need be. */
static unsigned address_register(struct translation *tr, ZydisRegister reg, unsigned scratch)
{
	if (reg == ZYDIS_REGISTER_NONE)
		return NO_REGISTER;
	unsigned guest = (unsigned)ZydisRegisterGetId(reg);
	if (guest == RSP)
		return GUEST_RSP;
	if (guest < R9 || guest > R11)
		return guest;
	emit_load(&tr->e, scratch, gpr_abs(tr, guest));
	return scratch;
}

/* The effective address of an operand into `to` (S1 or any register for LEA); clobbers S1, S2. No flags. */
void lower_effective(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned to,
                     bool wide)
{
	int64_t disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;

	if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
		uint64_t address = tr->rip + (uint64_t)(int64_t)item->offset + item->i.length + (uint64_t)disp;

		if (tr->floating) {
			emit_code_address(tr, to, address);
			if (!wide)
				emit_op_reg(&tr->e, false, 0x89, to, to);
		} else {
			emit_move_imm64(&tr->e, to, wide ? address : (uint32_t)address);
		}
		return;
	}
	if (o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE) {
		emit_move_imm64(&tr->e, to, wide ? (uint64_t)disp : (uint32_t)disp);
		return;
	}
	unsigned base = address_register(tr, o->mem.base, S1);
	unsigned index = address_register(tr, o->mem.index, S2);
	static const uint8_t shift[] = {0, 0, 1, 0, 2, 0, 0, 0, 3};
	emit_lea_full(&tr->e, wide, false, to, base, index,
	              o->mem.index == ZYDIS_REGISTER_NONE ? 0 : shift[o->mem.scale], (int32_t)disp);
}

void emit_tlb_offset(struct emitter *e, unsigned to, unsigned from)
{
	emit_rorx(e, to, from, MEMORY_PAGE_SHIFT - XTLB_SHIFT);
	emit_group1(e, false, 4, to, (XTLB_ENTRIES - 1) << XTLB_SHIFT); /* and */
}

uint8_t *emit_look_up(struct emitter *e, uint32_t tags, unsigned span)
{
	emit_tlb_offset(e, S2, S1);
	emit_op_indexed(e, true, 0x33, S1, S2, tags); /* xor */
	emit_group1(e, true, 7, S1, (int32_t)(MEMORY_PAGE_SIZE - span));
	return emit_jump_if(e, CC_A);
}

/*
 * The TLB look-up: linear address in S1; afterwards the host address. Destroys EFLAGS and S2; live flags have been
 * kept.
 */
void lower_check(struct translation *tr, const struct item *item, unsigned size, bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	uint32_t tag = xabs(&t->tlb[tr->view][0].tag[write]), delta = xabs(&t->tlb[tr->view][0].delta[write]);

	struct xrange *range = new_range(tr, item, size, write);
	if (range) {
		range_check(tr, item, range, size, write);
		return;
	}
	uint8_t *miss = emit_look_up(e, tag, size);
	emit_op_indexed(e, true, 0x33, S1, S2, tag);   /* xor: the address again */
	emit_op_indexed(e, true, 0x03, S1, S2, delta); /* add */
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_SLOW, miss);
	p->resume = e->at;
	p->item = item;
	p->site = new_site(tr, item, size, write);
}

void emit_code_address(struct translation *tr, unsigned reg, uint64_t address)
{
	if (!tr->floating) {
		emit_move_imm64(&tr->e, reg, address);
		return;
	}
	/* Two gigabytes from the page's end: no compiler's code. It stays where it is then. */
	if ((int64_t)address != (int32_t)address)
		tr->failed = tr->rooted = true;
	emit_load(&tr->e, reg, xabs(&tr->t->code_page));
	if (address)
		emit_lea(&tr->e, reg, reg, (int32_t)address);
}

/* Can the page's addresses be displacements? */
static bool is_near(uint64_t page)
{
	return (int64_t)page == (int32_t)page;
}

void emit_slow(struct translation *tr, const struct pending *p, const uint8_t *trampoline)
{
	struct xsite *site = p->site;

	emit_push_address(&tr->e, xabs(site));
	emit_call_to(&tr->e, trampoline);
	if (!site->slots)
		return;
	/* Where it goes on when the interpreter has done it. */
	ptrdiff_t end = p->item->end - (tr->t->arena.write + site->host);
	if (end < 0 || end > UINT16_MAX)
		tr->failed = true;
	site->end = (uint16_t)end;
	site->end_in_register = p->item->end_in_register;
}

void emit_access_miss(struct translation *tr, const struct pending *p)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;

	if (p->kind == PENDING_CONSTANT) {
		emit_move_imm64(e, S1, p->target);
		emit_slow(tr, p, t->slow);
		if (!is_near(p->target))
			emit_move_imm64(e, S1, p->target & ~0xfffull);
	} else {
		emit_slow(tr, p, (p->range ? t->range_miss : t->slow_xored)[tr->view][p->site->write]);
	}
	if (p->kind == PENDING_SLOW_BASE) {             /* the difference is wanted */
		emit_op_reg(e, true, 0x29, p->reg, S1); /* sub */
		if (p->disp)
			emit_lea(e, S1, S1, -p->disp);
	}
	emit_jump_to(e, p->resume);
}

void emit_set_rip(struct translation *tr, uint64_t rip)
{
	uint32_t abs = xabs(&tr->t->vcpu->state.rip);

	if (!tr->floating && (int64_t)rip == (int32_t)rip) {
		emit_store_imm(&tr->e, true, abs, (int32_t)rip);
	} else {
		emit_code_address(tr, S2, rip);
		emit_store(&tr->e, S2, abs);
	}
}

void emit_set_argument(struct translation *tr, const volatile void *pointer)
{
	emit_move_address(&tr->e, S2, pointer);
	emit_store(&tr->e, S2, xabs(&tr->t->exit_argument));
}

void exit_to_slot(struct translation *tr, const struct insn *slot)
{
	flags_keep(tr, ALL_FLAGS);
	x87_emit_pointers(tr);
	emit_set_rip(tr, part_rip(tr, tr->now));
	emit_set_argument(tr, slot);
	emit_jump_to(&tr->e, tr->t->exit_slot);
}

/* The interpreter does the instruction, which is not terminal; it goes on behind it with flags in memory. */
void call_out(struct translation *tr, const struct item *item)
{
	flags_keep(tr, ALL_FLAGS);
	struct xsite *site = new_site(tr, item, 0, false);
	emit_store_address(&tr->e, xabs(&tr->t->exit_argument), xabs(site));
	emit_call_to(&tr->e, tr->t->call_out);
	tr->in_register = false;
	tr->in_memory = true;
}

uint8_t *emit_unless_canonical(struct emitter *e, unsigned reg)
{
	emit_move(e, S2, reg);
	emit_shift_imm(e, 4, S2, 16); /* shl, sar */
	emit_shift_imm(e, 7, S2, 16);
	emit_op_reg(e, true, 0x39, reg, S2);
	return emit_jump_if(e, CC_NE);
}

/* Leaves to the interpreter when S1 is not canonical. Flags have been kept; destroys S2. */
void check_canonical(struct translation *tr, const struct item *item)
{
	uint8_t *odd = emit_unless_canonical(&tr->e, S1);

	tr->in_register = false;
	pend(tr, PENDING_SLOT, odd)->slot = item->slot;
}

/* An address that is known here: no index to compute, and the page's host address need not wait for the tag. */
static struct host_memory lower_constant(struct translation *tr, const struct item *item, uint64_t address,
                                         unsigned size, bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	uint64_t page = address & ~0xfffull;
	const struct xtlb_entry *entry = &t->tlb[tr->view][address >> 12 & (XTLB_ENTRIES - 1)];
	bool near = is_near(page);

	flags_keep(tr, item->live_before);
	if (near) {
		emit_op_abs(e, true, 0x81, 7, xabs(&entry->tag[write])); /* cmp qword [], imm32 */
		emit_u32(e, (uint32_t)page);
	} else {
		emit_move_imm64(e, S1, page);
		emit_op_abs(e, true, 0x3b, S1, xabs(&entry->tag[write]));
	}
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_CONSTANT, emit_jump_if(e, CC_NE));
	p->target = address;
	p->item = item;
	p->site = new_site(tr, item, size, write);
	p->resume = e->at;
	if (near)
		emit_load(e, S1, xabs(&entry->delta[write]));
	else
		emit_op_abs(e, true, 0x03, S1, xabs(&entry->delta[write])); /* add */
	return (struct host_memory){
	    .base = S1, .index = NO_REGISTER, .disp = (int32_t)(near ? address : address & 0xfff)};
}

/* From the effective address of operand `o` in S1 to the host address. Live flags have been kept. */
void lower_access(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size,
                  bool write)
{
	if (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS) {
		enum segment_register segment = o->mem.segment == ZYDIS_REGISTER_FS ? SEG_FS : SEG_GS;

		if (tr->code32) {
			mode32_segment(tr, item, segment, size);
			lower_check(tr, item, size, write);
			return;
		}
		if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
			check_canonical(tr, item); /* AMD: already before the base is added */
		emit_op_abs(&tr->e, true, 0x03, S1, xabs(&tr->t->vcpu->state.segment[segment].base));
	}
	lower_check(tr, item, size, write);
}

/* An explicit memory operand: host address in S1. */
void lower_memory(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size,
                  bool write)
{
	flags_keep(tr, item->live_before);
	lower_effective(tr, item, o, S1, item->i.address_width == 64);
	lower_access(tr, item, o, size, write);
}

static bool lies_in_memory(ZydisRegister reg)
{
	return reg != ZYDIS_REGISTER_NONE && ZydisRegisterGetId(reg) >= R9 && ZydisRegisterGetId(reg) <= R11;
}

/* Can it be computed again behind the check, or the access add it up? */
static bool is_cheap(const struct translation *tr, const struct item *item, const ZydisDecodedOperand *o)
{
	return !tr->code32 && item->i.address_width == 64 && o->mem.segment != ZYDIS_REGISTER_FS &&
	       o->mem.segment != ZYDIS_REGISTER_GS && o->mem.base != ZYDIS_REGISTER_RIP &&
	       (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE) &&
	       !lies_in_memory(o->mem.base) && !lies_in_memory(o->mem.index) && o->mem.disp.value != INT32_MIN &&
	       !range_possible(tr, (unsigned)(item - tr->item));
}

/*
 * An operand whose registers keep its address. What the check leaves in S1 need not become the address again, which the
 * access would wait for: with a base alone the access adds the difference, else the address is computed once more.
 */
static struct host_memory lower_cheap(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o,
                                      unsigned size, bool write)
{
	struct emitter *e = &tr->e;
	const struct xtlb_entry *entry = tr->t->tlb[tr->view];
	int32_t disp = o->mem.disp.has_displacement ? (int32_t)o->mem.disp.value : 0;
	unsigned base = (unsigned)ZydisRegisterGetId(o->mem.base);
	bool alone = o->mem.index == ZYDIS_REGISTER_NONE;

	flags_keep(tr, item->live_before);
	lower_effective(tr, item, o, S1, true);
	struct pending *p = pend(tr, PENDING_SLOW, emit_look_up(e, xabs(&entry->tag[write]), size));
	tr->in_register = p->in_register = false;
	p->item = item;
	p->site = new_site(tr, item, size, write);
	if (alone) {
		p->kind = PENDING_SLOW_BASE;
		p->reg = (uint8_t)(base == RSP ? GUEST_RSP : base);
		p->disp = disp;
		emit_op_indexed(e, true, 0x8b, S1, S2, xabs(&entry->delta[write])); /* mov */
		p->resume = e->at;
		return (struct host_memory){.base = p->reg, .index = S1, .disp = disp};
	}
	lower_effective(tr, item, o, S1, true);
	emit_op_indexed(e, true, 0x03, S1, S2, xabs(&entry->delta[write])); /* add */
	p->resume = e->at;
	return (struct host_memory){.base = S1, .index = NO_REGISTER};
}

struct host_memory lower_operand(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o,
                                 unsigned size, bool write)
{
	int64_t disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;

	if (item->group != NO_GROUP)
		return group_member(tr, item, item->group, (unsigned)ZydisRegisterGetId(o->mem.base),
		                    disp + item->index, item->position, size, write);
	if (item->stream != NO_STREAM)
		return stream_operand(tr, item, o, size, write);
	if ((tr->code32 || item->i.address_width == 64) && o->mem.index == ZYDIS_REGISTER_NONE &&
	    (o->mem.base == ZYDIS_REGISTER_NONE || (o->mem.base == ZYDIS_REGISTER_RIP && !tr->floating)) &&
	    o->mem.segment != ZYDIS_REGISTER_FS && o->mem.segment != ZYDIS_REGISTER_GS) {
		uint64_t address = (uint64_t)disp & tr->rip_mask;

		if (o->mem.base == ZYDIS_REGISTER_RIP)
			address += tr->rip + (uint64_t)(int64_t)item->offset + item->i.length;
		if ((address & 0xfff) + size <= MEMORY_PAGE_SIZE)
			return lower_constant(tr, item, address, size, write);
	}
	if (place_possible(tr, item, o, size))
		return lower_place(tr, item, place_address(tr, item, o), size, write);
	if (is_cheap(tr, item, o))
		return lower_cheap(tr, item, o, size, write);
	lower_memory(tr, item, o, size, write);
	return (struct host_memory){.base = S1, .index = NO_REGISTER};
}

struct host_memory lower_stack(struct translation *tr, const struct item *item, unsigned reg, int displacement,
                               bool write)
{
	if (item->stack_group != NO_GROUP)
		return group_member(tr, item, item->stack_group, reg, displacement, item->stack_position,
		                    tr->stack_size, write);
	flags_keep(tr, item->live_before);
	address_in(tr, reg == RSP ? GUEST_RSP : reg, displacement);
	lower_check(tr, item, tr->stack_size, write);
	return (struct host_memory){.base = S1, .index = NO_REGISTER};
}

const ZydisDecodedOperand *memory_operand(const struct item *item)
{
	for (unsigned n = 0; n < item->i.operand_count_visible; n++)
		if (is_memory(&item->operand[n]) && item->operand[n].mem.type == ZYDIS_MEMOP_TYPE_MEM)
			return &item->operand[n];
	return NULL;
}

/* A guest register's value in a host register: its own, or loaded into `scratch`. */
unsigned value_of(struct translation *tr, unsigned guest, unsigned scratch)
{
	if (guest == RSP)
		return GUEST_RSP;
	if (guest < R9 || guest > R11)
		return guest;
	emit_load(&tr->e, scratch, gpr_abs(tr, guest));
	return scratch;
}

/* Where to compute a guest register's new value; store_result() afterwards. */
unsigned result_in(unsigned guest, unsigned scratch)
{
	return guest == RSP ? GUEST_RSP : guest < R9 || guest > R11 ? guest : scratch;
}

void store_result(struct translation *tr, unsigned guest, unsigned host)
{
	if (guest >= R9 && guest <= R11)
		emit_store(&tr->e, host, gpr_abs(tr, guest));
}
