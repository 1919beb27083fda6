/*
 * Character back ends: what a serial port is connected to on the host (stdio, pty, UNIX socket, file, nothing).
 *
 * Output: chardev_write() never blocks: a thread of the back end writes what it took, and it takes no more than a
 * bound; it returns how much it took. While nobody is connected (pty, unix) it takes everything and keeps the newest
 * for whoever connects. Input: `receive` is called on the event loop's thread with the device lock held; it takes no
 * more than `can_receive` said; the rest stays with the host.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chardev;
struct event_loop;

struct chardev_client {
	size_t (*can_receive)(void *owner);
	void (*receive)(void *owner, const uint8_t *data, size_t length);
	void (*writable)(void *owner); /* output that was refused may be tried again; may be NULL */
	void *owner;
	void (*receive_break)(void *owner); /* the user sent a break; may be NULL */
};

/* Is that how one of them is spelled? What it names need not exist. */
bool chardev_known(const char *specification);
/*
 * `specification`: stdio, none, pty, unix:PATH (listens), file:PATH. NULL after one logged line. stdio puts a terminal
 * into raw mode until chardev_destroy() (also on fatal signals); Ctrl-a x calls `quit`, Ctrl-a h prints help, Ctrl-a b
 * sends a break, Ctrl-a Ctrl-a one Ctrl-a. No terminal: plain bytes, and end of input is not the end of the machine.
 */
struct chardev *chardev_create(const char *specification, void (*quit)(void *owner), void *quit_owner);
void chardev_destroy(
    struct chardev *chardev); /* detaches; writes out what is left, but does not wait long for a reader that stands */
/* Starts input and output through the loop; lock/unlock are called around the client's functions. */
int chardev_attach(struct chardev *chardev, struct event_loop *loop, void (*lock)(void *), void (*unlock)(void *),
                   void *lock_owner);
/*
 * Ends what chardev_attach() began: no client function is called any more. Before the loop is destroyed, with the loop
 * not running and without the device lock. Output is still taken.
 */
void chardev_detach(struct chardev *chardev);
/* Device side, with the device lock held. */
void chardev_connect(struct chardev *chardev, const struct chardev_client *client);
size_t chardev_write(struct chardev *chardev, const uint8_t *data, size_t length);
/* The client's can_receive() has grown. */
void chardev_accept_input(struct chardev *chardev);
