// SPDX-License-Identifier: GPL-2.0
/*
 * Linux's own selftests of memory management: each from a cgroup that is not
 * attached to a partition, and then from one that is. The host chooses them,
 * and compares what they say: selftests.py.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests.h"

#define CGROUP		"selftest"
#define OUTPUT		"/ramfs/output"
#define MAX_ARGUMENTS	16
/* The unattached cgroup has as much memory as the partition should have. */
#define CGROUP_BYTES	(2 * GIB)

/* A line of the host's list: fields with a tab between them. */
struct selftest {
	char *name;
	int seconds;
	char *settings;		/* "PATH=VALUE PATH=VALUE" */
	char *command;		/* "PROGRAM ARGUMENT ARGUMENT" */
};

/* Runs in the cgroup: becomes the selftest, with file systems and IPC that end with it. */
int selftest(const char *command)
{
	char *words = strdup(command), *arguments[MAX_ARGUMENTS + 1] = {}, path[128];
	int output = open(OUTPUT, O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0644), i = 0;
	int input = open("/dev/null", O_RDONLY);

	if (output < 0 || input < 0 || unshare(CLONE_NEWNS | CLONE_NEWIPC))
		return NO_SUBJECT;
	if (mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777,size=512m,huge=advise") || chdir("/tmp"))
		return NO_SUBJECT;
	mkdir("/dev/shm", 0755);
	if (mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=512m"))
		return NO_SUBJECT;
	arguments[i] = strtok(words, " ");
	while (arguments[i] && ++i < MAX_ARGUMENTS)
		arguments[i] = strtok(NULL, " ");
	snprintf(path, sizeof(path), "/selftests/%s", arguments[0]);
	arguments[0] = path;
	dup2(input, 0);
	dup2(output, 1);
	dup2(output, 2);
	close(input);
	close(output);
	execv(path, arguments);
	return NO_SUBJECT;
}

/* Of the system, or of the cgroup. Files that this kernel does not have are settings that it does not need. */
static void set(const char *settings)
{
	char *words = strdup(settings), *word;

	for (word = strtok(words, " "); word; word = strtok(NULL, " ")) {
		char *value = strchr(word, '=');

		*value++ = 0;
		write_text(value, "%s", word);
	}
	free(words);
}

/* To the host, what the selftest has said. */
static void report(const struct selftest *test, const char *cgroup, int status)
{
	FILE *host = fopen("/dev/ttyS1", "w"), *output = fopen(OUTPUT, "r");
	size_t size = 0;
	char *line = NULL;

	if (!check(host && output))
		return;
	fprintf(host, "ran %s %s %d\n", test->name, cgroup, status);
	while (getline(&line, &size, output) > 0) {
		line[strcspn(line, "\n")] = 0;
		fprintf(host, "| %s\n", line);
	}
	fprintf(host, "end\n");
	fclose(host);
	fclose(output);
	free(line);
	unlink(OUTPUT);
}

static void observe(const struct selftest *test, const char *cgroup, int node)
{
	char bytes[32];
	int status;
	pid_t pid;

	if (!check_is(cgroup_create(CGROUP, node), 0)) {
		cgroup_remove(CGROUP);
		return;
	}
	set(test->settings);
	snprintf(bytes, sizeof(bytes), "%lu", CGROUP_BYTES);
	check_is(write_text(bytes, "/sys/fs/cgroup/" CGROUP "/memory.max"), 0);
	pid = spawn(CGROUP, "selftest", test->command);
	status = await_exit(pid, test->seconds);
	if (status == -1)
		note("%s, %s: hangs", test->name, cgroup);
	check(status != -1);
	check(status != NO_SUBJECT);
	cgroup_kill(CGROUP);
	/* Its orphans, too. */
	while (waitpid(-1, NULL, 0) > 0)
		;
	check_is(cgroup_remove(CGROUP), 0);
	report(test, cgroup, status);
}

void selftests(unsigned long partition_bytes)
{
	char *line = NULL, *rest;
	struct selftest test;
	size_t size = 0;
	FILE *list = fopen("/selftests/list", "r");

	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	while (list && getline(&line, &size, list) > 0) {
		rest = line;
		test.name = strsep(&rest, "\t");
		test.seconds = atoi(strsep(&rest, "\t"));
		test.settings = strsep(&rest, "\t");
		test.command = strsep(&rest, "\n");
		tap_begin(test.name);
		if (plug(FIRST, partition_bytes)) {
			observe(&test, "unattached", -1);
			observe(&test, "attached", FIRST->node);
			/* Whatever it did, nothing of it is left. */
			check(unplug(FIRST, 60));
		}
		tap_end();
	}
	if (list)
		fclose(list);
	free(line);
}
