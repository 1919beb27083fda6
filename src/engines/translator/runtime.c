/*
 * The translator at run time: entering and leaving translated code, linking, the slow path of accesses, host faults.
 */
#include "engines/translator/runtime.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "engines/interpreter/access.h"
#include "engines/interpreter/cache.h"
#include "debug/lockstep.h"
#include "debug/perf_map.h"
#include "engines/translator/depot.h"
#include "host/busy_wait.h"
#include "host/table_memory.h"
#include "machine/machine.h"
#include "memory/memory.h"

#define SHARE        (64u << 20) /* of the cache, without a machine */
#define ALIAS_MISSES 16          /* of a group that lies on two pages, before these get aliases */
#define GROUP_MISSES 200         /* that end in the interpreter, before a block's accesses are taken apart */

static struct translator *translator_of(struct vcpu *vcpu)
{
	return interpreter_of(vcpu)->translator;
}

/* ---- links ---- */

static void set_displacement(struct translator *t, uint8_t *place, const uint8_t *target)
{
	int32_t distance = (int32_t)(target - (place + 4));

	memcpy(place, &distance, 4);
	t->patched = true;
}

static void link_to(struct translator *t, struct xlink *link, struct xblock *xblock)
{
	const uint8_t *entry = link->entry_a || !xblock->flagged ? xblock->entry_a : xblock->entry_b;

	if (entry == xblock->entry_a && link->vector >= xblock->vector && (link->x87 || !xblock->x87))
		entry = xblock->entry_av;
	if (link->own && link->source == xblock && !xblock->flagged)
		entry = xblock->entry_loop;
	link->next = xblock->incoming;
	link->target = xblock;
	xblock->incoming = link;
	set_displacement(t, link->place, entry);
}

/* What a link of another page leads to may be another block, in another address space. */
void runtime_undo_link(struct translator *t, struct xlink *link)
{
	if (!link->target)
		return;
	struct xlink **at = &link->target->incoming;
	while (*at != link)
		at = &(*at)->next;
	*at = link->next;
	link->next = NULL;
	link->target = NULL;
	apart_undo(link);
	set_displacement(t, link->place, link->stub);
}

static handler translated;

/* Where indirect transfers to it lead. */
static const uint8_t *target_of(const struct translator *t, const struct xblock *xblock)
{
	return code_arena_executable(&t->arena, xblock->entry_i);
}

/* Nothing leads to the block any more but its interpreter's block. */
static void unlink_block(struct translator *t, struct xblock *xblock)
{
	for (struct xlink *link = xblock->incoming, *next; link; link = next) {
		next = link->next;
		link->next = NULL;
		link->target = NULL;
		apart_undo(link);
		set_displacement(t, link->place, link->stub);
	}
	xblock->incoming = NULL;
	caches_forget_target(t, xblock->code_view, xblock->rip, target_of(t, xblock));
	find_forget(t, xblock, target_of(t, xblock));
}

/* ---- code that floats ---- */

static uint64_t *floating_word(struct translator *t, uint64_t physical, uint64_t *bit)
{
	unsigned n = physical >> MEMORY_PAGE_SHIFT & ((1u << XFLOAT_BITS) - 1);

	*bit = 1ull << n % 64;
	return &t->floating_page[n / 64];
}

bool runtime_may_float(const struct translator *t, const struct block *block)
{
	return t->vcpu->mmu.view == MMU_USER && block->mode == MODE_64;
}

bool runtime_floats(const struct translator *t, const struct block *block)
{
	uint64_t bit;

	return runtime_may_float(t, block) && *floating_word((struct translator *)t, block->physical, &bit) & bit;
}

void runtime_set_floating(struct translator *t, const struct block *block)
{
	uint64_t bit, *word = floating_word(t, block->physical, &bit);

	*word |= bit;
}

/* The block is run at several addresses, or leads to one that is: its next translation, and the page's, will float. */
static void let_float(struct translator *t, struct block *block)
{
	struct insn *slot = block ? &block->insn[0] : NULL;

	if (!block || !runtime_may_float(t, block))
		return;
	runtime_set_floating(t, block);
	if (slot->run != translated || ((struct xblock *)slot->pointer)->loose)
		return;
	unlink_block(t, (struct xblock *)slot->pointer);
	slot->a = 0;
	slot->immediate = t->heat;
	slot->run = translator_heat;
}

/* Floating code is linked to its like, in its page; what is linked to some becomes it. */
static bool may_link(struct translator *t, const struct xlink *link, const struct xblock *xblock)
{
	if (link->floating == xblock->floating)
		return true;
	let_float(t, link->floating ? xblock->block : link->source->block);
	return false;
}

static uint64_t site_rip(const struct translator *t, const struct xsite *site)
{
	return site->rip + (site->floating ? t->code_page : 0);
}

static struct xblock **page_chain(struct translator *t, uint64_t physical)
{
	return &t->page_blocks[(physical >> MEMORY_PAGE_SHIFT) % XPAGE_HASH];
}

static void chain_add(struct translator *t, struct xblock *xblock)
{
	struct xblock **at = page_chain(t, xblock->block->physical);

	xblock->next_in_page = *at;
	if (*at)
		(*at)->in_page = &xblock->next_in_page;
	xblock->in_page = at;
	*at = xblock;
}

static void chain_remove(struct xblock *xblock)
{
	if (!xblock->in_page)
		return;
	*xblock->in_page = xblock->next_in_page;
	if (xblock->next_in_page)
		xblock->next_in_page->in_page = xblock->in_page;
	xblock->in_page = NULL;
}

/* `page` all ones: of all pages. A block translated after the write, before its note was seen, stays to be found. */
static void forget_page(struct translator *t, struct xblock **at, uint64_t page)
{
	struct xblock *xblock;

	while ((xblock = *at) != NULL) {
		bool current = xblock->generation == atomic_load(xblock->block->generation_now);

		if (xblock->block->physical >> MEMORY_PAGE_SHIFT == page || page == UINT64_MAX)
			unlink_block(t, xblock);
		else
			current = true;
		if (current) {
			at = &xblock->next_in_page;
		} else {
			const struct insn *first = &xblock->block->insn[0];

			chain_remove(xblock);
			crossing_remove(t, xblock);
			across_remove(t, xblock);
			/* Who knows its block is found by it: in this chain, or in its slot. */
			if (first->run != translated || first->pointer != xblock)
				xblock->block = NULL;
		}
	}
}

/* Undoes what leads to blocks of pages that were written since. */
static void forget_written(struct translator *t)
{
	struct memory *memory = t->vcpu->memory;
	uint32_t writes = atomic_load(&memory->code_writes), seen = atomic_load(&t->code_seen);
	uint64_t page[MEMORY_CODE_NOTES];
	unsigned count = writes - seen;

	for (unsigned n = 0; n < count && count <= MEMORY_CODE_NOTES; n++)
		page[n] = atomic_load(&memory->code_note[(seen + n) % MEMORY_CODE_NOTES]);
	/* A note is written before it is counted: none of ours was overwritten if the last one had room behind it. */
	if (atomic_load(&memory->code_writes) - seen >= MEMORY_CODE_NOTES) {
		for (unsigned n = 0; n < XPAGE_HASH; n++)
			forget_page(t, &t->page_blocks[n], UINT64_MAX);
		crossing_written(t, UINT64_MAX, unlink_block);
		across_written(t, UINT64_MAX, unlink_block);
	} else {
		for (unsigned n = 0; n < count; n++) {
			uint64_t bit, *word = floating_word(t, page[n] << MEMORY_PAGE_SHIFT, &bit);

			*word &= ~bit; /* other code may come there */
			forget_page(t, page_chain(t, page[n] << MEMORY_PAGE_SHIFT), page[n]);
			crossing_written(t, page[n], unlink_block);
			across_written(t, page[n], unlink_block);
		}
	}
	atomic_store(&t->code_seen, writes);
}

/* Until a processor has left translated code, or has seen request `number`: on any thread. */
static void wait_for(struct translator *t, const _Atomic uint32_t *seen, uint32_t number)
{
	uint64_t since = 0, first_look = 0;

	while (atomic_load(&t->in_code) && (int32_t)(atomic_load(seen) - number) < 0) {
		since = since ? since : __rdtsc();
		busy_wait_thread(&first_look);
	}
	if (!since)
		return;
	uint64_t waited = __rdtsc() - since, longest = atomic_load(&t->longest_wait);
	while (waited > longest && !atomic_compare_exchange_weak(&t->longest_wait, &longest, waited))
		;
}

/* struct memory_code_listener: on the writer's thread. */
static void code_written(struct memory_code_listener *listener, bool wait)
{
	struct translator *t = (struct translator *)((uint8_t *)listener - offsetof(struct translator, listener));
	uint32_t writes = atomic_load(&t->vcpu->memory->code_writes);

	/* The writer's own is not in translated code: it is here. Before the barrier it is a guess, so that all come at once. */
	if (atomic_load(&t->in_code))
		vcpu_kick(t->vcpu, ATTENTION_STEP);
	if (wait)
		wait_for(t, &t->code_seen, writes);
}

void runtime_forget_block(struct translator *t, struct xblock *xblock, bool slot)
{
	struct insn *first = &xblock->block->insn[0];

	chain_remove(xblock);
	crossing_remove(t, xblock);
	across_remove(t, xblock);
	unlink_block(t, xblock);
	if (slot && first->run == translated && first->pointer == xblock) {
		first->run = translator_heat;
		first->immediate = 0;
		first->a = 0;
	}
	xblock->block = NULL;
}

void translator_note_eviction(struct translator *t, uint64_t ticks)
{
	if (ticks > t->longest_eviction)
		t->longest_eviction = ticks;
}

void translator_advance(struct translator *t)
{
	uint64_t before = __rdtsc();

	t->flushes++;
	regions_advance(t);
	translator_note_eviction(t, __rdtsc() - before);
}

static bool goes_on_in(const struct xblock *xblock, const struct block *block)
{
	unsigned n = 1;

	while (n <= xblock->more_count && xblock_part(xblock, n) != block)
		n++;
	return n <= xblock->more_count;
}

void translator_block_gone(struct translator *t, struct block *block)
{
	/* Of several translations of one block the last is in its slot; the others are found by its page. */
	for (struct xblock *xblock = *page_chain(t, block->physical), *next; xblock; xblock = next) {
		next = xblock->next_in_page;
		if (xblock->block == block)
			runtime_forget_block(t, xblock, false);
		else if (goes_on_in(xblock, block))
			runtime_forget_block(t, xblock, true);
	}
	for (struct xblock *xblock; (xblock = across_find(t, block->physical >> MEMORY_PAGE_SHIFT, block, goes_on_in));)
		runtime_forget_block(t, xblock, true);
	if (block->insn[0].run == translated) {
		struct xblock *xblock = (struct xblock *)block->insn[0].pointer;

		if (xblock->block == block)
			runtime_forget_block(t, xblock, false);
	}
}

void translator_flush(struct translator *t)
{
	t->flushes++;
	t->counters.flushes++;
	regions_flush(t);
	memset(t->page_blocks, 0, sizeof(t->page_blocks));
	memset(t->crossing, 0, sizeof(t->crossing));
	across_flush(t);
	find_flush(t);
	caches_empty_targets(t);
}

void translator_page_watched(struct translator *t)
{
	struct vcpu *vcpu = t->vcpu;
	unsigned cpus = vcpu->machine ? vcpu->machine->options.cpus : 0;

	struct translator *other[MACHINE_CPUS_MAX];
	uint32_t request[MACHINE_CPUS_MAX];
	unsigned others = 0;

	t->counters.watch_requests++;
	caches_empty_writes(t);
	for (unsigned i = 0; i < cpus; i++) {
		struct vcpu *that = vcpu->machine->vcpu[i];

		if (!that || that == vcpu || !that->engine_data || !translator_of(that))
			continue;
		other[others] = translator_of(that);
		request[others] = atomic_fetch_add(&other[others]->watch_request, 1) + 1;
		others++;
	}
	if (!others)
		return;
	memory_barrier_all(vcpu->memory);
	for (unsigned n = 0; n < others; n++)
		if (atomic_load(&other[n]->in_code))
			vcpu_kick(other[n]->vcpu, ATTENTION_STEP);
	for (unsigned n = 0; n < others; n++)
		wait_for(other[n], &other[n]->watch_seen, request[n]);
}

/* ---- entering ---- */

typedef void enter_code(struct vcpu *vcpu, const uint8_t *host, uint32_t flags);

/* Its first page was compared already. */
static bool second_page_written(const struct xblock *xblock)
{
	return (xblock->second_now && atomic_load(xblock->second_now) != xblock->second_generation) ||
	       (xblock->across && across_stale(xblock));
}

static bool enterable(const struct vcpu *vcpu, const struct xblock *xblock)
{
	return xblock->generation == xblock->block->generation &&
	       (xblock->floating || xblock->rip == vcpu->state.rip) && xblock->view == vcpu->mmu.view &&
	       !interpreter_of((struct vcpu *)vcpu)->no_links && !second_page_written(xblock);
}

/*
 * Translated code is about to run: in_code first, then the look at the request; translator_page_watched() of another
 * vCPU does it the other way round, with a barrier for all threads in between.
 */
static void announce(struct translator *t)
{
	atomic_store_explicit(&t->in_code, 1, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	uint32_t request = atomic_load_explicit(&t->watch_request, memory_order_acquire);
	if (unlikely(request != atomic_load_explicit(&t->watch_seen, memory_order_relaxed))) {
		caches_empty_writes(t);
		atomic_store(&t->watch_seen, request);
	}
	if (unlikely(atomic_load_explicit(&t->vcpu->memory->code_writes, memory_order_acquire) !=
	             atomic_load_explicit(&t->code_seen, memory_order_relaxed)))
		forget_written(t);
	if (unlikely(t->patched)) {
		t->patched = false;
		code_arena_publish();
	}
}

/* What has to be enabled for a block, as far as blocks are entered with less. */
static uint8_t classes_needed(const struct xblock *xblock)
{
	static const uint8_t vector[] = {[VECTOR_SSE] = NATIVE_SSE,
	                                 [VECTOR_AVX] = NATIVE_SSE | NATIVE_AVX,
	                                 [VECTOR_AVX512] = NATIVE_SSE | NATIVE_AVX | NATIVE_AVX512};

	return vector[xblock->vector] | (xblock->x87 ? NATIVE_X87 | NATIVE_MMX : 0);
}

static uint32_t missing_with(unsigned level)
{
	return level == VECTOR_NONE  ? VECTOR_ALL_MISSING
	       : level == VECTOR_SSE ? VECTOR_ALL_MISSING - 0x100u
	       : level == VECTOR_AVX ? VECTOR_ALL_MISSING - 0x10100u
	                             : 0;
}

/* The registers of a level (enum vector_need) are the guest's from here on, or none. */
static void set_live(struct translator *t, uint8_t level)
{
	t->vector_live = level;
	t->vector_missing = t->missing_with_live[level];
}

/* For lockstep.c, which runs blocks alone. */
static void enter_alone(struct translator *t, const struct xblock *xblock, uint32_t flags)
{
	struct vcpu *vcpu = t->vcpu;

	announce(t);
	t->code_page = vcpu->state.rip & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);
	if (xblock->x87)
		native_x87_load(vcpu);
	set_live(t, xblock->vector);
	t->counters.enters++;
	((enter_code *)t->enter)(vcpu, code_arena_executable(&t->arena, xblock->entry_b), flags);
}

static void enter(struct translator *t, const struct xblock *xblock, uint32_t flags)
{
	struct vcpu *vcpu = t->vcpu;

	announce(t);
	aliases_make_room(t);
	caches_catch_up(t);
	caches_note_running(t, xblock->code_view, vcpu->state.rip, xblock->block->physical);
	if (xblock->code_view >= MMU_VIEWS)
		mode32_note_segments(t);
	/* Disabled, or written by somebody since it was found. */
	if (unlikely(vcpu->classes_disabled & classes_needed(xblock)) ||
	    unlikely(*xblock->block->generation_now != xblock->generation) || unlikely(second_page_written(xblock))) {
		const struct insn *insn = &xblock->block->insn[1];

		atomic_store_explicit(&t->in_code, 0, memory_order_release);
		return insn->run(vcpu, insn, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
	}
	if (unlikely(t->lockstep)) {
		atomic_store_explicit(&t->in_code, 0, memory_order_release);
		lockstep_unit(t->lockstep, xblock, flags, enter_alone);
		return;
	}
	if (xblock->x87)
		native_x87_load(vcpu);
	set_live(t, xblock->vector); /* the trampoline loads them */
	t->counters.enters++;
	t->code_page = vcpu->state.rip & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);
	vcpu->executing = NULL;
	return ((enter_code *)t->enter)(vcpu, code_arena_executable(&t->arena, xblock->entry_b), flags);
}

static void translated(PARAMETERS)
{
	const struct xblock *xblock = insn->pointer;

	if (unlikely(!enterable(vcpu, xblock))) {
		struct insn *slot = (struct insn *)insn;
		bool moved = !xblock->floating && xblock->rip != vcpu->state.rip;
		unsigned enough =
		    moved && !xblock->loose && runtime_may_float(translator_of(vcpu), xblock->block) ? XFLOAT : XRETRY;

		if (xblock->across && across_stale(xblock)) {
			across_strayed(translator_of(vcpu), xblock->block);
			NEXT;
		}
		/* The page was written and the block's bytes were not, or it is wanted at another address: after a
		 * while, again. */
		if (++slot->a >= enough || xblock->generation != xblock->block->generation) {
			if (xblock->generation != xblock->block->generation) {
				translator_of(vcpu)->counters.stale++;
				runtime_forget_block(translator_of(vcpu), (struct xblock *)xblock, false);
			}
			if (moved)
				let_float(translator_of(vcpu), xblock->block);
			if (slot->run == translated) {
				slot->a = 0;
				slot->immediate = 0;
				slot->run = translator_heat;
			}
		}
		NEXT;
	}
	return enter(translator_of(vcpu), xblock, flags);
}

/* A block that stays the interpreter's, for the instruction whose mnemonic is in `immediate`. */
static void untranslated(PARAMETERS)
{
	translator_of(vcpu)->counters.fallback[insn->immediate]++;
	if (unlikely(translator_of(vcpu)->lockstep))
		lockstep_interpreted(translator_of(vcpu)->lockstep);
	NEXT;
}

enum outcome { TRANSLATED, REFUSED, NO_ROOM };

/*
 * Takes it from another processor, or makes it. A function of its own for the sake of its locals (NEXT).
 */
static NOINLINE enum outcome translate(struct translator *t, struct block *block, struct insn *slot)
{
	uint64_t started = __rdtsc();
	const struct translator_cursors before = cursors_of(t);
	bool full = false;
	struct xblock *xblock = t->depot && !block->joined ? shared_take(t, block, &full) : NULL;

	if (xblock && unlikely(t->compare_taken))
		xblock = shared_compare(t, xblock, &before, &full);
	if (!xblock && !full) {
		xblock = translate_block(t, block, &full);
		if (xblock && unlikely(t->retake))
			xblock = shared_retake(t, xblock, &before, &full);
	}
	t->counters.ticks += __rdtsc() - started;
	if (!xblock)
		return full ? NO_ROOM : REFUSED;
	code_arena_publish();
	regions_add(t, xblock);
	chain_add(t, xblock);
	crossing_add(t, xblock);
	across_add(t, xblock);
	slot->pointer = xblock;
	slot->run = translated;
	return TRANSLATED;
}

bool translator_is_hot(const struct translator *t, const struct block *block, bool also_translated)
{
	const struct insn *slot = &block->insn[0];

	return slot->run == translated ? also_translated
	                               : slot->run == translator_heat && slot->immediate >= t->heat / 2;
}

#define HEAT_STEP  10    /* entries between looks at the clock */
#define HEAT_QUICK 15000 /* ticks of the TSC */

/* Was it long since the last look? Translating does not count, nor, so, one loss of the host's CPU. */
static void take_time(const struct translator *t, struct insn *slot)
{
	uint32_t now = (uint32_t)(__rdtsc() - t->counters.ticks);

	slot->b += now - (uint32_t)slot->displacement < HEAT_QUICK;
	slot->displacement = (int32_t)now;
}

static bool is_hot(const struct translator *t, const struct block *block)
{
	/* In tests: some are, some not. */
	if (t->heat < XHEAT || t->lockstep)
		return block->physical >> 2 & 1;
	return block->insn[0].b > XHEAT / HEAT_STEP / 2;
}

void translator_heat(PARAMETERS)
{
	struct insn *slot = (struct insn *)insn;
	struct translator *t = translator_of(vcpu);

	if (unlikely(t->lockstep))
		lockstep_interpreted(t->lockstep);
	if (++slot->immediate % HEAT_STEP == 0)
		take_time(t, slot);
	if (slot->immediate < t->heat)
		NEXT;
	if (vcpu->mmu.watching)
		NEXT;
	struct block *block = (struct block *)((uint8_t *)slot - offsetof(struct block, insn));
	SLOW_ENTER; /* the look-ahead may ask for forms; nothing raises */
	vcpu->executing = NULL;
	bool possible = translator_mode(block->mode) && (!block->crosses || crossing_possible(t, block));
	block->hot |= is_hot(t, block);
	enum outcome outcome = possible ? translate(t, block, slot) : REFUSED;
	if (outcome == REFUSED) {
		t->counters.refused++;
		slot->immediate = possible ? translator_refused_mnemonic(t) : 0;
		slot->run = untranslated;
		NEXT;
	}
	if (outcome == NO_ROOM) { /* it is made between blocks; then at once */
		t->counters.put_off++;
		slot->immediate = t->heat;
		interpreter_of(vcpu)->cache_full = true;
		/* A block that leads to itself would not come to the run loop before an interrupt. */
		atomic_fetch_or(&vcpu->attention, ATTENTION_STEP);
		NEXT;
	}
	return translated(ARGUMENTS);
}

/* ---- leaving ---- */

void translator_to_slot(PARAMETERS)
{
	struct translator *t = translator_of(vcpu);

	t->counters.leave_slot++;
	if (unlikely(t->lockstep)) {
		lockstep_left(t->lockstep, LOCKSTEP_SLOT, insn, flags);
		return;
	}
	return insn->run(vcpu, insn, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
}

/* Flags are right again after so many instructions, see settled_at. */
static void settle(struct vcpu *vcpu, unsigned instructions)
{
	interpreter_of(vcpu)->settled_at = vcpu->counters.instructions + instructions;
}

/* The block at state.rip; NULL: the run loop has to look. */
static struct block *find_block(struct vcpu *vcpu)
{
	struct link *cached = jump_cache_link(vcpu, vcpu->state.rip);
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (atomic_load_explicit(&vcpu->attention, memory_order_relaxed) || vcpu->mmu.stop || interpreter->refresh ||
	    interpreter->no_links || interpreter->cache_full) {
		interpreter->translator->counters.leave_event++;
		return NULL;
	}
	struct block *block = link_block(vcpu, cached, vcpu->state.rip);
	if (block)
		return block;
	flags_whole(vcpu);
	block = block_find(vcpu);
	if (block_linkable(interpreter, block) && !interpreter->refresh)
		*cached = (struct link){vcpu->state.rip, vcpu->code_context, block};
	return block;
}

static struct xblock *xblock_of(struct vcpu *vcpu, struct block *block)
{
	struct xblock *xblock;

	if (block->insn[0].run != translated)
		return NULL;
	xblock = (struct xblock *)block->insn[0].pointer;
	return enterable(vcpu, xblock) ? xblock : NULL;
}

static void go_on(PARAMETERS, struct block *block)
{
	vcpu->executing = NULL;
	if (!CHAIN) /* without sibling calls the run loop takes it from here */
		return;
	return block->insn[0].run(vcpu, block->insn, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
}

/* The block at `rip` may be reached. */
static void note_code(struct translator *t, const struct xblock *xblock, uint64_t rip)
{
	caches_enter_code(t, xblock->code_view, rip, xblock->block->physical);
	crossing_note_code(t, xblock, rip);
}

void translator_to_link(PARAMETERS)
{
	struct translator *t = translator_of(vcpu);
	struct xlink *link = (struct xlink *)insn;
	uint64_t flushes = t->flushes, page = t->code_page, rip = link->rip + (link->floating ? page : 0);

	t->counters.leave_link++;
	link->wait = link->patience;
	flags_store(vcpu, flags);
	vcpu->executing = NULL;
	vcpu->state.rip = rip;
	interpreter_of(vcpu)->pending = NULL;
	if (unlikely(t->lockstep)) {
		lockstep_left(t->lockstep, LOCKSTEP_LINK, NULL, flags);
		return;
	}
	settle(vcpu, link->settle);
	struct block *block = find_block(vcpu);
	if (!block)
		return;
	vcpu->state.interrupt_shadow = 0; /* with nothing waiting, or in the first instruction */
	struct xblock *xblock = xblock_of(vcpu, block);
	if (xblock && flushes == t->flushes && may_link(t, link, xblock)) {
		caches_catch_up(t);
		if (link->target != xblock && link->place) {
			runtime_undo_link(t, link);
			link_to(t, link, xblock);
		}
		if (link->key) {
			uint64_t key = xpage_key(rip, block->physical);

			memcpy(link->key, &key, sizeof(key));
			t->patched = true;
		}
		note_code(t, xblock, rip);
		if (link->apart)
			apart_made(t, link, page);
	}
	return go_on(ARGUMENTS, block);
}

/* Indirect transfers to `rip` find the block from here on. */
static void enter_target(struct translator *t, const struct xblock *xblock, uint64_t rip)
{
	caches_catch_up(t);
	note_code(t, xblock, rip);
	caches_enter_target(t, xblock->code_view, rip, target_of(t, xblock));
	find_enter(t, xblock, target_of(t, xblock));
}

void translator_to_address(PARAMETERS)
{
	struct translator *t = translator_of(vcpu);
	uint64_t rip = t->target;

	t->counters.leave_indirect++;
	if (unlikely(!cpu_canonical(rip))) {
		/* The interpreter's slot raises it. A CALL has pushed already: below the stack pointer again, that is
		 * nothing. */
		vcpu->state.gpr[RSP] += t->undo;
		if (t->lockstep) {
			lockstep_left(t->lockstep, LOCKSTEP_SLOT, insn, flags);
			return;
		}
		return insn->run(vcpu, insn, flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
	}
	flags_store(vcpu, flags);
	vcpu->executing = NULL;
	vcpu->state.gpr[RSP] = (vcpu->state.gpr[RSP] + t->release) & interpreter_of(vcpu)->rip_mask;
	vcpu->state.rip = rip;
	interpreter_of(vcpu)->pending = NULL;
	settle(vcpu, 0);
	if (unlikely(t->lockstep)) {
		lockstep_left(t->lockstep, LOCKSTEP_ADDRESS, NULL, flags);
		return;
	}
	struct block *block = find_block(vcpu);
	if (!block)
		return;
	struct xblock *xblock = xblock_of(vcpu, block);
	if (xblock) {
		enter_target(t, xblock, rip);
	}
	return go_on(ARGUMENTS, block);
}

/* A block was reached that needs vector registers: enters it again with them, or interprets it (#NM, #UD). */
void translator_to_vector(PARAMETERS)
{
	const struct xblock *xblock = (const struct xblock *)insn;

	translator_of(vcpu)->counters.leave_vector++;
	if (unlikely(translator_of(vcpu)->lockstep))
		return; /* it was entered with them */
	return enter(translator_of(vcpu), xblock, flags);
}

void translator_to_fault(PARAMETERS)
{
	struct translator *t = translator_of(vcpu);
	const struct xsite *site = (const struct xsite *)insn;

	t->counters.leave_fault++;
	flags_store(vcpu, flags);
	vcpu->state.rip = site_rip(t, site);
	vcpu->executing = site->slot;
	x87_catch_up(t, site->pointers);
	x86_raise(vcpu, t->fault_vector);
}

/* ---- instructions that the interpreter does ---- */

/* Around whatever may raise: guest vector registers are in memory already, and nothing of ours is on the way back. */
static uint8_t step_out(struct translator *t)
{
	uint8_t live = t->vector_live;

	set_live(t, VECTOR_NONE);
	atomic_store(&t->in_code, 0);
	return live;
}

static void step_in(struct translator *t, uint8_t live)
{
	announce(t);
	set_live(t, live);
}

/* The slot behind a called-out instruction. */
static void came_back(PARAMETERS)
{
	struct translator *t = translator_of(vcpu);

	t->flags = flags;
	t->came_back = true;
	vcpu->executing = NULL;
}

/* The block cannot go on: to the run loop, behind the instruction. */
static uint64_t leave_behind(struct translator *t, const struct xsite *site, const struct insn *behind)
{
	struct vcpu *vcpu = t->vcpu;

	vcpu->state.rip = (site_rip(t, site) + behind->offset) & interpreter_of(vcpu)->rip_mask;
	flags_store(vcpu, t->flags);
	vcpu->counters.instructions += behind->number + 1u;
	settle(vcpu, site->settle);
	t->counters.leave_call_out++;
	return SLOW_LEAVE;
}

/*
 * Runs a copy of the slots of an instruction that is not terminal, with a slot behind them that returns. What it did may
 * mean that the block cannot go on; then the run loop does.
 */
static uint64_t call_slots(struct translator *t, const struct xsite *site)
{
	struct vcpu *vcpu = t->vcpu;
	enum mmu_view view = vcpu->mmu.view;
	uint8_t disabled = vcpu->classes_disabled, live = step_out(t);
	bool x87 = !vcpu->x87_missing;
	struct insn *behind = &t->called[site->slots];

	if (unlikely(t->lockstep)) {
		vcpu->state.rip = site_rip(t, site);
		lockstep_left(t->lockstep, LOCKSTEP_SLOT, site->slot, t->flags);
		return SLOW_LEAVE;
	}
	t->counters.call_outs++;
	memcpy(t->called, site->slot, site->slots * sizeof(t->called[0]));
	*behind = (struct insn){
	    .run = came_back, .offset = (uint16_t)(site->slot->offset + site->length), .number = site->slot->number};
	vcpu->state.rip = site_rip(t, site);
	vcpu->executing = NULL;
	t->came_back = false;
	t->called[0].run(vcpu, t->called, t->flags, vcpu->mmu.tlb[view][MMU_READ]);
	if (!t->came_back) {
		t->counters.leave_call_out++;
		settle(vcpu, site->settle);
		return SLOW_LEAVE;
	}
	if (unlikely(vcpu->mmu.view != view || vcpu->classes_disabled != disabled || vcpu->mmu.stop)) {
		return leave_behind(t, site, behind);
	}
	/* As when a block is entered. */
	if (x87)
		native_x87_load(vcpu);
	step_in(t, live);
	caches_catch_up(t);
	mode32_note_segments(t);
	if (unlikely(t->emptied && site->inside)) {
		step_out(t);
		return leave_behind(t, site, behind);
	}
	return SLOW_DONE;
}

/* Where translated code for state.rip is, if it is known how to get there. */
static const uint8_t *known_target(struct translator *t, unsigned code_view)
{
	uint64_t rip = t->vcpu->state.rip;
	unsigned n = xjump_slot(rip);

	return t->jump[code_view][n].rip == rip ? t->jump[code_view][n].host : find_target(t, code_view, rip);
}

/* Between two instructions, with all state exact: goes on at state.rip in translated code, if nothing else is to be done. */
static uint64_t go_on_translated(struct translator *t)
{
	struct vcpu *vcpu = t->vcpu;
	struct interpreter *interpreter = interpreter_of(vcpu);

	if (interpreter->leave || vcpu->mmu.stop || vcpu->state.pending_debug || interpreter->cache_full ||
	    interpreter->no_links || vcpu->state.activity != ACTIVITY_RUNNING ||
	    atomic_load_explicit(&vcpu->attention, memory_order_relaxed))
		return SLOW_LEAVE;
	if (interpreter->refresh)
		interpreter_refresh(vcpu);
	if (interpreter->stepping || !translator_mode(interpreter->mode) || !cpu_canonical(vcpu->state.rip))
		return SLOW_LEAVE;
	vcpu->state.interrupt_shadow = 0;
	vcpu->state.rflags &= ~FLAG_RF;
	unsigned code_view = vcpu->mmu.view + (interpreter->mode == MODE_64 ? 0 : MMU_VIEWS);
	t->flags = flags_load(vcpu);
	announce(t);
	caches_catch_up(t);
	const uint8_t *host = known_target(t, code_view);
	if (!host) {
		atomic_store(&t->in_code, 0);
		struct block *block = find_block(vcpu);
		struct xblock *xblock = block ? xblock_of(vcpu, block) : NULL;
		if (!xblock)
			return SLOW_LEAVE;
		enter_target(t, xblock, vcpu->state.rip);
		announce(t); /* may take it away again */
		host = known_target(t, code_view);
		if (!host) {
			atomic_store(&t->in_code, 0);
			return SLOW_LEAVE;
		}
	}
	if (code_view >= MMU_VIEWS)
		mode32_note_segments(t);
	return (uintptr_t)host;
}

uint64_t translator_sensitive(struct translator *t)
{
	struct vcpu *vcpu = t->vcpu;
	const struct xsite *site = (const struct xsite *)t->exit_argument;

	step_out(t);
	if (unlikely(t->lockstep)) {
		vcpu->state.rip = site_rip(t, site);
		if (site->settle) /* an STI */
			lockstep_access(t->lockstep);
		lockstep_left(t->lockstep, LOCKSTEP_SLOT, site->slot, t->flags);
		return SLOW_LEAVE;
	}
	t->counters.sensitive++;
	memcpy(t->called, site->slot, site->slots * sizeof(t->called[0]));
	/* POPF and STI follow their block's links. */
	if (site->no_links) {
		memset(t->no_block.link, 0, sizeof(t->no_block.link));
		t->called[site->slots - 1].pointer = &t->no_block;
	}
	vcpu->state.rip = site_rip(t, site);
	vcpu->executing = NULL;
	t->called[0].run(vcpu, t->called, t->flags, vcpu->mmu.tlb[vcpu->mmu.view][MMU_READ]);
	interpreter_of(vcpu)->pending = NULL;
	settle(vcpu, site->settle);
	return go_on_translated(t);
}

uint64_t translator_call_out(struct translator *t)
{
	t->emptied = false;
	return call_slots(t, (const struct xsite *)t->exit_argument);
}

static uint64_t slow_instruction(struct translator *t, const struct xsite *site)
{
	if (unlikely(t->lockstep))
		lockstep_access(t->lockstep);
	if (site->slots)
		return call_slots(t, site);
	t->exit_argument = (uintptr_t)site->slot;
	settle(t->vcpu, site->slot->number + 1u + site->settle);
	return SLOW_TERMINAL;
}

/* ---- memory ---- */

/* The entry if there is one now, without a walk of the page tables and its effects. */
static struct mmu_tlb_entry *translated_already(struct vcpu *vcpu, uint64_t linear, enum mmu_access access)
{
	struct mmu_tlb_entry *entry = &vcpu->mmu.tlb[vcpu->mmu.view][access][mmu_tlb_index(linear)];

	return entry->tag == (linear & ~(uint64_t)(MEMORY_PAGE_SIZE - 1)) ? entry : NULL;
}

/* Has somebody to be told of writes? Lockstep logs them by marking all pages clean; translated code writes copies then. */
static bool page_watched(const struct translator *t, const struct mmu_tlb_entry *entry)
{
	return mmu_entry_flags(entry) & ~(unlikely(t->lockstep) ? PAGE_CLEAN : 0u);
}

/* Puts the page of `linear` into the TLB; may raise. NULL: it does not belong there. */
static const struct xtlb_entry *fill(struct translator *t, uint64_t linear, bool write)
{
	struct vcpu *vcpu = t->vcpu;

	uint8_t live = step_out(t);
	t->counters.slow_fault++; /* unless it comes back */
	struct mmu_tlb_entry *entry = mmu_entry(vcpu, linear, write ? MMU_WRITE : MMU_READ, NULL);
	t->counters.slow_fault--;
	step_in(t, live); /* before page_flags is looked at */
	if (!entry) {
		t->counters.slow_mmio++;
		return NULL;
	}
	if (write && page_watched(t, entry)) {
		t->counters.slow_watched++;
		return NULL;
	}
	t->counters.slow_miss++;
	return caches_enter_page(t, linear, write, entry);
}

uint64_t translator_slow(struct translator *t, uint64_t linear)
{
	struct vcpu *vcpu = t->vcpu;
	const struct xsite *site = (const struct xsite *)t->exit_argument;

	vcpu->state.rip = site_rip(t, site);
	vcpu->executing = site->slot;
	flags_store(vcpu, t->flags);
	x87_catch_up(t, site->pointers);
	if (site->waits && native_x87_pending(vcpu))
		return slow_instruction(t, site);
	/* Long operands that are not aligned: #GP may come before #PF, which the interpreter knows. */
	if ((linear & (MEMORY_PAGE_SIZE - 1)) + site->size > MEMORY_PAGE_SIZE) {
		t->counters.slow_crossing++;
		return slow_instruction(t, site);
	}
	t->emptied = false;
	if (!cpu_canonical(linear) || (site->size >= 16 && linear % site->size &&
	                               !translated_already(vcpu, linear, site->write ? MMU_WRITE : MMU_READ))) {
		t->counters.slow_odd++;
		return slow_instruction(t, site);
	}
	if (site->masked && !translated_already(vcpu, linear, site->write ? MMU_WRITE : MMU_READ))
		return slow_instruction(t, site);
	const struct xtlb_entry *entry = fill(t, linear, site->write);
	if (!entry)
		return slow_instruction(t, site);
	/* Behind it a difference would be used that may be void now: the run loop goes on. */
	if (unlikely(t->emptied && site->inside))
		return slow_instruction(t, site);
	vcpu->executing = NULL;
	return linear + entry->delta[site->write];
}

uint64_t translator_string_slow(struct translator *t, enum xstring_result result)
{
	struct vcpu *vcpu = t->vcpu;
	const struct xsite *site = (const struct xsite *)t->exit_argument;
	uint64_t before = vcpu->state.gpr[RCX];
	unsigned fills = 0;

	x87_catch_up(t, site->pointers);
	while (result == XSTRING_MISS) {
		vcpu->state.rip = site_rip(t, site);
		vcpu->executing = site->slot;
		flags_store(vcpu, t->flags);
		/* Two operands may take one another's entry away. */
		if (vcpu->state.gpr[RCX] != before)
			fills = 0;
		before = vcpu->state.gpr[RCX];
		if (++fills > 8 || !fill(t, t->string_missing, t->string_missing_write)) {
			if (unlikely(t->lockstep))
				lockstep_partial(t->lockstep);
			return slow_instruction(t, site);
		}
		vcpu->executing = NULL;
		result = translator_string(t, site);
	}
	if (result == XSTRING_DONE)
		return SLOW_DONE;
	if (unlikely(t->lockstep))
		lockstep_partial(t->lockstep);
	return slow_instruction(t, site);
}

void runtime_translate_again(struct translator *t, struct block *block)
{
	struct insn *slot = &block->insn[0];

	if (slot->run != translated)
		return;
	unlink_block(t, (struct xblock *)slot->pointer);
	slot->immediate = t->heat;
	slot->run = translator_heat;
}

/* Into the TLB, if the interpreter has written to it already. */
static void enter_written(struct translator *t, uint64_t page)
{
	struct mmu_tlb_entry *entry = translated_already(t->vcpu, page, MMU_WRITE);

	if (entry && !runtime_entered(t, page, true) && !page_watched(t, entry))
		caches_enter_page(t, page, true, entry);
}

/* Page `page` and the next are known, and lie side by side in the host. */
static const struct xtlb_entry *two_pages(const struct translator *t, uint64_t page, bool write)
{
	const struct xtlb_entry *low = runtime_entered(t, page, write);
	const struct xtlb_entry *high = runtime_entered(t, page + MEMORY_PAGE_SIZE, write);

	return low && high && low->delta[write] == high->delta[write] ? low : NULL;
}

/* Lies on two pages: a run of pages if these lie side by side in the host; if that is wanted again and again, they shall. */
static uint64_t probe_two(struct translator *t, const struct xsite *site, uint64_t linear)
{
	uint64_t page = linear & ~(uint64_t)(MEMORY_PAGE_SIZE - 1);

	if (site->window) {
		enter_written(t, page);
		enter_written(t, page + MEMORY_PAGE_SIZE);
	}
	const struct xtlb_entry *low = two_pages(t, page, site->write);
	if (!low && site->misses % ALIAS_MISSES == ALIAS_MISSES - 1 && aliases_make(t, page, site->write)) {
		t->counters.aliased++;
		low = two_pages(t, page, site->write);
	}
	if (!low)
		return 0;
	if (site->window) {
		struct xrun run = find_run(t, page, true);

		window_set(&t->window[t->vcpu->mmu.view], run.page, run.pages, run.delta);
	} else {
		range_set_run(t, (struct xrange *)(uintptr_t)site->range, page);
	}
	return low->delta[site->write];
}

static uint64_t probe(struct translator *t, struct xsite *site, uint64_t linear)
{
	struct vcpu *vcpu = t->vcpu;
	uint64_t first = linear + site->first_offset;
	enum mmu_access access = site->first_write ? MMU_WRITE : MMU_READ;

	if (!cpu_canonical(linear))
		return 0;
	if ((linear & (MEMORY_PAGE_SIZE - 1)) + site->span > MEMORY_PAGE_SIZE)
		return site->range || site->window ? probe_two(t, site, linear) : 0;
	if (site->first_size >= 16 && first % site->first_size && !translated_already(vcpu, first, access))
		return 0;
	struct mmu_tlb_entry *entry;
	if (site->masked) {
		entry = translated_already(vcpu, first, access);
	} else {
		uint8_t live = step_out(t);

		entry = mmu_entry(vcpu, first, access, NULL);
		step_in(t, live);
	}
	/* Written later in the block: not before a page fault, or the D bit, would be due. */
	if (entry && site->write && !site->first_write)
		entry = translated_already(vcpu, linear, MMU_WRITE);
	if (!entry || (site->write && page_watched(t, entry)) || (t->emptied && site->inside))
		return 0;
	const struct xtlb_entry *own = caches_enter_page(t, linear, site->write, entry);
	if (!own)
		return 0;
	if (site->window)
		window_set(&t->window[vcpu->mmu.view], own->tag[site->write], 1, own->delta[site->write]);
	if (site->range)
		range_set(t, (struct xrange *)(uintptr_t)site->range, own->tag[site->write], 1,
		          own->delta[site->write]);
	return own->delta[site->write];
}

uint64_t translator_probe(struct translator *t, uint64_t linear)
{
	struct vcpu *vcpu = t->vcpu;
	struct xsite *site = (struct xsite *)t->exit_argument;

	t->counters.probes++;
	vcpu->state.rip = site_rip(t, site);
	vcpu->executing = site->slot;
	flags_store(vcpu, t->flags);
	t->emptied = false;
	x87_catch_up(t, site->pointers);
	t->exit_argument = (uintptr_t)site->slot;
	uint64_t delta = site->waits && native_x87_pending(vcpu) ? 0 : probe(t, site, linear);
	if (!delta && unlikely(t->lockstep))
		lockstep_access(t->lockstep);
	if (delta) {
		vcpu->executing = NULL;
	} else if (++site->misses == GROUP_MISSES) {
		t->counters.apart++;
		site->block->apart |= 1ull << (site->item & 63);
		runtime_translate_again(t, site->block);
	}
	return delta;
}

/* ---- host faults in translated code (signal context) ---- */

bool translator_host_fault(struct translator *t, ucontext_t *context, unsigned vector)
{
	greg_t *registers = context->uc_mcontext.gregs;
	uint32_t host = (uint32_t)((uint64_t)registers[REG_RIP] - (uint64_t)t->arena.execute);

	if (!code_arena_contains(&t->arena, (uint64_t)registers[REG_RIP]))
		return false;
	const struct xsite *site = regions_site(t, host);
	if (!site)
		return false;
	if (site->flags_in_register) {
		uint64_t flags = (uint64_t)registers[REG_EFL];

		t->flags = (uint32_t)(flags & 0xff) << 8 | (flags >> 11 & 1);
	}
	t->exit_argument = (uintptr_t)site;
	t->fault_vector = vector;
	registers[REG_RIP] = (greg_t)code_arena_executable(&t->arena, t->exit_fault);
	return true;
}

/* ---- making one ---- */

/* The machine's first processor makes it, the last one destroys it: one after the other, all on one thread. */
static int join_depot(struct translator *t)
{
	struct machine *machine = t->vcpu->machine;
	uint64_t size = depot_size(machine->options.code_cache, machine->options.cpus);

	if (!size)
		return 0;
	for (unsigned n = 0; n < machine->options.cpus; n++) {
		struct vcpu *that = machine->vcpu[n];

		if (that && that != t->vcpu && that->engine == &engine_translator && that->engine_data &&
		    translator_of(that)) {
			t->depot = translator_of(that)->depot;
			depot_add_user(t->depot);
			return 0;
		}
	}
	t->depot = depot_create(size);
	return t->depot ? 0 : -1;
}

void translator_forget_shared(struct translator *t)
{
	if (t->depot)
		depot_empty(t->depot);
}

void translator_rest_shared(struct translator *t, bool idle)
{
	struct vcpu *vcpu = t->vcpu;

	if (t->depot && vcpu->machine)
		depot_rest(t->depot, vcpu->index, vcpu->machine->options.cpus, idle);
}

struct translator *translator_create(struct vcpu *vcpu)
{
	if ((uint64_t)(uintptr_t)(vcpu + 1) > INT32_MAX || !__builtin_cpu_supports("bmi2")) {
		errno = ENOTSUP;
		return NULL;
	}
	struct translator *t = table_map(sizeof(*t), true);
	if (!t)
		return NULL;
	t->vcpu = vcpu;
	t->avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512f");
	t->avx = __builtin_cpu_supports("avx");
	for (unsigned level = VECTOR_NONE; level <= VECTOR_AVX512; level++) {
		t->vector_classes[level] = classes_needed(&(struct xblock){.vector = (uint8_t)level});
		t->missing_with_live[level] = missing_with(level);
	}
	t->vector_missing = VECTOR_ALL_MISSING;
	t->heat = XHEAT;
	t->perf_map = vcpu->machine ? vcpu->machine->options.perf_map : NULL;
	t->count_executed = vcpu->machine && vcpu->machine->options.stats;
	t->compare_taken = vcpu->machine && vcpu->machine->options.compare_taken;
	uint64_t share = vcpu->machine && vcpu->machine->options.code_cache
	                     ? depot_rest_for_each(vcpu->machine->options.code_cache, vcpu->machine->options.cpus)
	                     : SHARE;
	int error = code_arena_create(&t->arena, TRAMPOLINES_SIZE + STRING_ROOM + regions_code_size(share));
	if (error || !translator_emit_trampolines(t) || regions_create(t, share)) {
		errno = error ? -error : ENOMEM;
		error = errno;
		translator_destroy(t);
		errno = error;
		return NULL;
	}
	if (t->perf_map) {
		perf_map_own(t->perf_map, t->arena.execute, TRAMPOLINES_SIZE, "enter, exit, slow access");
		perf_map_own(t->perf_map, t->arena.execute + TRAMPOLINES_SIZE, STRING_ROOM, "REP MOVS and STOS");
	}
	if (returns_create(t) || across_create(t) || caches_create(t) || aliases_create(t) ||
	    (vcpu->machine && join_depot(t))) {
		translator_destroy(t);
		errno = ENOMEM;
		return NULL;
	}
	t->listener.written = code_written;
	atomic_store(&t->code_seen, atomic_load(&vcpu->memory->code_writes));
	memory_listen(vcpu->memory, &t->listener);
	translator_flush(t);
	if (vcpu->machine && vcpu->machine->options.lockstep && translator_set_lockstep(t)) {
		translator_destroy(t);
		errno = ENOMEM;
		return NULL;
	}
	return t;
}

int translator_set_lockstep(struct translator *t)
{
	t->lockstep = lockstep_create(t);
	return t->lockstep ? 0 : -ENOMEM;
}

void translator_set_heat(struct vcpu *vcpu, unsigned entries)
{
	translator_of(vcpu)->heat = entries;
}

void translator_destroy(struct translator *t)
{
	if (!t)
		return;
	lockstep_destroy(t->lockstep);
	if (t->listener.written)
		memory_unlisten(t->vcpu->memory, &t->listener);
	if (t->arena.write && t->space)
		translator_flush(t);
	caches_destroy(t);
	returns_destroy(t);
	across_destroy(t);
	aliases_destroy(t);
	code_arena_destroy(&t->arena);
	regions_destroy(t);
	depot_remove_user(t->depot);
	free(t->scratch);
	table_unmap(t, sizeof(*t));
}
