#include "device_test.h"

#include <errno.h>

#include "debug/trace.h"

/* A chip of four registers that remembers its last access. */
struct chip {
	uint8_t reg[8];
	uint64_t offset, value;
	unsigned size, reads, writes;
};

static uint64_t chip_read(void *device, uint64_t offset, unsigned size)
{
	struct chip *chip = device;
	uint64_t value = 0;

	chip->offset = offset;
	chip->size = size;
	chip->reads++;
	assert_true(offset + size <= sizeof chip->reg);
	memcpy(&value, chip->reg + offset, size);
	return value | 0xabcdef0000000000ull * (size < 8); /* high bits that the bus must cut off */
}

static void chip_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	struct chip *chip = device;

	chip->offset = offset;
	chip->size = size;
	chip->value = value;
	chip->writes++;
	assert_true(offset + size <= sizeof chip->reg);
	memcpy(chip->reg + offset, &value, size);
}

static const struct bus_ops byte_ops = {.read = chip_read, .write = chip_write};
static const struct bus_ops wide_ops = {.read = chip_read, .write = chip_write, .max_size = 4};
static const struct bus_ops eight_ops = {.read = chip_read, .write = chip_write, .max_size = 8};
static const struct bus_ops no_ops = {0};

static void test_claims(void **context)
{
	static struct bus bus;
	struct chip chip = {0};

	bus_init(&bus, NULL);
	assert_int_equal(bus_add_ports(&bus, 0x100, 4, "a", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_ports(&bus, 0x103, 4, "b", &byte_ops, &chip), -EEXIST);
	assert_int_equal(bus_add_ports(&bus, 0xfd, 4, "b", &byte_ops, &chip), -EEXIST);
	assert_int_equal(bus_add_ports(&bus, 0xf0, 0x100, "b", &byte_ops, &chip), -EEXIST);
	assert_int_equal(bus_add_ports(&bus, 0x104, 4, "b", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_ports(&bus, 0xfc, 4, "c", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_ports(&bus, 0, 0, "d", &byte_ops, &chip), -EINVAL);
	assert_int_equal(bus_add_ports(&bus, 0xffff, 2, "d", &byte_ops, &chip), -EINVAL);
	assert_int_equal(bus_add_ports(&bus, 0xffff, 1, "d", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_mmio(&bus, UINT64_MAX, 2, "e", &byte_ops, &chip), -EINVAL);
	assert_int_equal(bus_add_mmio(&bus, UINT64_MAX - 7, 8, "e", &byte_ops, &chip), 0);
	assert_int_equal(bus_mmio_read(&bus, UINT64_MAX, 8) & 0xff, 0);
	bus_remove_ports(&bus, 0x101); /* no range begins there */
	assert_int_equal(bus.ports.count, 4);
	bus_remove_ports(&bus, 0x100);
	assert_int_equal(bus.ports.count, 3);
	assert_int_equal(bus_port_read(&bus, 0x100, 1), 0xff);
	for (unsigned i = 0; bus.ports.count < BUS_RANGES_MAX; i++)
		assert_int_equal(bus_add_ports(&bus, 0x1000 + 2 * i, 1, "f", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_ports(&bus, 0x8000, 1, "g", &byte_ops, &chip), -ENOSPC);
}

static void test_sizes(void **context)
{
	static struct bus bus;
	struct chip narrow = {0}, wide = {0};

	bus_init(&bus, NULL);
	assert_int_equal(bus_add_ports(&bus, 0x10, 4, "narrow", &byte_ops, &narrow), 0);
	assert_int_equal(bus_add_ports(&bus, 0x14, 8, "wide", &wide_ops, &wide), 0);
	bus_port_write(&bus, 0x10, 4, 0x44332211);
	assert_int_equal(narrow.writes, 4);
	assert_int_equal(bus_port_read(&bus, 0x10, 4), 0x44332211);
	assert_int_equal(bus_port_read(&bus, 0x11, 2), 0x3322);
	bus_port_write(&bus, 0x14, 4, 0x88776655);
	assert_int_equal(wide.writes, 1);
	assert_int_equal(wide.size, 4);
	assert_int_equal(bus_port_read(&bus, 0x14, 4), 0x88776655);
	/* From one chip into the next, and off the end. */
	assert_int_equal(bus_port_read(&bus, 0x12, 4), 0x66554433);
	assert_int_equal(bus_port_read(&bus, 0x1a, 4), 0xffff0000);
	assert_int_equal(bus_port_read(&bus, 0x0e, 4), 0x2211ffff);
	bus_port_write(&bus, 0x0e, 4, 0xaabbccdd);
	assert_int_equal(bus_port_read(&bus, 0x10, 2), 0xaabb);
	assert_int_equal(bus_port_read(&bus, 0x9000, 4), 0xffffffff);
	assert_int_equal(bus_port_read(&bus, 0xffff, 4), 0xffffffff);
	bus_port_write(&bus, 0xffff, 4, 0);
	/* Write-only and read-only chips. */
	assert_int_equal(bus_add_mmio(&bus, 0x1000, 4, "nothing", &no_ops, NULL), 0);
	assert_int_equal(bus_add_mmio(&bus, 0x2000, 8, "eight", &eight_ops, &wide), 0);
	bus_mmio_write(&bus, 0x1000, 8, 1);
	assert_true(bus_mmio_read(&bus, 0x1000, 8) == UINT64_MAX);
	bus_mmio_write(&bus, 0x2000, 8, 0x1122334455667788);
	assert_true(bus_mmio_read(&bus, 0x2000, 8) == 0x1122334455667788);
	assert_true(bus_mmio_read(&bus, 0x2004, 8) == 0xffffffff11223344);
}

/* A chip that moves its own range while it is written to (a BAR). */
static struct bus moving;

static void move_write(void *device, uint64_t offset, unsigned size, uint64_t value)
{
	static const struct bus_ops ops = {.read = chip_read, .write = move_write};
	uint64_t *base = device;

	bus_remove_ports(&moving, *base);
	*base ^= 0x1000;
	assert_int_equal(bus_add_ports(&moving, *base, 4, "moves", &ops, device), 0);
}

static void test_range_moves_during_access(void **context)
{
	static const struct bus_ops ops = {.write = move_write};
	uint64_t base = 0x2000;

	bus_init(&moving, NULL);
	assert_int_equal(bus_add_ports(&moving, 0x2000, 4, "moves", &ops, &base), 0);
	bus_port_write(&moving, 0x2000, 4, 0); /* the bytes after the first find nobody */
	assert_int_equal(base, 0x3000);
	bus_port_write(&moving, 0x3002, 1, 0);
	assert_int_equal(base, 0x2000);
}

static void test_unclaimed_is_named_once(void **context)
{
	static struct bus bus;
	struct trace trace = {.mask = 1u << TRACE_UNKNOWN};
	char text[8192] = "";
	unsigned lines = 0;

	trace.file = fmemopen(text, sizeof text - 1, "w");
	assert_non_null(trace.file);
	bus_init(&bus, &trace);
	for (unsigned i = 0; i < 3; i++) {
		bus_port_read(&bus, 0x1234, 2);
		bus_port_write(&bus, 0x5678, 1, 0x9a);
		bus_mmio_read(&bus, 0xfd000010, 4);
		bus_mmio_write(&bus, 0xfd000020, 4, 1);
	}
	/* A guest that scans all of memory does not fill the disk. */
	for (uint64_t page = 0; page < 100000; page++)
		bus_mmio_read(&bus, page << 12, 4);
	fclose(trace.file);
	for (const char *at = text; (at = strchr(at, '\n')); at++)
		lines++;
	assert_in_range(lines, 4, 70);
	assert_non_null(strstr(text, "1234"));
	assert_non_null(strstr(text, "5678"));
	assert_non_null(strstr(text, "fd000010"));
	assert_null(strstr(text, "fd000020"));
	assert_non_null(strstr(text, "read of 2 bytes"));
	assert_non_null(strstr(text, "write of 1 bytes (9a)"));
}

static void test_trace(void **context)
{
	static struct bus bus;
	struct chip chip = {.reg = {0x11, 0x22}};
	struct trace trace = {.mask = 1u << TRACE_IO | 1u << TRACE_MMIO};
	char text[4096] = "";

	trace.file = fmemopen(text, sizeof text - 1, "w");
	assert_non_null(trace.file);
	bus_init(&bus, &trace);
	assert_int_equal(bus_add_ports(&bus, 0x100, 2, "tested", &byte_ops, &chip), 0);
	assert_int_equal(bus_add_mmio(&bus, 0xfed00000, 4, "mapped", &wide_ops, &chip), 0);
	bus_port_read(&bus, 0x100, 2);
	bus_port_write(&bus, 0x101, 1, 0x5a);
	bus_port_write(&bus, 0x200, 1, 0x5b);
	bus_mmio_write(&bus, 0xfed00000, 4, 0x12345678);
	bus_mmio_read(&bus, 0xfed00000, 4);
	fclose(trace.file);
	assert_non_null(strstr(text, "in  0100.2 -> 2211  tested"));
	assert_non_null(strstr(text, "out 0101.1 <- 5a  tested"));
	assert_non_null(strstr(text, "out 0200.1 <- 5b  -"));
	assert_non_null(strstr(text, "write 0fed00000.4 <- 12345678  mapped"));
	assert_non_null(strstr(text, "-> 12345678  mapped"));
}

/* Against a plain array of who owns which byte. */
static void test_random_ranges(void **context)
{
	static struct bus bus;
	static uint8_t owner[65536];
	static struct chip chip[200];
	static const struct bus_ops log_ops = {.read = chip_read, .write = chip_write, .max_size = 4};
	struct random random = {test_seed("bus")};

	bus_init(&bus, NULL);
	memset(owner, 0, sizeof owner);
	for (unsigned i = 1; i < 200; i++) {
		unsigned base = random_below(&random, 2000), length = 1 + random_below(&random, 8);
		bool free_range = true;

		for (unsigned j = 0; j < length; j++)
			free_range = free_range && !owner[base + j];
		memset(chip[i].reg, i, sizeof chip[i].reg);
		assert_int_equal(bus_add_ports(&bus, base, length, "random", &log_ops, &chip[i]),
		                 free_range ? 0 : -EEXIST);
		if (free_range)
			memset(owner + base, i, length);
		if (free_range && random_below(&random, 4) == 0) {
			bus_remove_ports(&bus, base);
			memset(owner + base, 0, length);
		}
	}
	for (unsigned i = 0; i < 100000; i++) {
		unsigned port = random_below(&random, 2100), size = 1u << random_below(&random, 3);
		uint32_t expected = 0;

		for (unsigned j = 0; j < size; j++)
			expected |= (uint32_t)(owner[port + j] ? owner[port + j] : 0xff) << 8 * j;
		assert_int_equal(bus_port_read(&bus, port, size), expected);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_claims),
	    cmocka_unit_test(test_sizes),
	    cmocka_unit_test(test_range_moves_during_access),
	    cmocka_unit_test(test_unclaimed_is_named_once),
	    cmocka_unit_test(test_random_ranges),
	    cmocka_unit_test(test_trace),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
