// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <stdlib.h>
#include <string.h>

#include "top.h"

/* The one that has the key, or else one to give it to: a new one, or the first of the smallest. */
static struct top_entry *entry_for(struct top *t, const uint8_t key[TOP_KEY_LEN])
{
	struct top_entry *smallest = t->entries;

	for (struct top_entry *e = t->entries; e < t->entries + t->n; e++) {
		if (memcmp(e->key, key, TOP_KEY_LEN) == 0)
			return e;
		if (e->count < smallest->count)
			smallest = e;
	}
	if (t->n < TOP_ENTRIES)
		smallest = &t->entries[t->n++];
	smallest->error = smallest->count;
	memcpy(smallest->key, key, TOP_KEY_LEN);
	return smallest;
}

void top_add(struct top *t, const void *key, size_t len)
{
	uint8_t padded[TOP_KEY_LEN] = { 0 };

	memcpy(padded, key, len);
	entry_for(t, padded)->count++;
	t->total++;
}

static int compare(const void *a, const void *b)
{
	const struct top_entry *x = *(const struct top_entry *const *)a;
	const struct top_entry *y = *(const struct top_entry *const *)b;

	if (top_count(x) != top_count(y))
		return top_count(x) > top_count(y) ? -1 : 1;
	return memcmp(x->key, y->key, TOP_KEY_LEN);
}

size_t top_sorted(const struct top *t, const struct top_entry *ret[static TOP_ENTRIES])
{
	for (size_t i = 0; i < t->n; i++)
		ret[i] = &t->entries[i];
	qsort(ret, t->n, sizeof(ret[0]), compare);
	return t->n;
}
