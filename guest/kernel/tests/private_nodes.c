// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of private memory nodes. Runs as the only program of a virtual machine
 * (as /init) whose host obeys the second serial port: see README.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define FIRST	(&partitions[0])
#define SECOND	(&partitions[1])

/* An instance's worth of partition and cgroup. */
static bool instance_begin(struct partition *partition, const char *cgroup, unsigned long bytes)
{
	if (!plug(partition, bytes))
		return false;
	if (check_is(cgroup_create(cgroup, partition->node), 0))
		return true;
	cgroup_remove(cgroup);
	return false;
}

static bool instance_end(struct partition *partition, const char *cgroup, double seconds)
{
	cgroup_kill(cgroup);
	check_is(cgroup_remove(cgroup), 0);
	return check(unplug(partition, seconds));
}

/* 1. Nobody gets memory of a private node by accident. */

static bool kernel_thread_exists(const char *name)
{
	int pid;

	for (pid = 2; pid < 1000; pid++)
		if (!strcmp(read_text("/proc/%d/comm", pid), name))
			return true;
	return false;
}

static void test_hidden(void)
{
	unsigned long mask = 1UL << FIRST->node;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int to = FIRST->node, status = 0;
	char node[8], thread[16];

	*(char *)page = 1;
	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!plug(FIRST, 256 * MIB))
		return;
	check(strstr(read_text("/sys/devices/system/node/has_memory_private"), node));
	check(!strcmp(read_text("/sys/devices/system/node/has_memory"), "0"));
	check(!strcmp(read_text("/sys/fs/cgroup/cpuset.mems.effective"), "0"));

	check_is(cgroup_create("hidden", -1), 0);
	write_text(node, "/sys/fs/cgroup/hidden/cpuset.mems");
	check(!strcmp(read_text("/sys/fs/cgroup/hidden/cpuset.mems.effective"), "0"));
	cgroup_remove("hidden");

	check(syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 64) == -1 && errno == EINVAL);
	check(syscall(SYS_set_mempolicy, MPOL_PREFERRED, &mask, 64) == -1 && errno == EINVAL);
	check(syscall(SYS_mbind, page, PAGE, MPOL_BIND, &mask, 64, 0) == -1 && errno == EINVAL);
	syscall(SYS_move_pages, 0, 1UL, &page, &to, &status, MPOL_MF_MOVE);
	check_is(node_of(page), 0);
	syscall(SYS_migrate_pages, 0, 64, &(unsigned long){1}, &mask);
	check_is(node_of(page), 0);
	check_is(allocated(FIRST), 0);

	/* Nobody has to keep the node in order. */
	check(kernel_thread_exists("kswapd0"));
	snprintf(thread, sizeof(thread), "kswapd%d", FIRST->node);
	check(!kernel_thread_exists(thread));
	snprintf(thread, sizeof(thread), "kcompactd%d", FIRST->node);
	check(!kernel_thread_exists(thread));
	check(unplug(FIRST, 5));
}

/* What is said to be available in base memory, beyond what is free there. In KiB. */
static long available_and_not_free(void)
{
	return keyed("/proc/meminfo", "MemAvailable:") - node_pages(0, "MemFree") * 4;
}

/* Memory that not everybody can have is not said to be available, or reserved. */
static void test_counts(void)
{
	long available = available_and_not_free(), dirty = vmstat("nr_dirty_background_threshold");
	long left = node_pages(0, "MemFree");

	if (!plug(FIRST, 2 * GIB))
		return;
	check_most(labs(available_and_not_free() - available), 2 * 1024);
	/* What the kernel keeps about memory is base memory, and a lot of that where KASAN is on. */
	dirty = dirty * node_pages(0, "MemFree") / left;
	check_most(labs(vmstat("nr_dirty_background_threshold") - dirty), dirty / 4);
	check(unplug(FIRST, 5));
}

#define HUGETLB		"/proc/sys/vm/nr_hugepages"

/* Pools of huge pages take all the memory that they can find. Where there is none for sale, there is none for an instance. */
static void test_hugetlb(void)
{
	static const char pool[] = "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/nr_hugepages";
	long have;

	if (access(HUGETLB, F_OK)) {
		note("this kernel has no huge pages of that kind");
		return;
	}
	if (!instance_begin(FIRST, "subject", 512 * MIB))
		return;
	check_is(write_text("1000000", HUGETLB), 0);
	have = read_number(HUGETLB);
	note("%ld huge pages", have);
	check(have > 0 && have < 1000000);
	check_is(read_number(pool, 0), have);
	check_is(allocated(FIRST), 0);
	check_is(write_text("0", HUGETLB), 0);

	write_text("16", pool, FIRST->node);
	check_is(read_number(HUGETLB), 0);
	check_is(allocated(FIRST), 0);

	/* On demand, from a task that is attached. */
	check_is(write_text("16", "/proc/sys/vm/nr_overcommit_hugepages"), 0);
	check_is(run("subject", "hugetlb", "0"), 0);
	write_text("0", "/proc/sys/vm/nr_overcommit_hugepages");
	instance_end(FIRST, "subject", 5);
}

/* Others take all the memory that there is, and are killed for it. */
static void test_pressure(void)
{
	static const char * const hogs[] = { "hog", "hog_kernel" };
	long most = 0;
	size_t i;

	if (!plug(FIRST, 512 * MIB) || !check_is(cgroup_create("outside", -1), 0))
		return;
	for (i = 0; i < 2; i++) {
		pid_t pid = spawn("outside", hogs[i], "0");
		int status;

		while ((status = await_exit(pid, 0.05)) == -1) {
			long pages = allocated(FIRST);

			if (pages > most)
				most = pages;
		}
		check_is(status, 128 + SIGKILL);
		write_text("3", "/proc/sys/vm/drop_caches");
		write_text("1", "/proc/sys/vm/compact_memory");
	}
	check_is(most, 0);
	check_is(allocated(FIRST), 0);
	cgroup_remove("outside");
	check(unplug(FIRST, 5));
}

/* 2. Anonymous memory and tmpfs of the attached, and nothing else. */

static void test_subjects(void)
{
	static const char * const names[] = {
		"anon", "huge", "collapse", "cow", "children", "shared", "kernel_memory",
	};
	char node[8];
	size_t i;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		int status = run("subject", names[i], node);

		if (status)
			note("%s: %d", names[i], status);
		check_is(status, 0);
	}
	instance_end(FIRST, "subject", 5);
	/* And the same program elsewhere has nothing of it. */
	check_is(run("", "anon", "0"), 0);
	check_is(run("", "shared", "0"), 0);
}

/* Memory that somebody else touches first: it is still the instance's. */
static void test_remote(void)
{
	char one = 1, *address;
	char node[8], path[64];
	pid_t pid;
	int fd;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	pid = spawn("subject", "target", node);
	if (check(await_stop(pid, 10))) {
		struct iovec local = { &one, 1 }, remote;

		address = (char *)strtoul(read_text("/tmp/address"), NULL, 16);
		remote = (struct iovec){ address, 1 };
		check_is(process_vm_writev(pid, &local, 1, &remote, 1, 0), 1);
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		fd = open(path, O_RDWR);
		check_is(pwrite(fd, &one, 1, (long)address + PAGE), 1);
		close(fd);
		resume(pid);
		check_is(await_exit(pid, 10), 0);
	}
	instance_end(FIRST, "subject", 5);
}

/* A tmpfs that is mounted, and written to, from outside. */
static void test_tmpfs_from_outside(void)
{
	char options[32], *memory;
	int fd;

	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(options, sizeof(options), "size=64m,private_node=%d", FIRST->node);
	if (check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0)) {
		check(strstr(read_text("/proc/mounts"), options + strlen("size=64m")));
		fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
		memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ftruncate(fd, MIB);
		memset(memory, 1, MIB);
		check(all_on(memory, MIB, FIRST->node));
		munmap(memory, MIB);
		close(fd);
		check(mount("subject", "/mnt", "tmpfs", MS_REMOUNT, "private_node=2") == -1);
		check(mount("subject", "/mnt", "tmpfs", MS_REMOUNT, "size=32m") == 0);
		check_is(umount("/mnt"), 0);
	}
	instance_end(FIRST, "subject", 5);
	snprintf(options, sizeof(options), "private_node=%d", SECOND->node);
	check(mount("subject", "/mnt", "tmpfs", 0, options) == -1);
}

static void test_escape(void)
{
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB) || !plug(SECOND, 256 * MIB))
		return;
	check_is(write_text("+memory", "/sys/fs/cgroup/subject/cgroup.subtree_control"), 0);
	check_is(cgroup_create("subject/inside", -1), 0);
	check(!strcmp(read_text("/sys/fs/cgroup/subject/inside/memory.private_node"), node));
	check_is(run("subject/inside", "escape", node), 0);
	check_is(allocated(SECOND), 0);
	check_is(cgroup_remove("subject/inside"), 0);
	check_is(cgroup_remove("subject/below"), 0);
	instance_end(FIRST, "subject", 5);
	check(unplug(SECOND, 5));
}

/* What an agent may do with memory.private_node, and what not. */
static void test_attach(void)
{
	char node[8];
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	check_is(cgroup_create("early", FIRST->node), -ENODEV);
	cgroup_remove("early");
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	check_is(cgroup_create("second", FIRST->node), -EBUSY);
	cgroup_remove("second");
	check_is(cgroup_create("base", 0), -ENODEV);
	cgroup_remove("base");
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	check_is(write_text("none", "/sys/fs/cgroup/subject/memory.private_node"), -EBUSY);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	check_is(write_text("none", "/sys/fs/cgroup/subject/memory.private_node"), 0);
	check(!strcmp(read_text("/sys/fs/cgroup/subject/memory.private_node"), "none"));
	check_is(cgroup_create("second", FIRST->node), 0);
	cgroup_remove("second");
	instance_end(FIRST, "subject", 5);
}

/* clone3() straight into an attached cgroup, without exec. */
static void test_clone_into_cgroup(void)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	pid_t pid;

	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	args.cgroup = open("/sys/fs/cgroup/subject", O_RDONLY | O_DIRECTORY);
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (!pid) {
		char *memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(memory, 1, MIB);
		_exit(!all_on(memory, MIB, FIRST->node));
	}
	close(args.cgroup);
	check_is(await_exit(pid, 10), 0);
	instance_end(FIRST, "subject", 5);
}

/* 3. A full node is its user's problem. */

static void test_bounded(void)
{
	long base, most = 0;
	pid_t pid, neighbour, big;
	char node[8];
	int status;

	snprintf(node, sizeof(node), "%d", SECOND->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB) || !instance_begin(SECOND, "neighbour", 256 * MIB) ||
	    !check_is(cgroup_create("big", -1), 0))
		return;
	neighbour = spawn("neighbour", "holder", node);
	big = spawn("big", "holder", "0");
	check(await_stop(neighbour, 10) && await_stop(big, 10));
	base = node_pages(0, "MemFree");
	pid = spawn("subject", "hog", "0");
	while ((status = await_exit(pid, 0.05)) == -1) {
		long used = base - node_pages(0, "MemFree");

		if (used > most)
			most = used;
	}
	check_is(status, 128 + SIGKILL);
	check(keyed("/sys/fs/cgroup/subject/memory.events", "oom_kill") >= 1);
	check_is(keyed("/sys/fs/cgroup/neighbour/memory.events", "oom_kill"), 0);
	/* Page tables of 256 MiB, what the kernel needs to tell the tale, and what KASAN keeps of it for a while. */
	check_most(most, has_kasan() ? 3072 : 2048);
	check_is(allocated(SECOND) >= 2048, true);
	resume(neighbour);
	check_is(await_exit(neighbour, 10), 0);
	resume(big);
	check_is(await_exit(big, 10), 0);
	cgroup_remove("big");
	instance_end(FIRST, "subject", 5);
	instance_end(SECOND, "neighbour", 5);
}

/* Base memory is used up: whoever has memory of its own node is of no help. */
static void test_system_oom(void)
{
	pid_t rich, poor;

	if (!instance_begin(FIRST, "subject", 2 * GIB) || !check_is(cgroup_create("outside", -1), 0))
		return;
	rich = spawn("subject", "big_holder", "0");
	if (check(await_stop(rich, 180))) {
		poor = spawn("outside", "hog", "0");
		check_is(await_exit(poor, 180), 128 + SIGKILL);
		check_is(keyed("/sys/fs/cgroup/subject/memory.events", "oom_kill"), 0);
		resume(rich);
		check_is(await_exit(rich, 10), 0);
	}
	cgroup_remove("outside");
	instance_end(FIRST, "subject", 10);
	/* Back to something small for the others. */
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

/* What nobody needs is reclaimed from the node, too. */
static void test_reclaim(void)
{
	pid_t pid;
	long used;

	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	pid = spawn("subject", "lazy", "0");
	if (check(await_stop(pid, 10))) {
		used = allocated(FIRST);
		check(used >= 4096);
		write_text("16M", "/sys/fs/cgroup/subject/memory.reclaim");
		check_most(allocated(FIRST), used - 2048);
		resume(pid);
		check_is(await_exit(pid, 10), 0);
	}
	instance_end(FIRST, "subject", 5);
}

/* A tmpfs that fills its node, with nobody there to be killed for it. */
static void test_full_tmpfs(void)
{
	char options[32], buffer[PAGE];
	long base, pages = 0;
	int fd;

	memset(buffer, 1, sizeof(buffer));
	if (!instance_begin(FIRST, "subject", 128 * MIB))
		return;
	snprintf(options, sizeof(options), "size=512m,private_node=%d", FIRST->node);
	if (check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0)) {
		base = node_pages(0, "MemFree");
		fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
		while (write(fd, buffer, PAGE) == PAGE)
			pages++;
		note("%ld pages until: %m", pages);
		check(pages > 30000);
		check_most(pages, 128 * MIB / PAGE);
		check_most(base - node_pages(0, "MemFree"), 1024);
		/* Who comes from outside can't have a page either, is told so, and is not kept waiting. */
		check_is(run("", "hole", "0"), 128 + SIGBUS);
		check_is(ftruncate(fd, 0), 0);
		check_is(run("", "hole", "0"), 0);
		close(fd);
		check_is(umount("/mnt"), 0);
	}
	instance_end(FIRST, "subject", 5);
}

/* A process with nothing to lose does not spin. */
static void test_unkillable(void)
{
	pid_t pid;
	int status;

	if (!instance_begin(FIRST, "subject", 128 * MIB))
		return;
	pid = spawn("subject", "hog", "0");
	write_text("-1000", "/proc/%d/oom_score_adj", pid);
	status = await_exit(pid, 60);
	check_is(status, 128 + SIGKILL);
	if (status == -1)
		kill(pid, SIGKILL);
	instance_end(FIRST, "subject", 5);
}

static void test_pins(void)
{
	long base;
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	base = vmstat("pgmigrate_longterm_pin");
	check_is(run("subject", "pin", node), 0);
	check_is(vmstat("pgmigrate_longterm_pin") - base, 0);
	check_is(run("subject", "pin_and_die", node), 0);
	instance_end(FIRST, "subject", 5);
}

/* 4. Parking. */

static void use_and_leave(struct partition *partition)
{
	char node[8];

	snprintf(node, sizeof(node), "%d", partition->node);
	check_is(run("subject", "huge", node), 0);
	check_is(run("subject", "anon", node), 0);
	check_is(run("subject", "shared", node), 0);
}

/* The flags of the first page of the node's first memory block. */
static unsigned long first_page_flags(int node)
{
	unsigned long flags = 0, pfn = 0;
	int fd, i;

	for (i = 0; i < 65536 && !pfn; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/memory%d", node, i);
		if (!access(path, F_OK))
			pfn = i * (128 * MIB / PAGE);
	}
	fd = open("/proc/kpageflags", O_RDONLY);
	pread(fd, &flags, sizeof(flags), pfn * sizeof(flags));
	close(fd);
	return flags;
}

static void test_park(void)
{
	long blocks, moved, zeroed, parks = stat_of(FIRST, "parks");
	int round;

	for (round = 0; round < 3; round++) {
		if (!instance_begin(FIRST, "subject", 512 * MIB))
			return;
		use_and_leave(FIRST);
		blocks = memory_blocks(FIRST->node);
		check_is(blocks, 4);
		moved = migrated();
		zeroed = vmstat("contig_alloc_zeroed");
		check(!(first_page_flags(FIRST->node) >> 20 & 1));	/* KPF_NOPAGE */
		instance_end(FIRST, "subject", 5);

		check(!strcmp(state_of(FIRST), "parked"));
		check_is(stat_of(FIRST, "parks"), parks + round + 1);
		check_is(memory_blocks(FIRST->node), blocks);
		check_is(migrated() - moved, 0);
		check_is(vmstat("contig_alloc_zeroed") - zeroed, 0);
		check_is(stat_of(FIRST, "plugged_bytes"), 0);
		check_is(node_pages(FIRST->node, "MemTotal"), 0);
		check(first_page_flags(FIRST->node) >> 20 & 1);
		check_is(cgroup_create("parked", FIRST->node), -ENODEV);
		cgroup_remove("parked");
		/* What walks all memory finds none there. */
		write_text("1", "/proc/sys/vm/compact_memory");
		read_text("/proc/pagetypeinfo");
		read_text("/proc/buddyinfo");
		read_text("/proc/zoneinfo");
		note("park %ld us, of which the host %ld us; last plug %ld us",
		     stat_of(FIRST, "last_unplug_ns") / 1000, stat_of(FIRST, "last_unplug_host_ns") / 1000,
		     stat_of(FIRST, "last_plug_ns") / 1000);
	}
}

/* Nothing lingers on other CPUs, from where it would have to be fetched. */
static void test_batches(void)
{
	long misses = stat_of(FIRST, "park_misses");
	int round;

	for (round = 0; round < 5; round++) {
		if (!instance_begin(FIRST, "subject", 256 * MIB))
			return;
		check_is(run("subject", "wanderer", "0"), 0);
		instance_end(FIRST, "subject", 5);
	}
	check_is(stat_of(FIRST, "park_misses") - misses, 0);
}

/* A memory block of a parked node cannot go offline or online. */
static void test_parked_blocks(void)
{
	int i;

	if (!plug(FIRST, 256 * MIB) || !check(unplug(FIRST, 5)))
		return;
	for (i = 0; i < 65536; i++) {
		if (!*read_text("/sys/devices/system/node/node%d/memory%d/state", FIRST->node, i))
			continue;
		check(write_text("offline", "/sys/devices/system/node/node%d/memory%d/state", FIRST->node, i) < 0);
		check(!strcmp(read_text("/sys/devices/system/node/node%d/memory%d/state", FIRST->node, i), "online"));
		break;
	}
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
	check(!strcmp(state_of(FIRST), "parked"));
}

/* Another size, both ways: the memory blocks are made anew. */
static void test_resize(void)
{
	static const unsigned long sizes[] = { 256, 512, 128, 130, 1024, 2 };
	size_t i;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		if (!plug(FIRST, sizes[i] * MIB))
			return;
		check_is(node_pages(FIRST->node, "MemTotal"), sizes[i] * MIB / PAGE);
		check(unplug(FIRST, 5));
		check(!strcmp(state_of(FIRST), "parked"));
	}
}

/* Parking waits until those are empty: they do not grow with the node. */
static void test_lists(void)
{
	static const unsigned long sizes[] = { 256 * MIB, 8 * GIB };
	long limits[2];
	int i;

	for (i = 0; i < 2; i++) {
		if (!instance_begin(FIRST, "subject", sizes[i]))
			return;
		/* A list has a limit from its first use on. */
		use_and_leave(FIRST);
		limits[i] = list_pages(FIRST->node, "high", false);
		instance_end(FIRST, "subject", 5);
	}
	note("per-CPU lists have up to %ld pages with 256 MiB, %ld with 8 GiB", limits[0], limits[1]);
	check(limits[0] > 0 && limits[1] > 0);
	check_most(limits[1], 512);
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

static int compare(const void *a, const void *b)
{
	return *(const long *)a - *(const long *)b;
}

/* The guest's part of a park, in microseconds: the least of nine, which tells least of others on the machine. */
static long park_us(struct partition *partition, unsigned long bytes, long *unpark_us)
{
	long park[9], unpark[9], misses = stat_of(partition, "park_misses");
	int i;

	if (!plug(partition, bytes) || !check(unplug(partition, 5)))
		return 0;
	for (i = 0; i < 9; i++) {
		if (!instance_begin(partition, "subject", bytes))
			return 0;
		unpark[i] = (stat_of(partition, "last_plug_ns") - stat_of(partition, "last_plug_host_ns")) / 1000;
		use_and_leave(partition);
		instance_end(partition, "subject", 5);
		park[i] = (stat_of(partition, "last_unplug_ns") - stat_of(partition, "last_unplug_host_ns")) / 1000;
	}
	qsort(park, 9, sizeof(long), compare);
	qsort(unpark, 9, sizeof(long), compare);
	*unpark_us = unpark[0];
	note("%lu MiB: guest's work to park %ld us (median %ld, at most %ld; %ld misses), to unpark %ld us", bytes / MIB,
	     park[0], park[4], park[8], stat_of(partition, "park_misses") - misses, unpark[0]);
	return park[0];
}

static void test_park_time(void)
{
	/*
	 * Some room for noise: the machine is emulated, and not alone. With KASAN, what is done for each section takes
	 * microseconds, too; if something was done for each page, 8 GiB would take 2 ms without.
	 */
	long noise = has_kasan() ? 1000 : 100, small, big, small_unpark, big_unpark;

	small = park_us(FIRST, 512 * MIB, &small_unpark);
	big = park_us(FIRST, 8 * GIB, &big_unpark);
	check_most(big, small * 3 / 2 + noise);
	check_most(big_unpark, small_unpark * 3 / 2 + noise);
	/* Back to something small for the others. */
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

/* 5. Not quite empty. */

static void test_pinned_by_pipe(void)
{
	int pipes[2], saved = dup(0);
	long zeroed, requests;
	char byte;

	if (!instance_begin(FIRST, "subject", 256 * MIB) || pipe(pipes))
		return;
	dup2(pipes[1], 0);
	check_is(run("subject", "splicer", "0"), 0);
	dup2(saved, 0);
	close(saved);
	zeroed = vmstat("contig_alloc_zeroed");
	requests = vmstat("pgmigrate_success");
	cgroup_kill("subject");
	check_is(cgroup_remove("subject"), 0);
	check(!unplug(FIRST, 3));
	check(!strcmp(state_of(FIRST), "draining"));
	check_is(allocated(FIRST), 1);
	check_most(stat_of(FIRST, "plugged_bytes"), 4 * MIB);
	check_is(vmstat("contig_alloc_zeroed") - zeroed, 0);
	check_is(vmstat("pgmigrate_success") - requests, 0);

	/* The page is still what it was. */
	check_is(read(pipes[0], &byte, 1), 1);
	check_is(byte, 1);
	close(pipes[0]);
	close(pipes[1]);
	check(unplug(FIRST, 5));
	check_is(allocated(FIRST), 0);
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

/* Pages migrated, the sum of all reasons. */
static long migrated_by_reason(void)
{
	static const char * const reasons[] = {
		"compaction", "memory_failure", "memory_hotplug", "syscall", "mempolicy_mbind", "numa_misplaced",
		"contig_range", "longterm_pin", "demotion", "damon",
	};
	long sum = 0;
	char key[64];
	size_t i;

	for (i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
		snprintf(key, sizeof(key), "pgmigrate_%s", reasons[i]);
		sum += vmstat(key);
	}
	return sum;
}

/* Somebody still maps memory: the report says who, and nothing is lost. */
static void test_holder(void)
{
	long moved = vmstat("pgmigrate_contig_range") + vmstat("pgmigrate_memory_hotplug");
	long by_reason;
	char node[8];
	double end;
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	check(!unplug(FIRST, 3));
	check(!strcmp(state_of(FIRST), "draining"));
	/* A page that is on its way is mapped nowhere: wait until there is nothing left to move. */
	for (end = now() + 30; stat_of(FIRST, "plugged_bytes") > 32 * (long)MIB && now() < end;)
		pause_ms(100);
	for (end = now() + 30; mapped_pages(pid, FIRST->node) < 2048 && now() < end;)
		pause_ms(100);
	check(mapped_pages(pid, FIRST->node) >= 2048);
	check(mapped_pages(pid, 0) < 1024);
	/* Moved together, but within the partition. */
	check_most(stat_of(FIRST, "plugged_bytes"), 32 * MIB);
	note("%ld MiB are left of 256, for %ld pages", stat_of(FIRST, "plugged_bytes") / (long)MIB, allocated(FIRST));
	check(vmstat("pgmigrate_contig_range") + vmstat("pgmigrate_memory_hotplug") > moved);
	/* The driver tries again every now and then, so the two are of the same moment only if nothing has moved between them. */
	end = now() + 30;
	do {
		moved = migrated();
		by_reason = migrated_by_reason();
	} while (migrated() != moved && now() < end);
	check_is(by_reason, moved);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	check(unplug(FIRST, 5));
	check_is(cgroup_remove("subject"), 0);
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

static void test_leaked_tmpfs(void)
{
	char options[32], buffer[PAGE], wrong = 0;
	int fd, i;

	memset(buffer, 7, sizeof(buffer));
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(options, sizeof(options), "private_node=%d", FIRST->node);
	check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0);
	fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
	for (i = 0; i < 2048; i++)
		write(fd, buffer, PAGE);
	check_is(cgroup_remove("subject"), 0);
	check(!unplug(FIRST, 3));
	check(allocated(FIRST) >= 2048);
	check_most(stat_of(FIRST, "plugged_bytes"), 32 * MIB);
	for (i = 0; i < 2048; i++) {
		pread(fd, buffer, PAGE, i * PAGE);
		wrong |= buffer[0] ^ 7;
		wrong |= buffer[PAGE - 1] ^ 7;
	}
	check_is(wrong, 0);
	close(fd);
	check_is(umount("/mnt"), 0);
	check(unplug(FIRST, 5));
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

/* 6. Memory that is parked for long. */

static void test_remove_parked(void)
{
	long unparks;
	double end;

	if (!plug(FIRST, 256 * MIB))
		return;
	write_text("1", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	check(unplug(FIRST, 5));
	check_is(memory_blocks(FIRST->node), 2);
	end = now() + 20;
	while (memory_blocks(FIRST->node) && now() < end)
		pause_ms(50);
	check_is(memory_blocks(FIRST->node), 0);
	check(!strcmp(state_of(FIRST), "empty"));
	write_text("0", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));

	/* What has been used meanwhile counts anew. */
	write_text("5", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	end = now() + 7;
	if (!plug(FIRST, 256 * MIB) || !unplug(FIRST, 5))
		return;
	write_text("600", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	if (!plug(FIRST, 384 * MIB) || !unplug(FIRST, 5))
		return;
	while (now() < end)
		pause_ms(50);
	unparks = stat_of(FIRST, "unparks");
	check(plug(FIRST, 384 * MIB));
	check_is(stat_of(FIRST, "unparks") - unparks, 1);
	write_text("0", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	check(unplug(FIRST, 5) && plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
}

/* 7. Where free memory has to keep its content, and where nothing is private. */

/* With init_on_free=1 or page_poison=1, everything goes the stock way. */
static void test_content(void)
{
	long parks = stat_of(FIRST, "parks");
	int round;

	for (round = 0; round < 3; round++) {
		if (!instance_begin(FIRST, "subject", 256 * MIB))
			return;
		use_and_leave(FIRST);
		/* Page by page, and each is poisoned: this can take long. */
		instance_end(FIRST, "subject", 120);
		check(!strcmp(state_of(FIRST), "empty"));
		check_is(memory_blocks(FIRST->node), 0);
	}
	check_is(stat_of(FIRST, "parks") - parks, 0);
}

/* With virtio_mem.private_nodes=0, it is the driver that it used to be. */
static void test_stock(void)
{
	long zeroed = vmstat("contig_alloc_zeroed"), init_on_alloc;
	double end = now() + 20;
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	check(!*read_text("/sys/devices/system/node/has_memory_private"));
	if (!plug(FIRST, 256 * MIB))
		return;
	check(strstr(read_text("/sys/devices/system/node/has_memory"), node));
	check_is(cgroup_create("stock", FIRST->node), -ENODEV);
	cgroup_remove("stock");
	/* Part of it, which is unplugged in parts of memory blocks. */
	request(FIRST, 130 * MIB);
	while (stat_of(FIRST, "plugged_bytes") != 130 * (long)MIB && now() < end)
		pause_ms(10);
	check_is(stat_of(FIRST, "plugged_bytes"), 130 * MIB);
	init_on_alloc = !strstr(read_text("/proc/cmdline"), "init_on_alloc=0");
	zeroed = vmstat("contig_alloc_zeroed") - zeroed;
	check(init_on_alloc ? zeroed >= (long)(2 * MIB / PAGE) : !zeroed);
	check(unplug(FIRST, 20));
	check(!strcmp(state_of(FIRST), "empty"));
	check_is(stat_of(FIRST, "parks"), 0);
}

/* A driver that lets go of its device takes parked memory away for good, and is none the worse for it. */
static void test_unbind(void)
{
	static const char driver[] = "/sys/bus/virtio/drivers/virtio_mem";
	char device[64];

	/* Memory right behind the device's is somebody else's. */
	if (!plug(SECOND, 256 * MIB) || !plug(FIRST, 256 * MIB) || !check(unplug(FIRST, 5)))
		return;
	check(!strcmp(state_of(FIRST), "parked"));
	check_is(sscanf(FIRST->sysfs, "/sys/bus/virtio/devices/%63[^/]", device), 1);
	check_is(write_text(device, "%s/unbind", driver), 0);
	check_is(memory_blocks(FIRST->node), 0);
	check(access(FIRST->sysfs, F_OK));
	check_is(write_text(device, "%s/bind", driver), 0);
	check_is(stat_of(FIRST, "private"), 1);
	check(plug(FIRST, 256 * MIB) && unplug(FIRST, 5));
	check(unplug(SECOND, 5));
}

/* A host that changes its mind in the middle gets what it asked for last. */
static void test_fickle_host(void)
{
	static const unsigned long sizes[] = { 512 * MIB, 0, 256 * MIB, 512 * MIB, 0, 768 * MIB };
	unsigned int seed = 1;
	double end;
	int i;

	for (i = 0; i < 120; i++) {
		request(FIRST, sizes[rand_r(&seed) % (sizeof(sizes) / sizeof(sizes[0]))]);
		pause_ms(rand_r(&seed) % 30);
	}
	request(FIRST, 512 * MIB);
	for (end = now() + 30; stat_of(FIRST, "plugged_bytes") != 512 * (long)MIB && now() < end;)
		pause_ms(10);
	check_is(stat_of(FIRST, "plugged_bytes"), 512 * MIB);
	check(await_state(FIRST, "online", 5));
	check_is(node_pages(FIRST->node, "MemTotal"), 512 * MIB / PAGE);
	check(unplug(FIRST, 5));
	check_is(allocated(FIRST), 0);
}

/* When a test can be run: by what the kernel's command line says. */
enum boot { PRIVATE, CONTENT, STOCK };

static const struct {
	const char *name;
	void (*run)(void);
	enum boot boot;
} tests[] = {
	{ "hidden", test_hidden, PRIVATE },
	{ "counts", test_counts, PRIVATE },
	{ "hugetlb", test_hugetlb, PRIVATE },
	{ "pressure", test_pressure, PRIVATE },
	{ "subjects", test_subjects, PRIVATE },
	{ "remote", test_remote, PRIVATE },
	{ "tmpfs_from_outside", test_tmpfs_from_outside, PRIVATE },
	{ "escape", test_escape, PRIVATE },
	{ "attach", test_attach, PRIVATE },
	{ "clone_into_cgroup", test_clone_into_cgroup, PRIVATE },
	{ "bounded", test_bounded, PRIVATE },
	{ "system_oom", test_system_oom, PRIVATE },
	{ "reclaim", test_reclaim, PRIVATE },
	{ "full_tmpfs", test_full_tmpfs, PRIVATE },
	{ "unkillable", test_unkillable, PRIVATE },
	{ "pins", test_pins, PRIVATE },
	{ "park", test_park, PRIVATE },
	{ "batches", test_batches, PRIVATE },
	{ "parked_blocks", test_parked_blocks, PRIVATE },
	{ "resize", test_resize, PRIVATE },
	{ "pinned_by_pipe", test_pinned_by_pipe, PRIVATE },
	{ "holder", test_holder, PRIVATE },
	{ "leaked_tmpfs", test_leaked_tmpfs, PRIVATE },
	{ "remove_parked", test_remove_parked, PRIVATE },
	{ "unbind", test_unbind, PRIVATE },
	{ "fickle_host", test_fickle_host, PRIVATE },
	{ "lists", test_lists, PRIVATE },
	{ "park_time", test_park_time, PRIVATE },
	{ "content", test_content, CONTENT },
	{ "stock", test_stock, STOCK },
};

static void set_up(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 0755);
	mkdir("/mnt", 0755);
	mkdir("/ramfs", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mount("ramfs", "/ramfs", "ramfs", 0, NULL);
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	write_text("+memory +cpuset +pids", "/sys/fs/cgroup/cgroup.subtree_control");
	/* This program comes first in no one's choice. */
	write_text("-1000", "/proc/self/oom_score_adj");
}

static enum boot boot_of(const char *command_line)
{
	if (strstr(command_line, "private_nodes=0"))
		return STOCK;
	if (strstr(command_line, "init_on_free=1") || strstr(command_line, "page_poison=1"))
		return CONTENT;
	return PRIVATE;
}

/* "only=NAME,NAME", "stress=SECONDS" and "cycles=N" of the kernel's command line. */
static bool wanted(const char *name, const char *only)
{
	size_t length = strlen(name);

	while (only && *only && *only != ' ') {
		if (!strncmp(only, name, length) && (only[length] == ',' || only[length] == ' ' || !only[length]))
			return true;
		only += strcspn(only, ", ");
		only += *only == ',';
	}
	return false;
}

int main(int argc, char **argv)
{
	char command_line[4096], *only, *seconds, *cycles;
	enum boot boot;
	size_t i;

	if (argc >= 2 && !strcmp(argv[0], "subject"))
		return subject(argv[1], argc > 2 ? argv[2] : NULL);

	set_up();
	find_partitions();
	snprintf(command_line, sizeof(command_line), "%s", read_text("/proc/cmdline"));
	only = strstr(command_line, "only=");
	seconds = strstr(command_line, "stress=");
	cycles = strstr(command_line, "cycles=");
	boot = boot_of(command_line);

	printf("TAP version 13\n");
	note("%d partitions", nr_partitions);
	if (nr_partitions >= 2 && stat_of(FIRST, "private") == (boot != STOCK)) {
		for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
			if (tests[i].boot != boot)
				continue;
			if (only ? !wanted(tests[i].name, only + strlen("only=")) : seconds || cycles)
				continue;
			tap_begin(tests[i].name);
			tests[i].run();
			tap_end();
		}
		if (cycles) {
			tap_begin("cycles");
			cycle(atoi(cycles + strlen("cycles=")));
			tap_end();
		}
		if (seconds) {
			tap_begin("stress");
			stress(atoi(seconds + strlen("stress=")));
			tap_end();
		}
	} else {
		nr_failed++;
		note("not the partitions that the command line asks for");
	}
	tap_plan();
	printf("# %s\n", nr_failed ? "FAILED" : "PASSED");
	fflush(stdout);
	sync();
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return nr_failed > 0;
}
