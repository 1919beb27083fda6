/* The argument of --net. One table of keys; each kind takes those that carry its bit. */
#include "backends/net/net_options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "host/log.h"

#define TOKEN_MAX 256
#define MTU_MIN   576   /* what everybody takes, RFC 791 3.1 */
#define MTU_MAX   65521 /* what libslirp takes */

/* Where an error is, for its message. */
struct place {
	char kind[16];
	char token[TOKEN_MAX];
};

static int wrong(const struct place *place, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int wrong(const struct place *place, const char *format, ...)
{
	char what[TOKEN_MAX];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(what, sizeof(what), format, arguments);
	va_end(arguments);
	log_error("--net %s: %s: %s", place->kind, place->token, what);
	return -EINVAL;
}

/* One part, in which ",," is a comma. 1: there is one, 0: the end, -E2BIG. */
static int next_token(const char **text, char token[TOKEN_MAX])
{
	const char *at = *text;
	size_t length = 0;

	if (!at)
		return 0;
	for (; *at && (*at != ',' || at[1] == ','); at++) {
		if (length == TOKEN_MAX - 1)
			return -E2BIG;
		if (*at == ',')
			at++;
		token[length++] = *at;
	}
	token[length] = 0;
	*text = *at ? at + 1 : NULL;
	return 1;
}

/* A decimal number from `least` to `most`. */
static bool parse_number(unsigned *number, const char *text, unsigned least, unsigned most)
{
	unsigned long value = 0;

	if (!*text || strlen(text) > 9)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		value = value * 10 + (unsigned long)(*text - '0');
	}
	*number = (unsigned)value;
	return value >= least && value <= most;
}

static int parse_switch(bool *on, const struct place *place, const char *value)
{
	*on = strcmp(value, "on") == 0;
	return *on || strcmp(value, "off") == 0 ? 0 : wrong(place, "not on or off");
}

/* ---- user ---- */

static int parse_ipv4(struct in_addr *address, const struct place *place, const char *value)
{
	return inet_pton(AF_INET, value, address) == 1 ? 0 : wrong(place, "not an IPv4 address");
}

static int parse_net(struct net_options *options, const struct place *place, char *value)
{
	char *slash = strchr(value, '/');
	unsigned bits = 24;

	if (slash) {
		*slash = 0;
		if (!parse_number(&bits, slash + 1, 8, 27))
			return wrong(place, "a network has 8 to 27 bits");
	}
	if (parse_ipv4(&options->user.net, place, value) < 0)
		return -EINVAL;
	options->user.mask.s_addr = htonl(UINT32_MAX << (32 - bits));
	if (options->user.net.s_addr & ~options->user.mask.s_addr)
		return wrong(place, "there are bits set behind the network's %u", bits);
	return 0;
}

static int parse_net6(struct net_options *options, const struct place *place, char *value)
{
	char *slash = strchr(value, '/');
	unsigned bits = 64;

	if (slash) {
		*slash = 0;
		if (!parse_number(&bits, slash + 1, 8, 126))
			return wrong(place, "a network has 8 to 126 bits");
	}
	if (inet_pton(AF_INET6, value, &options->user.net6) != 1)
		return wrong(place, "not an IPv6 address");
	options->user.net6_bits = bits;
	return 0;
}

static int parse_hostname(struct net_options *options, const struct place *place, const char *value)
{
	size_t length = strlen(value);

	if (length == 0 || length > NET_HOSTNAME_MAX ||
	    strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") != length)
		return wrong(place, "not a host name");
	strcpy(options->user.hostname, value);
	return 0;
}

/* "[ADDR]:PORT", "ADDR:PORT", ":PORT"; `end`: what comes behind it. */
static int parse_endpoint(union net_address *address, const struct place *place, char *text, const char *which)
{
	char *colon = strrchr(text, ':');
	unsigned port;

	*address = (union net_address){0};
	if (!colon)
		return wrong(place, "the %s's part needs ADDRESS:PORT", which);
	*colon = 0;
	if (!parse_number(&port, colon + 1, 1, 65535))
		return wrong(place, "the %s's port is not 1 to 65535", which);
	if (*text == '[' && colon > text && colon[-1] == ']') {
		colon[-1] = 0;
		if (inet_pton(AF_INET6, text + 1, &address->v6.sin6_addr) != 1)
			return wrong(place, "the %s's address is not one of IPv6", which);
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons((uint16_t)port);
		return 0;
	}
	if (*text && inet_pton(AF_INET, text, &address->v4.sin_addr) != 1)
		return wrong(place, "the %s's address is not one of IPv4 (or of IPv6, in brackets)", which);
	address->v4.sin_family = *text ? AF_INET : AF_UNSPEC;
	address->v4.sin_port = htons((uint16_t)port);
	return 0;
}

/* "-" stands between the endpoints, and in neither. */
static int parse_forward(struct net_options *options, const struct place *place, char *value)
{
	struct net_forward *forward = &options->user.forward[options->user.forward_count];
	char *guest = strchr(value, '-');

	if (options->user.forward_count == NET_FORWARDS_MAX)
		return wrong(place, "more than %u of them", NET_FORWARDS_MAX);
	if (strncmp(value, "tcp:", 4) != 0 && strncmp(value, "udp:", 4) != 0)
		return wrong(place, "begins with neither tcp: nor udp:");
	if (!guest)
		return wrong(place, "needs tcp|udp:[ADDRESS]:PORT-[ADDRESS]:PORT");
	forward->udp = *value == 'u';
	*guest++ = 0;
	if (parse_endpoint(&forward->host, place, value + 4, "host") < 0 ||
	    parse_endpoint(&forward->guest, place, guest, "guest") < 0)
		return -EINVAL;
	if (forward->guest.any.sa_family == AF_UNSPEC) {
		if (forward->host.any.sa_family == AF_INET6)
			return wrong(place, "IPv6 needs the guest's address");
		forward->guest.v4.sin_family = AF_INET; /* 0.0.0.0: the first of DHCP */
	}
	if (forward->host.any.sa_family == AF_UNSPEC) {
		uint16_t port = forward->host.v4.sin_port; /* where IPv6 has it, too */

		forward->host.any.sa_family = forward->guest.any.sa_family;
		forward->host.v4.sin_port = port;
		if (forward->host.any.sa_family == AF_INET6)
			forward->host.v6.sin6_addr = in6addr_loopback;
		else
			forward->host.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	if (forward->host.any.sa_family != forward->guest.any.sa_family)
		return wrong(place, "IPv4 on one side and IPv6 on the other");
	options->user.forward_count++;
	return 0;
}

static int check_user(const struct net_options *options, const struct place *place)
{
	uint32_t net = options->user.net.s_addr, mask = options->user.mask.s_addr;
	in_addr_t start = options->user.dhcp_start.s_addr, dns = options->user.dns.s_addr;

	if (!options->user.ipv4 && !options->user.ipv6) {
		log_error("--net %s: neither IPv4 nor IPv6", place->kind);
		return -EINVAL;
	}
	if (!mask) {
		net = htonl(0x0a000200);
		mask = htonl(0xffffff00);
	}
	if ((start && (start & mask) != net) || (dns && (dns & mask) != net)) {
		log_error("--net %s: %s is not in the network", place->kind,
		          start && (start & mask) != net ? "dhcpstart" : "dns");
		return -EINVAL;
	}
	/* The gateway is .2, the name server .3 or as given. */
	if (start && (start == (net | htonl(2)) || start == (dns ? dns : net | htonl(3)))) {
		log_error("--net %s: dhcpstart is the address of the gateway or the name server", place->kind);
		return -EINVAL;
	}
	if (dns && dns == (net | htonl(2))) {
		log_error("--net %s: dns is the address of the gateway", place->kind);
		return -EINVAL;
	}
	return 0;
}

static int user_option(struct net_options *options, const struct place *place, const char *key, char *value)
{
	if (strcmp(key, "hostfwd") == 0)
		return parse_forward(options, place, value);
	if (strcmp(key, "restrict") == 0)
		return parse_switch(&options->user.restricted, place, value);
	if (strcmp(key, "net") == 0)
		return parse_net(options, place, value);
	if (strcmp(key, "dhcpstart") == 0)
		return parse_ipv4(&options->user.dhcp_start, place, value);
	if (strcmp(key, "dns") == 0)
		return parse_ipv4(&options->user.dns, place, value);
	if (strcmp(key, "hostname") == 0)
		return parse_hostname(options, place, value);
	if (strcmp(key, "ipv4") == 0)
		return parse_switch(&options->user.ipv4, place, value);
	if (strcmp(key, "ipv6") == 0)
		return parse_switch(&options->user.ipv6, place, value);
	if (strcmp(key, "net6") == 0)
		return parse_net6(options, place, value);
	return -ENOENT;
}

/* ---- the others ---- */

static int tap_option(struct net_options *options, const struct place *place, const char *key, char *value)
{
	unsigned fd;

	if (strcmp(key, "ifname") == 0) {
		if (!*value || strlen(value) >= NET_INTERFACE_NAME || strpbrk(value, "/ %:") || *value == '.')
			return wrong(place, "not the name of an interface");
		strcpy(options->tap.ifname, value);
		return 0;
	}
	if (strcmp(key, "fd") == 0) {
		if (!parse_number(&fd, value, 0, 1u << 20))
			return wrong(place, "not the number of a descriptor");
		options->tap.fd = (int)fd;
		return 0;
	}
	return -ENOENT;
}

static int parse_switch_name(struct net_options *options, const struct place *place, const char *value)
{
	size_t length = strlen(value);

	if (length == 0 || length > NET_SWITCH_NAME_MAX || *value == '.' ||
	    strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != length)
		return wrong(place, "a name is 1 to %u letters, digits, '-', '_' and '.'", NET_SWITCH_NAME_MAX);
	strcpy(options->switch_name, value);
	return 0;
}

static int parse_kind(struct net_options *options, struct place *place)
{
	char *argument = strchr(place->token, ':');

	snprintf(place->kind, sizeof(place->kind), "%.*s",
	         (int)(argument ? argument - place->token : (ptrdiff_t)strlen(place->token)), place->token);
	if (strcmp(place->token, "user") == 0) {
		options->kind = NET_USER;
		options->user.ipv4 = options->user.ipv6 = true;
	} else if (strcmp(place->token, "tap") == 0) {
		options->kind = NET_TAP;
		options->tap.fd = -1;
	} else if (strcmp(place->token, "none") == 0) {
		options->kind = NET_NONE;
	} else if (argument && strcmp(place->kind, "unix") == 0) {
		options->kind = NET_UNIX;
		if (!argument[1] || strlen(argument + 1) >= sizeof(options->unix_path))
			return wrong(place, "a path is 1 to %zu characters", sizeof(options->unix_path) - 1);
		strcpy(options->unix_path, argument + 1);
	} else if (argument && strcmp(place->kind, "switch") == 0) {
		options->kind = NET_SWITCH;
		return parse_switch_name(options, place, argument + 1);
	} else {
		log_error("--net %s: not one of user, tap, unix:PATH, switch:NAME, none", place->token);
		return -EINVAL;
	}
	return 0;
}

static int common_option(struct net_options *options, const struct place *place, const char *key, const char *value)
{
	if (strcmp(key, "mac") == 0) {
		options->mac_given = true;
		return net_mac_parse(options->mac, value) ? 0 : -EINVAL;
	}
	if (strcmp(key, "mtu") == 0)
		return parse_number(&options->mtu, value, MTU_MIN, MTU_MAX)
		           ? 0
		           : wrong(place, "not %u to %u", MTU_MIN, MTU_MAX);
	if (strcmp(key, "transitional") == 0)
		return parse_switch(&options->transitional, place, value);
	if (strcmp(key, "queues") == 0)
		return parse_number(&options->queue_pairs, value, 1, NET_QUEUE_PAIRS_MAX)
		           ? 0
		           : wrong(place, "not 1 to %u", NET_QUEUE_PAIRS_MAX);
	return -ENOENT;
}

static int parse_option(struct net_options *options, const struct place *place)
{
	char key[TOKEN_MAX];
	char *value;
	int error;

	strcpy(key, place->token);
	value = strchr(key, '=');
	if (!value)
		return wrong(place, "not KEY=VALUE");
	*value++ = 0;
	error = common_option(options, place, key, value);
	if (error == -ENOENT && options->kind == NET_USER)
		error = user_option(options, place, key, value);
	if (error == -ENOENT && options->kind == NET_TAP)
		error = tap_option(options, place, key, value);
	return error == -ENOENT ? wrong(place, "unknown option") : error;
}

int net_options_parse(struct net_options *options, const char *text)
{
	struct place place;
	int more;

	*options = (struct net_options){.queue_pairs = 1};
	if (next_token(&text, place.token) < 0) {
		log_error("--net: longer than %u characters", TOKEN_MAX - 1);
		return -EINVAL;
	}
	if (parse_kind(options, &place) < 0)
		return -EINVAL;
	while ((more = next_token(&text, place.token)) > 0)
		if (parse_option(options, &place) < 0)
			return -EINVAL;
	if (more < 0) {
		log_error("--net %s: an option is longer than %u characters", place.kind, TOKEN_MAX - 1);
		return -EINVAL;
	}
	return options->kind == NET_USER ? check_user(options, &place) : 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool net_mac_parse(uint8_t mac[6], const char *text)
{
	static const uint8_t zero[6];
	const char *at = text;
	uint8_t result[6];

	for (unsigned i = 0; i < 6; i++, at += 3) {
		int high = hex_digit(at[0]), low = high < 0 ? -1 : hex_digit(at[1]);

		if (low < 0 || at[2] != (i < 5 ? ':' : 0)) {
			log_error("mac %s: not six bytes like 52:54:00:12:34:56", text);
			return false;
		}
		result[i] = (uint8_t)(high << 4 | low);
	}
	if (result[0] & 1 || memcmp(result, zero, sizeof(zero)) == 0) {
		log_error("mac %s: not the address of a single card", text);
		return false;
	}
	memcpy(mac, result, sizeof(result));
	return true;
}

/* 52h is 'R' and has the bit of local administration set (IEEE 802 8.2). */
void net_mac_default(uint8_t mac[6], enum net_kind kind, unsigned number)
{
	uint32_t random;
	struct timespec now;

	if (kind == NET_USER || kind == NET_NONE) {
		random = number;
	} else if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
		clock_gettime(CLOCK_REALTIME, &now);
		random = (uint32_t)getpid() * 0x9e3779b1u ^ (uint32_t)now.tv_nsec ^ number;
	}
	mac[0] = 0x52;
	mac[1] = 0x33;
	mac[2] = (uint8_t)(random >> 24);
	mac[3] = (uint8_t)(random >> 16);
	mac[4] = (uint8_t)(random >> 8);
	mac[5] = (uint8_t)random;
}
