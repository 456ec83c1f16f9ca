// SPDX-License-Identifier: GPL-2.0
/*
 * The driver: where it cannot park, where nothing is private, and hosts and
 * administrators that change their mind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests.h"

/* With init_on_free=1 or page_poison=1, everything goes the stock way. */
void test_content(void)
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
void test_stock(void)
{
	long zeroed = vmstat("contig_alloc_zeroed"), init_on_alloc;
	double end = now() + 20;
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	check(!*read_text("/sys/devices/system/node/has_private_memory"));
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
void test_unbind(void)
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
void test_fickle_host(void)
{
	static const unsigned long sizes[] = {
		512 * MIB, 0, 256 * MIB, 512 * MIB, 0, 768 * MIB, 130 * MIB, 0, 2 * MIB, 1022 * MIB,
	};
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

/* An unplug that the host has taken back is none that was completed. */
void test_aborted(void)
{
	long last;
	char node[8];
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!plug(FIRST, 256 * MIB) || !check(unplug(FIRST, 5)) || !instance_begin(FIRST, "subject", 256 * MIB))
		return;
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	last = stat_of(FIRST, "last_unplug_ns");
	request(FIRST, 0);
	check(await_state(FIRST, "draining", 5));
	request(FIRST, 256 * MIB);
	check(await_state(FIRST, "online", 5));
	check_is(stat_of(FIRST, "plugged_bytes"), 256 * MIB);
	check_is(node_pages(FIRST->node, "MemTotal"), 256 * MIB / PAGE);
	check_is(stat_of(FIRST, "last_unplug_ns"), last);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	instance_end(FIRST, "subject", 5);
}
