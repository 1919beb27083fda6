/*
 * kill -9 at random moments, with many requests in flight: the image is structurally clean (leaks are allowed), and what was written
 * before a flush that was acknowledged is there.
 */
#include "disk_test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include "host/event_loop.h"

#define SLOTS      16u
#define BLOCKS     48u /* of each slot */
#define BLOCK_SIZE 4096u
#define BATCH      4u

/* Shared with the process that is killed: what was acknowledged. 0: anything may stand there. */
struct journal {
	volatile bool started;
	volatile uint32_t flushed[SLOTS][BLOCKS];
};

struct writer {
	struct disk *disk;
	struct disk_request request;
	struct iovec iov;
	struct journal *journal;
	unsigned slot, step, blocks[BATCH];
	uint32_t version, versions[BATCH];
	uint64_t generator;
	uint32_t *buffer;
};

static void advance(struct disk_request *request, int error);

static void submit(struct writer *writer, enum disk_operation operation, unsigned block)
{
	writer->iov = (struct iovec){writer->buffer, BLOCK_SIZE};
	writer->request = (struct disk_request){
	    .operation = operation,
	    .offset = ((uint64_t)writer->slot * BLOCKS + block) * BLOCK_SIZE,
	    .length = BLOCK_SIZE,
	    .iov = &writer->iov,
	    .iov_count = 1,
	    .done = advance,
	    .owner = writer,
	};
	disk_submit(writer->disk, &writer->request);
}

/* Some writes (or one discard), a flush, and what was written is acknowledged. */
static void advance(struct disk_request *request, int error)
{
	struct writer *writer = request->owner;
	unsigned step = writer->step++, block = (unsigned)random_below(&writer->generator, BLOCKS);

	if (error)
		_exit(1);
	if (step < BATCH) {
		for (unsigned i = 0; i < step; i++)
			if (writer->blocks[i] == block)
				writer->versions[i] = 0; /* written again */
		writer->blocks[step] = block;
		writer->versions[step] = ++writer->version;
		for (unsigned i = 0; i < BLOCK_SIZE / 4; i++)
			writer->buffer[i] = writer->version;
		submit(writer, DISK_WRITE, block);
	} else if (step == BATCH) {
		submit(writer, DISK_FLUSH, 0);
	} else {
		for (unsigned i = 0; i < BATCH; i++)
			if (writer->versions[i])
				writer->journal->flushed[writer->slot][writer->blocks[i]] = writer->versions[i];
		writer->step = 0;
		if (random_below(&writer->generator, 3) == 0) {
			writer->journal->flushed[writer->slot][block] = 0;
			submit(writer, random_next(&writer->generator) & 1 ? DISK_DISCARD : DISK_WRITE_ZEROES, block);
		} else {
			advance(request, 0);
		}
	}
}

static void be_killed(struct journal *journal, const char *path, uint64_t seed, bool threads_only)
{
	static struct writer writers[SLOTS];
	struct disk_options options = {.path = path, .format = "qcow2"};
	struct event_loop *loop = event_loop_create();
	struct disk *disk = disk_open(&options);

	if (!disk || !loop)
		_exit(1);
	disk->threads_only = threads_only;
	if (disk_attach(disk, loop))
		_exit(1);
	for (unsigned i = 0; i < SLOTS; i++) {
		writers[i] =
		    (struct writer){.disk = disk, .journal = journal, .slot = i, .generator = seed * SLOTS + i + 1};
		if (posix_memalign((void **)&writers[i].buffer, BLOCK_SIZE, BLOCK_SIZE))
			_exit(1);
		writers[i].request.owner = &writers[i];
		advance(&writers[i].request, 0);
	}
	journal->started = true;
	event_loop_run(loop);
	_exit(1);
}

static void verify(const struct journal *journal, const char *path)
{
	struct disk *disk = open_disk(path, "qcow2");
	uint32_t words[BLOCK_SIZE / 4];

	for (unsigned i = 0; i < SLOTS * BLOCKS; i++) {
		uint32_t flushed = journal->flushed[i / BLOCKS][i % BLOCKS];

		if (!flushed)
			continue;
		assert_int_equal(disk_read(disk, (uint64_t)i * BLOCK_SIZE, words, BLOCK_SIZE), 0);
		for (unsigned j = 0; j < BLOCK_SIZE / 4; j++)
			if (words[j] < flushed) {
				fprintf(stderr, "block %u, word %u: version %u, acknowledged %u\n", i, j, words[j],
				        flushed);
				fail();
			}
	}
	assert_int_equal(disk_close(disk), 0);
}

/* The kernel ends an io_uring, and with it the last use of the image's locks, a moment after its process has gone. */
static void wait_for_lock(const char *path)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned wait = 0; wait < 60000; wait++) {
		lock.l_type = F_WRLCK;
		lock.l_pid = 0;
		assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
		if (lock.l_type == F_UNLCK)
			break;
		usleep(1000);
	}
	close(fd);
	assert_int_equal(lock.l_type, F_UNLCK);
}

static void run_kills(const char *prepare, unsigned seed, unsigned kills)
{
	struct journal *journal =
	    mmap(NULL, sizeof(*journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t generator = seed;

	need_qemu_img();
	print_message("%s, seed %u\n", prepare, seed);
	assert_true(journal != MAP_FAILED);
	for (unsigned i = 0; i < kills; i++) {
		memset((void *)journal, 0, sizeof(*journal));
		run_command("rm -f k.qcow2; %s", prepare);
		pid_t child = fork();
		if (child == 0)
			be_killed(journal, "k.qcow2", seed + i, i & 1);
		assert_true(child > 0);
		for (unsigned wait = 0; wait < 60000 && !journal->started; wait++)
			usleep(1000);
		usleep((unsigned)random_below(&generator, 60000));
		kill(child, SIGKILL);
		int status;
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status));
		wait_for_lock("k.qcow2");
		run_command("qemu-img check -f qcow2 k.qcow2 || test $? = 3"); /* leaks only */
		verify(journal, "k.qcow2");
		run_command("qemu-img check -f qcow2 k.qcow2 || test $? = 3");
	}
	munmap(journal, sizeof(*journal));
}

static void kills(void **state)
{
	run_kills("qemu-img create -f qcow2 k.qcow2 4M", 1, 16);
	run_kills("qemu-img create -f qcow2 -o cluster_size=4096 k.qcow2 4M", 20, 16);
	run_kills("qemu-img create -f qcow2 -o cluster_size=512 k.qcow2 4M", 40, 10);
	run_kills(
	    "qemu-img create -f qcow2 k.qcow2 4M && qemu-io -c 'write 0 4M' k.qcow2 && qemu-img snapshot -c s k.qcow2",
	    60, 16);
	run_kills("truncate -s 4M b.raw; qemu-img create -f qcow2 -o cluster_size=16384 -b b.raw -F raw k.qcow2", 80,
	          10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(kills)};

	return cmocka_run_group_tests(tests, disk_folder_create, disk_folder_remove);
}
