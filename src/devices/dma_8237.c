#include "devices/dma_8237.h"

#include <string.h>

#include "machine/state.h"

/* A channel's 16-bit register through the byte pointer flip-flop. */
static uint8_t read_word(struct dma_8237_chip *chip, uint16_t value)
{
	bool high = chip->high_byte;

	chip->high_byte = !high;
	return high ? value >> 8 : value;
}

static void write_word(struct dma_8237_chip *chip, uint16_t *base, uint16_t *current, uint8_t value)
{
	*base = chip->high_byte ? (*base & 0x00ff) | value << 8 : (*base & 0xff00) | value;
	*current = *base;
	chip->high_byte = !chip->high_byte;
}

static void master_clear(struct dma_8237_chip *chip)
{
	chip->command = chip->request = chip->status = chip->temporary = 0;
	chip->mask = 0x0f;
	chip->high_byte = false;
}

static uint8_t chip_read(struct dma_8237_chip *chip, unsigned index)
{
	uint8_t value;

	switch (index) {
	case 0 ... 7:
		return read_word(chip, index & 1 ? chip->count[index / 2] : chip->address[index / 2]);
	case 8: /* reading clears the terminal counts */
		value = chip->status | chip->request << 4;
		chip->status = 0;
		return value;
	case 13:
		return chip->temporary;
	case 15:
		return chip->mask | 0xf0;
	default:
		return 0;
	}
}

static void chip_write(struct dma_8237_chip *chip, unsigned index, uint8_t value)
{
	unsigned channel = index < 8 ? index / 2 : value & 3;

	switch (index) {
	case 0 ... 7:
		if (index & 1)
			write_word(chip, &chip->base_count[channel], &chip->count[channel], value);
		else
			write_word(chip, &chip->base_address[channel], &chip->address[channel], value);
		break;
	case 8:
		chip->command = value;
		break;
	case 9:
		chip->request = value & 4 ? chip->request | 1u << channel : chip->request & ~(1u << channel);
		break;
	case 10:
		chip->mask = value & 4 ? chip->mask | 1u << channel : chip->mask & ~(1u << channel);
		break;
	case 11:
		chip->mode[channel] = value;
		break;
	case 12:
		chip->high_byte = false;
		break;
	case 13:
		master_clear(chip);
		break;
	case 14:
		chip->mask = 0;
		break;
	case 15:
		chip->mask = value & 0x0f;
		break;
	}
}

static uint64_t first_read(void *device, uint64_t offset, unsigned size)
{
	struct dma_8237 *dma = device;

	return chip_read(&dma->chip[0], offset & 15);
}

static void first_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct dma_8237 *dma = device;

	chip_write(&dma->chip[0], offset & 15, value);
}

/* The second chip's registers are two ports apart. */
static uint64_t second_read(void *device, uint64_t offset, unsigned size)
{
	struct dma_8237 *dma = device;

	return chip_read(&dma->chip[1], offset / 2 & 15);
}

static void second_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct dma_8237 *dma = device;

	chip_write(&dma->chip[1], offset / 2 & 15, value);
}

static uint64_t page_read(void *device, uint64_t offset, unsigned size)
{
	struct dma_8237 *dma = device;

	return dma->page[offset & 15];
}

static void page_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct dma_8237 *dma = device;

	dma->page[offset & 15] = value;
}

static const struct bus_ops first_ops = {.read = first_read, .write = first_write};
static const struct bus_ops second_ops = {.read = second_read, .write = second_write};
static const struct bus_ops page_ops = {.read = page_read, .write = page_write};

int dma_8237_init(struct dma_8237 *dma, struct bus *bus)
{
	int error;

	memset(dma, 0, sizeof *dma);
	dma_8237_reset(dma);
	if ((error = bus_add_ports(bus, 0x00, 16, "dma-8237 0-3", &first_ops, dma)) ||
	    (error = bus_add_ports(bus, 0xc0, 32, "dma-8237 4-7", &second_ops, dma)) ||
	    (error = bus_add_ports(bus, 0x80, 16, "dma page", &page_ops, dma)))
		return error;
	return 0;
}

void dma_8237_reset(struct dma_8237 *dma)
{
	for (unsigned i = 0; i < 2; i++)
		master_clear(&dma->chip[i]);
}

static void chip_state(struct dma_8237_chip *chip, unsigned instance, struct state *state)
{
	state_begin(state, "dma-8237", instance, 1);
	state_u16_array(state, "base-address", chip->base_address, 4);
	state_u16_array(state, "address", chip->address, 4);
	state_u16_array(state, "base-count", chip->base_count, 4);
	state_u16_array(state, "count", chip->count, 4);
	state_u8_array(state, "mode", chip->mode, 4);
	state_u8(state, "command", &chip->command);
	state_u8(state, "request", &chip->request);
	state_u8(state, "mask", &chip->mask);
	state_u8(state, "status", &chip->status);
	state_u8(state, "temporary", &chip->temporary);
	state_bool(state, "high-byte", &chip->high_byte);
	chip->request &= 0x0f;
	chip->mask &= 0x0f;
	chip->status &= 0x0f;
	state_end(state);
}

void dma_8237_state(struct dma_8237 *dma, struct state *state)
{
	chip_state(&dma->chip[0], 0, state);
	chip_state(&dma->chip[1], 1, state);
	state_begin(state, "dma-page", 0, 1);
	state_u8_array(state, "page", dma->page, sizeof dma->page);
	state_end(state);
}
