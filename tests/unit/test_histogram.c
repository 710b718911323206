// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "histogram.h"
#include "util.h"

#define SAMPLES 20000

static const double quantiles[] = { 0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1 };

/* xorshift64*: the same samples on every machine. */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 2685821657736338717ULL;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static uint64_t sorted_quantile(const uint64_t *sorted, size_t n, double q)
{
	double exact = q * n;
	size_t rank = exact;

	rank += rank < exact;
	return sorted[rank ? rank - 1 : 0];
}

/* Never below, and above by less than 1/32. */
static void assert_close(uint64_t got, uint64_t truth)
{
	assert_true(got >= truth);
	assert_true(got - truth <= truth / 32);
}

static void check_samples(uint64_t *samples, size_t n)
{
	struct histogram h = { 0 };

	for (size_t i = 0; i < n; i++)
		histogram_record(&h, samples[i]);
	qsort(samples, n, sizeof(*samples), compare);
	assert_int_equal(h.count, n);
	assert_true(h.min == samples[0]);
	assert_true(h.max == samples[n - 1]);
	for (size_t i = 0; i < ARRAY_SIZE(quantiles); i++)
		assert_close(histogram_quantile(&h, quantiles[i]),
			sorted_quantile(samples, n, quantiles[i]));
}

static void test_quantiles(void **state)
{
	static uint64_t samples[SAMPLES];
	uint64_t seed = 88172645463325252;

	for (unsigned int bits = 1; bits <= 64; bits++) {
		/* magnitudes spread evenly, as latencies are */
		for (size_t i = 0; i < SAMPLES; i++) {
			uint64_t r = next_random(&seed);

			samples[i] = r >> (64 - bits) >> (r % bits);
		}
		check_samples(samples, SAMPLES);
	}
}

static void test_few_samples(void **state)
{
	uint64_t samples[] = { 5, 100000, 7, 1ULL << 40, 1000 };

	for (size_t n = 1; n <= ARRAY_SIZE(samples); n++) {
		uint64_t copy[ARRAY_SIZE(samples)];

		for (size_t i = 0; i < n; i++)
			copy[i] = samples[i];
		check_samples(copy, n);
	}
}

/* Around each power of two, where a row of buckets ends. */
static void test_edges(void **state)
{
	for (unsigned int bit = 2; bit < 64; bit++)
		for (int off = -2; off <= 2; off++) {
			struct histogram h = { 0 };
			uint64_t value = (1ULL << bit) + off;

			histogram_record(&h, value);
			histogram_record(&h, UINT64_MAX); /* else the largest is told exactly */
			assert_close(histogram_quantile(&h, 0.5), value);
		}
}

static void test_small_values_are_exact(void **state)
{
	struct histogram h = { 0 };

	for (uint64_t v = 0; v < 64; v++)
		histogram_record(&h, v);
	for (unsigned int i = 1; i <= 64; i++)
		assert_int_equal(histogram_quantile(&h, i / 64.0), i - 1);
}

static void test_empty(void **state)
{
	struct histogram h = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(quantiles); i++)
		assert_int_equal(histogram_quantile(&h, quantiles[i]), 0);
}

static void test_largest(void **state)
{
	struct histogram h = { 0 };

	histogram_record(&h, UINT64_MAX);
	histogram_record(&h, 0);
	assert_true(h.min == 0);
	assert_true(h.max == UINT64_MAX);
	assert_true(histogram_quantile(&h, 1) == UINT64_MAX);
	assert_true(histogram_quantile(&h, 0.5) == 0);
}

static void test_merge_is_recording_both(void **state)
{
	struct histogram a = { 0 }, b = { 0 }, both = { 0 }, empty = { 0 };
	uint64_t seed = 42;

	for (size_t i = 0; i < 1000; i++) {
		uint64_t v = next_random(&seed) >> (i % 60);

		histogram_record(i % 3 ? &a : &b, v);
		histogram_record(&both, v);
	}
	histogram_merge(&a, &b);
	assert_memory_equal(&a, &both, sizeof(a));
	histogram_merge(&a, &empty);
	assert_memory_equal(&a, &both, sizeof(a));
	histogram_merge(&empty, &both);
	assert_memory_equal(&empty, &both, sizeof(a));
}

static void test_reset(void **state)
{
	struct histogram h = { 0 }, empty = { 0 };

	histogram_record(&h, 17);
	histogram_reset(&h);
	assert_memory_equal(&h, &empty, sizeof(h));
	histogram_record(&h, 3);
	assert_int_equal(h.min, 3);
	assert_int_equal(h.max, 3);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_quantiles),
		cmocka_unit_test(test_few_samples),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_small_values_are_exact),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_largest),
		cmocka_unit_test(test_merge_is_recording_both),
		cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
