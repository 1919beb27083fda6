/* Private to src/cli: the commands, and what they share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_USAGE = 2, STATUS_CRASHED = 3 };

/* `argv[0]` is the command's name. Returns the exit status. */
int run_main(int argc, char **argv);
int image_main(int argc, char **argv);

struct machine_options;
/* --disk; keeps parts of `argument`. STATUS_OK or STATUS_USAGE. */
int take_disk_option(struct machine_options *options, char *argument);

/* "512M", "4096k", "1G" or plain bytes. False: not a number, or too large. */
bool parse_size(const char *text, uint64_t *bytes);
/* A plain decimal number within limits. */
bool parse_number(const char *text, unsigned lowest, unsigned highest, unsigned *number);
/* One line on stderr that ends with where to find help; returns STATUS_USAGE. */
int usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* STATUS_OK, or STATUS_FAILED (said on stderr) when stdout did not take what was printed. */
int finish_stdout(void);
