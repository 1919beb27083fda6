/*
 * MSI-X (PCI 3.0 6.8.2): a table of messages, one for each vector, and a bit array of pending ones, in a BAR of their
 * own.
 *
 *	         table                                      pending bits
 *	       +------------+------------+------+---------+
 *	     0 | address lo | address hi | data | control |   bit 0
 *	     1 |    ...                           bit 0:  |   bit 1
 *	       |                                  masked  |    ...
 *	       +------------------------------------------+
 *
 * A vector that is raised while it or the whole function is masked, or while the function may not master the bus,
 * becomes pending, and is sent when nothing of that holds any more. While MSI-X is off nothing is sent and nothing
 * becomes pending: the device uses its INTx pin then.
 *
 * Threads: pci_msix_raise() and pci_msix_enabled() on any thread; all else with the device lock held. The table has a
 * lock of its own, below the device lock and above the local APICs'; it is held while a message is sent, so that none is
 * under way when a guest's write of a mask returns.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

#define PCI_MSIX_VECTORS_MAX 256

struct pci_function;
struct state;

struct pci_msix_entry {
	uint64_t address;
	uint32_t data;
	uint32_t control; /* bit 0: masked */
};

struct pci_msix {
	struct pci_function *function;
	unsigned capability; /* offset in the configuration space */
	unsigned count;      /* vectors */
	unsigned pba_offset;
	_Atomic bool enabled;
	pthread_mutex_t lock; /* all below */
	bool held;            /* function mask, or no bus mastering */
	struct pci_msix_entry table[PCI_MSIX_VECTORS_MAX];
	uint64_t pending[PCI_MSIX_VECTORS_MAX / 64];
};

/* Adds the capability and BAR `bar` (32-bit memory) to the function, for 1 to 256 vectors. 0 or -errno. */
int pci_msix_init(struct pci_msix *msix, struct pci_function *function, unsigned bar, unsigned count);
void pci_msix_destroy(struct pci_msix *msix);
/* pci.c's: after the function's registers changed; at reset. */
void pci_msix_update(struct pci_msix *msix);
void pci_msix_reset(struct pci_msix *msix);
/* Table and pending bits; pci_root_state() has the capability. */
void pci_msix_state(struct pci_msix *msix, struct state *state);

static inline bool pci_msix_enabled(struct pci_msix *msix)
{
	return atomic_load_explicit(&msix->enabled, memory_order_acquire);
}

/* The function's event `vector`; out of range: nothing happens. */
void pci_msix_raise(struct pci_msix *msix, unsigned vector);
