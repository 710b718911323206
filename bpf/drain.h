/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a drain costs: late requests, connections cut off, connections nobody accepted, refusals. */
#ifndef PW_DRAIN_H
#define PW_DRAIN_H

#include "conn.h"

/* How long a refused connect is still laid at the door of who listened there before. */
#define PW_GONE_NS (60 * 1000000000ULL)

/*
 * What a client says when it has seen the close is no request if it is this short: TLS's close_notify
 * (24 bytes in 1.3, 23 to 31 in 1.2), Redis' QUIT, PostgreSQL's Terminate.
 */
#define PW_FAREWELL_BYTES 31

/*
 * A request was received and not answered. While the request hooks are attached that is known, else
 * TCP's clocks tell, in units of a tick.
 */
static __always_inline int pw_is_busy(struct pw_conn *conn, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct pw_control *ctl = pw_shared();
	__s32 later;

	if (pw_unread(sk))
		return 1;
	if (conn->was_read && ctl && ctl->armed)
		return conn->answered_seq == BPF_CORE_READ(tp, write_seq);
	if (!BPF_CORE_READ(tp, bytes_sent))
		return pw_received(sk) != 0;
	later = BPF_CORE_READ(tp, inet_conn.icsk_ack.lrcvtime) - BPF_CORE_READ(tp, lsndtime);
	if (later)
		return later > 0;
	/* in the same tick: nothing that we sent acknowledges what came last */
	return BPF_CORE_READ(tp, rcv_nxt) != BPF_CORE_READ(tp, rcv_wup);
}

/*
 * A process holds a connection that nothing has told of yet. Two threads may touch it first, unlike
 * at the other hooks, which come before or after all. (Where this runs there are atomics: 5.12.)
 */
static __always_inline void pw_conn_touched(
	struct pw_conn *conn, struct sock *sk, struct task_struct *task)
{
	if (conn->established_ns && !conn->judged &&
		__sync_bool_compare_and_swap(&conn->judged, 0, 1))
		pw_conn_accepted(conn, sk, task, PW_SEEN_FIRST_IO, 1);
}

/* Data was read. It begins a request if something was written since the last read, or none was. */
static __always_inline void pw_conn_read(struct pw_conn *conn, struct sock *sk)
{
	__u32 write_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	struct task_struct *task = pw_current();
	__u64 now = bpf_ktime_get_boot_ns();
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_process process;
	struct pw_verdict_on on;
	struct pw_stats *stats;
	struct pw_ends ends;
	int first;

	if (!conn->judged || !conn->subject ||
		(conn->was_read && conn->answered_seq == write_seq))
		return;
	first = !conn->was_read;
	conn->answered_seq = write_seq;
	conn->was_read = 1;
	if (conn->requests < 0xffff)
		conn->requests++;

	d = pw_subject_of(task, &key);
	if (!d)
		return;
	pw_judge(d, &key, now, PW_DIR_ACCEPT, &on);
	/* of a connection younger than the drain the accept was judged already */
	if (conn->established_ns >= (d->entered_ns[PW_DRAIN - 1] ?: on.since_ns))
		on.verdict = PW_OK;
	stats = pw_stats_of(&key);
	/* what waited with its connection in the accept queue came before the drain, to a tick */
	if (stats && first &&
		(__s32)(BPF_CORE_READ((struct tcp_sock *)sk, inet_conn.icsk_ack.lrcvtime) -
			(__u32)stats->drain_jiffies) <= 0)
		on.verdict = PW_OK;
	if (on.verdict != PW_OK)
		pw_find_ends(sk, 1, &on, &ends);
	pw_count_request(stats, &on, now);
	if (on.verdict == PW_OK)
		return;
	pw_identify(task, &process);
	pw_conn_emit(&process, &on, &ends, PW_EV_REQUEST, conn->established_ns, 0,
		conn->requests);
}

static __always_inline int pw_will_reset(struct sock *sk)
{
	__u64 linger = 1ULL << bpf_core_enum_value(enum sock_flags, SOCK_LINGER);

	return pw_unread(sk) || ((BPF_CORE_READ(sk, __sk_common.skc_flags) & linger) &&
					!BPF_CORE_READ(sk, sk_lingertime));
}

static __always_inline void pw_remember_closed(struct pw_conn *conn, struct sock *sk,
	struct task_struct *task, struct pw_verdict_on *on, struct pw_ends *ends)
{
	struct pw_closed closed = { .on = *on, .client = ends->client };

	pw_identify_holder(task, &closed.process);
	closed.established_ns = conn->established_ns;
	closed.closed_ns = bpf_ktime_get_boot_ns();
	closed.write_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	closed.acked = BPF_CORE_READ((struct tcp_sock *)sk, snd_una);
	closed.requests = conn->requests;
	bpf_map_update_elem(&pw_closed, &ends->tuple, &closed, BPF_ANY);
}

static __always_inline void pw_abandon_emit(struct pw_conn *conn, struct sock *sk,
	struct task_struct *task, struct pw_verdict_on *on, struct pw_ends *ends, int busy)
{
	int rst = pw_will_reset(sk);
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct pw_counters *c = pw_cpu_counters();
	struct pw_tally *tally = pw_tally_of(&on->key);
	struct pw_abandon_record *rec;

	if (on->verdict != PW_IGNORED) {
		if (c)
			pw_add(c->tally.abandoned[rst ? PW_RST : PW_FIN][busy ? 1 : 0], 1);
		if (tally)
			pw_add(tally->abandoned[rst ? PW_RST : PW_FIN][busy ? 1 : 0], 1);
	}
	rec = pw_reserve(PW_EV_ABANDON, sizeof(*rec));
	if (!rec)
		return;
	pw_head(&rec->h, PW_EV_ABANDON, sizeof(*rec), bpf_ktime_get_boot_ns());
	pw_identify_holder(task, &rec->process);
	rec->on = *on;
	rec->tuple = ends->tuple;
	rec->client = ends->client;
	rec->established_ns = conn->established_ns;
	rec->bytes_in = pw_received(sk);
	rec->bytes_out = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	rec->how = rst ? PW_RST : PW_FIN;
	rec->busy = busy;
	pw_submit(&rec->h);
}

/*
 * Whoever had the connection exits, or has done so: then the kernel closes what was in the table of
 * its io_uring, and by that time the exit itself may be forgotten.
 */
static __always_inline int pw_holder_exits(struct pw_conn *conn, struct task_struct *task)
{
	__u32 tgid = conn->judged;
	struct pw_member *member;
	__u64 *exited;

	if (!pw_is_nobody(task))
		return pw_group_dead(task);
	member = bpf_map_lookup_elem(&pw_members, &tgid);
	exited = bpf_map_lookup_elem(&pw_exited, &tgid);
	/* one that was not told to be freed stays there, until its pid is another's */
	return !member || (exited && pw_same_start(*exited, member->start_ns));
}

/*
 * The last reference to an open connection goes: with the process that exits, or else by its will
 * while it drains. Either way the client may be about to send a request.
 */
static __always_inline void pw_conn_ended(
	struct pw_conn *conn, struct sock *sk, struct task_struct *task)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct pw_control *ctl = pw_shared();
	int exits = pw_holder_exits(conn, task), busy;
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_verdict_on on;
	struct pw_ends ends;

	if (!conn->judged || !conn->subject || !(exits || (ctl && ctl->armed)))
		return;
	busy = pw_is_busy(conn, sk);
	/* a peer that has closed its side and has its answer has lost nothing */
	if (state != TCP_ESTABLISHED && !(state == TCP_CLOSE_WAIT && busy))
		return;
	d = pw_subject_of_holder(conn, task, &key);
	if (!d || (d->phase != PW_DRAIN && d->phase != PW_SHUTDOWN))
		return;
	pw_judge(d, &key, bpf_ktime_get_boot_ns(), PW_DIR_ACCEPT, &on);
	pw_find_ends(sk, 1, &on, &ends);
	if (!busy)
		pw_remember_closed(conn, sk, task, &on, &ends);
	if (exits)
		pw_abandon_emit(conn, sk, task, &on, &ends, busy);
}

static __always_inline void pw_count_dropped(struct pw_verdict_on *on, __u64 n)
{
	struct pw_counters *c = pw_cpu_counters();
	struct pw_tally *tally = pw_tally_of(&on->key);

	if (on->verdict == PW_IGNORED)
		return;
	if (c)
		pw_add(c->tally.backlog_dropped, n);
	if (tally)
		pw_add(tally->backlog_dropped, n);
}

static __always_inline void pw_endpoint_of(struct sock *sk, struct pw_endpoint *e)
{
	struct pw_tuple t;

	pw_read_tuple(sk, 1, &t);
	__builtin_memcpy(e->addr, t.daddr, sizeof(e->addr));
	/* :: and 0.0.0.0 are both any */
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET &&
		!BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr))
		__builtin_memset(e->addr, 0, sizeof(e->addr));
	e->netns = t.netns;
	e->port = t.dport;
}

/* The last reference to a subject's listener goes: by the one who closes it. */
static __always_inline void pw_listener_released(
	struct pw_conn *conn, struct sock *sk, struct task_struct *task)
{
	struct pw_control *ctl = pw_shared();
	struct pw_endpoint endpoint;
	struct pw_gone gone = {};
	struct pw_process process;
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_ends ends = {};
	__u32 queued;

	d = pw_subject_of_holder(conn, task, &key);
	if (!d)
		return;
	gone.gone_ns = bpf_ktime_get_boot_ns();
	pw_judge(d, &key, gone.gone_ns, PW_DIR_ACCEPT, &gone.on);
	if (gone.on.phase == PW_DRAIN || gone.on.phase == PW_SHUTDOWN) {
		pw_endpoint_of(sk, &endpoint);
		bpf_map_update_elem(&pw_gone, &endpoint, &gone, BPF_ANY);
	}
	queued = BPF_CORE_READ(sk, sk_ack_backlog);
	if (ctl && ctl->queue_is_loss && queued)
		pw_count_dropped(&gone.on, queued);
	pw_identify_holder(task, &process);
	pw_read_tuple(sk, 1, &ends.tuple);
	pw_conn_emit(&process, &gone.on, &ends, PW_EV_UNLISTEN, 0,
		BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter),
		queued);
}

#endif /* PW_DRAIN_H */
