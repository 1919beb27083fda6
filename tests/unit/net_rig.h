/*
 * For the tests of network back ends: a device that records what it receives, and a loop that runs on the test's own
 * thread until something has happened.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "backends/net/net.h"
#include "backends/net/offload.h"
#include "host/event_loop.h"

#define RIG_PATIENCE 60000 /* ms */

struct rig_frame {
	struct rig_frame *next;
	struct virtio_net_hdr header;
	size_t length;
	uint8_t data[];
};

/* A device. */
struct rig {
	struct event_loop *loop;
	struct net *net;
	struct rig_frame *first, **last;
	unsigned count; /* received, since the beginning */
	unsigned room;  /* frames that it still takes */
	unsigned begun, ended, writable, link_changes;
	bool in_call; /* a net_*() function is running: no callbacks */
};

static inline void rig_begin(void *owner)
{
	struct rig *rig = owner;

	assert_false(rig->in_call);
	assert_int_equal(rig->begun, rig->ended);
	rig->begun++;
}

static inline void rig_end(void *owner)
{
	struct rig *rig = owner;

	rig->ended++;
	assert_int_equal(rig->begun, rig->ended);
}

static inline bool rig_receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *data, size_t length)
{
	struct rig *rig = owner;
	struct rig_frame *frame;

	assert_false(rig->in_call);
	assert_int_equal(rig->begun, rig->ended + 1);
	assert_true(length >= NET_FRAME_MIN && length <= NET_FRAME_MAX);
	if (rig->room == 0)
		return false;
	rig->room--;
	frame = malloc(sizeof(*frame) + length);
	assert_non_null(frame);
	*frame = (struct rig_frame){.header = *header, .length = length};
	memcpy(frame->data, data, length);
	*rig->last = frame;
	rig->last = &frame->next;
	rig->count++;
	return true;
}

static inline void rig_writable(void *owner)
{
	struct rig *rig = owner;

	assert_false(rig->in_call);
	rig->writable++;
}

static inline void rig_link(void *owner, bool up)
{
	struct rig *rig = owner;

	assert_false(rig->in_call);
	rig->link_changes++;
}

static inline void rig_attach(struct rig *rig, struct event_loop *loop, struct net *net)
{
	const struct net_client client = {rig_begin, rig_end, rig_receive, rig_writable, rig_link, rig};

	assert_non_null(net);
	*rig = (struct rig){.loop = loop, .net = net, .room = UINT32_MAX, .in_call = true};
	rig->last = &rig->first;
	assert_int_equal(net_attach(net, loop, &client), 0);
	rig->in_call = false;
}

static inline struct net *rig_open(const char *text)
{
	struct net_options options;
	struct net *net;

	assert_int_equal(net_options_parse(&options, text), 0);
	net = net_open(&options);
	assert_non_null(net);
	return net;
}

/* NULL: nothing is there. The caller frees it. */
static inline struct rig_frame *rig_pop(struct rig *rig)
{
	struct rig_frame *frame = rig->first;

	if (!frame)
		return NULL;
	rig->first = frame->next;
	if (!rig->first)
		rig->last = &rig->first;
	return frame;
}

static inline void rig_forget(struct rig *rig)
{
	struct rig_frame *frame;

	while ((frame = rig_pop(rig)))
		free(frame);
}

static inline void rig_close(struct rig *rig)
{
	rig->in_call = true;
	net_close(rig->net);
	rig_forget(rig);
}

static inline bool rig_send_header(struct rig *rig, const struct virtio_net_hdr *header, const void *data,
                                   size_t length)
{
	struct iovec iov[2] = {{(void *)(uintptr_t)data, length < 20 ? length : 20},
	                       {(uint8_t *)(uintptr_t)data + 20, length < 20 ? 0 : length - 20}};
	bool taken;

	rig->in_call = true;
	taken = net_send(rig->net, header, iov, length > 20 ? 2 : 1);
	rig->in_call = false;
	return taken;
}

static inline void rig_send(struct rig *rig, const void *data, size_t length)
{
	assert_true(rig_send_header(rig, NULL, data, length));
}

/* ---- the loop ---- */

struct rig_wait {
	struct event_loop *loop;
	int timer;
	bool (*happened)(void *owner);
	void *owner;
	unsigned left;
	bool result;
};

static inline void rig_tick(void *owner, uint32_t events)
{
	struct rig_wait *wait = owner;
	uint64_t count;

	(void)events;
	if (read(wait->timer, &count, sizeof(count)) < 0)
		return;
	wait->result = wait->happened && wait->happened(wait->owner);
	if (wait->result || wait->left-- == 0)
		event_loop_stop(wait->loop);
}

/* Runs the loop until it has happened. False: not within `ms`. */
static inline bool rig_run(struct event_loop *loop, bool (*happened)(void *owner), void *owner, unsigned ms)
{
	struct rig_wait wait = {.loop = loop, .happened = happened, .owner = owner, .left = ms};
	struct itimerspec each = {.it_value = {0, 1000000}, .it_interval = {0, 1000000}};

	if (happened && happened(owner))
		return true;
	wait.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	assert_true(wait.timer >= 0);
	timerfd_settime(wait.timer, 0, &each, NULL);
	struct event_source *source = event_source_add(loop, wait.timer, EPOLLIN, rig_tick, &wait);
	assert_non_null(source);
	event_loop_run(loop);
	event_source_remove(source);
	close(wait.timer);
	return wait.result;
}

static inline bool rig_has_frame(void *owner)
{
	return ((struct rig *)owner)->first != NULL;
}

/* The next frame; a failure if there is none in time. The caller frees it. */
static inline struct rig_frame *rig_next(struct rig *rig)
{
	assert_true(rig_run(rig->loop, rig_has_frame, rig, RIG_PATIENCE));
	return rig_pop(rig);
}

struct rig_count {
	struct rig *rig;
	unsigned count;
};

static inline bool rig_has_counted(void *owner)
{
	struct rig_count *wanted = owner;

	return wanted->rig->count >= wanted->count;
}

static inline void rig_expect_count(struct rig *rig, unsigned count)
{
	struct rig_count wanted = {rig, count};

	assert_true(rig_run(rig->loop, rig_has_counted, &wanted, RIG_PATIENCE));
	assert_int_equal(rig->count, count);
}

static inline bool rig_link_is_up(void *owner)
{
	return net_link(((struct rig *)owner)->net);
}

static inline bool rig_link_is_down(void *owner)
{
	return !net_link(((struct rig *)owner)->net);
}

/* ---- frames ---- */

static inline void rig_put16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static inline unsigned rig_get16(const uint8_t *at)
{
	return (unsigned)(at[0] << 8 | at[1]);
}

static inline void rig_put32(uint8_t *at, uint32_t value)
{
	rig_put16(at, value >> 16);
	rig_put16(at + 2, value & 0xffff);
}

static inline uint32_t rig_get32(const uint8_t *at)
{
	return (uint32_t)rig_get16(at) << 16 | rig_get16(at + 2);
}

static inline void rig_ethernet(uint8_t *frame, const uint8_t *to, const uint8_t *from, unsigned type)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	rig_put16(frame + 12, type);
}

/* An IPv4 packet with that much behind its header, up to which everything is filled in. */
static inline void rig_ipv4(uint8_t *frame, uint32_t from, uint32_t to, unsigned protocol, size_t length)
{
	uint8_t *ip = frame + 14;
	uint16_t checksum;

	memset(ip, 0, 20);
	ip[0] = 0x45;
	rig_put16(ip + 2, (unsigned)(20 + length));
	rig_put16(ip + 4, 0x1234);
	ip[8] = 64;
	ip[9] = (uint8_t)protocol;
	rig_put32(ip + 12, from);
	rig_put32(ip + 16, to);
	checksum = checksum_fold(checksum_add(0, ip, 20));
	memcpy(ip + 10, &checksum, 2);
}

static inline void rig_ipv6(uint8_t *frame, const uint8_t *from, const uint8_t *to, unsigned next, size_t length)
{
	uint8_t *ip = frame + 14;

	memset(ip, 0, 40);
	ip[0] = 0x60;
	rig_put16(ip + 4, (unsigned)length);
	ip[6] = (uint8_t)next;
	ip[7] = 255;
	memcpy(ip + 8, from, 16);
	memcpy(ip + 24, to, 16);
}

/* The transport's checksum from scratch, an implementation of its own: byte by byte. 0xffff: it is right. */
static inline unsigned rig_transport_sum(const uint8_t *frame, size_t transport, size_t length)
{
	bool v4 = rig_get16(frame + 12) == 0x0800;
	uint32_t sum = v4 ? frame[23] : frame[20];
	size_t at;

	sum += (uint32_t)(length - transport);
	for (at = v4 ? 26 : 22; at < (v4 ? 34u : 54u); at += 2)
		sum += rig_get16(frame + at);
	for (at = transport; at < length; at++)
		sum += at % 2 == transport % 2 ? (uint32_t)frame[at] << 8 : frame[at];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static inline void rig_transport_finish(uint8_t *frame, size_t transport, size_t field, size_t length)
{
	unsigned sum;

	rig_put16(frame + transport + field, 0);
	sum = rig_transport_sum(frame, transport, length);
	rig_put16(frame + transport + field, sum == 0xffff ? 0xffff : ~sum & 0xffff);
}
