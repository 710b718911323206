// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is older than a declaration: its process's descendants, and their sockets. The daemon runs
 * these iterators while the live hooks are attached already; both only add what is not there yet.
 */
#include "drain.h"

/*
 * One turn of adoption: the declared process itself, and each process whose parent is in the subject
 * by now. Run until a turn adopts nobody; who forks meanwhile is seen by the fork hook or by the
 * next turn. Writes the pid of each adopted process (u32).
 */
SEC("iter/task")
int pw_adopt(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *parent;
	struct pw_control *ctl = pw_shared();
	struct pw_member *had, *theirs, member = {};
	struct pw_subject_key key = {};
	struct pw_declaration *d;
	struct pw_stats *stats;
	__u32 tgid, ptgid;

	if (!task || !ctl || task->pid != task->tgid || pw_group_dead(task))
		return 0;
	tgid = task->tgid;
	key.kind = PW_KIND_PROCESS;
	key.id = ctl->adopt_to;
	d = bpf_map_lookup_elem(&pw_phases, &key);
	if (!d)
		return 0;
	if (tgid == ctl->adopt_to) {
		if (!pw_same_start(d->start_ns, task->start_boottime))
			return 0;
		member.scope = ctl->adopt_scoped ? pw_scope(task) : 0;
	} else {
		parent = task->real_parent;
		ptgid = pw_tgid(parent);
		theirs = bpf_map_lookup_elem(&pw_members, &ptgid);
		if (!theirs || theirs->subject != ctl->adopt_to ||
			!pw_same_start(theirs->start_ns, pw_start_ns(parent)) ||
			(theirs->scope && theirs->scope != pw_scope(task)))
			return 0;
		member.scope = theirs->scope;
	}
	had = bpf_map_lookup_elem(&pw_members, &tgid);
	if (had && pw_same_start(had->start_ns, task->start_boottime)) {
		/* of an outer subject: the inner one takes over; of any other: it stays there */
		if (had->subject == ctl->adopt_to || had->subject != ctl->adopt_from)
			return 0;
		key.id = had->subject;
		stats = bpf_map_lookup_elem(&pw_stats, &key);
		if (stats)
			pw_add(stats->members, -1);
	}
	member.start_ns = task->start_boottime;
	member.subject = ctl->adopt_to;
	member.subject_start_ns = d->start_ns;
	if (bpf_map_update_elem(&pw_members, &tgid, &member, had ? BPF_ANY : BPF_NOEXIST)) {
		/* the fork hook was quicker, or the map is full */
		if (!bpf_map_lookup_elem(&pw_members, &tgid))
			pw_count_map_full(PW_EV_FORK);
		return 0;
	}
	/* it exited meanwhile, and its exit hook did not find it here */
	if (pw_group_dead(task) && pw_claim_exit(tgid, task->start_boottime)) {
		bpf_map_delete_elem(&pw_members, &tgid);
		return 0;
	}
	key.id = ctl->adopt_to;
	stats = pw_stats_of(&key);
	if (stats)
		pw_add(stats->members, 1);
	bpf_seq_write(ctx->meta->seq, &tgid, sizeof(tgid));
	return 0;
}

/* One that several subjects hold is the first one's, as long as there is that. */
static __always_inline void pw_stamp_listener(
	struct sock *sk, struct pw_port *port, struct pw_subject_key *key)
{
	struct pw_stats *stats = pw_stats_of(key);
	struct pw_conn *conn, fresh = {};
	__u8 one = 1;

	conn = bpf_sk_storage_get(&pw_conns, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		pw_count_map_full(PW_EV_ACCEPT);
	else if (stats && !pw_owner_stats(conn))
		pw_own(conn, key, stats);
	bpf_map_update_elem(&pw_ports, port, &one, BPF_ANY);
}

/*
 * An old connection is judged already: it is counted as open, and if it was accepted, in flight. So is
 * one of a subject that is no more, since this one took its place.
 */
static __always_inline void pw_stamp_connection(struct sock *sk, struct task_struct *task,
	struct pw_port *port, struct pw_subject_key *key)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0), fresh = {};
	struct pw_stats *stats = pw_stats_of(key);

	if (conn) {
		if (stats && conn->judged && conn->subject && !pw_owner_stats(conn)) {
			pw_own(conn, key, stats);
			pw_add(stats->inflight, 1);
		}
		return;
	}
	fresh.judged = pw_tgid(task);
	if (stats && bpf_map_lookup_elem(&pw_ports, port)) {
		pw_own(&fresh, key, stats);
		pw_add(stats->inflight, 1);
	}
	if (!bpf_sk_storage_get(&pw_conns, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE))
		pw_count_map_full(PW_EV_ACCEPT);
}

/*
 * Is a request under way on this old connection? Then what is read next belongs to it, else it
 * begins one. TCP's clocks tell, in units of a tick.
 */
static __always_inline void pw_set_turn(struct pw_conn *conn, struct sock *sk)
{
	__u32 write_seq = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);

	conn->was_read = 0;
	conn->answered_seq = pw_is_busy(conn, sk) ? write_seq : write_seq - 1;
	conn->was_read = 1;
}

/* At a drain; what was accepted unseen is in flight. */
static __always_inline void pw_stamp_turn(struct sock *sk, struct task_struct *task)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);

	if (!conn)
		return;
	pw_conn_touched(conn, sk, task);
	if (conn->judged && conn->subject)
		pw_set_turn(conn, sk);
}

/* The same for connections that are in no process's file table, but in that of an io_uring. */
SEC("iter/bpf_sk_storage_map")
int pw_turns(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct pw_control *ctl = pw_shared();
	struct pw_conn *conn = ctx->value;
	struct sock *sk = ctx->sk;
	__u8 state;

	if (!sk || !conn || !ctl || conn->kind != ctl->turns_of.kind ||
		conn->subject != ctl->turns_of.id)
		return 0;
	state = sk->__sk_common.skc_state;
	if ((state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT) && sk->sk_socket)
		pw_set_turn(conn, sk);
	return 0;
}

static __always_inline void pw_stamp_client(
	struct sock *sk, struct task_struct *task, __u32 arming)
{
	struct pw_opener opener;
	struct pw_client *known, client;
	struct pw_conn *conn;
	struct pw_tuple t;

	conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	if (conn && conn->subject)
		return;
	pw_read_tuple(sk, 0, &t);
	pw_opener_of(&t, &opener);
	/* several processes may hold it: who connected, or else the first one */
	known = bpf_map_lookup_elem(&pw_clients, &opener);
	if (known && known->arming == arming)
		return;
	pw_identify_client(task, arming, &client);
	bpf_map_update_elem(&pw_clients, &opener, &client, BPF_ANY);
}

SEC("iter/task_file")
int pw_snapshot(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct pw_control *ctl = pw_shared();
	struct file *file = ctx->file;
	struct pw_subject_key key;
	struct pw_port port = {};
	struct pw_stats *stats;
	struct socket *socket;
	struct sock *sk;
	__u16 family;
	__u32 tgid;
	__u8 state;

	if (!task || !file || !ctl)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	state = sk->__sk_common.skc_state;
	if ((family != AF_INET && family != AF_INET6) || sk->sk_protocol != IPPROTO_TCP ||
		state == TCP_CLOSE)
		return 0;
	if (ctl->snapshot == PW_PASS_CLIENTS) {
		if (state != TCP_LISTEN)
			pw_stamp_client(sk, task, ctl->armed);
		return 0;
	}
	if (ctl->snapshot == PW_PASS_WHO_LISTENS) {
		tgid = task->tgid;
		if (state == TCP_LISTEN)
			bpf_seq_write(ctx->meta->seq, &tgid, sizeof(tgid));
		return 0;
	}
	if (!pw_subject_of(task, &key))
		return 0;
	if (ctl->snapshot == PW_PASS_TURNS) {
		stats = pw_stats_of(&key);
		if (stats)
			stats->drain_jiffies = bpf_jiffies64();
	}
	port.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	port.port = sk->__sk_common.skc_num;
	if (state == TCP_LISTEN)
		pw_stamp_listener(sk, &port, &key);
	else if (ctl->snapshot == PW_PASS_CONNECTIONS)
		pw_stamp_connection(sk, task, &port, &key);
	else if (ctl->snapshot == PW_PASS_TURNS)
		pw_stamp_turn(sk, task);
	return 0;
}

/*
 * Counts the connections that each subject has at this moment, by where they are. One reader at a
 * time (the daemon), so that plain additions will do.
 */
SEC("iter/bpf_sk_storage_map")
int pw_look(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct pw_control *ctl = pw_shared();
	struct pw_conn *conn = ctx->value;
	struct sock *sk = ctx->sk;
	struct pw_stats *stats;
	__u32 queued;
	__u8 state;

	if (!sk || !conn || !ctl)
		return 0;
	stats = pw_owner_stats(conn);
	if (!stats)
		return 0;
	if (stats->look != ctl->look) {
		stats->look = ctl->look;
		stats->queued = stats->unseen = stats->open = 0;
	}
	state = sk->__sk_common.skc_state;
	if (state == TCP_LISTEN) { /* its length has those as well that came before the stamp */
		queued = sk->sk_ack_backlog;
	} else if (conn->judged || sk->sk_socket) {
		stats->unseen += !conn->judged;
		stats->open += state != TCP_CLOSE && (sk->sk_socket || state != TCP_FIN_WAIT2);
		return 0;
	} else { /* in the queue, unless it is not that far; one that was reset is there, too */
		queued = conn->established_ns && state == TCP_CLOSE ? -1 : 0;
	}
	stats->queued += queued;
	stats->open += queued;
	return 0;
}
