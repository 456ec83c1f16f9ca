// SPDX-License-Identifier: GPL-2.0
/*
 * A partition that nobody uses any more is parked, whatever its size.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests.h"

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

void test_park(void)
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
void test_batches(void)
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
void test_parked_blocks(void)
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
void test_resize(void)
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
void test_lists(void)
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

void test_park_time(void)
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
