// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <arpa/inet.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "compact.h"
#include "names.h"
#include "opts.h"
#include "report.h"
#include "text.h"
#include "util.h"

/* A daemon that learns of a drain this late missed a part of it: it looks every second. */
#define WATCHED_LATE_NS (2 * NS_PER_S)
#define WRITTEN_ENTRIES 16
#define PRINTED_ENTRIES 8

void report_clear(struct report *r)
{
	free(TAKE_PTR(r->queue));
	free(TAKE_PTR(r->connect));
	free(TAKE_PTR(r->clients));
	free(TAKE_PTR(r->peers));
}

/* ---- what is known, put together ---- */

static uint64_t since(const struct report *r, uint64_t at_ns)
{
	uint64_t began_ns = report_began(r)->time_ns;

	return at_ns > began_ns ? at_ns - began_ns : 0;
}

/* Where records were lost the kernel's counters know better. */
static uint64_t at_least(const struct report *r, uint64_t seen, uint64_t first, uint64_t last)
{
	return r->lost && r->has_stats && last > first && last - first > seen ? last - first : seen;
}

static uint64_t misrouted_accepts(const struct report *r)
{
	return at_least(r, r->accepts[PW_MISROUTED], r->first.accepts_misrouted,
		r->last.accepts_misrouted);
}

static uint64_t misrouted_requests(const struct report *r)
{
	return at_least(r, r->requests[PW_MISROUTED], r->first.requests_misrouted,
		r->last.requests_misrouted);
}

static uint64_t misrouted_connects(const struct report *r)
{
	return at_least(r, r->connects[PW_MISROUTED], r->first.connects_misrouted,
		r->last.connects_misrouted);
}

/* The kernel's is ahead of the records, but goes on after the end. */
static uint64_t last_misrouted(const struct report *r)
{
	uint64_t kernel_ns = r->last.last_misrouted_ns;
	bool in_drain = kernel_ns >= report_began(r)->time_ns &&
			(r->end == REPORT_RUNNING || kernel_ns <= r->ended_ns);

	return r->has_stats && in_drain && kernel_ns > r->last_misrouted_ns ? kernel_ns :
									      r->last_misrouted_ns;
}

uint64_t report_settle_ns(const struct report *r)
{
	return last_misrouted(r) ? since(r, last_misrouted(r)) : 0;
}

static uint64_t not_negative(int64_t n)
{
	return n > 0 ? n : 0;
}

static uint64_t abandoned(const struct report *r)
{
	return r->abandoned[PW_FIN] + r->abandoned[PW_RST];
}

/* ---- timeline ---- */

#define TIMELINE_MAX (8 + REPORT_SIGNALS + REPORT_PORTS)

struct moment {
	uint64_t at_ns;
	char what[32];
	char detail[160]; /* "": none */
};

struct timeline {
	size_t n;
	struct moment moments[TIMELINE_MAX];
};

/* In the order of time; of two at the same time the one that was added first. */
static struct moment *add_moment(struct timeline *t, uint64_t at_ns, const char *what)
{
	size_t i = t->n++;

	for (; i && t->moments[i - 1].at_ns > at_ns; i--)
		t->moments[i] = t->moments[i - 1];
	t->moments[i] = (struct moment){ .at_ns = at_ns };
	snprintf(t->moments[i].what, sizeof(t->moments[i].what), "%s", what);
	return &t->moments[i];
}

static void __attribute__((format(printf, 2, 3))) detail(struct moment *m, const char *fmt, ...)
{
	size_t len = strlen(m->detail);
	va_list args;

	va_start(args, fmt);
	vsnprintf(m->detail + len, sizeof(m->detail) - len, fmt, args);
	va_end(args);
}

static void detail_settled(struct moment *m, uint64_t settle_ns)
{
	FILE *out = fmemopen(m->detail, sizeof(m->detail), "w");

	if (!out)
		return;
	fputs("settle time ", out);
	put_duration(out, settle_ns);
	fclose(out);
}

static void add_declared(struct timeline *t, const struct report_declared *d)
{
	struct moment *m;
	char what[32];

	if (!d->time_ns)
		return;
	snprintf(what, sizeof(what), "%s declared", phase_name(d->phase));
	m = add_moment(t, d->time_ns, what);
	if (d->by_pid)
		detail(m, "by %.*s[%" PRIu32 "] uid %" PRIu32, PW_COMM_LEN, d->by_comm, d->by_pid,
			d->by_uid);
	else if (source_name(d->source))
		detail(m, "source %s", source_name(d->source));
	if (d->reason[0])
		detail(m, "%s\"%.*s\"", m->detail[0] ? ", " : "", PW_REASON_LEN, d->reason);
}

static void put_signal(char *out, size_t size, uint32_t signal)
{
	const char *name = sigabbrev_np(signal);

	if (name)
		snprintf(out, size, "SIG%s", name);
	else
		snprintf(out, size, "signal %" PRIu32, signal);
}

static void add_signals(struct timeline *t, const struct report *r)
{
	for (size_t i = 0; i < r->n_signals; i++) {
		const struct report_signal *s = &r->signals[i];
		struct moment *m;
		char what[32];

		put_signal(what, sizeof(what), s->signal);
		m = add_moment(t, s->time_ns, what);
		if (s->pid)
			detail(m, "from %.*s[%" PRIu32 "]", PW_COMM_LEN, s->comm, s->pid);
	}
}

static void add_closed(struct timeline *t, const struct report *r)
{
	for (size_t i = 0; i < r->n_ports; i++) {
		const struct report_port *p = &r->ports[i];
		struct moment *m;

		if (!p->closed)
			continue;
		m = add_moment(t, p->closed_ns, "listener closed");
		if (p->port)
			detail(m, "port %u", p->port);
		else
			detail(m, "other ports");
		if (p->closed > 1)
			detail(m, ", the last of %" PRIu64, p->closed);
		if (p->dropped)
			detail(m, ", %" PRIu64 " in the backlog dropped", p->dropped);
	}
}

static void add_end(struct timeline *t, const struct report *r)
{
	struct moment *m;
	char name[32];

	switch (r->end) {
	case REPORT_RUNNING:
		return;
	case REPORT_UNDRAINED:
		add_declared(t, &r->next);
		return;
	case REPORT_RELEASED:
		add_moment(t, r->ended_ns, "declaration gone");
		return;
	case REPORT_EXITED:
		m = add_moment(t, r->ended_ns, "last process gone");
		if (!r->exit_ns)
			return;
		if (!WIFSIGNALED(r->exit_status)) {
			detail(m, "exit %d", WEXITSTATUS(r->exit_status));
			return;
		}
		put_signal(name, sizeof(name), WTERMSIG(r->exit_status));
		detail(m, "killed by %s", name);
	}
}

static void make_timeline(struct timeline *t, const struct report *r)
{
	uint64_t released_ns = r->last.last_released_ns, last_ns = last_misrouted(r);
	bool all_closed = r->has_stats && (r->last.inflight <= 0 || r->end == REPORT_EXITED);

	t->n = 0;
	add_declared(t, &r->drain);
	add_declared(t, &r->shutdown);
	if (r->last_grace_ns)
		detail(add_moment(t, r->last_grace_ns, "last expected"), "in the grace time");
	if (r->first_misrouted_ns)
		add_moment(t, r->first_misrouted_ns, "first misrouted");
	if (last_ns)
		detail_settled(add_moment(t, last_ns, "last misrouted"), since(r, last_ns));
	add_signals(t, r);
	add_closed(t, r);
	if (all_closed && released_ns >= report_began(r)->time_ns)
		add_moment(t, released_ns, "last connection closed");
	add_end(t, r);
}

static void write_timeline(struct json_out *j, const struct report *r)
{
	struct timeline t;

	make_timeline(&t, r);
	json_open(j, "timeline", '[');
	for (size_t i = 0; i < t.n; i++) {
		json_open(j, NULL, '{');
		json_u64(j, "at_ns", since(r, t.moments[i].at_ns));
		json_str(j, "what", t.moments[i].what);
		if (t.moments[i].detail[0])
			json_str(j, "detail", t.moments[i].detail);
		json_close(j, '}');
	}
	json_close(j, ']');
}

/* ---- JSON ---- */

static void write_subject(struct json_out *j, const struct report *r)
{
	const struct report_declared *last = r->shutdown.time_ns ? &r->shutdown : &r->drain;

	event_write_subject(j, &r->key, last->epoch, last->source, r->name[0] ? r->name : NULL);
}

static void write_declared(struct json_out *j, const struct report *r)
{
	const struct report_declared *began = report_began(r);

	json_time(j, "declared", began->time_ns + r->realtime_offset_ns);
	if (began->reason[0])
		json_str(j, "reason", began->reason);
	if (!began->by_pid)
		return;
	json_open(j, "by", '{');
	json_u64(j, "pid", began->by_pid);
	json_u64(j, "uid", began->by_uid);
	if (began->by_comm[0])
		json_str(j, "comm", began->by_comm);
	json_close(j, '}');
}

static void write_verdicts(struct json_out *j, uint64_t misrouted, const uint64_t n[PW_VERDICTS])
{
	json_u64(j, "misrouted", misrouted);
	json_u64(j, "grace", n[PW_GRACE]);
	json_u64(j, "ignored", n[PW_IGNORED]);
}

/* All that its report has, whether or not the counters were read after the last one. */
static uint64_t total(uint64_t counted, uint64_t misrouted, const uint64_t n[PW_VERDICTS])
{
	uint64_t seen = misrouted + n[PW_GRACE] + n[PW_IGNORED];

	return counted > seen ? counted : seen;
}

static void write_arrivals(struct json_out *j, const struct report *r)
{
	uint64_t misrouted = misrouted_accepts(r);

	json_open(j, "arrivals", '{');
	if (r->has_stats)
		json_u64(j, "accepts",
			total(r->last.accepts - r->accepts_before, misrouted, r->accepts));
	write_verdicts(j, misrouted, r->accepts);
	json_close(j, '}');
}

static void write_requests(struct json_out *j, const struct report *r)
{
	uint64_t misrouted = misrouted_requests(r);

	json_open(j, "requests", '{');
	write_verdicts(j, misrouted, r->requests);
	json_u64(j, "too_late", r->requests_too_late);
	if (!r->request_connections_unknown)
		json_u64(j, "connections", r->request_connections);
	if (r->has_stats)
		json_u64(j, "total",
			total(r->last.requests - r->first.requests, misrouted, r->requests));
	json_close(j, '}');
}

static uint64_t held(const struct pw_stats *stats)
{
	return not_negative(stats->inflight + stats->unseen);
}

static void write_held(struct json_out *j, const char *key, const char *tcp_key,
	const struct pw_stats *stats)
{
	json_u64(j, key, held(stats));
	if (stats->look)
		json_u64(j, tcp_key, stats->open);
}

/*
 * At the end: those that their last owner's exit cut off, and those that somebody else holds; of TCP
 * also what its listeners took with them.
 */
static void write_inflight(struct json_out *j, const struct report *r)
{
	uint64_t end = not_negative(r->last.inflight) +
		       (r->end == REPORT_EXITED ? abandoned(r) : 0);

	if (!r->has_stats)
		return;
	json_open(j, "inflight", '{');
	write_held(j, "start", "start_tcp", &r->first);
	if (r->end == REPORT_RUNNING) {
		write_held(j, "now", "now_tcp", &r->last);
	} else if (r->last_is_final) {
		json_u64(j, "end", end);
		json_u64(j, "end_tcp", end + r->dropped);
	}
	json_close(j, '}');
}

static void write_costs(struct json_out *j, const struct report *r)
{
	json_open(j, "abandoned", '{');
	json_u64(j, "total", abandoned(r));
	json_u64(j, "busy", r->abandoned_busy);
	json_u64(j, "fin", r->abandoned[PW_FIN]);
	json_u64(j, "rst", r->abandoned[PW_RST]);
	json_close(j, '}');
	json_u64(j, "backlog_dropped", r->dropped);
	json_u64(j, "half_open", r->half_open);
	json_open(j, "refused", '{');
	json_u64(j, "count", r->refused);
	if (r->refused)
		json_u64(j, "last_after_ns", r->refused_after_ns);
	json_close(j, '}');
	if (r->ignored)
		json_u64(j, "ignored", r->ignored);
}

static void write_connects(struct json_out *j, const struct report *r)
{
	json_open(j, "connects", '{');
	write_verdicts(j, misrouted_connects(r), r->connects);
	json_u64(j, "failed", r->connects_failed);
	json_close(j, '}');
}

static void write_quantiles(struct json_out *j, const char *key, const struct histogram *h)
{
	if (!h || !h->count)
		return;
	json_open(j, key, '{');
	json_u64(j, "p50_ns", histogram_quantile(h, 0.5));
	json_u64(j, "p99_ns", histogram_quantile(h, 0.99));
	json_u64(j, "max_ns", h->max);
	json_close(j, '}');
}

static void write_client(struct json_out *j, const uint8_t key[TOP_KEY_LEN])
{
	struct report_client client;

	memcpy(&client, key, sizeof(client));
	json_strn(j, "comm", client.comm, strnlen(client.comm, sizeof(client.comm)));
	json_u64(j, "pid", client.pid);
}

static void write_peer(struct json_out *j, const uint8_t key[TOP_KEY_LEN])
{
	static const uint8_t v4_mapped[12] = { [10] = 0xff, [11] = 0xff };
	char text[INET6_ADDRSTRLEN];
	bool v4 = memcmp(key, v4_mapped, sizeof(v4_mapped)) == 0;

	inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? key + 12 : key, text, sizeof(text));
	json_str(j, "addr", text);
}

static void write_top(struct json_out *j, const char *key, const char *others_key,
	const struct top *t, void (*write_key)(struct json_out *j, const uint8_t key[TOP_KEY_LEN]))
{
	const struct top_entry *sorted[TOP_ENTRIES];
	size_t n = t ? top_sorted(t, sorted) : 0;
	uint64_t others = t ? t->total : 0;

	if (!n)
		return;
	json_open(j, key, '[');
	for (size_t i = 0; i < n && i < WRITTEN_ENTRIES && top_count(sorted[i]); i++) {
		json_open(j, NULL, '{');
		write_key(j, sorted[i]->key);
		json_u64(j, "count", top_count(sorted[i]));
		json_close(j, '}');
		others -= top_count(sorted[i]);
	}
	json_close(j, ']');
	if (others)
		json_u64(j, others_key, others);
}

static const char *const ends[] = {
	[REPORT_EXITED] = "exited",
	[REPORT_UNDRAINED] = "undrained",
	[REPORT_RELEASED] = "released",
};

void report_write(
	struct json_out *j, const char *key, const struct report *r, uint64_t now_ns)
{
	bool running = r->end == REPORT_RUNNING;

	json_open(j, key, '{');
	write_subject(j, r);
	json_bool(j, "running", running);
	write_declared(j, r);
	if (r->has_stats && r->first.members > 0)
		json_i64(j, "processes", r->first.members);
	json_u64(j, "duration_ns", since(r, running ? now_ns : r->ended_ns));
	json_str(j, "end", ends[r->end]);
	if (since(r, r->watched_ns) > WATCHED_LATE_NS)
		json_u64(j, "watched_from_ns", since(r, r->watched_ns));
	if (last_misrouted(r))
		json_u64(j, "settle_ns", since(r, last_misrouted(r)));
	write_timeline(j, r);
	write_arrivals(j, r);
	write_requests(j, r);
	write_inflight(j, r);
	write_costs(j, r);
	write_connects(j, r);
	write_quantiles(j, "queue", r->queue);
	write_quantiles(j, "connect", r->connect);
	write_top(j, "clients", "clients_other", r->clients, write_client);
	write_top(j, "peers", "peers_other", r->peers, write_peer);
	if (r->lost)
		json_u64(j, "lost", r->lost);
	json_close(j, '}');
}

/* ---- for people ---- */

typedef void (*put_fn)(FILE *out, const json_t *json);

static const char *get_string(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text && *text ? text : NULL;
}

static uint64_t number(const json_t *object, const char *key)
{
	uint64_t n;

	return get_u64(object, key, &n) ? n : 0;
}

static void put_string(FILE *out, const char *text)
{
	put_text(out, text, strlen(text));
}

bool report_is_of(const json_t *report, const char *subject)
{
	const json_t *of = json_object_get(report, "subject");
	const char *name = get_string(of, "name");
	char id[24] = "", both[SUBJECT_NAME_LEN + sizeof(id) + 2];
	uint64_t n;

	if (get_u64(of, "id", &n))
		snprintf(id, sizeof(id), "%" PRIu64, n);
	snprintf(both, sizeof(both), "%s[%s]", name ? name : "", id);
	return (name && !strcmp(subject, name)) || !strcmp(subject, both) ||
	       (*id && !strcmp(subject, id));
}

/* 1 904 */
static void put_number(FILE *out, uint64_t n)
{
	char digits[24];
	int len = snprintf(digits, sizeof(digits), "%" PRIu64, n);

	for (int i = 0; i < len; i++)
		fprintf(out, "%s%c", i && (len - i) % 3 == 0 ? " " : "", digits[i]);
}

/* 57 of 1 904 (2.99 %); none, if it is not known of how many. */
static void put_share(FILE *out, const json_t *object, const char *total_key)
{
	uint64_t part = number(object, "misrouted"), all;
	double percent;

	if (!get_u64(object, total_key, &all) || !all) {
		if (part)
			put_number(out, part);
		else
			fputs("none", out);
		return;
	}
	put_number(out, part);
	fputs(" of ", out);
	put_number(out, all);
	percent = 100.0 * (double)part / (double)all;
	if (part)
		fprintf(out, percent < 0.01 ? " (<0.01 %%)" : " (%.2f %%)", percent);
}

static void put_part(FILE *out, const char *before, uint64_t n, const char *what)
{
	if (!n)
		return;
	fputs(before, out);
	put_number(out, n);
	fputs(what, out);
}

static void put_expected(FILE *out, const json_t *object)
{
	put_part(out, ", ", number(object, "grace"), " in the grace time");
	put_part(out, ", ", number(object, "ignored"), " ignored");
}

static void put_quantiles(FILE *out, const char *label, const json_t *quantiles)
{
	if (!json_is_object(quantiles))
		return;
	fprintf(out, "    %s p50 ", label);
	put_duration(out, number(quantiles, "p50_ns"));
	fputs("  p99 ", out);
	put_duration(out, number(quantiles, "p99_ns"));
}

static void put_arrivals(FILE *out, const json_t *report)
{
	const json_t *arrivals = json_object_get(report, "arrivals");

	put_share(out, arrivals, "accepts");
	put_expected(out, arrivals);
	put_quantiles(out, "queue", json_object_get(report, "queue"));
}

static void put_requests(FILE *out, const json_t *report)
{
	const json_t *requests = json_object_get(report, "requests");
	uint64_t connections = number(requests, "connections");

	put_share(out, requests, "total");
	if (connections) {
		fputs(" on ", out);
		put_number(out, connections);
		fputs(connections == 1 ? " connection" : " connections", out);
	}
	put_part(out, ", ", number(requests, "too_late"), " after the close: reset");
	put_expected(out, requests);
}

static void put_abandoned(FILE *out, const json_t *of)
{
	uint64_t busy = number(of, "busy"), rst = number(of, "rst");

	put_number(out, number(of, "total"));
	fputs(" abandoned (", out);
	put_part(out, "", busy, " busy");
	put_part(out, busy ? "; " : "", rst, " reset");
	put_part(out, rst ? ", " : busy ? "; " : "", number(of, "fin"), " closed");
	fputs(")", out);
}

/* 84 at the start (87 in TCP) */
static void put_held(FILE *out, const char *before, const json_t *inflight, const char *key,
	const char *tcp_key, const char *when)
{
	uint64_t n, tcp;

	if (!get_u64(inflight, key, &n))
		return;
	fputs(before, out);
	put_number(out, n);
	fputs(when, out);
	if (!tcp_key || !get_u64(inflight, tcp_key, &tcp) || tcp == n)
		return;
	fputs(" (", out);
	put_number(out, tcp);
	fputs(" in TCP)", out);
}

static void put_inflight(FILE *out, const json_t *report)
{
	const json_t *inflight = json_object_get(report, "inflight");
	const json_t *lost = json_object_get(report, "abandoned");

	if (!json_object_size(inflight))
		fputs("not known", out);
	put_held(out, "", inflight, "start", "start_tcp", " at the start");
	put_held(out, ", ", inflight, "now", "now_tcp", " now");
	/* where the backlog is a line of its own */
	put_held(out, ", ", inflight, "end", NULL, " at the end");
	if (!number(lost, "total"))
		return;
	fputs(": ", out);
	put_abandoned(out, lost);
}

static void put_refused(FILE *out, const json_t *report)
{
	const json_t *refused = json_object_get(report, "refused");
	uint64_t count = number(refused, "count");

	if (!count) {
		fputs("none", out);
		return;
	}
	put_number(out, count);
	fputs(", the last ", out);
	put_duration(out, number(refused, "last_after_ns"));
	fputs(" after its listener was closed", out);
}

static void put_backlog(FILE *out, const json_t *report)
{
	uint64_t dropped = number(report, "backlog_dropped");

	put_part(out, "", dropped, " dropped, never accepted");
	put_part(out, dropped ? ", " : "", number(report, "half_open"), " in the handshake");
}

static void put_connects(FILE *out, const json_t *report)
{
	const json_t *connects = json_object_get(report, "connects");
	uint64_t misrouted = number(connects, "misrouted");

	if (!misrouted && !number(connects, "grace") && !number(connects, "ignored"))
		return;
	put_number(out, misrouted);
	put_expected(out, connects);
	put_part(out, ", ", number(connects, "failed"), " failed");
	put_quantiles(out, "connect", json_object_get(report, "connect"));
}

static void put_who(FILE *out, const json_t *who, size_t *printed, uint64_t *others)
{
	const char *name = get_string(who, "comm") ?: get_string(who, "addr") ?: "?";
	uint64_t pid;

	if (*printed == PRINTED_ENTRIES) {
		*others += number(who, "count");
		return;
	}
	fputs((*printed)++ ? "   " : "", out);
	put_string(out, name);
	if (get_u64(who, "pid", &pid))
		fprintf(out, "[%" PRIu64 "]", pid);
	fputc(' ', out);
	put_number(out, number(who, "count"));
}

void report_print_from(FILE *out, const json_t *report)
{
	static const char *const lists[] = { "clients", "peers" };
	uint64_t others = number(report, "clients_other") + number(report, "peers_other");
	size_t printed = 0;

	for (size_t l = 0; l < ARRAY_SIZE(lists); l++) {
		const json_t *list = json_object_get(report, lists[l]);

		for (size_t i = 0; i < json_array_size(list); i++)
			put_who(out, json_array_get(list, i), &printed, &others);
	}
	put_part(out, printed ? "   others " : "others ", others, "");
}

static void put_watched(FILE *out, const json_t *report)
{
	uint64_t from;

	if (!get_u64(report, "watched_from_ns", &from))
		return;
	fputs("only from +", out);
	put_duration(out, from);
	fputs(" on: what was seen before is not in these numbers", out);
}

static void put_lost(FILE *out, const json_t *report)
{
	put_part(out, "", number(report, "lost"), " records: numbers may be too low");
}

/* Whoever has nothing to say writes nothing, and the line is left out. */
static const struct row {
	const char *label;
	put_fn put;
} rows[] = {
	{ "new connections", put_arrivals },
	{ "late requests", put_requests },
	{ "in flight", put_inflight },
	{ "backlog", put_backlog },
	{ "refused", put_refused },
	{ "connects out", put_connects },
	{ "from", report_print_from },
	{ "watched", put_watched },
	{ "lost", put_lost },
};

static void put_detail(FILE *out, const json_t *moment)
{
	const char *text = get_string(moment, "detail");

	if (text)
		put_string(out, text);
}

static void put_what(FILE *out, const json_t *moment)
{
	put_string(out, get_string(moment, "what") ?: "?");
}

/* Milliseconds, while that is what one wants to compare. */
static void put_at(FILE *out, const json_t *moment)
{
	uint64_t at = number(moment, "at_ns");

	fputc('+', out);
	if (at < 3600 * NS_PER_S)
		fprintf(out, "%" PRIu64 ".%03" PRIu64 "s", at / NS_PER_S,
			at % NS_PER_S / NS_PER_MS);
	else
		put_duration(out, at);
}

static void put_time(FILE *out, const json_t *report, bool utc)
{
	const char *text = get_string(report, "declared");
	unsigned int year, month, day, hour, minute, second, ms;
	struct tm tm;
	time_t at;

	if (!text || sscanf(text, "%4u-%2u-%2uT%2u:%2u:%2u.%3u", &year, &month, &day, &hour,
			     &minute, &second, &ms) != 7)
		return;
	tm = (struct tm){ .tm_year = (int)year - 1900, .tm_mon = (int)month - 1, .tm_mday = day,
		.tm_hour = hour, .tm_min = minute, .tm_sec = second };
	at = timegm(&tm);
	if (!(utc ? gmtime_r(&at, &tm) : localtime_r(&at, &tm)))
		return;
	fprintf(out, "%04d-%02d-%02d %02d:%02d:%02d.%03u%s", tm.tm_year + 1900, tm.tm_mon + 1,
		tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, ms, utc ? " UTC" : "");
}

static void put_local_time(FILE *out, const json_t *report)
{
	put_time(out, report, false);
}

static void put_utc(FILE *out, const json_t *report)
{
	put_time(out, report, true);
}

static void put_title(FILE *out, const json_t *report)
{
	fputs("Drain of ", out);
	put_subject(out, json_object_get(report, "subject"));
}

/* 4 processes, epoch 7 */
static void put_extent(FILE *out, const json_t *report)
{
	uint64_t processes = number(report, "processes");
	uint64_t epoch = number(json_object_get(report, "subject"), "epoch");

	put_part(out, "", processes, processes == 1 ? " process" : " processes");
	if (epoch)
		fprintf(out, "%sepoch %" PRIu64, processes ? ", " : "", epoch);
}

static void put_length(FILE *out, const json_t *report)
{
	uint64_t duration;

	if (!get_u64(report, "duration_ns", &duration))
		return;
	put_duration(out, duration);
	if (json_is_true(json_object_get(report, "running")))
		fputs(" so far", out);
}

/* What the function writes; "" if memory is short as well. The caller's, never NULL. */
static char *written(put_fn put, const json_t *json)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return strdup("");
	put(out, json);
	fclose(out);
	return text;
}

/* put_text() leaves nothing that is wider than its character. */
static int columns(const char *text)
{
	int n = 0;

	for (; *text; text++)
		n += (*text & 0xc0) != 0x80;
	return n;
}

static int widest(put_fn put, const json_t *timeline)
{
	int width = 0;

	for (size_t i = 0; i < json_array_size(timeline); i++) {
		_cleanup_(freep) char *text = written(put, json_array_get(timeline, i));

		width = columns(text) > width ? columns(text) : width;
	}
	return width;
}

static void print_moment(FILE *out, const json_t *moment, int at_width, int what_width)
{
	_cleanup_(freep) char *at = written(put_at, moment), *what = written(put_what, moment),
			      *detail = written(put_detail, moment);

	fprintf(out, "  %*s%s  %s", at_width - columns(at), "", at, what);
	if (*detail)
		fprintf(out, "%*s  %s", what_width - columns(what), "", detail);
	fputc('\n', out);
}

void report_print_text(FILE *out, const json_t *report)
{
	const json_t *timeline = json_object_get(report, "timeline");
	_cleanup_(freep) char *extent = written(put_extent, report),
			      *time = written(put_local_time, report),
			      *length = written(put_length, report);
	int at_width = widest(put_at, timeline), what_width = widest(put_what, timeline);

	put_title(out, report);
	if (*extent)
		fprintf(out, " (%s)", extent);
	fprintf(out, "%s%s%s%s\n", *time ? "    " : "", time, *length ? "  " : "", length);
	for (size_t i = 0; i < json_array_size(timeline); i++)
		print_moment(out, json_array_get(timeline, i), at_width, what_width);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(freep) char *text = written(rows[i].put, report);

		if (*text)
			fprintf(out, "  %-16s  %s\n", rows[i].label, text);
	}
}

/* ---- Markdown ---- */

/* What put_text() has made harmless for a terminal is shown as it is in Markdown as well. */
static void put_escaped(FILE *out, put_fn put, const json_t *json)
{
	_cleanup_(freep) char *text = written(put, json);

	for (const char *c = text; *c; c++) {
		if (strchr("\\`*_[]<>|~&#", *c))
			fputc('\\', out);
		fputc(*c, out);
	}
}

static void print_cells(FILE *out, const put_fn *cells, size_t n, const json_t *json)
{
	for (size_t i = 0; i < n; i++) {
		fputs("| ", out);
		put_escaped(out, cells[i], json);
		fputc(' ', out);
	}
	fputs("|\n", out);
}

void report_print_markdown(FILE *out, const json_t *report)
{
	static const put_fn timeline_cells[] = { put_at, put_what, put_detail };
	static const put_fn head[] = { put_utc, put_length, put_extent };
	const json_t *timeline = json_object_get(report, "timeline");

	fputs("### ", out);
	put_escaped(out, put_title, report);
	fputs("\n\n| declared | took | extent |\n| --- | --- | --- |\n", out);
	print_cells(out, head, ARRAY_SIZE(head), report);
	fputs("\n| at | what | detail |\n| ---: | --- | --- |\n", out);
	for (size_t i = 0; i < json_array_size(timeline); i++)
		print_cells(out, timeline_cells, ARRAY_SIZE(timeline_cells),
			json_array_get(timeline, i));
	fputs("\n| cost | |\n| --- | --- |\n", out);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(freep) char *text = written(rows[i].put, report);

		if (!*text)
			continue;
		fprintf(out, "| %s ", rows[i].label);
		print_cells(out, &rows[i].put, 1, report);
	}
}
