// SPDX-License-Identifier: GPL-2.0
/*
 * Subjects that use as much base memory as they can, each by other means. They
 * end when they are killed, or stop themselves when nothing more is to be had.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attackers.h"

char block[64 * 1024];

int sated(const char *what, long count)
{
	note("%ld %s, then: %m", count, what);
	raise(SIGSTOP);
	return 0;
}

void many_descriptors(void)
{
	struct rlimit limit = { 65536, 65536 };

	setrlimit(RLIMIT_NOFILE, &limit);
}

void fill(int fd, size_t bytes)
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

/* The target of each is a page of the node. Returns how many, and why not more in errno. */
static long make_symlinks(void)
{
	char target[4000], path[64];
	long i;

	memset(target, 'x', sizeof(target));
	target[sizeof(target) - 1] = 0;
	for (i = 0;; i++) {
		snprintf(path, sizeof(path), "/mnt/%ld", i);
		if (symlink(target, path))
			return i;
	}
}

/* As many as there can be inodes. */
static int symlinks(void)
{
	return sated("symlinks", make_symlinks());
}

/* As many as fill the file system: base memory would not do. */
static int long_links(void)
{
	long count;

	if (mount("attacked", "/mnt", "tmpfs", MS_REMOUNT, "size=64m"))
		return 1;
	count = make_symlinks();
	return errno == ENOSPC ? sated("long symlinks", count) : 1;
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

/* Bytes that are locked one by one. Each file has few of them, since a new one is compared with all. */
static int file_locks(void)
{
	char path[64];
	long i, count = 0;
	int fd;

	many_descriptors();
	for (i = 0;; i++) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1000, .l_len = 1 };

		snprintf(path, sizeof(path), "/mnt/%ld", i);
		fd = open(path, O_RDWR | O_CREAT, 0600);
		if (fd < 0)
			return sated("file locks", count);
		for (; lock.l_start; lock.l_start -= 2, count++)
			if (fcntl(fd, F_SETLK, &lock))
				return sated("file locks", count);
	}
}

/* Both ends open, and nobody reads what was typed and printed. */
static int terminals(void)
{
	int master, slave, unlocked = 0;
	long i;

	many_descriptors();
	mkdir("/ramfs/pts", 0755);
	if (unshare(CLONE_NEWNS) || mount("devpts", "/ramfs/pts", "devpts", 0, "newinstance,ptmxmode=0666"))
		return 1;
	for (i = 0;; i++) {
		master = open("/ramfs/pts/ptmx", O_RDWR | O_NOCTTY);
		if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked))
			return sated("terminals", i);
		slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
		if (slave < 0)
			return sated("terminals", i);
		fill(master, PAGE);
		fill(slave, PAGE);
	}
}

/* Waits for one thing, many times at once. */
static int polls(void)
{
	static struct pollfd waits[65000];
	int ends[2];
	long i, j;

	many_descriptors();
	if (pipe(ends))
		return 1;
	for (i = 0; i < 65000; i++)
		waits[i] = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	for (j = 0; j < 100; j++) {
		pid_t pid = fork();

		if (!pid)
			poll(waits, 65000, -1);
		if (pid < 0)
			break;
	}
	return sated("polls", j);
}

/* What each has read of a directory that then changes. */
static int directories(void)
{
	char path[300];
	long i;
	int fd;

	many_descriptors();
	memset(path, 'x', sizeof(path));
	memcpy(path, "/overlay/", 9);
	for (i = 0; i < 2000; i++) {
		snprintf(path + 200, sizeof(path) - 200, "%ld", i);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0)
			return 1;
		close(fd);
	}
	for (i = 0;; i++) {
		DIR *directory = opendir("/overlay");

		if (!directory || !readdir(directory) || mkdir("/overlay/change", 0700) || rmdir("/overlay/change"))
			return sated("readers of a directory", i);
	}
}

/* The kernel may not wait for memory while it queues them. */
static int signals(void)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	sigset_t all;
	long i;

	setrlimit(RLIMIT_SIGPENDING, &limit);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (i = 0; !sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 0 }); i++)
		;
	return sated("signals", i);
}

static const struct {
	const char *name;
	int (*run)(void);
} attackers[] = {
	{ "files", files }, { "overlay_files", overlay_files }, { "symlinks", symlinks }, { "long_links", long_links },
	{ "page_tables", page_tables }, { "pipes", pipes }, { "some_pipes", some_pipes },
	{ "unix_sockets", unix_sockets }, { "netlink_sockets", netlink_sockets }, { "packet_rings", packet_rings },
	{ "tcp_sockets", tcp_sockets }, { "udp_sockets", udp_sockets }, { "raw_sockets", raw_sockets },
	{ "packet_sockets", packet_sockets }, { "ping_sockets", ping_sockets }, { "error_queues", error_queues },
	{ "corked_sockets", corked_sockets }, { "inotify", inotify }, { "epoll", epoll },
	{ "page_cache", page_cache }, { "ramfs_pages", ramfs_pages }, { "cgroups", cgroups }, { "tasks", tasks },
	{ "messages", messages }, { "mappings", mappings }, { "file_locks", file_locks }, { "terminals", terminals },
	{ "polls", polls }, { "directories", directories }, { "filters", filters }, { "options", options },
	{ "fanouts", fanouts }, { "signals", signals },
};

int attacker(const char *what)
{
	size_t i;

	for (i = 0; i < sizeof(attackers) / sizeof(attackers[0]); i++)
		if (!strcmp(attackers[i].name, what))
			return attackers[i].run();
	return NO_SUBJECT;
}
