/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef PW_PAGE_H
#define PW_PAGE_H

#include <event2/buffer.h>

/* The status page, user/status.html. Its own script and style, marked by `nonce`, are all it needs. */
int page_write(struct evbuffer *out, const char *nonce);

#endif /* PW_PAGE_H */
