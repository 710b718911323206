/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps, declared for every object; maps.bpf.c defines them once. Hashes that hold what there
 * are few of on most hosts are not preallocated: an idle observer costs no memory. The numbers in
 * max_entries are limits that users meet: a full map refuses, counts the refusal, evicts nothing.
 */
#ifndef PW_MAPS_H
#define PW_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* A connect that is judged misrouted, from TCP_CONNECT_CB until its result is known. */
struct pw_connect {
	__u64 begin_ns;
	struct pw_process process;
	struct pw_verdict_on on;
};

struct pw_port {
	__u32 netns;
	__u32 port;
};

struct pw_endpoint {
	__u8 addr[16]; /* zero: any */
	__u32 netns;
	__u32 port;
};

/* A listener of a drained subject that is gone. */
struct pw_gone {
	struct pw_verdict_on on;
	__u64 gone_ns;
};

/* A connection that a draining process closed while it was the client's turn to speak. */
struct pw_closed {
	struct pw_process process;
	struct pw_verdict_on on;
	struct pw_client client;
	__u64 established_ns;
	__u64 closed_ns;
	__u32 write_seq; /* the FIN's sequence number */
	__u32 acked;	 /* up to here, by the client */
	__u32 requests;
	__u32 reserved;
};

/*
 * Where a connection was opened from. The network namespace does not count (0): it may be another
 * one's address that is seen at the other end. But each has a 127.0.0.1 of its own.
 */
struct pw_opener {
	__u8 addr[16];
	__u32 netns;
	__u32 port;
};

struct pw_phases_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pw_subject_key);
	__type(value, struct pw_declaration);
};
extern struct pw_phases_map pw_phases SEC(".maps");

struct pw_members_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct pw_member);
};
extern struct pw_members_map pw_members SEC(".maps");

/* Processes whose exit was told: several threads that leave at once may all seem to be the last. */
struct pw_exited_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
};
extern struct pw_exited_map pw_exited SEC(".maps");

struct pw_stats_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pw_subject_key);
	__type(value, struct pw_stats);
};
extern struct pw_stats_map pw_stats SEC(".maps");

struct pw_tallies_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pw_subject_key);
	__type(value, struct pw_tally);
};
extern struct pw_tallies_map pw_tallies SEC(".maps");

struct pw_conns_map {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct pw_conn);
};
extern struct pw_conns_map pw_conns SEC(".maps");

struct pw_connects_map {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pw_connect);
};
extern struct pw_connects_map pw_connects SEC(".maps");

/* Ports that subjects' listeners were found on, to tell an old connection's direction. */
struct pw_ports_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct pw_port);
	__type(value, __u8);
};
extern struct pw_ports_map pw_ports SEC(".maps");

/* Only refusals within PW_GONE_NS of the end are shown; an older entry may be pushed out. */
struct pw_gone_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct pw_endpoint);
	__type(value, struct pw_gone);
};
extern struct pw_gone_map pw_gone SEC(".maps");

/* What comes after a close comes soon: the oldest are forgotten first. */
struct pw_closed_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct pw_tuple);
	__type(value, struct pw_closed);
};
extern struct pw_closed_map pw_closed SEC(".maps");

/* Who connected since something drains; the oldest are forgotten first. */
struct pw_clients_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pw_opener);
	__type(value, struct pw_client);
};
extern struct pw_clients_map pw_clients SEC(".maps");

struct pw_counters_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pw_counters);
};
extern struct pw_counters_map pw_counters SEC(".maps");

struct pw_control_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pw_control);
};
extern struct pw_control_map pw_control SEC(".maps");

struct pw_workloads_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 + PW_WORKLOADS);
	__type(key, __u32);
	__type(value, struct pw_workload);
};
extern struct pw_workloads_map pw_workloads SEC(".maps");

struct pw_events_map {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* 26 000 accept records, or 50 ms of a storm at full speed */
};
extern struct pw_events_map pw_events SEC(".maps");

#endif /* PW_MAPS_H */
