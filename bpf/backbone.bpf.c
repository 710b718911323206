// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The exact half: cgroup programs at the cgroup2 root. Unlike tracing programs they have no
 * recursion guard, so no event is missed. README.md in this folder says which hook serves what.
 */
#include "drain.h"
#include "move.h"

#define ECONNRESET 104
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define ENETUNREACH 101
#define EHOSTUNREACH 113

/* connect(2) with AF_UNSPEC ends what a socket was; it can then listen, or connect again. */
static __always_inline void pw_forget_conn(struct bpf_sock *sk)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);

	if (!conn)
		return;
	pw_conn_released(conn);
	bpf_sk_storage_delete(&pw_conns, sk);
}

/*
 * --auto: who listens is a subject, from here on. Several threads may listen at once: the first one
 * that writes the declaration makes it.
 */
static __noinline int pw_make_subject(struct task_struct *task, struct pw_subject_key *key)
{
	__u32 tgid = pw_tgid(task);
	struct pw_declaration d = { .epoch = 1, .start_ns = pw_start_ns(task) }, *earlier;
	struct pw_member member = { .start_ns = d.start_ns, .subject = tgid,
		.subject_start_ns = d.start_ns, .scope = pw_scope(task) }, *had;
	__u64 left = 0;
	int err; /* the helper's upper half is undefined on 5.10 */

	key->kind = PW_KIND_PROCESS;
	key->reserved = 0;
	key->id = tgid;
	earlier = bpf_map_lookup_elem(&pw_phases, key);
	if (earlier && !pw_same_start(earlier->start_ns, d.start_ns)) { /* another process's */
		bpf_map_delete_elem(&pw_phases, key);
		bpf_map_delete_elem(&pw_stats, key);
		bpf_map_delete_elem(&pw_tallies, key);
	}
	had = bpf_map_lookup_elem(&pw_members, &tgid);
	if (had && had->subject != tgid && pw_same_start(had->start_ns, d.start_ns))
		left = had->subject;
	pw_enter(&d, PW_ACTIVE, PW_SOURCE_LISTEN, task);
	pw_make_stats(key, 1, BPF_NOEXIST);
	err = bpf_map_update_elem(&pw_members, &tgid, &member, BPF_ANY);
	if (!err)
		err = bpf_map_update_elem(&pw_phases, key, &d, BPF_NOEXIST);
	if (!err) {
		pw_move_emit(key, &d, PW_UNDECLARED, task, 0);
		key->id = left; /* it is out of that one's scope; 0: there is none */
		pw_count_member(key, -1);
	} else if (err != -EEXIST) {
		bpf_map_delete_elem(&pw_stats, key);
		pw_count_map_full(PW_EV_MOVE);
	}
	return 0;
}

/* What it means to the phase that a process listens. */
static __noinline int pw_move_by_listen(struct task_struct *task)
{
	struct pw_control *ctl = pw_shared();
	__u32 tgid = pw_tgid(task), subject;
	struct pw_subject_key key;
	struct pw_declaration *d = pw_subject_of(task, &key);
	struct pw_member *own;

	if (!d) /* all descend from the host's first process, and the daemon is no service */
		return ctl && ctl->listeners_are_subjects && tgid != 1 && tgid != ctl->daemon ?
			       pw_make_subject(task, &key) :
			       0;
	if (d->phase != PW_INIT || key.kind != PW_KIND_PROCESS)
		return 0;
	subject = key.id;
	own = bpf_map_lookup_elem(&pw_members, &subject);
	return own && own->flags & PW_ACTIVE_ON_LISTEN ? pw_move(&key, d, PW_ACTIVE, task, 0) : 0;
}

/* A stamp on the listener marks every child from its first moment on. */
static __noinline int pw_listen(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct pw_conn fresh = {};
	struct pw_endpoint endpoint;
	struct pw_subject_key key;
	struct pw_stats *stats;

	if (tp) { /* somebody serves there again */
		pw_endpoint_of((struct sock *)tp, &endpoint);
		bpf_map_delete_elem(&pw_gone, &endpoint);
	}
	pw_forget_conn(sk);
	if (!pw_subject_of(pw_current(), &key))
		return 0;
	stats = pw_stats_of(&key);
	if (stats)
		pw_own(&fresh, &key, stats);
	if (!bpf_sk_storage_get(&pw_conns, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE))
		pw_count_map_full(PW_EV_ACCEPT);
	return 0;
}

/* So that the other end of a misrouted connection can be named, if it is on this node. */
static __always_inline void pw_remember_client(
	struct bpf_sock *sk, struct task_struct *task, __u32 arming)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct pw_opener opener;
	struct pw_client client;
	struct pw_tuple t;

	if (!tp)
		return;
	pw_read_tuple((struct sock *)tp, 0, &t);
	pw_opener_of(&t, &opener);
	pw_identify_client(task, arming, &client);
	bpf_map_update_elem(&pw_clients, &opener, &client, BPF_ANY);
}

/* `stats` of its subject; one that is gone (0) gets no tally any more: nobody would remove it. */
static __always_inline void pw_count_connect(struct pw_verdict_on *on, struct pw_stats *stats)
{
	pw_count_connection(PW_DIR_CONNECT, on->phase, on->verdict);
	if (stats)
		pw_add_connection(pw_tally_of(&on->key), PW_DIR_CONNECT, on->phase, on->verdict);
}

/* Runs in the connecting task, just before the SYN is sent. */
static __noinline int pw_connect(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct pw_conn outbound = {}, *conn;
	struct task_struct *task = pw_current();
	struct pw_connect *pending, fresh = {};
	struct pw_subject_key key;
	struct pw_control *ctl = pw_shared();
	struct pw_declaration *d;
	struct pw_stats *stats;

	if (ctl && ctl->armed)
		pw_remember_client(sk, task, ctl->armed);
	pw_forget_conn(sk);
	d = pw_subject_of(task, &key);
	if (!d) {
		pw_count_connection(PW_DIR_CONNECT, PW_UNDECLARED, PW_OK);
		return 0;
	}
	/* so that a later getpeername(2) is not taken for an accept() */
	outbound.judged = 1;
	outbound.established_ns = fresh.begin_ns = bpf_ktime_get_boot_ns();
	conn = bpf_sk_storage_get(&pw_conns, sk, &outbound, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		pw_count_map_full(PW_EV_CONNECT);

	pw_judge(d, &key, fresh.begin_ns, PW_DIR_CONNECT, &fresh.on);
	stats = pw_stats_of(&key);
	if (stats)
		pw_add(stats->connects, 1);
	if (fresh.on.verdict == PW_OK || !conn) {
		pw_count_connect(&fresh.on, stats);
		return 0;
	}

	pw_identify(task, &fresh.process);
	pending = bpf_sk_storage_get(&pw_connects, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pending) {
		pw_count_connect(&fresh.on, stats);
		pw_count_map_full(PW_EV_CONNECT);
		return 0;
	}
	*pending = fresh; /* the socket may have tried before */
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 0;
}

static __always_inline __u32 pw_result_of(int err)
{
	switch (err) {
	case ECONNREFUSED:
		return PW_REFUSED;
	case ETIMEDOUT:
		return PW_TIMEOUT;
	case ECONNRESET:
		return PW_RESET;
	case EHOSTUNREACH:
	case ENETUNREACH:
		return PW_UNREACHABLE;
	default: /* 0: its owner closed it */
		return PW_ABORTED;
	}
}

/* Counted with its result, so that counters and events agree at any moment. */
static __noinline int pw_connected(struct bpf_sock *sk, int established)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	struct pw_connect *pending;
	struct pw_counters *c;
	struct pw_ends ends = {};
	struct tcp_sock *tp;
	struct pw_stats *stats;
	__u32 result;

	if (!conn)
		return 0;
	c = established ? pw_cpu_counters() : 0;
	if (c && conn->established_ns)
		pw_add_duration(&c->connect, bpf_ktime_get_boot_ns() - conn->established_ns);
	pending = bpf_sk_storage_get(&pw_connects, sk, 0, 0);
	tp = pending ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!pending || !tp)
		return 0;
	result = established ? PW_ESTABLISHED :
			       pw_result_of(BPF_CORE_READ((struct sock *)tp, sk_err));
	pw_read_tuple((struct sock *)tp, 0, &ends.tuple);
	pw_excuse(&pending->on, ends.tuple.daddr, ends.tuple.dport, &ends.client);
	stats = bpf_map_lookup_elem(&pw_stats, &pending->on.key);
	pw_count_connect(&pending->on, stats);
	if (stats && pending->on.verdict == PW_MISROUTED)
		pw_add(stats->connects_misrouted, 1);
	pw_conn_emit(&pending->process, &pending->on, &ends, PW_EV_CONNECT,
		pending->begin_ns, result, 0);
	bpf_sk_storage_delete(&pw_connects, sk);
	return 0;
}

static __always_inline void pw_passive_established(struct bpf_sock *sk)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);

	if (!conn) {
		/* at a listener that no subject held when it came */
		pw_count_connection(PW_DIR_ACCEPT, PW_UNDECLARED, PW_OK);
		return;
	}
	if (conn->judged)
		pw_connected(sk, 1); /* simultaneous open */
	else if (!conn->established_ns)
		conn->established_ns = bpf_ktime_get_boot_ns();
}

SEC("sockops")
int pw_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		pw_move_by_listen(pw_current());
		pw_listen(sk);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		pw_connect(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		pw_passive_established(sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		pw_connected(sk, 1);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSE &&
			(ctx->args[0] == TCP_SYN_SENT || ctx->args[0] == TCP_SYN_RECV))
			pw_connected(sk, 0);
		break;
	}
	return 1;
}

/*
 * accept(2) asks for the peer's name before it returns, in the acceptor's context and whatever the
 * kernel allows of tracing; so does getpeername(2), which comes later. Not called for accept(2) with
 * a NULL address.
 */
static __always_inline int pw_peer_named(struct bpf_sock_addr *ctx)
{
	struct tcp_sock *tp = ctx->sk ? bpf_skc_to_tcp_sock(ctx->sk) : 0;

	if (tp)
		pw_conn_accept((struct sock *)tp);
	return 1;
}

SEC("cgroup/getpeername4")
int pw_getpeername4(struct bpf_sock_addr *ctx)
{
	return pw_peer_named(ctx);
}

SEC("cgroup/getpeername6")
int pw_getpeername6(struct bpf_sock_addr *ctx)
{
	return pw_peer_named(ctx);
}

/* The last reference goes. Who closes is the acceptor, if nothing has told of the acceptance yet. */
SEC("cgroup/sock_release")
int pw_sock_release(struct bpf_sock *ctx)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, ctx, 0, 0);
	struct sock *sk = (struct sock *)ctx;
	struct task_struct *task;

	if (!conn)
		return 1;
	task = pw_current();
	if (!conn->judged && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		pw_listener_released(conn, sk, task);
		return 1;
	}
	if (!conn->judged && conn->established_ns)
		pw_conn_accepted(conn, sk, task, PW_SEEN_RELEASE, 1);
	pw_conn_ended(conn, sk, task);
	pw_conn_released(conn);
	return 1;
}
