/*
 * The machine's guest-physical memory: the pmap, the page flags (code watch, dirty log), and checked access for
 * devices.
 *
 * RAM is one memfd mapped MAP_SHARED: [0, low) and [4 GiB, 4 GiB + high), where low is at most 3 GiB (MEMORY_LOW_MAX);
 * the legacy hole 0xA0000-0xBFFFF is not RAM. What is not RAM belongs to the bus (MMIO).
 *
 * Written pages. page_flags[n] != 0 means that somebody wants to know of writes to guest-physical page n: it holds
 * decoded or translated code (PAGE_CODE), or the dirty log is on and the page still clean (PAGE_CLEAN). Every writer,
 * engine or device, stores first and looks at the flags after; when they are not 0 it calls memory_page_written(). One
 * who decodes code sets PAGE_CODE by memory_watch_code(), which makes the flag visible to all threads (membarrier)
 * before it returns, and reads the bytes only then. So either the reader sees the new bytes, or the writer sees the
 * flag: no write is ever missed, and the writer pays no fence.
 *
 * Whoever caches decoded code remembers memory_code_generation() of its page from before it read the bytes, and drops
 * the code when the generation has moved. Who cannot look at the generation each time (translated code that is linked)
 * is a struct memory_code_listener: every written page of code is noted, and the writer waits until each listener has
 * seen the note or is not in such code.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_PAGE_SHIFT 12
#define MEMORY_PAGE_SIZE  4096u
#define MEMORY_LOW_MAX    0xc0000000ull
#define MEMORY_HIGH_BASE  0x100000000ull
#define MEMORY_VGA_HOLE   0xa0000ull
#define MEMORY_VGA_END    0xc0000ull

#define MEMORY_LOG_MAX 64

#define PAGE_CODE  1u
#define PAGE_CLEAN 2u
/* memory.c's own: PAGE_CODE is visible to all threads, so that further watchers of the page need no barrier. */
#define PAGE_CODE_SETTLED 4u

/*
 * Is told of written pages of code, on the writer's thread, in two calls: first with `wait` false for all listeners,
 * then, behind a memory barrier on all threads, with `wait` true: returns when no stale code can run any more.
 */
struct memory_code_listener {
	struct memory_code_listener *next; /* memory.c's */
	void (*written)(struct memory_code_listener *listener, bool wait);
};

#define MEMORY_CODE_NOTES 64u

struct memory_write_log;

struct memory {
	uint64_t size; /* bytes of RAM in all */
	uint64_t low_size, high_size;
	int fd;              /* the RAM memfd: low_size bytes, then high_size */
	uint8_t *low;        /* host address of guest-physical 0 */
	uint8_t *high;       /* host address of guest-physical 4 GiB, or NULL */
	uint64_t page_count; /* length of the two arrays: covers low and the high part, hole included */
	_Atomic uint8_t *page_flags;
	_Atomic uint32_t *code_generation;
	_Atomic uint32_t
	    watch_handshakes;    /* engines' own: vCPUs that are taking write access to a page from others (cache.c) */
	_Atomic uint64_t *dirty; /* bit map while the dirty log is on, else NULL; memory.c's own */
	/*
	 * Held around a locked instruction whose operand crosses a page or is not RAM, which the host cannot do in one
	 * piece. Two such instructions exclude each other; a leaf in the lock order.
	 */
	pthread_mutex_t split_lock;
	pthread_mutex_t watch_lock; /* memory.c's own: one sets PAGE_CODE at a time */
	void *barrier_page;         /* memory.c's own: for hosts that refuse membarrier() */
	/* Written pages of code: how many there were, and the last ones' numbers (note n at n % MEMORY_CODE_NOTES). */
	_Atomic uint32_t code_writes;
	_Atomic uint64_t code_note[MEMORY_CODE_NOTES];
	struct memory_write_log *log;  /* or NULL; borrowed */
	pthread_mutex_t listener_lock; /* memory.c's own: of the notes and the list; a leaf but for what listeners do */
	struct memory_code_listener *listeners;
};

/* `size` in bytes, a multiple of 4 KiB, at least 1 MiB. 0 or -errno. Memory is given by the host when first touched. */
int memory_create(struct memory *memory, uint64_t size);
void memory_destroy(struct memory *memory);

/* Host address of `length` bytes of RAM at guest-physical `physical`, or NULL when any of them is not RAM. Wrap is
 * checked. */
void *memory_pointer(const struct memory *memory, uint64_t physical, uint64_t length);
/* The other way: the guest-physical address of a byte of RAM on the host. */
static inline uint64_t memory_physical(const struct memory *memory, const void *pointer)
{
	uint64_t offset = (uint64_t)((const uint8_t *)pointer - memory->low);

	return offset < memory->low_size ? offset
	                                 : MEMORY_HIGH_BASE + (uint64_t)((const uint8_t *)pointer - memory->high);
}
static inline bool memory_is_ram(const struct memory *memory, uint64_t physical)
{
	return (physical < memory->low_size && (physical < MEMORY_VGA_HOLE || physical >= MEMORY_VGA_END)) ||
	       (physical >= MEMORY_HIGH_BASE && physical - MEMORY_HIGH_BASE < memory->high_size);
}

/* The host address of a byte of RAM. */
static inline void *memory_ram(const struct memory *memory, uint64_t physical)
{
	return physical < MEMORY_HIGH_BASE ? memory->low + physical : memory->high + (physical - MEMORY_HIGH_BASE);
}

/* Copies for devices (DMA) and loaders. 0, or -EFAULT when any byte is not RAM: then nothing was copied. Any thread. */
int memory_read(const struct memory *memory, uint64_t physical, void *buffer, uint64_t length);
int memory_write(struct memory *memory, uint64_t physical, const void *buffer, uint64_t length);
int memory_fill(struct memory *memory, uint64_t physical, uint8_t value, uint64_t length);
/*
 * Gives the whole pages in the range back to the host; they read as zeros from now on, and are given again when touched. 0, or -EFAULT when
 * any byte is not RAM, or -errno of the host's. Any thread.
 */
int memory_discard(struct memory *memory, uint64_t physical, uint64_t length);

/* Sets PAGE_CODE on a RAM page (see above) and returns the generation that code decoded from now on has. Any thread. */
uint32_t memory_watch_code(struct memory *memory, uint64_t physical);
/* The same; `first` (set, never cleared): the flag was set by this call. */
uint32_t memory_watch_code_first(struct memory *memory, uint64_t physical, bool *first);
static inline uint32_t memory_code_generation(const struct memory *memory, uint64_t physical)
{
	return atomic_load_explicit(&memory->code_generation[physical >> MEMORY_PAGE_SHIFT], memory_order_acquire);
}
/* A full memory barrier on every running thread of this process (membarrier): the other side of a handshake needs only
 * a compiler barrier. */
void memory_barrier_all(struct memory *memory);
/* The page was written while its flags were not 0: moves the generation, tells listeners, marks it dirty. Any thread. */
void memory_page_written(struct memory *memory, uint64_t physical);
/* Listeners must not be called back into these. Any thread. */
void memory_listen(struct memory *memory, struct memory_code_listener *listener);
void memory_unlisten(struct memory *memory, struct memory_code_listener *listener);

/* After a write of `length` bytes through a pointer. */
static inline void memory_written(struct memory *memory, uint64_t physical, uint64_t length)
{
	if (length == 0)
		return;
	for (uint64_t page = physical >> MEMORY_PAGE_SHIFT; page <= (physical + length - 1) >> MEMORY_PAGE_SHIFT;
	     page++)
		if (atomic_load_explicit(&memory->page_flags[page], memory_order_relaxed))
			memory_page_written(memory, page << MEMORY_PAGE_SHIFT);
}

/*
 * A short log of which clean pages were written, for lockstep: `reset` makes the logged ones clean again. One log at a
 * time, not together with the dirty log. What does not fit is counted only.
 */
struct memory_write_log {
	_Atomic unsigned count;
	uint64_t page[MEMORY_LOG_MAX];
};
void memory_log_start(struct memory *memory, struct memory_write_log *log);
void memory_log_reset(struct memory *memory);
void memory_log_stop(struct memory *memory);

/*
 * Dirty log. Start marks all pages clean; memory_dirty_collect() copies and clears the bitmap (one bit per page,
 * page_count bits) under way.
 */
int memory_dirty_start(struct memory *memory);
void memory_dirty_collect(struct memory *memory, uint64_t *bitmap);
void memory_dirty_stop(struct memory *memory);
