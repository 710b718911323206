// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "commands.h"
#include "util.h"

static const struct command {
	const struct opts_spec *spec;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ &run_spec, cmd_run },
	{ &declare_spec, cmd_declare },
	{ &drain_spec, cmd_drain },
	{ &exec_spec, cmd_exec },
	{ &events_spec, cmd_events },
	{ &ps_spec, cmd_ps },
	{ &report_spec, cmd_report },
	{ &probe_spec, cmd_probe },
	{ &unload_spec, cmd_unload },
};

static void print_usage(FILE *out)
{
	fputs("Usage: phasewatch COMMAND [OPTIONS]\n\n"
	      "Says which connections reached a service in the wrong phase of its life.\n\n"
	      "Commands:\n",
		out);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-8s  %s\n", commands[i].spec->name, commands[i].spec->summary);
	fputs("\n'phasewatch COMMAND --help' shows a command's options, 'phasewatch --version' the "
	      "version.\n",
		out);
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].spec->name, name))
			return &commands[i];
	fprintf(stderr, "phasewatch: unknown command '%.80s'; the commands are", name);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(stderr, "%s %s", i ? "," : "", commands[i].spec->name);
	putc('\n', stderr);
	return NULL;
}

static int dispatch(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;
	const struct command *command;

	if (!name) {
		print_usage(stderr);
		return PW_EXIT_USAGE;
	}
	if (!strcmp(name, "--version")) {
		puts("phasewatch " PW_VERSION);
		return PW_EXIT_DONE;
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h") ||
		(!strcmp(name, "help") && argc == 2)) {
		print_usage(stdout);
		return PW_EXIT_DONE;
	}
	command = find_command(!strcmp(name, "help") ? argv[2] : name);
	if (!command)
		return PW_EXIT_USAGE;
	if (!strcmp(name, "help")) {
		opts_help(command->spec, stdout);
		return PW_EXIT_DONE;
	}
	return command->run(argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	int code;

	/* A peer or a reader that closes is an error to handle (EPIPE), not the end. */
	signal(SIGPIPE, SIG_IGN);
	code = dispatch(argc, argv);

	/* A reader that has seen enough is no failure; a full disk is. */
	if ((fflush(stdout) || ferror(stdout)) && errno != EPIPE) {
		log_error("cannot write to standard output: %s", strerror(errno));
		return code ? code : PW_EXIT_FAILED;
	}
	return code;
}
