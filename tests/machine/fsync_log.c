/*
 * Runs in a guest whose monitor will be killed: writes records that it acknowledges only when the kernel says that they are
 * on the disk. Linked statically.
 *
 *	fsync_log FOLDER DEVICE NEXT ACKNOWLEDGEMENTS
 *
 * In FOLDER (a mounted file system): appends lines to "log", with fsync, "F n"; now and then a file of its own in "d",
 * with fsync of it and of the folder, "C n". On DEVICE: record n, from NEXT on, in a block of 4 KiB at a place that
 * depends on n, with fdatasync, "B n". Places and contents: test_crash.py knows the same formulas.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#define LINE  24u /* "0000000001 0123456789ab\n" */
#define BLOCK 4096u
#define EVERY 8u
#define KEEP  4u

static void fail(const char *what)
{
	fprintf(stderr, "fsync_log: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t mix(uint64_t n)
{
	n = (n ^ n >> 31) * 0x9e3779b97f4a7c15u;
	return (n ^ n >> 29) & 0xffffffffffffu;
}

static void acknowledge(int fd, char kind, unsigned number)
{
	char line[32];
	int length = snprintf(line, sizeof(line), "%c %u\n", kind, number);

	if (write(fd, line, (size_t)length) != length)
		fail("acknowledgement");
}

/* A file of its own; an old one goes. */
static void create(int folder, unsigned number, int told)
{
	char name[32];

	snprintf(name, sizeof(name), "%u", number);
	int fd = openat(folder, name, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	if (fd < 0 || write(fd, name, strlen(name)) != (ssize_t)strlen(name) || fsync(fd) < 0 || fsync(folder) < 0)
		fail("file");
	close(fd);
	acknowledge(told, 'C', number);
	if (number > KEEP * EVERY) {
		snprintf(name, sizeof(name), "%u", number - KEEP * EVERY);
		unlinkat(folder, name, 0);
	}
}

static void in_files(const char *path, int told)
{
	char line[LINE + 1];
	struct stat stat;

	if (chdir(path) < 0)
		fail(path);
	if (mkdir("d", 0755) < 0 && errno != EEXIST)
		fail("d");
	int folder = open("d", O_RDONLY | O_DIRECTORY), log = open("log", O_CREAT | O_WRONLY, 0644);
	if (folder < 0 || log < 0 || fstat(log, &stat) < 0)
		fail("log");
	unsigned number = (unsigned)(stat.st_size / LINE);
	if (lseek(log, (off_t)number * LINE, SEEK_SET) < 0)
		fail("seek");
	for (;;) {
		number++;
		snprintf(line, sizeof(line), "%010u %012llx\n", number, (unsigned long long)mix(number));
		if (write(log, line, LINE) != LINE || fsync(log) < 0)
			fail("log");
		acknowledge(told, 'F', number);
		if (number % EVERY == 0)
			create(folder, number, told);
	}
}

static void on_device(const char *path, unsigned number, int told)
{
	int fd = open(path, O_RDWR | O_DIRECT);
	uint64_t *block, size = 0;

	if (fd < 0 || posix_memalign((void **)&block, BLOCK, BLOCK) || ioctl(fd, BLKGETSIZE64, &size) < 0)
		fail(path);
	for (;; number++) {
		uint64_t place = mix(number) % (size / BLOCK);

		for (unsigned i = 0; i < BLOCK / 8; i += 2) {
			block[i] = number;
			block[i + 1] = mix(number + i);
		}
		if (pwrite(fd, block, BLOCK, (off_t)(place * BLOCK)) != BLOCK || fdatasync(fd) < 0)
			fail(path);
		acknowledge(told, 'B', number);
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	int told = open(argv[4], O_WRONLY | O_NOCTTY);
	if (told < 0)
		fail(argv[4]);
	if (fork() == 0)
		on_device(argv[2], (unsigned)strtoul(argv[3], NULL, 0), told);
	in_files(argv[1], told);
	return 0;
}
