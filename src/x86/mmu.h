/*
 * Linear memory of a guest: software TLB and the checked accesses that every engine and x86/ routine uses.
 *
 * Accesses are made at the vCPU's current privilege (CPL) unless the _system form is used, which is an implicit
 * supervisor access (descriptor tables, TSS: SDM 3A 4.6.1). A fault unwinds through x86_raise(); nothing was changed by
 * the access that faulted, not even where it crosses a page: both pages are translated before the first byte is
 * written.
 *
 * The TLB caches translations for three views, so that a change of privilege or of EFLAGS.AC flushes nothing:
 * user; supervisor; supervisor that may touch user pages (CR4.SMAP = 0 or EFLAGS.AC = 1).
 *
 * An entry exists only for pages of RAM (MMIO and ROM writes always take the slow path). After every write through an
 * entry the writer looks at memory_page_flags: see memory.h, "written pages".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vcpu;

enum mmu_view { MMU_SUPERVISOR, MMU_SUPERVISOR_AC, MMU_USER, MMU_VIEWS };
enum mmu_access { MMU_READ, MMU_WRITE, MMU_EXECUTE, MMU_ACCESSES };

#define MMU_TLB_BITS    11
#define MMU_TLB_ENTRIES (1u << MMU_TLB_BITS)
/* The tag of an empty slot: a page that belongs into its neighbour, so that no linear address of this slot matches, not
 * even in the XOR form. */
#define MMU_NO_TAG(index) ((((uint64_t)(index) ^ 1) & (MMU_TLB_ENTRIES - 1)) << 12)

struct mmu_tlb_entry {
	uint64_t tag;        /* linear page address, or MMU_NO_TAG(index) */
	uint64_t host;       /* host address of the page minus the tag, so that host + linear is the byte's address */
	uint64_t physical;   /* guest-physical page address */
	uint8_t *page_flags; /* &memory_page_flags[physical >> 12] */
};

/*
 * Does somebody want to know of writes to the entry's page? For writers, after the store (memory.h, "written pages"): volatile keeps the
 * compiler from looking before, and processors see their own order of a store and a load here by memory_barrier_all().
 */
static inline uint8_t mmu_entry_flags(const struct mmu_tlb_entry *entry)
{
	return __atomic_load_n((volatile uint8_t *)entry->page_flags, __ATOMIC_RELAXED);
}

/*
 * Address spaces by PCID: the TLB itself holds only the current one's entries, but who caches more than the TLB does may
 * keep what belongs to the last MMU_SPACES of them (mmu_load_space).
 */
#define MMU_SPACES 8u

/* What an invalidation took away; for who caches more than the TLB does and wants to keep what stays valid. */
struct mmu_flush_note {
	uint64_t epoch; /* the one that it began */
	uint64_t linear;
	enum {
		MMU_FLUSH_ALL,       /* of all spaces */
		MMU_FLUSH_NONGLOBAL, /* of the current space */
		MMU_FLUSH_PAGE,      /* of the current space, and global ones */
		MMU_FLUSH_SPACE,     /* all that is kept for space `to`, which is not current */
		MMU_FLUSH_SWITCH,    /* `from` is kept, `to` is current: what is not global changes */
	} kind;
	uint8_t from, to;
};
#define MMU_FLUSH_NOTES 32

struct mmu {
	struct mmu_tlb_entry (*tlb)[MMU_ACCESSES][MMU_TLB_ENTRIES]; /* [view][access][index]; allocated by mmu_create */
	enum mmu_view view;                                         /* of explicit accesses now; see mmu_update_view */
	bool has_global;      /* some entry came from a global page: not all go on a CR3 load */
	uint64_t *global_map; /* private: which entries are global */
	uint64_t last_flush_generation;
	struct {
		uint16_t pcid;
		bool used;
		uint64_t last; /* epoch of its last load */
		/*
		 * Moves when code that was found in this space may be mapped otherwise. What is known of code there: a
		 * bloom filter of its pages, and whether some lies in large pages.
		 */
		uint64_t code_epoch;
		uint64_t code_pages[8];
		bool code_large;
	} space[MMU_SPACES];
	unsigned current; /* space */
	/* The same for supervisor code in global pages, while all supervisor code lies in such. */
	uint64_t code_epoch_global, last_code_epoch;
	bool supervisor_not_global, supervisor_low, user_global; /* such code there is */
	/* Moves with every invalidation: whoever caches more than the TLB does (chained code, say) compares it. */
	uint64_t epoch;
	/* The note of epoch n is at n % MMU_FLUSH_NOTES, if its epoch says so; others moved the epoch without one: then all is void. */
	struct mmu_flush_note note[MMU_FLUSH_NOTES];
	uint64_t *valid_map,
	    *large_map;         /* private, as global_map: which entries are in use, which are pieces of large pages */
	uint64_t large_regions; /* mmu_region_bit() of what pieces of large pages there are, or were */
	/*
	 * Set by an access after which the engine must look up before the next instruction: a data breakpoint or
	 * watchpoint was hit (pending_debug or debug.hit_address say so), or decoded code was written. The engine
	 * clears it.
	 */
	bool stop;
	bool watchpoint_hit; /* of vcpu->debug: EXIT_DEBUG after this instruction. The engine clears it. */
	bool watching;       /* some data breakpoint or watchpoint is set; see mmu_update_watches */
};

int mmu_create(struct vcpu *vcpu); /* 0 or -ENOMEM */
void mmu_destroy(struct vcpu *vcpu);

/* Recomputes the view from CPL, CR4.SMAP and EFLAGS.AC. Call after any of them changed. */
void mmu_update_view(struct vcpu *vcpu);

/*
 * Recomputes which pages are kept out of the TLB because a data breakpoint (DR0-3 with DR7) or watchpoint of
 * vcpu->debug lies on them. Call after any of them changed.
 */
void mmu_update_watches(struct vcpu *vcpu);

/* TLB invalidation. `mmu_flush` drops everything, `_nonglobal` what a CR3 load drops, `_page` one linear page. */
void mmu_flush(struct vcpu *vcpu);
void mmu_flush_nonglobal(struct vcpu *vcpu);
void mmu_flush_page(struct vcpu *vcpu, uint64_t linear);
/* A load of CR3 with this PCID (0 without PCIDs). `keep`: what was cached for it stays (bit 63 of the value). */
void mmu_load_space(struct vcpu *vcpu, unsigned pcid, bool keep);
/* Invalidates what is cached for a PCID, but for global pages. */
void mmu_flush_pcid(struct vcpu *vcpu, unsigned pcid);
/* The same for all PCIDs. */
void mmu_flush_nonglobal_all(struct vcpu *vcpu);

/*
 * For who links code by linear address: a number that moves when code at the current privilege may be mapped otherwise.
 * It counts only on pages that mmu_note_code() was told of since (true: and the number has just moved).
 */
uint64_t mmu_code_epoch(const struct vcpu *vcpu);
bool mmu_note_code(struct vcpu *vcpu, uint64_t linear);
/* What all that was derived from the state rests on has changed. */
void mmu_forget(struct vcpu *vcpu);

/*
 * Translates one byte's address for `access` in `view`, filling the TLB; raises #PF. Returns the guest-physical
 * address. A/D bits are set as the processor would.
 */
uint64_t mmu_translate(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, enum mmu_view view);

/* Like mmu_translate with reading, but for debuggers: no fault, no A/D update, privileges ignored. False: not mapped.
 */
bool mmu_translate_debug(struct vcpu *vcpu, uint64_t linear, uint64_t *physical);
/* Reads or writes guest memory for a debugger; false when a page is not mapped or not RAM (nothing was changed then).
 */
bool mmu_debug_read(struct vcpu *vcpu, uint64_t linear, void *buffer, size_t length);
bool mmu_debug_write(struct vcpu *vcpu, uint64_t linear, const void *buffer, size_t length);

/* `size` is 1, 2, 4 or 8. Any alignment. Little-endian value, zero-extended. */
uint64_t mmu_read(struct vcpu *vcpu, uint64_t linear, unsigned size);
void mmu_write(struct vcpu *vcpu, uint64_t linear, unsigned size, uint64_t value);
uint64_t mmu_read_system(struct vcpu *vcpu, uint64_t linear, unsigned size);
void mmu_write_system(struct vcpu *vcpu, uint64_t linear, unsigned size, uint64_t value);

/* Longer ones (up to 4096 bytes, at most two pages): vectors, FXSAVE images, descriptors. */
void mmu_read_bytes(struct vcpu *vcpu, uint64_t linear, void *buffer, size_t length);
void mmu_write_bytes(struct vcpu *vcpu, uint64_t linear, const void *buffer, size_t length);

/*
 * Checks that `length` bytes (at most two pages) could be written now, raising what a write would raise, setting A and
 * D; writes nothing. For instructions that must not half-complete (PUSHA, ENTER, far CALL, task switch).
 */
void mmu_probe_write(struct vcpu *vcpu, uint64_t linear, size_t length);
void mmu_probe_write_system(struct vcpu *vcpu, uint64_t linear, size_t length);

/*
 * The host address of `length` bytes at `linear` when they lie within one page of plain RAM, else NULL (page crossing,
 * MMIO). Raises #PF as an access would. The pointer is good until the next TLB flush; after writing through it call
 * mmu_written().
 */
void *mmu_host_pointer(struct vcpu *vcpu, uint64_t linear, size_t length, enum mmu_access access);
/* Marks bytes written through mmu_host_pointer (code watch, dirty log). */
void mmu_written(struct vcpu *vcpu, uint64_t linear, size_t length);

/* The GiB of a linear address, as one of 64 bits: what an INVLPG there may find of large pages (others may share the bit). */
static inline uint64_t mmu_region_bit(uint64_t linear)
{
	return 1ull << ((linear >> 30) * 0x9e3779b97f4a7c15ull >> 58);
}

/* The slot of a linear address in one TLB array. */
static inline unsigned mmu_tlb_index(uint64_t linear)
{
	return (linear >> 12) & (MMU_TLB_ENTRIES - 1);
}
/*
 * For engines: the entry for one linear page, filled if need be; raises #PF. NULL: the page is not RAM or is watched;
 * `physical` (may be NULL) receives the byte's guest-physical address in any case.
 */
struct mmu_tlb_entry *mmu_entry(struct vcpu *vcpu, uint64_t linear, enum mmu_access access, uint64_t *physical);
/* Did this entry come from a global page, and from a large one? (SDM 3A 4.10.2.4) */
bool mmu_entry_global(const struct vcpu *vcpu, const struct mmu_tlb_entry *entry);
bool mmu_entry_large(const struct vcpu *vcpu, const struct mmu_tlb_entry *entry);
