#include "devices/virtio/virtio_net.h"

#include <errno.h>
#include <string.h>

#include "backends/net/net.h"
#include "machine/state.h"

#define DEVICE_ID   1
#define CLASS_CODE  0x020000
#define HEADER_SIZE 12u
#define SHARE       256u /* frames sent before others have their turn */

#define GUEST_OFFLOADS                                                                                                 \
	(NET_FEATURE_GUEST_CSUM | NET_FEATURE_GUEST_TSO4 | NET_FEATURE_GUEST_TSO6 | NET_FEATURE_GUEST_ECN |            \
	 NET_FEATURE_GUEST_UFO)

/* Offsets in the configuration space (5.1.4). */
enum { CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_PAIRS = 8, CONFIG_MTU = 10 };
#define STATUS_LINK_UP 1u

static unsigned control_queue(const struct virtio_net *card)
{
	return virtio_has(&card->device, NET_FEATURE_MQ) ? 2 * card->pairs_max : 2;
}

/* Legacy drivers have the field for merged buffers only where they use it (5.1.6). */
static unsigned header_size(const struct virtio_net *card)
{
	return card->device.legacy && !virtio_has(&card->device, NET_FEATURE_MRG_RXBUF) ? sizeof(struct virtio_net_hdr)
	                                                                                : HEADER_SIZE;
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)value;
	at[1] = value >> 8;
}

/* ---- flows ---- */

static uint32_t word(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, 4);
	return value;
}

/* A number that is the same for both directions of a TCP or UDP flow; 0 for what is neither. */
static unsigned flow_of(const uint8_t *frame, size_t length)
{
	size_t ip = 14, ports;
	uint32_t mix;
	uint8_t protocol;

	if (length >= 18 && frame[12] == 0x81 && frame[13] == 0x00)
		ip = 18;
	if (length < ip + 44)
		return 0;
	if (frame[ip] >> 4 == 4) {
		mix = word(frame + ip + 12) ^ word(frame + ip + 16);
		protocol = frame[ip + 9];
		ports = ip + 4 * (frame[ip] & 15u);
	} else if (frame[ip] >> 4 == 6) {
		mix = 0;
		for (unsigned i = 8; i < 40; i += 4)
			mix ^= word(frame + ip + i);
		protocol = frame[ip + 6];
		ports = ip + 40;
	} else {
		return 0;
	}
	if ((protocol != 6 && protocol != 17) || ports + 4 > length)
		return 0;
	mix ^= word(frame + ports) ^ (word(frame + ports) >> 16);
	mix *= 0x9e3779b1u;
	return mix >> 24;
}

/* ---- transmit ---- */

/* One frame. False: the back end is full. */
static bool transmit(struct virtio_net *card, struct virtio_queue *queue)
{
	struct virtio_chain *chain = &card->chain;
	struct iovec iov[VIRTIO_CHAIN_MAX];
	struct virtio_net_hdr header;
	uint8_t start[64];
	unsigned count;
	size_t seen;

	/* Frames that are too short or too long are the back end's to drop; the header's last field says nothing here.
	 */
	virtio_chain_read(chain, 0, &header, sizeof header);
	count = virtio_chain_slice(chain, false, header_size(card), UINT32_MAX, iov);
	if (!net_send(card->net, &header, iov, count))
		return false;
	if (card->pairs > 1) {
		seen = virtio_chain_read(chain, header_size(card), start, sizeof start);
		card->flow[flow_of(start, seen)] = queue->index / 2;
	}
	virtio_queue_complete(queue, chain->token, 0);
	return true;
}

static void transmit_all(struct virtio_net *card, struct virtio_queue *queue)
{
	unsigned sent = 0;

	virtio_ring_notify_off(&queue->ring);
	do {
		while (sent < SHARE && virtio_queue_next(queue, &card->chain)) {
			if (card->chain.readable_length < header_size(card)) {
				virtio_break(&card->device, "frame without header");
				return;
			}
			if (!transmit(card, queue)) {
				virtio_ring_rewind(&queue->ring, card->chain.token);
				return; /* until writable() */
			}
			sent++;
		}
		if (sent == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

static void writable(void *owner)
{
	struct virtio_net *card = owner;

	virtio_enter(&card->device);
	for (unsigned i = 0; i < card->pairs_max; i++)
		if (2 * i + 1 != control_queue(card) && virtio_queue_runs(&card->device.queue[2 * i + 1]))
			transmit_all(card, &card->device.queue[2 * i + 1]);
	virtio_leave(&card->device);
}

/* ---- receive ---- */

/* What gather() found. */
enum fit { FIT, FIT_NO_BUFFERS, FIT_NEVER };

/*
 * Writes the frame into as many chains as it takes (one, without MRG_RXBUF), leaving room for the header in the first;
 * `head` are the header's places. Their number is left in *taken.
 */
static enum fit gather(struct virtio_net *card, struct virtio_queue *queue, const uint8_t *frame, size_t length,
                       struct iovec head[HEADER_SIZE], unsigned *heads, unsigned *taken)
{
	struct virtio_chain *chain = &card->chain;
	bool merge = virtio_has(&card->device, NET_FEATURE_MRG_RXBUF);
	size_t done = 0;

	for (*taken = 0; *taken < queue->size;) {
		unsigned skip = *taken ? 0 : header_size(card);

		if (!virtio_queue_next(queue, chain))
			return FIT_NO_BUFFERS;
		card->token[*taken] = chain->token;
		if (chain->writable_length <= skip) {
			virtio_break(&card->device, "receive buffer without room");
			return FIT_NEVER;
		}
		if (skip)
			*heads = virtio_chain_slice(chain, true, 0, skip, head);
		size_t part = virtio_chain_write(chain, card->device.host.memory, skip, frame + done, length - done);
		card->written[(*taken)++] = skip + (uint32_t)part;
		done += part;
		if (done == length)
			return FIT;
		if (!merge)
			return FIT_NEVER;
	}
	return FIT_NEVER;
}

static void give_up(struct virtio_net *card, struct virtio_queue *queue, unsigned taken)
{
	/* (With a broken ring there is nothing to put back.) */
	while (taken > 0 && virtio_ring_ready(&queue->ring))
		virtio_ring_rewind(&queue->ring, card->token[--taken]);
}

static void put_header(struct virtio_net *card, const struct virtio_net_hdr *header, unsigned buffers,
                       const struct iovec *head, unsigned heads)
{
	uint8_t bytes[HEADER_SIZE], *from = bytes;

	memcpy(bytes, header, sizeof *header);
	put16(bytes + 10, buffers);
	for (unsigned i = 0; i < heads; from += head[i++].iov_len)
		memcpy(head[i].iov_base, from, head[i].iov_len);
	virtio_segments_written(card->device.host.memory, head, heads);
}

static bool receive(void *owner, const struct virtio_net_hdr *header, const uint8_t *frame, size_t length)
{
	struct virtio_net *card = owner;
	unsigned pair = card->pairs > 1 ? card->flow[flow_of(frame, length)] % card->pairs : 0;
	struct virtio_queue *queue = &card->device.queue[2 * pair];
	struct iovec head[HEADER_SIZE];
	unsigned heads = 0, taken;
	enum fit fit;

	if (card->device.paused)
		return false;
	if (!virtio_queue_runs(queue) || !virtio_net_wants(card, frame, length))
		return true;
	/*
	 * Too few buffers: the driver shall tell of the next one behind those that are there, which go back. Did it
	 * come just before? Then once more; each look finds at least one more, and the ring has so many places.
	 */
	while ((fit = gather(card, queue, frame, length, head, &heads, &taken)) != FIT) {
		bool more = fit == FIT_NO_BUFFERS && virtio_ring_notify_on(&queue->ring);

		give_up(card, queue, taken);
		if (fit == FIT_NEVER || !virtio_queue_runs(queue))
			return true;
		if (!more)
			return false;
	}
	virtio_ring_notify_off(&queue->ring);
	put_header(card, header, taken, head, heads);
	for (unsigned i = 0; i < taken; i++)
		virtio_ring_fill(&queue->ring, card->token[i], card->written[i]);
	virtio_queue_flush(queue);
	return true;
}

static void receive_begin(void *owner)
{
	virtio_enter(&((struct virtio_net *)owner)->device);
}

static void receive_end(void *owner)
{
	virtio_leave(&((struct virtio_net *)owner)->device);
}

static void link_changed(void *owner, bool up)
{
	struct virtio_net *card = owner;

	virtio_enter(&card->device);
	put16(card->config + CONFIG_STATUS, up ? STATUS_LINK_UP : 0);
	virtio_config_changed(&card->device);
	virtio_leave(&card->device);
}

/* ---- the device ---- */

void virtio_net_apply_offloads(struct virtio_net *card)
{
	uint64_t features = card->offloads;
	unsigned offloads = 0;

	offloads |= features & NET_FEATURE_GUEST_CSUM ? NET_OFFLOAD_CSUM : 0;
	offloads |= features & NET_FEATURE_GUEST_TSO4 ? NET_OFFLOAD_TSO4 : 0;
	offloads |= features & NET_FEATURE_GUEST_TSO6 ? NET_OFFLOAD_TSO6 : 0;
	offloads |= features & NET_FEATURE_GUEST_ECN ? NET_OFFLOAD_ECN : 0;
	offloads |= features & NET_FEATURE_GUEST_UFO ? NET_OFFLOAD_UFO : 0;
	net_set_offloads(card->net, offloads);
}

/* 5.1.3.1. */
static bool features_ok(struct virtio_device *device, uint64_t features)
{
	const uint64_t guest = NET_FEATURE_GUEST_TSO4 | NET_FEATURE_GUEST_TSO6 | NET_FEATURE_GUEST_UFO;
	const uint64_t host = NET_FEATURE_HOST_TSO4 | NET_FEATURE_HOST_TSO6 | NET_FEATURE_HOST_UFO;
	const uint64_t control = NET_FEATURE_CTRL_RX | NET_FEATURE_CTRL_VLAN | NET_FEATURE_CTRL_RX_EXTRA |
	                         NET_FEATURE_MQ | NET_FEATURE_CTRL_MAC_ADDR | NET_FEATURE_CTRL_OFFLOADS;

	return (!(features & guest) || features & NET_FEATURE_GUEST_CSUM) &&
	       (!(features & host) || features & NET_FEATURE_CSUM) &&
	       (!(features & control) || features & NET_FEATURE_CTRL_VQ);
}

static void activate(struct virtio_device *device)
{
	struct virtio_net *card = (struct virtio_net *)device;

	if (!virtio_has(device, NET_FEATURE_CTRL_OFFLOADS))
		card->offloads = atomic_load(&device->features);
	card->offloads &= atomic_load(&device->features) & GUEST_OFFLOADS;
	virtio_net_apply_offloads(card);
}

static void queue_notify(struct virtio_device *device, struct virtio_queue *queue)
{
	struct virtio_net *card = (struct virtio_net *)device;

	if (queue->index == control_queue(card))
		virtio_net_control(card, queue);
	else if (queue->index & 1)
		transmit_all(card, queue);
	else
		net_receive_ready(card->net);
}

static void reset(struct virtio_device *device)
{
	struct virtio_net *card = (struct virtio_net *)device;

	card->pairs = 1;
	card->offloads = GUEST_OFFLOADS; /* all that will be negotiated */
	memset(card->flow, 0, sizeof card->flow);
	memcpy(card->config + CONFIG_MAC, net_mac(card->net), 6);
	virtio_net_filter_reset(card);
	net_set_offloads(card->net, 0);
}

static void net_state(struct virtio_device *device, struct state *state)
{
	struct virtio_net *card = (struct virtio_net *)device;

	state_begin(state, "virtio-net", device->instance, 1);
	state_u8_array(state, "mac", card->config + CONFIG_MAC, 6);
	state_u16(state, "pairs", &card->pairs);
	state_u64(state, "offloads", &card->offloads);
	if (card->pairs == 0 || card->pairs > card->pairs_max) {
		card->pairs = 1;
		state_fail(state, "queue pairs out of range");
	}
	virtio_net_filter_state(card, state);
	state_end(state);
}

/* Legacy drivers without the control queue's command set their address here (5.1.4.3). */
static void config_write(struct virtio_device *device, unsigned offset, unsigned size, uint64_t value)
{
	struct virtio_net *card = (struct virtio_net *)device;

	for (unsigned i = 0; device->legacy && i < size && offset + i < CONFIG_MAC + 6; i++)
		card->config[offset + i] = (uint8_t)(value >> 8 * i);
}

static const struct virtio_ops ops = {
    .name = "virtio-net",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .config_write = config_write,
    .features_ok = features_ok,
    .activate = activate,
    .queue_notify = queue_notify,
    .reset = reset,
    .state = net_state,
};

int virtio_net_init(struct virtio_net *card, const struct virtio_host *host, unsigned instance, struct net *net)
{
	const struct net_client client = {.receive_begin = receive_begin,
	                                  .receive_end = receive_end,
	                                  .receive = receive,
	                                  .writable = writable,
	                                  .link_changed = link_changed,
	                                  .owner = card};
	uint64_t features = NET_FEATURE_CSUM | NET_FEATURE_HOST_TSO4 | NET_FEATURE_HOST_TSO6 | NET_FEATURE_HOST_ECN |
	                    GUEST_OFFLOADS | NET_FEATURE_HOST_UFO | NET_FEATURE_CTRL_OFFLOADS | NET_FEATURE_MAC |
	                    NET_FEATURE_MRG_RXBUF | NET_FEATURE_STATUS | NET_FEATURE_CTRL_VQ | NET_FEATURE_CTRL_RX |
	                    NET_FEATURE_CTRL_VLAN | NET_FEATURE_CTRL_RX_EXTRA | NET_FEATURE_CTRL_MAC_ADDR;
	uint16_t sizes[2 * VIRTIO_NET_PAIRS_MAX + 1];
	int error;

	memset(card, 0, sizeof *card);
	card->net = net;
	card->pairs_max = net_queue_pairs(net);
	if (card->pairs_max == 0 || card->pairs_max > VIRTIO_NET_PAIRS_MAX)
		return -EINVAL;
	for (unsigned i = 0; i <= 2 * card->pairs_max; i++)
		sizes[i] = VIRTIO_NET_QUEUE_SIZE;
	put16(card->config + CONFIG_STATUS, net_link(net) ? STATUS_LINK_UP : 0);
	put16(card->config + CONFIG_PAIRS, card->pairs_max);
	if (card->pairs_max > 1)
		features |= NET_FEATURE_MQ;
	if (net_mtu(net)) {
		features |= NET_FEATURE_MTU;
		put16(card->config + CONFIG_MTU, net_mtu(net));
	}
	error = virtio_device_init(&card->device, &ops, host, instance, features, 2 * card->pairs_max + 1, sizes,
	                           card->config, sizeof card->config);
	if (error)
		return error;
	reset(&card->device);
	error = net_attach(net, host->loop, &client);
	if (error)
		virtio_device_destroy(&card->device);
	return error;
}

void virtio_net_destroy(struct virtio_net *card)
{
	if (!card->device.ops)
		return;
	net_detach(card->net);
	virtio_device_destroy(&card->device);
}
