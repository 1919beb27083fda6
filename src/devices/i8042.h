/*
 * The 8042 keyboard controller with a PS/2 keyboard and a PS/2 wheel mouse (IBM PS/2 technical reference; Microsoft's
 * IntelliMouse protocol).
 *
 * Ports 60h and 64h, IRQ1 and IRQ12. All functions with the device lock held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "machine/clock.h"

#define PS2_QUEUE 64

struct state;

struct ps2_queue {
	uint8_t data[PS2_QUEUE];
	uint8_t head, count;
};

struct ps2_keyboard {
	struct ps2_queue queue;
	uint8_t command;  /* the command whose argument is awaited, or 0 */
	uint8_t scan_set; /* 1 or 2 */
	bool scanning;
	uint8_t leds; /* bit 0 scroll, 1 num, 2 caps */
	uint8_t typematic;
	uint8_t last_sent; /* for FEh, resend */
};

struct ps2_mouse {
	struct ps2_queue queue;
	uint8_t command;
	uint8_t id;    /* 0 plain, 3 wheel, 4 wheel and five buttons */
	uint8_t knock; /* 0-2: how many of the sample rates that unlock wheel or side buttons have come */
	bool reporting, remote, wrap, scaling;
	uint8_t resolution, rate, buttons, reported_buttons;
	int32_t dx, dy, dz; /* not reported yet; y upward */
	uint8_t last_sent;
};

struct i8042 {
	struct ps2_keyboard keyboard;
	struct ps2_mouse mouse;
	uint8_t ram[32]; /* the controller's; byte 0 is the command byte */
	uint8_t command; /* the command whose data byte is awaited, or 0 */
	uint8_t output_port;
	uint8_t data; /* the output buffer */
	bool full, from_mouse;
	bool last_was_command; /* status bit 3 */
	bool line1, line12;    /* irq levels */

	struct irq_line irq1, irq12;
	struct irq_line a20;   /* as the output port says; see port92.h for what it means */
	struct irq_line reset; /* pulsed: true, then false */
	struct clock *clock;
	struct timer refill; /* a device's next byte is on its way */
};

/* Claims the ports. 0 or -errno. */
int i8042_init(struct i8042 *i8042, struct bus *bus, struct clock *clock, struct irq_line irq1, struct irq_line irq12,
               struct irq_line a20, struct irq_line reset);
void i8042_reset(struct i8042 *i8042);

/*
 * A key moves. `key` is its scan code of set 1, with 80h added for those with an E0h prefix (the numbers of VNC's
 * extended key events); Print Screen is B7h and Pause C6h. Auto-repeat is the caller's business. Keys that do not fit
 * the keyboard's buffer are lost.
 */
void i8042_key(struct i8042 *i8042, unsigned key, bool pressed);
/* The mouse moves: x to the right, y downward, z wheel clicks toward the user; buttons: bit 0 left, 1 right, 2 middle,
 * 3 and 4 side. */
void i8042_mouse(struct i8042 *i8042, int dx, int dy, int dz, unsigned buttons);
void i8042_state(struct i8042 *i8042, struct state *state);
