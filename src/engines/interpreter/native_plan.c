/*
 * From a decoded guest instruction to a plan: is it one for the host, what must be enabled, which guest registers go
 * where, what becomes of flags, MXCSR and x87 pointers. The decoder's tables say most of it; what they do not know
 * stands here by name.
 *
 * In a stub RDI is the vCPU and RSI the memory operand, always. Guest registers that an instruction names implicitly
 * (MUL, shifts by CL, CMPXCHG ...) are in the host registers of the same number. Those that it names in an operand
 * field can be anywhere, so they are renamed away from RDI, RSI, RSP and from what a host function has to preserve.
 * Vector, mask and x87 registers keep their numbers.
 */
#include "engines/interpreter/native_operands.h"

#include <string.h>

#define ARITHMETIC_FLAGS ((uint32_t)FLAG_ARITHMETIC)

static uint8_t register_class_size(ZydisRegisterClass class)
{
	switch (class) {
	case ZYDIS_REGCLASS_GPR8:
		return 1;
	case ZYDIS_REGCLASS_GPR16:
		return 2;
	case ZYDIS_REGCLASS_GPR32:
		return 4;
	case ZYDIS_REGCLASS_GPR64:
		return 8;
	case ZYDIS_REGCLASS_XMM:
		return 16;
	case ZYDIS_REGCLASS_YMM:
		return 32;
	case ZYDIS_REGCLASS_ZMM:
		return 64;
	default:
		return 0;
	}
}

/* The instruction sets and categories that hold nothing but innocuous instructions; what is left out is the
 * interpreter's. */
static bool is_eligible(const ZydisDecodedInstruction *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CMC:
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_LAHF:
	case ZYDIS_MNEMONIC_SAHF:
		return true;
	case ZYDIS_MNEMONIC_SALC:
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_XLAT:
		return false;
	default:
		break;
	}
	if (i->meta.category == ZYDIS_CATEGORY_PREFETCH || i->meta.category == ZYDIS_CATEGORY_NOP)
		return false;
	switch (i->meta.isa_ext) {
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_LONGMODE:
		switch (i->meta.category) {
		case ZYDIS_CATEGORY_BINARY:
		case ZYDIS_CATEGORY_LOGICAL:
		case ZYDIS_CATEGORY_BITBYTE:
		case ZYDIS_CATEGORY_SHIFT:
		case ZYDIS_CATEGORY_ROTATE:
		case ZYDIS_CATEGORY_CMOV:
		case ZYDIS_CATEGORY_SETCC:
		case ZYDIS_CATEGORY_CONVERT:
		case ZYDIS_CATEGORY_DATAXFER:
		case ZYDIS_CATEGORY_SEMAPHORE:
			return true;
		default:
			return false;
		}
	case ZYDIS_ISA_EXT_ADOX_ADCX:
	case ZYDIS_ISA_EXT_AES:
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_AVX512EVEX:
	case ZYDIS_ISA_EXT_AVX512VEX:
	case ZYDIS_ISA_EXT_AVXAES:
	case ZYDIS_ISA_EXT_AVX_VNNI:
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_BMI2:
	case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_FMA:
	case ZYDIS_ISA_EXT_GFNI:
	case ZYDIS_ISA_EXT_LZCNT:
	case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_MOVBE:
	case ZYDIS_ISA_EXT_PCLMULQDQ:
	case ZYDIS_ISA_EXT_RDRAND:
	case ZYDIS_ISA_EXT_RDSEED:
	case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_VAES:
	case ZYDIS_ISA_EXT_VPCLMULQDQ:
	case ZYDIS_ISA_EXT_X87:
	case ZYDIS_ISA_EXT_XSAVE:
	case ZYDIS_ISA_EXT_XSAVEC:
	case ZYDIS_ISA_EXT_XSAVEOPT:
	case ZYDIS_ISA_EXT_XSAVES:
		return true;
	default:
		return false;
	}
}

/* SSE instructions that may name no XMM register: conversions from memory to general and MMX registers. */
static bool is_sse_without_xmm(const ZydisDecodedInstruction *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CVTSS2SI:
	case ZYDIS_MNEMONIC_CVTTSS2SI:
	case ZYDIS_MNEMONIC_CVTSD2SI:
	case ZYDIS_MNEMONIC_CVTTSD2SI:
	case ZYDIS_MNEMONIC_CVTPS2PI:
	case ZYDIS_MNEMONIC_CVTTPS2PI:
	case ZYDIS_MNEMONIC_CVTPD2PI:
	case ZYDIS_MNEMONIC_CVTTPD2PI:
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_STMXCSR:
		return true;
	default:
		return false;
	}
}

/* Classes by the registers named (SDM 3A table 13-1, 3B 22.25.3, SDM 2A 2.4). */
static bool plan_class(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands, struct native_plan *plan)
{
	bool vector = false, mask = false, mmx = false;
	for (unsigned n = 0; n < i->operand_count; n++) {
		if (operands[n].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		ZydisRegisterClass class = ZydisRegisterGetClass(operands[n].reg.value);
		vector |= class >= ZYDIS_REGCLASS_XMM && class <= ZYDIS_REGCLASS_ZMM;
		mask |= class == ZYDIS_REGCLASS_MASK;
		mmx |= class == ZYDIS_REGCLASS_MMX;
		plan->x87 |= class == ZYDIS_REGCLASS_X87;
	}
	uint8_t *needed = &plan->form.class_needed;
	switch (i->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
		mmx |= i->mnemonic == ZYDIS_MNEMONIC_EMMS;
		plan->x87 |= i->meta.isa_ext == ZYDIS_ISA_EXT_X87;
		if (i->mnemonic == ZYDIS_MNEMONIC_FWAIT)
			*needed = NATIVE_WAIT;
		else if (plan->x87 || i->mnemonic == ZYDIS_MNEMONIC_FXSAVE || i->mnemonic == ZYDIS_MNEMONIC_FXSAVE64 ||
		         i->mnemonic == ZYDIS_MNEMONIC_FXRSTOR || i->mnemonic == ZYDIS_MNEMONIC_FXRSTOR64)
			*needed = NATIVE_X87;
		if (vector || is_sse_without_xmm(i))
			*needed |= NATIVE_SSE;
		if (mmx)
			*needed |= NATIVE_MMX;
		plan->x87 |= mmx;
		return true;
	case ZYDIS_INSTRUCTION_ENCODING_VEX:
		if (i->machine_mode == ZYDIS_MACHINE_MODE_REAL_16)
			return false;
		/* VPINSRQ and VPEXTRQ do not become their narrow form outside 64-bit code. */
		if (i->raw.vex.W && i->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 &&
		    (i->mnemonic == ZYDIS_MNEMONIC_VPINSRD || i->mnemonic == ZYDIS_MNEMONIC_VPEXTRD))
			return false;
		if (mask || i->meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX)
			*needed = NATIVE_AVX512;
		else
			*needed = vector || i->meta.isa_ext == ZYDIS_ISA_EXT_AVX ? NATIVE_AVX : NATIVE_VEX;
		return true;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX:
		*needed = NATIVE_AVX512;
		return i->machine_mode != ZYDIS_MACHINE_MODE_REAL_16;
	default:
		return false;
	}
}

/* Finds the one memory operand, if any, and refuses all operands that are not plain data. */
static bool plan_operands(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                          struct native_plan *plan)
{
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *o = &operands[n];
		if (o->type == ZYDIS_OPERAND_TYPE_POINTER || (o->attributes & ZYDIS_OATTRIB_IS_MULTISOURCE4))
			return false;
		if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->imm.is_relative)
			return false;
		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (plan->form.memory_size || o->mem.type != ZYDIS_MEMOP_TYPE_MEM || !is_explicit(o) ||
			    !o->size || o->size % 8)
				return false;
			plan->form.memory_size = o->size / 8;
			plan->form.writes_memory = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
			/* A masked store leaves some bytes: a bounce buffer has to hold the old ones. */
			plan->form.reads_memory =
			    o->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE);
		}
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		switch (ZydisRegisterGetClass(o->reg.value)) {
		case ZYDIS_REGCLASS_GPR8:
		case ZYDIS_REGCLASS_GPR16:
		case ZYDIS_REGCLASS_GPR32:
		case ZYDIS_REGCLASS_GPR64:
		case ZYDIS_REGCLASS_X87:
		case ZYDIS_REGCLASS_MMX:
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_YMM:
		case ZYDIS_REGCLASS_ZMM:
		case ZYDIS_REGCLASS_MASK:
		case ZYDIS_REGCLASS_FLAGS:
			break;
		default:
			if (o->reg.value != ZYDIS_REGISTER_MXCSR && o->reg.value != ZYDIS_REGISTER_X87CONTROL &&
			    o->reg.value != ZYDIS_REGISTER_X87STATUS && o->reg.value != ZYDIS_REGISTER_X87TAG)
				return false;
		}
	}
	return true;
}

static void plan_add_gpr(struct native_plan *plan, unsigned guest, unsigned host, bool written)
{
	for (unsigned n = 0; n < plan->gpr_count; n++)
		if (plan->gpr[n].guest == guest) {
			plan->gpr[n].written |= written;
			return;
		}
	plan->gpr[plan->gpr_count].guest = (uint8_t)guest;
	plan->gpr[plan->gpr_count].host = (uint8_t)host;
	plan->gpr[plan->gpr_count++].written = written;
}

/* Gives each guest register a host register: implicit ones first, then those that can stay, then the rest. */
static bool plan_registers(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                           struct native_plan *plan)
{
	/* With AH..BH there can be no REX prefix. */
	static const uint8_t pool_any[] = {R8, R9, R10, R11, RCX, RDX, RAX}, pool_low[] = {RCX, RDX, RAX, RBX};
	const uint8_t *pool = pool_any;
	unsigned pool_size = sizeof pool_any, used = 0;

	for (unsigned n = 0; n < i->operand_count; n++)
		if (is_gpr(&operands[n]) && is_high_byte(operands[n].reg.value) && is_explicit(&operands[n])) {
			pool = pool_low;
			pool_size = sizeof pool_low;
		}
	for (unsigned pass = 0; pass < 3; pass++) {
		for (unsigned n = 0; n < i->operand_count; n++) {
			const ZydisDecodedOperand *o = &operands[n];
			if (!is_gpr(o) || (pass == 0) == is_explicit(o))
				continue;
			unsigned guest = gpr_number(o->reg.value), host = guest;
			bool written = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
			if (pass == 0 && guest > RBX)
				return false;
			if (pass == 1 && plan_host_register(plan, guest) < 0) {
				bool stays =
				    guest == RCX || guest == RDX || guest == RAX || (guest >= R8 && guest <= R11);
				/* A bit string's offset is masked before the flags are loaded through RAX. */
				if (!stays || (used & 1u << guest) || (guest == RAX && plan->form.bit_string) ||
				    !memchr(pool, (int)guest, pool_size))
					continue;
			}
			if (pass == 2 && plan_host_register(plan, guest) < 0) {
				unsigned free = 0;
				while (free < pool_size && (used & 1u << pool[free]))
					free++;
				if (free == pool_size)
					return false;
				host = pool[free];
			}
			plan_add_gpr(plan, guest, host, written);
			used |= 1u << plan_host_register(plan, guest);
		}
	}
	return true;
}

static void plan_vectors(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                         struct native_plan *plan)
{
	bool legacy = i->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
	bool evex = i->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
	plan->vector_merge = legacy;
	plan->vector_load = evex ? 64 : 16;
	for (unsigned n = 0; n < i->operand_count; n++) {
		const ZydisDecodedOperand *o = &operands[n];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		ZydisRegisterClass class = ZydisRegisterGetClass(o->reg.value);
		unsigned number = (unsigned)ZydisRegisterGetId(o->reg.value);
		bool read = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
		bool written = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
		/* A conditional write leaves the rest as it was; SSE forms merge. */
		bool partly = legacy || (o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) || evex;
		if (class == ZYDIS_REGCLASS_MASK) {
			bool no_mask = o->encoding == ZYDIS_OPERAND_ENCODING_MASK && number == 0;
			if (!no_mask && (read || written))
				plan->masks_loaded |= (uint8_t)(1u << number);
			if (!no_mask && written)
				plan->masks_stored |= (uint8_t)(1u << number);
		} else if (class >= ZYDIS_REGCLASS_XMM && class <= ZYDIS_REGCLASS_ZMM) {
			if (read || partly)
				plan->vectors_loaded |= 1u << number;
			if (written)
				plan->vectors_stored |= 1u << number;
			if (register_class_size(class) > plan->vector_load)
				plan->vector_load = register_class_size(class);
		}
	}
	if (i->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTD || i->mnemonic == ZYDIS_MNEMONIC_VP2INTERSECTQ)
		plan->masks_stored |= (uint8_t)((plan->masks_stored & 0x55) << 1 | (plan->masks_stored & 0xaa) >> 1);
}

/* Arithmetic flags. False: touches others, such as DF or IF. */
static bool plan_flags(const ZydisDecodedInstruction *i, struct native_plan *plan)
{
	const ZydisAccessedFlags *f = i->cpu_flags;
	if (!f)
		return true;
	uint32_t set = f->modified | f->set_0 | f->set_1;
	if ((set | f->tested | f->undefined) & ~ARITHMETIC_FLAGS)
		return false;
	plan->flags_stored = (set | f->undefined) != 0;
	plan->flags_loaded = f->tested || (plan->flags_stored && set != ARITHMETIC_FLAGS);
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_TEST:
		plan->flags_loaded = false; /* AF is undefined; all processors clear it */
		break;
	default:
		break;
	}
	/* A shift by 0 leaves all flags; a memory CMPXCHG8B sets only ZF: whatever is not surely written is loaded. */
	if (i->meta.category == ZYDIS_CATEGORY_SHIFT || i->meta.category == ZYDIS_CATEGORY_ROTATE)
		plan->flags_loaded = plan->flags_stored;
	return true;
}

/* Who depends on MXCSR or sets its status flags (by exception class: SDM 2A table 2-17, 2.8). */
static void plan_mxcsr(const ZydisDecodedInstruction *i, struct native_plan *plan)
{
	switch (i->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE3:
	case ZYDIS_EXCEPTION_CLASS_AVX2:
	case ZYDIS_EXCEPTION_CLASS_AVX3:
	case ZYDIS_EXCEPTION_CLASS_AVX11:
	case ZYDIS_EXCEPTION_CLASS_E2:
	case ZYDIS_EXCEPTION_CLASS_E2NF:
	case ZYDIS_EXCEPTION_CLASS_E3:
	case ZYDIS_EXCEPTION_CLASS_E3NF:
	case ZYDIS_EXCEPTION_CLASS_E11:
	case ZYDIS_EXCEPTION_CLASS_E11NF:
		plan->mxcsr = true;
		break;
	default:
		break;
	}
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CVTPI2PS:
	case ZYDIS_MNEMONIC_CVTPI2PD:
	case ZYDIS_MNEMONIC_CVTPS2PI:
	case ZYDIS_MNEMONIC_CVTTPS2PI:
	case ZYDIS_MNEMONIC_CVTPD2PI:
	case ZYDIS_MNEMONIC_CVTTPD2PI:
	case ZYDIS_MNEMONIC_VCVTPH2PS:
	case ZYDIS_MNEMONIC_VCVTPS2PH:
		plan->mxcsr = true;
		break;
	/* DAZ counts, flags do not. */
	case ZYDIS_MNEMONIC_RCPPS:
	case ZYDIS_MNEMONIC_RCPSS:
	case ZYDIS_MNEMONIC_RSQRTPS:
	case ZYDIS_MNEMONIC_RSQRTSS:
	case ZYDIS_MNEMONIC_VRCPPS:
	case ZYDIS_MNEMONIC_VRCPSS:
	case ZYDIS_MNEMONIC_VRSQRTPS:
	case ZYDIS_MNEMONIC_VRSQRTSS:
	case ZYDIS_MNEMONIC_VRCP14PS:
	case ZYDIS_MNEMONIC_VRCP14SS:
	case ZYDIS_MNEMONIC_VRCP14PD:
	case ZYDIS_MNEMONIC_VRCP14SD:
	case ZYDIS_MNEMONIC_VRSQRT14PS:
	case ZYDIS_MNEMONIC_VRSQRT14SS:
	case ZYDIS_MNEMONIC_VRSQRT14PD:
	case ZYDIS_MNEMONIC_VRSQRT14SD:
	case ZYDIS_MNEMONIC_VFPCLASSPS:
	case ZYDIS_MNEMONIC_VFPCLASSSS:
	case ZYDIS_MNEMONIC_VFPCLASSPD:
	case ZYDIS_MNEMONIC_VFPCLASSSD:
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR:
		plan->mxcsr = true;
		break;
	default:
		break;
	}
}

static void plan_x87(const ZydisDecodedInstruction *i, struct native_plan *plan)
{
	plan->form.waits = plan->form.class_needed & (NATIVE_X87 | NATIVE_MMX | NATIVE_WAIT);
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
		plan->form.waits = false;
		break;
	default:
		break;
	}
	if (!(plan->form.class_needed & NATIVE_X87))
		return;
	switch (i->mnemonic) {
	/* Control instructions leave the pointers alone (SDM 1 8.1.8). */
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return;
	default:
		break;
	}
	plan->form.x87_tracks_pointers = true;
	uint8_t modrm = (uint8_t)(i->raw.modrm.mod << 6 | i->raw.modrm.reg << 3 | i->raw.modrm.rm);
	plan->form.x87_opcode = (uint16_t)((i->opcode & 7) << 8 | modrm);
	/* A store with an unmasked exception writes nothing: a bounce buffer has to hold the old bytes. */
	if (plan->form.writes_memory)
		plan->form.reads_memory = true;
}

/* Bytes per element of a compressing store, which is done and checked element by element; else 0. */
static uint8_t compressed_element(const ZydisDecodedInstruction *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VPCOMPRESSB:
		return 1;
	case ZYDIS_MNEMONIC_VPCOMPRESSW:
		return 2;
	case ZYDIS_MNEMONIC_VPCOMPRESSD:
	case ZYDIS_MNEMONIC_VCOMPRESSPS:
		return 4;
	case ZYDIS_MNEMONIC_VPCOMPRESSQ:
	case ZYDIS_MNEMONIC_VCOMPRESSPD:
		return 8;
	default:
		return 0;
	}
}

/* Operands that must be aligned (SDM 2A 2.4, exception types 1, 2 and 4). */
static void plan_alignment(const ZydisDecodedInstruction *i, struct native_plan *plan)
{
	bool aligned = i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
	switch (i->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE1:
	case ZYDIS_EXCEPTION_CLASS_AVX1:
	case ZYDIS_EXCEPTION_CLASS_E1:
	case ZYDIS_EXCEPTION_CLASS_E1NF:
		aligned = true;
		break;
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE4: /* AMD's SHA takes any address */
		aligned = plan->form.memory_size == 16 && i->meta.isa_ext != ZYDIS_ISA_EXT_SHA;
		break;
	default:
		break;
	}
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CVTPD2PI:
	case ZYDIS_MNEMONIC_CVTTPD2PI:
		aligned = true;
		break;
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		aligned = false;
		break;
	default:
		break;
	}
	unsigned size = plan->form.memory_size;
	plan->form.alignment = aligned && size ? (uint8_t)size : 1;
	/* Powers of two up to 16; 80-bit operands want 8. */
	plan->form.natural_alignment = size >= 16 ? 16 : size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
	if (plan->elements.shape != ELEMENTS_NONE)
		plan->form.natural_alignment = plan->elements.vector_mask ? 1 : plan->elements.element_size;
	else if (compressed_element(i))
		plan->form.natural_alignment = plan->form.first_access = compressed_element(i);
	if (size == 10)
		plan->form.first_access = 8;
}

/* Instructions whose whole work is a routine. */
static const struct {
	ZydisMnemonic mnemonic;
	native_special *special;
} special_routines[] = {
    {ZYDIS_MNEMONIC_FNSTENV, native_fnstenv}, {ZYDIS_MNEMONIC_FLDENV, native_fldenv},
    {ZYDIS_MNEMONIC_FNSAVE, native_fnsave},   {ZYDIS_MNEMONIC_FRSTOR, native_frstor},
    {ZYDIS_MNEMONIC_FXSAVE, native_fxsave},   {ZYDIS_MNEMONIC_FXSAVE64, native_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, native_fxrstor}, {ZYDIS_MNEMONIC_FXRSTOR64, native_fxrstor},
    {ZYDIS_MNEMONIC_XSAVE, native_xsave},     {ZYDIS_MNEMONIC_XSAVE64, native_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, native_xsave},  {ZYDIS_MNEMONIC_XSAVEOPT64, native_xsave},
    {ZYDIS_MNEMONIC_XSAVEC, native_xsave},    {ZYDIS_MNEMONIC_XSAVEC64, native_xsave},
    {ZYDIS_MNEMONIC_XSAVES, native_xsave},    {ZYDIS_MNEMONIC_XSAVES64, native_xsave},
    {ZYDIS_MNEMONIC_XRSTOR, native_xrstor},   {ZYDIS_MNEMONIC_XRSTOR64, native_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS, native_xrstor},  {ZYDIS_MNEMONIC_XRSTORS64, native_xrstor},
};

static bool plan_special(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *operands,
                         struct native_plan *plan)
{
	for (unsigned n = 0; n < sizeof special_routines / sizeof *special_routines; n++)
		if (special_routines[n].mnemonic == i->mnemonic) {
			plan->form.special = special_routines[n].special;
			plan->elements.mnemonic = (uint16_t)i->mnemonic;
			for (unsigned o = 0; o < i->operand_count; o++)
				if (operands[o].type == ZYDIS_OPERAND_TYPE_MEMORY) {
					plan->form.memory_size = operands[o].size / 8;
					plan->form.reads_memory = operands[o].actions & ZYDIS_OPERAND_ACTION_MASK_READ;
					plan->form.writes_memory =
					    operands[o].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
				}
			return true;
		}
	return false;
}

/* Instructions that a C function does on the register file. */
static native_run *plan_function(const ZydisDecodedInstruction *i)
{
	bool long_mode = i->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FNINIT:
		return native_fninit;
	case ZYDIS_MNEMONIC_VZEROUPPER:
		return long_mode ? native_vzeroupper : native_vzeroupper_legacy;
	case ZYDIS_MNEMONIC_VZEROALL:
		return long_mode ? native_vzeroall : native_vzeroall_legacy;
	default:
		return NULL;
	}
}

bool native_plan_make(const struct native *native, const ZydisDecodedInstruction *instruction,
                      const ZydisDecodedOperand *operands, const uint8_t *bytes, struct native_plan *plan)
{
	memset(plan, 0, sizeof *plan);
	plan->form.alignment = plan->form.natural_alignment = 1;
	if (!native->available[instruction->meta.isa_set] || !is_eligible(instruction) ||
	    !plan_class(instruction, operands, plan))
		return false;
	plan->form.run = plan_function(instruction);
	if (plan->form.run || plan_special(instruction, operands, plan))
		return true;
	if (instruction->meta.isa_ext == ZYDIS_ISA_EXT_XSAVE) /* XGETBV, XSETBV */
		return false;
	if (native_elements_plan(instruction, operands, plan) && plan->form.special != native_masked)
		return plan->form.special != NULL;
	if (!plan_operands(instruction, operands, plan))
		return false;
	if (instruction->meta.category == ZYDIS_CATEGORY_BITBYTE && plan->form.memory_size &&
	    instruction->operand_count_visible == 2 && operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
	    is_gpr(&operands[1])) {
		plan->form.bit_string = true;
		plan->form.bit_register = gpr_number(operands[1].reg.value);
	}
	if (!plan_registers(instruction, operands, plan) || !plan_flags(instruction, plan))
		return false;
	plan_vectors(instruction, operands, plan);
	plan_mxcsr(instruction, plan);
	/* CVTSD2SI r32, m64 and the like name no vector register. */
	if (plan->mxcsr && instruction->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		plan->form.class_needed |= NATIVE_SSE;
	plan_x87(instruction, plan);
	plan_alignment(instruction, plan);
	return native_encode(native, instruction, operands, bytes, plan);
}
