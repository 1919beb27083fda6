/*
 * Trace points: switched on by name at run time (--trace io,irq), written to stderr (or a file) with guest time and
 * vCPU. Off they cost a test of one word that is already in the cache.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct clock;

/* TRACE_POINT(identifier, name, what it shows): the one list, from which names and --help are made. */
#define TRACE_POINTS(X)                                                                                                \
	X(EXEC, "exec", "every instruction, disassembled (slow)")                                                      \
	X(BRANCH, "branch", "every block entered")                                                                     \
	X(IRQ, "irq", "interrupt lines, deliveries, EOIs, IPIs")                                                       \
	X(EXCEPTION, "exception", "exceptions with error code and CR2")                                                \
	X(IO, "io", "port reads and writes")                                                                           \
	X(MMIO, "mmio", "memory-mapped register reads and writes")                                                     \
	X(MSR, "msr", "RDMSR and WRMSR")                                                                               \
	X(MMU, "mmu", "page walks, TLB flushes, CR3 loads")                                                            \
	X(BOOT, "boot", "what the loader put where")                                                                   \
	X(DEBUGPORT, "debugport", "lines that the guest writes to the debug ports 402h and E9h")                       \
	X(TRANSLATE, "translate", "blocks translated: guest code and host code")                                       \
	X(UNKNOWN, "unknown", "accesses to unknown ports, addresses and MSRs, once each (on by default with any other)")

enum trace_point {
#define X(id, name, help) TRACE_##id,
	TRACE_POINTS(X)
#undef X
	    TRACE_POINT_COUNT
};

struct trace {
	uint32_t mask;       /* bit n: trace point n is on */
	struct clock *clock; /* may be NULL: no times */
	FILE *file;          /* NULL: stderr */
};

/* "io,irq" or "all" to a mask. False: `unknown` (64 bytes) receives the name that is none. */
bool trace_parse(const char *names, uint32_t *mask, char *unknown);
/* One line: "[  1.234567] cpu0 irq: ...". vcpu < 0: no vCPU. Any thread. */
void trace_write(struct trace *trace, enum trace_point point, int vcpu, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static inline bool trace_on(const struct trace *trace, enum trace_point point)
{
	return __builtin_expect(trace && (trace->mask >> point & 1), 0);
}

#define trace(t, point, vcpu, ...)                                                                                     \
	do {                                                                                                           \
		if (trace_on((t), (point)))                                                                            \
			trace_write((t), (point), (vcpu), __VA_ARGS__);                                                \
	} while (0)
