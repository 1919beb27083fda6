/*
 * Crash report of one vCPU: registers as the manuals print them, and the code around RIP.
 */
#include "debug/dump.h"

#include <inttypes.h>

#include "debug/disassemble.h"
#include "machine/vcpu.h"

static void dump_segment(FILE *file, const char *name, const struct segment *segment)
{
	fprintf(file, "%-4s %04x base %016" PRIx64 " limit %08x access %05x%s\n", name, segment->selector,
	        segment->base, segment->limit, segment->access, segment->access & SEG_UNUSABLE ? " (unusable)" : "");
}

/* The code bytes as far as they can be read, disassembled: up to eight instructions from RIP. */
static void dump_code(struct vcpu *vcpu, FILE *file)
{
	const struct cpu_state *state = &vcpu->state;
	unsigned bits = cpu_64bit_code(state) ? 64 : state->segment[SEG_CS].access & SEG_DB ? 32 : 16;
	uint64_t rip = state->rip;

	for (unsigned count = 0; count < 8; count++) {
		uint8_t bytes[15];
		char text[128];
		size_t length = 0;
		uint64_t linear = rip + (bits == 64 ? 0 : state->segment[SEG_CS].base);

		while (length < sizeof(bytes) && mmu_debug_read(vcpu, linear + length, &bytes[length], 1))
			length++;
		if (length == 0) {
			fprintf(file, "%016" PRIx64 ": not readable\n", rip);
			return;
		}
		unsigned used = disassemble(bytes, length, bits, rip, text, sizeof(text));
		fprintf(file, "%016" PRIx64 ": ", rip);
		for (unsigned i = 0; i < used; i++)
			fprintf(file, "%02x", bytes[i]);
		fprintf(file, "%*s %s\n", (int)(used < 10 ? 20 - used * 2 : 0), "", text);
		rip += used;
	}
}

void dump_vcpu(struct vcpu *vcpu, FILE *file)
{
	static const char *const gpr[] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
	                                  "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"};
	static const char *const segment[] = {"ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"};
	const struct cpu_state *state = &vcpu->state;

	fprintf(file,
	        "cpu %u: RIP %016" PRIx64 " RFLAGS %08" PRIx64
	        " CPL %u, last exception: vector %u error %#x address %#" PRIx64 "\n",
	        vcpu->index, state->rip, state->rflags, cpu_cpl(state), vcpu->exception.vector, vcpu->exception.error,
	        vcpu->exception.address);
	for (unsigned i = 0; i < GPR_COUNT; i++)
		fprintf(file, "%s %016" PRIx64 "%s", gpr[i], state->gpr[i], i % 4 == 3 ? "\n" : " ");
	for (unsigned i = 0; i < SEG_COUNT; i++)
		dump_segment(file, segment[i], &state->segment[i]);
	fprintf(file, "GDTR %016" PRIx64 " limit %04x IDTR %016" PRIx64 " limit %04x\n", state->gdtr.base,
	        state->gdtr.limit, state->idtr.base, state->idtr.limit);
	fprintf(file, "CR0 %08" PRIx64 " CR2 %016" PRIx64 " CR3 %016" PRIx64 " CR4 %08" PRIx64 " EFER %" PRIx64 "\n",
	        state->cr0, state->cr2, state->cr3, state->cr4, state->efer);
	fprintf(file, "DR6 %08" PRIx64 " DR7 %08" PRIx64 " XCR0 %" PRIx64 "\n", state->dr[6], state->dr[7],
	        state->xcr0);
	dump_code(vcpu, file);
}
