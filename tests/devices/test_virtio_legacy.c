/* The legacy interface of transitional devices: a disk and a network card, driven as kernels from before virtio 1.0 do. */
#include "device_test.h"

#include <unistd.h>

#include "backends/disk/disk.h"
#include "backends/net/net.h"
#include "devices/virtio/virtio_block.h"
#include "devices/virtio/virtio_net.h"
#include "host/io_thread.h"
#include "virtio_driver.h"

#define SECTORS 4096u
#define HEADER  0x40000
#define STATUS  0x48000
#define DATA    0x50000
#define PORTS   0xc000u
#define DEVFN   PCI_DEVFN(3, 0) /* the rig's */

enum { FEATURES = 0, DRIVER_FEATURES = 4, ADDRESS = 8, SIZE = 12, SELECT = 14, NOTIFY = 16, STATE = 18, ISR = 19 };
enum { CONFIG_VECTOR = 20, QUEUE_VECTOR = 22 };

struct bench {
	struct driver_rig rig;
	struct virtio_block block;
	struct disk *disk;
	char path[64];
	struct virtio_net card;
	struct net *ends[2];
	_Atomic unsigned frames;
	uint8_t frame[2048];
	size_t length;
};

static struct bench *disk_make(void)
{
	struct bench *bench = calloc(1, sizeof *bench);
	struct virtio_block_options options = {.queues = 2};

	strcpy(bench->path, "/tmp/test_virtio_legacy.XXXXXX");
	int fd = mkstemp(bench->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SECTORS * 512), 0);
	close(fd);
	driver_rig_init(&bench->rig);
	bench->disk = disk_open(&(struct disk_options){.path = bench->path, .format = "raw"});
	assert_non_null(bench->disk);
	assert_int_equal(disk_attach(bench->disk, bench->rig.host.loop), 0);
	options.disk = bench->disk;
	assert_int_equal(virtio_block_init(&bench->block, &bench->rig.host, 0, &options), 0);
	driver_rig_plug_as(&bench->rig, &bench->block.device, true);
	return bench;
}

static void disk_free(struct bench *bench)
{
	driver_rig_stop(&bench->rig);
	io_thread_pause(bench->rig.thread);
	assert_int_equal(disk_close(bench->disk), 0);
	io_thread_resume(bench->rig.thread);
	virtio_block_destroy(&bench->block);
	driver_rig_free(&bench->rig);
	unlink(bench->path);
	free(bench);
}

static uint32_t get(struct driver_rig *rig, unsigned offset, unsigned size)
{
	pthread_mutex_lock(&rig->lock);
	uint32_t value = bus_port_read(&rig->bus, (uint16_t)(PORTS + offset), size);
	pthread_mutex_unlock(&rig->lock);
	return value;
}

static void set(struct driver_rig *rig, unsigned offset, unsigned size, uint32_t value)
{
	pthread_mutex_lock(&rig->lock);
	bus_port_write(&rig->bus, (uint16_t)(PORTS + offset), size, value);
	pthread_mutex_unlock(&rig->lock);
}

static void legacy_queue(struct driver_rig *rig, unsigned queue)
{
	struct driver_queue *q = &rig->queue[queue];

	set(rig, SELECT, 2, queue);
	uint16_t size = (uint16_t)get(rig, SIZE, 2);
	assert_true(size > 0);
	driver_queue_init(q, &rig->memory, driver_alloc(rig, driver_queue_bytes(size), 4096), size, false,
	                  rig->features & VIRTIO_FEATURE_EVENT_IDX, rig->features & VIRTIO_FEATURE_INDIRECT_DESC);
	set(rig, ADDRESS, 4, (uint32_t)(q->setup.descriptors / 4096));
	assert_int_equal(get(rig, ADDRESS, 4), q->setup.descriptors / 4096);
}

static void legacy_start(struct driver_rig *rig, uint32_t features, unsigned queues, bool ok)
{
	set(rig, STATE, 1, 0);
	assert_int_equal(get(rig, STATE, 1), 0);
	rig->heap = DRIVER_HEAP;
	set(rig, STATE, 1, VIRTIO_STATUS_ACKNOWLEDGE);
	set(rig, STATE, 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	rig->features = features & get(rig, FEATURES, 4);
	set(rig, DRIVER_FEATURES, 4, (uint32_t)rig->features);
	for (unsigned i = 0; i < queues; i++)
		legacy_queue(rig, i);
	if (ok)
		set(rig, STATE, 1, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK);
}

static void put_in(struct driver_rig *rig, unsigned queue, const struct driver_buffer *buffers, unsigned count)
{
	assert_true(driver_add(&rig->queue[queue], buffers, count, 0) >= 0);
	set(rig, NOTIFY, 2, queue);
}

static void put_header(struct driver_rig *rig, uint32_t type, uint64_t sector)
{
	const struct {
		uint32_t type, reserved;
		uint64_t sector;
	} bytes = {type, 0, sector};

	memory_write(&rig->memory, HEADER, &bytes, 16);
}

static uint8_t request(struct driver_rig *rig, unsigned queue, uint32_t type, uint64_t sector, uint32_t length)
{
	const struct driver_buffer buffers[] = {{HEADER, 16, false}, {DATA, length, type == 0}, {STATUS, 1, true}};
	uint8_t status = 0xee;
	uint32_t written;
	uint16_t id;

	put_header(rig, type, sector);
	memory_write(&rig->memory, STATUS, &status, 1);
	put_in(rig, queue, buffers, 3);
	driver_wait_used(rig, queue, &id, &written);
	memory_read(&rig->memory, STATUS, &status, 1);
	return status;
}

static void write_and_read(struct driver_rig *rig, unsigned queue, uint64_t sector)
{
	uint8_t out[1024], in[1024];

	for (unsigned i = 0; i < sizeof out; i++)
		out[i] = (uint8_t)(i * 7 + sector);
	memory_write(&rig->memory, DATA, out, sizeof out);
	assert_int_equal(request(rig, queue, 1, sector, sizeof out), 0);
	memory_fill(&rig->memory, DATA, 0, sizeof out);
	assert_int_equal(request(rig, queue, 0, sector, sizeof in), 0);
	memory_read(&rig->memory, DATA, in, sizeof in);
	assert_memory_equal(in, out, sizeof in);
}

static void test_identity(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;

	assert_int_equal(pci_config_read(&rig->root, DEVFN, PCI_DEVICE_ID, 2), 0x1001);
	assert_int_equal(pci_config_read(&rig->root, DEVFN, PCI_REVISION, 1), 0);
	assert_int_equal(pci_config_read(&rig->root, DEVFN, PCI_SUBSYSTEM + 2, 2), 2);
	assert_int_equal(rig->pci.function.bar[0].base, PORTS);
	/* Nothing that only virtio 1.0 has. */
	assert_int_equal(get(rig, FEATURES, 4), (uint32_t)(bench->block.device.offered | 1u << 27));
	set(rig, SELECT, 2, 2);
	assert_int_equal(get(rig, SIZE, 2), 0);
	/* The capacity, before and behind the vectors. */
	assert_int_equal(get(rig, 20, 4), SECTORS);
	pci_config_write(&rig->root, DEVFN, rig->pci.msix.capability + 2, 2, 0x8000);
	assert_int_equal(get(rig, 24, 4), SECTORS);
	disk_free(bench);
}

static void test_disk(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned round = 0; round < 4; round++) {
		legacy_start(rig, round & 1 ? ~0u : 0, 2, true);
		for (unsigned i = 0; i < 20; i++)
			write_and_read(rig, i & 1, 16 * i + round);
		/* By the pin, until the interrupt status has been read. */
		driver_settle(rig);
		assert_true(get(rig, ISR, 1) & 1);
		assert_int_equal(get(rig, ISR, 1), 0);
		assert_false(rig->pin);
		/* And the modern way, with the same device. */
		driver_start(rig, 0x7a44ull | (round & 2 ? VIRTIO_FEATURE_RING_PACKED : 0), 64);
		assert_int_equal(get(rig, STATE, 1) & 0xf, 7);
		const struct driver_buffer buffers[] = {{HEADER, 16, false}, {DATA, 512, true}, {STATUS, 1, true}};
		uint32_t written;
		uint16_t id;
		put_header(rig, 0, round);
		assert_true(driver_send(rig, 0, buffers, 3) >= 0);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, 513);
		pci_config_write(&rig->root, DEVFN, rig->pci.msix.capability + 2, 2, 0);
	}
	disk_free(bench);
}

static void test_messages(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;

	driver_start(rig, 0, 16); /* fills the table */
	legacy_start(rig, 0, 1, false);
	set(rig, CONFIG_VECTOR, 2, 0);
	set(rig, SELECT, 2, 0);
	set(rig, QUEUE_VECTOR, 2, 77);
	assert_int_equal(get(rig, QUEUE_VECTOR, 2), 0xffff);
	set(rig, QUEUE_VECTOR, 2, 2);
	assert_int_equal(get(rig, QUEUE_VECTOR, 2), 2);
	set(rig, STATE, 1, 7);
	unsigned before = rig->messages[2];
	write_and_read(rig, 0, 8);
	driver_settle(rig);
	assert_int_equal(rig->messages[2], before + 2);
	disk_free(bench);
}

/* Kernels before 3.19 read the partition table before they set DRIVER_OK. */
static void test_early_use(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;

	legacy_start(rig, ~0u, 1, false);
	write_and_read(rig, 0, 100);
	legacy_queue(rig, 1); /* even later */
	write_and_read(rig, 1, 200);
	/* What it negotiated is final, and so are its queues' addresses. */
	set(rig, DRIVER_FEATURES, 4, 0);
	assert_int_equal(get(rig, DRIVER_FEATURES, 4), (uint32_t)rig->features);
	set(rig, SELECT, 2, 0);
	set(rig, ADDRESS, 4, 1);
	assert_int_equal(get(rig, ADDRESS, 4), rig->queue[0].setup.descriptors / 4096);
	set(rig, STATE, 1, 7);
	write_and_read(rig, 0, 300);
	/* Taking a queue away resets the device. */
	set(rig, SELECT, 2, 0);
	set(rig, ADDRESS, 4, 0);
	assert_int_equal(get(rig, STATE, 1), 0);
	assert_int_equal(get(rig, ADDRESS, 4), 0);
	disk_free(bench);
}

/* The reset is done when the write returns, with requests on their way or not. */
static void test_reset_in_flight(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;
	const struct driver_buffer buffers[] = {{HEADER, 16, false}, {DATA, 65536, true}, {STATUS, 1, true}};

	for (unsigned round = 0; round < 200; round++) {
		legacy_start(rig, round & 1 ? ~0u : 0, 2, true);
		put_header(rig, 0, round);
		for (unsigned i = 0; i < 20; i++)
			put_in(rig, i & 1, buffers, 3);
		set(rig, STATE, 1, 0);
		assert_int_equal(get(rig, STATE, 1), 0);
		pthread_mutex_lock(&rig->lock);
		assert_int_equal(bench->block.device.in_flight, 0);
		pthread_mutex_unlock(&rig->lock);
	}
	legacy_start(rig, 0, 1, true);
	write_and_read(rig, 0, 1);
	disk_free(bench);
}

static void test_bad_addresses(void **state)
{
	static const uint32_t pages[] = {
	    DRIVER_RAM / 4096, DRIVER_RAM / 4096 - 1, 0xffffffff, 0x80000000, 0xa0, 0xfee00};
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;

	for (unsigned i = 0; i < sizeof pages / sizeof pages[0]; i++) {
		legacy_start(rig, 0, 0, false);
		set(rig, SELECT, 2, 0);
		set(rig, ADDRESS, 4, pages[i]);
		set(rig, STATE, 1, 7);
		set(rig, NOTIFY, 2, 0);
		set(rig, NOTIFY, 2, 0xffff);
		driver_settle(rig);
		if (pages[i] != 0xa0) /* RAM here */
			assert_true(get(rig, STATE, 1) & VIRTIO_STATUS_NEEDS_RESET);
	}
	legacy_start(rig, 0, 1, true);
	write_and_read(rig, 0, 1);
	disk_free(bench);
}

/* Both interfaces at once, anything in any order; then the device works as ever. */
static void test_anything(void **state)
{
	struct bench *bench = disk_make();
	struct driver_rig *rig = &bench->rig;
	static const uint8_t modern[][2] = {{0, 4},  {8, 4},  {12, 4}, {16, 2}, {20, 1}, {22, 2}, {24, 2},
	                                    {26, 2}, {28, 2}, {32, 8}, {40, 8}, {48, 8}, {58, 2}};

	srand(1);
	for (unsigned round = 0; round < 200; round++) {
		for (unsigned i = 0; i < 60; i++) {
			uint32_t value = (uint32_t)rand();
			unsigned at = (unsigned)rand() % 24, size = 1u << rand() % 3, which = (unsigned)rand() % 13;

			switch (rand() % 6) {
			case 0:
				set(rig, at, size, rand() % 2 ? value : value % 16);
				break;
			case 1:
				set(rig, STATE, 1, (uint32_t[]){0, 1, 3, 7, 11, 15, 0x80, 0x43}[value % 8]);
				break;
			case 2:
				set(rig, ADDRESS, 4, 0x100 + value % 0x400);
				break;
			case 3:
				set(rig, rand() % 2 ? NOTIFY : SELECT, 2, value % 4);
				break;
			case 4:
				get(rig, (unsigned)rand() % 100, size);
				break;
			default:
				driver_set(rig, modern[which][0], modern[which][1],
				           rand() % 2 ? value : value % 16 * 0x1000);
			}
		}
		memory_write(&rig->memory, 0x100000 + (unsigned)rand() % 0x100000, &round, 4);
	}
	legacy_start(rig, 0, 2, true);
	write_and_read(rig, 1, 9);
	driver_start(rig, 0, 16);
	disk_free(bench);
}

/* ---- the card: a short header, unless buffers are merged ---- */

static bool far_receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct bench *bench = owner;

	bench->length = length;
	memcpy(bench->frame, frame, length < sizeof bench->frame ? length : sizeof bench->frame);
	bench->frames++;
	return true;
}

static void far_writable(void *owner) {}

static void test_card(void **state)
{
	struct bench *bench = calloc(1, sizeof *bench);
	struct driver_rig *rig = &bench->rig;
	const struct net_client far = {.receive = far_receive, .writable = far_writable, .owner = bench};
	uint8_t frame[100], got[200];
	uint32_t written;
	uint16_t id;

	driver_rig_init(rig);
	assert_true(net_pair(bench->ends));
	io_thread_pause(rig->thread);
	assert_int_equal(virtio_net_init(&bench->card, &rig->host, 0, bench->ends[0]), 0);
	assert_int_equal(net_attach(bench->ends[1], rig->host.loop, &far), 0);
	io_thread_resume(rig->thread);
	driver_rig_plug_as(rig, &bench->card.device, true);
	assert_int_equal(pci_config_read(&rig->root, DEVFN, PCI_DEVICE_ID, 2), 0x1000);
	for (unsigned i = 0; i < sizeof frame; i++)
		frame[i] = (uint8_t)(i + 3);
	frame[12] = 0x88, frame[13] = 0xb5;
	for (unsigned merged = 0; merged < 2; merged++) {
		unsigned head = merged ? 12 : 10, before = bench->frames;
		const struct driver_buffer out[] = {{HEADER, head, false}, {DATA, sizeof frame, false}};
		const struct driver_buffer in[] = {{DATA + 0x1000, 2000, true}};
		const struct iovec iov = {frame, sizeof frame};

		legacy_start(rig, merged ? NET_FEATURE_MRG_RXBUF : 0, 2, true);
		/* Its address, where there is no command for that. */
		for (unsigned i = 0; i < 6; i++)
			set(rig, 20 + i, 1, 0x50 + i);
		assert_int_equal(get(rig, 20, 4), 0x53525150);
		memory_fill(&rig->memory, HEADER, 0, 16);
		memory_write(&rig->memory, DATA, frame, sizeof frame);
		put_in(rig, 1, out, 2);
		driver_wait_used(rig, 1, &id, &written);
		driver_settle(rig);
		assert_int_equal(bench->frames, before + 1);
		assert_int_equal(bench->length, sizeof frame);
		assert_memory_equal(bench->frame, frame, sizeof frame);
		put_in(rig, 0, in, 1);
		driver_settle(rig);
		io_thread_pause(rig->thread);
		assert_true(net_send(bench->ends[1], NULL, &iov, 1));
		io_thread_resume(rig->thread);
		driver_wait_used(rig, 0, &id, &written);
		assert_int_equal(written, head + sizeof frame);
		memory_read(&rig->memory, DATA + 0x1000, got, sizeof got);
		assert_memory_equal(got + head, frame, sizeof frame);
	}
	driver_rig_stop(rig);
	io_thread_pause(rig->thread);
	virtio_net_destroy(&bench->card);
	net_close(bench->ends[0]);
	net_close(bench->ends[1]);
	io_thread_resume(rig->thread);
	driver_rig_free(rig);
	free(bench);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_identity),        cmocka_unit_test(test_disk),
	    cmocka_unit_test(test_messages),        cmocka_unit_test(test_early_use),
	    cmocka_unit_test(test_reset_in_flight), cmocka_unit_test(test_bad_addresses),
	    cmocka_unit_test(test_anything),        cmocka_unit_test(test_card),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
