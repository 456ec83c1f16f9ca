// SPDX-License-Identifier: GPL-2.0
/*
 * Features of the kernel that would place, move, read or save memory of a
 * partition, and leave it alone. Of each, that it does its work elsewhere
 * shows first that there was something to leave alone. A kernel that lacks a
 * feature passes its test: debug.config has them all.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "tests.h"

#define KSM		"/sys/kernel/mm/ksm/"
#define DAMON		"/sys/kernel/mm/damon/admin/kdamonds/"
#define SCHEME		DAMON "0/contexts/0/schemes/0/"
#define DEBUG		"/sys/kernel/debug/"

/* Where the subjects of this file have the memory that others look for, and how much. */
#define ADDRESS		((char *)0x100000000)
#define BYTES		(16 * MIB)
#define PATTERN		0x5a

static bool lacks(const char *path, const char *what)
{
	if (!access(path, F_OK))
		return false;
	note("this kernel has no %s", what);
	return true;
}

/* --- Subjects --- */

/* Small pages that all have the same content. */
static char *map_pattern(void)
{
	char *memory = mmap(ADDRESS, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (memory != ADDRESS || madvise(memory, BYTES, MADV_NOHUGEPAGE))
		return NULL;
	return memset(memory, PATTERN, BYTES);
}

/* Holds it until told otherwise. */
static int pattern(int node)
{
	char *memory = map_pattern();

	if (!memory)
		return 1;
	hold();
	return memory[BYTES / 2] == PATTERN && all_on(memory, BYTES, node) ? 0 : 2;
}

/* KiB of this process in swap. */
static long swapped(void)
{
	const char *line = strstr(read_text("/proc/self/smaps_rollup"), "\nSwap:");
	long kib = -1;

	if (line)
		sscanf(line, "\nSwap: %ld", &kib);
	return kib;
}

/* Asks for its memory, anonymous and shared, to be swapped out. That of a node stays. */
static int swapper(int node)
{
	char *memory = map_pattern();
	char *shared = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	size_t i;
	long kib;

	if (!memory || shared == MAP_FAILED || !touch(shared, BYTES))
		return 1;
	if (madvise(memory, BYTES, MADV_PAGEOUT) || madvise(shared, BYTES, MADV_PAGEOUT))
		return 2;
	kib = swapped();
	if (node ? kib : kib < (long)(2 * BYTES / 1024) * 9 / 10) {
		note("%ld KiB in swap", kib);
		return 3;
	}
	if (!node)
		return 0;
	/* It may have lost its place in the page tables. */
	for (i = 0; i < BYTES; i += PAGE)
		shared[i]++;
	return all_on(memory, BYTES, node) && all_on(shared, BYTES, node) ? 0 : 4;
}

/* Has pages that could be merged, until all have been looked at three times. */
static int merger(int node)
{
	char *memory = map_pattern();
	long scans = read_number(KSM "full_scans"), merged;
	double limit = now() + 120;

	if (!memory || madvise(memory, BYTES, MADV_MERGEABLE))
		return 1;
	while (read_number(KSM "full_scans") < scans + 3) {
		if (now() > limit)
			return 2;
		pause_ms(20);
	}
	merged = read_number("/proc/self/ksm_merging_pages");
	if (node ? merged : merged < (long)(BYTES / PAGE) / 2) {
		note("%ld pages are merged", merged);
		return 3;
	}
	return node && !all_on(memory, BYTES, node) ? 4 : 0;
}

static void *wait_for_signal(void *unused)
{
	(void)unused;
	pause();
	return NULL;
}

/* Uses its memory until NUMA balancing has looked from where, or for as long as @arg says, in milliseconds. */
static int balanced(int milliseconds)
{
	const long wanted = BYTES / PAGE / 4;
	long before = vmstat("numa_pte_updates"), looked = 0;
	double limit = now() + (milliseconds ? milliseconds / 1000.0 : 120);
	char *memory = map_pattern();
	pthread_t thread;
	size_t i;

	/* Of a process with one thread, memory on the CPU's own node is no question. */
	if (!memory || pthread_create(&thread, NULL, wait_for_signal, NULL))
		return 1;
	while (now() < limit && looked < wanted) {
		for (i = 0; i < BYTES; i += PAGE)
			memory[i]++;
		looked = vmstat("numa_pte_updates") - before;
	}
	note("%ld pages were looked at", looked);
	return looked >= wanted ? 0 : 2;
}

/* Has a page of its memory fail. */
static int failing(int node)
{
	char *memory = map_pattern();

	(void)node;
	if (!memory)
		return 1;
	hold();
	if (madvise(memory, PAGE, 100 /* MADV_HWPOISON */))
		return 2;
	/* If it has not been killed yet. */
	memory[0] = 1;
	return 3;
}

static const struct {
	const char *name;
	int (*run)(int node);
} subjects[] = {
	{ "pattern", pattern }, { "swapper", swapper }, { "merger", merger }, { "balanced", balanced }, { "failing", failing },
};

int featured(const char *what, int argument)
{
	size_t i;

	for (i = 0; i < sizeof(subjects) / sizeof(subjects[0]); i++)
		if (!strcmp(subjects[i].name, what))
			return subjects[i].run(argument);
	return NO_SUBJECT;
}

/* --- Tests --- */

/* The subject without a node, and then with one. */
static void without_and_with(const char *what)
{
	char node[16];

	check_is(run("", what, "0"), 0);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(node, sizeof(node), "%d", FIRST->node);
	check_is(run("subject", what, node), 0);
	instance_end(FIRST, "subject", 5);
}

/* Nothing of a node is swapped out. */
void test_swap(void)
{
	static const char device[] = "/dev/zram0";
	static char header[PAGE];
	const size_t bytes = 64 * MIB;
	const uint32_t start[2] = { 1, bytes / PAGE - 1 };	/* version, and last page */
	char number[32];
	int fd;

	if (lacks(device, "device to swap to"))
		return;
	snprintf(number, sizeof(number), "%zu", bytes);
	check_is(write_text(number, "/sys/block/zram0/disksize"), 0);
	memcpy(header + 1024, start, sizeof(start));
	memcpy(header + PAGE - 10, "SWAPSPACE2", 10);
	fd = open(device, O_WRONLY);
	check_is(write(fd, header, PAGE), PAGE);
	fsync(fd);
	close(fd);
	if (check(!swapon(device, 0))) {
		without_and_with("swapper");
		check(!swapoff(device));
	}
	check_is(write_text("1", "/sys/block/zram0/reset"), 0);
}

/* No two pages of a node are merged. */
void test_merge(void)
{
	if (lacks(KSM "run", "KSM"))
		return;
	write_text("100000", KSM "pages_to_scan");
	write_text("0", KSM "sleep_millisecs");
	check_is(write_text("1", KSM "run"), 0);
	without_and_with("merger");
	check_is(write_text("2", KSM "run"), 0);
}

/* NUMA balancing does not look where memory of a node is used from. */
void test_balancing(void)
{
	static const char sysctl[] = "/proc/sys/kernel/numa_balancing";
	char milliseconds[16];
	double start;

	if (lacks(sysctl, "NUMA balancing"))
		return;
	write_text("1", "%s", sysctl);
	start = now();
	check_is(run("", "balanced", "0"), 0);
	/* Twice as long as it took there. */
	snprintf(milliseconds, sizeof(milliseconds), "%d", (int)((now() - start) * 2000) + 1);
	if (instance_begin(FIRST, "subject", 256 * MIB)) {
		check_is(run("subject", "balanced", milliseconds), 2);
		instance_end(FIRST, "subject", 5);
	}
	write_text("0", "%s", sysctl);
}

/* The number of the page that @pid has at ADDRESS. */
static unsigned long frame_of(pid_t pid)
{
	char path[64];
	uint64_t entry = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (pread(fd, &entry, sizeof(entry), (unsigned long)ADDRESS / PAGE * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry & ((1UL << 55) - 1);
}

/* A byte of a frame, as /proc/kcore has it; negative if it has not. */
static int kcore_byte(unsigned long frame)
{
	int fd = open("/proc/kcore", O_RDONLY), byte = -1, i;
	Elf64_Phdr segment;
	Elf64_Ehdr header;
	unsigned char read_byte;

	if (pread(fd, &header, sizeof(header), 0) == sizeof(header)) {
		for (i = 0; i < header.e_phnum; i++) {
			unsigned long at = frame * PAGE;

			if (pread(fd, &segment, sizeof(segment), header.e_phoff + i * sizeof(segment)) != sizeof(segment))
				break;
			/* Segments that are not memory have no physical address. */
			if (segment.p_type != PT_LOAD || segment.p_paddr == -1UL || at < segment.p_paddr ||
			    at - segment.p_paddr >= segment.p_memsz)
				continue;
			if (pread(fd, &read_byte, 1, segment.p_offset + at - segment.p_paddr) == 1)
				byte = read_byte;
			break;
		}
	}
	close(fd);
	return byte;
}

/* What /proc/kcore has of the memory of a subject in @cgroup. */
static int kcore_of(const char *cgroup, const char *node)
{
	pid_t pid = spawn(cgroup, "pattern", node);
	int byte = -1;

	if (check(await_stop(pid, 60))) {
		byte = kcore_byte(frame_of(pid));
		resume(pid);
	}
	check_is(await_exit(pid, 60), 0);
	return byte;
}

/* Memory of a node is not there, or reads as zeros if it lies below other memory. */
void test_kcore(void)
{
	char node[16];

	if (lacks("/proc/kcore", "/proc/kcore"))
		return;
	check_is(kcore_of("", "0"), PATTERN);
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(node, sizeof(node), "%d", FIRST->node);
	check_most(kcore_of("subject", node), 0);
	instance_end(FIRST, "subject", 5);
}

/* Hibernation is refused: what is saved would be read back into memory that the host has taken. */
void test_hibernation(void)
{
	if (lacks("/sys/power/disk", "hibernation"))
		return;
	check(!strcmp(read_text("/sys/power/disk"), "[disabled]"));
	check(!strstr(read_text("/sys/power/state"), "disk"));
	check_is(write_text("disk", "/sys/power/state"), -EPERM);
}

/* A page that has failed stays where it is, and all around it goes back. */
void test_memory_failure(void)
{
	char number[32];
	pid_t pid;

	mount("debugfs", DEBUG, "debugfs", 0, NULL);
	if (lacks(DEBUG "hwpoison/unpoison-pfn", "failing memory"))
		goto unmount;
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		goto unmount;
	pid = spawn("subject", "failing", "0");
	if (check(await_stop(pid, 60))) {
		snprintf(number, sizeof(number), "%#lx", frame_of(pid));
		resume(pid);
	}
	check_is(await_exit(pid, 60), 128 + SIGBUS);
	check_is(cgroup_remove("subject"), 0);

	check_is(cgroup_create("another", FIRST->node), -EBUSY);
	cgroup_remove("another");
	request(FIRST, 0);
	check(await_state(FIRST, "draining", 5));
	while (stat_of(FIRST, "plugged_bytes") > 2 * (long)MIB && !strcmp(state_of(FIRST), "draining"))
		pause_ms(10);
	check_is(stat_of(FIRST, "plugged_bytes"), 2 * MIB);
	check_is(allocated(FIRST), 1);

	/* It was not broken after all. */
	check_is(write_text(number, DEBUG "hwpoison/unpoison-pfn"), 0);
	check(await_state(FIRST, "parked", 10));
unmount:
	umount(DEBUG);
}

/* A number of the scheme's statistics. */
static long tried(const char *name)
{
	write_text("update_schemes_stats", DAMON "0/state");
	return read_number(SCHEME "stats/%s", name);
}

/* DAMON's schemes move no page of a node. */
void test_damon(void)
{
	const double limit = now() + 120;
	char number[32];
	pid_t pid;

	if (lacks(DAMON "nr_kdamonds", "DAMON"))
		return;
	if (!instance_begin(FIRST, "subject", 256 * MIB))
		return;
	snprintf(number, sizeof(number), "%d", FIRST->node);
	pid = spawn("subject", "pattern", number);
	if (check(await_stop(pid, 60))) {
		unsigned long first = frame_of(pid) * PAGE & -BYTES;

		check_is(write_text("1", DAMON "nr_kdamonds"), 0);
		check_is(write_text("1", DAMON "0/contexts/nr_contexts"), 0);
		check_is(write_text("paddr", DAMON "0/contexts/0/operations"), 0);
		check_is(write_text("1", DAMON "0/contexts/0/targets/nr_targets"), 0);
		check_is(write_text("1", DAMON "0/contexts/0/targets/0/regions/nr_regions"), 0);
		snprintf(number, sizeof(number), "%lu", first);
		check_is(write_text(number, DAMON "0/contexts/0/targets/0/regions/0/start"), 0);
		snprintf(number, sizeof(number), "%lu", first + BYTES);
		check_is(write_text(number, DAMON "0/contexts/0/targets/0/regions/0/end"), 0);
		check_is(write_text("1", DAMON "0/contexts/0/schemes/nr_schemes"), 0);
		/* Whatever has been used or not. */
		check_is(write_text("migrate_cold", SCHEME "action"), 0);
		check_is(write_text("0", SCHEME "target_nid"), 0);
		snprintf(number, sizeof(number), "%lu", GIB);
		check_is(write_text(number, SCHEME "access_pattern/sz/max"), 0);
		check_is(write_text("1000", SCHEME "access_pattern/nr_accesses/max"), 0);
		check_is(write_text("1000000", SCHEME "access_pattern/age/max"), 0);
		check_is(write_text("on", DAMON "0/state"), 0);
		while (tried("sz_tried") < (long)BYTES && now() < limit)
			pause_ms(50);
		check(tried("sz_tried") >= (long)BYTES);
		check_is(tried("sz_applied"), 0);
		check_is(write_text("off", DAMON "0/state"), 0);
		check_is(write_text("0", DAMON "nr_kdamonds"), 0);
		resume(pid);
	}
	check_is(await_exit(pid, 60), 0);
	instance_end(FIRST, "subject", 5);
}
