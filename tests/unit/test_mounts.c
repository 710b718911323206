// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>

#include "mounts.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define SKIPPED 77

/* In a child with mounts of its own: what it does there, nobody else sees. */
static void in_own_mounts(int (*fn)(void))
{
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (unshare(CLONE_NEWNS) < 0 ||
			mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
			_exit(SKIPPED);
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == SKIPPED)
		skip();
	/* the number of the check that did not hold */
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* The hierarchy's root: of cgroup2, with the inode number that only the root has. */
static bool is_root(int fd)
{
	struct statfs fs;
	struct stat st;

	return fstatfs(fd, &fs) == 0 && (unsigned long)fs.f_type == CGROUP2_SUPER_MAGIC &&
	       fstat(fd, &st) == 0 && st.st_ino == 1 && fcntl(fd, F_GETFD) == FD_CLOEXEC;
}

static void test_cgroup2(void **state)
{
	int fd = mounts_open_cgroup2();

	if (fd == -EPERM)
		skip(); /* nothing mounted that we may see */
	assert_true(fd >= 0);
	assert_true(is_root(fd));
	close(fd);
}

/* Returns how many there are. */
static int unmount_all(const char *type)
{
	char device[256], dir[256], kind[64];
	int n = 0, found;

	do {
		FILE *f = fopen("/proc/self/mounts", "re");

		found = 0;
		while (f && fscanf(f, "%255s %255s %63s %*[^\n]", device, dir, kind) == 3)
			if (strcmp(kind, type) == 0) {
				found = umount2(dir, MNT_DETACH) == 0;
				break;
			}
		if (f)
			fclose(f);
		n += found;
	} while (found);
	return n;
}

static int cgroup2_not_mounted(void)
{
	int fd;

	unmount_all("cgroup2");
	fd = mounts_open_cgroup2();
	if (fd < 0)
		return 1;
	return is_root(fd) ? 0 : 2;
}

static void test_cgroup2_not_mounted(void **state)
{
	in_own_mounts(cgroup2_not_mounted);
}

/* As systemd's hybrid layout has it, or any other: found by type, and by a name with a space. */
static int cgroup2_elsewhere(void)
{
	char dir[] = "/tmp/phasewatch test XXXXXX";
	int fd, err = 0;

	unmount_all("cgroup2");
	if (!mkdtemp(dir))
		return SKIPPED;
	if (mount("none", dir, "cgroup2", 0, NULL) < 0)
		err = SKIPPED;
	if (!err) {
		fd = mounts_open_cgroup2();
		err = fd < 0 ? 1 : is_root(fd) ? 0 : 2;
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return err;
}

static void test_cgroup2_elsewhere(void **state)
{
	in_own_mounts(cgroup2_elsewhere);
}

/* Of v1 hierarchies, that with the name, and only its root. */
static int systemd_elsewhere(void)
{
	char dir[] = "/tmp/phasewatch test XXXXXX";
	struct statfs fs;
	struct stat st;
	int fd, err = 0;

	unmount_all("cgroup");
	if (mounts_open_systemd() != -ENOENT)
		return 1;
	if (!mkdtemp(dir))
		return SKIPPED;
	if (mount("none", dir, "cgroup", 0, "none,name=systemd") < 0)
		err = SKIPPED;
	if (!err) {
		fd = mounts_open_systemd();
		err = fd < 0 ? 2 :
		      fstatfs(fd, &fs) < 0 || (unsigned long)fs.f_type != CGROUP_SUPER_MAGIC ? 3 :
		      fstat(fd, &st) < 0 || st.st_ino != 1 || fcntl(fd, F_GETFD) != FD_CLOEXEC ? 4 :
												0;
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return err;
}

static void test_systemd_elsewhere(void **state)
{
	in_own_mounts(systemd_elsewhere);
}

/* A part of the hierarchy that is bound in front of the root is not taken for it. */
static int cgroup2_partly_bound(void)
{
	static const char name[] = "phasewatch-test-mounts";
	char dir[] = "/tmp/phasewatch-test-XXXXXX", part[64];
	int root = mounts_open_cgroup2(), fd, err = 0;

	if (root < 0 || !mkdtemp(dir))
		return SKIPPED;
	unmount_all("cgroup2");
	if ((mkdirat(root, name, 0755) < 0 && errno != EEXIST) ||
		mount("none", dir, "cgroup2", 0, NULL) < 0)
		return SKIPPED;
	snprintf(part, sizeof(part), "%s/%s", dir, name);
	/* on top of it: now no mount shows the root */
	if (mount(part, dir, NULL, MS_BIND, NULL) < 0)
		err = SKIPPED;
	if (!err) {
		fd = mounts_open_cgroup2();
		err = fd < 0 ? 1 : is_root(fd) ? 0 : 2;
	}
	unlinkat(root, name, AT_REMOVEDIR);
	umount2(dir, MNT_DETACH);
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	return err;
}

static void test_cgroup2_partly_bound(void **state)
{
	in_own_mounts(cgroup2_partly_bound);
}

/*
 * In a cgroup namespace every mount begins at the namespace's root. That is not the hierarchy's:
 * observing only that part, silently, is worse than an error.
 */
static int in_a_cgroup_namespace(void)
{
	static const char name[] = "phasewatch-test-namespace";
	int root = mounts_open_cgroup2(), fd, err = 0;
	char path[64];

	if (root < 0 || (mkdirat(root, name, 0755) < 0 && errno != EEXIST))
		return SKIPPED;
	snprintf(path, sizeof(path), "%s/cgroup.procs", name);
	fd = openat(root, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1 || unshare(CLONE_NEWCGROUP) < 0)
		err = SKIPPED;
	if (!err) {
		unmount_all("cgroup2");
		fd = mounts_open_cgroup2();
		err = fd < 0 || is_root(fd) ? 0 : 2;
	}
	fd = openat(root, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1 || unlinkat(root, name, AT_REMOVEDIR) < 0)
		return 3;
	return err;
}

static void test_in_a_cgroup_namespace(void **state)
{
	in_own_mounts(in_a_cgroup_namespace);
}

static bool is_bpffs(void)
{
	struct statfs fs;

	return statfs("/sys/fs/bpf", &fs) == 0 && (unsigned long)fs.f_type == BPF_FS_MAGIC;
}

static int bpffs_is_mounted_once(void)
{
	unmount_all("bpf");
	if (is_bpffs())
		return 1;
	if (mounts_ensure_bpffs() < 0)
		return 2;
	if (!is_bpffs())
		return 3;
	if (mounts_ensure_bpffs() < 0)
		return 4;
	return unmount_all("bpf") == 1 ? 0 : 5;
}

static void test_bpffs(void **state)
{
	in_own_mounts(bpffs_is_mounted_once);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cgroup2),
		cmocka_unit_test(test_cgroup2_not_mounted),
		cmocka_unit_test(test_cgroup2_elsewhere),
		cmocka_unit_test(test_systemd_elsewhere),
		cmocka_unit_test(test_cgroup2_partly_bound),
		cmocka_unit_test(test_in_a_cgroup_namespace),
		cmocka_unit_test(test_bpffs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
