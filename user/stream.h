/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The stream of events: recent ones are kept, followers get new ones. Each follower has a bound on
 * what waits for it; beyond that it misses events, and is told how many in a `lost` event.
 */
#ifndef PW_STREAM_H
#define PW_STREAM_H

#include <event2/buffer.h>

#include "event.h"

#define STREAM_RECENT 4096	       /* events kept */
#define STREAM_BACKLOG (8u << 20)      /* bytes that may wait for one follower */
#define STREAM_BACKLOGS (64u << 20)    /* for all together: of many, each may have its part */
#define STREAM_FILTER_PIDS 32

/* A zero mask, or no pid, lets everything pass. */
struct stream_filter {
	uint32_t types; /* bit: enum pw_event_type; lost events always pass */
	uint32_t phases;
	uint32_t verdicts;
	size_t n_pids;
	pid_t pids[STREAM_FILTER_PIDS];
};

struct stream;
struct follower;

/* Takes what is in `data`; must not call back into the stream. */
typedef void (*follower_send_fn)(struct evbuffer *data, void *arg);
/* Bytes sent and not yet taken by the other end. */
typedef size_t (*follower_backlog_fn)(void *arg);

int stream_new(struct stream **ret);
void stream_free(struct stream *s);

/* Renders the event, keeps it, and queues it for whoever wants it. */
int stream_publish(struct stream *s, const struct event *e, const struct event_names *names);
/* Hands what is queued to the followers: once for each batch of events. */
void stream_flush(struct stream *s);

/* Events that followers missed so far, by type. */
const uint64_t *stream_missed(const struct stream *s);

/* Appends the last `n` recent events that pass, oldest first. */
void stream_recent(const struct stream *s, const struct stream_filter *f, size_t n,
	struct evbuffer *out);

int stream_follow(struct stream *s, const struct stream_filter *f, follower_send_fn send,
	follower_backlog_fn backlog, void *arg, struct follower **ret);
void stream_unfollow(struct stream *s, struct follower *f);

#endif /* PW_STREAM_H */
