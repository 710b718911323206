// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "audit.h"
#include "clock.h"
#include "json_out.h"
#include "names.h"
#include "proc.h"
#include "util.h"

struct audit {
	struct audit_options o;
	const char *node;
	struct json_out line;
	int fd;
	uint64_t lost, told_lost;
	const char *wrong; /* with what was found there */
	bool torn; /* the file ends in the middle of a line */
	bool failing; /* to write; has been said */
	bool stuck; /* to rotate; has been said */
};

static const char *const verdicts[] = {
	[AUDIT_ACCEPTED] = "accepted", [AUDIT_UNCHANGED] = "unchanged", [AUDIT_REFUSED] = "refused"
};
const struct names audit_verdict_names = { verdicts, ARRAY_SIZE(verdicts) };

_Static_assert(ARRAY_SIZE(verdicts) == AUDIT_VERDICTS, "a verdict has no name");

/* ---- the file ---- */

/* No link is followed, no FIFO waited for, no terminal taken; reading tells how the file ends. */
#define OPEN_FLAGS (O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* What somebody else can read or change, or wants changed, is no place for it. */
static const char *what_is_wrong(const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return "it is no regular file";
	if (st->st_uid != geteuid() && st->st_uid != 0)
		return "it is another user's";
	return st->st_nlink > 1 ? "it has a second name" : NULL;
}

static int open_file(struct audit *a)
{
	_cleanup_(closep) int fd = open(a->o.path, OPEN_FLAGS | O_CREAT | O_EXCL, 0600);
	bool made = fd >= 0;
	struct stat st;
	char last = '\n';

	a->wrong = NULL;
	if (!made && errno == EEXIST)
		fd = open(a->o.path, OPEN_FLAGS);
	if (fd < 0)
		return -errno;
	if (made && fchmod(fd, 0600) < 0) /* whatever the umask took away */
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	a->wrong = what_is_wrong(&st);
	if (a->wrong)
		return -EINVAL;
	if (st.st_size && pread(fd, &last, 1, st.st_size - 1) < 0)
		return -errno;
	a->torn = last != '\n';
	a->fd = TAKE_FD(fd);
	return 0;
}

static const char *explain(const struct audit *a, int err)
{
	return a->wrong ? a->wrong : err == -ELOOP ? "it is a symbolic link" : strerror(-err);
}

int audit_new(
	struct audit **ret, const struct audit_options *o, const char *node, char *why, size_t len)
{
	struct audit *a = calloc(1, sizeof(*a));
	int err;

	if (!a)
		return fail_with(why, len, -ENOMEM, "out of memory");
	*a = (struct audit){ .o = *o, .node = node, .fd = -1 };
	err = open_file(a);
	if (err && err != -ENOSPC && err != -EDQUOT) {
		fail_with(why, len, err, "cannot write the audit log %s: %s", o->path,
			explain(a, err));
		audit_free(a);
		return err;
	}
	*ret = a;
	return 0;
}

void audit_free(struct audit *a)
{
	if (!a)
		return;
	closep(&a->fd);
	json_free(&a->line);
	free(a);
}

static void close_file(struct audit *a)
{
	closep(&a->fd);
	a->fd = -1;
}

/* Said once, until it works again. */
static void tell(struct audit *a, int err)
{
	if (err && !a->failing)
		log_error("cannot write the audit log %s: %s; declarations go on and are counted",
			a->o.path, explain(a, err));
	if (!err && a->failing)
		log_info("the audit log %s is written again; %" PRIu64 " lines are missing",
			a->o.path, a->lost - a->told_lost);
	if (!err)
		a->told_lost = a->lost;
	a->failing = err;
}

void audit_reopen(struct audit *a)
{
	close_file(a);
	tell(a, open_file(a));
}

uint64_t audit_lost(const struct audit *a)
{
	return a->lost;
}

/* PATH.1 becomes PATH.2 and so on; the oldest one is replaced. */
static int move_files(const struct audit *a)
{
	char from[PATH_MAX], to[PATH_MAX];

	for (uint32_t i = a->o.keep; i; i--) {
		int n = snprintf(to, sizeof(to), "%s.%u", a->o.path, i);

		if (n >= (int)sizeof(to))
			return -ENAMETOOLONG;
		snprintf(from, sizeof(from), i > 1 ? "%s.%u" : "%s", a->o.path, i - 1);
		if (rename(from, to) < 0 && errno != ENOENT)
			return -errno;
	}
	return 0;
}

/* Where that is not possible, a file that is too large is better than none. */
static int rotate(struct audit *a)
{
	int err = move_files(a);

	if (err && !a->stuck)
		log_error("cannot rotate the audit log %s, so it grows: %s", a->o.path, strerror(-err));
	a->stuck = err;
	if (err)
		return 0;
	close_file(a);
	return open_file(a);
}

/* A file that can take a line of this length. Returns its size. */
static off_t make_ready(struct audit *a, size_t len)
{
	struct stat st = { 0 };
	int err = 0;

	if (a->fd >= 0 && (fstat(a->fd, &st) < 0 || !st.st_nlink)) /* it was removed */
		close_file(a);
	if (a->fd < 0)
		err = open_file(a);
	else if (a->o.size && st.st_size && st.st_size + len > a->o.size)
		err = rotate(a);
	if (err)
		return err;
	return fstat(a->fd, &st) < 0 ? -errno : st.st_size;
}

static int append(struct audit *a, const char *text, size_t len)
{
	off_t size = make_ready(a, len - 1);
	ssize_t n;
	int err;

	if (size < 0)
		return size;
	if (!a->torn) { /* else the newline that `text` begins with ends the half line */
		text++;
		len--;
	}
	n = write(a->fd, text, len);
	if (n == (ssize_t)len) {
		a->torn = false;
		return 0;
	}
	err = n < 0 ? -errno : -ENOSPC;
	if (n > 0 && ftruncate(a->fd, size) < 0) /* such as a file that may only be appended to */
		a->torn = true;
	return err;
}

/* ---- the line ---- */

void audit_who_read(struct audit_who *who)
{
	struct proc_stat s;
	char path[64];
	ssize_t n;

	if (who->pid <= 0 || proc_read(who->pid, &s) < 0 || s.euid != who->uid)
		return;
	memcpy(who->comm, s.comm, sizeof(who->comm));
	snprintf(path, sizeof(path), "/proc/%d/exe", who->pid);
	n = readlink(path, who->exe, sizeof(who->exe) - 1);
	who->exe[n > 0 ? n : 0] = '\0';
	if (proc_cgroup2(who->pid, who->cgroup, sizeof(who->cgroup)) < 0)
		who->cgroup[0] = '\0';
}

static void write_str(struct json_out *j, const char *key, const char *text)
{
	if (text && *text)
		json_str(j, key, text);
}

static void write_who(struct json_out *j, const struct audit_record *r)
{
	const struct audit_who *who = r->who;

	json_open(j, "who", '{');
	if (who->pid > 0)
		json_i64(j, "pid", who->pid);
	if (who->uid != (uid_t)-1)
		json_u64(j, "uid", who->uid);
	if (who->gid != (gid_t)-1)
		json_u64(j, "gid", who->gid);
	write_str(j, "comm", who->comm);
	write_str(j, "exe", who->exe);
	write_str(j, "cgroup", who->cgroup);
	json_close(j, '}');
	if (!r->by_pid || r->by_pid == who->pid)
		return;
	json_open(j, "by", '{');
	json_i64(j, "pid", r->by_pid);
	write_str(j, "comm", r->by_comm);
	json_close(j, '}');
}

static void write_record(struct json_out *j, const char *node, const struct audit_record *r)
{
	json_open(j, NULL, '{');
	json_u64(j, "schema", 1);
	json_time(j, "time", clock_ns(CLOCK_REALTIME));
	json_str(j, "node", node);
	json_str(j, "verdict", names_name(&audit_verdict_names, r->verdict));
	if (r->who)
		write_who(j, r);
	if (r->key.kind) {
		json_open(j, "subject", '{');
		json_str(j, "kind", kind_name(r->key.kind));
		if (r->key.id)
			json_u64(j, "id", r->key.id);
		write_str(j, "name", r->name);
		json_close(j, '}');
	}
	json_str(j, "from", r->from);
	json_str(j, "to", r->to);
	if (r->epoch)
		json_u64(j, "epoch", r->epoch);
	json_str(j, "source", source_name(r->source));
	write_str(j, "reason", r->reason);
	write_str(j, "why", r->why);
	if (r->count > 1)
		json_u64(j, "count", r->count);
	json_close(j, '}');
	json_raw(j, "\n", 1);
}

void audit_write(struct audit *a, const struct audit_record *r)
{
	int err = -ENOMEM;

	json_reset(&a->line);
	json_raw(&a->line, "\n", 1); /* see append() */
	write_record(&a->line, a->node, r);
	if (!a->line.failed)
		err = append(a, a->line.text, a->line.len);
	a->lost += !!err;
	tell(a, err);
}
