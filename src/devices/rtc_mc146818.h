/*
 * The MC146818 real-time clock with 128 bytes of CMOS RAM (Motorola MC146818A), the NMI mask of port 70h, and the
 * second 128 bytes of the PIIX.
 *
 * Ports 70h-73h. Time is the machine's UTC plus what the guest has set it off by. All functions with the device lock
 * held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/bus.h"
#include "machine/clock.h"

#define RTC_CMOS_SIZE 128
#define RTC_CENTURY   0x32 /* register that holds the century */

struct state;

struct rtc_mc146818 {
	uint8_t cmos[RTC_CMOS_SIZE]; /* registers 0-9 and the century are the time only while it stands still */
	uint8_t index;
	uint8_t upper[RTC_CMOS_SIZE]; /* by ports 72h and 73h */
	uint8_t upper_index;
	bool nmi_masked;
	int64_t offset;       /* seconds from UTC to the RTC's time */
	uint32_t offset_ns;   /* and a fraction, 0-999999999 */
	uint8_t weekday_skew; /* 0-6: what the guest set the day of the week off by */
	uint64_t looked;      /* RTC time, in ns, up to which the flags of register C are computed */
	bool irq_level;

	struct irq_line irq8;
	struct irq_line nmi_mask; /* true: NMIs are masked */
	struct clock *clock;
	struct timer timer; /* the next enabled interrupt */
};

/* Claims the ports. 0 or -errno. */
int rtc_mc146818_init(struct rtc_mc146818 *rtc, struct bus *bus, struct clock *clock, struct irq_line irq8,
                      struct irq_line nmi_mask);
/* Clears the interrupt enables, as the RESET pin does; time and RAM are battery-backed. */
void rtc_mc146818_reset(struct rtc_mc146818 *rtc);
/* For the machine's own use of the RAM (memory sizes, boot order); index 0x0e-0x7f. */
void rtc_mc146818_set_cmos(struct rtc_mc146818 *rtc, unsigned index, uint8_t value);
/*
 * Fills the bytes from which firmware learns the memory size: 15h-18h, 30h-31h, 34h-35h (above 16 MiB), 5Bh-5Dh (above
 * 4 GiB). Sizes in bytes.
 */
void rtc_mc146818_set_memory(struct rtc_mc146818 *rtc, uint64_t below_4g, uint64_t above_4g);
void rtc_mc146818_state(struct rtc_mc146818 *rtc, struct state *state);
