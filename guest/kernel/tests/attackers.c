// SPDX-License-Identifier: GPL-2.0
/*
 * Subjects that use as much base memory as they can, each by other means. They
 * end when they are killed, or stop themselves when nothing more is to be had.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

static char block[64 * 1024];

/* Keeps what it has. */
static int sated(const char *what, long count)
{
	note("%ld %s, then: %m", count, what);
	raise(SIGSTOP);
	return 0;
}

static void many_descriptors(void)
{
	struct rlimit limit = { 65536, 65536 };

	setrlimit(RLIMIT_NOFILE, &limit);
}

/* Until there is no room for more. */
static void fill(int fd, size_t bytes)
{
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (write(fd, block, bytes) > 0)
		;
}

static int files_in(const char *directory)
{
	char path[64];
	long i;
	int fd;

	for (i = 0;; i++) {
		snprintf(path, sizeof(path), "%s/%ld", directory, i);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0)
			return sated("files", i);
		close(fd);
	}
}

static int files(void)
{
	return files_in("/mnt");
}

static int overlay_files(void)
{
	return files_in("/overlay");
}

/* The inodes alone: the target of each is a page of the node. */
static int symlinks(void)
{
	char target[4000], path[64];
	long i;

	memset(target, 'x', sizeof(target));
	target[sizeof(target) - 1] = 0;
	for (i = 0;; i++) {
		snprintf(path, sizeof(path), "/mnt/%ld", i);
		if (symlink(target, path))
			return sated("symlinks", i);
	}
}

/* A table for each 2 MiB of addresses, of nothing but the zero page. */
static int page_tables(void)
{
	size_t bytes = 1UL << 42, i;
	char *memory = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return 1;
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	for (i = 0; i < bytes; i += 2 * MIB)
		(void)*(volatile char *)(memory + i);
	return sated("page tables", i / (2 * MIB));
}

static int pipes_up_to(long count)
{
	int ends[2];
	long i;

	many_descriptors();
	for (i = 0; i < count && !pipe(ends); i++) {
		fcntl(ends[1], F_SETPIPE_SZ, MIB);
		fill(ends[1], PAGE);
	}
	return sated("pipes", i);
}

static int pipes(void)
{
	return pipes_up_to(65536);
}

static int some_pipes(void)
{
	return pipes_up_to(200);
}

static int unix_sockets(void)
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
static int netlink_sockets(void)
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
static int packet_rings(void)
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

static int tcp_sockets(void)
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

static int udp_sockets(void)
{
	long i;
	int fd, j;

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
		/* What finds no room is lost without a word. */
		for (j = 0; j < 64; j++)
			send(fd, block, PAGE, MSG_DONTWAIT);
	}
}

/* Events with long names, that nobody reads. */
static int inotify(void)
{
	char path[300];
	long i, j;
	int fd;

	many_descriptors();
	for (i = 0;; i++) {
		fd = inotify_init1(IN_NONBLOCK);
		if (fd < 0 || inotify_add_watch(fd, "/mnt", IN_ALL_EVENTS) < 0)
			break;
	}
	note("%ld inotify instances, then: %m", i);
	memset(path, 'x', sizeof(path));
	memcpy(path, "/mnt/", 5);
	for (j = 0; j < 200; j++) {
		/* The same event twice in a row is one event. */
		snprintf(path + 200, sizeof(path) - 200, "%ld", j % 2);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0)
			break;
		close(fd);
	}
	return sated("rounds of events", j);
}

static int epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	int events[500], fd;
	long i, j, count = 0;

	many_descriptors();
	for (j = 0; j < 500; j++)
		events[j] = eventfd(0, 0);
	for (i = 0;; i++) {
		fd = epoll_create1(0);
		if (fd < 0)
			return sated("watched events", count);
		for (j = 0; j < 500; j++, count++)
			if (epoll_ctl(fd, EPOLL_CTL_ADD, events[j], &event))
				return sated("watched events", count);
	}
}

/* Page cache of a disk, which can be dropped. */
static int page_cache(void)
{
	int fd = open("/dev/vda", O_RDONLY);
	long i;

	for (i = 0; i < 384 * (long)MIB / (long)sizeof(block); i++)
		if (read(fd, block, sizeof(block)) != sizeof(block))
			break;
	return sated("blocks of 64 KiB read", i);
}

/* Page cache of a file system that has nothing but page cache. */
static int ramfs_pages(void)
{
	int fd = open("/ramfs/attack", O_RDWR | O_CREAT, 0600);
	long i;

	unlink("/ramfs/attack");
	for (i = 0; write(fd, block, sizeof(block)) > 0; i++)
		;
	return sated("blocks of 64 KiB written", i);
}

/* In its own, which it has been delegated. */
static int cgroups(void)
{
	char path[256], *own = strchr(read_text("/proc/self/cgroup"), '/');
	char parent[128];
	long i;

	snprintf(parent, sizeof(parent), "/sys/fs/cgroup%s", own);
	for (i = 0;; i++) {
		snprintf(path, sizeof(path), "%s/%ld", parent, i);
		if (mkdir(path, 0755))
			return sated("cgroups", i);
	}
}

static int tasks(void)
{
	pid_t pid;
	long i;

	for (i = 0;; i++) {
		pid = fork();
		if (!pid)
			for (;;)
				pause();
		if (pid < 0)
			return sated("tasks", i);
	}
}

static int messages(void)
{
	struct {
		long type;
		char text[8000];
	} message = { .type = 1 };
	long i;
	int id;

	/* They go with the namespace. */
	if (unshare(CLONE_NEWIPC))
		return 1;
	for (i = 0;; i++) {
		id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
		if (id < 0)
			return sated("message queues", i);
		while (!msgsnd(id, &message, sizeof(message.text), IPC_NOWAIT))
			;
	}
}

/* Mappings that cannot be merged, in one address space after the other. */
static int mappings(void)
{
	long i, count = 0;
	char *memory;

	for (;;) {
		pid_t pid;

		memory = mmap(NULL, 65536 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		for (i = 0; i < 60000; i += 2, count++)
			if (mprotect(memory + i * PAGE, PAGE, PROT_NONE))
				return sated("mappings", count);
		pid = fork();
		if (pid < 0)
			return sated("mappings", count);
		if (pid)
			for (;;)
				pause();
		munmap(memory, 65536 * PAGE);
	}
}

static const struct {
	const char *name;
	int (*run)(void);
} attackers[] = {
	{ "files", files }, { "overlay_files", overlay_files }, { "symlinks", symlinks }, { "page_tables", page_tables },
	{ "pipes", pipes }, { "some_pipes", some_pipes }, { "unix_sockets", unix_sockets },
	{ "netlink_sockets", netlink_sockets }, { "packet_rings", packet_rings }, { "tcp_sockets", tcp_sockets }, { "udp_sockets", udp_sockets }, { "inotify", inotify }, { "epoll", epoll },
	{ "page_cache", page_cache }, { "ramfs_pages", ramfs_pages }, { "cgroups", cgroups }, { "tasks", tasks },
	{ "messages", messages }, { "mappings", mappings },
};

int attacker(const char *what)
{
	size_t i;

	for (i = 0; i < sizeof(attackers) / sizeof(attackers[0]); i++)
		if (!strcmp(attackers[i].name, what))
			return attackers[i].run();
	return NO_SUBJECT;
}
