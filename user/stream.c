// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>
#include <sys/queue.h>

#include "stream.h"
#include "util.h"

/* What filters look at. */
struct gist {
	uint64_t seq;
	uint8_t type;
	uint8_t phase;
	uint8_t verdict;
	pid_t pid;
	pid_t subject;
};

struct kept {
	struct gist gist;
	char *line;
	size_t len;
};

struct follower {
	LIST_ENTRY(follower) entry;
	struct stream_filter filter;
	struct evbuffer *queue;
	uint64_t queued[PW_EV_TYPES]; /* sequence numbers by type, since the last flush */
	struct event_lost missed;
	uint64_t missed_seq; /* of the first one */
	follower_send_fn send;
	follower_backlog_fn backlog;
	void *arg;
};

struct stream {
	struct kept recent[STREAM_RECENT];
	size_t next;
	struct json_out line;
	struct event_names names; /* node and clock of the last event, for `lost` events */
	uint64_t last_time_ns;
	uint64_t missed[PW_EV_TYPES]; /* by all of them */
	LIST_HEAD(, follower) followers;
	size_t n_followers;
};

int stream_new(struct stream **ret)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	LIST_INIT(&s->followers);
	*ret = s;
	return 0;
}

void stream_free(struct stream *s)
{
	if (!s)
		return;
	while (!LIST_EMPTY(&s->followers))
		stream_unfollow(s, LIST_FIRST(&s->followers));
	for (size_t i = 0; i < STREAM_RECENT; i++)
		free(s->recent[i].line);
	json_free(&s->line);
	free(s);
}

static bool has_pid(const struct stream_filter *f, pid_t pid)
{
	for (size_t i = 0; i < f->n_pids; i++)
		if (f->pids[i] == pid)
			return true;
	return false;
}

static bool passes(const struct stream_filter *f, const struct gist *g)
{
	if (g->type == PW_EV_LOST)
		return true;
	return (!f->types || f->types >> g->type & 1) && (!f->phases || f->phases >> g->phase & 1) &&
	       (!f->verdicts || f->verdicts >> g->verdict & 1) &&
	       (!f->n_pids || has_pid(f, g->pid) || has_pid(f, g->subject));
}

static bool has_verdict(const struct event *e)
{
	return e->type == PW_EV_ACCEPT || e->type == PW_EV_CONNECT || e->type == PW_EV_REQUEST;
}

static struct gist gist_of(const struct event *e)
{
	const struct pw_verdict_on *on = event_verdict_on(e);
	const struct pw_process *p = event_process(e);
	struct gist g = { .seq = e->seq, .type = e->type };

	if (on) {
		g.phase = on->phase;
		g.verdict = has_verdict(e) ? on->verdict : PW_OK;
		g.subject = on->key.kind == PW_KIND_PROCESS ? on->key.id : 0;
	}
	if (e->type == PW_EV_PHASE) {
		g.phase = e->phase.now.phase;
		g.subject = e->phase.key.kind == PW_KIND_PROCESS ? e->phase.key.id : 0;
	}
	if (e->type == PW_EV_DRAIN) {
		g.phase = e->drain.phase;
		g.subject = e->drain.key.kind == PW_KIND_PROCESS ? e->drain.key.id : 0;
	}
	if (e->type == PW_EV_VIOLATION) {
		g.phase = e->violation.now.phase;
		g.subject = e->violation.key.kind == PW_KIND_PROCESS ? e->violation.key.id : 0;
	}
	if (p)
		g.pid = p->pid;
	return g;
}

/* In sequence numbers: a lost event stands for many. */
static void count_queued(struct follower *f, const struct event *e)
{
	if (e->type != PW_EV_LOST)
		f->queued[e->type]++;
	else
		for (size_t t = 0; t < PW_EV_TYPES; t++)
			f->queued[t] += e->lost.by_type[t];
}

int stream_publish(struct stream *s, const struct event *e, const struct event_names *names)
{
	struct kept *k = &s->recent[s->next % STREAM_RECENT];
	struct gist gist = gist_of(e);
	struct follower *f;
	char *line;

	json_reset(&s->line);
	event_write(&s->line, e, names);
	if (s->line.failed)
		return -ENOMEM;
	s->names = (struct event_names){ .node = names->node,
		.realtime_offset_ns = names->realtime_offset_ns };
	s->last_time_ns = e->time_ns;

	LIST_FOREACH (f, &s->followers, entry)
		if (passes(&f->filter, &gist)) {
			if (evbuffer_get_length(f->queue) == 0 && !f->missed.count)
				f->missed_seq = gist.seq;
			evbuffer_add(f->queue, s->line.text, s->line.len);
			count_queued(f, e);
		}

	line = realloc(k->line, s->line.len);
	if (!line)
		return -ENOMEM;
	memcpy(line, s->line.text, s->line.len);
	*k = (struct kept){ gist, line, s->line.len };
	s->next++;
	return 0;
}

static void miss(struct stream *s, struct follower *f)
{
	for (size_t t = 0; t < PW_EV_TYPES; t++) {
		s->missed[t] += f->queued[t];
		f->missed.by_type[t] += f->queued[t];
		f->missed.count += f->queued[t];
	}
	evbuffer_drain(f->queue, evbuffer_get_length(f->queue));
}

static void tell_missed(struct stream *s, struct follower *f)
{
	struct event e = { .type = PW_EV_LOST, .seq = f->missed_seq, .time_ns = s->last_time_ns,
		.lost = f->missed };

	e.lost.stage = "subscriber";
	json_reset(&s->line);
	event_write(&s->line, &e, &s->names);
	evbuffer_prepend(f->queue, s->line.text, s->line.len);
	f->missed = (struct event_lost){ 0 };
}

void stream_flush(struct stream *s)
{
	size_t max = STREAM_BACKLOG;
	struct follower *f;

	if (s->n_followers > STREAM_BACKLOGS / STREAM_BACKLOG)
		max = STREAM_BACKLOGS / s->n_followers;
	LIST_FOREACH (f, &s->followers, entry) {
		if (f->backlog(f->arg) > max) {
			miss(s, f);
		} else if (evbuffer_get_length(f->queue) || f->missed.count) {
			if (f->missed.count)
				tell_missed(s, f);
			f->send(f->queue, f->arg);
		}
		memset(f->queued, 0, sizeof(f->queued));
	}
}

const uint64_t *stream_missed(const struct stream *s)
{
	return s->missed;
}

void stream_recent(
	const struct stream *s, const struct stream_filter *f, size_t n, struct evbuffer *out)
{
	size_t oldest = s->next > STREAM_RECENT ? s->next - STREAM_RECENT : 0, first = s->next;
	const struct kept *k;

	while (first > oldest && n)
		if (passes(f, &s->recent[--first % STREAM_RECENT].gist))
			n--;
	for (; first < s->next; first++) {
		k = &s->recent[first % STREAM_RECENT];
		if (passes(f, &k->gist))
			evbuffer_add(out, k->line, k->len);
	}
}

int stream_follow(struct stream *s, const struct stream_filter *filter, follower_send_fn send,
	follower_backlog_fn backlog, void *arg, struct follower **ret)
{
	struct follower *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->filter = *filter;
	f->send = send;
	f->backlog = backlog;
	f->arg = arg;
	f->queue = evbuffer_new();
	if (!f->queue) {
		free(f);
		return -ENOMEM;
	}
	LIST_INSERT_HEAD(&s->followers, f, entry);
	s->n_followers++;
	*ret = f;
	return 0;
}

void stream_unfollow(struct stream *s, struct follower *f)
{
	LIST_REMOVE(f, entry);
	s->n_followers--;
	evbuffer_free(f->queue);
	free(f);
}
