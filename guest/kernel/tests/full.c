// SPDX-License-Identifier: GPL-2.0
/*
 * A full node is its user's problem.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests.h"

void test_bounded(void)
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
	check_most(most, has_kasan() ? 8192 : 2048);
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
void test_system_oom(void)
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
void test_reclaim(void)
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
void test_full_tmpfs(void)
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

/* And nobody is killed for what somebody from outside writes. */
void test_full_from_outside(void)
{
	char options[32], buffer[PAGE], node[8];
	long kills = vmstat("oom_kill");
	pid_t pid;
	int fd;

	memset(buffer, 1, sizeof(buffer));
	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 128 * MIB))
		return;
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	snprintf(options, sizeof(options), "size=512m,private_node=%d", FIRST->node);
	check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0);
	fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
	while (write(fd, buffer, PAGE) == PAGE)
		;
	check_is(errno, ENOMEM);
	check_is(run("", "hole", "0"), 128 + SIGBUS);
	check_is(vmstat("oom_kill") - kills, 0);
	check_is(ftruncate(fd, 0), 0);
	close(fd);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	check_is(umount("/mnt"), 0);
	instance_end(FIRST, "subject", 5);
}

/* A process with nothing to lose does not spin. */
void test_unkillable(void)
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
