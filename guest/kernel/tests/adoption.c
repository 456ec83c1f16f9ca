// SPDX-License-Identifier: GPL-2.0
/*
 * A process becomes a fork of another one: with the other's memory, and all
 * else its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

#include "tests.h"

#define PIDFD_AWAIT_ADOPTION	_IO(0xFF, 32)
#define PIDFD_ADOPT		_IO(0xFF, 33)
#define ADOPTED_PID		4194304

#define SHARED			(32 * MIB)

/* --- In the runtime, and in what becomes a fork of it --- */

static __thread int local = 17;
static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

static void *add_one(void *number)
{
	++*(int *)number;
	return NULL;
}

/* The node that this process's cgroup is attached to. */
static int own_node(void)
{
	char group[256];

	/* "0::/GROUP" */
	snprintf(group, sizeof(group), "%s", read_text("/proc/self/cgroup") + 3);
	return read_number("/sys/fs/cgroup%s/memory.private_node", group);
}

/* What a fork has to find, and what it can do. */
static int forked(char *memory, int runtime_node, pid_t runtime, int file)
{
	int node = own_node(), number = 1;
	pthread_t thread;
	sigset_t mask;
	size_t i;
	pid_t pid;

	/* Its own: PID, files, place. The rest is the runtime's. */
	if (node == runtime_node || getpid() == runtime || getpid() != gettid())
		return 20;
	if (fcntl(file, F_GETFD) >= 0 || errno != EBADF)
		return 21;
	if (local != 18 || _MM_GET_ROUNDING_MODE() != _MM_ROUND_UP)
		return 22;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	if (!sigismember(&mask, SIGUSR2) || sigismember(&mask, SIGUSR1))
		return 23;
	signals = 0;
	raise(SIGUSR1);
	if (signals != 1)
		return 24;

	/* Memory is shared until it is written to; then it is in the own node. */
	for (i = 0; i < SHARED; i += PAGE)
		if (memory[i] != (char)(i / PAGE))
			return 25;
	if (!all_on(memory, SHARED, runtime_node))
		return 26;
	for (i = 0; i < SHARED; i += 8 * PAGE)
		memory[i]++;
	for (i = 0; i < SHARED; i += PAGE)
		if (memory[i] != (char)(i / PAGE + (i / PAGE % 8 == 0)) ||
		    node_of(memory + i) != (i / PAGE % 8 ? runtime_node : node))
			return 27;
	memory = map(4 * MIB);
	if (!touch(memory, 4 * MIB) || !all_on(memory, 4 * MIB, node))
		return 28;

	/* It is a process like any, which nobody adopts. */
	if (pthread_create(&thread, NULL, add_one, &number) || pthread_join(thread, NULL) || number != 2)
		return 29;
	pid = fork();
	if (!pid)
		_exit(local);
	return pid > 0 && pid != ADOPTED_PID && await_exit(pid, 10) == 18 ? 0 : 30;
}

/* Initialises itself, and then forks for ever. */
static int runtime(int node)
{
	struct sigaction action = { .sa_handler = count_signal };
	char *memory = map(SHARED + 2 * MIB);
	int file = open("/proc/self/exe", O_RDONLY);
	pid_t self = getpid(), pid;
	sigset_t mask;
	size_t i;

	memory = (char *)(((unsigned long)memory + 2 * MIB - 1) & -(2 * MIB));
	madvise(memory, SHARED, MADV_HUGEPAGE);
	for (i = 0; i < SHARED; i += PAGE)
		memory[i] = i / PAGE;
	madvise(memory, SHARED, MADV_NOHUGEPAGE);
	local = 18;
	_MM_SET_ROUNDING_MODE(_MM_ROUND_UP);
	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	/* Somebody who has no such file takes this descriptor for none. */
	dup2(file, 50);
	hold();
	for (;;) {
		pid = fork();
		if (!pid)
			return forked(memory, node, self, 50);
		if (pid != ADOPTED_PID || waitpid(pid, NULL, WNOHANG) != -1)
			return 10;
	}
}

static void *sleep_for_ever(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

/* Cannot be forked as a whole. */
static int threaded_runtime(int node)
{
	pthread_t thread;

	(void)node;
	pthread_create(&thread, NULL, sleep_for_ever, NULL);
	hold();
	return fork() == -1 && errno == EAGAIN ? 0 : 1;
}

/* Has memory pinned, which fork() copies at once. */
static int pinned_runtime(int node)
{
	char *memory = map(MIB);

	madvise(memory, MIB, MADV_NOHUGEPAGE);
	if (!touch(memory, MIB) || ring_with_buffer(memory, MIB) < 0 || !all_on(memory, MIB, node))
		return 1;
	hold();
	return fork() ? 0 : !all_on(memory, MIB, own_node());
}

/* Adopts the process that a pidfd, which it has inherited, is for; or says why not. */
static int adopt(int pidfd)
{
	ioctl(pidfd, PIDFD_ADOPT, 0);
	return 100 + errno;
}

/* The same as a user who may not. */
static int adopt_as_stranger(int pidfd)
{
	if (setresuid(1000, 1000, 1000))
		return 1;
	return adopt(pidfd);
}

/* The same with a second thread. */
static int adopt_with_thread(int pidfd)
{
	pthread_t thread;

	pthread_create(&thread, NULL, sleep_for_ever, NULL);
	return adopt(pidfd);
}

/* Tries to have a process wait, as a user who may not. */
static int have_wait_as_stranger(int pidfd)
{
	if (setresuid(1000, 1000, 1000))
		return 1;
	return ioctl(pidfd, PIDFD_AWAIT_ADOPTION, 0) == -1 ? 100 + errno : 0;
}

int adopter(const char *what, int argument)
{
	static const struct {
		const char *name;
		int (*run)(int argument);
	} adopters[] = {
		{ "runtime", runtime }, { "threaded_runtime", threaded_runtime }, { "pinned_runtime", pinned_runtime },
		{ "adopt", adopt }, { "adopt_as_stranger", adopt_as_stranger }, { "adopt_with_thread", adopt_with_thread },
		{ "have_wait_as_stranger", have_wait_as_stranger },
	};
	size_t i;

	for (i = 0; i < sizeof(adopters) / sizeof(adopters[0]); i++)
		if (!strcmp(adopters[i].name, what))
			return adopters[i].run(argument);
	return NO_SUBJECT;
}

/* --- The tests --- */

/* Starts a runtime in the first partition, up to where it is initialised. */
static pid_t begin(const char *what, int *pidfd)
{
	char node[8];
	pid_t pid;

	snprintf(node, sizeof(node), "%d", FIRST->node);
	if (!instance_begin(FIRST, "runtime", 256 * MIB))
		return -1;
	pid = spawn("runtime", what, node);
	*pidfd = syscall(SYS_pidfd_open, pid, 0);
	/* For those who adopt. */
	fcntl(*pidfd, F_SETFD, 0);
	check(*pidfd >= 0 && await_stop(pid, 20));
	return pid;
}

static pid_t spawn_with(const char *cgroup, const char *what, int pidfd)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", pidfd);
	return spawn(cgroup, what, number);
}

static int run_with(const char *cgroup, const char *what, int pidfd)
{
	return await_exit(spawn_with(cgroup, what, pidfd), 20);
}

void test_adoption(void)
{
	long before, after;
	int pidfd, i;
	pid_t pid, adopters[4];

	pid = begin("runtime", &pidfd);
	if (pid < 0)
		return;
	check_is(ioctl(pidfd, PIDFD_AWAIT_ADOPTION, 0), 0);
	resume(pid);
	before = allocated(FIRST);
	for (i = 0; i < 20; i++) {
		if (!instance_begin(SECOND, "instance", 256 * MIB))
			break;
		check_is(run_with("instance", "adopt", pidfd), 0);
		instance_end(SECOND, "instance", 5);
		check(!strcmp(state_of(SECOND), "parked"));
		/* A signal is handled, and no reason not to be adopted. */
		if (i % 4 == 0)
			kill(pid, SIGUSR1);
	}

	/* Several at once. */
	if (instance_begin(SECOND, "instance", 256 * MIB)) {
		for (i = 0; i < 4; i++)
			adopters[i] = spawn_with("instance", "adopt", pidfd);
		for (i = 0; i < 4; i++)
			check_is(await_exit(adopters[i], 20), 0);
		instance_end(SECOND, "instance", 5);
	}
	after = allocated(FIRST);
	note("the runtime's node has %ld pages, and had %ld before 24 forks", after, before);
	check_most(after - before, 64);
	check_is(kill(pid, 0), 0);
	cgroup_kill("runtime");
	await_exit(pid, 10);
	close(pidfd);
	instance_end(FIRST, "runtime", 5);
}

void test_adoption_refused(void)
{
	int pidfd;
	pid_t pid, waiting;

	pid = begin("runtime", &pidfd);
	if (pid < 0 || !instance_begin(SECOND, "instance", 256 * MIB))
		return;
	/* Nobody has it wait. */
	check_is(run_with("instance", "adopt", pidfd), 100 + EINVAL);
	check_is(run_with("instance", "have_wait_as_stranger", pidfd), 100 + EPERM);
	check_is(run_with("instance", "adopt", pidfd), 100 + EINVAL);
	check_is(ioctl(pidfd, PIDFD_AWAIT_ADOPTION, 0), 0);

	/* One that does not fork is waited for, until it ends. */
	waiting = spawn_with("instance", "adopt", pidfd);
	pause_ms(100);
	check_is(waitpid(waiting, NULL, WNOHANG), 0);
	resume(pid);
	check_is(await_exit(waiting, 20), 0);
	check_is(run_with("instance", "adopt_as_stranger", pidfd), 100 + EPERM);
	check_is(run_with("instance", "adopt_with_thread", pidfd), 100 + EINVAL);
	/* And that was no reason for the next one to fail. */
	check_is(run_with("instance", "adopt", pidfd), 0);
	kill(pid, SIGSTOP);
	check(await_stop(pid, 10));
	waiting = spawn_with("instance", "adopt", pidfd);
	pause_ms(100);
	cgroup_kill("runtime");
	await_exit(pid, 10);
	check_is(await_exit(waiting, 20), 100 + ESRCH);
	check_is(run_with("instance", "adopt", pidfd), 100 + ESRCH);
	close(pidfd);
	instance_end(FIRST, "runtime", 5);

	pid = begin("threaded_runtime", &pidfd);
	check_is(ioctl(pidfd, PIDFD_AWAIT_ADOPTION, 0), 0);
	resume(pid);
	check_is(await_exit(pid, 10), 0);
	close(pidfd);
	instance_end(FIRST, "runtime", 5);
	instance_end(SECOND, "instance", 5);
}

/* What fork() cannot share is the new process's from the start: so the runtime's partition does not grow. */
void test_adopted_pins(void)
{
	int pidfd;
	pid_t pid;

	pid = begin("pinned_runtime", &pidfd);
	if (pid < 0 || !instance_begin(SECOND, "instance", 256 * MIB))
		return;
	check_is(ioctl(pidfd, PIDFD_AWAIT_ADOPTION, 0), 0);
	resume(pid);
	check_is(run_with("instance", "adopt", pidfd), 0);
	check_is(await_exit(pid, 10), 0);
	close(pidfd);
	instance_end(FIRST, "runtime", 5);
	instance_end(SECOND, "instance", 5);
}
