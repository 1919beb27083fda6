/*
 * MSI (PCI 3.0 6.8.1): one message for a function, whose low data bits are the vector; with a 64-bit address and a mask
 * bit for each vector. Masked vectors, and those raised while the function may not master the bus, are pending as in
 * MSI-X.
 *
 * Threads as in msix.h: pci_msi_raise() and pci_msi_enabled() on any thread, all else with the device lock held.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct pci_function;
struct state;

struct pci_msi {
	struct pci_function *function;
	unsigned capability; /* offset in the configuration space */
	unsigned count;      /* vectors offered: a power of two */
	_Atomic bool enabled;
	pthread_mutex_t lock; /* all below */
	bool held;            /* no bus mastering */
	unsigned granted;     /* vectors that the guest has allowed */
	uint64_t address;
	uint32_t data, mask, pending;
};

/* Adds the capability for 1, 2, 4 ... 32 vectors. 0 or -errno. */
int pci_msi_init(struct pci_msi *msi, struct pci_function *function, unsigned count);
void pci_msi_destroy(struct pci_msi *msi);
/* pci.c's: after the registers changed; before they are read; at reset. */
void pci_msi_update(struct pci_msi *msi);
void pci_msi_show(struct pci_msi *msi);
void pci_msi_reset(struct pci_msi *msi);
/* The pending bits; pci_root_state() has the registers. */
void pci_msi_state(struct pci_msi *msi, struct state *state);

static inline bool pci_msi_enabled(struct pci_msi *msi)
{
	return atomic_load_explicit(&msi->enabled, memory_order_acquire);
}

/* The function's event `vector`. Where the guest allowed fewer vectors, they share them (low bits count). */
void pci_msi_raise(struct pci_msi *msi, unsigned vector);
