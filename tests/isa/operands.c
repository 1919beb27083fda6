/*
 * Random values and addresses of a case: corner values as often as random ones, special floating-point numbers,
 * addresses in, across and outside the windows.
 */
#include <string.h>

#include "isa.h"

/* ---- values ---- */

uint64_t isa_random_value(struct random *random)
{
	uint64_t bits = random_u64(random);
	unsigned shift = bits >> 8 & 63;

	switch (bits & 15) {
	case 0:
		return 0;
	case 1:
		return ~0ull;
	case 2:
		return 1ull << shift;
	case 3:
		return (1ull << shift) - 1;
	case 4:
		return -(1ull << shift);
	case 5:
		return bits >> 16 & 0xff;
	case 6:
		return (uint64_t)(int8_t)(bits >> 16);
	case 7:
		return 0x7fffffffffffffffull >> (shift & 56);
	case 8:
		return 0x8000000000000000ull >> (shift & 56);
	case 9:
		return (uint32_t)random_u64(random);
	case 10:
		return (uint64_t)(int32_t)random_u64(random);
	case 11:
		return random_u64(random) >> shift;
	case 12:
		return 0x0101010101010101ull * (bits >> 16 & 0xff);
	default:
		return random_u64(random);
	}
}

static uint16_t random_f16(struct random *random)
{
	static const uint16_t special[] = {0,      0x8000, 0x3c00, 0xbc00, 0x7c00, 0xfc00,
	                                   0x7e00, 0x7d00, 1,      0x83ff, 0x400,  0x7bff};

	return random_percent(random, 50) ? special[random_below(random, 12)] : (uint16_t)random_u64(random);
}

static uint32_t random_f32(struct random *random)
{
	static const uint32_t special[] = {
	    0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffc12345,
	    1, 0x807fffff, 0x00800000, 0x7f7fffff, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x34000000,
	};

	switch (random_below(random, 4)) {
	case 0:
		return special[random_below(random, 18)];
	case 1: /* moderate numbers, so that sums and products are not all overflows */
		return (uint32_t)(random_u64(random) & 0x80ffffff) | (0x3b + random_below(random, 9)) << 24;
	case 2: {
		float value = (float)(int32_t)(random_u64(random) >> (32 + random_below(random, 31)));
		uint32_t bits;

		memcpy(&bits, &value, 4);
		return bits;
	}
	default:
		return (uint32_t)random_u64(random);
	}
}

static uint64_t random_f64(struct random *random)
{
	static const uint64_t special[] = {
	    0,
	    1ull << 63,
	    0x3ff0000000000000,
	    0xbff0000000000000,
	    0x7ff0000000000000,
	    0xfff0000000000000,
	    0x7ff8000000000000,
	    0x7ff0000000000001,
	    0xfff8000012345678,
	    1,
	    0x800fffffffffffff,
	    0x0010000000000000,
	    0x7fefffffffffffff,
	    0x41e0000000000000,
	    0xc1e0000000000000,
	    0x43e0000000000000,
	    0x43f0000000000000,
	    0x3fe0000000000000,
	    0x36a0000000000000,
	    0x47efffffe0000000,
	};

	switch (random_below(random, 4)) {
	case 0:
		return special[random_below(random, 20)];
	case 1:
		return (random_u64(random) & 0x801fffffffffffffull) | (uint64_t)(0x3f0 + random_below(random, 32))
		                                                          << 52;
	case 2: {
		double value = (double)(int64_t)(random_u64(random) >> random_below(random, 63));
		uint64_t bits;

		memcpy(&bits, &value, 8);
		return bits;
	}
	default:
		return random_u64(random);
	}
}

/* Ten bytes of double extended precision, also denormal, pseudo-denormal, unnormal, infinity, NaN. */
static void random_f80(struct random *random, uint8_t bytes[10])
{
	uint64_t mantissa = random_u64(random);
	uint16_t exponent = (uint16_t)random_u64(random);

	switch (random_below(random, 8)) {
	case 0:
		mantissa = 0;
		exponent &= 0x8000;
		break;
	case 1:
		mantissa = 1ull << 63 | (random_percent(random, 50) ? 0 : mantissa >> random_below(random, 64));
		exponent |= 0x7fff;
		break;
	case 2:
		exponent &= 0x8000;
		mantissa >>= random_below(random, 64);
		break;
	case 3:
	case 4:
		exponent = (uint16_t)((exponent & 0x8000) | (16383 - 8 + random_below(random, 80)));
		mantissa |= 1ull << 63;
		break;
	case 5:
		exponent = (uint16_t)((exponent & 0x8000) | (16383 + random_below(random, 12)));
		mantissa = (mantissa | 1ull << 63) & (~0ull << random_below(random, 63));
		break;
	case 6:
		mantissa |= 1ull << 63;
		break;
	default:
		break;
	}
	memcpy(bytes, &mantissa, 8);
	memcpy(bytes + 8, &exponent, 2);
}

/* One flavour for all of `length` bytes. */
static void random_flavour(struct random *random, unsigned flavour, uint8_t *bytes, size_t length)
{
	uint64_t value = 0;

	for (size_t i = 0; i < length; i += 8) {
		switch (flavour) {
		case 0:
		case 1:
			value = random_f32(random) | (uint64_t)random_f32(random) << 32;
			break;
		case 2:
		case 3:
			value = random_f64(random);
			break;
		case 4:
			for (unsigned k = 0; k < 4; k++)
				value = value << 16 | random_f16(random);
			break;
		case 5:
			value = isa_random_value(random);
			break;
		case 6: /* few values: equal elements, masks */
			for (unsigned k = 0; k < 8; k++)
				value = value << 8 | (uint8_t[]){0, 0xff, 0x80, 1}[random_below(random, 4)];
			break;
		case 7:
			value = random_u64(random) & 0x0f0f0f0f0f0f0f0full;
			break;
		case 8: /* doubles that fit into other types' ranges are rare: packed small integers */
			value =
			    (uint64_t)(random_u64(random) & 0x0000ff000000ff) * (random_percent(random, 50) ? 1 : 257);
			break;
		default:
			value = random_u64(random);
		}
		memcpy(bytes + i, &value, length - i < 8 ? length - i : 8);
	}
}

#define FLAVOURS 11

void isa_random_operand(struct random *random, void *buffer, size_t length)
{
	if (random_percent(random, 10) && length >= 10) {
		random_bytes(random, buffer, length);
		random_f80(random, buffer);
		return;
	}
	random_flavour(random, random_below(random, FLAVOURS), buffer, length);
}

void isa_random_vector(struct random *random, struct isa_case *test)
{
	struct vector_state *v = &test->vector;
	unsigned flavour = random_below(random, FLAVOURS);

	/* Most registers share the flavour, so that operands meet their like. */
	for (unsigned i = 0; i < 32; i++)
		random_flavour(random, (i & 7) == 7 ? random_below(random, FLAVOURS) : flavour, v->zmm[i], 64);
	for (unsigned i = 0; i < 8; i++)
		v->opmask[i] = isa_random_value(random);
	v->mxcsr = 0x1f80;
	if (random_percent(random, 40))
		v->mxcsr |= random_below(random, 4) << 13;
	if (random_percent(random, 15))
		v->mxcsr &= (uint32_t)random_u64(random) | 0xffffe07f;
	if (random_percent(random, 10))
		v->mxcsr |= 0x40;
	if (random_percent(random, 10))
		v->mxcsr |= 0x8000;
	if (random_percent(random, 20))
		v->mxcsr |= random_below(random, 64);
}

void isa_random_x87(struct random *random, struct isa_case *test)
{
	struct x87_state *x = &test->x87;
	unsigned top = random_below(random, 8);
	static const uint8_t common_tags[] = {0, 0xff, 0xff, 0xff, 0x0f, 0xf0};

	*x = (struct x87_state){.fcw = 0x37f};
	if (random_percent(random, 50))
		x->fcw = (uint16_t)((x->fcw & ~0xf00) | random_below(random, 4) << 10 |
		                    (uint16_t[]){0, 2, 3, 3}[random_below(random, 4)] << 8);
	if (random_percent(random, 15))
		x->fcw &= (uint16_t)(random_u64(random) | 0xffc0);
	x->ftw = random_percent(random, 60) ? common_tags[random_below(random, 6)] : (uint8_t)random_u64(random);
	x->fsw = (uint16_t)(top << 11 | (random_u64(random) & 0x4700));
	if (random_percent(random, 30))
		x->fsw |= (uint16_t)random_below(random, 128);
	/* Pending unmasked exceptions: ES and B follow from the flags (SDM 1 8.1.3.3); not often, for nothing else is
	 * tested then. */
	if (x->fsw & ~x->fcw & 0x3f) {
		if (random_percent(random, 80))
			x->fsw &= (uint16_t)(x->fcw | 0xff40);
		else
			x->fsw |= 0x8080;
	}
	for (unsigned i = 0; i < 8; i++)
		random_f80(random, x->st[i]);
}

/* ---- addresses ---- */

static bool is_gpr(ZydisRegister reg, unsigned *number)
{
	int id;

	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR64:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR8:
		id = ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg));
		*number = (unsigned)id & 15;
		return id >= 0;
	default:
		return false;
	}
}

/* A linear address for an operand of `size` bytes: mostly plain, some crossing pages, some that fault. */
static uint64_t pick_target(struct random *random, const struct isa_case *test, uint64_t size)
{
	static const uint64_t pages[] = {ISA_DATA, ISA_DATA + 0x1000, ISA_DATA + 0x2000, ISA_DATA + 0x4000,
	                                 ISA_DATA + 0x6000};
	uint64_t page = pages[random_below(random, 5)], address;
	unsigned kind = random_below(random, 100);

	if (size == 0)
		size = 1;
	if (size > 2048)
		size = 2048;
	if (test->mode == 64 && random_percent(random, 12))
		page = ISA_HIGH;
	if (test->edges && random_percent(random, 70))
		kind = 78 + random_below(random, 22);
	if (kind < 78) {
		address = page + random_below(random, (uint32_t)(4096 - size + 1));
		if (kind < (size > 64 ? 74u : 45u))
			address &= -(size > 64 ? 64 : size & (size - 1) ? 16 : size);
		return address;
	}
	if (kind < 84) /* crosses into the next writable page */
		return ISA_DATA + 0x1000 * (1 + random_below(random, 2)) - random_below(random, (uint32_t)size + 1);
	if (kind < 88) /* read-only, wholly or in part */
		return ISA_DATA + 0x5000 + random_below(random, 4096) - random_below(random, (uint32_t)size);
	if (kind < 91) /* into the hole, or out of it */
		return ISA_DATA + (random_percent(random, 50) ? 0x3000 : 0x4000) -
		       random_below(random, (uint32_t)size + 1);
	if (kind < 93)
		return ISA_DATA + 0x3000 + random_below(random, 4096);
	if (kind < 94)
		return ISA_CODE + random_below(random, 0x2000);
	if (kind < 96 || test->mode != 64)
		return isa_random_value(random) & 0xffffffff;
	if (kind < 98) /* around the ends of the canonical halves */
		return (random_percent(random, 50) ? 0x0000800000000000ull : 0xffff800000000000ull) - 8 +
		       random_below(random, 16);
	return random_percent(random, 50) ? 0x8000000000000000ull + random_u64(random) / 4 : isa_random_value(random);
}

struct segment isa_case_segment(const struct isa_case *test, ZydisRegister segment)
{
	switch (segment) {
	case ZYDIS_REGISTER_ES:
		return isa_segment(test->selector[SEG_ES]);
	case ZYDIS_REGISTER_CS:
		return isa_segment(test->selector[SEG_CS]);
	case ZYDIS_REGISTER_SS:
		return isa_segment(test->selector[SEG_SS]);
	case ZYDIS_REGISTER_FS:
		return isa_segment(test->selector[SEG_FS]);
	case ZYDIS_REGISTER_GS:
		return isa_segment(test->selector[SEG_GS]);
	default:
		return isa_segment(test->selector[SEG_DS]);
	}
}

static uint64_t segment_base(const struct isa_case *test, ZydisRegister segment)
{
	if (test->mode == 64)
		return segment == ZYDIS_REGISTER_FS ? test->fs_base : segment == ZYDIS_REGISTER_GS ? test->gs_base : 0;
	return isa_case_segment(test, segment).base;
}

/* In 16- and 32-bit code most targets should be within the segment. */
static uint64_t target_in_segment(struct random *random, const struct isa_case *test, ZydisRegister name,
                                  uint64_t target, uint64_t size)
{
	struct segment segment = isa_case_segment(test, name);

	if (test->mode == 64 || segment.limit == 0xffffffff || segment.access & SEG_UNUSABLE ||
	    random_percent(random, 15))
		return target;
	if ((segment.access & (SEG_CODE | SEG_EXPANDDOWN)) == SEG_EXPANDDOWN)
		return segment.base + segment.limit + 1 + random_below(random, 0x1000) -
		       (random_percent(random, 10) ? size : 0);
	if (random_percent(random, 10)) /* around the limit */
		return segment.base + segment.limit + 1 - random_below(random, (uint32_t)size * 2 + 1);
	uint64_t offset = target - segment.base;
	return offset <= segment.limit ? target : segment.base + offset % ((uint64_t)segment.limit + 1);
}

static void write_gpr(struct isa_case *test, unsigned number, unsigned width, uint64_t value)
{
	if (width == 64)
		test->gpr[number] = value;
	else if (width == 32)
		test->gpr[number] = (test->gpr[number] & 0xffffffff00000000ull) | (uint32_t)value;
	else
		test->gpr[number] = (test->gpr[number] & ~0xffffull) | (uint16_t)value;
}

static void patch_displacement(struct isa_case *test, const struct isa_decoded *decoded, uint64_t value)
{
	const struct ZydisDecodedInstructionRawDisp_ *disp = &decoded->instruction.raw.disp;

	memcpy(test->bytes + disp->offset, &value, disp->size / 8);
}

static bool fits(uint64_t value, unsigned bits)
{
	return bits >= 64 || (uint64_t)((int64_t)(value << (64 - bits)) >> (64 - bits)) == value;
}

/* VSIB: every element of the index register points near the base, some far off. */
static void place_vector_index(struct random *random, struct isa_case *test, const ZydisDecodedOperand *operand)
{
	unsigned number = (unsigned)ZydisRegisterGetId(operand->mem.index) & 31;
	uint8_t *zmm = test->vector.zmm[number];
	unsigned width = random_percent(random, 50) ? 4 : 8;

	for (unsigned i = 0; i < 64; i += width) {
		int64_t index = (int64_t)random_below(random, 400) - 200;

		if (random_percent(random, 3))
			index = (int64_t)isa_random_value(random);
		memcpy(zmm + i, &index, width);
	}
}

uint64_t isa_place_operand(struct random *random, struct isa_case *test, struct isa_decoded *decoded, unsigned index,
                           uint32_t *pinned)
{
	const ZydisDecodedOperand *operand = &decoded->operand[index];
	const ZydisDecodedInstruction *instruction = &decoded->instruction;
	unsigned width = instruction->address_width, base = 0, scaled = 0;
	uint64_t mask = width == 64 ? ~0ull : (1ull << width) - 1;
	uint64_t size = operand->size / 8u, segment = segment_base(test, operand->mem.segment);
	uint64_t target = target_in_segment(random, test, operand->mem.segment, pick_target(random, test, size), size);
	uint64_t offset = target - segment, disp = (uint64_t)operand->mem.disp.value;
	bool has_base = operand->mem.base != ZYDIS_REGISTER_NONE && is_gpr(operand->mem.base, &base);
	bool has_index = operand->mem.index != ZYDIS_REGISTER_NONE && is_gpr(operand->mem.index, &scaled);
	bool raw_disp32 = instruction->raw.disp.size >= 16 && operand->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
	                  fits(offset, instruction->raw.disp.size);

	if (operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		place_vector_index(random, test, operand);
	if (operand->mem.base == ZYDIS_REGISTER_RIP || operand->mem.base == ZYDIS_REGISTER_EIP) {
		uint64_t next = test->rip + test->length;
		uint64_t distance = (offset - next) & mask;

		if (width == 32)
			distance = (uint64_t)(int32_t)distance;
		if (fits(distance, 32))
			patch_displacement(test, decoded, distance);
		else
			distance = (uint64_t)instruction->raw.disp.value;
		return segment + ((next + distance) & mask);
	}
	if (!has_base && !has_index) {
		if (operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			return 0;
		if (fits(offset, instruction->raw.disp.size) ||
		    (width == 32 && instruction->raw.disp.size == 32 && offset >> 32 == 0) ||
		    (width == 16 && offset >> 16 == 0)) {
			patch_displacement(test, decoded, offset);
			return target;
		}
		return segment + (disp & mask);
	}
	if (operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		has_index = false;
	if (has_base && has_index && base == scaled) {
		uint64_t factor = operand->mem.scale + 1u;

		if (!(*pinned >> base & 1))
			write_gpr(test, base, width, ((offset - disp) & mask) / factor);
		*pinned |= 1u << base;
		return segment + ((test->gpr[base] * factor + disp) & mask);
	}
	uint64_t index_value = has_index ? test->gpr[scaled] : 0;
	if (has_index && ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_GPR8)
		index_value &= 0xff; /* XLAT */
	if (!has_base) {
		if (raw_disp32 && !(*pinned >> scaled & 1)) {
			/* index*scale + disp32: any small index, the rest in the displacement */
			uint64_t small = random_below(random, 4096);

			if (random_percent(random, 30))
				small = (uint64_t) - (int64_t)small;
			if (fits(offset - small * operand->mem.scale, 32)) {
				write_gpr(test, scaled, width, small);
				patch_displacement(test, decoded, offset - small * operand->mem.scale);
				*pinned |= 1u << scaled;
				return target;
			}
		}
		return segment + ((index_value * operand->mem.scale + disp) & mask);
	}
	if (has_index && !(*pinned >> scaled & 1) && width == 16)
		write_gpr(test, scaled, 16, random_below(random, 256));
	index_value = has_index && ZydisRegisterGetClass(operand->mem.index) != ZYDIS_REGCLASS_GPR8 ? test->gpr[scaled]
	                                                                                            : index_value;
	if (!(*pinned >> base & 1))
		write_gpr(test, base, width, offset - disp - index_value * operand->mem.scale);
	*pinned |= 1u << base;
	if (has_index)
		*pinned |= 1u << scaled;
	return segment + ((test->gpr[base] + index_value * operand->mem.scale + disp) & mask);
}
