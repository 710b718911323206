// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>

#include "bpf/abi.h"
#include "filter.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define S UINT64_C(1000000000)
#define NOW (1790000000 * S)

static void test_time(void **state)
{
	static const struct {
		const char *text;
		uint64_t ns;
	} good[] = {
		{ "5m", NOW - 300 * S }, { "250ms", NOW - S / 4 }, { "1970-01-01T00:00:00Z", 0 },
		{ "2026-11-25T12:04:31.207000001Z", 1795608271 * S + 207000001 },
		{ "2026-11-25t13:04:31+01:00", 1795608271 * S },
		{ "2026-11-25T06:34:31-05:30", 1795608271 * S },
	};
	static const char *const bad[] = { "", "m", "5x", "yesterday", "-5m", "2026-11-25",
		"2026-11-25T12:04:31", "2026-11-25T12:04:31.Z", "2026-11-25T12:04Z",
		"2026-13-25T12:04:31Z", "2026-11-25T25:04:31Z", "2026-11-25T12:04:31Zx",
		"2026-11-25T12:04:31+1:00", "2026-11-25T12:04:31+01:00x", "2026-11-25 12:04:31Z",
		"26-11-25T12:04:31Z", "1969-12-31T23:59:59Z", "99999-01-01T00:00:00Z",
		"2026-11-25T12:04:31+ 1:00", "2026-11-25T12:04:31+24:00" };
	uint64_t ns;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		if (filter_parse_time(good[i].text, NOW, &ns) < 0)
			fail_msg("%s is refused", good[i].text);
		assert_int_equal(ns, good[i].ns);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (filter_parse_time(bad[i], NOW, &ns) == 0)
			fail_msg("%s is taken", bad[i]);
}

static void test_subject(void **state)
{
	static const char *const of[] = { "nginx", "nginx[4121]", "4121" };
	static const char *const not_of[] = { "ngin", "nginx2", "nginx[412]", "nginx[41211]",
		"nginx[4121", "nginx[4121]x", "412", "41211", "[4121]", "" };

	for (size_t i = 0; i < ARRAY_SIZE(of); i++)
		assert_true(filter_is_subject(of[i], 4121, "nginx"));
	for (size_t i = 0; i < ARRAY_SIZE(not_of); i++)
		assert_false(filter_is_subject(not_of[i], 4121, "nginx"));
	assert_true(filter_is_subject("4121", 4121, NULL));
	assert_true(filter_is_subject("a[b][7]", 7, "a[b]"));
	assert_false(filter_is_subject("nginx", 4121, NULL));
}

static void test_set(void **state)
{
	struct filter f = { 0 };
	char text[FILTER_TEXT + 1];

	assert_int_equal(filter_set(&f, "type", "accept", NOW), 0);
	assert_int_equal(filter_set(&f, "since", "5m", NOW), 0);
	assert_int_equal(f.since_ns, NOW - 300 * S);
	assert_int_equal(filter_set(&f, "last", "5", NOW), -ENOENT);
	assert_int_equal(filter_set(&f, "type", "fork", NOW), -EINVAL);
	assert_int_equal(filter_set(&f, "pid", "0", NOW), -ERANGE);
	assert_int_equal(filter_set(&f, "subject", "", NOW), -EINVAL);
	memset(text, 'x', sizeof(text));
	text[FILTER_TEXT] = '\0';
	assert_int_equal(filter_set(&f, "subject", text, NOW), -ERANGE);
	for (int i = 0; i < FILTER_VALUES; i++)
		assert_int_equal(filter_set(&f, "subject", text + 1, NOW), 0);
	assert_int_equal(filter_set(&f, "subject", "one", NOW), -ERANGE);
}

static bool reads(const char *text, struct event_gist *g, json_t **event)
{
	*event = json_loads(text, JSON_DECODE_ANY, NULL);
	assert_non_null(*event);
	return filter_read(*event, g);
}

static void test_read(void **state)
{
	static const char *const none[] = { "{}", "1", "[]", "null", "\"x\"",
		"{\"type\":\"exit\"}", "{\"type\":\"exit\",\"time\":7}",
		"{\"type\":\"exit\",\"time\":\"\"}",
		"{\"type\":7,\"time\":\"2026-11-25T12:04:31Z\"}" };
	struct event_gist g;
	struct filter f = { 0 };
	json_t *event;

	for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
		assert_false(reads(none[i], &g, &event));
		json_decref(event);
	}
	assert_true(reads("{\"type\":\"accept\",\"time\":\"2026-11-25T12:04:31Z\",\"phase\":\"DRAIN\","
			  "\"verdict\":\"grace\",\"process\":{\"pid\":12},"
			  "\"subject\":{\"kind\":\"process\",\"id\":11,\"name\":\"web\"}}", &g, &event));
	assert_int_equal(g.type, PW_EV_ACCEPT);
	assert_int_equal(g.phase, PW_DRAIN);
	assert_int_equal(g.verdict, PW_GRACE);
	assert_int_equal(g.pid, 12);
	assert_int_equal(g.subject, 11);
	assert_true(filter_passes(&f, &g));
	assert_int_equal(filter_set(&f, "subject", "web", NOW), 0);
	assert_true(filter_passes(&f, &g));
	f.since_ns = g.time_ns + 1;
	assert_false(filter_passes(&f, &g));
	json_decref(event);
	/* a type that is not known yet, values of other types than they are to be */
	f = (struct filter){ 0 };
	assert_true(reads("{\"type\":\"new\",\"time\":\"2026-11-25T12:04:31Z\",\"phase\":7,"
			  "\"verdict\":[],\"process\":{\"pid\":1e300},\"subject\":{\"id\":-1}}",
		&g, &event));
	assert_true(filter_passes(&f, &g));
	assert_int_equal(filter_set(&f, "type", "accept", NOW), 0);
	assert_false(filter_passes(&f, &g));
	json_decref(event);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_time),
		cmocka_unit_test(test_subject),
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
