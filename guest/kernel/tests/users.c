// SPDX-License-Identifier: GPL-2.0
/*
 * Subjects that use memory of their node in one way or another, most of them
 * until they are told to go on.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

/* As much as there is, until killed. */
static int hog(int node)
{
	(void)node;
	for (;;) {
		char *memory = map(16 * MIB);

		if (!memory)
			return 1;
		touch(memory, 16 * MIB);
	}
}

/* The same by all other means: tmpfs, pipes, page tables. */
static int hog_kernel(int node)
{
	char buffer[PAGE];
	int fd = open("/tmp/hog", O_RDWR | O_CREAT, 0600), pipes[2], i;

	(void)node;
	memset(buffer, 1, sizeof(buffer));
	unlink("/tmp/hog");
	while (write(fd, buffer, PAGE) == PAGE)
		;
	for (i = 0; i < 64 && !pipe(pipes); i++) {
		fcntl(pipes[1], F_SETFL, O_NONBLOCK);
		while (write(pipes[1], buffer, PAGE) == PAGE)
			;
	}
	return hog(node);
}

/* Writes through a mapping to where a file has no page. */
static int hole(int node)
{
	int fd = open("/mnt/hole", O_RDWR | O_CREAT, 0600);
	char *memory;

	(void)node;
	if (fd < 0 || ftruncate(fd, PAGE))
		return 1;
	memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return 2;
	*memory = 1;
	return 0;
}

/* Holds 8 MiB until told otherwise. */
static int holder(int node)
{
	char *memory = map(8 * MIB);

	(void)node;
	madvise(memory, 8 * MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, 8 * MIB))
		return 1;
	hold();
	return memory[5 * MIB] != 1;
}

/* Holds most of a large node, in huge pages where there are any. */
static int big_holder(int node)
{
	size_t bytes = 1152 * MIB;
	char *memory = map(bytes);

	(void)node;
	madvise(memory, bytes, MADV_HUGEPAGE);
	if (!touch(memory, bytes))
		return 1;
	return hold();
}

/* Small pages and huge ones. */
static int mixed_holder(int node)
{
	char *small = map(24 * MIB), *huge = map(24 * MIB);

	madvise(small, 24 * MIB, MADV_NOHUGEPAGE);
	madvise(huge, 24 * MIB, MADV_HUGEPAGE);
	if (!touch(small, 24 * MIB) || !touch(huge, 24 * MIB))
		return 1;
	hold();
	return !(all_on(small, 24 * MIB, node) && all_on(huge, 24 * MIB, node));
}

/* Has little that is mapped, but page tables for a lot. */
static int mapper(int node)
{
	size_t bytes = 2 * GIB, i;
	char *memory = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	madvise(memory, bytes, MADV_NOHUGEPAGE);
	for (i = 0; i < bytes; i += 2 * MIB)
		(void)*(volatile char *)(memory + i);
	return holder(node);
}

/* Uses 96 MiB, anonymous and shared; then half of that; then for a moment 16 MiB more. */
static int usage(int node)
{
	char *memory = map(64 * MIB), *more;
	char *shared = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	(void)node;
	if (!touch(memory, 64 * MIB) || !touch(shared, 32 * MIB))
		return 1;
	hold();
	munmap(memory, 48 * MIB);
	hold();
	more = map(16 * MIB);
	if (!touch(more, 16 * MIB))
		return 2;
	munmap(more, 16 * MIB);
	hold();
	return 0;
}

/* Reads 16 pages of the disk that no other round has read. */
static int reader(int round)
{
	static char buffer[16 * PAGE];
	int fd = open("/dev/vda", O_RDONLY);

	/* No more than these: nothing is read ahead. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	return pread(fd, buffer, sizeof(buffer), round * (off_t)sizeof(buffer)) != sizeof(buffer);
}

/* Shared memory that its IPC namespace keeps, which a worker cleans up. */
static int linger_shm(int node)
{
	char *memory;
	int id;

	(void)node;
	if (unshare(CLONE_NEWIPC))
		return 1;
	id = shmget(IPC_PRIVATE, 16 * MIB, IPC_CREAT | 0600);
	memory = shmat(id, NULL, 0);
	if (memory == (void *)-1 || !touch(memory, 16 * MIB))
		return 2;
	return hold();
}

/* Pages in a pipe that a child has, too. */
static int linger_pipe(int node)
{
	char *memory = map(16 * PAGE);
	struct iovec range = { memory, 16 * PAGE };
	int pipes[2];

	(void)node;
	if (pipe(pipes) || !touch(memory, 16 * PAGE))
		return 1;
	if (vmsplice(pipes[1], &range, 1, SPLICE_F_GIFT) <= 0)
		return 2;
	if (!fork())
		pause();
	return hold();
}

/* Memory that io_uring has pinned, which a worker gives back. */
static int linger_ring(int node)
{
	char *memory = map(16 * MIB);

	(void)node;
	if (!touch(memory, 16 * MIB) || ring_with_buffer(memory, 16 * MIB) < 0)
		return 1;
	return hold();
}

/* A ring of events for asynchronous I/O, and a read that is under way into the node. */
static int linger_aio(int node)
{
	static aio_context_t context;
	static struct iocb read_disk, *submitted = &read_disk;
	char *memory = map(MIB);
	int fd = open("/dev/vda", O_RDONLY | O_DIRECT);

	(void)node;
	if (!touch(memory, MIB) || syscall(SYS_io_setup, 64, &context))
		return 1;
	read_disk.aio_fildes = fd;
	read_disk.aio_lio_opcode = IOCB_CMD_PREAD;
	read_disk.aio_buf = (unsigned long)memory;
	read_disk.aio_nbytes = MIB;
	if (fd >= 0 && syscall(SYS_io_submit, context, 1, &submitted) != 1)
		return 2;
	return hold();
}

/* A network namespace with a socket that has pages of the node to send. */
static int linger_network(int node)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	char *memory = map(16 * PAGE);
	int listener, from, one = 1;

	(void)node;
	if (unshare(CLONE_NEWNET) || !touch(memory, 16 * PAGE))
		return 1;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (ioctl(listener, SIOCSIFFLAGS, &loopback) || bind(listener, (struct sockaddr *)&address, length) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&address, &length))
		return 2;
	from = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(from, (struct sockaddr *)&address, length) || setsockopt(from, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)))
		return 3;
	if (send(from, memory, 16 * PAGE, MSG_ZEROCOPY | MSG_DONTWAIT) <= 0)
		return 4;
	return hold();
}

/* Leaves a file of 32 MiB in the file system of somebody's node. */
static int writer(int node)
{
	static char buffer[64 * 1024];
	int fd = open("/mnt/written", O_WRONLY | O_CREAT, 0600);
	size_t i;

	(void)node;
	for (i = 0; i < 32 * MIB; i += sizeof(buffer))
		if (write(fd, buffer, sizeof(buffer)) != sizeof(buffer))
			return 1;
	return 0;
}

/* Huge pages that lose parts of theirs, are shared, copied and split. */
static int splitter(int node)
{
	char *memory = map(16 * MIB);
	size_t i;
	pid_t pid;

	madvise(memory, 16 * MIB, MADV_HUGEPAGE);
	if (!touch(memory, 16 * MIB))
		return 1;
	for (i = 0; i < 8 * MIB; i += 2 * PAGE)
		madvise(memory + i, PAGE, MADV_DONTNEED);
	mprotect(memory + 9 * MIB, PAGE, PROT_READ);
	pid = fork();
	if (!pid) {
		for (i = 10 * MIB; i < 16 * MIB; i += 4 * PAGE)
			memory[i]++;
		_exit(!all_on(memory + 10 * MIB, 6 * MIB, node));
	}
	munmap(memory + 12 * MIB, PAGE);
	if (await_exit(pid, 20))
		return 2;
	/* Pages that are not needed are taken from the huge ones that they are part of. */
	madvise(memory, 12 * MIB, MADV_FREE);
	write_text("4M", "/sys/fs/cgroup/subject/inner/memory.reclaim");
	return 0;
}

/* Has memory that it does not need any more, until it is told to go. */
static int lazy(int node)
{
	char *memory = map(16 * MIB);

	(void)node;
	madvise(memory, 16 * MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, 16 * MIB) || madvise(memory, 16 * MIB, MADV_FREE))
		return 1;
	return hold();
}

/* A few pages from one CPU, and then leaves from another. */
static int wanderer(int node)
{
	char *memory = map(5 * PAGE);
	cpu_set_t cpus;

	(void)node;
	madvise(memory, 5 * PAGE, MADV_NOHUGEPAGE);
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || !touch(memory, 5 * PAGE))
		return 1;
	CPU_ZERO(&cpus);
	CPU_SET(1, &cpus);
	return sched_setaffinity(0, sizeof(cpus), &cpus) ? 2 : 0;
}

/* Gives a page to the pipe that is its standard input. */
static int splicer(int node)
{
	char *memory = map(8 * MIB);
	struct iovec page = { memory + 4 * MIB, PAGE };

	(void)node;
	madvise(memory, 8 * MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, 8 * MIB))
		return 1;
	return vmsplice(0, &page, 1, 0) == PAGE ? 0 : 2;
}

/* Somebody else writes to memory that it has not touched. */
static int target(int node)
{
	char *memory = map(MIB);
	FILE *file = fopen("/tmp/address", "w");

	madvise(memory, MIB, MADV_NOHUGEPAGE);
	fprintf(file, "%p", memory);
	fclose(file);
	hold();
	return !(memory[0] && memory[PAGE] && all_on(memory, 2 * PAGE, node));
}

/* Of the rest of its life: all of a container's day. For the stress test. */
static int worker(int node)
{
	unsigned int seed = getpid();
	int i;

	for (i = 0; i < 1000000; i++) {
		size_t bytes = (1 + rand_r(&seed) % 64) * 16 * PAGE;
		char *memory = map(bytes);

		switch (rand_r(&seed) % 5) {
		case 0:
			madvise(memory, bytes, MADV_NOHUGEPAGE);
			break;
		case 1:
			if (rand_r(&seed) % 8 == 0 && fork() == 0)
				_exit(!touch(memory, bytes));
			break;
		case 2:
			munmap(memory, bytes);
			memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
			break;
		}
		if (memory == MAP_FAILED || !memory)
			return 1;
		/* Negative: it is being migrated just now. */
		if (!touch(memory, bytes) || (node_of(memory) >= 0 && node_of(memory) != node))
			return 2;
		if (rand_r(&seed) % 4)
			munmap(memory, bytes);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	return 0;
}

static const struct {
	const char *name;
	int (*run)(int node);
} users[] = {
	{ "hog", hog }, { "hog_kernel", hog_kernel }, { "holder", holder }, { "splicer", splicer },
	{ "target", target }, { "worker", worker }, { "big_holder", big_holder }, { "lazy", lazy },
	{ "wanderer", wanderer }, { "hole", hole }, { "mixed_holder", mixed_holder }, { "mapper", mapper },
	{ "usage", usage }, { "writer", writer }, { "splitter", splitter },
	{ "reader", reader }, { "linger_shm", linger_shm }, { "linger_pipe", linger_pipe }, { "linger_ring", linger_ring },
	{ "linger_aio", linger_aio }, { "linger_network", linger_network },
};

int user(const char *what, int node)
{
	size_t i;

	for (i = 0; i < sizeof(users) / sizeof(users[0]); i++)
		if (!strcmp(users[i].name, what))
			return users[i].run(node);
	return NO_SUBJECT;
}
