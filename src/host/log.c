#include "host/log.h"

#include <stdio.h>
#include <termios.h>
#include <unistd.h>

/* One write, so that lines of several threads stay whole. A terminal in raw mode needs the carriage return. */
static void log_line(const char *prefix, const char *format, va_list arguments)
{
	char line[1024];
	struct termios terminal;
	int length = snprintf(line, sizeof(line), "ring3: %s", prefix);
	int more = vsnprintf(line + length, sizeof(line) - 2 - (size_t)length, format, arguments);

	if (more > 0)
		length += more;
	if (length > (int)sizeof(line) - 3)
		length = (int)sizeof(line) - 3;
	if (tcgetattr(STDERR_FILENO, &terminal) == 0 && !(terminal.c_oflag & OPOST))
		line[length++] = '\r';
	line[length++] = '\n';
	/* Nobody is left to hear that stderr is closed. */
	ssize_t written = write(STDERR_FILENO, line, (size_t)length);
	(void)written;
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
