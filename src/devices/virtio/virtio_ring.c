#include "devices/virtio/virtio_ring.h"

#include <errno.h>
#include <string.h>

#include "machine/state.h"

#define DESCRIPTOR_SIZE 16u

#define DESCRIPTOR_NEXT     1u
#define DESCRIPTOR_WRITE    2u
#define DESCRIPTOR_INDIRECT 4u
#define DESCRIPTOR_AVAIL    (1u << 7) /* packed */
#define DESCRIPTOR_USED     (1u << 15)

/* Split: flags of the driver and device areas. */
#define NO_TELLING 1u

/* Packed: event suppression areas, offset and flags. */
#define EVENT_ENABLE  0u
#define EVENT_DISABLE 1u
#define EVENT_DESC    2u

/* A copy of one descriptor; `id` is `next` in split rings. */
struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, id;
};

/* ---- guest memory: each access once, of its natural size ---- */

static uint16_t get16(const uint8_t *at)
{
	return __atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED);
}

/* Indirect tables need not be aligned. */
typedef uint64_t unaligned64 __attribute__((aligned(1)));

static uint64_t get64(const uint8_t *at)
{
	return *(const volatile unaligned64 *)at;
}

static uint16_t get16_acquire(const uint8_t *at)
{
	return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}

static void put16(uint8_t *at, uint16_t value)
{
	__atomic_store_n((uint16_t *)at, value, __ATOMIC_RELAXED);
}

static void put32(uint8_t *at, uint32_t value)
{
	__atomic_store_n((uint32_t *)at, value, __ATOMIC_RELAXED);
}

static void put16_release(uint8_t *at, uint16_t value)
{
	__atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
}

/* A full fence: what was written before is seen before what is read after. */
static void fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void device_written(struct virtio_ring *ring, uint64_t offset, uint64_t length)
{
	memory_written(ring->memory, ring->setup.device + offset, length);
}

static void descriptors_written(struct virtio_ring *ring, unsigned place)
{
	memory_written(ring->memory, ring->setup.descriptors + DESCRIPTOR_SIZE * place, DESCRIPTOR_SIZE);
}

/* Split: offsets in the areas (2.7.6, 2.7.8). */
static unsigned used_event_offset(const struct virtio_ring *ring)
{
	return 4 + 2u * ring->setup.size;
}

static unsigned avail_event_offset(const struct virtio_ring *ring)
{
	return 4 + 8u * ring->setup.size;
}

static int broken(struct virtio_ring *ring, const char *why)
{
	if (!ring->error)
		ring->error = why;
	return -EIO;
}

/* ---- set-up ---- */

static uint8_t *area(struct virtio_ring *ring, uint64_t address, uint64_t length, unsigned alignment)
{
	return address % alignment ? NULL : memory_pointer(ring->memory, address, length);
}

int virtio_ring_init(struct virtio_ring *ring, struct memory *memory, const struct virtio_ring_setup *setup)
{
	uint64_t size = setup->size;
	uint8_t *descriptors, *driver, *device;

	*ring = (struct virtio_ring){.memory = memory, .setup = *setup, .taken_wrap = true, .used_wrap = true};
	if (size == 0 || size > VIRTIO_RING_SIZE_MAX || (!setup->packed && size & (size - 1))) {
		broken(ring, "size of the ring");
		return -EINVAL;
	}
	descriptors = area(ring, setup->descriptors, DESCRIPTOR_SIZE * size, 16);
	driver = area(ring, setup->driver, setup->packed ? 4 : 6 + 2 * size, setup->packed ? 4 : 2);
	device = area(ring, setup->device, setup->packed ? 4 : 6 + 8 * size, 4);
	if (!descriptors || !driver || !device) {
		broken(ring, !descriptors ? "descriptor area" : !driver ? "driver area" : "device area");
		return -EINVAL;
	}
	ring->descriptors = descriptors;
	ring->driver = driver;
	ring->device = device;
	return 0;
}

/* ---- taking chains ---- */

static struct descriptor descriptor_read(const uint8_t *table, unsigned index)
{
	const uint8_t *at = table + DESCRIPTOR_SIZE * index;
	uint64_t rest = get64(at + 8);

	/* Both layouts have address and length; the other two have changed places. */
	return (struct descriptor){get64(at), (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
}

static struct descriptor descriptor_read_packed(const uint8_t *table, unsigned index)
{
	struct descriptor d = descriptor_read(table, index);

	return (struct descriptor){d.address, d.length, d.id, d.flags};
}

static int add_segment(struct virtio_ring *ring, struct virtio_chain *chain, const struct descriptor *d)
{
	unsigned count = chain->readable + chain->writable;
	void *host = memory_pointer(ring->memory, d->address, d->length);

	if (d->length == 0)
		return broken(ring, "descriptor of length 0");
	if (!host)
		return broken(ring, "descriptor outside RAM");
	if (count == VIRTIO_CHAIN_MAX)
		return broken(ring, "chain too long");
	if (d->flags & DESCRIPTOR_WRITE) {
		chain->writable++;
		chain->writable_length += d->length;
	} else {
		if (chain->writable)
			return broken(ring, "readable descriptor after a writable one");
		chain->readable++;
		chain->readable_length += d->length;
	}
	if (chain->readable_length + chain->writable_length > UINT32_MAX)
		return broken(ring, "chain of more than 4 GiB");
	chain->segment[count] = (struct iovec){host, d->length};
	return 0;
}

/* A table elsewhere in RAM. Split: linked by `next`, from its first entry; packed: all its entries in a row
 * (2.7.5.3, 2.8.7). */
static int add_indirect(struct virtio_ring *ring, struct virtio_chain *chain, const struct descriptor *d)
{
	unsigned count = d->length / DESCRIPTOR_SIZE, index = 0;
	const uint8_t *table = memory_pointer(ring->memory, d->address, d->length);

	if (!ring->setup.indirect)
		return broken(ring, "indirect descriptor, not negotiated");
	if (d->flags & DESCRIPTOR_NEXT)
		return broken(ring, "indirect descriptor with a next one");
	if (d->length == 0 || d->length % DESCRIPTOR_SIZE || count > VIRTIO_CHAIN_MAX)
		return broken(ring, "length of an indirect table");
	if (!table)
		return broken(ring, "indirect table outside RAM");
	for (unsigned i = 0; i < count; i++) {
		struct descriptor entry =
		    ring->setup.packed ? descriptor_read_packed(table, i) : descriptor_read(table, index);

		if (entry.flags & DESCRIPTOR_INDIRECT)
			return broken(ring, "indirect table in an indirect table");
		if (add_segment(ring, chain, &entry))
			return -EIO;
		if (ring->setup.packed)
			continue;
		if (!(entry.flags & DESCRIPTOR_NEXT))
			return 0;
		if (entry.id >= count)
			return broken(ring, "next index out of the indirect table");
		index = entry.id;
	}
	return ring->setup.packed ? 0 : broken(ring, "loop in an indirect table");
}

static int split_next(struct virtio_ring *ring, struct virtio_chain *chain)
{
	uint16_t size = ring->setup.size;
	uint16_t waiting = get16_acquire(ring->driver + 2) - ring->taken;
	unsigned index;

	if (waiting == 0)
		return 0;
	if (waiting > size)
		return broken(ring, "available index jumps");
	if (ring->in_use >= size)
		return broken(ring, "more chains than the ring has places");
	index = get16(ring->driver + 4 + 2 * (ring->taken & (size - 1)));
	if (index >= size)
		return broken(ring, "head out of range");
	chain->token = (struct virtio_token){.id = index, .places = 1};
	for (unsigned i = 0; i < size; i++) {
		struct descriptor d = descriptor_read(ring->descriptors, index);

		if (d.flags & DESCRIPTOR_INDIRECT ? add_indirect(ring, chain, &d) : add_segment(ring, chain, &d))
			return -EIO;
		if (!(d.flags & DESCRIPTOR_NEXT)) {
			ring->taken++;
			ring->in_use++;
			return 1;
		}
		if (d.id >= size)
			return broken(ring, "next index out of range");
		index = d.id;
	}
	return broken(ring, "loop of descriptors");
}

static bool packed_available(const struct virtio_ring *ring)
{
	uint16_t flags = get16_acquire(ring->descriptors + DESCRIPTOR_SIZE * ring->taken + 14);
	bool avail = flags & DESCRIPTOR_AVAIL, used = flags & DESCRIPTOR_USED;

	return avail != used && avail == ring->taken_wrap;
}

static void packed_advance(const struct virtio_ring *ring, uint16_t *place, bool *wrap, unsigned count)
{
	unsigned next = *place + count;

	if (next >= ring->setup.size) {
		next -= ring->setup.size;
		*wrap = !*wrap;
	}
	*place = next;
}

static int packed_next(struct virtio_ring *ring, struct virtio_chain *chain)
{
	unsigned size = ring->setup.size;

	if (!packed_available(ring))
		return 0;
	for (unsigned i = 0; i < size; i++) {
		struct descriptor d = descriptor_read_packed(ring->descriptors, (ring->taken + i) % size);

		if (ring->in_use + i + 1 > size)
			return broken(ring, "more descriptors than the ring has places");
		if (d.flags & DESCRIPTOR_INDIRECT ? add_indirect(ring, chain, &d) : add_segment(ring, chain, &d))
			return -EIO;
		if (d.flags & DESCRIPTOR_NEXT)
			continue;
		chain->token = (struct virtio_token){.id = d.id, .places = i + 1};
		ring->in_use += i + 1;
		packed_advance(ring, &ring->taken, &ring->taken_wrap, i + 1);
		return 1;
	}
	return broken(ring, "chain longer than the ring");
}

int virtio_ring_next(struct virtio_ring *ring, struct virtio_chain *chain)
{
	if (!virtio_ring_ready(ring))
		return -EIO;
	chain->readable = chain->writable = 0;
	chain->readable_length = chain->writable_length = 0;
	return ring->setup.packed ? packed_next(ring, chain) : split_next(ring, chain);
}

void virtio_ring_rewind(struct virtio_ring *ring, struct virtio_token token)
{
	ring->in_use -= token.places;
	if (!ring->setup.packed) {
		ring->taken--;
	} else if (ring->taken >= token.places) {
		ring->taken -= token.places;
	} else {
		ring->taken += ring->setup.size - token.places;
		ring->taken_wrap = !ring->taken_wrap;
	}
}

/* ---- giving back ---- */

static void split_fill(struct virtio_ring *ring, struct virtio_token token, uint32_t written)
{
	unsigned offset = 4 + 8u * ((uint16_t)(ring->used + ring->filled) & (ring->setup.size - 1));

	put32(ring->device + offset, token.id);
	put32(ring->device + offset + 4, written);
	device_written(ring, offset, 8);
}

static uint16_t used_flags(bool wrap, uint32_t written)
{
	return (wrap ? DESCRIPTOR_AVAIL | DESCRIPTOR_USED : 0) | (written ? DESCRIPTOR_WRITE : 0);
}

/* The flags of the first one wait for the flush: the driver looks at them in order. The driver ignores ids of places
 * between. */
static void packed_fill(struct virtio_ring *ring, struct virtio_token token, uint32_t written)
{
	uint16_t place = ring->used;
	bool wrap = ring->used_wrap;
	uint8_t *at;

	packed_advance(ring, &place, &wrap, ring->filled_places);
	at = ring->descriptors + DESCRIPTOR_SIZE * place;
	put32(at + 8, written);
	put16(at + 12, token.id);
	if (ring->filled)
		put16_release(at + 14, used_flags(wrap, written));
	else
		ring->first_flags = used_flags(wrap, written);
	descriptors_written(ring, place);
}

void virtio_ring_fill(struct virtio_ring *ring, struct virtio_token token, uint32_t written)
{
	if (!virtio_ring_ready(ring))
		return;
	if (ring->setup.packed)
		packed_fill(ring, token, written);
	else
		split_fill(ring, token, written);
	ring->filled++;
	ring->filled_places += token.places;
	ring->in_use -= token.places;
}

void virtio_ring_flush(struct virtio_ring *ring)
{
	if (!virtio_ring_ready(ring) || ring->filled == 0)
		return;
	if (ring->setup.packed) {
		put16_release(ring->descriptors + DESCRIPTOR_SIZE * ring->used + 14, ring->first_flags);
		descriptors_written(ring, ring->used);
		packed_advance(ring, &ring->used, &ring->used_wrap, ring->filled_places);
	} else {
		ring->used += ring->filled;
		put16_release(ring->device + 2, ring->used);
		device_written(ring, 2, 2);
	}
	ring->untold += ring->filled_places;
	ring->filled = ring->filled_places = 0;
}

void virtio_ring_complete(struct virtio_ring *ring, struct virtio_token token, uint32_t written)
{
	virtio_ring_fill(ring, token, written);
	virtio_ring_flush(ring);
}

/* ---- who wants to be told ---- */

/* Was the event's place passed by the last `untold` ones, of which the newest is just before `used`? */
static bool split_wants_interrupt(const struct virtio_ring *ring, uint32_t untold)
{
	uint16_t event;

	if (!ring->setup.event_index)
		return !(get16(ring->driver) & NO_TELLING);
	event = get16(ring->driver + used_event_offset(ring));
	return (uint16_t)(ring->used - event - 1) < untold;
}

static bool packed_wants_interrupt(const struct virtio_ring *ring, uint32_t untold)
{
	uint16_t event = get16(ring->driver), flags = get16(ring->driver + 2) & 3;
	int passed;

	if (flags == EVENT_DISABLE)
		return false;
	if (flags != EVENT_DESC || !ring->setup.event_index)
		return true;
	/* How many places before `used` the event's place is; it counts in this turn of the ring or in the last one. */
	passed = ring->used - (event & 0x7fff);
	if ((event >> 15 & 1) != ring->used_wrap)
		passed += ring->setup.size;
	return passed >= 1 && (uint32_t)passed <= untold;
}

bool virtio_ring_wants_interrupt(struct virtio_ring *ring)
{
	uint32_t untold = ring->untold;

	if (!virtio_ring_ready(ring) || untold == 0)
		return false;
	ring->untold = 0;
	fence();
	return ring->setup.packed ? packed_wants_interrupt(ring, untold) : split_wants_interrupt(ring, untold);
}

void virtio_ring_notify_off(struct virtio_ring *ring)
{
	if (!virtio_ring_ready(ring) || ring->notify_off)
		return;
	ring->notify_off = true;
	if (ring->setup.packed) {
		put16(ring->device + 2, EVENT_DISABLE);
		device_written(ring, 2, 2);
	} else if (!ring->setup.event_index) { /* with an event index, the old one is passed already */
		put16(ring->device, NO_TELLING);
		device_written(ring, 0, 2);
	}
}

bool virtio_ring_notify_on(struct virtio_ring *ring)
{
	if (!virtio_ring_ready(ring))
		return false;
	ring->notify_off = false;
	if (ring->setup.packed) {
		put16(ring->device, ring->taken | ring->taken_wrap << 15);
		put16_release(ring->device + 2, ring->setup.event_index ? EVENT_DESC : EVENT_ENABLE);
		device_written(ring, 0, 4);
	} else if (ring->setup.event_index) {
		put16(ring->device + avail_event_offset(ring), ring->taken);
		device_written(ring, avail_event_offset(ring), 2);
	} else {
		put16(ring->device, 0);
		device_written(ring, 0, 2);
	}
	fence();
	return virtio_ring_pending(ring);
}

bool virtio_ring_pending(const struct virtio_ring *ring)
{
	if (!virtio_ring_ready(ring))
		return false;
	return ring->setup.packed ? packed_available(ring) : get16_acquire(ring->driver + 2) != ring->taken;
}

/* ---- state ---- */

void virtio_ring_state(struct virtio_ring *ring, struct state *state, unsigned instance)
{
	bool is_broken = ring->error != NULL;

	state_begin(state, "virtio-ring", instance, 1);
	state_u16(state, "taken", &ring->taken);
	state_u16(state, "used", &ring->used);
	state_bool(state, "taken_wrap", &ring->taken_wrap);
	state_bool(state, "used_wrap", &ring->used_wrap);
	state_u32(state, "untold", &ring->untold);
	state_bool(state, "notify_off", &ring->notify_off);
	state_bool(state, "broken", &is_broken);
	if (ring->setup.packed && (ring->taken >= ring->setup.size || ring->used >= ring->setup.size))
		state_fail(state, "ring position out of range");
	state_end(state);
	if (!state_loading(state))
		return;
	if (is_broken || state_error(state))
		broken(ring, "it was when its state was saved");
	if (ring->untold > ring->setup.size)
		ring->untold = ring->setup.size;
}

/* ---- contents of chains ---- */

unsigned virtio_chain_slice(const struct virtio_chain *chain, bool writable, uint64_t offset, uint64_t length,
                            struct iovec *out)
{
	const struct iovec *segment = writable ? chain->segment + chain->readable : chain->segment;
	unsigned count = writable ? chain->writable : chain->readable, used = 0;

	for (unsigned i = 0; i < count && length; i++) {
		uint64_t part = segment[i].iov_len;

		if (offset >= part) {
			offset -= part;
			continue;
		}
		part -= offset;
		if (part > length)
			part = length;
		out[used++] = (struct iovec){(uint8_t *)segment[i].iov_base + offset, part};
		length -= part;
		offset = 0;
	}
	return used;
}

size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t offset, void *buffer, size_t length)
{
	size_t copied = 0;

	for (unsigned i = 0; i < chain->readable && copied < length; i++) {
		size_t part = chain->segment[i].iov_len;

		if (offset >= part) {
			offset -= part;
			continue;
		}
		part -= offset;
		if (part > length - copied)
			part = length - copied;
		memcpy((uint8_t *)buffer + copied, (const uint8_t *)chain->segment[i].iov_base + offset, part);
		copied += part;
		offset = 0;
	}
	return copied;
}

size_t virtio_chain_write(const struct virtio_chain *chain, struct memory *memory, uint64_t offset, const void *buffer,
                          size_t length)
{
	const struct iovec *segment = chain->segment + chain->readable;
	size_t copied = 0;

	for (unsigned i = 0; i < chain->writable && copied < length; i++) {
		struct iovec part = segment[i];

		if (offset >= part.iov_len) {
			offset -= part.iov_len;
			continue;
		}
		part.iov_base = (uint8_t *)part.iov_base + offset;
		part.iov_len -= offset;
		if (part.iov_len > length - copied)
			part.iov_len = length - copied;
		memcpy(part.iov_base, (const uint8_t *)buffer + copied, part.iov_len);
		virtio_segments_written(memory, &part, 1);
		copied += part.iov_len;
		offset = 0;
	}
	return copied;
}

void virtio_segments_written(struct memory *memory, const struct iovec *segment, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		memory_written(memory, memory_physical(memory, segment[i].iov_base), segment[i].iov_len);
}
