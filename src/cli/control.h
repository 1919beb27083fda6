/*
 * The control socket of `ring3 run --control PATH`: somebody on the host asks and commands a running machine, line by
 * line.
 *
 *	client                    ring3
 *	"balloon 128M\n"    ──>   acts
 *	                    <──   lines of output, then "ok\n" or "error: WHY\n"
 *
 * One client at a time, the next one waits until it leaves. The socket belongs to ring3's user, who is trusted; what comes in
 * is bounded all the same. Everything happens on the main event loop's thread.
 */
#pragma once

struct control;
struct machine;

/* Listens. NULL after one logged line. */
struct control *control_create(const char *path);
/* From now on commands are taken. 0 or -errno. */
int control_attach(struct control *control, struct machine *machine);
/* The machine does not run any more; before it is destroyed. */
void control_detach(struct control *control);
void control_destroy(struct control *control);
