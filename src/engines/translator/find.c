/*
 * Targets of indirect transfers that are not among the last ones of this address space (struct translator's `jump`), found
 * without leaving translated code: the page's key says what its physical address is, and `known` what was translated from
 * there. So what was known of another process, or of more targets than `jump` has room for, costs some loads; and when a
 * page of code comes into use in an address space, all that is known there gets into `jump` at once.
 *
 * Built without vector instructions: called with the guest's vector registers in the host's.
 */
#include <string.h>

#include "engines/translator/runtime.h"
#include "x86/paging.h"

#define NO_PAGE   UINT64_MAX
#define PAGE_MASK ((uint64_t)MEMORY_PAGE_SIZE - 1)
#define CHAIN_MAX 16 /* nodes */

static uint64_t key_of(uint64_t physical, unsigned code_view)
{
	return physical >> MEMORY_PAGE_SHIFT | (uint64_t)(code_view + 1) << 56;
}

static uint64_t page_of(const struct xblock *xblock)
{
	return xblock->floating ? XKNOWN_FLOATS : xblock->rip & ~PAGE_MASK;
}

static uint64_t target_of(const struct translator *t, uint64_t physical, const uint8_t *host)
{
	return (uint64_t)(host - t->arena.execute) << MEMORY_PAGE_SHIFT | (physical & PAGE_MASK);
}

static const uint8_t *host_of(const struct translator *t, uint64_t target)
{
	return t->arena.execute + (target >> MEMORY_PAGE_SHIFT);
}

static struct xknown *head_of(const struct translator *t, uint64_t key)
{
	return &t->known[(key ^ key >> 14 ^ key >> 51) % XKNOWN_HEADS];
}

static struct xknown *next_of(const struct translator *t, const struct xknown *node)
{
	return node->next ? &t->known[node->next] : NULL;
}

/* The target with this offset in its page, among those of a node; NULL: it is not there. */
static uint64_t *in_node(struct xknown *node, uint64_t physical)
{
	for (unsigned n = 0; n < node->count; n++)
		if (!((node->target[n] ^ physical) & PAGE_MASK))
			return &node->target[n];
	return NULL;
}

void find_flush(struct translator *t)
{
	memset(t->known, 0, XKNOWN_NODES * sizeof(*t->known));
	t->known_used = XKNOWN_HEADS;
}

/* Another node behind the last one of a chain of `length`; where there is none, its head loses what it has. */
static struct xknown *new_node(struct translator *t, struct xknown *head, struct xknown *last, unsigned length)
{
	if (length >= CHAIN_MAX) {
		head->count = 0;
		return head;
	}
	if (t->known_used == XKNOWN_NODES) {
		find_flush(t);
		return head;
	}
	last->next = t->known_used++;
	return &t->known[last->next];
}

void find_enter(struct translator *t, const struct xblock *xblock, const uint8_t *host)
{
	uint64_t physical = xblock->block->physical, key = key_of(physical, xblock->code_view), page = page_of(xblock);
	struct xknown *head = head_of(t, key), *last = head, *room = NULL;
	unsigned length = 0;

	for (struct xknown *node = head; node; node = next_of(t, node)) {
		bool own = node->key == key && node->page == page;
		uint64_t *target = own ? in_node(node, physical) : NULL;

		if (target) {
			*target = target_of(t, physical, host);
			return;
		}
		if (!node->count || (own && node->count < XKNOWN_TARGETS))
			room = node;
		last = node;
		length++;
	}
	room = room ? room : new_node(t, head, last, length);
	room->key = key;
	room->page = page;
	room->target[room->count++] = target_of(t, physical, host);
}

void find_forget(struct translator *t, const struct xblock *xblock, const uint8_t *host)
{
	uint64_t physical = xblock->block->physical, key = key_of(physical, xblock->code_view);

	for (struct xknown *node = head_of(t, key); node; node = next_of(t, node)) {
		uint64_t *target = node->key == key ? in_node(node, physical) : NULL;

		if (target && *target == target_of(t, physical, host))
			*target = node->target[--node->count];
	}
}

static void put_target(struct translator *t, unsigned view, unsigned n, struct xjump jump)
{
	t->jump[view][n] = jump;
	caches_note_target(t, view, n);
}

void caches_enter_target(struct translator *t, unsigned view, uint64_t rip, const uint8_t *host)
{
	struct xjump *jump = t->jump[view];
	unsigned n = xjump_slot(rip), other = n ^ XJUMP_OTHER;

	/* Two that are used by turns shall not take one another's place each time. */
	if ((t->jump_used[view][n / 64] >> n % 64 & 1) && jump[n].rip != rip && xjump_slot(jump[n].rip) == n)
		put_target(t, view, other, jump[n]);
	put_target(t, view, n, (struct xjump){rip, host});
}

/* What is known of a page that was not in use, as far as there is room without taking another one's. */
void find_page(struct translator *t, unsigned view, uint64_t rip, uint64_t physical)
{
	uint64_t key = key_of(physical, view), page = rip & ~PAGE_MASK;

	for (const struct xknown *node = head_of(t, key); node; node = next_of(t, node)) {
		if (node->key != key || (node->page != XKNOWN_FLOATS && node->page != page))
			continue;
		for (unsigned i = 0; i < node->count; i++) {
			uint64_t target = page | (node->target[i] & PAGE_MASK);
			unsigned n = xjump_slot(target);

			if (!(t->jump_used[view][n / 64] >> n % 64 & 1))
				put_target(t, view, n, (struct xjump){target, host_of(t, node->target[i])});
		}
	}
}

/* The page's key, from the guest's tables where nothing is to be changed in them; NO_PAGE: not that simple. */
static uint64_t look_page(struct translator *t, unsigned code_view, uint64_t rip)
{
	struct paging_result walk;

	if (!fill_look(t, rip, &walk) || !walk.executable)
		return NO_PAGE;
	t->vcpu->counters.page_walks++;
	caches_note_code(t, code_view, rip, walk.physical, walk.page_size > MEMORY_PAGE_SIZE, walk.global);
	return xpage_key(rip, walk.physical);
}

/* The executable address of what is known at a physical address; or NULL. */
static const uint8_t *find_known(const struct translator *t, unsigned view, uint64_t rip, uint64_t physical)
{
	uint64_t key = key_of(physical, view);

	for (struct xknown *node = head_of(t, key); node; node = next_of(t, node)) {
		if (node->key != key || (node->page != XKNOWN_FLOATS && node->page != (rip & ~PAGE_MASK)))
			continue;
		const uint64_t *target = in_node(node, physical);

		if (target)
			return host_of(t, *target);
	}
	return NULL;
}

const uint8_t *find_target(struct translator *t, unsigned code_view, uint64_t rip)
{
	uint64_t key = t->page_key[code_view][rip >> 12 & (XPAGE_SIZE - 1)];
	const struct xjump *jump = &t->jump[code_view][xjump_slot(rip)];

	if (!cpu_canonical(rip))
		return NULL;
	/* As xpage_key() makes it. */
	if (key == NO_PAGE || key >> 36 != (rip >> 21 & 0xfffffff)) {
		key = look_page(t, code_view, rip);
		if (key == NO_PAGE)
			return NULL;
		if (jump->rip == rip)
			return jump->host;
	}
	const uint8_t *host = find_known(t, code_view, rip, (key & 0xfffffffff) << 12 | (rip & PAGE_MASK));
	if (host)
		caches_enter_target(t, code_view, rip, host);
	return host;
}

static uint64_t linear_of(const struct translator *t, const struct xblock *xblock, const struct xacross_page *page)
{
	return (xblock->floating ? t->code_page : xblock->rip & ~PAGE_MASK) + (uint64_t)page->distance;
}

bool across_known(const struct translator *t, const struct xblock *xblock, const struct xacross_page *page)
{
	uint64_t linear = linear_of(t, xblock, page);

	return t->page_key[xblock->code_view][linear >> 12 & (XPAGE_SIZE - 1)] ==
	       xpage_key(linear, page->page << MEMORY_PAGE_SHIFT);
}

bool across_look(struct translator *t, const struct xblock *xblock, const struct xacross_page *page)
{
	uint64_t linear = linear_of(t, xblock, page);

	return cpu_canonical(linear) &&
	       look_page(t, xblock->code_view, linear) == xpage_key(linear, page->page << MEMORY_PAGE_SHIFT);
}

uint64_t translator_find(struct translator *t)
{
	struct vcpu *vcpu = t->vcpu;
	const struct interpreter *interpreter = interpreter_of(vcpu);
	unsigned code_view = vcpu->mmu.view + (interpreter->mode == MODE_64 ? 0 : MMU_VIEWS);

	if (atomic_load_explicit(&vcpu->attention, memory_order_relaxed) || vcpu->mmu.stop || interpreter->cache_full ||
	    t->lockstep)
		return 0;
	const uint8_t *host = find_target(t, code_view, t->target);
	if (!host)
		return 0;
	t->counters.found++;
	vcpu->state.gpr[RSP] = (vcpu->state.gpr[RSP] + t->release) & interpreter->rip_mask;
	return (uintptr_t)host;
}
