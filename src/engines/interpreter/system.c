/*
 * Sensitive instructions: each is one call of a routine of x86/ with exact state around it. Those that may change what
 * code means are terminal; the others go on in their block.
 */
#include "x86/system.h"

#include <string.h>

#include "engines/interpreter/decode.h"
#include "engines/interpreter/stack.h"
#include "x86/segments.h"

static void require_cpl0(struct vcpu *vcpu)
{
	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_GP);
}

static uint64_t pair(const struct vcpu *vcpu)
{
	return vcpu->state.gpr[RDX] << 32 | (uint32_t)vcpu->state.gpr[RAX];
}

static void set_pair(struct vcpu *vcpu, uint64_t value)
{
	vcpu->state.gpr[RAX] = (uint32_t)value;
	vcpu->state.gpr[RDX] = value >> 32;
}

/*
 * Slots in front of an address slot: what must hold before the operand is looked at (SDM 3A table 6-2 puts it so, and
 * the silicon does).
 */
void check_cpl0(PARAMETERS)
{
	if (unlikely(cpu_cpl(&vcpu->state) != 0)) {
		SLOW_ENTER;
		x86_raise(vcpu, VECTOR_GP);
	}
	NEXT;
}

void check_protected(PARAMETERS)
{
	if (unlikely(cpu_real_or_vm86(&vcpu->state))) {
		SLOW_ENTER;
		x86_raise(vcpu, VECTOR_UD);
	}
	NEXT;
}

static void check_umip(PARAMETERS)
{
	SLOW_ENTER;
	x86_check_umip(vcpu);
	NEXT;
}

/* Control and debug registers: a is the general register, b the number. */

static uint64_t natural(const struct vcpu *vcpu, uint64_t value)
{
	return cpu_64bit_code(&vcpu->state) ? value : (uint32_t)value;
}

static void mov_from_cr(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	REG64(insn->a) = natural(vcpu, x86_mov_from_cr(vcpu, insn->b));
	EXACT_LEAVE;
}

static void mov_to_cr(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_mov_to_cr(vcpu, insn->b, natural(vcpu, REG64(insn->a)));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void mov_from_dr(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	REG64(insn->a) = natural(vcpu, x86_mov_from_dr(vcpu, insn->b));
	EXACT_LEAVE;
}

static void mov_to_dr(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_mov_to_dr(vcpu, insn->b, natural(vcpu, REG64(insn->a)));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void clts(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	x86_clts(vcpu);
	native_update_classes(vcpu);
	EXACT_LEAVE;
}

static void lmsw_register(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_lmsw(vcpu, REG16(insn->a));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void lmsw_memory(PARAMETERS, uint64_t linear)
{
	exact_enter(vcpu, insn, flags);
	require_cpl0(vcpu);
	x86_lmsw(vcpu, (uint16_t)slow_read(vcpu, insn, linear, 2));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

/* SMSW, SLDT, STR: b is the register's width; memory always takes 16 bits. */
enum { STORE_SMSW, STORE_SLDT, STORE_STR };

static uint64_t system_word(struct vcpu *vcpu, unsigned which)
{
	if (which != STORE_SMSW && cpu_real_or_vm86(&vcpu->state))
		x86_raise(vcpu, VECTOR_UD);
	x86_check_umip(vcpu);
	switch (which) {
	case STORE_SMSW:
		return vcpu->state.cr0; /* a wide register gets all of CR0 (SDM 2B SMSW) */
	case STORE_SLDT:
		return vcpu->state.segment[SEG_LDTR].selector;
	default:
		return vcpu->state.segment[SEG_TR].selector;
	}
}

static void store_word_register(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags), value = system_word(vcpu, insn->scale);

	if (insn->b == 2)
		write16(vcpu, insn->a, (uint16_t)value);
	else
		write64(vcpu, insn->a, insn->b == 4 ? (uint32_t)value : value);
	EXACT_LEAVE;
}

static void store_word_memory(PARAMETERS, uint64_t linear)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags), value = system_word(vcpu, insn->b);

	slow_write(vcpu, insn, linear, 2, (uint16_t)value);
	EXACT_LEAVE;
}

/* SGDT, SIDT, LGDT, LIDT: a tells which table. */
static struct descriptor_table *table_of(struct vcpu *vcpu, const struct insn *insn)
{
	return insn->a ? &vcpu->state.idtr : &vcpu->state.gdtr;
}

static NOINLINE void write_table(struct vcpu *vcpu, const struct insn *insn, uint64_t linear)
{
	const struct descriptor_table *table = table_of(vcpu, insn);
	unsigned base_size = cpu_64bit_code(&vcpu->state) ? 8 : 4;
	uint8_t image[10];

	x86_check_umip(vcpu);
	memcpy(image, &table->limit, 2);
	memcpy(image + 2, &table->base, 8);
	slow_check(vcpu, insn, linear, 2 + base_size);
	mmu_write_bytes(vcpu, linear, image, 2 + base_size);
}

static void store_table(PARAMETERS, uint64_t linear)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	write_table(vcpu, insn, linear);
	EXACT_LEAVE;
}

static void load_table(PARAMETERS, uint64_t linear)
{
	exact_enter(vcpu, insn, flags);
	struct descriptor_table *table = table_of(vcpu, insn);
	unsigned base_size = cpu_64bit_code(&vcpu->state) ? 8 : 4;
	uint8_t image[10] = {0};
	uint64_t base;
	uint16_t limit;

	require_cpl0(vcpu);
	slow_check(vcpu, insn, linear, 2 + base_size);
	mmu_read_bytes(vcpu, linear, image, 2 + base_size);
	memcpy(&limit, image, 2);
	memcpy(&base, image + 2, 8);
	if (base_size == 4 && insn->b == 2)
		base &= 0xffffff; /* a 16-bit operand size loads 24 bits (SDM 2A LGDT) */
	if (!cpu_canonical(base))
		x86_raise(vcpu, VECTOR_GP);
	table->base = base;
	table->limit = limit;
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, false);
}

/* MSRs, time stamps, identification. */

static void rdmsr(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	set_pair(vcpu, x86_rdmsr(vcpu, (uint32_t)vcpu->state.gpr[RCX]));
	EXACT_LEAVE;
}

static void wrmsr(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_wrmsr(vcpu, (uint32_t)vcpu->state.gpr[RCX], pair(vcpu));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void rdtsc(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	set_pair(vcpu, x86_rdtsc(vcpu));
	EXACT_LEAVE;
}

static void rdtscp(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	set_pair(vcpu, x86_rdtsc(vcpu));
	vcpu->state.gpr[RCX] = (uint32_t)vcpu->state.msr.tsc_aux;
	EXACT_LEAVE;
}

static void rdpid(PARAMETERS)
{
	REG64(insn->a) = (uint32_t)vcpu->state.msr.tsc_aux;
	NEXT;
}

static void rdpmc(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	set_pair(vcpu, x86_rdpmc(vcpu, (uint32_t)vcpu->state.gpr[RCX]));
	EXACT_LEAVE;
}

static NOINLINE void identify(struct vcpu *vcpu)
{
	uint64_t *gpr = vcpu->state.gpr;
	uint32_t out[4];

	x86_cpuid(vcpu, (uint32_t)gpr[RAX], (uint32_t)gpr[RCX], out);
	gpr[RAX] = out[0];
	gpr[RBX] = out[1];
	gpr[RCX] = out[2];
	gpr[RDX] = out[3];
}

static void cpuid(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	identify(vcpu);
	EXACT_LEAVE;
}

static void xgetbv(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	set_pair(vcpu, x86_xgetbv(vcpu, (uint32_t)vcpu->state.gpr[RCX]));
	EXACT_LEAVE;
}

static void xsetbv(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_xsetbv(vcpu, (uint32_t)vcpu->state.gpr[RCX], pair(vcpu));
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

/* TLB and caches. INVLPG's address is not accessed: a non-canonical one does nothing. */

static void invlpg(PARAMETERS)
{
	uint64_t offset = REG64(insn->base) + (REG64(insn->index) << insn->a) + (uint64_t)(int64_t)insn->displacement;

	if (insn->b & GENERAL_MASK32)
		offset = (uint32_t)offset;
	else if (insn->b & GENERAL_MASK16)
		offset = (uint16_t)offset;
	enum segment_register segment = GENERAL_SEGMENT(insn->b);
	exact_enter(vcpu, insn, flags);
	if (!cpu_64bit_code(&vcpu->state))
		offset = (uint32_t)(offset + vcpu->state.segment[segment].base);
	else if (segment == SEG_FS || segment == SEG_GS)
		offset += vcpu->state.segment[segment].base;
	x86_invlpg(vcpu, offset);
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void invpcid(PARAMETERS, uint64_t linear)
{
	uint64_t descriptor[2];

	exact_enter(vcpu, insn, flags);
	require_cpl0(vcpu);
	slow_check(vcpu, insn, linear, 16);
	mmu_read_bytes(vcpu, linear, descriptor, 16);
	x86_invpcid(vcpu, natural(vcpu, REG64(insn->a)), descriptor[0], descriptor[1]);
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exact(vcpu, insn, true);
}

static void invd(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	require_cpl0(vcpu);
	EXACT_LEAVE;
}

/* CLFLUSH and its like fault as a read of one byte does; there is nothing to flush. */
static void clflush(PARAMETERS, uint64_t linear)
{
	SLOW_ENTER;
	slow_check(vcpu, insn, linear, 1);
	mmu_translate(vcpu, linear, MMU_READ, vcpu->mmu.view);
	NEXT;
}

static void memory_fence(PARAMETERS)
{
	atomic_thread_fence(memory_order_seq_cst);
	NEXT;
}

/* Interrupt flag, stacked flags. */

static void cli(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	x86_cli(vcpu);
	EXACT_LEAVE;
}

/*
 * After STI one instruction runs before interrupts are looked at. With nothing waiting and the next block linked, it is
 * entered without a look; else the run loop sees the shadow: all of the block may run with IF, and a CLI end it.
 */
static void sti(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);
	bool shadow = x86_sti(vcpu);
	struct link *link = &block_of(insn)->link[NOT_TAKEN];
	uint64_t rip = following_rip(vcpu, insn);

	if (shadow)
		vcpu->state.interrupt_shadow = SHADOW_STI;
	vcpu->state.rip = block_rip;
	COUNT_BLOCK;
	if (CHAIN && link->rip == rip && link->context == vcpu->code_context &&
	    !(shadow && atomic_load_explicit(&vcpu->attention, memory_order_relaxed)) &&
	    atomic_load_explicit(link->block->generation_now, memory_order_relaxed) == link->block->generation) {
		vcpu->state.interrupt_shadow = 0;
		vcpu->state.rip = rip;
		return link->block->insn[0].run(vcpu, link->block->insn, flags, tlb);
	}
	return leave_to(ARGUMENTS, link, rip);
}

static void pushf(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags), pointer = stack_pointer(vcpu) - insn->b;

	stack_write(vcpu, pointer, insn->b, x86_pushf(vcpu, insn->b));
	stack_set_pointer(vcpu, pointer);
	EXACT_LEAVE;
}

static void popf(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags), pointer = stack_pointer(vcpu);
	uint64_t before = vcpu->state.rflags;
	uint64_t image = stack_read(vcpu, pointer, insn->b);

	x86_popf(vcpu, insn->b, image);
	stack_set_pointer(vcpu, pointer + insn->b);
	uint64_t rip = following_rip(vcpu, insn);
	if (((before ^ vcpu->state.rflags) & (FLAG_TF | FLAG_AC | FLAG_VM | FLAG_RF)) || vcpu->mmu.stop) {
		vcpu->state.rip = rip;
		return leave_exact(vcpu, insn, true);
	}
	/* Nothing but arithmetic flags, IF, DF and the like: the next block's meaning is as before. */
	vcpu->state.rip = block_rip;
	flags_split(vcpu);
	flags = flags_load(vcpu);
	COUNT_BLOCK;
	FOLLOW(&block_of(insn)->link[NOT_TAKEN], rip);
}

static void stac_clac(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	if (cpu_cpl(&vcpu->state) != 0)
		x86_raise(vcpu, VECTOR_UD);
	if (insn->a)
		vcpu->state.rflags |= FLAG_AC;
	else
		vcpu->state.rflags &= ~FLAG_AC;
	mmu_update_view(vcpu);
	tlb = vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ];
	EXACT_LEAVE;
}

/* Waiting. */

static void hlt(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_hlt(vcpu);
	vcpu->state.rip = following_rip(vcpu, insn);
	return leave_exit(vcpu, insn, EXIT_HALT);
}

static void monitor(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags), offset = vcpu->state.gpr[RAX];

	require_cpl0(vcpu);
	if (insn->base != 8)
		offset = insn->base == 4 ? (uint32_t)offset : (uint16_t)offset;
	uint64_t linear = segment_linear(vcpu, (enum segment_register)insn->index, offset, 1, false);
	mmu_translate(vcpu, linear, MMU_READ, vcpu->mmu.view);
	x86_monitor(vcpu, linear);
	EXACT_LEAVE;
}

static void mwait(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_mwait(vcpu);
	vcpu->state.rip = following_rip(vcpu, insn);
	if (vcpu->state.activity == ACTIVITY_HALTED)
		return leave_exit(vcpu, insn, EXIT_HALT);
	return leave_exact(vcpu, insn, false);
}

/* FS and GS bases. */

static void swapgs(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);

	x86_swapgs(vcpu);
	EXACT_LEAVE;
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: `index` is the segment, b the width, scale: write. */
static void segment_base(PARAMETERS)
{
	uint64_t block_rip = exact_enter(vcpu, insn, flags);
	uint64_t *base = &vcpu->state.segment[insn->index].base;

	if (!(vcpu->state.cr4 & CR4_FSGSBASE))
		x86_raise(vcpu, VECTOR_UD);
	if (insn->scale) {
		uint64_t value = insn->b == 4 ? REG32(insn->a) : REG64(insn->a);
		if (!cpu_canonical(value))
			x86_raise(vcpu, VECTOR_GP);
		*base = value;
	} else {
		REG64(insn->a) = insn->b == 4 ? (uint32_t)*base : *base;
	}
	EXACT_LEAVE;
}

/* Software interrupts, system calls, undefined instructions. */

static void software(PARAMETERS)
{
	enum software_interrupt kind = (enum software_interrupt)insn->a;
	unsigned vector = insn->b;

	if (kind == SOFTWARE_INTO && !(flags & HOT_OF)) {
		vcpu->state.rip = (vcpu->state.rip + insn->offset + insn->scale) & interpreter_of(vcpu)->rip_mask;
		flags_store(vcpu, flags);
		flags_whole(vcpu);
		vcpu->executing = NULL;
		return leave_exact(vcpu, insn, false);
	}
	exact_enter(vcpu, insn, flags);
	if (kind != SOFTWARE_INT_N && exception_intercepted(vcpu, vector)) {
		vcpu->exception = (struct exception){.vector = (uint8_t)vector, .software = true};
		/* A trap: RIP is what its handler would find. */
		vcpu->state.rip = following_rip(vcpu, insn);
		return leave_exit(vcpu, insn, EXIT_EXCEPTION);
	}
	software_interrupt(vcpu, kind, vector, following_rip(vcpu, insn));
	interpreter_of(vcpu)->no_trap = true; /* delivery cleared TF (SDM 3B 17.3.1.4) */
	return leave_exact(vcpu, insn, true);
}

static void iret(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	stack_check_alignment(vcpu, insn->b);
	x86_iret(vcpu, insn->b, following_rip(vcpu, insn));
	return leave_exact(vcpu, insn, true);
}

static void syscall(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_syscall(vcpu, following_rip(vcpu, insn));
	interpreter_of(vcpu)->no_trap = !(vcpu->state.rflags & FLAG_TF); /* SFMASK */
	return leave_exact(vcpu, insn, true);
}

static void sysret(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_sysret(vcpu, insn->b);
	return leave_exact(vcpu, insn, true);
}

static void sysenter(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_sysenter(vcpu);
	return leave_exact(vcpu, insn, true);
}

static void sysexit(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_sysexit(vcpu, insn->b);
	return leave_exact(vcpu, insn, true);
}

static void undefined(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_raise(vcpu, VECTOR_UD);
}

static void too_long(PARAMETERS)
{
	exact_enter(vcpu, insn, flags);
	x86_raise(vcpu, VECTOR_GP);
}

/* Decoding. */

void emit_invalid(struct decoder *d)
{
	emit_terminal(d, undefined);
}

void emit_too_long(struct decoder *d)
{
	emit_terminal(d, too_long);
}

static struct insn *terminal(struct decoder *d, handler *run)
{
	struct insn *insn = emit_terminal(d, run);

	insn->b = (uint8_t)(d->instruction.operand_width / 8);
	return insn;
}

static bool mov_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	struct insn *insn;

	if (!is_register(to) || !is_register(from))
		return false;
	ZydisRegisterClass to_class = ZydisRegisterGetClass(to->reg.value);
	ZydisRegisterClass from_class = ZydisRegisterGetClass(from->reg.value);
	if (from_class == ZYDIS_REGCLASS_CONTROL || from_class == ZYDIS_REGCLASS_DEBUG) {
		insn = emit(d, from_class == ZYDIS_REGCLASS_CONTROL ? mov_from_cr : mov_from_dr);
		insn->a = (uint8_t)register_offset(to->reg.value);
		insn->b = (uint8_t)ZydisRegisterGetId(from->reg.value);
		return true;
	}
	if (to_class == ZYDIS_REGCLASS_CONTROL || to_class == ZYDIS_REGCLASS_DEBUG) {
		insn = emit_terminal(d, to_class == ZYDIS_REGCLASS_CONTROL ? mov_to_cr : mov_to_dr);
		insn->a = (uint8_t)register_offset(from->reg.value);
		insn->b = (uint8_t)ZydisRegisterGetId(to->reg.value);
		return true;
	}
	return false;
}

static bool store_word_decode(struct decoder *d, unsigned which)
{
	const ZydisDecodedOperand *to = &d->operand[0];
	struct insn *insn;

	if (is_memory(to)) {
		if (which != STORE_SMSW)
			emit(d, check_protected);
		emit(d, check_umip);
		emit_memory_at(d, to, 2, true, store_word_memory)->b = (uint8_t)which;
		return true;
	}
	insn = emit(d, store_word_register);
	insn->a = (uint8_t)register_offset(to->reg.value);
	insn->b = (uint8_t)(to->size / 8);
	insn->scale = (uint8_t)which;
	return true;
}

static bool lmsw_decode(struct decoder *d)
{
	const ZydisDecodedOperand *from = &d->operand[0];

	if (is_memory(from)) {
		emit(d, check_cpl0);
		emit_address(d, from, 2, false);
		emit_terminal(d, lmsw_memory);
	} else {
		emit_terminal(d, lmsw_register)->a = (uint8_t)register_offset(from->reg.value);
	}
	return true;
}

static bool table_decode(struct decoder *d, bool load, bool idt)
{
	unsigned size = decoder_64(d) ? 10 : 6;
	struct insn *insn;

	emit(d, load ? check_cpl0 : check_umip);
	emit_address(d, &d->operand[0], size, !load);
	insn = load ? terminal(d, NULL) : emit(d, store_table);
	if (load)
		insn->run_at = load_table;
	insn->a = idt;
	return true;
}

static bool invlpg_decode(struct decoder *d)
{
	struct insn *insn = emit_terminal(d, invlpg);
	uint8_t length = insn->scale;
	unsigned address_size = fill_address(d, insn, &d->operand[0]);

	insn->a = insn->scale;
	insn->scale = length;
	insn->b = (uint8_t)(operand_segment(&d->operand[0]) << 4 | (address_size == 4   ? GENERAL_MASK32
	                                                            : address_size == 2 ? GENERAL_MASK16
	                                                                                : 0));
	/* fill_address() may have used the immediate, which is the block of a terminal slot and not needed by this
	 * handler. */
	return true;
}

static bool invpcid_decode(struct decoder *d)
{
	struct insn *insn;

	if (d->vcpu->model && !d->vcpu->model->invpcid)
		return false;
	emit(d, check_cpl0);
	emit_address(d, &d->operand[1], 16, false);
	insn = emit_terminal(d, invpcid);
	insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
	return true;
}

static bool segment_base_decode(struct decoder *d, enum segment_register segment, bool write)
{
	struct insn *insn;

	if (d->vcpu->model && !d->vcpu->model->fsgsbase)
		return false;
	insn = emit(d, segment_base);
	insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
	insn->b = (uint8_t)(d->operand[0].size / 8);
	insn->index = (uint16_t)segment;
	insn->scale = write;
	return true;
}

static bool software_decode(struct decoder *d, enum software_interrupt kind, unsigned vector)
{
	struct insn *insn = emit_terminal(d, software);

	insn->a = (uint8_t)kind;
	insn->b = (uint8_t)vector;
	return true;
}

static bool monitor_decode(struct decoder *d)
{
	struct insn *insn;

	if (d->vcpu->model && !d->vcpu->model->monitor)
		return false;
	insn = emit(d, monitor);
	insn->base = (uint16_t)(d->instruction.address_width / 8);
	insn->index = SEG_DS;
	for (unsigned i = 0; i < d->instruction.operand_count; i++)
		if (is_memory(&d->operand[i]))
			insn->index = (uint16_t)operand_segment(&d->operand[i]);
	return true;
}

static bool simple(struct decoder *d, handler *run)
{
	emit(d, run);
	return true;
}

static bool ending(struct decoder *d, handler *run)
{
	terminal(d, run);
	return true;
}

bool system_decode(struct decoder *d)
{
	const struct cpu_model *model = d->vcpu->model;

	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_decode(d);
	case ZYDIS_MNEMONIC_CLTS:
		return simple(d, clts);
	case ZYDIS_MNEMONIC_LMSW:
		return lmsw_decode(d);
	case ZYDIS_MNEMONIC_SMSW:
		return store_word_decode(d, STORE_SMSW);
	case ZYDIS_MNEMONIC_SLDT:
		return store_word_decode(d, STORE_SLDT);
	case ZYDIS_MNEMONIC_STR:
		return store_word_decode(d, STORE_STR);
	case ZYDIS_MNEMONIC_SGDT:
		return table_decode(d, false, false);
	case ZYDIS_MNEMONIC_SIDT:
		return table_decode(d, false, true);
	case ZYDIS_MNEMONIC_LGDT:
		return table_decode(d, true, false);
	case ZYDIS_MNEMONIC_LIDT:
		return table_decode(d, true, true);
	case ZYDIS_MNEMONIC_RDMSR:
		return simple(d, rdmsr);
	case ZYDIS_MNEMONIC_WRMSR:
		return ending(d, wrmsr);
	case ZYDIS_MNEMONIC_RDTSC:
		return simple(d, rdtsc);
	case ZYDIS_MNEMONIC_RDTSCP:
		return simple(d, rdtscp);
	case ZYDIS_MNEMONIC_RDPID:
		if (model && !model->rdpid)
			return false;
		emit(d, rdpid)->a = (uint8_t)register_offset(d->operand[0].reg.value);
		return true;
	case ZYDIS_MNEMONIC_RDPMC:
		return simple(d, rdpmc);
	case ZYDIS_MNEMONIC_CPUID:
		return simple(d, cpuid);
	case ZYDIS_MNEMONIC_XGETBV:
		return simple(d, xgetbv);
	case ZYDIS_MNEMONIC_XSETBV:
		return ending(d, xsetbv);
	case ZYDIS_MNEMONIC_INVLPG:
		return invlpg_decode(d);
	case ZYDIS_MNEMONIC_INVPCID:
		return invpcid_decode(d);
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD:
		return simple(d, invd);
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
		emit_memory_at(d, &d->operand[0], 1, false, clflush);
		return true;
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
		return simple(d, memory_fence);
	case ZYDIS_MNEMONIC_CLI:
		return simple(d, cli);
	case ZYDIS_MNEMONIC_STI:
		return ending(d, sti);
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		emit(d, pushf)->b = (uint8_t)(d->instruction.operand_width / 8);
		return true;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		return ending(d, popf);
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLAC:
		if (model && !model->smap)
			return false;
		emit(d, stac_clac)->a = d->instruction.mnemonic == ZYDIS_MNEMONIC_STAC;
		return true;
	case ZYDIS_MNEMONIC_HLT:
		return ending(d, hlt);
	case ZYDIS_MNEMONIC_MONITOR:
		return monitor_decode(d);
	case ZYDIS_MNEMONIC_MWAIT:
		return model && !model->monitor ? false : ending(d, mwait);
	case ZYDIS_MNEMONIC_SWAPGS:
		return simple(d, swapgs);
	case ZYDIS_MNEMONIC_RDFSBASE:
		return segment_base_decode(d, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE:
		return segment_base_decode(d, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE:
		return segment_base_decode(d, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE:
		return segment_base_decode(d, SEG_GS, true);
	case ZYDIS_MNEMONIC_INT:
		return software_decode(d, SOFTWARE_INT_N, (unsigned)(d->operand[0].imm.value.u & 0xff));
	case ZYDIS_MNEMONIC_INT3:
		return software_decode(d, SOFTWARE_INT3, VECTOR_BP);
	case ZYDIS_MNEMONIC_INTO:
		return software_decode(d, SOFTWARE_INTO, VECTOR_OF);
	case ZYDIS_MNEMONIC_INT1:
		return software_decode(d, SOFTWARE_INT1, VECTOR_DB);
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		return ending(d, iret);
	case ZYDIS_MNEMONIC_SYSCALL:
		return ending(d, syscall);
	case ZYDIS_MNEMONIC_SYSRET:
		return ending(d, sysret);
	case ZYDIS_MNEMONIC_SYSENTER:
		return ending(d, sysenter);
	case ZYDIS_MNEMONIC_SYSEXIT:
		return ending(d, sysexit);
	default:
		return false;
	}
}
