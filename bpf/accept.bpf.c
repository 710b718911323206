// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Accepts with a NULL address, which the backbone sees only at the close: where trampolines may be
 * attached, inet_csk_accept's return. Elsewhere the first read or write tells (drain.bpf.c).
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
