/*
 * A PS/2 keyboard (IBM PS/2 technical reference, "Keyboards (101- and 102-key)"): scan code sets 1 and 2.
 */
#include "devices/ps2.h"

#include "machine/state.h"

#define ACK    0xfa
#define RESEND 0xfe

/* Set 1 make code to set 2 make code; 0: no such key. E0h-prefixed keys use the same pairs. */
static const uint8_t set2[0x80] = {
    [0x01] = 0x76, [0x02] = 0x16, [0x03] = 0x1e, [0x04] = 0x26, [0x05] = 0x25, [0x06] = 0x2e, [0x07] = 0x36,
    [0x08] = 0x3d, [0x09] = 0x3e, [0x0a] = 0x46, [0x0b] = 0x45, [0x0c] = 0x4e, [0x0d] = 0x55, [0x0e] = 0x66,
    [0x0f] = 0x0d, [0x10] = 0x15, [0x11] = 0x1d, [0x12] = 0x24, [0x13] = 0x2d, [0x14] = 0x2c, [0x15] = 0x35,
    [0x16] = 0x3c, [0x17] = 0x43, [0x18] = 0x44, [0x19] = 0x4d, [0x1a] = 0x54, [0x1b] = 0x5b, [0x1c] = 0x5a,
    [0x1d] = 0x14, [0x1e] = 0x1c, [0x1f] = 0x1b, [0x20] = 0x23, [0x21] = 0x2b, [0x22] = 0x34, [0x23] = 0x33,
    [0x24] = 0x3b, [0x25] = 0x42, [0x26] = 0x4b, [0x27] = 0x4c, [0x28] = 0x52, [0x29] = 0x0e, [0x2a] = 0x12,
    [0x2b] = 0x5d, [0x2c] = 0x1a, [0x2d] = 0x22, [0x2e] = 0x21, [0x2f] = 0x2a, [0x30] = 0x32, [0x31] = 0x31,
    [0x32] = 0x3a, [0x33] = 0x41, [0x34] = 0x49, [0x35] = 0x4a, [0x36] = 0x59, [0x37] = 0x7c, [0x38] = 0x11,
    [0x39] = 0x29, [0x3a] = 0x58, [0x3b] = 0x05, [0x3c] = 0x06, [0x3d] = 0x04, [0x3e] = 0x0c, [0x3f] = 0x03,
    [0x40] = 0x0b, [0x41] = 0x83, [0x42] = 0x0a, [0x43] = 0x01, [0x44] = 0x09, [0x45] = 0x77, [0x46] = 0x7e,
    [0x47] = 0x6c, [0x48] = 0x75, [0x49] = 0x7d, [0x4a] = 0x7b, [0x4b] = 0x6b, [0x4c] = 0x73, [0x4d] = 0x74,
    [0x4e] = 0x79, [0x4f] = 0x69, [0x50] = 0x72, [0x51] = 0x7a, [0x52] = 0x70, [0x53] = 0x71, [0x54] = 0x84,
    [0x56] = 0x61, [0x57] = 0x78, [0x58] = 0x07, [0x59] = 0x0f, [0x5b] = 0x1f, [0x5c] = 0x27, [0x5d] = 0x2f,
    [0x5e] = 0x37, [0x5f] = 0x3f, [0x63] = 0x5e, [0x64] = 0x08, [0x65] = 0x10, [0x66] = 0x18, [0x67] = 0x20,
    [0x68] = 0x28, [0x69] = 0x30, [0x6a] = 0x38, [0x6b] = 0x40, [0x6c] = 0x48, [0x6d] = 0x50, [0x6e] = 0x57,
    [0x70] = 0x13, [0x71] = 0x19, [0x72] = 0x39, [0x73] = 0x51, [0x74] = 0x53, [0x75] = 0x5c, [0x76] = 0x5f,
    [0x77] = 0x62, [0x78] = 0x63, [0x79] = 0x64, [0x7a] = 0x65, [0x7b] = 0x67, [0x7c] = 0x68, [0x7d] = 0x6a,
    [0x7e] = 0x6d, [0x7f] = 0x6e,
};

uint8_t ps2_translate(uint8_t value)
{
	if (value == 0x02) /* no key sends it, but the answer to F0h 00h is told by it */
		return 0x41;
	for (unsigned code = 1; value && code < 0x80; code++)
		if (set2[code] == value)
			return code;
	return value; /* answers to commands pass */
}

static void reply(struct ps2_keyboard *keyboard, uint8_t byte)
{
	ps2_queue_put(&keyboard->queue, byte);
}

static void set_defaults(struct ps2_keyboard *keyboard)
{
	keyboard->scan_set = 2;
	keyboard->typematic = 0x2b; /* 10.9 a second after 500 ms */
	keyboard->command = 0;
}

void ps2_keyboard_reset(struct ps2_keyboard *keyboard)
{
	ps2_queue_clear(&keyboard->queue);
	set_defaults(keyboard);
	keyboard->scanning = true;
	keyboard->leds = 0;
	keyboard->last_sent = 0xaa;
}

/* The argument of ED, F0, F3 or FB-FD. */
static void write_argument(struct ps2_keyboard *keyboard, uint8_t value)
{
	uint8_t command = keyboard->command;

	keyboard->command = 0;
	switch (command) {
	case 0xed:
		keyboard->leds = value & 7;
		break;
	case 0xf0:
		if (value > 2) {
			reply(keyboard, RESEND); /* there is no set 3 */
			return;
		}
		reply(keyboard, ACK);
		if (value == 0)
			reply(keyboard, keyboard->scan_set);
		else
			keyboard->scan_set = value;
		return;
	case 0xf3:
		keyboard->typematic = value & 0x7f;
		break;
	default: /* key types of set 3 */
		break;
	}
	reply(keyboard, ACK);
}

void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t value)
{
	if (keyboard->command && value < 0xed) {
		write_argument(keyboard, value);
		return;
	}
	/* Any command ends one that waits, and drops what has not been sent. */
	keyboard->command = 0;
	if (value != RESEND)
		ps2_queue_clear(&keyboard->queue);
	switch (value) {
	case 0xed:
	case 0xf0:
	case 0xf3:
	case 0xfb:
	case 0xfc:
	case 0xfd:
		keyboard->command = value;
		reply(keyboard, ACK);
		break;
	case 0xee:
		reply(keyboard, 0xee);
		break;
	case 0xf2:
		reply(keyboard, ACK);
		reply(keyboard, 0xab);
		reply(keyboard, 0x83);
		break;
	case 0xf4:
		keyboard->scanning = true;
		reply(keyboard, ACK);
		break;
	case 0xf5:
		set_defaults(keyboard);
		keyboard->scanning = false;
		reply(keyboard, ACK);
		break;
	case 0xf6:
		set_defaults(keyboard);
		keyboard->scanning = true;
		reply(keyboard, ACK);
		break;
	case 0xf7:
	case 0xf8:
	case 0xf9:
	case 0xfa: /* key types of set 3 */
		reply(keyboard, ACK);
		break;
	case RESEND:
		reply(keyboard, keyboard->last_sent);
		break;
	case 0xff:
		ps2_keyboard_reset(keyboard);
		reply(keyboard, ACK);
		reply(keyboard, 0xaa);
		break;
	default:
		reply(keyboard, RESEND);
	}
}

static void put_code(uint8_t *bytes, unsigned *count, unsigned set, unsigned key, bool pressed)
{
	if (key & 0x80)
		bytes[(*count)++] = 0xe0;
	if (set == 1) {
		bytes[(*count)++] = (key & 0x7f) | (pressed ? 0 : 0x80);
		return;
	}
	if (!pressed)
		bytes[(*count)++] = 0xf0;
	bytes[(*count)++] = set2[key & 0x7f];
}

void ps2_keyboard_key(struct ps2_keyboard *keyboard, unsigned key, bool pressed)
{
	static const uint8_t pause1[] = {0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5};
	static const uint8_t pause2[] = {0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77};
	uint8_t bytes[8];
	unsigned count = 0;

	if (!keyboard->scanning || key > 0xff || !set2[key & 0x7f])
		return;
	if (key == 0xc6) { /* Pause: once, when pressed */
		bool first = keyboard->scan_set == 1;

		for (; pressed && count < (first ? sizeof pause1 : sizeof pause2); count++)
			bytes[count] = first ? pause1[count] : pause2[count];
	} else if (key == 0xb7) { /* Print Screen comes with a shift */
		put_code(bytes, &count, keyboard->scan_set, pressed ? 0xaa : 0xb7, pressed);
		put_code(bytes, &count, keyboard->scan_set, pressed ? 0xb7 : 0xaa, pressed);
	} else {
		put_code(bytes, &count, keyboard->scan_set, key, pressed);
	}
	/* A whole code or nothing. */
	if (keyboard->queue.count + count > PS2_QUEUE - PS2_ANSWER_ROOM)
		return;
	for (unsigned i = 0; i < count; i++)
		reply(keyboard, bytes[i]);
}

void ps2_keyboard_state(struct ps2_keyboard *keyboard, struct state *state)
{
	state_begin(state, "ps2-keyboard", 0, 1);
	ps2_queue_state(&keyboard->queue, state);
	state_u8(state, "command", &keyboard->command);
	state_u8(state, "scan-set", &keyboard->scan_set);
	state_bool(state, "scanning", &keyboard->scanning);
	state_u8(state, "leds", &keyboard->leds);
	state_u8(state, "typematic", &keyboard->typematic);
	state_u8(state, "last-sent", &keyboard->last_sent);
	if (keyboard->scan_set < 1 || keyboard->scan_set > 2) {
		state_fail(state, "scan code set out of range");
		keyboard->scan_set = 2;
	}
	state_end(state);
}
