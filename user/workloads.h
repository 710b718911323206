/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Numbers by workload: subjects of one name, those that are gone included. What a subject has counted
 * is in pw_tallies while it is there and is added to its workload's when it goes; the workloads are in
 * a pinned map, so that no counter falls back when the daemon is replaced.
 */
#ifndef PW_WORKLOADS_H
#define PW_WORKLOADS_H

#include "event.h"
#include "kernel.h"
#include "report.h"
#include "sink.h"
#include "subjects.h"

enum workload_delay { DELAY_MISROUTE, DELAY_SETTLE, DELAY_DRAIN, WORKLOAD_DELAYS };

struct workloads;

/* `max`: names that are kept apart, 1 to PW_WORKLOADS. Both have to outlive them. */
int workloads_new(struct workloads **ret, struct kernel *k, size_t max);
void workloads_free(struct workloads *w);

/* What the daemon sees happen. */
void workloads_phase(struct workloads *w, const struct subject *s, const struct event_phase *p);
void workloads_violation(struct workloads *w, const struct subject *s, enum pw_violation kind);
void workloads_event(struct workloads *w, const struct event *e, const struct event_names *names);
void workloads_drained(struct workloads *w, const struct report *r, uint64_t seq);
/* It goes, or goes by another name from here on: what it has counted is complete. */
void workloads_left(struct workloads *w, const struct subject *s);

/* Its place, 1 to PW_WORKLOADS; 0: that of all which have none of their own. */
size_t workloads_of(struct workloads *w, const char *name);
/* NULL where there is none. */
const struct pw_workload *workloads_at(const struct workloads *w, size_t i);
/* PW_BUCKETS of them, or NULL. */
const struct metric_exemplar *workloads_exemplars(
	const struct workloads *w, size_t i, enum workload_delay which);

void tally_add(struct pw_tally *to, const struct pw_tally *from);

#endif /* PW_WORKLOADS_H */
