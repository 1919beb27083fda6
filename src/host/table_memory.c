#include "host/table_memory.h"

#include <stdint.h>
#include <sys/mman.h>

#define HUGE (2u << 20)

/* LeakSanitizer's, where it is linked: it does not follow pointers in mappings that it has not been told of. */
void __lsan_register_root_region(const void *start, size_t size) __attribute__((weak));
void __lsan_unregister_root_region(const void *start, size_t size) __attribute__((weak));

static void *map(size_t size, bool low)
{
	/* Only what is aligned gets a huge page: the ends that make it so are given back. */
	size_t room = size < HUGE ? size : size + HUGE;
	uint8_t *memory = mmap(NULL, room, PROT_READ | PROT_WRITE,
	                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (low ? MAP_32BIT : 0), -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	if (room == size)
		return memory;
	size_t before = -(uintptr_t)memory % HUGE, used = (size + 4095) & ~(size_t)4095;

	if (before)
		munmap(memory, before);
	if (before + used < room)
		munmap(memory + before + used, room - before - used);
	madvise(memory + before, used, MADV_HUGEPAGE); /* refused: small ones do */
	return memory + before;
}

void *table_map(size_t size, bool low)
{
	void *table = map(size, low);

	if (table && __lsan_register_root_region)
		__lsan_register_root_region(table, size);
	return table;
}

void table_unmap(void *table, size_t size)
{
	if (!table)
		return;
	if (__lsan_unregister_root_region)
		__lsan_unregister_root_region(table, size);
	munmap(table, size);
}
