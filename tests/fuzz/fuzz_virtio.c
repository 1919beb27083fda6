/*
 * All virtio devices behind PCI, without a CPU: any sequence of register accesses, rings of any content, notifications, resets, host
 * input, saving and loading is harmless. The I/O thread's loop runs on this thread, a turn at a time.
 *
 * Input: operations, each a byte that chooses and the bytes it takes; what is missing at the end is 0. Half of the operations behave
 * like a driver, so that the rest reaches live rings.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/disk/disk.h"
#include "devices/bus.h"
#include "devices/pci/pci.h"
#include "devices/virtio/virtio_balloon.h"
#include "devices/virtio/virtio_block.h"
#include "devices/virtio/virtio_console.h"
#include "devices/virtio/virtio_net.h"
#include "devices/virtio/virtio_pci.h"
#include "devices/virtio/virtio_rng.h"
#include "host/event_loop.h"
#include "machine/state.h"
#include "memory/memory.h"

#include "backends/net/net.h"

#define RAM_SIZE   (4u << 20)
#define DATA       0x200000u
#define OPERATIONS 600
#define DEVICES    5
#define RING_SIZE  16
#define DISK_SIZE  (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t size, at;
};

struct board {
	struct memory memory;
	struct bus bus;
	struct pci_root root;
	struct event_loop *loop;
	int stop_fd;
	struct virtio_host host;
	struct virtio_rng rng;
	struct virtio_balloon balloon;
	struct virtio_console console;
	struct virtio_block block;
	struct virtio_net card;
	struct virtio_pci pci[DEVICES];
	struct virtio_device *device[DEVICES];
	struct disk *disk;
	struct net *ends[2];
	uint16_t available[DEVICES][VIRTIO_QUEUES_MAX]; /* the driver's position */
	bool wrap[DEVICES][VIRTIO_QUEUES_MAX];
	unsigned room; /* of the console's peer */
};

static uint64_t take(struct input *input, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)(input->at < input->size ? input->data[input->at++] : 0) << 8 * i;
	return value;
}

static void check(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_virtio: %s\n", what);
	abort();
}

static void no_lock(void *owner) {}

static void message(void *owner, uint64_t address, uint32_t data)
{
	check(address >> 20 == 0xfee, "a message that does not go to the local APICs");
}

static size_t peer_write(void *owner, const uint8_t *data, size_t length)
{
	struct board *board = owner;
	size_t taken = length < board->room ? length : board->room;

	board->room -= taken;
	return taken;
}

static bool far_receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	check(length >= NET_FRAME_MIN && length <= NET_FRAME_MAX, "length of a frame");
	return true;
}

static void far_writable(void *owner) {}

static void stop(void *owner, uint32_t events)
{
	struct board *board = owner;
	uint64_t count;

	if (read(board->stop_fd, &count, sizeof count) == sizeof count)
		event_loop_stop(board->loop);
}

/* One turn of the loop, with all that is ready. */
static void turn(struct board *board)
{
	uint64_t one = 1;

	if (write(board->stop_fd, &one, sizeof one) == sizeof one)
		event_loop_run(board->loop);
}

static int create_devices(struct board *board)
{
	const struct net_client far = {.receive = far_receive, .writable = far_writable, .owner = board};
	struct virtio_block_options block = {.serial = "fuzz", .queues = 2};
	char path[32];
	int fd = memfd_create("fuzz-disk", MFD_CLOEXEC), error = 0;

	if (fd < 0 || ftruncate(fd, DISK_SIZE) < 0)
		return -1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	board->disk = disk_open(&(struct disk_options){.path = path, .format = "raw", .no_lock = true});
	close(fd);
	if (!board->disk || disk_attach(board->disk, board->loop) || !net_pair(board->ends))
		return -1;
	block.disk = board->disk;
	error |= virtio_rng_init(&board->rng, &board->host, 1);
	error |= virtio_balloon_init(&board->balloon, &board->host, 2);
	error |= virtio_console_init(&board->console, &board->host, 3, 3);
	for (unsigned i = 0; i < 3; i++)
		virtio_console_connect(&board->console, i, i ? "name" : NULL,
		                       (struct virtio_console_peer){.write = peer_write, .owner = board});
	error |= virtio_block_init(&board->block, &board->host, 4, &block);
	error |= virtio_net_init(&board->card, &board->host, 5, board->ends[0]);
	error |= net_attach(board->ends[1], board->loop, &far);
	board->device[0] = &board->rng.device;
	board->device[1] = &board->balloon.device;
	board->device[2] = &board->console.device;
	board->device[3] = &board->block.device;
	board->device[4] = &board->card.device;
	for (unsigned i = 0; i < DEVICES && !error; i++)
		error |= virtio_pci_init(&board->pci[i], &board->root, PCI_DEVFN(2 + i, 0), board->device[i], i >= 3);
	return error;
}

static void assign(struct board *board)
{
	const struct pci_windows windows = {
	    .io = 0xc000, .io_end = 0xd000, .memory = 0xf0000000, .memory_end = 0xf8000000};

	pci_root_assign(&board->root, &windows);
	for (unsigned i = 0; i < DEVICES; i++)
		pci_config_write(&board->root, PCI_DEVFN(2 + i, 0), PCI_COMMAND, 2,
		                 PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static struct board *board_create(void)
{
	struct board *board = calloc(1, sizeof *board);

	check(board && memory_create(&board->memory, RAM_SIZE) == 0, "no memory");
	bus_init(&board->bus, NULL);
	check(pci_root_init(&board->root, &board->bus, NULL, NULL) == 0, "PCI");
	pci_root_set_message(&board->root, message, board);
	board->loop = event_loop_create();
	board->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	check(board->loop && event_source_add(board->loop, board->stop_fd, EPOLLIN, stop, board), "event loop");
	board->host =
	    (struct virtio_host){.memory = &board->memory, .loop = board->loop, .lock = no_lock, .unlock = no_lock};
	check(create_devices(board) == 0, "devices");
	assign(board);
	board->room = 1000;
	return board;
}

static void drain(struct board *board)
{
	for (unsigned i = 0; i < DEVICES; i++)
		while (board->device[i]->in_flight > 0)
			turn(board);
}

static void board_destroy(struct board *board)
{
	drain(board);
	disk_close(board->disk);
	virtio_net_destroy(&board->card);
	net_close(board->ends[0]);
	net_close(board->ends[1]);
	for (unsigned i = 0; i < DEVICES; i++) {
		virtio_pci_destroy(&board->pci[i]);
		virtio_device_destroy(board->device[i]);
	}
	event_loop_destroy(board->loop);
	close(board->stop_fd);
	memory_destroy(&board->memory);
	free(board);
}

static void set(struct board *board, unsigned device, unsigned offset, unsigned size, uint64_t value)
{
	const struct pci_bar *bar = &board->pci[device].function.bar[4];

	if (bar->mapped)
		bus_mmio_write(&board->bus, bar->base + offset, size, value);
}

static uint64_t get(struct board *board, unsigned device, unsigned offset, unsigned size)
{
	const struct pci_bar *bar = &board->pci[device].function.bar[4];

	return bar->mapped ? bus_mmio_read(&board->bus, bar->base + offset, size) : 0;
}

/* The legacy interface's ports. A reset there waits for what is in flight, which only we can bring back. */
static void legacy(struct board *board, unsigned device, struct input *input)
{
	const struct pci_bar *bar = &board->pci[device].function.bar[0];
	uint8_t offset = take(input, 1) % 96, size = 1u << take(input, 1) % 3;
	/* Mostly where registers are, and rings where there is room for them. */
	static const uint8_t registers[][2] = {{0, 4},  {4, 4},  {8, 4},  {12, 2}, {14, 2},
	                                       {16, 2}, {18, 1}, {19, 1}, {20, 2}, {22, 2}};
	uint32_t value = (uint32_t)take(input, 4);

	if (offset >= 32) {
		size = registers[offset % 10][1];
		offset = registers[offset % 10][0];
		value = offset == 8 && value & 1 ? 0x100 + (value >> 4) % 0x80 : value;
	}
	if (!bar->mapped)
		return;
	drain(board);
	bus_port_write(&board->bus, (uint16_t)(bar->base + offset), size, value);
	bus_port_read(&board->bus, (uint16_t)(bar->base + offset), size);
}

/* 16 KiB for the rings of each device, 1 KiB a queue: descriptors, then the two areas. */
static uint64_t ring_at(unsigned device, unsigned queue)
{
	return 0x10000 + 0x4000 * device + 0x400 * (queue & 15);
}

/* All of a driver's start: reset, features, queues, DRIVER_OK. */
static void start(struct board *board, unsigned device, struct input *input)
{
	static const uint64_t rings[] = {0,           1ull << 28,    1ull << 29, 1ull << 34,
	                                 0x430000000, 0x10430000000, 0x30000000, 0};
	uint64_t features = take(input, 4) & board->device[device]->offered & 0xffffff;

	features |= rings[take(input, 1) & 7] | 1ull << 32;
	set(board, device, 20, 1, 0);
	drain(board);
	memset(board->available[device], 0, sizeof board->available[device]);
	memset(board->wrap[device], 1, sizeof board->wrap[device]);
	memset(board->memory.low + ring_at(device, 0), 0, 0x4000);
	set(board, device, 20, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		set(board, device, 8, 4, i);
		set(board, device, 12, 4, (uint32_t)(features >> 32 * i));
	}
	set(board, device, 20, 1, 11);
	for (unsigned queue = 0; queue < board->device[device]->queue_count; queue++) {
		set(board, device, 22, 2, queue);
		set(board, device, 24, 2, RING_SIZE);
		set(board, device, 26, 2, queue + 1);
		set(board, device, 32, 8, ring_at(device, queue));
		set(board, device, 40, 8, ring_at(device, queue) + 0x100);
		set(board, device, 48, 8, ring_at(device, queue) + 0x200);
		set(board, device, 28, 2, 1);
	}
	set(board, device, 20, 1, 15);
}

static void raw(struct board *board, uint64_t address, uint64_t value, unsigned length)
{
	memory_write(&board->memory, address, &value, length);
}

static uint64_t choose_address(struct input *input)
{
	static const uint64_t odd[] = {0,          0x9fff8,    0xa0000, RAM_SIZE - 8, RAM_SIZE, 0xf0000000,
	                               0xfee00000, ~0ull - 15, ~0ull,   0x10000,      0x10100,  0x14000};
	uint8_t choice = take(input, 1);

	return choice < 16 ? odd[choice % 12] : DATA + 64ull * choice;
}

/* A chain of one to four descriptors, made available, mostly as the device wants it. */
static void chain(struct board *board, unsigned device, struct input *input)
{
	unsigned queue = take(input, 1) % board->device[device]->queue_count, what = take(input, 1);
	unsigned count = 1 + (what & 3);
	uint16_t *position = &board->available[device][queue];
	uint64_t ring = ring_at(device, queue);
	bool packed = atomic_load(&board->device[device]->features) >> 34 & 1;

	for (unsigned i = 0; i < count; i++) {
		unsigned index = (*position + i) % RING_SIZE;
		uint64_t at = ring + 16 * index, address = choose_address(input);
		uint32_t length = take(input, 1);
		uint16_t flags = (i + 1 < count ? 1 : 0) | (i >= (what >> 2 & 3) ? 2 : 0);

		if (what & 0x80) {
			flags ^= take(input, 1) & 7;
			length <<= take(input, 1) & 31;
		} else if (!length) {
			length = 1;
		}
		raw(board, at, address, 8);
		raw(board, at + 8, length, 4);
		if (packed) {
			bool wrap = board->wrap[device][queue] ^ (*position + i >= RING_SIZE);

			raw(board, at + 12, index, 2);
			raw(board, at + 14, flags | (wrap ? 0x80 : 0x8000), 2);
		} else {
			raw(board, at + 12, flags, 2);
			raw(board, at + 14, (index + 1) % RING_SIZE, 2);
		}
	}
	if (packed) {
		*position += count;
		if (*position >= RING_SIZE) {
			*position -= RING_SIZE;
			board->wrap[device][queue] = !board->wrap[device][queue];
		}
	} else {
		uint16_t index;

		memory_read(&board->memory, ring + 0x102, &index, 2);
		raw(board, ring + 0x104 + 2 * (index % RING_SIZE), *position % RING_SIZE, 2);
		raw(board, ring + 0x102, index + 1, 2);
		*position += count;
	}
	set(board, device, 0x3000 + 4 * queue, 2, queue);
}

/* What the host does on its own account. */
static void host_event(struct board *board, struct input *input)
{
	uint8_t what = take(input, 1), bytes[200];
	unsigned length = take(input, 1) % sizeof bytes;
	const struct iovec iov = {bytes, length};

	for (unsigned i = 0; i < sizeof bytes; i++)
		bytes[i] = i < 16 ? take(input, 1) : what + i;
	switch (what % 8) {
	case 0:
	case 1:
		net_send(board->ends[1], NULL, &iov, 1);
		break;
	case 2:
		if (virtio_console_can_receive(&board->console.port[what >> 3 & 1]) >= length)
			virtio_console_receive(&board->console.port[what >> 3 & 1], bytes, length);
		break;
	case 3:
		board->room = length;
		virtio_console_writable(&board->console.port[what >> 3 & 1]);
		break;
	case 4:
		virtio_console_set_open(&board->console, what >> 3 & 1, what >> 4 & 1);
		virtio_console_resize(&board->console, what, length);
		break;
	case 5:
		virtio_balloon_set_target(&board->balloon, (uint64_t)length << 12);
		break;
	case 6:
		virtio_balloon_request_stats(&board->balloon);
		break;
	default:
		virtio_block_resized(&board->block);
	}
}

static void board_state(struct board *board, struct state *state)
{
	pci_root_state(&board->root, state);
	for (unsigned i = 0; i < DEVICES; i++)
		virtio_pci_state(&board->pci[i], state);
}

/* Saves, damages as the input says (nothing: all is well), loads in place. */
static void save_and_load(struct board *board, struct input *input)
{
	unsigned damages = take(input, 1) % 4;
	struct state *save = state_save_begin(), *load;
	const uint8_t *bytes;
	uint8_t *copy;
	size_t length;

	drain(board);
	board_state(board, save);
	bytes = state_save_data(save, &length);
	check(bytes != NULL, "a device refuses to save its state");
	copy = malloc(length);
	check(copy != NULL, "no memory");
	memcpy(copy, bytes, length);
	for (unsigned i = 0; i < damages; i++) {
		size_t at = take(input, 2) % length;

		copy[at] ^= take(input, 1);
	}
	load = state_load_begin(copy, length);
	board_state(board, load);
	if (damages == 0 && state_error(load)) {
		fprintf(stderr, "fuzz_virtio: %s\n", state_error(load));
		check(false, "a device refuses the state that it has saved");
	}
	state_free(load);
	state_free(save);
	free(copy);
}

static void operate(struct board *board, struct input *input)
{
	uint8_t operation = take(input, 1);
	unsigned device = (operation >> 4) % DEVICES, size = 1u << take(input, 1) % 4;

	switch (operation & 15) {
	case 0:
		start(board, device, input);
		break;
	case 1 ... 5:
		chain(board, device, input);
		break;
	case 6:
		set(board, device, take(input, 1) % 64, size, take(input, size));
		break;
	case 7:
		get(board, device, take(input, 2) % 0x4000, size);
		break;
	case 8:
		set(board, device, take(input, 2) % 0x4000, size, take(input, size));
		break;
	case 9:
		raw(board, ring_at(device, take(input, 1)) + take(input, 2) % 0x400, take(input, size), size);
		break;
	case 10:
		raw(board, DATA + take(input, 2) % 0x4000, take(input, size), size);
		break;
	case 11:
		host_event(board, input);
		break;
	case 12:
		if (operation >> 4 < 3)
			save_and_load(board, input);
		break;
	case 13:
		pci_config_write(&board->root, PCI_DEVFN(2 + device, 0), take(input, 1), size > 4 ? 4 : size,
		                 (uint32_t)take(input, 4));
		pci_config_read(&board->root, PCI_DEVFN(2 + device, 0), take(input, 1), size > 4 ? 4 : size);
		break;
	case 14:
		if (operation >> 4 == 0) {
			pci_root_reset(&board->root);
			for (unsigned i = 0; i < DEVICES; i++)
				virtio_pci_reset(&board->pci[i]);
			assign(board);
		}
		break;
	default:
		if (device >= 3)
			legacy(board, device, input);
		turn(board);
	}
	if (operation & 1)
		turn(board);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct board *board = board_create();
	struct input input = {.data = data, .size = size};

	for (unsigned i = 0; i < DEVICES; i++)
		start(board, i, &input);
	for (unsigned i = 0; i < OPERATIONS && input.at < input.size; i++)
		operate(board, &input);
	board_destroy(board);
	return 0;
}
