/* Machine code as text, for traces, crash dumps and the debugger. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * The instruction at `bytes`, of which `length` are readable, in Intel syntax. `bits` is 16, 32 or 64; `rip` its
 * address. Returns its length, at least 1: what is no instruction is shown as one byte of data.
 */
unsigned disassemble(const uint8_t *bytes, size_t length, unsigned bits, uint64_t rip, char *text, size_t size);
