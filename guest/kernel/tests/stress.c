// SPDX-License-Identifier: GPL-2.0
/*
 * Partitions come and go at random, with instances that use them, memory
 * pressure outside, and somebody who looks at everything. At the end, the books
 * have to balance.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define SIZE	(256 * MIB)

static unsigned int seed = 1;

static int dice(int sides)
{
	return rand_r(&seed) % sides;
}

/* Base memory that is in use, after what can be freed is. In pages. */
static long base_used(void)
{
	write_text("3", "/proc/sys/vm/drop_caches");
	pause_ms(500);
	write_text("3", "/proc/sys/vm/drop_caches");
	return node_pages(0, "MemTotal") - node_pages(0, "MemFree");
}

/* Reads what walks memory, and what counts it. */
static void look_around(void)
{
	char path[64];
	int i;

	for (;;) {
		read_text("/proc/zoneinfo");
		read_text("/proc/buddyinfo");
		read_text("/proc/pagetypeinfo");
		read_text("/proc/meminfo");
		for (i = 1; i <= nr_partitions; i++) {
			read_text("/sys/devices/system/node/node%d/meminfo", i);
			read_text("/sys/devices/system/node/node%d/vmstat", i);
			snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/compact", i);
			if (dice(16) == 0)
				write_text("1", "%s", path);
		}
		if (dice(64) == 0)
			write_text("1", "/proc/sys/vm/compact_memory");
		pause_ms(5);
	}
}

/* One partition's life, over and over: a process of its own. */
static void live(struct partition *partition, double end)
{
	char cgroup[32], node[8];
	long cycles = 0;

	seed = partition->node;
	snprintf(cgroup, sizeof(cgroup), "stress%d", partition->node);
	snprintf(node, sizeof(node), "%d", partition->node);
	while (now() < end) {
		unsigned long bytes = dice(8) ? SIZE : SIZE / 2;
		int workers = 1 + dice(3), i;
		pid_t pids[3];

		if (!plug(partition, bytes) || !check_is(cgroup_create(cgroup, partition->node), 0))
			_exit(1);
		for (i = 0; i < workers; i++)
			pids[i] = spawn(cgroup, dice(12) ? "worker" : dice(2) ? "hog" : "pin_and_die", node);
		pause_ms(dice(300));
		/* Sometimes the host asks for it while it is in use. */
		if (dice(8) == 0) {
			request(partition, 0);
			pause_ms(dice(100));
		}
		cgroup_kill(cgroup);
		for (i = 0; i < workers; i++) {
			int status = await_exit(pids[i], 20);

			/* 1 and 2: it saw something that was wrong. */
			if (!check(status == 0 || status == 128 + SIGKILL)) {
				note("worker: %d", status);
				_exit(1);
			}
		}
		if (!check_is(cgroup_remove(cgroup), 0) || !check(unplug(partition, 20)))
			_exit(1);
		cycles++;
	}
	note("node %d: %ld cycles, %ld parks, %ld misses", partition->node, cycles, stat_of(partition, "parks"),
	     stat_of(partition, "park_misses"));
	_exit(0);
}

void stress(int seconds)
{
	pid_t lives[MAX_PARTITIONS], looker, hog = 0;
	double end = now() + seconds;
	long before, after;
	int i;

	/* Once, so that what stays (memory maps) is there. */
	for (i = 0; i < nr_partitions; i++)
		if (!plug(&partitions[i], SIZE) || !check(unplug(&partitions[i], 20)))
			return;
	before = base_used();
	check_is(cgroup_create("outside", -1), 0);

	looker = fork();
	if (!looker)
		look_around();
	for (i = 0; i < nr_partitions; i++) {
		lives[i] = fork();
		if (!lives[i])
			live(&partitions[i], end);
	}
	/* All of base memory is used up, now and then. */
	while (now() < end) {
		hog = spawn("outside", dice(2) ? "hog" : "hog_kernel", "0");
		if (await_exit(hog, 30) == -1) {
			kill(hog, SIGKILL);
			await_exit(hog, 20);
		}
		pause_ms(dice(2000));
	}
	for (i = 0; i < nr_partitions; i++)
		check_is(await_exit(lives[i], 120), 0);
	kill(looker, SIGKILL);
	await_exit(looker, 10);
	cgroup_remove("outside");

	for (i = 0; i < nr_partitions; i++) {
		struct partition *partition = &partitions[i];

		check_is(allocated(partition), 0);
		check_is(stat_of(partition, "plugged_bytes"), 0);
		if (!plug(partition, SIZE))
			continue;
		check_is(node_pages(partition->node, "MemTotal"), SIZE / PAGE);
		check_is(allocated(partition), 0);
		check(unplug(partition, 20));
	}
	after = base_used();
	note("base memory in use: %ld pages before, %ld after", before, after);
	check_most(after - before, 1024);
}
