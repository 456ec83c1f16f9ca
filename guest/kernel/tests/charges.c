// SPDX-License-Identifier: GPL-2.0
/*
 * What a cgroup's limit is for, and what its files count. Memory of a private
 * node is in the one and not in the other, and leaves no trace when it goes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests.h"

#define CGROUP	"/sys/fs/cgroup/"

static long current(const char *cgroup)
{
	return read_number(CGROUP "%s/memory.current", cgroup);
}

/* Within 5 %. */
static bool about(long actual, long wanted)
{
	if (labs(actual - wanted) <= wanted / 20)
		return true;
	note("%ld is not about %ld", actual, wanted);
	return false;
}

/* A node that is four times the limit is for its instance to use, down to what its zone keeps in reserve. */
void test_whole_partition(void)
{
	long most = 0, pages;
	int status;
	pid_t pid;

	if (!budgeted_begin(FIRST, "subject", 256 * MIB, 64 * MIB))
		return;
	pid = spawn("subject/inner", "hog", "0");
	while ((status = await_exit(pid, 0.005)) == -1) {
		pages = allocated(FIRST);
		if (pages > most)
			most = pages;
	}
	check_is(status, 128 + SIGKILL);
	check(most >= 245 * (long)MIB / (long)PAGE);
	/* It was the node that was full, and not the limit that was reached. */
	check_is(keyed(CGROUP "subject/memory.events", "max"), 0);
	check_is(keyed(CGROUP "subject/memory.events", "oom"), 0);
	check(keyed(CGROUP "subject/inner/memory.events", "oom_kill") >= 1);
	budgeted_end(FIRST, "subject", 5);
}

/* Of a line "KEY N0=BYTES N1=BYTES" of memory.numa_stat. */
static long numa_stat(const char *cgroup, const char *key, int node)
{
	const char *text = read_text(CGROUP "%s/memory.numa_stat", cgroup);
	char start[64], column[16];
	const char *end;

	snprintf(start, sizeof(start), "%s N", key);
	snprintf(column, sizeof(column), " N%d=", node);
	while (text && strncmp(text, start, strlen(start))) {
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	if (!text)
		return -1;
	end = strchr(text, '\n');
	text = strstr(text, column);
	return text && (!end || text < end) ? atol(text + strlen(column)) : -1;
}

/* The instance sees what it uses; the cgroup around it, what that costs others. */
void test_usage(void)
{
	const long bytes = 96 * MIB;
	char options[64], number[32];
	long peak;
	pid_t pid;
	int fd;

	if (!budgeted_begin(FIRST, "subject", 256 * MIB, 64 * MIB))
		return;
	check_is(read_number(CGROUP "subject/inner/memory.max"), 256 * MIB);
	check_is(write_text("+memory", CGROUP "subject/inner/cgroup.subtree_control"), 0);
	check_is(cgroup_create("subject/inner/leaf", -1), 0);
	fd = open(CGROUP "subject/inner/memory.peak", O_RDWR);
	check(fd >= 0);

	pid = spawn("subject/inner/leaf", "usage", "0");
	if (check(await_stop(pid, 60))) {
		check(about(current("subject/inner/leaf"), bytes));
		check(about(current("subject/inner"), bytes));
		check_most(current("subject"), 8 * MIB);
		check(about(keyed(CGROUP "subject/inner/memory.stat", "anon"), bytes * 2 / 3));
		check(about(keyed(CGROUP "subject/inner/memory.stat", "shmem"), bytes / 3));
		check(about(numa_stat("subject/inner", "anon", FIRST->node), bytes * 2 / 3));
		check(about(numa_stat("subject/inner/leaf", "shmem", FIRST->node), bytes / 3));
		check_is(numa_stat("subject/inner", "anon", 0), 0);
		check_is(numa_stat("subject", "anon", FIRST->node), -1);
		check_is(keyed(CGROUP "subject/inner/memory.events", "max"), 0);

		/* Half of it goes. The peak stays, and can be measured anew. */
		resume(pid);
		check(await_stop(pid, 60));
		check(about(current("subject/inner"), bytes / 2));
		check(about(read_number(CGROUP "subject/inner/memory.peak"), bytes));
		check_most(read_number(CGROUP "subject/memory.peak"), 12 * MIB);
		check_is(write(fd, "reset", 5), 5);
		resume(pid);
		check(await_stop(pid, 60));
		check_is(pread(fd, number, sizeof(number) - 1, 0) > 0, true);
		peak = atol(number);
		check(about(peak, bytes / 2 + 16 * MIB));
		check(about(read_number(CGROUP "subject/inner/memory.peak"), bytes));
		resume(pid);
		check_is(await_exit(pid, 10), 0);
	}
	close(fd);

	/* Who writes from outside has it on its own bill, but not against its limit. */
	snprintf(options, sizeof(options), "size=64m,private_node=%d", FIRST->node);
	check_is(cgroup_create("outside", -1), 0);
	check_is(write_text("8388608", CGROUP "outside/memory.max"), 0);
	if (check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0)) {
		check_is(run("outside", "writer", "0"), 0);
		check(current("outside") >= 32 * (long)MIB);
		check_is(umount("/mnt"), 0);
		check_most(current("outside"), MIB);
	}
	check_is(cgroup_remove("outside"), 0);
	check_is(cgroup_remove("subject/inner/leaf"), 0);
	budgeted_end(FIRST, "subject", 5);
}

/* Pages move, are split, collapsed and shared, cgroups go before their pages do: at the end, the books balance. */
void test_balance(void)
{
	char options[64], node[8];
	int round;
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	snprintf(options, sizeof(options), "size=64m,private_node=%d", FIRST->node);
	if (!budgeted_begin(FIRST, "subject", 256 * MIB, 64 * MIB))
		return;
	check_is(write_text("+memory", CGROUP "subject/inner/cgroup.subtree_control"), 0);
	for (round = 0; round < 3; round++) {
		check_is(cgroup_create("subject/inner/leaf", -1), 0);
		check_is(run("subject/inner/leaf", "huge", node), 0);
		check_is(run("subject/inner/leaf", "collapse", node), 0);
		check_is(run("subject/inner/leaf", "splitter", node), 0);
		check_is(run("subject/inner/leaf", "shared", node), 0);
		check_is(run("subject/inner/leaf", "children", node), 0);

		/* Moved within the node, which the host wants to have back. */
		pid = spawn("subject/inner/leaf", "mixed_holder", node);
		if (check(await_stop(pid, 60))) {
			long moved = migrated();
			double end = now() + 30;

			request(FIRST, 0);
			while (migrated() == moved && now() < end)
				pause_ms(10);
			check(migrated() > moved);
			check(plug(FIRST, 256 * MIB));
			resume(pid);
			check_is(await_exit(pid, 10), 0);
		}

		/* The cgroup goes, and then what it has written. */
		check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0);
		check_is(run("subject/inner/leaf", "writer", "0"), 0);
		check_is(cgroup_remove("subject/inner/leaf"), 0);
		check(current("subject/inner") >= 32 * (long)MIB);
		check_most(current("subject"), 8 * MIB);
		check_is(umount("/mnt"), 0);
	}
	check_is(allocated(FIRST), 0);
	check_most(current("subject/inner"), current("subject"));
	check_is(write_text("-memory", CGROUP "subject/inner/cgroup.subtree_control"), 0);

	/* Detached with pages, and attached again without. */
	check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0);
	check_is(run("subject/inner", "writer", "0"), 0);
	check_is(write_text("none", CGROUP "subject/inner/memory.private_node"), 0);
	check_is(run("subject/inner", "hole", "0"), 0);
	check_is(write_text(node, CGROUP "subject/inner/memory.private_node"), -EBUSY);
	check_is(umount("/mnt"), 0);
	check_is(allocated(FIRST), 0);
	check_is(write_text(node, CGROUP "subject/inner/memory.private_node"), 0);
	check_most(current("subject/inner"), current("subject"));
	budgeted_end(FIRST, "subject", 5);
}

/* Who reaches the limit for base memory is not helped by private memory that nobody needs: it stays. */
void test_limit_reclaim(void)
{
	pid_t lazy, reader;

	if (!budgeted_begin(FIRST, "subject", 256 * MIB, 32 * MIB))
		return;
	lazy = spawn("subject/inner", "lazy", "0");
	if (check(await_stop(lazy, 20))) {
		reader = spawn("subject/inner", "page_cache", "0");
		check(await_stop(reader, 120));
		check(keyed(CGROUP "subject/memory.events", "max") > 0);
		check_is(keyed(CGROUP "subject/inner/memory.stat", "pglazyfreed"), 0);
		kill(reader, SIGKILL);
		await_exit(reader, 10);
		resume(lazy);
		check_is(await_exit(lazy, 10), 0);
	}
	budgeted_end(FIRST, "subject", 5);
}

/* Page cache outlives the instances that have read it, and keeps none of their cgroups. */
void test_cache_to_parent(void)
{
	enum { ROUNDS = 500 };
	char number[16];
	double end;
	int round, disk;

	if (!plug(FIRST, 128 * MIB))
		return;
	/* Its page cache stays as long as somebody has it open. */
	disk = open("/dev/vda", O_RDONLY);
	check_is(cgroup_create("instances", -1), 0);
	check_is(write_text("+memory", CGROUP "instances/cgroup.subtree_control"), 0);
	for (round = 0; round < ROUNDS; round++) {
		check_is(cgroup_create("instances/one", -1), 0);
		check_is(write_text("1", CGROUP "instances/one/memory.cache_to_parent"), 0);
		check_is(write_text("+memory", CGROUP "instances/one/cgroup.subtree_control"), 0);
		check_is(cgroup_create("instances/one/inner", FIRST->node), 0);
		snprintf(number, sizeof(number), "%d", round);
		check_is(run("instances/one/inner", "reader", number), 0);
		check_most(keyed(CGROUP "instances/one/memory.stat", "file"), 0);
		check_is(cgroup_remove("instances/one/inner"), 0);
		check_is(cgroup_remove("instances/one"), 0);
	}
	check(keyed(CGROUP "instances/memory.stat", "file") >= ROUNDS * 16 * (long)PAGE);
	for (end = now() + 20; keyed("/sys/fs/cgroup/cgroup.stat", "nr_dying_descendants") > 2 && now() < end;)
		pause_ms(100);
	check_most(keyed("/sys/fs/cgroup/cgroup.stat", "nr_dying_descendants"), 2);
	check(unplug(FIRST, 5));
	close(disk);
	check_is(cgroup_remove("instances"), 0);
}

/* Bytes that a further cgroup in @parent costs for each CPU, all CPUs together. */
static long cgroup_cost(const char *parent)
{
	const int count = 20;
	char stat[128], child[128];
	long before;
	int i;

	check_is(write_text("+memory", CGROUP "%s/cgroup.subtree_control", parent), 0);
	snprintf(stat, sizeof(stat), CGROUP "%s/memory.stat", parent);
	before = keyed(stat, "percpu");
	for (i = 0; i < count; i++) {
		snprintf(child, sizeof(child), "%s/%d", parent, i);
		check_is(cgroup_create(child, -1), 0);
	}
	before = keyed(stat, "percpu") - before;
	for (i = 0; i < count; i++) {
		snprintf(child, sizeof(child), "%s/%d", parent, i);
		check_is(cgroup_remove(child), 0);
	}
	return before / count;
}

/* A cgroup has statistics of the node that it is attached to, and of no other one. */
void test_node_stats(void)
{
	long attached, other;

	check_is(cgroup_create("other", -1), 0);
	other = cgroup_cost("other");
	cgroup_remove("other");
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	attached = cgroup_cost("subject");
	instance_end(FIRST, "subject", 5);
	note("%ld bytes, attached %ld", other, attached);
	check(other > 0);
	check(attached > other);
}
