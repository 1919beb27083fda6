#include "host/code_arena.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

int code_arena_create(struct code_arena *arena, size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	*arena = (struct code_arena){0};
	size = (size + page - 1) & ~(page - 1);
	/* Anonymous and not a memfd: perf(1) looks into its map file only for memory without a name. */
	void *execute = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (execute == MAP_FAILED)
		return -errno;
	/* An old size of 0 maps the same shared pages a second time (mremap(2)). */
	void *write = mremap(execute, 0, size, MREMAP_MAYMOVE);
	if (write == MAP_FAILED || mprotect(write, size, PROT_READ | PROT_WRITE)) {
		int error = -errno;
		if (write != MAP_FAILED)
			munmap(write, size);
		munmap(execute, size);
		return error;
	}
	*arena = (struct code_arena){.write = write, .execute = execute, .size = size};
	return 0;
}

void code_arena_destroy(struct code_arena *arena)
{
	if (!arena->size)
		return;
	munmap(arena->write, arena->size);
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
