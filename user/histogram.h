/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A log-linear histogram of u64 values: each power of two is cut into 2^HISTOGRAM_SUB_BITS buckets
 * of equal width, so a bucket is at most 1/32 of its values wide, and values below 64 have their
 * own. Covers all of u64 in fixed memory (15 KiB); zeroed memory is an empty histogram.
 */
#ifndef PW_HISTOGRAM_H
#define PW_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 5
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

struct histogram {
	uint64_t count;
	uint64_t min, max; /* exact; 0 while there is none */
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_record(struct histogram *h, uint64_t value);
void histogram_merge(struct histogram *to, const struct histogram *from);
void histogram_reset(struct histogram *h);

/*
 * The smallest recorded value that at least q (0..1) of all values do not exceed: never below it,
 * and above it by less than 1/32 of it. 0 if there is none.
 */
uint64_t histogram_quantile(const struct histogram *h, double q);

#endif /* PW_HISTOGRAM_H */
