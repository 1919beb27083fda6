/*
 * Translations that processors take from one another, through the machine's depot.
 *
 * What was translated is stored as it would be for a processor whose data, tables and code all begin at 0, with a list of
 * the places (struct emitter's relocations) that the addresses of the one who takes it are added to:
 *
 *	code		addresses in struct translator, struct vcpu, the tables; displacements to the trampolines
 *	sites, links	addresses in the code, the interpreter's block, one another
 *
 * A translation depends on the guest's code in its page (the block's, and what the look-ahead for flags saw), which its
 * physical address and the generation of the page stand for; on where it is run (struct depot_key); on what was learned
 * about its accesses (struct block: hot, apart, scattered), which is taken with it; and on the interpreter's slots, which
 * are compared. All else is the same for all processors of a machine.
 *
 * Not stored: instructions that cross into another page, translations that go on in other blocks, and code of more than
 * CODE_LONGEST bytes.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "debug/disassemble.h"
#include "debug/perf_map.h"
#include "debug/trace.h"
#include "engines/translator/depot.h"
#include "engines/translator/translation.h"
#include "host/log.h"
#include "machine/machine.h"

/* What the number at a place is relative to. */
enum base {
	BASE_TRANSLATOR,
	BASE_VCPU,
	BASE_SITES, /* the translation's first */
	BASE_LINKS,
	BASE_RANGES,
	BASE_COUNT,
	BASE_CODE,    /* a displacement: the code's offset in the arena is subtracted */
	BASE_ROUTINE, /* a displacement: number of a string routine */
	BASE_POINTER, /* 64 bits: offset in the block's slots, or XBLOCK */
};
#define BASE_SHIFT   28 /* above the place's offset in the code */
#define PLACE_MASK   ((1u << BASE_SHIFT) - 1)
#define CODE_LONGEST 8191u
#define XBLOCK       UINT64_MAX
#define RETAKE_DEPOT (4u << 20)
#define WRITER_NS    500000000

/* Followed by sites, links, pointers, ranges, places, the guest's code, and the code. */
struct shared {
	uint64_t scattered, apart;
	uint32_t slots_hash, size; /* of the code */
	uint16_t sites, links, pointers, ranges, places;
	uint16_t entry_a, entry_b, entry_i, entry_av, entry_loop;
	uint8_t vector;
	bool x87, flagged, hot;
	uint32_t instructions;
};

/* A struct xrange before it is used. */
struct seed {
	uint16_t first;
	uint8_t item;
	bool write;
};

struct parts {
	struct xsite *sites;
	struct xlink *links;
	struct xpointers *pointers;
	struct seed *ranges;
	uint32_t *places;
	uint8_t *guest, *code;
};

/* What follows it; its size in all. */
static size_t divide(const struct shared *s, uint32_t length, struct parts *p)
{
	p->sites = (struct xsite *)(s + 1);
	p->links = (struct xlink *)(p->sites + s->sites);
	p->pointers = (struct xpointers *)(p->links + s->links);
	p->ranges = (struct seed *)(p->pointers + s->pointers);
	p->places = (uint32_t *)(p->ranges + s->ranges);
	p->guest = (uint8_t *)(p->places + s->places);
	p->code = p->guest + length;
	return (size_t)(p->code + s->size - (const uint8_t *)s);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static void put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
}

/* Of the interpreter's slots, as far as code and sites know them. */
static uint32_t hash_slots(const struct block *block)
{
	const struct insn *end = (const struct insn *)block->bytes;
	uint32_t hash = (uint32_t)(end - block->insn);

	for (const struct insn *slot = block->insn + 1; slot < end; slot++)
		hash = hash * 31 + slot->number + slot->offset * 128u;
	return hash;
}

static struct depot_key key_of(const struct translator *t, const struct block *block, bool loose)
{
	bool floating = loose && !block->rooted;
	uint64_t rip = t->vcpu->state.rip;

	return (struct depot_key){.physical = block->physical,
	                          .rip = floating ? rip & (MEMORY_PAGE_SIZE - 1) : rip,
	                          .generation = block->generation,
	                          .mode = block->mode,
	                          .length = block->length,
	                          .view = (uint8_t)t->vcpu->mmu.view,
	                          .floating = floating,
	                          .loose = loose};
}

/* ---- giving ---- */

static bool is_within(uint64_t address, const volatile void *table, size_t size, uint64_t *offset)
{
	*offset = address - (uintptr_t)table;
	return *offset < size;
}

/* The number of a string routine, from its offset in the arena. -1: it is none. */
static int routine_at(const struct translator *t, size_t offset)
{
	const uint8_t *const *known = &t->string_routine[0][0][0][0];
	unsigned count = sizeof(t->string_routine) / sizeof(*known);

	for (unsigned n = 0; n < count; n++)
		if (known[n] == t->arena.write + offset)
			return (int)n;
	return -1;
}

static const uint8_t *routine_of(struct translator *t, unsigned n)
{
	bool code32 = n & 1;
	unsigned shift = n >> 1 & 3, view = n / 8 % MMU_VIEWS;
	enum xstring operation = n / 8 / MMU_VIEWS ? XSTRING_STOS : XSTRING_MOVS;
	const uint8_t *routine = string_routine(t, operation, view, 1u << shift, code32);

	return routine ? routine : t->string;
}

/* The number at `place` of the code becomes relative; -1: to nothing that is known. */
static int unbase(const struct translation *tr, const struct translator_cursors *c, uint32_t relocation, uint8_t *place,
                  uint32_t at)
{
	const struct translator *t = tr->t;
	uint64_t value, offset;
	uint32_t code = (uint32_t)(tr->e.relocations->start - t->arena.write);

	switch (relocation) {
	case RELOCATION_ABSOLUTE: {
		const struct {
			const volatile void *table;
			size_t size;
		} known[] = {
		    [BASE_TRANSLATOR] = {t, sizeof(*t)},
		    [BASE_VCPU] = {t->vcpu, sizeof(*t->vcpu)},
		    [BASE_SITES] = {&t->sites[c->sites], (t->site_count - c->sites) * sizeof(*t->sites)},
		    [BASE_LINKS] = {&t->links[c->links], (t->link_count - c->links) * sizeof(*t->links)},
		    [BASE_RANGES] = {&t->ranges[c->ranges], (t->range_count - c->ranges) * sizeof(*t->ranges)},
		    [BASE_COUNT] = {warm_count(t, tr->xblock), sizeof(*t->counts)},
		};

		for (int base = 0; base <= BASE_COUNT; base++)
			if (is_within(get32(place), known[base].table, known[base].size, &offset)) {
				put32(place, (uint32_t)offset);
				return base;
			}
		return -1;
	}
	case RELOCATION_OUTSIDE:
		value = (uint32_t)(get32(place) + at + 4 + code);
		if (value < TRAMPOLINES_SIZE) {
			put32(place, (uint32_t)value - at - 4);
			return BASE_CODE;
		}
		int routine = routine_at(t, value);
		put32(place, (uint32_t)routine);
		return routine < 0 ? -1 : BASE_ROUTINE;
	default:
		memcpy(&value, place, sizeof(value));
		if (value == (uintptr_t)tr->xblock)
			offset = XBLOCK;
		else if (!is_within(value, tr->block->insn, (size_t)(tr->block->bytes - (uint8_t *)tr->block->insn),
		                    &offset))
			return -1;
		memcpy(place, &offset, sizeof(offset));
		return BASE_POINTER;
	}
}

/* Offsets instead of pointers: 0 for NULL. */
static void *relative(const volatile void *pointer, const volatile void *to)
{
	return pointer ? (void *)((uintptr_t)pointer - (uintptr_t)to + 1) : NULL;
}

static void *absolute(const volatile void *pointer, const volatile void *to)
{
	return pointer ? (void *)((uintptr_t)pointer - 1 + (uintptr_t)to) : NULL;
}

static void store_tables(const struct translation *tr, const struct translator_cursors *c, const struct shared *s,
                         const struct parts *p)
{
	const struct translator *t = tr->t;
	const uint8_t *code = tr->xblock->code;

	for (unsigned n = 0; n < s->sites; n++) {
		struct xsite *site = &p->sites[n];

		*site = t->sites[c->sites + n];
		site->host -= (uint32_t)(code - t->arena.write);
		site->pointers = relative(site->pointers, &t->pointers[c->pointers]);
		site->range = site->range ? site->range - xabs(&t->ranges[c->ranges]) + 1 : 0;
		site->slot = relative(site->slot, tr->block->insn);
		site->block = site->block ? (struct block *)1 : NULL;
	}
	for (unsigned n = 0; n < s->links; n++) {
		struct xlink *link = &p->links[n];

		*link = t->links[c->links + n];
		link->place = relative(link->place, code);
		link->stub = relative(link->stub, code);
		link->key = relative(link->key, code);
		link->source = NULL;
	}
	memcpy(p->pointers, &t->pointers[c->pointers], s->pointers * sizeof(*p->pointers));
	for (unsigned n = 0; n < s->ranges; n++) {
		const struct xrange *range = &t->ranges[c->ranges + n];

		p->ranges[n] = (struct seed){.first = range->first, .item = range->item, .write = range->write};
	}
}

bool shared_give(const struct translation *tr, const struct translator_cursors *c)
{
	struct translator *t = tr->t;
	const struct xblock *xblock = tr->xblock;
	const struct block *block = tr->block;
	const struct relocations *r = tr->e.relocations;

	if (!r || r->incomplete || tr->parts > 1 || block->joined || block->crosses || xblock->size > CODE_LONGEST ||
	    atomic_load(block->generation_now) != block->generation)
		return false;
	struct shared head = {
	    .scattered = block->scattered,
	    .slots_hash = hash_slots(block),
	    .size = xblock->size,
	    .sites = (uint16_t)(t->site_count - c->sites),
	    .links = (uint16_t)(t->link_count - c->links),
	    .pointers = (uint16_t)(t->pointers_count - c->pointers),
	    .ranges = (uint16_t)(t->range_count - c->ranges),
	    .places = (uint16_t)r->count,
	    .entry_a = (uint16_t)(xblock->entry_a - xblock->code),
	    .entry_b = (uint16_t)(xblock->entry_b - xblock->code),
	    .entry_i = (uint16_t)(xblock->entry_i - xblock->code),
	    .entry_av = (uint16_t)(xblock->entry_av - xblock->code),
	    .entry_loop = (uint16_t)(xblock->entry_loop - xblock->code),
	    .vector = xblock->vector,
	    .x87 = xblock->x87,
	    .flagged = xblock->flagged,
	    .apart = block->apart,
	    .hot = block->hot,
	    .instructions = tr->count,
	};
	struct parts p;
	const struct depot_key key = key_of(t, block, xblock->loose);
	struct shared *s = depot_add(t->depot, &key, divide(&head, block->length, &p));

	if (!s)
		return false;
	*s = head;
	divide(s, block->length, &p);
	memcpy(p.guest, block->bytes, block->length);
	memcpy(p.code, xblock->code, xblock->size);
	store_tables(tr, c, s, &p);
	bool known = true;
	for (unsigned n = 0; n < r->count; n++) {
		uint32_t at = r->at[n] & ((1u << RELOCATION_SHIFT) - 1);
		int base = unbase(tr, c, r->at[n] >> RELOCATION_SHIFT, p.code + at, at);

		known &= base >= 0;
		p.places[n] = at | (uint32_t)(base & 15) << BASE_SHIFT;
	}
	if (!known)
		s->slots_hash = ~s->slots_hash; /* nobody's */
	depot_done(t->depot, &key);
	t->counters.given += known;
	return known;
}

/* ---- taking ---- */

/* Is it what this processor would make, or better? */
static bool is_good(const struct shared *s, const struct parts *p, const struct block *block)
{
	return s->hot >= block->hot && !(block->apart & ~s->apart) && !(block->scattered & ~s->scattered) &&
	       s->slots_hash == hash_slots(block) && memcmp(p->guest, block->bytes, block->length) == 0;
}

static bool has_room(const struct translator *t, const struct shared *s, size_t start)
{
	const struct xregion *region = &t->region[t->region_now];

	return start + s->size <= region->code_end && t->xblock_count < region->xblocks_end &&
	       t->link_count + s->links <= region->links_end && t->site_count + s->sites <= region->sites_end &&
	       t->pointers_count + s->pointers <= region->pointers_end &&
	       t->range_count + s->ranges <= region->ranges_end;
}

static void take_code(struct translator *t, const struct shared *s, const struct parts *p, uint8_t *code,
                      const struct block *block, const struct xblock *xblock)
{
	const uint32_t bases[] = {
	    [BASE_TRANSLATOR] = xabs(t),
	    [BASE_VCPU] = xabs(t->vcpu),
	    [BASE_SITES] = xabs(&t->sites[t->site_count]),
	    [BASE_LINKS] = xabs(&t->links[t->link_count]),
	    [BASE_RANGES] = xabs(&t->ranges[t->range_count]),
	    [BASE_COUNT] = xabs(warm_count(t, xblock)),
	    [BASE_CODE] = -(uint32_t)(code - t->arena.write),
	};

	memcpy(code, p->code, s->size);
	for (unsigned n = 0; n < s->places; n++) {
		unsigned base = p->places[n] >> BASE_SHIFT;
		uint8_t *place = code + (p->places[n] & PLACE_MASK);

		if (base <= BASE_CODE) {
			put32(place, get32(place) + bases[base]);
		} else if (base == BASE_ROUTINE) {
			put32(place, (uint32_t)(routine_of(t, get32(place)) - (place + 4)));
		} else {
			uint64_t value;

			memcpy(&value, place, sizeof(value));
			value = value == XBLOCK ? (uintptr_t)xblock : value + (uintptr_t)block->insn;
			memcpy(place, &value, sizeof(value));
		}
	}
}

static void take_tables(struct translator *t, const struct shared *s, const struct parts *p, const uint8_t *code,
                        struct block *block, struct xblock *xblock)
{
	uint32_t now = s->ranges ? xrange_time(__rdtsc()) : 0;

	for (unsigned n = 0; n < s->sites; n++) {
		struct xsite *site = &t->sites[t->site_count + n];

		*site = p->sites[n];
		site->host += (uint32_t)(code - t->arena.write);
		site->pointers = absolute(site->pointers, &t->pointers[t->pointers_count]);
		site->range = site->range ? site->range - 1 + xabs(&t->ranges[t->range_count]) : 0;
		site->slot = absolute(site->slot, block->insn);
		site->block = site->block ? block : NULL;
	}
	for (unsigned n = 0; n < s->links; n++) {
		struct xlink *link = &t->links[t->link_count + n];

		*link = p->links[n];
		link->place = absolute(link->place, code);
		link->stub = absolute(link->stub, code);
		link->key = absolute(link->key, code);
		link->source = xblock;
	}
	memcpy(&t->pointers[t->pointers_count], p->pointers, s->pointers * sizeof(*p->pointers));
	for (unsigned n = 0; n < s->ranges; n++)
		range_begin(&t->ranges[t->range_count + n], p->ranges[n].first, p->ranges[n].item, p->ranges[n].write,
		            now, block);
	warm_begin(t, xblock);
	t->site_count += s->sites;
	t->link_count += s->links;
	t->pointers_count += s->pointers;
	t->range_count += s->ranges;
}

static void take(struct translator *t, const struct shared *s, const struct parts *p, struct block *block,
                 const struct depot_key *key, struct xblock *xblock)
{
	uint8_t *code = t->arena.write + ((t->arena.used + 15) & ~(size_t)15);

	block->hot = s->hot;
	block->apart = s->apart;
	block->scattered = s->scattered;
	*xblock = (struct xblock){.rip = key->rip,
	                          .entry_a = code + s->entry_a,
	                          .entry_b = code + s->entry_b,
	                          .entry_i = code + s->entry_i,
	                          .entry_av = code + s->entry_av,
	                          .entry_loop = code + s->entry_loop,
	                          .code = code,
	                          .size = s->size,
	                          .block = block,
	                          .generation = block->generation,
	                          .view = key->view,
	                          .code_view = (uint8_t)(key->view + (block->mode == MODE_64 ? 0 : MMU_VIEWS)),
	                          .vector = s->vector,
	                          .x87 = s->x87,
	                          .flagged = s->flagged,
	                          .floating = key->floating,
	                          .loose = key->loose};
	take_code(t, s, p, code, block, xblock);
	take_tables(t, s, p, code, block, xblock);
	t->arena.used = (size_t)(code + s->size - t->arena.write);
}

static struct xblock *take_for(struct translator *t, struct block *block, const struct depot_key *key, bool *full)
{
	const struct shared *s = depot_find(t->depot, key);
	if (!s)
		return NULL;
	struct xblock *xblock = NULL;
	struct parts p;
	divide(s, key->length, &p);
	if (is_good(s, &p, block)) {
		if (has_room(t, s, (t->arena.used + 15) & ~(size_t)15)) {
			xblock = regions_new_block(t);
			take(t, s, &p, block, key, xblock);
		} else {
			*full = !regions_empty(t);
		}
	}
	depot_done(t->depot, key);
	if (!xblock)
		return NULL;
	t->counters.taken++;
	if (t->plant)
		t->plant((uint8_t *)xblock->code, xblock->size);
	trace_taken(t, xblock);
	if (t->perf_map)
		perf_map_block(t->perf_map, code_arena_executable(&t->arena, xblock->code), xblock->size,
		               t->vcpu->state.rip);
	return xblock;
}

struct xblock *shared_take(struct translator *t, struct block *block, bool *full)
{
	bool loose = runtime_floats(t, block);

	*full = false;
	if (block->crosses || atomic_load(block->generation_now) != block->generation)
		return NULL;
	/* Has somebody else met the page at two addresses? */
	if (!loose && !block->rooted && runtime_may_float(t, block)) {
		struct depot_key key = key_of(t, block, true);
		struct xblock *xblock = take_for(t, block, &key, full);

		if (xblock)
			runtime_set_floating(t, block);
		if (xblock || *full)
			return xblock;
	}
	struct depot_key key = key_of(t, block, loose);
	return take_for(t, block, &key, full);
}

/* ---- for tests ---- */

int translator_set_retake(struct vcpu *vcpu)
{
	struct translator *t = interpreter_of(vcpu)->translator;

	t->depot = depot_create(RETAKE_DEPOT);
	t->retake = t->depot != NULL;
	return t->depot ? 0 : -ENOMEM;
}

struct xblock *shared_retake(struct translator *t, struct xblock *made, const struct translator_cursors *c, bool *full)
{
	struct translator_cursors end = cursors_of(t);
	struct xblock *xblock = shared_take(t, made->block, full);

	if (!xblock)
		return made;
	/* Whoever uses anything of the first one shall fall. */
	memset((uint8_t *)made->code, 0xf4, made->size); /* hlt */
	for (uint32_t n = c->sites; n < end.sites; n++) {
		t->sites[n].slot = NULL;
		t->sites[n].block = NULL;
	}
	for (uint32_t n = c->links; n < end.links; n++)
		memset(&t->links[n], 0, sizeof(t->links[n]));
	return xblock;
}

/* The tables of what was made from `c` on, as far as they say something. */
static bool same_tables(const struct translator *t, const struct translator_cursors *c, const struct xsite *sites,
                        const struct xlink *links, uint32_t site_count, uint32_t link_count)
{
	if (t->site_count - c->sites != site_count || t->link_count - c->links != link_count)
		return false;
	for (uint32_t n = 0; n < site_count; n++) {
		const struct xsite *a = &t->sites[c->sites + n], *b = &sites[n];

		if (a->host != b->host || a->size != b->size || a->slots != b->slots || a->length != b->length ||
		    a->write != b->write || a->flags_in_register != b->flags_in_register ||
		    a->no_links != b->no_links || a->waits != b->waits || a->masked != b->masked ||
		    a->floating != b->floating || a->string != b->string || a->pointers != b->pointers ||
		    a->inside != b->inside || a->window != b->window || a->slack != b->slack || a->item != b->item ||
		    a->first_write != b->first_write || a->settle != b->settle || a->end != b->end ||
		    a->end_in_register != b->end_in_register || a->first_size != b->first_size || a->span != b->span ||
		    a->first_offset != b->first_offset || a->range != b->range || a->block != b->block ||
		    a->slot != b->slot || a->rip != b->rip)
			return false;
	}
	for (uint32_t n = 0; n < link_count; n++) {
		const struct xlink *a = &t->links[c->links + n], *b = &links[n];

		if (a->place != b->place || a->stub != b->stub || a->key != b->key || a->own != b->own ||
		    a->floating != b->floating || a->rip != b->rip || a->entry_a != b->entry_a ||
		    a->vector != b->vector || a->x87 != b->x87 || a->view != b->view || a->settle != b->settle ||
		    a->apart != b->apart)
			return false;
	}
	return true;
}

/* Pointers to `from` become such to `to`. */
static void repoint(uint8_t *code, size_t size, const void *from, const void *to)
{
	uint8_t *end = code + size, *at = code;

	while ((at = memmem(at, (size_t)(end - at), &from, sizeof(from)))) {
		memcpy(at, &to, sizeof(to));
		at += sizeof(to);
	}
}

static void report_difference(const struct translator *t, const struct xblock *xblock, const char *what)
{
	struct vcpu *vcpu = t->vcpu;

	/* Who writes the page right now moves its generation after that: then it was other code that was looked ahead at. */
	nanosleep(&(struct timespec){.tv_nsec = WRITER_NS}, NULL);
	if (atomic_load(xblock->block->generation_now) != xblock->generation)
		return;
	log_error("cpu %u: the translation taken for %016llx differs from its own: %s", vcpu->index,
	          (unsigned long long)vcpu->state.rip, what);
	trace_taken(t, xblock);
	if (vcpu->machine)
		machine_end(vcpu->machine, MACHINE_FAILED, 0);
}

struct xblock *shared_compare(struct translator *t, struct xblock *taken, const struct translator_cursors *c,
                              bool *full)
{
	struct depot *depot = t->depot;
	struct xblock was = *taken;
	uint32_t site_count = t->site_count - c->sites, link_count = t->link_count - c->links;
	uint8_t *code = malloc(was.size + 8 + site_count * sizeof(struct xsite) + link_count * sizeof(struct xlink));

	if (!code)
		return taken;
	struct xsite *sites = (struct xsite *)(code + ((was.size + 7) & ~7u));
	struct xlink *links = (struct xlink *)(sites + site_count);
	memcpy(code, was.code, was.size);
	memcpy(sites, &t->sites[c->sites], site_count * sizeof(*sites));
	memcpy(links, &t->links[c->links], link_count * sizeof(*links));
	cursors_set(t, c);
	t->depot = NULL;
	struct xblock *own = translate_block(t, was.block, full);
	t->depot = depot;
	if (own && !own->more_count) { /* if it goes on in others, which have become hot, it is another one */
		repoint(code, was.size, taken, own);
		if (own->size != was.size || memcmp(own->code, code, was.size) != 0)
			report_difference(t, own, "code");
		else if (!same_tables(t, c, sites, links, site_count, link_count))
			report_difference(t, own, "sites or links");
		else if (own->entry_a != was.entry_a || own->entry_b != was.entry_b || own->entry_i != was.entry_i ||
		         own->entry_av != was.entry_av || own->entry_loop != was.entry_loop ||
		         own->vector != was.vector || own->x87 != was.x87 || own->flagged != was.flagged ||
		         own->floating != was.floating || own->loose != was.loose || own->view != was.view ||
		         own->code_view != was.code_view || own->rip != was.rip)
			report_difference(t, own, "entries");
		t->counters.compared++;
	}
	free(code);
	return own;
}
