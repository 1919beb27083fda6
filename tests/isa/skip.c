/*
 * What is left out of the tests against the silicon, and why. The list of a run is printed by --list-skipped;
 * skipped.md explains.
 */
#include "isa.h"

struct reason {
	ZydisMnemonic mnemonic;
	const char *why;
};

#define REASON_TIME   "reads time or a counter: differs each time"
#define REASON_RANDOM "gives random numbers"
#define REASON_CPU    "tells about the processor: a guest sees its own model"
#define REASON_SYSTEM "enters the host kernel or hypervisor"
#define REASON_UMIP   "Linux emulates it for user code (UMIP)"
#define REASON_WAIT   "waits for an event"
#define REASON_PMC    "depends on CR4.PCE, which the host kernel changes"
#define REASON_INUSE  "shows which states are in use, which depends on history"
#define REASON_MODEL  "not in the CPU that a guest sees"
#define REASON_HOST   "changes host state that outlives the case"

static const struct reason reasons[] = {
    {ZYDIS_MNEMONIC_RDTSC, REASON_TIME},
    {ZYDIS_MNEMONIC_RDTSCP, REASON_TIME},
    {ZYDIS_MNEMONIC_RDPRU, REASON_TIME},
    {ZYDIS_MNEMONIC_RDPMC, REASON_PMC},
    {ZYDIS_MNEMONIC_RDPID, REASON_CPU},
    {ZYDIS_MNEMONIC_CPUID, REASON_CPU},
    {ZYDIS_MNEMONIC_RDRAND, REASON_RANDOM},
    {ZYDIS_MNEMONIC_RDSEED, REASON_RANDOM},
    {ZYDIS_MNEMONIC_SYSCALL, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_SYSENTER, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_VMCALL, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_VMMCALL, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_VMFUNC, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_TDCALL, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_SEAMCALL, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_ENCLU, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_SGDT, REASON_UMIP},
    {ZYDIS_MNEMONIC_SIDT, REASON_UMIP},
    {ZYDIS_MNEMONIC_SLDT, REASON_UMIP},
    {ZYDIS_MNEMONIC_STR, REASON_UMIP},
    {ZYDIS_MNEMONIC_SMSW, REASON_UMIP},
    {ZYDIS_MNEMONIC_MONITORX, REASON_WAIT},
    {ZYDIS_MNEMONIC_MWAITX, REASON_WAIT},
    {ZYDIS_MNEMONIC_MONITOR, REASON_WAIT},
    {ZYDIS_MNEMONIC_MWAIT, REASON_WAIT},
    {ZYDIS_MNEMONIC_UMWAIT, REASON_WAIT},
    {ZYDIS_MNEMONIC_TPAUSE, REASON_WAIT},
    {ZYDIS_MNEMONIC_UIRET, REASON_SYSTEM},
    {ZYDIS_MNEMONIC_SENDUIPI, REASON_HOST},
    {ZYDIS_MNEMONIC_ENQCMD, REASON_HOST},
    {ZYDIS_MNEMONIC_XRESLDTRK, REASON_HOST},
    {ZYDIS_MNEMONIC_XSUSLDTRK, REASON_HOST},
    {ZYDIS_MNEMONIC_MCOMMIT, REASON_HOST},
    {ZYDIS_MNEMONIC_WRPKRU, REASON_HOST},
    {ZYDIS_MNEMONIC_VMRUN, REASON_MODEL},
    {ZYDIS_MNEMONIC_VMLOAD, REASON_MODEL},
    {ZYDIS_MNEMONIC_VMSAVE, REASON_MODEL},
    {ZYDIS_MNEMONIC_STGI, REASON_MODEL},
    {ZYDIS_MNEMONIC_CLGI, REASON_MODEL},
    {ZYDIS_MNEMONIC_SKINIT, REASON_MODEL},
    {ZYDIS_MNEMONIC_INVLPGA, REASON_MODEL},
    {ZYDIS_MNEMONIC_PVALIDATE, REASON_MODEL},
    {ZYDIS_MNEMONIC_CLZERO, REASON_MODEL},
    {ZYDIS_MNEMONIC_INT1, "a hypervisor below the host delivers it as a fault"},
    {ZYDIS_MNEMONIC_VMRUN, REASON_MODEL},
    {ZYDIS_MNEMONIC_VMLOAD, REASON_MODEL},
    {ZYDIS_MNEMONIC_VMSAVE, REASON_MODEL},
    {ZYDIS_MNEMONIC_STGI, REASON_MODEL},
    {ZYDIS_MNEMONIC_CLGI, REASON_MODEL},
    {ZYDIS_MNEMONIC_SKINIT, REASON_MODEL},
    {ZYDIS_MNEMONIC_INVLPGA, REASON_MODEL},
    {ZYDIS_MNEMONIC_PVALIDATE, REASON_MODEL},
    {ZYDIS_MNEMONIC_CLZERO, REASON_MODEL},
    {ZYDIS_MNEMONIC_INT1, "a hypervisor below the host delivers it as a fault"},
    {ZYDIS_MNEMONIC_XBEGIN, "transactions abort as they like"},
};

const char *isa_skip_reason(unsigned mode, const struct isa_decoded *decoded)
{
	const ZydisDecodedInstruction *i = &decoded->instruction;

	for (unsigned n = 0; n < sizeof(reasons) / sizeof(reasons[0]); n++)
		if (reasons[n].mnemonic == i->mnemonic)
			return reasons[n].why;
	return NULL;
}

bool isa_harmless(const struct isa_decoded *decoded)
{
	const ZydisDecodedInstruction *i = &decoded->instruction;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
		return true; /* only the length and the exception are compared */
	case ZYDIS_MNEMONIC_INT:
		return false;
	default:
		return !isa_skip_reason(64, decoded);
	}
}
