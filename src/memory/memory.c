/*
 * Guest-physical memory: one memfd, the page flags, and the protocol between writers and those who cache code
 * (memory.h).
 */
#include "memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGES_PER_WORD 64

static void *map_zeroed(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static uint64_t dirty_words(const struct memory *memory)
{
	return (memory->page_count + PAGES_PER_WORD - 1) / PAGES_PER_WORD;
}

/*
 * Processors and devices race for guest memory by nature (what a device reads there it copies once): nothing for the
 * thread sanitizer.
 */
#ifdef __SANITIZE_THREAD__
void AnnotateBenignRaceSized(const char *file, int line, const volatile void *start, size_t bytes, const char *what);
#define racy(start, bytes) AnnotateBenignRaceSized(__FILE__, __LINE__, start, bytes, "guest memory")
#else
#define racy(start, bytes) (void)0
#endif

static int map_ram(struct memory *memory)
{
	memory->fd = memfd_create("guest-ram", MFD_CLOEXEC);
	if (memory->fd < 0)
		return -errno;
	if (ftruncate(memory->fd, (off_t)memory->size) < 0)
		return -errno;
	void *low = mmap(NULL, memory->low_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory->fd, 0);
	if (low == MAP_FAILED)
		return -errno;
	memory->low = low;
	racy(low, memory->low_size);
	if (memory->high_size) {
		void *high = mmap(NULL, memory->high_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		                  memory->fd, (off_t)memory->low_size);
		if (high == MAP_FAILED)
			return -errno;
		memory->high = high;
		racy(high, memory->high_size);
	}
	return 0;
}

int memory_create(struct memory *memory, uint64_t size)
{
	int error;

	memset(memory, 0, sizeof(*memory));
	memory->fd = -1;
	if (size < (1u << 20) || size % MEMORY_PAGE_SIZE || size > (1ull << 46))
		return -EINVAL;
	memory->size = size;
	memory->low_size = size < MEMORY_LOW_MAX ? size : MEMORY_LOW_MAX;
	memory->high_size = size - memory->low_size;
	memory->page_count =
	    (memory->high_size ? MEMORY_HIGH_BASE + memory->high_size : memory->low_size) >> MEMORY_PAGE_SHIFT;
	pthread_mutex_init(&memory->split_lock, NULL);
	pthread_mutex_init(&memory->watch_lock, NULL);
	pthread_mutex_init(&memory->listener_lock, NULL);
	error = map_ram(memory);
	if (error)
		goto fail;
	memory->page_flags = map_zeroed(memory->page_count);
	memory->code_generation = map_zeroed(memory->page_count * sizeof(uint32_t));
	if (!memory->page_flags || !memory->code_generation) {
		error = -ENOMEM;
		goto fail;
	}
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0) {
		memory->barrier_page = map_zeroed(MEMORY_PAGE_SIZE);
		if (!memory->barrier_page) {
			error = -ENOMEM;
			goto fail;
		}
	}
	return 0;
fail:
	memory_destroy(memory);
	return error;
}

void memory_destroy(struct memory *memory)
{
	memory_dirty_stop(memory);
	if (memory->low)
		munmap(memory->low, memory->low_size);
	if (memory->high)
		munmap(memory->high, memory->high_size);
	if (memory->page_flags)
		munmap((void *)memory->page_flags, memory->page_count);
	if (memory->code_generation)
		munmap((void *)memory->code_generation, memory->page_count * sizeof(uint32_t));
	if (memory->barrier_page)
		munmap(memory->barrier_page, MEMORY_PAGE_SIZE);
	if (memory->fd >= 0)
		close(memory->fd);
	if (memory->size) {
		pthread_mutex_destroy(&memory->split_lock);
		pthread_mutex_destroy(&memory->watch_lock);
		pthread_mutex_destroy(&memory->listener_lock);
	}
	memset(memory, 0, sizeof(*memory));
	memory->fd = -1;
}

void *memory_pointer(const struct memory *memory, uint64_t physical, uint64_t length)
{
	if (physical < memory->low_size) {
		if (length > memory->low_size - physical)
			return NULL;
		if (physical < MEMORY_VGA_END && physical + length > MEMORY_VGA_HOLE &&
		    (length || physical >= MEMORY_VGA_HOLE))
			return NULL;
		return memory->low + physical;
	}
	if (physical < MEMORY_HIGH_BASE || physical - MEMORY_HIGH_BASE >= memory->high_size)
		return NULL;
	if (length > memory->high_size - (physical - MEMORY_HIGH_BASE))
		return NULL;
	return memory->high + (physical - MEMORY_HIGH_BASE);
}

int memory_read(const struct memory *memory, uint64_t physical, void *buffer, uint64_t length)
{
	if (!length)
		return 0;
	const void *p = memory_pointer(memory, physical, length);

	if (!p)
		return -EFAULT;
	memcpy(buffer, p, length);
	return 0;
}

int memory_write(struct memory *memory, uint64_t physical, const void *buffer, uint64_t length)
{
	if (!length)
		return 0;
	void *p = memory_pointer(memory, physical, length);

	if (!p)
		return -EFAULT;
	memcpy(p, buffer, length);
	memory_written(memory, physical, length);
	return 0;
}

int memory_fill(struct memory *memory, uint64_t physical, uint8_t value, uint64_t length)
{
	if (!length)
		return 0;
	void *p = memory_pointer(memory, physical, length);

	if (!p)
		return -EFAULT;
	memset(p, value, length);
	memory_written(memory, physical, length);
	return 0;
}

int memory_discard(struct memory *memory, uint64_t physical, uint64_t length)
{
	const uint64_t mask = MEMORY_PAGE_SIZE - 1;

	if (!length)
		return 0;
	if (!memory_pointer(memory, physical, length))
		return -EFAULT;
	uint64_t start = (physical + mask) & ~mask, end = (physical + length) & ~mask;
	if (start >= end)
		return 0;
	uint64_t offset = start < memory->low_size ? start : memory->low_size + (start - MEMORY_HIGH_BASE);
	if (fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)(end - start)) < 0)
		return -errno;
	memory_written(memory, start, end - start);
	return 0;
}

/* Every other thread of the process has drained its store buffer when this returns. */
void memory_barrier_all(struct memory *memory)
{
	if (!memory->barrier_page) {
		syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
		return;
	}
	/* Taking a right away from a present page interrupts every processor that runs one of our threads. */
	mprotect(memory->barrier_page, MEMORY_PAGE_SIZE, PROT_READ | PROT_WRITE);
	*(volatile uint8_t *)memory->barrier_page = 1;
	mprotect(memory->barrier_page, MEMORY_PAGE_SIZE, PROT_READ);
}

/* Sets PAGE_CODE and makes it visible. The lock: nobody sets it a second time, after a writer cleared it, under our
 * barrier. */
static bool set_code_flag(struct memory *memory, _Atomic uint8_t *flags)
{
	bool first = false;

	pthread_mutex_lock(&memory->watch_lock);
	if (!(atomic_load(flags) & PAGE_CODE_SETTLED)) {
		first = !(atomic_fetch_or(flags, PAGE_CODE) & PAGE_CODE);
		memory_barrier_all(memory);
		uint8_t seen = atomic_load(flags);
		while ((seen & PAGE_CODE) && !atomic_compare_exchange_weak(flags, &seen, seen | PAGE_CODE_SETTLED))
			;
	}
	pthread_mutex_unlock(&memory->watch_lock);
	return first;
}

uint32_t memory_watch_code(struct memory *memory, uint64_t physical)
{
	bool first = false;

	return memory_watch_code_first(memory, physical, &first);
}

uint32_t memory_watch_code_first(struct memory *memory, uint64_t physical, bool *first)
{
	uint64_t page = physical >> MEMORY_PAGE_SHIFT;
	_Atomic uint8_t *flags = &memory->page_flags[page];

	for (;;) {
		if (!(atomic_load(flags) & PAGE_CODE_SETTLED))
			*first |= set_code_flag(memory, flags);
		uint32_t generation = atomic_load(&memory->code_generation[page]);
		/*
		 * memory_page_written() clears the flag and moves the generation after that. With the flag still there,
		 * a write that we do not see in the bytes will move the generation away from the one read here.
		 */
		if (atomic_load(flags) & PAGE_CODE_SETTLED)
			return generation;
	}
}

static void tell_listeners(struct memory *memory, uint64_t page)
{
	pthread_mutex_lock(&memory->listener_lock);
	uint32_t n = atomic_load(&memory->code_writes);
	atomic_store(&memory->code_note[n % MEMORY_CODE_NOTES], page);
	atomic_store(&memory->code_writes, n + 1);
	if (memory->listeners) {
		for (struct memory_code_listener *l = memory->listeners; l; l = l->next)
			l->written(l, false);
		memory_barrier_all(memory);
		for (struct memory_code_listener *l = memory->listeners; l; l = l->next)
			l->written(l, true);
	}
	pthread_mutex_unlock(&memory->listener_lock);
}

void memory_listen(struct memory *memory, struct memory_code_listener *listener)
{
	pthread_mutex_lock(&memory->listener_lock);
	listener->next = memory->listeners;
	memory->listeners = listener;
	pthread_mutex_unlock(&memory->listener_lock);
}

void memory_unlisten(struct memory *memory, struct memory_code_listener *listener)
{
	pthread_mutex_lock(&memory->listener_lock);
	for (struct memory_code_listener **l = &memory->listeners; *l; l = &(*l)->next)
		if (*l == listener) {
			*l = listener->next;
			break;
		}
	pthread_mutex_unlock(&memory->listener_lock);
}

void memory_page_written(struct memory *memory, uint64_t physical)
{
	uint64_t page = physical >> MEMORY_PAGE_SHIFT;
	uint8_t flags = atomic_exchange(&memory->page_flags[page], 0);

	if (flags & PAGE_CODE) {
		atomic_fetch_add(&memory->code_generation[page], 1);
		tell_listeners(memory, page);
	}
	if ((flags & PAGE_CLEAN) && memory->log) {
		unsigned n = atomic_fetch_add(&memory->log->count, 1);

		if (n < MEMORY_LOG_MAX)
			memory->log->page[n] = page;
	}
	if ((flags & PAGE_CLEAN) && memory->dirty)
		atomic_fetch_or(&memory->dirty[page / PAGES_PER_WORD], 1ull << (page % PAGES_PER_WORD));
}

static bool page_is_ram(const struct memory *memory, uint64_t page)
{
	return memory_is_ram(memory, page << MEMORY_PAGE_SHIFT);
}

void memory_log_start(struct memory *memory, struct memory_write_log *log)
{
	atomic_store(&log->count, 0);
	memory->log = log;
	for (uint64_t page = 0; page < memory->page_count; page++)
		if (page_is_ram(memory, page))
			atomic_fetch_or(&memory->page_flags[page], PAGE_CLEAN);
}

void memory_log_reset(struct memory *memory)
{
	unsigned count = atomic_load(&memory->log->count);

	for (unsigned i = 0; i < count && i < MEMORY_LOG_MAX; i++)
		atomic_fetch_or(&memory->page_flags[memory->log->page[i]], PAGE_CLEAN);
	atomic_store(&memory->log->count, 0);
}

void memory_log_stop(struct memory *memory)
{
	memory->log = NULL;
	for (uint64_t page = 0; page < memory->page_count; page++)
		atomic_fetch_and(&memory->page_flags[page], (uint8_t)~PAGE_CLEAN);
}

int memory_dirty_start(struct memory *memory)
{
	if (!memory->dirty) {
		memory->dirty = map_zeroed(dirty_words(memory) * sizeof(uint64_t));
		if (!memory->dirty)
			return -ENOMEM;
	}
	for (uint64_t page = 0; page < memory->page_count; page++)
		if (page_is_ram(memory, page))
			atomic_fetch_or(&memory->page_flags[page], PAGE_CLEAN);
	memory_barrier_all(memory);
	return 0;
}

void memory_dirty_collect(struct memory *memory, uint64_t *bitmap)
{
	for (uint64_t i = 0; i < dirty_words(memory); i++) {
		uint64_t word = memory->dirty ? atomic_exchange(&memory->dirty[i], 0) : 0;

		bitmap[i] = word;
		for (; word; word &= word - 1) {
			uint64_t page = i * PAGES_PER_WORD + (unsigned)__builtin_ctzll(word);
			atomic_fetch_or(&memory->page_flags[page], PAGE_CLEAN);
		}
	}
	/* What was stored without seeing the flag is in memory now, where the caller reads it. */
	memory_barrier_all(memory);
}

void memory_dirty_stop(struct memory *memory)
{
	_Atomic uint64_t *dirty = memory->dirty;

	if (!dirty)
		return;
	for (uint64_t page = 0; page < memory->page_count; page++)
		if (atomic_load_explicit(&memory->page_flags[page], memory_order_relaxed) & PAGE_CLEAN)
			atomic_fetch_and(&memory->page_flags[page], (uint8_t)~PAGE_CLEAN);
	memory->dirty = NULL;
	munmap((void *)dirty, dirty_words(memory) * sizeof(uint64_t));
}
