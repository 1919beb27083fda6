#include "devices/pci/pci.h"

#include <errno.h>
#include <string.h>

#include "debug/trace.h"
#include "devices/pci/msi.h"
#include "devices/pci/msix.h"
#include "machine/state.h"

#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_MASK   0x80fffffcu

#define BAR_IO       1u
#define BAR_64       4u
#define BAR_PREFETCH 8u

uint32_t pci_get(const struct pci_function *function, unsigned offset, unsigned size)
{
	uint32_t value = 0;

	for (unsigned i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++)
		value |= (uint32_t)function->config[offset + i] << 8 * i;
	return value;
}

void pci_set(struct pci_function *function, unsigned offset, unsigned size, uint32_t value)
{
	for (unsigned i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++)
		function->config[offset + i] = value >> 8 * i;
}

void pci_set_writable(struct pci_function *function, unsigned offset, unsigned size, uint32_t mask)
{
	for (unsigned i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++)
		function->writable[offset + i] = mask >> 8 * i;
}

/* The pin shows the request unless the command register forbids it or messages replace it; PIRQs are shared lines. */
void pci_update_intx(struct pci_function *function)
{
	struct pci_root *root = function->root;
	uint8_t pin = function->config[PCI_INTERRUPT_PIN];
	bool messages =
	    (function->msi && pci_msi_enabled(function->msi)) || (function->msix && pci_msix_enabled(function->msix));
	bool driven =
	    function->intx && pin && !messages && !(pci_get(function, PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE);
	unsigned line;

	pci_set(function, PCI_STATUS, 2,
	        (pci_get(function, PCI_STATUS, 2) & ~PCI_STATUS_INTX) | (function->intx ? PCI_STATUS_INTX : 0));
	if (!root || driven == function->intx_driven)
		return;
	function->intx_driven = driven;
	line = ((function->devfn >> 3) + (pin - 1) - 1) & 3;
	root->pirq_count[line] += driven ? 1 : -1;
	if (root->pirq_count[line] == driven) /* the first one up, the last one down */
		irq_line_set(&(struct irq_line){root->pirq.set, root->pirq.owner, line}, driven);
}

void pci_set_intx(struct pci_function *function, bool level)
{
	function->intx = level;
	pci_update_intx(function);
}

/* Where the guest wants a BAR now; false: nowhere. */
static bool bar_wanted(const struct pci_function *function, unsigned index, uint64_t *base)
{
	const struct pci_bar *bar = &function->bar[index];
	uint16_t command = pci_get(function, PCI_COMMAND, 2);
	uint32_t low = pci_get(function, PCI_BAR0 + 4 * index, 4);

	switch (bar->kind) {
	case PCI_BAR_IO:
		*base = low & ~3u;
		return command & PCI_COMMAND_IO && *base && *base + bar->size <= 0x10000;
	case PCI_BAR_MEMORY:
		*base = low & ~15u;
		return command & PCI_COMMAND_MEMORY && *base && *base + bar->size <= 0x100000000;
	case PCI_BAR_MEMORY64:
		*base = (low & ~15u) | (uint64_t)pci_get(function, PCI_BAR0 + 4 * index + 4, 4) << 32;
		return command & PCI_COMMAND_MEMORY && *base && *base + (bar->size - 1) > *base;
	default:
		return false;
	}
}

static void bar_unmap(struct pci_function *function, struct pci_bar *bar)
{
	if (!bar->mapped)
		return;
	bar->mapped = false;
	if (bar->kind == PCI_BAR_IO)
		bus_remove_ports(function->root->bus, bar->base);
	else
		bus_remove_mmio(function->root->bus, bar->base);
}

/* A BAR on top of another device's range stays unmapped, until a later write finds the place free. */
static void bar_map(struct pci_function *function, struct pci_bar *bar, uint64_t base)
{
	struct bus *bus = function->root->bus;
	int error;

	if (bar->kind == PCI_BAR_IO)
		error = bus_add_ports(bus, base, bar->size, function->name, bar->ops, bar->device);
	else
		error = bus_add_mmio(bus, base, bar->size, function->name, bar->ops, bar->device);
	bar->mapped = error == 0;
	bar->base = base;
	if (error)
		trace(bus->trace, TRACE_UNKNOWN, -1, "%s: BAR at %llx overlaps another device", function->name,
		      (unsigned long long)base);
}

static void update_bars(struct pci_function *function)
{
	uint64_t base;

	if (!function->root)
		return;
	for (unsigned i = 0; i < PCI_BAR_COUNT; i++) {
		struct pci_bar *bar = &function->bar[i];
		bool wanted = bar_wanted(function, i, &base);

		if (bar->mapped && (!wanted || bar->base != base))
			bar_unmap(function, bar);
		if (wanted && !bar->mapped)
			bar_map(function, bar, base);
	}
}

void pci_function_init(struct pci_function *function, const char *name, uint16_t vendor, uint16_t device,
                       uint8_t revision, uint32_t class_code)
{
	memset(function, 0, sizeof *function);
	function->name = name;
	function->capability_end = 0x40;
	pci_set(function, PCI_VENDOR_ID, 2, vendor);
	pci_set(function, PCI_DEVICE_ID, 2, device);
	pci_set(function, PCI_REVISION, 1, revision);
	pci_set(function, PCI_CLASS, 3, class_code);
	pci_set_writable(function, PCI_COMMAND, 2,
	                 PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
	                     PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
	function->clear[PCI_STATUS + 1] = 0xf9; /* the error bits */
	pci_set_writable(function, PCI_INTERRUPT_LINE, 1, 0xff);
}

int pci_add_function(struct pci_root *root, struct pci_function *function, unsigned devfn)
{
	if (devfn >= PCI_FUNCTIONS || root->function[devfn])
		return -EEXIST;
	root->function[devfn] = function;
	function->root = root;
	function->devfn = devfn;
	return 0;
}

void pci_set_interrupt_pin(struct pci_function *function, unsigned pin)
{
	function->config[PCI_INTERRUPT_PIN] = pin & 7;
}

int pci_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind, bool prefetchable, uint64_t size,
                const struct bus_ops *ops, void *device)
{
	unsigned slots = kind == PCI_BAR_MEMORY64 ? 2 : 1;
	uint64_t least = kind == PCI_BAR_IO ? 4 : 16, most = kind == PCI_BAR_IO       ? 256
	                                                     : kind == PCI_BAR_MEMORY ? 1u << 31
	                                                                              : 1ull << 62;
	uint32_t flags = kind == PCI_BAR_IO ? BAR_IO : (prefetchable ? BAR_PREFETCH : 0) | (slots == 2 ? BAR_64 : 0);

	if (index + slots > PCI_BAR_COUNT || size < least || size > most || size & (size - 1) || kind == PCI_BAR_NONE ||
	    kind == PCI_BAR_MEMORY64_HIGH)
		return -EINVAL;
	for (unsigned i = 0; i < slots; i++)
		if (function->bar[index + i].kind != PCI_BAR_NONE)
			return -EINVAL;
	function->bar[index] = (struct pci_bar){.kind = kind, .size = size, .ops = ops, .device = device};
	pci_set(function, PCI_BAR0 + 4 * index, 4, flags);
	/* Sizing: all ones are written and the bits below the size stay 0 (PCI 3.0 6.2.5.1). */
	pci_set_writable(function, PCI_BAR0 + 4 * index, 4, -(uint32_t)(size > UINT32_MAX ? 0 : size));
	if (slots == 2) {
		function->bar[index + 1].kind = PCI_BAR_MEMORY64_HIGH;
		pci_set_writable(function, PCI_BAR0 + 4 * index + 4, 4, -size >> 32);
	}
	return 0;
}

int pci_add_capability(struct pci_function *function, uint8_t id, unsigned length)
{
	unsigned offset = function->capability_end;

	if (length < 2 || length > PCI_CONFIG_SIZE || offset == 0 || offset + length > PCI_CONFIG_SIZE)
		return -ENOSPC;
	function->config[offset] = id;
	function->config[offset + 1] = function->config[PCI_CAPABILITIES];
	function->config[PCI_CAPABILITIES] = offset;
	function->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
	function->capability_end = (offset + length + 3) & ~3u; /* 0 when full */
	return offset;
}

uint32_t pci_config_read(struct pci_root *root, unsigned devfn, unsigned offset, unsigned size)
{
	struct pci_function *function = devfn < PCI_FUNCTIONS ? root->function[devfn] : NULL;

	if (!function)
		return UINT32_MAX >> (32 - 8 * size);
	if (function->msi)
		pci_msi_show(function->msi);
	if (function->config_reading)
		function->config_reading(function, offset, size);
	return pci_get(function, offset, size);
}

/* The BARs, the pin and the messages follow what the registers say now. */
static void follow_registers(struct pci_function *function)
{
	update_bars(function);
	if (function->msi)
		pci_msi_update(function->msi);
	if (function->msix)
		pci_msix_update(function->msix);
	pci_update_intx(function);
}

void pci_config_write(struct pci_root *root, unsigned devfn, unsigned offset, unsigned size, uint32_t value)
{
	struct pci_function *function = devfn < PCI_FUNCTIONS ? root->function[devfn] : NULL;

	if (!function)
		return;
	for (unsigned i = 0; i < size && offset + i < PCI_CONFIG_SIZE; i++) {
		uint8_t byte = value >> 8 * i, *reg = &function->config[offset + i];
		uint8_t writable = function->writable[offset + i], clear = function->clear[offset + i];

		*reg = ((*reg & ~writable) | (byte & writable)) & ~(byte & clear);
	}
	follow_registers(function);
	if (function->config_written)
		function->config_written(function, offset, size);
}

/* The address register is reached by aligned 32-bit accesses only (PCI 3.0 3.2.2.3.2); CF9h is another chip's. */
static uint64_t address_read(void *device, uint64_t offset, unsigned size)
{
	struct pci_root *root = device;

	if (offset == 0 && size == 4)
		return root->address;
	if (offset == 1 && size == 1 && root->cf9_ops)
		return root->cf9_ops->read(root->cf9_device, 0, 1);
	return ~0ull;
}

static void address_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_root *root = device;

	if (offset == 0 && size == 4)
		root->address = value & ADDRESS_MASK;
	else if (offset == 1 && size == 1 && root->cf9_ops)
		root->cf9_ops->write(root->cf9_device, 0, 1, value);
}

/* Is the data port open, and onto which function? Only bus 0 is there. */
static bool data_target(const struct pci_root *root, unsigned *devfn)
{
	*devfn = root->address >> 8 & 0xff;
	return root->address & ADDRESS_ENABLE && (root->address >> 16 & 0xff) == 0;
}

static uint64_t data_read(void *device, uint64_t offset, unsigned size)
{
	struct pci_root *root = device;
	unsigned devfn;

	if (!data_target(root, &devfn))
		return ~0ull;
	return pci_config_read(root, devfn, (root->address & 0xfc) + offset, size);
}

static void data_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_root *root = device;
	unsigned devfn;

	if (data_target(root, &devfn))
		pci_config_write(root, devfn, (root->address & 0xfc) + offset, size, value);
}

static const struct bus_ops address_ops = {.read = address_read, .write = address_write, .max_size = 4};
static const struct bus_ops data_ops = {.read = data_read, .write = data_write, .max_size = 4};

int pci_root_init(struct pci_root *root, struct bus *bus, const struct bus_ops *cf9_ops, void *cf9_device)
{
	int error;

	memset(root, 0, sizeof *root);
	root->bus = bus;
	root->cf9_ops = cf9_ops;
	root->cf9_device = cf9_device;
	error = bus_add_ports(bus, 0xcf8, 4, "pci address", &address_ops, root);
	return error ? error : bus_add_ports(bus, 0xcfc, 4, "pci data", &data_ops, root);
}

void pci_root_set_pirq(struct pci_root *root, struct irq_line pirq)
{
	root->pirq = pirq;
}

/* ECAM: bits 19:12 of the offset are the function, 11:0 the register. Conventional functions have 256 of them. */
static uint64_t ecam_read(void *device, uint64_t offset, unsigned size)
{
	unsigned reg = offset & 0xfff;

	return reg < PCI_CONFIG_SIZE ? pci_config_read(device, offset >> 12, reg, size) : ~0ull;
}

static void ecam_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	unsigned reg = offset & 0xfff;

	if (reg < PCI_CONFIG_SIZE)
		pci_config_write(device, offset >> 12, reg, size, value);
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write, .max_size = 4};

int pci_root_add_ecam(struct pci_root *root, uint64_t base)
{
	return bus_add_mmio(root->bus, base, (uint64_t)PCI_FUNCTIONS << 12, "pci ecam", &ecam_ops, root);
}

void pci_root_set_message(struct pci_root *root, void (*message)(void *owner, uint64_t address, uint32_t data),
                          void *owner)
{
	root->message = message;
	root->message_owner = owner;
}

/*
 * The guest chooses the address. A function writes interrupt messages only to the local APICs: a message into RAM or
 * into a device's registers has no use but mischief.
 */
void pci_root_message(struct pci_root *root, uint64_t address, uint32_t data)
{
	if (root && root->message && address >> 20 == 0xfee)
		root->message(root->message_owner, address, data);
}

/* Takes `size` bytes at their natural alignment out of a window. False: no room. */
static bool window_take(uint64_t *next, uint64_t end, uint64_t size, uint64_t *base)
{
	*base = (*next + (size - 1)) & ~(size - 1);
	if (*base < *next || *base > end || size > end - *base)
		return false;
	*next = *base + size;
	return true;
}

/* 64-bit BARs go below 4 GiB as long as there is room: every guest can reach them there. */
static void assign_bar(struct pci_function *function, unsigned index, struct pci_windows *left)
{
	const struct pci_bar *bar = &function->bar[index];
	uint64_t base, io = left->io;
	uint16_t command = pci_get(function, PCI_COMMAND, 2);

	if (bar->kind == PCI_BAR_IO) {
		if (!window_take(&io, left->io_end, bar->size, &base))
			return;
		left->io = io;
		command |= PCI_COMMAND_IO;
	} else {
		if (!window_take(&left->memory, left->memory_end, bar->size, &base) &&
		    (bar->kind != PCI_BAR_MEMORY64 ||
		     !window_take(&left->memory64, left->memory64_end, bar->size, &base)))
			return;
		command |= PCI_COMMAND_MEMORY;
	}
	pci_set(function, PCI_BAR0 + 4 * index, 4,
	        (uint32_t)base | (pci_get(function, PCI_BAR0 + 4 * index, 4) & (bar->kind == PCI_BAR_IO ? 3 : 15)));
	if (bar->kind == PCI_BAR_MEMORY64)
		pci_set(function, PCI_BAR0 + 4 * index + 4, 4, base >> 32);
	pci_set(function, PCI_COMMAND, 2, command);
}

void pci_root_assign(struct pci_root *root, const struct pci_windows *windows)
{
	struct pci_windows left = *windows;

	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++) {
		struct pci_function *function = root->function[devfn];

		if (!function)
			continue;
		for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
			if (function->bar[i].kind != PCI_BAR_NONE && function->bar[i].kind != PCI_BAR_MEMORY64_HIGH)
				assign_bar(function, i, &left);
		uint8_t pin = function->config[PCI_INTERRUPT_PIN];
		if (pin && function->writable[PCI_INTERRUPT_LINE] && !function->config[PCI_INTERRUPT_LINE])
			function->config[PCI_INTERRUPT_LINE] = left.pirq[((devfn >> 3) + (pin - 1u) - 1) & 3];
		follow_registers(function);
	}
}

void pci_root_reset(struct pci_root *root)
{
	root->address = 0;
	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++) {
		struct pci_function *function = root->function[devfn];

		if (!function)
			continue;
		for (unsigned i = PCI_COMMAND; i < PCI_BAR0 + 4 * PCI_BAR_COUNT; i++)
			function->config[i] &= ~(function->writable[i] | function->clear[i]);
		function->config[PCI_INTERRUPT_LINE] = 0;
		if (function->msi)
			pci_msi_reset(function->msi);
		if (function->msix)
			pci_msix_reset(function->msix);
		follow_registers(function);
	}
}

/* Only what the guest may write is taken from the stream; the rest is the function's own. */
static void config_state(struct pci_function *function, struct state *state)
{
	uint8_t config[PCI_CONFIG_SIZE];

	memcpy(config, function->config, sizeof config);
	state_begin(state, "pci-function", function->devfn, 1);
	state_u8_array(state, "config", config, sizeof config);
	if (memcmp(config, function->config, 4) != 0)
		state_fail(state, "another device was in this slot");
	state_end(state);
	if (!state_loading(state) || state_error(state))
		return;
	for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++) {
		uint8_t mask = function->writable[i] | function->clear[i];

		function->config[i] = (function->config[i] & ~mask) | (config[i] & mask);
	}
}

/* The loaded registers take effect: first all BARs off, then on, as two functions may have changed places. */
static void apply_loaded(struct pci_root *root)
{
	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++)
		for (unsigned i = 0; root->function[devfn] && i < PCI_BAR_COUNT; i++)
			bar_unmap(root->function[devfn], &root->function[devfn]->bar[i]);
	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++) {
		struct pci_function *function = root->function[devfn];

		if (!function)
			continue;
		follow_registers(function);
		if (function->config_written)
			function->config_written(function, 0, PCI_CONFIG_SIZE);
	}
}

void pci_root_state(struct pci_root *root, struct state *state)
{
	state_begin(state, "pci-root", 0, 1);
	state_u32(state, "address", &root->address);
	root->address &= ADDRESS_MASK;
	state_end(state);
	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++)
		if (root->function[devfn])
			config_state(root->function[devfn], state);
	if (state_loading(state))
		apply_loaded(root);
	for (unsigned devfn = 0; devfn < PCI_FUNCTIONS; devfn++)
		if (root->function[devfn] && root->function[devfn]->state)
			root->function[devfn]->state(root->function[devfn], state);
}
