// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "clock.h"
#include "metrics.h"
#include "names.h"
#include "notify.h"
#include "proc.h"
#include "util.h"

/* Of a workload now; of index PW_WORKLOADS + 1: of processes that nobody declared. */
struct sums {
	struct pw_tally tally;
	uint64_t subjects[PW_PHASES];
	uint64_t epoch; /* of the newest declaration; 0: there is none now */
	uint64_t since_ns;
	int64_t inflight;
};

#define NOBODY (1 + PW_WORKLOADS)

struct collection {
	struct metrics_of *of;
	const struct metric_sink *sink;
	struct pw_counters counters;
	struct sums *by; /* 2 + PW_WORKLOADS */
	uint64_t members;
	uint64_t n_subjects;
};

static void family(struct collection *c, const char *name, enum metric_type type, const char *unit,
	const char *help)
{
	const struct metric_family f = { name, unit, help, type };

	c->sink->family(&f, c->sink->arg);
}

static void number(struct collection *c, double value, size_t n, const struct metric_label *labels)
{
	c->sink->number(labels, n, value, c->sink->arg);
}

#define NUMBER(c, value, ...)                                                                      \
	do {                                                                                       \
		const struct metric_label labels_[] = { { NULL, NULL }, ##__VA_ARGS__ };           \
		number(c, value, ARRAY_SIZE(labels_) - 1, labels_ + 1);                            \
	} while (0)

/* ---- workloads ---- */

static const char *name_of(const struct collection *c, size_t i)
{
	const struct pw_workload *w = i == NOBODY ? NULL : workloads_at(c->of->workloads, i);

	return w ? w->name : NULL;
}

/*
 * Whose counters are shown from 0 on, since a series that begins with what it counts first hides that
 * from rate(): each workload's that there was, and those of nobody.
 */
static bool is_there(const struct collection *c, size_t i)
{
	return i == NOBODY || (i && workloads_at(c->of->workloads, i)) || c->by[i].epoch ||
	       (!i && c->of->kernel->control->counters.overflowed);
}

/* With the label of workload `i` before those given. */
#define OF_WORKLOAD(c, i, value, ...)                                                              \
	NUMBER(c, value, { "workload", name_of(c, i) }, ##__VA_ARGS__)

static void add_subject(const struct subject *s, void *arg)
{
	struct collection *c = arg;
	struct sums *sums = &c->by[workloads_of(c->of->workloads, s->name)];
	struct pw_tally tally;
	struct pw_stats stats;

	c->n_subjects++;
	if (phase_name(s->now.phase))
		sums->subjects[s->now.phase]++;
	if (s->now.since_ns >= sums->since_ns) {
		sums->since_ns = s->now.since_ns;
		sums->epoch = s->now.epoch;
	}
	if (subjects_tally(c->of->subjects, s, &tally) == 0)
		tally_add(&sums->tally, &tally);
	if (subjects_stats(c->of->subjects, s, &stats) < 0)
		return;
	sums->inflight += stats.inflight + stats.unseen;
	if (s->key.kind == PW_KIND_PROCESS)
		c->members += stats.members > 0 ? stats.members : 0;
}

/*
 * What the kernel half counted of everybody and no workload has. It was read before the workloads'
 * were: what came meanwhile makes it too small for now, and a counter never goes back.
 */
static void find_rest(struct collection *c)
{
	const __u64 *all = (const __u64 *)&c->counters.tally;
	__u64 *rest = (__u64 *)&c->of->rest;

	for (size_t i = 0; i < sizeof(struct pw_tally) / sizeof(__u64); i++) {
		__u64 sum = 0;

		for (size_t w = 0; w < NOBODY; w++)
			sum += ((const __u64 *)&c->by[w].tally)[i];
		if (all[i] > sum && all[i] - sum > rest[i])
			rest[i] = all[i] - sum;
	}
	c->by[NOBODY].tally = c->of->rest;
}

static int add_up(struct collection *c)
{
	int err = kernel_read_counters(c->of->kernel, &c->counters);

	if (err)
		return err;
	subjects_look(c->of->subjects);
	for (size_t i = 0; i < NOBODY; i++)
		c->by[i].tally = c->of->kernel->workloads[i].ended;
	subjects_for_each(c->of->subjects, add_subject, c);
	find_rest(c);
	return 0;
}

/* ---- what came and went ---- */

static const struct names direction_names = { (const char *const[]){ "accept", "connect" }, 2 };

static void write_connections(struct collection *c)
{
	family(c, "phasewatch_connections", METRIC_COUNTER, NULL,
		"Connections accepted and made, by the phase of the process when they arrived or began.");
	for (size_t i = 0; i <= NOBODY; i++)
		for (unsigned int d = 0; d < PW_DIRECTIONS; d++)
			for (unsigned int p = 0; p < PW_PHASES; p++)
				for (unsigned int v = 0; v < PW_VERDICTS; v++) {
					uint64_t n = c->by[i].tally.connections[d][p][v];

					if (n || (i != NOBODY && is_there(c, i) && p == PW_ACTIVE &&
							 v == PW_OK))
						OF_WORKLOAD(c, i, n,
							{ "direction", names_name(&direction_names, d) },
							{ "phase", phase_name(p) },
							{ "verdict", verdict_name(v) });
				}
}

static void write_misrouted(struct collection *c)
{
	family(c, "phasewatch_misrouted", METRIC_COUNTER, NULL,
		"Connections and requests that reached or left a process in a phase in which none is "
		"expected.");
	for (size_t i = 0; i <= NOBODY; i++) {
		const struct pw_tally *t = &c->by[i].tally;

		if (!is_there(c, i))
			continue;
		for (unsigned int p = PW_INIT; p < PW_PHASES; p++) {
			if (p == PW_ACTIVE)
				continue;
			for (unsigned int d = 0; d < PW_DIRECTIONS; d++)
				if (d == PW_DIR_ACCEPT || p != PW_INIT)
					OF_WORKLOAD(c, i, t->connections[d][p][PW_MISROUTED],
						{ "type", names_name(&direction_names, d) },
						{ "phase", phase_name(p) });
			OF_WORKLOAD(c, i, t->requests[p][PW_MISROUTED], { "type", "request" },
				{ "phase", phase_name(p) });
		}
	}
}

static void write_requests(struct collection *c)
{
	family(c, "phasewatch_requests", METRIC_COUNTER, NULL,
		"Requests read by subjects while any of them drains, by phase.");
	for (size_t i = 0; i <= NOBODY; i++)
		for (unsigned int p = 0; p < PW_PHASES; p++)
			for (unsigned int v = 0; v < PW_VERDICTS; v++)
				if (c->by[i].tally.requests[p][v])
					OF_WORKLOAD(c, i, c->by[i].tally.requests[p][v],
						{ "phase", phase_name(p) },
						{ "verdict", verdict_name(v) });
	family(c, "phasewatch_requests_too_late", METRIC_COUNTER, NULL,
		"Of these, requests that came after a draining process had closed their connection.");
	NUMBER(c, c->counters.requests_too_late);
}

static void write_cost(struct collection *c)
{
	family(c, "phasewatch_abandoned", METRIC_COUNTER, NULL,
		"Connections of draining processes that were still open when they exited.");
	for (size_t i = 0; i <= NOBODY; i++)
		for (unsigned int h = 0; is_there(c, i) && h < PW_HOWS; h++)
			for (unsigned int busy = 0; busy < 2; busy++)
				OF_WORKLOAD(c, i, c->by[i].tally.abandoned[h][busy],
					{ "how", how_name(h) }, { "busy", busy ? "true" : "false" });
	family(c, "phasewatch_backlog_dropped", METRIC_COUNTER, NULL,
		"Completed connections that nobody had accepted when their listener closed.");
	for (size_t i = 0; i <= NOBODY; i++)
		if (is_there(c, i))
			OF_WORKLOAD(c, i, c->by[i].tally.backlog_dropped);
	family(c, "phasewatch_refused", METRIC_COUNTER, NULL,
		"Connects refused where a drained subject had listened less than 60 s before.");
	for (size_t i = 0; i <= NOBODY; i++)
		if (is_there(c, i))
			OF_WORKLOAD(c, i, c->by[i].tally.refused);
}

/* ---- durations ---- */

static void write_durations(struct collection *c, size_t i, const struct pw_durations *d,
	const __u64 *bounds_ns, const struct metric_exemplar *exemplars)
{
	double bounds[PW_BUCKETS - 1];
	struct metric_histogram h = { bounds, ARRAY_SIZE(bounds), (const uint64_t *)d->buckets,
		d->sum_ns / 1e9, exemplars };
	const struct metric_label label = { "workload", name_of(c, i) };

	for (size_t b = 0; b < ARRAY_SIZE(bounds); b++)
		bounds[b] = bounds_ns[b] / 1e9;
	c->sink->histogram(&label, 1, &h, c->sink->arg);
}

static const struct pw_durations *delays_of(const struct pw_workload *w, enum workload_delay which)
{
	return which == DELAY_MISROUTE ? &w->misroute_delay :
	       which == DELAY_SETTLE   ? &w->settle :
					 &w->drain;
}

static void write_delays(struct collection *c)
{
	static const struct metric_family families[] = {
		[DELAY_MISROUTE] = { "phasewatch_misroute_delay_seconds", "seconds",
			"From the declaration of a phase to each misrouted arrival in it.",
			METRIC_HISTOGRAM },
		[DELAY_SETTLE] = { "phasewatch_settle_seconds", "seconds",
			"From each drain's declaration to its last misrouted arrival; 0 where there was "
			"none.", METRIC_HISTOGRAM },
		[DELAY_DRAIN] = { "phasewatch_drain_seconds", "seconds",
			"From each drain's declaration to its end.", METRIC_HISTOGRAM },
	};

	for (unsigned int which = 0; which < WORKLOAD_DELAYS; which++) {
		c->sink->family(&families[which], c->sink->arg);
		for (size_t i = 0; i < NOBODY; i++)
			if (is_there(c, i))
				write_durations(c, i, delays_of(&c->of->kernel->workloads[i], which),
					pw_delays_ns,
					workloads_exemplars(c->of->workloads, i, which));
	}
	family(c, "phasewatch_accept_queue_seconds", METRIC_HISTOGRAM, "seconds",
		"From the end of the handshake to accept(2), of subjects' connections that were seen then.");
	for (size_t i = 0; i < NOBODY; i++)
		if (c->by[i].tally.queue.sum_ns)
			write_durations(c, i, &c->by[i].tally.queue, pw_bounds_ns, NULL);
	family(c, "phasewatch_connect_seconds", METRIC_HISTOGRAM, "seconds",
		"From connect(2) to the end of the handshake, of subjects.");
	write_durations(c, NOBODY, &c->counters.connect, pw_bounds_ns, NULL);
}

/* ---- subjects ---- */

static void write_subjects(struct collection *c)
{
	char epoch[24];

	family(c, "phasewatch_subjects", METRIC_GAUGE, NULL, "Subjects by phase.");
	for (size_t i = 0; i < NOBODY; i++)
		for (unsigned int p = PW_INIT; is_there(c, i) && p < PW_PHASES; p++)
			OF_WORKLOAD(c, i, c->by[i].subjects[p], { "phase", phase_name(p) });
	family(c, "phasewatch_inflight_connections", METRIC_GAUGE, NULL,
		"Connections that subjects accepted and still hold.");
	for (size_t i = 0; i < NOBODY; i++)
		if (is_there(c, i))
			OF_WORKLOAD(c, i, c->by[i].inflight);
	family(c, "phasewatch_workload", METRIC_INFO, NULL,
		"Workloads that have subjects, and the epoch of the newest declaration.");
	for (size_t i = 0; i < NOBODY; i++) {
		if (!c->by[i].epoch)
			continue;
		snprintf(epoch, sizeof(epoch), "%llu", (unsigned long long)c->by[i].epoch);
		OF_WORKLOAD(c, i, 1, { "epoch", epoch });
	}
}

static void write_phase_changes(struct collection *c)
{
	family(c, "phasewatch_phase_changes", METRIC_COUNTER, NULL,
		"Moves of subjects from phase to phase.");
	for (size_t i = 0; i < NOBODY; i++)
		for (unsigned int from = 0; from < PW_PHASES; from++)
			for (unsigned int to = PW_INIT; to < PW_PHASES; to++)
				for (unsigned int source = 0; source < PW_SOURCES; source++) {
					uint64_t n = c->of->kernel->workloads[i]
							     .phase_changes[from][to][source];

					if (n)
						OF_WORKLOAD(c, i, n, { "from", phase_name(from) },
							{ "to", phase_name(to) },
							{ "source", source_name(source) });
				}
	family(c, "phasewatch_flaps", METRIC_COUNTER, NULL,
		"Life cycles that a subject began anew.");
	for (size_t i = 0; i < NOBODY; i++)
		if (is_there(c, i))
			OF_WORKLOAD(c, i, c->of->kernel->workloads[i].flaps);
	family(c, "phasewatch_violations", METRIC_COUNTER, NULL,
		"Declarations and exits that break the rules of a life cycle.");
	for (size_t i = 0; i < NOBODY; i++)
		for (unsigned int kind = 0; is_there(c, i) && kind < PW_VIOLATIONS; kind++)
			OF_WORKLOAD(c, i, c->of->kernel->workloads[i].violations[kind],
				{ "kind", names_name(&violation_names, kind) });
	family(c, "phasewatch_reconciles", METRIC_COUNTER, NULL,
		"Declarations found in the map that nobody had told the daemon of.");
	NUMBER(c, c->of->kernel->control->counters.reconciles);
	family(c, "phasewatch_workloads_overflowed", METRIC_COUNTER, NULL,
		"Subjects counted as workload \"other\", since --max-workloads names were taken.");
	NUMBER(c, c->of->kernel->control->counters.overflowed);
}

static void write_authority(struct collection *c)
{
	static const char *const results[] = { [NOTIFY_ACCEPTED] = "accepted",
		[NOTIFY_REFUSED] = "refused", [NOTIFY_IGNORED] = "ignored" };

	family(c, "phasewatch_declarations", METRIC_COUNTER, NULL,
		"Declarations by what became of them, whichever way they came.");
	for (unsigned int v = 0; v < AUDIT_VERDICTS; v++)
		NUMBER(c, declare_count(c->of->declare, v),
			{ "verdict", names_name(&audit_verdict_names, v) });
	family(c, "phasewatch_audit_lost", METRIC_COUNTER, NULL,
		"Lines that could not be written to the audit log.");
	NUMBER(c, declare_audit_lost(c->of->declare));
	family(c, "phasewatch_api_connections_refused", METRIC_COUNTER, NULL,
		"Connections to the API that were one too many of a user.");
	NUMBER(c, c->of->turned_away);
	if (!c->of->notified)
		return;
	family(c, "phasewatch_notify_messages", METRIC_COUNTER, NULL,
		"Messages in the way of sd_notify(3): declared, not allowed or malformed, without a phase.");
	for (unsigned int r = 0; r < NOTIFY_RESULTS; r++)
		NUMBER(c, c->of->notified[r], { "result", results[r] });
}

/* ---- the observer itself ---- */

static void write_stream(struct collection *c)
{
	const uint64_t *missed = stream_missed(c->of->stream, STREAM_SUBSCRIBER);
	const uint64_t *exports = stream_missed(c->of->stream, STREAM_EXPORT);

	family(c, "phasewatch_events", METRIC_COUNTER, NULL, "Records handed to the daemon, by type.");
	for (unsigned int t = PW_EV_ACCEPT; t < PW_EV_RECORDS; t++)
		NUMBER(c, c->counters.emitted[t], { "type", event_type_name(t) });
	family(c, "phasewatch_events_lost", METRIC_COUNTER, NULL,
		"Records and events that somebody did not get, by type and by what was full: the ring or a "
		"map of the kernel half, the queue of who follows.");
	for (unsigned int t = PW_EV_ACCEPT; t < PW_EV_TYPES; t++) {
		if (!event_type_name(t) || t == PW_EV_LOST)
			continue;
		if (t < PW_EV_RECORDS) {
			NUMBER(c, c->counters.lost_ring[t], { "type", event_type_name(t) },
				{ "stage", "ring" });
			NUMBER(c, c->counters.lost_map[t], { "type", event_type_name(t) },
				{ "stage", "map" });
		}
		NUMBER(c, missed[t], { "type", event_type_name(t) }, { "stage", "subscriber" });
		NUMBER(c, exports[t], { "type", event_type_name(t) }, { "stage", "export" });
	}
}

static void write_programs(struct collection *c)
{
	struct kernel_cost costs[KERNEL_HOOKS_MAX];
	size_t n = kernel_costs(c->of->kernel, costs);
	uint64_t runs = 0;

	for (size_t i = 0; i < n; i++)
		runs += costs[i].runs;
	if (runs) {
		family(c, "phasewatch_program_run_seconds", METRIC_COUNTER, "seconds",
			"Time in each program, while kernel.bpf_stats_enabled was set.");
		for (size_t i = 0; i < n; i++)
			NUMBER(c, costs[i].run_ns / 1e9, { "program", costs[i].program });
		family(c, "phasewatch_program_runs", METRIC_COUNTER, NULL,
			"Runs of each program, while kernel.bpf_stats_enabled was set.");
		for (size_t i = 0; i < n; i++)
			NUMBER(c, costs[i].runs, { "program", costs[i].program });
	}
	family(c, "phasewatch_program_recursion_misses", METRIC_COUNTER, NULL,
		"Runs that the kernel skipped, since the program was running there: what only tracing "
		"programs tell may be short by these.");
	for (size_t i = 0; i < n; i++)
		NUMBER(c, costs[i].recursion_misses, { "program", costs[i].program });
}

static void write_maps(struct collection *c)
{
	size_t workloads = 0;

	while (workloads < PW_WORKLOADS && workloads_at(c->of->workloads, 1 + workloads))
		workloads++;
	family(c, "phasewatch_map_entries", METRIC_GAUGE, NULL, "Entries of maps that may become full.");
	NUMBER(c, c->n_subjects, { "map", "pw_phases" });
	NUMBER(c, c->members, { "map", "pw_members" });
	NUMBER(c, workloads, { "map", "pw_workloads" });
	family(c, "phasewatch_map_capacity", METRIC_GAUGE, NULL, "How many they may have.");
	NUMBER(c, kernel_map_capacity(c->of->kernel->phases), { "map", "pw_phases" });
	NUMBER(c, kernel_map_capacity(c->of->kernel->members), { "map", "pw_members" });
	NUMBER(c, PW_WORKLOADS, { "map", "pw_workloads" });
	family(c, "phasewatch_ring_used_bytes", METRIC_GAUGE, "bytes",
		"Records in the ring buffer that the daemon has not read yet.");
	NUMBER(c, kernel_ring_used(c->of->kernel));
	family(c, "phasewatch_ring_size_bytes", METRIC_GAUGE, "bytes", "Size of the ring buffer.");
	NUMBER(c, kernel_map_capacity(c->of->kernel->events));
}

static void write_process(struct collection *c)
{
	struct proc_stat self;
	struct rusage used;
	uint64_t resident, fds;

	if (getrusage(RUSAGE_SELF, &used) == 0) {
		family(c, "process_cpu_seconds", METRIC_COUNTER, "seconds",
			"Time that the daemon ran, in user and kernel mode.");
		NUMBER(c, used.ru_utime.tv_sec + used.ru_stime.tv_sec +
				  (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
	}
	if (proc_usage(&resident, &fds) == 0) {
		family(c, "process_resident_memory_bytes", METRIC_GAUGE, "bytes",
			"Memory of the daemon.");
		NUMBER(c, resident);
		family(c, "process_open_fds", METRIC_GAUGE, NULL, "Its open file descriptors.");
		NUMBER(c, fds);
	}
	if (proc_read(getpid(), &self) == 0) {
		family(c, "process_start_time_seconds", METRIC_GAUGE, "seconds",
			"When the daemon started, since 1970.");
		NUMBER(c, (clock_ns(CLOCK_REALTIME) - clock_boot_ns() + self.start_ns) / 1e9);
	}
}

int metrics_collect(struct metrics_of *of, const struct metric_sink *sink)
{
	struct collection c = { .of = of, .sink = sink };
	_cleanup_(freep) struct sums *by = calloc(NOBODY + 1, sizeof(*by));
	int err;

	c.by = by;
	err = by ? add_up(&c) : -ENOMEM;
	if (err)
		return err;
	write_connections(&c);
	write_misrouted(&c);
	write_requests(&c);
	write_cost(&c);
	write_delays(&c);
	write_subjects(&c);
	write_phase_changes(&c);
	write_authority(&c);
	write_stream(&c);
	write_programs(&c);
	write_maps(&c);
	write_process(&c);
	otlp_collect(of->otlp, sink);
	family(&c, "phasewatch_build", METRIC_INFO, NULL, "What is running.");
	NUMBER(&c, 1, { "version", PW_VERSION });
	return 0;
}
