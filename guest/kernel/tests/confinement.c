// SPDX-License-Identifier: GPL-2.0
/*
 * Memory of a private node is for those that are attached to it, and they have
 * no other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests.h"

static bool kernel_thread_exists(const char *name)
{
	int pid;

	for (pid = 2; pid < 1000; pid++)
		if (!strcmp(read_text("/proc/%d/comm", pid), name))
			return true;
	return false;
}

void test_hidden(void)
{
	unsigned long mask = 1UL << FIRST->node;
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int to = FIRST->node, status = 0;
	char node[8], thread[16];

	*(char *)page = 1;
	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!plug(FIRST, 256 * MIB))
		return;
	check(strstr(read_text("/sys/devices/system/node/has_private_memory"), node));
	check(!strcmp(read_text("/sys/devices/system/node/has_memory"), "0"));
	check(!strcmp(read_text("/sys/fs/cgroup/cpuset.mems.effective"), "0"));

	check_is(cgroup_create("hidden", -1), 0);
	write_text(node, "/sys/fs/cgroup/hidden/cpuset.mems");
	check(!strcmp(read_text("/sys/fs/cgroup/hidden/cpuset.mems.effective"), "0"));
	cgroup_remove("hidden");

	check(syscall(SYS_set_mempolicy, MPOL_BIND, &mask, 64) == -1 && errno == EINVAL);
	check(syscall(SYS_set_mempolicy, MPOL_PREFERRED, &mask, 64) == -1 && errno == EINVAL);
	check(syscall(SYS_mbind, page, PAGE, MPOL_BIND, &mask, 64, 0) == -1 && errno == EINVAL);
	syscall(SYS_move_pages, 0, 1UL, &page, &to, &status, MPOL_MF_MOVE);
	check_is(node_of(page), 0);
	syscall(SYS_migrate_pages, 0, 64, &(unsigned long){1}, &mask);
	check_is(node_of(page), 0);
	check_is(allocated(FIRST), 0);

	/* Nobody has to keep the node in order. */
	check(kernel_thread_exists("kswapd0"));
	snprintf(thread, sizeof(thread), "kswapd%d", FIRST->node);
	check(!kernel_thread_exists(thread));
	snprintf(thread, sizeof(thread), "kcompactd%d", FIRST->node);
	check(!kernel_thread_exists(thread));
	check(unplug(FIRST, 5));
}

/* What is said to be available in base memory, beyond what is free there. In KiB. */
static long available_and_not_free(void)
{
	return keyed("/proc/meminfo", "MemAvailable:") - node_pages(0, "MemFree") * 4;
}

/* Memory that not everybody can have is not said to be available, or reserved. */
void test_counts(void)
{
	long available = available_and_not_free(), dirty = vmstat("nr_dirty_background_threshold");
	long left = node_pages(0, "MemFree");
	struct statvfs size;

	if (!plug(FIRST, 2 * GIB))
		return;
	check_most(labs(available_and_not_free() - available), 2 * 1024);
	/* What the kernel keeps about memory is base memory, and a lot of that where KASAN is on. */
	dirty = dirty * node_pages(0, "MemFree") / left;
	check_most(labs(vmstat("nr_dirty_background_threshold") - dirty), dirty / 4);
	/* By default a tmpfs has half of what everybody can have, of pages and of inodes. */
	check_is(mount("counts", "/mnt", "tmpfs", 0, NULL), 0);
	check_is(statvfs("/mnt", &size), 0);
	check_most(size.f_blocks, node_pages(0, "MemTotal") / 2);
	check_most(size.f_files, node_pages(0, "MemTotal") / 2);
	check_is(umount("/mnt"), 0);
	check(unplug(FIRST, 5));
}

/* Installs a filter that allows everything; returns by how many KiB the memory of vmalloc() has grown. */
static long vmalloc_for_filter(void)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = 1, .filter = &allow };
	long before = keyed("/proc/meminfo", "VmallocUsed:");

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return LONG_MAX;
	return keyed("/proc/meminfo", "VmallocUsed:") - before;
}

/* What compiled programs lie in is not larger for all the nodes that instances may have. */
void test_filter_pack(void)
{
	pid_t child = fork();
	int status = -1;

	if (!child)
		_exit(vmalloc_for_filter() > 3 * 1024);
	check_is(waitpid(child, &status, 0), child);
	check_is(status, 0);
}

#define HUGETLB		"/proc/sys/vm/nr_hugepages"

/* Pools of huge pages take all the memory that they can find. Where there is none for sale, there is none for an instance. */
void test_hugetlb(void)
{
	static const char pool[] = "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/nr_hugepages";
	char number[16];
	long have, wanted;

	if (access(HUGETLB, F_OK)) {
		note("this kernel has no huge pages of that kind");
		return;
	}
	if (!instance_begin(FIRST, "subject", 512 * MIB))
		return;
	/* Nearly all there is: what runs here needs some, too. */
	wanted = (long)(node_pages(0, "MemFree") * PAGE / (2 * MIB)) - 128;
	snprintf(number, sizeof(number), "%ld", wanted);
	check_is(write_text(number, HUGETLB), 0);
	have = read_number(HUGETLB);
	note("%ld huge pages of %ld", have, wanted);
	check(have > 0 && have <= wanted);
	check_is(read_number(pool, 0), have);
	check_is(allocated(FIRST), 0);
	check_is(write_text("0", HUGETLB), 0);

	write_text("16", pool, FIRST->node);
	check_is(read_number(HUGETLB), 0);
	check_is(allocated(FIRST), 0);

	/* On demand, from a task that is attached. */
	check_is(write_text("16", "/proc/sys/vm/nr_overcommit_hugepages"), 0);
	check_is(run("subject", "hugetlb", "0"), 0);
	write_text("0", "/proc/sys/vm/nr_overcommit_hugepages");
	instance_end(FIRST, "subject", 5);
}

/* Others take all the memory that there is, and are killed for it. */
void test_pressure(void)
{
	static const char * const hogs[] = { "hog", "hog_kernel" };
	long most = 0;
	size_t i;

	if (!plug(FIRST, 512 * MIB) || !check_is(cgroup_create("outside", -1), 0))
		return;
	for (i = 0; i < 2; i++) {
		pid_t pid = spawn("outside", hogs[i], "0");
		int status;

		while ((status = await_exit(pid, 0.05)) == -1) {
			long pages = allocated(FIRST);

			if (pages > most)
				most = pages;
		}
		check_is(status, 128 + SIGKILL);
		write_text("3", "/proc/sys/vm/drop_caches");
		write_text("1", "/proc/sys/vm/compact_memory");
	}
	check_is(most, 0);
	check_is(allocated(FIRST), 0);
	cgroup_remove("outside");
	check(unplug(FIRST, 5));
}

void test_subjects(void)
{
	static const char * const names[] = {
		"anon", "huge", "collapse", "cow", "children", "shared", "kernel_memory",
	};
	char node[8];
	size_t i;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		int status = run("subject", names[i], node);

		if (status)
			note("%s: %d", names[i], status);
		check_is(status, 0);
	}
	instance_end(FIRST, "subject", 5);
	/* And the same program elsewhere has nothing of it. */
	check_is(run("", "anon", "0"), 0);
	check_is(run("", "shared", "0"), 0);
}

/* Memory that somebody else touches first: it is still the instance's. */
void test_remote(void)
{
	char one = 1, *address;
	char node[8], path[64];
	pid_t pid;
	int fd;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	pid = spawn("subject", "target", node);
	if (check(await_stop(pid, 10))) {
		struct iovec local = { &one, 1 }, remote;

		address = (char *)strtoul(read_text("/tmp/address"), NULL, 16);
		remote = (struct iovec){ address, 1 };
		check_is(process_vm_writev(pid, &local, 1, &remote, 1, 0), 1);
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		fd = open(path, O_RDWR);
		check_is(pwrite(fd, &one, 1, (long)address + PAGE), 1);
		close(fd);
		resume(pid);
		check_is(await_exit(pid, 10), 0);
	}
	instance_end(FIRST, "subject", 5);
}

/* A tmpfs that is mounted, and written to, from outside. */
void test_tmpfs_from_outside(void)
{
	char options[32], path[16], target[4000] = "", found[4000], *memory;
	long used;
	int fd, i;

	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(options, sizeof(options), "size=64m,private_node=%d", FIRST->node);
	if (check_is(mount("subject", "/mnt", "tmpfs", 0, options), 0)) {
		check(strstr(read_text("/proc/mounts"), options + strlen("size=64m")));
		fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
		memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ftruncate(fd, MIB);
		memset(memory, 1, MIB);
		check(all_on(memory, MIB, FIRST->node));
		munmap(memory, MIB);
		close(fd);
		/* A target that is long has a page of its own. */
		used = allocated(FIRST);
		memset(target, 'x', sizeof(target) - 1);
		for (i = 0; i < 64; i++) {
			snprintf(path, sizeof(path), "/mnt/%d", i);
			check_is(symlink(target, path), 0);
		}
		check(allocated(FIRST) - used >= 64);
		check_is(readlink(path, found, sizeof(found)), strlen(target));
		check(!memcmp(found, target, strlen(target)));
		check(mount("subject", "/mnt", "tmpfs", MS_REMOUNT, "private_node=2") == -1);
		check(mount("subject", "/mnt", "tmpfs", MS_REMOUNT, "size=32m") == 0);
		check_is(umount("/mnt"), 0);
	}
	instance_end(FIRST, "subject", 5);
	snprintf(options, sizeof(options), "private_node=%d", SECOND->node);
	check(mount("subject", "/mnt", "tmpfs", 0, options) == -1);
}

void test_escape(void)
{
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB) || !plug(SECOND, 256 * MIB))
		return;
	check_is(write_text("+memory", "/sys/fs/cgroup/subject/cgroup.subtree_control"), 0);
	check_is(cgroup_create("subject/inside", -1), 0);
	check(!strcmp(read_text("/sys/fs/cgroup/subject/inside/memory.private_node"), node));
	check_is(run("subject/inside", "escape", node), 0);
	check_is(allocated(SECOND), 0);
	check_is(cgroup_remove("subject/inside"), 0);
	check_is(cgroup_remove("subject/below"), 0);
	instance_end(FIRST, "subject", 5);
	check(unplug(SECOND, 5));
}

/* What an agent may do with memory.private_node, and what not. */
void test_attach(void)
{
	char node[8];
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	check_is(cgroup_create("early", FIRST->node), -ENODEV);
	cgroup_remove("early");
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	check_is(cgroup_create("second", FIRST->node), -EBUSY);
	cgroup_remove("second");
	check_is(cgroup_create("base", 0), -ENODEV);
	cgroup_remove("base");
	pid = spawn("subject", "holder", node);
	check(await_stop(pid, 10));
	check_is(write_text("none", "/sys/fs/cgroup/subject/memory.private_node"), -EBUSY);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	check_is(write_text("none", "/sys/fs/cgroup/subject/memory.private_node"), 0);
	check(!strcmp(read_text("/sys/fs/cgroup/subject/memory.private_node"), "none"));
	check_is(cgroup_create("second", FIRST->node), 0);
	cgroup_remove("second");
	instance_end(FIRST, "subject", 5);
}

/* clone3() straight into an attached cgroup, without exec. */
void test_clone_into_cgroup(void)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	pid_t pid;

	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	args.cgroup = open("/sys/fs/cgroup/subject", O_RDONLY | O_DIRECTORY);
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (!pid) {
		char *memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(memory, 1, MIB);
		_exit(!all_on(memory, MIB, FIRST->node));
	}
	close(args.cgroup);
	check_is(await_exit(pid, 10), 0);
	instance_end(FIRST, "subject", 5);
}

void test_pins(void)
{
	long base;
	char node[8];

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	base = vmstat("pgmigrate_longterm_pin");
	check_is(run("subject", "pin", node), 0);
	check_is(vmstat("pgmigrate_longterm_pin") - base, 0);
	check_is(run("subject", "pin_and_die", node), 0);
	instance_end(FIRST, "subject", 5);
}
