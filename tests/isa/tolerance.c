/*
 * Differences that are known, rare, and of no use to any program: each has a name, an exact condition, and a counter
 * that the reports print. skipped.md and docs/quirks.md list them. Measured on Zen 4.
 */
#include <string.h>

#include "isa.h"

#define BIT(vector) (1u << (vector))
#define OPERAND     (BIT(12) | BIT(13) | BIT(14) | BIT(17))

static const char *const names[ISA_TOLERANCES] = {
    [TOLERANCE_FLUSH] = "CLFLUSH, CLFLUSHOPT, CLWB allowed through an execute-only CS",
    [TOLERANCE_XRSTOR_LIMIT] = "XRSTOR compares only what it loads with the segment limit",
    [TOLERANCE_OFFSET_WRAP] = "operand whose offset from FS or GS wraps at 2^64 is #GP",
    [TOLERANCE_VMREAD] = "0F 78 fetched with the immediates of EXTRQ before it is #UD",
    [TOLERANCE_LOCK_VERIFY] = "LOCK before VERR and VERW ignored",
    [TOLERANCE_VEX_BITS] = "VEX and EVEX bits ignored that the decoder's table wants clear",
};

const char *isa_tolerance_name(enum isa_tolerance tolerance)
{
	return names[tolerance];
}

static const ZydisDecodedOperand *memory_operand(const struct isa_decoded *decoded)
{
	for (unsigned i = 0; i < decoded->instruction.operand_count; i++)
		if (decoded->operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
			return &decoded->operand[i];
	return NULL;
}

static uint64_t register_value(const struct isa_case *test, ZydisRegister name)
{
	return name == ZYDIS_REGISTER_NONE ? 0 : test->gpr[ZydisRegisterGetId(name)];
}

/* Does the last byte's offset, before the base of FS or GS is added, lie beyond 2^64? */
static bool offset_wraps(const struct isa_case *test, const struct isa_decoded *decoded)
{
	const ZydisDecodedOperand *memory = memory_operand(decoded);

	if (test->mode != 64 || decoded->instruction.address_width != 64 || !memory ||
	    memory->mem.type != ZYDIS_MEMOP_TYPE_MEM || memory->mem.base == ZYDIS_REGISTER_RIP ||
	    (memory->mem.segment != ZYDIS_REGISTER_FS && memory->mem.segment != ZYDIS_REGISTER_GS))
		return false;
	uint64_t offset = register_value(test, memory->mem.base) +
	                  register_value(test, memory->mem.index) * memory->mem.scale +
	                  (uint64_t)memory->mem.disp.value;

	return memory->size >= 8 && offset + memory->size / 8 - 1 < offset;
}

enum isa_tolerance isa_tolerance_of(const struct isa_case *test, const struct isa_decoded *decoded,
                                    const struct isa_outcome *native, const struct isa_outcome *guest)
{
	const ZydisDecodedOperand *memory = memory_operand(decoded);
	bool native_faults = OPERAND >> native->trap & 1;

	if (native->status != STATUS_EXCEPTION || guest->status != STATUS_EXCEPTION)
		return TOLERANCE_NONE;
	switch (decoded->instruction.mnemonic) {
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
		if (test->mode != 64 && memory && memory->mem.segment == ZYDIS_REGISTER_CS && guest->trap == 13 &&
		    native->trap != 13)
			return TOLERANCE_FLUSH;
		break;
	case ZYDIS_MNEMONIC_XRSTOR:
		if (test->mode != 64 && !native_faults && (guest->trap == 12 || guest->trap == 13))
			return TOLERANCE_XRSTOR_LIMIT;
		break;
	case ZYDIS_MNEMONIC_VMREAD:
		if (native->trap == 14 && native->error & 0x10 && guest->trap == 6)
			return TOLERANCE_VMREAD;
		break;
	default:
		break;
	}
	if (native->trap == 13 && guest->trap == 14 && offset_wraps(test, decoded))
		return TOLERANCE_OFFSET_WRAP;
	return TOLERANCE_NONE;
}

enum isa_tolerance isa_tolerance_of_bytes(const struct isa_case *test, const struct isa_outcome *native,
                                          const struct isa_outcome *guest)
{
	const uint8_t *bytes = test->bytes;
	unsigned i = 0;
	bool lock = false;

	if (native->status != STATUS_EXCEPTION || guest->status != STATUS_EXCEPTION || guest->trap != 6 ||
	    !((OPERAND | BIT(1)) >> native->trap & 1))
		return TOLERANCE_NONE;
	for (; i < 11; i++) {
		lock |= bytes[i] == 0xf0;
		if (!memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", bytes[i], 11) && bytes[i] >> 4 != 4)
			break;
	}
	if (lock && bytes[i] == 0x0f && bytes[i + 1] == 0x00 && (bytes[i + 2] >> 3 & 6) == 4)
		return TOLERANCE_LOCK_VERIFY;
	if (bytes[i] == 0x62 || bytes[i] == 0xc4 || bytes[i] == 0xc5)
		return TOLERANCE_VEX_BITS;
	return TOLERANCE_NONE;
}

void isa_print_tolerances(const char *program, const _Atomic uint64_t count[ISA_TOLERANCES])
{
	for (unsigned i = TOLERANCE_NONE + 1; i < ISA_TOLERANCES; i++)
		if (count[i])
			printf("%s: tolerated %llu times: %s\n", program, (unsigned long long)count[i], names[i]);
}
