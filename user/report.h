/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The drain report: what one drain did, from its declaration to the end of the last process. The
 * daemon fills it in (drain.h) and writes it as JSON; the command reads that and shows it to
 * people.
 */
#ifndef PW_REPORT_H
#define PW_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "bpf/abi.h"
#include "histogram.h"
#include "json_out.h"
#include "subjects.h"
#include "top.h"

#define REPORT_SIGNALS 8 /* as many as the kernel half tells of */
#define REPORT_PORTS 8	 /* the others share the last one's place, as port 0 */

enum report_end {
	REPORT_RUNNING,
	REPORT_EXITED,	  /* nobody is left */
	REPORT_UNDRAINED, /* it was declared for something else: a new epoch, or ACTIVE */
	REPORT_RELEASED,  /* the declaration was taken away, its processes live on */
};

struct report_declared {
	uint64_t time_ns; /* 0: it was not */
	uint32_t by_pid;  /* 0: not known */
	uint32_t by_uid;
	uint32_t phase;
	uint32_t source;
	uint64_t epoch;
	char by_comm[PW_COMM_LEN];
	char reason[PW_REASON_LEN];
};

struct report_signal { /* the first of its kind */
	uint64_t time_ns;
	uint32_t signal;
	uint32_t pid; /* of the sender */
	char comm[PW_COMM_LEN];
};

struct report_port { /* where a listener was closed, or its queue dropped */
	uint64_t closed_ns; /* the last one; 0: none */
	uint64_t closed;
	uint64_t dropped;
	uint16_t port;
};

/* Times are CLOCK_BOOTTIME ns; 0: it did not happen, or is not known. */
struct report {
	struct pw_subject_key key;
	char name[SUBJECT_NAME_LEN]; /* "": not known */
	uint64_t start_ns; /* of the subject's process */
	struct report_declared drain, shutdown, next; /* next: what ended it */
	uint64_t watched_ns; /* when the daemon learnt of it */
	uint64_t realtime_offset_ns; /* CLOCK_REALTIME - CLOCK_BOOTTIME, then */

	enum report_end end;
	uint64_t ended_ns;
	uint64_t exit_ns; /* of the last process that exited */
	uint32_t exit_status;

	/* The subject's counters when the drain began and as they were last seen. */
	bool has_stats;
	struct pw_stats first, last;
	bool last_is_final; /* taken at the end */
	uint64_t accepts_before; /* accepts that belong to an earlier drain's report */

	uint64_t accepts[PW_VERDICTS];
	uint64_t requests[PW_VERDICTS];
	uint64_t requests_too_late; /* misrouted ones: after the close, and reset */
	uint64_t connects[PW_VERDICTS];
	uint64_t connects_failed;
	uint64_t refused;
	uint64_t refused_after_ns; /* the last one, after the end of its listener */
	uint64_t dropped;
	uint64_t half_open; /* handshakes that were not done when their listener was closed */
	uint64_t abandoned[PW_HOWS];
	uint64_t abandoned_busy;
	uint64_t ignored; /* of the last three, by --ignore-...: not in their numbers */
	uint64_t request_connections;
	bool request_connections_unknown; /* more than were kept apart */
	uint64_t first_misrouted_ns, last_misrouted_ns; /* arrivals: accepts and requests */
	uint64_t last_grace_ns;
	uint64_t lost; /* records, of all subjects: numbers may be too low */

	struct report_signal signals[REPORT_SIGNALS];
	size_t n_signals;
	struct report_port ports[REPORT_PORTS];
	size_t n_ports;

	/* NULL until there is something to count, or when memory was short. */
	struct histogram *queue, *connect;
	/* Of misrouted arrivals and refusals: by client, or where that is not known by address. */
	struct top *clients, *peers;
};

/* A drain may begin with SHUTDOWN. */
static inline const struct report_declared *report_began(const struct report *r)
{
	return r->drain.time_ns ? &r->drain : &r->shutdown;
}

/* How long after its declaration something still arrived; 0: nothing did. */
uint64_t report_settle_ns(const struct report *r);

/* A client of this node, as a key of `clients`. */
struct report_client {
	char comm[PW_COMM_LEN];
	uint32_t pid;
};

/* Frees what it points to. */
void report_clear(struct report *r);

/* As one JSON object; `key` is NULL in an array or at the top. A running drain lasts until now_ns. */
void report_write(
	struct json_out *j, const char *key, const struct report *r, uint64_t now_ns);

/* ---- for people: from what report_write() wrote, which is not trusted ---- */

/* NAME, NAME[ID] or ID of its subject. */
bool report_is_of(const json_t *report, const char *subject);
/* Clients and peers with their numbers of arrivals, on one line. */
void report_print_from(FILE *out, const json_t *report);
/* One screen; times are shown in the local time zone. */
void report_print_text(FILE *out, const json_t *report);
/* The same as a section of a post-mortem. */
void report_print_markdown(FILE *out, const json_t *report);

#endif /* PW_REPORT_H */
