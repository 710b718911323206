// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "client.h"
#include "commands.h"
#include "compact.h"
#include "text.h"
#include "util.h"

enum output { OUTPUT_TABLE, OUTPUT_JSON };

static const char *const output_list[] = { [OUTPUT_TABLE] = "table", [OUTPUT_JSON] = "json" };
static const struct names outputs = { output_list, ARRAY_SIZE(output_list) };

struct ps {
	const char *socket;
	uint32_t output;
};

static const struct opt options[] = {
	OPT_CHOICE(struct ps, output, .name = "output", .letter = 'o', .metavar = "FORMAT",
		.choices = &outputs, .fallback = "table", .help = "a table, or JSON"),
	OPT_SOCKET(struct ps, socket),
	OPT_END,
};

const struct opts_spec ps_spec = {
	.name = "ps",
	.summary = "list the subjects: their phase, and what has reached them",
	.details =
		"INFLIGHT counts open accepted connections, TCP also those in accept queues and "
		"those closed ones that are still being sent; MISROUTED the accepts in INIT, DRAIN "
		"or SHUTDOWN, CONNECTS the misrouted connects out; SETTLE is the time from DRAIN "
		"to the last misrouted arrival so far.",
	.options = options,
};

static size_t put_string(FILE *out, const json_t *value)
{
	return put_text(out, json_string_value(value), json_string_length(value));
}

static size_t put_name(FILE *out, const json_t *subject, const char *key)
{
	return put_string(out, json_object_get(subject, key));
}

static size_t put_number(FILE *out, const json_t *subject, const char *key)
{
	uint64_t number;

	return get_u64(subject, key, &number) ? fprintf(out, "%" PRIu64, number) : 0;
}

static size_t put_time(FILE *out, const json_t *subject, const char *key)
{
	uint64_t ns;

	return get_u64(subject, key, &ns) ? put_duration(out, ns) : 0;
}

static size_t put_label(FILE *out, const json_t *subject, const char *key)
{
	return put_subject(out, subject);
}

/* A cell's writer returns its width, and writes nothing for what is not known. */
static const struct column {
	const char *title;
	size_t (*put)(FILE *out, const json_t *object, const char *key);
	const char *key;
	bool of_subject; /* the object is the row's "subject", not the row */
	bool right;
} columns[] = {
	{ "SUBJECT", put_label, NULL, true, false },
	{ "PHASE", put_name, "phase", false, false },
	{ "AGE", put_time, "phase_age_ns", false, true },
	{ "EPOCH", put_number, "epoch", true, true },
	{ "SOURCE", put_name, "source", true, false },
	{ "PROCS", put_number, "members", false, true },
	{ "INFLIGHT", put_number, "inflight", false, true },
	{ "TCP", put_number, "inflight_tcp", false, true },
	{ "ACCEPTS", put_number, "accepts", false, true },
	{ "MISROUTED", put_number, "accepts_misrouted", false, true },
	{ "CONNECTS", put_number, "connects_misrouted", false, true },
	{ "SETTLE", put_time, "settle_ns", false, true },
};

static size_t put_cell(FILE *out, const struct column *column, const json_t *row)
{
	const json_t *object = column->of_subject ? json_object_get(row, "subject") : row;
	size_t width = column->put(out, object, column->key);

	return width ? width : (size_t)fprintf(out, "-");
}

/* `sink` takes what is written to learn its width only. */
static void measure(FILE *sink, json_t *rows, size_t *widths)
{
	for (size_t c = 0; c < ARRAY_SIZE(columns); c++) {
		widths[c] = strlen(columns[c].title);
		for (size_t i = 0; i < json_array_size(rows); i++) {
			size_t width = put_cell(sink, &columns[c], json_array_get(rows, i));

			widths[c] = width > widths[c] ? width : widths[c];
		}
	}
}

static void print_padded(const struct column *column, const json_t *row, size_t cell, size_t width)
{
	int gap = width - cell;

	if (column->right)
		printf("%*s", gap, "");
	if (row)
		put_cell(stdout, column, row);
	else
		fputs(column->title, stdout);
	if (!column->right)
		printf("%*s", gap, "");
}

/* The titles, if `row` is NULL. */
static void print_row(FILE *sink, const json_t *row, const size_t *widths)
{
	for (size_t c = 0; c < ARRAY_SIZE(columns); c++) {
		const struct column *column = &columns[c];
		size_t cell = row ? put_cell(sink, column, row) : strlen(column->title);

		if (c)
			fputs("  ", stdout);
		print_padded(column, row, cell, widths[c]);
	}
	putchar('\n');
}

static int print_table(json_t *rows)
{
	_cleanup_(fclosep) FILE *sink = NULL;
	size_t widths[ARRAY_SIZE(columns)];

	if (!json_array_size(rows)) {
		puts("no subjects; declare one with 'phasewatch declare ACTIVE --pid N'");
		return PW_EXIT_DONE;
	}
	sink = fopen("/dev/null", "we");
	if (!sink) {
		log_error("cannot open /dev/null: %s", strerror(errno));
		return PW_EXIT_FAILED;
	}
	measure(sink, rows, widths);
	print_row(sink, NULL, widths);
	for (size_t i = 0; i < json_array_size(rows); i++)
		print_row(sink, json_array_get(rows, i), widths);
	return PW_EXIT_DONE;
}

static int show_table(const struct client_request *request, struct client *client)
{
	json_t *answer, *rows;
	int r = client_json(client, &answer);

	if (r)
		return client_failed(request, r);
	rows = json_object_get(answer, "subjects");
	r = json_is_array(rows) ? print_table(rows) : client_failed(request, -EPROTO);
	json_decref(answer);
	return r;
}

static int show_json(const struct client_request *request, struct client *client)
{
	const char *body;
	size_t len;
	int r = client_body(client, &body, &len);

	if (r)
		return client_failed(request, r);
	fwrite(body, 1, len, stdout);
	if (len && body[len - 1] != '\n')
		putchar('\n');
	return PW_EXIT_DONE;
}

int cmd_ps(int argc, char **argv)
{
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request = { .method = "GET", .target = "/v1/subjects" };
	struct ps o = { 0 };
	struct opts_args args;
	int code;

	if (!opts_read(&ps_spec, argc, argv, &o, &args, &code))
		return code;
	request.socket = o.socket;
	code = client_call(&request, &client);
	if (code)
		return code;
	return o.output == OUTPUT_JSON ? show_json(&request, client) : show_table(&request, client);
}
