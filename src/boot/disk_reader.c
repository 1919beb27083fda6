/*
 * The jailed child that finds kernel, initrd and command line in a disk's ext2, ext3 and ext4 file systems, with libext2fs (disk_wire.h). It
 * reads the file system as it lies there: what only the journal holds yet is not seen.
 */
#include <ctype.h>
#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "boot/disk_wire.h"
#include "boot/partitions.h"
#include "host/jail.h"

#define SECONDS     30
#define WINDOWS     64u        /* of the disk, cached; each is one message */
#define CONFIG_MAX  (1u << 20) /* bytes of a configuration file */
#define COMMAND_MAX 2000u
#define PATH_LENGTH 320

struct window {
	uint64_t at; /* ~0: empty */
	uint8_t data[WIRE_DATA];
};

struct reader {
	int socket;
	uint64_t size;
	struct partition partition[PARTITIONS_MAX + 1];
	unsigned partition_count, current; /* the one that an io_channel is opened on */
	struct wire_message message;
	struct window window[WINDOWS];
};

/* ---- talking to ring3 ---- */

static void send_message(struct reader *reader, enum wire_type type, uint64_t offset, uint32_t length, uint32_t bytes)
{
	reader->message.header = (struct wire_header){.type = type, .length = length, .offset = offset};
	size_t whole = sizeof(reader->message.header) + bytes;

	if (send(reader->socket, &reader->message, whole, MSG_NOSIGNAL) != (ssize_t)whole)
		_exit(1);
}

static void send_text(struct reader *reader, enum wire_type type, const char *text)
{
	uint32_t length = (uint32_t)strnlen(text, WIRE_DATA);

	memcpy(reader->message.data, text, length);
	send_message(reader, type, 0, length, length);
}

__attribute__((format(printf, 2, 3))) static _Noreturn void refuse(struct reader *reader, const char *format, ...)
{
	char text[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	send_text(reader, WIRE_REFUSED, text);
	_exit(0);
}

static int fill(struct reader *reader, struct window *window, uint64_t at)
{
	uint32_t length = reader->size - at < WIRE_DATA ? (uint32_t)(reader->size - at) : WIRE_DATA;
	ssize_t got;

	window->at = ~0ull;
	send_message(reader, WIRE_READ, at, length, 0);
	got = recv(reader->socket, &reader->message, sizeof(reader->message), 0);
	if (got < (ssize_t)sizeof(reader->message.header))
		_exit(1);
	if (reader->message.header.type)
		return -(int)reader->message.header.type;
	if ((size_t)got != sizeof(reader->message.header) + length)
		_exit(1);
	memcpy(window->data, reader->message.data, length);
	window->at = at;
	return 0;
}

static int read_disk(void *owner, uint64_t offset, void *buffer, uint32_t length)
{
	struct reader *reader = owner;
	uint8_t *to = buffer;

	if (offset > reader->size || length > reader->size - offset)
		return -EINVAL;
	while (length) {
		uint64_t at = offset & ~(uint64_t)(WIRE_DATA - 1);
		struct window *window = &reader->window[at / WIRE_DATA % WINDOWS];
		int error = window->at == at ? 0 : fill(reader, window, at);
		uint32_t part = WIRE_DATA - (uint32_t)(offset - at);

		if (error)
			return error;
		if (part > length)
			part = length;
		memcpy(to, window->data + (offset - at), part);
		to += part;
		offset += part;
		length -= part;
	}
	return 0;
}

/* ---- libext2fs on top of that ---- */

static errcode_t channel_read64(io_channel channel, unsigned long long block, int count, void *data)
{
	struct reader *reader = channel->private_data;
	const struct partition *partition = &reader->partition[reader->current];
	uint64_t size = (uint64_t)channel->block_size, at, length;

	length = count < 0 ? (uint64_t) - (int64_t)count : (uint64_t)count * size; /* negative: bytes */
	if (block > partition->length / size || length > partition->length - block * size || length > UINT32_MAX)
		return EXT2_ET_SHORT_READ;
	at = partition->start + block * size;
	return read_disk(reader, at, data, (uint32_t)length) < 0 ? EIO : 0;
}

static errcode_t channel_read(io_channel channel, unsigned long block, int count, void *data)
{
	return channel_read64(channel, block, count, data);
}

static errcode_t channel_write64(io_channel channel, unsigned long long block, int count, const void *data)
{
	return EROFS;
}

static errcode_t channel_write(io_channel channel, unsigned long block, int count, const void *data)
{
	return EROFS;
}

static errcode_t channel_set_blksize(io_channel channel, int size)
{
	if (size < 1024 || size > 65536)
		return EINVAL;
	channel->block_size = size;
	return 0;
}

static errcode_t channel_flush(io_channel channel)
{
	return 0;
}

static errcode_t channel_close(io_channel channel)
{
	if (--channel->refcount == 0) {
		free(channel->name);
		free(channel);
	}
	return 0;
}

static errcode_t channel_open(const char *name, int flags, io_channel *out);

static struct struct_io_manager manager = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "ring3",
    .open = channel_open,
    .close = channel_close,
    .set_blksize = channel_set_blksize,
    .read_blk = channel_read,
    .read_blk64 = channel_read64,
    .write_blk = channel_write,
    .write_blk64 = channel_write64,
    .flush = channel_flush,
};

/* The library passes nothing on but a name: it is the reader's address. */
static errcode_t channel_open(const char *name, int flags, io_channel *out)
{
	io_channel channel = calloc(1, sizeof(*channel));

	if (!channel)
		return ENOMEM;
	channel->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	channel->manager = &manager;
	channel->name = strdup(name);
	channel->block_size = 1024;
	channel->refcount = 1;
	channel->private_data = (void *)(uintptr_t)strtoull(name, NULL, 16);
	if (!channel->name) {
		free(channel);
		return ENOMEM;
	}
	*out = channel;
	return 0;
}

static ext2_filsys open_file_system(struct reader *reader, unsigned number)
{
	ext2_filsys fs = NULL;
	char name[24];

	reader->current = number;
	snprintf(name, sizeof(name), "%llx", (unsigned long long)(uintptr_t)reader);
	return ext2fs_open2(name, NULL, EXT2_FLAG_64BITS, 0, 0, &manager, &fs) ? NULL : fs;
}

/* Follows symbolic links. 0: there is no such file. */
static ext2_ino_t find(ext2_filsys fs, const char *path)
{
	ext2_ino_t inode;

	return ext2fs_namei_follow(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, &inode) ? 0 : inode;
}

static ext2_file_t open_file(ext2_filsys fs, const char *path, uint64_t *size)
{
	ext2_ino_t number = find(fs, path);
	struct ext2_inode inode;
	ext2_file_t file;
	__u64 length;

	if (!number || ext2fs_read_inode(fs, number, &inode) || !LINUX_S_ISREG(inode.i_mode) ||
	    ext2fs_file_open(fs, number, 0, &file))
		return NULL;
	if (ext2fs_file_get_lsize(file, &length)) {
		ext2fs_file_close(file);
		return NULL;
	}
	*size = length;
	return file;
}

/* A small text file; NULL: not there, or too large. */
static char *read_text(ext2_filsys fs, const char *path)
{
	uint64_t size;
	ext2_file_t file = open_file(fs, path, &size);
	unsigned int got = 0;
	char *text = file && size <= CONFIG_MAX ? calloc(1, size + 1) : NULL;

	if (text && (ext2fs_file_read(file, text, (unsigned)size, &got) || got != size)) {
		free(text);
		text = NULL;
	}
	if (file)
		ext2fs_file_close(file);
	return text;
}

static void send_file(struct reader *reader, ext2_filsys fs, enum wire_type type, const char *path)
{
	uint8_t buffer[WIRE_DATA];
	uint64_t left;
	ext2_file_t file = open_file(fs, path, &left);
	unsigned int got;

	if (!file)
		refuse(reader, "%s cannot be opened", path);
	send_text(reader, type, path);
	while (left) {
		unsigned part = left < sizeof(buffer) ? (unsigned)left : sizeof(buffer);
		errcode_t error = ext2fs_file_read(file, buffer, part, &got);

		if (error || got != part)
			refuse(reader, "%s cannot be read: the file system is damaged", path);
		memcpy(reader->message.data, buffer, part);
		send_message(reader, WIRE_BYTES, 0, part, part);
		left -= part;
	}
	ext2fs_file_close(file);
}

/* ---- which kernel ---- */

/* Debian's order of versions: digits by value, '~' before the end, letters before other characters. */
static int order_of(int c)
{
	if (c == '~')
		return -1;
	return isalpha(c) ? c : c ? c + 256 : 0;
}

static int version_compare(const char *a, const char *b)
{
	while (*a || *b) {
		while ((*a && !isdigit((unsigned char)*a)) || (*b && !isdigit((unsigned char)*b))) {
			int left = isdigit((unsigned char)*a) ? 0 : order_of((unsigned char)*a);
			int right = isdigit((unsigned char)*b) ? 0 : order_of((unsigned char)*b);
			if (left != right)
				return left - right;
			a += *a != '\0';
			b += *b != '\0';
		}
		a += strspn(a, "0");
		b += strspn(b, "0");
		size_t left = strspn(a, "0123456789"), right = strspn(b, "0123456789");
		int order = left != right ? (left > right) - (left < right) : strncmp(a, b, left);
		if (order)
			return order;
		a += left;
		b += right;
	}
	return 0;
}

struct search {
	char newest[EXT2_NAME_LEN + 1]; /* what follows "vmlinuz-"; "": none yet */
};

static bool ends_with(const char *text, const char *end)
{
	size_t length = strlen(text), tail = strlen(end);

	return length >= tail && strcmp(text + length - tail, end) == 0;
}

static int look_at(ext2_ino_t directory, int where, struct ext2_dir_entry *entry, int offset, int block_size,
                   char *block, void *owner)
{
	static const char *const old[] = {".old", ".bak", ".dpkg-bak", ".dpkg-new", ".dpkg-tmp"};
	static const char prefix[] = "vmlinuz-";
	struct search *search = owner;
	char name[EXT2_NAME_LEN + 1];
	int length = ext2fs_dirent_name_len(entry);

	memcpy(name, entry->name, (size_t)length);
	name[length] = '\0';
	if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
		return 0;
	for (unsigned i = 0; i < sizeof(old) / sizeof(old[0]); i++)
		if (ends_with(name, old[i]))
			return 0;
	for (const char *at = name; *at; at++)
		if (!isgraph((unsigned char)*at) || *at == '/')
			return 0;
	const char *version = name + sizeof(prefix) - 1;
	if (*version && (!search->newest[0] || version_compare(version, search->newest) > 0))
		snprintf(search->newest, sizeof(search->newest), "%s", version);
	return 0;
}

struct choice {
	char kernel[PATH_LENGTH], initrd[PATH_LENGTH]; /* initrd "": none */
};

static bool choose_in(ext2_filsys fs, const char *folder, struct choice *choice)
{
	static const char *const initrds[] = {"initrd.img-%s", "initramfs-%s.img", "initrd-%s", "initrd-%s.img"};
	ext2_ino_t directory = find(fs, *folder ? folder : "/");
	struct search search = {0};
	uint64_t size;

	if (!directory || ext2fs_dir_iterate2(fs, directory, 0, NULL, look_at, &search) || !search.newest[0])
		return false;
	snprintf(choice->kernel, sizeof(choice->kernel), "%s/vmlinuz-%s", folder, search.newest);
	for (unsigned i = 0; i < sizeof(initrds) / sizeof(initrds[0]); i++) {
		int length = snprintf(choice->initrd, sizeof(choice->initrd), "%s/", folder);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(choice->initrd + length, sizeof(choice->initrd) - (size_t)length, initrds[i], search.newest);
#pragma GCC diagnostic pop
		ext2_file_t file = open_file(fs, choice->initrd, &size);
		if (file) {
			ext2fs_file_close(file);
			return true;
		}
	}
	choice->initrd[0] = '\0';
	return true;
}

/* The names without a version, often symbolic links. */
static bool choose_plain(ext2_filsys fs, struct choice *choice)
{
	static const char *const pairs[][2] = {
	    {"/vmlinuz", "/initrd.img"}, {"/boot/vmlinuz", "/boot/initrd.img"}, {"/boot/bzImage", "/boot/initrd"}};

	for (unsigned i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		uint64_t size;
		ext2_file_t file = open_file(fs, pairs[i][0], &size);
		if (!file)
			continue;
		ext2fs_file_close(file);
		snprintf(choice->kernel, sizeof(choice->kernel), "%s", pairs[i][0]);
		choice->initrd[0] = '\0';
		file = open_file(fs, pairs[i][1], &size);
		if (file) {
			ext2fs_file_close(file);
			snprintf(choice->initrd, sizeof(choice->initrd), "%s", pairs[i][1]);
		}
		return true;
	}
	return false;
}

static bool choose(ext2_filsys fs, struct choice *choice)
{
	return choose_in(fs, "/boot", choice) || choose_in(fs, "", choice) || choose_plain(fs, choice);
}

/* ---- the command line ---- */

/* Adds the words of one line; those that a boot loader or shell would expand are left out. */
static void add_words(char *command, const char *line, size_t length)
{
	size_t used = strlen(command);

	for (size_t at = 0; at < length;) {
		size_t skip = strspn(line + at, " \t"),
		       word = at + skip < length ? strcspn(line + at + skip, " \t\n\r") : 0;
		bool plain = true;

		at += skip;
		if (at >= length || word == 0)
			return;
		if (word > length - at)
			word = length - at;
		for (size_t i = 0; i < word; i++)
			plain = plain && isgraph((unsigned char)line[at + i]) && !strchr("$`\"'\\", line[at + i]);
		if (plain && used + word + 2 < COMMAND_MAX) {
			if (used)
				command[used++] = ' ';
			memcpy(command + used, line + at, word);
			used += word;
			command[used] = '\0';
		}
		at += word;
	}
}

/* grub.cfg: the first "linux PATH WORD..." with the kernel's file name. */
static bool words_from_grub(const char *text, const char *kernel, char *command)
{
	const char *name = strrchr(kernel, '/') + 1;

	for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
		const char *at = line + strspn(line, " \t");
		size_t length = strcspn(at, "\n"), path;

		if (strncmp(at, "linux", 5) != 0 || strspn(at + 5, " \t") == 0)
			continue;
		at += 5 + strspn(at + 5, " \t");
		length = strcspn(at, "\n");
		path = strcspn(at, " \t\n");
		if (path < strlen(name) || strncmp(at + path - strlen(name), name, strlen(name)) != 0 ||
		    (path > strlen(name) && at[path - strlen(name) - 1] != '/'))
			continue;
		add_words(command, at + path, length - path);
		return true;
	}
	return false;
}

static bool has_word(const char *command, const char *prefix)
{
	for (const char *at = command; (at = strstr(at, prefix)) != NULL; at++)
		if (at == command || at[-1] == ' ')
			return true;
	return false;
}

static void words_of(ext2_filsys fs, const char *kernel, char *command)
{
	static const char *const configs[] = {"/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg",
	                                      "/grub2/grub.cfg"};

	for (unsigned i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		char *text = read_text(fs, configs[i]);
		bool found = text && words_from_grub(text, kernel, command);
		free(text);
		if (found)
			return;
	}
	char *text = read_text(fs, "/etc/kernel/cmdline");
	if (text)
		add_words(command, text, strcspn(text, "\n"));
	free(text);
}

/* What "root=" is for the file system in this partition: by its UUID, which an initrd understands, or else as the kernel itself can. */
static void add_root(struct reader *reader, ext2_filsys fs, unsigned number, bool initrd, char *command)
{
	const uint8_t *id = fs->super->s_uuid;
	const char *partition = reader->partition[number].uuid;
	size_t used = strlen(command);
	const char *gap = used ? " " : "";

	if (initrd)
		snprintf(command + used, COMMAND_MAX - used,
		         "%sroot=UUID=%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x ro", gap,
		         id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7], id[8], id[9], id[10], id[11], id[12],
		         id[13], id[14], id[15]);
	else if (*partition)
		snprintf(command + used, COMMAND_MAX - used, "%sroot=PARTUUID=%s ro", gap, partition);
	else
		snprintf(command + used, COMMAND_MAX - used, "%sroot=/dev/vda ro", gap);
}

static bool is_root(ext2_filsys fs)
{
	return find(fs, "/etc/fstab") || find(fs, "/sbin/init") || find(fs, "/usr/lib/systemd/systemd");
}

static void find_and_send(struct reader *reader)
{
	struct choice choice = {0};
	char command[COMMAND_MAX] = "";
	ext2_filsys boot = NULL;
	unsigned number, systems = 0;

	for (number = 0; number < reader->partition_count; number++) {
		ext2_filsys fs = open_file_system(reader, number);
		systems += fs != NULL;
		if (fs && choose(fs, &choice)) {
			boot = fs;
			break;
		}
		if (fs)
			ext2fs_free(fs);
	}
	if (!systems)
		refuse(reader, "no ext2, ext3 or ext4 file system found");
	if (!boot)
		refuse(reader, "no kernel found: neither /boot/vmlinuz-* nor /vmlinuz");
	send_file(reader, boot, WIRE_KERNEL, choice.kernel);
	if (choice.initrd[0])
		send_file(reader, boot, WIRE_INITRD, choice.initrd);
	words_of(boot, choice.kernel, command);
	if (!has_word(command, "root=")) {
		ext2_filsys root = is_root(boot) ? boot : NULL;

		for (unsigned i = 0; i < reader->partition_count && !root; i++) {
			ext2_filsys fs = open_file_system(reader, i);
			if (fs && is_root(fs)) {
				root = fs;
				number = i;
			} else if (fs) {
				ext2fs_free(fs);
			}
		}
		if (root)
			add_root(reader, root, number, choice.initrd[0], command);
	}
	send_text(reader, WIRE_COMMAND, command);
	send_message(reader, WIRE_DONE, 0, 0, 0);
}

_Noreturn void disk_reader(int socket, uint64_t size)
{
	struct reader *reader = calloc(1, sizeof(*reader));

	if (!reader || jail_enter(socket, SECONDS) < 0)
		_exit(1);
	reader->socket = 0;
	reader->size = size;
	for (unsigned i = 0; i < WINDOWS; i++)
		reader->window[i].at = ~0ull;
	int count = partitions_read(&(struct partition_source){.read = read_disk, .owner = reader, .size = size},
	                            reader->partition);
	if (count < 0)
		refuse(reader, "the partition table cannot be read: %s", strerror(-count));
	reader->partition_count = (unsigned)count;
	/* No partition table, or none that says the truth: the disk as a whole. */
	reader->partition[reader->partition_count++] = (struct partition){.start = 0, .length = size};
	find_and_send(reader);
	_exit(0);
}
