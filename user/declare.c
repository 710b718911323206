// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "declare.h"
#include "names.h"
#include "proc.h"
#include "util.h"

struct declare {
	struct subjects *subjects;
};

int declare_new(struct declare **ret, struct subjects *subjects)
{
	struct declare *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->subjects = subjects;
	*ret = d;
	return 0;
}

void declare_free(struct declare *d)
{
	free(d);
}

bool declare_may(const struct declarer *who, pid_t pid)
{
	struct proc_stat target, self;

	if (who->uid == 0)
		return true;
	/* whoever asked may be gone, and its pid somebody else's */
	if (proc_read(who->pid, &self) < 0 || self.euid != who->uid)
		return false;
	if (proc_descends(pid, who->pid))
		return true;
	/*
	 * A command that a service runs speaks for it: the parent, if it is the same user's, who
	 * might as well kill it.
	 */
	return self.ppid == pid && proc_read(pid, &target) == 0 && target.uid == who->uid &&
	       target.euid == who->uid;
}

/*
 * Who is worth naming: behind a command that only passes on, whoever ran it. Any process can call itself
 * that, and put the blame on its parent: on one of its own user only.
 */
static pid_t worth_naming(pid_t pid)
{
	struct proc_stat s, parent;

	if (proc_read(pid, &s) < 0 ||
		(strcmp(s.comm, "phasewatch") != 0 && strcmp(s.comm, "systemd-notify") != 0) ||
		proc_read(s.ppid, &parent) < 0 || parent.uid != s.uid)
		return pid;
	return s.ppid;
}

/* All who are in it with the caller are the same user's, who might as well kill them. */
static bool may_own_cgroup(
	const struct declare *d, const struct declarer *who, const char *cgroup)
{
	_cleanup_(freep) pid_t *pids = NULL;
	struct proc_stat s;
	bool may = false;
	size_t n;

	if (subjects_cgroup_pids(d->subjects, cgroup, &pids, &n) < 0)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (proc_read(pids[i], &s) < 0)
			continue;
		may = s.uid == who->uid && s.euid == who->uid;
		if (!may)
			break;
	}
	return may;
}

static int check_may(const struct declare *d, const struct declarer *who,
	const struct declaration_request *r, char why[static WHY_LEN])
{
	if (r->cgroup && who->uid != 0 && !(r->own_cgroup && may_own_cgroup(d, who, r->cgroup)))
		return fail_with(why, WHY_LEN, -EPERM,
			"process %d (uid %u) may not declare for %s %.128s; only root may, and who is in a "
			"cgroup if all in it are of one user",
			who->pid, who->uid, names_name(&select_names, r->by), r->cgroup);
	if (!r->cgroup && !declare_may(who, r->pid))
		return fail_with(why, WHY_LEN, -EPERM,
			"process %d is not yours: process %d (uid %u) may declare for itself, its descendants and "
			"its parent of the same user; root for any",
			r->pid, who->pid, who->uid);
	return 0;
}

int declare_phase(struct declare *d, const struct declarer *who, struct declaration_request *r,
	struct declaration_result *ret, char why[static WHY_LEN])
{
	int err = check_may(d, who, r, why);

	if (err) {
		log_warning("refused %s: %s", phase_name(r->phase), why);
		return err;
	}
	r->by_pid = worth_naming(who->pid);
	r->by_uid = who->uid;
	r->source = who->source;
	return subjects_declare(d->subjects, r, ret, why);
}
