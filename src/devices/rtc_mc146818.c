/*
 * MC146818A real-time clock plus RAM.
 *
 * Nothing ticks: time registers and the flags of register C are computed from the clock when somebody looks, and one
 * timer is armed while an interrupt is enabled. While SET (B.7) is 1 or the divider is held in reset (A.6-4 = 11x) the
 * time stands in cmos[].
 */
#include "devices/rtc_mc146818.h"

#include <string.h>

#include "machine/state.h"

#define NS_PER_SECOND 1000000000ull
#define SECONDS_A_DAY 86400

#define SECONDS       0
#define SECONDS_ALARM 1
#define MINUTES       2
#define MINUTES_ALARM 3
#define HOURS         4
#define HOURS_ALARM   5
#define WEEKDAY       6
#define DAY           7
#define MONTH         8
#define YEAR          9
#define REG_A         10
#define REG_B         11
#define REG_C         12
#define REG_D         13

#define A_UIP    0x80u
#define B_SET    0x80u
#define B_PIE    0x40u
#define B_AIE    0x20u
#define B_UIE    0x10u
#define B_BINARY 0x04u
#define B_24H    0x02u
#define C_IRQF   0x80u
#define C_PF     0x40u
#define C_AF     0x20u
#define C_UF     0x10u
#define D_VRT    0x80u

#define UIP_NS 244000u /* UIP is set so long before an update (MC146818A, table 6) */

/* RTC time in ns since 1970, never negative: the guest may set any year of the register's range. */
static uint64_t rtc_now(struct rtc_mc146818 *rtc)
{
	uint64_t seconds;
	uint32_t ns;
	__int128 now;

	clock_utc(rtc->clock, &seconds, &ns);
	now = ((__int128)seconds + rtc->offset) * (__int128)NS_PER_SECOND + ns + rtc->offset_ns;
	return now < 0 ? 0 : now > INT64_MAX ? INT64_MAX : (uint64_t)now;
}

static void set_rtc_now(struct rtc_mc146818 *rtc, int64_t seconds, uint32_t fraction)
{
	uint64_t utc;
	uint32_t ns;

	clock_utc(rtc->clock, &utc, &ns);
	rtc->offset = seconds - (int64_t)utc;
	if (fraction < ns) {
		rtc->offset--;
		fraction += NS_PER_SECOND;
	}
	rtc->offset_ns = fraction - ns;
	rtc->looked = rtc_now(rtc);
}

static bool divider_held(const struct rtc_mc146818 *rtc)
{
	return (rtc->cmos[REG_A] & 0x60) == 0x60;
}

static bool standing(const struct rtc_mc146818 *rtc)
{
	return rtc->cmos[REG_B] & B_SET || divider_held(rtc);
}

/* Periodic interrupt's interval in 1/32768 s; 0: none (table 5). */
static unsigned periodic_interval(const struct rtc_mc146818 *rtc)
{
	unsigned rate = rtc->cmos[REG_A] & 15;

	if (rate == 0 || divider_held(rtc))
		return 0;
	return rate < 3 ? 1u << (rate + 6) : 1u << (rate - 1);
}

static uint8_t encode(const struct rtc_mc146818 *rtc, unsigned value)
{
	return rtc->cmos[REG_B] & B_BINARY ? value : value / 10 % 10 << 4 | value % 10;
}

static unsigned decode(const struct rtc_mc146818 *rtc, uint8_t value)
{
	return rtc->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t encode_hour(const struct rtc_mc146818 *rtc, unsigned hour)
{
	if (rtc->cmos[REG_B] & B_24H)
		return encode(rtc, hour);
	return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc_mc146818 *rtc, uint8_t value)
{
	if (rtc->cmos[REG_B] & B_24H)
		return decode(rtc, value);
	return decode(rtc, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

/* Days since 1970-01-01 of a proleptic Gregorian date; month and day may be out of range by a little. */
static int64_t days_from_date(int64_t year, unsigned month, unsigned day)
{
	/* Years begin in March here, so that the leap day is the last one. */
	int64_t y = year + (int64_t)(month + 9) / 12 - 1, m = (month + 9) % 12;

	return 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

static void date_from_days(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
	int64_t shifted = days + 719468, era = shifted / 146097, in_era = shifted % 146097;
	int64_t year_of_era = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
	int64_t in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int64_t m = (5 * in_year + 2) / 153;

	*day = in_year - (153 * m + 2) / 5 + 1;
	*month = m < 10 ? m + 3 : m - 9;
	*year = era * 400 + year_of_era + (*month <= 2);
}

/* The time registers, from the running clock. */
static void time_to_registers(struct rtc_mc146818 *rtc)
{
	int64_t now = rtc_now(rtc) / NS_PER_SECOND, days = now / SECONDS_A_DAY, second = now % SECONDS_A_DAY, year;
	unsigned month, day;

	date_from_days(days, &year, &month, &day);
	rtc->cmos[SECONDS] = encode(rtc, second % 60);
	rtc->cmos[MINUTES] = encode(rtc, second / 60 % 60);
	rtc->cmos[HOURS] = encode_hour(rtc, second / 3600);
	rtc->cmos[WEEKDAY] =
	    encode(rtc, (days + 4 + rtc->weekday_skew) % 7 + 1); /* 1970 began on a Thursday; 1 is Sunday */
	rtc->cmos[DAY] = encode(rtc, day);
	rtc->cmos[MONTH] = encode(rtc, month);
	rtc->cmos[YEAR] = encode(rtc, year % 100);
	rtc->cmos[RTC_CENTURY] = encode(rtc, year / 100);
}

/* The running clock, from the time registers. Any bytes are a time: what is out of range carries over. */
static void registers_to_time(struct rtc_mc146818 *rtc, uint32_t fraction)
{
	int64_t year = (int64_t)decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 + decode(rtc, rtc->cmos[YEAR]), days, seconds;
	unsigned weekday = decode(rtc, rtc->cmos[WEEKDAY]);

	days = days_from_date(year, decode(rtc, rtc->cmos[MONTH]), decode(rtc, rtc->cmos[DAY]));
	seconds = days * SECONDS_A_DAY + decode_hour(rtc, rtc->cmos[HOURS]) * 3600 +
	          decode(rtc, rtc->cmos[MINUTES]) * 60 + decode(rtc, rtc->cmos[SECONDS]);
	rtc->weekday_skew = weekday ? (weekday + 700 - 1 - (unsigned)((days % 7 + 7 + 4) % 7)) % 7 : 0;
	set_rtc_now(rtc, seconds, fraction);
}

static bool alarm_field_matches(uint8_t alarm, uint8_t now)
{
	return alarm >= 0xc0 || alarm == now; /* 11xxxxxx: any */
}

/* Does an alarm fall on this second of the day? */
static bool alarm_matches(const struct rtc_mc146818 *rtc, unsigned second)
{
	return alarm_field_matches(rtc->cmos[SECONDS_ALARM], encode(rtc, second % 60)) &&
	       alarm_field_matches(rtc->cmos[MINUTES_ALARM], encode(rtc, second / 60 % 60)) &&
	       alarm_field_matches(rtc->cmos[HOURS_ALARM], encode_hour(rtc, second / 3600));
}

/* Is there a second that the alarm's seconds can match? If so, a matching minute ends the search below. */
static bool seconds_possible(const struct rtc_mc146818 *rtc)
{
	for (unsigned second = 0; second < 60; second++)
		if (alarm_field_matches(rtc->cmos[SECONDS_ALARM], encode(rtc, second)))
			return true;
	return false;
}

/* The first second in (after, after + limit] with an alarm, or 0. Alarms repeat daily: 86400 steps see them all. */
static uint64_t next_alarm(const struct rtc_mc146818 *rtc, uint64_t after, uint64_t limit)
{
	if (limit > SECONDS_A_DAY)
		limit = SECONDS_A_DAY;
	if (!seconds_possible(rtc))
		return 0;
	for (uint64_t i = 1; i <= limit; i++) {
		unsigned second = (after + i) % SECONDS_A_DAY;

		/* Whole minutes that cannot match are skipped. */
		if (second % 60 == 0 && limit - i >= 60 &&
		    !(alarm_field_matches(rtc->cmos[MINUTES_ALARM], encode(rtc, second / 60 % 60)) &&
		      alarm_field_matches(rtc->cmos[HOURS_ALARM], encode_hour(rtc, second / 3600)))) {
			i += 59;
			continue;
		}
		if (alarm_matches(rtc, second))
			return after + i;
	}
	return 0;
}

static uint64_t period_index(uint64_t ns, unsigned interval)
{
	return (uint64_t)((unsigned __int128)ns * 32768 / NS_PER_SECOND) / interval;
}

/* Sets the flags of everything that happened since the last look. */
static void rtc_catch_up(struct rtc_mc146818 *rtc)
{
	uint64_t now = rtc_now(rtc), before = rtc->looked, seconds, seconds_before;
	unsigned interval = periodic_interval(rtc);

	rtc->looked = now;
	if (now <= before)
		return;
	if (interval && period_index(now, interval) != period_index(before, interval))
		rtc->cmos[REG_C] |= C_PF;
	if (standing(rtc))
		return;
	seconds = now / NS_PER_SECOND;
	seconds_before = before / NS_PER_SECOND;
	if (seconds == seconds_before)
		return;
	rtc->cmos[REG_C] |= C_UF;
	if (!(rtc->cmos[REG_C] & C_AF) && next_alarm(rtc, seconds_before, seconds - seconds_before))
		rtc->cmos[REG_C] |= C_AF;
}

/* RTC time of the next enabled interrupt that is not flagged yet, or UINT64_MAX. */
static uint64_t next_event(const struct rtc_mc146818 *rtc)
{
	uint64_t next = UINT64_MAX, when, now = rtc->looked;
	uint8_t wanted = rtc->cmos[REG_B] & ~rtc->cmos[REG_C];
	unsigned interval = periodic_interval(rtc);

	if (wanted & B_PIE && interval) {
		unsigned __int128 units = (unsigned __int128)(period_index(now, interval) + 1) * interval;

		next = (uint64_t)((units * NS_PER_SECOND + 32767) / 32768);
	}
	if (standing(rtc))
		return next;
	when = (now / NS_PER_SECOND + 1) * NS_PER_SECOND;
	if (wanted & B_UIE && when < next)
		next = when;
	if (wanted & B_AIE && when < next) {
		when = next_alarm(rtc, now / NS_PER_SECOND, SECONDS_A_DAY) * NS_PER_SECOND;
		if (when && when < next)
			next = when;
	}
	return next;
}

/* Recomputes IRQF, the line and the timer. */
static void rtc_update(struct rtc_mc146818 *rtc)
{
	bool level = rtc->cmos[REG_B] & rtc->cmos[REG_C] & (C_PF | C_AF | C_UF);
	uint64_t next;

	rtc->cmos[REG_C] = (rtc->cmos[REG_C] & ~C_IRQF) | (level ? C_IRQF : 0);
	if (level != rtc->irq_level) {
		rtc->irq_level = level;
		irq_line_set(&rtc->irq8, level);
	}
	/* While the line is up nothing more can be heard. */
	next = level ? UINT64_MAX : next_event(rtc);
	if (next == UINT64_MAX)
		timer_cancel(&rtc->timer);
	else
		timer_set(&rtc->timer, clock_now(rtc->clock) + (next - rtc->looked));
}

static void rtc_expired(void *owner)
{
	struct rtc_mc146818 *rtc = owner;

	rtc_catch_up(rtc);
	rtc_update(rtc);
}

static bool is_time(unsigned index)
{
	return index == SECONDS || index == MINUTES || index == HOURS || (index >= WEEKDAY && index <= YEAR) ||
	       index == RTC_CENTURY;
}

static uint8_t rtc_read_register(struct rtc_mc146818 *rtc, unsigned index)
{
	uint8_t value;

	if (is_time(index) && !standing(rtc))
		time_to_registers(rtc);
	if (index == REG_A && !standing(rtc) && rtc->looked % NS_PER_SECOND >= NS_PER_SECOND - UIP_NS)
		return rtc->cmos[REG_A] | A_UIP;
	value = rtc->cmos[index];
	if (index == REG_C) {
		rtc->cmos[REG_C] = 0;
		rtc_update(rtc);
	}
	return value;
}

/* Registers A and B: SET and the divider stop and start the clock. */
static void write_control(struct rtc_mc146818 *rtc, unsigned index, uint8_t value)
{
	bool was_standing = standing(rtc), was_held = divider_held(rtc);
	uint8_t old_b = rtc->cmos[REG_B];

	if (!was_standing)
		time_to_registers(rtc);
	rtc->cmos[index] = index == REG_A ? value & 0x7f : value;
	if (index == REG_B && value & B_SET)
		rtc->cmos[REG_B] &= ~B_UIE; /* "SET ... UIE is cleared" */
	if (!was_standing && !standing(rtc) && (old_b ^ rtc->cmos[REG_B]) & (B_BINARY | B_24H))
		time_to_registers(rtc); /* the format changes, not the time */
	if (was_standing && !standing(rtc)) {
		/* After a divider reset the first update is half a second away; SET leaves the fraction alone. */
		uint32_t fraction = rtc_now(rtc) % NS_PER_SECOND;

		registers_to_time(rtc, was_held ? NS_PER_SECOND / 2 : fraction);
	}
}

static void rtc_write_register(struct rtc_mc146818 *rtc, unsigned index, uint8_t value)
{
	switch (index) {
	case REG_A:
	case REG_B:
		write_control(rtc, index, value);
		break;
	case REG_C:
	case REG_D:
		return; /* read-only */
	default:
		if (is_time(index) && !standing(rtc)) {
			time_to_registers(rtc);
			rtc->cmos[index] = value;
			registers_to_time(rtc, rtc_now(rtc) % NS_PER_SECOND);
		} else {
			rtc->cmos[index] = value;
		}
	}
	rtc_update(rtc);
}

static uint64_t rtc_read(void *device, uint64_t offset, unsigned size)
{
	struct rtc_mc146818 *rtc = device;

	switch (offset) {
	case 0:
	case 2:
		return 0xff; /* the indexes are write-only */
	case 3:
		return rtc->upper[rtc->upper_index];
	}
	rtc_catch_up(rtc);
	return rtc_read_register(rtc, rtc->index);
}

static void rtc_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct rtc_mc146818 *rtc = device;

	switch (offset) {
	case 0:
		rtc->index = value & 0x7f;
		rtc->nmi_masked = value & 0x80;
		irq_line_set(&rtc->nmi_mask, rtc->nmi_masked);
		return;
	case 2:
		rtc->upper_index = value & 0x7f;
		return;
	case 3:
		rtc->upper[rtc->upper_index] = value;
		return;
	}
	rtc_catch_up(rtc);
	rtc_write_register(rtc, rtc->index, value);
}

static const struct bus_ops rtc_ops = {.read = rtc_read, .write = rtc_write};

int rtc_mc146818_init(struct rtc_mc146818 *rtc, struct bus *bus, struct clock *clock, struct irq_line irq8,
                      struct irq_line nmi_mask)
{
	memset(rtc, 0, sizeof *rtc);
	rtc->clock = clock;
	rtc->irq8 = irq8;
	rtc->nmi_mask = nmi_mask;
	timer_init(&rtc->timer, clock, rtc_expired, rtc);
	rtc->cmos[REG_A] = 0x26; /* 32768 Hz, 1024 Hz periodic rate: what PC firmware sets */
	rtc->cmos[REG_B] = B_24H;
	rtc->cmos[REG_D] = D_VRT;
	rtc->looked = rtc_now(rtc);
	return bus_add_ports(bus, 0x70, 4, "rtc-mc146818", &rtc_ops, rtc);
}

void rtc_mc146818_reset(struct rtc_mc146818 *rtc)
{
	rtc_catch_up(rtc);
	rtc->cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE);
	rtc->cmos[REG_C] = 0;
	rtc->index = rtc->upper_index = 0;
	rtc->nmi_masked = false;
	irq_line_set(&rtc->nmi_mask, false);
	rtc_update(rtc);
}

void rtc_mc146818_set_cmos(struct rtc_mc146818 *rtc, unsigned index, uint8_t value)
{
	if (index > REG_D && index < RTC_CMOS_SIZE && index != RTC_CENTURY)
		rtc->cmos[index] = value;
}

static void set_word(struct rtc_mc146818 *rtc, unsigned index, uint64_t value)
{
	if (value > 0xffff)
		value = 0xffff;
	rtc_mc146818_set_cmos(rtc, index, value & 0xff);
	rtc_mc146818_set_cmos(rtc, index + 1, value >> 8);
}

void rtc_mc146818_set_memory(struct rtc_mc146818 *rtc, uint64_t below_4g, uint64_t above_4g)
{
	uint64_t extended = below_4g > 1 << 20 ? (below_4g - (1 << 20)) >> 10 : 0;

	set_word(rtc, 0x15, 640);
	set_word(rtc, 0x17, extended);
	set_word(rtc, 0x30, extended);
	set_word(rtc, 0x34, below_4g > 16 << 20 ? (below_4g - (16 << 20)) >> 16 : 0);
	set_word(rtc, 0x5b, above_4g >> 16 & 0xffff);
	rtc_mc146818_set_cmos(rtc, 0x5d, above_4g >> 32 & 0xff);
}

void rtc_mc146818_state(struct rtc_mc146818 *rtc, struct state *state)
{
	uint64_t offset;

	if (!state_loading(state))
		rtc_catch_up(rtc);
	offset = (uint64_t)rtc->offset;
	state_begin(state, "rtc-mc146818", 0, 1);
	state_u8_array(state, "cmos", rtc->cmos, RTC_CMOS_SIZE);
	state_u8(state, "index", &rtc->index);
	state_u8_array(state, "upper", rtc->upper, RTC_CMOS_SIZE);
	state_u8(state, "upper-index", &rtc->upper_index);
	state_bool(state, "nmi-masked", &rtc->nmi_masked);
	state_u64(state, "offset", &offset);
	state_u32(state, "offset-ns", &rtc->offset_ns);
	state_u8(state, "weekday-skew", &rtc->weekday_skew);
	state_u64(state, "looked", &rtc->looked);
	if (rtc->index >= RTC_CMOS_SIZE || rtc->upper_index >= RTC_CMOS_SIZE || rtc->offset_ns >= NS_PER_SECOND ||
	    rtc->weekday_skew > 6 || rtc->looked > INT64_MAX || (int64_t)offset > INT64_MAX / 2 ||
	    (int64_t)offset < INT64_MIN / 2)
		state_fail(state, "register out of range");
	if (state_error(state)) {
		rtc->index = rtc->upper_index = 0;
		rtc->offset_ns = rtc->weekday_skew = rtc->looked = 0;
		offset = 0;
	}
	rtc->cmos[REG_A] &= 0x7f;
	rtc->cmos[REG_C] &= C_IRQF | C_PF | C_AF | C_UF;
	rtc->cmos[REG_D] = D_VRT;
	rtc->offset = (int64_t)offset;
	state_end(state);
	if (state_loading(state)) {
		irq_line_set(&rtc->nmi_mask, rtc->nmi_masked);
		rtc->irq_level = rtc->cmos[REG_B] & rtc->cmos[REG_C] & (C_PF | C_AF | C_UF);
		irq_line_set(&rtc->irq8, rtc->irq_level);
		rtc_update(rtc);
	}
}
