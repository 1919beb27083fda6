/*
 * One line of disassembly by Zydis.
 */
#include "debug/disassemble.h"

#include <stdio.h>
#include <Zydis/Zydis.h>

unsigned disassemble(const uint8_t *bytes, size_t length, unsigned bits, uint64_t rip, char *text, size_t size)
{
	ZydisMachineMode mode = bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
	                        : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
	                                     : ZYDIS_MACHINE_MODE_LEGACY_16;
	ZydisDisassembledInstruction instruction;

	if (length && ZYAN_SUCCESS(ZydisDisassembleIntel(mode, rip, bytes, length, &instruction))) {
		snprintf(text, size, "%s", instruction.text);
		return instruction.info.length;
	}
	snprintf(text, size, length ? "(bad) %02x" : "(nothing)", length ? bytes[0] : 0);
	return 1;
}
