/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The commands. Each is a file cmd_NAME.c with its options and its main function. */
#ifndef PW_COMMANDS_H
#define PW_COMMANDS_H

#include "opts.h"

extern const struct opts_spec run_spec;
extern const struct opts_spec declare_spec;
extern const struct opts_spec drain_spec;
extern const struct opts_spec exec_spec;
extern const struct opts_spec events_spec;
extern const struct opts_spec ps_spec;
extern const struct opts_spec report_spec;
extern const struct opts_spec probe_spec;
extern const struct opts_spec unload_spec;

/* argv[0] is the command's name. They log their own failures and return an exit code (util.h). */
int cmd_run(int argc, char **argv);
int cmd_declare(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_exec(int argc, char **argv);
int cmd_events(int argc, char **argv);
int cmd_ps(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_probe(int argc, char **argv);
int cmd_unload(int argc, char **argv);

#endif /* PW_COMMANDS_H */
