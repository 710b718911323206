// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "clock.h"
#include "mounts.h"
#include "proc.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* A child that does `prepare`, says so, and stays until it is ended. */
struct child {
	pid_t pid;
	int ready;
};

static struct child child_start(void (*prepare)(void *arg), void *arg)
{
	pid_t parent = getpid();
	struct child c;
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	c.pid = fork();
	assert_true(c.pid >= 0);
	if (c.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (prepare)
			prepare(arg);
		if ((!prepare && getppid() != parent) || write(fds[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	c.ready = fds[0];
	assert_int_equal(read(c.ready, &(char){ 0 }, 1), 1);
	return c;
}

static void child_end(struct child *c)
{
	kill(c->pid, SIGKILL);
	assert_int_equal(waitpid(c->pid, NULL, 0), c->pid);
	close(c->ready);
}

static uint64_t floor_unit(uint64_t ns)
{
	return ns / PW_START_UNIT_NS * PW_START_UNIT_NS;
}

static void test_self(void **state)
{
	struct proc_stat s;
	char comm[PW_COMM_LEN] = "";

	assert_int_equal(prctl(PR_GET_NAME, comm), 0);
	memset(&s, 0xa5, sizeof(s));
	assert_int_equal(proc_read(getpid(), &s), 0);
	assert_string_equal(s.comm, comm);
	assert_int_equal(s.ppid, getppid());
	assert_int_equal(s.uid, getuid());
	assert_int_equal(s.euid, geteuid());
}

static void test_start_time(void **state)
{
	uint64_t before = clock_boot_ns(), after;
	struct child c = child_start(NULL, NULL);
	struct proc_stat s;

	after = clock_boot_ns();
	assert_int_equal(proc_read(c.pid, &s), 0);
	assert_in_range(s.start_ns, floor_unit(before), after);
	assert_int_equal(s.start_ns % PW_START_UNIT_NS, 0);
	assert_int_equal(s.ppid, getpid());
	child_end(&c);
}

static void test_nobody(void **state)
{
	static const pid_t pids[] = { 0, -1, INT_MIN, INT_MAX, 4194305 };
	struct proc_stat s, before;

	memset(&s, 0xa5, sizeof(s));
	before = s;
	for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
		assert_int_equal(proc_read(pids[i], &s), -ESRCH);
		assert_memory_equal(&s, &before, sizeof(s));
	}
}

static void set_name(void *name)
{
	prctl(PR_SET_NAME, name);
}

/* The name is somebody else's text: what it looks like must not be taken for the next fields. */
static void test_hostile_names(void **state)
{
	static const char *const names[] = { "a b", "(", ")", "()", ")(", "x) R 1 2 3", ") Z 1 (",
		"a) S 1 1 1 (b", "))))", "((((", "\x1b[31mred", "\xff\xfe\x80", "", " ",
		"0123456789abcde", "a\tb", "%s%n" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct child c = child_start(set_name, (void *)names[i]);
		struct proc_stat s;

		assert_int_equal(proc_read(c.pid, &s), 0);
		assert_string_equal(s.comm, names[i]);
		assert_int_equal(s.ppid, getpid());
		assert_int_equal(s.uid, getuid());
		child_end(&c);
	}
}

/* /proc/PID/status escapes these, or else a name could pass for the next line of it. */
static void test_names_with_escapes(void **state)
{
	static const char *const names[] = { "a\nb", "\nUid: 0 0", "\\", "a\\nb",
		"\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n", "\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct child c = child_start(set_name, (void *)names[i]);
		struct proc_stat s;

		assert_int_equal(proc_read(c.pid, &s), 0);
		assert_int_equal(s.ppid, getpid());
		assert_int_equal(s.uid, getuid());
		assert_int_equal(s.euid, geteuid());
		assert_string_equal(s.comm, names[i]);
		child_end(&c);
	}
}

static void test_zombie_is_nobody(void **state)
{
	struct proc_stat s;
	siginfo_t info;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	assert_int_equal(waitid(P_PID, pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(proc_read(pid, &s), -ESRCH);
	assert_false(proc_descends(pid, getpid()));
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(proc_read(pid, &s), -ESRCH);
}

static void *stay(void *arg)
{
	if (write(*(int *)arg, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
	return NULL;
}

/* /proc shows it as a zombie as well, but its other threads go on serving. */
static void test_main_thread_ended(void **state)
{
	char path[64], line[512], process_state = 0;
	struct proc_stat s;
	int fds[2];
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pthread_create(&thread, NULL, stay, &fds[1]);
		pthread_exit(NULL);
	}
	assert_int_equal(read(fds[0], &(char){ 0 }, 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	while (process_state != 'Z') {
		FILE *f = fopen(path, "re");

		assert_non_null(f);
		assert_non_null(fgets(line, sizeof(line), f));
		fclose(f);
		assert_int_equal(sscanf(strrchr(line, ')'), ") %c", &process_state), 1);
	}
	assert_int_equal(proc_read(pid, &s), 0);
	assert_int_equal(s.ppid, getpid());
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(fds[0]);
	close(fds[1]);
}

static void set_user(void *arg)
{
	if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 0) < 0)
		_exit(1);
}

static void test_users(void **state)
{
	struct proc_stat s;
	struct child c;

	if (geteuid() != 0)
		skip();
	c = child_start(set_user, NULL);
	assert_int_equal(proc_read(c.pid, &s), 0);
	assert_int_equal(s.uid, 65534);
	assert_int_equal(s.euid, 65534);
	child_end(&c);
}

static void fork_deeper(void *arg)
{
	int *pids = arg; /* a pipe: each generation tells its pid */

	for (int depth = 0; depth < 5; depth++) {
		pid_t pid = fork();

		if (pid < 0)
			_exit(1);
		if (pid > 0)
			for (;;)
				pause();
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pid = getpid();
		if (write(*pids, &pid, sizeof(pid)) != sizeof(pid))
			_exit(1);
	}
}

static void test_descends(void **state)
{
	pid_t line[6]; /* of descent */
	int pids[2];
	struct child other = child_start(NULL, NULL), c;

	assert_int_equal(pipe2(pids, O_CLOEXEC), 0);
	c = child_start(fork_deeper, &pids[1]);
	line[0] = c.pid;
	for (int i = 1; i < 6; i++)
		assert_int_equal(read(pids[0], &line[i], sizeof(line[i])), sizeof(line[i]));
	for (int i = 0; i < 6; i++) {
		assert_true(proc_descends(line[i], getpid()));
		assert_true(proc_descends(line[i], getppid()));
		assert_false(proc_descends(getpid(), line[i]));
		assert_false(proc_descends(line[i], other.pid));
		assert_false(proc_descends(other.pid, line[i]));
		for (int k = 0; k < 6; k++)
			assert_int_equal(proc_descends(line[i], line[k]), k <= i);
	}
	child_end(&c);
	child_end(&other);
	close(pids[0]);
	close(pids[1]);
}

static void test_descends_from_nobody(void **state)
{
	assert_true(proc_descends(getpid(), getpid()));
	assert_true(proc_descends(getpid(), 1) || getppid() == 0);
	assert_false(proc_descends(getpid(), 0));
	assert_false(proc_descends(getpid(), -1));
	assert_false(proc_descends(0, 0));
	assert_false(proc_descends(-1, -1));
	assert_false(proc_descends(1, getpid()));
	assert_false(proc_descends(INT_MAX, 1));
}

/* ---- pid namespaces ---- */

static pid_t only_child(pid_t pid)
{
	_cleanup_(fclosep) FILE *f = NULL;
	char path[64];
	int child;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &child), 1);
	return child;
}

/* Its child is 1 in a pid namespace of its own, in more groups than fit in a page; 2 is its child. */
static void nest(void *arg)
{
	gid_t groups[2003];
	int ready[2];

	for (size_t i = 0; i < 2003; i++)
		groups[i] = 1000000 + i;
	if (setgroups(2003, groups) < 0 || unshare(CLONE_NEWPID) < 0 || pipe(ready) < 0)
		_exit(1);
	for (int i = 0; i < 2; i++) {
		if (fork() != 0)
			break;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (i == 1 && write(ready[1], "", 1) != 1)
			_exit(1);
	}
	if (getpid() == 1 || getpid() == 2)
		for (;;)
			pause();
	if (read(ready[0], &(char){ 0 }, 1) != 1)
		_exit(1);
}

static void assert_translated(pid_t pid, pid_t speaker, pid_t expected)
{
	pid_t got = -7;

	assert_int_equal(proc_translate(pid, speaker, &got), expected > 0 ? 0 : -ESRCH);
	assert_int_equal(got, expected > 0 ? expected : -7);
}

static void test_translate(void **state)
{
	struct child outer, other;
	pid_t one, two;

	if (geteuid() != 0)
		skip();
	/* both have a 1 and a 2 */
	other = child_start(nest, NULL);
	outer = child_start(nest, NULL);
	one = only_child(outer.pid);
	two = only_child(one);
	/* in our own namespace a pid is what it is, whoever has it */
	assert_translated(1, getpid(), 1);
	assert_translated(4194304, outer.pid, 4194304);
	assert_translated(1, one, one);
	assert_translated(1, two, one);
	assert_translated(2, one, two);
	assert_translated(2, two, two);
	assert_translated(3, two, -1);
	assert_translated(outer.pid, one, -1);
	assert_translated(one, one, -1);
	assert_translated(1, 4194304, -1);

	assert_int_equal(proc_parent(outer.pid), getpid());
	assert_int_equal(proc_parent(two), one);
	assert_int_equal(proc_parent(one), 0); /* who put it there is no part of it */
	assert_int_equal(proc_parent(1), 0);
	assert_int_equal(proc_parent(4194304), 0);
	kill(one, SIGKILL);
	child_end(&outer);
	kill(only_child(other.pid), SIGKILL);
	child_end(&other);
}

static void test_orphan_has_no_parent(void **state)
{
	struct proc_stat s;
	int out[2];
	pid_t pid;

	assert_int_equal(pipe(out), 0);
	if (fork() == 0) {
		pid = fork();
		while (pid == 0)
			pause();
		_exit(write(out[1], &pid, sizeof(pid)) != sizeof(pid));
	}
	assert_int_equal(read(out[0], &pid, sizeof(pid)), sizeof(pid));
	wait(NULL);
	assert_int_equal(proc_read(pid, &s), 0);
	/* or whoever adopts orphans here */
	assert_int_equal(proc_parent(pid), s.ppid == 1 ? 0 : s.ppid);
	kill(pid, SIGKILL);
	close(out[0]);
	close(out[1]);
}

/* ---- names ---- */

static int names_set_up(void **state)
{
	return proc_names_new((struct proc_names **)state);
}

static int names_tear_down(void **state)
{
	proc_names_free(*state);
	return 0;
}

static struct pw_process process_of(pid_t pid)
{
	struct proc_stat s;

	assert_int_equal(proc_read(pid, &s), 0);
	return (struct pw_process){ .pid = pid, .ppid = s.ppid, .start_ns = s.start_ns };
}

static void own_exe(char path[static PATH_MAX])
{
	ssize_t len = readlink("/proc/self/exe", path, PATH_MAX - 1);

	assert_true(len > 0);
	path[len] = '\0';
}

static void test_exe(void **state)
{
	struct proc_names *n = *state;
	struct pw_process self = process_of(getpid());
	char path[PATH_MAX];

	own_exe(path);
	assert_string_equal(proc_names_exe(n, &self), path);
	/* the kernel's start time is finer than that of /proc */
	self.start_ns += PW_START_UNIT_NS - 1;
	assert_string_equal(proc_names_exe(n, &self), path);
}

static void test_exe_outlives_its_process(void **state)
{
	struct proc_names *n = *state;
	struct child c = child_start(NULL, NULL);
	struct pw_process p = process_of(c.pid);
	char path[PATH_MAX];

	own_exe(path);
	assert_string_equal(proc_names_exe(n, &p), path);
	child_end(&c);
	assert_string_equal(proc_names_exe(n, &p), path);
}

static void test_exe_of_nobody(void **state)
{
	struct proc_names *n = *state;
	struct child c = child_start(NULL, NULL);
	struct pw_process p = process_of(c.pid);

	child_end(&c);
	assert_null(proc_names_exe(n, &p));
}

/* Whoever has the pid now started at another time. */
static void test_exe_of_a_reused_pid(void **state)
{
	struct proc_names *n = *state;
	struct pw_process self = process_of(getpid()), earlier = self, later = self;

	earlier.start_ns -= PW_START_UNIT_NS;
	later.start_ns += PW_START_UNIT_NS;
	assert_null(proc_names_exe(n, &earlier));
	assert_non_null(proc_names_exe(n, &self));
	assert_null(proc_names_exe(n, &later));
	assert_non_null(proc_names_exe(n, &self));
}

/* A slot for each of 4096 pids: who is pushed out is read again, or is not known. */
static void test_exe_slots_collide(void **state)
{
	struct proc_names *n = *state;
	struct pw_process self = process_of(getpid()), other = self;
	char path[PATH_MAX];

	own_exe(path);
	other.pid = self.pid + 4096;
	assert_string_equal(proc_names_exe(n, &self), path);
	assert_null(proc_names_exe(n, &other));
	assert_string_equal(proc_names_exe(n, &self), path);
}

/* Pids are taken from records: the largest ones are as good as any. */
static void test_exe_of_huge_pids(void **state)
{
	static const uint32_t pids[] = { 0, INT_MAX, 0x80000000, 0x80000001, UINT32_MAX };
	struct proc_names *n = *state;

	for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
		struct pw_process p = { .pid = pids[i], .ppid = pids[i], .start_ns = 1 };

		assert_null(proc_names_exe(n, &p));
		proc_names_executed(n, &p);
		proc_names_forked(n, &p);
		assert_null(proc_names_exe(n, &p));
	}
}

static void test_forked_child_runs_its_parents_program(void **state)
{
	struct proc_names *n = *state;
	struct pw_process self = process_of(getpid()), gone = { 0 };
	char path[PATH_MAX];
	struct child c;

	own_exe(path);
	/* known by its parent's name, without a look at the child */
	assert_string_equal(proc_names_exe(n, &self), path);
	c = child_start(NULL, NULL);
	gone = process_of(c.pid);
	child_end(&c);
	proc_names_forked(n, &gone);
	assert_string_equal(proc_names_exe(n, &gone), path);

	/* not by that of one which had the parent's pid and started after the child */
	gone.start_ns = self.start_ns - PW_START_UNIT_NS;
	proc_names_forked(n, &gone);
	assert_null(proc_names_exe(n, &gone));
}

static void execute(void *arg)
{
	int *ready = arg;
	char byte;

	if (read(*ready, &byte, 1) == 1)
		execl("/bin/sleep", "sleep", "1000", NULL);
	_exit(1);
}

static void test_executed(void **state)
{
	struct proc_names *n = *state;
	char path[PATH_MAX], sleep_path[PATH_MAX];
	struct pw_process p;
	int go[2];
	pid_t pid;

	own_exe(path);
	assert_non_null(realpath("/bin/sleep", sleep_path));
	assert_int_equal(pipe(go), 0);
	assert_int_equal(fcntl(go[1], F_SETFD, FD_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execute(&go[0]);
	}
	p = process_of(pid);
	assert_string_equal(proc_names_exe(n, &p), path);
	assert_int_equal(write(go[1], "", 1), 1);
	/* the new program's name, as soon as it has one */
	for (const char *exe = path; !exe || strcmp(exe, path) == 0;) {
		proc_names_executed(n, &p);
		exe = proc_names_exe(n, &p);
	}
	assert_string_equal(proc_names_exe(n, &p), sleep_path);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(go[0]);
	close(go[1]);
}

/* ---- cgroups ---- */

/* The id is the inode number. 0: no cgroup file system that we may use. */
static uint64_t cgroup_id(int root, const char *name)
{
	struct stat st;

	return fstatat(root, name, &st, 0) == 0 ? st.st_ino : 0;
}

static void test_cgroup(void **state)
{
	static const char name[] = "phasewatch-test-proc \xc3\xa4";
	struct proc_names *n = *state;
	_cleanup_(closep) int root = mounts_open_cgroup2();
	char path[64];
	uint64_t id;

	if (root < 0 || (mkdirat(root, name, 0755) < 0 && errno != EEXIST))
		skip();
	id = cgroup_id(root, name);
	snprintf(path, sizeof(path), "/%s", name);
	assert_string_equal(proc_names_cgroup(n, id), path);
	assert_string_equal(proc_names_cgroup(n, cgroup_id(root, ".")), "/");
	assert_string_equal(proc_names_cgroup(n, id), path);
	assert_int_equal(unlinkat(root, name, AT_REMOVEDIR), 0);
	assert_string_equal(proc_names_cgroup(n, id), path); /* remembered */
	assert_null(proc_names_cgroup(n, id + 512)); /* would have its place, but is none */
	assert_null(proc_names_cgroup(n, id)); /* pushed out, and gone */
}

static void test_cgroup_of_nobody(void **state)
{
	static const uint64_t ids[] = { 0, UINT64_MAX, INT64_MAX, 1ULL << 32, 0x123456789abcdef0 };
	struct proc_names *n = *state;

	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		assert_null(proc_names_cgroup(n, ids[i]));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_self),
		cmocka_unit_test(test_start_time),
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_hostile_names),
		cmocka_unit_test(test_names_with_escapes),
		cmocka_unit_test(test_zombie_is_nobody),
		cmocka_unit_test(test_main_thread_ended),
		cmocka_unit_test(test_users),
		cmocka_unit_test(test_descends),
		cmocka_unit_test(test_descends_from_nobody),
		cmocka_unit_test(test_translate),
		cmocka_unit_test(test_orphan_has_no_parent),
		cmocka_unit_test_setup_teardown(test_exe, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_exe_outlives_its_process, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(test_exe_of_nobody, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_exe_of_a_reused_pid, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_exe_slots_collide, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_exe_of_huge_pids, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_forked_child_runs_its_parents_program, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(test_executed, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(test_cgroup, names_set_up, names_tear_down),
		cmocka_unit_test_setup_teardown(
			test_cgroup_of_nobody, names_set_up, names_tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
