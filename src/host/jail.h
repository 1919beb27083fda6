/*
 * Child processes that parse what nobody trusts: one has one socket and memory and nothing else, one also the network.
 */
#pragma once

/*
 * In a child after fork(): closes all descriptors but `socket`, limits processor time and memory, and gives up every system call but those
 * that move bytes through sockets, manage private memory, and exit; any other kills the process (SIGSYS). `socket` becomes descriptor 0. 0, or
 * -errno: the child must not go on. `seconds` of processor time; at their end it is killed (SIGKILL).
 */
int jail_enter(int socket, unsigned seconds);
/*
 * In a process with its descriptors as they shall be: no files but the host's list of name servers (where the kernel has Landlock), no
 * sockets but IP's, no processes, no memory that can be executed; else SIGSYS kills it. 0 or -errno.
 */
int jail_enter_network(void);
