/*
 * Building, resetting and freeing a machine.
 */
#include "machine/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/chardev/chardev.h"
#include "boot/boot.h"
#include "boot/disk_boot.h"
#include "devices/lapic.h"
#include "engines/engine.h"
#include "host/event_loop.h"
#include "host/log.h"
#include "machine/clock.h"
#include "machine/lifecycle.h"
#include "machine/overcommit.h"
#include "machine/pc.h"

static void lock_devices(void *owner)
{
	machine_lock(owner);
}

static void unlock_devices(void *owner)
{
	machine_unlock(owner);
}

static int failed(const char *what, int error)
{
	log_error("%s: %s", what, strerror(-error));
	return error;
}

static int create_engine(struct vcpu *vcpu)
{
	const struct machine_options *options = &vcpu->machine->options;
	int error = vcpu->engine->vcpu_create(vcpu);

	if (!error && vcpu->engine == &engine_translator && options->translate_after)
		translator_set_heat(vcpu, options->translate_after);
	return error;
}

static int create_vcpu(struct machine *machine, unsigned index)
{
	struct vcpu *vcpu = vcpu_allocate();

	if (!vcpu)
		return -errno;
	machine->vcpu[index] = vcpu;
	vcpu->index = index;
	vcpu->machine = machine;
	vcpu->memory = &machine->memory;
	vcpu->bus = &machine->bus;
	vcpu->clock = machine->clock;
	vcpu->model = &machine->model;
	vcpu->trace = &machine->trace;
	vcpu->engine = machine->engine;
	overcommit_init(vcpu);
	vcpu->lapic = lapic_group_attach(machine->lapics, index, vcpu);
	int error = mmu_create(vcpu);
	if (error)
		return error;
	cpu_reset(vcpu, index == 0);
	return create_engine(vcpu);
}

int machine_switch_engine(struct machine *machine, const struct engine *engine)
{
	int error = 0;

	for (unsigned i = 0; !error && i < machine->options.cpus; i++) {
		struct vcpu *vcpu = machine->vcpu[i];

		vcpu->engine->vcpu_destroy(vcpu);
		vcpu->engine = engine;
		error = create_engine(vcpu);
		if (!error)
			engine->state_changed(vcpu);
	}
	machine->engine = engine;
	if (error) {
		failed(engine->name, error);
		machine_end(machine, MACHINE_FAILED, 0);
	}
	return error;
}

static int create_cpus(struct machine *machine)
{
	const struct machine_options *options = &machine->options;
	char why[256] = "";

	machine->engine = engine_select(options->engine ? options->engine : "auto", why);
	if (!machine->engine) {
		log_error("--engine %s: %s", options->engine, why);
		return -EINVAL;
	}
	int error = cpu_model_create(&machine->model, options->cpu ? options->cpu : "host", options->cpus,
	                             clock_tsc_khz(machine->clock), why);
	if (error) {
		log_error("--cpu %s: %s", options->cpu, why);
		return error;
	}
	machine->lapics = lapic_group_create(options->cpus, machine->clock);
	machine->vcpu = calloc(options->cpus, sizeof(*machine->vcpu));
	if (!machine->lapics || !machine->vcpu)
		return failed("CPUs", -ENOMEM);
	for (unsigned i = 0; i < options->cpus; i++) {
		error = create_vcpu(machine, i);
		if (error)
			return failed("CPU", error);
	}
	return 0;
}

static bool boots_kernel(const struct machine *machine)
{
	return machine->options.kernel || machine->options.boot_from_disk; /* tests fill the memory themselves */
}

/*
 * Kernel, initrd and command line from the first disk, as it is now: a guest that has installed another kernel gets that by a reboot. What
 * --append says comes last, where the kernel takes the last word.
 */
static int find_kernel(struct machine *machine, struct boot_request *request, struct disk_boot *files, char **append,
                       char *why)
{
	const struct machine_options *options = &machine->options;
	int error = disk_boot_read(files, machine->pc->virtio.disk[0].disk, options->disks[0].image.path,
	                           machine->memory.size, why);

	if (error)
		return error;
	const char *more = options->append                      ? options->append
	                   : strstr(files->command, "console=") ? ""
	                                                        : "console=ttyS0";
	if (asprintf(append, "%s%s%s", files->command, *files->command && *more ? " " : "", more) < 0) {
		*append = NULL;
		return -ENOMEM;
	}
	request->kernel_file = &files->kernel;
	request->initrd_file = files->initrd.size ? &files->initrd : NULL;
	request->append = *append;
	trace(&machine->trace, TRACE_BOOT, -1, "from disk: %s, %s; %s", files->kernel.name,
	      files->initrd.size ? files->initrd.name : "no initrd", *append);
	return 0;
}

/* Loads the kernel and sets the bootstrap processor to where its boot protocol starts. */
static int load_kernel(struct machine *machine)
{
	struct boot_request request = {
	    .kernel = machine->options.kernel,
	    .initrd = machine->options.initrd,
	    .append = machine->options.append,
	    .cpus = machine->options.cpus,
	    .trace = &machine->trace,
	};
	struct boot_entry entry;
	struct disk_boot files = {.kernel.fd = -1, .initrd.fd = -1};
	char why[BOOT_WHY_SIZE] = "out of memory", *append = NULL;
	int error = 0;

	if (!boots_kernel(machine))
		return 0;
	if (machine->options.boot_from_disk)
		error = find_kernel(machine, &request, &files, &append, why);
	if (!error)
		error = boot_load(&machine->memory, &request, &entry, why);
	disk_boot_free(&files);
	free(append);
	if (error) {
		log_error("%s", why);
		return error;
	}
	boot_apply(&entry, &machine->vcpu[0]->state);
	return 0;
}

int machine_reset_all(struct machine *machine)
{
	machine_lock(machine);
	pc_reset(machine->pc);
	for (unsigned i = 0; i < machine->options.cpus; i++) {
		struct vcpu *vcpu = machine->vcpu[i];

		atomic_store(&vcpu->attention, 0);
		cpu_reset(vcpu, i == 0);
		lapic_reset(vcpu->lapic, false);
		/* Kernels that are loaded directly find the 8259 wired through, as firmware leaves it. */
		if (i == 0)
			lapic_set_virtual_wire(vcpu->lapic);
		mmu_flush(vcpu);
	}
	int error = load_kernel(machine);
	for (unsigned i = 0; boots_kernel(machine) && i < machine->options.cpus; i++)
		boot_prepare_cpu(&machine->vcpu[i]->state, machine->model.physical_bits);
	for (unsigned i = 0; i < machine->options.cpus; i++) {
		struct vcpu *vcpu = machine->vcpu[i];

		mmu_update_view(vcpu);
		machine->engine->flush_code(vcpu);
		machine->engine->state_changed(vcpu);
	}
	machine_unlock(machine);
	return error;
}

static int build(struct machine *machine)
{
	const struct machine_options *options = &machine->options;
	int error;

	machine->loop = event_loop_create();
	machine->clock = clock_create();
	if (!machine->loop || !machine->clock)
		return failed("event loop", -errno);
	clock_pause(machine->clock); /* machine_run() lets it go */
	error = clock_attach(machine->clock, machine->loop, lock_devices, unlock_devices, machine);
	if (error)
		return failed("clock", error);
	machine->trace =
	    (struct trace){.mask = options->trace_mask, .clock = machine->clock, .file = options->trace_file};
	error = lifecycle_create(machine);
	if (error)
		return failed("event counter", error);
	error = memory_create(&machine->memory, options->memory);
	if (error) {
		log_error("%llu MiB of guest memory: %s; give it less with --memory",
		          (unsigned long long)options->memory >> 20, strerror(-error));
		return error;
	}
	bus_init(&machine->bus, &machine->trace);
	error = create_cpus(machine);
	if (error)
		return error;
	error = pc_create(machine);
	if (error == -ECANCELED) /* an image or network: it has said why */
		return error;
	if (error)
		return failed("devices", error);
	error = machine_reset_all(machine);
	if (error)
		return error;
	for (unsigned i = 0; i < options->port_count; i++) {
		error = chardev_attach(options->ports[i].chardev, machine->loop, lock_devices, unlock_devices, machine);
		if (error)
			return failed("virtio port", error);
	}
	if (options->console) {
		error = chardev_attach(options->console, machine->loop, lock_devices, unlock_devices, machine);
		if (error)
			return failed("console", error);
	}
	return 0;
}

int machine_create(struct machine **machine, const struct machine_options *options)
{
	struct machine *made = calloc(1, sizeof(*made));

	if (!made)
		return failed("machine", -ENOMEM);
	made->options = *options;
	made->memory.fd = -1;
	pthread_mutex_init(&made->device_lock, NULL);
	int error = build(made);
	if (error) {
		machine_destroy(made);
		return error;
	}
	*machine = made;
	return 0;
}

void machine_destroy(struct machine *machine)
{
	if (!machine)
		return;
	for (unsigned i = 0; machine->vcpu && i < machine->options.cpus; i++) {
		struct vcpu *vcpu = machine->vcpu[i];

		if (!vcpu)
			continue;
		if (vcpu->engine_data)
			machine->engine->vcpu_destroy(vcpu);
		mmu_destroy(vcpu);
	}
	if (machine->pc)
		pc_destroy(machine);
	if (machine->lapics)
		lapic_group_destroy(machine->lapics);
	for (unsigned i = 0; machine->vcpu && i < machine->options.cpus; i++)
		vcpu_free(machine->vcpu[i]);
	free(machine->vcpu);
	if (machine->memory.fd >= 0)
		memory_destroy(&machine->memory);
	lifecycle_destroy(machine);
	if (machine->clock)
		clock_destroy(machine->clock);
	if (machine->loop)
		event_loop_destroy(machine->loop);
	pthread_mutex_destroy(&machine->device_lock);
	free(machine);
}
