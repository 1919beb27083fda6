/*
 * One client's conversation with the gdb stub, without the socket: bytes in, bytes out. Private to src/debug and its
 * tests.
 *
 * gdb_session.c takes packets apart and puts replies together, gdb_commands.c answers them, gdb_registers.c knows the
 * registers, gdb_monitor.c has gdb's "monitor" commands. What a client sends is bounded and checked here, although its
 * owner may do what he likes with the guest.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/machine.h"

#define GDB_PACKET_MAX      0x4000 /* bytes of a packet's contents, either way, before escaping */
#define GDB_WATCHPOINTS_MAX 16
#define GDB_BREAKPOINTS_MAX 64

struct gdb_breakpoint {
	uint64_t address, length;
	char kind; /* '0' to '4', as in the Z packets */
};

struct gdb_session {
	struct machine *machine;
	bool no_ack;
	bool running;   /* a resume packet has no stop reply yet */
	bool detached;  /* the client has said good-bye: close the connection */
	unsigned holds; /* machine_pause()s that are ours to give back */
	bool *release;  /* options.stopped: the first resume lets the machine go from that, too. NULL: never */

	unsigned register_thread; /* vCPU index of Hg */
	unsigned stop_thread;     /* who stopped last; default of c and s */
	char stop_reply[256];

	struct gdb_breakpoint breakpoint[GDB_BREAKPOINTS_MAX + GDB_WATCHPOINTS_MAX];
	unsigned breakpoint_count;

	/* The packet coming in. */
	enum { GDB_IDLE, GDB_DATA, GDB_ESCAPE, GDB_CHECKSUM1, GDB_CHECKSUM2 } input;
	char packet[GDB_PACKET_MAX + 1]; /* ends with a 0 */
	size_t packet_length;
	bool packet_too_long;
	uint8_t checksum, checksum_sent;

	/* The packet going out, before framing. */
	char reply[2 * GDB_PACKET_MAX + 64];
	size_t reply_length;

	/* Framed bytes for the socket. */
	char *output;
	size_t output_length, output_capacity;
	bool failed; /* out of memory: close the connection */
};

/* The machine is being stopped by this: its hold is taken before the first packet. NULL: out of memory. */
struct gdb_session *gdb_session_create(struct machine *machine, bool *release);
/* Removes the client's breakpoints and lets the machine go on. */
void gdb_session_destroy(struct gdb_session *session);
void gdb_session_input(struct gdb_session *session, const void *data, size_t length);

/*
 * vCPUs have stopped by themselves (event loop's thread, all stand): `count` of them, each with a hold that is the
 * session's now. The first that is worth it is reported.
 */
void gdb_session_stopped(struct gdb_session *session, struct vcpu *const *vcpu, unsigned count);
/* Ctrl-C, or a packet that comes while the machine runs. */
void gdb_session_interrupt(struct gdb_session *session);
/* The machine has ended. */
void gdb_session_exited(struct gdb_session *session, unsigned status);

/* Building the reply; what does not fit is left out (callers bound their lengths). */
void gdb_reply_bytes(struct gdb_session *session, const void *data, size_t length);
void gdb_reply(struct gdb_session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));
void gdb_reply_hex(struct gdb_session *session, const void *data, size_t length);
/* Frames and sends what has been built, also when that is nothing. */
void gdb_reply_send(struct gdb_session *session);

/* Two hexadecimal digits per byte; false when there are not `length` of them. */
bool gdb_parse_hex(const char *text, void *data, size_t length);
/* A hexadecimal number of at most 16 digits at *text, which is moved behind it. False: there is none. */
bool gdb_parse_number(const char **text, uint64_t *value);

/* gdb_commands.c: answers session->packet. */
void gdb_command(struct gdb_session *session);
/* Gives all holds back; the machine runs. */
void gdb_release(struct gdb_session *session);
/* Copies the session's breakpoints to every vCPU. The machine stands. */
void gdb_install_breakpoints(struct gdb_session *session);

/* gdb_monitor.c: `command` is what the user typed. Sends its output and the final OK. */
void gdb_monitor(struct gdb_session *session, const char *command);

/* gdb_registers.c. */
#define GDB_REGISTER_MAX 16 /* bytes of the longest */
unsigned gdb_register_count(void);
/* The size in bytes; 0: no such register. `value` in guest byte order. */
unsigned gdb_register_read(struct vcpu *vcpu, unsigned number, uint8_t value[GDB_REGISTER_MAX]);
unsigned gdb_register_size(unsigned number);
/* False: there is no such register, or it cannot be set (to that). */
bool gdb_register_write(struct vcpu *vcpu, unsigned number, const uint8_t *value);
/* The whole target.xml; the caller frees. NULL: out of memory. */
char *gdb_target_description(size_t *length);
