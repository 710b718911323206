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

int event_decode(const void *data, size_t size, struct event *ret)
{
	static const size_t sizes[PW_EV_TYPES] = {
		[PW_EV_ACCEPT] = sizeof(struct pw_conn_record),
		[PW_EV_CONNECT] = sizeof(struct pw_conn_record),
		[PW_EV_EXIT] = sizeof(struct pw_exit_record),
		[PW_EV_FORK] = sizeof(struct pw_task_record),
		[PW_EV_EXEC] = sizeof(struct pw_task_record),
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
	memcpy(&e.conn, data, h.size);
	if (event_verdict_on(&e) && !valid_verdict_on(event_verdict_on(&e)))
		return -EPROTO;
	if ((e.type == PW_EV_ACCEPT && !seen_by_name(e.conn.how)) ||
		(e.type == PW_EV_CONNECT && !result_name(e.conn.how)))
		return -EPROTO;
	*ret = e;
	return 0;
}

const struct pw_process *event_process(const struct event *e)
{
	switch (e->type) {
	case PW_EV_ACCEPT:
	case PW_EV_CONNECT:
		return &e->conn.process;
	case PW_EV_EXIT:
		return &e->exit.process;
	case PW_EV_FORK:
	case PW_EV_EXEC:
		return &e->task.process;
	default:
		return NULL;
	}
}

const struct pw_verdict_on *event_verdict_on(const struct event *e)
{
	switch (e->type) {
	case PW_EV_ACCEPT:
	case PW_EV_CONNECT:
		return &e->conn.on;
	case PW_EV_EXIT:
		return &e->exit.on;
	default:
		return NULL;
	}
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

static void write_conn(
	struct json_out *j, const struct pw_conn_record *r, const struct event_names *names)
{
	bool accept = r->h.type == PW_EV_ACCEPT;

	write_duration(j, "phase_age_ns", r->on.since_ns, r->begin_ns);
	json_str(j, "verdict", verdict_name(r->on.verdict));
	event_write_subject(j, &r->on.key, r->on.epoch, r->on.source, names->subject);
	write_process(j, &r->process, names);
	write_endpoint(j, "src", r->tuple.saddr, r->tuple.sport);
	write_endpoint(j, "dst", r->tuple.daddr, r->tuple.dport);
	if (accept) {
		/* at the close it is not known when it was accepted */
		if (r->how != PW_SEEN_RELEASE)
			write_duration(j, "queue_ns", r->begin_ns, r->h.time_ns);
		json_str(j, "seen_by", seen_by_name(r->how));
	} else {
		write_duration(j, "connect_ns", r->begin_ns, r->h.time_ns);
		json_str(j, "result", result_name(r->how));
	}
}

static void write_exit(
	struct json_out *j, const struct pw_exit_record *r, const struct event_names *names)
{
	write_duration(j, "phase_age_ns", r->on.since_ns, r->h.time_ns);
	event_write_subject(j, &r->on.key, r->on.epoch, r->on.source, names->subject);
	write_process(j, &r->process, names);
	if (WIFSIGNALED(r->status))
		json_u64(j, "signal", WTERMSIG(r->status));
	else
		json_u64(j, "code", WEXITSTATUS(r->status));
	json_u64(j, "open_connections", r->connections);
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
	if (p->now.by_pid) {
		json_open(j, "by", '{');
		json_u64(j, "pid", p->now.by_pid);
		json_u64(j, "uid", p->now.by_uid);
		json_str(j, "comm", p->by_comm);
		json_close(j, '}');
	}
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
	switch (e->type) {
	case PW_EV_ACCEPT:
	case PW_EV_CONNECT:
		write_conn(j, &e->conn, names);
		break;
	case PW_EV_EXIT:
		write_exit(j, &e->exit, names);
		break;
	case PW_EV_PHASE:
		write_phase(j, &e->phase, names);
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
