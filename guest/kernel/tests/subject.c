// SPDX-License-Identifier: GPL-2.0
/*
 * What runs in the cgroups: each subject does one thing with memory, and says
 * by its exit code whether what it saw was right. The argument is the node
 * where its memory should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static char zeroed_data[64 * PAGE];

char *map(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Writes to each page; first looks that it was zero. */
bool touch(char *memory, size_t bytes)
{
	size_t i;

	for (i = 0; i < bytes; i += PAGE) {
		if (memory[i] || memory[i + PAGE - 1]) {
			note("page %zu is not zero", i / PAGE);
			return false;
		}
		memory[i] = 1;
	}
	return true;
}

int hold(void)
{
	raise(SIGSTOP);
	return 0;
}

/* 4 KiB pages, data, stack and heap. */
static int anon(int node)
{
	char stack[32 * PAGE], *memory = map(4 * MIB), *heap;

	madvise(memory, 4 * MIB, MADV_NOHUGEPAGE);
	memset(stack, 1, sizeof(stack));
	memset(zeroed_data, 1, sizeof(zeroed_data));
	heap = sbrk(16 * PAGE);
	memset(heap, 1, 16 * PAGE);
	return !(touch(memory, 4 * MIB) && all_on(memory, 4 * MIB, node) &&
		 all_on(stack, sizeof(stack), node) && all_on(heap, 16 * PAGE, node) &&
		 all_on(zeroed_data, sizeof(zeroed_data), node));
}

static int huge(int node)
{
	char *memory = map(8 * MIB);
	long before = vmstat("thp_fault_alloc");

	/* Reading first would map the huge zero page, and small ones then. */
	madvise(memory, 8 * MIB, MADV_HUGEPAGE);
	memset(memory, 1, 8 * MIB);
	if (!all_on(memory, 8 * MIB, node))
		return 1;
	return vmstat("thp_fault_alloc") == before ? 2 : 0;
}

/* Collapsing small pages to huge ones, on demand. */
static int collapse(int node)
{
	char *memory = map(8 * MIB), *start;
	int fd;

	start = (char *)(((unsigned long)memory + 2 * MIB - 1) & -(2 * MIB));
	madvise(memory, 8 * MIB, MADV_NOHUGEPAGE);
	touch(start, 4 * MIB);
	madvise(memory, 8 * MIB, MADV_HUGEPAGE);
	if (madvise(start, 4 * MIB, 25 /* MADV_COLLAPSE */))
		return 2;
	if (!all_on(start, 4 * MIB, node))
		return 3;

	/* And of a file of the kernel's own tmpfs. */
	fd = memfd_create("subject", 0);
	if (ftruncate(fd, 4 * MIB))
		return 4;
	start = mmap(start, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (!touch(start, 4 * MIB) || madvise(start, 4 * MIB, 25 /* MADV_COLLAPSE */))
		return 5;
	return all_on(start, 4 * MIB, node) ? 0 : 6;
}

/* Private mapping of a file: the file's pages in base, copies in the node. */
static int cow(int node)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	char *memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	volatile char *byte = memory;
	size_t i;

	for (i = 0; i < 16 * PAGE; i += PAGE)
		(void)byte[i];
	if (!all_on(memory, 16 * PAGE, 0))
		return 1;
	for (i = 0; i < 16 * PAGE; i += PAGE)
		byte[i]++;
	return !all_on(memory, 16 * PAGE, node);
}

/* A page cache page and kernel memory: not in the node. */
static int kernel_memory(int node)
{
	long before, after;
	int fd, pipes[16][2], i, sockets[2];
	char *memory, buffer[PAGE];
	pid_t pid;

	(void)node;
	memset(buffer, 1, sizeof(buffer));
	before = node_pages(node, "MemFree");

	fd = open("/ramfs/file", O_RDWR | O_CREAT, 0600);
	for (i = 0; i < 1024; i++)
		if (write(fd, buffer, PAGE) != PAGE)
			return 2;
	memory = mmap(NULL, 1024 * PAGE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (!all_on(memory, 1024 * PAGE, 0))
		return 3;
	for (i = 0; i < 16; i++) {
		int j;

		if (pipe(pipes[i]))
			return 4;
		for (j = 0; j < 15; j++)
			if (write(pipes[i][1], buffer, PAGE) != PAGE)
				return 5;
	}
	socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets);
	for (i = 0; i < 8; i++)
		if (write(sockets[0], buffer, PAGE) != PAGE)
			return 6;
	/* Page tables: a page in each of 256 tables, all of the zero page. */
	memory = mmap(NULL, 256 * 2 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, 256 * 2 * MIB, MADV_NOHUGEPAGE);
	for (i = 0; i < 256; i++)
		(void)*(volatile char *)(memory + i * 2 * MIB);
	pid = fork();
	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);

	/* 1024 + 240 + 16 + 256 pages of kernel memory; ours are a few. */
	after = node_pages(node, "MemFree");
	note("kernel memory of an attached task took %ld pages of its node", before - after);
	return before - after > 600;
}

struct range {
	char *memory;
	int node;
};

static int check_range(void *arg)
{
	struct range *range = arg;

	return !(touch(range->memory, MIB) && all_on(range->memory, MIB, range->node));
}

static void *check_range_thread(void *arg)
{
	return (void *)(long)check_range(arg);
}

/* fork, a thread, vfork + exec, and memory of a copied address space. */
static int children(int node)
{
	struct range range = { map(MIB), node };
	pthread_t thread;
	void *result;
	char arg[16];
	pid_t pid;

	pid = fork();
	if (!pid)
		_exit(check_range(&range));
	if (await_exit(pid, 10))
		return 1;

	pthread_create(&thread, NULL, check_range_thread, &range);
	pthread_join(thread, &result);
	if (result)
		return 2;

	snprintf(arg, sizeof(arg), "%d", node);
	pid = vfork();
	if (!pid) {
		execl("/proc/self/exe", "subject", "anon", arg, NULL);
		_exit(126);
	}
	return await_exit(pid, 10) ? 3 : 0;
}

/* Of the kernel's own tmpfs, and one mounted here. */
static int shared(int node)
{
	char *memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd, id;

	if (!touch(memory, MIB) || !all_on(memory, MIB, node))
		return 1;

	fd = memfd_create("subject", 0);
	if (ftruncate(fd, MIB))
		return 2;
	memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (!touch(memory, MIB) || !all_on(memory, MIB, node))
		return 2;

	id = shmget(IPC_PRIVATE, MIB, IPC_CREAT | 0600);
	memory = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	if (!touch(memory, MIB) || !all_on(memory, MIB, node))
		return 3;

	if (mount("subject", "/mnt", "tmpfs", 0, ""))
		return 4;
	fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, MIB))
		return 4;
	memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (!touch(memory, MIB) || !all_on(memory, MIB, node))
		return 4;
	umount2("/mnt", MNT_DETACH);
	return 0;
}

/* Everything that a task might try to get out. */
static int escape(int node)
{
	unsigned long base = 1, own = 1UL << node;
	char *memory = map(MIB), *other = map(MIB);
	void *page = memory;
	int to = 0, status = 0, ret;

	madvise(memory, MIB, MADV_NOHUGEPAGE);
	madvise(other, MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, MIB))
		return 1;

	/* Policies: for base they are accepted, and do nothing. */
	if (syscall(SYS_set_mempolicy, MPOL_BIND, &base, 64) || !touch(other, MIB) || !all_on(other, MIB, node))
		return 2;
	syscall(SYS_mbind, memory, MIB, MPOL_BIND, &base, 64, MPOL_MF_MOVE | MPOL_MF_MOVE_ALL);
	if (!all_on(memory, MIB, node))
		return 3;
	/* A private node can't be named, not even one's own. */
	if (!syscall(SYS_set_mempolicy, MPOL_BIND, &own, 64) ||
	    !syscall(SYS_mbind, memory, MIB, MPOL_BIND, &own, 64, 0))
		return 4;
	if (syscall(SYS_move_pages, 0, 1UL, &page, &to, &status, MPOL_MF_MOVE) >= 0 && status >= 0)
		return 5;
	syscall(SYS_migrate_pages, 0, 64, &own, &base);
	if (!all_on(memory, MIB, node))
		return 6;

	/* Cgroups: a descendant is as attached as the cgroup that is. */
	if (mkdir("/sys/fs/cgroup/subject/below", 0755))
		return 7;
	ret = write_text("none", "/sys/fs/cgroup/subject/below/memory.private_node");
	if (ret != -EPERM) {
		note("memory.private_node of a descendant: %d", ret);
		return 8;
	}
	if (!write_text("none", "/sys/fs/cgroup/subject/memory.private_node"))
		return 9;
	if (write_text("0", "/sys/fs/cgroup/subject/below/cgroup.procs"))
		return 9;
	ret = fork();
	if (!ret) {
		other = map(MIB);
		_exit(!(touch(other, MIB) && all_on(other, MIB, node)));
	}
	if (await_exit(ret, 10))
		return 9;

	/* Mounts: not of another's node. */
	if (!mount("subject", "/mnt", "tmpfs", 0, node == 1 ? "private_node=2" : "private_node=1"))
		return 10;

	/* Namespaces make no difference. */
	if (unshare(CLONE_NEWCGROUP | CLONE_NEWNS))
		note("unshare: %m");
	other = map(MIB);
	return touch(other, MIB) && all_on(other, MIB, node) ? 0 : 11;
}

/* Registers memory with io_uring: pins it for as long as the ring lives. */
int ring_with_buffer(char *memory, size_t bytes)
{
	struct io_uring_params params = {};
	struct iovec buffer = { memory, bytes };
	int fd = syscall(SYS_io_uring_setup, 4, &params);

	if (fd < 0 || syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &buffer, 1)) {
		note("io_uring: %m");
		return -1;
	}
	return fd;
}

static int pin(int node)
{
	char *memory = map(4 * MIB), *untouched = map(MIB);

	madvise(memory, 4 * MIB, MADV_NOHUGEPAGE);
	madvise(untouched, MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, 4 * MIB))
		return 1;
	if (ring_with_buffer(memory, 4 * MIB) < 0 || ring_with_buffer(untouched, MIB) < 0)
		return 2;
	return !(all_on(memory, 4 * MIB, node) && all_on(untouched, MIB, node));
}

/* Leaves with memory pinned, and without a word. */
static int pin_and_die(int node)
{
	char *memory = map(16 * MIB);

	(void)node;
	return !touch(memory, 16 * MIB) || ring_with_buffer(memory, 16 * MIB) < 0;
}

/* A huge page of the pool, which is base memory for an attached task as well. */
static int hugetlb(int node)
{
	char *memory = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (memory == MAP_FAILED)
		return 1;
	*memory = 1;
	return node_of(memory) == node ? 0 : 2;
}

static const struct {
	const char *name;
	int (*run)(int node);
} subjects[] = {
	{ "anon", anon }, { "huge", huge }, { "collapse", collapse }, { "cow", cow },
	{ "kernel_memory", kernel_memory }, { "children", children }, { "shared", shared },
	{ "escape", escape }, { "pin", pin }, { "pin_and_die", pin_and_die }, { "hugetlb", hugetlb },
};

int subject(const char *what, const char *arg)
{
	int node = arg ? atoi(arg) : 0, status;
	size_t i;

	if (!strcmp(what, "selftest"))
		return selftest(arg);
	for (i = 0; i < sizeof(subjects) / sizeof(subjects[0]); i++)
		if (!strcmp(subjects[i].name, what))
			return subjects[i].run(node);
	status = user(what, node);
	if (status == NO_SUBJECT)
		status = adopter(what, node);
	if (status == NO_SUBJECT)
		status = featured(what, node);
	return status == NO_SUBJECT ? attacker(what) : status;
}
