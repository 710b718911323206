/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Moves that the kernel half makes itself, so that there is no moment between a signal, or listen(2),
 * and the phase that it means. The daemon learns of each by its MOVE record.
 */
#ifndef PW_MOVE_H
#define PW_MOVE_H

#include "subject.h"

static __always_inline void pw_move_emit(struct pw_subject_key *key, struct pw_declaration *d,
	__u32 from, struct task_struct *by, __u32 signal)
{
	struct pw_move_record *rec = pw_reserve(PW_EV_MOVE, sizeof(*rec));

	if (!rec)
		return;
	pw_head(&rec->h, PW_EV_MOVE, sizeof(*rec), d->since_ns);
	pw_identify(by, &rec->by);
	rec->key = *key;
	rec->now = *d;
	rec->from = from;
	rec->signal = signal;
	pw_submit(&rec->h);
}

static __always_inline void pw_enter(struct pw_declaration *d, __u32 phase, __u32 source,
	struct task_struct *by)
{
	d->phase = phase;
	d->source = source;
	d->since_ns = bpf_ktime_get_boot_ns();
	d->by_pid = pw_tgid(by);
	d->by_uid = BPF_CORE_READ(by, cred, uid.val);
	if (phase >= PW_INIT && phase <= PW_SHUTDOWN)
		d->entered_ns[phase - PW_INIT] = d->since_ns;
	__builtin_memset(d->reason, 0, sizeof(d->reason));
}

/*
 * Replaces the declaration whole: whoever judges meanwhile sees the old one or the new one. `by` is 0
 * if nobody did it, which reads as zeros.
 */
static __noinline int pw_move(struct pw_subject_key *key, struct pw_declaration *from, __u32 phase,
	struct task_struct *by, __u32 signal)
{
	struct pw_declaration d = *from;

	pw_enter(&d, phase, signal ? PW_SOURCE_SIGNAL : PW_SOURCE_LISTEN, by);
	if (bpf_map_update_elem(&pw_phases, key, &d, BPF_EXIST) == 0)
		pw_move_emit(key, &d, from->phase, by, signal);
	return 0;
}

#endif /* PW_MOVE_H */
