// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

#define CGROUPS "/sys/fs/cgroup"
#define DEVICES "/sys/bus/virtio/devices"

int nr_failed;
static int nr_tests;
static bool test_ok;
static const char *test_name;
static double test_start;

struct partition partitions[MAX_PARTITIONS];
int nr_partitions;

void tap_begin(const char *name)
{
	test_name = name;
	test_ok = true;
	test_start = now();
}

void tap_end(void)
{
	nr_tests++;
	nr_failed += !test_ok;
	printf("%s %d - %s # %.1f s\n", test_ok ? "ok" : "not ok", nr_tests, test_name, now() - test_start);
	fflush(stdout);
}

void tap_plan(void)
{
	printf("1..%d\n", nr_tests);
	fflush(stdout);
}

void note(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

bool check_(bool ok, const char *what, const char *file, int line)
{
	if (!ok) {
		note("%s:%d: not so: %s", file, line, what);
		test_ok = false;
	}
	return ok;
}

bool check_most_(long actual, long limit, const char *what, const char *file, int line)
{
	if (actual > limit) {
		note("%s:%d: not so: %s (%ld > %ld)", file, line, what, actual, limit);
		test_ok = false;
	}
	return actual <= limit;
}

bool check_is_(long actual, long wanted, const char *what, const char *file, int line)
{
	if (actual != wanted) {
		note("%s:%d: not so: %s (%ld, not %ld)", file, line, what, actual, wanted);
		test_ok = false;
	}
	return actual == wanted;
}

#define FORMAT(path, format)						\
	do {								\
		va_list args;						\
		va_start(args, format);					\
		vsnprintf(path, sizeof(path), format, args);		\
		va_end(args);						\
	} while (0)

static const char *read_path(const char *path)
{
	static char text[65536];
	ssize_t length;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	text[0] = 0;
	if (fd < 0)
		return text;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (length < 0)
		length = 0;
	text[length] = 0;
	if (length && text[length - 1] == '\n')
		text[length - 1] = 0;
	return text;
}

const char *read_text(const char *format, ...)
{
	char path[512];

	FORMAT(path, format);
	return read_path(path);
}

long read_number(const char *format, ...)
{
	char path[512];

	FORMAT(path, format);
	return atol(read_path(path));
}

int write_text(const char *text, const char *format, ...)
{
	char path[512];
	int fd, ret = 0;

	FORMAT(path, format);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

long keyed(const char *file, const char *key)
{
	const char *text = read_path(file);
	size_t length = strlen(key);

	for (; text; text = strchr(text, '\n')) {
		if (*text == '\n')
			text++;
		if (!strncmp(text, key, length) && text[length] == ' ')
			return atol(text + length);
	}
	return 0;
}

long vmstat(const char *key)
{
	return keyed("/proc/vmstat", key);
}

long migrated(void)
{
	return vmstat("pgmigrate_success");
}

double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

void pause_ms(int ms)
{
	usleep(ms * 1000);
}

void find_partitions(void)
{
	struct dirent *entry;
	DIR *directory = opendir(DEVICES);

	while (directory && (entry = readdir(directory))) {
		struct partition partition = {};

		snprintf(partition.sysfs, sizeof(partition.sysfs), DEVICES "/%.32s/partition", entry->d_name);
		if (access(partition.sysfs, F_OK))
			continue;
		partition.node = read_number("%s/node", partition.sysfs);
		/* The host's first device is on node 1. */
		if (partition.node < 1 || partition.node > MAX_PARTITIONS)
			continue;
		partition.index = partition.node - 1;
		partitions[partition.index] = partition;
		nr_partitions++;
	}
	if (directory)
		closedir(directory);
}

void request(struct partition *partition, unsigned long bytes)
{
	char text[64];

	snprintf(text, sizeof(text), "set %d %lu\n", partition->index, bytes);
	if (write_text(text, "/dev/ttyS1"))
		note("the host cannot be reached");
}

const char *state_of(const struct partition *partition)
{
	return read_text("%s/state", partition->sysfs);
}

static void say_state(const struct partition *partition, const char *wanted)
{
	long pages = allocated(partition);

	note("node %d: %s, not %s; %ld pages allocated", partition->node, state_of(partition), wanted, pages);
}

bool await_state(struct partition *partition, const char *state, double seconds)
{
	double end = now() + seconds;

	do {
		if (!strcmp(state_of(partition), state))
			return true;
		pause_ms(2);
	} while (now() < end);
	say_state(partition, state);
	return false;
}

static bool await_request(struct partition *partition, unsigned long bytes, double seconds)
{
	double end = now() + seconds;

	while (stat_of(partition, "requested_bytes") != (long)bytes && now() < end)
		pause_ms(1);
	return stat_of(partition, "requested_bytes") == (long)bytes;
}

bool plug(struct partition *partition, unsigned long bytes)
{
	request(partition, bytes);
	return check(await_request(partition, bytes, 10)) && check(await_state(partition, "online", 240));
}

bool unplug(struct partition *partition, double seconds)
{
	double end = now() + seconds;

	request(partition, 0);
	if (!check(await_request(partition, 0, 10)))
		return false;
	do {
		const char *state = state_of(partition);

		if (!strcmp(state, "parked") || !strcmp(state, "empty"))
			return true;
		pause_ms(1);
	} while (now() < end);
	say_state(partition, "parked or empty");
	return false;
}

long stat_of(const struct partition *partition, const char *name)
{
	return read_number("%s/%s", partition->sysfs, name);
}

long allocated(const struct partition *partition)
{
	return stat_of(partition, "allocated_pages");
}

int memory_blocks(int node)
{
	char path[64];
	struct dirent *entry;
	DIR *directory;
	int count = 0;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", node);
	directory = opendir(path);
	while (directory && (entry = readdir(directory)))
		count += !strncmp(entry->d_name, "memory", 6) && entry->d_name[6] >= '0' && entry->d_name[6] <= '9';
	if (directory)
		closedir(directory);
	return count;
}

long node_pages(int node, const char *key)
{
	char start[64];
	const char *text = read_text("/sys/devices/system/node/node%d/meminfo", node);
	const char *line;

	snprintf(start, sizeof(start), "Node %d %s:", node, key);
	line = strstr(text, start);
	return line ? atol(line + strlen(start)) / 4 : 0;
}

bool has_kasan(void)
{
	static int known = -1;
	char line[512];
	FILE *symbols;

	if (known >= 0)
		return known;
	known = 0;
	symbols = fopen("/proc/kallsyms", "r");
	while (symbols && !known && fgets(line, sizeof(line), symbols))
		known = strstr(line, " kasan_report\n") != NULL;
	if (symbols)
		fclose(symbols);
	return known;
}

long list_pages(int node, const char *key, bool sum)
{
	static char text[65536];
	char start[32], format[32], *line;
	int fd = open("/proc/zoneinfo", O_RDONLY | O_CLOEXEC), here = 0;
	ssize_t length = 0, got;
	long pages = 0, value;

	/* It comes a page at a time. */
	while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += got;
	close(fd);
	text[length] = 0;
	snprintf(start, sizeof(start), "Node %d,", node);
	snprintf(format, sizeof(format), " %s: %%ld", key);
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (!strncmp(line, "Node ", 5))
			here = !strncmp(line, start, strlen(start));
		if (!here || sscanf(line, format, &value) != 1)
			continue;
		if (sum)
			pages += value;
		else if (value > pages)
			pages = value;
	}
	return pages;
}

int cgroup_create(const char *name, int node)
{
	char path[256], text[16];

	snprintf(path, sizeof(path), CGROUPS "/%s", name);
	if (mkdir(path, 0755))
		return -errno;
	write_text("1", "%s/memory.oom.group", path);
	if (node < 0)
		return 0;
	snprintf(text, sizeof(text), "%d", node);
	return write_text(text, "%s/memory.private_node", path);
}

void cgroup_kill(const char *name)
{
	char path[256];
	double end = now() + 20;

	check_is(write_text("1", CGROUPS "/%s/cgroup.kill", name), 0);
	snprintf(path, sizeof(path), CGROUPS "/%s/cgroup.events", name);
	while (keyed(path, "populated") && now() < end)
		pause_ms(1);
}

int cgroup_remove(const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), CGROUPS "/%s", name);
	return rmdir(path) ? -errno : 0;
}

pid_t spawn(const char *cgroup, const char *what, const char *arg)
{
	double end = now() + 20;
	pid_t pid = fork();

	if (pid > 0) {
		/* Who kills the cgroup next wants to find it in there. */
		while (*cgroup && !strstr(read_text("/proc/%d/cgroup", pid), cgroup) && now() < end)
			if (kill(pid, 0))
				break;
		return pid;
	}
	write_text("0", "/proc/self/oom_score_adj");
	if (write_text("0", CGROUPS "/%s%scgroup.procs", cgroup, *cgroup ? "/" : ""))
		_exit(125);
	execl("/proc/self/exe", "subject", what, arg, NULL);
	_exit(126);
}

int await_exit(pid_t pid, double seconds)
{
	struct pollfd exit = { .fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	int status;

	poll(&exit, 1, seconds * 1000);
	close(exit.fd);
	if (waitpid(pid, &status, WNOHANG) != pid)
		return -1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool await_stop(pid_t pid, double seconds)
{
	double end = now() + seconds;
	int status;

	do {
		if (waitpid(pid, &status, WNOHANG | WUNTRACED) == pid) {
			if (WIFSTOPPED(status))
				return true;
			note("subject ended: status %#x", status);
			return false;
		}
		pause_ms(1);
	} while (now() < end);
	return false;
}

void resume(pid_t pid)
{
	kill(pid, SIGCONT);
}

int run(const char *cgroup, const char *what, const char *arg)
{
	pid_t pid = spawn(cgroup, what, arg);
	int status = await_exit(pid, 120);

	if (status == -1) {
		note("%s: hangs", what);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return status;
}

int node_of(const void *address)
{
	void *page = (void *)((unsigned long)address & ~(PAGE - 1));
	int status = -EINVAL;

	if (syscall(SYS_move_pages, 0, 1UL, &page, NULL, &status, 0))
		return -errno;
	return status;
}

bool all_on(const void *address, size_t bytes, int node)
{
	const char *byte = address;
	size_t i;

	for (i = 0; i < bytes; i += PAGE) {
		int found = node_of(byte + i);

		if (found != node) {
			note("page %zu of %zu is on node %d, not %d", i / PAGE, bytes / PAGE, found, node);
			return false;
		}
	}
	return true;
}

long mapped_pages(pid_t pid, int node)
{
	char key[16];
	const char *text = read_text("/proc/%d/numa_maps", pid);
	long pages = 0;

	snprintf(key, sizeof(key), " N%d=", node);
	while ((text = strstr(text, key))) {
		text += strlen(key);
		pages += atol(text);
	}
	return pages;
}
