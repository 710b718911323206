/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Events: from ring-buffer records to lines of JSON. Both steps are pure. */
#ifndef PW_EVENT_H
#define PW_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bpf/abi.h"
#include "json_out.h"

struct event_phase {
	struct pw_subject_key key;
	struct pw_declaration now;
	uint32_t from; /* enum pw_phase */
	bool declared; /* by subjects_declare(); else it was found in the map */
	const char *by_comm; /* NULL: not known */
	uint64_t realtime_offset_ns; /* CLOCK_REALTIME - CLOCK_BOOTTIME */
};

struct event_lost {
	const char *stage;
	uint64_t by_type[PW_EV_TYPES];
	uint64_t count;
};

struct event_violation {
	struct pw_subject_key key;
	struct pw_declaration now; /* in force */
	enum pw_violation kind;
	const char *detail; /* a sentence */
	uint32_t by_pid;    /* 0: not known */
	uint32_t by_uid;
	const char *by_comm; /* NULL: not known */
};

/* The completed connections that a listener's end took with it. */
struct event_backlog {
	struct pw_process process; /* who closed it */
	struct pw_verdict_on on;
	struct pw_tuple listener; /* as destination */
	bool addr_known; /* else it is where the first connection went to */
	uint64_t dropped;
	uint64_t half_open; /* the client may believe in it: it has our SYN/ACK */
};

/* A drain report, as a JSON object. */
struct event_drain {
	struct pw_subject_key key;
	uint64_t epoch;
	uint32_t phase;
	uint32_t source;
	const char *json;
	size_t len;
};

struct event {
	enum pw_event_type type;
	uint64_t seq;
	uint64_t time_ns; /* CLOCK_BOOTTIME */
	union {
		struct pw_conn_record conn;
		struct pw_exit_record exit;
		struct pw_task_record task;
		struct pw_abandon_record abandon;
		struct pw_signal_record signal;
		struct event_phase phase;
		struct event_lost lost;
		struct pw_move_record move;
		struct event_violation violation;
		struct event_backlog backlog;
		struct event_drain drain;
	};
};

/* What an event does not know itself; NULL: not known. */
struct event_names {
	const char *node;
	const char *subject;
	const char *exe;
	const char *cgroup;
	const char *client_cgroup;
	uint64_t realtime_offset_ns; /* CLOCK_REALTIME - CLOCK_BOOTTIME */
};

/*
 * Checks length, then declared size, then type, then the values that are used as indices. -EPROTO:
 * not a record of this ABI. `seq` is left 0.
 */
int event_decode(const void *data, size_t size, struct event *ret);

/* Appends the event as one line, '\n' included. */
void event_write(struct json_out *j, const struct event *e, const struct event_names *names);

/* The one of the event's own, or NULL: of `lost` and `phase` events. */
const struct pw_process *event_process(const struct event *e);
const struct pw_verdict_on *event_verdict_on(const struct event *e);
/* NULL if it has none, or it is not known. */
const struct pw_client *event_client(const struct event *e);

/* The `subject` object, used by the other answers of the API as well. */
void event_write_subject(struct json_out *j, const struct pw_subject_key *key, uint64_t epoch,
	uint32_t source, const char *name);

#endif /* PW_EVENT_H */
