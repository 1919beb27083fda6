/*
 * Saving and loading the architected state of a vCPU.
 */
#pragma once

struct state;
struct vcpu;

/*
 * Section "cpu", instance vcpu->index. The vCPU does not run. A stream is hostile: what no processor can be in (modes
 * that exclude each other, reserved bits, non-canonical bases, components that the model lacks) is refused with
 * state_fail() and nothing of the vCPU is changed. After a load the TLB is empty and the MMU's view is right; the
 * caller tells the engine (state_changed) and, when clock and memory are loaded too, calls pvclock_update().
 */
void cpu_state_state(struct vcpu *vcpu, struct state *state);
