/*
 * Targets of indirect transfers that are not among the last ones of this address space (struct translator's `jump`), found
 * without leaving translated code: the page's key says what its physical address is, and `known` what was translated from
 * there. So what was known before an address space switch, of another process, or of more targets than `jump` has room for,
 * costs some loads.
 *
 * Built without vector instructions: called with the guest's vector registers in the host's.
 */
#include "engines/translator/runtime.h"
#include "x86/paging.h"

#define KNOWN_SIZE (1u << XKNOWN_BITS)
#define NO_PAGE    UINT64_MAX
#define PAGE_MASK  ((uint64_t)MEMORY_PAGE_SIZE - 1)

static uint64_t key_of(uint64_t physical, unsigned code_view)
{
	return physical | (uint64_t)(code_view + 1) << 56;
}

static struct xknown *slot_of(const struct translator *t, uint64_t physical)
{
	return &t->known[(physical ^ physical >> XKNOWN_BITS) & (KNOWN_SIZE - 1)];
}

void find_enter(struct translator *t, const struct xblock *xblock, const uint8_t *host)
{
	struct xknown *known = slot_of(t, xblock->block->physical);

	known->key = key_of(xblock->block->physical, xblock->code_view);
	known->page = xblock->floating ? XKNOWN_FLOATS : xblock->rip & ~PAGE_MASK;
	known->host = host;
}

void find_forget(struct translator *t, const struct xblock *xblock, const uint8_t *host)
{
	struct xknown *known = slot_of(t, xblock->block->physical);

	if (known->host == host)
		*known = (struct xknown){0};
}

static void put_target(struct translator *t, unsigned view, unsigned n, struct xjump jump)
{
	t->jump[view][n] = jump;
	t->jump_used[view][n / 64] |= 1ull << n % 64;
	t->jump_some[view][n / 4096] |= 1ull << n / 64 % 64;
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

const uint8_t *find_target(struct translator *t, unsigned code_view, uint64_t rip)
{
	uint64_t key = t->page_key[code_view][rip >> 12 & (XPAGE_SIZE - 1)];

	if (!cpu_canonical(rip))
		return NULL;
	/* As xpage_key() makes it. */
	if (key == NO_PAGE || key >> 36 != (rip >> 21 & 0xfffffff)) {
		key = look_page(t, code_view, rip);
		if (key == NO_PAGE)
			return NULL;
	}
	uint64_t physical = (key & 0xfffffffff) << 12 | (rip & PAGE_MASK);
	const struct xknown *known = slot_of(t, physical);
	if (known->key != key_of(physical, code_view) ||
	    (known->page != XKNOWN_FLOATS && known->page != (rip & ~PAGE_MASK)))
		return NULL;
	caches_enter_target(t, code_view, rip, known->host);
	return known->host;
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
