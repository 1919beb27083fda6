#include "virtio_driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define NEXT     1u
#define WRITE    2u
#define INDIRECT 4u
#define AVAIL    0x0080u
#define USED     0x8000u

static void *at(struct driver_queue *queue, uint64_t address, unsigned length)
{
	void *host = memory_pointer(queue->memory, address, length);

	assert_non_null(host);
	return host;
}

/* A guest's accesses, which no lock orders: not for the thread sanitizer. */
#define GUEST_CODE __attribute__((no_sanitize("thread")))

GUEST_CODE static void put(struct driver_queue *queue, uint64_t address, unsigned length, uint64_t value)
{
	volatile uint8_t *bytes = at(queue, address, length);

	for (unsigned i = 0; i < length; i++)
		bytes[i] = (uint8_t)(value >> 8 * i);
}

GUEST_CODE static uint64_t get(struct driver_queue *queue, uint64_t address, unsigned length)
{
	const volatile uint8_t *bytes = at(queue, address, length);
	uint64_t value = 0;

	for (unsigned i = 0; i < length; i++)
		value |= (uint64_t)bytes[i] << 8 * i;
	return value;
}

static uint16_t load16(struct driver_queue *queue, uint64_t address)
{
	return __atomic_load_n((uint16_t *)at(queue, address, 2), __ATOMIC_ACQUIRE);
}

static void store16(struct driver_queue *queue, uint64_t address, uint16_t value)
{
	__atomic_store_n((uint16_t *)at(queue, address, 2), value, __ATOMIC_RELEASE);
}

uint64_t driver_queue_bytes(uint16_t size)
{
	return ((16ull * size + 4095) & ~4095ull) + ((6 + 2ull * size + 4095) & ~4095ull) +
	       ((6 + 8ull * size + 4095) & ~4095ull);
}

void driver_queue_init(struct driver_queue *queue, struct memory *memory, uint64_t base, uint16_t size, bool packed,
                       bool event_index, bool indirect)
{
	uint64_t driver = base + ((16ull * size + 4095) & ~4095ull);
	uint64_t device = driver + ((6 + 2ull * size + 4095) & ~4095ull);

	*queue = (struct driver_queue){.memory = memory, .wrap = true, .used_wrap = true, .free_count = size};
	queue->setup = (struct virtio_ring_setup){size, base, driver, device, packed, event_index, indirect};
	for (unsigned i = 0; i < size; i++)
		queue->free_list[i] = size - 1 - i;
	assert_int_equal(memory_fill(memory, base, 0, driver_queue_bytes(size)), 0);
}

static void write_descriptor(struct driver_queue *queue, uint64_t where, const struct driver_buffer *buffer,
                             uint16_t flags, uint16_t third)
{
	bool packed = queue->setup.packed;

	put(queue, where, 8, buffer->address);
	put(queue, where + 8, 4, buffer->length);
	/* The device polls a packed descriptor's flags. */
	if (packed)
		store16(queue, where + 14, flags);
	else
		put(queue, where + 12, 2, flags);
	put(queue, where + (packed ? 12 : 14), 2, third);
}

static struct driver_buffer write_table(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count,
                                        uint64_t table)
{
	for (unsigned i = 0; i < count; i++) {
		bool more = i + 1 < count && !queue->setup.packed;

		write_descriptor(queue, table + 16 * i, &buffers[i], (buffers[i].write ? WRITE : 0) | (more ? NEXT : 0),
		                 queue->setup.packed ? 0 : i + 1);
	}
	return (struct driver_buffer){.address = table, .length = 16 * count};
}

static int add_split(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count, unsigned extra)
{
	uint16_t size = queue->setup.size;
	uint16_t head = queue->free_list[queue->free_count - 1];

	for (unsigned i = 0; i < count; i++) {
		uint16_t index = queue->free_list[--queue->free_count];
		bool more = i + 1 < count;

		write_descriptor(queue, queue->setup.descriptors + 16 * index, &buffers[i],
		                 (buffers[i].write ? WRITE : 0) | (more ? NEXT : 0) | extra,
		                 more ? queue->free_list[queue->free_count - 1] : 0);
	}
	assert_int_equal(queue->places[head], 0);
	queue->places[head] = count;
	put(queue, queue->setup.driver + 4 + 2 * (queue->next % size), 2, head);
	store16(queue, queue->setup.driver + 2, ++queue->next);
	return head;
}

static int add_packed(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count, unsigned extra)
{
	unsigned id = 0;
	uint64_t first = 0;
	uint16_t first_flags = 0;

	while (queue->places[id])
		id++;
	for (unsigned i = 0; i < count; i++) {
		uint64_t where = queue->setup.descriptors + 16 * queue->next;
		uint16_t flags =
		    (buffers[i].write ? WRITE : 0) | (i + 1 < count ? NEXT : 0) | extra | (queue->wrap ? AVAIL : USED);

		/* The first one's flags come last: they make the chain available. */
		write_descriptor(queue, where, &buffers[i], i ? flags : get(queue, where + 14, 2), id);
		if (i == 0) {
			first = where;
			first_flags = flags;
		}
		if (++queue->next == queue->setup.size) {
			queue->next = 0;
			queue->wrap = !queue->wrap;
		}
	}
	queue->free_count -= count;
	queue->places[id] = count;
	store16(queue, first + 14, first_flags);
	return (int)id;
}

int driver_add(struct driver_queue *queue, const struct driver_buffer *buffers, unsigned count, uint64_t table)
{
	struct driver_buffer indirect;
	unsigned extra = 0;

	if (table) {
		indirect = write_table(queue, buffers, count, table);
		buffers = &indirect;
		count = 1;
		extra = INDIRECT;
	}
	if (count > queue->free_count)
		return -1;
	return queue->setup.packed ? add_packed(queue, buffers, count, extra) : add_split(queue, buffers, count, extra);
}

unsigned driver_position(const struct driver_queue *queue)
{
	return queue->setup.packed ? queue->next | queue->wrap << 15 : queue->next;
}

bool driver_must_notify(struct driver_queue *queue, unsigned before)
{
	struct virtio_ring_setup *setup = &queue->setup;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!setup->packed) {
		if (!setup->event_index)
			return !(load16(queue, setup->device) & 1);
		uint16_t event = load16(queue, setup->device + 4 + 8 * setup->size);
		return (uint16_t)(queue->next - event - 1) < (uint16_t)(queue->next - before);
	}
	uint16_t flags = load16(queue, setup->device + 2), event = load16(queue, setup->device);
	if (flags != 2)
		return flags == 0;
	/* As places from the start of the lap that `before` is in. */
	bool lap = before >> 15;
	int from = before & 0x7fff, to = queue->next + (queue->wrap != lap ? setup->size : 0);
	int wanted = (event & 0x7fff) + ((event >> 15) != lap ? setup->size : 0);
	return (wanted >= from && wanted < to) || (wanted - 2 * setup->size >= from);
}

bool driver_used(struct driver_queue *queue, uint16_t *id, uint32_t *written)
{
	struct virtio_ring_setup *setup = &queue->setup;

	if (!setup->packed) {
		if (load16(queue, setup->device + 2) == queue->used)
			return false;
		uint64_t element = setup->device + 4 + 8 * (queue->used % setup->size);
		*id = get(queue, element, 4);
		*written = get(queue, element + 4, 4);
		assert_true(*id < setup->size && queue->places[*id]);
		/* Chains are given back whole; which numbers its descriptors have is in the table itself. */
		unsigned index = *id;
		for (unsigned i = 0; i < queue->places[*id]; i++) {
			queue->free_list[queue->free_count++] = index;
			index = get(queue, setup->descriptors + 16 * index + 14, 2);
		}
		queue->places[*id] = 0;
		queue->used++;
		return true;
	}
	uint64_t where = setup->descriptors + 16 * queue->used;
	uint16_t flags = load16(queue, where + 14);
	if (!(flags & AVAIL) != !(flags & USED) || !(flags & AVAIL) == queue->used_wrap)
		return false;
	*id = get(queue, where + 12, 2);
	*written = flags & WRITE ? get(queue, where + 8, 4) : 0;
	assert_true(*id < VIRTIO_RING_SIZE_MAX && queue->places[*id]);
	queue->used += queue->places[*id];
	if (queue->used >= setup->size) {
		queue->used -= setup->size;
		queue->used_wrap = !queue->used_wrap;
	}
	queue->free_count += queue->places[*id];
	queue->places[*id] = 0;
	return true;
}

void driver_interrupts(struct driver_queue *queue, bool on, unsigned after)
{
	struct virtio_ring_setup *setup = &queue->setup;

	if (!setup->packed) {
		store16(queue, setup->driver, !on);
		if (on)
			store16(queue, setup->driver + 4 + 2 * setup->size, queue->used + after - 1);
		return;
	}
	unsigned place = queue->used + after - 1;
	bool wrap = queue->used_wrap;
	if (place >= setup->size) {
		place -= setup->size;
		wrap = !wrap;
	}
	store16(queue, setup->driver, place | wrap << 15);
	store16(queue, setup->driver + 2, !on ? 1 : setup->event_index ? 2 : 0);
}
