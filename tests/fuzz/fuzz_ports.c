/*
 * Every chip of the PC, wired as machine/pc.c does: any sequence of port and memory-mapped accesses, DMA of fw_cfg,
 * passing time, moving lines, received bytes, keys and resets, saving and loading, is harmless.
 *
 * Input: operations, each a byte that chooses and the bytes it takes; what is missing at the end is 0. The test is that
 * nothing traps and that derived state agrees with the wires.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/acpi_pm.h"
#include "devices/bus.h"
#include "devices/debug_exit.h"
#include "devices/debug_ports.h"
#include "devices/dma_8237.h"
#include "devices/fw_cfg.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/pci/host_i440fx.h"
#include "devices/pci/isa_piix3.h"
#include "devices/pci/pci.h"
#include "devices/pci/pm_piix4.h"
#include "devices/pic_8259.h"
#include "devices/pit_8254.h"
#include "devices/port92.h"
#include "devices/reset_control_cf9.h"
#include "devices/rtc_mc146818.h"
#include "devices/serial_16550.h"
#include "machine/clock.h"
#include "machine/state.h"
#include "memory/memory.h"

#define RAM_SIZE   (2u << 20)
#define OPERATIONS 4096
#define BAR_SIZE   64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *data;
	size_t size, at;
};

struct board {
	struct bus bus;
	struct clock *clock;
	struct memory memory;
	struct pic_8259 pic;
	struct ioapic ioapic;
	struct pit_8254 pit;
	struct rtc_mc146818 rtc;
	struct serial_16550 com[2];
	struct i8042 i8042;
	struct port92 port92;
	struct reset_control_cf9 cf9;
	struct acpi_pm acpi;
	struct debug_ports debug_ports;
	struct debug_exit debug_exit;
	struct dma_8237 dma;
	struct fw_cfg fw_cfg;
	struct pci_root pci;
	struct host_i440fx host;
	struct isa_piix3 piix3;
	struct pm_piix4 pm;
	struct pci_function card;
	uint8_t file[100], scratch[100], bar[BAR_SIZE];
	bool intr;
	bool peer_full;
	bool reset_wanted;
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
	fprintf(stderr, "fuzz_ports: %s\n", what);
	abort();
}

static void intr_wire(void *owner, unsigned pin, bool level)
{
	((struct board *)owner)->intr = level;
}

static void isa_wire(void *owner, unsigned irq, bool level)
{
	struct board *board = owner;

	pic_8259_set_irq(&board->pic, irq, level);
	ioapic_set_irq(&board->ioapic, irq == 0 ? 2 : irq, level);
}

static void reset_wire(void *owner, unsigned pin, bool level)
{
	if (level)
		((struct board *)owner)->reset_wanted = true;
}

static void any_wire(void *owner, unsigned pin, bool level) {}

static struct irq_line isa(struct board *board, unsigned irq)
{
	return (struct irq_line){.set = isa_wire, .owner = board, .pin = irq};
}

/* A local APIC that sometimes refuses. */
static unsigned deliver(void *owner, uint32_t destination, bool logical, unsigned delivery, unsigned vector, bool level)
{
	return destination & 1;
}

static size_t peer_write(void *owner, const uint8_t *data, size_t length)
{
	return ((struct board *)owner)->peer_full ? 0 : length;
}

static void peer_accept(void *owner) {}

static void debug_put(void *owner, uint8_t byte) {}

static void debug_leave(void *owner, uint32_t value) {}

static uint64_t bar_read(void *device, uint64_t offset, unsigned size)
{
	struct board *board = device;
	uint64_t value = 0;

	check(offset < BAR_SIZE && size <= BAR_SIZE - offset, "BAR read out of its range");
	memcpy(&value, board->bar + offset, size);
	return value;
}

static void bar_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct board *board = device;

	check(offset < BAR_SIZE && size <= BAR_SIZE - offset, "BAR write out of its range");
	memcpy(board->bar + offset, &value, size);
}

static const struct bus_ops bar_ops = {.read = bar_read, .write = bar_write, .max_size = 8};

/* The parts list. Returns whether everything found its place. */
static bool create_chips(struct board *board)
{
	struct bus *bus = &board->bus;
	struct clock *clock = board->clock;
	const struct irq_line any = {.set = any_wire}, reset = {.set = reset_wire, .owner = board};
	const struct acpi_pm_config acpi = {.base = 0x600, .sci = isa(board, 9), .power_off = reset};
	int error = 0;

	error |= pic_8259_init(&board->pic, bus, (struct irq_line){.set = intr_wire, .owner = board});
	error |= ioapic_init(&board->ioapic, bus, 0xfec00000, NULL);
	board->ioapic.deliver = deliver;
	error |= pit_8254_init(&board->pit, bus, clock, isa(board, 0));
	error |= rtc_mc146818_init(&board->rtc, bus, clock, isa(board, 8), any);
	for (unsigned i = 0; i < 2; i++) {
		error |= serial_16550_init(&board->com[i], bus, i ? 0x2f8 : 0x3f8, i, clock, isa(board, 4 - i));
		serial_16550_connect(&board->com[i], (struct serial_16550_peer){peer_write, peer_accept, board});
	}
	error |= i8042_init(&board->i8042, bus, clock, isa(board, 1), isa(board, 12), any, reset);
	error |= port92_init(&board->port92, bus, any, reset);
	error |= dma_8237_init(&board->dma, bus);
	error |= acpi_pm_init(&board->acpi, bus, clock, &acpi);
	error |= debug_ports_init(&board->debug_ports, bus, debug_put, board);
	error |= debug_exit_init(&board->debug_exit, bus, debug_leave, board);
	error |= fw_cfg_init(&board->fw_cfg, bus, &board->memory);
	error |= fw_cfg_add_file(&board->fw_cfg, "etc/file", board->file, sizeof board->file);
	error |= fw_cfg_add_writable_file(&board->fw_cfg, "etc/scratch", board->scratch, sizeof board->scratch);
	reset_control_cf9_init(&board->cf9, reset);
	error |= pci_root_init(&board->pci, bus, &reset_control_cf9_ops, &board->cf9);
	error |= host_i440fx_init(&board->host, &board->pci);
	error |= isa_piix3_init(&board->piix3, &board->pci, isa(board, 0));
	error |= pm_piix4_init(&board->pm, &board->pci, 0x600);
	pci_function_init(&board->card, "card", 0x1af4, 0x1041, 1, 0x020000);
	pci_set_interrupt_pin(&board->card, 1);
	error |= pci_add_bar(&board->card, 0, PCI_BAR_IO, false, BAR_SIZE, &bar_ops, board);
	error |= pci_add_bar(&board->card, 1, PCI_BAR_MEMORY, false, BAR_SIZE, &bar_ops, board);
	error |= pci_add_bar(&board->card, 4, PCI_BAR_MEMORY64, true, BAR_SIZE, &bar_ops, board);
	error |= pci_add_function(&board->pci, &board->card, PCI_DEVFN(3, 0));
	return error == 0;
}

static void reset_chips(struct board *board)
{
	pic_8259_reset(&board->pic);
	ioapic_reset(&board->ioapic);
	pit_8254_reset(&board->pit);
	rtc_mc146818_reset(&board->rtc);
	for (unsigned i = 0; i < 2; i++)
		serial_16550_reset(&board->com[i]);
	i8042_reset(&board->i8042);
	port92_reset(&board->port92);
	reset_control_cf9_reset(&board->cf9);
	acpi_pm_reset(&board->acpi);
	dma_8237_reset(&board->dma);
	fw_cfg_reset(&board->fw_cfg);
	pci_root_reset(&board->pci);
	host_i440fx_reset(&board->host);
	isa_piix3_reset(&board->piix3);
	pm_piix4_reset(&board->pm);
	board->reset_wanted = false;
}

static void board_state(struct board *board, struct state *state)
{
	pic_8259_state(&board->pic, state);
	ioapic_state(&board->ioapic, state);
	pit_8254_state(&board->pit, state);
	rtc_mc146818_state(&board->rtc, state);
	for (unsigned i = 0; i < 2; i++)
		serial_16550_state(&board->com[i], state);
	i8042_state(&board->i8042, state);
	port92_state(&board->port92, state);
	reset_control_cf9_state(&board->cf9, state);
	acpi_pm_state(&board->acpi, state);
	dma_8237_state(&board->dma, state);
	fw_cfg_state(&board->fw_cfg, state);
	pci_root_state(&board->pci, state);
}

static bool board_create(struct board *board)
{
	memset(board, 0, sizeof *board);
	bus_init(&board->bus, NULL);
	board->clock = clock_create_manual();
	if (!board->clock)
		return false;
	if (memory_create(&board->memory, RAM_SIZE)) {
		clock_destroy(board->clock);
		return false;
	}
	check(create_chips(board), "chips do not find their places");
	return true;
}

static void board_destroy(struct board *board)
{
	memory_destroy(&board->memory);
	clock_destroy(board->clock);
}

/* Saves, damages as the input says (nothing: all is well), loads in place. */
static void save_and_load(struct board *board, struct input *input)
{
	unsigned damages = take(input, 1) % 4;
	struct state *save = state_save_begin(), *load;
	const uint8_t *bytes;
	uint8_t *copy;
	size_t length;

	if (!save)
		return;
	board_state(board, save);
	bytes = state_save_data(save, &length);
	check(bytes != NULL, "a chip refuses to save its state");
	copy = malloc(length);
	if (!copy)
		abort();
	memcpy(copy, bytes, length);
	for (unsigned i = 0; i < damages; i++) {
		size_t at = take(input, 2) % length;

		copy[at] ^= take(input, 1);
	}
	load = state_load_begin(copy, length);
	if (!load)
		abort();
	board_state(board, load);
	if (damages == 0 && state_error(load)) {
		fprintf(stderr, "fuzz_ports: %s\n", state_error(load));
		check(false, "a chip refuses the state that it has saved");
	}
	state_free(load);
	state_free(save);
	free(copy);
}

/* The DMA access structure, at a place of the input's choice; big-endian. */
static void fw_cfg_dma(struct board *board, struct input *input)
{
	uint64_t where = take(input, 3), bytes[2] = {take(input, 8), take(input, 8)};
	uint32_t low = __builtin_bswap32((uint32_t)where);

	memory_write(&board->memory, where, bytes, sizeof bytes);
	if (take(input, 1) & 1)
		bus_port_write(&board->bus, 0x514, 4, (uint32_t)take(input, 4));
	bus_port_write(&board->bus, 0x518, 4, low);
}

/* Ports where somebody lives, mostly. */
static uint16_t choose_port(struct board *board, struct input *input)
{
	uint16_t choice = take(input, 2);
	const struct bus_range *range = &board->bus.ports.range[(choice & 0xff) % board->bus.ports.count];

	if (choice >> 8 == 0xff)
		return take(input, 2);
	return range->base + (choice >> 8) % range->length;
}

static uint64_t choose_address(struct board *board, struct input *input)
{
	uint16_t choice = take(input, 2);
	const struct bus_range *range = &board->bus.mmio.range[(choice & 7) % board->bus.mmio.count];

	if (choice >> 8 == 0xff)
		return take(input, 8);
	return range->base + (choice >> 3) % range->length;
}

static void pci_access(struct board *board, struct input *input)
{
	static const uint8_t functions[] = {0x00, 0x08, 0x0b, 0x18, 0x18, 0x18, 0xff};
	unsigned devfn = functions[take(input, 1) % sizeof functions], offset = take(input, 1);
	unsigned size = 1u << take(input, 1) % 3;

	bus_port_write(&board->bus, 0xcf8, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
	bus_port_write(&board->bus, 0xcfc + (offset & 3), size, (uint32_t)take(input, 4));
	bus_port_read(&board->bus, 0xcfc + (offset & 3), size);
}

static void receive(struct board *board, struct input *input)
{
	uint8_t bytes[32], what = take(input, 1);
	struct serial_16550 *com = &board->com[what & 1];

	for (unsigned i = 0; i < sizeof bytes; i++)
		bytes[i] = what + i;
	switch (what >> 1 & 3) {
	case 0:
		board->peer_full = what >> 3 & 1;
		serial_16550_writable(com);
		break;
	case 1:
		serial_16550_receive_break(com);
		break;
	default:
		serial_16550_receive(com, bytes, what >> 3);
	}
}

/* Keys, mouse, buttons, interrupt requests, acknowledges, EOIs. */
static void outside_event(struct board *board, struct input *input)
{
	uint8_t what = take(input, 1), value = take(input, 1);

	switch (what % 9) {
	case 0:
		i8042_key(&board->i8042, value, what >> 7);
		break;
	case 1:
		i8042_mouse(&board->i8042, (int32_t)take(input, 4), (int8_t)take(input, 1), (int8_t)value, what >> 4);
		break;
	case 2:
		acpi_pm_power_button(&board->acpi);
		break;
	case 3:
		acpi_pm_raise_gpe(&board->acpi, value);
		break;
	case 4:
		isa_wire(board, value & 31, value >> 7);
		break;
	case 5:
		pic_8259_acknowledge(&board->pic);
		break;
	case 6:
		pic_8259_inta(&board->pic);
		break;
	case 7:
		ioapic_eoi(&board->ioapic, value);
		break;
	default:
		pci_set_intx(&board->card, value & 1);
	}
}

static void check_board(struct board *board)
{
	unsigned mapped = 0;

	check(board->intr == board->pic.intr_level, "INTR differs from the 8259's idea of it");
	for (unsigned i = 0; i < PCI_BAR_COUNT; i++)
		mapped += board->card.bar[i].mapped;
	check(mapped <= 3, "more BARs mapped than there are");
	check(board->com[0].receive.count <= SERIAL_16550_FIFO && board->com[0].transmit.count <= SERIAL_16550_FIFO,
	      "serial FIFO count");
	check(board->i8042.keyboard.queue.count <= PS2_QUEUE && board->i8042.mouse.queue.count <= PS2_QUEUE,
	      "keyboard or mouse queue count");
	check(board->rtc.index < RTC_CMOS_SIZE, "CMOS index");
	check(board->pci.pirq_count[0] + board->pci.pirq_count[1] + board->pci.pirq_count[2] +
	              board->pci.pirq_count[3] <=
	          1,
	      "PIRQ counts");
}

static void operate(struct board *board, struct input *input)
{
	uint8_t operation = take(input, 1);
	unsigned size = 1u << (operation >> 4 & 3);

	switch (operation & 15) {
	case 0:
	case 1:
	case 2:
		bus_port_write(&board->bus, choose_port(board, input), size > 4 ? 1 : size,
		               (uint32_t)take(input, size));
		break;
	case 3:
	case 4:
		bus_port_read(&board->bus, choose_port(board, input), size > 4 ? 1 : size);
		break;
	case 5:
		bus_mmio_write(&board->bus, choose_address(board, input), size, take(input, size));
		break;
	case 6:
		bus_mmio_read(&board->bus, choose_address(board, input), size);
		break;
	case 7: { /* an I/O APIC register */
		uint8_t reg = take(input, 1);

		bus_mmio_write(&board->bus, 0xfec00000, 4, reg);
		bus_mmio_write(&board->bus, 0xfec00010, 4, take(input, 4));
		break;
	}
	case 8: { /* a CMOS register */
		uint8_t reg = take(input, 1);

		bus_port_write(&board->bus, 0x70, 1, reg);
		bus_port_write(&board->bus, 0x71, 1, (uint8_t)take(input, 1));
		break;
	}
	case 9:
		pci_access(board, input);
		break;
	case 10:
		fw_cfg_dma(board, input);
		break;
	case 11: /* up to 17 ms, and sometimes half a minute: many turns of a periodic timer */
		clock_advance(board->clock, take(input, 3));
		if (operation >> 4 == 15)
			clock_advance(board->clock, take(input, 1) * 1000000000ull / 8);
		break;
	case 12:
		receive(board, input);
		break;
	case 13:
		outside_event(board, input);
		break;
	case 14:
		if (operation >> 4 < 4)
			save_and_load(board, input);
		break;
	default:
		if (operation >> 4 == 0 || board->reset_wanted)
			reset_chips(board);
	}
	check_board(board);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct board board;
	struct input input = {.data = data, .size = size};

	if (!board_create(&board))
		return 0;
	for (unsigned i = 0; i < OPERATIONS && input.at < input.size; i++)
		operate(&board, &input);
	board_destroy(&board);
	return 0;
}
