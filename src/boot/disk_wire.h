/*
 * Private to src/boot: what the jailed reader of a disk's file systems (disk_reader.c) and ring3 itself (disk_boot.c) say to each other over
 * a SOCK_SEQPACKET socket. The reader asks for bytes of the disk; what it finds it sends. It is not trusted.
 */
#pragma once

#include <stdint.h>

#define WIRE_DATA 65536u /* bytes in one message */

enum wire_type {
	WIRE_READ, /* offset, length: answered by a message with as many bytes; `type` is 0, or an errno and no bytes */
	WIRE_KERNEL,  /* its name; its bytes follow */
	WIRE_INITRD,  /* the same; none: not sent */
	WIRE_BYTES,   /* of the file named last */
	WIRE_COMMAND, /* the kernel command line */
	WIRE_REFUSED, /* why there is nothing to boot; the last message */
	WIRE_DONE,    /* all is sent; the last message */
};

struct wire_header {
	uint32_t type;
	uint32_t length; /* of what follows; for WIRE_READ: asked for */
	uint64_t offset;
};

struct wire_message {
	struct wire_header header;
	uint8_t data[WIRE_DATA];
};

/* The reader's whole life: `socket` leads to ring3, `size` is the disk's. Does not return. */
_Noreturn void disk_reader(int socket, uint64_t size);
