// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* GET /v1/events: lines of JSON, or server-sent events. */
#include <errno.h>
#include <string.h>
#include <sys/queue.h>

#include "api_internal.h"
#include "clock.h"
#include "filter.h"
#include "opts.h"
#include "util.h"

#define ALIVE_SECONDS 15

/* A request that stays open. Freed when its connection closes. */
struct watcher {
	struct api *api;
	struct evhttp_request *req;
	struct follower *follower;
	struct event *alive; /* server-sent events: keeps proxies from closing in silence */
};

static void watcher_send(struct evbuffer *data, void *arg)
{
	struct watcher *w = arg;

	evhttp_send_reply_chunk(w->req, data);
}

static size_t watcher_backlog(void *arg)
{
	struct watcher *w = arg;

	return evbuffer_get_length(bufferevent_get_output(
		evhttp_connection_get_bufferevent(evhttp_request_get_connection(w->req))));
}

/* Who does not read has enough to read. */
static void watcher_alive(evutil_socket_t fd, short what, void *arg)
{
	_cleanup_(evbuffer_freep) struct evbuffer *comment = evbuffer_new();
	struct watcher *w = arg;

	if (!comment || watcher_backlog(w) || evbuffer_add(comment, ":\n\n", 3) < 0)
		return;
	evhttp_send_reply_chunk(w->req, comment);
}

static void watcher_closed(struct evhttp_connection *conn, void *arg)
{
	struct watcher *w = arg;

	evhttp_connection_set_closecb(conn, NULL, NULL);
	stream_unfollow(w->api->c.stream, w->follower);
	if (w->alive)
		event_free(w->alive);
	/* libevent leaves an unfinished request to its user, unless the whole server is going */
	if (!evhttp_request_get_connection(w->req))
		evhttp_request_free(w->req);
	free(w);
}

/* What of the stream is asked for. */
struct events_query {
	struct filter filter;
	enum stream_format format;
	size_t last; /* SIZE_MAX: not given */
	bool follow;
	bool resume; /* after this number */
	uint64_t after;
};

static int parse_events(const struct evkeyvalq *query, struct events_query *eq, const char **bad)
{
	uint64_t number, now = clock_ns(CLOCK_REALTIME);
	const struct evkeyval *q;
	int err;

	TAILQ_FOREACH (q, query, next) {
		*bad = q->key;
		if (strcmp(q->key, "last") == 0) {
			err = parse_u64(q->value, &number);
			if (!err)
				eq->last = number;
		} else if (strcmp(q->key, "since_seq") == 0) {
			err = parse_u64(q->value, &eq->after);
			eq->resume = true;
		} else if (strcmp(q->key, "follow") == 0) {
			eq->follow = strcmp(q->value, "1") == 0;
			err = eq->follow || strcmp(q->value, "0") == 0 ? 0 : -EINVAL;
		} else {
			err = filter_set(&eq->filter, q->key, q->value, now);
		}
		if (err)
			return err;
	}
	return 0;
}

/* Where a browser goes on from counts more than where its page had begun. */
static int parse_sse(struct evhttp_request *req, struct events_query *eq)
{
	const struct evkeyvalq *headers = evhttp_request_get_input_headers(req);
	const char *accept = evhttp_find_header(headers, "Accept");
	const char *id = evhttp_find_header(headers, "Last-Event-ID");

	if (!accept || !strcasestr(accept, "text/event-stream"))
		return 0;
	eq->format = STREAM_SSE;
	eq->follow = true;
	if (!id || !*id)
		return 0;
	eq->resume = true;
	return parse_u64(id, &eq->after);
}

static void add_kept(struct api *api, const struct events_query *eq, struct evbuffer *out)
{
	if (eq->resume)
		stream_resume(api->c.stream, &eq->filter, eq->format, eq->after,
			api->c.kernel->control->seq, api->c.node, eq->last, out);
	else if (!eq->follow || eq->last != SIZE_MAX || eq->filter.since_ns)
		stream_recent(api->c.stream, &eq->filter, eq->format, eq->last, out);
	/* which browsers take for the beginning */
	if (eq->format == STREAM_SSE && !evbuffer_get_length(out))
		evbuffer_add(out, ":\n\n", 3);
}

static int watcher_new(struct api *api, struct evhttp_request *req, const struct events_query *eq)
{
	static const struct timeval interval = { .tv_sec = ALIVE_SECONDS };
	struct watcher *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->api = api;
	w->req = req;
	w->alive = eq->format == STREAM_SSE ?
		event_new(api->c.base, -1, EV_PERSIST, watcher_alive, w) : NULL;
	if ((eq->format == STREAM_SSE && !w->alive) ||
		stream_follow(api->c.stream, &eq->filter, eq->format, watcher_send,
			watcher_backlog, w, &w->follower) < 0) {
		if (w->alive)
			event_free(w->alive);
		free(w);
		return -ENOMEM;
	}
	if (w->alive)
		event_add(w->alive, &interval);
	evhttp_connection_set_closecb(evhttp_request_get_connection(req), watcher_closed, w);
	return 0;
}

void get_events(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	static const char *const types[] = { "application/x-ndjson", "text/event-stream" };
	_cleanup_(evbuffer_freep) struct evbuffer *kept = evbuffer_new();
	struct events_query eq = { .last = SIZE_MAX };
	struct evkeyvalq *headers = evhttp_request_get_output_headers(req);
	const char *bad = "";

	if (parse_events(query, &eq, &bad) < 0) {
		reply_error(req, 400,
			"query parameter \"%.40s\" is unknown or has a value that is not allowed; "
			"use follow=1, last=N, since_seq=N, since=TIME, type, phase, verdict, pid, subject",
			bad);
		return;
	}
	if (parse_sse(req, &eq) < 0) {
		reply_error(req, 400, "Last-Event-ID is to be the id of an event");
		return;
	}
	if (!kept) {
		evhttp_send_reply(req, 500, NULL, NULL);
		return;
	}
	if (evhttp_request_get_command(req) == EVHTTP_REQ_HEAD)
		eq.follow = false;
	add_kept(api, &eq, kept);
	if (!may_wait(api, req, kept))
		return;
	if (!eq.follow) {
		reply(req, 200, types[eq.format], kept);
		return;
	}
	if (watcher_new(api, req, &eq) < 0) {
		evhttp_send_reply(req, 500, NULL, NULL);
		return;
	}
	/* silence is no failure here */
	evhttp_connection_set_timeout(evhttp_request_get_connection(req), 0);
	evhttp_add_header(headers, "Content-Type", types[eq.format]);
	evhttp_add_header(headers, "Cache-Control", "no-store");
	evhttp_send_reply_start(req, 200, NULL);
	evhttp_send_reply_chunk(req, kept);
}
