/*
 * The PC's two 8237A DMA controllers (Intel 231466) and their page registers: registers only, nothing on the machine
 * asks them to transfer.
 *
 * Ports 00h-0Fh, C0h-DFh, 80h-8Fh (80h is the POST code latch).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"

struct state;

struct dma_8237_chip {
	uint16_t base_address[4], address[4];
	uint16_t base_count[4], count[4];
	uint8_t mode[4];
	uint8_t command, request, mask, status, temporary;
	bool high_byte; /* the byte pointer flip-flop */
};

struct dma_8237 {
	struct dma_8237_chip chip[2]; /* channels 0-3, channels 4-7 */
	uint8_t page[16];
};

/* Claims the ports, but not 92h. 0 or -errno. */
int dma_8237_init(struct dma_8237 *dma, struct bus *bus);
void dma_8237_reset(struct dma_8237 *dma);
void dma_8237_state(struct dma_8237 *dma, struct state *state);
