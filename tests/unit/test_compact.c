// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "compact.h"
#include "text.h"
#include "opts.h"
#include "util.h"

#define SUBJECT "\"subject\":{\"kind\":\"process\",\"id\":4120,\"name\":\"nginx\",\"epoch\":7}"
#define COMMON                                                                                     \
	"\"schema\":1,\"time\":\"2026-11-23T12:04:31.207000000Z\",\"node\":\"host\",\"seq\":17,"   \
	"\"phase\":\"DRAIN\",\"phase_age_ns\":1530000000,\"process\":{\"pid\":4121,"               \
	"\"comm\":\"nginx\"}," SUBJECT
#define PEERS                                                                                      \
	"\"src\":{\"addr\":\"10.0.0.9\",\"port\":51234},\"dst\":{\"addr\":\"10.0.0.8\",\"port\":"  \
	"80}"

/* What of a line begins at the first column of these events' own. */
#define HEAD(type) "12:04:31.207  " type "nginx[4121]      nginx[4120]      DRAIN +1.530s    "
#define PEERS_SHOWN "10.0.0.9:51234 -> 10.0.0.8:80        "

static char *print(const char *json, bool colour)
{
	json_t *event = json_loads(json, JSON_ALLOW_NUL, NULL);
	char *text;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	assert_non_null(event);
	compact_print(out, event, colour);
	fclose(out);
	json_decref(event);
	return text;
}

static void shown(const char *json, const char *expected)
{
	_cleanup_(freep) char *text = print(json, false);

	assert_string_equal(text, expected);
}

static void shown_in_colour(const char *json, const char *expected)
{
	_cleanup_(freep) char *text = print(json, true);

	assert_string_equal(text, expected);
}

static void test_accept(void **state)
{
	shown("{" COMMON "," PEERS ",\"type\":\"accept\",\"verdict\":\"misrouted\","
	      "\"queue_ns\":14000,\"seen_by\":\"accept\"}",
		HEAD("accept   ") PEERS_SHOWN "queue 14us\n");
	shown("{" COMMON "," PEERS ",\"type\":\"accept\",\"verdict\":\"grace\","
	      "\"queue_ns\":900000,\"seen_by\":\"first_io\","
	      "\"client\":{\"pid\":911,\"comm\":\"haproxy\"}}",
		HEAD("accept   ") PEERS_SHOWN "queue 0.9ms  seen by first_io  grace  "
					      "haproxy[911]\n");
}

static void test_connect(void **state)
{
	shown("{" COMMON ",\"type\":\"connect\",\"src\":{\"addr\":\"fe80::1\",\"port\":1},"
	      "\"dst\":{\"addr\":\"::1\",\"port\":65535},\"connect_ns\":52000,"
	      "\"result\":\"refused\"}",
		HEAD("connect  ") "[fe80::1]:1 -> [::1]:65535           refused in 52us\n");
}

static void test_exit(void **state)
{
	shown("{" COMMON ",\"type\":\"exit\",\"code\":0,\"open_connections\":1}",
		HEAD("exit     ") "exit 0, 1 connection open\n");
	shown("{" COMMON ",\"type\":\"exit\",\"signal\":15,\"open_connections\":3}",
		HEAD("exit     ") "killed by SIGTERM, 3 connections open\n");
	shown("{" COMMON ",\"type\":\"exit\",\"signal\":9223372036854775807}",
		HEAD("exit     ") "killed by signal 9223372036854775807\n");
}

static void test_phase(void **state)
{
	shown("{\"time\":\"2026-11-23T12:04:31.207000000Z\",\"type\":\"phase\"," SUBJECT
	      ",\"phase\":\"DRAIN\",\"from\":\"ACTIVE\",\"to\":\"DRAIN\",\"epoch\":7,"
	      "\"source\":\"api\",\"reason\":\"rolling update\","
	      "\"by\":{\"pid\":99,\"uid\":0,\"comm\":\"sh\"}}",
		"12:04:31.207  phase    nginx[4120]                       ACTIVE -> DRAIN  "
		"epoch 7  api  by sh[99] uid 0  \"rolling update\"\n");
}

static void test_lost(void **state)
{
	shown("{\"time\":\"2026-11-23T12:04:31.207000000Z\",\"type\":\"lost\",\"count\":12,"
	      "\"by_type\":{\"accept\":11,\"fork\":1,\"bad\":\"x\"},\"stage\":\"ring\"}",
		"12:04:31.207  lost     12 records lost in stage ring: 11 accept, 1 fork\n");
}

static void test_unknown_type_shows_its_own_fields(void **state)
{
	shown("{\"time\":\"2026-11-23T12:04:31.207Z\",\"type\":\"futures\",\"dropped\":3,"
	      "\"subject\":{\"kind\":\"cgroup\",\"id\":77,\"name\":\"frontend\"},"
	      "\"since_exit_ns\":800000000,\"ok\":true,\"how\":\"fin\",\"deep\":{\"a\":1}}",
		"12:04:31.207  futures  frontend"
		"                                                                                "
		"dropped 3  since_exit 800.0ms  ok true  how fin\n");
}

static void test_absent_and_ill_typed_fields(void **state)
{
	static const char *const lines[] = {
		"{}",
		"{\"time\":5,\"type\":[],\"phase\":{},\"phase_age_ns\":\"x\",\"process\":3}",
		"{\"subject\":null,\"src\":[],\"dst\":\"x\",\"client\":1,\"verdict\":7}",
		"{\"type\":\"accept\",\"queue_ns\":-1,\"seen_by\":9,\"src\":{\"port\":-1}}",
		"{\"type\":\"connect\",\"connect_ns\":1.5,\"result\":null}",
		"{\"type\":\"exit\",\"code\":\"0\",\"signal\":[]}",
		"{\"type\":\"phase\",\"by\":[],\"from\":1,\"to\":2,\"epoch\":-3,\"reason\":{}}",
		"{\"type\":\"lost\",\"count\":-1,\"by_type\":[1,2],\"stage\":0}",
		"{\"type\":\"new\",\"a\":1e300,\"b\":null,\"c\":-5,\"d_ns\":-5,\"_ns\":1}",
		"{\"type\":\"accept\",\"phase_age_ns\":9223372036854775807,\"phase\":\"DRAIN\"}",
	};

	shown(lines[0], "--:--:--.---  ?\n");
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		_cleanup_(freep) char *text = print(lines[i], true);

		assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
	}
}

static void test_bad_times(void **state)
{
	static const char *const times[] = { "", "now", "2026-11-23 12:04:31.207Z",
		"2026-11-23T12:04:31Z", "\\u001b[2J" };

	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		char json[64];

		snprintf(json, sizeof(json), "{\"time\":\"%s\",\"type\":\"x\"}", times[i]);
		shown(json, "--:--:--.---  x\n");
	}
}

static void test_local_time(void **state)
{
	setenv("TZ", "IST-5:30", 1);
	tzset();
	shown("{\"time\":\"2026-11-23T20:04:31.207123456Z\",\"type\":\"x\"}", "01:34:31.207  x\n");
	setenv("TZ", "UTC", 1);
	tzset();
}

static void test_nothing_controls_the_terminal(void **state)
{
	shown("{\"type\":\"a\\u0000\\n\",\"process\":{\"pid\":1,\"comm\":\"\\u001b[2J\\\\\"},"
	      "\"phase\":\"D\\r\",\"src\":{\"addr\":\"\\u0007\"},\"x\\u009by\":\"\\u202e\"}",
		"--:--:--.---  a\\x00\\x0a  \\x1b[2J\\x5c[1]                  D\\x0d            "
		"\\x07 -> ?                            x\\xc2\\x9by \\xe2\\x80\\xae\n");
}

static void test_wide_cells_push_the_next_one_only(void **state)
{
	shown("{\"type\":\"accept\",\"process\":{\"pid\":4194304,\"comm\":\"a-comm-of-15-by\"},"
	      "\"phase\":\"DRAIN\"," PEERS ",\"queue_ns\":1}",
		"--:--:--.---  accept   a-comm-of-15-by[4194304]          DRAIN           "
		" " PEERS_SHOWN "queue 1ns\n");
}

static void test_colours(void **state)
{
	shown_in_colour("{\"type\":\"x\",\"phase\":\"DRAIN\",\"verdict\":\"misrouted\"}",
		"--:--:--.---  x                                          "
		"\033[31mDRAIN\033[0m\n");
	shown_in_colour("{\"type\":\"x\",\"phase\":\"DRAIN\",\"verdict\":\"grace\"}",
		"--:--:--.---  x                                          "
		"\033[33mDRAIN\033[0m  grace\n");
	shown_in_colour("{\"type\":\"x\",\"phase\":\"DRAIN\",\"verdict\":\"ignored\"}",
		"--:--:--.---  x                                          DRAIN  ignored\n");
	shown_in_colour("{\"type\":\"lost\",\"count\":1}",
		"--:--:--.---  \033[33mlost     1 record lost\033[0m\n");
}

static void put(const char *text, const char *expected, size_t columns)
{
	_cleanup_(freep) char *shown_text = NULL;
	size_t size;
	FILE *out = open_memstream(&shown_text, &size);

	assert_int_equal(put_text(out, text, strlen(text)), columns);
	fclose(out);
	assert_string_equal(shown_text, expected);
}

static void test_text(void **state)
{
	put("", "", 0);
	put("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x9a\x80",
		"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x9a\x80", 8);
	put("\x7f", "\\x7f", 4);
	put("\xc3", "\\xc3", 4);
	put("\xe2\x82", "\\xe2\\x82", 8);
	put("\x80z", "\\x80z", 5);
	put("\xc0\x9b", "\\xc0\\x9b", 8); /* overlong escape */
	put("\xed\xa0\x80", "\\xed\\xa0\\x80", 12); /* surrogate */
	put("\xf5\x80\x80\x80", "\\xf5\\x80\\x80\\x80", 16);
	put("\xff", "\\xff", 4);
}

static void test_durations(void **state)
{
	static const struct {
		uint64_t ns;
		const char *text;
	} cases[] = {
		{ 0, "0ns" },
		{ 999, "999ns" },
		{ 14 * NS_PER_US, "14us" },
		{ 499999, "499us" },
		{ 500000, "0.5ms" },
		{ 999999999, "999.9ms" },
		{ 1530 * NS_PER_MS, "1.530s" },
		{ 59999999999, "59.999s" },
		{ 125 * NS_PER_S, "2m05s" },
		{ 11220 * NS_PER_S, "3h07m" },
		{ 385200 * NS_PER_S, "4d11h" },
		{ UINT64_MAX, "213503d23h" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_(freep) char *text = NULL;
		size_t size;
		FILE *out = open_memstream(&text, &size);

		assert_int_equal(put_duration(out, cases[i].ns), strlen(cases[i].text));
		fclose(out);
		assert_string_equal(text, cases[i].text);
	}
}

static int use_utc(void **state)
{
	setenv("TZ", "UTC", 1);
	tzset();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accept),
		cmocka_unit_test(test_connect),
		cmocka_unit_test(test_exit),
		cmocka_unit_test(test_phase),
		cmocka_unit_test(test_lost),
		cmocka_unit_test(test_unknown_type_shows_its_own_fields),
		cmocka_unit_test(test_absent_and_ill_typed_fields),
		cmocka_unit_test(test_bad_times),
		cmocka_unit_test(test_local_time),
		cmocka_unit_test(test_nothing_controls_the_terminal),
		cmocka_unit_test(test_wide_cells_push_the_next_one_only),
		cmocka_unit_test(test_colours),
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_durations),
	};

	return cmocka_run_group_tests(tests, use_utc, NULL);
}
