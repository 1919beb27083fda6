/* Printing what the translators of a machine's vCPUs counted (stats.h). */
#include "engines/translator/stats.h"

#include <string.h>

#include "engines/translator/translator.h"
#include "machine/clock.h"
#include "machine/vcpu.h"

#define TOP 16 /* mnemonics shown */

static const struct translator_counters *counters_of(struct vcpu *vcpu)
{
	return &interpreter_of(vcpu)->translator->counters;
}

static double microseconds(const struct vcpu *vcpu, uint64_t ticks)
{
	return vcpu->clock ? 1000.0 * (double)ticks / (double)clock_tsc_khz(vcpu->clock) : 0.0;
}

static void print_times(struct vcpu *const *vcpu, unsigned count, FILE *file)
{
	fprintf(file, "%-52s", "translation time, ms");
	for (unsigned cpu = 0; cpu < count; cpu++)
		fprintf(file, " %14.1f",
		        vcpu[cpu]->clock
		            ? (double)counters_of(vcpu[cpu])->ticks / (double)clock_tsc_khz(vcpu[cpu]->clock)
		            : 0.0);
	fprintf(file, "\n%-52s", "translation and decoding, % of run time");
	for (unsigned cpu = 0; cpu < count; cpu++) {
		const struct vcpu_counters *all = &vcpu[cpu]->counters;
		uint64_t ticks = counters_of(vcpu[cpu])->ticks + all->decode_ticks;

		fprintf(file, " %14.2f", all->run_ticks ? 100.0 * (double)ticks / (double)all->run_ticks : 0.0);
	}
	fprintf(file, "\n%-52s", "cache: longest emptying of a part, us");
	for (unsigned cpu = 0; cpu < count; cpu++)
		fprintf(file, " %14.0f",
		        microseconds(vcpu[cpu], interpreter_of(vcpu[cpu])->translator->longest_eviction));
	fprintf(file, "\n%-52s", "host code on huge pages, KiB");
	for (unsigned cpu = 0; cpu < count; cpu++)
		fprintf(file, " %14zu", code_arena_huge(&interpreter_of(vcpu[cpu])->translator->arena) >> 10);
	fprintf(file, "\n%-52s", "longest wait of others for this processor, us");
	for (unsigned cpu = 0; cpu < count; cpu++)
		fprintf(file, " %14.0f",
		        microseconds(vcpu[cpu], atomic_load(&interpreter_of(vcpu[cpu])->translator->longest_wait)));
	fprintf(file, "\n");
}

/* Which instructions were left to the interpreter most often, all vCPUs together. */
static void print_fallbacks(struct vcpu *const *vcpu, unsigned count, FILE *file)
{
	uint64_t limit = UINT64_MAX, all = 0;
	unsigned shown = 0;

	for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++)
		for (unsigned cpu = 0; cpu < count; cpu++)
			all += counters_of(vcpu[cpu])->fallback[m];
	fprintf(file, "instructions left to the interpreter: %llu\n", (unsigned long long)all);
	while (shown < TOP && limit) {
		uint64_t best = 0;

		/* The highest below the last one; equal ones together. */
		for (unsigned pass = 0; pass < 2; pass++) {
			for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++) {
				uint64_t sum = 0;

				for (unsigned cpu = 0; cpu < count; cpu++)
					sum += counters_of(vcpu[cpu])->fallback[m];
				if (pass == 0 && sum < limit && sum > best)
					best = sum;
				if (pass == 1 && sum == best && best && shown < TOP && ++shown)
					fprintf(file, "    %-16s %14llu %6.2f %%\n",
					        m ? ZydisMnemonicGetString((ZydisMnemonic)m) : "(other)",
					        (unsigned long long)sum, 100.0 * (double)sum / (double)all);
			}
		}
		limit = best;
	}
}

void translator_print_stats(struct vcpu *const *vcpu, unsigned count, FILE *file)
{
	static const struct {
		const char *text;
		size_t offset;
	} rows[] = {
#define X(field, text) {text, offsetof(struct translator_counters, field)},
	    TRANSLATOR_COUNTERS(X)
#undef X
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		if (rows[i].offset == offsetof(struct translator_counters, ticks))
			continue;
		fprintf(file, "%-52s", rows[i].text);
		for (unsigned cpu = 0; cpu < count; cpu++) {
			uint64_t value;

			memcpy(&value, (const char *)counters_of(vcpu[cpu]) + rows[i].offset, sizeof(value));
			fprintf(file, " %14llu", (unsigned long long)value);
		}
		fprintf(file, "\n");
	}
	print_times(vcpu, count, file);
	print_fallbacks(vcpu, count, file);
}
