/*
 * Which port of a switch an Ethernet address was last heard on. A fixed table: whoever floods it with addresses pushes
 * others out, which are then sent to every port again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define MAC_TABLE_SETS   256
#define MAC_TABLE_WAYS   4
#define MAC_TABLE_AGE_MS 300000 /* IEEE 802.1D 7.9.2 */

struct mac_table {
	struct mac_entry {
		uint8_t mac[6];
		bool used;
		uint32_t port;
		int64_t heard; /* ms */
	} entry[MAC_TABLE_SETS][MAC_TABLE_WAYS];
	uint32_t seed; /* so that nobody outside knows who shares a set */
};

/* Heard on that port. Group addresses are not learnt. */
void mac_table_learn(struct mac_table *table, const uint8_t mac[6], uint32_t port, int64_t now);
/* False: not known (any more). */
bool mac_table_find(const struct mac_table *table, const uint8_t mac[6], int64_t now, uint32_t *port);
void mac_table_forget_port(struct mac_table *table, uint32_t port);
