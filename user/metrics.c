// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>

#include "metrics.h"
#include "names.h"
#include "notify.h"
#include "util.h"

static void head(struct evbuffer *out, const char *name, const char *type, const char *help)
{
	evbuffer_add_printf(out, "# TYPE %s %s\n# HELP %s %s\n", name, type, name, help);
}

static const struct names direction_names = { (const char *const[]){ "accept", "connect" }, 2 };

static void write_connections(struct evbuffer *out, const struct pw_counters *c)
{
	head(out, "phasewatch_connections", "counter",
		"Connections accepted and made, by the phase of the process when they arrived or began.");
	for (unsigned int d = 0; d < PW_DIRECTIONS; d++)
		for (unsigned int p = 0; p < PW_PHASES; p++)
			for (unsigned int v = 0; v < PW_VERDICTS; v++)
				if (c->connections[d][p][v])
					evbuffer_add_printf(out,
						"phasewatch_connections_total{direction=\"%s\",phase=\"%s\",verdict=\"%s\"} %llu\n",
						names_name(&direction_names, d), phase_name(p),
						verdict_name(v), c->connections[d][p][v]);
}

static void write_misrouted(struct evbuffer *out, const struct pw_counters *c)
{
	head(out, "phasewatch_misrouted", "counter",
		"Connections that reached or left a process in a phase in which none is expected.");
	for (unsigned int d = 0; d < PW_DIRECTIONS; d++)
		for (unsigned int p = PW_INIT; p < PW_PHASES; p++)
			if (p != PW_ACTIVE && !(d == PW_DIR_CONNECT && p == PW_INIT))
				evbuffer_add_printf(out,
					"phasewatch_misrouted_total{type=\"%s\",phase=\"%s\"} %llu\n",
					names_name(&direction_names, d), phase_name(p),
					c->connections[d][p][PW_MISROUTED]);
	for (unsigned int p = PW_INIT; p < PW_PHASES; p++)
		if (p != PW_ACTIVE)
			evbuffer_add_printf(out,
				"phasewatch_misrouted_total{type=\"request\",phase=\"%s\"} %llu\n",
				phase_name(p), c->requests[p][PW_MISROUTED]);
}

static void write_cost(struct evbuffer *out, const struct pw_counters *c)
{
	head(out, "phasewatch_requests", "counter",
		"Requests read by subjects while any of them drains, by phase.");
	for (unsigned int p = 0; p < PW_PHASES; p++)
		for (unsigned int v = 0; v < PW_VERDICTS; v++)
			if (c->requests[p][v])
				evbuffer_add_printf(out,
					"phasewatch_requests_total{phase=\"%s\",verdict=\"%s\"} %llu\n",
					phase_name(p), verdict_name(v), c->requests[p][v]);
	head(out, "phasewatch_requests_too_late", "counter",
		"Of these, requests that came after a draining process had closed their connection.");
	evbuffer_add_printf(
		out, "phasewatch_requests_too_late_total %llu\n", c->requests_too_late);
	head(out, "phasewatch_abandoned", "counter",
		"Connections of draining processes that were still open when they exited.");
	for (unsigned int h = 0; h < PW_HOWS; h++)
		for (unsigned int busy = 0; busy < 2; busy++)
			evbuffer_add_printf(out,
				"phasewatch_abandoned_total{how=\"%s\",busy=\"%s\"} %llu\n", how_name(h),
				busy ? "true" : "false", c->abandoned[h][busy]);
	head(out, "phasewatch_backlog_dropped", "counter",
		"Completed connections that nobody had accepted when their listener closed.");
	evbuffer_add_printf(
		out, "phasewatch_backlog_dropped_total %llu\n", c->backlog_dropped);
	head(out, "phasewatch_refused", "counter",
		"Connects refused where a drained subject had listened less than 60 s before.");
	evbuffer_add_printf(out, "phasewatch_refused_total %llu\n", c->refused);
}

static void write_own(struct evbuffer *out, const struct pw_counters *c)
{
	head(out, "phasewatch_events", "counter", "Records handed to the daemon, by type.");
	for (unsigned int t = PW_EV_ACCEPT; t < PW_EV_RECORDS; t++)
		evbuffer_add_printf(out, "phasewatch_events_total{type=\"%s\"} %llu\n",
			event_type_name(t), c->emitted[t]);
	head(out, "phasewatch_events_lost", "counter",
		"Records that could not be made, by type and by what was full.");
	for (unsigned int t = PW_EV_ACCEPT; t < PW_EV_RECORDS; t++)
		evbuffer_add_printf(out,
			"phasewatch_events_lost_total{type=\"%s\",stage=\"ring\"} %llu\n"
			"phasewatch_events_lost_total{type=\"%s\",stage=\"map\"} %llu\n",
			event_type_name(t), c->lost_ring[t], event_type_name(t), c->lost_map[t]);
}

static void write_declarations(struct evbuffer *out, const struct pw_daemon_counters *c)
{
	head(out, "phasewatch_phase_changes", "counter", "Moves of subjects from phase to phase.");
	for (unsigned int from = 0; from < PW_PHASES; from++)
		for (unsigned int to = PW_INIT; to < PW_PHASES; to++)
			for (unsigned int source = 0; source < PW_SOURCES; source++)
				if (c->phase_changes[from][to][source])
					evbuffer_add_printf(out,
						"phasewatch_phase_changes_total{from=\"%s\",to=\"%s\",source=\"%s\"} %llu\n",
						phase_name(from), phase_name(to), source_name(source),
						c->phase_changes[from][to][source]);
	head(out, "phasewatch_violations", "counter",
		"Declarations and exits that break the rules of a life cycle.");
	for (unsigned int kind = 0; kind < PW_VIOLATIONS; kind++)
		evbuffer_add_printf(out, "phasewatch_violations_total{kind=\"%s\"} %llu\n",
			names_name(&violation_names, kind), c->violations[kind]);
	head(out, "phasewatch_flaps", "counter", "Life cycles that a subject began anew.");
	evbuffer_add_printf(out, "phasewatch_flaps_total %llu\n", c->flaps);
	head(out, "phasewatch_reconciles", "counter",
		"Declarations found in the map that nobody had told the daemon of.");
	evbuffer_add_printf(out, "phasewatch_reconciles_total %llu\n", c->reconciles);
}

static void write_authority(struct evbuffer *out, const struct declare *d, uint64_t turned_away)
{
	head(out, "phasewatch_declarations", "counter",
		"Declarations by what became of them, whichever way they came.");
	for (unsigned int v = 0; v < AUDIT_VERDICTS; v++)
		evbuffer_add_printf(out, "phasewatch_declarations_total{verdict=\"%s\"} %" PRIu64 "\n",
			names_name(&audit_verdict_names, v), declare_count(d, v));
	head(out, "phasewatch_audit_lost", "counter",
		"Lines that could not be written to the audit log.");
	evbuffer_add_printf(out, "phasewatch_audit_lost_total %" PRIu64 "\n", declare_audit_lost(d));
	head(out, "phasewatch_api_connections_refused", "counter",
		"Connections to the API that were one too many of a user.");
	evbuffer_add_printf(out, "phasewatch_api_connections_refused_total %" PRIu64 "\n", turned_away);
}

struct gauges {
	const struct subjects *s;
	uint64_t by_phase[PW_PHASES];
	int64_t inflight;
};

static void add_subject(const struct subject *subject, void *arg)
{
	struct gauges *g = arg;
	struct pw_stats stats;

	if (phase_name(subject->now.phase))
		g->by_phase[subject->now.phase]++;
	if (subjects_stats(g->s, subject, &stats) == 0)
		g->inflight += stats.inflight + stats.unseen;
}

static void write_notified(struct evbuffer *out, const uint64_t *counts)
{
	static const char *const names[] = { [NOTIFY_ACCEPTED] = "accepted",
		[NOTIFY_REFUSED] = "refused", [NOTIFY_IGNORED] = "ignored" };

	head(out, "phasewatch_notify_messages", "counter",
		"Messages in the way of sd_notify(3): declared, not allowed or malformed, without a phase.");
	for (unsigned int r = 0; r < NOTIFY_RESULTS; r++)
		evbuffer_add_printf(out, "phasewatch_notify_messages_total{result=\"%s\"} %llu\n",
			names[r], (unsigned long long)counts[r]);
}

int metrics_write(struct evbuffer *out, const struct metrics_of *of)
{
	struct gauges g = { .s = of->subjects };
	struct pw_counters c;
	int err;

	err = kernel_read_counters(of->kernel, &c);
	if (err)
		return err;
	write_connections(out, &c);
	write_misrouted(out, &c);
	subjects_look(of->subjects);
	subjects_for_each(of->subjects, add_subject, &g);
	head(out, "phasewatch_subjects", "gauge", "Subjects by phase.");
	for (unsigned int p = PW_INIT; p < PW_PHASES; p++)
		evbuffer_add_printf(out, "phasewatch_subjects{phase=\"%s\"} %llu\n", phase_name(p),
			(unsigned long long)g.by_phase[p]);
	head(out, "phasewatch_inflight_connections", "gauge",
		"Connections that subjects accepted and still hold.");
	evbuffer_add_printf(out, "phasewatch_inflight_connections %lld\n", (long long)g.inflight);
	write_declarations(out, &of->kernel->control->counters);
	write_cost(out, &c);
	write_own(out, &c);
	if (of->notified)
		write_notified(out, of->notified);
	write_authority(out, of->declare, of->turned_away);
	head(out, "phasewatch_build", "info", "What is running.");
	evbuffer_add_printf(out, "phasewatch_build_info{version=\"" PW_VERSION "\"} 1\n# EOF\n");
	return 0;
}
