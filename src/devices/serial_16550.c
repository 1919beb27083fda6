/*
 * 16550A UART (NS PC16550D data sheet; its section numbers are quoted).
 *
 * The interrupt line is derived from the registers by serial_update() after every change. OUT2 does not gate it, unlike
 * on an ISA card: guests written for emulators rely on that, and nothing that sets OUT2 can tell. DSR, CTS and DCD are
 * always on.
 */
#include "devices/serial_16550.h"

#include <string.h>

#include "backends/chardev/chardev.h"
#include "machine/state.h"

/* Offsets. */
#define RBR 0 /* THR, DLL */
#define IER 1 /* DLM */
#define IIR 2 /* FCR */
#define LCR 3
#define MCR 4
#define LSR 5
#define MSR 6
#define SCR 7

#define IER_RECEIVE 0x01u
#define IER_THRE    0x02u
#define IER_LINE    0x04u
#define IER_MODEM   0x08u

#define IIR_NONE    0x01u
#define IIR_MODEM   0x00u
#define IIR_THRE    0x02u
#define IIR_RECEIVE 0x04u
#define IIR_LINE    0x06u
#define IIR_TIMEOUT 0x0cu

#define FCR_ENABLE         0x01u
#define FCR_CLEAR_RECEIVE  0x02u
#define FCR_CLEAR_TRANSMIT 0x04u

#define LCR_DLAB 0x80u

#define MCR_DTR  0x01u
#define MCR_RTS  0x02u
#define MCR_OUT1 0x04u
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u

#define LSR_READY      0x01u
#define LSR_OVERRUN    0x02u
#define LSR_BREAK      0x10u
#define LSR_ERRORS     0x1eu
#define LSR_THRE       0x20u
#define LSR_TEMT       0x40u
#define LSR_FIFO_ERROR 0x80u

#define MSR_CTS 0x10u
#define MSR_DSR 0x20u
#define MSR_RI  0x40u
#define MSR_DCD 0x80u

/* So many idle LSR reads in a row are a guest that polls for input; drivers that poll for the transmitter make one or
 * two. */
#define POLLS_LISTENING 16

static unsigned fifo_depth(const struct serial_16550 *serial)
{
	return serial->fcr & FCR_ENABLE ? SERIAL_16550_FIFO : 1;
}

static void fifo_put(struct serial_16550_fifo *fifo, uint8_t byte, uint8_t error)
{
	unsigned tail = (fifo->head + fifo->count) % SERIAL_16550_FIFO;

	fifo->data[tail] = byte;
	fifo->error[tail] = error;
	fifo->count++;
}

static uint8_t fifo_get(struct serial_16550_fifo *fifo)
{
	uint8_t byte = fifo->data[fifo->head];

	fifo->head = (fifo->head + 1) % SERIAL_16550_FIFO;
	fifo->count--;
	return byte;
}

static unsigned trigger_level(const struct serial_16550 *serial)
{
	static const uint8_t level[4] = {1, 4, 8, 14};

	return serial->fcr & FCR_ENABLE ? level[serial->fcr >> 6] : 1;
}

/* The highest interrupt that is enabled and due (table III). */
static uint8_t interrupt_source(const struct serial_16550 *serial)
{
	if (serial->ier & IER_LINE && serial->lsr_errors)
		return IIR_LINE;
	if (serial->ier & IER_RECEIVE && serial->receive.count >= trigger_level(serial))
		return IIR_RECEIVE;
	if (serial->ier & IER_RECEIVE && serial->timeout_interrupt)
		return IIR_TIMEOUT;
	if (serial->ier & IER_THRE && serial->thre_interrupt)
		return IIR_THRE;
	if (serial->ier & IER_MODEM && serial->msr & 0x0f)
		return IIR_MODEM;
	return IIR_NONE;
}

static void serial_update(struct serial_16550 *serial)
{
	bool level = interrupt_source(serial) != IIR_NONE;

	if (level != serial->irq_level) {
		serial->irq_level = level;
		irq_line_set(&serial->irq, level);
	}
}

/* Four characters at the programmed rate: 16 times the divisor of 1.8432 MHz a bit (8.4). */
static uint64_t timeout_ns(const struct serial_16550 *serial)
{
	unsigned bits = 2 + 5 + (serial->lcr & 3) + (serial->lcr >> 2 & 1) + (serial->lcr >> 3 & 1);
	uint64_t divisor = serial->divisor ? serial->divisor : 0x10000;

	return 4 * bits * divisor * 16 * 1000000000u / 1843200;
}

/* The receive FIFO was touched: its time-out begins anew. */
static void restart_timeout(struct serial_16550 *serial)
{
	serial->timeout_interrupt = false;
	if (serial->fcr & FCR_ENABLE && serial->receive.count)
		timer_set(&serial->timeout, clock_now(serial->clock) + timeout_ns(serial));
	else
		timer_cancel(&serial->timeout);
}

static void timeout_expired(void *owner)
{
	struct serial_16550 *serial = owner;

	if (serial->fcr & FCR_ENABLE && serial->receive.count)
		serial->timeout_interrupt = true;
	serial_update(serial);
}

/* A byte's errors show in LSR when it reaches the top of the FIFO (8.6.3). */
static void reveal_top(struct serial_16550 *serial)
{
	struct serial_16550_fifo *fifo = &serial->receive;

	if (fifo->count) {
		serial->lsr_errors |= fifo->error[fifo->head];
		fifo->error[fifo->head] = 0;
	}
}

static void receive_byte(struct serial_16550 *serial, uint8_t byte, uint8_t error)
{
	struct serial_16550_fifo *fifo = &serial->receive;

	if (fifo->count >= fifo_depth(serial)) {
		serial->lsr_errors |= LSR_OVERRUN;
		if (!(serial->fcr & FCR_ENABLE)) /* the holding register is overwritten, a full FIFO is not (8.4) */
			fifo->data[fifo->head] = byte;
	} else {
		fifo_put(fifo, byte, error);
		reveal_top(serial);
	}
	restart_timeout(serial);
}

/* Hands the transmit FIFO to the peer. It ran empty: the interrupt is due. */
static void transmit(struct serial_16550 *serial)
{
	struct serial_16550_fifo *fifo = &serial->transmit;

	if (!fifo->count)
		return;
	while (fifo->count) {
		uint8_t byte = fifo->data[fifo->head];

		if (serial->mcr & MCR_LOOP)
			receive_byte(serial, byte, 0);
		else if (serial->peer.write && serial->peer.write(serial->peer.owner, &byte, 1) == 0)
			return;
		fifo_get(fifo);
	}
	serial->thre_interrupt = true;
}

static void write_thr(struct serial_16550 *serial, uint8_t value)
{
	static const uint8_t width_mask[4] = {0x1f, 0x3f, 0x7f, 0xff};

	serial->thre_interrupt = false;
	serial_update(serial);
	if (serial->transmit.count < fifo_depth(serial))
		fifo_put(&serial->transmit, value & width_mask[serial->lcr & 3], 0);
	transmit(serial);
}

static void accept_input(struct serial_16550 *serial)
{
	if (serial->peer.accept_input && serial_16550_can_receive(serial))
		serial->peer.accept_input(serial->peer.owner);
}

static uint8_t read_rbr(struct serial_16550 *serial)
{
	if (serial->receive.count) {
		serial->last_read = fifo_get(&serial->receive);
		reveal_top(serial);
		restart_timeout(serial);
		serial_update(serial);
		accept_input(serial);
	}
	return serial->last_read; /* empty: the last one again */
}

static uint8_t read_iir(struct serial_16550 *serial)
{
	uint8_t source = interrupt_source(serial);

	if (source == IIR_THRE)
		serial->thre_interrupt = false;
	return source | (serial->fcr & FCR_ENABLE ? 0xc0 : 0);
}

/* The guest does something else than to wait for input. Once it is known to poll, only a new set-up changes that. */
static void not_a_poll(struct serial_16550 *serial)
{
	if (serial->polls < POLLS_LISTENING)
		serial->polls = 0;
}

static uint8_t read_lsr(struct serial_16550 *serial)
{
	uint8_t value = serial->lsr_errors;

	if (serial->receive.count)
		value |= LSR_READY;
	if (!serial->transmit.count)
		value |= LSR_THRE | LSR_TEMT;
	for (unsigned i = 0; serial->fcr & FCR_ENABLE && i < serial->receive.count; i++)
		if (serial->receive.error[(serial->receive.head + i) % SERIAL_16550_FIFO])
			value |= LSR_FIFO_ERROR;
	serial->lsr_errors = 0;
	if (serial->receive.count || serial->transmit.count)
		not_a_poll(serial);
	else if (serial->polls < POLLS_LISTENING && ++serial->polls == POLLS_LISTENING)
		accept_input(serial);
	return value;
}

/* The modem lines: in loopback the outputs, twisted around (8.6.7); else a peer that is always ready. */
static void update_modem(struct serial_16550 *serial)
{
	uint8_t lines = MSR_CTS | MSR_DSR | MSR_DCD, changed;

	if (serial->mcr & MCR_LOOP)
		lines = (serial->mcr & MCR_RTS ? MSR_CTS : 0) | (serial->mcr & MCR_DTR ? MSR_DSR : 0) |
		        (serial->mcr & MCR_OUT1 ? MSR_RI : 0) | (serial->mcr & MCR_OUT2 ? MSR_DCD : 0);
	changed = (serial->msr ^ lines) & 0xf0;
	if (lines & MSR_RI)
		changed &= ~MSR_RI; /* only its trailing edge counts */
	serial->msr = lines | (serial->msr & 0x0f) | changed >> 4;
}

static void write_fcr(struct serial_16550 *serial, uint8_t value)
{
	bool toggled = (serial->fcr ^ value) & FCR_ENABLE;

	/* Other bits count only together with bit 0, which empties both FIFOs when it changes (8.5). */
	serial->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
	if (toggled || (value & FCR_ENABLE && value & FCR_CLEAR_RECEIVE)) {
		serial->receive = (struct serial_16550_fifo){0};
		restart_timeout(serial);
	}
	if ((toggled || (value & FCR_ENABLE && value & FCR_CLEAR_TRANSMIT)) && serial->transmit.count) {
		serial->transmit = (struct serial_16550_fifo){0};
		serial->thre_interrupt = true;
	}
}

static void write_ier(struct serial_16550 *serial, uint8_t value)
{
	uint8_t old = serial->ier;

	serial->ier = value & 0x0f;
	/* Enabling it while THR is empty raises it at once; drivers test for this. */
	if (serial->ier & ~old & IER_THRE)
		serial->thre_interrupt = !serial->transmit.count;
}

static uint64_t serial_read(void *device, uint64_t offset, unsigned size)
{
	struct serial_16550 *serial = device;
	uint8_t value = 0;

	if (offset != LSR && offset != RBR)
		not_a_poll(serial);
	switch (offset) {
	case RBR:
		value = serial->lcr & LCR_DLAB ? serial->divisor & 0xff : read_rbr(serial);
		break;
	case IER:
		value = serial->lcr & LCR_DLAB ? serial->divisor >> 8 : serial->ier;
		break;
	case IIR:
		value = read_iir(serial);
		break;
	case LCR:
		value = serial->lcr;
		break;
	case MCR:
		value = serial->mcr;
		break;
	case LSR:
		value = read_lsr(serial);
		break;
	case MSR:
		value = serial->msr;
		serial->msr &= 0xf0;
		break;
	case SCR:
		value = serial->scratch;
		break;
	}
	serial_update(serial);
	return value;
}

static void serial_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct serial_16550 *serial = device;

	if (offset == RBR || offset == SCR)
		not_a_poll(serial);
	else
		serial->polls = 0;
	switch (offset) {
	case RBR:
		if (serial->lcr & LCR_DLAB)
			serial->divisor = (serial->divisor & 0xff00) | value;
		else
			write_thr(serial, value);
		break;
	case IER:
		if (serial->lcr & LCR_DLAB)
			serial->divisor = (serial->divisor & 0xff) | value << 8;
		else
			write_ier(serial, value);
		break;
	case IIR:
		write_fcr(serial, value);
		break;
	case LCR:
		serial->lcr = value;
		break;
	case MCR:
		serial->mcr = value & 0x1f;
		update_modem(serial);
		transmit(serial); /* what a slow peer left goes round in loopback */
		break;
	case SCR:
		serial->scratch = value;
		break;
	}
	serial_update(serial);
	if (offset == IER || offset == IIR || offset == MCR)
		accept_input(serial);
}

static const struct bus_ops serial_ops = {.read = serial_read, .write = serial_write};

/*
 * Input stays with the peer until somebody listens: receive interrupts on, or the guest polling. Otherwise the first
 * bytes of piped input would be lost in the FIFO resets of the drivers' probes, as no RTS handshake guards them.
 */
size_t serial_16550_can_receive(void *owner)
{
	struct serial_16550 *serial = owner;

	if (serial->mcr & MCR_LOOP || (!(serial->ier & IER_RECEIVE) && serial->polls < POLLS_LISTENING))
		return 0;
	return fifo_depth(serial) -
	       (serial->receive.count < fifo_depth(serial) ? serial->receive.count : fifo_depth(serial));
}

void serial_16550_receive(void *owner, const uint8_t *data, size_t length)
{
	struct serial_16550 *serial = owner;

	if (serial->mcr & MCR_LOOP)
		return; /* the pin is disconnected */
	for (size_t i = 0; i < length; i++)
		receive_byte(serial, data[i], 0);
	serial_update(serial);
}

void serial_16550_receive_break(struct serial_16550 *serial)
{
	if (serial->mcr & MCR_LOOP)
		return;
	receive_byte(serial, 0, LSR_BREAK);
	serial_update(serial);
}

void serial_16550_writable(void *owner)
{
	struct serial_16550 *serial = owner;

	transmit(serial);
	serial_update(serial);
}

int serial_16550_init(struct serial_16550 *serial, struct bus *bus, uint16_t base, unsigned index, struct clock *clock,
                      struct irq_line irq)
{
	static const char *const name[4] = {"serial-16550 com1", "serial-16550 com2", "serial-16550 com3",
	                                    "serial-16550 com4"};

	memset(serial, 0, sizeof *serial);
	serial->index = index;
	serial->irq = irq;
	serial->clock = clock;
	timer_init(&serial->timeout, clock, timeout_expired, serial);
	serial_16550_reset(serial);
	return bus_add_ports(bus, base, 8, index < 4 ? name[index] : "serial-16550", &serial_ops, serial);
}

void serial_16550_connect(struct serial_16550 *serial, struct serial_16550_peer peer)
{
	serial->peer = peer;
}

static size_t chardev_take(void *owner, const uint8_t *data, size_t length)
{
	return chardev_write(owner, data, length);
}

static void chardev_more(void *owner)
{
	chardev_accept_input(owner);
}

static void chardev_break(void *owner)
{
	serial_16550_receive_break(owner);
}

void serial_16550_connect_chardev(struct serial_16550 *serial, struct chardev *chardev)
{
	struct chardev_client client = {.can_receive = serial_16550_can_receive,
	                                .receive = serial_16550_receive,
	                                .writable = serial_16550_writable,
	                                .receive_break = chardev_break,
	                                .owner = serial};

	serial_16550_connect(serial, (struct serial_16550_peer){chardev_take, chardev_more, chardev});
	chardev_connect(chardev, &client);
}

/* Master reset (table II); the divisor and scratch registers keep what they hold, here a fresh chip's 9600 baud. */
void serial_16550_reset(struct serial_16550 *serial)
{
	timer_cancel(&serial->timeout);
	serial->receive = serial->transmit = (struct serial_16550_fifo){0};
	serial->ier = serial->fcr = serial->lcr = serial->mcr = serial->lsr_errors = serial->scratch = 0;
	serial->msr = MSR_CTS | MSR_DSR | MSR_DCD;
	serial->divisor = 12;
	serial->thre_interrupt = serial->timeout_interrupt = false;
	serial->polls = serial->last_read = 0;
	serial_update(serial);
}

static void fifo_state(struct serial_16550_fifo *fifo, struct state *state, const char *data, const char *error,
                       const char *count)
{
	/* Saved from the head on, so that no index is in the stream. */
	struct serial_16550_fifo straight = {.count = fifo->count};

	for (unsigned i = 0; i < fifo->count; i++) {
		straight.data[i] = fifo->data[(fifo->head + i) % SERIAL_16550_FIFO];
		straight.error[i] = fifo->error[(fifo->head + i) % SERIAL_16550_FIFO];
	}
	state_u8_array(state, data, straight.data, SERIAL_16550_FIFO);
	state_u8_array(state, error, straight.error, SERIAL_16550_FIFO);
	state_u8(state, count, &straight.count);
	if (straight.count > SERIAL_16550_FIFO)
		state_fail(state, "FIFO count out of range");
	if (!state_loading(state) || state_error(state))
		return;
	for (unsigned i = 0; i < SERIAL_16550_FIFO; i++)
		straight.error[i] &= LSR_ERRORS;
	*fifo = straight;
}

void serial_16550_state(struct serial_16550 *serial, struct state *state)
{
	state_begin(state, "serial-16550", serial->index, 1);
	fifo_state(&serial->receive, state, "receive", "receive-errors", "receive-count");
	fifo_state(&serial->transmit, state, "transmit", "transmit-errors", "transmit-count");
	state_u8(state, "ier", &serial->ier);
	state_u8(state, "fcr", &serial->fcr);
	state_u8(state, "lcr", &serial->lcr);
	state_u8(state, "mcr", &serial->mcr);
	state_u8(state, "lsr-errors", &serial->lsr_errors);
	state_u8(state, "msr", &serial->msr);
	state_u8(state, "scratch", &serial->scratch);
	state_u16(state, "divisor", &serial->divisor);
	state_bool(state, "thre-interrupt", &serial->thre_interrupt);
	state_bool(state, "timeout-interrupt", &serial->timeout_interrupt);
	state_u8(state, "polls", &serial->polls);
	state_u8(state, "last-read", &serial->last_read);
	timer_state(&serial->timeout, state, "timeout");
	serial->ier &= 0x0f;
	serial->fcr &= 0xc9;
	serial->mcr &= 0x1f;
	serial->lsr_errors &= LSR_ERRORS;
	if (serial->polls > POLLS_LISTENING)
		serial->polls = POLLS_LISTENING;
	state_end(state);
	if (state_loading(state)) {
		serial->irq_level = interrupt_source(serial) != IIR_NONE;
		irq_line_set(&serial->irq, serial->irq_level);
	}
}
