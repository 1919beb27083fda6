/*
 * MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, CBW and its like, NOP, XLAT. MOVs to and from segment, control and debug
 * registers are elsewhere.
 */
#include "engines/interpreter/decode.h"
#include "machine/overcommit.h"
#include "x86/system.h"

/* Register, register; register, immediate. */
#define MOVE(bits)                                                                                                     \
	static void mov_rr_##bits(PARAMETERS)                                                                          \
	{                                                                                                              \
		write##bits(vcpu, insn->a, REG##bits(insn->b));                                                        \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static void mov_ri_##bits(PARAMETERS)                                                                          \
	{                                                                                                              \
		write##bits(vcpu, insn->a, (uint##bits##_t)insn->immediate);                                           \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE uint32_t load_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags,                 \
	                                   uint##bits##_t value)                                                       \
	{                                                                                                              \
		write##bits(vcpu, insn->a, value);                                                                     \
		return flags;                                                                                          \
	}                                                                                                              \
	ALWAYS_INLINE uint##bits##_t store_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags)          \
	{                                                                                                              \
		return REG##bits(insn->a);                                                                             \
	}                                                                                                              \
	ALWAYS_INLINE uint##bits##_t store_i_##bits(struct vcpu *vcpu, const struct insn *insn, uint32_t flags)        \
	{                                                                                                              \
		return (uint##bits##_t)insn->immediate;                                                                \
	}                                                                                                              \
	LOAD(mov_rm_##bits, guest_##bits, load_##bits)                                                                 \
	STORE(mov_mr_##bits, guest_##bits, store_##bits)                                                               \
	STORE(mov_mi_##bits, guest_##bits, store_i_##bits)
MOVE(8)
MOVE(16)
MOVE(32)
MOVE(64)

static const any_handler mov_rr[4] = {{mov_rr_8}, {mov_rr_16}, {mov_rr_32}, {mov_rr_64}};
static const any_handler mov_ri[4] = {{mov_ri_8}, {mov_ri_16}, {mov_ri_32}, {mov_ri_64}};
static memory_table mov_rm[4] = {KIND_TABLE(mov_rm_8), KIND_TABLE(mov_rm_16), KIND_TABLE(mov_rm_32),
                                 KIND_TABLE(mov_rm_64)};
static memory_table mov_mr[4] = {KIND_TABLE(mov_mr_8), KIND_TABLE(mov_mr_16), KIND_TABLE(mov_mr_32),
                                 KIND_TABLE(mov_mr_64)};
static memory_table mov_mi[4] = {KIND_TABLE(mov_mi_8), KIND_TABLE(mov_mi_16), KIND_TABLE(mov_mi_32),
                                 KIND_TABLE(mov_mi_64)};

/* Extensions: `from` bits, signed or not, to `to` bits. A zero extension to 32 bits is one to 64. */
#define EXTEND(name, from, to, from_type, to_type)                                                                     \
	static void name##_rr(PARAMETERS)                                                                              \
	{                                                                                                              \
		write##to(vcpu, insn->a, (uint##to##_t)(to_type)(from_type)REG##from(insn->b));                        \
		NEXT;                                                                                                  \
	}                                                                                                              \
	ALWAYS_INLINE uint32_t name##_load(struct vcpu *vcpu, const struct insn *insn, uint32_t flags,                 \
	                                   uint##from##_t value)                                                       \
	{                                                                                                              \
		write##to(vcpu, insn->a, (uint##to##_t)(to_type)(from_type)value);                                     \
		return flags;                                                                                          \
	}                                                                                                              \
	LOAD(name##_rm, guest_##from, name##_load)

EXTEND(zx_8_16, 8, 16, uint8_t, uint16_t)
EXTEND(zx_8_64, 8, 64, uint8_t, uint64_t)
EXTEND(zx_16_64, 16, 64, uint16_t, uint64_t)
EXTEND(sx_8_16, 8, 16, int8_t, int16_t)
EXTEND(sx_8_32, 8, 32, int8_t, int32_t)
EXTEND(sx_8_64, 8, 64, int8_t, int64_t)
EXTEND(sx_16_32, 16, 32, int16_t, int32_t)
EXTEND(sx_16_64, 16, 64, int16_t, int64_t)
EXTEND(sx_32_64, 32, 64, int32_t, int64_t)

struct extension {
	handler *rr;
	memory_table rm;
};

#define EXTENSION(name)                                                                                                \
	{                                                                                                              \
		name##_rr, KIND_TABLE(name##_rm)                                                                       \
	}
static const struct extension zx_8_to_16 = EXTENSION(zx_8_16), zx_8_to_64 = EXTENSION(zx_8_64),
                              zx_16_to_64 = EXTENSION(zx_16_64), sx_8_to_16 = EXTENSION(sx_8_16),
                              sx_8_to_32 = EXTENSION(sx_8_32), sx_8_to_64 = EXTENSION(sx_8_64),
                              sx_16_to_32 = EXTENSION(sx_16_32), sx_16_to_64 = EXTENSION(sx_16_64),
                              sx_32_to_64 = EXTENSION(sx_32_64);

/* LEA: address size by kind, operand size by suffix. `base`, `index` point at a zero where missing. */
#define LEA_HANDLER(name, to, expression)                                                                              \
	static void name(PARAMETERS)                                                                                   \
	{                                                                                                              \
		write##to(vcpu, insn->a, (uint##to##_t)(expression));                                                  \
		NEXT;                                                                                                  \
	}
#define LEA_BASE (REG64(insn->base) + (uint64_t)(int64_t)insn->displacement)
#define LEA_FULL (LEA_BASE + (REG64(insn->index) << insn->scale))
LEA_HANDLER(lea_b_64, 64, LEA_BASE)
LEA_HANDLER(lea_f_64, 64, LEA_FULL)
LEA_HANDLER(lea_b_32, 32, LEA_BASE)
LEA_HANDLER(lea_f_32, 32, LEA_FULL)
LEA_HANDLER(lea_f_16, 16, LEA_FULL)
LEA_HANDLER(lea_general, 64, LEA_FULL + insn->immediate)
LEA_HANDLER(lea_f32_64, 64, (uint32_t)LEA_FULL)
LEA_HANDLER(lea_f16_64, 64, (uint16_t)LEA_FULL)

#define XCHG(bits)                                                                                                     \
	static void xchg_rr_##bits(PARAMETERS)                                                                         \
	{                                                                                                              \
		uint##bits##_t a = REG##bits(insn->a), b = REG##bits(insn->b);                                         \
		write##bits(vcpu, insn->a, b);                                                                         \
		write##bits(vcpu, insn->b, a);                                                                         \
		NEXT;                                                                                                  \
	}                                                                                                              \
	static COLD void xchg_mr_##bits##_slow(PARAMETERS, uint64_t linear)                                            \
	{                                                                                                              \
		SLOW_ENTER;                                                                                            \
		slow_check(vcpu, insn, linear, bits / 8);                                                              \
		mmu_probe_write(vcpu, linear, bits / 8);                                                               \
		pthread_mutex_lock(&vcpu->memory->split_lock);                                                         \
		uint64_t old = mmu_read(vcpu, linear, bits / 8);                                                       \
		mmu_write(vcpu, linear, bits / 8, REG##bits(insn->a));                                                 \
		pthread_mutex_unlock(&vcpu->memory->split_lock);                                                       \
		write##bits(vcpu, insn->a, (uint##bits##_t)old);                                                       \
		NEXT_SLOW;                                                                                             \
	}                                                                                                              \
	static void xchg_mr_##bits(PARAMETERS, uint64_t linear)                                                        \
	{                                                                                                              \
		struct mmu_tlb_entry *entry = WRITE_ENTRY(linear);                                                     \
		if (!HIT(entry, linear, bits / 8))                                                                     \
			return xchg_mr_##bits##_slow(ARGUMENTS, linear);                                               \
		uint##bits##_t value = REG##bits(insn->a);                                                             \
		__asm__ volatile("xchg %0, %1"                                                                         \
		                 : "+r"(value), "+m"(*(guest_##bits *)(entry->host + linear))                          \
		                 :                                                                                     \
		                 : "memory");                                                                          \
		write##bits(vcpu, insn->a, value);                                                                     \
		if (unlikely(mmu_entry_flags(entry)))                                                                  \
			return written_slow(ARGUMENTS, entry);                                                         \
		NEXT;                                                                                                  \
	}
XCHG(8)
XCHG(16)
XCHG(32)
XCHG(64)

static const any_handler xchg_rr[4] = {{xchg_rr_8}, {xchg_rr_16}, {xchg_rr_32}, {xchg_rr_64}};
static handler_at *const xchg_mr[4] = {xchg_mr_8, xchg_mr_16, xchg_mr_32, xchg_mr_64};

static void bswap_32(PARAMETERS)
{
	write32(vcpu, insn->a, __builtin_bswap32(REG32(insn->a)));
	NEXT;
}
static void bswap_64(PARAMETERS)
{
	write64(vcpu, insn->a, __builtin_bswap64(REG64(insn->a)));
	NEXT;
}

#define AX GPR_OFFSET(RAX)
#define DX GPR_OFFSET(RDX)
#define WIDEN(name, to, target, value)                                                                                 \
	static void name(PARAMETERS)                                                                                   \
	{                                                                                                              \
		write##to(vcpu, target, (uint##to##_t)(value));                                                        \
		NEXT;                                                                                                  \
	}
WIDEN(cbw, 16, AX, (int8_t)REG8(AX))
WIDEN(cwde, 32, AX, (int16_t)REG16(AX))
WIDEN(cdqe, 64, AX, (int64_t)(int32_t)REG32(AX))
WIDEN(cwd, 16, DX, (int16_t)REG16(AX) >> 15)
WIDEN(cdq, 32, DX, (int32_t)REG32(AX) >> 31)
WIDEN(cqo, 64, DX, (int64_t)REG64(AX) >> 63)

/*
 * Who spins waits for another processor, or a device, whose thread may have no host CPU (SDM 2B PAUSE).
 */
static void pause_spin(PARAMETERS)
{
	unsigned often = vcpu->overcommitted ? PAUSES_TO_SLEEP_OVERCOMMITTED : PAUSES_TO_YIELD;

	if (++vcpu->counters.pauses % often == 0)
		overcommit_spins(vcpu);
	NEXT;
}

static void nop(PARAMETERS)
{
	NEXT;
}

static bool is_move_target(const ZydisDecodedOperand *operand)
{
	return is_memory(operand) || is_immediate(operand) || is_general_register(operand);
}

static bool mov_decode(struct decoder *d)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	unsigned bytes = to->size / 8, size;
	struct insn *insn;

	if (!is_move_target(to) || !is_move_target(from))
		return false;
	size = size_index(bytes);
	if (is_memory(to)) {
		insn = emit_memory(d, to, bytes, true, is_immediate(from) ? mov_mi[size] : mov_mr[size]);
		if (is_immediate(from))
			insn->immediate = decoder_immediate(d, from);
		else
			insn->a = (uint8_t)register_offset(from->reg.value);
		return true;
	}
	if (is_memory(from)) {
		insn = emit_memory(d, from, bytes, false, mov_rm[size]);
	} else if (is_immediate(from)) {
		insn = emit(d, mov_ri[size]);
		insn->immediate = decoder_immediate(d, from);
	} else {
		insn = emit(d, mov_rr[size]);
		insn->b = (uint8_t)register_offset(from->reg.value);
	}
	insn->a = (uint8_t)register_offset(to->reg.value);
	return true;
}

static bool extension_decode(struct decoder *d, bool is_signed)
{
	const ZydisDecodedOperand *to = &d->operand[0], *from = &d->operand[1];
	const struct extension *extension;
	struct insn *insn;

	if (to->size == from->size) {
		/* MOVSXD r32, r/m32 and r16, r/m16 (no REX.W) are plain moves. */
		return mov_decode(d);
	}
	if (to->size == 16 && from->size == 8)
		extension = is_signed ? &sx_8_to_16 : &zx_8_to_16;
	else if (from->size == 8)
		extension = !is_signed ? &zx_8_to_64 : to->size == 64 ? &sx_8_to_64 : &sx_8_to_32;
	else if (from->size == 16)
		extension = !is_signed ? &zx_16_to_64 : to->size == 64 ? &sx_16_to_64 : &sx_16_to_32;
	else if (from->size == 32 && to->size == 64)
		extension = &sx_32_to_64;
	else
		return false;
	if (is_memory(from)) {
		insn = emit_memory(d, from, from->size / 8, false, extension->rm);
	} else {
		insn = emit(d, extension->rr);
		insn->b = (uint8_t)register_offset(from->reg.value);
	}
	insn->a = (uint8_t)register_offset(to->reg.value);
	return true;
}

static bool lea_decode(struct decoder *d)
{
	struct insn *insn = emit(d, lea_f_64);
	unsigned address_size = fill_address(d, insn, &d->operand[1]), size = d->operand[0].size / 8;
	bool full = insn->index != offsetof(struct vcpu, zero);

	insn->a = (uint8_t)register_offset(d->operand[0].reg.value);
	if (size == 2)
		insn->run = lea_f_16;
	else if (address_size == 2)
		insn->run = lea_f16_64;
	else if (insn->immediate) /* RIP-relative at the edge of 2 GiB */
		insn->run = lea_general;
	else if (size == 4)
		insn->run = full ? lea_f_32 : lea_b_32;
	else if (address_size == 4)
		insn->run = lea_f32_64;
	else
		insn->run = full ? lea_f_64 : lea_b_64;
	return true;
}

static bool xchg_decode(struct decoder *d)
{
	const ZydisDecodedOperand *a = &d->operand[0], *b = &d->operand[1];
	unsigned bytes = a->size / 8;
	struct insn *insn;

	if (is_memory(b)) {
		const ZydisDecodedOperand *swap = a;
		a = b;
		b = swap;
	}
	if (is_memory(a)) {
		/* Always locked (SDM 2D XCHG). */
		insn = emit_memory_at(d, a, bytes, true, xchg_mr[size_index(bytes)]);
		insn->a = (uint8_t)register_offset(b->reg.value);
		return true;
	}
	insn = emit(d, xchg_rr[size_index(bytes)]);
	insn->a = (uint8_t)register_offset(a->reg.value);
	insn->b = (uint8_t)register_offset(b->reg.value);
	return true;
}

static bool simple(struct decoder *d, handler *run)
{
	emit(d, run);
	return true;
}

bool move_decode(struct decoder *d)
{
	switch (d->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_decode(d);
	case ZYDIS_MNEMONIC_MOVZX:
		return extension_decode(d, false);
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		return extension_decode(d, true);
	case ZYDIS_MNEMONIC_LEA:
		return lea_decode(d);
	case ZYDIS_MNEMONIC_XCHG:
		return xchg_decode(d);
	case ZYDIS_MNEMONIC_BSWAP:
		if (d->operand[0].size == 16)
			return false; /* undefined by the manual: what the silicon does */
		emit(d, d->operand[0].size == 64 ? bswap_64 : bswap_32)->a =
		    (uint8_t)register_offset(d->operand[0].reg.value);
		return true;
	case ZYDIS_MNEMONIC_CBW:
		return simple(d, cbw);
	case ZYDIS_MNEMONIC_CWDE:
		return simple(d, cwde);
	case ZYDIS_MNEMONIC_CDQE:
		return simple(d, cdqe);
	case ZYDIS_MNEMONIC_CWD:
		return simple(d, cwd);
	case ZYDIS_MNEMONIC_CDQ:
		return simple(d, cdq);
	case ZYDIS_MNEMONIC_CQO:
		return simple(d, cqo);
	case ZYDIS_MNEMONIC_PAUSE:
		if (d->instruction.raw.rex.B) { /* F3 with REX.B is XCHG R8, RAX (measured on Zen 4) */
			struct insn *insn = emit(d, xchg_rr[d->instruction.raw.rex.W                      ? 3
			                                    : has_prefix(d, ZYDIS_ATTRIB_HAS_OPERANDSIZE) ? 1
			                                                                                  : 2]);
			insn->a = (uint8_t)GPR_OFFSET(RAX);
			insn->b = (uint8_t)GPR_OFFSET(R8);
			return true;
		}
		return simple(d, pause_spin);
	case ZYDIS_MNEMONIC_NOP:
		/* 0F 0D is PREFETCHW's opcode; with a register AMD's processors refuse it. */
		if (d->vcpu->model && d->vcpu->model->amd && d->instruction.opcode_map == ZYDIS_OPCODE_MAP_0F &&
		    d->instruction.opcode == 0x0d && d->instruction.raw.modrm.mod == 3) {
			emit_invalid(d);
			return true;
		}
		return simple(d, nop);
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_CLDEMOTE:
		return simple(d, nop);
	default:
		return false;
	}
}
