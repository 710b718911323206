// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <bpf/bpf.h>

#include "clock.h"
#include "opts.h"
#include "names.h"
#include "subjects.h"
#include "maps.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* ---- moves ---- */

static void test_moves_within_an_epoch(void **state)
{
	for (uint32_t from = PW_UNDECLARED; from < PW_PHASES; from++)
		for (uint32_t to = PW_INIT; to < PW_PHASES; to++) {
			struct pw_declaration now = { .phase = from, .epoch = 7 };

			assert_int_equal(phase_move(&now, to, 7), to > from   ? MOVE_FORWARD
								  : to < from ? MOVE_BACKWARD
									      : MOVE_NONE);
		}
}

static void test_moves_across_epochs(void **state)
{
	for (uint32_t from = PW_UNDECLARED; from < PW_PHASES; from++)
		for (uint32_t to = PW_INIT; to < PW_PHASES; to++) {
			struct pw_declaration now = { .phase = from, .epoch = 7 };

			/* the phase says nothing about it: the epoch does */
			assert_int_equal(phase_move(&now, to, 6), MOVE_STALE);
			assert_int_equal(phase_move(&now, to, 1), MOVE_STALE);
			assert_int_equal(phase_move(&now, to, 8), MOVE_NEW_EPOCH);
			assert_int_equal(phase_move(&now, to, UINT64_MAX), MOVE_NEW_EPOCH);
		}
}

static void test_moves_of_the_last_epoch(void **state)
{
	struct pw_declaration now = { .phase = PW_DRAIN, .epoch = UINT64_MAX };

	assert_int_equal(phase_move(&now, PW_INIT, UINT64_MAX - 1), MOVE_STALE);
	assert_int_equal(phase_move(&now, PW_INIT, 0), MOVE_STALE);
	assert_int_equal(phase_move(&now, PW_ACTIVE, UINT64_MAX), MOVE_BACKWARD);
	assert_int_equal(phase_move(&now, PW_SHUTDOWN, UINT64_MAX), MOVE_FORWARD);
}

static void test_enter(void **state)
{
	struct pw_declaration d = { .epoch = 7,
		.source = PW_SOURCE_SIGNAL,
		.start_ns = 5,
		.by_uid = 6,
		.by_pid = 8,
		.reason = "why" };

	declaration_enter(&d, PW_INIT, 7, 1000);
	declaration_enter(&d, PW_ACTIVE, 7, 2000);
	declaration_enter(&d, PW_DRAIN, 7, 3000);
	assert_int_equal(d.phase, PW_DRAIN);
	assert_int_equal(d.epoch, 7);
	assert_int_equal(d.since_ns, 3000);
	assert_memory_equal(
		d.entered_ns, ((uint64_t[]){ 1000, 2000, 3000, 0 }), sizeof(d.entered_ns));
	/* who and why are the caller's */
	assert_int_equal(d.source, PW_SOURCE_SIGNAL);
	assert_int_equal(d.start_ns, 5);
	assert_int_equal(d.by_uid, 6);
	assert_int_equal(d.by_pid, 8);
	assert_string_equal(d.reason, "why");
}

static void test_enter_a_new_epoch(void **state)
{
	struct pw_declaration d = {
		.epoch = 7, .phase = PW_SHUTDOWN, .since_ns = 4, .entered_ns = { 1, 2, 3, 4 }
	};

	declaration_enter(&d, PW_ACTIVE, 8, 9000);
	assert_int_equal(d.phase, PW_ACTIVE);
	assert_int_equal(d.epoch, 8);
	assert_int_equal(d.since_ns, 9000);
	assert_memory_equal(d.entered_ns, ((uint64_t[]){ 0, 9000, 0, 0 }), sizeof(d.entered_ns));
}

static void test_enter_every_phase(void **state)
{
	for (uint32_t phase = PW_INIT; phase < PW_PHASES; phase++) {
		struct pw_declaration d = { 0 };
		char behind[PW_REASON_LEN];

		memset(d.reason, 'x', sizeof(d.reason)); /* right behind entered_ns */
		memset(behind, 'x', sizeof(behind));
		declaration_enter(&d, phase, 1, 77);
		for (uint32_t other = PW_INIT; other < PW_PHASES; other++)
			assert_int_equal(d.entered_ns[other - 1], other == phase ? 77 : 0);
		assert_memory_equal(d.reason, behind, sizeof(behind));
	}
}

static void assert_quiet_since(
	uint32_t phase, uint64_t misrouted_ns, uint64_t grace_ns, uint64_t expected)
{
	const struct pw_declaration d = { .phase = phase,
		.since_ns = phase == PW_DRAIN ? 3000 : 4000,
		.entered_ns = { 0, 2000, 3000, phase == PW_DRAIN ? 0 : 4000 } };
	const struct pw_stats stats = { .last_misrouted_ns = misrouted_ns };

	assert_int_equal(declaration_quiet_since(&d, &stats, grace_ns), expected);
}

static void test_quiet_since(void **state)
{
	const struct pw_declaration shutdown = {
		.phase = PW_SHUTDOWN, .since_ns = 4000, .entered_ns = { 0, 0, 0, 4000 } };
	const struct pw_stats none = { 0 };

	assert_quiet_since(PW_DRAIN, 0, 0, 3000);
	assert_quiet_since(PW_DRAIN, 1000, 0, 3000); /* in INIT */
	assert_quiet_since(PW_DRAIN, 3500, 0, 3500);
	assert_quiet_since(PW_SHUTDOWN, 0, 0, 3000);
	assert_quiet_since(PW_SHUTDOWN, 4500, 0, 4500);
	/* arrivals that are expected leave no time */
	assert_quiet_since(PW_DRAIN, 0, 700, 3700);
	assert_quiet_since(PW_DRAIN, 3900, 700, 3900);
	assert_quiet_since(PW_SHUTDOWN, 0, 700, 3700);
	assert_quiet_since(PW_SHUTDOWN, 0, 9000, 4000); /* the grace is DRAIN's */
	assert_int_equal(declaration_quiet_since(&shutdown, &none, 0), 4000);
	assert_int_equal(declaration_quiet_since(&shutdown, &none, 700), 4000);
}

/* ---- the map as others write it ---- */

/*
 * Real maps without the programs. Subjects of an earlier daemon need no more than that: their
 * processes and sockets are known.
 */
struct fixture {
	struct kernel k;
	struct pw_control control;
	struct proc_names *names;
	struct subjects *s;
	pid_t pid; /* a child that lives */
	uint64_t start_ns;
	struct event_phase told[16];
	char told_name[SUBJECT_NAME_LEN];
	size_t n_told;
	enum pw_violation violations[16];
	size_t n_violations;
};

static void on_left(const struct subject *s, void *arg)
{
}

static void on_phase(const struct subject *subject, const struct event_phase *p, void *arg)
{
	struct fixture *f = arg;

	assert_in_range(f->n_told, 0, ARRAY_SIZE(f->told) - 1);
	assert_memory_equal(&p->key, &subject->key, sizeof(p->key));
	f->told[f->n_told++] = *p;
	strcpy(f->told_name, subject->name);
}

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
}

static void on_violation(const struct subject *subject, const struct event_violation *v, void *arg)
{
	struct fixture *f = arg;

	assert_in_range(f->n_violations, 0, ARRAY_SIZE(f->violations) - 1);
	assert_memory_equal(&v->key, &subject->key, sizeof(v->key));
	assert_non_null(v->detail);
	f->violations[f->n_violations++] = v->kind;
}

static pid_t start_child(uint64_t *start_ns)
{
	pid_t parent = getpid(), pid = fork();
	struct proc_stat stat;

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(1);
	}
	assert_int_equal(proc_read(pid, &stat), 0);
	*start_ns = stat.start_ns;
	return pid;
}

static void end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	make_maps(&f->k, &f->control);
	*state = f;
	if (f->k.phases < 0)
		return 0; /* not allowed: the tests skip themselves */
	assert_int_equal(proc_names_new(&f->names), 0);
	assert_int_equal(subjects_new(&f->s, &f->k, f->names, 2, PW_POD_LOGS,
				 &(struct subjects_listener){ on_phase, on_end, on_violation, on_left, f }),
		0);
	f->pid = start_child(&f->start_ns);
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	if (f->pid)
		end_child(f->pid);
	subjects_free(f->s);
	proc_names_free(f->names);
	free_maps(&f->k);
	free(f);
	return 0;
}

static struct fixture *need_maps(void **state)
{
	struct fixture *f = *state;

	if (f->k.phases < 0)
		skip();
	return f;
}

static struct pw_subject_key key_of(uint64_t id)
{
	return (struct pw_subject_key){ .kind = PW_KIND_PROCESS, .id = id };
}

static void write_map(struct fixture *f, struct pw_subject_key key, struct pw_declaration d)
{
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, BPF_ANY), 0);
}

static bool in_map(struct fixture *f, struct pw_subject_key key, struct pw_declaration *ret)
{
	struct pw_declaration d;

	return bpf_map_lookup_elem(f->k.phases, &key, ret ? ret : &d) == 0;
}

/* As an earlier daemon left it: what was declared, the member itself, and counters. */
static void leave(struct fixture *f, pid_t pid, struct pw_declaration d)
{
	struct pw_stats stats = { .life = 1, .members = 1, .accepts = 37 };
	struct pw_member member = { .subject = pid, .start_ns = d.start_ns };
	struct pw_subject_key key = key_of(pid);
	uint32_t tgid = pid;

	assert_int_equal(bpf_map_update_elem(f->k.members, &tgid, &member, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, BPF_ANY), 0);
	write_map(f, key, d);
}

static const struct subject *taken_over(struct fixture *f)
{
	struct pw_subject_key key = key_of(f->pid);
	const struct subject *s;

	leave(f, f->pid,
		(struct pw_declaration){ .phase = PW_ACTIVE,
			.source = PW_SOURCE_API,
			.epoch = 7,
			.since_ns = 1000,
			.start_ns = f->start_ns,
			.entered_ns = { 0, 1000 } });
	assert_int_equal(subjects_reconcile(f->s), 0);
	s = subjects_find(f->s, &key);
	assert_non_null(s);
	assert_int_equal(f->n_told, 0); /* it is no news */
	return s;
}

static void count(const struct subject *s, void *arg)
{
	++*(unsigned int *)arg;
}

static unsigned int n_subjects(struct fixture *f)
{
	unsigned int n = 0;

	subjects_for_each(f->s, count, &n);
	return n;
}

static void test_take_over(void **state)
{
	struct fixture *f = need_maps(state);
	const struct subject *s = taken_over(f);
	struct pw_stats stats;
	struct proc_stat stat;

	assert_int_equal(proc_read(f->pid, &stat), 0);
	assert_int_equal(s->now.phase, PW_ACTIVE);
	assert_int_equal(s->now.epoch, 7);
	assert_int_equal(s->now.since_ns, 1000);
	assert_true(s->name[0]);
	assert_int_equal(subjects_stats(f->s, s, &stats), 0);
	assert_int_equal(stats.accepts, 37);
	for (int i = 0; i < 3; i++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 0);
	assert_int_equal(n_subjects(f), 1);
}

/* Written directly while no daemon was there. What it was before is not known: it is no change. */
static void test_take_over_of_an_incomplete_declaration(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration after;

	leave(f, f->pid, (struct pw_declaration){ .phase = PW_DRAIN, .source = PW_SOURCE_MAP });
	for (int i = 0; i < 3; i++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	for (size_t i = 0; i < f->n_told; i++)
		assert_int_not_equal(f->told[i].from, f->told[i].now.phase);
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_true(after.since_ns > 0);
	assert_int_equal(after.epoch, 1);
}

/* The declared process is gone, its workers are not: the same holds for what was written. */
static void test_take_over_of_a_hostile_headless_subject(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_subject_key key = key_of(f->pid);
	struct pw_declaration d = { .phase = PW_DRAIN,
		.epoch = UINT64_MAX,
		.since_ns = UINT64_MAX,
		.start_ns = f->start_ns };
	const struct subject *s;

	memset(d.reason, 'x', sizeof(d.reason));
	leave(f, f->pid, d);
	end_child(f->pid);
	f->pid = 0;
	assert_int_equal(subjects_reconcile(f->s), 0);
	s = subjects_find(f->s, &key);
	assert_non_null(s);
	assert_true(s->now.epoch <= PW_EPOCH_MAX);
	assert_true(s->now.since_ns <= clock_boot_ns());
	assert_int_equal(strnlen(s->now.reason, PW_REASON_LEN), PW_REASON_LEN - 1);
}

/* A daemon that has run out of file descriptors knows nothing of a process: that is not its end. */
static void test_no_file_descriptors_left(void **state)
{
	struct fixture *f = need_maps(state);
	struct rlimit limit, none;
	struct pw_declaration d = { .phase = PW_DRAIN };

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = limit.rlim_max };
	write_map(f, key_of(f->pid), d);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	subjects_reconcile(f->s);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_true(in_map(f, key_of(f->pid), NULL));
}

static void test_direct_write_is_told_once(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration d = taken_over(f)->now, after;
	uint64_t before = clock_boot_ns();

	d.phase = PW_DRAIN; /* and since_ns is what it was: the writer does not care */
	d.source = PW_SOURCE_MAP;
	write_map(f, key_of(f->pid), d);
	for (int i = 0; i < 3; i++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].from, PW_ACTIVE);
	assert_int_equal(f->told[0].now.phase, PW_DRAIN);
	assert_int_equal(f->told[0].now.source, PW_SOURCE_MAP);
	assert_int_equal(f->told[0].now.epoch, 7);
	assert_in_range(f->told[0].now.since_ns, before, clock_boot_ns());
	/* what was left out is there for the kernel half and for the next reader */
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_int_equal(after.since_ns, f->told[0].now.since_ns);
	assert_int_equal(after.entered_ns[PW_ACTIVE - 1], 1000);
	assert_int_equal(after.entered_ns[PW_DRAIN - 1], after.since_ns);
}

static void test_direct_write_of_the_least(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration after;

	taken_over(f);
	write_map(f, key_of(f->pid), (struct pw_declaration){ .phase = PW_SHUTDOWN });
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_int_equal(after.phase, PW_SHUTDOWN);
	assert_int_equal(after.epoch, 7); /* the one in force */
	assert_int_equal(after.start_ns, f->start_ns);
	assert_true(after.since_ns > 1000);
}

static void test_direct_write_of_a_new_epoch(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration after;

	taken_over(f);
	write_map(f, key_of(f->pid),
		(struct pw_declaration){ .phase = PW_INIT, .epoch = 8, .since_ns = 2000 });
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_memory_equal(
		after.entered_ns, ((uint64_t[]){ 2000, 0, 0, 0 }), sizeof(after.entered_ns));
}

/* Nothing that is written there stops the daemon or becomes a subject. */
static void test_hostile_map(void **state)
{
	struct fixture *f = need_maps(state);
	const struct pw_declaration drain = { .phase = PW_DRAIN, .epoch = 1 };
	const struct {
		struct pw_subject_key key;
		struct pw_declaration d;
	} entries[] = {
		{ { 0, 0, f->pid }, drain },
		{ { UINT32_MAX, 0, f->pid }, drain },
		{ { PW_KIND_CGROUP, 0, f->pid }, drain },
		{ { PW_KIND_PROCESS, 0, f->pid }, { .phase = PW_UNDECLARED } },
		{ { PW_KIND_PROCESS, 0, getpid() }, { .phase = PW_PHASES } },
		{ { PW_KIND_PROCESS, 0, getppid() }, { .phase = UINT32_MAX } },
		{ { PW_KIND_PROCESS, 0, 0 }, drain },
		{ { PW_KIND_PROCESS, 0, 4194304 }, drain },
		/* somebody, if only the lower half were looked at */
		{ { PW_KIND_PROCESS, 0, 1ULL << 32 | f->pid }, drain },
		{ { PW_KIND_PROCESS, 0, 1ULL << 63 | f->pid }, drain },
		/* a key that the kernel half does not find */
		{ { PW_KIND_PROCESS, 1, f->pid }, drain },
	};

	for (size_t i = 0; i < ARRAY_SIZE(entries); i++)
		write_map(f, entries[i].key, entries[i].d);
	for (int i = 0; i < 3; i++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(n_subjects(f), 0);
	assert_int_equal(f->n_told, 0);
}

/* What no JSON reader takes for an integer (above 2^63) would make all answers unreadable. */
static void test_hostile_values(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration d = { .phase = PW_DRAIN,
		.source = 99,
		.epoch = 8,
		.since_ns = UINT64_MAX,
		.by_pid = UINT32_MAX,
		.by_uid = UINT32_MAX };
	const struct subject *s = taken_over(f);

	memset(d.reason, 'x', sizeof(d.reason));
	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].now.source, PW_SOURCE_MAP);
	assert_int_equal(strlen(s->now.reason), PW_REASON_LEN - 1);

	d.epoch = UINT64_MAX;
	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_true(s->now.epoch <= INT64_MAX);
}

static void test_another_process_start(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration d = {
		.phase = PW_DRAIN, .epoch = 1, .start_ns = f->start_ns + 100 * PW_START_UNIT_NS
	};

	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(n_subjects(f), 0);
	assert_false(in_map(f, key_of(f->pid), NULL)); /* it is nobody's */
}

static void test_removed_by_others(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_subject_key key = key_of(f->pid);
	struct pw_stats stats;

	taken_over(f);
	assert_int_equal(bpf_map_delete_elem(f->k.phases, &key), 0);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_null(subjects_find(f->s, &key));
	assert_int_equal(bpf_map_lookup_elem(f->k.stats, &key, &stats), -ENOENT);
}

/* Its sockets are closed, and judged, after its exit: it is kept for one more turn. */
static void test_forgotten_when_nobody_is_left(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_subject_key key = key_of(f->pid);
	struct pw_stats stats = { .life = 1, .members = 1 };

	taken_over(f);
	end_child(f->pid);
	f->pid = 0;
	/* a worker lives on */
	for (int i = 0; i < 3; i++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	assert_non_null(subjects_find(f->s, &key));

	stats.members = 0;
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, BPF_ANY), 0);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_non_null(subjects_find(f->s, &key));
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_null(subjects_find(f->s, &key));
	assert_false(in_map(f, key, NULL));
	assert_int_equal(bpf_map_lookup_elem(f->k.stats, &key, &stats), -ENOENT);
}

/* More than one batch of the map, and than is forgotten in one turn. */
static void test_many(void **state)
{
	struct fixture *f = need_maps(state);
	enum { MANY = 701 };
	struct proc_stat self;
	unsigned int turns;
	pid_t pids[MANY];

	assert_int_equal(proc_read(getpid(), &self), 0);
	for (size_t i = 0; i < MANY; i++) {
		uint64_t start_ns;

		pids[i] = start_child(&start_ns);
		leave(f, pids[i],
			(struct pw_declaration){ .phase = PW_INIT,
				.epoch = 1,
				.since_ns = 1,
				.start_ns = start_ns });
	}
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(n_subjects(f), MANY);
	for (size_t i = 0; i < MANY; i++) {
		struct pw_subject_key key = key_of(pids[i]);
		struct pw_stats none = { .life = 1 };

		end_child(pids[i]);
		assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &none, BPF_ANY), 0);
	}
	for (turns = 0; n_subjects(f) && turns < 10; turns++)
		assert_int_equal(subjects_reconcile(f->s), 0);
	assert_in_range(turns, 2, 6);
	for (size_t i = 0; i < MANY; i++)
		assert_false(in_map(f, key_of(pids[i]), NULL));
}

/* ---- declarations ---- */

static int declare(struct fixture *f, uint32_t phase, uint64_t epoch, const char *reason,
	struct declaration_result *ret, char why[static WHY_LEN])
{
	struct declaration_request r = { .phase = phase, .source = PW_SOURCE_API,
		.pid = f->pid,
		.epoch = epoch,
		.reason = reason,
		.by_pid = getpid(),
		.by_uid = getuid() };

	why[0] = '\0';
	return subjects_declare(f->s, &r, ret, why);
}

static void test_declare(void **state)
{
	struct fixture *f = need_maps(state);
	struct declaration_result r;
	struct pw_declaration d;
	char why[WHY_LEN];
	uint64_t before;

	taken_over(f);
	before = clock_boot_ns();
	assert_int_equal(declare(f, PW_DRAIN, 0, "rolling update", &r, why), 0);
	assert_true(r.changed);
	assert_int_equal(r.from, PW_ACTIVE);
	assert_int_equal(r.stats.members, 1);
	assert_int_equal(r.subject->key.id, f->pid);
	assert_true(in_map(f, key_of(f->pid), &d));
	assert_memory_equal(&d, &r.subject->now, sizeof(d));
	assert_int_equal(d.phase, PW_DRAIN);
	assert_int_equal(d.source, PW_SOURCE_API);
	assert_int_equal(d.epoch, 7);
	assert_int_equal(d.by_pid, getpid());
	assert_int_equal(d.by_uid, getuid());
	assert_string_equal(d.reason, "rolling update");
	assert_in_range(d.since_ns, before, clock_boot_ns());
	assert_int_equal(d.entered_ns[PW_ACTIVE - 1], 1000);
	assert_int_equal(d.entered_ns[PW_DRAIN - 1], d.since_ns);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].from, PW_ACTIVE);
	/* the next look at the map finds nothing new */
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
}

static void test_declare_the_same_again(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration before, after;
	struct declaration_result r;
	char why[WHY_LEN];

	taken_over(f);
	assert_int_equal(declare(f, PW_DRAIN, 7, "first", &r, why), 0);
	assert_true(in_map(f, key_of(f->pid), &before));
	assert_int_equal(declare(f, PW_DRAIN, 7, "second", &r, why), 0);
	assert_false(r.changed);
	assert_int_equal(r.from, PW_DRAIN);
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_memory_equal(&before, &after, sizeof(before));
	assert_int_equal(f->n_told, 1);
}

static void test_declare_a_new_epoch(void **state)
{
	struct fixture *f = need_maps(state);
	struct declaration_result r;
	char why[WHY_LEN];

	taken_over(f);
	assert_int_equal(declare(f, PW_SHUTDOWN, 0, "a long reason, to be wiped", &r, why), 0);
	assert_int_equal(declare(f, PW_INIT, 8, "b", &r, why), 0);
	assert_true(r.changed);
	assert_int_equal(r.from, PW_SHUTDOWN);
	assert_int_equal(r.subject->now.epoch, 8);
	assert_memory_equal(r.subject->now.entered_ns,
		((uint64_t[]){ r.subject->now.since_ns, 0, 0, 0 }), 4 * sizeof(uint64_t));
	assert_memory_equal(r.subject->now.reason, (char[PW_REASON_LEN]){ "b" }, PW_REASON_LEN);
	/* the same phase of a later epoch is a change as well */
	assert_int_equal(declare(f, PW_INIT, 9, NULL, &r, why), 0);
	assert_true(r.changed);
	assert_int_equal(f->n_told, 3);
}

/* Refused, with a sentence that has these words; and nothing has changed. */
static void assert_refused(
	struct fixture *f, uint32_t phase, uint64_t epoch, int err, const char *const words[])
{
	struct declaration_result r, untouched;
	struct pw_declaration before, after;
	size_t told = f->n_told;
	char why[WHY_LEN];

	memset(&r, 0xa5, sizeof(r));
	untouched = r;
	assert_true(in_map(f, key_of(f->pid), &before));
	assert_int_equal(declare(f, phase, epoch, "no", &r, why), err);
	for (; *words; words++)
		if (!strstr(why, *words))
			fail_msg("\"%s\" is not in: %s", *words, why);
	assert_true(in_map(f, key_of(f->pid), &after));
	assert_memory_equal(&before, &after, sizeof(before));
	assert_memory_equal(&r, &untouched, sizeof(r));
	assert_int_equal(f->n_told, told);
}

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static void test_declare_refused(void **state)
{
	struct fixture *f = need_maps(state);
	struct declaration_result r;
	char why[WHY_LEN];

	taken_over(f);
	assert_int_equal(declare(f, PW_DRAIN, 0, NULL, &r, why), 0);
	assert_refused(f, PW_ACTIVE, 0, -ESTALE, WORDS("DRAIN", "epoch 7", "ACTIVE", "epoch 8"));
	assert_refused(f, PW_INIT, 7, -ESTALE, WORDS("DRAIN", "INIT"));
	assert_refused(f, PW_SHUTDOWN, 6, -ESTALE, WORDS("epoch 6", "epoch 7"));
	assert_refused(f, PW_SHUTDOWN, 1, -ESTALE, WORDS("epoch 1 ", "epoch 7"));
	assert_int_equal(f->n_violations, 4);
	assert_memory_equal(f->violations,
		((enum pw_violation[]){ PW_BACKWARD, PW_BACKWARD, PW_STALE_EPOCH, PW_STALE_EPOCH }),
		4 * sizeof(*f->violations));
	assert_refused(f, PW_UNDECLARED, 0, -EINVAL, WORDS("0", "INIT, ACTIVE, DRAIN or SHUTDOWN"));
	assert_refused(f, PW_PHASES, 0, -EINVAL, WORDS("5", "INIT, ACTIVE, DRAIN or SHUTDOWN"));
	assert_refused(f, UINT32_MAX, 0, -EINVAL, WORDS("4294967295"));
	assert_int_equal(f->n_violations, 4);
}

/* The third life cycle begun anew within an hour is one too many; so is each after it. */
static void test_flapping(void **state)
{
	struct fixture *f = need_maps(state);
	struct declaration_result r;
	char why[WHY_LEN];

	taken_over(f);
	for (uint64_t epoch = 8; epoch <= 12; epoch++) {
		assert_int_equal(declare(f, PW_DRAIN, 0, NULL, &r, why), 0);
		assert_int_equal(declare(f, PW_ACTIVE, epoch, NULL, &r, why), 0);
		assert_int_equal(f->n_violations, epoch < 10 ? 0 : epoch - 9);
	}
	assert_int_equal(f->violations[0], PW_FLAPPING);
}

/* Illegal moves of direct writers take effect, and are told of. */
static void test_illegal_direct_writes(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_declaration d = taken_over(f)->now;

	d.phase = PW_INIT;
	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	d.epoch = 6;
	d.phase = PW_SHUTDOWN;
	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	d.epoch = 7;
	d.phase = PW_ACTIVE;
	write_map(f, key_of(f->pid), d);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 3);
	assert_int_equal(f->n_violations, 2);
	assert_int_equal(f->violations[0], PW_BACKWARD);
	assert_int_equal(f->violations[1], PW_STALE_EPOCH);
	assert_int_equal(f->control.counters.reconciles, 3);
}

/* ---- what the kernel half does itself ---- */

static struct pw_move_record moved(struct fixture *f, uint32_t phase)
{
	struct pw_move_record m = { .key = key_of(f->pid), .from = PW_ACTIVE, .signal = SIGTERM,
		.by = { .pid = 1, .comm = "systemd" } };

	assert_true(in_map(f, m.key, &m.now));
	m.now.source = PW_SOURCE_SIGNAL;
	declaration_enter(&m.now, phase, m.now.epoch, clock_boot_ns());
	return m;
}

static void test_moved_by_a_signal(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_move_record m;

	taken_over(f);
	m = moved(f, PW_DRAIN);
	write_map(f, m.key, m.now);
	/* its record will tell more of it than the map */
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 0);
	subjects_moved(f->s, &m);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].from, PW_ACTIVE);
	assert_int_equal(f->told[0].now.phase, PW_DRAIN);
	assert_int_equal(f->told[0].now.source, PW_SOURCE_SIGNAL);
	assert_string_equal(f->told[0].now.reason, "SIGTERM");
	/* neither the map nor the record of a second program has news */
	assert_int_equal(subjects_reconcile(f->s), 0);
	subjects_moved(f->s, &m);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->control.counters.reconciles, 0);
	assert_int_equal(f->n_violations, 0);
}

static void test_moved_and_its_record_lost(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_move_record m;

	taken_over(f);
	m = moved(f, PW_DRAIN);
	declaration_enter(&m.now, PW_DRAIN, m.now.epoch, clock_boot_ns() - 3 * NS_PER_S);
	write_map(f, m.key, m.now);
	assert_int_equal(subjects_reconcile(f->s), 0);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].now.source, PW_SOURCE_SIGNAL);
	assert_int_equal(f->control.counters.reconciles, 1);
}

/* What others wrote counts: the move is judged by it, and told first. */
static void test_declare_after_a_direct_write(void **state)
{
	struct fixture *f = need_maps(state);
	struct declaration_result r;
	struct pw_declaration d = taken_over(f)->now;
	char why[WHY_LEN];

	d.phase = PW_SHUTDOWN;
	write_map(f, key_of(f->pid), d);
	assert_int_equal(declare(f, PW_DRAIN, 0, NULL, &r, why), -ESTALE);
	assert_int_equal(f->n_told, 1);
	assert_int_equal(f->told[0].now.phase, PW_SHUTDOWN);
}

static void test_declare_nobody(void **state)
{
	static const pid_t pids[] = { 0, -1, 4194304, INT32_MAX, INT32_MIN };
	struct fixture *f = need_maps(state);

	for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
		struct declaration_request r = { .phase = PW_DRAIN, .pid = pids[i] };
		struct declaration_result result;
		char why[WHY_LEN], pid[16];

		assert_int_equal(subjects_declare(f->s, &r, &result, why), -ESRCH);
		snprintf(pid, sizeof(pid), "%d", pids[i]);
		assert_non_null(strstr(why, pid));
	}
	assert_int_equal(n_subjects(f), 0);
}

/* There are no programs to bring its processes in: it fails as a whole. */
static void test_declare_failure_leaves_nothing(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_subject_key key = key_of(f->pid);
	struct declaration_result r;
	struct pw_stats stats;
	char why[WHY_LEN];

	assert_true(declare(f, PW_DRAIN, 0, NULL, &r, why) < 0);
	assert_non_null(strstr(why, "cannot declare"));
	assert_null(subjects_find(f->s, &key));
	assert_int_equal(n_subjects(f), 0);
	assert_false(in_map(f, key, NULL));
	assert_int_equal(bpf_map_lookup_elem(f->k.stats, &key, &stats), -ENOENT);
	assert_int_equal(f->n_told, 0);
}

#define TEST_WITH_MAPS(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_moves_within_an_epoch),
		cmocka_unit_test(test_moves_across_epochs),
		cmocka_unit_test(test_moves_of_the_last_epoch),
		cmocka_unit_test(test_enter),
		cmocka_unit_test(test_enter_a_new_epoch),
		cmocka_unit_test(test_enter_every_phase),
		cmocka_unit_test(test_quiet_since),
		TEST_WITH_MAPS(test_take_over),
		TEST_WITH_MAPS(test_take_over_of_an_incomplete_declaration),
		TEST_WITH_MAPS(test_take_over_of_a_hostile_headless_subject),
		TEST_WITH_MAPS(test_no_file_descriptors_left),
		TEST_WITH_MAPS(test_direct_write_is_told_once),
		TEST_WITH_MAPS(test_direct_write_of_the_least),
		TEST_WITH_MAPS(test_direct_write_of_a_new_epoch),
		TEST_WITH_MAPS(test_hostile_map),
		TEST_WITH_MAPS(test_hostile_values),
		TEST_WITH_MAPS(test_another_process_start),
		TEST_WITH_MAPS(test_removed_by_others),
		TEST_WITH_MAPS(test_forgotten_when_nobody_is_left),
		TEST_WITH_MAPS(test_many),
		TEST_WITH_MAPS(test_declare),
		TEST_WITH_MAPS(test_declare_the_same_again),
		TEST_WITH_MAPS(test_declare_a_new_epoch),
		TEST_WITH_MAPS(test_declare_refused),
		TEST_WITH_MAPS(test_flapping),
		TEST_WITH_MAPS(test_illegal_direct_writes),
		TEST_WITH_MAPS(test_moved_by_a_signal),
		TEST_WITH_MAPS(test_moved_and_its_record_lost),
		TEST_WITH_MAPS(test_declare_after_a_direct_write),
		TEST_WITH_MAPS(test_declare_nobody),
		TEST_WITH_MAPS(test_declare_failure_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
