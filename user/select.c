// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "proc.h"
#include "select.h"
#include "util.h"

#define NAME_LEN (NAME_MAX + 1)
#define ID_LEN 64
#define ID_SHOWN 12 /* as `docker ps` shows it */
#define ID_MIN 4
#define MAX_DEPTH 32
#define MAX_CGROUPS 16384 /* half a second to look at; a node full of pods has a tenth */
#define MAX_PROCS 4096
#define CANDIDATES 5
#define COMPARED 64 /* bytes of names */
#define LIST_LEN 640

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define UNIT_CHARS LETTERS "0123456789:-_.\\@"

static const char *const select_list[SELECT_WAYS] = { "cgroup", "unit", "container", "pod" };
const struct names select_names = { select_list, SELECT_WAYS };

static const char *const forms[SELECT_WAYS] = {
	[SELECT_UNIT] = "give its name, such as nginx or user-1000.slice",
	[SELECT_CONTAINER] = "give its id or the first hexadecimal digits of it, 4 at least",
	[SELECT_POD] = "give NAMESPACE/NAME",
};

/* Types of units; the first six have cgroups. */
static const char *const unit_suffixes[] = { ".service", ".scope", ".slice", ".socket", ".mount",
	".swap", ".target", ".device", ".automount", ".timer", ".path" };
#define UNITS_WITH_CGROUPS 6

static bool ends_with(const char *text, const char *end)
{
	size_t len = strlen(text), end_len = strlen(end);

	return len > end_len && strcmp(text + len - end_len, end) == 0;
}

/* Length without the suffix of a type of unit; 0: it has none. */
static size_t unit_stem(const char *name, size_t types)
{
	for (size_t i = 0; i < types; i++)
		if (ends_with(name, unit_suffixes[i]))
			return strlen(name) - strlen(unit_suffixes[i]);
	return 0;
}

/* ---- what people type ---- */

/* As systemctl takes it: a service unless it says otherwise, other characters escaped. */
static int read_unit(const char *what, char ret[static NAME_LEN])
{
	char name[4 * NAME_LEN + sizeof(".service")];
	size_t n = 0;

	if (!*what || strlen(what) >= NAME_LEN)
		return -EINVAL;
	for (; *what; what++)
		if (*what == '/')
			name[n++] = '-';
		else if (strchr(UNIT_CHARS, *what))
			name[n++] = *what;
		else
			n += sprintf(name + n, "\\x%02x", (unsigned char)*what);
	name[n] = '\0';
	if (!unit_stem(name, ARRAY_SIZE(unit_suffixes)))
		strcpy(name + n, ".service");
	if (strlen(name) >= NAME_LEN)
		return -EINVAL;
	strcpy(ret, name);
	return 0;
}

/* Kubernetes writes the runtime in front: containerd://ID. */
static int read_container(const char *what, char ret[static NAME_LEN])
{
	const char *id = strstr(what, "://");
	size_t len;

	id = id ? id + 3 : what;
	len = strlen(id);
	if (len < ID_MIN || len > ID_LEN || strspn(id, "0123456789abcdef") != len)
		return -EINVAL;
	strcpy(ret, id);
	return 0;
}

static int read_pod(const char *what, char ret[static NAME_LEN])
{
	const char *slash = strchr(what, '/');

	if (!slash || slash == what || !slash[1] || strchr(slash + 1, '/') || strchr(what, '_') ||
		strlen(what) >= NAME_LEN)
		return -EINVAL;
	strcpy(ret, what);
	return 0;
}

static int read_name(enum select_by by, const char *what, char ret[static NAME_LEN])
{
	switch (by) {
	case SELECT_UNIT:
		return read_unit(what, ret);
	case SELECT_CONTAINER:
		return read_container(what, ret);
	case SELECT_POD:
		return read_pod(what, ret);
	default:
		return -EINVAL;
	}
}

/* ---- what directories are called ---- */

static bool unit_of(const char *dir, char ret[static NAME_LEN])
{
	if (!unit_stem(dir, UNITS_WITH_CGROUPS))
		return false;
	strcpy(ret, dir + (*dir == '_'));
	return true;
}

static bool container_of(const char *dir, char ret[static NAME_LEN])
{
	size_t len = strlen(dir) - (ends_with(dir, ".scope") ? strlen(".scope") : 0);
	const char *id = dir + len - ID_LEN;

	if (len < ID_LEN || strspn(id, "0123456789abcdef") < ID_LEN)
		return false;
	if (id > dir && id[-1] != '-' && id[-1] != ':')
		return false;
	if (id - dir >= 7 && memcmp(id - 7, "conmon-", 7) == 0)
		return false;
	snprintf(ret, NAME_LEN, "%.*s", ID_LEN, id);
	return true;
}

static bool pod_uid(const char *dir, char ret[static NAME_LEN])
{
	bool slice = ends_with(dir, ".slice");
	const char *uid = slice ? strstr(dir, "-pod") : dir;

	if (!uid || strncmp(uid += slice, "pod", 3) != 0)
		return false;
	strcpy(ret, uid + 3);
	if (slice) {
		ret[strlen(ret) - strlen(".slice")] = '\0';
		for (char *c = ret; (c = strchr(c, '_'));)
			*c = '-';
	}
	return *ret;
}

static bool pod_of(const char *dir, DIR *logs, char ret[static NAME_LEN])
{
	char wanted[NAME_LEN];
	struct dirent *e;

	if (!logs || !pod_uid(dir, wanted))
		return false;
	rewinddir(logs);
	while ((e = readdir(logs))) {
		char *name = strchr(e->d_name, '_'), *uid = name ? strchr(name + 1, '_') : NULL;

		if (!uid || strcmp(uid + 1, wanted) != 0)
			continue;
		*uid = '\0';
		*name = '/';
		strcpy(ret, e->d_name);
		return true;
	}
	return false;
}

void select_name(const char *path, const char *pod_logs, char *ret, size_t size)
{
	const char *last = strrchr(path, '/');
	_cleanup_(closedirp) DIR *logs = NULL;
	char name[NAME_LEN];

	last = last && last[1] ? last + 1 : path;
	if (strlen(last) < NAME_LEN && pod_uid(last, name))
		logs = opendir(pod_logs);
	if (strlen(last) >= NAME_LEN)
		snprintf(ret, size, "%s", last);
	else if (container_of(last, name))
		snprintf(ret, size, "%.*s", ID_SHOWN, name);
	else if (pod_of(last, logs, name))
		snprintf(ret, size, "%s", strchr(name, '/') + 1);
	else if (unit_of(last, name))
		snprintf(ret, size, "%.*s", (int)unit_stem(name, UNITS_WITH_CGROUPS), name);
	else
		snprintf(ret, size, "%s", last);
}

/* ---- the search ---- */

/* Either what was found, by paths, or what there is instead, by names, the nearest first. */
struct candidate {
	unsigned int distance;
	char text[PATH_MAX];
};

struct search {
	enum select_by by;
	char want[NAME_LEN];
	DIR *logs;
	bool delegated; /* what belongs to other users than root is looked into as well */
	bool skipped;	/* such was there, and was not */
	size_t cgroups, others;
	size_t found;
	bool system; /* the unit found is the system's */
	uint64_t id;
	char path[PATH_MAX]; /* of what is looked at */
	size_t n;
	struct candidate candidates[CANDIDATES];
};

/* The number of bytes to change, put in or leave out. */
static unsigned int edit_distance(const char *a, size_t n, const char *b, size_t m)
{
	unsigned int row[COMPARED + 1];

	n = n < COMPARED ? n : COMPARED;
	m = m < COMPARED ? m : COMPARED;
	for (size_t j = 0; j <= m; j++)
		row[j] = j;
	for (size_t i = 1; i <= n; i++) {
		unsigned int diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= m; j++) {
			unsigned int best = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			if (row[j] + 1 < best)
				best = row[j] + 1;
			row[j] = best;
		}
	}
	return row[m];
}

/* Names that have it in them come first: of pods one may know the deployment only. */
static unsigned int distance(const struct search *s, const char *name)
{
	size_t want = strlen(s->want), len = strlen(name);
	size_t stem = unit_stem(s->want, ARRAY_SIZE(unit_suffixes));

	if (s->by == SELECT_CONTAINER)
		return edit_distance(s->want, want, name, want);
	stem = s->by == SELECT_UNIT && stem ? stem : want;
	if (memmem(name, len, s->want, stem))
		return len - stem;
	return NAME_LEN + edit_distance(s->want, want, name, len);
}

/* Of the text, `len` bytes. */
static void add_candidate(
	struct search *s, unsigned int distance, const char *text, size_t len)
{
	struct candidate *c = s->candidates;
	size_t at = s->n;

	for (size_t i = 0; i < s->n; i++) /* one of each user's, say */
		if (strncmp(c[i].text, text, len) == 0)
			return;
	while (at && c[at - 1].distance > distance)
		at--;
	if (at == CANDIDATES)
		return;
	if (s->n < CANDIDATES)
		s->n++;
	memmove(&c[at + 1], &c[at], (s->n - at - 1) * sizeof(*c));
	c[at].distance = distance;
	snprintf(c[at].text, sizeof(c[at].text), "%.*s", (int)len, text);
}

static void look_at(struct search *s, const char *name, uint64_t id, bool system)
{
	/* of an id the beginning is enough */
	size_t len = s->by == SELECT_CONTAINER ? strlen(s->want) : NAME_LEN;

	if (strncmp(name, s->want, len) != 0) {
		s->others++;
		if (!s->found)
			add_candidate(s, distance(s, name), name,
				s->by == SELECT_CONTAINER ? ID_SHOWN : NAME_LEN);
		return;
	}
	system = system || s->by != SELECT_UNIT;
	if (s->found && s->system && !system)
		return;
	if (!s->found || system > s->system)
		s->found = s->n = 0;
	s->found++;
	s->system = system;
	s->id = id;
	add_candidate(s, 0, s->path, PATH_MAX);
}

static bool name_of(const struct search *s, const char *dir, char ret[static NAME_LEN])
{
	if (s->by == SELECT_POD)
		return pod_of(dir, s->logs, ret);
	return s->by == SELECT_UNIT ? unit_of(dir, ret) : container_of(dir, ret);
}

/*
 * `fd` is taken; s->path has `len` bytes of its path. `system`: it and all around it are slices, so
 * a unit in it is the system's. `inside`: what the nearest with a name around it is called; runtimes
 * may use the same again for a part.
 */
static int look_below(struct search *s, int fd, size_t len, int depth, bool system, const char *inside)
{
	_cleanup_(closedirp) DIR *dir = fdopendir(fd);
	struct dirent *e;
	int err = 0;

	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while (!err && (e = readdir(dir))) {
		size_t part = strlen(e->d_name);
		char name[NAME_LEN];
		struct stat st;
		bool named;
		int child;

		if (e->d_type != DT_DIR || e->d_name[0] == '.' || len + 1 + part >= PATH_MAX)
			continue;
		if (s->cgroups++ == MAX_CGROUPS)
			return -E2BIG;
		if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue; /* it is gone */
		sprintf(s->path + len, "/%s", e->d_name);
		named = name_of(s, e->d_name, name) && !(inside && strcmp(name, inside) == 0);
		if (named)
			look_at(s, name, st.st_ino, system);
		if (st.st_nlink == 2 || depth == MAX_DEPTH) /* none are in it */
			continue;
		if (st.st_uid != 0 && !s->delegated) {
			s->skipped = true;
			continue;
		}
		child = openat(dirfd(dir), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0)
			err = look_below(s, child, len + 1 + part, depth + 1,
				system && ends_with(e->d_name, ".slice"), named ? name : inside);
		else if (errno == EMFILE || errno == ENFILE)
			err = -errno;
	}
	return err;
}

static int search(struct search *s, int root)
{
	int err;

	do {
		int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd < 0)
			return -errno;
		s->delegated = s->skipped;
		s->skipped = false;
		s->cgroups = s->others = s->n = 0;
		err = look_below(s, fd, 0, 0, true, NULL);
	} while (!err && !s->found && s->skipped);
	return err;
}

/* ---- answers ---- */

/* As many as fit, whole. */
static void list_candidates(const struct search *s, char ret[static LIST_LEN])
{
	size_t len = 0;

	*ret = '\0';
	for (size_t i = 0; i < s->n; i++) {
		int n = snprintf(ret + len, LIST_LEN - len, "%s%s", i ? ", " : "",
			s->candidates[i].text);

		if ((size_t)n >= LIST_LEN - len) {
			ret[len] = '\0';
			break;
		}
		len += n;
	}
}

/* A service's main process outlives those that start it, and starts the others. 0: none. */
static pid_t oldest_process(int root, const char *path)
{
	char procs[PATH_MAX + sizeof("/cgroup.procs")];
	_cleanup_(fclosep) FILE *f = NULL;
	struct proc_stat stat;
	uint64_t since = UINT64_MAX;
	pid_t oldest = 0;
	int fd, pid;

	snprintf(procs, sizeof(procs), "%.*s/cgroup.procs", PATH_MAX, path + 1);
	fd = openat(root, procs, O_RDONLY | O_CLOEXEC);
	f = fd < 0 ? NULL : fdopen(fd, "r");
	if (!f) {
		closep(&fd);
		return 0;
	}
	for (int i = 0; i < MAX_PROCS && fscanf(f, "%d", &pid) == 1; i++)
		if (proc_read(pid, &stat) == 0 && stat.start_ns < since) {
			oldest = pid;
			since = stat.start_ns;
		}
	return oldest;
}

/* Only v1 knows it, which the kernel half does not look at. */
static int say_where(const struct search *s, int systemd, char *why, size_t len)
{
	const char *path = s->candidates[0].text;
	pid_t pid = oldest_process(systemd, path);
	char instead[64] = "";

	if (pid)
		snprintf(instead, sizeof(instead),
			"; declare for its main process instead: --pid %d", pid);
	return fail_with(why, len, -ESRCH,
		"%s %.255s is not in cgroup v2, only in systemd's v1 hierarchy, at %.400s%s",
		select_list[s->by], s->want, path, instead);
}

static int say_none(struct search *s, const struct select_roots *roots, char *why, size_t len)
{
	char list[LIST_LEN], others[64] = ", nor any other";

	list_candidates(s, list);
	if (s->others)
		snprintf(others, sizeof(others), "; the nearest of %zu: ", s->others);
	if (roots->systemd >= 0 && search(s, roots->systemd) == 0 && s->found)
		return say_where(s, roots->systemd, why, len);
	if (roots->cgroup2 < 0)
		return fail_with(why, len, -ESRCH, "no %s %.255s: there is no cgroup v2 here",
			select_list[s->by], s->want);
	return fail_with(why, len, -ESRCH, "there is no %s %.255s in cgroup v2%s%s",
		select_list[s->by], s->want, others, list);
}

int select_cgroup(const struct select_roots *roots, enum select_by by, const char *what,
	uint64_t *ret_id, char *why, size_t len)
{
	_cleanup_(closedirp) DIR *logs = NULL;
	struct search s = { .by = by };
	const char *word = select_list[by];
	char list[LIST_LEN];
	int err = 0;

	if (read_name(by, what, s.want) < 0)
		return fail_with(why, len, -EINVAL, "no %s is called %.128s; %s", word, what, forms[by]);
	if (by == SELECT_POD)
		s.logs = logs = opendir(roots->pod_logs);
	if (by == SELECT_POD && !logs)
		return fail_with(why, len, -errno,
			"pods are known by the kubelet's logs of them, and %s cannot be read: %s; "
			"'run --pod-logs' says where they are", roots->pod_logs, strerror(errno));
	if (roots->cgroup2 >= 0)
		err = search(&s, roots->cgroup2);
	if (err == -E2BIG)
		return fail_with(why, len, err,
			"there are more than %d cgroups, too many to look for %s %.255s; give its path",
			MAX_CGROUPS, word, s.want);
	if (err)
		return fail_with(why, len, err, "cannot look for %s %.255s: %s", word, s.want,
			strerror(-err));
	if (!s.found)
		return say_none(&s, roots, why, len);
	if (s.found > 1) {
		list_candidates(&s, list);
		return fail_with(why, len, -ENOTUNIQ,
			"%s %.255s could be any of %zu: %s; give its path%s", word, s.want, s.found, list,
			by == SELECT_CONTAINER ? " or more of its id" : "");
	}
	*ret_id = s.id;
	return 0;
}
