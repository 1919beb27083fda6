/*
 * From a form and a seed to a case: bytes, registers, flags, memory.
 */
#include <string.h>

#include "draft.h"

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
	/* Half of 32-bit code has flat segments but for FS and GS, as systems have them: the translator's case. */
	bool flat = test->mode == 32 && random_percent(random, 50);
	if (test->mode == 16)
		test->selector[SEG_CS] = ISA_LDT(random_percent(random, 80) ? LDT_CODE16 : LDT_CODE16_EXECUTE);
	else if (!flat && random_percent(random, 30))
		test->selector[SEG_CS] = ISA_LDT(code32[random_below(random, 3)]);
	for (unsigned i = 0; i < 6; i++) {
		if (i == SEG_CS || (flat && i < SEG_FS) || random_percent(random, test->mode == 16 ? 15 : 55))
			continue;
		uint8_t index = test->mode == 16 ? data16[random_below(random, 8)] : data32[random_below(random, 8)];

		if (i == SEG_SS && (index == LDT_READ_ONLY || index == LDT_CODE16))
			index = LDT_STACK16;
		test->selector[i] = ISA_LDT(index);
	}
}

static void choose_place(struct draft *d)
{
	uint64_t linear = ISA_CODE + 160 + random_below(&d->random, 3700);

	if (random_percent(&d->random, 8)) /* across the two pages */
		linear = ISA_CODE + 0x1000 - random_below(&d->random, d->test->length + 1u);
	else if (random_percent(&d->random, 4)) /* at the very end */
		linear = ISA_CODE + 0x2000 - d->test->length;
	d->test->rip = linear - draft_code_base(d->test);
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
		if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
		    draft_gpr_number(operand->mem.base) == RSP)
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
	test->step = random_percent(&d.random, 50) && !(test->seldom_step && seed >> 8 & 7);
	choose_state(&d);
	choose_place(&d);
	choose_stack(&d);
	place_operands(&d);
	draft_apply_roles(&d);
	/* With an end: operands may lie around it. */
	uint8_t code[16];
	memcpy(code, test->bytes, test->length);
	code[test->length] = 0xcc;
	isa_place(test, test->rip + draft_code_base(test), code, test->length + 1u);
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
