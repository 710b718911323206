// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Declares DRAIN and waits for its end: the hook that runs before a service is told to stop.
 *
 *	PUT DRAIN -> [ look every 100 ms ] -> drained: quiet for long enough, few enough in flight
 *	                                   -> gone: no process is left
 *	                                   -> moved on, timed out, nobody answers, a signal
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "commands.h"
#include "compact.h"
#include "report.h"
#include "target.h"
#include "text.h"
#include "util.h"

#define LOOK_MS 100
#define CLOSE_LOOK_MS 500 /* costs the daemon half a millisecond for each 1000 connections */
#define ANSWER_MS 1000 /* for one look; then the next one is due */
#define TELL_NS NS_PER_S

enum output { OUTPUT_TEXT, OUTPUT_JSON };

static const char *const output_list[] = { [OUTPUT_TEXT] = "text", [OUTPUT_JSON] = "json" };
static const struct names outputs = { output_list, ARRAY_SIZE(output_list) };

struct drain {
	const char *socket, *reason;
	struct target target;
	uint64_t epoch, quiet_ns, timeout_ns;
	uint32_t inflight, output;
};

static const struct opt options[] = {
	OPT_TARGET(struct drain, target),
	OPT_U64(struct drain, epoch, .name = "epoch", .metavar = "N", .min = 1, .max = INT64_MAX,
		.help = "generation of its life cycle; one lower than that in force is refused"),
	OPT_STRING(struct drain, reason, .name = "reason", .metavar = "TEXT", .min = 1,
		.max = PW_REASON_LEN - 1, .help = "why, for whoever reads the event"),
	OPT_DURATION(struct drain, quiet_ns, .name = "quiet", .metavar = "TIME", .fallback = "2s",
		.max = 3600 * NS_PER_S, .help = "wait until nothing has arrived for so long"),
	OPT_U32(struct drain, inflight, .name = "inflight", .metavar = "N", .fallback = "0",
		.max = UINT32_MAX, .help = "and until at most so many connections are open"),
	OPT_DURATION(struct drain, timeout_ns, .name = "timeout", .metavar = "TIME",
		.fallback = "25s", .max = 24 * 3600 * NS_PER_S,
		.help = "but not longer than this: exit code 5 then"),
	OPT_CHOICE(struct drain, output, .name = "output", .letter = 'o', .metavar = "FORMAT",
		.choices = &outputs, .fallback = "text",
		.help = "what is printed at the end: a line, or JSON"),
	OPT_SOCKET(struct drain, socket),
	OPT_END,
};

const struct opts_spec drain_spec = {
	.name = "drain",
	.summary = "declare DRAIN and wait until nothing arrives any more",
	.details =
		"For a preStop hook or ExecStop=. A subject that drains already is waited for as "
		"well. What arrives is a new connection or a request on an older one; those within "
		"'run --grace' or by 'run --ignore-...' do not count, but the quiet time begins "
		"after the grace. On standard error: once a second, what it still waits for. When "
		"it ends early, the subject stays in DRAIN.",
	.options = options,
};

/* Why the wait is over. */
enum outcome { WAITING, DRAINED, GONE, MOVED, TIMED_OUT, UNREACHABLE, INTERRUPTED };

static const char *const outcomes[] = {
	[DRAINED] = "drained",
	[GONE] = "gone",
	[MOVED] = "moved",
	[TIMED_OUT] = "timeout",
	[UNREACHABLE] = "unreachable",
	[INTERRUPTED] = "interrupted",
};

static const enum exit_code exit_codes[] = {
	[DRAINED] = PW_EXIT_DONE,
	[GONE] = PW_EXIT_DONE,
	[MOVED] = PW_EXIT_FAILED,
	[TIMED_OUT] = PW_EXIT_TIMEOUT,
	[UNREACHABLE] = PW_EXIT_UNREACHABLE,
	[INTERRUPTED] = PW_EXIT_FAILED, /* unless the signal does it */
};

struct counts {
	uint64_t inflight;
	uint64_t accepts, requests; /* that arrived in a wrong phase */
};

struct wait {
	const struct drain *o;
	uint64_t began_ns;
	json_t *subject;
	char query[64]; /* its kind and id */
	struct counts first, last;
	uint64_t quiet_ns; /* as of `last` */
	bool arrived; /* something, since DRAIN */
	bool answered; /* the last look */
	bool closely; /* that was a close one */
	json_t *row; /* that showed another phase or epoch */
	int signal;
};

static uint64_t number(const json_t *object, const char *key)
{
	uint64_t n = 0;

	get_u64(object, key, &n);
	return n;
}

static struct counts counts_of(const json_t *answer)
{
	struct counts c = { number(answer, "inflight"), number(answer, "accepts_misrouted"),
		number(answer, "requests_misrouted") };

	get_u64(answer, "inflight_tcp", &c.inflight);
	return c;
}

static const json_t *subject_of(const json_t *answer)
{
	return json_object_get(answer, "subject");
}

/* ---- asking ---- */

/* An exit code, logged unless it is 0. */
static int declare(struct wait *w, const char *body)
{
	const struct client_request request = {
		.socket = w->o->socket, .method = "PUT", .target = "/v1/phase", .body = body
	};
	_cleanup_(client_freep) struct client *client = NULL;
	_cleanup_(json_freep) json_t *answer = NULL;
	const char *kind;
	uint64_t id;
	int r;

	r = client_call(&request, &client);
	if (r)
		return r;
	r = client_json(client, &answer);
	if (r)
		return client_failed(&request, r);
	kind = json_string_value(json_object_get(subject_of(answer), "kind"));
	if (!kind || names_parse(&kind_names, kind) < 0 || !get_u64(subject_of(answer), "id", &id))
		return client_failed(&request, -EPROTO);
	snprintf(w->query, sizeof(w->query), "?kind=%s&id=%" PRIu64, kind, id);
	w->subject = json_incref(json_object_get(answer, "subject"));
	w->first = w->last = counts_of(answer);
	return 0;
}

/* What `path` says of the subject, in the array `key`; owned by the caller. NULL: no answer. */
static json_t *ask(const struct wait *w, const char *path, const char *more, const char *key)
{
	char target[128];
	const struct client_request request = {
		.socket = w->o->socket, .method = "GET", .target = target, .timeout_ms = ANSWER_MS
	};
	_cleanup_(client_freep) struct client *client = NULL;
	_cleanup_(json_freep) json_t *answer = NULL;
	json_t *list;

	snprintf(target, sizeof(target), "%s%s%s", path, w->query, more);
	if (client_request(&request, &client) < 0 || client_status(client) != 200 ||
		client_json(client, &answer) < 0)
		return NULL;
	list = json_object_get(answer, key);
	return json_is_array(list) ? json_incref(list) : NULL;
}

static json_t *last_of(const json_t *list)
{
	return json_array_get(list, json_array_size(list) - 1);
}

/* It is a subject no more: is nobody left, or did somebody take the declaration away? */
static enum outcome vanished(struct wait *w)
{
	_cleanup_(json_freep) json_t *reports = ask(w, "/v1/reports", "", "reports");
	const char *end = json_string_value(json_object_get(last_of(reports), "end"));

	w->answered = reports != NULL;
	if (!reports)
		return WAITING;
	return end && strcmp(end, "exited") == 0 ? GONE : MOVED;
}

static bool still_drains(const struct wait *w, const json_t *row)
{
	const char *phase = json_string_value(json_object_get(row, "phase"));

	return phase && phase_parse(phase) >= PW_DRAIN &&
	       number(subject_of(row), "epoch") == number(w->subject, "epoch");
}

static enum outcome look(struct wait *w, const char *more)
{
	_cleanup_(json_freep) json_t *list = ask(w, "/v1/subjects", more, "subjects");
	json_t *row = json_array_get(list, 0);
	uint64_t members;

	w->answered = list != NULL;
	if (!list)
		return WAITING;
	if (!row)
		return vanished(w);
	if (!still_drains(w, row)) {
		w->row = json_incref(row);
		return MOVED;
	}
	if (!get_u64(row, "members", &members))
		return WAITING; /* its counters could not be read */
	w->last = counts_of(row);
	w->quiet_ns = number(row, "quiet_ns");
	w->arrived = json_object_get(row, "settle_ns");
	if (!members)
		return GONE;
	return w->quiet_ns >= w->o->quiet_ns && w->last.inflight <= w->o->inflight ? DRAINED
										   : WAITING;
}

/* The daemon has to walk over all connections to know of those that no process has in its hands. */
static enum outcome look_closely(struct wait *w)
{
	enum outcome outcome = look(w, "");

	w->closely = outcome == DRAINED;
	return w->closely ? look(w, "&tcp=1") : outcome;
}

/* ---- telling ---- */

static void put_quiet(FILE *out, const struct wait *w)
{
	fputs(w->arrived ? "last arrival " : "no arrival for ", out);
	put_duration(out, w->quiet_ns);
	fputs(w->arrived ? " ago" : "", out);
}

/* What it still waits for; on a terminal in place. */
static void tell(const struct wait *w, uint64_t now_ns, bool terminal)
{
	bool busy = w->last.inflight > w->o->inflight;

	fputs(terminal ? "\r\033[K" : "", stderr);
	fputs("waited ", stderr);
	put_duration(stderr, now_ns - w->began_ns);
	fputs(" of ", stderr);
	put_duration(stderr, w->o->timeout_ns);
	fputs(w->answered ? ": " : ": the daemon does not answer", stderr);
	if (w->answered && busy)
		fprintf(stderr, "%" PRIu64 " in flight", w->last.inflight);
	if (w->answered && w->quiet_ns < w->o->quiet_ns) {
		fputs(busy ? ", " : "", stderr);
		put_quiet(stderr, w);
	}
	fputs(terminal ? "" : "\n", stderr);
}

static void put_count(FILE *out, uint64_t n, const char *what)
{
	fprintf(out, "%" PRIu64 " %s%s", n, what, n == 1 ? "" : "s");
}

static void put_outcome(FILE *out, const struct wait *w, enum outcome outcome)
{
	const json_t *phase = json_object_get(w->row, "phase");

	switch (outcome) {
	case DRAINED:
		fputs("drained", out);
		break;
	case GONE:
		fputs("all its processes have exited", out);
		break;
	case MOVED:
		if (w->row) {
			fputs("moved on to ", out);
			put_text(out, json_string_value(phase), json_string_length(phase));
			fprintf(out, " of epoch %" PRIu64, number(subject_of(w->row), "epoch"));
		} else {
			fputs("somebody took its declaration away", out);
		}
		break;
	case UNREACHABLE:
		fprintf(out, "no answer from the daemon at %s", w->o->socket);
		break;
	case INTERRUPTED:
		fprintf(out, "stays in DRAIN, interrupted by SIG%s", sigabbrev_np(w->signal));
		break;
	default:
		fputs("not drained", out);
	}
}

/*
 * nginx[4120]: drained after 5.213s: 37 new connections and 1 late request, last arrival 2.004s ago;
 * in flight 84 at the start, 0 at the end
 */
static void put_summary(FILE *out, const struct wait *w, enum outcome outcome, uint64_t waited_ns)
{
	_cleanup_(json_freep) json_t *reports =
		outcome == TIMED_OUT ? ask(w, "/v1/reports", "", "reports") : NULL;
	const json_t *report = last_of(reports);

	put_subject(out, w->subject);
	fputs(": ", out);
	put_outcome(out, w, outcome);
	fputs(" after ", out);
	put_duration(out, waited_ns);
	fputs(": ", out);
	put_count(out, w->last.accepts - w->first.accepts, "new connection");
	fputs(" and ", out);
	put_count(out, w->last.requests - w->first.requests, "late request");
	fputs(", ", out);
	put_quiet(out, w);
	if (w->arrived &&
		(json_object_get(report, "clients") || json_object_get(report, "peers"))) {
		fputs(", from ", out);
		report_print_from(out, report);
	}
	fprintf(out, "; in flight %" PRIu64 " at the start, %" PRIu64 " at the end",
		w->first.inflight, w->last.inflight);
}

static json_t *make_json(const struct wait *w, enum outcome outcome, uint64_t waited_ns)
{
	return json_pack("{s:i, s:O, s:s, s:I, s:I, s:{s:I, s:I}, s:{s:I, s:I}}", "schema", 1,
		"subject", w->subject, "outcome", outcomes[outcome], "waited_ns",
		(json_int_t)waited_ns, "quiet_ns", (json_int_t)w->quiet_ns, "arrivals", "accepts",
		(json_int_t)(w->last.accepts - w->first.accepts), "requests",
		(json_int_t)(w->last.requests - w->first.requests), "inflight", "start",
		(json_int_t)w->first.inflight, "end", (json_int_t)w->last.inflight);
}

static void tell_end(const struct wait *w, enum outcome outcome)
{
	uint64_t waited_ns = clock_boot_ns() - w->began_ns;
	_cleanup_(json_freep) json_t *json = NULL;
	_cleanup_(freep) char *text = NULL;
	FILE *out;
	size_t size;

	if (w->o->output == OUTPUT_JSON) {
		json = make_json(w, outcome, waited_ns);
		json_dumpf(json, stdout, JSON_COMPACT);
		putchar('\n');
	}
	out = open_memstream(&text, &size);
	if (!out)
		return;
	put_summary(out, w, outcome, waited_ns);
	if (fclose(out) != 0)
		return;
	if (exit_codes[outcome] != PW_EXIT_DONE)
		log_error("%s", text);
	else if (w->o->output == OUTPUT_TEXT)
		puts(text);
}

/* ---- waiting ---- */

/* Those that would end the command: they do, but not without a word. */
static sigset_t block_signals(void)
{
	static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action;
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
			sigaddset(&set, numbers[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return set;
}

/* The signal that came meanwhile, if any did. */
static int sleep_until(uint64_t at_ns, uint64_t now_ns, const sigset_t *signals)
{
	uint64_t ns = at_ns > now_ns ? at_ns - now_ns : 0;
	struct timespec t = { .tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S };
	int number = sigtimedwait(signals, NULL, &t);

	return number > 0 ? number : 0;
}

static enum outcome wait_for_end(struct wait *w, const sigset_t *signals)
{
	uint64_t deadline = w->began_ns + w->o->timeout_ns, tell_at = w->began_ns + TELL_NS;
	bool terminal = isatty(STDERR_FILENO), told = false;
	enum outcome outcome;

	for (;;) {
		uint64_t now, next;

		outcome = look_closely(w);
		now = clock_boot_ns();
		if (outcome == WAITING && now >= deadline)
			outcome = w->answered ? TIMED_OUT : UNREACHABLE;
		if (outcome != WAITING)
			break;
		if (now >= tell_at) {
			tell(w, now, terminal);
			told = true;
			tell_at += (now - tell_at) / TELL_NS * TELL_NS + TELL_NS;
		}
		next = now + (w->closely ? CLOSE_LOOK_MS : LOOK_MS) * NS_PER_MS;
		w->signal = sleep_until(next < deadline ? next : deadline, now, signals);
		if (w->signal) {
			outcome = INTERRUPTED;
			break;
		}
	}
	if (terminal && told)
		fputs("\r\033[K", stderr);
	return outcome;
}

static int drain(const struct drain *o, const char *body)
{
	struct wait w = { .o = o, .began_ns = clock_boot_ns() };
	enum outcome outcome;
	sigset_t signals;
	int code = declare(&w, body);

	if (code)
		return code;
	signals = block_signals();
	outcome = wait_for_end(&w, &signals);
	tell_end(&w, outcome);
	if (outcome == INTERRUPTED) {
		fflush(stdout);
		raise(w.signal);
	}
	sigprocmask(SIG_UNBLOCK, &signals, NULL);
	json_decref(w.subject);
	json_decref(w.row);
	return exit_codes[outcome];
}

int cmd_drain(int argc, char **argv)
{
	_cleanup_(freep) char *body = NULL;
	struct drain o = { 0 };
	struct opts_args args;
	int code;

	if (!opts_read(&drain_spec, argc, argv, &o, &args, &code))
		return code;
	if (!target_check(&o.target))
		return PW_EXIT_USAGE;
	body = target_declare(&o.target, PW_DRAIN, o.epoch, o.reason, "or_later");
	if (!body)
		return PW_EXIT_USAGE;
	return drain(&o, body);
}
