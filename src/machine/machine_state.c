/*
 * The state of a whole paused machine, RAM included: one function saves and loads (state.h).
 */
#include <stdlib.h>
#include <string.h>

#include "devices/lapic.h"
#include "engines/engine.h"
#include "machine/clock.h"
#include "machine/machine.h"
#include "machine/pc.h"
#include "machine/state.h"
#include "x86/cpu_save.h"

#define RAM_CHUNK (1u << 20)

static bool all_zero(const uint8_t *bytes, size_t length)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* RAM in chunks of 1 MiB; those that are all zero are left out of the stream. */
static void ram_state(struct memory *memory, struct state *state)
{
	uint64_t size = memory->size;
	bool loading = state_loading(state);

	state_begin(state, "ram", 0, 1);
	state_u64(state, "size", &size);
	if (size != memory->size)
		state_fail(state, "RAM size differs from this machine's");
	state_end(state);
	for (uint64_t offset = 0; offset < memory->size && !state_error(state); offset += RAM_CHUNK) {
		uint8_t *bytes =
		    offset < memory->low_size ? memory->low + offset : memory->high + (offset - memory->low_size);
		uint64_t rest = offset < memory->low_size ? memory->low_size - offset : memory->size - offset;
		size_t length = rest < RAM_CHUNK ? rest : RAM_CHUNK;
		unsigned chunk = (unsigned)(offset / RAM_CHUNK) + 1;

		if (loading ? !state_has(state, "ram", chunk) : all_zero(bytes, length)) {
			if (loading && !all_zero(bytes, length))
				memset(bytes, 0, length);
			continue;
		}
		state_begin(state, "ram", chunk, 1);
		state_u8_array(state, "bytes", bytes, length);
		state_end(state);
	}
}

void machine_state(struct machine *machine, struct state *state)
{
	uint32_t cpus = machine->options.cpus;

	/* A machine that has not run yet may be loaded as it is; when all is loaded, its devices look for what was asked. */
	machine_pause(machine);
	machine_lock(machine);
	state_begin(state, "machine", 0, 1);
	state_u32(state, "cpus", &cpus);
	if (cpus != machine->options.cpus)
		state_fail(state, "number of CPUs differs from this machine's");
	state_end(state);
	clock_state(machine->clock, state);
	ram_state(&machine->memory, state);
	pc_state(machine->pc, state);
	for (unsigned i = 0; i < machine->options.cpus; i++) {
		cpu_state_state(machine->vcpu[i], state);
		lapic_state(machine->vcpu[i]->lapic, state);
	}
	if (state_loading(state)) {
		for (unsigned i = 0; i < machine->options.cpus; i++) {
			struct vcpu *vcpu = machine->vcpu[i];

			mmu_flush(vcpu);
			mmu_update_view(vcpu);
			vcpu->engine->flush_code(vcpu);
			vcpu->engine->state_changed(vcpu);
			vcpu_kick(vcpu, ATTENTION_INTERRUPT);
		}
	}
	machine_unlock(machine);
	machine_resume(machine);
}
