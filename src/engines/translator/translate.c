/*
 * From a decoded block to host code: selection. translator.h says how registers, flags and memory are held.
 *
 * Two passes: the first decodes and finds flag liveness and how far the block can be translated; the second emits.
 * An instruction that is not ours is called out: the interpreter's slots of it run and come back. Where it is terminal the
 * code leaves to its slot.
 */
#include <stdlib.h>
#include <string.h>

#include "debug/disassemble.h"
#include "debug/perf_map.h"
#include "debug/trace.h"
#include "engines/translator/translation.h"
#include "x86/system.h"

/* ---- instructions ---- */

/*
 * A host register that the instruction does not name, of those that need no REX prefix and can be a base; the guest's
 * value comes back with give_back(). The instruction must not fault meanwhile: see classify_generic().
 */
static unsigned borrow(struct translation *tr, const struct item *item, unsigned *taken,
                       const struct host_memory *memory)
{
	static const uint8_t pool[] = {RDI, RSI, RBX, RDX, RCX, RAX};
	unsigned used = *taken | (memory ? 1u << memory->base : 0);
	bool high;

	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int gpr = operand_gpr(&item->operand[n], &high);

		if (gpr >= 0)
			used |= 1u << gpr;
	}
	for (unsigned n = 0; n < sizeof(pool); n++) {
		if (used >> pool[n] & 1)
			continue;
		emit_store(&tr->e, pool[n], xabs(&tr->t->borrowed[__builtin_popcount(*taken)]));
		*taken |= 1u << pool[n];
		return pool[n];
	}
	tr->failed = true;
	return RDI;
}

static void give_back(struct translation *tr, unsigned taken)
{
	static const uint8_t pool[] = {RDI, RSI, RBX, RDX, RCX, RAX};
	unsigned slot = 0;

	for (unsigned n = 0; n < sizeof(pool); n++)
		if (taken >> pool[n] & 1)
			emit_load(&tr->e, pool[n], xabs(&tr->t->borrowed[slot++]));
}

/* Does an instruction give this register a new value whatever the old one was? */
static bool only_written(const struct item *item, int gpr)
{
	const ZydisDecodedOperand *o = item->operand;
	bool high;

	for (unsigned n = 0; n < item->i.operand_count; n++)
		if (operand_gpr(&o[n], &high) == gpr && o[n].size < 32)
			return false;
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_SUB:
		return o[1].type == ZYDIS_OPERAND_TYPE_REGISTER && o[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		       o[0].reg.value == o[1].reg.value;
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_MOVD:
	case ZYDIS_MNEMONIC_MOVQ:
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VMOVQ:
	case ZYDIS_MNEMONIC_PMOVMSKB:
	case ZYDIS_MNEMONIC_VPMOVMSKB:
	case ZYDIS_MNEMONIC_RORX:
	case ZYDIS_MNEMONIC_SARX:
	case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_SHRX:
		for (unsigned n = 1; n < item->i.operand_count; n++)
			if (operand_gpr(&o[n], &high) == gpr)
				return false;
		return operand_gpr(&o[0], &high) == gpr;
	default:
		return false;
	}
}

/* Most instructions: they have no site. What the host may lack is not among them, nor LOCK. */
static bool never_faults(const struct item *item)
{
	if (item->form->class_needed || item->i.attributes & ZYDIS_ATTRIB_HAS_LOCK)
		return false;
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_ADC:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_SBB:
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_TEST:
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_NEG:
	case ZYDIS_MNEMONIC_NOT:
	case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_MUL:
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_BSWAP:
	case ZYDIS_MNEMONIC_CBW:
	case ZYDIS_MNEMONIC_CWDE:
	case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD:
	case ZYDIS_MNEMONIC_CDQ:
	case ZYDIS_MNEMONIC_CQO:
		return true;
	default:
		return item->i.meta.category == ZYDIS_CATEGORY_CMOV || item->i.meta.category == ZYDIS_CATEGORY_SETCC;
	}
}

static void translate_generic(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *memory = item->form->memory_size ? memory_operand(item) : NULL;
	struct host_memory where = {.base = S1, .index = NO_REGISTER};
	uint8_t map[16];
	unsigned scratch[2] = {S2, S1}, used = 0, available = memory ? 1 : 2, taken = 0;
	uint32_t written = 0;
	bool high;

	if (item->form->memory_size && !memory) {
		tr->failed = true;
		return;
	}
	if (memory)
		where = lower_operand(tr, item, memory, item->form->memory_size, item->form->writes_memory);
	for (unsigned n = 0; n < 16; n++)
		map[n] = (uint8_t)(n == RSP ? GUEST_RSP : n);
	/* Kept flags go back before scratch registers get their values. */
	const ZydisAccessedFlags *f = item->i.cpu_flags;
	bool changes = f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & ALL_FLAGS);
	if (item->read || (changes && (item->live_after & ~item->killed)))
		flags_want(tr);
	uint32_t assigned = 0;
	if (memory && has_high(item)) { /* no REX prefix beside AH-BH */
		unsigned base = borrow(tr, item, &taken, NULL);

		emit_lea_full(e, true, false, base, where.base, where.index, 0, where.disp);
		where = (struct host_memory){.base = base, .index = NO_REGISTER};
	}
	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int gpr = operand_gpr(&item->operand[n], &high);

		if (gpr < R9 || gpr > R11)
			continue;
		if (!(assigned >> gpr & 1)) {
			map[gpr] = (uint8_t)(used < available ? scratch[used++]
			                                      : borrow(tr, item, &taken, memory ? &where : NULL));
			assigned |= 1u << gpr;
			if (!only_written(item, gpr))
				emit_load(e, map[gpr], gpr_abs(tr, (unsigned)gpr));
		}
		if (item->operand[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			written |= 1u << gpr;
	}
	if (!never_faults(item))
		new_site(tr, item, item->form->memory_size, item->form->writes_memory);
	if (!rewrite_instruction(e, &tr->own_decoder, &item->i, item->operand, item_bytes(tr, item), map, &where))
		tr->failed = true;
	for (unsigned gpr = R9; gpr <= R11; gpr++)
		if (written >> gpr & 1)
			emit_store(e, map[gpr], gpr_abs(tr, gpr));
	give_back(tr, taken);
	if (changes) {
		tr->in_register = true;
		tr->in_memory = false;
	}
}

static uint32_t selector_abs(const struct translation *tr, const ZydisDecodedOperand *o)
{
	return xabs(&tr->t->vcpu->state.segment[ZydisRegisterGetId(o->reg.value)].selector);
}

static void translate_lea(struct translation *tr, const struct item *item)
{
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S1);
	bool wide = item->i.operand_width == 64 && item->i.address_width == 64;

	lower_effective(tr, item, &item->operand[1], to, wide);
	store_result(tr, guest, to);
}

static void emit_access(struct translation *tr, unsigned opcode, unsigned reg, const struct host_memory *where)
{
	emit_op_sum(&tr->e, !tr->code32, opcode, reg, where->base, where->index, where->disp);
}

static void translate_push(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *o = &item->operand[0];
	bool high;

	if (is_memory(o)) {
		struct host_memory from = lower_operand(tr, item, o, tr->stack_size, false);

		emit_access(tr, 0x8b, S1, &from);
		emit_store(e, S1, xabs(&tr->t->target));
		tr->delta_in_s1 = NO_GROUP;
	}
	struct host_memory where = lower_stack(tr, item, RSP, -(int)tr->stack_size, true);
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		emit_access(tr, 0xc7, 0, &where);
		emit_u32(e, (uint32_t)o->imm.value.u);
	} else if (is_memory(o)) {
		emit_load(e, S2, xabs(&tr->t->target));
		emit_access(tr, 0x89, S2, &where);
	} else if (is_segment(o)) {
		emit_load16(e, S2, selector_abs(tr, o));
		emit_access(tr, 0x89, S2, &where);
	} else {
		emit_access(tr, 0x89, value_of(tr, (unsigned)operand_gpr(o, &high), S2), &where);
	}
	move_stack(tr, GUEST_RSP, -(int)tr->stack_size);
}

/* The destination is checked before anything changes: a fault there leaves the stack pointer. */
static void translate_pop_memory(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	ZydisDecodedOperand o = item->operand[0];

	flags_keep(tr, item->live_before);
	address_in(tr, GUEST_RSP, 0);
	lower_check(tr, item, tr->stack_size, false);
	emit_op_base(e, !tr->code32, 0x8b, S1, S1, 0);
	emit_store(e, S1, xabs(&tr->t->target));
	if (o.mem.base == ZYDIS_REGISTER_ESP || o.mem.base == ZYDIS_REGISTER_RSP) {
		o.mem.disp.value = (o.mem.disp.has_displacement ? o.mem.disp.value : 0) + (int)tr->stack_size;
		o.mem.disp.has_displacement = true;
	}
	lower_memory(tr, item, &o, tr->stack_size, true);
	emit_load(e, S2, xabs(&tr->t->target));
	emit_op_base(e, !tr->code32, 0x89, S2, S1, 0);
	move_stack(tr, GUEST_RSP, (int)tr->stack_size);
}

static void translate_pop(struct translation *tr, const struct item *item)
{
	if (is_memory(&item->operand[0])) {
		translate_pop_memory(tr, item);
		return;
	}
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S2);
	struct host_memory where = lower_stack(tr, item, RSP, 0, false);

	emit_access(tr, 0x8b, to, &where);
	if (guest != RSP)
		move_stack(tr, GUEST_RSP, (int)tr->stack_size);
	store_result(tr, guest, to);
}

static void translate_leave(struct translation *tr, const struct item *item)
{
	struct host_memory where = lower_stack(tr, item, RBP, 0, false);

	move_stack(tr, RBP, (int)tr->stack_size);
	emit_access(tr, 0x8b, RBP, &where);
}

/*
 * --stats: how many instructions a part of the block does, the one that `n` begins. One that ends with a fallback is
 * counted by the interpreter, whole.
 */
static void emit_count_executed(struct translation *tr, unsigned n)
{
	uint32_t abs = xabs(&tr->t->counters.executed);
	unsigned end = n;

	while (end < tr->count && tr->item[end].part == tr->item[n].part)
		end++;
	const struct item *last = &tr->item[end - 1];

	if (last->kind == KIND_FALLBACK && ends_block(last))
		return;
	emit_load(&tr->e, S2, abs);
	emit_lea(&tr->e, S2, S2, (int32_t)(end - n));
	emit_store(&tr->e, S2, abs);
}

/* Will flags that are live at the entry be kept in memory before the first instruction that wants them? */
static bool kept_first(const struct translation *tr)
{
	uint32_t live = tr->item[0].live_before;

	for (unsigned n = 0; n < tr->count && live; n++) {
		const struct item *item = &tr->item[n];

		if (item->read & live || item->kind == KIND_JMP)
			return false;
		if (item->kind != KIND_NOP && item->kind != KIND_PREFETCH && item->kind != KIND_LEA &&
		    item->kind != KIND_JCC && (item->kind != KIND_GENERIC || item->form->memory_size))
			return true;
		live &= ~item->killed;
	}
	return false;
}

/* Falls into what follows it. */
static void emit_entry_i(struct translation *tr, struct xblock *xblock)
{
	xblock->entry_i = tr->e.at;
	if (tr->floating) {
		emit_lea(&tr->e, S1, S1, -(int32_t)tr->rip);
		emit_store(&tr->e, S1, xabs(&tr->t->code_page));
	}
}

static void emit_entries(struct translation *tr, struct xblock *xblock)
{
	struct emitter *e = &tr->e;
	uint32_t live_in = tr->item[0].live_before;

	tr->now = 0;
	tr->in_register = live_in != 0;
	tr->in_memory = false;
	if (kept_first(tr)) {
		xblock->entry_a = xblock->entry_av = e->at;
		flags_keep(tr, live_in);
		tr->in_register = false;
		uint8_t *past = tr->floating ? emit_jump(e) : NULL;
		emit_entry_i(tr, xblock);
		if (past)
			emit_fix(e, past);
		xblock->entry_b = e->at;
		emit_checks(tr);
		return;
	}
	emit_entry_i(tr, xblock);
	xblock->entry_b = e->at;
	if (live_in)
		emit_flags_restore(e, tr->t);
	xblock->entry_a = e->at;
	if (live_in)
		emit_checks_keeping_flags(tr);
	else
		emit_checks(tr);
	xblock->entry_av = e->at;
}

static void second_pass(struct translation *tr, struct xblock *xblock)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;

	xblock->flagged = tr->item[0].live_before;
	emit_entries(tr, xblock);
	emit_across_check(tr);
	emit_void_streams(tr);
	xblock->entry_loop = e->at;
	emit_count_down(tr);
	emit_crossing_check(tr);
	for (unsigned n = 0; n < tr->count; n++) {
		struct item *item = &tr->item[n];

		tr->now = item->part;
		tr->caller = item->caller;
		if (t->count_executed && (n == 0 || item[-1].part != item->part))
			emit_count_executed(tr, n);
		if (tr->pointers) /* what follows may use S1 */
			tr->delta_in_s1 = NO_GROUP;
		if (item->kind == KIND_FALLBACK || item->kind >= KIND_STRING)
			x87_commit(tr);
		else
			x87_keep_operand(tr, item);
		groups_before(tr, item);
		switch (item->kind) {
		case KIND_FALLBACK:
			flags_keep(tr, ALL_FLAGS);
			emit_increment_abs(e, xabs(&t->counters.fallback[item->i.mnemonic]));
			tr->in_register = false;
			if (item->slots)
				call_out(tr, item);
			else
				exit_to_slot(tr, item->slot);
			break;
		case KIND_NOP:
			break;
		case KIND_PREFETCH:
			translate_prefetch(tr, item);
			break;
		case KIND_GENERIC:
			translate_generic(tr, item);
			x87_executed(tr, item);
			break;
		case KIND_LEA:
			translate_lea(tr, item);
			break;
		case KIND_PUSH:
			translate_push(tr, item);
			break;
		case KIND_POP:
			translate_pop(tr, item);
			break;
		case KIND_LEAVE:
			translate_leave(tr, item);
			break;
		case KIND_STRING:
			translate_string(tr, item);
			break;
		case KIND_BIT_STRING:
			translate_bit_string(tr, item);
			break;
		case KIND_SEGMENT_READ:
			translate_segment_read(tr, item);
			break;
		case KIND_DIRECTION:
			translate_direction(tr, item);
			break;
		case KIND_XLAT:
			translate_xlat(tr, item);
			break;
		case KIND_SYSTEM:
			translate_system(tr, item);
			break;
		default:
			if (item->on && item->kind != KIND_JCC)
				translate_joined(tr, item);
			else
				translate_terminal(tr, item);
			break;
		}
		item->end = e->at;
		item->end_in_register = tr->in_register;
	}
	const struct item *last = &tr->item[tr->count - 1];
	tr->shadow = false;
	if (!ends_block(last)) {
		uint64_t next = tr->rip + (uint64_t)(int64_t)last->offset + last->i.length;

		x87_commit(tr);
		exit_direct(tr, next - 1, next & tr->rip_mask);
	}
	const uint8_t *end = e->at;
	for (unsigned n = 0; n < tr->pending_count; n++)
		emit_pending(tr, n, xblock);
	tr->aside = (uint32_t)(e->at - end);
}

static const char *why_ended(const struct translation *tr, char text[64])
{
	const struct item *last = &tr->item[tr->count - 1];
	unsigned end = ((unsigned)tr->rip + (unsigned)last->offset) % MEMORY_PAGE_SIZE + last->i.length;

	if (last->kind == KIND_FALLBACK && ends_block(last))
		snprintf(text, 64, "%s is the interpreter's", ZydisMnemonicGetString(last->i.mnemonic));
	else if (ends_block(last))
		snprintf(text, 64, "control transfer");
	else if (end >= 4096 - ZYDIS_MAX_INSTRUCTION_LENGTH)
		snprintf(text, 64, "end of the page");
	else
		snprintf(text, 64, "%u instructions are enough", tr->count);
	return text;
}

static void trace_host_code(const struct translator *t, const struct xblock *xblock)
{
	const uint8_t *end = xblock->code + xblock->size;
	struct vcpu *vcpu = t->vcpu;
	char text[128];

	for (const uint8_t *at = xblock->code; at < end;) {
		uint64_t host = (uint64_t)(uintptr_t)code_arena_executable(&t->arena, at);
		unsigned length = disassemble(at, (size_t)(end - at), 64, host, text, sizeof(text));

		trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "    %s%012llx %s",
		      at == xblock->entry_a ? "A " : "  ", (unsigned long long)host, text);
		at += length;
	}
}

static unsigned guest_size(const struct translation *tr)
{
	unsigned size = 0;

	for (unsigned n = 0; n < tr->count; n++)
		size += tr->item[n].i.length;
	return size;
}

/* --trace translate: guest code, why it ended, then host code. */
static void trace_translation(struct translation *tr, const struct xblock *xblock)
{
	struct vcpu *vcpu = tr->t->vcpu;
	uint64_t rip = vcpu->state.rip;
	char text[128];

	if (!trace_on(vcpu->trace, TRACE_TRANSLATE))
		return;
	trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "block %llu at %016llx%s%s%s, view %u, flags in %#x",
	      (unsigned long long)tr->t->counters.blocks, (unsigned long long)rip, tr->floating ? ", floating" : "",
	      tr->block->hot ? ", hot" : "", tr->block->joined ? ", again" : "", tr->view, tr->item[0].live_before);
	for (unsigned n = 0; n < tr->count; n++) {
		const struct item *item = &tr->item[n];

		disassemble(item_bytes(tr, item), item->i.length, tr->code32 ? 32 : 64,
		            rip + (uint64_t)(int64_t)item->offset, text, sizeof(text));
		trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "  %016llx %s%s",
		      (unsigned long long)(rip + (uint64_t)(int64_t)item->offset), text,
		      item->kind == KIND_FALLBACK ? "  (left to the interpreter)" : "");
	}
	trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "  ended: %s; %u bytes of guest code, %u of host code",
	      why_ended(tr, text), guest_size(tr), xblock->size);
	trace_host_code(tr->t, xblock);
}

void trace_taken(const struct translator *t, const struct xblock *xblock)
{
	struct vcpu *vcpu = t->vcpu;

	if (!trace_on(vcpu->trace, TRACE_TRANSLATE))
		return;
	trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index,
	      "block at %016llx%s, view %u: taken from another processor; %u bytes of guest code, %u of host code",
	      (unsigned long long)vcpu->state.rip, xblock->floating ? ", floating" : "", xblock->view,
	      xblock->block->length, xblock->size);
	trace_host_code(t, xblock);
}

static void trace_refusal(const struct translation *tr)
{
	struct vcpu *vcpu = tr->t->vcpu;
	unsigned mnemonic = translator_refused_mnemonic(tr->t);

	trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "block at %016llx, view %u: left to the interpreter (%s)",
	      (unsigned long long)tr->rip, tr->view, mnemonic ? ZydisMnemonicGetString((ZydisMnemonic)mnemonic) : "-");
}

unsigned translator_refused_mnemonic(const struct translator *t)
{
	const struct translation *tr = t->scratch;

	return tr && tr->count ? tr->item[0].i.mnemonic : 0;
}

struct xblock *translate_block(struct translator *t, struct block *block, bool *full)
{
	struct translation *tr = t->scratch;
	const struct translator_cursors before = cursors_of(t);

	*full = false;
	if (!tr) {
		tr = t->scratch = malloc(sizeof(*tr));
		if (!tr)
			return NULL;
		tr->decoders_for = NULL;
	}
	if (tr->decoders_for != t->vcpu->model) {
		guest_decoder_init(&tr->own_decoder, MODE_64, t->vcpu->model);
		guest_decoder_init(&tr->decoder32, MODE_32, t->vcpu->model);
		memset(tr->found, 0, sizeof(tr->found));
		tr->decoders_for = t->vcpu->model;
	}
	tr->t = t;
	tr->block = block;
	tr->count = tr->pending_count = tr->ahead_count = 0;
	tr->failed = tr->exhausted = tr->x87 = tr->shadow = tr->rooted = tr->calls = tr->head_known = false;
	tr->pair = tr->pairs = 0;
	tr->across_count = tr->expect_count = 0;
	tr->across_room = NULL;
	tr->caller = NO_CALLER;
	tr->vector = VECTOR_NONE;
	tr->pointers = NULL;
	tr->view = t->vcpu->mmu.view;
	tr->code32 = block->mode != MODE_64;
	tr->loose = runtime_floats(t, block);
	tr->floating = tr->loose && !block->rooted;
	tr->rip = tr->floating ? t->vcpu->state.rip & 0xfff : t->vcpu->state.rip;
	tr->code_view = tr->view + (tr->code32 ? MMU_VIEWS : 0);
	tr->decoder = tr->code32 ? &tr->decoder32 : &tr->own_decoder;
	tr->rip_mask = tr->code32 ? UINT32_MAX : UINT64_MAX;
	tr->stack_size = tr->code32 ? 4 : 8;

	if (!first_pass(tr)) {
		trace_refusal(tr);
		return NULL;
	}
	struct xblock *xblock = regions_new_block(t);
	uint8_t *code = t->arena.write + ((t->arena.used + 15) & ~(size_t)15);
	uint8_t *end = t->arena.write + t->region[t->region_now].code_end;
	if (!xblock) {
		*full = true;
		return NULL;
	}
	if ((tr->across_count || tr->expect_count || tr->calls || tr->parts > XPARTS) &&
	    !(tr->across_room = across_new(t))) {
		block->strayed = STRAYED_MAX; /* it does without */
		cursors_set(t, &before);
		return translate_block(t, block, full);
	}
	*xblock = (struct xblock){.rip = tr->rip,
	                          .block = block,
	                          .generation = block->generation,
	                          .view = (uint8_t)tr->view,
	                          .code_view = (uint8_t)tr->code_view,
	                          .vector = tr->vector,
	                          .x87 = tr->x87,
	                          .floating = tr->floating,
	                          .loose = tr->loose};
	if (block->crosses) {
		xblock->second_now = &t->vcpu->memory->code_generation[block->second_page >> MEMORY_PAGE_SHIFT];
		xblock->second_generation = block->second_generation;
	}
	tr->e = (struct emitter){.at = code, .end = code + CODE_MAX < end ? code + CODE_MAX : end};
	for (unsigned n = 1; n < tr->parts && !tr->across_room; n++) {
		xblock->more[n - 1] = tr->part[n].block;
		xblock->more_base[n - 1] = (uint16_t)tr->part[n].base;
	}
	xblock->more_count = (uint8_t)(tr->parts - 1);
	if (t->depot) {
		tr->relocations.start = code;
		tr->relocations.count = 0;
		tr->relocations.incomplete = false;
		tr->e.relocations = &tr->relocations;
	}
	find_groups(tr);
	tr->xblock = xblock;
	second_pass(tr, xblock);
	xblock->code = code;
	xblock->size = (uint32_t)(tr->e.at - code);
	if (tr->failed || tr->e.full) {
		/* In an empty region there is no more room than this. */
		cursors_set(t, &before);
		across_free(t, tr->across_room);
		*full = (tr->exhausted || (tr->e.full && tr->e.end == end)) && !regions_empty(t);
		t->counters.failed += !*full;
		if (!*full && is_through_calls(tr) && tr->parts > 1) { /* it does without */
			block->strayed = STRAYED_MAX;
			return translate_block(t, block, full);
		}
		if (tr->rooted && !*full && !block->rooted) { /* for this address */
			block->rooted = true;
			return translate_block(t, block, full);
		}
		return NULL;
	}
	t->arena.used = (size_t)(tr->e.at - t->arena.write);
	across_begin(tr, xblock);
	if (t->depot)
		shared_give(tr, &before);
	if (t->plant)
		t->plant(code, xblock->size);
	trace_translation(tr, xblock);
	if (t->perf_map)
		perf_map_block(t->perf_map, code_arena_executable(&t->arena, code), (size_t)(tr->e.at - code),
		               t->vcpu->state.rip);
	t->counters.blocks++;
	t->counters.floating += tr->floating;
	t->counters.extended += tr->parts > 1;
	t->counters.through_calls += tr->calls;
	t->counters.bytes += (uint64_t)(tr->e.at - code);
	t->counters.bytes_aside += tr->aside;
	t->counters.instructions += tr->count;
	for (unsigned n = 0; n < tr->count; n++)
		t->counters.fallbacks += tr->item[n].kind == KIND_FALLBACK;
	return xblock;
}