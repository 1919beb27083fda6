/*
 * What an instruction needs to be interesting, prepared most of the time, not always: a divisor that does not overflow,
 * a bit offset within reach, a valid state image, a target for a branch, a selector.
 */
#include <string.h>

#include "draft.h"

static uint16_t pick_selector(struct draft *d)
{
	static const uint16_t others[] = {0,
	                                  1,
	                                  3,
	                                  ISA_SELECTOR_DATA,
	                                  ISA_SELECTOR_DATA,
	                                  0x28,
	                                  ISA_SELECTOR_CODE32,
	                                  ISA_SELECTOR_CODE64,
	                                  0x08,
	                                  0x10,
	                                  0xfff8,
	                                  0x1007};

	if (d->test->ldt && random_percent(&d->random, 70)) {
		uint16_t selector = ISA_LDT(random_below(&d->random, ISA_LDT_COUNT));

		return random_percent(&d->random, 10) ? selector & ~3u : selector;
	}
	return others[random_below(&d->random, 12)];
}

/* The linear address of the top of the stack. */
static uint64_t stack_linear(const struct isa_case *test)
{
	struct segment ss = isa_segment(test->selector[SEG_SS]);

	if (test->mode == 64)
		return test->gpr[RSP];
	return ss.base + (ss.access & SEG_DB ? (uint32_t)test->gpr[RSP] : (uint16_t)test->gpr[RSP]);
}

/* A value for RIP, relative to CS.base. */
static uint64_t branch_target(struct draft *d)
{
	struct isa_case *test = d->test;
	uint64_t linear = ISA_CODE + random_below(&d->random, 0x2000), own = test->rip + draft_code_base(test);

	if (random_percent(&d->random, 6))
		return isa_random_value(&d->random) & (test->mode == 64 ? ~0ull : 0xffffffff);
	if (random_percent(&d->random, 3))
		linear = ISA_DATA + random_below(&d->random, 0x3000); /* not executable */
	if (!test->step && linear - own < test->length)
		linear = own + test->length;
	return linear - draft_code_base(test);
}

/* Sets operand `index`, a general register or memory, to `value`. */
static void set_operand(struct draft *d, unsigned index, uint64_t value)
{
	const ZydisDecodedOperand *operand = &d->decoded->operand[index];
	unsigned bytes = operand->size / 8u;

	if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && d->target[index]) {
		isa_place(d->test, d->target[index], &value, bytes > 8 ? 8 : bytes);
	} else if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		unsigned number = draft_gpr_number(operand->reg.value);

		if (d->pinned >> number & 1)
			return;
		if (bytes == 4)
			value = (uint32_t)value | (d->test->gpr[number] & 0xffffffff00000000ull);
		else if (bytes == 2)
			value = (uint16_t)value | (d->test->gpr[number] & ~0xffffull);
		d->test->gpr[number] = value;
	}
}

static void role_divide(struct draft *d, bool is_signed)
{
	unsigned width = d->decoded->operand[0].size;
	uint64_t *rax = &d->test->gpr[RAX], *rdx = &d->test->gpr[RDX];

	if (random_percent(&d->random, 25))
		return;
	bool sign = is_signed && width >= 16 && width <= 64 && *rax >> (width - 1) & 1;
	uint64_t high = random_percent(&d->random, 70) ? (sign ? ~0ull : 0) : random_below(&d->random, 256);

	if (width == 8)
		*rax = (*rax & ~0xffffull) | random_below(&d->random, 1024);
	else if (!(d->pinned >> RDX & 1))
		*rdx = high;
}

static void role_bit_offset(struct draft *d)
{
	const ZydisDecodedOperand *operand = d->decoded->operand;

	if (operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY && operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
	    random_percent(&d->random, 92))
		set_operand(d, 1, (uint64_t)((int64_t)random_below(&d->random, 2048) - 1024));
}

static void role_compare_exchange(struct draft *d)
{
	const uint64_t *gpr = d->test->gpr;

	if (random_percent(&d->random, 50))
		return;
	switch (d->decoded->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_CMPXCHG:
		set_operand(d, 0, gpr[RAX]);
		break;
	case ZYDIS_MNEMONIC_CMPXCHG8B:
		set_operand(d, 0, (uint32_t)gpr[RAX] | gpr[RDX] << 32);
		break;
	default:
		if (d->target[0]) {
			isa_place(d->test, d->target[0], &gpr[RAX], 8);
			isa_place(d->test, d->target[0] + 8, &gpr[RDX], 8);
		}
	}
}

static void role_relative(struct draft *d)
{
	struct isa_case *test = d->test;
	unsigned size = d->decoded->instruction.raw.imm[0].size;
	uint64_t next = test->rip + test->length, distance = branch_target(d) - next;

	if (size == 8) {
		int8_t byte = (int8_t)random_below(&d->random, 256);

		if (!test->step && byte < 0 && byte >= -(int)test->length)
			byte = 5;
		distance = (uint64_t)byte;
	} else if (!test->step && 0 - distance <= test->length) {
		distance = 16;
	}
	memcpy(test->bytes + d->decoded->instruction.raw.imm[0].offset, &distance, size / 8);
}

static void role_stack_value(struct draft *d, uint64_t value)
{
	isa_place(d->test, stack_linear(d->test), &value, 8);
}

/* A code segment for a far transfer, and in `offset` a place in the code window there; not always good ones. */
static uint16_t far_target(struct draft *d, uint64_t *offset)
{
	static const uint8_t code[] = {LDT_CODE32_FLAT, LDT_CODE32, LDT_CODE16, LDT_CODE32_EXECUTE, LDT_CODE16_EXECUTE};
	uint64_t linear = ISA_CODE + 0x100 + random_below(&d->random, 0x1e00);
	uint64_t own = d->test->rip + draft_code_base(d->test);
	uint16_t selector = d->test->selector[SEG_CS];
	unsigned kind = random_below(&d->random, 10);

	if (kind < 4)
		selector = kind & 1 ? ISA_SELECTOR_CODE32 : ISA_SELECTOR_CODE64;
	else if (kind < 7 && d->test->ldt)
		selector = ISA_LDT(code[random_below(&d->random, 5)]);
	else if (kind < 8)
		selector = pick_selector(d);
	if (!d->test->step && linear - own < d->test->length)
		linear = own + d->test->length; /* not onto itself for ever */
	/* A call to 64-bit code pushes without the base of SS (silicon): somewhere into the host's memory. */
	if (selector == ISA_SELECTOR_CODE64 && d->test->mode != 64 && d->test->selector[SEG_SS] != ISA_SELECTOR_DATA)
		selector = ISA_SELECTOR_CODE32;
	*offset = linear - isa_segment(selector).base;
	if (random_percent(&d->random, 4))
		*offset = isa_random_value(&d->random);
	return selector;
}

/* JMP and CALL to memory or immediate pointers. */
static void role_far_branch(struct draft *d)
{
	const ZydisDecodedInstruction *i = &d->decoded->instruction;
	unsigned size = i->operand_width / 8u;
	uint8_t pointer[16] = {0};
	uint64_t offset;
	uint16_t selector = far_target(d, &offset);

	if (d->decoded->operand[0].type == ZYDIS_OPERAND_TYPE_POINTER) {
		memcpy(d->test->bytes + i->raw.imm[0].offset, &offset, i->raw.imm[0].size / 8);
		memcpy(d->test->bytes + i->raw.imm[1].offset, &selector, 2);
		return;
	}
	memcpy(pointer, &offset, size);
	memcpy(pointer + size, &selector, 2);
	if (size == 8) /* AMD ignores REX.W here */
		memcpy(pointer + 4, &selector, 2);
	if (d->target[0])
		isa_place(d->test, d->target[0], pointer, size + 2);
}

/* Far RET and IRET: a frame on the stack. */
static void role_far_return(struct draft *d, bool interrupt)
{
	unsigned size = d->decoded->instruction.operand_width / 8u;
	uint64_t frame[5] = {0}, at = stack_linear(d->test);

	frame[1] = far_target(d, &frame[0]) | random_u64(&d->random) << 16;
	frame[2] = (d->test->rflags & ~FLAG_TF) ^ (random_u64(&d->random) & (FLAG_ARITHMETIC | FLAG_DF));
	if (random_percent(&d->random, 15))
		frame[2] = random_u64(&d->random);
	frame[3] = ISA_DATA + 0x1000 + random_below(&d->random, 0x1000);
	frame[4] = random_percent(&d->random, 60) ? ISA_SELECTOR_DATA : pick_selector(d);
	for (unsigned i = 0; i < (interrupt ? 5u : 2u); i++)
		isa_place(d->test, at + i * size, &frame[i], size);
}

static void role_enter(struct draft *d)
{
	const struct ZydisDecodedInstructionRawImm_ *imm = d->decoded->instruction.raw.imm;

	if (random_percent(&d->random, 80)) {
		d->test->bytes[imm[0].offset] = (uint8_t)random_u64(&d->random);
		d->test->bytes[imm[0].offset + 1] = 0;
	}
	if (random_percent(&d->random, 60))
		d->test->bytes[imm[1].offset] = (uint8_t)random_below(&d->random, 4);
}

/* An FXSAVE or XSAVE image that restores, mostly. */
static void role_state_image(struct draft *d, bool xsave)
{
	uint8_t image[2688];
	uint32_t mxcsr = 0x1f80 | random_below(&d->random, 4) << 13 | random_below(&d->random, 64);
	struct isa_case scratch;

	random_bytes(&d->random, image, sizeof(image));
	isa_random_x87(&d->random, &scratch);
	memcpy(image, &scratch.x87, 160);
	if (random_percent(&d->random, 15))
		mxcsr = (uint32_t)random_u64(&d->random) & (random_percent(&d->random, 50) ? 0xffff : 0x1ffff);
	memcpy(image + 24, &mxcsr, 4);
	if (xsave) {
		uint64_t bv = random_u64(&d->random) & 0xe7, compact = 0;

		if (random_percent(&d->random, 10))
			bv = random_u64(&d->random) & 0xffff;
		if (random_percent(&d->random, 25))
			compact = 1ull << 63 | bv | (random_u64(&d->random) & 0xe7);
		memset(image + 512, 0, 64);
		memcpy(image + 512, &bv, 8);
		memcpy(image + 520, &compact, 8);
		if (random_percent(&d->random, 5))
			image[528 + random_below(&d->random, 48)] = 1;
	}
	if (d->target[0])
		isa_place(d->test, d->target[0], image, xsave ? 2432 : 512);
}

static void role_far_pointer(struct draft *d)
{
	uint8_t pointer[10];
	unsigned offset = d->decoded->instruction.operand_width / 8u;

	random_bytes(&d->random, pointer, sizeof(pointer));
	uint16_t selector = pick_selector(d);
	memcpy(pointer + offset, &selector, 2);
	if (offset == 8) /* AMD ignores REX.W here */
		memcpy(pointer + 4, &selector, 2);
	for (unsigned i = 0; i < 2; i++)
		if (d->target[i])
			isa_place(d->test, d->target[i], pointer, offset + 2);
}

static void role_interrupt(struct draft *d)
{
	uint8_t vector = (uint8_t)random_u64(&d->random);

	while (vector == 3 || vector == 4 || vector == 0x80)
		vector = (uint8_t)random_u64(&d->random);
	d->test->bytes[d->decoded->instruction.raw.imm[0].offset] = vector;
}

static void role_count(struct draft *d)
{
	unsigned kind = random_below(&d->random, 100);
	uint64_t *rcx = &d->test->gpr[RCX];

	if (kind < 80)
		*rcx = random_below(&d->random, 24);
	else if (kind < 90)
		*rcx = random_below(&d->random, 4096);
	if (kind < 90 && random_percent(&d->random, 10)) /* bits that a narrower address size ignores */
		*rcx |= random_u64(&d->random) << d->decoded->instruction.address_width % 64;
}

static bool has_relative(const struct isa_decoded *decoded)
{
	return decoded->instruction.raw.imm[0].is_relative;
}

void draft_apply_roles(struct draft *d)
{
	const ZydisDecodedInstruction *i = &d->decoded->instruction;

	if (i->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
		role_count(d);
	if (has_relative(d->decoded))
		role_relative(d);
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		role_divide(d, i->mnemonic == ZYDIS_MNEMONIC_IDIV);
		break;
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		role_bit_offset(d);
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		role_compare_exchange(d);
		break;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JCXZ:
		if (random_percent(&d->random, 60))
			d->test->gpr[RCX] = random_below(&d->random, 3) |
			                    (random_percent(&d->random, 20) ? 1ull << 32 | 1ull << 16 : 0);
		break;
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		role_far_return(d, true);
		break;
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
		set_operand(d, 1, pick_selector(d));
		break;
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
		set_operand(d, 0, pick_selector(d));
		break;
	case ZYDIS_MNEMONIC_RET:
		if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			role_far_return(d, false);
		else
			role_stack_value(d, branch_target(d));
		break;
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
		if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
			role_far_branch(d);
		else if (!has_relative(d->decoded))
			set_operand(d, 0, branch_target(d));
		break;
	case ZYDIS_MNEMONIC_ENTER:
		role_enter(d);
		break;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		if (random_percent(&d->random, 85))
			set_operand(d, 0, random_u64(&d->random) & 0xffff);
		break;
	case ZYDIS_MNEMONIC_XGETBV:
		/* ECX = 1 shows what is in use: skipped */
		if (random_percent(&d->random, 80) || d->test->gpr[RCX] << 32 == 1ull << 32)
			d->test->gpr[RCX] = 0;
		break;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		role_state_image(d, false);
		break;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		role_state_image(d, true);
		break;
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
		role_far_pointer(d);
		break;
	case ZYDIS_MNEMONIC_INT:
		role_interrupt(d);
		break;
	case ZYDIS_MNEMONIC_MOV:
		if (ZydisRegisterGetClass(d->decoded->operand[0].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
		    d->decoded->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
			set_operand(d, 1, pick_selector(d));
		break;
	case ZYDIS_MNEMONIC_POP:
		if (d->decoded->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(d->decoded->operand[0].reg.value) == ZYDIS_REGCLASS_SEGMENT)
			role_stack_value(d, pick_selector(d) | random_u64(&d->random) << 16);
		break;
	default:
		break;
	}
}
