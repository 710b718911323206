/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Options as data: one table for each command makes its parser and its --help (and is all that a
 * man page needs). A row says what the option is called, what it takes, what is allowed and where in
 * the command's own options struct the value goes:
 *
 *	struct drain_options {
 *		const char *socket;
 *		uint64_t quiet_ns;
 *		uint32_t pid;
 *	};
 *	static const struct opt drain_table[] = {
 *		OPT_U32(struct drain_options, pid, .name = "pid", .metavar = "N", .min = 1,
 *			.max = PID_MAX, .help = "the process to drain"),
 *		OPT_DURATION(struct drain_options, quiet_ns, .name = "quiet", .fallback = "2s",
 *			.metavar = "TIME", .max = 3600 * NS_PER_S, .help = "time without arrivals"),
 *		OPT_SOCKET(struct drain_options, socket),
 *		OPT_END,
 *	};
 *	const struct opts_spec drain_spec = {
 *		.name = "drain", .summary = "declare DRAIN and wait", .options = drain_table,
 *	};
 *
 *	struct drain_options o = { 0 };
 *	struct opts_args args;
 *	int code;
 *
 *	if (!opts_read(&drain_spec, argc, argv, &o, &args, &code))
 *		return code;
 *
 * A destination of another type than the row's kind does not compile. Strings point into argv, the
 * environment or the table: nothing is allocated.
 */
#ifndef PW_OPTS_H
#define PW_OPTS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "names.h"
#include "phasewatch/client.h"

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

#define PID_MAX 4194304 /* PID_MAX_LIMIT of 64-bit kernels */

enum opt_kind {
	OPT_KIND_END,
	OPT_KIND_FLAG, /* bool: takes no value */
	OPT_KIND_STRING, /* const char *: min..max bytes; max 0 is no limit */
	OPT_KIND_U32, /* uint32_t: min..max, decimal */
	OPT_KIND_U64, /* uint64_t: min..max, decimal */
	OPT_KIND_DURATION, /* uint64_t ns: "250us", "1.5s", "1m", a plain number is seconds; min..max */
	OPT_KIND_CHOICE, /* uint32_t (or an enum): index of the name in `choices` */
	OPT_KIND_LIST, /* struct opts_list: repeatable, each value checked as of kind `each` */
};

struct opt {
	const char *name; /* long name */
	char letter; /* short name, or 0 */
	enum opt_kind kind;
	enum opt_kind each;
	const char *metavar; /* what --help calls the value */
	size_t offset;
	uint64_t min, max;
	const struct names *choices;
	const char *env; /* environment variable that stands in for the option */
	const char *fallback; /* value, as text, when neither is given */
	const char *help; /* limits, fallback and env are appended by --help itself */
};

/* Rows of a table that are looked at. */
#define OPTS_ROWS_MAX 64

/* Values as given, in order; those of choices as the table spells them. */
#define OPTS_LIST_MAX 32
struct opts_list {
	size_t count;
	const char *values[OPTS_LIST_MAX];
};

/* Offset of a field, which must be of type `want`. */
#define OPT_OFFSET(type, field, want)                                                              \
	(offsetof(type, field) + 0 * sizeof(&((type *)0)->field == (want *)0))
#define OPT_ROW(type, field, k, want, ...)                                                         \
	{                                                                                          \
		.kind = OPT_KIND_##k, .offset = OPT_OFFSET(type, field, want), __VA_ARGS__         \
	}

#define OPT_FLAG(type, field, ...) OPT_ROW(type, field, FLAG, bool, __VA_ARGS__)
#define OPT_STRING(type, field, ...) OPT_ROW(type, field, STRING, const char *, __VA_ARGS__)
#define OPT_U32(type, field, ...) OPT_ROW(type, field, U32, uint32_t, __VA_ARGS__)
#define OPT_U64(type, field, ...) OPT_ROW(type, field, U64, uint64_t, __VA_ARGS__)
#define OPT_DURATION(type, field, ...) OPT_ROW(type, field, DURATION, uint64_t, __VA_ARGS__)
#define OPT_CHOICE(type, field, ...) OPT_ROW(type, field, CHOICE, uint32_t, __VA_ARGS__)
#define OPT_LIST(type, field, of, ...)                                                             \
	OPT_ROW(type, field, LIST, struct opts_list, .each = OPT_KIND_##of, __VA_ARGS__)
#define OPT_END                                                                                    \
	{                                                                                          \
		.kind = OPT_KIND_END                                                               \
	}

/* 107 bytes is what fits in sockaddr_un.sun_path beside its NUL. */
#define OPT_SOCKET(type, field)                                                                    \
	OPT_STRING(type, field, .name = "socket", .metavar = "PATH", .min = 1, .max = 107,         \
		.env = "PHASEWATCH_SOCKET", .fallback = PW_SOCKET,                                 \
		.help = "the daemon's Unix socket")

struct opts_spec {
	const char *name; /* of the command */
	const char *args; /* positional arguments in the usage line, or NULL */
	const char *summary; /* one line, also in the list of commands */
	const char *details; /* a paragraph for --help, or NULL */
	const struct opt *options;
	int min_args, max_args;
	bool command_follows; /* the arguments are a command with options of its own */
};

#define OPTS_ARGS_MAX INT_MAX

/* What is left of the command line: points into argv. */
struct opts_args {
	int count;
	char **values;
};

#define OPTS_ERROR_LEN 512

/*
 * Reads the command line (argv[0] is the command's name), then the environment, then the fallbacks
 * into *options. Returns 0; 1 if --help is asked for; -EINVAL with one sentence in `error`. *args is
 * written on 0 only; *options may be half written on others.
 */
int opts_parse(const struct opts_spec *spec, int argc, char **argv, void *options,
	struct opts_args *args, char error[static OPTS_ERROR_LEN]);

void opts_help(const struct opts_spec *spec, FILE *out);

/*
 * The same for a command: prints help to stdout or the error to stderr. True: go on. False: the
 * command is over, with exit code *code.
 */
bool opts_read(const struct opts_spec *spec, int argc, char **argv, void *options,
	struct opts_args *args, int *code);

/*
 * Pure parsers of one value: 0, or -EINVAL for what is no such number, -ERANGE for one that does not
 * fit in 64 bits. Signs, spaces, hexadecimal and trailing text are refused.
 */
int parse_u64(const char *text, uint64_t *ret);
int parse_duration(const char *text, uint64_t *ret_ns);

#endif /* PW_OPTS_H */
