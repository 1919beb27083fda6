/*
 * A 16550A serial port (NS PC16550D).
 *
 * Bytes leave at once: the transmit rate is not simulated. What the other side does not take waits in the transmit
 * FIFO. All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/bus.h"
#include "machine/clock.h"

#define SERIAL_16550_FIFO 16

struct chardev;
struct state;

/* The other end of the cable. */
struct serial_16550_peer {
	size_t (*write)(void *owner, const uint8_t *data, size_t length); /* returns how much it took */
	void (*accept_input)(void *owner);                                /* serial_16550_can_receive() has grown */
	void *owner;
};

struct serial_16550_fifo {
	uint8_t data[SERIAL_16550_FIFO];
	uint8_t error[SERIAL_16550_FIFO]; /* receive: LSR error bits of each byte */
	uint8_t head, count;
};

struct serial_16550 {
	struct serial_16550_fifo receive, transmit;
	uint8_t ier, fcr, lcr, mcr, lsr_errors, msr, scratch;
	uint16_t divisor;
	bool thre_interrupt;    /* the transmitter-empty interrupt is due */
	bool timeout_interrupt; /* the receive FIFO has been left alone for four characters */
	uint8_t polls;     /* LSR reads in a row that found nothing to do; at the limit, the guest is a polling one */
	uint8_t last_read; /* RBR shows it when there is nothing new */
	bool irq_level;

	struct irq_line irq;
	struct serial_16550_peer peer;
	struct clock *clock;
	struct timer timeout;
	unsigned index; /* COM number - 1, for saved state */
};

/* Claims 8 ports from `base`. No peer: output vanishes. 0 or -errno. */
int serial_16550_init(struct serial_16550 *serial, struct bus *bus, uint16_t base, unsigned index, struct clock *clock,
                      struct irq_line irq);
void serial_16550_connect(struct serial_16550 *serial, struct serial_16550_peer peer);
/* The same with a character back end, in both directions. */
void serial_16550_connect_chardev(struct serial_16550 *serial, struct chardev *chardev);
void serial_16550_reset(struct serial_16550 *serial);

/* From the peer. Bytes beyond serial_16550_can_receive() overrun, as on a real wire. */
size_t serial_16550_can_receive(void *owner);
void serial_16550_receive(void *owner, const uint8_t *data, size_t length);
void serial_16550_receive_break(struct serial_16550 *serial);
void serial_16550_writable(void *owner); /* write() would take more */

void serial_16550_state(struct serial_16550 *serial, struct state *state);
