/*
 * Sensitive instructions that kernels run often.
 *
 * The simple ones are a few host instructions here. The others, and the rare cases of these, are the interpreter's: what is
 * not terminal is called out; of what is terminal the slot runs and the code goes on where that led, in translated code,
 * through the cache of indirect targets (translator_sensitive).
 *
 * Code of the supervisors' views runs at CPL 0, code of the user's at CPL 3 (MODE_INNER keeps CPL 1 and 2 out), and never in
 * virtual-8086 mode. rflags' arithmetic bits are stale while translated code runs, its others exact.
 */
#include "engines/translator/translation.h"
#include "x86/system.h"

static bool supervisor(const struct translation *tr)
{
	return tr->view != MMU_USER;
}

/* Byte `n` of rflags. */
static uint32_t rflags_abs(const struct translation *tr, unsigned n)
{
	return xabs(&tr->t->vcpu->state.rflags) + n;
}

#define IF_BYTE 1u /* of rflags, and the bit in it */
#define IF_BIT  0x02u
#define AC_BYTE 2u
#define AC_BIT  0x04u

/* Group 1 (extension: 1 or, 4 and) and TEST on a byte in memory. They destroy EFLAGS. */
static void emit_byte_operation(struct emitter *e, unsigned extension, uint32_t abs, unsigned immediate)
{
	emit_op_abs(e, false, 0x80, extension, abs);
	emit_byte(e, immediate);
}

static void emit_test_byte(struct emitter *e, uint32_t abs, unsigned immediate)
{
	emit_op_abs(e, false, 0xf6, 0, abs);
	emit_byte(e, immediate);
}

static bool is_control_register(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_CONTROL;
}

/* Where MOV from a control register finds it; 0: not that simple. */
static uint32_t control_abs(const struct translation *tr, const ZydisDecodedOperand *o)
{
	const struct cpu_state *s = &tr->t->vcpu->state;

	switch (o->reg.value) {
	case ZYDIS_REGISTER_CR0:
		return xabs(&s->cr0);
	case ZYDIS_REGISTER_CR2:
		return xabs(&s->cr2);
	case ZYDIS_REGISTER_CR3:
		return xabs(&s->cr3);
	case ZYDIS_REGISTER_CR4:
		return xabs(&s->cr4);
	default:
		return 0;
	}
}

enum kind classify_system(struct translation *tr, const struct item *item)
{
	const struct cpu_model *model = tr->t->vcpu->model;
	const ZydisDecodedOperand *o = item->operand;
	bool wide = !tr->code32;

	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_CLI:
		return supervisor(tr) ? KIND_SYSTEM : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_SWAPGS:
		return supervisor(tr) && wide ? KIND_SYSTEM : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLAC:
		return supervisor(tr) && !(model && !model->smap) ? KIND_SYSTEM : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_PUSHFQ:
		return wide && item->i.operand_width == 64 ? KIND_SYSTEM : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
		return wide && !(model && !model->fsgsbase) ? KIND_SYSTEM : KIND_FALLBACK;
	case ZYDIS_MNEMONIC_MOV:
		if (is_control_register(&o[1]))
			return supervisor(tr) && wide && control_abs(tr, &o[1]) ? KIND_SYSTEM : KIND_FALLBACK;
		return is_control_register(&o[0]) ? KIND_SYSTEM_END : KIND_GENERIC;
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_INVLPG:
	case ZYDIS_MNEMONIC_INVPCID:
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_SYSENTER:
	case ZYDIS_MNEMONIC_SYSEXIT:
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_INT:
		return KIND_SYSTEM_END;
	default:
		return KIND_GENERIC;
	}
}

/*
 * Flags that must be right before it, for an exception, for what it does with them, or (CLI) because an interrupt may not
 * be put off until behind it.
 */
uint32_t system_flags(const struct item *item)
{
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_STI:
		return 0;
	default:
		return ALL_FLAGS;
	}
}

/* Out of line: the interpreter does it. */
static void otherwise(struct translation *tr, const struct item *item, int kind, uint8_t *place)
{
	pend(tr, kind, place)->item = item;
}

static void translate_swapgs(struct translation *tr)
{
	struct cpu_state *s = &tr->t->vcpu->state;
	struct emitter *e = &tr->e;

	emit_load(e, S1, xabs(&s->segment[SEG_GS].base));
	emit_load(e, S2, xabs(&s->msr.kernel_gs_base));
	emit_store(e, S2, xabs(&s->segment[SEG_GS].base));
	emit_store(e, S1, xabs(&s->msr.kernel_gs_base));
}

/* What follows is translated for the other view (SDM 3A 4.6.1). */
static void translate_stac_clac(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	bool set = item->i.mnemonic == ZYDIS_MNEMONIC_STAC;
	enum mmu_view view = set ? MMU_SUPERVISOR_AC : MMU_SUPERVISOR;

	flags_keep(tr, item->live_before);
	tr->in_register = false;
	if (!set && tr->view == MMU_SUPERVISOR_AC) {
		/* Without SMAP the view stays: left to the interpreter, with the rest of the block. */
		flags_keep(tr, ALL_FLAGS);
		emit_test_byte(e, xabs(&tr->t->vcpu->state.cr4) + 2, CR4_SMAP >> 16);
		pend(tr, PENDING_SLOT, emit_jump_if(e, CC_E))->slot = item->slot;
	}
	emit_byte_operation(e, set ? 1 : 4, rflags_abs(tr, AC_BYTE), set ? AC_BIT : ~AC_BIT & 0xff);
	if (tr->view != view) {
		emit_store_imm(e, false, xabs(&tr->t->vcpu->mmu.view), view);
		emit_store(e, RSP, xabs(&tr->t->return_rsp[tr->view]));
		emit_load(e, RSP, xabs(&tr->t->return_rsp[view]));
		tr->code_view += view - tr->view;
		tr->view = view;
	}
}

static void translate_pushf(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	const uint32_t image = xabs(&tr->t->target);

	flags_keep(tr, ALL_FLAGS);
	flags_want(tr);
	emit_byte(e, 0x9c); /* pushfq */
	emit_byte(e, 0x41); /* pop r10 */
	emit_byte(e, 0x5a);
	emit_group1(e, false, 4, S2, (int32_t)FLAG_ARITHMETIC);
	emit_load32(e, S1, rflags_abs(tr, 0));
	emit_group1(e, false, 4, S1, (int32_t) ~(uint32_t)(FLAG_ARITHMETIC | FLAG_VM | FLAG_RF));
	emit_op_reg(e, false, 0x09, S1, S2); /* or */
	emit_store(e, S2, image);
	tr->in_register = false;
	emit_lea(e, S1, GUEST_RSP, -8);
	lower_check(tr, item, 8, true);
	emit_load(e, S2, image);
	emit_op_base(e, true, 0x89, S2, S1, 0);
	emit_lea(e, GUEST_RSP, GUEST_RSP, -8);
}

static void translate_read_base(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	enum segment_register segment = item->i.mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? SEG_FS : SEG_GS;
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S1);
	uint32_t base = xabs(&tr->t->vcpu->state.segment[segment].base);

	flags_keep(tr, ALL_FLAGS);
	tr->in_register = false;
	emit_test_byte(e, xabs(&tr->t->vcpu->state.cr4) + 2, CR4_FSGSBASE >> 16);
	otherwise(tr, item, PENDING_CALL_OUT, emit_jump_if(e, CC_E));
	if (item->operand[0].size == 64)
		emit_load(e, to, base);
	else
		emit_load32(e, to, base);
	store_result(tr, guest, to);
}

static void translate_read_control(struct translation *tr, const struct item *item)
{
	bool high;
	unsigned guest = (unsigned)operand_gpr(&item->operand[0], &high), to = result_in(guest, S1);

	emit_load(&tr->e, to, control_abs(tr, &item->operand[1]));
	store_result(tr, guest, to);
}

void translate_system(struct translation *tr, const struct item *item)
{
	switch (item->i.mnemonic) {
	case ZYDIS_MNEMONIC_CLI:
		flags_keep(tr, item->live_before);
		tr->in_register = false;
		emit_byte_operation(&tr->e, 4, rflags_abs(tr, IF_BYTE), ~IF_BIT & 0xff);
		break;
	case ZYDIS_MNEMONIC_SWAPGS:
		translate_swapgs(tr);
		break;
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLAC:
		translate_stac_clac(tr, item);
		break;
	case ZYDIS_MNEMONIC_PUSHFQ:
		translate_pushf(tr, item);
		break;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
		translate_read_base(tr, item);
		break;
	default:
		translate_read_control(tr, item);
		break;
	}
}

/* ---- terminal ones ---- */

/* The slots of the block's last instruction. */
static unsigned slots_to_end(const struct translation *tr, const struct item *item)
{
	return (unsigned)((const struct insn *)tr->part[item->part].block->bytes - item->slot);
}

void call_sensitive(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	unsigned slots = slots_to_end(tr, item);

	flags_keep(tr, ALL_FLAGS);
	emit_increment_abs(e, xabs(&tr->t->counters.fallback[item->i.mnemonic]));
	tr->in_register = false;
	if (slots > CALL_OUT_MAX || item->slots) { /* not the last one after all */
		tr->failed = true;
		return;
	}
	struct xsite *site = new_site(tr, item, 0, false);
	site->slots = (uint8_t)slots & 15;
	site->no_links = item->i.mnemonic == ZYDIS_MNEMONIC_STI || item->i.mnemonic == ZYDIS_MNEMONIC_POPF ||
	                 item->i.mnemonic == ZYDIS_MNEMONIC_POPFD || item->i.mnemonic == ZYDIS_MNEMONIC_POPFQ;
	emit_store_address(e, xabs(&tr->t->exit_argument), xabs(site));
	emit_jump_to(e, tr->t->sensitive);
}

/*
 * STI that changes IF opens the window behind the next instruction (SDM 2B STI): blocks that follow directly are entered
 * without a look at `attention`, and where the way leaves to C its stub says that there is a shadow. What waited already while
 * IF was 0 must set `attention` now.
 */
static void translate_sti(struct translation *tr, const struct item *item)
{
	struct emitter *e = &tr->e;
	uint64_t from = tr->rip + item->offset, next = (from + item->i.length) & tr->rip_mask;

	flags_keep(tr, item->live_before);
	tr->in_register = false;
	emit_test_byte(e, rflags_abs(tr, IF_BYTE), IF_BIT);
	uint8_t *on = emit_jump_if(e, CC_NE);
	emit_compare8_abs(e, xabs(&tr->t->vcpu->interrupt_deferred), 0);
	otherwise(tr, item, PENDING_SENSITIVE, emit_jump_if(e, CC_NE));
	emit_byte_operation(e, 1, rflags_abs(tr, IF_BYTE), IF_BIT);
	emit_fix(e, on);
	tr->shadow = true;
	exit_direct(tr, from, next);
	tr->shadow = false;
}

void translate_system_end(struct translation *tr, const struct item *item)
{
	if (item->i.mnemonic == ZYDIS_MNEMONIC_STI && supervisor(tr))
		translate_sti(tr, item);
	else
		call_sensitive(tr, item);
}
