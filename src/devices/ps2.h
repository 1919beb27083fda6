/*
 * PS/2 keyboard and mouse as the controller sees them: bytes to the device, bytes in its queue. Private to i8042.c and
 * ps2_*.c.
 */
#pragma once

#include "devices/i8042.h"

static inline bool ps2_queue_put(struct ps2_queue *queue, uint8_t byte)
{
	if (queue->count == PS2_QUEUE)
		return false;
	queue->data[(queue->head + queue->count++) % PS2_QUEUE] = byte;
	return true;
}

static inline uint8_t ps2_queue_get(struct ps2_queue *queue)
{
	uint8_t byte = queue->data[queue->head];

	queue->head = (queue->head + 1) % PS2_QUEUE;
	queue->count--;
	return byte;
}

static inline void ps2_queue_clear(struct ps2_queue *queue)
{
	queue->head = queue->count = 0;
}

/* Both queues keep this much room free for the answers to commands. */
#define PS2_ANSWER_ROOM 8

/* Power-on state; the queue is left empty. */
void ps2_keyboard_reset(struct ps2_keyboard *keyboard);
/* A byte from the controller. */
void ps2_keyboard_write(struct ps2_keyboard *keyboard, uint8_t value);
void ps2_keyboard_key(struct ps2_keyboard *keyboard, unsigned key, bool pressed);
/* Set 2 to set 1, as the controller translates with bit 6 of its command byte; F0h is handled by the caller. */
uint8_t ps2_translate(uint8_t value);
void ps2_keyboard_state(struct ps2_keyboard *keyboard, struct state *state);

void ps2_mouse_reset(struct ps2_mouse *mouse);
void ps2_mouse_write(struct ps2_mouse *mouse, uint8_t value);
void ps2_mouse_move(struct ps2_mouse *mouse, int dx, int dy, int dz, unsigned buttons);
/* Puts a packet into the queue if there is something to report and room. */
void ps2_mouse_poll(struct ps2_mouse *mouse);
void ps2_mouse_state(struct ps2_mouse *mouse, struct state *state);

void ps2_queue_state(struct ps2_queue *queue, struct state *state);
