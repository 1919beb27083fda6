/*
 * GDB's remote serial protocol (--gdb), so that a stock `gdb vmlinux` debugs the guest: every vCPU is a thread, all
 * stop and go together.
 *
 *	gdb vmlinux -ex 'target remote /tmp/gdb.sock'        (unix:/tmp/gdb.sock)
 *	gdb vmlinux -ex 'target remote localhost:1234'       (tcp:localhost:1234)
 *
 * All of it runs on the machine's event loop thread, but for the note that a vCPU thread leaves when it stops. One
 * client at a time; the machine stops when it connects, and goes on when it detaches or its connection ends, without its
 * breakpoints. A machine made with options.stopped waits until the first client lets it go.
 *
 * Stepping is by machine_step(): the other vCPUs and the clock stand still, so that a step does not end in the timer's
 * handler.
 */
#pragma once

struct gdbstub;
struct machine;

/* `specification`: unix:PATH or tcp:HOST:PORT (no HOST: localhost). It listens from now on. NULL after one logged line.
 */
struct gdbstub *gdbstub_create(const char *specification);
/* After machine_create(), before machine_run(). 0 or -errno after one logged line. */
int gdbstub_attach(struct gdbstub *stub, struct machine *machine);
/* Tells the client that the machine is gone. After machine_run() has returned, before machine_destroy(). */
void gdbstub_destroy(struct gdbstub *stub);
