#include "devices/fpu_error.h"

#include <string.h>

#include "machine/state.h"

#define PORT 0xf0

static void update(struct fpu_error *fpu)
{
	irq_line_set(&fpu->irq13, fpu->latch);
	irq_line_set(&fpu->ignne_pin, fpu->ignne);
}

static uint64_t fpu_read(void *device, uint64_t offset, unsigned size)
{
	return 0xff; /* write-only */
}

static void fpu_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct fpu_error *fpu = device;

	fpu->latch = false;
	fpu->ignne = fpu->ferr;
	update(fpu);
}

static const struct bus_ops fpu_ops = {.read = fpu_read, .write = fpu_write};

int fpu_error_init(struct fpu_error *fpu, struct bus *bus, struct irq_line irq13, struct irq_line ignne)
{
	memset(fpu, 0, sizeof(*fpu));
	fpu->irq13 = irq13;
	fpu->ignne_pin = ignne;
	return bus_add_ports(bus, PORT, 1, "fpu-error", &fpu_ops, fpu);
}

void fpu_error_set(struct fpu_error *fpu, bool ferr)
{
	if (ferr && !fpu->ferr)
		fpu->latch = true;
	fpu->ferr = ferr;
	fpu->ignne &= ferr;
	update(fpu);
}

void fpu_error_reset(struct fpu_error *fpu)
{
	fpu->ferr = fpu->latch = fpu->ignne = false;
	update(fpu);
}

void fpu_error_state(struct fpu_error *fpu, struct state *state)
{
	state_begin(state, "fpu-error", 0, 1);
	state_bool(state, "ferr", &fpu->ferr);
	state_bool(state, "latch", &fpu->latch);
	state_bool(state, "ignne", &fpu->ignne);
	fpu->ignne &= fpu->ferr;
	state_end(state);
	if (state_loading(state))
		update(fpu);
}
