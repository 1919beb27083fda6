/*
 * The network card's control queue (virtio 1.2 5.1.6.5), and the filter that it sets.
 */
#include "devices/virtio/virtio_net.h"

#include <string.h>

#include "machine/state.h"

enum { CLASS_RX, CLASS_MAC, CLASS_VLAN, CLASS_ANNOUNCE, CLASS_MQ, CLASS_OFFLOADS };
enum { RX_PROMISCUOUS, RX_ALL_MULTICAST, RX_ALL_UNICAST, RX_NO_MULTICAST, RX_NO_UNICAST, RX_NO_BROADCAST };
enum { MAC_TABLE_SET, MAC_ADDRESS_SET };
enum { VLAN_ADD, VLAN_DELETE };
enum { MQ_PAIRS_SET };
enum { OFFLOADS_SET };

#define ACK_OK    0
#define ACK_ERROR 1

#define COMMAND_SIZE 2u
#define SHARE        16u /* commands before others have their turn */

#define UNICAST   0
#define MULTICAST 1

void virtio_net_filter_reset(struct virtio_net *card)
{
	card->filter = (struct virtio_net_filter){.promiscuous = true};
}

bool virtio_net_wants(const struct virtio_net *card, const uint8_t *frame, size_t length)
{
	static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	const struct virtio_net_filter *filter = &card->filter;
	unsigned kind = frame[0] & 1 ? MULTICAST : UNICAST;

	if (length >= 18 && frame[12] == 0x81 && frame[13] == 0x00 &&
	    virtio_has(&card->device, NET_FEATURE_CTRL_VLAN)) {
		unsigned vlan = (frame[14] << 8 | frame[15]) & 0xfff;

		if (!(filter->vlan[vlan / 64] >> vlan % 64 & 1))
			return false;
	}
	if (filter->promiscuous)
		return true;
	if (memcmp(frame, broadcast, 6) == 0)
		return !filter->no_broadcast;
	if (kind == MULTICAST ? filter->no_multicast : filter->no_unicast)
		return false;
	if ((kind == MULTICAST ? filter->all_multicast : filter->all_unicast) || filter->many[kind])
		return true;
	if (kind == UNICAST && memcmp(frame, card->config, 6) == 0)
		return true;
	for (unsigned i = 0; i < filter->count[kind]; i++)
		if (memcmp(frame, filter->address[kind][i], 6) == 0)
			return true;
	return false;
}

static uint8_t set_mode(struct virtio_net *card, unsigned command, const struct virtio_chain *chain)
{
	struct virtio_net_filter *filter = &card->filter;
	bool *modes[] = {&filter->promiscuous,  &filter->all_multicast, &filter->all_unicast,
	                 &filter->no_multicast, &filter->no_unicast,    &filter->no_broadcast};
	uint64_t feature = command <= RX_ALL_MULTICAST ? NET_FEATURE_CTRL_RX : NET_FEATURE_CTRL_RX_EXTRA;
	uint8_t on;

	if (command > RX_NO_BROADCAST || !virtio_has(&card->device, feature) ||
	    virtio_chain_read(chain, COMMAND_SIZE, &on, 1) != 1)
		return ACK_ERROR;
	*modes[command] = on;
	return ACK_OK;
}

/* Two lists, each a number and so many addresses. Nothing changes unless both are there. */
static uint8_t set_table(struct virtio_net *card, const struct virtio_chain *chain)
{
	struct virtio_net_filter next = card->filter;
	uint64_t at = COMMAND_SIZE;

	for (unsigned kind = UNICAST; kind <= MULTICAST; kind++) {
		uint32_t count;

		if (virtio_chain_read(chain, at, &count, 4) != 4)
			return ACK_ERROR;
		at += 4;
		if (at + 6ull * count > chain->readable_length)
			return ACK_ERROR;
		next.many[kind] = count > VIRTIO_NET_ADDRESSES;
		next.count[kind] = next.many[kind] ? 0 : count;
		virtio_chain_read(chain, at, next.address[kind], 6ul * next.count[kind]);
		at += 6ull * count;
	}
	card->filter = next;
	return ACK_OK;
}

static uint8_t set_address(struct virtio_net *card, unsigned command, const struct virtio_chain *chain)
{
	uint8_t address[6];

	if (command == MAC_TABLE_SET && virtio_has(&card->device, NET_FEATURE_CTRL_RX))
		return set_table(card, chain);
	if (command != MAC_ADDRESS_SET || !virtio_has(&card->device, NET_FEATURE_CTRL_MAC_ADDR) ||
	    virtio_chain_read(chain, COMMAND_SIZE, address, 6) != 6)
		return ACK_ERROR;
	memcpy(card->config, address, 6);
	return ACK_OK;
}

static uint8_t set_vlan(struct virtio_net *card, unsigned command, const struct virtio_chain *chain)
{
	uint16_t vlan;

	if (command > VLAN_DELETE || !virtio_has(&card->device, NET_FEATURE_CTRL_VLAN) ||
	    virtio_chain_read(chain, COMMAND_SIZE, &vlan, 2) != 2 || vlan > 4095)
		return ACK_ERROR;
	if (command == VLAN_ADD)
		card->filter.vlan[vlan / 64] |= 1ull << vlan % 64;
	else
		card->filter.vlan[vlan / 64] &= ~(1ull << vlan % 64);
	return ACK_OK;
}

static uint8_t set_pairs(struct virtio_net *card, unsigned command, const struct virtio_chain *chain)
{
	uint16_t pairs;

	if (command != MQ_PAIRS_SET || !virtio_has(&card->device, NET_FEATURE_MQ) ||
	    virtio_chain_read(chain, COMMAND_SIZE, &pairs, 2) != 2 || pairs == 0 || pairs > card->pairs_max)
		return ACK_ERROR;
	card->pairs = pairs;
	memset(card->flow, 0, sizeof card->flow);
	return ACK_OK;
}

static uint8_t set_offloads(struct virtio_net *card, unsigned command, const struct virtio_chain *chain)
{
	uint64_t offloads;

	if (command != OFFLOADS_SET || !virtio_has(&card->device, NET_FEATURE_CTRL_OFFLOADS) ||
	    virtio_chain_read(chain, COMMAND_SIZE, &offloads, 8) != 8 ||
	    offloads & ~atomic_load(&card->device.features))
		return ACK_ERROR;
	card->offloads = offloads;
	virtio_net_apply_offloads(card);
	return ACK_OK;
}

static uint8_t execute(struct virtio_net *card, const struct virtio_chain *chain)
{
	uint8_t command[COMMAND_SIZE];

	if (virtio_chain_read(chain, 0, command, COMMAND_SIZE) != COMMAND_SIZE)
		return ACK_ERROR;
	switch (command[0]) {
	case CLASS_RX:
		return set_mode(card, command[1], chain);
	case CLASS_MAC:
		return set_address(card, command[1], chain);
	case CLASS_VLAN:
		return set_vlan(card, command[1], chain);
	case CLASS_MQ:
		return set_pairs(card, command[1], chain);
	case CLASS_OFFLOADS:
		return set_offloads(card, command[1], chain);
	default:
		return ACK_ERROR;
	}
}

void virtio_net_control(struct virtio_net *card, struct virtio_queue *queue)
{
	unsigned done = 0;

	do {
		while (done < SHARE && virtio_queue_next(queue, &card->chain)) {
			if (card->chain.writable_length == 0) {
				virtio_break(&card->device, "command without room for the answer");
				return;
			}
			uint8_t ack = execute(card, &card->chain);
			virtio_chain_write(&card->chain, card->device.host.memory, 0, &ack, 1);
			virtio_queue_complete(queue, card->chain.token, 1);
			done++;
		}
		if (done == SHARE) {
			virtio_queue_again(queue);
			return;
		}
	} while (virtio_queue_runs(queue) && virtio_ring_notify_on(&queue->ring));
}

/* Inside the card's section. */
void virtio_net_filter_state(struct virtio_net *card, struct state *state)
{
	struct virtio_net_filter *filter = &card->filter;

	state_bool(state, "promiscuous", &filter->promiscuous);
	state_bool(state, "all_multicast", &filter->all_multicast);
	state_bool(state, "all_unicast", &filter->all_unicast);
	state_bool(state, "no_multicast", &filter->no_multicast);
	state_bool(state, "no_unicast", &filter->no_unicast);
	state_bool(state, "no_broadcast", &filter->no_broadcast);
	state_bool(state, "many_unicast", &filter->many[UNICAST]);
	state_bool(state, "many_multicast", &filter->many[MULTICAST]);
	state_u16_array(state, "counts", filter->count, 2);
	state_u8_array(state, "addresses", &filter->address[0][0][0], sizeof filter->address);
	state_u64_array(state, "vlans", filter->vlan, 4096 / 64);
	for (unsigned kind = UNICAST; kind <= MULTICAST; kind++)
		if (filter->count[kind] > VIRTIO_NET_ADDRESSES) {
			filter->count[kind] = 0;
			state_fail(state, "too many addresses");
		}
}
