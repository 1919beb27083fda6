/* Two nets that are one cable. Tests stand on it; it is also the smallest example of a back end. */
#include <stdlib.h>

#include "backends/net/frame_queue.h"
#include "backends/net/net_private.h"

#define PAIR_FRAMES 256

struct pair {
	struct net *peer; /* NULL: the cable is pulled */
	struct frame_queue incoming;
};

static bool pair_can_send(struct net *net)
{
	const struct pair *pair = net->data;

	return !pair->peer || ((const struct pair *)pair->peer->data)->incoming.count < PAIR_FRAMES;
}

static bool pair_send(struct net *net, const struct virtio_net_hdr *header, const struct iovec *iov, unsigned iov_count,
                      size_t length)
{
	struct net *peer = ((struct pair *)net->data)->peer;

	if (!peer || !frame_queue_push(&((struct pair *)peer->data)->incoming, header, iov, iov_count, length))
		return false;
	net_kick(peer);
	return true;
}

static void pair_deliver(struct net *net)
{
	struct pair *pair = net->data;
	struct queued_frame *frame;

	for (unsigned i = 0; i < NET_BURST && net_input_ready(net) && (frame = frame_queue_pop(&pair->incoming)); i++) {
		net_input(net, &frame->header, frame->data, frame->length);
		free(frame);
	}
	if (pair->incoming.count > 0 && net_input_ready(net))
		net_kick(net);
	if (!pair->peer)
		net_set_link(net, false);
	else if (pair->incoming.count < PAIR_FRAMES / 2)
		net_writable(pair->peer);
}

static int pair_attach(struct net *net)
{
	net_kick(net); /* what the peer has sent already */
	return 0;
}

static void pair_close(struct net *net)
{
	struct pair *pair = net->data;

	if (pair->peer) {
		((struct pair *)pair->peer->data)->peer = NULL;
		net_kick(pair->peer);
	}
	frame_queue_clear(&pair->incoming);
	free(pair);
}

static const struct net_backend net_backend_pair = {
    .offloads = NET_OFFLOAD_ALL,
    .attach = pair_attach,
    .close = pair_close,
    .can_send = pair_can_send,
    .send = pair_send,
    .resume = pair_deliver,
    .kicked = pair_deliver,
};

bool net_pair(struct net *ends[2])
{
	for (unsigned i = 0; i < 2; i++) {
		ends[i] = net_create(&net_backend_pair, i ? "pair.1" : "pair.0");
		if (ends[i])
			ends[i]->data = calloc(1, sizeof(struct pair));
	}
	if (ends[0] && ends[1] && ends[0]->data && ends[1]->data) {
		for (unsigned i = 0; i < 2; i++) {
			((struct pair *)ends[i]->data)->peer = ends[!i];
			ends[i]->link = true;
			net_mac_default(ends[i]->mac, NET_NONE, i);
		}
		return true;
	}
	for (unsigned i = 0; i < 2; i++) {
		if (ends[i] && ends[i]->data)
			net_close(ends[i]);
		else
			net_free(ends[i]);
		ends[i] = NULL;
	}
	return false;
}
