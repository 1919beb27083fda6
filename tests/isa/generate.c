/*
 * From a form and a seed to a case: bytes, registers, flags, memory. What an instruction needs to be interesting (a
 * divisor that does not overflow, a bit offset within reach, a valid state image, a branch target) is prepared in
 * roles[] most of the time, not always.
 */
#include <string.h>

#include "isa.h"

/* What is known while a case is made. */
struct draft {
	struct random random;
	struct isa_case *test;
	struct isa_decoded *decoded;
	uint32_t pinned;                          /* general registers that have their final value */
	uint64_t target[ZYDIS_MAX_OPERAND_COUNT]; /* linear addresses of the memory operands, 0 when none */
};

void isa_place(struct isa_case *test, uint64_t linear, const void *bytes, size_t length)
{
	const uint8_t *from = bytes;

	while (length) {
		size_t part = 4096 - (linear & 0xfff);
		int page = isa_page_of(linear);

		if (part > length)
			part = length;
		if (page >= 0 && test->patch_count < ISA_PATCHES_MAX && test->pool_used + part <= ISA_POOL_SIZE) {
			test->patch[test->patch_count++] = (struct isa_patch){
			    (uint16_t)page, linear & 0xfff, (uint16_t)part, (uint16_t)test->pool_used};
			memcpy(test->pool + test->pool_used, from, part);
			test->pool_used += (unsigned)part;
		}
		linear += part;
		from += part;
		length -= part;
	}
}

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

/* ---- segments, code place, stack ---- */

static void choose_segments(struct draft *d)
{
	static const uint8_t data32[] = {LDT_FLAT,    LDT_DATA,  LDT_READ_ONLY, LDT_DOWN32,
	                                 LDT_STACK16, LDT_BELOW, LDT_SHORT,     LDT_SHIFTED};
	static const uint8_t code32[] = {LDT_CODE32_FLAT, LDT_CODE32, LDT_CODE32_EXECUTE};
	static const uint8_t data16[] = {LDT_DATA,  LDT_STACK16, LDT_BELOW, LDT_DOWN16,
	                                 LDT_SHORT, LDT_STACK16, LDT_BELOW, LDT_CODE16};
	struct isa_case *test = d->test;
	struct random *random = &d->random;

	for (unsigned i = 0; i < 6; i++)
		test->selector[i] = ISA_SELECTOR_DATA;
	if (test->mode == 64) {
		test->selector[SEG_CS] = ISA_SELECTOR_CODE64;
		test->selector[SEG_FS] = test->selector[SEG_GS] = 0;
		for (unsigned i = 0; i < 2; i++) {
			uint64_t base = random_percent(random, 40)   ? 0
			                : random_percent(random, 70) ? random_below(random, 0x10000) << 4
			                                             : isa_random_value(random);

			*(i ? &test->gs_base : &test->fs_base) = cpu_canonical(base) ? base : ISA_HIGH;
		}
		return;
	}
	test->selector[SEG_CS] = ISA_SELECTOR_CODE32;
	if (!test->ldt)
		return;
	if (test->mode == 16)
		test->selector[SEG_CS] = ISA_LDT(random_percent(random, 80) ? LDT_CODE16 : LDT_CODE16_EXECUTE);
	else if (random_percent(random, 30))
		test->selector[SEG_CS] = ISA_LDT(code32[random_below(random, 3)]);
	for (unsigned i = 0; i < 6; i++) {
		if (i == SEG_CS || random_percent(random, test->mode == 16 ? 15 : 55))
			continue;
		uint8_t index = test->mode == 16 ? data16[random_below(random, 8)] : data32[random_below(random, 8)];

		if (i == SEG_SS && (index == LDT_READ_ONLY || index == LDT_CODE16))
			index = LDT_STACK16;
		test->selector[i] = ISA_LDT(index);
	}
}

static uint64_t code_base(const struct isa_case *test)
{
	return test->mode == 64 ? 0 : isa_segment(test->selector[SEG_CS]).base;
}

static void choose_place(struct draft *d)
{
	uint64_t linear = ISA_CODE + 160 + random_below(&d->random, 3700);

	if (random_percent(&d->random, 8)) /* across the two pages */
		linear = ISA_CODE + 0x1000 - random_below(&d->random, d->test->length + 1u);
	else if (random_percent(&d->random, 4)) /* at the very end */
		linear = ISA_CODE + 0x2000 - d->test->length;
	d->test->rip = linear - code_base(d->test);
}

static void choose_stack(struct draft *d)
{
	struct random *random = &d->random;
	struct isa_case *test = d->test;
	uint64_t linear = ISA_DATA + 0x200 + random_below(random, 0x2c00);
	struct segment ss = isa_segment(test->selector[SEG_SS]);

	if (random_percent(random, 85))
		linear &= ~7ull;
	if (random_percent(random, 8)) /* near a hole or the read-only page */
		linear = ISA_DATA + (uint64_t[]){0, 0x3000, 0x4000, 0x5000, 0x6000}[random_below(random, 5)] +
		         random_below(random, 32) - 16;
	if (test->mode != 64) {
		uint64_t offset = linear - ss.base;

		if (ss.access & SEG_EXPANDDOWN)
			offset = ss.limit + 1 + (offset & 0x1fff);
		else if (offset > ss.limit && random_percent(random, 90))
			offset %= (uint64_t)ss.limit + 1;
		test->gpr[RSP] = (uint32_t)offset;
		if (!(ss.access & SEG_DB) && random_percent(random, 50))
			test->gpr[RSP] |= 0x5a5a0000;
	} else {
		test->gpr[RSP] = linear;
		if (random_percent(random, 1))
			test->gpr[RSP] = isa_random_value(random);
	}
	if (random_percent(random, 60))
		test->gpr[RBP] = test->gpr[RSP] + random_below(random, 64) * 8;
}

/* The linear address of the top of the stack. */
static uint64_t stack_linear(const struct isa_case *test)
{
	struct segment ss = isa_segment(test->selector[SEG_SS]);

	if (test->mode == 64)
		return test->gpr[RSP];
	return ss.base + (ss.access & SEG_DB ? (uint32_t)test->gpr[RSP] : (uint16_t)test->gpr[RSP]);
}

/* ---- roles ---- */

/* A value for RIP, relative to CS.base. */
static uint64_t branch_target(struct draft *d)
{
	struct isa_case *test = d->test;
	uint64_t linear = ISA_CODE + random_below(&d->random, 0x2000), own = test->rip + code_base(test);

	if (random_percent(&d->random, 6))
		return isa_random_value(&d->random) & (test->mode == 64 ? ~0ull : 0xffffffff);
	if (random_percent(&d->random, 3))
		linear = ISA_DATA + random_below(&d->random, 0x3000); /* not executable */
	if (!test->step && linear - own < test->length)
		linear = own + test->length;
	return linear - code_base(test);
}

static unsigned gpr_number(ZydisRegister reg)
{
	return (unsigned)ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg)) & 15;
}

/* Sets operand `index`, a general register or memory, to `value`. */
static void set_operand(struct draft *d, unsigned index, uint64_t value)
{
	const ZydisDecodedOperand *operand = &d->decoded->operand[index];
	unsigned bytes = operand->size / 8u;

	if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY && d->target[index]) {
		isa_place(d->test, d->target[index], &value, bytes > 8 ? 8 : bytes);
	} else if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
		unsigned number = gpr_number(operand->reg.value);

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

static void apply_roles(struct draft *d)
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
	case ZYDIS_MNEMONIC_RET:
		role_stack_value(d, branch_target(d));
		break;
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
		if (!has_relative(d->decoded))
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

/* ---- the whole case ---- */

static void choose_state(struct draft *d)
{
	static const uint64_t flags[] = {FLAG_CF, FLAG_PF, FLAG_AF, FLAG_ZF, FLAG_SF, FLAG_OF};
	struct isa_case *test = d->test;
	struct random *random = &d->random;

	for (unsigned i = 0; i < GPR_COUNT; i++)
		test->gpr[i] = isa_random_value(random);
	test->rflags = FLAG_ONE | FLAG_IF | (test->step ? FLAG_TF : 0);
	for (unsigned i = 0; i < 6; i++)
		if (random_percent(random, 50))
			test->rflags |= flags[i];
	if (random_percent(random, 15))
		test->rflags |= FLAG_DF;
	if (random_percent(random, 8))
		test->rflags |= FLAG_AC;
	if (random_percent(random, 10))
		test->rflags |= FLAG_ID;
	if (random_percent(random, 5))
		test->rflags |= FLAG_NT;
	isa_random_vector(random, test);
	isa_random_x87(random, test);
	choose_segments(d);
}

static void place_operands(struct draft *d)
{
	uint8_t data[64];

	for (unsigned i = 0; i < d->decoded->instruction.operand_count; i++) {
		const ZydisDecodedOperand *operand = &d->decoded->operand[i];

		if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && gpr_number(operand->mem.base) == RSP)
			continue;
		d->target[i] = isa_place_operand(&d->random, d->test, d->decoded, i, &d->pinned);
		if (!d->test->operand)
			d->test->operand = d->target[i];
		size_t length = operand->size / 8u;
		if (length > sizeof(data))
			length = sizeof(data);
		isa_random_operand(&d->random, data, length);
		if (d->target[i] && operand->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
			isa_place(d->test, d->target[i], data, length);
	}
}

static void shorten(struct isa_case *test, uint64_t *value)
{
	if (test->mode != 64)
		*value = (uint32_t)*value;
}

bool isa_generate(struct isa_form *form, uint64_t seed, struct isa_case *test, struct isa_decoded *decoded)
{
	struct draft d = {.random = {seed}, .test = test, .decoded = decoded};
	unsigned tries = 0;

	test->seed = seed;
	test->form = form;
	test->mode = form->mode;
	test->patch_count = test->pool_used = 0;
	test->fs_base = test->gs_base = test->operand = 0;
	while (!isa_form_encode(form, &d.random, test->bytes, decoded))
		if (++tries == 256)
			return false;
	test->length = decoded->instruction.length;
	test->step = random_percent(&d.random, 50);
	choose_state(&d);
	choose_place(&d);
	choose_stack(&d);
	place_operands(&d);
	apply_roles(&d);
	isa_place(test, test->rip + code_base(test), test->bytes, test->length);
	if (test->mode != 64)
		for (unsigned i = 0; i < 8; i++)
			shorten(test, &test->gpr[i]);
	/* The displacement and immediate may have changed. */
	return isa_decode(test->mode, test->bytes, test->length, decoded);
}

void isa_generate_bytes(uint64_t seed, const uint8_t *bytes, unsigned length, unsigned room, struct isa_case *test)
{
	struct isa_decoded none;
	struct draft d = {.random = {seed}, .test = test, .decoded = &none};

	test->seed = seed;
	test->form = NULL;
	test->mode = 64;
	test->patch_count = test->pool_used = 0;
	test->fs_base = test->gs_base = test->operand = 0;
	test->step = true;
	test->length = (uint8_t)length;
	memcpy(test->bytes, bytes, length);
	choose_state(&d);
	choose_stack(&d);
	test->rip = ISA_CODE + 0x2000 - room;
	for (unsigned i = 0; i < GPR_COUNT; i++)
		if (i != RSP && random_percent(&d.random, 70))
			test->gpr[i] = ISA_DATA + random_below(&d.random, 0x2f00);
	isa_place(test, test->rip, bytes, room < length ? room : length);
}
