/*
 * What ring3 says to the person who started it: one line on stderr, "ring3: what, where, what to do".
 */
#pragma once

#include <stdarg.h>

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
