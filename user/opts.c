// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "opts.h"
#include "util.h"

#define HELP_WIDTH 90

/* What getopt_long returns for the row i of a table is FIRST_ROW + i; letters are below. */
enum { HELP = 256, FIRST_ROW };

static const struct unit {
	const char *name;
	uint64_t ns;
} units[] = {
	{ "h", 3600 * NS_PER_S },
	{ "m", 60 * NS_PER_S },
	{ "s", NS_PER_S },
	{ "ms", NS_PER_MS },
	{ "us", NS_PER_US },
	{ "ns", 1 },
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Reads the digits that *text begins with, if any, and moves it behind them. */
static int take_digits(const char **text, uint64_t *ret)
{
	uint64_t value = 0;

	for (; is_digit(**text); ++*text)
		if (__builtin_mul_overflow(value, 10, &value) ||
			__builtin_add_overflow(value, (uint64_t)(**text - '0'), &value))
			return -ERANGE;
	*ret = value;
	return 0;
}

int parse_u64(const char *text, uint64_t *ret)
{
	uint64_t value;
	int r;

	if (!is_digit(*text))
		return -EINVAL;
	r = take_digits(&text, &value);
	if (r)
		return r;
	if (*text)
		return -EINVAL;
	*ret = value;
	return 0;
}

/* Digits that stand for less than a nanosecond are cut off. */
static int take_fraction(const char **text, uint64_t unit_ns, uint64_t *ret_ns)
{
	uint64_t ns = 0;

	if (**text != '.')
		goto done;
	if (!is_digit(*++*text))
		return -EINVAL;
	for (; is_digit(**text); ++*text) {
		unit_ns /= 10;
		ns += (uint64_t)(**text - '0') * unit_ns;
	}
done:
	*ret_ns = ns;
	return 0;
}

static const struct unit *find_unit(const char *text)
{
	const char *name = text + strspn(text, "0123456789.");

	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		if (!strcmp(units[i].name, *name ? name : "s"))
			return &units[i];
	return NULL;
}

int parse_duration(const char *text, uint64_t *ret_ns)
{
	const struct unit *unit = find_unit(text);
	uint64_t whole, fraction, ns;
	int r;

	if (!unit || !is_digit(*text))
		return -EINVAL;
	r = take_digits(&text, &whole);
	if (!r)
		r = take_fraction(&text, unit->ns, &fraction);
	if (r)
		return r;
	if (*text && strcmp(text, unit->name))
		return -EINVAL;
	if (__builtin_mul_overflow(whole, unit->ns, &ns) ||
		__builtin_add_overflow(ns, fraction, &ns))
		return -ERANGE;
	*ret_ns = ns;
	return 0;
}

/* A string that is built piece by piece in a buffer; what does not fit is cut. */
struct text {
	char *buf;
	size_t size, len;
};

static void __attribute__((format(printf, 2, 3))) text_add(struct text *t, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(t->buf + t->len, t->size - t->len, fmt, args);
	va_end(args);
	if (n > 0)
		t->len += (size_t)n < t->size - t->len ? (size_t)n : t->size - t->len - 1;
}

static void text_add_duration(struct text *t, uint64_t ns)
{
	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		if (ns >= units[i].ns && ns % units[i].ns == 0) {
			text_add(t, "%" PRIu64 "%s", ns / units[i].ns, units[i].name);
			return;
		}
	text_add(t, "0");
}

static enum opt_kind value_kind(const struct opt *opt)
{
	return opt->kind == OPT_KIND_LIST ? opt->each : opt->kind;
}

/* "1..4194304", "compact, json, jsonpretty", or nothing where all is allowed. */
static void text_add_allowed(struct text *t, const struct opt *opt)
{
	const char *separator = "";

	switch (value_kind(opt)) {
	case OPT_KIND_STRING:
		if (opt->max)
			text_add(t, "%" PRIu64 "..%" PRIu64 " bytes", opt->min, opt->max);
		break;
	case OPT_KIND_U32:
	case OPT_KIND_U64:
		text_add(t, "%" PRIu64 "..%" PRIu64, opt->min, opt->max);
		break;
	case OPT_KIND_DURATION:
		text_add_duration(t, opt->min);
		text_add(t, "..");
		text_add_duration(t, opt->max);
		break;
	case OPT_KIND_CHOICE:
		for (unsigned i = 0; i < opt->choices->count; i++)
			if (opt->choices->name[i]) {
				text_add(t, "%s%s", separator, opt->choices->name[i]);
				separator = ", ";
			}
		break;
	default:
		break;
	}
}

static const char *kind_noun(enum opt_kind kind)
{
	switch (kind) {
	case OPT_KIND_STRING:
		return "text of";
	case OPT_KIND_DURATION:
		return "a duration (such as 250us, 200ms, 2s, 1m) in";
	case OPT_KIND_CHOICE:
		return "one of";
	default:
		return "a number in";
	}
}

static int in_range(const struct opt *opt, uint64_t value)
{
	return value >= opt->min && value <= opt->max ? 0 : -ERANGE;
}

/* Stores one value at `dest`, whose type `kind` fixes. */
static int store_value(const struct opt *opt, enum opt_kind kind, const char *value, void *dest)
{
	uint64_t number;
	int r;

	switch (kind) {
	case OPT_KIND_STRING:
		r = opt->max ? in_range(opt, strlen(value)) : 0;
		if (!r)
			*(const char **)dest = value;
		return r;
	case OPT_KIND_CHOICE:
		r = names_parse(opt->choices, value);
		if (r < 0)
			return r;
		*(uint32_t *)dest = r;
		return 0;
	case OPT_KIND_DURATION:
		r = parse_duration(value, &number);
		break;
	default:
		r = parse_u64(value, &number);
	}
	if (!r)
		r = in_range(opt, number);
	if (r)
		return r;
	if (kind == OPT_KIND_U32)
		*(uint32_t *)dest = number;
	else
		*(uint64_t *)dest = number;
	return 0;
}

static int append_value(const struct opt *opt, const char *value, struct opts_list *list)
{
	union {
		uint32_t u32;
		uint64_t u64;
		const char *string;
	} checked;
	int r;

	if (list->count == OPTS_LIST_MAX)
		return -E2BIG;
	r = store_value(opt, opt->each, value, &checked);
	if (r)
		return r;
	if (opt->each == OPT_KIND_CHOICE)
		value = opt->choices->name[checked.u32];
	list->values[list->count++] = value;
	return 0;
}

/* `origin` is what the user wrote or set: "--pid", or the environment variable's name. */
static int set_option(const struct opt *opt, const char *origin, const char *value, void *options,
	struct text *error)
{
	void *dest = (char *)options + opt->offset;
	int r;

	if (opt->kind == OPT_KIND_FLAG) {
		*(bool *)dest = true;
		return 0;
	}
	r = opt->kind == OPT_KIND_LIST ? append_value(opt, value, dest)
				       : store_value(opt, opt->kind, value, dest);
	if (r == -E2BIG) {
		text_add(error, "%s: may be given at most %d times", origin, OPTS_LIST_MAX);
		return -EINVAL;
	}
	if (r) {
		text_add(error, "%s '%.80s': expected %s ", origin, value,
			kind_noun(value_kind(opt)));
		text_add_allowed(error, opt);
		return -EINVAL;
	}
	return 0;
}

/* The environment and the fallbacks, for each row that the command line has not set. */
static int set_unseen(
	const struct opts_spec *spec, const bool *seen, void *options, struct text *error)
{
	for (size_t i = 0; i < OPTS_ROWS_MAX && spec->options[i].kind; i++) {
		const struct opt *opt = &spec->options[i];
		const char *value = opt->env ? getenv(opt->env) : NULL;
		const char *origin = opt->env;
		int r;

		if (!value || !*value) {
			value = opt->fallback;
			origin = opt->name;
		}
		if (seen[i] || !value)
			continue;
		r = set_option(opt, origin, value, options, error);
		if (r)
			return r;
	}
	return 0;
}

/* getopt's view of a table: ":" first, so that a missing value is told from an unknown option. */
struct getopt_tables {
	struct option longs[OPTS_ROWS_MAX + 2];
	char shorts[2 * OPTS_ROWS_MAX + 4];
};

static size_t make_tables(const struct opts_spec *spec, struct getopt_tables *t)
{
	char *s = t->shorts;
	size_t i;

	if (spec->command_follows)
		*s++ = '+'; /* getopt_long(3): options end where the arguments begin */
	*s++ = ':';
	*s++ = 'h';
	for (i = 0; i < OPTS_ROWS_MAX && spec->options[i].kind; i++) {
		const struct opt *opt = &spec->options[i];
		bool flag = opt->kind == OPT_KIND_FLAG;

		t->longs[i] = (struct option){ opt->name, flag ? no_argument : required_argument,
			NULL, FIRST_ROW + i };
		if (opt->letter)
			*s++ = opt->letter;
		if (opt->letter && !flag)
			*s++ = ':';
	}
	*s = '\0';
	t->longs[i] = (struct option){ "help", no_argument, NULL, HELP };
	t->longs[i + 1] = (struct option){ 0 };
	return i;
}

/* The row that getopt's answer stands for, or `rows` if none. */
static size_t find_row(const struct opts_spec *spec, size_t rows, int c)
{
	if (c >= FIRST_ROW)
		return c - FIRST_ROW;
	for (size_t i = 0; i < rows; i++)
		if (c && spec->options[i].letter == c)
			return i;
	return rows;
}

static void explain(
	const struct opts_spec *spec, size_t rows, int c, char **argv, struct text *error)
{
	size_t row = find_row(spec, rows, optopt);

	if (c == ':')
		text_add(error, "--%s: needs a value, %s", spec->options[row].name,
			spec->options[row].metavar);
	else if (optopt >= HELP)
		text_add(error, "--%s: takes no value",
			optopt == HELP ? "help" : spec->options[row].name);
	else if (optopt)
		text_add(error, "unknown option '-%c'", optopt);
	else
		text_add(error, "unknown option '%.80s'", argv[optind - 1]);
}

static int check_args(
	const struct opts_spec *spec, const struct opts_args *args, struct text *error)
{
	if (args->count < spec->min_args)
		text_add(error, "%s is missing", spec->args);
	else if (args->count > spec->max_args)
		text_add(error, "unexpected argument '%.80s'", args->values[spec->max_args]);
	return error->len ? -EINVAL : 0;
}

int opts_parse(const struct opts_spec *spec, int argc, char **argv, void *options,
	struct opts_args *args, char error[static OPTS_ERROR_LEN])
{
	struct text text = { .buf = error, .size = OPTS_ERROR_LEN };
	bool seen[OPTS_ROWS_MAX] = { false };
	struct getopt_tables tables;
	size_t rows = make_tables(spec, &tables);
	struct opts_args left;
	char origin[64];
	int c, r;

	optind = 0; /* makes glibc forget an earlier scan */
	opterr = 0;
	while ((c = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1) {
		size_t row = find_row(spec, rows, c);

		if (c == 'h' || c == HELP)
			return 1;
		if (row == rows) {
			explain(spec, rows, c, argv, &text);
			return -EINVAL;
		}
		snprintf(origin, sizeof(origin), "--%s", spec->options[row].name);
		r = set_option(&spec->options[row], origin, optarg, options, &text);
		if (r)
			return r;
		seen[row] = true;
	}
	r = set_unseen(spec, seen, options, &text);
	if (r)
		return r;
	left = (struct opts_args){ argc - optind, argv + optind };
	r = check_args(spec, &left, &text);
	if (r)
		return r;
	*args = left;
	return 0;
}

/* Prints words from column `column` on, each further line indented to it. */
static void print_wrapped(FILE *out, const char *text, int column)
{
	int at = column;

	while (*text) {
		int len = strcspn(text, " ");

		if (at > column && at + 1 + len > HELP_WIDTH) {
			fprintf(out, "\n%*s", column, "");
			at = column;
		} else if (at > column) {
			putc(' ', out);
			at++;
		}
		fprintf(out, "%.*s", len, text);
		at += len;
		text += len + strspn(text + len, " ");
	}
	putc('\n', out);
}

static int label_option(const struct opt *opt, char *buf, size_t size)
{
	char letter[] = { '-', opt->letter, ',', ' ', '\0' };

	return snprintf(buf, size, "%s--%s%s%s", opt->letter ? letter : "    ", opt->name,
		opt->metavar ? " " : "", opt->metavar ? opt->metavar : "");
}

/* The help text, and in brackets what the row knows about the value. */
static void describe_option(const struct opt *opt, struct text *t)
{
	size_t begin;

	text_add(t, "%s [", opt->help);
	begin = t->len;
	text_add_allowed(t, opt);
	if (opt->kind == OPT_KIND_LIST)
		text_add(t, "%srepeatable", t->len > begin ? "; " : "");
	if (opt->fallback)
		text_add(t, "%sdefault %s", t->len > begin ? "; " : "", opt->fallback);
	if (opt->env)
		text_add(t, "%sor $%s", t->len > begin ? "; " : "", opt->env);
	if (t->len > begin)
		text_add(t, "]");
	else
		t->buf[begin - 2] = '\0';
}

static void print_option(FILE *out, const struct opt *opt, int column)
{
	char label[64], description[1024];
	struct text t = { .buf = description, .size = sizeof(description) };

	label_option(opt, label, sizeof(label));
	describe_option(opt, &t);
	fprintf(out, "  %-*s", column - 2, label);
	print_wrapped(out, description, column);
}

void opts_help(const struct opts_spec *spec, FILE *out)
{
	static const struct opt help = {
		.name = "help", .letter = 'h', .kind = OPT_KIND_FLAG, .help = "show this help"
	};
	int widest = label_option(&help, NULL, 0);

	for (const struct opt *opt = spec->options; opt->kind; opt++) {
		int width = label_option(opt, NULL, 0);

		widest = width > widest ? width : widest;
	}
	fprintf(out, "Usage: phasewatch %s [OPTIONS]%s%s\n\n", spec->name, spec->args ? " " : "",
		spec->args ? spec->args : "");
	print_wrapped(out, spec->summary, 0);
	if (spec->details) {
		putc('\n', out);
		print_wrapped(out, spec->details, 0);
	}
	fputs("\nOptions:\n", out);
	for (const struct opt *opt = spec->options; opt->kind; opt++)
		print_option(out, opt, widest + 4);
	print_option(out, &help, widest + 4);
}

bool opts_read(const struct opts_spec *spec, int argc, char **argv, void *options,
	struct opts_args *args, int *code)
{
	char error[OPTS_ERROR_LEN];
	int r = opts_parse(spec, argc, argv, options, args, error);

	if (r < 0) {
		log_error("%s; see 'phasewatch %s --help'", error, spec->name);
		*code = PW_EXIT_USAGE;
	} else if (r) {
		opts_help(spec, stdout);
		*code = PW_EXIT_DONE;
	}
	return !r;
}
