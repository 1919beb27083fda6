/*
 * What the user says about a network card: the argument of --net.
 *
 *	user[,hostfwd=tcp|udp:[ADDR]:PORT-[ADDR]:PORT]...[,restrict=on|off][,net=ADDR/BITS][,dhcpstart=ADDR][,dns=ADDR]
 *	    [,hostname=TEXT][,ipv4=on|off][,ipv6=on|off][,net6=ADDR/BITS]
 *	tap[,ifname=NAME][,fd=NUMBER]
 *	unix:PATH            a stream socket as passt and QEMU have it: we connect, and connect again
 *	switch:NAME          the machines of this user on this host that say the same name
 *	none                 a card without a cable
 *
 * and for all of them mac=XX:XX:XX:XX:XX:XX, mtu=BYTES, queues=PAIRS. A PATH with commas doubles them. IPv6 addresses
 * stand in brackets: hostfwd=tcp:[::1]:2222-[fec0::5054:ff:fe12:3456]:22.
 *
 * An address left out of hostfwd: the host's is 127.0.0.1 (nobody outside gets in by omission), the guest's is the
 * first of DHCP.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NET_FORWARDS_MAX    64
#define NET_QUEUE_PAIRS_MAX 8
#define NET_SWITCH_NAME_MAX 32
#define NET_INTERFACE_NAME  16 /* IFNAMSIZ, with the final 0 */
#define NET_HOSTNAME_MAX    63

enum net_kind { NET_NONE, NET_USER, NET_TAP, NET_UNIX, NET_SWITCH };

union net_address {
	struct sockaddr any; /* sa_family 0: left out */
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct net_forward {
	bool udp;
	union net_address host, guest; /* of one family, with ports */
};

struct net_options {
	enum net_kind kind;
	uint8_t mac[6];
	bool mac_given;  /* otherwise net_open() makes one up */
	unsigned number; /* of the card in its machine: the caller's, 0 from net_options_parse() */
	unsigned queue_pairs;
	bool transitional; /* the card's driver may be from before virtio 1.0 */
	unsigned mtu;      /* 0: not given */
	union {
		struct {
			bool restricted, ipv4, ipv6;
			struct in_addr net, mask, dhcp_start, dns; /* s_addr 0: not given */
			struct in6_addr net6;
			unsigned net6_bits; /* 0: not given */
			char hostname[NET_HOSTNAME_MAX + 1];
			unsigned forward_count;
			struct net_forward forward[NET_FORWARDS_MAX];
		} user;
		struct {
			char ifname[NET_INTERFACE_NAME]; /* "": the kernel chooses, or fd's own */
			int fd;                          /* -1: not given; net_open() takes it */
		} tap;
		char unix_path[108];
		char switch_name[NET_SWITCH_NAME_MAX + 1];
	};
};

/* 0, or -EINVAL after one logged line ("--net user: restrict=maybe: not on or off"). */
int net_options_parse(struct net_options *options, const char *text);
/* --mac and mac=: 52:54:00:12:34:56. False: not the address of a single card (logged). */
bool net_mac_parse(uint8_t mac[6], const char *text);
/*
 * An address of the locally administered kind. User mode has a network of its own for each card, so that there the
 * same number gives the same address each time; elsewhere it is random, for all machines on a wire must differ.
 */
void net_mac_default(uint8_t mac[6], enum net_kind kind, unsigned number);
