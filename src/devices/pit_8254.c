/*
 * 8254 programmable interval timer (Intel 231164). References are to its data sheet's "mode definitions".
 *
 * A channel remembers when its counting element was loaded (`start`, in PIT ticks of machine time) and with what
 * (`period`); counter and OUT follow from the time that has passed.
 */
#include "devices/pit_8254.h"

#include <string.h>

#include "machine/state.h"

#define CHANNELS 3

/* Shortest time between two interrupts, in ticks (20 us): a guest that asks for a megahertz must not occupy the event
 * loop. */
#define EDGE_SPACING 24

/* Ticks begin here, so that a load can be dated back before time 0. */
#define TICK_BIAS (1ull << 32)

static uint64_t ticks_now(struct pit_8254 *pit)
{
	return TICK_BIAS + (uint64_t)((unsigned __int128)clock_now(pit->clock) * PIT_8254_HZ / 1000000000u);
}

static uint64_t tick_to_ns(uint64_t tick)
{
	uint64_t ticks = tick > TICK_BIAS ? tick - TICK_BIAS : 0;
	unsigned __int128 ns = ((unsigned __int128)ticks * 1000000000u + PIT_8254_HZ - 1) / PIT_8254_HZ;

	return ns > INT64_MAX ? INT64_MAX : (uint64_t)ns;
}

static bool periodic(const struct pit_8254_channel *channel)
{
	return channel->mode == 2 || channel->mode == 3;
}

static uint64_t elapsed(const struct pit_8254_channel *channel, uint64_t now)
{
	if (channel->paused)
		return channel->held;
	return now > channel->start ? now - channel->start : 0;
}

/* Ticks of one half or whole period after which a count written in modes 2 and 3 is taken. */
static uint64_t reload_tick(const struct pit_8254_channel *channel, uint64_t passed)
{
	uint64_t period = channel->period, high = (period + 1) / 2, base = passed / period * period;

	if (channel->mode == 3 && passed - base < high)
		return channel->start + base + high;
	return channel->start + base + period;
}

/*
 * Takes over the count register where a period has ended since. In mode 3 a half period that starts low must stay low:
 * the new period is entered in its middle.
 */
static void channel_catch_up(struct pit_8254_channel *channel, uint64_t now)
{
	uint64_t boundary;
	bool low;

	if (channel->null_count && channel->loaded && !channel->reload && now >= channel->start)
		channel->null_count = false;
	if (!channel->reload || channel->paused || now < channel->start)
		return;
	/* The boundary after the write: `held` is the time of the write, relative to start. */
	boundary = reload_tick(channel, channel->held);
	if (now < boundary)
		return;
	low = channel->mode == 3 && (boundary - channel->start) % channel->period != 0;
	channel->period = channel->next_period;
	channel->start = boundary - (low ? (channel->period + 1) / 2 : 0);
	channel->reload = channel->null_count = false;
}

static bool channel_out(const struct pit_8254_channel *channel, uint64_t now)
{
	uint64_t passed = elapsed(channel, now), period = channel->period;
	bool started = !channel->paused && now >= channel->start;

	if (!channel->loaded)
		return channel->mode != 0;
	switch (channel->mode) {
	case 0:
		return passed >= period;
	case 1:
		return !channel->triggered || !started || passed >= period;
	case 2:
		return !channel->gate || passed % period != period - 1 || period == 1;
	case 3:
		return !channel->gate || passed % period < (period + 1) / 2;
	case 4:
		return passed != period;
	default:
		return !channel->triggered || passed != period;
	}
}

static uint16_t to_bcd(uint32_t value)
{
	return value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 | value / 1000 % 10 << 12;
}

/* Any nibble may be above 9: it counts as what it is worth. */
static uint32_t from_bcd(uint32_t value)
{
	return (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 + (value >> 12 & 15) * 1000;
}

/* The counting element as a read sees it. */
static uint16_t channel_count(const struct pit_8254_channel *channel, uint64_t now)
{
	uint64_t passed = elapsed(channel, now), period = channel->period, phase, count;
	uint32_t wrap = channel->bcd ? 10000 : 65536;

	if (!channel->loaded)
		return 0;
	if ((channel->mode == 1 || channel->mode == 5) && !channel->triggered)
		passed = 0;
	phase = passed % period;
	switch (channel->mode) {
	case 2:
		count = period - phase;
		break;
	case 3: /* by twos, through half a period at a time; odd counts begin at one less */
		if (phase >= (period + 1) / 2)
			phase -= (period + 1) / 2;
		count = (period & ~1ull) - 2 * phase;
		break;
	default:
		count = (period + wrap - passed % wrap) % wrap;
	}
	count %= wrap;
	return channel->bcd ? to_bcd(count) : count;
}

/* Tick of the first rising edge of OUT after `after`, or UINT64_MAX. */
static uint64_t next_rise(const struct pit_8254_channel *channel, uint64_t after)
{
	uint64_t passed, period = channel->period;

	if (!channel->loaded || channel->paused || channel->start >> 62)
		return UINT64_MAX;
	passed = after >= channel->start ? after - channel->start : 0;
	switch (channel->mode) {
	case 0:
		return passed < period ? channel->start + period : UINT64_MAX;
	case 1:
		return channel->triggered && passed < period ? channel->start + period : UINT64_MAX;
	case 2:
	case 3:
		return channel->gate ? channel->start + (passed / period + 1) * period : UINT64_MAX;
	case 4:
		return passed < period + 1 ? channel->start + period + 1 : UINT64_MAX;
	default:
		return channel->triggered && passed < period + 1 ? channel->start + period + 1 : UINT64_MAX;
	}
}

/*
 * IRQ0's line: OUT, but for the falls of modes 2-5, which come together with the rise that follows. A late timer can so
 * never make an edge that nobody has acknowledged yet fall back.
 */
static bool irq0_level(const struct pit_8254_channel *channel, uint64_t now)
{
	return channel->mode >= 2 || channel_out(channel, now);
}

/* Recomputes the IRQ0 line and the timer of its next rising edge. */
static void pit_update(struct pit_8254 *pit)
{
	struct pit_8254_channel *channel = &pit->channel[0];
	uint64_t now = ticks_now(pit), after = now, rise;
	bool level = irq0_level(channel, now);

	if (level != pit->irq0_level) {
		pit->irq0_level = level;
		irq_line_set(&pit->irq0, level);
	}
	if (periodic(channel) && now - pit->last_edge < EDGE_SPACING && channel->period < EDGE_SPACING)
		after = pit->last_edge + EDGE_SPACING;
	/* A count that waits changes the period at a boundary: look again there. */
	rise = channel->reload && !channel->paused ? reload_tick(channel, channel->held) : next_rise(channel, after);
	if (rise == UINT64_MAX)
		timer_cancel(&pit->timer);
	else
		timer_set(&pit->timer, tick_to_ns(rise));
}

/* OUT of channel 0 rises, or a waiting count is due. */
static void pit_expired(void *owner)
{
	struct pit_8254 *pit = owner;
	struct pit_8254_channel *channel = &pit->channel[0];
	uint64_t now = ticks_now(pit);
	bool falls = channel->reload && channel->mode == 3 &&
	             (reload_tick(channel, channel->held) - channel->start) % channel->period != 0;

	channel_catch_up(channel, now);
	if (channel->mode >= 2 && !falls) {
		irq_line_set(&pit->irq0, false);
		irq_line_set(&pit->irq0, true);
		pit->last_edge = now;
	}
	pit_update(pit);
}

/* Loads the counting element at the next tick. */
static void channel_load(struct pit_8254_channel *channel, uint64_t now)
{
	channel->period = channel->next_period;
	channel->start = now + 1;
	channel->held = 0;
	channel->loaded = true;
	channel->reload = false;
	channel->paused = !channel->gate && channel->mode != 1 && channel->mode != 5;
	if (channel->paused)
		channel->null_count = false;
}

static void channel_set_count(struct pit_8254_channel *channel, uint16_t value, uint64_t now)
{
	uint32_t count = channel->bcd ? from_bcd(value) : value;

	if (count == 0)
		count = channel->bcd ? 10000 : 65536;
	channel->next_period = count;
	channel->null_count = true;
	switch (channel->mode) {
	case 0:
	case 4:
		channel_load(channel, now);
		break;
	case 1:
	case 5: /* taken at the next trigger */
		if (!channel->loaded) {
			channel->period = count;
			channel->loaded = true;
			channel->triggered = false;
			channel->start = UINT64_MAX;
		}
		break;
	default:
		if (!channel->loaded || channel->paused) {
			channel_load(channel, now);
		} else {
			channel->reload = true;
			channel->held = elapsed(channel, now);
		}
	}
}

static void channel_write(struct pit_8254_channel *channel, uint8_t value, uint64_t now)
{
	switch (channel->access) {
	case 1:
		channel_set_count(channel, value, now);
		break;
	case 2:
		channel_set_count(channel, value << 8, now);
		break;
	default:
		if (channel->write_high) {
			channel->write_high = false;
			channel_set_count(channel, value << 8 | channel->write_low, now);
		} else {
			channel->write_high = true;
			channel->write_low = value;
			if (channel->mode == 0) /* counting stops, OUT falls */
				channel->loaded = false;
		}
	}
}

/* Gate input (channel 2 only; the others are tied high). */
static void channel_set_gate(struct pit_8254_channel *channel, bool level, uint64_t now)
{
	bool rises = level && !channel->gate;

	if (level == channel->gate)
		return;
	channel_catch_up(channel, now);
	if (!level && !channel->paused && channel->mode != 1 && channel->mode != 5) {
		channel->held = elapsed(channel, now);
		channel->paused = true;
		if (channel->reload) { /* the rising gate loads it */
			channel->reload = false;
			channel->null_count = true;
		}
	}
	channel->gate = level;
	if (!rises || !channel->loaded)
		return;
	switch (channel->mode) {
	case 0:
	case 4:
		channel->start = now - channel->held;
		channel->paused = false;
		break;
	case 1:
	case 5:
		channel_load(channel, now);
		channel->triggered = true;
		break;
	default:
		channel_load(channel, now);
	}
}

static uint8_t channel_status(const struct pit_8254_channel *channel, uint64_t now)
{
	return channel_out(channel, now) << 7 | channel->null_count << 6 | channel->access << 4 | channel->mode << 1 |
	       channel->bcd;
}

static void latch_count(struct pit_8254_channel *channel, uint64_t now)
{
	if (channel->count_latched)
		return; /* until it is read */
	channel->latched_count = channel_count(channel, now);
	channel->count_latched = true;
}

static uint8_t channel_read(struct pit_8254_channel *channel, uint64_t now)
{
	uint16_t count;
	bool high;

	if (channel->status_latched) {
		channel->status_latched = false;
		return channel->latched_status;
	}
	count = channel->count_latched ? channel->latched_count : channel_count(channel, now);
	high = channel->access == 2 || (channel->access == 3 && channel->read_high);
	if (channel->access == 3)
		channel->read_high = !channel->read_high;
	if (channel->access != 3 || high)
		channel->count_latched = false;
	return high ? count >> 8 : count;
}

static void read_back(struct pit_8254 *pit, uint8_t value, uint64_t now)
{
	for (unsigned i = 0; i < CHANNELS; i++) {
		struct pit_8254_channel *channel = &pit->channel[i];

		if (!(value >> 1 >> i & 1))
			continue;
		if (!(value & 0x20))
			latch_count(channel, now);
		if (!(value & 0x10) && !channel->status_latched) {
			channel->latched_status = channel_status(channel, now);
			channel->status_latched = true;
		}
	}
}

static void control_write(struct pit_8254 *pit, uint8_t value, uint64_t now)
{
	struct pit_8254_channel *channel;
	uint8_t mode = value >> 1 & 7;

	if (value >> 6 == 3) {
		read_back(pit, value, now);
		return;
	}
	channel = &pit->channel[value >> 6];
	if ((value >> 4 & 3) == 0) {
		latch_count(channel, now);
		return;
	}
	*channel = (struct pit_8254_channel){
	    .mode = mode > 5 ? mode - 4 : mode, /* bit 2 is ignored in modes 2 and 3 */
	    .access = value >> 4 & 3,
	    .bcd = value & 1,
	    .gate = channel->gate,
	    .null_count = true,
	    .period = 65536,
	    .next_period = 65536,
	};
}

static uint64_t pit_read(void *device, uint64_t offset, unsigned size)
{
	struct pit_8254 *pit = device;
	uint64_t now = ticks_now(pit);

	if (offset >= CHANNELS)
		return 0xff; /* the control word cannot be read */
	channel_catch_up(&pit->channel[offset], now);
	return channel_read(&pit->channel[offset], now);
}

static void pit_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit_8254 *pit = device;
	uint64_t now = ticks_now(pit);

	for (unsigned i = 0; i < CHANNELS; i++)
		channel_catch_up(&pit->channel[i], now);
	if (offset < CHANNELS)
		channel_write(&pit->channel[offset], value, now);
	else
		control_write(pit, value, now);
	pit_update(pit);
}

/* Port 61h: bit 4 toggles with every refresh request (15.085 us), bit 5 is OUT of channel 2 (82371AB 4.5.1). */
static uint64_t port61_read(void *device, uint64_t offset, unsigned size)
{
	struct pit_8254 *pit = device;
	uint64_t now = ticks_now(pit);

	channel_catch_up(&pit->channel[2], now);
	return pit->port61 | (now / 18 & 1) << 4 | channel_out(&pit->channel[2], now) << 5;
}

static void port61_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit_8254 *pit = device;

	pit->port61 = value & 0x0f;
	channel_set_gate(&pit->channel[2], value & 1, ticks_now(pit));
}

static const struct bus_ops pit_ops = {.read = pit_read, .write = pit_write};
static const struct bus_ops port61_ops = {.read = port61_read, .write = port61_write};

int pit_8254_init(struct pit_8254 *pit, struct bus *bus, struct clock *clock, struct irq_line irq0)
{
	int error;

	memset(pit, 0, sizeof *pit);
	pit->clock = clock;
	pit->irq0 = irq0;
	timer_init(&pit->timer, clock, pit_expired, pit);
	pit_8254_reset(pit);
	if ((error = bus_add_ports(bus, 0x40, 4, "pit-8254", &pit_ops, pit)) ||
	    (error = bus_add_ports(bus, 0x61, 1, "port-61", &port61_ops, pit)))
		return error;
	return 0;
}

/* The 8254's state is undefined at power-on; as firmware finds it, nothing counts. */
void pit_8254_reset(struct pit_8254 *pit)
{
	for (unsigned i = 0; i < CHANNELS; i++)
		pit->channel[i] = (struct pit_8254_channel){
		    .access = 3, .mode = 3, .gate = i != 2, .null_count = true, .period = 65536, .next_period = 65536};
	pit->port61 = 0;
	pit->last_edge = 0;
	pit_update(pit);
}

static void channel_state(struct pit_8254_channel *channel, unsigned instance, struct state *state)
{
	state_begin(state, "pit-8254-channel", instance, 1);
	state_u8(state, "mode", &channel->mode);
	state_u8(state, "access", &channel->access);
	state_bool(state, "bcd", &channel->bcd);
	state_bool(state, "gate", &channel->gate);
	state_bool(state, "null-count", &channel->null_count);
	state_bool(state, "loaded", &channel->loaded);
	state_bool(state, "triggered", &channel->triggered);
	state_bool(state, "paused", &channel->paused);
	state_bool(state, "reload", &channel->reload);
	state_u32(state, "period", &channel->period);
	state_u32(state, "next-period", &channel->next_period);
	state_u64(state, "start", &channel->start);
	state_u64(state, "held", &channel->held);
	state_bool(state, "write-high", &channel->write_high);
	state_bool(state, "read-high", &channel->read_high);
	state_u8(state, "write-low", &channel->write_low);
	state_bool(state, "count-latched", &channel->count_latched);
	state_bool(state, "status-latched", &channel->status_latched);
	state_u16(state, "latched-count", &channel->latched_count);
	state_u8(state, "latched-status", &channel->latched_status);
	if (channel->mode > 5 || channel->access < 1 || channel->access > 3 || channel->period - 1 > 0xffff ||
	    channel->next_period - 1 > 0xffff || channel->held >> 62 ||
	    (channel->start >> 62 && channel->start != UINT64_MAX))
		state_fail(state, "register out of range");
	if (state_error(state))
		*channel = (struct pit_8254_channel){.access = 3, .mode = 3, .period = 65536, .next_period = 65536};
	state_end(state);
}

void pit_8254_state(struct pit_8254 *pit, struct state *state)
{
	for (unsigned i = 0; i < CHANNELS; i++)
		channel_state(&pit->channel[i], i, state);
	state_begin(state, "pit-8254", 0, 1);
	state_u8(state, "port61", &pit->port61);
	state_u64(state, "last-edge", &pit->last_edge);
	pit->port61 &= 0x0f;
	if (state_loading(state)) {
		pit_update(pit);
		irq_line_set(&pit->irq0, pit->irq0_level);
	}
	timer_state(&pit->timer, state, "timer"); /* last: an edge that is due and was not delivered stays so */
	state_end(state);
}
