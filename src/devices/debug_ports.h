/*
 * Debug output: ports 402h (SeaBIOS, OVMF) and E9h (Bochs). Bytes written go out; reads give E9h, by which firmware
 * knows that somebody listens.
 */
#pragma once

#include <stdint.h>

#include "devices/bus.h"

struct debug_ports {
	void (*put)(void *owner, uint8_t byte); /* NULL: the bytes vanish */
	void *owner;
};

/* Claims both ports. 0 or -errno. No state to save. */
int debug_ports_init(struct debug_ports *ports, struct bus *bus, void (*put)(void *owner, uint8_t byte), void *owner);
