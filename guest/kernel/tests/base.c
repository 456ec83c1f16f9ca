// SPDX-License-Identifier: GPL-2.0
/*
 * Base memory is for all. Who uses too much of it is who ends for it, whatever
 * the means.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests.h"

#define BUDGET	(48 * MIB)

static long base_used(long free_before)
{
	return free_before - node_pages(0, "MemFree");
}

/* A tmpfs on /mnt whose pages are @partition's, without a limit for inodes, and an overlay of it on /overlay. */
static bool mount_private(struct partition *partition)
{
	char options[64];

	snprintf(options, sizeof(options), "mode=0755,nr_inodes=0,size=1g,private_node=%d", partition->node);
	if (!check_is(mount("attacked", "/mnt", "tmpfs", 0, options), 0))
		return false;
	mkdir("/mnt/upper", 0755);
	mkdir("/mnt/work", 0755);
	mkdir("/ramfs/lower", 0755);
	return check_is(mount("overlay", "/overlay", "overlay", 0,
			      "lowerdir=/ramfs/lower,upperdir=/mnt/upper,workdir=/mnt/work,volatile"), 0);
}

static void unmount_private(void)
{
	check_is(umount("/overlay"), 0);
	check_is(umount("/mnt"), 0);
}

/* Whatever it has made there. */
static void remove_cgroups_below(const char *cgroup)
{
	char path[512];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", cgroup);
	directory = opendir(path);
	while (directory && (entry = readdir(directory))) {
		snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/%s", cgroup, entry->d_name);
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			rmdir(path);
	}
	if (directory)
		closedir(directory);
}

/* Until it ends or has all that it can have. Returns as await_exit(), or 0 if it has stopped. */
static int await_end(pid_t pid, long free_before, long *most)
{
	double end = now() + 240;
	int status;

	*most = 0;
	do {
		long used = base_used(free_before);

		if (used > *most)
			*most = used;
		status = await_exit(pid, 0.02);
		if (status == -1 && strchr(read_text("/proc/%d/stat", pid), 'T'))
			return 0;
	} while (status == -1 && now() < end);
	return status;
}

enum ends { KILLED, SATED, EITHER };

static const struct {
	const char *name;
	enum ends ends;
} attacks[] = {
	{ "files", KILLED }, { "overlay_files", KILLED }, { "symlinks", KILLED }, { "long_links", SATED },
	{ "page_tables", KILLED }, { "pipes", KILLED }, { "unix_sockets", KILLED }, { "netlink_sockets", KILLED },
	{ "packet_rings", EITHER }, { "tcp_sockets", EITHER }, { "udp_sockets", EITHER }, { "raw_sockets", EITHER },
	{ "packet_sockets", EITHER }, { "ping_sockets", EITHER }, { "error_queues", EITHER },
	{ "corked_sockets", KILLED }, { "inotify", EITHER }, { "epoll", EITHER }, { "page_cache", SATED },
	{ "ramfs_pages", KILLED }, { "cgroups", EITHER }, { "tasks", KILLED }, { "messages", KILLED },
	{ "mappings", KILLED }, { "file_locks", KILLED }, { "terminals", EITHER }, { "polls", KILLED },
	{ "directories", KILLED }, { "filters", KILLED }, { "options", KILLED }, { "fanouts", KILLED },
	{ "signals", KILLED },
};

/* Whether objects of slab have red zones, and so take more than what they hold. */
static bool debugs_slab(void)
{
	return !access("/sys/kernel/slab/filp/red_zone", R_OK) && read_number("/sys/kernel/slab/filp/red_zone") == 1;
}

/* One program uses base memory by all means, or by "attack=NAME,NAME" of the command line; its neighbour does not notice. */
void test_base_bounded(void)
{
	char node[8], command_line[4096], *only;
	pid_t neighbour;
	size_t i;

	snprintf(command_line, sizeof(command_line), "%s", read_text("/proc/cmdline"));
	only = strstr(command_line, "attack=");
	snprintf(node, sizeof(node), "%d", SECOND->node);
	if (!budgeted_begin(SECOND, "neighbour", 256 * MIB, BUDGET))
		return;
	neighbour = spawn("neighbour/inner", "holder", node);
	check(await_stop(neighbour, 20));

	for (i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
		long before, most, charged;
		int status;
		pid_t pid;

		if (only && !listed(attacks[i].name, only + strlen("attack=")))
			continue;
		if (!budgeted_begin(FIRST, "evil", 256 * MIB, BUDGET))
			return;
		if (!mount_private(FIRST))
			return;
		before = node_pages(0, "MemFree");
		pid = spawn("evil/inner", attacks[i].name, "0");
		status = await_end(pid, before, &most);
		charged = read_number("/sys/fs/cgroup/evil/memory.peak") / (long)PAGE;
		note("%s: %d; base memory used %ld MiB, charged %ld MiB", attacks[i].name, status, most / 256, charged / 256);
		if (attacks[i].ends == KILLED)
			check_is(status, 128 + SIGKILL);
		else if (attacks[i].ends == SATED)
			check_is(status, 0);
		else
			check(status == 0 || status == 128 + SIGKILL);
		if (status == 128 + SIGKILL)
			check(keyed("/sys/fs/cgroup/evil/memory.events", "oom_kill") >= 1);
		/* What arrives for a socket is charged when it is there. */
		check_most(charged, (BUDGET + 2 * MIB) / PAGE);
		/*
		 * The kernel's own bookkeeping, and what slab loses between objects, is not charged to anybody. Nor is what a kernel
		 * for debugging keeps beside each object, and of objects that were freed.
		 */
		check_most(most, BUDGET / PAGE * (debugs_slab() ? 8 : 3) / 2);
		check_is(keyed("/sys/fs/cgroup/neighbour/memory.events", "oom_kill"), 0);
		check_is(kill(neighbour, 0), 0);
		check_is(run("", "anon", "0"), 0);

		cgroup_kill("evil");
		if (status == 0)
			await_exit(pid, 10);
		unmount_private();
		remove_cgroups_below("evil/inner");
		budgeted_end(FIRST, "evil", 10);
	}

	resume(neighbour);
	check_is(await_exit(neighbour, 10), 0);
	budgeted_end(SECOND, "neighbour", 5);
}

/*
 * All memory that @parent may have is used up by somebody in there: the one that ends is the one that has used most of it,
 * though nearly all of that is the kernel's, and no process has mapped it.
 */
static void culprit_in(const char *parent, bool system_wide)
{
	char evil[32], quiet[32], path[96];
	pid_t maker, holder, hog = 0;
	int status;

	snprintf(evil, sizeof(evil), "%sevil", parent);
	snprintf(quiet, sizeof(quiet), "%squiet", parent);
	if (!instance_begin(FIRST, evil, 256 * MIB) || !instance_begin(SECOND, quiet, 256 * MIB))
		return;
	/* This one has more that is its own, in the node and in page tables. */
	holder = spawn(quiet, "mapper", "0");
	check(await_stop(holder, 60));
	maker = spawn(evil, system_wide ? "some_pipes" : "pipes", "0");
	if (system_wide) {
		check(await_stop(maker, 120));
		/* Takes the rest, and cannot be killed for it. */
		check_is(cgroup_create("outside", -1), 0);
		hog = spawn("outside", "hog", "0");
		write_text("-1000", "/proc/%d/oom_score_adj", hog);
	}
	status = await_exit(maker, 240);
	if (hog) {
		kill(hog, SIGKILL);
		check_is(await_exit(hog, 30), 128 + SIGKILL);
		check_is(cgroup_remove("outside"), 0);
	}
	check_is(status, 128 + SIGKILL);
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/memory.events", evil);
	check(keyed(path, "oom_kill") >= 1);
	snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/memory.events", quiet);
	check_is(keyed(path, "oom_kill"), 0);
	resume(holder);
	check_is(await_exit(holder, 10), 0);
	instance_end(FIRST, evil, 10);
	instance_end(SECOND, quiet, 10);
}

void test_culprit(void)
{
	check_is(cgroup_create("all", -1), 0);
	check_is(write_text("0", "/sys/fs/cgroup/all/memory.oom.group"), 0);
	check_is(write_text("100663296", "/sys/fs/cgroup/all/memory.max"), 0);
	check_is(write_text("+memory", "/sys/fs/cgroup/all/cgroup.subtree_control"), 0);
	culprit_in("all/", false);
	check_is(cgroup_remove("all"), 0);
	culprit_in("", true);
}

/* Among the processes of an instance, it is the one with most of it that ends; not one with much private memory. */
void test_culprit_in_cgroup(void)
{
	pid_t holder, evil, young;

	if (!budgeted_begin(FIRST, "subject", 256 * MIB, BUDGET))
		return;
	check_is(write_text("0", "/sys/fs/cgroup/subject/memory.oom.group"), 0);
	check_is(write_text("0", "/sys/fs/cgroup/subject/inner/memory.oom.group"), 0);
	holder = spawn("subject/inner", "holder", "0");
	check(await_stop(holder, 20));
	evil = spawn("subject/inner", "page_tables", "0");
	young = spawn("subject/inner", "holder", "0");
	check(await_stop(young, 20));
	check_is(await_exit(evil, 120), 128 + SIGKILL);
	check_is(keyed("/sys/fs/cgroup/subject/inner/memory.events", "oom_kill"), 1);
	resume(holder);
	check_is(await_exit(holder, 10), 0);
	resume(young);
	check_is(await_exit(young, 10), 0);
	budgeted_end(FIRST, "subject", 5);
}

/* What an empty file costs, in bytes of base memory. */
static long file_cost(const char *directory)
{
	const long count = 40000;
	char path[64];
	long before = node_pages(0, "MemFree"), i;

	for (i = 0; i < count; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/%ld", directory, i);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (!check(fd >= 0))
			return 0;
		close(fd);
	}
	return (before - node_pages(0, "MemFree")) * (long)PAGE / count;
}

/* Agents allow as many files as this says. */
void test_inode_cost(void)
{
	long direct, overlay;

	if (!plug(FIRST, 256 * MIB) || !mount_private(FIRST))
		return;
	direct = file_cost("/mnt");
	overlay = file_cost("/overlay");
	note("an empty file costs %ld bytes of base memory on a tmpfs, %ld through overlayfs", direct, overlay);
	if (!has_kasan()) {
		check_most(direct, 1280);
		check_most(overlay, 2304);
	}
	unmount_private();
	check(unplug(FIRST, 5));
}
