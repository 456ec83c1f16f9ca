// SPDX-License-Identifier: GPL-2.0
/*
 * What happens when a partition is not quite empty, and to one that has been
 * parked for long.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "tests.h"

void test_pinned_by_pipe(void)
{
	int pipes[2], blocks;
	long zeroed, requests;

	if (!leave_page(FIRST, 256 * MIB, pipes))
		return;
	blocks = memory_blocks(FIRST->node);
	zeroed = vmstat("contig_alloc_zeroed");
	requests = vmstat("pgmigrate_success");
	check(!unplug(FIRST, 3));
	check(!strcmp(state_of(FIRST), "draining"));
	check_is(allocated(FIRST), 1);
	check_is(stat_of(FIRST, "plugged_bytes"), 2 * MIB);
	check_is(memory_blocks(FIRST->node), blocks);
	check_is(vmstat("contig_alloc_zeroed") - zeroed, 0);
	check_is(vmstat("pgmigrate_success") - requests, 0);

	/* The page is still what it was. */
	check(take_page(pipes));
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
void test_holder(void)
{
	long moved = vmstat("pgmigrate_compaction");
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
	check(vmstat("pgmigrate_compaction") > moved);
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

void test_leaked_tmpfs(void)
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

/* An administrator takes memory blocks offline: what is in there moves, within the partition. */
void test_offline_block(void)
{
	static const char block[] = "/sys/devices/system/node/node%d/memory%d/state";
	char node[8];
	int i, offline = 0;
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	/* Blocks stay online if something of the node is withheld: have no more than is plugged. */
	if (!remove_blocks(FIRST) || !instance_begin(FIRST, "subject", 512 * MIB))
		return;
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	for (i = 0; i < 65536; i++) {
		if (strcmp(read_text(block, FIRST->node, i), "online"))
			continue;
		if (write_text("offline", block, FIRST->node, i))
			continue;
		offline++;
		check(mapped_pages(pid, FIRST->node) >= 2048);
		check(mapped_pages(pid, 0) < 1024);
		check_is(write_text("online_movable", block, FIRST->node, i), 0);
	}
	check(offline > 0);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	instance_end(FIRST, "subject", 5);
	check(!strcmp(state_of(FIRST), "parked"));
}

/* Waits until nothing is left. */
static bool await_parked(struct partition *partition, double seconds)
{
	double end = now() + seconds;

	while (strcmp(state_of(partition), "parked") && strcmp(state_of(partition), "empty") && now() < end)
		pause_ms(1);
	return check(!strcmp(state_of(partition), "parked"));
}

/* A page that stays too long costs the time that it stays, and nothing else. */
void test_patience(void)
{
	static const int holds[] = { 0, 20, 150, 400, 1500, 4000 };
	long parked_plug, next_plug;
	int blocks;
	size_t i;

	if (!plug(FIRST, 2 * GIB) || !check(unplug(FIRST, 5)) || !plug(FIRST, 2 * GIB) || !check(unplug(FIRST, 5)))
		return;
	parked_plug = stat_of(FIRST, "last_plug_ns") / 1000;
	blocks = memory_blocks(FIRST->node);
	check(unplug(FIRST, 5));
	for (i = 0; i < sizeof(holds) / sizeof(holds[0]); i++) {
		int pipes[2];
		double start;

		if (!leave_page(FIRST, 2 * GIB, pipes))
			return;
		request(FIRST, 0);
		pause_ms(holds[i]);
		start = now();
		check(take_page(pipes));
		if (!await_parked(FIRST, 10))
			return;
		check_is(memory_blocks(FIRST->node), blocks);
		note("a page held for %d ms: parked %.0f ms later", holds[i], (now() - start) * 1e3);
		/* The driver looks often at first, and every two seconds in the end. */
		check(now() - start < (holds[i] <= 400 ? 0.3 : 3));
		if (!plug(FIRST, 2 * GIB))
			return;
		next_plug = stat_of(FIRST, "last_plug_ns") / 1000;
		note("next plug: %ld us, of a partition that was parked at once: %ld us", next_plug, parked_plug);
		/* A first plug takes longer than that, even where others take a processor away for a while. */
		check_most(next_plug, 10 * parked_plug + 20000);
		check(unplug(FIRST, 5));
	}
}

/* What is freed after its process ends, by somebody else, is waited for. */
void test_lingerers(void)
{
	static const char *const lingerers[] = {
		"linger_shm", "linger_pipe", "linger_ring", "linger_aio", "linger_network",
	};
	int blocks, round;
	size_t which;

	if (!plug(FIRST, 256 * MIB) || !check(unplug(FIRST, 5)))
		return;
	blocks = memory_blocks(FIRST->node);
	for (which = 0; which < sizeof(lingerers) / sizeof(lingerers[0]); which++) {
		long misses = stat_of(FIRST, "park_misses");
		double longest = 0;

		for (round = 0; round < 50; round++) {
			double start;
			pid_t pid;

			if (!instance_begin(FIRST, "subject", 256 * MIB))
				return;
			pid = spawn("subject", lingerers[which], "0");
			if (!check(await_stop(pid, 20)))
				note("%s: %d", lingerers[which], await_exit(pid, 1));
			cgroup_kill("subject");
			await_exit(pid, 10);
			check_is(cgroup_remove("subject"), 0);
			start = now();
			request(FIRST, 0);
			if (!await_parked(FIRST, 10))
				return;
			if (now() - start > longest)
				longest = now() - start;
			check_is(memory_blocks(FIRST->node), blocks);
		}
		note("%s: parked after at most %.0f ms, %ld misses", lingerers[which], longest * 1e3,
		     stat_of(FIRST, "park_misses") - misses);
	}
}

/* Somebody's memory that is left is not lent to the next one. */
void test_leftover_refused(void)
{
	int pipes[2];
	double end;

	if (!leave_page(FIRST, 256 * MIB, pipes))
		return;
	check(!unplug(FIRST, 1));
	if (!plug(FIRST, 256 * MIB))
		return;
	check_is(allocated(FIRST), 1);
	check_is(cgroup_create("next", FIRST->node), -EBUSY);
	check(take_page(pipes));
	for (end = now() + 5; allocated(FIRST) && now() < end;)
		pause_ms(1);
	cgroup_remove("next");
	check_is(cgroup_create("next", FIRST->node), 0);
	check_is(cgroup_remove("next"), 0);
	check(unplug(FIRST, 5));
}

void test_remove_parked(void)
{
	long unparks;
	double end;

	if (!plug(FIRST, 256 * MIB))
		return;
	write_text("1", "/sys/module/virtio_mem/parameters/remove_parked_secs");
	check(unplug(FIRST, 5));
	check(memory_blocks(FIRST->node) >= 2);
	end = now() + 20;
	/* The last block is gone a little before the driver says so. */
	while (strcmp(state_of(FIRST), "empty") && now() < end)
		pause_ms(50);
	check(!strcmp(state_of(FIRST), "empty"));
	check_is(memory_blocks(FIRST->node), 0);
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
