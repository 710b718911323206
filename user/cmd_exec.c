// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "client.h"
#include "commands.h"
#include "notify.h"
#include "phasewatch/phase.h"
#include "target.h"
#include "util.h"

/* As shells have it. */
#define EXIT_NOT_FOUND 127
#define EXIT_NOT_EXECUTABLE 126

struct exec_options {
	const char *socket, *reason;
	uint64_t epoch;
	bool require;
};

static const struct opt options[] = {
	OPT_U64(struct exec_options, epoch, .name = "epoch", .metavar = "N", .min = 1,
		.max = INT64_MAX, .help = "generation of its life cycle"),
	OPT_STRING(struct exec_options, reason, .name = "reason", .metavar = "TEXT", .min = 1,
		.max = PW_REASON_LEN - 1, .help = "why, for whoever reads the event"),
	OPT_FLAG(struct exec_options, require, .name = "require",
		.help = "do not run CMD if its phase cannot be declared"),
	OPT_SOCKET(struct exec_options, socket),
	OPT_END,
};

const struct opts_spec exec_spec = {
	.name = "exec",
	.args = "CMD [ARG]...",
	.summary = "run a command as a subject",
	.details = "CMD is in INIT from its first moment on, ACTIVE when it (or a child of it) listens "
		   "on TCP or says READY=1 to $NOTIFY_SOCKET, and then what signals or it itself "
		   "declare. It takes the place of this process: signals, exit status and standard "
		   "streams are its own. Where no "
		   "daemon runs it is run all the same. 126 and 127 say that it could not be run.",
	.options = options,
	.min_args = 1,
	.max_args = OPTS_ARGS_MAX,
	.command_follows = true,
};

static int declare_init(const struct exec_options *o)
{
	_cleanup_(freep) char *body =
		target_declare(NULL, PW_INIT, o->epoch, o->reason, "active_on_listen");
	const struct client_request request = {
		.socket = o->socket, .method = "PUT", .target = "/v1/phase", .body = body
	};
	_cleanup_(client_freep) struct client *client = NULL;

	if (!body)
		return PW_EXIT_USAGE;
	return client_call(&request, &client);
}

/* For READY=1 and the like, unless somebody else waits for these already, such as systemd. */
static void offer_notify_socket(const char *socket)
{
	char path[PATH_MAX];

	notify_beside(socket, path, sizeof(path));
	if (access(path, W_OK) == 0)
		setenv("NOTIFY_SOCKET", path, 0);
}

int cmd_exec(int argc, char **argv)
{
	struct exec_options o = { 0 };
	struct opts_args args;
	int code;

	if (!opts_read(&exec_spec, argc, argv, &o, &args, &code))
		return code;
	code = declare_init(&o);
	if (code && o.require)
		return code;
	if (code)
		log_warning("%s is run all the same, undeclared", args.values[0]);
	else
		offer_notify_socket(o.socket);
	signal(SIGPIPE, SIG_DFL); /* that it is ignored here would be inherited */
	execvp(args.values[0], args.values);
	log_error("cannot run %s: %s", args.values[0], strerror(errno));
	return errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}
