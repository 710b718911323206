/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who counts most, in fixed memory: the space-saving algorithm (Metwally, Agrawal, El Abbadi
 * 2005). With up to TOP_ENTRIES keys every count is exact. Beyond that a new key takes over the
 * smallest entry, whose count becomes its `error`. An entry's key was added at least `count -
 * error` times and at most `count` times; whoever has more than total / TOP_ENTRIES has an entry.
 * What is shown is the lower bound: nobody is blamed for what others did, and the rest is a number
 * of its own. The same keys in the same order give the same result. Zeroed memory is an empty
 * counter.
 */
#ifndef PW_TOP_H
#define PW_TOP_H

#include <stddef.h>
#include <stdint.h>

#define TOP_ENTRIES 64
#define TOP_KEY_LEN 24

struct top_entry {
	uint8_t key[TOP_KEY_LEN]; /* zeroes behind what was given */
	uint64_t count;
	uint64_t error;
};

struct top {
	uint64_t total;
	size_t n;
	struct top_entry entries[TOP_ENTRIES];
};

/* `len` <= TOP_KEY_LEN bytes. */
void top_add(struct top *t, const void *key, size_t len);

/* At least as many. */
static inline uint64_t top_count(const struct top_entry *e)
{
	return e->count - e->error;
}

/* By top_count(), the largest first, then by key. Returns how many. Valid until top_add(). */
size_t top_sorted(const struct top *t, const struct top_entry *ret[static TOP_ENTRIES]);

#endif /* PW_TOP_H */
