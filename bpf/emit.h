/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting, and handing records to the daemon. */
#ifndef PW_EMIT_H
#define PW_EMIT_H

#include "maps.h"

/*
 * Per-CPU slots are added to atomically: a program in process context can be interrupted by one in
 * softirq, and cgroup programs can be preempted, between the load and the store of a plain `++`.
 */
#define pw_add(counter, n) ((void)__sync_fetch_and_add(&(counter), (n)))

static __always_inline struct pw_counters *pw_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pw_counters, &zero);
}

static __always_inline struct pw_control *pw_shared(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pw_control, &zero);
}

static const struct pw_tally pw_no_tally;

static __always_inline struct pw_tally *pw_tally_of(struct pw_subject_key *key)
{
	struct pw_tally *t = bpf_map_lookup_elem(&pw_tallies, key);

	if (t)
		return t;
	bpf_map_update_elem(&pw_tallies, key, &pw_no_tally, BPF_NOEXIST);
	return bpf_map_lookup_elem(&pw_tallies, key);
}

static __always_inline void pw_add_connection(
	struct pw_tally *t, __u32 direction, __u32 phase, __u32 verdict)
{
	/* else clang checks a copy, whose bounds a verifier before 6.7 does not connect with these */
	barrier_var(phase);
	barrier_var(verdict);
	if (t && direction < PW_DIRECTIONS && phase < PW_PHASES && verdict < PW_VERDICTS)
		pw_add(t->connections[direction][phase][verdict], 1);
}

/* Of everybody. */
static __always_inline void pw_count_connection(__u32 direction, __u32 phase, __u32 verdict)
{
	struct pw_counters *c = pw_cpu_counters();

	if (c)
		pw_add_connection(&c->tally, direction, phase, verdict);
}

static __always_inline void pw_add_duration(struct pw_durations *d, __u64 ns)
{
	__u32 i = 0;

	while (i < PW_BUCKETS - 1 && ns > pw_bounds_ns[i])
		i++;
	pw_add(d->buckets[i], 1);
	pw_add(d->sum_ns, ns);
}

static __always_inline void pw_note_misrouted(struct pw_stats *stats, __u64 at)
{
	if (stats->last_misrouted_ns < at)
		stats->last_misrouted_ns = at;
}

static __always_inline void pw_add_request(struct pw_tally *t, __u32 phase, __u32 verdict)
{
	barrier_var(phase);
	barrier_var(verdict);
	if (t && phase < PW_PHASES && verdict < PW_VERDICTS)
		pw_add(t->requests[phase][verdict], 1);
}

static __always_inline void pw_count_request(
	struct pw_stats *stats, struct pw_verdict_on *on, __u64 at)
{
	struct pw_counters *c = pw_cpu_counters();

	if (c)
		pw_add_request(&c->tally, on->phase, on->verdict);
	if (!stats)
		return;
	pw_add_request(pw_tally_of(&on->key), on->phase, on->verdict);
	pw_add(stats->requests, 1);
	if (on->verdict == PW_MISROUTED) {
		pw_add(stats->requests_misrouted, 1);
		pw_note_misrouted(stats, at);
	}
}

static __always_inline void pw_count_map_full(__u32 type)
{
	struct pw_counters *c = pw_cpu_counters();

	if (c && type < PW_EV_TYPES)
		pw_add(c->lost_map[type], 1);
}

/*
 * Ring memory arrives dirty: the caller writes every field of the record. `rec` is compared with
 * NULL once only: a verifier before 6.4 takes a second comparison for one that may turn out
 * otherwise, and then misses the submit.
 */
static __always_inline void *pw_reserve(__u32 type, __u64 size)
{
	void *rec = bpf_ringbuf_reserve(&pw_events, size, 0);
	struct pw_counters *c;

	if (rec)
		return rec;
	c = pw_cpu_counters();
	if (c && type < PW_EV_TYPES)
		pw_add(c->lost_ring[type], 1);
	return 0;
}

static __always_inline void pw_head(struct pw_record *h, __u16 type, __u16 size, __u64 now)
{
	h->type = type;
	h->size = size;
	h->reserved = 0;
	h->time_ns = now;
}

/*
 * One wake-up when the daemon sleeps, none while it polls: a wake-up a record costs four times the
 * record. A record that is committed just as the daemon falls asleep waits for its timer (1 s).
 */
static __always_inline void pw_submit(struct pw_record *rec)
{
	struct pw_counters *c = pw_cpu_counters();
	struct pw_control *ctl = pw_shared();
	__u64 flags = BPF_RB_NO_WAKEUP;
	__u32 type = rec->type;

	barrier_var(type);
	if (c && type < PW_EV_TYPES)
		pw_add(c->emitted[type], 1);
	if (type == PW_EV_MOVE) /* there may be hooks to attach */
		flags = BPF_RB_FORCE_WAKEUP;
	if (ctl && ctl->waiting) {
		ctl->waiting = 0;
		flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(rec, flags);
}

#endif /* PW_EMIT_H */
