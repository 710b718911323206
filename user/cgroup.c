// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <linux/magic.h>

#include "cgroup.h"
#include "util.h"

#define MAX_DEPTH 64

int cgroup_find(int root, const char *path, uint64_t *ret_id)
{
	_cleanup_(closep) int fd = -1;
	const char *below = path;
	struct statfs fs;
	struct stat st;

	while (*below == '/')
		below++;
	fd = openat(root, *below ? below : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && *path == '/')
		fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
		return -errno;
	if ((unsigned long)fs.f_type != CGROUP2_SUPER_MAGIC)
		return -ENOTDIR;
	*ret_id = st.st_ino;
	return 0;
}

static int open_by_id(int root, uint64_t id, int flags)
{
	struct {
		struct file_handle handle;
		uint64_t id;
	} h = { .handle = { .handle_bytes = sizeof(id), .handle_type = 0xfe /* FILEID_KERNFS */ },
		.id = id };
	int fd = open_by_handle_at(root, &h.handle, flags | O_DIRECTORY | O_CLOEXEC);

	/* the files in them have such ids, too */
	return fd >= 0 ? fd : errno == ESTALE || errno == ENOTDIR ? -ESRCH : -errno;
}

static ssize_t path_of(int fd, char *buf, size_t size)
{
	char link[64];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, buf, size - 1);
	if (len >= 0)
		buf[len] = '\0';
	return len;
}

char *cgroup_path(int root, uint64_t id)
{
	_cleanup_(closep) int fd = open_by_id(root, id, O_PATH);
	char path[PATH_MAX], top[PATH_MAX];
	ssize_t len, top_len;

	if (fd < 0)
		return NULL;
	len = path_of(fd, path, sizeof(path));
	top_len = path_of(root, top, sizeof(top));
	if (top_len == 1) /* a mount that no path shows */
		top_len = 0;
	if (top_len < 0 || len < top_len)
		return NULL;
	return strdup(path[top_len] ? path + top_len : "/");
}

int cgroup_check(int root, uint64_t id)
{
	_cleanup_(closep) int fd = open_by_id(root, id, O_PATH);

	return fd < 0 ? fd : 0;
}

struct pids {
	pid_t *pids;
	size_t n, room;
};

static int add_pid(struct pids *p, pid_t pid)
{
	if (p->n == p->room) {
		size_t room = p->room ? 2 * p->room : 64;
		pid_t *larger = realloc(p->pids, room * sizeof(*larger));

		if (!larger)
			return -ENOMEM;
		p->pids = larger;
		p->room = room;
	}
	p->pids[p->n++] = pid;
	return 0;
}

/* The processes of threaded cgroups (EOPNOTSUPP) are listed where their domain is. */
static int add_own(struct pids *p, int dir)
{
	_cleanup_(fclosep) FILE *f = NULL;
	int fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC), pid, err = 0;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	f = fdopen(fd, "r");
	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	while (!err && fscanf(f, "%d", &pid) == 1)
		if (pid > 0) /* 0: in a pid namespace that cannot be seen from here */
			err = add_pid(p, pid);
	return err;
}

/* Takes the file descriptor. */
static int add_below(struct pids *p, int fd, int depth)
{
	_cleanup_(closedirp) DIR *dir = fdopendir(fd);
	struct dirent *e;
	int err, child;

	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	err = add_own(p, dirfd(dir));
	while (!err && depth < MAX_DEPTH && (e = readdir(dir))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		child = openat(dirfd(dir), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (child >= 0)
			err = add_below(p, child, depth + 1);
	}
	return err;
}

int cgroup_pids(int root, uint64_t id, pid_t **ret, size_t *n)
{
	int fd = open_by_id(root, id, O_RDONLY), err;
	struct pids p = { 0 };

	if (fd < 0)
		return fd;
	err = add_below(&p, fd, 0);
	if (err) {
		free(p.pids);
		return err;
	}
	*ret = p.pids;
	*n = p.n;
	return 0;
}
