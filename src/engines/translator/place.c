/*
 * Places: pages that floating code finds at a fixed distance from itself, as a library's tables and variables (RIP-relative
 * operands). Their linear address is another one in each process, but the same each time in one. So an access compares it
 * with where the page was last, at a place of the translation's own choice, which needs no index that waits for the address:
 *
 *	mov r9, [code_page]; lea r9, [r9+distance]; cmp r9, [page]; jne elsewhere; mov r9, [host]; ... [r9+offset in page]
 *
 * Accesses to one page from code pages that lie side by side in physical memory, too, share a place. They are filled from
 * the TLB, and void with what was taken from there: all of them, or (INVLPG) those of a page. User code only.
 */
#include <stddef.h>

#include "engines/translator/translation.h"
#include "memory/memory.h"

#define NOWHERE   1 /* no page */
#define PAGE_MASK ((uint64_t)MEMORY_PAGE_SIZE - 1)

/* ---- at run time ---- */

void places_void(struct translator *t, bool write)
{
	struct xplace *next;

	for (struct xplace *place = t->places_filled[write]; place; place = next) {
		next = (struct xplace *)(uintptr_t)place->next;
		place->page = NOWHERE;
		place->listed = false;
	}
	t->places_filled[write] = NULL;
}

void places_void_page(struct translator *t, uint64_t linear)
{
	for (unsigned write = 0; write < 2; write++)
		for (struct xplace *place = t->places_filled[write]; place;
		     place = (struct xplace *)(uintptr_t)place->next)
			if (place->page == (linear & ~PAGE_MASK))
				place->page = NOWHERE;
}

void places_begin(struct translator *t)
{
	for (unsigned write = 0; write < 2; write++)
		for (unsigned n = 0; n < XPLACES; n++)
			t->place[write][n].page = NOWHERE;
}

/* ---- code ---- */

bool place_possible(const struct translation *tr, const struct item *item, const ZydisDecodedOperand *o, unsigned size)
{
	if (!tr->floating || tr->view != MMU_USER || o->mem.base != ZYDIS_REGISTER_RIP ||
	    o->mem.segment == ZYDIS_REGISTER_FS || o->mem.segment == ZYDIS_REGISTER_GS || item->i.address_width != 64)
		return false;
	uint64_t address = place_address(tr, item, o);
	return (int64_t)address == (int32_t)address && (address & PAGE_MASK) + size <= MEMORY_PAGE_SIZE;
}

uint64_t place_address(const struct translation *tr, const struct item *item, const ZydisDecodedOperand *o)
{
	return tr->rip + (uint64_t)(int64_t)item->offset + item->i.length + (uint64_t)o->mem.disp.value;
}

struct host_memory lower_place(struct translation *tr, const struct item *item, uint64_t address, unsigned size,
                               bool write)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	int32_t distance = (int32_t)(address & ~PAGE_MASK), offset = (int32_t)(address & PAGE_MASK);
	unsigned n = (unsigned)((tr->block->physical >> 12) + (uint64_t)(int64_t)(distance >> 12)) % XPLACES;
	const struct xplace *place = &t->place[write][n];

	flags_keep(tr, item->live_before);
	emit_load(e, S1, xabs(&t->code_page));
	if (distance)
		emit_lea(e, S1, S1, distance);
	emit_op_abs(e, true, 0x3b, S1, xabs(&place->page)); /* cmp */
	tr->in_register = false;
	struct pending *p = pend(tr, PENDING_PLACE, emit_jump_if(e, CC_NE));
	emit_load(e, S1, xabs(&place->host));
	p->resume = e->at;
	p->disp = offset;
	p->item = item;
	p->site = new_site(tr, item, size, write);
	p->site->place = n;
	return (struct host_memory){.base = S1, .index = NO_REGISTER, .disp = offset};
}

/* ---- out of line ---- */

void emit_place_miss(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	if (p->disp)
		emit_lea(e, S1, S1, p->disp);
	emit_slow(tr, p, tr->t->place_miss[p->site->write]);
	if (p->disp)
		emit_lea(e, S1, S1, -p->disp);
	emit_jump_to(e, p->resume);
}

/*
 * Called with the linear address in S1 and the site on the stack. If the TLB has the page, the place is there from now on.
 * S1 is the host address then. Destroys S2 and flags.
 */
static void emit_miss(struct emitter *e, struct translator *t, bool write)
{
	uint32_t tag = xabs(&t->tlb[MMU_USER][0].tag[write]);

	_Static_assert(sizeof(struct xplace) == 32, "an index is shifted");
	emit_store(e, S1, xabs(&t->range_linear));
	emit_tlb_offset(e, S2, S1);
	emit_op_indexed(e, true, 0x33, S1, S2, tag); /* xor */
	emit_group1(e, true, 7, S1, MEMORY_PAGE_SIZE - 1);
	uint8_t *miss = emit_jump_if(e, CC_A);
	emit_op_indexed(e, true, 0x8b, S2, S2, xabs(&t->tlb[MMU_USER][0].delta[write]));
	emit_store(e, RAX, xabs(&t->range_saved));
	emit_op_base(e, true, 0x8b, RAX, RSP, 8);
	emit_op_base(e, false, 0x8b, RAX, RAX, offsetof(struct xsite, place));
	emit_shift_imm(e, 4, RAX, 5);
	emit_lea(e, RAX, RAX, (int32_t)xabs(&t->place[write][0]));
	emit_op_base(e, true, 0x81, 7, RAX, offsetof(struct xplace, listed)); /* cmp */
	emit_u32(e, 0);
	uint8_t *listed = emit_jump_if(e, CC_NE);
	emit_load32(e, S1, xabs(&t->places_filled[write]));
	emit_op_base(e, false, 0x89, S1, RAX, offsetof(struct xplace, next)); /* mov */
	emit_store(e, RAX, xabs(&t->places_filled[write]));
	emit_op_base(e, true, 0xc7, 0, RAX, offsetof(struct xplace, listed)); /* mov */
	emit_u32(e, 1);
	emit_fix(e, listed);
	emit_load(e, S1, xabs(&t->range_linear));
	emit_group1(e, true, 4, S1, -(int32_t)MEMORY_PAGE_SIZE);             /* and */
	emit_op_base(e, true, 0x89, S1, RAX, offsetof(struct xplace, page)); /* mov */
	emit_op_reg(e, true, 0x01, S2, S1);                                  /* add s1, s2 */
	emit_op_base(e, true, 0x89, S1, RAX, offsetof(struct xplace, host));
	emit_load(e, RAX, xabs(&t->range_saved));
	emit_load(e, S1, xabs(&t->range_linear));
	emit_op_reg(e, true, 0x01, S2, S1);
	emit_return_site(e);
	emit_fix(e, miss);
	emit_jump_to(e, t->slow_xored[MMU_USER][write]);
}

void place_emit_misses(struct emitter *e, struct translator *t)
{
	for (unsigned write = 0; write < 2; write++) {
		t->place_miss[write] = e->at;
		emit_miss(e, t, write);
	}
}
