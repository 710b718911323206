// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Hooks on traffic, attached only while a subject is in a phase in which arrivals are misrouted; and
 * on resets, which are rare.
 */
#include "drain.h"
#include <bpf/bpf_tracing.h>

#define MSG_PEEK 2

SEC("tp_btf/sock_recv_length")
int BPF_PROG(pw_recv, struct sock *sk, int ret, int flags)
{
	struct pw_conn *conn;

	if (ret <= 0 || (flags & MSG_PEEK))
		return 0;
	conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	if (!conn)
		return 0;
	pw_conn_touched(conn, sk, pw_current());
	pw_conn_read(conn, sk);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(pw_send, struct sock *sk, int ret, int flags)
{
	struct pw_conn *conn;

	if (ret <= 0)
		return 0;
	conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	if (conn)
		pw_conn_touched(conn, sk, pw_current());
	return 0;
}

/*
 * Until 6.2 (40cbf30 "trace: sock: add ..." brought sock_recv_length): called for each piece that a
 * read takes from the queue. Peeking at a request tells of it a little earlier.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(pw_recv_6_2, struct sock *sk)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);

	if (conn)
		pw_conn_read(conn, sk);
	return 0;
}

/* A completed connection that nobody accepted goes with its listener. */
static __always_inline void pw_queued_reset(struct sock *sk)
{
	struct pw_conn *conn = bpf_sk_storage_get(&pw_conns, sk, 0, 0);
	struct task_struct *task = pw_current();
	struct pw_subject_key key;
	struct pw_declaration *d;
	struct pw_process process;
	struct pw_verdict_on on;
	struct pw_ends ends;
	__u64 established;

	if (conn) {
		if (conn->judged || !conn->established_ns)
			return;
		conn->judged = 1;
		established = conn->established_ns;
	} else {
		/* older than its listener's stamp; an accepted one has a struct socket */
		if (BPF_CORE_READ(sk, sk_socket))
			return;
		established = pw_established_ns(sk);
	}
	d = pw_subject_of_holder(conn, task, &key);
	if (!d)
		return;
	pw_judge(d, &key, bpf_ktime_get_boot_ns(), PW_DIR_ACCEPT, &on);
	pw_find_ends(sk, 1, &on, &ends);
	pw_count_dropped(&on, 1);
	pw_identify_holder(task, &process);
	pw_conn_emit(&process, &on, &ends, PW_EV_DROP, established, 0, 0);
}

static __always_inline struct net_device *pw_skb_dev(struct sk_buff *skb)
{
	struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct dst_entry *dst;

	if (dev)
		return dev;
	dst = (struct dst_entry *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);
	return dst ? BPF_CORE_READ(dst, dev) : 0;
}

#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_ACK 0x10

struct pw_segment {
	struct pw_tuple tuple;
	__u32 ack;
	__u32 payload; /* bytes */
	__u8 flags;
};

static __always_inline void pw_read_segment(struct sk_buff *skb, struct pw_segment *ret)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *tcp = head + BPF_CORE_READ(skb, transport_header);
	unsigned char *ip = head + BPF_CORE_READ(skb, network_header);
	struct net_device *dev = pw_skb_dev(skb);
	struct pw_tuple *t = &ret->tuple;
	__u8 version = 0, offset = 0;
	__be16 ports[2] = {};
	__be32 v4[2] = {}, ack = 0;

	bpf_probe_read_kernel(ports, sizeof(ports), tcp);
	bpf_probe_read_kernel(&ack, sizeof(ack), tcp + 8);
	bpf_probe_read_kernel(&offset, sizeof(offset), tcp + 12);
	bpf_probe_read_kernel(&ret->flags, sizeof(ret->flags), tcp + 13);
	ret->ack = bpf_ntohl(ack);
	ret->payload = BPF_CORE_READ(skb, len) - (offset >> 4) * 4;
	bpf_probe_read_kernel(&version, sizeof(version), ip);
	t->sport = bpf_ntohs(ports[0]);
	t->dport = bpf_ntohs(ports[1]);
	t->netns = dev ? BPF_CORE_READ(dev, nd_net.net, ns.inum) : 0;
	if (version >> 4 == 4) {
		bpf_probe_read_kernel(v4, sizeof(v4), ip + 12);
		pw_v4_mapped(t->saddr, v4[0]);
		pw_v4_mapped(t->daddr, v4[1]);
	} else {
		bpf_probe_read_kernel(t->saddr, 16, ip + 8);
		bpf_probe_read_kernel(t->daddr, 16, ip + 24);
	}
}

/* In softirq: nothing here is attributed to the current task. */
static __always_inline void pw_syn_refused(struct pw_tuple *t)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct pw_endpoint endpoint = { .netns = t->netns, .port = t->dport };
	struct pw_process nobody = {};
	struct pw_verdict_on on;
	struct pw_ends ends;
	struct pw_counters *c;
	struct pw_gone *gone;

	gone = bpf_map_lookup_elem(&pw_gone, &endpoint);
	if (!gone) {
		__builtin_memcpy(endpoint.addr, t->daddr, sizeof(endpoint.addr));
		gone = bpf_map_lookup_elem(&pw_gone, &endpoint);
	}
	if (!gone || now - gone->gone_ns > PW_GONE_NS)
		return;
	on = gone->on;
	ends.tuple = *t;
	pw_find_client(t, &ends.client);
	pw_excuse(&on, t->saddr, t->dport, &ends.client);
	c = pw_cpu_counters();
	if (c && on.verdict != PW_IGNORED)
		pw_add(c->tally.refused, 1);
	pw_conn_emit(&nobody, &on, &ends, PW_EV_REFUSED, gone->gone_ns, 0, 0);
}

/* Once for each connection: whatever follows belongs to the same request. */
static __always_inline void pw_data_refused(struct pw_segment *s)
{
	struct pw_closed *found = bpf_map_lookup_elem(&pw_closed, &s->tuple), closed;
	__u64 now = bpf_ktime_get_boot_ns();
	struct pw_ends ends;
	struct pw_counters *c;

	if (!found)
		return;
	closed = *found;
	/* what it acknowledges was never sent: this is a later connection with the same ends */
	if (s->ack - closed.acked > closed.write_seq + 1 - closed.acked)
		return;
	/* it has seen our FIN */
	if ((__s32)(s->ack - closed.write_seq) > 0 && s->payload <= PW_FAREWELL_BYTES)
		return;
	bpf_map_delete_elem(&pw_closed, &s->tuple);
	if (now - closed.closed_ns > PW_GONE_NS)
		return;
	ends.tuple = s->tuple;
	ends.client = closed.client;
	c = pw_cpu_counters();
	if (c && closed.on.verdict != PW_IGNORED)
		pw_add(c->requests_too_late, 1);
	pw_count_request(bpf_map_lookup_elem(&pw_stats, &closed.on.key), &closed.on, now);
	pw_conn_emit(&closed.process, &closed.on, &ends, PW_EV_REQUEST, closed.established_ns,
		(now - closed.closed_ns) / 1000 + 1, closed.requests + 1);
}

static __always_inline int pw_segment_refused(struct sk_buff *skb)
{
	struct pw_segment s = {};

	pw_read_segment(skb, &s);
	if ((s.flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN)
		pw_syn_refused(&s.tuple);
	else if (s.payload && !(s.flags & TCP_FLAG_SYN))
		pw_data_refused(&s);
	return 0;
}

/*
 * sk without skb: we reset, here a queued child of a listener that closes, in that task. skb: a
 * segment is answered by RST; nobody listens where it went to, or its connection was closed. Until
 * 6.9 not told of unless there is a socket.
 */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(pw_reset, struct sock *sk, struct sk_buff *skb)
{
	if (skb)
		return pw_segment_refused(skb);
	if (sk)
		pw_queued_reset(sk);
	return 0;
}

/* Until 6.9 (edefba66d929 "tcp: rstreason: introduce SK_RST_REASON_..."), where trampolines can be had. */
SEC("fentry/tcp_v4_send_reset")
int BPF_PROG(pw_reset4_6_9, struct sock *sk, struct sk_buff *skb)
{
	return pw_segment_refused(skb);
}

SEC("fentry/tcp_v6_send_reset")
int BPF_PROG(pw_reset6_6_9, struct sock *sk, struct sk_buff *skb)
{
	return pw_segment_refused(skb);
}
