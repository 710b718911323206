// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "opts.h"
#include "proc.h"
#include "select.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define WHY 1024
#define NOBODY 65534
#define UNTOUCHED 42

/* Ids that differ late, early and not in the first 12. */
#define A "71a193a95a32285cac76aaf63063a55d057aa8dce87a9ebc50eea32e29066dc4"
#define B "71a193a95a32285cac76aaf63063a55d057aa8dce87a9ebc50eea32e29066dc5"
#define C "71a2f3a95a32285cac76aaf63063a55d057aa8dce87a9ebc50eea32e29066dc4"
#define D "00e4c3d1f2a5968778695a4b3c2d1e0f00e4c3d1f2a5968778695a4b3c2d1e0f"

#define UID "8f2e6c1a-0b3d-4e5f-9a7b-1c2d3e4f5a6b"
#define UID_ "8f2e6c1a_0b3d_4e5f_9a7b_1c2d3e4f5a6b"
#define UID2 "0d1c2b3a-4f5e-4d6c-8b7a-9f8e7d6c5b4a"
#define UID2_ "0d1c2b3a_4f5e_4d6c_8b7a_9f8e7d6c5b4a"
#define STATIC_UID "5f0b6a3c1d2e4f50617283940a5b6c7d" /* of a static pod: a hash */

struct tree {
	char dir[32], logs[40];
	int top, v2, v1;
	char why[WHY];
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int setup(void **state)
{
	static struct tree t;

	/* in memory: thousands of directories take a slow disk a minute */
	t = (struct tree){ .dir = "/dev/shm/phasewatch-test-XXXXXX" };
	*state = &t;
	if (!mkdtemp(t.dir))
		return -1;
	snprintf(t.logs, sizeof(t.logs), "%s/logs", t.dir);
	t.top = open(t.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t.top < 0 || mkdirat(t.top, "v2", 0755) < 0 || mkdirat(t.top, "v1", 0755) < 0 ||
		mkdirat(t.top, "logs", 0755) < 0)
		return -1;
	t.v2 = openat(t.top, "v2", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	t.v1 = openat(t.top, "v1", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return t.v2 < 0 || t.v1 < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	struct tree *t = *state;

	close(t->v1);
	close(t->v2);
	close(t->top);
	return nftw(t->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* With what is around it. Returns its inode number, which is a cgroup's id. */
static uint64_t make_in(int root, const char *path)
{
	char part[PATH_MAX];
	struct stat st;

	for (const char *end = path; *end; end++)
		if (end[1] == '/' || !end[1]) {
			snprintf(part, sizeof(part), "%.*s", (int)(end + 1 - path), path);
			assert_true(mkdirat(root, part, 0755) == 0 || errno == EEXIST);
		}
	assert_int_equal(fstatat(root, path, &st, 0), 0);
	return st.st_ino;
}

static uint64_t make(struct tree *t, const char *path)
{
	return make_in(t->v2, path);
}

static void make_log(struct tree *t, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "logs/%s", name);
	make_in(t->top, path);
}

static int find(struct tree *t, enum select_by by, const char *what, uint64_t *ret_id)
{
	struct select_roots roots = { t->v2, -1, t->logs };

	t->why[0] = '\0';
	return select_cgroup(&roots, by, what, ret_id, t->why, sizeof(t->why));
}

static void check_found(struct tree *t, enum select_by by, const char *what, uint64_t id)
{
	uint64_t found = UNTOUCHED;

	if (find(t, by, what, &found))
		fail_msg("%s: %s", what, t->why);
	assert_int_equal(found, id);
}

/* Not found, and `why` is this sentence. */
static void check_refused(
	struct tree *t, enum select_by by, const char *what, int err, const char *why)
{
	uint64_t found = UNTOUCHED;

	assert_int_equal(find(t, by, what, &found), err);
	assert_int_equal(found, UNTOUCHED);
	assert_string_equal(t->why, why);
}

/* ---- units ---- */

static void test_units(void **state)
{
	static const struct {
		const char *path, *names[3];
	} units[] = {
		{ "system.slice/nginx.service", { "nginx", "nginx.service" } },
		{ "system.slice/system-getty.slice/getty@tty1.service", { "getty@tty1" } },
		{ "system.slice/web@a\\x2db.service", { "web@a\\x2db", "web@a\\x2db.service" } },
		{ "system.slice/web@a\\x20b.service", { "web@a b", "web@a b.service" } },
		{ "system.slice/dbus.socket", { "dbus.socket" } },
		{ "system.slice/var-lib.mount", { "var-lib.mount", "var/lib.mount" } },
		{ "system.slice/dotted.name.service", { "dotted.name" } },
		{ "system.slice/_cpu.service", { "cpu", "cpu.service" } },
		{ "system.slice/__x.service", { "_x" } },
		{ "init.scope", { "init.scope" } },
		{ "foo.slice/foo-bar.slice/foo-bar-baz.slice", { "foo-bar-baz.slice" } },
		{ "foo.slice/foo-bar.slice", { "foo-bar.slice" } },
		{ "user.slice/user-1000.slice/session-3.scope", { "session-3.scope" } },
		{ "user.slice/user-1000.slice/user@1000.service", { "user@1000" } },
		{ "user.slice/user-1000.slice/user@1000.service/app.slice/editor.service",
			{ "editor" } },
		{ "machine.slice/libpod-" A ".scope/container/system.slice/inner.service",
			{ "inner" } },
	};
	struct tree *t = *state;
	uint64_t ids[ARRAY_SIZE(units)];

	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		ids[i] = make(t, units[i].path);
	make(t, "system.slice/nginx.service/nginx");
	make(t, "system.slice/nginx");
	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		for (size_t j = 0; units[i].names[j]; j++)
			check_found(t, SELECT_UNIT, units[i].names[j], ids[i]);
}

/* What systemctl without --user shows. */
static void test_the_systems_unit_comes_first(void **state)
{
	struct tree *t = *state;
	uint64_t system;

	make(t, "docker/" A "/system.slice/nginx.service");
	system = make(t, "m.slice/nginx.service");
	for (int i = 0; i < 17; i++) { /* in whatever order directories are read */
		char path[64];

		snprintf(path, sizeof(path), "u%d.slice/user@%d.service/app.slice/nginx.service", i, i);
		make(t, path);
	}
	check_found(t, SELECT_UNIT, "nginx", system);
}

static void test_units_of_several_users(void **state)
{
	struct tree *t = *state;
	uint64_t id = UNTOUCHED;

	make(t, "user.slice/user-7.slice/user@7.service/app.slice/editor.service");
	make(t, "user.slice/user-9.slice/user@9.service/app.slice/editor.service");
	assert_int_equal(find(t, SELECT_UNIT, "editor", &id), -ENOTUNIQ);
	assert_int_equal(id, UNTOUCHED);
	assert_non_null(strstr(t->why, "unit editor.service could be any of 2: /user.slice/"));
	assert_non_null(strstr(t->why, "/user@7.service/app.slice/editor.service"));
	assert_non_null(strstr(t->why, "/user@9.service/app.slice/editor.service"));
	assert_non_null(strstr(t->why, "; give its path"));
}

static void test_unit_names_that_cannot_be(void **state)
{
	struct tree *t = *state;
	char long_name[300];

	check_refused(t, SELECT_UNIT, "", -EINVAL,
		"no unit is called ; give its name, such as nginx or user-1000.slice");
	/* 255 bytes with the suffix; escaped, each is four */
	for (int escaped = 0; escaped < 2; escaped++)
		for (size_t len = 1; len < sizeof(long_name); len++) {
			uint64_t id = UNTOUCHED;
			size_t room = escaped ? 61 : 247;

			memset(long_name, escaped ? '\n' : 'x', len);
			long_name[len] = '\0';
			assert_int_equal(find(t, SELECT_UNIT, long_name, &id),
				len <= room ? -ESRCH : -EINVAL);
		}
}

/* ---- containers ---- */

static void test_containers(void **state)
{
	static const char *const paths[] = {
		/* containerd, under a kubelet with systemd, with cgroupfs, and where they differ */
		"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" UID_
		".slice/cri-containerd-%s.scope",
		"kubepods/burstable/pod" UID "/%s",
		"kubepods/pod" UID "/%s",
		"system.slice/containerd.service/kubepods-besteffort-pod" UID_
		".slice:cri-containerd:%s",
		/* CRI-O, and what crun puts into it */
		"kubepods.slice/kubepods-pod" UID_ ".slice/crio-%s.scope",
		"kubepods/besteffort/pod" UID "/crio-%s",
		/* Docker, and in a container of its own */
		"system.slice/docker-%s.scope",
		"docker/%s",
		"docker/" D "/docker/%s",
		"user.slice/user-1000.slice/user@1000.service/user.slice/docker-%s.scope",
		/* podman: alone, in a pod, as a unit */
		"machine.slice/libpod-%s.scope",
		"libpod_parent/libpod-%s",
		"machine.slice/machine-libpod_pod_" D ".slice/libpod-%s.scope",
		"libpod_parent/" D "/libpod-%s",
		"system.slice/web.service/libpod-payload-%s",
		/* nerdctl */
		"system.slice/nerdctl-%s.scope",
		"default/%s",
	};
	static const char *const beside[] = { "container", "supervisor", "init.scope" };
	struct tree *t = *state;

	make(t, "libpod_parent/conmon");
	make(t, "machine.slice/libpod-conmon-" A ".scope");
	make(t, "kubepods.slice/crio-conmon-" A ".scope");
	make(t, "system.slice/" A ".service"); /* podman's health checks */
	make(t, "system.slice/run-" A ".mount");
	make(t, "system.slice/0" A ".scope");
	make(t, "system.slice/docker-" A "0");
	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		char path[PATH_MAX], inner[PATH_MAX + 32];
		uint64_t id;

		snprintf(path, sizeof(path), paths[i], A);
		id = make(t, path);
		for (size_t j = 0; j < ARRAY_SIZE(beside); j++) {
			snprintf(inner, sizeof(inner), "%s/%s", path, beside[j]);
			make(t, inner);
		}
		check_found(t, SELECT_CONTAINER, A, id);
		check_found(t, SELECT_CONTAINER, "71a193a95a32", id);
		check_found(t, SELECT_CONTAINER, "71a1", id);
		check_found(t, SELECT_CONTAINER, "containerd://" A, id);
		for (size_t j = 0; j < ARRAY_SIZE(beside); j++) {
			snprintf(inner, sizeof(inner), "%s/%s", path, beside[j]);
			assert_int_equal(unlinkat(t->v2, inner, AT_REMOVEDIR), 0);
		}
		assert_int_equal(unlinkat(t->v2, path, AT_REMOVEDIR), 0);
	}
}

/* A runtime that is told to put its own part into the container's cgroup. */
static void test_container_in_itself(void **state)
{
	struct tree *t = *state;
	uint64_t outer = make(t, "machine.slice/libpod-" A ".scope");

	make(t, "machine.slice/libpod-" A ".scope/libpod-payload-" A);
	check_found(t, SELECT_CONTAINER, A, outer);
}

static void test_container_in_a_container(void **state)
{
	struct tree *t = *state;
	uint64_t outer = make(t, "docker/" A), inner = make(t, "docker/" A "/docker/" D);

	check_found(t, SELECT_CONTAINER, "71a1", outer);
	check_found(t, SELECT_CONTAINER, "00e4", inner);
}

static void test_containers_with_the_same_prefix(void **state)
{
	struct tree *t = *state;
	uint64_t a = make(t, "docker/" A), b = make(t, "docker/" B), c = make(t, "docker/" C);
	uint64_t id = UNTOUCHED;

	check_found(t, SELECT_CONTAINER, A, a);
	check_found(t, SELECT_CONTAINER, B, b);
	check_found(t, SELECT_CONTAINER, "71a2", c);
	assert_int_equal(find(t, SELECT_CONTAINER, "71a193a95a32", &id), -ENOTUNIQ);
	assert_int_equal(id, UNTOUCHED);
	assert_non_null(strstr(t->why, "container 71a193a95a32 could be any of 2: /docker/71a1"));
	assert_non_null(strstr(t->why, "/docker/" A));
	assert_non_null(strstr(t->why, "/docker/" B));
	assert_null(strstr(t->why, C));
	assert_non_null(strstr(t->why, "; give its path or more of its id"));
	assert_int_equal(find(t, SELECT_CONTAINER, "71a19", &id), -ENOTUNIQ);
	make(t, "elsewhere/" C);
	assert_int_equal(find(t, SELECT_CONTAINER, C, &id), -ENOTUNIQ);
}

static void test_container_ids_that_cannot_be(void **state)
{
	static const char *const ids[] = { "", "71a", "nginx", "71A193A95A32", "71a1 ", A "0",
		"docker-" A, "containerd://", "docker/" A };
	struct tree *t = *state;

	make(t, "docker/" A);
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		char why[WHY];

		snprintf(why, sizeof(why),
			"no container is called %s; give its id or the first hexadecimal digits of it, "
			"4 at least", ids[i]);
		check_refused(t, SELECT_CONTAINER, ids[i], -EINVAL, why);
	}
}

/* ---- pods ---- */

static void test_pods(void **state)
{
	static const char *const paths[] = {
		"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" UID_ ".slice",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" UID_ ".slice",
		"kubepods.slice/kubepods-pod" UID_ ".slice",
		"kubepods/burstable/pod" UID,
		"kubepods/besteffort/pod" UID,
		"kubepods/pod" UID,
		/* --cgroup-root, as in kind's nodes */
		"docker/" D "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" UID_ ".slice",
	};
	struct tree *t = *state;

	make_log(t, "shop_frontend-7d4b9c-x2x5z_" UID);
	make_log(t, "shop_frontend-7d4b9c-other_" UID2);
	make(t, "kubepods/burstable/pod" UID2);
	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		char inner[PATH_MAX];
		uint64_t id = make(t, paths[i]);

		snprintf(inner, sizeof(inner), "%s/" A, paths[i]);
		make(t, inner);
		check_found(t, SELECT_POD, "shop/frontend-7d4b9c-x2x5z", id);
		assert_int_equal(unlinkat(t->v2, inner, AT_REMOVEDIR), 0);
		assert_int_equal(unlinkat(t->v2, paths[i], AT_REMOVEDIR), 0);
	}
}

static void test_static_pods(void **state)
{
	struct tree *t = *state;
	uint64_t id = make(t, "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"
			      STATIC_UID ".slice");

	make_log(t, "kube-system_etcd-node-1.example_" STATIC_UID);
	check_found(t, SELECT_POD, "kube-system/etcd-node-1.example", id);
}

/* The kubelet leaves the logs of pods for a while, and a StatefulSet's all have one name. */
static void test_pods_that_were(void **state)
{
	struct tree *t = *state;
	uint64_t id = UNTOUCHED;

	make_log(t, "shop_db-0_" UID);
	check_refused(t, SELECT_POD, "shop/db-0", -ESRCH,
		"there is no pod shop/db-0 in cgroup v2, nor any other");
	make_log(t, "shop_db-0_" UID2);
	id = make(t, "kubepods/burstable/pod" UID2);
	check_found(t, SELECT_POD, "shop/db-0", id);
	/* forced out, and not gone yet */
	make(t, "kubepods/burstable/pod" UID);
	id = UNTOUCHED;
	assert_int_equal(find(t, SELECT_POD, "shop/db-0", &id), -ENOTUNIQ);
	assert_non_null(strstr(t->why, "/kubepods/burstable/pod" UID));
	assert_non_null(strstr(t->why, "/kubepods/burstable/pod" UID2));
}

static void test_pod_logs_that_are_none(void **state)
{
	struct tree *t = *state;
	uint64_t id = make(t, "kubepods/pod" UID);
	int fd;

	make_log(t, UID); /* as kubelets before 1.14 made them */
	make_log(t, "shop_frontend");
	make_log(t, "shop_frontend_");
	make_log(t, "shop_frontend_" UID "_" UID);
	make_log(t, "_");
	fd = openat(t->top, "logs/.hidden", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
	close(fd);
	make(t, "kubepods/pod");
	make(t, "kubepods-pod.slice");
	check_refused(t, SELECT_POD, "shop/frontend", -ESRCH,
		"there is no pod shop/frontend in cgroup v2, nor any other");
	make_log(t, "shop_frontend_" UID);
	check_found(t, SELECT_POD, "shop/frontend", id);
}

static void test_no_pod_logs(void **state)
{
	struct tree *t = *state;
	char why[WHY];

	assert_int_equal(rmdir(t->logs), 0);
	snprintf(why, sizeof(why),
		"pods are known by the kubelet's logs of them, and %s cannot be read: No such file or "
		"directory; 'run --pod-logs' says where they are", t->logs);
	check_refused(t, SELECT_POD, "shop/frontend", -ENOENT, why);
	assert_int_equal(mkdir(t->logs, 0755), 0);
}

static void test_pod_names_that_cannot_be(void **state)
{
	static const char *const names[] = { "", "frontend", "/", "shop/", "/frontend", "a/b/c",
		"shop_a/frontend", "shop/front_end" };
	struct tree *t = *state;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char why[WHY];

		snprintf(why, sizeof(why), "no pod is called %s; give NAMESPACE/NAME", names[i]);
		check_refused(t, SELECT_POD, names[i], -EINVAL, why);
	}
}

/* ---- what there is instead ---- */

static void test_nearest_units(void **state)
{
	struct tree *t = *state;

	check_refused(t, SELECT_UNIT, "web", -ESRCH,
		"there is no unit web.service in cgroup v2, nor any other");
	make(t, "system.slice/sshd.service");
	make(t, "system.slice/web-frontend.service");
	make(t, "system.slice/web@1.service");
	make(t, "system.slice/wep.service");
	make(t, "system.slice/systemd-journald.service");
	/* what has it in its name, by length; then by what is to be changed */
	check_refused(t, SELECT_UNIT, "web", -ESRCH,
		"there is no unit web.service in cgroup v2; the nearest of 6: web@1.service, "
		"web-frontend.service, wep.service, sshd.service, system.slice");
	for (int i = 0; i < 3; i++) { /* every user has one, and once is enough */
		char path[64];

		snprintf(path, sizeof(path), "u/user@%d.service/app.slice/web2.service", i);
		make(t, path);
	}
	check_refused(t, SELECT_UNIT, "web", -ESRCH,
		"there is no unit web.service in cgroup v2; the nearest of 15: web2.service, "
		"web@1.service, web-frontend.service, wep.service, sshd.service");
}

static void test_nearest_containers(void **state)
{
	struct tree *t = *state;

	make(t, "docker/" D);
	make(t, "docker/" A);
	make(t, "docker/" C);
	check_refused(t, SELECT_CONTAINER, "71a193a95a33", -ESRCH,
		"there is no container 71a193a95a33 in cgroup v2; the nearest of 3: 71a193a95a32, "
		"71a2f3a95a32, 00e4c3d1f2a5");
}

static void test_nearest_pods(void **state)
{
	struct tree *t = *state;

	make_log(t, "shop_frontend-7d4b9c-x2x5z_" UID);
	make_log(t, "shop_db-0_" UID2);
	make_log(t, "shop_frontend-gone_" STATIC_UID);
	make(t, "kubepods/pod" UID);
	make(t, "kubepods/pod" UID2);
	check_refused(t, SELECT_POD, "shop/frontend", -ESRCH,
		"there is no pod shop/frontend in cgroup v2; the nearest of 2: "
		"shop/frontend-7d4b9c-x2x5z, shop/db-0");
	check_refused(t, SELECT_POD, "shop/db-1", -ESRCH,
		"there is no pod shop/db-1 in cgroup v2; the nearest of 2: shop/db-0, "
		"shop/frontend-7d4b9c-x2x5z");
}

/* Names are as long as they may be, and of any bytes; the sentence is no longer than its buffer. */
static void test_hostile_names(void **state)
{
	struct tree *t = *state;
	struct select_roots roots = { t->v2, -1, t->logs };
	char name[NAME_MAX + 1], why[WHY + 1];
	uint64_t id = UNTOUCHED;

	for (int i = 1; i < 8; i++) {
		memset(name, i == 3 ? '%' : i == 5 ? '\xff' : i, NAME_MAX - 8);
		strcpy(name + NAME_MAX - 8, ".service");
		make(t, name);
	}
	for (size_t len = 1; len <= WHY; len++) {
		memset(why, '#', sizeof(why));
		assert_int_equal(select_cgroup(&roots, SELECT_UNIT, "nginx", &id, why, len), -ESRCH);
		assert_true(strlen(why) < len);
		assert_int_equal(why[len], '#');
	}
	assert_int_equal(id, UNTOUCHED);
	/* whole names only */
	assert_true(strstr(why, "the nearest of 7: ") && strlen(why) < 640);
	assert_memory_equal(why + strlen(why) - 8, ".service", 8);
}

/* ---- limits ---- */

static void test_symbolic_links(void **state)
{
	struct tree *t = *state;

	make_in(t->v1, "elsewhere.slice/nginx.service");
	assert_int_equal(symlinkat("../v1/elsewhere.slice", t->v2, "system.slice"), 0);
	assert_int_equal(symlinkat("../v1/elsewhere.slice/nginx.service", t->v2, "nginx.service"), 0);
	assert_int_equal(symlinkat(".", t->v2, "loop.slice"), 0);
	check_refused(t, SELECT_UNIT, "nginx", -ESRCH,
		"there is no unit nginx.service in cgroup v2, nor any other");
}

static void test_depth(void **state)
{
	struct tree *t = *state;
	char path[128] = "";
	uint64_t id;

	for (int i = 0; i < 32; i++)
		strcat(path, "a/");
	strcat(path, "in.service");
	id = make(t, path);
	check_found(t, SELECT_UNIT, "in", id);
	strcat(path, "/beyond.service");
	make(t, path);
	check_refused(t, SELECT_UNIT, "beyond", -ESRCH,
		"there is no unit beyond.service in cgroup v2; the nearest of 1: in.service");
}

static void make_many(int root, const char *parent, int n)
{
	char name[64];

	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "%s/%d", parent, i);
		assert_int_equal(mkdirat(root, name, 0755), 0);
	}
}

static void test_too_many(void **state)
{
	struct tree *t = *state;
	uint64_t id = make(t, "system.slice/nginx.service");

	make(t, "many");
	make_many(t->v2, "many", 16384 - 3);
	check_found(t, SELECT_UNIT, "nginx", id);
	make(t, "one-more");
	check_refused(t, SELECT_UNIT, "nginx", -E2BIG,
		"there are more than 16384 cgroups, too many to look for unit nginx.service; give its "
		"path");
}

static void test_no_descriptors(void **state)
{
	struct tree *t = *state;
	struct rlimit before, few;
	uint64_t id = UNTOUCHED;
	int err, next = dup(t->v2);

	make(t, "a/b/c/d/nginx.service");
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = (struct rlimit){ next + 3, before.rlim_max };
	close(next);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	err = find(t, SELECT_UNIT, "nginx", &id);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(err, -EMFILE);
	assert_int_equal(id, UNTOUCHED);
}

/* ---- other users' ---- */

static void give(struct tree *t, const char *path)
{
	if (geteuid() != 0)
		skip();
	assert_int_equal(fchownat(t->v2, path, NOBODY, NOBODY, 0), 0);
}

/* Whoever may make cgroups can call them anything. */
static void test_roots_come_first(void **state)
{
	struct tree *t = *state;
	uint64_t roots;

	make(t, "user@7.service/docker/" A);
	give(t, "user@7.service");
	roots = make(t, "docker/" A);
	give(t, "docker/" A); /* a container with user ids of its own: who made it counts */
	check_found(t, SELECT_CONTAINER, A, roots);
	make(t, "user@7.service/many");
	make_many(t->v2, "user@7.service/many", 16384);
	check_found(t, SELECT_CONTAINER, A, roots);
}

static void test_of_users_only(void **state)
{
	struct tree *t = *state;
	uint64_t id = make(t, "user@7.service/user.slice/libpod-" A ".scope");

	make(t, "docker/" D);
	give(t, "user@7.service");
	check_found(t, SELECT_CONTAINER, "71a1", id);
	check_refused(t, SELECT_CONTAINER, "71a2", -ESRCH,
		"there is no container 71a2 in cgroup v2; the nearest of 2: 71a193a95a32, 00e4c3d1f2a5");
}

/* ---- what only v1 has ---- */

static pid_t start_child(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static uint64_t start_of(pid_t pid)
{
	struct proc_stat stat;

	assert_int_equal(proc_read(pid, &stat), 0);
	return stat.start_ns;
}

static void write_procs(int root, const char *path, pid_t a, pid_t b)
{
	int fd = openat(root, path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_true(dprintf(fd, "%d\n%d\n%d\n", a, PID_MAX, b) > 0);
	close(fd);
}

static void check_v1(struct tree *t, int v2, const char *why)
{
	struct select_roots roots = { v2, t->v1, t->logs };
	uint64_t id = UNTOUCHED;

	assert_int_equal(
		select_cgroup(&roots, SELECT_UNIT, "nginx", &id, t->why, sizeof(t->why)), -ESRCH);
	assert_int_equal(id, UNTOUCHED);
	assert_string_equal(t->why, why);
}

static void test_only_in_v1(void **state)
{
	struct tree *t = *state;
	pid_t older = getpid(), younger;
	char why[WHY];

	check_v1(t, t->v2, "there is no unit nginx.service in cgroup v2, nor any other");
	check_v1(t, -ENOENT, "no unit nginx.service: there is no cgroup v2 here");
	make(t, "system.slice/cron.service");
	make_in(t->v1, "system.slice/nginx.service");
	check_v1(t, t->v2,
		"unit nginx.service is not in cgroup v2, only in systemd's v1 hierarchy, at "
		"/system.slice/nginx.service");

	/* /proc counts in 10 ms */
	while (start_of(younger = start_child()) == start_of(older))
		end_child(younger);
	snprintf(why, sizeof(why),
		"unit nginx.service is not in cgroup v2, only in systemd's v1 hierarchy, at "
		"/system.slice/nginx.service; declare for its main process instead: --pid %d", older);
	for (int i = 0; i < 2; i++) {
		write_procs(t->v1, "system.slice/nginx.service/cgroup.procs", i ? older : younger,
			i ? younger : older);
		check_v1(t, t->v2, why);
		check_v1(t, -ENOENT, why);
	}
	end_child(younger);
	/* v2 has it as well */
	make(t, "system.slice/nginx.service");
	check_found(t, SELECT_UNIT, "nginx", make(t, "system.slice/nginx.service"));
}

/* ---- names ---- */

static void test_names(void **state)
{
	static const struct {
		const char *path, *name;
	} names[] = {
		{ "/", "/" },
		{ "/system.slice/nginx.service", "nginx" },
		{ "/system.slice/web@a\\x2db.service", "web@a\\x2db" },
		{ "/system.slice/_cpu.service", "cpu" },
		{ "/user.slice/user-1000.slice", "user-1000" },
		{ "/init.scope", "init" },
		{ "/system.slice/nginx.service/worker", "worker" },
		{ "/docker/" A, "71a193a95a32" },
		{ "/system.slice/docker-" A ".scope", "71a193a95a32" },
		{ "/machine.slice/libpod-conmon-" A ".scope", "libpod-conmon-" A },
		{ "/kubepods/burstable/pod" UID, "frontend-7d4b9c-x2x5z" },
		{ "/kubepods.slice/kubepods-pod" UID_ ".slice", "frontend-7d4b9c-x2x5z" },
		{ "/kubepods.slice/kubepods-pod" UID2_ ".slice", "kubepods-pod" UID2_ },
		{ "/kubepods/pod" UID2, "pod" UID2 },
		{ "/kubepods/burstable", "burstable" },
		{ "/any thing", "any thing" },
	};
	struct tree *t = *state;
	char name[128], long_name[2 * NAME_MAX];

	make_log(t, "shop_frontend-7d4b9c-x2x5z_" UID);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		select_name(names[i].path, t->logs, name, sizeof(name));
		assert_string_equal(name, names[i].name);
	}
	/* more than a directory can be called, and a name that is cut */
	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	select_name(long_name, t->logs, name, sizeof(name));
	assert_int_equal(strlen(name), sizeof(name) - 1);
	select_name("/system.slice/nginx.service", "/nowhere", name, 4);
	assert_string_equal(name, "ngi");
}

#define IN_TREE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		IN_TREE(test_units),
		IN_TREE(test_the_systems_unit_comes_first),
		IN_TREE(test_units_of_several_users),
		IN_TREE(test_unit_names_that_cannot_be),
		IN_TREE(test_containers),
		IN_TREE(test_container_in_itself),
		IN_TREE(test_container_in_a_container),
		IN_TREE(test_containers_with_the_same_prefix),
		IN_TREE(test_container_ids_that_cannot_be),
		IN_TREE(test_pods),
		IN_TREE(test_static_pods),
		IN_TREE(test_pods_that_were),
		IN_TREE(test_pod_logs_that_are_none),
		IN_TREE(test_no_pod_logs),
		IN_TREE(test_pod_names_that_cannot_be),
		IN_TREE(test_nearest_units),
		IN_TREE(test_nearest_containers),
		IN_TREE(test_nearest_pods),
		IN_TREE(test_hostile_names),
		IN_TREE(test_symbolic_links),
		IN_TREE(test_depth),
		IN_TREE(test_too_many),
		IN_TREE(test_no_descriptors),
		IN_TREE(test_roots_come_first),
		IN_TREE(test_of_users_only),
		IN_TREE(test_only_in_v1),
		IN_TREE(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
