#include "host/code_arena.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010u
#endif

static int arena_descriptor(size_t size)
{
	/* Linux 6.3 wants to be told that the file will hold code; older kernels refuse the flag. */
	int fd = memfd_create("ring3-code", MFD_CLOEXEC | MFD_EXEC);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("ring3-code", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size)) {
		int error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

int code_arena_create(struct code_arena *arena, size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	*arena = (struct code_arena){.fd = -1};
	size = (size + page - 1) & ~(page - 1);
	int fd = arena_descriptor(size);
	if (fd < 0)
		return fd;
	void *write = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *execute = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (write == MAP_FAILED || execute == MAP_FAILED) {
		int error = -errno;
		if (write != MAP_FAILED)
			munmap(write, size);
		if (execute != MAP_FAILED)
			munmap(execute, size);
		close(fd);
		return error;
	}
	*arena = (struct code_arena){.write = write, .execute = execute, .size = size, .fd = fd};
	return 0;
}

void code_arena_destroy(struct code_arena *arena)
{
	if (!arena->size)
		return;
	munmap(arena->write, arena->size);
	munmap((void *)arena->execute, arena->size);
	close(arena->fd);
	*arena = (struct code_arena){.fd = -1};
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
