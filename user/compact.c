// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "compact.h"
#include "opts.h"
#include "text.h"
#include "util.h"

/* Where the columns begin. A cell that is too wide pushes the next one, not those after it. */
enum {
	COLUMN_TYPE = 14,
	COLUMN_WHO = 23,
	COLUMN_SUBJECT = 40,
	COLUMN_PHASE = 57,
	COLUMN_PEERS = 74,
	COLUMN_DETAILS = 111,
	COLUMN_NEXT = 0, /* two spaces on */
};

#define RED "\033[31m"
#define YELLOW "\033[33m"
#define PLAIN "\033[0m"

struct line {
	FILE *out;
	size_t column;
	bool colour;
};

bool get_u64(const json_t *object, const char *key, uint64_t *ret)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return false;
	*ret = json_integer_value(value);
	return true;
}

static const json_t *get_text(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return json_is_string(value) && json_string_length(value) ? value : NULL;
}

static bool text_is(const json_t *text, const char *expected)
{
	return text && !strcmp(json_string_value(text), expected);
}

size_t put_duration(FILE *out, uint64_t ns)
{
	uint64_t s = ns / NS_PER_S;

	if (ns < NS_PER_US)
		return fprintf(out, "%" PRIu64 "ns", ns);
	if (ns < NS_PER_MS / 2)
		return fprintf(out, "%" PRIu64 "us", ns / NS_PER_US);
	if (s < 1)
		return fprintf(out, "%" PRIu64 ".%" PRIu64 "ms", ns / NS_PER_MS,
			ns % NS_PER_MS / (NS_PER_MS / 10));
	if (s < 60)
		return fprintf(out, "%" PRIu64 ".%03" PRIu64 "s", s, ns % NS_PER_S / NS_PER_MS);
	if (s < 3600)
		return fprintf(out, "%" PRIu64 "m%02" PRIu64 "s", s / 60, s % 60);
	if (s < 86400)
		return fprintf(out, "%" PRIu64 "h%02" PRIu64 "m", s / 3600, s % 3600 / 60);
	return fprintf(out, "%" PRIu64 "d%02" PRIu64 "h", s / 86400, s % 86400 / 3600);
}

static size_t put_string(FILE *out, const json_t *string)
{
	return put_text(out, json_string_value(string), json_string_length(string));
}

/* nginx[4121], or what of it is known. */
static size_t put_named_pid(FILE *out, const json_t *name, bool has_pid, uint64_t pid)
{
	size_t columns = name ? put_string(out, name) : 0;

	if (has_pid)
		columns += fprintf(out, "[%" PRIu64 "]", pid);
	return columns;
}

static size_t put_process(FILE *out, const json_t *process)
{
	uint64_t pid = 0;
	bool has_pid = get_u64(process, "pid", &pid);

	return put_named_pid(out, get_text(process, "comm"), has_pid, pid);
}

size_t put_subject(FILE *out, const json_t *subject)
{
	const json_t *name = get_text(subject, "name");
	bool is_process = text_is(get_text(subject, "kind"), "process");
	uint64_t id = 0;
	bool has_id = get_u64(subject, "id", &id);

	return put_named_pid(out, name, has_id && (is_process || !name), id);
}

/* Moves on to a column; cells are two spaces apart at least. */
static void line_at(struct line *line, size_t column)
{
	size_t gap = line->column + 2 < column ? column - line->column : 2;

	line->column += fprintf(line->out, "%*s", (int)gap, "");
}

static void __attribute__((format(printf, 2, 3))) add(struct line *line, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vfprintf(line->out, fmt, args);
	va_end(args);
	line->column += n > 0 ? n : 0;
}

static void add_string(struct line *line, const json_t *string)
{
	line->column += put_string(line->out, string);
}

static void add_colour(const struct line *line, const char *code)
{
	if (line->colour && code)
		fputs(code, line->out);
}

static void add_time(struct line *line, json_t *event)
{
	const json_t *text = get_text(event, "time");
	unsigned year, month, day, hour, minute, second, ms;
	struct tm utc, local;
	time_t at;

	/* The digits beyond the milliseconds and the "Z" are not looked at. */
	if (!text || sscanf(json_string_value(text), "%4u-%2u-%2uT%2u:%2u:%2u.%3u", &year, &month,
			     &day, &hour, &minute, &second, &ms) != 7)
		goto unknown;
	utc = (struct tm){ .tm_year = (int)year - 1900,
		.tm_mon = (int)month - 1,
		.tm_mday = day,
		.tm_hour = hour,
		.tm_min = minute,
		.tm_sec = second };
	at = timegm(&utc);
	if (!localtime_r(&at, &local))
		goto unknown;
	add(line, "%02d:%02d:%02d.%03u", local.tm_hour, local.tm_min, local.tm_sec, ms);
	return;
unknown:
	add(line, "--:--:--.---");
}

static void add_who(struct line *line, json_t *event)
{
	const json_t *process = json_object_get(event, "process");
	const json_t *subject = json_object_get(event, "subject");

	if (process) {
		line_at(line, COLUMN_WHO);
		line->column += put_process(line->out, process);
	}
	if (subject) {
		line_at(line, process ? COLUMN_SUBJECT : COLUMN_WHO);
		line->column += put_subject(line->out, subject);
	}
}

static const char *verdict_colour(const json_t *verdict)
{
	if (text_is(verdict, "misrouted"))
		return RED;
	return text_is(verdict, "grace") ? YELLOW : NULL;
}

static void add_phase(struct line *line, json_t *event)
{
	const json_t *phase = get_text(event, "phase");
	const char *colour = verdict_colour(get_text(event, "verdict"));
	uint64_t age;

	if (!phase)
		return;
	line_at(line, COLUMN_PHASE);
	add_colour(line, colour);
	add_string(line, phase);
	if (get_u64(event, "phase_age_ns", &age)) {
		add(line, " +");
		line->column += put_duration(line->out, age);
	}
	add_colour(line, colour ? PLAIN : NULL);
}

static void add_endpoint(struct line *line, const json_t *endpoint)
{
	const json_t *address = get_text(endpoint, "addr");
	bool v6 = address && strchr(json_string_value(address), ':');
	uint64_t port;

	if (!address) {
		add(line, "?");
	} else {
		add(line, "%s", v6 ? "[" : "");
		add_string(line, address);
		add(line, "%s", v6 ? "]" : "");
	}
	if (get_u64(endpoint, "port", &port))
		add(line, ":%" PRIu64, port);
}

static void add_peers(struct line *line, json_t *event)
{
	const json_t *src = json_object_get(event, "src");
	const json_t *dst = json_object_get(event, "dst");

	if (!src && !dst)
		return;
	line_at(line, COLUMN_PEERS);
	add_endpoint(line, src);
	add(line, " -> ");
	add_endpoint(line, dst);
}

static void add_duration(struct line *line, json_t *event, const char *key, const char *label)
{
	uint64_t ns;

	if (!get_u64(event, key, &ns))
		return;
	line_at(line, COLUMN_DETAILS);
	add(line, "%s ", label);
	line->column += put_duration(line->out, ns);
}

/* "misrouted" is what the line is there for; the others are said. */
static void add_verdict(struct line *line, json_t *event)
{
	const json_t *verdict = get_text(event, "verdict");

	if (!verdict || text_is(verdict, "misrouted"))
		return;
	line_at(line, COLUMN_NEXT);
	add_string(line, verdict);
}

static void add_connection(struct line *line, json_t *event)
{
	add_who(line, event);
	add_phase(line, event);
	add_peers(line, event);
}

static void add_accept(struct line *line, json_t *event)
{
	const json_t *seen_by = get_text(event, "seen_by");

	add_connection(line, event);
	add_duration(line, event, "queue_ns", "queue");
	if (seen_by && !text_is(seen_by, "accept")) {
		line_at(line, COLUMN_DETAILS);
		add(line, "seen by ");
		add_string(line, seen_by);
	}
	add_verdict(line, event);
}

static void add_connect(struct line *line, json_t *event)
{
	const json_t *result = get_text(event, "result");
	uint64_t ns;

	add_connection(line, event);
	line_at(line, COLUMN_DETAILS);
	if (result)
		add_string(line, result);
	else
		add(line, "connected");
	if (get_u64(event, "connect_ns", &ns)) {
		add(line, " in ");
		line->column += put_duration(line->out, ns);
	}
	add_verdict(line, event);
}

static void add_end(struct line *line, json_t *event)
{
	uint64_t code, signal;
	const char *name;

	if (get_u64(event, "code", &code)) {
		add(line, "exit %" PRIu64, code);
	} else if (get_u64(event, "signal", &signal)) {
		name = signal < NSIG ? sigabbrev_np(signal) : NULL;
		if (name)
			add(line, "killed by SIG%s", name);
		else
			add(line, "killed by signal %" PRIu64, signal);
	} else {
		add(line, "exit");
	}
}

static void add_exit(struct line *line, json_t *event)
{
	uint64_t open;

	add_who(line, event);
	add_phase(line, event);
	line_at(line, COLUMN_PEERS);
	add_end(line, event);
	if (get_u64(event, "open_connections", &open))
		add(line, ", %" PRIu64 " connection%s open", open, open == 1 ? "" : "s");
}

static void add_author(struct line *line, const json_t *by)
{
	uint64_t uid;

	line_at(line, COLUMN_NEXT);
	add(line, "by ");
	line->column += put_process(line->out, by);
	if (get_u64(by, "uid", &uid))
		add(line, " uid %" PRIu64, uid);
}

static void add_phase_change(struct line *line, json_t *event)
{
	const json_t *by = json_object_get(event, "by");
	const json_t *from = get_text(event, "from");
	const json_t *to = get_text(event, "to");
	const json_t *source = get_text(event, "source");
	const json_t *reason = get_text(event, "reason");
	uint64_t epoch;

	add_who(line, event);
	line_at(line, COLUMN_PHASE);
	if (from)
		add_string(line, from);
	add(line, " -> ");
	if (to)
		add_string(line, to);
	if (get_u64(event, "epoch", &epoch)) {
		line_at(line, COLUMN_PEERS);
		add(line, "epoch %" PRIu64, epoch);
	}
	if (source) {
		line_at(line, COLUMN_NEXT);
		add_string(line, source);
	}
	if (by)
		add_author(line, by);
	if (reason) {
		line_at(line, COLUMN_NEXT);
		add(line, "\"");
		add_string(line, reason);
		add(line, "\"");
	}
}

static void add_violation(struct line *line, json_t *event)
{
	const json_t *kind = get_text(event, "kind"), *detail = get_text(event, "detail");
	const json_t *by = json_object_get(event, "by");

	add_who(line, event);
	add_phase(line, event);
	line_at(line, COLUMN_PEERS);
	if (kind)
		add_string(line, kind);
	if (detail) {
		add(line, ": ");
		add_string(line, detail);
	}
	if (by)
		add_author(line, by);
}

static void add_lost(struct line *line, json_t *event)
{
	json_t *by_type = json_object_get(event, "by_type");
	const json_t *stage = get_text(event, "stage");
	const char *separator = ": ";
	uint64_t count;

	line_at(line, COLUMN_WHO);
	if (get_u64(event, "count", &count))
		add(line, "%" PRIu64 " record%s lost", count, count == 1 ? "" : "s");
	else
		add(line, "records lost");
	if (stage) {
		add(line, " in stage ");
		add_string(line, stage);
	}
	for (void *i = json_object_iter(by_type); i; i = json_object_iter_next(by_type, i)) {
		const char *type = json_object_iter_key(i);

		if (!get_u64(by_type, type, &count))
			continue;
		add(line, "%s%" PRIu64 " ", separator, count);
		line->column += put_text(line->out, type, strlen(type));
		separator = ", ";
	}
}

static const char *ordinal_suffix(uint64_t n)
{
	static const char *const suffixes[] = { "th", "st", "nd", "rd" };

	return n % 100 / 10 != 1 && n % 10 < 4 ? suffixes[n % 10] : "th";
}

static void add_request(struct line *line, json_t *event)
{
	uint64_t nth;

	add_connection(line, event);
	if (get_u64(event, "nth", &nth)) {
		line_at(line, COLUMN_DETAILS);
		add(line, "%" PRIu64 "%s", nth, ordinal_suffix(nth));
	}
	add_duration(line, event, "conn_age_ns", "conn");
	add_duration(line, event, "after_close_ns", "reset, after the close by");
	add_verdict(line, event);
}

static void add_abandon(struct line *line, json_t *event)
{
	const json_t *how = get_text(event, "how");
	uint64_t in, out;

	add_connection(line, event);
	line_at(line, COLUMN_DETAILS);
	add(line, "%s", json_is_true(json_object_get(event, "busy")) ? "busy" : "idle");
	if (how)
		add(line, ", %s", text_is(how, "rst") ? "reset" : "closed");
	if (get_u64(event, "bytes_in", &in) && get_u64(event, "bytes_out", &out))
		add(line, ", %" PRIu64 " bytes in, %" PRIu64 " out", in, out);
	add_duration(line, event, "conn_age_ns", "conn");
}

static void add_backlog(struct line *line, json_t *event)
{
	uint64_t dropped, half_open;

	add_who(line, event);
	add_phase(line, event);
	line_at(line, COLUMN_PEERS);
	add_endpoint(line, json_object_get(event, "listener"));
	line_at(line, COLUMN_DETAILS);
	if (get_u64(event, "dropped", &dropped))
		add(line, "%" PRIu64 " dropped", dropped);
	if (get_u64(event, "half_open", &half_open))
		add(line, ", %" PRIu64 " half-open", half_open);
}

/* Its process is gone: the subject takes its place. */
static void add_refused(struct line *line, json_t *event)
{
	uint64_t ns;

	line_at(line, COLUMN_WHO);
	line->column += put_subject(line->out, json_object_get(event, "subject"));
	if (get_u64(event, "since_exit_ns", &ns)) {
		line_at(line, COLUMN_PHASE);
		add(line, "gone ");
		line->column += put_duration(line->out, ns);
	}
	add_peers(line, event);
}

static void add_drain(struct line *line, json_t *event)
{
	json_t *report = json_object_get(event, "report");

	line_at(line, COLUMN_WHO);
	line->column += put_subject(line->out, json_object_get(report, "subject"));
	line_at(line, COLUMN_PHASE);
	add(line, "over");
	add_duration(line, report, "duration_ns", "after");
	add_duration(line, report, "settle_ns", "settle time");
	line_at(line, COLUMN_NEXT);
	add(line, "('phasewatch report' has the rest)");
}

static bool is_common(const char *key)
{
	static const char *const keys[] = { "schema", "time", "node", "seq", "type", "phase",
		"phase_age_ns", "verdict", "subject", "process", "src", "dst", "client" };

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (!strcmp(keys[i], key))
			return true;
	return false;
}

static void add_field(struct line *line, const char *key, const json_t *value)
{
	size_t len = strlen(key);
	bool is_ns = len > 3 && !strcmp(key + len - 3, "_ns") && json_is_integer(value) &&
		     json_integer_value(value) >= 0;

	if (json_is_object(value) || json_is_array(value) || json_is_null(value))
		return;
	line_at(line, COLUMN_DETAILS);
	line->column += put_text(line->out, key, is_ns ? len - 3 : len);
	add(line, " ");
	if (is_ns)
		line->column += put_duration(line->out, json_integer_value(value));
	else if (json_is_string(value))
		add_string(line, value);
	else if (json_is_integer(value))
		add(line, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value))
		add(line, "%g", json_real_value(value));
	else
		add(line, "%s", json_is_true(value) ? "true" : "false");
}

/* A type of a later version: the common columns, then its own fields by name. */
static void add_other(struct line *line, json_t *event)
{
	add_connection(line, event);
	for (void *i = json_object_iter(event); i; i = json_object_iter_next(event, i)) {
		const char *key = json_object_iter_key(i);

		if (!is_common(key))
			add_field(line, key, json_object_iter_value(i));
	}
	add_verdict(line, event);
}

static const struct {
	const char *type;
	void (*add)(struct line *line, json_t *event);
} shapes[] = {
	{ "accept", add_accept },
	{ "connect", add_connect },
	{ "request", add_request },
	{ "abandon", add_abandon },
	{ "backlog", add_backlog },
	{ "refused", add_refused },
	{ "exit", add_exit },
	{ "lost", add_lost },
	{ "phase", add_phase_change },
	{ "drain", add_drain },
	{ "violation", add_violation },
};

static void add_fields(struct line *line, json_t *event)
{
	const json_t *type = get_text(event, "type");

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		if (text_is(type, shapes[i].type)) {
			shapes[i].add(line, event);
			return;
		}
	add_other(line, event);
}

void compact_print(FILE *out, json_t *event, bool colour)
{
	struct line line = { .out = out, .colour = colour };
	const json_t *type = get_text(event, "type");
	const json_t *client = json_object_get(event, "client");
	bool lost = colour && text_is(type, "lost");

	add_time(&line, event);
	line_at(&line, COLUMN_TYPE);
	add_colour(&line, lost ? YELLOW : NULL);
	if (type)
		add_string(&line, type);
	else
		add(&line, "?");
	add_fields(&line, event);
	if (client) {
		line_at(&line, COLUMN_NEXT);
		line.column += put_process(out, client);
	}
	add_colour(&line, lost ? PLAIN : NULL);
	putc('\n', out);
}
