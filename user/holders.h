/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who holds the API's connections, so that nobody holds them all. libevent does not tell when one
 * is closed: one whose file descriptor is closed, or is another socket's by now, counts no more.
 */
#ifndef PW_HOLDERS_H
#define PW_HOLDERS_H

#include <stddef.h>
#include <sys/types.h>

struct holders;

/* At most `each` connections of one user, and `all` of all together. */
int holders_new(struct holders **ret, size_t each, size_t all);
void holders_free(struct holders *h);

/* One more connection of this user. -EUSERS: it has as many as it may; -EBUSY: all together do. */
int holders_add(struct holders *h, int fd, uid_t uid);

#endif /* PW_HOLDERS_H */
