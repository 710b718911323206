// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <string.h>

#include "text.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static size_t decode(const char *s, size_t len, uint32_t *ret)
{
	return utf8_decode((const unsigned char *)s, len, ret);
}

/* The first and the last of each length, and what surrounds the surrogates. */
static void test_decode(void **state)
{
	static const struct {
		const char *text;
		size_t len;
		uint32_t c;
	} valid[] = {
		{ "", 1, 0 },
		{ "a", 1, 'a' },
		{ "\x7f", 1, 0x7f },
		{ "\xc2\x80", 2, 0x80 },
		{ "\xdf\xbf", 2, 0x7ff },
		{ "\xe0\xa0\x80", 3, 0x800 },
		{ "\xe2\x82\xac", 3, 0x20ac },
		{ "\xed\x9f\xbf", 3, 0xd7ff },
		{ "\xee\x80\x80", 3, 0xe000 },
		{ "\xef\xbf\xbf", 3, 0xffff },
		{ "\xf0\x90\x80\x80", 4, 0x10000 },
		{ "\xf0\x9f\x98\x80", 4, 0x1f600 },
		{ "\xf4\x8f\xbf\xbf", 4, 0x10ffff },
	};

	for (size_t i = 0; i < ARRAY_SIZE(valid); i++) {
		uint32_t c = ~0u;

		assert_int_equal(decode(valid[i].text, valid[i].len, &c), valid[i].len);
		assert_int_equal(c, valid[i].c);
		/* what follows does not matter, what is missing does */
		assert_int_equal(decode(valid[i].text, valid[i].len + 1, &c), valid[i].len);
		for (size_t len = 1; len < valid[i].len; len++)
			assert_int_equal(decode(valid[i].text, len, &c), 0);
	}
}

static void test_decode_invalid(void **state)
{
	static const char *const invalid[] = {
		"\x80",
		"\xbf",
		"\xc3(",
		"\xe2(\xac",
		"\xe2\x82(",
		"\xf0\x9f\x98(",
		"\xc3\xc3",
		/* overlong */
		"\xc0\x80",
		"\xc1\xbf",
		"\xe0\x80\x80",
		"\xe0\x9f\xbf",
		"\xf0\x80\x80\x80",
		"\xf0\x8f\xbf\xbf",
		/* surrogates */
		"\xed\xa0\x80",
		"\xed\xbf\xbf",
		/* too large */
		"\xf4\x90\x80\x80",
		"\xf7\xbf\xbf\xbf",
		"\xf8\x88\x80\x80\x80",
		"\xfe",
		"\xff",
	};

	for (size_t i = 0; i < ARRAY_SIZE(invalid); i++) {
		uint32_t c = 0x5a;

		assert_int_equal(decode(invalid[i], strlen(invalid[i]), &c), 0);
		assert_int_equal(c, 0x5a);
	}
}

static void check_put(const char *text, size_t len, const char *expected, size_t columns)
{
	_cleanup_(freep) char *shown = NULL;
	size_t size, took;
	FILE *out = open_memstream(&shown, &size);

	assert_non_null(out);
	took = put_text(out, text, len);
	fclose(out);
	assert_string_equal(shown, expected);
	assert_int_equal(size, strlen(expected));
	assert_int_equal(took, columns);
}

static void test_put_harmless(void **state)
{
	static const char *const same[] = {
		"",
		"nginx",
		"a b",
		"~",
		"\"quoted\"",
		"\xc3\xa9",
		"\xe2\x82\xac",
		"\xf0\x9f\x98\x80",
		/* next to what is hidden or turns the direction */
		"\xc2\xa0",
		"\xc2\xac",
		"\xc2\xae",
		"\xe2\x80\x8a",
		"\xe2\x80\x90",
		"\xe2\x80\xaf",
	};

	for (size_t i = 0; i < ARRAY_SIZE(same); i++) {
		size_t columns = 0;

		for (const char *s = same[i]; *s; s++)
			columns += (*s & 0xc0) != 0x80;
		check_put(same[i], strlen(same[i]), same[i], columns);
	}
}

#define CHECK_PUT(text, expected) check_put(text, sizeof(text) - 1, expected, strlen(expected))

static void test_put_unsafe(void **state)
{
	CHECK_PUT("\0", "\\x00");
	CHECK_PUT("a\nb", "a\\x0ab");
	CHECK_PUT("\x1b[2J", "\\x1b[2J");
	CHECK_PUT("\x1f\x7f", "\\x1f\\x7f");
	CHECK_PUT("\xc2\x80\xc2\x9b\xc2\x9f", "\\xc2\\x80\\xc2\\x9b\\xc2\\x9f");
	/* soft hyphen, zero width space, marks, overrides, isolates, byte order mark, tags */
	CHECK_PUT("\xc2\xad", "\\xc2\\xad");
	CHECK_PUT("\xd8\x9c", "\\xd8\\x9c");
	CHECK_PUT("\xe2\x80\x8b", "\\xe2\\x80\\x8b");
	CHECK_PUT("\xe2\x80\x8f", "\\xe2\\x80\\x8f");
	CHECK_PUT("\xe2\x80\xae", "\\xe2\\x80\\xae");
	CHECK_PUT("\xe2\x81\xa6", "\\xe2\\x81\\xa6");
	CHECK_PUT("\xef\xbb\xbf", "\\xef\\xbb\\xbf");
	CHECK_PUT("\xf3\xa0\x80\x81", "\\xf3\\xa0\\x80\\x81");
}

/* So that text which looks escaped is told from what is. */
static void test_put_backslash(void **state)
{
	CHECK_PUT("\\x1b", "\\x5cx1b");
}

static void test_put_invalid(void **state)
{
	CHECK_PUT("a\xff"
		  "b",
		"a\\xffb");
	CHECK_PUT("\xc0\x80", "\\xc0\\x80");
	CHECK_PUT("\xed\xa0\x80", "\\xed\\xa0\\x80");
	/* cut off, then text that is good again */
	CHECK_PUT("\xe2\x82"
		  "x",
		"\\xe2\\x82x");
	CHECK_PUT("\xf0\x9f\x98", "\\xf0\\x9f\\x98");
}

/* Bytes beyond the length are not looked at. */
static void test_put_ends_at_its_length(void **state)
{
	check_put("abc", 2, "ab", 2);
	check_put("\xe2\x82\xac", 2, "\\xe2\\x82", 8);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_decode_invalid),
		cmocka_unit_test(test_put_harmless),
		cmocka_unit_test(test_put_unsafe),
		cmocka_unit_test(test_put_backslash),
		cmocka_unit_test(test_put_invalid),
		cmocka_unit_test(test_put_ends_at_its_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
