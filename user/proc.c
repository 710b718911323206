// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "cgroup.h"
#include "mounts.h"
#include "proc.h"
#include "util.h"

#define EXE_SLOTS 4096
#define CGROUP_SLOTS 512

struct exe_slot {
	pid_t pid;
	uint64_t start_ns;
	char *path;
};

struct cgroup_slot {
	uint64_t id;
	char *path;
};

/* Direct-mapped: a newcomer pushes out whoever has its slot. */
struct proc_names {
	struct exe_slot exe[EXE_SLOTS];
	struct cgroup_slot cgroup[CGROUP_SLOTS];
	int cgroup_root;
};

static int read_file(const char *path, char *buf, size_t size)
{
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return 0;
}

int proc_read(pid_t pid, struct proc_stat *ret)
{
	struct proc_stat s = { 0 };
	unsigned long long start;
	char path[64], buf[2048], state, *open, *close, *tgid, *uid;
	int err, threads;
	size_t len;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	err = read_file(path, buf, sizeof(buf));
	if (err)
		return err;
	/* the name is in parentheses and may contain any of them */
	open = strchr(buf, '(');
	close = strrchr(buf, ')');
	if (!open || !close || sscanf(close + 1,
		" %c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d %*d %llu",
		&state, &s.ppid, &s.session, &threads, &start) != 5)
		return -EPROTO;
	/* where only the main thread has ended, the others go on */
	if (state == 'X' || (state == 'Z' && threads <= 1))
		return -ESRCH;
	len = close - open - 1;
	memcpy(s.comm, open + 1, len < sizeof(s.comm) ? len : sizeof(s.comm) - 1);
	s.start_ns = start * (1000000000ULL / sysconf(_SC_CLK_TCK));

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	err = read_file(path, buf, sizeof(buf));
	if (err)
		return err;
	tgid = strstr(buf, "\nTgid:");
	uid = strstr(buf, "\nUid:");
	if (!tgid || !uid || sscanf(tgid, " Tgid: %d", &s.tgid) != 1 ||
		sscanf(uid, " Uid: %u %u", &s.uid, &s.euid) != 2)
		return -EPROTO;
	*ret = s;
	return 0;
}

int proc_cgroup2(pid_t pid, char *ret, size_t size)
{
	char path[64], buf[PATH_MAX + 64], *line, *end;
	int err;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	err = read_file(path, buf, sizeof(buf));
	if (err)
		return err;
	/* the last line, behind those of v1 */
	line = strncmp(buf, "0::", 3) == 0 ? buf : strstr(buf, "\n0::");
	line = line ? strchr(line, '/') : NULL;
	end = line ? strchr(line, '\n') : NULL;
	if (!end || (size_t)(end - line) >= size)
		return -ENOENT;
	*end = '\0';
	strcpy(ret, line);
	return 0;
}

bool proc_descends(pid_t pid, pid_t ancestor)
{
	struct proc_stat s;

	/* pid namespaces nest 32 deep; a family tree that is deeper than this is a loop */
	for (int depth = 0; depth < 4096 && pid > 0; depth++) {
		if (pid == ancestor)
			return true;
		if (proc_read(pid, &s) < 0)
			return false;
		pid = s.ppid;
	}
	return false;
}

int proc_names_new(struct proc_names **ret)
{
	struct proc_names *n = calloc(1, sizeof(*n));

	if (!n)
		return -ENOMEM;
	n->cgroup_root = mounts_open_cgroup2();
	*ret = n;
	return 0;
}

void proc_names_free(struct proc_names *n)
{
	if (!n)
		return;
	for (size_t i = 0; i < EXE_SLOTS; i++)
		free(n->exe[i].path);
	for (size_t i = 0; i < CGROUP_SLOTS; i++)
		free(n->cgroup[i].path);
	closep(&n->cgroup_root);
	free(n);
}

static struct exe_slot *exe_slot(struct proc_names *n, uint32_t pid)
{
	return &n->exe[pid % EXE_SLOTS];
}

static const char *remember_exe(struct proc_names *n, const struct pw_process *p, char *path)
{
	struct exe_slot *slot = exe_slot(n, p->pid);

	free(slot->path);
	*slot = (struct exe_slot){ p->pid, p->start_ns, path };
	return path;
}

static char *read_exe(const struct pw_process *p)
{
	char link[64], path[PATH_MAX];
	struct proc_stat s;
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/%u/exe", p->pid);
	len = readlink(link, path, sizeof(path) - 1);
	if (len <= 0 || proc_read(p->pid, &s) < 0 || !pw_same_start(s.start_ns, p->start_ns))
		return NULL;
	path[len] = '\0';
	return strdup(path);
}

const char *proc_names_exe(struct proc_names *n, const struct pw_process *p)
{
	const struct exe_slot *slot = exe_slot(n, p->pid);

	if (slot->path && slot->pid == (pid_t)p->pid && pw_same_start(slot->start_ns, p->start_ns))
		return slot->path;
	return remember_exe(n, p, read_exe(p));
}

void proc_names_executed(struct proc_names *n, const struct pw_process *p)
{
	remember_exe(n, p, read_exe(p));
}

void proc_names_forked(struct proc_names *n, const struct pw_process *child)
{
	const struct exe_slot *parent = exe_slot(n, child->ppid);

	if (parent->path && parent->pid == (pid_t)child->ppid &&
		parent->start_ns <= child->start_ns)
		remember_exe(n, child, strdup(parent->path));
	else
		remember_exe(n, child, read_exe(child));
}

int proc_names_cgroup_root(const struct proc_names *n)
{
	return n->cgroup_root;
}

const char *proc_names_cgroup(struct proc_names *n, uint64_t id)
{
	struct cgroup_slot *slot = &n->cgroup[id % CGROUP_SLOTS];

	if (n->cgroup_root < 0)
		return NULL;
	if (!slot->path || slot->id != id) {
		free(slot->path);
		*slot = (struct cgroup_slot){ id, cgroup_path(n->cgroup_root, id) };
	}
	return slot->path;
}
