/* Framing: $contents#checksum, acknowledgements, escapes (GDB manual, "Remote Protocol", Overview). */
#include "debug/gdb_session.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INTERRUPT 0x03

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool gdb_parse_hex(const char *text, void *data, size_t length)
{
	uint8_t *bytes = data;

	for (size_t i = 0; i < length; i++) {
		int high = hex_digit(text[2 * i]);
		int low = high < 0 ? -1 : hex_digit(text[2 * i + 1]);
		if (low < 0)
			return false;
		bytes[i] = (uint8_t)(high << 4 | low);
	}
	return true;
}

bool gdb_parse_number(const char **text, uint64_t *value)
{
	unsigned digits = 0;

	*value = 0;
	for (int digit; (digit = hex_digit(**text)) >= 0; (*text)++) {
		if (*value >> 60)
			return false;
		*value = *value << 4 | (unsigned)digit;
		digits++;
	}
	return digits > 0;
}

static void output(struct gdb_session *session, const char *data, size_t length)
{
	if (session->output_capacity - session->output_length < length) {
		size_t capacity = 2 * (session->output_length + length);
		char *bigger = realloc(session->output, capacity);
		if (!bigger) {
			session->failed = true;
			return;
		}
		session->output = bigger;
		session->output_capacity = capacity;
	}
	memcpy(session->output + session->output_length, data, length);
	session->output_length += length;
}

void gdb_reply_bytes(struct gdb_session *session, const void *data, size_t length)
{
	size_t room = sizeof(session->reply) - session->reply_length;

	if (length > room)
		length = room;
	memcpy(session->reply + session->reply_length, data, length);
	session->reply_length += length;
}

void gdb_reply(struct gdb_session *session, const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (length > (int)sizeof(text) - 1)
		length = sizeof(text) - 1;
	if (length > 0)
		gdb_reply_bytes(session, text, (size_t)length);
}

void gdb_reply_hex(struct gdb_session *session, const void *data, size_t length)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *bytes = data;

	for (size_t i = 0; i < length; i++) {
		char pair[2] = {digits[bytes[i] >> 4], digits[bytes[i] & 15]};
		gdb_reply_bytes(session, pair, 2);
	}
}

void gdb_reply_send(struct gdb_session *session)
{
	char chunk[1024], end[4];
	size_t used = 0;
	uint8_t sum = 0;

	chunk[used++] = '$';
	for (size_t i = 0; i < session->reply_length; i++) {
		char c = session->reply[i];
		if (c == '$' || c == '#' || c == '}' || c == '*') {
			chunk[used++] = '}';
			sum += '}';
			c ^= 0x20;
		}
		chunk[used++] = c;
		sum += (uint8_t)c;
		if (used > sizeof(chunk) - 2) {
			output(session, chunk, used);
			used = 0;
		}
	}
	output(session, chunk, used);
	snprintf(end, sizeof(end), "#%02x", sum);
	output(session, end, 3);
	session->reply_length = 0;
}

static void packet_complete(struct gdb_session *session)
{
	if (session->checksum != session->checksum_sent || session->packet_too_long) {
		/* Without acknowledgements nobody would send it again: it is answered as unknown. */
		if (!session->no_ack)
			output(session, "-", 1);
		else
			gdb_reply_send(session);
		return;
	}
	if (!session->no_ack)
		output(session, "+", 1);
	session->packet[session->packet_length] = 0;
	gdb_command(session);
}

static void packet_byte(struct gdb_session *session, char c)
{
	if (session->packet_length < GDB_PACKET_MAX)
		session->packet[session->packet_length++] = c;
	else
		session->packet_too_long = true;
}

static void packet_begin(struct gdb_session *session)
{
	session->packet_length = 0;
	session->packet_too_long = false;
	session->checksum = 0;
	session->input = GDB_DATA;
}

static void input_byte(struct gdb_session *session, char c)
{
	int digit = hex_digit(c);

	switch (session->input) {
	case GDB_IDLE:
		if (c == '$')
			packet_begin(session);
		if (session->running && (c == '$' || c == INTERRUPT))
			gdb_session_interrupt(session);
		break; /* '+', '-' and noise: a stream socket loses nothing, so there is nothing to send again */
	case GDB_DATA:
		if (c == '#') {
			session->input = GDB_CHECKSUM1;
			break;
		}
		if (c == '$') { /* a packet that was broken off */
			packet_begin(session);
			break;
		}
		session->checksum += (uint8_t)c;
		if (c == '}')
			session->input = GDB_ESCAPE;
		else
			packet_byte(session, c);
		break;
	case GDB_ESCAPE:
		session->checksum += (uint8_t)c;
		packet_byte(session, c ^ 0x20);
		session->input = GDB_DATA;
		break;
	case GDB_CHECKSUM1:
		session->checksum_sent = digit < 0 ? (uint8_t)~session->checksum : (uint8_t)(digit << 4);
		session->input = GDB_CHECKSUM2;
		break;
	case GDB_CHECKSUM2:
		session->checksum_sent =
		    digit < 0 ? (uint8_t)~session->checksum : (uint8_t)(session->checksum_sent | digit);
		session->input = GDB_IDLE;
		packet_complete(session);
		break;
	}
}

void gdb_session_input(struct gdb_session *session, const void *data, size_t length)
{
	for (size_t i = 0; i < length && !session->detached && !session->failed; i++)
		input_byte(session, ((const char *)data)[i]);
}

struct gdb_session *gdb_session_create(struct machine *machine, bool *release)
{
	struct gdb_session *session = calloc(1, sizeof(*session));

	if (!session)
		return NULL;
	session->machine = machine;
	session->release = release;
	machine_pause(machine);
	session->holds = 1;
	snprintf(session->stop_reply, sizeof(session->stop_reply), "T05thread:1;");
	return session;
}

void gdb_session_destroy(struct gdb_session *session)
{
	if (!session)
		return;
	machine_pause(session->machine);
	session->breakpoint_count = 0;
	gdb_install_breakpoints(session);
	machine_resume(session->machine);
	for (; session->holds > 0; session->holds--)
		machine_resume(session->machine);
	free(session->output);
	free(session);
}
