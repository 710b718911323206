/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses the boundary between the kernel half and the daemon: ring-buffer records, internal
 * map values, counters' indices. One definition, included by both; widths fixed, no implicit
 * padding, sizes asserted. Bump PW_ABI with any change: pins of another ABI are replaced whole.
 * Times are CLOCK_BOOTTIME nanoseconds, ports are in host byte order, addresses in network order
 * (IPv4 as ::ffff:a.b.c.d, whatever the socket's family).
 */
#ifndef PW_ABI_H
#define PW_ABI_H

#include "phasewatch/phase.h"

#define PW_ABI 5
#define PW_MAGIC 0x7068777463680000ULL /* "phwtch" */
#define PW_COMM_LEN 16

enum pw_direction {
	PW_DIR_ACCEPT = 0,
	PW_DIR_CONNECT = 1,
	PW_DIRECTIONS,
};

enum pw_verdict {
	PW_OK = 0,
	PW_MISROUTED = 1,
	PW_GRACE = 2,
	PW_IGNORED = 3,
	PW_VERDICTS,
};

/* How an accepted connection came to be seen, best first (kernel-side races decide which). */
enum pw_seen_by {
	PW_SEEN_ACCEPT = 0,
	PW_SEEN_FIRST_IO = 1,
	PW_SEEN_RELEASE = 2,
};

enum pw_result {
	PW_ESTABLISHED = 0,
	PW_REFUSED = 1,
	PW_TIMEOUT = 2,
	PW_RESET = 3,
	PW_UNREACHABLE = 4,
	PW_ABORTED = 5,
	PW_RESULTS,
};

enum pw_how {
	PW_FIN = 0,
	PW_RST = 1,
	PW_HOWS,
};

/*
 * Records of the kernel half come first; those from FORK on are not shown as events. The daemon
 * makes the others; BACKLOG of the DROP records of one listener.
 */
enum pw_event_type {
	PW_EV_ACCEPT = 1,
	PW_EV_CONNECT = 2,
	PW_EV_EXIT = 3,
	PW_EV_REQUEST = 4,
	PW_EV_ABANDON = 5,
	PW_EV_REFUSED = 6,
	PW_EV_FORK = 7,
	PW_EV_EXEC = 8,
	PW_EV_DROP = 9,
	PW_EV_UNLISTEN = 10,
	PW_EV_SIGNAL = 11,
	PW_EV_MOVE = 12,
	PW_EV_RECORDS, /* above this, of the daemon's own */
	PW_EV_PHASE = PW_EV_RECORDS,
	PW_EV_LOST = 14,
	PW_EV_BACKLOG = 15,
	PW_EV_DRAIN = 16,
	PW_EV_VIOLATION = 17,
	PW_EV_TYPES,
};

enum pw_violation {
	PW_STALE_EPOCH = 0,
	PW_BACKWARD = 1,
	PW_EXIT_WITHOUT_DRAIN = 2,
	PW_FLAPPING = 3,
	PW_VIOLATIONS,
};

/*
 * Of two processes with one pid, as far as both start times are known. One that is a multiple of
 * PW_START_UNIT_NS is taken for one from /proc, which shows no more; the kernel's own are exact.
 */
static inline int pw_same_start(__u64 a, __u64 b)
{
	if (!a || !b || a == b)
		return 1;
	return (a % PW_START_UNIT_NS == 0 || b % PW_START_UNIT_NS == 0) &&
	       a / PW_START_UNIT_NS == b / PW_START_UNIT_NS;
}

struct pw_record {
	__u16 type; /* enum pw_event_type */
	__u16 size; /* of the whole record */
	__u32 reserved;
	__u64 time_ns;
};

struct pw_process {
	__u32 pid; /* tgid in the initial pid namespace */
	__u32 ppid;
	__u64 start_ns;
	__u64 cgroup_id; /* cgroup v2 */
	char comm[PW_COMM_LEN];
};

/* The subject as it was judged. `phase` is the one in force when the connection arrived. */
struct pw_verdict_on {
	struct pw_subject_key key;
	__u64 epoch;
	__u64 since_ns; /* when `phase` was entered, 0: not known */
	__u8 phase;
	__u8 source;
	__u8 verdict;
	__u8 reserved[5];
};

struct pw_tuple {
	__u8 saddr[16]; /* of who opened the connection */
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u32 netns; /* inode number */
};

/* The process on this node that opened the connection; pid 0: not known. */
struct pw_client {
	__u64 cgroup_id;
	__u32 pid;
	__u32 arming; /* pw_control.armed then: one from an earlier drain tells nothing */
	char comm[PW_COMM_LEN];
};

/*
 *           process          begin_ns              how                  number
 * ACCEPT    acceptor         handshake done        enum pw_seen_by
 * CONNECT   who connects     connect() called      enum pw_result
 * REQUEST   who reads,       handshake done        us since the close   of the request
 *           or has closed                          it came after, or 0
 * REFUSED   (zero)           the listener's end
 * DROP      who closes       handshake done
 * UNLISTEN  who closes                             handshakes not done  connections in its queue
 * A time of 0 is not known. UNLISTEN's tuple has the listener as destination.
 */
struct pw_conn_record {
	struct pw_record h;
	struct pw_process process;
	struct pw_verdict_on on;
	struct pw_tuple tuple;
	struct pw_client client;
	__u64 begin_ns;
	__u32 how;
	__u32 number;
};

struct pw_abandon_record { /* PW_EV_ABANDON */
	struct pw_record h;
	struct pw_process process; /* the exiting one */
	struct pw_verdict_on on;
	struct pw_tuple tuple;
	struct pw_client client;
	__u64 established_ns;
	__u64 bytes_in;
	__u64 bytes_out;
	__u32 how;  /* enum pw_how */
	__u32 busy; /* a request was received and not answered */
};

#define PW_NOT_KNOWN 0xffffffffU

struct pw_exit_record { /* PW_EV_EXIT */
	struct pw_record h;
	struct pw_process process;
	struct pw_verdict_on on;
	__u32 status;      /* as wait(2) gives it */
	__u32 connections; /* TCP connections in its file table, not listeners; or PW_NOT_KNOWN */
};

struct pw_task_record { /* PW_EV_FORK, PW_EV_EXEC */
	struct pw_record h;
	struct pw_process process;
};

struct pw_signal_record { /* PW_EV_SIGNAL */
	struct pw_record h;
	struct pw_process process; /* whom it was sent to */
	struct pw_process sender;
	struct pw_verdict_on on;
	__u32 signal;
	__u32 reserved;
};

struct pw_move_record { /* PW_EV_MOVE: the kernel half has written a declaration */
	struct pw_record h;
	struct pw_process by; /* who sent the signal, or listens */
	struct pw_subject_key key;
	struct pw_declaration now;
	__u32 from;   /* enum pw_phase */
	__u32 signal; /* 0: it was not by one */
};

_Static_assert(sizeof(struct pw_record) == 16, "");
_Static_assert(sizeof(struct pw_process) == 40, "");
_Static_assert(sizeof(struct pw_verdict_on) == 40, "");
_Static_assert(sizeof(struct pw_tuple) == 40, "");
_Static_assert(sizeof(struct pw_client) == 32, "");
_Static_assert(sizeof(struct pw_conn_record) == 184, "");
_Static_assert(sizeof(struct pw_abandon_record) == 200, "");
_Static_assert(sizeof(struct pw_signal_record) == 144, "");
_Static_assert(sizeof(struct pw_exit_record) == 104, "");
_Static_assert(sizeof(struct pw_task_record) == 56, "");
_Static_assert(sizeof(struct pw_move_record) == 208, "");

/* pw_members: tgid -> the process subject it belongs to by descent (or by its own declaration). */
struct pw_member {
	__u64 start_ns; /* of the member, so that a reused pid is not taken for it */
	__u64 subject;  /* the subject's tgid */
	__u64 subject_start_ns;
	__u64 scope;  /* a descendant belongs to it only within this (pw_scope()); 0: wherever */
	__u32 flags;  /* of the subject's own process */
	__u32 reserved;
};

#define PW_SCOPE_SESSION (1ULL << 63) /* of a scope: a session's id, else a cgroup's */
#define PW_ACTIVE_ON_LISTEN 1 /* from INIT */

/* pw_stats: what a subject has seen since it was first declared. */
struct pw_stats {
	__u64 accepts;
	__u64 accepts_misrouted;
	__u64 connects;
	__u64 connects_misrouted;
	__u64 requests; /* while the request hooks are attached */
	__u64 requests_misrouted;
	__u64 last_misrouted_ns; /* when it arrived */
	__u64 last_released_ns;  /* when the last connection was closed */
	__u64 drain_jiffies;     /* just before the drain was declared */
	__s64 inflight; /* accepted and not released; without those of `unseen` */
	__s64 members;
	__u32 look;   /* pw_control.look at which the next three were counted, else they are stale */
	__u32 queued; /* waiting to be accepted, from its listeners */
	__u32 unseen; /* accepted, and nothing has told of it yet */
	__u32 open;   /* queued, held, and closed ones of which TCP has not delivered all */
	__u64 life; /* when it was made: tells this subject from an earlier one with the same key */
};

/*
 * pw_conns. What a tracked socket carries, 32 bytes: it is copied to each child of a listener
 * (BPF_F_CLONE) on the path of the handshake's last segment, where memory is scarce.
 */
struct pw_conn {
	__u64 established_ns; /* 0: a listener, a handshake not done, or older than the declaration;
			       * of an outbound one: connect() called */
	__u64 subject;	      /* that accepted it; until then whose listener it came to; 0: none */
	__u32 life;	      /* of that subject, its lower half */
	__u32 judged;	      /* counted, by whichever hook came first: the pid that had it, or 1 */
	__u32 answered_seq;   /* write_seq when it was last read from: a read after it moved on begins
			       * a request */
	__u16 requests;
	__u8 kind;
	__u8 was_read; /* answered_seq holds */
};

#define PW_BUCKETS 10

/* Upper bounds of the buckets but the last: accept queues and connects, from LAN to trouble. */
static const __u64 pw_bounds_ns[PW_BUCKETS - 1] = { 100000, 500000, 1000000, 5000000, 10000000,
	50000000, 100000000, 500000000, 1000000000 };

struct pw_durations {
	__u64 sum_ns;
	__u64 buckets[PW_BUCKETS]; /* each on its own */
};

/* What came and went: of everybody (pw_counters), and of each subject (pw_tallies). */
struct pw_tally {
	__u64 connections[PW_DIRECTIONS][PW_PHASES][PW_VERDICTS];
	__u64 requests[PW_PHASES][PW_VERDICTS]; /* while the request hooks are attached */
	__u64 abandoned[PW_HOWS][2];		/* by busy */
	__u64 backlog_dropped;
	__u64 refused; /* a subject is gone by then: its own are counted by the daemon */
	struct pw_durations queue; /* handshake done to accept(), of subjects */
};

struct pw_counters { /* pw_counters, per CPU */
	struct pw_tally tally;
	__u64 requests_too_late; /* of the requests: after the close */
	struct pw_durations connect; /* connect() to established, of subjects */
	__u64 emitted[PW_EV_TYPES];
	__u64 lost_ring[PW_EV_TYPES]; /* no room in the ring buffer */
	__u64 lost_map[PW_EV_TYPES];  /* no room in a map or no memory for a socket's storage */
};

#define PW_IGNORE_MAX 16

/* Traffic that is no user's: probes, scrapes. Entries up to the first empty one count. */
struct pw_ignore {
	struct {
		__u64 addr[2]; /* network order, IPv4 as ::ffff:a.b.c.d */
		__u64 mask[2]; /* 0: empty */
	} peers[PW_IGNORE_MAX];
	__u32 ports[PW_IGNORE_MAX]; /* of the end that was connected to */
	char clients[PW_IGNORE_MAX][PW_COMM_LEN];
};

enum pw_snapshot_pass {
	PW_PASS_LISTENERS = 0, /* first, so that the next can tell accepted connections */
	PW_PASS_CONNECTIONS = 1,
	PW_PASS_TURNS = 2,   /* at a drain: whose turn it is on each connection */
	PW_PASS_CLIENTS = 3, /* at the first drain, over all processes: who opened what */
	PW_PASS_WHO_LISTENS = 4, /* over all processes: writes the pid (u32) for each listener */
};

#define PW_SIGNAL_RULES 16

/* A signal that moves who receives it to a phase. One with a name beats one without. */
struct pw_signal_rule {
	char comm[PW_COMM_LEN]; /* empty: any */
	__u32 signal;		/* 0: the end of the rules */
	__u32 phase;
};

/* Of the daemon's own doing, here because it outlives the daemon. */
struct pw_daemon_counters {
	__u64 reconciles; /* declarations in the map that nobody had told of */
	__u64 overflowed; /* subjects that found no workload left for them */
};

#define PW_WORKLOADS 256
#define PW_WORKLOAD_LEN 64

/* Upper bounds of the buckets but the last: what the world takes to notice a drain, and drains. */
static const __u64 pw_delays_ns[PW_BUCKETS - 1] = { 100000000, 500000000, 1000000000, 2000000000,
	5000000000, 10000000000, 30000000000, 60000000000, 120000000000 };

/*
 * pw_workloads, shared with nobody but the next daemon: subjects of one name, those that are gone
 * included. The first one is for those that find no place.
 */
struct pw_workload {
	char name[PW_WORKLOAD_LEN]; /* "": not in use */
	struct pw_tally ended; /* of subjects that are gone; `refused` of all */
	struct pw_durations misroute_delay, settle, drain; /* by pw_delays_ns */
	__u64 phase_changes[PW_PHASES][PW_PHASES][PW_SOURCES]; /* from, to, source */
	__u64 violations[PW_VIOLATIONS];
	__u64 flaps;
};

/* pw_control: one element, shared with the daemon by mmap. */
struct pw_control {
	__u64 magic;
	__u32 abi;
	__u32 waiting; /* the daemon sleeps until it is woken: the next record does so, once */
	__u64 object_id; /* hash of the BPF object that made these pins */
	__u64 grace_ns;
	__u64 seq; /* of the next event */
	__u32 adopt_to;   /* tgid of the subject that pw_adopt works for */
	__u32 adopt_from; /* tgid of the subject around it, 0: none */
	__u32 adopt_scoped; /* only within its scope (pw_scope()) */
	__u32 reserved;
	struct pw_subject_key turns_of; /* the subject that pw_turns works for */
	__u32 snapshot; /* enum pw_snapshot_pass */
	__u32 look;	/* number of the last count of connections */
	__u32 queue_is_loss; /* resets of queued connections are not seen: a listener's end tells */
	__u32 armed;	/* something drains: who connects is remembered; else 0 */
	__u32 armings;	/* how often that began; `armed` is the number of this one */
	__u32 cgroups;	/* some cgroup is declared */
	__u32 ignores;	/* `ignore` is not empty */
	__u32 daemon;	/* its pid */
	__u32 listeners_are_subjects; /* --auto */
	__u64 signals; /* bits: those that are looked at; 1 << signal */
	struct pw_signal_rule signal_rules[PW_SIGNAL_RULES];
	struct pw_daemon_counters counters;
	struct pw_ignore ignore;
};

#endif /* PW_ABI_H */
