/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* An accepted connection, once: counted, judged by who accepts it, and shown if it is misrouted. */
#ifndef PW_CONN_H
#define PW_CONN_H

#include "ignore.h"
#include "subject.h"
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LISTEN 10

static __always_inline void pw_v4_mapped(__u8 to[16], __be32 addr)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &addr, 4);
}

static __always_inline void pw_read_tuple(struct sock *sk, int accepted, struct pw_tuple *t)
{
	/* inet_sport: skc_num is 0 once the port is given back */
	__u16 local = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	__u16 remote = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	__u8 *laddr = accepted ? t->daddr : t->saddr;
	__u8 *raddr = accepted ? t->saddr : t->daddr;

	t->sport = accepted ? remote : local;
	t->dport = accepted ? local : remote;
	t->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6) {
		bpf_core_read(laddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(raddr, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		pw_v4_mapped(laddr, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		pw_v4_mapped(raddr, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
}

/*
 * When the handshake of a connection was done that no stamp tells of (it was in the accept queue
 * before its listener was stamped): TCP starts its receive-buffer clock then, and restarts it only
 * with the first read. Microseconds of CLOCK_MONOTONIC.
 */
static __always_inline __u64 pw_established_ns(struct sock *sk)
{
	__u64 ns = BPF_CORE_READ((struct tcp_sock *)sk, rcvq_space.time) * 1000;

	return ns + bpf_ktime_get_boot_ns() - bpf_ktime_get_ns();
}

/*
 * It opened the connection: its port was chosen by connect(2), which marks the port's bucket so that
 * no listener can share it [net/ipv4/inet_hashtables.c: __inet_hash_connect].
 */
static __always_inline int pw_was_connected(struct sock *sk)
{
	struct inet_bind_bucket *bucket =
		BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_bind_hash);

	return bucket && BPF_CORE_READ(bucket, fastreuse) < 0;
}

static __always_inline __u32 pw_unread(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);

	/* the peer's FIN has a sequence number, but is no byte */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE_WAIT && unread)
		unread--;
	return unread;
}

/* TCP counts the peer's FIN among the bytes [net/ipv4/tcp_input.c: tcp_rcv_nxt_update]. */
static __always_inline __u64 pw_received(struct sock *sk)
{
	__u64 received = BPF_CORE_READ((struct tcp_sock *)sk, bytes_received);

	return received && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE_WAIT ? received - 1 :
											received;
}

/* Somebody read from it: then this is getpeername(2) on a connection that was accepted long ago. */
static __always_inline int pw_was_read(struct sock *sk)
{
	return pw_received(sk) > pw_unread(sk);
}

static __always_inline int pw_is_loopback(const __u8 addr[16])
{
	const __u32 *words = (const __u32 *)addr;

	if (words[0] || words[1])
		return 0;
	return words[2] == bpf_htonl(0xffff) ? addr[12] == 127 : !words[2] && words[3] == bpf_htonl(1);
}

static __always_inline void pw_opener_of(const struct pw_tuple *t, struct pw_opener *ret)
{
	__builtin_memcpy(ret->addr, t->saddr, sizeof(ret->addr));
	ret->port = t->sport;
	ret->netns = pw_is_loopback(t->saddr) ? t->netns : 0;
}

/* Who on this node opened the connection, if it was seen to. */
static __always_inline void pw_find_client(struct pw_tuple *t, struct pw_client *ret)
{
	struct pw_control *ctl = pw_shared();
	struct pw_opener opener;
	struct pw_client *client;

	pw_opener_of(t, &opener);
	client = bpf_map_lookup_elem(&pw_clients, &opener);
	if (client && ctl && client->arming == ctl->armed)
		*ret = *client;
	else
		__builtin_memset(ret, 0, sizeof(*ret));
}

/* The two ends of a connection, and what the operator says of the other one. */
struct pw_ends {
	struct pw_tuple tuple;
	struct pw_client client;
};

static __always_inline void pw_find_ends(
	struct sock *sk, int accepted, struct pw_verdict_on *on, struct pw_ends *e)
{
	pw_read_tuple(sk, accepted, &e->tuple);
	pw_find_client(&e->tuple, &e->client);
	pw_excuse(on, accepted ? e->tuple.saddr : e->tuple.daddr, e->tuple.dport, &e->client);
}

static __always_inline void pw_conn_emit(struct pw_process *process, struct pw_verdict_on *on,
	struct pw_ends *ends, __u16 type, __u64 begin_ns, __u32 how, __u32 number)
{
	struct pw_conn_record *rec = pw_reserve(type, sizeof(*rec));

	if (!rec)
		return;
	pw_head(&rec->h, type, sizeof(*rec), bpf_ktime_get_boot_ns());
	rec->process = *process;
	rec->on = *on;
	rec->tuple = ends->tuple;
	rec->client = ends->client;
	rec->begin_ns = begin_ns;
	rec->how = how;
	rec->number = number;
	pw_submit(&rec->h);
}

static __always_inline void pw_own(
	struct pw_conn *conn, struct pw_subject_key *key, struct pw_stats *stats)
{
	conn->kind = key->kind;
	conn->subject = key->id;
	conn->life = stats->life;
}

/* The counters of the subject that the stamp names, unless it is another one by now. */
static __always_inline struct pw_stats *pw_owner_stats(struct pw_conn *conn)
{
	struct pw_subject_key key = { .kind = conn->kind, .id = conn->subject };
	struct pw_stats *stats = conn->subject ? bpf_map_lookup_elem(&pw_stats, &key) : 0;

	return stats && (__u32)stats->life == conn->life ? stats : 0;
}

/*
 * Whose a socket is that `task` accepts, resets or closes. What nobody closes was held by who
 * accepted it, if that is known, or else by whose listener it came to.
 */
static __always_inline struct pw_declaration *pw_subject_of_holder(
	struct pw_conn *conn, struct task_struct *task, struct pw_subject_key *key)
{
	if (!pw_is_nobody(task))
		return pw_subject_of(task, key);
	if (!conn || !pw_owner_stats(conn))
		return 0;
	key->kind = conn->kind;
	key->reserved = 0;
	key->id = conn->subject;
	return bpf_map_lookup_elem(&pw_phases, key);
}

static __always_inline void pw_count_queue(struct pw_tally *tally, __u64 ns)
{
	struct pw_counters *c = pw_cpu_counters();

	pw_add_duration(&tally->queue, ns);
	if (c)
		pw_add_duration(&c->tally.queue, ns);
}

/*
 * `conn` is the socket's storage, `task` holds the socket. Called by the hooks around accept(), by
 * the first read or write, at a drain, or by the last close. Without a stamp it was counted when it
 * came already, as an arrival that no phase was declared for.
 */
static __always_inline void pw_conn_accepted(
	struct pw_conn *conn, struct sock *sk, struct task_struct *task, __u32 seen_by, int stamped)
{
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_process process;
	struct pw_verdict_on on;
	struct pw_stats *stats;
	struct pw_tally *tally;
	struct pw_ends ends;

	conn->judged = pw_tgid(task);
	if (!conn->established_ns)
		conn->established_ns = bpf_ktime_get_boot_ns();

	d = pw_subject_of_holder(conn, task, &key);
	conn->subject = 0;
	if (!d) {
		pw_count_connection(PW_DIR_ACCEPT, PW_UNDECLARED, PW_OK);
		return;
	}
	pw_judge(d, &key, conn->established_ns, PW_DIR_ACCEPT, &on);
	if (on.verdict != PW_OK)
		pw_find_ends(sk, 1, &on, &ends);
	if (stamped || on.phase != PW_UNDECLARED)
		pw_count_connection(PW_DIR_ACCEPT, on.phase, on.verdict);

	stats = pw_stats_of(&key);
	if (stats) {
		tally = pw_tally_of(&key);
		pw_add_connection(tally, PW_DIR_ACCEPT, on.phase, on.verdict);
		if (tally && seen_by == PW_SEEN_ACCEPT)
			pw_count_queue(tally, bpf_ktime_get_boot_ns() - conn->established_ns);
		pw_own(conn, &key, stats);
		pw_add(stats->inflight, 1);
		pw_add(stats->accepts, 1);
		if (on.verdict == PW_MISROUTED) {
			pw_add(stats->accepts_misrouted, 1);
			pw_note_misrouted(stats, conn->established_ns);
		}
	}
	if (on.verdict == PW_OK)
		return;
	pw_identify_holder(task, &process);
	pw_conn_emit(&process, &on, &ends, PW_EV_ACCEPT, conn->established_ns, seen_by, 0);
}

/* For the hooks around accept(). The child may have been in the queue before its listener's stamp. */
static __always_inline void pw_conn_accept(struct sock *child)
{
	struct pw_conn *conn, fresh = {};
	struct pw_subject_key key;
	int stamped = 1;

	conn = bpf_sk_storage_get(&pw_conns, child, 0, 0);
	if (!conn) {
		if (!pw_subject_of(pw_current(), &key))
			return;
		stamped = 0;
		fresh.judged = pw_was_connected(child) || pw_was_read(child);
		fresh.established_ns = pw_established_ns(child);
		conn = bpf_sk_storage_get(&pw_conns, child, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
		if (!conn) {
			pw_count_map_full(PW_EV_ACCEPT);
			return;
		}
	}
	if (!conn->judged)
		pw_conn_accepted(conn, child, pw_current(), PW_SEEN_ACCEPT, stamped);
}

static __always_inline void pw_conn_released(struct pw_conn *conn)
{
	struct pw_stats *stats = conn->judged ? pw_owner_stats(conn) : 0;

	if (!stats)
		return;
	pw_add(stats->inflight, -1);
	stats->last_released_ns = bpf_ktime_get_boot_ns();
}

#endif /* PW_CONN_H */
