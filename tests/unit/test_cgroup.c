// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cgroup.h"
#include "mounts.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* The hierarchy's root, and two cgroups of our own, one in the other. */
struct tree {
	int root;
	const char *cause; /* why there is none */
	char outer[64], inner[96]; /* below the root, without the slash in front */
	pid_t pids[2]; /* children: in outer, in inner */
};

static int write_pid(int root, const char *cgroup, pid_t pid)
{
	_cleanup_(closep) int fd = -1;
	char path[128];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = openat(root, path, O_WRONLY | O_CLOEXEC);
	return fd >= 0 && dprintf(fd, "%d", pid) > 0 ? 0 : -1;
}

static int setup(void **state)
{
	static struct tree tree;

	tree = (struct tree){ .root = -1 };
	*state = &tree;
	if (geteuid() != 0) {
		tree.cause = "not root";
		return 0;
	}
	tree.root = mounts_open_cgroup2();
	if (tree.root < 0) {
		tree.cause = "the root of the cgroup v2 hierarchy cannot be opened here";
		return 0;
	}
	snprintf(tree.outer, sizeof(tree.outer), "phasewatch-test-cgroup-%d", getpid());
	snprintf(tree.inner, sizeof(tree.inner), "%s/inner", tree.outer);
	if (mkdirat(tree.root, tree.outer, 0755) < 0 || mkdirat(tree.root, tree.inner, 0755) < 0)
		tree.cause = "no cgroup can be made here";
	return 0;
}

/* Children leave first: a cgroup that a dead one was in may be busy a moment longer. */
static int teardown(void **state)
{
	struct tree *tree = *state;
	int err = 0;

	for (size_t i = 0; i < ARRAY_SIZE(tree->pids); i++)
		if (tree->pids[i] > 0) {
			err |= write_pid(tree->root, ".", tree->pids[i]);
			kill(tree->pids[i], SIGKILL);
			waitpid(tree->pids[i], NULL, 0);
		}
	if (tree->root >= 0) {
		unlinkat(tree->root, tree->inner, AT_REMOVEDIR);
		unlinkat(tree->root, tree->outer, AT_REMOVEDIR);
		err |= faccessat(tree->root, tree->outer, F_OK, 0) == 0;
		close(tree->root);
	}
	return err;
}

static struct tree *usable(void **state)
{
	struct tree *tree = *state;

	if (tree->cause) {
		print_message("%s\n", tree->cause);
		skip();
	}
	return tree;
}

static uint64_t ino_of(const struct tree *tree, const char *path)
{
	struct stat st;

	assert_int_equal(fstatat(tree->root, path, &st, 0), 0);
	return st.st_ino;
}

static void check_find(const struct tree *tree, const char *slashes, const char *below)
{
	char path[PATH_MAX];
	uint64_t id = 0;

	snprintf(path, sizeof(path), "%s%s", slashes, below);
	assert_int_equal(cgroup_find(tree->root, path, &id), 0);
	assert_int_equal(id, ino_of(tree, below));
}

static void test_find_below_the_root(void **state)
{
	struct tree *tree = usable(state);
	uint64_t id = 0;

	check_find(tree, "/", tree->outer);
	check_find(tree, "/", tree->inner);
	check_find(tree, "", tree->inner);
	check_find(tree, "//", tree->inner);
	assert_int_equal(cgroup_find(tree->root, "/", &id), 0);
	assert_int_equal(id, ino_of(tree, "."));
}

/* Where a shell shows it. */
static void test_find_below_the_mount(void **state)
{
	struct tree *tree = usable(state);
	char link[64], mount[PATH_MAX] = "", slashes[PATH_MAX + 1];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", tree->root);
	assert_true(readlink(link, mount, sizeof(mount) - 1) > 0);
	if (strcmp(mount, "/") == 0) {
		print_message("no mount shows the root of the cgroup v2 hierarchy\n");
		skip();
	}
	snprintf(slashes, sizeof(slashes), "%s/", mount);
	check_find(tree, slashes, tree->outer);
	check_find(tree, slashes, tree->inner);
}

static void test_find_nothing(void **state)
{
	struct tree *tree = usable(state);
	char procs[128];
	uint64_t id = 42;

	snprintf(procs, sizeof(procs), "/%s/cgroup.procs", tree->outer);
	assert_int_equal(cgroup_find(tree->root, "/phasewatch-no-such-cgroup", &id), -ENOENT);
	assert_int_equal(cgroup_find(tree->root, "phasewatch-no-such-cgroup", &id), -ENOENT);
	/* a file there, not at the absolute path */
	assert_true(cgroup_find(tree->root, procs, &id) < 0);
	assert_int_equal(cgroup_find(tree->root, procs + 1, &id), -ENOTDIR);
	/* a directory, but of another file system */
	assert_int_equal(cgroup_find(tree->root, "/proc/self", &id), -ENOTDIR);
	assert_int_equal(id, 42);
}

static void check_path(const struct tree *tree, const char *below, const char *expected)
{
	_cleanup_(freep) char *path = cgroup_path(tree->root, ino_of(tree, below));

	assert_non_null(path);
	assert_string_equal(path, expected);
}

static void test_path(void **state)
{
	struct tree *tree = usable(state);
	char expected[128];

	check_path(tree, ".", "/");
	snprintf(expected, sizeof(expected), "/%s", tree->outer);
	check_path(tree, tree->outer, expected);
	snprintf(expected, sizeof(expected), "/%s", tree->inner);
	check_path(tree, tree->inner, expected);
}

static void test_removed(void **state)
{
	struct tree *tree = usable(state);
	uint64_t id = ino_of(tree, tree->inner), outer = ino_of(tree, tree->outer);
	pid_t *pids = NULL;
	size_t n = 42;

	assert_int_equal(cgroup_check(tree->root, id), 0);
	assert_int_equal(unlinkat(tree->root, tree->inner, AT_REMOVEDIR), 0);
	assert_int_equal(cgroup_check(tree->root, id), -ESRCH);
	assert_null(cgroup_path(tree->root, id));
	assert_int_equal(cgroup_pids(tree->root, id, &pids, &n), -ESRCH);
	assert_null(pids);
	assert_int_equal(n, 42);
	assert_int_equal(cgroup_check(tree->root, outer), 0);
	/* one of the same name is another one */
	assert_int_equal(mkdirat(tree->root, tree->inner, 0755), 0);
	assert_int_equal(cgroup_check(tree->root, id), -ESRCH);
}

/* The files in a cgroup have ids of the same kind. */
static void test_file_is_none(void **state)
{
	struct tree *tree = usable(state);
	pid_t *pids = NULL;
	char path[128];
	uint64_t id;
	size_t n;

	snprintf(path, sizeof(path), "%s/cgroup.procs", tree->outer);
	id = ino_of(tree, path);
	assert_int_equal(cgroup_check(tree->root, id), -ESRCH);
	assert_null(cgroup_path(tree->root, id));
	assert_int_equal(cgroup_pids(tree->root, id, &pids, &n), -ESRCH);
}

static void fork_into(struct tree *tree, size_t i, const char *cgroup)
{
	tree->pids[i] = fork();
	assert_true(tree->pids[i] >= 0);
	if (tree->pids[i] == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	assert_int_equal(write_pid(tree->root, cgroup, tree->pids[i]), 0);
}

/* The pids in it, as a sum: no two sets here have the same. */
static size_t count_pids(const struct tree *tree, const char *cgroup, pid_t *ret_sum)
{
	_cleanup_(freep) pid_t *pids = NULL;
	size_t n = 42;

	assert_int_equal(cgroup_pids(tree->root, ino_of(tree, cgroup), &pids, &n), 0);
	*ret_sum = 0;
	for (size_t i = 0; i < n; i++)
		*ret_sum += pids[i];
	return n;
}

static void test_pids(void **state)
{
	struct tree *tree = usable(state);
	pid_t sum;

	assert_int_equal(count_pids(tree, tree->outer, &sum), 0);
	fork_into(tree, 1, tree->inner);
	assert_int_equal(count_pids(tree, tree->inner, &sum), 1);
	assert_int_equal(sum, tree->pids[1]);
	assert_int_equal(count_pids(tree, tree->outer, &sum), 1);
	assert_int_equal(sum, tree->pids[1]);
	fork_into(tree, 0, tree->outer);
	assert_int_equal(count_pids(tree, tree->outer, &sum), 2);
	assert_int_equal(sum, tree->pids[0] + tree->pids[1]);
	assert_int_equal(count_pids(tree, tree->inner, &sum), 1);
	assert_int_equal(write_pid(tree->root, ".", tree->pids[1]), 0);
	assert_int_equal(count_pids(tree, tree->inner, &sum), 0);
	assert_int_equal(count_pids(tree, tree->outer, &sum), 1);
}

/* Of the root it is everybody, ourselves included. */
static void test_pids_of_the_root(void **state)
{
	struct tree *tree = usable(state);
	_cleanup_(freep) pid_t *pids = NULL;
	bool found = false;
	size_t n;

	assert_int_equal(cgroup_pids(tree->root, ino_of(tree, "."), &pids, &n), 0);
	for (size_t i = 0; i < n; i++)
		found |= pids[i] == getpid();
	assert_true(found);
}

#define IN_TREE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		IN_TREE(test_find_below_the_root),
		IN_TREE(test_find_below_the_mount),
		IN_TREE(test_find_nothing),
		IN_TREE(test_path),
		IN_TREE(test_removed),
		IN_TREE(test_file_is_none),
		IN_TREE(test_pids),
		IN_TREE(test_pids_of_the_root),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
