/*
 * A whole machine saved in the middle of its work, loaded into a new one, and run on: the result is the one that an undisturbed run
 * has. The guest is a real-mode program that hashes a table of memory under timer interrupts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engines/engine.h"
#include "machine/machine.h"
#include "machine/pc.h"
#include "machine/state.h"

#define CODE       0x7c00
#define RESULT     0x9000
#define TICKS      0x9004
#define ROUNDS     3000000u
#define MEMORY     (4u << 20)
#define HANDLER_AT 0x80

/*
 *	program: lcg over EAX, sum in EBX, count in ECX; then RESULT = EBX and an exit through F4h. The timer's handler counts TICKS.
 */
static const uint8_t program[] = {
    0xfa,                                                 /* cli */
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,                   /* xor ax, ax; mov ds, ax; mov ss, ax */
    0xbc, 0x00, 0x7c,                                     /* mov sp, 7c00h */
    0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21,       /* PIC: ICW1, vectors from 20h */
    0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,       /* ICW3, ICW4 */
    0xb0, 0xfe, 0xe6, 0x21,                               /* only IRQ0 */
    0xb0, 0x34, 0xe6, 0x43,                               /* PIT: channel 0, mode 2 */
    0xb0, 0x00, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40,       /* 1024 ticks: about 1 kHz */
    0xfb,                                                 /* sti */
    0x66, 0x31, 0xc0, 0x66, 0x31, 0xdb, 0x66, 0x31, 0xc9, /* xor eax, eax; xor ebx, ebx; xor ecx, ecx */
    /* loop: */
    0x66, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00,                                               /* imul eax, eax, 1664525 */
    0x66, 0x05, 0x5f, 0xf3, 0x6e, 0x3c,                                                     /* add eax, 1013904223 */
    0x66, 0x01, 0xc3,                                                                       /* add ebx, eax */
    0x66, 0x41,                                                                             /* inc ecx */
    0x66, 0x81, 0xf9, ROUNDS & 0xff, ROUNDS >> 8 & 0xff, ROUNDS >> 16 & 0xff, ROUNDS >> 24, /* cmp ecx, ROUNDS */
    0x75, 0xe5,                                                                             /* jne loop */
    0x66, 0x89, 0x1e, RESULT & 0xff, RESULT >> 8,                                           /* mov [RESULT], ebx */
    0xb0, 0x2a, 0xe6, 0xf4,                                                                 /* out f4h, 42 */
    0xf4, 0xeb, 0xfd,                                                                       /* hlt; jmp $-1 */
};
static const uint8_t handler[] = {
    0x66, 0xff, 0x06, TICKS & 0xff, TICKS >> 8,             /* inc dword [TICKS] */
    0x50, 0xb0, 0x20, 0xe6,         0x20,       0x58, 0xcf, /* push ax; mov al, 20h; out 20h, al; pop ax; iret */
};

static uint32_t expected_sum(void)
{
	uint32_t a = 0, sum = 0;

	for (uint32_t i = 0; i < ROUNDS; i++) {
		a = a * 1664525u + 1013904223u;
		sum += a;
	}
	return sum;
}

static struct machine *new_machine(bool load_program)
{
	struct machine_options options = {.engine = "interpreter", .cpus = 1, .memory = MEMORY, .debug_exit = true};
	struct machine *machine = NULL;

	assert_int_equal(machine_create(&machine, &options), 0);
	if (load_program) {
		const uint16_t vector[2] = {CODE + 0x200, 0};
		struct cpu_state *state = &machine->vcpu[0]->state;

		assert_int_equal(memory_write(&machine->memory, CODE, program, sizeof(program)), 0);
		assert_int_equal(memory_write(&machine->memory, CODE + 0x200, handler, sizeof(handler)), 0);
		assert_int_equal(memory_write(&machine->memory, HANDLER_AT, vector, sizeof(vector)), 0);
		state->segment[SEG_CS].selector = 0;
		state->segment[SEG_CS].base = 0;
		state->rip = CODE;
		machine->engine->state_changed(machine->vcpu[0]);
	}
	return machine;
}

static void *run_machine(void *argument)
{
	int status = 0;
	enum machine_end end = machine_run(argument, &status);

	return (void *)(intptr_t)(end == MACHINE_DEBUG_EXIT ? status : -(int)end);
}

static uint32_t guest_u32(struct machine *machine, uint64_t address)
{
	uint32_t value = 0;

	assert_int_equal(memory_read(&machine->memory, address, &value, sizeof(value)), 0);
	return value;
}

static void sleep_us(long us)
{
	nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* Ends a machine that runs on `thread`: its result. */
static intptr_t end_machine(struct machine *machine, pthread_t thread)
{
	void *result;

	machine_end(machine, MACHINE_QUIT, 0);
	machine_resume(machine);
	assert_int_equal(pthread_join(thread, &result), 0);
	machine_destroy(machine);
	return (intptr_t)result;
}

/* A paused machine that runs on `thread` goes on as the new one that is returned. */
static struct machine *move_machine(struct machine *machine, pthread_t thread, intptr_t *result)
{
	struct state *state = state_save_begin(), *load;
	const void *data;
	size_t length = 0;

	machine_state(machine, state);
	assert_null(state_error(state));
	*result = end_machine(machine, thread);
	data = state_save_data(state, &length);
	assert_non_null(data);
	machine = new_machine(false);
	load = state_load_begin(data, length);
	machine_state(machine, load);
	assert_null(state_error(load));
	state_free(load);
	state_free(state);
	return machine;
}

/* Runs for a while, saves; the rest of the work is done by a second machine, and once more interrupted by a third. */
static void test_save_in_the_middle(void **unused)
{
	struct machine *machine = new_machine(true);
	unsigned moves = 0;
	bool finished = false;
	pthread_t thread;
	intptr_t result;

	for (unsigned round = 0; round < 4 && !finished; round++) {
		assert_int_equal(pthread_create(&thread, NULL, run_machine, machine), 0);
		sleep_us(5000);
		machine_pause(machine);
		machine = move_machine(machine, thread, &result);
		finished = result == 42;
		moves++;
	}
	result = (intptr_t)run_machine(machine);
	assert_int_equal(result, 42);
	assert_int_equal(guest_u32(machine, RESULT), expected_sum());
	assert_true(guest_u32(machine, TICKS) > 0);
	assert_true(moves > 0);
	machine_destroy(machine);
}

/*
 * A request that the driver put into a queue just before the processors stood still: no device takes it any more, and nobody
 * speaks of it after the load.
 */
static void test_request_at_the_last_moment(void **unused)
{
	enum { DESCRIPTORS = 0x10000, DRIVER = 0x11000, DEVICE = 0x12000, BUFFER = 0x13000 };
	struct __attribute__((packed)) {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} descriptor = {BUFFER, 64, 2 /* written by the device */, 0};
	struct machine *machine = new_machine(true);
	struct virtio_device *device = &machine->pc->virtio.rng.device;
	const uint16_t available[3] = {0, 1, 0};
	uint16_t used[2] = {0};
	pthread_t thread;
	intptr_t result;

	assert_int_equal(memory_write(&machine->memory, DESCRIPTORS, &descriptor, sizeof(descriptor)), 0);
	virtio_device_set_status(device, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	atomic_store(&device->features, VIRTIO_FEATURE_VERSION_1);
	virtio_device_set_status(device, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
	device->queue[0].size = 8;
	device->queue[0].descriptors = DESCRIPTORS;
	device->queue[0].driver_area = DRIVER;
	device->queue[0].device_area = DEVICE;
	virtio_queue_enable(&device->queue[0]);
	virtio_device_set_status(device, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK |
	                                     VIRTIO_STATUS_DRIVER_OK);
	assert_int_equal(pthread_create(&thread, NULL, run_machine, machine), 0);
	machine_pause(machine);
	assert_int_equal(memory_write(&machine->memory, DRIVER, available, sizeof(available)), 0);
	virtio_device_notify(device, 0);
	sleep_us(20000);
	assert_int_equal(memory_read(&machine->memory, DEVICE, used, sizeof(used)), 0);
	assert_int_equal(used[1], 0);
	machine = move_machine(machine, thread, &result);
	assert_int_equal(pthread_create(&thread, NULL, run_machine, machine), 0);
	for (unsigned i = 0; i < 6000 && used[1] == 0; i++) {
		sleep_us(10000);
		assert_int_equal(memory_read(&machine->memory, DEVICE, used, sizeof(used)), 0);
	}
	assert_int_equal(used[1], 1);
	end_machine(machine, thread);
}

/* A stream that was cut or changed is refused with a message, and nothing crashes. */
static void test_damaged_streams(void **unused)
{
	struct machine *machine = new_machine(true);
	struct state *state = state_save_begin();
	size_t length = 0;

	machine_state(machine, state);
	const uint8_t *data = state_save_data(state, &length);
	assert_non_null(data);
	uint8_t *copy = malloc(length);
	for (unsigned i = 0; i < 200; i++) {
		size_t cut = length * i / 200;
		struct state *load = state_load_begin(data, cut);

		machine_state(machine, load);
		assert_non_null(state_error(load));
		state_free(load);
	}
	srand(1);
	for (unsigned i = 0; i < 200; i++) {
		memcpy(copy, data, length);
		copy[(size_t)rand() % length] ^= (uint8_t)(1u << rand() % 8);
		struct state *load = state_load_begin(copy, length);
		machine_state(machine, load); /* refused or accepted: either way alive */
		state_free(load);
	}
	free(copy);
	state_free(state);
	machine_destroy(machine);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_save_in_the_middle),
	    cmocka_unit_test(test_request_at_the_last_moment),
	    cmocka_unit_test(test_damaged_streams),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
