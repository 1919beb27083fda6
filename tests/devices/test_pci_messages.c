/* MSI, MSI-X, ECAM, and the places that BARs get without firmware. */
#include "device_test.h"

#include <pthread.h>
#include <errno.h>

#include "devices/pci/msi.h"
#include "devices/pci/msix.h"
#include "devices/pci/pci.h"

#define ECAM    0xe0000000ull
#define VECTORS 70
#define DEVFN   PCI_DEVFN(3, 0)

struct board {
	struct pci_root root;
	struct pci_function card; /* MSI-X */
	struct pci_function other;
	struct pci_msix msix;
	struct pci_msi msi;
	uint64_t address;
	uint32_t data;
	_Atomic unsigned messages;
	uint64_t registers;
};

static void message(void *owner, uint64_t address, uint32_t data)
{
	struct board *board = owner;

	board->address = address;
	board->data = data;
	board->messages++;
}

static uint64_t card_read(void *device, uint64_t offset, unsigned size)
{
	return *(uint64_t *)device;
}

static void card_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	*(uint64_t *)device = value;
}

static const struct bus_ops card_ops = {.read = card_read, .write = card_write, .max_size = 8};

static int make(struct rig *rig)
{
	struct board *board = rig->chip;

	if (pci_root_init(&board->root, &rig->bus, NULL, NULL) || pci_root_add_ecam(&board->root, ECAM))
		return -1;
	pci_root_set_message(&board->root, message, board);
	pci_function_init(&board->card, "card", 0x1af4, 0x1041, 1, 0x020000);
	pci_set_interrupt_pin(&board->card, 1);
	pci_function_init(&board->other, "other", 0x1af4, 0x1042, 1, 0x010000);
	pci_set_interrupt_pin(&board->other, 1);
	if (pci_msix_init(&board->msix, &board->card, 1, VECTORS) || pci_msi_init(&board->msi, &board->other, 4) ||
	    pci_add_bar(&board->card, 4, PCI_BAR_MEMORY64, true, 1 << 14, &card_ops, &board->registers) ||
	    pci_add_bar(&board->card, 0, PCI_BAR_IO, false, 64, &card_ops, &board->registers) ||
	    pci_add_bar(&board->other, 2, PCI_BAR_MEMORY64, true, 1ull << 33, &card_ops, &board->registers))
		return -1;
	return pci_add_function(&board->root, &board->card, DEVFN) ||
	               pci_add_function(&board->root, &board->other, PCI_DEVFN(4, 0))
	           ? -1
	           : 0;
}

static void unmake(struct rig *rig)
{
	struct board *board = rig->chip;

	pci_msix_destroy(&board->msix);
	pci_msi_destroy(&board->msi);
}

static void state(void *chip, struct state *state)
{
	struct board *board = chip;

	board->registers = 7;
	pci_set_intx(&board->card, true);
	pci_set_intx(&board->other, true);
	pci_root_state(&board->root, state);
	pci_msix_state(&board->msix, state);
	pci_msi_state(&board->msi, state);
}

static void reset(void *chip)
{
	pci_root_reset(&((struct board *)chip)->root);
}

static void assign(struct board *board)
{
	const struct pci_windows windows = {.io = 0xc000,
	                                    .io_end = 0x10000,
	                                    .memory = 0xf0000000,
	                                    .memory_end = 0xf8000000,
	                                    .memory64 = 0x4000000000,
	                                    .memory64_end = 0x8000000000,
	                                    .pirq = {10, 10, 11, 11}};

	pci_root_assign(&board->root, &windows);
}

static void stimulate(struct rig *rig, struct random *random)
{
	static const uint16_t command[] = {0, 6, 7, 2, 0x406, 4};
	struct board *board = rig->chip;
	struct pci_function *function = random_below(random, 2) ? &board->card : &board->other;

	switch (random_below(random, 6)) {
	case 0:
		pci_config_write(&board->root, function->devfn, PCI_COMMAND, 2, command[random_below(random, 6)]);
		break;
	case 1:
		pci_config_write(&board->root, DEVFN, board->msix.capability + 2, 2, random_next(random));
		break;
	case 2:
		pci_config_write(&board->root, PCI_DEVFN(4, 0), board->msi.capability + 4 * random_below(random, 5), 4,
		                 random_next(random));
		break;
	case 3:
		assign(board);
		break;
	default:
		pci_msix_raise(&board->msix, random_below(random, VECTORS + 2));
		pci_msi_raise(&board->msi, random_next(random));
	}
	rig_log(rig, pci_config_read(&board->root, PCI_DEVFN(4, 0), board->msi.capability + 20, 4));
	rig_log(rig, bus_mmio_read(&rig->bus, 0xf0000000 + random_below(random, 4096), 4));
}

static void check(struct rig *rig)
{
	struct board *board = rig->chip;

	assert_true(!board->messages || board->address >> 20 == 0xfee);
	assert_true(!(pci_msix_enabled(&board->msix) && board->card.intx_driven));
	assert_true(!(pci_msi_enabled(&board->msi) && board->other.intx_driven));
	assert_int_equal(board->msix.pending[VECTORS / 64] >> VECTORS % 64, 0);
	assert_int_equal(board->msi.pending >> 4, 0);
}

static const struct device_kind kind = {
    .name = "pci messages",
    .size = sizeof(struct board),
    .make = make,
    .unmake = unmake,
    .state = state,
    .reset = reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{0xcf8, 8}, {0xf0000000, 4096, true}, {ECAM + (DEVFN << 12), 4096, true}, {ECAM, 1 << 20, true}},
};

DEVICE_TESTS(kind)

static uint64_t entry(unsigned vector)
{
	return 0xf0000000 + 16 * vector;
}

static void enable(struct board *board, uint16_t control, uint16_t command)
{
	pci_config_write(&board->root, DEVFN, board->msix.capability + 2, 2, control);
	pci_config_write(&board->root, DEVFN, PCI_COMMAND, 2, command);
}

static void test_msix(void **context)
{
	struct rig rig;
	struct board *board;

	rig_make(&rig, &kind);
	board = rig.chip;
	assign(board);
	assert_int_equal(board->card.bar[1].base, 0xf0000000);
	unsigned at = pci_config_read(&board->root, DEVFN, PCI_CAPABILITIES, 1);
	assert_int_equal(pci_config_read(&board->root, DEVFN, at, 1), 0x11);
	assert_int_equal(pci_config_read(&board->root, DEVFN, at + 2, 2), VECTORS - 1);
	assert_int_equal(pci_config_read(&board->root, DEVFN, at + 4, 4), 1);
	assert_int_equal(pci_config_read(&board->root, DEVFN, at + 8, 4), 0x801);
	/* All masked after reset. */
	for (unsigned i = 0; i < VECTORS; i++)
		assert_int_equal(bus_mmio_read(&rig.bus, entry(i) + 12, 4), 1);
	bus_mmio_write(&rig.bus, entry(65), 8, 0xfee01000);
	bus_mmio_write(&rig.bus, entry(65) + 8, 4, 0x4041);
	/* Off: nothing is sent, and INTx works. */
	pci_set_intx(&board->card, true);
	assert_true(board->card.intx_driven);
	pci_msix_raise(&board->msix, 65);
	enable(board, 0x8000, 6);
	assert_false(board->card.intx_driven);
	assert_int_equal(board->messages, 0);
	/* Masked: pending, sent when unmasked. */
	pci_msix_raise(&board->msix, 65);
	assert_int_equal(board->messages, 0);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xf0000808, 8), 2);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xf0000808, 1), 2);
	bus_mmio_write(&rig.bus, entry(65) + 12, 4, 0);
	assert_int_equal(board->messages, 1);
	assert_int_equal(board->address, 0xfee01000);
	assert_int_equal(board->data, 0x4041);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xf0000808, 4), 0);
	pci_msix_raise(&board->msix, 65);
	assert_int_equal(board->messages, 2);
	/* Function mask; many raises are one. */
	enable(board, 0xc000, 6);
	for (unsigned i = 0; i < 5; i++)
		pci_msix_raise(&board->msix, 65);
	assert_int_equal(board->messages, 2);
	enable(board, 0x8000, 6);
	assert_int_equal(board->messages, 3);
	/* No bus mastering. */
	enable(board, 0x8000, 2);
	pci_msix_raise(&board->msix, 65);
	assert_int_equal(board->messages, 3);
	enable(board, 0x8000, 6);
	assert_int_equal(board->messages, 4);
	/* Out of range; a message to somewhere else. */
	pci_msix_raise(&board->msix, VECTORS);
	pci_msix_raise(&board->msix, ~0u);
	bus_mmio_write(&rig.bus, entry(65) + 4, 4, 1);
	pci_msix_raise(&board->msix, 65);
	bus_mmio_write(&rig.bus, entry(65), 8, 0x1000);
	pci_msix_raise(&board->msix, 65);
	assert_int_equal(board->messages, 4);
	/* Narrow writes are ignored; the pending bits are read-only. */
	bus_mmio_write(&rig.bus, entry(65), 2, 0xffff);
	assert_int_equal(bus_mmio_read(&rig.bus, entry(65), 4), 0x1000);
	bus_mmio_write(&rig.bus, 0xf0000800, 8, ~0ull);
	assert_int_equal(bus_mmio_read(&rig.bus, 0xf0000800, 8), 0);
	reset(rig.chip);
	assert_false(pci_msix_enabled(&board->msix));
	rig_unmake(&rig, &kind);
}

static void test_msi(void **context)
{
	const unsigned devfn = PCI_DEVFN(4, 0);
	struct rig rig;
	struct board *board;
	unsigned at;

	rig_make(&rig, &kind);
	board = rig.chip;
	at = board->msi.capability;
	assert_int_equal(pci_config_read(&board->root, devfn, at, 1), 5);
	assert_int_equal(pci_config_read(&board->root, devfn, at + 2, 2), 0x184);
	pci_config_write(&board->root, devfn, PCI_COMMAND, 2, 4);
	pci_config_write(&board->root, devfn, at + 4, 4, 0xfee00000);
	pci_config_write(&board->root, devfn, at + 12, 2, 0x43);
	pci_config_write(&board->root, devfn, at + 2, 2, 0x11); /* on, two vectors */
	pci_msi_raise(&board->msi, 1);
	assert_int_equal(board->data, 0x43);
	pci_msi_raise(&board->msi, 2);
	assert_int_equal(board->data, 0x42);
	assert_int_equal(board->messages, 2);
	pci_config_write(&board->root, devfn, at + 16, 4, 3);
	pci_msi_raise(&board->msi, 1);
	assert_int_equal(board->messages, 2);
	assert_int_equal(pci_config_read(&board->root, devfn, at + 20, 4), 2);
	pci_config_write(&board->root, devfn, at + 16, 4, 1);
	assert_int_equal(board->messages, 3);
	assert_int_equal(pci_config_read(&board->root, devfn, at + 20, 4), 0);
	/* More granted than offered. */
	pci_config_write(&board->root, devfn, at + 16, 4, 0);
	pci_config_write(&board->root, devfn, at + 2, 2, 0x71);
	pci_msi_raise(&board->msi, 31);
	assert_int_equal(board->data, 0x43);
	reset(rig.chip);
	assert_false(pci_msi_enabled(&board->msi));
	assert_int_equal(pci_config_read(&board->root, devfn, at + 4, 4), 0);
	rig_unmake(&rig, &kind);
}

static void test_ecam(void **context)
{
	struct rig rig;
	struct board *board;

	rig_make(&rig, &kind);
	board = rig.chip;
	uint64_t base = ECAM + (DEVFN << 12);
	assert_int_equal(bus_mmio_read(&rig.bus, base, 4), 0x10411af4);
	assert_int_equal(bus_mmio_read(&rig.bus, base + 2, 2), 0x1041);
	assert_true(bus_mmio_read(&rig.bus, base, 8) == (0x10411af4 | (uint64_t)pci_get(&board->card, 4, 4) << 32));
	assert_int_equal(bus_mmio_read(&rig.bus, base + 0x100, 4), 0xffffffff);
	assert_int_equal(bus_mmio_read(&rig.bus, base + 0x1000, 4), 0xffffffff);
	assert_int_equal(bus_mmio_read(&rig.bus, ECAM, 4), 0xffffffff);
	bus_mmio_write(&rig.bus, base + PCI_INTERRUPT_LINE, 1, 9);
	assert_int_equal(board->card.config[PCI_INTERRUPT_LINE], 9);
	bus_mmio_write(&rig.bus, base + 0x100 + PCI_INTERRUPT_LINE, 1, 5);
	bus_mmio_write(&rig.bus, base + 0x1000, 4, 5);
	assert_int_equal(board->card.config[PCI_INTERRUPT_LINE], 9);
	/* The last function's last byte, and past the end. */
	bus_mmio_write(&rig.bus, ECAM + 0xfffff, 4, 0);
	assert_int_equal(bus_mmio_read(&rig.bus, ECAM + 0x100000, 4), 0xffffffff);
	rig_unmake(&rig, &kind);
}

static void test_assign(void **context)
{
	struct rig rig;
	struct board *board;

	rig_make(&rig, &kind);
	board = rig.chip;
	assign(board);
	assert_true(board->card.bar[0].mapped && board->card.bar[1].mapped && board->card.bar[4].mapped);
	assert_int_equal(board->card.bar[0].base, 0xc000);
	assert_int_equal(board->card.bar[4].base, 0xf0004000);
	assert_true(board->other.bar[2].mapped);
	assert_true(board->other.bar[2].base == 0x4000000000);
	assert_int_equal(board->card.config[PCI_INTERRUPT_LINE], 11);
	bus_mmio_write(&rig.bus, 0x41fffffff8, 8, 77);
	assert_int_equal(board->registers, 77);
	rig_unmake(&rig, &kind);
}

static void *raiser(void *owner)
{
	struct board *board = owner;

	for (unsigned i = 0; i < 20000; i++)
		pci_msix_raise(&board->msix, 3);
	return NULL;
}

/* Nothing is sent after the write of a mask has returned, and nothing is lost. */
static void test_race(void **context)
{
	struct rig rig;
	struct board *board;
	pthread_t thread;

	rig_make(&rig, &kind);
	board = rig.chip;
	assign(board);
	bus_mmio_write(&rig.bus, entry(3), 8, 0xfee00000);
	enable(board, 0x8000, 6);
	assert_int_equal(pthread_create(&thread, NULL, raiser, board), 0);
	for (unsigned i = 0; i < 2000; i++) {
		bus_mmio_write(&rig.bus, entry(3) + 12, 4, 0);
		bus_mmio_write(&rig.bus, entry(3) + 12, 4, 1);
		unsigned before = board->messages;
		bus_mmio_read(&rig.bus, entry(3), 4);
		assert_int_equal(board->messages, before);
	}
	pthread_join(thread, NULL);
	pci_msix_raise(&board->msix, 3);
	unsigned before = board->messages;
	bus_mmio_write(&rig.bus, entry(3) + 12, 4, 0);
	assert_int_equal(board->messages, before + 1);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_msix),   cmocka_unit_test(test_msi),     cmocka_unit_test(test_ecam),
	    cmocka_unit_test(test_assign), cmocka_unit_test(test_race),    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),   cmocka_unit_test(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
