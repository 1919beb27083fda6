#include "backends/net/frame_stream.h"

#include <string.h>

#include "backends/net/net.h"

_Static_assert(FRAME_STREAM_ROOM >= 2 * (FRAME_STREAM_PREFIX + NET_FRAME_MAX), "a frame must fit");

enum frame_stream_result frame_stream_next(struct frame_stream *stream, uint8_t **frame, size_t *length)
{
	const uint8_t *at = stream->data + stream->begin;
	size_t available = stream->end - stream->begin;
	uint32_t size;

	if (available < FRAME_STREAM_PREFIX)
		return FRAME_STREAM_MORE;
	size = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
	if (size > NET_FRAME_MAX)
		return FRAME_STREAM_BROKEN;
	if (available < FRAME_STREAM_PREFIX + size)
		return FRAME_STREAM_MORE;
	*frame = stream->data + stream->begin + FRAME_STREAM_PREFIX;
	*length = size;
	stream->begin += FRAME_STREAM_PREFIX + size;
	return size < NET_FRAME_MIN ? FRAME_STREAM_RUNT : FRAME_STREAM_FRAME;
}

uint8_t *frame_stream_room(struct frame_stream *stream, size_t *room)
{
	if (stream->begin == stream->end) {
		stream->begin = stream->end = 0;
	} else if (FRAME_STREAM_ROOM - stream->begin < FRAME_STREAM_PREFIX + NET_FRAME_MAX) {
		memmove(stream->data, stream->data + stream->begin, stream->end - stream->begin);
		stream->end -= stream->begin;
		stream->begin = 0;
	}
	*room = FRAME_STREAM_ROOM - stream->end;
	return stream->data + stream->end;
}
