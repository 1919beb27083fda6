/*
 * Saving and loading machine state. One function per device does both; the direction is in `struct state`:
 *
 *	void pit_8254_state(struct pit_8254 *pit, struct state *state)
 *	{
 *		state_begin(state, "pit-8254", 0, 1);
 *		state_u8(state, "control", &pit->control);
 *		if (pit->control > 3)
 *			state_fail(state, "control out of range");
 *		state_end(state);
 *	}
 *
 * The stream is sections (name, instance, version) of tagged fields (name, type, count). On loading, a missing field, a
 * field of another size, or a version newer than ours is an error; unknown fields of older versions are skipped. Errors
 * stick: after the first one all calls do nothing (loads leave the variable as it is), and state_error() tells it. A
 * stream is hostile input: bounds are checked here, values by the device.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct state;

/* A state that saves into memory, which grows. NULL: out of memory. */
struct state *state_save_begin(void);
/* The saved bytes; they belong to the state. NULL and 0 after an error. */
const void *state_save_data(struct state *state, size_t *length);
/* A state that loads from memory, which must outlive it. */
struct state *state_load_begin(const void *data, size_t length);
void state_free(struct state *state);

bool state_loading(const struct state *state);
/* NULL, or one line that says what was wrong and where ("pit-8254.0: field control missing"). */
const char *state_error(const struct state *state);
void state_fail(struct state *state, const char *what);

/* Returns the version in the stream (`version` when saving), 0 after an error. Sections do not nest. */
unsigned state_begin(struct state *state, const char *section, unsigned instance, unsigned version);
void state_end(struct state *state);
/* Loading: is that section in the stream? (Optional devices.) */
bool state_has(struct state *state, const char *section, unsigned instance);

void state_bool(struct state *state, const char *field, bool *value);
void state_u8(struct state *state, const char *field, uint8_t *value);
void state_u16(struct state *state, const char *field, uint16_t *value);
void state_u32(struct state *state, const char *field, uint32_t *value);
void state_u64(struct state *state, const char *field, uint64_t *value);
void state_u8_array(struct state *state, const char *field, uint8_t *values, size_t count);
void state_u16_array(struct state *state, const char *field, uint16_t *values, size_t count);
void state_u32_array(struct state *state, const char *field, uint32_t *values, size_t count);
void state_u64_array(struct state *state, const char *field, uint64_t *values, size_t count);
