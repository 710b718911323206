// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <jansson.h>
#include <string.h>
#include <time.h>

#include "json_out.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* What has been written, read by somebody else's parser. */
static json_t *parsed(const struct json_out *j)
{
	json_error_t error;
	json_t *value;

	assert_false(j->failed);
	value = json_loadb(j->text, j->len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);
	if (!value)
		fail_msg("%s at %d in %.*s", error.text, error.position, (int)j->len, j->text);
	return value;
}

static void assert_text(const struct json_out *j, const char *expected)
{
	assert_int_equal(j->len, strlen(expected));
	assert_memory_equal(j->text, expected, j->len);
}

static void test_structure(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	json_open(&j, NULL, '{');
	json_u64(&j, "a", 1);
	json_open(&j, "b", '[');
	json_u64(&j, NULL, 2);
	json_open(&j, NULL, '{');
	json_close(&j, '}');
	json_open(&j, NULL, '[');
	json_close(&j, ']');
	json_bool(&j, NULL, true);
	json_close(&j, ']');
	json_open(&j, "c", '{');
	json_bool(&j, "d", false);
	json_close(&j, '}');
	json_str(&j, "e", "f");
	json_close(&j, '}');
	json_raw(&j, "\n", 1);
	assert_text(&j, "{\"a\":1,\"b\":[2,{},[],true],\"c\":{\"d\":false},\"e\":\"f\"}\n");
}

static void test_numbers(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	json_open(&j, NULL, '[');
	json_u64(&j, NULL, 0);
	json_u64(&j, NULL, 10);
	json_u64(&j, NULL, UINT64_MAX);
	json_i64(&j, NULL, 0);
	json_i64(&j, NULL, -1);
	json_i64(&j, NULL, INT64_MAX);
	json_i64(&j, NULL, INT64_MIN);
	json_close(&j, ']');
	assert_text(
		&j, "[0,10,18446744073709551615,0,-1,9223372036854775807,-9223372036854775808]");
}

static void test_null_is_absent(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	json_open(&j, NULL, '{');
	json_str(&j, "a", NULL);
	json_u64(&j, "b", 1);
	json_str(&j, "c", NULL);
	json_close(&j, '}');
	assert_text(&j, "{\"b\":1}");
}

static void test_every_ascii_byte(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	char all[128];
	json_t *value;

	for (size_t i = 0; i < sizeof(all); i++)
		all[i] = i;
	json_strn(&j, NULL, all + 1, sizeof(all) - 1);
	value = parsed(&j);
	assert_int_equal(json_string_length(value), sizeof(all) - 1);
	assert_memory_equal(json_string_value(value), all + 1, sizeof(all) - 1);
	json_decref(value);
	/* one event is one line, on a terminal as well */
	for (size_t i = 0; i < j.len; i++)
		assert_in_range((unsigned char)j.text[i], 0x20, 0x7e);

	json_reset(&j);
	json_strn(&j, NULL, all, 1);
	assert_text(&j, "\"\\u0000\"");
}

static void test_valid_utf8_is_kept(void **state)
{
	/* the first and last of each length, beside the surrogates, and U+2028 */
	static const char *const texts[] = { "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
		"\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
		"\xe2\x80\xa8", "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x90\x99" };
	_cleanup_(json_free) struct json_out j = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		json_t *value;

		json_reset(&j);
		json_str(&j, NULL, texts[i]);
		value = parsed(&j);
		assert_string_equal(json_string_value(value), texts[i]);
		json_decref(value);
	}
}

#define BAD "\xef\xbf\xbd"

static void test_invalid_utf8_is_replaced(void **state)
{
	static const struct {
		const char *text, *expected;
	} cases[] = {
		{ "\x80", BAD }, /* continuation without a start */
		{ "a\xbf-", "a" BAD "-" },
		{ "\xc0\xaf", BAD BAD }, /* overlong */
		{ "\xc1\xbf", BAD BAD },
		{ "\xe0\x9f\xbf", BAD BAD BAD },
		{ "\xf0\x8f\xbf\xbf", BAD BAD BAD BAD },
		{ "\xed\xa0\x80", BAD BAD BAD }, /* surrogates */
		{ "\xed\xbf\xbf", BAD BAD BAD },
		{ "\xf4\x90\x80\x80", BAD BAD BAD BAD }, /* above U+10FFFF */
		{ "\xf5\x80\x80\x80", BAD BAD BAD BAD },
		{ "\xff\xfe", BAD BAD },
		{ "\xc3", BAD }, /* cut */
		{ "x\xe2\x82", "x" BAD BAD },
		{ "\xf0\x9f\x90", BAD BAD BAD },
		{ "\xe2\x82-", BAD BAD "-" }, /* what follows is not swallowed */
		{ "\xc3\"", BAD "\"" },
		{ "\xe2\x82\\", BAD BAD "\\" },
	};
	_cleanup_(json_free) struct json_out j = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		json_t *value;

		json_reset(&j);
		json_str(&j, NULL, cases[i].text);
		value = parsed(&j);
		assert_string_equal(json_string_value(value), cases[i].expected);
		json_decref(value);
	}
}

/* The sequence goes on behind the end: that is somebody else's byte. */
static void test_length_is_respected(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	json_t *value;

	json_strn(&j, NULL, "ab\xe2\x82\xac", 4);
	value = parsed(&j);
	assert_string_equal(json_string_value(value), "ab" BAD BAD);
	json_decref(value);

	json_reset(&j);
	json_strn(&j, NULL, "abc", 0);
	assert_text(&j, "\"\"");
}

static void test_huge_strings(void **state)
{
	static const size_t lengths[] = { 1, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 65536,
		3000017 };
	_cleanup_(json_free) struct json_out j = { 0 };
	_cleanup_(freep) char *text = malloc(3000018);

	assert_non_null(text);
	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		json_t *value;

		/* each byte takes six */
		memset(text, '\x01', lengths[i]);
		json_reset(&j);
		json_open(&j, NULL, '[');
		json_strn(&j, NULL, text, lengths[i]);
		json_close(&j, ']');
		value = parsed(&j);
		assert_int_equal(j.len, 6 * lengths[i] + 4);
		assert_int_equal(json_string_length(json_array_get(value, 0)), lengths[i]);
		assert_memory_equal(json_string_value(json_array_get(value, 0)), text, lengths[i]);
		json_decref(value);
	}
}

/* Whatever is written at whatever place, the buffer has grown in time. */
static void test_growth(void **state)
{
	for (size_t before = 990; before < 1030; before++) {
		_cleanup_(json_free) struct json_out j = { 0 };
		char filler[1030];
		json_t *value;

		memset(filler, 'x', before);
		json_open(&j, NULL, '{');
		json_strn(&j, "filler", filler, before);
		assert_true(j.len <= j.size);
		json_u64(&j, "u", UINT64_MAX / 2);
		json_i64(&j, "i", INT64_MIN);
		json_bool(&j, "b", false);
		json_time(&j, "t", 1795435471207000000);
		json_str(&j, "s", "end");
		json_close(&j, '}');
		assert_true(j.len <= j.size);

		value = parsed(&j);
		assert_int_equal(json_string_length(json_object_get(value, "filler")), before);
		assert_true(json_integer_value(json_object_get(value, "u")) == INT64_MAX);
		assert_true(json_integer_value(json_object_get(value, "i")) == INT64_MIN);
		assert_true(json_is_false(json_object_get(value, "b")));
		assert_string_equal(json_string_value(json_object_get(value, "s")), "end");
		json_decref(value);
	}
}

static void test_reset_keeps_the_memory(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	const char *text;
	size_t size;

	json_open(&j, NULL, '[');
	json_strn(&j, NULL, (char[5000]){ 0 }, 5000);
	text = j.text;
	size = j.size;
	json_reset(&j);
	assert_int_equal(j.len, 0);
	json_u64(&j, NULL, 7); /* no comma before it */
	assert_text(&j, "7");
	assert_ptr_equal(j.text, text);
	assert_int_equal(j.size, size);

	json_free(&j);
	assert_null(j.text);
	json_u64(&j, NULL, 8);
	assert_text(&j, "8");
}

/* Under AddressSanitizer: let malloc(3) fail as it does without. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "allocator_may_return_null=1";
}

static void test_memory_errors_stick(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	json_open(&j, NULL, '{');
	json_u64(&j, "a", 1);
	json_strn(&j, "b", "more than there can be", SIZE_MAX / 16);
	assert_true(j.failed);
	assert_int_equal(j.len, 0);

	json_u64(&j, "c", 1);
	json_i64(&j, "d", -1);
	json_bool(&j, "e", true);
	json_str(&j, "f", "text");
	json_time(&j, "g", 1);
	json_open(&j, "h", '[');
	json_close(&j, ']');
	json_raw(&j, "\n", 1);
	assert_true(j.failed);
	assert_int_equal(j.len, 0);

	json_reset(&j);
	json_u64(&j, NULL, 2);
	assert_text(&j, "2");
}

static void assert_time(uint64_t ns)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	time_t seconds = ns / 1000000000;
	char text[64], expected[96];
	struct tm tm;

	assert_non_null(gmtime_r(&seconds, &tm));
	assert_true(strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm));
	snprintf(expected, sizeof(expected), "{\"time\":\"%s.%09uZ\"}", text,
		(unsigned int)(ns % 1000000000));
	json_open(&j, NULL, '{');
	json_time(&j, "time", ns);
	json_close(&j, '}');
	assert_text(&j, expected);
}

static void test_times(void **state)
{
	/*
	 * Around midnights; the end of February 2000 and 2024 (leap years), 2026 and 2100 (none);
	 * the last leap second; the limits of 32 bits.
	 */
	static const uint64_t seconds[] = { 0, 59, 60, 3599, 86399, 86400, 951782399, 951782400,
		951868800, 1483228799, 1483228800, 1709164800, 1709251199, 1709251200, 1767225599,
		1767225600, 1772323199, 1772323200, 1795435471, 2147483647, 2147483648, 4294967295,
		4294967296, 4102444800, 4107542399, 4107542400, UINT64_MAX / 1000000000 - 1 };

	for (size_t i = 0; i < ARRAY_SIZE(seconds); i++) {
		assert_time(seconds[i] * 1000000000);
		assert_time(seconds[i] * 1000000000 + 1);
		assert_time(seconds[i] * 1000000000 + 999999999);
	}
	/* every day of 2026, at another time each */
	for (uint64_t day = 0; day < 365; day++)
		assert_time((1767225600 + day * (86400 + 61)) * 1000000000 + day * 1000003);
	assert_time(UINT64_MAX);
}

static void test_a_known_time(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };

	json_time(&j, NULL, 1795435471207000000);
	assert_text(&j, "\"2026-11-23T12:04:31.207000000Z\"");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_structure),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_null_is_absent),
		cmocka_unit_test(test_every_ascii_byte),
		cmocka_unit_test(test_valid_utf8_is_kept),
		cmocka_unit_test(test_invalid_utf8_is_replaced),
		cmocka_unit_test(test_length_is_respected),
		cmocka_unit_test(test_huge_strings),
		cmocka_unit_test(test_growth),
		cmocka_unit_test(test_reset_keeps_the_memory),
		cmocka_unit_test(test_memory_errors_stick),
		cmocka_unit_test(test_times),
		cmocka_unit_test(test_a_known_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
