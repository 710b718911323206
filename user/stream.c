// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/queue.h>

#include "clock.h"
#include "names.h"
#include "stream.h"
#include "util.h"

struct kept {
	uint64_t first, last; /* sequence numbers: of a lost event, which stands for several */
	struct event_gist gist;
	char *line; /* and the subject's name behind it */
	size_t len;
};

struct follower {
	LIST_ENTRY(follower) entry;
	struct filter filter;
	enum stream_format format;
	struct evbuffer *queue;
	uint64_t queued[PW_EV_TYPES]; /* sequence numbers by type, since the last flush */
	struct event_lost missed;
	uint64_t missed_seq, missed_last, queued_last; /* of those missed; of the last queued */
	enum stream_stage stage;
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
	uint64_t missed[STREAM_STAGES][PW_EV_TYPES]; /* by all of them */
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

static bool has_verdict(const struct event *e)
{
	return e->type == PW_EV_ACCEPT || e->type == PW_EV_CONNECT || e->type == PW_EV_REQUEST;
}

static void set_subject(struct event_gist *g, const struct pw_subject_key *key)
{
	g->subject_id = key->id;
	g->subject = key->kind == PW_KIND_PROCESS ? key->id : 0;
}

static struct event_gist gist_of(const struct event *e, const struct event_names *names)
{
	const struct pw_verdict_on *on = event_verdict_on(e);
	const struct pw_process *p = event_process(e);
	struct event_gist g = { .type = e->type, .subject_name = names->subject,
		.time_ns = e->time_ns + names->realtime_offset_ns };

	if (on) {
		g.phase = on->phase;
		g.verdict = has_verdict(e) ? on->verdict : PW_OK;
		set_subject(&g, &on->key);
	}
	if (e->type == PW_EV_PHASE) {
		g.phase = e->phase.now.phase;
		set_subject(&g, &e->phase.key);
	}
	if (e->type == PW_EV_DRAIN) {
		g.phase = e->drain.phase;
		set_subject(&g, &e->drain.key);
	}
	if (e->type == PW_EV_VIOLATION) {
		g.phase = e->violation.now.phase;
		set_subject(&g, &e->violation.key);
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

static uint64_t last_seq(const struct event *e)
{
	return e->type == PW_EV_LOST && e->lost.count ? e->seq + e->lost.count - 1 : e->seq;
}

static void add_event(struct evbuffer *out, enum stream_format format, uint64_t id, unsigned int type,
	const char *line, size_t len)
{
	if (format == STREAM_SSE)
		evbuffer_add_printf(out, "id: %" PRIu64 "\nevent: %s\ndata: ", id,
			event_type_name(type));
	evbuffer_add(out, line, len);
	if (format == STREAM_SSE)
		evbuffer_add(out, "\n", 1);
}

int stream_publish(struct stream *s, const struct event *e, const struct event_names *names)
{
	struct kept *k = &s->recent[s->next % STREAM_RECENT];
	struct event_gist gist = gist_of(e, names);
	size_t name_len = names->subject ? strlen(names->subject) + 1 : 0;
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
		if (filter_passes(&f->filter, &gist)) {
			if (evbuffer_get_length(f->queue) == 0 && !f->missed.count)
				f->missed_seq = e->seq;
			add_event(f->queue, f->format, last_seq(e), e->type, s->line.text,
				s->line.len);
			count_queued(f, e);
			f->queued_last = last_seq(e);
		}

	line = realloc(k->line, s->line.len + name_len);
	if (!line)
		return -ENOMEM;
	memcpy(line, s->line.text, s->line.len);
	if (name_len)
		gist.subject_name = memcpy(line + s->line.len, names->subject, name_len);
	*k = (struct kept){ e->seq, last_seq(e), gist, line, s->line.len };
	s->next++;
	return 0;
}

static void miss(struct stream *s, struct follower *f)
{
	for (size_t t = 0; t < PW_EV_TYPES; t++) {
		s->missed[f->stage][t] += f->queued[t];
		f->missed.by_type[t] += f->queued[t];
		f->missed.count += f->queued[t];
	}
	if (evbuffer_get_length(f->queue))
		f->missed_last = f->queued_last;
	evbuffer_drain(f->queue, evbuffer_get_length(f->queue));
}

/* Before what is queued. */
static void tell_missed(struct stream *s, struct follower *f)
{
	struct event e = { .type = PW_EV_LOST, .seq = f->missed_seq, .time_ns = s->last_time_ns,
		.lost = f->missed };
	struct evbuffer *told = evbuffer_new();

	if (!told)
		return;
	e.lost.stage = f->stage == STREAM_EXPORT ? "export" : "subscriber";
	json_reset(&s->line);
	event_write(&s->line, &e, &s->names);
	add_event(told, f->format, f->missed_last, PW_EV_LOST, s->line.text, s->line.len);
	evbuffer_prepend_buffer(f->queue, told);
	evbuffer_free(told);
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

const uint64_t *stream_missed(const struct stream *s, enum stream_stage stage)
{
	return s->missed[stage];
}

static size_t oldest(const struct stream *s)
{
	return s->next > STREAM_RECENT ? s->next - STREAM_RECENT : 0;
}

static const struct kept *nth(const struct stream *s, size_t i)
{
	return &s->recent[i % STREAM_RECENT];
}

/* The last `n` that pass, of those from `from` on. */
static void add_recent(const struct stream *s, const struct filter *f, enum stream_format format,
	size_t from, size_t n, struct evbuffer *out)
{
	size_t first = s->next;
	const struct kept *k;

	while (first > from && n)
		if (filter_passes(f, &nth(s, --first)->gist))
			n--;
	for (; first < s->next; first++) {
		k = nth(s, first);
		if (filter_passes(f, &k->gist))
			add_event(out, format, k->last, k->gist.type, k->line, k->len);
	}
}

void stream_recent(const struct stream *s, const struct filter *f, enum stream_format format,
	size_t n, struct evbuffer *out)
{
	add_recent(s, f, format, oldest(s), n, out);
}

void stream_resume(struct stream *s, const struct filter *f, enum stream_format format, uint64_t after,
	uint64_t next, const char *node, size_t n, struct evbuffer *out)
{
	struct event_names names = { .node = node,
		.realtime_offset_ns = clock_ns(CLOCK_REALTIME) - clock_boot_ns() };
	uint64_t from = after < next ? after + 1 : 0; /* the first that is new */
	struct event e = { .type = PW_EV_LOST, .seq = from, .time_ns = clock_boot_ns(),
		.lost = { .stage = "history" } };
	size_t i = oldest(s);
	uint64_t kept;

	while (i < s->next && nth(s, i)->last < from)
		i++;
	kept = i < s->next ? nth(s, i)->first : next;
	if (kept > from) {
		e.lost.count = kept - from;
		json_reset(&s->line);
		event_write(&s->line, &e, &names);
		add_event(out, format, last_seq(&e), e.type, s->line.text, s->line.len);
	}
	add_recent(s, f, format, i, n, out);
}

int stream_follow(struct stream *s, const struct filter *filter, enum stream_format format,
	follower_send_fn send, follower_backlog_fn backlog, void *arg, struct follower **ret)
{
	struct follower *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->filter = *filter;
	f->format = format;
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

void follower_exports(struct follower *f)
{
	f->stage = STREAM_EXPORT;
}

void stream_unfollow(struct stream *s, struct follower *f)
{
	LIST_REMOVE(f, entry);
	s->n_followers--;
	evbuffer_free(f->queue);
	free(f);
}
