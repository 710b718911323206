// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <search.h>
#include <string.h>
#include <sys/queue.h>

#include "drain.h"
#include "util.h"

#define FIRST_SLOTS 64

struct drain {
	struct report r; /* first: its first member is the tree's key */
	TAILQ_ENTRY(drain) link;
	/* Hashes of the connections with late requests, 0: free; a power of two, half used. */
	uint64_t *slots;
	size_t n_slots;
};

TAILQ_HEAD(drain_list, drain);

struct drains {
	void *tree; /* of those running, by subject */
	struct drain_list running;
	struct drain_list finished;
	size_t n_running, n_finished;
};

static int compare(const void *a, const void *b)
{
	const struct pw_subject_key *x = a, *y = b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static struct drain *find_running(const struct drains *d, const struct pw_subject_key *key)
{
	void *node = tfind(key, (void *const *)&d->tree, compare);

	return node ? *(struct drain **)node : NULL;
}

static void drain_free(struct drain *drain)
{
	report_clear(&drain->r);
	free(drain->slots);
	free(drain);
}

int drains_new(struct drains **ret)
{
	struct drains *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	TAILQ_INIT(&d->running);
	TAILQ_INIT(&d->finished);
	*ret = d;
	return 0;
}

static void free_list(struct drain_list *list)
{
	struct drain *drain;

	while ((drain = TAILQ_FIRST(list))) {
		TAILQ_REMOVE(list, drain, link);
		drain_free(drain);
	}
}

static void stays(void *drain)
{
}

void drains_free(struct drains *d)
{
	if (!d)
		return;
	tdestroy(d->tree, stays);
	free_list(&d->running);
	free_list(&d->finished);
	free(d);
}

size_t drains_running(const struct drains *d)
{
	return d->n_running;
}

void drains_for_each(
	const struct drains *d, void (*fn)(const struct report *r, void *arg), void *arg)
{
	const struct drain *drain;

	TAILQ_FOREACH(drain, &d->finished, link)
		fn(&drain->r, arg);
	TAILQ_FOREACH(drain, &d->running, link)
		fn(&drain->r, arg);
}

/* ---- the subject's counters ---- */

/* What was accepted up to the end of the subject's last drain stands in that one's report. */
static uint64_t reported_accepts(const struct drains *d, const struct report *r, uint64_t life)
{
	const struct drain *drain;

	TAILQ_FOREACH_REVERSE(drain, &d->finished, drain_list, link)
		if (compare(&drain->r.key, &r->key) == 0 && drain->r.has_stats &&
			drain->r.last.life == life)
			return drain->r.last.accepts;
	return 0;
}

/* False if these are of another life of the same key. */
static bool take_stats(const struct drains *d, struct report *r, const struct pw_stats *stats)
{
	if (!stats || (r->has_stats && stats->life != r->first.life))
		return false;
	if (!r->has_stats) {
		r->first = *stats;
		r->accepts_before = reported_accepts(d, r, stats->life);
		r->has_stats = true;
	}
	r->last = *stats;
	return true;
}

void drains_stats(struct drains *d, const struct pw_subject_key *key, const struct pw_stats *stats)
{
	struct drain *drain = find_running(d, key);

	if (drain)
		take_stats(d, &drain->r, stats);
}

/* ---- beginning and end ---- */

static struct report_declared declared(const struct event_phase *p)
{
	struct report_declared ret = { .time_ns = p->now.since_ns, .by_pid = p->now.by_pid,
		.by_uid = p->now.by_uid, .phase = p->now.phase, .source = p->now.source,
		.epoch = p->now.epoch };

	if (p->by_comm)
		snprintf(ret.by_comm, sizeof(ret.by_comm), "%s", p->by_comm);
	snprintf(ret.reason, sizeof(ret.reason), "%.*s", PW_REASON_LEN, p->now.reason);
	return ret;
}

static void enter(struct report *r, const struct event_phase *p)
{
	uint64_t drained_ns = p->now.entered_ns[PW_DRAIN - 1];

	if (p->now.phase == PW_DRAIN && !r->drain.time_ns)
		r->drain = declared(p);
	if (p->now.phase != PW_SHUTDOWN || r->shutdown.time_ns)
		return;
	r->shutdown = declared(p);
	if (!r->drain.time_ns && drained_ns) /* nobody was there to see by whom */
		r->drain = (struct report_declared){ .time_ns = drained_ns, .phase = PW_DRAIN,
			.source = PW_SOURCES, .epoch = p->now.epoch };
}

static int begin(struct drains *d, const struct event_phase *p, const char *name,
	const struct pw_stats *stats, uint64_t now_ns)
{
	struct drain *drain = calloc(1, sizeof(*drain));
	struct report *r = &drain->r;

	if (!drain)
		return -ENOMEM;
	r->key = p->key;
	if (!tsearch(drain, &d->tree, compare)) {
		free(drain);
		return -ENOMEM;
	}
	TAILQ_INSERT_TAIL(&d->running, drain, link);
	d->n_running++;
	if (name)
		snprintf(r->name, sizeof(r->name), "%s", name);
	r->start_ns = p->now.start_ns;
	r->realtime_offset_ns = p->realtime_offset_ns;
	r->watched_ns = now_ns;
	enter(r, p);
	take_stats(d, r, stats);
	return 0;
}

/* An exit is told of before its files are closed, which belongs to it. */
static uint64_t last_close_ns(const struct report *r)
{
	uint64_t last = r->exit_ns;

	if (r->has_stats && r->last.last_released_ns > last)
		last = r->last.last_released_ns;
	for (size_t i = 0; i < r->n_ports; i++)
		if (r->ports[i].closed_ns > last)
			last = r->ports[i].closed_ns;
	return last;
}

static const struct report *finish(struct drains *d, struct drain *drain, enum report_end end,
	const struct pw_stats *stats, uint64_t at_ns)
{
	struct report *r = &drain->r;
	struct drain *oldest;

	tdelete(drain, &d->tree, compare);
	TAILQ_REMOVE(&d->running, drain, link);
	d->n_running--;
	free(TAKE_PTR(drain->slots));
	drain->n_slots = 0;
	r->end = end;
	r->last_is_final = take_stats(d, r, stats);
	r->ended_ns = end == REPORT_EXITED && r->exit_ns ? last_close_ns(r) : at_ns;

	TAILQ_INSERT_TAIL(&d->finished, drain, link);
	if (++d->n_finished > DRAINS_KEPT) {
		oldest = TAILQ_FIRST(&d->finished);
		TAILQ_REMOVE(&d->finished, oldest, link);
		d->n_finished--;
		drain_free(oldest);
	}
	return r;
}

int drains_phase(struct drains *d, const struct event_phase *p, const char *name,
	const struct pw_stats *stats, uint64_t now_ns, const struct report **ended)
{
	struct drain *drain = find_running(d, &p->key);
	bool draining = p->now.phase == PW_DRAIN || p->now.phase == PW_SHUTDOWN, same_process;

	*ended = NULL;
	if (drain) {
		struct report *r = &drain->r;

		same_process = pw_same_start(r->start_ns, p->now.start_ns);
		if (draining && same_process && p->now.epoch == report_began(r)->epoch) {
			enter(r, p);
			take_stats(d, r, stats);
			return 0;
		}
		r->next = declared(p);
		*ended = finish(d, drain, same_process ? REPORT_UNDRAINED : REPORT_EXITED,
			same_process ? stats : NULL, p->now.since_ns);
	}
	return draining ? begin(d, p, name, stats, now_ns) : 0;
}

const struct report *drains_end(struct drains *d, const struct pw_subject_key *key,
	enum report_end end, const struct pw_stats *stats, uint64_t now_ns)
{
	struct drain *drain = find_running(d, key);

	return drain ? finish(d, drain, end, stats, now_ns) : NULL;
}

void drains_lost(struct drains *d, uint64_t count, uint64_t now_ns)
{
	struct drain *drain;

	TAILQ_FOREACH(drain, &d->running, link)
		drain->r.lost += count;
	TAILQ_FOREACH(drain, &d->finished, link)
		if (now_ns < drain->r.ended_ns + DRAINS_LATE_NS)
			drain->r.lost += count;
}

/* ---- which drain a record belongs to ---- */

/*
 * Judged in DRAIN or SHUTDOWN, it belongs to the drain that this was declared in: a refusal comes
 * long after the end. Otherwise the time tells; a signal that is what declared the drain came
 * before it.
 */
static bool belongs(const struct report *r, const struct event *e, const struct pw_verdict_on *on)
{
	const struct report_declared *began = report_began(r);
	bool judged = on->phase >= PW_DRAIN && on->since_ns;
	uint64_t at = judged ? on->since_ns : e->time_ns;

	if (on->epoch != began->epoch || (r->end != REPORT_RUNNING && at > r->ended_ns))
		return false;
	return at >= began->time_ns ||
	       (e->type == PW_EV_SIGNAL && began->source == PW_SOURCE_SIGNAL);
}

static struct drain *drain_of(
	const struct drains *d, const struct event *e, const struct pw_verdict_on *on)
{
	struct drain *drain = find_running(d, &on->key);

	if (drain && belongs(&drain->r, e, on))
		return drain;
	TAILQ_FOREACH_REVERSE(drain, &d->finished, drain_list, link)
		if (compare(&drain->r.key, &on->key) == 0 && belongs(&drain->r, e, on))
			return drain;
	return NULL;
}

/* ---- what records tell ---- */

static void record_duration(struct histogram **h, uint64_t from, uint64_t to)
{
	if (!*h)
		*h = calloc(1, sizeof(**h));
	/* clocks are read on different CPUs */
	if (*h && from)
		histogram_record(*h, to > from ? to - from : 0);
}

static void add_to(struct top **t, const void *key, size_t len)
{
	if (!*t)
		*t = calloc(1, sizeof(**t));
	if (*t)
		top_add(*t, key, len);
}

static void blame(struct report *r, const struct pw_conn_record *c)
{
	struct report_client client = { .pid = c->client.pid };

	if (!client.pid) {
		add_to(&r->peers, c->tuple.saddr, sizeof(c->tuple.saddr));
		return;
	}
	memcpy(client.comm, c->client.comm, strnlen(c->client.comm, sizeof(client.comm)));
	add_to(&r->clients, &client, sizeof(client));
}

static void note_arrival(struct report *r, const struct pw_conn_record *c, uint64_t at_ns)
{
	if (c->on.verdict == PW_GRACE && at_ns > r->last_grace_ns)
		r->last_grace_ns = at_ns;
	if (c->on.verdict != PW_MISROUTED)
		return;
	if (!r->first_misrouted_ns || at_ns < r->first_misrouted_ns)
		r->first_misrouted_ns = at_ns;
	if (at_ns > r->last_misrouted_ns)
		r->last_misrouted_ns = at_ns;
	blame(r, c);
}

static void count_accept(struct report *r, const struct pw_conn_record *c)
{
	r->accepts[c->on.verdict]++;
	note_arrival(r, c, c->begin_ns ? c->begin_ns : c->h.time_ns);
	/* at the close it is not known when it was accepted */
	if (c->how != PW_SEEN_RELEASE && c->on.verdict != PW_IGNORED)
		record_duration(&r->queue, c->begin_ns, c->h.time_ns);
}

static void count_connect(struct report *r, const struct pw_conn_record *c)
{
	r->connects[c->on.verdict]++;
	if (c->on.verdict == PW_IGNORED)
		return;
	if (c->how == PW_ESTABLISHED)
		record_duration(&r->connect, c->begin_ns, c->h.time_ns);
	else
		r->connects_failed++;
}

/* A tuple is used again when its connection is gone: the handshake's time tells these apart. */
static uint64_t connection_hash(const struct pw_conn_record *c)
{
	uint64_t words[sizeof(c->tuple) / 8 + 1], hash = 0;

	memcpy(words, &c->tuple, sizeof(c->tuple));
	words[sizeof(c->tuple) / 8] = c->begin_ns;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) { /* splitmix64 */
		hash += words[i] + 0x9e3779b97f4a7c15;
		hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9;
		hash = (hash ^ hash >> 27) * 0x94d049bb133111eb;
		hash ^= hash >> 31;
	}
	return hash ? hash : 1;
}

static uint64_t *slot_of(uint64_t *slots, size_t n, uint64_t hash)
{
	size_t i = hash & (n - 1);

	while (slots[i] && slots[i] != hash)
		i = (i + 1) & (n - 1);
	return &slots[i];
}

static bool make_room(struct drain *drain)
{
	size_t n = drain->n_slots ? 2 * drain->n_slots : FIRST_SLOTS;
	uint64_t *slots;

	if (2 * drain->r.request_connections < drain->n_slots)
		return true;
	if (n > 2 * DRAINS_CONNECTIONS)
		return false;
	slots = calloc(n, sizeof(*slots));
	if (!slots)
		return false;
	for (size_t i = 0; i < drain->n_slots; i++)
		if (drain->slots[i])
			*slot_of(slots, n, drain->slots[i]) = drain->slots[i];
	free(drain->slots);
	drain->slots = slots;
	drain->n_slots = n;
	return true;
}

/* After the end it is not known any more which connections were counted. */
static void count_connection(struct drain *drain, const struct pw_conn_record *c)
{
	struct report *r = &drain->r;
	uint64_t hash = connection_hash(c), *slot;

	if (r->request_connections_unknown)
		return;
	if (r->end != REPORT_RUNNING || !make_room(drain)) {
		r->request_connections_unknown = true;
		return;
	}
	slot = slot_of(drain->slots, drain->n_slots, hash);
	r->request_connections += *slot == 0;
	*slot = hash;
}

static void count_request(struct drain *drain, const struct pw_conn_record *c)
{
	drain->r.requests[c->on.verdict]++;
	note_arrival(&drain->r, c, c->h.time_ns);
	if (c->on.verdict != PW_MISROUTED)
		return;
	drain->r.requests_too_late += c->how != 0;
	count_connection(drain, c);
}

static void count_refused(struct report *r, const struct pw_conn_record *c)
{
	if (c->on.verdict == PW_IGNORED) {
		r->ignored++;
		return;
	}
	r->refused++;
	if (c->begin_ns && c->h.time_ns > c->begin_ns + r->refused_after_ns)
		r->refused_after_ns = c->h.time_ns - c->begin_ns;
	blame(r, c);
}

static struct report_port *port_of(struct report *r, uint16_t port)
{
	for (size_t i = 0; i < r->n_ports; i++)
		if (r->ports[i].port == port)
			return &r->ports[i];
	if (r->n_ports == REPORT_PORTS) {
		r->ports[REPORT_PORTS - 1].port = 0;
		return &r->ports[REPORT_PORTS - 1];
	}
	r->ports[r->n_ports].port = port;
	return &r->ports[r->n_ports++];
}

static void count_drop(struct report *r, const struct pw_conn_record *c)
{
	if (c->on.verdict == PW_IGNORED) {
		r->ignored++;
		return;
	}
	r->dropped++;
	port_of(r, c->tuple.dport)->dropped++;
}

static void note_closed(struct report *r, const struct pw_conn_record *c)
{
	struct report_port *port = port_of(r, c->tuple.dport);

	port->closed++;
	r->half_open += c->how;
	if (c->h.time_ns > port->closed_ns)
		port->closed_ns = c->h.time_ns;
}

static void count_abandoned(struct report *r, const struct pw_abandon_record *a)
{
	if (a->on.verdict == PW_IGNORED) {
		r->ignored++;
		return;
	}
	r->abandoned[a->how]++;
	r->abandoned_busy += a->busy != 0;
}

static void note_signal(struct report *r, const struct pw_signal_record *s)
{
	struct report_signal *signal;

	for (size_t i = 0; i < r->n_signals; i++)
		if (r->signals[i].signal == s->signal)
			return;
	if (r->n_signals == REPORT_SIGNALS)
		return;
	signal = &r->signals[r->n_signals++];
	signal->time_ns = s->h.time_ns;
	signal->signal = s->signal;
	signal->pid = s->sender.pid;
	memcpy(signal->comm, s->sender.comm, strnlen(s->sender.comm, sizeof(signal->comm)));
}

static void note_exit(struct report *r, const struct pw_exit_record *e)
{
	if (e->h.time_ns < r->exit_ns)
		return;
	r->exit_ns = e->h.time_ns;
	r->exit_status = e->status;
}

static bool is_judged_by_phase(enum pw_event_type type)
{
	return type == PW_EV_ACCEPT || type == PW_EV_CONNECT || type == PW_EV_REQUEST;
}

void drains_event(struct drains *d, const struct event *e)
{
	const struct pw_verdict_on *on = event_verdict_on(e);
	struct drain *drain;

	if (!on || (is_judged_by_phase(e->type) && on->phase < PW_DRAIN))
		return;
	drain = drain_of(d, e, on);
	if (!drain)
		return;
	switch (e->type) {
	case PW_EV_ACCEPT:
		return count_accept(&drain->r, &e->conn);
	case PW_EV_CONNECT:
		return count_connect(&drain->r, &e->conn);
	case PW_EV_REQUEST:
		return count_request(drain, &e->conn);
	case PW_EV_REFUSED:
		return count_refused(&drain->r, &e->conn);
	case PW_EV_DROP:
		return count_drop(&drain->r, &e->conn);
	case PW_EV_UNLISTEN:
		return note_closed(&drain->r, &e->conn);
	case PW_EV_ABANDON:
		return count_abandoned(&drain->r, &e->abandon);
	case PW_EV_SIGNAL:
		return note_signal(&drain->r, &e->signal);
	case PW_EV_EXIT:
		return note_exit(&drain->r, &e->exit);
	default:
		return;
	}
}
