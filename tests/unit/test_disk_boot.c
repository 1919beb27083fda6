/*
 * Booting from disk images: partition tables, which kernel is taken and with which command line, damaged images, the jail. Images are made
 * with mke2fs and sfdisk.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/disk/disk.h"
#include "boot/disk_boot.h"
#include "boot/partitions.h"
#include "host/jail.h"

#define MIB   (1ull << 20)
#define LIMIT (64 * MIB)

static char folder[] = "/tmp/ring3-disk-boot-XXXXXX";

__attribute__((format(printf, 1, 2))) static void shell(const char *format, ...)
{
	char command[4096], whole[4400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	snprintf(whole, sizeof(whole), "cd %s && PATH=$PATH:/sbin:/usr/sbin && set -e && %s", folder, command);
	if (system(whole) != 0)
		fail_msg("failed: %s", command);
}

static int setup(void **state)
{
	assert_non_null(mkdtemp(folder));
	return 0;
}

static int teardown(void **state)
{
	char command[100];

	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

static struct disk *open_image(const char *name, const char *format)
{
	static char path[200];
	struct disk_options options = {.path = path, .format = format, .readonly = true, .quiet = true};

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return disk_open(&options);
}

/* disk_boot_read() of an image in the folder. */
static int read_boot(const char *name, uint64_t limit, struct disk_boot *files, char *why)
{
	struct disk *disk = open_image(name, strstr(name, ".qcow2") ? "qcow2" : "raw");

	assert_non_null(disk);
	int error = disk_boot_read(files, disk, name, limit, why);
	disk_close(disk);
	return error;
}

static void assert_content(const struct boot_file *file, const char *name, const char *content)
{
	char buffer[256] = "";

	assert_string_equal(file->name, name);
	assert_int_equal(file->size, strlen(content));
	assert_int_equal(boot_file_read(file, 0, buffer, file->size), 0);
	assert_string_equal(buffer, content);
}

/* Boots `name`: this kernel, this initrd ("": none), this command line. */
static void boots(const char *name, const char *kernel, const char *kernel_content, const char *initrd,
                  const char *initrd_content, const char *command)
{
	struct disk_boot files;
	char why[BOOT_WHY_SIZE], path[400];

	if (read_boot(name, LIMIT, &files, why) < 0)
		fail_msg("%s", why);
	snprintf(path, sizeof(path), "%s:%s", name, kernel);
	assert_content(&files.kernel, path, kernel_content);
	snprintf(path, sizeof(path), "%s:%s", name, initrd);
	if (*initrd)
		assert_content(&files.initrd, path, initrd_content);
	else
		assert_int_equal(files.initrd.size, 0);
	assert_string_equal(files.command, command);
	disk_boot_free(&files);
}

static void refuses(const char *name, const char *text)
{
	struct disk_boot files;
	char why[BOOT_WHY_SIZE];

	assert_true(read_boot(name, LIMIT, &files, why) < 0);
	if (!strstr(why, text) || strchr(why, '\n'))
		fail_msg("'%s' does not say '%s'", why, text);
}

#define UUID      "01234567-89ab-cdef-0123-456789abcdef"
#define PART_UUID "deadbeef-1234-4321-aaaa-0123456789ab"

static void make_tree(void)
{
	shell("rm -rf tree; mkdir -p tree/boot tree/etc; : >tree/etc/fstab");
	shell("for v in 6.1.0-9-amd64 6.1.0-56-amd64 6.1.0-57-amd64.old 6.1.0-57-amd64.dpkg-tmp 6.1.0-56~rc1-amd64 "
	      "5.10.0-99-amd64;"
	      " do echo kernel $v >tree/boot/vmlinuz-$v; echo initrd $v >tree/boot/initrd.img-$v; done");
}

static void newest_kernel(void **state)
{
	make_tree();
	shell("truncate -s 20M a.raw; mke2fs -q -t ext4 -U " UUID " -d tree a.raw");
	boots("a.raw", "/boot/vmlinuz-6.1.0-56-amd64", "kernel 6.1.0-56-amd64\n", "/boot/initrd.img-6.1.0-56-amd64",
	      "initrd 6.1.0-56-amd64\n", "root=UUID=" UUID " ro");
	shell("echo kernel >tree/boot/vmlinuz-6.12.3+1; rm -f a.raw; truncate -s 20M a.raw; mke2fs -q -t ext2 -b 1024 "
	      "-U " UUID " -d tree a.raw");
	boots("a.raw", "/boot/vmlinuz-6.12.3+1", "kernel\n", "", "", "root=/dev/vda ro");
}

static void links(void **state)
{
	shell("rm -rf tree; mkdir -p tree/boot tree/sbin tree/k; : >tree/sbin/init; echo plain >tree/k/image; echo ird "
	      ">tree/k/ird");
	shell("ln -s k/image tree/vmlinuz; ln -s /k/ird tree/initrd.img; truncate -s 20M b.raw; mke2fs -q -t ext3 "
	      "-U " UUID " -d tree b.raw");
	boots("b.raw", "/vmlinuz", "plain\n", "/initrd.img", "ird\n", "root=UUID=" UUID " ro");
	/* Loops of links, directories and devices are no kernels. */
	shell("rm tree/vmlinuz; ln -s vmlinuz tree/vmlinuz; mkdir tree/boot/vmlinuz; rm b.raw; truncate -s 20M b.raw; "
	      "mke2fs -q -d tree b.raw");
	refuses("b.raw", "no kernel found");
	shell("rmdir tree/boot/vmlinuz; mkdir tree/boot/vmlinuz-9; rm b.raw; truncate -s 20M b.raw; mke2fs -q -d tree "
	      "b.raw");
	refuses("b.raw", "/boot/vmlinuz-9 cannot be opened");
}

static void grub_says(void **state)
{
	make_tree();
	shell("mkdir tree/boot/grub; cat >tree/boot/grub/grub.cfg <<'END'\n"
	      "menuentry 'Debian' {\n"
	      "	linux	/boot/vmlinuz-5.10.0-99-amd64 root=wrong\n"
	      "	linux	/boot/vmlinuz-6.1.0-56-amd64 root=UUID=x ro  quiet ${more} console=tty0 'a b'\n"
	      "	initrd	/boot/initrd.img-6.1.0-56-amd64\n"
	      "}\n"
	      "END\n");
	shell("truncate -s 20M c.raw; mke2fs -q -t ext4 -d tree c.raw");
	boots("c.raw", "/boot/vmlinuz-6.1.0-56-amd64", "kernel 6.1.0-56-amd64\n", "/boot/initrd.img-6.1.0-56-amd64",
	      "initrd 6.1.0-56-amd64\n", "root=UUID=x ro quiet console=tty0");
	shell("rm -r tree/boot/grub; mkdir tree/etc/kernel; echo 'debug splash' >tree/etc/kernel/cmdline; rm c.raw; "
	      "truncate -s 20M c.raw;"
	      " mke2fs -q -t ext4 -U " UUID " -d tree c.raw");
	boots("c.raw", "/boot/vmlinuz-6.1.0-56-amd64", "kernel 6.1.0-56-amd64\n", "/boot/initrd.img-6.1.0-56-amd64",
	      "initrd 6.1.0-56-amd64\n", "debug splash root=UUID=" UUID " ro");
}

/* /boot in a partition of its own; qcow2, compressed. */
static void partitions(void **state)
{
	shell("rm -rf tree boot; mkdir -p tree/sbin boot; : >tree/sbin/init; echo k >boot/vmlinuz-1; echo i "
	      ">boot/initramfs-1.img");
	shell("truncate -s 64M d.raw; printf 'start=1MiB, size=1MiB\\nstart=2MiB, size=20MiB\\nstart=30MiB, "
	      "size=20MiB\\n' |"
	      " sfdisk -q --label gpt d.raw");
	shell("mke2fs -q -E offset=2097152 -d boot d.raw 20m; mke2fs -q -U " UUID
	      " -E offset=31457280 -d tree d.raw 20m");
	boots("d.raw", "/vmlinuz-1", "k\n", "/initramfs-1.img", "i\n", "root=UUID=" UUID " ro");
	shell("qemu-img convert -q -c -O qcow2 d.raw d.qcow2");
	boots("d.qcow2", "/vmlinuz-1", "k\n", "/initramfs-1.img", "i\n", "root=UUID=" UUID " ro");
	/* Without its first table the second one at the end counts. */
	shell("dd if=/dev/zero of=d.raw bs=512 seek=1 count=1 conv=notrunc status=none");
	boots("d.raw", "/vmlinuz-1", "k\n", "/initramfs-1.img", "i\n", "root=UUID=" UUID " ro");
	/* Without an initrd only the kernel's own names of partitions help. */
	shell("rm -f boot/init*; truncate -s 0 d.raw; truncate -s 64M d.raw; printf 'label-id: " UUID
	      "\\nstart=2MiB, size=20MiB\\nstart=30MiB, size=20MiB, uuid=" PART_UUID
	      "\\n' | sfdisk -q --label gpt d.raw");
	shell("mke2fs -q -E offset=2097152 -d boot d.raw 20m; mke2fs -q -E offset=31457280 -d tree d.raw 20m");
	boots("d.raw", "/vmlinuz-1", "k\n", "", "", "root=PARTUUID=" PART_UUID " ro");
}

static void logical_partitions(void **state)
{
	shell("rm -rf tree; mkdir -p tree/boot tree/sbin; : >tree/sbin/init; echo k >tree/boot/vmlinuz-1");
	shell("truncate -s 64M e.raw; printf 'label-id: 0x12345678\\nstart=1MiB, size=2MiB, type=c\\nstart=4MiB, "
	      "size=58MiB, type=f\\n"
	      "start=5MiB, size=5MiB, type=82\\nstart=12MiB, size=20MiB\\n' | sfdisk -q --label dos e.raw");
	shell("mke2fs -q -E offset=12582912 -d tree e.raw 20m");
	boots("e.raw", "/boot/vmlinuz-1", "k\n", "", "", "root=PARTUUID=12345678-06 ro");
}

static void refusals(void **state)
{
	struct disk_boot files;
	char why[BOOT_WHY_SIZE];

	shell("truncate -s 10M f.raw");
	refuses("f.raw", "f.raw: no ext2, ext3 or ext4 file system found");
	shell("head -c 700 /dev/urandom >f.raw");
	refuses("f.raw", "no ext2, ext3 or ext4 file system found");
	shell("rm -rf tree; mkdir tree; truncate -s 10M f.raw; mke2fs -q -F -d tree f.raw");
	refuses("f.raw", "no kernel found");
	shell("head -c 3000000 /dev/zero >tree/vmlinuz; truncate -s 0 f.raw; truncate -s 20M f.raw; mke2fs -q -F -d "
	      "tree f.raw");
	assert_int_equal(read_boot("f.raw", 2 * MIB, &files, why), -EFBIG);
	assert_string_equal(why, "f.raw:/vmlinuz: does not fit in the machine's memory");
}

/* A file system with random bytes changed in its metadata: refused with one line or read; nothing hangs, nothing crashes here. */
static void damaged(void **state)
{
	const char *seed_text = getenv("RING3_SEED");
	unsigned seed = seed_text ? (unsigned)atoi(seed_text) : 1, read_well = 0, died = 0;
	const unsigned rounds = getenv("RING3_LONG") ? 1000 : 60;
	char path[200];

	make_tree();
	shell("truncate -s 4M g.raw; mke2fs -q -t ext4 -O ^metadata_csum -U " UUID " -d tree g.raw");
	snprintf(path, sizeof(path), "%s/g.raw", folder);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	print_message("seed %u\n", seed);
	for (unsigned round = 0; round < rounds; round++) {
		uint8_t saved[64];
		off_t at[64];
		unsigned count = 1 + (unsigned)rand_r(&seed) % 64;
		struct disk_boot files;
		char why[BOOT_WHY_SIZE] = "";

		for (unsigned i = 0; i < count; i++) {
			/* Superblock, group descriptors, inodes and directories are in the first blocks. */
			uint8_t byte = (uint8_t)rand_r(&seed);
			at[i] = rand_r(&seed) % 3 ? 1024 + rand_r(&seed) % 4096 : rand_r(&seed) % (512 << 10);
			assert_int_equal(pread(fd, saved + i, 1, at[i]), 1);
			assert_int_equal(pwrite(fd, &byte, 1, at[i]), 1);
		}
		if (read_boot("g.raw", LIMIT, &files, why) == 0) {
			read_well++;
			disk_boot_free(&files);
		} else {
			assert_non_null(strstr(why, "g.raw"));
			assert_null(strchr(why, '\n'));
			died += strstr(why, "died of signal") != NULL;
		}
		for (unsigned i = count; i-- > 0;)
			assert_int_equal(pwrite(fd, saved + i, 1, at[i]), 1);
	}
	close(fd);
	print_message("%u of %u read, %u readers died\n", read_well, rounds, died);
	boots("g.raw", "/boot/vmlinuz-6.1.0-56-amd64", "kernel 6.1.0-56-amd64\n", "/boot/initrd.img-6.1.0-56-amd64",
	      "initrd 6.1.0-56-amd64\n", "root=UUID=" UUID " ro");
}

/* ---- the jail ---- */

enum deed { NOTHING, MEMORY, OPEN, READ, EXECUTABLE, MAP_SOCKET, KILL_PARENT, FORK, SPIN };

static void do_deed(enum deed deed, int fd)
{
	char byte = 1;
	void *memory;

	switch (deed) {
	case NOTHING:
		break;
	case MEMORY:
		memory = malloc(10 * MIB);
		if (!memory || send(0, memset(memory, 1, 10 * MIB), 1, 0) != 1 || recv(0, &byte, 1, 0) != 1)
			_exit(2);
		free(memory);
		break;
	case OPEN:
		_exit(open("/dev/null", O_RDONLY) < 0);
	case READ:
		_exit(read(fd, &byte, 1) < 0);
	case EXECUTABLE:
		_exit(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
	case MAP_SOCKET:
		_exit(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 0, 0) == MAP_FAILED);
	case KILL_PARENT:
		_exit(kill(getppid(), 0) < 0);
	case FORK:
		_exit(fork() < 0);
	case SPIN:
		for (;;)
			__asm__ volatile("pause");
	}
	_exit(0);
}

static int jailed(enum deed deed)
{
	int sockets[2], status;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		int fd = open("/dev/zero", O_RDONLY);
		if (jail_enter(sockets[1], 1) < 0)
			_exit(3);
		do_deed(deed, fd);
	}
	close(sockets[1]);
	assert_int_equal(send(sockets[0], "", 1, MSG_NOSIGNAL), 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	close(sockets[0]);
	return status;
}

static void jail(void **state)
{
	assert_int_equal(jailed(NOTHING), 0);
	assert_int_equal(jailed(MEMORY), 0);
	for (enum deed deed = OPEN; deed < SPIN; deed++) {
		int status = jailed(deed);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), SIGSYS);
	}
	int status = jailed(SPIN);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(newest_kernel),
	    cmocka_unit_test(links),
	    cmocka_unit_test(grub_says),
	    cmocka_unit_test(partitions),
	    cmocka_unit_test(logical_partitions),
	    cmocka_unit_test(refusals),
	    cmocka_unit_test(damaged),
	    cmocka_unit_test(jail),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
