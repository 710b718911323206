// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "commands.h"
#include "compact.h"
#include "filter.h"
#include "util.h"

#define LAST_MAX 1000000
#define LINE_MAX_LEN (1u << 20) /* of a file */

enum output { OUTPUT_COMPACT, OUTPUT_JSON, OUTPUT_JSONPRETTY };

static const char *const output_list[] = {
	[OUTPUT_COMPACT] = "compact", [OUTPUT_JSON] = "json", [OUTPUT_JSONPRETTY] = "jsonpretty"
};
static const struct names outputs = { output_list, ARRAY_SIZE(output_list) };

struct events {
	const char *socket;
	struct opts_list types, phases, verdicts, pids, subjects;
	const char *since, *input_file;
	struct filter filter; /* the same, for a replay */
	uint32_t output, last;
	bool follow;
	bool colour;
};

static const struct opt options[] = {
	OPT_FLAG(struct events, follow, .name = "follow", .letter = 'f',
		.help = "show new events as they happen, until interrupted"),
	OPT_CHOICE(struct events, output, .name = "output", .letter = 'o', .metavar = "FORMAT",
		.choices = &outputs, .fallback = "compact",
		.help = "a line for people, JSON lines as the daemon sends them, or indented JSON"),
	OPT_LIST(struct events, types, CHOICE, .name = "type", .metavar = "TYPE",
		.choices = &shown_event_type_names, .help = "only these types"),
	OPT_LIST(struct events, phases, CHOICE, .name = "phase", .metavar = "PHASE",
		.choices = &phase_names, .help = "only these phases"),
	OPT_LIST(struct events, verdicts, CHOICE, .name = "verdict", .metavar = "VERDICT",
		.choices = &shown_verdict_names, .help = "only these verdicts"),
	OPT_LIST(struct events, pids, U32, .name = "pid", .metavar = "N", .min = 1, .max = PID_MAX,
		.help = "only these processes"),
	OPT_LIST(struct events, subjects, STRING, .name = "subject", .metavar = "SUBJECT", .min = 1,
		.max = FILTER_TEXT - 1,
		.help = "only these, by name, name[id] or id, as 'phasewatch ps' shows them"),
	OPT_STRING(struct events, since, .name = "since", .metavar = "TIME", .min = 1, .max = 63,
		.help = "begin there: a time ago, such as 5m, or 2026-11-25T12:04:31Z"),
	OPT_STRING(struct events, input_file, .name = "input-file", .metavar = "FILE", .min = 1,
		.max = PATH_MAX - 1,
		.help = "show events that were written as JSON lines, such as by -o json; - is stdin; "
			"no daemon is asked"),
	OPT_U32(struct events, last, .name = "last", .metavar = "N", .min = 1, .max = LAST_MAX,
		.help = "begin with the last N of the events that are kept, or in the file"),
	OPT_SOCKET(struct events, socket),
	OPT_END,
};

const struct opts_spec events_spec = {
	.name = "events",
	.summary = "show the recent events, or follow them live",
	.details = "An event is shown if it matches one value of each filter that is given; a lost event always.",
	.options = options,
};

static void add_parameter(FILE *out, const char *key, const char *value)
{
	fprintf(out, "&%s=", key);
	for (; *value; value++)
		fprintf(out, isalnum((unsigned char)*value) ? "%c" : "%%%02X", (unsigned char)*value);
}

static void add_filter(FILE *out, const char *key, const struct opts_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		add_parameter(out, key, list->values[i]);
}

/* Path and query, owned by the caller. NULL: no memory. */
static char *make_target(const struct events *o)
{
	char *target = NULL;
	size_t size;
	FILE *out = open_memstream(&target, &size);

	if (!out)
		return NULL;
	fprintf(out, "/v1/events?follow=%d", o->follow);
	if (o->last)
		fprintf(out, "&last=%u", o->last);
	add_filter(out, "type", &o->types);
	add_filter(out, "phase", &o->phases);
	add_filter(out, "verdict", &o->verdicts);
	add_filter(out, "pid", &o->pids);
	add_filter(out, "subject", &o->subjects);
	if (o->since)
		add_parameter(out, "since", o->since);
	if (!fclose(out))
		return target;
	free(target);
	return NULL;
}

static void show_event(const struct events *o, json_t *event)
{
	if (o->output == OUTPUT_COMPACT) {
		compact_print(stdout, event, o->colour);
	} else {
		json_dumpf(event, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
		putchar('\n');
	}
}

static int show_line(const struct events *o, const char *line, size_t len)
{
	json_t *event = json_loadb(line, len, JSON_ALLOW_NUL, NULL);

	if (!json_is_object(event)) {
		log_warning("skipped a line of %zu bytes that is no JSON object", len);
		json_decref(event);
		return PW_EXIT_FAILED;
	}
	show_event(o, event);
	json_decref(event);
	return PW_EXIT_DONE;
}

/* Shows one or more whole lines. JSON output is a copy: nothing is parsed. */
static int show_lines(const struct events *o, const char *lines, size_t len)
{
	int code = PW_EXIT_DONE;

	if (o->output == OUTPUT_JSON) {
		fwrite(lines, 1, len, stdout);
		return code;
	}
	while (len) {
		size_t n = (const char *)memchr(lines, '\n', len) + 1 - lines;

		code = show_line(o, lines, n) ?: code;
		lines += n;
		len -= n;
	}
	return code;
}

/* Whether the output is broken; a follower's lines leave at once. */
static bool flush_failed(const struct events *o)
{
	return (o->follow && fflush(stdout)) || ferror(stdout);
}

static int show_events(
	const struct events *o, const struct client_request *request, struct client *client)
{
	int code = PW_EXIT_DONE;
	const char *lines;
	size_t len;
	int r;

	while ((r = client_lines(client, &lines, &len)) > 0) {
		code = show_lines(o, lines, len) ?: code;
		if (flush_failed(o))
			return errno == EPIPE ? PW_EXIT_DONE : PW_EXIT_FAILED;
	}
	if (o->follow && (!r || r == -EPROTO || r == -ECONNRESET)) {
		log_error("the daemon at %s has gone; start one with 'phasewatch run'", o->socket);
		return PW_EXIT_UNREACHABLE;
	}
	return r ? client_failed(request, r) : code;
}

/* ---- replay ---- */

static int set_filters(struct events *o)
{
	const struct {
		const char *name;
		const struct opts_list *list;
	} lists[] = { { "type", &o->types }, { "phase", &o->phases }, { "verdict", &o->verdicts },
		{ "pid", &o->pids }, { "subject", &o->subjects } };

	for (size_t l = 0; l < ARRAY_SIZE(lists); l++)
		for (size_t i = 0; i < lists[l].list->count; i++)
			if (filter_set(&o->filter, lists[l].name, lists[l].list->values[i], 0) < 0)
				return -EINVAL;
	return 0;
}

/* The last lines that pass, as a ring; without --last none is kept. */
struct replay {
	const struct events *o;
	char **kept;
	size_t n;
	uint64_t malformed;
};

static void show_kept(const struct events *o, const char *line)
{
	if (o->output == OUTPUT_JSON)
		puts(line);
	else
		show_line(o, line, strlen(line));
}

/* Never -o json's own bytes: what a file says may be no UTF-8, or speak to a terminal. */
static void replay_line(struct replay *r, const char *line, size_t len)
{
	json_t *event = json_loadb(line, len, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
	struct event_gist gist;
	char *text;

	if (!event || !filter_read(event, &gist)) {
		r->malformed++;
	} else if (filter_passes(&r->o->filter, &gist)) {
		if (r->o->output != OUTPUT_JSON && !r->o->last) {
			show_event(r->o, event);
		} else if ((text = json_dumps(event, JSON_COMPACT | JSON_ENSURE_ASCII))) {
			if (!r->o->last) {
				puts(text);
				free(text);
			} else {
				free(r->kept[r->n % r->o->last]);
				r->kept[r->n++ % r->o->last] = text;
			}
		}
	}
	json_decref(event);
}

/* Reads on to the end of a line that is too long, without keeping it. */
static ssize_t read_line(FILE *in, char *line, size_t size, bool *too_long)
{
	size_t len = 0;
	int c;

	*too_long = false;
	while ((c = getc_unlocked(in)) != EOF && c != '\n') {
		if (len < size)
			line[len++] = c;
		else
			*too_long = true;
	}
	return c == EOF && !len ? -1 : (ssize_t)len;
}

static int replay_file(struct events *o, FILE *in, char *line)
{
	struct replay r = { .o = o, .kept = calloc(o->last ?: 1, sizeof(char *)) };
	bool too_long;
	ssize_t len;

	if (!r.kept)
		return -ENOMEM;
	while (!ferror(stdout) && (len = read_line(in, line, LINE_MAX_LEN, &too_long)) >= 0) {
		if (too_long)
			r.malformed++;
		else if (len)
			replay_line(&r, line, len);
	}
	for (size_t i = 0; i < o->last; i++) {
		char *kept = r.kept[(r.n + i) % o->last];

		if (kept)
			show_kept(o, kept);
		free(kept);
	}
	free(r.kept);
	if (r.malformed)
		log_warning("%s: skipped %llu lines that are no events", o->input_file,
			(unsigned long long)r.malformed);
	return ferror(in) ? -errno : 0;
}

static int replay(struct events *o)
{
	bool is_stdin = strcmp(o->input_file, "-") == 0;
	_cleanup_(fclosep) FILE *file = is_stdin ? NULL : fopen(o->input_file, "re");
	_cleanup_(freep) char *line = malloc(LINE_MAX_LEN);
	int err;

	if (!is_stdin && !file) {
		log_error("cannot open %s: %s", o->input_file, strerror(errno));
		return PW_EXIT_FAILED;
	}
	err = line ? set_filters(o) : -ENOMEM;
	if (!err)
		err = replay_file(o, is_stdin ? stdin : file, line);
	if (err) {
		log_error("cannot read %s: %s", o->input_file, strerror(-err));
		return PW_EXIT_FAILED;
	}
	return fflush(stdout) && errno != EPIPE ? PW_EXIT_FAILED : PW_EXIT_DONE;
}

/* Each run of lines has been flushed: there is nothing to clean up. */
static void quit(int signal)
{
	_exit(PW_EXIT_DONE);
}

int cmd_events(int argc, char **argv)
{
	_cleanup_(client_freep) struct client *client = NULL;
	_cleanup_(freep) char *target = NULL;
	struct client_request request;
	const char *no_color = getenv("NO_COLOR");
	struct events o = { .colour = isatty(STDOUT_FILENO) && !(no_color && *no_color) };
	struct opts_args args;
	int code;

	if (!opts_read(&events_spec, argc, argv, &o, &args, &code))
		return code;
	if (o.since && filter_parse_time(o.since, clock_ns(CLOCK_REALTIME), &o.filter.since_ns) < 0) {
		log_error("--since '%s' is neither a time ago, such as 5m, nor one such as "
			  "2026-11-25T12:04:31Z; see 'phasewatch events --help'", o.since);
		return PW_EXIT_USAGE;
	}
	if (o.input_file && o.follow) {
		log_error("--follow asks the daemon, --input-file does not; use one of them");
		return PW_EXIT_USAGE;
	}
	if (o.input_file)
		return replay(&o);
	target = make_target(&o);
	if (!target) {
		log_error("out of memory");
		return PW_EXIT_FAILED;
	}
	if (o.follow)
		signal(SIGINT, quit);
	request = (struct client_request){
		.socket = o.socket, .method = "GET", .target = target, .follow = o.follow
	};
	code = client_call(&request, &client);
	return code ? code : show_events(&o, &request, client);
}
