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

/*
 * Addresses that vmalloc() has handed out and got back stay mapped in KASAN's
 * shadow, an eighth of their size, until 32 MiB or more of them have come
 * together: mostly stacks of tasks that have ended. In pages.
 */
static long shadow_of_freed(void)
{
	long bytes = 0, size;
	char line[512];
	FILE *areas;

	areas = has_kasan() ? fopen("/proc/vmallocinfo", "r") : NULL;
	while (areas && fgets(line, sizeof(line), areas))
		if (strstr(line, "unpurged") && sscanf(line, "%*s %ld", &size) == 1)
			bytes += size;
	if (areas)
		fclose(areas);
	return bytes / 8 / PAGE;
}

/* Base memory that is in use, after what can be freed is. In pages. */
static long base_used(void)
{
	write_text("3", "/proc/sys/vm/drop_caches");
	pause_ms(500);
	write_text("3", "/proc/sys/vm/drop_caches");
	/* Pages on per-CPU lists are free, too, but not in MemFree. */
	return node_pages(0, "MemTotal") - node_pages(0, "MemFree") - list_pages(0, "count", true) - shadow_of_freed();
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
	double slowest = 0;
	long cycles = 0;

	seed = partition->node;
	snprintf(cgroup, sizeof(cgroup), "stress%d", partition->node);
	snprintf(node, sizeof(node), "%d", partition->node);
	while (now() < end) {
		unsigned long bytes = dice(8) ? SIZE : SIZE / 2;
		int workers = 1 + dice(3), i;
		double start = now();
		pid_t pids[3];

		if (!plug(partition, bytes) || !check_is(cgroup_create(cgroup, partition->node), 0))
			_exit(1);
		if (now() - start > slowest)
			slowest = now() - start;
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
				note("worker: %d, in state %.200s", status, read_text("/proc/%d/stat", pids[i]));
				note("events: %s", read_text("/sys/fs/cgroup/%s/cgroup.events", cgroup));
				_exit(1);
			}
		}
		if (!check_is(cgroup_remove(cgroup), 0) || !check(unplug(partition, 120)))
			_exit(1);
		cycles++;
	}
	note("node %d: %ld cycles, %ld parks, %ld misses, slowest plug %.1f s", partition->node, cycles,
	     stat_of(partition, "parks"), stat_of(partition, "park_misses"), slowest);
	_exit(0);
}

/* For some time, everything at once. */
static void run_all(int seconds)
{
	pid_t lives[MAX_PARTITIONS], looker, hog;
	double end = now() + seconds;
	int i;

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
		check_is(await_exit(lives[i], 400), 0);
	kill(looker, SIGKILL);
	await_exit(looker, 10);
	cgroup_remove("outside");
}

/* Slab caches give back what nobody uses, and KASAN what it keeps of them. */
static void shrink_caches(void)
{
	struct dirent *entry;
	DIR *caches = opendir("/sys/kernel/slab");

	while (caches && (entry = readdir(caches)))
		if (entry->d_name[0] != '.')
			write_text("1", "/sys/kernel/slab/%s/shrink", entry->d_name);
	if (caches)
		closedir(caches);
}

/* Each partition is as if nothing had happened. */
static void balance(void)
{
	int i;

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
	shrink_caches();
}

/* What could grow without an end, in KiB. */
struct usage {
	long used;
	long slab;
	long vmalloc;
	long percpu;
	long page_tables;
};

static struct usage usage(void)
{
	struct usage usage;

	usage.used = base_used() * (PAGE / 1024);
	usage.slab = keyed("/proc/meminfo", "Slab:");
	usage.vmalloc = keyed("/proc/meminfo", "VmallocUsed:");
	usage.percpu = keyed("/proc/meminfo", "Percpu:");
	usage.page_tables = keyed("/proc/meminfo", "PageTables:");
	note("base memory in use: %ld KiB; MemFree %ld, Slab %ld, VmallocUsed %ld, Percpu %ld, PageTables %ld", usage.used,
	     node_pages(0, "MemFree") * (PAGE / 1024), usage.slab, usage.vmalloc, usage.percpu, usage.page_tables);
	return usage;
}

static bool cycle_once(struct partition *partition, int number)
{
	bool ok;

	if (!plug(partition, SIZE) || !check_is(cgroup_create("cycle", partition->node), 0))
		return false;
	/* Mostly just a life; now and then one of more kinds of memory. */
	ok = check_is(run("cycle", number % 10 ? "wanderer" : "shared", read_text("%s/node", partition->sysfs)), 0);
	cgroup_kill("cycle");
	return check_is(cgroup_remove("cycle"), 0) && check(unplug(partition, 10)) && ok;
}

/* The same cycle @count times: plug, use, park. Nothing is left of it. */
void cycle(int count)
{
	struct partition *partition = &partitions[0];
	long parks, misses;
	struct usage before, after;
	int i, warm = count / 10;

	/* The first part is for what grows once. */
	for (i = 0; i < warm; i++)
		if (!cycle_once(partition, i))
			return;
	balance();
	before = usage();
	parks = stat_of(partition, "parks");
	misses = stat_of(partition, "park_misses");
	for (i = 0; i < count; i++) {
		if (!cycle_once(partition, i))
			return;
		if (i % 100 == 99)
			note("%d cycles", i + 1);
	}
	check_is(stat_of(partition, "parks") - parks, count);
	note("%ld misses", stat_of(partition, "park_misses") - misses);
	balance();
	after = usage();
	/* Less than a page for each four cycles, and what the day brings. */
	check_most(after.used - before.used, count + 1024);
	check_most(after.slab - before.slab, count / 2 + 512);
	check_most(after.vmalloc - before.vmalloc, 256);
	check_most(after.percpu - before.percpu, 256);
	check_most(after.page_tables - before.page_tables, 256);
}

void stress(int seconds)
{
	long before, after;

	/* The first part is for what grows once: caches, per-CPU memory, memory maps. */
	run_all(seconds / 3);
	balance();
	before = base_used();
	run_all(seconds - seconds / 3);
	balance();
	after = base_used();
	note("base memory in use: %ld pages before, %ld after", before, after);
	check_most(after - before, 1024);
}
