#include "device_test.h"

#include <endian.h>
#include <errno.h>

#include "devices/fw_cfg.h"
#include "memory/memory.h"

#define RAM_SIZE (4u << 20)
#define ACCESS   0x1000 /* where the tests put the DMA access structure */

/* The device and the memory that it reaches. */
struct board {
	struct fw_cfg fw_cfg; /* first */
	struct memory memory;
	uint8_t file[300];
	uint8_t scratch[64];
};

static int make(struct rig *rig)
{
	struct board *board = rig->chip;
	int error = memory_create(&board->memory, RAM_SIZE);

	if (error)
		return error;
	for (unsigned i = 0; i < sizeof board->file; i++)
		board->file[i] = i * 7;
	error = fw_cfg_init(&board->fw_cfg, &rig->bus, &board->memory);
	if (error)
		return error;
	fw_cfg_add_file(&board->fw_cfg, "etc/file", board->file, sizeof board->file);
	fw_cfg_add_writable_file(&board->fw_cfg, "etc/scratch", board->scratch, sizeof board->scratch);
	fw_cfg_set_integer(&board->fw_cfg, FW_CFG_CPUS, 4, 2);
	return 0;
}

static void unmake(struct rig *rig)
{
	memory_destroy(&((struct board *)rig->chip)->memory);
}

static void put_access(struct rig *rig, uint32_t control, uint32_t length, uint64_t address)
{
	struct board *board = rig->chip;
	uint8_t bytes[16];

	control = htobe32(control);
	length = htobe32(length);
	address = htobe64(address);
	memcpy(bytes, &control, 4);
	memcpy(bytes + 4, &length, 4);
	memcpy(bytes + 8, &address, 8);
	assert_int_equal(memory_write(&board->memory, ACCESS, bytes, sizeof bytes), 0);
}

static uint32_t dma(struct rig *rig, uint32_t control, uint32_t length, uint64_t address)
{
	struct board *board = rig->chip;

	put_access(rig, control, length, address);
	bus_port_write(&rig->bus, 0x514, 4, 0);
	bus_port_write(&rig->bus, 0x518, 4, htobe32(ACCESS));
	assert_int_equal(memory_read(&board->memory, ACCESS, &control, 4), 0);
	return be32toh(control);
}

static void stimulate(struct rig *rig, struct random *random)
{
	static const uint64_t base[] = {0,         0x2000, 0x9fff0, 0xa0000, 0xbfff8, RAM_SIZE - 8, 0xffffffffffffff00,
	                                0xfec00000};
	static const uint16_t selector[] = {0, 1, 0x19, 0x20, 0x21, 0x5f, 0x60, 0x7fff, 0x8000, 0x8007, 0x8008, 0xffff};
	uint32_t control = random_next(random) & 0x1f, length = random_below(random, 512);

	if (random_below(random, 8) == 0)
		length = random_next(random);
	control |= (uint32_t)selector[random_below(random, sizeof selector / sizeof selector[0])] << 16;
	rig_log(rig, dma(rig, control, length, base[random_below(random, 8)] + random_below(random, 64)));
}

static void check(struct rig *rig)
{
	struct board *board = rig->chip;

	/* Read-only items stay what they are. */
	for (unsigned i = 0; i < sizeof board->file; i++)
		assert_int_equal(board->file[i], (uint8_t)(i * 7));
}

static void state(void *chip, struct state *state)
{
	fw_cfg_state(&((struct board *)chip)->fw_cfg, state);
}

static void reset(void *chip)
{
	fw_cfg_reset(&((struct board *)chip)->fw_cfg);
}

static const struct device_kind kind = {
    .name = "fw-cfg",
    .size = sizeof(struct board),
    .make = make,
    .unmake = unmake,
    .state = state,
    .reset = reset,
    .stimulate = stimulate,
    .check = check,
    .span = {{0x510, 2}, {0x514, 4}},
};

/* Each round may fill megabytes: fewer of them. */
static void test_hammer(void **context)
{
	device_hammer(&kind, 30000);
}

/* Without DMA: memory is not the device's state, and the twins' memories differ. */
static void test_twin(void **context)
{
	struct device_kind ports_only = kind;

	ports_only.stimulate = NULL;
	device_twin(&ports_only, 100);
}

static void test_corrupt(void **context)
{
	device_corrupt(&kind, 100);
}

static void read_bytes(struct rig *rig, uint16_t selector, void *buffer, unsigned length)
{
	bus_port_write(&rig->bus, 0x510, 2, selector);
	for (unsigned i = 0; i < length; i++)
		((uint8_t *)buffer)[i] = in8(rig, 0x511);
}

static void test_port(void **context)
{
	struct rig rig;
	uint8_t bytes[320];
	uint32_t count;

	rig_make(&rig, &kind);
	read_bytes(&rig, FW_CFG_SIGNATURE, bytes, 6);
	assert_memory_equal(bytes, "QEMU\0\0", 6);
	read_bytes(&rig, FW_CFG_ID, bytes, 4);
	assert_int_equal(bytes[0], 3);
	read_bytes(&rig, FW_CFG_CPUS, bytes, 2);
	assert_int_equal(bytes[0] | bytes[1] << 8, 4);
	read_bytes(&rig, FW_CFG_FILE_DIR, bytes, 4 + 2 * 64);
	memcpy(&count, bytes, 4);
	assert_int_equal(be32toh(count), 2);
	assert_memory_equal(bytes + 4, "\0\0\x01\x2c\0\x20\0\0etc/file", 17);
	assert_memory_equal(bytes + 68, "\0\0\0\x40\0\x21\0\0etc/scratch", 20);
	read_bytes(&rig, 0x20, bytes, 310);
	assert_memory_equal(bytes, ((struct board *)rig.chip)->file, 300);
	for (unsigned i = 300; i < 310; i++)
		assert_int_equal(bytes[i], 0); /* beyond the end */
	read_bytes(&rig, 0x1234, bytes, 4);
	assert_memory_equal(bytes, "\0\0\0\0", 4);
	/* The DMA register's signature, in both halves. */
	assert_int_equal(bus_port_read(&rig.bus, 0x514, 4), 0x554d4551);
	assert_int_equal(bus_port_read(&rig.bus, 0x518, 4), 0x47464320);
	rig_unmake(&rig, &kind);
}

static void test_dma(void **context)
{
	struct rig rig;
	struct board *board;
	uint8_t bytes[400];

	rig_make(&rig, &kind);
	board = rig.chip;
	assert_int_equal(dma(&rig, 0x20 << 16 | 8 | 2, 100, 0x2000), 0);
	memory_read(&board->memory, 0x2000, bytes, 100);
	assert_memory_equal(bytes, board->file, 100);
	assert_int_equal(dma(&rig, 4, 50, 0), 0); /* skip */
	memset(bytes, 0xee, sizeof bytes);
	memory_write(&board->memory, 0x2000, bytes, 200);
	assert_int_equal(dma(&rig, 2, 200, 0x2000), 0); /* 150 are left, then zeros */
	memory_read(&board->memory, 0x2000, bytes, 200);
	assert_memory_equal(bytes, board->file + 150, 150);
	for (unsigned i = 150; i < 200; i++)
		assert_int_equal(bytes[i], 0);
	/* Bad addresses: an error, and nothing moved. */
	assert_int_equal(dma(&rig, 0x20 << 16 | 8 | 2, 100, RAM_SIZE - 99), 1);
	assert_int_equal(dma(&rig, 2, 100, 0x9fff0), 1);
	assert_int_equal(dma(&rig, 2, 0xffffffff, 0x2000), 1);
	assert_int_equal(dma(&rig, 2, 100, UINT64_MAX - 10), 1);
	assert_int_equal(dma(&rig, 2, 1, 0x2000), 0);
	memory_read(&board->memory, 0x2000, bytes, 1);
	assert_int_equal(bytes[0], board->file[0]);
	/* Writing: only what is writable, and only inside. */
	memory_write(&board->memory, 0x3000, "hello", 5);
	assert_int_equal(dma(&rig, 0x20 << 16 | 8 | 0x10, 5, 0x3000), 1);
	assert_int_equal(dma(&rig, 0x21 << 16 | 8 | 0x10, 5, 0x3000), 0);
	assert_memory_equal(board->scratch, "hello", 5);
	assert_int_equal(dma(&rig, 0x10, 60, 0x3000), 1);
	assert_int_equal(dma(&rig, 0x10, 59, 0x3000), 0);
	assert_int_equal(dma(&rig, 0x10, 1, 0x3000), 1);
	/* The access structure itself is nowhere: ignored. */
	bus_port_write(&rig.bus, 0x514, 4, 0xffffffff);
	bus_port_write(&rig.bus, 0x518, 4, 0xffffffff);
	/* A reset forgets half an address. */
	bus_port_write(&rig.bus, 0x514, 4, 0xffffffff);
	fw_cfg_reset(rig.chip);
	put_access(&rig, 0x20 << 16 | 8 | 2, 4, 0x2000);
	bus_port_write(&rig.bus, 0x518, 4, htobe32(ACCESS));
	memory_read(&board->memory, ACCESS, bytes, 4);
	assert_memory_equal(bytes, "\0\0\0\0", 4);
	/* And over itself: the answer wins. */
	assert_int_equal(dma(&rig, 0x20 << 16 | 8 | 2, 16, ACCESS), 0);
	/* The low half alone uses a high half of 0 again. */
	put_access(&rig, 0x20 << 16 | 8 | 2, 4, 0x2000);
	bus_port_write(&rig.bus, 0x518, 4, htobe32(ACCESS));
	memory_read(&board->memory, ACCESS, bytes, 4);
	assert_memory_equal(bytes, "\0\0\0\0", 4);
	rig_unmake(&rig, &kind);
}

static void test_files(void **context)
{
	struct rig rig;
	struct fw_cfg *fw_cfg;
	char name[80];
	uint8_t bytes[8];

	rig_make(&rig, &kind);
	fw_cfg = rig.chip;
	assert_int_equal(fw_cfg_add_file(fw_cfg, "", NULL, 0), -EINVAL);
	memset(name, 'n', sizeof name);
	name[56] = 0;
	assert_int_equal(fw_cfg_add_file(fw_cfg, name, NULL, 0), -EINVAL);
	name[55] = 0;
	assert_int_equal(fw_cfg_add_file(fw_cfg, name, "x", 1), 0);
	assert_int_equal(fw_cfg_add_file(fw_cfg, "etc/file", "new", 3), 0); /* replaced */
	read_bytes(&rig, 0x20, bytes, 4);
	assert_memory_equal(bytes, "new\0", 4);
	for (unsigned i = fw_cfg->file_count; i < FW_CFG_FILES_MAX; i++) {
		snprintf(name, sizeof name, "opt/%u", i);
		assert_int_equal(fw_cfg_add_file(fw_cfg, name, "x", 1), 0);
	}
	assert_int_equal(fw_cfg_add_file(fw_cfg, "one/more", "x", 1), -ENOSPC);
	assert_int_equal(fw_cfg_set(fw_cfg, 0x4001, "x", 1), -EINVAL);
	assert_int_equal(fw_cfg_set(fw_cfg, 0x8008, "x", 1), -EINVAL);
	assert_int_equal(fw_cfg_set(fw_cfg, FW_CFG_E820, "x", 1), 0);
	fw_cfg_set_cmdline(fw_cfg, "quiet");
	read_bytes(&rig, FW_CFG_CMDLINE_SIZE, bytes, 4);
	assert_int_equal(bytes[0], 6);
	read_bytes(&rig, FW_CFG_CMDLINE_DATA, bytes, 6);
	assert_string_equal((char *)bytes, "quiet");
	fw_cfg_set_kernel(fw_cfg, "setup", 5, "kernel", 6);
	fw_cfg_set_initrd(fw_cfg, "initrd", 6, 0x7000000);
	read_bytes(&rig, FW_CFG_SETUP_DATA, bytes, 6);
	assert_memory_equal(bytes, "setup\0", 6);
	read_bytes(&rig, FW_CFG_KERNEL_SIZE, bytes, 4);
	assert_int_equal(bytes[0], 6);
	read_bytes(&rig, FW_CFG_INITRD_ADDR, bytes, 4);
	assert_int_equal(bytes[3], 7);
	read_bytes(&rig, FW_CFG_INITRD_DATA, bytes, 6);
	assert_memory_equal(bytes, "initrd", 6);
	assert_int_equal(fw_cfg_set_integer(fw_cfg, FW_CFG_CPUS, 1, 9), -EINVAL);
	rig_unmake(&rig, &kind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_port),   cmocka_unit_test(test_dma),  cmocka_unit_test(test_files),
	    cmocka_unit_test(test_hammer), cmocka_unit_test(test_twin), cmocka_unit_test(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
