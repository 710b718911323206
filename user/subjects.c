// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <search.h>
#include <string.h>
#include <time.h>
#include <bpf/bpf.h>

#include "cgroup.h"
#include "clock.h"
#include "mounts.h"
#include "names.h"
#include "opts.h"
#include "subjects.h"
#include "util.h"

#define SCAN_BATCH 256
#define GONE_NAMES 256
#define KERNEL_MOVE_NS (2 * NS_PER_S)
#define ANCESTORS_MAX 64

struct subjects {
	void *tree; /* of struct subject, by key */
	struct kernel *k;
	struct proc_names *names;
	const char *pod_logs;
	struct subjects_listener listener;
	size_t flaps_allowed;
	unsigned int scan; /* number of the reconciliation */
	struct {
		struct pw_subject_key key;
		char name[SUBJECT_NAME_LEN];
	} gone[GONE_NAMES]; /* connects to them are still refused */
	size_t next_gone;
};

static int compare(const void *a, const void *b)
{
	const struct pw_subject_key *x = a, *y = b; /* the first member of struct subject */

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static struct subject *find(const struct subjects *s, const struct pw_subject_key *key)
{
	void *node = tfind(key, (void *const *)&s->tree, compare);

	return node ? *(struct subject **)node : NULL;
}

const struct subject *subjects_find(const struct subjects *s, const struct pw_subject_key *key)
{
	return find(s, key);
}

static struct subject *add(struct subjects *s, const struct pw_subject_key *key)
{
	struct subject *subject = calloc(1, sizeof(*subject));

	if (!subject)
		return NULL;
	subject->key = *key;
	if (!tsearch(subject, &s->tree, compare)) {
		free(subject);
		return NULL;
	}
	return subject;
}

const char *subjects_name(const struct subjects *s, const struct pw_subject_key *key)
{
	const struct subject *subject = find(s, key);

	if (subject)
		return subject->name[0] ? subject->name : NULL;
	for (size_t i = s->next_gone; i && i + GONE_NAMES > s->next_gone; i--)
		if (compare(&s->gone[(i - 1) % GONE_NAMES].key, key) == 0)
			return s->gone[(i - 1) % GONE_NAMES].name;
	return NULL;
}

static void drop(struct subjects *s, struct subject *subject)
{
	if (subject->name[0]) {
		s->gone[s->next_gone % GONE_NAMES].key = subject->key;
		strcpy(s->gone[s->next_gone % GONE_NAMES].name, subject->name);
		s->next_gone++;
	}
	tdelete(subject, &s->tree, compare);
	free(subject);
}

static void forget(struct subjects *s, struct subject *subject)
{
	s->listener.left(subject, s->listener.arg);
	bpf_map_delete_elem(s->k->stats, &subject->key);
	drop(s, subject);
}

int subjects_new(struct subjects **ret, struct kernel *k, struct proc_names *names, size_t flaps,
	const char *pod_logs, const struct subjects_listener *listener)
{
	struct subjects *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	*s = (struct subjects){ .k = k, .names = names, .pod_logs = pod_logs,
		.flaps_allowed = flaps, .listener = *listener };
	*ret = s;
	return 0;
}

void subjects_free(struct subjects *s)
{
	if (s)
		tdestroy(s->tree, free);
	free(s);
}

/* As pw_scope() in bpf/task.h; 0: it is gone. */
static uint64_t scope_of(const struct subjects *s, pid_t pid)
{
	char path[PATH_MAX];
	struct proc_stat stat;
	uint64_t id;

	if (proc_cgroup2(pid, path, sizeof(path)) < 0 || proc_read(pid, &stat) < 0)
		return 0;
	if (strcmp(path, "/") == 0)
		return PW_SCOPE_SESSION | (uint64_t)stat.session;
	return cgroup_find(proc_names_cgroup_root(s->names), path, &id) < 0 ? 0 : id;
}

/* A member that went out of its tree's scope is none any more. */
static bool in_scope(const struct subjects *s, pid_t pid, const struct pw_member *m)
{
	return !m->scope || scope_of(s, pid) == m->scope;
}

/* `pids` is the caller's to free. */
static int members_of(
	const struct subjects *s, const struct subject *subject, pid_t **pids, size_t *ret_n)
{
	_cleanup_(freep) pid_t *found = NULL;
	size_t n = 0, room = 0;
	struct pw_member m;
	uint32_t pid, next;
	bool more;

	if (subject->key.kind == PW_KIND_CGROUP)
		return cgroup_pids(proc_names_cgroup_root(s->names), subject->key.id, pids, ret_n);
	more = bpf_map_get_next_key(s->k->members, NULL, &next) == 0;
	while (more) {
		pid = next;
		more = bpf_map_get_next_key(s->k->members, &pid, &next) == 0;
		if (bpf_map_lookup_elem(s->k->members, &pid, &m) < 0 ||
			m.subject != subject->key.id || !in_scope(s, pid, &m))
			continue;
		if (n == room) {
			pid_t *larger = realloc(found, (room = room ? 2 * room : 64) * sizeof(*found));

			if (!larger)
				return -ENOMEM;
			found = larger;
		}
		found[n++] = pid;
	}
	*ret_n = n;
	*pids = TAKE_PTR(found);
	return 0;
}

void subjects_look(const struct subjects *s)
{
	int err = kernel_look(s->k);

	if (err < 0 && err != -ENOENT)
		log_warning("cannot count connections in flight: %s", strerror(-err));
}

int subjects_tally(const struct subjects *s, const struct subject *subject, struct pw_tally *ret)
{
	return bpf_map_lookup_elem(s->k->tallies, &subject->key, ret) < 0 ? -errno : 0;
}

int subjects_stats(const struct subjects *s, const struct subject *subject, struct pw_stats *ret)
{
	_cleanup_(freep) pid_t *pids = NULL;
	size_t n;

	if (bpf_map_lookup_elem(s->k->stats, &subject->key, ret) < 0)
		return -errno;
	if (ret->look != s->k->control->look)
		ret->queued = ret->unseen = ret->open = 0;
	ret->look = s->k->control->look;
	if (subject->key.kind == PW_KIND_CGROUP && members_of(s, subject, &pids, &n) == 0)
		ret->members = n;
	return 0;
}

int subjects_cgroup_pids(const struct subjects *s, const char *cgroup, pid_t **ret, size_t *n)
{
	int root = proc_names_cgroup_root(s->names), err;
	uint64_t id;

	err = cgroup_find(root, cgroup, &id);
	return err ? err : cgroup_pids(root, id, ret, n);
}

struct visit {
	void (*fn)(const struct subject *subject, void *arg);
	void *arg;
};

static void visit_node(const void *node, VISIT which, void *closure)
{
	const struct visit *v = closure;

	if (which == postorder || which == leaf)
		v->fn(*(struct subject *const *)node, v->arg);
}

void subjects_for_each(const struct subjects *s,
	void (*fn)(const struct subject *subject, void *arg), void *arg)
{
	struct visit v = { fn, arg };

	twalk_r(s->tree, visit_node, &v);
}

/* ---- moves ---- */

enum phase_move phase_move(const struct pw_declaration *now, uint32_t phase, uint64_t epoch)
{
	if (epoch < now->epoch)
		return MOVE_STALE;
	if (epoch > now->epoch)
		return MOVE_NEW_EPOCH;
	if (phase == now->phase)
		return MOVE_NONE;
	return phase > now->phase ? MOVE_FORWARD : MOVE_BACKWARD;
}

void declaration_enter(struct pw_declaration *d, uint32_t phase, uint64_t epoch, uint64_t now_ns)
{
	if (epoch != d->epoch)
		memset(d->entered_ns, 0, sizeof(d->entered_ns));
	d->epoch = epoch;
	d->phase = phase;
	d->since_ns = now_ns;
	d->entered_ns[phase - 1] = now_ns;
}

uint64_t declaration_drain_ns(const struct pw_declaration *d)
{
	return d->entered_ns[PW_DRAIN - 1] ? d->entered_ns[PW_DRAIN - 1] : d->since_ns;
}

uint64_t declaration_quiet_since(
	const struct pw_declaration *d, const struct pw_stats *stats, uint64_t grace_ns)
{
	uint64_t since = declaration_drain_ns(d) + grace_ns;

	if (d->phase == PW_SHUTDOWN && d->since_ns < since) /* which ends the grace */
		since = d->since_ns;
	return stats->last_misrouted_ns > since ? stats->last_misrouted_ns : since;
}

/* A unit's name says more than its program's. */
static void choose_name(struct subjects *s, struct subject *subject, const struct proc_stat *stat)
{
	char line[512], path[64], *unit, *dot;
	_cleanup_(fclosep) FILE *f = NULL;

	if (subject->key.kind == PW_KIND_CGROUP) {
		const char *cgroup = proc_names_cgroup(s->names, subject->key.id);

		if (cgroup)
			select_name(cgroup, s->pod_logs, subject->name, sizeof(subject->name));
		return;
	}

	snprintf(subject->name, sizeof(subject->name), "%.*s", PW_COMM_LEN, stat->comm);
	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/cgroup", (uint64_t)subject->key.id);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		unit = strrchr(line, '/');
		dot = unit ? strstr(unit, ".service\n") : NULL;
		if (!dot || (strncmp(line, "0::", 3) != 0 && !strstr(line, ":name=systemd:")))
			continue;
		snprintf(subject->name, sizeof(subject->name), "%.*s", (int)(dot - unit - 1),
			unit + 1);
	}
}

/* The subject that the process belongs to without a declaration of its own; 0: none. */
static pid_t outer_subject(struct subjects *s, pid_t pid, uint64_t start_ns)
{
	struct pw_member m;
	uint32_t tgid = pid;

	if (bpf_map_lookup_elem(s->k->members, &tgid, &m) < 0 || !pw_same_start(m.start_ns, start_ns))
		return 0;
	return m.subject == tgid ? 0 : m.subject;
}

static int write_declaration(struct subjects *s, const struct subject *subject)
{
	return bpf_map_update_elem(s->k->phases, &subject->key, &subject->now, BPF_ANY) < 0 ?
		       -errno :
		       0;
}

/* What the kernel knows exactly of a member, and /proc in units of 10 ms. */
static bool own_member(struct subjects *s, const struct subject *subject, struct pw_member *ret)
{
	uint32_t tgid = subject->key.id;

	return bpf_map_lookup_elem(s->k->members, &tgid, ret) == 0 && ret->subject == tgid &&
	       pw_same_start(ret->start_ns, subject->now.start_ns);
}

/* Its declaration is out of the map: its processes are nobody's from now on. */
static void release_members(struct subjects *s, const struct subject *subject)
{
	_cleanup_(freep) pid_t *pids = NULL;
	size_t n;

	if (members_of(s, subject, &pids, &n) < 0)
		return;
	for (size_t i = 0; i < n; i++)
		bpf_map_delete_elem(s->k->members, &pids[i]);
}

static bool is_below(const char *path, const char *cgroup)
{
	size_t len = strlen(cgroup);

	return strncmp(path, cgroup, len) == 0 && (len == 1 || path[len] == '/' || !path[len]);
}

/* A process of what nobody declared (--auto); 0: it is no such one, or over. */
static pid_t some_undeclared(struct subjects *s, const struct subject *subject)
{
	_cleanup_(freep) pid_t *pids = NULL;
	struct pw_member m;
	uint32_t pid;
	size_t n;

	if (subject->key.kind != PW_KIND_PROCESS || subject->now.source != PW_SOURCE_LISTEN)
		return 0;
	if (own_member(s, subject, &m))
		return m.scope ? subject->key.id : 0;
	if (members_of(s, subject, &pids, &n) < 0 || !n)
		return 0;
	pid = pids[0];
	return bpf_map_lookup_elem(s->k->members, &pid, &m) == 0 && m.scope ? pid : 0;
}

static bool is_inside(struct subjects *s, pid_t pid, const struct subject *outer)
{
	const char *cgroup;
	char path[PATH_MAX];
	struct proc_stat stat;

	if (outer->key.kind == PW_KIND_CGROUP) {
		cgroup = proc_names_cgroup(s->names, outer->key.id);
		return cgroup && proc_cgroup2(pid, path, sizeof(path)) == 0 && is_below(path, cgroup);
	}
	for (int i = 0; i < ANCESTORS_MAX && pid > 1 && proc_read(pid, &stat) == 0; i++) {
		pid = stat.ppid;
		if ((uint64_t)pid == outer->key.id)
			return true;
	}
	return false;
}

struct inner {
	struct subjects *s;
	const struct subject *outer;
	struct subject **found;
	size_t n, room;
};

static void collect_inner(const struct subject *subject, void *arg)
{
	struct inner *inner = arg;
	pid_t pid = some_undeclared(inner->s, subject);

	if (!pid || subject == inner->outer || !is_inside(inner->s, pid, inner->outer))
		return;
	if (inner->n == inner->room) {
		size_t room = inner->room ? 2 * inner->room : 16;
		void *larger = realloc(inner->found, room * sizeof(*inner->found));

		if (!larger)
			return;
		inner->found = larger;
		inner->room = room;
	}
	inner->found[inner->n++] = find(inner->s, &subject->key);
}

/* What nobody declared is no subject of its own in what somebody has declared. */
static void absorb(struct subjects *s, const struct subject *outer)
{
	struct inner inner = { .s = s, .outer = outer };

	subjects_for_each(s, collect_inner, &inner);
	for (size_t i = 0; i < inner.n; i++) {
		s->listener.end(inner.found[i], false, s->listener.arg);
		release_members(s, inner.found[i]);
		bpf_map_delete_elem(s->k->phases, &inner.found[i]->key);
		forget(s, inner.found[i]);
	}
	free(inner.found);
}

/* The processes and sockets of a new subject that exist already. */
static int gather(struct subjects *s, const struct subject *subject, pid_t outer)
{
	bool is_cgroup = subject->key.kind == PW_KIND_CGROUP;
	_cleanup_(freep) pid_t *pids = NULL;
	size_t n;
	int err;

	err = is_cgroup ? members_of(s, subject, &pids, &n) :
			  kernel_adopt(s->k, subject->key.id, outer,
				  subject->now.source == PW_SOURCE_LISTEN, &pids, &n);
	if (!err)
		err = kernel_snapshot(s->k, PW_PASS_LISTENERS, &subject->key, pids, n);
	if (!err)
		err = kernel_snapshot(s->k, PW_PASS_CONNECTIONS, &subject->key, pids, n);
	for (size_t i = 0; !err && i < n; i++) {
		struct pw_process p = { .pid = pids[i] };
		struct proc_stat stat;

		/* its program's name will be wanted when it has exited */
		if (proc_read(pids[i], &stat) == 0) {
			p.start_ns = stat.start_ns;
			proc_names_exe(s->names, &p);
		}
	}
	return err;
}

/*
 * A subject begins. The map has to have it meanwhile: UNDECLARED, unless it lies in another subject,
 * whose members and sockets are known. `counted`: the kernel half may count for it already.
 */
static int set_up(struct subjects *s, struct subject *subject, bool counted)
{
	struct pw_stats stats = { .life = clock_boot_ns() };
	struct pw_declaration final = subject->now;
	bool is_cgroup = subject->key.kind == PW_KIND_CGROUP;
	struct pw_member own = { 0 };
	pid_t outer;
	int err;

	if (bpf_map_update_elem(
		    s->k->stats, &subject->key, &stats, counted ? BPF_NOEXIST : BPF_ANY) < 0 &&
		errno != EEXIST)
		return -errno;
	outer = is_cgroup ? 0 : outer_subject(s, subject->key.id, subject->now.start_ns);
	if (!outer)
		subject->now.phase = PW_UNDECLARED;
	err = write_declaration(s, subject);
	subject->now = final;
	if (!err && final.source != PW_SOURCE_LISTEN)
		absorb(s, subject);
	if (!err)
		err = gather(s, subject, outer);
	if (err || is_cgroup)
		return err;
	if (!own_member(s, subject, &own))
		return -ESRCH;
	subject->now.start_ns = own.start_ns;
	return 0;
}

static int set_active_on_listen(struct subjects *s, const struct subject *subject)
{
	uint32_t tgid = subject->key.id;
	struct pw_member own;

	if (!own_member(s, subject, &own))
		return -ESRCH;
	own.flags |= PW_ACTIVE_ON_LISTEN;
	if (bpf_map_update_elem(s->k->members, &tgid, &own, BPF_EXIST) < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	return 0;
}

static bool wants_hooks(uint32_t phase)
{
	return phase == PW_INIT || phase == PW_DRAIN || phase == PW_SHUTDOWN;
}

struct wanted {
	bool hooks;
	bool cgroups;
};

static void add_wanted(const struct subject *subject, void *arg)
{
	struct wanted *wanted = arg;

	wanted->hooks |= wants_hooks(subject->now.phase);
	wanted->cgroups |= subject->key.kind == PW_KIND_CGROUP;
}

static int rearm(struct subjects *s)
{
	struct wanted wanted = { 0 };

	subjects_for_each(s, add_wanted, &wanted);
	s->k->control->cgroups = wanted.cgroups;
	return kernel_arm(s->k, wanted.hooks);
}

/*
 * Listeners that came by another way than listen(2), connections accepted unseen; and where a request
 * is under way on an old connection, what is read next is no new one.
 */
static int mark_turns(struct subjects *s, const struct subject *subject)
{
	_cleanup_(freep) pid_t *pids = NULL;
	size_t n;
	int err;

	if (subject->now.phase < PW_DRAIN)
		return 0;
	err = members_of(s, subject, &pids, &n);
	for (int pass = PW_PASS_LISTENERS; !err && pass <= PW_PASS_TURNS; pass++)
		err = kernel_snapshot(s->k, pass, &subject->key, pids, n);
	return err;
}

/* ---- what is told ---- */

static void violate(struct subjects *s, const struct subject *subject, enum pw_violation kind,
	pid_t by_pid, uid_t by_uid, const char *detail)
{
	struct event_violation v = { .key = subject->key, .now = subject->now, .kind = kind,
		.detail = detail, .by_pid = by_pid, .by_uid = by_uid };
	struct proc_stat by;

	if (by_pid && proc_read(by_pid, &by) == 0)
		v.by_comm = by.comm;
	s->listener.violation(subject, &v, s->listener.arg);
}

/* A life cycle is begun anew: in moderation. */
static void count_flap(struct subjects *s, struct subject *subject)
{
	uint64_t now = clock_boot_ns();
	uint64_t *oldest = &subject->flaps[subject->n_flaps++ % s->flaps_allowed];
	bool too_many = *oldest && now - *oldest < 3600 * NS_PER_S;
	char detail[128];

	*oldest = now;
	if (!too_many)
		return;
	snprintf(detail, sizeof(detail), "began its life cycle anew %zu times within an hour",
		s->flaps_allowed + 1);
	violate(s, subject, PW_FLAPPING, subject->now.by_pid, subject->now.by_uid, detail);
}

static void tell(struct subjects *s, struct subject *subject, uint32_t from, bool declared,
	const char *by_comm)
{
	struct event_phase p = { .key = subject->key, .now = subject->now, .from = from,
		.declared = declared, .by_comm = by_comm };
	struct proc_stat by;

	if (!by_comm && p.now.by_pid && proc_read(p.now.by_pid, &by) == 0)
		p.by_comm = by.comm;
	subject->untold = false;
	s->listener.phase(subject, &p, s->listener.arg);
	if (p.now.phase < from)
		count_flap(s, subject);
}

/* ---- the map as others write it ---- */

/* Fills in what a direct writer left out, so that durations and pid reuse can be told. */
static void complete(struct pw_declaration *d, uint64_t start_ns)
{
	if (!d->start_ns)
		d->start_ns = start_ns;
	if (!d->epoch)
		d->epoch = 1;
	if (d->epoch > PW_EPOCH_MAX)
		d->epoch = PW_EPOCH_MAX;
	if (d->source >= PW_SOURCES) /* as the kernel half reads it */
		d->source = PW_SOURCE_MAP;
	if (!d->since_ns || d->since_ns > clock_boot_ns())
		d->since_ns = clock_boot_ns();
	d->entered_ns[d->phase - 1] = d->since_ns;
	d->reason[PW_REASON_LEN - 1] = '\0';
}

static bool differs(const struct pw_declaration *a, const struct pw_declaration *b)
{
	return a->phase != b->phase || a->epoch != b->epoch || a->since_ns != b->since_ns ||
	       a->start_ns != b->start_ns;
}

/*
 * The declared process itself is gone, and its members may live on. At the start there may be records
 * to come of it, and its end is to be told.
 */
static int found_headless(struct subjects *s, const struct pw_subject_key *key,
	const struct pw_declaration *d, struct subject *subject)
{
	struct subject unknown = { .key = *key };
	struct pw_stats stats;

	if (!subject && subjects_stats(s, &unknown, &stats) == 0 &&
		(stats.members > 0 || s->scan == 1)) {
		subject = add(s, key);
		if (!subject)
			return -ENOMEM;
		subject->untold = true;
		subject->now = *d;
		complete(&subject->now, 0);
	}
	if (subject) {
		subject->seen = s->scan;
	} else {
		bpf_map_delete_elem(s->k->phases, key);
		bpf_map_delete_elem(s->k->stats, key);
		bpf_map_delete_elem(s->k->tallies, key);
	}
	return 0;
}

/* 0: what was declared exists, and `stat` tells of a process; -ESRCH: it is gone. */
static int look_up(struct subjects *s, const struct pw_subject_key *key, uint64_t start_ns,
	struct proc_stat *stat)
{
	int err;

	if (key->kind == PW_KIND_CGROUP)
		return cgroup_check(proc_names_cgroup_root(s->names), key->id);
	err = proc_read(key->id, stat);
	if (!err && !pw_same_start(start_ns, stat->start_ns))
		err = -ESRCH;
	return err;
}

pid_t subjects_above(struct subjects *s, pid_t pid)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS };
	const struct subject *subject;
	struct proc_stat stat;

	if (proc_read(pid, &stat) < 0)
		return 0;
	key.id = outer_subject(s, pid, stat.start_ns);
	subject = key.id ? find(s, &key) : NULL;
	return subject && look_up(s, &key, subject->now.start_ns, &stat) == 0 ? key.id : 0;
}

static bool valid_key(const struct pw_subject_key *key)
{
	if (key->reserved)
		return false;
	return key->kind == PW_KIND_CGROUP ||
	       (key->kind == PW_KIND_PROCESS && key->id >= 1 && key->id <= PID_MAX);
}

/* Of a cgroup that somebody wrote while no daemon ran, nothing tells. */
static bool was_set_up(struct subjects *s, const struct subject *subject)
{
	struct pw_member member;
	struct pw_stats stats;

	if (subject->key.kind == PW_KIND_CGROUP)
		return s->scan <= 1 &&
		       bpf_map_lookup_elem(s->k->stats, &subject->key, &stats) == 0;
	return own_member(s, subject, &member);
}

static void check_move(struct subjects *s, struct subject *subject, const struct pw_declaration *old)
{
	const struct pw_declaration *now = &subject->now;
	enum phase_move move = phase_move(old, now->phase, now->epoch);
	char detail[192];

	if (move == MOVE_STALE)
		snprintf(detail, sizeof(detail),
			"epoch %" PRIu64 " was written to the map after epoch %" PRIu64,
			(uint64_t)now->epoch, (uint64_t)old->epoch);
	else if (move == MOVE_BACKWARD)
		snprintf(detail, sizeof(detail), "%s was written to the map after %s of epoch %" PRIu64,
			phase_name(now->phase), phase_name(old->phase), (uint64_t)old->epoch);
	else
		return;
	violate(s, subject, move == MOVE_STALE ? PW_STALE_EPOCH : PW_BACKWARD, 0, 0, detail);
}

/* By the kernel half, whose record is on its way. */
static bool will_be_told(const struct pw_declaration *d)
{
	return (d->source == PW_SOURCE_SIGNAL || d->source == PW_SOURCE_LISTEN) &&
	       clock_boot_ns() - d->since_ns < KERNEL_MOVE_NS;
}

static int found(struct subjects *s, const struct pw_subject_key *key, struct pw_declaration d)
{
	struct subject *subject = find(s, key);
	const struct pw_declaration written = d;
	struct pw_declaration old = { 0 };
	uint32_t from = PW_UNDECLARED;
	struct proc_stat stat = { 0 };
	bool is_new = false;
	int err = 0;

	if (!valid_key(key) || !names_name(&declared_phase_names, d.phase))
		return 0;
	if (subject && !differs(&subject->now, &d)) {
		subject->seen = s->scan;
		return 0;
	}
	err = look_up(s, key, d.start_ns, &stat);
	if (err == -ESRCH)
		return found_headless(s, key, &d, subject);
	if (err) { /* such as no file descriptors left: nothing is known, nothing changes */
		if (subject)
			subject->seen = s->scan;
		return err;
	}
	if (!subject) {
		subject = add(s, key);
		if (!subject)
			return -ENOMEM;
		is_new = true;
		choose_name(s, subject, &stat);
	} else {
		old = subject->now;
		from = old.phase;
		if (!d.epoch)
			d.epoch = subject->now.epoch;
		if (d.epoch == subject->now.epoch)
			memcpy(d.entered_ns, subject->now.entered_ns, sizeof(d.entered_ns));
		if (d.phase != from && d.since_ns == subject->now.since_ns)
			d.since_ns = 0; /* left over from the value that was changed */
	}
	subject->seen = s->scan;
	complete(&d, stat.start_ns);
	subject->now = d;
	if (is_new && was_set_up(s, subject)) { /* by an earlier daemon, or by the kernel half */
		subject->untold = true;
		return memcmp(&d, &written, sizeof(d)) == 0 ? 0 : write_declaration(s, subject);
	}
	if (is_new)
		err = set_up(s, subject, true);
	if (!err)
		err = write_declaration(s, subject);
	if (err)
		return err == -ESRCH ? 0 : err;
	s->k->control->counters.reconciles++;
	tell(s, subject, from, false, NULL);
	if (!is_new)
		check_move(s, subject, &old);
	return 0;
}

/* ---- declarations ---- */

static void refuse_move(const struct subject *subject, enum phase_move move,
	const struct declaration_request *r, uint64_t epoch, char why[static WHY_LEN])
{
	const struct pw_declaration *now = &subject->now;

	if (move == MOVE_STALE)
		fail_with(why, WHY_LEN, -ESTALE,
			"epoch %" PRIu64 " is older than epoch %" PRIu64
			", which is in force for %s[%" PRIu64 "]; declare for that one or a later one",
			epoch, (uint64_t)now->epoch, subject->name, (uint64_t)subject->key.id);
	else
		fail_with(why, WHY_LEN, -ESTALE,
			"%s[%" PRIu64 "] is in %s of epoch %" PRIu64
			" and cannot go back to %s; phases only move forward, epoch %" PRIu64
			" would start a new life cycle",
			subject->name, (uint64_t)subject->key.id, phase_name(now->phase),
			(uint64_t)now->epoch, phase_name(r->phase), (uint64_t)now->epoch + 1);
}

static int declare_for(struct subjects *s, struct subject *subject, bool is_new,
	const struct declaration_request *r, struct declaration_result *ret,
	char why[static WHY_LEN])
{
	struct pw_declaration before = subject->now;
	uint64_t epoch = r->epoch ? r->epoch : before.epoch ? before.epoch : 1;
	enum phase_move move = is_new ? MOVE_FORWARD : phase_move(&before, r->phase, epoch);
	struct pw_stats stats = { 0 };
	int err = 0;

	if (move == MOVE_BACKWARD && r->or_later)
		move = MOVE_NONE;
	if (move == MOVE_STALE || move == MOVE_BACKWARD) {
		refuse_move(subject, move, r, epoch, why);
		violate(s, subject, move == MOVE_STALE ? PW_STALE_EPOCH : PW_BACKWARD, r->by_pid,
			r->by_uid, why);
		return -ESTALE;
	}
	if (move != MOVE_NONE) {
		subject->now.source = r->source;
		subject->now.by_pid = r->by_pid;
		subject->now.by_uid = r->by_uid;
		memset(subject->now.reason, 0, sizeof(subject->now.reason));
		snprintf(subject->now.reason, sizeof(subject->now.reason), "%s",
			r->reason ? r->reason : "");
		declaration_enter(&subject->now, r->phase, epoch, clock_boot_ns());
		if (is_new)
			err = set_up(s, subject, false);
		if (!err && r->active_on_listen)
			err = set_active_on_listen(s, subject);
		if (!err)
			err = rearm(s);
		if (!err)
			err = mark_turns(s, subject);
	}
	subjects_stats(s, subject, &stats);
	if (!err && move != MOVE_NONE) {
		declaration_enter(&subject->now, r->phase, epoch, clock_boot_ns());
		err = write_declaration(s, subject);
	}
	if (err) {
		subject->now = before;
		return fail_with(why, WHY_LEN, err,
			err == -ESRCH ? "process %" PRIu64 " has just exited%s" :
			err == -E2BIG ? "cannot declare %" PRIu64 ": the map is full%s" :
					"cannot declare %" PRIu64 ": %s",
			(uint64_t)subject->key.id,
			err == -ESRCH || err == -E2BIG ? "" : strerror(-err));
	}
	ret->subject = subject;
	ret->from = before.phase;
	ret->changed = move != MOVE_NONE;
	ret->stats = stats;
	if (ret->changed)
		tell(s, subject, before.phase, true, NULL);
	return 0;
}

static int resolve_cgroup(
	struct subjects *s, const struct declaration_request *r, uint64_t *id, char why[static WHY_LEN])
{
	int root = proc_names_cgroup_root(s->names), err;
	_cleanup_(closep) int systemd = -1;

	if (r->by != SELECT_PATH) {
		systemd = mounts_open_systemd();
		return select_cgroup(&(struct select_roots){ root, systemd, s->pod_logs }, r->by, r->cgroup,
			id, why, WHY_LEN);
	}
	err = cgroup_find(root, r->cgroup, id);
	return !err ? 0 :
		      fail_with(why, WHY_LEN, -ESRCH, "there is no cgroup %.128s: %s", r->cgroup,
			      strerror(-err));
}

int subjects_find_cgroup(struct subjects *s, const struct declaration_request *r, uint64_t *id)
{
	char why[WHY_LEN];

	return resolve_cgroup(s, r, id, why);
}

/* The key and the start time of what is to be declared; `stat` only of a process. */
static int resolve(struct subjects *s, const struct declaration_request *r,
	struct pw_subject_key *key, struct proc_stat *stat, char why[static WHY_LEN])
{
	if (r->cgroup) {
		uint64_t id = 0;
		int err = resolve_cgroup(s, r, &id, why);

		*key = (struct pw_subject_key){ .kind = PW_KIND_CGROUP, .id = id };
		return err;
	}
	*key = (struct pw_subject_key){ .kind = PW_KIND_PROCESS, .id = r->pid };
	if (proc_read(r->pid, stat) < 0)
		return fail_with(why, WHY_LEN, -ESRCH, "there is no process %d", r->pid);
	if (stat->tgid != r->pid)
		return fail_with(why, WHY_LEN, -ESRCH,
			"%d is a thread of process %d; declare for that one", r->pid, stat->tgid);
	return 0;
}

int subjects_declare(struct subjects *s, const struct declaration_request *r,
	struct declaration_result *ret, char why[static WHY_LEN])
{
	struct pw_declaration written;
	struct proc_stat stat = { 0 };
	struct pw_subject_key key;
	struct subject *subject;
	bool is_new;
	int err;

	if (!names_name(&declared_phase_names, r->phase))
		return fail_with(why, WHY_LEN, -EINVAL,
			"no phase %u; use INIT, ACTIVE, DRAIN or SHUTDOWN", r->phase);
	err = resolve(s, r, &key, &stat, why);
	if (err)
		return err;
	/* what others wrote to the map comes first */
	if (bpf_map_lookup_elem(s->k->phases, &key, &written) == 0) {
		err = found(s, &key, written);
		if (err)
			return fail_with(why, WHY_LEN, err, "cannot read pw_phases: %s",
				strerror(-err));
	}

	subject = find(s, &key);
	if (subject && !pw_same_start(subject->now.start_ns, stat.start_ns)) {
		forget(s, subject); /* the pid was another process's */
		subject = NULL;
	}
	is_new = !subject;
	if (is_new) {
		subject = add(s, &key);
		if (!subject)
			return fail_with(why, WHY_LEN, -ENOMEM, "out of memory");
		subject->now.start_ns = stat.start_ns;
		choose_name(s, subject, &stat);
	}
	err = declare_for(s, subject, is_new, r, ret, why);
	if (err && is_new) {
		bpf_map_delete_elem(s->k->phases, &key);
		forget(s, subject);
		rearm(s);
	}
	return err;
}

/* ---- what the kernel half does itself ---- */

int subjects_moved(struct subjects *s, const struct pw_move_record *m)
{
	struct subject *subject = find(s, &m->key);
	bool is_new = !subject;
	int err = 0;

	/* met in the map, or declared for, before the record came */
	if (subject && !subject->untold && subject->now.since_ns >= m->now.since_ns)
		return 0;
	if (subject && !pw_same_start(subject->now.start_ns, m->now.start_ns)) {
		/* the pid was another process's; what the map has is this one's */
		s->listener.end(subject, true, s->listener.arg);
		drop(s, subject);
		is_new = true;
	}
	if (is_new) {
		struct proc_stat stat = { 0 };

		subject = add(s, &m->key);
		if (!subject)
			return -ENOMEM;
		if (m->by.pid == m->key.id)
			memcpy(stat.comm, m->by.comm, sizeof(stat.comm));
		choose_name(s, subject, &stat);
	}
	subject->now = m->now;
	subject->seen = s->scan;
	if (m->signal && sigabbrev_np(m->signal))
		snprintf(subject->now.reason, sizeof(subject->now.reason), "SIG%s",
			sigabbrev_np(m->signal));
	if (is_new || m->from == PW_UNDECLARED)
		err = gather(s, subject, 0);
	if (!err)
		err = rearm(s);
	if (!err)
		err = mark_turns(s, subject);
	tell(s, subject, m->from, false, m->by.comm);
	return err;
}

void subjects_executed(struct subjects *s, const struct pw_process *p)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = p->pid };
	struct subject *subject = find(s, &key);
	struct proc_stat stat = { 0 };

	if (!subject || !pw_same_start(subject->now.start_ns, p->start_ns))
		return;
	memcpy(stat.comm, p->comm, sizeof(stat.comm));
	s->listener.left(subject, s->listener.arg);
	choose_name(s, subject, &stat);
}

/* The topmost of its ancestors in scope that listens as well. */
static pid_t root_of(struct subjects *s, pid_t pid, const pid_t *listening, size_t n)
{
	uint64_t scope = scope_of(s, pid);
	pid_t root = pid, at = pid;
	struct proc_stat stat;

	for (int i = 0; i < ANCESTORS_MAX && proc_read(at, &stat) == 0; i++) {
		at = stat.ppid;
		if (at <= 1 || scope_of(s, at) != scope)
			break;
		if (bsearch(&at, listening, n, sizeof(at), compare_pids))
			root = at;
	}
	return root;
}

struct cgroup_search {
	struct subjects *s;
	char path[PATH_MAX];
	bool found;
};

static void look_in_cgroup(const struct subject *subject, void *arg)
{
	struct cgroup_search *c = arg;
	const char *path;

	if (c->found || subject->key.kind != PW_KIND_CGROUP)
		return;
	path = proc_names_cgroup(c->s->names, subject->key.id);
	c->found = path && is_below(c->path, path);
}

static bool has_subject(struct subjects *s, pid_t pid)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = pid };
	struct cgroup_search in = { .s = s };
	struct pw_member m;
	uint32_t tgid = pid;

	if (find(s, &key) || (bpf_map_lookup_elem(s->k->members, &tgid, &m) == 0 &&
				     in_scope(s, pid, &m)))
		return true;
	if (proc_cgroup2(pid, in.path, sizeof(in.path)) == 0)
		subjects_for_each(s, look_in_cgroup, &in);
	return in.found;
}

int subjects_find_listeners(struct subjects *s)
{
	struct declaration_request r = { .phase = PW_ACTIVE, .source = PW_SOURCE_LISTEN };
	_cleanup_(freep) pid_t *pids = NULL;
	struct declaration_result result;
	char why[WHY_LEN];
	size_t n;
	int err, made = 0;

	err = kernel_who_listens(s->k, &pids, &n);
	for (size_t i = 0; !err && i < n; i++) {
		r.pid = r.by_pid = root_of(s, pids[i], pids, n);
		if (r.pid == 1 || r.pid == getpid() || has_subject(s, r.pid))
			continue;
		err = subjects_declare(s, &r, &result, why);
		made += !err;
		if (err == -ESRCH)
			err = 0;
	}
	return err ? err : made;
}

/* ---- reconciliation ---- */

static bool anybody_left(struct subjects *s, const struct subject *subject)
{
	bool is_cgroup = subject->key.kind == PW_KIND_CGROUP, any;
	_cleanup_(freep) pid_t *pids = NULL;
	struct proc_stat stat;
	struct pw_stats stats;
	size_t n = 0;

	any = subjects_stats(s, subject, &stats) == 0 && stats.members > 0;
	/* in an empty cgroup a service may yet be started */
	if (is_cgroup && (any || subject->now.phase >= PW_DRAIN))
		return any;
	if (look_up(s, &subject->key, subject->now.start_ns, &stat) != -ESRCH)
		return true;
	/* of those who are counted some may have left its scope */
	return any && (members_of(s, subject, &pids, &n) < 0 || n > 0);
}

struct gone {
	struct subjects *s;
	struct subject *subjects[SCAN_BATCH];
	size_t n;
};

static void collect_gone(const struct subject *subject, void *arg)
{
	struct gone *gone = arg;
	struct subject *mine = find(gone->s, &subject->key);
	bool left = anybody_left(gone->s, mine);

	if (gone->n == ARRAY_SIZE(gone->subjects))
		return; /* the next time */
	/* The sockets of an exiting process are closed, and judged, after its exit is reported. */
	if (mine->seen != gone->s->scan || (!left && mine->ending))
		gone->subjects[gone->n++] = mine;
	else
		mine->ending = !left;
}

/*
 * Its processes have left its scope, and live: a server that puts itself in the background after its
 * listen(2) has a session of its own. Who has the listener now is a subject then.
 */
static bool went_elsewhere(struct subjects *s, const struct subject *subject)
{
	struct pw_stats stats;

	return s->k->control->listeners_are_subjects && subject->now.source == PW_SOURCE_LISTEN &&
	       subjects_stats(s, subject, &stats) == 0 && stats.members > 0;
}

int subjects_reconcile(struct subjects *s)
{
	struct gone gone = { .s = s };
	struct pw_subject_key *keys;
	_cleanup_(freep) struct pw_declaration *values = NULL;
	_cleanup_(freep) void *keys_memory = NULL;
	__u32 count, batch;
	bool first = true;
	int err, failed = 0, followed = -1;

	keys_memory = keys = malloc(SCAN_BATCH * sizeof(*keys));
	values = malloc(SCAN_BATCH * sizeof(*values));
	if (!keys || !values)
		return -ENOMEM;
	s->scan++;
	do {
		count = SCAN_BATCH;
		err = bpf_map_lookup_batch(
			s->k->phases, first ? NULL : &batch, &batch, keys, values, &count, NULL);
		if (err && err != -ENOENT)
			return err;
		first = false;
		for (__u32 i = 0; i < count; i++) {
			struct subject *known = find(s, &keys[i]);
			int one = 0;

			/* at the start that may be long ago, and what it is about counts already */
			if (s->scan == 1 || !will_be_told(&values[i]))
				one = found(s, &keys[i], values[i]);
			else if (known)
				known->seen = s->scan;
			if (one)
				failed = one; /* the others are looked at all the same */
		}
	} while (!err);

	subjects_for_each(s, collect_gone, &gone);
	for (size_t i = 0; i < gone.n; i++) {
		bool taken_away = gone.subjects[i]->seen != s->scan;

		bool elsewhere = !taken_away && went_elsewhere(s, gone.subjects[i]);

		if (elsewhere && followed < 0)
			followed = subjects_find_listeners(s);
		if (!taken_away && gone.subjects[i]->now.phase == PW_ACTIVE &&
			!(elsewhere && followed > 0))
			violate(s, gone.subjects[i], PW_EXIT_WITHOUT_DRAIN, 0, 0,
				"its last process ended while it was ACTIVE");
		s->listener.end(gone.subjects[i], !taken_away, s->listener.arg);
		if (taken_away)
			release_members(s, gone.subjects[i]);
		bpf_map_delete_elem(s->k->phases, &gone.subjects[i]->key);
		forget(s, gone.subjects[i]);
	}
	err = rearm(s);
	return failed ? failed : err;
}
