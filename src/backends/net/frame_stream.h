/*
 * Frames on a stream socket, as passt and QEMU have them: a length of 4 bytes, big-endian, and the frame. The bytes are
 * hostile.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FRAME_STREAM_PREFIX 4
#define FRAME_STREAM_ROOM   (256u << 10)

struct frame_stream {
	uint8_t *data;     /* FRAME_STREAM_ROOM */
	size_t begin, end; /* what has been read and not been taken */
};

enum frame_stream_result {
	FRAME_STREAM_FRAME, /* one frame, in place; it may be changed until the next call */
	FRAME_STREAM_RUNT,  /* one was too short and has been skipped */
	FRAME_STREAM_MORE,  /* not all of it is there: read into frame_stream_room() */
	FRAME_STREAM_BROKEN /* a length that no frame has: what follows cannot be understood */
};

enum frame_stream_result frame_stream_next(struct frame_stream *stream, uint8_t **frame, size_t *length);
/* Where to read to, and how much: never 0 after FRAME_STREAM_MORE. The caller adds to `end`. */
uint8_t *frame_stream_room(struct frame_stream *stream, size_t *room);
