/*
 * isa-debug-exit: a write to F4h ends the machine. The process status is (value << 1) | 1, the machine's business.
 */
#pragma once

#include <stdint.h>

#include "devices/bus.h"

struct debug_exit {
	void (*exit)(void *owner, uint32_t value);
	void *owner;
};

/* Claims F4h-F7h. 0 or -errno. No state to save. */
int debug_exit_init(struct debug_exit *device, struct bus *bus, void (*exit)(void *owner, uint32_t value), void *owner);
