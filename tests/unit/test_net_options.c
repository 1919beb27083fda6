/* The argument of --net: what is understood, and what is said about the rest. */
#include <fcntl.h>
#include <sys/mman.h>

#include "net_rig.h"

/* Parses it with stderr in a file; returns what was said. */
static const char *complaint(const char *text)
{
	static char said[512];
	struct net_options options;
	int memory = memfd_create("stderr", MFD_CLOEXEC), old = dup(STDERR_FILENO), result;
	ssize_t length;

	assert_true(memory >= 0 && old >= 0 && dup2(memory, STDERR_FILENO) >= 0);
	result = net_options_parse(&options, text);
	dup2(old, STDERR_FILENO);
	close(old);
	length = pread(memory, said, sizeof(said) - 1, 0);
	close(memory);
	assert_true(length >= 0);
	said[length] = 0;
	if (result == 0)
		return "";
	assert_true(length > 0 && said[length - 1] == '\n' && strchr(said, '\n') == said + length - 1);
	said[length - 1] = 0;
	return said;
}

static void kinds(void **state)
{
	struct net_options options;

	assert_int_equal(net_options_parse(&options, "user"), 0);
	assert_int_equal(options.kind, NET_USER);
	assert_true(options.user.ipv4 && options.user.ipv6 && !options.user.restricted && !options.mac_given);
	assert_int_equal(options.queue_pairs, 1);
	assert_int_equal(net_options_parse(&options, "tap,ifname=tap0,queues=4,mtu=9000"), 0);
	assert_int_equal(options.kind, NET_TAP);
	assert_string_equal(options.tap.ifname, "tap0");
	assert_int_equal(options.tap.fd, -1);
	assert_int_equal(options.queue_pairs, 4);
	assert_int_equal(options.mtu, 9000);
	assert_int_equal(net_options_parse(&options, "tap,fd=7"), 0);
	assert_int_equal(options.tap.fd, 7);
	assert_int_equal(net_options_parse(&options, "unix:/run/a,,b.sock,mac=02:00:00:00:00:fF"), 0);
	assert_int_equal(options.kind, NET_UNIX);
	assert_string_equal(options.unix_path, "/run/a,b.sock");
	assert_true(options.mac_given);
	assert_memory_equal(options.mac, "\x02\0\0\0\0\xff", 6);
	assert_int_equal(net_options_parse(&options, "switch:lab-1.a_b"), 0);
	assert_int_equal(options.kind, NET_SWITCH);
	assert_string_equal(options.switch_name, "lab-1.a_b");
	assert_int_equal(net_options_parse(&options, "none"), 0);
	assert_int_equal(options.kind, NET_NONE);
}

static void forwards(void **state)
{
	struct net_options options;
	struct net_forward *forward = options.user.forward;

	assert_int_equal(net_options_parse(&options, "user,hostfwd=tcp:127.0.0.1:2222-:22,"
	                                             "hostfwd=udp::53-10.0.2.20:5353,"
	                                             "hostfwd=tcp:0.0.0.0:80-:8080,"
	                                             "hostfwd=tcp:[::1]:2222-[fec0::15]:22,"
	                                             "hostfwd=udp::1-[fec0::16]:2"),
	                 0);
	assert_int_equal(options.user.forward_count, 5);
	assert_false(forward[0].udp);
	assert_int_equal(forward[0].host.v4.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
	assert_int_equal(forward[0].host.v4.sin_port, htons(2222));
	assert_int_equal(forward[0].guest.v4.sin_family, AF_INET);
	assert_int_equal(forward[0].guest.v4.sin_addr.s_addr, 0);
	assert_int_equal(forward[0].guest.v4.sin_port, htons(22));
	assert_true(forward[1].udp);
	assert_int_equal(forward[1].host.v4.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
	assert_int_equal(forward[1].guest.v4.sin_addr.s_addr, htonl(0x0a000214));
	assert_int_equal(forward[2].host.v4.sin_addr.s_addr, 0);
	assert_int_equal(forward[3].host.v6.sin6_family, AF_INET6);
	assert_int_equal(forward[3].host.v6.sin6_port, htons(2222));
	assert_int_equal(forward[3].guest.v6.sin6_port, htons(22));
	assert_int_equal(forward[4].host.v6.sin6_family, AF_INET6);
	assert_int_equal(forward[4].host.v6.sin6_port, htons(1));
	assert_memory_equal(&forward[4].host.v6.sin6_addr, &in6addr_loopback, 16);
}

static void networks(void **state)
{
	struct net_options options;

	assert_int_equal(net_options_parse(&options, "user,net=192.168.7.0/25,dhcpstart=192.168.7.20,dns=192.168.7.5,"
	                                             "hostname=debian,restrict=on,ipv6=off"),
	                 0);
	assert_int_equal(options.user.net.s_addr, htonl(0xc0a80700));
	assert_int_equal(options.user.mask.s_addr, htonl(0xffffff80));
	assert_int_equal(options.user.dhcp_start.s_addr, htonl(0xc0a80714));
	assert_int_equal(options.user.dns.s_addr, htonl(0xc0a80705));
	assert_string_equal(options.user.hostname, "debian");
	assert_true(options.user.restricted);
	assert_false(options.user.ipv6);
	assert_int_equal(net_options_parse(&options, "user,net6=fd00:1::/48"), 0);
	assert_int_equal(options.user.net6_bits, 48);
}

static void complaints(void **state)
{
	static const struct {
		const char *text, *said;
	} wrong[] = {
	    {"", "ring3: --net : not one of user, tap, unix:PATH, switch:NAME, none"},
	    {"usr", "ring3: --net usr: not one of user, tap, unix:PATH, switch:NAME, none"},
	    {"user:x", "ring3: --net user:x: not one of user, tap, unix:PATH, switch:NAME, none"},
	    {"unix", "ring3: --net unix: not one of user, tap, unix:PATH, switch:NAME, none"},
	    {"unix:", "ring3: --net unix: unix:: a path is 1 to 107 characters"},
	    {"user,restrict=maybe", "ring3: --net user: restrict=maybe: not on or off"},
	    {"user,restrict", "ring3: --net user: restrict: not KEY=VALUE"},
	    {"user,", "ring3: --net user: : not KEY=VALUE"},
	    {"user,ifname=tap0", "ring3: --net user: ifname=tap0: unknown option"},
	    {"tap,hostfwd=tcp::1-:1", "ring3: --net tap: hostfwd=tcp::1-:1: unknown option"},
	    {"user,hostfwd=sctp::1-:1", "ring3: --net user: hostfwd=sctp::1-:1: begins with neither tcp: nor udp:"},
	    {"user,hostfwd=tcp:1-:1", "ring3: --net user: hostfwd=tcp:1-:1: the host's part needs ADDRESS:PORT"},
	    {"user,hostfwd=tcp::0-:1", "ring3: --net user: hostfwd=tcp::0-:1: the host's port is not 1 to 65535"},
	    {"user,hostfwd=tcp::1-:65536",
	     "ring3: --net user: hostfwd=tcp::1-:65536: the guest's port is not 1 to 65535"},
	    {"user,hostfwd=tcp::1-:+1", "ring3: --net user: hostfwd=tcp::1-:+1: the guest's port is not 1 to 65535"},
	    {"user,hostfwd=tcp::1", "ring3: --net user: hostfwd=tcp::1: needs tcp|udp:[ADDRESS]:PORT-[ADDRESS]:PORT"},
	    {"user,hostfwd=tcp:localhost:1-:1", "ring3: --net user: hostfwd=tcp:localhost:1-:1: the host's address is "
	                                        "not one of IPv4 (or of IPv6, in brackets)"},
	    {"user,hostfwd=tcp:[::1]:1-:1",
	     "ring3: --net user: hostfwd=tcp:[::1]:1-:1: IPv6 needs the guest's address"},
	    {"user,hostfwd=tcp:1.2.3.4:1-[::1]:1",
	     "ring3: --net user: hostfwd=tcp:1.2.3.4:1-[::1]:1: IPv4 on one side and IPv6 on the other"},
	    {"user,net=10.0.0.1/24", "ring3: --net user: net=10.0.0.1/24: there are bits set behind the network's 24"},
	    {"user,net=10.0.0.0/30", "ring3: --net user: net=10.0.0.0/30: a network has 8 to 27 bits"},
	    {"user,net=x", "ring3: --net user: net=x: not an IPv4 address"},
	    {"user,dhcpstart=10.0.3.15", "ring3: --net user: dhcpstart is not in the network"},
	    {"user,dns=10.0.3.15", "ring3: --net user: dns is not in the network"},
	    {"user,dns=10.0.2.2", "ring3: --net user: dns is the address of the gateway"},
	    {"user,dhcpstart=10.0.2.3",
	     "ring3: --net user: dhcpstart is the address of the gateway or the name server"},
	    {"user,ipv4=off,ipv6=off", "ring3: --net user: neither IPv4 nor IPv6"},
	    {"user,hostname=a b", "ring3: --net user: hostname=a b: not a host name"},
	    {"tap,ifname=0123456789abcdef", "ring3: --net tap: ifname=0123456789abcdef: not the name of an interface"},
	    {"tap,ifname=../x", "ring3: --net tap: ifname=../x: not the name of an interface"},
	    {"tap,ifname=", "ring3: --net tap: ifname=: not the name of an interface"},
	    {"tap,fd=-1", "ring3: --net tap: fd=-1: not the number of a descriptor"},
	    {"switch:../x", "ring3: --net switch: switch:../x: a name is 1 to 32 letters, digits, '-', '_' and '.'"},
	    {"switch:..", "ring3: --net switch: switch:..: a name is 1 to 32 letters, digits, '-', '_' and '.'"},
	    {"switch:", "ring3: --net switch: switch:: a name is 1 to 32 letters, digits, '-', '_' and '.'"},
	    {"user,mac=01:00:00:00:00:00", "ring3: mac 01:00:00:00:00:00: not the address of a single card"},
	    {"user,mac=00:00:00:00:00:00", "ring3: mac 00:00:00:00:00:00: not the address of a single card"},
	    {"user,mac=52:54:00:12:34", "ring3: mac 52:54:00:12:34: not six bytes like 52:54:00:12:34:56"},
	    {"user,mac=52:54:00:12:34:567", "ring3: mac 52:54:00:12:34:567: not six bytes like 52:54:00:12:34:56"},
	    {"user,mac=", "ring3: mac : not six bytes like 52:54:00:12:34:56"},
	    {"user,mtu=67", "ring3: --net user: mtu=67: not 576 to 65521"},
	    {"user,queues=9", "ring3: --net user: queues=9: not 1 to 8"},
	    {"user,queues=0", "ring3: --net user: queues=0: not 1 to 8"},
	};

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_string_equal(complaint(wrong[i].text), wrong[i].said);
}

static void limits(void **state)
{
	char text[4096] = "user";

	for (unsigned i = 0; i <= NET_FORWARDS_MAX; i++)
		sprintf(text + strlen(text), ",hostfwd=tcp::%u-:1", 1000 + i);
	assert_string_equal(complaint(text), "ring3: --net user: hostfwd=tcp::1064-:1: more than 64 of them");
	memset(text, 'x', sizeof(text) - 1);
	assert_string_equal(complaint(text), "ring3: --net: longer than 255 characters");
	memcpy(text, "user,", 5);
	assert_string_equal(complaint(text), "ring3: --net user: an option is longer than 255 characters");
}

static void default_addresses(void **state)
{
	uint8_t a[6], b[6];

	net_mac_default(a, NET_USER, 0);
	net_mac_default(b, NET_USER, 0);
	assert_memory_equal(a, b, 6);
	net_mac_default(b, NET_USER, 1);
	assert_memory_not_equal(a, b, 6);
	net_mac_default(a, NET_SWITCH, 0);
	net_mac_default(b, NET_SWITCH, 0);
	assert_memory_not_equal(a, b, 6);
	/* One card, locally administered. */
	assert_int_equal(a[0] & 3, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(kinds),      cmocka_unit_test(forwards), cmocka_unit_test(networks),
	    cmocka_unit_test(complaints), cmocka_unit_test(limits),   cmocka_unit_test(default_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
