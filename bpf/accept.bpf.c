// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Accepts with a NULL address, which the backbone sees only at the close. Where trampolines may be
 * attached, inet_csk_accept's return; elsewhere the first read or write, armed while a subject is in
 * a phase in which arrivals are misrouted.
 */
#include "conn.h"
#include <bpf/bpf_tracing.h>

SEC("fexit/inet_csk_accept")
int BPF_PROG(pw_accept, struct sock *listener, struct proto_accept_arg *arg, struct sock *child)
{
	if (child)
		pw_conn_accept(child);
	return 0;
}

/* until 6.9 (92ef0fd55ac8 "net: change proto and proto_ops accept type") */
SEC("fexit/inet_csk_accept")
int BPF_PROG(pw_accept_6_9, struct sock *listener, int flags, int *err, _Bool kern,
	struct sock *child)
{
	if (child)
		pw_conn_accept(child);
	return 0;
}

static __always_inline int pw_touched(struct sock *sk, int ret)
{
	struct pw_conn *conn;

	if (ret <= 0)
		return 0;
	conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	/* two threads may touch it first, unlike the other hooks, which come before or after all */
	if (conn && conn->established_ns && !conn->judged &&
		__sync_bool_compare_and_swap(&conn->judged, 0, 1))
		pw_conn_accepted(conn, sk, PW_SEEN_FIRST_IO, 1);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(pw_first_recv, struct sock *sk, int ret, int flags)
{
	return pw_touched(sk, ret);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(pw_first_send, struct sock *sk, int ret, int flags)
{
	return pw_touched(sk, ret);
}
