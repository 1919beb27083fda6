/*
 * KVM's paravirtual clock (Linux Documentation/virt/kvm/x86/msr.rst): the guest computes nanoseconds from its own TSC
 * and a page that is filled here. All vCPUs use one formula, nanoseconds = TSC ticks of the machine clock, scaled; so
 * it never jumps between vCPUs, and neither over a pause, because the TSC stands still then.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct vcpu;

/* WRMSR of the system time and wall clock MSRs. False: #GP (address not in RAM or misaligned). */
bool pvclock_set_system_time(struct vcpu *vcpu, uint64_t value);
bool pvclock_set_wall_clock(struct vcpu *vcpu, uint64_t value);

/* Writes the page again, when the guest's TSC was set or a saved machine has been loaded. Nothing happens when it is
 * not in use. */
void pvclock_update(struct vcpu *vcpu);
