/*
 * The software TLB and the checked accesses to linear memory (mmu.h).
 *
 * All arrays together are one block of entries, numbered by SLOT(); two bit maps over the slots say which are in use
 * and which hold a global page, so that an invalidation touches only what is there.
 */
#include "x86/mmu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/vcpu.h"
#include "memory/memory.h"
#include "x86/exceptions.h"
#include "x86/paging.h"

#define PAGE_MASK  0xfffull
#define SLOTS      (MMU_VIEWS * MMU_ACCESSES * MMU_TLB_ENTRIES)
#define SLOT_WORDS (SLOTS / 64)

#define unlikely(x) __builtin_expect(!!(x), 0)
#define likely(x)   __builtin_expect(!!(x), 1)

/* Guest memory: any alignment, and read or written exactly once. */
typedef uint16_t __attribute__((may_alias, aligned(1))) guest_u16;
typedef uint32_t __attribute__((may_alias, aligned(1))) guest_u32;
typedef uint64_t __attribute__((may_alias, aligned(1))) guest_u64;

static unsigned slot_of(enum mmu_view view, enum mmu_access access, unsigned index)
{
	return ((unsigned)view * MMU_ACCESSES + (unsigned)access) * MMU_TLB_ENTRIES + index;
}

static struct mmu_tlb_entry *slot_entry(struct mmu *mmu, unsigned slot)
{
	return &mmu->tlb[0][0][0] + slot;
}

static void clear_tag(struct mmu *mmu, unsigned slot)
{
	slot_entry(mmu, slot)->tag = MMU_NO_TAG(slot % MMU_TLB_ENTRIES);
}

/* Where code is mapped. */

static void renew_space_code(struct mmu *mmu, unsigned n)
{
	mmu->space[n].code_epoch = ++mmu->last_code_epoch;
	memset(mmu->space[n].code_pages, 0, sizeof(mmu->space[n].code_pages));
	mmu->space[n].code_large = false;
}

static void renew_all_code(struct mmu *mmu)
{
	mmu->code_epoch_global = ++mmu->last_code_epoch;
	mmu->supervisor_not_global = mmu->supervisor_low = mmu->user_global = false;
	for (unsigned n = 0; n < MMU_SPACES; n++)
		renew_space_code(mmu, n);
}

static bool by_space(const struct vcpu *vcpu)
{
	return cpu_cpl(&vcpu->state) == 3 || vcpu->mmu.supervisor_not_global;
}

uint64_t mmu_code_epoch(const struct vcpu *vcpu)
{
	const struct mmu *mmu = &vcpu->mmu;

	return by_space(vcpu) ? mmu->space[mmu->current].code_epoch : mmu->code_epoch_global;
}

bool mmu_note_code(struct vcpu *vcpu, uint64_t linear)
{
	struct mmu *mmu = &vcpu->mmu;
	const struct mmu_tlb_entry *entry = mmu_entry(vcpu, linear, MMU_EXECUTE, NULL);

	if (cpu_cpl(&vcpu->state) != 3) {
		mmu->supervisor_low |= !(linear >> 63);
		if (!mmu->supervisor_not_global && (!entry || !mmu_entry_global(vcpu, entry))) {
			mmu->supervisor_not_global = true;
			for (unsigned n = 0; n < MMU_SPACES; n++)
				renew_space_code(mmu, n);
			return true;
		}
		if (!mmu->supervisor_not_global)
			return false;
	} else {
		mmu->user_global |= entry && mmu_entry_global(vcpu, entry);
	}
	mmu->space[mmu->current].code_pages[linear >> 18 & 7] |= 1ull << (linear >> 12 & 63);
	mmu->space[mmu->current].code_large |= !entry || mmu_entry_large(vcpu, entry);
	return false;
}

/* One page is mapped otherwise. */
static void renew_page_code(struct mmu *mmu, uint64_t linear)
{
	if ((mmu->space[mmu->current].code_pages[linear >> 18 & 7] >> (linear >> 12 & 63) & 1) ||
	    mmu->space[mmu->current].code_large)
		renew_space_code(mmu, mmu->current);
	if (linear >> 63 || mmu->supervisor_low)
		mmu->code_epoch_global = ++mmu->last_code_epoch;
	for (unsigned n = 0; mmu->user_global && n < MMU_SPACES; n++)
		renew_space_code(mmu, n);
}

int mmu_create(struct vcpu *vcpu)
{
	struct mmu *mmu = &vcpu->mmu;

	mmu->tlb = aligned_alloc(64, SLOTS * sizeof(struct mmu_tlb_entry));
	mmu->valid_map = calloc(SLOT_WORDS, sizeof(uint64_t));
	mmu->global_map = calloc(SLOT_WORDS, sizeof(uint64_t));
	mmu->large_map = calloc(SLOT_WORDS, sizeof(uint64_t));
	if (!mmu->tlb || !mmu->valid_map || !mmu->global_map || !mmu->large_map) {
		mmu_destroy(vcpu);
		return -ENOMEM;
	}
	memset(mmu->tlb, 0, SLOTS * sizeof(struct mmu_tlb_entry));
	for (unsigned i = 0; i < SLOTS; i++)
		slot_entry(mmu, i)->tag = MMU_NO_TAG(i);
	mmu->epoch = 1;
	mmu->space[0].used = true;
	renew_all_code(mmu);
	mmu_update_view(vcpu);
	mmu_update_watches(vcpu);
	return 0;
}

void mmu_destroy(struct vcpu *vcpu)
{
	struct mmu *mmu = &vcpu->mmu;

	free(mmu->tlb);
	free(mmu->valid_map);
	free(mmu->global_map);
	free(mmu->large_map);
	mmu->tlb = NULL;
	mmu->valid_map = mmu->global_map = mmu->large_map = NULL;
}

/* SDM 3A 4.6: the user's rules at CPL 3; the supervisor's with SMAP suspended by EFLAGS.AC (STAC). */
void mmu_update_view(struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;

	if (cpu_cpl(s) == 3)
		vcpu->mmu.view = MMU_USER;
	else if (!(s->cr4 & CR4_SMAP) || (s->rflags & FLAG_AC))
		vcpu->mmu.view = MMU_SUPERVISOR_AC;
	else
		vcpu->mmu.view = MMU_SUPERVISOR;
}

/* Invalidation. */

static struct mmu_flush_note *begin_epoch(struct mmu *mmu, int kind)
{
	struct mmu_flush_note *note = &mmu->note[++mmu->epoch % MMU_FLUSH_NOTES];

	*note = (struct mmu_flush_note){.epoch = mmu->epoch, .kind = kind};
	return note;
}

static void flush_except(struct vcpu *vcpu, const uint64_t *keep)
{
	struct mmu *mmu = &vcpu->mmu;

	vcpu->counters.tlb_flushes++;
	for (unsigned word = 0; word < SLOT_WORDS; word++) {
		uint64_t kept = keep ? keep[word] : 0;
		for (uint64_t drop = mmu->valid_map[word] & ~kept; drop; drop &= drop - 1)
			clear_tag(mmu, word * 64 + (unsigned)__builtin_ctzll(drop));
		mmu->valid_map[word] &= kept;
	}
}

/* The current space is CR3's, however that came to be; nothing is kept for others. */
static void name_space(struct vcpu *vcpu)
{
	const struct cpu_state *s = &vcpu->state;
	struct mmu *mmu = &vcpu->mmu;

	for (unsigned n = 0; n < MMU_SPACES; n++)
		mmu->space[n].used = n == mmu->current;
	mmu->space[mmu->current].pcid = s->cr4 & CR4_PCIDE ? s->cr3 & 0xfff : 0;
}

void mmu_flush(struct vcpu *vcpu)
{
	begin_epoch(&vcpu->mmu, MMU_FLUSH_ALL);
	renew_all_code(&vcpu->mmu);
	flush_except(vcpu, NULL);
	if (vcpu->mmu.has_global)
		memset(vcpu->mmu.global_map, 0, SLOT_WORDS * sizeof(uint64_t));
	vcpu->mmu.has_global = false;
	vcpu->mmu.large_regions = 0;
	name_space(vcpu);
}

void mmu_forget(struct vcpu *vcpu)
{
	begin_epoch(&vcpu->mmu, MMU_FLUSH_ALL);
	renew_all_code(&vcpu->mmu);
	name_space(vcpu);
}

static void drop_nonglobal(struct vcpu *vcpu)
{
	flush_except(vcpu, vcpu->mmu.has_global ? vcpu->mmu.global_map : NULL);
}

void mmu_flush_nonglobal(struct vcpu *vcpu)
{
	begin_epoch(&vcpu->mmu, MMU_FLUSH_NONGLOBAL);
	renew_space_code(&vcpu->mmu, vcpu->mmu.current);
	drop_nonglobal(vcpu);
}

/* What is kept elsewhere for a space that is not current. */
static void forget_space(struct mmu *mmu, unsigned n)
{
	begin_epoch(mmu, MMU_FLUSH_SPACE)->to = (uint8_t)n;
	renew_space_code(mmu, n);
}

/* The space of a PCID, or MMU_SPACES. */
static unsigned find_space(const struct mmu *mmu, unsigned pcid)
{
	unsigned n = 0;

	while (n < MMU_SPACES && !(mmu->space[n].used && mmu->space[n].pcid == pcid))
		n++;
	return n;
}

void mmu_load_space(struct vcpu *vcpu, unsigned pcid, bool keep)
{
	struct mmu *mmu = &vcpu->mmu;
	unsigned n = pcid == mmu->space[mmu->current].pcid ? mmu->current : find_space(mmu, pcid);

	if (n == mmu->current) {
		if (!keep)
			mmu_flush_nonglobal(vcpu);
		return;
	}
	if (n == MMU_SPACES) {
		keep = false;
		n = mmu->current ? 0 : 1;
		for (unsigned i = 0; i < MMU_SPACES; i++)
			if (i != mmu->current && (!mmu->space[i].used || mmu->space[i].last < mmu->space[n].last))
				n = i;
		mmu->space[n].pcid = (uint16_t)pcid;
		mmu->space[n].used = true;
	}
	if (!keep)
		forget_space(mmu, n);
	struct mmu_flush_note *note = begin_epoch(mmu, MMU_FLUSH_SWITCH);
	note->from = (uint8_t)mmu->current;
	note->to = (uint8_t)n;
	mmu->space[n].last = mmu->epoch;
	mmu->current = n;
	drop_nonglobal(vcpu);
}

void mmu_flush_pcid(struct vcpu *vcpu, unsigned pcid)
{
	struct mmu *mmu = &vcpu->mmu;
	unsigned n = find_space(mmu, pcid);

	if (n == mmu->current)
		mmu_flush_nonglobal(vcpu);
	else if (n < MMU_SPACES)
		forget_space(mmu, n);
}

void mmu_flush_nonglobal_all(struct vcpu *vcpu)
{
	struct mmu *mmu = &vcpu->mmu;

	mmu_flush_nonglobal(vcpu);
	for (unsigned n = 0; n < MMU_SPACES; n++)
		if (n != mmu->current && mmu->space[n].used)
			forget_space(mmu, n);
}

void mmu_flush_page(struct vcpu *vcpu, uint64_t linear)
{
	struct mmu *mmu = &vcpu->mmu;

	begin_epoch(mmu, MMU_FLUSH_PAGE)->linear = linear;
	renew_page_code(mmu, linear);
	vcpu->counters.tlb_flushes++;
	for (unsigned array = 0; array < MMU_VIEWS * MMU_ACCESSES; array++) {
		unsigned slot = array * MMU_TLB_ENTRIES + mmu_tlb_index(linear);
		if (slot_entry(mmu, slot)->tag == (linear & ~PAGE_MASK)) {
			clear_tag(mmu, slot);
			mmu->valid_map[slot / 64] &= ~(1ull << (slot % 64));
		}
	}
	if (!(mmu->large_regions & mmu_region_bit(linear)))
		return;
	/* Entries are 4 KiB pieces of what was a large page, and all pieces must go (SDM 3A 4.10.4.1), whatever is
	 * there now. */
	for (unsigned word = 0; word < SLOT_WORDS; word++)
		for (uint64_t live = mmu->valid_map[word] & mmu->large_map[word]; live; live &= live - 1) {
			unsigned bit = (unsigned)__builtin_ctzll(live);
			struct mmu_tlb_entry *e = slot_entry(mmu, word * 64 + bit);
			if ((e->tag ^ linear) >> 30)
				continue;
			clear_tag(mmu, word * 64 + bit);
			mmu->valid_map[word] &= ~(1ull << bit);
		}
}

/* Data breakpoints (SDM 3B 17.2) and the debugger's watchpoints. */

static bool overlaps(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
	return a - b < b_length || b - a < a_length;
}

/* Breakpoint register n, when it is on and watches data. */
static bool data_breakpoint(const struct cpu_state *s, unsigned n, uint64_t *address, uint64_t *length, bool *reads)
{
	static const uint8_t lengths[4] = {1, 2, 8, 4};
	unsigned control = (unsigned)(s->dr[7] >> (16 + 4 * n)) & 15;

	if (!(s->dr[7] >> (2 * n) & 3) || !(control & 1))
		return false;
	*length = lengths[control >> 2];
	*address = s->dr[n] & ~(*length - 1);
	*reads = (control & 3) == 3;
	return true;
}

static void watch_access(struct vcpu *vcpu, uint64_t linear, uint64_t size, bool write)
{
	struct vcpu_debug *debug = &vcpu->debug;
	uint64_t address, length;
	bool reads;

	for (unsigned n = 0; n < 4; n++) {
		if (!data_breakpoint(&vcpu->state, n, &address, &length, &reads) || (!write && !reads) ||
		    !overlaps(linear, size, address, length))
			continue;
		vcpu->state.pending_debug |= 1ull << n;
		vcpu->mmu.stop = true;
	}
	for (unsigned i = 0; i < debug->watchpoint_count; i++) {
		if (!(debug->watchpoint[i].kinds & (write ? 2 : 1)) ||
		    !overlaps(linear, size, debug->watchpoint[i].address, debug->watchpoint[i].length))
			continue;
		debug->hit_address = debug->watchpoint[i].address;
		vcpu->mmu.watchpoint_hit = vcpu->mmu.stop = true;
	}
}

static bool page_watched(const struct vcpu *vcpu, uint64_t linear)
{
	uint64_t page = linear & ~PAGE_MASK, address, length;
	bool reads;

	if (likely(!vcpu->mmu.watching))
		return false;
	for (unsigned n = 0; n < 4; n++)
		if (data_breakpoint(&vcpu->state, n, &address, &length, &reads) &&
		    overlaps(page, MEMORY_PAGE_SIZE, address, length))
			return true;
	for (unsigned i = 0; i < vcpu->debug.watchpoint_count; i++)
		if (overlaps(page, MEMORY_PAGE_SIZE, vcpu->debug.watchpoint[i].address,
		             vcpu->debug.watchpoint[i].length))
			return true;
	return false;
}

void mmu_update_watches(struct vcpu *vcpu)
{
	uint64_t address, length;
	bool reads, before = vcpu->mmu.watching;

	vcpu->mmu.watching = vcpu->debug.watchpoint_count != 0;
	for (unsigned n = 0; n < 4; n++)
		vcpu->mmu.watching |= data_breakpoint(&vcpu->state, n, &address, &length, &reads);
	if (before || vcpu->mmu.watching)
		mmu_flush(vcpu);
}

/* Translation. */

/* Outside long mode a linear address has 32 bits (SDM 3A 3.3). */
static uint64_t wrap(const struct vcpu *vcpu, uint64_t linear)
{
	return cpu_long_mode(&vcpu->state) ? linear : (uint32_t)linear;
}

static void set_entry(struct vcpu *vcpu, uint64_t linear, enum mmu_view view, enum mmu_access access,
                      const struct paging_result *walk, uint8_t *host)
{
	struct mmu *mmu = &vcpu->mmu;
	unsigned slot = slot_of(view, access, mmu_tlb_index(linear));
	struct mmu_tlb_entry *e = slot_entry(mmu, slot);
	uint64_t bit = 1ull << (slot % 64);

	e->tag = linear & ~PAGE_MASK;
	e->physical = walk->physical & ~PAGE_MASK;
	e->host = (uint64_t)host - e->tag;
	e->page_flags = (uint8_t *)&vcpu->memory->page_flags[e->physical >> MEMORY_PAGE_SHIFT];
	mmu->valid_map[slot / 64] |= bit;
	if (walk->global) {
		mmu->global_map[slot / 64] |= bit;
		mmu->has_global = true;
	} else {
		mmu->global_map[slot / 64] &= ~bit;
	}
	if (walk->page_size > MEMORY_PAGE_SIZE) {
		mmu->large_map[slot / 64] |= bit;
		mmu->large_regions |= mmu_region_bit(linear);
	} else {
		mmu->large_map[slot / 64] &= ~bit;
	}
}

static struct mmu_tlb_entry *find_entry(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view)
{
	struct mmu_tlb_entry *e = &vcpu->mmu.tlb[view][access][mmu_tlb_index(linear)];

	return likely(e->tag == (linear & ~PAGE_MASK)) ? e : NULL;
}

/* Walks the tables, fills the TLB where the page is plain RAM, raises #PF. */
static struct mmu_tlb_entry *fill(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view,
                                  uint64_t *physical)
{
	struct paging_result walk;

	if (cpu_long_mode(&vcpu->state) && !cpu_canonical(linear))
		x86_raise(vcpu, VECTOR_GP);
	if (!paging_walk(vcpu, linear, access, view, false, &walk))
		x86_raise_page_fault(vcpu, linear, walk.error);
	*physical = walk.physical;
	uint64_t page = walk.physical & ~PAGE_MASK;
	if (!memory_is_ram(vcpu->memory, page) || (access != MMU_EXECUTE && page_watched(vcpu, linear)))
		return NULL;
	uint8_t *host = memory_pointer(vcpu->memory, page, MEMORY_PAGE_SIZE);
	if (!host)
		return NULL;
	vcpu->counters.tlb_fills++;
	set_entry(vcpu, linear, view, access, &walk, host);
	/* One walk serves both kinds of data access where the tables allow. */
	if (access == MMU_READ && walk.writable)
		set_entry(vcpu, linear, view, MMU_WRITE, &walk, host);
	else if (access == MMU_WRITE && walk.readable)
		set_entry(vcpu, linear, view, MMU_READ, &walk, host);
	return &vcpu->mmu.tlb[view][access][mmu_tlb_index(linear)];
}

static struct mmu_tlb_entry *entry_of(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view,
                                      uint64_t *physical)
{
	struct mmu_tlb_entry *e = find_entry(vcpu, linear, access, view);

	if (!e)
		return fill(vcpu, linear, access, view, physical);
	*physical = e->physical | (linear & PAGE_MASK);
	return e;
}

struct mmu_tlb_entry *mmu_entry(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, uint64_t *physical)
{
	uint64_t unused;
	enum mmu_view view = vcpu->mmu.view;

	if (access == MMU_EXECUTE && view == MMU_SUPERVISOR_AC)
		view = MMU_SUPERVISOR;
	return entry_of(vcpu, wrap(vcpu, linear), access, view, physical ? physical : &unused);
}

uint64_t mmu_translate(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view)
{
	uint64_t physical;

	entry_of(vcpu, wrap(vcpu, linear), access, view, &physical);
	return physical;
}

bool mmu_translate_debug(struct vcpu *vcpu, uint64_t linear, uint64_t *physical)
{
	struct paging_result walk;

	linear = wrap(vcpu, linear);
	if (cpu_long_mode(&vcpu->state) && !cpu_canonical(linear))
		return false;
	if (!paging_walk(vcpu, linear, MMU_READ, MMU_SUPERVISOR_AC, true, &walk))
		return false;
	*physical = walk.physical;
	return true;
}

static bool debug_copy(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, size_t length, bool write)
{
	/* Two rounds when writing: nothing is changed when any page is missing. */
	for (int commit = write ? 0 : 1; commit < 2; commit++) {
		for (size_t done = 0; done < length;) {
			uint64_t physical, at = linear + done;
			size_t piece = MEMORY_PAGE_SIZE - (at & PAGE_MASK);

			if (piece > length - done)
				piece = length - done;
			if (!mmu_translate_debug(vcpu, at, &physical) || !memory_pointer(vcpu->memory, physical, piece))
				return false;
			if (commit && write)
				memory_write(vcpu->memory, physical, buffer + done, piece);
			else if (commit)
				memory_read(vcpu->memory, physical, buffer + done, piece);
			done += piece;
		}
	}
	return true;
}

bool mmu_debug_read(struct vcpu *vcpu, uint64_t linear, void *buffer, size_t length)
{
	return debug_copy(vcpu, linear, buffer, length, false);
}

bool mmu_debug_write(struct vcpu *vcpu, uint64_t linear, const void *buffer, size_t length)
{
	return debug_copy(vcpu, linear, (uint8_t *)buffer, length, true);
}

/* Accesses. */

/* A part of an access that lies within one page. */
struct piece {
	uint8_t *host; /* NULL: not RAM */
	uint64_t physical;
	size_t length;
};

/* Translates `length` bytes, at most two pages, before anything is touched. Returns how many pieces there are. */
static unsigned resolve(struct vcpu *vcpu, uint64_t linear, size_t length, enum mmu_access access, enum mmu_view view,
                        struct piece piece[2])
{
	size_t first = MEMORY_PAGE_SIZE - (linear & PAGE_MASK);
	unsigned count = length > first ? 2 : 1;

	piece[0].length = count == 2 ? first : length;
	piece[1].length = length - piece[0].length;
	for (unsigned i = 0; i < count; i++) {
		uint64_t at = wrap(vcpu, linear + (i ? first : 0));
		struct mmu_tlb_entry *e = entry_of(vcpu, at, access, view, &piece[i].physical);
		piece[i].host =
		    e ? (uint8_t *)(e->host + at) : memory_pointer(vcpu->memory, piece[i].physical, piece[i].length);
	}
	return count;
}

static void note_written(struct vcpu *vcpu, uint64_t physical)
{
	_Atomic uint8_t *flags = &vcpu->memory->page_flags[physical >> MEMORY_PAGE_SHIFT];
	uint8_t seen = atomic_load_explicit(flags, memory_order_relaxed);

	if (likely(!seen))
		return;
	memory_page_written(vcpu->memory, physical);
	if (seen & PAGE_CODE)
		vcpu->mmu.stop = true;
}

static void mmio_copy(struct vcpu *vcpu, uint64_t physical, uint8_t *buffer, size_t length, bool write)
{
	while (length) {
		unsigned size = length >= 8 ? 8 : length >= 4 ? 4 : length >= 2 ? 2 : 1;
		uint64_t value = 0;

		if (write) {
			memcpy(&value, buffer, size);
			vcpu_mmio_write(vcpu, physical, size, value);
		} else {
			value = vcpu_mmio_read(vcpu, physical, size);
			memcpy(buffer, &value, size);
		}
		physical += size;
		buffer += size;
		length -= size;
	}
}

/* Sizes that the processor does in one piece are done in one piece. */
static void ram_load(void *buffer, const uint8_t *host, size_t length)
{
	switch (length) {
	case 1:
		*(uint8_t *)buffer = *(const volatile uint8_t *)host;
		break;
	case 2:
		*(guest_u16 *)buffer = *(const volatile guest_u16 *)host;
		break;
	case 4:
		*(guest_u32 *)buffer = *(const volatile guest_u32 *)host;
		break;
	case 8:
		*(guest_u64 *)buffer = *(const volatile guest_u64 *)host;
		break;
	default:
		memcpy(buffer, host, length);
	}
}

static void ram_store(uint8_t *host, const void *buffer, size_t length)
{
	switch (length) {
	case 1:
		*(volatile uint8_t *)host = *(const uint8_t *)buffer;
		break;
	case 2:
		*(volatile guest_u16 *)host = *(const guest_u16 *)buffer;
		break;
	case 4:
		*(volatile guest_u32 *)host = *(const guest_u32 *)buffer;
		break;
	case 8:
		*(volatile guest_u64 *)host = *(const guest_u64 *)buffer;
		break;
	default:
		memcpy(host, buffer, length);
	}
}

static void read_bytes(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, size_t length, enum mmu_view view)
{
	struct piece piece[2];
	unsigned count = resolve(vcpu, linear, length, MMU_READ, view, piece);

	for (unsigned i = 0; i < count; i++) {
		if (piece[i].host)
			ram_load(buffer, piece[i].host, piece[i].length);
		else
			mmio_copy(vcpu, piece[i].physical, buffer, piece[i].length, false);
		buffer += piece[i].length;
	}
	if (unlikely(vcpu->mmu.watching))
		watch_access(vcpu, linear, length, false);
}

static void write_bytes(struct vcpu *vcpu, uint64_t linear, const uint8_t *buffer, size_t length, enum mmu_view view)
{
	struct piece piece[2];
	unsigned count = resolve(vcpu, linear, length, MMU_WRITE, view, piece);

	for (unsigned i = 0; i < count; i++) {
		if (piece[i].host) {
			ram_store(piece[i].host, buffer, piece[i].length);
			note_written(vcpu, piece[i].physical);
		} else {
			mmio_copy(vcpu, piece[i].physical, (uint8_t *)buffer, piece[i].length, true);
		}
		buffer += piece[i].length;
	}
	if (unlikely(vcpu->mmu.watching))
		watch_access(vcpu, linear, length, true);
}

/* Implicit supervisor accesses never profit from EFLAGS.AC (SDM 3A 4.6.1). */
static enum mmu_view system_view(const struct vcpu *vcpu)
{
	return vcpu->state.cr4 & CR4_SMAP ? MMU_SUPERVISOR : MMU_SUPERVISOR_AC;
}

static uint64_t read_value(struct vcpu *vcpu, uint64_t linear, unsigned size, enum mmu_view view)
{
	uint64_t value = 0;

	read_bytes(vcpu, wrap(vcpu, linear), (uint8_t *)&value, size, view);
	return value;
}

uint64_t mmu_read(struct vcpu *vcpu, uint64_t linear, unsigned size)
{
	return read_value(vcpu, linear, size, vcpu->mmu.view);
}

void mmu_write(struct vcpu *vcpu, uint64_t linear, unsigned size, uint64_t value)
{
	write_bytes(vcpu, wrap(vcpu, linear), (const uint8_t *)&value, size, vcpu->mmu.view);
}

uint64_t mmu_read_system(struct vcpu *vcpu, uint64_t linear, unsigned size)
{
	return read_value(vcpu, linear, size, system_view(vcpu));
}

void mmu_write_system(struct vcpu *vcpu, uint64_t linear, unsigned size, uint64_t value)
{
	write_bytes(vcpu, wrap(vcpu, linear), (const uint8_t *)&value, size, system_view(vcpu));
}

void mmu_read_bytes(struct vcpu *vcpu, uint64_t linear, void *buffer, size_t length)
{
	if (length)
		read_bytes(vcpu, wrap(vcpu, linear), buffer, length, vcpu->mmu.view);
}

void mmu_write_bytes(struct vcpu *vcpu, uint64_t linear, const void *buffer, size_t length)
{
	if (length)
		write_bytes(vcpu, wrap(vcpu, linear), buffer, length, vcpu->mmu.view);
}

static void probe_write(struct vcpu *vcpu, uint64_t linear, size_t length, enum mmu_view view)
{
	struct piece piece[2];

	if (length)
		resolve(vcpu, wrap(vcpu, linear), length, MMU_WRITE, view, piece);
}

void mmu_probe_write(struct vcpu *vcpu, uint64_t linear, size_t length)
{
	probe_write(vcpu, linear, length, vcpu->mmu.view);
}

void mmu_probe_write_system(struct vcpu *vcpu, uint64_t linear, size_t length)
{
	probe_write(vcpu, linear, length, system_view(vcpu));
}

void *mmu_host_pointer(struct vcpu *vcpu, uint64_t linear, size_t length, enum mmu_access access)
{
	uint64_t physical;

	linear = wrap(vcpu, linear);
	if ((linear & PAGE_MASK) + length > MEMORY_PAGE_SIZE)
		return NULL;
	struct mmu_tlb_entry *e = entry_of(vcpu, linear, access, vcpu->mmu.view, &physical);
	return e ? (void *)(e->host + linear) : NULL;
}

void mmu_written(struct vcpu *vcpu, uint64_t linear, size_t length)
{
	struct piece piece[2];

	if (!length)
		return;
	unsigned count = resolve(vcpu, wrap(vcpu, linear), length, MMU_WRITE, vcpu->mmu.view, piece);
	for (unsigned i = 0; i < count; i++)
		if (piece[i].host)
			note_written(vcpu, piece[i].physical);
}

static bool slot_bit(const struct vcpu *vcpu, const struct mmu_tlb_entry *entry, const uint64_t *map)
{
	uint64_t slot = (uint64_t)(entry - vcpu->mmu.tlb[0][0]);

	return map[slot / 64] >> (slot % 64) & 1;
}

bool mmu_entry_global(const struct vcpu *vcpu, const struct mmu_tlb_entry *entry)
{
	return slot_bit(vcpu, entry, vcpu->mmu.global_map);
}

bool mmu_entry_large(const struct vcpu *vcpu, const struct mmu_tlb_entry *entry)
{
	return slot_bit(vcpu, entry, vcpu->mmu.large_map);
}
