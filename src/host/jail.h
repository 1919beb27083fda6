/*
 * A child process that parses what nobody trusts: it has one socket and memory, and nothing else.
 */
#pragma once

/*
 * In a child after fork(): closes all descriptors but `socket`, limits processor time and memory, and gives up every system call but those
 * that move bytes through sockets, manage private memory, and exit; any other kills the process (SIGSYS). `socket` becomes descriptor 0. 0, or
 * -errno: the child must not go on. `seconds` of processor time; at their end it is killed (SIGKILL).
 */
int jail_enter(int socket, unsigned seconds);
