// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <string.h>

#include "target.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

struct options {
	struct target target;
};

static const struct opt table[] = { OPT_TARGET(struct options, target), OPT_END };
static const struct opts_spec spec = { .name = "test", .summary = "test", .options = table };

/* Each way, and the field it becomes. */
static const struct {
	char *words[2];
	const char *json;
} ways[] = {
	{ { "--self" }, "{\"parent\":true}" },
	{ { "--pid", "4121" }, "{\"pid\":4121}" },
	{ { "--cgroup", "/system.slice" }, "{\"cgroup\":\"/system.slice\"}" },
	{ { "--unit", "nginx" }, "{\"unit\":\"nginx\"}" },
	{ { "--container", "71a1" }, "{\"container\":\"71a1\"}" },
	{ { "--pod", "shop/frontend" }, "{\"pod\":\"shop/frontend\"}" },
};

static struct target parse(int argc, char *argv[])
{
	struct options o = { 0 };
	struct opts_args args;
	char error[OPTS_ERROR_LEN];

	assert_int_equal(opts_parse(&spec, argc, argv, &o, &args, error), 0);
	return o.target;
}

/* The field that says what it is for. */
static void check_json(const struct target *t, const char *field)
{
	char *text = target_declare(t, PW_DRAIN, 0, NULL, NULL), expected[512];

	snprintf(expected, sizeof(expected), "{\"phase\":\"DRAIN\",%s", field + 1);
	assert_non_null(text);
	assert_string_equal(text, expected);
	free(text);
}

static void test_all_fields(void **state)
{
	char *text = target_declare(NULL, PW_INIT, 7, "a \"release\"", "active_on_listen");

	assert_non_null(text);
	assert_string_equal(text, "{\"phase\":\"INIT\",\"self\":true,\"active_on_listen\":true,"
				  "\"epoch\":7,\"reason\":\"a \\\"release\\\"\"}");
	free(text);
}

static void test_ways(void **state)
{
	struct target none = { 0 };

	check_json(&none, "{\"parent\":true}");
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		char *argv[] = { "test", ways[i].words[0], ways[i].words[1], NULL };
		struct target t = parse(ways[i].words[1] ? 3 : 2, argv);

		assert_true(target_check(&t));
		check_json(&t, ways[i].json);
	}
}

static void test_two_of_them(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		for (size_t j = i + 1; j < ARRAY_SIZE(ways); j++) {
			char *argv[] = { "test", ways[j].words[0], ways[j].words[1],
				ways[i].words[0], ways[i].words[1], NULL };
			struct target t = parse(ways[i].words[1] ? 5 : 4, argv);

			assert_false(target_check(&t));
		}
}

static void test_text_that_is_no_utf8(void **state)
{
	struct target t = { .cgroup[SELECT_UNIT] = "nginx\xff" };

	assert_null(target_declare(&t, PW_DRAIN, 0, NULL, NULL));
	assert_null(target_declare(NULL, PW_DRAIN, 0, "why\xff", NULL));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ways),
		cmocka_unit_test(test_all_fields),
		cmocka_unit_test(test_two_of_them),
		cmocka_unit_test(test_text_that_is_no_utf8),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
