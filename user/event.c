// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "event.h"
#include "names.h"
#include "util.h"

static bool valid_verdict_on(const struct pw_verdict_on *on)
{
	return phase_name(on->phase) && verdict_name(on->verdict) && source_name(on->source) &&
	       kind_name(on->key.kind);
}

static bool valid_move(const struct pw_move_record *m)
{
	return kind_name(m->key.kind) && phase_name(m->from) && source_name(m->now.source) &&
	       names_name(&declared_phase_names, m->now.phase);
}

int event_decode(const void *data, size_t size, struct event *ret)
{
	static const size_t sizes[PW_EV_TYPES] = {
		[PW_EV_ACCEPT] = sizeof(struct pw_conn_record),
		[PW_EV_CONNECT] = sizeof(struct pw_conn_record),
		[PW_EV_EXIT] = sizeof(struct pw_exit_record),
		[PW_EV_REQUEST] = sizeof(struct pw_conn_record),
		[PW_EV_ABANDON] = sizeof(struct pw_abandon_record),
		[PW_EV_REFUSED] = sizeof(struct pw_conn_record),
		[PW_EV_DROP] = sizeof(struct pw_conn_record),
		[PW_EV_UNLISTEN] = sizeof(struct pw_conn_record),
		[PW_EV_SIGNAL] = sizeof(struct pw_signal_record),
		[PW_EV_FORK] = sizeof(struct pw_task_record),
		[PW_EV_EXEC] = sizeof(struct pw_task_record),
		[PW_EV_MOVE] = sizeof(struct pw_move_record),
	};
	struct pw_record h;
	struct event e = { 0 };

	if (size < sizeof(h))
		return -EPROTO;
	memcpy(&h, data, sizeof(h));
	if (h.type >= PW_EV_TYPES || !sizes[h.type] || h.size != sizes[h.type] || size < h.size)
		return -EPROTO;
	e.type = h.type;
	e.time_ns = h.time_ns;
	memcpy(&e.move, data, h.size); /* the largest of the records */
	if (event_verdict_on(&e) && !valid_verdict_on(event_verdict_on(&e)))
		return -EPROTO;
	if ((e.type == PW_EV_ACCEPT && !seen_by_name(e.conn.how)) ||
		(e.type == PW_EV_CONNECT && !result_name(e.conn.how)) ||
		(e.type == PW_EV_ABANDON && !how_name(e.abandon.how)) ||
		(e.type == PW_EV_MOVE && !valid_move(&e.move)))
		return -EPROTO;
	*ret = e;
	return 0;
}

static bool is_conn(const struct event *e)
{
	return e->type == PW_EV_ACCEPT || e->type == PW_EV_CONNECT || e->type == PW_EV_REQUEST ||
	       e->type == PW_EV_REFUSED || e->type == PW_EV_DROP || e->type == PW_EV_UNLISTEN;
}

static const struct pw_process *process_of(const struct event *e)
{
	if (is_conn(e))
		return &e->conn.process;
	switch (e->type) {
	case PW_EV_EXIT:
		return &e->exit.process;
	case PW_EV_ABANDON:
		return &e->abandon.process;
	case PW_EV_SIGNAL:
		return &e->signal.process;
	case PW_EV_BACKLOG:
		return &e->backlog.process;
	case PW_EV_FORK:
	case PW_EV_EXEC:
		return &e->task.process;
	default:
		return NULL;
	}
}

const struct pw_process *event_process(const struct event *e)
{
	const struct pw_process *p = process_of(e);

	return p && p->pid ? p : NULL;
}

const struct pw_verdict_on *event_verdict_on(const struct event *e)
{
	if (is_conn(e))
		return &e->conn.on;
	switch (e->type) {
	case PW_EV_EXIT:
		return &e->exit.on;
	case PW_EV_ABANDON:
		return &e->abandon.on;
	case PW_EV_SIGNAL:
		return &e->signal.on;
	case PW_EV_BACKLOG:
		return &e->backlog.on;
	default:
		return NULL;
	}
}

const struct pw_client *event_client(const struct event *e)
{
	const struct pw_client *c = is_conn(e)		       ? &e->conn.client :
				    e->type == PW_EV_ABANDON ? &e->abandon.client :
							       NULL;

	return c && c->pid ? c : NULL;
}

void event_write_subject(struct json_out *j, const struct pw_subject_key *key, uint64_t epoch,
	uint32_t source, const char *name)
{
	json_open(j, "subject", '{');
	json_str(j, "kind", kind_name(key->kind));
	json_u64(j, "id", key->id);
	json_str(j, "name", name);
	if (epoch)
		json_u64(j, "epoch", epoch);
	json_str(j, "source", source_name(source));
	json_close(j, '}');
}

static void write_process(
	struct json_out *j, const struct pw_process *p, const struct event_names *names)
{
	json_open(j, "process", '{');
	json_u64(j, "pid", p->pid);
	json_u64(j, "start_ns", p->start_ns);
	json_strn(j, "comm", p->comm, strnlen(p->comm, sizeof(p->comm)));
	json_str(j, "exe", names->exe);
	json_str(j, "cgroup", names->cgroup);
	json_close(j, '}');
}

static void write_endpoint(
	struct json_out *j, const char *key, const uint8_t addr[16], uint16_t port)
{
	static const uint8_t v4_mapped[12] = { [10] = 0xff, [11] = 0xff };
	char text[INET6_ADDRSTRLEN];
	bool v4 = memcmp(addr, v4_mapped, sizeof(v4_mapped)) == 0;

	inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? addr + 12 : addr, text, sizeof(text));
	json_open(j, key, '{');
	json_str(j, "addr", text);
	json_u64(j, "port", port);
	json_close(j, '}');
}

/* Clocks are read on different CPUs: what seems to end before it began took no time. */
static void write_duration(struct json_out *j, const char *key, uint64_t from, uint64_t to)
{
	if (from)
		json_u64(j, key, to > from ? to - from : 0);
}

static void write_common(
	struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct pw_verdict_on *on = event_verdict_on(e);

	event_write_subject(j, &on->key, on->epoch, on->source, names->subject);
	if (event_process(e))
		write_process(j, event_process(e), names);
}

static void write_tuple(struct json_out *j, const struct event *e, const struct pw_tuple *t,
	const struct event_names *names)
{
	const struct pw_client *c = event_client(e);

	write_endpoint(j, "src", t->saddr, t->sport);
	write_endpoint(j, "dst", t->daddr, t->dport);
	if (!c || e->type == PW_EV_CONNECT) /* whose client is its process */
		return;
	json_open(j, "client", '{');
	json_u64(j, "pid", c->pid);
	json_strn(j, "comm", c->comm, strnlen(c->comm, sizeof(c->comm)));
	json_str(j, "cgroup", names->client_cgroup);
	json_close(j, '}');
}

/* A request is late by when it was read, a connection by when it came. */
static void write_conn(struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct pw_conn_record *r = &e->conn;

	write_duration(j, "phase_age_ns", r->on.since_ns,
		e->type == PW_EV_REQUEST || e->type == PW_EV_REFUSED ? r->h.time_ns : r->begin_ns);
	if (e->type != PW_EV_REFUSED)
		json_str(j, "verdict", verdict_name(r->on.verdict));
	write_common(j, e, names);
	write_tuple(j, e, &r->tuple, names);
	switch (e->type) {
	case PW_EV_ACCEPT:
		/* at the close it is not known when it was accepted */
		if (r->how != PW_SEEN_RELEASE)
			write_duration(j, "queue_ns", r->begin_ns, r->h.time_ns);
		json_str(j, "seen_by", seen_by_name(r->how));
		break;
	case PW_EV_CONNECT:
		write_duration(j, "connect_ns", r->begin_ns, r->h.time_ns);
		json_str(j, "result", result_name(r->how));
		break;
	case PW_EV_REQUEST:
		json_u64(j, "nth", r->number);
		write_duration(j, "conn_age_ns", r->begin_ns, r->h.time_ns);
		if (r->how)
			json_u64(j, "after_close_ns", r->how * 1000ULL);
		break;
	default:
		write_duration(j, "since_exit_ns", r->begin_ns, r->h.time_ns);
	}
}

static void write_abandon(
	struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct pw_abandon_record *r = &e->abandon;

	write_duration(j, "phase_age_ns", r->on.since_ns, r->h.time_ns);
	write_common(j, e, names);
	write_tuple(j, e, &r->tuple, names);
	json_str(j, "how", how_name(r->how));
	json_bool(j, "busy", r->busy);
	json_u64(j, "bytes_in", r->bytes_in);
	json_u64(j, "bytes_out", r->bytes_out);
	write_duration(j, "conn_age_ns", r->established_ns, r->h.time_ns);
}

static void write_backlog(
	struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct event_backlog *b = &e->backlog;

	write_duration(j, "phase_age_ns", b->on.since_ns, e->time_ns);
	write_common(j, e, names);
	json_u64(j, "dropped", b->dropped);
	if (b->half_open)
		json_u64(j, "half_open", b->half_open);
	if (b->addr_known) {
		write_endpoint(j, "listener", b->listener.daddr, b->listener.dport);
		return;
	}
	json_open(j, "listener", '{');
	json_u64(j, "port", b->listener.dport);
	json_close(j, '}');
}

static void write_exit(struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct pw_exit_record *r = &e->exit;

	write_duration(j, "phase_age_ns", r->on.since_ns, r->h.time_ns);
	write_common(j, e, names);
	if (WIFSIGNALED(r->status))
		json_u64(j, "signal", WTERMSIG(r->status));
	else
		json_u64(j, "code", WEXITSTATUS(r->status));
	if (r->connections != PW_NOT_KNOWN)
		json_u64(j, "open_connections", r->connections);
}

static void write_by(struct json_out *j, uint32_t pid, uint32_t uid, const char *comm)
{
	if (!pid)
		return;
	json_open(j, "by", '{');
	json_u64(j, "pid", pid);
	json_u64(j, "uid", uid);
	json_str(j, "comm", comm);
	json_close(j, '}');
}

static void write_phase(
	struct json_out *j, const struct event_phase *p, const struct event_names *names)
{
	event_write_subject(j, &p->key, p->now.epoch, p->now.source, names->subject);
	json_str(j, "from", phase_name(p->from));
	json_str(j, "to", phase_name(p->now.phase));
	json_u64(j, "epoch", p->now.epoch);
	json_str(j, "source", source_name(p->now.source));
	if (p->now.reason[0])
		json_strn(j, "reason", p->now.reason, strnlen(p->now.reason, PW_REASON_LEN));
	write_by(j, p->now.by_pid, p->now.by_uid, p->by_comm);
}

static void write_violation(
	struct json_out *j, const struct event_violation *v, const struct event_names *names)
{
	event_write_subject(j, &v->key, v->now.epoch, v->now.source, names->subject);
	json_str(j, "kind", names_name(&violation_names, v->kind));
	json_str(j, "detail", v->detail);
	write_by(j, v->by_pid, v->by_uid, v->by_comm);
}

static void write_lost(struct json_out *j, const struct event_lost *l)
{
	json_u64(j, "count", l->count);
	json_open(j, "by_type", '{');
	for (unsigned int t = 0; t < PW_EV_TYPES; t++)
		if (l->by_type[t] && event_type_name(t))
			json_u64(j, event_type_name(t), l->by_type[t]);
	json_close(j, '}');
	json_str(j, "stage", l->stage);
}

void event_write(struct json_out *j, const struct event *e, const struct event_names *names)
{
	const struct pw_verdict_on *on = event_verdict_on(e);

	j->comma = false;
	json_open(j, NULL, '{');
	json_u64(j, "schema", 1);
	json_time(j, "time", e->time_ns + names->realtime_offset_ns);
	json_str(j, "node", names->node);
	json_u64(j, "seq", e->seq);
	json_str(j, "type", event_type_name(e->type));
	if (on)
		json_str(j, "phase", phase_name(on->phase));
	else if (e->type == PW_EV_PHASE)
		json_str(j, "phase", phase_name(e->phase.now.phase));
	else if (e->type == PW_EV_DRAIN)
		json_str(j, "phase", phase_name(e->drain.phase));
	else if (e->type == PW_EV_VIOLATION)
		json_str(j, "phase", phase_name(e->violation.now.phase));
	switch (e->type) {
	case PW_EV_ACCEPT:
	case PW_EV_CONNECT:
	case PW_EV_REQUEST:
	case PW_EV_REFUSED:
		write_conn(j, e, names);
		break;
	case PW_EV_EXIT:
		write_exit(j, e, names);
		break;
	case PW_EV_ABANDON:
		write_abandon(j, e, names);
		break;
	case PW_EV_BACKLOG:
		write_backlog(j, e, names);
		break;
	case PW_EV_DRAIN:
		event_write_subject(j, &e->drain.key, e->drain.epoch, e->drain.source, names->subject);
		json_raw(j, ",\"report\":", 10);
		json_raw(j, e->drain.json, e->drain.len);
		break;
	case PW_EV_PHASE:
		write_phase(j, &e->phase, names);
		break;
	case PW_EV_VIOLATION:
		write_violation(j, &e->violation, names);
		break;
	case PW_EV_LOST:
		write_lost(j, &e->lost);
		break;
	default:
		break;
	}
	json_close(j, '}');
	json_raw(j, "\n", 1);
}
