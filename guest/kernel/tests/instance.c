// SPDX-License-Identifier: GPL-2.0
/*
 * Instances, as an agent makes them: a partition, and a cgroup attached to it.
 */
#include <stdio.h>
#include <unistd.h>

#include "harness.h"

bool instance_begin(struct partition *partition, const char *cgroup, unsigned long bytes)
{
	if (!plug(partition, bytes))
		return false;
	if (check_is(cgroup_create(cgroup, partition->node), 0))
		return true;
	cgroup_remove(cgroup);
	return false;
}

bool instance_end(struct partition *partition, const char *cgroup, double seconds)
{
	cgroup_kill(cgroup);
	check_is(cgroup_remove(cgroup), 0);
	return check(unplug(partition, seconds));
}

bool budgeted_begin(struct partition *partition, const char *outer, unsigned long bytes, unsigned long budget)
{
	char inner[64], number[32];

	if (!check_is(cgroup_create(outer, -1), 0))
		return false;
	snprintf(number, sizeof(number), "%lu", budget);
	check_is(write_text(number, "/sys/fs/cgroup/%s/memory.max", outer), 0);
	check_is(write_text("+memory", "/sys/fs/cgroup/%s/cgroup.subtree_control", outer), 0);
	snprintf(inner, sizeof(inner), "%s/inner", outer);
	if (!instance_begin(partition, inner, bytes)) {
		cgroup_remove(outer);
		return false;
	}
	snprintf(number, sizeof(number), "%lu", bytes);
	return check_is(write_text(number, "/sys/fs/cgroup/%s/memory.max", inner), 0);
}

bool budgeted_end(struct partition *partition, const char *outer, double seconds)
{
	char inner[64];
	bool ended;

	snprintf(inner, sizeof(inner), "%s/inner", outer);
	ended = instance_end(partition, inner, seconds);
	return check_is(cgroup_remove(outer), 0) && ended;
}

void use_and_leave(struct partition *partition)
{
	char node[8];

	snprintf(node, sizeof(node), "%d", partition->node);
	check_is(run("subject", "huge", node), 0);
	check_is(run("subject", "anon", node), 0);
	check_is(run("subject", "shared", node), 0);
}

bool leave_page(struct partition *partition, unsigned long bytes, int pipes[2])
{
	int saved = dup(0);

	if (!instance_begin(partition, "subject", bytes) || pipe(pipes))
		return false;
	dup2(pipes[1], 0);
	check_is(run("subject", "splicer", "0"), 0);
	dup2(saved, 0);
	close(saved);
	cgroup_kill("subject");
	return check_is(cgroup_remove("subject"), 0);
}

bool take_page(int pipes[2])
{
	char buffer[PAGE];
	bool taken = check_is(read(pipes[0], buffer, PAGE), PAGE) && check_is(buffer[0], 1);

	close(pipes[0]);
	close(pipes[1]);
	return taken;
}

bool remove_blocks(struct partition *partition)
{
	static const char seconds[] = "/sys/module/virtio_mem/parameters/remove_parked_secs";
	bool removed;

	write_text("1", seconds);
	removed = plug(partition, 256 * MIB) && check(unplug(partition, 20)) && check(await_state(partition, "empty", 60));
	write_text("0", seconds);
	return removed;
}
