// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "opts.h"
#include "util.h"

#define ENV "PHASEWATCH_TEST_NAME"

struct sample {
	const char *name;
	uint64_t big, wait_ns;
	struct opts_list colours, numbers;
	uint32_t small, colour;
	bool quiet;
};

static const char *const colour_list[] = { "red", "green", NULL, "blue" };
static const struct names colour_names = { colour_list, ARRAY_SIZE(colour_list) };

static const struct opt options[] = {
	OPT_U32(struct sample, small, .name = "small", .letter = 's', .metavar = "N", .min = 1,
		.max = 9, .help = "a small number"),
	OPT_U64(struct sample, big, .name = "big", .metavar = "N", .max = UINT64_MAX,
		.help = "a big number"),
	OPT_DURATION(struct sample, wait_ns, .name = "wait", .metavar = "TIME", .min = NS_PER_MS,
		.max = 3600 * NS_PER_S, .fallback = "2s", .help = "a time"),
	OPT_CHOICE(struct sample, colour, .name = "colour", .letter = 'c', .metavar = "COLOUR",
		.choices = &colour_names, .help = "a colour"),
	OPT_FLAG(struct sample, quiet, .name = "quiet", .letter = 'q', .help = "no output"),
	OPT_LIST(struct sample, colours, CHOICE, .name = "also", .metavar = "COLOUR",
		.choices = &colour_names, .help = "more colours"),
	OPT_LIST(struct sample, numbers, U32, .name = "number", .letter = 'n', .metavar = "N",
		.max = 99, .help = "numbers"),
	OPT_STRING(struct sample, name, .name = "name", .metavar = "TEXT", .min = 1, .max = 5,
		.env = ENV, .fallback = "none", .help = "a name"),
	OPT_END,
};

static const struct opts_spec spec = {
	.name = "sample",
	.args = "THING",
	.summary = "A sample",
	.details = "Details.",
	.options = options,
	.max_args = 2,
};

static const struct opts_spec spec_of_one = {
	.name = "sample",
	.args = "THING",
	.summary = "A sample",
	.options = options,
	.min_args = 1,
	.max_args = 1,
};

static const struct opts_spec spec_of_command = {
	.name = "sample",
	.args = "CMD",
	.options = options,
	.min_args = 1,
	.max_args = OPTS_ARGS_MAX,
	.command_follows = true,
};

#define ARGS_MAX 80

/* One parse of a command line; its words are cut from `text` at the spaces. */
struct parse {
	char text[1024];
	char *argv[ARGS_MAX + 1];
	struct sample o;
	struct opts_args args;
	char error[OPTS_ERROR_LEN];
	int result;
};

static struct parse *parse(const struct opts_spec *of, const char *line)
{
	static struct parse p;
	char *rest = p.text;
	int argc = 0;

	p = (struct parse){ 0 };
	assert_true(strlen(line) < sizeof(p.text));
	strcpy(p.text, line);
	while (rest && argc < ARGS_MAX)
		p.argv[argc++] = strsep(&rest, " ");
	p.result = opts_parse(of, argc, p.argv, &p.o, &p.args, p.error);
	return &p;
}

static struct parse *accepted(const char *line)
{
	struct parse *p = parse(&spec, line);

	if (p->result)
		fail_msg("'%s' is refused: %s", line, p->error);
	return p;
}

static void refused(const char *line, const char *error)
{
	struct parse *p = parse(&spec, line);

	assert_int_equal(p->result, -EINVAL);
	assert_string_equal(p->error, error);
}

static void test_values_of_each_kind(void **state)
{
	struct parse *p = accepted("sample -s 9 --big=18446744073709551615 --wait 250ms -c BLUE "
				   "-q --also green --also Red -n7 -n 08 --name abcde");

	assert_int_equal(p->o.small, 9);
	assert_true(p->o.big == UINT64_MAX);
	assert_true(p->o.wait_ns == 250 * NS_PER_MS);
	assert_int_equal(p->o.colour, 3);
	assert_true(p->o.quiet);
	assert_int_equal(p->o.colours.count, 2);
	assert_string_equal(p->o.colours.values[0], "green");
	assert_string_equal(p->o.colours.values[1], "red");
	assert_int_equal(p->o.numbers.count, 2);
	assert_string_equal(p->o.numbers.values[1], "08");
	assert_string_equal(p->o.name, "abcde");
	assert_int_equal(p->args.count, 0);
}

static void test_fallback_environment_command_line(void **state)
{
	unsetenv(ENV);
	assert_string_equal(accepted("sample")->o.name, "none");
	assert_true(accepted("sample")->o.wait_ns == 2 * NS_PER_S);
	setenv(ENV, "", 1);
	assert_string_equal(accepted("sample")->o.name, "none");
	setenv(ENV, "env", 1);
	assert_string_equal(accepted("sample")->o.name, "env");
	assert_string_equal(accepted("sample --name line")->o.name, "line");
	setenv(ENV, "toolong", 1);
	refused("sample", ENV " 'toolong': expected text of 1..5 bytes");
	assert_string_equal(accepted("sample --name line")->o.name, "line");
	unsetenv(ENV);
}

static void test_positional_arguments(void **state)
{
	struct parse *p = accepted("sample one -q two");

	assert_int_equal(p->args.count, 2);
	assert_string_equal(p->args.values[0], "one");
	assert_string_equal(p->args.values[1], "two");
	p = accepted("sample -- -q");
	assert_false(p->o.quiet);
	assert_string_equal(p->args.values[0], "-q");
	refused("sample one two three", "unexpected argument 'three'");
	p = parse(&spec_of_one, "sample -q");
	assert_int_equal(p->result, -EINVAL);
	assert_string_equal(p->error, "THING is missing");
}

/* Its options are its own, whether or not "--" is before it. */
static void test_command_follows(void **state)
{
	static const char *const lines[] = { "sample -q cmd -s 99 --no-such -- x",
		"sample -q -- cmd -s 99 --no-such -- x" };

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		struct parse *p = parse(&spec_of_command, lines[i]);

		assert_int_equal(p->result, 0);
		assert_true(p->o.quiet);
		assert_int_equal(p->o.small, 0);
		assert_int_equal(p->args.count, 6);
		assert_string_equal(p->args.values[0], "cmd");
		assert_string_equal(p->args.values[4], "--");
	}
	assert_int_equal(parse(&spec_of_command, "sample -q")->result, -EINVAL);
}

static void test_errors_name_option_value_and_what_is_allowed(void **state)
{
	refused("sample --small 0", "--small '0': expected a number in 1..9");
	refused("sample -s 10", "--small '10': expected a number in 1..9");
	refused("sample -s -1", "--small '-1': expected a number in 1..9");
	refused("sample -s +1", "--small '+1': expected a number in 1..9");
	refused("sample -s 0x1", "--small '0x1': expected a number in 1..9");
	refused("sample -s 1x", "--small '1x': expected a number in 1..9");
	refused("sample --small=", "--small '': expected a number in 1..9");
	refused("sample --big 18446744073709551616",
		"--big '18446744073709551616': expected a number in 0..18446744073709551615");
	refused("sample --wait 1x", "--wait '1x': expected a duration (such as 250us, 200ms, 2s, "
				    "1m) in 1ms..1h");
	refused("sample -c pink", "--colour 'pink': expected one of red, green, blue");
	refused("sample --also pink", "--also 'pink': expected one of red, green, blue");
	refused("sample -n 100", "--number '100': expected a number in 0..99");
	refused("sample --name=", "--name '': expected text of 1..5 bytes");
	refused("sample --name 123456", "--name '123456': expected text of 1..5 bytes");
}

static void test_errors_of_form(void **state)
{
	refused("sample --bogus", "unknown option '--bogus'");
	refused("sample --bogus=3", "unknown option '--bogus=3'");
	refused("sample -z", "unknown option '-z'");
	refused("sample -qz", "unknown option '-z'");
	refused("sample --n 3", "unknown option '--n'"); /* --name or --number */
	refused("sample --small", "--small: needs a value, N");
	refused("sample -s", "--small: needs a value, N");
	refused("sample --quiet=yes", "--quiet: takes no value");
	refused("sample --help=yes", "--help: takes no value");
}

static void test_long_values_are_cut_in_errors(void **state)
{
	char line[600] = "sample --name ";

	memset(line + strlen(line), 'x', 500);
	assert_int_equal(parse(&spec, line)->result, -EINVAL);
	assert_non_null(strstr(parse(&spec, line)->error, "xx': expected text of 1..5 bytes"));
}

static void test_list_is_bounded(void **state)
{
	char line[512] = "sample";

	for (int i = 0; i < OPTS_LIST_MAX; i++)
		strcat(line, " -n5");
	assert_int_equal(accepted(line)->o.numbers.count, OPTS_LIST_MAX);
	strcat(line, " -n5");
	refused(line, "--number: may be given at most 32 times");
}

static void test_outputs_are_written_on_success_only(void **state)
{
	char *argv[] = { "sample", "-z", NULL };
	char error[OPTS_ERROR_LEN];
	struct sample o = { 0 };
	struct opts_args args = { .count = -7 };

	assert_int_equal(opts_parse(&spec, 2, argv, &o, &args, error), -EINVAL);
	assert_int_equal(args.count, -7);
}

static void test_help_wins_over_what_follows(void **state)
{
	assert_int_equal(parse(&spec, "sample --help --bogus")->result, 1);
	assert_int_equal(parse(&spec, "sample -h")->result, 1);
	assert_int_equal(parse(&spec, "sample -qh")->result, 1);
	assert_int_equal(parse(&spec, "sample --bogus --help")->result, -EINVAL);
}

static void test_help_text(void **state)
{
	char *text;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	opts_help(&spec, out);
	fclose(out);
	assert_string_equal(text,
		"Usage: phasewatch sample [OPTIONS] THING\n\n"
		"A sample\n\nDetails.\n\n"
		"Options:\n"
		"  -s, --small N        a small number [1..9]\n"
		"      --big N          a big number [0..18446744073709551615]\n"
		"      --wait TIME      a time [1ms..1h; default 2s]\n"
		"  -c, --colour COLOUR  a colour [red, green, blue]\n"
		"  -q, --quiet          no output\n"
		"      --also COLOUR    more colours [red, green, blue; repeatable]\n"
		"  -n, --number N       numbers [0..99; repeatable]\n"
		"      --name TEXT      a name [1..5 bytes; default none; or $" ENV "]\n"
		"  -h, --help           show this help\n");
	free(text);
}

static void test_durations(void **state)
{
	static const struct {
		const char *text;
		uint64_t ns;
	} good[] = {
		{ "0", 0 },
		{ "2", 2 * NS_PER_S },
		{ "1.5", 1500 * NS_PER_MS },
		{ "7ns", 7 },
		{ "250us", 250 * NS_PER_US },
		{ "200ms", 200 * NS_PER_MS },
		{ "2s", 2 * NS_PER_S },
		{ "1m", 60 * NS_PER_S },
		{ "1.5h", 5400 * NS_PER_S },
		{ "0.0000000019s", 1 },
		{ "1.00000000000000000000000000001s", NS_PER_S },
		{ "18446744073709551615ns", UINT64_MAX },
	};
	static const char *const bad[] = { "", "s", ".", ".5s", "1.", "1.s", "-1s", "+1s", " 1s",
		"1 s", "1s ", "1S", "1d", "1ms2", "1.2.3s", "1e3", "0x1s", "1sms" };
	static const char *const huge[] = { "18446744073709551616ns", "18446744074s",
		"99999999999999999999999999", "18446744073.9s" };
	uint64_t ns;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse_duration(good[i].text, &ns), 0);
		assert_true(ns == good[i].ns);
	}
	ns = 5;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(parse_duration(bad[i], &ns), -EINVAL);
	for (size_t i = 0; i < ARRAY_SIZE(huge); i++)
		assert_int_equal(parse_duration(huge[i], &ns), -ERANGE);
	assert_int_equal(ns, 5);
}

static void test_numbers(void **state)
{
	uint64_t n = 5;

	assert_int_equal(parse_u64("", &n), -EINVAL);
	assert_int_equal(parse_u64(" 1", &n), -EINVAL);
	assert_int_equal(parse_u64("1 ", &n), -EINVAL);
	assert_int_equal(parse_u64("18446744073709551616", &n), -ERANGE);
	assert_int_equal(n, 5);
	assert_int_equal(parse_u64("18446744073709551615", &n), 0);
	assert_true(n == UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values_of_each_kind),
		cmocka_unit_test(test_fallback_environment_command_line),
		cmocka_unit_test(test_positional_arguments),
		cmocka_unit_test(test_command_follows),
		cmocka_unit_test(test_errors_name_option_value_and_what_is_allowed),
		cmocka_unit_test(test_errors_of_form),
		cmocka_unit_test(test_long_values_are_cut_in_errors),
		cmocka_unit_test(test_list_is_bounded),
		cmocka_unit_test(test_outputs_are_written_on_success_only),
		cmocka_unit_test(test_help_wins_over_what_follows),
		cmocka_unit_test(test_help_text),
		cmocka_unit_test(test_durations),
		cmocka_unit_test(test_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
