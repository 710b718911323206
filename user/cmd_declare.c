// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <inttypes.h>
#include <string.h>

#include "client.h"
#include "commands.h"
#include "compact.h"
#include "target.h"
#include "text.h"
#include "phasewatch/phase.h"
#include "util.h"

struct declare {
	const char *socket, *reason;
	struct target target;
	uint64_t epoch;
	bool quiet;
};

static const struct opt options[] = {
	OPT_TARGET(struct declare, target),
	OPT_U64(struct declare, epoch, .name = "epoch", .metavar = "N", .min = 1, .max = INT64_MAX,
		.help = "generation of its life cycle; one lower than that in force is refused"),
	OPT_STRING(struct declare, reason, .name = "reason", .metavar = "TEXT", .min = 1,
		.max = PW_REASON_LEN - 1, .help = "why, for whoever reads the event"),
	OPT_FLAG(struct declare, quiet, .name = "quiet", .letter = 'q',
		.help = "print nothing on success"),
	OPT_SOCKET(struct declare, socket),
	OPT_END,
};

const struct opts_spec declare_spec = {
	.name = "declare",
	.args = "PHASE",
	.summary = "declare the phase of a process or a cgroup",
	.details = "PHASE is INIT, ACTIVE, DRAIN or SHUTDOWN. Within one epoch phases only move "
		   "forward. A process may declare itself and its descendants, root anything.",
	.options = options,
	.min_args = 1,
	.max_args = 1,
};

static void put_phase(const json_t *answer, const char *key)
{
	const json_t *phase = json_object_get(answer, key);

	put_text(stdout, json_string_value(phase), json_string_length(phase));
}

/* nginx[4120]: ACTIVE -> DRAIN, epoch 7, 4 processes */
static void print_answer(const json_t *answer)
{
	const json_t *subject = json_object_get(answer, "subject");
	uint64_t number;

	put_subject(stdout, subject);
	if (json_is_false(json_object_get(answer, "changed"))) {
		fputs(": already ", stdout);
	} else {
		fputs(": ", stdout);
		put_phase(answer, "from");
		fputs(" -> ", stdout);
	}
	put_phase(answer, "to");
	if (get_u64(subject, "epoch", &number))
		printf(", epoch %" PRIu64, number);
	if (get_u64(answer, "members", &number))
		printf(", %" PRIu64 " process%s", number, number == 1 ? "" : "es");
	putchar('\n');
}

static int declare(const struct declare *o, const char *body)
{
	struct client_request request = {
		.socket = o->socket, .method = "PUT", .target = "/v1/phase", .body = body
	};
	_cleanup_(client_freep) struct client *client = NULL;
	_cleanup_(json_freep) json_t *answer = NULL;
	int r;

	r = client_call(&request, &client);
	if (r)
		return r;
	r = client_json(client, &answer);
	if (r)
		return client_failed(&request, r);
	if (!o->quiet)
		print_answer(answer);
	return PW_EXIT_DONE;
}

int cmd_declare(int argc, char **argv)
{
	_cleanup_(freep) char *body = NULL;
	struct declare o = { 0 };
	struct opts_args args;
	int phase, code;

	if (!opts_read(&declare_spec, argc, argv, &o, &args, &code))
		return code;
	phase = names_parse(&declared_phase_names, args.values[0]);
	if (phase < 0) {
		log_error("unknown phase '%.80s': expected one of INIT, ACTIVE, DRAIN, SHUTDOWN",
			args.values[0]);
		return PW_EXIT_USAGE;
	}
	if (!target_check(&o.target))
		return PW_EXIT_USAGE;
	body = target_declare(&o.target, phase, o.epoch, o.reason, NULL);
	if (!body)
		return PW_EXIT_USAGE;
	return declare(&o, body);
}
