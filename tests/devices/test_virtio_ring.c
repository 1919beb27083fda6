/* The ring alone: every rule of virtio 1.2 2.7 and 2.8, hostile drivers, a racing one. */
#include "device_test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "devices/virtio/virtio_ring.h"
#include "virtio_driver.h"

#define RAM    (4u << 20)
#define RINGS  0x10000
#define DATA   0x100000
#define TABLES 0x200000

struct pair {
	struct memory memory;
	struct driver_queue driver;
	struct virtio_ring ring;
	struct virtio_chain chain;
};

static const struct {
	bool packed, event_index;
} modes[] = {{false, false}, {false, true}, {true, false}, {true, true}};
#define MODES 4

static struct pair *pair_make(unsigned mode, uint16_t size)
{
	struct pair *pair = calloc(1, sizeof *pair);

	assert_non_null(pair);
	assert_int_equal(memory_create(&pair->memory, RAM), 0);
	driver_queue_init(&pair->driver, &pair->memory, RINGS, size, modes[mode].packed, modes[mode].event_index, true);
	assert_int_equal(virtio_ring_init(&pair->ring, &pair->memory, &pair->driver.setup), 0);
	return pair;
}

static void pair_free(struct pair *pair)
{
	memory_destroy(&pair->memory);
	free(pair);
}

static int next(struct pair *pair)
{
	return virtio_ring_next(&pair->ring, &pair->chain);
}

static void test_chain(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++)
		for (unsigned indirect = 0; indirect < 2; indirect++) {
			struct pair *pair = pair_make(mode, 8);
			const struct driver_buffer buffers[] = {{DATA, 100, false},
			                                        {DATA + 4096, 8, false},
			                                        {DATA + 8192, 16, true},
			                                        {DATA + 16384, 32, true}};
			char text[120], back[120];
			struct iovec slice[8];
			uint16_t id;
			uint32_t written;

			for (unsigned i = 0; i < sizeof text; i++)
				text[i] = i * 7;
			assert_int_equal(next(pair), 0);
			memory_write(&pair->memory, DATA, text, 100);
			memory_write(&pair->memory, DATA + 4096, text + 100, 8);
			int added = driver_add(&pair->driver, buffers, 4, indirect ? TABLES : 0);
			assert_int_equal(next(pair), 1);
			assert_int_equal(pair->chain.readable, 2);
			assert_int_equal(pair->chain.writable, 2);
			assert_int_equal(pair->chain.readable_length, 108);
			assert_int_equal(pair->chain.writable_length, 48);
			assert_int_equal(virtio_chain_read(&pair->chain, 0, back, 120), 108);
			assert_memory_equal(back, text, 108);
			assert_int_equal(virtio_chain_read(&pair->chain, 98, back, 5), 5);
			assert_memory_equal(back, text + 98, 5);
			assert_int_equal(virtio_chain_read(&pair->chain, 108, back, 5), 0);
			assert_int_equal(virtio_chain_write(&pair->chain, &pair->memory, 10, text, 100), 38);
			memory_read(&pair->memory, DATA + 16384, back, 32);
			assert_memory_equal(back, text + 6, 32);
			assert_int_equal(virtio_chain_slice(&pair->chain, false, 99, 2, slice), 2);
			assert_int_equal(slice[0].iov_len, 1);
			assert_int_equal(slice[1].iov_len, 1);
			assert_int_equal(virtio_chain_slice(&pair->chain, true, 16, 99, slice), 1);
			assert_int_equal(slice[0].iov_len, 32);
			/* Put back, taken again. */
			virtio_ring_rewind(&pair->ring, pair->chain.token);
			assert_int_equal(next(pair), 1);
			assert_int_equal(next(pair), 0);
			assert_false(driver_used(&pair->driver, &id, &written));
			virtio_ring_complete(&pair->ring, pair->chain.token, 48);
			assert_true(driver_used(&pair->driver, &id, &written));
			assert_int_equal(id, added);
			assert_int_equal(written, 48);
			assert_false(driver_used(&pair->driver, &id, &written));
			pair_free(pair);
		}
}

/* Random traffic: chains of all shapes, completed in any order, several at once, through many turns of the ring. */
static void traffic(unsigned mode, uint16_t size, unsigned rounds)
{
	struct random random = {test_seed("traffic")};
	struct pair *pair = pair_make(mode, size);
	static struct {
		struct virtio_token token;
		uint64_t tag;
	} held[VIRTIO_RING_SIZE_MAX];
	static uint64_t tag_of[VIRTIO_RING_SIZE_MAX];
	unsigned count = 0;
	uint64_t tag = 0, done = 0;

	for (unsigned round = 0; round < rounds; round++) {
		struct driver_buffer buffers[4];
		unsigned segments = 1 + random_below(&random, 4);
		uint16_t id;
		uint32_t written;

		switch (random_below(&random, 4)) {
		case 0:
			for (unsigned i = 0; i < segments; i++)
				buffers[i] = (struct driver_buffer){DATA + 4096ul * i, 8, i >= segments / 2};
			buffers[0].address = DATA + 0x10000 + 8 * (tag % 8192);
			buffers[0].write = false;
			for (unsigned i = 1; i < segments; i++)
				buffers[i].write = true;
			memory_write(&pair->memory, buffers[0].address, &tag, 8);
			int added = driver_add(&pair->driver, buffers, segments,
			                       random_below(&random, 2) ? TABLES + 64 * (tag % 8192) : 0);
			if (added >= 0)
				tag_of[added] = tag++;
			break;
		case 1:
			if (next(pair) != 1) {
				assert_null(pair->ring.error);
				break;
			}
			if (random_below(&random, 8) == 0) {
				virtio_ring_rewind(&pair->ring, pair->chain.token);
				break;
			}
			held[count].token = pair->chain.token;
			assert_int_equal(virtio_chain_read(&pair->chain, 0, &held[count].tag, 8), 8);
			count++;
			break;
		case 2:
			for (unsigned i = random_below(&random, 3) + 1; i > 0 && count; i--) {
				unsigned which = random_below(&random, count);

				virtio_ring_fill(&pair->ring, held[which].token, held[which].tag & 0xffffff);
				held[which] = held[--count];
			}
			virtio_ring_flush(&pair->ring);
			break;
		default:
			while (driver_used(&pair->driver, &id, &written)) {
				assert_int_equal(written, tag_of[id] & 0xffffff);
				done++;
			}
		}
	}
	assert_true(done > rounds / 100);
	pair_free(pair);
}

static void test_traffic(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		traffic(mode, 4, 50000);
		traffic(mode, 64, 50000);
		if (modes[mode].packed)
			traffic(mode, 7, 50000);
	}
}

static bool add_one(struct pair *pair)
{
	const struct driver_buffer buffer = {DATA, 64, true};

	return driver_add(&pair->driver, &buffer, 1, 0) >= 0;
}

/* One through: taken and given back; is the driver to be told? */
static bool one_through(struct pair *pair)
{
	uint16_t id;
	uint32_t written;

	assert_true(add_one(pair));
	assert_int_equal(next(pair), 1);
	virtio_ring_complete(&pair->ring, pair->chain.token, 1);
	bool tell = virtio_ring_wants_interrupt(&pair->ring);
	assert_false(virtio_ring_wants_interrupt(&pair->ring));
	assert_true(driver_used(&pair->driver, &id, &written));
	return tell;
}

static void test_interrupts(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 8);

		assert_false(virtio_ring_wants_interrupt(&pair->ring));
		for (unsigned i = 0; i < 200; i++) {
			driver_interrupts(&pair->driver, true, 1);
			assert_true(one_through(pair));
			driver_interrupts(&pair->driver, false, 1);
			if (!modes[mode].event_index || modes[mode].packed)
				assert_false(one_through(pair));
		}
		if (!modes[mode].event_index) {
			pair_free(pair);
			continue;
		}
		/* Moderation: the third one from now. */
		for (unsigned i = 0; i < 200; i++) {
			driver_interrupts(&pair->driver, true, 3);
			assert_false(one_through(pair));
			assert_false(one_through(pair));
			assert_true(one_through(pair));
			assert_false(one_through(pair));
		}
		/* Several at once, of which the second is wanted. */
		for (unsigned i = 0; i < 100; i++) {
			struct virtio_token token[4];
			uint16_t id;
			uint32_t written;

			driver_interrupts(&pair->driver, true, 2);
			for (unsigned j = 0; j < 4; j++) {
				assert_true(add_one(pair));
				assert_int_equal(next(pair), 1);
				token[j] = pair->chain.token;
			}
			virtio_ring_fill(&pair->ring, token[0], 0);
			virtio_ring_flush(&pair->ring);
			assert_false(virtio_ring_wants_interrupt(&pair->ring));
			for (unsigned j = 1; j < 4; j++)
				virtio_ring_fill(&pair->ring, token[j], 0);
			assert_false(virtio_ring_wants_interrupt(&pair->ring));
			virtio_ring_flush(&pair->ring);
			assert_true(virtio_ring_wants_interrupt(&pair->ring));
			for (unsigned j = 0; j < 4; j++)
				assert_true(driver_used(&pair->driver, &id, &written));
		}
		pair_free(pair);
	}
}

static void test_notifications(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 8);

		for (unsigned i = 0; i < 100; i++) {
			assert_false(virtio_ring_notify_on(&pair->ring));
			unsigned before = driver_position(&pair->driver);
			assert_true(add_one(pair));
			assert_true(driver_must_notify(&pair->driver, before));
			assert_true(virtio_ring_pending(&pair->ring));
			virtio_ring_notify_off(&pair->ring);
			before = driver_position(&pair->driver);
			assert_true(add_one(pair));
			assert_false(driver_must_notify(&pair->driver, before));
			/* What came meanwhile is found when notifications are turned on again. */
			assert_true(virtio_ring_notify_on(&pair->ring));
			virtio_ring_notify_off(&pair->ring);
			for (unsigned j = 0; j < 2; j++) {
				uint16_t id;
				uint32_t written;

				assert_int_equal(next(pair), 1);
				virtio_ring_complete(&pair->ring, pair->chain.token, 0);
				assert_true(driver_used(&pair->driver, &id, &written));
			}
		}
		pair_free(pair);
	}
}

static void test_setup(void **context)
{
	struct memory memory;
	struct virtio_ring ring;
	struct virtio_chain *chain = calloc(1, sizeof *chain);
	static const struct virtio_ring_setup bad[] = {
	    {0, 0x1000, 0x2000, 0x3000},
	    {3, 0x1000, 0x2000, 0x3000},
	    {2048, 0x10000, 0x20000, 0x30000},
	    {8, 0x1008, 0x2000, 0x3000},
	    {8, 0x1000, 0x2001, 0x3000},
	    {8, 0x1000, 0x2000, 0x3002},
	    {8, RAM, 0x2000, 0x3000},
	    {8, RAM - 16, 0x2000, 0x3000},
	    {8, 0x1000, RAM - 2, 0x3000},
	    {8, 0x1000, 0x2000, RAM - 4},
	    {8, 0xfffffffffffffff0, 0x2000, 0x3000},
	    {8, 0x1000, 0xfffffffffffffffe, 0x3000},
	    {8, 0x9fff0, 0x2000, 0x3000}, /* into the VGA hole */
	    {8, 0xfee00000, 0x2000, 0x3000},
	    {8, 0x1000, 0x2002, 0x3000, .packed = true},
	    {0, 0x1000, 0x2000, 0x3000, .packed = true},
	};

	assert_int_equal(memory_create(&memory, RAM), 0);
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		assert_int_equal(virtio_ring_init(&ring, &memory, &bad[i]), -EINVAL);
		assert_non_null(ring.error);
		/* Nothing of it does harm. */
		assert_int_equal(virtio_ring_next(&ring, chain), -EIO);
		virtio_ring_complete(&ring, (struct virtio_token){5, 1}, 0);
		assert_false(virtio_ring_notify_on(&ring));
		assert_false(virtio_ring_wants_interrupt(&ring));
		assert_false(virtio_ring_pending(&ring));
	}
	memory_destroy(&memory);
	free(chain);
}

/* ---- hostile drivers ---- */

static void raw(struct pair *pair, uint64_t address, uint64_t value, unsigned length)
{
	memcpy(memory_pointer(&pair->memory, address, length), &value, length);
}

/* A descriptor as it stands in memory; `third` is next or id. */
static void descriptor(struct pair *pair, uint64_t table, unsigned index, uint64_t address, uint32_t length,
                       uint16_t flags, uint16_t third)
{
	bool packed = pair->driver.setup.packed;
	uint64_t at = table + 16 * index;

	raw(pair, at, address, 8);
	raw(pair, at + 8, length, 4);
	raw(pair, at + (packed ? 14 : 12), flags, 2);
	raw(pair, at + (packed ? 12 : 14), third, 2);
}

/* Makes the chain at descriptor 0 available. */
static void offer(struct pair *pair)
{
	uint64_t driver = pair->driver.setup.driver;

	if (pair->driver.setup.packed)
		return; /* its flags do that */
	raw(pair, driver + 4, 0, 2);
	raw(pair, driver + 2, 1, 2);
}

static void expect_broken(struct pair *pair)
{
	uint16_t id;
	uint32_t written;

	offer(pair);
	assert_int_equal(next(pair), -EIO);
	assert_non_null(pair->ring.error);
	assert_int_equal(next(pair), -EIO);
	assert_false(driver_used(&pair->driver, &id, &written));
	pair_free(pair);
}

#define A 0x80u /* packed: available in the first lap */

static void test_bad_descriptors(void **context)
{
	static const struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags;
	} bad[] = {
	    {DATA, 0, 0},
	    {RAM, 1, 0},
	    {RAM - 1, 2, 0},
	    {0xffffffffffffffff, 1, 0},
	    {0xffffffffffffffff, 2, 0},
	    {0xfffffffffffffff0, 0xffffffff, 2},
	    {DATA, 0xffffffff, 2},
	    {0x9ffff, 2, 0},
	    {0xa0000, 1, 2},
	    {0xfee00000, 4, 2}, /* a device's registers: no DMA into them */
	    {0xe0000000, 4, 2},
	    {TABLES, 0, 4},
	    {TABLES, 15, 4},
	    {TABLES, 24, 4},
	    {TABLES, 0xfffffff0, 4},
	    {TABLES, 16 * 1025, 4},
	    {RAM, 16, 4},
	    {0xfffffffffffffff0, 32, 4},
	    {TABLES, 16, 4 | 1},
	};

	for (unsigned mode = 0; mode < MODES; mode += 2)
		for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
			struct pair *pair = pair_make(mode, 8);

			descriptor(pair, TABLES, 0, DATA, 16, 0, 0);
			descriptor(pair, RINGS, 0, bad[i].address, bad[i].length, bad[i].flags | (mode ? A : 0), 0);
			expect_broken(pair);
		}
}

static void test_bad_chains(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode += 2) {
		uint16_t a = mode ? A : 0;
		struct pair *pair = pair_make(mode, 8);

		/* Readable after writable. */
		descriptor(pair, RINGS, 0, DATA, 16, 1 | 2 | a, 1);
		descriptor(pair, RINGS, 1, DATA, 16, a, 0);
		expect_broken(pair);

		/* A loop, or a chain that never ends. */
		pair = pair_make(mode, 8);
		for (unsigned i = 0; i < 8; i++)
			descriptor(pair, RINGS, i, DATA, 16, 1 | a, (i + 1) % 8);
		expect_broken(pair);

		/* Indirect in indirect. */
		pair = pair_make(mode, 8);
		descriptor(pair, TABLES, 0, TABLES + 64, 16, 4, 0);
		descriptor(pair, TABLES + 64, 0, DATA, 16, 0, 0);
		descriptor(pair, RINGS, 0, TABLES, 16, 4 | a, 0);
		expect_broken(pair);

		/* Indirect without having negotiated it. */
		pair = pair_make(mode, 8);
		pair->driver.setup.indirect = false;
		assert_int_equal(virtio_ring_init(&pair->ring, &pair->memory, &pair->driver.setup), 0);
		descriptor(pair, TABLES, 0, DATA, 16, 0, 0);
		descriptor(pair, RINGS, 0, TABLES, 16, 4 | a, 0);
		expect_broken(pair);

		/* Bad entries within a table. */
		pair = pair_make(mode, 8);
		descriptor(pair, TABLES, 0, DATA, 16, 1, 1);
		descriptor(pair, TABLES, 1, RAM, 16, 0, 0);
		descriptor(pair, RINGS, 0, TABLES, 32, 4 | a, 0);
		expect_broken(pair);

		/* More than 4 GiB in all: the same MiB again and again. */
		pair = pair_make(mode, 8);
		for (unsigned i = 0; i < 1024; i++)
			descriptor(pair, TABLES, i, 0x100000, 0x300000, i < 1023, i + 1);
		descriptor(pair, RINGS, 0, TABLES, 16 * 1024, 4 | a, 0);
		/* The table lies within its own buffers, which is nobody's harm. 1024 times 3 MiB are less than 4 GiB.
		 */
		offer(pair);
		assert_int_equal(next(pair), 1);
		assert_int_equal(pair->chain.readable, 1024);
		pair_free(pair);
	}
}

static void test_bad_split(void **context)
{
	struct pair *pair = pair_make(0, 8);
	uint64_t driver = pair->driver.setup.driver;

	/* Head, next, and next in a table out of range. */
	raw(pair, driver + 4, 8, 2);
	raw(pair, driver + 2, 1, 2);
	assert_int_equal(next(pair), -EIO);
	pair_free(pair);
	pair = pair_make(0, 8);
	descriptor(pair, RINGS, 0, DATA, 16, 1, 8);
	expect_broken(pair);
	pair = pair_make(0, 8);
	descriptor(pair, TABLES, 0, DATA, 16, 1, 2);
	descriptor(pair, RINGS, 0, TABLES, 32, 4, 0);
	expect_broken(pair);
	pair = pair_make(0, 8);
	descriptor(pair, TABLES, 0, DATA, 16, 1, 1);
	descriptor(pair, TABLES, 1, DATA, 16, 1, 0);
	descriptor(pair, RINGS, 0, TABLES, 32, 4, 0);
	expect_broken(pair);
	/* The index jumps by more than the ring holds. */
	pair = pair_make(0, 8);
	raw(pair, driver + 2, 9, 2);
	assert_int_equal(next(pair), -EIO);
	pair_free(pair);
	/* The same chain for ever, never given back: no more than the ring has places. */
	pair = pair_make(0, 8);
	descriptor(pair, RINGS, 0, DATA, 16, 0, 0);
	for (unsigned i = 1; i <= 8; i++) {
		raw(pair, driver + 2, i, 2);
		assert_int_equal(next(pair), 1);
	}
	raw(pair, driver + 2, 9, 2);
	assert_int_equal(next(pair), -EIO);
	pair_free(pair);
	/* Normal descriptors, then a table (2.7.5.3.2). */
	pair = pair_make(0, 8);
	descriptor(pair, RINGS, 0, DATA, 16, 1, 5);
	descriptor(pair, RINGS, 5, TABLES, 16, 4, 0);
	descriptor(pair, TABLES, 0, DATA, 16, 2, 0);
	offer(pair);
	assert_int_equal(next(pair), 1);
	assert_int_equal(pair->chain.readable, 1);
	assert_int_equal(pair->chain.writable, 1);
	pair_free(pair);
}

static void test_bad_packed(void **context)
{
	struct pair *pair = pair_make(2, 8);

	/* One in flight, its place offered again as part of a chain through all places. */
	descriptor(pair, RINGS, 0, DATA, 16, A, 0);
	assert_int_equal(next(pair), 1);
	for (unsigned i = 1; i < 8; i++)
		descriptor(pair, RINGS, i, DATA, 16, 1 | A, 0);
	assert_int_equal(next(pair), -EIO);
	pair_free(pair);
	/* Used flags, wrong lap: nothing there. */
	pair = pair_make(2, 8);
	descriptor(pair, RINGS, 0, DATA, 16, 0x8000, 0);
	assert_int_equal(next(pair), 0);
	descriptor(pair, RINGS, 0, DATA, 16, 0x8080, 0);
	assert_int_equal(next(pair), 0);
	pair_free(pair);
}

/* Event fields are the driver's; whatever stands there, nothing goes wrong but its own interrupts. */
static void test_wild_events(void **context)
{
	struct random random = {test_seed("wild events")};

	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 8);

		for (unsigned i = 0; i < 20000; i++) {
			raw(pair, pair->driver.setup.driver, random_next(&random), modes[mode].packed ? 4 : 2);
			if (!modes[mode].packed)
				raw(pair, pair->driver.setup.driver + 4 + 2 * 8, random_next(&random), 2);
			one_through(pair);
		}
		pair_free(pair);
	}
}

/* ---- a driver that rewrites everything while the device looks ---- */

struct racer {
	struct pair *pair;
	_Atomic bool stop;
};

static void *race(void *owner)
{
	struct racer *racer = owner;
	struct memory *memory = &racer->pair->memory;
	struct random random = {99};
	/* Flags and next, or id and flags. */
	uint64_t mask = racer->pair->driver.setup.packed ? 0x8087000700000000 : 0x0007000700000000;

	while (!racer->stop) {
		static const uint64_t places[] = {DATA, DATA, DATA + 64, DATA, RAM, TABLES, RINGS, ~0ull << 8};
		uint64_t table = random_below(&random, 2) ? RINGS : TABLES;
		uint64_t *at = memory_pointer(memory, table + 16 * random_below(&random, 8), 16);
		uint16_t *driver = memory_pointer(memory, racer->pair->driver.setup.driver, 32);

		switch (random_below(&random, 4)) {
		case 0:
			*(volatile uint64_t *)at = places[random_below(&random, 8)];
			break;
		case 1:
			*(volatile uint64_t *)(at + 1) = (random_next(&random) & random_next(&random) & mask) |
			                                 (16u << random_below(&random, 3) * 8);
			break;
		case 2:
			((volatile uint16_t *)driver)[random_below(&random, 16)] = random_below(&random, 16);
			break;
		default:
			((volatile uint16_t *)driver)[1] += random_below(&random, 3);
		}
	}
	return NULL;
}

/* Every chain that is taken is sound as copied, whatever was in memory a moment later. */
static void test_race(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 8);
		struct racer racer = {.pair = pair};
		pthread_t thread;
		unsigned taken = 0;

		assert_int_equal(pthread_create(&thread, NULL, race, &racer), 0);
		/* The other thread may take its time to come: where both share a processor, it is let in. */
		for (unsigned i = 0; i < 200000 || (taken < 1000 && i < 100000000); i++) {
			int result = next(pair);

			if (result == 0 && i % 1024 == 0)
				sched_yield();

			if (result == 1) {
				uint64_t length[2] = {0, 0};
				unsigned count = pair->chain.readable + pair->chain.writable;

				taken++;
				assert_true(count >= 1 && count <= VIRTIO_CHAIN_MAX);
				for (unsigned j = 0; j < count; j++) {
					struct iovec *segment = &pair->chain.segment[j];
					uint64_t where = memory_physical(&pair->memory, segment->iov_base);

					assert_true(segment->iov_len > 0);
					assert_ptr_equal(memory_pointer(&pair->memory, where, segment->iov_len),
					                 segment->iov_base);
					length[j >= pair->chain.readable] += segment->iov_len;
				}
				assert_true(length[0] == pair->chain.readable_length);
				assert_true(length[1] == pair->chain.writable_length);
				virtio_ring_complete(&pair->ring, pair->chain.token, 1);
				virtio_ring_wants_interrupt(&pair->ring);
				virtio_ring_notify_on(&pair->ring);
			} else if (result < 0) {
				raw(pair, pair->driver.setup.driver + 2, 0, 2);
				assert_int_equal(virtio_ring_init(&pair->ring, &pair->memory, &pair->driver.setup), 0);
			}
		}
		racer.stop = true;
		pthread_join(thread, NULL);
		assert_true(taken > 100);
		pair_free(pair);
	}
}

/* An honest driver on another thread: every chain arrives once, and nobody sleeps for ever. */
struct honest {
	struct pair *pair;
	unsigned count;
	_Atomic unsigned notified;
};

static void *honest_driver(void *owner)
{
	struct honest *honest = owner;
	struct driver_queue *driver = &honest->pair->driver;
	unsigned added = 0, back = 0;
	uint16_t id;
	uint32_t written;

	while (back < honest->count) {
		sched_yield();
		while (added < honest->count) {
			const struct driver_buffer buffer = {DATA + 8 * (added % 1024), 8, true};
			unsigned before = driver_position(driver);

			if (driver_add(driver, &buffer, 1, 0) < 0)
				break;
			added++;
			if (driver_must_notify(driver, before))
				honest->notified++;
		}
		while (driver_used(driver, &id, &written))
			back++;
	}
	return NULL;
}

static void test_honest(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 16);
		struct honest honest = {.pair = pair, .count = test_rounds(100000)};
		pthread_t thread;
		unsigned taken = 0, seen = 0;

		virtio_ring_notify_on(&pair->ring);
		assert_int_equal(pthread_create(&thread, NULL, honest_driver, &honest), 0);
		while (taken < honest.count) {
			/* Asleep until notified, as an I/O thread is. */
			while (honest.notified == seen)
				sched_yield();
			seen = honest.notified;
			virtio_ring_notify_off(&pair->ring);
			do {
				while (next(pair) == 1) {
					virtio_ring_complete(&pair->ring, pair->chain.token, 8);
					taken++;
				}
				assert_null(pair->ring.error);
			} while (virtio_ring_notify_on(&pair->ring));
		}
		pthread_join(thread, NULL);
		assert_int_equal(taken, honest.count);
		pair_free(pair);
	}
}

/* Saved in mid-traffic, loaded, and it goes on. */
static void test_state(void **context)
{
	for (unsigned mode = 0; mode < MODES; mode++) {
		struct pair *pair = pair_make(mode, 8);
		struct virtio_ring copy;

		for (unsigned i = 0; i < 100; i++) {
			struct state *save, *load;
			const void *data;
			size_t length;

			driver_interrupts(&pair->driver, true, 1);
			one_through(pair);
			assert_true(add_one(pair));
			save = state_save_begin();
			virtio_ring_state(&pair->ring, save, 3);
			data = state_save_data(save, &length);
			load = state_load_begin(data, length);
			assert_int_equal(virtio_ring_init(&copy, &pair->memory, &pair->driver.setup), 0);
			virtio_ring_state(&copy, load, 3);
			assert_null(state_error(load));
			assert_memory_equal(&copy.taken, &pair->ring.taken, 2);
			pair->ring = copy;
			state_free(load);
			state_free(save);
			assert_int_equal(next(pair), 1);
			virtio_ring_complete(&pair->ring, pair->chain.token, 0);
			uint16_t id;
			uint32_t written;
			assert_true(driver_used(&pair->driver, &id, &written));
		}
		pair_free(pair);
	}
}

/* Positions that do not fit are refused, and the ring is harmless. */
static void test_bad_state(void **context)
{
	struct pair *pair = pair_make(2, 8);
	struct state *save = state_save_begin(), *load;
	size_t length;

	pair->ring.taken = 8;
	virtio_ring_state(&pair->ring, save, 0);
	pair->ring.taken = 0;
	state_free(save);
	save = state_save_begin();
	virtio_ring_state(&pair->ring, save, 0);
	const uint8_t *data = state_save_data(save, &length);
	assert_non_null(data);
	uint8_t *copy = malloc(length);
	for (unsigned i = 0; i < length; i++)
		for (unsigned j = 0; j < 2; j++) {
			struct virtio_ring ring;

			memcpy(copy, data, length);
			copy[i] ^= j ? 0xff : 0x08;
			load = state_load_begin(copy, length);
			assert_int_equal(virtio_ring_init(&ring, &pair->memory, &pair->driver.setup), 0);
			virtio_ring_state(&ring, load, 0);
			virtio_ring_next(&ring, &pair->chain);
			virtio_ring_complete(&ring, (struct virtio_token){1, 1}, 1);
			virtio_ring_wants_interrupt(&ring);
			virtio_ring_notify_on(&ring);
			state_free(load);
		}
	free(copy);
	state_free(save);
	pair_free(pair);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_chain),         cmocka_unit_test(test_traffic),
	    cmocka_unit_test(test_interrupts),    cmocka_unit_test(test_setup),
	    cmocka_unit_test(test_notifications), cmocka_unit_test(test_bad_descriptors),
	    cmocka_unit_test(test_bad_chains),    cmocka_unit_test(test_bad_split),
	    cmocka_unit_test(test_bad_packed),    cmocka_unit_test(test_wild_events),
	    cmocka_unit_test(test_race),          cmocka_unit_test(test_honest),
	    cmocka_unit_test(test_state),         cmocka_unit_test(test_bad_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
