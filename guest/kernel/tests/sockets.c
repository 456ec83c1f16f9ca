// SPDX-License-Identifier: GPL-2.0
/*
 * Attackers that use base memory by what waits in sockets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "attackers.h"

/* Far more than the budget, and less than all memory, is what so many have room for where nobody counts it. */
#define SOCKETS	600
/* Packets that nobody reads for each: more than it has room for. */
#define PACKETS	32

/* Sends what nobody reads, to `to` or to whom the socket is connected. What finds no room is lost without a word. */
static void flood(int fd, int packets, const void *to, socklen_t length)
{
	while (packets--)
		sendto(fd, block, PAGE, MSG_DONTWAIT, to, length);
}

int unix_sockets(void)
{
	int ends[2];
	long i;

	many_descriptors();
	for (i = 0; !socketpair(AF_UNIX, i % 2 ? SOCK_STREAM : SOCK_DGRAM, 0, ends); i++) {
		fill(ends[0], PAGE);
		fill(ends[1], PAGE);
	}
	return sated("socket pairs", i);
}

/* Sockets that have more mail than they read. */
int netlink_sockets(void)
{
	long i;
	int fd;

	many_descriptors();
	for (i = 0;; i++) {
		struct sockaddr_nl address = { .nl_family = AF_NETLINK };
		socklen_t length = sizeof(address);

		fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK);
		if (fd < 0 || bind(fd, (void *)&address, length) || getsockname(fd, (void *)&address, &length) ||
		    connect(fd, (void *)&address, length))
			return sated("netlink sockets", i);
		fill(fd, i % 2 ? PAGE : sizeof(block));
	}
}

/* Rings of 16 MiB, that user space could map. */
int packet_rings(void)
{
	struct tpacket_req ring = {
		.tp_block_size = MIB, .tp_block_nr = 16, .tp_frame_size = 2048, .tp_frame_nr = 16 * MIB / 2048,
	};
	long i;
	int fd;

	many_descriptors();
	for (i = 0;; i++) {
		fd = socket(AF_PACKET, SOCK_RAW, 0);
		if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
			return sated("packet rings", i);
	}
}

static bool loopback_up(void)
{
	struct ifreq interface = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return !ioctl(fd, SIOCSIFFLAGS, &interface);
}

int tcp_sockets(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), from, to;
	long i;

	many_descriptors();
	if (!loopback_up() || bind(listener, (void *)&address, length) || listen(listener, 16) ||
	    getsockname(listener, (void *)&address, &length))
		return 1;
	for (i = 0;; i++) {
		from = socket(AF_INET, SOCK_STREAM, 0);
		if (from < 0 || connect(from, (void *)&address, length))
			return sated("TCP connections", i);
		to = accept(listener, NULL, NULL);
		if (to < 0)
			return sated("TCP connections", i);
		fill(from, sizeof(block));
		fill(to, sizeof(block));
	}
}

int udp_sockets(void)
{
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up())
		return 1;
	for (i = 0;; i++) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		socklen_t length = sizeof(address);

		fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0 || bind(fd, (void *)&address, length) || getsockname(fd, (void *)&address, &length) ||
		    connect(fd, (void *)&address, length))
			return sated("UDP sockets", i);
		flood(fd, 2 * PACKETS, NULL, 0);
	}
}

/* Each gets what is sent to its own address, so that no two share the data. */
int raw_sockets(void)
{
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up())
		return 1;
	for (i = 0; i < SOCKETS; i++) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + i) };

		fd = socket(AF_INET, SOCK_RAW, 200 + i % 50);
		if (fd < 0 || bind(fd, (void *)&address, sizeof(address)) ||
		    connect(fd, (void *)&address, sizeof(address)))
			break;
		flood(fd, PACKETS, NULL, 0);
	}
	return sated("raw sockets", i);
}

/* Each gets what is sent with a protocol of its own. */
int packet_sockets(void)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex("lo"), .sll_halen = ETH_ALEN,
	};
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up())
		return 1;
	for (i = 0; i < SOCKETS; i++) {
		address.sll_protocol = htons(0x9000 + i);
		fd = socket(AF_PACKET, SOCK_DGRAM, 0);
		if (fd < 0 || bind(fd, (void *)&address, sizeof(address)))
			break;
		flood(fd, PACKETS, &address, sizeof(address));
	}
	return sated("packet sockets", i);
}

/* The kernel answers, to who does not read it. */
int ping_sockets(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct icmphdr *request = (void *)block;
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up() || write_text("0 2147483647", "/proc/sys/net/ipv4/ping_group_range"))
		return 1;
	request->type = ICMP_ECHO;
	for (i = 0; i < SOCKETS; i++) {
		fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
		if (fd < 0 || connect(fd, (void *)&address, sizeof(address)))
			break;
		flood(fd, PACKETS, NULL, 0);
	}
	return sated("ping sockets", i);
}

/* The kernel returns what nobody receives. */
int error_queues(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	const int on = 1;
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up())
		return 1;
	for (i = 0; i < SOCKETS; i++) {
		fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0 || setsockopt(fd, SOL_IP, IP_RECVERR, &on, sizeof(on)))
			break;
		/* Every other one fails, for what became of the one before. */
		flood(fd, 12 * PACKETS, &address, sizeof(address));
	}
	return sated("error queues", i);
}

/* Datagrams that are never complete. */
int corked_sockets(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	long i;
	int fd;

	many_descriptors();
	if (!loopback_up())
		return 1;
	for (i = 0; i < 4 * SOCKETS; i++) {
		fd = i % 2 ? socket(AF_INET, SOCK_RAW, 200) : socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0 || sendto(fd, block, 60000, MSG_MORE, (void *)&address, sizeof(address)) < 0)
			break;
	}
	return sated("corked sockets", i);
}

/* As long as there can be. They divide, which takes a processor more words than the program. */
int filters(void)
{
	enum { STEPS = 3000 };
	static struct sock_filter steps[STEPS];
	struct sock_fprog program = { .len = STEPS, .filter = steps };
	long i;
	int fd;

	many_descriptors();
	for (i = 0; i < STEPS - 1; i++)
		steps[i] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0);
	steps[0] = (struct sock_filter)BPF_STMT(BPF_LDX | BPF_IMM, 1);
	steps[STEPS - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
	for (i = 0;; i++) {
		fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)))
			return sated("filters", i);
	}
}

/* What each would send with every packet. */
int options(void)
{
	static const int kinds[] = { IPV6_HOPOPTS, IPV6_DSTOPTS, IPV6_RTHDRDSTOPTS };
	static const unsigned char option[8 * 255] = { [1] = 254 };
	long i;
	int fd, j;

	many_descriptors();
	for (i = 0;; i++) {
		fd = socket(AF_INET6, SOCK_DGRAM, 0);
		if (fd < 0)
			return sated("sockets with options", i);
		for (j = 0; j < 3; j++)
			if (setsockopt(fd, IPPROTO_IPV6, kinds[j], option, sizeof(option)))
				return sated("sockets with options", i);
	}
}

/* Groups of one packet socket, with room for many more. */
int fanouts(void)
{
	struct {
		unsigned short id, kind;
		unsigned int room;
	} group = { .kind = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_UNIQUEID, .room = 65535 };
	long i;
	int fd;

	many_descriptors();
	for (i = 0;; i++) {
		fd = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL));
		if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_FANOUT, &group, sizeof(group)))
			return sated("groups of packet sockets", i);
	}
}
