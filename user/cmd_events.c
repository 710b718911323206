// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "client.h"
#include "commands.h"
#include "compact.h"
#include "util.h"

#define LAST_MAX 1000000

enum output { OUTPUT_COMPACT, OUTPUT_JSON, OUTPUT_JSONPRETTY };

static const char *const output_list[] = {
	[OUTPUT_COMPACT] = "compact", [OUTPUT_JSON] = "json", [OUTPUT_JSONPRETTY] = "jsonpretty"
};
static const struct names outputs = { output_list, ARRAY_SIZE(output_list) };

struct events {
	const char *socket;
	struct opts_list types, phases, verdicts, pids;
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
	OPT_U32(struct events, last, .name = "last", .metavar = "N", .min = 1, .max = LAST_MAX,
		.help = "begin with the last N events that the daemon has kept"),
	OPT_SOCKET(struct events, socket),
	OPT_END,
};

const struct opts_spec events_spec = {
	.name = "events",
	.summary = "show the recent events, or follow them live",
	.details = "An event is shown if it matches one value of each filter that is given.",
	.options = options,
};

/* Values are names of a table or digits: nothing in them needs encoding. */
static void add_filter(FILE *out, const char *key, const struct opts_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		fprintf(out, "&%s=%s", key, list->values[i]);
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
	if (!fclose(out))
		return target;
	free(target);
	return NULL;
}

static int show_line(const struct events *o, const char *line, size_t len)
{
	json_t *event = json_loadb(line, len, JSON_ALLOW_NUL, NULL);

	if (!json_is_object(event)) {
		log_warning("skipped a line of %zu bytes that is no JSON object", len);
		json_decref(event);
		return PW_EXIT_FAILED;
	}
	if (o->output == OUTPUT_COMPACT) {
		compact_print(stdout, event, o->colour);
	} else {
		json_dumpf(event, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
		putchar('\n');
	}
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
