/* The transport and what all virtio devices share, with a device that sends back what it is given, now or later. */
#include "device_test.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/virtio/virtio_pci.h"
#include "devices/virtio/virtio_rng.h"
#include "host/event_loop.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define FEATURE_ECHO 1ull
#define HELD_MAX     64

struct echo {
	struct virtio_device device;
	struct virtio_chain chain;
	uint8_t config[12];
	bool hold; /* requests stay in flight until released */
	struct virtio_flight held[HELD_MAX];
	unsigned held_count;
	unsigned activations, resets, stale;
};

static bool features_ok(struct virtio_device *device, uint64_t features)
{
	return !(features & 2);
}

static void config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	memcpy(device->config + offset, &value, size);
}

static void activate(struct virtio_device *device)
{
	((struct echo *)device)->activations++;
}

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct echo *echo = (struct echo *)device;
	uint8_t bytes[64];

	do {
		while (virtio_queue_next(queue, &echo->chain)) {
			size_t length = virtio_chain_read(&echo->chain, 0, bytes, sizeof bytes);

			length = virtio_chain_write(&echo->chain, device->host.memory, 0, bytes, length);
			if (echo->hold && echo->held_count < HELD_MAX)
				virtio_flight_begin(&echo->held[echo->held_count++], queue, echo->chain.token);
			else
				virtio_queue_complete(queue, echo->chain.token, length);
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

static void echo_reset(struct virtio_device *device)
{
	((struct echo *)device)->resets++;
}

static const struct virtio_ops echo_ops = {
    .name = "virtio-echo",
    .id = 30,
    .class_code = 0xff0000,
    .features_ok = features_ok,
    .config_write = config_write,
    .activate = activate,
    .queue_notify = queue_notify,
    .reset = echo_reset,
};

struct bench {
	struct driver_rig rig;
	struct echo echo;
};

static struct bench *bench_make(void)
{
	static const uint16_t sizes[] = {16, 32, 8};
	struct bench *bench = calloc(1, sizeof *bench);

	assert_non_null(bench);
	driver_rig_init(&bench->rig);
	assert_int_equal(virtio_device_init(&bench->echo.device, &echo_ops, &bench->rig.host, 0, FEATURE_ECHO | 2, 3,
	                                    sizes, bench->echo.config, sizeof bench->echo.config),
	                 0);
	driver_rig_plug(&bench->rig, &bench->echo.device);
	return bench;
}

/* The back end answers all that it holds. */
static void release(struct bench *bench)
{
	struct echo *echo = &bench->echo;

	virtio_enter(&echo->device);
	for (unsigned i = 0; i < echo->held_count; i++) {
		echo->stale += virtio_flight_stale(&echo->held[i]);
		virtio_flight_end(&echo->held[i], 4);
	}
	echo->held_count = 0;
	virtio_leave(&echo->device);
}

static void bench_free(struct bench *bench)
{
	release(bench);
	driver_rig_stop(&bench->rig);
	virtio_device_destroy(&bench->echo.device);
	driver_rig_free(&bench->rig);
	free(bench);
}

static const uint64_t modes[] = {0, VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_INDIRECT_DESC, VIRTIO_FEATURE_RING_PACKED,
                                 VIRTIO_FEATURE_RING_PACKED | VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_RING_RESET};

static void echo_once(struct driver_rig *rig, unsigned queue, uint64_t value)
{
	const struct driver_buffer buffers[] = {{0x80000, 8, false}, {0x80100, 8, true}};
	uint64_t back = 0;
	uint16_t id;
	uint32_t written;

	memory_write(&rig->memory, 0x80000, &value, 8);
	memory_fill(&rig->memory, 0x80100, 0, 8);
	assert_true(driver_send(rig, queue, buffers, 2) >= 0);
	driver_wait_used(rig, queue, &id, &written);
	assert_int_equal(written, 8);
	memory_read(&rig->memory, 0x80100, &back, 8);
	assert_int_equal(back, value);
}

static void test_echo(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, FEATURE_ECHO | modes[mode], 16);
		assert_int_equal(bench->echo.activations, mode + 1);
		for (unsigned i = 0; i < 100; i++)
			for (unsigned queue = 0; queue < 3; queue++) {
				unsigned before = rig->messages[queue + 1];

				driver_interrupts(&rig->queue[queue], true, 1);
				echo_once(rig, queue, i * 77 + queue);
				driver_settle(rig);
				assert_int_equal(rig->messages[queue + 1], before + 1);
			}
		assert_int_equal(rig->messages[0], 0);
	}
	bench_free(bench);
}

static void test_registers(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	assert_int_equal(pci_config_read(&rig->root, PCI_DEVFN(3, 0), 0, 4), 0x105e1af4);
	assert_int_equal(driver_get(rig, COMMON(NUM_QUEUES), 2), 3);
	/* Features: two words, and nothing beyond. */
	driver_set(rig, COMMON(DEVICE_FEATURE_SELECT), 4, 0);
	assert_int_equal(driver_get(rig, COMMON(DEVICE_FEATURE), 4), 0x30000003);
	driver_set(rig, COMMON(DEVICE_FEATURE_SELECT), 4, 1);
	assert_int_equal(driver_get(rig, COMMON(DEVICE_FEATURE), 4), 0x105);
	driver_set(rig, COMMON(DEVICE_FEATURE_SELECT), 4, 2);
	assert_int_equal(driver_get(rig, COMMON(DEVICE_FEATURE), 4), 0);
	/* Refused: not offered; what the device does not allow; a driver of the old days. */
	assert_false(driver_negotiate(rig, 1ull << 33));
	driver_reset(rig);
	assert_false(driver_negotiate(rig, 2));
	driver_reset(rig);
	driver_set(rig, COMMON(STATUS), 1, 3 | VIRTIO_STATUS_FEATURES_OK);
	assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 3);
	/* DRIVER_OK without FEATURES_OK does not take; NEEDS_RESET cannot be written. */
	driver_set(rig, COMMON(STATUS), 1, 0x47);
	assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 3);
	driver_reset(rig);
	assert_true(driver_negotiate(rig, FEATURE_ECHO));
	/* Features are final. */
	driver_set(rig, COMMON(DRIVER_FEATURE_SELECT), 4, 0);
	driver_set(rig, COMMON(DRIVER_FEATURE), 4, 0);
	assert_int_equal(driver_get(rig, COMMON(DRIVER_FEATURE), 4), FEATURE_ECHO);
	/* Queues that are not there; vectors that are not there; sizes that do not fit. */
	driver_set(rig, COMMON(QUEUE_SELECT), 2, 3);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_SIZE), 2), 0);
	driver_set(rig, COMMON(QUEUE_ENABLE), 2, 1);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 0);
	driver_set(rig, COMMON(QUEUE_SELECT), 2, 0xffff);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_VECTOR), 2), 0xffff);
	driver_set(rig, COMMON(QUEUE_SELECT), 2, 1);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_SIZE), 2), 32);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_NOTIFY_OFFSET), 2), 1);
	driver_set(rig, COMMON(QUEUE_VECTOR), 2, 4);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_VECTOR), 2), 0xffff);
	driver_set(rig, COMMON(QUEUE_VECTOR), 2, 3);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_VECTOR), 2), 3);
	static const uint16_t sizes[] = {0, 3, 64, 0xffff};
	for (unsigned i = 0; i < 4; i++) {
		driver_set(rig, COMMON(QUEUE_SIZE), 2, sizes[i]);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_SIZE), 2), 32);
	}
	driver_set(rig, COMMON(QUEUE_DESC), 8, 0x123456789abcdef0);
	assert_true(driver_get(rig, COMMON(QUEUE_DESC), 8) == 0x123456789abcdef0);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_DESC) + 4, 4), 0x12345678);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_DESC) + 3, 1), 0x9a);
	/* Narrow or crossing writes change nothing. */
	driver_set(rig, COMMON(QUEUE_DESC) + 1, 1, 0);
	driver_set(rig, COMMON(QUEUE_DESC), 2, 0);
	driver_set(rig, COMMON(QUEUE_DESC) + 2, 4, 0);
	assert_true(driver_get(rig, COMMON(QUEUE_DESC), 8) == 0x123456789abcdef0);
	/* Configuration space, at its end too. */
	driver_set(rig, DRIVER_CONFIG + 8, 4, 0xaabbccdd);
	assert_int_equal(driver_config(rig, 8, 4), 0xaabbccdd);
	driver_set(rig, DRIVER_CONFIG + 10, 4, 0);
	driver_set(rig, DRIVER_CONFIG + 12, 1, 0);
	driver_set(rig, DRIVER_CONFIG + 0xfff, 8, 0);
	assert_int_equal(driver_config(rig, 8, 8), 0xaabbccdd);
	assert_int_equal(driver_config(rig, 12, 4), 0);
	bench_free(bench);
}

/* Registers after activation (hostile guests, class 3): nothing of a live ring moves. */
static void test_frozen(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, modes[mode], 8);
		driver_set(rig, COMMON(QUEUE_SELECT), 2, 1);
		driver_set(rig, COMMON(QUEUE_SIZE), 2, 32);
		driver_set(rig, COMMON(QUEUE_DESC), 8, 0);
		driver_set(rig, COMMON(QUEUE_DRIVER), 8, DRIVER_RAM);
		driver_set(rig, COMMON(QUEUE_DEVICE), 8, ~0ull);
		driver_set(rig, COMMON(QUEUE_ENABLE), 2, 0);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_SIZE), 2), 8);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 1);
		assert_true(driver_get(rig, COMMON(QUEUE_DESC), 8) == rig->queue[1].setup.descriptors);
		driver_set(rig, COMMON(DRIVER_FEATURE), 4, 0);
		driver_set(rig, COMMON(STATUS), 1, 1); /* bits do not go away */
		driver_set(rig, COMMON(STATUS), 1, VIRTIO_STATUS_DRIVER_OK);
		assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 0x0f);
		echo_once(rig, 1, 99);
		assert_int_equal(bench->echo.activations, mode + 1);
	}
	bench_free(bench);
}

static void test_needs_reset(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer bad = {DRIVER_RAM, 8, true}, good = {0x80000, 8, true};

	for (unsigned mode = 0; mode < 4; mode++) {
		unsigned before = rig->messages[0];
		uint16_t id;
		uint32_t written;

		driver_start(rig, modes[mode], 8);
		uint8_t generation = driver_get(rig, COMMON(GENERATION), 1);
		driver_send(rig, 0, &bad, 1);
		driver_wait_status(rig, VIRTIO_STATUS_NEEDS_RESET, VIRTIO_STATUS_NEEDS_RESET);
		driver_settle(rig);
		assert_int_equal(rig->messages[0], before + 1);
		assert_int_not_equal(driver_get(rig, COMMON(GENERATION), 1), generation);
		/* The other queues stand still as well. */
		driver_send(rig, 1, &good, 1);
		driver_set(rig, DRIVER_NOTIFY + 4, 2, 1);
		driver_settle(rig);
		assert_false(driver_used(&rig->queue[1], &id, &written));
		driver_start(rig, modes[mode], 8);
		echo_once(rig, 0, 5);
		/* Rings that are nowhere. */
		driver_reset(rig);
		assert_true(driver_negotiate(rig, modes[mode]));
		driver_set(rig, COMMON(QUEUE_SELECT), 2, 2);
		driver_set(rig, COMMON(QUEUE_DESC), 8, DRIVER_RAM - 16);
		driver_set(rig, COMMON(QUEUE_ENABLE), 2, 1);
		driver_ok(rig);
		assert_true(driver_get(rig, COMMON(STATUS), 1) & VIRTIO_STATUS_NEEDS_RESET);
	}
	bench_free(bench);
}

/* A reset waits for what is in flight, and gives nothing of it back. */
static void test_reset_in_flight(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffer = {0x80000, 8, true};
	uint16_t id;
	uint32_t written;

	bench->echo.hold = true;
	for (unsigned mode = 0; mode < 4; mode++) {
		driver_start(rig, modes[mode], 8);
		for (unsigned i = 0; i < 3; i++)
			driver_send(rig, 0, &buffer, 1);
		driver_settle(rig);
		assert_int_equal(bench->echo.held_count, 3);
		driver_set(rig, COMMON(STATUS), 1, 0);
		assert_int_not_equal(driver_get(rig, COMMON(STATUS), 1), 0);
		/* Nothing is listened to. */
		driver_set(rig, COMMON(STATUS), 1, 3);
		driver_set(rig, COMMON(QUEUE_SELECT), 2, 0);
		driver_set(rig, COMMON(QUEUE_DESC), 8, 0x5000);
		driver_set(rig, COMMON(QUEUE_ENABLE), 2, 1);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 0);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_DESC), 8), 0);
		driver_set(rig, COMMON(STATUS), 1, 0);
		bench->echo.stale = 0;
		unsigned before = rig->messages[1];
		release(bench);
		assert_int_equal(bench->echo.stale, 3);
		assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 0);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		assert_int_equal(rig->messages[1], before);
	}
	bench_free(bench);
}

static void test_queue_reset(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffer = {0x80000, 8, true};
	uint16_t id;
	uint32_t written;

	for (unsigned packed = 0; packed < 2; packed++) {
		driver_start(rig, VIRTIO_FEATURE_RING_RESET | (packed ? VIRTIO_FEATURE_RING_PACKED : 0), 8);
		bench->echo.hold = true;
		driver_send(rig, 0, &buffer, 1);
		driver_settle(rig);
		driver_set(rig, COMMON(QUEUE_SELECT), 2, 0);
		driver_set(rig, COMMON(QUEUE_RESET), 2, 1);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_RESET), 2), 1);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 0);
		driver_set(rig, COMMON(QUEUE_ENABLE), 2, 1); /* too early */
		assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 0);
		release(bench);
		assert_int_equal(driver_get(rig, COMMON(QUEUE_RESET), 2), 0);
		assert_false(driver_used(&rig->queue[0], &id, &written));
		bench->echo.hold = false;
		echo_once(rig, 1, 3); /* the others go on */
		driver_queue_start(rig, 0, 4);
		echo_once(rig, 0, 4);
	}
	/* Not negotiated: nothing happens. */
	driver_start(rig, 0, 8);
	driver_set(rig, COMMON(QUEUE_SELECT), 2, 0);
	driver_set(rig, COMMON(QUEUE_RESET), 2, 1);
	assert_int_equal(driver_get(rig, COMMON(QUEUE_ENABLE), 2), 1);
	echo_once(rig, 0, 8);
	bench_free(bench);
}

/* Without MSI-X: the pin and the status register. */
static void test_pin(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	assert_true(driver_negotiate(rig, 0));
	driver_queue_start(rig, 0, 8);
	driver_ok(rig);
	for (unsigned i = 1; i < 10; i++) {
		echo_once(rig, 0, i);
		driver_settle(rig);
		assert_int_equal(rig->pin_rises, i);
		assert_true(rig->pin);
		assert_int_equal(driver_get(rig, DRIVER_ISR, 1), 1);
		assert_false(rig->pin);
		assert_int_equal(driver_get(rig, DRIVER_ISR, 1), 0);
	}
	virtio_enter(&bench->echo.device);
	virtio_config_changed(&bench->echo.device);
	virtio_leave(&bench->echo.device);
	assert_int_equal(driver_get(rig, DRIVER_ISR, 1), 2);
	/* A reset drops it. */
	echo_once(rig, 0, 7);
	driver_settle(rig);
	assert_true(rig->pin);
	driver_reset(rig);
	assert_false(rig->pin);
	bench_free(bench);
}

/* The window in configuration space. */
static void test_window(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	struct pci_root *root = &rig->root;
	const unsigned devfn = PCI_DEVFN(3, 0);
	unsigned at = rig->pci.access_capability, found = 0;

	for (unsigned cap = root->function[devfn]->config[0x34]; cap; cap = root->function[devfn]->config[cap + 1])
		if (root->function[devfn]->config[cap] == 9)
			found |= 1u << root->function[devfn]->config[cap + 3];
	assert_int_equal(found, 0x3e);
	pci_config_write(root, devfn, at + 4, 1, 4);
	pci_config_write(root, devfn, at + 8, 4, COMMON(NUM_QUEUES));
	pci_config_write(root, devfn, at + 12, 4, 2);
	assert_int_equal(pci_config_read(root, devfn, at + 16, 4), 3);
	pci_config_write(root, devfn, at + 8, 4, COMMON(STATUS));
	pci_config_write(root, devfn, at + 12, 4, 1);
	pci_config_write(root, devfn, at + 16, 4, 3);
	assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 3);
	/* Nowhere: nothing. */
	static const struct {
		uint32_t bar, offset, length;
	} bad[] = {{4, 0x4000, 4}, {4, 0xffffffff, 1}, {4, 20, 3}, {4, 20, 0},
	           {4, 21, 2},     {1, 0, 4},          {0, 0, 4},  {255, 0, 4}};
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		pci_config_write(root, devfn, at + 4, 1, bad[i].bar);
		pci_config_write(root, devfn, at + 8, 4, bad[i].offset);
		pci_config_write(root, devfn, at + 12, 4, bad[i].length);
		pci_config_write(root, devfn, at + 16, 4, 0);
		pci_config_read(root, devfn, at + 16, 4);
	}
	assert_int_equal(driver_get(rig, COMMON(STATUS), 1), 3);
	bench_free(bench);
}

/* Saved with the driver at work, loaded into another machine. */
static void test_state(void **context)
{
	for (unsigned mode = 0; mode < 4; mode++) {
		struct bench *first = bench_make(), *second = bench_make();
		struct state *save = state_save_begin(), *load;
		const void *data;
		size_t length;

		driver_start(&first->rig, modes[mode], 8);
		for (unsigned i = 0; i < 11; i++)
			echo_once(&first->rig, i % 3, i);
		/* One more, which is taken after the load. */
		virtio_device_pause(&first->echo.device);
		const struct driver_buffer buffer = {0x80000, 8, true};
		driver_interrupts(&first->rig.queue[1], true, 1);
		assert_true(driver_send(&first->rig, 1, &buffer, 1) >= 0);
		pci_root_state(&first->rig.root, save);
		virtio_pci_state(&first->rig.pci, save);
		data = state_save_data(save, &length);
		assert_non_null(data);
		load = state_load_begin(data, length);
		memcpy(second->rig.memory.low, first->rig.memory.low, DRIVER_RAM);
		virtio_device_pause(&second->echo.device);
		pci_root_state(&second->rig.root, load);
		virtio_pci_state(&second->rig.pci, load);
		if (state_error(load))
			fail_msg("%s", state_error(load));
		state_free(load);
		state_free(save);
		memcpy(second->rig.queue, first->rig.queue, sizeof first->rig.queue);
		for (unsigned i = 0; i < 3; i++)
			second->rig.queue[i].memory = &second->rig.memory;
		second->rig.features = first->rig.features;
		assert_int_equal(second->echo.activations, 1);
		virtio_device_resume(&second->echo.device);
		uint16_t id;
		uint32_t written;
		driver_wait_used(&second->rig, 1, &id, &written);
		driver_settle(&second->rig);
		assert_int_equal(second->rig.messages[2], 1);
		for (unsigned i = 0; i < 30; i++)
			echo_once(&second->rig, i % 3, i);
		bench_free(first);
		bench_free(second);
	}
}

/* A pause waits for what is in flight. */
static void *release_later(void *owner)
{
	usleep(20000);
	release(owner);
	return NULL;
}

static void test_pause(void **context)
{
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffer = {0x80000, 8, true};
	pthread_t thread;
	uint16_t id;
	uint32_t written;

	bench->echo.hold = true;
	driver_start(rig, 0, 8);
	driver_send(rig, 0, &buffer, 1);
	driver_settle(rig);
	pthread_create(&thread, NULL, release_later, bench);
	virtio_device_pause(&bench->echo.device);
	assert_true(driver_used(&rig->queue[0], &id, &written));
	assert_int_equal(rig->messages[1], 1);
	pthread_join(thread, NULL);
	driver_send(rig, 0, &buffer, 1);
	driver_settle(rig);
	assert_int_equal(bench->echo.held_count, 0);
	bench->echo.hold = false;
	virtio_device_resume(&bench->echo.device);
	driver_wait_used(rig, 0, &id, &written);
	bench_free(bench);
}

/* Random register accesses, wild rings, resets, on one thread, while the I/O thread works. */
static void test_hammer(void **context)
{
	struct random random = {test_seed("virtio hammer")};
	struct bench *bench = bench_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned i = 0; i < test_rounds(100000); i++) {
		unsigned offset = random_below(&random, 64), size = 1u << random_below(&random, 4);
		uint64_t value = random_next(&random);

		if (random_below(&random, 2))
			value &= 0x1f;
		switch (random_below(&random, 300)) {
		case 0:
			driver_reset(rig);
			driver_start(rig, modes[random_below(&random, 4)], 8);
			break;
		case 1:
			bench->echo.hold = random_below(&random, 2);
			break;
		case 2:
			driver_get(rig, random_next(&random) % 0x4000, size);
			break;
		case 3 ... 20:
			release(bench);
			break;
		case 21 ... 60:
			driver_set(rig, DRIVER_NOTIFY + 4 * random_below(&random, 80), 2, value);
			break;
		case 61 ... 150: /* rings and what they point to */
			value = random_below(&random, 2) ? value : DRIVER_HEAP + (value & 0xffff);
			memory_write(&rig->memory, DRIVER_HEAP + (random_next(&random) & 0xfffe), &value,
			             1u << random_below(&random, 4));
			break;
		case 151 ... 160:
			driver_get(rig, DRIVER_ISR, 1);
			break;
		case 161:
			virtio_device_pause(&bench->echo.device);
			virtio_device_resume(&bench->echo.device);
			break;
		default:
			if (random_below(&random, 4) == 0)
				driver_get(rig, offset, size);
			else if (offset != COMMON(STATUS) || random_below(&random, 8) == 0)
				driver_set(rig, offset, size, value);
		}
		if (bench->echo.hold && (i & 15) == 0)
			release(bench);
	}
	bench->echo.hold = false;
	release(bench);
	driver_start(rig, 0, 8);
	echo_once(rig, 0, 1);
	bench_free(bench);
}

/* A damaged saved state is refused or harmless. */
static void test_corrupt(void **context)
{
	struct random random = {test_seed("virtio corrupt")};
	struct bench *first = bench_make();
	struct state *save = state_save_begin();
	size_t length;

	driver_start(&first->rig, modes[3], 8);
	for (unsigned i = 0; i < 10; i++)
		echo_once(&first->rig, i % 3, i);
	virtio_device_pause(&first->echo.device);
	pci_root_state(&first->rig.root, save);
	virtio_pci_state(&first->rig.pci, save);
	const uint8_t *data = state_save_data(save, &length);
	uint8_t *copy = malloc(length);
	for (unsigned trial = 0; trial < test_rounds(300); trial++) {
		struct bench *second = bench_make();

		memcpy(copy, data, length);
		for (unsigned i = 1 + random_below(&random, 4); i > 0; i--)
			copy[random_next(&random) % length] ^= random_next(&random);
		struct state *load = state_load_begin(copy, length);
		memcpy(second->rig.memory.low + DRIVER_HEAP, first->rig.memory.low + DRIVER_HEAP, 65536);
		virtio_device_pause(&second->echo.device);
		pci_root_state(&second->rig.root, load);
		virtio_pci_state(&second->rig.pci, load);
		virtio_device_resume(&second->echo.device);
		for (unsigned i = 0; i < 4; i++)
			virtio_device_notify(&second->echo.device, i);
		driver_settle(&second->rig);
		state_free(load);
		bench_free(second);
	}
	free(copy);
	state_free(save);
	bench_free(first);
}

static void test_rng(void **context)
{
	struct virtio_rng *rng = calloc(1, sizeof *rng);
	struct driver_rig *rig = calloc(1, sizeof *rig);
	uint8_t bytes[300], zero[300] = {0};
	uint16_t id;
	uint32_t written;

	driver_rig_init(rig);
	assert_int_equal(virtio_rng_init(rng, &rig->host, 0), 0);
	driver_rig_plug(rig, &rng->device);
	for (unsigned mode = 0; mode < 4; mode++) {
		const struct driver_buffer buffers[] = {{0x80000, 100, true}, {0x80064, 200, true}};
		const struct driver_buffer big = {0x80000, 0x1a000, true}, none = {0x80000, 8, false};

		driver_start(rig, modes[mode], 64);
		memory_fill(&rig->memory, 0x80000, 0, 300);
		driver_send(rig, 0, buffers, 2);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 300);
		memory_read(&rig->memory, 0x80000, bytes, 300);
		assert_memory_not_equal(bytes, zero, 100);
		assert_memory_not_equal(bytes + 200, zero, 100);
		driver_send(rig, 0, &big, 1);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 65536);
		driver_send(rig, 0, &none, 1);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 0);
		/* More than its share at once. */
		unsigned sent = 0;
		for (unsigned i = 0; i < 60; i++)
			sent += driver_send(rig, 0, &buffers[0], 1) >= 0;
		for (unsigned i = 0; i < sent; i++)
			driver_wait_used(rig, 0, &id, &written);
	}
	driver_rig_stop(rig);
	virtio_rng_destroy(rng);
	driver_rig_free(rig);
	free(rng);
	free(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_echo),
	    cmocka_unit_test(test_registers),
	    cmocka_unit_test(test_frozen),
	    cmocka_unit_test(test_needs_reset),
	    cmocka_unit_test(test_reset_in_flight),
	    cmocka_unit_test(test_queue_reset),
	    cmocka_unit_test(test_pin),
	    cmocka_unit_test(test_window),
	    cmocka_unit_test(test_state),
	    cmocka_unit_test(test_pause),
	    cmocka_unit_test(test_hammer),
	    cmocka_unit_test(test_corrupt),
	    cmocka_unit_test(test_rng),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
