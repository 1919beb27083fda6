#include "host/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* One write, so that lines of several threads stay whole. A terminal in raw mode needs the carriage return. */
static void log_line(const char *prefix, const char *format, va_list arguments)
{
	char usual[1024], *line = usual;
	size_t size = sizeof(usual), length;
	struct termios terminal;
	va_list again;

	va_copy(again, arguments);
	length = (size_t)snprintf(line, size, "ring3: %s", prefix);
	int more = vsnprintf(line + length, size - length, format, arguments);
	size_t wanted = length + (more > 0 ? (size_t)more : 0) + 3; /* with the line's end */
	if (wanted > size && (line = malloc(wanted))) {             /* a report of many lines */
		memcpy(line, usual, length);
		vsnprintf(line + length, wanted - length, format, again);
		size = wanted;
	} else if (!line) {
		line = usual;
	}
	va_end(again);
	length = (wanted < size ? wanted : size) - 3;
	if (tcgetattr(STDERR_FILENO, &terminal) == 0 && !(terminal.c_oflag & OPOST))
		line[length++] = '\r';
	line[length++] = '\n';
	/* Nobody is left to hear that stderr is closed. */
	ssize_t written = write(STDERR_FILENO, line, length);
	(void)written;
	if (line != usual)
		free(line);
}

void log_error(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_line("", format, arguments);
	va_end(arguments);
}

void log_warning(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_line("warning: ", format, arguments);
	va_end(arguments);
}

void log_info(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_line("", format, arguments);
	va_end(arguments);
}
