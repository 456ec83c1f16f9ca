/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests share: results, files, the host's side of the devices,
 * partitions, cgroups, and where memory lies.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define MIB		(1024UL * 1024)
#define GIB		(1024 * MIB)
#define PAGE		4096UL
#define MAX_PARTITIONS	8

/* --- Results: TAP, with a reason for each failure --- */

extern int nr_failed;

void tap_begin(const char *name);
void tap_end(void);
void tap_plan(void);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool check_(bool ok, const char *what, const char *file, int line);
#define check(condition) check_(condition, #condition, __FILE__, __LINE__)
/* Of @actual and @limit, say what they were. */
bool check_most_(long actual, long limit, const char *what, const char *file, int line);
#define check_most(actual, limit) check_most_(actual, limit, #actual " <= " #limit, __FILE__, __LINE__)
bool check_is_(long actual, long wanted, const char *what, const char *file, int line);
#define check_is(actual, wanted) check_is_(actual, wanted, #actual " == " #wanted, __FILE__, __LINE__)

/* --- Files --- */

/* The file's text without the last newline; "" if it cannot be read. Static. */
const char *read_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
long read_number(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* 0 or a negative errno. */
int write_text(const char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The number behind @key in a file of lines "KEY NUMBER"; 0 if there is none. */
long keyed(const char *file, const char *key);
long vmstat(const char *key);
/* Pages that were migrated, for whatever reason. */
long migrated(void);

/* --- The host --- */

double now(void);
void pause_ms(int ms);

/* --- Partitions: virtio-mem devices with a node of their own --- */

struct partition {
	char sysfs[128];	/* .../partition */
	int node;
	int index;		/* what the host calls it */
};

extern struct partition partitions[MAX_PARTITIONS];
extern int nr_partitions;

void find_partitions(void);
/* Ask the host for @bytes. */
void request(struct partition *partition, unsigned long bytes);
bool await_state(struct partition *partition, const char *state, double seconds);
bool plug(struct partition *partition, unsigned long bytes);
/* Until it is parked or empty. */
bool unplug(struct partition *partition, double seconds);
const char *state_of(const struct partition *partition);
long allocated(const struct partition *partition);
long stat_of(const struct partition *partition, const char *name);
/* Memory blocks of the node that exist. */
int memory_blocks(int node);
/* A line of the node's meminfo, in pages. */
long node_pages(int node, const char *key);
/* Whether the kernel was built with KASAN. */
bool has_kasan(void);
/* Of the node's per-CPU free lists, "count" or "high": the sum, or the highest. */
long list_pages(int node, const char *key, bool sum);

/* --- Cgroups --- */

/* Creates /sys/fs/cgroup/@name, attached to @node unless that is negative. */
int cgroup_create(const char *name, int node);
void cgroup_kill(const char *name);
int cgroup_remove(const char *name);

/*
 * Runs this program in a cgroup ("" is the root), as "subject @what @arg".
 * Returns its pid; it stops itself (SIGSTOP) where the subject says so.
 */
pid_t spawn(const char *cgroup, const char *what, const char *arg);
/* The exit code; 128 + the signal if it was killed; -1 after too long. */
int await_exit(pid_t pid, double seconds);
/* Until it stops itself; then goes on. */
bool await_stop(pid_t pid, double seconds);
void resume(pid_t pid);
/* To the end, of a subject that never stops. */
int run(const char *cgroup, const char *what, const char *arg);

/* --- Instances --- */

/* Plugs @bytes, and creates @cgroup, attached to them. */
bool instance_begin(struct partition *partition, const char *cgroup, unsigned long bytes);
bool instance_end(struct partition *partition, const char *cgroup, double seconds);
/* What an instance in the cgroup "subject" does with its partition. */
void use_and_leave(struct partition *partition);
/* An instance of @bytes in the cgroup "subject" that has ended, but for a page of it that waits in a pipe. */
bool leave_page(struct partition *partition, unsigned long bytes, int pipes[2]);
/* Reads that page, and closes the pipe. */
bool take_page(int pipes[2]);
/* Plugs @partition, and has its memory blocks removed, so that the next plug is a first one. */
bool remove_blocks(struct partition *partition);
/*
 * The same with a limit for base memory: @outer has @budget as its memory.max, and "@outer/inner" is attached, and has the
 * size of the partition as its memory.max.
 */
bool budgeted_begin(struct partition *partition, const char *outer, unsigned long bytes, unsigned long budget);
bool budgeted_end(struct partition *partition, const char *outer, double seconds);

/* --- Where memory lies --- */

/* The node of the page at @address of this process; negative if there is none. */
int node_of(const void *address);
/* Whether all pages of a range lie on @node. */
bool all_on(const void *address, size_t bytes, int node);
/* Pages of @pid's mappings on @node, from numa_maps. */
long mapped_pages(pid_t pid, int node);

/* --- Subjects: what runs in the cgroups --- */

#define NO_SUBJECT	127

/* Runs the subject; its result is the exit code. */
int subject(const char *what, const char *arg);
/*
 * Those that use memory of their node, those that go for base memory, those that are adopted or adopt, and those whose
 * memory is looked at by other features of the kernel; NO_SUBJECT if there is none of that name.
 */
int user(const char *what, int node);
int attacker(const char *what);
int adopter(const char *what, int argument);
int featured(const char *what, int argument);
/* One of Linux's selftests; returns only if it cannot be run. */
int selftest(const char *command);

/* Anonymous memory; NULL if there is none. */
char *map(size_t bytes);
/* Writes to each page; first looks that it was zero. */
bool touch(char *memory, size_t bytes);
/* Stops until it is told to go on. Returns 0. */
int hold(void);
/* An io_uring that has @memory registered, and so pinned; -1 if that fails. */
int ring_with_buffer(char *memory, size_t bytes);

void stress(int seconds);
void cycle(int count);
void selftests(unsigned long partition_bytes);

#endif
