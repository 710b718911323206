/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who: processes and their identity. All through bpf_get_current_task() and CO-RE reads, which any
 * program type may use since 5.8; sockops programs have no pid helper before 6.10.
 */
#ifndef PW_TASK_H
#define PW_TASK_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>

#include "abi.h"

static __always_inline struct task_struct *pw_current(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

static __always_inline __u32 pw_tgid(struct task_struct *task)
{
	return BPF_CORE_READ(task, tgid);
}

static __always_inline __u64 pw_start_ns(struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline void pw_identify(struct task_struct *task, struct pw_process *p)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	p->pid = BPF_CORE_READ(leader, tgid);
	p->ppid = BPF_CORE_READ(leader, real_parent, tgid);
	p->start_ns = BPF_CORE_READ(leader, start_boottime);
	p->cgroup_id = BPF_CORE_READ(leader, cgroups, dfl_cgrp, kn, id);
	BPF_CORE_READ_INTO(&p->comm, leader, comm);
}

static __always_inline void pw_identify_client(
	struct task_struct *task, __u32 arming, struct pw_client *c)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	c->pid = BPF_CORE_READ(leader, tgid);
	c->arming = arming;
	c->cgroup_id = BPF_CORE_READ(leader, cgroups, dfl_cgrp, kn, id);
	__builtin_memset(c->comm, 0, sizeof(c->comm)); /* it is compared: with zeros behind its end */
	BPF_CORE_READ_STR_INTO(&c->comm, leader, comm);
}

/*
 * How far a tree of processes goes that nobody declared (--auto): as far as its cgroup, which is a
 * service's, a container's or a login's; where all are in the root cgroup, as far as its session.
 */
static __always_inline __u64 pw_scope(struct task_struct *task)
{
	struct cgroup *cgroup = BPF_CORE_READ(task, group_leader, cgroups, dfl_cgrp);

	if (BPF_CORE_READ(cgroup, level))
		return BPF_CORE_READ(cgroup, kn, id);
	return PW_SCOPE_SESSION | BPF_CORE_READ(task, signal, pids[PIDTYPE_SID], numbers[0].nr);
}

/*
 * The last thread is leaving, or has left: threads that leave at the same time may all find so.
 * Unlike the tracepoint's own argument it is there on every version.
 */
static __always_inline int pw_group_dead(struct task_struct *task)
{
	return BPF_CORE_READ(task, signal, live.counter) == 0;
}

#endif /* PW_TASK_H */
