/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which events are wanted: one match of each kind that is given. The API and `events` mean the same. */
#ifndef PW_FILTER_H
#define PW_FILTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FILTER_VALUES 32 /* of one kind */
#define FILTER_TEXT 256	 /* bytes of a subject, NUL included */

/* A zero mask, or no value, lets everything pass. */
struct filter {
	uint32_t types; /* bit: enum pw_event_type; lost events always pass */
	uint32_t phases;
	uint32_t verdicts;
	size_t n_pids;
	pid_t pids[FILTER_VALUES];
	size_t n_subjects;
	char subjects[FILTER_VALUES][FILTER_TEXT]; /* name, name[id] or id */
	uint64_t since_ns; /* CLOCK_REALTIME; for lost events too */
};

/* What filters look at. */
struct event_gist {
	uint64_t time_ns; /* CLOCK_REALTIME */
	uint64_t subject_id;
	const char *subject_name; /* NULL: not known */
	uint8_t type;
	uint8_t phase;
	uint8_t verdict;
	pid_t pid;
	pid_t subject; /* if it is a process */
};

/*
 * Adds what a query parameter or an option of that name says. -ENOENT: there is none of that name;
 * -EINVAL or -ERANGE: its value is none, or one too many.
 */
int filter_set(struct filter *f, const char *name, const char *value, uint64_t now_ns);

bool filter_passes(const struct filter *f, const struct event_gist *g);

/* What an event says that was written down, valid as long as it is. False: it is no event. */
bool filter_read(const json_t *event, struct event_gist *ret);

/* A duration before `now_ns`, such as 5m, or a time of RFC 3339. 0, -EINVAL or -ERANGE. */
int filter_parse_time(const char *text, uint64_t now_ns, uint64_t *ret_ns);

/* NAME, NAME[ID] or ID, as `phasewatch ps` shows them; `name` may be NULL. */
bool filter_is_subject(const char *wanted, uint64_t id, const char *name);

#endif /* PW_FILTER_H */
