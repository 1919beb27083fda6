/*
 * The 8042 keyboard controller of a PS/2 (IBM PS/2 technical reference, "Keyboard and auxiliary device controller").
 *
 * The output buffer holds one byte. The controller's own answers enter it at once; a device's byte when the buffer is
 * free, and, after the guest has read one, a little later, because handlers that chain to firmware's read port 60h
 * twice and must find the same byte. i8042_update() recomputes the buffer and both interrupt lines after every change.
 */
#include "devices/i8042.h"

#include <string.h>

#include "devices/ps2.h"
#include "machine/state.h"

#define STATUS_FULL     0x01u
#define STATUS_SYSTEM   0x04u
#define STATUS_COMMAND  0x08u
#define STATUS_UNLOCKED 0x10u
#define STATUS_AUX      0x20u

#define CTR_KEYBOARD_IRQ 0x01u
#define CTR_MOUSE_IRQ    0x02u
#define CTR_SYSTEM       0x04u
#define CTR_KEYBOARD_OFF 0x10u
#define CTR_MOUSE_OFF    0x20u
#define CTR_TRANSLATE    0x40u

#define OUT_NOT_RESET     0x01u
#define OUT_A20           0x02u
#define OUT_MOUSE_FULL    0x20u
#define OUT_KEYBOARD_FULL 0x10u

/* A byte on the wire takes about a millisecond; guests need only a fraction of it. */
#define REFILL_NS 100000u

static void fill(struct i8042 *i8042, uint8_t value, bool from_mouse)
{
	i8042->data = value;
	i8042->full = true;
	i8042->from_mouse = from_mouse;
}

static void fill_from_keyboard(struct i8042 *i8042)
{
	struct ps2_keyboard *keyboard = &i8042->keyboard;
	uint8_t value = ps2_queue_get(&keyboard->queue), flag = 0;

	keyboard->last_sent = value;
	if (i8042->ram[0] & CTR_TRANSLATE) {
		/* F0h and what follows become one byte with bit 7. A lone F0h is dropped with the code that it lacks.
		 */
		if (value == 0xf0) {
			if (!keyboard->queue.count)
				return;
			value = ps2_queue_get(&keyboard->queue);
			flag = 0x80;
		}
		value = ps2_translate(value) | flag;
	}
	fill(i8042, value, false);
}

/* Takes the next byte of a device whose clock line is not held. */
static void fill_from_devices(struct i8042 *i8042)
{
	if (!(i8042->ram[0] & CTR_KEYBOARD_OFF) && i8042->keyboard.queue.count) {
		fill_from_keyboard(i8042);
	} else if (!(i8042->ram[0] & CTR_MOUSE_OFF)) {
		ps2_mouse_poll(&i8042->mouse);
		if (i8042->mouse.queue.count) {
			i8042->mouse.last_sent = ps2_queue_get(&i8042->mouse.queue);
			fill(i8042, i8042->mouse.last_sent, true);
		}
	}
}

static void update_lines(struct i8042 *i8042)
{
	bool line1 = i8042->full && !i8042->from_mouse && i8042->ram[0] & CTR_KEYBOARD_IRQ;
	bool line12 = i8042->full && i8042->from_mouse && i8042->ram[0] & CTR_MOUSE_IRQ;

	if (line1 != i8042->line1) {
		i8042->line1 = line1;
		irq_line_set(&i8042->irq1, line1);
	}
	if (line12 != i8042->line12) {
		i8042->line12 = line12;
		irq_line_set(&i8042->irq12, line12);
	}
}

static void i8042_update(struct i8042 *i8042)
{
	if (!i8042->full && !i8042->refill.armed)
		fill_from_devices(i8042);
	update_lines(i8042);
}

static void refill_expired(void *owner)
{
	i8042_update(owner);
}

/* The controller's own answer replaces what was not read. The line falls first, so that there is an edge. */
static void answer(struct i8042 *i8042, uint8_t value, bool from_mouse)
{
	i8042->full = false;
	update_lines(i8042);
	fill(i8042, value, from_mouse);
}

static void pulse_reset(struct i8042 *i8042)
{
	irq_line_set(&i8042->reset, true);
	irq_line_set(&i8042->reset, false);
}

static void set_output_port(struct i8042 *i8042, uint8_t value)
{
	uint8_t changed = i8042->output_port ^ value;

	i8042->output_port = value;
	if (changed & OUT_A20)
		irq_line_set(&i8042->a20, value & OUT_A20);
	if (!(value & OUT_NOT_RESET)) {
		/* A system that holds its own reset line comes out of it only by a reset. */
		i8042->output_port |= OUT_NOT_RESET;
		pulse_reset(i8042);
	}
}

static uint8_t read_output_port(const struct i8042 *i8042)
{
	uint8_t value = i8042->output_port & ~(OUT_KEYBOARD_FULL | OUT_MOUSE_FULL);

	if (i8042->full)
		value |= i8042->from_mouse ? OUT_MOUSE_FULL : OUT_KEYBOARD_FULL;
	return value;
}

static void write_command(struct i8042 *i8042, uint8_t value)
{
	i8042->command = 0;
	switch (value) {
	case 0x20 ... 0x3f:
		answer(i8042, i8042->ram[value & 31], false);
		break;
	case 0x60 ... 0x7f:
	case 0xd1: /* write output port */
	case 0xd2: /* write keyboard output buffer */
	case 0xd3: /* write mouse output buffer */
	case 0xd4: /* write mouse */
		i8042->command = value;
		break;
	case 0xa1: /* firmware version */
		answer(i8042, 0, false);
		break;
	case 0xa4: /* is a password set? no */
		answer(i8042, 0xf1, false);
		break;
	case 0xa7:
		i8042->ram[0] |= CTR_MOUSE_OFF;
		break;
	case 0xa8:
		i8042->ram[0] &= ~CTR_MOUSE_OFF;
		break;
	case 0xa9: /* mouse and keyboard interface tests: no error */
	case 0xab:
		answer(i8042, 0, false);
		break;
	case 0xaa: /* self test */
		i8042->ram[0] |= CTR_SYSTEM;
		answer(i8042, 0x55, false);
		break;
	case 0xad:
		i8042->ram[0] |= CTR_KEYBOARD_OFF;
		break;
	case 0xae:
		i8042->ram[0] &= ~CTR_KEYBOARD_OFF;
		break;
	case 0xc0: /* input port: keyboard unlocked, no manufacturing jumper, colour */
		answer(i8042, 0xbf, false);
		break;
	case 0xd0:
		answer(i8042, read_output_port(i8042), false);
		break;
	case 0xdd: /* A20 off and on, as HP's controllers */
		set_output_port(i8042, i8042->output_port & ~OUT_A20);
		break;
	case 0xdf:
		set_output_port(i8042, i8042->output_port | OUT_A20);
		break;
	case 0xe0: /* test inputs: both clocks high unless held */
		answer(i8042, (i8042->ram[0] & CTR_KEYBOARD_OFF ? 0 : 1) | (i8042->ram[0] & CTR_MOUSE_OFF ? 0 : 2),
		       false);
		break;
	case 0xf0 ... 0xff: /* pulse the output port's low bits that are 0 here; only the reset line hears it */
		if (!(value & 1))
			pulse_reset(i8042);
		break;
	}
}

static void write_data(struct i8042 *i8042, uint8_t value)
{
	uint8_t command = i8042->command;

	i8042->command = 0;
	switch (command) {
	case 0:
		/* The keyboard's interface is switched on to send. */
		i8042->ram[0] &= ~CTR_KEYBOARD_OFF;
		ps2_keyboard_write(&i8042->keyboard, value);
		break;
	case 0xd1:
		set_output_port(i8042, value);
		break;
	case 0xd2:
		answer(i8042, value, false);
		break;
	case 0xd3:
		answer(i8042, value, true);
		break;
	case 0xd4:
		i8042->ram[0] &= ~CTR_MOUSE_OFF;
		ps2_mouse_write(&i8042->mouse, value);
		break;
	default:
		i8042->ram[command & 31] = value;
	}
}

static uint64_t data_read(void *device, uint64_t offset, unsigned size)
{
	struct i8042 *i8042 = device;
	uint8_t value = i8042->data; /* empty: the last byte again */

	if (i8042->full) {
		i8042->full = false;
		if (i8042->keyboard.queue.count || i8042->mouse.queue.count)
			timer_set(&i8042->refill, clock_now(i8042->clock) + REFILL_NS);
		i8042_update(i8042);
	}
	return value;
}

static void data_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *i8042 = device;

	i8042->last_was_command = false;
	write_data(i8042, value);
	i8042_update(i8042);
}

static uint64_t status_read(void *device, uint64_t offset, unsigned size)
{
	struct i8042 *i8042 = device;

	return (i8042->full ? STATUS_FULL : 0) | (i8042->ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0) |
	       (i8042->last_was_command ? STATUS_COMMAND : 0) | STATUS_UNLOCKED |
	       (i8042->full && i8042->from_mouse ? STATUS_AUX : 0);
}

static void command_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *i8042 = device;

	i8042->last_was_command = true;
	write_command(i8042, value);
	i8042_update(i8042);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};
static const struct bus_ops command_ops = {.read = status_read, .write = command_write};

void i8042_key(struct i8042 *i8042, unsigned key, bool pressed)
{
	ps2_keyboard_key(&i8042->keyboard, key, pressed);
	i8042_update(i8042);
}

void i8042_mouse(struct i8042 *i8042, int dx, int dy, int dz, unsigned buttons)
{
	ps2_mouse_move(&i8042->mouse, dx, dy, dz, buttons);
	i8042_update(i8042);
}

int i8042_init(struct i8042 *i8042, struct bus *bus, struct clock *clock, struct irq_line irq1, struct irq_line irq12,
               struct irq_line a20, struct irq_line reset)
{
	int error;

	memset(i8042, 0, sizeof *i8042);
	i8042->irq1 = irq1;
	i8042->irq12 = irq12;
	i8042->a20 = a20;
	i8042->reset = reset;
	i8042->clock = clock;
	timer_init(&i8042->refill, clock, refill_expired, i8042);
	i8042_reset(i8042);
	if ((error = bus_add_ports(bus, 0x60, 1, "i8042", &data_ops, i8042)) ||
	    (error = bus_add_ports(bus, 0x64, 1, "i8042", &command_ops, i8042)))
		return error;
	return 0;
}

/* As firmware leaves it after its self test: system flag, translation, keyboard interrupt on, mouse off. */
void i8042_reset(struct i8042 *i8042)
{
	timer_cancel(&i8042->refill);
	memset(i8042->ram, 0, sizeof i8042->ram);
	i8042->ram[0] = CTR_KEYBOARD_IRQ | CTR_SYSTEM | CTR_MOUSE_OFF | CTR_TRANSLATE;
	i8042->command = i8042->data = 0;
	i8042->full = i8042->from_mouse = i8042->last_was_command = false;
	ps2_keyboard_reset(&i8042->keyboard);
	ps2_mouse_reset(&i8042->mouse);
	i8042->output_port = 0xcf; /* A20 on */
	irq_line_set(&i8042->a20, true);
	i8042_update(i8042);
}

void ps2_queue_state(struct ps2_queue *queue, struct state *state)
{
	struct ps2_queue straight = {.count = queue->count};

	for (unsigned i = 0; i < queue->count; i++)
		straight.data[i] = queue->data[(queue->head + i) % PS2_QUEUE];
	state_u8_array(state, "queue", straight.data, PS2_QUEUE);
	state_u8(state, "queue-count", &straight.count);
	if (straight.count > PS2_QUEUE)
		state_fail(state, "queue count out of range");
	if (state_loading(state) && !state_error(state))
		*queue = straight;
}

void i8042_state(struct i8042 *i8042, struct state *state)
{
	state_begin(state, "i8042", 0, 1);
	state_u8_array(state, "ram", i8042->ram, sizeof i8042->ram);
	state_u8(state, "command", &i8042->command);
	state_u8(state, "output-port", &i8042->output_port);
	state_u8(state, "data", &i8042->data);
	state_bool(state, "full", &i8042->full);
	state_bool(state, "from-mouse", &i8042->from_mouse);
	state_bool(state, "last-was-command", &i8042->last_was_command);
	timer_state(&i8042->refill, state, "refill");
	state_end(state);
	ps2_keyboard_state(&i8042->keyboard, state);
	ps2_mouse_state(&i8042->mouse, state);
	if (state_loading(state)) {
		i8042->output_port |= OUT_NOT_RESET;
		irq_line_set(&i8042->a20, i8042->output_port & OUT_A20);
		i8042_update(i8042);
	}
}
