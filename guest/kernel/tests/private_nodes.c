// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of private memory nodes. Runs as the only program of a virtual machine
 * (as /init) whose host obeys the second serial port: see README.md.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests.h"

/* When a test can be run: by what the kernel's command line says. */
enum boot { PRIVATE, CONTENT, STOCK };

static const struct {
	const char *name;
	void (*run)(void);
	enum boot boot;
} tests[] = {
	{ "hidden", test_hidden, PRIVATE },
	{ "filter_pack", test_filter_pack, PRIVATE },
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
	{ "full_from_outside", test_full_from_outside, PRIVATE },
	{ "unkillable", test_unkillable, PRIVATE },
	{ "pins", test_pins, PRIVATE },
	{ "whole_partition", test_whole_partition, PRIVATE },
	{ "usage", test_usage, PRIVATE },
	{ "balance", test_balance, PRIVATE },
	{ "limit_reclaim", test_limit_reclaim, PRIVATE },
	{ "cache_to_parent", test_cache_to_parent, PRIVATE },
	{ "node_stats", test_node_stats, PRIVATE },
	{ "base_bounded", test_base_bounded, PRIVATE },
	{ "culprit", test_culprit, PRIVATE },
	{ "culprit_in_cgroup", test_culprit_in_cgroup, PRIVATE },
	{ "inode_cost", test_inode_cost, PRIVATE },
	{ "park", test_park, PRIVATE },
	{ "batches", test_batches, PRIVATE },
	{ "parked_blocks", test_parked_blocks, PRIVATE },
	{ "resize", test_resize, PRIVATE },
	{ "resize_time", test_resize_time, PRIVATE },
	{ "live_resize", test_live_resize, PRIVATE },
	{ "beside_first_plug", test_beside_first_plug, PRIVATE },
	{ "pinned_by_pipe", test_pinned_by_pipe, PRIVATE },
	{ "holder", test_holder, PRIVATE },
	{ "leaked_tmpfs", test_leaked_tmpfs, PRIVATE },
	{ "offline_block", test_offline_block, PRIVATE },
	{ "patience", test_patience, PRIVATE },
	{ "lingerers", test_lingerers, PRIVATE },
	{ "leftover_refused", test_leftover_refused, PRIVATE },
	{ "remove_parked", test_remove_parked, PRIVATE },
	{ "unbind", test_unbind, PRIVATE },
	{ "fickle_host", test_fickle_host, PRIVATE },
	{ "aborted", test_aborted, PRIVATE },
	{ "adoption", test_adoption, PRIVATE },
	{ "adoption_refused", test_adoption_refused, PRIVATE },
	{ "adopted_pins", test_adopted_pins, PRIVATE },
	{ "swap", test_swap, PRIVATE },
	{ "merge", test_merge, PRIVATE },
	{ "balancing", test_balancing, PRIVATE },
	{ "kcore", test_kcore, PRIVATE },
	{ "hibernation", test_hibernation, PRIVATE },
	{ "memory_failure", test_memory_failure, PRIVATE },
	{ "damon", test_damon, PRIVATE },
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
	mkdir("/overlay", 0755);
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

bool listed(const char *name, const char *list)
{
	size_t length = strlen(name);

	while (list && *list && *list != ' ') {
		if (!strncmp(list, name, length) && (list[length] == ',' || list[length] == ' ' || !list[length]))
			return true;
		list += strcspn(list, ", ");
		list += *list == ',';
	}
	return false;
}

/* Obeys "only=NAME,NAME", "attack=NAME,NAME", "stress=SECONDS", "cycles=N" and "selftests=MIB" of the kernel's command line. */
int main(int argc, char **argv)
{
	char command_line[4096], *only, *seconds, *cycles, *mib;
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
	mib = strstr(command_line, "selftests=");
	boot = boot_of(command_line);

	printf("TAP version 13\n");
	note("%d partitions", nr_partitions);
	if (nr_partitions >= 2 && stat_of(FIRST, "private") == (boot != STOCK)) {
		for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
			if (tests[i].boot != boot)
				continue;
			if (only ? !listed(tests[i].name, only + strlen("only=")) : seconds || cycles || mib)
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
		if (mib)
			selftests(atol(mib + strlen("selftests=")) * MIB);
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
