/*
 * qcow2: compressed clusters (read only): raw deflate with a 4 KiB window, or zstd.
 */
#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "backends/disk/qcow2.h"

static int expand_zlib(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
	z_stream stream = {.next_in = (uint8_t *)(uintptr_t)in,
	                   .avail_in = (unsigned)in_length,
	                   .next_out = out,
	                   .avail_out = (unsigned)out_length};

	if (inflateInit2(&stream, -12) != Z_OK)
		return -ENOMEM;
	int result = inflate(&stream, Z_FINISH);
	inflateEnd(&stream);
	/* The stream's end may lie in the last sector's padding, so a full output is what counts. */
	return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -EIO;
}

static int expand_zstd(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
	ZSTD_DStream *stream = ZSTD_createDStream();
	ZSTD_inBuffer input = {in, in_length, 0};
	ZSTD_outBuffer output = {out, out_length, 0};
	int error = stream ? 0 : -ENOMEM;

	while (!error && output.pos < output.size) {
		size_t before = input.pos + output.pos;
		size_t result = ZSTD_decompressStream(stream, &output, &input);

		if (ZSTD_isError(result) || (input.pos + output.pos == before && output.pos < output.size))
			error = -EIO;
	}
	ZSTD_freeDStream(stream);
	return error;
}

int qcow2_expand(unsigned type, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
	return type == COMPRESSION_ZSTD ? expand_zstd(in, in_length, out, out_length)
	                                : expand_zlib(in, in_length, out, out_length);
}
