#include "device_test.h"

#include <errno.h>

#include "devices/pci/host_i440fx.h"
#include "devices/pci/isa_piix3.h"
#include "devices/pci/pci.h"
#include "devices/pci/pm_piix4.h"
#include "devices/reset_control_cf9.h"

#define RESET 40 /* wires 0-15 are the IRQs that PIRQs drive */

/* A device with every kind of BAR, an interrupt and a capability. */
struct card {
	struct pci_function function; /* first */
	uint64_t value[4];
	unsigned config_writes;
};

struct board {
	struct pci_root root;
	struct host_i440fx host;
	struct isa_piix3 piix3;
	struct pm_piix4 pm;
	struct reset_control_cf9 cf9;
	struct card card[2];
};

static uint64_t card_read(void *device, uint64_t offset, unsigned size)
{
	return *(uint64_t *)device >> 8 * (offset & 7);
}

static void card_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	*(uint64_t *)device = value;
}

static const struct bus_ops card_ops = {.read = card_read, .write = card_write, .max_size = 8};

static void card_config_written(struct pci_function *function, unsigned offset, unsigned size)
{
	((struct card *)function)->config_writes++;
}

static int add_card(struct board *board, unsigned index, unsigned devfn)
{
	struct card *card = &board->card[index];
	struct pci_function *function = &card->function;

	pci_function_init(function, index ? "card 1" : "card 0", 0x1af4, 0x1000 + index, 1, 0x020000);
	pci_set_interrupt_pin(function, 1 + index);
	function->config_written = card_config_written;
	if (pci_add_bar(function, 0, PCI_BAR_IO, false, 32, &card_ops, &card->value[0]) ||
	    pci_add_bar(function, 1, PCI_BAR_MEMORY, false, 4096, &card_ops, &card->value[1]) ||
	    pci_add_bar(function, 4, PCI_BAR_MEMORY64, true, 1 << 14, &card_ops, &card->value[2]))
		return -EINVAL;
	return pci_add_function(&board->root, function, devfn);
}

static int make(struct rig *rig)
{
	struct board *board = rig->chip;

	reset_control_cf9_init(&board->cf9, rig_wire(rig, RESET));
	if (pci_root_init(&board->root, &rig->bus, &reset_control_cf9_ops, &board->cf9) ||
	    host_i440fx_init(&board->host, &board->root) ||
	    isa_piix3_init(&board->piix3, &board->root, rig_wire(rig, 0)) ||
	    pm_piix4_init(&board->pm, &board->root, 0x600))
		return -1;
	return add_card(board, 0, PCI_DEVFN(3, 0)) || add_card(board, 1, PCI_DEVFN(4, 0)) ? -1 : 0;
}

static void set_address(struct rig *rig, unsigned devfn, unsigned offset)
{
	bus_port_write(&rig->bus, 0xcf8, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
}

static uint32_t get(struct rig *rig, unsigned devfn, unsigned offset, unsigned size)
{
	set_address(rig, devfn, offset);
	return bus_port_read(&rig->bus, 0xcfc + (offset & 3), size);
}

static void set(struct rig *rig, unsigned devfn, unsigned offset, unsigned size, uint32_t value)
{
	set_address(rig, devfn, offset);
	bus_port_write(&rig->bus, 0xcfc + (offset & 3), size, value);
}

static void stimulate(struct rig *rig, struct random *random)
{
	static const unsigned slot[] = {PCI_DEVFN(0, 0), PCI_DEVFN(1, 0), PCI_DEVFN(1, 3),
	                                PCI_DEVFN(3, 0), PCI_DEVFN(4, 0), 0xff};
	static const uint64_t place[] = {0xfffffffe, 0xfebf0000, 0xfebf1000, 0xc000, 0xc020, 0xcf8, 1, 0};
	struct board *board = rig->chip;
	unsigned devfn = slot[random_below(random, 6)];

	switch (random_below(random, 5)) {
	case 0:
		pci_set_intx(&board->card[random_below(random, 2)].function, random_below(random, 2));
		break;
	case 1: /* a BAR somewhere, often on top of another */
		set(rig, devfn, 0x10 + 4 * random_below(random, 6), 4, place[random_below(random, 8)]);
		break;
	case 2:
		set(rig, devfn, 4, 2, random_next(random));
		break;
	case 3:
		rig_log(rig, bus_mmio_read(&rig->bus, 0xfebf0000 + random_below(random, 8192), 4));
		rig_log(rig, bus_port_read(&rig->bus, 0xc000 + random_below(random, 64), 2));
		break;
	default:
		set(rig, devfn, random_below(random, 256), 1u << random_below(random, 3), random_next(random));
	}
}

static void check(struct rig *rig)
{
	struct board *board = rig->chip;
	unsigned mapped = 0, pulled = 0;

	for (unsigned i = 0; i < 2; i++) {
		struct card *card = &board->card[i];

		for (unsigned j = 0; j < PCI_BAR_COUNT; j++)
			mapped += card->function.bar[j].mapped;
		pulled += card->function.intx_driven;
		assert_int_equal(pci_get(&card->function, 0, 4), 0x10001af4 + i * 0x10000);
	}
	/* The bus holds the address and data ports, the SMBus, and one range for each mapped BAR. */
	assert_int_equal(rig->bus.ports.count + rig->bus.mmio.count, 3 + mapped);
	assert_int_equal(board->root.pirq_count[0] + board->root.pirq_count[1] + board->root.pirq_count[2] +
	                     board->root.pirq_count[3],
	                 pulled);
	for (unsigned irq = 0; irq < 16; irq++)
		assert_int_equal(board->piix3.driven >> irq & 1, rig->level[irq]);
}

/* The requests are the devices' own state. */
static void state(void *chip, struct state *state)
{
	struct board *board = chip;

	pci_set_intx(&board->card[0].function, true);
	pci_set_intx(&board->card[1].function, false);
	board->card[0].value[0] = board->card[0].value[1] = board->card[0].value[2] = 5;
	board->card[1].value[0] = board->card[1].value[1] = board->card[1].value[2] = 6;
	pci_root_state(&board->root, state);
	reset_control_cf9_state(&board->cf9, state);
}

static void reset(void *chip)
{
	struct board *board = chip;

	pci_root_reset(&board->root);
	host_i440fx_reset(&board->host);
	isa_piix3_reset(&board->piix3);
	pm_piix4_reset(&board->pm);
	reset_control_cf9_reset(&board->cf9);
}

static const struct device_kind kind = {
    .name = "pci",
    .size = sizeof(struct board),
    .make = make,
    .state = state,
    .reset = reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{0xcf8, 8}, {0xcfc, 4}},
};

DEVICE_TESTS(kind)

static void test_mechanism(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	bus_port_write(&rig.bus, 0xcf8, 4, 0xffffffff);
	assert_int_equal(bus_port_read(&rig.bus, 0xcf8, 4), 0x80fffffc);
	/* Linux's check for mechanism #1: bytes do not reach the register. */
	bus_port_write(&rig.bus, 0xcf8, 4, 0x80000000);
	out8(&rig, 0xcfb, 0x01);
	assert_int_equal(bus_port_read(&rig.bus, 0xcf8, 4), 0x80000000);
	assert_int_equal(get(&rig, 0, 0, 4), 0x12378086);
	assert_int_equal(get(&rig, 0, 2, 2), 0x1237);
	assert_int_equal(get(&rig, 0, 0x0b, 1), 0x06);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 0), 0, 4), 0x70008086);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 0), 0x0e, 1), 0x80);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 3), 0, 4), 0x71138086);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 3), 0x40, 4), 0x601);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 1), 0, 4), 0xffffffff);
	assert_int_equal(get(&rig, PCI_DEVFN(31, 7), 0, 2), 0xffff);
	bus_port_write(&rig.bus, 0xcf8, 4, 0x80010000); /* bus 1 */
	assert_int_equal(bus_port_read(&rig.bus, 0xcfc, 4), 0xffffffff);
	bus_port_write(&rig.bus, 0xcf8, 4, 0); /* not enabled */
	assert_int_equal(bus_port_read(&rig.bus, 0xcfc, 4), 0xffffffff);
	/* CF9h is the reset register, in bytes. */
	out8(&rig, 0xcf9, 0x02);
	assert_int_equal(in8(&rig, 0xcf9), 0x02);
	assert_int_equal(rig.rises[RESET], 0);
	out8(&rig, 0xcf9, 0x06);
	assert_int_equal(rig.rises[RESET], 1);
	/* PAM registers keep what firmware writes; IDs do not change. */
	set(&rig, 0, 0x59, 1, 0x30);
	set(&rig, 0, 0x5a, 4, 0x33333333);
	assert_int_equal(get(&rig, 0, 0x58, 4), 0x33333000 | get(&rig, 0, 0x58, 1));
	set(&rig, 0, 0, 4, 0);
	assert_int_equal(get(&rig, 0, 0, 4), 0x12378086);
	rig_unmake(&rig, &kind);
}

static void test_bars(void **context)
{
	const unsigned a = PCI_DEVFN(3, 0), b = PCI_DEVFN(4, 0);
	struct rig rig;
	struct board *board;

	rig_make(&rig, &kind);
	board = rig.chip;
	assert_int_equal(get(&rig, a, 0x10, 4), 1);
	/* Sizing. */
	for (unsigned i = 0; i < 6; i++)
		set(&rig, a, 0x10 + 4 * i, 4, 0xffffffff);
	assert_int_equal(get(&rig, a, 0x10, 4), 0xffffffe1);
	assert_int_equal(get(&rig, a, 0x14, 4), 0xfffff000);
	assert_int_equal(get(&rig, a, 0x18, 4), 0);
	assert_int_equal(get(&rig, a, 0x20, 4), 0xffffc00c);
	assert_int_equal(get(&rig, a, 0x24, 4), 0xffffffff);
	set(&rig, a, 0x10, 4, 0xc000);
	set(&rig, a, 0x14, 4, 0xfebf0000);
	set(&rig, a, 0x20, 4, 0x10000000);
	set(&rig, a, 0x24, 4, 0x40);
	assert_int_equal(bus_port_read(&rig.bus, 0xc000, 4), 0xffffffff);
	set(&rig, a, 4, 2, 3);
	bus_port_write(&rig.bus, 0xc010, 4, 0x1234);
	assert_int_equal(board->card[0].value[0], 0x1234);
	bus_mmio_write(&rig.bus, 0xfebf0008, 8, 0x5678);
	assert_int_equal(board->card[0].value[1], 0x5678);
	bus_mmio_write(&rig.bus, 0x4010000000, 4, 0x9abc);
	assert_int_equal(board->card[0].value[2], 0x9abc);
	/* It moves. */
	set(&rig, a, 0x14, 4, 0xfebf8000);
	assert_true(bus_mmio_read(&rig.bus, 0xfebf0000, 8) == UINT64_MAX);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xfebf8000, 8), 0x5678);
	/* Onto another's place: it stays off, until it finds a free one. */
	set(&rig, b, 4, 2, 3);
	set(&rig, b, 0x14, 4, 0xfebf8000);
	board->card[1].value[1] = 0xb;
	assert_int_equal(bus_mmio_read(&rig.bus, 0xfebf8000, 8), 0x5678);
	set(&rig, b, 0x14, 4, 0xfebf9000);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xfebf9000, 8), 0xb);
	/* Over a fixed chip's ports. */
	set(&rig, b, 0x10, 4, 0xce0);
	assert_int_equal(get(&rig, 0, 0, 4), 0x12378086);
	set(&rig, a, 4, 2, 0);
	assert_true(bus_mmio_read(&rig.bus, 0xfebf8000, 8) == UINT64_MAX);
	/* A reset takes them all away. */
	reset(rig.chip);
	assert_int_equal(rig.bus.mmio.count, 0);
	assert_int_equal(get(&rig, b, 0x14, 4), 0);
	rig_unmake(&rig, &kind);
}

static void test_bar_rules(void **context)
{
	struct pci_function function;

	pci_function_init(&function, "rules", 1, 2, 3, 4);
	assert_int_equal(pci_add_bar(&function, 0, PCI_BAR_MEMORY, false, 24, &card_ops, NULL), -EINVAL);
	assert_int_equal(pci_add_bar(&function, 0, PCI_BAR_MEMORY, false, 8, &card_ops, NULL), -EINVAL);
	assert_int_equal(pci_add_bar(&function, 0, PCI_BAR_IO, false, 512, &card_ops, NULL), -EINVAL);
	assert_int_equal(pci_add_bar(&function, 5, PCI_BAR_MEMORY64, false, 16, &card_ops, NULL), -EINVAL);
	assert_int_equal(pci_add_bar(&function, 4, PCI_BAR_MEMORY64, false, 1ull << 36, &card_ops, NULL), 0);
	assert_int_equal(pci_add_bar(&function, 5, PCI_BAR_IO, false, 16, &card_ops, NULL), -EINVAL);
	assert_int_equal(pci_add_bar(&function, 0, PCI_BAR_NONE, false, 16, &card_ops, NULL), -EINVAL);
	/* A 64 GiB BAR: only the high register has writable bits. */
	assert_int_equal(function.writable[0x20 + 3], 0);
	assert_int_equal(function.writable[0x24], 0xf0);
	/* Capabilities: linked, bounded. */
	assert_int_equal(pci_add_capability(&function, 5, 14), 0x40);
	assert_int_equal(pci_add_capability(&function, 0x11, 12), 0x50);
	assert_int_equal(function.config[0x34], 0x50);
	assert_int_equal(function.config[0x51], 0x40);
	assert_true(function.config[6] & 0x10);
	assert_int_equal(pci_add_capability(&function, 9, 200), -ENOSPC);
	assert_int_equal(pci_add_capability(&function, 9, 164), 0x5c);
	assert_int_equal(pci_add_capability(&function, 9, 4), -ENOSPC);
}

static void test_interrupts(void **context)
{
	const unsigned piix3 = PCI_DEVFN(1, 0), a = PCI_DEVFN(3, 0), b = PCI_DEVFN(4, 0);
	struct rig rig;
	struct pci_function *card;

	rig_make(&rig, &kind);
	card = &((struct board *)rig.chip)->card[0].function;
	assert_int_equal(get(&rig, piix3, 0x60, 4), 0x0b0b0a0a);
	/* Slot 3 INTA: PIRQ (3 + 0 - 1) & 3 = C. */
	pci_set_intx(card, true);
	assert_true(rig.level[11]);
	assert_true(get(&rig, a, 6, 2) & 8);
	set(&rig, piix3, 0x62, 1, 5);
	assert_false(rig.level[11]);
	assert_true(rig.level[5]);
	set(&rig, piix3, 0x62, 1, 0x80); /* off */
	assert_false(rig.level[5]);
	for (unsigned irq = 0; irq < 16; irq++) {
		set(&rig, piix3, 0x62, 1, irq);
		assert_int_equal(rig.level[irq], 0xdef8 >> irq & 1); /* never the timer, keyboard, cascade, RTC, FPU */
	}
	set(&rig, piix3, 0x62, 1, 5);
	/* Slot 4 INTB is PIRQ (4 + 1 - 1) & 3 = A; both on one IRQ. */
	set(&rig, piix3, 0x60, 1, 5);
	pci_set_intx(&((struct board *)rig.chip)->card[1].function, true);
	pci_set_intx(card, false);
	assert_true(rig.level[5]);
	set(&rig, b, 4, 2, 0x400); /* disabled at the source: status still tells */
	assert_false(rig.level[5]);
	assert_true(get(&rig, b, 6, 2) & 8);
	set(&rig, b, 4, 2, 0);
	assert_true(rig.level[5]);
	pci_set_intx(&((struct board *)rig.chip)->card[1].function, false);
	assert_false(rig.level[5]);
	rig_unmake(&rig, &kind);
}

/* What Linux's i2c-piix4 does: it must find a controller, and nobody behind it. */
static void test_smbus(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 3), 0x90, 4), 0x701);
	assert_int_equal(get(&rig, PCI_DEVFN(1, 3), 0xd2, 1), 0x09);
	out8(&rig, 0x704, 0x50 << 1 | 1);
	out8(&rig, 0x705, 0x33);
	assert_int_equal(in8(&rig, 0x705), 0x33);
	assert_int_equal(in8(&rig, 0x700), 0);
	out8(&rig, 0x702, 0x40 | 2 << 2);
	assert_int_equal(in8(&rig, 0x700), 0x04);
	assert_int_equal(in8(&rig, 0x702), 2 << 2);
	out8(&rig, 0x700, 0xff);
	assert_int_equal(in8(&rig, 0x700), 0);
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_mechanism), cmocka_unit_test(test_bars),       cmocka_unit_test(test_bar_rules),
	    cmocka_unit_test(test_smbus),     cmocka_unit_test(test_interrupts), cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),      cmocka_unit_test(test_corrupt),    cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
