/*
 * Memory for large tables that are looked into at random: zeroed, on huge pages where the host gives them to who asks, not
 * reserved. What they point to counts as used for LeakSanitizer. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* `low`: below 2 GiB, for absolute operands of generated code. NULL: errno. table_unmap() with the same size. */
void *table_map(size_t size, bool low);
void table_unmap(void *table, size_t size); /* NULL: nothing */
