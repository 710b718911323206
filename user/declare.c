// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "clock.h"
#include "declare.h"
#include "names.h"
#include "opts.h"
#include "proc.h"
#include "util.h"

#ifndef SO_PEERPIDFD /* 6.5 */
#define SO_PEERPIDFD 77
#endif

#define USERS 256 /* whose haste is remembered; a new one takes the place of the calmest */
#define BURST 5 /* seconds' worth of declarations at once */
/*
 * A declaration that takes the daemon long, because of how many processes and sockets it is for,
 * counts for several: of the daemon's time, too, each user has a share only.
 */
#define SHARE 5
/* pw_phases has room for 16384; what is left is root's. */
#define OTHERS_SUBJECTS 12288
/* Lines about refusals: so many at once, and then one in this time. */
#define LOG_BURST 10
#define LOG_INTERVAL_NS NS_PER_S

struct user {
	uid_t uid; /* 0: a free place, as root is not limited */
	uint64_t full_ns;
	uint64_t refused; /* for being too often, and not told yet */
	struct declarer last;
};

struct declare {
	struct subjects *subjects;
	struct declare_options o;
	struct user users[USERS];
	bool busy; /* a declaration is on its way through */
	uint64_t counts[AUDIT_VERDICTS];
	uint64_t log_full_ns, unsaid;
};

int declare_new(struct declare **ret, struct subjects *subjects, const struct declare_options *o)
{
	struct declare *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->subjects = subjects;
	d->o = *o;
	*ret = d;
	return 0;
}

uint64_t declare_count(const struct declare *d, enum audit_verdict verdict)
{
	return d->counts[verdict];
}

uint64_t declare_audit_lost(const struct declare *d)
{
	return d->o.audit ? audit_lost(d->o.audit) : 0;
}

/*
 * A bucket with room for `burst` tokens that gets one every interval_ns, kept as the time when it
 * will be full. Takes one and returns 0, or else how long to wait for one.
 */
static uint64_t take_token(uint64_t *full_ns, uint64_t interval_ns, uint32_t burst, uint64_t now_ns)
{
	uint64_t full = (*full_ns > now_ns ? *full_ns : now_ns) + interval_ns;

	if (full - now_ns > burst * interval_ns)
		return full - now_ns - burst * interval_ns;
	*full_ns = full;
	return 0;
}

/* ---- what is told ---- */

static bool may_log(struct declare *d)
{
	return !take_token(&d->log_full_ns, LOG_INTERVAL_NS, LOG_BURST, clock_boot_ns());
}

static void log_refusal(struct declare *d, const char *what, const char *why)
{
	if (may_log(d))
		log_warning("refused %s: %s", what, why);
	else
		d->unsaid++;
}

static void audit(struct declare *d, const struct audit_record *record)
{
	d->counts[record->verdict] += record->count;
	if (d->o.audit)
		audit_write(d->o.audit, record);
}

static void tell_hasty(struct declare *d, struct user *u)
{
	const struct audit_who who = { u->last.pid, u->uid, u->last.gid };
	char what[32], why[WHY_LEN];
	struct audit_record record = { .verdict = AUDIT_REFUSED,
		.who = &who,
		.source = u->last.source,
		.why = why,
		.count = u->refused };

	if (!u->refused)
		return;
	snprintf(what, sizeof(what), "%" PRIu64 " more", u->refused);
	snprintf(why, sizeof(why), "uid %u declares too often", u->uid);
	log_refusal(d, what, why);
	audit(d, &record);
	u->refused = 0;
}

void declare_tick(struct declare *d)
{
	for (size_t i = 0; i < USERS; i++)
		tell_hasty(d, &d->users[i]);
	if (!d->unsaid || !may_log(d))
		return;
	log_warning("refused %" PRIu64 " times more", d->unsaid);
	d->unsaid = 0;
}

void declare_free(struct declare *d)
{
	if (d)
		declare_tick(d);
	free(d);
}

/* ---- limits ---- */

/* Its place, which a newcomer takes with the tokens that are left: many uids are no way out. */
static struct user *user_of(struct declare *d, uid_t uid)
{
	struct user *calmest = d->users;

	for (size_t i = 0; i < USERS; i++) {
		if (d->users[i].uid == uid)
			return &d->users[i];
		if (d->users[i].full_ns < calmest->full_ns)
			calmest = &d->users[i];
	}
	tell_hasty(d, calmest);
	calmest->uid = uid;
	return calmest;
}

static int check_rate(
	struct declare *d, struct user *u, const struct declarer *who, char why[static WHY_LEN])
{
	uint64_t wait_ns =
		take_token(&u->full_ns, NS_PER_S / d->o.rate, BURST * d->o.rate, clock_boot_ns());

	if (!wait_ns)
		return 0;
	u->refused++;
	u->last = *who;
	return fail_with(why, WHY_LEN, -EAGAIN,
		"uid %u declares too often: the limit is %u a second, %u at once; try again in %.3f s",
		who->uid, d->o.rate, BURST * d->o.rate, wait_ns / 1e9);
}

struct held {
	uid_t uid;
	size_t own, others;
};

static void count_held(const struct subject *s, void *arg)
{
	struct held *held = arg;

	held->own += s->now.by_uid == held->uid;
	held->others += s->now.by_uid != 0;
}

static int check_subjects(struct declare *d, const struct declarer *who,
	const struct declaration_request *r, char why[static WHY_LEN])
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = r->pid };
	struct held held = { .uid = who->uid };
	uint64_t id = 0;

	if (r->cgroup && subjects_find_cgroup(d->subjects, r, &id) == 0)
		key = (struct pw_subject_key){ .kind = PW_KIND_CGROUP, .id = id };
	if (subjects_find(d->subjects, &key))
		return 0;
	subjects_for_each(d->subjects, count_held, &held);
	if (held.own >= d->o.subjects)
		return fail_with(why, WHY_LEN, -EDQUOT,
			"uid %u has declared %zu processes: the limit is %u; try again when one has ended",
			who->uid, held.own, d->o.subjects);
	if (held.others >= OTHERS_SUBJECTS)
		return fail_with(why, WHY_LEN, -EDQUOT,
			"users have declared %zu processes: the limit is %d; try again when one has ended",
			held.others, OTHERS_SUBJECTS);
	return 0;
}

/* ---- who may ---- */

static bool has_group(int sock, gid_t gid)
{
	_cleanup_(freep) gid_t *groups = NULL;
	socklen_t len = 0;

	/* asked for none, it says how many there are */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, NULL, &len) == 0 || errno != ERANGE)
		return false;
	groups = malloc(len);
	if (!groups || getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return false;
	for (size_t i = 0; i < len / sizeof(*groups); i++)
		if (groups[i] == gid)
			return true;
	return false;
}

bool declare_is_admin(const struct declare *d, const struct declarer *who)
{
	if (who->uid == 0)
		return true;
	return d->o.admin_gid != NO_GID &&
	       (who->gid == d->o.admin_gid || (who->sock && has_group(who->sock, d->o.admin_gid)));
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
 * Whoever connected may have handed the connection on and ended, and its pid be another's of the
 * same user by now. Before 6.5 nothing tells.
 */
static bool is_gone(const struct declarer *who)
{
	socklen_t len = sizeof(int);
	struct pollfd p = { .events = POLLIN };
	bool gone;

	if (!who->sock)
		return false;
	if (getsockopt(who->sock, SOL_SOCKET, SO_PEERPIDFD, &p.fd, &len) < 0)
		return errno != ENOPROTOOPT;
	gone = poll(&p, 1, 0) != 0;
	close(p.fd);
	return gone;
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
	bool own = r->means == MEANS_OWN_CGROUP;

	if (r->cgroup && !(own && may_own_cgroup(d, who, r->cgroup)))
		return fail_with(why, WHY_LEN, -EPERM,
			"process %d (uid %u) may not declare for %s %.128s; only root and the --admin-gid "
			"may, and who is in a cgroup if all in it are of one user",
			who->pid, who->uid, names_name(&select_names, r->by), r->cgroup);
	if (!r->cgroup && !declare_may(who, r->pid))
		return fail_with(why, WHY_LEN, -EPERM,
			"process %d is not yours: process %d (uid %u) may declare for itself, its "
			"descendants and its parent of the same user; root and the --admin-gid for any",
			r->pid, who->pid, who->uid);
	return 0;
}

/*
 * Who is worth naming: behind a command that only passes on, whoever ran it. Any process can call
 * itself that, and put the blame on its parent: on one of its own user only.
 */
static pid_t worth_naming(pid_t pid, struct proc_stat *ret)
{
	struct proc_stat s, parent;

	if (proc_read(pid, &s) < 0)
		return pid;
	if ((strcmp(s.comm, "phasewatch") != 0 && strcmp(s.comm, "systemd-notify") != 0) ||
		proc_read(s.ppid, &parent) < 0 || parent.uid != s.uid) {
		*ret = s;
		return pid;
	}
	*ret = parent;
	return s.ppid;
}

/* ---- declarations ---- */

struct asker {
	struct audit_who who;
	pid_t by_pid; /* worth naming */
	struct proc_stat by;
};

static int find_inner_pid(const struct declarer *who, pid_t *pid, char why[static WHY_LEN])
{
	pid_t inner = *pid;
	int err;

	*pid = 0; /* by our numbers it is none yet */
	err = proc_translate(inner, who->pid, pid);
	if (err == -ESRCH)
		return fail_with(why, WHY_LEN, err,
			"there is no process %d in the caller's pid namespace", inner);
	if (err)
		return fail_with(why, WHY_LEN, err, "cannot look into the caller's pid namespace: %s",
			strerror(-err));
	return 0;
}

static int find_parent(const struct declarer *who, pid_t *pid, char why[static WHY_LEN])
{
	*pid = proc_parent(who->pid);
	return *pid ? 0 :
		      fail_with(why, WHY_LEN, -EINVAL,
			      "the caller's parent is init or outside of its pid namespace, no service: "
			      "name a process or a cgroup");
}

/* On a hybrid host the root is where everybody is. */
static int find_own_cgroup(
	const struct declarer *who, char own[static PATH_MAX], char why[static WHY_LEN])
{
	int err = proc_cgroup2(who->pid, own, PATH_MAX);

	if (err)
		return fail_with(why, WHY_LEN, -EINVAL, "cannot tell the caller's cgroup v2: %s",
			strerror(-err));
	if (strcmp(own, "/") == 0)
		return fail_with(why, WHY_LEN, -EINVAL,
			"the caller is in the root cgroup, like everybody who is in no other: "
			"name a process");
	return 0;
}

/* What the caller means becomes what is in the request; a path is put into `own`. */
static int find_what_is_meant(const struct declarer *who, struct declaration_request *r,
	char own[static PATH_MAX], char why[static WHY_LEN])
{
	switch (r->means) {
	case MEANS_INNER_PID:
		return find_inner_pid(who, &r->pid, why);
	case MEANS_PARENT:
		return find_parent(who, &r->pid, why);
	case MEANS_OWN_CGROUP:
		r->cgroup = own;
		return find_own_cgroup(who, own, why);
	case MEANS_CALLER:
		r->pid = who->pid;
		break;
	case MEANS_THIS:
		break;
	}
	return 0;
}

/* False: whoever asked is gone, and /proc shows nothing or somebody else. */
static bool get_to_know(const struct declarer *who, struct asker *ret)
{
	*ret = (struct asker){ .who = { who->pid, who->uid, who->gid } };
	audit_who_read(&ret->who);
	ret->by_pid = worth_naming(who->pid, &ret->by);
	if (!is_gone(who)) /* after that has been read */
		return true;
	*ret = (struct asker){ .who = { who->pid, who->uid, who->gid }, .by_pid = who->pid };
	return false;
}

/* Whether they may ask this, and who they are. `limited`: they are no admin. */
static int admit(struct declare *d, const struct declarer *who, bool limited,
	struct declaration_request *r, char own[static PATH_MAX], struct asker *ret,
	char why[static WHY_LEN])
{
	int err = 0;

	if (!who->pid && (limited || r->means != MEANS_THIS))
		err = fail_with(why, WHY_LEN, -EPERM,
			"the caller is in a pid namespace that cannot be seen from here");
	if (!err)
		err = find_what_is_meant(who, r, own, why);
	if (!err && limited)
		err = check_may(d, who, r, why);
	/* which is why it may not, then */
	if (!get_to_know(who, ret) && who->pid && (limited || r->means != MEANS_THIS))
		err = fail_with(why, WHY_LEN, -EPERM, "process %d, which connected, has ended",
			who->pid);
	if (!err && limited)
		err = check_subjects(d, who, r, why);
	return err;
}

static void tell_declared(
	struct declare *d, struct audit_record *record, const struct declaration_result *result)
{
	const struct subject *s = result->subject;

	record->verdict = result->changed ? AUDIT_ACCEPTED : AUDIT_UNCHANGED;
	record->key = s->key;
	record->name = s->name;
	record->from = phase_name(result->from);
	record->epoch = s->now.epoch;
	audit(d, record);
}

/* Which cgroup it was for is known where it is there and only the move was wrong. */
static void tell_refused(struct declare *d, struct audit_record *record,
	const struct declaration_request *r, int err, const char *why)
{
	struct pw_subject_key key = {
		.kind = r->cgroup ? PW_KIND_CGROUP : PW_KIND_PROCESS, .id = r->cgroup ? 0 : r->pid };
	const struct subject *s;
	struct proc_stat target;
	uint64_t id;

	if (r->cgroup && err == -ESTALE && subjects_find_cgroup(d->subjects, r, &id) == 0)
		key.id = id;
	s = subjects_find(d->subjects, &key);
	record->verdict = AUDIT_REFUSED;
	record->key = key;
	record->name = s ? s->name : r->cgroup;
	if (!record->name && proc_read(r->pid, &target) == 0)
		record->name = target.comm;
	if (key.id)
		record->from = phase_name(s ? s->now.phase : PW_UNDECLARED);
	record->epoch = r->epoch ? r->epoch : s ? s->now.epoch : 0;
	record->why = why;
	audit(d, record);
}

static void charge(struct declare *d, struct user *u, uint64_t took_ns)
{
	uint64_t charged_ns = NS_PER_S / d->o.rate;

	if (took_ns * SHARE > charged_ns)
		u->full_ns += took_ns * SHARE - charged_ns;
}

int declare_phase(struct declare *d, const struct declarer *who,
	const struct declaration_request *request, struct declaration_result *ret,
	char why[static WHY_LEN])
{
	struct user *user = declare_is_admin(d, who) ? NULL : user_of(d, who->uid);
	struct declaration_request r = *request;
	uint64_t begin_ns = clock_boot_ns();
	char own[PATH_MAX];
	struct asker asker;
	struct audit_record record = { .who = &asker.who, .by_comm = asker.by.comm,
		.to = phase_name(r.phase), .source = who->source, .reason = r.reason, .count = 1 };
	int err;

	err = user ? check_rate(d, user, who, why) : 0;
	if (err) /* is told in sum */
		return err;
	err = admit(d, who, user, &r, own, &asker, why);
	if (err == -EPERM || err == -EDQUOT)
		log_refusal(d, phase_name(r.phase), why);
	record.by_pid = asker.by_pid;
	if (!err) {
		r.by_pid = asker.by_pid;
		r.by_uid = who->uid;
		r.source = who->source;
		d->busy = true;
		err = subjects_declare(d->subjects, &r, ret, why);
		d->busy = false;
	}
	if (err)
		tell_refused(d, &record, &r, err, why);
	else
		tell_declared(d, &record, ret);
	if (user)
		charge(d, user, clock_boot_ns() - begin_ns);
	return err;
}

void declare_refuse(struct declare *d, const struct declarer *who,
	const struct declaration_request *request, int err, const char *why)
{
	struct user *user = declare_is_admin(d, who) ? NULL : user_of(d, who->uid);
	struct asker asker;
	struct audit_record record = { .who = &asker.who, .by_comm = asker.by.comm,
		.to = phase_name(request->phase), .source = who->source, .reason = request->reason,
		.count = 1 };
	char too_often[WHY_LEN];

	if (user && check_rate(d, user, who, too_often) < 0)
		return;
	get_to_know(who, &asker);
	record.by_pid = asker.by_pid;
	tell_refused(d, &record, request, err, why);
}

void declare_moved(struct declare *d, const struct subject *s, const struct event_phase *p)
{
	struct audit_who who = { p->now.by_pid, p->now.by_uid, NO_GID };
	const struct audit_record record = { .verdict = AUDIT_ACCEPTED,
		.who = p->now.by_pid ? &who : NULL, .key = s->key, .name = s->name,
		.from = phase_name(p->from), .to = phase_name(p->now.phase), .epoch = p->now.epoch,
		.source = p->now.source, .reason = p->now.reason, .count = 1 };

	if (d->busy && p->declared) /* whose record has more to tell */
		return;
	audit_who_read(&who);
	if (!who.comm[0] && p->by_comm)
		snprintf(who.comm, sizeof(who.comm), "%s", p->by_comm);
	audit(d, &record);
}
