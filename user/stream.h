/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The stream of events: recent ones are kept, followers get new ones. Each follower has a bound on
 * what waits for it; beyond that it misses events, and is told how many in a `lost` event.
 */
#ifndef PW_STREAM_H
#define PW_STREAM_H

#include <event2/buffer.h>

#include "event.h"
#include "filter.h"

#define STREAM_RECENT 4096	       /* events kept */
#define STREAM_BACKLOG (8u << 20)      /* bytes that may wait for one follower */
#define STREAM_BACKLOGS (64u << 20)    /* for all together: of many, each may have its part */

enum stream_format {
	STREAM_LINES,
	/* Server-sent events: `id` is the last sequence number that the event stands for. */
	STREAM_SSE,
};

/* Whose queue was full: of who asked the API or reads standard output, or of a push elsewhere. */
enum stream_stage { STREAM_SUBSCRIBER, STREAM_EXPORT, STREAM_STAGES };

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

/* Events that the followers of a stage missed so far, by type. */
const uint64_t *stream_missed(const struct stream *s, enum stream_stage stage);

/* Appends the last `n` recent events that pass, oldest first. */
void stream_recent(const struct stream *s, const struct filter *f, enum stream_format format,
	size_t n, struct evbuffer *out);

/*
 * The same for a reader that has had all up to number `after`: of those after it. `next` is the number
 * that the next event will have. What is not kept any more is told by a `lost` event of stage
 * `history`. An `after` that is still to come is of numbers that have begun anew: all is new then.
 */
void stream_resume(struct stream *s, const struct filter *f, enum stream_format format, uint64_t after,
	uint64_t next, const char *node, size_t n, struct evbuffer *out);

int stream_follow(struct stream *s, const struct filter *f, enum stream_format format,
	follower_send_fn send, follower_backlog_fn backlog, void *arg, struct follower **ret);
/* What this one misses is lost at stage STREAM_EXPORT. */
void follower_exports(struct follower *f);
void stream_unfollow(struct stream *s, struct follower *f);

#endif /* PW_STREAM_H */
