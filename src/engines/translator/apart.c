/*
 * Direct transfers of floating code (translator.h) into another page, where code floats, too:
 *
 *	the code_page that the link is made for is compared; the new one is set; and a jump leads to the target
 *
 * The link means what it says while that linear page means the same physical page, and its code is there: written, what
 * leads there is undone as with other links; when addresses may mean something else, no link is made for any code_page any
 * more (as the stack of returns is emptied then, and for the same reason). User code alone floats: it cannot change what
 * its addresses mean and go on.
 *
 * Where it is made for another code_page the transfer is an indirect one. After some of these it is made for this one, and
 * then more patient: processes that have the code at different addresses shall not take it from one another all the time.
 */
#include "engines/translator/translation.h"

#define PATIENCE_MAX 512u
#define PAGE_MASK    ((uint64_t)MEMORY_PAGE_SIZE - 1)

/* ---- at run time ---- */

static uint32_t more_patient(uint32_t patience)
{
	return patience < PATIENCE_MAX ? 2 * patience : PATIENCE_MAX;
}

void apart_made(struct translator *t, struct xlink *link, uint64_t page)
{
	if (!link->listed) {
		link->next_apart = t->apart;
		t->apart = link;
		link->listed = true;
	}
	link->from = page;
	link->wait = link->patience = more_patient(link->patience);
}

void apart_known(struct translator *t, struct xacross *across, uint64_t page)
{
	if (!across->listed) {
		across->next_apart = t->across_apart;
		t->across_apart = across;
		across->listed = true;
	}
	across->from = page;
	across->wait = across->patience = more_patient(across->patience);
}

void apart_forget_page(struct translator *t, uint64_t linear)
{
	for (struct xacross *across = t->across_apart; across; across = across->next_apart)
		for (unsigned n = 0; n < across->count; n++)
			if (((across->from + (uint64_t)across->page[n].distance) ^ linear) >> MEMORY_PAGE_SHIFT == 0) {
				across->from = APART_NONE;
				break;
			}
	for (struct xlink *link = t->apart; link; link = link->next_apart)
		if (((link->from + link->rip) ^ linear) >> MEMORY_PAGE_SHIFT == 0)
			apart_undo(link);
}

void apart_forget(struct translator *t)
{
	for (struct xlink *link = t->apart, *next; link; link = next) {
		next = link->next_apart;
		link->next_apart = NULL;
		link->listed = false;
		apart_undo(link);
	}
	t->apart = NULL;
	for (struct xacross *across = t->across_apart, *next; across; across = next) {
		next = across->next_apart;
		across->next_apart = NULL;
		across->listed = false;
		across->from = APART_NONE;
	}
	t->across_apart = NULL;
}

/* ---- code ---- */

/* From the page that the translation begins in to that of `target`. */
static int32_t distance_to(struct translation *tr, uint64_t target)
{
	int64_t distance = (int64_t)(target & ~PAGE_MASK);

	/* No compiler's code: it does not float. */
	if (distance != (int32_t)distance || (int64_t)target != (int32_t)target || distance == INT32_MIN)
		tr->failed = tr->rooted = true;
	return (int32_t)distance;
}

struct xlink *emit_apart(struct translation *tr, uint64_t target, bool poll)
{
	struct translator *t = tr->t;
	struct emitter *e = &tr->e;
	struct xlink *link = new_link(tr, target, false);

	link->apart = true;
	tr->in_register = false;
	emit_load(e, S1, xabs(&t->code_page));
	emit_op_abs(e, true, 0x3b, S1, xabs(&link->from)); /* cmp */
	struct pending *p = pend(tr, PENDING_APART, emit_jump_if(e, CC_NE));
	p->link = link;
	p->target = target;
	if (poll) {
		emit_compare32_abs(e, xabs(&t->vcpu->attention), 0);
		p->more[0] = emit_jump_if(e, CC_NE);
	}
	emit_lea(e, S1, S1, distance_to(tr, target));
	emit_store(e, S1, xabs(&t->code_page));
	return link;
}

/* code_page is in S1. */
void emit_pending_apart(struct translation *tr, const struct pending *p)
{
	struct emitter *e = &tr->e;

	if (p->more[0])
		emit_fix(e, p->more[0]);
	emit_paired(tr, p);
	emit_op_abs(e, false, 0x83, 5, xabs(&p->link->wait)); /* sub dword [], 1 */
	emit_byte(e, 1);
	uint8_t *again = emit_jump_if(e, CC_E);
	emit_lea(e, S1, S1, (int32_t)p->target);
	exit_apart(tr, p->target);
	emit_fix(e, again);
	emit_push_address(e, xabs(p->link));
	emit_jump_to(e, tr->t->exit_link);
}

void emit_apart_back(struct translation *tr, const struct xlink *link)
{
	struct emitter *e = &tr->e;

	emit_load(e, S1, xabs(&tr->t->code_page));
	emit_lea(e, S1, S1, -distance_to(tr, link->rip));
	emit_store(e, S1, xabs(&tr->t->code_page));
}
