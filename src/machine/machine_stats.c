/*
 * What --stats shows: each vCPU's counters, the engine's own, and what the process used.
 */
#include <string.h>
#include <sys/resource.h>

#include "engines/engine.h"
#include "machine/clock.h"
#include "machine/machine.h"

static double seconds(const struct timeval *time)
{
	return (double)time->tv_sec + (double)time->tv_usec / 1e6;
}

void machine_print_stats(const struct machine *machine, FILE *file)
{
	static const struct {
		const char *name;
		size_t offset;
	} counters[] = {
#define COUNTER(field) {#field, offsetof(struct vcpu_counters, field)}
	    COUNTER(instructions),
	    COUNTER(exceptions),
	    COUNTER(interrupts),
	    COUNTER(io),
	    COUNTER(mmio),
	    COUNTER(msr),
	    COUNTER(tlb_fills),
	    COUNTER(page_walks),
	    COUNTER(tlb_flushes),
	    COUNTER(halts),
	    COUNTER(pauses),
	    COUNTER(rests),
	    COUNTER(blocks_decoded),
	    COUNTER(block_invalidations),
	    COUNTER(block_evictions),
#undef COUNTER
	};
	double khz = (double)clock_tsc_khz(machine->clock);
	unsigned cpus = machine->options.cpus;
	struct rusage usage;

	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {
		fprintf(file, "%-20s", counters[i].name);
		for (unsigned cpu = 0; cpu < cpus; cpu++) {
			uint64_t value;
			memcpy(&value, (const char *)&machine->vcpu[cpu]->counters + counters[i].offset, sizeof(value));
			fprintf(file, " %16llu", (unsigned long long)value);
		}
		fprintf(file, "\n");
	}
	fprintf(file, "%-20s", "run time, ms");
	for (unsigned cpu = 0; cpu < cpus; cpu++)
		fprintf(file, " %16.1f", (double)machine->vcpu[cpu]->counters.run_ticks / khz);
	fprintf(file, "\n%-20s", "decode time, ms");
	for (unsigned cpu = 0; cpu < cpus; cpu++)
		fprintf(file, " %16.1f", (double)machine->vcpu[cpu]->counters.decode_ticks / khz);
	fprintf(file, "\n");
	if (machine->engine->print_stats)
		machine->engine->print_stats(machine->vcpu, cpus, file);
	fprintf(file, "%-20s %16.3f s\n", "guest time", (double)clock_now(machine->clock) / 1e9);
	if (getrusage(RUSAGE_SELF, &usage) == 0)
		fprintf(file, "%-20s %16.3f s\n%-20s %16.3f s\n%-20s %16.1f MiB\n", "host user time",
		        seconds(&usage.ru_utime), "host system time", seconds(&usage.ru_stime), "peak memory",
		        (double)usage.ru_maxrss / 1024);
}
