/* The chips of a few registers: port 92h, F0h (FERR#), CF9h, the 8237As, debug ports, isa-debug-exit. */
#include "device_test.h"

#include "devices/debug_exit.h"
#include "devices/debug_ports.h"
#include "devices/dma_8237.h"
#include "devices/fpu_error.h"
#include "devices/port92.h"
#include "devices/reset_control_cf9.h"

#define A20   20
#define RESET 21
#define IRQ13 22
#define IGNNE 23

struct chips {
	struct port92 port92;
	struct fpu_error fpu;
	struct reset_control_cf9 cf9;
	struct dma_8237 dma;
	struct debug_ports debug;
	struct debug_exit exit;
	char text[64];
	unsigned length;
	uint32_t exit_value;
	unsigned exits;
};

static void put(void *owner, uint8_t byte)
{
	struct chips *chips = owner;

	chips->text[chips->length++ % sizeof chips->text] = byte;
}

static void leave(void *owner, uint32_t value)
{
	struct chips *chips = owner;

	chips->exit_value = value;
	chips->exits++;
}

static int make(struct rig *rig)
{
	struct chips *chips = rig->chip;

	reset_control_cf9_init(&chips->cf9, rig_wire(rig, RESET));
	/* 92h lies among the page registers' neighbours, not in them. */
	return dma_8237_init(&chips->dma, &rig->bus) ||
	       port92_init(&chips->port92, &rig->bus, rig_wire(rig, A20), rig_wire(rig, RESET)) ||
	       fpu_error_init(&chips->fpu, &rig->bus, rig_wire(rig, IRQ13), rig_wire(rig, IGNNE)) ||
	       bus_add_ports(&rig->bus, 0xcf9, 1, "cf9", &reset_control_cf9_ops, &chips->cf9) ||
	       debug_ports_init(&chips->debug, &rig->bus, put, chips) ||
	       debug_exit_init(&chips->exit, &rig->bus, leave, chips);
}

static void state(void *chip, struct state *state)
{
	struct chips *chips = chip;

	port92_state(&chips->port92, state);
	fpu_error_state(&chips->fpu, state);
	reset_control_cf9_state(&chips->cf9, state);
	dma_8237_state(&chips->dma, state);
}

static void reset(void *chip)
{
	struct chips *chips = chip;

	port92_reset(&chips->port92);
	fpu_error_reset(&chips->fpu);
	reset_control_cf9_reset(&chips->cf9);
	dma_8237_reset(&chips->dma);
}

static void check(struct rig *rig)
{
	struct chips *chips = rig->chip;

	assert_int_equal(chips->port92.value & ~3, 0);
	assert_false(rig->level[RESET]); /* pulsed, never held */
	assert_false(chips->fpu.ignne && !chips->fpu.ferr);
}

static const struct device_kind kind = {
    .name = "small chips",
    .size = sizeof(struct chips),
    .make = make,
    .state = state,
    .reset = reset,
    .check = check,
    .span = {{0x00, 16}, {0x80, 16}, {0xc0, 32}, {0x92, 1}, {0xf0, 1}, {0xcf9, 1}, {0x402, 1}, {0xe9, 1}, {0xf4, 4}},
};

DEVICE_TESTS(kind)

static void test_port92(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	assert_int_equal(in8(&rig, 0x92), 0x02);
	assert_true(rig.level[A20]);
	out8(&rig, 0x92, 0x00);
	assert_false(rig.level[A20]);
	out8(&rig, 0x92, 0xfe);
	assert_int_equal(in8(&rig, 0x92), 0x02);
	assert_true(rig.level[A20]);
	assert_int_equal(rig.rises[RESET], 0);
	out8(&rig, 0x92, 0x03);
	assert_int_equal(rig.rises[RESET], 1);
	out8(&rig, 0x92, 0x03); /* only 0 to 1 */
	assert_int_equal(rig.rises[RESET], 1);
	rig_unmake(&rig, &kind);
}

static void test_fpu_error(void **context)
{
	struct rig rig;
	struct fpu_error *fpu;

	rig_make(&rig, &kind);
	fpu = &((struct chips *)rig.chip)->fpu;
	/* Without an error the port does nothing. */
	out8(&rig, 0xf0, 0);
	assert_false(rig.level[IRQ13] || rig.level[IGNNE]);
	fpu_error_set(fpu, true);
	assert_true(rig.level[IRQ13]);
	assert_false(rig.level[IGNNE]);
	fpu_error_set(fpu, true);
	assert_int_equal(rig.rises[IRQ13], 1);
	out8(&rig, 0xf0, 0xff);
	assert_false(rig.level[IRQ13]);
	assert_true(rig.level[IGNNE]);
	assert_int_equal(in8(&rig, 0xf0), 0xff);
	fpu_error_set(fpu, false);
	assert_false(rig.level[IRQ13] || rig.level[IGNNE]);
	/* The latch outlives the pin. */
	fpu_error_set(fpu, true);
	fpu_error_set(fpu, false);
	assert_true(rig.level[IRQ13]);
	out8(&rig, 0xf0, 0);
	assert_false(rig.level[IRQ13] || rig.level[IGNNE]);
	assert_int_equal(rig.rises[IRQ13], 2);
	rig_unmake(&rig, &kind);
}

static void test_cf9(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	out8(&rig, 0xcf9, 0x02);
	assert_int_equal(rig.rises[RESET], 0);
	out8(&rig, 0xcf9, 0x06);
	assert_int_equal(rig.rises[RESET], 1);
	out8(&rig, 0xcf9, 0x0e);
	assert_int_equal(rig.rises[RESET], 2);
	rig_unmake(&rig, &kind);
}

static void test_dma(void **context)
{
	struct rig rig;

	rig_make(&rig, &kind);
	out8(&rig, 0x0c, 0); /* clear the flip-flop */
	out8(&rig, 0x04, 0x34);
	out8(&rig, 0x04, 0x12);
	out8(&rig, 0x05, 0xff);
	out8(&rig, 0x05, 0x01);
	assert_int_equal(in8(&rig, 0x04), 0x34);
	assert_int_equal(in8(&rig, 0x04), 0x12);
	assert_int_equal(in8(&rig, 0x05), 0xff);
	assert_int_equal(in8(&rig, 0x05), 0x01);
	assert_int_equal(in8(&rig, 0x0f), 0xff);
	out8(&rig, 0x0a, 0x02);
	assert_int_equal(in8(&rig, 0x0f), 0xfb);
	out8(&rig, 0x09, 0x05);
	assert_int_equal(in8(&rig, 0x08), 0x20);
	out8(&rig, 0x09, 0x06);
	out8(&rig, 0x09, 0x01);
	assert_int_equal(in8(&rig, 0x08), 0x40);
	out8(&rig, 0x0f, 0x05);
	assert_int_equal(in8(&rig, 0x0f), 0xf5);
	out8(&rig, 0x0e, 0);
	assert_int_equal(in8(&rig, 0x0f), 0xf0);
	out8(&rig, 0x00, 1); /* half a word, then master clear */
	out8(&rig, 0x0d, 0);
	out8(&rig, 0x00, 0x22);
	out8(&rig, 0x00, 0x11);
	assert_int_equal(in8(&rig, 0x00), 0x22);
	out8(&rig, 0x0c, 0);
	assert_int_equal(in8(&rig, 0x00), 0x22);
	assert_int_equal(in8(&rig, 0x00), 0x11);
	assert_int_equal(in8(&rig, 0x08), 0);
	assert_int_equal(in8(&rig, 0x0f), 0xff);
	/* The second chip's are two ports apart. */
	out8(&rig, 0xd8, 0);
	out8(&rig, 0xc4, 0x78);
	out8(&rig, 0xc4, 0x56);
	assert_int_equal(in8(&rig, 0xc4), 0x78);
	assert_int_equal(in8(&rig, 0xc5), 0x56);
	for (unsigned port = 0x80; port < 0x90; port++)
		out8(&rig, port, port ^ 0x5a);
	for (unsigned port = 0x80; port < 0x90; port++)
		assert_int_equal(in8(&rig, port), port ^ 0x5a);
	rig_unmake(&rig, &kind);
}

static void test_debug(void **context)
{
	struct rig rig;
	struct chips *chips;

	rig_make(&rig, &kind);
	chips = rig.chip;
	assert_int_equal(in8(&rig, 0x402), 0xe9);
	assert_int_equal(in8(&rig, 0xe9), 0xe9);
	out8(&rig, 0x402, 'h');
	out8(&rig, 0xe9, 'i');
	assert_string_equal(chips->text, "hi");
	bus_port_write(&rig.bus, 0xf4, 4, 0x12345678);
	assert_int_equal(chips->exit_value, 0x12345678);
	out8(&rig, 0xf4, 3);
	assert_int_equal(chips->exit_value, 3);
	assert_int_equal(chips->exits, 2);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_port92), cmocka_unit_test(test_fpu_error), cmocka_unit_test(test_cf9),
	    cmocka_unit_test(test_dma),    cmocka_unit_test(test_debug),     cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),   cmocka_unit_test(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
