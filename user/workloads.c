// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>
#include <bpf/bpf.h>

#include "util.h"
#include "workloads.h"

struct exemplars {
	struct metric_exemplar of[WORKLOAD_DELAYS][PW_BUCKETS];
};

struct workloads {
	struct kernel *k;
	size_t max;
	struct exemplars *exemplars[1 + PW_WORKLOADS];
};

int workloads_new(struct workloads **ret, struct kernel *k, size_t max)
{
	struct workloads *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->k = k;
	w->max = max;
	strcpy(k->workloads[0].name, "other");
	*ret = w;
	return 0;
}

void workloads_free(struct workloads *w)
{
	if (!w)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(w->exemplars); i++)
		free(w->exemplars[i]);
	free(w);
}

void tally_add(struct pw_tally *to, const struct pw_tally *from)
{
	for (size_t i = 0; i < sizeof(*to) / sizeof(__u64); i++)
		((__u64 *)to)[i] += ((const __u64 *)from)[i];
}

size_t workloads_of(struct workloads *w, const char *name)
{
	struct pw_workload *all = w->k->workloads;

	if (!name || !name[0])
		return 0;
	for (size_t i = 1; i <= PW_WORKLOADS; i++) {
		if (!all[i].name[0]) {
			if (i > w->max)
				break;
			snprintf(all[i].name, sizeof(all[i].name), "%s", name);
			return i;
		}
		if (strncmp(all[i].name, name, sizeof(all[i].name) - 1) == 0)
			return i;
	}
	return 0;
}

const struct pw_workload *workloads_at(const struct workloads *w, size_t i)
{
	return i <= PW_WORKLOADS && w->k->workloads[i].name[0] ? &w->k->workloads[i] : NULL;
}

const struct metric_exemplar *workloads_exemplars(
	const struct workloads *w, size_t i, enum workload_delay which)
{
	return w->exemplars[i] ? w->exemplars[i]->of[which] : NULL;
}

void workloads_phase(struct workloads *w, const struct subject *s, const struct event_phase *p)
{
	size_t i = workloads_of(w, s->name);

	if (p->from == PW_UNDECLARED)
		w->k->control->counters.overflowed += i == 0;
	w->k->workloads[i].phase_changes[p->from][p->now.phase][p->now.source]++;
	w->k->workloads[i].flaps += p->now.phase < p->from;
}

void workloads_violation(struct workloads *w, const struct subject *s, enum pw_violation kind)
{
	w->k->workloads[workloads_of(w, s->name)].violations[kind]++;
}

static void record(struct workloads *w, size_t i, enum workload_delay which, uint64_t ns,
	uint64_t seq, uint64_t realtime_ns)
{
	struct pw_workload *workload = &w->k->workloads[i];
	struct pw_durations *const durations[] = { [DELAY_MISROUTE] = &workload->misroute_delay,
		[DELAY_SETTLE] = &workload->settle, [DELAY_DRAIN] = &workload->drain };
	size_t bucket = 0;

	while (bucket < PW_BUCKETS - 1 && ns > pw_delays_ns[bucket])
		bucket++;
	durations[which]->buckets[bucket]++;
	durations[which]->sum_ns += ns;
	if (!w->exemplars[i])
		w->exemplars[i] = calloc(1, sizeof(*w->exemplars[i]));
	if (w->exemplars[i])
		w->exemplars[i]->of[which][bucket] =
			(struct metric_exemplar){ seq, ns / 1e9, realtime_ns };
}

/* Accepts count from their arrival, connects from their begin; requests from when they are read. */
void workloads_event(struct workloads *w, const struct event *e, const struct event_names *names)
{
	const struct pw_verdict_on *on = event_verdict_on(e);
	uint64_t at;

	if (e->type == PW_EV_REFUSED && on->verdict != PW_IGNORED)
		w->k->workloads[workloads_of(w, names->subject)].ended.refused++;
	if (e->type != PW_EV_ACCEPT && e->type != PW_EV_CONNECT && e->type != PW_EV_REQUEST)
		return;
	at = e->type == PW_EV_REQUEST ? e->time_ns : e->conn.begin_ns;
	if (on->verdict == PW_MISROUTED && on->since_ns && at >= on->since_ns)
		record(w, workloads_of(w, names->subject), DELAY_MISROUTE, at - on->since_ns,
			e->seq, e->time_ns + names->realtime_offset_ns);
}

void workloads_drained(struct workloads *w, const struct report *r, uint64_t seq)
{
	uint64_t began_ns = report_began(r)->time_ns;
	size_t i = workloads_of(w, r->name);

	if (!began_ns || r->ended_ns < began_ns)
		return;
	record(w, i, DELAY_DRAIN, r->ended_ns - began_ns, seq,
		r->ended_ns + r->realtime_offset_ns);
	record(w, i, DELAY_SETTLE, report_settle_ns(r), seq, r->ended_ns + r->realtime_offset_ns);
}

void workloads_left(struct workloads *w, const struct subject *s)
{
	struct pw_tally tally;

	if (bpf_map_lookup_elem(w->k->tallies, &s->key, &tally) < 0)
		return;
	bpf_map_delete_elem(w->k->tallies, &s->key);
	tally_add(&w->k->workloads[workloads_of(w, s->name)].ended, &tally);
}
