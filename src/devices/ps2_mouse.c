/*
 * A PS/2 mouse (IBM PS/2 technical reference, "Mouse"), with the sample-rate knocks that turn it into Microsoft's
 * IntelliMouse (wheel) and IntelliMouse Explorer (five buttons).
 */
#include "devices/ps2.h"

#include "machine/state.h"

#define ACK    0xfa
#define RESEND 0xfe
#define ERROR  0xfc

#define MOTION_LIMIT 100000 /* counts kept while nobody reads them */

static void reply(struct ps2_mouse *mouse, uint8_t byte)
{
	ps2_queue_put(&mouse->queue, byte);
}

static void set_defaults(struct ps2_mouse *mouse)
{
	mouse->rate = 100;
	mouse->resolution = 2;
	mouse->scaling = mouse->remote = mouse->wrap = mouse->reporting = false;
	mouse->command = 0;
	mouse->dx = mouse->dy = mouse->dz = 0;
}

void ps2_mouse_reset(struct ps2_mouse *mouse)
{
	uint8_t buttons = mouse->buttons;

	*mouse = (struct ps2_mouse){.buttons = buttons, .reported_buttons = buttons, .last_sent = 0xaa};
	set_defaults(mouse);
}

static int clamp(int value, int low, int high)
{
	return value < low ? low : value > high ? high : value;
}

/* One packet out of what has moved; what does not fit stays for the next. */
static void put_packet(struct ps2_mouse *mouse)
{
	int dx = clamp(mouse->dx, -255, 255), dy = clamp(mouse->dy, -255, 255), dz = clamp(mouse->dz, -7, 7);

	reply(mouse, (mouse->buttons & 7) | 0x08 | (dx < 0 ? 0x10 : 0) | (dy < 0 ? 0x20 : 0));
	reply(mouse, dx & 0xff);
	reply(mouse, dy & 0xff);
	if (mouse->id == 3)
		reply(mouse, dz & 0xff);
	else if (mouse->id == 4)
		reply(mouse, (dz & 0x0f) | (mouse->buttons << 1 & 0x30));
	else
		dz = mouse->dz;
	mouse->dx -= dx;
	mouse->dy -= dy;
	mouse->dz -= dz;
	mouse->reported_buttons = mouse->buttons;
}

void ps2_mouse_poll(struct ps2_mouse *mouse)
{
	bool news = mouse->dx || mouse->dy || (mouse->id && mouse->dz) || mouse->buttons != mouse->reported_buttons;

	if (news && mouse->reporting && !mouse->remote && !mouse->wrap && !mouse->command && mouse->queue.count == 0)
		put_packet(mouse);
}

void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, unsigned buttons)
{
	mouse->buttons = buttons & 0x1f;
	if (!mouse->reporting && !mouse->remote)
		return;
	mouse->dx = clamp(mouse->dx + clamp(dx, -MOTION_LIMIT, MOTION_LIMIT), -MOTION_LIMIT, MOTION_LIMIT);
	mouse->dy = clamp(mouse->dy - clamp(dy, -MOTION_LIMIT, MOTION_LIMIT), -MOTION_LIMIT, MOTION_LIMIT);
	mouse->dz = clamp(mouse->dz + clamp(dz, -MOTION_LIMIT, MOTION_LIMIT), -MOTION_LIMIT, MOTION_LIMIT);
	ps2_mouse_poll(mouse);
}

/* The rates 200, 100, 80 in a row unlock the wheel, then 200, 200, 80 the side buttons. */
static void knock(struct ps2_mouse *mouse, uint8_t rate)
{
	static const uint8_t wheel[3] = {200, 100, 80}, buttons[3] = {200, 200, 80};
	const uint8_t *sequence = mouse->id == 0 ? wheel : buttons;

	if (rate != sequence[mouse->knock]) {
		mouse->knock = rate == 200;
		return;
	}
	if (++mouse->knock == 3) {
		mouse->knock = 0;
		mouse->id = mouse->id == 0 ? 3 : 4;
	}
}

static void write_argument(struct ps2_mouse *mouse, uint8_t value)
{
	uint8_t command = mouse->command;

	mouse->command = 0;
	if (command == 0xe8) {
		if (value > 3) {
			reply(mouse, ERROR);
			return;
		}
		mouse->resolution = value;
	} else {
		mouse->rate = value;
		knock(mouse, value);
	}
	reply(mouse, ACK);
}

static void put_status(struct ps2_mouse *mouse)
{
	reply(mouse, mouse->remote << 6 | mouse->reporting << 5 | mouse->scaling << 4 | (mouse->buttons & 1) << 2 |
	                 (mouse->buttons & 4) >> 1 | (mouse->buttons & 2) >> 1);
	reply(mouse, mouse->resolution);
	reply(mouse, mouse->rate);
}

static void write_command(struct ps2_mouse *mouse, uint8_t value)
{
	reply(mouse, ACK);
	switch (value) {
	case 0xe6:
	case 0xe7:
		mouse->scaling = value & 1;
		break;
	case 0xe8:
	case 0xf3:
		mouse->command = value;
		break;
	case 0xe9:
		put_status(mouse);
		break;
	case 0xea:
		mouse->remote = false;
		break;
	case 0xeb:
		put_packet(mouse);
		break;
	case 0xec:
		mouse->wrap = false;
		break;
	case 0xee:
		mouse->wrap = true;
		break;
	case 0xf0:
		mouse->remote = true;
		break;
	case 0xf2:
		reply(mouse, mouse->id);
		break;
	case 0xf4:
		mouse->reporting = true;
		mouse->dx = mouse->dy = mouse->dz = 0;
		break;
	case 0xf5:
		mouse->reporting = false;
		break;
	case 0xf6:
		set_defaults(mouse);
		break;
	case 0xff:
		ps2_mouse_reset(mouse);
		reply(mouse, ACK);
		reply(mouse, 0xaa);
		reply(mouse, 0x00);
		break;
	default:
		ps2_queue_clear(&mouse->queue);
		reply(mouse, RESEND);
	}
}

void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t value)
{
	if (mouse->wrap && value != 0xec && value != 0xff) {
		ps2_queue_clear(&mouse->queue);
		reply(mouse, value);
		return;
	}
	if (value == RESEND) {
		reply(mouse, mouse->last_sent);
		return;
	}
	ps2_queue_clear(&mouse->queue);
	if (mouse->command)
		write_argument(mouse, value);
	else
		write_command(mouse, value);
}

void ps2_mouse_state(struct ps2_mouse *mouse, struct state *state)
{
	uint32_t dx = mouse->dx, dy = mouse->dy, dz = mouse->dz;

	state_begin(state, "ps2-mouse", 0, 1);
	ps2_queue_state(&mouse->queue, state);
	state_u8(state, "command", &mouse->command);
	state_u8(state, "id", &mouse->id);
	state_u8(state, "knock", &mouse->knock);
	state_bool(state, "reporting", &mouse->reporting);
	state_bool(state, "remote", &mouse->remote);
	state_bool(state, "wrap", &mouse->wrap);
	state_bool(state, "scaling", &mouse->scaling);
	state_u8(state, "resolution", &mouse->resolution);
	state_u8(state, "rate", &mouse->rate);
	state_u8(state, "buttons", &mouse->buttons);
	state_u8(state, "reported-buttons", &mouse->reported_buttons);
	state_u32(state, "dx", &dx);
	state_u32(state, "dy", &dy);
	state_u32(state, "dz", &dz);
	state_u8(state, "last-sent", &mouse->last_sent);
	if (mouse->knock > 2 || (mouse->id != 0 && mouse->id != 3 && mouse->id != 4) || mouse->resolution > 3)
		state_fail(state, "register out of range");
	if (state_error(state))
		mouse->knock = mouse->id = mouse->resolution = 0;
	mouse->dx = clamp((int32_t)dx, -MOTION_LIMIT, MOTION_LIMIT);
	mouse->dy = clamp((int32_t)dy, -MOTION_LIMIT, MOTION_LIMIT);
	mouse->dz = clamp((int32_t)dz, -MOTION_LIMIT, MOTION_LIMIT);
	mouse->buttons &= 0x1f;
	mouse->reported_buttons &= 0x1f;
	state_end(state);
}
