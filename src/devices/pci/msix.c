#include "devices/pci/msix.h"

#include <errno.h>
#include <string.h>

#include "devices/pci/pci.h"
#include "machine/state.h"

#define CAPABILITY_ID     0x11
#define CAPABILITY_LENGTH 12

#define CONTROL          2 /* offsets in the capability */
#define TABLE            4
#define PENDING          8
#define CONTROL_MASK_ALL 0x4000u
#define CONTROL_ENABLE   0x8000u

#define ENTRY_SIZE   16u
#define ENTRY_MASKED 1u

static bool is_pending(const struct pci_msix *msix, unsigned vector)
{
	return msix->pending[vector / 64] >> vector % 64 & 1;
}

/* Sends what is pending and may go. With the lock held. */
static void send(struct pci_msix *msix, unsigned vector)
{
	const struct pci_msix_entry *entry = &msix->table[vector];

	if (!is_pending(msix, vector) || !pci_msix_enabled(msix) || msix->held || entry->control & ENTRY_MASKED)
		return;
	msix->pending[vector / 64] &= ~(1ull << vector % 64);
	pci_root_message(msix->function->root, entry->address, entry->data);
}

void pci_msix_raise(struct pci_msix *msix, unsigned vector)
{
	if (vector >= msix->count)
		return;
	pthread_mutex_lock(&msix->lock);
	if (pci_msix_enabled(msix)) {
		msix->pending[vector / 64] |= 1ull << vector % 64;
		send(msix, vector);
	}
	pthread_mutex_unlock(&msix->lock);
}

void pci_msix_update(struct pci_msix *msix)
{
	uint16_t control = pci_get(msix->function, msix->capability + CONTROL, 2);
	bool master = pci_get(msix->function, PCI_COMMAND, 2) & PCI_COMMAND_MASTER;
	bool enable = control & CONTROL_ENABLE;

	pthread_mutex_lock(&msix->lock);
	msix->held = control & CONTROL_MASK_ALL || !master;
	atomic_store_explicit(&msix->enabled, enable, memory_order_release);
	if (!enable)
		memset(msix->pending, 0, sizeof msix->pending);
	for (unsigned vector = 0; vector < msix->count; vector++)
		send(msix, vector);
	pthread_mutex_unlock(&msix->lock);
}

static uint32_t entry_get(const struct pci_msix_entry *entry, unsigned dword)
{
	switch (dword) {
	case 0:
		return (uint32_t)entry->address;
	case 1:
		return entry->address >> 32;
	case 2:
		return entry->data;
	default:
		return entry->control;
	}
}

static void entry_set(struct pci_msix_entry *entry, unsigned dword, uint32_t value)
{
	switch (dword) {
	case 0:
		entry->address = (entry->address & ~0xffffffffull) | (value & ~3u);
		break;
	case 1:
		entry->address = (uint32_t)entry->address | (uint64_t)value << 32;
		break;
	case 2:
		entry->data = value;
		break;
	default:
		entry->control = value & ENTRY_MASKED;
	}
}

static uint32_t dword_read(const struct pci_msix *msix, uint64_t offset)
{
	if (offset < msix->count * ENTRY_SIZE)
		return entry_get(&msix->table[offset / ENTRY_SIZE], offset % ENTRY_SIZE / 4);
	if (offset >= msix->pba_offset && offset - msix->pba_offset < (msix->count + 63) / 64 * 8)
		return msix->pending[(offset - msix->pba_offset) / 8] >> (offset & 4) * 8;
	return 0;
}

/* Software reads and writes whole, aligned double or quad words (6.8.2); of others, reads give their part. */
static uint64_t bar_read(void *device, uint64_t offset, unsigned size)
{
	struct pci_msix *msix = device;
	uint64_t value;

	pthread_mutex_lock(&msix->lock);
	value = dword_read(msix, offset & ~3ull);
	if ((offset & 3) + size > 4)
		value |= (uint64_t)dword_read(msix, (offset & ~3ull) + 4) << 32;
	pthread_mutex_unlock(&msix->lock);
	return value >> (offset & 3) * 8;
}

static void bar_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_msix *msix = device;

	if (size < 4 || offset & 3)
		return;
	pthread_mutex_lock(&msix->lock);
	for (; size >= 4; size -= 4, offset += 4, value >>= 32) {
		unsigned vector = offset / ENTRY_SIZE;

		if (vector >= msix->count)
			break;
		entry_set(&msix->table[vector], offset % ENTRY_SIZE / 4, (uint32_t)value);
		send(msix, vector);
	}
	pthread_mutex_unlock(&msix->lock);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write, .max_size = 8};

int pci_msix_init(struct pci_msix *msix, struct pci_function *function, unsigned bar, unsigned count)
{
	unsigned size = 4096;
	int offset, error;

	memset(msix, 0, sizeof *msix);
	if (count == 0 || count > PCI_MSIX_VECTORS_MAX)
		return -EINVAL;
	/* The table in the lower half of the BAR, the pending bits in the upper. */
	while (size / 2 < count * ENTRY_SIZE)
		size *= 2;
	msix->pba_offset = size / 2;
	msix->function = function;
	msix->count = count;
	error = pci_add_bar(function, bar, PCI_BAR_MEMORY, false, size, &bar_ops, msix);
	if (error)
		return error;
	offset = pci_add_capability(function, CAPABILITY_ID, CAPABILITY_LENGTH);
	if (offset < 0)
		return offset;
	msix->capability = offset;
	pci_set(function, offset + CONTROL, 2, count - 1);
	pci_set_writable(function, offset + CONTROL, 2, CONTROL_MASK_ALL | CONTROL_ENABLE);
	pci_set(function, offset + TABLE, 4, bar);
	pci_set(function, offset + PENDING, 4, msix->pba_offset | bar);
	pthread_mutex_init(&msix->lock, NULL);
	function->msix = msix;
	pci_msix_reset(msix);
	return 0;
}

void pci_msix_destroy(struct pci_msix *msix)
{
	if (msix->function && msix->function->msix == msix) {
		msix->function->msix = NULL;
		pthread_mutex_destroy(&msix->lock);
	}
}

void pci_msix_reset(struct pci_msix *msix)
{
	pci_set(msix->function, msix->capability + CONTROL, 2, msix->count - 1);
	pthread_mutex_lock(&msix->lock);
	memset(msix->pending, 0, sizeof msix->pending);
	for (unsigned vector = 0; vector < msix->count; vector++)
		msix->table[vector] = (struct pci_msix_entry){.control = ENTRY_MASKED};
	pthread_mutex_unlock(&msix->lock);
	pci_msix_update(msix);
}

void pci_msix_state(struct pci_msix *msix, struct state *state)
{
	uint32_t words[4 * PCI_MSIX_VECTORS_MAX];

	pthread_mutex_lock(&msix->lock);
	for (unsigned i = 0; i < 4 * msix->count; i++)
		words[i] = entry_get(&msix->table[i / 4], i % 4);
	state_begin(state, "pci-msix", msix->function->devfn, 1);
	state_u32_array(state, "table", words, 4ul * msix->count);
	state_u64_array(state, "pending", msix->pending, (msix->count + 63) / 64);
	state_end(state);
	if (state_loading(state) && !state_error(state))
		for (unsigned i = 0; i < 4 * msix->count; i++)
			entry_set(&msix->table[i / 4], i % 4, words[i]);
	if (msix->count % 64)
		msix->pending[msix->count / 64] &= (1ull << msix->count % 64) - 1;
	pthread_mutex_unlock(&msix->lock);
}
