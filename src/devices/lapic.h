/*
 * The local APIC (SDM 3A chapter 10): one per vCPU, xAPIC and x2APIC.
 *
 * Locks: each local APIC has its own; every function may be called by any thread, with or without the device lock held.
 * A local APIC never takes the device lock while it holds its own: an EOI of a level interrupt reaches the I/O APICs
 * after its own lock is dropped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "machine/clock.h"

struct vcpu;
struct state;
struct lapic;
struct lapic_group;

enum lapic_delivery {
	DELIVERY_FIXED,
	DELIVERY_LOWEST,
	DELIVERY_SMI,
	DELIVERY_RESERVED,
	DELIVERY_NMI,
	DELIVERY_INIT,
	DELIVERY_SIPI,
	DELIVERY_EXTINT
};

/* All local APICs of a machine: the destination logic for IPIs, MSIs and I/O APIC messages. */
struct lapic_group *lapic_group_create(unsigned count, struct clock *clock); /* NULL: out of memory */
void lapic_group_destroy(struct lapic_group *group);
/* Called (no lock held) for the EOI of a level-triggered vector: the I/O APICs' business. It takes the device lock
 * itself. */
void lapic_group_set_eoi_handler(struct lapic_group *group, void (*eoi)(void *owner, unsigned vector), void *owner);
/* Show software the EOI-broadcast suppression bit (SDM 3A 10.8.5)? Only where the I/O APICs have an EOI register. Off
 * at first; before the machine runs. */
void lapic_group_offer_eoi_suppression(struct lapic_group *group, bool offer);
struct lapic *lapic_group_attach(struct lapic_group *group, unsigned index, struct vcpu *vcpu);

/*
 * An interrupt message (I/O APIC, MSI, IPI). `destination` is 8 bits wide, or 32 for x2APIC IPIs. Returns how many
 * local APICs accepted it (0 for lowest priority without a candidate).
 */
unsigned lapic_message(struct lapic_group *group, uint32_t destination, bool logical, enum lapic_delivery delivery,
                       unsigned vector, bool level_triggered);
/* An MSI write: address 0xFEExxxxx and its data (SDM 3A 10.11). */
void lapic_msi(struct lapic_group *group, uint64_t address, uint32_t data);

void lapic_reset(struct lapic *lapic, bool init); /* init: keep the APIC ID and base (SDM 3A 10.4.7.3) */

/*
 * What firmware leaves behind (MP specification 3.6.2.2, virtual wire): enabled, LINT0 = ExtINT on the bootstrap
 * processor, LINT1 = NMI. For boots without firmware; after lapic_reset().
 */
void lapic_set_virtual_wire(struct lapic *lapic);

/* xAPIC page; offset 0-0xfff. */
uint32_t lapic_mmio_read(struct lapic *lapic, uint32_t offset);
void lapic_mmio_write(struct lapic *lapic, uint32_t offset, uint32_t value);
/* x2APIC MSRs 800h-8ffh. False: #GP. */
bool lapic_msr_read(struct lapic *lapic, uint32_t index, uint64_t *value);
bool lapic_msr_write(struct lapic *lapic, uint32_t index, uint64_t value);
/* IA32_APIC_BASE with its transition rules; false: #GP. */
uint64_t lapic_base(struct lapic *lapic);
bool lapic_set_base(struct lapic *lapic, uint64_t value);
bool lapic_mmio_enabled(struct lapic *lapic, uint64_t *base); /* xAPIC mode on, and where */
/* IA32_TSC_DEADLINE. */
uint64_t lapic_tsc_deadline(struct lapic *lapic);
void lapic_set_tsc_deadline(struct lapic *lapic, uint64_t value);
/* CR8: TPR bits 7:4. */
unsigned lapic_cr8(struct lapic *lapic);
void lapic_set_cr8(struct lapic *lapic, unsigned value);

/* Is there a fixed interrupt above PPR? One atomic load; set by the APIC's recompute function. */
bool lapic_pending(struct lapic *lapic);
/* Takes the highest one: IRR -> ISR. Returns the vector, or -1 when there is none any more; the spurious vector where
 * the manual says so. */
int lapic_acknowledge(struct lapic *lapic);
/* May the 8259's INTR reach this CPU (LINT0 as ExtINT and not masked, or APIC globally disabled)? */
bool lapic_accepts_extint(struct lapic *lapic);
/* A level on LINT0/LINT1 (NMI line). */
void lapic_set_lint(struct lapic *lapic, unsigned lint, bool level);

/* After IA32_TSC or TSC_ADJUST changed: rearm the deadline. */
void lapic_tsc_changed(struct lapic *lapic);
void lapic_state(struct lapic *lapic, struct state *state);
