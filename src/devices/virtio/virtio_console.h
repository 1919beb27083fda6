/*
 * Virtio console (virtio 1.2 5.3): consoles and named byte channels to the host ("ports"), each on a character back end.
 *
 * Queues: port 0 receive 0 and transmit 1; control receive 2 and transmit 3; port n receive 2n + 2 and transmit 2n + 3. A driver without
 * MULTIPORT has port 0 alone, which is open always.
 *
 * What the driver has still to be told of a port is a set of bits, from which messages are made when there are buffers for
 * them: however long a driver does not listen, nothing piles up. Input waits in a small FIFO in front of each port, output that the
 * back end does not take in the ring.
 *
 * Locks: the back ends demand the device lock, so everything here runs with it (virtio_ops.device_lock).
 */
#pragma once

#include "devices/virtio/virtio_device.h"

#define VIRTIO_CONSOLE_PORTS_MAX 8
#define VIRTIO_CONSOLE_FIFO      4096
#define VIRTIO_CONSOLE_NAME      32

struct chardev;
struct virtio_console;

/* The other end of a port's cable. */
struct virtio_console_peer {
	size_t (*write)(void *owner, const uint8_t *data, size_t length); /* returns how much it took */
	void (*accept_input)(void *owner);                                /* can_receive has grown; may be NULL */
	void *owner;
};

struct virtio_console_port {
	struct virtio_console *console;
	unsigned number;
	bool is_console;
	char name[VIRTIO_CONSOLE_NAME]; /* of a channel: /dev/virtio-ports/NAME in a guest; "": none */
	struct virtio_console_peer peer;
	/* Queue lock. */
	bool host_open, guest_open;
	bool guest_ready;     /* PORT_READY has come */
	uint8_t tell;         /* messages that the driver has not got yet: a bit each */
	uint32_t output_done; /* bytes of the first chain waiting to be sent that the peer has taken */
	uint16_t head, count; /* of the FIFO */
	uint8_t fifo[VIRTIO_CONSOLE_FIFO];
};

struct virtio_console {
	struct virtio_device device; /* first */
	unsigned port_count;
	bool driver_ready; /* DEVICE_READY has come */
	uint16_t columns, rows;
	struct virtio_console_port port[VIRTIO_CONSOLE_PORTS_MAX];
	uint8_t config[12]; /* 5.3.4 */
	struct virtio_chain chain;
};

/* With `ports` ports, 1 to 8; port 0 is a console. 0 or -errno. */
int virtio_console_init(struct virtio_console *console, const struct virtio_host *host, unsigned instance,
                        unsigned ports);
void virtio_console_destroy(struct virtio_console *console);

/* Before the machine runs. `name`: of a channel; NULL: it is a console, too. A port without a peer swallows its output. */
void virtio_console_connect(struct virtio_console *console, unsigned port, const char *name,
                            struct virtio_console_peer peer);
void virtio_console_connect_chardev(struct virtio_console *console, unsigned port, const char *name,
                                    struct chardev *chardev);

/* From the peer, with the device lock. `owner` is the port. */
size_t virtio_console_can_receive(void *owner);
void virtio_console_receive(void *owner, const uint8_t *data, size_t length);
void virtio_console_writable(void *owner);
/* Somebody has come to the other end, or gone. */
void virtio_console_set_open(struct virtio_console *console, unsigned port, bool open);
/* The terminal's size. */
void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows);
