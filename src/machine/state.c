/*
 * The stream, little-endian:
 *
 *	"ring3st\n"  u32 format = 1  u32 zero
 *	section*:    u8 'S'  name  u32 instance  u32 version  u64 length of the fields  field*
 *	field:       name  u8 type  u32 count  count elements
 *	end:         u8 'E'  u64 checksum of everything before it
 *	name:        u8 length (1-255)  that many bytes
 *
 * A stream is walked once, whole, before anything is taken from it; look-ups later rely on the structure being sound.
 * The checksum is against accidents (bit flips, truncation), not against an attacker: that is what the bounds are for.
 */
#include "machine/state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#define STATE_FORMAT  1
#define HEADER_LENGTH 16
#define END_LENGTH    9

static const uint8_t magic[8] = "ring3st\n";

enum field_type { FIELD_U8 = 1, FIELD_U16 = 2, FIELD_U32 = 4, FIELD_U64 = 8, FIELD_BOOL = 0x11 };

struct state {
	bool loading;
	bool finished; /* saving: the end is written */
	bool in_section;
	char section[64]; /* current or last one with its instance, for messages */
	char error[256];  /* empty: none so far */

	uint8_t *buffer; /* saving */
	size_t capacity;
	size_t section_start; /* saving: of the current section's fields */

	/* Where the sections are: a hash table of offsets, 0 for an empty place, at most half full. Seeded, so that no
	 * stream can be made to collide. */
	size_t *index;
	size_t index_size; /* a power of two */
	size_t section_count;
	uint64_t index_seed;

	const uint8_t *data; /* loading: the stream; saving: buffer */
	size_t length;
	size_t fields, fields_end; /* loading: of the current section */
	size_t next_field;         /* loading: where to look first */
};

struct section_header {
	const uint8_t *name;
	unsigned name_length;
	uint32_t instance, version;
	size_t fields, fields_end;
};

struct field_header {
	const uint8_t *name;
	unsigned name_length;
	uint8_t type;
	uint32_t count;
	size_t values, end;
};

static void fail(struct state *state, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void fail(struct state *state, const char *format, ...)
{
	int prefix = 0;

	if (state->error[0])
		return;
	if (state->section[0])
		prefix = snprintf(state->error, sizeof(state->error), "%s: ", state->section);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(state->error + prefix, sizeof(state->error) - (size_t)prefix, format, arguments);
	va_end(arguments);
}

/* Four independent lanes, each step a bijection of the word it takes: no change within one word goes unseen. */
static uint64_t checksum(const uint8_t *data, size_t length)
{
	static const uint64_t multiplier[4] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0xd6e8feb86659fd93,
	                                       0xa0761d6478bd642f};
	uint64_t lane[4] = {length, 1, 2, 3}, sum = 0;
	size_t at = 0;

	for (; length - at >= 32; at += 32) {
		uint64_t word[4];
		memcpy(word, data + at, 32);
		for (unsigned i = 0; i < 4; i++) {
			lane[i] = (lane[i] ^ word[i]) * multiplier[i];
			lane[i] = lane[i] << 29 | lane[i] >> 35;
		}
	}
	for (; at < length; at++) {
		lane[at & 3] = (lane[at & 3] ^ data[at]) * multiplier[at & 3];
		lane[at & 3] = lane[at & 3] << 29 | lane[at & 3] >> 35;
	}
	for (unsigned i = 0; i < 4; i++) {
		sum = (sum ^ lane[i]) * multiplier[i];
		sum ^= sum >> 32;
	}
	return sum;
}

static uint32_t get_u32(const uint8_t *data)
{
	uint32_t value;
	memcpy(&value, data, sizeof(value));
	return value;
}

static uint64_t get_u64(const uint8_t *data)
{
	uint64_t value;
	memcpy(&value, data, sizeof(value));
	return value;
}

/* Reads the section header at `at`; everything must lie before `end`. */
static bool section_parse(const struct state *state, size_t at, size_t end, struct section_header *section)
{
	if (end - at < 2 || state->data[at] != 'S')
		return false;
	section->name_length = state->data[at + 1];
	at += 2;
	if (section->name_length == 0 || end - at < section->name_length + 16u)
		return false;
	section->name = state->data + at;
	at += section->name_length;
	section->instance = get_u32(state->data + at);
	section->version = get_u32(state->data + at + 4);
	uint64_t length = get_u64(state->data + at + 8);
	at += 16;
	if (length > end - at)
		return false;
	section->fields = at;
	section->fields_end = at + length;
	return true;
}

static bool field_parse(const struct state *state, size_t at, size_t end, struct field_header *field)
{
	if (end - at < 1)
		return false;
	field->name_length = state->data[at++];
	if (field->name_length == 0 || end - at < field->name_length + 5u)
		return false;
	field->name = state->data + at;
	at += field->name_length;
	field->type = state->data[at];
	field->count = get_u32(state->data + at + 1);
	at += 5;
	if (field->type != FIELD_U8 && field->type != FIELD_U16 && field->type != FIELD_U32 &&
	    field->type != FIELD_U64 && field->type != FIELD_BOOL)
		return false;
	uint64_t length = (uint64_t)field->count * (field->type & 0xf);
	if (length > end - at)
		return false;
	field->values = at;
	field->end = at + length;
	return true;
}

static bool name_is(const uint8_t *name, unsigned length, const char *wanted)
{
	return strlen(wanted) == length && memcmp(name, wanted, length) == 0;
}

/* The end of the last section: where 'E' stands, or will stand. */
static size_t sections_end(const struct state *state)
{
	return state->loading ? state->length - END_LENGTH : state->length;
}

static uint64_t section_hash(const struct state *state, const uint8_t *name, size_t length, uint32_t instance)
{
	uint64_t hash = state->index_seed ^ instance;

	for (size_t i = 0; i < length; i++) {
		hash = (hash ^ name[i]) * 0x9e3779b97f4a7c15;
		hash ^= hash >> 29;
	}
	hash *= 0xd6e8feb86659fd93;
	return hash ^ hash >> 32;
}

/* The section's place in the index, or the empty place where it would go. */
static size_t *index_place(const struct state *state, const uint8_t *name, size_t length, uint32_t instance,
                           struct section_header *section)
{
	size_t at = section_hash(state, name, length, instance);

	for (;; at++) {
		size_t *place = &state->index[at & (state->index_size - 1)];
		if (*place == 0)
			return place;
		section_parse(state, *place, sections_end(state), section);
		if (section->instance == instance && section->name_length == length &&
		    !memcmp(section->name, name, length))
			return place;
	}
}

static bool section_find(const struct state *state, const char *name, unsigned instance, struct section_header *section)
{
	return state->index && *index_place(state, (const uint8_t *)name, strlen(name), instance, section) != 0;
}

/* Makes room for one more. False: out of memory. */
static bool index_grow(struct state *state)
{
	struct section_header section = {0}, other;
	size_t old_size = state->index_size, *old = state->index;

	if (state->section_count < old_size / 2)
		return true;
	size_t size = old_size ? 2 * old_size : 64;
	size_t *index = calloc(size, sizeof(*index));
	if (!index)
		return false;
	state->index = index;
	state->index_size = size;
	for (size_t i = 0; i < old_size; i++) {
		if (old[i] == 0)
			continue;
		section_parse(state, old[i], sections_end(state), &section);
		*index_place(state, section.name, section.name_length, section.instance, &other) = old[i];
	}
	free(old);
	return true;
}

/* Loading, the stream is sound: NULL, or what is wrong with its sections. */
static const char *index_build(struct state *state)
{
	struct section_header section = {0}, other;
	size_t end = sections_end(state);

	for (size_t at = HEADER_LENGTH; at < end; at = section.fields_end) {
		if (!index_grow(state))
			return "out of memory";
		section_parse(state, at, end, &section);
		size_t *place = index_place(state, section.name, section.name_length, section.instance, &other);
		if (*place)
			return "damaged (a section twice)";
		*place = at;
		state->section_count++;
	}
	return NULL;
}

static bool field_find(const struct state *state, const char *name, size_t start, size_t from, size_t end,
                       struct field_header *field)
{
	for (int pass = 0; pass < 2; pass++) {
		size_t stop = pass == 0 ? end : from;
		for (size_t at = pass == 0 ? from : start; at < stop; at = field->end) {
			if (!field_parse(state, at, end, field))
				return false;
			if (name_is(field->name, field->name_length, name))
				return true;
		}
	}
	return false;
}

/* Walks the whole stream: after this, section_parse and field_parse cannot fail on it. */
static const char *stream_check(const struct state *state)
{
	struct section_header section;
	struct field_header field;

	if (state->length < sizeof(magic) || memcmp(state->data, magic, sizeof(magic)) != 0)
		return "not a saved state (bad magic)";
	if (state->length < HEADER_LENGTH + END_LENGTH)
		return "truncated";
	if (get_u32(state->data + 8) != STATE_FORMAT || get_u32(state->data + 12) != 0)
		return "saved in a format that this version does not know";
	size_t end = state->length - END_LENGTH;
	if (state->data[end] != 'E')
		return "truncated or damaged (no end mark)";
	if (get_u64(state->data + end + 1) != checksum(state->data, end + 1))
		return "damaged (checksum)";
	for (size_t at = HEADER_LENGTH; at < end; at = section.fields_end) {
		if (!section_parse(state, at, end, &section))
			return "damaged (section header)";
		for (size_t f = section.fields; f < section.fields_end; f = field.end)
			if (!field_parse(state, f, section.fields_end, &field))
				return "damaged (field header)";
	}
	return NULL;
}

static bool reserve(struct state *state, size_t more)
{
	if (state->capacity - state->length >= more)
		return true;
	size_t capacity = state->capacity * 2;
	while (capacity - state->length < more) {
		if (capacity > SIZE_MAX / 2) {
			fail(state, "out of memory");
			return false;
		}
		capacity *= 2;
	}
	uint8_t *buffer = realloc(state->buffer, capacity);
	if (!buffer) {
		fail(state, "out of memory");
		return false;
	}
	state->buffer = buffer;
	state->data = buffer;
	state->capacity = capacity;
	return true;
}

/* The caller has reserved the room. */
static void put(struct state *state, const void *data, size_t length)
{
	memcpy(state->buffer + state->length, data, length);
	state->length += length;
}

static void put_u8(struct state *state, uint8_t value)
{
	put(state, &value, sizeof(value));
}

static void put_u32(struct state *state, uint32_t value)
{
	put(state, &value, sizeof(value));
}

static void put_u64(struct state *state, uint64_t value)
{
	put(state, &value, sizeof(value));
}

struct state *state_save_begin(void)
{
	struct state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	state->capacity = 4096;
	state->buffer = malloc(state->capacity);
	if (!state->buffer) {
		free(state);
		return NULL;
	}
	state->data = state->buffer;
	state->index_seed = __rdtsc() ^ (uintptr_t)state;
	put(state, magic, sizeof(magic));
	put_u32(state, STATE_FORMAT);
	put_u32(state, 0);
	return state;
}

const void *state_save_data(struct state *state, size_t *length)
{
	*length = 0;
	if (state->loading)
		fail(state, "data asked from a state that loads");
	if (state->in_section)
		fail(state, "section not ended");
	if (state->error[0])
		return NULL;
	if (!state->finished) {
		if (!reserve(state, END_LENGTH))
			return NULL;
		put_u8(state, 'E');
		put_u64(state, checksum(state->buffer, state->length));
		state->finished = true;
	}
	*length = state->length;
	return state->buffer;
}

struct state *state_load_begin(const void *data, size_t length)
{
	struct state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	state->loading = true;
	state->data = data;
	state->length = length;
	state->index_seed = __rdtsc() ^ (uintptr_t)state;
	const char *why = stream_check(state);
	if (!why)
		why = index_build(state);
	if (why)
		fail(state, "%s", why);
	return state;
}

void state_free(struct state *state)
{
	if (!state)
		return;
	free(state->index);
	free(state->buffer);
	free(state);
}

bool state_loading(const struct state *state)
{
	return state->loading;
}

const char *state_error(const struct state *state)
{
	return state->error[0] ? state->error : NULL;
}

void state_fail(struct state *state, const char *what)
{
	fail(state, "%s", what);
}

static unsigned save_begin(struct state *state, const char *name, unsigned instance, unsigned version)
{
	struct section_header section;
	size_t name_length = strlen(name);

	if (state->finished || version == 0 || name_length == 0 || name_length > 255) {
		fail(state, "misused: name, version 0, or section after the end");
		return 0;
	}
	if (section_find(state, name, instance, &section)) {
		fail(state, "section saved twice");
		return 0;
	}
	if (!index_grow(state)) {
		fail(state, "out of memory");
		return 0;
	}
	if (!reserve(state, 2 + name_length + 16))
		return 0;
	*index_place(state, (const uint8_t *)name, name_length, instance, &section) = state->length;
	state->section_count++;
	put_u8(state, 'S');
	put_u8(state, (uint8_t)name_length);
	put(state, name, name_length);
	put_u32(state, instance);
	put_u32(state, version);
	put_u64(state, 0); /* the length, filled in by state_end() */
	state->section_start = state->length;
	return version;
}

static unsigned load_begin(struct state *state, const char *name, unsigned instance, unsigned version)
{
	struct section_header section;

	if (!section_find(state, name, instance, &section)) {
		fail(state, "section missing");
		return 0;
	}
	if (section.version == 0 || section.version > version) {
		fail(state, "saved as version %u, known is %u", section.version, version);
		return 0;
	}
	state->fields = state->next_field = section.fields;
	state->fields_end = section.fields_end;
	return section.version;
}

unsigned state_begin(struct state *state, const char *section, unsigned instance, unsigned version)
{
	if (state->error[0])
		return 0;
	if (state->in_section) {
		fail(state, "section %s begins inside", section);
		return 0;
	}
	snprintf(state->section, sizeof(state->section), "%s.%u", section, instance);
	unsigned found = state->loading ? load_begin(state, section, instance, version)
	                                : save_begin(state, section, instance, version);
	state->in_section = found != 0;
	return found;
}

void state_end(struct state *state)
{
	if (state->error[0])
		return;
	if (!state->in_section) {
		fail(state, "section ended twice");
		return;
	}
	if (!state->loading) {
		uint64_t length = state->length - state->section_start;
		memcpy(state->buffer + state->section_start - 8, &length, sizeof(length));
	}
	state->in_section = false;
	state->section[0] = 0;
}

bool state_has(struct state *state, const char *section, unsigned instance)
{
	struct section_header header;

	return !state->error[0] && section_find(state, section, instance, &header);
}

static void save_field(struct state *state, const char *name, uint8_t type, const void *values, size_t count)
{
	struct field_header field;
	size_t name_length = strlen(name), size = type & 0xf;

	if (name_length == 0 || name_length > 255 || count > UINT32_MAX) {
		fail(state, "field %.64s misused: name or count", name);
		return;
	}
	if (field_find(state, name, state->section_start, state->section_start, state->length, &field)) {
		fail(state, "field %s saved twice", name);
		return;
	}
	if (!reserve(state, 1 + name_length + 5 + count * size))
		return;
	put_u8(state, (uint8_t)name_length);
	put(state, name, name_length);
	put_u8(state, type);
	put_u32(state, (uint32_t)count);
	if (count > 0)
		put(state, values, count * size);
}

static void load_field(struct state *state, const char *name, uint8_t type, void *values, size_t count)
{
	struct field_header field;

	if (!field_find(state, name, state->fields, state->next_field, state->fields_end, &field)) {
		fail(state, "field %s missing", name);
		return;
	}
	if (field.type != type || field.count != count) {
		fail(state, "field %s has another type or size", name);
		return;
	}
	if (type == FIELD_BOOL) {
		for (size_t i = 0; i < count; i++) {
			if (state->data[field.values + i] > 1) {
				fail(state, "field %s is neither true nor false", name);
				return;
			}
		}
	}
	if (count > 0)
		memcpy(values, state->data + field.values, field.end - field.values);
	state->next_field = field.end;
}

static void state_field(struct state *state, const char *name, uint8_t type, void *values, size_t count)
{
	if (state->error[0])
		return;
	if (!state->in_section)
		fail(state, "field %s outside of a section", name);
	else if (state->loading)
		load_field(state, name, type, values, count);
	else
		save_field(state, name, type, values, count);
}

void state_bool(struct state *state, const char *field, bool *value)
{
	uint8_t byte = *value;

	state_field(state, field, FIELD_BOOL, &byte, 1);
	if (state->loading)
		*value = byte;
}

void state_u8(struct state *state, const char *field, uint8_t *value)
{
	state_field(state, field, FIELD_U8, value, 1);
}

void state_u16(struct state *state, const char *field, uint16_t *value)
{
	state_field(state, field, FIELD_U16, value, 1);
}

void state_u32(struct state *state, const char *field, uint32_t *value)
{
	state_field(state, field, FIELD_U32, value, 1);
}

void state_u64(struct state *state, const char *field, uint64_t *value)
{
	state_field(state, field, FIELD_U64, value, 1);
}

void state_u8_array(struct state *state, const char *field, uint8_t *values, size_t count)
{
	state_field(state, field, FIELD_U8, values, count);
}

void state_u16_array(struct state *state, const char *field, uint16_t *values, size_t count)
{
	state_field(state, field, FIELD_U16, values, count);
}

void state_u32_array(struct state *state, const char *field, uint32_t *values, size_t count)
{
	state_field(state, field, FIELD_U32, values, count);
}

void state_u64_array(struct state *state, const char *field, uint64_t *values, size_t count)
{
	state_field(state, field, FIELD_U64, values, count);
}
