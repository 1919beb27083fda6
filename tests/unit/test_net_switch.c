/* --net switch:NAME: several members in one process, and some in others that die. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "net_rig.h"

#define MEMBERS 3

static char folder[] = "/tmp/ring3-test-XXXXXX";
static struct event_loop *loop;
static struct rig member[MEMBERS];
static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static int make_folder(void **state)
{
	strcpy(folder, "/tmp/ring3-test-XXXXXX");
	if (!mkdtemp(folder) || setenv("XDG_RUNTIME_DIR", folder, 1) < 0)
		return -1;
	loop = event_loop_create();
	return loop ? 0 : -1;
}

static int remove_folder(void **state)
{
	char command[128];

	event_loop_destroy(loop);
	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

static struct net *try_open(const char *text)
{
	struct net_options options;

	assert_int_equal(net_options_parse(&options, text), 0);
	return net_open(&options);
}

static void make_frame(uint8_t *frame, size_t length, const uint8_t *to, const uint8_t *from, unsigned number)
{
	memset(frame, 0, length);
	rig_ethernet(frame, to, from, 0x88b5);
	rig_put32(frame + 14, number);
}

static void send_frame(struct rig *rig, const uint8_t *to, unsigned number)
{
	uint8_t frame[100];

	make_frame(frame, sizeof(frame), to, net_mac(rig->net), number);
	rig_send(rig, frame, sizeof(frame));
}

static unsigned number_of(const struct rig_frame *frame)
{
	assert_true(frame->length >= 18);
	return rig_get32(frame->data + 14);
}

/* Members that can reach each other: each has heard the others' broadcasts. */
static bool all_heard(void *owner)
{
	unsigned count = *(unsigned *)owner;

	for (unsigned i = 0; i < count; i++)
		if (member[i].count < count - 1)
			return false;
	return true;
}

static void join(unsigned count, const char *name)
{
	for (unsigned i = 0; i < count; i++)
		rig_attach(&member[i], loop, rig_open(name));
	rig_run(loop, NULL, NULL, 20);
	for (unsigned i = 0; i < count; i++)
		send_frame(&member[i], broadcast, i);
	assert_true(rig_run(loop, all_heard, &count, RIG_PATIENCE));
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(member[i].count, count - 1); /* each once */
		rig_forget(&member[i]);
		member[i].count = 0;
	}
}

static void leave(unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		rig_close(&member[i]);
}

/* Sockets in the folder of that switch. */
static unsigned sockets(const char *name)
{
	char path[128];
	unsigned count = 0;
	struct dirent *entry;
	DIR *open;

	snprintf(path, sizeof(path), "%s/ring3/switch/%s", folder, name);
	open = opendir(path);
	assert_non_null(open);
	while ((entry = readdir(open)))
		count += entry->d_name[0] != '.';
	closedir(open);
	return count;
}

static void floods_and_learns(void **state)
{
	static const uint8_t unknown[6] = {2, 9, 9, 9, 9, 9};

	join(3, "switch:lab");
	/* Each address is known now. */
	send_frame(&member[0], net_mac(member[1].net), 7);
	rig_expect_count(&member[1], 1);
	assert_int_equal(number_of(member[1].first), 7);
	rig_run(loop, NULL, NULL, 5);
	assert_int_equal(member[2].count, 0);
	assert_int_equal(member[0].count, 0);
	/* Unknown ones and groups go to all. */
	send_frame(&member[0], unknown, 8);
	rig_expect_count(&member[1], 2);
	rig_expect_count(&member[2], 1);
	send_frame(&member[2], (const uint8_t[6]){0x33, 0x33, 0, 0, 0, 1}, 9);
	rig_expect_count(&member[1], 3);
	rig_expect_count(&member[0], 1);
	leave(3);
	assert_int_equal(sockets("lab"), 0);
}

static void names_are_apart(void **state)
{
	rig_attach(&member[0], loop, rig_open("switch:one"));
	rig_attach(&member[1], loop, rig_open("switch:two"));
	rig_attach(&member[2], loop, rig_open("switch:one"));
	rig_run(loop, NULL, NULL, 20);
	send_frame(&member[0], broadcast, 1);
	send_frame(&member[0], net_mac(member[1].net), 2);
	rig_expect_count(&member[2], 2);
	rig_run(loop, NULL, NULL, 10);
	assert_int_equal(member[1].count, 0);
	leave(3);
}

/* Large packets cross unfinished, and are finished for those who do not take them so. */
static void large_packets(void **state)
{
	static uint8_t frame[54 + 60000];
	struct virtio_net_hdr header = {
	    .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
	    .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
	    .hdr_len = 54,
	    .gso_size = 1460,
	    .csum_start = 34,
	    .csum_offset = 16,
	};
	struct rig_frame *got;

	join(3, "switch:lab");
	rig_ethernet(frame, broadcast, net_mac(member[0].net), 0x0800);
	rig_ipv4(frame, 1, 2, IPPROTO_TCP, 60020);
	frame[46] = 0x50;
	net_set_offloads(member[1].net, NET_OFFLOAD_ALL);
	assert_true(rig_send_header(&member[0], &header, frame, sizeof(frame)));
	got = rig_next(&member[1]);
	assert_int_equal(got->length, sizeof(frame));
	assert_memory_equal(&got->header, &header, sizeof(header));
	assert_memory_equal(got->data, frame, sizeof(frame));
	free(got);
	rig_expect_count(&member[2], 42);
	while ((got = rig_pop(&member[2]))) {
		assert_int_equal(rig_transport_sum(got->data, 34, got->length), 0xffff);
		free(got);
	}
	leave(3);
}

/* A member in another process, which says when it is there and then waits. */
static pid_t fork_member(const char *name)
{
	int ready[2];
	char byte;
	pid_t child;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		static struct rig rig;
		struct event_loop *own = event_loop_create();

		rig_attach(&rig, own, rig_open(name));
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		event_loop_run(own);
		_exit(0);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return child;
}

static void kill_member(pid_t child)
{
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static void a_member_dies(void **state)
{
	pid_t child = fork_member("switch:lab");

	join(2, "switch:lab");
	assert_int_equal(sockets("lab"), 3);
	kill_member(child);
	for (unsigned i = 0; i < 10; i++) {
		send_frame(&member[0], broadcast, i);
		rig_expect_count(&member[1], i + 1);
	}
	leave(2);
	assert_int_equal(sockets("lab"), 1);
	/* Whoever comes next removes what it left. */
	rig_attach(&member[0], loop, rig_open("switch:lab"));
	assert_int_equal(sockets("lab"), 1);
	rig_close(&member[0]);
	assert_int_equal(sockets("lab"), 0);
}

/* One that is stopped holds the others up for a moment only. */
static void a_member_is_stopped(void **state)
{
	static uint8_t frame[60000];
	pid_t child = fork_member("switch:lab");
	unsigned sent = 0, waits = 0;
	struct timespec begin, end;

	join(2, "switch:lab");
	kill(child, SIGSTOP);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	make_frame(frame, sizeof(frame), broadcast, net_mac(member[0].net), 0);
	for (; sent < 300; sent++) {
		while (!rig_send_header(&member[0], NULL, frame, sizeof(frame))) {
			assert_true(++waits < 20000);
			rig_run(loop, NULL, NULL, 2);
		}
		if (sent % 4 == 0)
			rig_run(loop, NULL, NULL, 1);
		rig_forget(&member[1]);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_true(end.tv_sec - begin.tv_sec < 60);
	rig_expect_count(&member[1], 300);
	kill_member(child);
	leave(2);
}

static bool is_writable(void *owner)
{
	return ((struct rig *)owner)->writable > 0;
}

/* A device without buffers, in this process: the sender waits, and nothing is lost or out of order. */
static void flow(void **state)
{
	static uint8_t frame[60000];
	unsigned sent = 0;

	join(2, "switch:lab");
	member[1].room = 0;
	for (;; sent++) {
		make_frame(frame, sizeof(frame), net_mac(member[1].net), net_mac(member[0].net), sent);
		if (!rig_send_header(&member[0], NULL, frame, sizeof(frame)))
			break;
		assert_true(sent < 1000);
	}
	assert_true(sent > 5);
	rig_run(loop, NULL, NULL, 10);
	assert_int_equal(member[0].writable, 0);
	member[1].room = UINT32_MAX;
	net_receive_ready(member[1].net);
	assert_true(rig_run(loop, is_writable, &member[0], RIG_PATIENCE));
	rig_expect_count(&member[1], sent);
	for (unsigned i = 0; i < sent; i++) {
		struct rig_frame *got = rig_pop(&member[1]);

		assert_int_equal(number_of(got), i);
		free(got);
	}
	leave(2);
}

/* Two who join at the same time find each other twice, and keep one connection. */
static void joining_at_once(void **state)
{
	for (unsigned round = 0; round < 20; round++) {
		struct net *nets[MEMBERS];

		for (unsigned i = 0; i < MEMBERS; i++)
			nets[i] = rig_open("switch:rush");
		for (unsigned i = 0; i < MEMBERS; i++)
			rig_attach(&member[i], loop, nets[i]);
		rig_run(loop, NULL, NULL, 10);
		for (unsigned i = 0; i < MEMBERS; i++)
			send_frame(&member[i], broadcast, i);
		rig_run(loop, NULL, NULL, 5);
		for (unsigned i = 0; i < MEMBERS; i++)
			assert_int_equal(member[i].count, MEMBERS - 1);
		leave(MEMBERS);
	}
}

/* A connection of this user that is no member: nonsense, and nothing at all. */
static int stranger(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char path[64];
	struct dirent *entry;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), result = -1;
	DIR *open;

	snprintf(path, sizeof(path), "%s/ring3/switch/lab", folder);
	open = opendir(path);
	assert_non_null(open);
	while ((entry = readdir(open)) && result < 0) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(address.sun_path, sizeof(address.sun_path), "%s/%.20s", path, entry->d_name);
		result = connect(fd, (struct sockaddr *)&address, sizeof(address));
	}
	closedir(open);
	assert_int_equal(result, 0);
	return fd;
}

static void strangers(void **state)
{
	static uint8_t message[70000];
	uint32_t word = 0x72330001;
	struct {
		uint32_t word;
		uint16_t kind;
		uint8_t header[10];
		uint64_t id;
	} hello = {0x72330001, 1, {0}, 42};
	unsigned heard;

	join(2, "switch:lab");
	for (unsigned length = 0; length < 40; length++) {
		int fd = stranger();

		assert_int_equal(send(fd, message, length, 0), length);
		rig_run(loop, NULL, NULL, 1);
		close(fd);
	}
	/* Frames before hello; then frames of all lengths after it: those that cannot be end the connection. */
	int fd = stranger();
	memcpy(message, &word, 4);
	message[4] = 2;
	assert_int_equal(send(fd, message, 100, 0), 100);
	rig_run(loop, NULL, NULL, 5);
	close(fd);
	assert_int_equal(member[0].count + member[1].count, 0);
	for (unsigned length = 24; length < 24 + 20; length++) {
		fd = stranger();
		assert_int_equal(send(fd, &hello, sizeof(hello), 0), sizeof(hello));
		assert_int_equal(send(fd, message, length, 0), length);
		rig_run(loop, NULL, NULL, 3);
		close(fd);
	}
	heard = member[0].count + member[1].count;
	assert_int_equal(heard, 6);
	fd = stranger();
	assert_int_equal(send(fd, &hello, sizeof(hello), 0), sizeof(hello));
	assert_int_equal(send(fd, message, 24 + NET_FRAME_MAX + 1, 0), 24 + NET_FRAME_MAX + 1);
	rig_run(loop, NULL, NULL, 3);
	assert_int_equal(member[0].count + member[1].count, heard);
	close(fd);
	/* Too many. */
	int many[100];
	for (unsigned i = 0; i < 100; i++) {
		many[i] = stranger();
		rig_run(loop, NULL, NULL, 0);
	}
	send_frame(&member[0], broadcast, 1);
	send_frame(&member[1], broadcast, 1);
	rig_run(loop, NULL, NULL, 5);
	assert_int_equal(member[0].count + member[1].count, heard + 2);
	for (unsigned i = 0; i < 100; i++)
		close(many[i]);
	leave(2);
}

/* What another user could prepare. */
static void unsafe_folders(void **state)
{
	char path[128], target[128];

	snprintf(path, sizeof(path), "%s/ring3", folder);
	snprintf(target, sizeof(target), "%s/elsewhere", folder);
	assert_int_equal(mkdir(target, 0700), 0);
	assert_int_equal(symlink(target, path), 0);
	assert_null(try_open("switch:lab"));
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(chmod(path, 0777), 0);
	assert_null(try_open("switch:lab"));
	assert_int_equal(chmod(path, 0710), 0);
	assert_null(try_open("switch:lab"));
	assert_int_equal(chmod(path, 0700), 0);
	if (geteuid() == 0) {
		assert_int_equal(chown(path, 1, 1), 0);
		assert_null(try_open("switch:lab"));
		assert_int_equal(chown(path, 0, 0), 0);
	}
	struct net *net = try_open("switch:lab");
	assert_non_null(net);
	net_close(net);
	assert_int_equal(rmdir(target), 0); /* nothing was made there */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
	const struct CMUnitTest tests[] = {
	    TEST(floods_and_learns), TEST(names_are_apart),     TEST(large_packets),
	    TEST(a_member_dies),     TEST(a_member_is_stopped), TEST(flow),
	    TEST(joining_at_once),   TEST(strangers),           TEST(unsafe_folders),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
