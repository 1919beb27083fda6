/*
 * PCI: the root (bus 0 behind configuration mechanism #1) and the type 0 configuration space that every function has
 * (PCI 3.0 chapter 6).
 *
 * A function embeds struct pci_function, fills `config` and the masks in its init, and hears of writes through
 * `config_written`. BARs, the command register and INTx are handled here: a BAR's registers appear on the bus where the
 * guest puts them. Capabilities (MSI, virtio ...) take room by pci_add_capability(). Guests reach configuration spaces
 * by CF8h/CFCh and by ECAM (PCI Express 7.2.2), which both end in pci_config_read() and pci_config_write(). All with
 * the device lock held; only message signalled interrupts may be raised by any thread (msi.h, msix.h).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

#define PCI_CONFIG_SIZE           256
#define PCI_BAR_COUNT             6
#define PCI_FUNCTIONS             256 /* of bus 0: devfn */
#define PCI_DEVFN(slot, function) ((slot) << 3 | (function))

/* Offsets. */
#define PCI_VENDOR_ID      0x00
#define PCI_DEVICE_ID      0x02
#define PCI_COMMAND        0x04
#define PCI_STATUS         0x06
#define PCI_REVISION       0x08
#define PCI_CLASS          0x09 /* three bytes: interface, subclass, class */
#define PCI_HEADER_TYPE    0x0e
#define PCI_BAR0           0x10
#define PCI_SUBSYSTEM      0x2c /* vendor, device */
#define PCI_CAPABILITIES   0x34
#define PCI_INTERRUPT_LINE 0x3c
#define PCI_INTERRUPT_PIN  0x3d

#define PCI_COMMAND_IO           0x0001u
#define PCI_COMMAND_MEMORY       0x0002u
#define PCI_COMMAND_MASTER       0x0004u
#define PCI_COMMAND_PARITY       0x0040u
#define PCI_COMMAND_SERR         0x0100u
#define PCI_COMMAND_INTX_DISABLE 0x0400u
#define PCI_STATUS_INTX          0x0008u
#define PCI_STATUS_CAPABILITIES  0x0010u

struct memory;
struct state;
struct pci_function;
struct pci_msi;
struct pci_msix;

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEMORY, PCI_BAR_MEMORY64, PCI_BAR_MEMORY64_HIGH };

struct pci_bar {
	enum pci_bar_kind kind;
	uint64_t size; /* a power of two */
	const struct bus_ops *ops;
	void *device;
	bool mapped;
	uint64_t base; /* where, while mapped */
};

struct pci_root {
	struct pci_function *function[PCI_FUNCTIONS];
	uint32_t address; /* the register at CF8h */
	struct bus *bus;
	const struct bus_ops *cf9_ops; /* byte accesses to CF9h */
	void *cf9_device;
	struct irq_line pirq;   /* pin 0-3: PIRQ A-D */
	unsigned pirq_count[4]; /* INTx lines that pull each */
	/* Takes message signalled interrupts, on any thread. */
	void (*message)(void *owner, uint64_t address, uint32_t data);
	void *message_owner;
};

struct pci_function {
	const char *name; /* also that of the saved state */
	uint8_t config[PCI_CONFIG_SIZE];
	uint8_t writable[PCI_CONFIG_SIZE]; /* bits that the guest may write */
	uint8_t clear[PCI_CONFIG_SIZE];    /* bits that a written 1 clears */
	struct pci_bar bar[PCI_BAR_COUNT];
	/* After a write; registers already changed. May be NULL. */
	void (*config_written)(struct pci_function *function, unsigned offset, unsigned size);
	/* Registers beside the configuration space: sections of their own, after that was saved or loaded. May be NULL.
	 */
	void (*state)(struct pci_function *function, struct state *state);
	/* Before a read: the function may bring registers up to date. May be NULL. */
	void (*config_reading)(struct pci_function *function, unsigned offset, unsigned size);
	struct pci_msi *msi;   /* NULL: has none */
	struct pci_msix *msix; /* NULL: has none */
	struct pci_root *root;
	uint8_t devfn;
	uint8_t capability_end; /* first free byte of the capability area */
	bool intx;              /* the function asks for an interrupt */
	bool intx_driven;       /* and its pin shows it */
};

/*
 * Claims CF8h-CFFh. `cf9_ops` (may be NULL) gets byte accesses to CF9h, which is no part of the address register. 0 or
 * -errno.
 */
int pci_root_init(struct pci_root *root, struct bus *bus, const struct bus_ops *cf9_ops, void *cf9_device);
/* Who takes PIRQ A-D (the ISA bridge). Pin INTA + p of slot s pulls PIRQ (s + p - 1) & 3, as the ACPI tables say. */
void pci_root_set_pirq(struct pci_root *root, struct irq_line pirq);
/* Claims the bus's configuration spaces, 4 KiB each, at `base` (ECAM). 0 or -errno. */
int pci_root_add_ecam(struct pci_root *root, uint64_t base);
/* Who takes message signalled interrupts: lapic_msi() in a machine. Before the machine runs. */
void pci_root_set_message(struct pci_root *root, void (*message)(void *owner, uint64_t address, uint32_t data),
                          void *owner);
/* Sends one; any thread. What does not go to the local APICs (FEExxxxxh) is dropped. */
void pci_root_message(struct pci_root *root, uint64_t address, uint32_t data);

/* Where firmware may put BARs: ports, memory below 4 GiB, memory above. */
struct pci_windows {
	uint32_t io, io_end;
	uint64_t memory, memory_end;
	uint64_t memory64, memory64_end;
	uint8_t pirq[4]; /* what the interrupt line registers shall say for PIRQ A-D */
};

/*
 * After a reset, what firmware does, for kernels that are loaded without one: gives every BAR a place, opens the
 * ranges, fills in the interrupt line registers. A BAR without room stays closed.
 */
void pci_root_assign(struct pci_root *root, const struct pci_windows *windows);
/* The address register, and every function's command register and BARs; the functions' owners reset the rest. */
void pci_root_reset(struct pci_root *root);
/* The root, all functions' configuration spaces and what their `state` adds; the same functions must be there. */
void pci_root_state(struct pci_root *root, struct state *state);

/* Little-endian fields of a configuration space. */
uint32_t pci_get(const struct pci_function *function, unsigned offset, unsigned size);
void pci_set(struct pci_function *function, unsigned offset, unsigned size, uint32_t value);
void pci_set_writable(struct pci_function *function, unsigned offset, unsigned size, uint32_t mask);

/* Clears *function and fills the header: IDs, class (24 bits: class, subclass, interface), the usual command bits. */
void pci_function_init(struct pci_function *function, const char *name, uint16_t vendor, uint16_t device,
                       uint8_t revision, uint32_t class_code);
/* Plugs it in. 0, or -EEXIST. */
int pci_add_function(struct pci_root *root, struct pci_function *function, unsigned devfn);
/* INTx pin 1-4 (INTA-INTD). */
void pci_set_interrupt_pin(struct pci_function *function, unsigned pin);
/* The function's interrupt request; the pin follows unless the guest has disabled it or turned MSI or MSI-X on. */
void pci_set_intx(struct pci_function *function, bool level);
/* Declares a BAR; 64-bit ones take index and index + 1. `size` is a power of two, at least 4 (I/O) or 16. 0 or -EINVAL.
 */
int pci_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind, bool prefetchable, uint64_t size,
                const struct bus_ops *ops, void *device);
/* After MSI or MSI-X was turned on or off: looks at the pin again. */
void pci_update_intx(struct pci_function *function);
/* Room for a capability of `length` bytes (header included), linked first in the list. Its offset, or -ENOSPC. */
int pci_add_capability(struct pci_function *function, uint8_t id, unsigned length);

/* Configuration accesses of the guest: 1, 2 or 4 bytes within the 256. Nobody there: all ones. */
uint32_t pci_config_read(struct pci_root *root, unsigned devfn, unsigned offset, unsigned size);
void pci_config_write(struct pci_root *root, unsigned devfn, unsigned offset, unsigned size, uint32_t value);
