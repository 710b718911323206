// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <stddef.h>
#include <string.h>

#include "histogram.h"

#define SUB_BUCKETS (1u << HISTOGRAM_SUB_BITS)

/*
 * Row 0 holds the values below SUB_BUCKETS, one each. Row n > 0 holds those of one power of two,
 * which are cut to SUB_BITS + 1 significant bits; the first of these is always set, so it is left
 * out.
 */
static unsigned int bucket_of(uint64_t value)
{
	unsigned int shift;

	if (value < SUB_BUCKETS)
		return value;
	shift = 63 - __builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	return shift * SUB_BUCKETS + (value >> shift);
}

static uint64_t largest_in(unsigned int bucket)
{
	unsigned int shift;

	if (bucket < SUB_BUCKETS)
		return bucket;
	shift = bucket / SUB_BUCKETS - 1;
	return (((uint64_t)bucket % SUB_BUCKETS + SUB_BUCKETS) << shift) + ((1ULL << shift) - 1);
}

void histogram_record(struct histogram *h, uint64_t value)
{
	h->min = h->count && h->min < value ? h->min : value;
	h->max = h->max > value ? h->max : value;
	h->count++;
	h->buckets[bucket_of(value)]++;
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
	if (!from->count)
		return;
	to->min = to->count && to->min < from->min ? to->min : from->min;
	to->max = to->max > from->max ? to->max : from->max;
	to->count += from->count;
	for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
		to->buckets[i] += from->buckets[i];
}

void histogram_reset(struct histogram *h)
{
	memset(h, 0, sizeof(*h));
}

uint64_t histogram_quantile(const struct histogram *h, double q)
{
	double exact_rank = q * (double)h->count;
	uint64_t rank = exact_rank, seen = 0, value;

	rank += (double)rank < exact_rank;
	if (rank <= 1)
		return h->min;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->buckets[i];
		if (seen < rank)
			continue;
		value = largest_in(i);
		return value < h->max ? value : h->max;
	}
	return h->max;
}
