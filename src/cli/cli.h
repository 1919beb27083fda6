/* ring3's own command line. */
#pragma once

/* Runs the command that argv names; returns the process's exit status (0 done, 1 run-time failure, 2 usage, 3 guest
 * crashed). */
int cli_main(int argc, char **argv);
