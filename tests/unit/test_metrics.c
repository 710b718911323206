// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "declare.h"
#include "metrics.h"
#include "openmetrics.h"
#include "names.h"
#include "maps.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* Real maps without the programs that fill them. */
struct fixture {
	struct kernel k;
	struct pw_control control;
	struct proc_names *names;
	struct subjects *s;
	struct declare *declare;
	struct stream *stream;
	struct workloads *workloads;
	struct pw_counters *each; /* by CPU */
	struct metrics_of of;
	pid_t pids[4];
	size_t n_pids;
};

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
}

static void on_violation(const struct subject *s, const struct event_violation *v, void *arg)
{
}

static void on_left(const struct subject *s, void *arg)
{
}

static void on_phase(const struct subject *s, const struct event_phase *p, void *arg)
{
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->k.cpus = libbpf_num_possible_cpus();
	make_maps(&f->k, &f->control);
	f->k.counters = bpf_map_create(BPF_MAP_TYPE_PERCPU_ARRAY, "t_counters", sizeof(uint32_t),
		sizeof(struct pw_counters), 1, NULL);
	f->each = calloc(f->k.cpus, sizeof(*f->each));
	assert_int_equal(proc_names_new(&f->names), 0);
	assert_int_equal(subjects_new(&f->s, &f->k, f->names, 2, PW_POD_LOGS,
				 &(struct subjects_listener){ on_phase, on_end, on_violation, on_left, NULL }),
		0);
	assert_int_equal(declare_new(&f->declare, f->s,
				 &(struct declare_options){ NULL, NO_GID, 20, 1024 }),
		0);
	assert_int_equal(stream_new(&f->stream), 0);
	assert_int_equal(workloads_new(&f->workloads, &f->k, 2), 0);
	f->of = (struct metrics_of){ &f->k, f->s, f->workloads, f->declare, f->stream,
		.turned_away = 7 };
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < f->n_pids; i++) {
		kill(f->pids[i], SIGKILL);
		waitpid(f->pids[i], NULL, 0);
	}
	declare_free(f->declare);
	workloads_free(f->workloads);
	stream_free(f->stream);
	subjects_free(f->s);
	proc_names_free(f->names);
	closep(&f->k.counters);
	free_maps(&f->k);
	free(f->each);
	free(f);
	return 0;
}

static struct fixture *need_maps(void **state)
{
	struct fixture *f = *state;

	if (f->k.counters < 0)
		skip();
	return f;
}

/* As an earlier daemon left it. */
static void add_subject(struct fixture *f, uint32_t phase, int64_t inflight)
{
	struct pw_stats stats = { .life = 1, .members = 1, .inflight = inflight };
	struct pw_declaration d = { .phase = phase, .epoch = 1, .since_ns = 1 };
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS };
	pid_t parent = getpid(), pid = fork();
	struct pw_member member;
	struct proc_stat stat;
	uint32_t tgid = pid;

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(1);
	}
	assert_in_range(f->n_pids, 0, ARRAY_SIZE(f->pids) - 1);
	f->pids[f->n_pids++] = key.id = pid;
	assert_int_equal(proc_read(pid, &stat), 0);
	d.start_ns = stat.start_ns;
	member = (struct pw_member){ .subject = pid, .start_ns = stat.start_ns };
	assert_int_equal(bpf_map_update_elem(f->k.members, &tgid, &member, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, BPF_ANY), 0);
	assert_int_equal(subjects_reconcile(f->s), 0);
}

static char *in_format(struct fixture *f, bool classic)
{
	struct openmetrics o = { .out = evbuffer_new(), .classic = classic };
	const struct metric_sink sink = openmetrics_sink(&o);
	struct evbuffer *out = o.out;
	uint32_t zero = 0;
	char *text;

	assert_int_equal(bpf_map_update_elem(f->k.counters, &zero, f->each, BPF_ANY), 0);
	assert_int_equal(metrics_collect(&f->of, &sink), 0);
	openmetrics_end(&o);
	text = calloc(1, evbuffer_get_length(out) + 1);
	evbuffer_remove(out, text, evbuffer_get_length(out));
	evbuffer_free(out);
	return text;
}

static char *metrics(struct fixture *f)
{
	return in_format(f, false);
}

static void assert_line(const char *text, const char *line)
{
	const char *found = strstr(text, line);

	while (found && ((found != text && found[-1] != '\n') || found[strlen(line)] != '\n'))
		found = strstr(found + 1, line);
	if (!found)
		fail_msg("no line \"%s\" in\n%s", line, text);
}

static void test_nothing_yet(void **state)
{
	struct fixture *f = need_maps(state);
	char *text = metrics(f);

	assert_null(strstr(text, "phasewatch_connections_total{"));
	assert_line(text, "phasewatch_misrouted_total{type=\"accept\",phase=\"DRAIN\"} 0");
	assert_line(text, "phasewatch_misrouted_total{type=\"connect\",phase=\"SHUTDOWN\"} 0");
	/* a process that starts may connect out */
	assert_null(strstr(text, "phasewatch_misrouted_total{type=\"connect\",phase=\"INIT\"}"));
	assert_null(strstr(text, "phasewatch_misrouted_total{type=\"accept\",phase=\"ACTIVE\"}"));
	assert_line(text, "phasewatch_events_lost_total{type=\"fork\",stage=\"map\"} 0");
	free(text);
}

static void test_sums_over_the_cpus(void **state)
{
	struct fixture *f = need_maps(state);
	char *text, line[128];

	for (unsigned int cpu = 0; cpu < f->k.cpus; cpu++) {
		struct pw_counters *c = &f->each[cpu];

		c->tally.connections[PW_DIR_ACCEPT][PW_DRAIN][PW_MISROUTED] = 23;
		c->tally.connections[PW_DIR_ACCEPT][PW_DRAIN][PW_GRACE] = cpu;
		c->emitted[PW_EV_EXIT] = 37;
		c->lost_ring[PW_EV_CONNECT] = 5;
		c->lost_map[PW_EV_FORK] = 7;
	}
	f->each[0].tally.connections[PW_DIR_CONNECT][PW_SHUTDOWN][PW_OK] = 1ULL << 53;
	text = metrics(f);
	snprintf(line, sizeof(line),
		"phasewatch_connections_total{direction=\"accept\",phase=\"DRAIN\",verdict="
		"\"misrouted\"} %u",
		23 * f->k.cpus);
	assert_line(text, line);
	snprintf(line, sizeof(line),
		"phasewatch_misrouted_total{type=\"accept\",phase=\"DRAIN\"} %u", 23 * f->k.cpus);
	assert_line(text, line);
	assert_line(text, "phasewatch_connections_total{direction=\"connect\",phase=\"SHUTDOWN\","
			  "verdict=\"ok\"} 9007199254740992");
	snprintf(line, sizeof(line), "phasewatch_events_total{type=\"exit\"} %u", 37 * f->k.cpus);
	assert_line(text, line);
	snprintf(line, sizeof(line),
		"phasewatch_events_lost_total{type=\"connect\",stage=\"ring\"} %u", 5 * f->k.cpus);
	assert_line(text, line);
	snprintf(line, sizeof(line), "phasewatch_events_lost_total{type=\"fork\",stage=\"map\"} %u",
		7 * f->k.cpus);
	assert_line(text, line);
	free(text);
}

static void test_subjects(void **state)
{
	struct fixture *f = need_maps(state);
	char *text;

	add_subject(f, PW_DRAIN, 3);
	add_subject(f, PW_DRAIN, 4);
	add_subject(f, PW_ACTIVE, 101);
	text = metrics(f);
	assert_line(text, "phasewatch_subjects{workload=\"test_metrics\",phase=\"INIT\"} 0");
	assert_line(text, "phasewatch_subjects{workload=\"test_metrics\",phase=\"ACTIVE\"} 1");
	assert_line(text, "phasewatch_subjects{workload=\"test_metrics\",phase=\"DRAIN\"} 2");
	assert_line(text, "phasewatch_subjects{workload=\"test_metrics\",phase=\"SHUTDOWN\"} 0");
	assert_line(text, "phasewatch_inflight_connections{workload=\"test_metrics\"} 108");
	free(text);
}

/* Every sample belongs to the family above it, by a name that its type allows; each comes once. */
static void test_format(void **state)
{
	struct fixture *f = need_maps(state);
	char family[64] = "", type[16] = "", *text, *line, *next, *all;
	unsigned int families = 0;

	for (unsigned int d = 0; d < PW_DIRECTIONS; d++)
		for (unsigned int p = 0; p < PW_PHASES; p++)
			for (unsigned int v = 0; v < PW_VERDICTS; v++)
				f->each[0].tally.connections[d][p][v] = 1;
	text = metrics(f);
	all = strdup(text);
	assert_string_equal(text + strlen(text) - strlen("\n# EOF\n"), "\n# EOF\n");
	for (line = text; *line; line = next + 1) {
		const char *suffix;
		char series[256];

		next = strchr(line, '\n');
		assert_non_null(next);
		*next = '\0';
		if (strcmp(line, "# EOF") == 0)
			continue;
		if (strncmp(line, "# TYPE ", 7) == 0) {
			assert_int_equal(sscanf(line, "# TYPE %63s %15s", family, type), 2);
			families++;
			continue;
		}
		if (strncmp(line, "# HELP ", 7) == 0 || strncmp(line, "# UNIT ", 7) == 0) {
			assert_int_equal(strncmp(line + 7, family, strlen(family)), 0);
			continue;
		}
		assert_int_equal(strncmp(line, family, strlen(family)), 0);
		suffix = strcmp(type, "counter") == 0 ? "_total"
			 : strcmp(type, "info") == 0  ? "_info"
			 : strcmp(type, "histogram")  ? ""
			 : strstr(line, "_bucket{")   ? "_bucket"
			 : strstr(line, "_sum")	      ? "_sum"
						      : "_count";
		assert_int_equal(strncmp(line + strlen(family), suffix, strlen(suffix)), 0);
		assert_non_null(strchr("{ ", line[strlen(family) + strlen(suffix)]));
		snprintf(series, sizeof(series), "\n%.*s ", (int)(strrchr(line, ' ') - line), line);
		assert_null(strstr(strstr(all, series) + 1, series));
	}
	assert_in_range(families, 7, 100);
	free(text);
	free(all);
}

static void test_notified(void **state)
{
	static const uint64_t counts[] = { 5, 7, 11 };
	struct fixture *f = need_maps(state);
	char *text = metrics(f);

	assert_null(strstr(text, "phasewatch_notify")); /* there is no socket for it */
	free(text);
	f->of.notified = counts;
	text = metrics(f);
	assert_line(text, "# TYPE phasewatch_notify_messages counter");
	assert_line(text, "phasewatch_notify_messages_total{result=\"accepted\"} 5");
	assert_line(text, "phasewatch_notify_messages_total{result=\"refused\"} 7");
	assert_line(text, "phasewatch_notify_messages_total{result=\"ignored\"} 11");
	free(text);
}

/* What came through the door, written to the map or refused. */
static void test_declarations(void **state)
{
	struct fixture *f = need_maps(state);
	const struct declarer nobody = { .pid = 1, .uid = 65534, .source = PW_SOURCE_API };
	struct declaration_request r = { .phase = PW_DRAIN, .pid = 1 };
	struct declaration_result result;
	char why[WHY_LEN], *text;

	for (int i = 0; i < 3; i++)
		assert_int_equal(declare_phase(f->declare, &nobody, &r, &result, why), -EPERM);
	text = metrics(f);
	assert_non_null(strstr(text, "\nphasewatch_declarations_total{verdict=\"accepted\"} 0\n"));
	assert_non_null(strstr(text, "\nphasewatch_declarations_total{verdict=\"unchanged\"} 0\n"));
	assert_non_null(strstr(text, "\nphasewatch_declarations_total{verdict=\"refused\"} 3\n"));
	assert_non_null(strstr(text, "\nphasewatch_audit_lost_total 0\n"));
	assert_non_null(strstr(text, "\nphasewatch_api_connections_refused_total 7\n"));
	free(text);
}

static void test_no_counters(void **state)
{
	struct fixture *f = *state;
	struct openmetrics o = { .out = evbuffer_new() };
	const struct metric_sink sink = openmetrics_sink(&o);

	closep(&f->k.counters);
	f->k.counters = -1;
	assert_true(metrics_collect(&f->of, &sink) < 0);
	assert_int_equal(evbuffer_get_length(o.out), 0);
	evbuffer_free(o.out);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_nothing_yet, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_sums_over_the_cpus, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_subjects, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_declarations, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_format, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_notified, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_counters, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
