/* Character back ends with files, sockets and pseudo-terminals; stdin and stdout are replaced for the stdio ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "backends/chardev/chardev.h"
#include "host/event_loop.h"

#define PATIENCE_MS 60000

/* A device: a buffer with limited room. Guarded by the lock. */
struct device {
	pthread_mutex_t lock;
	pthread_t thread;
	struct event_loop *loop;
	struct chardev *chardev;
	uint8_t data[1 << 17];
	size_t length, room;
	unsigned writable, breaks, quits;
};

static void device_lock(void *owner)
{
	pthread_mutex_lock(&((struct device *)owner)->lock);
}

static void device_unlock(void *owner)
{
	pthread_mutex_unlock(&((struct device *)owner)->lock);
}

static size_t can_receive(void *owner)
{
	return ((struct device *)owner)->room;
}

static void receive(void *owner, const uint8_t *data, size_t length)
{
	struct device *device = owner;

	assert_true(length <= device->room);
	assert_true(device->length + length <= sizeof(device->data));
	memcpy(device->data + device->length, data, length);
	device->length += length;
	device->room -= length;
}

static void writable(void *owner)
{
	((struct device *)owner)->writable++;
}

static void receive_break(void *owner)
{
	((struct device *)owner)->breaks++;
}

static void quit(void *owner)
{
	struct device *device = owner;

	device_lock(device);
	device->quits++;
	device_unlock(device);
}

static void *loop_main(void *owner)
{
	event_loop_run(((struct device *)owner)->loop);
	return NULL;
}

static struct device *device_open(const char *specification)
{
	struct device *device = calloc(1, sizeof(*device));
	const struct chardev_client client = {can_receive, receive, writable, device, receive_break};

	assert_non_null(device);
	pthread_mutex_init(&device->lock, NULL);
	device->room = sizeof(device->data);
	device->loop = event_loop_create();
	assert_non_null(device->loop);
	device->chardev = chardev_create(specification, quit, device);
	assert_non_null(device->chardev);
	device_lock(device);
	chardev_connect(device->chardev, &client);
	device_unlock(device);
	assert_int_equal(chardev_attach(device->chardev, device->loop, device_lock, device_unlock, device), 0);
	assert_int_equal(pthread_create(&device->thread, NULL, loop_main, device), 0);
	return device;
}

static void device_close(struct device *device)
{
	event_loop_stop(device->loop);
	pthread_join(device->thread, NULL);
	chardev_detach(device->chardev);
	event_loop_destroy(device->loop);
	chardev_destroy(device->chardev);
	pthread_mutex_destroy(&device->lock);
	free(device);
}

static size_t device_write(struct device *device, const void *data, size_t length)
{
	device_lock(device);
	size_t taken = chardev_write(device->chardev, data, length);
	device_unlock(device);
	return taken;
}

static void pause_ms(unsigned ms)
{
	struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&time, NULL);
}

/* Waits until a counter of the device, looked at under its lock, reaches the value. */
#define WAIT_FOR(device, expression)                                                                                   \
	do {                                                                                                           \
		bool done_ = false;                                                                                    \
		for (unsigned wait_ = 0; wait_ < PATIENCE_MS && !done_; wait_++) {                                     \
			device_lock(device);                                                                           \
			done_ = (expression);                                                                          \
			device_unlock(device);                                                                         \
			if (!done_)                                                                                    \
				pause_ms(1);                                                                           \
		}                                                                                                      \
		if (!done_)                                                                                            \
			fail_msg("waited in vain for %s", #expression);                                                \
	} while (0)

static void read_exactly(int fd, void *data, size_t length)
{
	size_t done = 0;

	while (done < length) {
		struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
		assert_int_equal(poll(&poll_fd, 1, PATIENCE_MS), 1);
		ssize_t got = read(fd, (char *)data + done, length - done);
		assert_true(got > 0);
		done += (size_t)got;
	}
}

static void expect_output(int fd, const char *text)
{
	char got[256] = "";

	read_exactly(fd, got, strlen(text));
	assert_string_equal(got, text);
}

static void expect_input(struct device *device, const char *text)
{
	WAIT_FOR(device, device->length >= strlen(text));
	device_lock(device);
	assert_int_equal(device->length, strlen(text));
	assert_memory_equal(device->data, text, strlen(text));
	device->length = 0;
	device_unlock(device);
}

/* stdin and stdout become these; returns copies of the real ones. */
struct real {
	int in, out;
};

static struct real replace_stdio(int in, int out)
{
	struct real real = {dup(STDIN_FILENO), dup(STDOUT_FILENO)};

	fflush(stdout);
	assert_true(dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0);
	return real;
}

static void restore_stdio(struct real real)
{
	fflush(stdout);
	dup2(real.in, STDIN_FILENO);
	dup2(real.out, STDOUT_FILENO);
	close(real.in);
	close(real.out);
}

static void refused(void **state)
{
	static const char *const wrong[] = {"",
	                                    "stdio:",
	                                    "bogus",
	                                    "unix",
	                                    "unix:",
	                                    "file:",
	                                    "file",
	                                    "pty:x",
	                                    "none:",
	                                    "file:/nonexistent/x",
	                                    "unix:/nonexistent/x"};
	char longname[300] = "unix:/tmp/";

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_null(chardev_create(wrong[i], NULL, NULL));
	memset(longname + 10, 'x', 200);
	assert_null(chardev_create(longname, NULL, NULL));
}

static void none(void **state)
{
	struct device *device = device_open("none");
	static uint8_t data[100000];

	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(device_write(device, data, sizeof(data)), sizeof(data));
	device_close(device);
}

static void file(void **state)
{
	char specification[64] = "file:/tmp/ring3-test-XXXXXX", *name = specification + 5;
	int fd = mkstemp(name);
	uint8_t byte;

	assert_true(fd >= 0);
	struct device *device = device_open(specification);
	for (unsigned i = 0; i < 200000; i++) {
		byte = (uint8_t)(i * 31);
		while (device_write(device, &byte, 1) == 0)
			pause_ms(1);
	}
	device_close(device);
	for (unsigned i = 0; i < 200000; i++) {
		if (i % 4096 == 0)
			assert_int_equal(lseek(fd, i, SEEK_SET), i);
		assert_int_equal(read(fd, &byte, 1), 1);
		assert_int_equal(byte, (uint8_t)(i * 31));
	}
	assert_int_equal(read(fd, &byte, 1), 0);
	close(fd);
	unlink(name);
}

/* A full disk loses output, not the machine. */
static void file_full(void **state)
{
	struct device *device = device_open("file:/dev/full");
	static uint8_t data[4096];

	for (unsigned i = 0; i < 1000; i++)
		while (device_write(device, data, sizeof(data)) == 0)
			pause_ms(1);
	device_close(device);
}

static void stdio_pipes(void **state)
{
	int in[2], out[2];

	assert_true(pipe(in) == 0 && pipe(out) == 0);
	struct real real = replace_stdio(in[0], out[1]);
	int flags = fcntl(out[1], F_GETFL);
	struct device *device = device_open("stdio");

	device_write(device, "hello", 5);
	expect_output(out[0], "hello");
	/* Bytes as they are, Ctrl-a too. */
	assert_int_equal(write(in[1], "a\001x\n", 4), 4);
	expect_input(device, "a\001x\n");
	assert_int_equal(device->quits, 0);
	/* The end of input ends nothing. */
	close(in[1]);
	pause_ms(20);
	device_write(device, "bye", 3);
	expect_output(out[0], "bye");
	device_close(device);
	assert_int_equal(fcntl(out[1], F_GETFL), flags); /* shared with others: left alone */
	restore_stdio(real);
	close(in[0]);
	close(out[0]);
	close(out[1]);
}

/* The guest takes bytes slowly: nothing is lost, and what is not taken stays in the pipe. */
static void input_backpressure(void **state)
{
	enum { TOTAL = 60000 };
	int in[2], out[2];

	assert_true(pipe(in) == 0 && pipe(out) == 0);
	struct real real = replace_stdio(in[0], out[1]);
	struct device *device = device_open("stdio");
	uint8_t data[1000];
	size_t sent = 0;

	device_lock(device);
	device->room = 0;
	device_unlock(device);
	while (sent < TOTAL) { /* fits in the pipe */
		for (unsigned i = 0; i < sizeof(data); i++)
			data[i] = (uint8_t)((sent + i) * 13 >> 2);
		assert_int_equal(write(in[1], data, sizeof(data)), sizeof(data));
		sent += sizeof(data);
	}
	for (unsigned i = 0; i < TOTAL; i += 16) {
		device_lock(device);
		device->room = 16;
		chardev_accept_input(device->chardev);
		device_unlock(device);
		WAIT_FOR(device, device->room == 0 || device->length == TOTAL);
	}
	device_lock(device);
	assert_int_equal(device->length, TOTAL);
	for (unsigned i = 0; i < TOTAL; i++)
		assert_int_equal(device->data[i], (uint8_t)(i * 13 >> 2));
	device_unlock(device);
	device_close(device);
	restore_stdio(real);
	for (unsigned i = 0; i < 2; i++) {
		close(in[i]);
		close(out[i]);
	}
}

/* A reader that stands: writes are refused, never block; when it goes on, the client is told, and nothing is lost. */
static void output_backpressure(void **state)
{
	int out[2], null = open("/dev/null", O_RDONLY);
	static uint8_t data[400000], got[400000];
	size_t sent = 0, received = 0;

	assert_true(null >= 0 && pipe(out) == 0);
	struct real real = replace_stdio(null, out[1]);
	struct device *device = device_open("stdio");
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 >> 3);
	for (unsigned idle = 0; idle < 50;) {
		size_t taken = device_write(device, data + sent, sizeof(data) - sent);
		idle = taken ? 0 : idle + 1;
		sent += taken;
		pause_ms(1);
	}
	assert_true(sent >= 65536 && sent < sizeof(data)); /* the ring and the pipe */
	while (received < sizeof(data)) {
		size_t part = sizeof(data) - received < 5000 ? sizeof(data) - received : 5000;
		sent += device_write(device, data + sent, sizeof(data) - sent);
		read_exactly(out[0], got + received, part);
		received += part;
	}
	assert_memory_equal(got, data, sizeof(data));
	WAIT_FOR(device, device->writable > 0);
	device_close(device);
	restore_stdio(real);
	close(null);
	close(out[0]);
	close(out[1]);
}

/* A reader that never reads again does not keep us from ending. */
static void stuck_reader(void **state)
{
	int out[2], null = open("/dev/null", O_RDONLY);
	static uint8_t data[200000];
	struct timespec before, after;

	assert_true(null >= 0 && pipe(out) == 0);
	struct real real = replace_stdio(null, out[1]);
	struct device *device = device_open("stdio");
	device_write(device, data, sizeof(data));
	pause_ms(50);
	device_write(device, data, sizeof(data));
	clock_gettime(CLOCK_MONOTONIC, &before);
	device_close(device);
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_in_range(after.tv_sec - before.tv_sec, 1, 60);
	restore_stdio(real);
	close(null);
	close(out[0]);
	close(out[1]);
}

static void stdout_closed(void **state)
{
	int out[2], null = open("/dev/null", O_RDONLY);

	assert_true(null >= 0 && pipe(out) == 0);
	struct real real = replace_stdio(null, out[1]);
	close(out[0]);
	struct device *device = device_open("stdio");
	for (unsigned i = 0; i < 100000; i++)
		while (device_write(device, (const uint8_t *)"x", 1) == 0)
			pause_ms(1);
	device_close(device);
	restore_stdio(real);
	close(null);
	close(out[1]);
}

/* A pseudo-terminal as our own terminal: raw while it runs, Ctrl-a keys, and given back afterwards. */
static int open_terminal(int *slave)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	char name[64];

	assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
	assert_int_equal(ptsname_r(master, name, sizeof(name)), 0);
	*slave = open(name, O_RDWR | O_NOCTTY);
	assert_true(*slave >= 0);
	return master;
}

static void stdio_terminal(void **state)
{
	struct termios before, during, after;
	int slave, master = open_terminal(&slave);
	char help[1024] = "";

	assert_int_equal(tcgetattr(slave, &before), 0);
	struct real real = replace_stdio(slave, slave);
	struct device *device = device_open("stdio");
	assert_int_equal(tcgetattr(slave, &during), 0);
	assert_false(during.c_lflag & (ICANON | ECHO | ISIG));

	assert_int_equal(write(master, "ls\r\003\001\001\001qz", 9), 9); /* ^C is the guest's; unknown keys vanish */
	expect_input(device, "ls\r\003\001z");
	assert_int_equal(write(master, "\001", 1), 1); /* the two keys may come apart */
	pause_ms(20);
	assert_int_equal(write(master, "b", 1), 1);
	WAIT_FOR(device, device->breaks == 1);
	assert_int_equal(write(master, "\001h", 2), 2);
	for (unsigned i = 0; !strstr(help, "this help") && i < 1000; i++)
		read_exactly(master, help + strlen(help), 1);
	assert_non_null(strstr(help, "Ctrl-a x"));

	/* A guest that takes nothing cannot keep the user. */
	device_lock(device);
	device->room = 0;
	device_unlock(device);
	for (unsigned i = 0; i < 100; i++) {
		char line[100];
		memset(line, 'y', sizeof(line));
		assert_int_equal(write(master, line, sizeof(line)), sizeof(line));
		pause_ms(1);
	}
	assert_int_equal(write(master, "\001x", 2), 2);
	WAIT_FOR(device, device->quits == 1);
	device_close(device);
	assert_int_equal(tcgetattr(slave, &after), 0);
	assert_int_equal(after.c_lflag, before.c_lflag);
	assert_int_equal(after.c_iflag, before.c_iflag);
	restore_stdio(real);
	close(slave);
	close(master);
}

/* A process that dies of a signal gives its terminal back. */
static void terminal_after_signal(void **state)
{
	static const int signals[] = {SIGTERM, SIGSEGV, SIGABRT, SIGHUP};

	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
		struct termios before, after;
		int slave, master = open_terminal(&slave), status, ready[2];
		char byte;

		assert_int_equal(pipe(ready), 0);
		assert_int_equal(tcgetattr(slave, &before), 0);
		pid_t child = fork();
		if (child == 0) {
			for (int n = 1; n < 32; n++)
				signal(n, SIG_DFL); /* a sanitizer's or cmocka's handlers would exit in other ways */
			dup2(slave, STDIN_FILENO);
			dup2(slave, STDOUT_FILENO);
			struct chardev *chardev = chardev_create("stdio", NULL, NULL);
			byte = chardev != NULL;
			if (write(ready[1], &byte, 1) == 1)
				pause();
			_exit(0);
		}
		assert_true(child > 0);
		assert_int_equal(read(ready[0], &byte, 1), 1);
		assert_int_equal(byte, 1);
		assert_int_equal(tcgetattr(slave, &after), 0);
		assert_false(after.c_lflag & ICANON);
		assert_int_equal(kill(child, signals[i]), 0);
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
		assert_int_equal(tcgetattr(slave, &after), 0);
		assert_int_equal(after.c_lflag, before.c_lflag);
		close(ready[0]);
		close(ready[1]);
		close(slave);
		close(master);
	}
}

/* A stop gives it back, and going on takes it again. */
static void terminal_stop(void **state)
{
	struct termios before, during;
	int slave, master = open_terminal(&slave), status, ready[2];
	char byte;

	assert_int_equal(pipe(ready), 0);
	assert_int_equal(tcgetattr(slave, &before), 0);
	pid_t child = fork();
	if (child == 0) {
		dup2(slave, STDIN_FILENO);
		dup2(slave, STDOUT_FILENO);
		struct chardev *chardev = chardev_create("stdio", NULL, NULL);
		byte = chardev != NULL;
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_true(child > 0);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(kill(child, SIGTSTP), 0);
	bool stopped = false;
	for (unsigned i = 0; i < 500 && !stopped; i++, pause_ms(1))
		stopped = waitpid(child, &status, WUNTRACED | WNOHANG) == child && WIFSTOPPED(status);
	if (stopped) { /* not in an orphaned group, where the kernel drops the signal */
		assert_int_equal(tcgetattr(slave, &during), 0);
		assert_int_equal(during.c_lflag, before.c_lflag);
		assert_int_equal(kill(child, SIGCONT), 0);
	}
	bool raw = false;
	for (unsigned i = 0; i < PATIENCE_MS && !raw; i++, pause_ms(1)) {
		if (i % 100 == 99) /* it may have stopped only now */
			kill(child, SIGCONT);
		raw = tcgetattr(slave, &during) == 0 && !(during.c_lflag & ICANON);
	}
	assert_true(raw);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	close(ready[0]);
	close(ready[1]);
	close(slave);
	close(master);
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(address.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void unix_socket(void **state)
{
	char path[64], specification[80];
	struct stat status;

	snprintf(path, sizeof(path), "/tmp/ring3-test-%d.socket", (int)getpid());
	snprintf(specification, sizeof(specification), "unix:%s", path);
	struct device *device = device_open(specification);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode & 0777, 0600);
	/* What was said before anybody came is kept. */
	device_write(device, "early ", 6);
	int first = connect_to(path);
	expect_output(first, "early ");
	assert_int_equal(write(first, "one", 3), 3);
	expect_input(device, "one");
	/* The second one waits for the first to leave. */
	int second = connect_to(path);
	assert_int_equal(write(second, "two", 3), 3);
	pause_ms(20);
	device_lock(device);
	assert_int_equal(device->length, 0);
	device_unlock(device);
	close(first);
	expect_input(device, "two");
	device_write(device, "late", 4);
	expect_output(second, "late");
	close(second);

	/* Another one cannot take the name while we listen. */
	assert_null(chardev_create(specification, NULL, NULL));
	device_close(device);
	assert_int_equal(stat(path, &status), -1);
}

/* Far more than the bound while nobody listens: the newest is kept, and the guest never waits. */
static void unix_keeps_newest(void **state)
{
	char path[64], specification[80];
	static uint8_t data[300000], got[65536];

	snprintf(path, sizeof(path), "/tmp/ring3-test-%d.socket", (int)getpid());
	snprintf(specification, sizeof(specification), "unix:%s", path);
	struct device *device = device_open(specification);
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 3 >> 4);
	for (unsigned i = 0; i < sizeof(data); i += 1000)
		assert_int_equal(device_write(device, data + i, 1000), 1000);
	int client = connect_to(path);
	read_exactly(client, got, sizeof(got));
	assert_memory_equal(got, data + sizeof(data) - sizeof(got), sizeof(got));
	close(client);
	device_close(device);
}

/* Left-over socket files are replaced, other files are not. */
static void unix_stale(void **state)
{
	char path[64], specification[80];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct stat status;

	snprintf(path, sizeof(path), "/tmp/ring3-test-%d.socket", (int)getpid());
	snprintf(specification, sizeof(specification), "unix:%s", path);
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	assert_int_equal(stat(path, &status), 0);
	device_close(device_open(specification));

	fd = open(path, O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_null(chardev_create(specification, NULL, NULL));
	assert_int_equal(stat(path, &status), 0);
	unlink(path);
}

/* Type-ahead for a guest that has only now set its port up comes a moment later, and whole. */
static void type_ahead(void **state)
{
	int in[2], out[2];
	struct timespec before, after;

	assert_true(pipe(in) == 0 && pipe(out) == 0);
	struct real real = replace_stdio(in[0], out[1]);
	struct device *device = device_open("stdio");
	device_lock(device);
	device->room = 0;
	device_unlock(device);
	assert_int_equal(write(in[1], "typed ahead", 11), 11);
	pause_ms(100);
	device_lock(device);
	device->room = 1;
	clock_gettime(CLOCK_MONOTONIC, &before);
	chardev_accept_input(device->chardev);
	device_unlock(device);
	pause_ms(2);
	device_lock(device); /* changes its mind, as a driver that clears the receiver */
	clock_gettime(CLOCK_MONOTONIC, &after);
	if ((after.tv_sec - before.tv_sec) * 1000000000ll + after.tv_nsec - before.tv_nsec < 15000000)
		assert_int_equal(device->length, 0);
	device->room = 1000;
	chardev_accept_input(device->chardev);
	device_unlock(device);
	expect_input(device, "typed ahead");
	device_close(device);
	restore_stdio(real);
	for (unsigned i = 0; i < 2; i++) {
		close(in[i]);
		close(out[i]);
	}
}

/* Clients that come and go with data under way, while the guest writes all the time. */
static void unix_reconnects(void **state)
{
	char path[64], specification[80], byte[64];

	snprintf(path, sizeof(path), "/tmp/ring3-test-%d.socket", (int)getpid());
	snprintf(specification, sizeof(specification), "unix:%s", path);
	struct device *device = device_open(specification);
	memset(byte, 'z', sizeof(byte));
	for (unsigned i = 0; i < 100; i++) {
		int client = connect_to(path);
		device_write(device, byte, sizeof(byte));
		if (i % 3)
			read_exactly(client, byte, 1);
		if (i % 2)
			assert_int_equal(write(client, "x", 1), 1);
		close(client);
	}
	int last = connect_to(path);
	device_write(device, "!", 1);
	do
		read_exactly(last, byte, 1);
	while (*byte != '!');
	close(last);
	device_close(device);
}

/* The slave's name is only printed, so it is read from our own stderr. */
static void pty(void **state)
{
	int errors[2], real = dup(STDERR_FILENO);
	char line[128] = "", *name;

	assert_int_equal(pipe(errors), 0);
	dup2(errors[1], STDERR_FILENO);
	struct device *device = device_open("pty");
	dup2(real, STDERR_FILENO);
	close(real);
	assert_true(read(errors[0], line, sizeof(line) - 1) > 0);
	close(errors[0]);
	close(errors[1]);
	name = strstr(line, "/dev/");
	assert_non_null(name);
	name[strcspn(name, "\r\n")] = '\0';

	device_write(device, "early\n", 6);
	for (unsigned i = 0; i < 3; i++) {
		int slave = open(name, O_RDWR | O_NOCTTY);
		assert_true(slave >= 0);
		if (i == 0)
			expect_output(slave, "early\n");
		assert_int_equal(write(slave, "in\r", 3), 3);
		expect_input(device, "in\r");
		device_write(device, "out\n", 4);
		expect_output(slave, "out\n"); /* as it is: no carriage return added */
		close(slave);
		/* Until the hang-up is seen, output goes to nobody. */
		pause_ms(50);
	}
	device_close(device);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(refused),
	    cmocka_unit_test(none),
	    cmocka_unit_test(file),
	    cmocka_unit_test(file_full),
	    cmocka_unit_test(stdio_pipes),
	    cmocka_unit_test(input_backpressure),
	    cmocka_unit_test(type_ahead),
	    cmocka_unit_test(output_backpressure),
	    cmocka_unit_test(stuck_reader),
	    cmocka_unit_test(stdout_closed),
	    cmocka_unit_test(stdio_terminal),
	    cmocka_unit_test(terminal_after_signal),
	    cmocka_unit_test(terminal_stop),
	    cmocka_unit_test(unix_socket),
	    cmocka_unit_test(unix_keeps_newest),
	    cmocka_unit_test(unix_stale),
	    cmocka_unit_test(unix_reconnects),
	    cmocka_unit_test(pty),
	};

	signal(SIGPIPE, SIG_IGN); /* the test's own writes */
	return cmocka_run_group_tests_name("chardev", tests, NULL, NULL);
}
