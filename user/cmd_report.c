// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <stdio.h>

#include "client.h"
#include "commands.h"
#include "report.h"
#include "util.h"

enum output { OUTPUT_TEXT, OUTPUT_JSON, OUTPUT_MARKDOWN };

static const char *const output_list[] = {
	[OUTPUT_TEXT] = "text",
	[OUTPUT_JSON] = "json",
	[OUTPUT_MARKDOWN] = "markdown",
};
static const struct names outputs = { output_list, ARRAY_SIZE(output_list) };

struct report_options {
	const char *socket;
	uint32_t output;
	uint32_t last;
};

static const struct opt options[] = {
	OPT_CHOICE(struct report_options, output, .name = "output", .letter = 'o',
		.metavar = "FORMAT", .choices = &outputs, .fallback = "text",
		.help = "text for a terminal, JSON, or Markdown for a post-mortem"),
	OPT_U32(struct report_options, last, .name = "last", .metavar = "N", .min = 1,
		.max = 1000000, .fallback = "1", .help = "show the last N reports"),
	OPT_SOCKET(struct report_options, socket),
	OPT_END,
};

const struct opts_spec report_spec = {
	.name = "report",
	.args = "[SUBJECT]",
	.summary = "show what a drain did and cost",
	.details =
		"SUBJECT is a name, name[pid] or pid, as 'phasewatch ps' shows them; without it, "
		"reports of all subjects. Drains that still run come last. New connections are "
		"those that came after DRAIN, of all that the subject accepted since its last "
		"drain; late requests those on older connections, of all requests meanwhile.",
	.options = options,
	.max_args = 1,
};

/* Removes what is not asked for. */
static void select_reports(json_t *reports, const char *subject, size_t last)
{
	for (size_t i = json_array_size(reports); i-- > 0;)
		if (subject && !report_is_of(json_array_get(reports, i), subject))
			json_array_remove(reports, i);
	while (json_array_size(reports) > last)
		json_array_remove(reports, 0);
}

static int tell_none(const char *subject)
{
	if (subject)
		log_error("no drain of '%s' has been seen; 'phasewatch ps' lists the subjects",
			subject);
	else
		log_error("no drain has been seen; one begins with 'phasewatch declare DRAIN'");
	return PW_EXIT_FAILED;
}

static void print(const json_t *answer, const json_t *reports, uint32_t output)
{
	if (output == OUTPUT_JSON) {
		json_dumpf(answer, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
		putchar('\n');
		return;
	}
	for (size_t i = 0; i < json_array_size(reports); i++) {
		if (i)
			putchar('\n');
		if (output == OUTPUT_MARKDOWN)
			report_print_markdown(stdout, json_array_get(reports, i));
		else
			report_print_text(stdout, json_array_get(reports, i));
	}
}

static int show(const struct client_request *request, struct client *client,
	const struct report_options *o, const char *subject)
{
	json_t *answer, *reports;
	int r = client_json(client, &answer);

	if (r)
		return client_failed(request, r);
	reports = json_object_get(answer, "reports");
	select_reports(reports, subject, o->last);
	if (!json_is_array(reports))
		r = client_failed(request, -EPROTO);
	else if (!json_array_size(reports))
		r = tell_none(subject);
	else
		print(answer, reports, o->output);
	json_decref(answer);
	return r;
}

int cmd_report(int argc, char **argv)
{
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request = { .method = "GET", .target = "/v1/reports" };
	struct report_options o = { 0 };
	struct opts_args args;
	int code;

	if (!opts_read(&report_spec, argc, argv, &o, &args, &code))
		return code;
	request.socket = o.socket;
	code = client_call(&request, &client);
	if (code)
		return code;
	return show(&request, client, &o, args.count ? args.values[0] : NULL);
}
