#include "machine/pc_virtio.h"

#include <errno.h>
#include <string.h>

#include "backends/disk/disk.h"
#include "backends/net/net.h"
#include "host/io_thread.h"
#include "host/log.h"
#include "machine/pc_addresses.h"

#define QUEUES_DEFAULT 1

static void lock_devices(void *owner)
{
	machine_lock(owner);
}

static void unlock_devices(void *owner)
{
	machine_unlock(owner);
}

static int plug(struct pc_virtio *virtio, struct pci_root *root, unsigned slot, struct virtio_pci *pci,
                struct virtio_device *device, bool transitional)
{
	int error = virtio_pci_init(pci, root, PCI_DEVFN(slot, 0), device, transitional);

	if (!error)
		virtio->all[virtio->count++] = pci;
	return error;
}

static int create_disk(struct pc_virtio *virtio, struct pci_root *root, const struct machine_disk *options)
{
	unsigned number = virtio->disk_count;
	struct pc_disk *place = &virtio->disk[number];
	struct virtio_block_options block = {
	    .serial = options->serial,
	    .readonly = options->image.readonly,
	    .queues = options->queues ? options->queues : QUEUES_DEFAULT,
	};
	int error;

	place->disk = disk_open(&options->image);
	if (!place->disk)
		return -ECANCELED;
	virtio->disk_count++;
	block.disk = place->disk;
	error = disk_attach(place->disk, virtio->host.loop);
	if (!error)
		error = virtio_block_init(&place->block, &virtio->host, PC_PCI_DISK_SLOT + number, &block);
	if (!error)
		error = plug(virtio, root, PC_PCI_DISK_SLOT + number, &place->pci, &place->block.device,
		             options->transitional);
	if (error)
		log_error("%s: %s", options->image.path, strerror(-error));
	return error;
}

/* The back end is attached to the loop while that stands. */
static int create_net(struct pc_virtio *virtio, struct pci_root *root, const struct net_options *options)
{
	unsigned number = virtio->net_count;
	struct pc_net *place = &virtio->net[number];
	struct net_options numbered = *options;
	int error;

	numbered.number = number;
	place->net = net_open(&numbered);
	if (!place->net)
		return -ECANCELED;
	virtio->net_count++;
	io_thread_pause(virtio->io);
	error = virtio_net_init(&place->card, &virtio->host, PC_PCI_NET_SLOT + number, place->net);
	io_thread_resume(virtio->io);
	if (!error)
		error = plug(virtio, root, PC_PCI_NET_SLOT + number, &place->pci, &place->card.device,
		             options->transitional);
	if (error)
		log_error("%s: %s", net_name(place->net), strerror(-error));
	return error;
}

static int create_console(struct pc_virtio *virtio, struct machine *machine, struct pci_root *root)
{
	const struct machine_options *options = &machine->options;
	int error = virtio_console_init(&virtio->console, &virtio->host, PC_PCI_CONSOLE_SLOT, options->port_count);

	if (error)
		return error;
	for (unsigned i = 0; i < options->port_count; i++)
		virtio_console_connect_chardev(&virtio->console, i, options->ports[i].name, options->ports[i].chardev);
	return plug(virtio, root, PC_PCI_CONSOLE_SLOT, &virtio->console_pci, &virtio->console.device, false);
}

int pc_virtio_create(struct pc_virtio *virtio, struct machine *machine, struct pci_root *root)
{
	int error;

	virtio->io = io_thread_create("ring3-io");
	if (!virtio->io)
		return -errno;
	virtio->host = (struct virtio_host){
	    .memory = &machine->memory,
	    .loop = io_thread_loop(virtio->io),
	    .trace = &machine->trace,
	    .lock = lock_devices,
	    .unlock = unlock_devices,
	    .lock_owner = machine,
	};
	error = virtio_rng_init(&virtio->rng, &virtio->host, PC_PCI_RNG_SLOT);
	if (!error)
		error = plug(virtio, root, PC_PCI_RNG_SLOT, &virtio->rng_pci, &virtio->rng.device, false);
	if (!error)
		error = virtio_balloon_init(&virtio->balloon, &virtio->host, PC_PCI_BALLOON_SLOT);
	if (!error)
		error = plug(virtio, root, PC_PCI_BALLOON_SLOT, &virtio->balloon_pci, &virtio->balloon.device, false);
	if (!error && machine->options.port_count)
		error = create_console(virtio, machine, root);
	for (unsigned i = 0; i < machine->options.disk_count && i < MACHINE_DISKS_MAX && !error; i++)
		error = create_disk(virtio, root, &machine->options.disks[i]);
	for (unsigned i = 0; i < machine->options.net_count && i < MACHINE_NETS_MAX && !error; i++)
		error = create_net(virtio, root, machine->options.nets[i]);
	return error;
}

void pc_virtio_destroy(struct pc_virtio *virtio)
{
	if (!virtio->io)
		return;
	pc_virtio_pause(virtio);
	io_thread_pause(virtio->io);
	for (unsigned i = 0; i < virtio->count; i++)
		virtio_pci_destroy(virtio->all[i]);
	for (unsigned i = 0; i < virtio->disk_count; i++) {
		virtio_block_destroy(&virtio->disk[i].block);
		disk_close(virtio->disk[i].disk); /* says itself what went wrong */
	}
	for (unsigned i = 0; i < virtio->net_count; i++) {
		virtio_net_destroy(&virtio->net[i].card);
		net_close(virtio->net[i].net);
	}
	virtio_console_destroy(&virtio->console);
	virtio_balloon_destroy(&virtio->balloon);
	virtio_rng_destroy(&virtio->rng);
	io_thread_resume(virtio->io);
	io_thread_destroy(virtio->io);
	virtio->io = NULL;
}

void pc_virtio_reset(struct pc_virtio *virtio)
{
	for (unsigned i = 0; i < virtio->count; i++)
		virtio_pci_reset(virtio->all[i]);
}

void pc_virtio_state(struct pc_virtio *virtio, struct state *state)
{
	for (unsigned i = 0; i < virtio->count; i++)
		virtio_pci_state(virtio->all[i], state);
}

void pc_virtio_pause(struct pc_virtio *virtio)
{
	for (unsigned i = 0; i < virtio->count; i++)
		virtio_device_pause(virtio->all[i]->device);
}

void pc_virtio_resume(struct pc_virtio *virtio)
{
	for (unsigned i = 0; i < virtio->count; i++)
		virtio_device_resume(virtio->all[i]->device);
}
