/*
 * stdio: the serial console on our own stdin and stdout. A terminal is put into raw mode, with Ctrl-a as the key that
 * speaks to ring3 instead of the guest; anything else (pipe, file, /dev/null) passes bytes as they are.
 *
 * A terminal left in raw mode is a broken terminal, so every way out gives it back: chardev_destroy(), signals that end
 * the process, and a stop (SIGTSTP) with the way back (SIGCONT). Signal handlers have no other way to what they need
 * than the one static variable here.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "backends/chardev/chardev_private.h"
#include "host/log.h"

#define ESCAPE 0x01 /* Ctrl-a */

static const char help[] = "\r\n"
                           "Ctrl-a x       leave ring3, the machine is switched off\r\n"
                           "Ctrl-a b       send a break\r\n"
                           "Ctrl-a Ctrl-a  send one Ctrl-a\r\n"
                           "Ctrl-a h       this help\r\n";

/* Signals that end the process. */
static const int fatal_signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGTERM, SIGSYS};
#define FATAL_COUNT (sizeof(fatal_signals) / sizeof(fatal_signals[0]))

static struct {
	volatile sig_atomic_t raw;     /* the terminal is in raw mode, the handlers are installed */
	volatile sig_atomic_t escaped; /* Ctrl-a was typed */
	struct termios cooked_terminal, raw_terminal;
	struct sigaction fatal[FATAL_COUNT], stop, resume; /* what was before */
} console;

/* A background process that sets its terminal is stopped (SIGTTOU), and the terminal is not its business then. */
static int set_terminal(const struct termios *terminal)
{
	pid_t foreground = tcgetpgrp(STDIN_FILENO); /* fails when it is not our controlling terminal */

	return foreground > 0 && foreground != getpgrp() ? 0 : tcsetattr(STDIN_FILENO, TCSANOW, terminal);
}

static void fatal_signal(int signal_number)
{
	int saved = errno;

	set_terminal(&console.cooked_terminal);
	for (size_t i = 0; i < FATAL_COUNT; i++)
		if (fatal_signals[i] == signal_number)
			sigaction(signal_number, &console.fatal[i], NULL);
	/* Pending until we return; a fault happens again by itself then. */
	raise(signal_number);
	errno = saved;
}

static void stop_signal(int signal_number)
{
	struct sigaction ours;
	sigset_t stop, old;
	int saved = errno;

	set_terminal(&console.cooked_terminal);
	sigaction(SIGTSTP, &console.stop, &ours);
	sigemptyset(&stop);
	sigaddset(&stop, SIGTSTP);
	raise(SIGTSTP);
	pthread_sigmask(SIG_UNBLOCK, &stop, &old); /* stops here, until SIGCONT */
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	sigaction(SIGTSTP, &ours, NULL);
	set_terminal(&console.raw_terminal);
	errno = saved;
}

static void continue_signal(int signal_number)
{
	int saved = errno;

	set_terminal(&console.raw_terminal);
	errno = saved;
}

/* A signal that was ignored (nohup) stays ignored. */
static void install(int signal_number, void (*handler)(int), struct sigaction *previous)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};

	sigemptyset(&action.sa_mask);
	sigaction(signal_number, NULL, previous);
	if (previous->sa_handler != SIG_IGN)
		sigaction(signal_number, &action, NULL);
}

static int open_terminal(void)
{
	if (console.raw) {
		log_error("console stdio: in use already");
		return -EBUSY;
	}
	if (tcgetattr(STDIN_FILENO, &console.cooked_terminal) < 0)
		return -errno;
	console.raw_terminal = console.cooked_terminal;
	cfmakeraw(&console.raw_terminal);
	/* So that our own lines, and those of others in the session, still begin at the left. */
	console.raw_terminal.c_oflag |= OPOST;
	console.escaped = 0;
	for (size_t i = 0; i < FATAL_COUNT; i++)
		install(fatal_signals[i], fatal_signal, &console.fatal[i]);
	install(SIGTSTP, stop_signal, &console.stop);
	install(SIGCONT, continue_signal, &console.resume);
	console.raw = 1;
	if (tcsetattr(STDIN_FILENO, TCSANOW, &console.raw_terminal) < 0)
		log_warning("console stdio: the terminal stays line by line: %s", strerror(errno));
	return 0;
}

static int stdio_open(struct chardev *chardev, const char *argument)
{
	int error = 0;

	if (isatty(STDIN_FILENO)) {
		error = open_terminal();
		chardev->input_drops = !error;
	}
	if (!error)
		chardev_output_open(chardev, STDOUT_FILENO);
	return error;
}

static int stdio_attach(struct chardev *chardev)
{
	return chardev_input_open(chardev, STDIN_FILENO);
}

static void escape_command(struct chardev *chardev, uint8_t key)
{
	switch (key) {
	case 'x':
	case 'X':
		if (chardev->quit)
			chardev->quit(chardev->quit_owner);
		break;
	case 'b':
	case 'B':
		chardev->lock(chardev->lock_owner);
		if (chardev->client.receive_break)
			chardev->client.receive_break(chardev->client.owner);
		chardev->unlock(chardev->lock_owner);
		break;
	case 'h':
	case 'H':
	case '?':
		chardev_write(chardev, (const uint8_t *)help, sizeof(help) - 1);
		break;
	}
}

static size_t stdio_filter(struct chardev *chardev, uint8_t *data, size_t length)
{
	size_t kept = 0;

	if (!chardev->input_drops) /* no terminal */
		return length;
	for (size_t i = 0; i < length; i++) {
		if (!console.escaped) {
			if (data[i] == ESCAPE)
				console.escaped = 1;
			else
				data[kept++] = data[i];
			continue;
		}
		console.escaped = 0;
		if (data[i] == ESCAPE)
			data[kept++] = ESCAPE;
		else
			escape_command(chardev, data[i]);
	}
	return kept;
}

static void stdio_close(struct chardev *chardev)
{
	if (!chardev->input_drops)
		return;
	set_terminal(&console.cooked_terminal);
	for (size_t i = 0; i < FATAL_COUNT; i++)
		sigaction(fatal_signals[i], &console.fatal[i], NULL);
	sigaction(SIGTSTP, &console.stop, NULL);
	sigaction(SIGCONT, &console.resume, NULL);
	console.raw = 0;
}

const struct chardev_kind chardev_kind_stdio = {
    .name = "stdio",
    .open = stdio_open,
    .attach = stdio_attach,
    .filter = stdio_filter,
    .close = stdio_close,
};
