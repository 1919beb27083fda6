/*
 * 8259A programmable interrupt controllers (Intel 231468), as a PC has them.
 *
 * INTR, the cascade line and the slave's part in it are derived state: pic_update() recomputes them after every change.
 * Not modelled: 8080 mode (ICW4.uPM = 0 is taken as 8086 mode) and buffered mode, which no PC can tell.
 */
#include "devices/pic_8259.h"

#include <string.h>

#include "machine/state.h"

#define MASTER 0
#define SLAVE  1

#define ICW1_IC4  0x01u
#define ICW1_SNGL 0x02u
#define ICW1_LTIM 0x08u
#define ICW1_INIT 0x10u
#define ICW4_AEOI 0x02u
#define ICW4_SFNM 0x10u
#define OCW3      0x08u

#define CASCADE 2

static bool level_triggered(const struct pic_8259_chip *chip, unsigned ir)
{
	return chip->icw1 & ICW1_LTIM || chip->elcr >> ir & 1;
}

/* A line moves. An edge-triggered request lasts until it is acknowledged or the line falls (231468, "Interrupt request
 * register"). */
static void chip_set_line(struct pic_8259_chip *chip, unsigned ir, bool level)
{
	uint8_t bit = 1u << ir;

	if (level_triggered(chip, ir))
		chip->irr = level ? chip->irr | bit : chip->irr & ~bit;
	else if (!level)
		chip->irr &= ~bit;
	else if (!(chip->lines & bit))
		chip->irr |= bit;
	chip->lines = level ? chip->lines | bit : chip->lines & ~bit;
}

/* Distance from the highest priority, 0-7; 8 for an empty set. */
static unsigned highest(const struct pic_8259_chip *chip, uint8_t set)
{
	for (unsigned rank = 0; rank < 8; rank++)
		if (set >> ((chip->lowest + 1 + rank) & 7) & 1)
			return rank;
	return 8;
}

/* The IR that the chip asks its INT line for, or -1. */
static int chip_request(const struct pic_8259_chip *chip, bool master)
{
	/* Special mask mode: what is in service and masked holds nothing back. */
	uint8_t blocking = chip->special_mask ? chip->isr & ~chip->imr : chip->isr;
	unsigned rank = highest(chip, chip->irr & ~chip->imr);
	unsigned ir = (chip->lowest + 1 + rank) & 7;
	unsigned limit = highest(chip, blocking);

	if (chip->icw_next || rank == 8)
		return -1; /* being initialized, or nothing to ask for */
	if (rank < limit)
		return ir;
	/* Special fully nested mode: a slave in service may ask again. */
	if (rank == limit && master && ir == CASCADE && chip->icw4 & ICW4_SFNM)
		return ir;
	return -1;
}

static void pic_update(struct pic_8259 *pic)
{
	struct pic_8259_chip *master = &pic->chip[MASTER];
	bool intr, slave_intr = chip_request(&pic->chip[SLAVE], false) >= 0;

	/* A slave lowers its INT during each acknowledge, so that the master sees an edge whenever there is more: IR2
	 * acts as a level. */
	master->lines = slave_intr ? master->lines | 1u << CASCADE : master->lines & ~(1u << CASCADE);
	master->irr = slave_intr ? master->irr | 1u << CASCADE : master->irr & ~(1u << CASCADE);
	intr = chip_request(master, true) >= 0;
	if (intr != pic->intr_level) {
		pic->intr_level = intr;
		irq_line_set(&pic->intr, intr);
	}
}

/* The acknowledge of one chip: returns the IR, or -1 when there is none (spurious). */
static int chip_acknowledge(struct pic_8259_chip *chip, bool master)
{
	int ir = chip_request(chip, master);

	if (ir < 0)
		return -1;
	if (!level_triggered(chip, ir))
		chip->irr &= ~(1u << ir);
	if (chip->icw4 & ICW4_AEOI) {
		if (chip->rotate_aeoi)
			chip->lowest = ir;
	} else {
		chip->isr |= 1u << ir;
	}
	return ir;
}

uint8_t pic_8259_inta(struct pic_8259 *pic)
{
	struct pic_8259_chip *master = &pic->chip[MASTER], *slave = &pic->chip[SLAVE];
	int ir = chip_acknowledge(master, true);
	uint8_t vector;

	if (ir == CASCADE && !(master->icw1 & ICW1_SNGL)) {
		int slave_ir = chip_acknowledge(slave, false);

		vector = (slave->icw2 & 0xf8) | (slave_ir < 0 ? 7 : slave_ir);
	} else {
		vector = (master->icw2 & 0xf8) | (ir < 0 ? 7 : ir);
	}
	pic_update(pic);
	return vector;
}

int pic_8259_acknowledge(void *owner)
{
	struct pic_8259 *pic = owner;

	return pic->intr_level ? pic_8259_inta(pic) : -1;
}

void pic_8259_set_irq(void *owner, unsigned irq, bool level)
{
	struct pic_8259 *pic = owner;

	if (irq > 15 || irq == CASCADE)
		return;
	chip_set_line(&pic->chip[irq / 8], irq % 8, level);
	pic_update(pic);
}

/* After the trigger mode of lines has changed: level-triggered requests follow their lines. */
static void chip_retrigger(struct pic_8259_chip *chip)
{
	for (unsigned ir = 0; ir < 8; ir++)
		if (level_triggered(chip, ir))
			chip->irr = (chip->irr & ~(1u << ir)) | (chip->lines & 1u << ir);
}

static void write_icw1(struct pic_8259_chip *chip, uint8_t value)
{
	chip->icw1 = value & 0x0f;
	chip->icw_next = 2;
	chip->irr = 0; /* the edge sense circuit is reset: a line must rise again */
	chip->isr = chip->imr = 0;
	chip->lowest = 7;
	chip->read_isr = chip->poll = chip->special_mask = false;
	if (!(value & ICW1_IC4)) {
		chip->icw4 = 0;
		chip->rotate_aeoi = false;
	}
	chip_retrigger(chip);
}

static void write_ocw2(struct pic_8259_chip *chip, uint8_t value)
{
	unsigned rank = highest(chip, chip->special_mask ? chip->isr & ~chip->imr : chip->isr);
	unsigned ir = (chip->lowest + 1 + rank) & 7;

	switch (value >> 5) {
	case 0: /* rotate in automatic EOI mode: clear */
	case 4: /* set */
		chip->rotate_aeoi = value >> 7;
		break;
	case 1: /* non-specific EOI */
	case 5: /* and rotate */
		if (rank == 8)
			break;
		chip->isr &= ~(1u << ir);
		if (value & 0x80)
			chip->lowest = ir;
		break;
	case 3: /* specific EOI */
		chip->isr &= ~(1u << (value & 7));
		break;
	case 7: /* and rotate */
		chip->isr &= ~(1u << (value & 7));
		chip->lowest = value & 7;
		break;
	case 6: /* set priority */
		chip->lowest = value & 7;
		break;
	}
}

static void write_even(struct pic_8259_chip *chip, uint8_t value)
{
	if (value & ICW1_INIT) {
		write_icw1(chip, value);
	} else if (value & OCW3) {
		if (value & 0x40)
			chip->special_mask = value & 0x20;
		if (value & 0x04)
			chip->poll = true;
		else if (value & 0x02)
			chip->read_isr = value & 0x01;
	} else {
		write_ocw2(chip, value);
	}
}

static void write_odd(struct pic_8259_chip *chip, uint8_t value)
{
	switch (chip->icw_next) {
	case 2:
		chip->icw2 = value;
		chip->icw_next = !(chip->icw1 & ICW1_SNGL) ? 3 : chip->icw1 & ICW1_IC4 ? 4 : 0;
		break;
	case 3:
		chip->icw3 = value;
		chip->icw_next = chip->icw1 & ICW1_IC4 ? 4 : 0;
		break;
	case 4:
		chip->icw4 = value & 0x1f;
		chip->icw_next = 0;
		break;
	default:
		chip->imr = value;
	}
}

static uint8_t chip_read(struct pic_8259_chip *chip, bool master, unsigned offset)
{
	if (chip->poll) {
		int ir = chip_acknowledge(chip, master);

		chip->poll = false;
		return ir < 0 ? 0 : 0x80 | ir;
	}
	if (offset)
		return chip->imr;
	return chip->read_isr ? chip->isr : chip->irr;
}

static uint64_t port_read(struct pic_8259 *pic, unsigned index, uint64_t offset)
{
	uint8_t value = chip_read(&pic->chip[index], index == MASTER, offset);

	pic_update(pic);
	return value;
}

static void port_write(struct pic_8259 *pic, unsigned index, uint64_t offset, uint64_t value)
{
	if (offset)
		write_odd(&pic->chip[index], value);
	else
		write_even(&pic->chip[index], value);
	pic_update(pic);
}

static uint64_t master_read(void *device, uint64_t offset, unsigned size)
{
	return port_read(device, MASTER, offset);
}

static void master_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	port_write(device, MASTER, offset, value);
}

static uint64_t slave_read(void *device, uint64_t offset, unsigned size)
{
	return port_read(device, SLAVE, offset);
}

static void slave_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	port_write(device, SLAVE, offset, value);
}

/* The timer, keyboard, cascade, RTC and FPU lines are always edge-triggered (82371AB 4.3.8). */
static const uint8_t elcr_mask[2] = {0xf8, 0xde};

static uint64_t elcr_read(void *device, uint64_t offset, unsigned size)
{
	struct pic_8259 *pic = device;

	return pic->chip[offset & 1].elcr;
}

static void elcr_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pic_8259 *pic = device;

	pic->chip[offset & 1].elcr = value & elcr_mask[offset & 1];
	chip_retrigger(&pic->chip[offset & 1]);
	pic_update(pic);
}

static const struct bus_ops master_ops = {.read = master_read, .write = master_write};
static const struct bus_ops slave_ops = {.read = slave_read, .write = slave_write};
static const struct bus_ops elcr_ops = {.read = elcr_read, .write = elcr_write};

int pic_8259_init(struct pic_8259 *pic, struct bus *bus, struct irq_line intr)
{
	int error;

	memset(pic, 0, sizeof *pic);
	pic->intr = intr;
	pic_8259_reset(pic);
	if ((error = bus_add_ports(bus, 0x20, 2, "pic-8259 master", &master_ops, pic)) ||
	    (error = bus_add_ports(bus, 0xa0, 2, "pic-8259 slave", &slave_ops, pic)) ||
	    (error = bus_add_ports(bus, 0x4d0, 2, "elcr", &elcr_ops, pic)))
		return error;
	return 0;
}

/* The 8259A has no reset pin; everything is masked here until ICW1, so that a system without firmware sees no stray
 * vector. */
void pic_8259_reset(struct pic_8259 *pic)
{
	for (unsigned i = 0; i < 2; i++) {
		struct pic_8259_chip *chip = &pic->chip[i];
		uint8_t lines = chip->lines;

		*chip = (struct pic_8259_chip){.lines = lines, .lowest = 7, .imr = 0xff};
	}
	pic_update(pic);
}

static void chip_state(struct pic_8259_chip *chip, unsigned instance, struct state *state)
{
	state_begin(state, "pic-8259", instance, 1);
	state_u8(state, "irr", &chip->irr);
	state_u8(state, "isr", &chip->isr);
	state_u8(state, "imr", &chip->imr);
	state_u8(state, "lines", &chip->lines);
	state_u8(state, "elcr", &chip->elcr);
	state_u8(state, "lowest", &chip->lowest);
	state_u8(state, "icw-next", &chip->icw_next);
	state_u8(state, "icw1", &chip->icw1);
	state_u8(state, "icw2", &chip->icw2);
	state_u8(state, "icw3", &chip->icw3);
	state_u8(state, "icw4", &chip->icw4);
	state_bool(state, "read-isr", &chip->read_isr);
	state_bool(state, "poll", &chip->poll);
	state_bool(state, "special-mask", &chip->special_mask);
	state_bool(state, "rotate-aeoi", &chip->rotate_aeoi);
	if (chip->lowest > 7 || chip->icw_next > 4 || chip->icw_next == 1 || chip->elcr & ~elcr_mask[instance])
		state_fail(state, "register out of range");
	chip->lowest &= 7;
	state_end(state);
}

void pic_8259_state(struct pic_8259 *pic, struct state *state)
{
	chip_state(&pic->chip[MASTER], MASTER, state);
	chip_state(&pic->chip[SLAVE], SLAVE, state);
	if (state_loading(state)) {
		pic_update(pic);
		/* The processor's side is told again, whatever it believed before. */
		irq_line_set(&pic->intr, pic->intr_level);
	}
}
