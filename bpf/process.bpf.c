// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Membership and the end of processes: tracing programs, in the context of the task concerned. */
#include "conn.h"
#include "move.h"
#include <bpf/bpf_tracing.h>

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define SIGNAL_GROUP_EXIT 4

/* File tables are counted up to PW_FD_BLOCKS * PW_FD_BLOCK descriptors. */
#define PW_FD_BLOCK 64
#define PW_FD_BLOCKS 1024

static __always_inline void pw_task_emit(struct task_struct *task, __u16 type)
{
	struct pw_task_record *rec = pw_reserve(type, sizeof(*rec));

	if (!rec)
		return;
	pw_head(&rec->h, type, sizeof(*rec), bpf_ktime_get_boot_ns());
	pw_identify(task, &rec->process);
	pw_submit(&rec->h);
}

static __always_inline int pw_forked(struct task_struct *parent, struct task_struct *child)
{
	struct pw_member *had, *of, member = {};
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_stats *stats;
	__u32 tgid = child->tgid, ptgid = parent->tgid;
	int err; /* the helper's upper half is undefined on 5.10 */

	if (child->pid != child->tgid)
		return 0;
	d = pw_subject_of(parent, &key);
	if (!d || key.kind != PW_KIND_PROCESS)
		return 0;
	member.start_ns = child->start_boottime;
	member.subject = key.id;
	member.subject_start_ns = d->start_ns;
	of = bpf_map_lookup_elem(&pw_members, &ptgid);
	member.scope = of ? of->scope : 0;
	if (member.scope && key.id == ptgid) /* it may have gone elsewhere since it listens */
		member.scope = pw_scope(parent);
	had = bpf_map_lookup_elem(&pw_members, &tgid);
	if (had && pw_same_start(had->start_ns, member.start_ns))
		return 0; /* pw_adopt was quicker */
	if (had)
		bpf_map_delete_elem(&pw_members, &tgid);
	err = bpf_map_update_elem(&pw_members, &tgid, &member, BPF_NOEXIST);
	if (err) {
		if (err != -EEXIST)
			pw_count_map_full(PW_EV_FORK);
		return 0;
	}
	stats = pw_stats_of(&key);
	if (stats)
		pw_add(stats->members, 1);
	pw_task_emit(child, PW_EV_FORK);
	return 0;
}

/*
 * Twice, as the exit below: from 7.0 on a tracing program is skipped while another task that was
 * preempted is inside it on this CPU. Whichever copy comes first does the work.
 */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(pw_process_fork, struct task_struct *parent, struct task_struct *child)
{
	return pw_forked(parent, child);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(pw_process_fork2, struct task_struct *parent, struct task_struct *child)
{
	return pw_forked(parent, child);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(pw_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct pw_subject_key key;

	if (pw_subject_of(task, &key))
		pw_task_emit(task, PW_EV_EXEC);
	return 0;
}

static __always_inline int pw_is_connection(struct file *file)
{
	struct socket *socket;
	struct sock *sk;
	__u16 family;
	__u8 state;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	return (family == AF_INET || family == AF_INET6) && state != TCP_LISTEN &&
	       state != TCP_CLOSE && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP;
}

/* A global function: the verifier walks its loop once, not once for every block. */
__attribute__((noinline)) __u64 pw_connections_in(__u64 slots, __u32 count)
{
	struct file *file = 0, *last = 0;
	__u64 n = 0;
	__u32 i;

	for (i = 0; i < PW_FD_BLOCK && i < count; i++) {
		bpf_probe_read_kernel(&file, sizeof(file), (void *)(slots + 8 * i));
		/* one connection on stdin, stdout and stderr is one */
		if (file && file != last && pw_is_connection(file))
			n++;
		last = file;
	}
	return n;
}

/* What it still holds: at this point of its exit no file is closed yet. */
static __always_inline __u32 pw_open_connections(struct task_struct *task)
{
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	__u64 slots = (__u64)BPF_CORE_READ(fdt, fd), n = 0;
	__u32 max = BPF_CORE_READ(fdt, max_fds), i;

	for (i = 0; i < PW_FD_BLOCKS && i * PW_FD_BLOCK < max; i++)
		n += pw_connections_in(slots + 8 * PW_FD_BLOCK * i, max - i * PW_FD_BLOCK);
	return n;
}

/* As wait(2) reports it [kernel/exit.c: wait_task_zombie]. */
static __always_inline __u32 pw_wait_status(struct task_struct *task)
{
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(task, signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

static __always_inline int pw_left(struct task_struct *task, int is_freed)
{
	struct pw_subject_key key, of = { .kind = PW_KIND_PROCESS };
	struct pw_declaration *d, *theirs;
	struct pw_exit_record *rec;
	struct pw_member *member;
	__u32 tgid = pw_tgid(task);

	d = pw_subject_of(task, &key);
	member = bpf_map_lookup_elem(&pw_members, &tgid);
	if (member && !pw_same_start(member->start_ns, pw_start_ns(task)))
		member = 0;
	if ((!d && !member) || !pw_claim_exit(tgid, pw_start_ns(task)))
		return 0;
	if (member) {
		of.id = member->subject;
		theirs = bpf_map_lookup_elem(&pw_phases, &of);
		/* else they are another process's, which has its pid by now */
		if (!theirs || pw_same_start(theirs->start_ns, member->subject_start_ns))
			pw_count_member(&of, -1);
	}
	if (!d)
		return 0;
	rec = pw_reserve(PW_EV_EXIT, sizeof(*rec));
	if (!rec)
		return 0;
	pw_head(&rec->h, PW_EV_EXIT, sizeof(*rec), bpf_ktime_get_boot_ns());
	pw_identify(task, &rec->process);
	pw_judge(d, &key, rec->h.time_ns, PW_DIR_CONNECT, &rec->on);
	rec->status = pw_wait_status(task);
	rec->connections = is_freed ? PW_NOT_KNOWN : pw_open_connections(task);
	pw_submit(&rec->h);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(pw_process_exit, struct task_struct *task)
{
	return pw_group_dead(task) ? pw_left(task, 0) : 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(pw_process_exit2, struct task_struct *task)
{
	return pw_group_dead(task) ? pw_left(task, 0) : 0;
}

/*
 * Only now the membership goes: the exiting process's sockets are closed after sched_process_exit,
 * and who closes must still be known then.
 */
SEC("tp_btf/sched_process_free")
int BPF_PROG(pw_process_free, struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct pw_member *member;
	__u64 *exited;

	if (task->pid != task->tgid)
		return 0;
	member = bpf_map_lookup_elem(&pw_members, &tgid);
	if (member && pw_same_start(member->start_ns, task->start_boottime)) {
		pw_left(task, 1); /* if its exit was missed */
		bpf_map_delete_elem(&pw_members, &tgid);
	}
	exited = bpf_map_lookup_elem(&pw_exited, &tgid);
	if (exited && pw_same_start(*exited, task->start_boottime))
		bpf_map_delete_elem(&pw_exited, &tgid);
	return 0;
}

#define SIGNAL_IGNORED 1 /* TRACE_SIGNAL_IGNORED */

/* The phase that a signal means to this program; 0: none. */
static __noinline __u32 pw_phase_by_signal(struct task_struct *task, __u32 sig)
{
	struct pw_control *ctl = pw_shared();
	__u64 comm[PW_COMM_LEN / 8] = {};
	__u32 any = 0, own = 0, i;

	if (!ctl)
		return 0;
	/* as a string: before 5.17 what an earlier, longer name had stands behind its end */
	BPF_CORE_READ_STR_INTO(&comm, task, group_leader, comm);
	for (i = 0; i < PW_SIGNAL_RULES; i++) {
		struct pw_signal_rule *rule = &ctl->signal_rules[i];
		__u64 *name = (__u64 *)rule->comm;

		if (rule->signal != sig)
			continue;
		if (!name[0])
			any = rule->phase;
		else if (name[0] == comm[0] && name[1] == comm[1])
			own = rule->phase;
	}
	return own ? own : any;
}

#define SENT_BY_KERNEL ((void *)1) /* SEND_SIG_PRIV */

/* The declared process itself; what it left may live on, as where a server puts itself in background. */
static __always_inline int pw_is_there(struct pw_subject_key *key, struct pw_declaration *d)
{
	__u32 tgid = key->id;
	struct pw_member *own = bpf_map_lookup_elem(&pw_members, &tgid);
	__u64 *exited = bpf_map_lookup_elem(&pw_exited, &tgid);

	return own && pw_same_start(own->start_ns, d->start_ns) &&
	       !(exited && pw_same_start(*exited, d->start_ns));
}

/*
 * A signal is meant for the subject if its own process receives it. Where there is none, as of a
 * cgroup, if it comes from outside: masters send signals to their workers. A terminal's Ctrl-C is
 * meant for what runs on it, and that is somebody's shell there.
 */
static __always_inline int pw_is_meant(struct task_struct *task, struct task_struct *sender,
	struct pw_subject_key *key, struct pw_declaration *d)
{
	struct pw_subject_key of = {};

	if (key->kind == PW_KIND_PROCESS && (key->id == pw_tgid(task) || pw_is_there(key, d)))
		return key->id == pw_tgid(task);
	return sender && (!pw_subject_of(sender, &of) || of.kind != key->kind || of.id != key->id);
}

/*
 * In the sender's context. A second program does the same once more, but for the record, where 7.x
 * skips the first; what has moved does not move again.
 */
static __always_inline int pw_signalled(
	struct task_struct *task, __u32 sig, void *info, int result, int is_first)
{
	struct pw_control *ctl = pw_shared();
	/* who runs when the kernel sends one, such as a terminal's, has nothing to do with it */
	struct task_struct *sender = info == SENT_BY_KERNEL ? 0 : pw_current();
	struct pw_signal_record *rec;
	struct pw_subject_key key;
	struct pw_declaration *d;
	__u32 phase;

	if (!ctl || sig > 63 || !(ctl->signals >> sig & 1) || result == SIGNAL_IGNORED)
		return 0;
	d = pw_subject_of(task, &key);
	if (!d)
		return 0;
	phase = d->phase >= PW_ACTIVE ? pw_phase_by_signal(task, sig) : 0;
	if (phase > d->phase && pw_is_meant(task, sender, &key, d))
		pw_move(&key, d, phase, sender, sig);
	/* after the move, so that it is in the report of the drain that it began */
	rec = is_first ? pw_reserve(PW_EV_SIGNAL, sizeof(*rec)) : 0;
	if (!rec)
		return 0;
	pw_head(&rec->h, PW_EV_SIGNAL, sizeof(*rec), bpf_ktime_get_boot_ns());
	pw_identify(task, &rec->process);
	pw_identify(sender, &rec->sender);
	pw_judge(d, &key, rec->h.time_ns, PW_DIR_CONNECT, &rec->on);
	rec->signal = sig;
	rec->reserved = 0;
	pw_submit(&rec->h);
	return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(pw_signal, int sig, void *info, struct task_struct *task, int group, int result)
{
	return pw_signalled(task, sig, info, result, 1);
}

SEC("tp_btf/signal_generate")
int BPF_PROG(pw_signal2, int sig, void *info, struct task_struct *task, int group, int result)
{
	return pw_signalled(task, sig, info, result, 0);
}
