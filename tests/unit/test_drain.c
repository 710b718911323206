// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "drain.h"
#include "opts.h"
#include "util.h"

#define MS NS_PER_MS
#define DECLARED (1000 * NS_PER_S)
#define STARTED (12 * NS_PER_S)
#define LIFE 77

static const struct pw_subject_key web = { .kind = PW_KIND_PROCESS, .id = 4120 };
static const struct pw_subject_key db = { .kind = PW_KIND_CGROUP, .id = 4120 };

/* ---- what the kernel half and the daemon would say ---- */

static struct event_phase phase(const struct pw_subject_key *key, uint32_t phase, uint64_t epoch,
	uint64_t at)
{
	struct event_phase p = { .key = *key, .by_comm = "deploy-hook",
		.now = { .phase = phase, .epoch = epoch, .since_ns = at, .start_ns = STARTED,
			.source = PW_SOURCE_API, .by_pid = 4099, .reason = "rolling update" } };

	p.now.entered_ns[phase - 1] = at;
	return p;
}

static struct pw_stats stats(uint64_t accepts, int64_t inflight)
{
	return (struct pw_stats){ .accepts = accepts, .inflight = inflight, .members = 4,
		.life = LIFE };
}

static const struct report *declare_as(struct drains *d, const struct event_phase *p,
	const struct pw_stats *s)
{
	const struct report *ended;

	assert_int_equal(drains_phase(d, p, "nginx", s, p->now.since_ns, &ended), 0);
	return ended;
}

static const struct report *declare(struct drains *d, const struct pw_subject_key *key, uint32_t to,
	uint64_t epoch, uint64_t at, const struct pw_stats *s)
{
	struct event_phase p = phase(key, to, epoch, at);

	return declare_as(d, &p, s);
}

static struct pw_verdict_on judged(const struct pw_subject_key *key, enum pw_verdict verdict)
{
	return (struct pw_verdict_on){ .key = *key, .epoch = 7, .since_ns = DECLARED,
		.phase = PW_DRAIN, .verdict = verdict };
}

static struct event conn(enum pw_event_type type, const struct pw_subject_key *key, uint64_t at)
{
	struct event e = { .type = type, .time_ns = at };

	e.conn = (struct pw_conn_record){ .h = { .type = type, .time_ns = at },
		.on = judged(key, PW_MISROUTED), .begin_ns = at,
		.tuple = { .saddr = { [10] = 0xff, 0xff, 10, 0, 0, 12 }, .sport = 50000,
			.dport = 8080 } };
	return e;
}

static void tell(struct drains *d, enum pw_event_type type, const struct pw_subject_key *key,
	uint64_t at)
{
	struct event e = conn(type, key, at);

	drains_event(d, &e);
}

static void tell_verdict(struct drains *d, enum pw_event_type type, enum pw_verdict verdict,
	uint64_t at)
{
	struct event e = conn(type, &web, at);

	e.conn.on.verdict = verdict;
	drains_event(d, &e);
}

static void exits(struct drains *d, const struct pw_subject_key *key, uint64_t at, uint32_t status)
{
	struct event e = { .type = PW_EV_EXIT, .time_ns = at };

	e.exit = (struct pw_exit_record){ .h = { .type = PW_EV_EXIT, .time_ns = at },
		.on = judged(key, PW_MISROUTED), .status = status };
	drains_event(d, &e);
}

static void abandons(struct drains *d, enum pw_how how, bool busy, enum pw_verdict verdict)
{
	struct event e = { .type = PW_EV_ABANDON, .time_ns = DECLARED + 9 * NS_PER_S };

	e.abandon = (struct pw_abandon_record){ .on = judged(&web, verdict), .how = how,
		.busy = busy };
	drains_event(d, &e);
}

static void signalled(struct drains *d, uint32_t number, const char *by, uint32_t pid, uint64_t at)
{
	struct event e = { .type = PW_EV_SIGNAL, .time_ns = at };

	e.signal = (struct pw_signal_record){ .h = { .type = PW_EV_SIGNAL, .time_ns = at },
		.on = judged(&web, PW_MISROUTED), .signal = number, .sender = { .pid = pid } };
	memcpy(e.signal.sender.comm, by, strnlen(by, PW_COMM_LEN));
	/* of the phase that it came in */
	if (at < DECLARED) {
		e.signal.on.phase = PW_ACTIVE;
		e.signal.on.since_ns = STARTED;
	}
	drains_event(d, &e);
}

/* ---- what became of it ---- */

struct listed {
	const struct report *reports[DRAINS_KEPT + 8];
	size_t n;
};

static void list(const struct report *r, void *arg)
{
	struct listed *l = arg;

	assert_true(l->n < ARRAY_SIZE(l->reports));
	l->reports[l->n++] = r;
}

static struct listed all(const struct drains *d)
{
	struct listed l = { 0 };

	drains_for_each(d, list, &l);
	return l;
}

static const struct report *only(const struct drains *d)
{
	struct listed l = all(d);

	assert_int_equal(l.n, 1);
	return l.reports[0];
}

static int set_up(void **state)
{
	struct drains *d;

	assert_int_equal(drains_new(&d), 0);
	*state = d;
	return 0;
}

static int tear_down(void **state)
{
	drains_free(*state);
	return 0;
}

static void test_a_whole_drain(void **state)
{
	struct pw_stats first = stats(1847, 84), later = stats(1900, 40), last = stats(1904, 0);
	struct event too_late = conn(PW_EV_REQUEST, &web, DECLARED + 700 * MS);
	struct event half_open = conn(PW_EV_UNLISTEN, &web, DECLARED + 500 * MS);
	const struct report *r;
	struct drains *d = *state;

	assert_null(declare(d, &web, PW_ACTIVE, 7, DECLARED - NS_PER_S, &first));
	assert_int_equal(drains_running(d), 0);
	assert_null(declare(d, &web, PW_DRAIN, 7, DECLARED, &first));
	assert_int_equal(drains_running(d), 1);
	for (unsigned int i = 0; i < 23; i++)
		tell(d, PW_EV_ACCEPT, &web, DECLARED + (4 + i) * MS);
	tell_verdict(d, PW_EV_ACCEPT, PW_GRACE, DECLARED + 2 * MS);
	tell_verdict(d, PW_EV_ACCEPT, PW_GRACE, DECLARED + MS);
	tell_verdict(d, PW_EV_ACCEPT, PW_IGNORED, DECLARED + 900 * MS);
	for (unsigned int i = 0; i < 5; i++)
		tell(d, PW_EV_REQUEST, &web, DECLARED + (100 + i) * MS);
	drains_stats(d, &web, &later);
	tell(d, PW_EV_UNLISTEN, &web, DECLARED + 500 * MS);
	for (unsigned int i = 0; i < 3; i++)
		tell(d, PW_EV_DROP, &web, DECLARED + 500 * MS);
	tell(d, PW_EV_CONNECT, &web, DECLARED + 600 * MS);
	abandons(d, PW_RST, true, PW_MISROUTED);
	abandons(d, PW_FIN, false, PW_MISROUTED);
	abandons(d, PW_FIN, false, PW_IGNORED);
	too_late.conn.how = 17;
	drains_event(d, &too_late);
	too_late.conn.on.verdict = PW_IGNORED;
	drains_event(d, &too_late);
	half_open.conn.how = 2;
	drains_event(d, &half_open);
	exits(d, &web, DECLARED + 9 * NS_PER_S, 0);
	exits(d, &web, DECLARED + 8 * NS_PER_S, SIGKILL); /* earlier, read later */

	assert_int_equal(only(d)->key.id, 4120);
	assert_int_equal(only(d)->end, REPORT_RUNNING);
	r = drains_end(d, &web, REPORT_EXITED, &last, DECLARED + 11 * NS_PER_S);
	assert_ptr_equal(r, only(d));
	assert_int_equal(drains_running(d), 0);
	assert_int_equal(r->end, REPORT_EXITED);
	assert_int_equal(r->ended_ns, DECLARED + 9 * NS_PER_S);
	assert_int_equal(r->exit_status, 0);
	assert_string_equal(r->name, "nginx");
	assert_int_equal(r->drain.time_ns, DECLARED);
	assert_string_equal(r->drain.by_comm, "deploy-hook");
	assert_string_equal(r->drain.reason, "rolling update");
	assert_int_equal(r->shutdown.time_ns, 0);
	assert_int_equal(r->first.inflight, 84);
	assert_int_equal(r->first.accepts, 1847);
	assert_int_equal(r->last.accepts, 1904);
	assert_true(r->last_is_final);
	assert_int_equal(r->accepts[PW_MISROUTED], 23);
	assert_int_equal(r->accepts[PW_GRACE], 2);
	assert_int_equal(r->accepts[PW_IGNORED], 1);
	assert_int_equal(r->last_grace_ns, DECLARED + 2 * MS);
	assert_int_equal(r->first_misrouted_ns, DECLARED + 4 * MS);
	assert_int_equal(r->last_misrouted_ns, DECLARED + 700 * MS);
	assert_int_equal(r->requests[PW_MISROUTED], 6);
	assert_int_equal(r->requests_too_late, 1);
	assert_int_equal(r->request_connections, 6);
	assert_int_equal(r->dropped, 3);
	assert_int_equal(r->half_open, 2);
	assert_int_equal(r->n_ports, 1);
	assert_int_equal(r->ports[0].port, 8080);
	assert_int_equal(r->ports[0].dropped, 3);
	assert_int_equal(r->ports[0].closed_ns, DECLARED + 500 * MS);
	assert_int_equal(r->connects[PW_MISROUTED], 1);
	assert_int_equal(r->connects_failed, 0);
	assert_int_equal(r->abandoned[PW_RST], 1);
	assert_int_equal(r->abandoned[PW_FIN], 1);
	assert_int_equal(r->abandoned_busy, 1);
	assert_int_equal(r->ignored, 1);
	assert_int_equal(r->lost, 0);
	assert_int_equal(r->queue->count, 25);
	assert_int_equal(r->peers->total, 29);
	assert_null(r->clients);
	assert_null(drains_end(d, &web, REPORT_EXITED, &last, DECLARED + 12 * NS_PER_S));
}

static void test_without_a_drain_nothing_is_kept(void **state)
{
	struct drains *d = *state;
	struct pw_stats s = stats(1, 1);
	struct event other = { .type = PW_EV_PHASE, .phase = phase(&web, PW_DRAIN, 7, DECLARED) };

	declare(d, &web, PW_INIT, 7, DECLARED, NULL);
	declare(d, &web, PW_ACTIVE, 7, DECLARED, NULL);
	tell(d, PW_EV_ACCEPT, &web, DECLARED);
	tell(d, PW_EV_UNLISTEN, &web, DECLARED);
	exits(d, &web, DECLARED, 0);
	drains_event(d, &other);
	drains_stats(d, &web, &s);
	drains_lost(d, 5, DECLARED);
	assert_int_equal(all(d).n, 0);
}

static void test_shutdown_belongs_to_the_drain(void **state)
{
	struct event late = conn(PW_EV_ACCEPT, &web, DECLARED + 6 * NS_PER_S);
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	assert_null(declare(d, &web, PW_SHUTDOWN, 7, DECLARED + 5 * NS_PER_S, NULL));
	late.conn.on.phase = PW_SHUTDOWN;
	late.conn.on.since_ns = DECLARED + 5 * NS_PER_S;
	drains_event(d, &late);
	tell(d, PW_EV_ACCEPT, &web, DECLARED + MS); /* accepted in SHUTDOWN, came in DRAIN */
	/* said again: the first time counts */
	assert_null(declare(d, &web, PW_SHUTDOWN, 7, DECLARED + 8 * NS_PER_S, NULL));
	assert_int_equal(only(d)->drain.time_ns, DECLARED);
	assert_int_equal(only(d)->shutdown.time_ns, DECLARED + 5 * NS_PER_S);
	assert_int_equal(only(d)->accepts[PW_MISROUTED], 2);
}

static void test_shutdown_alone(void **state)
{
	struct event e = conn(PW_EV_ACCEPT, &web, DECLARED + MS);
	struct drains *d = *state;

	declare(d, &web, PW_SHUTDOWN, 7, DECLARED, NULL);
	e.conn.on.phase = PW_SHUTDOWN;
	drains_event(d, &e);
	assert_int_equal(only(d)->drain.time_ns, 0);
	assert_int_equal(report_began(only(d))->time_ns, DECLARED);
	assert_int_equal(only(d)->accepts[PW_MISROUTED], 1);
}

/* A daemon that was not there when DRAIN was declared. */
static void test_shutdown_that_tells_of_the_drain(void **state)
{
	struct event_phase p = phase(&web, PW_SHUTDOWN, 7, DECLARED + 5 * NS_PER_S);
	struct drains *d = *state;

	p.now.entered_ns[PW_DRAIN - 1] = DECLARED;
	declare_as(d, &p, NULL);
	assert_int_equal(only(d)->drain.time_ns, DECLARED);
	assert_int_equal(only(d)->drain.by_pid, 0);
	assert_int_equal(only(d)->shutdown.by_pid, 4099);
	tell(d, PW_EV_ACCEPT, &web, DECLARED + MS);
	assert_int_equal(only(d)->accepts[PW_MISROUTED], 1);
}

static void test_a_new_epoch_ends_it(void **state)
{
	struct pw_stats first = stats(100, 9), then = stats(130, 12), second = stats(190, 20);
	struct drains *d = *state;
	const struct report *r;
	struct event e;

	declare(d, &web, PW_DRAIN, 7, DECLARED, &first);
	tell(d, PW_EV_ACCEPT, &web, DECLARED + MS);
	r = declare(d, &web, PW_ACTIVE, 8, DECLARED + 10 * NS_PER_S, &then);
	assert_int_equal(r->end, REPORT_UNDRAINED);
	assert_int_equal(r->ended_ns, DECLARED + 10 * NS_PER_S);
	assert_int_equal(r->next.phase, PW_ACTIVE);
	assert_int_equal(r->next.epoch, 8);
	assert_int_equal(r->last.inflight, 12);
	assert_int_equal(drains_running(d), 0);

	/* what came before the end and was read after it, and what belongs to the new epoch */
	tell(d, PW_EV_ACCEPT, &web, DECLARED + 9 * NS_PER_S);
	e = conn(PW_EV_ACCEPT, &web, DECLARED + 11 * NS_PER_S);
	e.conn.on.epoch = 8;
	drains_event(d, &e);
	exits(d, &db, DECLARED, 0);
	assert_int_equal(r->accepts[PW_MISROUTED], 2);

	/* the next drain begins with what the first has not counted */
	assert_null(declare(d, &web, PW_DRAIN, 8, DECLARED + 20 * NS_PER_S, &second));
	e = conn(PW_EV_ACCEPT, &web, DECLARED + 21 * NS_PER_S);
	e.conn.on.epoch = 8;
	e.conn.on.since_ns = DECLARED + 20 * NS_PER_S;
	drains_event(d, &e);
	tell(d, PW_EV_ACCEPT, &web, DECLARED + 9 * NS_PER_S);
	assert_int_equal(all(d).n, 2);
	assert_ptr_equal(all(d).reports[0], r);
	assert_int_equal(r->accepts[PW_MISROUTED], 3);
	assert_int_equal(r->accepts_before, 0);
	r = all(d).reports[1];
	assert_int_equal(r->accepts[PW_MISROUTED], 1);
	assert_int_equal(r->accepts_before, 130);
	assert_int_equal(r->end, REPORT_RUNNING);
}

static void test_straight_into_the_next_drain(void **state)
{
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	r = declare(d, &web, PW_DRAIN, 8, DECLARED + NS_PER_S, NULL);
	assert_int_equal(r->end, REPORT_UNDRAINED);
	assert_int_equal(drains_running(d), 1);
	assert_int_equal(all(d).n, 2);
	assert_int_equal(all(d).reports[1]->drain.epoch, 8);
}

/* Another process has the pid and the epoch: it is not the one that drained. */
static void test_a_pid_used_again(void **state)
{
	struct event_phase p = phase(&web, PW_DRAIN, 7, DECLARED + 30 * NS_PER_S);
	struct pw_stats first = stats(10, 1), others = { .accepts = 5, .life = LIFE + 1 };
	struct event e = conn(PW_EV_UNLISTEN, &web, DECLARED + 40 * NS_PER_S);
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, &first);
	exits(d, &web, DECLARED + NS_PER_S, 0);
	p.now.start_ns = STARTED + 25 * NS_PER_S + 1;
	r = declare_as(d, &p, &others);
	assert_int_equal(r->end, REPORT_EXITED);
	assert_int_equal(r->ended_ns, DECLARED + NS_PER_S);
	assert_int_equal(r->last.accepts, 10);
	e.conn.on.since_ns = DECLARED + 30 * NS_PER_S;
	drains_event(d, &e);
	assert_int_equal(r->n_ports, 0);
	assert_int_equal(all(d).reports[1]->n_ports, 1);
	assert_int_equal(all(d).reports[1]->accepts_before, 0);
	assert_int_equal(all(d).reports[1]->first.accepts, 5);
}

/* It lives on, or another has its pid and epoch: what comes then is not of the drain. */
static void test_nothing_counts_after_the_end(void **state)
{
	struct event e = conn(PW_EV_UNLISTEN, &web, DECLARED + 2 * NS_PER_S);
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	exits(d, &web, DECLARED + NS_PER_S, 0);
	r = drains_end(d, &web, REPORT_EXITED, NULL, DECLARED + 3 * NS_PER_S);
	e.conn.on.phase = PW_ACTIVE;
	e.conn.on.since_ns = DECLARED + NS_PER_S + 1;
	drains_event(d, &e);
	e.conn.on.phase = PW_DRAIN;
	drains_event(d, &e);
	assert_int_equal(r->n_ports, 0);
	e.conn.on.since_ns = DECLARED;
	drains_event(d, &e);
	assert_int_equal(r->n_ports, 1);
}

static void test_counters_of_who_took_the_pid_over(void **state)
{
	struct event_phase p = phase(&web, PW_ACTIVE, 1, DECLARED + NS_PER_S);
	struct pw_stats others = stats(5, 1);
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	p.now.start_ns = DECLARED + 1;
	assert_false(declare_as(d, &p, &others)->has_stats);
}

static void test_counters_of_another_life_are_not_taken(void **state)
{
	struct pw_stats first = stats(10, 1), others = { .accepts = 5, .life = LIFE + 1 };
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, &first);
	drains_stats(d, &web, &others);
	assert_int_equal(only(d)->last.accepts, 10);
	assert_false(drains_end(d, &web, REPORT_EXITED, &others, DECLARED)->last_is_final);
}

static void test_two_at_once(void **state)
{
	struct drains *d = *state;
	struct pw_stats s = stats(50, 5);

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	declare(d, &db, PW_DRAIN, 7, DECLARED, NULL); /* the same id, another kind */
	drains_stats(d, &db, &s);
	for (unsigned int i = 0; i < 23; i++) {
		tell(d, PW_EV_ACCEPT, &web, DECLARED + i * MS);
		tell(d, PW_EV_REQUEST, i % 2 ? &db : &web, DECLARED + i * MS);
	}
	assert_int_equal(all(d).n, 2);
	assert_int_equal(all(d).reports[0]->key.kind, PW_KIND_PROCESS);
	assert_int_equal(all(d).reports[0]->accepts[PW_MISROUTED], 23);
	assert_int_equal(all(d).reports[0]->requests[PW_MISROUTED], 12);
	assert_false(all(d).reports[0]->has_stats);
	assert_int_equal(all(d).reports[1]->accepts[PW_MISROUTED], 0);
	assert_int_equal(all(d).reports[1]->requests[PW_MISROUTED], 11);
	assert_int_equal(all(d).reports[1]->first.accepts, 50);
	/* the one that ended first comes first */
	drains_end(d, &db, REPORT_EXITED, NULL, DECLARED + NS_PER_S);
	assert_int_equal(all(d).reports[0]->key.kind, PW_KIND_CGROUP);
	assert_int_equal(drains_running(d), 1);
}

static void refuse(struct drains *d, uint64_t at, uint64_t gone_at, enum pw_verdict verdict)
{
	struct event e = conn(PW_EV_REFUSED, &web, at);

	e.conn.begin_ns = gone_at;
	e.conn.on.verdict = verdict;
	drains_event(d, &e);
}

static void test_refused_after_the_end(void **state)
{
	uint64_t gone = DECLARED + 5 * NS_PER_S;
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	refuse(d, gone + 100 * MS, gone, PW_GRACE);
	exits(d, &web, DECLARED + 9 * NS_PER_S, 0);
	r = drains_end(d, &web, REPORT_EXITED, NULL, DECLARED + 11 * NS_PER_S);
	assert_int_equal(r->refused, 1);
	refuse(d, gone + 59 * NS_PER_S, gone, PW_MISROUTED);
	refuse(d, gone + 8 * NS_PER_S, gone, PW_MISROUTED);
	refuse(d, gone + 8 * NS_PER_S, gone, PW_IGNORED);
	assert_int_equal(r->refused, 3);
	assert_int_equal(r->ignored, 1);
	assert_int_equal(r->refused_after_ns, 59 * NS_PER_S);
	assert_int_equal(r->peers->total, 3);
	/* they are no arrivals */
	assert_int_equal(r->last_misrouted_ns, 0);
}

static void test_released(void **state)
{
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	exits(d, &web, DECLARED + NS_PER_S, 0); /* one of several */
	r = drains_end(d, &web, REPORT_RELEASED, NULL, DECLARED + 3 * NS_PER_S);
	assert_int_equal(r->end, REPORT_RELEASED);
	assert_int_equal(r->ended_ns, DECLARED + 3 * NS_PER_S);
}

static void test_end_without_an_exit_record(void **state)
{
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	assert_int_equal(drains_end(d, &web, REPORT_EXITED, NULL, DECLARED + 7)->ended_ns,
		DECLARED + 7);
}

static void test_losses(void **state)
{
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	drains_lost(d, 5, DECLARED + NS_PER_S);
	r = drains_end(d, &web, REPORT_EXITED, NULL, DECLARED + 2 * NS_PER_S);
	assert_int_equal(r->lost, 5);
	declare(d, &db, PW_DRAIN, 7, DECLARED, NULL);
	drains_lost(d, 2, r->ended_ns + DRAINS_LATE_NS - 1); /* may be refusals of the first */
	drains_lost(d, 1, r->ended_ns + DRAINS_LATE_NS);
	assert_int_equal(r->lost, 7);
	assert_int_equal(all(d).reports[1]->lost, 3);
}

static void test_connections_are_told_apart(void **state)
{
	struct drains *d = *state;
	struct event e = conn(PW_EV_REQUEST, &web, DECLARED + MS);

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	for (unsigned int round = 0; round < 3; round++)
		for (unsigned int i = 0; i < 5000; i++) {
			e.conn.tuple.sport = 1024 + i;
			e.conn.begin_ns = DECLARED - NS_PER_S;
			drains_event(d, &e);
		}
	assert_int_equal(only(d)->requests[PW_MISROUTED], 15000);
	assert_int_equal(only(d)->request_connections, 5000);
	e.conn.begin_ns++; /* the same tuple, a new connection */
	drains_event(d, &e);
	e.conn.tuple.netns++;
	drains_event(d, &e);
	e.conn.tuple.saddr[15]++;
	drains_event(d, &e);
	assert_int_equal(only(d)->request_connections, 5003);
	/* only those that count as late */
	e.conn.on.verdict = PW_GRACE;
	e.conn.tuple.saddr[15]++;
	drains_event(d, &e);
	assert_int_equal(only(d)->request_connections, 5003);
	assert_int_equal(only(d)->requests[PW_GRACE], 1);
	/* one that comes late cannot be told from the others any more */
	drains_end(d, &web, REPORT_EXITED, NULL, DECLARED + 2 * MS);
	assert_false(only(d)->request_connections_unknown);
	e.conn.on.verdict = PW_MISROUTED;
	drains_event(d, &e);
	assert_int_equal(only(d)->requests[PW_MISROUTED], 15004);
	assert_true(only(d)->request_connections_unknown);
}

static void test_too_many_connections(void **state)
{
	struct drains *d = *state;
	struct event e = conn(PW_EV_REQUEST, &web, DECLARED + MS);

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	for (uint32_t i = 0; i < DRAINS_CONNECTIONS; i++) {
		memcpy(e.conn.tuple.saddr, &i, sizeof(i));
		drains_event(d, &e);
	}
	assert_int_equal(only(d)->request_connections, DRAINS_CONNECTIONS);
	assert_false(only(d)->request_connections_unknown);
	e.conn.tuple.sport++;
	drains_event(d, &e);
	assert_true(only(d)->request_connections_unknown);
	assert_int_equal(only(d)->requests[PW_MISROUTED], DRAINS_CONNECTIONS + 1);
}

static void test_clients_before_addresses(void **state)
{
	const struct top_entry *sorted[TOP_ENTRIES];
	struct event e = conn(PW_EV_ACCEPT, &web, DECLARED + MS);
	struct report_client client = { 0 };
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	e.conn.client = (struct pw_client){ .pid = 911, .comm = "haproxy\0dirty" };
	drains_event(d, &e);
	memcpy(e.conn.client.comm, "haproxy\0DIRTY", 13);
	drains_event(d, &e);
	memset(e.conn.client.comm, 'x', PW_COMM_LEN); /* not ended */
	drains_event(d, &e);
	tell(d, PW_EV_ACCEPT, &web, DECLARED + MS);

	assert_int_equal(only(d)->peers->total, 1);
	assert_int_equal(top_sorted(only(d)->clients, sorted), 2);
	memcpy(&client, sorted[0]->key, sizeof(client));
	assert_string_equal(client.comm, "haproxy");
	assert_int_equal(client.pid, 911);
	assert_int_equal(top_count(sorted[0]), 2);
}

static void test_durations(void **state)
{
	struct event e = conn(PW_EV_ACCEPT, &web, DECLARED + 10 * MS);
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	e.conn.begin_ns = DECLARED + 9 * MS;
	drains_event(d, &e);
	e.conn.begin_ns = DECLARED + 11 * MS; /* another CPU's clock */
	drains_event(d, &e);
	e.conn.how = PW_SEEN_RELEASE;
	drains_event(d, &e);
	assert_int_equal(only(d)->queue->count, 2);
	assert_int_equal(only(d)->queue->max, MS);
	assert_int_equal(only(d)->queue->min, 0);

	e = conn(PW_EV_CONNECT, &web, DECLARED + 10 * MS);
	e.conn.begin_ns = DECLARED + 7 * MS;
	drains_event(d, &e);
	e.conn.how = PW_REFUSED;
	drains_event(d, &e);
	e.conn.on.verdict = PW_IGNORED;
	drains_event(d, &e);
	assert_int_equal(only(d)->connect->count, 1);
	assert_int_equal(only(d)->connect->max, 3 * MS);
	assert_int_equal(only(d)->connects[PW_MISROUTED], 2);
	assert_int_equal(only(d)->connects[PW_IGNORED], 1);
	assert_int_equal(only(d)->connects_failed, 1);
	/* no arrivals of others */
	assert_int_equal(only(d)->last_misrouted_ns, DECLARED + 11 * MS);
	assert_int_equal(only(d)->peers->total, 3);
}

static void test_arrivals_before_the_drain_are_none(void **state)
{
	static const uint32_t phases[] = { PW_UNDECLARED, PW_INIT, PW_ACTIVE };
	struct drains *d = *state;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(phases); i++) {
		struct event e = conn(PW_EV_ACCEPT, &web, DECLARED + MS);

		e.conn.on.phase = phases[i]; /* when it came */
		e.conn.on.since_ns = STARTED;
		drains_event(d, &e);
	}
	tell(d, PW_EV_ACCEPT, &db, DECLARED + MS);
	assert_int_equal(only(d)->accepts[PW_MISROUTED], 0);
	assert_null(only(d)->queue);
}

static void test_listeners(void **state)
{
	struct drains *d = *state;
	const struct report *r;
	uint64_t dropped = 0, closed = 0;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	for (uint16_t port = 1; port <= 20; port++)
		for (unsigned int n = 0; n < port; n++) {
			struct event e = conn(PW_EV_UNLISTEN, &web, DECLARED + port * MS + n);

			e.conn.tuple.dport = port;
			drains_event(d, &e);
			e = conn(PW_EV_DROP, &web, DECLARED);
			e.conn.tuple.dport = port;
			drains_event(d, &e);
		}
	r = only(d);
	assert_int_equal(r->n_ports, REPORT_PORTS);
	for (size_t i = 0; i < REPORT_PORTS; i++) {
		assert_int_equal(r->ports[i].port, i + 1 < REPORT_PORTS ? i + 1 : 0);
		dropped += r->ports[i].dropped;
		closed += r->ports[i].closed;
	}
	assert_int_equal(dropped, 210);
	assert_int_equal(closed, 210);
	assert_int_equal(r->dropped, 210);
	assert_int_equal(r->ports[4].closed_ns, DECLARED + 5 * MS + 4);
	assert_int_equal(r->ports[7].closed_ns, DECLARED + 20 * MS + 19);
}

static void test_signals(void **state)
{
	struct drains *d = *state;
	const struct report *r;

	declare(d, &web, PW_DRAIN, 7, DECLARED, NULL);
	signalled(d, SIGQUIT, "sh", 99, DECLARED - 1); /* another matter */
	signalled(d, SIGTERM, "systemd", 1, DECLARED + 5);
	signalled(d, SIGTERM, "nginx", 4120, DECLARED + 6);
	signalled(d, SIGKILL, "\x1b[2Jsixteen bytes", 7, DECLARED + 7);
	r = only(d);
	assert_int_equal(r->n_signals, 2);
	assert_int_equal(r->signals[0].signal, SIGTERM);
	assert_int_equal(r->signals[0].time_ns, DECLARED + 5);
	assert_string_equal(r->signals[0].comm, "systemd");
	assert_memory_equal(r->signals[1].comm, "\x1b[2Jsixteen byte", PW_COMM_LEN);
	for (uint32_t s = 30; s < 60; s++)
		signalled(d, s, "x", 1, DECLARED + s);
	assert_int_equal(r->n_signals, REPORT_SIGNALS);
}

static void test_the_signal_that_declared_it(void **state)
{
	struct event_phase p = phase(&web, PW_DRAIN, 7, DECLARED);
	struct drains *d = *state;

	p.now.source = PW_SOURCE_SIGNAL;
	declare_as(d, &p, NULL);
	signalled(d, SIGTERM, "systemd", 1, DECLARED - 20000);
	assert_int_equal(only(d)->n_signals, 1);
}

static void test_the_last_ones_are_kept(void **state)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS };
	struct drains *d = *state;
	struct listed l;

	for (key.id = 1; key.id <= 3 * DRAINS_KEPT; key.id++) {
		struct event e = conn(PW_EV_ACCEPT, &key, DECLARED + MS);

		declare(d, &key, PW_DRAIN, 7, DECLARED, NULL);
		drains_event(d, &e);
		e = conn(PW_EV_REQUEST, &key, DECLARED + MS);
		drains_event(d, &e);
		if (key.id % 3)
			drains_end(d, &key, REPORT_EXITED, NULL, DECLARED + NS_PER_S);
	}
	assert_int_equal(drains_running(d), DRAINS_KEPT);
	for (key.id = 3; key.id <= 18; key.id += 3)
		drains_end(d, &key, REPORT_EXITED, NULL, DECLARED + NS_PER_S);
	for (; key.id <= 3 * DRAINS_KEPT - 3; key.id += 3)
		drains_end(d, &key, REPORT_EXITED, NULL, DECLARED + NS_PER_S);
	l = all(d);
	assert_int_equal(l.n, DRAINS_KEPT + 1);
	for (size_t i = 1; i < DRAINS_KEPT; i++) {
		assert_int_equal(l.reports[i]->key.id, 3 * i);
		assert_int_equal(l.reports[i]->accepts[PW_MISROUTED], 1);
	}
	assert_int_equal(l.reports[DRAINS_KEPT]->end, REPORT_RUNNING);
}

static void test_names_that_are_too_long(void **state)
{
	struct event_phase p = phase(&web, PW_DRAIN, 7, DECLARED);
	struct drains *d = *state;
	const struct report *ended;
	char name[200];

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	memset(p.now.reason, 'r', sizeof(p.now.reason)); /* not ended: a direct writer's */
	p.by_comm = name;
	assert_int_equal(drains_phase(d, &p, name, NULL, DECLARED, &ended), 0);
	assert_int_equal(strlen(only(d)->name), SUBJECT_NAME_LEN - 1);
	assert_int_equal(strlen(only(d)->drain.reason), PW_REASON_LEN - 1);
	assert_int_equal(strlen(only(d)->drain.by_comm), PW_COMM_LEN - 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_a_whole_drain),
		TEST(test_without_a_drain_nothing_is_kept),
		TEST(test_shutdown_belongs_to_the_drain),
		TEST(test_shutdown_alone),
		TEST(test_shutdown_that_tells_of_the_drain),
		TEST(test_a_new_epoch_ends_it),
		TEST(test_straight_into_the_next_drain),
		TEST(test_a_pid_used_again),
		TEST(test_nothing_counts_after_the_end),
		TEST(test_counters_of_who_took_the_pid_over),
		TEST(test_counters_of_another_life_are_not_taken),
		TEST(test_two_at_once),
		TEST(test_refused_after_the_end),
		TEST(test_released),
		TEST(test_end_without_an_exit_record),
		TEST(test_losses),
		TEST(test_connections_are_told_apart),
		TEST(test_too_many_connections),
		TEST(test_clients_before_addresses),
		TEST(test_durations),
		TEST(test_arrivals_before_the_drain_are_none),
		TEST(test_listeners),
		TEST(test_signals),
		TEST(test_the_signal_that_declared_it),
		TEST(test_the_last_ones_are_kept),
		TEST(test_names_that_are_too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
