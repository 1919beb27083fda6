#include "devices/virtio/virtio_console.h"

#include <errno.h>
#include <string.h>

#include "backends/chardev/chardev.h"
#include "machine/state.h"

#define DEVICE_ID  3
#define CLASS_CODE 0x078000
#define QUEUE_SIZE 64
#define SHARE      64u /* chains sent before others have their turn */
#define BLOCK      4096u
#define BYTES_MAX  (256u << 10) /* sent before others have their turn */

#define F_SIZE        (1ull << 0)
#define F_MULTIPORT   (1ull << 1)
#define F_EMERG_WRITE (1ull << 2)

/* Offsets in the configuration space (5.3.4). */
enum { CONFIG_COLUMNS = 0, CONFIG_ROWS = 2, CONFIG_PORTS = 4, CONFIG_EMERGENCY = 8 };

/* Control messages (5.3.6.2). */
enum {
	EVENT_DEVICE_READY,
	EVENT_PORT_ADD,
	EVENT_PORT_REMOVE,
	EVENT_PORT_READY,
	EVENT_CONSOLE_PORT,
	EVENT_RESIZE,
	EVENT_PORT_OPEN,
	EVENT_PORT_NAME,
	EVENT_COUNT,
};

#define QUEUE_CONTROL_IN  2u
#define QUEUE_CONTROL_OUT 3u

struct message {
	uint32_t port;
	uint16_t event, value;
};

static struct virtio_queue *input_queue(struct virtio_console_port *port)
{
	return &port->console->device.queue[port->number ? 2 * port->number + 2 : 0];
}

static struct virtio_queue *output_queue(struct virtio_console_port *port)
{
	return input_queue(port) + 1;
}

static bool multiport(const struct virtio_console *console)
{
	return virtio_has(&console->device, F_MULTIPORT);
}

/* Does the guest read from this port? */
static bool listens(const struct virtio_console_port *port)
{
	return multiport(port->console) ? port->guest_open : port->number == 0;
}

/* ---- host to guest ---- */

/* Copies from the FIFO's head without taking. */
static size_t fifo_peek(const struct virtio_console_port *port, size_t from, uint8_t *to, size_t length)
{
	size_t done = 0;

	for (; done < length && from + done < port->count; done++)
		to[done] = port->fifo[(port->head + from + done) % VIRTIO_CONSOLE_FIFO];
	return done;
}

static void input_pump(struct virtio_console_port *port)
{
	struct virtio_console *console = port->console;
	struct virtio_queue *queue = input_queue(port);
	uint8_t bytes[512];
	bool took = false;

	while (port->count && listens(port) && virtio_queue_next(queue, &console->chain)) {
		size_t done = 0, part;

		while ((part = fifo_peek(port, done, bytes, sizeof bytes)) > 0) {
			size_t copied =
			    virtio_chain_write(&console->chain, console->device.host.memory, done, bytes, part);

			done += copied;
			if (copied < part)
				break;
		}
		port->head = (port->head + done) % VIRTIO_CONSOLE_FIFO;
		port->count -= done;
		virtio_queue_complete(queue, console->chain.token, (uint32_t)done);
		took = true;
	}
	if (took && port->peer.accept_input)
		port->peer.accept_input(port->peer.owner);
}

size_t virtio_console_can_receive(void *owner)
{
	struct virtio_console_port *port = owner;
	struct virtio_device *device = &port->console->device;

	virtio_enter(device);
	size_t room = device->paused ? 0 : VIRTIO_CONSOLE_FIFO - port->count;
	virtio_leave(device);
	return room;
}

void virtio_console_receive(void *owner, const uint8_t *data, size_t length)
{
	struct virtio_console_port *port = owner;
	struct virtio_device *device = &port->console->device;

	virtio_enter(device);
	for (size_t i = 0; i < length && port->count < VIRTIO_CONSOLE_FIFO; i++)
		port->fifo[(port->head + port->count++) % VIRTIO_CONSOLE_FIFO] = data[i];
	input_pump(port);
	virtio_leave(device);
}

/* ---- guest to host ---- */

/* Sends the first chain's bytes from output_done on, as far as *budget goes. False: there is a rest; *budget 0: the peer could take more. */
static bool output_chain(struct virtio_console_port *port, size_t *budget)
{
	struct virtio_chain *chain = &port->console->chain;
	uint8_t bytes[BLOCK];
	size_t part;

	while ((part = virtio_chain_read(chain, port->output_done, bytes, sizeof bytes)) > 0) {
		if (*budget < part) {
			*budget = 0;
			return false;
		}
		*budget -= part;
		size_t taken = port->peer.write ? port->peer.write(port->peer.owner, bytes, part) : part;

		port->output_done += taken;
		if (taken < part)
			return false;
	}
	port->output_done = 0;
	return true;
}

static void output_pump(struct virtio_console_port *port)
{
	struct virtio_console *console = port->console;
	struct virtio_queue *queue = output_queue(port);
	size_t budget = BYTES_MAX;
	unsigned done = 0;

	virtio_ring_notify_off(&queue->ring);
	do {
		while (done < SHARE && virtio_queue_next(queue, &console->chain)) {
			if (!output_chain(port, &budget)) {
				virtio_ring_rewind(&queue->ring, console->chain.token);
				if (budget == 0)
					virtio_queue_again(queue);
				return; /* until virtio_console_writable() */
			}
			virtio_queue_complete(queue, console->chain.token, 0);
			done++;
		}
		if (done == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

void virtio_console_writable(void *owner)
{
	struct virtio_console_port *port = owner;

	virtio_enter(&port->console->device);
	if (virtio_queue_runs(output_queue(port)))
		output_pump(port);
	virtio_leave(&port->console->device);
}

/* ---- control ---- */

static void tell(struct virtio_console_port *port, unsigned event)
{
	port->tell |= 1u << event;
}

static uint16_t value_of(const struct virtio_console_port *port, unsigned event)
{
	return event == EVENT_PORT_OPEN ? port->host_open : 1;
}

/* One message into one buffer. False: no buffer. */
static bool send_message(struct virtio_console_port *port, unsigned event)
{
	struct virtio_console *console = port->console;
	struct virtio_queue *queue = &console->device.queue[QUEUE_CONTROL_IN];
	const struct message message = {port->number, event, value_of(port, event)};
	uint8_t bytes[sizeof message + VIRTIO_CONSOLE_NAME];
	size_t length = sizeof message;

	if (!virtio_queue_next(queue, &console->chain))
		return false;
	memcpy(bytes, &message, sizeof message);
	if (event == EVENT_PORT_NAME) {
		length += strlen(port->name);
		memcpy(bytes + sizeof message, port->name, length - sizeof message);
	} else if (event == EVENT_RESIZE) {
		memcpy(bytes + length, &console->columns, 2);
		memcpy(bytes + length + 2, &console->rows, 2);
		length += 4;
	}
	length = virtio_chain_write(&console->chain, console->device.host.memory, 0, bytes, length);
	virtio_queue_complete(queue, console->chain.token, (uint32_t)length);
	return true;
}

/* Everything that the driver is to be told and has buffers for. PORT_ADD comes first, the rest in the order of their numbers. */
static void control_pump(struct virtio_console *console)
{
	if (!console->driver_ready || !multiport(console))
		return;
	for (unsigned i = 0; i < console->port_count; i++) {
		struct virtio_console_port *port = &console->port[i];

		for (unsigned event = EVENT_PORT_ADD; event < EVENT_COUNT; event++) {
			bool early = !port->guest_ready && event != EVENT_PORT_ADD;

			if (!(port->tell >> event & 1) || early)
				continue;
			if (!send_message(port, event))
				return;
			port->tell &= ~(1u << event);
		}
	}
}

static void take_message(struct virtio_console *console, const struct message *message)
{
	struct virtio_console_port *port;

	if (message->event == EVENT_DEVICE_READY) {
		console->driver_ready = message->value == 1;
		for (unsigned i = 0; i < console->port_count && console->driver_ready; i++)
			tell(&console->port[i], EVENT_PORT_ADD);
		return;
	}
	if (message->port >= console->port_count)
		return;
	port = &console->port[message->port];
	if (message->event == EVENT_PORT_READY && message->value == 1) {
		port->guest_ready = true;
		if (port->is_console) {
			tell(port, EVENT_CONSOLE_PORT);
			tell(port, EVENT_RESIZE);
		}
		if (port->name[0])
			tell(port, EVENT_PORT_NAME);
		if (port->host_open)
			tell(port, EVENT_PORT_OPEN);
	} else if (message->event == EVENT_PORT_OPEN) {
		port->guest_open = message->value == 1;
		input_pump(port);
	}
}

static void control_take(struct virtio_console *console, struct virtio_queue *queue)
{
	unsigned done = 0;

	do {
		while (done < SHARE && virtio_queue_next(queue, &console->chain)) {
			struct message message;

			bool whole = virtio_chain_read(&console->chain, 0, &message, sizeof message) == sizeof message;
			virtio_queue_complete(queue, console->chain.token, 0);
			if (whole)
				take_message(console, &message);
			control_pump(console);
			done++;
		}
		if (done == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

void virtio_console_set_open(struct virtio_console *console, unsigned number, bool open)
{
	struct virtio_console_port *port = &console->port[number];

	virtio_enter(&console->device);
	if (port->host_open != open) {
		port->host_open = open;
		tell(port, EVENT_PORT_OPEN);
		control_pump(console);
	}
	virtio_leave(&console->device);
}

static void put_size(struct virtio_console *console)
{
	memcpy(console->config + CONFIG_COLUMNS, &console->columns, 2);
	memcpy(console->config + CONFIG_ROWS, &console->rows, 2);
}

void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows)
{
	virtio_enter(&console->device);
	console->columns = columns;
	console->rows = rows;
	put_size(console);
	if (multiport(console)) {
		for (unsigned i = 0; i < console->port_count; i++)
			if (console->port[i].is_console && console->port[i].guest_ready)
				tell(&console->port[i], EVENT_RESIZE);
		control_pump(console);
	} else if (virtio_has(&console->device, F_SIZE)) {
		virtio_config_changed(&console->device);
	}
	virtio_leave(&console->device);
}

/* ---- the device ---- */

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_console *console = (struct virtio_console *)device;
	unsigned index = queue->index;

	if (index == QUEUE_CONTROL_IN) {
		control_pump(console);
		virtio_ring_notify_on(&queue->ring); /* what is there is found when there is something to tell */
	} else if (index == QUEUE_CONTROL_OUT) {
		control_take(console, queue);
	} else {
		struct virtio_console_port *port = &console->port[index < 2 ? 0 : (index - 2) / 2];

		if (index & 1) {
			output_pump(port);
		} else {
			input_pump(port);
			virtio_ring_notify_on(&queue->ring);
			input_pump(port);
		}
	}
}

/* 5.3.4: a byte of last words, without queues. */
static void config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	struct virtio_console_port *port = ((struct virtio_console *)device)->port;
	uint8_t byte = (uint8_t)value;

	if (offset == CONFIG_EMERGENCY && port->peer.write)
		port->peer.write(port->peer.owner, &byte, 1);
}

static void queue_reset(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_console *console = (struct virtio_console *)device;
	unsigned index = queue->index;

	if (index & 1 && index != QUEUE_CONTROL_OUT)
		console->port[index < 2 ? 0 : (index - 2) / 2].output_done = 0;
}

static void reset(struct virtio_device *device)
{
	struct virtio_console *console = (struct virtio_console *)device;

	console->driver_ready = false;
	for (unsigned i = 0; i < console->port_count; i++) {
		struct virtio_console_port *port = &console->port[i];

		port->guest_open = port->guest_ready = false;
		port->tell = 0;
	}
}

static void port_state(struct virtio_console_port *port, struct state *state)
{
	struct virtio_device *device = &port->console->device;

	state_begin(state, "virtio-port", device->instance * VIRTIO_CONSOLE_PORTS_MAX + port->number, 1);
	state_bool(state, "guest_open", &port->guest_open);
	state_bool(state, "guest_ready", &port->guest_ready);
	state_u8(state, "tell", &port->tell);
	state_u32(state, "output_done", &port->output_done);
	state_u16(state, "head", &port->head);
	state_u16(state, "count", &port->count);
	state_u8_array(state, "fifo", port->fifo, sizeof port->fifo);
	if (port->head >= VIRTIO_CONSOLE_FIFO || port->count > VIRTIO_CONSOLE_FIFO) {
		port->head = port->count = 0;
		state_fail(state, "FIFO position out of range");
	}
	state_end(state);
	if (state_loading(state) && port->guest_ready)
		tell(port, EVENT_PORT_OPEN); /* the host's end may differ now */
}

static void console_state(struct virtio_device *device, struct state *state)
{
	struct virtio_console *console = (struct virtio_console *)device;

	state_begin(state, "virtio-console", device->instance, 1);
	state_bool(state, "driver_ready", &console->driver_ready);
	state_end(state);
	for (unsigned i = 0; i < console->port_count; i++)
		port_state(&console->port[i], state);
}

static const struct virtio_ops ops = {
    .name = "virtio-console",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .device_lock = true,
    .config_write = config_write,
    .queue_notify = queue_notify,
    .queue_reset = queue_reset,
    .reset = reset,
    .state = console_state,
};

int virtio_console_init(struct virtio_console *console, const struct virtio_host *host, unsigned instance,
                        unsigned ports)
{
	uint16_t sizes[2 * VIRTIO_CONSOLE_PORTS_MAX + 2];

	memset(console, 0, sizeof *console);
	if (ports == 0 || ports > VIRTIO_CONSOLE_PORTS_MAX)
		return -EINVAL;
	console->port_count = ports;
	console->columns = 80;
	console->rows = 25;
	for (unsigned i = 0; i < ports; i++)
		console->port[i] = (struct virtio_console_port){.console = console, .number = i, .is_console = i == 0};
	for (unsigned i = 0; i < 2 * ports + 2; i++)
		sizes[i] = QUEUE_SIZE;
	put_size(console);
	console->config[CONFIG_PORTS] = ports;
	return virtio_device_init(&console->device, &ops, host, instance, F_SIZE | F_MULTIPORT | F_EMERG_WRITE,
	                          2 * ports + 2, sizes, console->config, sizeof console->config);
}

void virtio_console_destroy(struct virtio_console *console)
{
	virtio_device_destroy(&console->device);
}

void virtio_console_connect(struct virtio_console *console, unsigned number, const char *name,
                            struct virtio_console_peer peer)
{
	struct virtio_console_port *port = &console->port[number];

	port->peer = peer;
	port->host_open = true;
	port->is_console = name == NULL;
	if (name)
		strncpy(port->name, name, sizeof port->name - 1);
}

static size_t chardev_take(void *owner, const uint8_t *data, size_t length)
{
	return chardev_write(owner, data, length);
}

static void chardev_more(void *owner)
{
	chardev_accept_input(owner);
}

void virtio_console_connect_chardev(struct virtio_console *console, unsigned number, const char *name,
                                    struct chardev *chardev)
{
	const struct chardev_client client = {.can_receive = virtio_console_can_receive,
	                                      .receive = virtio_console_receive,
	                                      .writable = virtio_console_writable,
	                                      .owner = &console->port[number]};

	virtio_console_connect(console, number, name,
	                       (struct virtio_console_peer){chardev_take, chardev_more, chardev});
	chardev_connect(chardev, &client);
}
