/*
 * Translations of instructions that cross into another page. Such an instruction is a block of its own (insn.h) and good
 * while both pages mean what they meant:
 *
 *	first page	as with other blocks: links and targets of indirect transfers are undone
 *	second, mapped otherwise	the translation's first instructions compare its key with the page's (translator.h, page_key)
 *	second, written	translations are found by it in `crossing`, and what leads to them is undone
 */
#include "engines/translator/translation.h"
#include "memory/memory.h"

static struct xblock **chain_of(struct translator *t, uint64_t page)
{
	return &t->crossing[page % XCROSS_HASH];
}

static uint64_t next_page(uint64_t rip, bool code32)
{
	uint64_t next = (rip | (MEMORY_PAGE_SIZE - 1)) + 1;

	return code32 ? (uint32_t)next : next;
}

/* Lockstep compares what lies in one page. */
bool crossing_possible(const struct translator *t, const struct block *block)
{
	return block->second_page != UINT64_MAX && memory_is_ram(t->vcpu->memory, block->second_page) && !t->lockstep;
}

void crossing_add(struct translator *t, struct xblock *xblock)
{
	if (!xblock->second_now)
		return;
	struct xblock **chain = chain_of(t, xblock->block->second_page >> MEMORY_PAGE_SHIFT);

	xblock->next_crossing = *chain;
	*chain = xblock;
}

void crossing_remove(struct translator *t, struct xblock *xblock)
{
	if (!xblock->second_now)
		return;
	struct xblock **at = chain_of(t, xblock->block->second_page >> MEMORY_PAGE_SHIFT);

	while (*at && *at != xblock)
		at = &(*at)->next_crossing;
	if (*at)
		*at = xblock->next_crossing;
}

void crossing_written(struct translator *t, uint64_t page, void (*unlink)(struct translator *, struct xblock *))
{
	for (unsigned n = 0; n < XCROSS_HASH; n++) {
		if (page != UINT64_MAX && n != page % XCROSS_HASH)
			continue;
		for (struct xblock *xblock = t->crossing[n]; xblock; xblock = xblock->next_crossing)
			if (page == UINT64_MAX || xblock->block->second_page >> MEMORY_PAGE_SHIFT == page)
				unlink(t, xblock);
	}
}

void crossing_note_code(struct translator *t, const struct xblock *xblock, uint64_t rip)
{
	if (xblock->second_now)
		caches_enter_code(t, xblock->code_view, next_page(rip, xblock->code_view >= MMU_VIEWS),
		                  xblock->block->second_page);
}

/* Of floating code the key is put together as xpage_key() does. */
static void emit_floating_check(struct translation *tr)
{
	struct emitter *e = &tr->e;
	uint64_t frame = tr->block->second_page >> MEMORY_PAGE_SHIFT;

	emit_code_address(tr, S1, MEMORY_PAGE_SIZE);
	emit_rorx(e, S2, S1, MEMORY_PAGE_SHIFT - 3);
	emit_group1(e, false, 4, S2, (XPAGE_SIZE - 1) << 3); /* and */
	emit_shift_imm(e, 5, S1, 21);                        /* shr, shl */
	emit_shift_imm(e, 4, S1, 36);
	emit_op_indexed(e, true, 0x33, S1, S2, xabs(tr->t->page_key[tr->code_view])); /* xor */
	if (frame > INT32_MAX)
		tr->failed = tr->rooted = true;
	emit_group1(e, true, 7, S1, (int32_t)frame); /* cmp */
}

/*
 * At a block's beginning: leaves, to be looked for again, where the second page is another one. Another instruction may be
 * there then, so all flags are taken for live.
 */
void emit_crossing_check(struct translation *tr)
{
	struct emitter *e = &tr->e;
	uint64_t next = next_page(tr->rip, tr->code32);

	if (!tr->block->crosses)
		return;
	flags_keep(tr, ALL_FLAGS);
	if (tr->floating) {
		emit_floating_check(tr);
	} else {
		emit_move_imm64(e, S1, xpage_key(next, tr->block->second_page));
		emit_op_abs(e, true, 0x3b, S1, xabs(&tr->t->page_key[tr->code_view][next >> 12 & (XPAGE_SIZE - 1)]));
	}
	tr->in_register = false;
	/* Never made: it leads to whatever is here now. */
	pend(tr, PENDING_LINK, emit_jump_if(e, CC_NE))->link = new_link(tr, tr->rip, false);
}
