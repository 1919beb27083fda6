/*
 * Accesses that missed the TLB, where the page is in the guest's tables and an access changes nothing there: the entry is
 * made without leaving translated code. The rest is translator_slow() and translator_probe().
 *
 * Built without vector instructions: called with the guest's vector registers in the host's. in_code stays set: who begins
 * to watch a page sets its flag first and then waits for this processor, so an entry made here after a look at the flag is
 * as good as one that was there before.
 */
#include "debug/trace.h"
#include "engines/translator/runtime.h"
#include "x86/paging.h"

#define PAGE_MASK ((uint64_t)MEMORY_PAGE_SIZE - 1)

bool fill_look(const struct translator *t, uint64_t linear, struct paging_result *walk)
{
	const struct vcpu *vcpu = t->vcpu;

	return !t->lockstep && !vcpu->mmu.watching && !trace_on(vcpu->trace, TRACE_MMU) &&
	       paging_look(vcpu, linear, vcpu->mmu.view, walk) && memory_is_ram(vcpu->memory, walk->physical);
}

/* False: not that simple. The page's entries are in the TLB then, and `*host` is where it is. */
static bool enter_page(struct translator *t, uint64_t linear, bool write, uint64_t *host)
{
	struct vcpu *vcpu = t->vcpu;
	unsigned view = vcpu->mmu.view, n = linear >> 12 & (XTLB_ENTRIES - 1);
	struct paging_result walk;

	if (!fill_look(t, linear, &walk) || !(write ? walk.writable : walk.readable))
		return false;
	uint64_t page = walk.physical & ~PAGE_MASK;
	bool writable = walk.writable && !atomic_load_explicit(&vcpu->memory->page_flags[page >> MEMORY_PAGE_SHIFT],
	                                                       memory_order_relaxed);
	if (write && !writable)
		return false;
	vcpu->counters.page_walks++;
	t->counters.filled++;
	*host = aliases_host(t, (uintptr_t)memory_ram(vcpu->memory, page));
	uint64_t tag = linear & ~PAGE_MASK;
	bool large = walk.page_size > MEMORY_PAGE_SIZE;
	if (walk.readable)
		caches_put_entry(t, view, false, n, tag, *host - tag, walk.global, large);
	if (writable)
		caches_put_entry(t, view, true, n, tag, *host - tag, walk.global, large);
	return true;
}

uint64_t translator_fill(struct translator *t, uint64_t linear)
{
	const struct xsite *site = (const struct xsite *)t->exit_argument;
	uint64_t host;

	if (site->waits || (linear & PAGE_MASK) + site->size > MEMORY_PAGE_SIZE ||
	    !enter_page(t, linear, site->write, &host))
		return 0;
	return host + (linear & PAGE_MASK);
}

uint64_t translator_fill_group(struct translator *t, uint64_t linear)
{
	const struct xsite *site = (const struct xsite *)t->exit_argument;
	uint64_t host, page = linear & ~PAGE_MASK;

	if (site->waits || (linear & PAGE_MASK) + site->span > MEMORY_PAGE_SIZE ||
	    !enter_page(t, linear, site->write, &host))
		return 0;
	if (site->window)
		window_set(&t->window[t->vcpu->mmu.view], page, 1, host - page);
	if (site->range)
		range_set(t, (struct xrange *)(uintptr_t)site->range, page, 1, host - page);
	return host - page;
}
