// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "top.h"
#include "util.h"

#define KEYS 1000

static void add_times(struct top *t, uint32_t key, unsigned int times)
{
	while (times--)
		top_add(t, &key, sizeof(key));
}

static uint32_t key_of(const struct top_entry *e)
{
	uint32_t key;

	memcpy(&key, e->key, sizeof(key));
	return key;
}

static void test_few_keys_are_exact(void **state)
{
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	for (uint32_t round = 0; round < 3; round++)
		for (uint32_t key = 0; key < TOP_ENTRIES; key++)
			add_times(&t, key, key + 1);
	assert_int_equal(top_sorted(&t, sorted), TOP_ENTRIES);
	for (uint32_t i = 0; i < TOP_ENTRIES; i++) {
		assert_int_equal(key_of(sorted[i]), TOP_ENTRIES - 1 - i);
		assert_int_equal(top_count(sorted[i]), 3 * (TOP_ENTRIES - i));
		assert_int_equal(sorted[i]->error, 0);
	}
	assert_int_equal(t.total, 3 * TOP_ENTRIES * (TOP_ENTRIES + 1) / 2);
}

static void test_empty(void **state)
{
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	assert_int_equal(top_sorted(&t, sorted), 0);
}

static void test_equal_counts_by_key(void **state)
{
	static const char *const keys[] = { "b", "ab", "a", "c" };
	static const char *const order[] = { "a", "ab", "b", "c" };
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		top_add(&t, keys[i], strlen(keys[i]));
	assert_int_equal(top_sorted(&t, sorted), ARRAY_SIZE(keys));
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		assert_string_equal(sorted[i]->key, order[i]);
}

/* A shorter key is one with zeroes behind it, and the longest one fits. */
static void test_key_lengths(void **state)
{
	uint8_t longest[TOP_KEY_LEN] = { 7 };
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	top_add(&t, longest, 1);
	top_add(&t, longest, TOP_KEY_LEN);
	longest[TOP_KEY_LEN - 1] = 1;
	top_add(&t, longest, TOP_KEY_LEN);
	assert_int_equal(top_sorted(&t, sorted), 2);
	assert_int_equal(top_count(sorted[0]), 2);
	assert_memory_equal(sorted[1]->key, longest, TOP_KEY_LEN);
}

/*
 * Heavy keys among many that come once or twice. What the algorithm promises holds of each entry,
 * for whichever order they come in.
 */
static void check_many(uint32_t stride)
{
	static unsigned int truth[KEYS];
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };
	uint64_t shown = 0;
	size_t n;

	memset(truth, 0, sizeof(truth));
	for (uint32_t i = 0; i < 40 * KEYS; i++) {
		uint32_t key = (uint64_t)i * stride % KEYS;

		if (key >= 10 && i >= 2 * KEYS)
			key %= 10;
		add_times(&t, key, 1);
		truth[key]++;
	}
	assert_int_equal(t.total, 40 * KEYS);
	n = top_sorted(&t, sorted);
	assert_int_equal(n, TOP_ENTRIES);
	for (size_t i = 0; i < n; i++) {
		assert_true(top_count(sorted[i]) <= truth[key_of(sorted[i])]);
		assert_true(sorted[i]->count >= truth[key_of(sorted[i])]);
		assert_true(!i || top_count(sorted[i]) <= top_count(sorted[i - 1]));
		shown += top_count(sorted[i]);
	}
	assert_true(shown <= t.total);
	for (uint32_t key = 0; key < 10; key++) {
		size_t i = 0;

		assert_true(truth[key] > t.total / TOP_ENTRIES);
		while (i < n && key_of(sorted[i]) != key)
			i++;
		assert_true(i < 10);
	}
}

static void test_many_keys(void **state)
{
	static const uint32_t strides[] = { 1, 7, 333, 999 };

	for (size_t i = 0; i < ARRAY_SIZE(strides); i++)
		check_many(strides[i]);
}

static void test_overflow_is_not_blamed_on_the_newcomer(void **state)
{
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	for (uint32_t key = 0; key < TOP_ENTRIES; key++)
		add_times(&t, key, 100 + key);
	add_times(&t, 5000, 1);
	assert_int_equal(top_sorted(&t, sorted), TOP_ENTRIES);
	assert_int_equal(key_of(sorted[TOP_ENTRIES - 1]), 5000);
	assert_int_equal(top_count(sorted[TOP_ENTRIES - 1]), 1);
	assert_int_equal(sorted[TOP_ENTRIES - 1]->error, 100);
	assert_int_equal(key_of(sorted[TOP_ENTRIES - 2]), 1); /* key 0 gave way */
}

/* Of several that are smallest, the one that came first. */
static void test_who_gives_way(void **state)
{
	const struct top_entry *sorted[TOP_ENTRIES];
	struct top t = { 0 };

	for (uint32_t key = 0; key < TOP_ENTRIES; key++)
		add_times(&t, key, 2);
	add_times(&t, 5000, 1);
	top_sorted(&t, sorted);
	for (size_t i = 0; i < TOP_ENTRIES; i++)
		assert_int_not_equal(key_of(sorted[i]), 0);
}

static void test_deterministic(void **state)
{
	struct top a = { 0 }, b = { 0 };

	for (uint32_t i = 0; i < 5000; i++) {
		uint32_t key = i * 2654435761u % 300;

		add_times(&a, key, 1);
		add_times(&b, key, 1);
	}
	assert_memory_equal(&a, &b, sizeof(a));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_few_keys_are_exact),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_equal_counts_by_key),
		cmocka_unit_test(test_key_lengths),
		cmocka_unit_test(test_many_keys),
		cmocka_unit_test(test_overflow_is_not_blamed_on_the_newcomer),
		cmocka_unit_test(test_who_gives_way),
		cmocka_unit_test(test_deterministic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
