/* Where a case's code and data lie, and the segments that it may use. */
#include <pthread.h>
#include <string.h>

#include "isa.h"

const struct isa_window isa_windows[ISA_PAGES] = {
    [PAGE_CODE0] = {ISA_CODE, false, true},
    [PAGE_CODE1] = {ISA_CODE + 0x1000, false, true},
    [PAGE_DATA0] = {ISA_DATA, true, false},
    [PAGE_DATA1] = {ISA_DATA + 0x1000, true, false},
    [PAGE_DATA2] = {ISA_DATA + 0x2000, true, false},
    [PAGE_DATA4] = {ISA_DATA + 0x4000, true, false},
    [PAGE_DATA5] = {ISA_DATA + 0x5000, false, false},
    [PAGE_DATA6] = {ISA_DATA + 0x6000, true, false},
    [PAGE_HIGH] = {ISA_HIGH, true, false},
};

int isa_page_of(uint64_t linear)
{
	for (int page = 0; page < ISA_PAGES; page++)
		if ((linear & ~0xfffull) == isa_windows[page].linear)
			return page;
	return -1;
}

static uint8_t background[ISA_PAGES][4096];
static pthread_once_t background_once = PTHREAD_ONCE_INIT;

static void background_fill(void)
{
	struct random random = {0x7269676e33ull};

	for (int page = 0; page < ISA_PAGES; page++)
		if (isa_windows[page].executable)
			memset(background[page], 0xcc, sizeof(background[page]));
		else
			random_bytes(&random, background[page], sizeof(background[page]));
}

const uint8_t *isa_background(enum isa_page page)
{
	pthread_once(&background_once, background_fill);
	return background[page];
}

#define DATA_RW   (SEG_WRITABLE | SEG_ACCESSED)
#define DATA_RO   SEG_ACCESSED
#define DATA_DOWN (SEG_WRITABLE | SEG_EXPANDDOWN | SEG_ACCESSED)
#define CODE_XR   (SEG_CODE | SEG_READABLE | SEG_ACCESSED)
#define CODE_X    (SEG_CODE | SEG_ACCESSED)

const struct isa_descriptor isa_ldt[ISA_LDT_COUNT] = {
    [LDT_FLAT] = {0, 0xfffff, DATA_RW, true, true, true},
    [LDT_DATA] = {ISA_DATA, 0x2fff, DATA_RW, true, false, true},
    [LDT_READ_ONLY] = {ISA_DATA, 0x2fff, DATA_RO, true, false, true},
    [LDT_DOWN32] = {ISA_DATA, 0x0fff, DATA_DOWN, true, false, true},
    [LDT_DOWN16] = {ISA_DATA, 0x0fff, DATA_DOWN, false, false, true},
    [LDT_STACK16] = {ISA_DATA, 0xffff, DATA_RW, false, false, true},
    [LDT_BELOW] = {ISA_DATA - 0x8000, 0xffff, DATA_RW, true, false, true},
    [LDT_CODE32_FLAT] = {0, 0xfffff, CODE_XR, true, true, true},
    [LDT_CODE32] = {ISA_CODE, 0x1fff, CODE_XR, true, false, true},
    [LDT_CODE16] = {ISA_CODE, 0xffff, CODE_XR, false, false, true},
    [LDT_CODE32_EXECUTE] = {ISA_CODE - 0x1000, 0xfffff, CODE_X, true, true, true},
    [LDT_NOT_PRESENT] = {ISA_DATA, 0x2fff, DATA_RW, true, false, false},
    [LDT_SHORT] = {ISA_DATA + 0x800, 0x07ff, DATA_RW, true, false, true},
    [LDT_SHIFTED] = {0x123000, 0xfffff, DATA_RW, true, true, true},
    [LDT_CODE16_EXECUTE] = {ISA_CODE, 0x1fff, CODE_X, false, false, true},
};

static struct segment segment_of(const struct isa_descriptor *descriptor, uint16_t selector)
{
	struct segment segment = {
	    .base = descriptor->base,
	    .limit = descriptor->pages ? descriptor->limit << 12 | 0xfff : descriptor->limit,
	    .access = descriptor->type | SEG_S | 3u << SEG_DPL_SHIFT | (descriptor->present ? SEG_P : 0) |
	              (descriptor->big ? SEG_DB : 0) | (descriptor->pages ? SEG_G : 0),
	    .selector = selector,
	};

	return segment;
}

struct segment isa_segment(uint16_t selector)
{
	static const struct isa_descriptor flat_code = {0, 0xfffff, CODE_XR, true, true, true};
	static const struct isa_descriptor flat_data = {0, 0xfffff, DATA_RW, true, true, true};
	struct segment segment = {.selector = selector, .access = SEG_UNUSABLE};

	if (selector & 4)
		return segment_of(&isa_ldt[selector >> 3 & (ISA_LDT_COUNT - 1)], selector);
	if (selector == ISA_SELECTOR_CODE32)
		return segment_of(&flat_code, selector);
	if (selector == ISA_SELECTOR_DATA)
		return segment_of(&flat_data, selector);
	if (selector == ISA_SELECTOR_CODE64) {
		segment = segment_of(&flat_code, selector);
		segment.access = (segment.access & ~SEG_DB) | SEG_L;
	}
	return segment;
}

uint64_t isa_descriptor_bytes(const struct isa_descriptor *descriptor)
{
	uint64_t access = descriptor->type | SEG_S | 3u << SEG_DPL_SHIFT | (descriptor->present ? SEG_P : 0);
	uint64_t flags = (descriptor->big ? 4u : 0) | (descriptor->pages ? 8u : 0);

	if (!descriptor->type)
		return 0;
	return (descriptor->limit & 0xffffull) | (descriptor->base & 0xffffffull) << 16 | access << 40 |
	       (uint64_t)(descriptor->limit >> 16 & 15) << 48 | flags << 52 | (uint64_t)(descriptor->base >> 24) << 56;
}
