// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <event2/util.h>
#include <jansson.h>

#include "api_internal.h"
#include "clock.h"
#include "declare.h"
#include "drain.h"
#include "metrics.h"
#include "names.h"
#include "openmetrics.h"
#include "opts.h"
#include "page.h"
#include "probe.h"
#include "proc.h"
#include "util.h"

#define MAX_HEADERS 8192 /* bytes */
#define MAX_BODY 4096
#define IDLE_SECONDS 60
/* All pods of a node, which may be one user's, are to be able to drain at one moment. */
#define BACKLOG 512
/* Connections of one user who is no admin; all of TCP counts as one. Then of all of them, or a
 * fourth of the file descriptors that there may be. */
#define HELD_EACH 256
#define HELD_ALL 512
/* Bytes of answers to them that wait to be read; of those that no socket takes at once. */
#define WAITING_MAX (64u << 20)
#define WAITING_MIN (64u << 10)
/* The priority of what they ask: all else goes first. */
#define LAST(base) (event_base_get_npriorities(base) - 1)

/* ---- answers ---- */

void reply(struct evhttp_request *req, int status, const char *type, struct evbuffer *body)
{
	struct evkeyvalq *headers = evhttp_request_get_output_headers(req);
	char len[24];

	if (evhttp_request_get_command(req) == EVHTTP_REQ_HEAD) {
		snprintf(len, sizeof(len), "%zu", evbuffer_get_length(body));
		evhttp_add_header(headers, "Content-Length", len);
		evbuffer_drain(body, -1);
	}
	evhttp_add_header(headers, "Content-Type", type);
	evhttp_add_header(headers, "Cache-Control", "no-store");
	evhttp_add_header(headers, "X-Content-Type-Options", "nosniff");
	evhttp_send_reply(req, status, NULL, body);
}

static void reply_json(struct evhttp_request *req, int status, const struct json_out *j)
{
	_cleanup_(evbuffer_freep) struct evbuffer *body = evbuffer_new();

	if (!body || j->failed) {
		evhttp_send_reply(req, 500, NULL, NULL);
		return;
	}
	evbuffer_add(body, j->text, j->len);
	reply(req, status, "application/json", body);
}

void reply_error(struct evhttp_request *req, int status, const char *fmt, ...)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	char text[WHY_LEN];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	json_open(&j, NULL, '{');
	json_str(&j, "error", text);
	json_close(&j, '}');
	json_raw(&j, "\n", 1);
	reply_json(req, status, &j);
}

static evutil_socket_t request_fd(struct evhttp_request *req)
{
	return bufferevent_getfd(
		evhttp_connection_get_bufferevent(evhttp_request_get_connection(req)));
}

/* Who is at the other end. Over TCP, and where nothing is known: nobody. */
static struct declarer peer_of(int fd)
{
	struct ucred peer = { .uid = -1, .gid = -1 };
	socklen_t len = sizeof(peer);

	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	return (struct declarer){ peer.pid, peer.uid, peer.gid, PW_SOURCE_API, fd };
}

struct large_answer {
	struct waiting *waiting;
	size_t len;
};

static void answer_gone(const void *data, size_t len, void *arg)
{
	struct large_answer *a = arg;
	struct waiting *w = a->waiting;

	w->bytes -= a->len;
	w->answers--;
	free(a);
	if (w->orphan && !w->answers)
		free(w);
}

/* Until it has been read, or its connection is closed: the last byte goes when all have gone. */
static bool count_waiting(struct waiting *w, struct evbuffer *body)
{
	_cleanup_(evbuffer_freep) struct evbuffer *rest = evbuffer_new();
	struct large_answer *a = malloc(sizeof(*a));
	size_t len = evbuffer_get_length(body);

	if (!rest || !a || evbuffer_remove_buffer(body, rest, len - 1) < 0 ||
		evbuffer_drain(body, 1) < 0 || evbuffer_add_buffer(body, rest) < 0 ||
		evbuffer_add_reference(body, "\n", 1, answer_gone, a) < 0) {
		free(a);
		return false;
	}
	*a = (struct large_answer){ w, len };
	w->bytes += len;
	w->answers++;
	return true;
}

bool may_wait(struct api *api, struct evhttp_request *req, struct evbuffer *body)
{
	struct declarer peer;

	if (evbuffer_get_length(body) <= WAITING_MIN)
		return true;
	peer = peer_of(request_fd(req));
	if (declare_is_admin(api->c.declare, &peer))
		return true;
	if (api->waiting->bytes + evbuffer_get_length(body) <= WAITING_MAX &&
		count_waiting(api->waiting, body))
		return true;
	api->c.metrics->turned_away++;
	reply_error(req, 503, "too much waits to be read by others; try again later");
	return false;
}

static void reply_list(struct api *api, struct evhttp_request *req, const struct json_out *j)
{
	_cleanup_(evbuffer_freep) struct evbuffer *body = evbuffer_new();

	if (!body || j->failed || evbuffer_add(body, j->text, j->len) < 0)
		evhttp_send_reply(req, 500, NULL, NULL);
	else if (may_wait(api, req, body))
		reply(req, 200, "application/json", body);
}

/* ---- PUT /v1/phase ---- */

/* Which process or cgroup the body means, as the caller sees it. */
static int parse_target(json_t *body, struct declaration_request *r, char *why, size_t len)
{
	json_t *pid = json_object_get(body, "pid"), *cgroup = NULL;
	bool self = json_is_true(json_object_get(body, "self"));
	bool parent = json_is_true(json_object_get(body, "parent"));
	int given = !!pid + self + parent;

	for (enum select_by by = 0; by < SELECT_WAYS; by++) {
		json_t *value = json_object_get(body, names_name(&select_names, by));

		if (!value)
			continue;
		given++;
		cgroup = value;
		r->by = by;
	}
	if (given != 1)
		return fail_with(why, len, -EINVAL,
			"give one of \"pid\": N, \"self\": true, \"parent\": true, \"cgroup\": PATH, "
			"\"unit\": NAME, \"container\": ID or \"pod\": NAMESPACE/NAME");
	if (pid && (!json_is_integer(pid) || json_integer_value(pid) < 1 ||
			   json_integer_value(pid) > PID_MAX))
		return fail_with(why, len, -EINVAL, "\"pid\" is to be an integer from 1 to %d",
			PID_MAX);
	if (cgroup && !json_string_length(cgroup))
		return fail_with(why, len, -EINVAL, "\"%s\" is to be a text",
			names_name(&select_names, r->by));
	if (cgroup && r->active_on_listen)
		return fail_with(why, len, -EINVAL, "\"active_on_listen\" goes with a process");
	r->pid = json_integer_value(pid);
	r->cgroup = json_string_value(cgroup);
	if (cgroup && r->by == SELECT_PATH && strcmp(r->cgroup, "self") == 0)
		r->means = MEANS_OWN_CGROUP;
	else if (!cgroup)
		r->means = pid ? MEANS_INNER_PID : self ? MEANS_CALLER : MEANS_PARENT;
	return 0;
}

static int parse_declaration(json_t *body, struct declaration_request *r, char *why, size_t len)
{
	static const char *const keys[] = { "phase", "pid", "self", "parent", "cgroup", "unit",
		"container", "pod", "epoch", "reason", "active_on_listen", "or_later" };
	json_t *listen = json_object_get(body, "active_on_listen");
	json_t *epoch = json_object_get(body, "epoch"), *reason = json_object_get(body, "reason");
	const char *phase = json_string_value(json_object_get(body, "phase")), *key;
	json_t *value;

	json_object_foreach (body, key, value) {
		bool known = false;

		for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
			known |= strcmp(key, keys[i]) == 0;
		if (!known)
			return fail_with(why, len, -EINVAL,
				"unknown field \"%.40s\"; use phase, pid, self, parent, cgroup, unit, "
				"container, pod, epoch, reason, active_on_listen, or_later", key);
	}
	if (!phase || names_parse(&declared_phase_names, phase) < 0)
		return fail_with(why, len, -EINVAL,
			"no phase \"%.40s\"; use INIT, ACTIVE, DRAIN or SHUTDOWN",
			phase ? phase : "");
	r->phase = names_parse(&declared_phase_names, phase);
	if (epoch && (!json_is_integer(epoch) || json_integer_value(epoch) < 1))
		return fail_with(why, len, -EINVAL, "\"epoch\" is to be an integer from 1 on");
	r->epoch = epoch ? json_integer_value(epoch) : 0;
	if (reason &&
		(!json_is_string(reason) || json_string_length(reason) > PW_REASON_LEN - 1))
		return fail_with(why, len, -EINVAL, "\"reason\" is to be a text of at most %d bytes",
			PW_REASON_LEN - 1);
	r->reason = json_string_value(reason);
	r->or_later = json_is_true(json_object_get(body, "or_later"));
	r->active_on_listen = json_is_true(listen);
	if (listen && (!json_is_boolean(listen) ||
			      (r->active_on_listen && r->phase != PW_INIT)))
		return fail_with(why, len, -EINVAL,
			"\"active_on_listen\" is to be true or false, and goes with INIT of a process");
	return 0;
}

static void reply_declared(struct evhttp_request *req, const struct declaration_result *r)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	const struct subject *s = r->subject;

	json_open(&j, NULL, '{');
	json_u64(&j, "schema", 1);
	event_write_subject(&j, &s->key, s->now.epoch, s->now.source, s->name);
	json_str(&j, "from", phase_name(r->from));
	json_str(&j, "to", phase_name(s->now.phase));
	json_bool(&j, "changed", r->changed);
	json_i64(&j, "members", r->stats.members);
	/* as it was then: who waits for the end of a drain counts from here */
	json_i64(&j, "inflight", r->stats.inflight);
	json_u64(&j, "accepts_misrouted", r->stats.accepts_misrouted);
	json_u64(&j, "requests_misrouted", r->stats.requests_misrouted);
	json_close(&j, '}');
	json_raw(&j, "\n", 1);
	reply_json(req, 200, &j);
}

static int status_of(int err)
{
	switch (err) {
	case -EINVAL:
		return 400;
	case -EPERM:
		return 403;
	case -ESRCH:
		return 404;
	case -ESTALE:
		return 409;
	case -ENOTUNIQ:
		return 422;
	case -EAGAIN:
	case -EDQUOT:
		return 429;
	default:
		return 500;
	}
}

static void put_phase(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	struct evbuffer *input = evhttp_request_get_input_buffer(req);
	struct declaration_request request = { 0 };
	struct declaration_result result;
	struct declarer peer = peer_of(request_fd(req));
	char why[WHY_LEN] = "";
	json_error_t at;
	json_t *body;
	int err;

	body = json_loadb((const char *)evbuffer_pullup(input, -1), evbuffer_get_length(input),
		JSON_REJECT_DUPLICATES, &at);
	if (!json_is_object(body)) {
		reply_error(req, 400, "the body is to be a JSON object, such as "
			"{\"phase\":\"DRAIN\",\"self\":true}%s%s", body ? "" : ": ", body ? "" : at.text);
		json_decref(body);
		return;
	}
	err = parse_declaration(body, &request, why, sizeof(why));
	if (!err)
		err = parse_target(body, &request, why, sizeof(why));
	if (!err)
		err = declare_phase(api->c.declare, &peer, &request, &result, why);
	if (err)
		reply_error(req, status_of(err), "%s", why);
	else
		reply_declared(req, &result);
	json_decref(body);
}

/* ---- GET the rest ---- */

/* 0: any. */
static int parse_subject(const struct evkeyvalq *query, struct pw_subject_key *ret, bool *tcp)
{
	const struct evkeyval *q;
	uint64_t id = 0;
	int err;

	TAILQ_FOREACH (q, query, next) {
		if (strcmp(q->key, "kind") == 0) {
			err = ret->kind = names_parse(&kind_names, q->value);
		} else if (strcmp(q->key, "id") == 0) {
			err = parse_u64(q->value, &id);
		} else if (tcp && strcmp(q->key, "tcp") == 0) {
			*tcp = true;
			err = strcmp(q->value, "1") == 0 ? 0 : -EINVAL;
		} else {
			err = -ENOENT;
		}
		if (err < 0)
			return err;
	}
	ret->id = id;
	return 0;
}

/* False, and answered: the query is not understood. */
static bool read_subject(struct evhttp_request *req, const struct evkeyvalq *query,
	struct pw_subject_key *ret, bool *tcp)
{
	if (parse_subject(query, ret, tcp) == 0)
		return true;
	reply_error(req, 400, "a query parameter is unknown or has a value that is not allowed; "
			      "use kind=process or cgroup, id=N%s", tcp ? ", tcp=1" : "");
	return false;
}

static bool is_wanted(const struct pw_subject_key *wanted, const struct pw_subject_key *key)
{
	return (!wanted->kind || wanted->kind == key->kind) &&
	       (!wanted->id || wanted->id == key->id);
}

struct listing {
	struct json_out *j;
	const struct api *api;
	struct pw_subject_key wanted;
	bool tcp; /* it was looked where connections are */
	uint64_t now_ns;
};

static void list_stats(const struct listing *l, const struct subject *s)
{
	const struct pw_declaration *d = &s->now;
	uint64_t drain_ns = declaration_drain_ns(d), since_ns;
	struct pw_stats stats;

	if (subjects_stats(l->api->c.subjects, s, &stats) < 0)
		return;
	json_i64(l->j, "members", stats.members);
	json_i64(l->j, "inflight", stats.inflight + (l->tcp ? stats.unseen : 0));
	if (l->tcp && stats.look)
		json_u64(l->j, "inflight_tcp", stats.open);
	json_u64(l->j, "accepts", stats.accepts);
	json_u64(l->j, "accepts_misrouted", stats.accepts_misrouted);
	json_u64(l->j, "requests", stats.requests);
	json_u64(l->j, "requests_misrouted", stats.requests_misrouted);
	json_u64(l->j, "connects", stats.connects);
	json_u64(l->j, "connects_misrouted", stats.connects_misrouted);
	if (d->phase < PW_DRAIN)
		return;
	if (stats.last_misrouted_ns > drain_ns)
		json_u64(l->j, "settle_ns", stats.last_misrouted_ns - drain_ns);
	since_ns = declaration_quiet_since(d, &stats, l->api->c.kernel->control->grace_ns);
	json_u64(l->j, "quiet_ns", l->now_ns > since_ns ? l->now_ns - since_ns : 0);
}

static void list_subject(const struct subject *s, void *arg)
{
	const struct pw_declaration *d = &s->now;
	struct listing *l = arg;

	if (!is_wanted(&l->wanted, &s->key))
		return;
	json_open(l->j, NULL, '{');
	event_write_subject(l->j, &s->key, d->epoch, d->source, s->name);
	json_str(l->j, "phase", phase_name(d->phase));
	if (d->since_ns && l->now_ns >= d->since_ns)
		json_u64(l->j, "phase_age_ns", l->now_ns - d->since_ns);
	if (d->reason[0])
		json_strn(l->j, "reason", d->reason, strnlen(d->reason, sizeof(d->reason)));
	list_stats(l, s);
	json_close(l->j, '}');
}

static void get_subjects(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	struct listing l = { .j = &j, .api = api, .now_ns = clock_boot_ns() };
	const struct subject *s;
	bool one;

	if (!read_subject(req, query, &l.wanted, &l.tcp))
		return;
	/* who asks for one again and again is spared the walks over all, and over their sockets */
	one = l.wanted.kind && l.wanted.id;
	l.tcp |= !one;
	if (l.tcp)
		subjects_look(api->c.subjects);
	json_open(&j, NULL, '{');
	json_u64(&j, "schema", 1);
	json_str(&j, "node", api->c.node);
	json_open(&j, "subjects", '[');
	s = one ? subjects_find(api->c.subjects, &l.wanted) : NULL;
	if (s)
		list_subject(s, &l);
	if (!one)
		subjects_for_each(api->c.subjects, list_subject, &l);
	json_close(&j, ']');
	json_close(&j, '}');
	json_raw(&j, "\n", 1);
	reply_list(api, req, &j);
}

struct reports {
	struct json_out *j;
	struct pw_subject_key wanted;
	uint64_t now_ns;
};

static void list_report(const struct report *r, void *arg)
{
	struct reports *reports = arg;

	if (is_wanted(&reports->wanted, &r->key))
		report_write(reports->j, NULL, r, reports->now_ns);
}

static void get_reports(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	struct reports reports = { .j = &j, .now_ns = clock_boot_ns() };

	if (!read_subject(req, query, &reports.wanted, NULL))
		return;
	json_open(&j, NULL, '{');
	json_u64(&j, "schema", 1);
	json_str(&j, "node", api->c.node);
	json_open(&j, "reports", '[');
	drains_for_each(api->c.drains, list_report, &reports);
	json_close(&j, ']');
	json_close(&j, '}');
	json_raw(&j, "\n", 1);
	reply_list(api, req, &j);
}

static void get_metrics(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(evbuffer_freep) struct evbuffer *body = evbuffer_new();
	struct openmetrics text = { .out = body,
		.classic = openmetrics_wants_classic(evhttp_find_header(
			evhttp_request_get_input_headers(req), "Accept")) };
	const struct metric_sink sink = openmetrics_sink(&text);

	if (!body || metrics_collect(api->c.metrics, &sink) < 0) {
		evhttp_send_reply(req, 500, NULL, NULL);
		return;
	}
	openmetrics_end(&text);
	if (may_wait(api, req, body))
		reply(req, 200, text.classic ? CLASSIC_CONTENT_TYPE : OPENMETRICS_CONTENT_TYPE, body);
}

static void get_healthz(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(evbuffer_freep) struct evbuffer *body = evbuffer_new();

	evbuffer_add(body, "ok\n", 3);
	reply(req, 200, "text/plain", body);
}

/* That it answers at all is what /healthz tells: who starts and stops has no socket. */
static void get_readyz(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	char why[WHY_LEN];

	if (kernel_is_whole(api->c.kernel, why, sizeof(why)))
		get_healthz(api, req, query);
	else
		reply_error(req, 503, "%s", why);
}

static void get_probe(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	probe_write(&j, api->c.kernel);
	reply_json(req, 200, &j);
}

/*
 * Nobody but this page may run a script in it or show it in a frame. There are no CORS headers
 * anywhere, so that a browser shows no other site what is read here. The Host is not looked at: it is
 * any DNS name that a Prometheus finds us by, and there is nothing to write over TCP.
 */
static void get_page(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query)
{
	_cleanup_(evbuffer_freep) struct evbuffer *body = evbuffer_new();
	struct evkeyvalq *headers = evhttp_request_get_output_headers(req);
	char nonce[33], policy[256];
	uint64_t random[2];

	evutil_secure_rng_get_bytes(random, sizeof(random));
	snprintf(nonce, sizeof(nonce), "%016llx%016llx", (unsigned long long)random[0],
		(unsigned long long)random[1]);
	snprintf(policy, sizeof(policy),
		"default-src 'none'; connect-src 'self'; script-src 'nonce-%s'; style-src 'nonce-%s'; "
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", nonce, nonce);
	if (!body || page_write(body, nonce) < 0) {
		evhttp_send_reply(req, 500, NULL, NULL);
		return;
	}
	evhttp_add_header(headers, "Content-Security-Policy", policy);
	evhttp_add_header(headers, "Referrer-Policy", "no-referrer");
	reply(req, 200, "text/html; charset=utf-8", body);
}

/* ---- routes ---- */

static const struct route {
	enum evhttp_cmd_type method;
	const char *path;
	bool unix_only;
	void (*serve)(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query);
} routes[] = {
	{ EVHTTP_REQ_PUT, "/v1/phase", true, put_phase },
	{ EVHTTP_REQ_GET, "/", false, get_page },
	{ EVHTTP_REQ_GET, "/v1/events", false, get_events },
	{ EVHTTP_REQ_GET, "/v1/subjects", false, get_subjects },
	{ EVHTTP_REQ_GET, "/v1/reports", false, get_reports },
	{ EVHTTP_REQ_GET, "/v1/probe", false, get_probe },
	{ EVHTTP_REQ_GET, "/metrics", false, get_metrics },
	{ EVHTTP_REQ_GET, "/healthz", false, get_healthz },
	{ EVHTTP_REQ_GET, "/readyz", false, get_readyz },
};

static bool over_unix(struct evhttp_request *req)
{
	struct sockaddr_storage addr = { 0 };
	socklen_t len = sizeof(addr);

	return getsockname(request_fd(req), (struct sockaddr *)&addr, &len) == 0 &&
	       addr.ss_family == AF_UNIX;
}

static void serve(struct evhttp_request *req, void *arg)
{
	const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(req);
	const char *path = evhttp_uri_get_path(uri), *query_text = evhttp_uri_get_query(uri);
	struct evkeyvalq query = TAILQ_HEAD_INITIALIZER(query);
	enum evhttp_cmd_type method = evhttp_request_get_command(req);
	const struct route *r = NULL;
	struct api *api = arg;

	if (method == EVHTTP_REQ_HEAD)
		method = EVHTTP_REQ_GET;
	for (size_t i = 0; path && !r && i < ARRAY_SIZE(routes); i++)
		if (strcmp(path, routes[i].path) == 0)
			r = &routes[i];
	if (r && r->method != method) {
		evhttp_add_header(evhttp_request_get_output_headers(req), "Allow",
			r->method == EVHTTP_REQ_PUT ? "PUT" : "GET, HEAD");
		reply_error(req, 405, "this is not how %.80s is used", path);
	} else if (!r) {
		reply_error(req, 404, "there is no %.80s; try /, /metrics, /healthz, /readyz, /v1/events, "
			"/v1/subjects, /v1/reports, /v1/probe",
			path ? path : "");
	} else if (r->unix_only && !over_unix(req)) {
		reply_error(req, 403, "%s is served on the Unix socket only", r->path);
	} else if (query_text && evhttp_parse_query_str(query_text, &query) < 0) {
		reply_error(req, 400, "the query string is malformed");
	} else {
		api->c.catch_up(api->c.arg);
		r->serve(api, req, &query);
	}
	evhttp_clear_headers(&query);
}

/* ---- connections ---- */

static void accept_no_more(struct api *api)
{
	static const struct timeval rest = { .tv_usec = REST_US };

	for (size_t i = 0; i < ARRAY_SIZE(api->listeners); i++)
		if (api->listeners[i])
			evconnlistener_disable(api->listeners[i]);
	event_add(api->rest, &rest);
}

static void rested(evutil_socket_t fd, short what, void *arg)
{
	api_accept_again(arg);
}

/* What waits would be tried again at once, for ever: not before api_accept_again(). */
static void accept_failed(struct evconnlistener *listener, void *arg)
{
	log_warning("cannot accept a connection: %s", strerror(errno));
	evconnlistener_disable(listener);
}

void api_accept_again(struct api *api)
{
	for (size_t i = 0; i < ARRAY_SIZE(api->listeners); i++)
		if (api->listeners[i])
			evconnlistener_enable(api->listeners[i]);
}

static void turn_away(struct bufferevent *b, int err)
{
	char body[160], text[2 * MAX_HEADERS];
	int fd = bufferevent_getfd(b), len;

	/* what is not taken would make the end a reset, which may overtake the answer */
	recv(fd, text, sizeof(text), MSG_DONTWAIT);
	if (err == -EUSERS)
		snprintf(body, sizeof(body),
			"{\"error\":\"too many connections: the limit of a user is %d; close one\"}\n",
			HELD_EACH);
	else
		snprintf(body, sizeof(body),
			"{\"error\":\"too many connections of all users; try again later\"}\n");
	len = snprintf(text, sizeof(text),
		"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
		"Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
		strlen(body), body);
	send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	/* which libevent takes for the other end's, and closes it; it has read nothing */
	bufferevent_trigger_event(b, BEV_EVENT_READING | BEV_EVENT_EOF, 0);
}

static void screen_one(struct api *api, struct bufferevent *b)
{
	struct declarer peer = peer_of(bufferevent_getfd(b));
	int err;

	if (declare_is_admin(api->c.declare, &peer))
		return;
	/* to no avail on one that has something to read and is about to */
	bufferevent_disable(b, EV_READ);
	bufferevent_priority_set(b, LAST(api->c.base));
	bufferevent_enable(b, EV_READ);
	err = holders_add(api->holders, peer.sock, peer.uid);
	if (!err)
		return;
	api->c.metrics->turned_away++;
	turn_away(b, err);
}

static void screen(evutil_socket_t fd, short what, void *arg)
{
	struct api *api = arg;

	for (size_t i = 0; i < api->n_accepted; i++) {
		screen_one(api, api->accepted[i]);
		bufferevent_decref(api->accepted[i]);
	}
	api->n_accepted = 0;
}

/*
 * Called for each connection that libevent has accepted, and does not tell which: screen() looks at
 * it as soon as it is set up, before anything is read.
 */
static struct bufferevent *new_connection(struct event_base *base, void *arg)
{
	struct bufferevent *b = bufferevent_socket_new(base, -1, 0);
	struct api *api = arg;

	if (!b)
		return NULL;
	bufferevent_priority_set(b, LAST(base)); /* is that of requests that follow at once */
	/* libevent goes on reading while an answer is not taken: the rest has to wait */
	bufferevent_setwatermark(b, EV_READ, 0, 2 * MAX_HEADERS);
	bufferevent_incref(b);
	api->accepted[api->n_accepted++] = b;
	if (api->n_accepted == ACCEPTS)
		accept_no_more(api);
	event_active(api->screen, EV_READ, 0);
	return b;
}

static int set_up_screen(struct api *api)
{
	struct rlimit fds;
	size_t all = HELD_ALL;

	if (getrlimit(RLIMIT_NOFILE, &fds) == 0 && fds.rlim_cur / 4 < all)
		all = fds.rlim_cur / 4;
	api->screen = event_new(api->c.base, -1, 0, screen, api);
	api->rest = evtimer_new(api->c.base, rested, api);
	api->waiting = calloc(1, sizeof(*api->waiting));
	if (!api->screen || !api->rest || !api->waiting || holders_new(&api->holders, HELD_EACH, all) < 0)
		return -ENOMEM;
	event_priority_set(api->screen, 0);
	evhttp_set_bevcb(api->http, new_connection, api);
	return 0;
}

/* ---- sockets ---- */

/* Takes the file descriptor. */
static int serve_on(struct api *api, int fd)
{
	struct evhttp_bound_socket *bound = evhttp_accept_socket_with_handle(api->http, fd);
	struct evconnlistener **l = &api->listeners[api->listeners[0] != NULL];

	if (!bound)
		return -ENOMEM;
	*l = evhttp_bound_socket_get_listener(bound);
	evconnlistener_set_error_cb(*l, accept_failed);
	return 0;
}

static int listen_unix(struct api *api, const char *path, char *why, size_t len)
{
	_cleanup_(closep) int fd = unix_socket_make(SOCK_STREAM, path, &api->socket, why, len);

	if (fd < 0)
		return fd;
	if (serve_on(api, fd) < 0)
		return fail_with(why, len, -ENOMEM, "out of memory");
	fd = -1;
	return 0;
}

int api_parse_listen(const char *where, struct sockaddr_storage *ret, int *ret_len)
{
	const char *port = strrchr(where, ':');
	struct sockaddr_storage addr;
	int len = sizeof(addr);
	uint64_t number;

	/* which libevent reads with atoi(), and does not insist on */
	if (!port || parse_u64(port + 1, &number) < 0 || number < 1 || number > 65535)
		return -EINVAL;
	if (evutil_parse_sockaddr_port(where, (struct sockaddr *)&addr, &len) < 0)
		return -EINVAL;
	/* the end of an IPv6 address without brackets looks like one */
	if (addr.ss_family == AF_INET6 && ((struct sockaddr_in6 *)&addr)->sin6_port != htons(number))
		return -EINVAL;
	*ret = addr;
	*ret_len = len;
	return 0;
}

static int listen_tcp(struct api *api, const char *where, char *why, size_t len)
{
	struct sockaddr_storage addr;
	_cleanup_(closep) int fd = -1;
	int addr_len, one = 1;

	if (api_parse_listen(where, &addr, &addr_len) < 0)
		return fail_with(why, len, -EINVAL, "%s is no ADDR:PORT", where);
	fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail_with(why, len, -errno, "cannot listen on %s: %s", where, strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&addr, addr_len) < 0 || listen(fd, BACKLOG) < 0)
		return fail_with(why, len, -errno, "cannot listen on %s: %s; give another --listen",
			where, strerror(errno));
	if (serve_on(api, fd) < 0)
		return fail_with(why, len, -ENOMEM, "out of memory");
	fd = -1;
	return 0;
}

int api_new(struct api **ret, const struct api_context *context, const char *socket_path,
	const char *listen_on, char *why, size_t len)
{
	struct api *api = calloc(1, sizeof(*api));
	int err = -ENOMEM;

	if (!api)
		return fail_with(why, len, -ENOMEM, "out of memory");
	api->c = *context;
	api->http = evhttp_new(context->base);
	if (api->http && set_up_screen(api) == 0) {
		evhttp_set_max_headers_size(api->http, MAX_HEADERS);
		evhttp_set_max_body_size(api->http, MAX_BODY);
		evhttp_set_timeout(api->http, IDLE_SECONDS);
		evhttp_set_allowed_methods(api->http, UINT16_MAX); /* refused by serve(), in JSON */
		evhttp_set_gencb(api->http, serve, api);
		err = listen_unix(api, socket_path, why, len);
		if (!err && *listen_on)
			err = listen_tcp(api, listen_on, why, len);
	}
	if (err) {
		api_free(api);
		return err;
	}
	*ret = api;
	return 0;
}

void api_free(struct api *api)
{
	if (!api)
		return;
	unix_socket_remove(&api->socket);
	while (api->n_accepted)
		bufferevent_decref(api->accepted[--api->n_accepted]);
	if (api->http)
		evhttp_free(api->http); /* closes the connections, which ends their watchers */
	if (api->screen)
		event_free(api->screen);
	if (api->rest)
		event_free(api->rest);
	holders_free(api->holders);
	if (api->waiting && api->waiting->answers)
		api->waiting->orphan = true;
	else
		free(api->waiting);
	free(api);
}
