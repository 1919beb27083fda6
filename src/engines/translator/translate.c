/*
 * From a decoded block to host code: selection. translator.h says how registers, flags and memory are held.
 *
 * Two passes: the first decodes and finds flag liveness and how far the block can be translated; the second emits.
 * Where an instruction is not ours the code leaves to the interpreter's slot, and the rest of the block is interpreted.
 */
#include <stdlib.h>
#include <string.h>

#include "debug/disassemble.h"
#include "debug/trace.h"
#include "engines/translator/rewrite.h"
#include "engines/translator/runtime.h"
#include "memory/memory.h"
#include "x86/system.h"

#define BLOCK_MAX   64
#define PENDING_MAX 256
#define CODE_MAX    (48u << 10) /* bytes of host code that one block can need */
#define ALL_FLAGS   ((uint32_t)FLAG_ARITHMETIC)
#define S1          R9
#define S2          R10
#define GUEST_RSP   R11

enum kind {
	KIND_FALLBACK,
	KIND_NOP,
	KIND_GENERIC,
	KIND_LEA,
	KIND_PUSH,
	KIND_POP,
	KIND_LEAVE,
	KIND_JMP,
	KIND_JCC,
	KIND_CALL,
	KIND_JMP_INDIRECT,
	KIND_CALL_INDIRECT,
	KIND_RET,
};

struct item {
	ZydisDecodedInstruction i;
	ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
	enum kind kind;
	const struct native_form *form;
	const struct insn *slot;
	uint16_t offset;
	uint32_t read, killed; /* flags */
	uint32_t live_before, live_after;
};

/* Out-of-line code. */
struct pending {
	enum { PENDING_SLOW, PENDING_TAKEN, PENDING_LINK, PENDING_VECTOR, PENDING_STALE } kind;
	uint8_t *place; /* the jump to be fixed */
	const uint8_t *resume;
	struct xsite *site;
	struct xlink *link;
	uint32_t tag; /* of PENDING_SLOW: address of the tags */
	uint64_t target;
	bool in_register, in_memory; /* where flags are */
	bool save;
};

struct translation {
	struct translator *t;
	struct block *block;
	struct emitter e;
	struct item item[BLOCK_MAX];
	unsigned count;
	uint64_t rip;
	unsigned view;
	bool in_register, in_memory; /* where valid guest flags are now */
	struct pending pending[PENDING_MAX];
	unsigned pending_count;
	bool failed, vector;

	ZydisDecoder own_decoder;
};

/* ---- the first pass ---- */

static bool is_memory(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY;
}

/* Whether an explicit memory operand is one that lower_address() can do. */
static bool address_possible(const struct item *item)
{
	for (unsigned n = 0; n < item->i.operand_count_visible; n++) {
		const ZydisDecodedOperand *o = &item->operand[n];

		if (is_memory(o) && (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB || item->i.address_width == 16 ||
		                     !(item->i.attributes & ZYDIS_ATTRIB_HAS_MODRM)))
			return false;
		/* Zydis 4.0 reports R13D for SIB base 5 with mod 0 and REX.B behind 67h: there is no base (SDM 2A table 2-3). */
		if (is_memory(o) && item->i.raw.modrm.mod == 0 && item->i.raw.modrm.rm == 4 &&
		    item->i.raw.sib.base == 5 && o->mem.base != ZYDIS_REGISTER_NONE)
			return false;
	}
	return true;
}

static enum kind classify_push_pop(const struct item *item, enum kind kind)
{
	const ZydisDecodedOperand *o = &item->operand[0];

	if (item->i.operand_width != 64)
		return KIND_FALLBACK;
	if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_GPR64)
		return kind;
	return kind == KIND_PUSH && o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? kind : KIND_FALLBACK;
}

static enum kind classify_branch(const struct item *item, enum kind direct, enum kind indirect)
{
	const ZydisDecodedOperand *o = &item->operand[0];

	/* With 66h AMD processors truncate RIP. */
	if (item->i.operand_width != 64 || item->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
	    (item->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
		return KIND_FALLBACK;
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return direct;
	return address_possible(item) ? indirect : KIND_FALLBACK;
}

/* How many of R9-R11 are operands that need a scratch register, memory addresses apart. */
static unsigned scratch_needed(const struct item *item)
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

static enum kind classify_generic(struct translation *tr, struct item *item, const uint8_t *bytes)
{
	struct interpreter *interpreter = interpreter_of(tr->t->vcpu);

	item->form = native_form_get(interpreter->native, &item->i, item->operand, bytes);
	if (!item->form || item->form->special || item->form->bit_string || !address_possible(item))
		return KIND_FALLBACK;
	if (item->form->class_needed & ~(NATIVE_SSE | NATIVE_AVX | NATIVE_AVX512 | NATIVE_VEX))
		return KIND_FALLBACK;
	/* Named by the instruction: LDMXCSR and STMXCSR work on the vCPU block in forms. */
	if (item->i.mnemonic == ZYDIS_MNEMONIC_LDMXCSR || item->i.mnemonic == ZYDIS_MNEMONIC_STMXCSR ||
	    item->i.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR || item->i.mnemonic == ZYDIS_MNEMONIC_VSTMXCSR)
		return KIND_FALLBACK;
	if (scratch_needed(item) > (item->form->memory_size ? 1 : 2))
		return KIND_FALLBACK;
	/* Can it be encoded? Tried with registers that need extension bits wherever they may come. */
	static const uint8_t map[16] = {0, 1, 2, 3, GUEST_RSP, 5, 6, 7, 8, S2, S2, S2, 12, 13, 14, 15};
	uint8_t scrap[32];
	struct emitter e = {.at = scrap, .end = scrap + sizeof(scrap)};
	return rewrite_instruction(&e, &tr->own_decoder, &item->i, item->operand, bytes, map, S1) ? KIND_GENERIC
	                                                                                          : KIND_FALLBACK;
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

	if (is_jcc(m))
		return classify_branch(item, KIND_JCC, KIND_FALLBACK);
	switch (m) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHW:
		return KIND_NOP;
	case ZYDIS_MNEMONIC_LEA:
		return item->i.operand_width >= 32 && address_possible(item) ? KIND_LEA : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_PUSH:
		return classify_push_pop(item, KIND_PUSH);
	case ZYDIS_MNEMONIC_POP:
		return classify_push_pop(item, KIND_POP);
	case ZYDIS_MNEMONIC_LEAVE:
		return item->i.operand_width == 64 ? KIND_LEAVE : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_JMP:
		return classify_branch(item, KIND_JMP, KIND_JMP_INDIRECT);
	case ZYDIS_MNEMONIC_CALL:
		return classify_branch(item, KIND_CALL, KIND_CALL_INDIRECT);
	case ZYDIS_MNEMONIC_RET:
		/* With 66h AMD processors pop 16 bits. */
		if (item->i.operand_width != 64 || item->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
		    (item->i.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
			return KIND_FALLBACK;
		return KIND_RET;
	default:
		return classify_generic(tr, item, bytes);
	}
}

static bool ends_block(enum kind kind)
{
	return kind >= KIND_JMP || kind == KIND_FALLBACK;
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

/* The interpreter's first slot of instruction `number`. */
static const struct insn *find_slot(const struct block *block, unsigned number)
{
	const struct insn *slot = &block->insn[1]; /* behind the heat slot */

	while (slot->number != number || slot == block->insn)
		slot++;
	return slot;
}

static uint64_t branch_target(const struct translation *tr, const struct item *item)
{
	return tr->rip + item->offset + item->i.length + item->operand[0].imm.value.u;
}

/*
 * Flags that code at `target` may read before it gives them values: looks ahead in the same page, whose generation this
 * block depends on anyway.
 */
static uint32_t flags_wanted(struct translation *tr, uint64_t target)
{
	const uint8_t *page = memory_pointer(tr->t->vcpu->memory, tr->block->physical & ~0xfffull, MEMORY_PAGE_SIZE);
	unsigned at = target & 0xfff;
	uint32_t wanted = 0, settled = 0;

	if (((target ^ tr->rip) & ~0xfffull) || !page)
		return ALL_FLAGS;
	for (unsigned n = 0; n < 12; n++) {
		ZydisDecodedInstruction i;
		ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
		uint32_t read, killed;

		if (!ZYAN_SUCCESS(
		        ZydisDecoderDecodeFull(&tr->own_decoder, page + at, MEMORY_PAGE_SIZE - at, &i, operand)))
			return ALL_FLAGS;
		find_flags(&i, operand, &read, &killed);
		wanted |= read & ~settled;
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
			break;
		case ZYDIS_CATEGORY_UNCOND_BR:
			if (operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
				return wanted | (ALL_FLAGS & ~settled);
			target = (target & ~0xfffull) + at + i.length + operand[0].imm.value.u;
			if ((target ^ tr->rip) & ~0xfffull)
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

static uint32_t flags_wanted_after(struct translation *tr, const struct item *last)
{
	uint64_t next = tr->rip + last->offset + last->i.length;

	switch (last->kind) {
	case KIND_JMP:
	case KIND_CALL:
		return flags_wanted(tr, branch_target(tr, last));
	case KIND_JCC:
		return flags_wanted(tr, branch_target(tr, last)) | flags_wanted(tr, next);
	case KIND_FALLBACK:
	case KIND_JMP_INDIRECT:
	case KIND_CALL_INDIRECT:
	case KIND_RET:
		return ALL_FLAGS;
	default:
		return flags_wanted(tr, next);
	}
}

/* Vector registers or MXCSR (CVTSD2SI r32, m64 names no vector register). */
static bool uses_vectors(const struct item *item)
{
	switch (item->i.meta.isa_ext) {
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX512EVEX:
		return true;
	default:
		return item->form->class_needed & (NATIVE_SSE | NATIVE_AVX | NATIVE_AVX512);
	}
}

/* Decodes the block. False: nothing of it is worth it. */
static bool first_pass(struct translation *tr)
{
	const struct block *block = tr->block;
	unsigned offset = 0;

	while (tr->count < block->count && tr->count < BLOCK_MAX) {
		struct item *item = &tr->item[tr->count];

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&tr->own_decoder, block->bytes + offset,
		                                         block->length - offset, &item->i, item->operand)))
			return false;
		item->offset = (uint16_t)offset;
		item->form = NULL;
		item->kind = classify(tr, item, block->bytes + offset);
		item->slot = find_slot(block, tr->count);
		find_flags(&item->i, item->operand, &item->read, &item->killed);
		offset += item->i.length;
		tr->count++;
		if (item->kind == KIND_GENERIC && uses_vectors(item))
			tr->vector = true;
		if (ends_block(item->kind))
			break;
	}
	const struct item *last = &tr->item[tr->count - 1];
	if (tr->count == 1 && last->kind == KIND_FALLBACK)
		return false;
	uint32_t live = flags_wanted_after(tr, last);
	for (unsigned n = tr->count; n-- > 0;) {
		struct item *item = &tr->item[n];

		item->live_after = live;
		if (item->kind == KIND_FALLBACK)
			live = ALL_FLAGS;
		else
			live = item->read | (live & ~item->killed);
		item->live_before = live;
	}
	return true;
}

/* ---- flags ---- */

static uint32_t gpr_abs(const struct translation *tr, unsigned guest)
{
	return xabs(&tr->t->vcpu->state.gpr[guest]);
}

static void emit_flags_save(struct emitter *e, const struct translator *t)
{
	emit_move(e, S2, RAX);
	emit_byte(e, 0x9f); /* lahf */
	emit_byte(e, 0x0f); /* seto al */
	emit_byte(e, 0x90);
	emit_byte(e, 0xc0);
	emit_store32(e, RAX, xabs(&t->flags));
	emit_move(e, RAX, S2);
}

static void emit_flags_restore(struct emitter *e, const struct translator *t)
{
	emit_move(e, S2, RAX);
	emit_load32(e, RAX, xabs(&t->flags));
	emit_byte(e, 0x04); /* add al, 7fh: OF */
	emit_byte(e, 0x7f);
	emit_byte(e, 0x9e); /* sahf */
	emit_move(e, RAX, S2);
}

/* Before EFLAGS is destroyed while some flags are live. Uses S2. */
static void flags_keep(struct translation *tr, uint32_t live)
{
	if (live && tr->in_register && !tr->in_memory) {
		emit_flags_save(&tr->e, tr->t);
		tr->in_memory = true;
	}
}

/* Before an instruction that wants them in EFLAGS. Uses S2. */
static void flags_want(struct translation *tr)
{
	if (tr->in_register || !tr->in_memory)
		return;
	emit_flags_restore(&tr->e, tr->t);
	tr->in_register = true;
}

/* ---- memory ---- */

static struct pending *pend(struct translation *tr, int kind, uint8_t *place)
{
	if (tr->pending_count == PENDING_MAX) {
		tr->failed = true;
		return &tr->pending[0];
	}
	struct pending *p = &tr->pending[tr->pending_count++];
	memset(p, 0, sizeof(*p));
	p->kind = kind;
	p->place = place;
	p->in_register = tr->in_register;
	p->in_memory = tr->in_memory;
	return p;
}

static struct xsite *new_site(struct translation *tr, const struct item *item, unsigned size, bool write)
{
	struct translator *t = tr->t;

	if (t->site_count == XSITES_MAX) {
		tr->failed = true;
		return &t->sites[0];
	}
	struct xsite *site = &t->sites[t->site_count++];
	*site = (struct xsite){
	    .host = (uint32_t)(tr->e.at - t->arena.write),
	    .size = (uint8_t)(size > 64 ? 64 : size),
	    .write = write,
	    .flags_in_register = tr->in_register,
	    .slot = item->slot,
	    .rip = tr->rip,
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
static void lower_effective(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned to,
                            bool wide)
{
	int64_t disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;

	if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
		uint64_t address = tr->rip + item->offset + item->i.length + (uint64_t)disp;

		emit_move_imm64(&tr->e, to, wide ? address : (uint32_t)address);
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

/*
 * The TLB look-up: linear address in S1; afterwards the host address. Destroys EFLAGS and S2; live flags have been
 * kept.
 */
static void lower_check(struct translation *tr, const struct item *item, unsigned size, bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	uint32_t tag = xabs(&t->tlb[tr->view][write][0].tag), host = xabs(&t->tlb[tr->view][write][0].host);

	emit_rorx(e, S2, S1, 8);
	emit_group1(e, false, 4, S2, (XTLB_ENTRIES - 1) << 4); /* and */
	emit_op_base(e, true, 0x33, S1, S2, (int32_t)tag);     /* xor */
	emit_group1(e, true, 7, S1, (int32_t)(MEMORY_PAGE_SIZE - size));
	uint8_t *miss = emit_jump_if(e, CC_A);
	emit_op_base(e, true, 0x03, S1, S2, (int32_t)host); /* add */
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_SLOW, miss);
	p->resume = e->at;
	p->tag = tag;
	p->site = new_site(tr, item, size, write);
}

static void emit_set_rip(struct translation *tr, uint64_t rip)
{
	uint32_t abs = xabs(&tr->t->vcpu->state.rip);

	if ((int64_t)rip == (int32_t)rip) {
		emit_store_imm(&tr->e, true, abs, (int32_t)rip);
	} else {
		emit_move_imm64(&tr->e, S2, rip);
		emit_store(&tr->e, S2, abs);
	}
}

static void emit_set_argument(struct translation *tr, const volatile void *pointer)
{
	emit_move_imm64(&tr->e, S2, (uintptr_t)pointer);
	emit_store(&tr->e, S2, xabs(&tr->t->exit_argument));
}

static void exit_to_slot(struct translation *tr, const struct insn *slot)
{
	flags_keep(tr, ALL_FLAGS);
	emit_set_rip(tr, tr->rip);
	emit_set_argument(tr, slot);
	emit_jump_to(&tr->e, tr->t->exit_slot);
}

/* Leaves to the interpreter when S1 is not canonical. Flags have been kept; destroys S2. */
static void check_canonical(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;

	emit_move(e, S2, S1);
	emit_shift_imm(e, 4, S2, 16); /* shl, sar */
	emit_shift_imm(e, 7, S2, 16);
	emit_op_reg(e, true, 0x39, S1, S2);
	tr->in_register = false;
	uint8_t *canonical = emit_jump_if(e, CC_E);
	exit_to_slot(tr, item->slot);
	emit_fix(e, canonical);
}

/* An explicit memory operand: host address in S1. */
static void lower_memory(struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size,
                         bool write)
{
	flags_keep(tr, item->live_before);
	lower_effective(tr, item, o, S1, item->i.address_width == 64);
	if (o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS) {
		enum segment_register segment = o->mem.segment == ZYDIS_REGISTER_FS ? SEG_FS : SEG_GS;

		if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE)
			check_canonical(tr, item); /* AMD: already before the base is added */
		emit_op_abs(&tr->e, true, 0x03, S1, xabs(&tr->t->vcpu->state.segment[segment].base));
	}
	lower_check(tr, item, size, write);
}

static const ZydisDecodedOperand *memory_operand(const struct item *item)
{
	for (unsigned n = 0; n < item->i.operand_count_visible; n++)
		if (is_memory(&item->operand[n]) && item->operand[n].mem.type == ZYDIS_MEMOP_TYPE_MEM)
			return &item->operand[n];
	return NULL;
}

/* A guest register's value in a host register: its own, or loaded into `scratch`. */
static unsigned value_of(struct translation *tr, unsigned guest, unsigned scratch)
{
	if (guest == RSP)
		return GUEST_RSP;
	if (guest < R9 || guest > R11)
		return guest;
	emit_load(&tr->e, scratch, gpr_abs(tr, guest));
	return scratch;
}

/* Where to compute a guest register's new value; store_result() afterwards. */
static unsigned result_in(unsigned guest, unsigned scratch)
{
	return guest == RSP ? GUEST_RSP : guest < R9 || guest > R11 ? guest : scratch;
}

static void store_result(struct translation *tr, unsigned guest, unsigned host)
{
	if (guest >= R9 && guest <= R11)
		emit_store(&tr->e, host, gpr_abs(tr, guest));
}

/* ---- instructions ---- */

static void translate_generic(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *memory = item->form->memory_size ? memory_operand(item) : NULL;
	uint8_t map[16];
	unsigned scratch[2] = {S2, S1}, used = 0;
	uint32_t written = 0;
	bool high;

	if (item->form->memory_size && !memory) {
		tr->failed = true;
		return;
	}
	if (memory)
		lower_memory(tr, item, memory, item->form->memory_size, item->form->writes_memory);
	for (unsigned n = 0; n < 16; n++)
		map[n] = (uint8_t)(n == RSP ? GUEST_RSP : n);
	/* Kept flags go back before scratch registers get their values. */
	uint32_t needed = item->read | (item->live_after & ~item->killed);
	if (needed)
		flags_want(tr);
	uint32_t assigned = 0;
	for (unsigned n = 0; n < item->i.operand_count; n++) {
		int gpr = operand_gpr(&item->operand[n], &high);

		if (gpr < R9 || gpr > R11)
			continue;
		if (!(assigned >> gpr & 1)) {
			map[gpr] = (uint8_t)scratch[used++];
			assigned |= 1u << gpr;
			emit_load(e, map[gpr], gpr_abs(tr, (unsigned)gpr));
		}
		if (item->operand[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			written |= 1u << gpr;
	}
	new_site(tr, item, item->form->memory_size, item->form->writes_memory);
	if (!rewrite_instruction(e, &tr->own_decoder, &item->i, item->operand, tr->block->bytes + item->offset, map,
	                         S1))
		tr->failed = true;
	for (unsigned gpr = R9; gpr <= R11; gpr++)
		if (written >> gpr & 1)
			emit_store(e, map[gpr], gpr_abs(tr, gpr));
	const ZydisAccessedFlags *f = item->i.cpu_flags;
	if (f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & ALL_FLAGS)) {
		tr->in_register = true;
		tr->in_memory = false;
	}
}

static void translate_lea(struct translation *tr, const struct item *item)
{
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S1);
	bool wide = item->i.operand_width == 64 && item->i.address_width == 64;

	lower_effective(tr, item, &item->operand[1], to, wide);
	store_result(tr, guest, to);
}

static void translate_push(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const ZydisDecodedOperand *o = &item->operand[0];
	bool high;

	flags_keep(tr, item->live_before);
	emit_lea(e, S1, GUEST_RSP, -8);
	lower_check(tr, item, 8, true);
	if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		emit_byte(e, 0x49); /* mov qword [r9], imm32 */
		emit_byte(e, 0xc7);
		emit_byte(e, 0x01);
		emit_u32(e, (uint32_t)o->imm.value.u);
	} else {
		unsigned value = value_of(tr, (unsigned)operand_gpr(o, &high), S2);

		emit_op_base(e, true, 0x89, value, S1, 0);
	}
	emit_lea(e, GUEST_RSP, GUEST_RSP, -8);
}

static void translate_pop(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S2);

	flags_keep(tr, item->live_before);
	emit_move(e, S1, GUEST_RSP);
	lower_check(tr, item, 8, false);
	emit_op_base(e, true, 0x8b, to, S1, 0);
	if (guest != RSP)
		emit_lea(e, GUEST_RSP, GUEST_RSP, 8);
	store_result(tr, guest, to);
}

static void translate_leave(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;

	flags_keep(tr, item->live_before);
	emit_move(e, S1, RBP);
	lower_check(tr, item, 8, false);
	emit_lea(e, GUEST_RSP, RBP, 8);
	emit_op_base(e, true, 0x8b, RBP, S1, 0);
}

/* ---- exits ---- */

static struct xlink *new_link(struct translation *tr, uint64_t target, bool entry_a)
{
	struct translator *t = tr->t;

	if (t->link_count == XLINKS_MAX) {
		tr->failed = true;
		return &t->links[0];
	}
	struct xlink *link = &t->links[t->link_count++];
	*link = (struct xlink){.rip = target, .entry_a = entry_a, .view = (uint8_t)tr->view};
	return link;
}

/* A direct transfer to `target`; `from` is the branch's address. */
static void exit_direct(struct translation *tr, uint64_t from, uint64_t target)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	bool same_page = !((target ^ tr->rip) & ~0xfffull), backward = target <= from;

	if (!same_page || backward)
		flags_keep(tr, same_page ? flags_wanted(tr, target) : ALL_FLAGS);
	bool clobbers = !same_page || backward;
	struct xlink *link = new_link(tr, target, tr->in_register && !clobbers);
	if (!same_page) {
		uint64_t *key = &t->page_key[tr->view][target >> 12 & (XPAGE_SIZE - 1)];

		/* The key that the link is good for stands behind it (translator_to_link fills it): compared in one. */
		emit_load(e, S1, xabs(key));
		emit_op_abs(e, true, 0x3b, S1,
		            xabs(&link->rip) + (uint32_t)offsetof(struct xlink, key) -
		                (uint32_t)offsetof(struct xlink, rip));
		tr->in_register = false;
		pend(tr, PENDING_LINK, emit_jump_if(e, CC_NE))->link = link;
	}
	if (backward) {
		emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
		tr->in_register = false;
		pend(tr, PENDING_LINK, emit_jump_if(e, CC_NE))->link = link;
	}
	emit_jump_abs(e, xabs(&link->host));
	/* The stub where the link leads first. */
	struct pending *p = pend(tr, PENDING_LINK, NULL);
	p->link = link;
	p->save = link->entry_a;
}

/* An indirect transfer: target in S1, flags kept. `release`: bytes to add to RSP when it succeeds
 * (RET); `undo`: when the interpreter has to do it again (CALL). */
static void exit_indirect(struct translation *tr, const struct item *item, int32_t release, int32_t undo)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;

	emit_op_reg(e, false, 0x89, S1, S2);          /* mov r10d, r9d */
	emit_group1(e, false, 4, S2, XJUMP_SIZE - 1); /* and */
	emit_byte(e, 0x4e);                           /* cmp r9, [r10*8 + jump_rip] */
	emit_byte(e, 0x3b);
	emit_byte(e, 0x0c);
	emit_byte(e, 0xd5);
	emit_u32(e, xabs(t->jump_rip[tr->view]));
	uint8_t *miss = emit_jump_if(e, CC_NE);
	emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
	uint8_t *poll = emit_jump_if(e, CC_NE);
	if (release)
		emit_lea(e, GUEST_RSP, GUEST_RSP, release);
	emit_byte(e, 0x42); /* jmp [r10*8 + jump_host] */
	emit_byte(e, 0xff);
	emit_byte(e, 0x24);
	emit_byte(e, 0xd5);
	emit_u32(e, xabs(t->jump_host[tr->view]));
	emit_fix(e, miss);
	emit_fix(e, poll);
	emit_store(e, S1, xabs(&t->target));
	emit_store_imm(e, true, xabs(&t->release), release);
	emit_store_imm(e, true, xabs(&t->undo), undo);
	emit_set_rip(tr, tr->rip);
	emit_set_argument(tr, item->slot);
	emit_jump_to(e, t->exit_indirect);
}

static void translate_push_return(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	uint64_t next = tr->rip + item->offset + item->i.length;

	emit_lea(e, S1, GUEST_RSP, -8);
	lower_check(tr, item, 8, true);
	if ((int64_t)next == (int32_t)next) {
		emit_byte(e, 0x49);
		emit_byte(e, 0xc7);
		emit_byte(e, 0x01);
		emit_u32(e, (uint32_t)next);
	} else {
		emit_move_imm64(e, S2, next);
		emit_op_base(e, true, 0x89, S2, S1, 0);
	}
	emit_lea(e, GUEST_RSP, GUEST_RSP, -8);
}

/* The target of an indirect branch into S1. Flags are kept before. */
static void translate_target(struct translation *tr, const struct item *item)
{
	const ZydisDecodedOperand *o = &item->operand[0];
	bool high;

	if (is_memory(o)) {
		lower_memory(tr, item, o, 8, false);
		emit_op_base(&tr->e, true, 0x8b, S1, S1, 0);
	} else {
		unsigned value = value_of(tr, (unsigned)operand_gpr(o, &high), S1);

		if (value != S1)
			emit_move(&tr->e, S1, value);
	}
}

static void translate_terminal(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	uint64_t from = tr->rip + item->offset, next = from + item->i.length;

	switch (item->kind) {
	case KIND_JMP:
		exit_direct(tr, from, branch_target(tr, item));
		break;
	case KIND_JCC: {
		flags_want(tr);
		unsigned opcode = tr->block->bytes[item->offset + item->i.raw.prefix_count];
		unsigned condition =
		    (opcode == 0x0f ? tr->block->bytes[item->offset + item->i.raw.prefix_count + 1] : opcode) & 15;
		struct pending *p = pend(tr, PENDING_TAKEN, emit_jump_if(e, condition));
		p->target = branch_target(tr, item);
		p->site = NULL;
		exit_direct(tr, from, next);
		break;
	}
	case KIND_CALL:
		flags_keep(tr, item->live_before);
		translate_push_return(tr, item);
		exit_direct(tr, from, branch_target(tr, item));
		break;
	case KIND_JMP_INDIRECT:
		flags_keep(tr, ALL_FLAGS);
		translate_target(tr, item);
		tr->in_register = false;
		exit_indirect(tr, item, 0, 0);
		break;
	case KIND_CALL_INDIRECT: {
		flags_keep(tr, ALL_FLAGS);
		translate_target(tr, item);
		/* A target that is not canonical is the CALL's #GP, before it pushes. */
		check_canonical(tr, item);
		emit_store(e, S1, xabs(&tr->t->target));
		translate_push_return(tr, item);
		emit_load(e, S1, xabs(&tr->t->target));
		exit_indirect(tr, item, 0, 8);
		break;
	}
	case KIND_RET:
		flags_keep(tr, ALL_FLAGS);
		emit_move(e, S1, GUEST_RSP);
		lower_check(tr, item, 8, false);
		emit_op_base(e, true, 0x8b, S1, S1, 0);
		exit_indirect(tr, item,
		              8 + (item->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE
		                       ? (int32_t)item->operand[0].imm.value.u
		                       : 0),
		              0);
		break;
	default:
		tr->failed = true;
		break;
	}
}

/* ---- a block's entries ---- */

/* Leaves when the page was written since, or the vector registers are not here: without touching flags, where they are
 * live. */
static void emit_checks_keeping_flags(struct translation *tr)
{
	struct emitter *e = &tr->e;
	struct translator *t = tr->t;
	const uint32_t save = xabs(&t->target);

	emit_store(e, RCX, save);
	emit_move_imm64(e, S2, (uintptr_t)tr->block->generation_now);
	emit_op_base(e, false, 0x8b, RCX, S2, 0);
	emit_lea_full(e, false, false, RCX, RCX, NO_REGISTER, 0, (int32_t)-tr->block->generation);
	emit_byte(e, 0xe3); /* jrcxz over the jump */
	emit_byte(e, 5);
	pend(tr, PENDING_STALE, emit_jump(e))->save = true;
	if (tr->vector) {
		emit_byte(e, 0x0f); /* movzx ecx, byte [vector_missing] */
		emit_op_abs(e, false, 0xb6, RCX, xabs(&t->vector_missing));
		emit_byte(e, 0xe3);
		emit_byte(e, 5);
		pend(tr, PENDING_VECTOR, emit_jump(e))->save = true;
	}
	emit_load(e, RCX, save);
}

static void emit_checks(struct translation *tr)
{
	struct emitter *e = &tr->e;

	emit_move_imm64(e, S2, (uintptr_t)tr->block->generation_now);
	emit_byte(e, 0x41); /* cmp dword [r10], imm32 */
	emit_byte(e, 0x81);
	emit_byte(e, 0x3a);
	emit_u32(e, tr->block->generation);
	pend(tr, PENDING_STALE, emit_jump_if(e, CC_NE));
	if (tr->vector) {
		emit_compare8_abs(e, xabs(&tr->t->vector_missing), 0);
		pend(tr, PENDING_VECTOR, emit_jump_if(e, CC_NE));
	}
}

/* ---- out of line ---- */

static void emit_pending(struct translation *tr, unsigned n, struct xblock *xblock)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	struct pending p = tr->pending[n];

	tr->in_register = p.in_register;
	tr->in_memory = p.in_memory;
	if (p.place)
		emit_fix(e, p.place);
	switch (p.kind) {
	case PENDING_SLOW:
		emit_op_base(e, true, 0x33, S1, S2, (int32_t)p.tag); /* xor: the linear address again */
		emit_store_imm(e, true, xabs(&t->exit_argument), (int32_t)xabs(p.site));
		emit_call_to(e, t->slow);
		emit_jump_to(e, p.resume);
		break;
	case PENDING_TAKEN:
		exit_direct(tr, tr->rip + tr->item[tr->count - 1].offset, p.target);
		break;
	case PENDING_LINK:
		if (!p.place) {
			p.link->stub = p.link->host = code_arena_executable(&t->arena, e->at);
			if (p.save)
				emit_flags_save(e, t);
		}
		emit_set_argument(tr, p.link);
		emit_jump_to(e, t->exit_link);
		break;
	case PENDING_STALE: {
		struct xlink *link = new_link(tr, tr->rip, false);

		if (p.save) {
			emit_load(e, RCX, xabs(&t->target));
			emit_flags_save(e, t);
		}
		emit_set_argument(tr, link);
		emit_jump_to(e, t->exit_link);
		break;
	}
	case PENDING_VECTOR:
		if (p.save) {
			emit_load(e, RCX, xabs(&t->target));
			emit_flags_save(e, t);
		}
		emit_set_rip(tr, tr->rip);
		emit_set_argument(tr, xblock);
		emit_jump_to(e, t->exit_vector);
		break;
	}
}

static void second_pass(struct translation *tr, struct xblock *xblock)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	uint32_t live_in = tr->item[0].live_before;

	xblock->entry_b = code_arena_executable(&t->arena, e->at);
	if (live_in)
		emit_flags_restore(e, t);
	xblock->entry_a = code_arena_executable(&t->arena, e->at);
	tr->in_register = live_in != 0;
	tr->in_memory = false;
	if (live_in)
		emit_checks_keeping_flags(tr);
	else
		emit_checks(tr);
	for (unsigned n = 0; n < tr->count; n++) {
		const struct item *item = &tr->item[n];

		switch (item->kind) {
		case KIND_FALLBACK:
			exit_to_slot(tr, item->slot);
			break;
		case KIND_NOP:
			break;
		case KIND_GENERIC:
			translate_generic(tr, item);
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
		default:
			translate_terminal(tr, item);
			break;
		}
	}
	const struct item *last = &tr->item[tr->count - 1];
	if (!ends_block(last->kind)) {
		uint64_t next = tr->rip + last->offset + last->i.length;

		exit_direct(tr, next - 1, next);
	}
	for (unsigned n = 0; n < tr->pending_count; n++)
		emit_pending(tr, n, xblock);
}

/* --trace translate: guest code, then host code. */
static void trace_translation(struct translation *tr, const struct xblock *xblock, const uint8_t *code)
{
	struct vcpu *vcpu = tr->t->vcpu;
	char text[128];

	if (!trace_on(vcpu->trace, TRACE_TRANSLATE))
		return;
	trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "block %llu at %016llx, view %u, flags in %#x",
	      (unsigned long long)tr->t->counters.blocks, (unsigned long long)tr->rip, tr->view,
	      tr->item[0].live_before);
	for (unsigned n = 0; n < tr->count; n++) {
		const struct item *item = &tr->item[n];

		disassemble(tr->block->bytes + item->offset, item->i.length, 64, tr->rip + item->offset, text,
		            sizeof(text));
		trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "  %016llx %s%s",
		      (unsigned long long)(tr->rip + item->offset), text,
		      item->kind == KIND_FALLBACK ? "  (left to the interpreter)" : "");
	}
	for (const uint8_t *at = code; at < tr->e.at;) {
		uint64_t host = (uint64_t)(uintptr_t)code_arena_executable(&tr->t->arena, at);
		unsigned length = disassemble(at, (size_t)(tr->e.at - at), 64, host, text, sizeof(text));

		trace(vcpu->trace, TRACE_TRANSLATE, (int)vcpu->index, "    %s%012llx %s",
		      host == (uint64_t)(uintptr_t)xblock->entry_a ? "A " : "  ", (unsigned long long)host, text);
		at += length;
	}
}

struct xblock *translate_block(struct translator *t, struct block *block, bool *full)
{
	struct translation *tr = t->scratch;
	uint32_t links = t->link_count, sites = t->site_count;
	size_t used = t->arena.used;

	*full = false;
	if (!tr) {
		tr = t->scratch = malloc(sizeof(*tr));
		if (!tr)
			return NULL;
		const struct cpu_model *model = t->vcpu->model;

		ZydisDecoderInit(&tr->own_decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
		ZydisDecoderEnableMode(&tr->own_decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, model && model->amd);
		ZydisDecoderEnableMode(&tr->own_decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
		ZydisDecoderEnableMode(&tr->own_decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
		ZydisDecoderEnableMode(&tr->own_decoder, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
	}
	tr->t = t;
	tr->block = block;
	tr->count = tr->pending_count = 0;
	tr->failed = tr->vector = false;
	tr->rip = t->vcpu->state.rip;
	tr->view = t->vcpu->mmu.view;

	if (!first_pass(tr))
		return NULL;
	struct xblock *xblock = malloc(sizeof(*xblock));
	uint8_t *code = code_arena_allocate(&t->arena, CODE_MAX, 16);
	if (!xblock || !code || t->link_count + 2 * BLOCK_MAX > XLINKS_MAX ||
	    t->site_count + 4 * BLOCK_MAX > XSITES_MAX) {
		free(xblock);
		*full = true;
		return NULL;
	}
	*xblock = (struct xblock){.rip = tr->rip,
	                          .block = block,
	                          .generation = block->generation,
	                          .view = (uint8_t)tr->view,
	                          .vector = tr->vector};
	tr->e = (struct emitter){.at = code, .end = code + CODE_MAX};
	second_pass(tr, xblock);
	if (tr->failed || tr->e.full) {
		t->arena.used = used;
		t->link_count = links;
		t->site_count = sites;
		t->counters.failed++;
		free(xblock);
		return NULL;
	}
	t->arena.used = (size_t)(tr->e.at - t->arena.write);
	trace_translation(tr, xblock, code);
	t->counters.blocks++;
	t->counters.bytes += (uint64_t)(tr->e.at - code);
	t->counters.instructions += tr->count;
	t->counters.fallbacks += tr->item[tr->count - 1].kind == KIND_FALLBACK;
	return xblock;
}
