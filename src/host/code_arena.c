#include "host/code_arena.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/huge_pages.h"

/* Address space for `size` bytes, which large arenas want at a multiple of a huge page. NULL: errno. */
static uint8_t *reserve(size_t size)
{
	size_t align = size < HUGE_PAGE ? 0 : HUGE_PAGE;
	uint8_t *room = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		return NULL;
	size_t before = align ? -(uintptr_t)room % align : 0;
	if (before)
		munmap(room, before);
	if (align > before)
		munmap(room + before + size, align - before);
	return room + before;
}

static int fail(struct code_arena *arena)
{
	int error = -errno;

	code_arena_destroy(arena);
	return error;
}

int code_arena_create(struct code_arena *arena, size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	size = (size + page - 1) & ~(page - 1);
	*arena = (struct code_arena){.size = size, .execute = reserve(size), .write = reserve(size)};
	if (!arena->execute || !arena->write)
		return fail(arena);
	/* Anonymous and not a memfd: perf(1) looks into its map file only for memory without a name. */
	if (mmap((void *)arena->execute, size, PROT_READ | PROT_EXEC,
	         MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return fail(arena);
	/* An old size of 0 maps the same shared pages a second time (mremap(2)). */
	if (mremap((void *)arena->execute, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, arena->write) == MAP_FAILED ||
	    mprotect(arena->write, size, PROT_READ | PROT_WRITE))
		return fail(arena);
	if (size >= HUGE_PAGE && !(arena->huge = huge_pages_create(arena->write, size))) {
		errno = ENOMEM;
		return fail(arena);
	}
	return 0;
}

void code_arena_destroy(struct code_arena *arena)
{
	huge_pages_destroy(arena->huge);
	if (arena->write)
		munmap(arena->write, arena->size);
	if (arena->execute)
		munmap((void *)arena->execute, arena->size);
	*arena = (struct code_arena){0};
}

uint8_t *code_arena_allocate(struct code_arena *arena, size_t length, size_t alignment)
{
	size_t start = (arena->used + alignment - 1) & ~(alignment - 1);
	if (start > arena->size || length > arena->size - start)
		return NULL;
	arena->used = start + length;
	return arena->write + start;
}

void code_arena_reset(struct code_arena *arena)
{
	arena->used = 0;
}

void code_arena_settle(struct code_arena *arena, size_t end)
{
	if (!arena->huge || end / HUGE_PAGE <= arena->settled / HUGE_PAGE)
		return;
	arena->settled = end;
	huge_pages_ask(arena->huge, end);
}

void code_arena_give_back(struct code_arena *arena, size_t from)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (arena->huge)
		huge_pages_stop(arena->huge);
	arena->settled = 0;
	from = (from + page - 1) & ~(page - 1);
	if (from < arena->size)
		madvise(arena->write + from, arena->size - from, MADV_REMOVE);
}

size_t code_arena_huge(const struct code_arena *arena)
{
	return arena->huge ? huge_pages_count(arena->huge) : 0;
}

void code_arena_publish(void)
{
	/* IRET is serializing and, unlike CPUID, is never intercepted by an outer hypervisor. */
	uint64_t scratch, scratch2;
	__asm__ volatile("mov %%rsp, %0\n\t"
	                 "sub $128, %%rsp\n\t" /* past the red zone */
	                 "mov %%ss, %k1\n\t"
	                 "push %1\n\t"
	                 "push %0\n\t"
	                 "pushfq\n\t"
	                 "mov %%cs, %k1\n\t"
	                 "push %1\n\t"
	                 "lea 1f(%%rip), %1\n\t"
	                 "push %1\n\t"
	                 "iretq\n"
	                 "1:"
	                 : "=&r"(scratch), "=&r"(scratch2)
	                 :
	                 : "memory", "cc");
}
