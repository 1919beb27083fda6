/*
 * A load for a disk: reads or writes a file or block device, in order or at random places, with so many requests in
 * flight, for some time. Runs on the host and, linked statically, in guests; bench/run compares the two.
 *
 *	disk_load FILE read|write seq|rand BLOCK DEPTH MILLISECONDS [LENGTH]
 *
 * Past the page cache (O_DIRECT), through Linux AIO where more than one is in flight. LENGTH: only the first bytes.
 * Prints "DISK read|write seq|rand BLOCK DEPTH COUNT NANOSECONDS".
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 256

struct load {
	int fd;
	bool write, random;
	size_t block;
	unsigned depth;
	uint64_t blocks, next, seed;
	uint8_t *buffer; /* one block for each in flight */
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "disk_load: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Where the next request goes. */
static uint64_t place(struct load *load)
{
	if (!load->random)
		return load->next++ % load->blocks * load->block;
	load->seed ^= load->seed << 13;
	load->seed ^= load->seed >> 7;
	load->seed ^= load->seed << 17;
	return load->seed % load->blocks * load->block;
}

static uint64_t one_at_a_time(struct load *load, uint64_t deadline)
{
	uint64_t count = 0;

	do {
		uint64_t offset = place(load);
		ssize_t done = load->write ? pwrite(load->fd, load->buffer, load->block, (off_t)offset)
		                           : pread(load->fd, load->buffer, load->block, (off_t)offset);

		if (done != (ssize_t)load->block)
			fail(load->write ? "write" : "read");
		count++;
	} while (now_ns() < deadline);
	return count;
}

static void prepare(struct load *load, struct iocb *iocb, unsigned slot)
{
	*iocb = (struct iocb){
	    .aio_data = slot,
	    .aio_lio_opcode = load->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
	    .aio_fildes = (uint32_t)load->fd,
	    .aio_buf = (uint64_t)(load->buffer + slot * load->block),
	    .aio_nbytes = load->block,
	    .aio_offset = (int64_t)place(load),
	};
}

static uint64_t many_at_once(struct load *load, uint64_t deadline)
{
	struct iocb iocb[DEPTH_MAX], *list[DEPTH_MAX];
	struct io_event event[DEPTH_MAX];
	aio_context_t context = 0;
	unsigned flying = load->depth;
	uint64_t count = 0;

	if (syscall(SYS_io_setup, load->depth, &context) < 0)
		fail("io_setup");
	for (unsigned i = 0; i < load->depth; i++) {
		prepare(load, &iocb[i], i);
		list[i] = &iocb[i];
	}
	if (syscall(SYS_io_submit, context, load->depth, list) != (long)load->depth)
		fail("io_submit");
	while (flying > 0) {
		long ready = syscall(SYS_io_getevents, context, 1, load->depth, event, NULL);
		bool more = now_ns() < deadline;

		if (ready < 0)
			fail("io_getevents");
		for (long i = 0; i < ready; i++) {
			if (event[i].res != (int64_t)load->block) {
				errno = event[i].res < 0 ? (int)-event[i].res : EIO;
				fail(load->write ? "write" : "read");
			}
			prepare(load, &iocb[event[i].data], (unsigned)event[i].data);
			list[i] = &iocb[event[i].data];
		}
		count += (uint64_t)ready;
		if (!more)
			flying -= (unsigned)ready;
		else if (syscall(SYS_io_submit, context, ready, list) != ready)
			fail("io_submit");
	}
	syscall(SYS_io_destroy, context);
	return count;
}

static uint64_t size_of(int fd)
{
	struct stat stat;
	uint64_t size = 0;

	if (fstat(fd, &stat) < 0)
		fail("fstat");
	if (S_ISBLK(stat.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0)
		fail("BLKGETSIZE64");
	return S_ISBLK(stat.st_mode) ? size : (uint64_t)stat.st_size;
}

int main(int argc, char **argv)
{
	struct load load = {.seed = 88172645463325252u};

	if (argc < 7) {
		fprintf(stderr, "usage: disk_load FILE read|write seq|rand BLOCK DEPTH MILLISECONDS [LENGTH]\n");
		return 2;
	}
	load.write = strcmp(argv[2], "write") == 0;
	load.random = strcmp(argv[3], "rand") == 0;
	load.block = strtoul(argv[4], NULL, 0);
	load.depth = (unsigned)strtoul(argv[5], NULL, 0);
	uint64_t milliseconds = strtoul(argv[6], NULL, 0);
	load.fd = open(argv[1], (load.write ? O_RDWR : O_RDONLY) | O_DIRECT);
	if (load.fd < 0)
		fail(argv[1]);
	uint64_t length = size_of(load.fd);
	if (argc > 7 && strtoull(argv[7], NULL, 0) < length)
		length = strtoull(argv[7], NULL, 0);
	if (load.block)
		load.blocks = length / load.block;
	if (load.blocks == 0 || load.depth == 0 || load.depth > DEPTH_MAX) {
		fprintf(stderr, "disk_load: nothing to do\n");
		return 2;
	}
	if (posix_memalign((void **)&load.buffer, 4096, load.block * load.depth))
		fail("memory");
	memset(load.buffer, 0x5a, load.block * load.depth);
	uint64_t start = now_ns(), deadline = start + milliseconds * 1000000;
	uint64_t count = load.depth == 1 ? one_at_a_time(&load, deadline) : many_at_once(&load, deadline);
	if (load.write && fdatasync(load.fd) < 0)
		fail("fdatasync");
	uint64_t end = now_ns();
	printf("DISK %s %s %zu %u %llu %llu\n", argv[2], argv[3], load.block, load.depth, (unsigned long long)count,
	       (unsigned long long)(end - start));
	close(load.fd);
	return 0;
}
