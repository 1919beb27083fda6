#include "debug/trace.h"

#include <stdarg.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "machine/clock.h"

static const char *const names[TRACE_POINT_COUNT] = {
#define X(id, name, help) [TRACE_##id] = name,
    TRACE_POINTS(X)
#undef X
};

bool trace_parse(const char *list, uint32_t *mask, char *unknown)
{
	uint32_t found = 0;

	for (;;) {
		size_t length = strcspn(list, ",");
		unsigned point = 0;
		while (point < TRACE_POINT_COUNT &&
		       !(strlen(names[point]) == length && !memcmp(names[point], list, length)))
			point++;
		if (point < TRACE_POINT_COUNT) {
			found |= 1u << point;
		} else if (length == 3 && !memcmp(list, "all", 3)) {
			found |= (1u << TRACE_POINT_COUNT) - 1;
		} else {
			snprintf(unknown, 64, "%.*s", length < 63 ? (int)length : 63, list);
			return false;
		}
		if (!list[length])
			break;
		list += length + 1;
	}
	*mask = found | 1u << TRACE_UNKNOWN;
	return true;
}

void trace_write(struct trace *trace, enum trace_point point, int vcpu, const char *format, ...)
{
	FILE *file = trace->file ? trace->file : stderr;
	char line[1024];
	size_t length = 0, room = sizeof(line) - 2;
	struct termios terminal;

	/* The line is put together first and written at once: threads do not mix theirs. */
	if (trace->clock) {
		uint64_t now = clock_now(trace->clock);
		length += (size_t)snprintf(line, room, "[%5llu.%06llu] ", (unsigned long long)(now / 1000000000),
		                           (unsigned long long)(now % 1000000000 / 1000));
	}
	if (vcpu >= 0)
		length += (size_t)snprintf(line + length, room - length, "cpu%d ", vcpu);
	length += (size_t)snprintf(line + length, room - length, "%s: ", names[point]);
	va_list arguments;
	va_start(arguments, format);
	int more = vsnprintf(line + length, room - length, format, arguments);
	va_end(arguments);
	if (more > 0)
		length += (size_t)more < room - length ? (size_t)more : room - length - 1;
	if (!trace->file && tcgetattr(STDERR_FILENO, &terminal) == 0 && !(terminal.c_oflag & OPOST))
		line[length++] = '\r'; /* the console has the terminal in raw mode */
	line[length++] = '\n';
	fwrite(line, 1, length, file);
}
