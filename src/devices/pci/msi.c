#include "devices/pci/msi.h"

#include <errno.h>
#include <string.h>

#include "devices/pci/pci.h"
#include "machine/state.h"

#define CAPABILITY_ID     0x05
#define CAPABILITY_LENGTH 24

#define CONTROL 2 /* offsets in the capability */
#define ADDRESS 4
#define DATA    12
#define MASK    16
#define PENDING 20

#define CONTROL_ENABLE  0x0001u
#define CONTROL_GRANTED 0x0070u /* log2, at bit 4 */
#define CONTROL_64      0x0080u
#define CONTROL_MASKING 0x0100u

/* Sends what is pending and may go. With the lock held. */
static void send(struct pci_msi *msi)
{
	uint32_t ready = msi->pending & ~msi->mask;

	if (!pci_msi_enabled(msi) || msi->held)
		return;
	msi->pending &= ~ready;
	for (unsigned vector = 0; vector < 32; vector++)
		if (ready >> vector & 1)
			pci_root_message(msi->function->root, msi->address, (msi->data & ~(msi->granted - 1)) | vector);
}

void pci_msi_raise(struct pci_msi *msi, unsigned vector)
{
	pthread_mutex_lock(&msi->lock);
	if (pci_msi_enabled(msi)) {
		msi->pending |= 1u << (vector & (msi->granted - 1));
		send(msi);
	}
	pthread_mutex_unlock(&msi->lock);
}

void pci_msi_update(struct pci_msi *msi)
{
	const struct pci_function *function = msi->function;
	unsigned at = msi->capability;
	uint16_t control = pci_get(function, at + CONTROL, 2);
	unsigned granted = 1u << ((control & CONTROL_GRANTED) >> 4);

	pthread_mutex_lock(&msi->lock);
	msi->granted = granted > msi->count ? msi->count : granted;
	msi->address = pci_get(function, at + ADDRESS, 4) | (uint64_t)pci_get(function, at + ADDRESS + 4, 4) << 32;
	msi->data = pci_get(function, at + DATA, 2);
	msi->mask = pci_get(function, at + MASK, 4);
	msi->held = !(pci_get(function, PCI_COMMAND, 2) & PCI_COMMAND_MASTER);
	atomic_store_explicit(&msi->enabled, control & CONTROL_ENABLE, memory_order_release);
	if (!(control & CONTROL_ENABLE))
		msi->pending = 0;
	send(msi);
	pthread_mutex_unlock(&msi->lock);
}

void pci_msi_show(struct pci_msi *msi)
{
	pthread_mutex_lock(&msi->lock);
	pci_set(msi->function, msi->capability + PENDING, 4, msi->pending);
	pthread_mutex_unlock(&msi->lock);
}

int pci_msi_init(struct pci_msi *msi, struct pci_function *function, unsigned count)
{
	int offset;

	memset(msi, 0, sizeof *msi);
	if (count == 0 || count > 32 || count & (count - 1))
		return -EINVAL;
	offset = pci_add_capability(function, CAPABILITY_ID, CAPABILITY_LENGTH);
	if (offset < 0)
		return offset;
	msi->function = function;
	msi->capability = offset;
	msi->count = count;
	pci_set(function, offset + CONTROL, 2, CONTROL_64 | CONTROL_MASKING | (unsigned)__builtin_ctz(count) << 1);
	pci_set_writable(function, offset + CONTROL, 2, CONTROL_ENABLE | CONTROL_GRANTED);
	pci_set_writable(function, offset + ADDRESS, 4, 0xfffffffc);
	pci_set_writable(function, offset + ADDRESS + 4, 4, 0xffffffff);
	pci_set_writable(function, offset + DATA, 2, 0xffff);
	pci_set_writable(function, offset + MASK, 4, count == 32 ? 0xffffffff : (1u << count) - 1);
	pthread_mutex_init(&msi->lock, NULL);
	function->msi = msi;
	pci_msi_update(msi);
	return 0;
}

void pci_msi_destroy(struct pci_msi *msi)
{
	if (msi->function && msi->function->msi == msi) {
		msi->function->msi = NULL;
		pthread_mutex_destroy(&msi->lock);
	}
}

void pci_msi_reset(struct pci_msi *msi)
{
	unsigned at = msi->capability;

	pci_set(msi->function, at + CONTROL, 2,
	        pci_get(msi->function, at + CONTROL, 2) & ~(CONTROL_ENABLE | CONTROL_GRANTED));
	for (unsigned i = ADDRESS; i < CAPABILITY_LENGTH; i++)
		msi->function->config[at + i] = 0;
	pci_msi_update(msi);
}

void pci_msi_state(struct pci_msi *msi, struct state *state)
{
	pthread_mutex_lock(&msi->lock);
	state_begin(state, "pci-msi", msi->function->devfn, 1);
	state_u32(state, "pending", &msi->pending);
	state_end(state);
	if (msi->count < 32)
		msi->pending &= (1u << msi->count) - 1;
	pthread_mutex_unlock(&msi->lock);
}
