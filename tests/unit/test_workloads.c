// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <string.h>
#include <bpf/bpf.h>

#include "maps.h"
#include "openmetrics.h"
#include "workloads.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define S 1000000000ULL

struct fixture {
	struct kernel k;
	struct pw_control control;
	struct workloads *w;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	make_maps(&f->k, &f->control);
	assert_int_equal(workloads_new(&f->w, &f->k, 2), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	workloads_free(f->w);
	free_maps(&f->k);
	free(f);
	return 0;
}

static struct subject subject(const char *name, uint64_t id)
{
	struct subject s = { .key = { .kind = PW_KIND_PROCESS, .id = id } };

	strcpy(s.name, name);
	return s;
}

static void test_places(void **state)
{
	struct fixture *f = *state;
	struct workloads *next;

	assert_int_equal(workloads_of(f->w, "nginx"), 1);
	assert_int_equal(workloads_of(f->w, "haproxy"), 2);
	assert_int_equal(workloads_of(f->w, "nginx"), 1);
	assert_int_equal(workloads_of(f->w, "one too many"), 0);
	assert_int_equal(workloads_of(f->w, ""), 0);
	assert_int_equal(workloads_of(f->w, NULL), 0);
	assert_string_equal(workloads_at(f->w, 0)->name, "other");
	assert_string_equal(workloads_at(f->w, 2)->name, "haproxy");
	assert_null(workloads_at(f->w, 3));
	/* the next daemon's, which allows for fewer */
	assert_int_equal(workloads_new(&next, &f->k, 1), 0);
	assert_int_equal(workloads_of(next, "haproxy"), 2);
	assert_int_equal(workloads_of(next, "one too many"), 0);
	workloads_free(next);
}

static void test_phases(void **state)
{
	struct fixture *f = *state;
	struct subject nginx = subject("nginx", 1), third = subject("third", 2);
	struct event_phase p = { .from = PW_UNDECLARED, .now = { .phase = PW_ACTIVE } };

	workloads_of(f->w, "haproxy");
	workloads_phase(f->w, &nginx, &p);
	workloads_phase(f->w, &third, &p);
	p.from = PW_DRAIN;
	workloads_phase(f->w, &nginx, &p);
	workloads_violation(f->w, &third, PW_FLAPPING);
	assert_int_equal(f->control.counters.overflowed, 1);
	assert_int_equal(f->k.workloads[2].phase_changes[PW_UNDECLARED][PW_ACTIVE][0], 1);
	assert_int_equal(f->k.workloads[2].phase_changes[PW_DRAIN][PW_ACTIVE][0], 1);
	assert_int_equal(f->k.workloads[2].flaps, 1);
	assert_int_equal(f->k.workloads[0].flaps, 0);
	assert_int_equal(f->k.workloads[0].violations[PW_FLAPPING], 1);
}

static void test_events(void **state)
{
	struct fixture *f = *state;
	struct event_names names = { .subject = "nginx", .realtime_offset_ns = 1000 * S };
	struct event e = { .type = PW_EV_ACCEPT, .seq = 37, .time_ns = 103 * S,
		.conn = { .on = { .since_ns = 100 * S, .verdict = PW_MISROUTED },
			.begin_ns = 100 * S + S / 5 } };
	const struct pw_durations *d = &f->k.workloads[1].misroute_delay;

	workloads_event(f->w, &e, &names); /* 0.2 s after the declaration, by its arrival */
	assert_int_equal(d->buckets[1], 1);
	assert_int_equal(d->sum_ns, S / 5);
	assert_int_equal(workloads_exemplars(f->w, 1, DELAY_MISROUTE)[1].seq, 37);
	assert_int_equal(workloads_exemplars(f->w, 1, DELAY_MISROUTE)[1].time_ns, 1103 * S);
	e.type = PW_EV_REQUEST; /* 3 s, by when it is read */
	workloads_event(f->w, &e, &names);
	assert_int_equal(d->buckets[4], 1);
	e.conn.on.verdict = PW_GRACE;
	workloads_event(f->w, &e, &names);
	e.type = PW_EV_REFUSED;
	workloads_event(f->w, &e, &names);
	e.conn.on.verdict = PW_IGNORED;
	workloads_event(f->w, &e, &names);
	assert_int_equal(d->sum_ns, S / 5 + 3 * S);
	assert_int_equal(f->k.workloads[1].ended.refused, 1);
	assert_null(workloads_exemplars(f->w, 2, DELAY_MISROUTE));
}

static void test_drained(void **state)
{
	struct fixture *f = *state;
	struct report r = { .name = "nginx", .drain.time_ns = 100 * S, .end = REPORT_EXITED,
		.ended_ns = 500 * S, .last_misrouted_ns = 102 * S, .realtime_offset_ns = S };

	workloads_drained(f->w, &r, 41);
	r.last_misrouted_ns = 0; /* nothing came: the world knew at once */
	workloads_drained(f->w, &r, 43);
	assert_int_equal(f->k.workloads[1].settle.buckets[3], 1);
	assert_int_equal(f->k.workloads[1].settle.buckets[0], 1);
	assert_int_equal(f->k.workloads[1].drain.buckets[PW_BUCKETS - 1], 2);
	assert_int_equal(workloads_exemplars(f->w, 1, DELAY_DRAIN)[PW_BUCKETS - 1].seq, 43);
}

static void test_left(void **state)
{
	struct fixture *f = *state;
	struct subject one = subject("nginx", 1), other = subject("nginx", 2);
	struct pw_tally t = { .abandoned[PW_RST][1] = 3, .queue.sum_ns = 5 };

	if (f->k.phases < 0)
		skip();
	assert_int_equal(bpf_map_update_elem(f->k.tallies, &one.key, &t, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.tallies, &other.key, &t, BPF_ANY), 0);
	workloads_left(f->w, &one);
	workloads_left(f->w, &one); /* once only */
	assert_int_equal(f->k.workloads[1].ended.abandoned[PW_RST][1], 3);
	workloads_left(f->w, &other);
	assert_int_equal(f->k.workloads[1].ended.abandoned[PW_RST][1], 6);
	assert_int_equal(f->k.workloads[1].ended.queue.sum_ns, 10);
}

/* ---- as text ---- */

static char *as_text(bool classic)
{
	static const double bounds[] = { 0.00005, 1 };
	static const uint64_t counts[] = { 2, 0, 3 };
	static const struct metric_exemplar exemplars[] = {
		{ 7, 0.00003, 1234567891234567891 }, { 0 }, { 9, 2, 1000000000 } };
	struct openmetrics o = { .out = evbuffer_new(), .classic = classic };
	const struct metric_sink sink = openmetrics_sink(&o);
	const struct metric_label none[] = { { "namespace", NULL }, { "workload", NULL } };
	const struct metric_label hostile[] = { { "namespace", NULL },
		{ "workload", "a\"b\\c\n\033[31m\xff\xc3\xa9" } };
	char *text;

	sink.family(&(struct metric_family){ "t", NULL, "A \"quoted\" text.", METRIC_COUNTER }, &o);
	sink.number(none, 2, 1.5, &o);
	sink.number(hostile, 2, 1e17, &o);
	sink.family(&(struct metric_family){ "d_seconds", "seconds", "D.", METRIC_HISTOGRAM }, &o);
	sink.histogram(none, 2, &(struct metric_histogram){ bounds, 2, counts, 0.25, exemplars }, &o);
	sink.family(&(struct metric_family){ "b", NULL, "B.", METRIC_INFO }, &o);
	sink.number(hostile, 1, 1, &o);
	openmetrics_end(&o);
	text = calloc(1, evbuffer_get_length(o.out) + 1);
	evbuffer_remove(o.out, text, evbuffer_get_length(o.out));
	evbuffer_free(o.out);
	return text;
}

static void test_openmetrics(void **state)
{
	char *text = as_text(false);

	assert_string_equal(text,
		"# TYPE t counter\n# HELP t A \\\"quoted\\\" text.\nt_total 1.5\n"
		"t_total{workload=\"a\\\"b\\\\c??[31m?\xc3\xa9\"} 100000000000000000\n"
		"# TYPE d_seconds histogram\n# UNIT d_seconds seconds\n# HELP d_seconds D.\n"
		"d_seconds_bucket{le=\"5e-05\"} 2 # {seq=\"7\"} 3e-05 1234567891.234\n"
		"d_seconds_bucket{le=\"1.0\"} 2\n"
		"d_seconds_bucket{le=\"+Inf\"} 5 # {seq=\"9\"} 2 1.000\n"
		"d_seconds_count 5\nd_seconds_sum 0.25\n"
		"# TYPE b info\n# HELP b B.\nb_info 1\n# EOF\n");
	free(text);
}

static void test_classic(void **state)
{
	char *text = as_text(true);

	assert_string_equal(text,
		"# TYPE t_total counter\n# HELP t_total A \"quoted\" text.\nt_total 1.5\n"
		"t_total{workload=\"a\\\"b\\\\c??[31m?\xc3\xa9\"} 100000000000000000\n"
		"# TYPE d_seconds histogram\n# HELP d_seconds D.\n"
		"d_seconds_bucket{le=\"5e-05\"} 2\nd_seconds_bucket{le=\"1.0\"} 2\n"
		"d_seconds_bucket{le=\"+Inf\"} 5\nd_seconds_count 5\nd_seconds_sum 0.25\n"
		"# TYPE b_info gauge\n# HELP b_info B.\nb_info 1\n");
	free(text);
}

static void test_accept(void **state)
{
	assert_false(openmetrics_wants_classic(NULL));
	assert_false(openmetrics_wants_classic("*/*"));
	assert_true(openmetrics_wants_classic("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
	assert_false(openmetrics_wants_classic(
		"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_places, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_phases, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_events, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_drained, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_left, set_up, tear_down),
		cmocka_unit_test(test_openmetrics),
		cmocka_unit_test(test_classic),
		cmocka_unit_test(test_accept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
