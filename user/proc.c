// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

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

int proc_usage(uint64_t *resident, uint64_t *fds)
{
	_cleanup_(closedirp) DIR *dir = opendir("/proc/self/fd");
	unsigned long long pages;
	char buf[128];
	int err = read_file("/proc/self/statm", buf, sizeof(buf));

	if (err || !dir)
		return err ? err : -errno;
	if (sscanf(buf, "%*u %llu", &pages) != 1)
		return -EPROTO;
	*resident = pages * sysconf(_SC_PAGESIZE);
	*fds = 0;
	for (struct dirent *e; (e = readdir(dir));)
		*fds += e->d_name[0] != '.';
	--*fds; /* the directory's own */
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

/* The process's pid in its own pid namespace, and how deep that lies below ours. */
static int read_inner(pid_t pid, pid_t *inner, unsigned int *depth)
{
	_cleanup_(fclosep) FILE *f = NULL;
	_cleanup_(freep) char *line = NULL;
	char path[64], *field;
	size_t size = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	/* "NStgid: 4121 7 1": ours first. Behind the groups, and of these there may be many. */
	while (f && getline(&line, &size, f) > 0) {
		if (strncmp(line, "NStgid:", 7) != 0)
			continue;
		field = line + 7;
		for (*depth = -1; *field == '\t'; ++*depth)
			*inner = strtol(field, &field, 10);
		return *depth == UINT_MAX ? -ESRCH : 0;
	}
	return -ESRCH;
}

/* Its pid namespace, by inode. */
static int read_namespace(pid_t pid, ino_t *ret)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", pid);
	if (stat(path, &st) < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	*ret = st.st_ino;
	return 0;
}

int proc_translate(pid_t pid, pid_t speaker, pid_t *ret)
{
	_cleanup_(closedirp) DIR *proc = NULL;
	ino_t namespace, other;
	unsigned int depth;
	struct dirent *e;
	pid_t inner;
	int err;

	err = read_inner(speaker, &inner, &depth);
	if (!err && depth)
		err = read_namespace(speaker, &namespace);
	if (err)
		return err;
	if (depth == 0) {
		*ret = pid;
		return 0;
	}
	proc = opendir("/proc");
	if (!proc)
		return -errno;
	while ((e = readdir(proc))) {
		pid_t one = atoi(e->d_name);

		if (one <= 0 || read_namespace(one, &other) < 0 || other != namespace ||
			read_inner(one, &inner, &depth) < 0 || inner != pid)
			continue;
		*ret = one;
		return 0;
	}
	return -ESRCH;
}

pid_t proc_parent(pid_t pid)
{
	unsigned int depth, outer_depth;
	struct proc_stat s;
	pid_t inner;

	/* a parent's namespace is the same or lies around it: not as deep, then */
	if (proc_read(pid, &s) < 0 || s.ppid <= 1 || read_inner(pid, &inner, &depth) < 0 ||
		read_inner(s.ppid, &inner, &outer_depth) < 0 || depth != outer_depth)
		return 0;
	return s.ppid;
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
