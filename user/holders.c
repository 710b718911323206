// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "holders.h"

struct held {
	int fd;
	ino_t ino;
	uid_t uid;
};

struct holders {
	size_t each, all, n;
	struct held held[];
};

int holders_new(struct holders **ret, size_t each, size_t all)
{
	struct holders *h = malloc(sizeof(*h) + all * sizeof(h->held[0]));

	if (!h)
		return -ENOMEM;
	*h = (struct holders){ .each = each, .all = all };
	*ret = h;
	return 0;
}

void holders_free(struct holders *h)
{
	free(h);
}

static int check(const struct holders *h, uid_t uid)
{
	size_t own = 0;

	for (size_t i = 0; i < h->n; i++)
		own += h->held[i].uid == uid;
	return own >= h->each ? -EUSERS : h->n >= h->all ? -EBUSY : 0;
}

static bool is_open(const struct held *held)
{
	struct stat st;

	return fstat(held->fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == held->ino;
}

static void forget_closed(struct holders *h)
{
	size_t kept = 0;

	for (size_t i = 0; i < h->n; i++)
		if (is_open(&h->held[i]))
			h->held[kept++] = h->held[i];
	h->n = kept;
}

int holders_add(struct holders *h, int fd, uid_t uid)
{
	struct stat st;
	int err;

	if (fstat(fd, &st) < 0)
		return -errno;
	err = check(h, uid);
	if (err) {
		forget_closed(h);
		err = check(h, uid);
	}
	if (!err)
		h->held[h->n++] = (struct held){ fd, st.st_ino, uid };
	return err;
}
