// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The daemon: one loop over the ring buffer, the API's sockets, timers and signals. */
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <bpf/libbpf.h>
#include <event2/event.h>

#include "api.h"
#include "audit.h"
#include "clock.h"
#include "commands.h"
#include "declare.h"
#include "drain.h"
#include "ignore.h"
#include "kernel.h"
#include "lines_out.h"
#include "report.h"
#include "names.h"
#include "notify.h"
#include "otlp.h"
#include "proc.h"
#include "signals.h"
#include "stream.h"
#include "subjects.h"
#include "util.h"
#include "workloads.h"

/*
 * The kernel half wakes the daemon once; from then on it looks by itself, every POLL_MS, until a
 * look finds nothing. A ring of 4 MiB takes a storm of 2 million records a second that long.
 */
#define POLL_MS 10
#define RECONCILE_MS 1000
#define BATCH 4096 /* records between two looks at the sockets */
#define BACKLOGS 16
#define FINISH_MS 2000
#define CLOCK_STEP_NS 1000000
#define BACKLOG_NS 100000000ULL
/*
 * What there may be without end goes last, in turns: records, and what users ask the API. What
 * administrators ask goes before, whatever others are up to. (The API has the first to itself.)
 */
#define PRIORITIES 3
#define SLICE_US 10000 /* of the last, until it is looked for what goes before */

struct run_options {
	const char *socket;
	const char *notify_socket;
	const char *listen;
	const char *pin_dir;
	const char *signals;
	const char *pod_logs;
	uint64_t grace_ns;
	uint32_t flaps;
	uint32_t workloads;
	bool listeners_are_subjects;
	struct ignore_options ignore;
	struct audit_options audit;
	const char *admin_gid;
	struct declare_options declare;
	struct otlp_options otlp;
	bool to_stdout;
};

/* What the kernel half is told. */
struct run_rules {
	struct pw_signal_rule signals[PW_SIGNAL_RULES];
	struct pw_ignore ignore;
	bool ignores;
};

static const struct opt run_table[] = {
	OPT_SOCKET(struct run_options, socket),
	OPT_STRING(struct run_options, notify_socket, .name = "notify-socket", .metavar = "PATH",
		.max = 107,
		.help = "take phases as sd_notify(3) tells them, here; \"\" for not at all, default "
			"notify.sock beside --socket"),
	OPT_STRING(struct run_options, listen, .name = "listen", .metavar = "ADDR:PORT",
		.fallback = "127.0.0.1:9464",
		.help = "serve metrics and events, read only, over TCP; \"\" for not at all"),
	OPT_STRING(struct run_options, pin_dir, .name = "pin-dir", .metavar = "DIR", .min = 1,
		.max = 255, .fallback = PW_PIN_DIR, .help = "pin maps and links here"),
	OPT_STRING(struct run_options, pod_logs, .name = "pod-logs", .metavar = "DIR", .min = 1,
		.max = 255, .fallback = PW_POD_LOGS,
		.help = "the kubelet's logs of pods, which tell their names"),
	OPT_DURATION(struct run_options, grace_ns, .name = "grace", .metavar = "TIME",
		.fallback = "0", .max = 3600 * NS_PER_S,
		.help = "arrivals this soon after DRAIN are still expected"),
	OPT_STRING(struct run_options, signals, .name = "signals", .metavar = "RULES",
		.fallback = SIGNALS_DEFAULT,
		.help = "signals that move a subject which is ACTIVE, as [COMM:]SIGNAL,...=PHASE,...; "
			"\"\" for none"),
	OPT_FLAG(struct run_options, listeners_are_subjects, .name = "auto",
		.help = "every process that listens on TCP is a subject, ACTIVE, with its descendants in "
			"its cgroup or session; nobody has to declare anything"),
	OPT_U32(struct run_options, flaps, .name = "flaps", .metavar = "N", .min = 1,
		.max = SUBJECT_FLAPS_MAX, .fallback = "2",
		.help = "a subject that begins its life cycle anew more often within an hour is flapping"),
	OPT_U32(struct run_options, workloads, .name = "max-workloads", .metavar = "N", .min = 1,
		.max = PW_WORKLOADS, .fallback = "256",
		.help = "names that have numbers of their own in the metrics; further ones are \"other\""),
	OPT_LIST(struct run_options, ignore.peers, STRING, .name = "ignore-peer",
		.metavar = "CIDR", .min = 1, .max = 63,
		.help = "whose connections are no user's, such as a prober's"),
	OPT_LIST(struct run_options, ignore.ports, U32, .name = "ignore-port", .metavar = "N",
		.min = 1, .max = 65535, .help = "connections to this port are no user's"),
	OPT_LIST(struct run_options, ignore.clients, STRING, .name = "ignore-client",
		.metavar = "COMM", .min = 1, .max = PW_COMM_LEN - 1,
		.help = "connections that this program on this node opened are no user's"),
	OPT_STRING(struct run_options, audit.path, .name = "audit-log", .metavar = "PATH", .min = 1,
		.max = PATH_MAX - 16,
		.help = "write a line of JSON for each declaration, whatever became of it, here"),
	OPT_U64(struct run_options, audit.size, .name = "audit-size", .metavar = "BYTES",
		.max = INT64_MAX, .fallback = "16777216",
		.help = "begin a new audit log before it is larger; 0 for never"),
	OPT_U32(struct run_options, audit.keep, .name = "audit-keep", .metavar = "N", .min = 1,
		.max = 999, .fallback = "4",
		.help = "older audit logs to keep, as PATH.1 and so on"),
	OPT_STRING(struct run_options, admin_gid, .name = "admin-gid", .metavar = "GROUP", .min = 1,
		.help = "whose members may declare anything, as root may; a name or a number"),
	OPT_U32(struct run_options, declare.rate, .name = "limit-rate", .metavar = "N", .min = 1,
		.max = 1000000, .fallback = "50",
		.help = "declarations a second of each other user, and five times as many at once"),
	OPT_U32(struct run_options, declare.subjects, .name = "limit-subjects", .metavar = "N",
		.max = 1000000, .fallback = "1024",
		.help = "processes that each other user may have declared at once"),
	OPT_FLAG(struct run_options, to_stdout, .name = "stdout",
		.help = "write events to standard output as lines of JSON, and nothing else"),
	OPT_STRING(struct run_options, otlp.endpoint, .name = "otlp-endpoint", .metavar = "URL",
		.max = 1024,
		.help = "push metrics to URL/v1/metrics and events to URL/v1/logs; \"\" for not at all, "
			"default $OTEL_EXPORTER_OTLP_ENDPOINT"),
	OPT_CHOICE(struct run_options, otlp.protocol, .name = "otlp-protocol", .metavar = "NAME",
		.choices = &otlp_protocol_names,
		.help = "default http/protobuf, or $OTEL_EXPORTER_OTLP_PROTOCOL"),
	OPT_LIST(struct run_options, otlp.headers, STRING, .name = "otlp-header",
		.metavar = "NAME=VALUE", .min = 3, .max = 8192,
		.help = "send this header, too; secrets are better in $OTEL_EXPORTER_OTLP_HEADERS"),
	OPT_STRING(struct run_options, otlp.ca, .name = "otlp-ca", .metavar = "FILE", .min = 1,
		.max = PATH_MAX - 1, .help = "whose certificates the receiver may have, default the system's, "
			"or $OTEL_EXPORTER_OTLP_CERTIFICATE"),
	OPT_STRING(struct run_options, otlp.cert, .name = "otlp-cert", .metavar = "FILE", .min = 1,
		.max = PATH_MAX - 1, .help = "our own certificate, default "
			"$OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
	OPT_STRING(struct run_options, otlp.key, .name = "otlp-key", .metavar = "FILE", .min = 1,
		.max = PATH_MAX - 1, .help = "its key, default $OTEL_EXPORTER_OTLP_CLIENT_KEY"),
	OPT_DURATION(struct run_options, otlp.interval_ns, .name = "otlp-interval", .metavar = "TIME",
		.min = 100 * NS_PER_MS, .max = 3600 * NS_PER_S,
		.help = "how often metrics are pushed, default 1m, or $OTEL_METRIC_EXPORT_INTERVAL"),
	OPT_CHOICE(struct run_options, otlp.compression, .name = "otlp-compression",
		.metavar = "NAME", .choices = &otlp_compression_names,
		.help = "default none, or $OTEL_EXPORTER_OTLP_COMPRESSION"),
	OPT_DURATION(struct run_options, otlp.timeout_ns, .name = "otlp-timeout", .metavar = "TIME",
		.min = NS_PER_MS, .max = 3600 * NS_PER_S,
		.help = "how long a request may take, default 10s, or $OTEL_EXPORTER_OTLP_TIMEOUT"),
	OPT_END,
};

const struct opts_spec run_spec = {
	.name = "run",
	.summary = "observe this host and serve events, metrics and declarations",
	.details = "Stopped by SIGTERM or SIGINT. The kernel half goes on counting then, and the next "
		   "run takes over; 'phasewatch unload' removes it. SIGHUP opens the audit log anew.",
	.options = run_table,
};

struct daemon {
	struct event_base *base;
	struct event *wake, *poll, *reconcile, *term, *interrupt, *hangup;
	struct kernel *kernel;
	struct ring_buffer *ring;
	struct proc_names *names;
	struct subjects *subjects;
	struct audit *audit;
	struct declare *declare;
	struct drains *drains;
	struct stream *stream;
	struct workloads *workloads;
	struct metrics_of metrics;
	struct otlp_settings otlp_settings;
	struct otlp *otlp;
	struct lines_out *lines_out;
	struct notify *notify;
	uint64_t notified[NOTIFY_RESULTS];
	struct api *api;
	struct pw_counters counters; /* as of the last look */
	struct event backlogs[BACKLOGS]; /* being added up, by who closed the listener */
	uint64_t realtime_offset_ns;
	unsigned int batch;
	bool stopping;
	char node[256];
};

static void publish(struct daemon *d, struct event *e, const char *subject)
{
	const struct pw_process *p = event_process(e);
	struct event_names names = { .node = d->node, .subject = subject,
		.realtime_offset_ns = d->realtime_offset_ns };

	const struct pw_client *client = event_client(e);
	char cgroup[PATH_MAX];

	if (p) {
		names.exe = proc_names_exe(d->names, p);
		names.cgroup = proc_names_cgroup(d->names, p->cgroup_id);
	}
	if (client) {
		if (names.cgroup) /* good until the next one is asked for */
			names.cgroup = strcpy(cgroup, names.cgroup);
		names.client_cgroup = proc_names_cgroup(d->names, client->cgroup_id);
	}
	e->seq = d->kernel->control->seq++;
	workloads_event(d->workloads, e, &names);
	if (stream_publish(d->stream, e, &names) < 0)
		log_error("out of memory: event %llu is not shown", (unsigned long long)e->seq);
}

/* ---- connections dropped from accept queues: a record each, an event for each listener ---- */

static void publish_backlog(struct daemon *d, struct event *backlog)
{
	publish(d, backlog, subjects_name(d->subjects, &backlog->backlog.on.key));
	backlog->backlog.dropped = backlog->backlog.half_open = 0;
}

static bool is_loss(const struct event *backlog)
{
	return backlog->backlog.dropped || backlog->backlog.half_open;
}

static void flush_backlogs(struct daemon *d, uint64_t before_ns)
{
	bool any = false;

	for (size_t i = 0; i < BACKLOGS; i++)
		if (is_loss(&d->backlogs[i]) && d->backlogs[i].time_ns < before_ns) {
			publish_backlog(d, &d->backlogs[i]);
			any = true;
		}
	if (any)
		stream_flush(d->stream);
}

/* The slot of the closing process and listener; what else was in it is published. */
static struct event *backlog_slot(struct daemon *d, const struct pw_conn_record *r)
{
	struct event *slot = &d->backlogs[r->process.pid % BACKLOGS];
	struct event_backlog *b = &slot->backlog;

	if (b->process.pid == r->process.pid && b->listener.dport == r->tuple.dport &&
		b->listener.netns == r->tuple.netns)
		return slot;
	if (is_loss(slot))
		publish_backlog(d, slot);
	*slot = (struct event){ .type = PW_EV_BACKLOG,
		.backlog = { .process = r->process, .on = r->on, .listener = r->tuple } };
	return slot;
}

/*
 * Comes before its drops, and knows the listener's own address; they only know where they went to.
 * shutdown(2) of a listener drops its queue, and closes nothing.
 */
static void on_unlisten(struct daemon *d, const struct event *e)
{
	struct event *slot = backlog_slot(d, &e->conn);

	slot->time_ns = e->time_ns;
	slot->backlog.on = e->conn.on;
	slot->backlog.listener = e->conn.tuple;
	slot->backlog.addr_known = true;
	slot->backlog.half_open = e->conn.how;
	if (d->kernel->control->queue_is_loss)
		slot->backlog.dropped += e->conn.number;
}

static void on_drop(struct daemon *d, const struct event *e)
{
	struct event *slot = backlog_slot(d, &e->conn);

	slot->time_ns = e->time_ns;
	slot->backlog.on = e->conn.on;
	slot->backlog.dropped++;
}

static void on_move(struct daemon *d, const struct pw_move_record *m)
{
	int err = subjects_moved(d->subjects, m);

	if (err)
		log_error("what %s[%llu] had before it moved to %s is not all known: %s", m->by.comm,
			(unsigned long long)m->key.id, phase_name(m->now.phase), strerror(-err));
}

static int on_record(void *arg, void *data, size_t size)
{
	struct daemon *d = arg;
	struct event e;

	if (event_decode(data, size, &e) < 0) {
		log_error("the kernel half sent a record of %zu bytes that is none", size);
		return 0;
	}
	drains_event(d->drains, &e);
	switch (e.type) {
	case PW_EV_FORK:
		proc_names_forked(d->names, &e.task.process);
		break;
	case PW_EV_EXEC:
		proc_names_executed(d->names, &e.task.process);
		subjects_executed(d->subjects, &e.task.process);
		break;
	case PW_EV_MOVE:
		on_move(d, &e.move);
		break;
	case PW_EV_DROP:
		on_drop(d, &e);
		break;
	case PW_EV_UNLISTEN:
		on_unlisten(d, &e);
		break;
	case PW_EV_SIGNAL:
		break;
	default:
		publish(d, &e, subjects_name(d->subjects, &event_verdict_on(&e)->key));
	}
	return ++d->batch < BATCH ? 0 : -EAGAIN;
}

/* ---- drains ---- */

static void publish_report(struct daemon *d, const struct report *r)
{
	const struct report_declared *began = report_began(r);
	_cleanup_(json_free) struct json_out j = { 0 };
	struct event e = { .type = PW_EV_DRAIN, .time_ns = clock_boot_ns() };

	report_write(&j, NULL, r, clock_boot_ns());
	if (j.failed)
		return;
	e.drain = (struct event_drain){ .key = r->key, .epoch = began->epoch,
		.source = began->source, .json = j.text, .len = j.len,
		.phase = r->shutdown.time_ns ? PW_SHUTDOWN : PW_DRAIN };
	publish(d, &e, r->name[0] ? r->name : NULL);
	workloads_drained(d->workloads, r, e.seq);
	stream_flush(d->stream);
}

static const struct pw_stats *stats_of(
	struct daemon *d, const struct subject *s, struct pw_stats *stats)
{
	return subjects_stats(d->subjects, s, stats) == 0 ? stats : NULL;
}

static void on_phase(const struct subject *s, const struct event_phase *p, void *arg)
{
	struct event e = { .type = PW_EV_PHASE, .time_ns = p->now.since_ns, .phase = *p };
	const struct report *ended = NULL;
	struct daemon *d = arg;
	struct pw_stats stats;

	e.phase.realtime_offset_ns = d->realtime_offset_ns;
	declare_moved(d->declare, s, p);
	workloads_phase(d->workloads, s, p);
	publish(d, &e, s->name);
	if (s->now.phase >= PW_DRAIN)
		subjects_look(d->subjects);
	if (drains_phase(d->drains, &e.phase, s->name, stats_of(d, s, &stats), clock_boot_ns(), &ended) < 0)
		log_error("out of memory: the drain of %s is not followed", s->name);
	if (ended)
		publish_report(d, ended);
	stream_flush(d->stream);
}

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
	const struct report *ended;
	struct daemon *d = arg;
	struct pw_stats stats;

	ended = drains_end(d->drains, &s->key, nobody_left ? REPORT_EXITED : REPORT_RELEASED,
		stats_of(d, s, &stats), clock_boot_ns());
	if (ended)
		publish_report(d, ended);
}

static void on_violation(const struct subject *s, const struct event_violation *v, void *arg)
{
	struct event e = { .type = PW_EV_VIOLATION, .time_ns = clock_boot_ns(), .violation = *v };
	struct daemon *d = arg;

	workloads_violation(d->workloads, s, v->kind);
	publish(d, &e, s->name);
	stream_flush(d->stream);
}

static void on_left(const struct subject *s, void *arg)
{
	struct daemon *d = arg;

	workloads_left(d->workloads, s);
}

static void follow_drain(const struct subject *s, void *arg)
{
	struct daemon *d = arg;
	struct pw_stats stats;

	if (s->now.phase >= PW_DRAIN && stats_of(d, s, &stats))
		drains_stats(d->drains, &s->key, &stats);
}

/* A `lost` event stands in the stream for as many sequence numbers as it counts. */
static void tell_lost(struct daemon *d, const __u64 now[PW_EV_TYPES], const __u64 before[PW_EV_TYPES],
	const char *stage)
{
	struct event e = { .type = PW_EV_LOST, .time_ns = clock_boot_ns(),
		.lost = { .stage = stage } };

	for (size_t t = 0; t < PW_EV_TYPES; t++) {
		e.lost.by_type[t] = now[t] - before[t];
		e.lost.count += e.lost.by_type[t];
	}
	if (!e.lost.count)
		return;
	publish(d, &e, NULL);
	d->kernel->control->seq += e.lost.count - 1;
	drains_lost(d->drains,
		e.lost.count - e.lost.by_type[PW_EV_FORK] - e.lost.by_type[PW_EV_EXEC],
		clock_boot_ns());
}

static void look_for_losses(struct daemon *d)
{
	struct pw_counters now;

	if (kernel_read_counters(d->kernel, &now) < 0)
		return;
	tell_lost(d, now.lost_ring, d->counters.lost_ring, "ring");
	tell_lost(d, now.lost_map, d->counters.lost_map, "map");
	d->counters = now;
}

/* The two clocks are not read at one moment: only a real step of the wall clock counts. */
static void follow_clock(struct daemon *d)
{
	uint64_t now = clock_ns(CLOCK_REALTIME) - clock_boot_ns();

	if (llabs((int64_t)(now - d->realtime_offset_ns)) > CLOCK_STEP_NS)
		d->realtime_offset_ns = now;
}

/* Returns whether there was anything. */
static bool drain(struct daemon *d)
{
	follow_clock(d);
	d->batch = 0;
	ring_buffer__consume(d->ring);
	/* a listener's end takes its queue with it in one go */
	flush_backlogs(d, d->batch ? clock_boot_ns() - BACKLOG_NS : UINT64_MAX);
	if (!d->batch)
		return false;
	look_for_losses(d);
	stream_flush(d->stream);
	return true;
}

static void poll_soon(struct daemon *d)
{
	static const struct timeval soon = { .tv_usec = POLL_MS * 1000 }, now = { 0 };

	event_add(d->poll, d->batch < BATCH ? &soon : &now);
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
	struct daemon *d = arg;

	d->kernel->control->waiting = 0;
	drain(d);
	poll_soon(d);
}

static void on_poll(evutil_socket_t fd, short what, void *arg)
{
	struct daemon *d = arg;

	if (!drain(d)) {
		__atomic_store_n(&d->kernel->control->waiting, 1, __ATOMIC_SEQ_CST);
		if (!drain(d)) /* what came before the kernel half could know */
			return;
		d->kernel->control->waiting = 0;
	}
	poll_soon(d);
}

/*
 * Whoever empties the ring takes the wake-up with it: epoll forgets an edge if there is nothing to
 * read when it is to be told, and the kernel half has given its one signal.
 */
static void catch_up(void *arg)
{
	struct daemon *d = arg;

	if (drain(d))
		poll_soon(d);
}

static void on_reconcile(evutil_socket_t fd, short what, void *arg)
{
	struct daemon *d = arg;
	int err;

	api_accept_again(d->api);
	declare_tick(d->declare);
	catch_up(d);
	if (drains_running(d->drains)) {
		subjects_look(d->subjects);
		subjects_for_each(d->subjects, follow_drain, d);
	}
	err = subjects_reconcile(d->subjects);
	if (err)
		log_error("cannot compare with pw_phases: %s", strerror(-err));
	look_for_losses(d);
	stream_flush(d->stream);
}

static int collect(const struct metric_sink *sink, void *arg)
{
	struct daemon *d = arg;

	return metrics_collect(&d->metrics, sink);
}

static void stop(void *arg)
{
	struct daemon *d = arg;

	event_base_loopbreak(d->base);
}

/* Once: what is to be pushed may still go. Twice: at once. */
static void on_stop(evutil_socket_t fd, short what, void *arg)
{
	static const struct timeval last = { .tv_sec = FINISH_MS / 1000 };
	struct daemon *d = arg;

	if (d->stopping)
		stop(d);
	d->stopping = true;
	event_base_loopexit(d->base, &last);
	catch_up(d);
	otlp_finish(d->otlp, stop, d);
}

static void on_hangup(evutil_socket_t fd, short what, void *arg)
{
	struct daemon *d = arg;

	log_info("SIGHUP: %s", d->audit ? "opening the audit log anew" : "there is no audit log");
	if (d->audit)
		audit_reopen(d->audit);
}

static struct event_base *make_base(void)
{
	static const struct timeval slice = { .tv_usec = SLICE_US };
	struct event_config *config = event_config_new();
	struct event_base *base = NULL;

	if (config && event_config_set_max_dispatch_interval(config, &slice, -1, PRIORITIES - 1) == 0)
		base = event_base_new_with_config(config);
	if (config)
		event_config_free(config);
	if (base)
		event_base_priority_init(base, PRIORITIES);
	return base;
}

static int start_loop(struct daemon *d)
{
	static const struct timeval reconcile = { .tv_sec = RECONCILE_MS / 1000 };
	int fd;

	d->ring = ring_buffer__new(d->kernel->events, on_record, d, NULL);
	if (!d->ring)
		return -errno;
	fd = ring_buffer__epoll_fd(d->ring);
	d->wake = event_new(d->base, fd, EV_READ | EV_PERSIST | EV_ET, on_wake, d);
	d->poll = evtimer_new(d->base, on_poll, d);
	d->reconcile = event_new(d->base, -1, EV_PERSIST, on_reconcile, d);
	d->term = evsignal_new(d->base, SIGTERM, on_stop, d);
	d->interrupt = evsignal_new(d->base, SIGINT, on_stop, d);
	d->hangup = evsignal_new(d->base, SIGHUP, on_hangup, d);
	if (!d->wake || !d->poll || !d->reconcile || !d->term || !d->interrupt || !d->hangup)
		return -ENOMEM;
	event_priority_set(d->wake, PRIORITIES - 1);
	event_priority_set(d->poll, PRIORITIES - 1);
	event_add(d->wake, NULL);
	event_add(d->reconcile, &reconcile);
	event_add(d->term, NULL);
	event_add(d->interrupt, NULL);
	event_add(d->hangup, NULL);
	poll_soon(d); /* records may wait from before */
	return 0;
}

static void event_freep(struct event **e)
{
	if (*e)
		event_free(*e);
}

static void daemon_stop(struct daemon *d)
{
	api_free(d->api);
	notify_free(d->notify);
	otlp_free(d->otlp);
	lines_out_free(d->lines_out);
	otlp_settings_free(&d->otlp_settings);
	event_freep(&d->wake);
	event_freep(&d->poll);
	event_freep(&d->reconcile);
	event_freep(&d->term);
	event_freep(&d->interrupt);
	event_freep(&d->hangup);
	ring_buffer__free(d->ring);
	declare_free(d->declare);
	audit_free(d->audit);
	subjects_free(d->subjects);
	drains_free(d->drains);
	workloads_free(d->workloads);
	stream_free(d->stream);
	proc_names_free(d->names);
	if (d->base)
		event_base_free(d->base);
	if (d->kernel)
		d->kernel->control->waiting = 0;
	kernel_free(d->kernel);
}

static void tell_rules(struct pw_control *c, const struct run_options *o, const struct run_rules *rules)
{
	c->grace_ns = o->grace_ns;
	c->listeners_are_subjects = o->listeners_are_subjects;
	c->ignores = 0;
	c->ignore = rules->ignore;
	c->ignores = rules->ignores;
	c->signals = 0;
	memcpy(c->signal_rules, rules->signals, sizeof(c->signal_rules));
	c->signals = signals_mask(rules->signals);
}

/* Counters began when they were pinned, by whichever daemon. */
static uint64_t counting_since(const struct daemon *d, const struct run_options *o)
{
	char path[PATH_MAX];
	struct stat pinned;

	snprintf(path, sizeof(path), "%s/pw_counters", o->pin_dir);
	if (!d->kernel->took_over || stat(path, &pinned) < 0)
		return clock_ns(CLOCK_REALTIME);
	return pinned.st_mtim.tv_sec * NS_PER_S + pinned.st_mtim.tv_nsec;
}

static int start_pushing(struct daemon *d, const struct run_options *o, char *why, size_t len)
{
	const struct otlp_context context = { .base = d->base, .stream = d->stream,
		.collect = collect, .arg = d, .start_ns = counting_since(d, o),
		.pauses = OTLP_PAUSES };
	int err = o->to_stdout ? lines_out_new(&d->lines_out, d->base, d->stream, STDOUT_FILENO) : 0;

	if (err)
		return fail_with(why, len, err, "cannot write to standard output: %s", strerror(-err));
	if (otlp_settings_on(&d->otlp_settings))
		err = otlp_new(&d->otlp, &context, &d->otlp_settings, why, len);
	d->metrics.otlp = d->otlp;
	return err;
}

static int daemon_start(struct daemon *d, const struct run_options *o, const struct run_rules *rules,
	char *why, size_t len)
{
	const struct subjects_listener listener = {
		.phase = on_phase, .end = on_end, .violation = on_violation, .left = on_left,
		.arg = d };
	struct declare_options declare_options = o->declare;
	struct api_context context;
	int err;

	err = o->audit.path ? audit_new(&d->audit, &o->audit, d->node, why, len) : 0;
	if (err)
		return err;
	declare_options.audit = d->audit;
	err = kernel_open(&d->kernel, o->pin_dir, why, len);
	if (err)
		return err;
	tell_rules(d->kernel->control, o, rules);
	kernel_read_counters(d->kernel, &d->counters);

	snprintf(why, len, "out of memory");
	d->base = make_base();
	if (!d->base || proc_names_new(&d->names) < 0 || stream_new(&d->stream) < 0 ||
		drains_new(&d->drains) < 0 ||
		workloads_new(&d->workloads, d->kernel, o->workloads) < 0 ||
		subjects_new(&d->subjects, d->kernel, d->names, o->flaps, o->pod_logs,
			&listener) < 0 ||
		declare_new(&d->declare, d->subjects, &declare_options) < 0 ||
		start_loop(d) < 0)
		return -ENOMEM;
	err = subjects_reconcile(d->subjects);
	if (err) {
		snprintf(why, len, "cannot read pw_phases: %s", strerror(-err));
		return err;
	}
	err = o->listeners_are_subjects ? subjects_find_listeners(d->subjects) : 0;
	if (err < 0) {
		snprintf(why, len, "cannot look for processes that listen: %s", strerror(-err));
		return err;
	}
	d->metrics = (struct metrics_of){ d->kernel, d->subjects, d->workloads, d->declare, d->stream,
		*o->notify_socket ? d->notified : NULL };
	context = (struct api_context){ d->base, d->kernel, d->subjects, d->declare, d->drains,
		d->stream, &d->metrics, d->node, catch_up, d };
	err = api_new(&d->api, &context, o->socket, o->listen, why, len);
	if (!err && *o->notify_socket)
		err = notify_new(&d->notify,
			&(struct notify_context){ d->base, d->subjects, d->declare, d->notified,
				catch_up, d },
			o->notify_socket, why, len);
	if (!err)
		err = start_pushing(d, o, why, len);
	return err ? err : kernel_pin(d->kernel, why, len);
}

static void tell_started(const struct daemon *d, const struct run_options *o)
{
	for (size_t i = 0; i < d->kernel->n_hooks; i++)
		if (d->kernel->hooks[i].error && !d->kernel->hooks[i].superseded)
			log_info("%s is off (%s): %s", d->kernel->hooks[i].attaches_to,
				kernel_why_off(&d->kernel->hooks[i]), d->kernel->hooks[i].without);
	if (d->kernel->replaced)
		log_warning("replaced the pins of another version in %s: its declarations and counters are gone",
			o->pin_dir);
	log_info("observing %s%s; socket %s, pins %s%s%s%s%s", d->node,
		d->kernel->took_over ? " (took over)" : "", o->socket, o->pin_dir,
		*o->listen ? ", http://" : "", o->listen,
		*o->notify_socket ? ", NOTIFY_SOCKET=" : "", o->notify_socket);
}

static bool find_group(const char *text, gid_t *ret)
{
	const struct group *group;
	uint64_t number;

	if (parse_u64(text, &number) == 0) {
		*ret = number;
		return number < NO_GID;
	}
	group = getgrnam(text);
	if (group)
		*ret = group->gr_gid;
	return group;
}

static void find_node(struct daemon *d)
{
	if (gethostname(d->node, sizeof(d->node) - 1) < 0)
		strcpy(d->node, "localhost");
	if (getenv("NODE_NAME"))
		snprintf(d->node, sizeof(d->node), "%s", getenv("NODE_NAME"));
}

int cmd_run(int argc, char **argv)
{
	struct run_options o = { 0 };
	struct sockaddr_storage addr;
	struct daemon d = { 0 };
	struct opts_args args;
	int code, addr_len;
	struct run_rules rules = { 0 };
	char why[512], beside[PATH_MAX];
	struct rlimit files;
	const char *bad = "";

	if (!opts_read(&run_spec, argc, argv, &o, &args, &code))
		return code;
	if (*o.listen && api_parse_listen(o.listen, &addr, &addr_len) < 0) {
		log_error("--listen '%s' is no ADDR:PORT, such as 127.0.0.1:9464 or [::1]:9464; "
			  "see 'phasewatch run --help'", o.listen);
		return PW_EXIT_USAGE;
	}
	if (!o.notify_socket)
		o.notify_socket = notify_beside(o.socket, beside, sizeof(beside));
	o.declare.admin_gid = NO_GID;
	if (o.admin_gid && !find_group(o.admin_gid, &o.declare.admin_gid)) {
		log_error("--admin-gid '%s': there is no such group; see 'phasewatch run --help'",
			o.admin_gid);
		return PW_EXIT_USAGE;
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN); /* until the loop takes it */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max; /* the usual 1024 are for who uses select(2) */
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGXFSZ, SIG_IGN); /* a log that may not grow is an error to handle */
	if (ignore_parse(&o.ignore, &rules.ignore, &rules.ignores, &bad) < 0) {
		log_error("--ignore-... '%s': expected at most %d addresses or networks such as "
			  "10.0.0.0/8, %d ports and %d names; see 'phasewatch run --help'",
			bad, PW_IGNORE_MAX, PW_IGNORE_MAX, PW_IGNORE_MAX);
		return PW_EXIT_USAGE;
	}
	if (signals_parse(o.signals, rules.signals, why, sizeof(why)) < 0) {
		log_error("--signals: %s; see 'phasewatch run --help'", why);
		return PW_EXIT_USAGE;
	}
	find_node(&d);
	if (otlp_settings_read(&o.otlp, d.node, getenv("NODE_NAME"), &d.otlp_settings, why, sizeof(why)) < 0) {
		log_error("%s; see 'phasewatch run --help'", why);
		return PW_EXIT_USAGE;
	}
	if (daemon_start(&d, &o, &rules, why, sizeof(why)) < 0) {
		log_error("%s", why);
		daemon_stop(&d);
		return PW_EXIT_FAILED;
	}
	tell_started(&d, &o);
	event_base_dispatch(d.base);
	log_info("stopped; the kernel half goes on counting ('phasewatch unload%s%s' removes it)",
		strcmp(o.pin_dir, PW_PIN_DIR) ? " --pin-dir " : "",
		strcmp(o.pin_dir, PW_PIN_DIR) ? o.pin_dir : "");
	daemon_stop(&d);
	return PW_EXIT_DONE;
}
