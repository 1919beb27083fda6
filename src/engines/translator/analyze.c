/*
 * First pass over a block: which instructions are translated and how, and which flags are live where.
 */
#include <string.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"

/* ---- the first pass ---- */

bool is_memory(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY;
}

bool is_segment(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

/* Whether an explicit memory operand is one that lower_address() can do. */
bool address_possible(const struct item *item)
{
	for (unsigned n = 0; n < item->i.operand_count_visible; n++) {
		const ZydisDecodedOperand *o = &item->operand[n];

		if (is_memory(o) && (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB || item->i.address_width == 16 ||
		                     (!(item->i.attributes & ZYDIS_ATTRIB_HAS_MODRM) && !is_direct_move(&item->i))))
			return false;
		/* Zydis 4.0 reports R13D for SIB base 5 with mod 0 and REX.B behind 67h: there is no base (SDM 2A table 2-3). */
		if (is_memory(o) && item->i.raw.modrm.mod == 0 && item->i.raw.modrm.rm == 4 &&
		    item->i.raw.sib.base == 5 && o->mem.base != ZYDIS_REGISTER_NONE)
			return false;
	}
	return true;
}

static enum kind classify_push_pop(const struct translation *tr, const struct item *item, enum kind kind)
{
	const ZydisDecodedOperand *o = &item->operand[0];
	bool high;

	if (item->i.operand_width != tr->stack_size * 8)
		return KIND_FALLBACK;
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER)
		return operand_gpr(o, &high) >= 0 || (kind == KIND_PUSH && is_segment(o)) ? kind : KIND_FALLBACK;
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return kind;
	if (!address_possible(item) || (kind == KIND_POP && tr->code32 && !mode32_possible(item)))
		return KIND_FALLBACK;
	/* POP's address counts with the stack pointer behind it: the displacement grows. */
	return kind == KIND_PUSH || tr->code32 || o->mem.disp.value <= INT32_MAX - 8 ? kind : KIND_FALLBACK;
}

static enum kind classify_branch(const struct translation *tr, const struct item *item, enum kind direct,
                                 enum kind indirect)
{
	const ZydisDecodedOperand *o = &item->operand[0];

	/* With 66h AMD processors truncate RIP, but behind REX.W (calls of __tls_get_addr are padded with both). */
	if (item->i.operand_width != tr->stack_size * 8 || item->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
	    ((item->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) && !item->i.raw.rex.W))
		return KIND_FALLBACK;
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return direct;
	return address_possible(item) ? indirect : KIND_FALLBACK;
}

/* How many of R9-R11 are operands that need a scratch register, memory addresses apart. */
unsigned scratch_needed(const struct item *item)
{
	unsigned seen = 0;
	bool high;

	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int gpr = operand_gpr(&item->operand[n], &high);

		if (gpr >= R9 && gpr <= R11)
			seen |= 1u << gpr;
	}
	return (unsigned)__builtin_popcount(seen);
}

/* Is AH, CH, DH or BH in an operand field? */
bool has_high(const struct item *item)
{
	bool high;

	for (unsigned n = 0; n < item->i.operand_count_visible; n++)
		if (operand_gpr(&item->operand[n], &high) >= 0 && high)
			return true;
	return false;
}

static enum kind classify_anew(struct translation *tr, struct item *item, const uint8_t *bytes)
{
	struct interpreter *interpreter = interpreter_of(tr->t->vcpu);

	if (native_form_describe(interpreter->native, &item->i, item->operand, bytes, &item->own_form))
		item->form = &item->own_form;
	if (!item->form || !address_possible(item))
		return classify_more(item);
	if (item->form->special && !item->form->masked)
		return KIND_FALLBACK;
	if (tr->code32 && !mode32_possible(item))
		return KIND_FALLBACK;
	if (item->form->bit_string)
		return KIND_BIT_STRING;
	/* With F3 the host's would be LZCNT and TZCNT, which the guest's CPU does not have then. */
	if ((item->i.mnemonic == ZYDIS_MNEMONIC_BSR || item->i.mnemonic == ZYDIS_MNEMONIC_BSF) &&
	    (item->i.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)))
		return KIND_FALLBACK;
	if (item->i.mnemonic == ZYDIS_MNEMONIC_FNINIT || !x87_possible(item)) /* FNINIT clears the pointers */
		return KIND_FALLBACK;
	/* More registers than there are scratch ones: only where no host fault can come meanwhile. */
	bool high = has_high(item) && item->form->memory_size;
	if ((scratch_needed(item) > (item->form->memory_size ? 1 : 2) || high) &&
	    ((item->form->class_needed & ~NATIVE_VEX) || item->i.mnemonic == ZYDIS_MNEMONIC_DIV ||
	     item->i.mnemonic == ZYDIS_MNEMONIC_IDIV))
		return KIND_FALLBACK;
	/* Can it be encoded? Tried with registers that need extension bits wherever they may come. */
	static const uint8_t map[16] = {0, 1, 2, 3, GUEST_RSP, 5, 6, 7, 8, S2, S2, S2, 12, 13, 14, 15};
	uint8_t scrap[32];
	struct emitter e = {.at = scrap, .end = scrap + sizeof(scrap)};
	return rewrite_instruction(&e, &tr->own_decoder, &item->i, item->operand, bytes, map,
	                           &(struct host_memory){.base = high ? RDI : S1, .index = NO_REGISTER})
	           ? KIND_GENERIC
	           : KIND_FALLBACK;
}

static void clear_bytes(uint64_t key[2], unsigned offset, unsigned bits)
{
	memset((uint8_t *)key + offset, 0, bits / 8);
}

static struct found *find_found(struct translation *tr, const struct item *item, const uint8_t *bytes, uint64_t key[2])
{
	const ZydisDecodedInstruction *i = &item->i;

	key[0] = key[1] = 0;
	memcpy(key, bytes, i->length);
	if (i->raw.disp.size)
		clear_bytes(key, i->raw.disp.offset, i->raw.disp.size);
	if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
	    i->raw.imm[0].size)
		clear_bytes(key, i->raw.imm[0].offset, i->raw.imm[0].size);
	key[1] |= (uint64_t)(i->length | (tr->code32 ? 0x10 : 0)) << 56;
	return &tr->found[(key[0] ^ key[1] ^ key[0] >> 29) * 0x9e3779b97f4a7c15 >> (64 - FOUND_BITS)];
}

static enum kind classify_generic(struct translation *tr, struct item *item, const uint8_t *bytes)
{
	uint64_t key[2];
	struct found *found = find_found(tr, item, bytes, key);

	if (found->key[0] == key[0] && found->key[1] == key[1]) {
		item->own_form = found->form;
		item->form = found->has_form ? &item->own_form : NULL;
		return (enum kind)found->kind;
	}
	enum kind kind = classify_anew(tr, item, bytes);
	*found = (struct found){.has_form = item->form, .kind = (uint8_t)kind};
	memcpy(found->key, key, sizeof(key));
	if (item->form)
		found->form = item->own_form;
	return kind;
}

static bool is_jcc(ZydisMnemonic m)
{
	return m == ZYDIS_MNEMONIC_JB || m == ZYDIS_MNEMONIC_JBE || m == ZYDIS_MNEMONIC_JL || m == ZYDIS_MNEMONIC_JLE ||
	       m == ZYDIS_MNEMONIC_JNB || m == ZYDIS_MNEMONIC_JNBE || m == ZYDIS_MNEMONIC_JNL ||
	       m == ZYDIS_MNEMONIC_JNLE || m == ZYDIS_MNEMONIC_JNO || m == ZYDIS_MNEMONIC_JNP ||
	       m == ZYDIS_MNEMONIC_JNS || m == ZYDIS_MNEMONIC_JNZ || m == ZYDIS_MNEMONIC_JO || m == ZYDIS_MNEMONIC_JP ||
	       m == ZYDIS_MNEMONIC_JS || m == ZYDIS_MNEMONIC_JZ;
}

static enum kind classify(struct translation *tr, struct item *item, const uint8_t *bytes)
{
	ZydisMnemonic m = item->i.mnemonic;

	if (string_possible(item))
		return KIND_STRING;
	enum kind kind = classify_system(tr, item);
	if (kind != KIND_GENERIC)
		return kind;
	if (is_jcc(m))
		return classify_branch(tr, item, KIND_JCC, KIND_FALLBACK);
	switch (m) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR64:
		return KIND_NOP;
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHW:
		return prefetch_possible(item) ? KIND_PREFETCH : KIND_NOP;
	case ZYDIS_MNEMONIC_LEA:
		return item->i.operand_width >= 32 && address_possible(item) ? KIND_LEA : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_PUSH:
		return classify_push_pop(tr, item, KIND_PUSH);
	case ZYDIS_MNEMONIC_POP:
		return classify_push_pop(tr, item, KIND_POP);
	case ZYDIS_MNEMONIC_LEAVE:
		return item->i.operand_width == tr->stack_size * 8 ? KIND_LEAVE : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_JMP:
		return classify_branch(tr, item, KIND_JMP, KIND_JMP_INDIRECT);
	case ZYDIS_MNEMONIC_CALL:
		return classify_branch(tr, item, KIND_CALL, KIND_CALL_INDIRECT);
	case ZYDIS_MNEMONIC_RET:
		/* With 66h AMD processors pop 16 bits. */
		if (item->i.operand_width != tr->stack_size * 8 || item->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
		    (item->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
			return KIND_FALLBACK;
		return KIND_RET;
	default:
		return classify_generic(tr, item, bytes);
	}
}

bool ends_block(const struct item *item)
{
	return item->kind >= KIND_JMP || (item->kind == KIND_FALLBACK && !item->slots);
}

/* Which flags an instruction reads, and which it surely gives a new value. */
static void find_flags(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operand, uint32_t *read,
                       uint32_t *killed)
{
	const ZydisAccessedFlags *f = i->cpu_flags;

	*read = *killed = 0;
	if (!f)
		return;
	*read = f->tested & ALL_FLAGS;
	*killed = (f->modified | f->set_0 | f->set_1 | f->undefined) & ALL_FLAGS;
	/* A count of 0 changes no flag. */
	if (i->meta.category == ZYDIS_CATEGORY_SHIFT || i->meta.category == ZYDIS_CATEGORY_ROTATE) {
		const ZydisDecodedOperand *count = NULL;

		for (unsigned n = 0; n < i->operand_count; n++)
			if (operand[n].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
				count = &operand[n];
		if (i->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
		    (!count || !(count->imm.value.u & (i->operand_width == 64 ? 63 : 31))))
			*killed = 0;
	}
	if (i->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		*killed = 0;
}

/* The interpreter's first slot of instruction `number`: `slot`, or one behind it. */
static const struct insn *find_slot(const struct insn *slot, unsigned number)
{
	while (slot->number != number)
		slot++;
	return slot;
}

/* How many slots an instruction has that is not terminal. */
static uint8_t count_slots(const struct block *block, const struct item *item, unsigned number)
{
	const struct insn *end = (const struct insn *)block->bytes, *slot = item->slot;
	bool last = number + 1u == block->count;

	if (last && !block->open)
		return 0;
	while (slot < end && slot->number == number)
		slot++;
	unsigned count = (unsigned)(slot - item->slot) - last; /* the block's end has the last one's number */
	return count <= CALL_OUT_MAX ? (uint8_t)count : 0;
}

uint64_t branch_target(const struct translation *tr, const struct item *item)
{
	return (tr->rip + (uint64_t)(int64_t)item->offset + item->i.length + item->operand[0].imm.value.u) &
	       tr->rip_mask;
}

bool in_page(const struct translation *tr, uint64_t target)
{
	return !((target ^ tr->rip) & ~0xfffull);
}

/* Looks at code from `target` on: see flags_wanted(). `settle` counts up to the last flag that is given a value. */
static uint32_t look_ahead(struct translation *tr, uint64_t target, uint8_t *settle, uint32_t *seen)
{
	const struct block *there = calls_page_block(tr, target);
	const uint8_t *page =
	    there ? memory_pointer(tr->t->vcpu->memory, there->physical & ~0xfffull, MEMORY_PAGE_SIZE) : NULL;
	unsigned at = target & 0xfff;
	uint32_t wanted = 0, settled = 0;

	*settle = 0;
	*seen = 0;
	/* Where no link leads (control.c), flags are whole. */
	if (!page || (tr->loose && (!tr->floating || !in_page(tr, target))))
		return ALL_FLAGS;
	for (uint8_t n = 0; n < 12; n++) {
		ZydisDecodedInstruction i;
		ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
		uint32_t read, killed;

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(tr->decoder, page + at, MEMORY_PAGE_SIZE - at, &i, operand)))
			return ALL_FLAGS;
		find_flags(&i, operand, &read, &killed);
		wanted |= read & ~settled;
		*seen = wanted;
		if (killed & ~(settled | wanted))
			*settle = n + 1;
		settled |= killed;
		if ((settled | wanted) == ALL_FLAGS)
			return wanted;
		switch (i.meta.category) {
		case ZYDIS_CATEGORY_BINARY:
		case ZYDIS_CATEGORY_LOGICAL:
		case ZYDIS_CATEGORY_DATAXFER:
		case ZYDIS_CATEGORY_MISC:
		case ZYDIS_CATEGORY_PUSH:
		case ZYDIS_CATEGORY_POP:
		case ZYDIS_CATEGORY_BITBYTE:
		case ZYDIS_CATEGORY_SHIFT:
		case ZYDIS_CATEGORY_CMOV:
		case ZYDIS_CATEGORY_SETCC:
		case ZYDIS_CATEGORY_NOP:
		case ZYDIS_CATEGORY_WIDENOP:
		case ZYDIS_CATEGORY_SSE:
		case ZYDIS_CATEGORY_AVX:
		case ZYDIS_CATEGORY_AVX2:
		case ZYDIS_CATEGORY_AVX512:
		case ZYDIS_CATEGORY_BLEND:
		case ZYDIS_CATEGORY_BROADCAST:
		case ZYDIS_CATEGORY_CONVERT:
		case ZYDIS_CATEGORY_FCMOV:
		case ZYDIS_CATEGORY_KMASK:
		case ZYDIS_CATEGORY_LOGICAL_FP:
		case ZYDIS_CATEGORY_MMX:
		case ZYDIS_CATEGORY_VFMA:
		case ZYDIS_CATEGORY_X87_ALU:
			break;
		case ZYDIS_CATEGORY_UNCOND_BR:
			if (operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
				return wanted | (ALL_FLAGS & ~settled);
			uint64_t was = target;

			target = (target & ~0xfffull) + at + i.length + operand[0].imm.value.u;
			if ((was ^ target) & ~0xfffull)
				return wanted | (ALL_FLAGS & ~settled);
			at = target & 0xfff;
			continue;
		default:
			return wanted | (ALL_FLAGS & ~settled);
		}
		at += i.length;
		if (at >= MEMORY_PAGE_SIZE)
			break;
	}
	return wanted | (ALL_FLAGS & ~settled);
}

static unsigned ahead_of(struct translation *tr, uint64_t target)
{
	unsigned n = 0;

	while (n < tr->ahead_count && tr->ahead[n].target != target)
		n++;
	if (n == tr->ahead_count) {
		n = tr->ahead_count < AHEAD_MAX ? tr->ahead_count++ : 0;
		tr->ahead[n].target = target;
		tr->ahead[n].wanted = look_ahead(tr, target, &tr->ahead[n].settle, &tr->ahead[n].read);
	}
	return n;
}

uint32_t flags_wanted(struct translation *tr, uint64_t target, uint8_t *settle)
{
	if (tr->head_known && target == tr->rip) {
		if (settle)
			*settle = tr->head_settle;
		return tr->head_live;
	}
	unsigned n = ahead_of(tr, target);

	if (settle)
		*settle = tr->ahead[n].settle;
	return tr->ahead[n].wanted;
}

uint32_t flags_read(struct translation *tr, uint64_t target)
{
	if (tr->head_known && target == tr->rip)
		return tr->head_live;
	return tr->ahead[ahead_of(tr, target)].read;
}

static uint8_t lesser(uint8_t a, uint8_t b)
{
	return a < b ? a : b;
}

/* From behind item `n` on. */
static uint8_t settle_from(const struct translation *tr, int n, uint32_t dead)
{
	uint8_t count = 0;

	while (dead && ++n < (int)tr->count) {
		const struct item *item = &tr->item[n];

		dead &= ~item->killed;
		count++;
		/* Not past what must see an interrupt first. */
		if (item->on && item->kind != KIND_JMP && item->kind != KIND_CALL && !item->sure)
			return count;
	}
	return dead ? count + tr->settle : count;
}

uint8_t settle_after(const struct translation *tr, const struct item *item)
{
	return settle_from(tr, (int)(item - tr->item), ALL_FLAGS & ~item->live_after);
}

static uint32_t flags_wanted_after(struct translation *tr, const struct item *last, uint8_t *settle)
{
	uint64_t next = (tr->rip + (uint64_t)(int64_t)last->offset + last->i.length) & tr->rip_mask;
	uint8_t other;
	uint32_t wanted;

	*settle = 0;
	switch (last->kind) {
	case KIND_JMP:
	case KIND_CALL:
		return flags_wanted(tr, branch_target(tr, last), settle);
	case KIND_JCC:
		wanted = flags_wanted(tr, branch_target(tr, last), settle) | flags_wanted(tr, next, &other);
		*settle = lesser(*settle, other); /* not past what must see an interrupt first */
		return wanted;
	case KIND_FALLBACK:
		if (last->slots)
			return flags_wanted(tr, next, settle);
		return ALL_FLAGS;
	case KIND_SYSTEM_END:
		if (last->i.mnemonic == ZYDIS_MNEMONIC_STI)
			return flags_wanted(tr, next, settle);
		return ALL_FLAGS;
	case KIND_JMP_INDIRECT:
	case KIND_CALL_INDIRECT:
	case KIND_RET:
		return ALL_FLAGS;
	default:
		return flags_wanted(tr, next, settle);
	}
}

/* Vector registers or MXCSR. */
static uint8_t vector_need(const struct item *item)
{
	unsigned class = item->form->class_needed;

	return class & NATIVE_AVX512 ? VECTOR_AVX512
	       : class & NATIVE_AVX  ? VECTOR_AVX
	       : class & NATIVE_SSE  ? VECTOR_SSE
	                             : VECTOR_NONE;
}

/* For lockstep: gives the same result when it is done again. */
static bool repeatable(const struct item *item)
{
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
	case ZYDIS_MNEMONIC_RDPID:
		return false;
	default:
		return true;
	}
}

uint64_t part_rip(const struct translation *tr, unsigned part)
{
	return tr->rip + (uint64_t)(int64_t)tr->part[part].base;
}

const uint8_t *item_bytes(const struct translation *tr, const struct item *item)
{
	const struct part *part = &tr->part[item->part];

	return part->block->bytes + (item->offset - part->base);
}

/* The block that `link` led to last, if it is as hot as the one that leads there and has no translation yet. */
struct block *hot_block(struct translation *tr, const struct link *link, uint64_t target)
{
	const struct vcpu *vcpu = tr->t->vcpu;
	uint64_t page = tr->floating ? vcpu->state.rip & ~0xfffull : 0;
	struct block *block = link_block(vcpu, link, page + target);

	if (!block && tr->block->joined)
		block = calls_known_block(tr, page + target);
	if (!block || block->mode != tr->block->mode || block->crosses || block->rooted ||
	    tr->count + block->count > (is_through_calls(tr) ? BLOCK_MAX : BLOCK_PLAIN))
		return NULL;
	if (in_page(tr, target) ? block->physical != ((tr->block->physical & ~0xfffull) | (target & 0xfff)) ||
	                              block->generation != tr->block->generation
	                        : !calls_cover(tr, block, target))
		return NULL;
	return translator_is_hot(tr->t, block, tr->block->extended || tr->block->hot) ? block : NULL;
}

static bool leads_on(const struct translation *tr, uint64_t from, uint64_t target)
{
	return !((from ^ target) & ~0xfffull) && target > from && (!tr->loose || tr->floating);
}

/*
 * Where a translation goes on behind its last part: what follows a branch, or its target, is made part of it. So
 * accesses share checks, flags stay where they are, and no jump is taken. Forward and in the page only: what leads back
 * has to look for interrupts, and nobody needs to know more of the page than that it was written.
 */
static bool find_part(struct translation *tr)
{
	struct item *last = &tr->item[tr->count - 1];
	uint64_t from = tr->rip + (uint64_t)(int64_t)last->offset, target, next = from + last->i.length;
	struct block *block = tr->part[last->part].block, *taken, *other = NULL;

	if (tr->parts == (is_through_calls(tr) ? XPARTS_CALLS : XPARTS) || tr->block->crosses)
		return false;
	if (last->kind != KIND_JCC && last->kind != KIND_JMP)
		return calls_find_part(tr);
	if (last->kind == KIND_JMP && calls_find_part(tr))
		return true;
	target = branch_target(tr, last);
	if (target == next)
		return false;
	/* What leads back or away, but never did yet, is aside. */
	if (leads_on(tr, from, target))
		taken = hot_block(tr, &block->link[TAKEN], target);
	else if (last->kind == KIND_JCC && !block->link[TAKEN].block)
		taken = NULL;
	else
		return false;
	if (last->kind == KIND_JCC && leads_on(tr, from, next))
		other = hot_block(tr, &block->link[NOT_TAKEN], next);
	enum guess guess = last->kind == KIND_JCC ? calls_guess(tr, last) : GUESS_NONE;
	if (guess == GUESS_TAKEN && taken)
		other = NULL;
	if (other && (!taken || guess == GUESS_NOT_TAKEN || other->insn[0].immediate >= taken->insn[0].immediate)) {
		taken = other;
		target = next;
	}
	if (!taken)
		return false;
	tr->part[tr->parts++] = (struct part){.block = taken, .base = (int32_t)(target - tr->rip)};
	last->on = true;
	return true;
}

/* Decodes a part. False: it cannot be done. */
static bool add_part(struct translation *tr, unsigned part, bool *useful)
{
	const struct block *block = tr->part[part].block;
	const struct insn *slot = &block->insn[1]; /* behind the heat slot */
	unsigned offset = 0;

	for (unsigned n = 0; n < block->count && tr->count < BLOCK_MAX; n++) {
		struct item *item = &tr->item[tr->count];

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(tr->decoder, block->bytes + offset, block->length - offset,
		                                         &item->i, item->operand)))
			return false;
		item->offset = tr->part[part].base + (int32_t)offset;
		item->caller = (int16_t)tr->caller;
		item->part = (uint8_t)part;
		item->on = item->sure = false;
		item->expected = -1;
		item->form = NULL;
		item->kind = classify(tr, item, block->bytes + offset);
		if (tr->t->lockstep && !repeatable(item))
			item->kind = KIND_FALLBACK;
		item->slot = slot = find_slot(slot, n);
		item->slots = count_slots(block, item, n);
		find_flags(&item->i, item->operand, &item->read, &item->killed);
		if (item->kind == KIND_SYSTEM || item->kind == KIND_SYSTEM_END)
			item->read |= system_flags(item);
		offset += item->i.length;
		tr->count++;
		if (item->kind == KIND_GENERIC && vector_need(item) > tr->vector)
			tr->vector = vector_need(item);
		if (item->kind == KIND_GENERIC && uses_x87(item))
			tr->x87 = true;
		if (item->kind != KIND_FALLBACK)
			*useful = true;
		if (ends_block(item))
			break;
	}
	return true;
}

/* Behind the first part. In a kernel, what comes there shall not make the first one need vector registers. */
static void add_parts(struct translation *tr)
{
	bool any = tr->view == MMU_USER && tr->block->hot;

	while (find_part(tr)) {
		unsigned count = tr->count;
		uint8_t vector = tr->vector;
		bool x87 = tr->x87, useful;
		int caller = tr->caller;

		tr->caller = calls_next_caller(tr, count - 1);

		if (add_part(tr, tr->parts - 1, &useful) && (tr->vector == vector || any) && tr->x87 == x87)
			continue;
		tr->parts--;
		tr->count = count;
		tr->item[count - 1].on = false;
		tr->vector = vector;
		tr->x87 = x87;
		tr->caller = caller;
		break;
	}
	tr->block->extended |= tr->parts > 1;
	calls_prune(tr);
}

/* Flags that the way out at a branch that the translation goes on behind may want. */
static uint32_t wanted_aside(struct translation *tr, const struct item *item)
{
	if (item->kind == KIND_JMP || item->kind == KIND_CALL || item->sure)
		return 0;
	if (item->kind != KIND_JCC)
		return ALL_FLAGS;
	uint64_t next = (tr->rip + (uint64_t)(int64_t)item->offset + item->i.length) & tr->rip_mask;
	uint64_t target = branch_target(tr, item);

	return flags_wanted(tr, part_rip(tr, item->part + 1u) == target ? next : target, NULL);
}

/* Which flags are live where. */
static void find_live(struct translation *tr)
{
	uint32_t live = flags_wanted_after(tr, &tr->item[tr->count - 1], &tr->settle);

	for (unsigned n = tr->count; n-- > 0;) {
		struct item *item = &tr->item[n];

		if (item->on)
			live |= wanted_aside(tr, item);
		item->live_after = live;
		if (item->kind == KIND_FALLBACK)
			live = ALL_FLAGS;
		else
			live = item->read | (live & ~item->killed);
		item->live_before = live;
	}
}

/* Decodes the block. False: nothing of it is worth it. */
bool first_pass(struct translation *tr)
{
	bool useful = false;

	tr->part[0] = (struct part){.block = tr->block};
	tr->parts = 1;
	if (!add_part(tr, 0, &useful) || !useful)
		return false;
	add_parts(tr);
	calls_find_sure(tr);
	find_live(tr);
	/* A loop through CALLs: the look ahead does not follow these. What it wants at its head is found from nothing on. */
	const struct item *last = &tr->item[tr->count - 1];
	if (tr->calls && last->kind == KIND_JCC && branch_target(tr, last) == tr->rip) {
		tr->head_known = true;
		tr->head_live = 0;
		tr->head_settle = 0;
		for (find_live(tr); tr->item[0].live_before & ~tr->head_live; find_live(tr))
			tr->head_live |= tr->item[0].live_before;
		tr->head_settle = settle_from(tr, -1, ALL_FLAGS & ~tr->head_live);
		find_live(tr);
	}
	/* Mapped otherwise, the second page may make it another instruction, found out when the block has been entered. */
	if (tr->block->crosses)
		tr->item[0].live_before = ALL_FLAGS;
	return true;
}
