#include "device_test.h"

#include "devices/serial_16550.h"

#define COM1 0x3f8
#define IRQ  4

/* The peer: takes `room` bytes, remembers the last ones. */
struct peer {
	size_t room;
	unsigned count;
	uint8_t taken[4096];
	unsigned accepts;
};

static size_t peer_write(void *owner, const uint8_t *data, size_t length)
{
	struct rig *rig = owner;
	struct peer *peer = rig->extra;
	size_t n = length < peer->room ? length : peer->room;

	for (size_t i = 0; i < n; i++) {
		peer->taken[peer->count++ % sizeof peer->taken] = data[i];
		rig_log(rig, data[i]);
	}
	peer->room -= n;
	return n;
}

static void peer_accept(void *owner)
{
	struct rig *rig = owner;

	((struct peer *)rig->extra)->accepts++;
	assert_true(serial_16550_can_receive(rig->chip) > 0);
}

static int make(struct rig *rig)
{
	struct peer *peer = calloc(1, sizeof *peer);
	int error = serial_16550_init(rig->chip, &rig->bus, COM1, 0, rig->clock, rig_wire(rig, IRQ));

	assert_non_null(peer);
	peer->room = SIZE_MAX / 2;
	rig->extra = peer;
	serial_16550_connect(rig->chip, (struct serial_16550_peer){peer_write, peer_accept, rig});
	return error;
}

static void unmake(struct rig *rig)
{
	free(rig->extra);
}

static void stimulate(struct rig *rig, struct random *random)
{
	struct peer *peer = rig->extra;
	uint8_t bytes[20];

	switch (random_below(random, 5)) {
	case 0:
		serial_16550_receive_break(rig->chip);
		break;
	case 1:
		peer->room = random_below(random, 2) ? 0 : 5;
		break;
	case 2:
		peer->room = 1000;
		serial_16550_writable(rig->chip);
		break;
	default:
		for (unsigned i = 0; i < sizeof bytes; i++)
			bytes[i] = random_next(random);
		rig_log(rig, serial_16550_can_receive(rig->chip));
		serial_16550_receive(rig->chip, bytes, random_below(random, sizeof bytes));
	}
}

static void check(struct rig *rig)
{
	struct serial_16550 *serial = rig->chip;

	assert_int_equal(serial->irq_level, rig->level[IRQ]);
	assert_in_range(serial->receive.count, 0, SERIAL_16550_FIFO);
	assert_in_range(serial->transmit.count, 0, SERIAL_16550_FIFO);
	assert_in_range(serial->receive.head, 0, SERIAL_16550_FIFO - 1);
	assert_in_range(serial->transmit.head, 0, SERIAL_16550_FIFO - 1);
	assert_in_range(serial_16550_can_receive(serial), 0, SERIAL_16550_FIFO);
}

/* The twin's peers must agree about their room: it is not the port's state. */
static void state(void *chip, struct state *state)
{
	struct serial_16550 *serial = chip;
	struct rig *rig = serial->peer.owner;

	((struct peer *)rig->extra)->room = 1000;
	serial_16550_state(serial, state);
}

static const struct device_kind kind = {
    .name = "serial-16550",
    .size = sizeof(struct serial_16550),
    .make = make,
    .unmake = unmake,
    .state = state,
    .reset = (void (*)(void *))serial_16550_reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{COM1, 8}},
};

DEVICE_TESTS(kind)

static uint8_t get(struct rig *rig, unsigned offset)
{
	return in8(rig, COM1 + offset);
}

static void put(struct rig *rig, unsigned offset, uint8_t value)
{
	out8(rig, COM1 + offset, value);
}

/* The tests by which Linux's 8250 driver finds a 16550A. */
static void test_linux_probe(void **context)
{
	struct rig rig;
	uint8_t iir;

	rig_make(&rig, &kind);
	put(&rig, 1, 0);
	assert_int_equal(get(&rig, 1) & 0x0f, 0);
	put(&rig, 1, 0xff);
	assert_int_equal(get(&rig, 1), 0x0f);
	put(&rig, 1, 0);
	put(&rig, 4, 0x1a);
	assert_int_equal(get(&rig, 6) & 0xf0, 0x90);
	put(&rig, 4, 0);
	put(&rig, 3, 0xbf); /* EFR of later chips: here the divisor, or FCR */
	put(&rig, 2, 0);
	put(&rig, 3, 0);
	put(&rig, 2, 1);
	assert_int_equal(get(&rig, 2) >> 6, 3);
	/* No 16750 with its 64-byte FIFO. */
	put(&rig, 3, 0x80);
	put(&rig, 2, 0x21);
	assert_int_equal(get(&rig, 2) >> 5 & 7, 6);
	put(&rig, 3, 0x03);
	/* The transmitter interrupt must be raised again when it is enabled again. */
	put(&rig, 1, 0);
	put(&rig, 1, 2);
	iir = get(&rig, 2);
	assert_int_equal(iir & 0x0f, 2);
	assert_int_equal(get(&rig, 2) & 0x0f, 1);
	put(&rig, 1, 0);
	put(&rig, 1, 2);
	assert_int_equal(get(&rig, 2) & 0x0f, 2);
	put(&rig, 7, 0x5a);
	assert_int_equal(get(&rig, 7), 0x5a);
	put(&rig, 3, 0x83);
	put(&rig, 0, 0x34);
	put(&rig, 1, 0x12);
	assert_int_equal(get(&rig, 0), 0x34);
	assert_int_equal(get(&rig, 1), 0x12);
	rig_unmake(&rig, &kind);
}

static void test_transmit(void **context)
{
	struct rig rig;
	struct peer *peer;

	rig_make(&rig, &kind);
	peer = rig.extra;
	put(&rig, 3, 3);
	put(&rig, 2, 1);
	assert_int_equal(get(&rig, 5), 0x60);
	put(&rig, 1, 2);
	assert_true(rig.level[IRQ]);
	assert_int_equal(get(&rig, 2), 0xc2);
	assert_false(rig.level[IRQ]);
	/* Each write takes the interrupt away and, the byte being gone at once, brings it again: an edge. */
	rig.rises[IRQ] = 0;
	for (unsigned i = 0; i < 16; i++)
		put(&rig, 0, 'a' + i);
	assert_int_equal(rig.rises[IRQ], 16);
	assert_memory_equal(peer->taken, "abcdefghijklmnop", 16);
	/* A peer that takes nothing: the FIFO fills, THRE and TEMT go. */
	get(&rig, 2);
	peer->room = 0;
	put(&rig, 0, 'x');
	assert_int_equal(get(&rig, 5), 0x00);
	assert_int_equal(get(&rig, 2), 0xc1);
	for (unsigned i = 0; i < 40; i++)
		put(&rig, 0, 'y');
	peer->room = 3;
	serial_16550_writable(rig.chip);
	assert_int_equal(get(&rig, 5), 0x00);
	peer->room = 100;
	serial_16550_writable(rig.chip);
	assert_int_equal(get(&rig, 5), 0x60);
	assert_int_equal(get(&rig, 2), 0xc2);
	assert_int_equal(peer->count, 16 + 16);
	/* Five data bits. */
	put(&rig, 3, 0);
	put(&rig, 0, 0xff);
	assert_int_equal(peer->taken[32], 0x1f);
	rig_unmake(&rig, &kind);
}

static void test_receive(void **context)
{
	static const uint8_t text[] = "0123456789abcdefgh";
	struct rig rig;

	rig_make(&rig, &kind);
	put(&rig, 3, 3);
	/* Nobody listens: the bytes stay with the peer. */
	assert_int_equal(serial_16550_can_receive(rig.chip), 0);
	put(&rig, 2, 0x81); /* trigger at 8 */
	put(&rig, 1, 5);
	assert_int_equal(serial_16550_can_receive(rig.chip), 16);
	serial_16550_receive(rig.chip, text, 7);
	assert_int_equal(get(&rig, 5), 0x61);
	assert_false(rig.level[IRQ]);
	serial_16550_receive(rig.chip, text + 7, 1);
	assert_true(rig.level[IRQ]);
	assert_int_equal(get(&rig, 2), 0xc4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(get(&rig, 0), text[i]);
	assert_false(rig.level[IRQ]);
	/* What is below the trigger level is told after four character times: 4.2 ms at 9600 baud. */
	clock_advance(rig.clock, 4000000);
	assert_false(rig.level[IRQ]);
	clock_advance(rig.clock, 200000);
	assert_true(rig.level[IRQ]);
	assert_int_equal(get(&rig, 2), 0xcc);
	assert_int_equal(get(&rig, 0), '4');
	assert_false(rig.level[IRQ]); /* and again, once it has been touched */
	clock_advance(rig.clock, 5000000);
	assert_int_equal(get(&rig, 2), 0xcc);
	for (unsigned i = 5; i < 8; i++)
		assert_int_equal(get(&rig, 0), text[i]);
	assert_int_equal(get(&rig, 5), 0x60);
	assert_false(rig.level[IRQ]);
	clock_advance(rig.clock, 1000000000);
	assert_false(rig.level[IRQ]);
	/* Overrun: the FIFO keeps its bytes, LSR tells it once, and the line status interrupt comes first. */
	serial_16550_receive(rig.chip, text, 18);
	assert_int_equal(get(&rig, 2), 0xc6);
	assert_int_equal(get(&rig, 5), 0x63);
	assert_int_equal(get(&rig, 5), 0x61);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(get(&rig, 0), text[i]);
	assert_int_equal(get(&rig, 5), 0x60);
	/* A break is a 0 byte with its bit, seen when it reaches the top. */
	serial_16550_receive(rig.chip, text, 1);
	serial_16550_receive_break(rig.chip);
	assert_int_equal(get(&rig, 5), 0xe1);
	assert_int_equal(get(&rig, 0), '0');
	assert_int_equal(get(&rig, 5), 0x71);
	assert_int_equal(get(&rig, 0), 0);
	/* FCR empties the FIFO. */
	serial_16550_receive(rig.chip, text, 9);
	put(&rig, 2, 0x83);
	assert_int_equal(get(&rig, 5), 0x60);
	assert_false(rig.level[IRQ]);
	/* Without FIFOs: one byte, and the next one overwrites it. */
	put(&rig, 2, 0);
	assert_int_equal(serial_16550_can_receive(rig.chip), 1);
	serial_16550_receive(rig.chip, text, 2);
	assert_int_equal(get(&rig, 2), 0x06);
	assert_int_equal(get(&rig, 5), 0x63);
	assert_int_equal(get(&rig, 0), '1');
	rig_unmake(&rig, &kind);
}

/* A polling guest gets its bytes too, but a driver's probe, which resets the FIFOs, does not lose any. */
static void test_who_listens(void **context)
{
	struct rig rig;
	struct peer *peer;

	rig_make(&rig, &kind);
	peer = rig.extra;
	for (unsigned i = 0; i < 100; i++) {
		get(&rig, 5);
		get(&rig, 5);
		put(&rig, 0, 'x');
	}
	assert_int_equal(serial_16550_can_receive(rig.chip), 0);
	assert_int_equal(peer->accepts, 0);
	for (unsigned i = 0; i < 30; i++)
		get(&rig, 5);
	assert_int_equal(serial_16550_can_receive(rig.chip), 1);
	assert_int_equal(peer->accepts, 1);
	put(&rig, 0, 'x'); /* echo: it still listens */
	assert_int_equal(serial_16550_can_receive(rig.chip), 1);
	put(&rig, 2, 7); /* a driver begins: it does not */
	assert_int_equal(serial_16550_can_receive(rig.chip), 0);
	put(&rig, 1, 1);
	assert_int_equal(peer->accepts, 2);
	assert_int_equal(serial_16550_can_receive(rig.chip), 16);
	put(&rig, 4, 0x10);
	assert_int_equal(serial_16550_can_receive(rig.chip), 0);
	rig_unmake(&rig, &kind);
}

static void test_loopback_and_modem(void **context)
{
	static const uint8_t byte = 'z';
	struct rig rig;

	rig_make(&rig, &kind);
	put(&rig, 3, 3);
	put(&rig, 2, 1);
	put(&rig, 1, 0x09);
	assert_int_equal(get(&rig, 6), 0xb0);
	put(&rig, 4, 0x10); /* all four outputs off: the inputs fall */
	assert_true(rig.level[IRQ]);
	assert_int_equal(get(&rig, 2), 0xc0);
	assert_int_equal(get(&rig, 6), 0x0b);
	assert_int_equal(get(&rig, 6), 0x00);
	assert_false(rig.level[IRQ]);
	put(&rig, 4, 0x14);
	assert_int_equal(get(&rig, 6), 0x40); /* ring: only its end is told */
	put(&rig, 4, 0x10);
	assert_int_equal(get(&rig, 6), 0x04);
	for (unsigned i = 0; i < 16; i++)
		put(&rig, 0, 0x40 + i);
	assert_int_equal(((struct peer *)rig.extra)->count, 0);
	put(&rig, 1, 0);
	serial_16550_receive(rig.chip, &byte, 1); /* disconnected */
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(get(&rig, 0), 0x40 + i);
	assert_int_equal(get(&rig, 5), 0x60);
	/* Out of the loop the peer's lines are there again, and their change is told. */
	put(&rig, 4, 0x0b);
	assert_int_equal(get(&rig, 6), 0xbb);
	assert_int_equal(get(&rig, 6), 0xb0);
	rig_unmake(&rig, &kind);
}

static void test_reset(void **context)
{
	device_reset(&kind, 200);
}

/* FreeBSD's driver measures the FIFO in loopback: 16 bytes fit, the 17th overruns. */
static void test_freebsd_probe(void **context)
{
	struct rig rig;
	unsigned count = 0;
	uint8_t lsr;

	rig_make(&rig, &kind);
	put(&rig, 2, 1);
	put(&rig, 4, 0x10);
	put(&rig, 2, 7);
	do {
		put(&rig, 0, 0);
		lsr = get(&rig, 5);
		assert_true(lsr & 0x40);
		count++;
	} while (!(lsr & 2) && count < 260);
	assert_int_equal(count - 1, 16);
	rig_unmake(&rig, &kind);
}

static void test_fcr(void **context)
{
	struct rig rig;
	struct peer *peer;

	rig_make(&rig, &kind);
	peer = rig.extra;
	put(&rig, 1, 1);
	put(&rig, 2, 1);
	serial_16550_receive(rig.chip, (const uint8_t *)"abc", 3);
	/* A new trigger level leaves the bytes alone; without bit 0 set nothing else counts. */
	put(&rig, 2, 0x41);
	assert_int_equal(get(&rig, 2), 0xc1);
	assert_int_equal(get(&rig, 0), 'a');
	put(&rig, 2, 0x05); /* the other FIFO */
	assert_int_equal(get(&rig, 0), 'b');
	put(&rig, 2, 0x06); /* FIFOs off: both are emptied */
	assert_int_equal(get(&rig, 5), 0x60);
	assert_int_equal(get(&rig, 2), 0x01);
	/* Emptying the transmitter makes it ready. */
	put(&rig, 2, 0x01);
	put(&rig, 1, 2);
	get(&rig, 2);
	peer->room = 0;
	put(&rig, 0, 'x');
	assert_int_equal(get(&rig, 2), 0xc1);
	put(&rig, 2, 0x05);
	assert_int_equal(get(&rig, 5), 0x60);
	assert_int_equal(get(&rig, 2), 0xc2);
	/* Already enabled: writing IER again raises nothing. */
	put(&rig, 1, 3);
	assert_int_equal(get(&rig, 2), 0xc1);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_linux_probe),
	    cmocka_unit_test(test_transmit),
	    cmocka_unit_test(test_receive),
	    cmocka_unit_test(test_who_listens),
	    cmocka_unit_test(test_loopback_and_modem),
	    cmocka_unit_test(test_freebsd_probe),
	    cmocka_unit_test(test_fcr),
	    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_twin),
	    cmocka_unit_test(test_corrupt),
	    cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
