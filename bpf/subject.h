/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose: the subject that a process belongs to, and what its phase says of an arrival. */
#ifndef PW_SUBJECT_H
#define PW_SUBJECT_H

#include "emit.h"
#include "task.h"

#define EEXIST 17

#define PF_KTHREAD 0x00200000

/*
 * It closes and resets what others held. The kernel: what nobody is there any more to close himself,
 * sockets in the file table of an io_uring whose process is gone. The daemon: its iterators have each
 * file for a moment, and if its process closes it then, the last reference is theirs.
 */
static __always_inline int pw_is_nobody(struct task_struct *task)
{
	struct pw_control *ctl = pw_shared();

	return (BPF_CORE_READ(task, flags) & PF_KTHREAD) || (ctl && ctl->daemon == pw_tgid(task));
}

/* Who accepts, resets or closes: those do so for somebody that is not known. */
static __always_inline void pw_identify_holder(struct task_struct *task, struct pw_process *p)
{
	if (pw_is_nobody(task))
		__builtin_memset(p, 0, sizeof(*p));
	else
		pw_identify(task, p);
}

/* Deeper cgroups are looked at up to here, from the process's own on upwards. */
#define PW_CGROUP_LEVELS 16

static __always_inline struct pw_declaration *pw_cgroup_subject_of(
	struct task_struct *task, struct pw_subject_key *key)
{
	struct cgroup *cgroup = BPF_CORE_READ(task, group_leader, cgroups, dfl_cgrp);
	struct pw_declaration *d;
	int i;

	key->kind = PW_KIND_CGROUP;
	for (i = 0; i < PW_CGROUP_LEVELS && cgroup; i++) {
		key->id = BPF_CORE_READ(cgroup, kn, id);
		d = bpf_map_lookup_elem(&pw_phases, key);
		if (d)
			return d;
		cgroup = BPF_CORE_READ(cgroup, self.parent, cgroup);
	}
	return 0;
}

/*
 * A process's own declaration beats that of the subject it descends from, and that beats its nearest
 * declared cgroup's. A process in none of them costs two missed look-ups. A subject that is being set
 * up has phase UNDECLARED for a moment.
 */
static __noinline struct pw_declaration *pw_subject_of(
	struct task_struct *task, struct pw_subject_key *key)
{
	struct pw_control *ctl = pw_shared();
	__u32 tgid = pw_tgid(task);
	struct pw_declaration *d;
	struct pw_member *m;

	key->kind = PW_KIND_PROCESS;
	key->reserved = 0;
	key->id = tgid;
	d = bpf_map_lookup_elem(&pw_phases, key);
	if (d && pw_same_start(d->start_ns, pw_start_ns(task)))
		return d;

	m = bpf_map_lookup_elem(&pw_members, &tgid);
	if (m && m->subject != tgid && pw_same_start(m->start_ns, pw_start_ns(task)) &&
		(!m->scope || m->scope == pw_scope(task))) {
		key->id = m->subject;
		d = bpf_map_lookup_elem(&pw_phases, key);
		if (d && pw_same_start(d->start_ns, m->subject_start_ns))
			return d;
	}
	return ctl && ctl->cgroups ? pw_cgroup_subject_of(task, key) : 0;
}

/* True for the first who asks: an insertion is atomic on every kernel, a compare-and-swap is not. */
static __always_inline int pw_claim_exit(__u32 tgid, __u64 start_ns)
{
	__u64 *of = bpf_map_lookup_elem(&pw_exited, &tgid);

	if (of && !pw_same_start(*of, start_ns)) /* of an earlier process */
		bpf_map_delete_elem(&pw_exited, &tgid);
	return bpf_map_update_elem(&pw_exited, &tgid, &start_ns, BPF_NOEXIST) == 0;
}

/* Not inline: 512 bytes of stack are all that a program has, with what it calls. */
static __noinline int pw_make_stats(struct pw_subject_key *key, __s64 members, __u64 flags)
{
	struct pw_stats fresh = { .members = members, .life = bpf_ktime_get_boot_ns() };

	return bpf_map_update_elem(&pw_stats, key, &fresh, flags);
}

static __always_inline struct pw_stats *pw_stats_of(struct pw_subject_key *key)
{
	struct pw_stats *s = bpf_map_lookup_elem(&pw_stats, key);

	if (s)
		return s;
	/* Somebody wrote pw_phases directly and the daemon has not noticed yet. */
	pw_make_stats(key, 0, BPF_NOEXIST);
	return bpf_map_lookup_elem(&pw_stats, key);
}

static __always_inline void pw_count_member(struct pw_subject_key *key, __s64 n)
{
	struct pw_stats *s = bpf_map_lookup_elem(&pw_stats, key);

	if (s)
		pw_add(s->members, n);
}

/*
 * The phase that was in force at `at`: the arrival counts, not the moment somebody looked at it. A
 * connection that waited in the accept queue while DRAIN was declared is no misrouting.
 */
static __always_inline void pw_judge(struct pw_declaration *d, struct pw_subject_key *key, __u64 at,
	__u32 direction, struct pw_verdict_on *on)
{
	struct pw_control *ctl = pw_shared();
	__u32 phase = d->phase;
	__u64 since = d->since_ns;
	__u32 p;

	if (at < since) {
		phase = PW_UNDECLARED;
		since = 0;
		for (p = PW_SHUTDOWN; p >= PW_INIT; p--) {
			__u64 entered = d->entered_ns[p - 1];

			if (!phase && p < d->phase && entered && at >= entered) {
				phase = p;
				since = entered;
			}
		}
	}
	if (phase >= PW_PHASES)
		phase = PW_UNDECLARED;

	on->key = *key;
	on->epoch = d->epoch <= PW_EPOCH_MAX ? d->epoch : PW_EPOCH_MAX;
	on->since_ns = since;
	on->phase = phase;
	on->source = d->source < PW_SOURCES ? d->source : PW_SOURCE_MAP;
	__builtin_memset(on->reserved, 0, sizeof(on->reserved));
	if (phase == PW_DRAIN && since && ctl && at - since < ctl->grace_ns)
		on->verdict = PW_GRACE;
	else if (phase == PW_DRAIN || phase == PW_SHUTDOWN ||
		 (phase == PW_INIT && direction == PW_DIR_ACCEPT))
		on->verdict = PW_MISROUTED;
	else
		on->verdict = PW_OK;
}

#endif /* PW_SUBJECT_H */
