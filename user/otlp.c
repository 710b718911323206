// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <event2/buffer.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "clock.h"
#include "http_post.h"
#include "otlp.h"
#include "util.h"

#define BATCH_BYTES (1u << 20) /* of lines, a request */
#define RETRY_AFTER_MAX_NS (300 * NS_PER_S)

static const char *const reasons[] = { [OTLP_QUEUE_FULL] = "queue_full",
	[OTLP_SUPERSEDED] = "superseded", [OTLP_REJECTED] = "rejected", [OTLP_PARTIAL] = "partial",
	[OTLP_MEMORY] = "memory" };
const struct names otlp_reason_names = { reasons, ARRAY_SIZE(reasons) };

/*
 * Of one signal. `body` is what is being sent, or is to be sent again; `timer` waits for the next try,
 * or (of events, and nothing has failed) for more of them.
 */
struct exporter {
	struct otlp *of;
	enum otlp_signal signal;
	const struct otlp_target *target;
	struct otlp_body body;
	struct http_transfer *transfer;
	struct event *timer;
	unsigned int failures; /* in a row */
	int told;	       /* what of them was logged; 0: nothing */
	bool told_partial;
	bool finished;
	uint64_t exported, dropped[OTLP_REASONS], retries;
};

struct otlp {
	struct otlp_context c;
	const struct otlp_settings *settings;
	struct http_post *http;
	struct exporter exporters[OTLP_SIGNALS];
	struct event *interval;
	struct follower *follower;
	struct evbuffer *lines; /* events that wait */
	size_t n_lines;
	uint64_t full_since; /* events missed before the queue was full, plus 1; 0: it is not */
	void (*done)(void *arg);
	void *done_arg;
};

/* Events that did not fit in the queue: the stream counts them. */
static uint64_t missed(const struct otlp *o)
{
	const uint64_t *by_type = stream_missed(o->c.stream, STREAM_EXPORT);
	uint64_t sum = 0;

	for (size_t t = 0; t < PW_EV_TYPES; t++)
		sum += by_type[t];
	return sum;
}

static const char *what(const struct exporter *x)
{
	return x->signal == OTLP_LOGS ? "events" : "metrics";
}

static void forget_body(struct exporter *x)
{
	free(x->body.data);
	x->body = (struct otlp_body){ 0 };
}

static void drop_body(struct exporter *x, enum otlp_reason reason)
{
	x->dropped[reason] += x->body.records;
	forget_body(x);
}

static void wait_for(struct exporter *x, uint64_t ns)
{
	const struct timeval after = { .tv_sec = ns / NS_PER_S, .tv_usec = ns % NS_PER_S / NS_PER_US };

	event_add(x->timer, &after);
}

/* ---- what is said: once, and once when it is over ---- */

static void tell_failed(struct exporter *x, const struct http_answer *a, const struct otlp_said *s,
	bool again)
{
	int key = a->status ? a->status : -1 - a->code;

	if (x->told == key)
		return;
	x->told = key;
	if (!a->status)
		log_warning("OTLP: %s do not reach %s: %s; trying again", what(x), x->target->url, a->error);
	else
		log_warning("OTLP: %s answers %d to %s%s%s; %s", x->target->url, a->status, what(x),
			*s->text ? ": " : "", s->text, again ? "trying again" : "these are lost");
}

static void tell_delivered(struct exporter *x, const struct otlp_said *s)
{
	if (x->told)
		log_info("OTLP: %s reach %s again", what(x), x->target->url);
	x->told = 0;
	if ((s->rejected || *s->text) && !x->told_partial)
		log_warning("OTLP: %s took %s but for %" PRIu64 "%s%s", x->target->url, what(x),
			s->rejected, *s->text ? ": " : "", s->text);
	x->told_partial = s->rejected || *s->text;
}

static void tell_queue(struct otlp *o)
{
	uint64_t now = missed(o);

	if (!o->full_since) {
		if (now == o->exporters[OTLP_LOGS].dropped[OTLP_QUEUE_FULL])
			return;
		o->full_since = o->exporters[OTLP_LOGS].dropped[OTLP_QUEUE_FULL] + 1;
		log_warning("OTLP: %zu events wait and no more fit: newer ones are lost", o->n_lines);
	} else if (!o->n_lines) {
		log_info("OTLP: events fit in the queue again; %" PRIu64 " were lost",
			now + 1 - o->full_since);
		o->full_since = 0;
	}
	o->exporters[OTLP_LOGS].dropped[OTLP_QUEUE_FULL] = now;
}

/* ---- requests ---- */

static void next(struct exporter *x);

static bool is_waiting(const struct exporter *x)
{
	return x->failures && evtimer_pending(x->timer, NULL);
}

/* A pause that doubles, and of it a part by chance: nodes that failed together come back apart. */
static uint64_t pause_ns(const struct exporter *x)
{
	const struct otlp_pauses *p = &x->of->c.pauses;
	uint64_t ns = p->first_ns;
	uint32_t chance = 0;

	for (unsigned int i = 1; i < x->failures && ns < p->longest_ns; i++)
		ns *= 2;
	if (ns > p->longest_ns)
		ns = p->longest_ns;
	if (getrandom(&chance, sizeof(chance), GRND_NONBLOCK) < 0)
		chance = getpid();
	return ns / 2 + ns / 2 * (chance % 1024) / 1024;
}

static void on_answer(const struct http_answer *a, void *arg)
{
	struct exporter *x = arg;
	bool again = !a->status || a->status == 429 || (a->status >= 502 && a->status <= 504);
	uint64_t after;
	struct otlp_said said;

	x->transfer = NULL;
	otlp_decode_answer(x->signal, a->status, a->content_type, a->body, a->len, &said);
	if (a->status >= 200 && a->status < 300) {
		if (said.rejected > x->body.records)
			said.rejected = x->body.records;
		x->exported += x->body.records - said.rejected;
		x->dropped[OTLP_PARTIAL] += said.rejected;
		x->failures = 0;
		forget_body(x);
		tell_delivered(x, &said);
		next(x);
		return;
	}
	tell_failed(x, a, &said, again);
	if (!again)
		drop_body(x, OTLP_REJECTED);
	x->failures++;
	if (x->of->done) {
		next(x);
		return;
	}
	after = a->retry_after_s < RETRY_AFTER_MAX_NS / NS_PER_S ? a->retry_after_s * NS_PER_S :
								    RETRY_AFTER_MAX_NS;
	wait_for(x, after + pause_ns(x));
}

static void send_body(struct exporter *x)
{
	const struct otlp_target *to = x->target;
	const char *headers[OTLP_HEADERS + 2];
	struct http_request r = { .url = to->url, .headers = headers, .ca = to->ca, .cert = to->cert,
		.key = to->key, .timeout_ns = to->timeout_ns, .body = x->body.data,
		.len = x->body.len };

	headers[r.n_headers++] = to->protocol == OTLP_JSON ? "Content-Type: application/json" :
							     "Content-Type: application/x-protobuf";
	if (to->gzip)
		headers[r.n_headers++] = "Content-Encoding: gzip";
	for (size_t i = 0; i < to->n_headers; i++)
		headers[r.n_headers++] = to->headers[i];
	if (x->failures)
		x->retries++;
	if (http_post_send(x->of->http, &r, on_answer, x, &x->transfer) < 0) {
		drop_body(x, OTLP_MEMORY);
		wait_for(x, x->of->c.pauses.longest_ns);
	}
}

static int encode_metrics(struct exporter *x)
{
	struct otlp *o = x->of;

	return otlp_encode_metrics(&o->settings->resource, x->target->protocol, o->c.collect, o->c.arg,
		o->c.start_ns, clock_ns(CLOCK_REALTIME), &x->body);
}

/* The lines of one request; they are in `lines` no more. */
static struct evbuffer *take_lines(struct otlp *o, size_t *n)
{
	struct evbuffer *batch = evbuffer_new();
	struct evbuffer_ptr end;
	size_t eol_len, len = 0;

	for (*n = 0; batch && *n < OTLP_BATCH && len < BATCH_BYTES; ++*n) {
		evbuffer_ptr_set(o->lines, &end, len, EVBUFFER_PTR_SET);
		end = evbuffer_search_eol(o->lines, &end, &eol_len, EVBUFFER_EOL_LF);
		if (end.pos < 0)
			break;
		len = end.pos + eol_len;
	}
	if (batch)
		evbuffer_remove_buffer(o->lines, batch, len);
	return batch;
}

static int encode_logs(struct exporter *x)
{
	struct otlp *o = x->of;
	size_t n;
	struct evbuffer *batch = take_lines(o, &n);
	const char *text = batch ? (char *)evbuffer_pullup(batch, -1) : NULL;
	int err = -ENOMEM;

	if (!batch)
		return -ENOMEM;
	o->n_lines -= n;
	if (text)
		err = otlp_encode_logs(&o->settings->resource, x->target->protocol, text,
			evbuffer_get_length(batch), clock_ns(CLOCK_REALTIME), &x->body);
	if (err)
		x->dropped[OTLP_MEMORY] += n;
	evbuffer_free(batch);
	return err;
}

/* False: there is nothing to send, or it could not be made. */
static bool make_body(struct exporter *x)
{
	int err;

	if (x->signal == OTLP_LOGS && !x->of->n_lines)
		return false;
	err = x->signal == OTLP_LOGS ? encode_logs(x) : encode_metrics(x);
	if (!err && x->target->gzip) {
		err = otlp_gzip(&x->body);
		if (err)
			drop_body(x, OTLP_MEMORY);
	}
	if (err)
		log_error("OTLP: cannot make a request of %s: %s", what(x), strerror(-err));
	return !err;
}

static void finish(struct exporter *x)
{
	struct otlp *o = x->of;

	x->finished = true;
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		if (o->exporters[i].target && !o->exporters[i].finished)
			return;
	o->done(o->done_arg);
}

/* Of events; numbers are sent when they are due. */
static void next(struct exporter *x)
{
	if (x->signal == OTLP_LOGS)
		tell_queue(x->of);
	if (x->transfer)
		return;
	if (x->of->done && (x->failures || x->signal == OTLP_METRICS || !x->of->n_lines)) {
		finish(x);
		return;
	}
	if (x->body.data || (x->signal == OTLP_LOGS && make_body(x)))
		send_body(x);
}

static void on_timer(evutil_socket_t fd, short events, void *arg)
{
	next(arg);
}

static void send_metrics(struct exporter *x)
{
	if (x->transfer)
		return;
	if (x->body.data)
		drop_body(x, OTLP_SUPERSEDED);
	if (make_body(x) && !is_waiting(x))
		send_body(x);
}

static void on_interval(evutil_socket_t fd, short events, void *arg)
{
	send_metrics(arg);
}

/* ---- the stream's follower ---- */

static size_t count_lines(struct evbuffer *data)
{
	struct evbuffer_ptr at = { 0 };
	size_t n = 0, eol_len;

	evbuffer_ptr_set(data, &at, 0, EVBUFFER_PTR_SET);
	for (;; n++) {
		at = evbuffer_search_eol(data, &at, &eol_len, EVBUFFER_EOL_LF);
		if (at.pos < 0)
			return n;
		evbuffer_ptr_set(data, &at, eol_len, EVBUFFER_PTR_ADD);
	}
}

static void take_events(struct evbuffer *data, void *arg)
{
	struct otlp *o = arg;
	struct exporter *x = &o->exporters[OTLP_LOGS];
	size_t n = count_lines(data);

	if (evbuffer_add_buffer(o->lines, data) < 0) {
		evbuffer_drain(data, evbuffer_get_length(data));
		x->dropped[OTLP_MEMORY] += n;
		return;
	}
	o->n_lines += n;
	if (x->transfer || is_waiting(x) || o->done)
		return;
	if (o->n_lines >= OTLP_BATCH)
		wait_for(x, 0); /* not from here: the stream is being flushed */
	else if (!evtimer_pending(x->timer, NULL))
		wait_for(x, o->c.pauses.batch_ns);
}

static size_t backlog(void *arg)
{
	struct otlp *o = arg;

	tell_queue(o);
	return evbuffer_get_length(o->lines);
}

/* ---- */

static int start_exporter(struct otlp *o, enum otlp_signal signal)
{
	static const struct filter everything;
	struct exporter *x = &o->exporters[signal];
	const struct timeval interval = { .tv_sec = o->settings->interval_ns / NS_PER_S,
		.tv_usec = o->settings->interval_ns % NS_PER_S / NS_PER_US };

	if (!o->settings->targets[signal].url)
		return 0;
	x->timer = evtimer_new(o->c.base, on_timer, x);
	if (!x->timer)
		return -ENOMEM;
	x->of = o;
	x->signal = signal;
	x->target = &o->settings->targets[signal];
	if (signal == OTLP_LOGS) {
		if (stream_follow(o->c.stream, &everything, STREAM_LINES, take_events, backlog, o,
			    &o->follower) < 0)
			return -ENOMEM;
		follower_exports(o->follower);
		return 0;
	}
	o->interval = event_new(o->c.base, -1, EV_PERSIST, on_interval, x);
	return o->interval && event_add(o->interval, &interval) == 0 ? 0 : -ENOMEM;
}

int otlp_new(struct otlp **ret, const struct otlp_context *context,
	const struct otlp_settings *settings, char *why, size_t why_len)
{
	struct otlp *o = calloc(1, sizeof(*o));
	int err;

	snprintf(why, why_len, "out of memory");
	if (!o)
		return -ENOMEM;
	o->c = *context;
	o->settings = settings;
	o->lines = evbuffer_new();
	err = o->lines ? http_post_new(&o->http, context->base, why, why_len) : -ENOMEM;
	for (unsigned int i = 0; !err && i < OTLP_SIGNALS; i++)
		err = start_exporter(o, i);
	if (err) {
		otlp_free(o);
		return err;
	}
	*ret = o;
	return 0;
}

void otlp_free(struct otlp *o)
{
	size_t left;

	if (!o)
		return;
	left = o->n_lines + o->exporters[OTLP_LOGS].body.records;
	if (left)
		log_warning("OTLP: %zu events were not delivered", left);
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++) {
		http_post_cancel(o->exporters[i].transfer);
		free(o->exporters[i].body.data);
		if (o->exporters[i].timer)
			event_free(o->exporters[i].timer);
	}
	http_post_free(o->http);
	if (o->interval)
		event_free(o->interval);
	if (o->follower)
		stream_unfollow(o->c.stream, o->follower);
	if (o->lines)
		evbuffer_free(o->lines);
	free(o);
}

void otlp_finish(struct otlp *o, void (*done)(void *arg), void *arg)
{
	struct exporter *metrics = o ? &o->exporters[OTLP_METRICS] : NULL;

	if (!o) {
		done(arg);
		return;
	}
	o->done = done;
	o->done_arg = arg;
	if (o->interval)
		event_del(o->interval);
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		if (o->exporters[i].target) {
			event_del(o->exporters[i].timer);
			o->exporters[i].failures = 0;
		}
	if (metrics->target)
		send_metrics(metrics);
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		if (o->exporters[i].target)
			next(&o->exporters[i]);
}

/* ---- its own numbers ---- */

void otlp_stats(const struct otlp *o, struct otlp_stats *ret)
{
	struct otlp_stats s = { 0 };

	for (unsigned int i = 0; i < OTLP_SIGNALS; i++) {
		s.signals[i].exported = o->exporters[i].exported;
		s.signals[i].retries = o->exporters[i].retries;
		s.signals[i].queued = o->exporters[i].body.records;
		memcpy(s.signals[i].dropped, o->exporters[i].dropped, sizeof(s.signals[i].dropped));
	}
	s.signals[OTLP_LOGS].queued += o->n_lines;
	s.signals[OTLP_LOGS].dropped[OTLP_QUEUE_FULL] = missed(o);
	*ret = s;
}

static void write_family(const struct metric_sink *sink, const char *name, enum metric_type type,
	const char *help)
{
	sink->family(&(struct metric_family){ .name = name, .help = help, .type = type }, sink->arg);
}

static void write_number(
	const struct metric_sink *sink, enum otlp_signal signal, const char *reason, uint64_t value)
{
	const struct metric_label labels[] = { { "signal", names_name(&otlp_signal_names, signal) },
		{ "reason", reason } };

	sink->number(labels, ARRAY_SIZE(labels), value, sink->arg);
}

void otlp_collect(const struct otlp *o, const struct metric_sink *sink)
{
	struct otlp_stats s;

	if (!o)
		return;
	otlp_stats(o, &s);
	write_family(sink, "phasewatch_otlp_exported", METRIC_COUNTER,
		"Data points and log records that the OTLP receiver accepted.");
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		write_number(sink, i, NULL, s.signals[i].exported);
	write_family(sink, "phasewatch_otlp_dropped", METRIC_COUNTER,
		"Data points and log records that it will not get: the queue was full, newer numbers were "
		"due, it refused them, or there was no memory.");
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		for (unsigned int r = 0; r < OTLP_REASONS; r++)
			write_number(sink, i, reasons[r], s.signals[i].dropped[r]);
	write_family(sink, "phasewatch_otlp_retries", METRIC_COUNTER,
		"Requests to the OTLP receiver that were sent again after a failure.");
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		write_number(sink, i, NULL, s.signals[i].retries);
	write_family(sink, "phasewatch_otlp_queue_records", METRIC_GAUGE,
		"Data points and log records that wait for the OTLP receiver.");
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++)
		write_number(sink, i, NULL, s.signals[i].queued);
}
