#include "backends/net/mac_table.h"

#include <stddef.h>
#include <string.h>

static unsigned set_of(const struct mac_table *table, const uint8_t mac[6])
{
	uint64_t value = table->seed;

	for (unsigned i = 0; i < 6; i++)
		value = (value ^ mac[i]) * 0x100000001b3ull;
	return (unsigned)(value >> 40) % MAC_TABLE_SETS;
}

static bool entry_old(const struct mac_entry *entry, int64_t now)
{
	return !entry->used || now - entry->heard >= MAC_TABLE_AGE_MS;
}

void mac_table_learn(struct mac_table *table, const uint8_t mac[6], uint32_t port, int64_t now)
{
	struct mac_entry *set = table->entry[set_of(table, mac)], *victim = set;

	if (mac[0] & 1)
		return;
	for (unsigned i = 0; i < MAC_TABLE_WAYS; i++) {
		if (set[i].used && memcmp(set[i].mac, mac, 6) == 0) {
			victim = &set[i];
			break;
		}
		if (victim->used && (!set[i].used || set[i].heard < victim->heard))
			victim = &set[i];
	}
	*victim = (struct mac_entry){.used = true, .port = port, .heard = now};
	memcpy(victim->mac, mac, 6);
}

bool mac_table_find(const struct mac_table *table, const uint8_t mac[6], int64_t now, uint32_t *port)
{
	const struct mac_entry *set = table->entry[set_of(table, mac)];

	for (unsigned i = 0; i < MAC_TABLE_WAYS; i++) {
		if (!entry_old(&set[i], now) && memcmp(set[i].mac, mac, 6) == 0) {
			*port = set[i].port;
			return true;
		}
	}
	return false;
}

void mac_table_forget_port(struct mac_table *table, uint32_t port)
{
	for (unsigned i = 0; i < MAC_TABLE_SETS; i++)
		for (unsigned j = 0; j < MAC_TABLE_WAYS; j++)
			if (table->entry[i][j].used && table->entry[i][j].port == port)
				table->entry[i][j].used = false;
}
