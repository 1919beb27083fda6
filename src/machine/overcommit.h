/*
 * A machine with more vCPUs than the host has CPUs: some vCPU is always without one, and others wait for it in loops with PAUSE: for a
 * lock's holder, or for the answer to an interrupt (changed page tables, patched code). The host does not know that, and each such wait
 * would last some of its time slices. So who spins gives its host CPU away soon, for some microseconds, and the host is asked for short
 * slices (Linux 6.12 and later), so that who has waited goes on soon, too.
 *
 * With a host CPU for each vCPU none of this happens: who gives its CPU away on a busy host is away for long.
 */
#pragma once

#include "machine/vcpu.h"

#define PAUSES_TO_YIELD               32768u /* some milliseconds */
#define PAUSES_TO_SLEEP_OVERCOMMITTED 256u

/* Before it runs: sets vcpu->overcommitted. */
void overcommit_init(struct vcpu *vcpu);
/* On the vCPU's thread, when that starts. */
void overcommit_thread(const struct vcpu *vcpu);
/* On the vCPU's thread, which is not in translated code: so many PAUSEs were executed since the last call. */
void overcommit_spins(const struct vcpu *vcpu);
